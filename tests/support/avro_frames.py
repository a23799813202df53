"""Random frame schemas with values for them, and rows as plain values: what the codec is held against fastavro with.

A frame's value is what fastavro reads and writes: a dict whose ``events`` are (record name, dict) pairs. Decimals are
`decimal.Decimal`; dates and timestamps are raw integers, their annotation being taken off for fastavro.
"""

from __future__ import annotations

import io
import json
from decimal import Context, Decimal
from typing import Any

import fastavro
import numpy as np
from hypothesis import strategies as st

from pipelines.codec import Field, FrameCodec, HeapBuilder, raw, signed, text
from pipelines.frames import Events, Frame

EXACT = Context(prec=60)
INT = (-(2**31), 2**31 - 1)
LONG = (-(2**63), 2**63 - 1)
U64 = 2**64 - 1
U128 = 2**128 - 1

HEADER_FIELDS = [
    {"name": "shard", "type": "int"},
    {"name": "sequence", "type": "long"},
    {"name": "produced_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    {"name": "trace", "type": ["null", "string"], "default": None},
]


def frame_schema(items: Any, name: str = "Frame") -> dict[str, Any]:
    events = {"name": "events", "type": {"type": "array", "items": items}}
    return {"type": "record", "name": name, "namespace": "test", "fields": [*HEADER_FIELDS, events]}


def oracle_schema(schema: dict[str, Any]) -> Any:
    """The schema as fastavro is given it: without the annotations that turn integers into datetimes."""

    def plain(node: Any) -> Any:
        if isinstance(node, list):
            return [plain(item) for item in node]
        if not isinstance(node, dict):
            return node
        if str(node.get("logicalType", "")).startswith(("timestamp", "date")):
            return node["type"]
        return {key: plain(value) if key != "default" else value for key, value in node.items()}

    return fastavro.parse_schema(plain(json.loads(json.dumps(schema))))


def oracle_write(schema: dict[str, Any], value: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    parsed = oracle_schema(schema)
    events = value["events"]
    if not isinstance(items_of(schema), list):
        events = [event for _, event in events]
    fastavro.schemaless_writer(out, parsed, value | {"events": events})
    return out.getvalue()


def oracle_read(body: bytes, writer: dict[str, Any], reader: dict[str, Any] | None = None) -> dict[str, Any]:
    stream = io.BytesIO(body)
    value: Any = fastavro.schemaless_reader(
        stream, oracle_schema(writer), oracle_schema(reader) if reader else None, return_record_name=True
    )
    assert not stream.read(1), "fastavro left bytes unread"
    items = items_of(reader or writer)
    names = [full_name(record) for record in items] if isinstance(items, list) else [full_name(items)]
    value["events"] = [event if isinstance(event, tuple) else (names[0], event) for event in value["events"]]
    return value


def items_of(schema: dict[str, Any]) -> Any:
    return next(entry["type"]["items"] for entry in schema["fields"] if entry["name"] == "events")


def full_name(record: dict[str, Any]) -> str:
    name = str(record["name"])
    return name if "." in name else f"test.{name}"


def as_decimal(unscaled: int, scale: int) -> Decimal:
    return EXACT.create_decimal(unscaled).scaleb(-scale, context=EXACT)


def frame_value(codec: FrameCodec, frame: Frame) -> dict[str, Any]:
    """A frame as fastavro would have read it."""
    events = []
    for row in frame.events.rows.tolist():
        event_type = codec.event_types[row[0]]
        events.append((event_type.name, {found.name: _value(found, row, frame.events) for found in event_type.fields}))
    return {
        "shard": frame.shard,
        "sequence": frame.sequence,
        "produced_at": frame.produced_at,
        "trace": frame.trace,
        "events": events,
    }


def unqualified(value: dict[str, Any]) -> dict[str, Any]:
    return value | {"events": [(name.rpartition(".")[2], event) for name, event in value["events"]]}


def _value(field: Field, row: list[int], events: Events) -> Any:
    if field.nullable and not row[field.is_set_word]:
        return None
    word = row[field.word]
    match field.storage:
        case "boolean":
            return bool(word)
        case "int" | "long":
            return word
        case "float" | "double":
            return float(np.int64(word).view(np.float64))
        case "string":
            return text(events, word)
        case "bytes":
            return raw(events, word)
        case "enum":
            return field.symbols[word]
        case "u64":
            return as_decimal(word & U64, field.scale)
        case "u128":
            return as_decimal((word & U64) | (row[field.word + 1] & U64) << 64, field.scale)
        case "fixed":
            return np.array(row[field.word : field.word + field.words], np.int64).tobytes()[: field.size]


def frame_of(codec: FrameCodec, value: dict[str, Any]) -> Frame:
    """The frame that holds a fastavro value."""
    rows = codec.new_rows(len(value["events"]))
    heap = HeapBuilder()
    for number, (name, event) in enumerate(value["events"]):
        event_type = codec.event_type(name.rpartition(".")[2])
        rows[number, 0] = event_type.kind
        for field in event_type.fields:
            _set(field, rows[number], event[field.name], heap)
    return Frame(
        codec.topic,
        value["shard"],
        value["sequence"],
        value["produced_at"],
        value["trace"],
        Events(rows, heap.array()),
    )


def _set(field: Field, row: Any, value: Any, heap: HeapBuilder) -> None:
    if field.nullable:
        row[field.is_set_word] = value is not None
        if value is None:
            return
    match field.storage:
        case "float" | "double":
            row[field.word] = np.float64(value).view(np.int64)
        case "string" | "bytes":
            row[field.word] = heap.add(value)
        case "enum":
            row[field.word] = field.symbols.index(value)
        case "u64" | "u128":
            unscaled = int(value.scaleb(field.scale, context=EXACT))
            row[field.word] = signed(unscaled & U64)
            if field.storage == "u128":
                row[field.word + 1] = signed(unscaled >> 64)
        case "fixed":
            words = np.frombuffer(value.ljust(8 * field.words, b"\0"), np.int64)
            row[field.word : field.word + field.words] = words
        case _:
            row[field.word] = value


# --- strategies -------------------------------------------------------------------------------------------------------

_integers_of_any_length = st.integers(0, 128).flatmap(lambda bits: st.integers(0, 2**bits - 1))
texts = st.text(max_size=12)
blobs = st.binary(max_size=12)
singles = st.floats(width=32, allow_nan=False)
doubles = st.floats(allow_nan=False)


def unsigned(maximum: int) -> st.SearchStrategy[int]:
    """Numbers of every length on the wire, and the two ends."""
    return st.one_of(_integers_of_any_length.map(lambda value: value % (maximum + 1)), st.sampled_from([0, maximum]))


@st.composite
def integer_types(draw: st.DrawFn) -> tuple[Any, dict[str, Any], st.SearchStrategy[Any]]:
    base, (lowest, highest) = draw(st.sampled_from([("int", INT), ("long", LONG)]))
    attributes: dict[str, Any] = {}
    if draw(st.booleans()):
        lowest = attributes["minimum"] = draw(st.integers(lowest, highest))
        highest = attributes["maximum"] = draw(st.integers(lowest, highest))
    annotations = {"int": ["date"], "long": ["timestamp-millis", "timestamp-micros"]}[base]
    annotation = draw(st.sampled_from([None, *annotations]))
    avro = {"type": base, "logicalType": annotation} if annotation else base
    return avro, attributes, st.one_of(st.integers(lowest, highest), st.sampled_from([lowest, highest]))


@st.composite
def decimal_types(draw: st.DrawFn, name: str) -> tuple[Any, dict[str, Any], st.SearchStrategy[Any]]:
    precision = draw(st.one_of(st.sampled_from([20, 39]), st.integers(1, 39)))
    scale = draw(st.one_of(st.just(0), st.integers(0, precision)))
    maximum = min(10**precision - 1, U64 if precision <= 20 else U128)
    avro: dict[str, Any] = {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}
    if draw(st.booleans()):
        needed = (maximum.bit_length() + 8) // 8
        size = draw(st.integers(needed, needed + 3))
        avro |= {"type": "fixed", "name": f"{name}_type", "size": size}
    return avro, {}, unsigned(maximum).map(lambda value: as_decimal(value, scale))


@st.composite
def field_types(draw: st.DrawFn, name: str) -> tuple[Any, dict[str, Any], st.SearchStrategy[Any]]:
    """(Avro type, attributes of the field, values)."""
    kind = draw(st.sampled_from(["integer", "decimal", "decimal", "enum", "fixed", "other"]))
    if kind == "integer":
        return draw(integer_types())
    if kind == "decimal":
        return draw(decimal_types(name))
    if kind == "enum":
        symbols = [f"S{number}" for number in range(draw(st.sampled_from([1, 2, 5, 70])))]
        return {"type": "enum", "name": f"{name}_type", "symbols": symbols}, {}, st.sampled_from(symbols)
    if kind == "fixed":
        size = draw(st.integers(1, 20))
        return {"type": "fixed", "name": f"{name}_type", "size": size}, {}, st.binary(min_size=size, max_size=size)
    plain: list[tuple[str, st.SearchStrategy[Any]]] = [
        ("boolean", st.booleans()),
        ("float", singles),
        ("double", doubles),
        ("string", texts),
        ("bytes", blobs),
    ]
    avro, values = draw(st.sampled_from(plain))
    return avro, {}, values


@st.composite
def event_records(draw: st.DrawFn, name: str) -> tuple[dict[str, Any], st.SearchStrategy[Any]]:
    fields = []
    values: dict[str, st.SearchStrategy[Any]] = {}
    for number in range(draw(st.integers(0, 6))):
        field_name = f"f{number}"
        avro, attributes, value = draw(field_types(f"{name}_{field_name}"))
        if draw(st.integers(0, 3)) == 0:
            avro = ["null", avro] if draw(st.booleans()) else [avro, "null"]
            value = st.one_of(st.none(), value)
        fields.append({"name": field_name, "type": avro, **attributes})
        values[field_name] = value
    record = {"type": "record", "name": name, "fields": fields}
    return record, st.fixed_dictionaries(values).map(lambda event: (f"test.{name}", event))


def frame_values(events: st.SearchStrategy[Any], most: int = 8) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "shard": st.integers(0, INT[1]),
            "sequence": st.integers(0, LONG[1]),
            "produced_at": st.integers(0, LONG[1]),
            "trace": st.one_of(st.none(), texts),
            "events": st.lists(events, max_size=most),
        }
    )


@st.composite
def schemas_and_values(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A frame schema of one record or of a union of up to three, and a frame's value."""
    count = draw(st.integers(0, 3))
    records = [draw(event_records(f"Event{number}")) for number in range(max(1, count))]
    items = [record for record, _ in records] if count else records[0][0]
    events = st.one_of([values for _, values in records])
    return frame_schema(items), draw(frame_values(events))


def real_values(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Values of a topic's schema, within its bounds and with named flags only."""
    items = items_of(schema)
    namespace = schema["namespace"]
    events = []
    enums: dict[str, Any] = {}
    for record in items if isinstance(items, list) else [items]:
        fields = {entry["name"]: _real_field(entry, enums) for entry in record["fields"]}
        name = f"{namespace}.{record['name']}"
        events.append(st.tuples(st.just(name), st.fixed_dictionaries(fields)))
    return frame_values(st.one_of(events))


def _real_field(entry: dict[str, Any], enums: dict[str, Any]) -> st.SearchStrategy[Any]:
    """``enums``: those defined by earlier fields, which later ones name."""
    avro = entry["type"]
    if isinstance(avro, list):
        branches = [{**entry, "type": branch} for branch in avro]
        return st.one_of(st.none() if one["type"] == "null" else _real_field(one, enums) for one in branches)
    if isinstance(avro, str):
        avro = enums.get(avro, avro)
    if isinstance(avro, dict) and avro.get("logicalType") == "decimal":
        return unsigned(U64 if avro["precision"] <= 20 else U128).map(lambda value: as_decimal(value, avro["scale"]))
    if isinstance(avro, dict) and avro["type"] == "enum":
        enums[avro["name"]] = avro
        return st.sampled_from(avro["symbols"])
    base = avro["type"] if isinstance(avro, dict) else avro
    if base in ("int", "long"):
        lowest, highest = INT if base == "int" else LONG
        if "flags" in entry:
            return st.integers(0, 2 ** len(entry["flags"]) - 1)
        return st.integers(entry.get("minimum", lowest), entry.get("maximum", highest))
    return {"string": texts, "bytes": blobs, "boolean": st.booleans(), "float": singles, "double": doubles}[base]
