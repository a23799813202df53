"""Real servers for tests: private ones on free ports, each started when the first test asks for it.

Tests share servers, not data: `PrivateStack.environment` gives settings with a topic prefix, database, keyspace and
Valkey database of their own. Everything is stopped at the end of the session; should pytest itself be killed, a
watchdog process stops the servers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.kafka import kafka_options
from infra.settings import Settings, settings
from infra.setup import set_up
from infra.stack.cassandra import Cassandra
from infra.stack.flink import Flink
from infra.stack.kafka import Kafka
from infra.stack.postgres import Postgres, create_database
from infra.stack.registry import Registry
from infra.stack.server import FreePorts, Server
from infra.stack.valkey import Valkey
from tests.support.waiting import wait_until

__all__ = ["STREAMBANK", "PrivateStack", "free_ports", "variables", "wait_until"]

SERVER_TYPES: tuple[type[Server], ...] = (Kafka, Registry, Postgres, Cassandra, Valkey, Flink)
STREAMBANK = Path(sys.executable).with_name("streambank")
PORT_FIELDS = [name for name in Settings.model_fields if name.endswith("_port")]

WATCHDOG = """
import sys
sys.stdin.buffer.read()
from infra.settings import Settings
from infra.stack.stack import Stack
Stack(Settings()).down()
"""

AnyServer = TypeVar("AnyServer", bound=Server)


def _free_ports() -> FreePorts:
    """Test workers that run side by side draw from different ports."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return FreePorts(range(15_000 + worker, 20_000, workers))


free_ports = _free_ports().take


def private_settings(directory: Path) -> Settings:
    """Settings of a stack of its own in a directory, on free ports; jars are shared with the clone's.

    Servers that live for minutes never earn back what the second compiler and a parallel collector cost: almost half of
    their start. Consumers are killed often, and all wait until the broker has noticed.
    """
    ports = dict(zip(PORT_FIELDS, free_ports(len(PORT_FIELDS)), strict=True))
    own = {
        "home": settings().home,
        "data_dir": directory,
        "jvm_options": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "consumer_session_seconds": 6,
    }
    return Settings.model_validate({**own, **ports})


def variables(environment: Settings) -> dict[str, str]:
    """The settings as STREAMBANK_ variables over this process's environment, for subprocesses."""
    return {**os.environ, **environment.variables()}


class PrivateStack:
    """The servers of one test session."""

    def __init__(self, directory: Path) -> None:
        self.settings = private_settings(directory)
        self._servers: dict[str, Server] = {}
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def start(self, *names: str) -> None:
        """Start the named servers together, those that a test has left dead too, and wait until they are healthy."""
        kinds = {kind.name: kind for kind in SERVER_TYPES}
        if not names:
            return
        if self._watchdog is None:
            set_up(self.settings)
            self._watchdog = subprocess.Popen(
                [sys.executable, "-c", WATCHDOG],
                stdin=subprocess.PIPE,
                env=variables(self.settings),
                start_new_session=True,
            )
        servers = [self._servers.setdefault(name, kinds[name](self.settings)) for name in names]
        for server in servers:
            server.start()
        for server in servers:
            server.wait_healthy()

    def get(self, kind: type[AnyServer]) -> AnyServer:
        """The running server of a kind."""
        self.start(kind.name)
        return cast(AnyServer, self._servers[kind.name])

    def environment(self, *servers: str) -> Settings:
        """Settings with names of their own on this stack; the named servers are started, and what they need (the
        Postgres database, an empty Valkey database) is made."""
        self.start(*servers)
        number = next(self._numbers)
        unique = f"t{number}_{uuid.uuid4().hex[:8]}"
        environment = self.settings.model_copy(
            update={
                "topic_prefix": f"{unique}.",
                "postgres_database": unique,
                "cassandra_keyspace": unique,
                "valkey_database": number % 64,
            }
        )
        if "postgres" in servers:
            create_database(environment)
        if "valkey" in servers:
            with redis.Redis.from_url(environment.valkey_url) as client:
                client.flushdb()
        return environment

    def delete_topics(self) -> None:
        """Delete the topics of all environments so far: a broker with thousands of partitions is slow to restart, and
        every client that asks what there is hears of them all."""
        broker = self._servers.get(Kafka.name)
        if broker is None or broker.pid is None:
            return
        with contextlib.suppress(KafkaException):
            admin = AdminClient({**kafka_options(self.settings), "socket.timeout.ms": 10_000})
            names = [name for name in admin.list_topics(timeout=10).topics if not name.startswith("_")]
            for deleted in admin.delete_topics(names, request_timeout=30).values() if names else ():
                with contextlib.suppress(KafkaException):
                    deleted.result(30)

    def stop(self) -> None:
        """Stop everything; of the data directory only logs stay."""
        try:
            with ThreadPoolExecutor(len(SERVER_TYPES)) as pool:
                list(pool.map(lambda server: server.stop(), self._servers.values()))
        finally:
            if self._watchdog is not None:
                self._watchdog.terminate()
                self._watchdog.wait()
                if self._watchdog.stdin is not None:
                    self._watchdog.stdin.close()
        keep_only_logs(self.settings.data_dir)


def keep_only_logs(directory: Path) -> None:
    """Remove everything below a directory but each server's log."""
    for server in directory.iterdir():
        for path in server.iterdir() if server.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != ".log":
                path.unlink()
