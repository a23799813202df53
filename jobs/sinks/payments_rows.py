"""Payments into Postgres and Cassandra.

Postgres has the current state, the timeline, and daily totals, in one transaction with the position.

Totals are sums of what each event adds, so they count on every event being applied once: the position in the same
transaction sees to that. A timeline row that is already there is an alarm, as in the ledger's sink.

Cassandra has the payments of an account by UTC day, in rows that are replaced as a payment goes on. They are written
with the frame's sequence as their write time, so that what is written again or late never replaces something newer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import psycopg
from cassandra.marshal import int64_pack, varint_pack

from jobs.sinks.base import Addition
from jobs.sinks.cassandra import CassandraSink
from jobs.sinks.postgres import PostgresSink
from pipelines.catalogue import PAYMENTS_EVENTS, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events
from pipelines.payments.states import UNSETTLED_END, Status

__all__ = ["CassandraPaymentsSink", "PostgresPaymentsSink", "account_rows", "daily_totals"]

_CODEC: Final = codec_of(PAYMENTS_EVENTS.name)
_DAY_US: Final = 86_400_000_000
_ENDED: Final = frozenset(status.name for status in UNSETTLED_END)
_PAYMENT: Final = {
    "shard": "integer", "payment_id": "numeric", "version": "bigint", "status": "text", "reason": "text",
    "iso_status": "text", "iso_reason": "text", "payer_account_id": "numeric", "payee_account_id": "numeric",
    "ledger": "bigint", "currency": "text", "amount": "bigint", "held": "bigint", "captured": "bigint",
    "released": "bigint", "refunded": "bigint", "capture": "text", "requested_at": "bigint", "execute_at": "bigint",
    "original_payment_id": "numeric", "end_to_end_id": "text", "reference": "text", "changed_at": "bigint",
    "sequence": "bigint",
}  # fmt: skip
_EVENT: Final = {
    "shard": "integer", "payment_id": "numeric", "version": "bigint", "at": "bigint", "cause": "text",
    "previous_status": "text", "status": "text", "reason": "text", "iso_status": "text", "iso_reason": "text",
    "action_amount": "bigint", "sequence": "bigint",
}  # fmt: skip
_TOTAL: Final = {
    "day": "integer", "ledger": "bigint", "currency": "text", "created": "bigint", "completed": "bigint",
    "ended": "bigint", "captured_amount": "numeric", "refunded_amount": "numeric",
}  # fmt: skip
_COUNTED: Final = ("created", "completed", "ended", "captured_amount", "refunded_amount")


def _rows_of(columns: Mapping[str, str]) -> str:
    return f"jsonb_to_recordset(%s::jsonb) AS new ({', '.join(f'{name} {kind}' for name, kind in columns.items())})"


# the names and types of this module's tables; values are parameters
_UPSERT: Final = f"""
    INSERT INTO payments ({", ".join(_PAYMENT)}) SELECT {", ".join(_PAYMENT)} FROM {_rows_of(_PAYMENT)}
    ON CONFLICT (shard, payment_id) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in _PAYMENT if name not in ("shard", "payment_id"))}
    WHERE payments.version < excluded.version
"""  # noqa: S608
_APPEND: Final = f"""
    INSERT INTO payment_events ({", ".join(_EVENT)}) SELECT {", ".join(_EVENT)} FROM {_rows_of(_EVENT)}
"""  # noqa: S608
_ADD: Final = f"""
    INSERT INTO payment_totals ({", ".join(_TOTAL)})
    SELECT date '1970-01-01' + day, {", ".join(name for name in _TOTAL if name != "day")} FROM {_rows_of(_TOTAL)}
    ON CONFLICT (day, ledger, currency) DO UPDATE
    SET {", ".join(f"{name} = payment_totals.{name} + excluded.{name}" for name in _COUNTED)}
"""  # noqa: S608


def daily_totals(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What events add to the totals, in the order of their keys; ``day`` in days since 1970."""
    totals: dict[tuple[int, int, str], dict[str, int]] = {}
    for event in events:
        key = (int(event["requested_at"]) // _DAY_US, int(event["ledger"]), str(event["currency"]))
        total = totals.setdefault(key, dict.fromkeys(_COUNTED, 0))
        cause, status, before = event["cause"], event["status"], event["previous_status"]
        total["created"] += cause == "created"
        total["completed"] += status == Status.COMPLETED.name != before
        total["ended"] += status in _ENDED and status != before
        if cause in ("captured", "captured_in_part", "rest_refused"):
            total["captured_amount"] += int(event["action_amount"])
        elif cause in ("refunded", "refunded_in_part"):
            total["refunded_amount"] += int(event["action_amount"])
    return [
        {"day": day, "ledger": ledger, "currency": currency, **total}
        for (day, ledger, currency), total in sorted(totals.items())
    ]


class PostgresPaymentsSink(PostgresSink):
    """See the module."""

    name: ClassVar[str] = "postgres-payments"
    topic: ClassVar[Topic] = PAYMENTS_EVENTS
    web_port_offset: ClassVar[int] = 33
    flush_seconds: ClassVar[float] = 0.1
    """A round of payments in one transaction."""

    async def open(self) -> None:
        async with self._transaction():
            pass

    async def _apply_events(self, connection: psycopg.AsyncConnection[Any], additions: Sequence[Addition]) -> None:
        events = [
            event
            for addition in additions
            for event in _placed(addition.events, addition.after.partition, addition.after.sequence)
        ]
        await self._store(connection, events, _APPEND)

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        async with self._transaction() as connection:
            await self._store(connection, list(_placed(events, shard, sequence)), _APPEND)

    @staticmethod
    async def _store(connection: psycopg.AsyncConnection[Any], events: Sequence[dict[str, Any]], append: str) -> None:
        if not events:
            return
        newest = {(event["shard"], event["payment_id"]): event for event in events}
        for statement, columns, rows in (
            (append, _EVENT, events),
            (_UPSERT, _PAYMENT, list(newest.values())),
            (_ADD, _TOTAL, daily_totals(events)),
        ):
            chosen = [{name: row[name] for name in columns} for row in rows]
            # not prepared: a generic plan made for few rows would be kept for many
            await connection.execute(statement, [json.dumps(chosen)], prepare=False)


def _placed(events: Events, shard: int, sequence: int) -> Iterator[dict[str, Any]]:
    for event in render_events(_CODEC, events) if len(events) else ():
        yield event | {"shard": shard, "sequence": sequence, "changed_at": event["at"]}


_BY_ACCOUNT: Final = (
    "account_id", "ledger", "day", "requested_at", "payment_id", "role", "counterparty_account_id", "status", "reason",
    "currency", "amount", "captured", "refunded", "reference", "version",
)  # fmt: skip
_INSERT: Final = (
    f"INSERT INTO {{keyspace}}.payments_by_account_day ({', '.join(_BY_ACCOUNT)})"  # noqa: S608
    f" VALUES ({', '.join('?' * len(_BY_ACCOUNT))}) USING TIMESTAMP ?"
)


def account_rows(events: Iterable[Mapping[str, Any]]) -> list[list[bytes]]:
    """The rows of a batch of placed events as serialized values, in the order of the insert's columns: of each payment
    the last state, once for its payer and once for its payee."""
    newest = {(event["shard"], event["payment_id"]): event for event in events}
    rows: list[list[bytes]] = []
    for event in newest.values():
        accounts = {role: varint_pack(int(event[f"{role}_account_id"])) for role in ("payer", "payee")}
        requested_at = int(event["requested_at"])
        for role, other in (("payer", "payee"), ("payee", "payer")):
            rows.append(
                [
                    accounts[role], int64_pack(event["ledger"]), int64_pack(requested_at // _DAY_US),
                    int64_pack(requested_at), varint_pack(int(event["payment_id"])), role.encode(), accounts[other],
                    event["status"].encode(), event["reason"].encode(), event["currency"].encode(),
                    *(int64_pack(event[name]) for name in ("amount", "captured", "refunded")),
                    event["reference"].encode(), int64_pack(event["version"]), int64_pack(event["sequence"]),
                ]
            )  # fmt: skip
    return rows


class CassandraPaymentsSink(CassandraSink):
    """See the module."""

    name: ClassVar[str] = "cassandra-payments"
    topic: ClassVar[Topic] = PAYMENTS_EVENTS
    web_port_offset: ClassVar[int] = 34
    insert: ClassVar[str] = _INSERT

    def _values(self, additions: Sequence[Addition]) -> list[list[bytes]]:
        return account_rows(
            event
            for addition in additions
            for event in _placed(addition.events, addition.after.partition, addition.after.sequence)
        )

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        await asyncio.to_thread(self._write, account_rows(_placed(events, shard, sequence)), [])
