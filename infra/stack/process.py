"""One operating-system process of a server: started detached, found again by its pid file, stopped for good.

A process is started in its own session, so it outlives the command that started it and a Ctrl-C at the terminal does
not reach it. What identifies it later is its pid together with its start time: a pid that the system has given to
another process since is recognised as stale. Stopping is SIGTERM to the process, then SIGKILL to the whole process
group after a deadline, so no child outlives it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from infra.settings import PROJECT_ROOT, Settings

__all__ = ["Command", "ServerProcess", "streambank_command"]

START_TIME_TOLERANCE_SECONDS = 1.0
LOG_KEPT_BYTES = 8 << 20
EXIT_CODE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute. ``environment`` is put over the caller's; a value of None removes the variable.

    ``user_id`` is the user to run as when the caller is root (some servers refuse root).
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str | None] = field(default_factory=dict)
    working_directory: Path | None = None
    user_id: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM


def streambank_command(settings: Settings, *arguments: str, variables: Mapping[str, str] | None = None) -> Command:
    """`streambank ARGUMENTS` in this interpreter, with these settings and further ``variables``."""
    return Command(
        (sys.executable, "-c", "from infra.cli import main; main()", *arguments),
        environment={**settings.variables(), **(variables or {})},
        working_directory=PROJECT_ROOT,
    )


@dataclass(frozen=True, slots=True)
class _Record:
    """What a pid file holds. ``log_offset`` is where the log of this start begins."""

    pid: int
    started_at: float
    log_offset: int
    stop_signal: int


class ServerProcess:
    """A process known by its name and the directory that holds ``<name>.pid`` and ``<name>.log``."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.pid_file = directory / f"{name}.pid"
        self.log_file = directory / f"{name}.log"
        self._child: subprocess.Popen[bytes] | None = None

    # --- what is there

    def find(self) -> psutil.Process | None:
        """The running process, or None when it is gone or its pid belongs to another process by now."""
        record = self._record()
        if record is None:
            return None
        try:
            process = psutil.Process(record.pid)
            same = abs(process.create_time() - record.started_at) < START_TIME_TOLERANCE_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    @property
    def pid(self) -> int | None:
        process = self.find()
        return None if process is None else process.pid

    @property
    def was_started(self) -> bool:
        """A pid file is there: it was started and not stopped since, so when it is not running it has died."""
        return self.pid_file.exists()

    @property
    def exit_code(self) -> int | None:
        """Of the process that this object started last, once it has ended: negative for a signal. None before, and for
        one that another program started."""
        if self._child is None:
            return None
        if self.find() is None:
            # Gone, but its code may not be there yet: its other threads end after its first one, and it is `_spawn`'s
            # thread that reaps it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._child.wait(EXIT_CODE_SECONDS)
        return self._child.poll()

    def memory_bytes(self) -> int:
        """Proportional memory of the process and all its children (pages shared among them counted once); 0 when it
        is not running."""
        process = self.find()
        if process is None:
            return 0
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += _memory_bytes(member)
        return total

    def cpu_seconds(self) -> float:
        """CPU time so far of the process and its children, of those that ended too; 0 when it is not running."""
        process = self.find()
        total = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in [process, *process.children(recursive=True)] if process else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    used = member.cpu_times()
                    total += used.user + used.system + used.children_user + used.children_system
        return total

    def uptime_seconds(self) -> float | None:
        process = self.find()
        if process is None:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            return time.time() - process.create_time()
        return None

    def log_tail(self, lines: int) -> list[str]:
        """The last lines written since the latest start."""
        record = self._record()
        try:
            with self.log_file.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                first = max(record.log_offset if record else 0, size - 400 * lines)
                log.seek(min(first, size))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return []
        return text.splitlines()[-lines:]

    # --- starting and stopping

    def start(self, command: Command) -> None:
        """Start it and write its pid file. An interrupt in between cannot leave a process without a pid file: the
        work is done on a thread, which no signal handler enters, and is always waited for."""
        failure: list[BaseException] = []

        def spawn() -> None:
            try:
                self._spawn(command)
            except BaseException as error:
                failure.append(error)

        spawner = threading.Thread(target=spawn, name=f"start-{self.name}")
        try:
            spawner.start()
            spawner.join()
        except BaseException:
            with contextlib.suppress(RuntimeError):
                spawner.join()
            raise
        if failure:
            raise failure[0]

    def _spawn(self, command: Command) -> None:
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_KEPT_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        environment = dict(os.environ)
        for name, value in command.environment.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        other_user = command.user_id is not None and os.geteuid() == 0
        with self.log_file.open("ab") as log:
            log_offset = log.tell()
            child = subprocess.Popen(
                command.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=command.working_directory,
                start_new_session=True,
                user=command.user_id if other_user else None,
                group=command.user_id if other_user else None,
                extra_groups=[] if other_user else None,
            )
        self._child = child
        # Reaps it whenever it ends, as long as this process lives.
        threading.Thread(target=child.wait, name=f"reap-{self.name}", daemon=True).start()
        try:
            started_at = psutil.Process(child.pid).create_time()
        except psutil.NoSuchProcess:
            started_at = 0.0
        record = _Record(child.pid, started_at, log_offset, int(command.stop_signal))
        temporary = self.pid_file.with_suffix(".pid.new")
        temporary.write_text(json.dumps(asdict(record)))
        temporary.replace(self.pid_file)

    def signal_stop(self) -> None:
        """Ask it to stop, without waiting."""
        process, record = self.find(), self._record()
        if process is not None and record is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(record.stop_signal)

    def stop(self, deadline_seconds: float) -> bool:
        """Stop it and remove its pid file; True when it ended by itself before the deadline (or was not running).

        After this nothing of its process group is left.
        """
        self.signal_stop()
        orderly = self._wait_gone(deadline_seconds)
        self.kill()
        self.pid_file.unlink(missing_ok=True)
        return orderly

    def kill(self) -> None:
        """SIGKILL to the process, its children and its process group, as a crash would; the pid file stays, so it
        counts as died."""
        record = self._record()
        if record is None:
            return
        members = set(self._group_members(record.pid, record.started_at))
        leader = self.find()
        if leader is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                members |= {leader, *leader.children(recursive=True)}
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(list(members), timeout=10)

    def _wait_gone(self, deadline_seconds: float) -> bool:
        deadline = time.monotonic() + deadline_seconds
        while self.find() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _group_members(self, group: int, started_at: float) -> Iterator[psutil.Process]:
        """Live processes of the group that started with or after its leader. The group's number is not reused while
        a member lives, and the start time rules out a later group of the same number."""
        for member in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if (
                    os.getpgid(member.pid) == group
                    and member.create_time() > started_at - START_TIME_TOLERANCE_SECONDS
                    and (member.pid != group or abs(member.create_time() - started_at) < START_TIME_TOLERANCE_SECONDS)
                    and member.status() != psutil.STATUS_ZOMBIE
                ):
                    yield member

    def _record(self) -> _Record | None:
        try:
            record = json.loads(self.pid_file.read_text())
            return _Record(
                int(record["pid"]),
                float(record["started_at"]),
                int(record["log_offset"]),
                int(record["stop_signal"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _memory_bytes(process: psutil.Process) -> int:
    """Proportional set size where the kernel tells it (Linux, own processes), else the resident set size."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)
