"""Frames of matching.commands from plain dicts, and the kernel's answers as plain dicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.matching.kernel import MatchingKernel

COMMANDS = codec_of("matching.commands")


def new(order_id: int, side: str, price: int = 0, quantity: int = 1, **fields: Any) -> dict[str, Any]:
    """A NewOrder; a limit order that rests unless fields say otherwise."""
    return {
        "type": "NewOrder", "order_id": order_id, "side": side, "price": price, "quantity": quantity, **fields
    }  # fmt: skip


def cancel(order_id: int, **fields: Any) -> dict[str, Any]:
    return {"type": "CancelOrder", "order_id": order_id, **fields}


def amend(order_id: int, price: int | None = None, quantity: int | None = None, **fields: Any) -> dict[str, Any]:
    return {"type": "AmendOrder", "order_id": order_id, "price": price, "quantity": quantity, **fields}


def command_frame(commands: Iterable[dict[str, Any]], produced_at: int = 0, shard: int = 0) -> Frame:
    return Frame("matching.commands", shard, 0, produced_at, None, parse_events(COMMANDS, list(commands)))


class Matching:
    """A kernel that takes and gives plain dicts."""

    def __init__(self) -> None:
        self.kernel = MatchingKernel()
        self.market_data: list[dict[str, Any]] = []
        """All of it, in order."""

    def apply(self, *commands: dict[str, Any], at: int = 0) -> list[dict[str, Any]]:
        """The reports of one frame."""
        reports: list[dict[str, Any]] = []
        for output in self.kernel.apply(command_frame(commands, at)):
            rows = render_events(codec_of(output.topic), output.events)
            if output.topic == "matching.reports":
                reports += rows
            else:
                self.market_data += rows
        return reports

    def short(self, *commands: dict[str, Any], at: int = 0) -> list[str]:
        """The reports of one frame in a line each: ``TRADE 2<1 5@100`` is order 2 trading with order 1."""
        return [in_short(report) for report in self.apply(*commands, at=at)]

    def book(self, symbol: str = "TEST") -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """(bids, asks) as (price, shown lots, orders), best first."""
        depth = self.kernel.depth(symbol)
        return depth["bids"], depth["asks"]

    def balances(self, account: str) -> dict[str, tuple[int, int]]:
        """(available, held) per asset."""
        return {
            row["asset"]: (row["available"], row["held"])
            for row in self.kernel.state_rows()
            if row["type"] == "Balance" and row["account"] == account
        }


def in_short(report: dict[str, Any]) -> str:
    reason = "" if report["reason"] == "NONE" else f" {report['reason']}"
    if report["type"] == "OrderCancelReject":
        return f"{report['response_to']}_REJECTED {report['order_id']}{reason}"
    if report["type"] == "MassCancelReport":
        return f"MASS_CANCELED {report['affected']}{reason}"
    if report["type"] == "AdminReport":
        return f"DONE{reason}" if not reason else f"REFUSED{reason}"
    maker = "" if report["maker_order_id"] is None else f"<{report['maker_order_id']}"
    return f"{report['exec_type']} {report['order_id']}{maker} {report['quantity']}@{report['price']}{reason}"
