"""The one interface of every server of the local stack.

A server is a file of this package with a subclass of `Server`: what it is called, which ports it takes, how its
configuration is written, which command runs it and how one sees that it is healthy. Starting, stopping, finding it
again after the CLI has ended, a taken port, a dead server and memory are the same for all and are here.

State lives in ``<data_dir>/<name>`` and survives down and up. All servers listen on ``settings.host`` only.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import psutil

from infra.settings import Settings
from infra.stack.errors import PortTakenError, ServerFailedError, StackError
from infra.stack.process import Command, ServerProcess

__all__ = ["FreePorts", "Port", "Server", "ServerStatus", "is_taken", "listener_on"]

POLL_SECONDS = 0.1
LOG_LINES_IN_ERRORS = 15
JAVA_STACK_LINE = re.compile(r"\s+(at [\w.$/<>]+\(|\.\.\. \d+ more)")


@dataclass(frozen=True, slots=True)
class Port:
    """A port that a server listens on. ``variable`` is the environment variable that chooses another."""

    purpose: str
    number: int
    variable: str


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """How a server is doing: ``state`` is stopped, healthy, unhealthy (alive, but its check fails) or dead (it was
    started, was not stopped, and is gone). ``memory_bytes`` covers all its processes and their children."""

    name: str
    state: str
    detail: str
    ports: tuple[Port, ...]
    pids: tuple[int, ...]
    memory_bytes: int
    uptime_seconds: float | None


class Server(ABC):
    """A server of the local stack. As a context manager it runs inside the block and is stopped after it."""

    name: ClassVar[str]
    title: ClassVar[str]
    optional: ClassVar[bool] = False
    """Whether it is part of the stack only when asked for by name; once started, it is until the next `down`."""
    start_seconds: ClassVar[float] = 180
    """Deadline of becoming healthy. Generous, as machines are noisy; a process that dies is noticed at once."""
    stop_seconds: ClassVar[float] = 30
    """Deadline of an orderly stop; after it the processes are killed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.directory = settings.data_dir.resolve() / self.name
        self.home = settings.home.resolve()

    # --- what a server says about itself

    @property
    @abstractmethod
    def ports(self) -> tuple[Port, ...]:
        """The ports it listens on; the first is the one that clients use."""

    @abstractmethod
    def prepare(self) -> None:
        """Write configuration and, at the first start, format the storage. Must be repeatable."""

    @abstractmethod
    def commands(self) -> Mapping[str, Command]:
        """The command of each of its processes by process name, in the order of starting."""

    @abstractmethod
    def check(self) -> None:
        """Return when the server answers a client's question; raise anything when not (yet). Takes at most a few
        seconds. What it raises is shown as the reason."""

    @abstractmethod
    def describe(self) -> str:
        """Where a client finds it: a URL or an address."""

    # --- processes

    def processes(self) -> tuple[ServerProcess, ...]:
        """Its processes, running or not; the first is the main one."""
        return (self.process(self.name),)

    def process(self, name: str) -> ServerProcess:
        if name not in self._processes:
            self._processes[name] = ServerProcess(name, self.directory)
        return self._processes[name]

    @property
    def _processes(self) -> dict[str, ServerProcess]:
        known: dict[str, ServerProcess] = self.__dict__.setdefault("_known_processes", {})
        return known

    @property
    def pid(self) -> int | None:
        """Pid of the main process, None when it is not running."""
        return self.processes()[0].pid

    @property
    def log_file(self) -> Path:
        """Log of the main process."""
        return self.processes()[0].log_file

    # --- life

    def start(self) -> None:
        """Start what is not running yet. Returns before the server is healthy.

        Raises `PortTakenError` when somebody else listens on one of its ports.
        """
        if all(process.pid is not None for process in self.processes()):
            return
        if not any(process.pid is not None for process in self.processes()):
            self._require_free_ports()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.prepare()
        for name, command in self.commands().items():
            if self.process(name).pid is None:
                self.process(name).start(command)

    def wait_healthy(self, deadline_seconds: float | None = None, cancelled: Callable[[], bool] | None = None) -> None:
        """Wait until `check` passes.

        Raises `ServerFailedError` with the log's last lines when a process has died or the deadline has passed.
        """
        seconds = self.start_seconds if deadline_seconds is None else deadline_seconds
        deadline = time.monotonic() + seconds
        while True:
            dead = [process for process in self.processes() if process.pid is None]
            if dead:
                raise ServerFailedError(self._failure("died", dead[0]))
            try:
                self.check()
                return
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            if cancelled is not None and cancelled():
                raise ServerFailedError(f"{self.name}: start was cancelled")
            if time.monotonic() > deadline:
                raise ServerFailedError(
                    self._failure(f"is not healthy after {seconds:.0f} s ({reason})", self.processes()[0])
                )
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stop it in an orderly way, and for good after `stop_seconds`. Nothing of it is left afterwards."""
        for process in reversed(self.processes()):
            process.stop(self.stop_seconds)

    def kill(self) -> None:
        """SIGKILL, as a crash would: for tests of recovery. `start` brings it back."""
        for process in self.processes():
            process.kill()

    def restart(self) -> None:
        """Stop, start and wait until healthy."""
        self.stop()
        self.start()
        self.wait_healthy()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- reports

    def status(self) -> ServerStatus:
        """Its state now; runs the health check once."""
        processes = self.processes()
        running = [process for process in processes if process.pid is not None]
        missing = [process.name for process in processes if process.was_started and process.pid is None]
        if missing:
            state, detail = "dead", f"{', '.join(missing)} died; last lines: streambank logs {self.name}"
        elif not running:
            state, detail = "stopped", ""
        else:
            try:
                self.check()
                state, detail = "healthy", self.describe()
            except Exception as error:
                state, detail = "unhealthy", f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return ServerStatus(
            name=self.name,
            state=state,
            detail=detail,
            ports=self.ports,
            pids=tuple(process.pid for process in running if process.pid is not None),
            memory_bytes=sum(process.memory_bytes() for process in running),
            uptime_seconds=running[0].uptime_seconds() if running else None,
        )

    def _failure(self, what: str, process: ServerProcess) -> str:
        subject = self.name if process.name == self.name else f"{self.name} ({process.name})"
        lines = [line for line in process.log_tail(20 * LOG_LINES_IN_ERRORS) if not JAVA_STACK_LINE.match(line)]
        tail = [line for line in lines if line.strip()][-LOG_LINES_IN_ERRORS:]
        last = "\n".join(f"  | {line}" for line in tail) or "  | (nothing)"
        return f"{subject} {what}. Last lines of {process.log_file}:\n{last}"

    def _require_free_ports(self) -> None:
        for port in self.ports:
            if is_taken(self.settings.host, port.number):
                raise PortTakenError(
                    f"{self.name}: port {port.number} ({port.purpose}) is taken by {listener_on(port.number)}; "
                    f"stop it, or choose another port with {port.variable}"
                )


class FreePorts:
    """Hands out ports that nobody listens on, each once: a server may start long after it got its own.

    ``candidates`` should lie below the range from which outgoing connections take theirs (32768 on Linux).
    """

    def __init__(self, candidates: Iterable[int]) -> None:
        ports = list(candidates)
        random.shuffle(ports)
        self._left = iter(ports)

    def take(self, count: int, host: str = "127.0.0.1") -> list[int]:
        """So many ports. Raises `StackError` when none are left."""
        ports = list(islice((port for port in self._left if not is_taken(host, port)), count))
        if len(ports) < count:
            raise StackError(f"{count} free ports were asked for, {len(ports)} are left")
        return ports


def is_taken(host: str, port: int) -> bool:
    """Whether a server could not listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return True
    return False


def listener_on(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            address, pid = connection.laddr, connection.pid
            if connection.status == psutil.CONN_LISTEN and address and address.port == port and pid:
                return f"{psutil.Process(pid).name()} (pid {pid})"
    return "another process"
