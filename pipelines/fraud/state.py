"""The whole state of a fraud shard, as its compiled code sees it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.compiled import compiled_inline
from pipelines.id_index import IdIndex
from pipelines.pages import PAGE_BYTES, DirtyPages, mark

__all__ = [
    "CARDS_COLUMN", "CARD_ENTRIES_COLUMN", "COLUMNS", "DETAILS_COLUMN", "HELD_COLUMN", "META_COLUMN", "READ_AHEAD",
    "TERMINALS_COLUMN", "TERMINAL_ENTRIES_COLUMN", "TRANSACTIONS_COLUMN", "FraudArrays", "mark_bytes",
]  # fmt: skip

COLUMNS: Final = (
    "meta", "cards", "card_entries", "card_details", "terminals", "terminal_entries", "transactions", "held_labels",
)  # fmt: skip
"""The stored columns; their numbers in `FraudArrays.first_pages`."""
META_COLUMN: Final = 0
CARDS_COLUMN: Final = 1
CARD_ENTRIES_COLUMN: Final = 2
DETAILS_COLUMN: Final = 3
TERMINALS_COLUMN: Final = 4
TERMINAL_ENTRIES_COLUMN: Final = 5
TRANSACTIONS_COLUMN: Final = 6
HELD_COLUMN: Final = 7

READ_AHEAD: Final = 64
"""Events that are looked up together, so that what they need comes from memory together."""

_PAGE_BITS: Final = PAGE_BYTES.bit_length() - 1


class FraudArrays(NamedTuple):
    """Arrays of one shard; `pipelines.fraud.records` names their words."""

    meta: NDArray[np.int64]
    cards: NDArray[np.int64]
    """(cards, 16)"""
    card_keys: NDArray[np.void]
    """The same memory, seen as `KEY`."""
    card_entries: NDArray[np.int64]
    """(entries, 2): event time and running total of the card."""
    card_details: NDArray[np.int64]
    """(entries, 4): hashes of device, country and merchant."""
    terminals: NDArray[np.int64]
    """(terminals, 16)"""
    terminal_keys: NDArray[np.void]
    terminal_entries: NDArray[np.int64]
    """(entries, 1): event time << 1 | labelled fraud."""
    transactions: NDArray[np.void]
    held: NDArray[np.int64]
    """(labels, 4): a heap of (time, order of arrival, number of the transaction, fraud)."""
    dirty: DirtyPages
    first_pages: NDArray[np.int64]
    card_index: IdIndex
    terminal_index: IdIndex
    transaction_index: IdIndex
    value_index: IdIndex
    values: NDArray[np.void]
    """Follows from the details; not stored."""
    value_list: NDArray[np.int64]
    """Values ever used, and 1 + the first free one."""
    ahead: NDArray[np.int64]
    """(`READ_AHEAD` + 1, 3): slots of card and terminal of the events read ahead, and the hashes of the current
    transaction's details. Nothing in it outlives a frame."""
    sources: NDArray[np.void]
    """Empty; its type names a digest of the sources, so that Numba's disk cache never serves code of other sources."""


@compiled_inline
def mark_bytes(state: Any, column: Any, offset: Any) -> None:
    """Note that the page of ``column`` that holds the byte at ``offset`` changed."""
    mark(state.dirty, state.first_pages[column] + (offset >> _PAGE_BITS))
