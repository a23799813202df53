"""Trades settle once: the relay is killed, reports repeat, and the ledger has each trade's legs, all or none."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.settings import Settings
from jobs.inprocess import InProcess
from jobs.sinks.base import SinkAlarm
from jobs.sinks.settlement import account_id, read_plan
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_RESULTS, MATCHING_REPORTS, PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.matching.routing import shard_of
from pipelines.wire import unwrap
from tests.support.flink_job import provision
from tests.support.sinks import everything, running, send
from tests.support.stack import PrivateStack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

PLAN = {
    "ledgers": {"ACME": 6, "ZINC": 10, "USD": 2},
    "instruments": {
        "ACME/USD": {"base": "ACME", "quote": "USD", "base_per_lot": 10, "quote_per_tick": 3, "taker_fee": 2,
                     "maker_fee": 1},
        "ZINC/USD": {"base": "ZINC", "quote": "USD"},
    },
}  # fmt: skip
FRAMES, ORDERS = 60, 20


def traded(environment: Settings, schema_ids: dict[str, int]) -> tuple[list[tuple[int, bytes]], list[dict[str, Any]]]:
    """The reports' records of a lively market in two instruments, and all trades in them."""
    random = np.random.default_rng(3)
    codec, matching = codec_of("matching.commands"), InProcess(PIPELINES["matching"], schema_ids)
    records: list[tuple[int, bytes]] = []
    trades = []
    for number in range(FRAMES):
        symbol = ("ACME/USD", "ZINC/USD")[number % 2]
        orders = [
            {"type": "NewOrder", "order_id": number * ORDERS + index, "account": f"A{random.integers(5)}",
             "symbol": symbol, "side": ("BUY", "SELL")[random.integers(2)], "price": int(random.integers(95, 106)),
             "quantity": int(random.integers(1, 9))}
            for index in range(ORDERS)
        ]  # fmt: skip
        frame = Frame(codec.topic, shard_of(symbol), 0, 1_000_000 + number, f"t{number}", parse_events(codec, orders))
        for output in matching.apply_frame(frame):
            if output.topic == MATCHING_REPORTS.name:
                records.append((output.shard, output.value))
                events = codec_of(MATCHING_REPORTS.name).decode(unwrap(output.value)[1]).events
                trades += [
                    report for report in render_events(codec_of(MATCHING_REPORTS.name), events)
                    if report.get("exec_type") == "TRADE"
                ]  # fmt: skip
    return records, trades


def expected_balances(trades: list[dict[str, Any]]) -> Counter[int]:
    """Ledger account -> credits less debits, from the trades alone."""
    balances: Counter[int] = Counter()
    for trade in trades:
        plan = PLAN["instruments"][trade["symbol"]]
        base, quote = PLAN["ledgers"][plan["base"]], PLAN["ledgers"]["USD"]
        taker, maker = trade["account"], trade["maker_account"]
        buyer, seller = (taker, maker) if trade["side"] == "BUY" else (maker, taker)
        for ledger, payer, payee, amount in (
            (base, seller, buyer, trade["quantity"] * plan.get("base_per_lot", 1)),
            (quote, buyer, seller, trade["quantity"] * trade["price"] * plan.get("quote_per_tick", 1)),
            (quote, taker, "FEES", trade["quantity"] * plan.get("taker_fee", 0)),
            (quote, maker, "FEES", trade["quantity"] * plan.get("maker_fee", 0)),
        ):
            balances[account_id(payer, ledger)] -= amount
            balances[account_id(payee, ledger)] += amount
    return balances


def test_each_trade_settles_once_whatever_is_killed(stack: PrivateStack, tmp_path: Path) -> None:
    plan = tmp_path / "settlement.json"
    plan.write_text(json.dumps(PLAN))
    environment = stack.environment("kafka", "registry").model_copy(update={"settlement_file": plan})
    schema_ids = provision(environment)
    records, trades = traded(environment, schema_ids)
    assert len(trades) > 300
    # what an account trades with itself moves nothing where there are no fees
    moved = {
        _place(trade) for trade in trades if trade["account"] != trade["maker_account"] or "ACME" in trade["symbol"]
    }
    half = len(records) // 2
    send(environment, records[:half], MATCHING_REPORTS.name)
    with running(environment, "settlement", tmp_path / "first.log") as relay:
        # in the middle of its work: something went out, and the rest comes while it is dead
        wait_until(lambda: everything(environment, LEDGER_COMMANDS), 90, "the relay sends commands")
        relay.kill()
    # a matching job that was killed and restored writes its last reports again, with the same sequences
    send(environment, records[half - 10 :], MATCHING_REPORTS.name)
    with running(environment, "settlement", tmp_path / "second.log") as relay:
        wait_until(lambda: _settled(environment) >= moved, 120, "all trades are settled")
        assert relay.stop() == 0

    ledger = InProcess(PIPELINES["ledger"], schema_ids)
    net: Counter[int] = Counter()
    applied: list[int] = []
    created: set[str] = set()
    answered: set[str] = set()
    # everything is applied twice, as when the relay had been killed after each of its frames
    for message in [*everything(environment, LEDGER_COMMANDS)] * 2:
        for output in ledger.apply(LEDGER_COMMANDS.name, message.value(), message.partition()):
            for event in render_events(codec_of(output.topic), ledger.decode_output(output).events):
                if event["type"] == "TransferCreated":
                    applied.append(int(event["id"]))
                    net[int(event["debit_account_id"])] -= int(event["amount"])
                    net[int(event["credit_account_id"])] += int(event["amount"])
                elif output.topic == LEDGER_RESULTS.name:
                    answered.add(event["id"])
                    if event["result"] == "created":
                        created.add(event["id"])
    assert created == answered  # a repeated chain exists already, but none was ever refused
    assert len(applied) == len(set(applied))
    assert {_parts(transfer)[:2] for transfer in applied} == moved
    assert {account: value for account, value in net.items() if value} == {
        account: value for account, value in expected_balances(trades).items() if value
    }
    assert sum(net.values()) == 0


def _parts(transfer: int) -> tuple[int, int, int]:
    return transfer >> 72 & 0xFFFF, transfer >> 8 & (1 << 63) - 1, transfer & 0xFF


def _place(trade: dict[str, Any]) -> tuple[int, int]:
    return shard_of(trade["symbol"]), int(trade["execution_id"])


def _settled(environment: Settings) -> set[tuple[int, int]]:
    codec = codec_of(LEDGER_COMMANDS.name)
    return {
        _parts(int(event["id"]))[:2]
        for message in everything(environment, LEDGER_COMMANDS)
        for event in render_events(codec, codec.decode(unwrap(message.value())[1]).events)
        if event["type"] == "CreateTransfer"
    }


def test_a_plan_that_cannot_settle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"ledgers": {"A": 1, "B": 2}, "instruments": {"A/B": {"base": "A", "quote": "B"}}}))
    with pytest.raises(SinkAlarm, match="equal modulo 4"):
        read_plan(path)
    path.write_text(json.dumps({"ledgers": {"A": 1}, "instruments": {"A/B": {"base": "A", "quote": "B"}}}))
    with pytest.raises(SinkAlarm, match="ledger for B"):
        read_plan(path)
    path.write_text(json.dumps({"ledgers": {}, "instruments": {}, "fees": 1}))
    with pytest.raises(SinkAlarm, match="fees"):
        read_plan(path)
    with pytest.raises(SinkAlarm, match="STREAMBANK_SETTLEMENT_FILE"):
        read_plan(None)
