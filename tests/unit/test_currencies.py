"""Currencies: minor units as in ISO 4217, and exact amounts in both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.currencies import AmountError, UnknownCurrency, by_code, by_number, currencies

MONETARY = sorted(code for code, currency in currencies().items() if currency.minor_units is not None)


@pytest.mark.parametrize(
    ("code", "number", "minor_units"),
    [("EUR", 978, 2), ("USD", 840, 2), ("JPY", 392, 0), ("BHD", 48, 3), ("CLF", 990, 4), ("XAU", 959, None)],
)  # fmt: skip
def test_codes_and_minor_units(code: str, number: int, minor_units: int | None) -> None:
    assert by_code(code) is by_number(number)
    assert (by_code(code).number, by_code(code).minor_units) == (number, minor_units)


def test_the_list_is_whole_and_without_doubles() -> None:
    assert len(currencies()) >= 175
    assert len({currency.number for currency in currencies().values()}) == len(currencies())
    assert all(code == currency.code and currency.name for code, currency in currencies().items())


@pytest.mark.parametrize(
    ("code", "text", "minor"),
    [("EUR", "12.3", 1230), ("EUR", "12", 1200), ("EUR", "0.010", 1), ("JPY", "7", 7), ("BHD", "-1.234", -1234)],
)
def test_amounts_from_text(code: str, text: str, minor: int) -> None:
    assert by_code(code).minor(text) == minor


@pytest.mark.parametrize(
    ("code", "text"),
    [("EUR", "0.001"), ("JPY", "1.5"), ("EUR", "1e3"), ("EUR", "+1"), ("EUR", " 1"), ("EUR", "1,5"), ("EUR", "1."),
     ("EUR", ""), ("EUR", "١"), ("XAU", "1")],  # noqa: RUF001 - an Arabic digit is the point
)  # fmt: skip
def test_what_is_no_amount_is_refused(code: str, text: str) -> None:
    with pytest.raises(AmountError):
        by_code(code).minor(text)


@given(st.sampled_from(MONETARY), st.integers(-(2**128), 2**128))
def test_amounts_survive_the_way_through_text(code: str, amount: int) -> None:
    currency = by_code(code)
    text = currency.text(amount)
    assert currency.minor(text) == amount
    assert len(text.partition(".")[2]) == currency.scale


def test_unknown_codes_are_refused() -> None:
    for attempt in ("eur", "EURO", "DEM", ""):
        with pytest.raises(UnknownCurrency, match="ISO 4217"):
            by_code(attempt)
    with pytest.raises(UnknownCurrency, match="12345"):
        by_number(12345)
