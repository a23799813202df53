"""Reads a topic's .avsc into the layout of its rows.

A frame record has exactly the header fields ``shard``, ``sequence``, ``produced_at`` and ``trace``, ``events``: an
array of one record or of a union of records, and, where the topic is chained, ``chain`` as the last field. The fields
of an event are flat: boolean, int, long, float, double, string, bytes, enum, fixed, decimal (unsigned), dates and
timestamps (raw integers), and ``["null", X]`` of these. Anything else is a `SchemaError` that names the field.

Attributes that the Avro specification leaves to the user carry validation: ``minimum`` and ``maximum`` on int, long and
decimal fields, ``flags``, the names of the bits of an int or long, and ``integers_as_text`` on a string that often is a
number (an account, say): JSON may then give it as a whole number, which stands for its decimal digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from pipelines.errors import StreambankError

__all__ = [
    "CHAIN_BYTES",
    "HEADER_ROW_WORDS",
    "HEADER_WORDS",
    "EventType",
    "Field",
    "FrameSchema",
    "SchemaError",
    "Storage",
    "read_frame_schema",
]

Storage = Literal[
    "boolean", "int", "long", "float", "double", "string", "bytes", "enum", "fixed", "u64", "u128"
]  # fmt: skip
"""How a field lies on the wire and in the row; u64 and u128 are unsigned decimals on bytes or on fixed."""

INT_RANGE: Final = (-(2**31), 2**31 - 1)
LONG_RANGE: Final = (-(2**63), 2**63 - 1)
U64_MAX: Final = 2**64 - 1
U128_MAX: Final = 2**128 - 1
U64_DIGITS: Final = 20
U128_DIGITS: Final = 39
MAX_FIXED_BYTES: Final = 1_024
MAX_FIELDS: Final = 1_000

INTEGER_LOGICAL_TYPES: Final = {"int": {"date"}, "long": {"timestamp-millis", "timestamp-micros", "timestamp-nanos"}}

HEADER_WORDS: Final = {"shard": 1, "sequence": 2, "produced_at": 3, "trace": 4, "chain": 6}
"""Word of each header field in a row of its own; the word after ``trace`` and that after the four of ``chain`` say
whether they are set."""
HEADER_ROW_WORDS: Final = 11
CHAIN_BYTES: Final = 32
"""Size of ``chain``, a SHA-256."""
HEADER_TYPES: Final[dict[str, tuple[Storage, bool]]] = {
    "shard": ("int", False),
    "sequence": ("long", False),
    "produced_at": ("long", False),
    "trace": ("string", True),
    "chain": ("fixed", True),
}
OPTIONAL_HEADER: Final = frozenset(["chain"])


class SchemaError(StreambankError):
    """A schema that frames cannot be read or written with; the message names the field."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an event (or of the header) and where it lies in the row.

    ``word`` is its first word and ``words`` their number, without the word that says whether a nullable field is set
    (``is_set_word``, -1 when the field cannot be null). Bounds of integers and decimals are inclusive; a decimal's
    are of its unscaled value.
    """

    name: str
    storage: Storage
    word: int
    words: int
    is_set_word: int
    null_branch: int
    doc: str = ""
    aliases: tuple[str, ...] = ()
    logical_type: str = ""
    type_name: str = ""
    minimum: int = 0
    maximum: int = 0
    flags: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    enum_default: str | None = None
    integers_as_text: bool = False
    """In JSON a whole number stands for its decimal digits."""
    size: int = 0
    """Bytes of a fixed (or of a decimal on a fixed), else 0."""
    precision: int = 0
    scale: int = 0
    has_default: bool = False
    default: Any = None
    """The default as the schema's JSON writes it."""

    @property
    def nullable(self) -> bool:
        return self.is_set_word >= 0

    @property
    def word_names(self) -> tuple[tuple[str, str], ...]:
        """Name and NumPy format of each of the field's words, in order, with ``<name>_is_set`` last."""
        if self.storage == "u128":
            names = [(f"{self.name}_lo", "<u8"), (f"{self.name}_hi", "<u8")]
        elif self.storage == "fixed":
            names = [(f"{self.name}_{number}", "<u8") for number in range(self.words)]
        else:
            kinds = {"u64": "<u8", "float": "<f8", "double": "<f8"}
            names = [(self.name, kinds.get(self.storage, "<i8"))]
        return (*names, (f"{self.name}_is_set", "<i8")) if self.nullable else tuple(names)


@dataclass(frozen=True, slots=True)
class EventType:
    """One event record of a topic. ``dtype`` is structured, as wide as the topic's rows, and starts with ``kind``."""

    name: str
    kind: int
    fields: tuple[Field, ...]
    dtype: np.dtype[np.void]
    doc: str = ""
    aliases: tuple[str, ...] = ()

    def field(self, name: str) -> Field:
        """The field of that name; KeyError if there is none."""
        for found in self.fields:
            if found.name == name:
                return found
        raise KeyError(f"{self.name} has no field {name!r}")


@dataclass(frozen=True, slots=True)
class FrameSchema:
    """A topic's schema. ``order`` is the frame record's fields as they lie on the wire, ``events`` among them;
    header fields that the frame does not know (a later writer's) are ``extra`` ones."""

    name: str
    order: tuple[str, ...]
    header: dict[str, Field]
    extra: dict[str, Field]
    event_types: tuple[EventType, ...]
    is_union: bool
    row_words: int
    doc: str = ""


@dataclass(slots=True)
class _Names:
    """Named types seen so far, by full name."""

    types: dict[str, dict[str, Any]] = field(default_factory=dict)

    def define(self, schema: dict[str, Any], namespace: str, where: str) -> str:
        """Registers a named type and returns the namespace of what lies inside it."""
        name = schema.get("name")
        if not isinstance(name, str) or not name:
            raise SchemaError(f"{where}: a {schema.get('type')} needs a name")
        inner = name.rpartition(".")[0] if "." in name else schema.get("namespace", namespace)
        full = name if "." in name or not inner else f"{inner}.{name}"
        if full in self.types:
            raise SchemaError(f"{where}: {full} is defined twice")
        self.types[full] = schema
        return str(inner)

    def find(self, name: str, namespace: str) -> dict[str, Any] | None:
        if "." not in name and namespace:
            return self.types.get(f"{namespace}.{name}")
        return self.types.get(name)


def read_frame_schema(schema: Any, *, writer: bool = False) -> FrameSchema:
    """Reads a frame record's schema (parsed JSON).

    A writer's schema may lack header fields or have more of them: resolution decides what becomes of that.
    """
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise SchemaError("the frame must be a record")
    names = _Names()
    namespace = names.define(schema, "", "frame")
    frame_name = schema["name"].rpartition(".")[2]
    order: list[str] = []
    header: dict[str, Field] = {}
    extra: dict[str, Field] = {}
    events: tuple[tuple[EventType, ...], bool, int] | None = None
    for entry in _fields_of(schema, frame_name):
        name = entry["name"]
        where = f"{frame_name}.{name}"
        if name in order:
            raise SchemaError(f"{where}: the field is there twice")
        order.append(name)
        if name == "events":
            events = _read_events(entry.get("type"), namespace, names, where)
        elif name in HEADER_TYPES:
            read = _read_field(entry, HEADER_WORDS[name], namespace, names, where)
            if not writer and (read.storage, read.nullable) != HEADER_TYPES[name]:
                storage, nullable = HEADER_TYPES[name]
                expected = f'["null", "{storage}"]' if nullable else f'"{storage}"'
                raise SchemaError(f"{where}: a frame's {name} is {expected}, found {entry.get('type')!r}")
            header[name] = read
        elif writer:
            extra[name] = _read_field(entry, 0, namespace, names, where)
        else:
            known = ", ".join(name for name in HEADER_TYPES if name not in OPTIONAL_HEADER)
            raise SchemaError(f"{where}: a frame has {known}, events and at most chain, nothing else")
    if events is None:
        raise SchemaError(f"{frame_name}.events: the field is missing")
    if "chain" in header and not writer:
        chain = header["chain"]
        if order[-1] != "chain" or chain.null_branch != 0 or chain.size != CHAIN_BYTES:
            raise SchemaError(
                f'{frame_name}.chain: must be the frame\'s last field and ["null", fixed of {CHAIN_BYTES} bytes]'
            )
    missing = [name for name in HEADER_TYPES if name not in header and name not in OPTIONAL_HEADER]
    if missing and not writer:
        raise SchemaError(f"{frame_name}.{missing[0]}: the field is missing")
    types, is_union, row_words = events
    return FrameSchema(frame_name, tuple(order), header, extra, types, is_union, row_words, schema.get("doc", ""))


def _fields_of(record: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    entries = record.get("fields")
    if not isinstance(entries, list):
        raise SchemaError(f"{where}: a record needs a list of fields")
    if len(entries) > MAX_FIELDS:
        raise SchemaError(f"{where}: {len(entries)} fields; at most {MAX_FIELDS}")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise SchemaError(f"{where}: every field is an object with a name, found {entry!r}")
        yield entry


def _read_events(schema: Any, namespace: str, names: _Names, where: str) -> tuple[tuple[EventType, ...], bool, int]:
    if not isinstance(schema, dict) or schema.get("type") != "array":
        raise SchemaError(f"{where}: must be an array of records, found {schema!r}")
    items = schema.get("items")
    is_union = isinstance(items, list)
    records = items if isinstance(items, list) else [items]
    if not records:
        raise SchemaError(f"{where}: the union of events is empty")
    read: list[tuple[dict[str, Any], list[Field]]] = []
    for record in records:
        if not isinstance(record, dict) or record.get("type") != "record":
            raise SchemaError(f"{where}: events must be records, found {record!r}")
        inner = names.define(record, namespace, where)
        name = record["name"].rpartition(".")[2]
        fields: list[Field] = []
        taken = {"kind"}
        word = 1
        for entry in _fields_of(record, name):
            found = _read_field(entry, word, inner, names, f"{name}.{entry['name']}")
            for word_name, _ in found.word_names:
                if word_name in taken:
                    raise SchemaError(f"{name}.{found.name}: the row already has a word named {word_name!r}; rename it")
                taken.add(word_name)
            fields.append(found)
            word += len(found.word_names)
        read.append((record, fields))
    row_words = max(1 + sum(len(found.word_names) for found in fields) for _, fields in read)
    types = tuple(
        EventType(
            record["name"].rpartition(".")[2],
            kind,
            tuple(fields),
            _row_dtype(fields, row_words),
            record.get("doc", ""),
            tuple(record.get("aliases", ())),
        )
        for kind, (record, fields) in enumerate(read)
    )
    seen: set[str] = set()
    for event_type in types:
        if event_type.name in seen:
            raise SchemaError(f"{where}: two records are named {event_type.name}")
        seen.add(event_type.name)
    return types, is_union, row_words


def _row_dtype(fields: list[Field], row_words: int) -> np.dtype[np.void]:
    words = [("kind", "<i8"), *(word for found in fields for word in found.word_names)]
    return np.dtype(
        {
            "names": [name for name, _ in words],
            "formats": [kind for _, kind in words],
            "offsets": [8 * position for position in range(len(words))],
            "itemsize": 8 * row_words,
        }
    )


def _read_field(entry: dict[str, Any], word: int, namespace: str, names: _Names, where: str) -> Field:
    schema = entry.get("type")
    null_branch = -1
    if isinstance(schema, list):
        if len(schema) != 2 or schema.count("null") != 1:
            raise SchemaError(f'{where}: a union inside an event must be ["null", X], found {schema!r}')
        null_branch = schema.index("null")
        schema = schema[1 - null_branch]
    attributes = _read_type(schema, entry, namespace, names, where)
    words = attributes.pop("words", 1)
    return Field(
        name=entry["name"],
        word=word,
        words=words,
        is_set_word=word + words if null_branch >= 0 else -1,
        null_branch=null_branch,
        doc=entry.get("doc", ""),
        aliases=tuple(entry.get("aliases", ())),
        has_default="default" in entry,
        default=entry.get("default"),
        **attributes,
    )


def _read_type(schema: Any, entry: dict[str, Any], namespace: str, names: _Names, where: str) -> dict[str, Any]:
    if isinstance(schema, str):
        known = names.find(schema, namespace)
        definition: dict[str, Any] = known if known is not None else {"type": schema}
    elif isinstance(schema, dict):
        definition = schema
        if schema.get("type") in ("enum", "fixed"):
            names.define(schema, namespace, where)
    else:
        raise SchemaError(f"{where}: unsupported type {schema!r}")
    base = definition.get("type")
    logical = definition.get("logicalType", "")
    bounds: dict[str, int] = {name: entry[name] for name in ("minimum", "maximum") if name in entry}
    for name, value in bounds.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise SchemaError(f"{where}: {name} must be an integer, found {value!r}")
    if "flags" in entry and base not in ("int", "long"):
        raise SchemaError(f"{where}: flags are for int and long")
    match base:
        case "int" | "long":
            return _read_integer(base, logical, bounds, entry, where)
        case "bytes" | "fixed" if logical == "decimal":
            return _read_decimal(definition, bounds, where)
        case "boolean" | "float" | "double" | "string" | "bytes" | "enum" | "fixed":
            if bounds:
                raise SchemaError(f"{where}: minimum and maximum are for int, long and decimal")
            if logical:
                raise SchemaError(f"{where}: logical type {logical!r} on {base} is not supported")
            as_text = entry.get("integers_as_text", False)
            if as_text not in (False, True) or (as_text and base != "string"):
                raise SchemaError(f"{where}: integers_as_text is true or false, and for string")
            return {**_read_plain(base, definition, where), "integers_as_text": as_text}
        case _:
            raise SchemaError(f"{where}: type {base!r} is not supported inside an event")


def _read_integer(
    base: Storage, logical: str, bounds: dict[str, int], entry: dict[str, Any], where: str
) -> dict[str, Any]:
    if logical and logical not in INTEGER_LOGICAL_TYPES[base]:
        raise SchemaError(f"{where}: logical type {logical!r} on {base} is not supported")
    lowest, highest = INT_RANGE if base == "int" else LONG_RANGE
    flags = entry.get("flags", [])
    if not isinstance(flags, list) or not all(isinstance(name, str) for name in flags) or len(set(flags)) != len(flags):
        raise SchemaError(f"{where}: flags must be a list of different names, found {flags!r}")
    if len(flags) >= highest.bit_length() + 1:
        raise SchemaError(f"{where}: {len(flags)} flags do not fit {base}")
    minimum = bounds.get("minimum", lowest)
    maximum = bounds.get("maximum", highest)
    if not lowest <= minimum <= maximum <= highest:
        raise SchemaError(f"{where}: minimum {minimum} and maximum {maximum} are not a range of {base}")
    return {
        "storage": base, "logical_type": logical, "minimum": minimum, "maximum": maximum, "flags": tuple(flags),
    }  # fmt: skip


def _read_decimal(definition: dict[str, Any], bounds: dict[str, int], where: str) -> dict[str, Any]:
    precision, scale = definition.get("precision"), definition.get("scale", 0)
    if not isinstance(precision, int) or not isinstance(scale, int) or not 0 <= scale <= precision or precision < 1:
        raise SchemaError(f"{where}: a decimal needs precision and 0 <= scale <= precision")
    if precision > U128_DIGITS:
        raise SchemaError(f"{where}: decimal precision {precision} is beyond {U128_DIGITS}, which is u128")
    storage: Storage = "u64" if precision <= U64_DIGITS else "u128"
    highest = min(10**precision - 1, U64_MAX if storage == "u64" else U128_MAX)
    attributes = _read_plain("fixed", definition, where) if definition["type"] == "fixed" else {}
    if attributes:
        highest = min(highest, 2 ** (8 * attributes["size"] - 1) - 1)
    minimum, maximum = bounds.get("minimum", 0), bounds.get("maximum", highest)
    if minimum != 0:
        raise SchemaError(f"{where}: a decimal's minimum is 0, found {minimum}")
    if not 0 <= maximum <= highest:
        raise SchemaError(f"{where}: maximum {maximum} is not in [0, {highest}]")
    return attributes | {
        "storage": storage, "words": 1 if storage == "u64" else 2, "precision": precision, "scale": scale,
        "maximum": maximum, "logical_type": "decimal",
    }  # fmt: skip


def _read_plain(base: Storage, definition: dict[str, Any], where: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {"storage": base}
    if base in ("enum", "fixed"):
        attributes["type_name"] = definition["name"].rpartition(".")[2]
    if base == "enum":
        symbols = definition.get("symbols")
        if not isinstance(symbols, list) or not symbols or len(set(symbols)) != len(symbols):
            raise SchemaError(f"{where}: an enum needs a list of different symbols, found {symbols!r}")
        attributes |= {"symbols": tuple(symbols), "enum_default": definition.get("default")}
        if attributes["enum_default"] not in (None, *symbols):
            raise SchemaError(f"{where}: the enum's default {attributes['enum_default']!r} is not a symbol of it")
    elif base == "fixed":
        size = definition.get("size")
        if not isinstance(size, int) or not 1 <= size <= MAX_FIXED_BYTES:
            raise SchemaError(f"{where}: a fixed needs a size of 1 to {MAX_FIXED_BYTES} bytes, found {size!r}")
        attributes |= {"size": size, "words": -(-size // 8)}
    return attributes
