"""Transfers across ledgers into Postgres: one row each, as its last event left it.

Rows and position are one transaction. A row is replaced only by an event of the same or a later frame, so that what an
operator applies again never takes a cross transfer back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
import psycopg

from jobs.sinks.base import Addition
from jobs.sinks.copy_binary import CopyTable
from jobs.sinks.postgres import PostgresSink
from pipelines.catalogue import LEDGER_CROSS_EVENTS, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events

__all__ = ["PostgresCrossTransfersSink", "newest_states"]

_CODEC: Final = codec_of(LEDGER_CROSS_EVENTS.name)
_CHANGED: Final = _CODEC.event_type("CrossTransferChanged")
_COLUMNS: Final = {
    "shard": "integer", "id": "numeric", "phase": "text", "reason": "text", "debit_account_id": "numeric",
    "debit_ledger": "bigint", "credit_account_id": "numeric", "credit_ledger": "bigint",
    "debit_clearing_account_id": "numeric", "credit_clearing_account_id": "numeric", "amount": "numeric",
    "credit_amount": "numeric", "code": "integer", "user_data_128": "numeric", "requested_at": "bigint",
    "changed_at": "bigint", "sequence": "bigint",
}  # fmt: skip
# the names and types of this module's table; values are parameters
_UPSERT: Final = f"""
    INSERT INTO cross_transfers ({", ".join(_COLUMNS)})
    SELECT {", ".join(_COLUMNS)}
    FROM jsonb_to_recordset(%s::jsonb) AS new ({", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())})
    ON CONFLICT (shard, id) DO UPDATE
    SET phase = excluded.phase, reason = excluded.reason, changed_at = excluded.changed_at, sequence = excluded.sequence
    WHERE cross_transfers.sequence <= excluded.sequence
"""  # noqa: S608


def newest_states(frames: Iterable[tuple[int, int, Events]]) -> list[dict[str, Any]]:
    """The last state of each cross transfer in frames (shard, sequence, events), and the time of its first one."""
    states: dict[tuple[int, str], dict[str, Any]] = {}
    for shard, sequence, events in frames:
        for event in _changes(events):
            place = shard, str(event["id"])
            first = states.get(place, {"requested_at": event["timestamp"]})
            states[place] = {
                **event,
                "shard": shard,
                "requested_at": first["requested_at"],
                "changed_at": event["timestamp"],
                "sequence": sequence,
            }
    return [{name: state[name] for name in _COLUMNS} for state in states.values()]


def _changes(events: Events) -> Iterable[Mapping[str, Any]]:
    rows = events.rows[events.rows[:, 0] == _CHANGED.kind] if len(events) else events.rows
    return render_events(_CODEC, Events(np.ascontiguousarray(rows), events.heap)) if len(rows) else ()


class PostgresCrossTransfersSink(PostgresSink):
    """See the module."""

    name: ClassVar[str] = "postgres-cross-transfers"
    topic: ClassVar[Topic] = LEDGER_CROSS_EVENTS
    web_port_offset: ClassVar[int] = 6
    scratch: ClassVar[tuple[str, CopyTable] | None] = None

    async def open(self) -> None:
        async with self._transaction():
            pass

    async def _apply_events(self, connection: psycopg.AsyncConnection[Any], additions: Sequence[Addition]) -> None:
        await self._store(
            connection, ((added.after.partition, added.after.sequence, added.events) for added in additions)
        )

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        async with self._transaction() as connection:
            await self._store(connection, [(shard, sequence, events)])

    @staticmethod
    async def _store(connection: psycopg.AsyncConnection[Any], frames: Iterable[tuple[int, int, Events]]) -> None:
        states = newest_states(frames)
        if states:
            # not prepared: a generic plan made for few rows would be kept for many
            await connection.execute(_UPSERT, [json.dumps(states)], prepare=False)
