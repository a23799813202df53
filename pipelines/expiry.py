"""Which pending transfers expire next: a binary heap ordered by (expiry, slot), compiled.

The order is total, so transfers expire in the same order however the heap was filled. A transfer that was posted or
voided stays in the heap until its time and is then passed over. The heap is not part of the stored state: it is
rebuilt from the pending transfers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.compiled import compiled

__all__ = ["pop", "push", "rebuild"]


@compiled
def _before(heap: Any, a: Any, b: Any) -> Any:
    return heap[a, 0] < heap[b, 0] or (heap[a, 0] == heap[b, 0] and heap[a, 1] < heap[b, 1])


@compiled
def _swap(heap: Any, a: Any, b: Any) -> None:
    for word in range(2):
        kept = heap[a, word]
        heap[a, word] = heap[b, word]
        heap[b, word] = kept


@compiled
def push(heap: Any, count: Any, expires_at: Any, slot: Any) -> Any:
    """Add (expiry in nanoseconds, slot) to a heap of ``count`` entries, int64 (capacity, 2); returns the new count."""
    heap[count, 0] = expires_at
    heap[count, 1] = slot
    child = count
    while child > 0:
        parent = (child - 1) >> 1
        if not _before(heap, child, parent):
            break
        _swap(heap, child, parent)
        child = parent
    return count + 1


@compiled
def pop(heap: Any, count: Any) -> Any:
    """Take the first entry out of a heap of ``count`` > 0 entries; returns (slot, new count)."""
    slot = heap[0, 1]
    count -= 1
    heap[0, 0] = heap[count, 0]
    heap[0, 1] = heap[count, 1]
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= count:
            break
        if child + 1 < count and _before(heap, child + 1, child):
            child += 1
        if not _before(heap, child, parent):
            break
        _swap(heap, child, parent)
        parent = child
    return slot, count


@compiled
def rebuild(heap: Any, expires_at: Any, slots: Any) -> Any:
    """Fill an empty heap; returns its count."""
    count = np.int64(0)
    for entry in range(len(slots)):
        count = push(heap, count, expires_at[entry], slots[entry])
    return count
