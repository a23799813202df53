"""The simulated world is the published one, and its frauds follow the stated scenarios."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from models.simulator import DIGEST, SECONDS_PER_DAY, CardTransactions, digest, load_transactions, simulate


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def world(datasets: Path) -> CardTransactions:
    return load_transactions(datasets)


def test_default_world_is_the_published_one(world: CardTransactions) -> None:
    assert len(world) == 1_754_155
    assert digest(world) == DIGEST
    assert int(world.fraud.sum()) == 14_681
    assert np.bincount(world.scenario).tolist() == [1_754_155 - 14_681, 973, 9_077, 4_631]
    first = [int(getattr(world, column.name)[0]) for column in fields(world)]
    assert first == [31, 596, 3156, 5716, 0, 0]
    per_day = np.bincount(world.day)
    assert (per_day.min(), per_day.max()) == (9_285, 9_789)
    assert int((world.amount_cents == 0).sum()) == 42


def test_rows_are_in_time_order_with_ties_by_customer(world: CardTransactions) -> None:
    steps = np.diff(world.time_seconds)
    assert steps.min() == 0
    assert (np.diff(world.customer)[steps == 0] >= 0).all()


def test_a_second_load_reads_the_stored_world(world: CardTransactions, datasets: Path) -> None:
    (stored,) = datasets.iterdir()
    assert DIGEST in stored.name
    before = stored.stat().st_mtime_ns
    again = load_transactions(datasets)
    assert stored.stat().st_mtime_ns == before
    for column in fields(world):
        np.testing.assert_array_equal(getattr(again, column.name), getattr(world, column.name))


def test_digest_sees_a_single_changed_cent(world: CardTransactions) -> None:
    small = world[1000:2000]
    changed = CardTransactions(
        small.time_seconds, small.customer, small.terminal, small.amount_cents.copy(), small.fraud, small.scenario
    )
    changed.amount_cents[500] += 1
    assert digest(changed) != digest(small)


def test_small_world_is_deterministic_and_keeps_the_scenarios() -> None:
    reports: list[tuple[int, int]] = []
    small = simulate(customers=120, terminals=400, days=20, progress=lambda *done: reports.append(done))
    assert reports == [(50, 120), (100, 120), (120, 120)]
    assert digest(small) == digest(simulate(customers=120, terminals=400, days=20))
    assert small.time_seconds.max() < 20 * SECONDS_PER_DAY
    assert small.customer.max() < 120
    assert small.terminal.max() < 400
    assert (small.fraud == (small.scenario > 0)).all()
    # scenario 1 is decided before amounts are multiplied: every genuine amount is at most 220.00
    assert small.amount_cents[~small.fraud].max() <= 22_000
    assert small.amount_cents[small.scenario == 1].min() > 22_000
    assert (small.amount_cents[small.scenario == 3] % 5 == 0).all()
    # a compromised terminal's transactions are all frauds while it is compromised
    first_day = np.random.RandomState(0).choice(400, size=2, replace=False)
    assert small.fraud[np.isin(small.terminal, first_day)].all()
