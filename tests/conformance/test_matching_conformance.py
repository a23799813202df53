"""The matching against scenarios recorded from other engines' test suites (named in each scenario's ``source``).

``invariant`` scenarios hold for every price-time book. Of the ``convention`` ones, those in `DIFFERENCES` are told
differences (docs/reference/matching.md); all others are adopted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from infra.cli import replay
from tests.support.matching_frames import Matching, amend, cancel, new

SCENARIOS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("matching.json").read_text())["scenarios"]

DIFFERENCES = {
    "stop order": "stops are triggered by trades, not by quotes",
    "All-Or-None several levels full": "there is no AON",
}
REASONS = {
    "unknown_order": "UNKNOWN_ORDER", "ORDER_NOT_ACTIVE": "UNKNOWN_ORDER", "duplicate_id": "DUPLICATE_ORDER",
    "insufficient_funds": "INSUFFICIENT_FUNDS",
}  # fmt: skip
PREVENTION = {"NONE": "NONE", "CANCEL_RESTING": "CANCEL_OLDEST", "CANCEL_INCOMING": "CANCEL_NEWEST"}
ADOPTED = [scenario for scenario in SCENARIOS if scenario["name"] not in DIFFERENCES]


class Run:
    """Plays one scenario; keeps what the engine's reports say of each order."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self.scenario = scenario
        self.matching = Matching()
        self.orders: dict[int, dict[str, Any]] = {}
        self.trades: list[dict[str, Any]] = []
        self.prevention = PREVENTION[scenario.get("config", {}).get("self_trade_policy", "NONE")]

    def setup(self) -> list[dict[str, Any]]:
        """Admin events of a scenario with accounts."""
        instrument = self.scenario.get("instrument")
        if instrument is None:
            return []
        names = ("base_per_lot", "quote_per_tick", "maker_fee", "taker_fee")
        events: list[dict[str, Any]] = [
            {
                "type": "SymbolDefinition",
                "symbol": "TEST",
                "base_asset": instrument["base"],
                "quote_asset": instrument["quote"],
                **{name: instrument[name] for name in names},
            }
        ]
        accounts = {op["account"] for op in self.scenario["orders"]}
        events += [{"type": "AccountDefinition", "account": account, "risk": "SPOT"} for account in sorted(accounts)]
        for account, assets in self.scenario["initial_balances"].items():
            for asset, amount in assets.items():
                events.append({"type": "Deposit", "account": account, "asset": asset, "amount": amount})
        return events

    def commands(self, op: dict[str, Any]) -> list[dict[str, Any]]:
        owner = {"account": str(op["account"])} if "account" in op else {}
        where = {"symbol": op["symbol"]} if "symbol" in op else {}
        order_id = op.get("id", 0)
        opened = self.orders.get(order_id, {}).get("leaves", 1)
        match op["op"]:
            case "new":
                return [self._new(op, owner | where)]
            case "new_range":
                ids = range(op["id_from"], op["id_to"] + 1)
                return [new(number, op["side"].upper(), op["price"], op["qty"]) for number in ids]
            case "cancel":
                return [cancel(order_id, **owner)]
            case "modify":
                return [amend(order_id, op["price"], op["qty"], **owner)]
            case "move":
                return [amend(order_id, op["price"], **owner)]
            case "reduce":
                return [amend(order_id, quantity=max(opened - op["by"], 0), **owner)]
            case "amend_delta":
                return [amend(order_id, quantity=max(opened + op["delta"], 0))]
            case "replace":
                return [cancel(order_id), new(op["new_id"], self.orders[order_id]["side"], op["price"], op["qty"])]
            case "replace_same_id":
                known = self.orders[order_id]
                return [cancel(order_id), new(order_id, known["side"], known["price"], op["qty"])]
            case "deposit":
                asset = {"asset": op["currency"], "amount": op["amount"]}
                return [{"type": "Deposit", "account": op["account"], **asset}]
            case "clear_symbol":
                return [{"type": "MassCancel", "symbol": op.get("symbol", "TEST")}]
            case unknown:
                raise AssertionError(f"unknown operation {unknown}")

    def _new(self, op: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        if self.prevention != "NONE":
            fields["self_trade_prevention"] = self.prevention
        kind, in_force = op.get("type", "limit").upper(), op.get("tif", "GTC")
        if in_force == "FOK_BUDGET":
            kind, in_force = "MARKET", "FOK"
            fields["budget"] = op["budget"]
        if kind == "STOP":
            fields["stop_price"] = op["stop_price"]
        if "reserve_price" in op and op["side"] == "buy" and "instrument" in self.scenario:
            fields["reserve_price"] = op["reserve_price"]
        return new(
            op["id"], op["side"].upper(), op.get("price", 0), op["qty"], order_type=kind, time_in_force=in_force,
            **fields,
        )  # fmt: skip

    def play(self, number: int, op: dict[str, Any]) -> dict[str, Any]:
        """Apply one operation and tell its result in the scenario's terms."""
        commands = self.commands(op)
        if op["op"] == "reduce" and op["by"] <= 0:
            # an amendment names the new quantity, so this cannot be asked for
            return {"status": "rejected", "reason": "invalid_qty"}
        reports = self.matching.apply(*commands)
        self.note(number, reports)
        final = reports[-1]
        order_id = op.get("new_id", op.get("id"))
        own = [report for report in reports if report.get("order_id") == order_id]
        kinds = [report.get("exec_type", report["type"]) for report in own]
        if "REJECTED" in kinds or "OrderCancelReject" in kinds:
            return {"status": "rejected", "reason": final["reason"]}
        if op["op"] in ("deposit", "clear_symbol"):
            return {"status": "ok" if final["reason"] == "NONE" else "rejected"}
        leaves = own[-1]["leaves_quantity"] if own else final["leaves_quantity"]
        if kinds and kinds[-1] == "CANCELED" and op["op"] != "replace":
            return {"status": "cancelled", "leaves_cancelled": own[-1]["quantity"], "leaves": 0}
        if "REPLACED" in kinds:
            return {"status": "replaced", "leaves": leaves}
        return {"status": "resting" if leaves else "filled", "leaves": leaves}

    def note(self, number: int, reports: list[dict[str, Any]]) -> None:
        for report in reports:
            if report["type"] != "ExecutionReport" or report["exec_type"] == "REJECTED":
                continue
            known = self.orders.setdefault(report["order_id"], {})
            known["leaves"] = report["leaves_quantity"]
            known["side"] = report["side"]
            if report["exec_type"] in ("NEW", "REPLACED"):
                known["price"] = report["price"]
            if report["exec_type"] == "TRADE":
                self.orders[report["maker_order_id"]]["leaves"] = report["maker_leaves_quantity"]
                self.trades.append(
                    {
                        "op": number,
                        "taker": report["order_id"],
                        "maker": report["maker_order_id"],
                        "price": report["price"],
                        "qty": report["quantity"],
                    }
                )


def check_result(found: dict[str, Any], expected: dict[str, Any]) -> None:
    if expected["status"] == "ok":
        assert found["status"] != "rejected"
        return
    assert found["status"] == expected["status"]
    if "leaves" in expected:
        assert found["leaves"] == expected["leaves"]
    if expected["status"] == "cancelled" and "leaves_cancelled" in expected:
        assert found["leaves_cancelled"] == expected["leaves_cancelled"]
    if "reason" in expected:
        assert found["reason"] == REASONS.get(expected["reason"], expected["reason"])


def check_trades(found: list[dict[str, Any]], expected: Any) -> None:
    if isinstance(expected, list):
        assert found == expected
        return
    first, last = expected["makers_in_order"]
    assert [trade["maker"] for trade in found] == list(range(first, last + 1))
    assert len(found) == expected["count"]
    assert {(trade["price"], trade["qty"], trade["taker"]) for trade in found} == {
        (expected["price"], expected["each_qty"], expected["taker"])
    }


def lists(rows: Any) -> list[list[int]]:
    return [list(row) for row in rows]


def test_no_scenario_is_lost() -> None:
    assert len(SCENARIOS) == 100
    assert {scenario["name"] for scenario in SCENARIOS if scenario["kind"] == "convention"} >= DIFFERENCES.keys()


@pytest.mark.parametrize("scenario", ADOPTED, ids=lambda scenario: scenario["name"])
def test_scenario(scenario: dict[str, Any]) -> None:
    run = Run(scenario)
    setup = run.setup()
    if setup:
        assert {report["reason"] for report in run.matching.apply(*setup)} == {"NONE"}
    for number, op in enumerate(scenario["orders"]):
        found = run.play(number, op)
        if "expected_results" in scenario:
            check_result(found, scenario["expected_results"][number])
        bids, asks = run.matching.book()
        if "bbo_after_each" in scenario:
            best = [list(side[0][:2]) if side else None for side in (bids, asks)]
            assert best == scenario["bbo_after_each"][number], f"after operation {number}"
        for account, assets in scenario.get("available_after", {}).get(str(number), {}).items():
            have = run.matching.balances(account)
            assert {asset: have[asset][0] for asset in assets} == assets
    check_trades(run.trades, scenario["expected_trades"])
    if "expected_book" in scenario:
        bids, asks = run.matching.book()
        assert {"bids": lists(bids), "asks": lists(asks)} == scenario["expected_book"]
    for asset, amount in scenario.get("fees_collected", {}).items():
        fees = {row["asset"]: row["fees"] for row in run.matching.kernel.state_rows() if row["type"] == "Asset"}
        assert fees[asset] == amount
    run.matching.kernel.audit()


@pytest.mark.parametrize("scenario", ADOPTED[::5], ids=lambda scenario: scenario["name"])
def test_replay_command(scenario: dict[str, Any], tmp_path: Path) -> None:
    """Through `streambank replay`, as a user would run it: all events in one frame, which ``input`` counts."""
    run = Run(scenario)
    events = run.setup()
    inputs: list[int] = []
    for number, op in enumerate(scenario["orders"]):
        commands = run.commands(op)
        run.play(number, op)
        inputs += [number] * len(commands)
        events += commands
    app = typer.Typer()
    replay.register(app)
    source, out = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    source.write_text(json.dumps({"events": events}) + "\n")
    result = CliRunner().invoke(app, ["matching", str(source), "--out", str(out)])
    assert result.exit_code == 0, result.output
    reports = json.loads(out.read_text())["events"]
    offset = len(events) - len(inputs)
    trades = [
        {
            "op": inputs[report["input"] - offset],
            "taker": report["order_id"],
            "maker": report["maker_order_id"],
            "price": report["price"],
            "qty": report["quantity"],
        }
        for report in reports
        if report.get("exec_type") == "TRADE"
    ]
    check_trades(trades, scenario["expected_trades"])
