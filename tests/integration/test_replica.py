"""The streaming replica: copied from the running primary, read-only, never an answer older than asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from api.problems import Problem
from api.queries import Queries
from infra.migrations import migrate_postgres
from infra.settings import Settings
from infra.stack.postgres import Postgres
from infra.stack.postgres_replica import PostgresReplica
from infra.stack.stack import Stack, server_types
from infra.stores import API_ROLE, postgres_conninfo
from pipelines.catalogue import LEDGER_SHARDS
from tests.support.ledger_events import EventLog
from tests.support.ledger_history import balances_at, history_log, project
from tests.support.stack import PrivateStack, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def replica(stack: PrivateStack) -> Iterator[PostgresReplica]:
    stack.get(Postgres)
    with PostgresReplica(stack.settings) as server:
        yield server


@pytest.fixture(scope="module")
def log() -> EventLog:
    return history_log(frames=12)


@pytest.fixture(scope="module")
def environment(stack: PrivateStack, replica: PostgresReplica, log: EventLog) -> Settings:
    """Two frames of each shard are projected; the third is not."""
    environment = stack.environment("postgres").model_copy(update={"postgres_replica": True})
    migrate_postgres(environment)
    asyncio.run(project(environment, EventLog(log.records[: 2 * LEDGER_SHARDS])))
    return environment


def count(settings: Settings, *, replica: bool) -> int:
    with psycopg.connect(postgres_conninfo(settings, API_ROLE, replica=replica)) as connection:
        row = connection.execute("SELECT count(*) FROM transfers").fetchone()
        return int(row[0]) if row else 0


def paused(settings: Settings, function: str) -> None:
    with psycopg.connect(postgres_conninfo(settings, replica=True), autocommit=True) as connection:
        connection.execute(f"SELECT {function}()".encode())


def test_replica_streams_and_refuses_writes(environment: Settings) -> None:
    wait_until(lambda: count(environment, replica=True) == count(environment, replica=False) > 0, 30, "caught up")
    with (
        psycopg.connect(postgres_conninfo(environment, replica=True)) as connection,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
    ):
        connection.execute("DELETE FROM transfers")


def test_replica_goes_on_after_a_stop(environment: Settings, replica: PostgresReplica) -> None:
    replica.stop()
    with psycopg.connect(postgres_conninfo(environment), autocommit=True) as connection:
        connection.execute("CREATE TABLE written_meanwhile AS SELECT 1 AS one")
    replica.start()
    replica.wait_healthy()
    with psycopg.connect(postgres_conninfo(environment, replica=True), autocommit=True) as connection:
        wait_until(
            lambda: connection.execute("SELECT to_regclass('written_meanwhile')").fetchone() != (None,), 30, "caught up"
        )


def test_replica_is_part_of_the_stack_once_started(environment: Settings, stack: PrivateStack) -> None:
    assert PostgresReplica.name not in server_types()
    assert PostgresReplica.name in [server.name for server in Stack(stack.settings).servers]
    fresh = stack.settings.model_copy(update={"data_dir": stack.settings.data_dir / "other"})
    assert PostgresReplica.name not in [server.name for server in Stack(fresh).servers]


def test_client_never_reads_older_than_its_write(environment: Settings, log: EventLog) -> None:
    """While the replica stands still, plain reads come from it; those with a newer sequence do not."""
    shown = EventLog(log.records[: 2 * LEDGER_SHARDS])
    later = EventLog(log.records[: 3 * LEDGER_SHARDS])
    wait_until(lambda: count(environment, replica=True) == count(environment, replica=False), 30, "caught up")
    paused(environment, "pg_wal_replay_pause")

    async def ask() -> None:
        queries = Queries(environment, timeout=5.0, account_flags=(), transfer_flags=())
        for pool in queries._pools.values():
            await pool.open()
        try:
            await project_more(environment, log)
            old, new = balances_at(shown, 2**63 - 1)[0, 1], balances_at(later, 2**63 - 1)[0, 1]
            assert old != new
            for min_sequence, expected, reached in ((0, old, 2), (2, old, 2), (3, new, 3)):
                answer = await queries.account(1, LEDGER_SHARDS, min_sequence, 0)
                assert ({name: answer[name] for name in expected}, answer["sequence"]) == (expected, reached)
            with pytest.raises(Problem, match="at sequence 3, asked for 4"):
                await queries.account(1, LEDGER_SHARDS, 4, 0)
        finally:
            for pool in queries._pools.values():
                await pool.close()

    try:
        asyncio.run(ask())
    finally:
        paused(environment, "pg_wal_replay_resume")


async def project_more(environment: Settings, log: EventLog) -> None:
    """The third frame of each shard."""
    await project(environment, EventLog(log.records[2 * LEDGER_SHARDS : 3 * LEDGER_SHARDS]))


def test_reads_go_to_the_primary_while_the_replica_is_away(environment: Settings, replica: PostgresReplica) -> None:
    async def ask() -> int:
        queries = Queries(environment, timeout=2.0, account_flags=(), transfer_flags=())
        for pool in queries._pools.values():
            await pool.open()
        try:
            return int((await queries.account(1, LEDGER_SHARDS, 0, 0))["sequence"])
        finally:
            for pool in queries._pools.values():
                await pool.close()

    replica.stop()
    try:
        assert asyncio.run(ask()) == 3
    finally:
        replica.start()
        replica.wait_healthy()
