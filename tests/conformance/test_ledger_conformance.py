"""The ledger against cases recorded from a running TigerBeetle server on random operations.

Each step is one batch with the result of every event; after the last step come the balances of each account and the
stored amount of each transfer. The cases run on the model too, so that it may judge the kernel elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from infra.cli import replay
from tests.support.ledger_frames import Ledger, account, numbers, transfer
from tests.support.ledger_model import BALANCES, LedgerModel

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("ledger.json").read_text())

Batch = list[dict[str, Any]]


def commands_of(step: dict[str, Any]) -> Batch:
    commands = []
    for event in step["events"]:
        fields = {name: value for name, value in event.items() if name not in ("id", "debit", "credit")}
        if step["op"] == "create_accounts":
            commands.append(account(event["id"], **fields))
        else:
            commands.append(transfer(event["id"], event["debit"], event["credit"], **fields))
    return commands


def check_state(case: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    balances = {
        str(row["id"]): {name: row[name] for name in (*BALANCES, "closed")} for row in rows if row["type"] == "Account"
    }
    amounts = {str(row["id"]): row["amount"] for row in rows if row["type"] == "Transfer"}
    assert balances == case["expected_balances"]
    assert amounts == {key: int(value) for key, value in case["expected_amounts"].items()}


def test_there_are_a_hundred_cases() -> None:
    assert len(CASES) == 100


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_kernel(case: dict[str, Any]) -> None:
    ledger = Ledger()
    for step in case["steps"]:
        assert ledger.results(*commands_of(step)) == step["expect"]
    check_state(case, list(ledger.kernel.state_rows()))
    ledger.kernel.audit()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_model(case: dict[str, Any]) -> None:
    model = LedgerModel()
    for step in case["steps"]:
        results, _ = model.apply(0, commands_of(step))
        assert [result["result"] for result in results] == step["expect"]
        model.check_invariants()
    check_state(case, model.state_rows())


@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case["name"])
def test_replay_command(case: dict[str, Any], tmp_path: Path) -> None:
    """Through `streambank replay`, as a user would run it: fields that are 0 left out, big integers as strings."""
    app = typer.Typer()
    replay.register(app)
    source, out, state = tmp_path / "in.ndjson", tmp_path / "out.ndjson", tmp_path / "state.ndjson"
    frames = [
        [
            {
                name: str(value) if isinstance(value, int) and value > 2**53 else value
                for name, value in command.items()
                if value not in (0, []) or name in ("id", "ledger", "code")
            }
            for command in commands_of(step)
        ]
        for step in case["steps"]
    ]
    source.write_text("".join(json.dumps({"events": events}) + "\n" for events in frames))
    run = CliRunner().invoke(app, ["ledger", str(source), "--out", str(out), "--state", str(state)])
    assert run.exit_code == 0, run.output
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [[event["result"] for event in answer["events"]] for answer in answers] == [
        step["expect"] for step in case["steps"]
    ]
    check_state(case, numbers(json.loads(line) for line in state.read_text().splitlines()))
