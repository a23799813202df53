"""Transfers per second through the Python client, with a result for each, against one call per transfer.

Client, API (two workers, tokens, limits, idempotency keys), Kafka and the ledger's kernel run as in production, but for
Flink: the kernel stands between the topics in a process of its own, so that what is measured is the client's way and
not the job's checkpoints. Every result is checked, and so are the sums of the kernel. As all of them share the machine,
the CPU time that each takes for a transfer is told too.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import psutil

from api.client import Account, AsyncLedgerClient, Result, Transfer
from api.clients import ClientStore
from bench.api import _api
from bench.report import Measurement
from infra.kafka import kafka_options
from infra.settings import Settings

__all__ = ["measure"]

LEDGERS: Final = (4, 5, 6, 7)
"""One per shard."""
ACCOUNTS: Final = 1_000
BATCH: Final = 5_000
BATCHES_PER_LEDGER: Final = 60
CALLS_AT_ONCE: Final = 2
"""Per ledger; the next call travels while the one before is answered."""
SINGLE_CALLS: Final = 300
READY_SECONDS: Final = 120.0


def measure(settings: Settings) -> list[Measurement]:
    """Needs Kafka, the registry and Valkey of ``settings`` running."""
    with _api(settings) as (environment, _):
        variables = environment.variables()
        kernel = subprocess.Popen(
            [sys.executable, "-m", "bench.ledger_client"],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert kernel.stdout is not None
        assert kernel.stdin is not None
        try:
            kernel.stdout.readline()  # it has compiled and reads
            parts = {"api": _api_processes(), "kernel": [psutil.Process(kernel.pid)]}
            client = ClientStore(environment.secrets_dir / "clients.json").add("bench", ["ledger:read", "ledger:write"])
            found = asyncio.run(_load(environment.api_url, client[0].client_id, client[1], parts))
            kernel.stdin.close()
            sums = json.loads(kernel.stdout.readline())
        finally:
            kernel.kill()
            kernel.wait()
    if sums["transfers"] != found["transfers"]:
        raise AssertionError(f"{found['transfers']} transfers were created, the ledger has {sums['transfers']}")
    rate, single = found["batched"], found["single"]
    return [
        Measurement(
            "Python client, batched, a result each", rate, "transfers/s", baseline=single,
            baseline_name="one call after another", ratio=rate / single, goal=">= 100,000/s", met=rate >= 100_000,
            check=f"{found['transfers']:,} created, all in the ledger; debits = credits = {sums['posted']}",
            detail={"batch": BATCH, "ledgers": len(LEDGERS), "calls_at_once": len(LEDGERS) * CALLS_AT_ONCE,
                    "cpu_us_per_transfer": found["cpu"]},
        )
    ]  # fmt: skip


def _api_processes() -> list[psutil.Process]:
    """The API that this process has started, with its workers."""
    [parent] = [child for child in psutil.Process().children() if child.cmdline()[-1:] == ["api"]]
    return [parent, *parent.children(recursive=True)]


def _cpu_seconds(parts: Mapping[str, Sequence[psutil.Process]]) -> dict[str, float]:
    seconds = {name: sum(sum(process.cpu_times()[:2]) for process in found) for name, found in parts.items()}
    return {"client": time.process_time(), **seconds}


async def _load(url: str, client_id: str, secret: str, parts: Mapping[str, Sequence[psutil.Process]]) -> dict[str, Any]:
    async with AsyncLedgerClient(url, client_id, secret, in_flight=len(LEDGERS) * CALLS_AT_ONCE) as client:
        for ledger in LEDGERS:
            _check(await client.create_accounts([Account(n, ledger, 1) for n in range(1, ACCOUNTS + 1)]))
        warm = await asyncio.gather(*(client.create_transfers(_batch(ledger, -1)) for ledger in LEDGERS))
        before = _cpu_seconds(parts)
        began = time.perf_counter()
        done = await asyncio.gather(
            *(_every_other(client, ledger, first) for ledger in LEDGERS for first in range(CALLS_AT_ONCE))
        )
        batched = sum(done) / (time.perf_counter() - began)
        cpu = {name: round((now - before[name]) / sum(done) * 1e6, 1) for name, now in _cpu_seconds(parts).items()}
        began = time.perf_counter()
        for number in range(SINGLE_CALLS):
            _check(await client.create_transfers([_transfer(LEDGERS[0], BATCHES_PER_LEDGER, number)]))
        single = SINGLE_CALLS / (time.perf_counter() - began)
    return {
        "batched": batched,
        "cpu": cpu,
        "single": single,
        "transfers": sum(done) + SINGLE_CALLS + sum(map(len, warm)),
    }


async def _every_other(client: AsyncLedgerClient, ledger: int, first: int) -> int:
    """The ledger's batches from ``first`` on, less those of the other calls; how many transfers those are."""
    numbers = range(first, BATCHES_PER_LEDGER, CALLS_AT_ONCE)
    for number in numbers:
        # made while others wait for their answers, as a program would
        _check(await client.create_transfers(_batch(ledger, number)))
    return BATCH * len(numbers)


def _batch(ledger: int, number: int) -> list[Transfer]:
    return [_transfer(ledger, number, at) for at in range(BATCH)]


def _transfer(ledger: int, batch: int, at: int) -> Transfer:
    debit = at % ACCOUNTS
    credit = (debit + 1 + at // ACCOUNTS) % ACCOUNTS
    return Transfer((batch + 2) << 32 | at + 1, 1 + debit, 1 + credit, 1 + at % 100, ledger, 1)


def _check(results: list[Result]) -> None:
    wrong = [result for result in results if result.result != "created"]
    if wrong:
        raise AssertionError(f"{len(wrong)} of {len(results)} were not created, the first: {wrong[0]}")


def _kernel() -> None:
    """The ledger between its topics, until standard input ends; then its sums."""
    import select

    from confluent_kafka import Consumer, Producer, TopicPartition

    from infra.registry import schema_ids
    from infra.settings import settings
    from jobs.inprocess import InProcess
    from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_SHARDS, PIPELINES
    from pipelines.codec import codec_of
    from pipelines.frames import Events, Frame

    config = settings()
    warm = InProcess(PIPELINES["ledger"])
    warm.apply_frame(Frame(LEDGER_COMMANDS.name, 0, 0, 0, None, Events(codec_of(LEDGER_COMMANDS.name).new_rows(1))))
    ledger = InProcess(PIPELINES["ledger"], schema_ids(PIPELINES["ledger"].outputs, config))
    consumer = Consumer({**kafka_options(config), "group.id": str(uuid4()), "log_level": 0})
    producer = Producer({**kafka_options(config), "linger.ms": 0, "log_level": 0})
    name = config.kafka_topic(LEDGER_COMMANDS.name)
    consumer.assign([TopicPartition(name, shard, 0) for shard in range(LEDGER_SHARDS)])
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for message in consumer.consume(100, 0.01):
            for output in ledger.apply(LEDGER_COMMANDS.name, message.value(), message.partition()):
                producer.produce(config.kafka_topic(output.topic), output.value, partition=output.shard)
            producer.poll(0)
    figures = [part for shard in ledger.shards.values() for part in shard.kernel.audit().values()]  # type: ignore[attr-defined]
    sums = {name: sum(part[name] for part in figures) for name in ("transfers", "posted")}
    print(json.dumps(sums), flush=True)


if __name__ == "__main__":
    _kernel()
