"""Routed orders: RouteRequests of the log become messages to a venue, and what it says becomes VenueReports.

**Once.** A ClOrdID is ``<shard>-<number of the RouteRequest>``, a function of the log, and is stored in the transaction
that gives its message a sequence number. An execution is counted once by its ExecID and order; the kernel, too, takes
no cumulative quantity twice. A VenueReport is stored with the number of the message that it was made of.

**Nothing is assumed.** An order that was never sent is refused as VENUE_UNAVAILABLE when the venue stays away, or when
the circuit is open. One that may have been sent lives until the venue says what became of it: after each logon, and
when an answer is late, it is asked for (OrderStatusRequest). An order that the venue does not know, though it was sent,
is sent again with PossResend and the same ClOrdID, once.

What the venue says and nobody can place - another order, a bust or a correction, a price between two ticks - goes to
the log all the same: the kernel answers it with a reason and changes nothing.

Not thread-safe; every call is made within a transaction of the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import prometheus_client
import structlog

from api.circuit import Circuit
from api.fix.commands import CommandFrames
from api.fix.config import RouteSettings
from api.fix.definitions import Instrument
from api.fix.route_store import Route, RouteStore
from api.fix.session import Session
from api.fix.store import PendingFrame
from api.fix.wire import SIDE_CODES, Fields, Message, format_time, parse_time
from pipelines.catalogue import MATCHING_REPORTS
from pipelines.codec import codec_of, text
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame
from pipelines.trading.routing import shard_of

__all__ = ["RouteDesk"]

_REPORTS: Final = codec_of(MATCHING_REPORTS.name)
_ROUTE: Final = _REPORTS.event_type("RouteRequest")
_VENUE_WORD: Final = _ROUTE.field("venue").word
_EXECUTION: Final = _REPORTS.event_type("ExecutionReport")
_ORDER_WORD: Final = _EXECUTION.field("order_id").word
_ADMIN: Final = _REPORTS.event_type("AdminReport")

_ORDER_TYPES: Final = {"MARKET": "1", "LIMIT": "2"}
_TIMES_IN_FORCE: Final = {"DAY": "0", "GTC": "1", "IOC": "3", "FOK": "4", "GTD": "6"}
_ENDED: Final = frozenset({"FILLED", "CANCELED", "EXPIRED"})
_SAID: Final = {
    "0": "NEW",
    "F": "TRADE",
    "4": "CANCELED",
    "5": "REPLACED",
    "8": "REJECTED",
    "C": "EXPIRED",
    "3": "EXPIRED",
}
"""ExecType; 3 is DoneForDay. What is not here is a correction, or nothing that an order of ours can be."""
_PENDING: Final = frozenset("A6E")
NEW_ORDER, CANCEL, REPLACE, STATUS = "D", "F", "G", "H"
EXCHANGE_CLOSED, NOT_AVAILABLE = "2", "4"
"""OrdRejReason(103) and BusinessRejectReason(380) of a venue that is there and takes no orders."""
MAX_ID: Final = 64
MAX_TEXT: Final = 200
MICROS: Final = 1_000_000

ROUTED = prometheus_client.Counter("streambank_route_orders_total", "Orders by what was done.", ["outcome"])
REFUSED = prometheus_client.Counter(
    "streambank_route_refused_total", "What the venue said and the matching did not apply, by reason.", ["reason"]
)
DOUBTS = prometheus_client.Counter(
    "streambank_route_doubts_total",
    "What needs a look: fills missing, or orders that the venue does not know.",
    ["what"],
)
DUPLICATES = prometheus_client.Counter("streambank_route_duplicates_total", "Executions told again.")
LIVE = prometheus_client.Gauge("streambank_route_live", "Orders at the venue, or on the way.")
OPEN = prometheus_client.Gauge("streambank_route_circuit_open", "1 while new orders are refused.")

log = structlog.get_logger("streambank.route")


class RouteDesk:
    """The orders of one venue. ``session`` is the session with it."""

    def __init__(
        self,
        venue: str,
        config: RouteSettings,
        store: RouteStore,
        instruments: Mapping[str, Instrument],
        log_ends: Mapping[int, int],
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._venue = venue
        self._config = config
        self._store = store
        self._instruments = instruments
        self._any_instrument = Instrument()
        self._clock = clock
        self._frames = CommandFrames(store, log_ends, clock)
        self.session: Session | None = None
        self.circuit = Circuit(
            f"venue {venue}", failures_to_open=config.failures_to_open, open_seconds=config.open_seconds,
            clock=lambda: clock() / MICROS,
        )  # fmt: skip
        with store.transaction():
            self._made_at = store.mark("made_at", clock())
        self._routes = {(route.shard, route.number): route for route in store.routes()}
        self._by_order = {(route.shard, route.order_id): route for route in self._routes.values()}
        self._waiting = {key: route for key, route in self._routes.items() if route.state == "waiting"}
        self._unanswered = {key: route for key, route in self._routes.items() if route.state in ("sent", "again")}
        self._doubtful = {key for key, route in self._routes.items() if route.state == "doubtful"}
        self._said: dict[str, list[dict[str, Any]]] = {}
        """VenueReports by the trace of their frame, until they are answered."""
        self._asked_at: dict[tuple[int, int], int] = {}
        """When an order was last asked for."""
        self._late: set[tuple[int, int]] = set()
        """Orders whose answer was late, which counted as a failure."""
        self._is_asked = False
        """Whether all orders were asked for since the logon."""
        self._away_since = clock()
        self.is_caught_up = False
        """Set when the log was read as far as it went when the store was made."""

    @property
    def live(self) -> int:
        return len(self._routes)

    def take_frames(self) -> list[PendingFrame]:
        LIVE.set(len(self._routes))
        OPEN.set(self.circuit.is_open)
        return self._frames.take()

    # --- from the log ----------------------------------------------------------------------------------------------

    def apply(self, frame: Frame) -> None:
        """Take a frame of reports."""
        events = frame.events
        said = self._said.pop(frame.trace or "", None)
        kinds = events.rows[:, 0]
        wanted = kinds == _ROUTE.kind
        if said is not None:
            wanted |= kinds == _ADMIN.kind
        if self._doubtful:
            wanted |= kinds == _EXECUTION.kind
        for index in np.flatnonzero(wanted).tolist():
            row = events.rows[index]
            if row[0] == _ROUTE.kind:
                if text(events, int(row[_VENUE_WORD])) == self._venue:
                    self._requested(frame, _one(events, index))
            elif row[0] == _ADMIN.kind and said is not None:
                self._answered_by_matching(said, _one(events, index))
            else:
                route = self._by_order.get((frame.shard, int(row[_ORDER_WORD])))
                if route is not None and route.state == "doubtful":
                    self._history(route, _one(events, index))
        self._dispatch()

    def _requested(self, frame: Frame, request: Mapping[str, Any]) -> None:
        number = int(request["execution_id"])
        price, quantity = int(request["price"]), int(request["quantity"])
        cl_ord_id = f"{frame.shard}-{number}"
        if request["action"] == "NEW":
            route = Route(
                frame.shard, number, int(request["order_id"]), request["symbol"], SIDE_CODES[request["side"]],
                _ORDER_TYPES[request["order_type"]], _TIMES_IN_FORCE[request["time_in_force"]], price, quantity,
                int(request["expire_at"]), cl_ord_id, "", "", 0, 0, 0,
                "", 0, self._clock(),
            )  # fmt: skip
            self._routes[route.shard, number] = route
            self._by_order[route.shard, route.order_id] = route
            self._store.add_id(cl_ord_id, route)
            self._become(route, "doubtful" if frame.produced_at < self._made_at else "waiting")
            self._store.put_route(route)
            return
        known = self._routes.get((frame.shard, int(request["route"])))
        if known is None:
            return  # it has ended, as the matching will hear in a moment
        known.pending, known.pending_kind = cl_ord_id, CANCEL if request["action"] == "CANCEL" else REPLACE
        known.pending_price, known.pending_quantity = price, quantity
        self._store.add_id(cl_ord_id, known)
        if known.state == "waiting":
            self._answer_here(known)
        elif known.state != "doubtful":
            self._send_pending(known)
        self._store.put_route(known)

    def _history(self, route: Route, report: Mapping[str, Any]) -> None:
        """What became of an order before this store was made."""
        route.cumulative = int(report["cumulative_quantity"])
        if report["exec_type"] == "REPLACED":
            route.price, route.quantity = int(report["price"]), route.cumulative + int(report["leaves_quantity"])
            route.cl_ord_id, route.pending = route.pending or route.cl_ord_id, ""
        if report["order_status"] in _ENDED:
            self._done(route)
        else:
            self._store.put_route(route)

    def _answered_by_matching(self, said: list[dict[str, Any]], answer: Mapping[str, Any]) -> None:
        reason, number = answer["reason"], int(answer["input"])
        if reason in ("NONE", "DUPLICATE_EXECUTION") or number >= len(said):
            return
        REFUSED.labels(reason).inc()
        log.error("venue_report_not_applied", reason=reason, **said[number])

    def _answer_here(self, route: Route) -> None:
        """Answer a cancel or replace of an order that the venue never heard of."""
        if route.pending_kind == CANCEL:
            self._say(route, "CANCELED", {"text": "never sent"})
            self._done(route)
        else:
            route.price, route.quantity = route.pending_price, route.pending_quantity
            self._say(route, "REPLACED", {
                "request": _number(route.pending), "price": str(route.price), "quantity": str(route.quantity),
            })  # fmt: skip
            route.pending = route.pending_kind = ""

    # --- to the venue ----------------------------------------------------------------------------------------------

    @property
    def _is_connected(self) -> bool:
        return self.session is not None and self.session.is_logged_on

    def lost(self) -> None:
        """The connection is gone."""
        self._is_asked = False
        self._away_since = self._clock()

    def tend(self) -> None:
        """Twice a second: ask for what is not known, refuse what cannot be sent."""
        now = self._clock()
        if self._is_connected:
            self._away_since = now
        if self._is_connected and self.is_caught_up and not self._is_asked:
            self._is_asked = True
            for route in list(self._routes.values()):
                if route.state != "waiting":
                    self._ask(route)
        limit = now - int(self._config.answer_seconds * MICROS)
        for key, route in list(self._unanswered.items()):
            if route.sent_at < limit:
                if key not in self._late:
                    self._late.add(key)
                    self.circuit.failed()
                if self._is_asked and self._asked_at.get(key, 0) < limit:
                    self._ask(route)
        self._dispatch()

    def _dispatch(self) -> None:
        """Send orders that wait, or refuse them."""
        is_away = self._clock() - self._away_since > self._config.grace_seconds * MICROS
        for route in list(self._waiting.values()):
            if self._is_connected and self._is_asked:
                if self.circuit.allows():
                    self._send_new(route, "sent")
                else:
                    self._refuse(route, "the circuit is open: the venue did not answer, or refused, several orders")
            elif not self._is_connected and is_away:
                self._refuse(route, "the venue is not connected")

    def _refuse(self, route: Route, why: str) -> None:
        ROUTED.labels("refused").inc()
        self._say(route, "REJECTED", {"reason": "VENUE_UNAVAILABLE", "text": why})
        self._done(route)

    def _send_new(self, route: Route, state: str) -> None:
        assert self.session is not None
        ROUTED.labels(state).inc()
        self._become(route, state)
        route.sent_at = self._clock()
        self.session.send(NEW_ORDER, [
            (11, route.cl_ord_id), (1, self._config.account), (21, 1), *self._order(route, route.price, route.quantity),
            (59, route.time_in_force), (126, format_time(route.expire_at) if route.expire_at else ""),
        ], possible_resend=state == "again")  # fmt: skip
        self._store.put_route(route)

    def _send_pending(self, route: Route) -> None:
        assert self.session is not None
        self.session.send(route.pending_kind, [
            (41, route.cl_ord_id), (11, route.pending), (1, self._config.account),
            *self._order(route, route.pending_price, route.pending_quantity, with_price=route.pending_kind == REPLACE),
        ])  # fmt: skip

    def _order(self, route: Route, price: int, quantity: int, *, with_price: bool = True) -> Fields:
        instrument = self._instrument(route.symbol)
        fields: list[tuple[int, str | int]] = [
            (55, route.symbol), (54, route.side), (60, format_time(self._clock())), (38, instrument.quantity(quantity)),
        ]  # fmt: skip
        if with_price:
            fields += [(40, route.order_type), (44, instrument.price(price) if route.order_type == "2" else "")]
        return fields

    def _ask(self, route: Route) -> None:
        assert self.session is not None
        self._asked_at[route.shard, route.number] = self._clock()
        self.session.send(STATUS, [(11, route.cl_ord_id), (55, route.symbol), (54, route.side)])

    # --- from the venue --------------------------------------------------------------------------------------------

    def receive(self, session: Session, message: Message) -> None:
        """Take an application message, or a Reject of one of ours."""
        if message.type == "8":
            self._execution(message)
        elif message.type == "9":
            route = self._route_of(message.get(11))
            if route is not None and route.pending == message.get(11):
                self._not_changed(route, message)
        elif message.type in ("j", "3"):
            self._not_taken(session, message)
        else:
            log.warning("message_ignored", type=message.type)

    def _execution(self, message: Message) -> None:
        kind = message.get(150)
        route = self._route_of(message.get(11)) or self._route_of(message.get(41))
        if route is None:
            if kind != "I":
                self._say_stray(message)
            return
        if kind == "I":
            self._status(route, message)
            return
        if kind in _PENDING:
            return
        if self._store.is_heard(route, message.get(17), self._clock()):
            DUPLICATES.inc()
            return
        said = _SAID.get(kind, "CORRECTION")
        instrument = self._instrument(route.symbol)
        more = self._fields(route, message)
        if said == "TRADE":
            more["quantity"] = str(_units(message, 32, instrument, instrument.lot))
            more["price"] = str(_units(message, 31, instrument, instrument.tick))
            route.cumulative = max(route.cumulative, int(more["cumulative_quantity"]))
        elif said == "REPLACED":
            more["request"] = _number(route.pending or route.cl_ord_id)
            more["quantity"] = str(_units(message, 38, instrument, instrument.lot))
            more["price"] = str(
                _units(message, 44, instrument, instrument.tick) if message.get(44) else route.pending_price
            )
            if route.pending_kind == REPLACE:
                route.price, route.quantity = route.pending_price, route.pending_quantity
                route.cl_ord_id, route.pending, route.pending_kind = route.pending, "", ""
        elif said == "REJECTED" and message.get(103) == EXCHANGE_CLOSED:
            more["reason"] = "VENUE_UNAVAILABLE"
        self._say(route, said, more)
        self._heard_of(route, is_failure="reason" in more)
        if said in ("CANCELED", "REJECTED", "EXPIRED") or (route.is_filled and not route.pending):
            self._done(route)
        else:
            self._store.put_route(route)

    def _heard_of(self, route: Route, *, is_failure: bool = False) -> None:
        """The venue answered; as to an order that was not answered yet, that tells how the venue is."""
        if route.state in ("sent", "again"):
            if is_failure:
                self.circuit.failed()
            else:
                self.circuit.succeeded()
        if route.state != "done":
            self._become(route, "live")
        self._late.discard((route.shard, route.number))

    def _status(self, route: Route, message: Message) -> None:
        """The answer to a question; all that it tells of executions was, or will be, told in messages of their own."""
        status, instrument = message.get(39), self._instrument(route.symbol)
        cumulative = _units(message, 14, instrument, instrument.lot)
        if route.state == "done":
            return
        if status == "8":
            if route.state in ("sent", "doubtful"):
                log.warning("order_sent_again", cl_ord_id=route.cl_ord_id, text=message.get(58))
                self._send_new(route, "again")
            elif route.state == "again":
                self._say(route, "REJECTED", self._fields(route, message) | {"venue_execution_id": ""})
                self._heard_of(route)
                self._done(route)
            else:
                DOUBTS.labels("unknown order").inc()
                log.error("order_unknown_at_venue", cl_ord_id=route.cl_ord_id, order_id=route.order_id)
            return
        was_doubtful = route.state == "doubtful"
        self._heard_of(route)
        if cumulative > route.cumulative:
            DOUBTS.labels("fills missing").inc()
            log.error(
                "fills_missing", cl_ord_id=route.cl_ord_id, order_id=route.order_id, heard=route.cumulative,
                traded=cumulative,
            )  # fmt: skip
        if status in ("4", "C", "3"):
            self._say(route, _SAID[status], self._fields(route, message) | {"venue_execution_id": ""})
            self._done(route)
            return
        if was_doubtful and route.pending:
            self._send_pending(route)
        self._store.put_route(route)

    def _not_changed(self, route: Route, message: Message) -> None:
        """A cancel or replace was refused."""
        said = "CANCEL_REJECTED" if route.pending_kind == CANCEL else "REPLACE_REJECTED"
        self._say(route, said, self._fields(route, message) | {"request": _number(route.pending)})
        route.pending = route.pending_kind = ""
        if route.is_filled:
            self._done(route)
        else:
            self._store.put_route(route)

    def _not_taken(self, session: Session, message: Message) -> None:
        """A message of ours was no valid one to the venue, or it takes none at the moment."""
        sequence = message.get(45)
        sent = list(self._store.sent(session.comp_id, int(sequence), int(sequence))) if sequence.isdecimal() else []
        ours = Message(sent[0].body) if sent else None
        route = self._route_of(ours.get(11)) if ours is not None else None
        log.error("message_refused_by_venue", type=message.type, text=message.get(58), sequence=sequence)
        if route is None or ours is None or route.state == "done":
            return
        if sent[0].msg_type == NEW_ORDER and route.state in ("sent", "again"):
            away = message.type == "j" and message.get(380) == NOT_AVAILABLE
            more = self._fields(route, message)
            self._say(route, "REJECTED", more | {"reason": "VENUE_UNAVAILABLE"} if away else more)
            self._heard_of(route, is_failure=away)
            self._done(route)
        elif sent[0].msg_type in (CANCEL, REPLACE) and route.pending == ours.get(11):
            self._not_changed(route, message)

    # --- helpers ---------------------------------------------------------------------------------------------------

    def _route_of(self, cl_ord_id: str) -> Route | None:
        found = self._store.route_of(cl_ord_id) if cl_ord_id else None
        return self._routes.get((found.shard, found.number), found) if found is not None else None

    def _become(self, route: Route, state: str) -> None:
        key, route.state = (route.shard, route.number), state
        self._waiting.pop(key, None)
        self._unanswered.pop(key, None)
        self._doubtful.discard(key)
        if state == "waiting":
            self._waiting[key] = route
        elif state in ("sent", "again"):
            self._unanswered[key] = route
        elif state == "doubtful":
            self._doubtful.add(key)

    def _done(self, route: Route) -> None:
        key = route.shard, route.number
        self._become(route, "done")
        route.pending, route.pending_kind, route.updated_at = "", "", self._clock()
        self._store.put_route(route)
        self._routes.pop(key, None)
        self._asked_at.pop(key, None)
        self._late.discard(key)
        if self._by_order.get((route.shard, route.order_id)) is route:
            del self._by_order[route.shard, route.order_id]

    def _fields(self, route: Route, message: Message) -> dict[str, Any]:
        instrument = self._instrument(route.symbol)
        return {
            "venue_execution_id": message.get(17)[:MAX_ID], "venue_order_id": message.get(37)[:MAX_ID],
            "text": message.get(58)[:MAX_TEXT], "transact_time": str(max(0, parse_time(message.get(60)))),
            "cumulative_quantity": str(
                _units(message, 14, instrument, instrument.lot) if message.get(14) else route.cumulative
            ),
        }  # fmt: skip

    def _say(self, route: Route, exec_type: str, more: Mapping[str, Any]) -> None:
        record = {
            "type": "VenueReport", "venue": self._venue, "order_id": str(route.order_id), "route": str(route.number),
            "symbol": route.symbol, "exec_type": exec_type, **more,
        }  # fmt: skip
        self._put(route.shard, record)

    def _say_stray(self, message: Message) -> None:
        """An execution of an order that is not ours: the kernel will not know it either, but the log tells of it."""
        symbol = message.get(55)[:32]
        DOUBTS.labels("unknown order").inc()
        stray = Route(shard_of(symbol), 0, 0, symbol, "", "", "", 0, 0, 0, "", "", "", 0, 0, 0, "done", 0, 0)
        self._say(stray, _SAID.get(message.get(150), "CORRECTION"), self._fields(stray, message))

    def _put(self, shard: int, record: dict[str, Any]) -> None:
        trace, _ = self._frames.add(shard, record)
        self._said.setdefault(trace, []).append(record)

    def _instrument(self, symbol: str) -> Instrument:
        return self._instruments.get(symbol, self._any_instrument)


def _one(events: Events, index: int) -> dict[str, Any]:
    [report] = render_events(_REPORTS, Events(events.rows[index : index + 1], events.heap))
    return report


def _number(cl_ord_id: str) -> str:
    return cl_ord_id.partition("-")[2]


def _units(message: Message, tag: int, instrument: Instrument, unit: Any) -> int:
    """A price in ticks or a quantity in lots; 0 for none, or one that is not a whole number of them."""
    return instrument.units(message.get(tag), unit) or 0 if message.get(tag) else 0
