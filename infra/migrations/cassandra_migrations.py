"""Cassandra schema versions: numbered CQL files, applied in order and recorded with their checksum.

CQL has no transactions for schema changes, so every statement of a file must be repeatable (``IF NOT EXISTS``): a run
that was interrupted is simply run again. Run it from one place at a time.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.settings import Settings
from infra.stores import cassandra_session
from pipelines.errors import StreambankError

__all__ = ["DEFAULT_REPLICATION", "migrate_cassandra", "pending_cassandra"]

SCRIPTS: Final = Path(__file__).parent / "cassandra"
DEFAULT_REPLICATION: Final = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
"""One copy, for the local stack; elsewhere say ``{'class': 'NetworkTopologyStrategy', '<data centre>': 3}``."""
SCHEMA_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Script:
    version: int
    name: str
    statements: tuple[str, ...]
    checksum: str


def _scripts() -> list[_Script]:
    scripts = []
    for path in sorted(SCRIPTS.glob("*.cql")):
        text = path.read_text(encoding="utf-8")
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
        statements = tuple(part.strip() for part in re.split(r";\s*(?:\n|$)", code) if part.strip())
        checksum = hashlib.sha256("\n".join(statements).encode()).hexdigest()
        scripts.append(_Script(int(path.stem[:4]), path.stem, statements, checksum))
    return scripts


def migrate_cassandra(settings: Settings, replication: str = DEFAULT_REPLICATION) -> list[str]:
    """Create the keyspace if missing and apply new scripts. Returns the names applied, oldest first.

    ``replication`` is CQL's replication map; it is used only when the keyspace is created. Raises `StreambankError`
    if a script was edited after it was applied.
    """
    with cassandra_session(settings, keyspace=False) as session:
        keyspace = settings.cassandra_keyspace
        if keyspace not in session.cluster.metadata.keyspaces:
            session.execute(
                f'CREATE KEYSPACE IF NOT EXISTS "{keyspace}" WITH replication = {replication}',
                timeout=SCHEMA_TIMEOUT_S,
            )
        session.set_keyspace(keyspace)
        if "schema_migrations" not in session.cluster.metadata.keyspaces[keyspace].tables:
            session.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations"
                " (version int PRIMARY KEY, name text, checksum text, applied_at timestamp)",
                timeout=SCHEMA_TIMEOUT_S,
            )
        pending = _pending(session)
        for script in pending:
            for statement in script.statements:
                session.execute(statement, timeout=SCHEMA_TIMEOUT_S)
            session.execute(
                "INSERT INTO schema_migrations (version, name, checksum, applied_at)"
                " VALUES (%s, %s, %s, toTimestamp(now()))",
                (script.version, script.name, script.checksum),
            )
        return [script.name for script in pending]


def pending_cassandra(settings: Settings) -> list[str]:
    """Names of the scripts not yet applied, oldest first."""
    with cassandra_session(settings, keyspace=False) as session:
        keyspace = session.cluster.metadata.keyspaces.get(settings.cassandra_keyspace)
        if keyspace is None or "schema_migrations" not in keyspace.tables:
            return [script.name for script in _scripts()]
        session.set_keyspace(settings.cassandra_keyspace)
        return [script.name for script in _pending(session)]


def _pending(session: Any) -> list[_Script]:
    applied = {row.version: row.checksum for row in session.execute("SELECT version, checksum FROM schema_migrations")}
    scripts = _scripts()
    for script in scripts:
        if applied.get(script.version, script.checksum) != script.checksum:
            raise StreambankError(
                f"Cassandra migration {script.name} was changed after it had been applied; restore the file and write"
                " the change as a new migration"
            )
    return [script for script in scripts if script.version not in applied]
