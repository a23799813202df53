"""trading.v1.TradingService: orders by gRPC; see api/proto/trading.proto for what a client may rely on.

Commands take the way of the REST routes: the same codec, limits, batcher and report reader. Requests that arrive while
a frame is on its way to Kafka leave together in the next one, be they of one stream or of many; events that come up
while a stream's message is being written leave together in its next.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from api.auth import Principal
from api.batching import BufferFull, DeliveryError, Placed, Run
from api.grpc_auth import GrpcAccess, answering, status_of
from api.logs import log
from api.order_messages import command_row, report_message
from api.problems import Problem
from api.proto import trading_pb2 as pb
from api.proto.trading_pb2_grpc import TradingServiceServicer, add_TradingServiceServicer_to_server
from api.reports import AccountListener, Asked, ReportReader, ReportWaiter, Told, answers
from api.trading import Trading, not_granted
from pipelines.codec import HeapBuilder
from pipelines.frames import Events
from pipelines.trading.routing import shard_of

__all__ = ["TradingService"]

SCOPE: Final = "orders:write"
REPORT_SECONDS: Final = 30.0
"""How long a unary call waits for reports when its deadline is later, or it has none."""
DEADLINE_MARGIN_SECONDS: Final = 0.05
UNREAD_EVENTS: Final = 50_000
"""Events that a stream's client may leave unread before the stream ends."""
EVENTS_PER_MESSAGE: Final = 1_000
RECHECK_SECONDS: Final = 5.0
"""How often a stream's token is looked at again while no request comes."""


@dataclass(slots=True)
class _Gathered:
    """Commands for one shard."""

    rows: list[list[int]] = field(default_factory=list)
    heap: HeapBuilder = field(default_factory=HeapBuilder)
    asked: list[Asked] = field(default_factory=list)

    def add(self, number: int, kind: str, request: Any) -> None:
        """Raises `Problem`, and adds nothing."""
        self.rows.append(command_row(kind, request, self.heap))
        self.asked.append(Asked(number, request.order_id, request.account.encode()))

    def events(self) -> Events:
        return Events(np.array(self.rows, np.int64), self.heap.array())


class TradingService(TradingServiceServicer):
    """The service of one worker."""

    def __init__(self, trading: Trading, access: GrpcAccess) -> None:
        self._trading = trading
        self._access = access

    def add_to(self, server: Any) -> None:
        add_TradingServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def PlaceOrder(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        return await self._unary("place", request, context)

    async def CancelOrder(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._unary("cancel", request, context)

    async def AmendOrder(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._unary("amend", request, context)

    async def OrderStream(self, requests: Any, context: Any) -> Any:  # noqa: N802
        async with answering(context):
            stream = _Stream(self, self._access, await self._access.principal(context, SCOPE))
            async for event in stream.run(requests):
                yield event

    def submit(
        self, shard: int, gathered: _Gathered, listener: AccountListener | None = None
    ) -> list[tuple[Run, ReportWaiter]]:
        """Put commands on their way; raises `Problem`, and then none of them is."""
        runs = self._trading.batcher.runs(shard, gathered.events())
        sent, start = [], 0
        for run in runs:
            waiter = self.reports.waiter(listener, gathered.asked[start : start + len(run.events)])
            run.expect = partial(self.reports.expect, waiter)
            sent.append((run, waiter))
            start += len(run.events)
        try:
            self._trading.batcher.submit(runs)
        except BufferFull as error:
            raise Problem("overloaded", f"{error}.", retry_after=1) from error
        return sent

    @property
    def reports(self) -> ReportReader:
        return self._trading.reports

    async def charge(self, account: str, commands: int) -> None:
        """Count commands against an account's limit; raises `Problem` 429."""
        await self._trading.accounts_limit.charge(account, commands)

    async def _unary(self, kind: str, request: Any, context: Any) -> Any:
        async with answering(context):
            principal = await self._access.principal(context, SCOPE, cost=1)
            _check(principal, request)
            gathered = _Gathered()
            gathered.add(1, kind, request)
            await self.charge(request.account, 1)
            [(run, waiter)] = self.submit(shard_of(request.symbol), gathered)
            remaining = context.time_remaining()
            seconds = REPORT_SECONDS if remaining is None else remaining - DEADLINE_MARGIN_SECONDS
            try:
                placed = await asyncio.shield(run.placed)
                response = pb.OrderResponse(place=_place(placed))
                async with asyncio.timeout(max(0.0, min(seconds, REPORT_SECONDS))):
                    _, events = await waiter.answer
                response.reports.extend(_own_reports(gathered.asked[0], events, run.shard))
            except DeliveryError as error:
                raise _unacknowledged(error) from error
            except TimeoutError:
                pass
            finally:
                self.reports.forget(waiter)
            return response


class _Stream:
    """One OrderStream: a task reads requests, `run` yields events."""

    def __init__(self, service: TradingService, access: GrpcAccess, principal: Principal) -> None:
        self._service = service
        self._access = access
        self._principal = principal
        self._events: list[Any] = []
        self._wake = asyncio.Event()
        self._waiters: set[ReportWaiter] = set()
        self._is_read = False
        self._problem: Problem | None = None
        self._listener = AccountListener(self._hear)

    async def run(self, requests: Any) -> AsyncIterator[Any]:
        tasks = [asyncio.create_task(self._read(requests)), asyncio.create_task(self._recheck())]
        try:
            while True:
                if self._problem is not None:
                    raise self._problem
                if self._events:
                    leaving, self._events = self._events[:EVENTS_PER_MESSAGE], self._events[EVENTS_PER_MESSAGE:]
                    yield pb.OrderEvents(events=leaving)
                elif self._is_read and not self._waiters:
                    return
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            for task in tasks:
                task.cancel()
            self._service.reports.unlisten(self._listener)
            for waiter in self._waiters:
                self._service.reports.forget(waiter)

    async def _read(self, requests: Any) -> None:
        try:
            async for message in requests:
                await self._take(message.requests)
        except Problem as problem:
            self._problem = problem
        except Exception:
            log().exception("order stream failed")
            self._problem = Problem("internal", "Something broke here.")
        self._is_read = True
        self._wake.set()

    async def _take(self, requests: Sequence[Any]) -> None:
        principal = self._still()  # a token that no longer holds ends the stream
        try:
            await self._access.limiter.charge(principal.client_id, max(1, len(requests)))
        except Problem as problem:
            self._refuse((request.request_id for request in requests), problem)
            return
        commands: list[tuple[int, str, Any]] = []
        for request in requests:
            number, kind = request.request_id, request.WhichOneof("request")
            try:
                if kind is None or not number:
                    raise Problem("invalid-event", "request_id must be from 1, and one of the requests must be set.")
                body = getattr(request, kind)
                if kind == "listen":
                    _check_account(principal, body.account)
                    self._service.reports.listen(self._listener, body.account.encode())
                    self._put(pb.OrderEvent(request_id=number, listening=pb.Listening(account=body.account)))
                else:
                    _check(principal, body)
                    commands.append((number, kind, body))
            except Problem as problem:
                self._refuse((number,), problem)
        for shard, gathered in (await self._gathered(commands)).items():
            self._submit(shard, gathered)

    async def _gathered(self, commands: list[tuple[int, str, Any]]) -> dict[int, _Gathered]:
        """The commands that are right and within their account's limit, by shard."""
        refused: dict[str, Problem] = {}
        for account, count in Counter(body.account for _, _, body in commands).items():
            try:
                await self._service.charge(account, count)
            except Problem as problem:
                refused[account] = problem
        found: defaultdict[int, _Gathered] = defaultdict(_Gathered)
        for number, kind, body in commands:
            try:
                if body.account in refused:
                    raise refused[body.account]
                found[shard_of(body.symbol)].add(number, kind, body)
            except Problem as problem:
                self._refuse((number,), problem)
        return found

    def _submit(self, shard: int, gathered: _Gathered) -> None:
        for asked in gathered.asked:
            if asked.account not in self._listener.accounts:
                self._service.reports.listen(self._listener, asked.account)
        try:
            sent = self._service.submit(shard, gathered, self._listener)
        except Problem as problem:
            self._refuse((asked.number for asked in gathered.asked), problem)
            return
        for run, waiter in sent:
            self._waiters.add(waiter)
            run.placed.add_done_callback(partial(self._placed, waiter))
            waiter.answer.add_done_callback(partial(self._answered, waiter))

    def _placed(self, waiter: ReportWaiter, placed: asyncio.Future[Placed]) -> None:
        error = None if placed.cancelled() else placed.exception()
        if error is not None and waiter in self._waiters:
            self._waiters.remove(waiter)
            self._service.reports.forget(waiter)
            self._refuse((asked.number for asked in waiter.asked), _unacknowledged(error))

    def _answered(self, waiter: ReportWaiter, answer: asyncio.Future[tuple[int, Events]]) -> None:
        self._waiters.discard(waiter)
        self._wake.set()

    def _hear(self, reports: list[Told], heap: bytes, shard: int) -> None:
        for row, number, of_maker in reports:
            report = report_message(row, heap, shard, of_maker=of_maker)
            self._put(pb.OrderEvent(request_id=number, report=report))

    def _refuse(self, numbers: Iterable[int], problem: Problem) -> None:
        refusal = pb.Refusal(code=status_of(problem).name, detail=problem.detail)
        for number in numbers:
            self._put(pb.OrderEvent(request_id=number, refusal=refusal))

    def _put(self, event: Any) -> None:
        if len(self._events) >= UNREAD_EVENTS:
            if self._problem is None:
                self._problem = Problem("rate-limited", f"{UNREAD_EVENTS} events were not read; read faster.")
        else:
            self._events.append(event)
        self._wake.set()

    def _still(self) -> Principal:
        """Who calls, as they are by now; raises `Problem` when the token no longer holds."""
        self._principal = self._access.current(self._principal)
        return self._principal

    async def _recheck(self) -> None:
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            try:
                principal = self._still()
                for account in sorted(self._listener.accounts):
                    _check_account(principal, account.decode())
            except Problem as problem:
                self._problem = problem
                self._wake.set()
                return


def _check(principal: Principal, request: Any) -> None:
    """Raises `Problem` for a command whose account the caller may not trade, or that says no account or symbol."""
    _check_account(principal, request.account)
    if not request.symbol:
        raise Problem("invalid-event", "symbol: must not be empty.")


def _check_account(principal: Principal, account: str) -> None:
    if not account:
        raise Problem("invalid-event", "account: must not be empty.")
    if not principal.may_trade(account):
        raise not_granted(account)


def _unacknowledged(error: BaseException) -> Problem:
    return Problem("log-unavailable", f"Kafka did not acknowledge in time: {error}.", retry_after=2)


def _place(placed: Placed) -> Any:
    return pb.Place(shard=placed.shard, offset=placed.offset, trace=placed.trace)


def _own_reports(asked: Asked, events: Events, shard: int) -> list[Any]:
    """The reports that answer a command and concern its order or account: not those of others that it set off."""
    heap = events.heap.tobytes()
    return [report_message(row, heap, shard) for row in events.rows.tolist() if answers(asked, row, heap)]
