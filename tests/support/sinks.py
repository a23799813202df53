"""A sink as a process, what it is fed, and what it wrote, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from infra.kafka import kafka_options
from infra.migrations import migrate_cassandra, migrate_postgres
from infra.registry import SchemaRegistry, writer_schema
from infra.settings import Settings
from infra.stores import API_ROLE, cassandra_session, postgres_conninfo
from jobs.dead_letters import LetterPlace, decode_letters
from pipelines.catalogue import LEDGER_DEAD_LETTERS, LEDGER_EVENTS, Topic
from pipelines.wire import unwrap, wrap
from tests.support.ledger_events import EventLog
from tests.support.provision import provision
from tests.support.stack import free_ports, variables

Record = tuple[int, bytes | None]


def prepare(environment: Settings, destination: str, *systems: str) -> None:
    """Schemas and topics of these systems, or of all, and the destination's tables."""
    provision(environment, *systems)
    if destination == "postgres":
        migrate_postgres(environment)
    else:
        migrate_cassandra(environment)


def registered(environment: Settings, records: Iterable[tuple[int, bytes]]) -> list[Record]:
    """The records under the id that this environment's registry gives ledger.events."""
    with SchemaRegistry(environment) as registry:
        schema_id = registry.schema_id(LEDGER_EVENTS)
    return [(shard, wrap(schema_id, unwrap(value)[1])) for shard, value in records]


def send(environment: Settings, records: Iterable[Record], topic: str = LEDGER_EVENTS.name) -> None:
    """Write records to a topic and wait until all are acknowledged."""
    failed: list[str] = []
    producer = Producer({**kafka_options(environment), "message.max.bytes": 1_048_576})
    for shard, value in records:
        producer.produce(
            environment.kafka_topic(topic),
            value=value,
            key=str(shard).encode(),
            partition=shard,
            on_delivery=lambda error, _: failed.append(str(error)) if error else None,
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    assert not failed, failed


def committed(environment: Settings, group: str) -> dict[int, int]:
    """The group's committed offset of each partition of ledger.events."""
    consumer = Consumer({**kafka_options(environment), "group.id": environment.kafka_topic(group)})
    try:
        found = consumer.committed(
            [TopicPartition(environment.kafka_topic(LEDGER_EVENTS.name), shard) for shard in range(4)], timeout=10
        )
        return {place.partition: place.offset for place in found}
    except KafkaException:
        return {}
    finally:
        consumer.close()


def everything(environment: Settings, topic: Topic) -> list[Any]:
    """All messages that lie in a topic now, by partition and offset."""
    consumer = Consumer({**kafka_options(environment), "group.id": "test-reader", "enable.auto.commit": False})
    name = environment.kafka_topic(topic.name)
    places = [TopicPartition(name, partition, 0) for partition in range(topic.partitions)]
    found: list[Any] = []
    try:
        for place in places:
            low, high = consumer.get_watermark_offsets(place, timeout=60, cached=False)
            place.offset = low
            consumer.assign([place] if high > low else [])
            deadline = time.monotonic() + 60
            while low < high:
                message = consumer.poll(1)
                if message is not None and message.error() is None:
                    found.append(message)
                    low = message.offset() + 1
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{name} {place.partition}: nothing more came before offset {high}")
        return found
    finally:
        consumer.close()


def dead_letters(environment: Settings) -> list[LetterPlace]:
    """All letters of the environment, by partition and offset."""
    letters = [
        letter
        for message in everything(environment, LEDGER_DEAD_LETTERS)
        for letter in decode_letters(
            LEDGER_DEAD_LETTERS,
            message.partition(),
            message.offset(),
            message.value(),
            lambda schema_id: writer_schema(schema_id, environment),
        )
    ]
    return sorted(letters, key=lambda place: (place.partition, place.offset))


class SinkProcess:
    """`streambank sink DESTINATION` as a user runs it."""

    def __init__(self, environment: Settings, destination: str, log: Path, **options: str) -> None:
        self.web_port = free_ports(1, environment.host)[0]
        self.log = log
        self._base = f"http://{environment.host}:{self.web_port}"
        overrides = {f"STREAMBANK_SINK_{name.upper()}": value for name, value in options.items()}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("streambank")), "sink", destination],
                env={
                    **variables(environment),
                    "TMPDIR": str(log.parent),
                    "STREAMBANK_SINK_WEB_PORT": str(self.web_port),
                    **overrides,
                },
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, and gone."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(120)

    def health(self) -> tuple[int, dict[str, Any]]:
        """(HTTP status, report); raises while the page is not up."""
        try:
            with urllib.request.urlopen(f"{self._base}/health", timeout=20) as response:  # noqa: S310
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels; 0 if it was never counted."""
        with urllib.request.urlopen(f"{self._base}/metrics", timeout=20) as response:  # noqa: S310
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def said(self) -> str:
        """Everything it logged."""
        return self.log.read_text()


@contextmanager
def running(environment: Settings, destination: str, log: Path, **options: str) -> Iterator[SinkProcess]:
    """A sink that is killed at the end, whatever happens."""
    sink = SinkProcess(environment, destination, log, **options)
    try:
        yield sink
    finally:
        sink.kill()


Stored = tuple[dict[tuple[int, int], Any], dict[Any, Any]]


def stored(environment: Settings, destination: str) -> Stored:
    """(balances, entries) as the destination has them, comparable with `expected`."""
    return _postgres(environment) if destination == "postgres" else _cassandra(environment)


def expected(log: EventLog, destination: str) -> Stored:
    """(balances, entries) that the destination must have after ``log``."""
    balances: dict[tuple[int, int], Any] = {
        key: value for key, value in log.balances().items() if destination == "postgres" or any(value)
    }
    entries: dict[Any, Any] = {}
    for shard, sequence, _, event in log.events():
        if event["type"] == "AccountCreated":
            continue
        created = event["type"] == "TransferCreated"
        transfer_id = int(event["id"] if created else event["pending_id"])
        debit, credit = int(event["debit_account_id"]), int(event["credit_account_id"])
        fact = (int(event["amount"]), int(event["timestamp"]), sequence)
        if destination == "postgres":
            entries[created, shard, transfer_id] = (debit, credit, *fact)
        else:
            for account, other, direction in ((debit, credit, "debit"), (credit, debit, "credit")):
                entries[created, shard, transfer_id, account] = (other, direction, *fact)
    return balances, entries


def _postgres(environment: Settings) -> Stored:
    with psycopg.connect(postgres_conninfo(environment, API_ROLE)) as connection:
        balances = {
            (shard, int(account)): tuple(map(int, rest))
            for shard, account, *rest in connection.execute(
                "SELECT shard, id, debits_pending, debits_posted, credits_pending, credits_posted FROM accounts"
            )
        }
        entries = {
            (created, shard, int(identity)): (int(debit), int(credit), int(amount), timestamp, sequence)
            for created, shard, identity, debit, credit, amount, timestamp, sequence in connection.execute(
                "SELECT true, shard, id, debit_account_id, credit_account_id, amount, timestamp, sequence"
                " FROM transfers UNION ALL SELECT false, shard, pending_id, debit_account_id, credit_account_id,"
                " amount, timestamp, sequence FROM transfer_expiries"
            )
        }
    return balances, entries


def _cassandra(environment: Settings) -> Stored:
    """Balances are those of each account's entry with the highest sequence, and of it the last."""
    last: dict[tuple[int, int], tuple[tuple[int, bool, int], Any]] = {}
    entries: dict[Any, Any] = {}
    with cassandra_session(environment) as session:
        for row in session.execute("SELECT * FROM statement_by_account_month"):
            created = row.entry == "transfer"
            entries[created, row.shard, row.transfer_id, row.account_id] = (
                row.counterparty_account_id,
                row.direction,
                row.amount,
                row.timestamp,
                row.sequence,
            )
            key = (row.shard, row.account_id)
            order = (row.sequence, created, row.timestamp)  # within a frame expiries come first
            balances = (row.debits_pending, row.debits_posted, row.credits_pending, row.credits_posted)
            if key not in last or last[key][0] < order:
                last[key] = (order, balances)
    return {key: balances for key, (_, balances) in last.items() if any(balances)}, entries
