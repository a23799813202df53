"""`streambank demo`, as a newcomer runs it: it works, also after an interrupted one, and leaves nothing running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from infra.settings import Settings
from infra.stack.stack import Stack
from tests.support.stack import STREAMBANK, private_settings, variables, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500)]

PAYMENTS_PER_SECOND = 300


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return private_settings(tmp_path_factory.mktemp("demo"))


def _start(environment: Settings, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [STREAMBANK, "demo", "--rate", str(PAYMENTS_PER_SECOND), *arguments],
            env=variables(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _left(environment: Settings) -> list[str]:
    """Command lines of processes that still work on this demo's data directory."""
    marks = (str(environment.data_dir), f"STREAMBANK_DATA_DIR={environment.data_dir}")
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            command = " ".join(process.cmdline())
            if marks[0] in command or process.environ().get("STREAMBANK_DATA_DIR") == str(environment.data_dir):
                found.append(f"{process.pid} {command[:200]}")
        except psutil.Error:
            continue
    return found


def _interrupt(environment: Settings, log: Path, said: str, by: signal.Signals) -> None:
    """Start a demo and end it with a signal as soon as its output matches ``said``."""
    demo = _start(environment, log, "--seconds", "60")
    wait_until(lambda: re.search(said, log.read_text()) or demo.poll() is not None, 600, f"the demo says {said!r}")
    assert demo.poll() is None, log.read_text()
    demo.send_signal(by)
    assert demo.wait(180) == 130, log.read_text()
    assert "Stopped" in log.read_text()


def test_an_interrupt_while_servers_start_stops_what_the_demo_started(environment: Settings, tmp_path: Path) -> None:
    """A server that was already running stays."""
    with Stack(environment, ["valkey"]).servers[0] as valkey:
        _interrupt(environment, tmp_path / "servers.log", "kafka starting", signal.SIGINT)
        assert valkey.pid is not None
    assert _left(environment) == []


def test_the_demo_goes_on_from_the_state_of_one_that_was_interrupted(environment: Settings, tmp_path: Path) -> None:
    _interrupt(environment, tmp_path / "load.log", r": [1-9][0-9,]* of [0-9,]+ payments accepted", signal.SIGTERM)
    assert _left(environment) == []
    log, figures = tmp_path / "whole.log", tmp_path / "whole.json"
    demo = _start(environment, log, "--seconds", "8", "--json", str(figures))
    assert demo.wait(900) == 0, log.read_text()
    assert _left(environment) == []
    report = json.loads(figures.read_text())
    assert report["verification"]["ok"] is True, log.read_text()
    assert report["load"]["acknowledged_events"] == report["load"]["sent_events"]
    assert report["load"]["failed_events"] == 0
    assert set(report["latency_ms"]) == {"result", "postgres", "cassandra"}
    found = report["verification"]["figures"]
    assert found["postgres transfers"] > 0
    assert found["refused"] > 0
    assert found["repeated commands (exists)"] > 0, "the interrupted demo had opened the same accounts"
    text = log.read_text()
    for shown in ("events accepted", "rows: postgres transfers", "API docs", "Flink", "Stopped."):
        assert shown in text
    assert "Traceback" not in text
