"""Turns Avro frames into rows of words and back, at the speed of compiled code and safe on any bytes.

A `FrameCodec` compiles a topic's schema into a program, a small int64 array, that the two interpreters of
`pipelines.codec_kernels` run. There is no code generation: one compilation, cached on disk, serves every schema.
Resolution of a writer's schema to the reader's (Avro's rules: fields added with a default, removed or reordered,
numbers promoted, enum symbols and event records matched by name) is part of the program and costs nothing per event.

Promises:
- `FrameCodec.decode` returns a frame or raises `FrameError`, whatever the bytes; it never reads outside them, and
  never allocates for a count that they cannot hold.
- `FrameCodec.encode` writes what fastavro's ``schemaless_writer`` writes for the same values, byte for byte, or raises
  `FrameError`; what it writes, `decode` reads back to equal rows.
- Integers and decimals outside their ``minimum`` and ``maximum`` are refused in both directions.

Reasons of `FrameError`: truncated, bad_varint, bad_count, bad_block_size, negative_length, bad_utf8, bad_enum,
bad_branch, bad_boolean, bad_decimal, out_of_range, too_large, trailing_bytes, unknown_event_type, and on encoding
bad_kind, bad_text, bad_rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines import codec_kernels as kernels
from pipelines.avro_schema import (
    CHAIN_BYTES,
    HEADER_ROW_WORDS,
    HEADER_WORDS,
    EventType,
    Field,
    FrameSchema,
    SchemaError,
    read_frame_schema,
)
from pipelines.catalogue import TOPICS
from pipelines.errors import FrameError
from pipelines.frames import Events, Frame, Rows

__all__ = [
    "MAX_EVENTS_PER_FRAME",
    "MAX_FRAME_BYTES",
    "EventType",
    "Field",
    "FrameCodec",
    "HeapBuilder",
    "SchemaError",
    "codec_of",
    "default_words",
    "raw",
    "signed",
    "text",
]

MAX_EVENTS_PER_FRAME: Final = 65_536
MAX_FRAME_BYTES: Final = 1_048_576 - 32_768
"""Largest Avro body. Kafka's limit of 1 MiB is for the whole batch; this leaves room for key, headers and framing."""

REASONS: Final = {
    kernels.TRUNCATED: ("truncated", "the record ends inside a value"),
    kernels.BAD_VARINT: ("bad_varint", "a variable-length number has too many bytes for its type"),
    kernels.BAD_COUNT: ("bad_count", "the record cannot hold as many events as it announces"),
    kernels.NEGATIVE_LENGTH: ("negative_length", "a length is negative"),
    kernels.BAD_UTF8: ("bad_utf8", "a string is not UTF-8"),
    kernels.BAD_ENUM: ("bad_enum", "an enum's index has no symbol"),
    kernels.BAD_BRANCH: ("bad_branch", "a union has no such branch"),
    kernels.BAD_BOOLEAN: ("bad_boolean", "a boolean is neither 0 nor 1"),
    kernels.OUT_OF_RANGE: ("out_of_range", "a number is outside the range that its field allows"),
    kernels.TOO_LARGE: ("too_large", f"a frame has at most {MAX_EVENTS_PER_FRAME} events"),
    kernels.TRAILING_BYTES: ("trailing_bytes", "bytes follow the frame"),
    kernels.UNKNOWN_EVENT_TYPE: ("unknown_event_type", "an event type that this reader's schema does not have"),
    kernels.BAD_DECIMAL: ("bad_decimal", "a decimal without a byte"),
    kernels.BAD_BLOCK_SIZE: ("bad_block_size", "a block of events has another size than it announces"),
}

_MAX_BYTES: Final = {"boolean": 1, "float": 4, "double": 8, "string": 5, "bytes": 5, "enum": 5, "int": 5, "long": 10}
_CHAIN: Final = slice(HEADER_WORDS["chain"], HEADER_WORDS["chain"] + CHAIN_BYTES // 8)
_INT64_MASK: Final = 2**64 - 1


def signed(value: int) -> int:
    """An unsigned 64-bit number as the int64 with the same bits."""
    return value - 2**64 if value >= 2**63 else value


class HeapBuilder:
    """Collects text and bytes for the rows of one frame. `add` returns the word to put into the row."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, value: str | bytes) -> int:
        data = value.encode() if isinstance(value, str) else value
        word = len(self._bytes) << 32 | len(data)
        self._bytes += data
        return word

    def array(self) -> NDArray[np.uint8]:
        """The heap, uint8; later additions do not show in it."""
        return np.frombuffer(bytes(self._bytes), np.uint8)


def raw(events: Events, word: int) -> bytes:
    """The bytes that a row's word of a string or bytes field points to."""
    offset, length = int(word) >> 32, int(word) & 0xFFFFFFFF
    if offset < 0 or offset + length > len(events.heap):
        raise FrameError("bad_text", f"a field points to {length} bytes at {offset} of a heap of {len(events.heap)}")
    return events.heap[offset : offset + length].tobytes()


def text(events: Events, word: int) -> str:
    """The text that a row's word of a string field points to."""
    return raw(events, word).decode()


class FrameCodec:
    """Reads and writes the frames of one topic.

    ``schema`` is the reader's, which rows have; ``writer`` the one that the bytes were written with, by default the
    same. Encoding always uses ``schema``. Raises `SchemaError` for a schema that frames cannot have and for a writer
    that cannot be resolved to the reader.

    Rows are int64 of shape (events, ``row_words``); ``event_types[kind].dtype`` is their view as one event type.
    """

    def __init__(self, topic: str, schema: dict[str, Any], writer: dict[str, Any] | None = None) -> None:
        self.topic = topic
        self.schema = schema
        self._reader = read_frame_schema(schema)
        self.event_types: tuple[EventType, ...] = self._reader.event_types
        self.row_words: int = self._reader.row_words
        self.is_chained: bool = "chain" in self._reader.header
        """Whether the schema has a ``chain``, which is then the last field of an encoded frame."""
        self._by_name = {event_type.name: event_type for event_type in self.event_types}
        self._encoder = _Program(self._reader, self._reader)
        self._decoder = self._encoder
        if writer is not None and writer != schema:
            self._decoder = _Program(self._reader, read_frame_schema(writer, writer=True))

    def __repr__(self) -> str:
        return f"FrameCodec({self.topic!r}, {[event_type.name for event_type in self.event_types]})"

    def reading(self, events: Any) -> FrameCodec:
        """This codec for frames whose events were written with the schema ``events``. Raises `SchemaError`."""
        fields = [
            {**found, "type": {"type": "array", "items": events}} if found["name"] == "events" else found
            for found in self.schema["fields"]
        ]
        return FrameCodec(self.topic, self.schema, {**self.schema, "fields": fields})

    def event_type(self, name: str) -> EventType:
        """The event type of that name; KeyError names those there are."""
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(f"{self.topic} has no event type {name!r}; it has {', '.join(self._by_name)}") from None

    def new_rows(self, count: int) -> Rows:
        """Rows of zeros, shape (count, row_words)."""
        return np.zeros((count, self.row_words), np.int64)

    def decode(self, body: bytes) -> Frame:
        """The frame in an Avro body (without the wire format's five bytes). Its heap is ``body`` itself."""
        if len(body) > MAX_FRAME_BYTES:
            raise FrameError("too_large", f"a frame of {len(body)} bytes; at most {MAX_FRAME_BYTES}")
        if not body:
            raise FrameError("truncated", "an empty record")
        constants = self._decoder.constants
        heap = np.frombuffer(body + constants if constants else bytes(body), np.uint8)
        status, position, frame = self._decode(heap, len(body))
        if status:
            raise _decode_error(status, position)
        return frame

    def decode_many(self, data: bytes, count: int) -> Iterator[Frame]:
        """Exactly ``count`` frames that lie in ``data`` one behind the other, as in a block of an Avro container.

        Their heaps are views of ``data``. A `FrameError` tells the byte within its frame.
        """
        return (frame for frame, _ in self.split_many(data, count))

    def split_many(self, data: bytes, count: int) -> Iterator[tuple[Frame, bytes]]:
        """As `decode_many`, each frame with its own body."""
        constants = self._decoder.constants
        heap = np.frombuffer(data + constants if constants else bytes(data), np.uint8)
        start = 0
        for number in range(count):
            if start == len(data):
                raise FrameError("truncated", f"{number} frames instead of {count}")
            status, position, frame = self._decode(heap[start:], len(data) - start)
            if status and status != kernels.TRAILING_BYTES:
                raise _decode_error(status, position)
            if position > MAX_FRAME_BYTES:
                raise FrameError("too_large", f"a frame of {position} bytes; at most {MAX_FRAME_BYTES}")
            yield frame, data[start : start + position]
            start += position
        if start != len(data):
            raise FrameError("trailing_bytes", f"{len(data) - start} bytes follow the last of {count} frames")

    def _decode(self, heap: NDArray[np.uint8], size: int) -> tuple[int, int, Frame]:
        program = self._decoder
        status, position, header, rows = kernels.decode_frame(
            heap,
            size,
            program.operations,
            program.branches,
            program.tables,
            program.header_branches,
            program.is_union,
            program.least_event_bytes,
            MAX_EVENTS_PER_FRAME,
            self.row_words,
            HEADER_ROW_WORDS,
        )
        _, shard, sequence, produced_at, trace, trace_is_set, *_, chain_is_set = header[0].tolist()
        events = Events(rows, heap)
        is_readable = status in (0, kernels.TRAILING_BYTES) and trace_is_set
        return (
            status,
            position,
            Frame(
                self.topic,
                shard,
                sequence,
                produced_at,
                text(events, trace) if is_readable else None,
                events,
                header[0, _CHAIN].tobytes() if chain_is_set else None,
            ),
        )

    def decode_header(self, body: bytes) -> tuple[int, int, int]:
        """(shard, sequence, produced_at) without reading the events, which may still be malformed."""
        program = self._decoder
        if not program.header_is_first:
            frame = self.decode(body)
            return frame.shard, frame.sequence, frame.produced_at
        if len(body) > MAX_FRAME_BYTES:
            raise FrameError("too_large", f"a frame of {len(body)} bytes; at most {MAX_FRAME_BYTES}")
        header = np.zeros((1, HEADER_ROW_WORDS), np.int64)
        status, position = kernels.decode_records(
            np.frombuffer(body or b"\0", np.uint8),
            0,
            len(body),
            program.operations,
            program.header_branches[:1],
            program.tables,
            False,
            header,
            0,
            1,
        )
        if status:
            raise _decode_error(status, position)
        shard, sequence, produced_at = header[0, 1:4].tolist()
        return shard, sequence, produced_at

    def encode(self, frame: Frame) -> bytes:
        """The frame's Avro body: one block of events, as short as Avro allows."""
        program = self._encoder
        if frame.topic != self.topic:
            raise FrameError("bad_rows", f"a frame of {frame.topic} for the codec of {self.topic}")
        rows, heap = frame.events.rows, frame.events.heap
        if rows.ndim != 2 or rows.shape[1] != self.row_words or rows.dtype != np.int64:
            raise FrameError(
                "bad_rows", f"rows are {rows.dtype} {rows.shape}; {self.topic} has int64 (n, {self.row_words})"
            )
        if len(rows) > MAX_EVENTS_PER_FRAME:
            raise FrameError("too_large", f"{len(rows)} events; a frame has at most {MAX_EVENTS_PER_FRAME}")
        rows = _readonly(np.ascontiguousarray(rows))
        heap = _readonly(np.ascontiguousarray(heap))
        trace = frame.trace.encode() if frame.trace is not None else b""
        if len(trace) > MAX_FRAME_BYTES:
            raise FrameError("too_large", f"a trace of {len(trace)} bytes")
        header = self._header_row(frame, len(trace))
        status, row, bound = kernels.encoded_bound(
            rows, program.fixed_bytes, program.text_words, program.text_starts, heap.size, MAX_FRAME_BYTES
        )
        if status:
            raise self._encode_error(status, row, -1, rows)
        status, row, operation, out = kernels.encode_frame(
            program.operations,
            program.branches,
            program.header_branches,
            program.is_union,
            header,
            np.frombuffer(trace or b"\0", np.uint8),
            rows,
            heap,
            bound + program.header_bytes + len(trace),
        )
        if status:
            raise self._encode_error(status, row, operation, rows)
        if out.size > MAX_FRAME_BYTES:
            raise FrameError(
                "too_large", f"{len(rows)} events take {out.size} bytes; a frame has at most {MAX_FRAME_BYTES}"
            )
        encoded: bytes = out.tobytes()
        return encoded

    def _header_row(self, frame: Frame, trace_bytes: int) -> Rows:
        words = (0, frame.shard, frame.sequence, frame.produced_at, trace_bytes, frame.trace is not None)
        row = np.zeros((1, HEADER_ROW_WORDS), np.int64)
        if frame.chain is not None and self.is_chained:
            if len(frame.chain) != CHAIN_BYTES:
                raise FrameError("out_of_range", f"a chain of {len(frame.chain)} bytes; it has {CHAIN_BYTES}")
            row[0, _CHAIN] = np.frombuffer(frame.chain, np.int64)
            row[0, -1] = 1
        try:
            row[0, : len(words)] = words
            return _readonly(row)
        except OverflowError:
            raise FrameError(
                "out_of_range", f"shard, sequence and produced_at {words[1:4]} do not fit 64 bits"
            ) from None

    def _encode_error(self, status: int, row: int, operation: int, rows: Rows) -> FrameError:
        if status == kernels.TOO_LARGE:
            return FrameError("too_large", f"the texts of events 0 to {row} take more than {MAX_FRAME_BYTES} bytes")
        if status == kernels.BAD_KIND:
            return FrameError(
                "bad_kind", f"event {row} has kind {rows[row, 0]}; {self.topic} has {len(self.event_types)} event types"
            )
        if status == kernels.BAD_TEXT:
            return FrameError("bad_text", f"event {row} has a text or bytes field that points outside the heap")
        reason, meaning = REASONS[status]
        name = self._encoder.names[operation]
        where = "the header" if row < 0 else f"event {row}"
        value = f", found {rows[row, self._encoder.operations[operation, 1]]}" if row >= 0 else ""
        return FrameError(reason, f"{name} of {where}: {meaning}{value}")


class _Program:
    """The operations that read a writer's frames into the reader's rows; the identity's also write them."""

    def __init__(self, reader: FrameSchema, writer: FrameSchema) -> None:
        self._operations: list[tuple[int, ...]] = []
        self._tables: list[int] = []
        self.names: list[str] = []
        """Field of each operation, for messages."""
        self.constants = b""
        """Texts of defaults; decoding appends them to the heap."""
        self._compile_header(reader, writer)
        self._compile_events(reader, writer)
        self.operations = _readonly(np.array(self._operations, np.int64).reshape(-1, kernels.OPERATION_WORDS))
        self.tables = _readonly(np.array(self._tables, np.int64))
        self.is_union = writer.is_union

        texts = [[field.word for field in found.fields if _is_text(field)] for found in reader.event_types]
        starts = np.cumsum([0, *(len(words) for words in texts)])
        self.text_words = _readonly(np.array([word for words in texts for word in words], np.int64))
        self.text_starts = _readonly(starts.astype(np.int64))
        self.fixed_bytes = _readonly(
            np.array([5 + sum(map(_most_bytes, found.fields)) for found in reader.event_types], np.int64)
        )
        self.header_bytes = 20 + sum(map(_most_bytes, reader.header.values()))

    def _compile_header(self, reader: FrameSchema, writer: FrameSchema) -> None:
        where = writer.name
        for name, field in reader.header.items():
            if name not in writer.header:
                self._set_default(field, f"{where}.{name}")
        position = writer.order.index("events")
        for name in writer.order[:position]:
            self._read_header_field(name, reader, writer)
        events_at = len(self._operations)
        for name in writer.order[position + 1 :]:
            self._read_header_field(name, reader, writer)
        header_stop = len(self._operations)
        self.header_branches = _readonly(np.array([(0, 0, events_at), (0, events_at, header_stop)], np.int64))
        self.header_is_first = {"shard", "sequence", "produced_at"}.isdisjoint(writer.order[position + 1 :])
        """Whether what `FrameCodec.decode_header` returns lies before the events."""

    def _read_header_field(self, name: str, reader: FrameSchema, writer: FrameSchema) -> None:
        where = f"{writer.name}.{name}"
        if name in writer.extra:
            self._skip(writer.extra[name], where)
            return
        if name not in reader.header:
            self._skip(writer.header[name], where)
            return
        field = reader.header[name]
        if field.storage != "string":
            field = replace(field, minimum=max(0, field.minimum))
        self._read(field, writer.header[name], where)

    def _compile_events(self, reader: FrameSchema, writer: FrameSchema) -> None:
        branches = []
        least: list[int] = []
        for written in writer.event_types:
            start = len(self._operations)
            kind = next((found.kind for found in reader.event_types if _same_record(found, written)), -1)
            if kind >= 0:
                self._read_record(reader.event_types[kind], written)
            elif not writer.is_union:
                names = ", ".join(found.name for found in reader.event_types)
                raise SchemaError(f"{writer.name}.events: the writer has {written.name}, the reader {names}")
            branches.append((kind, start, len(self._operations)))
            least.append(writer.is_union + sum(map(_least_bytes, written.fields)))
        self.branches = _readonly(np.array(branches, np.int64))
        self.least_event_bytes = min(least)

    def _read_record(self, reader: EventType, writer: EventType) -> None:
        read: set[str] = set()
        by_name = {name: field for field in reader.fields for name in (*reversed(field.aliases), field.name)}
        for written in writer.fields:
            field = by_name.get(written.name)
            if field is None or field.name in read:
                self._skip(written, f"{reader.name}.{written.name}")
            else:
                self._read(field, written, f"{reader.name}.{field.name}")
                read.add(field.name)
        for field in reader.fields:
            if field.name not in read:
                self._set_default(field, f"{reader.name}.{field.name}")

    def _add(self, name: str, opcode: int, word: int, a: int = 0, b: int = 0, c: int = 10, d: int = 0) -> None:
        self._operations.append((opcode, word, a, b, c, d))
        self.names.append(name)

    def _read(self, reader: Field, writer: Field, where: str) -> None:
        if writer.nullable:
            self._add(where, kernels.NULLABLE, reader.is_set_word, writer.null_branch)
        elif reader.nullable:
            self._add(where, kernels.SET, reader.is_set_word, 1)
        if reader.logical_type and writer.logical_type and reader.logical_type != writer.logical_type:
            raise SchemaError(f"{where}: written as {writer.logical_type}, read as {reader.logical_type}")
        varint_bytes = 5 if writer.storage == "int" else 10
        match writer.storage, reader.storage:
            case ("int", "int") | ("int", "long") | ("long", "long"):
                self._add(where, kernels.LONG, reader.word, reader.minimum, reader.maximum, varint_bytes)
            case ("int" | "long", "float" | "double"):
                self._add(
                    where,
                    kernels.LONG_AS_DOUBLE,
                    reader.word,
                    -(2**63),
                    2**63 - 1,
                    varint_bytes,
                    int(reader.storage == "float"),
                )
            case ("float", "float" | "double"):
                self._add(where, kernels.FLOAT, reader.word, c=4)
            case ("double", "double"):
                self._add(where, kernels.DOUBLE, reader.word, c=8)
            case ("boolean", "boolean"):
                self._add(where, kernels.BOOLEAN, reader.word, c=1)
            case ("string" | "bytes", "string"):
                self._add(where, kernels.STRING, reader.word)
            case ("string" | "bytes", "bytes"):
                self._add(where, kernels.BYTES, reader.word)
            case ("enum", "enum") if writer.type_name == reader.type_name:
                self._add(where, kernels.ENUM, reader.word, len(writer.symbols), self._symbol_map(reader, writer))
            case ("fixed", "fixed") if (writer.type_name, writer.size) == (reader.type_name, reader.size):
                self._add(where, kernels.FIXED, reader.word, c=reader.size)
            case ("u64", "u64") | ("u128", "u128") if _same_decimal(reader, writer):
                limit = signed(reader.maximum & _INT64_MASK), signed(reader.maximum >> 64)
                if reader.size:
                    self._add(where, kernels.FIXED_DECIMAL, reader.word, *limit, reader.size, reader.words)
                else:
                    self._add(where, kernels.U64 if reader.words == 1 else kernels.U128, reader.word, *limit)
            case _:
                raise SchemaError(f"{where}: written as {_describe(writer)}, which {_describe(reader)} cannot read")

    def _symbol_map(self, reader: Field, writer: Field) -> int:
        if reader.symbols == writer.symbols:
            return -1
        start = len(self._tables)
        numbers = {symbol: number for number, symbol in enumerate(reader.symbols)}
        default = -1 if reader.enum_default is None else numbers[reader.enum_default]
        self._tables += [numbers.get(symbol, default) for symbol in writer.symbols]
        return start

    def _skip(self, writer: Field, where: str) -> None:
        if writer.nullable:
            self._add(where, kernels.NULLABLE, 0, writer.null_branch)
        if writer.storage in ("int", "long", "enum"):
            self._add(where, kernels.SKIP_VARINT, 0)
        elif writer.size:
            self._add(where, kernels.SKIP_FIXED, 0, c=writer.size)
        elif writer.storage in ("boolean", "float", "double"):
            self._add(where, kernels.SKIP_FIXED, 0, c=_MAX_BYTES[writer.storage])
        else:
            self._add(where, kernels.SKIP_BYTES, 0)

    def _set_default(self, reader: Field, where: str) -> None:
        if not reader.has_default:
            raise SchemaError(f"{where}: the writer has no such field, and the reader no default for it")
        words, data = default_words(reader)
        for offset, value in enumerate(words):
            if value:
                self._add(where, kernels.SET, reader.word + offset, value)
        if data:
            self._add(where, kernels.SET_TEXT, reader.word, len(self.constants), len(data))
            self.constants += data


def default_words(field: Field) -> tuple[tuple[int, ...], bytes]:
    """A field's default as the int64 words of its row (with the ``is_set`` word) and the bytes of its text.

    Raises SchemaError when the field has no default or one that does not fit it.
    """
    value = field.default
    where = field.name
    if not field.has_default:
        raise SchemaError(f"{where}: the field has no default")
    if value is None and field.nullable:
        return (0,) * (field.words + 1), b""
    words: tuple[int, ...] = (0,)
    data = b""
    match field.storage:
        case "boolean" if isinstance(value, bool):
            words = (int(value),)
        case "int" | "long" if isinstance(value, int) and field.minimum <= value <= field.maximum:
            words = (value,)
        case "float" | "double" if isinstance(value, int | float) and not isinstance(value, bool):
            number = np.float64(np.float32(value) if field.storage == "float" else value)
            words = (int(number.view(np.int64)),)
        case "string" if isinstance(value, str):
            data = value.encode()
        case "enum" if value in field.symbols:
            words = (field.symbols.index(value),)
        case "bytes" | "fixed" | "u64" | "u128" if isinstance(value, str):
            words, data = _default_bytes(field, value)
        case _:
            raise SchemaError(f"{where}: the default {value!r} does not fit {_describe(field)}")
    return (*words, 1) if field.nullable else words, data


def _default_bytes(field: Field, value: str) -> tuple[tuple[int, ...], bytes]:
    """Avro writes the default of bytes and fixed as text whose code points are the bytes."""
    try:
        data = value.encode("latin-1")
    except UnicodeEncodeError:
        raise SchemaError(f"{field.name}: the default of bytes has code points up to 255, found {value!r}") from None
    if field.storage == "bytes":
        return (0,), data
    if field.size and len(data) != field.size:
        raise SchemaError(f"{field.name}: the default has {len(data)} bytes instead of {field.size}")
    if field.storage == "fixed":
        padded = data.ljust(8 * field.words, b"\0")
        return tuple(np.frombuffer(padded, "<i8").tolist()), b""
    number = int.from_bytes(data, "big", signed=True)
    if not field.minimum <= number <= field.maximum or not data:
        raise SchemaError(f"{field.name}: the default {number} is not in [{field.minimum}, {field.maximum}]")
    return tuple(signed(number >> 64 * word & _INT64_MASK) for word in range(field.words)), b""


def _same_record(reader: EventType, writer: EventType) -> bool:
    names = (reader.name, *(alias.rpartition(".")[2] for alias in reader.aliases))
    return writer.name in names


def _same_decimal(reader: Field, writer: Field) -> bool:
    return (reader.precision, reader.scale, reader.size) == (writer.precision, writer.scale, writer.size)


def _is_text(field: Field) -> bool:
    return field.storage in ("string", "bytes")


def _most_bytes(field: Field) -> int:
    """Most bytes that a field takes on the wire, without its text."""
    if field.size:
        most = field.size
    elif field.words == 2:
        most = 18
    else:
        most = _MAX_BYTES.get(field.storage, 10)
    return most + field.nullable


def _least_bytes(field: Field) -> int:
    if field.nullable:
        return 1
    if field.size:
        return field.size
    return {"float": 4, "double": 8}.get(field.storage, 2 if field.words == 2 or field.storage == "u64" else 1)


def _describe(field: Field) -> str:
    if field.precision:
        return f"decimal({field.precision}, {field.scale}) on {f'fixed({field.size})' if field.size else 'bytes'}"
    if field.type_name:
        return f"{field.storage} {field.type_name}" + (f"({field.size})" if field.size else "")
    return field.storage


def _decode_error(status: int, position: int) -> FrameError:
    reason, meaning = REASONS[status]
    return FrameError(reason, f"{meaning} (at byte {position})")


def _readonly(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view: Numba compiles read-only and writable arguments apart, so all inputs are read-only."""
    view = array.view()
    view.flags.writeable = False
    return view


@lru_cache(maxsize=64)
def codec_of(topic: str) -> FrameCodec:
    """The codec of a catalogue topic, reader and writer being the schema of this release."""
    return FrameCodec(topic, TOPICS[topic].schema())
