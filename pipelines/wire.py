"""The Confluent wire format: a magic byte 0, the writer schema's id as four big-endian bytes, and the Avro body."""

from __future__ import annotations

import struct
from typing import Final

from pipelines.errors import FrameError

__all__ = ["HEADER_BYTES", "unwrap", "wrap"]

HEADER_BYTES: Final = 5
_HEADER: Final = struct.Struct(">bi")


def wrap(schema_id: int, *body: bytes | memoryview) -> bytes:
    """A record's value: ``body``, in one or more parts, written with the registry's schema ``schema_id`` (1 to
    2^31 - 1)."""
    if not 0 < schema_id < 2**31:
        raise ValueError(f"a schema id is between 1 and 2^31 - 1, found {schema_id}")
    return b"".join((_HEADER.pack(0, schema_id), *body))


def unwrap(value: bytes | None) -> tuple[int, bytes]:
    """(schema id, Avro body) of a record's value.

    FrameError reasons: ``empty`` (no value at all), ``not_avro`` (another first byte), ``too_short`` (fewer than five
    bytes), ``bad_schema_id`` (not positive).
    """
    if not value:
        raise FrameError("empty", "the record has no value")
    if value[0] != 0:
        raise FrameError("not_avro", f"the first byte is 0x{value[0]:02x}; a record starts with 0x00 and a schema id")
    if len(value) < HEADER_BYTES:
        raise FrameError("too_short", f"{len(value)} bytes; the magic byte and the schema id take {HEADER_BYTES}")
    _, schema_id = _HEADER.unpack_from(value)
    if schema_id <= 0:
        raise FrameError("bad_schema_id", f"schema id {schema_id}; the registry's ids are positive")
    return schema_id, bytes(value[HEADER_BYTES:])
