"""First stage: what a card did before, by exact windows (t - width, t] that end with the transaction itself.

A card's entries are in event-time order, equal times in the order of arrival. In the ordinary case, a transaction not
older than the newest, every window's start only moves forward: O(1) amortised per transaction. A late one is put at its
place, which costs as much as there are entries after it; its own windows are reached by walking back from the newest
ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.compiled import compiled, compiled_inline
from pipelines.fraud import features
from pipelines.fraud.arena import ARENA_FULL, SMALLEST, free, ring_row, take
from pipelines.fraud.records import (
    BASE,
    BLOCK,
    CAPACITY,
    CARD_ARENA,
    CARD_RETENTION,
    CARD_WINDOW_START,
    CARD_WINDOWS,
    COUNTRY,
    DETAIL_ARENA,
    DETAIL_KINDS,
    DETAIL_WORDS,
    DETAILS,
    DEVICE,
    HEAD,
    MERCHANT,
    MERCHANTS,
    NEWEST,
    PROFILE_WIDTH,
    PROFILE_WINDOW,
    TAIL,
    TIME,
    TOTAL,
)  # fmt: skip
from pipelines.fraud.state import CARD_ENTRIES_COLUMN, DETAILS_COLUMN, mark_bytes
from pipelines.fraud.values import add_entry, count_of, move_window, remove_entry

__all__ = ["add_late", "add_newest", "add_profile", "make_room"]

_PROFILE_START = CARD_WINDOW_START + PROFILE_WINDOW
# of one type with what loops over kinds pass, so that Numba compiles their callees once
_DEVICE, _COUNTRY, _MERCHANT = np.int64(DEVICE), np.int64(COUNTRY), np.int64(MERCHANT)


@compiled
def _grow_details(state: Any, card: Any, capacity: Any) -> Any:
    """A details block of ``capacity`` entries with what the card's details hold; False when the arena is full."""
    cards = state.cards
    details = state.card_details
    block = take(state.meta, DETAIL_ARENA, details, capacity)
    if block == ARENA_FULL:
        return False
    for entry in range(block, block + capacity):
        for word in range(DETAIL_WORDS):
            details[entry, word] = 0
    old = cards[card, DETAILS] - 1
    if old >= 0:
        old_capacity = cards[card, CAPACITY]
        for position in range(cards[card, TAIL], cards[card, HEAD]):
            for word in range(DETAIL_KINDS):
                details[block + (position & (capacity - 1)), word] = details[
                    old + (position & (old_capacity - 1)), word
                ]
        free(state.meta, DETAIL_ARENA, details, old, old_capacity)
        mark_bytes(state, DETAILS_COLUMN, old * 8 * DETAIL_WORDS)
    for entry in range(block, block + capacity):
        mark_bytes(state, DETAILS_COLUMN, entry * 8 * DETAIL_WORDS)
    cards[card, DETAILS] = block + 1
    return True


@compiled
def _grow(state: Any, card: Any) -> Any:
    """Twice the capacity for a card's ring; False when an arena is full."""
    cards = state.cards
    entries = state.card_entries
    old_capacity = cards[card, CAPACITY]
    capacity = old_capacity * 2 if old_capacity > 0 else SMALLEST
    block = take(state.meta, CARD_ARENA, entries, capacity)
    if block == ARENA_FULL:
        return False
    if cards[card, DETAILS] != 0 and not _grow_details(state, card, capacity):
        return False
    if old_capacity > 0:
        old = cards[card, BLOCK]
        for position in range(cards[card, TAIL], cards[card, HEAD]):
            to, origin = block + (position & (capacity - 1)), old + (position & (old_capacity - 1))
            entries[to, TIME] = entries[origin, TIME]
            entries[to, TOTAL] = entries[origin, TOTAL]
            mark_bytes(state, CARD_ENTRIES_COLUMN, to * 16)
        free(state.meta, CARD_ARENA, entries, old, old_capacity)
        mark_bytes(state, CARD_ENTRIES_COLUMN, old * 16)
    cards[card, BLOCK] = block
    cards[card, CAPACITY] = capacity
    return True


@compiled
def _evict(state: Any, card: Any) -> None:
    """Let go of entries that no window, of a late transaction either, can reach any more."""
    cards = state.cards
    entries = state.card_entries
    block, last = cards[card, BLOCK], cards[card, CAPACITY] - 1
    tail, head = cards[card, TAIL], cards[card, HEAD]
    limit = cards[card, NEWEST] - CARD_RETENTION
    while tail < head and entries[block + (tail & last), TIME] <= limit:
        cards[card, BASE] = entries[block + (tail & last), TOTAL]
        tail += 1
    cards[card, TAIL] = tail


@compiled
def _write_details(state: Any, card: Any, position: Any, device: Any, country: Any, merchant: Any) -> None:
    entry = state.cards[card, DETAILS] - 1 + (position & (state.cards[card, CAPACITY] - 1))
    state.card_details[entry, 0] = device
    state.card_details[entry, 1] = country
    state.card_details[entry, 2] = merchant
    mark_bytes(state, DETAILS_COLUMN, entry * 8 * DETAIL_WORDS)


@compiled
def _profile_features(
    state: Any, card: Any, position: Any, device: Any, country: Any, merchant: Any, out: Any, row: Any
) -> None:
    """New device, country, merchant and distinct merchants; the entry itself becomes part of the multiset."""
    out[row, features.NEW_DEVICE] = device != 0 and count_of(state, card, _DEVICE, device) == 0
    out[row, features.NEW_COUNTRY] = country != 0 and count_of(state, card, _COUNTRY, country) == 0
    out[row, features.NEW_MERCHANT] = merchant != 0 and count_of(state, card, _MERCHANT, merchant) == 0
    add_entry(state, card, position)
    out[row, features.MERCHANTS_30] = state.cards[card, MERCHANTS]


@compiled
def add_late(
    state: Any, card: Any, time: Any, amount: Any, device: Any, country: Any, merchant: Any, out: Any, row: Any
) -> None:
    """A transaction older than the card's newest, into a ring that has room: after those that are not newer."""
    cards = state.cards
    entries = state.card_entries
    head, tail = cards[card, HEAD], cards[card, TAIL]
    block, last = cards[card, BLOCK], cards[card, CAPACITY] - 1
    details = cards[card, DETAILS] - 1
    place = head
    while place > tail and entries[block + ((place - 1) & last), TIME] > time:
        origin, to = block + ((place - 1) & last), block + (place & last)
        entries[to, TIME] = entries[origin, TIME]
        entries[to, TOTAL] = entries[origin, TOTAL] + amount
        mark_bytes(state, CARD_ENTRIES_COLUMN, to * 16)
        if details >= 0:
            origin, to = details + ((place - 1) & last), details + (place & last)
            for word in range(DETAIL_KINDS):
                state.card_details[to, word] = state.card_details[origin, word]
            mark_bytes(state, DETAILS_COLUMN, to * 8 * DETAIL_WORDS)
        place -= 1
    before = entries[block + ((place - 1) & last), TOTAL] if place > tail else cards[card, BASE]
    to = block + (place & last)
    entries[to, TIME] = time
    entries[to, TOTAL] = before + amount
    mark_bytes(state, CARD_ENTRIES_COLUMN, to * 16)
    head += 1
    cards[card, HEAD] = head
    if details >= 0:
        _write_details(state, card, place, device, country, merchant)

    newest = cards[card, NEWEST]
    profile_start = np.int64(0)
    for window in range(len(CARD_WINDOWS)):
        width = CARD_WINDOWS[window]
        if time <= newest - width:
            cards[card, CARD_WINDOW_START + window] += 1
        start = min(cards[card, CARD_WINDOW_START + window], place)
        while start > tail and entries[block + ((start - 1) & last), TIME] > time - width:
            start -= 1
        earlier = entries[block + ((start - 1) & last), TOTAL] if start > tail else cards[card, BASE]
        word = (features.CARD_DAYS if window < 3 else features.CARD_VELOCITY - 6) + 2 * window
        out[row, word] = place - start + 1
        out[row, word + 1] = before + amount - earlier
        if window == PROFILE_WINDOW:
            profile_start = start
    previous = entries[block + ((place - 1) & last), TIME] if place > profile_start else np.int64(-1)
    out[row, features.SINCE_LAST] = time - previous if previous >= 0 else -1

    if details >= 0:
        newest_start = cards[card, _PROFILE_START]
        move_window(state, card, newest_start, head, profile_start, place, place)
        _profile_features(state, card, place, device, country, merchant, out, row)
        remove_entry(state, card, place)
        move_window(state, card, profile_start, place, newest_start, head, place)
        if place >= newest_start:
            add_entry(state, card, place)


@compiled
def make_room(state: Any, card: Any, with_details: Any) -> Any:
    """Let go of entries that no window can reach any more, grow the ring if that was not enough, and give it details
    if asked. False when an arena is full; the state is then of no more use."""
    cards = state.cards
    if cards[card, HEAD] - cards[card, TAIL] == cards[card, CAPACITY]:
        _evict(state, card)
        if cards[card, HEAD] - cards[card, TAIL] == cards[card, CAPACITY] and not _grow(state, card):
            return False
    if with_details and cards[card, DETAILS] == 0:
        return _grow_details(state, card, cards[card, CAPACITY])
    return True


@compiled_inline
def add_newest(state: Any, record: Any, time: Any, amount: Any, answer: Any) -> None:
    """Take a transaction that is not older than the card's others into a ring that has room, and write its windows into
    its ``answer``. ``record`` is the card's."""
    entries = state.card_entries
    head, tail, base, newest = record[HEAD], record[TAIL], record[BASE], record[NEWEST]
    block, last = record[BLOCK], record[CAPACITY] - 1
    before = entries[ring_row(block, head - 1, last), TOTAL] if head > tail else base
    total = before + amount
    for window in range(len(CARD_WINDOWS)):
        limit = time - CARD_WINDOWS[window]
        if newest <= limit:
            start, earlier = head, before
        else:
            start = record[CARD_WINDOW_START + window]
            while start < head and entries[ring_row(block, start, last), TIME] <= limit:
                start += 1
            earlier = entries[ring_row(block, start - 1, last), TOTAL] if start > tail else base
        record[CARD_WINDOW_START + window] = start
        word = (features.CARD_DAYS if window < 3 else features.CARD_VELOCITY - 6) + 2 * window
        answer[word] = head - start + 1
        answer[word + 1] = total - earlier
    entry = ring_row(block, head, last)
    entries[entry, TIME] = time
    entries[entry, TOTAL] = total
    mark_bytes(state, CARD_ENTRIES_COLUMN, np.int64(entry) * 16)
    answer[features.SINCE_LAST] = time - newest if head > 0 and newest > time - PROFILE_WIDTH else -1
    record[NEWEST] = time
    record[HEAD] = head + 1


@compiled
def add_profile(
    state: Any, card: Any, old_start: Any, device: Any, country: Any, merchant: Any, out: Any, row: Any
) -> None:
    """After `add_newest` on a card with details: what it used, and whether that is new to it.

    ``old_start`` is where the 30-day window started before.
    """
    head = state.cards[card, HEAD] - 1
    for position in range(old_start, min(state.cards[card, _PROFILE_START], head)):
        remove_entry(state, card, position)
    _write_details(state, card, head, device, country, merchant)
    _profile_features(state, card, head, device, country, merchant, out, row)
