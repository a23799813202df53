"""State in arrays that grow without copying, cut into pages that a runtime stores when they changed.

A `PagedState` reserves address space for every column at its full capacity with one private anonymous mapping each.
The operating system backs a part with memory when it is first written, so an untouched capacity costs nothing and a
growing column is never moved or copied: no frame waits for a resize. (Where the kernel accounts strictly for
reservations, ``vm.overcommit_memory=2`` or a limit on address space, capacities must fit that limit.)

Compiled code writes a row and then calls `mark` with the row's page: `dirty_pages` hands out exactly the marked pages
and forgets them, `dirty_bytes` is their size in O(1). All pages ever handed out, the latest of each key, are the
state; a column never written has no page and reads as zeros.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipelines.compiled import compiled_inline
from pipelines.errors import StreambankError

__all__ = ["PAGE_BYTES", "Column", "DirtyPages", "PageError", "PagedState", "mark", "reserve"]

PAGE_BYTES: Final = 16 * 1024

_MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class PageError(StreambankError):
    """A stored page does not belong to this state: unknown column, page out of range, or wrong size."""


def reserve(dtype: DTypeLike, capacity: int, *, huge_pages: bool = False) -> NDArray[Any]:
    """A zeroed array of ``capacity`` rows that takes memory only where it is written.

    ``huge_pages`` asks for 2 MiB memory pages where offered: right for tables read at random, wasteful for small ones.
    """
    row = np.dtype(dtype)
    region = mmap.mmap(
        -1, max(row.itemsize * capacity, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    )
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(region, row, capacity)


@dataclass(frozen=True, slots=True)
class Column:
    """``capacity`` rows of ``dtype``, whose size divides the page size; ``huge_pages`` as for `reserve`."""

    dtype: DTypeLike
    capacity: int
    huge_pages: bool = False


class DirtyPages(NamedTuple):
    """Which pages changed, for compiled code: ``marked[0]`` numbers in ``queue``, each flagged once in ``flags``."""

    flags: NDArray[np.uint8]
    queue: NDArray[np.int64]
    marked: NDArray[np.int64]


@compiled_inline
def mark(dirty: DirtyPages, page: int) -> None:
    """Note that ``page`` (numbered over all columns, see `PagedState.first_page`) changed."""
    if dirty.flags[page] == 0:
        dirty.flags[page] = 1
        dirty.queue[dirty.marked[0]] = page
        dirty.marked[0] += 1


class PagedState:
    """Named columns and the pages they are cut into.

    A page's key is ``<column>/<number>``; it holds ``page_bytes`` bytes, or the whole column if that is smaller, in
    the machine's byte order (little-endian; others are refused).
    """

    def __init__(self, columns: Mapping[str, Column], page_bytes: int = PAGE_BYTES) -> None:
        if sys.byteorder != "little":
            raise PageError("pages are little-endian; this machine is not")
        self.page_bytes = page_bytes
        self.columns: dict[str, NDArray[Any]] = {}
        self.first_page: dict[str, int] = {}
        """Number of each column's first page; its row r lies in page ``first_page + r // rows_per_page``."""
        self.rows_per_page: dict[str, int] = {}
        self._page_size: dict[str, int] = {}
        self._column_of_page: list[tuple[int, str]] = []
        pages = 0
        for name, column in columns.items():
            size = np.dtype(column.dtype).itemsize
            if page_bytes % size:
                raise ValueError(f"column {name}: rows of {size} bytes do not divide a page of {page_bytes}")
            self.first_page[name] = pages
            self.rows_per_page[name] = page_bytes // size
            count = -(-column.capacity * size // page_bytes)
            # whole pages, except for a column smaller than one
            self._page_size[name] = min(page_bytes, column.capacity * size)
            rows = column.capacity if count <= 1 else count * self.rows_per_page[name]
            self.columns[name] = reserve(column.dtype, rows, huge_pages=column.huge_pages)
            self._column_of_page.append((pages, name))
            pages += count
        self.dirty = DirtyPages(reserve(np.uint8, pages), reserve(np.int64, pages), np.zeros(1, np.int64))
        # a small column's page is shorter; counted here so that `dirty_bytes` stays O(1)
        self._short = [
            (self.first_page[name], page_bytes - size) for name, size in self._page_size.items() if size < page_bytes
        ]
        self._bytes = {name: array.view(np.uint8).data for name, array in self.columns.items()}

    def _locate(self, page: int) -> tuple[str, int]:
        first, name = max(entry for entry in self._column_of_page if entry[0] <= page)
        return name, page - first

    def dirty_bytes(self) -> int:
        """Bytes that `dirty_pages` would return; O(1)."""
        total = int(self.dirty.marked[0]) * self.page_bytes
        for page, missing in self._short:
            if self.dirty.flags[page]:
                total -= missing
        return total

    def dirty_pages(self) -> dict[str, bytes]:
        """The pages marked since the last call, in page order, and forget the marks."""
        count = int(self.dirty.marked[0])
        numbers = np.sort(self.dirty.queue[:count])
        self.dirty.flags[numbers] = 0
        self.dirty.marked[0] = 0
        pages: dict[str, bytes] = {}
        for number in numbers.tolist():
            name, page = self._locate(number)
            size = self._page_size[name]
            pages[f"{name}/{page}"] = bytes(self._bytes[name][page * size : (page + 1) * size])
        return pages

    def load(self, key: str, data: bytes) -> None:
        """Put one stored page back; it does not become dirty. Raises `PageError` if it cannot be one of this state."""
        name, _, number = key.rpartition("/")
        if name not in self.columns or not number.isdecimal():
            raise PageError(f"page {key!r}: no such column; known are {', '.join(self.columns)}")
        size = self._page_size[name]
        start = int(number) * size
        if start + size > len(self._bytes[name]):
            raise PageError(f"page {key!r}: beyond the column's capacity of {len(self.columns[name])} rows; raise it")
        if len(data) != size:
            raise PageError(f"page {key!r}: {len(data)} bytes found, {size} expected")
        self._bytes[name][start : start + size] = data
