"""Alerts: one per card and UTC day, with an id that is a function of both, so that no replay alerts twice."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

__all__ = ["MICROS_PER_DAY", "alert_id", "day_of"]

MICROS_PER_DAY: Final = 86_400_000_000


def day_of(event_time: int) -> int:
    """UTC day of a time in microseconds, as days since 1970-01-01."""
    return event_time // MICROS_PER_DAY


def alert_id(shard: int, customer_id: int, day: int) -> int:
    """Id of the alert, and of the case, of a customer's card on a day: 120 bits of a BLAKE2b hash, never 0."""
    name = f"fraud-alert {shard} {customer_id} {day}".encode()
    return int.from_bytes(blake2b(name, digest_size=15).digest(), "big") or 1
