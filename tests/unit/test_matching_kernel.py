"""What the matching promises order by order: reject reasons, instructions, risk, controls, output frames, restore."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.catalogue import PIPELINES
from pipelines.codec import codec_of
from pipelines.errors import FrameError
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame
from pipelines.kernel import InvariantBroken
from pipelines.matching.kernel import MAX_REPORTS, MatchingKernel
from pipelines.matching.records import Reason
from pipelines.shard import Shard
from tests.support.matching_frames import Matching, amend, cancel, command_frame, new

SPOT: list[dict[str, Any]] = [
    {"type": "SymbolDefinition", "symbol": "TEST", "base_asset": "ABC", "quote_asset": "USD", "base_per_lot": 10,
     "quote_per_tick": 2, "maker_fee": 1, "taker_fee": 3},
    {"type": "AccountDefinition", "account": "alice"},
    {"type": "AccountDefinition", "account": "bob"},
    {"type": "Deposit", "account": "alice", "asset": "USD", "amount": 10_000},
    {"type": "Deposit", "account": "bob", "asset": "ABC", "amount": 1_000},
]  # fmt: skip


@pytest.fixture
def matching() -> Matching:
    return Matching()


@pytest.fixture
def spot(matching: Matching) -> Matching:
    assert set(matching.short(*SPOT)) == {"DONE"}
    return matching


def status(value: str, symbol: str = "TEST") -> dict[str, Any]:
    return {"type": "SecurityTradingStatus", "symbol": symbol, "status": value}


def test_reasons_are_those_of_the_schema() -> None:
    execution = codec_of("matching.reports").event_type("ExecutionReport")
    assert execution.field("reason").symbols == tuple(reason.name for reason in Reason)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (new(1, "BUY", 10, 1), "DUPLICATE_ORDER"),
        (new(2, "BUY", 10, 0), "INCORRECT_QUANTITY"),
        (new(2, "BUY", 10, -5), "INCORRECT_QUANTITY"),
        (new(2, "BUY", 10, 10**12 + 2), "INCORRECT_QUANTITY"),
        (new(2, "BUY", 10, 3), "INCORRECT_QUANTITY"),
        (new(2, "BUY", 0, 2), "INVALID_PRICE"),
        (new(2, "BUY", 10**15 + 5, 2), "INVALID_PRICE"),
        (new(2, "BUY", 12, 2), "INVALID_PRICE_INCREMENT"),
        (new(2, "BUY", 10, 2, symbol="NONE"), "UNKNOWN_SYMBOL"),
        (new(2, "BUY", 10, 2, symbol="X" * 33), "UNKNOWN_SYMBOL"),
        (new(2, "BUY", 10, 2, account="nobody"), "UNKNOWN_ACCOUNT"),
        (new(2, "BUY", 10, 2, symbol="SHUT"), "EXCHANGE_CLOSED"),
        (new(2, "BUY", 10, 2, symbol="HALTED"), "TRADING_HALT"),
        (new(2, "BUY", 130, 2), "PRICE_EXCEEDS_CURRENT_PRICE_BAND"),
        (new(2, "BUY", 100, 1_000), "ORDER_EXCEEDS_LIMIT"),
        (new(2, "BUY", 100, 400), "NOTIONAL_EXCEEDS_THRESHOLD"),
        (new(2, "BUY", 10, 2, time_in_force="GTD", expire_at=5), "EXPIRE_TIME_PASSED"),
        (new(2, "SELL", 90, 2, post_only=True), "POST_ONLY_WOULD_TRADE"),
        (new(2, "BUY", 10, 2, post_only=True, time_in_force="IOC"), "UNSUPPORTED_ORDER_CHARACTERISTIC"),
        (new(2, "BUY", 10, 4, minimum_quantity=6), "INCORRECT_QUANTITY"),
        (new(2, "BUY", 10, 2, account="blocked"), "ACCOUNT_BLOCKED"),
        (cancel(9), "UNKNOWN_ORDER"),
        (cancel(1, account="blocked"), "UNKNOWN_ORDER"),
        (cancel(1, symbol="SHUT"), "UNKNOWN_ORDER"),
        (amend(9, 10, 2), "UNKNOWN_ORDER"),
        (amend(1, 12), "INVALID_PRICE_INCREMENT"),
        (amend(1, quantity=-2), "INCORRECT_QUANTITY"),
        (amend(1, quantity=3), "INCORRECT_QUANTITY"),
        (amend(1, 130), "PRICE_EXCEEDS_CURRENT_PRICE_BAND"),
    ],
)
def test_a_bad_order_has_its_reason_and_changes_nothing(matching: Matching, order: dict[str, Any], reason: str) -> None:
    matching.apply(
        {"type": "SymbolDefinition", "symbol": "TEST", "tick_size": 5, "lot_size": 2, "order_band_ppm": 200_000,
         "reference_price": 100, "maximum_quantity": 500, "maximum_notional": 30_000},
        {"type": "SymbolDefinition", "symbol": "SHUT", "status": "NOT_AVAILABLE_FOR_TRADING"},
        {"type": "SymbolDefinition", "symbol": "HALTED", "status": "TRADING_HALT"},
        {"type": "AccountDefinition", "account": "TEST", "risk": "OFF"},
        {"type": "AccountDefinition", "account": "blocked", "risk": "OFF"},
        {"type": "KillSwitch", "account": "blocked"},
        new(1, "BUY", 100, 2),
        at=10,
    )  # fmt: skip
    before = list(matching.kernel.state_rows())
    assert [report["reason"] for report in matching.apply(order, at=10)] == [reason]
    assert list(matching.kernel.state_rows()) == before
    matching.kernel.audit()


def test_symbols_and_accounts_need_no_definition_until_there_is_one(matching: Matching) -> None:
    assert matching.short(new(1, "BUY", 10, 1, symbol="ANY", account="42")) == ["NEW 1 1@10"]
    matching.apply({"type": "SymbolDefinition", "symbol": "TEST"})
    assert matching.short(new(2, "BUY", 10, 1, symbol="OTHER")) == ["REJECTED 2 1@10 UNKNOWN_SYMBOL"]
    assert matching.short(new(2, "BUY", 10, 1, symbol="ANY", account="new")) == ["NEW 2 1@10"]


def test_iceberg_shows_a_part_and_goes_behind_when_it_shows_the_next(matching: Matching) -> None:
    matching.apply(new(1, "SELL", 10, 10, display_quantity=4), new(2, "SELL", 10, 3))
    assert matching.book()[1] == [(10, 7, 2)]
    assert matching.short(new(3, "BUY", 10, 5)) == ["NEW 3 5@10", "TRADE 3<1 4@10", "TRADE 3<2 1@10"]
    assert matching.book()[1] == [(10, 6, 2)]
    assert matching.short(new(4, "BUY", 10, 8, time_in_force="FOK"))[1:] == [
        "TRADE 4<2 2@10", "TRADE 4<1 4@10", "TRADE 4<1 2@10"
    ]  # fmt: skip
    matching.kernel.audit()


def book_orders(matching: Matching) -> list[tuple[Any, ...]]:
    """The order feed since the last call: (place, side, price, lots)."""
    found = [
        tuple(event[name] for name in ("place", "side", "price", "quantity"))
        for event in matching.market_data if event["type"] == "BookOrder"
    ]  # fmt: skip
    matching.market_data.clear()
    return found


def test_the_order_feed_tells_each_resting_order_while_it_is_on(matching: Matching) -> None:
    feed = {"type": "SymbolDefinition", "symbol": "TEST"}
    matching.apply(new(1, "SELL", 10, 10, display_quantity=4), new(2, "SELL", 10, 3), new(3, "BUY", 9, 5))
    matching.apply(new(4, "BUY", 0, 1, order_type="STOP", stop_price=50))
    assert book_orders(matching) == []
    matching.apply(feed | {"order_feed": True})
    assert book_orders(matching) == [(3, "BUY", 9, 5), (1, "SELL", 10, 4), (2, "SELL", 10, 3)]
    matching.apply(new(5, "BUY", 10, 5))
    # the iceberg's next part goes behind the queue: it leaves and comes back with another place
    assert book_orders(matching) == [(1, "SELL", 10, 0), (5, "SELL", 10, 4), (2, "SELL", 10, 2)]
    matching.apply(amend(3, quantity=2), amend(3, 8), amend(1, quantity=5), cancel(2))
    assert book_orders(matching) == [(3, "BUY", 9, 2), (3, "BUY", 9, 0), (6, "BUY", 8, 2), (2, "SELL", 10, 0)]
    # an auction: both sides of its trades
    matching.apply(status("PRE_OPEN"), new(6, "BUY", 11, 1))
    assert book_orders(matching) == [(7, "BUY", 11, 1)]
    matching.apply(status("READY_TO_TRADE"))
    assert book_orders(matching) == [(7, "BUY", 11, 0), (5, "SELL", 10, 3)]
    pages = matching.kernel.dirty_pages()
    matching.kernel = MatchingKernel()
    matching.kernel.restore(pages, MatchingKernel.state_version)
    matching.apply(cancel(3))
    assert book_orders(matching) == [(6, "BUY", 8, 0)]
    matching.apply(feed)
    assert book_orders(matching) == [(5, "SELL", 10, 0)]
    matching.apply(new(7, "BUY", 1, 1))
    assert book_orders(matching) == []


def test_an_iceberg_cannot_be_cut_without_end(matching: Matching) -> None:
    assert matching.short(new(1, "SELL", 10, 10_000, display_quantity=9)) == ["REJECTED 1 10000@10 INCORRECT_QUANTITY"]


def test_prices_have_no_limit_that_matters(matching: Matching) -> None:
    prices = [1, 64, 4_095, 10**6, 10**9, 10**12, 10**15]
    matching.apply(*[new(price, "BUY", price, 1) for price in prices])
    assert [row[0] for row in matching.book()[0]] == prices[::-1]
    matching.kernel.audit()
    reports = matching.short(new(2, "SELL", 1, 10, time_in_force="IOC"))
    assert [int(report.split("@")[1]) for report in reports[1:-1]] == prices[::-1]
    assert matching.book() == ([], [])


def test_stop_cascade_runs_to_its_end_in_one_event(matching: Matching) -> None:
    matching.apply(*[new(number, "SELL", 100 + number, 1) for number in range(50)])
    stops = [new(100 + n, "BUY", 0, 1, order_type="STOP", stop_price=100 + n) for n in range(49)]
    matching.apply(*stops)
    reports = matching.apply(new(999, "BUY", 100, 1))
    assert [report["price"] for report in reports if report["exec_type"] == "TRADE"] == list(range(100, 150))
    assert {report["input"] for report in reports} == {0}


def test_good_till_date_ends_before_the_first_event_of_its_time(matching: Matching) -> None:
    matching.apply(
        new(7, "BUY", 10, 1, time_in_force="GTD", expire_at=50), new(8, "BUY", 11, 1, time_in_force="GTD", expire_at=40)
    )
    assert matching.apply(at=39) == []
    reports = matching.apply(new(9, "SELL", 10, 1), at=60)
    assert [(r["exec_type"], r["order_id"], r["input"]) for r in reports] == [
        ("EXPIRED", 8, -1), ("EXPIRED", 7, -1), ("NEW", 9, 0)
    ]  # fmt: skip


def test_many_reports_take_several_frames(matching: Matching) -> None:
    orders = [new(number, "SELL", 10, 1) for number in range(1, MAX_REPORTS + 1)]
    for first in range(0, len(orders), 1_000):
        matching.apply(*orders[first : first + 1_000])
    outputs = matching.kernel.apply(command_frame([new(0, "BUY", 10, MAX_REPORTS)]))
    assert [len(output.events) for output in outputs if output.topic == "matching.reports"] == [MAX_REPORTS, 1]
    outputs = matching.kernel.apply(command_frame([cancel(1)] * MAX_REPORTS))
    assert [len(output.events) for output in outputs if output.topic == "matching.reports"] == [MAX_REPORTS, 0]


def test_the_longest_frames_stay_below_the_size_limit() -> None:
    for topic, most in (("matching.reports", MAX_REPORTS), ("matching.market-data", 8_192)):
        codec = codec_of(topic)
        rows = codec.new_rows(most)
        rows[:, 1:] = 2**62
        for field in codec.event_types[0].fields:
            if field.storage == "string":
                rows[:, field.word] = 32
            elif field.storage in ("enum", "int"):
                rows[:, field.word] = len(field.symbols) - 1 if field.symbols else 2**31 - 1
            elif field.nullable:
                rows[:, field.is_set_word] = 1
        rows[:, 0] = 0
        heap = np.full(32, ord("X"), np.uint8)
        assert codec.encode(Frame(topic, 0, 1, 0, None, Events(rows, heap)))


def test_a_frame_from_the_far_future_is_refused(matching: Matching) -> None:
    with pytest.raises(FrameError, match="produced_at_out_of_range"):
        matching.apply(new(1, "BUY", 10, 1), at=10**17)


def test_restore_notices_a_missing_page(matching: Matching) -> None:
    matching.apply(*[new(number, "BUY", 10, 1) for number in range(1, 600)])
    pages = matching.kernel.dirty_pages()
    del pages["orders/1"]
    with pytest.raises(InvariantBroken, match="missing"):
        MatchingKernel().restore(pages, MatchingKernel.state_version)


# risk


def test_spot_reserve_settle_and_return(spot: Matching) -> None:
    # 10 lots at 100: 10 * (100 * 2 + 3)
    spot.apply(new(1, "BUY", 100, 10, account="alice"))
    assert spot.balances("alice")["USD"] == (10_000 - 2_030, 2_030)
    spot.apply(new(2, "SELL", 90, 4, account="bob"))
    # alice made: 4 * (200 + 1) paid, 6 lots still reserved; bob took: 4 * (200 - 3)
    assert spot.balances("alice") == {"USD": (10_000 - 804 - 1_218, 1_218), "ABC": (40, 0)}
    assert spot.balances("bob") == {"ABC": (960, 0), "USD": (788, 0)}
    spot.apply(cancel(1))
    assert spot.balances("alice")["USD"] == (10_000 - 804, 0)
    fees = [row["fees"] for row in spot.kernel.state_rows() if row["type"] == "Asset" and row["asset"] == "USD"]
    assert fees == [16]
    spot.kernel.audit()


def test_no_funds_refuses_every_kind_of_order(spot: Matching) -> None:
    spot.apply(new(1, "SELL", 100, 100, account="bob"))
    for number, fields in enumerate(
        [
            {"price": 100, "quantity": 50},
            {"price": 0, "quantity": 60, "order_type": "MARKET"},
            {"price": 0, "quantity": 50, "order_type": "STOP", "stop_price": 110, "reserve_price": 120},
            {"price": 0, "quantity": 1, "order_type": "STOP", "stop_price": 110},
        ]
    ):
        assert spot.short(new(10 + number, "BUY", account="alice", **fields))[0].endswith("INSUFFICIENT_FUNDS")
    assert spot.short(new(20, "SELL", 100, 1, account="bob"))[0].endswith("INSUFFICIENT_FUNDS")
    assert spot.balances("alice")["USD"] == (10_000, 0)
    spot.kernel.audit()


def test_an_amendment_reserves_the_difference_or_is_refused(spot: Matching) -> None:
    spot.apply(new(1, "BUY", 100, 10, account="alice"))
    assert spot.short(amend(1, 400, 20)) == ["AMEND_REJECTED 1 INSUFFICIENT_FUNDS"]
    assert spot.balances("alice")["USD"] == (10_000 - 2_030, 2_030)
    spot.apply(amend(1, 110, 5))
    assert spot.balances("alice")["USD"] == (10_000 - 1_115, 1_115)
    spot.kernel.audit()


def test_market_buy_and_triggered_stop_cost_no_more_than_reserved(spot: Matching) -> None:
    spot.apply(new(1, "SELL", 100, 2, account="bob"), new(2, "SELL", 120, 2, account="bob"))
    spot.apply(new(3, "BUY", 0, 5, account="alice", order_type="STOP", stop_price=100, reserve_price=110))
    reports = spot.short(new(4, "BUY", 0, 1, account="alice", order_type="MARKET"))
    assert reports == [
        "NEW 4 1@0", "TRADE 4<1 1@100", "TRIGGERED 3 5@110", "TRADE 3<1 1@100", "CANCELED 3 4@110 IMMEDIATE_OR_CANCEL"
    ]  # fmt: skip
    assert spot.balances("alice") == {"USD": (10_000 - 2 * 203, 0), "ABC": (20, 0)}
    spot.kernel.audit()


def test_limits_change_at_run_time(spot: Matching) -> None:
    spot.apply(
        {"type": "AccountDefinition", "account": "alice", "maximum_open_orders": 2, "maximum_position": 12,
         "maximum_quantity": 10, "maximum_notional": 3_000, "rate_limit": 6, "rate_interval": 100}
    )  # fmt: skip
    send = [
        new(1, "BUY", 10, 11, account="alice"),
        new(1, "BUY", 200, 10, account="alice"),
        new(1, "BUY", 10, 10, account="alice"),
        new(2, "BUY", 10, 3, account="alice"),
        new(2, "BUY", 10, 1, account="alice"),
        new(3, "BUY", 10, 1, account="alice"),
        amend(2, quantity=2),
        amend(2, quantity=3),
        cancel(1),
    ]
    assert [report["reason"] for report in spot.apply(*send, at=1_000)] == [
        "ORDER_EXCEEDS_LIMIT", "NOTIONAL_EXCEEDS_THRESHOLD", "NONE", "POSITION_LIMIT", "NONE", "OPEN_ORDER_LIMIT",
        "NONE", "POSITION_LIMIT", "USER_REQUEST",
    ]  # fmt: skip
    assert spot.short(new(4, "BUY", 10, 1, account="alice"), at=1_050) == ["REJECTED 4 1@10 RATE_LIMIT"]
    assert spot.short(new(4, "BUY", 10, 1, account="alice"), at=1_100) == ["NEW 4 1@10"]
    spot.apply({"type": "AccountDefinition", "account": "alice"})
    assert spot.short(*[new(n, "BUY", 10, 1, account="alice") for n in (5, 6, 7)], at=1_100)[2] == "NEW 7 1@10"
    spot.kernel.audit()


def test_a_withdrawal_takes_only_what_is_available(spot: Matching) -> None:
    spot.apply(new(1, "BUY", 100, 10, account="alice"))
    draw = {"type": "Deposit", "account": "alice", "asset": "USD"}
    assert spot.short({**draw, "amount": -7_971}) == ["REFUSED INSUFFICIENT_FUNDS"]
    assert spot.short({**draw, "amount": -7_970}) == ["DONE"]
    spot.kernel.audit()


def test_margin_account_goes_short_and_is_liquidated(spot: Matching) -> None:
    spot.apply(
        {"type": "SymbolDefinition", "symbol": "FUT", "quote_asset": "USD", "initial_margin_ppm": 100_000,
         "maintenance_margin_ppm": 50_000, "reference_price": 100},
        {"type": "AccountDefinition", "account": "carl", "risk": "MARGIN"},
        {"type": "AccountDefinition", "account": "dora", "risk": "MARGIN"},
        {"type": "Deposit", "account": "carl", "asset": "USD", "amount": 1_000},
        {"type": "Deposit", "account": "dora", "asset": "USD", "amount": 100_000},
    )  # fmt: skip
    # 100 lots at 100 need a margin of 1,000
    assert spot.short(new(1, "SELL", 100, 101, account="carl", symbol="FUT"))[0].endswith("INSUFFICIENT_FUNDS")
    spot.apply(new(1, "SELL", 100, 100, account="carl", symbol="FUT"))
    spot.apply(new(2, "BUY", 100, 100, account="dora", symbol="FUT"))
    spot.apply(new(3, "SELL", 105, 100, account="dora", symbol="FUT"))
    assert spot.short({"type": "MarkPrice", "symbol": "FUT", "price": 104}) == ["DONE"]
    reports = spot.apply({"type": "MarkPrice", "symbol": "FUT", "price": 105})
    assert [(r.get("exec_type"), r["reason"]) for r in reports] == [
        ("NEW", "LIQUIDATION"), (None, "NONE"), ("TRADE", "NONE")
    ]  # fmt: skip
    positions = {row["account"]: row["quantity"] for row in spot.kernel.state_rows() if row["type"] == "Position"}
    assert positions == {"carl": 0, "dora": 0}
    assert spot.balances("carl")["USD"] == (500, 0)
    spot.kernel.audit()


# controls


def test_halt_keeps_orders_and_accepts_cancels(matching: Matching) -> None:
    matching.apply(new(1, "BUY", 10, 1), new(2, "BUY", 9, 1), status("TRADING_HALT"))
    assert matching.short(new(3, "SELL", 9, 1), amend(1, 11), cancel(2)) == [
        "REJECTED 3 1@9 TRADING_HALT", "AMEND_REJECTED 1 TRADING_HALT", "CANCELED 2 1@9 USER_REQUEST"
    ]  # fmt: skip
    assert matching.book()[0] == [(10, 1, 1)]
    matching.apply(status("READY_TO_TRADE"))
    assert "TRADE 3<1 1@10" in matching.short(new(3, "SELL", 9, 1))


def test_band_halt_call_auction_resume(matching: Matching) -> None:
    matching.apply({"type": "SymbolDefinition", "symbol": "TEST", "halt_band_ppm": 100_000, "reference_price": 100})
    matching.apply(*[new(n, "SELL", price, 10) for n, price in ((1, 105), (2, 110), (3, 111))])
    assert matching.short(new(9, "BUY", 120, 30)) == ["NEW 9 30@120", "TRADE 9<1 10@105", "TRADE 9<2 10@110"]
    assert matching.market_data[-1]["type"] == "TopOfBook"
    assert matching.short(new(10, "BUY", 1, 1)) == ["REJECTED 10 1@1 TRADING_HALT"]
    matching.apply(status("PRE_OPEN"))
    assert matching.short(new(11, "SELL", 108, 4)) == ["NEW 11 4@108"]
    assert matching.book() == ([(120, 10, 1)], [(108, 4, 1), (111, 10, 1)])
    reports = matching.apply(status("READY_TO_TRADE"))
    # ten lots trade anywhere from 111 to 120; there the sellers are left over, so the lowest such price
    assert [(r["price"], r["quantity"]) for r in reports if r.get("exec_type") == "TRADE"] == [(111, 4), (111, 6)]
    assert matching.book() == ([], [(111, 4, 1)])
    changes = [event for event in matching.market_data if event["type"] == "SecurityStatus"]
    assert [(c["status"], c["auction_price"], c["auction_quantity"]) for c in changes] == [
        ("TRADING_HALT", 0, 0), ("PRE_OPEN", 0, 0), ("READY_TO_TRADE", 111, 10)
    ]  # fmt: skip
    matching.kernel.audit()


def test_halt_in_the_market_ends_what_may_not_rest(matching: Matching) -> None:
    matching.apply({"type": "SymbolDefinition", "symbol": "TEST", "halt_band_ppm": 100_000, "reference_price": 100})
    matching.apply(new(1, "SELL", 105, 1), new(2, "SELL", 111, 1))
    assert matching.short(new(3, "BUY", 0, 3, order_type="MARKET")) == [
        "NEW 3 3@0", "TRADE 3<1 1@105", "CANCELED 3 2@0 VOLATILITY_HALT"
    ]  # fmt: skip
    assert matching.book()[1] == [(111, 1, 1)]


def test_opening_and_closing_auction(matching: Matching) -> None:
    matching.apply({"type": "SymbolDefinition", "symbol": "TEST", "status": "PRE_OPEN", "reference_price": 100})
    assert matching.short(new(1, "BUY", 0, 1, order_type="MARKET"))[0].endswith("UNSUPPORTED_ORDER_CHARACTERISTIC")
    matching.apply(
        new(1, "BUY", 103, 10), new(2, "BUY", 101, 10, time_in_force="DAY"), new(3, "SELL", 99, 5),
        new(4, "SELL", 100, 10), new(5, "BUY", 0, 1, order_type="STOP", stop_price=101),
    )  # fmt: skip
    assert matching.book()[0][0][0] > matching.book()[1][0][0]
    reports = matching.short(status("READY_TO_TRADE"))
    # 15 lots trade at 100 and at 101, where five buys are left over: the higher price
    assert reports == [
        "TRADE 3<1 5@101", "TRADE 4<1 5@101", "TRADE 4<2 5@101", "DONE", "TRIGGERED 5 1@0",
        "CANCELED 5 1@0 IMMEDIATE_OR_CANCEL",
    ]  # fmt: skip
    matching.apply(status("PRE_OPEN"), new(6, "SELL", 101, 2))
    assert matching.short(status("NOT_AVAILABLE_FOR_TRADING")) == [
        "TRADE 6<2 2@101", "EXPIRED 2 3@101 END_OF_DAY", "DONE"
    ]  # fmt: skip
    assert matching.book() == ([], [])
    matching.kernel.audit()


def test_market_wide_halt(matching: Matching) -> None:
    matching.apply(new(1, "BUY", 10, 1, symbol="X"), new(2, "BUY", 10, 1, symbol="Y"))
    matching.apply(status("TRADING_HALT", symbol=""))
    assert [r["reason"] for r in matching.apply(new(3, "BUY", 9, 1, symbol="X"), new(4, "BUY", 9, 1, symbol="Y"))] == [
        "TRADING_HALT"
    ] * 2
    matching.apply(status("READY_TO_TRADE", symbol=""))
    assert matching.short(new(3, "SELL", 10, 1, symbol="Y"))[1] == "TRADE 3<2 1@10"


def test_kill_switch_blocks_and_cancels(spot: Matching) -> None:
    spot.apply(new(1, "BUY", 100, 10, account="alice"), new(2, "SELL", 200, 10, account="bob"))
    assert spot.short({"type": "KillSwitch", "account": "alice"}) == ["CANCELED 1 10@100 KILL_SWITCH", "DONE"]
    assert spot.balances("alice")["USD"] == (10_000, 0)
    assert spot.short(new(3, "BUY", 100, 1, account="alice")) == ["REJECTED 3 1@100 ACCOUNT_BLOCKED"]
    spot.apply({"type": "KillSwitch", "account": "alice", "engaged": False})
    assert spot.short(new(3, "BUY", 100, 1, account="alice")) == ["NEW 3 1@100"]
    spot.kernel.audit()


def test_session_throttle_counts_by_event_time(matching: Matching) -> None:
    matching.apply({"type": "SessionLimit", "session": 7, "maximum_messages": 2, "interval": 1_000})
    send = [new(n, "BUY", 10, 1, session=7, transact_time=time) for n, time in ((1, 1_000), (2, 1_999), (3, 2_000))]
    send += [cancel(n, session=7, transact_time=2_000 + n) for n in (1, 2)]
    assert matching.short(*send) == [
        "NEW 1 1@10", "NEW 2 1@10", "NEW 3 1@10", "CANCELED 1 1@10 USER_REQUEST", "CANCEL_REJECTED 2 SESSION_THROTTLED"
    ]  # fmt: skip
    assert matching.short(cancel(2)) == ["CANCELED 2 1@10 USER_REQUEST"]


def test_a_shard_encodes_what_the_kernel_reports() -> None:
    """Through the codec and back, names included, as the runtimes send it."""
    shard = Shard(PIPELINES["matching"], 0, {"matching.reports": 1, "matching.market-data": 2})
    frame = command_frame([new(1, "BUY", 10, 5, symbol="LONG-SYMBOL-NAME", account="Zoë"), cancel(9)], 1_000)
    records = shard.apply_frame(frame)
    assert [(record.topic, record.sequence) for record in records] == [
        ("matching.reports", 1), ("matching.market-data", 1)
    ]  # fmt: skip
    decoded = codec_of("matching.reports").decode(records[0].value[5:])
    first, second = render_events(codec_of("matching.reports"), decoded.events)
    assert (first["symbol"], first["account"], first["order_status"]) == ("LONG-SYMBOL-NAME", "Zoë", "NEW")
    assert (second["type"], second["input"], second["reason"]) == ("OrderCancelReject", 1, "UNKNOWN_ORDER")
