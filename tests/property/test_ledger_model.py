"""The compiled ledger against its plain model, on random frames, killed and restored in between.

Ids, amounts, limits and times are drawn from few values, so that collisions, chains, expiries and overflows are
common. Every frame must give the same results and the same events, field by field; invariants hold after every frame;
and a shard that is killed and restored must send the bytes of one that is not.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.inprocess import default_schema_ids
from pipelines.catalogue import PIPELINES
from pipelines.codec import codec_of
from pipelines.ledger.kernel import LedgerKernel
from pipelines.ledger.results import AccountResultCode, TransferResultCode
from pipelines.shard import Shard
from pipelines.wire import unwrap, wrap
from tests.support.ledger_frames import COMMANDS, U128_MAX, account, command_frame, numbers, rendered, transfer
from tests.support.ledger_model import LedgerModel
from tests.support.restarts import RestartableShard

LEDGER = PIPELINES["ledger"]
SCHEMA_IDS = default_schema_ids(LEDGER)
ACCOUNT_IDS = [1, 2, 3, 4, 5, 2**64 + 1, 2**100]
TRANSFER_IDS = [*range(100, 112), 2**64 + 100, U128_MAX - 1]
SECOND = 1_000_000

Command = dict[str, Any]


def new_shard() -> Shard:
    kernel = LedgerKernel(max_accounts=1 << 12, max_transfers=1 << 14)
    return Shard(LEDGER, 0, SCHEMA_IDS, kernel=kernel)


class Pair:
    """A shard killed at times, one that is not, and the model; all given the same frames."""

    def __init__(self) -> None:
        self.model = LedgerModel()
        self.killed = RestartableShard("ledger.commands", new_shard)
        self.undisturbed = new_shard()
        self.seen: Counter[str] = Counter()

    def apply(self, produced_at: int, commands: list[Command]) -> None:
        value = wrap(1, COMMANDS.encode(command_frame(commands, produced_at)))
        outputs = self.killed.apply(value)
        assert outputs == self.undisturbed.apply("ledger.commands", value)
        found = {}
        for output in outputs:
            frame = codec_of(output.topic).decode(unwrap(output.value)[1])
            assert (frame.shard, frame.produced_at, frame.sequence) == (0, produced_at, output.sequence)
            found[output.topic] = rendered(output.topic, frame.events)
        results, events = self.model.apply(produced_at, commands)
        assert found["ledger.results"] == results
        assert found["ledger.events"] == numbers(events)
        self.model.check_invariants()
        self.seen.update(result["result"] for result in results)
        self.seen.update(event["type"] for event in events)

    def check_state(self) -> None:
        kernel = self.killed.shard.kernel
        assert isinstance(kernel, LedgerKernel)
        kernel.audit()
        expected = numbers(self.model.state_rows())
        found = numbers(kernel.state_rows())
        shared = [{name: row[name] for name in want} for want, row in zip(expected, found, strict=True)]
        assert shared == expected
        assert kernel.burned_ids == self.model.burned
        assert kernel.clock == self.model.clock


ACCOUNT_FLAGS = st.lists(
    st.sampled_from(["debits_must_not_exceed_credits", "credits_must_not_exceed_debits", "history", "closed"]),
    max_size=2,
    unique=True,
)
AMOUNTS = st.sampled_from([0, 1, 5, 10, 100, 2**64, 2**127, U128_MAX - 10, U128_MAX])
LINKED = st.sampled_from([[], [], ["linked"]])


@st.composite
def create_account(draw: st.DrawFn) -> Command:
    return account(
        draw(st.sampled_from([*ACCOUNT_IDS, 0, U128_MAX])),
        ledger=draw(st.sampled_from([1, 1, 1, 2, 0])),
        code=draw(st.sampled_from([1, 1, 2, 0])),
        flags=draw(ACCOUNT_FLAGS) + draw(LINKED),
        user_data_32=draw(st.sampled_from([0, 0, 7])),
        timestamp=draw(st.sampled_from([0] * 8 + [5])),
    )


@st.composite
def create_transfer(draw: st.DrawFn) -> Command:
    kind = draw(st.sampled_from(["plain", "plain", "pending", "pending", "post", "void", "any"]))
    ids = st.sampled_from([*TRANSFER_IDS, 0, U128_MAX])
    extra: list[str] = []
    if kind in ("post", "void"):
        flags = ["post_pending_transfer" if kind == "post" else "void_pending_transfer"]
        return transfer(
            draw(ids),
            *draw(st.sampled_from([(0, 0), (0, 0), (1, 2), (2, 3)])),
            draw(st.sampled_from([0, 1, 5, 10, U128_MAX])),
            pending_id=draw(ids),
            ledger=draw(st.sampled_from([0, 0, 1, 2])),
            code=draw(st.sampled_from([0, 0, 1, 2])),
            user_data_128=draw(st.sampled_from([0, 0, 2**80])),
            user_data_64=draw(st.sampled_from([0, 0, 2**63])),
            flags=flags + draw(LINKED),
        )
    if kind == "pending":
        extra = ["pending", *draw(st.sampled_from([[], [], [], ["closing_debit"], ["closing_credit"]]))]
    if kind == "any":
        extra = draw(
            st.lists(
                st.sampled_from(
                    ["pending", "post_pending_transfer", "balancing_debit", "balancing_credit", "closing_debit"]
                ),
                max_size=2,
                unique=True,
            )
        )
    balancing = draw(st.sampled_from([[], [], [], [], ["balancing_debit"], ["balancing_credit"]]))
    return transfer(
        draw(ids),
        draw(st.sampled_from([*ACCOUNT_IDS, 0, U128_MAX, 77])),
        draw(st.sampled_from([*ACCOUNT_IDS, 0, U128_MAX, 77])),
        draw(AMOUNTS),
        timeout=draw(st.sampled_from([0, 1, 2, 30])) if "pending" in extra else draw(st.sampled_from([0] * 9 + [1])),
        ledger=draw(st.sampled_from([1, 1, 1, 1, 2, 0])),
        code=draw(st.sampled_from([1, 1, 1, 2, 0])),
        user_data_64=draw(st.sampled_from([0, 0, 0, 2**64 - 1])),
        flags=list(dict.fromkeys(extra + balancing + draw(LINKED))),
        timestamp=draw(st.sampled_from([0] * 12 + [9])),
    )


@st.composite
def imported_batch(draw: st.DrawFn) -> list[Command]:
    """A batch of imported events whose timestamps mostly increase."""
    times = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    if draw(st.booleans()):
        return [
            account(
                draw(st.sampled_from(ACCOUNT_IDS)),
                flags=["imported"],
                timestamp=draw(st.sampled_from([time, time * 10])),
            )
            for time in times
        ]
    return [
        transfer(
            draw(st.sampled_from(TRANSFER_IDS)),
            draw(st.sampled_from(ACCOUNT_IDS)),
            draw(st.sampled_from(ACCOUNT_IDS)),
            5,
            timeout=draw(st.sampled_from([0, 0, 0, 1])),
            flags=draw(st.sampled_from([["imported"], ["imported", "pending"], []])),
            timestamp=time * 20,
        )
        for time in times
    ]


BATCHES = st.one_of(
    st.lists(create_transfer(), max_size=12),
    st.lists(create_transfer(), max_size=12),
    st.lists(create_account(), max_size=8),
    st.lists(st.one_of(create_account(), create_transfer()), max_size=12),
    imported_batch(),
)
STEPS = st.lists(
    st.tuples(BATCHES, st.sampled_from([0, 0, 1, SECOND, 2 * SECOND]), st.sampled_from(["", "", "store", "kill"])),
    min_size=1,
    max_size=12,
)
OPENING = [account(1), account(2), account(3, flags=["debits_must_not_exceed_credits"]), account(4, ledger=2)]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(STEPS, st.booleans())
def test_random_frames(steps: list[tuple[list[Command], int, str]], opened: bool) -> None:
    pair = Pair()
    now = 0
    if opened:
        pair.apply(0, OPENING)
    for commands, later, action in steps:
        now += later
        pair.apply(now, commands)
        if action == "store":
            pair.killed.store_pages()
        elif action == "kill":
            pair.killed.kill()
    pair.check_state()


def random_command(rng: np.random.Generator, open_ids: list[int]) -> Command:
    """A command that mostly succeeds, over some hundred ids."""
    fresh = int(rng.integers(1_000, 4_000))
    debit, credit = (int(number) for number in rng.choice(np.arange(1, 41), 2, replace=False))
    flags = ["linked"] if rng.random() < 0.15 else []
    draw = rng.random()
    if draw < 0.05:
        limits = ["debits_must_not_exceed_credits", "credits_must_not_exceed_debits", "history"]
        return account(int(rng.integers(1, 41)), flags=[*flags, limits[rng.integers(3)]])
    if draw < 0.35 and open_ids:
        kind = "post_pending_transfer" if rng.random() < 0.6 else "void_pending_transfer"
        amount = U128_MAX if kind[0] == "p" and rng.random() < 0.7 else int(rng.integers(0, 50))
        amount = 0 if kind[0] == "v" else amount
        return transfer(
            fresh, 0, 0, amount, pending_id=int(rng.choice(open_ids)), ledger=0, code=0, flags=[*flags, kind]
        )
    if draw < 0.65:
        open_ids.append(fresh)
        closing = ["closing_debit"] if rng.random() < 0.02 else []
        timeout = int(rng.choice([0, 1, 5]))
        return transfer(
            fresh, debit, credit, int(rng.integers(0, 200)), timeout=timeout, flags=[*flags, "pending", *closing]
        )
    balancing = ["balancing_debit"] if rng.random() < 0.05 else []
    return transfer(fresh, debit, credit, int(rng.integers(0, 200)), flags=[*flags, *balancing])


@pytest.mark.parametrize("seed", range(4))
def test_long_run(seed: int) -> None:
    """Thousands of mostly successful commands, with restarts at random frames."""
    rng = np.random.default_rng(seed)
    pair = Pair()
    limits = (["debits_must_not_exceed_credits"], ["credits_must_not_exceed_debits"], [], [], [], [])
    pair.apply(0, [account(number, flags=limits[number % 6]) for number in range(1, 39)])
    now, open_ids = 0, []
    for _ in range(60):
        now += int(rng.integers(0, SECOND))
        pair.apply(now, [random_command(rng, open_ids) for _ in range(rng.integers(0, 60))])
        if rng.random() < 0.3:
            pair.killed.store_pages()
        if rng.random() < 0.3:
            pair.killed.kill()
    pair.check_state()
    assert pair.seen["created"] > 500
    for outcome in (
        "exists",
        "linked_event_failed",
        "id_already_failed",
        "TransferExpired",
        "pending_transfer_expired",
    ):
        assert pair.seen[outcome], f"{outcome} never happened: the run tests less than it says"


def test_result_codes_are_those_of_the_schema() -> None:
    results = codec_of("ledger.results")
    for name, codes in (("AccountResult", AccountResultCode), ("TransferResult", TransferResultCode)):
        symbols = results.event_type(name).field("result").symbols
        assert tuple(code.name for code in codes) == symbols
        assert [code.value for code in codes] == list(range(len(symbols)))
