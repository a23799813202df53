"""The fraud kernel's compiled loop: the rows of a transaction frame in, the rows of features and labels out.

For each transaction: is its id known, is it too late, then the card's windows, then the terminal's. All checks come
before the first change.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines.compiled import compiled, compiled_inline, prefetch
from pipelines.fraud import cards, features, labels, terminals
from pipelines.fraud.records import (
    BLOCK,
    CAPACITY,
    CARD_WINDOW_START,
    CARDS,
    CLOCK,
    COMPUTED,
    DAY,
    DETAILS,
    DUPLICATES,
    FRAUD,
    HEAD,
    HELD,
    HOUR,
    LABELS,
    LATENESS,
    NEWEST,
    NO_LABEL,
    PROFILE_WINDOW,
    RECORD_WORDS,
    TAIL,
    TERMINAL_WINDOW_START,
    TERMINALS,
    TOO_LATE,
    TRANSACTIONS,
    WINDOWS_END,
    Known,
    LabelStatus,
    Status,
)  # fmt: skip
from pipelines.fraud.state import CARDS_COLUMN, READ_AHEAD, TERMINALS_COLUMN, TRANSACTIONS_COLUMN, mark_bytes
from pipelines.fraud.values import text_hash
from pipelines.id_index import fetch, find, find_likely, find_place, insert, insert_at, remove

__all__ = ["OUT_OF_ROOM", "apply_rows"]

OUT_OF_ROOM: Final = -1
"""Returned by `apply_rows` when a column is full."""

TRANSACTION: Final = 0
PROFILE_START: Final = CARD_WINDOW_START + PROFILE_WINDOW
_RECORD_BYTES: Final = 8 * RECORD_WORDS
_TRANSACTION_BYTES: Final = 64
_LABEL_ONLY: Final = int(Known.label_only)
_KNOWN_COMPUTED: Final = int(Known.computed)
_KNOWN_TOO_LATE: Final = int(Known.too_late)
_STATUS_DUPLICATE: Final = int(Status.duplicate)
_STATUS_TOO_LATE: Final = int(Status.too_late)
_LABEL_ACCEPTED: Final = int(LabelStatus.accepted)
_LABEL_UNKNOWN: Final = int(LabelStatus.unknown_transaction)
_NO_ID: Final = np.uint64(0)
_THURSDAY: Final = 3
"""Weekday of 1970-01-01, Monday being 0."""


@compiled_inline
def _remember(state: Any, lo: Any, hi: Any, place: Any) -> Any:
    """A record for a new transaction id, in place of the oldest when all are taken; returns its slot. ``place`` is that
    of `find_place`."""
    number = state.meta[TRANSACTIONS]
    slot = number & (len(state.transactions) - 1)
    transaction = state.transactions[slot]
    if number >= len(state.transactions):
        remove(state.transaction_index, transaction.id_lo, transaction.id_hi, slot)
        place = np.int64(-1)
    transaction.id_lo = lo
    transaction.id_hi = hi
    transaction.label = NO_LABEL
    transaction.label_time = 0
    state.meta[TRANSACTIONS] = number + 1
    insert_at(state.transaction_index, place, lo, hi, slot)
    return slot


@compiled_inline
def _number(state: Any, slot: Any) -> Any:
    """Number of the remembered transaction in a slot."""
    newest = state.meta[TRANSACTIONS] - 1
    return newest - ((newest - slot) & (len(state.transactions) - 1))


@compiled_inline
def _remembered(state: Any, event: Any) -> Any:
    """Slot of the event's transaction id, or negative, and the place of `find_place`."""
    return find_place(state.transaction_index, state.transactions, event.transaction_id_lo, event.transaction_id_hi)


@compiled_inline
def _read_ahead(state: Any, transactions: Any, first: Any, end: Any) -> None:
    """Look up the cards and terminals of the next events and fetch what their windows will read.

    One after another each event would wait for memory some ten times; fetched ahead, the waits overlap. Slots go to
    ``state.ahead``, -1 for what is not known yet.
    """
    ahead = state.ahead
    for event in range(first, end):
        found = transactions[event]
        fetch(state.transaction_index, found.transaction_id_lo, found.transaction_id_hi)
        if found.kind == TRANSACTION:
            fetch(state.card_index, np.uint64(found.customer_id), _NO_ID)
            fetch(state.terminal_index, np.uint64(found.terminal_id), _NO_ID)
    for event in range(first, end):
        found = transactions[event]
        if found.kind == TRANSACTION:
            card = find_likely(state.card_index, np.uint64(found.customer_id), _NO_ID)
            terminal = find_likely(state.terminal_index, np.uint64(found.terminal_id), _NO_ID)
            ahead[event - first, 0] = card
            ahead[event - first, 1] = terminal
            for half in range(0, _RECORD_BYTES, 64):
                prefetch(state.cards, card, half)
                prefetch(state.terminals, terminal, half)
    for event in range(first, end):
        found = transactions[event]
        if found.kind == TRANSACTION:
            card, terminal = ahead[event - first, 0], ahead[event - first, 1]
            if card >= 0:
                record = state.cards[card]
                block, last = record[BLOCK], record[CAPACITY] - 1
                prefetch(state.card_entries, block + (record[HEAD] & last), 0)
                for window in range(3):
                    prefetch(state.card_entries, block + (record[CARD_WINDOW_START + window] & last), 0)
                if record[0] != found.customer_id:
                    ahead[event - first, 0] = -1
            if terminal >= 0:
                record = state.terminals[terminal]
                block, last = record[BLOCK], record[CAPACITY] - 1
                prefetch(state.terminal_entries, block + (record[HEAD] & last), 0)
                prefetch(state.terminal_entries, block + (record[WINDOWS_END] & last), 0)
                for window in range(1, 3):
                    prefetch(state.terminal_entries, block + (record[TERMINAL_WINDOW_START + window] & last), 0)
                if record[0] != found.terminal_id:
                    ahead[event - first, 1] = -1


@compiled
def _new_card(state: Any, customer: Any) -> Any:
    card = state.meta[CARDS]
    state.meta[CARDS] = card + 1
    state.card_keys[card].id_lo = customer
    insert(state.card_index, customer, _NO_ID, card, False)
    return card


@compiled
def _new_terminal(state: Any, terminal_id: Any) -> Any:
    terminal = state.meta[TERMINALS]
    state.meta[TERMINALS] = terminal + 1
    state.terminal_keys[terminal].id_lo = terminal_id
    insert(state.terminal_index, terminal_id, _NO_ID, terminal, False)
    return terminal


@compiled
def _hash_details(found: Any, heap: Any, hashes: Any) -> None:
    hashes[0] = text_hash(heap, found.device) if found.device_is_set != 0 else np.int64(0)
    hashes[1] = text_hash(heap, found.country) if found.country_is_set != 0 else np.int64(0)
    hashes[2] = text_hash(heap, found.merchant) if found.merchant_is_set != 0 else np.int64(0)


@compiled_inline
def _without_features(answer: Any, status: Any) -> None:
    answer[features.STATUS] = status
    for word in range(features.CARD_DAYS, features.WORDS):
        answer[word] = 0


@compiled_inline
def _apply_transaction(state: Any, found: Any, card: Any, terminal: Any, heap: Any, out: Any, row: Any) -> Any:
    """Answer one transaction in ``out[row]``; False when a column is full.

    ``card`` and ``terminal`` are the slots read ahead, -1 where there was none.
    """
    time = found.event_time
    answer = out[row]
    answer[0] = 0
    answer[1] = np.int64(found.transaction_id_lo)
    answer[2] = np.int64(found.transaction_id_hi)
    answer[features.EVENT_TIME] = time
    answer[features.CUSTOMER_ID] = found.customer_id
    answer[features.TERMINAL_ID] = found.terminal_id
    answer[features.AMOUNT] = found.amount
    answer[features.WEEKEND] = (time // DAY + _THURSDAY) % 7 >= 5
    answer[features.NIGHT] = time % DAY // HOUR <= 6

    slot, place = _remembered(state, found)
    if slot >= 0 and state.transactions[slot].known != _LABEL_ONLY:
        _without_features(answer, _STATUS_DUPLICATE)
        state.meta[DUPLICATES] += 1
        return True
    if slot < 0:
        slot = _remember(state, found.transaction_id_lo, found.transaction_id_hi, place)
    transaction = state.transactions[slot]
    transaction.event_time = time
    transaction.customer_id = found.customer_id
    transaction.terminal_id = found.terminal_id
    transaction.amount = found.amount
    mark_bytes(state, TRANSACTIONS_COLUMN, slot * _TRANSACTION_BYTES)

    # an earlier event of the run that was read ahead may have brought the card or the terminal
    if card < 0:
        card = find(state.card_index, state.card_keys, state.card_keys, np.uint64(found.customer_id), _NO_ID)
    if terminal < 0:
        keys = state.terminal_keys
        terminal = find(state.terminal_index, keys, keys, np.uint64(found.terminal_id), _NO_ID)
    if (card >= 0 and time <= state.cards[card, NEWEST] - LATENESS) or (
        terminal >= 0 and time <= state.terminals[terminal, NEWEST] - LATENESS
    ):
        transaction.known = _KNOWN_TOO_LATE
        _without_features(answer, _STATUS_TOO_LATE)
        state.meta[TOO_LATE] += 1
        return True
    if card < 0:
        card = _new_card(state, np.uint64(found.customer_id))
    if terminal < 0:
        terminal = _new_terminal(state, np.uint64(found.terminal_id))
    transaction.terminal = terminal
    if time > state.meta[CLOCK]:
        state.meta[CLOCK] = time
        if state.meta[HELD] > 0 and state.held[0, 0] <= time:
            # the transaction's own label may be among them: it has no entry in a ring yet
            transaction.known = _LABEL_ONLY
            labels.release(state)
    transaction.known = _KNOWN_COMPUTED
    answer[features.STATUS] = 0
    for word in range(features.MERCHANTS_30, features.WORDS):
        answer[word] = 0

    mark_bytes(state, CARDS_COLUMN, card * _RECORD_BYTES)
    hashes = state.ahead[READ_AHEAD]
    has_details = (found.device_is_set | found.country_is_set | found.merchant_is_set) != 0
    if has_details:
        _hash_details(found, heap, hashes)
    record = state.cards[card]
    is_full = record[HEAD] - record[TAIL] == record[CAPACITY]
    if (is_full or has_details) and not cards.make_room(state, card, has_details):
        return False
    if record[HEAD] > 0 and time < record[NEWEST]:
        cards.add_late(state, card, time, found.amount, hashes[0], hashes[1], hashes[2], out, row)
    else:
        profile_start = record[PROFILE_START]
        cards.add_newest(state, record, time, found.amount, answer)
        if record[DETAILS] != 0:
            cards.add_profile(state, card, profile_start, hashes[0], hashes[1], hashes[2], out, row)
    if has_details:
        hashes[0] = hashes[1] = hashes[2] = 0
    average = answer[features.CARD_DAYS + 5] // answer[features.CARD_DAYS + 4]
    answer[features.AMOUNT_RATIO] = found.amount * 1_000 // max(average, 1)

    mark_bytes(state, TERMINALS_COLUMN, terminal * _RECORD_BYTES)
    fraud = 1 if transaction.label == FRAUD else 0
    record = state.terminals[terminal]
    if record[HEAD] - record[TAIL] == record[CAPACITY] and not terminals.make_room(state, terminal):
        return False
    if record[HEAD] > 0 and time < record[NEWEST]:
        terminals.add_late(state, terminal, time, fraud, out, row)
    else:
        terminals.add_newest(state, record, time, fraud, answer)
    state.meta[COMPUTED] += 1
    return True


@compiled
def _apply_label(state: Any, label: Any, received: Any) -> Any:
    """Take one label and write what it met; False when a column is full."""
    slot, place = _remembered(state, label)
    if slot < 0:
        slot = _remember(state, label.transaction_id_lo, label.transaction_id_hi, place)
        transaction = state.transactions[slot]
        transaction.known = _LABEL_ONLY
        transaction.event_time = 0
        transaction.customer_id = 0
        transaction.terminal_id = 0
        transaction.amount = 0
        mark_bytes(state, TRANSACTIONS_COLUMN, slot * _TRANSACTION_BYTES)
    transaction = state.transactions[slot]
    is_known = transaction.known != _LABEL_ONLY
    received.kind = 0
    received.transaction_id_lo = label.transaction_id_lo
    received.transaction_id_hi = label.transaction_id_hi
    received.event_time = label.event_time
    received.fraud = label.fraud
    received.status = _LABEL_ACCEPTED if is_known else _LABEL_UNKNOWN
    received.transaction_time = transaction.event_time if is_known else 0
    received.customer_id = transaction.customer_id if is_known else 0
    received.terminal_id = transaction.terminal_id if is_known else 0
    received.amount = transaction.amount if is_known else 0
    state.meta[LABELS] += 1
    return labels.hold_or_apply(state, label.event_time, _number(state, slot), label.fraud)


@compiled
def apply_rows(state: Any, transactions: Any, label_rows: Any, heap: Any, out: Any, received: Any) -> Any:
    """Apply the events of a frame, seen as both event types.

    Writes the transactions' features to ``out`` (words) and what labels met to ``received`` (records), each from row 0
    on. Returns the number of transactions, or `OUT_OF_ROOM`.
    """
    features_written = np.int64(0)
    labels_written = np.int64(0)
    count = len(transactions)
    for event in range(count):
        if event % READ_AHEAD == 0:
            _read_ahead(state, transactions, event, min(event + READ_AHEAD, count))
        if transactions[event].kind == TRANSACTION:
            card, terminal = state.ahead[event % READ_AHEAD, 0], state.ahead[event % READ_AHEAD, 1]
            if not _apply_transaction(state, transactions[event], card, terminal, heap, out, features_written):
                return OUT_OF_ROOM
            features_written += 1
        else:
            if not _apply_label(state, label_rows[event], received[labels_written]):
                return OUT_OF_ROOM
            labels_written += 1
    mark_bytes(state, 0, 0)
    return features_written
