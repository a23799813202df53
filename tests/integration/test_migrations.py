"""Migrations on real servers: from nothing to the newest version, again, down and up; and who may do what."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from infra.migrations import (
    downgrade_postgres,
    migrate_cassandra,
    migrate_postgres,
    pending_cassandra,
    pending_postgres,
)
from infra.settings import Settings
from infra.stores import API_ROLE, SINK_ROLE, cassandra_session, postgres_conninfo
from pipelines.errors import StreambankError
from tests.support.stack import PrivateStack

pytestmark = pytest.mark.stack


VERSIONS = [
    "0001_ledger",
    "0002_account_version",
    "0003_ledger_totals",
    "0004_transfer_search",
    "0010_fraud_cases",
    "0030_payments",
    "0040_card_vault",
    "0041_notifications",
    "0050_ledger_metadata",
    "0051_account_ibans",
    "0052_cross_transfers",
]
CASSANDRA_VERSIONS = [
    "0001_statement_by_account_month",
    "0002_ledger_totals",
    "0010_fraud",
    "0020_minute_bars",
    "0030_payments_by_account_day",
    "0031_fraud_decisions_by_transaction",
]


@pytest.fixture
def postgres_environment(stack: PrivateStack) -> Settings:
    """Without the database that fixtures usually make: migrating makes it."""
    stack.environment("postgres")
    return stack.environment().model_copy(update={"postgres_database": "not_there_yet"})


def test_postgres_from_nothing_to_head_and_again(postgres_environment: Settings) -> None:
    environment = postgres_environment
    with psycopg.connect(postgres_conninfo(environment, database="postgres"), autocommit=True) as owner:
        owner.execute("DROP DATABASE IF EXISTS not_there_yet")
    with ThreadPoolExecutor(3) as pool:  # several jobs may start with a migration
        applied = list(pool.map(migrate_postgres, [environment] * 3))
    assert sorted(applied) == [
        [],
        [],
        VERSIONS,
    ]
    assert pending_postgres(environment) == []
    before = _columns(environment)
    assert {"accounts", "transfers", "sink_offsets", "dead_letters_handled"} <= {row[0] for row in before}
    downgrade_postgres(environment)
    assert pending_postgres(environment) == VERSIONS
    assert {row[0] for row in _columns(environment)} == {"alembic_version"}
    assert migrate_postgres(environment) == VERSIONS
    assert _columns(environment) == before


def test_a_database_of_later_code_is_named(postgres_environment: Settings) -> None:
    environment = postgres_environment.model_copy(update={"postgres_database": "of_later_code"})
    migrate_postgres(environment)
    with psycopg.connect(postgres_conninfo(environment)) as owner:
        owner.execute("UPDATE alembic_version SET version_num = '9999_later'")
    with pytest.raises(StreambankError, match="version 9999_later"):
        migrate_postgres(environment)


def _columns(environment: Settings) -> list[tuple[str, ...]]:
    with psycopg.connect(postgres_conninfo(environment)) as connection:
        return connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
            " WHERE table_schema = 'public' ORDER BY 1, 2"
        ).fetchall()


@pytest.fixture
def migrated(stack: PrivateStack) -> Settings:
    environment = stack.environment("postgres")
    migrate_postgres(environment)
    return environment


ALLOWED = [
    (SINK_ROLE, "SELECT * FROM accounts"),
    (SINK_ROLE, "UPDATE accounts SET code = 1 WHERE false"),
    (SINK_ROLE, "UPDATE sink_offsets SET sequence = 1 WHERE false"),
    (SINK_ROLE, "CREATE TEMPORARY TABLE scratch (id int)"),
    (API_ROLE, "SELECT * FROM accounts, transfers, transfer_expiries, sink_offsets"),
]
FORBIDDEN = [
    (SINK_ROLE, "DELETE FROM transfers"),
    (SINK_ROLE, "UPDATE transfers SET amount = 0"),
    (SINK_ROLE, "TRUNCATE accounts"),
    (SINK_ROLE, "CREATE TABLE mine (id int)"),
    (API_ROLE, "UPDATE accounts SET code = 1"),
    (API_ROLE, "DELETE FROM sink_offsets"),
    (API_ROLE, "SELECT * FROM dead_letters_handled"),
]


def test_roles_may_do_what_they_need_and_no_more(migrated: Settings) -> None:
    for role, statement in ALLOWED:
        with psycopg.connect(postgres_conninfo(migrated, role)) as connection:
            connection.execute(statement)
    for role, statement in FORBIDDEN:
        with (
            psycopg.connect(postgres_conninfo(migrated, role)) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)


def test_role_passwords_come_from_the_environment(migrated: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMBANK_POSTGRES_SINK_PASSWORD", "correct horse")
    migrate_postgres(migrated)
    assert "correct horse" in postgres_conninfo(migrated, SINK_ROLE)
    assert "password" not in postgres_conninfo(migrated, API_ROLE)
    with psycopg.connect(postgres_conninfo(migrated)) as connection:
        found = connection.execute("SELECT rolname, rolpassword FROM pg_authid").fetchall()
    stored: dict[str, str | None] = dict(found)
    assert (stored[SINK_ROLE] or "").startswith("SCRAM-SHA-256$")
    assert stored[API_ROLE] is None


def test_cassandra_from_nothing_to_head_and_again(stack: PrivateStack) -> None:
    environment = stack.environment("cassandra")
    assert pending_cassandra(environment) == CASSANDRA_VERSIONS
    assert migrate_cassandra(environment) == CASSANDRA_VERSIONS
    assert migrate_cassandra(environment) == []
    assert pending_cassandra(environment) == []
    with cassandra_session(environment) as session:
        keyspace = session.cluster.metadata.keyspaces[environment.cassandra_keyspace]
        assert set(keyspace.tables) >= {
            "schema_migrations", "sink_offsets", "statement_by_account_month", "ledger_totals", "minute_bars",
            "payments_by_account_day",
        }  # fmt: skip
        statement = keyspace.tables["statement_by_account_month"]
        assert [column.name for column in statement.partition_key] == ["shard", "account_id", "month"]
        assert [column.name for column in statement.clustering_key][:2] == ["timestamp", "transfer_id"]
        session.execute("DELETE FROM schema_migrations WHERE version = 1")
    assert migrate_cassandra(environment) == ["0001_statement_by_account_month"]  # an interrupted run is run again
    with cassandra_session(environment) as session:
        session.execute("UPDATE schema_migrations SET checksum = 'another' WHERE version = 1")
    with pytest.raises(StreambankError, match="0001_statement_by_account_month was changed after it had been applied"):
        migrate_cassandra(environment)
