"""Ledger totals into Postgres and Cassandra: one row per account, ledger or code, window size and start.

A record of ledger.totals replaces every earlier one of the same window. Within a batch only the last of each window is
written. Postgres stores rows and position in one transaction. Cassandra writes carry the frame's sequence as their
write time, so that whatever is written again or late never replaces something newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
import psycopg

from jobs.sinks.base import Addition, Position
from jobs.sinks.cassandra import CassandraSink
from jobs.sinks.copy_binary import INT4, INT8, U128, Column, CopyTable
from jobs.sinks.cql_values import BIGINT, INT, VARINT_U128, serialize
from jobs.sinks.ledger_rows import word_of
from jobs.sinks.postgres import PostgresSink, copy_rows
from pipelines.catalogue import LEDGER_TOTALS, Topic
from pipelines.codec import codec_of
from pipelines.frames import Events, Rows

__all__ = ["CassandraTotalsSink", "PostgresTotalsSink", "newest_totals"]

_CODEC: Final = codec_of(LEDGER_TOTALS.name)
_TOTAL: Final = _CODEC.event_type("WindowTotal")
_SHARD: Final = _CODEC.row_words
_SEQUENCE: Final = _CODEC.row_words + 1
_GROUPINGS: Final = _TOTAL.field("grouping").symbols
_SIZES: Final = _TOTAL.field("window").symbols
_WORD: Final = {
    field.name: word_of(_TOTAL, f"{field.name}_lo" if field.words == 2 else field.name) for field in _TOTAL.fields
}
_KEY_WORDS: Final = [
    _SHARD, _WORD["grouping"], _WORD["window"], _WORD["start"], _WORD["account_id"], _WORD["account_id"] + 1,
    _WORD["ledger"], _WORD["code"],
]  # fmt: skip

TOTALS: Final = CopyTable(
    Column("shard", INT4, _SHARD),
    Column("total_of", INT4, _WORD["grouping"]),
    Column("window_size", INT4, _WORD["window"]),
    Column("window_start", INT8, _WORD["start"]),
    Column("account_id", U128, _WORD["account_id"]),
    Column("ledger", INT8, _WORD["ledger"]),
    Column("code", INT4, _WORD["code"]),
    Column("debits", U128, _WORD["debits"]),
    Column("credits", U128, _WORD["credits"]),
    Column("entry_count", INT8, _WORD["entries"]),
    Column("opening_debits", U128, _WORD["opening_debits"]),
    Column("opening_credits", U128, _WORD["opening_credits"]),
    Column("sequence", INT8, _SEQUENCE),
)
_VALUES: Final = ("debits", "credits", "entry_count", "opening_debits", "opening_credits", "sequence")
_UPSERT: Final = f"""
    INSERT INTO ledger_totals ({TOTALS.names})
    SELECT shard, (%(groupings)s::text[])[total_of + 1], (%(sizes)s::text[])[window_size + 1], window_start, account_id,
           ledger, code, {", ".join(_VALUES)}
    FROM new_totals
    ON CONFLICT (shard, total_of, account_id, ledger, code, window_size, window_start) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in _VALUES)}
    WHERE ledger_totals.sequence <= excluded.sequence
"""  # noqa: S608 - names of this module


def newest_totals(additions: Sequence[Addition]) -> Rows:
    """The last record of each window in a batch, each row followed by its shard and sequence."""
    parts = [np.empty((0, _SEQUENCE + 1), np.int64)]
    for addition in additions:
        rows = np.empty((len(addition.events), _SEQUENCE + 1), np.int64)
        rows[:, :_SHARD] = addition.events.rows
        rows[:, _SHARD] = addition.after.partition
        rows[:, _SEQUENCE] = addition.after.sequence
        parts.append(rows)
    rows = np.concatenate(parts)[::-1]
    _, newest = np.unique(rows[:, _KEY_WORDS], axis=0, return_index=True)
    return np.ascontiguousarray(rows[newest])


def _addition(shard: int, events: Events, sequence: int) -> Addition:
    return Addition(events, Position(shard), Position(shard, sequence=sequence))


class PostgresTotalsSink(PostgresSink):
    """See the module."""

    name: ClassVar[str] = "postgres-totals"
    topic: ClassVar[Topic] = LEDGER_TOTALS
    web_port_offset: ClassVar[int] = 2
    scratch: ClassVar[tuple[str, CopyTable]] = ("new_totals", TOTALS)

    async def open(self) -> None:
        TOTALS.encode(np.empty((0, _SEQUENCE + 1), np.int64))  # compile before the first batch, not in it
        await super().open()

    async def _apply_events(self, connection: psycopg.AsyncConnection[Any], additions: Sequence[Addition]) -> None:
        rows = newest_totals(additions)
        if len(rows):
            await copy_rows(connection, "new_totals", TOTALS, rows)
            # not prepared: a generic plan made for few rows would be kept for many
            await connection.execute(_UPSERT, {"groupings": list(_GROUPINGS), "sizes": list(_SIZES)}, prepare=False)

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        async with self._transaction() as connection:
            await self._apply_events(connection, [_addition(shard, events, sequence)])


_CQL_COLUMNS: Final = (
    ("shard", INT, [_SHARD]),
    ("account_id", VARINT_U128, [_WORD["account_id"], _WORD["account_id"] + 1]),
    ("ledger", BIGINT, [_WORD["ledger"]]),
    ("code", INT, [_WORD["code"]]),
    ("window_start", BIGINT, [_WORD["start"]]),
    ("debits", VARINT_U128, [_WORD["debits"], _WORD["debits"] + 1]),
    ("credits", VARINT_U128, [_WORD["credits"], _WORD["credits"] + 1]),
    ("entry_count", BIGINT, [_WORD["entries"]]),
    ("opening_debits", VARINT_U128, [_WORD["opening_debits"], _WORD["opening_debits"] + 1]),
    ("opening_credits", VARINT_U128, [_WORD["opening_credits"], _WORD["opening_credits"] + 1]),
    ("sequence", BIGINT, [_SEQUENCE]),
)
_CQL_KINDS: Final = np.array([*(kind for _, kind, _ in _CQL_COLUMNS), BIGINT], np.int64)
_CQL_WORDS: Final = [*(word for _, _, words in _CQL_COLUMNS for word in words), _SEQUENCE]
_CQL_NAMES: Final = ("total_of", "window_size", *(name for name, _, _ in _CQL_COLUMNS))


class CassandraTotalsSink(CassandraSink):
    """See the module."""

    name: ClassVar[str] = "cassandra-totals"
    topic: ClassVar[Topic] = LEDGER_TOTALS
    web_port_offset: ClassVar[int] = 3
    insert: ClassVar[str] = " ".join(
        [
            "INSERT INTO {keyspace}.ledger_totals",
            f"({', '.join(_CQL_NAMES)}) VALUES ({', '.join('?' * len(_CQL_NAMES))}) USING TIMESTAMP ?",
        ]
    )

    def _values(self, additions: Sequence[Addition]) -> list[list[bytes]]:
        rows = newest_totals(additions)
        texts = [
            [_GROUPINGS[grouping].encode(), _SIZES[size].encode()]
            for grouping, size in rows[:, [_WORD["grouping"], _WORD["window"]]].tolist()
        ]
        values = serialize(np.ascontiguousarray(rows[:, _CQL_WORDS]), _CQL_KINDS)
        return [[*text, *row] for text, row in zip(texts, values, strict=True)]

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        await asyncio.to_thread(self._write, self._values([_addition(shard, events, sequence)]), [])
