"""A load arrives in the real log completely, in order, and refuses exactly the payments that cannot be paid."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.cli.load import local_credentials
from infra.settings import Settings
from infra.stack.kafka import Kafka
from infra.stack.registry import Registry
from infra.stack.valkey import Valkey
from jobs.topic_reader import TopicReader
from models.load import ApiTarget, LoadError, LoadProgress, Pace, load_api, load_kafka
from models.load_plan import LoadPlan, TransferCode, plan_load
from models.simulator import simulate
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_RESULTS, PIPELINES, TOPICS
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.shard import Shard
from pipelines.wire import unwrap
from tests.support.api_server import running_api
from tests.support.provision import provision
from tests.support.stack import STREAMBANK, variables

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def plan() -> LoadPlan:
    return plan_load(simulate(customers=120, terminals=1000, days=12), run=99)


@pytest.fixture
def provisioned(kafka: Kafka, registry: Registry, environment: Settings) -> Settings:
    provision(environment)
    return environment


def _results(environment: Settings) -> dict[int, list[tuple[int, str]]]:
    """(transfer or account id, result) of every command in the log, per shard in log order."""
    pipeline = PIPELINES["ledger"]
    ids = dict.fromkeys(TOPICS, 1)
    found: dict[int, list[tuple[int, str]]] = {}
    with TopicReader(environment) as reader:
        for number in range(pipeline.shards):
            shard = Shard(pipeline, number, ids)
            found[number] = []
            for record in reader.read(LEDGER_COMMANDS, number):
                assert record.value is not None
                for output in shard.apply(LEDGER_COMMANDS.name, record.value):
                    if output.topic == LEDGER_RESULTS.name:
                        codec = codec_of(output.topic)
                        events = codec.decode(unwrap(output.value)[1]).events
                        found[number] += [(int(row["id"]), row["result"]) for row in render_events(codec, events)]
    return found


def _expected_refusals(plan: LoadPlan) -> set[int]:
    """Ids of the payments that a customer's funds do not cover, taken in order."""
    left = dict(zip(plan.fundings.credit_account_id.tolist(), plan.fundings.amount.tolist(), strict=True))
    refused = set()
    payments = plan.payments
    for number, account, amount in zip(
        payments.number.tolist(), payments.debit_account_id.tolist(), payments.amount.tolist(), strict=True
    ):
        if amount > left[account]:
            refused.add(payments.run << 64 | number)
        else:
            left[account] -= amount
    return refused


def _check(plan: LoadPlan, results: dict[int, list[tuple[int, str]]], *, in_order: bool) -> None:
    by_id = {(shard, identifier): result for shard, rows in results.items() for identifier, result in rows}
    assert len(by_id) == sum(map(len, results.values())) == len(plan.accounts) + len(plan.fundings) + len(plan.payments)
    counts = Counter(by_id.values())
    assert set(counts) == {"created", "exceeds_credits"}
    refused = {identifier for (_, identifier), result in by_id.items() if result == "exceeds_credits"}
    expected = _expected_refusals(plan)
    assert expected
    if in_order:
        assert refused == expected
    short = set(plan.short_customers.tolist())
    customer_of = dict(zip(plan.payments.number.tolist(), plan.payments.debit_account_id.tolist(), strict=True))
    assert {customer_of[identifier & (2**64 - 1)] % 10**9 for identifier in refused} <= short


def test_kafka_load_is_complete_and_refuses_what_cannot_be_paid(provisioned: Settings, plan: LoadPlan) -> None:
    progress = LoadProgress(len(plan.payments))
    load_kafka(plan, provisioned, Pace(batch=200), progress)
    assert progress.acknowledged.all()
    assert progress.acknowledged_events == progress.sent_events == len(plan.payments)
    assert progress.setup_done == len(plan.accounts) + len(plan.fundings)
    results = _results(provisioned)
    assert all(results.values()), "every shard has work"
    _check(plan, results, in_order=True)

    # the same run again changes nothing
    load_kafka(plan, provisioned, Pace(batch=200), LoadProgress(len(plan.payments)))
    again = Counter(result for rows in _results(provisioned).values() for _, result in rows)
    first = Counter(result for rows in results.values() for _, result in rows)
    assert again["created"] == first["created"]
    assert again["exists"] == first["created"]
    assert again["id_already_failed"] == again["exceeds_credits"] == first["exceeds_credits"]


def test_kafka_load_on_schedule_keeps_the_order_and_stops_in_time(provisioned: Settings, plan: LoadPlan) -> None:
    progress = LoadProgress(len(plan.payments))
    load_kafka(plan, provisioned, Pace(rate=400, seconds=2, batch=50), progress)
    sent = progress.acknowledged_events
    assert 0 < sent < len(plan.payments)
    assert progress.acknowledged[:sent].all(), "payments go out in the order of their due times"
    results = _results(provisioned)
    payments = sum(
        identifier >> 64 == plan.payments.run and identifier & (2**64 - 1) < 2**40
        for rows in results.values()
        for identifier, _ in rows
    )
    assert payments == sent
    for rows in results.values():
        numbers = [identifier & (2**64 - 1) for identifier, _ in rows if identifier >> 64]
        order = [number for number in numbers if number < 2**40]
        assert order == sorted(order)


def test_kafka_load_without_schemas_says_what_to_do(kafka: Kafka, registry: Registry, environment: Settings) -> None:
    plan = plan_load(simulate(customers=20, terminals=1000, days=2), run=1)
    with pytest.raises(Exception, match="streambank schemas register"):
        load_kafka(plan, environment, Pace(), LoadProgress(len(plan.payments)))


@pytest.fixture
def api(provisioned: Settings, valkey: Valkey, tmp_path: Path) -> Iterator[Settings]:
    with running_api(provisioned, tmp_path / "api", workers=1) as running:
        yield running.environment


def test_api_load_is_complete_and_every_acknowledged_payment_is_in_the_log(api: Settings, plan: LoadPlan) -> None:
    progress = LoadProgress(len(plan.payments))
    client_id, secret = local_credentials(api)
    assert local_credentials(api) == (client_id, secret), "the client is made once"
    target = ApiTarget(api.api_url, client_id, secret, connections=4)
    asyncio.run(load_api(plan, target, Pace(batch=25), progress))
    assert progress.failures == []
    assert progress.acknowledged.all()
    _check(plan, _results(api), in_order=False)

    single = plan_load(simulate(customers=20, terminals=1000, days=2), run=100)
    progress = LoadProgress(len(single.payments))
    asyncio.run(load_api(single, target, Pace(batch=1), progress))
    assert progress.acknowledged.all()
    in_log = {identifier for rows in _results(api).values() for identifier, _ in rows}
    assert {100 << 64 | number for number in single.payments.number.tolist()} <= in_log

    wrong = ApiTarget(api.api_url, client_id, "wrong", connections=1)
    with pytest.raises(LoadError, match="invalid_client"):
        asyncio.run(load_api(single, wrong, Pace(), LoadProgress(len(single.payments))))


def test_command_line_prints_a_result_as_json(provisioned: Settings, tmp_path: Path) -> None:
    output = tmp_path / "load.json"
    done = subprocess.run(
        [STREAMBANK, "load", "--via", "kafka", "--rate", "0", "--seconds", "0", "--count", "2000", "--json", output],
        env=variables(provisioned), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    assert result["acknowledged_events"] == result["planned_events"] == 2000
    assert result["via"] == "kafka"
    assert result["failed_events"] == 0
    assert set(result["latency_ms"]) == {"p50", "p90", "p99", "p99.9", "max"}
    sent = [identifier for rows in _results(provisioned).values() for identifier, _ in rows if identifier >> 64]
    numbers = np.array([identifier & (2**64 - 1) for identifier in sent])
    assert (numbers < 2**40).sum() == 2000
    assert {identifier >> 64 for identifier in sent} == {result["run"]}
    assert TransferCode.CARD_PAYMENT == 2
