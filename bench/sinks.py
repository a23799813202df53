"""Kafka -> Faust sink -> store: rows per second from a filled topic, against writing one transfer at a time.

The sink is the real one (`streambank sink`), a process of its own, with its position and its checks; the frames come
from the ledger's kernel. Timed by the store's clock from the first position stored to the last, so that starting is
not counted. Before a figure counts, rows and sums in the store must equal what was sent. Every run has topics, a
database and a keyspace of its own and removes them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
from confluent_kafka import Producer
from psycopg import sql

from bench.deployment import drop
from bench.pgbench import CLIENTS, SCALE, tpc_b
from bench.report import Measurement
from infra import registry, topics
from infra.kafka import kafka_options
from infra.migrations import migrate_cassandra, migrate_postgres
from infra.settings import Settings
from infra.stores import cassandra_session, postgres_conninfo
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_EVENTS, LEDGER_SHARDS, PIPELINES, TOPICS
from pipelines.codec import codec_of
from pipelines.errors import StreambankError
from pipelines.frames import Events, Frame
from pipelines.shard import Shard, catalogue_reader
from pipelines.wire import wrap

__all__ = ["measure"]

ACCOUNTS_PER_SHARD: Final = 1_000
TRANSFERS_PER_FRAME: Final = 500
POSTGRES_FRAMES: Final = 800
CASSANDRA_FRAMES: Final = 200
BASELINE_SECONDS: Final = 5.0
GOAL: Final = 50_000
GOAL_RATIO: Final = 10
STALL_SECONDS: Final = 180.0


class BenchError(StreambankError):
    """A run did not finish, or the store does not hold what was sent."""


def measure(settings: Settings) -> list[Measurement]:
    """Both sinks; needs Kafka, the registry, Postgres and Cassandra of ``settings`` running."""
    return [*postgres(settings), cassandra(settings)]


def postgres(settings: Settings, frames: int = POSTGRES_FRAMES) -> list[Measurement]:
    """Transfers per second into Postgres; each also changes two accounts' balances. Against one transfer at a time, and
    against pgbench's TPC-B, whose transaction is of the same kind: three balances and a row of history."""
    with _environment(settings) as (environment, ids):
        migrate_postgres(environment)
        amount = _fill(environment, ids, frames)
        transfers = frames * TRANSFERS_PER_FRAME
        with psycopg.connect(postgres_conninfo(environment), autocommit=True) as connection:

            def progress() -> tuple[float, int]:
                at, rows = connection.execute(
                    "SELECT extract(epoch FROM max(updated_at)), (SELECT count(*) FROM transfers) FROM sink_offsets"
                ).fetchall()[0]
                return float(at or 0), int(rows)

            with _sink(environment, "postgres"):
                rate = _rate(progress, transfers)
            found = connection.execute(
                "SELECT (SELECT count(*) FROM transfers), (SELECT sum(amount) FROM transfers),"
                " (SELECT sum(debits_posted) FROM accounts), (SELECT sum(credits_posted) FROM accounts)"
            ).fetchall()[0]
            if tuple(map(int, found)) != (transfers, amount, amount, amount):
                raise BenchError(f"Postgres has {found}; {transfers} transfers of {amount} were sent")
        baseline = _postgres_one_by_one(environment)
        tps = tpc_b(environment, BASELINE_SECONDS)
    check = f"{transfers:,} rows; amounts, debits and credits each sum to {amount:,}"
    detail = {"transfers_per_frame": TRANSFERS_PER_FRAME, "frames": frames}
    return [
        Measurement(
            "Kafka -> Postgres sink", round(rate), "transfers/s", baseline=round(baseline),
            baseline_name="one transaction per transfer", ratio=round(rate / baseline, 1),
            goal=f">= {GOAL:,}/s and >= {GOAL_RATIO}x", met=rate >= GOAL and rate >= GOAL_RATIO * baseline,
            check=check, detail=detail,
        ),
        Measurement(
            "Kafka -> Postgres sink, beside TPC-B", round(rate), "transfers/s", baseline=round(tps),
            baseline_name=f"pgbench TPC-B, {CLIENTS} clients", ratio=round(rate / tps, 1), check=check,
            detail={"scale": SCALE},
        ),
    ]  # fmt: skip


def cassandra(settings: Settings, frames: int = CASSANDRA_FRAMES) -> Measurement:
    """Statement rows per second into Cassandra, two per transfer."""
    with _environment(settings) as (environment, ids):
        migrate_cassandra(environment)
        amount = _fill(environment, ids, frames)
        rows = 2 * frames * TRANSFERS_PER_FRAME
        with cassandra_session(environment) as session:

            def progress() -> tuple[float, int]:
                places = list(session.execute("SELECT sequence, toUnixTimestamp(updated_at) AS at FROM sink_offsets"))
                done = sum(place.sequence - 1 for place in places) * TRANSFERS_PER_FRAME * 2
                return max((place.at / 1000 for place in places), default=0.0), done

            with _sink(environment, "cassandra"):
                rate = _rate(progress, rows)
            count = total = 0
            statement = "SELECT amount FROM statement_by_account_month"
            for row in session.execute(statement, timeout=60):
                count += 1
                total += row.amount
            if (count, total) != (rows, 2 * amount):
                raise BenchError(f"Cassandra has {count} rows of {rows}, amounts {total} of {2 * amount}")
            baseline = _cassandra_one_by_one(environment, session)
    return Measurement(
        "Kafka -> Cassandra sink",
        round(rate),
        "rows/s",
        baseline=round(baseline),
        baseline_name="one prepared insert at a time",
        ratio=round(rate / baseline, 1),
        check=f"{rows:,} rows; amounts of both sides sum to {2 * amount:,}",
        detail={"transfers_per_frame": TRANSFERS_PER_FRAME, "frames": frames},
    )


@contextmanager
def _environment(settings: Settings) -> Iterator[tuple[Settings, dict[str, int]]]:
    unique = f"bench_{uuid.uuid4().hex[:8]}"
    environment = settings.model_copy(
        update={"topic_prefix": f"{unique}.", "postgres_database": unique, "cassandra_keyspace": unique}
    )
    topics.apply(environment)
    try:
        yield environment, {topic.name: registry.register(topic, environment) for topic in TOPICS.values()}
    finally:
        drop(environment)


def _fill(environment: Settings, ids: dict[str, int], frames: int) -> int:
    """Accounts and random transfers through the kernel into ledger.events; returns the sum of the amounts."""
    shards = [Shard(PIPELINES["ledger"], shard, ids, catalogue_reader) for shard in range(LEDGER_SHARDS)]
    producer = Producer({**kafka_options(environment), "acks": "all", "enable.idempotence": True})
    codec = codec_of(LEDGER_COMMANDS.name)
    random = np.random.default_rng(1)
    now = time.time_ns() // 1000
    amount = 0

    def command(shard: int, rows: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        frame = Frame(LEDGER_COMMANDS.name, shard, 0, now, None, Events(rows))
        for output in shards[shard].apply(LEDGER_COMMANDS.name, wrap(1, codec.encode(frame))):
            if output.topic == LEDGER_EVENTS.name:
                topic = environment.kafka_topic(output.topic)
                producer.produce(topic, output.value, key=str(shard), partition=shard)
                producer.poll(0)

    for shard in range(LEDGER_SHARDS):
        rows = codec.new_rows(ACCOUNTS_PER_SHARD)
        view = rows.view(codec.event_type("CreateAccount").dtype)[:, 0]
        view["id_lo"] = np.arange(1, ACCOUNTS_PER_SHARD + 1)
        view["ledger"] = LEDGER_SHARDS + shard
        view["code"] = 1
        command(shard, rows)
    kind = codec.event_type("CreateTransfer")
    for number in range(frames):
        rows = codec.new_rows(TRANSFERS_PER_FRAME)
        view = rows.view(kind.dtype)[:, 0]
        view["kind"] = kind.kind
        view["id_lo"] = np.arange(number * TRANSFERS_PER_FRAME + 1, (number + 1) * TRANSFERS_PER_FRAME + 1)
        debit = random.integers(0, ACCOUNTS_PER_SHARD, TRANSFERS_PER_FRAME)
        view["debit_account_id_lo"] = debit + 1
        step = random.integers(1, ACCOUNTS_PER_SHARD, TRANSFERS_PER_FRAME)
        view["credit_account_id_lo"] = (debit + step) % ACCOUNTS_PER_SHARD + 1
        view["amount_lo"] = random.integers(1, 10_000, TRANSFERS_PER_FRAME)
        view["ledger"] = LEDGER_SHARDS + number % LEDGER_SHARDS
        view["code"] = 1
        amount += int(view["amount_lo"].sum())
        command(number % LEDGER_SHARDS, rows)
    if producer.flush(60):
        raise BenchError("Kafka did not take the frames within 60 s")
    return amount


@contextmanager
def _sink(environment: Settings, destination: str) -> Iterator[None]:
    variables = environment.variables()
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("streambank")), "sink", destination],
            env={**os.environ, **variables},
            stdout=log,
            stderr=log,
        )
        try:
            yield
        except BenchError as error:
            raise BenchError(f"{error}; the sink said: {Path(log.name).read_text()[-2000:]}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _rate(progress: Callable[[], tuple[float, int]], rows: int) -> float:
    """Rows per second of the store's time, from the first progress seen until all rows are there."""
    first: tuple[float, int] | None = None
    last, deadline = 0, time.monotonic() + STALL_SECONDS
    while True:
        at, done = progress()
        if done and first is None:
            first = (at, done)
        if done >= rows and first is not None:
            return (done - first[1]) / max(at - first[0], 1e-3)
        if done > last:
            last, deadline = done, time.monotonic() + STALL_SECONDS
        elif time.monotonic() > deadline:
            raise BenchError(f"{done} of {rows} rows, and none came for {STALL_SECONDS:.0f} s")
        time.sleep(0.05)


def _postgres_one_by_one(environment: Settings) -> float:
    """Transfers per second: insert, two balances, commit; one connection, prepared statements."""
    with psycopg.connect(postgres_conninfo(environment)) as connection:
        number = 0
        end = time.perf_counter() + BASELINE_SECONDS
        start = time.perf_counter()
        while time.perf_counter() < end:
            number += 1
            identity = 10**12 + number
            debit, credit = number % ACCOUNTS_PER_SHARD + 1, (number + 7) % ACCOUNTS_PER_SHARD + 1
            with connection.transaction():
                connection.execute(
                    "INSERT INTO transfers VALUES (0, %s, %s, %s, 5, 0, 0, 0, 0, 0, 1, 1, 0, %s, 1)",
                    [identity, debit, credit, number],
                    prepare=True,
                )
                for column, account in (("debits_posted", debit), ("credits_posted", credit)):
                    connection.execute(
                        sql.SQL("UPDATE accounts SET {0} = {0} + 5 WHERE shard = 0 AND id = %s").format(
                            sql.Identifier(column)
                        ),
                        [account],
                        prepare=True,
                    )
        return number / (time.perf_counter() - start)


def _cassandra_one_by_one(environment: Settings, session: Any) -> float:
    """Rows per second with one prepared insert after the other."""
    columns = (
        "shard, account_id, month, timestamp, transfer_id, entry, direction, counterparty_account_id, amount, ledger,"
        " code, flags, pending_id, user_data_128, user_data_64, user_data_32, debits_pending, debits_posted,"
        " credits_pending, credits_posted, account_flags, sequence"
    )
    insert = session.prepare(
        f"INSERT INTO {environment.cassandra_keyspace}.statement_by_account_month ({columns})"  # noqa: S608
        f" VALUES ({', '.join('?' * (columns.count(',') + 1))})"
    )
    number = 0
    start = time.perf_counter()
    while time.perf_counter() < start + BASELINE_SECONDS:
        number += 1
        places = (9, number % ACCOUNTS_PER_SHARD, 202401, number, number, "transfer", "debit", 7)
        session.execute(insert, (*places, 5, 1, 1, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1))
    return number / (time.perf_counter() - start)
