"""The API as a process of its own, a client for it, and the ledger's results without Flink."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from confluent_kafka import Consumer, Producer, TopicPartition

from api.clients import EVERY_ACCOUNT, ClientStore
from infra.kafka import kafka_options
from infra.producer_keys import FrameVerifier
from infra.registry import schema_ids
from infra.settings import Settings
from jobs.inprocess import InProcess
from jobs.topic_reader import signature_of
from pipelines.catalogue import LEDGER_COMMANDS, PIPELINES, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame
from pipelines.wire import unwrap
from tests.support.stack import free_ports, variables
from tests.support.waiting import wait_until


@dataclass
class ApiServer:
    """A running API. ``environment`` has a data directory of its own, so that keys and clients are not shared."""

    environment: Settings
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def url(self) -> str:
        return self.environment.api_url

    @property
    def clients(self) -> ClientStore:
        return ClientStore(self.environment.secrets_dir / "clients.json")

    def new_client(self, *scopes: str, accounts: Iterable[str] = (EVERY_ACCOUNT,)) -> tuple[str, str]:
        client, secret = self.clients.add("tester", scopes, accounts=list(accounts))
        return client.client_id, secret

    def token(self, *scopes: str, client: tuple[str, str] | None = None) -> str:
        client = client or self.new_client(*scopes)
        grant = {"grant_type": "client_credentials"}
        answer = httpx.post(f"{self.url}/oauth/token", data=grant, auth=client, timeout=20)
        return str(answer.raise_for_status().json()["access_token"])

    def session(self, *scopes: str) -> httpx.Client:
        """An HTTP client with a token of the scopes; by default both."""
        token = self.token(*(scopes or ("ledger:read", "ledger:write")))
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def workers(self) -> list[int]:
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found]

    def ready(self) -> bool:
        return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


@contextmanager
def running_api(environment: Settings, directory: Path, **options: Any) -> Iterator[ApiServer]:
    """The API of ``environment``; ``options`` are `api.config.ApiSettings` fields."""
    directory.mkdir(parents=True, exist_ok=True)
    own = environment.model_copy(
        update={
            "data_dir": directory,
            "api_port": free_ports(1)[0],
            "producer_keys_file": str(environment.producer_keys_path),
        }
    )
    settings = {f"STREAMBANK_API_{name.upper()}": str(value) for name, value in options.items()}
    log_file = directory / "api.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("streambank")), "api"],
            env={**variables(own), **settings}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    server = ApiServer(own, process, log_file)
    try:
        wait_until(server.ready, 90, f"the API is ready; {log_file}")
        yield server
    finally:
        if process.poll() is None:
            server.stop()


def write(
    session: httpx.Client, path: str, body: Any, content_type: str = "application/json", **headers: str
) -> httpx.Response:
    """POST with a fresh Idempotency-Key."""
    sent = {"Content-Type": content_type, "Idempotency-Key": str(uuid4())} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    if isinstance(body, bytes) or not isinstance(body, (dict, list)):
        return session.post(path, content=body, headers=sent)
    return session.post(path, json=body, headers=sent)


def frames_in_topic(environment: Settings, of: Topic = LEDGER_COMMANDS) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Every record of a topic (by default ledger.commands) now: (partition, offset) -> its events."""
    topic = of.name
    name = environment.kafka_topic(topic)
    consumer = Consumer({**kafka_options(environment), "group.id": str(uuid4()), "log_level": 0})
    codec = codec_of(topic)
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    try:
        ends = {}
        for partition in range(of.partitions):
            low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=20)
            if high > low:
                ends[partition] = high
        consumer.assign([TopicPartition(name, partition, 0) for partition in ends])
        while any((partition, end - 1) not in found for partition, end in ends.items()):
            message = consumer.poll(20)
            assert message is not None, "the topic's records do not come"
            assert message.error() is None, message.error()
            frame = codec.decode(unwrap(message.value())[1])
            assert frame.shard == message.partition()
            assert message.key() == str(frame.shard).encode()
            found[message.partition(), message.offset()] = render_events(codec, frame.events)
    finally:
        consumer.close()
    return found


def ids_in_topic(environment: Settings) -> list[int]:
    """Ids of all commands in the topic, shard by shard in their order."""
    return [int(event["id"]) for _, events in sorted(frames_in_topic(environment).items()) for event in events]


def running_ledger(environment: Settings, produced_at: int | None = None) -> AbstractContextManager[None]:
    """The ledger's kernel behind the API."""
    return running_system(environment, "ledger", produced_at)


@contextmanager
def running_system(environment: Settings, system: str, produced_at: int | None = None) -> Iterator[None]:
    """A system's kernel between Kafka topics in this process, at most once: enough to answer the API.

    With ``produced_at`` time stands still there, so that nothing expires however slow the machine is.
    """
    pipeline = PIPELINES[system]
    [commands] = pipeline.inputs
    warm = InProcess(pipeline)  # compiling takes a minute, which must not fall on a request that waits
    codec = codec_of(commands.name)
    warm.apply_frame(Frame(commands.name, 0, 0, 0, None, Events(codec.new_rows(1))))
    stopping = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        consumer = Consumer({**kafka_options(environment), "group.id": str(uuid4())})
        producer = Producer({**kafka_options(environment), "linger.ms": 0})
        try:
            kernels = InProcess(pipeline, schema_ids(pipeline.outputs, environment))
            verifier = FrameVerifier(environment, commands)
            name = environment.kafka_topic(commands.name)
            consumer.assign([TopicPartition(name, partition, 0) for partition in range(commands.partitions)])
            while not stopping.is_set():
                message = consumer.poll(0.1)
                if message is None or message.error() is not None:
                    continue
                place = message.partition(), message.offset()
                verifier.check(*place, message.value(), signature_of(message))
                frame = codec.decode(unwrap(message.value())[1])
                if produced_at is not None:
                    frame = replace(frame, produced_at=produced_at)
                for output in kernels.apply_frame(frame):
                    key = str(output.shard).encode()
                    producer.produce(environment.kafka_topic(output.topic), output.value, key, output.shard)
                producer.flush(10)
        except BaseException as error:
            failures.append(error)
        finally:
            consumer.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(30)
        assert not failures, failures


def accounts(numbers: Iterable[int], ledger: int = 1) -> list[dict[str, Any]]:
    return [{"id": number, "ledger": ledger, "code": 10} for number in numbers]
