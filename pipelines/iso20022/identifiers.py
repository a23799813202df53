"""Currencies' minor units, amounts, IBAN, BIC and the patterns of identifiers, as ISO 20022 writes them."""

from __future__ import annotations

import re
from typing import Final

from pipelines.currencies import currencies

__all__ = ["BIC", "CURRENCY", "DATE", "DATE_TIME", "UETR", "amount_text", "iban_valid", "minor_units", "read_amount"]

CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)
BIC: Final = re.compile(r"[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}(?:[A-Z0-9]{3})?", re.ASCII)
UETR: Final = re.compile(r"[a-f0-9]{8}-[a-f0-9]{4}-4[a-f0-9]{3}-[89ab][a-f0-9]{3}-[a-f0-9]{12}", re.ASCII)
DATE: Final = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])", re.ASCII)
DATE_TIME: Final = re.compile(
    DATE.pattern
    + r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])?",
    re.ASCII,
)
_AMOUNT: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,5}))?", re.ASCII)
_IBAN: Final = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}", re.ASCII)
MAX_DIGITS: Final = 18


def minor_units(currency: str) -> int | None:
    """Digits of the currency's minor unit (ISO 4217), or None if it is none that payments are made in."""
    found = currencies().get(currency)
    return found.minor_units if found is not None else None


def read_amount(text: str, currency: str) -> int:
    """Minor units of a decimal as ISO 20022 has it; raises ValueError, also when it does not fit the currency."""
    digits = minor_units(currency)
    found = _AMOUNT.fullmatch(text)
    if digits is None:
        raise ValueError(f"{currency} is no currency that payments are made in")
    if found is None or len(found[1].lstrip("0")) + len(found[2] or "") > MAX_DIGITS:
        raise ValueError("must be digits with a point between if at all, 18 of them at most, five after the point")
    fraction = (found[2] or "").rstrip("0")
    if len(fraction) > digits:
        raise ValueError(f"has more decimals than the {digits} of {currency}")
    return int(found[1] + fraction.ljust(digits, "0"))


def amount_text(amount: int, currency: str) -> str:
    """The decimal of minor units, as ISO 20022 has it; raises ValueError for a currency that is unknown."""
    digits = minor_units(currency)
    if digits is None or amount < 0 or amount >= 10**MAX_DIGITS:
        raise ValueError(f"{amount} {currency} is no amount")
    text = str(amount).rjust(digits + 1, "0")
    return f"{text[:-digits]}.{text[-digits:]}" if digits else text


def iban_valid(text: str) -> bool:
    """Whether it has the form and the check digits of an IBAN (ISO 13616, ISO 7064 MOD 97-10)."""
    if not _IBAN.fullmatch(text):
        return False
    moved = text[4:] + text[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1
