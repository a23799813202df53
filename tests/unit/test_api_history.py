"""Times in queries."""

from __future__ import annotations

import pytest

from api.history import parse_time


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("1700000000000000001", 1_700_000_000_000_000_001),
        ("1970-01-02", 86_400 * 10**9),
        ("2023-11-14T22:13:20Z", 1_700_000_000 * 10**9),
        ("2023-11-14T22:13:20.000000001Z", 1_700_000_000 * 10**9 + 1),
        ("2023-11-14T22:13:20.5", 1_700_000_000_500_000_000),
        ("2023-11-14T23:13:20.999999999+01:00", 1_700_000_000_999_999_999),
    ],
)
def test_times_are_read_to_the_nanosecond(text: str, nanoseconds: int) -> None:
    assert parse_time(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "noon", "-1", "1969-12-31", "9999-01-01", "2023-13-01", "99999999999999999999"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_time(text)
