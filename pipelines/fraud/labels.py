"""Labels: which ones wait for their time, and how one takes effect.

A label counts from its event time on, and never before it has arrived. One whose time the stream's clock (the newest
event time of all transactions) has not reached is held in a heap by (event time, order of arrival). Of several labels
of one transaction the one with the latest event time holds; of equal times the one that arrived last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.compiled import compiled, compiled_inline
from pipelines.fraud import terminals
from pipelines.fraud.records import CLOCK, FRAUD, GENUINE, HELD, HELD_EVER, NO_LABEL, TRANSACTIONS, Known
from pipelines.fraud.state import HELD_COLUMN, TRANSACTIONS_COLUMN, mark_bytes

__all__ = ["hold_or_apply", "release"]

_COMPUTED = int(Known.computed)
_HELD_BYTES = 32
_TRANSACTION_BYTES = 64


@compiled_inline
def _before(heap: Any, a: Any, b: Any) -> Any:
    return heap[a, 0] < heap[b, 0] or (heap[a, 0] == heap[b, 0] and heap[a, 1] < heap[b, 1])


@compiled
def _swap(state: Any, a: Any, b: Any) -> None:
    heap = state.held
    for word in range(4):
        kept = heap[a, word]
        heap[a, word] = heap[b, word]
        heap[b, word] = kept
    mark_bytes(state, HELD_COLUMN, a * _HELD_BYTES)
    mark_bytes(state, HELD_COLUMN, b * _HELD_BYTES)


@compiled
def _push(state: Any, time: Any, number: Any, fraud: Any) -> None:
    heap = state.held
    child = state.meta[HELD]
    heap[child, 0] = time
    heap[child, 1] = state.meta[HELD_EVER]
    heap[child, 2] = number
    heap[child, 3] = fraud
    mark_bytes(state, HELD_COLUMN, child * _HELD_BYTES)
    state.meta[HELD] += 1
    state.meta[HELD_EVER] += 1
    while child > 0:
        parent = (child - 1) >> 1
        if not _before(heap, child, parent):
            break
        _swap(state, child, parent)
        child = parent


@compiled
def _pop(state: Any) -> None:
    """Take the first label out of the heap; it is then just behind the others."""
    heap = state.held
    count = state.meta[HELD] - 1
    state.meta[HELD] = count
    first = np.int64(0)
    _swap(state, first, count)
    parent = first
    while True:
        child = 2 * parent + 1
        if child >= count:
            break
        if child + 1 < count and _before(heap, child + 1, child):
            child += 1
        if not _before(heap, child, parent):
            break
        _swap(state, child, parent)
        parent = child


@compiled
def _apply(state: Any, time: Any, number: Any, fraud: Any) -> None:
    """Let a label take effect on the transaction with this number, unless that is forgotten."""
    if number <= state.meta[TRANSACTIONS] - len(state.transactions) - 1:
        return
    slot = number & (len(state.transactions) - 1)
    transaction = state.transactions[slot]
    if transaction.label != NO_LABEL and time < transaction.label_time:
        return
    changed = (transaction.label == FRAUD) != (fraud != 0)
    transaction.label = FRAUD if fraud != 0 else GENUINE
    transaction.label_time = time
    mark_bytes(state, TRANSACTIONS_COLUMN, slot * _TRANSACTION_BYTES)
    if changed and transaction.known == _COMPUTED:
        terminals.set_label(state, transaction.terminal, transaction.event_time, fraud)


@compiled
def hold_or_apply(state: Any, time: Any, number: Any, fraud: Any) -> Any:
    """Take a label of the transaction with this number; False when no more labels can be held."""
    if time <= state.meta[CLOCK]:
        _apply(state, time, number, fraud)
        return True
    if state.meta[HELD] == len(state.held):
        return False
    _push(state, time, number, fraud)
    return True


@compiled
def release(state: Any) -> None:
    """Let the held labels take effect whose time the clock has reached."""
    heap = state.held
    while state.meta[HELD] > 0 and heap[0, 0] <= state.meta[CLOCK]:
        _pop(state)
        last = state.meta[HELD]
        _apply(state, heap[last, 0], heap[last, 2], heap[last, 3])
