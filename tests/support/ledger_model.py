"""The ledger's specification as plain Python: dicts, one event after another, no cleverness.

The compiled kernel is held against it. A chain is undone by keeping a copy of everything; results are names; events
and answers are dicts with the schema's field names.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

U128_MAX = 2**128 - 1
ACCOUNT_FLAGS = {
    "linked", "debits_must_not_exceed_credits", "credits_must_not_exceed_debits", "history", "imported", "closed",
}  # fmt: skip
TRANSIENT = {
    "pending_transfer_not_found", "debit_account_already_closed", "credit_account_already_closed",
    "debit_account_not_found", "credit_account_not_found", "exceeds_credits", "exceeds_debits",
}  # fmt: skip
BALANCES = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
Event = dict[str, Any]


@dataclass
class LedgerModel:
    """``accounts`` and ``transfers`` by id in timestamp order, ``burned`` ids, the clock in nanoseconds."""

    accounts: dict[int, Event] = field(default_factory=dict)
    transfers: dict[int, Event] = field(default_factory=dict)
    burned: list[int] = field(default_factory=list)
    clock: int = 0

    def apply(self, produced_at: int, commands: list[Event]) -> tuple[list[Event], list[Event]]:
        """One frame; (results, events)."""
        self.clock = max(self.clock, produced_at * 1000)
        events = self._expire()
        results: list[Event] = []
        start = 0
        while start < len(commands):
            end = start + 1
            while end < len(commands) and commands[end]["type"] == commands[start]["type"]:
                end += 1
            self._apply_run(commands[start:end], self.clock + start, results, events)
            start = end
        self.clock += len(commands)
        return results, events

    def _expire(self) -> list[Event]:
        due = [
            (transfer["timestamp"] + transfer["timeout"] * 10**9, transfer["timestamp"], transfer)
            for transfer in self.transfers.values()
            if transfer.get("pending_status") == "pending" and transfer["timeout"]
        ]
        events = []
        for expires_at, _, transfer in sorted(due, key=lambda entry: entry[:2]):
            if expires_at > self.clock:
                continue
            transfer["pending_status"] = "expired"
            self._release(transfer)
            events.append(
                {
                    "type": "TransferExpired",
                    "pending_id": transfer["id"],
                    **{
                        name: transfer[name]
                        for name in ("debit_account_id", "credit_account_id", "amount", "ledger", "code")
                    },
                    "timestamp": expires_at,
                    **self._balances(transfer),
                }
            )
        return events

    def _apply_run(self, run: list[Event], before: int, results: list[Event], events: list[Event]) -> None:
        chain: list[int] = []
        broken = False
        kept: tuple[Any, ...] = ()
        for i, command in enumerate(run):
            timestamp = before + i + 1
            if "linked" in command["flags"] and not chain:
                kept = (copy.deepcopy(self.accounts), copy.deepcopy(self.transfers), list(events))
            in_chain = bool(chain) or "linked" in command["flags"]
            code, stamp = self._apply_one(command, run, i, broken, timestamp, before + len(run), events)
            kind = "AccountResult" if command["type"] == "CreateAccount" else "TransferResult"
            results.append({"type": kind, "id": command["id"], "result": code, "timestamp": stamp})
            if in_chain:
                chain.append(len(results) - 1)
            if code != "created" and in_chain and not broken:
                broken = True
                self.accounts, self.transfers, events[:] = kept
                for position in chain[:-1]:
                    results[position]["result"] = "linked_event_failed"
                    results[position]["timestamp"] = timestamp - (chain[-1] - position)
            if code in TRANSIENT and command["type"] == "CreateTransfer":
                self.burned.append(command["id"])
            if in_chain and ("linked" not in command["flags"] or code == "linked_event_chain_open"):
                chain, broken = [], False

    def _apply_one(
        self, command: Event, run: list[Event], i: int, broken: bool, timestamp: int, run_end: int, events: list[Event]
    ) -> tuple[str, int]:
        flags = command["flags"]
        if "linked" in flags and i == len(run) - 1:
            return "linked_event_chain_open", timestamp
        if broken:
            return "linked_event_failed", timestamp
        imported = "imported" in flags
        if imported != ("imported" in run[0]["flags"]):
            return "imported_event_not_expected" if imported else "imported_event_expected", timestamp
        if imported:
            if not 0 < command["timestamp"] < 2**63:
                return "imported_event_timestamp_out_of_range", timestamp
            if command["timestamp"] >= run_end:
                return "imported_event_timestamp_must_not_advance", timestamp
        elif command["timestamp"]:
            return "timestamp_must_be_zero", timestamp
        record = {**command, "timestamp": command["timestamp"] if imported else timestamp}
        if command["type"] == "CreateAccount":
            code, existing = self._create_account(record, events), self.accounts.get(command["id"])
        else:
            code, existing = self._create_transfer(record, events), self.transfers.get(command["id"])
        if code in ("created", "exists"):
            assert existing is not None
            return code, existing["timestamp"]
        return code, timestamp

    # --- accounts

    def _create_account(self, a: Event, events: list[Event]) -> str:
        if a["id"] == 0:
            return "id_must_not_be_zero"
        if a["id"] == U128_MAX:
            return "id_must_not_be_int_max"
        existing = self.accounts.get(a["id"])
        if existing is not None:
            if set(a["flags"]) != set(existing["flags"]):
                return "exists_with_different_flags"
            for name in ("user_data_128", "user_data_64", "user_data_32", "ledger", "code"):
                if a[name] != existing[name]:
                    return f"exists_with_different_{name}"
            return "exists"
        if {"debits_must_not_exceed_credits", "credits_must_not_exceed_debits"} <= set(a["flags"]):
            return "flags_are_mutually_exclusive"
        if a["ledger"] == 0:
            return "ledger_must_not_be_zero"
        if a["code"] == 0:
            return "code_must_not_be_zero"
        if "imported" in a["flags"] and self._regresses(a, self.accounts, self.transfers):
            return "imported_event_timestamp_must_not_regress"
        self.accounts[a["id"]] = {**a, "flags": set(a["flags"]), **dict.fromkeys(BALANCES, 0)}
        events.append({**a, "type": "AccountCreated"})
        return "created"

    @staticmethod
    def _regresses(record: Event, own: dict[int, Event], others: dict[int, Event]) -> bool:
        latest = max((found["timestamp"] for found in own.values()), default=0)
        return record["timestamp"] <= latest or any(
            found["timestamp"] == record["timestamp"] for found in others.values()
        )

    # --- transfers

    def _create_transfer(self, t: Event, events: list[Event]) -> str:
        if t["id"] == 0:
            return "id_must_not_be_zero"
        if t["id"] == U128_MAX:
            return "id_must_not_be_int_max"
        if t["id"] in self.transfers:
            return self._exists(t, self.transfers[t["id"]])
        if t["id"] in self.burned:
            return "id_already_failed"
        if {"post_pending_transfer", "void_pending_transfer"} & set(t["flags"]):
            return self._post_or_void(t, events)
        return self._plain_or_pending(t, events)

    def _exists(self, t: Event, e: Event) -> str:
        if set(t["flags"]) != set(e["flags"]):
            return "exists_with_different_flags"
        for name in ("pending_id", "timeout"):
            if t[name] != e[name]:
                return f"exists_with_different_{name}"
        asked = dict(t)
        post, void = "post_pending_transfer" in t["flags"], "void_pending_transfer" in t["flags"]
        if post or void:
            p = self.transfers[e["pending_id"]]
            if (post and t["amount"] == U128_MAX) or (void and t["amount"] == 0):
                asked["amount"] = p["amount"]
            inherited = ("debit_account_id", "credit_account_id", "ledger", "code")
            for name in (*inherited, "user_data_128", "user_data_64", "user_data_32"):
                asked[name] = t[name] or p[name]
        balancing = {"balancing_debit", "balancing_credit"} & set(t["flags"])
        for name in (
            "debit_account_id", "credit_account_id", "amount", "user_data_128", "user_data_64", "user_data_32",
            "ledger", "code",
        ):  # fmt: skip
            if name == "amount" and balancing:
                if asked["amount"] < e["amount"]:
                    return "exists_with_different_amount"
            elif asked[name] != e[name]:
                return f"exists_with_different_{name}"
        return "exists"

    def _post_or_void(self, t: Event, events: list[Event]) -> str:
        flags = set(t["flags"])
        void = "void_pending_transfer" in flags
        if {"post_pending_transfer", "void_pending_transfer"} <= flags or flags & {
            "pending", "balancing_debit", "balancing_credit", "closing_debit", "closing_credit",
        }:  # fmt: skip
            return "flags_are_mutually_exclusive"
        if t["pending_id"] == 0:
            return "pending_id_must_not_be_zero"
        if t["pending_id"] == U128_MAX:
            return "pending_id_must_not_be_int_max"
        if t["pending_id"] == t["id"]:
            return "pending_id_must_be_different"
        if t["timeout"]:
            return "timeout_reserved_for_pending_transfer"
        p = self.transfers.get(t["pending_id"])
        if p is None:
            return "pending_transfer_not_found"
        if "pending" not in p["flags"]:
            return "pending_transfer_not_pending"
        for name in ("debit_account_id", "credit_account_id", "ledger", "code"):
            if t[name] and t[name] != p[name]:
                return f"pending_transfer_has_different_{name}"
        amount = t["amount"]
        if (void and amount == 0) or (not void and amount == U128_MAX):
            amount = p["amount"]
        if amount > p["amount"]:
            return "exceeds_pending_transfer_amount"
        if void and amount < p["amount"]:
            return "pending_transfer_has_different_amount"
        if p["pending_status"] == "posted":
            return "pending_transfer_already_posted"
        if p["pending_status"] == "voided":
            return "pending_transfer_already_voided"
        if p["pending_status"] == "expired":
            return "pending_transfer_expired"
        if "imported" in flags and self._regresses(t, self.transfers, self.accounts):
            return "imported_event_timestamp_must_not_regress"
        debit, credit = self.accounts[p["debit_account_id"]], self.accounts[p["credit_account_id"]]
        if not void:
            if "closed" in debit["flags"]:
                return "debit_account_already_closed"
            if "closed" in credit["flags"]:
                return "credit_account_already_closed"
        stored = {**t, "amount": amount}
        for name in ("debit_account_id", "credit_account_id", "ledger", "code"):
            stored[name] = p[name]
        for name in ("user_data_128", "user_data_64", "user_data_32"):
            stored[name] = t[name] or p[name]
        if void:
            p["pending_status"] = "voided"
            self._release(p)
        else:
            p["pending_status"] = "posted"
            self._release(p)
            debit["debits_posted"] += amount
            credit["credits_posted"] += amount
        self._store(stored, events)
        return "created"

    def _release(self, pending: Event) -> None:
        debit = self.accounts[pending["debit_account_id"]]
        credit = self.accounts[pending["credit_account_id"]]
        debit["debits_pending"] -= pending["amount"]
        credit["credits_pending"] -= pending["amount"]
        if "closing_debit" in pending["flags"]:
            debit["flags"].discard("closed")
        if "closing_credit" in pending["flags"]:
            credit["flags"].discard("closed")

    def _plain_or_pending(self, t: Event, events: list[Event]) -> str:
        flags = set(t["flags"])
        pending = "pending" in flags
        for side in ("debit_account_id", "credit_account_id"):
            if t[side] == 0:
                return f"{side}_must_not_be_zero"
            if t[side] == U128_MAX:
                return f"{side}_must_not_be_int_max"
        if t["debit_account_id"] == t["credit_account_id"]:
            return "accounts_must_be_different"
        if t["pending_id"]:
            return "pending_id_must_be_zero"
        if not pending and t["timeout"]:
            return "timeout_reserved_for_pending_transfer"
        if not pending and flags & {"closing_debit", "closing_credit"}:
            return "closing_transfer_must_be_pending"
        if t["ledger"] == 0:
            return "ledger_must_not_be_zero"
        if t["code"] == 0:
            return "code_must_not_be_zero"
        debit, credit = self.accounts.get(t["debit_account_id"]), self.accounts.get(t["credit_account_id"])
        if debit is None:
            return "debit_account_not_found"
        if credit is None:
            return "credit_account_not_found"
        if debit["ledger"] != credit["ledger"]:
            return "accounts_must_have_the_same_ledger"
        if t["ledger"] != debit["ledger"]:
            return "transfer_must_have_the_same_ledger_as_accounts"
        if "imported" in flags:
            if self._regresses(t, self.transfers, self.accounts):
                return "imported_event_timestamp_must_not_regress"
            if t["timestamp"] <= debit["timestamp"]:
                return "imported_event_timestamp_must_postdate_debit_account"
            if t["timestamp"] <= credit["timestamp"]:
                return "imported_event_timestamp_must_postdate_credit_account"
            if t["timeout"]:
                return "imported_event_timeout_must_be_zero"
        if "closed" in debit["flags"]:
            return "debit_account_already_closed"
        if "closed" in credit["flags"]:
            return "credit_account_already_closed"
        amount = t["amount"]
        if "balancing_debit" in flags:
            room = debit["credits_posted"] - debit["debits_posted"] - debit["debits_pending"]
            amount = min(amount, max(0, room))
        if "balancing_credit" in flags:
            room = credit["debits_posted"] - credit["credits_posted"] - credit["credits_pending"]
            amount = min(amount, max(0, room))
        for kinds, name in ((("pending",), "pending"), (("posted",), "posted"), (("pending", "posted"), "")):
            if name == "pending" and not pending:
                continue
            for account, side in ((debit, "debits"), (credit, "credits")):
                if sum(account[f"{side}_{kind}"] for kind in kinds) + amount > U128_MAX:
                    return f"overflows_{side}_{name}".removesuffix("_")
        if t["timestamp"] + t["timeout"] * 10**9 > 2**63 - 1:
            return "overflows_timeout"
        debited = debit["debits_pending"] + debit["debits_posted"] + amount
        if "debits_must_not_exceed_credits" in debit["flags"] and debited > debit["credits_posted"]:
            return "exceeds_credits"
        credited = credit["credits_pending"] + credit["credits_posted"] + amount
        if "credits_must_not_exceed_debits" in credit["flags"] and credited > credit["debits_posted"]:
            return "exceeds_debits"
        kind = "pending" if pending else "posted"
        debit[f"debits_{kind}"] += amount
        credit[f"credits_{kind}"] += amount
        if "closing_debit" in flags:
            debit["flags"].add("closed")
        if "closing_credit" in flags:
            credit["flags"].add("closed")
        stored = {**t, "amount": amount}
        if pending:
            stored["pending_status"] = "pending"
        self._store(stored, events)
        return "created"

    def _store(self, transfer: Event, events: list[Event]) -> None:
        self.transfers[transfer["id"]] = transfer
        event = {name: value for name, value in transfer.items() if name != "pending_status"}
        events.append({**event, "type": "TransferCreated", **self._balances(transfer)})

    def _balances(self, transfer: Event) -> Event:
        found: Event = {}
        for side in ("debit_account", "credit_account"):
            account = self.accounts[transfer[f"{side}_id"]]
            found |= {f"{side}_{name}": account[name] for name in BALANCES}
            found[f"{side}_flags"] = sorted(account["flags"])
        return found

    # --- the state, and what must always hold

    def state_rows(self) -> list[Event]:
        accounts = [
            {**account, "type": "Account", "closed": "closed" in account["flags"]} for account in self.accounts.values()
        ]
        return accounts + [{**transfer, "type": "Transfer"} for transfer in self.transfers.values()]

    def check_invariants(self) -> None:
        for ledger in {account["ledger"] for account in self.accounts.values()}:
            own = [account for account in self.accounts.values() if account["ledger"] == ledger]
            for kind in ("pending", "posted"):
                assert sum(a[f"debits_{kind}"] for a in own) == sum(a[f"credits_{kind}"] for a in own)
        for account in self.accounts.values():
            assert all(0 <= account[name] <= U128_MAX for name in BALANCES)
            if "debits_must_not_exceed_credits" in account["flags"]:
                assert account["debits_pending"] + account["debits_posted"] <= account["credits_posted"]
            if "credits_must_not_exceed_debits" in account["flags"]:
                assert account["credits_pending"] + account["credits_posted"] <= account["debits_posted"]
        ended = [t["pending_id"] for t in self.transfers.values() if t["pending_id"]]
        assert len(ended) == len(set(ended)), "a pending transfer was posted or voided twice"
        assert not set(self.burned) & set(self.transfers)
