"""What a newcomer meets: `streambank demo` works, also after an interrupted one; every command of the README runs on
the system that it keeps running; and it leaves nothing.

The README's blocks marked ``sh`` run in one shell in the order of the page, so that a later one may use what an earlier
one set. Only the addresses of the local stack are replaced by those of the test's; `make demo` and `make test` are
steps of CI.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.settings import PROJECT_ROOT, Settings
from infra.stack.stack import Stack
from infra.stack.valkey import Valkey
from tests.support.stack import SERVER_TYPES, STREAMBANK, PrivateStack, private_settings, variables, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500)]

PAYMENTS_PER_SECOND = 300
README = PROJECT_ROOT / "README.md"
BLOCK = re.compile(r"^```sh( background)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _start(environment: Settings, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [STREAMBANK, "demo", "--rate", str(PAYMENTS_PER_SECOND), *arguments],
            env=variables(environment),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )


def _left(environment: Settings) -> list[str]:
    """Command lines of processes that work on this demo's data directory, sorted."""
    marks = (str(environment.data_dir), f"STREAMBANK_DATA_DIR={environment.data_dir}")
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            command = " ".join(process.cmdline())
            if marks[0] in command or process.environ().get("STREAMBANK_DATA_DIR") == str(environment.data_dir):
                found.append(command)
        except psutil.Error:
            continue
    return sorted(found)


def _interrupt(environment: Settings, log: Path, said: str, by: signal.Signals) -> None:
    """Start a demo and end it with a signal as soon as its output matches ``said``."""
    with _start(environment, log, "--seconds", "60") as demo:
        wait_until(lambda: re.search(said, log.read_text()) or demo.poll() is not None, 600, f"the demo says {said!r}")
        assert demo.poll() is None, log.read_text()
        demo.send_signal(by)
        assert demo.wait(180) == 130, log.read_text()
    assert "Stopped" in log.read_text()


def test_an_interrupt_while_servers_start_stops_what_the_demo_started(tmp_path: Path) -> None:
    """A server that was already running stays."""
    environment = private_settings(tmp_path / "data")
    with Stack(environment, ["valkey"]).servers[0] as valkey:
        _interrupt(environment, tmp_path / "servers.log", "kafka starting", signal.SIGINT)
        assert valkey.pid is not None
    assert _left(environment) == []


def test_the_demo_goes_on_from_an_interrupted_one_and_the_readme_goes_on_from_it(
    stack: PrivateStack, tmp_path: Path
) -> None:
    """Of the servers all but Valkey are there already: what a demo has started, and only that, is gone with it."""
    environment = stack.environment(*(kind.name for kind in SERVER_TYPES))
    valkey = stack.get(Valkey)
    valkey.stop()
    before = _left(environment)
    _interrupt(environment, tmp_path / "load.log", r": [1-9][0-9,]* of [0-9,]+ payments accepted", signal.SIGTERM)
    assert _left(environment) == before
    log, figures = tmp_path / "whole.log", tmp_path / "whole.json"
    demo = _start(environment, log, "--seconds", "8", "--json", str(figures), "--keep")
    try:
        wait_until(lambda: "still running" in log.read_text() or demo.poll() is not None, 900, "the demo has run")
        assert demo.poll() is None, log.read_text()
        _check_report(json.loads(figures.read_text()), log.read_text())
        assert valkey.pid is not None
        _run_readme(environment, tmp_path)
    finally:
        demo.communicate(b"\n", timeout=180)
    assert demo.returncode == 0, log.read_text()
    assert _left(environment) == before
    assert "Stopped." in log.read_text()


def _check_report(report: dict[str, Any], text: str) -> None:
    assert report["verification"]["ok"] is True, text
    assert report["load"]["acknowledged_events"] == report["load"]["sent_events"]
    assert report["load"]["failed_events"] == 0
    assert set(report["latency_ms"]) == {"result", "postgres", "cassandra"}
    found = report["verification"]["figures"]
    assert found["postgres transfers"] > 0
    assert found["refused"] > 0
    assert found["repeated commands (exists)"] > 0, "the interrupted demo had opened the same accounts"
    for shown in ("events accepted", "rows: postgres transfers", "API docs", "Flink"):
        assert shown in text
    assert "Traceback" not in text


def _run_readme(environment: Settings, directory: Path) -> None:
    blocks = [(bool(background), body) for background, body in BLOCK.findall(README.read_text(encoding="utf-8"))]
    running = _left(environment)
    for command in (line for background, body in blocks if background for line in body.splitlines()):
        arguments = command.removeprefix("streambank ")
        assert any(line.endswith(f" {arguments}") for line in running), f"{command} does not run: {running}"
    script = "set -eu -o pipefail\n" + "\n".join(body for background, body in blocks if not background)
    script = script.replace("http://127.0.0.1:8080", environment.api_url).replace("/tmp/", f"{directory}/")  # noqa: S108
    script = script.replace("streambank submit ledger\n", "")  # the demo has; a second one is refused
    done = subprocess.run(
        ["bash", "-x", "-c", script],
        cwd=PROJECT_ROOT,
        env={**variables(environment), "COLUMNS": "200", "PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    out = done.stdout
    assert out.count('"created"') >= 4, out  # two accounts and a transfer through the api, and the replayed ones
    assert '"credits_posted":1250' in out.replace(" ", ""), out
    explored = (directory / "01_explore.ipynb").read_text()
    for printed in ("average precision", "XGBoost", "scenario"):
        assert printed in explored
