"""Orders of FIX sessions: messages become commands of matching.commands, and reports become messages.

**Once.** A ClOrdID is stored with what was made of it, in the transaction that counts its message. Its order id is a
hash of gateway, session and ClOrdID. A ClOrdID that comes again is refused as a duplicate, or, with PossResend,
answered with the order's status; either way it enters nothing.

**Which answer belongs to which request.** The frame that carries a command has a trace and the command a position in
it; both are stored with the ClOrdID, and a report carries both. What no request of the session brought about is
unsolicited and carries the order's present ClOrdID.

ExecID is ``<shard>.<number>``, the number being twice the execution id of the log, plus one for the resting side of a
trade: the same report has the same ExecID for ever.

Not thread-safe; every call is made within a transaction of the store.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from api.fix.commands import CommandFrames
from api.fix.definitions import Instrument
from api.fix.drop_copy import EXEC_TYPES, ROUTED_OUT, STATUSES, execution_id
from api.fix.session import REJECT, TAG_MISSING, WRONG_FORMAT, WRONG_VALUE, Session
from api.fix.store import Order, PendingFrame, Request, Store
from api.fix.wire import SIDES, Fields, Message, format_time, parse_time
from pipelines.catalogue import MATCHING_REPORTS
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame
from pipelines.trading.routing import shard_of

__all__ = ["OrderDesk"]

_REPORTS: Final = codec_of(MATCHING_REPORTS.name)
_EXECUTION: Final = _REPORTS.event_type("ExecutionReport")
_ORDER_WORD: Final = _EXECUTION.field("order_id").word
_MAKER_WORD: Final = _EXECUTION.field("maker_order_id").word
_REFUSAL: Final = _REPORTS.event_type("OrderCancelReject")
_REFUSED_WORD: Final = _REFUSAL.field("order_id").word
_ROUTE: Final = _REPORTS.event_type("RouteRequest")
_INPUT_WORD: Final = _REFUSAL.field("input").word

_ORDER_TYPES: Final = {"1": "MARKET", "2": "LIMIT", "3": "STOP", "4": "STOP_LIMIT"}
_TIMES_IN_FORCE: Final = {"0": "DAY", "1": "GTC", "3": "IOC", "4": "FOK", "6": "GTD"}
_REJECT_REASONS: Final = {
    "UNKNOWN_SYMBOL": 1, "EXCHANGE_CLOSED": 2, "VENUE_UNAVAILABLE": 2, "TRADING_HALT": 2,
    "ORDER_EXCEEDS_LIMIT": 3, "UNKNOWN_ORDER": 5, "DUPLICATE_ORDER": 6,
    "UNSUPPORTED_ORDER_CHARACTERISTIC": 11, "INCORRECT_QUANTITY": 13, "UNKNOWN_ACCOUNT": 15,
}  # fmt: skip
"""OrdRejReason; FIX 4.4 has not the later numbers of FIX 5.0 and its readers refuse them: they are 99, see Text."""
OTHER: Final = 99
TOO_LATE, UNKNOWN_ORDER, ALREADY_PENDING, DUPLICATE_CL_ORD_ID = 0, 1, 3, 6
"""CxlRejReason."""
_CANCEL_REJECT_REASONS: Final = {"UNKNOWN_ORDER": UNKNOWN_ORDER, "REQUEST_PENDING": ALREADY_PENDING}
EXECUTION_REPORT, CANCEL_REJECT, BUSINESS_REJECT = "8", "9", "j"
TO_CANCEL, TO_REPLACE = 1, 2


class _Malformed(Exception):  # noqa: N818 - a state, named for what it is
    """A field that is not what its type allows: (tag, SessionRejectReason, text)."""


class _Refused(Exception):  # noqa: N818 - a state, named for what it is
    """A request that is refused: (OrdRejReason or CxlRejReason, text)."""


class OrderDesk:
    """The orders of all sessions of a gateway. ``session_of`` gives the session of a CompID; ``log_ends`` the offset of
    the last record known to be in matching.commands, per shard."""

    def __init__(
        self,
        own_comp_id: str,
        store: Store,
        instruments: Mapping[str, Instrument],
        session_of: Callable[[str], Session],
        log_ends: dict[int, int],
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._own_comp_id = own_comp_id
        self._store = store
        self._instruments = instruments
        self._any_instrument = Instrument()
        self._session_of = session_of
        self._frames = CommandFrames(store, log_ends, clock)
        self._clock = clock
        self._live = {order.order_id: order for order in store.live_orders()}
        self._waiting: dict[str, dict[int, Request]] = {}
        self._routed: dict[int, Request] = {}
        """Cancels and replaces that a venue was asked for, by order: they are answered when it answers."""
        self._replacing: set[int] = set()
        """Orders with a replace that was not answered."""
        for request in store.open_requests():
            self._await(request)
        self._handlers: dict[str, Callable[[Session, Message], None]] = {
            "D": self._new, "F": self._cancel, "G": self._replace, "H": self._status, "AF": self._mass_status,
        }  # fmt: skip

    # --- requests --------------------------------------------------------------------------------------------------

    def receive(self, session: Session, message: Message) -> None:
        """Take an application message."""
        if message.type == REJECT:
            return  # of something that we said, and nothing that could be done about
        handler = self._handlers.get(message.type)
        reads_only = session.definition is not None and session.definition.drop_copy
        if handler is None or reads_only:
            problem = (6, "a session for drop copies enters nothing") if reads_only else (3, "not supported")
            fields: Fields = [(45, message.sequence), (372, message.type), (380, problem[0]), (58, problem[1])]
            session.send(BUSINESS_REJECT, fields)
            return
        try:
            handler(session, message)
        except _Malformed as error:
            session.reject(message, *error.args)

    def cancel_all(self, session: Session) -> int:
        """Cancel the session's live orders, because its connection is gone; returns how many."""
        orders = [order for order in self._live.values() if order.comp_id == session.comp_id]
        number = session.definition.number if session.definition else 0
        for order in orders:
            self._command(order.symbol, {
                "type": "CancelOrder", "order_id": str(order.order_id), "account": order.account,
                "symbol": order.symbol, "session": number, "transact_time": str(self._clock()),
            })  # fmt: skip
        return len(orders)

    def take_frames(self) -> list[PendingFrame]:
        """Store what the messages asked for since the last call, as frames that are now to be sent."""
        return self._frames.take()

    def _command(self, symbol: str, record: Mapping[str, Any]) -> tuple[str, int]:
        return self._frames.add(shard_of(symbol), record)

    def _new(self, session: Session, message: Message) -> None:
        cl_ord_id = _identifier(message, 11)
        for tag in (55, 54, 40, 38, 60):
            _required(message, tag)
        known = self._store.request(session.comp_id, cl_ord_id)
        try:
            if known is not None:
                if message.get(97) == "Y":
                    self._answer_again(session, known)
                    return
                raise _Refused(6, f"ClOrdID {cl_ord_id} was used before")
            self._enter(session, message, cl_ord_id)
        except _Refused as refused:
            reason, text = refused.args
            instrument = self._instrument(message.get(55))
            session.send(EXECUTION_REPORT, [
                (37, "NONE"), (11, cl_ord_id), (17, self._refusal_id()), (150, "8"), (39, "8"), (103, reason),
                (1, message.get(1)), (55, message.get(55)), (54, message.get(54)), (38, message.get(38)),
                (40, message.get(40)), (44, message.get(44)), (151, 0), (14, 0), (6, instrument.average(0, 0)),
                (60, format_time(self._clock())), (58, text),
            ])  # fmt: skip

    def _enter(self, session: Session, message: Message, cl_ord_id: str) -> None:
        if not session.takes_message():
            raise _Refused(OTHER, "THROTTLED: too many messages a second in this session")
        symbol, account = message.get(55), self._account(session, message)
        if not (symbol.isascii() and len(symbol) <= 32):
            raise _Refused(1, "UNKNOWN_SYMBOL: a symbol has at most 32 ASCII characters")
        if not (message.get(100).isascii() and len(message.get(100)) <= 32):
            raise _Refused(OTHER, "UNKNOWN_VENUE: an ExDestination has at most 32 ASCII characters")
        instrument = self._instrument(symbol)
        side = SIDES.get(message.get(54))
        order_type = _ORDER_TYPES.get(message.get(40))
        time_in_force = _TIMES_IN_FORCE.get(message.get(59, "0"))
        instructions = message.get(18).split()
        if side is None or order_type is None or time_in_force is None or not {"6"}.issuperset(instructions):
            raise _Refused(11, "UNSUPPORTED_ORDER_CHARACTERISTIC: see Side, OrdType, TimeInForce and ExecInst")
        limited, stopped = order_type in ("LIMIT", "STOP_LIMIT"), order_type in ("STOP", "STOP_LIMIT")
        price = _price(message, 44, instrument) if limited else 0
        stop_price = _price(message, 99, instrument) if stopped else 0
        quantity = _quantity(message, 38, instrument)
        expire_at = _time(message, 126) if time_in_force == "GTD" else 0
        digest = hashlib.blake2b(f"{self._own_comp_id}/{session.comp_id}/{cl_ord_id}".encode(), digest_size=8).digest()
        order_id = int.from_bytes(digest) >> 1
        now = self._clock()
        trace, position = self._command(symbol, {
            "type": "NewOrder", "order_id": str(order_id), "account": account, "symbol": symbol, "side": side,
            "order_type": order_type, "time_in_force": time_in_force, "price": str(price), "quantity": str(quantity),
            "stop_price": str(stop_price), "expire_at": str(expire_at), "post_only": bool(instructions),
            "display_quantity": str(_quantity(message, 111, instrument) if message.get(111) else 0),
            "minimum_quantity": str(_quantity(message, 110, instrument) if message.get(110) else 0),
            "session": session.definition.number if session.definition else 0,
            "transact_time": str(_time(message, 60)), "destination": message.get(100),
        })  # fmt: skip
        order = Order(
            order_id, session.comp_id, cl_ord_id, account, symbol, message.get(54), message.get(40),
            message.get(59, "0"), price, stop_price, quantity, 0, quantity, 0, "A", now,
        )  # fmt: skip
        self._live[order_id] = order
        self._store.put_order(order)
        self._open(session, message, "new", order_id, "", trace, position)

    def _cancel(self, session: Session, message: Message) -> None:
        cl_ord_id, original = _identifier(message, 11), _identifier(message, 41)
        order: Order | None = None
        try:
            order = self._order_of(session, message, original, cl_ord_id)
            if order is None:
                return
            trace, position = self._command(order.symbol, {
                "type": "CancelOrder", "order_id": str(order.order_id), "account": order.account,
                "symbol": order.symbol, "session": session.definition.number if session.definition else 0,
                "transact_time": str(_time(message, 60)),
            })  # fmt: skip
            self._open(session, message, "cancel", order.order_id, original, trace, position)
        except _Refused as refused:
            self._refuse_change(session, cl_ord_id, original, TO_CANCEL, *refused.args)

    def _replace(self, session: Session, message: Message) -> None:
        cl_ord_id, original = _identifier(message, 11), _identifier(message, 41)
        _required(message, 38)
        try:
            order = self._order_of(session, message, original, cl_ord_id)
            if order is None:
                return
            if not session.takes_message():
                raise _Refused(OTHER, "THROTTLED: too many messages a second in this session")
            if order.order_id in self._replacing:
                raise _Refused(ALREADY_PENDING, "a replace of this order was not answered yet")
            self._amend(session, message, order, original)
        except _Refused as refused:
            self._refuse_change(session, cl_ord_id, original, TO_REPLACE, *refused.args)

    def _amend(self, session: Session, message: Message, order: Order, original: str) -> None:
        for tag, value in ((54, order.side), (40, order.order_type), (59, order.time_in_force)):
            if message.get(tag, value) != value:
                raise _Refused(OTHER, f"tag {tag} cannot be changed; cancel the order and enter another")
        instrument = self._instrument(order.symbol)
        quantity = _quantity(message, 38, instrument)
        if quantity <= order.cumulative:
            raise _Refused(OTHER, "OrderQty must be more than CumQty; cancel what is left instead")
        record: dict[str, Any] = {
            "type": "AmendOrder", "order_id": str(order.order_id), "account": order.account, "symbol": order.symbol,
            "session": session.definition.number if session.definition else 0, "transact_time": str(_time(message, 60)),
        }  # fmt: skip
        stop_price = 0
        if order.order_type in "24" and message.get(44):
            record["price"] = str(_price(message, 44, instrument))
        if order.order_type in "34" and message.get(99):
            stop_price = _price(message, 99, instrument)
            record["stop_price"] = str(stop_price)
        if quantity != order.quantity:
            record["total_quantity"] = str(quantity)  # the market knows all trades
        trace, position = self._command(order.symbol, record)
        self._replacing.add(order.order_id)
        self._open(session, message, "replace", order.order_id, original, trace, position, stop_price)

    def _order_of(self, session: Session, message: Message, original: str, cl_ord_id: str) -> Order | None:
        """The live order that a cancel or replace names; None when it was answered as one that was sent again."""
        known = self._store.request(session.comp_id, cl_ord_id)
        if known is not None:
            if message.get(97) == "Y":
                self._answer_again(session, known)
                return None
            raise _Refused(DUPLICATE_CL_ORD_ID, f"ClOrdID {cl_ord_id} was used before")
        found = self._store.request(session.comp_id, original)
        if found is None or found.state == "refused":
            raise _Refused(UNKNOWN_ORDER, "UNKNOWN_ORDER: no order has this OrigClOrdID")
        order = self._live.get(found.order_id)
        if order is None:
            raise _Refused(TOO_LATE, "the order has ended")
        if message.get(55, order.symbol) != order.symbol or message.get(1, order.account) != order.account:
            raise _Refused(UNKNOWN_ORDER, "Symbol or Account is not the order's")
        return order

    def _answer_again(self, session: Session, known: Request) -> None:
        order = self._store.order(known.order_id)
        if known.state != "sent" and order is not None:
            self._send_status(session, order, [])

    def _refuse_change(
        self, session: Session, cl_ord_id: str, original: str, response_to: int, reason: int, text: str
    ) -> None:
        found = self._store.request(session.comp_id, original)
        order = self._store.order(found.order_id) if found is not None else None
        session.send(CANCEL_REJECT, [
            (37, order.order_id if order else "NONE"), (11, cl_ord_id), (41, original),
            (39, order.status if order else "8"), (434, response_to), (102, reason),
            (60, format_time(self._clock())), (58, text),
        ])  # fmt: skip

    def _open(
        self, session: Session, message: Message, kind: str, order_id: int, original: str, trace: str, position: int,
        stop_price: int = 0,
    ) -> None:  # fmt: skip
        request = Request(
            session.comp_id,
            message.get(11),
            kind,
            order_id,
            original,
            trace,
            position,
            stop_price,
            "sent",
            self._clock(),
        )
        self._store.put_request(request)
        self._await(request)

    def _await(self, request: Request) -> None:
        if request.state == "routed":
            self._routed[request.order_id] = request
        else:
            self._waiting.setdefault(request.trace, {})[request.position] = request
        if request.kind == "replace":
            self._replacing.add(request.order_id)

    # --- status ----------------------------------------------------------------------------------------------------

    def _status(self, session: Session, message: Message) -> None:
        cl_ord_id = _identifier(message, 11)
        found = self._store.request(session.comp_id, cl_ord_id)
        order = self._store.order(found.order_id) if found is not None else None
        echo: Fields = [(790, message.get(790))]
        if order is None:
            session.send(EXECUTION_REPORT, [
                (37, "NONE"), (11, cl_ord_id), *echo, (17, "0"), (150, "I"), (39, "8"), (103, 5),
                (55, message.get(55, "[N/A]")), (54, message.get(54, "7")), (151, 0), (14, 0), (6, 0),
                (58, "UNKNOWN_ORDER: no order has this ClOrdID"),
            ])  # fmt: skip
        else:
            self._send_status(session, order, echo)

    def _mass_status(self, session: Session, message: Message) -> None:
        request_id = _identifier(message, 584)
        if _required(message, 585) != "7":
            raise _Malformed(585, WRONG_VALUE, "only 7, all orders, is supported")
        orders = [order for order in self._live.values() if order.comp_id == session.comp_id]
        for index, order in enumerate(orders, 1):
            last = "Y" if index == len(orders) else "N"
            self._send_status(session, order, [(584, request_id), (911, len(orders)), (912, last)])
        if not orders:
            session.send(EXECUTION_REPORT, [
                (37, "NONE"), (584, request_id), (911, 0), (912, "Y"), (17, "0"), (150, "I"), (39, "8"), (103, 5),
                (55, "[N/A]"), (54, "7"), (151, 0), (14, 0), (6, 0), (58, "no live orders"),
            ])  # fmt: skip

    def _send_status(self, session: Session, order: Order, more: Fields) -> None:
        self._send(session, order, "I", "0", more)

    # --- reports ---------------------------------------------------------------------------------------------------

    def apply(self, frame: Frame) -> None:
        """Tell sessions what a frame of reports says of their orders."""
        waiting = self._waiting.get(frame.trace or "", {})
        events, live = frame.events, self._live
        for index, row in enumerate(events.rows.tolist()):
            if row[0] == _EXECUTION.kind:
                concerns = row[_ORDER_WORD] in live or row[_MAKER_WORD] in live
            elif row[0] == _REFUSAL.kind:
                concerns = row[_INPUT_WORD] in waiting or row[_REFUSED_WORD] in self._routed
            else:
                concerns = row[0] == _ROUTE.kind and row[_INPUT_WORD] in waiting
            if not concerns:
                continue
            [report] = render_events(_REPORTS, Events(events.rows[index : index + 1], events.heap))
            request = waiting.get(int(report["input"]))
            if report["type"] == "OrderCancelReject":
                asked = request or self._routed_request(report, {"CANCEL": "cancel", "AMEND": "replace"})
                if asked is not None:
                    self._change_refused(asked, report)
            elif report["type"] == "RouteRequest":
                if request is not None and request.kind != "new" and request.order_id == int(report["order_id"]):
                    self._ask_venue(request)
            else:
                self._execution(frame, report, request)

    def _execution(self, frame: Frame, report: Mapping[str, Any], request: Request | None) -> None:
        order_id = int(report["order_id"])
        mine = request if request is not None and request.order_id == order_id else None
        order = self._live.get(order_id) if mine is not None else self._own(order_id, report["account"], report)
        if order is not None:
            mine = mine or self._routed_request(report, {"CANCELED": "cancel", "REPLACED": "replace"})
            self._happened(frame, order, report, mine)
        if report["exec_type"] == "TRADE" and report["maker_order_id"] is not None:
            maker = self._own(int(report["maker_order_id"]), report["maker_account"], report)
            if maker is not None:
                maker.cumulative += int(report["quantity"])
                self._traded(frame, maker, report, int(report["maker_leaves_quantity"]), is_maker=True)

    def _routed_request(self, report: Mapping[str, Any], kinds: Mapping[str, str]) -> Request | None:
        """The request that a venue was asked for and now has answered."""
        asked = self._routed.get(int(report["order_id"]))
        said = kinds.get(report.get("response_to") or report["exec_type"])
        return asked if asked is not None and asked.kind == said else None

    def _ask_venue(self, request: Request) -> None:
        self._forget(request)
        request.state = "routed"
        self._store.put_request(request)
        self._routed[request.order_id] = request

    def _own(self, order_id: int, account: str, report: Mapping[str, Any]) -> Order | None:
        order = self._live.get(order_id)
        return order if order and (order.account, order.symbol) == (account, report["symbol"]) else None

    def _happened(self, frame: Frame, order: Order, report: Mapping[str, Any], request: Request | None) -> None:
        kind, reason = report["exec_type"], report["reason"]
        if kind == "TRADE":
            order.cumulative = int(report["cumulative_quantity"])
            self._traded(frame, order, report, int(report["leaves_quantity"]), is_maker=False)
            return
        if kind == "REJECTED" and order.status != "A":
            return  # an order of this id that came after ours
        order.leaves = int(report["leaves_quantity"])
        order.cumulative = int(report["cumulative_quantity"])
        order.status = STATUSES.get(report["order_status"]) or ("1" if order.cumulative else "0")
        exec_type = EXEC_TYPES.get(kind, "D")
        more: list[tuple[int, str | int]] = []
        if kind == "REPLACED":
            order.quantity = order.cumulative + order.leaves
            order.price = int(report["price"])
            if request is not None and request.kind == "replace":
                order.stop_price = request.stop_price or order.stop_price
            else:
                exec_type = "D"
        if request is not None and request.kind != "new":
            more.append((41, order.cl_ord_id))
            if kind == "REPLACED":
                order.cl_ord_id = request.cl_ord_id
        if exec_type == "D":
            more.append((378, 8))
        if kind == "REJECTED":
            more.append((103, _REJECT_REASONS.get(reason, OTHER)))
        if reason != "NONE" or kind == "TRIGGERED":
            more.append((58, kind if reason == "NONE" else reason))
        cl_ord_id = request.cl_ord_id if request is not None else order.cl_ord_id
        self._tell(frame, order, exec_type, report, more, cl_ord_id, is_maker=False)
        if request is not None:
            self._answered(request, "refused" if kind == "REJECTED" else "done")

    def _traded(self, frame: Frame, order: Order, report: Mapping[str, Any], leaves: int, *, is_maker: bool) -> None:
        quantity, price = int(report["quantity"]), int(report["price"])
        order.leaves = leaves
        order.notional += quantity * price
        order.status = "1" if leaves else "2"
        instrument, at_venue = self._instrument(order.symbol), report["maker_order_id"] is None
        more: list[tuple[int, str | int]] = [
            (32, instrument.quantity(quantity)), (31, instrument.price(price)),
            (851, ROUTED_OUT if at_venue else 1 if is_maker else 2), (30, report["maker_account"] if at_venue else ""),
            (527, report["venue_execution_id"]),
        ]  # fmt: skip
        self._tell(frame, order, "F", report, more, order.cl_ord_id, is_maker=is_maker)

    def _tell(
        self, frame: Frame, order: Order, exec_type: str, report: Mapping[str, Any], more: list[tuple[int, str | int]],
        cl_ord_id: str, *, is_maker: bool,
    ) -> None:  # fmt: skip
        order.updated_at = max(order.updated_at, frame.produced_at)
        self._store.put_order(order)
        if not order.is_live:
            del self._live[order.order_id]
        exec_id = execution_id(frame.shard, int(report["execution_id"]), is_maker=is_maker)
        self._send(
            self._session_of(order.comp_id), order, exec_type, exec_id, [*more, (60, format_time(frame.produced_at))],
            cl_ord_id,
        )  # fmt: skip

    def _send(
        self, session: Session, order: Order, exec_type: str, exec_id: str, more: Fields, cl_ord_id: str = ""
    ) -> None:
        instrument = self._instrument(order.symbol)
        session.send(EXECUTION_REPORT, [
            (37, order.order_id), (11, cl_ord_id or order.cl_ord_id), (17, exec_id), (150, exec_type),
            (39, order.status), (1, order.account), (55, order.symbol), (54, order.side),
            (38, instrument.quantity(order.quantity)), (40, order.order_type),
            (44, instrument.price(order.price) if order.price else ""),
            (99, instrument.price(order.stop_price) if order.stop_price else ""), (59, order.time_in_force),
            (151, instrument.quantity(order.leaves if order.is_live else 0)),
            (14, instrument.quantity(order.cumulative)),
            (6, instrument.average(order.notional, order.cumulative)), *more,
        ])  # fmt: skip

    def _change_refused(self, request: Request, report: Mapping[str, Any]) -> None:
        reason = _CANCEL_REJECT_REASONS.get(report["reason"], OTHER)
        if reason == UNKNOWN_ORDER and request.order_id not in self._live:
            reason = TOO_LATE
        response_to = TO_CANCEL if request.kind == "cancel" else TO_REPLACE
        session = self._session_of(request.comp_id)
        self._refuse_change(session, request.cl_ord_id, request.original, response_to, reason, report["reason"])
        self._answered(request, "refused")

    def _answered(self, request: Request, state: str) -> None:
        request.state = state
        self._store.put_request(request)
        if request.kind == "replace":
            self._replacing.discard(request.order_id)
        if self._routed.get(request.order_id) is request:
            del self._routed[request.order_id]
        self._forget(request)

    def _forget(self, request: Request) -> None:
        waiting = self._waiting.get(request.trace, {})
        waiting.pop(request.position, None)
        if not waiting:
            self._waiting.pop(request.trace, None)

    # --- fields ----------------------------------------------------------------------------------------------------

    def _account(self, session: Session, message: Message) -> str:
        accounts = session.definition.accounts if session.definition is not None else ()
        account = message.get(1) or (accounts[0] if len(accounts) == 1 else "")
        if account not in accounts:
            raise _Refused(15, "UNKNOWN_ACCOUNT: not an account of this session")
        return account

    def _instrument(self, symbol: str) -> Instrument:
        return self._instruments.get(symbol, self._any_instrument)

    def _refusal_id(self) -> str:
        return f"R{self._store.count('refusals')}"


def _required(message: Message, tag: int) -> str:
    value = message.get(tag)
    if not value:
        raise _Malformed(tag, TAG_MISSING, f"tag {tag} is required")
    return value


def _identifier(message: Message, tag: int) -> str:
    value = _required(message, tag)
    if len(value) > 64 or not value.isascii() or not value.isprintable():
        raise _Malformed(tag, WRONG_FORMAT, "at most 64 printable ASCII characters")
    return value


def _time(message: Message, tag: int) -> int:
    at = parse_time(_required(message, tag))
    if at < 0:
        raise _Malformed(tag, WRONG_FORMAT, "not a UTCTimestamp")
    return at


def _price(message: Message, tag: int, instrument: Instrument) -> int:
    """In ticks. Which prices are possible is decided by the market."""
    ticks = instrument.units(_required(message, tag), instrument.tick)
    if ticks is None:
        raise _Refused(OTHER, f"INVALID_PRICE_INCREMENT: tag {tag} is not a multiple of {instrument.tick}")
    return ticks


def _quantity(message: Message, tag: int, instrument: Instrument) -> int:
    lots = instrument.units(_required(message, tag), instrument.lot)
    if lots is None:
        raise _Refused(13, f"INCORRECT_QUANTITY: tag {tag} is not a multiple of {instrument.lot}")
    return lots
