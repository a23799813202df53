"""Screening's relays: what is asked and what comes back are about the same payment."""

from __future__ import annotations

import pytest

from jobs.sinks.payments_relays import FraudToPayments, PaymentsToFraud, RescoresToPayments
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Events
from tests.support.payments_saga import PAYEE, PAYER, START, Saga, create, frame, rules

DECISIONS = codec_of("fraud.decisions")


def decided(payment_id: int, decision: str, unknown: str = "none") -> dict[str, object]:
    fields = {field.name: 0 for field in DECISIONS.event_types[0].fields if not field.nullable} | {
        "model": "m", "rules_hit": "", "shadow_rules_hit": "", "reason_codes": "score_review", "rescored": False,
    }  # fmt: skip
    return fields | {
        "type": DECISIONS.event_types[0].name, "transaction_id": payment_id, "decision": decision,
        "unknown_reason": unknown, "score": None if unknown != "none" else 900_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "unknown", "status"),
    [("approve", "none", "SCREENED"), ("block", "none", "BLOCKED"), ("review", "none", "IN_REVIEW"),
     ("approve", "timeout", "SCREENED"), ("review", "timeout", "IN_REVIEW")],
)  # fmt: skip
def test_a_payment_goes_to_screening_and_its_decision_comes_back(decision: str, unknown: str, status: str) -> None:
    saga = Saga()
    saga.command(rules(screening="stream"))
    _, changed = saga.payments.apply(
        frame("payments.commands", [create(5, 70, customer_id=3, merchant="m"), create(6)], START)
    )
    asked = [dict(event) for found in PaymentsToFraud.__new__(PaymentsToFraud).translate(0, changed.events)
             for event in found.events]  # fmt: skip
    parse_events(codec_of("fraud.transactions"), asked)
    assert [(event["transaction_id"], event["customer_id"], event["terminal_id"]) for event in asked] == [
        (5, 3, str(PAYEE)), (6, str(PAYER), str(PAYEE))
    ]  # fmt: skip

    decisions = parse_events(DECISIONS, [decided(5, decision, unknown), decided(77, "approve")])
    answers = [dict(event) for found in FraudToPayments.__new__(FraudToPayments).translate(0, decisions)
               for event in found.events]  # fmt: skip
    results = saga.command(*answers)
    assert [(found["result"], found["status"]) for found in results] == [
        ("done", status), ("payment_not_found", "NONE")
    ]  # fmt: skip
    # a review for want of a score may still be ended by a later decision, one that fraud wants may not
    later = saga.command({"type": "FraudDecision", "payment_id": 5, "decision": "APPROVE"})[0]
    assert later["status"] == ("SCREENED" if (decision, unknown) == ("review", "timeout") else status)


@pytest.mark.parametrize(
    ("decision", "status"), [("approve", "SCREENED"), ("block", "BLOCKED"), ("review", "IN_REVIEW")]
)
def test_a_second_decision_ends_what_the_first_left_unknown(decision: str, status: str) -> None:
    saga = Saga()
    saga.command(rules(screening="stream"), create(5), create(6))
    for number in (5, 6):
        first = parse_events(DECISIONS, [decided(number, "review", "timeout" if number == 5 else "none")])
        saga.command(*_answers(FraudToPayments, first))
    assert (saga.status(5), saga.status(6)) == ("IN_REVIEW", "IN_REVIEW")
    rescores = parse_events(codec_of("fraud.rescores"), [decided(5, decision), decided(6, decision)])
    results = saga.command(*_answers(RescoresToPayments, rescores))
    # what fraud wants a person to look at stays with that person
    assert [(found["result"], found["status"]) for found in results] == [("done", status), ("repeated", "IN_REVIEW")]


def _answers(relay: type[FraudToPayments], decisions: Events) -> list[dict[str, object]]:
    translated = relay.__new__(relay).translate(0, decisions)
    return [dict(event) for found in translated for event in found.events]
