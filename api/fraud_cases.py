"""The queue of fraud cases: list, look, assign, note, close.

Cases are opened by the sink of decisions (`jobs.sinks.fraud_cases`). Closing one as fraud or genuine sends a label of
each of its transactions into fraud.transactions, where the feature pipeline learns from it: first the labels,
acknowledged by all replicas, then the case. Whatever fails between, closing it again is safe: the latest label holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Literal, LiteralString

import msgspec
import psycopg
from aiohttp import web
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from api.auth import Principal
from api.batching import DeliveryError
from api.idempotency import parse_key
from api.json_body import json_object
from api.problems import Problem
from api.producer import KafkaSender
from infra.settings import Settings
from infra.stores import API_ROLE, postgres_conninfo
from pipelines.catalogue import FRAUD_TRANSACTIONS
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.fraud.records import MAX_AHEAD

__all__ = ["FraudCases", "case_paths", "case_schemas"]

READ: Final = "fraud:read"
WRITE: Final = "fraud:write"
MAX_PAGE: Final = 500
DEFAULT_PAGE: Final = 100
POOL_CONNECTIONS: Final = 4

_TRANSACTIONS: Final = codec_of(FRAUD_TRANSACTIONS.name)
_CASE: Final[LiteralString] = """
    case_id::text, shard, customer_id, day::text, status, assignee, outcome, raised_at, closed_at,
    transaction_id::text, event_time, terminal_id, amount, decision, score, model_version, rule_set_version,
    reason_codes, reasons
"""
_LIST: Final[LiteralString] = f"""
    SELECT {_CASE} FROM fraud_cases
    WHERE (%(status)s::text IS NULL OR status = %(status)s) AND (%(assignee)s::text IS NULL OR assignee = %(assignee)s)
        AND (%(raised_at)s::bigint IS NULL OR (raised_at, case_id) < (%(raised_at)s, %(before)s::numeric))
    ORDER BY raised_at DESC, fraud_cases.case_id DESC LIMIT %(limit)s
"""  # noqa: S608 - a constant of this module
_GET: Final[LiteralString] = f"SELECT {_CASE} FROM fraud_cases WHERE case_id = %(id)s::numeric"  # noqa: S608
_CASE_TRANSACTIONS: Final[LiteralString] = """
    SELECT transaction_id::text, event_time, terminal_id, amount, decision, score, model_version, rule_set_version,
        reason_codes, rescored
    FROM fraud_case_transactions WHERE case_id = %(id)s::numeric
    ORDER BY event_time, fraud_case_transactions.transaction_id
"""
_NOTES: Final[LiteralString] = """
    SELECT author, text, (extract(epoch FROM written_at) * 1000000)::bigint AS written_at
    FROM fraud_case_notes WHERE case_id = %(id)s::numeric ORDER BY written_at, key
"""

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4_000)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class Assignment(msgspec.Struct, forbid_unknown_fields=True):
    """Body of assign."""

    assignee: _Name


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """Body of notes."""

    text: _Text


class Closing(msgspec.Struct, forbid_unknown_fields=True):
    """Body of close. ``known_at``: when the outcome became known, UTC microseconds; default now."""

    outcome: Literal["fraud", "genuine"]
    known_at: Annotated[int, msgspec.Meta(ge=0, le=7_258_118_400_000_000)] | None = None


Guard = Callable[[web.Request, str], Awaitable[tuple[Principal, dict[str, str]]]]
"""Checks a request's token for a scope and its rate; gives the principal and headers of the answer."""


class FraudCases:
    """The routes of one worker. ``sender`` needs its schema id, as the ledger's."""

    def __init__(
        self, settings: Settings, guard: Guard, *, timeout: float, delivery_seconds: float, idle_seconds: float
    ) -> None:
        self.sender = KafkaSender(settings, FRAUD_TRANSACTIONS, delivery_seconds)
        self._guard = guard
        self._idle_seconds = idle_seconds
        self._timeout = timeout
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]] = AsyncConnectionPool(
            postgres_conninfo(settings, API_ROLE),
            min_size=0,
            max_size=POOL_CONNECTIONS,
            open=False,
            timeout=timeout,
            kwargs={
                "row_factory": dict_row,
                "application_name": "streambank-api-cases",
                "options": f"-c statement_timeout={int(timeout * 1000)} -c lock_timeout={int(timeout * 1000)}",
            },
        )

    async def open(self) -> None:
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=self._timeout)
        await asyncio.to_thread(self.sender.close)

    # --- routes

    async def page(self, request: web.Request) -> web.Response:
        """GET /v1/fraud/cases: newest first; ``status``, ``assignee``, ``limit``, ``cursor``."""
        _, headers = await self._guard(request, READ)
        for name in request.query:
            if name not in ("status", "assignee", "limit", "cursor"):
                raise _bad(name[:40], "is unknown here; there are status, assignee, limit and cursor")
        status = request.query.get("status")
        if status not in (None, "open", "assigned", "closed"):
            raise _bad("status", "must be open, assigned or closed")
        limit = request.query.get("limit", str(DEFAULT_PAGE))
        if not (limit.isascii() and limit.isdecimal() and len(limit) <= 9 and 1 <= int(limit) <= MAX_PAGE):
            raise _bad("limit", f"must be an integer from 1 to {MAX_PAGE}")
        if "\0" in request.query.get("assignee", ""):
            raise _bad("assignee", "must not have a NUL character")
        raised_at, before = _cursor(request.query.get("cursor"))
        async with self._transaction() as connection:
            cursor = await connection.execute(
                _LIST,
                {
                    "status": status, "assignee": request.query.get("assignee"), "limit": int(limit) + 1,
                    "raised_at": raised_at, "before": before,
                },
            )  # fmt: skip
            cases = await cursor.fetchall()
        following = None
        if len(cases) > int(limit):
            cases.pop()
            following = f"{cases[-1]['raised_at']}-{cases[-1]['case_id']}"
        return _json({"cases": cases, "next_cursor": following}, headers)

    async def get(self, request: web.Request) -> web.Response:
        """GET /v1/fraud/cases/{id}: with its transactions and notes."""
        _, headers = await self._guard(request, READ)
        async with self._transaction() as connection:
            return _json(await _case(connection, _id(request)), headers)

    async def assign(self, request: web.Request) -> web.Response:
        """POST /v1/fraud/cases/{id}/assign: to a person, or to another one."""
        _, headers = await self._guard(request, WRITE)
        body = await _body(request, Assignment, self._idle_seconds)
        async with self._transaction() as connection:
            await _locked(connection, _id(request), closed=False)
            await connection.execute(
                "UPDATE fraud_cases SET status = 'assigned', assignee = %s WHERE case_id = %s::numeric",
                [body.assignee, _id(request)],
            )
            return _json(await _case(connection, _id(request)), headers)

    async def note(self, request: web.Request) -> web.Response:
        """POST /v1/fraud/cases/{id}/notes: once per Idempotency-Key."""
        principal, headers = await self._guard(request, WRITE)
        key = parse_key(request.headers.get("Idempotency-Key"))
        body = await _body(request, Note, self._idle_seconds)
        async with self._transaction() as connection:
            await _locked(connection, _id(request))
            await connection.execute(
                "INSERT INTO fraud_case_notes (case_id, key, author, text) VALUES (%s::numeric, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                [_id(request), key, principal.client_id, body.text],
            )
            return _json(await _case(connection, _id(request)), headers, 201)

    async def close_case(self, request: web.Request) -> web.Response:
        """POST /v1/fraud/cases/{id}/close: labels its transactions."""
        _, headers = await self._guard(request, WRITE)
        body = await _body(request, Closing, self._idle_seconds)
        now = time.time_ns() // 1000
        known_at = now if body.known_at is None else body.known_at
        if known_at > now + MAX_AHEAD:  # the fraud job would set the labels aside
            raise Problem("invalid-event", "known_at must not be more than a day ahead (UTC microseconds).")
        async with self._transaction() as connection:
            case = await _locked(connection, _id(request))
            if case["status"] == "closed":
                if case["outcome"] != body.outcome:
                    raise Problem("case-closed", f"The case was closed as {case['outcome']}.")
                return _json(await _case(connection, _id(request)), headers)
            cursor = await connection.execute(_CASE_TRANSACTIONS, {"id": _id(request)})
            labels = [
                {
                    "type": "FraudLabel", "transaction_id": row["transaction_id"], "event_time": known_at,
                    "fraud": body.outcome == "fraud",
                }
                for row in await cursor.fetchall()
            ]  # fmt: skip
            await self._send(int(case["shard"]), labels)
            await connection.execute(
                "UPDATE fraud_cases SET status = 'closed', outcome = %s, closed_at = %s WHERE case_id = %s::numeric",
                [body.outcome, known_at, _id(request)],
            )
            return _json(await _case(connection, _id(request)), headers)

    async def _send(self, shard: int, labels: Sequence[dict[str, Any]]) -> None:
        """Labels acknowledged by Kafka; raises `Problem` 503."""
        events = parse_events(_TRANSACTIONS, labels)
        frame = Frame(FRAUD_TRANSACTIONS.name, shard, 0, time.time_ns() // 1000, None, events)
        acknowledged: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def done(_offset: int, error: str | None) -> None:
            if not acknowledged.done():
                acknowledged.set_result(error)

        try:
            self.sender.send(frame, _TRANSACTIONS.encode(frame), done)
            error = await acknowledged
        except DeliveryError as refused:
            error = str(refused)
        if error is not None:
            raise Problem("log-unavailable", "Kafka did not acknowledge the labels; the case is open.", retry_after=1)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
        try:
            async with self._pool.connection() as connection:
                yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
            raise Problem("store-unavailable", "Postgres, which holds the cases, is away.", retry_after=1) from error


async def _case(connection: psycopg.AsyncConnection[dict[str, Any]], case_id: str) -> dict[str, Any]:
    found = await (await connection.execute(_GET, {"id": case_id})).fetchone()
    if found is None:
        raise Problem("not-found", f"There is no case {case_id}.")
    for name, query in (("transactions", _CASE_TRANSACTIONS), ("notes", _NOTES)):
        found[name] = await (await connection.execute(query, {"id": case_id})).fetchall()
    return found


async def _locked(
    connection: psycopg.AsyncConnection[dict[str, Any]], case_id: str, *, closed: bool = True
) -> dict[str, Any]:
    """The case, locked; raises `Problem` for one that is not there, or closed unless that is allowed."""
    found = await (await connection.execute(_GET + " FOR UPDATE", {"id": case_id})).fetchone()
    if found is None:
        raise Problem("not-found", f"There is no case {case_id}.")
    if found["status"] == "closed" and not closed:
        raise Problem("case-closed", f"The case was closed as {found['outcome']}.")
    return found


async def _body(request: web.Request, kind: type[Any], idle_seconds: float) -> Any:
    document = await json_object(request, idle_seconds)
    try:
        body = msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise Problem("invalid-event", f"{error}.") from None
    for text in msgspec.structs.asdict(body).values():
        if isinstance(text, str) and "\0" in text:
            raise Problem("invalid-event", "Text must not have a NUL character.")
    return body


def _id(request: web.Request) -> str:
    text = request.match_info["id"]
    if not (text.isascii() and text.isdecimal()) or len(text) > 39:
        raise _bad("id", "must be a decimal number below 2^128")
    return text


def _cursor(text: str | None) -> tuple[int | None, str | None]:
    if text is None:
        return None, None
    raised_at, dash, case_id = text.partition("-")
    if not dash or not all(part.isascii() and part.isdecimal() for part in (raised_at, case_id)) or len(text) > 60:
        raise _bad("cursor", "is not one of this API")
    if int(raised_at) >= 2**63:
        raise _bad("cursor", "is not one of this API")
    return int(raised_at), case_id


def _bad(name: str, must: str) -> Problem:
    return Problem("bad-parameter", f"{name}: {must}.", parameter=name)


def _json(document: Any, headers: Mapping[str, str], status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(document), content_type="application/json", headers=headers, status=status
    )


# --- OpenAPI


def case_schemas() -> dict[str, Any]:
    """Schemas of the document."""
    integer, words = {"type": "integer"}, {"type": "string"}
    maybe = {"type": ["integer", "null"]}
    decision = {
        "transaction_id": words, "event_time": integer, "terminal_id": integer, "amount": integer,
        "decision": {"enum": ["review", "block"]}, "score": maybe, "model_version": integer,
        "rule_set_version": integer, "reason_codes": words,
    }  # fmt: skip
    case = {
        "case_id": words, "shard": integer, "customer_id": integer, "day": {"type": "string", "format": "date"},
        "status": {"enum": ["open", "assigned", "closed"]}, "assignee": {"type": ["string", "null"]},
        "outcome": {"enum": ["fraud", "genuine", None]}, "raised_at": integer, "closed_at": maybe, **decision,
        "reasons": {"type": ["object", "null"], "description": "What the score comes from, by input."},
    }  # fmt: skip
    reference = {"$ref": "#/components/schemas/FraudCase"}
    note = {"author": words, "text": words, "written_at": integer}
    return {
        "FraudCase": _object(
            case, "A card's case of a UTC day. Times are microseconds, amounts cents, scores per million."
        ),
        "FraudCaseWithHistory": _object(
            {
                **case,
                "transactions": {"type": "array", "items": _object({**decision, "rescored": {"type": "boolean"}})},
                "notes": {"type": "array", "items": _object(note)},
            },
            "A case with its transactions and notes.",
        ),
        "FraudCases": _object(
            {"cases": {"type": "array", "items": reference}, "next_cursor": {"type": ["string", "null"]}},
            "A page of cases, newest first.",
        ),
    }


def _object(properties: dict[str, Any], description: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "properties": properties, "required": list(properties)}
    return {**found, "description": description} if description else found


def case_paths(problems: Callable[[tuple[str, ...]], dict[str, Any]]) -> dict[str, Any]:
    """Paths of the document; ``problems`` makes the answers of problem types."""
    read = (
        "bad-parameter", "unauthorized", "insufficient-scope", "not-found", "rate-limited", "internal",
        "store-unavailable", "issuer-unavailable",
    )  # fmt: skip
    write = (
        *read, "malformed-json", "body-timeout", "case-closed", "too-large", "unsupported-media-type",
        "invalid-event", "invalid-fields", "log-unavailable",
    )  # fmt: skip
    identity = {
        "name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9]{1,39}$"},
        "description": "Case id.",
    }  # fmt: skip
    words: dict[str, Any] = {"type": "string"}

    def operation(
        name: str, summary: str, scope: str, answer: str, slugs: tuple[str, ...], status: str = "200", **more: Any
    ) -> dict[str, Any]:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
        return {
            "tags": ["Fraud cases"],
            "operationId": name,
            "summary": summary,
            "security": [{"oauth": [scope]}],
            "responses": {status: {"description": summary + ".", "content": content}, **problems(slugs)},
            **more,
        }

    def body(**properties: Any) -> dict[str, Any]:
        required = [name for name in properties if name != "known_at"]
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return {"required": True, "content": {"application/json": {"schema": schema}}}

    whole = "FraudCaseWithHistory"
    key = {"name": "Idempotency-Key", "in": "header", "required": True, "schema": {"type": "string", "maxLength": 257}}
    filters = [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in {
            "status": {"enum": ["open", "assigned", "closed"]}, "assignee": words,
            "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE}, "cursor": words,
        }.items()
    ]  # fmt: skip
    outcome = {"enum": ["fraud", "genuine"]}
    known_at = {"type": "integer", "description": "When it became known, UTC microseconds, at most a day ahead; now."}
    return {
        "/v1/fraud/cases": {
            "get": operation("listFraudCases", "Fraud cases", READ, "FraudCases", read, parameters=filters)
        },
        "/v1/fraud/cases/{id}": {
            "get": operation("getFraudCase", "A fraud case", READ, whole, read, parameters=[identity])
        },
        "/v1/fraud/cases/{id}/assign": {
            "post": operation(
                "assignFraudCase", "Assign a case", WRITE, whole, write,
                parameters=[identity], requestBody=body(assignee=words),
            )
        },
        "/v1/fraud/cases/{id}/notes": {
            "post": operation(
                "addFraudCaseNote", "Add a note", WRITE, whole,
                (*write, "bad-header", "idempotency-key-missing"), "201",
                parameters=[identity, key], requestBody=body(text=words),
            )
        },
        "/v1/fraud/cases/{id}/close": {
            "post": operation(
                "closeFraudCase", "Close a case and label its transactions", WRITE, whole, write,
                parameters=[identity], requestBody=body(outcome=outcome, known_at=known_at),
            )
        },
    }  # fmt: skip
