"""The durable side of the payments gateway: requests with their idempotency keys, the audit log, and queries.

A request is recorded with its key, the commands it became and its audit entry in one transaction, before anything is
sent. Tenant, endpoint and key belong together. A repeat gets the stored answer, whatever it was; another body gets 422;
a request still under way 409. If a worker dies, its request is taken over by the next repeat after ``LOCK_SECONDS``,
with the commands that were stored: the same ids, so nothing is paid twice.

Postgres has a breaker (after some failures it is not asked for a while) and a bulkhead (at most so many requests use
it at once): when it is away, payments are answered 503 and everything else goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from api.logs import log
from api.metrics import count
from api.problems import Problem
from infra.settings import Settings
from infra.stores import API_ROLE, postgres_conninfo

__all__ = ["PaymentStore", "Recorded", "Request"]

LOCK_SECONDS: Final = 30
FAILURES_TO_OPEN: Final = 3
OPEN_SECONDS: Final = 2.0
POOL_SIZE: Final = 8

_RECORD: Final[LiteralString] = """
WITH request AS (
    INSERT INTO payment_requests (tenant, endpoint, key, fingerprint, commands, locked_until)
    VALUES (%(tenant)s, %(endpoint)s, %(key)s, %(fingerprint)s, %(commands)s::jsonb,
            now() + make_interval(secs => %(lock)s))
    ON CONFLICT (tenant, endpoint, key) DO UPDATE SET locked_until = excluded.locked_until
    WHERE payment_requests.answer_status IS NULL AND payment_requests.locked_until < now()
        AND payment_requests.fingerprint = excluded.fingerprint
    RETURNING commands
), audit AS (
    INSERT INTO payment_audit (tenant, endpoint, key, payment_ids, trace_id, remote)
    SELECT %(tenant)s, %(endpoint)s, %(key)s, %(payment_ids)s::numeric[], %(trace_id)s, %(remote)s FROM request
)
SELECT commands FROM request
"""
_FIND: Final[LiteralString] = """
SELECT fingerprint, answer_status, answer_body, answer_headers FROM payment_requests
WHERE tenant = %(tenant)s AND endpoint = %(endpoint)s AND key = %(key)s
"""
_ANSWER: Final[LiteralString] = """
UPDATE payment_requests SET answer_status = %(status)s, answer_body = %(body)s, answer_headers = %(headers)s::jsonb
WHERE tenant = %(tenant)s AND endpoint = %(endpoint)s AND key = %(key)s AND answer_status IS NULL
"""
_UNLOCK: Final[LiteralString] = """
UPDATE payment_requests SET locked_until = '-infinity'
WHERE tenant = %(tenant)s AND endpoint = %(endpoint)s AND key = %(key)s AND answer_status IS NULL
"""
_PAYMENT: Final[LiteralString] = """
SELECT * FROM payments
WHERE payment_id = %(id)s AND (%(ledger)s::bigint IS NULL OR ledger = %(ledger)s) ORDER BY ledger
"""
_TIMELINE: Final[LiteralString] = """
SELECT version, at, cause, previous_status, status, reason, iso_status, iso_reason, action_amount FROM payment_events
WHERE shard = %(shard)s AND payment_id = %(id)s ORDER BY version
"""
_OF_ACCOUNT: Final[LiteralString] = """
SELECT * FROM payments
WHERE (payer_account_id = %(account)s OR payee_account_id = %(account)s) AND ledger = %(ledger)s
    AND requested_at BETWEEN %(since)s AND %(until)s
ORDER BY requested_at DESC FETCH FIRST %(limit)s ROWS WITH TIES
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What makes a request the same as an earlier one."""

    tenant: str
    endpoint: str
    key: str
    fingerprint: str

    def names(self) -> dict[str, str]:
        return {"tenant": self.tenant, "endpoint": self.endpoint, "key": self.key}


@dataclass(frozen=True, slots=True)
class Recorded:
    """``commands`` to send, or the answer that was given before (then ``status`` is not 0)."""

    commands: list[dict[str, Any]]
    status: int = 0
    body: bytes = b""
    headers: Mapping[str, str] | None = None


class PaymentStore:
    """Postgres as the gateway sees it. `open` returns at once."""

    def __init__(self, settings: Settings, *, timeout: float, in_flight: int) -> None:
        self._timeout = timeout
        self._breakers = AsyncCircuitBreakerFactory(default_threshold=FAILURES_TO_OPEN, default_ttl=OPEN_SECONDS)
        self._bulkhead = asyncio.Semaphore(in_flight)
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]] = AsyncConnectionPool(
            postgres_conninfo(settings, API_ROLE),
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                "application_name": "streambank-api-payments",
                "options": f"-c statement_timeout={int(timeout * 1000)}",
            },
            min_size=0,
            max_size=POOL_SIZE,
            timeout=timeout,
            reconnect_timeout=1,
            open=False,
        )

    async def open(self) -> None:
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=self._timeout)

    async def record(
        self, request: Request, commands: Sequence[Mapping[str, Any]], *, trace_id: str, remote: str
    ) -> Recorded:
        """Record a request, or find what it led to. Raises `Problem` 409, 422 or 503."""
        found = await self._rows(
            _RECORD,
            {
                **request.names(), "fingerprint": request.fingerprint, "commands": json.dumps(list(commands)),
                "lock": LOCK_SECONDS,
                "payment_ids": [str(command["payment_id"]) for command in commands if "payment_id" in command],
                "trace_id": trace_id, "remote": remote,
            },
        )  # fmt: skip
        if found:
            return Recorded(found[0]["commands"])
        known = await self._rows(_FIND, request.names())
        if known and known[0]["fingerprint"] != request.fingerprint:
            raise Problem(
                "idempotency-key-reused",
                "This Idempotency-Key was used with another body; use a new key for a new request.",
            )
        if not known or known[0]["answer_status"] is None:
            raise Problem(
                "idempotency-key-in-use",
                "A request with this Idempotency-Key is still running; its answer will be kept for a repeat.",
                retry_after=1,
            )
        answer = known[0]
        return Recorded([], answer["answer_status"], bytes(answer["answer_body"]), answer["answer_headers"])

    async def answered(self, request: Request, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Keep the answer for repeats; raises `Problem` 503."""
        await self._rows(
            _ANSWER, {**request.names(), "status": status, "body": body, "headers": json.dumps(dict(headers))}
        )

    async def unlock(self, request: Request) -> None:
        """Let a repeat send the request's commands again at once."""
        await self._rows(_UNLOCK, request.names())

    async def payment(self, payment_id: int, ledger: int | None) -> dict[str, Any]:
        """A payment with its timeline; raises `Problem` 404, 409 or 503."""
        rows = await self._rows(_PAYMENT, {"id": payment_id, "ledger": ledger})
        if not rows:
            raise Problem("not-found", f"There is no payment {payment_id}, or it is not visible yet.")
        if len(rows) > 1:
            ledgers = [int(row["ledger"]) for row in rows]
            raise Problem("ambiguous-id", f"The payment {payment_id} exists in ledgers {ledgers}.", ledgers=ledgers)
        timeline = await self._rows(_TIMELINE, {"shard": rows[0]["shard"], "id": payment_id})
        return {**_plain(rows[0]), "timeline": [_plain(row) for row in timeline]}

    async def payments_of(self, account: int, ledger: int, since: int, until: int, limit: int) -> dict[str, Any]:
        """A page of an account's payments, newest first, with the ``until`` of the next page or null. Payments of the
        same moment, as those of a batch, are on one page: it may have more than ``limit``."""
        place = {"account": account, "ledger": ledger, "since": since, "until": until, "limit": limit}
        rows = await self._rows(_OF_ACCOUNT, place)
        rows.sort(key=lambda row: (row["requested_at"], row["payment_id"]), reverse=True)
        following = int(rows[-1]["requested_at"]) - 1 if len(rows) >= limit else None
        return {"payments": [_plain(row) for row in rows], "next_until": following}

    async def _rows(self, query: LiteralString, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        async with self._guard(), asyncio.timeout(self._timeout), self._pool.connection() as connection:
            cursor = await connection.execute(query, parameters)
            return await cursor.fetchall() if cursor.description else []

    @asynccontextmanager
    async def _guard(self) -> AsyncIterator[None]:
        if self._bulkhead.locked():
            raise Problem("overloaded", "Too many payment requests are under way in this worker.", retry_after=1)
        async with self._bulkhead:
            try:
                async with await self._breakers.get_breaker("postgres"):
                    yield
            except OpenedState:
                raise _away() from None
            except Exception as error:
                count("streambank_api_store_failures", "postgres")
                log().warning("payments store failed", error=f"{type(error).__name__}: {error}"[:500])
                raise _away() from error


def _away() -> Problem:
    return Problem("store-unavailable", "Postgres does not answer.", retry_after=OPEN_SECONDS, store="postgres")


_WIDE: Final = frozenset({"payment_id", "payer_account_id", "payee_account_id", "original_payment_id"})


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: ids as decimal strings where they are large."""
    return {
        name: (int(value) if int(value) <= 2**53 else str(int(value))) if name in _WIDE else value
        for name, value in row.items()
    }
