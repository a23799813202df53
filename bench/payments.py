"""Payments from request to final status, open loop, with everything that stands between: and where the time goes.

The API, both jobs, both relays and the sink run as in production on the real servers. Requests are due at fixed times
and ask for the final status (`Prefer: wait`); a latency counts from when its request was due. Then the topics tell what
each hop took, by the times at which Kafka got the records of a payment, and reconciliation must find no difference.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp
from confluent_kafka import Consumer, TopicPartition

from bench.deployment import Deployment, Process, drop, sinks, token, wait_until
from bench.report import Measurement
from infra.settings import Settings
from jobs.payments_reconcile import reconcile
from models.load import LoadProgress, Pace, run_schedule
from models.load_profiles import payment, payment_accounts
from pipelines.catalogue import (
    LEDGER_COMMANDS,
    LEDGER_RESULTS,
    PAYMENTS_COMMANDS,
    PAYMENTS_EVENTS,
    Topic,
)
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.payments.records import transfer_of
from pipelines.payments.states import SETTLED
from pipelines.wire import unwrap

__all__ = ["measure"]

RATE: Final = float(os.environ.get("STREAMBANK_BENCH_PAYMENTS_RATE", "300"))
SECONDS: Final = float(os.environ.get("STREAMBANK_BENCH_PAYMENTS_SECONDS", "30"))
WARM_UP_SECONDS: Final = float(os.environ.get("STREAMBANK_BENCH_PAYMENTS_WARM_UP_SECONDS", "60"))
WARM_UP_RATE: Final = 50.0
"""The JVMs of broker and TaskManager compile during the first minute of traffic, which takes half of two cores."""
WAIT_SECONDS: Final = 20
GOALS: Final = {"p50": 120.0, "p99": 300.0}
CLIENTS: Final = 2_000
"""Requests under way at once, far more than any rate here needs: nobody waits for a free one."""
START_SECONDS: Final = 180.0
_FINAL: Final = frozenset(status.name for status in SETTLED)
HOPS: Final = ("payments job", "payments-to-ledger", "ledger job", "ledger-to-payments", "payments job, answer")


def measure(settings: Settings) -> list[Measurement]:
    """Needs Kafka, registry, Flink, Postgres and Valkey of ``settings`` running; the rest is started here."""
    with _system(settings) as (environment, access):
        asyncio.run(_prepare(environment, access))
        asyncio.run(_load(environment, access, WARM_UP_RATE, WARM_UP_SECONDS))
        begin = int(time.time() * 1000)
        latencies, errors = asyncio.run(_load(environment, access, RATE, SECONDS))
        wait_until(
            lambda: reconcile(environment).waiting == 0, START_SECONDS, "every payment has its final status", pause=1.0
        )
        report = reconcile(environment)
        hops = _hops(environment, begin)
    if not report.clean or report.held:
        raise AssertionError(f"payments and ledger differ: {report.as_json()}")
    if not latencies:
        raise AssertionError(f"no payment was answered in time: {errors}")
    check = f"reconciled {report.payments:,} payments with the ledger; {sum(errors.values())} errors {errors or ''}"
    detail = {"rate": RATE, "seconds": SECONDS, "errors": errors, "hops_ms": hops}
    ordered = sorted(latencies)
    return [
        Measurement(
            f"payment at {RATE:g}/s, request to final status, {name}", ordered[int(len(ordered) * share)] * 1000, "ms",
            goal=f"<= {GOALS[name]:g}", met=ordered[int(len(ordered) * share)] * 1000 <= GOALS[name],
            check=check, detail=detail,
        )
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ] + [
        Measurement(f"of which {name}, median", milliseconds, "ms", check="times of the records in Kafka")
        for name, milliseconds in hops.items()
    ]  # fmt: skip


@contextmanager
def _system(settings: Settings) -> Iterator[tuple[Settings, str]]:
    """Everything of its own: topics, database, jobs, relays, API. Yields its settings and a token."""
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
            Deployment(environment, Path(directory), processes, ("ledger", "payments"), stores=stores)
        )
        yield running.settings, token(running.settings, ["ledger:write", "payments:write"])


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
    async with _session(access) as http:

        async def send(first: int, stop: int) -> str | None:
            del stop
            headers = {"Idempotency-Key": f"{run}-{first}", "Prefer": f"wait={WAIT_SECONDS}"}
            try:
                async with http.post(
                    f"{environment.api_url}/v1/payments", json=payment(run, first), headers=headers
                ) as answer:
                    found = await answer.json(content_type=None)
                    what = str(found.get("status") if answer.status == 201 else f"HTTP {answer.status}")
            except (aiohttp.ClientError, TimeoutError) as error:
                what = type(error).__name__
            progress.outcomes[what] += 1
            return None if what == "COMPLETED" else what

        await run_schedule(progress.planned_events, Pace(rate=rate, batch=1), CLIENTS, send, progress)
    del progress.outcomes["COMPLETED"]
    return progress.latencies, dict(progress.outcomes)


def _hops(environment: Settings, begin: int) -> dict[str, float]:
    """Median milliseconds of each hop over the payments created since ``begin`` (milliseconds since 1970), by Kafka's
    times of their records."""
    marks: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)

    def note(shard: int, payment_id: int, place: int, at: int) -> None:
        marks[shard, payment_id].setdefault(place, at)

    for shard, at, event in _records(environment, PAYMENTS_COMMANDS):
        if event["type"] in ("CreatePayment", "LedgerOutcome"):
            note(shard, int(event["payment_id"]), 0 if event["type"] == "CreatePayment" else 4, at)
    for shard, at, event in _records(environment, PAYMENTS_EVENTS):
        if "reserve" in event["asks"]:
            note(shard, int(event["payment_id"]), 1, at)
        elif event["status"] in _FINAL:
            note(shard, int(event["payment_id"]), 5, at)
    for place, topic in ((2, LEDGER_COMMANDS), (3, LEDGER_RESULTS)):
        for shard, at, event in _records(environment, topic):
            transfer = transfer_of(int(event["id"]))
            if transfer is not None:
                note(shard, transfer.payment_id, place, at)
    whole = [found for found in marks.values() if len(found) == len(HOPS) + 1 and found[0] >= begin]
    return {name: statistics.median(found[hop + 1] - found[hop] for found in whole) for hop, name in enumerate(HOPS)}


def _records(environment: Settings, topic: Topic) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(shard, time in milliseconds, event) of all records of a topic."""
    codec, name = codec_of(topic.name), environment.kafka_topic(topic.name)
    consumer: Any = Consumer({"bootstrap.servers": environment.kafka_bootstrap, "group.id": str(uuid4())})
    try:
        ends = [consumer.get_watermark_offsets(TopicPartition(name, p), timeout=30)[1] for p in range(topic.partitions)]
        consumer.assign([TopicPartition(name, partition, 0) for partition in range(topic.partitions)])
        for _ in range(sum(ends)):
            message = consumer.poll(30)
            if message is None or message.error() is not None:
                raise RuntimeError(f"the records of {topic.name} do not come: {message and message.error()}")
            frame = codec.decode(unwrap(message.value())[1])
            for event in render_events(codec, frame.events):
                yield frame.shard, message.timestamp()[1], event
    finally:
        consumer.close()
