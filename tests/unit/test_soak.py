"""A soak's transfers are of all kinds, its kills meet everything in turn, and both follow from the seed."""

from __future__ import annotations

from collections import Counter

from bench.soak import Fault, Moments, Rounds
from bench.soak_ledger import WANTED_RESULTS, SoakOptions, plan_kills
from bench.soak_ledger_load import FRAME_TRANSFERS, Gate, account_rows, funding_rows, transfer_rows
from jobs.inprocess import InProcess
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_RESULTS, PIPELINES
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame

SHARD = 3
FRAMES = 60


def answers(seed: int) -> Counter[str]:
    """How often the ledger answers what to a shard's load, with one frame sent twice."""
    ledger = InProcess(PIPELINES["ledger"])
    kind = codec_of(LEDGER_RESULTS.name).event_type("TransferResult")
    counts: Counter[str] = Counter()
    frames = [account_rows(SHARD), funding_rows(SHARD)]
    frames += [transfer_rows(seed, SHARD, number) for number in [*range(FRAMES), 7]]
    for number, rows in enumerate(frames):
        produced_at = 1_700_000_000_000_000 + number * 500_000
        frame = Frame(LEDGER_COMMANDS.name, SHARD, 0, produced_at, None, Events(rows))
        for output in ledger.apply_frame(frame):
            if output.topic == LEDGER_RESULTS.name and number:
                results = ledger.decode_output(output).events.view(kind.dtype)["result"]
                counts.update(kind.field("result").symbols[result] for result in results.tolist())
    return counts


def test_all_kinds_are_sent_and_most_succeed() -> None:
    counts = answers(seed=1)
    assert set(WANTED_RESULTS) <= set(counts), counts
    assert counts["pending_transfer_expired"] > 0
    sent = FRAMES * FRAME_TRANSFERS + len(funding_rows(SHARD))
    assert 0.75 * sent < counts["created"] < 0.97 * sent
    assert answers(seed=1) == counts
    assert answers(seed=2) != counts


def test_every_target_is_killed_in_turn_while_transfers_flow() -> None:
    targets = ["kafka", "postgres", "api", "taskmanager"]
    options = SoakOptions(transfers=1_000_000, kills=11, seed=5, outage_seconds=2.0)
    plan = plan_kills(options, targets)
    assert [len(plan), *(sorted(kill.target for kill in plan[turn : turn + 4]) for turn in (0, 4))] == [
        11, sorted(targets), sorted(targets),
    ]  # fmt: skip
    moments = [kill.at for kill in plan]
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < options.transfers
    assert all(0 <= kill.outage_seconds <= 2 for kill in plan)
    assert plan_kills(options, targets[::-1]) == plan
    assert plan_kills(SoakOptions(transfers=1_000_000, kills=11, seed=6), targets) != plan


def test_the_gate_lets_nobody_run_ahead() -> None:
    gate = Gate(10)
    assert gate.wait(9, 0)
    assert not gate.wait(10, 0)
    gate.seen(sent=10, waiting=4)  # six of ten are applied everywhere
    assert gate.wait(15, 0)
    assert not gate.wait(16, 0)


def test_moments_are_met_in_order_and_rounds_let_the_load_go_on_in_between() -> None:
    one, two = (Fault(name, (), lambda: None) for name in ("one", "two"))
    moments = Moments([(10, one), (10, two), (20, one)])
    assert moments.due(9, 0) is None
    assert [moments.due(10, under_way) for under_way in range(3)] == [one, two, None]
    assert moments.due(25, 2) is one
    assert moments.due(30, 0) is None
    assert not moments.is_over  # the rest of the load still flows

    rounds = Rounds(lambda: [one, two], between=5)
    assert [rounds.due(0, 0), rounds.due(4, 0), rounds.due(5, 0), rounds.due(50, 1)] == [None, None, one, None]
    assert [rounds.due(50, 0), rounds.due(54, 0), rounds.due(55, 0)] == [None, None, two]
    assert [rounds.due(60, 0), rounds.due(64, 0)] == [None, None]
    assert not rounds.is_over
    assert rounds.due(65, 0) is None
    assert rounds.is_over
