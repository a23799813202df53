"""Events per second through the API, single and in NDJSON bodies of 1,000, and the latency of a single event.

The API runs as it does in production (`streambank api`, two workers, tokens, rate limit, idempotency keys) in front of
the real Kafka and Valkey; the load comes from a process of its own that writes prepared requests to plain sockets, so
that it takes little of the same cores. After each run the topic's events are counted: what was answered 202 is there.
Latency is open-loop: requests are due at fixed times, and waiting for a free connection counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from api.auth import issue_token
from api.clients import ClientStore
from api.keys import KeyStore
from bench.report import Measurement
from infra import registry, topics
from infra.kafka import kafka_options
from infra.settings import Settings
from pipelines.catalogue import LEDGER_COMMANDS, TOPICS
from pipelines.codec import codec_of
from pipelines.wire import unwrap

__all__ = ["measure"]

WORKERS: Final = 2
SECONDS: Final = 8.0
WARM_UP_SECONDS: Final = 2.0
SINGLE_CONNECTIONS: Final = 32
BULK_CONNECTIONS: Final = 4
BULK_EVENTS: Final = 1000
LATENCY_PER_SECOND: Final = 100
LATENCY_CONNECTIONS: Final = 16
LEDGERS: Final = 4
START_SECONDS: Final = 120.0


def measure(settings: Settings) -> list[Measurement]:
    """Needs Kafka, the registry and Valkey of ``settings`` running; the API is started here."""
    with _api(settings) as (environment, token):
        single = _load(environment, token, "single", SINGLE_CONNECTIONS)
        bulk = _load(environment, token, "bulk", BULK_CONNECTIONS)
        latency = _load(environment, token, "latency", LATENCY_CONNECTIONS)
        answered = sum(run["all_events"] for run in (single, bulk, latency))
        counted, frames = _count(environment)
    if counted != answered:
        raise AssertionError(f"{answered} events were acknowledged, the topic has {counted}")
    check = f"the topic holds all {counted:,} acknowledged events, in {frames:,} frames"
    detail = {"workers": WORKERS, "connections": SINGLE_CONNECTIONS, "seconds": SECONDS}
    return [
        Measurement("API, one event per request", single["per_second"], "events/s", check=check, detail=detail),
        Measurement(
            f"API, NDJSON of {BULK_EVENTS:,}", bulk["per_second"], "events/s", baseline=single["per_second"],
            baseline_name="one event per request", ratio=bulk["per_second"] / single["per_second"], check=check,
            detail=detail | {"connections": BULK_CONNECTIONS},
        ),
        *(
            Measurement(
                f"API, one event at {LATENCY_PER_SECOND}/s, {name}", latency[name], "ms", check="open loop",
                detail=latency,
            )
            for name in ("p50", "p99")
        ),
    ]  # fmt: skip


@contextmanager
def _api(settings: Settings) -> Iterator[tuple[Settings, str]]:
    """An API of its own: own topics, port, keys and client. Yields its settings and a token."""
    with tempfile.TemporaryDirectory() as directory, socket.socket() as probe:
        probe.bind((settings.host, 0))
        port = probe.getsockname()[1]
        probe.close()
        environment = settings.model_copy(
            update={"topic_prefix": f"bench_{uuid4().hex[:8]}.", "data_dir": Path(directory), "api_port": port}
        )
        topics.apply(environment)
        for topic in TOPICS.values():
            registry.register(topic, environment)
        variables = environment.variables()
        limits = {"STREAMBANK_API_WORKERS": str(WORKERS), "STREAMBANK_API_EVENTS_PER_MINUTE": "1000000000"}
        client, _ = ClientStore(environment.secrets_dir / "clients.json").add("bench", ["ledger:write"])
        log = Path(directory) / "api.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", "from infra.cli import main; main()", "api"],
                env={**os.environ, **variables, **limits}, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        try:
            _wait_ready(environment, process, log)
            token = issue_token(
                KeyStore(environment.secrets_dir / "keys", 3600), client, client.scopes,
                issuer=environment.api_url, audience="streambank", seconds=3600,
            )  # fmt: skip
            yield environment, token
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            admin = AdminClient(kafka_options(environment))
            names = [environment.kafka_topic(name) for name in TOPICS]
            for deleted in admin.delete_topics(names, operation_timeout=30).values():
                deleted.result()


def _wait_ready(environment: Settings, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{environment.api_url}/health/ready", timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the API did not become ready: {log.read_text()[-2000:]}")


def _load(environment: Settings, token: str, mode: str, connections: int) -> dict[str, Any]:
    """One run of the load process."""
    arguments = {
        "host": environment.host, "port": environment.api_port, "token": token, "mode": mode,
        "connections": connections,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "bench.api"], input=json.dumps(arguments), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the load failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _count(environment: Settings) -> tuple[int, int]:
    """Events and frames in the topic."""
    codec, name = codec_of(LEDGER_COMMANDS.name), environment.kafka_topic(LEDGER_COMMANDS.name)
    consumer = Consumer({**kafka_options(environment), "group.id": str(uuid4())})
    events = frames = 0
    try:
        ends = [
            consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=30)[1]
            for partition in range(LEDGER_COMMANDS.partitions)
        ]
        consumer.assign([TopicPartition(name, partition, 0) for partition in range(LEDGER_COMMANDS.partitions)])
        while frames < sum(ends):
            message = consumer.poll(30)
            if message is None or message.error() is not None:
                raise RuntimeError(f"the topic's records do not come: {message and message.error()}")
            events += len(codec.decode(unwrap(message.value())[1]).events)
            frames += 1
    finally:
        consumer.close()
    return events, frames


class _Requests:
    """Prepared requests: only the key and, of a single event, the id differ."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        host, token = arguments["host"], arguments["token"]
        self._head = f"POST /v1/transfers HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        self._bulk = arguments["mode"] == "bulk"
        self._number = 0
        self.events = BULK_EVENTS if self._bulk else 1
        self._body = b"".join(_event(number) + b"\n" for number in range(BULK_EVENTS)) if self._bulk else b""
        self._run = uuid4().hex

    def next(self) -> bytes:
        self._number += 1
        body = self._body if self._bulk else _event(self._number)
        kind = "application/x-ndjson" if self._bulk else "application/json"
        head = (
            f"{self._head}Content-Type: {kind}\r\nIdempotency-Key: {self._run}-{self._number}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _event(number: int) -> bytes:
    event = {
        "id": str(10**20 + number), "debit_account_id": 1 + number % 977, "credit_account_id": 1000 + number % 991,
        "amount": 100 + number % 1000, "ledger": 1 + number % LEDGERS, "code": 1,
    }  # fmt: skip
    return json.dumps(event).encode()


async def _answer(reader: asyncio.StreamReader) -> int:
    """Status of the next response; its body is read and dropped."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(length)
    status = int(head.split(b" ", 2)[1])
    if status != 202:
        raise RuntimeError(f"status {status}: {body[:500]!r}")
    return status


async def _closed_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """Every connection sends its next request when the last is answered."""
    requests = _Requests(arguments)
    begin = time.perf_counter() + WARM_UP_SECONDS
    end = begin + SECONDS
    measured = total = 0

    async def connection() -> None:
        nonlocal measured, total
        reader, writer = await asyncio.open_connection(arguments["host"], arguments["port"])
        while time.perf_counter() < end:
            writer.write(requests.next())
            await _answer(reader)
            total += requests.events
            if begin <= time.perf_counter() < end:
                measured += requests.events
        writer.close()

    await asyncio.gather(*(connection() for _ in range(arguments["connections"])))
    return {"per_second": measured / SECONDS, "all_events": total}


async def _open_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """Requests are due at fixed times; latency counts from then."""
    requests = _Requests(arguments)
    due: asyncio.Queue[float | None] = asyncio.Queue()
    warm = int(WARM_UP_SECONDS * LATENCY_PER_SECOND)
    total = warm + int(SECONDS * LATENCY_PER_SECOND)
    begin = time.perf_counter() + 0.5
    latencies: list[tuple[float, float]] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(arguments["host"], arguments["port"])
        while (at := await due.get()) is not None:
            writer.write(requests.next())
            await _answer(reader)
            latencies.append((at, time.perf_counter() - at))
        writer.close()

    connections = [asyncio.ensure_future(connection()) for _ in range(arguments["connections"])]
    for number in range(total):
        at = begin + number / LATENCY_PER_SECOND
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        due.put_nowait(at)
    for _ in connections:
        due.put_nowait(None)
    await asyncio.gather(*connections)
    found = sorted(latency * 1000 for _, latency in sorted(latencies)[warm:])
    return {
        "p50": found[len(found) // 2], "p99": found[len(found) * 99 // 100], "max": found[-1], "requests": len(found),
        "all_events": total,
    }  # fmt: skip


if __name__ == "__main__":
    given = json.loads(sys.stdin.read())
    run = _open_loop if given["mode"] == "latency" else _closed_loop
    print(json.dumps(asyncio.run(run(given))))
