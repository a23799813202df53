"""A streaming replica of the stack's Postgres, for reads: `streambank up --replica`.

Copied from the running primary with ``pg_basebackup`` at its first start, then fed by its write-ahead log as it is
written (asynchronously: the primary never waits for it). It answers read-only queries on a port of its own and may be
some milliseconds behind. A replication slot keeps the log that it still needs while it is down, up to 4 GB; a replica
that was down for longer is copied anew.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import ClassVar, Final

import psycopg

from infra.stack.errors import ServerFailedError
from infra.stack.postgres import Postgres, binaries, let_through
from infra.stack.server import Port
from infra.stores import postgres_conninfo

__all__ = ["PostgresReplica"]

SLOT: Final = "streambank_replica"
PRIMARY_SECONDS: Final = 120.0


class PostgresReplica(Postgres):
    """A hot standby of `Postgres` of the same settings, which must be running or starting."""

    name: ClassVar[str] = "postgres-replica"
    title: ClassVar[str] = "Postgres replica"
    optional: ClassVar[bool] = True

    @property
    def ports(self) -> tuple[Port, ...]:
        return (Port("read-only clients", self.settings.postgres_replica_port, "STREAMBANK_POSTGRES_REPLICA_PORT"),)

    def prepare(self) -> None:
        cluster = self.directory / "cluster"
        user_id = self._user_id
        slot_is_good = self._wait_for_primary_slot()
        if (cluster / "PG_VERSION").exists() and not slot_is_good:
            shutil.rmtree(cluster)  # what it needs next is gone from the primary
        cluster.mkdir(mode=0o700, exist_ok=True)
        if user_id is not None:
            let_through(cluster)
            let_through(binaries() / "postgres")
            os.chown(cluster, user_id, user_id)
        if not (cluster / "PG_VERSION").exists():
            self._copy(cluster, user_id, slot_is_good)
        primary = (
            f"host={self.settings.host} port={self.settings.postgres_port} user={self.settings.postgres_user} "
            f"application_name={SLOT}"
        )
        self._configure(
            cluster,
            {
                "primary_conninfo": f"'{primary}'",
                "primary_slot_name": f"'{SLOT}'",
                "hot_standby": "on",
                "hot_standby_feedback": "on",
            },
        )
        signal_file = cluster / "standby.signal"
        signal_file.touch()
        if user_id is not None:
            os.chown(signal_file, user_id, user_id)

    def _copy(self, cluster: Path, user_id: int | None, slot_is_there: bool) -> None:
        self._run(
            user_id,
            "pg_basebackup",
            f"--host={self.settings.host}",
            f"--port={self.settings.postgres_port}",
            f"--username={self.settings.postgres_user}",
            f"--pgdata={cluster}",
            "--wal-method=stream",
            "--checkpoint=fast",
            f"--slot={SLOT}",
            *([] if slot_is_there else ["--create-slot"]),
        )

    def _wait_for_primary_slot(self) -> bool:
        """Wait for the primary, which may be starting beside us; whether it still keeps the log for this replica."""
        deadline = time.monotonic() + PRIMARY_SECONDS
        while True:
            try:
                connection = psycopg.connect(postgres_conninfo(self.settings, database="postgres"), autocommit=True)
                break
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise ServerFailedError(f"{self.name}: its primary does not answer: {error}") from error
                time.sleep(0.2)
        with closing(connection):
            row = connection.execute(
                "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", [SLOT]
            ).fetchone()
            if row is not None and row[0] == "lost":
                connection.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])
        return row is not None and row[0] != "lost"

    def check(self) -> None:
        """Answers, is a standby, and receives the primary's log."""
        with psycopg.connect(postgres_conninfo(self.settings, database="postgres", replica=True)) as connection:
            row = connection.execute("SELECT pg_is_in_recovery(), (SELECT status FROM pg_stat_wal_receiver)").fetchone()
        if row != (True, "streaming"):
            raise ServerFailedError(f"{self.name}: (standby, log receiver) is {row}, not streaming")

    def describe(self) -> str:
        return f"{self.settings.host}:{self.ports[0].number}, read-only"
