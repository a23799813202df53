"""128-bit words and the id index against Python's integers and dicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines import expiry
from pipelines.id_index import BURNED, MAX_DEPTH, NOT_FOUND, find, insert, new_index, rebuild, remove
from pipelines.ledger import u128
from pipelines.ledger.records import TRANSFER, U128

LIMIT = 2**128
EDGES = st.sampled_from([0, 1, 2**63, 2**64 - 1, 2**64, 2**127, LIMIT - 2, LIMIT - 1])
NUMBERS = st.one_of(EDGES, st.integers(0, LIMIT - 1))


def words(number: int) -> tuple[Any, Any]:
    lo, hi = u128.split(number)
    return np.uint64(lo), np.uint64(hi)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
@example(2**64 - 1, 1)
@example(LIMIT - 1, 1)
def test_u128(a: int, b: int) -> None:
    pair = (*words(a), *words(b))
    assert u128.join(*u128.add(*pair)) == (a + b) % LIMIT
    assert u128.join(*u128.subtract(*pair)) == (a - b) % LIMIT
    assert u128.join(*u128.saturating_subtract(*pair)) == max(0, a - b)
    assert u128.less(*pair) == (a < b)
    assert u128.sum_overflows(*pair) == (a + b >= LIMIT)
    assert u128.is_zero(*words(a)) == (a == 0)
    assert u128.is_max(*words(a)) == (a == LIMIT - 1)


class Index:
    """The index with its records, and a dict that says what it must hold."""

    def __init__(self, capacity: int) -> None:
        self.index = new_index(capacity)
        self.records = np.zeros(capacity, TRANSFER)
        self.burned = np.zeros(capacity, U128)
        self.slots: dict[int, int] = {}

    def insert(self, key: int) -> None:
        slot = len(self.slots)
        lo, hi = words(key)
        self.records[slot]["id_lo"], self.records[slot]["id_hi"] = lo, hi
        insert(self.index, lo, hi, slot, False)
        self.slots[key] = slot

    def remove_last(self) -> None:
        key, slot = self.slots.popitem()
        assert remove(self.index, *words(key), slot)

    def find(self, key: int) -> int:
        found: int = find(self.index, self.records, self.burned, *words(key))
        return found

    def check(self) -> None:
        assert all(self.find(key) == slot for key, slot in self.slots.items())


@pytest.mark.parametrize("kind", ["sequential", "random", "time-ordered"])
def test_index_grows_and_finds_all(kind: str) -> None:
    rng = np.random.default_rng(1)
    index = Index(20_000)
    for number in range(1, 20_001):
        low = int(rng.integers(2**63))
        index.insert({"sequential": number, "random": low << 64 | number, "time-ordered": number << 80 | low}[kind])
    index.check()
    assert index.find(0) == NOT_FOUND
    assert index.find(2**127 + 5) == NOT_FOUND
    segments = int(index.index.header[1])
    assert 20_000 / 512 < segments < 20_000 / 128


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, LIMIT - 1), st.integers(1, 3000), st.none()), max_size=400), st.integers(0, 600)
)
def test_index_with_removals(steps: list[int | None], filling: int) -> None:
    """Removal of the newest, as rolling back a chain does it, in a segment that is about to split."""
    index = Index(2_000)
    for number in range(filling):
        index.insert(2**100 + number)
    gone = set()
    for step in steps:
        if step is None:
            if index.slots:
                gone.add(next(reversed(index.slots)))
                index.remove_last()
        elif step not in index.slots:
            index.insert(step)
    index.check()
    assert all(index.find(key) == NOT_FOUND for key in gone - set(index.slots))


def unmix(tag: int, number: int) -> int:
    """An id whose hash has the top 32 bits ``tag``: the mixer of `id_index` run backwards, for the high word 0."""
    mask = 2**64 - 1
    x = tag << 32 | number
    x ^= x >> 31
    x ^= x >> 62
    x = x * pow(0x94D049BB133111EB, -1, 2**64) & mask
    x ^= x >> 27 ^ x >> 54
    x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
    x ^= x >> 30 ^ x >> 60
    return x


def test_ids_chosen_to_collide_are_all_found() -> None:
    """Ids of one hash cannot be split apart: the index must stay right, and within its memory."""
    index = Index(4_000)
    for number in range(3_000):
        index.insert(unmix(0x5EED_CAFE, number))
    index.check()
    assert index.index.header[0] == MAX_DEPTH, "the ids do not collide: the test tests nothing"
    assert int(index.index.header[1]) < len(index.index.segments)
    assert index.find(unmix(0x5EED_CAFE, 3_001)) == NOT_FOUND
    for _ in range(2_500):
        index.remove_last()
    index.check()
    for number in range(5_000, 6_000):
        index.insert(unmix(0x5EED_CAFE, number))
    index.check()


def test_burned_and_rebuilt() -> None:
    index = Index(1_000)
    for number in range(1, 601):
        index.insert(number)
    for slot in range(200):
        index.burned[slot]["id_lo"] = 10_000 + slot
        insert(index.index, np.uint64(10_000 + slot), np.uint64(0), slot, True)
    again = new_index(1_000)
    rebuild(again, index.records, 600, False)
    rebuild(again, index.burned, 200, True)
    for found in (index.index, again):
        index.index = found
        index.check()
        assert index.find(10_150) == BURNED
        assert index.find(10_200) == NOT_FOUND


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=60))
def test_expiries_leave_in_order(times: list[int]) -> None:
    heap, count = np.zeros((64, 2), np.int64), 0
    for slot, time in enumerate(times):
        count = expiry.push(heap, count, time, slot)
    left = []
    while count:
        time = int(heap[0, 0])
        slot, count = expiry.pop(heap, count)
        left.append((time, slot))
    assert left == sorted((time, slot) for slot, time in enumerate(times))
