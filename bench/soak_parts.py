"""What a soak runs and kills: the servers of the stack, the ledger job, and API and sinks as processes of their own.

A target is killed as a crash would, SIGKILL to the process and all its children, and brought back as an operator would.
Targets of one `group` are never away by two kills at once; whatever else may be.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
import psutil

from infra.flink_jobs import LATEST, Submission, job_file, job_name, submit
from infra.flink_rest import FlinkRest
from infra.settings import PROJECT_ROOT, Settings
from infra.stack.cassandra import Cassandra
from infra.stack.flink import JOB_MANAGER, Flink
from infra.stack.kafka import Kafka
from infra.stack.postgres import Postgres
from infra.stack.process import Command, ServerProcess
from infra.stack.registry import Registry
from infra.stack.server import Server, is_taken, listener_on
from infra.stack.valkey import Valkey
from pipelines.errors import StreambankError

__all__ = ["SERVERS", "Parts", "PartsError", "Target"]

SERVERS: Final = ("kafka", "registry", "postgres", "cassandra", "valkey", "flink")
CHECKPOINT_INTERVAL: Final = "1 s"
CHILD_STOP_SECONDS: Final = 30.0
READY_SECONDS: Final = 300.0
SUBMIT_SECONDS: Final = 300.0
EXIT_MAY_BE_RESTARTED: Final = 1
"""Of API and sinks; others are alarms."""


class PartsError(StreambankError):
    """A part of the system did not start, did not come back, or ended by itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that can be killed: `kill` returns when it is gone, `restart` when it has been started again."""

    name: str
    group: str
    kill: Callable[[], object]
    restart: Callable[[], object]


class Parts:
    """API, sinks and job of an environment whose servers run; a context manager that stops those three.

    ``directory``: for logs, pid files and the API's keys. ``options`` are further settings of the processes.
    """

    def __init__(self, config: Settings, directory: Path, parallelism: int = 1) -> None:
        self.config = config
        self.api_config = config.model_copy(update={"data_dir": directory})
        self._directory = directory
        self._parallelism = parallelism
        self._commands: dict[str, tuple[str, ...]] = {
            "api": ("api", "--workers", "2"),
            "sink-postgres": ("sink", "postgres"),
            "sink-cassandra": ("sink", "cassandra"),
        }
        self.children = {name: ServerProcess(name, directory) for name in self._commands}
        self._flink = Flink(config)
        self.locks = {target.group: threading.Lock() for target in self.targets}
        """Held while something of a group is away by a kill."""
        self.restarts = 0
        """How often a process had ended by itself and was started again."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """Everything, in the order of their names."""
        children = [
            Target(name, name, process.kill, partial(self._start, name)) for name, process in self.children.items()
        ]
        kinds: tuple[type[Server], ...] = (Kafka, Registry, Postgres, Cassandra, Valkey)
        servers = [
            Target(server.name, server.name, server.kill, partial(_bring_back, server))
            for server in (kind(self.config) for kind in kinds)
        ]
        flink = [
            Target("taskmanager", "flink", self._flink.kill_task_manager, self._flink.start_task_manager),
            Target("jobmanager", "flink", self._flink.process(JOB_MANAGER).kill, self._bring_job_manager_back),
        ]
        worker = Target("api-worker", "api", self._kill_api_worker, lambda: None)
        return tuple(sorted([*children, *servers, *flink, worker], key=lambda target: target.name))

    def __enter__(self) -> Self:
        self.require_free_ports()
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            for name in self.children:
                self._start(name)
            self._submit()
            self.wait_api()
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
        """Stop API, sinks and job; a second Ctrl-C does not stop the stopping."""
        is_main = threading.current_thread() is threading.main_thread()
        previous = {
            number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM) if is_main
        }
        try:
            with ThreadPoolExecutor(len(self.children)) as pool:
                list(pool.map(lambda process: process.stop(CHILD_STOP_SECONDS), self.children.values()))
            with suppress(Exception), FlinkRest(self.config) as flink:
                name = job_name("ledger", self.config)
                for job in flink.jobs():
                    if job.name == name and not job.is_terminal:
                        flink.cancel(job)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def require_alive(self) -> None:
        """Raises `PartsError` with the last lines of a process that ended."""
        for name, process in self.children.items():
            if process.pid is None:
                tail = "\n".join(f"  | {line}" for line in process.log_tail(15))
                raise PartsError(f"{name} ended with {process.exit_code}; last lines of {process.log_file}:\n{tail}")

    def supervise(self) -> None:
        """Start again what ended with a code that allows it, as one does that finds Kafka away at its start; raises
        `PartsError` for whatever else ended."""
        for name, process in self.children.items():
            if not self.locks[name].acquire(blocking=False):
                continue
            try:
                if process.pid is None:
                    if process.exit_code != EXIT_MAY_BE_RESTARTED:
                        self.require_alive()
                    self.restarts += 1
                    self._start(name)
            finally:
                self.locks[name].release()

    def wait_api(self) -> None:
        """Until it is ready, at most `READY_SECONDS`."""
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(f"{self.config.api_url}/health/ready"):
            self.require_alive()
            if time.monotonic() > deadline:
                raise PartsError(f"the API is not ready after {READY_SECONDS:.0f} s; see {self._directory}")
            time.sleep(0.1)

    def _start(self, name: str) -> None:
        config = self.api_config if name == "api" else self.config
        environment = {
            f"STREAMBANK_{key.upper()}": str(value) for key, value in config.model_dump().items() if value is not None
        }
        command = (sys.executable, "-c", "from infra.cli import main; main()", *self._commands[name])
        self.children[name].start(Command(command, environment=environment, working_directory=PROJECT_ROOT))

    def _kill_api_worker(self) -> None:
        """One of its processes; the API itself starts another."""
        process = self.children["api"].find()
        workers: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            workers = [] if process is None else process.children()
        if workers:
            with suppress(psutil.NoSuchProcess):
                workers[0].kill()

    def _bring_job_manager_back(self) -> None:
        """Without high availability it has forgotten its jobs: the job goes on from its newest checkpoint."""
        _bring_back(self._flink)
        self._submit()

    def _submit(self) -> None:
        """Submit the job, from its newest checkpoint if there is one; other parts may be away meanwhile."""
        name = job_name("ledger", self.config)
        has_state = any((self.config.checkpoints_dir / name).glob("*/chk-*/_metadata"))
        submission = Submission(
            job_file("ledger"), name, self._parallelism, LATEST if has_state else None, CHECKPOINT_INTERVAL
        )
        deadline = time.monotonic() + SUBMIT_SECONDS
        while True:
            try:
                submit(submission, self.config)
                return
            except (StreambankError, httpx.HTTPError) as error:
                with suppress(StreambankError, httpx.HTTPError), FlinkRest(self.config) as flink:
                    if any(job.name == name and not job.is_terminal for job in flink.jobs()):
                        return  # it is there, and restarts by itself until what it needs is there too
                if time.monotonic() > deadline:
                    raise PartsError(f"the ledger job was not taken within {SUBMIT_SECONDS:.0f} s: {error}") from error
                time.sleep(1)

    def require_free_ports(self) -> None:
        """Raises `PartsError` with who has one of theirs."""
        web = self.config.faust_web_port
        for what, port, variable in (
            ("the API", self.config.api_port, "STREAMBANK_API_PORT"),
            ("the Postgres sink's page", web, "STREAMBANK_FAUST_WEB_PORT"),
            ("the Cassandra sink's page", web + 1, "STREAMBANK_FAUST_WEB_PORT"),
        ):
            if is_taken(self.config.host, port):
                raise PartsError(
                    f"port {port} of {what} is taken by {listener_on(port)}; stop it, or choose another with {variable}"
                )


def _bring_back(server: Server) -> None:
    server.start()
    server.wait_healthy()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=3, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
