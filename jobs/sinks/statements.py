"""Ledger events into Cassandra: account statements, one row per transfer and side.

How they are written is in `jobs.sinks.cassandra`. A batch of events becomes rows of words, ordered by partition, and
these the bytes that are sent, all by NumPy and compiled code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

import numpy as np

from jobs.sinks import ledger_rows as ledger
from jobs.sinks.base import Addition
from jobs.sinks.cassandra import CassandraSink
from jobs.sinks.cql_batches import EncodedRows
from jobs.sinks.cql_values import (
    BIGINT,
    INT,
    TEXT,
    VARINT_U64,
    VARINT_U128,
    query_head,
    serialize,
    serialize_queries,
)
from pipelines.avro_schema import EventType
from pipelines.catalogue import LEDGER_EVENTS, Topic
from pipelines.frames import Events, Rows

__all__ = ["StatementsSink", "encode_statements", "statement_rows"]

_EXPIRY_HAS_NO: Final = -1


class _Column(NamedTuple):
    """A column of the statement and its field in each event type; ``{side}`` and ``{other}`` are debit and credit."""

    name: str
    kind: int
    transfer: str
    expiry: str | None


_COLUMNS: Final = (
    _Column("account_id", VARINT_U128, "{side}_account_id", "{side}_account_id"),
    _Column("timestamp", BIGINT, "timestamp", "timestamp"),
    _Column("transfer_id", VARINT_U128, "id", "pending_id"),
    _Column("counterparty_account_id", VARINT_U128, "{other}_account_id", "{other}_account_id"),
    _Column("amount", VARINT_U128, "amount", "amount"),
    _Column("ledger", BIGINT, "ledger", "ledger"),
    _Column("code", INT, "code", "code"),
    _Column("flags", INT, "flags", None),
    _Column("pending_id", VARINT_U128, "pending_id", None),
    _Column("user_data_128", VARINT_U128, "user_data_128", None),
    _Column("user_data_64", VARINT_U64, "user_data_64", None),
    _Column("user_data_32", BIGINT, "user_data_32", None),
    _Column("debits_pending", VARINT_U128, "{side}_account_debits_pending", "{side}_account_debits_pending"),
    _Column("debits_posted", VARINT_U128, "{side}_account_debits_posted", "{side}_account_debits_posted"),
    _Column("credits_pending", VARINT_U128, "{side}_account_credits_pending", "{side}_account_credits_pending"),
    _Column("credits_posted", VARINT_U128, "{side}_account_credits_posted", "{side}_account_credits_posted"),
    _Column("account_flags", INT, "{side}_account_flags", "{side}_account_flags"),
)
_NAMES: Final = ("shard", "month", *(column.name for column in _COLUMNS), "sequence", "entry", "direction")
_KINDS: Final = np.array([INT, INT, *(column.kind for column in _COLUMNS), BIGINT, TEXT, TEXT], np.int64)
_TEXTS: Final = ("transfer", "expiry", "debit", "credit")
_INSERT: Final = " ".join(
    [
        "INSERT INTO {keyspace}.statement_by_account_month",
        f"({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))})",
    ]
)


def _words(event_type: EventType, side: str) -> list[int]:
    """The words of a statement row in an event's row (from `ledger_rows.gather`), -1 where the event has none; the
    month's place is taken by the timestamp."""
    other = "credit" if side == "debit" else "debit"
    words = [ledger.SHARD, ledger.word_of(event_type, "timestamp")]
    for column in _COLUMNS:
        pattern = column.transfer if event_type is ledger.TRANSFER_CREATED else column.expiry
        count = 2 if column.kind == VARINT_U128 else 1
        if pattern is None:
            words += [_EXPIRY_HAS_NO] * count
        else:
            field = pattern.format(side=side, other=other)
            word = ledger.word_of(event_type, f"{field}_lo" if count == 2 else field)
            words += range(word, word + count)
    return [*words, ledger.SEQUENCE]


_SIDES: Final = tuple(
    (event_type, np.array(_words(event_type, side), np.int64), (_TEXTS.index(entry), _TEXTS.index(side)))
    for event_type, entry in ((ledger.TRANSFER_CREATED, "transfer"), (ledger.TRANSFER_EXPIRED, "expiry"))
    for side in ("debit", "credit")
)


_WORDS: Final = len(_SIDES[0][1]) + 2
_PARTITION: Final = [0, 2, 3, 1]
"""Words of the partition key: shard, account (two), month."""
_TIMESTAMP: Final = 4
_KEY_KINDS: Final = np.array([INT, VARINT_U128, INT], np.int64)


def statement_rows(rows: Rows) -> Rows:
    """The statement's rows of a batch of events (from `ledger_rows.gather`): shard, month, the words of the columns,
    sequence, and the numbers of the texts of entry and direction. Rows of a partition lie together, newest first, as
    Cassandra keeps them."""
    sides = [np.empty((0, _WORDS), np.int64)]
    for event_type, words, texts in _SIDES:
        chosen = ledger.of_kind(rows, event_type)
        picked = np.empty((len(chosen), _WORDS), np.int64)
        picked[:, : len(words)] = chosen[:, words]
        picked[:, : len(words)][:, words == _EXPIRY_HAS_NO] = 0
        picked[:, 1] = _months(picked[:, 1])
        picked[:, len(words) :] = texts
        sides.append(picked)
    statements = np.concatenate(sides)
    ordered: Rows = statements[np.lexsort((-statements[:, _TIMESTAMP], *statements[:, _PARTITION].T))]
    return ordered


def encode_statements(rows: Rows, query_id: bytes) -> EncodedRows:
    """Rows of `statement_rows` as they are sent."""
    head = query_head(query_id, len(_KINDS))
    data, ends = serialize_queries(rows, _KINDS, [text.encode() for text in _TEXTS], head)
    places = rows[:, _PARTITION]
    begins = np.ones(len(rows), bool)
    begins[1:] = np.any(places[1:] != places[:-1], axis=1)
    first = np.flatnonzero(begins)
    keys = serialize(np.ascontiguousarray(places[first]), _KEY_KINDS)
    return EncodedRows(data, [0, *ends.tolist()], [*first.tolist(), len(rows)], keys, len(head) + 4 * len(_KINDS))


def _months(timestamps: Rows) -> Rows:
    """UTC months of nanosecond timestamps as year * 100 + month."""
    months = timestamps.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
    numbers: Rows = (1970 + months // 12) * 100 + months % 12 + 1
    return numbers


class StatementsSink(CassandraSink):
    """See the module."""

    name: ClassVar[str] = "cassandra"
    topic: ClassVar[Topic] = LEDGER_EVENTS
    web_port_offset: ClassVar[int] = 1
    insert: ClassVar[str] = _INSERT

    async def open(self) -> None:
        encode_statements(statement_rows(np.empty((0, ledger.EVENT_INDEX + 1), np.int64)), b"")  # compile now
        await super().open()

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        rows = ledger.with_place(events, shard, sequence, np.array(kept, np.int64))
        await asyncio.to_thread(lambda: self._write_encoded(self._encoded_rows(rows), []))

    def _encoded(self, additions: Sequence[Addition]) -> EncodedRows:
        return self._encoded_rows(ledger.gather(additions))

    def _encoded_rows(self, rows: Rows) -> EncodedRows:
        return encode_statements(statement_rows(rows), self._insert.query_id)
