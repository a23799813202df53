"""Processes and jobs of an environment over servers that run: what soaks, benchmarks and tests start and kill.

A `Deployment` makes topics, schemas and tables, starts `Process`es as an operator would and submits jobs, everything at
once that need not wait for something else: jobs need topics and schemas, processes also the tables. What it runs can be
killed as a crash would, brought back, and is stopped at the end.

`supervise` starts again what ended with a code that allows it, as one does that finds Kafka away at its start. Whoever
kills something on purpose holds the lock of its group meanwhile, so that nobody brings it back too early.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
import psutil
import psycopg
from confluent_kafka.admin import AdminClient
from psycopg.sql import SQL, Identifier

from api.auth import issue_token
from api.clients import ClientStore
from api.keys import KeyStore
from infra import topics
from infra.flink_jobs import LATEST, Submission, job_file, job_name, submit
from infra.flink_rest import FlinkRest
from infra.kafka import kafka_options
from infra.migrations import migrate_cassandra, migrate_postgres
from infra.registry import SchemaRegistry
from infra.settings import Settings
from infra.stack.process import ServerProcess, streambank_command
from infra.stack.server import FreePorts
from infra.stores import cassandra_session, postgres_conninfo
from pipelines.catalogue import TOPICS
from pipelines.errors import StreambankError

__all__ = ["Deployment", "DeploymentError", "Process", "drop", "free_ports", "sinks", "token", "wait_until"]

CHECKPOINT_INTERVAL: Final = "1 s"
STOP_SECONDS: Final = 30.0
READY_SECONDS: Final = 300.0
MAY_BE_RESTARTED: Final = 1
"""Exit code of a process that did not find what it needs; others are alarms."""
STORES: Final = ("postgres", "cassandra")

free_ports = FreePorts(range(20_000, 30_000)).take


class DeploymentError(StreambankError):
    """A part did not start, did not come back, or ended by itself."""


def wait_until(condition: Callable[[], object], seconds: float, what: str, pause: float = 0.2) -> None:
    """Ask now and then; an error counts as "not yet". Raises `DeploymentError`."""
    deadline = time.monotonic() + seconds
    while True:
        last: object = None
        try:
            last = condition()
            if last:
                return
        except (StreambankError, OSError, httpx.HTTPError) as error:
            last = error
        if time.monotonic() > deadline:
            raise DeploymentError(f"not within {seconds:g} s: {what}; last: {last}")
        time.sleep(pause)


@dataclass(frozen=True, slots=True)
class Process:
    """A `streambank` command that runs until it is stopped; ``variables`` are put over those of the settings."""

    name: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


def sinks(names: Sequence[str]) -> list[Process]:
    """`streambank sink` for each of these, as ``sink-<name>``, with free ports for their pages."""
    ports = free_ports(len(names))
    return [
        Process(f"sink-{name}", ("sink", name, "--web-port", str(port)))
        for name, port in zip(names, ports, strict=True)
    ]


class Deployment:
    """A context manager around everything that it runs.

    ``settings`` are those of an environment whose servers run; ``directory`` is for logs, pid files and the API's keys.
    The API gets a port of its own; ``more`` are further settings of the processes. ``jobs`` are pipelines or services
    that run as Flink jobs; they make a checkpoint each ``checkpoint_interval``, None: as often as by default.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        processes: Sequence[Process],
        jobs: Sequence[str],
        *,
        parallelism: int = 1,
        checkpoint_interval: str | None = CHECKPOINT_INTERVAL,
        stores: Sequence[str] = STORES,
        more: Mapping[str, object] | None = None,
        say: Callable[[str], None] = lambda what: None,
    ) -> None:
        keys = {"producer_keys_file": str(directory.resolve() / "secrets" / "producer-keys.json")}
        self.servers_settings = settings.model_copy(update=keys)
        """What the jobs run with; ``data_dir`` is that of the servers, where checkpoints are."""
        self.settings = settings.model_copy(
            update={"api_port": free_ports(1)[0], "data_dir": directory, **keys, **(more or {})}
        )
        """What the processes run with; ``data_dir`` is theirs."""
        self.jobs = tuple(jobs)
        self.arguments = {process.name: process.arguments for process in processes}
        self.processes = {process.name: ServerProcess(process.name, directory) for process in processes}
        self.locks: dict[str, threading.Lock] = {}
        """Held while something of a group is away on purpose; a process is its own group."""
        self.restarts = 0
        """How often a process had ended by itself and was started again."""
        self._commands = {
            process.name: streambank_command(self.settings, *process.arguments, variables=process.variables)
            for process in processes
        }
        self._directory = directory
        self._parallelism = parallelism
        self._checkpoint_interval = checkpoint_interval
        self._stores = stores
        self._say = say

    # --- from nothing to ready, and back

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._begin = time.monotonic()
        try:
            with ThreadPoolExecutor(len(self.jobs) + 2) as pool:
                tables = [pool.submit(self._migrate, store) for store in self._stores]
                topics.apply(self.settings)
                with SchemaRegistry(self.settings) as registry:
                    for topic in TOPICS.values():
                        registry.register(topic)
                self._tell("topics and schemas are there")
                jobs = [pool.submit(self.submit, job) for job in self.jobs]
                for made in tables:
                    made.result()
                self._tell("tables are there")
                for name in self.processes:
                    self.start(name)
                for job in jobs:
                    job.result()
                self._tell("jobs run")
            self.wait_ready()
            self._tell("the API is ready")
            self.require_alive()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop processes and jobs; a second Ctrl-C does not stop the stopping."""
        with ExitStack() as before:
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    before.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN))
            with ThreadPoolExecutor(len(self.processes) + 1) as pool:
                list(pool.map(lambda process: process.stop(STOP_SECONDS), self.processes.values()))
            names = {job_name(job, self.servers_settings) for job in self.jobs}
            with suppress(StreambankError, httpx.HTTPError), FlinkRest(self.servers_settings) as flink:
                for job in flink.jobs():
                    if job.name in names and not job.is_terminal:
                        flink.cancel(job)

    def wait_ready(self) -> None:
        """Until the API, if there is one, can do its work."""
        if "api" not in self.processes:
            return
        url = f"{self.settings.api_url}/health/ready"

        def ready() -> bool:
            self.require_alive("api")
            return httpx.get(url, timeout=5, trust_env=False).status_code == 200

        wait_until(ready, READY_SECONDS, f"the API is ready; logs: {self._directory}")

    def require_alive(self, *names: str) -> None:
        """Raises `DeploymentError` with the last lines of a process (of these, or any) that ended by itself."""
        for name in names or self.processes:
            process = self.processes[name]
            if process.pid is None:
                tail = "\n".join(f"  | {line}" for line in process.log_tail(15))
                raise DeploymentError(
                    f"{name} ended with {process.exit_code}; last lines of {process.log_file}:\n{tail}"
                )

    # --- processes

    def lock(self, group: str) -> threading.Lock:
        return self.locks.setdefault(group, threading.Lock())

    def start(self, name: str) -> None:
        """Start a process; returns at once."""
        self.processes[name].start(self._commands[name])

    def kill(self, name: str) -> None:
        """SIGKILL to a process and its children."""
        self.processes[name].kill()

    def kill_api_worker(self) -> None:
        """SIGKILL to one of the API's workers; the API starts another."""
        process = self.processes["api"].find()
        with suppress(psutil.NoSuchProcess):
            for worker in (process.children() if process else [])[:1]:
                worker.kill()

    def supervise(self) -> None:
        """Start again what ended with a code that allows it; `DeploymentError` for whatever else ended."""
        for name, process in self.processes.items():
            lock = self.lock(name)
            if not lock.acquire(blocking=False):
                continue
            try:
                if process.pid is None:
                    if process.exit_code != MAY_BE_RESTARTED:
                        self.require_alive(name)
                    self.restarts += 1
                    self.start(name)
            finally:
                lock.release()

    # --- jobs

    def submit(self, pipeline: str) -> None:
        """Submit a job, from its newest checkpoint if there is one, unless it is there; tried until it is taken."""
        config = self.servers_settings
        name = job_name(pipeline, config)

        def is_there() -> bool:
            with FlinkRest(config) as flink:
                if any(job.name == name and not job.is_terminal for job in flink.jobs()):
                    return True  # it restarts by itself until what it needs is there too
            has_state = any((config.checkpoints_dir / name).glob("*/chk-*/_metadata"))
            submit(
                Submission(
                    job_file(pipeline),
                    name,
                    self._parallelism,
                    LATEST if has_state else None,
                    self._checkpoint_interval,
                ),
                config,
            )
            return True

        wait_until(is_there, READY_SECONDS, f"job {pipeline} is taken", pause=1.0)

    def submit_jobs(self) -> None:
        """Submit the jobs that are not there, all at once: a JobManager that was away has forgotten its jobs."""
        with ThreadPoolExecutor(len(self.jobs) + 1) as pool:
            list(pool.map(self.submit, self.jobs))

    def jobs_away(self) -> list[str]:
        """The jobs that do not run."""
        with FlinkRest(self.servers_settings) as flink:
            serving = {job.name for job in flink.jobs() if job.is_serving}
        return [job for job in self.jobs if job_name(job, self.servers_settings) not in serving]

    # --- pieces

    def _migrate(self, store: str) -> None:
        {"postgres": migrate_postgres, "cassandra": migrate_cassandra}[store](self.settings)

    def _tell(self, what: str) -> None:
        self._say(f"{what} after {time.monotonic() - self._begin:.1f} s")


def token(settings: Settings, scopes: Sequence[str], seconds: int = 86_400) -> str:
    """An access token of a new client of a deployment's API."""
    client, _ = ClientStore(settings.secrets_dir / "clients.json").add("bench", scopes)
    return issue_token(
        KeyStore(settings.secrets_dir / "keys", seconds), client, client.scopes, issuer=settings.api_url,
        audience="streambank", seconds=seconds,
    )  # fmt: skip


def drop(settings: Settings, stores: Sequence[str] = STORES) -> None:
    """Delete topics, database and keyspace of an environment."""
    admin = AdminClient(kafka_options(settings))
    for deleted in admin.delete_topics([settings.kafka_topic(name) for name in TOPICS]).values():
        deleted.exception()
    if "postgres" in stores:
        with psycopg.connect(postgres_conninfo(settings, database="postgres"), autocommit=True) as connection:
            connection.execute(
                SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(settings.postgres_database))
            )
    if "cassandra" in stores:
        with cassandra_session(settings, keyspace=False) as session:
            session.execute(f'DROP KEYSPACE IF EXISTS "{settings.cassandra_keyspace}"', timeout=60)
