"""`streambank demo`, as a newcomer runs it: it works, works again on its own state, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from infra.settings import Settings
from infra.stack.stack import Stack
from tests.support.deployment import STREAMBANK
from tests.support.stack import private_settings, variables, wait_until

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


def _run(environment: Settings, directory: Path, name: str) -> dict[str, dict[str, object]]:
    log, figures = directory / f"{name}.log", directory / f"{name}.json"
    demo = _start(environment, log, "--seconds", "8", "--json", str(figures))
    assert demo.wait(900) == 0, log.read_text()
    report: dict[str, dict[str, object]] = json.loads(figures.read_text())
    assert report["verification"]["ok"] is True, log.read_text()
    assert report["load"]["acknowledged_events"] == report["load"]["sent_events"]
    assert report["load"]["failed_events"] == 0
    assert set(report["latency_ms"]) == {"result", "postgres", "cassandra"}
    text = log.read_text()
    for shown in ("events accepted", "rows: postgres transfers", "API docs", "Flink", "Stopped."):
        assert shown in text
    assert "Traceback" not in text
    return report


def test_demo_runs_twice_on_the_same_state_and_stops_everything(environment: Settings, tmp_path: Path) -> None:
    first = _run(environment, tmp_path, "first")
    assert _left(environment) == []
    second = _run(environment, tmp_path, "second")
    assert _left(environment) == []
    counts = [report["verification"]["figures"] for report in (first, second)]
    assert isinstance(counts[0], dict)
    assert isinstance(counts[1], dict)
    assert counts[1]["postgres transfers"] > counts[0]["postgres transfers"] > 0
    assert counts[0]["refused"] > 0
    assert counts[1]["repeated commands (exists)"] >= counts[0]["postgres accounts"]


@pytest.mark.parametrize(("moment", "by"), [("servers", signal.SIGINT), ("load", signal.SIGTERM)])
def test_an_interrupt_leaves_nothing_running(
    environment: Settings, tmp_path: Path, moment: str, by: signal.Signals
) -> None:
    log = tmp_path / "interrupted.log"
    demo = _start(environment, log, "--seconds", "60")
    said = {"servers": "kafka starting", "load": "payments accepted"}[moment]
    wait_until(lambda: said in log.read_text() or demo.poll() is not None, 600, f"the demo says {said!r}")
    assert demo.poll() is None, log.read_text()
    demo.send_signal(by)
    assert demo.wait(180) == 130, log.read_text()
    assert "Stopped" in log.read_text()
    assert _left(environment) == []


def test_servers_that_were_running_stay(environment: Settings, tmp_path: Path) -> None:
    with Stack(environment, ["valkey"]).servers[0] as valkey:
        log = tmp_path / "demo.log"
        demo = _start(environment, log, "--seconds", "60")
        wait_until(lambda: "kafka starting" in log.read_text(), 300, "the demo starts Kafka")
        demo.send_signal(signal.SIGINT)
        assert demo.wait(180) == 130, log.read_text()
        assert valkey.pid is not None
    assert _left(environment) == []
