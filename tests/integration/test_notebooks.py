"""Notebooks run from top to bottom, on what the stream stored in Cassandra, and are kept without outputs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.migrations import migrate_cassandra
from infra.settings import PROJECT_ROOT, Settings
from jobs.sinks.cassandra_fraud import FraudFeaturesSink, FraudLabelsSink
from models.simulator import simulate
from tests.support.fraud_history import streamed
from tests.support.ledger_history import project
from tests.support.stack import PrivateStack, variables

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))
ON_HISTORY = [path for path in NOTEBOOKS if path.stem != "01_explore"]
"""The first runs with the README's commands (e2e/test_demo_and_readme.py)."""
HISTORY = {"first_day": "2018-04-01", "last_day": "2018-06-09", "as_of": "2018-06-30"}
DAYS = 70
SMALL: dict[str, dict[str, Any]] = {
    "02_retrain": {
        "train_days": 21,
        "settings": {"n_estimators": 20, "max_depth": 3},
        "fold_starts": [42, 49],
    },
    "03_compare_and_promote": {"fold_start": 49},
}
"""Parameters that make a notebook quick."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all notebooks, in their order: what one registers, the next compares."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    """A small world's history in Cassandra."""
    environment = stack.environment("cassandra")
    migrate_cassandra(environment)
    features, labels = streamed(simulate(customers=100, terminals=200, days=DAYS), 0)
    asyncio.run(project(environment, features, FraudFeaturesSink))
    asyncio.run(project(environment, labels, FraudLabelsSink))
    return environment


def _text(notebook: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", [])) for cell in notebook["cells"] for output in cell.get("outputs", []))


@pytest.mark.stack
@pytest.mark.timeout(600)
@pytest.mark.parametrize("notebook", ON_HISTORY, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, tmp_path: Path, home: Path, environment: Settings) -> None:
    output = tmp_path / notebook.name
    parameters = tmp_path / "parameters.json"
    parameters.write_text(json.dumps({"history": HISTORY} | SMALL[notebook.stem]))
    done = subprocess.run(
        [
            sys.executable, "-m", "papermill", str(notebook), str(output),
            "-f", str(parameters), "--cwd", str(PROJECT_ROOT), "-k", "python3", "--no-progress-bar",
        ],
        env=variables(environment) | {"MPLBACKEND": "agg", "STREAMBANK_HOME": str(home), "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ran = json.loads(output.read_text())
    if notebook.stem == "02_retrain":
        assert "registered version 1 as challenger" in _text(ran)
    else:
        assert "champion is version 1" in _text(ran)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
