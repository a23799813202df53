"""Compiled loops of the totals: which windows an entry changes, and the rows that say so.

Windows are records in a ring, numbered from 0 for ever; number n lies in slot n modulo the ring's size, and the oldest
are overwritten when it is full. Each key (an account; a ledger or a code within one) has two lists of its windows,
hours and days, newest first, linked by number + 1 (0: none, and so is a number that was overwritten). Entries mostly
come in the order of their timestamps and meet the newest window at once; a late one walks back to its own and raises
the opening balances of the newer ones on its way.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.compiled import compiled, compiled_inline
from pipelines.id_index import NOT_FOUND, IdIndex, find, insert
from pipelines.ledger.records import TransferFlags
from pipelines.ledger.u128 import add
from pipelines.pages import PAGE_BYTES, DirtyPages, mark

__all__ = [
    "ACCOUNTS",
    "FRAMES",
    "GROUPS",
    "KEY",
    "OLDEST",
    "TOO_LATE",
    "WINDOW",
    "WINDOWS",
    "Totals",
    "add_entries",
    "emit",
]

HOUR_NS: Final = 3_600_000_000_000
DAY_NS: Final = 24 * HOUR_NS
CODE_BITS: Final = 16
"""A group's key is ledger << 16 | code; code 0 is the ledger as a whole."""

KEY: Final = np.dtype(
    [
        ("id_lo", "<u8"), ("id_hi", "<u8"),
        ("debits_lo", "<u8"), ("debits_hi", "<u8"), ("credits_lo", "<u8"), ("credits_hi", "<u8"),
        ("hour", "<i8"), ("day", "<i8"),
    ]
)  # fmt: skip
"""An account or group: its totals of all time and the newest window of each size."""
WINDOW: Final = np.dtype(
    [
        ("key", "<i8"), ("kind", "<i8"), ("ledger", "<i8"), ("start", "<i8"),
        ("debits_lo", "<u8"), ("debits_hi", "<u8"), ("credits_lo", "<u8"), ("credits_hi", "<u8"),
        ("opening_debits_lo", "<u8"), ("opening_debits_hi", "<u8"),
        ("opening_credits_lo", "<u8"), ("opening_credits_hi", "<u8"),
        ("entries", "<i8"), ("older", "<i8"), ("frame", "<i8"), ("reserved", "<i8"),
    ]
)  # fmt: skip
"""``kind``: 0 or 1 an account's hour or day, 2 or 3 a group's; ``frame`` the input frame that last changed it."""
assert (KEY.itemsize, WINDOW.itemsize) == (64, 128)

_KEYS_PER_PAGE_BITS: Final = (PAGE_BYTES // KEY.itemsize).bit_length() - 1
_WINDOWS_PER_PAGE_BITS: Final = (PAGE_BYTES // WINDOW.itemsize).bit_length() - 1

# words of Totals.meta
ACCOUNTS: Final = 0
GROUPS: Final = 1
WINDOWS: Final = 2
"""Windows ever made."""
OLDEST: Final = 3
"""Number of the oldest window still there."""
FRAMES: Final = 4
FLOORS: Final = 5
"""Latest start of an overwritten window, of hours and, in the next word, of days; -1 at first."""

TOO_LATE: Final = -1
"""An entry belongs to a window that was overwritten."""

_DOES_NOT_POST: Final = int(TransferFlags.pending | TransferFlags.void_pending_transfer)
_GROUP: Final = 2
_ZERO: Final = np.uint64(0)


class Totals(NamedTuple):
    """The state's arrays and what is derived from them."""

    meta: NDArray[np.int64]
    accounts: NDArray[np.void]
    groups: NDArray[np.void]
    windows: NDArray[np.void]
    account_index: IdIndex
    group_index: IdIndex
    none: NDArray[np.void]
    """No burned ids."""
    changed: NDArray[np.int64]
    """Numbers of the windows that this frame changed, in the order of their first change."""
    dirty: DirtyPages
    first_pages: NDArray[np.int64]
    """Of accounts, groups, windows and meta."""
    sources: NDArray[np.void]
    """Its type names the sources' digest, so that Numba's cache notices when a callee changes."""


@compiled_inline
def _note(state: Any, number: Any, slot: Any, changed: Any) -> Any:
    """Marks a window's page and, once per frame, lists the window; returns how many are listed."""
    mark(state.dirty, state.first_pages[2] + (slot >> _WINDOWS_PER_PAGE_BITS))
    if state.windows[slot].frame != state.meta[FRAMES]:
        state.windows[slot].frame = state.meta[FRAMES]
        state.changed[changed] = number
        return changed + 1
    return changed


@compiled
def _add_to_window(
    state: Any, keys: Any, key: Any, kind: Any, ledger: Any, timestamp: Any, lo: Any, hi: Any, sides: Any, changed: Any
) -> Any:
    """Adds an amount to one key's window of one size; ``sides``: 1 debits, 2 credits, 3 both. Returns the windows
    listed, or TOO_LATE."""
    meta, windows = state.meta, state.windows
    ring = len(windows)
    is_day = kind & 1
    size = DAY_NS if is_day else HOUR_NS
    start = timestamp - timestamp % size
    head = keys[key].day if is_day else keys[key].hour
    newer = np.int64(0)
    at = head
    while at > meta[OLDEST] and windows[(at - 1) % ring].start > start:
        newer = at
        at = windows[(at - 1) % ring].older
    if at <= meta[OLDEST] or windows[(at - 1) % ring].start != start:
        if start <= meta[FLOORS + is_day]:
            return np.int64(TOO_LATE)
        number = meta[WINDOWS]
        slot = number % ring
        if number - meta[OLDEST] == ring:
            gone = windows[slot].kind & 1
            meta[FLOORS + gone] = max(meta[FLOORS + gone], windows[slot].start)
            meta[OLDEST] += 1
            if newer != 0 and newer <= meta[OLDEST]:
                return np.int64(TOO_LATE)
        meta[WINDOWS] = number + 1
        window = windows[slot]
        window.key = key
        window.kind = kind
        window.ledger = ledger
        window.start = start
        window.debits_lo = _ZERO
        window.debits_hi = _ZERO
        window.credits_lo = _ZERO
        window.credits_hi = _ZERO
        window.entries = 0
        window.frame = 0
        window.older = at if at > meta[OLDEST] else 0
        if newer == 0:
            window.opening_debits_lo = keys[key].debits_lo
            window.opening_debits_hi = keys[key].debits_hi
            window.opening_credits_lo = keys[key].credits_lo
            window.opening_credits_hi = keys[key].credits_hi
            if is_day:
                keys[key].day = number + 1
            else:
                keys[key].hour = number + 1
        else:
            after = windows[(newer - 1) % ring]
            window.opening_debits_lo = after.opening_debits_lo
            window.opening_debits_hi = after.opening_debits_hi
            window.opening_credits_lo = after.opening_credits_lo
            window.opening_credits_hi = after.opening_credits_hi
            after.older = number + 1
        at = number + 1
    later = keys[key].day if is_day else keys[key].hour
    while later != at:
        slot = (later - 1) % ring
        window = windows[slot]
        if sides & 1:
            window.opening_debits_lo, window.opening_debits_hi = add(
                window.opening_debits_lo, window.opening_debits_hi, lo, hi
            )
        if sides & 2:
            window.opening_credits_lo, window.opening_credits_hi = add(
                window.opening_credits_lo, window.opening_credits_hi, lo, hi
            )
        changed = _note(state, later - 1, slot, changed)
        later = window.older
    slot = (at - 1) % ring
    window = windows[slot]
    if sides & 1:
        window.debits_lo, window.debits_hi = add(window.debits_lo, window.debits_hi, lo, hi)
    if sides & 2:
        window.credits_lo, window.credits_hi = add(window.credits_lo, window.credits_hi, lo, hi)
    window.entries += 1
    return _note(state, at - 1, slot, changed)


@compiled
def _add_to_key(
    state: Any, keys: Any, index: Any, column: Any, key_lo: Any, key_hi: Any, ledger: Any, timestamp: Any, lo: Any,
    hi: Any, sides: Any, changed: Any,
) -> Any:  # fmt: skip
    """Adds an amount to both windows and the totals of one key; ``column`` 0 is accounts, 1 groups."""
    key = find(index, keys, state.none, key_lo, key_hi)
    if key == NOT_FOUND:
        key = state.meta[column]
        state.meta[column] = key + 1
        keys[key].id_lo = key_lo
        keys[key].id_hi = key_hi
        insert(index, key_lo, key_hi, key, False)
    for is_day in range(2):
        changed = _add_to_window(state, keys, key, column * _GROUP + is_day, ledger, timestamp, lo, hi, sides, changed)
        if changed < 0:
            return changed
    if sides & 1:
        keys[key].debits_lo, keys[key].debits_hi = add(keys[key].debits_lo, keys[key].debits_hi, lo, hi)
    if sides & 2:
        keys[key].credits_lo, keys[key].credits_hi = add(keys[key].credits_lo, keys[key].credits_hi, lo, hi)
    mark(state.dirty, state.first_pages[column] + (key >> _KEYS_PER_PAGE_BITS))
    return changed


@compiled
def add_entries(state: Any, transfers: Any, transfer_kind: Any) -> Any:
    """Adds every transfer that posts; returns how many windows changed, or TOO_LATE."""
    state.meta[FRAMES] += 1
    mark(state.dirty, state.first_pages[3])
    changed = np.int64(0)
    for row in range(len(transfers)):
        transfer = transfers[row]
        if transfer.kind != transfer_kind or transfer.flags & _DOES_NOT_POST:
            continue
        at, ledger = transfer.timestamp, transfer.ledger
        lo, hi = transfer.amount_lo, transfer.amount_hi
        group = np.uint64(ledger) << np.uint64(CODE_BITS)
        changed = _add_to_key(
            state, state.accounts, state.account_index, 0, transfer.debit_account_id_lo, transfer.debit_account_id_hi,
            ledger, at, lo, hi, 1, changed,
        )  # fmt: skip
        if changed >= 0:
            changed = _add_to_key(
                state, state.accounts, state.account_index, 0, transfer.credit_account_id_lo,
                transfer.credit_account_id_hi, ledger, at, lo, hi, 2, changed,
            )  # fmt: skip
        if changed >= 0:
            changed = _add_to_key(
                state, state.groups, state.group_index, 1, group, _ZERO, ledger, at, lo, hi, 3, changed
            )
        if changed >= 0:
            changed = _add_to_key(
                state, state.groups, state.group_index, 1, group | np.uint64(transfer.code), _ZERO, ledger, at, lo, hi,
                3, changed,
            )  # fmt: skip
        if changed < 0:
            return changed
    for number in state.changed[:changed]:
        if number < state.meta[OLDEST]:
            return np.int64(TOO_LATE)
    return changed


@compiled
def emit(state: Any, first: Any, totals: Any) -> None:
    """Fills ``totals`` with the changed windows from ``first`` on."""
    ring = len(state.windows)
    for row in range(len(totals)):
        window = state.windows[state.changed[first + row] % ring]
        total = totals[row]
        total.kind = 0
        total.window = window.kind & 1
        total.start = window.start
        total.ledger = window.ledger
        total.account_id_lo = _ZERO
        total.account_id_hi = _ZERO
        total.code = 0
        if window.kind & _GROUP:
            code = np.int64(state.groups[window.key].id_lo & np.uint64((1 << CODE_BITS) - 1))
            total.grouping = 1 if code == 0 else 2
            total.code = code
        else:
            total.grouping = 0
            total.account_id_lo = state.accounts[window.key].id_lo
            total.account_id_hi = state.accounts[window.key].id_hi
        total.debits_lo = window.debits_lo
        total.debits_hi = window.debits_hi
        total.credits_lo = window.credits_lo
        total.credits_hi = window.credits_hi
        total.entries = window.entries
        total.opening_debits_lo = window.opening_debits_lo
        total.opening_debits_hi = window.opening_debits_hi
        total.opening_credits_lo = window.opening_credits_lo
        total.opening_credits_hi = window.opening_credits_hi
