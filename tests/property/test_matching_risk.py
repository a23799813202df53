"""Reserves stay exact whatever happens: orders of accounts with risk checks, through amendments, halts and auctions.

`MatchingKernel.audit` compares what each account has reserved with its open orders, and balances plus fees with what
was deposited.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, example, given, settings

from tests.property.test_matching_model import new_orders
from tests.support.matching_frames import Matching

OWNERS = ["a", "b", "m"]
SETUP: list[dict[str, Any]] = [
    *(
        {"type": "SymbolDefinition", "symbol": symbol, "base_asset": symbol, "quote_asset": "USD", "base_per_lot": 3,
         "quote_per_tick": 2, "maker_fee": 1, "taker_fee": 4, "halt_band_ppm": 40_000, "reference_price": 100}
        for symbol in ("X", "Y")
    ),
    {"type": "AccountDefinition", "account": "a", "maximum_position": 60},
    {"type": "AccountDefinition", "account": "b", "self_trade_prevention": "DECREMENT"},
    {"type": "AccountDefinition", "account": "m", "risk": "MARGIN"},
    *({"type": "Deposit", "account": owner, "asset": "USD", "amount": 9_000} for owner in OWNERS),
    *({"type": "Deposit", "account": owner, "asset": asset, "amount": 150} for owner in "ab" for asset in "XY"),
]  # fmt: skip

STATUSES = ["READY_TO_TRADE", "READY_TO_TRADE", "PRE_OPEN", "TRADING_HALT", "NOT_AVAILABLE_FOR_TRADING"]
IDS = st.integers(1, 12)
PRICES = st.integers(90, 110)


@st.composite
def risky_orders(draw: st.DrawFn) -> dict[str, Any]:
    command = draw(new_orders())
    command["account"] = draw(st.sampled_from(OWNERS))
    if command["side"] == "BUY" and draw(st.booleans()):
        command["reserve_price"] = draw(PRICES)
    return command


ADMIN = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.just("SecurityTradingStatus"),
            "symbol": st.sampled_from(["X", "Y", ""]),
            "status": st.sampled_from(STATUSES),
        }
    ),
    st.fixed_dictionaries(
        {"type": st.just("KillSwitch"), "account": st.sampled_from(OWNERS), "engaged": st.booleans()}
    ),
    st.fixed_dictionaries(
        {"type": st.just("MarkPrice"), "symbol": st.sampled_from(["X", "Y"]), "price": st.integers(60, 150)}
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("Deposit"),
            "account": st.sampled_from(OWNERS),
            "asset": st.just("USD"),
            "amount": st.integers(-5_000, 2_000),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("AccountDefinition"),
            "account": st.sampled_from(OWNERS),
            "risk": st.sampled_from(["SPOT", "MARGIN"]),
        }
    ),
)
AMENDS = st.fixed_dictionaries(
    {"type": st.just("AmendOrder"), "order_id": IDS},
    optional={"price": PRICES, "quantity": st.integers(0, 40), "stop_price": PRICES},
)
CANCELS = st.fixed_dictionaries({"type": st.just("CancelOrder"), "order_id": IDS})
COMMANDS = st.one_of(*[risky_orders()] * 6, AMENDS, AMENDS, CANCELS, ADMIN)
FRAMES = st.lists(st.lists(COMMANDS, min_size=1, max_size=10), min_size=1, max_size=8)

A_SHORT_SALE = [  # a MARGIN account sells what it has not to a SPOT one; then both ask for the other model
    {"type": "SecurityTradingStatus", "symbol": "X", "status": "READY_TO_TRADE"},
    {"type": "NewOrder", "order_id": 1, "account": "m", "symbol": "X", "side": "SELL", "quantity": 1, "price": 96},
    {"type": "NewOrder", "order_id": 2, "account": "a", "symbol": "X", "side": "BUY", "quantity": 1, "price": 96},
    {"type": "AccountDefinition", "account": "m", "risk": "SPOT"},
    {"type": "AccountDefinition", "account": "a", "risk": "MARGIN"},
]


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(frames=FRAMES)
@example(frames=[A_SHORT_SALE])
def test_reserves_and_balances_are_exact(frames: list[list[dict[str, Any]]]) -> None:
    matching = Matching()
    assert set(matching.short(*SETUP)) == {"DONE"}
    for clock, commands in enumerate(frames, start=1):
        before = list(matching.kernel.state_rows())
        reports = matching.apply(*commands, at=clock)
        matching.kernel.audit()
        answered = {report["input"] for report in reports} - {-1}
        assert answered == set(range(len(commands)))
        if all(report.get("exec_type") == "REJECTED" or report["type"] == "OrderCancelReject" for report in reports):
            assert list(matching.kernel.state_rows()) == before
