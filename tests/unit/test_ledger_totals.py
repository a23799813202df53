"""Running totals equal a recomputation from the entries, whatever their order and wherever the state was restored."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.inprocess import InProcess
from jobs.replay import Replay
from pipelines.catalogue import PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.ledger_totals.kernel import MAX_TOTALS_PER_FRAME, MIN_WINDOWS, LedgerTotalsKernel, WindowGivenUp
from pipelines.shard import Shard
from pipelines.wire import unwrap, wrap
from tests.support.ledger_history import history_log
from tests.support.ledger_totals import keyed, recomputed

EVENTS = codec_of("ledger.events")
TOTALS = codec_of("ledger.totals")
PIPELINE = PIPELINES["ledger_totals"]
HOUR = 3_600_000_000_000
MIDNIGHT = 1_700_006_400_000_000_000
assert MIDNIGHT % (24 * HOUR) == 0


def small_kernel() -> LedgerTotalsKernel:
    return LedgerTotalsKernel(max_accounts=1 << 14, max_groups=1 << 14, max_windows=MIN_WINDOWS)


def posted(at: int, debit: int = 1, credit: int = 2, amount: int = 10, **more: Any) -> dict[str, Any]:
    balances = {
        f"{side}_account_{name}": 0
        for side in ("debit", "credit")
        for name in ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
    }
    return {
        "type": "TransferCreated", "id": at, "debit_account_id": debit, "credit_account_id": credit, "amount": amount,
        "ledger": 4, "code": 1, "flags": [], "timestamp": at, **balances, **more,
    }  # fmt: skip


def frame(sequence: int, events: list[dict[str, Any]]) -> Frame:
    return Frame("ledger.events", 0, sequence, 5, None, parse_events(EVENTS, events))


class Reader:
    """Keeps the newest record of each window, as a store does."""

    def __init__(self, kernel: LedgerTotalsKernel) -> None:
        self.kernel = kernel
        self.totals: dict[Any, Any] = {}
        self.sequence = 0

    def add(self, events: list[dict[str, Any]]) -> list[int]:
        """Apply a frame; returns the sizes of the output frames."""
        self.sequence += 1
        outputs = self.kernel.apply(frame(self.sequence, events))
        for output in outputs:
            rows = [keyed(total) for total in render_events(TOTALS, output.events)]
            assert len({key for key, _ in rows}) == len(rows)
            self.totals |= dict(rows)
        return [len(output.events) for output in outputs]


def test_one_entry_changes_eight_windows() -> None:
    reader = Reader(small_kernel())
    assert reader.add([posted(MIDNIGHT + 1, amount=2**127)]) == [8]
    windows = {key: value for key, value in reader.totals.items() if key[1] == "hour"}
    assert {key[0] for key in windows} == {
        ("account", 1, 4, 0), ("account", 2, 4, 0), ("ledger", 0, 4, 0), ("code", 0, 4, 1)
    }  # fmt: skip
    assert windows[("account", 1, 4, 0), "hour", MIDNIGHT] == {
        "debits": 2**127, "credits": 0, "entries": 1, "opening_debits": 0, "opening_credits": 0
    }  # fmt: skip
    assert reader.add([]) == [0]


def test_boundaries_belong_to_the_later_window() -> None:
    reader = Reader(small_kernel())
    reader.add([posted(MIDNIGHT - 1), posted(MIDNIGHT), posted(MIDNIGHT + HOUR - 1), posted(MIDNIGHT + HOUR)])
    starts = {
        key[2]: value["entries"] for key, value in reader.totals.items() if key[:2] == (("ledger", 0, 4, 0), "hour")
    }
    assert starts == {MIDNIGHT - HOUR: 1, MIDNIGHT: 2, MIDNIGHT + HOUR: 1}
    days = {key[2]: value["entries"] for key, value in reader.totals.items() if key[:2] == (("ledger", 0, 4, 0), "day")}
    assert days == {MIDNIGHT - 24 * HOUR: 1, MIDNIGHT: 3}


def test_late_entry_corrects_its_window_and_later_openings() -> None:
    reader = Reader(small_kernel())
    events = [posted(MIDNIGHT + 5 * HOUR), posted(MIDNIGHT + 9 * HOUR), posted(MIDNIGHT + 30 * HOUR)]
    for event in events:
        reader.add([event])
    late = posted(MIDNIGHT + 7 * HOUR, amount=3)
    assert reader.add([late]) == [4 * (3 + 2)]
    assert reader.totals == recomputed([*events, late])


@settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_totals_equal_the_recomputation_in_any_order(rng: random.Random, per_frame: int) -> None:
    flags = [[], [], [], ["pending"], ["void_pending_transfer"], ["post_pending_transfer"]]
    events = []
    for _ in range(40):
        ledger = rng.choice([4, 8])
        debit, credit = rng.sample(range(ledger, ledger + 4), 2)
        events.append(
            posted(
                MIDNIGHT + rng.randrange(60 * HOUR), debit, credit, rng.randrange(2**70), ledger=ledger,
                code=rng.choice([1, 2]), flags=rng.choice(flags),
            )
        )  # fmt: skip
    reader = Reader(small_kernel())
    for first in range(0, len(events), per_frame):
        reader.add(events[first : first + per_frame])
    assert reader.totals == recomputed(events)
    assert dict(map(keyed, reader.kernel.state_rows())) == reader.totals


def shard() -> Shard:
    return Shard(PIPELINE, 0, {"ledger.totals": 1}, kernel=small_kernel())


def test_restored_shard_gives_the_same_bytes() -> None:
    rng = random.Random(4)
    values = [
        wrap(1, EVENTS.encode(frame(number + 1, [posted(MIDNIGHT + rng.randrange(9 * HOUR)) for _ in range(7)])))
        for number in range(20)
    ]
    undisturbed, disturbed = shard(), shard()
    stored: dict[str, bytes] = {}
    for number, value in enumerate(values):
        if number % 6 == 5:
            stored |= disturbed.dirty_pages()
            disturbed = shard()
            disturbed.restore(stored)
        assert disturbed.apply("ledger.events", value) == undisturbed.apply("ledger.events", value)


def test_many_changed_windows_leave_in_several_frames_below_kafkas_limit() -> None:
    big = 2**126
    events = [
        posted(MIDNIGHT + number, big + 2 * number, big + 2 * number + 1, 2**113, ledger=2**32 - 1, code=number + 1)
        for number in range(PIPELINE.max_frame_events)
    ]
    outputs = shard().apply_frame(frame(1, events))
    assert [output.sequence for output in outputs] == [1, 2, 3, 4]
    sizes = [len(TOTALS.decode(unwrap(output.value)[1]).events) for output in outputs]
    assert (sum(sizes), max(sizes)) == (2_500 * 6 + 2, MAX_TOTALS_PER_FRAME)
    assert max(len(output.value) for output in outputs) < 1_000_000


def test_window_given_up_stops_the_job_by_name() -> None:
    reader = Reader(small_kernel())
    for number in range(MIN_WINDOWS // 4):
        reader.add([posted(MIDNIGHT + number * HOUR)])
    newest = MIDNIGHT + (MIN_WINDOWS // 4 - 1) * HOUR
    assert reader.totals[("account", 1, 4, 0), "hour", newest]["opening_debits"] == 10 * (MIN_WINDOWS // 4 - 1)
    reader.add([posted(newest - HOUR)])
    with pytest.raises(WindowGivenUp, match="start with a larger max_windows"):
        reader.add([posted(MIDNIGHT + HOUR)])


def test_replay_of_a_recorded_ledger_equals_the_recomputation() -> None:
    log = history_log()
    lines = []
    for number, value in log.records:
        found = EVENTS.decode(unwrap(value)[1])
        lines.append(
            {
                "shard": number, "sequence": found.sequence, "produced_at": found.produced_at,
                "events": render_events(EVENTS, found.events),
            }
        )  # fmt: skip
    source = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
    totals: dict[Any, Any] = {}
    for line in Replay(PIPELINE, source).lines():
        totals |= dict(map(keyed, json.loads(line)["events"]))
    assert totals == recomputed(event for _, _, _, event in log.events())

    runtime = InProcess(PIPELINE)
    sent: dict[Any, Any] = {}
    for _, value in log.records:
        for output in runtime.apply("ledger.events", value):
            rows = render_events(TOTALS, runtime.decode_output(output).events)
            sent |= dict(map(keyed, rows))
    assert sent == totals
