"""Where the fraud kernel keeps what it knows: words of its records, widths of its windows, limits.

A card's and a terminal's record are 16 words of 64 bits. Both own a block of entries in an arena, a ring of a
power-of-two capacity in event-time order. Positions in a ring are counted from the key's first transaction on, so that
they never wrap: entry ``position`` lies at ``block + (position & (capacity - 1))``.

Times are UTC microseconds, amounts integer cents.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np

MINUTE: Final = 60_000_000
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
"""Microseconds of a day: always 86,400 s."""

LATENESS: Final = 30 * DAY
"""A transaction that is this much older than the newest of its card or of its terminal is too late."""
MAX_AHEAD: Final = DAY
"""How far ahead of its frame's ``produced_at`` a transaction or label may be; 0 there says nothing, and anything
goes."""
LABEL_DELAY: Final = 7 * DAY
"""Terminal windows end this long before the transaction: until then investigations are under way."""

CARD_WINDOWS: Final = (DAY, 7 * DAY, 30 * DAY, MINUTE, 10 * MINUTE, HOUR)
"""Widths of a card's windows, in the order of their words in the card's record."""
CARD_WINDOW_NAMES: Final = ("1", "7", "30", "1m", "10m", "1h")
PROFILE_WINDOW: Final = 2
"""The 30-day window: distinct merchants, known devices and countries are those in it."""
PROFILE_WIDTH: Final = CARD_WINDOWS[PROFILE_WINDOW]
CARD_RETENTION: Final = 30 * DAY + LATENESS
"""What a late transaction's widest window can still reach."""

TERMINAL_WINDOWS: Final = (DAY, 7 * DAY, 30 * DAY)
TERMINAL_RETENTION: Final = LABEL_DELAY + 30 * DAY + LATENESS

# words of a card's and of a terminal's record; words 0 and 1 are the key, as two words of a 128-bit id
NEWEST: Final = 2
"""Event time of the newest entry."""
HEAD: Final = 3
"""Position after the newest entry."""
TAIL: Final = 4
"""Position of the oldest entry that is kept."""
BLOCK: Final = 5
CAPACITY: Final = 6

# words of a card's record
BASE: Final = 7
"""Sum of the amounts of all entries before the tail."""
DETAILS: Final = 8
"""1 + block of the card's details, 0 while no transaction had any."""
MERCHANTS: Final = 9
"""Distinct merchants in (newest - 30 d, newest]."""
CARD_WINDOW_START: Final = 10
"""First of six words: position of the first entry in (newest - width, newest]."""

# words of a terminal's record
WINDOWS_END: Final = 7
"""Position of the first entry after newest - 7 d: the end of the three windows."""
TERMINAL_WINDOW_START: Final = 8
"""First of three words: position of the first entry after newest - 7 d - width."""
TERMINAL_FRAUDS: Final = 11
"""First of three words: entries of the window that are labelled fraud."""

RECORD_WORDS: Final = 16

# words of an entry of a card's ring
TIME: Final = 0
TOTAL: Final = 1
"""Sum of the card's amounts up to and with this entry: a window's sum is a difference of two."""

# words of an entry of a card's details; hashes of the texts, 0 where none was given
DETAIL_WORDS: Final = 4
DEVICE: Final = 0
COUNTRY: Final = 1
MERCHANT: Final = 2
DETAIL_KINDS: Final = 3


class Status(IntEnum):
    """What became of a transaction; symbols of FeatureVector.status, in order."""

    computed = 0
    duplicate = 1
    too_late = 2


class LabelStatus(IntEnum):
    """What a label met when it arrived; symbols of LabelReceived.status, in order."""

    accepted = 0
    unknown_transaction = 1


class Known(IntEnum):
    """What is known of a remembered transaction id."""

    label_only = 1
    """A label came, the transaction did not yet."""
    computed = 2
    too_late = 3


NO_LABEL: Final = 0
GENUINE: Final = 1
FRAUD: Final = 2

TRANSACTION: Final = np.dtype(
    [
        ("id_lo", "<u8"),
        ("id_hi", "<u8"),
        ("event_time", "<i8"),
        ("customer_id", "<i8"),
        ("terminal_id", "<i8"),
        ("amount", "<i8"),
        ("label_time", "<i8"),
        ("terminal", "<i4"),
        ("known", "u1"),
        ("label", "u1"),
        ("unused", "<u2"),
    ]
)
"""A remembered transaction, 64 bytes. ``terminal`` is the slot of its terminal's record."""

KEY: Final = np.dtype({"names": ["id_lo", "id_hi"], "formats": ["<u8", "<u8"], "offsets": [0, 8], "itemsize": 128})
"""A card's or terminal's record seen by its key."""

VALUE: Final = np.dtype([("id_lo", "<u8"), ("id_hi", "<u8"), ("count", "<i8"), ("next", "<i8")])
"""How often a card's last 30 days hold one device, country or merchant."""

# words of `meta`
CLOCK: Final = 0
"""Newest event time of all transactions."""
TRANSACTIONS: Final = 1
"""Ids ever remembered; id number n lies in slot n modulo the capacity."""
CARDS: Final = 2
TERMINALS: Final = 3
HELD: Final = 4
"""Labels that wait for the clock."""
HELD_EVER: Final = 5
COMPUTED: Final = 6
DUPLICATES: Final = 7
TOO_LATE: Final = 8
LABELS: Final = 9
CARD_ARENA: Final = 16
TERMINAL_ARENA: Final = 56
DETAIL_ARENA: Final = 96
"""First words of three arenas; see `pipelines.fraud.arena`."""
META_WORDS: Final = 128
