"""The saga's relays: what payments ask for becomes commands of ledger and fraud, and their answers come back.

Ids of transfers are functions of the payment's id and the step (`pipelines.payments.records.transfer_id`), so whatever
is sent twice is applied once; and the first answer to each counts, so an answer sent twice changes nothing either. An
answer is known by its transfer's id, whose top 16 bits belong to payments alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final

import numpy as np

from jobs.sinks.relay import Commands, KafkaRelay
from pipelines.catalogue import (
    FRAUD_DECISIONS,
    FRAUD_RESCORES,
    FRAUD_TRANSACTIONS,
    LEDGER_COMMANDS,
    LEDGER_RESULTS,
    LEDGER_SHARDS,
    PAYMENTS_COMMANDS,
    PAYMENTS_EVENTS,
    Topic,
)
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events
from pipelines.payments.records import TRANSFER_PREFIX, transfer_id, transfer_of
from pipelines.payments.states import Action

__all__ = [
    "PAYMENT_CODE",
    "REFUND_CODE",
    "FraudToPayments",
    "LedgerToPayments",
    "PaymentsToFraud",
    "PaymentsToLedger",
    "RescoresToPayments",
    "transfers",
]

PAYMENT_CODE: Final = 1
"""`code` of the transfers of payments,"""
REFUND_CODE: Final = 2
"""and of refunds."""

_FRAUD_KEY: Final = 2**63 - 1

_EVENTS: Final = codec_of(PAYMENTS_EVENTS.name)
_ASKS: Final = _EVENTS.event_type("PaymentChanged").field("asks").word
_RESULTS: Final = codec_of(LEDGER_RESULTS.name)
_TRANSFER_RESULT: Final = _RESULTS.event_type("TransferResult")
_ID: Final = _TRANSFER_RESULT.field("id").word


def transfers(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The transfers that a PaymentChanged (as JSON has it) asks the ledger for, in their order.

    A hold is captured right after it was asked for; of a capture that leaves a rest, the rest is held right after it.
    They are not linked: asked for once more, each is answered by `exists` on its own.
    """
    payment_id = int(event["payment_id"])
    common = {
        "type": "CreateTransfer", "ledger": event["ledger"], "user_data_128": event["payment_id"],
        "code": PAYMENT_CODE,
    }  # fmt: skip
    accounts = {"debit_account_id": event["payer_account_id"], "credit_account_id": event["payee_account_id"]}
    hold = str(transfer_id(payment_id, Action.reserve, event["hold_number"]))
    asked: list[dict[str, Any]] = []
    asks = event["asks"]
    if "capture" in asks:
        capture = str(transfer_id(payment_id, Action.capture, event["capture_number"]))
        flags = ["post_pending_transfer"]
        asked.append(common | {"id": capture, "pending_id": hold, "amount": event["action_amount"], "flags": flags})
    if "reserve" in asks:
        reserve = common | accounts | {
            "id": str(transfer_id(payment_id, Action.reserve, event["reserve_number"])),
            "amount": event["reserve_amount"], "timeout": event["hold_seconds"], "flags": ["pending"],
        }  # fmt: skip
        asked.insert(0 if event["reserve_number"] == event["hold_number"] else 1, reserve)
    if "void" in asks:
        void = str(transfer_id(payment_id, Action.void, event["void_number"]))
        asked.append(common | {"id": void, "pending_id": hold, "flags": ["void_pending_transfer"]})
    if "refund" in asks:
        asked.append(
            common | {
                "id": str(transfer_id(payment_id, Action.refund, event["refund_number"])), "code": REFUND_CODE,
                "debit_account_id": event["payee_account_id"], "credit_account_id": event["payer_account_id"],
                "amount": event["action_amount"],
            }
        )  # fmt: skip
    return asked


def _asking(events: Events, *names: str) -> Iterator[dict[str, Any]]:
    """The events that ask for one of these; the others, which are most, are not even rendered."""
    flags = _EVENTS.event_type("PaymentChanged").field("asks").flags
    bits = sum(1 << flags.index(name) for name in names)
    rows = events.rows[(events.rows[:, _ASKS] & bits) != 0]
    yield from render_events(_EVENTS, Events(rows, events.heap))


class PaymentsToLedger(KafkaRelay):
    """Holds, captures, voids and refunds that payments ask for."""

    name: ClassVar[str] = "payments-to-ledger"
    topic: ClassVar[Topic] = PAYMENTS_EVENTS
    web_port_offset: ClassVar[int] = 30
    targets: ClassVar[tuple[Topic, ...]] = (LEDGER_COMMANDS,)

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        for event in _asking(events, "reserve", "capture", "void", "refund"):
            yield Commands(LEDGER_COMMANDS, event["ledger"] % LEDGER_SHARDS, transfers(event))


class LedgerToPayments(KafkaRelay):
    """The ledger's answers to them."""

    name: ClassVar[str] = "ledger-to-payments"
    topic: ClassVar[Topic] = LEDGER_RESULTS
    web_port_offset: ClassVar[int] = 31
    targets: ClassVar[tuple[Topic, ...]] = (PAYMENTS_COMMANDS,)

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        rows = events.rows
        ours = (rows[:, 0] == _TRANSFER_RESULT.kind) & (rows[:, _ID + 1].view(np.uint64) >> 48 == TRANSFER_PREFIX)
        for result in render_events(_RESULTS, Events(rows[ours], events.heap)):
            transfer = transfer_of(int(result["id"]))
            if transfer is None:
                continue
            outcome = {
                "type": "LedgerOutcome", "payment_id": str(transfer.payment_id), "action": transfer.action.name,
                "number": transfer.number, "result": result["result"], "timestamp": result["timestamp"],
            }  # fmt: skip
            yield Commands(PAYMENTS_COMMANDS, shard, [outcome])


class FraudToPayments(KafkaRelay):
    """What screening decided. A review for want of a score counts as UNKNOWN: a later decision may still end it
    (`RescoresToPayments`). A transaction that is no payment's is answered by `payment_not_found`, and changes nothing.
    """

    name: ClassVar[str] = "fraud-to-payments"
    topic: ClassVar[Topic] = FRAUD_DECISIONS
    web_port_offset: ClassVar[int] = 35
    targets: ClassVar[tuple[Topic, ...]] = (PAYMENTS_COMMANDS,)

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        for event in render_events(codec_of(self.topic.name), events) if len(events) else ():
            what = event["decision"].upper()
            unknown = event["unknown_reason"]
            command = {
                "type": "FraudDecision", "payment_id": event["transaction_id"],
                "decision": "UNKNOWN" if what == "REVIEW" and unknown != "none" else what,
                "score": (event["score"] or 0) / 1_000_000,
                "reason": event["reason_codes"] if unknown == "none" else f"{unknown} {event['reason_codes']}",
            }  # fmt: skip
            yield Commands(PAYMENTS_COMMANDS, shard, [command])


class RescoresToPayments(FraudToPayments):
    """What screening decided in the end about payments that it had answered UNKNOWN, once the model answered again."""

    name: ClassVar[str] = "rescores-to-payments"
    topic: ClassVar[Topic] = FRAUD_RESCORES
    web_port_offset: ClassVar[int] = 36


class PaymentsToFraud(KafkaRelay):
    """Payments that are to be screened. A payment without a customer or terminal of its own is known to fraud by its
    payer's and payee's account; the shard of payments is the portfolio."""

    name: ClassVar[str] = "payments-to-fraud"
    topic: ClassVar[Topic] = PAYMENTS_EVENTS
    web_port_offset: ClassVar[int] = 32
    targets: ClassVar[tuple[Topic, ...]] = (FRAUD_TRANSACTIONS,)

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        for event in _asking(events, "screen"):
            transaction = {
                "type": "Transaction",
                "transaction_id": event["payment_id"],
                "event_time": event["requested_at"],
                "customer_id": event["customer_id"] or str(int(event["payer_account_id"]) & _FRAUD_KEY),
                "terminal_id": event["terminal_id"] or str(int(event["payee_account_id"]) & _FRAUD_KEY),
                "amount": min(int(event["amount"]), 10**12),
                "device": event["device"],
                "country": event["country"],
                "merchant": event["merchant"],
            }
            yield Commands(FRAUD_TRANSACTIONS, shard, [transaction])
