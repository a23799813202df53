"""Do a venue and we have the same trades? The venue's own record, compared with the orders' history.

A trade is known by the order and the venue's ExecID, which is unique for an order. The venue names an order by the
ClOrdID of any of its requests: shard and number of the RouteRequest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipelines.trading.audit import OrderEvent

__all__ = ["Difference", "RoutedTrades", "VenueTrade"]

_Order = tuple[int, int] | str
"""Shard and order id, or the ClOrdID of an order that we do not know."""


class VenueTrade(NamedTuple):
    """A trade as the venue has it; price in ticks."""

    cl_ord_id: str
    execution_id: str
    symbol: str
    side: str
    lots: int
    ticks: int


class Difference(NamedTuple):
    """What only one has (the other being None), or both have differently."""

    order: str
    execution_id: str
    here: str | None
    there: str | None


class RoutedTrades:
    """What the log has of one venue; fed the order events of all shards, in the order of each."""

    def __init__(self, venue: str) -> None:
        self._venue = venue
        self._orders: dict[str, tuple[int, int]] = {}
        self._trades: dict[tuple[_Order, str], str] = {}

    def feed(self, event: OrderEvent) -> None:
        if event.venue != self._venue:
            return
        order = (event.shard, event.order_id)
        if event.exec_type.startswith("ROUTE_"):
            self._orders[f"{event.shard}-{event.execution_id}"] = order
        elif event.exec_type == "TRADE" and event.order is not None:
            told = _told(event.order.symbol, event.order.side, event.trade_quantity, event.trade_price)
            self._trades[order, event.venue_execution_id] = told

    def __len__(self) -> int:
        return len(self._trades)

    def differences(self, trades: Iterable[VenueTrade]) -> Iterator[Difference]:
        """Between the venue's trades and these: first in the venue's order, then what only we have."""
        left = dict(self._trades)
        for trade in trades:
            order: _Order = self._orders.get(trade.cl_ord_id, trade.cl_ord_id)
            here = left.pop((order, trade.execution_id), None)
            there = _told(trade.symbol, trade.side, trade.lots, trade.ticks)
            if here != there:
                yield Difference(_name(order), trade.execution_id, here, there)
        for (order, execution_id), here in left.items():
            yield Difference(_name(order), execution_id, here, None)


def _told(symbol: str, side: str, lots: int, ticks: int) -> str:
    return f"{symbol} {side} {lots} @ {ticks}"


def _name(order: _Order) -> str:
    return f"ClOrdID {order}" if isinstance(order, str) else f"{order[0]}-{order[1]}"
