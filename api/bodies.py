"""Request bodies as events: one JSON object, a JSON array, NDJSON, or an Avro object container file.

A JSON object or array is read whole (it is small by limit) and is all or nothing. NDJSON and Avro are streamed: at most
a chunk of them is in memory, good events go on, and each bad one is reported with its position (line from 1, or record
from 0) and every field that is wrong. A body that cannot be read further (broken Avro, a line that never ends, a limit)
stops with a `Problem` after what came before it.

An Avro file is decoded by the frame codec: a container block is the inside of an Avro array, so a block with a header
in front and an end behind is a frame. That gives the writer's schema, projection and validation at once.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

import fastavro
import msgspec
import numpy as np

from api.avro_files import AVRO_MAGIC, block_events
from api.batching import concatenate
from api.problems import Problem
from pipelines.avro_schema import SchemaError
from pipelines.codec import FrameCodec, HeapBuilder
from pipelines.errors import FieldError, FrameError
from pipelines.event_json import parse_event
from pipelines.frames import Events

__all__ = [
    "BadEvent",
    "BodyFormat",
    "BodyReader",
    "Limits",
    "Parsed",
    "accepts_avro",
    "body_format",
    "parse_json",
    "read_avro",
    "read_ndjson",
]

BodyFormat = Literal["json", "ndjson", "avro"]

MEDIA_TYPES: Final[dict[str, BodyFormat]] = {
    "application/json": "json",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/avro": "avro",
    "application/vnd.apache.avro": "avro",
    "avro/binary": "avro",
}
CHUNK_EVENTS: Final = 1000
MAX_AVRO_BLOCK_BYTES: Final = 900_000
MAX_AVRO_META_BYTES: Final = 256 << 10
MAX_AVRO_META_ENTRIES: Final = 64
MAX_FIELD_ERRORS: Final = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a body; bytes, events, and seconds of silence."""

    body_bytes: int
    bulk_bytes: int
    bulk_events: int
    line_bytes: int
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class BadEvent:
    """An event that was refused. ``linked`` when it seems to continue a chain (then its neighbours fail with it)."""

    position: int
    errors: tuple[dict[str, Any], ...]
    linked: bool = False


@dataclass(slots=True)
class Parsed:
    """A chunk of a body: the good events with their positions in it, and the bad ones."""

    events: Events
    positions: list[int]
    bad: list[BadEvent] = field(default_factory=list)


class Stream(Protocol):
    """What this module needs of aiohttp's StreamReader."""

    async def readany(self) -> bytes: ...


def body_format(content_type: str, content_encoding: str | None) -> BodyFormat:
    """The body's format by its headers; raises `Problem` 415."""
    if content_encoding not in (None, "", "identity"):
        raise Problem(
            "unsupported-media-type",
            f"Content-Encoding {content_encoding[:40]} is not supported; send it uncompressed.",
        )
    found = MEDIA_TYPES.get(content_type.partition(";")[0].strip().lower())
    if found is None:
        raise Problem("unsupported-media-type", f"Content-Type is {content_type[:100] or 'missing'}.",
                      supported=sorted(MEDIA_TYPES))  # fmt: skip
    return found


def accepts_avro(headers: list[str]) -> bool:
    """Whether an Accept header (RFC 9110) names an Avro media type."""
    for offered in ",".join(headers).split(","):
        name, *parameters = (part.strip().lower() for part in offered.split(";"))
        if MEDIA_TYPES.get(name) == "avro":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


class BodyReader:
    """Reads a stream in pieces, with time-outs and a bound, and shows every byte to ``seen`` (the fingerprint)."""

    def __init__(self, stream: Stream, *, limit: int, idle_seconds: float, seen: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._limit = limit
        self._idle = idle_seconds
        self._seen = seen
        self._read = 0
        self._buffer = bytearray()

    async def piece(self) -> bytes:
        """The next bytes, b"" at the end; raises `Problem` 408 or 413."""
        try:
            async with asyncio.timeout(self._idle):
                piece = await self._stream.readany()
        except TimeoutError:
            raise Problem("body-timeout", f"No byte of the body came for {self._idle:g} seconds.") from None
        self._read += len(piece)
        if self._read > self._limit:
            raise Problem("too-large", f"The body is longer than {self._limit} bytes.", limit=self._limit)
        self._seen(piece)
        return piece

    async def whole(self) -> bytes:
        """The rest of the body."""
        while piece := await self.piece():
            self._buffer += piece
        return bytes(self._buffer)

    async def skip(self) -> None:
        """Read the rest, keeping nothing."""
        while await self.piece():
            pass

    async def exactly(self, count: int) -> bytes:
        """``count`` bytes; raises `Problem` 400 when the body ends before."""
        while len(self._buffer) < count:
            piece = await self.piece()
            if not piece:
                raise Problem("malformed-avro", f"The file ends at byte {self._read}, in the middle of a block.")
            self._buffer += piece
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def at_end(self) -> bool:
        while not self._buffer:
            piece = await self.piece()
            if not piece:
                return True
            self._buffer += piece
        return False

    async def long(self) -> int:
        """An Avro long."""
        value = shift = 0
        while True:
            byte = (await self.exactly(1))[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
            if shift > 63:
                raise Problem("malformed-avro", f"A number near byte {self._read} has too many bytes.")


def parse_json(
    body: bytes,
    codec: FrameCodec,
    implied: str | None,
    max_events: int,
    implied_fields: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Parsed, bool]:
    """The events of a JSON body and whether it was an array; raises `Problem` 400 for what is not JSON.

    ``implied`` is the event type that the route implies, None where each event names its own. With ``implied_fields``
    the body is one object, which may repeat but not contradict them.
    """
    if not body.strip():
        raise Problem("empty-body", "The body is empty; send an event or an array of events.")
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("malformed-json", f"{error}.") from None
    is_array = isinstance(found, list)
    if implied_fields:
        found = _completed(found, implied_fields)
    records = found if is_array else [found]
    if not records:
        raise Problem("empty-body", "The array is empty; send at least one event.")
    if len(records) > max_events:
        raise Problem("too-large", f"The array has {len(records)} events, at most {max_events}; send NDJSON.")
    return _parse_records(codec, list(enumerate(records)), implied), is_array


def _completed(found: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Problem("invalid-event", "The body must be one JSON object.", errors=[
            {"pointer": "", "detail": "must be an object"}
        ])  # fmt: skip
    for name, value in fields.items():
        if found.get(name, value) not in (value, str(value)):
            raise Problem("invalid-event", "The body contradicts the path.", errors=[
                {"pointer": f"/{name}", "detail": f"must be {value} or left out, as the path names it"}
            ])  # fmt: skip
    return {**found, **fields}


async def read_ndjson(
    body: BodyReader, codec: FrameCodec, implied: str | None, limits: Limits
) -> AsyncIterator[Parsed]:
    """Chunks of at most `CHUNK_EVENTS` lines; empty lines are skipped but counted."""
    rest = b""
    number = events = 0
    ended = False
    while not ended:
        piece = await body.piece()
        ended = not piece
        lines = (rest + piece).split(b"\n")
        rest = b"" if ended else lines.pop()
        if len(rest) > limits.line_bytes:
            raise Problem("too-large", f"Line {number + len(lines) + 1} is longer than {limits.line_bytes} bytes.",
                          line=number + len(lines) + 1)  # fmt: skip
        for start in range(0, len(lines), CHUNK_EVENTS):
            parsed, count = _parse_lines(codec, lines[start : start + CHUNK_EVENTS], number, implied, limits)
            number += min(CHUNK_EVENTS, len(lines) - start)
            events += count
            if events > limits.bulk_events:
                raise Problem("too-large", f"The body has more than {limits.bulk_events} events.", line=number)
            if count:
                yield parsed
                await asyncio.sleep(0)  # other requests go on between the chunks of a large body


def _parse_lines(
    codec: FrameCodec, lines: Sequence[bytes], before: int, implied: str | None, limits: Limits
) -> tuple[Parsed, int]:
    decode = msgspec.json.decode
    records: list[tuple[int, Any]] = []
    bad: list[BadEvent] = []
    for number, line in enumerate(lines, before + 1):
        if not line or line.isspace():
            continue
        if len(line) > limits.line_bytes:
            bad.append(_bad_line(number, line, f"is longer than {limits.line_bytes} bytes"))
            continue
        try:
            records.append((number, decode(line)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            bad.append(_bad_line(number, line, f"is not JSON: {error}"))
    parsed = _parse_records(codec, records, implied)
    if bad:
        parsed.bad = sorted([*parsed.bad, *bad], key=lambda event: event.position)
    return parsed, len(records) + len(bad)


def _bad_line(number: int, line: bytes, detail: str) -> BadEvent:
    # What cannot be read may be the middle of a chain; then its neighbours must not be posted without it.
    return BadEvent(number, ({"pointer": "", "detail": detail},), linked=b'"linked"' in line)


def _parse_records(codec: FrameCodec, records: Sequence[tuple[int, Any]], implied: str | None) -> Parsed:
    heap = HeapBuilder()
    words = array("q")
    positions: list[int] = []
    bad: list[BadEvent] = []
    for position, record in records:
        if implied is not None and type(record) is dict and "type" not in record:
            record["type"] = implied
        try:
            if implied is not None and type(record) is dict and record["type"] != implied:
                raise FieldError(
                    "type", f"this route takes {implied} only; leave it out or use a route for several types"
                )
            words.extend(parse_event(codec, record, heap))
        except FieldError as error:
            bad.append(BadEvent(position, tuple(_all_errors(codec, record, error)), linked=_linked(record)))
        else:
            positions.append(position)
    rows = np.frombuffer(words, np.int64).reshape(len(positions), codec.row_words)
    return Parsed(Events(rows, heap.array()), positions, bad)


def _linked(record: Any) -> bool:
    flags = record.get("flags") if isinstance(record, dict) else None
    return isinstance(flags, (list, str)) and "linked" in flags


def _all_errors(codec: FrameCodec, record: Any, error: FieldError) -> list[dict[str, Any]]:
    """Everything that is wrong with an event, each once: the parser stops at the first, so what it named is mended."""
    found = [_field_error(error)]
    if not isinstance(record, dict) or error.field in ("event", "type"):
        return found
    trial = dict(record)
    trial_type = next((kind for kind in codec.event_types if kind.name == record.get("type")), None)
    if trial_type is None:
        return found
    known = {known_field.name for known_field in trial_type.fields}
    for _ in range(MAX_FIELD_ERRORS):
        if error.field in known and not trial_type.field(error.field).has_default:
            trial[error.field] = trial_type.field(error.field).minimum
        else:
            trial.pop(error.field, None)
        try:
            parse_event(codec, trial)
        except FieldError as following:
            if following.field == error.field:
                break
            error = following
            found.append(_field_error(error))
        else:
            break
    return found


def _field_error(error: FieldError) -> dict[str, Any]:
    path = "" if error.field == "event" else "/" + error.field.replace("~", "~0").replace("/", "~1")[:200]
    return {"pointer": path, "detail": error.detail}


async def read_avro(
    body: BodyReader, codec: FrameCodec, allowed: Sequence[str], limits: Limits
) -> AsyncIterator[Parsed]:
    """Chunks of one container block each. ``allowed`` are the event types that the route takes."""
    codec_name, schema, sync = await _avro_header(body)
    decoder = _avro_decoder(codec, schema, allowed)
    record = 0
    while not await body.at_end():
        count, size = await body.long(), await body.long()
        if count < 0 or size < 0:
            raise Problem("malformed-avro", f"The block after record {record} has a negative count or size.")
        if size > MAX_AVRO_BLOCK_BYTES:
            raise Problem("too-large", f"A block of {size} bytes; write the file with blocks of at most "
                          f"{MAX_AVRO_BLOCK_BYTES} (fastavro: sync_interval).", record=record)  # fmt: skip
        data = await body.exactly(size)
        if await body.exactly(16) != sync:
            raise Problem("malformed-avro", f"The block after record {record} has another sync marker.", record=record)
        if codec_name == "deflate":
            data = _inflated(data, record)
        if record + count > limits.bulk_events:
            raise Problem("too-large", f"The file has more than {limits.bulk_events} events.", record=record)
        for parsed in _parse_block(codec, decoder, schema, data, count, record):
            yield parsed
            await asyncio.sleep(0)
        record += count


async def _avro_header(body: BodyReader) -> tuple[str, Any, bytes]:
    if await body.at_end():
        raise Problem("empty-body", "The body is empty; send an Avro object container file.")
    try:
        magic = await body.exactly(4)
    except Problem:
        magic = b""
    if magic != AVRO_MAGIC:
        raise Problem(
            "malformed-avro", f"The body starts with {magic.hex() or 'fewer than four bytes'}, not with 4f626a01."
        )
    meta: dict[str, bytes] = {}
    size = 0
    while count := await body.long():
        if count < 0:
            await body.long()
        if abs(count) + len(meta) > MAX_AVRO_META_ENTRIES:
            raise Problem("malformed-avro", f"The header has more than {MAX_AVRO_META_ENTRIES} entries.")
        for _ in range(abs(count)):
            pair = []
            for _ in range(2):
                length = await body.long()
                size += max(0, length)
                if length < 0 or size > MAX_AVRO_META_BYTES:
                    raise Problem("malformed-avro", f"The header is longer than {MAX_AVRO_META_BYTES} bytes.")
                pair.append(await body.exactly(length))
            meta[pair[0].decode(errors="replace")] = pair[1]
    codec_name = meta.get("avro.codec", b"null").decode(errors="replace")
    if codec_name not in ("null", "deflate"):
        raise Problem("unsupported-media-type", f"The file is compressed with {codec_name[:40]}; use null or deflate.")
    try:
        schema = msgspec.json.decode(meta["avro.schema"])
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem("malformed-avro", "The header has no readable avro.schema.") from None
    return codec_name, schema, await body.exactly(16)


def _avro_decoder(codec: FrameCodec, schema: Any, allowed: Sequence[str]) -> FrameCodec:
    """A codec that reads events written with ``schema``; raises `Problem` 422 when this route does not take them."""
    branches = schema if isinstance(schema, list) else [schema]
    names = [str(branch.get("name", "")).rpartition(".")[2] if isinstance(branch, dict) else "" for branch in branches]
    if not names or any(name not in allowed for name in names):
        raise Problem("invalid-event",
                      f"The file's schema is of {', '.join(name or 'no record' for name in names)[:200]}"
                      f"; this route takes {', '.join(allowed)}.")  # fmt: skip
    try:
        return codec.reading(schema)
    except (SchemaError, RecursionError) as error:
        raise Problem("invalid-event", f"The file's schema does not fit: {error}.") from None


def _inflated(data: bytes, record: int) -> bytes:
    inflater = zlib.decompressobj(-15)
    try:
        inflated = inflater.decompress(data, MAX_AVRO_BLOCK_BYTES)
    except zlib.error as error:
        raise Problem("malformed-avro", f"The block after record {record} is not deflate: {error}.") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise Problem("too-large", f"The block after record {record} inflates to more than {MAX_AVRO_BLOCK_BYTES}"
                      " bytes, or is cut off.", record=record)  # fmt: skip
    return inflated


def _parse_block(
    codec: FrameCodec, decoder: FrameCodec, schema: Any, data: bytes, count: int, first: int
) -> list[Parsed]:
    if count == 0:
        return []
    try:
        events = block_events(decoder, data, count)
    except FrameError:
        return [_parse_block_singly(codec, decoder, schema, data, count, first)]
    return [
        Parsed(Events(events.rows[start : start + CHUNK_EVENTS], events.heap),
               list(range(first + start, first + min(start + CHUNK_EVENTS, count))))
        for start in range(0, count, CHUNK_EVENTS)
    ]  # fmt: skip


def _parse_block_singly(
    codec: FrameCodec, decoder: FrameCodec, schema: Any, data: bytes, count: int, first: int
) -> Parsed:
    """A block in which something is wrong, record by record; fastavro finds where each ends."""
    parsed_schema = fastavro.parse_schema(schema)
    stream = BytesIO(data)
    parts: list[Events] = []
    positions: list[int] = []
    bad: list[BadEvent] = []
    for position in range(first, first + count):
        start = stream.tell()
        try:
            record = fastavro.schemaless_reader(stream, parsed_schema, None)
        except Exception as error:
            raise Problem("malformed-avro", f"Record {position} cannot be read: {type(error).__name__} {error}"[:300],
                          record=position) from None  # fmt: skip
        try:
            parts.append(block_events(decoder, data[start : stream.tell()], 1))
        except FrameError as error:
            flags = record.get("flags") if isinstance(record, dict) else 0
            linked = isinstance(flags, int) and bool(flags & 1)
            bad.append(BadEvent(position, ({"pointer": "", "detail": error.detail, "reason": error.reason},), linked))
        else:
            positions.append(position)
    events = concatenate(codec, parts) if parts else Events(codec.new_rows(0))
    return Parsed(events, positions, bad)
