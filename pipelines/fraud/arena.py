"""Blocks of 2, 4, 8, … entries out of one growing column: memory for rings that double when they are full.

A freed block waits in the list of its size and is given out again first. An arena's bookkeeping is 40 words of the
meta column: how many entries are in use, then one list per size; a list is 1 + the block at its front, and each free
block's first word is the next one of its list.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines.compiled import compiled, compiled_inline

__all__ = ["ARENA_FULL", "SMALLEST", "free", "ring_row", "take"]

ARENA_FULL: Final = -1

SMALLEST: Final = 4
"""Entries of the smallest block."""


@compiled
def _list_of(capacity: Any) -> Any:
    """Word of the list of a block size, counted from the arena's first word."""
    bits = 0
    while capacity > 1:
        capacity >>= 1
        bits += 1
    return 1 + bits


@compiled
def take(meta: Any, arena: Any, entries: Any, capacity: Any) -> Any:
    """First entry of a block of ``capacity`` entries, a power of two, or `ARENA_FULL`.

    ``arena`` is the arena's first word in ``meta``; ``entries`` the column, int64 (entries, words).
    """
    word = arena + _list_of(capacity)
    front = meta[word]
    if front != 0:
        meta[word] = entries[front - 1, 0]
        return front - 1
    start = meta[arena]
    if start + capacity > len(entries):
        return ARENA_FULL
    meta[arena] = start + capacity
    return start


@compiled
def free(meta: Any, arena: Any, entries: Any, block: Any, capacity: Any) -> None:
    """Give a block back; its first entry is overwritten."""
    word = arena + _list_of(capacity)
    entries[block, 0] = meta[word]
    meta[word] = block + 1


@compiled_inline
def ring_row(block: Any, position: Any, last: Any) -> Any:
    """The column's row of a ring's position, ``last`` being its capacity less one. Unsigned: compiled code looks at a
    signed index for one from the end."""
    return np.uint64(block + (position & last))
