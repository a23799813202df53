"""Payments: every row of the table is walked, with the ledger's kernel on the other side of the relays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import FrameError
from pipelines.kernel import InvariantBroken
from pipelines.payments.kernel import MAX_DUE_PER_FRAME, PaymentsKernel
from pipelines.payments.records import transfer_id, transfer_of
from pipelines.payments.states import ISO_REASON, NEVER_LEFT, TABLE, Action, Cause, Reason, Status, markdown
from tests.support.payments_saga import (
    DAY,
    EMPTY,
    LEDGER,
    PAYEE,
    PAYER,
    SECOND,
    SMALL,
    START,
    Saga,
    create,
    frame,
    rules,
)

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "payments.md"


def capture(payment_id: int, command_id: int, amount: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": "CapturePayment", "payment_id": payment_id, "command_id": command_id, "amount": amount, **fields}


def client(kind: str, payment_id: int, command_id: int, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "payment_id": payment_id, "command_id": command_id, **fields}


def decision(payment_id: int, what: str) -> dict[str, Any]:
    return {"type": "FraudDecision", "payment_id": payment_id, "decision": what}


def outcome(payment_id: int, action: str, result: str, number: int = 0) -> dict[str, Any]:
    return {
        "type": "LedgerOutcome", "payment_id": payment_id, "action": action, "number": number, "result": result,
        "timestamp": 0,
    }  # fmt: skip


def results(saga: Saga, *commands: dict[str, Any]) -> list[tuple[str, str]]:
    return [(found["result"], found["status"]) for found in saga.command(*commands)]


def walked(saga: Saga, payment_id: int) -> list[str]:
    return [event["cause"] for event in saga.events if int(event["payment_id"]) == payment_id]


@pytest.fixture(scope="module")
def seen() -> set[tuple[str, str]]:
    """(status before, cause) of every event of this module's tests."""
    return set()


@pytest.fixture
def saga(seen: set[tuple[str, str]]) -> Any:
    saga = Saga()
    yield saga
    seen |= {(event["previous_status"], event["cause"]) for event in saga.events}
    saga.payments.audit()


def test_the_page_is_the_table() -> None:
    assert markdown() in DOCS.read_text(encoding="utf-8")
    assert set(ISO_REASON) == set(Reason)
    assert {row.becomes for row in TABLE.values()} | {Status.NONE} == set(Status)
    assert {row.cause for row in TABLE.values()} == set(Cause)
    assert all(row.status not in NEVER_LEFT for row in TABLE.values())


def test_ids_of_transfers_lead_back() -> None:
    for action in Action:
        for number in (0, 255):
            found = transfer_of(transfer_id(2**96 - 1, action, number))
            assert found is not None
            assert (found.payment_id, found.action, found.number) == (2**96 - 1, action, number)
    assert transfer_of(7) is None
    assert transfer_of(transfer_id(7, Action.refund, 0) | 9 << 104) is None


def test_a_payment_is_reserved_captured_and_refunded(saga: Saga) -> None:
    assert results(saga, create(1)) == [("done", "SCREENED")]
    saga.settle()
    assert walked(saga, 1) == ["created", "validated", "not_screened", "reserved", "captured"]
    assert saga.events[-1]["iso_status"] == "ACSC"
    assert saga.events[2]["reason"] == "not_screened"
    assert results(saga, client("RefundPayment", 1, 1, amount=30)) == [("done", "COMPLETED")]
    assert results(saga, client("RefundPayment", 1, 2)) == [("busy", "COMPLETED")]
    saga.settle()
    assert saga.status(1) == "PARTIALLY_REFUNDED"
    assert results(saga, client("RefundPayment", 1, 1, amount=30)) == [("repeated", "PARTIALLY_REFUNDED")]
    assert results(saga, client("RefundPayment", 1, 3, amount=71)) == [("amount_too_large", "PARTIALLY_REFUNDED")]
    for number, amount in ((4, 20), (5, 0)):
        saga.command(client("RefundPayment", 1, number, amount=amount))
        saga.settle()
    assert saga.status(1) == "REFUNDED"
    saga.check()
    late = [client(kind, 1, 6) for kind in ("RefundPayment", "VoidPayment", "CancelPayment")]
    review = {"type": "ReviewDecision", "payment_id": 1, "approved": True}
    assert results(saga, *late, review) == [("not_possible", "REFUNDED")] * 4


def test_captures_in_parts_and_a_void(saga: Saga) -> None:
    saga.command(create(1, capture="manual"))
    assert results(saga, capture(1, 1)) == [("busy", "SCREENED")]
    saga.settle()
    assert saga.status(1) == "RESERVED"
    saga.check()
    assert results(saga, capture(1, 1, 101)) == [("amount_too_large", "RESERVED")]
    for number, amount in enumerate((30, 20), start=2):
        assert results(saga, capture(1, number, amount, final=False)) == [("done", "RESERVED")]
        saga.settle()
        saga.check()
    assert saga.payment(1)["held"] == 50
    saga.command(client("VoidPayment", 1, 9))
    saga.settle()
    found = saga.payment(1)
    assert (found["status"], found["captured"], found["released"], found["held"]) == ("COMPLETED", 50, 50, 0)
    saga.check()
    saga.command(create(2, capture="manual"), create(3, capture="manual"))
    saga.settle()
    saga.command(client("VoidPayment", 2, 1), capture(3, 1, 40))
    saga.settle()
    assert (saga.status(2), saga.status(3), saga.payment(3)["released"]) == ("CANCELLED", "COMPLETED", 60)
    saga.check()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"amount": 0}, "amount_must_not_be_zero"),
        ({"payee_account_id": PAYER}, "accounts_must_be_different"),
        ({"payer_account_id": 0}, "payer_account_invalid"),
        ({"payee_account_id": 2**128 - 1}, "payee_account_invalid"),
        ({"ledger": 0}, "ledger_invalid"),
        ({"ledger": LEDGER + 1}, "ledger_invalid"),
        ({"currency": "eur"}, "currency_invalid"),
        ({"currency": "EURO"}, "currency_invalid"),
        ({"reference": "é" * 71}, "text_too_long"),
        ({"requested_at": START - 3 * DAY}, "requested_at_out_of_range"),
        ({"requested_at": START + 2 * DAY}, "requested_at_out_of_range"),
        ({"execute_at": START + 400 * DAY}, "execution_date_invalid"),
        ({"currency": "USD"}, "currency_not_allowed"),
        ({"amount": 4}, "amount_below_minimum"),
        ({"amount": 10_001}, "amount_above_maximum"),
    ],
)
def test_what_is_wrong_is_rejected_with_its_reason(saga: Saga, asked: dict[str, Any], reason: str) -> None:
    saga.command(rules(currency="EUR", minimum_amount=5, maximum_amount=10_000))
    [found] = saga.command(create(1, **asked))
    assert (found["result"], found["status"], found["reason"]) == ("rejected", "REJECTED", reason)
    assert saga.events[-1]["iso_reason"] == ISO_REASON[Reason[reason]]
    assert not saga.to_ledger


def test_cut_off_and_blocked_parties(saga: Saga) -> None:
    second = START // SECOND % 86_400
    saga.command(rules(opens_at=0, closes_at=second))
    assert saga.command(create(1))[0]["reason"] == "after_cut_off"
    saga.command(rules(closes_at=second + 1, screening="stream"))
    block = {"type": "BlockedParty", "account_id": PAYEE, "blocked": True}
    unblock = block | {"blocked": False}
    assert results(saga, create(2), block, create(3), decision(2, "APPROVE"), unblock, create(4)) == [
        ("done", "VALIDATED"), ("done", "NONE"), ("rejected", "BLOCKED"), ("done", "BLOCKED"), ("done", "NONE"),
        ("done", "VALIDATED"),
    ]  # fmt: skip
    saga.command(decision(4, "REVIEW"), block)
    assert results(saga, {"type": "ReviewDecision", "payment_id": 4, "approved": True}) == [("done", "BLOCKED")]
    assert results(saga, rules(opens_at=5, closes_at=5), rules(currency="euro")) == [("command_invalid", "NONE")] * 2


def test_the_latest_decision_counts_whatever_comes_again(saga: Saga) -> None:
    old, new = START - 2, START - 1
    strict = rules(maximum_amount=50, decided_at=new)
    assert results(saga, strict, rules(decided_at=old), rules()) == [
        ("done", "NONE"), ("repeated", "NONE"), ("repeated", "NONE"),
    ]  # fmt: skip
    assert saga.command(create(1))[0]["reason"] == "amount_above_maximum"
    assert results(saga, strict | {"decided_at": START, "maximum_amount": 0}) == [("done", "NONE")]

    block = {"type": "BlockedParty", "account_id": PAYEE, "blocked": True, "decided_at": new}
    assert results(saga, block, block | {"blocked": False, "decided_at": old}, create(2)) == [
        ("done", "NONE"), ("repeated", "NONE"), ("rejected", "BLOCKED"),
    ]  # fmt: skip
    assert results(saga, block | {"blocked": False, "decided_at": START}, block, create(3))[1:] == [
        ("repeated", "NONE"), ("done", "SCREENED"),
    ]  # fmt: skip

    limits = {"type": "PayerLimits", "account_id": PAYER, "per_payment": 10, "per_day": 0, "per_month": 0}
    assert results(saga, limits | {"decided_at": new}, limits | {"per_payment": 0, "decided_at": old}) == [
        ("done", "NONE"), ("repeated", "NONE"),
    ]  # fmt: skip
    assert saga.command(create(4))[0]["reason"] == "payment_limit_exceeded"


def test_limits_count_by_event_time_and_give_back(saga: Saga) -> None:
    saga.command({"type": "PayerLimits", "account_id": PAYER, "per_payment": 500, "per_day": 600, "per_month": 1000})

    def reason(payment_id: int, amount: int, **fields: Any) -> str:
        return str(saga.command(create(payment_id, amount, **fields))[0]["reason"])

    assert reason(1, 501) == "payment_limit_exceeded"
    assert reason(2, 400) == "not_screened"
    assert reason(3, 201) == "day_limit_exceeded"
    assert reason(4, 200, capture="manual") == "not_screened"
    assert reason(5, 400, requested_at=START - DAY) == "not_screened"  # late, in a day of its own
    assert reason(6, 1, requested_at=START - DAY) == "month_limit_exceeded"
    saga.settle()
    saga.command(client("VoidPayment", 4, 1))
    saga.settle()
    assert reason(7, 200) == "not_screened"  # what was voided may be spent
    assert reason(8, 1) == "day_limit_exceeded"


def test_duplicates(saga: Saga) -> None:
    saga.command(rules(duplicate_seconds=60))
    assert results(saga, create(1, idempotency_key="a"), create(1, idempotency_key="a"), create(1, amount=101)) == [
        ("done", "SCREENED"), ("repeated", "SCREENED"), ("exists_with_different_fields", "SCREENED")
    ]  # fmt: skip
    [by_key, by_content, other] = saga.command(
        create(2, 50, idempotency_key="a"), create(3, requested_at=START + 59 * SECOND),
        create(4, requested_at=START + 60 * SECOND),
    )  # fmt: skip
    assert (by_key["reason"], by_key["original_payment_id"]) == ("duplicate_key", 1)
    assert (by_content["reason"], by_content["original_payment_id"]) == ("duplicate_content", 1)
    assert other["result"] == "done"
    assert results(saga, create(2**96), create(0)) == [("command_invalid", "NONE")] * 2


def test_screening(saga: Saga) -> None:
    saga.command(rules(screening="stream", screening_seconds=5, review_seconds=60))
    saga.command(*(create(number, 10 + number) for number in range(1, 9)))
    assert saga.events[-1]["asks"] == ["screen"]
    assert results(
        saga, decision(1, "APPROVE"), decision(2, "BLOCK"), decision(3, "REVIEW"), decision(3, "APPROVE"),
        decision(4, "UNKNOWN"), decision(4, "UNKNOWN"), decision(4, "APPROVE"), decision(4, "BLOCK"),
        decision(99, "APPROVE"), client("CancelPayment", 5, 1),
    ) == [
        ("done", "SCREENED"), ("done", "BLOCKED"), ("done", "IN_REVIEW"), ("repeated", "IN_REVIEW"),
        ("done", "IN_REVIEW"), ("repeated", "IN_REVIEW"), ("done", "SCREENED"), ("repeated", "SCREENED"),
        ("payment_not_found", "NONE"), ("done", "CANCELLED"),
    ]  # fmt: skip
    saga.pass_time(5 * SECOND)
    assert {saga.status(number) for number in (6, 7, 8)} == {"IN_REVIEW"}
    review = {"type": "ReviewDecision", "payment_id": 3, "approved": True}
    assert results(
        saga, decision(6, "REVIEW"), decision(7, "BLOCK"), review, client("CancelPayment", 6, 1),
        review | {"payment_id": 8, "approved": False},
    ) == [
        ("done", "IN_REVIEW"), ("done", "BLOCKED"), ("done", "SCREENED"), ("done", "CANCELLED"), ("done", "BLOCKED"),
    ]  # fmt: skip
    saga.command(create(20, 77), decision(20, "REVIEW"), create(21, 78), decision(21, "UNKNOWN"))
    assert results(saga, decision(21, "BLOCK")) == [("done", "BLOCKED")]
    saga.pass_time(60 * SECOND)
    assert saga.status(20) == "EXPIRED"
    saga.settle()
    saga.check()


def test_scheduled_payments_begin_in_their_time(saga: Saga) -> None:
    at = START + DAY
    saga.command(create(1, execute_at=at), create(2, execute_at=at), create(3, 7, execute_at=at))
    assert results(saga, decision(1, "APPROVE"), client("CancelPayment", 2, 1)) == [
        ("not_possible", "RECEIVED"), ("done", "CANCELLED")
    ]  # fmt: skip
    saga.command(rules(minimum_amount=50))
    saga.pass_time(DAY - 1)
    assert saga.status(1) == "RECEIVED"
    saga.pass_time(1)
    assert (saga.status(1), saga.status(3)) == ("SCREENED", "REJECTED")
    saga.settle()
    assert saga.status(1) == "COMPLETED"


def test_the_ledger_refuses(saga: Saga) -> None:
    saga.command(create(1, payer_account_id=EMPTY), create(2, payee_account_id=999), create(3, 2_000_000))
    saga.settle()
    found = {number: saga.payment(number) for number in (1, 2, 3)}
    assert {row["status"] for row in found.values()} == {"FAILED"}
    assert [row["reason"] for row in found.values()] == [
        "insufficient_funds", "payee_account_not_found", "insufficient_funds"
    ]  # fmt: skip
    # the payee spent the money: a refund is refused, and may be asked for again
    saga.command(create(4, 1000))
    saga.settle()
    saga.command(create(5, 950, payer_account_id=PAYEE, payee_account_id=EMPTY), client("RefundPayment", 4, 1))
    saga.settle()
    assert (saga.status(4), saga.payment(4)["reason"]) == ("COMPLETED", "insufficient_funds")
    saga.command(client("RefundPayment", 4, 2, amount=50))
    saga.settle()
    saga.command(client("RefundPayment", 4, 3, amount=500))
    saga.settle()
    assert (saga.status(4), saga.payment(4)["refunded"]) == ("PARTIALLY_REFUNDED", 50)
    saga.command(create(6, 30), client("CancelPayment", 6, 1))
    saga.settle()
    saga.command(client("RefundPayment", 6, 2))
    saga.settle()
    assert saga.status(6) == "REFUNDED"


def test_the_ledger_is_late_and_tells_twice(saga: Saga) -> None:
    saga.command(create(1))
    saga.pass_time(10 * SECOND)
    saga.pass_time(10 * SECOND)
    assert walked(saga, 1)[-2:] == ["ledger_late"] * 2
    assert len(saga.to_ledger) == 3
    saga.settle()
    assert walked(saga, 1)[-2:] == ["reserved", "captured"]
    saga.command(client("RefundPayment", 1, 1, amount=10))
    saga.pass_time(10 * SECOND)
    saga.settle()
    saga.command(client("RefundPayment", 1, 2, amount=10))
    saga.pass_time(10 * SECOND)
    saga.settle()
    assert saga.payment(1)["refunded"] == 20
    saga.command(create(2, capture="manual", requested_at=saga.now))
    saga.settle()
    saga.command(capture(2, 1, 10, final=False))
    saga.pass_time(10 * SECOND)
    saga.settle()
    assert (saga.payment(2)["held"], saga.payment(2)["captured"]) == (90, 10)
    # an answer out of order is passed over, and asked for again
    saga.command(create(3, requested_at=saga.now))
    assert results(saga, outcome(3, "capture", "created"), outcome(3, "reserve", "created", 1)) == [
        ("repeated", "SCREENED")
    ] * 2  # fmt: skip
    saga.settle()
    saga.check()


def test_holds_end(saga: Saga) -> None:
    saga.command(rules(hold_seconds=30))
    saga.command(*(create(number, capture="manual") for number in (1, 2, 3, 4)))
    saga.settle()
    saga.command(capture(2, 1, 10, final=False))
    saga.settle()
    saga.pass_time(30 * SECOND)
    saga.settle()
    assert [saga.status(number) for number in (1, 2)] == ["EXPIRED", "COMPLETED"]
    saga.check()
    # the ledger's own time-out was first
    saga.command(create(5, capture="manual"))
    saga.settle()
    saga.command(capture(5, 1))
    saga.now += 700 * SECOND
    saga.settle()
    assert (saga.status(5), saga.payment(5)["reason"]) == ("EXPIRED", "hold_expired")
    saga.check()


def test_answers_that_no_sound_ledger_gives(saga: Saga) -> None:
    saga.command(create(1), create(2, capture="manual"), create(3, capture="manual"), create(4, capture="manual"))
    reserved = [outcome(number, "reserve", "created") for number in (1, 2, 3, 4)]
    assert results(saga, *reserved, outcome(1, "capture", "credit_account_already_closed")) == [
        *[("done", "RESERVED")] * 5
    ]  # fmt: skip
    assert results(saga, outcome(1, "void", "reserved_flag"), outcome(1, "void", "created")) == [
        ("done", "RESERVED"), ("repeated", "RESERVED")
    ]  # fmt: skip
    saga.pass_time(600 * SECOND)
    assert results(saga, outcome(1, "void", "pending_transfer_expired", 1)) == [("done", "EXPIRED")]
    saga.command(capture(2, 1, 10), capture(3, 1, 10, final=False), create(5, requested_at=saga.now))
    assert results(saga, outcome(2, "capture", "reserved_flag"), outcome(3, "capture", "created"),
                   outcome(3, "reserve", "credit_account_already_closed", 1)) == [
        ("done", "RESERVED"), ("done", "RESERVED"), ("done", "COMPLETED")
    ]  # fmt: skip
    assert saga.payment(3)["released"] == 90
    saga.command(outcome(5, "reserve", "created"), outcome(5, "capture", "reserved_flag"))
    assert results(saga, outcome(5, "void", "created")) == [("done", "FAILED")]


def test_all_rows_were_walked(seen: set[tuple[str, str]]) -> None:
    """Last in this module: a row of the table that no test walks is not tested."""
    missing = {(row.status.name, row.cause.name) for row in TABLE.values()} - seen
    assert not missing


def test_many_time_outs_are_spread_over_frames_and_survive_a_restore() -> None:
    kernel = PaymentsKernel(**SMALL)
    count = MAX_DUE_PER_FRAME + 50
    scheduled = [create(number + 1, execute_at=START + SECOND) for number in range(count)]
    kernel.apply(frame("payments.commands", scheduled, START))
    pages = kernel.dirty_pages()
    restored = PaymentsKernel(**SMALL)
    restored.restore(pages, 1)
    for at, changed in ((START + SECOND, 2 * MAX_DUE_PER_FRAME), (START + SECOND, 100), (START + SECOND, 0)):
        outputs = [found.apply(frame("payments.commands", [], at)) for found in (kernel, restored)]
        assert len(outputs[0][1].events) == changed
        assert (outputs[0][1].events.rows == outputs[1][1].events.rows).all()
    assert list(kernel.state_rows()) == list(restored.state_rows())
    missing = {key: page for key, page in pages.items() if key != "payments/1"}
    with pytest.raises(InvariantBroken, match="page"):
        PaymentsKernel(**SMALL).restore(missing, 1)


def test_a_frame_from_no_time_changes_nothing() -> None:
    kernel = PaymentsKernel(**SMALL)
    with pytest.raises(FrameError, match="produced_at_out_of_range"):
        kernel.apply(frame("payments.commands", [create(1)], 2**62))
    assert kernel.counts["payments"] == 0
