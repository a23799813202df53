"""Writers that share accounts in Postgres, by both strategies: no update is lost and no deadlock gets out."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from infra.migrations import migrate_postgres
from infra.settings import Settings
from infra.stores import SINK_ROLE, postgres_conninfo
from jobs.sinks.account_locking import AccountMissing, ContentionError, Locking, SharedAccountsWriter, Transfer
from tests.support.ledger_history import balances_at, history_log, project
from tests.support.stack import PrivateStack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]
STRATEGIES = pytest.mark.parametrize("locking", list(Locking))
WRITERS, ACCOUNTS, BATCHES, BATCH = 8, 10, 25, 20


@pytest.fixture(scope="module")
def migrated(stack: PrivateStack) -> Settings:
    environment = stack.environment("postgres")
    migrate_postgres(environment)
    return environment


@pytest.fixture
def environment(migrated: Settings) -> Settings:
    """Ten accounts of shard 0 and no transfers."""
    with psycopg.connect(postgres_conninfo(migrated), autocommit=True) as connection:
        connection.execute("TRUNCATE accounts, transfers, transfer_expiries; DELETE FROM sink_offsets")
        connection.execute(
            "INSERT INTO accounts (shard, id, ledger, code, flags, user_data_128, user_data_64, user_data_32,"
            " timestamp, sequence, event_index) SELECT 0, i, 4, 1, 0, 0, 0, 0, i, 1, i FROM generate_series(1, %s) i",
            [ACCOUNTS],
        )
    return migrated


@asynccontextmanager
async def connected(environment: Settings, count: int) -> AsyncIterator[list[psycopg.AsyncConnection[Any]]]:
    connections = [
        await psycopg.AsyncConnection.connect(postgres_conninfo(environment, SINK_ROLE), autocommit=True)
        for _ in range(count)
    ]
    try:
        yield connections
    finally:
        for connection in connections:
            await connection.close()


def batches(writer: int) -> list[list[Transfer]]:
    rng = random.Random(writer)
    found = []
    for number in range(BATCHES):
        batch = []
        for index in range(BATCH):
            debit, credit = rng.sample(range(1, ACCOUNTS + 1), 2)
            at = number * BATCH + index
            batch.append(Transfer((writer + 1) << 32 | at, debit, credit, rng.randrange(1, 10**20), at))
        found.append(batch)
    return found


def accounts(environment: Settings) -> dict[int, tuple[int, int]]:
    """Account -> debits and credits posted."""
    with psycopg.connect(postgres_conninfo(environment)) as connection:
        rows = connection.execute("SELECT id, debits_posted, credits_posted FROM accounts").fetchall()
    return {int(account): (int(debit), int(credit)) for account, debit, credit in rows}


def folded(*all_batches: list[list[Transfer]]) -> dict[int, tuple[int, int]]:
    debited: Counter[int] = Counter()
    credited: Counter[int] = Counter()
    for written in all_batches:
        for entry in (entry for batch in written for entry in batch):
            debited[entry.debit_account_id] += entry.amount
            credited[entry.credit_account_id] += entry.amount
    return {account: (debited[account], credited[account]) for account in range(1, ACCOUNTS + 1)}


@STRATEGIES
def test_eight_writers_on_ten_hot_accounts_lose_nothing(environment: Settings, locking: Locking) -> None:
    """Every batch is sent twice, as after an error whose outcome is not known."""

    async def write(number: int, connection: psycopg.AsyncConnection[Any]) -> SharedAccountsWriter:
        writer = SharedAccountsWriter(connection, locking, shard=0, ledger=4, seed=number)
        for batch in batches(number):
            assert await writer.apply(batch) == BATCH
            assert await writer.apply(batch) == 0
        return writer

    async def run() -> list[SharedAccountsWriter]:
        async with connected(environment, WRITERS) as connections:
            return await asyncio.gather(*(write(number, one) for number, one in enumerate(connections)))

    writers = asyncio.run(run())
    assert accounts(environment) == folded(*(batches(number) for number in range(WRITERS)))
    assert sum(writer.figures.transfers for writer in writers) == WRITERS * BATCHES * BATCH
    conflicts = sum(writer.figures.conflicts for writer in writers)
    assert (conflicts > 0) == (locking is Locking.OPTIMISTIC)
    assert locking is Locking.OPTIMISTIC or not any(writer.figures.deadlocks for writer in writers)


async def interrupted(environment: Settings, locking: Locking, max_tries: int) -> None:
    """A batch while another transaction holds account 1 and then changes it."""
    async with connected(environment, 2) as (holder, connection):
        writer = SharedAccountsWriter(connection, locking, shard=0, ledger=4, max_tries=max_tries, seed=1)
        async with holder.transaction():
            await holder.execute(
                "UPDATE accounts SET debits_posted = debits_posted + 5, version = version + 1"
                " WHERE shard = 0 AND id = 1"
            )
            task = asyncio.create_task(writer.apply([Transfer(1, 1, 2, 7, 1)]))
            if max_tries > 1:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(task), 0.3)
            else:
                with pytest.raises(ContentionError, match="1 optimistic tries"):
                    await task
        if max_tries > 1:
            assert await task == 1


@STRATEGIES
def test_balance_that_another_changed_meanwhile_is_read_anew(environment: Settings, locking: Locking) -> None:
    asyncio.run(interrupted(environment, locking, 200))
    assert accounts(environment)[1] == (12, 0)
    assert accounts(environment)[2] == (0, 7)


def test_tries_are_bounded_and_leave_nothing(environment: Settings) -> None:
    asyncio.run(interrupted(environment, Locking.OPTIMISTIC, 1))
    assert accounts(environment)[1] == (5, 0)
    with psycopg.connect(postgres_conninfo(environment)) as connection:
        assert connection.execute("SELECT count(*) FROM transfers").fetchone() == (0,)


@STRATEGIES
def test_unknown_account_applies_nothing_of_its_batch(environment: Settings, locking: Locking) -> None:
    async def run() -> None:
        async with connected(environment, 1) as (connection,):
            writer = SharedAccountsWriter(connection, locking, shard=0, ledger=4)
            with pytest.raises(AccountMissing, match="no account 77"):
                await writer.apply([Transfer(1, 1, 2, 7, 1), Transfer(2, 1, 77, 7, 2)])

    asyncio.run(run())
    assert accounts(environment) == folded()


@STRATEGIES
def test_the_ledgers_sink_writes_the_same_by_both_strategies(environment: Settings, locking: Locking) -> None:
    with psycopg.connect(postgres_conninfo(environment), autocommit=True) as connection:
        connection.execute("TRUNCATE accounts")
    log = history_log(frames=8)
    asyncio.run(project(environment.model_copy(update={"postgres_locking": locking.value}), log))
    with psycopg.connect(postgres_conninfo(environment)) as connection:
        rows = connection.execute("SELECT shard, id, debits_posted, credits_posted, version FROM accounts").fetchall()
    expected = balances_at(log, 2**63 - 1)
    assert {(shard, int(account)): (int(debit), int(credit)) for shard, account, debit, credit, _ in rows} == {
        key: (value["debits_posted"], value["credits_posted"]) for key, value in expected.items()
    }
    assert all(version > 0 for *_, version in rows)
