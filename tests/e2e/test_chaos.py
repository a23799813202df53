"""Nothing acknowledged is lost and nothing is applied twice, whatever is killed while payments flow.

One run on the real servers: simulated card payments go through the API while, one after another, every part is
killed or stopped. Afterwards the log is replayed in process and must equal the topics, Postgres and Cassandra, row for
row, and every payment that the API acknowledged must have its result.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from confluent_kafka import Producer

from infra.cli.load import local_credentials
from infra.settings import Settings
from infra.stack.cassandra import Cassandra
from infra.stack.flink import Flink
from infra.stack.kafka import Kafka
from infra.stack.postgres import Postgres
from jobs.topic_reader import TopicReader
from jobs.verify import verify, wait_drained
from models.load import ApiTarget, LoadProgress, Pace, load_api
from models.load_plan import LoadPlan, plan_load
from models.simulator import load_transactions
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_DEAD_LETTERS, LEDGER_RESULTS
from pipelines.codec import codec_of
from pipelines.wire import unwrap
from tests.support.deployment import Deployment, Service
from tests.support.stack import PrivateStack, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

MOST_PAYMENTS = 200_000
"""More than the kills leave time for: the load ends when they are over."""
RATE = 150.0
BATCH = 10
OUTAGE_SECONDS = 10.0


class Load(threading.Thread):
    """The open-loop load beside the test; an error in it fails the test at `finish`."""

    def __init__(self, plan: LoadPlan, target: ApiTarget) -> None:
        super().__init__(name="load", daemon=True)
        self.progress = LoadProgress(len(plan.payments))
        self._plan, self._target = plan, target
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(load_api(self._plan, self._target, Pace(rate=RATE, batch=BATCH), self.progress))
        except BaseException as error:
            self._error = error

    def flows_on(self, payments: int = 400, deadline: float = 150) -> None:
        """Wait until so many more payments are acknowledged."""
        wanted = self.progress.acknowledged_events + payments
        wait_until(
            lambda: self.progress.acknowledged_events >= wanted or not self.is_alive(),
            deadline,
            f"{payments} more payments are acknowledged ({self.progress.failures})",
        )
        self.require_no_error()
        assert self.is_alive(), f"the load ended too early to be disturbed: {self.progress.as_json()}"

    def require_no_error(self) -> None:
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        self.progress.stopping = True
        self.join(300)
        assert not self.is_alive(), f"the load did not end: {self.progress.as_json()}"
        self.require_no_error()


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    return stack.environment("kafka", "registry", "postgres", "cassandra", "valkey", "flink")


@pytest.fixture(scope="module")
def deployment(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(environment, tmp_path_factory.mktemp("services")) as running:
        yield running


def restart(service: Service) -> None:
    service.kill()
    service.start()


def kill_one_api_worker(api: Service) -> None:
    workers = psutil.Process(api.process.pid).children()
    assert len(workers) >= 2, f"the api has {len(workers)} worker processes"
    workers[0].send_signal(signal.SIGKILL)


def outage(server: Any) -> None:
    """The server is away for ten seconds: the length is the point, nothing is waited for."""
    server.stop()
    time.sleep(OUTAGE_SECONDS)
    server.start()
    server.wait_healthy()


def produce_garbage_and_repeats(environment: Settings) -> int:
    """Send records that are no frames, and each shard's newest frames again; returns the number of bad ones."""
    topic = environment.kafka_topic(LEDGER_COMMANDS.name)
    with TopicReader(environment) as reader:
        frames = {
            shard: [record.value for record in reader.read(LEDGER_COMMANDS, shard)][-5:]
            for shard in range(LEDGER_COMMANDS.partitions)
        }
    good = frames[0][-1]
    bad = [
        b"not avro at all",
        b"\x00\x00\xff\xff\xff" + good[5:],  # a schema id that the registry does not have
        good[:-3],  # cut off
        good[:5] + b"\x00" * 900_000,  # large, and no frame
    ]
    producer = Producer({"bootstrap.servers": environment.kafka_bootstrap, "acks": "all"})
    for value in bad:
        producer.produce(topic, value, partition=0)
    for shard, values in frames.items():
        for value in values:
            producer.produce(topic, value, partition=shard)
    assert producer.flush(30) == 0
    return len(bad)


def test_every_part_is_killed_under_load(
    deployment: Deployment,
    kafka: Kafka,
    postgres: Postgres,
    cassandra: Cassandra,
    flink: Flink,
) -> None:
    environment = deployment.environment
    plan = plan_load(load_transactions()[:MOST_PAYMENTS], run=time.time_ns() // 1000, short_share=0.1)
    client_id, client_secret = local_credentials(environment)
    load = Load(plan, ApiTarget(environment.api_url, client_id, client_secret, connections=16))
    load.start()
    load.flows_on(deadline=180)

    flink.kill_task_manager()
    flink.start_task_manager()
    load.flows_on()
    restart(deployment.postgres_sink)
    restart(deployment.cassandra_sink)
    load.flows_on()
    bad = produce_garbage_and_repeats(environment)
    kill_one_api_worker(deployment.api)
    load.flows_on()
    restart(deployment.api)
    load.flows_on()
    outage(postgres)
    load.flows_on()
    kafka.kill()
    kafka.start()
    kafka.wait_healthy()
    load.flows_on()
    outage(cassandra)
    restart(deployment.postgres_sink)
    load.flows_on()
    flink.kill_task_manager()
    flink.start_task_manager()
    load.finish()

    progress = load.progress
    # A client may give up while a server is away; then its payment was not acknowledged, and may or may not exist.
    assert progress.acknowledged_events + progress.failed_events == progress.sent_events
    assert progress.acknowledged_events > 0.9 * progress.sent_events, progress.failures
    assert all("503" in why or "409" in why or "Connect" in why for why in progress.failures), progress.failures
    for service in deployment.services:
        service.require_alive()

    backlog = wait_drained(environment, 240)
    assert backlog.drained, backlog
    audit = verify(environment)
    assert audit.ok, [check for check in audit.checks if not check.ok]
    assert dead_letters(environment) >= bad

    results = results_by_id(environment)
    acknowledged = [
        int(plan.payments.run) << 64 | int(number) for number in plan.payments.number[progress.acknowledged]
    ]
    missing = [number for number in acknowledged if number not in results]
    assert not missing, f"{len(missing)} acknowledged payments have no result, the first: {missing[0]}"
    refused = sum(1 for number in acknowledged if results[number] == "exceeds_credits")
    assert 0 < refused < len(acknowledged) / 2, f"{refused} of {len(acknowledged)}: some cannot pay, most can"
    created = sum(1 for number in acknowledged if results[number] == "created")
    assert created + refused == len(acknowledged)


def dead_letters(environment: Settings) -> int:
    with TopicReader(environment) as reader:
        return sum(
            1 for shard in range(LEDGER_DEAD_LETTERS.partitions) for _ in reader.read(LEDGER_DEAD_LETTERS, shard)
        )


def results_by_id(environment: Settings) -> dict[int, str]:
    """The first result of each transfer: a repeated command is answered again, with `exists`."""
    codec = codec_of(LEDGER_RESULTS.name)
    kind = codec.event_type("TransferResult")
    symbols = next(field for field in kind.fields if field.name == "result").symbols
    first: dict[int, str] = {}
    with TopicReader(environment) as reader:
        for shard in range(LEDGER_RESULTS.partitions):
            for record in reader.read(LEDGER_RESULTS, shard):
                rows = codec.decode(unwrap(record.value)[1]).events.view(kind.dtype)
                for row in rows[rows["kind"] == kind.kind]:
                    first.setdefault(int(row["id_hi"]) << 64 | int(row["id_lo"]), symbols[int(row["result"])])
    return first
