"""The matching kernel as an engine that ``tracebook-conformance`` drives: NDJSON on standard input and output.

Prices become ticks of the configured size, snapped to the nearest as the suite wants it; quantities become lots of
10^-8. Order ids are unique per symbol there and per shard here, so a symbol's number goes into the id.
"""

from __future__ import annotations

import os
import sys
from decimal import Decimal
from typing import Any

from tracebook.conformance import BookSnapshot, BookState, EngineMetadata, Observation, Outcome, RestingOrder, TradeFill
from tracebook.conformance.model import canonical_decimal
from tracebook.conformance.protocol import serve_stdio

from tests.support.matching_frames import Matching, amend, cancel, new

LOT = Decimal("1e-8")
PREVENTION = {"NONE": "NONE", "CANCEL_RESTING": "CANCEL_OLDEST", "CANCEL_INCOMING": "CANCEL_NEWEST"}
CODES = {"UNKNOWN_ORDER": "ORDER_NOT_ACTIVE", "DUPLICATE_ORDER": "DUPLICATE_ORDER_ID"}
FIRST_OF_SYMBOL = 1 << 40


class Adapter:
    metadata = EngineMetadata("streambank", "1", "Python")

    def __init__(self, config: Any) -> None:
        self.tick = Decimal(str(config.tick_size))
        self.prevention = PREVENTION[getattr(config.self_trade_policy, "name", str(config.self_trade_policy))]
        self.symbols: list[str] = []
        self.matching = Matching()

    def apply(self, event: Any, index: int) -> Observation:
        reports = self.matching.apply(*self.commands(event))
        refused = next(
            (r["reason"] for r in reports if "REJECTED" in (r.get("exec_type"), r.get("order_status"))), None
        )
        refused = refused or next((r["reason"] for r in reports if r["type"] == "OrderCancelReject"), None)
        outcome = Outcome("applied")
        if refused:
            fallback = "INVALID_REPLACEMENT" if event.op == "replace" else "INVALID_ORDER"
            outcome = Outcome("rejected", CODES.get(refused, fallback), refused)
        fills = tuple(self.fill(report) for report in reports if report.get("exec_type") == "TRADE")
        state = self.snapshot()
        return Observation(index, outcome, fills, state.digest(), state.order_count)

    def commands(self, event: Any) -> list[dict[str, Any]]:
        if event.symbol not in self.symbols:
            self.symbols.append(event.symbol)
        if event.op == "clear":
            # an order that trades with nobody makes the symbol known
            probe = new(0, "BUY", 1, 1, symbol=event.symbol, time_in_force="IOC")
            return [{"type": "MassCancel", "symbol": event.symbol}] if self.known(event.symbol) else [probe]
        order_id = self.symbols.index(event.symbol) * FIRST_OF_SYMBOL + event.order_id
        live = self.matching.kernel.order(order_id)
        price = None if event.price is None else round(Decimal(str(event.price)) / self.tick)
        lots = None if event.quantity is None else int(Decimal(str(event.quantity)) / LOT)
        match event.op:
            case "cancel":
                return [cancel(order_id)]
            case "reduce":
                return [amend(order_id, quantity=max(0, live["leaves_quantity"] - (lots or 0)) if live else 1)]
            case "replace" if live and price in (None, live["price"]) and 0 < (lots or 0) < live["leaves_quantity"]:
                # a replacement always loses its place there, a lower quantity keeps it here
                again = new(order_id, live["side"], live["price"], lots or 0, symbol=event.symbol)
                return [cancel(order_id), again | {"account": live["account"]}]
            case "replace":
                # zero lots would cancel here and are refused there
                return [amend(order_id, price, -1 if lots == 0 else lots)]
        kind = event.order_type.name
        fields: dict[str, Any] = {"order_type": "MARKET"} if kind == "MARKET" else {}
        if kind in ("IOC", "FOK"):
            fields["time_in_force"] = kind
        return [
            new(
                order_id, event.side.name, price or 0, lots or 0, symbol=event.symbol, account=str(event.owner),
                self_trade_prevention=self.prevention, **fields,
            )
        ]  # fmt: skip

    def known(self, symbol: str) -> bool:
        return symbol in self.matching.kernel.symbols

    def fill(self, report: dict[str, Any]) -> TradeFill:
        taker, maker = report["order_id"] % FIRST_OF_SYMBOL, report["maker_order_id"] % FIRST_OF_SYMBOL
        buyer, seller = (taker, maker) if report["side"] == "BUY" else (maker, taker)
        return TradeFill(
            symbol=report["symbol"],
            buy_order_id=buyer,
            sell_order_id=seller,
            price=canonical_decimal(report["price"] * self.tick),
            quantity=canonical_decimal(report["quantity"] * LOT),
        )

    def snapshot(self) -> BookState:
        books: dict[str, dict[str, list[RestingOrder]]] = {
            symbol: {"BUY": [], "SELL": []} for symbol in self.matching.kernel.symbols
        }
        for row in self.matching.kernel.state_rows():
            if row["type"] == "Order":
                books[row["symbol"]][row["side"]].append(
                    RestingOrder(
                        order_id=row["order_id"] % FIRST_OF_SYMBOL,
                        price=canonical_decimal(row["price"] * self.tick),
                        remaining_quantity=canonical_decimal(row["leaves_quantity"] * LOT),
                        owner=int(row["account"]),
                    )
                )
        return BookState(
            tuple(
                BookSnapshot(symbol, tuple(books[symbol]["BUY"]), tuple(books[symbol]["SELL"]))
                for symbol in sorted(books)
            )
        )

    def close(self) -> None:
        """Nothing is held."""


if __name__ == "__main__":
    # compile before the suite's clock runs
    Matching().apply(new(1, "BUY", 1, 1))
    status = serve_stdio(Adapter)
    sys.stdout.flush()
    # the suite gives a process a second to end, which an interpreter's shutdown can take on a busy machine
    os._exit(status)
