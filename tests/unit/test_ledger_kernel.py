"""The ledger kernel's rules, one small example each; the model and the recorded cases cover their combinations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import FrameError, StateVersionError
from pipelines.frames import Events, Frame
from pipelines.kernel import InvariantBroken
from pipelines.ledger import engine, kernel
from pipelines.ledger.kernel import MAX_EXPIRED_PER_FRAME, CapacityExceeded, LedgerKernel
from pipelines.ledger.records import ACCOUNT, TRANSFER
from pipelines.ledger.results import TRANSIENT, TransferResultCode
from pipelines.pages import spill_to
from tests.support.ledger_frames import COMMANDS, U128_MAX, Ledger, account, command_frame, transfer

DEBITS_LIMITED = "debits_must_not_exceed_credits"
CREDITS_LIMITED = "credits_must_not_exceed_debits"
BALANCES = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
SECOND = 1_000_000


@pytest.fixture
def ledger() -> Ledger:
    """Accounts 1, 2, 3 and 4 in ledger 1 (3 limits its debits, 4 its credits), 5 in ledger 2, 6 closed."""
    ledger = Ledger()
    assert ledger.results(
        account(1), account(2), account(3, flags=[DEBITS_LIMITED]), account(4, flags=[CREDITS_LIMITED]),
        account(5, ledger=2), account(6, flags=["closed"]),
    ) == ["created"] * 6  # fmt: skip
    return ledger


def balances(ledger: Ledger, account_id: int) -> tuple[int, ...]:
    """debits_pending, debits_posted, credits_pending, credits_posted"""
    found = ledger.kernel.account(account_id)
    assert found is not None
    return tuple(found[name] for name in BALANCES)


def test_records_have_the_documented_layout() -> None:
    offsets = {
        name: ACCOUNT.fields[name][1]
        for name in ("debits_pending_lo", "credits_posted_lo", "user_data_64", "timestamp")
    }  # type: ignore[index]
    assert offsets == {"debits_pending_lo": 16, "credits_posted_lo": 64, "user_data_64": 96, "timestamp": 120}
    offsets = {name: TRANSFER.fields[name][1] for name in ("amount_lo", "pending_id_lo", "timeout", "flags")}  # type: ignore[index]
    assert offsets == {"amount_lo": 48, "pending_id_lo": 64, "timeout": 108, "flags": 118}


def test_frame_gives_results_and_events_in_order() -> None:
    ledger = Ledger()
    results, events = ledger.apply(
        [account(1, user_data_64=2**64 - 1), account(2), transfer(9, 1, 2, 2**100), transfer(10, 1, 77, 1)],
        produced_at=50,
    )
    assert results == [
        {"type": "AccountResult", "id": 1, "result": "created", "timestamp": 50_001},
        {"type": "AccountResult", "id": 2, "result": "created", "timestamp": 50_002},
        {"type": "TransferResult", "id": 9, "result": "created", "timestamp": 50_003},
        {"type": "TransferResult", "id": 10, "result": "credit_account_not_found", "timestamp": 50_004},
    ]
    assert [event["type"] for event in events] == ["AccountCreated", "AccountCreated", "TransferCreated"]
    assert events[0]["user_data_64"] == 2**64 - 1
    created = events[2]
    assert (created["amount"], created["timestamp"]) == (2**100, 50_003)
    assert [created[f"debit_account_{name}"] for name in BALANCES] == [0, 2**100, 0, 0]
    assert [created[f"credit_account_{name}"] for name in BALANCES] == [0, 0, 0, 2**100]
    assert (ledger.kernel.clock, ledger.kernel.burned_ids) == (50_004, [10])


def test_clock_never_goes_back(ledger: Ledger) -> None:
    assert ledger.apply([account(50)], produced_at=1000)[0][0]["timestamp"] == 1_000_001
    assert ledger.apply([account(51)], produced_at=1)[0][0]["timestamp"] == 1_000_002


def test_empty_frame_is_answered() -> None:
    assert Ledger().apply([]) == ([], [])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (account(0), "id_must_not_be_zero"),
        (account(U128_MAX), "id_must_not_be_int_max"),
        (account(7, timestamp=1), "timestamp_must_be_zero"),
        (account(7, flags=[DEBITS_LIMITED, CREDITS_LIMITED]), "flags_are_mutually_exclusive"),
        (account(7, ledger=0), "ledger_must_not_be_zero"),
        (account(7, code=0), "code_must_not_be_zero"),
        (account(1), "exists"),
        (account(1, flags=["history"]), "exists_with_different_flags"),
        (account(1, user_data_128=2**70), "exists_with_different_user_data_128"),
        (account(1, user_data_64=1), "exists_with_different_user_data_64"),
        (account(1, user_data_32=1), "exists_with_different_user_data_32"),
        (account(1, ledger=2), "exists_with_different_ledger"),
        (account(1, code=2), "exists_with_different_code"),
        (account(7, flags=["linked"]), "linked_event_chain_open"),
        (transfer(0, 1, 2, 1), "id_must_not_be_zero"),
        (transfer(U128_MAX, 1, 2, 1), "id_must_not_be_int_max"),
        (transfer(9, 1, 2, 1, timestamp=1), "timestamp_must_be_zero"),
        (transfer(9, 0, 2), "debit_account_id_must_not_be_zero"),
        (transfer(9, U128_MAX, 2), "debit_account_id_must_not_be_int_max"),
        (transfer(9, 1, 0), "credit_account_id_must_not_be_zero"),
        (transfer(9, 1, U128_MAX), "credit_account_id_must_not_be_int_max"),
        (transfer(9, 1, 1), "accounts_must_be_different"),
        (transfer(9, 1, 2, pending_id=3), "pending_id_must_be_zero"),
        (transfer(9, 1, 2, timeout=3), "timeout_reserved_for_pending_transfer"),
        (transfer(9, 1, 2, flags=["closing_debit"]), "closing_transfer_must_be_pending"),
        (transfer(9, 1, 2, ledger=0), "ledger_must_not_be_zero"),
        (transfer(9, 1, 2, code=0), "code_must_not_be_zero"),
        (transfer(9, 70, 2), "debit_account_not_found"),
        (transfer(9, 1, 70), "credit_account_not_found"),
        (transfer(9, 1, 5), "accounts_must_have_the_same_ledger"),
        (transfer(9, 1, 2, ledger=2), "transfer_must_have_the_same_ledger_as_accounts"),
        (transfer(9, 6, 2), "debit_account_already_closed"),
        (transfer(9, 1, 6), "credit_account_already_closed"),
        (transfer(9, 3, 2, 1), "exceeds_credits"),
        (transfer(9, 1, 4, 1), "exceeds_debits"),
        (transfer(9, 3, 4, 0), "created"),
        (transfer(9, 1, 2, flags=["post_pending_transfer", "void_pending_transfer"]), "flags_are_mutually_exclusive"),
        (transfer(9, 1, 2, flags=["post_pending_transfer"]), "pending_id_must_not_be_zero"),
        (transfer(9, pending_id=U128_MAX, flags=["void_pending_transfer"]), "pending_id_must_not_be_int_max"),
        (transfer(9, pending_id=9, flags=["void_pending_transfer"]), "pending_id_must_be_different"),
        (
            transfer(9, pending_id=8, timeout=1, flags=["post_pending_transfer"]),
            "timeout_reserved_for_pending_transfer",
        ),
        (transfer(9, pending_id=8, flags=["post_pending_transfer"]), "pending_transfer_not_found"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["type"],
)
def test_refusals(ledger: Ledger, command: dict[str, Any], expected: str) -> None:
    assert ledger.results(command) == [expected]
    transient = expected in {code.name for code in TRANSIENT} and command["type"] == "CreateTransfer"
    assert ledger.kernel.burned_ids == ([command["id"]] if transient else [])


@pytest.mark.parametrize("kind", ["account", "transfer"])
def test_unknown_flag_is_refused_not_ignored(ledger: Ledger, kind: str) -> None:
    frame = command_frame([account(70) if kind == "account" else transfer(70, 1, 2, 1)])
    dtype = COMMANDS.event_types[0 if kind == "account" else 1].dtype
    for bit in (6 if kind == "account" else 9, 15, 30):
        frame.events.rows.view(dtype)["flags"] = 1 << bit
        results, events = ledger.kernel.apply(frame)
        code = results.events.rows[0, 3]
        assert code == TransferResultCode.reserved_flag if kind == "transfer" else code == 9
        assert len(events.events) == 0


def test_repeated_transfer_is_applied_once(ledger: Ledger) -> None:
    first = ledger.apply([transfer(9, 1, 2, 10)])[0][0]
    again = ledger.apply([transfer(9, 1, 2, 10)])
    assert again == ([first | {"result": "exists"}], [])
    assert balances(ledger, 1) == (0, 10, 0, 0)
    for fields, name in (
        ({"amount": 11}, "amount"), ({"flags": ["pending"]}, "flags"), ({"code": 2}, "code"), ({"ledger": 2}, "ledger"),
        ({"credit_account_id": 3}, "credit_account_id"), ({"debit_account_id": 3}, "debit_account_id"),
        ({"user_data_128": 2**64}, "user_data_128"), ({"timeout": 1}, "timeout"), ({"pending_id": 1}, "pending_id"),
    ):  # fmt: skip
        assert ledger.results(transfer(9, 1, 2, 10) | fields) == [f"exists_with_different_{name}"]


def test_burned_id_stays_burned(ledger: Ledger) -> None:
    assert ledger.results(transfer(9, 3, 2, 1)) == ["exceeds_credits"]
    assert ledger.results(transfer(8, 1, 3, 5), transfer(9, 3, 2, 1)) == ["created", "id_already_failed"]


def test_limit_counts_pending_debits_but_not_pending_credits(ledger: Ledger) -> None:
    assert ledger.results(
        transfer(10, 1, 3, 100),
        transfer(11, 1, 3, 100, flags=["pending"]),
        transfer(12, 3, 2, 60, flags=["pending"]),
        transfer(13, 3, 2, 41),
        transfer(14, 3, 2, 40),
    ) == ["created", "created", "created", "exceeds_credits", "created"]
    assert balances(ledger, 3) == (60, 40, 100, 100)


def test_overflows_at_the_last_unit(ledger: Ledger) -> None:
    most = U128_MAX
    assert ledger.results(transfer(10, 1, 2, most), transfer(11, 1, 3, 1), transfer(12, 4, 2, 1)) == [
        "created", "overflows_debits_posted", "overflows_credits_posted",
    ]  # fmt: skip
    assert ledger.results(transfer(13, 1, 3, 1, flags=["pending"])) == ["overflows_debits_posted"]
    assert ledger.results(account(60), account(61), account(62)) == ["created"] * 3
    assert ledger.results(
        transfer(20, 60, 61, most - 5, flags=["pending"]),
        transfer(21, 60, 62, 6, flags=["pending"]),
        transfer(22, 62, 61, 6, flags=["pending"]),
        transfer(23, 60, 62, 6),
        transfer(24, 62, 61, 6),
        transfer(25, 60, 61, 5),
    ) == [
        "created", "overflows_debits_pending", "overflows_credits_pending", "overflows_debits", "overflows_credits",
        "created",
    ]  # fmt: skip
    assert balances(ledger, 60) == (most - 5, 5, 0, 0)


def test_overflowing_timeout() -> None:
    ledger = Ledger()
    late = 7_258_118_400 * SECOND
    assert ledger.results(account(1), account(2), produced_at=late) == ["created"] * 2
    command = transfer(9, 1, 2, 1, flags=["pending"], timeout=2**32 - 1)
    assert ledger.results(command) == ["overflows_timeout"]


def test_post_void_and_release(ledger: Ledger) -> None:
    pending = [transfer(number, 1, 2, 100, flags=["pending"], user_data_32=7) for number in (10, 11, 12)]
    assert ledger.results(*pending) == ["created"] * 3
    results, events = ledger.apply(
        [
            transfer(20, amount=30, pending_id=10, ledger=0, code=0, flags=["post_pending_transfer"]),
            transfer(21, amount=U128_MAX, pending_id=11, ledger=0, code=0, flags=["post_pending_transfer"]),
            transfer(22, pending_id=12, ledger=0, code=0, flags=["void_pending_transfer"]),
            transfer(23, pending_id=12, flags=["post_pending_transfer"]),
            transfer(24, pending_id=10, flags=["void_pending_transfer"]),
            transfer(25, pending_id=20, flags=["void_pending_transfer"]),
        ]
    )
    assert [result["result"] for result in results] == [
        "created", "created", "created", "pending_transfer_already_voided", "pending_transfer_already_posted",
        "pending_transfer_not_pending",
    ]  # fmt: skip
    assert [(event["amount"], event["debit_account_id"], event["ledger"], event["user_data_32"])
            for event in events] == [
        (30, 1, 1, 7), (100, 1, 1, 7), (100, 1, 1, 7),
    ]  # fmt: skip
    assert balances(ledger, 1) == (0, 130, 0, 0)
    assert balances(ledger, 2) == (0, 0, 0, 130)
    statuses = [ledger.kernel.transfer(number)["pending_status"] for number in (10, 11, 12)]  # type: ignore[index]
    assert statuses == ["posted", "posted", "voided"]


def test_chain_is_all_or_nothing(ledger: Ledger) -> None:
    linked = {"flags": ["linked"]}
    results, events = ledger.apply(
        [
            transfer(10, 1, 2, 5, **linked),
            transfer(11, 2, 1, 7, flags=["linked", "pending"]),
            transfer(12, 3, 1, 1, **linked),
            transfer(13, 1, 2, 1),
            transfer(14, 1, 2, 1),
        ]
    )
    assert [result["result"] for result in results] == [
        "linked_event_failed", "linked_event_failed", "exceeds_credits", "linked_event_failed", "created",
    ]  # fmt: skip
    assert [event["id"] for event in events] == [14]
    assert balances(ledger, 1) == (0, 1, 0, 0)
    # only the event that failed by itself is burned; the others may be tried again
    assert ledger.results(transfer(12, 1, 2, 1), transfer(10, 1, 2, 5), transfer(13, 1, 2, 1)) == [
        "id_already_failed", "created", "created",
    ]  # fmt: skip
    assert ledger.kernel.transfer(11) is None


def test_chain_that_posts_and_closes_is_undone(ledger: Ledger) -> None:
    assert ledger.results(transfer(10, 1, 2, 100, flags=["pending"])) == ["created"]
    before = list(ledger.kernel.state_rows())
    assert ledger.results(
        transfer(20, amount=60, pending_id=10, flags=["linked", "post_pending_transfer"]),
        transfer(21, 1, 2, 5, flags=["linked", "pending", "closing_credit"]),
        transfer(22, pending_id=21, flags=["linked", "void_pending_transfer"]),
        transfer(23, 1, 2, 5, flags=["linked", "pending", "closing_debit"]),
        transfer(24, 1, 2, 5),
    ) == ["linked_event_failed"] * 4 + ["debit_account_already_closed"]
    assert list(ledger.kernel.state_rows()) == before


def test_accounts_and_transfers_of_a_frame_are_batches_of_their_own(ledger: Ledger) -> None:
    assert ledger.results(
        account(20, flags=["linked"]), account(21, flags=["linked"]), transfer(9, 1, 2, 1), account(22)
    ) == ["linked_event_failed", "linked_event_chain_open", "created", "created"]
    assert ledger.kernel.account(20) is None


def test_expiry_before_the_first_event(ledger: Ledger) -> None:
    start = 1000 * SECOND
    assert ledger.results(
        transfer(10, 1, 2, 100, flags=["pending", "closing_debit"], timeout=2), produced_at=start
    ) == ["created"]
    expires_at = start * 1000 + 1 + 2 * 10**9
    assert ledger.apply([], produced_at=start + 2 * SECOND)[1] == []
    results, events = ledger.apply(
        [transfer(11, pending_id=10, flags=["post_pending_transfer"]), transfer(12, 1, 2, 1)],
        produced_at=start + 2 * SECOND + 1,
    )
    assert [result["result"] for result in results] == ["pending_transfer_expired", "created"]
    assert [event["type"] for event in events] == ["TransferExpired", "TransferCreated"]
    expired = events[0]
    assert (expired["pending_id"], expired["amount"], expired["timestamp"]) == (10, 100, expires_at)
    assert [expired[f"debit_account_{name}"] for name in BALANCES] == [0, 0, 0, 0]
    assert expired["debit_account_flags"] == []


def test_many_expiries_change_balances_at_once_and_are_announced_in_turn(ledger: Ledger) -> None:
    count = 2 * MAX_EXPIRED_PER_FRAME + 3
    commands = [transfer(1_000 + number, 1, 2, 1, flags=["pending"], timeout=1) for number in range(count)]
    assert set(ledger.results(*commands)) == {"created"}
    announced = []
    for _ in range(4):
        _, events = ledger.apply([], produced_at=10 * SECOND)
        assert len(events) <= MAX_EXPIRED_PER_FRAME
        announced += [event["pending_id"] for event in events]
        assert balances(ledger, 1) == (0, 0, 0, 0)
        # what waits for its event survives a restore
        restored = Ledger()
        restored.kernel.restore(all_pages(ledger.kernel), ledger.kernel.state_version)
        ledger = restored
    assert announced == [1_000 + number for number in range(count)]


def all_pages(kernel: LedgerKernel) -> dict[str, bytes]:
    """The whole state as pages, whatever was handed out before."""
    state = kernel._state
    pages = {}
    for name, column in state.columns.items():
        size = min(state.page_bytes, column.nbytes)
        data = column.view(np.uint8)
        for number in range(column.nbytes // size):
            page = data[number * size : (number + 1) * size]
            if page.any():
                pages[f"{name}/{number}"] = page.tobytes()
    return pages


def test_balancing_clamps_and_stores_the_amount(ledger: Ledger) -> None:
    assert ledger.results(transfer(10, 1, 3, 70), transfer(11, 3, 2, 20)) == ["created", "created"]
    _, events = ledger.apply([transfer(12, 3, 2, U128_MAX, flags=["balancing_debit"])])
    assert events[0]["amount"] == 50
    assert ledger.results(
        transfer(12, 3, 2, 50, flags=["balancing_debit"]),
        transfer(12, 3, 2, 49, flags=["balancing_debit"]),
        transfer(13, 3, 2, 9, flags=["balancing_debit"]),
    ) == ["exists", "exists_with_different_amount", "created"]
    assert ledger.kernel.transfer(13)["amount"] == 0  # type: ignore[index]


def test_imported_events() -> None:
    ledger = Ledger()
    imported = {"flags": ["imported"]}
    assert ledger.results(
        account(1, timestamp=10, **imported), account(2, timestamp=20, **imported),
        account(3, timestamp=20, **imported), account(4), account(5, timestamp=0, **imported),
        account(6, timestamp=2**62, **imported),
        produced_at=1,
    ) == [
        "created", "created", "imported_event_timestamp_must_not_regress", "imported_event_expected",
        "imported_event_timestamp_out_of_range", "imported_event_timestamp_must_not_advance",
    ]  # fmt: skip
    results, events = ledger.apply(
        [
            transfer(10, 1, 2, 1, timestamp=15, **imported),
            transfer(11, 1, 2, 1, timestamp=20, **imported),
            transfer(12, 1, 2, 1, timestamp=30, flags=["imported", "pending"], timeout=1),
            transfer(13, 1, 2, 1, timestamp=30, **imported),
            transfer(14, 1, 2, 1, timestamp=30, **imported),
            transfer(13, 1, 2, 1, timestamp=30, **imported),
        ]
    )
    assert [result["result"] for result in results] == [
        "imported_event_timestamp_must_postdate_credit_account", "imported_event_timestamp_must_not_regress",
        "imported_event_timeout_must_be_zero", "created", "imported_event_timestamp_must_not_regress", "exists",
    ]  # fmt: skip
    assert (results[3]["timestamp"], results[5]["timestamp"], events[0]["timestamp"]) == (30, 30, 30)
    assert ledger.results(transfer(15, 1, 2, 1), transfer(16, 1, 2, 1, timestamp=40, **imported)) == [
        "created", "imported_event_not_expected",
    ]  # fmt: skip


@pytest.mark.parametrize("produced_at", [-1, 7_258_118_400 * SECOND + 1, 2**63 - 1])
def test_impossible_times_are_refused_and_change_nothing(ledger: Ledger, produced_at: int) -> None:
    before = ledger.kernel.clock
    ledger.kernel.dirty_pages()
    frame = command_frame([account(70)])
    with pytest.raises(FrameError, match="produced_at_out_of_range"):
        ledger.kernel.apply(Frame(frame.topic, 0, 0, produced_at, None, frame.events))
    assert (ledger.kernel.clock, ledger.kernel.dirty_bytes()) == (before, 0)


def test_full_columns_stop_the_job_before_anything_changes() -> None:
    ledger = Ledger(max_accounts=128, max_transfers=128)
    with pytest.raises(CapacityExceeded, match="larger max_accounts"):
        ledger.apply([account(number) for number in range(1, 130)])
    assert ledger.kernel.clock == 0
    ledger.apply([account(1), account(2)])
    with pytest.raises(CapacityExceeded, match="larger max_transfers"):
        ledger.apply([transfer(number, 1, 2) for number in range(1, 130)])


def test_spilled_transfers_are_answered_posted_and_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "RECENT_TRANSFERS", 64)
    spill_to(tmp_path)
    try:
        ledger, restored = Ledger(), Ledger()
    finally:
        spill_to(None)
    ledger.apply([account(1), account(2)])
    ledger.apply([transfer(10, 1, 2, 7, flags=["pending"], timeout=1_000), transfer(11, 1, 2, 5)])
    for first in range(100, 1_100, 100):
        assert ledger.results(*(transfer(first + i, 1, 2, 1) for i in range(100))) == ["created"] * 100
    assert ledger.kernel._released >= 64, "nothing was spilled; the test shows nothing"
    assert ledger.results(transfer(11, 1, 2, 5), transfer(11, 1, 2, 6), transfer(150, 2, 1, 1)) == [
        "exists", "exists_with_different_amount", "exists_with_different_debit_account_id",
    ]  # fmt: skip
    restored.kernel.restore(all_pages(ledger.kernel), ledger.kernel.state_version)
    for found in (ledger, restored):
        assert found.results(transfer(12, amount=U128_MAX, pending_id=10, flags=["post_pending_transfer"])) == [
            "created"
        ]
        assert balances(found, 1) == (0, 7 + 5 + 1_000, 0, 0)
    assert list(restored.kernel.state_rows()) == list(ledger.kernel.state_rows())


def test_lost_page_is_noticed_on_restore(ledger: Ledger) -> None:
    ledger.apply([transfer(number, 1, 2, 1) for number in range(1, 300)])
    pages = ledger.kernel.dirty_pages()
    for lost in ("accounts/0", "transfers/1"):
        with pytest.raises(InvariantBroken):
            Ledger().kernel.restore({key: page for key, page in pages.items() if key != lost}, 1)
    stale = dict(pages)
    ledger.apply([transfer(1000, 1, 3, 1)])
    stale |= {key: page for key, page in ledger.kernel.dirty_pages().items() if not key.startswith("accounts")}
    with pytest.raises(InvariantBroken, match="sums differ"):
        Ledger().kernel.restore(stale, 1)


def test_unknown_state_version_is_refused() -> None:
    with pytest.raises(StateVersionError, match="version 2 found"):
        Ledger().kernel.restore({}, 2)


def test_missing_account_stops_the_job(ledger: Ledger) -> None:
    ledger.results(transfer(10, 1, 2, 5, flags=["pending"]))
    ledger.kernel._arrays.transfers[0]["credit_account_id_lo"] = 99
    with pytest.raises(InvariantBroken, match="account is missing"):
        ledger.apply([transfer(11, pending_id=10, flags=["void_pending_transfer"])])


def test_rows_of_a_frame_are_not_changed(ledger: Ledger) -> None:
    frame = command_frame([transfer(10, 1, 2, U128_MAX, flags=["balancing_debit"])])
    rows = frame.events.rows.copy()
    ledger.kernel.apply(Frame(frame.topic, 0, 0, 0, None, Events(frame.events.rows)))
    assert np.array_equal(rows, frame.events.rows)


def test_transient_failures_are_those_of_the_table() -> None:
    found = {code for code in TransferResultCode if engine._is_transient(int(code))}
    assert found == TRANSIENT
