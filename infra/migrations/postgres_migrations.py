"""Postgres schema versions, run by alembic.

`migrate_postgres` creates the database and the roles if they are missing, then upgrades to the newest version. An
advisory lock makes concurrent calls take turns.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from infra.settings import Settings
from infra.stores import ROLE_PASSWORD_VARIABLES, postgres_conninfo
from pipelines.errors import StreambankError

__all__ = ["downgrade_postgres", "migrate_postgres", "pending_postgres"]

SCRIPTS: Final = Path(__file__).parent / "postgres"
LOCK: Final = 0x53_42_4D_47
"""Key of the advisory lock that serialises migrations within a database."""


def migrate_postgres(settings: Settings) -> list[str]:
    """Upgrade to the newest version. Returns the versions applied, oldest first; empty when there was nothing to do."""
    _ensure_database(settings)
    _ensure_roles(settings)
    with _connection(settings) as connection:
        before = _pending(connection)
        if before:
            command.upgrade(_config(connection), "head")
            connection.commit()
    return before


def downgrade_postgres(settings: Settings, revision: str = "base") -> None:
    """Undo migrations down to ``revision``; the projections they hold are lost and must be rebuilt from the topics."""
    with _connection(settings) as connection:
        command.downgrade(_config(connection), revision)
        connection.commit()


def pending_postgres(settings: Settings) -> list[str]:
    """Versions not yet applied, oldest first."""
    with _connection(settings) as connection:
        return _pending(connection)


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


class _connection:  # noqa: N801 - a context manager used like a function
    """A SQLAlchemy connection of the owner that holds the migration lock."""

    def __init__(self, settings: Settings) -> None:
        self._engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(postgres_conninfo(settings)),
            poolclass=NullPool,
        )

    def __enter__(self) -> Connection:
        self._connection = self._engine.connect()
        self._connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK})")
        self._connection.commit()
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._engine.dispose()


def _pending(connection: Connection) -> list[str]:
    scripts = ScriptDirectory.from_config(_config())
    current = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    known = [script.revision for script in scripts.walk_revisions()]
    if current is not None and current not in known:
        raise StreambankError(
            f"the database is at version {current}, which this code does not have (its newest is {known[0]}): "
            "use the code that migrated it, or another database"
        )
    revisions = [script.revision for script in scripts.iterate_revisions("head", current or "base")]
    return list(reversed(revisions))


def _ensure_database(settings: Settings) -> None:
    with psycopg.connect(postgres_conninfo(settings, database="postgres"), autocommit=True) as connection:
        name = settings.postgres_database
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            return
        with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):  # another was quicker
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _ensure_roles(settings: Settings) -> None:
    """Roles belong to the server, not to one database, so they are not part of a version."""
    with psycopg.connect(postgres_conninfo(settings), autocommit=True) as connection:
        for role, variable in ROLE_PASSWORD_VARIABLES.items():
            identifier = sql.Identifier(role)
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):  # another was quicker
                    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(identifier))
            if password := os.environ.get(variable):
                # The server must see only the verifier: statements may be logged.
                encrypted = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
                connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(identifier, encrypted.decode()))
