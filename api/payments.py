"""The payments gateway: REST under /v1/payments.

A write is recorded in Postgres with its idempotency key, the commands it became and its audit entry; then the commands
go to payments.commands; then it is answered, and the answer kept. 202 says that Kafka holds it on all in-sync replicas.
With `Prefer: wait=N` the answer says where the payment came to rest, if it does within N seconds. A repeat of a request
that was never answered sends the stored commands again, with the same ids.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web

from api.auth import Authenticator, Principal
from api.batching import Batcher, BufferFull, DeliveryError, Run
from api.bodies import BodyReader
from api.config import ApiSettings
from api.idempotency import parse_key
from api.ingest import preferred_wait
from api.logs import log
from api.payment_requests import PaymentStore, Recorded, Request
from api.payment_watch import Changes, PaymentWatch, rests
from api.payments_openapi import ACTIONS, GIVEN_BY_THE_API
from api.problems import Problem, problem_response
from api.producer import KafkaSender
from api.rate_limit import RateLimiter
from api.results import ResultReader, Waiter
from infra.registry import schema_ids
from infra.settings import Settings
from pipelines.catalogue import PAYMENTS_COMMANDS, PAYMENTS_RESULTS, PAYMENTS_SHARDS, PIPELINES
from pipelines.codec import codec_of
from pipelines.errors import FieldError, StreambankError
from pipelines.event_json import parse_events, render_events
from pipelines.payments.records import MAX_PAYMENT_ID

__all__ = ["PaymentsGateway", "add_payment_routes"]

MAX_BATCH: Final = 100
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
LATEST: Final = 7_258_118_400_000_000
REGISTRY_RETRY_SECONDS: Final = 1.0
_REFUSED: Final = frozenset({"not_possible", "busy", "amount_too_large", "exists_with_different_fields"})
_CODEC: Final = codec_of(PAYMENTS_COMMANDS.name)
_RESULTS: Final = codec_of(PAYMENTS_RESULTS.name)

Command = dict[str, Any]


class PaymentsGateway:
    """Everything of one worker that payments need."""

    def __init__(self, settings: Settings, config: ApiSettings, limiter: RateLimiter) -> None:
        self._settings = settings
        self._config = config
        self._limiter = limiter
        self._store = PaymentStore(settings, timeout=config.store_seconds, in_flight=config.payments_in_flight)
        self._sender = KafkaSender(settings, PAYMENTS_COMMANDS, config.delivery_seconds)
        self._batcher = Batcher(
            _CODEC,
            self._sender,
            shards=PAYMENTS_SHARDS,
            frame_events=min(config.frame_events, PIPELINES["payments"].max_frame_events),
            frame_bytes=config.frame_bytes,
            frames_in_flight=config.frames_in_flight,
            linger_seconds=config.linger_seconds,
            buffered_events=config.buffered_events,
        )
        self._results = ResultReader(settings, PAYMENTS_RESULTS)
        self._watch = PaymentWatch(settings)
        self._learning: asyncio.Task[None] | None = None

    async def open(self, patience: float) -> None:
        """Ready after at most ``patience`` seconds, with or without Kafka and registry: writes then get 503."""
        self._learning = asyncio.create_task(self._learn_schema_id())
        await asyncio.gather(
            asyncio.wait([self._learning], timeout=patience),
            asyncio.to_thread(self._results.wait_ready, patience),
            asyncio.to_thread(self._watch.wait_ready, patience),
            self._store.open(),
        )

    async def close(self) -> None:
        if self._learning is not None:
            self._learning.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_seconds):
                await self._batcher.drain()
        for part in (self._sender, self._results, self._watch):
            await asyncio.to_thread(part.close)
        await self._store.close()

    async def _learn_schema_id(self) -> None:
        while self._sender.schema_id is None:
            try:
                found = await asyncio.to_thread(schema_ids, self._settings)
                self._sender.schema_id = found[PAYMENTS_COMMANDS.name]
            except (StreambankError, KeyError) as error:
                log().warning("payments: the schema id is not known yet", error=str(error))
                await asyncio.sleep(REGISTRY_RETRY_SECONDS)

    # --- writes -------------------------------------------------------------------------------------------------------

    async def write(self, request: web.Request, principal: Principal, action: str) -> web.Response:
        """``action``: create, batch, or one of `ACTIONS`."""
        key = parse_key(request.headers.get("Idempotency-Key"))
        wait = preferred_wait(request.headers.getall("Prefer", []), self._config.wait_seconds)
        endpoint = request.match_info.route.resource.canonical if request.match_info.route.resource else request.path
        fingerprint = hashlib.sha256(request.path.encode() + b"\0")
        body = await self._body(request, fingerprint.update)
        identity = Request(principal.client_id, endpoint, key, fingerprint.hexdigest())
        commands = self._commands(action, request.match_info.get("id", ""), body, identity)
        allowance = await self._limiter.charge(principal.client_id, len(commands))
        recorded = await self._store.record(
            identity, commands, trace_id=request["trace_id"], remote=request.remote or ""
        )
        if recorded.status:
            return _replayed(recorded)
        response: web.Response | None = None
        try:
            response = await self._answer(recorded.commands, action, wait)
        except Problem as problem:
            if problem.status >= 500:
                raise
            response = problem_response(problem, request["trace_id"])
        finally:
            if response is None:
                await asyncio.shield(self._let_go(identity))
        assert isinstance(response.body, bytes)
        kept = {name: value for name, value in response.headers.items() if name in ("Location", "Preference-Applied")}
        with suppress(Problem):  # the payment is on its way; a repeat would find it by its id
            await self._store.answered(
                identity, response.status, response.body, {"Content-Type": response.content_type, **kept}
            )
        response.headers.update(allowance.headers())
        return response

    async def _let_go(self, identity: Request) -> None:
        with suppress(Problem):
            await self._store.unlock(identity)

    async def _body(self, request: web.Request, seen: Callable[[bytes], None]) -> dict[str, Any]:
        if request.content_type != "application/json" or request.headers.get("Content-Encoding"):
            raise Problem("unsupported-media-type", "Send application/json without a content encoding.")
        reader = BodyReader(
            request.content, limit=self._config.max_body_bytes, idle_seconds=self._config.idle_seconds, seen=seen
        )
        data = await reader.whole()
        if not data.strip():
            raise Problem("empty-body", "The body holds nothing; send a JSON object.")
        try:
            body = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Problem("malformed-json", f"The body is not JSON: {error}.") from None
        if not isinstance(body, dict):
            raise _invalid("", "must be a JSON object")
        return body

    def _commands(self, action: str, path_id: str, body: Mapping[str, Any], identity: Request) -> list[Command]:
        """The commands that a body asks for, checked against the schema. Raises `Problem` 422."""
        seed = "\0".join((identity.tenant, identity.endpoint, identity.key))
        digest = hashlib.sha256(seed.encode(errors="surrogatepass")).digest()
        if action in ACTIONS:
            command_id = int.from_bytes(digest[:16], "little") | 1
            return [_action(ACTIONS[action], path_id, body, command_id)]
        items: Any = [body]
        if action == "batch":
            items = body.get("payments")
            if set(body) != {"payments"} or not isinstance(items, list) or not 1 <= len(items) <= MAX_BATCH:
                raise _invalid("/payments", f"must be a list of 1 to {MAX_BATCH} payments, and all that is there")
        now = time.time_ns() // 1000
        commands = []
        for index, item in enumerate(items):
            pointer = f"/payments/{index}" if action == "batch" else ""
            key = f"{digest.hex()[:32]}-{index}"
            commands.append(_create(item, pointer, key, now))
        if len({str(command["payment_id"]) for command in commands}) < len(commands):
            raise _invalid("/payments", "two payments have the same payment_id")
        return commands

    async def _answer(self, commands: Sequence[Command], action: str, wait: float) -> web.Response:
        deadline = asyncio.get_running_loop().time() + wait
        waits = wait > 0 and self._results.ready and self._watch.ready
        ids = [int(command["payment_id"]) for command in commands]
        waiters: list[Waiter] = []
        with ExitStack() as watches:
            changes = [watches.enter_context(self._watch.watching(payment_id)) for payment_id in ids] if waits else []
            try:
                waiters = await self._send(commands, waits)
                rested = await self._rested(waiters, changes, deadline) if waits else [None] * len(ids)
            finally:
                for waiter in waiters:
                    self._results.forget(waiter)
        documents = [
            found or {"payment_id": _plain_id(payment_id), "ledger": command.get("ledger"), "status": "ACCEPTED"}
            for payment_id, command, found in zip(ids, commands, rested, strict=True)
        ]
        status = 202 if None in rested else 200 if action in ACTIONS else 201
        headers = {"Preference-Applied": f"wait={wait:g}"} if waits and None not in rested else {}
        if action != "batch":
            headers["Location"] = f"/v1/payments/{ids[0]}?ledger={commands[0]['ledger']}"
        document: Any = {"payments": documents} if action == "batch" else documents[0]
        return web.Response(
            status=status, body=msgspec.json.encode(document), content_type="application/json", headers=headers
        )

    async def _send(self, commands: Sequence[Command], waits: bool) -> list[Waiter]:
        """Send the commands, each shard's in their order, and return once Kafka has all; with one waiter for the
        result of each command. Raises `Problem` 503."""
        runs: list[Run] = []
        waiters: list[Waiter] = []
        for command in commands:
            fields = {
                name: value for name, value in command.items() if name != "ledger" or "payer_account_id" in command
            }
            events = parse_events(_CODEC, [fields])
            [run] = self._batcher.runs(int(command["ledger"]) % PAYMENTS_SHARDS, events)
            if waits:
                waiter = self._results.waiter()
                waiters.append(waiter)
                run.expect = partial(self._results.expect, waiter)
            runs.append(run)
        try:
            self._batcher.submit(runs)
            for run in runs:
                await asyncio.shield(run.placed)
        except BufferFull as error:
            raise Problem("overloaded", f"{error}.", retry_after=1) from error
        except DeliveryError as error:
            raise Problem(
                "log-unavailable", f"Kafka did not acknowledge in time ({error}); repeat with the same key.",
                retry_after=2,
            ) from error  # fmt: skip
        return waiters

    async def _rested(
        self, waiters: Sequence[Waiter], changes: Sequence[Changes], deadline: float
    ) -> list[dict[str, Any] | None]:
        """Where each payment came to rest, None where it did not in time. Raises `Problem` 409 or 404 when a client's
        command was refused."""
        rested: list[dict[str, Any] | None] = []
        for waiter, queue in zip(waiters, changes, strict=True):
            found: dict[str, Any] | None = None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    _, events = await waiter.answer
                    [result] = render_events(_RESULTS, events)
                    _check(result)
                    if result["result"] == "repeated":
                        found = {name: result[name] for name in ("payment_id", "status", "reason", "version")}
                    while found is None:
                        event = await queue.get()
                        if event["version"] >= result["version"] and rests(event):
                            found = {name: value for name, value in event.items() if name != "type"}
            rested.append(found)
        return rested

    # --- reads --------------------------------------------------------------------------------------------------------

    async def get(self, request: web.Request, principal: Principal) -> web.Response:
        allowance = await self._limiter.charge(principal.client_id, 1)
        _known(request, "ledger")
        payment_id = _path_id(request.match_info["id"])
        ledger = _number(request, "ledger", 2**32 - 1)
        return _json(await self._store.payment(payment_id, ledger), allowance.headers())

    async def list_payments(self, request: web.Request, principal: Principal) -> web.Response:
        allowance = await self._limiter.charge(principal.client_id, 1)
        _known(request, "account_id", "ledger", "since", "until", "limit")
        account, ledger = _number(request, "account_id", 2**128 - 1), _number(request, "ledger", 2**32 - 1)
        if account is None or ledger is None:
            raise _bad("account_id" if account is None else "ledger", "is needed")
        since, until = _number(request, "since", LATEST), _number(request, "until", LATEST)
        limit = _number(request, "limit", MAX_PAGE)
        page = await self._store.payments_of(
            account, ledger, since or 0, LATEST if until is None else until, limit or DEFAULT_PAGE
        )
        return _json(page, allowance.headers())


def add_payment_routes(
    app: web.Application, parts: Callable[[web.Request], tuple[PaymentsGateway, Authenticator]]
) -> None:
    """The routes of this module; ``parts`` finds the worker's gateway and authenticator."""

    async def write(action: str, request: web.Request) -> web.StreamResponse:
        gateway, authenticator = parts(request)
        principal = await authenticator.principal(request.headers.get("Authorization"), "payments:write")
        return await gateway.write(request, principal, action)

    async def read(many: bool, request: web.Request) -> web.StreamResponse:
        gateway, authenticator = parts(request)
        principal = await authenticator.principal(request.headers.get("Authorization"), "payments:read")
        return await (gateway.list_payments if many else gateway.get)(request, principal)

    app.router.add_post("/v1/payments", partial(write, "create"))
    app.router.add_get("/v1/payments", partial(read, True))
    app.router.add_post("/v1/payments/batch", partial(write, "batch"))
    app.router.add_get("/v1/payments/{id}", partial(read, False))
    for action in ACTIONS:
        app.router.add_post(f"/v1/payments/{{id}}/{action}", partial(write, action))


def _create(item: Any, pointer: str, key: str, now: int) -> Command:
    if not isinstance(item, dict):
        raise _invalid(pointer, "must be a JSON object")
    given = GIVEN_BY_THE_API & item.keys()
    if given:
        raise _invalid(f"{pointer}/{sorted(given)[0]}", "is given by the API; leave it out")
    command = {"type": "CreatePayment", "requested_at": now, **item, "idempotency_key": key}
    if command.get("payment_id") is None:
        command["payment_id"] = str(now // 1000 << 48 | int.from_bytes(os.urandom(6), "big"))
    checked = _checked(command, pointer)
    if not 0 < int(checked["payment_id"]) <= MAX_PAYMENT_ID:
        raise _invalid(f"{pointer}/payment_id", "must be between 1 and 2^96 - 1")
    return checked


def _action(kind: str, path_id: str, body: Mapping[str, Any], command_id: int) -> Command:
    given = (GIVEN_BY_THE_API | {"payment_id"}) & body.keys()
    if given:
        raise _invalid(f"/{sorted(given)[0]}", "is given by the path or by the API; leave it out")
    ledger = body.get("ledger")
    if not isinstance(ledger, int) or isinstance(ledger, bool) or not 0 <= ledger < 2**32:
        raise _invalid("/ledger", "must be the payment's ledger, which finds its shard")
    fields = {name: value for name, value in body.items() if name != "ledger"}
    command = {"type": kind, **fields, "payment_id": str(_path_id(path_id)), "command_id": str(command_id)}
    return _checked(command, "") | {"ledger": ledger}


def _checked(command: Command, pointer: str) -> Command:
    """The command with all its fields, as the schema has it; raises `Problem` 422."""
    try:
        [found] = render_events(_CODEC, parse_events(_CODEC, [command]))
    except FieldError as error:
        field = error.field.partition(".")[2]
        raise _invalid(f"{pointer}/{field}" if field else pointer, error.detail) from None
    return found


def _check(result: Mapping[str, Any]) -> None:
    what = result["result"]
    if what == "payment_not_found":
        raise Problem("not-found", f"There is no payment {result['payment_id']} in this ledger's shard.")
    if what in _REFUSED:
        raise Problem(
            "payment-conflict",
            f"The payment is {result['status']}: {what.replace('_', ' ')}.",
            result=what,
            payment_status=result["status"],
            retry_after=1 if what == "busy" else None,
        )


def _invalid(pointer: str, detail: str) -> Problem:
    return Problem(
        "invalid-event", "The body does not fit; nothing of it was accepted.",
        errors=[{"pointer": pointer, "detail": detail}],
    )  # fmt: skip


def _replayed(recorded: Recorded) -> web.Response:
    headers = dict(recorded.headers or {})
    content_type = headers.pop("Content-Type", "application/json")
    return web.Response(
        status=recorded.status,
        body=recorded.body,
        content_type=content_type,
        headers={**headers, "Idempotency-Replayed": "true"},
    )


def _bad(name: str, must: str) -> Problem:
    return Problem("bad-parameter", f"{name}: {must}.", parameter=name)


def _known(request: web.Request, *names: str) -> None:
    for name in request.query:
        if name not in names:
            raise _bad(name[:40], f"is unknown here; there are {', '.join(names)}")


def _path_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 30 and 0 < int(text) <= MAX_PAYMENT_ID):
        raise _bad("id", "must be a decimal number from 1 to 2^96 - 1")
    return int(text)


def _number(request: web.Request, name: str, most: int) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 40 and int(text) <= most):
        raise _bad(name, f"must be an integer from 0 to {most}")
    return int(text)


def _plain_id(payment_id: int) -> int | str:
    return payment_id if payment_id <= 2**53 else str(payment_id)


def _json(document: Any, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json", headers=headers)
