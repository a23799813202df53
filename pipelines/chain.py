"""The hash chain of a topic: every frame carries a hash of all frames of its shard up to itself.

A frame's hash is ``SHA-256(hash of the shard's frame before it || canonical bytes of the frame)``, the first frame's
predecessor being 32 zero bytes (`GENESIS`). The canonical bytes are the frame's Avro body as its writer's schema
encodes it with ``chain`` null: no wire format header, all events in one block, nothing else. ``chain`` is the record's
last field and null its first branch, so that

- the canonical bytes of a stored record are its body with the last 33 bytes replaced by one zero byte, and
- any Avro library gives the same bytes: read the record, set ``chain`` to null, write it with the schema it was
  written with (docs/adr/0004-hash-chain.md has it in ten lines).

A changed, missing, inserted, swapped or repeated frame breaks the chain at that place or at the next frame. Somebody
who can rewrite the topic's whole tail can also make a new chain of it: only a hash noted elsewhere (an anchor) shows
that, which is why `streambank ledger verify` prints the last hash of each shard and takes earlier ones.
"""

from __future__ import annotations

import hashlib
from typing import Final

from pipelines.avro_schema import CHAIN_BYTES

__all__ = ["GENESIS", "canonical_parts", "chain_end", "next_hash"]

GENESIS: Final = bytes(CHAIN_BYTES)
"""Stands for the hash before a shard's first chained frame."""
NULL_END: Final = b"\x00"
"""How a canonical body ends: ``chain`` is null."""
_SET: Final = b"\x02"
"""The union branch of a set ``chain``."""


def next_hash(previous: bytes, *canonical: bytes | memoryview) -> bytes:
    """The hash of the frame with these canonical bytes (in one or more parts) after one with the hash ``previous``."""
    digest = hashlib.sha256(previous)
    for part in canonical:
        digest.update(part)
    return digest.digest()


def chain_end(digest: bytes) -> bytes:
    """What stands in a stored body where the canonical one has `NULL_END`."""
    return _SET + digest


def canonical_parts(body: bytes) -> tuple[memoryview, bytes]:
    """The canonical bytes, in two parts, of a stored body whose ``chain`` is set; the body is not copied."""
    return memoryview(body)[: -CHAIN_BYTES - 1], NULL_END
