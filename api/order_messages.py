"""Order entry's protobuf messages as rows of matching.commands, and rows of matching.reports as messages.

Orders pass here one by one at the rate of the market, so both ways go straight between message and row. A request that
is not right in every field takes the way of JSON (`pipelines.event_json`), which says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from api.problems import Problem
from api.proto import trading_pb2 as pb
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS
from pipelines.codec import Field, HeapBuilder, codec_of
from pipelines.errors import FieldError
from pipelines.event_json import parse_event

__all__ = ["command_row", "report_message"]

_COMMANDS: Final = codec_of(MATCHING_COMMANDS.name)
_REPORTS: Final = codec_of(MATCHING_REPORTS.name)
_ENUMS: Final[dict[str, Any]] = {
    "side": pb.Side,
    "order_type": pb.OrderType,
    "time_in_force": pb.TimeInForce,
    "self_trade_prevention": pb.SelfTradePrevention,
}
_KINDS: Final = {"place": "NewOrder", "cancel": "CancelOrder", "amend": "AmendOrder"}
_MESSAGES: Final[dict[str, Any]] = {
    "place": pb.PlaceOrderRequest,
    "cancel": pb.CancelOrderRequest,
    "amend": pb.AmendOrderRequest,
}
_OPTIONAL: Final = ("price", "quantity", "stop_price", "total_quantity")
"""Of an amendment: left out, they keep what the order has."""

_EXECUTION: Final = _REPORTS.event_type("ExecutionReport")
_REJECT: Final = _REPORTS.event_type("OrderCancelReject")
_ROUTE: Final = _REPORTS.event_type("RouteRequest")

_Setter = Callable[[list[int], Any, HeapBuilder], None]


class _Unfit(Exception):  # noqa: N818 - never leaves the module
    """A value that the row cannot hold."""


class _Plan(NamedTuple):
    """Of a request: its row when nothing is set, and what sets a field, by the field's number."""

    template: list[int]
    setters: dict[int, _Setter]


def command_row(kind: str, request: Any, heap: HeapBuilder) -> list[int]:
    """The row of a request, ``kind`` being place, cancel or amend; its texts go to ``heap``. Raises `Problem`."""
    plan = _PLANS[kind]
    row = plan.template.copy()
    setters = plan.setters
    try:
        for field, value in request.ListFields():
            setters[field.number](row, value, heap)
        if kind == "place" and not request.side:
            raise _Unfit
    except (_Unfit, KeyError):
        return _checked_row(kind, request, heap)
    return row


def report_message(row: list[int], heap: bytes, shard: int, *, of_maker: bool = False) -> Any:
    """What a client is told of a report: its own side, the counterparty being left out.

    ``of_maker``: a trade as the owner of the resting order sees it; the quantity that it traded so far is not known.
    """
    if row[0] == _EXECUTION.kind:
        side, order, account = row[_E["side"]], row[_E["order_id"]], row[_E["account"]]
        leaves, status = row[_E["leaves_quantity"]], _STATUSES[row[_E["order_status"]]]
        if of_maker:
            side, order, account = 1 - side, row[_E["maker_order_id"]], row[_E["maker_account"]]
            leaves = row[_E["maker_leaves_quantity"]]
            status = "PARTIALLY_FILLED" if leaves else "FILLED"
        return pb.Report(
            exec_type=_EXEC_TYPES[row[_E["exec_type"]]], order_status=status, order_id=order,
            account=_cut(heap, account), symbol=_cut(heap, row[_E["symbol"]]), side=_SIDES[side],
            price=row[_E["price"]], quantity=row[_E["quantity"]], leaves_quantity=leaves,
            cumulative_quantity=0 if of_maker else row[_E["cumulative_quantity"]],
            execution_id=row[_E["execution_id"]], reason=_REASONS[row[_E["reason"]]], shard=shard,
            venue_execution_id=_cut(heap, row[_E["venue_execution_id"]]),
        )  # fmt: skip
    if row[0] == _ROUTE.kind:
        return pb.Report(
            kind=pb.Report.ROUTE_REQUEST, exec_type=_ACTIONS[row[_R["action"]]], order_id=row[_R["order_id"]],
            account=_cut(heap, row[_R["account"]]), symbol=_cut(heap, row[_R["symbol"]]), side=_SIDES[row[_R["side"]]],
            price=row[_R["price"]], quantity=row[_R["quantity"]], reason=_REASONS[row[_R["reason"]]],
            execution_id=row[_R["execution_id"]], shard=shard,
        )  # fmt: skip
    return pb.Report(
        kind=pb.Report.CANCEL_REJECT, exec_type=_RESPONSES[row[_J["response_to"]]], order_id=row[_J["order_id"]],
        execution_id=row[_J["execution_id"]], reason=_REASONS[row[_J["reason"]]], shard=shard,
        account=_cut(heap, row[_J["account"]]), symbol=_cut(heap, row[_J["symbol"]]),
    )  # fmt: skip


def _cut(heap: bytes, word: int) -> str:
    start = word >> 32
    return heap[start : start + (word & 0xFFFFFFFF)].decode()


def _checked_row(kind: str, request: Any, heap: HeapBuilder) -> list[int]:
    """The row by way of JSON. Raises `Problem` that says what is wrong."""
    record: dict[str, Any] = {"type": _KINDS[kind]}
    for found in _MESSAGES[kind].DESCRIPTOR.fields:
        name = found.name
        value = getattr(request, name)
        if name in _ENUMS:
            try:
                value = _ENUMS[name].Name(value)
            except ValueError:
                raise Problem("invalid-event", f"{name}: {value} is not one of its values.") from None
        elif kind == "amend" and name in _OPTIONAL and not request.HasField(name):
            continue
        record[name] = value
    try:
        return parse_event(_COMMANDS, record, heap)
    except FieldError as error:
        raise Problem("invalid-event", f"{error.field}: {error.detail}.") from None


def _plan(kind: str) -> _Plan:
    message = _MESSAGES[kind]
    fields = {found.name: found for found in _COMMANDS.event_type(_KINDS[kind]).fields}
    empty = message(side=pb.BUY) if kind == "place" else message()
    template = _checked_row(kind, empty, HeapBuilder())  # empty texts are all zeros, whatever the heap
    setters = {found.number: _setter(fields[found.name]) for found in message.DESCRIPTOR.fields}
    return _Plan(template, setters)


def _setter(field: Field) -> _Setter:
    word, is_set, minimum, maximum = field.word, field.is_set_word, field.minimum, field.maximum

    def set_integer(row: list[int], value: Any, heap: HeapBuilder) -> None:
        if not minimum <= value <= maximum:
            raise _Unfit
        row[word] = value
        if is_set >= 0:
            row[is_set] = 1

    def set_boolean(row: list[int], value: Any, heap: HeapBuilder) -> None:
        row[word] = int(value)

    def set_text(row: list[int], value: Any, heap: HeapBuilder) -> None:
        row[word] = heap.add(value)

    if field.storage == "enum":
        names = _ENUMS[field.name].DESCRIPTOR.values_by_name
        symbols = {names[symbol].number: index for index, symbol in enumerate(field.symbols)}

        def set_symbol(row: list[int], value: Any, heap: HeapBuilder) -> None:
            row[word] = symbols[value]

        return set_symbol
    return {"boolean": set_boolean, "string": set_text}.get(field.storage, set_integer)


_PLANS: Final = {kind: _plan(kind) for kind in _KINDS}
_E: Final = {found.name: found.word for found in _EXECUTION.fields}
_J: Final = {found.name: found.word for found in _REJECT.fields}
_R: Final = {found.name: found.word for found in _ROUTE.fields}
_EXEC_TYPES: Final = _EXECUTION.field("exec_type").symbols
_STATUSES: Final = _EXECUTION.field("order_status").symbols
_REASONS: Final = _EXECUTION.field("reason").symbols
_RESPONSES: Final = _REJECT.field("response_to").symbols
_ACTIONS: Final = _ROUTE.field("action").symbols
_SIDES: Final = tuple(pb.Side.Value(symbol) for symbol in _EXECUTION.field("side").symbols)
