"""`verify` passes on a system that is right and names what is wrong in one that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from infra.registry import schema_ids
from infra.settings import Settings
from infra.stack.cassandra import Cassandra
from infra.stack.kafka import Kafka
from infra.stack.postgres import Postgres
from infra.stack.registry import Registry
from infra.stores import cassandra_session, postgres_conninfo
from jobs.topic_reader import TopicReader
from jobs.verify import Verification, verify, wait_drained
from models.load import LoadProgress, Pace, load_kafka
from models.load_plan import plan_load
from models.simulator import simulate
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_EVENTS, LEDGER_RESULTS, PIPELINES
from pipelines.shard import OutputRecord, Shard
from tests.support import sinks
from tests.support.stack import wait_until

pytestmark = pytest.mark.stack


def _load(environment: Settings) -> list[OutputRecord]:
    """Put a load into the log; returns what a job would answer, in order."""
    plan = plan_load(simulate(customers=60, terminals=500, days=6), run=5)
    load_kafka(plan, environment, Pace(batch=20), LoadProgress(len(plan.payments)))
    pipeline = PIPELINES["ledger"]
    ids = schema_ids(PIPELINES["ledger"].outputs, environment)
    outputs: list[OutputRecord] = []
    with TopicReader(environment) as reader:
        for number in range(pipeline.shards):
            shard = Shard(pipeline, number, ids)
            for record in reader.read(LEDGER_COMMANDS, number):
                outputs += shard.apply(LEDGER_COMMANDS.name, record.value or b"")
    return outputs


def _send(environment: Settings, outputs: list[OutputRecord]) -> None:
    for topic in (LEDGER_RESULTS, LEDGER_EVENTS):
        sinks.send(environment, [(out.shard, out.value) for out in outputs if out.topic == topic.name], topic.name)


def _failed(found: Verification) -> list[str]:
    return [check.name for check in found.checks if not check.ok]


def _repeat(outputs: list[OutputRecord]) -> list[OutputRecord]:
    """What a restored job sends: the last frames once more."""
    return outputs + outputs[-6:]


def _lose(outputs: list[OutputRecord]) -> list[OutputRecord]:
    lost = [out for out in outputs if out.topic == LEDGER_EVENTS.name and out.shard == 2][1]
    return [out for out in outputs if out is not lost]


def _falsify(outputs: list[OutputRecord]) -> list[OutputRecord]:
    index = next(i for i, out in enumerate(outputs) if out.topic == LEDGER_RESULTS.name and out.sequence == 3)
    value = outputs[index].value
    changed = outputs[index]._replace(value=value[:-1] + bytes([value[-1] ^ 1]))
    return [*outputs[:index], changed, *outputs[index + 1 :]]


def _repeat_differently(outputs: list[OutputRecord]) -> list[OutputRecord]:
    last = outputs[-1]
    return [*outputs, last._replace(value=last.value[:-1] + bytes([last.value[-1] ^ 1]))]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (_repeat, []),
        (_lose, ["ledger.events: missing in sequence"]),
        (_falsify, ["ledger.results: differing from the replay"]),
        (_repeat_differently, ["ledger.events: differing from the replay"]),
        (lambda outputs: outputs[:-2], ["ledger.results: frames per shard", "ledger.events: frames per shard"]),
    ],
    ids=["repeated", "lost", "falsified", "repeated differently", "not finished"],
)
def test_topics_are_compared_with_the_replay(
    kafka: Kafka,
    registry: Registry,
    postgres: Postgres,
    environment: Settings,
    change: Callable[[list[OutputRecord]], list[OutputRecord]],
    failed: list[str],
) -> None:
    sinks.prepare(environment, "postgres", "ledger")
    outputs = _load(environment)
    _send(environment, change(outputs))
    found = verify(environment, sinks=())
    assert _failed(found) == failed
    assert found.figures["commands"] == found.figures["created"] + found.figures["refused"]
    assert found.figures["refused"] > 0
    assert found.figures["repeated output frames"] == {_repeat: 6, _repeat_differently: 1}.get(change, 0)
    backlog = wait_drained(environment, 0, sinks=())
    assert backlog.job == (0 if len(change(outputs)) >= len(outputs) - 1 else 1)


def test_stores_are_compared_row_for_row(
    kafka: Kafka, registry: Registry, postgres: Postgres, cassandra: Cassandra, environment: Settings, tmp_path: Path
) -> None:
    for destination in ("postgres", "cassandra"):
        sinks.prepare(environment, destination, "ledger")
    _send(environment, _load(environment))
    with (
        sinks.running(environment, "postgres", tmp_path / "postgres.log") as into_postgres,
        sinks.running(environment, "cassandra", tmp_path / "cassandra.log") as into_cassandra,
    ):
        backlog = wait_drained(environment, 120)
        assert backlog.drained, (backlog, into_postgres.said(), into_cassandra.said())
        for sink in (into_postgres, into_cassandra):
            wait_until(lambda sink=sink: sink.process.poll() is None, 1, "the sink is alive")
            sink.stop()
    found = verify(environment)
    assert _failed(found) == []
    assert found.figures["postgres transfers"] > 0
    assert found.figures["cassandra statement rows"] == 2 * found.figures["postgres transfers"]

    with psycopg.connect(postgres_conninfo(environment), autocommit=True) as connection:
        shard, account, posted = connection.execute(
            "SELECT shard, id, debits_posted FROM accounts WHERE debits_posted > 0 ORDER BY shard, id LIMIT 1"
        ).fetchone() or (0, 0, 0)
        connection.execute(
            "UPDATE accounts SET debits_posted = debits_posted + 1 WHERE shard = %s AND id = %s", [shard, account]
        )
        connection.execute(
            "DELETE FROM transfers WHERE (shard, id) = (SELECT shard, min(id) FROM transfers GROUP BY shard LIMIT 1)"
        )
        connection.execute("UPDATE sink_offsets SET next_offset = next_offset + 1 WHERE partition = 0")
    with cassandra_session(environment) as session:
        rows = session.execute("SELECT * FROM statement_by_account_month LIMIT 1")
        names, row = rows.column_names, list(rows.one())
        row[names.index("amount")] += 1
        row[names.index("direction")] = "debit or credit"
        places = ", ".join(["%s"] * len(names))
        insert = f"INSERT INTO statement_by_account_month ({', '.join(names)}) VALUES ({places})"  # noqa: S608
        session.execute(insert, row)
    found = verify(environment)
    assert _failed(found) == [
        "postgres accounts with another balance or field",
        "postgres transfers",
        "postgres transfers: missing, too many",
        "postgres sums per ledger",
        "postgres position (next offset, sequence) per shard",
        "cassandra statement rows",
        "cassandra statement rows: missing, too many",
    ]
    detail = next(check.detail for check in found.checks if "balance" in check.name)
    assert f"shard {shard} account {account}" in detail
    assert f"{int(posted) + 1} instead of {int(posted)}" in detail
