"""Totals per account, ledger and code, recomputed in plain Python from ledger.events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

SIZES = {"hour": 3_600_000_000_000, "day": 86_400_000_000_000}
Key = tuple[str, int, int, int]
"""Grouping, account, ledger, code."""


def recomputed(events: Iterable[dict[str, Any]]) -> dict[tuple[Key, str, int], dict[str, int]]:
    """(key, window, start) -> debits, credits, entries, opening_debits, opening_credits."""
    posted: dict[Key, list[tuple[int, int, int]]] = defaultdict(list)
    for event in events:
        if event["type"] != "TransferCreated" or {"pending", "void_pending_transfer"} & set(event["flags"]):
            continue
        at, amount, ledger = int(event["timestamp"]), int(event["amount"]), int(event["ledger"])
        posted["account", int(event["debit_account_id"]), ledger, 0].append((at, amount, 0))
        posted["account", int(event["credit_account_id"]), ledger, 0].append((at, 0, amount))
        posted["ledger", 0, ledger, 0].append((at, amount, amount))
        posted["code", 0, ledger, int(event["code"])].append((at, amount, amount))
    found = {}
    for key, entries in posted.items():
        for window, size in SIZES.items():
            for start in {at - at % size for at, _, _ in entries}:
                own = [entry for entry in entries if start <= entry[0] < start + size]
                before = [entry for entry in entries if entry[0] < start]
                found[key, window, start] = {
                    "debits": sum(entry[1] for entry in own),
                    "credits": sum(entry[2] for entry in own),
                    "entries": len(own),
                    "opening_debits": sum(entry[1] for entry in before),
                    "opening_credits": sum(entry[2] for entry in before),
                }
    return found


def keyed(total: dict[str, Any]) -> tuple[tuple[Key, str, int], dict[str, int]]:
    """A rendered WindowTotal as in `recomputed`."""
    key = (str(total["grouping"]), int(total["account_id"]), int(total["ledger"]), int(total["code"]))
    names = ("debits", "credits", "entries", "opening_debits", "opening_credits")
    return (key, str(total["window"]), int(total["start"])), {name: int(total[name]) for name in names}
