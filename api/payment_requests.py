"""The durable side of the payments gateway: requests with their idempotency keys, the audit log, and queries.

A request is recorded with its key, the commands it became and its audit entry in one transaction, before anything is
sent. Tenant, endpoint and key belong together. A repeat gets the stored answer, whatever it was; another body gets 422;
a request still under way 409. If a worker dies, its request is taken over by the next repeat after ``LOCK_SECONDS``,
with the commands that were stored: the same ids, so nothing is paid twice.

Requests that come together are recorded together, in one statement and transaction, and so are their answers: a commit
costs Postgres and this process about as much for ten requests as for one. Each has its own outcome. A round of requests
is told its outcomes at once, so that what is sent next leaves together too.

Postgres has a breaker (after some failures it is not asked for a while) and a bulkhead (at most so many queries use
it at once; of writes, see `api.payment_gateway`): when it is away, payments are answered 503 and everything else goes
on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, TypeVar

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from api.gathering import Gatherer
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
ANSWERS_GATHER_SECONDS: Final = 0.02
"""From one group of answers to the next, at least: those of a round of requests come one shard after the other."""
Result = TypeVar("Result")
_Identity = tuple[str, str, str]

# Sorted by key, so that workers that record the same ones do not wait for each other in a circle.
_RECORD: Final[LiteralString] = """
WITH asked AS (
    SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS asked (
        tenant text, endpoint text, key text, fingerprint text, commands jsonb, payment_ids numeric[], trace_id text,
        remote text
    )
), request AS (
    INSERT INTO payment_requests (tenant, endpoint, key, fingerprint, commands, locked_until)
    SELECT tenant, endpoint, key, fingerprint, commands, now() + make_interval(secs => %(lock)s) FROM asked
    ORDER BY tenant, endpoint, key
    ON CONFLICT (tenant, endpoint, key) DO UPDATE SET locked_until = excluded.locked_until
    WHERE payment_requests.answer_status IS NULL AND payment_requests.locked_until < now()
        AND payment_requests.fingerprint = excluded.fingerprint
    RETURNING tenant, endpoint, key, old.commands AS commands
), audit AS (
    INSERT INTO payment_audit (tenant, endpoint, key, payment_ids, trace_id, remote)
    SELECT tenant, endpoint, key, payment_ids, trace_id, remote
    FROM request JOIN asked USING (tenant, endpoint, key)
)
SELECT tenant, endpoint, key, commands FROM request
"""
"""``commands`` are those of an earlier request whose worker died, NULL for a new one."""
_FIND: Final[LiteralString] = """
SELECT tenant, endpoint, key, fingerprint, answer_status, answer_body, answer_headers
FROM payment_requests
JOIN unnest(%(tenant)s::text[], %(endpoint)s::text[], %(key)s::text[]) AS asked (tenant, endpoint, key)
USING (tenant, endpoint, key)
"""
_ANSWER: Final[LiteralString] = """
UPDATE payment_requests
SET answer_status = given.status, answer_body = decode(given.body, 'base64'), answer_headers = given.headers
FROM jsonb_to_recordset(%(rows)s::jsonb) AS given (
    tenant text, endpoint text, key text, status int, body text, headers jsonb
)
WHERE payment_requests.tenant = given.tenant AND payment_requests.endpoint = given.endpoint
    AND payment_requests.key = given.key AND answer_status IS NULL
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

    @property
    def identity(self) -> _Identity:
        return self.tenant, self.endpoint, self.key

    def names(self) -> dict[str, str]:
        return {"tenant": self.tenant, "endpoint": self.endpoint, "key": self.key}


@dataclass(frozen=True, slots=True)
class Recorded:
    """``commands`` to send, or the answer that was given before (then ``status`` is not 0)."""

    commands: Sequence[dict[str, Any]]
    status: int = 0
    body: bytes = b""
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    request: Request
    commands: Sequence[dict[str, Any]]
    trace_id: str
    remote: str


@dataclass(frozen=True, slots=True)
class _Answered:
    request: Request
    status: int
    body: bytes
    headers: Mapping[str, str]


class PaymentStore:
    """Postgres as the gateway sees it. `open` returns at once."""

    def __init__(self, settings: Settings, *, timeout: float, in_flight: int, gather_seconds: float) -> None:
        self._records: Gatherer[_Asked, Recorded | Problem] = Gatherer(self._record, seconds=gather_seconds)
        self._answers: Gatherer[_Answered, None] = Gatherer(self._answer, seconds=ANSWERS_GATHER_SECONDS)
        self._timeout = timeout
        self._breakers = AsyncCircuitBreakerFactory(default_threshold=FAILURES_TO_OPEN, default_ttl=OPEN_SECONDS)
        self._bulkhead = asyncio.Semaphore(in_flight)
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]] = AsyncConnectionPool(
            postgres_conninfo(settings, API_ROLE),
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                "application_name": "streambank-api-payments",
                # planned anew each time: a plan made while the table was small would read all of it when it is large
                "options": f"-c statement_timeout={int(timeout * 1000)} -c plan_cache_mode=force_custom_plan",
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
        self, request: Request, commands: Sequence[dict[str, Any]], *, trace_id: str, remote: str
    ) -> Recorded:
        """Record a request, or find what it led to. Raises `Problem` 409, 422 or 503."""
        asked = _Asked(request, commands, trace_id, remote)
        recorded = await self._in_time(self._records.do(asked))
        if isinstance(recorded, Problem):
            raise recorded
        return recorded

    async def answered(self, request: Request, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Keep the answer for repeats; raises `Problem` 503."""
        await self._in_time(self._answers.do(_Answered(request, status, body, headers)))

    async def _in_time(self, doing: Awaitable[Result]) -> Result:
        """The result of a group's work, which may have to wait for the group before it."""
        try:
            async with asyncio.timeout(self._timeout):
                return await doing
        except TimeoutError:
            raise _away() from None

    async def _record(self, group: Sequence[_Asked]) -> list[Recorded | Problem]:
        """Of each its commands, its answer, or what is wrong with it."""
        newcomers: dict[_Identity, _Asked] = {}
        for asked in group:  # a key that is there twice is the second's mistake, and one statement takes it once
            newcomers.setdefault(asked.request.identity, asked)
        claimed = await self._claim(list(newcomers.values()))
        others = [asked.request for asked in group if newcomers[asked.request.identity] is not asked]
        others += [asked.request for asked in newcomers.values() if asked.request.identity not in claimed]
        known = {}
        if others:
            rows = await self._rows(_FIND, _columns([request.names() for request in others]))
            known = {(row["tenant"], row["endpoint"], row["key"]): row for row in rows}
        return [
            Recorded(claimed[asked.request.identity] or asked.commands)
            if asked.request.identity in claimed and newcomers[asked.request.identity] is asked
            else _earlier(asked.request, known.get(asked.request.identity))
            for asked in group
        ]

    async def _claim(self, group: Sequence[_Asked]) -> dict[_Identity, list[dict[str, Any]] | None]:
        """Of the requests that may be done now the commands of an earlier try, None where there was none."""
        rows = [
            {
                **asked.request.names(), "fingerprint": asked.request.fingerprint,
                "commands": asked.commands,
                "payment_ids": [
                    str(command["payment_id"]) for command in asked.commands if "payment_id" in command
                ],
                "trace_id": asked.trace_id, "remote": asked.remote,
            }
            for asked in group
        ]  # fmt: skip
        found = await self._rows(_RECORD, {"rows": _json(rows), "lock": LOCK_SECONDS})
        return {(row["tenant"], row["endpoint"], row["key"]): row["commands"] for row in found}

    async def _answer(self, group: Sequence[_Answered]) -> list[None]:
        rows = [
            {
                **answered.request.names(), "status": answered.status, "body": answered.body,
                "headers": answered.headers,
            }
            for answered in group
        ]  # fmt: skip
        await self._rows(_ANSWER, {"rows": _json(rows)})
        return [None] * len(group)

    async def unlock(self, request: Request) -> None:
        """Let a repeat send the request's commands again at once."""
        await self._rows(_UNLOCK, request.names())

    async def payment(self, payment_id: int, ledger: int | None) -> dict[str, Any]:
        """A payment with its timeline; raises `Problem` 404, 409 or 503."""
        rows = await self._queried(_PAYMENT, {"id": payment_id, "ledger": ledger})
        if not rows:
            raise Problem("not-found", f"There is no payment {payment_id}, or it is not visible yet.")
        if len(rows) > 1:
            ledgers = [int(row["ledger"]) for row in rows]
            raise Problem("ambiguous-id", f"The payment {payment_id} exists in ledgers {ledgers}.", ledgers=ledgers)
        timeline = await self._queried(_TIMELINE, {"shard": rows[0]["shard"], "id": payment_id})
        return {**_plain(rows[0]), "timeline": [_plain(row) for row in timeline]}

    async def payments_of(self, account: int, ledger: int, since: int, until: int, limit: int) -> dict[str, Any]:
        """A page of an account's payments, newest first, with the ``until`` of the next page or null. Payments of the
        same moment, as those of a batch, are on one page: it may have more than ``limit``."""
        place = {"account": account, "ledger": ledger, "since": since, "until": until, "limit": limit}
        rows = await self._queried(_OF_ACCOUNT, place)
        rows.sort(key=lambda row: (row["requested_at"], row["payment_id"]), reverse=True)
        following = int(rows[-1]["requested_at"]) - 1 if len(rows) >= limit else None
        return {"payments": [_plain(row) for row in rows], "next_until": following}

    async def _queried(self, query: LiteralString, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a query finds, if not too many ask at once."""
        if self._bulkhead.locked():
            raise Problem("overloaded", "Too many queries of payments are under way in this worker.", retry_after=1)
        async with self._bulkhead:
            return await self._rows(query, parameters)

    async def _rows(self, query: LiteralString, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        try:
            async with (
                await self._breakers.get_breaker("postgres"),
                asyncio.timeout(self._timeout),
                self._pool.connection() as connection,
            ):
                cursor = await connection.execute(query, parameters)
                return await cursor.fetchall() if cursor.description else []
        except OpenedState:
            raise _away() from None
        except Exception as error:
            count("streambank_api_store_failures", "postgres")
            log().warning("payments store failed", error=f"{type(error).__name__}: {error}"[:500])
            raise _away() from error


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows for `jsonb_to_recordset`, bytes in base64: an array per column costs this process five times as much."""
    return msgspec.json.encode(rows).decode()


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows with the same names as one array per name."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _earlier(request: Request, known: Mapping[str, Any] | None) -> Recorded | Problem:
    """The answer to a request whose key is taken, or why there is none."""
    if known is not None and known["fingerprint"] != request.fingerprint:
        return Problem(
            "idempotency-key-reused",
            "This Idempotency-Key was used with another body; use a new key for a new request.",
        )
    if known is None or known["answer_status"] is None:
        return Problem(
            "idempotency-key-in-use",
            "A request with this Idempotency-Key is still running; its answer will be kept for a repeat.",
            retry_after=1,
        )
    return Recorded([], known["answer_status"], bytes(known["answer_body"]), known["answer_headers"])


def _away() -> Problem:
    return Problem("store-unavailable", "Postgres does not answer.", retry_after=OPEN_SECONDS, store="postgres")


_WIDE: Final = frozenset({"payment_id", "payer_account_id", "payee_account_id", "original_payment_id"})


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: ids as decimal strings where they are large."""
    return {
        name: (int(value) if int(value) <= 2**53 else str(int(value))) if name in _WIDE else value
        for name, value in row.items()
    }
