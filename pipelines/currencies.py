"""Currencies of ISO 4217: their codes and minor units, and amounts between text and the integers of the ledger.

The list is that of the package ``iso4217``, which follows the maintenance agency's table. An amount is an integer of
minor units everywhere but in front of people: 12.34 EUR is 1234, 1234 JPY is 1234, 1.234 BHD is 1234. By convention a
ledger's number is the numeric code of its currency (978: euro); what else a ledger holds is said by its metadata.

Entries without minor units ("N.A.": gold, special drawing rights, the test code XTS) are known by their codes, but
have no amounts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

import iso4217

from pipelines.errors import StreambankError

__all__ = ["AmountError", "Currency", "UnknownCurrency", "by_code", "by_number", "currencies"]

_AMOUNT: Final = re.compile(r"(-?)([0-9]{1,40})(?:\.([0-9]{1,40}))?", re.ASCII)


class UnknownCurrency(StreambankError):  # noqa: N818 - a state, named for what it is
    """No currency of ISO 4217 has this code."""


class AmountError(StreambankError):
    """The text is no amount of this currency, or the currency has no minor units."""


@dataclass(frozen=True, slots=True)
class Currency:
    """One entry of ISO 4217. ``minor_units``: digits after the point, None where the standard has none."""

    code: str
    number: int
    minor_units: int | None
    name: str

    @property
    def scale(self) -> int:
        """Digits after the point; raises `AmountError` where the standard gives none."""
        if self.minor_units is None:
            raise AmountError(f"{self.code} ({self.name}) has no minor units in ISO 4217, so no amounts")
        return self.minor_units

    def minor(self, text: str) -> int:
        """Minor units of a plain decimal number: ``EUR.minor("12.3")`` is 1230.

        Exact: raises `AmountError` for more digits after the point than the currency has (zeros beyond them are
        fine), for exponents, signs other than a leading minus, spaces and digits outside ASCII.
        """
        found = _AMOUNT.fullmatch(text)
        if found is None:
            raise AmountError(f"{text[:60]!r} is not a decimal number such as 12.34")
        sign, whole, fraction = found[1], found[2], found[3] or ""
        if fraction[self.scale :].strip("0"):
            raise AmountError(f"{text} has more digits after the point than {self.code} has, which is {self.scale}")
        amount = int(whole + fraction[: self.scale].ljust(self.scale, "0"))
        return -amount if sign else amount

    def text(self, amount: int) -> str:
        """``amount`` minor units as a decimal number with all digits of the currency: 1230 is "12.30" in euro."""
        scale = self.scale
        digits = str(abs(amount)).rjust(scale + 1, "0")
        cut = len(digits) - scale
        return ("-" if amount < 0 else "") + digits[:cut] + ("." + digits[cut:] if scale else "")


@cache
def currencies() -> MappingProxyType[str, Currency]:
    """Every entry of ISO 4217 by its alphabetic code, in the order of the codes."""
    found = sorted((entry.code, entry.number, entry.exponent, entry.currency_name) for entry in iso4217.Currency)
    return MappingProxyType({code: Currency(code, number, units, name) for code, number, units, name in found})


@cache
def _by_number() -> dict[int, Currency]:
    return {currency.number: currency for currency in currencies().values()}


def by_code(code: str) -> Currency:
    """The currency of an alphabetic code in capitals ("EUR"); raises `UnknownCurrency`."""
    found = currencies().get(code)
    if found is None:
        raise UnknownCurrency(f"{code[:20]!r} is not an alphabetic code of ISO 4217, which is three capitals as in EUR")
    return found


def by_number(number: int) -> Currency:
    """The currency of a numeric code (978); raises `UnknownCurrency`."""
    found = _by_number().get(number)
    if found is None:
        raise UnknownCurrency(f"{number} is not a numeric code of ISO 4217")
    return found
