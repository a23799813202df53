"""Journaled state: a shard's pages and, since they were last written, the frames applied to it.

PyFlink gives a Python function no hook before a snapshot, but Flink takes its snapshots between two records. So every
record leaves the state complete: a frame is appended to the journal as it is applied, and now and then the pages that
have changed are written and the journal is cleared (a fold). Pages + journal = the shard, at every barrier.

Pages are stored compressed (one zstd frame each): records are mostly zeros and shrink tenfold for a microsecond per
kilobyte, which is far less than writing and compacting them costs the backend.

A restore loads the pages and applies the journal again, discarding the outputs: they were sent before, or will be
dropped by readers when the frames after the checkpoint come again.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import zstandard

__all__ = ["FoldPolicy", "JournalState", "JournaledShard", "PageState"]


ZSTD_LEVEL: Final = -1
"""Records compress by the same factor at levels -1 to 3; this is the fastest of them."""


@dataclass(frozen=True, slots=True)
class FoldPolicy:
    """When to write pages back. Folding is paid for by the journal that it saves: folds write about as much as the
    journal at most, whatever the access pattern, unless a cap forces one earlier.

    The caps bound what a restore must apply again; bytes are those of the frames.
    """

    min_frames: int = 64
    max_frames: int = 4096
    max_bytes: int = 16 << 20

    def due(self, frames: int, journal_bytes: int, fold_bytes: float) -> bool:
        """``fold_bytes``: what a fold would write."""
        if frames >= self.max_frames or journal_bytes >= self.max_bytes:
            return True
        return frames >= self.min_frames and journal_bytes >= fold_bytes


class JournalState(Protocol):
    """The part of PyFlink's list state used here, for the current key."""

    def add(self, value: bytes) -> None: ...
    def get(self) -> Iterable[bytes]: ...
    def clear(self) -> None: ...


class PageState(Protocol):
    """The part of PyFlink's map state used here, for the current key."""

    def put(self, key: str, value: bytes) -> None: ...
    def get(self, key: str) -> bytes | None: ...
    def items(self) -> Iterable[tuple[str, bytes]]: ...
    def clear(self) -> None: ...


class PagedShard(Protocol):
    """The part of `pipelines.shard.Shard` used here."""

    def apply(self, topic: str, value: bytes) -> list[Any]: ...
    def dirty_pages(self) -> Mapping[str, bytes]: ...
    def dirty_bytes(self) -> int: ...
    def restore(self, pages: Mapping[str, bytes]) -> bool: ...


class _StoredPages(Mapping[str, bytes]):
    """The state's pages, read and decompressed one at a time: all of them need not fit into memory twice."""

    def __init__(self, pages: PageState) -> None:
        self.pages = pages
        self.decompress = zstandard.ZstdDecompressor().decompress
        self.loaded = 0
        """Pages handed out by `items`."""

    def __getitem__(self, key: str) -> bytes:
        value = self.pages.get(key)
        if value is None:
            raise KeyError(key)
        return self.decompress(bytes(value))

    def __iter__(self) -> Iterator[str]:
        return (str(key) for key, _ in self.pages.items())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def items(self) -> ItemsView[str, bytes]:
        return _StoredItems(self)


class _StoredItems(ItemsView[str, bytes]):
    _mapping: _StoredPages

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        stored = self._mapping
        for key, value in stored.pages.items():
            stored.loaded += 1
            yield str(key), stored.decompress(bytes(value))


class JournaledShard:
    """One shard with its state in Flink. Made for the current key, and used only while that key is current."""

    def __init__(
        self, shard: PagedShard, topic: str, journal: JournalState, pages: PageState, policy: FoldPolicy
    ) -> None:
        """Restores the shard from what the states hold; raises whatever the kernel raises on unreadable pages."""
        self._shard = shard
        self._topic = topic
        self._journal = journal
        self._pages = pages
        self._policy = policy
        self.journal_frames = 0
        self.journal_bytes = 0
        self._compressed_share = 1.0
        """Bytes stored per byte of page in the last fold."""
        self._compress = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress
        stored = _StoredPages(pages)
        upcast = shard.restore(stored)
        for value in journal.get():
            frame = bytes(value)
            shard.apply(topic, frame)
            self.journal_frames += 1
            self.journal_bytes += len(frame)
        self.restored_pages = stored.loaded
        self.restored_frames = self.journal_frames
        if upcast:  # pages of two versions must never lie side by side
            pages.clear()
            self._fold()

    def apply(self, value: bytes) -> list[Any]:
        """Apply one frame and make it part of the state; returns its outputs.

        A `FrameError` leaves shard and state as they were.
        """
        outputs = self._shard.apply(self._topic, value)
        self._journal.add(value)
        self.journal_frames += 1
        self.journal_bytes += len(value)
        fold_bytes = self._shard.dirty_bytes() * self._compressed_share
        if self._policy.due(self.journal_frames, self.journal_bytes, fold_bytes):
            self._fold()
        return outputs

    def _fold(self) -> None:
        pages = self._shard.dirty_pages()
        stored_bytes = 0
        for key, page in pages.items():
            stored = self._compress(page)
            stored_bytes += len(stored)
            self._pages.put(key, stored)
        self._compressed_share = stored_bytes / max(sum(map(len, pages.values())), 1)
        self._journal.clear()
        self.journal_frames = 0
        self.journal_bytes = 0
