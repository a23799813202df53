"""The whole state of a matching shard as the compiled loops see it, and what the words of its counters mean."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.matching.by_address import ArrayTable
from pipelines.matching.id_index import IdIndex
from pipelines.pages import DirtyPages

__all__ = ["MatchingArrays"]

# words of the `meta` column, part of the stored state
CLOCK: Final = 0
EXECUTIONS: Final = 1
PRIORITY: Final = 2
NAMES: Final = 3
SYMBOLS: Final = 4
ACCOUNTS: Final = 5
BALANCES: Final = 6
POSITIONS: Final = 7
SESSIONS: Final = 8
SYMBOLS_DEFINED: Final = 9
ACCOUNTS_DEFINED: Final = 10
ORDER_SLOTS: Final = 11
"""Highest slot of `orders` that was ever used; slot 0 stands for none."""
LIVE_ORDERS: Final = 12

# words of `work`, not stored; 0 to 3 belong to pipelines.matching.ladder
FREE_ORDER: Final = 4
EXPIRIES: Final = 5
FRAME: Final = 6
"""Counts frames, to tell which levels and symbols this one has touched."""
REPORTS: Final = 7
TRADES: Final = 8
"""Rows of market data so far: trades, orders and statuses; levels and tops follow at the end of the frame."""
TOUCHED: Final = 9
TOUCHED_SYMBOLS: Final = 10
QUEUE_HEAD: Final = 11
QUEUE_TAIL: Final = 12
"""Orders that an admin event sends into the market (liquidations), waiting in `queue`."""
BROKEN: Final = 13
"""Not 0 when an invariant was found broken, see the kernel."""
ROUTED_HEAD: Final = 14
ROUTED_TAIL: Final = 15
"""First and last of the routed orders, in the order in which they came."""
FRAME_TEXTS: Final = 16
"""Reports of this frame with a text that lies in the frame, not among the names; its word has the bit `IN_FRAME`."""

IN_FRAME: Final = 1 << 62

# what `work[BROKEN]` tells
OUTPUT_FULL: Final = 1
RESERVE_LOST: Final = 2
FEE_LOST: Final = 3

# positions in `first_pages`
ORDERS_PAGES: Final = 0
EXTRAS_PAGES: Final = 1
SYMBOLS_PAGES: Final = 2
ACCOUNTS_PAGES: Final = 3
NAMES_PAGES: Final = 4
BALANCES_PAGES: Final = 5
POSITIONS_PAGES: Final = 6
SESSIONS_PAGES: Final = 7
META_PAGES: Final = 8


class MatchingArrays(ArrayTable):
    """Stored columns first; what follows from them, and the buffers of a frame, after."""

    orders: NDArray[np.void]
    extras: NDArray[np.void]
    routes: NDArray[np.void]
    """The extras, seen as ROUTE."""
    symbols: NDArray[np.void]
    accounts: NDArray[np.void]
    names: NDArray[np.void]
    balances: NDArray[np.void]
    positions: NDArray[np.void]
    sessions: NDArray[np.void]
    meta: NDArray[np.int64]
    dirty: DirtyPages
    first_pages: NDArray[np.int64]
    work: NDArray[np.int64]
    sides: NDArray[np.void]
    """Four per symbol, see `pipelines.matching.ladder`."""
    levels: NDArray[np.void]
    bits: NDArray[np.uint64]
    children: NDArray[np.int32]
    order_index: IdIndex
    name_index: IdIndex
    balance_index: IdIndex
    position_index: IdIndex
    session_index: IdIndex
    expiries: NDArray[np.int64]
    """Heap of (expiry, order id)."""
    queue: NDArray[np.int64]
    reports: NDArray[np.void]
    cancel_rejects: NDArray[np.void]
    """The report rows, seen as OrderCancelReject; and so on."""
    mass_cancels: NDArray[np.void]
    admin_reports: NDArray[np.void]
    route_requests: NDArray[np.void]
    report_rows: NDArray[np.int64]
    trades: NDArray[np.void]
    price_levels: NDArray[np.void]
    tops: NDArray[np.void]
    statuses: NDArray[np.void]
    book_orders: NDArray[np.void]
    market_rows: NDArray[np.int64]
    touched: NDArray[np.int64]
    """(side, price, whether the level had been published) of each level that the frame changed."""
    touched_symbols: NDArray[np.int64]
    best: NDArray[np.int64]
    """Per symbol: bid price and quantity, ask price and quantity as last published, and the frame that touched it."""
    symbol_cache: NDArray[np.int64]
    """Symbols by short names, see `pipelines.matching.controls.symbol_of`: (text, number and length)."""
    account_cache: NDArray[np.int64]
    ahead: NDArray[np.int64]
    """What is known of the next events, see `pipelines.matching.read_ahead`: (slot of the order, side of its book)."""
    new_orders: NDArray[np.void]
    """The rows of the frame being applied, seen as NewOrder; and so on."""
    cancels: NDArray[np.void]
    amends: NDArray[np.void]
    mass_cancel_orders: NDArray[np.void]
    symbol_definitions: NDArray[np.void]
    account_definitions: NDArray[np.void]
    deposits: NDArray[np.void]
    trading_statuses: NDArray[np.void]
    kill_switches: NDArray[np.void]
    mark_prices: NDArray[np.void]
    session_limits: NDArray[np.void]
    venue_reports: NDArray[np.void]
    heap: NDArray[np.uint8]
    """What the texts of the frame being applied point into."""


COMMAND_VIEWS: Final = (
    "new_orders", "cancels", "amends", "mass_cancel_orders", "symbol_definitions", "account_definitions", "deposits",
    "trading_statuses", "kill_switches", "mark_prices", "session_limits", "venue_reports",
)  # fmt: skip
"""Attributes that see the rows of a frame, in the order of the schema's union."""
