"""Every command of the README runs as it is written, on the real servers.

The blocks marked ``sh`` run in one shell in the order of the page, so that a later one may use what an earlier one set.
Only the addresses of the local stack are replaced by those of the test's; `make demo` and `make test` are steps of CI.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.deployment import Deployment
from bench.soak_ledger import ledger_deployment
from infra.settings import PROJECT_ROOT, Settings
from tests.support.stack import PrivateStack, variables

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

README = PROJECT_ROOT / "README.md"
BLOCK = re.compile(r"^```sh( background)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[bool, str]]:
    return [(bool(background), body) for background, body in BLOCK.findall(README.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    return stack.environment("kafka", "registry", "postgres", "cassandra", "valkey", "flink")


@pytest.fixture(scope="module")
def deployment(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    own = {"data_dir": environment.data_dir}  # commands of the page meet servers and API in one place
    with ledger_deployment(environment, tmp_path_factory.mktemp("services"), api_workers=1, more=own) as running:
        yield running


def test_background_commands_are_those_that_the_tests_run(tmp_path: Path) -> None:
    listed = [line.split()[1:] for background, body in blocks() if background for line in body.splitlines()]
    tested = list(ledger_deployment(Settings(), tmp_path).arguments.values())
    assert [words[:2] for words in listed] == [list(words[: len(listed[i])]) for i, words in enumerate(tested)]


def test_every_command_runs(deployment: Deployment, tmp_path: Path) -> None:
    environment = deployment.settings
    script = "set -eu -o pipefail\n" + "\n".join(body for background, body in blocks() if not background)
    script = script.replace("http://127.0.0.1:8080", environment.api_url).replace("/tmp/", f"{tmp_path}/")  # noqa: S108
    script = script.replace("streambank submit ledger\n", "")  # the deployment has; a second one is refused
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
