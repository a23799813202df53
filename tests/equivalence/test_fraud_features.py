"""The published world's features, to the last unit, and again with duplicates, after kills and with late events."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.fraud_stream import EPOCH_MICROS, event_rows, feature_rows, frames
from models.simulator import CardTransactions, load_transactions
from pipelines.fraud.kernel import FraudKernel

WINDOWS = ("1", "7", "30")
# Column sums and the sample were computed from the published transactions by an independent implementation.
SUMS = {
    "cn": (6_245_561, 32_697_104, 125_855_169),
    "cs": (33_527_589_626, 175_468_888_040, 675_409_707_102),
    "tn": (1_683_477, 11_590_995, 46_325_439),
    "tf": (14_188, 97_571, 387_493),
}
SAMPLE_NAMES = (
    "customer_id", "terminal_id", "amount", "weekend", "night", "cn1", "cs1", "cn7", "cs7", "cn30", "cs30",
    "tn1", "tf1", "tn7", "tf7", "tn30", "tf30",
)  # fmt: skip
SAMPLE = (510, 4984, 5182, 0, 0, 5, 25550, 26, 123519, 84, 373458, 1, 0, 11, 0, 36, 0)
SAMPLE_SECOND = 8_096_149


@pytest.fixture(scope="module")
def world() -> CardTransactions:
    return load_transactions()


@pytest.fixture(scope="module")
def features(world: CardTransactions) -> NDArray[np.void]:
    return feature_rows(world)


def test_published_features_are_reproduced(world: CardTransactions, features: NDArray[np.void]) -> None:
    assert len(features) == 1_754_155
    assert (features["transaction_id_lo"] == np.arange(len(features))).all()
    assert (features["status"] == 0).all()
    _, inverse, counts = np.unique(world.customer * 10**9 + world.time_seconds, return_inverse=True, return_counts=True)
    alone = features[counts[inverse] == 1]
    assert len(alone) == 1_754_097
    for letters, sums in SUMS.items():
        assert tuple(int(alone[f"{letters}{window}"].sum()) for window in WINDOWS) == sums
    assert (int(alone["weekend"].sum()), int(alone["night"].sum())) == (508_367, 304_961)
    at = np.flatnonzero((world.time_seconds == SAMPLE_SECOND) & (world.customer == 510))
    assert [tuple(int(features[name][row]) for name in SAMPLE_NAMES) for row in at] == [SAMPLE]


def test_labels_without_delay_would_be_noticed(world: CardTransactions, features: NDArray[np.void]) -> None:
    """A label that comes a day too late changes features; so would one whose delay is forgotten on the way in."""
    days = world[:400_000]
    late = feature_rows(days, label_delay_seconds=8 * 86_400)
    assert (late["tn30"] == features["tn30"][: len(days)]).all()
    assert (late["tf1"] != features["tf1"][: len(days)]).any()


def test_duplicates_kills_and_other_frames_change_nothing(world: CardTransactions, features: NDArray[np.void]) -> None:
    days = world[:150_000]
    expected = features[: len(days)]
    rows = event_rows(days)
    rng = np.random.default_rng(1)
    kernel = FraudKernel()
    pages: dict[str, bytes] = {}
    found = []
    start = 0
    while start < len(rows):
        run = rows[start : start + int(rng.integers(1, 3_000))]
        repeated = run[np.sort(rng.integers(0, len(run), len(run) + 10))]  # some twice, some left out
        for frame in frames(np.concatenate([run, repeated])):
            vectors = kernel.apply(frame)[0].events.rows
            found.append(vectors[vectors[:, 3] == 0])
        start += len(run)
        if rng.random() < 0.1:
            pages |= kernel.dirty_pages()
            kernel = FraudKernel()
            kernel.restore(pages, FraudKernel.state_version)
    vectors = np.concatenate(found)
    assert len(pages) > 10
    assert (vectors == expected.view(np.int64).reshape(len(expected), -1)).all()


def test_order_of_arrival_does_not_matter_once_all_have_come(
    world: CardTransactions, features: NDArray[np.void]
) -> None:
    """Transactions of a month that come shuffled by up to a day leave the state that the ordered ones leave."""
    days = world[:300_000]
    rng = np.random.default_rng(2)
    rows = event_rows(days)
    arrival = rows[:, 3] + np.where(rows[:, 0] == 0, rng.integers(0, 86_400_000_000, len(rows)), 86_400_000_000)
    shuffled = FraudKernel()
    for frame in frames(np.ascontiguousarray(rows[np.argsort(arrival, kind="stable")])):
        vectors = shuffled.apply(frame)[0].events.rows
        assert (vectors[:, 3] == 0).all()
    shuffled.audit()
    after = world[300_000:320_000]
    last = event_rows(after)
    last = last[last[:, 0] == 0]
    last[:, 1] += 300_000
    late_enough = (last[:, 3] - EPOCH_MICROS) // 1_000_000 > int(days.time_seconds[-1])
    found = np.concatenate([shuffled.apply(frame)[0].events.rows for frame in frames(last[late_enough])])
    expected = features[300_000:320_000][late_enough]
    names = [f"{letters}{window}" for letters in ("cn", "cs", "tn") for window in WINDOWS]
    seen = found.view(features.dtype)[:, 0]
    for name in names:
        assert (seen[name] == expected[name]).all(), name
