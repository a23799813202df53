"""The queries of docs/reference/stores.md, run against stores that the sinks filled."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import psycopg
import pytest

from infra import registry
from infra.settings import PROJECT_ROOT, Settings
from infra.stores import API_ROLE, cassandra_session, postgres_conninfo
from pipelines.catalogue import LEDGER_EVENTS, LEDGER_TOTALS, PIPELINES
from pipelines.shard import Shard
from tests.support.ledger_events import LedgerEventSource, joined
from tests.support.sinks import Record, SinkProcess, prepare, registered, running, send
from tests.support.stack import PrivateStack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

PAGE = (PROJECT_ROOT / "docs" / "reference" / "stores.md").read_text(encoding="utf-8")


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def filled(stack: PrivateStack, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    environment = stack.environment("kafka", "registry", "postgres", "cassandra")
    source = LedgerEventSource()
    log = joined(source.accounts(8), source.transfers(60, 40, shards=1))
    prepare(environment, "postgres", "ledger")
    prepare(environment, "cassandra", "ledger")
    records = registered(environment, log.records)
    send(environment, records)
    send(environment, totals(environment, records), LEDGER_TOTALS.name)
    directory = tmp_path_factory.mktemp("sinks")
    with (
        running(environment, "postgres", directory / "postgres.log") as postgres,
        running(environment, "cassandra", directory / "cassandra.log") as cassandra,
        running(environment, "postgres-totals", directory / "postgres-totals.log") as postgres_totals,
    ):
        for sink in (postgres, cassandra, postgres_totals):
            wait_until(partial(_no_lag, sink), 240, "all applied")
    return environment


def totals(environment: Settings, events: list[Record]) -> list[Record]:
    """What the totals job makes of records of ledger.events."""
    pipeline = PIPELINES["ledger_totals"]
    schema_ids = {LEDGER_TOTALS.name: registry.register(LEDGER_TOTALS, environment)}
    shards = [Shard(pipeline, number, schema_ids) for number in range(pipeline.shards)]
    return [
        (shard, output.value) for shard, value in events for output in shards[shard].apply(LEDGER_EVENTS.name, value)
    ]


def _no_lag(sink: SinkProcess) -> bool:
    partitions: dict[str, Any] = sink.health()[1]["partitions"]
    return len(partitions) == 4 and all(partition["lag"] == 0 for partition in partitions.values())


@pytest.mark.parametrize("query", examples("sql"))
def test_sql_examples(filled: Settings, query: str) -> None:
    with psycopg.connect(postgres_conninfo(filled, API_ROLE)) as connection:
        rows = connection.execute(query.encode()).fetchall()
    assert bool(rows) is ("-- no rows" not in query)


@pytest.mark.parametrize("query", examples("cql"))
def test_cql_examples(filled: Settings, query: str) -> None:
    topic = filled.kafka_topic("ledger.events")
    with cassandra_session(filled) as session:
        rows = list(session.execute(query.replace("'ledger.events'", f"'{topic}'")))
    assert rows


def test_the_page_names_every_table_and_column(filled: Settings) -> None:
    with psycopg.connect(postgres_conninfo(filled, API_ROLE)) as connection:
        accounts = connection.execute("SELECT * FROM accounts LIMIT 0").description
        transfers = connection.execute("SELECT * FROM transfers LIMIT 0").description
    with psycopg.connect(postgres_conninfo(filled)) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        ).fetchall()
    with cassandra_session(filled) as session:
        keyspace = session.cluster.metadata.keyspaces[filled.cassandra_keyspace]
        statement = [name for name in keyspace.tables["statement_by_account_month"].columns if "user_data" not in name]
    names = [column.name for column in [*(accounts or ()), *(transfers or ())]] + [row[0] for row in tables] + statement
    assert [name for name in names if f"`{name}`" not in PAGE] == []
