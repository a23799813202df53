"""Notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.settings import PROJECT_ROOT

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))
SMALL: dict[str, dict[str, Any]] = {
    "01_explore": {
        "customers": 150,
        "terminals": 1500,
        "days": 40,
        "train_days": [10, 17],
        "delay_days": 3,
        "test_days": 7,
    },
    "02_retrain": {
        "customers": 120,
        "train_days": 14,
        "settings": {"n_estimators": 20, "max_depth": 3},
        "fold_starts": [129, 136],
    },
    "03_compare_and_promote": {"customers": 120},
}
"""Parameters that make a notebook quick."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all notebooks, in their order: what one registers, the next compares."""
    return tmp_path_factory.mktemp("home")


def _text(notebook: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", [])) for cell in notebook["cells"] for output in cell.get("outputs", []))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, tmp_path: Path, home: Path) -> None:
    output = tmp_path / notebook.name
    parameters = tmp_path / "parameters.json"
    parameters.write_text(json.dumps(SMALL[notebook.stem]))
    done = subprocess.run(
        [
            sys.executable, "-m", "papermill", str(notebook), str(output),
            "-f", str(parameters), "--cwd", str(PROJECT_ROOT), "-k", "python3", "--no-progress-bar",
        ],
        env=os.environ | {"MPLBACKEND": "agg", "STREAMBANK_HOME": str(home), "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ran = json.loads(output.read_text())
    if notebook.stem == "01_explore":
        printed = _text(ran)
        assert "average precision" in printed
        assert "XGBoost" in printed
        assert "scenario" in printed
    elif notebook.stem == "02_retrain":
        assert "registered version 1 as challenger" in _text(ran)
    else:
        assert "champion is version 1" in _text(ran)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
