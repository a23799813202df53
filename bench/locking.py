"""Postgres accounts shared by eight writers: optimistic against pessimistic locking, side by side.

Two loads: ten hot accounts, and two hundred thousand, where two batches seldom meet; batches of 100 transfers. The
baseline is one transfer per transaction by the same eight writers, with the database doing the arithmetic; pgbench's
TPC-B-like script (scale 10, eight clients) stands beside it, as everybody knows it. After each run the sums of debits,
credits and amounts must be equal and no transfer lost.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg import sql

from bench.pgbench import CLIENTS, SCALE, tpc_b
from bench.report import Measurement
from infra.migrations import migrate_postgres
from infra.settings import Settings
from infra.stores import postgres_conninfo
from jobs.sinks.account_locking import Locking, SharedAccountsWriter, Transfer
from pipelines.errors import StreambankError

__all__ = ["measure"]

WRITERS: Final = 8
BATCH: Final = 100
SECONDS: Final = 4.0
LOADS: Final = {"10 hot accounts": 10, "200,000 accounts": 200_000}
_LEDGER: Final = 4


class BenchError(StreambankError):
    """An update was lost."""


def measure(settings: Settings) -> list[Measurement]:
    """Needs Postgres of ``settings`` running; uses and drops a database of its own."""
    environment = settings.model_copy(update={"postgres_database": f"bench_{uuid.uuid4().hex[:8]}"})
    migrate_postgres(environment)
    try:
        found = []
        for load, accounts in LOADS.items():
            baseline = asyncio.run(_one_by_one(environment, accounts))
            found += [asyncio.run(_batches(environment, load, accounts, locking, baseline)) for locking in Locking]
        return [*found, _pgbench(environment)]
    finally:
        with psycopg.connect(postgres_conninfo(environment, database="postgres"), autocommit=True) as connection:
            name = sql.Identifier(environment.postgres_database)
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


@asynccontextmanager
async def _writers(environment: Settings, accounts: int) -> AsyncIterator[list[psycopg.AsyncConnection[Any]]]:
    """Empty tables with ``accounts`` accounts, and a connection per writer."""
    connections = [
        await psycopg.AsyncConnection.connect(postgres_conninfo(environment), autocommit=True) for _ in range(WRITERS)
    ]
    try:
        await connections[0].execute("TRUNCATE accounts, transfers")
        await connections[0].execute(
            "INSERT INTO accounts (shard, id, ledger, code, flags, user_data_128, user_data_64, user_data_32,"
            " timestamp, sequence, event_index) SELECT 0, i, %s, 1, 0, 0, 0, 0, i, 1, i FROM generate_series(1, %s) i",
            [_LEDGER, accounts],
        )
        await connections[0].execute("ANALYZE accounts")
        yield connections
    finally:
        for connection in connections:
            await connection.close()


async def _check(connection: psycopg.AsyncConnection[Any], transfers: int, amount: int) -> str:
    row = await (
        await connection.execute(
            "SELECT count(*), coalesce(sum(amount), 0), (SELECT sum(debits_posted) FROM accounts),"
            " (SELECT sum(credits_posted) FROM accounts) FROM transfers"
        )
    ).fetchone()
    found = tuple(map(int, row or ()))
    if found != (transfers, amount, amount, amount):
        raise BenchError(f"{transfers} transfers of {amount} were applied, Postgres has {found}")
    return f"{transfers:,} transfers; amounts, debits and credits each sum to {amount:,}"


def _transfers(writer: int, first: int, count: int, accounts: int, rng: random.Random) -> list[Transfer]:
    found = []
    for number in range(first, first + count):
        debit = rng.randrange(accounts)
        credit = (debit + rng.randrange(1, accounts)) % accounts
        found.append(Transfer(writer << 40 | number, debit + 1, credit + 1, rng.randrange(1, 10_000), number))
    return found


async def _batches(environment: Settings, load: str, accounts: int, locking: Locking, baseline: float) -> Measurement:
    amount = 0

    async def write(number: int, connection: psycopg.AsyncConnection[Any], end: float) -> SharedAccountsWriter:
        nonlocal amount
        writer = SharedAccountsWriter(connection, locking, shard=0, ledger=_LEDGER, seed=number)
        rng = random.Random(number)
        sent = 0
        while time.perf_counter() < end:
            batch = _transfers(number + 1, sent, BATCH, accounts, rng)
            await writer.apply(batch)
            sent += BATCH
            amount += sum(entry.amount for entry in batch)
        return writer

    async with _writers(environment, accounts) as connections:
        start = time.perf_counter()
        writers = await asyncio.gather(
            *(write(number, connection, start + SECONDS) for number, connection in enumerate(connections))
        )
        seconds = time.perf_counter() - start
        transfers = sum(writer.figures.transfers for writer in writers)
        check = await _check(connections[0], transfers, amount)
    return Measurement(
        f"{locking.value}, {load}",
        round(transfers / seconds),
        "transfers/s",
        baseline=round(baseline),
        baseline_name="one transfer per transaction",
        ratio=round(transfers / seconds / baseline, 2),
        check=check,
        detail={
            "writers": WRITERS,
            "batch": BATCH,
            "batches": sum(writer.figures.batches for writer in writers),
            "conflicts": sum(writer.figures.conflicts for writer in writers),
            "deadlocks": sum(writer.figures.deadlocks for writer in writers),
        },
    )


async def _one_by_one(environment: Settings, accounts: int) -> float:
    """Transfers per second: insert, the two balances in the order of their keys, commit."""
    amounts: list[int] = []

    async def write(number: int, connection: psycopg.AsyncConnection[Any], end: float) -> None:
        rng = random.Random(number)
        sent = 0
        while time.perf_counter() < end:
            (entry,) = _transfers(number + 1, sent, 1, accounts, rng)
            async with connection.transaction():
                await connection.execute(
                    "INSERT INTO transfers VALUES (0, %s, %s, %s, %s, 0, 0, 0, 0, 0, %s, 1, 0, %s, 0)",
                    [entry.id, entry.debit_account_id, entry.credit_account_id, entry.amount, _LEDGER, sent],
                    prepare=True,
                )
                sides = [("debits_posted", entry.debit_account_id), ("credits_posted", entry.credit_account_id)]
                for column, account in sorted(sides, key=lambda side: side[1]):
                    await connection.execute(
                        sql.SQL("UPDATE accounts SET {0} = {0} + %s WHERE shard = 0 AND id = %s").format(
                            sql.Identifier(column)
                        ),
                        [entry.amount, account],
                        prepare=True,
                    )
            sent += 1
            amounts.append(entry.amount)

    async with _writers(environment, accounts) as connections:
        start = time.perf_counter()
        await asyncio.gather(
            *(write(number, connection, start + SECONDS) for number, connection in enumerate(connections))
        )
        seconds = time.perf_counter() - start
        await _check(connections[0], len(amounts), sum(amounts))
    return len(amounts) / seconds


def _pgbench(environment: Settings) -> Measurement:
    return Measurement(
        "pgbench TPC-B, for comparison", round(tpc_b(environment, SECONDS)), "transactions/s",
        check=f"no transaction of {CLIENTS} clients failed", detail={"scale": SCALE},
    )  # fmt: skip
