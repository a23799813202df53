"""Who wrote a record: a checksum and a keyed hash that a producer puts into the record's header.

The header `HEADER` is ASCII text of five words::

    1 <producer> <key id> <CRC-32 of the value, 8 hex digits> <HMAC-SHA256, 64 hex digits>

The HMAC is keyed with the producer's secret, over ``b"streambank 1" NUL topic NUL producer NUL`` (topic as the broker
names it), the partition as four bytes, big-endian, and the record's value: a record that is copied to another
partition, topic or environment, or in another producer's name, is refused. The checksum tells damage from forgery.

`Verifier.check` decides by the record and its offset only, so that a job that reads it again decides the same. It does
not tell a record that was copied within its partition from a new one: commands are idempotent by their ids.
"""

from __future__ import annotations

import hmac
import zlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pipelines.errors import FrameError

__all__ = ["HEADER", "SIGNATURE_REASONS", "ProducerKey", "Verifier", "sign"]

HEADER: Final = "streambank-signature"
SIGNATURE_REASONS: Final = frozenset({"unsigned", "unknown_producer", "retired_key", "bad_checksum", "bad_hmac"})
"""Reasons of the `FrameError`s that `Verifier.check` raises; they are those of the dead letters."""

_VERSION: Final = b"1"
_WORDS: Final = 5


class ProducerKey(NamedTuple):
    """One key of one producer. ``until``: per partition, the first offset from which the key is no longer good; None
    while it is."""

    key_id: str
    producer: str
    secret: bytes
    until: tuple[int, ...] | None = None


def sign(key: ProducerKey, topic: str, partition: int, value: bytes) -> bytes:
    """The header's value for a record; ``topic`` is the broker's name."""
    digest = hmac.digest(key.secret, _bound(topic, key.producer.encode(), partition) + value, "sha256")
    return b"%s %s %s %08x %s" % (
        _VERSION, key.producer.encode(), key.key_id.encode(), zlib.crc32(value), digest.hex().encode(),
    )  # fmt: skip


class Verifier:
    """Checks the records of one topic. ``required_from``: per partition, the first offset that must be signed."""

    def __init__(self, topic: str, keys: Mapping[str, ProducerKey], required_from: Sequence[int]) -> None:
        self._topic = topic
        self._keys = {(key.producer.encode(), key.key_id.encode()): key for key in keys.values()}
        self._required_from = tuple(required_from)

    def knows(self, signature: bytes | None) -> bool:
        """Whether a header names a key of this verifier."""
        words = (signature or b"").split(b" ")
        return len(words) == _WORDS and (words[1], words[2]) in self._keys

    def check(self, partition: int, offset: int, value: bytes, signature: bytes | None) -> None:
        """Return if a known producer wrote the record. Raises `FrameError` with one of `SIGNATURE_REASONS`."""
        if offset < self._required_from[partition]:
            return
        if not signature:
            raise FrameError("unsigned", f"the record has no header {HEADER}; its producer must sign it")
        words = signature.split(b" ")
        if len(words) != _WORDS or words[0] != _VERSION:
            raise FrameError("unsigned", f"the header {HEADER} is not a signature of version {_VERSION.decode()}")
        _, producer, key_id, checksum, digest = words
        key = self._keys.get((producer, key_id))
        if key is None:
            raise FrameError("unknown_producer", f"nobody knows key {_shown(key_id)} of producer {_shown(producer)}")
        if key.until is not None and offset >= key.until[partition]:
            raise FrameError(
                "retired_key",
                f"key {key.key_id} of {key.producer} is good up to offset {key.until[partition]} of partition"
                f" {partition}; this is {offset}",
            )
        if checksum != b"%08x" % zlib.crc32(value):
            raise FrameError("bad_checksum", f"the value of {key.producer}'s record is not what was checksummed")
        wanted = hmac.digest(key.secret, _bound(self._topic, producer, partition) + value, "sha256")
        if not hmac.compare_digest(wanted.hex().encode(), digest):
            raise FrameError("bad_hmac", f"the HMAC is not that of key {key.key_id} of {key.producer} over this record")


def _bound(topic: str, producer: bytes, partition: int) -> bytes:
    """What is hashed before the value."""
    return b"streambank 1\0%s\0%s\0%s" % (topic.encode(), producer, partition.to_bytes(4, "big"))


def _shown(word: bytes) -> str:
    return repr(word[:40].decode("ascii", "replace"))
