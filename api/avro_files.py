"""Avro object container files of the API: the client's writes, and the results of a write for who asks for Avro.

A block of a container file is the inside of an Avro array, so the frame codec, which is compiled, writes and reads it:
a frame less its header is a block.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

import msgspec

from pipelines.catalogue import LEDGER_RESULTS
from pipelines.codec import FrameCodec
from pipelines.errors import FrameError
from pipelines.frames import Events, Frame, Rows

__all__ = ["AVRO_MAGIC", "block_events", "container", "container_events", "ledger_answer_codec"]

AVRO_MAGIC: Final = b"Obj\x01"
SYNC_BYTES: Final = 16
_FRAME_START: Final = b"\0\0\0\0"  # shard 0, sequence 0, produced_at 0, trace null
_WHERE: Final = (
    ("record", "int", "Index of the event in the body, from 0."),
    ("shard", "int", "Shard of the event's ledger."),
    ("sequence", "long", "What a query of the shard must have reached to show the effect."),
)


@lru_cache(maxsize=1)
def ledger_answer_codec() -> FrameCodec:
    """Of the results of a write: the events of ledger.results, each with ``record``, ``shard`` and ``sequence``."""
    schema = LEDGER_RESULTS.schema()
    [events] = [found for found in schema["fields"] if found["name"] == "events"]
    where = [{"name": name, "type": kind, "doc": doc} for name, kind, doc in _WHERE]
    items = [{**record, "fields": [*record["fields"], *where]} for record in events["type"]["items"]]
    fields = [
        {**events, "type": {**events["type"], "items": items}} if found is events else found
        for found in schema["fields"]
    ]
    return FrameCodec("results of a write", {**schema, "fields": fields})


def container(codec: FrameCodec, rows: Rows) -> bytes:
    """The rows, one at least, as a file of one block. For event types without text."""
    body = codec.encode(Frame(codec.topic, 0, 0, 0, None, Events(rows)))
    # the header's four fields of one byte, then the array: its count, the events, 0
    start = len(_FRAME_START)
    while body[start] & 0x80:
        start += 1
    block = memoryview(body)[start + 1 : -1]
    sync = os.urandom(SYNC_BYTES)
    return b"".join((_header(codec), sync, _long(len(rows)), _long(len(block)), block, sync))


def container_events(codec: FrameCodec, body: bytes) -> Events:
    """The events of a file of one block, not compressed, whose schema can be read as that of ``codec``. Raises
    `FrameError` or `SchemaError` for anything else, `msgspec.DecodeError` where the schema is no JSON."""
    schema, at = _read_header(body)
    count, at = _read_long(body, at + SYNC_BYTES)
    size, at = _read_long(body, at)
    if at + size + SYNC_BYTES != len(body):
        raise FrameError("bad_block_size", f"a block of {size} bytes at byte {at} of a file of {len(body)}")
    return block_events(_reader(codec, schema), body[at : at + size], count)


def block_events(codec: FrameCodec, block: bytes, count: int) -> Events:
    """The events of a block: ``count`` of them and nothing more, else `FrameError`."""
    events = codec.decode(_FRAME_START + _long(count) + block + b"\0").events
    if len(events) != count:
        raise FrameError("bad_count", f"{len(events)} events in a block of {count}")
    return events


@lru_cache(maxsize=16)
def _header(codec: FrameCodec) -> bytes:
    [events] = [found for found in codec.schema["fields"] if found["name"] == "events"]
    pairs = ((b"avro.schema", msgspec.json.encode(events["type"]["items"])), (b"avro.codec", b"null"))
    text = b"".join(_long(len(part)) + part for pair in pairs for part in pair)
    return AVRO_MAGIC + _long(len(pairs)) + text + b"\0"


@lru_cache(maxsize=16)
def _reader(codec: FrameCodec, schema: bytes) -> FrameCodec:
    return codec.reading(msgspec.json.decode(schema))


def _long(value: int) -> bytes:
    """An Avro long, for a value that is not negative."""
    value <<= 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_long(data: bytes, at: int) -> tuple[int, int]:
    """A long that is not negative, and where it ends. Raises `FrameError`."""
    raw = shift = 0
    while at < len(data) and shift < 64:
        raw |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 0x80:
            if raw & 1:
                break
            return raw >> 1, at
    raise FrameError("truncated", f"no count at byte {at} of {len(data)}")


def _read_header(body: bytes) -> tuple[bytes, int]:
    """The schema's JSON, and where the sync marker begins. Raises `FrameError`."""
    if not body.startswith(AVRO_MAGIC):
        raise FrameError("bad_magic", f"the file begins with {body[:4].hex()}, not with {AVRO_MAGIC.hex()}")
    found: dict[bytes, bytes] = {}
    pairs, at = _read_long(body, len(AVRO_MAGIC))
    while pairs:
        for _ in range(pairs):
            texts = []
            for _ in range(2):
                size, at = _read_long(body, at)
                texts.append(body[at : at + size])
                at += size
            found[texts[0]] = texts[1]
        pairs, at = _read_long(body, at)
    if found.get(b"avro.codec", b"null") != b"null" or b"avro.schema" not in found:
        raise FrameError("bad_header", f"a header with {b', '.join(found).decode(errors='replace')[:200]}")
    return found[b"avro.schema"], at
