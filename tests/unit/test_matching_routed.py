"""Routed orders in the matching kernel: what is reserved, asked, applied and refused."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from pipelines.matching.kernel import MatchingKernel
from tests.support.matching_frames import Matching, amend, cancel, new

SYMBOL = {"type": "SymbolDefinition", "symbol": "X", "base_asset": "X", "quote_asset": "USD", "base_per_lot": 3,
          "quote_per_tick": 2, "maker_fee": 1, "taker_fee": 4}  # fmt: skip
SETUP: list[dict[str, Any]] = [
    SYMBOL,
    {"type": "AccountDefinition", "account": "a"},
    {"type": "AccountDefinition", "account": "m", "risk": "MARGIN"},
    {"type": "AccountDefinition", "account": "V", "risk": "VENUE"},
    *({"type": "Deposit", "account": owner, "asset": "USD", "amount": 10_000} for owner in "am"),
    {"type": "Deposit", "account": "a", "asset": "X", "amount": 90},
]


@pytest.fixture
def market() -> Matching:
    matching = Matching()
    assert set(matching.short(*SETUP)) == {"DONE"}
    return matching


def routed(order_id: int, side: str, price: int, quantity: int, **fields: Any) -> dict[str, Any]:
    return new(order_id, side, price, quantity, symbol="X", destination="V", **{"account": "a"} | fields)


def send(market: Matching, order: dict[str, Any]) -> int:
    """Enter a routed order; its route."""
    reports = market.apply(order)
    assert [report["type"] for report in reports] == ["ExecutionReport", "RouteRequest"], reports
    assert reports[0]["exec_type"] == "NEW"
    market.kernel.audit()
    return int(reports[1]["route"])


def says(order_id: int, route: int, exec_type: str, **fields: Any) -> dict[str, Any]:
    return {"type": "VenueReport", "venue": "V", "order_id": order_id, "route": route, "symbol": "X",
            "exec_type": exec_type, **fields}  # fmt: skip


def fill(order_id: int, route: int, quantity: int, price: int, cumulative: int) -> dict[str, Any]:
    return says(order_id, route, "TRADE", quantity=quantity, price=price, cumulative_quantity=cumulative)


def told(market: Matching, *commands: dict[str, Any]) -> list[tuple[str, ...]]:
    """Reports in short: (what, reason)."""
    found = []
    for report in market.apply(*commands):
        what = report.get("exec_type") or report.get("response_to") or report.get("action") or report["type"]
        found.append((str(what), str(report["reason"])))
    market.kernel.audit()
    return found


def test_a_routed_order_reserves_fills_at_the_venue_and_settles_exactly(market: Matching) -> None:
    market.apply(new(7, "SELL", 100, 5, symbol="X", account="a"))
    order = routed(1, "BUY", 100, 10)
    reports = market.apply(order)
    [accepted, request] = reports
    assert accepted["leaves_quantity"] == 10  # and no trade with what rests here at that price
    wanted = {"action": "NEW", "venue": "V", "order_id": 1, "side": "BUY", "order_type": "LIMIT", "price": 100}
    assert {name: request[name] for name in wanted} == wanted
    assert request["quantity"] == 10
    assert request["route"] == request["execution_id"]
    assert market.book("X") == ([], [(100, 5, 1)])
    route = request["route"]
    assert market.balances("a")["USD"] == (10_000 - 10 * 204, 10 * 204)
    assert told(market, says(1, route, "NEW")) == [("AdminReport", "NONE")]
    [trade, done] = market.apply(fill(1, route, 4, 99, 4))
    assert (trade["exec_type"], trade["order_status"], trade["maker_order_id"], trade["maker_account"]) == (
        "TRADE", "PARTIALLY_FILLED", None, "V",
    )  # fmt: skip
    assert (trade["price"], trade["quantity"], trade["leaves_quantity"], trade["cumulative_quantity"]) == (99, 4, 6, 4)
    assert done["type"] == "AdminReport"
    paid = 4 * (99 * 2 + 4)
    assert market.balances("a") == {"USD": (10_000 - paid - 6 * 204, 6 * 204), "X": (90 - 15 + 12, 15)}
    assert market.balances("V") == {"USD": (4 * 99 * 2, 0), "X": (-12, 0)}
    assert told(market, fill(1, route, 6, 100, 10)) == [("TRADE", "NONE"), ("AdminReport", "NONE")]
    assert market.kernel.order(1) is None
    assert market.balances("a")["USD"] == (10_000 - paid - 6 * 204, 0)
    sold = send(market, routed(2, "SELL", 90, 5, account="m"))
    assert told(market, fill(2, sold, 5, 95, 5))[0] == ("TRADE", "NONE")
    assert market.balances("V") == {"USD": (4 * 198 + 6 * 200 - 5 * 190, 0), "X": (-30 + 15, 0)}


def test_a_trade_has_the_venues_execution_id_and_a_refusal_names_the_order(market: Matching) -> None:
    route = send(market, routed(1, "BUY", 100, 10))
    fills = [fill(1, route, 1, 99, number) for number in (1, 2, 3, 4)]
    identified = ["Xé-17", "", "i" * 64, "i" * 65]
    commands = [said | {"venue_execution_id": found} for said, found in zip(fills, identified, strict=True)]
    reports = market.apply(cancel(1, account="a", symbol="X"), *commands, new(9, "BUY", 1, 1, symbol="X", account="a"))
    trades = [report for report in reports if report.get("exec_type") == "TRADE"]
    assert [trade["venue_execution_id"] for trade in trades] == ["Xé-17", "", "i" * 64, ""]
    named = [{name: report[name] for name in ("account", "symbol", "maker_account")} for report in trades]
    assert named == [{"account": "a", "symbol": "X", "maker_account": "V"}] * 4
    assert (reports[-1]["account"], reports[-1]["symbol"], reports[-1]["venue_execution_id"]) == ("a", "X", "")
    request = reports[0]["execution_id"]
    refused, _ = market.apply(says(1, route, "CANCEL_REJECTED", request=request))
    assert (refused["type"], refused["account"], refused["symbol"]) == ("OrderCancelReject", "a", "X")
    for stranger in (cancel(1, account="m", symbol="X"), cancel(5, account="a", symbol="X")):
        [unknown] = market.apply(stranger)
        assert (unknown["reason"], unknown["account"], unknown["symbol"]) == ("UNKNOWN_ORDER", "", "")


@pytest.mark.parametrize(
    ("reports", "reasons"),
    [
        ([(4, 100, 4), (4, 100, 4)], ["NONE", "DUPLICATE_EXECUTION"]),
        ([(4, 100, 4), (3, 100, 8)], ["NONE", "EXECUTION_GAP"]),
        ([(11, 100, 11)], ["OVERFILL"]),
        ([(4, 101, 4)], ["INVALID_PRICE"]),
        ([(4, 0, 4)], ["INVALID_PRICE"]),
        ([(0, 100, 4)], ["INCORRECT_QUANTITY"]),
    ],
)
def test_a_fill_that_does_not_fit_is_answered_and_changes_nothing(
    market: Matching, reports: list[tuple[int, int, int]], reasons: list[str]
) -> None:
    route = send(market, routed(1, "BUY", 100, 10))
    for (quantity, price, cumulative), reason in zip(reports, reasons, strict=True):
        before = list(market.kernel.state_rows())
        answers = told(market, fill(1, route, quantity, price, cumulative))
        assert answers[-1] == ("AdminReport", reason)
        if reason != "NONE":
            assert len(answers) == 1
            assert list(market.kernel.state_rows()) == before


def test_what_is_not_about_a_routed_order_is_refused(market: Matching) -> None:
    route = send(market, routed(1, "BUY", 100, 10))
    market.apply(new(2, "BUY", 50, 1, symbol="X", account="a"))
    stranger = says(1, route, "CANCELED") | {"venue": "a"}
    for wrong in (says(9, route, "CANCELED"), says(2, route, "CANCELED"), says(1, route + 1, "CANCELED"), stranger):
        assert told(market, wrong) == [("AdminReport", "UNKNOWN_ORDER")]
    assert told(market, says(1, route, "CORRECTION")) == [("AdminReport", "UNSUPPORTED_ORDER_CHARACTERISTIC")]
    assert told(market, says(1, route, "CANCEL_REJECTED")) == [("AdminReport", "DUPLICATE_EXECUTION")]
    assert told(market, says(1, route, "CANCELED", cumulative_quantity=3)) == [("AdminReport", "EXECUTION_GAP")]


def test_a_cancel_is_answered_by_the_venue(market: Matching) -> None:
    route = send(market, routed(1, "BUY", 100, 10))
    [request] = market.apply(cancel(1))
    assert (request["action"], request["route"], request["reason"]) == ("CANCEL", route, "USER_REQUEST")
    assert told(market, cancel(1)) == [("CANCEL", "REQUEST_PENDING")]
    assert told(market, fill(1, route, 3, 100, 3))[0] == ("TRADE", "NONE")
    answer = says(1, route, "CANCEL_REJECTED", request=request["execution_id"])
    assert told(market, answer) == [("CANCEL", "VENUE_REJECTED"), ("AdminReport", "NONE")]
    assert told(market, answer) == [("AdminReport", "DUPLICATE_EXECUTION")]
    [again] = market.apply(cancel(1))
    assert again["execution_id"] > request["execution_id"]
    [canceled, _] = market.apply(says(1, route, "CANCELED", cumulative_quantity=3))
    assert (canceled["exec_type"], canceled["quantity"], canceled["reason"]) == ("CANCELED", 7, "USER_REQUEST")
    assert market.balances("a")["USD"] == (10_000 - 3 * 204, 0)
    assert told(market, fill(1, route, 1, 100, 4)) == [("AdminReport", "UNKNOWN_ORDER")]


def test_a_replace_reserves_for_the_dearer_until_it_is_answered(market: Matching) -> None:
    route = send(market, routed(1, "BUY", 100, 10))
    [request] = market.apply(amend(1, price=110, total_quantity=12))
    assert (request["action"], request["price"], request["quantity"]) == ("REPLACE", 110, 12)
    assert market.balances("a")["USD"][1] == 12 * 224
    assert told(market, amend(1, price=90)) == [("AMEND", "REQUEST_PENDING")]
    assert told(market, fill(1, route, 4, 101, 4)) == [("AdminReport", "INVALID_PRICE")]
    assert told(market, fill(1, route, 4, 100, 4))[0] == ("TRADE", "NONE")
    asked = request["execution_id"]
    wrong = says(1, route, "REPLACED", request=asked, price=110, quantity=11)
    assert told(market, wrong) == [("AdminReport", "INCORRECT_QUANTITY")]
    [replaced, _] = market.apply(says(1, route, "REPLACED", request=asked, price=110, quantity=12))
    assert (replaced["exec_type"], replaced["price"], replaced["leaves_quantity"]) == ("REPLACED", 110, 8)
    assert market.balances("a")["USD"][1] == 8 * 224
    [request] = market.apply(amend(1, price=50, quantity=2))
    assert request["quantity"] == 6
    asked = request["execution_id"]
    assert told(market, says(1, route, "REPLACE_REJECTED", request=asked)) == [
        ("AMEND", "VENUE_REJECTED"), ("AdminReport", "NONE"),
    ]  # fmt: skip
    assert market.balances("a")["USD"][1] == 8 * 224
    assert told(market, amend(1, total_quantity=1_000)) == [("AMEND", "INSUFFICIENT_FUNDS")]
    # filled while a replace is under way: it ends with the answer, the rest is returned
    [request] = market.apply(amend(1, total_quantity=20))
    [filled, _] = market.apply(fill(1, route, 8, 110, 12))
    assert (filled["order_status"], filled["leaves_quantity"]) == ("FILLED", 0)
    assert market.balances("a")["USD"][1] == 8 * 224
    told(market, says(1, route, "REPLACE_REJECTED", request=request["execution_id"]))
    assert market.balances("a")["USD"][1] == 0
    assert market.kernel.order(1) is None


def test_the_kill_switch_reaches_orders_that_are_being_replaced(market: Matching) -> None:
    first, second = send(market, routed(1, "BUY", 100, 10)), send(market, routed(2, "SELL", 100, 10, account="m"))
    [request] = market.apply(amend(1, price=101))
    assert told(market, {"type": "KillSwitch", "account": "a"}) == [("AdminReport", "NONE")]
    answered = told(market, says(1, first, "REPLACED", request=request["execution_id"], price=101, quantity=10))
    assert answered == [("REPLACED", "NONE"), ("CANCEL", "KILL_SWITCH"), ("AdminReport", "NONE")]
    assert told(market, says(1, first, "CANCELED")) == [("CANCELED", "KILL_SWITCH"), ("AdminReport", "NONE")]
    [asked, mass] = market.apply({"type": "MassCancel", "symbol": "X"})
    assert (asked["route"], asked["reason"], mass["affected"]) == (second, "MASS_CANCEL", 1)


def test_how_a_venue_ends_an_order(market: Matching) -> None:
    for number, (fields, said, expected) in enumerate(
        [
            ({}, {"exec_type": "REJECTED"}, ("CANCELED", "VENUE_REJECTED")),
            ({}, {"exec_type": "REJECTED", "reason": "VENUE_UNAVAILABLE"}, ("CANCELED", "VENUE_UNAVAILABLE")),
            ({}, {"exec_type": "CANCELED"}, ("CANCELED", "VENUE_CANCELED")),
            ({"time_in_force": "IOC"}, {"exec_type": "CANCELED"}, ("CANCELED", "IMMEDIATE_OR_CANCEL")),
            ({"time_in_force": "FOK"}, {"exec_type": "CANCELED"}, ("CANCELED", "FILL_OR_KILL")),
            ({"time_in_force": "DAY"}, {"exec_type": "EXPIRED"}, ("EXPIRED", "END_OF_DAY")),
            ({"time_in_force": "GTD", "expire_at": 5}, {"exec_type": "EXPIRED"}, ("EXPIRED", "GOOD_TILL_DATE")),
        ],
        start=1,
    ):
        route = send(market, routed(number, "SELL", 100, 5, **fields))
        assert told(market, says(number, route, **said))[0] == expected
    assert market.balances("a")["X"] == (90, 0)
    # a cancel under way is answered, whatever ends the order
    route = send(market, routed(1, "SELL", 100, 5))
    market.apply(cancel(1))
    assert told(market, says(1, route, "EXPIRED"))[:2] == [("CANCEL", "VENUE_REJECTED"), ("EXPIRED", "GOOD_TILL_DATE")]


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (routed(1, "BUY", 100, 1) | {"destination": "nowhere"}, "UNKNOWN_VENUE"),
        (routed(1, "BUY", 100, 1) | {"destination": "a"}, "UNKNOWN_VENUE"),
        (routed(1, "BUY", 100, 1, post_only=True), "UNSUPPORTED_ORDER_CHARACTERISTIC"),
        (routed(1, "BUY", 100, 9, display_quantity=3), "UNSUPPORTED_ORDER_CHARACTERISTIC"),
        (routed(1, "BUY", 0, 1, order_type="STOP", stop_price=5, reserve_price=9), "UNSUPPORTED_ORDER_CHARACTERISTIC"),
        (routed(1, "BUY", 0, 1, order_type="MARKET"), "INSUFFICIENT_FUNDS"),
        (routed(1, "BUY", 100, 60), "INSUFFICIENT_FUNDS"),
        (routed(1, "BUY", 100, 1, account="V"), "ACCOUNT_BLOCKED"),
    ],
)
def test_what_cannot_be_routed_is_refused(market: Matching, order: dict[str, Any], reason: str) -> None:
    market.apply(new(5, "BUY", 1, 1, symbol="X", account="a"), cancel(5))
    before = [row for row in market.kernel.state_rows() if row.get("account") != "V"]
    assert told(market, order) == [("REJECTED", reason)]
    assert [row for row in market.kernel.state_rows() if row.get("account") != "V"] == before


def test_a_market_order_costs_no_more_than_its_reserve_price(market: Matching) -> None:
    request = market.apply(routed(1, "BUY", 0, 5, order_type="MARKET", reserve_price=120))[1]
    assert (request["order_type"], request["price"], request["time_in_force"]) == ("LIMIT", 120, "IOC")
    request = market.apply(routed(2, "SELL", 0, 5, order_type="MARKET"))[1]
    assert (request["order_type"], request["price"]) == ("MARKET", 0)
    assert told(market, fill(2, request["route"], 5, 3, 5))[0] == ("TRADE", "NONE")


def test_a_venue_is_one_for_ever_and_can_be_closed(market: Matching) -> None:
    assert told(market, {"type": "AccountDefinition", "account": "V"}) == [("AdminReport", "INVALID_DEFINITION")]
    assert told(market, {"type": "AccountDefinition", "account": "a", "risk": "VENUE"}) == [
        ("AdminReport", "INVALID_DEFINITION")
    ]
    market.apply({"type": "KillSwitch", "account": "V"})
    assert told(market, routed(1, "BUY", 100, 1)) == [("REJECTED", "VENUE_UNAVAILABLE")]


def test_an_amendment_may_name_the_total_in_the_book_too(market: Matching) -> None:
    market.apply(new(1, "BUY", 100, 10, symbol="X", account="a"), new(2, "SELL", 100, 4, symbol="X", account="m"))
    assert told(market, amend(1, total_quantity=4)) == [("AMEND", "INCORRECT_QUANTITY")]
    assert told(market, amend(1, quantity=4, total_quantity=9)) == [("AMEND", "UNSUPPORTED_ORDER_CHARACTERISTIC")]
    [replaced] = market.apply(amend(1, total_quantity=9))
    assert (replaced["leaves_quantity"], replaced["cumulative_quantity"]) == (5, 4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_money_is_exact_whatever_venues_say(data: st.DataObject) -> None:
    """Orders, changes, and venue reports of which many are wrong: reserves and totals hold, every order ends, and a
    restored kernel gives the same bytes."""
    market, twin = Matching(), Matching()
    assert market.apply(*SETUP) == twin.apply(*SETUP)
    pages = twin.kernel.dirty_pages()
    open_requests: dict[int, dict[str, Any]] = {}
    ids = st.integers(1, 6)
    for clock in range(1, data.draw(st.integers(3, 14))):
        known = sorted(open_requests.values(), key=lambda found: found["execution_id"])
        choices: list[st.SearchStrategy[dict[str, Any]]] = [
            st.builds(
                routed, ids, st.sampled_from(["BUY", "SELL"]), st.integers(90, 110), st.integers(1, 12),
                account=st.sampled_from("am"), time_in_force=st.sampled_from(["GTC", "IOC", "DAY"]),
            ),
            st.builds(new, ids, st.sampled_from(["BUY", "SELL"]), st.integers(95, 105), st.integers(1, 9),
                      account=st.sampled_from("am"), symbol=st.just("X")),
            st.builds(cancel, ids),
            st.builds(amend, ids, st.integers(90, 110), total_quantity=st.integers(1, 15)),
            st.builds(lambda on: {"type": "KillSwitch", "account": "a", "engaged": on}, st.booleans()),
            st.just({"type": "MarkPrice", "symbol": "X", "price": 101}),
        ]  # fmt: skip
        if known:
            answer = st.builds(
                lambda request, kind, quantity, price, cumulative: says(
                    request["order_id"], request["route"], kind, request=request["execution_id"],
                    price=request["price"] if kind == "REPLACED" else price,
                    quantity=request["quantity"] if kind == "REPLACED" else quantity, cumulative_quantity=cumulative,
                ),
                st.sampled_from(known),
                st.sampled_from(["TRADE", "TRADE", "CANCELED", "REPLACED", "REJECTED", "EXPIRED", "CANCEL_REJECTED",
                                 "REPLACE_REJECTED", "CORRECTION"]),
                st.integers(0, 12), st.integers(88, 112), st.integers(0, 14),
            )  # fmt: skip
            choices += [answer] * 6
        commands = data.draw(st.lists(st.one_of(choices), min_size=1, max_size=6))
        reports = market.apply(*commands, at=clock)
        market.kernel.audit()
        assert {report["input"] for report in reports} == set(range(len(commands)))
        assert twin.apply(*commands, at=clock) == reports
        pages |= twin.kernel.dirty_pages()
        if data.draw(st.booleans()):
            twin.kernel = MatchingKernel()
            twin.kernel.restore(pages, MatchingKernel.state_version)
            assert list(twin.kernel.state_rows()) == list(market.kernel.state_rows())
        open_requests |= {report["execution_id"]: report for report in reports if report["type"] == "RouteRequest"}
    # whatever is left can be ended by the venue, and then nothing is held
    for row in [row for row in market.kernel.state_rows() if row["type"] == "Order" and "destination" in row]:
        left = row["leaves_quantity"]
        if left:
            told(
                market, says(row["order_id"], row["number"], "CANCELED", cumulative_quantity=row["cumulative_quantity"])
            )
    assert not [row for row in market.kernel.state_rows() if "destination" in row and row["leaves_quantity"]]
