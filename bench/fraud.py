"""The fraud feature kernel alone: events per CPU-second, rows of transactions in, rows of features out.

Two worlds in frames of 500 events: 5,000 cards at 10,000 terminals and a million cards at 100,000 terminals, both with
time enough that every window moves; one transaction in a hundred is labelled a week later. The state's size is measured
as what the process holds more afterwards, remembered ids apart. The baseline is what a first version in plain Python
would be: a deque per window. Sums of the 30-day counts are checked against sorted arrays.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.report import Measurement
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.fraud.kernel import FraudKernel
from pipelines.fraud.records import DAY, LABEL_DELAY

__all__ = ["measure", "world"]

FRAME_EVENTS: Final = 500
START: Final = 1_522_540_800_000_000
WARM_UP: Final = 0.25
"""Part of the events that fills the windows before the clock is started."""

_CODEC: Final = codec_of("fraud.transactions")
_TRANSACTION: Final = _CODEC.event_type("Transaction").dtype
_LABEL: Final = _CODEC.event_type("FraudLabel").dtype
_FEATURES: Final = codec_of("fraud.features").event_type("FeatureVector").dtype


def measure(events: int = 2_000_000, seed: int = 1) -> list[Measurement]:
    """Rates of both worlds with their bytes per card and per terminal."""
    chosen = {
        "5,000 cards": (5_000, 10_000, events, 200 * DAY, 3_000_000),
        "1,000,000 cards": (1_000_000, 100_000, 2 * events, 10 * DAY, 1_000_000),
    }
    baseline = _plain_rate(seed)
    return [
        measured
        for name, (cards, terminals, count, span, goal) in chosen.items()
        for measured in _measure(name, cards, terminals, count, span, goal, seed, baseline)
    ]


def _measure(
    name: str, cards: int, terminals: int, count: int, span: int, goal: int, seed: int, baseline: float
) -> list[Measurement]:
    rows = world(cards, terminals, count, span, seed)
    FraudKernel().apply(_frame(rows[:2]))  # compiled, or read from the cache
    before = _resident_bytes()
    kernel = FraudKernel()
    warm = int(len(rows) * WARM_UP)
    in_windows = 0
    seconds = 0.0
    for start in range(0, len(rows), FRAME_EVENTS):
        frame = _frame(rows[start : start + FRAME_EVENTS])
        began = time.process_time()
        vectors = kernel.apply(frame)[0].events
        if start >= warm:
            seconds += time.process_time() - began
        in_windows += int(vectors.view(_FEATURES)["cn30"].sum())
    grown = _resident_bytes() - before
    timed = len(rows) - -(-warm // FRAME_EVENTS) * FRAME_EVENTS
    rate = timed / seconds
    transactions = rows[rows[:, 0] == 0].view(_TRANSACTION)[:, 0]
    expected = _counts_in_30_days(transactions)
    if in_windows != expected:
        raise AssertionError(f"{name}: the 30-day counts add up to {in_windows}, sorted arrays say {expected}")
    memory, counts = kernel.memory(), kernel.counts
    check = f"30-day counts add up to {expected:,} as by sorting"
    return [
        Measurement(
            name=f"fraud feature kernel, {name}",
            value=rate,
            unit="events/s of CPU",
            baseline=baseline,
            baseline_name="plain Python",
            ratio=rate / baseline,
            goal=f">= {goal:,}/s",
            met=rate >= goal,
            check=check,
            detail={"frame_events": FRAME_EVENTS, "resident_bytes": grown, **memory, **counts},
        ),
        *(
            Measurement(
                name=f"state of a {one}, {name}",
                value=memory[many] / counts[many],
                unit="bytes",
                check=f"{counts[many]:,} {many}; {grown / 2**20:,.0f} MiB resident for all, remembered ids included",
            )
            for one, many in (("card", "cards"), ("terminal", "terminals"))
        ),
    ]


def world(cards: int, terminals: int, count: int, span: int, seed: int) -> NDArray[np.int64]:
    """``count`` transactions at even random times over ``span`` microseconds, and labels of a hundredth of them."""
    rng = np.random.default_rng(seed)
    labelled = count // 100
    rows = _CODEC.new_rows(count + labelled)
    transactions = rows[:count].view(_TRANSACTION)[:, 0]
    transactions["transaction_id_lo"] = rng.permutation(count)
    transactions["event_time"] = START + np.sort(rng.integers(0, span, count))
    transactions["customer_id"] = rng.integers(0, cards, count)
    transactions["terminal_id"] = rng.integers(0, terminals, count)
    transactions["amount"] = rng.integers(0, 20_000, count)
    labels = rows[count:].view(_LABEL)[:, 0]
    chosen = rng.integers(0, count, labelled)
    labels["kind"] = 1
    labels["transaction_id_lo"] = transactions["transaction_id_lo"][chosen]
    labels["event_time"] = transactions["event_time"][chosen] + LABEL_DELAY
    labels["fraud"] = 1
    times = np.concatenate([transactions["event_time"], labels["event_time"]])
    return np.ascontiguousarray(rows[np.lexsort((rows[:, 0] == 0, times))])


def _frame(rows: NDArray[np.int64]) -> Frame:
    return Frame("fraud.transactions", 0, 0, 0, None, Events(rows))


def _counts_in_30_days(transactions: NDArray[np.void]) -> int:
    """Sum over all transactions of how many their card has in the 30 days that end with them."""
    order = np.argsort(transactions["customer_id"], kind="stable")
    times = transactions["event_time"][order] - START
    # keys of two cards lie further apart than 30 days, so no window reaches from one into another
    apart = int(times.max()) + 30 * DAY + 1
    assert apart * int(transactions["customer_id"].max() + 1) < 1 << 63
    key = transactions["customer_id"][order] * apart + times
    return int((np.arange(len(key)) - np.searchsorted(key, key - 30 * DAY, side="right") + 1).sum())


def _resident_bytes() -> int:
    with Path("/proc/self/statm").open() as status:
        return int(status.read().split()[1]) * 4096


def _plain_rate(seed: int, count: int = 20_000) -> float:
    """Events per CPU-second of deques, the same windows of days without late events or labels."""
    rows = world(5_000, 10_000, count, 20 * DAY, seed)
    events = [
        (found["event_time"], found["customer_id"], found["terminal_id"], found["amount"])
        for found in rows[rows[:, 0] == 0].view(_TRANSACTION)[:, 0].tolist()
        for found in [dict(zip(_TRANSACTION.names or (), found, strict=True))]
    ]
    widths = (DAY, 7 * DAY, 30 * DAY)
    cards: dict[int, list[deque[tuple[int, int]]]] = defaultdict(lambda: [deque() for _ in widths])
    terminals: dict[int, list[deque[int]]] = defaultdict(lambda: [deque() for _ in widths])
    answers = []
    began = time.process_time()
    for moment, customer, terminal, amount in events:
        features = []
        for width, window in zip(widths, cards[customer], strict=True):
            window.append((moment, amount))
            while window[0][0] <= moment - width:
                window.popleft()
            features.append((len(window), sum(paid for _, paid in window)))
        for width, held in zip(widths, terminals[terminal], strict=True):
            while held and held[0] <= moment - LABEL_DELAY - width:
                held.popleft()
            features.append((sum(then <= moment - LABEL_DELAY for then in held), 0))
            held.append(moment)
        answers.append(features)
    return len(answers) / (time.process_time() - began)
