"""Second stage: what happened at a terminal until a week ago, by exact windows (t - 7 d - width, t - 7 d].

The delay is the time that investigations take: a transaction exactly 7 x 86,400 s old is in. Its label counts once the
label has arrived. In the ordinary case window ends and starts only move forward, so a transaction costs O(1) amortised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.compiled import compiled, compiled_inline
from pipelines.fraud import features
from pipelines.fraud.arena import ARENA_FULL, SMALLEST, free, ring_row, take
from pipelines.fraud.records import (
    BLOCK,
    CAPACITY,
    HEAD,
    LABEL_DELAY,
    NEWEST,
    RECORD_WORDS,
    TAIL,
    TERMINAL_ARENA,
    TERMINAL_FRAUDS,
    TERMINAL_RETENTION,
    TERMINAL_WINDOW_START,
    TERMINAL_WINDOWS,
    WINDOWS_END,
)  # fmt: skip
from pipelines.fraud.state import TERMINAL_ENTRIES_COLUMN, TERMINALS_COLUMN, mark_bytes

__all__ = ["add_late", "add_newest", "make_room", "set_label"]

_RECORD_BYTES = 8 * RECORD_WORDS


@compiled
def _grow(state: Any, terminal: Any) -> Any:
    """Twice the capacity for a terminal's ring; False when the arena is full."""
    terminals = state.terminals
    entries = state.terminal_entries
    old_capacity = terminals[terminal, CAPACITY]
    capacity = old_capacity * 2 if old_capacity > 0 else SMALLEST
    block = take(state.meta, TERMINAL_ARENA, entries, capacity)
    if block == ARENA_FULL:
        return False
    if old_capacity > 0:
        old = terminals[terminal, BLOCK]
        for position in range(terminals[terminal, TAIL], terminals[terminal, HEAD]):
            to = block + (position & (capacity - 1))
            entries[to, 0] = entries[old + (position & (old_capacity - 1)), 0]
            mark_bytes(state, TERMINAL_ENTRIES_COLUMN, to * 8)
        free(state.meta, TERMINAL_ARENA, entries, old, old_capacity)
        mark_bytes(state, TERMINAL_ENTRIES_COLUMN, old * 8)
    terminals[terminal, BLOCK] = block
    terminals[terminal, CAPACITY] = capacity
    return True


@compiled
def make_room(state: Any, terminal: Any) -> Any:
    """Let go of entries that no window can reach any more and grow the ring if that was not enough.

    False when the arena is full; the state is then of no more use.
    """
    terminals = state.terminals
    entries = state.terminal_entries
    block, last = terminals[terminal, BLOCK], terminals[terminal, CAPACITY] - 1
    tail, head = terminals[terminal, TAIL], terminals[terminal, HEAD]
    limit = terminals[terminal, NEWEST] - TERMINAL_RETENTION
    while tail < head and (entries[block + (tail & last), 0] >> 1) <= limit:
        tail += 1
    terminals[terminal, TAIL] = tail
    return head - tail <= last or _grow(state, terminal)


@compiled
def add_late(state: Any, terminal: Any, time: Any, fraud: Any, out: Any, row: Any) -> None:
    """A transaction older than the terminal's newest, into a ring that has room: after those that are not newer."""
    terminals = state.terminals
    entries = state.terminal_entries
    head, tail = terminals[terminal, HEAD], terminals[terminal, TAIL]
    block, last = terminals[terminal, BLOCK], terminals[terminal, CAPACITY] - 1
    place = head
    while place > tail and (entries[block + ((place - 1) & last), 0] >> 1) > time:
        to = block + (place & last)
        entries[to, 0] = entries[block + ((place - 1) & last), 0]
        mark_bytes(state, TERMINAL_ENTRIES_COLUMN, to * 8)
        place -= 1
    to = block + (place & last)
    entries[to, 0] = time << 1 | fraud
    mark_bytes(state, TERMINAL_ENTRIES_COLUMN, to * 8)
    terminals[terminal, HEAD] = head + 1

    newest_end = terminals[terminal, NEWEST] - LABEL_DELAY
    if time <= newest_end:
        terminals[terminal, WINDOWS_END] += 1
    for window in range(len(TERMINAL_WINDOWS)):
        width = TERMINAL_WINDOWS[window]
        if time <= newest_end - width:
            terminals[terminal, TERMINAL_WINDOW_START + window] += 1
        elif time <= newest_end:
            terminals[terminal, TERMINAL_FRAUDS + window] += fraud
        # from the newest windows back to this transaction's
        start = terminals[terminal, TERMINAL_WINDOW_START + window]
        end = terminals[terminal, WINDOWS_END]
        frauds = terminals[terminal, TERMINAL_FRAUDS + window]
        while start > tail and (entries[block + ((start - 1) & last), 0] >> 1) > time - LABEL_DELAY - width:
            start -= 1
            frauds += entries[block + (start & last), 0] & 1
        while end > tail and (entries[block + ((end - 1) & last), 0] >> 1) > time - LABEL_DELAY:
            end -= 1
            frauds -= entries[block + (end & last), 0] & 1
        out[row, features.TERMINAL_DAYS + 2 * window] = end - start
        out[row, features.TERMINAL_DAYS + 2 * window + 1] = frauds


@compiled_inline
def add_newest(state: Any, record: Any, time: Any, fraud: Any, answer: Any) -> None:
    """Take a transaction that is not older than the terminal's others into a ring that has room, and write its windows
    into its ``answer``. ``record`` is the terminal's; ``fraud``: 1 if it is already labelled as one."""
    entries = state.terminal_entries
    head = record[HEAD]
    block, last = record[BLOCK], record[CAPACITY] - 1
    end = record[WINDOWS_END]
    entered = 0
    limit = time - LABEL_DELAY
    while end < head and (entries[ring_row(block, end, last), 0] >> 1) <= limit:
        entered += entries[ring_row(block, end, last), 0] & 1
        end += 1
    record[WINDOWS_END] = end
    for window in range(len(TERMINAL_WINDOWS)):
        start = record[TERMINAL_WINDOW_START + window]
        frauds = record[TERMINAL_FRAUDS + window] + entered
        limit = time - LABEL_DELAY - TERMINAL_WINDOWS[window]
        while start < end and (entries[ring_row(block, start, last), 0] >> 1) <= limit:
            frauds -= entries[ring_row(block, start, last), 0] & 1
            start += 1
        record[TERMINAL_WINDOW_START + window] = start
        record[TERMINAL_FRAUDS + window] = frauds
        answer[features.TERMINAL_DAYS + 2 * window] = end - start
        answer[features.TERMINAL_DAYS + 2 * window + 1] = frauds
    entry = ring_row(block, head, last)
    entries[entry, 0] = time << 1 | fraud
    mark_bytes(state, TERMINAL_ENTRIES_COLUMN, np.int64(entry) * 8)
    record[NEWEST] = time
    record[HEAD] = head + 1


@compiled
def set_label(state: Any, terminal: Any, time: Any, fraud: Any) -> None:
    """Change the label of one entry of that time; which of equal ones is all the same to every window.

    O(log of the entries kept). Nothing happens when the entry is not kept any more: no window can reach it.
    """
    terminals = state.terminals
    entries = state.terminal_entries
    block, last = terminals[terminal, BLOCK], terminals[terminal, CAPACITY] - 1
    low, head = terminals[terminal, TAIL], terminals[terminal, HEAD]
    high = head
    while low < high:
        middle = (low + high) >> 1
        if (entries[block + (middle & last), 0] >> 1) < time:
            low = middle + 1
        else:
            high = middle
    old = time << 1 | (1 - fraud)
    while low < head and entries[block + (low & last), 0] != old:
        if (entries[block + (low & last), 0] >> 1) != time:
            return
        low += 1
    if low == head:
        return
    entry = block + (low & last)
    entries[entry, 0] = time << 1 | fraud
    mark_bytes(state, TERMINAL_ENTRIES_COLUMN, entry * 8)
    mark_bytes(state, TERMINALS_COLUMN, terminal * _RECORD_BYTES)
    if low < terminals[terminal, WINDOWS_END]:
        for window in range(len(TERMINAL_WINDOWS)):
            if low >= terminals[terminal, TERMINAL_WINDOW_START + window]:
                terminals[terminal, TERMINAL_FRAUDS + window] += 2 * fraud - 1
