"""Order entry's messages: the short way between protobuf and rows says what the schema's JSON says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.order_messages import command_row, report_message
from api.problems import Problem
from api.proto import trading_pb2 as pb
from pipelines.codec import HeapBuilder, codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Events

COMMANDS, REPORTS = codec_of("matching.commands"), codec_of("matching.reports")
MESSAGES = {
    "place": ("NewOrder", pb.PlaceOrderRequest), "cancel": ("CancelOrder", pb.CancelOrderRequest),
    "amend": ("AmendOrder", pb.AmendOrderRequest),
}  # fmt: skip
ENUMS = {"side": (pb.Side, 1), "order_type": (pb.OrderType, 0), "time_in_force": (pb.TimeInForce, 0),
         "self_trade_prevention": (pb.SelfTradePrevention, 0)}  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Any]:
    """Any request that is right, some of its fields being left out."""
    kind = draw(st.sampled_from(sorted(MESSAGES)))
    message = MESSAGES[kind][1]()
    for field in message.DESCRIPTOR.fields:
        if field.name != "side" and draw(st.booleans()):
            continue
        if field.name in ENUMS:
            enum, first = ENUMS[field.name]
            value: Any = draw(st.sampled_from([number for number in enum.values() if number >= first]))
        elif field.type == field.TYPE_STRING:
            value = draw(st.text(max_size=6))
        elif field.type == field.TYPE_BOOL:
            value = draw(st.booleans())
        else:
            value = draw(st.integers(-(2**63), 2**63 - 1))
        setattr(message, field.name, value)
    return kind, message


def as_json(kind: str, message: Any) -> dict[str, Any]:
    """What a client would send over REST for the same command."""
    record: dict[str, Any] = {"type": MESSAGES[kind][0]}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            continue
        record[field.name] = ENUMS[field.name][0].Name(value) if field.name in ENUMS else value
    return record


@settings(max_examples=150, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4))
def test_a_request_is_the_command_that_its_json_is(sent: list[tuple[str, Any]]) -> None:
    heap = HeapBuilder()
    rows = [command_row(kind, message, heap) for kind, message in sent]
    found = render_events(COMMANDS, Events(np.array(rows, np.int64), heap.array()))
    wanted = parse_events(COMMANDS, [as_json(kind, message) for kind, message in sent])
    assert found == render_events(COMMANDS, wanted)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"side": 0}, "side"), ({"side": 7}, "side"), ({"order_type": 9}, "order_type"),
     ({"time_in_force": 9}, "time_in_force")],
)  # fmt: skip
def test_what_is_wrong_is_named(changes: dict[str, int], says: str) -> None:
    request = pb.PlaceOrderRequest(**{"order_id": 1, "account": "A", "symbol": "S", "side": pb.BUY, **changes})
    with pytest.raises(Problem, match=says):
        command_row("place", request, HeapBuilder())


def reports() -> st.SearchStrategy[dict[str, Any]]:
    """Any report that concerns an order, as JSON."""
    names = ("ExecutionReport", "OrderCancelReject", "RouteRequest")
    kinds = [REPORTS.event_type(name) for name in names]
    number, label = st.integers(-(2**53), 2**53), st.text(max_size=8)

    def value(field: Any) -> st.SearchStrategy[Any]:
        if field.storage == "enum":
            return st.sampled_from(field.symbols)
        if field.storage == "string":
            return label
        plain = (
            st.integers(max(field.minimum, -(2**31)), min(field.maximum, 2**31 - 1))
            if field.name == "input"
            else number
        )
        return st.none() | plain if field.nullable else plain

    return st.sampled_from(kinds).flatmap(
        lambda kind: st.fixed_dictionaries({field.name: value(field) for field in kind.fields}).map(
            lambda record: {"type": kind.name, **record}
        )
    )


@settings(max_examples=150, deadline=None)
@given(reports())
def test_a_report_tells_its_owner_what_the_log_has(report: dict[str, Any]) -> None:
    events = parse_events(REPORTS, [report])
    told = report_message(events.rows[0].tolist(), events.heap.tobytes(), 3)
    assert (told.order_id, told.execution_id, told.reason, told.shard) == (
        report["order_id"], report["execution_id"], report["reason"], 3,
    )  # fmt: skip
    if report["type"] == "OrderCancelReject":
        assert (told.kind, told.exec_type) == (pb.Report.CANCEL_REJECT, report["response_to"])
        return
    names = ("account", "symbol", "price", "quantity")
    assert {name: getattr(told, name) for name in names} == {name: report[name] for name in names}
    assert pb.Side.Name(told.side) == report["side"]
    if report["type"] == "RouteRequest":
        assert (told.kind, told.exec_type) == (pb.Report.ROUTE_REQUEST, report["action"])
        return
    assert told.kind == pb.Report.EXECUTION
    names = ("exec_type", "order_status", "leaves_quantity", "cumulative_quantity")
    assert {name: getattr(told, name) for name in names} == {name: report[name] for name in names}


def test_the_resting_side_of_a_trade_sees_its_own_order() -> None:
    trade = {
        "type": "ExecutionReport", "input": 0, "exec_type": "TRADE", "order_status": "FILLED", "order_id": 2,
        "maker_order_id": 1, "account": "TAKER", "maker_account": "MAKER", "symbol": "S", "side": "BUY", "price": 10,
        "quantity": 4, "leaves_quantity": 0, "cumulative_quantity": 4, "maker_leaves_quantity": 1, "execution_id": 9,
        "reason": "NONE",
    }  # fmt: skip
    events = parse_events(REPORTS, [trade, trade | {"maker_leaves_quantity": 0, "side": "SELL"}])
    heap = events.heap.tobytes()
    told, filled = (report_message(row, heap, 0, of_maker=True) for row in events.rows.tolist())
    assert (told.order_id, told.account, told.side, told.leaves_quantity, told.order_status) == (
        1, "MAKER", pb.SELL, 1, "PARTIALLY_FILLED",
    )  # fmt: skip
    assert (told.price, told.quantity, told.cumulative_quantity, told.execution_id) == (10, 4, 0, 9)
    assert (filled.side, filled.leaves_quantity, filled.order_status) == (pb.BUY, 0, "FILLED")
    assert "TAKER" not in str(told)
