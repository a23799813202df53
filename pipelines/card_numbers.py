"""Card numbers (PAN, ISO/IEC 7812): which are well-formed, whose they are, and how to keep them out of text.

Pure functions without state. Nothing here puts a number into an error: a refusal says what is wrong with it and never
which one it was.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pipelines.errors import StreambankError

__all__ = ["BRANDS", "CardNumberError", "brand_of", "luhn_valid", "mask_card_numbers", "masked", "read_card_number"]

MIN_DIGITS: Final = 13
MAX_DIGITS: Final = 19

_RANGES: Final[tuple[tuple[str, tuple[tuple[int, int], ...], tuple[int, ...]], ...]] = (
    ("mir", ((2200, 2204),), (16, 17, 18, 19)),
    ("mastercard", ((51, 55), (2221, 2720)), (16,)),
    ("amex", ((34, 34), (37, 37)), (15,)),
    ("jcb", ((3528, 3589),), (16, 17, 18, 19)),
    ("diners", ((300, 305), (3095, 3095), (36, 36), (38, 39)), (14, 15, 16, 17, 18, 19)),
    ("maestro", ((5018, 5018), (5020, 5020), (5038, 5038), (5893, 5893), (6304, 6304), (6759, 6759), (6761, 6763)),
     (13, 14, 15, 16, 17, 18, 19)),
    ("discover", ((6011, 6011), (644, 649), (65, 65)), (16, 17, 18, 19)),
    ("unionpay", ((62, 62), (81, 81)), (16, 17, 18, 19)),
    ("visa", ((4, 4),), (13, 16, 19)),
)  # fmt: skip
"""Brand, issuer identification ranges (inclusive, compared with as many leading digits), lengths; first match wins."""

BRANDS: Final = tuple(brand for brand, _, _ in _RANGES)

_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_RUN: Final = re.compile(r"[0-9](?:[ -]?[0-9]){12,}", re.ASCII)
_GROUP: Final = re.compile(r"[0-9]+", re.ASCII)


class CardNumberError(StreambankError):
    """What was given is no card number that can be used; the message does not hold it."""


def luhn_valid(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = sum(map(int, digits[-1::-2])) + sum(_DOUBLED[int(digit)] for digit in digits[-2::-2])
    return total % 10 == 0


def brand_of(digits: str) -> str | None:
    """The brand whose issuer range and lengths the number has, or None."""
    for brand, ranges, lengths in _RANGES:
        if len(digits) in lengths and any(low <= int(digits[: len(str(low))]) <= high for low, high in ranges):
            return brand
    return None


def read_card_number(text: str) -> tuple[str, str]:
    """Digits and brand of a number written with or without single spaces or dashes; raises `CardNumberError`."""
    if not re.fullmatch(r"[0-9](?:[ -]?[0-9])*", text, re.ASCII):
        raise CardNumberError("must be digits, with single spaces or dashes between them if at all")
    digits = text.replace(" ", "").replace("-", "")
    if not MIN_DIGITS <= len(digits) <= MAX_DIGITS:
        raise CardNumberError(f"must have {MIN_DIGITS} to {MAX_DIGITS} digits; found {len(digits)}")
    brand = brand_of(digits)
    if brand is None:
        raise CardNumberError(f"begins with no issuer range of {', '.join(BRANDS)}, or has not its length")
    if not luhn_valid(digits):
        raise CardNumberError("has a wrong check digit (Luhn)")
    return digits, brand


def mask_card_numbers(text: str) -> str:
    """The text with every run of digits that is a card number cut to its last four digits.

    A number is a run of whole groups of digits (between single spaces or dashes) that has an issuer's range, a length
    of it and the right check digit; so times and most ids stay as they are. A safety net behind code that never puts
    a number into text: a number that is glued to other digits is not found.
    """
    return _RUN.sub(_masked_run, text) if _RUN.search(text) else text


def _masked_run(run: re.Match[str]) -> str:
    text = run[0]
    groups = [(found.start(), found.end()) for found in _GROUP.finditer(text)]
    first = 0
    result, copied = [], 0
    while first < len(groups):
        digits = ""
        for last in range(first, len(groups)):
            digits += text[slice(*groups[last])]
            if len(digits) > MAX_DIGITS:
                last = first
                break
            if len(digits) >= MIN_DIGITS and brand_of(digits) and luhn_valid(digits):
                result += [text[copied : groups[first][0]], f"****{digits[-4:]}"]
                copied = groups[last][1]
                break
        else:
            last = first
        first = max(last, first) + 1
    return "".join([*result, text[copied:]])


def masked(value: Any) -> Any:
    """A JSON-like value with card numbers masked in all its text, keys and integers too."""
    if isinstance(value, str):
        return mask_card_numbers(value)
    if isinstance(value, bool | float) or value is None:
        return value
    if isinstance(value, int):
        text = mask_card_numbers(str(value)) if 10 ** (MIN_DIGITS - 1) <= value < 10**MAX_DIGITS else ""
        return text if text.startswith("*") else value
    if isinstance(value, dict):
        return {masked(key): masked(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [masked(entry) for entry in value]
    return mask_card_numbers(str(value)) if not isinstance(value, bytes) else mask_card_numbers(repr(value))
