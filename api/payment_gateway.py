"""The payments gateway without a protocol: what `api.payments` (REST) and `api.grpc_payments` do to a payment.

A write is recorded in Postgres with its idempotency key, the commands it became and its audit entry; then the commands
go to payments.commands; then it is answered, and the answer kept. Status 202 says that Kafka holds it on all in-sync
replicas. A write that waits is told where the payment came to rest, if it does in time. A repeat of a request that was
never answered sends the stored commands again, with the same ids.

A worker does at most so many writes at once; more get 503 at once and cost little: those that were taken are answered
in time, instead of all of them late. One that has waited `LATE_SECONDS` for its status counts no more, so that those
that wait for a job that is away keep nobody out; and while `MOST_WAITING` wait, others are answered 202 at once.

Answers are those of HTTP, status and JSON body, whatever the protocol: that is how they are stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec

from api.batching import Batcher, BufferFull, DeliveryError, Run
from api.config import ApiSettings
from api.logs import log
from api.payment_requests import PaymentStore, Recorded, Request
from api.payment_watch import Changes, PaymentWatch, rests
from api.payments_openapi import ACTIONS, GIVEN_BY_THE_API, REVIEW
from api.problems import JSON_PROBLEM, Problem, problem_body
from api.producer import KafkaSender
from api.rate_limit import Allowance, RateLimiter
from api.results import ResultReader, Waiter
from infra.registry import schema_ids
from infra.settings import Settings
from pipelines.catalogue import PAYMENTS_COMMANDS, PAYMENTS_RESULTS, PAYMENTS_SHARDS, PIPELINES
from pipelines.codec import codec_of
from pipelines.errors import FieldError, StreambankError
from pipelines.event_json import parse_events, render_events
from pipelines.payments.records import MAX_PAYMENT_ID

__all__ = ["JSON", "MAX_ACCOUNT_ID", "Answer", "PaymentsGateway", "Turn", "Write", "payment_id_of"]

JSON: Final = "application/json"
MAX_BATCH: Final = 100
MAX_ACCOUNT_ID: Final = 2**128 - 1
MAX_NOTE_BYTES: Final = 1000
REGISTRY_RETRY_SECONDS: Final = 1.0
LATE_SECONDS: Final = 1.0
MOST_WAITING: Final = 1_000
_REFUSED: Final = frozenset({"not_possible", "busy", "amount_too_large", "exists_with_different_fields"})
_CODEC: Final = codec_of(PAYMENTS_COMMANDS.name)
_RESULTS: Final = codec_of(PAYMENTS_RESULTS.name)

Command = dict[str, Any]


class Turn:
    """A write's place among those that enter the log in an order: it comes when all before it did, or will not."""

    __slots__ = ("_before", "_passed")

    def __init__(self, before: Turn | None = None) -> None:
        self._before = None if before is None else before._passed
        self._passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def come(self) -> None:
        if self._before is not None:
            await asyncio.shield(self._before)

    def end(self) -> None:
        """The write was handed on, or never will be; who comes next still waits for those before. Harmless twice."""
        if self._before is None or self._before.done():
            self._pass()
        else:
            self._before.add_done_callback(self._pass)

    def _pass(self, _: object = None) -> None:
        if not self._passed.done():
            self._passed.set_result(None)


class _Places:
    """The writes that a worker does at once, at most so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self) -> Callable[[], None]:
        """What gives the place back, harmless twice; raises `Problem` 503."""
        if self._taken >= self._most:
            raise Problem("overloaded", "Too many payment requests are under way in this worker.", retry_after=1)
        self._taken += 1
        held = True

        def leave() -> None:
            nonlocal held
            self._taken -= held
            held = False

        return leave


@dataclass(frozen=True, slots=True)
class Write:
    """A write as a client asked for it. ``action``: create, batch, message (a batch of another size), review, limits,
    or one of `ACTIONS`; ``subject`` is the id that the address names, of a payment or of a payer's account. ``report``
    makes content type and body of an answer out of its payments, for who does not want JSON."""

    action: str
    subject: str
    body: Mapping[str, Any]
    identity: Request
    wait: float
    trace_id: str
    remote: str
    turn: Turn = field(default_factory=Turn)
    report: Callable[[Sequence[Mapping[str, Any]]], tuple[str, bytes]] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a write is answered, now or (``replayed``) for the first time it was asked."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    replayed: bool = False


class PaymentsGateway:
    """Everything of one worker that payments need."""

    def __init__(self, settings: Settings, config: ApiSettings, limiter: RateLimiter) -> None:
        self._settings = settings
        self._config = config
        self._limiter = limiter
        self._store = PaymentStore(
            settings, timeout=config.store_seconds, in_flight=config.payments_in_flight,
            gather_seconds=config.payments_gather_seconds,
        )  # fmt: skip
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
            together=True,
        )
        self._places = _Places(config.payments_in_flight)
        self._waiting = 0
        """Writes that wait for a status."""
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
                found = await asyncio.to_thread(schema_ids, [PAYMENTS_COMMANDS], self._settings)
                self._sender.schema_id = found[PAYMENTS_COMMANDS.name]
            except (StreambankError, KeyError) as error:
                log().warning("payments: the schema id is not known yet", error=str(error))
                await asyncio.sleep(REGISTRY_RETRY_SECONDS)

    # --- writes -------------------------------------------------------------------------------------------------------

    async def write(self, write: Write) -> tuple[Answer, Allowance]:
        """Do what is asked, once; an answer that says no is one too. Raises `Problem` for what is not kept."""
        try:
            leave = self._places.take()
            try:
                return await self._written(write, leave)
            finally:
                leave()
        finally:
            write.turn.end()

    async def _written(self, write: Write, leave: Callable[[], None]) -> tuple[Answer, Allowance]:
        identity = write.identity
        commands = self._commands(write)
        allowance = await self._limiter.charge(identity.tenant, len(commands))
        recorded = await self._store.record(identity, commands, trace_id=write.trace_id, remote=write.remote)
        if recorded.status:
            return _replayed(recorded), allowance
        answer: Answer | None = None
        try:
            answer = await self._answer(write, recorded.commands, leave)
        except Problem as problem:
            if problem.status >= 500:
                raise
            answer = Answer(problem.status, problem_body(problem, write.trace_id), JSON_PROBLEM, problem.headers)
        finally:
            if answer is None:
                await asyncio.shield(self._let_go(identity))
        kept = {name: value for name, value in answer.headers.items() if name in ("Location", "Preference-Applied")}
        with suppress(Problem):  # the payment is on its way; a repeat would find it by its id
            await self._store.answered(
                identity, answer.status, answer.body, {"Content-Type": answer.content_type, **kept}
            )
        return answer, allowance

    async def _let_go(self, identity: Request) -> None:
        with suppress(Problem):
            await self._store.unlock(identity)

    def _commands(self, write: Write) -> list[Command]:
        """The commands that a body asks for, checked against the schema. Raises `Problem` 422."""
        action, body, identity = write.action, write.body, write.identity
        seed = "\0".join((identity.tenant, identity.endpoint, identity.key))
        digest = hashlib.sha256(seed.encode(errors="surrogatepass")).digest()
        if action in ACTIONS:
            command_id = int.from_bytes(digest[:16], "little") | 1
            return [_action(ACTIONS[action], write.subject, body, {"command_id": str(command_id)})]
        if action == REVIEW:
            if len(str(body.get("note", "")).encode(errors="surrogatepass")) > MAX_NOTE_BYTES:
                raise _invalid("/note", f"must be at most {MAX_NOTE_BYTES} bytes")
            return [_action("ReviewDecision", write.subject, body, {"reviewer": identity.tenant})]
        if action == "limits":
            return [_limits(write.subject, body, time.time_ns() // 1000)]
        items: Any = [body]
        if action == "message":
            items = body["payments"]  # of `api.iso20022`, which has its own limit
        elif action == "batch":
            items = body.get("payments")
            if set(body) != {"payments"} or not isinstance(items, list) or not 1 <= len(items) <= MAX_BATCH:
                raise _invalid("/payments", f"must be a list of 1 to {MAX_BATCH} payments, and all that is there")
        now = time.time_ns() // 1000
        commands = []
        for index, item in enumerate(items):
            pointer = "" if action == "create" else f"/payments/{index}"
            key = f"{digest.hex()[:32]}-{index}"
            commands.append(_create(item, pointer, key, now))
        if len({str(command["payment_id"]) for command in commands}) < len(commands):
            raise _invalid("/payments", "two payments have the same payment_id")
        return commands

    async def _answer(self, write: Write, commands: Sequence[Command], leave: Callable[[], None]) -> Answer:
        action, wait = write.action, write.wait
        deadline = asyncio.get_running_loop().time() + wait
        if action == "limits":
            return await self._limits_answer(write, commands[0], deadline, leave)
        waits = wait > 0 and self._results.ready and self._watch.ready and self._waiting < MOST_WAITING
        ids = [int(command["payment_id"]) for command in commands]
        waiters: list[Waiter] = []
        with ExitStack() as watches:
            changes = [watches.enter_context(self._watch.watching(payment_id)) for payment_id in ids] if waits else []
            try:
                waiters = await self._send(commands, waits, write.turn)
                with self._wait(leave):
                    rested = await self._rested(waiters, changes, deadline) if waits else [None] * len(ids)
            finally:
                for waiter in waiters:
                    self._results.forget(waiter)
        documents = [
            found or {"payment_id": _plain_id(payment_id), "ledger": command.get("ledger"), "status": "ACCEPTED"}
            for payment_id, command, found in zip(ids, commands, rested, strict=True)
        ]
        status = 202 if None in rested else 200 if action in ACTIONS or action == REVIEW else 201
        headers = {"Preference-Applied": f"wait={wait:g}"} if waits and None not in rested else {}
        if action not in ("batch", "message"):
            headers["Location"] = f"/v1/payments/{ids[0]}?ledger={commands[0]['ledger']}"
        if write.report is not None:
            content_type, report = write.report(documents)
            return Answer(status, report, content_type, headers)
        document: Any = {"payments": documents} if action == "batch" else documents[0]
        return Answer(status, msgspec.json.encode(document), JSON, headers)

    async def _limits_answer(
        self, write: Write, command: Command, deadline: float, leave: Callable[[], None]
    ) -> Answer:
        """No payment comes to rest here: the limits hold when the job says so, else from when it gets to them."""
        waits = write.wait > 0 and self._results.ready
        waiters: list[Waiter] = []
        holds = False
        try:
            waiters = await self._send([command], waits, write.turn)
            with self._wait(leave), suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    for waiter in waiters:
                        await waiter.answer
                        holds = True
        finally:
            for waiter in waiters:
                self._results.forget(waiter)
        document = {name: value for name, value in command.items() if name not in ("type", "decided_at")}
        document["account_id"] = _plain_id(int(command["account_id"]))
        headers = {"Preference-Applied": f"wait={write.wait:g}"} if holds else {}
        return Answer(200 if holds else 202, msgspec.json.encode(document), JSON, headers)

    async def _send(self, commands: Sequence[Command], waits: bool, turn: Turn) -> list[Waiter]:
        """Send the commands, each shard's in their order, and return once Kafka has all; with one waiter for the
        result of each command. Raises `Problem` 503."""
        await turn.come()
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
            turn.end()
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

    @contextmanager
    def _wait(self, leave: Callable[[], None]) -> Iterator[None]:
        """A write waits for its status; when it is late, others get its place."""
        self._waiting += 1
        late = asyncio.get_running_loop().call_later(LATE_SECONDS, leave)
        try:
            yield
        finally:
            late.cancel()
            self._waiting -= 1

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

    async def payment(self, tenant: str, payment_id: int, ledger: int | None) -> tuple[dict[str, Any], Allowance]:
        """A payment with its timeline; raises `Problem` 404, 409, 429 or 503."""
        allowance = await self._limiter.charge(tenant, 1)
        return await self._store.payment(payment_id, ledger), allowance

    async def payments_of(
        self, tenant: str, account: int, ledger: int, since: int, until: int, limit: int
    ) -> tuple[dict[str, Any], Allowance]:
        """A page of an account's payments, newest first; raises `Problem` 429 or 503."""
        allowance = await self._limiter.charge(tenant, 1)
        return await self._store.payments_of(account, ledger, since, until, limit), allowance


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


def _action(kind: str, path_id: str, body: Mapping[str, Any], by_api: Mapping[str, str]) -> Command:
    given = (GIVEN_BY_THE_API | {"payment_id"}) & body.keys()
    if given:
        raise _invalid(f"/{sorted(given)[0]}", "is given by the path or by the API; leave it out")
    ledger = _ledger_of(body, "the payment's")
    fields = {name: value for name, value in body.items() if name != "ledger"}
    command = {"type": kind, **fields, "payment_id": str(payment_id_of(path_id)), **by_api}
    return _checked(command, "") | {"ledger": ledger}


def _limits(account: str, body: Mapping[str, Any], now: int) -> Command:
    given = (GIVEN_BY_THE_API | {"account_id"}) & body.keys()
    if given:
        raise _invalid(f"/{sorted(given)[0]}", "is given by the path or by the API; leave it out")
    if not (account.isascii() and account.isdigit() and len(account) < 40 and 0 < int(account) < MAX_ACCOUNT_ID):
        raise Problem("bad-parameter", "account: must be a decimal number from 1 to 2^128 - 2.", parameter="account")
    ledger = _ledger_of(body, "the account's")
    fields = {name: value for name, value in body.items() if name != "ledger"}
    command = {"type": "PayerLimits", **fields, "account_id": str(int(account)), "decided_at": now}
    return _checked(command, "") | {"ledger": ledger}


def _ledger_of(body: Mapping[str, Any], whose: str) -> int:
    ledger = body.get("ledger")
    if not isinstance(ledger, int) or isinstance(ledger, bool) or not 0 <= ledger < 2**32:
        raise _invalid("/ledger", f"must be {whose} ledger, which finds its shard")
    return ledger


def _checked(command: Command, pointer: str) -> Command:
    """The command with all its fields, as the schema has it; raises `Problem` 422."""
    try:
        [found] = render_events(_CODEC, parse_events(_CODEC, [command]))
    except FieldError as error:
        field = error.field.partition(".")[2]
        raise _invalid(f"{pointer}/{field}" if field else pointer, error.detail) from None
    for name, value in found.items():
        if isinstance(value, str) and "\0" in value:  # Postgres, which records the request, has no such character
            raise _invalid(f"{pointer}/{name}", "must not have a NUL character")
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


def _replayed(recorded: Recorded) -> Answer:
    headers = dict(recorded.headers or {})
    content_type = headers.pop("Content-Type", JSON)
    return Answer(recorded.status, recorded.body, content_type, headers, replayed=True)


def payment_id_of(text: str) -> int:
    """The payment id that an address names; raises `Problem` 400."""
    if not (text.isascii() and text.isdigit() and len(text) < 30 and 0 < int(text) <= MAX_PAYMENT_ID):
        raise Problem("bad-parameter", "id: must be a decimal number from 1 to 2^96 - 1.", parameter="id")
    return int(text)


def _plain_id(payment_id: int) -> int | str:
    return payment_id if payment_id <= 2**53 else str(payment_id)
