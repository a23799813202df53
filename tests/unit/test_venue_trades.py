"""A venue's own record of its trades, compared with the log's."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from api.fix.definitions import Instrument
from api.fix.venue_copy import VenueCopyError, read_venue_copy
from api.fix.wire import encode, encode_body
from pipelines.trading.audit import Order, OrderEvent
from pipelines.trading.venue_trades import RoutedTrades, VenueTrade

INSTRUMENTS = {"ACME": Instrument(Decimal("0.01"), Decimal(10))}


def execution(number: int, exec_type: str, exec_id: str, cl_ord_id: str = "2-5", **more: str) -> bytes:
    """An ExecutionReport; ``t32="20"`` is LastQty."""
    fields = {37: "V1", 11: cl_ord_id, 17: exec_id, 150: exec_type, 55: "ACME", 54: "1", 32: "20", 31: "1.05"}
    fields |= {int(tag[1:]): value for tag, value in more.items()}
    return encode("8", "XV", "STREAMBANK", number, 0, encode_body(list(fields.items())))


def copy(path: Path, *messages: bytes) -> list[VenueTrade]:
    path.write_bytes(b"".join(b"20261123-04:00:00: " + message + b"\n" for message in messages))
    return read_venue_copy([path], INSTRUMENTS)


def log(*events: tuple[str, int, str, int, int]) -> RoutedTrades:
    """Of shard 2, order 77 of XV: (exec type, execution id, venue's ExecID, lots, ticks)."""
    trades = RoutedTrades("XV")
    order = Order(77, "A", "ACME", "BUY")
    for kind, number, exec_id, lots, ticks in events:
        for venue in ("XV", "ELSE"):
            trades.feed(OrderEvent(2, 0, 2 * number, number, kind, 77, order, "NONE", ticks, lots, venue=venue,
                                   venue_execution_id=exec_id + ("" if venue == "XV" else "x")))  # fmt: skip
    return trades


ASKED = [("ROUTE_NEW", 5, "", 0, 0), ("ROUTE_REPLACE", 8, "", 0, 0)]


def test_trades_are_matched_by_order_and_exec_id(tmp_path: Path) -> None:
    theirs = copy(
        tmp_path / "copy", execution(1, "0", "E0"), execution(2, "F", "E1"), execution(3, "F", "E1"),
        execution(4, "F", "E2", "2-8", t32="10", t31="1.07"), encode("0", "XV", "STREAMBANK", 5, 0, b""),
    )  # fmt: skip
    ours = log(*ASKED, ("TRADE", 6, "E1", 2, 105), ("TRADE", 9, "E2", 1, 107))
    assert (len(ours), len(theirs), list(ours.differences(theirs))) == (2, 2, [])


@pytest.mark.parametrize(
    ("messages", "differences"),
    [
        ([execution(1, "F", "E1"), execution(2, "F", "E3")],
         [("2-77", "E3", None, "ACME BUY 2 @ 105"), ("2-77", "E2", "ACME BUY 1 @ 107", None)]),
        ([execution(1, "F", "E1", t31="1.06"), execution(2, "F", "E2", t32="10", t31="1.07")],
         [("2-77", "E1", "ACME BUY 2 @ 105", "ACME BUY 2 @ 106")]),
        ([execution(1, "F", "E1"), execution(2, "F", "E2", t32="10", t31="1.07"),
          execution(3, "H", "E4", "2-8", t19="E1")],
         [("2-77", "E1", "ACME BUY 2 @ 105", None)]),
        ([execution(1, "F", "E1"), execution(2, "F", "E2", t32="10", t31="1.07"),
          execution(3, "G", "E4", t19="E2", t32="20", t31="1.07")],
         [("2-77", "E4", None, "ACME BUY 2 @ 107"), ("2-77", "E2", "ACME BUY 1 @ 107", None)]),
        ([execution(1, "F", "E1"), execution(2, "F", "E2", t32="10", t31="1.07"),
          execution(3, "F", "E1", "9-9", t37="V2")],
         [("ClOrdID 9-9", "E1", None, "ACME BUY 2 @ 105")]),
    ],
)  # fmt: skip
def test_what_differs_is_named(
    tmp_path: Path, messages: Sequence[bytes], differences: list[tuple[str, str, str | None, str | None]]
) -> None:
    ours = log(*ASKED, ("TRADE", 6, "E1", 2, 105), ("TRADE", 9, "E2", 1, 107))
    assert list(ours.differences(copy(tmp_path / "copy", *messages))) == differences


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "0 FIX messages"), (b"time,price\n1,2\n", "0 FIX messages"),
     (execution(1, "F", "E1").replace(b"1.05", b"1.06"), "length or checksum"),
     (execution(1, "F", "E1", t31="1.005"), "whole lots and ticks"), (execution(1, "F", "E1", t32="5"), "whole lots")],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "copy").write_bytes(content)
    with pytest.raises(VenueCopyError, match=says):
        read_venue_copy([tmp_path / "copy"], INSTRUMENTS)
