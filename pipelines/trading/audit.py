"""The life of every order, from command frames and the report frames that answer them.

`OrderHistory` is fed one shard's frames in order and yields `OrderEvent`: what happened, when by the shard's clock,
and the order as it is after it. A trade yields one for each side, the incoming order first. Of an event are made:

- `rts24`: all 51 fields of table 2 in the annex of Delegated Regulation (EU) 2017/580, by number. Fields 1 to 8, 16 to
  18 and 29 come from reference data, for the orders carry accounts and symbols only; field 49 from `TradingPhases`.
  Prices are ticks, quantities lots.
- `audit_trail`: a flat event in the manner of the Consolidated Audit Trail: type, clock, sequence, order, quantities.

Pure: the same frames and the same reference data give the same records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Frame
from pipelines.trading.phases import TradingPhases

__all__ = ["Order", "OrderEvent", "OrderHistory", "audit_trail", "rts24"]

_VALIDITY: Final = {"DAY": "DAVY", "GTC": "GTCV", "GTD": "GTSV", "IOC": "IOCV", "FOK": "FOKV"}
"""Field 10. A GTD order ends at a moment, not with a day: good till specified date and time."""
_SIDES: Final = {"BUY": "BUYI", "SELL": "SELL"}
"""Field 32."""
_BY_THE_MEMBER: Final = frozenset({"USER_REQUEST", "MASS_CANCEL", "KILL_SWITCH"})
_ENDED: Final = frozenset({"FILLED", "CANCELED", "EXPIRED", "REJECTED"})
_TRAIL_TYPES: Final = {
    "NEW": "ORDER_ACCEPTED", "TRADE": "ORDER_TRADE", "CANCELED": "ORDER_CANCELED", "REPLACED": "ORDER_MODIFIED",
    "REJECTED": "ORDER_REJECTED", "EXPIRED": "ORDER_EXPIRED", "SUSPENDED": "ORDER_SUSPENDED",
    "TRIGGERED": "ORDER_TRIGGERED", "ROUTE_NEW": "ORDER_ROUTED", "ROUTE_CANCEL": "ROUTE_CANCEL_REQUESTED",
    "ROUTE_REPLACE": "ROUTE_MODIFY_REQUESTED", "VENUE_NEW": "ROUTE_ACCEPTED",
    "VENUE_REFUSED": "VENUE_REPORT_REFUSED",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """An order after an event. Prices in ticks, quantities in lots, times in UTC microseconds."""

    order_id: int
    account: str
    symbol: str
    side: str
    order_type: str = "LIMIT"
    time_in_force: str = "GTC"
    price: int = 0
    stop_price: int = 0
    initial_quantity: int = 0
    leaves_quantity: int = 0
    cumulative_quantity: int = 0
    display_quantity: int = 0
    minimum_quantity: int = 0
    post_only: bool = False
    self_trade_prevention: str = "ACCOUNT_DEFAULT"
    expire_at: int = 0
    received_at: int = 0
    priority_at: int = 0
    status: str = "NEW"
    is_waiting: bool = False
    """A stop order that was not triggered yet."""
    destination: str = ""
    """The venue that executes it; empty: this one."""


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """``exec_type`` as in the report, or CANCEL_REFUSED and AMEND_REFUSED, whose order may be unknown (None); of routed
    orders also ROUTE_NEW, ROUTE_CANCEL and ROUTE_REPLACE (asked of the venue), VENUE_NEW (it has the order), and
    VENUE_REFUSED (what it said was not applied).

    ``sequence`` numbers the shard's events: twice the execution id, plus one for the resting side of a trade.
    """

    shard: int
    at: int
    sequence: int
    execution_id: int
    exec_type: str
    order_id: int
    order: Order | None
    reason: str
    trade_price: int = 0
    trade_quantity: int = 0
    is_maker: bool = False
    by_member: bool = False
    sent_at: int = 0
    venue: str = ""
    venue_execution_id: str = ""
    phase: str | None = None
    """Status of the symbol before the command that brought it about; None where phases are not followed."""

    @property
    def is_order_record(self) -> bool:
        """Whether an order changed."""
        return (
            self.order is not None
            and not self.exec_type.endswith("_REFUSED")
            and not self.exec_type.startswith(("ROUTE_", "VENUE_"))
        )


class OrderHistory:
    """One shard. Memory: its live orders. With ``phases`` the events tell those too, which takes the kernel's time and
    memory once more."""

    def __init__(self, shard: int, phases: TradingPhases | None = None) -> None:
        self._shard = shard
        self._live: dict[int, Order] = {}
        self._clock = 0
        self._command: Frame | None = None
        self._phases = phases

    def feed(self, command: Frame, reports: Iterable[Frame]) -> Iterator[OrderEvent]:
        """The events of a command frame and all frames that answer it."""
        self._clock = max(self._clock, command.produced_at)
        self._command = command
        commands = render_events(codec_of(MATCHING_COMMANDS.name), command.events)
        for frame in reports:
            for report in render_events(codec_of(MATCHING_REPORTS.name), frame.events):
                number = int(report["input"])
                asked = commands[number] if number >= 0 else {}
                if report["type"] == "ExecutionReport":
                    yield from self._execution(asked, report)
                elif report["type"] == "OrderCancelReject":
                    order_id = int(report["order_id"])
                    yield self._event(
                        report, f"{report['response_to']}_REFUSED", order_id, self._live.get(order_id),
                        by_member=asked.get("type") != "VenueReport", sent_at=int(asked.get("transact_time", 0)),
                        **_venue(asked),
                    )  # fmt: skip
                elif report["type"] == "RouteRequest":
                    order_id = int(report["order_id"])
                    yield self._event(
                        report, f"ROUTE_{report['action']}", order_id, self._live.get(order_id), venue=report["venue"]
                    )
                elif asked.get("type") == "VenueReport" and (report["reason"] != "NONE" or asked["exec_type"] == "NEW"):
                    order_id = int(asked["order_id"])
                    kind = "VENUE_NEW" if report["reason"] == "NONE" else "VENUE_REFUSED"
                    yield self._event(report, kind, order_id, self._live.get(order_id), **_venue(asked))
        if self._phases is not None:
            self._phases.finish(command)

    def _execution(self, asked: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[OrderEvent]:
        order_id, kind = int(report["order_id"]), report["exec_type"]
        is_asked = (
            int(asked.get("order_id", 0)) == order_id
            and asked.get("order_id") is not None
            and asked["type"] != "VenueReport"
        )
        order = self._live.get(order_id)
        if kind == "REJECTED" or order is None or kind == "NEW":
            order = self._entered(asked if is_asked else {}, report)
        order = replace(order, status=report["order_status"], leaves_quantity=int(report["leaves_quantity"]),
                        cumulative_quantity=int(report["cumulative_quantity"]))  # fmt: skip
        if kind == "TRIGGERED":
            order = replace(order, is_waiting=False)
        if kind in ("REPLACED", "TRIGGERED"):
            order = self._replaced(order, asked if is_asked else {}, report)
        if kind != "REJECTED":
            self._keep(order)
        trade = kind == "TRADE"
        yield self._event(
            report, kind, order_id, order,
            trade_price=int(report["price"]) if trade else 0, trade_quantity=int(report["quantity"]) if trade else 0,
            by_member=is_asked or report["reason"] in _BY_THE_MEMBER,
            sent_at=int(asked.get("transact_time", 0)) if is_asked else 0, **_venue(asked),
        )  # fmt: skip
        if trade and report["maker_order_id"] is not None:
            yield self._maker(report)

    def _maker(self, report: Mapping[str, Any]) -> OrderEvent:
        maker_id, leaves = int(report["maker_order_id"]), int(report["maker_leaves_quantity"])
        quantity = int(report["quantity"])
        maker = self._live.get(maker_id) or Order(
            maker_id, report["maker_account"], report["symbol"], "SELL" if report["side"] == "BUY" else "BUY",
        )  # fmt: skip
        maker = replace(maker, leaves_quantity=leaves, cumulative_quantity=maker.cumulative_quantity + quantity,
                        status="PARTIALLY_FILLED" if leaves else "FILLED")  # fmt: skip
        self._keep(maker)
        return self._event(report, "TRADE", maker_id, maker, trade_price=int(report["price"]),
                           trade_quantity=quantity, is_maker=True)  # fmt: skip

    def _event(
        self, report: Mapping[str, Any], kind: str, order_id: int, order: Order | None, **more: Any
    ) -> OrderEvent:
        execution_id = int(report["execution_id"])
        if self._phases is not None and self._command is not None and order is not None:
            more["phase"] = self._phases.before(self._command, int(report["input"]), order.symbol)
        return OrderEvent(
            self._shard, self._clock, 2 * execution_id + bool(more.get("is_maker")), execution_id, kind, order_id,
            order, report["reason"], **more,
        )  # fmt: skip

    def _entered(self, asked: Mapping[str, Any], report: Mapping[str, Any]) -> Order:
        order = Order(
            int(report["order_id"]), report["account"], report["symbol"], report["side"], price=int(report["price"]),
            initial_quantity=int(report["quantity"]), received_at=self._clock, priority_at=self._clock,
        )  # fmt: skip
        if asked.get("type") != "NewOrder":
            return order
        return replace(
            order, order_type=asked["order_type"], time_in_force=asked["time_in_force"], price=int(asked["price"]),
            initial_quantity=int(asked["quantity"]), expire_at=int(asked["expire_at"]),
            is_waiting=asked["order_type"] in ("STOP", "STOP_LIMIT"),
            stop_price=int(asked["stop_price"]), display_quantity=int(asked["display_quantity"]),
            minimum_quantity=int(asked["minimum_quantity"]), post_only=asked["post_only"],
            self_trade_prevention=asked["self_trade_prevention"], destination=asked["destination"] or "",
        )  # fmt: skip

    def _replaced(self, order: Order, asked: Mapping[str, Any], report: Mapping[str, Any]) -> Order:
        price, quantity = int(report["price"]), int(report["quantity"])
        before = self._live.get(order.order_id)
        keeps_place = before is not None and price == before.price and quantity < before.leaves_quantity
        stop_price = asked.get("stop_price")
        return replace(
            order, price=price, leaves_quantity=quantity,
            stop_price=order.stop_price if stop_price is None else int(stop_price),
            priority_at=order.priority_at if keeps_place else self._clock,
        )  # fmt: skip

    def _keep(self, order: Order) -> None:
        if order.status in _ENDED:
            self._live.pop(order.order_id, None)
        else:
            self._live[order.order_id] = order


def _venue(asked: Mapping[str, Any]) -> dict[str, str]:
    """Who said so, if that was a venue."""
    if asked.get("type") != "VenueReport":
        return {}
    return {"venue": asked["venue"], "venue_execution_id": asked["venue_execution_id"]}


def audit_trail(event: OrderEvent) -> dict[str, Any]:
    """One event of the trail; times are RFC 3339 in UTC with microseconds."""
    order = event.order
    record: dict[str, Any] = {
        "event_type": _TRAIL_TYPES.get(event.exec_type, event.exec_type),
        "event_timestamp": _time(event.at),
        "shard": event.shard,
        "sequence": event.sequence,
        "execution_id": event.execution_id,
        "order_id": str(event.order_id),
        "reason": event.reason,
        "client_timestamp": _time(event.sent_at) if event.sent_at else None,
    }
    if order is not None:
        record |= {
            "account": order.account, "symbol": order.symbol, "side": order.side, "order_type": order.order_type,
            "time_in_force": order.time_in_force, "price": order.price, "stop_price": order.stop_price,
            "quantity": order.initial_quantity, "leaves_quantity": order.leaves_quantity,
            "cumulative_quantity": order.cumulative_quantity, "order_status": order.status,
        }  # fmt: skip
    if event.exec_type == "TRADE":
        record |= {"trade_id": event.execution_id, "trade_price": event.trade_price,
                   "trade_quantity": event.trade_quantity,
                   "liquidity": "ROUTED" if event.venue else "MAKER" if event.is_maker else "TAKER"}  # fmt: skip
    if event.venue:
        record |= {"venue": event.venue, "venue_execution_id": event.venue_execution_id or None}
    return record


def rts24(event: OrderEvent, reference: Mapping[str, Any]) -> dict[str, Any] | None:
    """The order record of an event, None for one that changes no order: a refused cancel or amendment, a request to a
    venue.

    The minimum quantity is that of all executions on entry together, hence field 40 (minimum acceptable quantity);
    there is no least size of a single execution (41, 42). ``reference`` has ``accounts`` (account -> fields 1 to 8 by
    number) and ``symbols`` (symbol -> 16, 17, 18, 29).
    """
    order = event.order
    if order is None or not event.is_order_record:
        return None
    member = reference.get("accounts", {}).get(order.account, {})
    instrument = reference.get("symbols", {}).get(order.symbol, {})
    is_stop, is_trade = order.order_type in ("STOP", "STOP_LIMIT"), event.exec_type == "TRADE"
    displayed = min(order.display_quantity, order.leaves_quantity) if order.display_quantity else order.leaves_quantity
    prevents = order.self_trade_prevention not in ("NONE", "ACCOUNT_DEFAULT")
    return {
        **{number: member.get(number) for number in ("1", "2", "3", "4", "5", "6", "7", "8")},
        "9": _time(event.at), "10": _VALIDITY[order.time_in_force], "11": None,
        "12": _time(order.expire_at) if order.expire_at else None, "13": _time(order.priority_at), "14": None,
        "15": event.sequence, "16": instrument.get("16"), "17": instrument.get("17", order.symbol),
        "18": instrument.get("18"), "19": _time(order.received_at)[:10], "20": f"{event.shard}-{order.order_id}",
        "21": _change(event), "22": order.order_type, "23": "STOP" if is_stop else "LMTO",
        "24": order.price or None, "25": None, "26": order.stop_price or None, "27": None,
        "28": event.trade_price if is_trade else None, "29": instrument.get("29"), "30": None, "31": "MONE",
        "32": _SIDES[order.side], "33": _status(order),
        "34": "UNIT", "35": None,
        "36": order.initial_quantity, "37": order.leaves_quantity, "38": displayed,
        "39": event.trade_quantity if is_trade else None, "40": order.minimum_quantity or None, "41": None,
        "42": None, "43": order.post_only,
        "44": ("PASV" if event.is_maker else "AGRE") if is_trade and not event.venue else None,
        "45": prevents, "46": None, "47": order.destination or None,
        "48": f"{event.shard}-{event.execution_id}" if is_trade else None, "49": event.phase, "50": None, "51": None,
    }  # fmt: skip


def _status(order: Order) -> str:
    """Field 33."""
    if order.destination:
        return "ROUT"
    return "INAC" if order.is_waiting or order.status == "SUSPENDED" else "ACTI"


def _change(event: OrderEvent) -> str:
    """Field 21."""
    match event.exec_type:
        case "NEW":
            return "NEWO"
        case "TRADE":
            return "FILL" if event.order is not None and event.order.leaves_quantity == 0 else "PARF"
        case "REPLACED":
            return "REME" if event.by_member else "REMA"
        case "CANCELED":
            return "CAME" if event.reason in _BY_THE_MEMBER else "CAMO"
        case kind:
            return {"REJECTED": "REMO", "EXPIRED": "EXPI", "TRIGGERED": "TRIG", "SUSPENDED": "CHMO"}[kind]


def _time(micros: int) -> str:
    return str(np.datetime_as_string(np.datetime64(micros, "us"), timezone="UTC"))
