"""The ledger's events as the rows that stores keep.

Shared by the sinks: where a field lies in a row, rows of one event type, and the state of each account after its last
event of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jobs.sinks.base import Addition
from pipelines.avro_schema import EventType
from pipelines.catalogue import LEDGER_EVENTS
from pipelines.codec import codec_of
from pipelines.frames import Events, Rows

__all__ = [
    "ACCOUNT_CREATED",
    "BALANCE_WORDS",
    "CHANGE_BALANCES",
    "CHANGE_EVENT_INDEX",
    "CHANGE_FLAGS",
    "CHANGE_ID",
    "CHANGE_SEQUENCE",
    "CHANGE_SHARD",
    "EVENT_INDEX",
    "SEQUENCE",
    "SHARD",
    "TRANSFER_CREATED",
    "TRANSFER_EXPIRED",
    "account_changes",
    "gather",
    "of_kind",
    "word_of",
]

_CODEC: Final = codec_of(LEDGER_EVENTS.name)
ACCOUNT_CREATED: Final = _CODEC.event_type("AccountCreated")
TRANSFER_CREATED: Final = _CODEC.event_type("TransferCreated")
TRANSFER_EXPIRED: Final = _CODEC.event_type("TransferExpired")

# Words that `gather` adds after an event's own.
SHARD: Final = _CODEC.row_words
SEQUENCE: Final = _CODEC.row_words + 1
EVENT_INDEX: Final = _CODEC.row_words + 2

BALANCE_WORDS: Final = 8
"""debits_pending, debits_posted, credits_pending, credits_posted; low and high word each."""

# Words of the rows of `account_changes`.
CHANGE_SHARD: Final = 0
CHANGE_ID: Final = 1
CHANGE_BALANCES: Final = 3
CHANGE_FLAGS: Final = CHANGE_BALANCES + BALANCE_WORDS
CHANGE_SEQUENCE: Final = CHANGE_FLAGS + 1
CHANGE_EVENT_INDEX: Final = CHANGE_SEQUENCE + 1


def word_of(event_type: EventType, field: str) -> int:
    """The word of a field in an event's row; the lower one of two."""
    dtype: np.dtype[np.void] = event_type.dtype
    assert dtype.fields is not None
    return int(dtype.fields[field][1]) // 8


def gather(additions: Sequence[Addition]) -> Rows:
    """All events in order, each row followed by its shard, sequence and place in its frame; shape (n, words + 3)."""
    parts = []
    for addition in additions:
        if len(addition.events):
            kept = np.arange(len(addition.events)) if addition.kept is None else np.array(addition.kept, np.int64)
            parts.append(with_place(addition.events, addition.after.partition, addition.after.sequence, kept))
    return np.concatenate(parts) if parts else np.empty((0, _CODEC.row_words + 3), np.int64)


def with_place(events: Events, shard: int, sequence: int, event_index: NDArray[np.int64]) -> Rows:
    """Events of one frame with shard, sequence and place in the frame behind each row."""
    rows = np.empty((len(events), _CODEC.row_words + 3), np.int64)
    rows[:, :SHARD] = events.rows
    rows[:, SHARD] = shard
    rows[:, SEQUENCE] = sequence
    rows[:, EVENT_INDEX] = event_index
    return rows


def of_kind(rows: Rows, event_type: EventType) -> Rows:
    """The rows of one event type."""
    chosen: Rows = rows[rows[:, 0] == event_type.kind]
    return chosen


def account_changes(rows: Rows) -> Rows:
    """The balances and flags of each account after its last transfer or expiry in ``rows`` (from `gather`), one row
    per account: shard, id (2 words), balances (8), flags, sequence, place in the frame."""
    sides = [
        _side(rows[chosen], chosen, event_type, side)
        for event_type in (TRANSFER_CREATED, TRANSFER_EXPIRED)
        if len(chosen := np.flatnonzero(rows[:, 0] == event_type.kind))
        for side in ("debit", "credit")
    ]
    if not sides:
        return np.empty((0, CHANGE_EVENT_INDEX + 1), np.int64)
    changes = np.concatenate([side for side, _ in sides])
    order = np.concatenate([position for _, position in sides])
    key = (changes[:, CHANGE_SHARD], changes[:, CHANGE_ID], changes[:, CHANGE_ID + 1])
    changes = changes[np.lexsort((order, *key))]
    keys = changes[:, : CHANGE_ID + 2]
    last = np.append(np.any(keys[1:] != keys[:-1], axis=1), True)
    return np.ascontiguousarray(changes[last])


def _side(rows: Rows, position: NDArray[np.intp], event_type: EventType, side: str) -> tuple[Rows, NDArray[np.intp]]:
    account = word_of(event_type, f"{side}_account_id_lo")
    balances = word_of(event_type, f"{side}_account_debits_pending_lo")
    words = [
        SHARD,
        account,
        account + 1,
        *range(balances, balances + BALANCE_WORDS),
        word_of(event_type, f"{side}_account_flags"),
        SEQUENCE,
        EVENT_INDEX,
    ]
    return rows[:, words], position
