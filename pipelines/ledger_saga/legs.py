"""Ids of legs: functions of the cross transfer's id, and recognisable among all transfers of the ledger.

From the high end, 128 bits: the first 32 of the cross transfer's id, so that time-ordered ids (ULID, UUIDv7) stay
roughly so; 80 of the SHA-256 of id, step and attempt; a mark of 12; 4 with the shard of the cross transfer. The mark
lets one transfer of others in 4,096 through, whose answers the saga then ignores.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.catalogue import LEDGER_SHARDS

__all__ = ["Step", "cross_transfer_shard", "leg_id", "leg_shards"]

MARK: Final = 0xC5A
_SHARD_BITS: Final = 4
_MARK_BITS: Final = 12
_MARKED: Final = np.uint64(MARK << _SHARD_BITS)
_MARK_MASK: Final = np.uint64((1 << _MARK_BITS) - 1 << _SHARD_BITS)
_SHARD_MASK: Final = np.uint64((1 << _SHARD_BITS) - 1)


class Step(IntEnum):
    """What a leg is for, in the order of the schema's symbols."""

    reserve_debit = 0
    reserve_credit = 1
    post_debit = 2
    post_credit = 3
    void_debit = 4
    void_credit = 5
    refund = 6


def cross_transfer_shard(cross_transfer_id: int) -> int:
    """The shard of ledger.cross-commands that a cross transfer belongs to, whatever its ledgers."""
    return cross_transfer_id % LEDGER_SHARDS


def leg_id(cross_transfer_id: int, step: Step, attempt: int) -> int:
    """Id of the transfer that does ``step`` of a cross transfer for the ``attempt``-th time (from 0)."""
    seed = cross_transfer_id.to_bytes(16, "big") + bytes([step]) + attempt.to_bytes(4, "big")
    middle = int.from_bytes(hashlib.sha256(seed).digest()[:10], "big")
    low = MARK << _SHARD_BITS | cross_transfer_shard(cross_transfer_id)
    return cross_transfer_id >> 96 << 96 | middle << 16 | low


def leg_shards(ids_lo: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Shard of the cross transfer that each transfer may be a leg of, by the low words of their ids; -1: of none."""
    shards = (ids_lo & _SHARD_MASK).astype(np.int64)
    return np.where(((ids_lo & _MARK_MASK) == _MARKED) & (shards < LEDGER_SHARDS), shards, -1)
