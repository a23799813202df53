"""How orders, instruments, accounts and what they own lie in memory, and the numbers of the schema's enums.

Slots are positions in a column. An order's slot is used again after it is done; all other records stay for ever.
Everything that is not here (price levels, queues, indexes) follows from these records and is rebuilt from them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np

__all__ = [
    "ACCOUNT", "BALANCE", "EXTRA", "LEVEL", "MAX_PRICE", "MAX_QUANTITY", "NAME", "ORDER", "POSITION", "ROUTE",
    "SESSION", "SIDE", "SYMBOL", "ExecType", "OrderStatus", "OrderType", "Reason", "RiskModel", "SelfTradePrevention",
    "Side", "TimeInForce", "TradingStatus",
]  # fmt: skip


MAX_PRICE: Final = 10**15
"""Ticks."""
MAX_QUANTITY: Final = 10**12
"""Lots of an order."""


class Side(IntEnum):
    BUY = 0
    SELL = 1


class OrderType(IntEnum):
    LIMIT = 0
    MARKET = 1
    STOP = 2
    STOP_LIMIT = 3


class TimeInForce(IntEnum):
    GTC = 0
    DAY = 1
    GTD = 2
    IOC = 3
    FOK = 4


class SelfTradePrevention(IntEnum):
    ACCOUNT_DEFAULT = 0
    NONE = 1
    CANCEL_NEWEST = 2
    CANCEL_OLDEST = 3
    CANCEL_BOTH = 4
    DECREMENT = 5


class TradingStatus(IntEnum):
    READY_TO_TRADE = 0
    PRE_OPEN = 1
    TRADING_HALT = 2
    NOT_AVAILABLE_FOR_TRADING = 3


class RiskModel(IntEnum):
    OFF = 0
    SPOT = 1
    MARGIN = 2
    VENUE = 3


class ExecType(IntEnum):
    NEW = 0
    TRADE = 1
    CANCELED = 2
    REPLACED = 3
    REJECTED = 4
    EXPIRED = 5
    SUSPENDED = 6
    TRIGGERED = 7


class OrderStatus(IntEnum):
    NEW = 0
    PARTIALLY_FILLED = 1
    FILLED = 2
    CANCELED = 3
    REPLACED = 4
    REJECTED = 5
    EXPIRED = 6
    SUSPENDED = 7


class Reason(IntEnum):
    """Why a command was refused or an order ended; docs/reference/matching.md has FIX's numbers."""

    NONE = 0
    UNKNOWN_SYMBOL = 1
    UNKNOWN_ACCOUNT = 2
    UNKNOWN_ORDER = 3
    DUPLICATE_ORDER = 4
    EXCHANGE_CLOSED = 5
    TRADING_HALT = 6
    INCORRECT_QUANTITY = 7
    INVALID_PRICE = 8
    INVALID_PRICE_INCREMENT = 9
    UNSUPPORTED_ORDER_CHARACTERISTIC = 10
    PRICE_EXCEEDS_CURRENT_PRICE_BAND = 11
    ORDER_EXCEEDS_LIMIT = 12
    NOTIONAL_EXCEEDS_THRESHOLD = 13
    RATE_LIMIT = 14
    SESSION_THROTTLED = 15
    OPEN_ORDER_LIMIT = 16
    POSITION_LIMIT = 17
    INSUFFICIENT_FUNDS = 18
    ACCOUNT_BLOCKED = 19
    POST_ONLY_WOULD_TRADE = 20
    EXPIRE_TIME_PASSED = 21
    INVALID_DEFINITION = 22
    CAPACITY = 23
    USER_REQUEST = 24
    IMMEDIATE_OR_CANCEL = 25
    FILL_OR_KILL = 26
    MINIMUM_QUANTITY = 27
    SELF_TRADE_PREVENTION = 28
    MASS_CANCEL = 29
    KILL_SWITCH = 30
    END_OF_DAY = 31
    GOOD_TILL_DATE = 32
    VOLATILITY_HALT = 33
    LIQUIDATION = 34
    UNKNOWN_VENUE = 35
    VENUE_UNAVAILABLE = 36
    VENUE_REJECTED = 37
    VENUE_CANCELED = 38
    REQUEST_PENDING = 39
    DUPLICATE_EXECUTION = 40
    EXECUTION_GAP = 41
    OVERFILL = 42


def _record(size: int, *fields: tuple[str, str]) -> np.dtype[np.void]:
    """Fields packed one after another, filled up to ``size`` bytes."""
    used = np.dtype(list(fields)).itemsize
    assert used <= size, (used, size)
    return np.dtype([*fields, *([("unused", "u1", (size - used,))] if used < size else [])])


ORDER: Final = _record(
    64,
    ("id", "<i8"),
    ("price", "<i8"),
    ("leaves", "<i8"),
    ("executed", "<i8"),
    ("priority", "<i8"),
    ("next", "<i4"),
    ("prev", "<i4"),
    ("level", "<i4"),
    ("account", "<i4"),
    ("symbol", "<i4"),
    ("side", "u1"),
    ("order_type", "u1"),
    ("time_in_force", "u1"),
    ("flags", "u1"),
)
"""One cache line. ``leaves``: open lots, hidden ones included; ``priority`` orders the queue of a level; ``next``,
``prev`` and ``level`` are 0 for none and are not part of the stored state, although they lie in its pages."""

LIVE: Final = 1
"""Bit of an order's flags: the slot is in use."""
HAS_EXTRA: Final = 2
"""The order's EXTRA record is meaningful."""
CHECKED: Final = 4
"""The account has a risk model: fills and cancels settle its reserves."""
PREVENTION_SHIFT: Final = 4
"""Bits 4 to 6: its SelfTradePrevention."""
ROUTED: Final = 128
"""The order is at a venue: it is in no queue, and its EXTRA record is a ROUTE."""

EXTRA: Final = _record(
    64,
    ("shown", "<i8"),
    ("display_quantity", "<i8"),
    ("stop_price", "<i8"),
    ("expire_at", "<i8"),
    ("reserve_price", "<i8"),
    ("reserved", "<i8"),
)
"""What only some orders have, in the order's slot. ``shown``: lots of an iceberg now visible."""

ROUTE: Final = _record(
    64,
    ("ordered", "<i8"),
    ("asked_price", "<i8"),
    ("asked_quantity", "<i8"),
    ("expire_at", "<i8"),
    ("reserve_price", "<i8"),
    ("request", "<i8"),
    ("number", "<i8"),
    ("venue", "<i4"),
    ("pending", "<i4"),
)
"""The EXTRA record of a routed order, ``expire_at`` and ``reserve_price`` being in the same place. ``ordered``: total
lots as the venue knows them; ``number``: that of the RouteRequest that sent it; ``request``, ``pending`` and what was
asked: of the cancel or replace under way, see `pipelines.matching.routed`; ``venue``: its account."""

SYMBOL: Final = _record(
    256,
    ("name", "<i8"),
    ("status", "<i8"),
    ("last_price", "<i8"),
    ("sequence", "<i8"),
    ("tick_size", "<i8"),
    ("lot_size", "<i8"),
    ("checks", "<i8"),
    ("halt_band_ppm", "<i8"),
    ("reference_price", "<i8"),
    ("order_band_ppm", "<i8"),
    ("maximum_quantity", "<i8"),
    ("maximum_notional", "<i8"),
    ("base_per_lot", "<i8"),
    ("quote_per_tick", "<i8"),
    ("maker_fee", "<i8"),
    ("taker_fee", "<i8"),
    ("base_asset", "<i8"),
    ("quote_asset", "<i8"),
    ("initial_margin_ppm", "<i8"),
    ("maintenance_margin_ppm", "<i8"),
    ("mark_price", "<i8"),
    ("defined", "<i8"),
    ("word", "<i8"),
    ("order_feed", "<i8"),
)
"""``name`` is a slot of NAME and ``word`` how a row points to it, assets are slots of NAME; ``last_price`` is 0 before
the first trade; ``checks`` is 1 when the instrument limits orders by band, quantity or notional."""

ACCOUNT: Final = _record(
    128,
    ("name", "<i8"),
    ("risk", "<i8"),
    ("word", "<i8"),
    ("blocked", "<i8"),
    ("prevention", "<i8"),
    ("open_orders", "<i8"),
    ("maximum_quantity", "<i8"),
    ("maximum_notional", "<i8"),
    ("maximum_open_orders", "<i8"),
    ("maximum_position", "<i8"),
    ("rate_limit", "<i8"),
    ("rate_interval", "<i8"),
    ("window_start", "<i8"),
    ("window_count", "<i8"),
    ("recent", "<i8"),
    ("defined", "<i8"),
)

"""``recent`` is a position that was used lately, (symbol + 1) << 32 | slot, so that it is found without a search."""

NAME: Final = _record(
    64,
    ("id", "<i8"),
    ("length", "<i4"),
    ("symbol", "<i4"),
    ("account", "<i4"),
    ("asset", "<i4"),
    ("text_0", "<u8"),
    ("text_1", "<u8"),
    ("text_2", "<u8"),
    ("text_3", "<u8"),
)
"""A text of at most 32 bytes; ``id`` is its hash, ``symbol`` and ``account`` what it names, plus 1, 0 for nothing."""
NAME_TEXT: Final = NAME.fields["text_0"][1] if NAME.fields else 0
MAX_NAME_BYTES: Final = 32

BALANCE: Final = _record(
    64,
    ("id", "<i8"),
    ("available", "<i8"),
    ("held", "<i8"),
    ("fees", "<i8"),
    ("initial", "<i8"),
    ("maintenance", "<i8"),
    ("value", "<i8"),
)
"""Units of an asset: ``id`` is account << 32 | asset (a slot of NAME). Account 0xFFFFFFF holds collected fees."""

POSITION: Final = _record(
    64,
    ("id", "<i8"),
    ("quantity", "<i8"),
    ("open_buy", "<i8"),
    ("open_sell", "<i8"),
    ("base", "<i4"),
    ("quote", "<i4"),
    ("initial", "<i8"),
    ("maintenance", "<i8"),
    ("value", "<i8"),
)
"""Lots of an instrument that an account came to hold by trading here, and what its open orders may add; ``id`` is
account << 32 | symbol; ``base`` and ``quote`` are slots of BALANCE."""

SESSION: Final = _record(
    64,
    ("id", "<i8"),
    ("maximum_messages", "<i8"),
    ("interval", "<i8"),
    ("window_start", "<i8"),
    ("window_count", "<i8"),
)

SIDE: Final = _record(
    32,
    ("base", "<i8"),
    ("best_price", "<i8"),
    ("best", "<i4"),
    ("root", "<i4"),
    ("levels", "<i4"),
    ("height", "u1"),
    ("feed", "u1"),
)
"""One side of a book, see `pipelines.matching.ladder`; ``best_price`` is that of level ``best`` while there is one, so
that most orders need not read the level; ``feed``: whether market data tells its orders."""

LEVEL: Final = _record(
    64,
    ("price", "<i8"),
    ("shown", "<i8"),
    ("hidden", "<i8"),
    ("stamp", "<i8"),
    ("head", "<i4"),
    ("tail", "<i4"),
    ("orders", "<i4"),
    ("side", "<i4"),
    ("published", "<i4"),
)
"""The queue of one price, oldest order first; ``stamp`` is the last frame that changed it."""
