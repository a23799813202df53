"""Which shard an instrument lives on.

A symbol's shard is the CRC-32 (ISO 3309, as in zlib and gzip) of its UTF-8 bytes, modulo the number of shards, so that
any producer in any language can compute it. It never changes, because a book cannot move between shards.
"""

from __future__ import annotations

import zlib

from pipelines.catalogue import MATCHING_SHARDS

__all__ = ["shard_of"]


def shard_of(symbol: str | bytes) -> int:
    """The shard of a symbol."""
    data = symbol.encode() if isinstance(symbol, str) else symbol
    return zlib.crc32(data) % MATCHING_SHARDS
