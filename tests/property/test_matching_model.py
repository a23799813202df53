"""The kernel against the plain model, on random commands close together in price and id so that they meet often."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from pipelines.matching import ladder
from pipelines.matching.kernel import MatchingKernel
from tests.support.matching_frames import Matching, command_frame
from tests.support.matching_model import MatchingModel

IDS = st.integers(1, 12)
PRICES = st.integers(95, 105)
ACCOUNTS = st.sampled_from(["a", "b"])
SYMBOLS = ("X", "Y")


@st.composite
def new_orders(draw: st.DrawFn) -> dict[str, Any]:
    command: dict[str, Any] = {
        "type": "NewOrder",
        "order_id": draw(IDS),
        "account": draw(ACCOUNTS),
        "symbol": draw(st.sampled_from(("X", "X", "X", "Y"))),
        "side": draw(st.sampled_from(["BUY", "SELL"])),
        "quantity": draw(st.integers(1, 20)),
        "price": draw(PRICES),
    }
    kind = draw(st.sampled_from(["plain", "plain", "ioc", "fok", "market", "stop", "iceberg", "post", "gtd", "odd"]))
    if draw(st.integers(0, 2)) == 0:
        command["self_trade_prevention"] = draw(
            st.sampled_from(["NONE", "CANCEL_NEWEST", "CANCEL_OLDEST", "CANCEL_BOTH", "DECREMENT"])
        )
    match kind:
        case "ioc" | "fok":
            command["time_in_force"] = kind.upper()
            if kind == "ioc":
                command["minimum_quantity"] = draw(st.integers(0, 10))
        case "market":
            command["order_type"] = "MARKET"
            if draw(st.booleans()):
                command["time_in_force"] = "FOK"
                command["budget"] = draw(st.integers(0, 2_000))
        case "stop":
            command["order_type"] = draw(st.sampled_from(["STOP", "STOP_LIMIT"]))
            command["stop_price"] = draw(PRICES)
            command["display_quantity"] = 3 if command["order_type"] == "STOP_LIMIT" and draw(st.booleans()) else 0
        case "iceberg":
            command["display_quantity"] = draw(st.integers(1, 6))
        case "post":
            command["post_only"] = True
        case "gtd":
            command["time_in_force"] = "GTD"
            command["expire_at"] = draw(st.integers(0, 12))
        case "odd":
            command[draw(st.sampled_from(["price", "quantity", "stop_price", "display_quantity"]))] = draw(
                st.sampled_from([-1, 0, 10**16])
            )
    return command


AMENDS = st.fixed_dictionaries(
    {"type": st.just("AmendOrder"), "order_id": IDS},
    optional={
        "price": st.one_of(PRICES, st.just(0)),
        "quantity": st.integers(-1, 20),
        "stop_price": PRICES,
        "account": ACCOUNTS,
    },
)
CANCELS = st.fixed_dictionaries({"type": st.just("CancelOrder"), "order_id": IDS}, optional={"account": ACCOUNTS})
MASS_CANCELS = st.fixed_dictionaries(
    {"type": st.just("MassCancel")},
    optional={"account": ACCOUNTS, "side": st.sampled_from(["BOTH", "BUY", "SELL"])},
)
COMMANDS = st.one_of(new_orders(), new_orders(), new_orders(), AMENDS, CANCELS, AMENDS, MASS_CANCELS)
FRAMES = st.lists(st.lists(COMMANDS, min_size=1, max_size=12), min_size=1, max_size=10)

# both symbols and both accounts exist from the start, so that mass cancels may name them
SETUP = [
    {"type": "NewOrder", "order_id": 100 + number, "account": account, "symbol": symbol, "side": "BUY",
     "price": 1, "quantity": 1, "time_in_force": "IOC"}
    for number, (account, symbol) in enumerate([("a", "X"), ("b", "Y")])
]  # fmt: skip


# every order is told to the market
FEEDS = [{"type": "SymbolDefinition", "symbol": symbol, "order_feed": True} for symbol in SYMBOLS]


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(frames=FRAMES)
def test_same_reports_as_the_model(frames: list[list[dict[str, Any]]]) -> None:
    matching = Matching()
    model = MatchingModel()
    model.symbols = SYMBOLS
    assert set(matching.short(*FEEDS)) == {"DONE"}
    assert matching.short(*SETUP) == model.apply(SETUP)
    for clock, commands in enumerate(frames, start=1):
        assert matching.short(*commands, at=clock) == model.apply(commands, clock)
        for symbol in SYMBOLS:
            assert matching.book(symbol) == model.book(symbol)
        matching.kernel.audit()
    check_market_data(matching, model)


def check_market_data(matching: Matching, model: MatchingModel) -> None:
    """The published events add up to the book: sequences without a gap, and the last level of each price."""
    for symbol in SYMBOLS:
        events = [event for event in matching.market_data if event["symbol"] == symbol]
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        book: dict[tuple[str, int], tuple[int, int]] = {}
        top: tuple[int, ...] = (0, 0, 0, 0)
        for event in events:
            if event["type"] == "PriceLevel":
                book[event["side"], event["price"]] = (event["quantity"], event["orders"])
            elif event["type"] == "TopOfBook":
                top = tuple(event[name] for name in ("bid_price", "bid_quantity", "ask_price", "ask_quantity"))
        bids, asks = model.book(symbol)
        levels = [("BUY", row) for row in bids] + [("SELL", row) for row in asks]
        live = {key: value for key, value in book.items() if value[0]}
        assert live == {(side, row[0]): (row[1], row[2]) for side, row in levels}
        check_orders(matching, symbol, events)
        assert top == ((*bids[0][:2],) if bids else (0, 0)) + ((*asks[0][:2],) if asks else (0, 0))
    traded = sum(event["quantity"] for event in matching.market_data if event["type"] == "Trade")
    assert traded == model.traded


def check_orders(matching: Matching, symbol: str, events: list[dict[str, Any]]) -> None:
    """The order-by-order feed adds up to the queues: the same orders in the same order, showing what levels show."""
    orders: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["type"] == "BookOrder":
            known = orders.pop(event["place"], None)
            assert known is not None or event["quantity"] > 0
            assert known is None or all(known[name] == event[name] for name in ("side", "price"))
            assert known is None or known["quantity"] != event["quantity"]  # what the public does not see is not told
            if event["quantity"]:
                orders[event["place"]] = event
    number = matching.kernel.symbols.index(symbol)
    for kind, side, levels in ((ladder.BIDS, "BUY", matching.book(symbol)[0]),
                               (ladder.ASKS, "SELL", matching.book(symbol)[1])):  # fmt: skip
        queues = matching.kernel.queue(number, kind)
        own = sorted(
            (-order["price"] if side == "BUY" else order["price"], place)
            for place, order in orders.items() if order["side"] == side
        )  # fmt: skip
        assert [place for _, place in own] == [int(order["priority"]) for queue in queues for order in queue]
        assert levels == [
            (int(queue[0]["price"]), sum(orders[int(order["priority"])]["quantity"] for order in queue), len(queue))
            for queue in queues
        ]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(frames=FRAMES, stored=st.sets(st.integers(0, 9), min_size=1, max_size=3))
def test_restored_state_goes_on_alike(frames: list[list[dict[str, Any]]], stored: set[int]) -> None:
    """A kernel restored from pages gives the same bytes and ends in the same state as one that ran on."""
    steady, current = MatchingKernel(), MatchingKernel()
    pages: dict[str, bytes] = {}
    for number, commands in enumerate([SETUP, *frames]):
        frame = command_frame(commands, number)
        expected, found = steady.apply(frame), current.apply(frame)
        assert [(output.topic, output.events.rows.tobytes()) for output in expected] == [
            (output.topic, output.events.rows.tobytes()) for output in found
        ]
        if number in stored:
            pages |= current.dirty_pages()
            current = MatchingKernel()
            current.restore(pages, MatchingKernel.state_version)
            current.audit()
            assert list(current.state_rows()) == list(steady.state_rows())
    assert list(current.state_rows()) == list(steady.state_rows())
