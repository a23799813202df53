"""How accounts and transfers lie in memory: 128 bytes each, in TigerBeetle's field order.

A 128-bit number is two 64-bit words, ``<name>_lo`` and ``<name>_hi``. A record's slot is its position in its column;
slots are given in the order of creation, which is also the order of timestamps.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

import numpy as np

__all__ = [
    "ACCOUNT",
    "ACCOUNT_FLAGS",
    "TRANSFER",
    "TRANSFER_FLAGS",
    "U128",
    "AccountFlags",
    "PendingStatus",
    "TransferFlags",
]


class AccountFlags(IntFlag):
    """Bits of an account's ``flags``, in the order of the schema."""

    linked = 1 << 0
    debits_must_not_exceed_credits = 1 << 1
    credits_must_not_exceed_debits = 1 << 2
    history = 1 << 3
    imported = 1 << 4
    closed = 1 << 5


class TransferFlags(IntFlag):
    """Bits of a transfer's ``flags``, in the order of the schema."""

    linked = 1 << 0
    pending = 1 << 1
    post_pending_transfer = 1 << 2
    void_pending_transfer = 1 << 3
    balancing_debit = 1 << 4
    balancing_credit = 1 << 5
    closing_debit = 1 << 6
    closing_credit = 1 << 7
    imported = 1 << 8


class PendingStatus(IntEnum):
    """What became of a pending transfer; ``none`` for the others."""

    none = 0
    pending = 1
    posted = 2
    voided = 3
    expired = 4
    expired_unannounced = 5
    """Expired, but its TransferExpired event waits for a later frame because this one's were too many."""


ACCOUNT_FLAGS: Final = tuple(flag.name or "" for flag in AccountFlags)
TRANSFER_FLAGS: Final = tuple(flag.name or "" for flag in TransferFlags)


def _u128(name: str) -> list[tuple[str, str]]:
    return [(f"{name}_lo", "<u8"), (f"{name}_hi", "<u8")]


U128: Final = np.dtype(_u128("id"))
"""An id alone: two words."""

ACCOUNT: Final = np.dtype(
    [
        *_u128("id"),
        *_u128("debits_pending"),
        *_u128("debits_posted"),
        *_u128("credits_pending"),
        *_u128("credits_posted"),
        *_u128("user_data_128"),
        ("user_data_64", "<u8"),
        ("user_data_32", "<u4"),
        ("reserved", "<u4"),
        ("ledger", "<u4"),
        ("code", "<u2"),
        ("flags", "<u2"),
        ("timestamp", "<i8"),
    ]
)

TRANSFER: Final = np.dtype(
    [
        *_u128("id"),
        *_u128("debit_account_id"),
        *_u128("credit_account_id"),
        *_u128("amount"),
        *_u128("pending_id"),
        *_u128("user_data_128"),
        ("user_data_64", "<u8"),
        ("user_data_32", "<u4"),
        ("timeout", "<u4"),
        ("ledger", "<u4"),
        ("code", "<u2"),
        ("flags", "<u2"),
        ("timestamp", "<i8"),
    ]
)

assert ACCOUNT.itemsize == TRANSFER.itemsize == 128
