"""Transfers across ledgers, step by step: what moves, what is undone, and what each ending looks like."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.sinks.cross_transfers import newest_states
from pipelines.catalogue import LEDGER_CROSS_EVENTS, LEDGER_SHARDS
from pipelines.codec import codec_of
from pipelines.ledger_saga.legs import Step, cross_transfer_shard, leg_id, leg_shards
from pipelines.wire import unwrap
from tests.support.saga_world import CLEARING, EUR, EURO_TOO, FUNDING, PAYEE, PAYER, USD, SagaWorld

NOTHING = {"debits_pending": 0, "debits_posted": 0, "credits_pending": 0, "credits_posted": 0}


@pytest.fixture
def world() -> SagaWorld:
    world = SagaWorld()
    world.accounts(EUR, {PAYER: ["debits_must_not_exceed_credits"]})
    world.accounts(USD)
    assert world.transfer(EUR, id=1, debit_account_id=FUNDING, credit_account_id=PAYER, amount=1_000) == "created"
    return world


def close(world: SagaWorld, ledger: int, account: int, identity: int) -> None:
    """With a pending closing transfer, as a bank freezes an account."""
    result = world.transfer(
        ledger, id=identity, debit_account_id=account, credit_account_id=FUNDING, flags=["pending", "closing_debit"]
    )
    assert result == "created"


def untouched(world: SagaWorld) -> bool:
    return (
        world.balance(EUR, PAYER) == NOTHING | {"credits_posted": 1_000}
        and world.balance(EUR, CLEARING) == world.balance(USD, PAYEE) == world.balance(USD, CLEARING) == NOTHING
    )


def test_both_sides_are_posted_through_the_clearing_accounts(world: SagaWorld) -> None:
    assert world.cross(77) == "created"
    world.settle()
    assert world.balance(EUR, PAYER) == NOTHING | {"credits_posted": 1_000, "debits_posted": 100}
    assert world.balance(EUR, CLEARING) == NOTHING | {"credits_posted": 100}
    assert world.balance(USD, CLEARING) == NOTHING | {"debits_posted": 108}
    assert world.balance(USD, PAYEE) == NOTHING | {"credits_posted": 108}
    assert world.phases(77) == [("reserving", "none"), ("posting", "none"), ("completed", "none")]
    # the legs say whose they are
    assert {int(event["user_data_128"]) for event in world.entries(USD) if event["type"] == "TransferCreated"} == {77}
    # asked again, nothing moves
    assert world.cross(77) == "exists"
    assert world.cross(77, amount=101) == "exists_with_different_fields"
    world.settle()
    assert world.balance(EUR, PAYER)["debits_posted"] == 100


def test_no_money_moves_when_the_payer_has_too_little(world: SagaWorld) -> None:
    world.cross(5, amount=1_001)
    world.settle()
    assert untouched(world)
    assert world.phases(5)[-1] == ("failed", "exceeds_credits")


def test_a_payee_that_does_not_exist_gives_the_payer_the_money_back(world: SagaWorld) -> None:
    world.cross(5, credit_account_id=99)
    world.settle()
    assert untouched(world)
    assert world.phases(5) == [
        ("reserving", "none"), ("cancelling", "credit_account_not_found"), ("failed", "credit_account_not_found"),
    ]  # fmt: skip


def test_what_the_other_ledger_does_not_answer_in_time_is_given_up(world: SagaWorld) -> None:
    world.cross(5)
    legs = cross_transfer_shard(5)
    assert world.relay("saga-legs", legs)  # both reservations are made, the answers are on their way
    assert world.balance(EUR, PAYER)["debits_pending"] == 100
    world.pass_time(9)
    assert world.phases(5) == [("reserving", "none")]
    world.pass_time(2)
    assert world.phases(5)[-1] == ("cancelling", "timed_out")
    world.settle()
    assert untouched(world)
    assert world.phases(5)[-1] == ("failed", "timed_out")


def test_the_ledger_itself_gives_the_money_back_when_no_saga_runs(world: SagaWorld) -> None:
    world.cross(5)
    assert world.relay("saga-legs", cross_transfer_shard(5))
    world.now += 71 * 1_000_000
    world.transfer(EUR, id=900)
    assert world.balance(EUR, PAYER) == NOTHING | {"credits_posted": 1_000}
    world.settle()  # the saga comes back, believes in its reservations, and learns better
    assert untouched(world)
    assert world.phases(5)[-1] == ("failed", "timed_out")


def test_a_payee_closed_in_between_is_refunded_even_when_the_payer_is_closed_for_a_while(world: SagaWorld) -> None:
    world.cross(5)
    while world.phases(5)[-1][0] != "posting":
        assert world.relay_all()
    close(world, USD, PAYEE, 901)
    legs = cross_transfer_shard(5)
    assert world.relay("saga-legs", legs)  # the debit is posted
    close(world, EUR, PAYER, 902)
    world.settle()
    assert world.phases(5)[-1] == ("refunding", "credit_account_already_closed")
    assert world.balance(EUR, CLEARING) == NOTHING | {"credits_posted": 100}
    world.pass_time(11)
    world.settle()
    assert world.phases(5)[-1][0] == "refunding"
    assert world.transfer(EUR, id=903, pending_id=902, flags=["void_pending_transfer"]) == "created"
    world.pass_time(11)
    world.settle()
    assert world.phases(5)[-1] == ("refunded", "credit_account_already_closed")
    assert world.balance(EUR, PAYER) == NOTHING | {"credits_posted": 1_100, "debits_posted": 100}
    assert world.balance(EUR, CLEARING) == NOTHING | {"credits_posted": 100, "debits_posted": 100}
    assert world.balance(USD, CLEARING) == NOTHING


def test_ledgers_of_one_shard_move_as_linked_pairs(world: SagaWorld) -> None:
    world.accounts(EURO_TOO)
    other = {
        "credit_ledger": EURO_TOO,
        "credit_account_id": PAYEE + (EURO_TOO << 32),
        "credit_clearing_account_id": CLEARING + (EURO_TOO << 32),
    }
    world.cross(6, **other)
    world.settle()
    assert world.phases(6)[-1] == ("completed", "none")
    assert world.balance(EURO_TOO, PAYEE + (EURO_TOO << 32)) == NOTHING | {"credits_posted": 108}
    flags = [event["flags"] for event in world.entries(EUR) if event["type"] == "TransferCreated"][1:]
    assert flags == [["linked", "pending"], ["pending"], ["linked", "post_pending_transfer"], ["post_pending_transfer"]]
    # a pair fails as a whole, and says why
    world.cross(7, **other | {"amount": 5_000})
    world.settle()
    assert world.phases(7)[-1] == ("failed", "exceeds_credits")
    assert world.balance(EURO_TOO, PAYEE + (EURO_TOO << 32)) == NOTHING | {"credits_posted": 108}


@pytest.mark.parametrize("is_paired", [False, True])
def test_a_payer_closed_in_between_pays_nothing_and_nothing_stays_reserved(world: SagaWorld, is_paired: bool) -> None:
    world.accounts(EURO_TOO)
    other = {
        "credit_ledger": EURO_TOO,
        "credit_account_id": PAYEE + (EURO_TOO << 32),
        "credit_clearing_account_id": CLEARING + (EURO_TOO << 32),
    }
    world.cross(5, **(other if is_paired else {}))
    while world.phases(5)[-1][0] != "posting":
        assert world.relay_all()
    close(world, EUR, PAYER, 901)
    world.settle()
    assert world.phases(5)[-1] == ("failed", "debit_account_already_closed")
    assert untouched(world)
    assert world.balance(EURO_TOO, PAYEE + (EURO_TOO << 32)) == NOTHING


def test_a_leg_that_somebody_else_posted_stops_the_saga_for_an_operator(world: SagaWorld) -> None:
    world.cross(5)
    assert world.relay("saga-legs", cross_transfer_shard(5))
    reservation = leg_id(5, Step.reserve_debit, 0)
    world.transfer(EUR, id=950, pending_id=reservation, amount=40, flags=["post_pending_transfer"])
    world.settle()
    assert world.phases(5)[-1] == ("held", "pending_transfer_already_posted")


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"credit_ledger": EUR}, "ledgers_must_be_different"),
        ({"credit_ledger": 0}, "ledger_must_not_be_zero"),
        ({"amount": 0}, "amount_must_not_be_zero"),
        ({"code": 0}, "code_must_not_be_zero"),
        ({"debit_account_id": 0}, "account_id_must_not_be_zero"),
        ({"credit_account_id": CLEARING}, "accounts_must_be_different"),
        ({"timeout": 0}, "timeout_out_of_range"),
        ({"timeout": 2_592_001}, "timeout_out_of_range"),
    ],
)
def test_wrong_requests_ask_for_nothing(world: SagaWorld, changes: dict[str, int], result: str) -> None:
    assert world.cross(5, **changes) == result
    world.settle()
    assert world.phases(5) == []
    assert untouched(world)


def test_a_reservation_that_succeeds_after_all_is_voided(world: SagaWorld) -> None:
    """An overflow does not burn an id: the repeated command may be applied when the saga has failed already."""
    world.cross(5)
    shard = cross_transfer_shard(5)
    reserve, void = leg_id(5, Step.reserve_credit, 0), leg_id(5, Step.void_credit, 0)

    def answer(identity: int, result: str) -> None:
        world.send("ledger.cross-commands", shard, [{"type": "LegAnswered", "id": identity, "result": result}])

    answer(reserve, "overflows_credits_pending")
    answer(leg_id(5, Step.reserve_debit, 0), "exceeds_credits")
    assert world.phases(5)[-1] == ("failed", "overflows_credits_pending")
    world.restart_sagas(shard)
    answer(reserve, "created")
    asked = [
        event
        for value in world.logs["ledger.cross-events", shard]
        for event in world.events("ledger.cross-events", value)
        if event["type"] == "LegRequested"
    ]
    assert (int(asked[-1]["id"]), int(asked[-1]["pending_id"]), asked[-1]["step"]) == (void, reserve, "void_credit")
    answer(void, "created")
    assert world.phases(5)[-1] == ("failed", "overflows_credits_pending")


def test_ids_of_legs_are_found_among_others() -> None:
    ids = [leg_id(7 << 90, step, attempt) for step in Step for attempt in range(50)]
    assert len(set(ids)) == len(ids)
    assert {identity >> 96 for identity in ids} == {7 << 90 >> 96}
    low = np.array([identity & (2**64 - 1) for identity in [*ids, 1, 2**64 - 1, 0]], np.uint64)
    assert leg_shards(low).tolist() == [cross_transfer_shard(7 << 90)] * len(ids) + [-1, -1, -1]


def test_the_projection_has_every_saga_as_it_ended_however_frames_are_cut(world: SagaWorld) -> None:
    world.cross(8)
    world.cross(12, amount=1_001)
    world.cross(13, timeout=5)
    world.settle()
    asked_at = world.now
    world.cross(16)
    frames = [
        (shard, sequence, codec_of(LEDGER_CROSS_EVENTS.name).decode(unwrap(value)[1]).events)
        for shard in range(LEDGER_SHARDS)
        for sequence, value in enumerate(world.logs.get((LEDGER_CROSS_EVENTS.name, shard), []), start=1)
    ]
    states = {int(state["id"]): state for state in newest_states(frames)}
    assert {identity: (state["phase"], state["reason"]) for identity, state in states.items()} == {
        identity: world.phases(identity)[-1] for identity in (8, 12, 13, 16)
    }
    assert states[8]["requested_at"] < states[8]["changed_at"] < asked_at
    assert states[16]["requested_at"] == states[16]["changed_at"] > asked_at
    [lone] = newest_states([frame for frame in frames if frame[0] == 1][-1:])
    assert {name: lone[name] for name in lone if name != "requested_at"} == {
        name: value for name, value in states[13].items() if name != "requested_at"
    }
