"""What a notification request must look like, and which channels a customer wants: pure rules, for producers, the
notifier and the API.

A request's id is a function of what it is about (say ``payment-<id>-completed``), so that a producer that repeats
itself tells nobody twice.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pipelines.card_numbers import masked
from pipelines.catalogue import NOTIFICATION_SHARDS

__all__ = [
    "CHANNELS",
    "bad_pattern",
    "chosen_channels",
    "matches",
    "notification_request",
    "notification_shard",
    "request_error",
]

CHANNELS: Final = ("webhook", "email", "sms", "websocket")
MAX_DATA_BYTES: Final = 16_384
ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
CUSTOMER: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
KIND: Final = re.compile(r"(?=.{1,64}\Z)[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII)
PATTERN: Final = re.compile(r"(?=.{1,66}\Z)(?:\*|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*(?:\.\*)?)", re.ASCII)


def notification_shard(customer: str) -> int:
    """Shard of a customer's requests: they keep their order."""
    return zlib.crc32(customer.encode()) % NOTIFICATION_SHARDS


def notification_request(
    id: str,  # noqa: A002 - the field's name
    customer: str,
    kind: str,
    occurred_at: int,
    data: Mapping[str, Any],
    channels: Iterable[str] = (),
) -> dict[str, Any]:
    """The event of ``notifications.requests`` as JSON has it. ``occurred_at`` in UTC microseconds; no ``channels``:
    those that the customer wants. Raises ValueError for what the notifier would refuse."""
    text = json.dumps(masked(dict(data)), ensure_ascii=False, separators=(",", ":"))
    if (error := request_error(id, customer, kind, text)) is not None:
        raise ValueError(error)
    return {
        "type": "NotificationRequest",
        "id": id,
        "customer": customer,
        "event_kind": kind,
        "occurred_at": occurred_at,
        "data": text,
        "channels": list(channels),
    }


def request_error(id: str, customer: str, kind: str, data: str) -> str | None:  # noqa: A002 - the field's name
    """What is wrong with a request, or None."""
    for name, value, pattern in (("id", id, ID), ("customer", customer, CUSTOMER), ("kind", kind, KIND)):
        if not pattern.fullmatch(value):
            return f"{name} must match {pattern.pattern}"
    if len(data.encode()) > MAX_DATA_BYTES:
        return f"data has more than {MAX_DATA_BYTES} bytes"
    try:
        if isinstance(json.loads(data), dict):
            return None
    except (ValueError, RecursionError):
        pass
    return "data must be a JSON object"


def bad_pattern(pattern: str) -> bool:
    """Whether it is no pattern of kinds: a kind, the beginning of one with ``.*``, or ``*``."""
    return not PATTERN.fullmatch(pattern)


def matches(kind: str, patterns: Sequence[str]) -> bool:
    """Whether a kind is one of those meant; no patterns mean all."""
    return not patterns or any(_matches(kind, pattern) for pattern in patterns)


def chosen_channels(kind: str, preferences: Mapping[str, Sequence[str]] | None) -> tuple[str, ...]:
    """The channels that a customer wants for a kind: the longest pattern that fits decides; without one, all."""
    fitting = [pattern for pattern in preferences or {} if _matches(kind, pattern)]
    if not fitting or preferences is None:
        return CHANNELS
    wanted = preferences[max(fitting, key=lambda pattern: (not pattern.endswith("*"), len(pattern)))]
    return tuple(channel for channel in CHANNELS if channel in wanted)


def _matches(kind: str, pattern: str) -> bool:
    return pattern in ("*", kind) or (pattern.endswith(".*") and kind.startswith(pattern[:-1]))
