"""Drop copies: sessions that only listen get every execution report of their accounts, wherever the order came from.

A copy is numbered and stored in the transaction that moves the place in the reports, so it is neither lost nor
repeated, and waits for a session that is away. It has the ExecID that the order's own session got, and
CopyMsgIndicator(797) Y.

Of the orders of watched accounts the sums are kept that reports do not carry (CumQty of a resting order, AvgPx); they
count from when the account was first watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np

from api.fix.definitions import Definition, Instrument
from api.fix.session import Session
from api.fix.store import CopiedOrder, Store
from api.fix.wire import SIDE_CODES, format_time
from pipelines.catalogue import MATCHING_REPORTS
from pipelines.codec import codec_of, text
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame

__all__ = ["EVERY_ACCOUNT", "EXEC_TYPES", "ROUTED_OUT", "STATUSES", "DropCopies", "execution_id"]

EVERY_ACCOUNT: Final = "*"
"""Instead of an account of a session that gets drop copies: all of them."""

_REPORTS: Final = codec_of(MATCHING_REPORTS.name)
_EXECUTION: Final = _REPORTS.event_type("ExecutionReport")
_ACCOUNT_WORD: Final = _EXECUTION.field("account").word
_MAKER_WORD: Final = _EXECUTION.field("maker_account").word

STATUSES: Final = {
    "NEW": "0", "PARTIALLY_FILLED": "1", "FILLED": "2", "CANCELED": "4", "REJECTED": "8", "SUSPENDED": "9",
    "EXPIRED": "C",
}  # fmt: skip
EXEC_TYPES: Final = {
    "NEW": "0", "TRADE": "F", "CANCELED": "4", "REPLACED": "5", "REJECTED": "8", "EXPIRED": "C", "SUSPENDED": "9",
}  # fmt: skip
"""What is not here is D, Restated."""
ROUTED_OUT: Final = 3
"""LastLiquidityInd of a trade at a venue; 1 is that of the resting order, 2 of the incoming one."""
_OTHER_SIDE: Final = {"BUY": "SELL", "SELL": "BUY"}


def execution_id(shard: int, execution: int, *, is_maker: bool) -> str:
    """The ExecID of a report for one side: a function of the log."""
    return f"{shard}.{2 * execution + is_maker}"


class DropCopies:
    """All sessions of a gateway that get copies; every call is made within a transaction of the store."""

    def __init__(
        self, store: Store, instruments: Mapping[str, Instrument], session_of: Callable[[str], Session]
    ) -> None:
        self._store = store
        self._instruments = instruments
        self._any_instrument = Instrument()
        self._session_of = session_of
        self._orders = {(order.shard, order.order_id): order for order in store.copied_orders()}
        self._watchers: dict[str, list[str]] = {}

    def watch(self, definitions: Iterable[Definition]) -> None:
        """Copy for these sessions from now on, as far as they are for drop copies and not revoked."""
        watchers: dict[str, list[str]] = {}
        for definition in definitions:
            if definition.drop_copy and definition.revoked_at is None:
                for account in definition.accounts:
                    watchers.setdefault(account, []).append(definition.comp_id)
        self._watchers = watchers

    def apply(self, frame: Frame) -> None:
        """Copy what a frame of reports says."""
        if not self._watchers:
            return
        events = frame.events
        for index in np.flatnonzero(events.rows[:, 0] == _EXECUTION.kind).tolist():
            row = events.rows[index]
            takers = self._watching(text(events, int(row[_ACCOUNT_WORD])))
            makers = self._watching(text(events, int(row[_MAKER_WORD])))
            if not takers and not makers:
                continue
            [report] = render_events(_REPORTS, Events(events.rows[index : index + 1], events.heap))
            if takers:
                self._copy(frame, report, takers, is_maker=False)
            if makers and report["maker_order_id"] is not None:
                self._copy(frame, report, makers, is_maker=True)

    def _watching(self, account: str) -> list[str]:
        if not account:
            return []
        return [*self._watchers.get(account, ()), *self._watchers.get(EVERY_ACCOUNT, ())]

    def _copy(self, frame: Frame, report: Mapping[str, Any], comp_ids: Iterable[str], *, is_maker: bool) -> None:
        order = self._updated(frame.shard, report, is_maker=is_maker)
        instrument = self._instruments.get(order.symbol, self._any_instrument)
        trade: list[tuple[int, str | int]] = []
        if report["exec_type"] == "TRADE":
            at_venue = report["maker_order_id"] is None
            trade = [
                (32, instrument.quantity(int(report["quantity"]))), (31, instrument.price(int(report["price"]))),
                (851, ROUTED_OUT if at_venue else 1 if is_maker else 2),
                (30, report["maker_account"] if at_venue else ""), (527, report["venue_execution_id"]),
            ]  # fmt: skip
        known = self._store.order(order.order_id)
        entered_here = known is not None and (known.account, known.symbol) == (order.account, order.symbol)
        is_live = order.status in "019"
        fields: list[tuple[int, str | int]] = [
            (37, order.order_id), (11, known.cl_ord_id if known is not None and entered_here else ""),
            (17, execution_id(frame.shard, int(report["execution_id"]), is_maker=is_maker)),
            (150, EXEC_TYPES.get(report["exec_type"], "D")), (39, order.status), (1, order.account),
            (55, order.symbol), (54, SIDE_CODES[order.side]), (38, instrument.quantity(order.quantity)),
            (44, instrument.price(order.price) if order.price else ""),
            (151, instrument.quantity(order.leaves if is_live else 0)), (14, instrument.quantity(order.cumulative)),
            (6, instrument.average(order.notional, order.cumulative)), *trade, (60, format_time(frame.produced_at)),
            (58, "" if report["reason"] == "NONE" else report["reason"]), (797, "Y"),
        ]  # fmt: skip
        for comp_id in dict.fromkeys(comp_ids):
            self._session_of(comp_id).send("8", fields)

    def _updated(self, shard: int, report: Mapping[str, Any], *, is_maker: bool) -> CopiedOrder:
        """The order after a report."""
        kind, traded = report["exec_type"], int(report["quantity"])
        order_id = int(report["maker_order_id" if is_maker else "order_id"])
        leaves = int(report["maker_leaves_quantity" if is_maker else "leaves_quantity"])
        key = shard, order_id
        known = self._orders.get(key)
        if known is None or kind in ("NEW", "REJECTED"):
            order = CopiedOrder(
                shard, order_id, report["maker_account" if is_maker else "account"], report["symbol"],
                _OTHER_SIDE[report["side"]] if is_maker else report["side"], int(report["price"]), 0, 0, leaves, 0, "0",
            )  # fmt: skip
        else:
            order = known
        order.leaves = leaves
        if kind == "TRADE":
            order.cumulative = order.cumulative + traded if is_maker else int(report["cumulative_quantity"])
            order.notional += traded * int(report["price"])
            order.status = "1" if leaves else "2"
        else:
            order.cumulative = int(report["cumulative_quantity"])
            order.status = STATUSES.get(report["order_status"]) or ("1" if order.cumulative else "0")
            if kind in ("NEW", "REPLACED", "TRIGGERED"):
                order.price = int(report["price"])
        if kind in ("NEW", "REPLACED") or order.quantity == 0:
            order.quantity = order.cumulative + (leaves or (0 if kind == "TRADE" else traded))
        if kind == "REJECTED":
            return order  # its id may be that of a live one
        if order.status in "019":
            self._orders[key] = order
            self._store.put_copied(order)
        else:
            self._orders.pop(key, None)
            self._store.drop_copied(order)
        return order
