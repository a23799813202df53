"""The local stack as a whole: which servers there are, started together and stopped together.

Every module of this package that defines a subclass of `Server` is part of the stack; there is no list to edit.
Servers do not wait for each other: each is started at once and waited for in parallel. One `up` or `down` of a data
directory runs at a time.
"""

from __future__ import annotations

import fcntl
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import infra.stack as package
from infra.settings import Settings
from infra.stack.errors import StackError
from infra.stack.server import Server, ServerStatus

__all__ = ["Stack", "all_server_types", "server_types"]

Report = Callable[[str, str], None]
"""Told (server, what happened): ``starting``, ``healthy after 3.2 s``, ``stopping``, ``stopped``, ``failed``."""


def server_types() -> dict[str, type[Server]]:
    """Every server that the stack always has, by its name, in alphabetical order."""
    return {name: kind for name, kind in all_server_types().items() if not kind.optional}


@cache
def all_server_types() -> dict[str, type[Server]]:
    """Those and the optional ones."""
    found: dict[str, type[Server]] = {}
    for module in iter_modules(package.__path__):
        for value in vars(import_module(f"{package.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Server) and value is not Server:
                found[value.name] = value
    return dict(sorted(found.items()))


class Stack:
    """The servers of one data directory."""

    def __init__(self, settings: Settings, only: Iterable[str] = ()) -> None:
        self.settings = settings
        kinds = all_server_types()
        chosen = list(dict.fromkeys(only))
        unknown = [name for name in chosen if name not in kinds]
        if unknown:
            raise StackError(f"no server is called {', '.join(unknown)}; there are {', '.join(kinds)}")
        if chosen:
            self.servers = [kinds[name](settings) for name in chosen]
        else:
            every = [kind(settings) for kind in kinds.values()]
            self.servers = [server for server in every if not server.optional or _was_started(server)]

    def up(self, report: Report = lambda name, event: None) -> None:
        """Start all that is not running and wait until all are healthy.

        When one fails, or on an interrupt, everything that this call started is stopped again, and the first failure
        (or the interrupt) is raised. What was running before stays.
        """
        started: list[Server] = []
        cancelled = threading.Event()

        def bring_up(server: Server) -> None:
            begin = time.monotonic()
            if cancelled.is_set():
                return
            if server.pid is None or any(process.pid is None for process in server.processes()):
                report(server.name, "starting")
                started.append(server)
                server.start()
            server.wait_healthy(cancelled=cancelled.is_set)
            report(server.name, f"healthy after {time.monotonic() - begin:.1f} s")

        with self._lock(report):
            try:
                self._in_parallel(bring_up, cancelled)
            except BaseException:
                with _uninterrupted():
                    for server in started:
                        report(server.name, "stopping")
                    self._in_parallel(lambda server: server.stop() if server in started else None)
                raise

    def down(self, report: Report = lambda name, event: None) -> None:
        """Stop all servers; state stays in the data directory."""

        def bring_down(server: Server) -> None:
            if _was_started(server):
                report(server.name, "stopping")
                server.stop()
                report(server.name, "stopped")

        with self._lock(report):
            self._in_parallel(bring_down)

    def status(self) -> list[ServerStatus]:
        """The state of each server now."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            return list(pool.map(lambda server: server.status(), self.servers))

    def _in_parallel(self, work: Callable[[Server], None], cancelled: threading.Event | None = None) -> None:
        """Do the work for every server on a thread each, and wait for all of them, whatever happens; the first
        failure cancels the others and is raised."""
        failures: list[BaseException] = []

        def guarded(server: Server) -> None:
            try:
                work(server)
            except BaseException as error:
                failures.append(error)
                if cancelled is not None:
                    cancelled.set()

        with ThreadPoolExecutor(len(self.servers)) as pool:
            try:
                for future in [pool.submit(guarded, server) for server in self.servers]:
                    future.result()
            except BaseException:  # an interrupt: the pool's exit waits for the threads
                if cancelled is not None:
                    cancelled.set()
                raise
        if failures:
            raise failures[0]

    @contextmanager
    def _lock(self, report: Report) -> Iterator[None]:
        directory = self.settings.data_dir
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report("stack", f"waiting for another up or down of {directory}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _was_started(server: Server) -> bool:
    return any(process.was_started for process in server.processes())


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not interrupt the clean-up after the first; stopping has its own deadlines."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
