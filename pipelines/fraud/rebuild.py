"""After a restore: are the stored pages a whole state, and the indexes that follow from them.

`first_broken` recomputes every window of every ring from its entries, so a missing page or a wrong pointer is found
before anything is computed with it.
"""

from __future__ import annotations

from typing import Any

from pipelines import id_index
from pipelines.compiled import compiled
from pipelines.fraud.records import (
    BASE,
    BLOCK,
    CAPACITY,
    CARD_WINDOW_START,
    CARD_WINDOWS,
    CARDS,
    DETAILS,
    HEAD,
    LABEL_DELAY,
    MERCHANTS,
    NEWEST,
    PROFILE_WINDOW,
    TAIL,
    TERMINAL_FRAUDS,
    TERMINAL_WINDOW_START,
    TERMINAL_WINDOWS,
    TERMINALS,
    TIME,
    TOTAL,
    TRANSACTIONS,
    WINDOWS_END,
)  # fmt: skip
from pipelines.fraud.values import add_entry

__all__ = ["first_broken", "indexes"]

_PROFILE_START = CARD_WINDOW_START + PROFILE_WINDOW


@compiled
def _card_is_whole(state: Any, card: Any) -> Any:
    record = state.cards[card]
    block, last = record[BLOCK], record[CAPACITY] - 1
    head, tail = record[HEAD], record[TAIL]
    if head <= tail or head - tail > last + 1 or tail < 0:
        return False
    time = state.card_entries[block + (tail & last), TIME]
    total = record[BASE]
    for position in range(tail, head):
        entry = block + (position & last)
        if state.card_entries[entry, TIME] < time or state.card_entries[entry, TOTAL] < total:
            return False
        time = state.card_entries[entry, TIME]
        total = state.card_entries[entry, TOTAL]
    if time != record[NEWEST]:
        return False
    for window in range(len(CARD_WINDOWS)):
        start = record[CARD_WINDOW_START + window]
        limit = time - CARD_WINDOWS[window]
        if start < tail or start >= head or state.card_entries[block + (start & last), TIME] <= limit:
            return False
        if start > tail and state.card_entries[block + ((start - 1) & last), TIME] > limit:
            return False
    return True


@compiled
def _terminal_is_whole(state: Any, terminal: Any) -> Any:
    record = state.terminals[terminal]
    block, last = record[BLOCK], record[CAPACITY] - 1
    head, tail, end = record[HEAD], record[TAIL], record[WINDOWS_END]
    if head <= tail or head - tail > last + 1 or tail < 0 or end < tail or end > head:
        return False
    time = state.terminal_entries[block + (tail & last), 0] >> 1
    for position in range(tail, head):
        entry = state.terminal_entries[block + (position & last), 0]
        if entry >> 1 < time or (position < end) != (entry >> 1 <= record[NEWEST] - LABEL_DELAY):
            return False
        time = entry >> 1
    if time != record[NEWEST]:
        return False
    for window in range(len(TERMINAL_WINDOWS)):
        start = record[TERMINAL_WINDOW_START + window]
        limit = time - LABEL_DELAY - TERMINAL_WINDOWS[window]
        frauds = 0
        for position in range(tail, end):
            entry = state.terminal_entries[block + (position & last), 0]
            if (position < start) != (entry >> 1 <= limit):
                return False
            if position >= start:
                frauds += entry & 1
        if frauds != record[TERMINAL_FRAUDS + window]:
            return False
    return True


@compiled
def first_broken(state: Any) -> Any:
    """0, or kind << 40 | 1 + number of the first record that contradicts its entries; kinds are card 1, terminal 2 and
    transaction 3."""
    for card in range(state.meta[CARDS]):
        if not _card_is_whole(state, card):
            return (1 << 40) + card + 1
    for terminal in range(state.meta[TERMINALS]):
        if not _terminal_is_whole(state, terminal):
            return (2 << 40) + terminal + 1
    for slot in range(min(state.meta[TRANSACTIONS], len(state.transactions))):
        if state.transactions[slot].known == 0:
            return (3 << 40) + slot + 1
    return 0


@compiled
def indexes(state: Any) -> None:
    """Fill the empty indexes of a restored shard and count what the cards' 30-day windows hold."""
    id_index.rebuild(state.card_index, state.card_keys, state.meta[CARDS], False)
    id_index.rebuild(state.terminal_index, state.terminal_keys, state.meta[TERMINALS], False)
    remembered = min(state.meta[TRANSACTIONS], len(state.transactions))
    id_index.rebuild(state.transaction_index, state.transactions, remembered, False)
    for card in range(state.meta[CARDS]):
        if state.cards[card, DETAILS] != 0:
            state.cards[card, MERCHANTS] = 0
            for position in range(state.cards[card, _PROFILE_START], state.cards[card, HEAD]):
                add_entry(state, card, position)
