"""Reads frames from files: NDJSON and Avro object containers, streamed and bounded, whoever wrote them.

NDJSON: a line is a frame, ``{"produced_at": micros, "shard": 0, "events": [{"type": …}, …]}``, of which only
``events`` is required; or a lone event, ``{"type": …}``, which is a frame of one (and may carry ``produced_at`` and
``shard`` beside its own fields). Blank lines are skipped. Avro: the file's schema is the topic's frame, or one of its
event records, or a union of them, written with any schema that resolves to the topic's; an event is a frame of one.

A reader holds one line or one block at a time. What is wrong is an `InputError` that tells the line (or the record of
an Avro file), counted from 1; frames before it have been given out.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import msgspec

from pipelines.avro_schema import SchemaError
from pipelines.codec import MAX_EVENTS_PER_FRAME, MAX_FRAME_BYTES, FrameCodec
from pipelines.errors import FieldError, FrameError, StreambankError
from pipelines.event_json import parse_events
from pipelines.frames import Events

__all__ = ["InputError", "InputFrame", "read_avro", "read_frames", "read_ndjson"]

MAX_LINE_BYTES: Final = 32 << 20
MAX_BLOCK_BYTES: Final = 4 << 20
MAX_METADATA_BYTES: Final = 1 << 20
MAX_METADATA_ENTRIES: Final = 100
AVRO_MAGIC: Final = b"Obj\x01"
_SYNC_BYTES: Final = 16
_LONG_MAX: Final = 2**63 - 1
_FRAME_KEYS: Final = {"produced_at": _LONG_MAX, "sequence": _LONG_MAX, "shard": 2**31 - 1}
_EMPTY_HEADER: Final = b"\0\0\0\0"  # shard 0, sequence 0, produced_at 0, trace null


class InputError(StreambankError):
    """What is wrong with an input file: ``position`` is the line or the record, from 1 (0: the file as a whole);
    ``field`` the path of the JSON field, or empty."""

    def __init__(self, unit: str, position: int, detail: str, field: str = "") -> None:
        where = f"{unit} {position}" if position else "the file"
        super().__init__(f"{where}: {field}: {detail}" if field else f"{where}: {detail}")
        self.position = position
        self.field = field
        self.detail = detail


@dataclass(frozen=True, slots=True)
class InputFrame:
    """A frame of a file; None is what the file does not say. ``position`` is its line or record, from 1."""

    position: int
    events: Events
    produced_at: int | None = None
    shard: int | None = None
    sequence: int | None = None
    trace: str | None = None


def read_frames(stream: BinaryIO, codec: FrameCodec) -> Iterator[InputFrame]:
    """Frames of an NDJSON or Avro file; which of them it is, its first bytes tell."""
    head = stream.read(len(AVRO_MAGIC))
    joined = io.BufferedReader(_Joined(head, stream))
    return read_avro(joined, codec) if head == AVRO_MAGIC else read_ndjson(joined, codec)


class _Joined(io.RawIOBase):
    """Bytes already read, then the rest of their stream."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head or self._rest.read(len(buffer))
        data, self._head = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


# --- NDJSON -----------------------------------------------------------------------------------------------------------


def read_ndjson(stream: BinaryIO, codec: FrameCodec, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[InputFrame]:
    """Frames of NDJSON, one per line that is not blank. Raises InputError."""
    position = 0
    while line := stream.readline(max_line_bytes + 1):
        position += 1
        if len(line) > max_line_bytes:
            raise InputError("line", position, f"longer than {max_line_bytes} bytes")
        if line.isspace():
            continue
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError("line", position, f"not JSON: {error}") from None
        try:
            yield _frame_of(position, record, codec)
        except FieldError as error:
            raise InputError("line", position, error.detail, error.field) from None


def _frame_of(position: int, record: Any, codec: FrameCodec) -> InputFrame:
    if not isinstance(record, dict):
        raise FieldError("frame", "a line must be an object: a frame with events, or an event with a type")
    header: dict[str, Any] = {}
    if "events" in record and "type" not in record:
        events = record.pop("events")
        if not isinstance(events, list):
            raise FieldError("events", "must be a list of events")
        if len(events) > MAX_EVENTS_PER_FRAME:
            raise FieldError("events", f"{len(events)} events; a frame has at most {MAX_EVENTS_PER_FRAME}")
        header = _header_of(record, set(record))
        unknown = next((name for name in record if name not in header), None)
        if unknown is not None:
            raise FieldError(unknown, f"a frame has no such field; it has {', '.join(_FRAME_KEYS)}, trace and events")
        return InputFrame(position, parse_events(codec, events), **header)
    own = {field.name for event_type in codec.event_types for field in event_type.fields}
    header = _header_of(record, {"produced_at", "shard"} - own)
    event = {name: value for name, value in record.items() if name not in header}
    try:
        return InputFrame(position, parse_events(codec, [event]), **header)
    except FieldError as error:
        raise FieldError(error.field.removeprefix("events[0]").removeprefix(".") or "frame", error.detail) from None


def _header_of(record: dict[str, Any], allowed: set[str]) -> dict[str, Any]:
    header: dict[str, Any] = {}
    for name, highest in _FRAME_KEYS.items():
        if name in record and name in allowed:
            value = record[name]
            if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
                raise FieldError(name, f"must be an integer between 0 and {highest}")
            header[name] = value
    if "trace" in record and "trace" in allowed:
        if not isinstance(record["trace"], str | None):
            raise FieldError("trace", "must be a string or null")
        header["trace"] = record["trace"]
    return header


# --- Avro -------------------------------------------------------------------------------------------------------------


def read_avro(stream: BinaryIO, codec: FrameCodec) -> Iterator[InputFrame]:
    """Frames of an Avro object container (codecs null and deflate). Raises InputError.

    The frame codec itself reads the blocks: they are Avro data like any record's, a block of events being the inside
    of a frame's array.
    """
    metadata, sync = _read_metadata(stream)
    compression = metadata.get("avro.codec", b"null")
    if compression not in (b"null", b"deflate"):
        raise InputError("record", 0, f"compressed with {compression!r}; null and deflate can be read")
    holds_frames, reader = _container_codec(metadata, codec)
    position = 0
    while (count := _read_long(stream, at_end=None)) is not None:
        size = _read_long(stream)
        if size is None or not 0 <= size <= MAX_BLOCK_BYTES:
            raise InputError("record", position + 1, f"a block of {size} bytes; at most {MAX_BLOCK_BYTES}")
        block = _read_exactly(stream, size)
        if _read_exactly(stream, _SYNC_BYTES) != sync:
            raise InputError("record", position + 1, "the block does not end with the file's sync marker")
        if compression == b"deflate":
            block = _inflate(block, position)
        if not 0 <= count <= MAX_EVENTS_PER_FRAME:
            raise InputError("record", position + 1, f"a block of {count} records; at most {MAX_EVENTS_PER_FRAME}")
        try:
            for frame in _block_frames(block, count, holds_frames, reader, position):
                position = frame.position
                yield frame
        except FrameError as error:
            raise InputError("record", position + 1, str(error)) from None


def _block_frames(
    block: bytes, count: int, holds_frames: bool, reader: FrameCodec, position: int
) -> Iterator[InputFrame]:
    if holds_frames:
        for number, frame in enumerate(reader.decode_many(block, count), position + 1):
            yield InputFrame(number, frame.events, frame.produced_at, frame.shard, frame.sequence, frame.trace)
    elif count or block:
        if len(block) > MAX_FRAME_BYTES - 64:
            raise FrameError("too_large", f"a block of {len(block)} bytes of events; at most {MAX_FRAME_BYTES - 64}")
        events = reader.decode(_EMPTY_HEADER + _long(count) + block + (b"\0" if count else b"")).events
        for index in range(count):
            yield InputFrame(position + 1 + index, Events(events.rows[index : index + 1], events.heap))


def _container_codec(metadata: dict[str, bytes], codec: FrameCodec) -> tuple[bool, FrameCodec]:
    """Whether the file holds frames (rather than events), and the codec from its schema to the topic's."""
    try:
        schema = json.loads(metadata.get("avro.schema", b""))
    except (ValueError, RecursionError):
        raise InputError("record", 0, "the file's schema is not JSON") from None
    fields = schema.get("fields") if isinstance(schema, dict) else None
    holds_frames = isinstance(fields, list) and any(
        isinstance(entry, dict)
        and entry.get("name") == "events"
        and isinstance(entry.get("type"), dict)
        and entry["type"].get("type") == "array"
        for entry in fields
    )
    if not holds_frames:
        events = {"name": "events", "type": {"type": "array", "items": schema}}
        order = {"shard": 0, "sequence": 1, "produced_at": 2, "trace": 3}
        topic_fields = [entry for entry in codec.schema["fields"] if entry["name"] in order]
        header = sorted(topic_fields, key=lambda entry: order[entry["name"]])
        schema = {"type": "record", "name": "FrameOfOne", "fields": [*header, events]}
    try:
        return holds_frames, FrameCodec(codec.topic, codec.schema, schema)
    except (SchemaError, TypeError, AttributeError, KeyError) as error:
        raise InputError("record", 0, f"its schema does not fit {codec.topic}: {error}") from None


def _read_metadata(stream: BinaryIO) -> tuple[dict[str, bytes], bytes]:
    if stream.read(len(AVRO_MAGIC)) != AVRO_MAGIC:
        raise InputError("record", 0, "not an Avro object container")
    metadata: dict[str, bytes] = {}
    left = MAX_METADATA_BYTES
    while count := _read_long(stream):
        if count < 0:
            count = -count
            _read_long(stream)
        if count > MAX_METADATA_ENTRIES - len(metadata):
            raise InputError("record", 0, f"more than {MAX_METADATA_ENTRIES} entries of metadata")
        for _ in range(count):
            pair = []
            for _ in range(2):
                size = _read_long(stream)
                if size is None or not 0 <= size <= left:
                    raise InputError("record", 0, f"metadata of more than {MAX_METADATA_BYTES} bytes")
                left -= size
                pair.append(_read_exactly(stream, size))
            metadata[pair[0].decode("utf-8", "replace")] = pair[1]
    return metadata, _read_exactly(stream, _SYNC_BYTES)


def _inflate(block: bytes, position: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(block, MAX_BLOCK_BYTES + 1)
    except zlib.error as error:
        raise InputError("record", position + 1, f"the block cannot be inflated: {error}") from None
    if len(data) > MAX_BLOCK_BYTES:
        raise InputError("record", position + 1, f"the block inflates to more than {MAX_BLOCK_BYTES} bytes")
    if not inflater.eof:
        raise InputError("record", position + 1, "the compressed block is cut off")
    return data


_RAISE: Final = -1


def _read_long(stream: BinaryIO, at_end: int | None = _RAISE) -> int | None:
    """A zigzag varint; at the end of the file ``at_end``, or an error."""
    raw = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            if shift == 0 and at_end is None:
                return None
            raise InputError("record", 0, "cut off")
        raw |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return (raw >> 1) ^ -(raw & 1)
    raise InputError("record", 0, "a number of more than ten bytes")


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise InputError("record", 0, "cut off")
    return data


def _long(value: int) -> bytes:
    raw = value << 1
    out = bytearray()
    while raw >= 0x80:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    out.append(raw)
    return bytes(out)
