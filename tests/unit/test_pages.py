"""Paged state: what changed comes out as pages, and pages put back give the same state."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import psutil
import pytest
from numba import njit

from pipelines.pages import PAGE_BYTES, Column, PagedState, PageError, mark, reserve, spill_to

ROW = np.dtype([("a", "<u8"), ("b", "<u8")])
ROWS_PER_PAGE = PAGE_BYTES // 16


@njit  # not cached: a cached function must lie in a module that can be imported by its name
def write(rows, dirty, first_page, row, value):  # type: ignore[no-untyped-def]
    rows[row].a = np.uint64(value)
    mark(dirty, first_page + row // 1024)


def new_state() -> PagedState:
    return PagedState({"rows": Column(ROW, 10_000), "more": Column(ROW, 100_000), "meta": Column(np.int64, 8)})


def put(state: PagedState, column: str, row: int, value: int) -> None:
    write(state.columns[column], state.dirty, state.first_page[column], row, value)


def test_only_changed_pages_come_out_once() -> None:
    state = new_state()
    assert ROWS_PER_PAGE == state.rows_per_page["rows"] == 1024
    assert state.dirty_bytes() == 0
    put(state, "rows", 0, 7)
    put(state, "rows", 5, 8)
    put(state, "more", 1024 * 97, 9)
    assert state.dirty_bytes() == 2 * PAGE_BYTES
    pages = state.dirty_pages()
    assert list(pages) == ["rows/0", "more/97"]
    assert {len(page) for page in pages.values()} == {PAGE_BYTES}
    assert np.frombuffer(pages["rows/0"], ROW)["a"][:6].tolist() == [7, 0, 0, 0, 0, 8]
    assert (state.dirty_bytes(), state.dirty_pages()) == (0, {})


def test_small_column_is_one_short_page() -> None:
    state = new_state()
    state.columns["meta"][3] = 11
    mark(state.dirty, state.first_page["meta"])
    put(state, "rows", 1, 1)
    assert state.dirty_bytes() == PAGE_BYTES + 64
    assert sum(map(len, state.dirty_pages().values())) == PAGE_BYTES + 64


def test_pages_are_copies() -> None:
    state = new_state()
    put(state, "rows", 0, 1)
    page = state.dirty_pages()["rows/0"]
    put(state, "rows", 0, 2)
    assert np.frombuffer(page, ROW)["a"][0] == 1


def test_loaded_pages_give_the_same_state_and_are_clean() -> None:
    state, stored = new_state(), {}
    rng = np.random.default_rng(3)
    for value in range(1, 400):
        put(state, "more", int(rng.integers(100_000)), value)
        if value % 7 == 0:
            stored |= state.dirty_pages()
    stored |= state.dirty_pages()
    loaded = new_state()
    for key, page in stored.items():
        loaded.load(key, page)
    assert np.array_equal(loaded.columns["more"], state.columns["more"])
    assert loaded.dirty_bytes() == 0


@pytest.mark.parametrize(
    ("key", "size", "message"),
    [
        ("other/0", PAGE_BYTES, "no such column"),
        ("rows/-1", PAGE_BYTES, "no such column"),
        ("rows", PAGE_BYTES, "no such column"),
        ("rows/10", PAGE_BYTES, "capacity"),
        ("rows/0", PAGE_BYTES - 1, f"{PAGE_BYTES - 1} bytes found, {PAGE_BYTES} expected"),
        ("meta/0", PAGE_BYTES, "64 expected"),
    ],
)
def test_foreign_pages_are_refused(key: str, size: int, message: str) -> None:
    with pytest.raises(PageError, match=message):
        new_state().load(key, bytes(size))


def test_rows_must_divide_a_page() -> None:
    with pytest.raises(ValueError, match="24 bytes do not divide"):
        PagedState({"rows": Column(np.dtype([("a", "<u8", 3)]), 10)})


def test_reserved_capacity_takes_memory_only_where_written() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = reserve(np.uint64, 1 << 36)  # 512 GiB
    assert len(rows) == 1 << 36
    rows[0] = rows[1 << 35] = rows[-1] = 5
    assert rows[1 << 34] == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_a_spilled_column_reads_the_same_after_its_rows_left_memory(tmp_path: Path) -> None:
    spill_to(tmp_path)
    try:
        state = PagedState({"kept": Column(ROW, 10), "rows": Column(ROW, 1 << 20, spill=True)})
    finally:
        spill_to(None)
    rows = state.columns["rows"]
    rows["a"] = np.arange(1 << 20)
    before = psutil.Process().memory_info().rss
    state.release("rows", 1 << 19)
    assert psutil.Process().memory_info().rss < before - (6 << 20)
    state.release("rows", 1 << 19)
    state.release("kept", 10)
    put(state, "rows", 5, 77)
    assert np.array_equal(rows["a"][:7], [0, 1, 2, 3, 4, 77, 6])
    assert np.array_equal(rows["a"][7:], np.arange(7, 1 << 20))
    assert not list(tmp_path.iterdir()), "the file has no name, so that nothing is left behind"


def test_rows_in_memory_are_never_released() -> None:
    state = new_state()
    put(state, "more", 3, 7)
    state.release("more", 100_000)
    assert state.columns["more"]["a"][3] == 7
