"""Trades settle once: relay and matching job are killed, reports repeat, orders are forged, and the ledger has each
trade's legs, all or none."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer

from infra.flink_rest import FlinkRest
from infra.kafka import kafka_options
from infra.producer_keys import FrameSigner
from infra.registry import writer_schema
from infra.settings import PROJECT_ROOT, Settings
from infra.stack.flink import Flink
from jobs.dead_letters import decode_letters
from jobs.inprocess import InProcess
from jobs.sinks.base import SinkAlarm
from jobs.sinks.settlement import account_id, read_plan
from pipelines.catalogue import (
    LEDGER_COMMANDS,
    LEDGER_RESULTS,
    MATCHING_COMMANDS,
    MATCHING_DEAD_LETTERS,
    MATCHING_REPORTS,
    PIPELINES,
)
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.trading.routing import shard_of
from pipelines.wire import unwrap, wrap
from tests.support.flink_job import FAST, caught_up, end, start
from tests.support.frame_log import Record, count, expected, produce
from tests.support.provision import provision
from tests.support.sinks import everything, running, send
from tests.support.stack import PrivateStack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

MATCHING = PIPELINES["matching"]
MATCHING_JOB = PROJECT_ROOT / "jobs" / "matching.py"
PLAN = {
    "ledgers": {"ACME": 6, "ZINC": 10, "USD": 2},
    "instruments": {
        "ACME/USD": {"base": "ACME", "quote": "USD", "base_per_lot": 10, "quote_per_tick": 3, "taker_fee": 2,
                     "maker_fee": 1},
        "ZINC/USD": {"base": "ZINC", "quote": "USD"},
    },
}  # fmt: skip
FRAMES, ORDERS = 60, 20


def orders_of_a_lively_market(schema_ids: dict[str, int]) -> list[Record]:
    """Command frames for two instruments; some orders go to the venue XV, which fills them in two parts."""
    random = np.random.default_rng(3)
    codec = codec_of(MATCHING_COMMANDS.name)
    matching = InProcess(MATCHING, schema_ids)
    records: list[Record] = []

    def add(symbol: str, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Another frame; the reports that answer it."""
        number = len(records)
        frame = Frame(codec.topic, shard_of(symbol), 0, 1_000_000 + number, f"t{number}", parse_events(codec, commands))
        records.append(Record(frame.shard, wrap(schema_ids[codec.topic], codec.encode(frame))))
        outputs = [matching.decode_output(output) for output in matching.apply_frame(frame)]
        reports = [output.events for output in outputs if output.topic == MATCHING_REPORTS.name]
        return [report for events in reports for report in render_events(codec_of(MATCHING_REPORTS.name), events)]

    for symbol in ("ACME/USD", "ZINC/USD"):
        names = [{"type": "AccountDefinition", "account": f"A{number}", "risk": "OFF"} for number in range(5)]
        add(symbol, [*names, {"type": "AccountDefinition", "account": "XV", "risk": "VENUE"}])
    for number in range(FRAMES):
        symbol = ("ACME/USD", "ZINC/USD")[number % 2]
        orders = [
            {"type": "NewOrder", "order_id": number * ORDERS + index, "account": f"A{random.integers(5)}",
             "symbol": symbol, "side": ("BUY", "SELL")[random.integers(2)], "price": int(random.integers(95, 106)),
             "quantity": int(random.integers(1, 9))}
            for index in range(ORDERS)
        ]  # fmt: skip
        orders[0] |= {"destination": "XV"}
        [request] = [report for report in add(symbol, orders) if report["type"] == "RouteRequest"]
        lots, told = request["quantity"], 0
        for part in filter(None, (lots // 2, lots - lots // 2)):
            told += part
            add(symbol, [
                {"type": "VenueReport", "venue": "XV", "order_id": request["order_id"], "route": request["route"],
                 "symbol": symbol, "exec_type": "TRADE", "quantity": part, "price": request["price"],
                 "cumulative_quantity": told},
            ] * 2)  # fmt: skip
    return records


def traded(commands: list[Record], schema_ids: dict[str, int]) -> tuple[list[tuple[int, bytes]], list[dict[str, Any]]]:
    """The reports' records that answer them, in order, and all trades in them."""
    matching = InProcess(MATCHING, schema_ids)
    codec = codec_of(MATCHING_REPORTS.name)
    records = [
        (output.shard, output.value)
        for command in commands
        for output in matching.apply(MATCHING_COMMANDS.name, command.value, command.partition)
        if output.topic == MATCHING_REPORTS.name
    ]
    return records, [
        report
        for _, value in records
        for report in render_events(codec, codec.decode(unwrap(value)[1]).events)
        if report.get("exec_type") == "TRADE"
    ]


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
            (
                quote,
                maker,
                "FEES",
                trade["quantity"] * plan.get("maker_fee", 0) * (trade["maker_order_id"] is not None),
            ),
        ):
            balances[account_id(payer, ledger)] -= amount
            balances[account_id(payee, ledger)] += amount
    return balances


def test_each_trade_settles_once_whatever_is_killed(stack: PrivateStack, tmp_path: Path) -> None:
    plan = tmp_path / "settlement.json"
    plan.write_text(json.dumps(PLAN))
    environment = stack.environment("kafka", "registry").model_copy(update={"settlement_file": plan})
    schema_ids = provision(environment, "matching", "ledger")
    records, trades = traded(orders_of_a_lively_market(schema_ids), schema_ids)
    assert len(trades) > 300
    half = len(records) // 2
    send(environment, records[:half], MATCHING_REPORTS.name)
    with running(environment, "settlement", tmp_path / "first.log") as relay:
        # in the middle of its work: something went out, and the rest comes while it is dead
        wait_until(lambda: everything(environment, LEDGER_COMMANDS), 90, "the relay sends commands")
        relay.kill()
    # a matching job that was killed and restored writes its last reports again, with the same sequences
    send(environment, records[half - 10 :], MATCHING_REPORTS.name)
    with running(environment, "settlement", tmp_path / "second.log") as relay:
        wait_until(lambda: _settled(environment) >= _moved(trades), 120, "all trades are settled")
        assert relay.stop() == 0
    check_settled_once(environment, schema_ids, trades)


def test_a_matching_job_that_dies_between_trade_and_settlement_settles_once(
    stack: PrivateStack, tmp_path: Path
) -> None:
    plan = tmp_path / "settlement.json"
    plan.write_text(json.dumps(PLAN))
    environment = stack.environment("kafka", "registry", "flink").model_copy(update={"settlement_file": plan})
    flink = stack.get(Flink)
    schema_ids = provision(environment, "matching", "ledger")
    commands = orders_of_a_lively_market(schema_ids)
    wanted = expected(MATCHING, commands, schema_ids)
    _, trades = traded(commands, schema_ids)
    half = len(commands) // 2
    # without a checkpoint the job comes back with nothing, and writes all its reports again
    job = start(environment, MATCHING_JOB, options={**FAST, "execution.checkpointing.interval": "1 h"})
    try:
        produce(environment, MATCHING_COMMANDS.name, commands[:half])
        forge(environment, commands[0])
        wait_until(lambda: count(environment, MATCHING_REPORTS.name, 4) >= half, 180, "the first half is traded")
        wait_until(lambda: len(set_aside(environment)) == 4, 60, "forged frames are set aside")
        with FlinkRest(environment) as rest:
            wait_until(
                lambda: sum(shard["refused_signatures"] for shard in rest.counters(job).values()) == 4,
                120,
                "forged frames are counted",
            )
        assert not everything(environment, LEDGER_COMMANDS)
        flink.kill_task_manager()
        with running(environment, "settlement", tmp_path / "relay.log") as relay:
            flink.start_task_manager()
            produce(environment, MATCHING_COMMANDS.name, commands[half:])
            # byte for byte what one process makes of the good frames
            assert caught_up(environment, MATCHING, wanted) >= half
            wait_until(lambda: _settled(environment) >= _moved(trades), 180, "all trades are settled")
            assert relay.stop() == 0
    finally:
        end(environment, job.name)
    value = commands[0].value
    assert (
        set_aside(environment)
        == [
            ("unsigned", value),
            ("bad_hmac", value),
            ("unknown_producer", value),
            ("bad_checksum", value + b"x"),
        ]
        * 2
    )  # fmt: skip
    check_settled_once(environment, schema_ids, trades)


def forge(environment: Settings, record: Record) -> None:
    """Send a record again: unsigned, with another HMAC, in another producer's name, and damaged."""
    name = environment.kafka_topic(MATCHING_COMMANDS.name)
    [(header, good)] = FrameSigner(environment, MATCHING_COMMANDS, "api").headers(record.partition, record.value)
    producer = Producer(kafka_options(environment))
    for value, headers in (
        (record.value, None),
        (record.value, [(header, good[:-64] + b"0" * 64)]),
        (record.value, [(header, good.replace(b" api ", b" eve "))]),
        (record.value + b"x", [(header, good)]),
    ):
        producer.produce(name, value, key=str(record.partition), partition=record.partition, headers=headers)
    assert producer.flush(60) == 0


def set_aside(environment: Settings) -> list[tuple[str, bytes]]:
    """(reason, record) of the matching job's dead letters."""
    return [
        (place.letter.reason, place.letter.payload)
        for message in everything(environment, MATCHING_DEAD_LETTERS)
        for place in decode_letters(
            MATCHING_DEAD_LETTERS, message.partition(), message.offset(), message.value(),
            lambda number: writer_schema(number, environment),
        )
    ]  # fmt: skip


def check_settled_once(environment: Settings, schema_ids: dict[str, int], trades: list[dict[str, Any]]) -> None:
    """The commands in the topic, applied by the ledger, are exactly the trades' legs."""
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
    assert {_parts(transfer)[:2] for transfer in applied} == _moved(trades)
    assert {account: value for account, value in net.items() if value} == {
        account: value for account, value in expected_balances(trades).items() if value
    }
    assert sum(net.values()) == 0


def _parts(transfer: int) -> tuple[int, int, int]:
    return transfer >> 72 & 0xFFFF, transfer >> 8 & (1 << 63) - 1, transfer & 0xFF


def _moved(trades: list[dict[str, Any]]) -> set[tuple[int, int]]:
    """Those that move something: what an account trades with itself does not where there are no fees."""
    return {
        _place(trade) for trade in trades if trade["account"] != trade["maker_account"] or "ACME" in trade["symbol"]
    }


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
