"""A plain order book to judge the kernel by: lists and loops, every step looked up anew, nothing clever.

It covers orders, instructions, amendments, self-trade prevention and stops of accounts without risk checks, in a symbol
that is ready to trade, and gives the reports of `tests.support.matching_frames.in_short`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_SLICES = 1_000


@dataclass
class Order:
    id: int
    account: str
    symbol: str
    side: str
    order_type: str
    time_in_force: str
    price: int
    leaves: int
    stop_price: int = 0
    display: int = 0
    shown: int = 0
    post_only: bool = False
    prevention: str = "NONE"
    expire_at: int = 0
    executed: int = 0

    @property
    def visible(self) -> int:
        return self.shown if self.display else self.leaves


class MatchingModel:
    """Books of any symbols; ``resting`` and ``stops`` are in the order of priority within a price."""

    def __init__(self) -> None:
        self.resting: list[Order] = []
        self.stops: list[Order] = []
        self.last: dict[str, int] = {}
        self.reports: list[str] = []
        self.traded = 0

    def apply(self, commands: list[dict[str, Any]], clock: int = 0) -> list[str]:
        self.reports = []
        for order in sorted(self.resting + self.stops, key=lambda order: (order.expire_at, order.id)):
            if order.expire_at and order.expire_at <= clock:
                self._take_off(order)
                self.say("EXPIRED", order, order.leaves, reason="GOOD_TILL_DATE")
        for command in commands:
            getattr(self, command["type"])(command, clock)
        return self.reports

    def say(self, what: str, order: Order, quantity: int, maker: str = "", price: int = -1, reason: str = "") -> None:
        at = order.price if price < 0 else price
        self.reports.append(f"{what} {order.id}{maker} {quantity}@{at}{' ' + reason if reason else ''}")

    def find(self, order_id: int) -> Order | None:
        return next((order for order in self.resting + self.stops if order.id == order_id), None)

    def side(self, symbol: str, side: str) -> list[Order]:
        """Resting orders, best first."""
        orders = [order for order in self.resting if order.symbol == symbol and order.side == side]
        return sorted(orders, key=lambda order: -order.price if side == "BUY" else order.price)

    def book(self, symbol: str) -> tuple[list[tuple[int, int, int]], ...]:
        sides = []
        for side in ("BUY", "SELL"):
            levels: dict[int, list[Order]] = {}
            for order in self.side(symbol, side):
                levels.setdefault(order.price, []).append(order)
            sides.append([(price, sum(o.visible for o in found), len(found)) for price, found in levels.items()])
        return tuple(sides)

    def _take_off(self, order: Order) -> None:
        for orders in (self.resting, self.stops):
            if order in orders:
                orders.remove(order)

    def reachable(self, order: Order) -> list[Order]:
        """Orders of the other side within the limit, best first."""
        other = "SELL" if order.side == "BUY" else "BUY"
        found = self.side(order.symbol, other)
        if order.order_type == "MARKET":
            return found
        if order.side == "BUY":
            return [maker for maker in found if maker.price <= order.price]
        return [maker for maker in found if maker.price >= order.price]

    def available(self, order: Order) -> list[tuple[int, int]]:
        """(price, lots) that an incoming order may trade with, as far as self-trade prevention lets it."""
        found = []
        for maker in self.reachable(order):
            if order.prevention != "NONE" and maker.account == order.account:
                if order.prevention == "CANCEL_OLDEST":
                    continue
                break
            found.append((maker.price, maker.leaves))
        return found

    def NewOrder(self, command: dict[str, Any], clock: int) -> None:  # noqa: N802 - the event's name
        get = command.get
        order = Order(
            command["order_id"], get("account", "TEST"), get("symbol", "TEST"), command["side"],
            get("order_type", "LIMIT"), get("time_in_force", "GTC"), get("price", 0), command["quantity"],
            get("stop_price", 0), get("display_quantity", 0), 0, get("post_only", False),
            get("self_trade_prevention", "NONE"), get("expire_at", 0),
        )  # fmt: skip
        minimum, budget = get("minimum_quantity", 0), get("budget", 0)
        waits = order.order_type in ("STOP", "STOP_LIMIT")
        unpriced = order.order_type in ("MARKET", "STOP")
        immediate = order.time_in_force in ("IOC", "FOK")
        reason = ""
        if self.find(order.id):
            reason = "DUPLICATE_ORDER"
        elif not 1 <= order.leaves <= 10**12:
            reason = "INCORRECT_QUANTITY"
        elif not unpriced and not 1 <= order.price <= 10**15:
            reason = "INVALID_PRICE"
        elif order.stop_price and not waits:
            reason = "UNSUPPORTED_ORDER_CHARACTERISTIC"
        elif waits and not 1 <= order.stop_price <= 10**15:
            reason = "INVALID_PRICE"
        elif order.display < 0 or minimum < 0 or minimum > order.leaves:
            reason = "INCORRECT_QUANTITY"
        elif (minimum and waits) or (0 < order.display < order.leaves and (unpriced or immediate)):
            reason = "UNSUPPORTED_ORDER_CHARACTERISTIC"
        elif 0 < order.display < order.leaves and order.display * MAX_SLICES < order.leaves:
            reason = "INCORRECT_QUANTITY"
        elif order.post_only and (order.order_type != "LIMIT" or immediate):
            reason = "UNSUPPORTED_ORDER_CHARACTERISTIC"
        elif order.time_in_force == "GTD" and order.expire_at <= clock:
            reason = "EXPIRE_TIME_PASSED"
        elif (order.time_in_force != "GTD" and order.expire_at) or (
            budget and (order.order_type, order.time_in_force) != ("MARKET", "FOK")
        ):
            reason = "UNSUPPORTED_ORDER_CHARACTERISTIC"
        elif order.post_only and self.reachable(order):
            reason = "POST_ONLY_WOULD_TRADE"
        if reason:
            self.say("REJECTED", order, order.leaves, reason=reason)
            return
        if unpriced:
            order.price = 0
        if order.display >= order.leaves:
            order.display = 0
        self.say("NEW", order, order.leaves)
        if waits:
            order.shown = order.display
            self.stops.append(order)
        else:
            self.enter(order, minimum, budget)
        self.trigger(order.symbol)

    def enter(self, order: Order, minimum: int = 0, budget: int = 0) -> None:
        """Match, then rest or cancel what is left."""
        lots = sum(quantity for _, quantity in self.available(order))
        if order.time_in_force == "FOK":
            killed = lots < order.leaves
            left, cost = order.leaves, 0
            for price, quantity in self.available(order):
                cost += price * min(left, quantity)
                left -= min(left, quantity)
            killed |= bool(budget) and (cost > budget if order.side == "BUY" else cost < budget)
            if killed:
                self.say("CANCELED", order, order.leaves, reason="FILL_OR_KILL")
                return
        if lots < minimum:
            self.say("CANCELED", order, order.leaves, reason="MINIMUM_QUANTITY")
            return
        while order.leaves and (makers := self.reachable(order)):
            maker = makers[0]
            if order.prevention != "NONE" and maker.account == order.account:
                if self.prevent(order, maker):
                    return
                continue
            quantity = min(order.leaves, maker.visible)
            for one in (order, maker):
                one.leaves -= quantity
                one.executed += quantity
            maker.shown -= quantity
            self.traded += quantity
            self.last[order.symbol] = maker.price
            self.low, self.high = min(self.low, maker.price), max(self.high, maker.price)
            self.say("TRADE", order, quantity, f"<{maker.id}", maker.price)
            if maker.leaves == 0:
                self.resting.remove(maker)
            elif maker.display and maker.shown == 0:
                maker.shown = min(maker.display, maker.leaves)
                self.resting.remove(maker)
                self.resting.append(maker)
        if order.leaves and (order.order_type == "MARKET" or order.time_in_force in ("IOC", "FOK")):
            self.say("CANCELED", order, order.leaves, reason="IMMEDIATE_OR_CANCEL")
        elif order.leaves:
            order.shown = min(order.display, order.leaves)
            self.resting.append(order)

    def prevent(self, order: Order, maker: Order) -> bool:
        """Whether the incoming order ends."""
        why = "SELF_TRADE_PREVENTION"
        if order.prevention == "CANCEL_NEWEST":
            self.say("CANCELED", order, order.leaves, reason=why)
            return True
        if order.prevention in ("CANCEL_OLDEST", "CANCEL_BOTH"):
            self.resting.remove(maker)
            self.say("CANCELED", maker, maker.leaves, reason=why)
            if order.prevention == "CANCEL_BOTH":
                self.say("CANCELED", order, order.leaves, reason=why)
                return True
            return False
        common = min(order.leaves, maker.leaves)
        if maker.leaves == common:
            self.resting.remove(maker)
            self.say("CANCELED", maker, common, reason=why)
        else:
            maker.leaves -= common
            maker.shown = min(maker.shown, maker.leaves)
            self.say("REPLACED", maker, maker.leaves, reason=why)
        order.leaves -= common
        self.say("REPLACED" if order.leaves else "CANCELED", order, order.leaves or common, reason=why)
        return order.leaves == 0

    low, high = 1 << 60, 0

    def trigger(self, symbol: str) -> None:
        """Trigger stops one at a time until none is reached by the trades of this event."""
        if symbol in self.last:
            self.low, self.high = min(self.low, self.last[symbol]), max(self.high, self.last[symbol])
        while True:
            own = [stop for stop in self.stops if stop.symbol == symbol]
            buys = [stop for stop in own if stop.side == "BUY" and stop.stop_price <= self.high]
            sells = [stop for stop in own if stop.side == "SELL" and stop.stop_price >= self.low]
            if buys:
                stop = min(buys, key=lambda stop: stop.stop_price)
            elif sells:
                stop = max(sells, key=lambda stop: stop.stop_price)
            else:
                break
            self.stops.remove(stop)
            stop.order_type = "LIMIT" if stop.order_type == "STOP_LIMIT" else "MARKET"
            self.say("TRIGGERED", stop, stop.leaves)
            self.enter(stop)
        self.low, self.high = 1 << 60, 0

    def CancelOrder(self, command: dict[str, Any], clock: int) -> None:  # noqa: N802
        order = self.find(command["order_id"])
        if order is None or command.get("account", order.account) != order.account:
            self.reports.append(f"CANCEL_REJECTED {command['order_id']} UNKNOWN_ORDER")
            return
        self._take_off(order)
        self.say("CANCELED", order, order.leaves, reason="USER_REQUEST")

    def AmendOrder(self, command: dict[str, Any], clock: int) -> None:  # noqa: N802
        order = self.find(command["order_id"])
        reason = ""
        if order is None or command.get("account", order.account) != order.account:
            self.reports.append(f"AMEND_REJECTED {command['order_id']} UNKNOWN_ORDER")
            return
        waits = order in self.stops
        price = order.price if command.get("price") is None or order.order_type == "STOP" else command["price"]
        quantity = order.leaves if command.get("quantity") is None else command["quantity"]
        stop_price = command.get("stop_price")
        if not 0 <= quantity <= 10**12:
            reason = "INCORRECT_QUANTITY"
        elif order.order_type != "STOP" and not 1 <= price <= 10**15:
            reason = "INVALID_PRICE"
        elif stop_price is not None and not waits:
            reason = "UNSUPPORTED_ORDER_CHARACTERISTIC"
        elif stop_price is not None and stop_price < 1:
            reason = "INVALID_PRICE"
        if not reason and order.display and order.display * MAX_SLICES < quantity:
            reason = "INCORRECT_QUANTITY"
        if order.post_only and quantity and not reason:
            moved = Order(0, "", order.symbol, order.side, "LIMIT", "GTC", price, 1)
            reason = "POST_ONLY_WOULD_TRADE" if self.reachable(moved) else ""
        if reason:
            self.reports.append(f"AMEND_REJECTED {order.id} {reason}")
            return
        if quantity == 0:
            self._take_off(order)
            self.say("CANCELED", order, order.leaves, reason="USER_REQUEST")
            return
        if waits:
            stop_price = order.stop_price if stop_price is None else stop_price
            if stop_price != order.stop_price or price != order.price or quantity >= order.leaves:
                self.stops.remove(order)
                self.stops.append(order)
            order.stop_price, order.price, order.leaves = stop_price, price, quantity
            order.display = order.shown = min(order.display, quantity)
            self.say("REPLACED", order, quantity)
            self.trigger(order.symbol)
            return
        keeps_place = price == order.price and quantity < order.leaves
        order.price, order.leaves = price, quantity
        self.say("REPLACED", order, quantity)
        if keeps_place:
            order.shown = min(order.shown, quantity)
            return
        self.resting.remove(order)
        self.enter(order)
        self.trigger(order.symbol)

    def MassCancel(self, command: dict[str, Any], clock: int) -> None:  # noqa: N802
        ended = 0
        for symbol in dict.fromkeys(self.symbols):
            if command.get("symbol", symbol) != symbol:
                continue
            bids, asks = self.side(symbol, "BUY"), self.side(symbol, "SELL")
            stops = [stop for stop in self.stops if stop.symbol == symbol]
            buys = sorted((s for s in stops if s.side == "BUY"), key=lambda stop: stop.stop_price)
            sells = sorted((s for s in stops if s.side == "SELL"), key=lambda stop: -stop.stop_price)
            for order in (*bids, *asks, *buys, *sells):
                if command.get("account", order.account) != order.account:
                    continue
                if command.get("side", "BOTH") not in ("BOTH", order.side):
                    continue
                self._take_off(order)
                self.say("CANCELED", order, order.leaves, reason="MASS_CANCEL")
                ended += 1
        self.reports.append(f"MASS_CANCELED {ended}")

    symbols: tuple[str, ...] = ("TEST",)
