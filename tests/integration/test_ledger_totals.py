"""Totals in Postgres and Cassandra equal a recomputation in SQL from the entries in Postgres."""

from __future__ import annotations

import asyncio
from typing import Any, LiteralString

import psycopg
import pytest

from infra.migrations import migrate_cassandra, migrate_postgres
from infra.settings import Settings
from infra.stores import API_ROLE, cassandra_session, postgres_conninfo
from jobs.inprocess import InProcess
from jobs.sinks.ledger_totals import CassandraTotalsSink, PostgresTotalsSink
from pipelines.catalogue import PIPELINES
from tests.support.ledger_events import EventLog
from tests.support.ledger_history import history_log, project
from tests.support.stack import PrivateStack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

RECOMPUTED = """
WITH posted AS (
    SELECT * FROM transfers WHERE flags & (2 | 8) = 0
), entries AS (
    SELECT shard, 'account' AS total_of, debit_account_id AS account_id, ledger, 0 AS code, timestamp AS at,
           amount AS debit, 0 AS credit FROM posted
    UNION ALL SELECT shard, 'account', credit_account_id, ledger, 0, timestamp, 0, amount FROM posted
    UNION ALL SELECT shard, 'ledger', 0, ledger, 0, timestamp, amount, amount FROM posted
    UNION ALL SELECT shard, 'code', 0, ledger, code, timestamp, amount, amount FROM posted
), windows AS (
    SELECT shard, total_of, account_id, ledger, code, size, at - at % width AS start, sum(debit) AS debits,
           sum(credit) AS credits, count(*) AS entries
    FROM entries, (VALUES ('hour', 3600000000000), ('day', 86400000000000)) AS sizes (size, width)
    GROUP BY shard, total_of, account_id, ledger, code, size, start
)
SELECT shard, total_of, account_id, ledger, code, size, start, debits, credits, entries,
       sum(debits) OVER before - debits AS opening_debits, sum(credits) OVER before - credits AS opening_credits,
       sum(debits) OVER before AS closing_debits, sum(credits) OVER before AS closing_credits
FROM windows
WINDOW before AS (PARTITION BY shard, total_of, account_id, ledger, code, size ORDER BY start)
"""
COLUMNS: LiteralString = (
    "shard, total_of, account_id, ledger, code, window_size, window_start, debits, credits, entry_count,"
    " opening_debits, opening_credits"
)


@pytest.fixture(scope="module")
def logs() -> tuple[EventLog, EventLog]:
    """ledger.events and what the totals' kernel makes of it."""
    events, totals = history_log(frames=24), EventLog()
    runtime = InProcess(PIPELINES["ledger_totals"])
    for _, value in events.records:
        totals.records += [(output.shard, output.value) for output in runtime.apply("ledger.events", value)]
    return events, totals


def plain(rows: Any) -> set[tuple[Any, ...]]:
    return {tuple(value if isinstance(value, str) else int(value) for value in row) for row in rows}


@pytest.fixture(scope="module")
def recomputed(stack: PrivateStack, logs: tuple[EventLog, EventLog]) -> tuple[Settings, set[tuple[Any, ...]]]:
    environment = stack.environment("postgres")
    migrate_postgres(environment)
    asyncio.run(project(environment, logs[0]))
    with psycopg.connect(postgres_conninfo(environment, API_ROLE)) as connection:
        return environment, plain(connection.execute(RECOMPUTED).fetchall())


def test_postgres(recomputed: tuple[Settings, set[tuple[Any, ...]]], logs: tuple[EventLog, EventLog]) -> None:
    environment, expected = recomputed
    asyncio.run(project(environment, logs[1], PostgresTotalsSink))
    with psycopg.connect(postgres_conninfo(environment, API_ROLE)) as connection:
        found = plain(connection.execute(f"SELECT {COLUMNS}, closing_debits, closing_credits FROM ledger_totals"))  # noqa: S608
        positions = connection.execute("SELECT DISTINCT sink, topic FROM sink_offsets ORDER BY sink").fetchall()
    assert len(found) > 100
    assert found == expected
    assert [sink for sink, _ in positions] == ["postgres", "postgres-totals"]


def test_cassandra(
    stack: PrivateStack, recomputed: tuple[Settings, set[tuple[Any, ...]]], logs: tuple[EventLog, EventLog]
) -> None:
    """Records written again, as by a sink that was restarted behind its rows, change nothing."""
    environment = stack.environment("cassandra")
    migrate_cassandra(environment)
    asyncio.run(project(environment, logs[1], CassandraTotalsSink))
    with cassandra_session(environment) as session:
        session.execute("TRUNCATE sink_offsets", timeout=60)
        asyncio.run(project(environment, EventLog(logs[1].records[:4]), CassandraTotalsSink))
        found = plain(session.execute(f"SELECT {COLUMNS} FROM ledger_totals"))  # noqa: S608
    assert found == {row[:12] for row in recomputed[1]}
