"""Processes of the stack: found again by pid and start time, stopped with all their children."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.stack.process import Command, ServerProcess
from tests.support.waiting import wait_until

SLEEPER = Command((sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"))
STUBBORN = Command(
    (
        sys.executable,
        "-c",
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n",
    )
)
LEADERLESS = Command(
    (
        sys.executable,
        "-c",
        "import ctypes, os, threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), os._exit(7))).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n",
    )
)
"""Its first thread ends before the others, as when a process with threads dies: for that long it has no code yet."""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess("sleeper", tmp_path)
    yield process
    process.stop(0)


def lines(process: ServerProcess) -> list[str]:
    return wait_until(lambda: process.log_tail(5), 30, "the process writes")


def test_it_is_found_by_another_command_and_stopped(process: ServerProcess, tmp_path: Path) -> None:
    process.start(SLEEPER)
    assert lines(process) == ["ready"]
    other = ServerProcess("sleeper", tmp_path)
    assert other.pid == process.pid
    assert other.memory_bytes() > 1 << 20
    assert other.stop(30)
    assert process.pid is None
    assert not process.was_started
    assert process.memory_bytes() == 0
    assert process.uptime_seconds() is None


def test_it_is_in_a_session_of_its_own(process: ServerProcess) -> None:
    process.start(SLEEPER)
    assert process.pid is not None
    assert os.getsid(process.pid) == process.pid != os.getsid(0)


def test_the_code_of_what_has_ended_is_told_however_early_one_asks(process: ServerProcess) -> None:
    process.start(LEADERLESS)
    wait_until(lambda: process.pid is None, 30, "the first thread has ended")
    assert process.exit_code == 7


def test_what_ignores_the_stop_signal_is_killed_with_its_children(process: ServerProcess) -> None:
    process.start(STUBBORN)
    child = psutil.Process(int(lines(process)[0]))
    assert not process.stop(0.2)
    assert process.pid is None
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10, "the child is gone")


def test_a_child_that_outlived_a_crash_is_stopped_too(process: ServerProcess) -> None:
    process.start(STUBBORN)
    child = psutil.Process(int(lines(process)[0]))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: process.pid is None, 10, "the process is gone")
    assert child.is_running()
    process.stop(1)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10, "the child is gone")


def test_a_death_leaves_the_pid_file_and_the_log(process: ServerProcess) -> None:
    process.start(Command((sys.executable, "-c", "print('out of money')")))
    wait_until(lambda: process.pid is None, 30, "the process ends")
    assert process.was_started
    assert process.log_tail(3) == ["out of money"]


def test_the_log_tail_is_of_the_latest_start(process: ServerProcess) -> None:
    for word in ("first", "second"):
        process.start(Command((sys.executable, "-c", f"print('{word}')")))
        wait_until(lambda: process.pid is None, 30, "the process ends")
    assert process.log_tail(5) == ["second"]
    assert process.log_file.read_text().splitlines() == ["first", "second"]


@pytest.mark.parametrize("age", [-3600.0, 3600.0])
def test_a_pid_that_belongs_to_another_process_by_now_is_stale(process: ServerProcess, age: float) -> None:
    """This test's own process stands for the other: it must be neither found nor signalled."""
    mine = psutil.Process()
    record = {"pid": mine.pid, "started_at": mine.create_time() + age, "log_offset": 0, "stop_signal": signal.SIGTERM}
    process.pid_file.write_text(json.dumps(record))
    assert process.pid is None
    process.kill()
    assert process.stop(5)
    assert not process.pid_file.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "12", '{"pid": "x"}', '{"pid": 1}'])
def test_a_damaged_pid_file_is_stale(process: ServerProcess, content: str) -> None:
    process.pid_file.write_text(content)
    assert process.pid is None
    assert process.stop(1)
    process.start(SLEEPER)
    assert process.pid is not None


def test_the_environment_is_changed_as_the_command_says(
    process: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLASSPATH", "wrong.jar")
    script = "import os; print(os.environ.get('CLASSPATH'), os.environ['LEDGER'])"
    process.start(Command((sys.executable, "-c", script), environment={"CLASSPATH": None, "LEDGER": "1"}))
    assert lines(process) == ["None 1"]
