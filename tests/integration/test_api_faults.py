"""What was answered 202 is in Kafka: with Kafka killed, workers killed, and the API stopped, all under load."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from infra.settings import Settings
from infra.stack.kafka import Kafka
from tests.support.api_server import ApiServer, accounts, frames_in_topic, running_api, write
from tests.support.provision import provision
from tests.support.stack import PrivateStack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.stack

WRITERS = 4


@pytest.fixture
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry", "valkey")
    provision(environment)
    return environment


@dataclass
class Load:
    """Writers of new accounts: what they sent, and where the answers said it is."""

    server: ApiServer
    token: str
    stopping: threading.Event = field(default_factory=threading.Event)
    sent: set[int] = field(default_factory=set)
    accepted: dict[int, tuple[int, int]] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    broken: int = 0

    def write(self, numbers: Iterator[int]) -> None:
        while not self.stopping.is_set():
            headers = {"Authorization": f"Bearer {self.token}"}
            with httpx.Client(base_url=self.server.url, headers=headers, timeout=30) as session:
                try:
                    while not self.stopping.is_set():
                        ids = [next(numbers) for _ in range(3)]
                        self.sent.update(ids)
                        answer = write(session, "/v1/accounts", [accounts([x], ledger=x % 4)[0] for x in ids])
                        self.statuses.append(answer.status_code)
                        if answer.status_code == 202:
                            places = {frame["shard"]: frame["offset"] for frame in answer.json()["frames"]}
                            self.accepted |= {x: (x % 4, places[x % 4]) for x in ids}
                except httpx.TransportError:
                    self.broken += 1
                    self.stopping.wait(0.05)

    def check(self, environment: Settings) -> None:
        """Every accepted event is where its answer said, and nothing else than what was sent is in the topic."""
        frames = {
            place: [int(event["id"]) for event in events] for place, events in frames_in_topic(environment).items()
        }
        lost = [number for number, place in self.accepted.items() if number not in frames.get(place, [])]
        assert not lost
        assert {number for ids in frames.values() for number in ids} <= self.sent


@contextmanager
def load(server: ApiServer) -> Iterator[Load]:
    running = Load(server, server.token("ledger:write"))
    threads = [
        threading.Thread(target=running.write, args=(itertools.count(1 + 10_000_000 * number),))
        for number in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.stopping.set()
        for thread in threads:
            thread.join(60)


def test_kafka_killed_under_load(stack: PrivateStack, environment: Settings, tmp_path: Path) -> None:
    with running_api(environment, tmp_path, delivery_seconds=3) as server, load(server) as running:
        wait_until(lambda: len(running.accepted) > 100, 60, "writes are accepted")
        stack.get(Kafka).kill()
        wait_until(lambda: 503 in running.statuses, 60, "writes are refused without Kafka")
        with server.session("ledger:write") as session:
            refused = write(session, "/v1/accounts", accounts([1]))
        assert refused.status_code == 503
        assert refused.json()["type"] == "/problems/log-unavailable"
        assert int(refused.headers["Retry-After"]) >= 1
        running.sent.add(1)
        assert httpx.get(f"{server.url}/health/ready", timeout=20).status_code == 503
        assert httpx.get(f"{server.url}/health/live", timeout=20).status_code == 200
        before = len(running.accepted)
        stack.get(Kafka)
        wait_until(lambda: len(running.accepted) > before + 100, 90, "writes are accepted again")
    running.check(environment)
    assert set(running.statuses) <= {202, 503}


def test_workers_killed_under_load(environment: Settings, tmp_path: Path) -> None:
    with running_api(environment, tmp_path, workers=2) as server, load(server) as running:
        for _ in range(2):
            enough = len(running.accepted) + 100
            wait_until(lambda: len(running.accepted) > enough, 60, "writes are accepted")  # noqa: B023
            before = server.workers()
            os.kill(before[0], signal.SIGKILL)
            wait_until(
                lambda: len(server.workers()) == 2 and before[0] not in server.workers(),  # noqa: B023
                30,
                "a new worker",
            )
        enough = len(running.accepted) + 100
        wait_until(lambda: len(running.accepted) > enough, 90, "writes are accepted")
    running.check(environment)
    assert set(running.statuses) == {202}
    text = server.log_file.read_text()
    assert text.count("worker died") == 2


def test_a_key_of_a_killed_worker_is_free_again_soon(environment: Settings, tmp_path: Path) -> None:
    with running_api(environment, tmp_path, workers=1, idempotency_lock_seconds=1) as server:
        token = server.token("ledger:write")
        headers = {
            "Authorization": f"Bearer {token}", "Idempotency-Key": str(uuid4()), "Content-Type": "application/x-ndjson"
        }  # fmt: skip
        [worker] = server.workers()
        reached, go_on = threading.Event(), threading.Event()

        def body() -> Iterator[bytes]:
            yield b"\n"
            reached.set()
            go_on.wait(30)

        failed: list[bool] = []

        def send() -> None:
            try:
                httpx.post(f"{server.url}/v1/accounts", content=body(), headers=headers, timeout=30)
            except httpx.TransportError:
                failed.append(True)

        thread = threading.Thread(target=send)
        thread.start()
        assert reached.wait(20)
        line = b'{"id": 1, "ledger": 1, "code": 1}'

        def answer() -> int:
            return httpx.post(f"{server.url}/v1/accounts", content=line, headers=headers, timeout=60).status_code

        wait_until(lambda: answer() == 409, 20, "the key is reserved")
        os.kill(worker, signal.SIGKILL)
        go_on.set()
        thread.join(30)
        assert failed == [True]
        wait_until(lambda: answer() == 202, 60, "the key is free again")


def test_stopping_answers_what_runs(environment: Settings, tmp_path: Path) -> None:
    with running_api(environment, tmp_path, workers=2) as server:
        with load(server) as running:
            wait_until(lambda: len(running.accepted) > 100, 60, "writes are accepted")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(40) == 0
        running.check(environment)
        # 408: its headers came before the stop, its body did not; nothing of it was accepted
        assert {202} <= set(running.statuses) <= {202, 408}
        assert not (server.environment.data_dir / "api" / f"metrics-{server.environment.api_port}").exists()
