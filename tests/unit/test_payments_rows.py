"""Rows of payments: totals are what the events add up to, and each account gets each payment once."""

from __future__ import annotations

from jobs.sinks.payments_rows import account_rows, daily_totals
from tests.support.payments_saga import DAY, EMPTY, PAYEE, PAYER, START, Saga, create


def test_totals_add_up_however_events_are_cut_and_rows_are_the_last_state() -> None:
    saga = Saga()
    saga.command(
        create(1, 100), create(2, 50, capture="manual", requested_at=START - DAY), create(3, 7, payer_account_id=EMPTY)
    )
    saga.settle()
    capture = {"type": "CapturePayment", "payment_id": 2, "command_id": 1, "amount": 20, "final": False}
    saga.command(capture, {"type": "RefundPayment", "payment_id": 1, "command_id": 2, "amount": 30})
    saga.settle()
    saga.command(
        {"type": "VoidPayment", "payment_id": 2, "command_id": 3},
        {"type": "RefundPayment", "payment_id": 1, "command_id": 4},
    )
    saga.settle()
    totals = daily_totals(saga.events)
    by_day = {
        total["day"]: tuple(
            total[name] for name in ("created", "completed", "ended", "captured_amount", "refunded_amount")
        )
        for total in totals
    }
    assert by_day == {START // DAY - 1: (1, 1, 0, 20, 0), START // DAY: (2, 1, 1, 100, 100)}
    sums: dict[int, list[int]] = {}
    for event in saga.events:
        [total] = daily_totals([event])
        found = sums.setdefault(total["day"], [0] * 5)
        for index, name in enumerate(("created", "completed", "ended", "captured_amount", "refunded_amount")):
            found[index] += total[name]
    assert {day: tuple(found) for day, found in sums.items()} == by_day

    rows = account_rows(event | {"shard": 0, "sequence": 9} for event in saga.events)
    seen = {
        (int.from_bytes(row[0], "big"), int.from_bytes(row[4], "big"), row[5].decode(), row[7].decode()) for row in rows
    }
    assert seen == {
        (PAYER, 1, "payer", "REFUNDED"), (PAYEE, 1, "payee", "REFUNDED"), (PAYER, 2, "payer", "COMPLETED"),
        (PAYEE, 2, "payee", "COMPLETED"), (EMPTY, 3, "payer", "FAILED"), (PAYEE, 3, "payee", "FAILED"),
    }  # fmt: skip
