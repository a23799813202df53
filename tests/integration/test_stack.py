"""The local stack as its users meet it: the CLI on real servers, state over down and up, and clear failures."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
import redis
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import WhiteListRoundRobinPolicy
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from infra.kafka import kafka_options
from infra.settings import Settings
from infra.stack.cassandra import Cassandra
from infra.stack.errors import PortTakenError, ServerFailedError, StackError
from infra.stack.flink import Flink
from infra.stack.kafka import Kafka
from infra.stack.postgres import Postgres
from infra.stack.registry import Registry
from infra.stack.stack import Stack, server_types
from infra.stack.valkey import Valkey
from tests.support.stack import PrivateStack, private_settings, variables, wait_until

pytestmark = pytest.mark.stack

STREAMBANK = str(Path(sys.executable).with_name("streambank"))
MEMORY_LIMIT_BYTES = 6 << 30


def streambank(settings: Settings, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [STREAMBANK, *arguments], env=variables(settings), capture_output=True, text=True, timeout=420, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == expect, f"{arguments}: exit code {done.returncode}\n{output}"
    return output


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a stack that only this test uses; whatever it leaves running is stopped."""
    settings = private_settings(tmp_path / "data")
    yield settings
    Stack(settings).down()


def processes_of(settings: Settings) -> list[str]:
    """Command lines of live processes that work in this stack's data directory."""
    directory = str(settings.data_dir)
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if directory in line and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(line)
        except psutil.Error:
            continue
    return found


class Stores:
    """One value in each store, so that a restart can be seen to keep it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.value = uuid.uuid4().hex
        self.topic = f"kept-{self.value}"

    def write(self) -> None:
        kafka = self.settings.kafka_bootstrap
        admin = AdminClient({"bootstrap.servers": kafka})
        admin.create_topics([NewTopic(self.topic, 1, 1)])[self.topic].result(30)
        producer = Producer({"bootstrap.servers": kafka, "acks": "all"})
        producer.produce(self.topic, self.value.encode(), partition=0)
        assert producer.flush(30) == 0
        schema = {"schema": f'{{"type": "fixed", "name": "kept{self.value}", "size": 4}}'}
        self.schema_id = (
            httpx.post(f"{self.settings.registry_url}/subjects/{self.topic}/versions", json=schema, timeout=30)
            .raise_for_status()
            .json()["id"]
        )
        with psycopg.connect(self.settings.postgres_dsn) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
            connection.execute("INSERT INTO kept VALUES (%s)", [self.value])
        with redis.Redis.from_url(self.settings.valkey_url) as valkey:
            valkey.set("kept", self.value)
        self._cql(
            "CREATE KEYSPACE IF NOT EXISTS kept WITH replication = "
            "{'class': 'SimpleStrategy', 'replication_factor': 1}",
            "CREATE TABLE IF NOT EXISTS kept.kept (value text PRIMARY KEY)",
            f"INSERT INTO kept.kept (value) VALUES ('{self.value}')",  # noqa: S608
        )

    def check(self) -> None:
        consumer = Consumer({**kafka_options(self.settings), "group.id": self.topic})
        try:
            consumer.assign([TopicPartition(self.topic, 0, 0)])
            record = consumer.poll(30)
            assert record is not None
            assert record.value() == self.value.encode()
        finally:
            consumer.close()
        schema = httpx.get(f"{self.settings.registry_url}/schemas/ids/{self.schema_id}", timeout=30)
        assert self.value in schema.raise_for_status().json()["schema"]
        with psycopg.connect(self.settings.postgres_dsn) as connection:
            assert (self.value,) in connection.execute("SELECT value FROM kept").fetchall()
        with redis.Redis.from_url(self.settings.valkey_url) as valkey:
            assert valkey.get("kept") == self.value.encode()
        assert self.value in self._cql("SELECT value FROM kept.kept")

    def _cql(self, *statements: str) -> list[str]:
        policy = WhiteListRoundRobinPolicy([self.settings.host])
        profile = ExecutionProfile(load_balancing_policy=policy, request_timeout=30)
        with Cluster(
            [self.settings.host],
            port=self.settings.cassandra_port,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            protocol_version=5,
            connect_timeout=30,
            control_connection_timeout=30,
        ) as cluster:
            session = cluster.connect()
            rows = [list(session.execute(statement)) for statement in statements]
        return [row.value for row in rows[-1]]


def fsynced(settings: Settings) -> bool:
    with redis.Redis.from_url(settings.valkey_url) as valkey:
        return bool(valkey.info("persistence")["aof_pending_bio_fsync"] == 0)


@pytest.mark.timeout(900)
def test_kill_or_down_and_up_keep_the_state_of_every_store(
    stack: PrivateStack,
    kafka: Kafka,
    registry: Registry,
    postgres: Postgres,
    cassandra: Cassandra,
    valkey: Valkey,
    flink: Flink,
) -> None:
    everything = (kafka, registry, postgres, cassandra, valkey, flink)
    stores = Stores(stack.settings)
    stores.write()
    wait_until(lambda: fsynced(stack.settings), 10, "Valkey's append-only file is on disk")
    shown = streambank(stack.settings, "status")
    for server in everything:
        assert f"{server.name} " in shown
        assert str(server.ports[0].number) in shown
        assert str(server.pid) in shown
    assert shown.count("healthy") == len(server_types())
    assert sum(server.status().memory_bytes for server in everything) < MEMORY_LIMIT_BYTES

    # Registry and Valkey die instead; the others are killed under load (e2e/test_chaos.py, test_sinks.py).
    for server in (registry, valkey):
        server.kill()
        assert server.status().state == "dead"
    streambank(stack.settings, "down")
    assert streambank(stack.settings, "status").count("stopped") == len(server_types())
    assert [server.pid for server in everything] == [None] * len(everything)

    streambank(stack.settings, "up")
    stores.check()
    # The command has ended and the servers go on.
    assert all(server.status().state == "healthy" for server in everything)


def test_a_lost_task_manager_is_replaced(flink: Flink) -> None:
    pid = flink.kill_task_manager()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert flink.status().state == "dead"
    process = flink.start_task_manager()
    assert process.pid not in {None, pid}
    flink.wait_healthy()

    def registered() -> list[int]:
        managers = httpx.get(f"{flink.settings.flink_url}/taskmanagers", timeout=5).json()["taskmanagers"]
        return [manager["slotsNumber"] for manager in managers]

    wait_until(lambda: registered() == [flink.options.slots], 60, "the new TaskManager is the only one")


def test_a_taken_port_is_named_with_its_owner_and_the_way_out(own: Settings) -> None:
    with socket.create_server((own.host, own.valkey_port)):
        output = streambank(own, "up", "--only", "valkey", expect=1)
        doctor = streambank(own, "doctor", expect=1)
    owner = f"{psutil.Process().name()} (pid {os.getpid()})"
    assert f"valkey: port {own.valkey_port} (clients) is taken by {owner}" in output
    assert "STREAMBANK_VALKEY_PORT" in output
    assert f"taken by {owner}" in doctor
    assert processes_of(own) == []


def test_up_is_idempotent_and_revives_a_killed_server(own: Settings) -> None:
    streambank(own, "up", "--only", "valkey")
    valkey = Valkey(own)
    first = valkey.pid
    streambank(own, "up", "--only", "valkey")
    assert valkey.pid == first

    valkey.kill()
    shown = streambank(own, "status", "--only", "valkey", expect=1)
    assert "dead" in shown
    assert "streambank logs valkey" in shown
    assert "Ready to accept connections" in streambank(own, "logs", "valkey", "-n", "5")
    with pytest.raises(ServerFailedError, match=r"(?s)valkey died.*valkey\.log.*Ready to accept connections"):
        valkey.wait_healthy()

    streambank(own, "up", "--only", "valkey")
    assert valkey.pid not in {None, first}


def test_a_server_that_dies_while_starting_shows_its_last_lines(own: Settings) -> None:
    broken = own.data_dir / "valkey" / "appendonlydir"
    broken.mkdir(parents=True)
    (broken / "appendonly.aof.manifest").write_text("nonsense\n")
    output = streambank(own, "up", "--only", "valkey,postgres", expect=1)
    assert "valkey died" in output
    assert "manifest" in output
    # What came up beside it is stopped again.
    assert processes_of(own) == []
    assert "dead" not in streambank(own, "status")


def test_logs_follow_shows_new_lines(own: Settings) -> None:
    follow = [STREAMBANK, "logs", "valkey", "-n", "0", "--follow"]
    written = f"marker-{uuid.uuid4().hex}"
    with Valkey(own) as valkey, subprocess.Popen(follow, env=variables(own), stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        os.set_blocking(follower.stdout.fileno(), False)
        shown = b""

        def seen() -> bool:
            nonlocal shown
            with valkey.log_file.open("a") as log:
                log.write(f"{written}\n")
            shown += follower.stdout.read() or b""  # type: ignore[union-attr]
            return written.encode() in shown

        wait_until(seen, 60, "the line is shown")
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == 130


@pytest.mark.parametrize(("moment", "number"), [("kafka.pid", signal.SIGINT), ("kafka.log", signal.SIGTERM)])
def test_an_interrupted_up_leaves_nothing_running(own: Settings, number: signal.Signals, moment: str) -> None:
    with subprocess.Popen(
        [STREAMBANK, "up", "--only", "kafka,valkey"],
        env=variables(own),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as command:
        reached = own.data_dir / "kafka" / moment
        wait_until(lambda: reached.exists(), 60, f"{moment} exists")
        command.send_signal(number)
        output, _ = command.communicate(timeout=60)
    assert command.returncode == 130, output
    assert processes_of(own) == []
    assert not list(own.data_dir.glob("*/*.pid"))
    # Nothing is half made either: the next start works.
    streambank(own, "up", "--only", "kafka")


def test_an_unknown_server_is_named(own: Settings) -> None:
    assert "no server is called kafak" in streambank(own, "up", "--only", "kafak", expect=1)
    with pytest.raises(StackError, match="there are cassandra, flink, kafka"):
        Stack(own, ["mongo"])


def test_a_port_taken_by_another_stack_is_not_mistaken_for_ours(own: Settings, tmp_path: Path) -> None:
    other = own.model_copy(update={"data_dir": tmp_path / "other"})
    with Valkey(own), pytest.raises(PortTakenError, match="valkey-server"):
        Valkey(other).start()


def test_uptime_and_memory_are_those_of_the_processes(own: Settings) -> None:
    before = time.time()
    with Valkey(own) as valkey:
        status = valkey.status()
        assert status.pids == (valkey.pid,)
        assert status.memory_bytes > 1 << 20
        assert status.uptime_seconds is not None
        assert status.uptime_seconds <= time.time() - before + 1
    assert valkey.status().state == "stopped"


def test_killing_the_test_session_leaves_no_server_running(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from infra.stack.valkey import Valkey\n"
        "from tests.support.stack import PrivateStack\n"
        "print(PrivateStack(Path(sys.argv[1])).get(Valkey).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        valkey = psutil.Process(int(session.stdout.readline()))
        session.kill()
    wait_until(lambda: not valkey.is_running() or valkey.status() == psutil.STATUS_ZOMBIE, 60, "Valkey is stopped")
