"""Frames of ledger.commands from plain dicts, and the kernel's answers as plain dicts with Python integers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Events, Frame
from pipelines.ledger.kernel import LedgerKernel

COMMANDS = codec_of("ledger.commands")
U128_MAX = 2**128 - 1

_ACCOUNT = {
    "ledger": 1,
    "code": 1,
    "flags": [],
    "user_data_128": 0,
    "user_data_64": 0,
    "user_data_32": 0,
    "timestamp": 0,
}
_TRANSFER = {
    "debit_account_id": 0, "credit_account_id": 0, "amount": 0, "pending_id": 0, "user_data_128": 0,
    "user_data_64": 0, "user_data_32": 0, "timeout": 0, "ledger": 1, "code": 1, "flags": [], "timestamp": 0,
}  # fmt: skip


def account(account_id: int, **fields: Any) -> dict[str, Any]:
    """A CreateAccount with every field; ledger and code 1 unless given."""
    return {"type": "CreateAccount", "id": account_id, **_ACCOUNT, **fields}


def transfer(transfer_id: int, debit: int = 0, credit: int = 0, amount: int = 0, **fields: Any) -> dict[str, Any]:
    """A CreateTransfer with every field; ledger and code 1 unless given."""
    sides = {"debit_account_id": debit, "credit_account_id": credit, "amount": amount}
    return {"type": "CreateTransfer", "id": transfer_id, **_TRANSFER, **sides, **fields}


def command_frame(commands: Iterable[dict[str, Any]], produced_at: int = 0, shard: int = 0) -> Frame:
    return Frame("ledger.commands", shard, 0, produced_at, None, parse_events(COMMANDS, list(commands)))


def numbers(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rendered rows with decimal strings as integers and flags sorted, ready to compare."""
    return [{name: _number(name, value) for name, value in row.items()} for row in rows]


def _number(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return sorted(value) if name.endswith("flags") else value


def rendered(topic: str, events: Events) -> list[dict[str, Any]]:
    return numbers(render_events(codec_of(topic), events))


class Ledger:
    """A kernel that takes and gives plain dicts."""

    def __init__(self, **capacity: int) -> None:
        self.kernel = LedgerKernel(**({"max_accounts": 1 << 16, "max_transfers": 1 << 18} | capacity))

    def apply(self, commands: Iterable[dict[str, Any]], produced_at: int = 0) -> tuple[list[Any], list[Any]]:
        """(results, events) of one frame."""
        results, events = self.kernel.apply(command_frame(commands, produced_at))
        return rendered(results.topic, results.events), rendered(events.topic, events.events)

    def results(self, *commands: dict[str, Any], produced_at: int = 0) -> list[str]:
        """The results' names of one frame."""
        return [result["result"] for result in self.apply(commands, produced_at)[0]]
