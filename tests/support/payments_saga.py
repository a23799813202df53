"""Payments and ledger in one process, with the relays between them: what leaves one kernel waits in a list until it is
delivered to the other, so that a test decides what is late, repeated, out of order or lost in a crash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.sinks.payments_relays import LedgerToPayments, PaymentsToLedger
from jobs.sinks.relay import KafkaRelay
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Events, Frame
from pipelines.ledger.kernel import LedgerKernel
from pipelines.payments.kernel import PaymentsKernel

START = 1_700_000_000_000_000
SECOND = 1_000_000
DAY = 86_400 * SECOND
LEDGER = 700
"""In shard 0."""
PAYER, PAYEE, EMPTY = 10, 11, 12
SMALL = {"max_payments": 1 << 12, "max_parties": 1 << 10}
Event = dict[str, Any]


def create(payment_id: int, amount: int = 100, **fields: Any) -> Event:
    return {
        "type": "CreatePayment", "payment_id": payment_id, "payer_account_id": PAYER, "payee_account_id": PAYEE,
        "ledger": LEDGER, "currency": "EUR", "amount": amount, "requested_at": START, **fields,
    }  # fmt: skip


def rules(**fields: Any) -> Event:
    return {"type": "PaymentRules", "ledger": LEDGER, **fields}


def frame(topic: str, events: list[Event], at: int) -> Frame:
    return Frame(topic, 0, 0, at, None, parse_events(codec_of(topic), events))


def rendered(topic: str, events: Events) -> list[Event]:
    return list(render_events(codec_of(topic), events))


class Saga:
    """``to_ledger`` and ``to_payments`` hold the frames of commands that are on their way."""

    def __init__(self, *, funds: int = 1_000_000) -> None:
        self.payments = PaymentsKernel(**SMALL)
        self.ledger = LedgerKernel(max_accounts=1 << 10, max_transfers=1 << 14)
        self.now = START
        self.events: list[Event] = []
        self.to_ledger: list[list[Event]] = []
        self.to_payments: list[list[Event]] = []
        self._relays: tuple[KafkaRelay, KafkaRelay] = (
            PaymentsToLedger.__new__(PaymentsToLedger), LedgerToPayments.__new__(LedgerToPayments)
        )  # fmt: skip
        account = {"type": "CreateAccount", "ledger": LEDGER, "code": 1}
        self._ledger([
            account | {"id": 1},
            account | {"id": PAYER, "flags": ["debits_must_not_exceed_credits"]},
            account | {"id": PAYEE, "flags": ["debits_must_not_exceed_credits"]},
            account | {"id": EMPTY, "flags": ["debits_must_not_exceed_credits"]},
            {"type": "CreateTransfer", "id": 1, "debit_account_id": 1, "credit_account_id": PAYER, "amount": funds,
             "ledger": LEDGER, "code": 9},
        ])  # fmt: skip
        self.to_payments.clear()

    def command(self, *commands: Event) -> list[Event]:
        """Apply commands to payments; returns their results."""
        results, changed = self.payments.apply(frame("payments.commands", list(commands), self.now))
        self.events += rendered(changed.topic, changed.events)
        asked = [event for found in self._relays[0].translate(0, changed.events) for event in found.events]
        if asked:
            self.to_ledger.append([dict(event) for event in asked])
        return rendered(results.topic, results.events)

    def _ledger(self, commands: list[Event]) -> None:
        results, _ = self.ledger.apply(frame("ledger.commands", commands, self.now))
        answers = [event for found in self._relays[1].translate(0, results.events) for event in found.events]
        if answers:
            self.to_payments.append([dict(event) for event in answers])

    def deliver_to_ledger(self, index: int = 0, *, keep: bool = False) -> None:
        commands = self.to_ledger[index] if keep else self.to_ledger.pop(index)
        self._ledger(commands)

    def deliver_to_payments(self, index: int = 0, *, keep: bool = False) -> list[Event]:
        return self.command(*(self.to_payments[index] if keep else self.to_payments.pop(index)))

    def settle(self) -> None:
        """Deliver everything until nothing is on its way."""
        while self.to_ledger or self.to_payments:
            if self.to_ledger:
                self.deliver_to_ledger()
            else:
                self.deliver_to_payments()

    def pass_time(self, microseconds: int) -> None:
        self.now += microseconds
        self.command({"type": "Tick", "at": self.now})

    def status(self, payment_id: int) -> str:
        return str(self.payment(payment_id)["status"])

    def payment(self, payment_id: int) -> Mapping[str, Any]:
        return next(row for row in self.payments.state_rows() if row.get("payment_id") == payment_id)

    def check(self) -> None:
        """What the two kernels say of the same money agrees; call it when nothing is on its way."""
        sums = self.payments.audit()
        self.ledger.audit()
        payee = self.ledger.account(PAYEE)
        assert payee is not None
        assert payee["credits_pending"] == sums["held"]
        assert payee["credits_posted"] - payee["debits_posted"] == sums["captured"] - sums["refunded"]
        versions: dict[int, int] = {}
        for event in self.events:
            payment_id = int(event["payment_id"])
            assert event["version"] == versions.get(payment_id, 0) + 1
            versions[payment_id] = event["version"]
