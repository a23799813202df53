"""ISO 20022 over HTTP: payment messages in, status reports and statements out.

`POST /v1/iso20022/messages` takes a pacs.008 or pain.001 and answers with the pacs.002 or pain.002 that says what
became of each payment; `GET /v1/iso20022/accounts/{account}/statement` gives a day as camt.053. Behind them is the
gateway of JSON (`api.payment_gateway`): the same scopes, limits, audit log and idempotency, and the message's own id is
the key where no Idempotency-Key is sent.

A message is taken as a whole or not at all. Accounts are IBANs, which accounts' metadata name in the attribute
``iban``, or `Othr/Id` with the account's number, in decimal or as 0x and 32 hexadecimal digits. The ledger is the one
whose number is the currency's in ISO 4217 (978: euro), unless ``?ledger=`` names another. Amounts must have the
ledger's scale.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, LiteralString, Protocol
from urllib.parse import quote

from aiohttp import web

from api.auth import Authenticator, Principal
from api.bodies import BodyReader
from api.config import ApiSettings
from api.idempotency import parse_key
from api.ingest import preferred_wait
from api.payment_gateway import PaymentsGateway, Write
from api.payment_requests import Request
from api.problems import Problem
from api.queries import Queries
from api.rate_limit import RateLimiter
from pipelines.catalogue import PAYMENTS_SHARDS
from pipelines.currencies import UnknownCurrency, by_code, by_number
from pipelines.iso20022.credit_transfers import CreditTransfers, PaymentInstruction, read_credit_transfers
from pipelines.iso20022.identifiers import iban_valid, minor_units
from pipelines.iso20022.reports import (
    GROUP_STATUSES,
    StatementEntry,
    TransactionStatus,
    write_statement,
    write_status_report,
)
from pipelines.iso20022.xml import MAX_BYTES, Iso20022Error
from pipelines.payments.records import transfer_of
from pipelines.payments.states import ISO_REASON, ISO_STATUS, Reason, Status

__all__ = ["ISO20022_PROBLEMS", "Iso20022Routes", "iso20022_paths"]

XML: Final = "application/xml"
MEDIA_TYPES: Final = (XML, "text/xml")
MAX_PAYMENTS: Final = 1_000
"""Of one message: they are one request, one entry of the audit log, and one answer."""
MAX_ENTRIES: Final = 10_000
"""Of one statement, which is made in memory."""
MAX_ERRORS: Final = 100
MAX_ACCOUNT: Final = 2**128 - 2
FIRST_DAY: Final = date(1970, 1, 2)
DAY_NANOSECONDS: Final = 86_400 * 10**9
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,33}|0x[0-9a-f]{32}", re.ASCII)
_LEDGER: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)

_BY_IBAN: Final[LiteralString] = """
SELECT ledger, attributes->>'iban' AS iban, account_id FROM account_metadata
WHERE ledger = ANY(%(ledgers)s) AND attributes->>'iban' = ANY(%(ibans)s)
"""
_IBANS: Final[LiteralString] = """
SELECT account_id, attributes->>'iban' AS iban FROM account_metadata
WHERE ledger = %(ledger)s AND account_id = ANY(%(accounts)s::numeric[])
"""
_LEDGERS: Final[LiteralString] = "SELECT ledger, currency, scale FROM ledger_metadata WHERE ledger = ANY(%(ledgers)s)"
_PAYMENTS: Final[LiteralString] = """
SELECT payment_id, end_to_end_id, reference FROM payments
WHERE shard = %(shard)s AND payment_id = ANY(%(ids)s::numeric[])
"""


class Iso20022Services(Protocol):
    """What the routes use of a worker."""

    config: ApiSettings
    authenticator: Authenticator
    events_limit: RateLimiter
    payments: PaymentsGateway
    queries: Queries


class Iso20022Routes:
    """The handlers; ``worker`` is an app key of something with `Iso20022Services`."""

    def __init__(self, worker: web.AppKey[Any]) -> None:
        self._worker = worker

    def add(self, app: web.Application) -> None:
        app.router.add_post("/v1/iso20022/messages", self.take)
        app.router.add_get("/v1/iso20022/accounts/{account}/statement", self.statement)

    async def take(self, request: web.Request) -> web.StreamResponse:
        """A pacs.008 or pain.001 becomes payments; answered by the report of what became of them."""
        worker: Iso20022Services = request.app[self._worker]
        principal = await worker.authenticator.principal(request.headers.get("Authorization"), "payments:write")
        _known(request, "ledger")
        ledger = _ledger(request)
        wait = preferred_wait(request.headers.getall("Prefer", []), worker.config.wait_seconds)
        key = parse_key(request.headers["Idempotency-Key"]) if "Idempotency-Key" in request.headers else None
        if request.content_type not in MEDIA_TYPES or request.headers.get("Content-Encoding"):
            raise Problem("unsupported-media-type", f"Send {XML} without a content encoding.", supported=[XML])
        fingerprint = hashlib.sha256(f"{ledger}\0".encode())
        body = BodyReader(
            request.content, limit=MAX_BYTES, idle_seconds=worker.config.idle_seconds, seen=fingerprint.update
        )
        data = await body.whole()
        message = await asyncio.to_thread(_read, data)
        payments = await _payments(worker.queries, message, ledger)
        request["logged"] = {"message": message.name, "payments": len(payments)}
        return await self._write(request, worker, principal, message, payments, key, fingerprint.hexdigest(), wait)

    async def _write(
        self,
        request: web.Request,
        worker: Iso20022Services,
        principal: Principal,
        message: CreditTransfers,
        payments: list[dict[str, Any]],
        key: str | None,
        fingerprint: str,
        wait: float,
    ) -> web.StreamResponse:
        identity = Request(
            principal.client_id, "/v1/iso20022/messages", key or f"MsgId:{quote(message.message_id, safe='')}",
            fingerprint,
        )  # fmt: skip
        report_id = hashlib.sha256("\0".join((identity.tenant, identity.key, fingerprint)).encode()).hexdigest()[:32]
        answer, allowance = await worker.payments.write(
            Write(
                action="message",
                subject="",
                body={"payments": payments},
                identity=identity,
                wait=wait,
                trace_id=request["trace_id"],
                remote=request.remote or "",
                report=lambda documents: (XML, _report(message, report_id, documents)),
            )
        )
        replayed = {"Idempotency-Replayed": "true"} if answer.replayed else allowance.headers()
        return web.Response(
            status=answer.status, body=answer.body, content_type=answer.content_type,
            headers={**answer.headers, **replayed},
        )  # fmt: skip

    async def statement(self, request: web.Request) -> web.StreamResponse:
        """An account's day as camt.053, by UTC: booked entries between two balances."""
        worker: Iso20022Services = request.app[self._worker]
        principal = await worker.authenticator.principal(request.headers.get("Authorization"), "ledger:read")
        allowance = await worker.events_limit.charge(principal.client_id, 1)
        _known(request, "ledger", "date")
        ledger, day = _ledger(request), _day(request)
        if ledger is None:
            raise _bad("ledger", "is needed")
        try:
            document = await _statement(worker.queries, request.match_info["account"], ledger, day)
        except Problem as problem:
            problem.headers |= allowance.headers()
            raise
        return web.Response(body=document, content_type=XML, headers=allowance.headers())


def _read(data: bytes) -> CreditTransfers:
    if not data.strip():
        raise Problem("empty-body", "The body holds nothing; send a pacs.008 or pain.001.")
    try:
        message = read_credit_transfers(data)
    except Iso20022Error as error:
        raise _wrong([_error(error.path, error.detail, error.code)]) from None
    if len(message.instructions) > MAX_PAYMENTS:
        raise Problem(
            "too-large", f"The message has {len(message.instructions)} payments, at most {MAX_PAYMENTS}; split it."
        )
    return message


# --- instructions into payments ---------------------------------------------------------------------------------------


async def _payments(queries: Queries, message: CreditTransfers, ledger: int | None) -> list[dict[str, Any]]:
    """Bodies as of `POST /v1/payments`, in the order of the instructions; raises `Problem` 422 for the message."""
    instructions = message.instructions
    ledgers = [by_code(one.currency).number if ledger is None else ledger for one in instructions]
    scales = await _scales(queries, set(ledgers))
    accounts = await _accounts(queries, instructions, set(ledgers))
    errors: list[dict[str, str]] = []
    bodies = []
    for number, (one, of) in enumerate(zip(instructions, ledgers, strict=True), 1):
        path = f"{message.message} transaction {number}"
        if scales.get(of, minor_units(one.currency)) != minor_units(one.currency):
            errors.append(_error(path, f"ledger {of} counts other units than {one.currency} has", "AM03"))
        found = {}
        for name, account, code in (
            ("payer_account_id", one.debtor_account, "AC02"), ("payee_account_id", one.creditor_account, "AC03"),
        ):  # fmt: skip
            known = accounts.get((of, account), [])
            if len(known) == 1:
                found[name] = str(known[0])
            else:
                what = "is named by several accounts" if known else "is no account"
                errors.append(_error(path, f"{account} {what} of ledger {of}", code))
        bodies.append(
            {
                **found, "ledger": of, "currency": one.currency, "amount": one.amount,
                "end_to_end_id": one.end_to_end_id, "reference": (one.remittance or "").replace("\n", " "),
                **_execution(one),
            }
        )  # fmt: skip
    if errors:
        raise _wrong(errors)
    return bodies


def _execution(instruction: PaymentInstruction) -> dict[str, int]:
    """When it is to be executed, where its date is still to come: from the beginning of that day, UTC."""
    if instruction.requested_date is None:
        return {}
    try:
        day = date.fromisoformat(instruction.requested_date[:10])
    except ValueError:
        return {}
    begins = (day - date(1970, 1, 1)).days * 86_400_000_000
    return {"execute_at": begins} if begins > time.time_ns() // 1000 else {}


async def _scales(queries: Queries, ledgers: set[int]) -> dict[int, int]:
    """Digits after the point of the ledgers that have metadata."""
    rows = await queries.ask_primary(_LEDGERS, {"ledgers": list(ledgers)})
    return {int(row["ledger"]): int(row["scale"]) for row in rows}


async def _accounts(
    queries: Queries, instructions: Iterable[PaymentInstruction], ledgers: set[int]
) -> dict[tuple[int, str], list[int]]:
    """(ledger, as the message names it) -> accounts."""
    named = {account for one in instructions for account in (one.debtor_account, one.creditor_account)}
    found = {
        (ledger, account): [number]
        for account in named if (number := _account_number(account)) is not None
        for ledger in ledgers
    }  # fmt: skip
    ibans = [account for account in named if iban_valid(account)]
    if ibans:
        for row in await queries.ask_primary(_BY_IBAN, {"ledgers": list(ledgers), "ibans": ibans}):
            found.setdefault((int(row["ledger"]), row["iban"]), []).append(int(row["account_id"]))
    return found


def _account_number(text: str) -> int | None:
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text, 0)
    return number if 0 < number <= MAX_ACCOUNT else None


# --- reports ----------------------------------------------------------------------------------------------------------


def _report(message: CreditTransfers, report_id: str, documents: Sequence[Mapping[str, Any]]) -> bytes:
    """pacs.002 or pain.002 of what became of each payment; ``documents`` as JSON clients get them."""
    statuses = [
        TransactionStatus(instruction, *_status(document), reference=str(document["payment_id"]))
        for instruction, document in zip(message.instructions, documents, strict=True)
    ]
    all_of_them = {entry.status for entry in statuses}
    group: str | None = None
    if len(all_of_them) == 1:
        group = statuses[0].status if statuses[0].status in GROUP_STATUSES else None
    elif "RJCT" in all_of_them:
        group = "PART"
    return write_status_report(message, report_id, _now(), statuses, group)


def _status(document: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """ISO status, ISO reason and words: where a payment is, or RCVD where that is not known yet."""
    if document["status"] == "ACCEPTED":
        return "RCVD", None, None
    status, reason = Status[document["status"]], Reason[document.get("reason", "none")]
    if status not in (Status.REJECTED, Status.BLOCKED, Status.FAILED, Status.EXPIRED, Status.CANCELLED):
        return ISO_STATUS[status], None, None
    return ISO_STATUS[status], ISO_REASON[reason] or None, reason.name


# --- statements -------------------------------------------------------------------------------------------------------


async def _statement(queries: Queries, account: str, ledger: int, day: date) -> bytes:
    currency = await _currency(queries, ledger)
    account_id = _account_number(account)
    if account_id is None:
        if not iban_valid(account):
            raise _bad("account", "must be an IBAN or the number of an account")
        found = await queries.ask_primary(_BY_IBAN, {"ledgers": [ledger], "ibans": [account]})
        if len(found) != 1:
            raise Problem("not-found", f"The IBAN is that of {len(found)} accounts of ledger {ledger}.")
        account_id = int(found[0]["account_id"])
    since = (day - date(1970, 1, 1)).days * DAY_NANOSECONDS
    debited = credited = 0
    try:
        before = await queries.balance(account_id, ledger, since - 1, 0, 0)
        debited, credited = int(before["debits_posted"]), int(before["credits_posted"])
    except Problem as problem:
        if problem.kind.slug != "not-found":  # it was opened later, or is not there, which the entries tell
            raise
    opening = credited - debited
    booked: list[tuple[Mapping[str, Any], int]] = []
    async with aclosing(queries.entries(account_id, ledger, since, since + DAY_NANOSECONDS - 1)) as pieces:
        async for rows in pieces:
            for row in rows:
                change = int(row["credits_posted"]) - credited - int(row["debits_posted"]) + debited
                debited, credited = int(row["debits_posted"]), int(row["credits_posted"])
                if change:
                    booked.append((row, change))
            if len(booked) > MAX_ENTRIES:
                raise Problem("too-large", f"More than {MAX_ENTRIES} entries; take statement.csv, which has no limit.")
    entries = await _entries(queries, ledger, booked, day)
    own = await _ibans(queries, ledger, [account_id])
    digest = hashlib.sha256(f"{ledger} {account_id} {day}".encode()).hexdigest()
    try:
        return write_statement(
            digest[:32], _now(), own.get(account_id, _name(account_id)), currency, opening, entries, str(day), str(day),
            sequence=(day - date(1970, 1, 1)).days, closed=day < datetime.now(UTC).date(),
        )  # fmt: skip
    except ValueError as error:
        raise _wrong([_error("Stmt", str(error), "NARR")]) from None


async def _entries(
    queries: Queries, ledger: int, booked: Sequence[tuple[Mapping[str, Any], int]], day: date
) -> list[StatementEntry]:
    counterparties = {int(row["counterparty_account_id"]) for row, _ in booked}
    ibans = await _ibans(queries, ledger, counterparties) if counterparties else {}
    payments = [found.payment_id for row, _ in booked if (found := transfer_of(int(row["transfer_id"]))) is not None]
    texts: dict[int, Mapping[str, Any]] = {}
    if payments:
        place = {"shard": ledger % PAYMENTS_SHARDS, "ids": [str(payment_id) for payment_id in payments]}
        texts = {int(row["payment_id"]): row for row in await queries.ask_primary(_PAYMENTS, place)}
    entries = []
    for row, change in booked:
        transfer, other = int(row["transfer_id"]), int(row["counterparty_account_id"])
        payment = transfer_of(transfer)
        text = texts.get(payment.payment_id, {}) if payment is not None else {}
        entries.append(
            StatementEntry(
                reference=f"{transfer:032x}",
                amount=abs(change),
                credit=change > 0,
                booked_on=str(day),
                end_to_end_id=_printable(text.get("end_to_end_id", ""), 35),
                counterparty_account=ibans.get(other, _name(other)),
                remittance=_printable(text.get("reference", ""), 140),
            )
        )
    return entries


async def _currency(queries: Queries, ledger: int) -> str:
    """The ledger's currency, whose units it must count in; raises `Problem` 400."""
    for row in await queries.ask_primary(_LEDGERS, {"ledgers": [ledger]}):
        currency = row["currency"]
        if currency is None or minor_units(currency) != int(row["scale"]):
            raise _bad("ledger", "does not count the minor units of a currency, so it has no camt.053")
        return str(currency)
    try:
        return by_number(ledger).code
    except UnknownCurrency:
        raise _bad("ledger", "has no currency; PUT /v1/ledgers/{ledger} says which") from None


async def _ibans(queries: Queries, ledger: int, accounts: Iterable[int]) -> dict[int, str]:
    rows = await queries.ask_primary(_IBANS, {"ledger": ledger, "accounts": [str(account) for account in accounts]})
    return {int(row["account_id"]): row["iban"] for row in rows if iban_valid(row["iban"] or "")}


def _name(account_id: int) -> str:
    """An account's number in the 34 characters that the schema has for it."""
    text = str(account_id)
    return text if len(text) <= 34 else f"0x{account_id:032x}"


def _printable(text: str, most: int) -> str | None:
    return "".join(character if character.isprintable() else " " for character in text)[:most].strip() or None


# --- what both use ----------------------------------------------------------------------------------------------------


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ledger(request: web.Request) -> int | None:
    text = request.query.get("ledger")
    if text is None:
        return None
    if not _LEDGER.fullmatch(text) or int(text) >= 2**32:
        raise _bad("ledger", "must be an integer below 2^32")
    return int(text)


def _day(request: web.Request) -> date:
    text = request.query.get("date", "")
    try:
        found = date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        found = None
    if found is None or not FIRST_DAY <= found < datetime.now(UTC).date() + timedelta(days=1):
        raise _bad("date", f"must be a day from {FIRST_DAY} to today, UTC, as YYYY-MM-DD")
    return found


def _known(request: web.Request, *names: str) -> None:
    for name in request.query:
        if name not in names:
            raise _bad(name[:40], f"is unknown here; there are {', '.join(names)}")


def _bad(name: str, must: str) -> Problem:
    return Problem("bad-parameter", f"{name}: {must}.", parameter=name)


def _error(path: str, detail: str, code: str) -> dict[str, str]:
    return {"pointer": path, "detail": detail, "reason": code}


def _wrong(errors: Sequence[Mapping[str, str]]) -> Problem:
    first = errors[0]
    return Problem(
        "invalid-iso20022", f"{first['pointer'] or 'The message'}: {first['detail']}.", errors=errors[:MAX_ERRORS]
    )


# --- the document -----------------------------------------------------------------------------------------------------

ISO20022_PROBLEMS: Final = (
    "bad-header", "bad-parameter", "empty-body", "unauthorized", "insufficient-scope", "not-found", "body-timeout",
    "idempotency-key-in-use", "ambiguous-id", "too-large", "unsupported-media-type", "invalid-iso20022",
    "invalid-event", "idempotency-key-reused", "rate-limited", "internal", "log-unavailable", "overloaded",
    "store-unavailable", "issuer-unavailable",
)  # fmt: skip


def iso20022_paths(problems: dict[str, Any]) -> dict[str, Any]:
    """The paths; ``problems`` are the answers of `ISO20022_PROBLEMS`."""
    ledger = {"name": "ledger", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}}

    def header(name: str, text: str) -> dict[str, Any]:
        return {"name": name, "in": "header", "schema": {"type": "string"}, "description": text}

    def answer(text: str) -> dict[str, Any]:
        return {"description": text, "content": {XML: {"schema": {"type": "string"}}}}

    return {
        "/v1/iso20022/messages": {
            "post": {
                "tags": ["Payments"],
                "operationId": "sendIso20022Message",
                "summary": "Payments by pacs.008 or pain.001, answered by pacs.002 or pain.002",
                "security": [{"oauth": ["payments:write"]}],
                "parameters": [
                    {**ledger, "description": "The accounts' ledger; by default the currency's number in ISO 4217."},
                    header("Idempotency-Key", "Unique for this request; by default the message's own id (MsgId)."),
                    header("Prefer", "`wait=N`: report when the payments rest, at most after N seconds."),
                ],
                "requestBody": {
                    "required": True,
                    "content": {media: {"schema": {"type": "string"}} for media in MEDIA_TYPES},
                },
                "responses": {
                    "201": answer("With `Prefer: wait`: the report of where each payment came to rest."),
                    "202": answer("The report; Kafka holds the payments (RCVD), and their way goes on."),
                    **problems,
                },
            }
        },
        "/v1/iso20022/accounts/{account}/statement": {
            "get": {
                "tags": ["Queries"],
                "operationId": "getIso20022Statement",
                "summary": "An account's day as camt.053",
                "security": [{"oauth": ["ledger:read"]}],
                "parameters": [
                    {
                        "name": "account", "in": "path", "required": True, "schema": {"type": "string"},
                        "description": "IBAN or number.",
                    },
                    {**ledger, "required": True},
                    {
                        "name": "date", "in": "query", "required": True, "schema": {"type": "string", "format": "date"},
                        "description": "The day, UTC.",
                    },
                ],
                "responses": {"200": answer("The statement."), **problems},
            }
        },
    }  # fmt: skip
