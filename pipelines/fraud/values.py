"""What a card has used in its last 30 days: devices, countries and merchants, each with how often.

A multiset per card over the entries of its 30-day window. It follows the window: an entry that enters is added, one
that leaves is removed, so that "is it new" and "how many different" cost one look-up. Values are known by a 64-bit hash
of their text, kept apart per card and kind: two merchants of one card are confused with a probability of about
2^-64 times the pairs of merchants it has.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines.compiled import compiled
from pipelines.fraud.records import CAPACITY, DETAIL_KINDS, DETAILS, MERCHANT, MERCHANTS
from pipelines.id_index import find, insert, remove

__all__ = ["add_entry", "count_of", "move_window", "remove_entry", "text_hash"]

_FNV_START: Final = np.uint64(0xCBF29CE484222325)
_FNV_PRIME: Final = np.uint64(0x100000001B3)


@compiled
def text_hash(heap: Any, word: Any) -> Any:
    """64-bit hash of the text that a row's word points to, never 0: FNV-1a with a final mix."""
    offset = word >> 32
    value = _FNV_START
    for position in range(offset, offset + (word & 0xFFFFFFFF)):
        value = (value ^ np.uint64(heap[position])) * _FNV_PRIME
    value ^= value >> np.uint64(32)
    value *= np.uint64(0xD6E8FEB86659FD93)
    value ^= value >> np.uint64(32)
    return np.int64(value) if value != np.uint64(0) else np.int64(1)


@compiled
def _slot(state: Any, card: Any, kind: Any, value: Any) -> Any:
    return find(state.value_index, state.values, state.values, np.uint64(value), np.uint64(card * 4 + kind))


@compiled
def count_of(state: Any, card: Any, kind: Any, value: Any) -> Any:
    """How many entries of the card's window have this value."""
    slot = _slot(state, card, kind, value)
    return np.int64(0) if slot < 0 else state.values[slot].count


@compiled
def _add(state: Any, card: Any, kind: Any, value: Any) -> None:
    slot = _slot(state, card, kind, value)
    if slot >= 0:
        state.values[slot].count += 1
        return
    front = state.value_list[1]
    if front != 0:
        slot = front - 1
        state.value_list[1] = state.values[slot].next
    else:
        slot = state.value_list[0]
        state.value_list[0] = slot + 1
    record = state.values[slot]
    record.id_lo = np.uint64(value)
    record.id_hi = np.uint64(card * 4 + kind)
    record.count = 1
    insert(state.value_index, record.id_lo, record.id_hi, slot, False)
    if kind == MERCHANT:
        state.cards[card, MERCHANTS] += 1


@compiled
def _remove(state: Any, card: Any, kind: Any, value: Any) -> None:
    slot = _slot(state, card, kind, value)
    record = state.values[slot]
    record.count -= 1
    if record.count == 0:
        remove(state.value_index, record.id_lo, record.id_hi, slot)
        record.next = state.value_list[1]
        state.value_list[1] = slot + 1
        if kind == MERCHANT:
            state.cards[card, MERCHANTS] -= 1


@compiled
def add_entry(state: Any, card: Any, position: Any) -> None:
    """Count the values of one entry of the card's ring."""
    entry = state.cards[card, DETAILS] - 1 + (position & (state.cards[card, CAPACITY] - 1))
    for kind in range(DETAIL_KINDS):
        if state.card_details[entry, kind] != 0:
            _add(state, card, kind, state.card_details[entry, kind])


@compiled
def remove_entry(state: Any, card: Any, position: Any) -> None:
    """The opposite of `add_entry`."""
    entry = state.cards[card, DETAILS] - 1 + (position & (state.cards[card, CAPACITY] - 1))
    for kind in range(DETAIL_KINDS):
        if state.card_details[entry, kind] != 0:
            _remove(state, card, kind, state.card_details[entry, kind])


@compiled
def move_window(
    state: Any, card: Any, old_start: Any, old_end: Any, start: Any, end: Any, except_position: Any
) -> None:
    """Make the multiset that of positions [start, end) instead of [old_start, old_end).

    ``except_position`` is in neither of them, wherever it lies.
    """
    for position in range(start, min(end, old_start)):
        if position != except_position:
            add_entry(state, card, position)
    for position in range(max(start, old_end), end):
        if position != except_position:
            add_entry(state, card, position)
    for position in range(old_start, min(old_end, start)):
        if position != except_position:
            remove_entry(state, card, position)
    for position in range(max(old_start, end), old_end):
        if position != except_position:
            remove_entry(state, card, position)
