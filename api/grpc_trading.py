"""trading.v1.TradingService: orders by gRPC; see api/proto/trading.proto for what a client may rely on.

Commands take the way of the REST routes: the same codec, limits, batcher and report reader. Requests that arrive while
a frame is on its way to Kafka leave together in the next one, be they of one stream or of many.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import numpy as np

from api.auth import Principal
from api.batching import BufferFull, DeliveryError, Placed, Run
from api.grpc_auth import GrpcAccess, answering, status_of
from api.problems import Problem
from api.proto import trading_pb2 as pb
from api.proto.trading_pb2_grpc import TradingServiceServicer, add_TradingServiceServicer_to_server
from api.reports import AccountListener, ReportWaiter, taker_side
from api.trading import Trading, not_granted
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS
from pipelines.codec import HeapBuilder, codec_of
from pipelines.errors import FieldError
from pipelines.event_json import parse_event, render_events
from pipelines.frames import Events
from pipelines.trading.routing import shard_of

__all__ = ["TradingService"]

SCOPE: Final = "orders:write"
REPORT_SECONDS: Final = 30.0
"""How long a unary call waits for reports when its deadline is later, or it has none."""
DEADLINE_MARGIN_SECONDS: Final = 0.05
UNREAD_EVENTS: Final = 50_000
"""Events that a stream's client may leave unread before the stream ends."""
RECHECK_SECONDS: Final = 5.0
"""How often a stream's token is looked at again."""

_COMMANDS: Final = codec_of(MATCHING_COMMANDS.name)
_REPORTS: Final = codec_of(MATCHING_REPORTS.name)
_ENUMS: Final[dict[str, Any]] = {
    "side": pb.Side,
    "order_type": pb.OrderType,
    "time_in_force": pb.TimeInForce,
    "self_trade_prevention": pb.SelfTradePrevention,
}
_KINDS: Final = {"place": "NewOrder", "cancel": "CancelOrder", "amend": "AmendOrder"}
_FIELDS: Final = {
    name: [found.name for found in message.DESCRIPTOR.fields]
    for name, message in (
        ("place", pb.PlaceOrderRequest), ("cancel", pb.CancelOrderRequest), ("amend", pb.AmendOrderRequest),
    )
}  # fmt: skip
_OPTIONAL: Final = ("price", "quantity", "stop_price", "total_quantity")
_EXECUTION_FIELDS: Final = (
    "exec_type", "order_status", "account", "symbol", "price", "quantity", "leaves_quantity", "reason",
)  # fmt: skip


class _Command:
    """A request on its way: its run, and who asked."""

    __slots__ = ("account", "order_id", "run", "waiter")

    def __init__(self, run: Run, waiter: ReportWaiter, order_id: int, account: str) -> None:
        self.run = run
        self.waiter = waiter
        self.order_id = order_id
        self.account = account


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
            await self._access.principal(context, SCOPE)
            stream = _Stream(self, self._access, context)
            async for event in stream.run(requests):
                yield event

    async def submit(
        self, principal: Principal, kind: str, request: Any, listener: AccountListener | None = None
    ) -> _Command:
        """Put a request on its way; raises `Problem`."""
        account, symbol = request.account, request.symbol
        for name, value in (("account", account), ("symbol", symbol)):
            if not value:
                raise Problem("invalid-event", f"{name}: must not be empty.")
        if not principal.may_trade(account):
            raise not_granted(account)
        heap = HeapBuilder()
        try:
            row = parse_event(_COMMANDS, _record(kind, request), heap)
        except FieldError as error:
            raise Problem("invalid-event", f"{error.field}: {error.detail}.") from None
        await self._trading.accounts_limit.charge(account, 1)
        shard = shard_of(symbol)
        [run] = self._trading.batcher.runs(shard, Events(np.array([row], np.int64), heap.array()))
        waiter = self._trading.reports.waiter(listener)
        run.expect = partial(self._trading.reports.expect, waiter)
        try:
            self._trading.batcher.submit([run])
        except BufferFull as error:
            raise Problem("overloaded", f"{error}.", retry_after=1) from error
        return _Command(run, waiter, request.order_id, account)

    @property
    def reports(self) -> Any:
        return self._trading.reports

    async def _unary(self, kind: str, request: Any, context: Any) -> Any:
        async with answering(context):
            principal = await self._access.principal(context, SCOPE, cost=1)
            command = await self.submit(principal, kind, request)
            remaining = context.time_remaining()
            seconds = REPORT_SECONDS if remaining is None else remaining - DEADLINE_MARGIN_SECONDS
            try:
                placed = await asyncio.shield(command.run.placed)
                response = pb.OrderResponse(place=_place(placed))
                async with asyncio.timeout(max(0.0, min(seconds, REPORT_SECONDS))):
                    _, events = await command.waiter.answer
                response.reports.extend(_own_reports(command, events))
            except DeliveryError as error:
                raise _unacknowledged(error) from error
            except TimeoutError:
                pass
            finally:
                self._trading.reports.forget(command.waiter)
            return response


class _Stream:
    """One OrderStream: a task reads requests, `run` yields events."""

    def __init__(self, service: TradingService, access: GrpcAccess, context: Any) -> None:
        self._service = service
        self._access = access
        self._context = context
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._pending: dict[_Command, int] = {}
        self._is_read = False
        self._problem: Problem | None = None
        self._listener = AccountListener(self._tell)

    async def run(self, requests: Any) -> Any:
        tasks = [asyncio.create_task(self._read(requests)), asyncio.create_task(self._recheck())]
        try:
            while not (self._is_read and not self._pending and self._events.empty()):
                event = await self._events.get()
                if self._problem is not None:
                    raise self._problem
                if event is not None:
                    yield event
        finally:
            for task in tasks:
                task.cancel()
            self._service.reports.unlisten(self._listener)
            for command in self._pending:
                self._service.reports.forget(command.waiter)

    async def _read(self, requests: Any) -> None:
        try:
            async for request in requests:
                await self._take(request)
        except Problem as problem:
            self._problem = problem
        self._is_read = True
        self._events.put_nowait(None)

    async def _take(self, request: Any) -> None:
        number, kind = request.request_id, request.WhichOneof("request")
        principal = await self._access.principal(self._context, SCOPE)  # a token that no longer holds ends the stream
        try:
            await self._access.limiter.charge(principal.client_id, 1)
            if kind is None or not number:
                raise Problem("invalid-event", "request_id must be from 1, and one of the requests must be set.")
            if kind == "listen":
                if not request.listen.account:
                    raise Problem("invalid-event", "account: must not be empty.")
                if not principal.may_trade(request.listen.account):
                    raise not_granted(request.listen.account)
                self._service.reports.listen(self._listener, request.listen.account)
                self._put(pb.OrderEvent(request_id=number, listening=pb.Listening(account=request.listen.account)))
                return
            body = getattr(request, kind)
            is_new = body.account and body.account not in self._listener.accounts
            if is_new and principal.may_trade(body.account):
                self._service.reports.listen(self._listener, body.account)
            command = await self._service.submit(principal, kind, body, self._listener)
        except Problem as problem:
            self._refuse(number, problem)
            return
        self._pending[command] = number
        command.run.placed.add_done_callback(partial(self._placed, command))
        command.waiter.answer.add_done_callback(partial(self._answered, command))

    def _placed(self, command: _Command, placed: asyncio.Future[Placed]) -> None:
        error = None if placed.cancelled() else placed.exception()
        number = self._pending.get(command)
        if error is not None and number is not None:
            del self._pending[command]
            self._service.reports.forget(command.waiter)
            self._refuse(number, _unacknowledged(error))

    def _answered(self, command: _Command, answer: asyncio.Future[tuple[int, Events]]) -> None:
        number = self._pending.pop(command, None)
        if number is None or answer.cancelled():
            return
        _, events = answer.result()
        for report in _own_reports(command, events):
            self._put(pb.OrderEvent(request_id=number, report=report))

    def _tell(self, report: dict[str, Any], shard: int) -> None:
        self._put(pb.OrderEvent(report=_message(report, shard)))

    def _refuse(self, number: int, problem: Problem) -> None:
        refusal = pb.Refusal(code=status_of(problem).name, detail=problem.detail)
        self._put(pb.OrderEvent(request_id=number, refusal=refusal))

    def _put(self, event: Any) -> None:
        if self._events.qsize() >= UNREAD_EVENTS and self._problem is None:
            self._problem = Problem("rate-limited", f"{UNREAD_EVENTS} events were not read; read faster.")
        self._events.put_nowait(event)

    async def _recheck(self) -> None:
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            try:
                principal = await self._access.principal(self._context, SCOPE)
                for account in sorted(self._listener.accounts):
                    if not principal.may_trade(account):
                        raise not_granted(account)
            except Problem as problem:
                self._problem = problem
                self._events.put_nowait(None)
                return


def _record(kind: str, request: Any) -> dict[str, Any]:
    """The command as JSON would have it; raises `Problem` for an enum value that is unknown."""
    record: dict[str, Any] = {"type": _KINDS[kind]}
    for name in _FIELDS[kind]:
        value = getattr(request, name)
        if name in _ENUMS:
            try:
                value = _ENUMS[name].Name(value)
            except ValueError:
                raise Problem("invalid-event", f"{name}: {value} is not one of its values.") from None
        elif kind == "amend" and name in _OPTIONAL and not request.HasField(name):
            continue
        record[name] = value
    return record


def _unacknowledged(error: BaseException) -> Problem:
    return Problem("log-unavailable", f"Kafka did not acknowledge in time: {error}.", retry_after=2)


def _place(placed: Placed) -> Any:
    return pb.Place(shard=placed.shard, offset=placed.offset, trace=placed.trace)


def _own_reports(command: _Command, events: Events) -> list[Any]:
    """The reports that answer a command and concern its order or account: not those of others that it set off."""
    reports = []
    for report in render_events(_REPORTS, events):
        if report["type"] == "ExecutionReport":
            if int(report["order_id"]) != command.order_id and report["account"] != command.account:
                continue
            report = taker_side(report)
        elif report["type"] == "RouteRequest" and int(report["order_id"]) != command.order_id:
            continue
        reports.append(_message(report, command.run.shard))
    return reports


def _message(report: dict[str, Any], shard: int) -> Any:
    if report["type"] == "RouteRequest":
        return pb.Report(
            kind=pb.Report.ROUTE_REQUEST, exec_type=report["action"], order_id=int(report["order_id"]),
            account=report["account"], symbol=report["symbol"], side=pb.Side.Value(report["side"]),
            price=int(report["price"]), quantity=int(report["quantity"]), reason=report["reason"],
            execution_id=int(report["execution_id"]), shard=shard,
        )  # fmt: skip
    if report["type"] != "ExecutionReport":
        return pb.Report(
            kind=pb.Report.CANCEL_REJECT, exec_type=report["response_to"], order_id=int(report["order_id"]),
            execution_id=int(report["execution_id"]), reason=report["reason"], shard=shard,
        )  # fmt: skip
    message = pb.Report(
        order_id=int(report["order_id"]), execution_id=int(report["execution_id"]), shard=shard,
        cumulative_quantity=int(report.get("cumulative_quantity", 0)), side=pb.Side.Value(report["side"]),
        **{name: report[name] for name in _EXECUTION_FIELDS if isinstance(report[name], str) and name not in _NUMBERS},
    )  # fmt: skip
    for name in _NUMBERS:
        setattr(message, name, int(report[name]))
    return message


_NUMBERS: Final = frozenset({"price", "quantity", "leaves_quantity"})
