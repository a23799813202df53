"""Payments from request to final status, open loop, with everything that stands between: and where the time goes.

The API, both jobs, both relays and the sink run as in production on the real servers. Requests are due at fixed times
and ask for the final status (`Prefer: wait`); a latency counts from when its request was due. The topics tell what each
hop took, by the times at which Kafka got the records of a payment; the system's counters tell the CPU time of each
process, the client's own included, since all of them share the machine. Last comes what the gateway takes as fast as it
can, without waiting for a status, single and in batches. In the end reconciliation must find no difference.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import aiohttp
import msgspec
import psutil
import uvloop
from confluent_kafka import Consumer, TopicPartition

from bench.deployment import Deployment, Process, drop, sinks, token, wait_until
from bench.report import Measurement
from infra.kafka import kafka_options
from infra.settings import Settings
from infra.stack.stack import Stack
from jobs.payments_reconcile import reconcile
from jobs.topic_reader import TopicReader
from models.load import LoadProgress, Pace, run_schedule
from models.load_profiles import payment, payment_accounts
from pipelines.catalogue import (
    LEDGER_COMMANDS,
    LEDGER_EVENTS,
    LEDGER_RESULTS,
    PAYMENTS_COMMANDS,
    PAYMENTS_EVENTS,
    PAYMENTS_RESULTS,
    Topic,
)
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.payments.records import transfer_of
from pipelines.payments.states import SETTLED
from pipelines.wire import unwrap

__all__ = ["measure"]

RATES: Final = [float(rate) for rate in os.environ.get("STREAMBANK_BENCH_PAYMENTS_RATE", "300").split(",")]
"""One or, with commas, several: one after another in the same system."""
SECONDS: Final = float(os.environ.get("STREAMBANK_BENCH_PAYMENTS_SECONDS", "30"))
WARM_UP_SECONDS: Final = float(os.environ.get("STREAMBANK_BENCH_PAYMENTS_WARM_UP_SECONDS", "60"))
WARM_UP_RATE: Final = 100.0
"""The JVMs of broker and TaskManager compile during the first minute of traffic, which takes half of two cores."""
WAIT_SECONDS: Final = 20
PASSED: Final = (
    PAYMENTS_COMMANDS, PAYMENTS_RESULTS, PAYMENTS_EVENTS, LEDGER_COMMANDS, LEDGER_RESULTS, LEDGER_EVENTS,
)  # fmt: skip
SERVERS: Final = ("kafka", "flink", "postgres", "valkey")
REST_SECONDS: Final = 5.0
GATEWAY_SECONDS: Final = float(os.environ.get("STREAMBANK_BENCH_PAYMENTS_GATEWAY_SECONDS", "5"))
GATEWAY_CLIENTS: Final = {1: 64, 100: 8}
"""Requests under way at once, by the payments of each."""
GOALS: Final = {"p50": 120.0, "p99": 300.0}
CLIENTS: Final = 2_000
"""Requests under way at once, far more than any rate here needs: nobody waits for a free one."""
START_SECONDS: Final = 180.0
HOPS_RECORDS: Final = 4_000
"""Of each partition, enough for minutes."""
_FINAL: Final = frozenset(status.name for status in SETTLED)
HOPS: Final = ("payments job", "payments-to-ledger", "ledger job", "ledger-to-payments", "payments job, answer")


def measure(settings: Settings) -> list[Measurement]:
    """Needs Kafka, registry, Flink, Postgres and Valkey of ``settings`` running; the rest is started here."""
    found: list[Measurement] = []
    with _system(settings) as (running, access):
        environment = running.settings
        uvloop.run(_prepare(environment, access))
        uvloop.run(_load(environment, access, WARM_UP_RATE, WARM_UP_SECONDS))
        found.append(_at_rest(running, settings))
        for rate in RATES:
            found += _at_rate(running, settings, access, rate)
        for batch, clients in GATEWAY_CLIENTS.items() if GATEWAY_SECONDS else ():
            found.append(_gateway(running, access, batch, clients))
        _settle(environment)
        report = reconcile(environment)
    if not report.clean or report.held:
        raise AssertionError(f"payments and ledger differ: {report.as_json()}")
    check = f"reconciled {report.payments:,} payments with the ledger"
    return [replace(one, check=f"{check}; {one.check}" if one.check else check) for one in found]


def _at_rest(running: Deployment, servers: Settings) -> Measurement:
    """What the whole system uses while nobody pays: part of what a payment seems to cost at a low rate."""
    _settle(running.settings)
    before = _cpu_seconds(running, servers)
    time.sleep(REST_SECONDS)
    used = {name: (spent - before[name]) / REST_SECONDS for name, spent in _cpu_seconds(running, servers).items()}
    return Measurement("the system at rest", sum(used.values()), "cores", check=_listed(used))


def _listed(used: dict[str, float]) -> str:
    return ", ".join(f"{name} {amount:.2f}" for name, amount in sorted(used.items(), key=lambda item: -item[1]))


def _at_rate(running: Deployment, servers: Settings, access: str, rate: float) -> list[Measurement]:
    ends = _ends(running.settings)
    begin, before = int(time.time() * 1000), _cpu_seconds(running, servers)
    begun = time.perf_counter()
    latencies, errors = uvloop.run(_load(running.settings, access, rate, SECONDS))
    after, seconds = _cpu_seconds(running, servers), time.perf_counter() - begun
    _settle(running.settings)
    if not latencies:
        raise AssertionError(f"no payment was answered in time: {errors}")
    spent = {name: (after[name] - before[name]) / len(latencies) * 1000 for name in after}
    frames = {name: (end - ends[name]) / len(latencies) for name, end in _ends(running.settings).items()}
    hops = _hops(running.settings, begin)
    detail = {
        "rate": rate, "seconds": SECONDS, "errors": errors, "hops_ms": hops, "cpu_ms_per_payment": spent,
        "frames_per_payment": frames,
        "cores_busy": sum(after[name] - before[name] for name in after) / seconds, "load_average": os.getloadavg(),
    }  # fmt: skip
    check = f"{sum(errors.values())} errors {errors or ''}"
    ordered = sorted(latencies)
    return [
        Measurement(
            f"payment at {rate:g}/s, request to final status, {name}", ordered[int(len(ordered) * share)] * 1000, "ms",
            goal=f"<= {GOALS[name]:g}", met=ordered[int(len(ordered) * share)] * 1000 <= GOALS[name],
            check=check, detail=detail,
        )
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ] + [
        Measurement(f"of which {name}, median", milliseconds, "ms", check="times of the records in Kafka")
        for name, milliseconds in hops.items()
    ] + [
        Measurement(
            f"CPU of a payment at {rate:g}/s", sum(spent.values()), "ms",
            check=_listed(spent),
        )
    ]  # fmt: skip


def _settle(environment: Settings) -> None:
    wait_until(
        lambda: reconcile(environment).waiting == 0, START_SECONDS, "every payment has its final status", pause=1.0
    )


def _gateway(running: Deployment, access: str, batch: int, clients: int) -> Measurement:
    """Closed loop: requests that are answered once Kafka has their payments."""
    before = running.processes["api"].cpu_seconds()
    requests, outcomes, seconds = uvloop.run(_flood(running.settings, access, batch, clients))
    used = running.processes["api"].cpu_seconds() - before
    if set(outcomes) - {"202"}:
        raise AssertionError(f"the gateway answered {outcomes}")
    return Measurement(
        f"gateway, {'one payment' if batch == 1 else f'{batch} payments'} a request, one process", requests / seconds,
        "requests/s", check=f"{requests:,} answered 202; the process used {used / seconds:.2f} cores",
        detail={"payments_per_second": requests * batch / seconds, "clients": clients},
    )  # fmt: skip


async def _flood(environment: Settings, access: str, batch: int, clients: int) -> tuple[int, dict[str, int], float]:
    run, numbers, outcomes = time.time_ns(), count(), Counter[str]()
    begin = time.perf_counter()
    async with _session(access) as http:

        async def client() -> None:
            while time.perf_counter() - begin < GATEWAY_SECONDS:
                first = next(numbers) * batch
                several = [payment(run, first + number) for number in range(batch)]
                path, body = ("", several[0]) if batch == 1 else ("/batch", {"payments": several})
                async with http.post(
                    f"{environment.api_url}/v1/payments{path}", data=msgspec.json.encode(body),
                    headers={"Idempotency-Key": f"{run}-{first}", "Content-Type": "application/json"},
                ) as answer:  # fmt: skip
                    await answer.read()
                    outcomes[str(answer.status)] += 1

        await asyncio.gather(*(client() for _ in range(clients)))
    return sum(outcomes.values()), dict(outcomes), time.perf_counter() - begin


def _cpu_seconds(running: Deployment, servers: Settings) -> dict[str, float]:
    """CPU time so far of everything that a payment passes, by process."""
    spent = {name: process.cpu_seconds() for name, process in running.processes.items()}
    for server in Stack(servers, only=SERVERS).servers:
        spent |= {process.name: process.cpu_seconds() for process in server.processes()}
    own = psutil.Process().cpu_times()
    return {**spent, "client": own.user + own.system}


@contextmanager
def _system(settings: Settings) -> Iterator[tuple[Deployment, str]]:
    """Everything of its own: topics, database, jobs, relays, API. Yields it and a token."""
    unique = f"bench_{uuid4().hex[:8]}"
    environment = settings.model_copy(update={"topic_prefix": f"{unique}.", "postgres_database": unique})
    processes = [
        Process("api", ("api", "--workers", "1"), {"STREAMBANK_API_EVENTS_PER_MINUTE": "1000000000"}),
        Process("clock", ("payments", "clock")),
        *sinks(("payments-to-ledger", "ledger-to-payments", "postgres-payments")),
    ]
    stores = ("postgres",)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as ending:
        ending.callback(drop, environment, stores)
        running = ending.enter_context(
            Deployment(
                environment, Path(directory), processes, ("ledger", "payments"), stores=stores,
                checkpoint_interval=None,
            )
        )  # fmt: skip
        yield running, token(running.settings, ["ledger:write", "payments:write"])


def _session(access: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {access}"}, connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=WAIT_SECONDS + 15),
    )  # fmt: skip


async def _prepare(environment: Settings, access: str) -> None:
    """Accounts with money, once API and ledger answer."""
    deadline = time.monotonic() + START_SECONDS
    async with _session(access) as http:
        while True:
            try:
                answer = await http.post(
                    f"{environment.api_url}/v1/ledger/events", json=payment_accounts(),
                    headers={"Idempotency-Key": uuid4().hex, "Prefer": f"wait={WAIT_SECONDS}"},
                )  # fmt: skip
                if answer.status in (200, 201):
                    return
            except aiohttp.ClientError:
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"API and ledger do not answer in {START_SECONDS:g} s")
            await asyncio.sleep(0.5)


async def _load(environment: Settings, access: str, rate: float, seconds: float) -> tuple[list[float], dict[str, int]]:
    """Seconds from when each request was due to its final status, and what else was answered."""
    progress = LoadProgress(int(rate * seconds))
    run = time.time_ns()
    clients = _Clients(environment, access)

    async def send(first: int, stop: int) -> str | None:
        del stop
        try:
            async with asyncio.timeout(WAIT_SECONDS + 15):
                status, body = await clients.post(f"{run}-{first}", msgspec.json.encode(payment(run, first)))
            what = msgspec.json.decode(body, type=_Answer).status if status == 201 else f"HTTP {status}"
        except (OSError, TimeoutError) as error:
            what = type(error).__name__
        progress.outcomes[what] += 1
        return None if what == "COMPLETED" else what

    try:
        await run_schedule(progress.planned_events, Pace(rate=rate, batch=1), CLIENTS, send, progress)
    finally:
        clients.close()
    del progress.outcomes["COMPLETED"]
    return progress.latencies, dict(progress.outcomes)


class _Answer(msgspec.Struct):
    status: str


class _Clients:
    """Posts payments over connections that stay, one request on each at a time. The client shares the machine with what
    it measures: a library's request costs a third of what the gateway spends on it."""

    def __init__(self, environment: Settings, access: str) -> None:
        self._host, self._port = environment.host, environment.api_port
        self._head = (
            f"POST /v1/payments HTTP/1.1\r\nHost: {environment.host}:{environment.api_port}\r\n"
            f"Authorization: Bearer {access}\r\nPrefer: wait={WAIT_SECONDS}\r\nContent-Type: application/json\r\n"
        )
        self._free: list[_Connection] = []
        self._all: list[_Connection] = []

    async def post(self, key: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; raises `OSError`."""
        while self._free and self._free[-1].is_closed:  # by the API, which does not keep what is idle for long
            self._free.pop()
        connection = self._free.pop() if self._free else await self._connect()
        answer = await connection.ask(
            f"{self._head}Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        self._free.append(connection)
        return answer

    async def _connect(self) -> _Connection:
        _, made = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        self._all.append(made)
        return made

    def close(self) -> None:
        for connection in self._all:
            connection.close()


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as the API speaks it: every answer has a Content-Length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    @property
    def is_closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        found = _LENGTH.search(head)
        if end and found and len(body) >= int(found[1]) and self._answer is not None:
            self._received = b""
            if not self._answer.done():
                self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the API closed the connection"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


_LENGTH: Final = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)


def _hops(environment: Settings, begin: int) -> dict[str, float]:
    """Median milliseconds of each hop over the payments created since ``begin`` (milliseconds since 1970), by Kafka's
    times of their records, of which the last `HOPS_RECORDS` of each partition are looked at."""
    marks: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)

    def note(shard: int, payment_id: int, place: int, at: int) -> None:
        marks[shard, payment_id].setdefault(place, at)

    for shard, at, event in _records(environment, PAYMENTS_COMMANDS, begin):
        if event["type"] in ("CreatePayment", "LedgerOutcome"):
            note(shard, int(event["payment_id"]), 0 if event["type"] == "CreatePayment" else 4, at)
    for shard, at, event in _records(environment, PAYMENTS_EVENTS, begin):
        if "reserve" in event["asks"]:
            note(shard, int(event["payment_id"]), 1, at)
        elif event["status"] in _FINAL:
            note(shard, int(event["payment_id"]), 5, at)
    for place, topic in ((2, LEDGER_COMMANDS), (3, LEDGER_RESULTS)):
        for shard, at, event in _records(environment, topic, begin):
            transfer = transfer_of(int(event["id"]))
            if transfer is not None:
                note(shard, transfer.payment_id, place, at)
    whole = [found for found in marks.values() if len(found) == len(HOPS) + 1 and found[0] >= begin]
    return {name: statistics.median(found[hop + 1] - found[hop] for found in whole) for hop, name in enumerate(HOPS)}


def _ends(environment: Settings) -> dict[str, int]:
    """Records so far in the topics that a payment passes."""
    with TopicReader(environment) as reader:
        return {topic.name: sum(reader.ends(topic)) for topic in PASSED}


def _records(environment: Settings, topic: Topic, begin: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(shard, time in milliseconds, event) of the last records of a topic, none from before ``begin``."""
    codec, name = codec_of(topic.name), environment.kafka_topic(topic.name)
    consumer: Any = Consumer({**kafka_options(environment), "group.id": str(uuid4())})
    try:
        places = [TopicPartition(name, partition, begin) for partition in range(topic.partitions)]
        records = 0
        for place in consumer.offsets_for_times(places, timeout=30):
            end = consumer.get_watermark_offsets(TopicPartition(name, place.partition), timeout=30)[1]
            places[place.partition].offset = max(place.offset if place.offset >= 0 else end, end - HOPS_RECORDS)
            records += end - places[place.partition].offset
        consumer.assign(places)
        for _ in range(records):
            message = consumer.poll(30)
            if message is None or message.error() is not None:
                raise RuntimeError(f"the records of {topic.name} do not come: {message and message.error()}")
            frame = codec.decode(unwrap(message.value())[1])
            for event in render_events(codec, frame.events):
                yield frame.shard, message.timestamp()[1], event
    finally:
        consumer.close()
