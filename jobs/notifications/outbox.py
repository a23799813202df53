"""The notifications' outbox in Postgres: requests in, leases out, results back, status events towards Kafka.

Every method is one transaction and may be repeated after an error. Raises `StoreUnavailable` when Postgres is away.

A delivery is *waiting* (for ``next_attempt_at``), *sending* (somebody has a lease), *delivered* or *dead*. A result is
taken only from the holder of the attempt: one that comes after the lease went to another is dropped.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from infra.settings import Settings
from infra.stores import NOTIFIER_ROLE, postgres_conninfo
from jobs.notifications.channels import Delivery
from jobs.sinks.base import StoreUnavailable
from pipelines.notifications import CHANNELS, chosen_channels, matches, notification_shard

__all__ = ["DeliveryRow", "Outbox", "Request", "StatusEvent"]

POOL_SIZE: Final = 8
CALL_SECONDS: Final = 10.0
DUE_LOOKED_AT: Final = 1_000
MAX_ERROR: Final = 300

_CLAIM: Final = """
WITH busy AS (
    SELECT endpoint_id, count(*) AS attempts FROM notifications.deliveries
    WHERE channel = %(channel)s AND state = 'sending' GROUP BY endpoint_id
), due AS (
    SELECT id, endpoint_id, row_number() OVER (PARTITION BY endpoint_id ORDER BY next_attempt_at, id) AS place
    FROM (
        SELECT id, endpoint_id, next_attempt_at FROM notifications.deliveries
        WHERE channel = %(channel)s AND state = 'waiting' AND next_attempt_at <= now()
        ORDER BY next_attempt_at LIMIT %(looked_at)s
    ) AS first
), chosen AS (
    SELECT d.id FROM notifications.deliveries d JOIN due USING (id)
    LEFT JOIN busy ON busy.endpoint_id = d.endpoint_id
    WHERE due.place + coalesce(busy.attempts, 0) <= %(per_endpoint)s AND d.state = 'waiting'
    ORDER BY d.next_attempt_at, d.id LIMIT %(limit)s FOR UPDATE OF d SKIP LOCKED
), claimed AS (
    UPDATE notifications.deliveries d
    SET state = 'sending', attempts = attempts + 1, lease_until = now() + make_interval(secs => %(lease)s)
    FROM chosen WHERE d.id = chosen.id
    RETURNING d.id, d.attempts, d.schedule_step, d.message_id, d.channel, d.endpoint_id
)
SELECT c.*, e.address, e.secret, e.disabled_reason, e.deleted_at, m.customer, m.kind, m.occurred_at, m.data
FROM claimed c JOIN notifications.messages m ON m.id = c.message_id
JOIN notifications.endpoints e ON e.id = c.endpoint_id
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A notification request as it came; ``channels`` empty: by preference."""

    id: str
    customer: str
    kind: str
    occurred_at: datetime
    data: Mapping[str, Any]
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StatusEvent:
    id: int
    shard: int
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery as the command line shows it."""

    message_id: str
    customer: str
    kind: str
    channel: str
    endpoint_id: str
    state: str
    attempts: int
    next_attempt_at: datetime
    last_error: str


class Outbox:
    """The outbox of one environment."""

    def __init__(self, settings: Settings) -> None:
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]] = AsyncConnectionPool(
            postgres_conninfo(settings, NOTIFIER_ROLE),
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                "application_name": "streambank-notifier",
                "options": f"-c statement_timeout={int(CALL_SECONDS * 1000)}"
                " -c idle_in_transaction_session_timeout=60000",
            },
            min_size=0,
            max_size=POOL_SIZE,
            timeout=CALL_SECONDS,
            reconnect_timeout=1,
            open=False,
        )

    async def open(self) -> None:
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=5)

    async def ping(self) -> None:
        async with self._transaction() as connection:
            await connection.execute("SELECT FROM notifications.messages LIMIT 1")

    async def accept(self, requests: Iterable[Request]) -> int:
        """Make deliveries of the requests that are new; returns how many were."""
        wanted = {request.id: request for request in reversed(list(requests))}  # the first of an id counts
        async with self._transaction() as connection:
            cursor = await connection.execute(
                "INSERT INTO notifications.messages (id, customer, kind, occurred_at, data)"
                " SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::jsonb[])"
                " ORDER BY 1 ON CONFLICT DO NOTHING RETURNING id",
                [
                    list(wanted),
                    [request.customer for request in wanted.values()],
                    [request.kind for request in wanted.values()],
                    [request.occurred_at for request in wanted.values()],
                    [json.dumps(request.data) for request in wanted.values()],
                ],
            )
            added = {row["id"] for row in await cursor.fetchall()}
            new = [request for request in reversed(list(wanted.values())) if request.id in added]
            if new:
                await self._plan(connection, new)
        return len(added)

    async def _plan(self, connection: psycopg.AsyncConnection[dict[str, Any]], new: Sequence[Request]) -> None:
        customers = sorted({request.customer for request in new})
        cursor = await connection.execute(
            "SELECT customer, channels FROM notifications.preferences WHERE customer = ANY(%s)", [customers]
        )
        preferences = {row["customer"]: row["channels"] for row in await cursor.fetchall()}
        cursor = await connection.execute(
            "SELECT id, customer, channel, kinds FROM notifications.endpoints WHERE customer = ANY(%s)"
            " AND deleted_at IS NULL AND disabled_reason IS NULL ORDER BY id",
            [customers],
        )
        endpoints = await cursor.fetchall()
        rows: list[tuple[str, str, str, str, str]] = []
        streamed: list[Request] = []
        events: list[tuple[int, Jsonb]] = []
        for request in new:
            for channel in request.channels or chosen_channels(request.kind, preferences.get(request.customer)):
                if channel == "websocket":
                    streamed.append(request)
                    rows.append((request.id, channel, "", "delivered", ""))
                    events.append(_status(request.id, request.customer, request.kind, channel, "", "delivered", 1, ""))
                    continue
                found = [
                    endpoint["id"]
                    for endpoint in endpoints
                    if (endpoint["customer"], endpoint["channel"]) == (request.customer, channel)
                    and matches(request.kind, endpoint["kinds"])
                ]
                rows += [(request.id, channel, endpoint, "waiting", "") for endpoint in found]
                if not found and request.channels:  # asked for by name: somebody must learn that it cannot be
                    reason = f"{request.customer} has no {channel} endpoint for {request.kind}"
                    rows.append((request.id, channel, "", "dead", reason))
                    events.append(_status(request.id, request.customer, request.kind, channel, "", "dead", 0, reason))
        await connection.execute(
            "INSERT INTO notifications.deliveries (message_id, channel, endpoint_id, state, last_error, ended_at)"
            " SELECT m, c, e, s, l, CASE s WHEN 'waiting' THEN NULL ELSE now() END"
            " FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[]) AS new (m, c, e, s, l)",
            [list(column) for column in zip(*rows, strict=True)] or [[]] * 5,
        )
        # The head's row is locked until the commit: a customer's sequences become visible in their order.
        for customer in sorted({request.customer for request in streamed}):
            ids = [request.id for request in streamed if request.customer == customer]
            await connection.execute(
                "WITH head AS (INSERT INTO notifications.stream_heads AS h VALUES (%(customer)s, %(count)s)"
                " ON CONFLICT (customer) DO UPDATE SET sequence = h.sequence + %(count)s RETURNING sequence)"
                " INSERT INTO notifications.stream (customer, sequence, message_id)"
                " SELECT %(customer)s, head.sequence - %(count)s + place, id"
                " FROM head, unnest(%(ids)s::text[]) WITH ORDINALITY AS new (id, place)",
                {"customer": customer, "count": len(ids), "ids": ids},
            )
            await connection.execute("SELECT pg_notify('streambank_notifications', %s)", [customer])
        await self._add_events(connection, events)

    async def claim(
        self, channel: str, *, limit: int, per_endpoint: int, lease_seconds: float
    ) -> list[tuple[Delivery, str | None]]:
        """Deliveries that are due, now leased, each with why it must not be sent (its endpoint is off) or None."""
        async with self._transaction() as connection:
            await connection.execute(
                "UPDATE notifications.deliveries SET state = 'waiting', next_attempt_at = now(), lease_until = NULL,"
                " last_error = 'the notifier stopped in an attempt'"
                " WHERE channel = %s AND state = 'sending' AND lease_until < now()",
                [channel],
            )
            cursor = await connection.execute(
                _CLAIM,
                {
                    "channel": channel, "limit": limit, "per_endpoint": per_endpoint, "lease": lease_seconds,
                    "looked_at": DUE_LOOKED_AT,
                },
            )  # fmt: skip
            rows = await cursor.fetchall()
        return [
            (
                Delivery(
                    row["id"], row["attempts"], row["schedule_step"], row["message_id"], row["channel"],
                    row["endpoint_id"], row["address"], row["secret"], row["customer"], row["kind"],
                    row["occurred_at"], row["data"],
                ),
                "the endpoint was deleted" if row["deleted_at"] else row["disabled_reason"],
            )
            for row in rows
        ]  # fmt: skip

    async def delivered(self, delivery: Delivery) -> None:
        await self._finish(delivery, "delivered", "", None)

    async def failed(self, delivery: Delivery, reason: str, retry_in: float) -> None:
        """Wait ``retry_in`` seconds for the next attempt."""
        await self._finish(delivery, "failed", reason, retry_in)

    async def dead(self, delivery: Delivery, reason: str, *, disable_endpoint: bool = False) -> None:
        """Give up; with ``disable_endpoint`` everything else that waits for the endpoint dies with it."""
        await self._finish(delivery, "dead", reason, None, disable_endpoint=disable_endpoint)

    async def _finish(
        self, delivery: Delivery, status: str, reason: str, retry_in: float | None, *, disable_endpoint: bool = False
    ) -> None:
        reason = reason[:MAX_ERROR]
        async with self._transaction() as connection:
            cursor = await connection.execute(
                "UPDATE notifications.deliveries SET state = %(state)s, last_error = %(reason)s, lease_until = NULL,"
                " schedule_step = schedule_step + 1,"
                " next_attempt_at = now() + make_interval(secs => %(pause)s),"
                " ended_at = CASE WHEN %(state)s = 'waiting' THEN NULL ELSE now() END"
                " WHERE id = %(id)s AND (state = 'sending' AND attempts = %(attempt)s"
                # what arrived, arrived: whoever has the lease by now need not send it again
                " OR %(state)s = 'delivered' AND state IN ('sending', 'waiting'))",
                {
                    "state": "waiting" if status == "failed" else status, "reason": reason, "pause": retry_in or 0.0,
                    "id": delivery.id, "attempt": delivery.attempt,
                },
            )  # fmt: skip
            if not cursor.rowcount:
                return  # the lease went to another, who says how it ended
            await self._add_events(
                connection,
                [
                    _status(
                        delivery.message_id, delivery.customer, delivery.kind, delivery.channel, delivery.endpoint_id,
                        status, delivery.attempt, reason,
                    )
                ],
            )  # fmt: skip
            if disable_endpoint:
                await connection.execute(
                    "UPDATE notifications.endpoints SET disabled_reason = %s WHERE id = %s AND disabled_reason IS NULL",
                    [reason, delivery.endpoint_id],
                )
                others = await connection.execute(
                    "UPDATE notifications.deliveries d SET state = 'dead', last_error = %s, ended_at = now()"
                    " FROM notifications.messages m"
                    " WHERE d.endpoint_id = %s AND d.state = 'waiting' AND m.id = d.message_id"
                    " RETURNING d.message_id, m.customer, m.kind, d.channel, d.endpoint_id, d.attempts",
                    [reason, delivery.endpoint_id],
                )
                await self._add_events(
                    connection,
                    [
                        _status(
                            row["message_id"], row["customer"], row["kind"], row["channel"], row["endpoint_id"],
                            "dead", row["attempts"], reason,
                        )
                        for row in await others.fetchall()
                    ],
                )  # fmt: skip

    @asynccontextmanager
    async def status_events(self, limit: int) -> AsyncIterator[list[StatusEvent]]:
        """The oldest events that no other notifier has in hand; forgotten when the block ends without an error."""
        async with self._transaction() as connection:
            cursor = await connection.execute(
                "SELECT id, shard, event FROM notifications.status_events ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED",
                [limit],
            )
            events = [StatusEvent(**row) for row in await cursor.fetchall()]
            yield events
            if events:
                await connection.execute(
                    "DELETE FROM notifications.status_events WHERE id = ANY(%s)", [[event.id for event in events]]
                )

    async def counts(self) -> list[tuple[str, str, int]]:
        """(channel, state, deliveries) of what is not done."""
        async with self._transaction() as connection:
            cursor = await connection.execute(
                "SELECT channel, state, count(*) AS count FROM notifications.deliveries"
                " WHERE state IN ('waiting', 'sending', 'dead') GROUP BY channel, state"
            )
            return [(row["channel"], row["state"], row["count"]) for row in await cursor.fetchall()]

    # --- for the command line --------------------------------------------------------------------------------------

    async def rows(
        self, *, state: str | None, channel: str | None, customer: str | None, message_id: str | None, limit: int
    ) -> list[DeliveryRow]:
        """Deliveries, newest first."""
        async with self._transaction() as connection:
            cursor = await connection.execute(
                "SELECT d.message_id, m.customer, m.kind, d.channel, d.endpoint_id, d.state, d.attempts,"
                " d.next_attempt_at, d.last_error FROM notifications.deliveries d"
                " JOIN notifications.messages m ON m.id = d.message_id"
                " WHERE (%(state)s::text IS NULL OR d.state = %(state)s)"
                " AND (%(channel)s::text IS NULL OR d.channel = %(channel)s)"
                " AND (%(customer)s::text IS NULL OR m.customer = %(customer)s)"
                " AND (%(message)s::text IS NULL OR m.id = %(message)s) ORDER BY d.id DESC LIMIT %(limit)s",
                {"state": state, "channel": channel, "customer": customer, "message": message_id, "limit": limit},
            )
            return [DeliveryRow(**row) for row in await cursor.fetchall()]

    async def replay(
        self, *, channel: str | None, customer: str | None, message_id: str | None, delivered: bool
    ) -> int:
        """Send dead deliveries (with ``delivered`` those that arrived too) again from the schedule's start, with their
        ids; those whose endpoint is off or gone stay. Returns how many."""
        async with self._transaction() as connection:
            cursor = await connection.execute(
                "UPDATE notifications.deliveries d SET state = 'waiting', schedule_step = 0, next_attempt_at = now(),"
                " ended_at = NULL FROM notifications.messages m, notifications.endpoints e"
                " WHERE m.id = d.message_id AND e.id = d.endpoint_id AND e.deleted_at IS NULL"
                " AND e.disabled_reason IS NULL"
                " AND (d.state = 'dead' OR (%(delivered)s AND d.state = 'delivered'))"
                " AND (%(channel)s::text IS NULL OR d.channel = %(channel)s)"
                " AND (%(customer)s::text IS NULL OR m.customer = %(customer)s)"
                " AND (%(message)s::text IS NULL OR m.id = %(message)s)",
                {"delivered": delivered, "channel": channel, "customer": customer, "message": message_id},
            )
            return cursor.rowcount

    async def endpoints(self, customer: str | None) -> list[dict[str, Any]]:
        """Endpoints that were not deleted, without their secrets."""
        async with self._transaction() as connection:
            cursor = await connection.execute(
                "SELECT id, customer, channel, address, kinds, disabled_reason, created_at FROM notifications.endpoints"
                " WHERE deleted_at IS NULL AND (%(customer)s::text IS NULL OR customer = %(customer)s)"
                " ORDER BY customer, channel, id",
                {"customer": customer},
            )
            return await cursor.fetchall()

    async def switch_endpoint(self, endpoint_id: str, disabled_reason: str | None) -> bool:
        """Switch an endpoint off for a reason, or on again; False if there is none."""
        async with self._transaction() as connection:
            cursor = await connection.execute(
                "UPDATE notifications.endpoints SET disabled_reason = %s WHERE id = %s AND deleted_at IS NULL",
                [disabled_reason, endpoint_id],
            )
            return bool(cursor.rowcount)

    @staticmethod
    async def _add_events(
        connection: psycopg.AsyncConnection[dict[str, Any]], events: Sequence[tuple[int, Jsonb]]
    ) -> None:
        if events:
            async with connection.cursor() as cursor:
                await cursor.executemany(
                    "INSERT INTO notifications.status_events (shard, event) VALUES (%s, %s)", events
                )

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
        try:
            async with self._pool.connection() as connection, connection.transaction():
                yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
            raise StoreUnavailable(f"Postgres: {error}") from error
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise StoreUnavailable(f"Postgres has no outbox ({error}); run `streambank migrate`") from error


def _status(
    message_id: str, customer: str, kind: str, channel: str, endpoint_id: str, status: str, attempt: int, reason: str
) -> tuple[int, Jsonb]:
    assert channel in CHANNELS
    event = {
        "type": "DeliveryStatus", "notification_id": message_id, "customer": customer, "event_kind": kind,
        "channel": channel, "endpoint_id": endpoint_id, "status": status, "attempt": attempt, "reason": reason,
        "at": int(datetime.now(UTC).timestamp() * 1_000_000),
    }  # fmt: skip
    return notification_shard(customer), Jsonb(event)
