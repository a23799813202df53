"""Events as JSON objects: what the API accepts, what replay reads and writes, what the OpenAPI page shows.

All of it is derived from the topic's .avsc. An event is ``{"type": "CreateTransfer", "id": 1, …}``:
- integers, decimals, dates and timestamps are JSON integers or, beyond 2^53, decimal strings; a field that can hold
  such numbers accepts both for any number.
  A decimal with a scale is a string such as ``"12.34"``. Fractions and exponents are refused, however whole.
- flags are a list of names, an enum is its symbol, bytes and fixed are base64, a nullable field may be ``null``.
- float and double are JSON numbers, or ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
- a field left out takes the schema's default; one without a default is required; an unknown field is refused.

Everything wrong with an event is a `FieldError` whose ``field`` is the path in the JSON: ``events[3].amount``.
"""

from __future__ import annotations

import base64
import binascii
import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from pipelines.codec import EventType, Field, FrameCodec, HeapBuilder, default_words, raw, signed, text
from pipelines.errors import FieldError
from pipelines.frames import Events

__all__ = ["EventsBuilder", "events_schema", "json_schema", "parse_event", "parse_events", "render_events"]

MAX_JSON_INTEGER: Final = 2**53
"""Largest integer written as a JSON number; what lies beyond is a string, since many readers know only doubles."""

_WORD: Final = 2**64 - 1
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,38})", re.ASCII)
_NUMBER_NAMES: Final = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_SHOWN: Final = 60


class _ValueRefused(ValueError):  # noqa: N818 - not an error of ours yet
    """What is wrong with a value; the caller knows its path."""


_Setter = Callable[[list[int], Any, HeapBuilder], None]
_Getter = Callable[[list[int], Events], Any]


class _Parser(NamedTuple):
    template: list[int]
    default_texts: tuple[tuple[str, int, bytes], ...]
    required: frozenset[str]
    setters: dict[str, _Setter]


class EventsBuilder:
    """Collects parsed events of one topic into the rows of a frame.

    An event that is refused leaves nothing behind but unused bytes in the heap.
    """

    def __init__(self, codec: FrameCodec) -> None:
        self._codec = codec
        self._words = array("q")
        self._heap = HeapBuilder()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, record: Mapping[str, Any], path: str = "", *, strict: bool = True) -> None:
        """Adds one event. Raises FieldError, whose field starts with ``path``."""
        self._words.extend(parse_event(self._codec, record, self._heap, path, strict=strict))
        self._count += 1

    def build(self) -> Events:
        """The events so far, in the order of `add`."""
        rows = np.array(self._words, np.int64).reshape(self._count, self._codec.row_words)
        return Events(rows, self._heap.array())


def parse_events(codec: FrameCodec, records: Iterable[Any], strict: bool = True) -> Events:
    """Parses the events of one frame. FieldError names the first thing that is wrong as ``events[3].amount``.

    With ``strict`` off, unknown fields are ignored instead of refused.
    """
    builder = EventsBuilder(codec)
    for number, record in enumerate(records):
        builder.add(record, f"events[{number}]", strict=strict)
    return builder.build()


def parse_event(
    codec: FrameCodec, record: Any, heap: HeapBuilder | None = None, path: str = "", *, strict: bool = True
) -> list[int]:
    """One event as the words of its row (Python integers in the range of int64), word 0 being its kind.

    Text and bytes go to ``heap``; leave it out for topics that have none. Raises FieldError.
    """
    if not isinstance(record, dict):
        raise FieldError(path or "event", f"must be an object, found {_show(record)}")
    parsers = _parsers(codec)
    type_name = record.get("type")
    parser = parsers.get(type_name) if isinstance(type_name, str) else None
    if parser is None:
        found = f"found {_show(type_name)}" if "type" in record else "it is missing"
        raise FieldError(_join(path, "type"), f"must be {_one_of(parsers)}; {found}")
    row = parser.template.copy()
    if heap is None:
        heap = HeapBuilder()
    setters = parser.setters
    for name, value in record.items():
        setter = setters.get(name)
        if setter is None:
            if strict:
                known = ", ".join(field for field in setters if field != "type")
                raise FieldError(_join(path, str(name)), f"{type_name} has no such field; it has {known}")
            continue
        try:
            setter(row, value, heap)
        except _ValueRefused as refused:
            raise FieldError(_join(path, name), str(refused)) from None
    if not parser.required <= record.keys():
        missing = next(name for name in setters if name in parser.required and name not in record)
        raise FieldError(_join(path, missing), f"{type_name} needs this field")
    for name, word, data in parser.default_texts:
        if name not in record:
            row[word] = heap.add(data)
    return row


def render_events(codec: FrameCodec, events: Events) -> list[dict[str, Any]]:
    """The events as JSON-ready dicts, ``type`` first, then the fields in the schema's order."""
    renderers = _renderers(codec)
    rendered: list[dict[str, Any]] = []
    for row in events.rows.tolist():
        kind = row[0]
        if not 0 <= kind < len(renderers):
            raise FieldError(f"events[{len(rendered)}].type", f"kind {kind} is not one of {codec.topic}")
        name, getters = renderers[kind]
        record: dict[str, Any] = {"type": name}
        for field_name, getter in getters:
            record[field_name] = getter(row, events)
        rendered.append(record)
    return rendered


def json_schema(event_type: EventType) -> dict[str, Any]:
    """JSON Schema 2020-12 (as OpenAPI 3.1 embeds it) of one event type."""
    properties: dict[str, Any] = {"type": {"const": event_type.name}}
    for field in event_type.fields:
        properties[field.name] = _property(field)
    return {
        "title": event_type.name,
        "description": event_type.doc,
        "type": "object",
        "properties": properties,
        "required": ["type", *(field.name for field in event_type.fields if not field.has_default)],
        "additionalProperties": False,
    }


def events_schema(codec: FrameCodec) -> dict[str, Any]:
    """JSON Schema of any event of a topic."""
    return {"oneOf": [json_schema(event_type) for event_type in codec.event_types]}


@lru_cache(maxsize=64)
def _parsers(codec: FrameCodec) -> dict[str, _Parser]:
    return {event_type.name: _parser(codec, event_type) for event_type in codec.event_types}


@lru_cache(maxsize=64)
def _renderers(codec: FrameCodec) -> list[tuple[str, list[tuple[str, _Getter]]]]:
    return [
        (event_type.name, [(field.name, _getter(field)) for field in event_type.fields])
        for event_type in codec.event_types
    ]


def _parser(codec: FrameCodec, event_type: EventType) -> _Parser:
    template = [0] * codec.row_words
    template[0] = event_type.kind
    texts: list[tuple[str, int, bytes]] = []
    setters: dict[str, _Setter] = {"type": _ignore}
    for field in event_type.fields:
        setters[field.name] = _nullable_setter(field) if field.nullable else _setter(field)
        if field.has_default:
            words, data = default_words(field)
            template[field.word : field.word + len(words)] = words
            if data:
                texts.append((field.name, field.word, data))
    required = frozenset(field.name for field in event_type.fields if not field.has_default)
    return _Parser(template, tuple(texts), required, setters)


def _ignore(row: list[int], value: Any, heap: HeapBuilder) -> None:
    """The type was read before the fields."""


def _nullable_setter(field: Field) -> _Setter:
    inner = _setter(field)
    start, is_set = field.word, field.is_set_word
    nothing = [0] * (field.words + 1)

    def set_nullable(row: list[int], value: Any, heap: HeapBuilder) -> None:
        if value is None:
            row[start : is_set + 1] = nothing
            return
        inner(row, value, heap)
        row[is_set] = 1

    return set_nullable


def _setter(field: Field) -> _Setter:
    match field.storage:
        case "int" | "long" if field.flags:
            return _flags_setter(field)
        case "int" | "long" | "u64" | "u128":
            return _integer_setter(field)
        case "boolean":
            return _boolean_setter(field)
        case "float" | "double":
            return _number_setter(field)
        case "string":
            return _string_setter(field)
        case "enum":
            return _enum_setter(field)
        case _:
            return _bytes_setter(field)


def _integer_setter(field: Field) -> _Setter:
    word, minimum, maximum, scale = field.word, field.minimum, field.maximum, field.scale
    read = _scaled_reader(scale) if scale else _read_integer if _beyond_doubles(field) else _read_small_integer

    def checked(value: Any) -> int:
        number = read(value)
        if not minimum <= number <= maximum:
            if number < 0 <= minimum:
                raise _ValueRefused(f"must not be negative, found {_show(value)}")
            lowest, highest = _unscaled(minimum, scale), _unscaled(maximum, scale)
            raise _ValueRefused(f"must be between {lowest} and {highest}, found {_show(value)}")
        return number

    # Whole numbers in range are nearly all there is: they take the short way.
    def set_integer(row: list[int], value: Any, heap: HeapBuilder) -> None:
        row[word] = value if type(value) is int and minimum <= value <= maximum else checked(value)

    def set_u64(row: list[int], value: Any, heap: HeapBuilder) -> None:
        row[word] = signed(value if type(value) is int and not scale and 0 <= value <= maximum else checked(value))

    def set_u128(row: list[int], value: Any, heap: HeapBuilder) -> None:
        number = value if type(value) is int and not scale and 0 <= value <= maximum else checked(value)
        row[word] = signed(number & _WORD)
        row[word + 1] = signed(number >> 64)

    return {"u64": set_u64, "u128": set_u128}.get(field.storage, set_integer)


def _beyond_doubles(field: Field) -> bool:
    """Whether a field can hold integers that a double cannot, and so takes decimal strings too."""
    return field.maximum > MAX_JSON_INTEGER or field.minimum < -MAX_JSON_INTEGER


def _read_integer(value: Any) -> int:
    if isinstance(value, str):
        if _INTEGER.fullmatch(value) and value != "-0":
            return int(value)
        raise _ValueRefused(f"must be an integer in decimal digits, found {_show(value)}")
    return _read_small_integer(value)


def _read_small_integer(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        raise _ValueRefused(f"must be an integer without fraction or exponent, found {_show(value)}")
    raise _ValueRefused(f"must be an integer, found {_show(value)}")


def _scaled_reader(scale: int) -> Callable[[Any], int]:
    one: int = 10**scale
    pattern = re.compile(rf"(-?)(0|[1-9][0-9]{{0,38}})(?:\.([0-9]{{1,{scale}}}))?", re.ASCII)

    def read(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value) * one
        match = pattern.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise _ValueRefused(
                f"must be a decimal in a string with at most {scale} digits after the point, found {_show(value)}"
            )
        sign, whole, fraction = match.groups()
        number = int(whole) * one + int((fraction or "").ljust(scale, "0"))
        return -number if sign else number

    return read


def _unscaled(number: int, scale: int) -> str:
    if not scale:
        return str(number)
    digits = str(abs(number)).rjust(scale + 1, "0")
    return f"{'-' if number < 0 else ''}{digits[:-scale]}.{digits[-scale:]}"


def _flags_setter(field: Field) -> _Setter:
    word = field.word
    bits = {name: 1 << number for number, name in enumerate(field.flags)}

    def set_flags(row: list[int], value: Any, heap: HeapBuilder) -> None:
        if not isinstance(value, list):
            raise _ValueRefused(f"must be a list of names out of {', '.join(bits)}; found {_show(value)}")
        number = 0
        for name in value:
            bit = bits.get(name) if isinstance(name, str) else None
            if bit is None:
                raise _ValueRefused(f"unknown flag {_show(name)}; the flags are {', '.join(bits)}")
            if number & bit:
                raise _ValueRefused(f"flag {_show(name)} is there twice")
            number |= bit
        row[word] = number

    return set_flags


def _boolean_setter(field: Field) -> _Setter:
    word = field.word

    def set_boolean(row: list[int], value: Any, heap: HeapBuilder) -> None:
        if not isinstance(value, bool):
            raise _ValueRefused(f"must be true or false, found {_show(value)}")
        row[word] = int(value)

    return set_boolean


def _number_setter(field: Field) -> _Setter:
    word = field.word
    single = field.storage == "float"

    def set_number(row: list[int], value: Any, heap: HeapBuilder) -> None:
        if isinstance(value, str) and value in _NUMBER_NAMES:
            number = np.float64(_NUMBER_NAMES[value])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = np.float64(value)
                with np.errstate(over="ignore"):
                    rounded = np.float64(np.float32(number)) if single else number
            except OverflowError:
                rounded = np.float64("inf")
            if np.isinf(rounded):
                raise _ValueRefused(f"does not fit a {field.storage}, found {_show(value)}")
            number = rounded
        else:
            raise _ValueRefused(f"must be a number, found {_show(value)}")
        row[word] = int(number.view(np.int64))

    return set_number


def _string_setter(field: Field) -> _Setter:
    word = field.word

    def set_string(row: list[int], value: Any, heap: HeapBuilder) -> None:
        if field.integers_as_text and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise _ValueRefused(f"must be a string, found {_show(value)}")
        try:
            row[word] = heap.add(value)
        except UnicodeEncodeError:
            raise _ValueRefused("must be Unicode text, found half of a surrogate pair") from None

    return set_string


def _enum_setter(field: Field) -> _Setter:
    word = field.word
    numbers = {symbol: number for number, symbol in enumerate(field.symbols)}

    def set_enum(row: list[int], value: Any, heap: HeapBuilder) -> None:
        number = numbers.get(value) if isinstance(value, str) else None
        if number is None:
            raise _ValueRefused(f"must be {_one_of(numbers)}; found {_show(value)}")
        row[word] = number

    return set_enum


def _bytes_setter(field: Field) -> _Setter:
    word, words, size = field.word, field.words, field.size

    def set_bytes(row: list[int], value: Any, heap: HeapBuilder) -> None:
        if not isinstance(value, str):
            raise _ValueRefused(f"must be bytes in base64, found {_show(value)}")
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise _ValueRefused(f"must be bytes in base64, found {_show(value)}") from None
        if not size:
            row[word] = heap.add(data)
            return
        if len(data) != size:
            raise _ValueRefused(f"must be {size} bytes in base64, found {len(data)} bytes")
        row[word : word + words] = np.frombuffer(data.ljust(8 * words, b"\0"), "<i8").tolist()

    return set_bytes


def _getter(field: Field) -> _Getter:
    inner = _plain_getter(field)
    if not field.nullable:
        return inner
    is_set = field.is_set_word
    return lambda row, events: inner(row, events) if row[is_set] else None


def _plain_getter(field: Field) -> _Getter:
    word, scale = field.word, field.scale
    match field.storage:
        case "int" | "long" if field.flags:
            return lambda row, events: _flag_names(field, row[word])
        case "int" | "long":
            return lambda row, events: _json_integer(row[word])
        case "u64" | "u128":
            high = word + 1 if field.storage == "u128" else None

            def get_decimal(row: list[int], events: Events) -> Any:
                number = row[word] & _WORD
                if high is not None:
                    number |= (row[high] & _WORD) << 64
                return _unscaled(number, scale) if scale else _json_integer(number)

            return get_decimal
        case "boolean":
            return lambda row, events: bool(row[word])
        case "float" | "double":
            return lambda row, events: _json_number(float(np.int64(row[word]).view(np.float64)))
        case "string":
            return lambda row, events: text(events, row[word])
        case "enum":
            return lambda row, events: field.symbols[row[word]]
        case "fixed":
            return lambda row, events: _base64(np.array(row[word : word + field.words], "<i8").tobytes()[: field.size])
        case _:
            return lambda row, events: _base64(raw(events, row[word]))


def _json_integer(number: int) -> int | str:
    return number if -MAX_JSON_INTEGER <= number <= MAX_JSON_INTEGER else str(number)


def _json_number(number: float) -> float | str:
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _flag_names(field: Field, bits: int) -> list[str]:
    """Names of the bits that are set; a bit without a name, which parsing would refuse, is ``reserved_<number>``."""
    names = []
    number = 0
    bits &= _WORD
    while bits >> number:
        if bits >> number & 1:
            names.append(field.flags[number] if number < len(field.flags) else f"reserved_{number}")
        number += 1
    return names


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _property(field: Field) -> dict[str, Any]:
    schema = _value_schema(field)
    if field.nullable:
        schema = {"anyOf": [schema, {"type": "null"}]}
    if field.doc:
        schema["description"] = field.doc
    if field.has_default:
        schema["default"] = _rendered_default(field)
    return schema


def _rendered_default(field: Field) -> Any:
    words, data = default_words(field)
    row = [0] * field.word + [*words]
    if data:
        row[field.word] = len(data)
    return _getter(field)(row, Events(np.empty((0, 1), np.int64), np.frombuffer(data, np.uint8)))


def _value_schema(field: Field) -> dict[str, Any]:
    match field.storage:
        case "int" | "long" if field.flags:
            return {"type": "array", "items": {"enum": list(field.flags)}, "uniqueItems": True}
        case "int" | "long" | "u64" | "u128":
            return _integer_schema(field)
        case "boolean":
            return {"type": "boolean"}
        case "float" | "double":
            return {"anyOf": [{"type": "number"}, {"enum": list(_NUMBER_NAMES)}]}
        case "string":
            return {"type": ["string", "integer"] if field.integers_as_text else "string"}
        case "enum":
            return {"enum": list(field.symbols)}
        case "fixed":
            length = 4 * -(-field.size // 3)
            return {"type": "string", "contentEncoding": "base64", "minLength": length, "maxLength": length}
        case _:
            return {"type": "string", "contentEncoding": "base64"}


def _integer_schema(field: Field) -> dict[str, Any]:
    sign = "-?" if field.minimum < 0 else ""
    if field.scale:
        digits = max(1, field.precision - field.scale)
        pattern = rf"^{sign}(0|[1-9][0-9]{{0,{digits - 1}}})(\.[0-9]{{1,{field.scale}}})?$"
        return {"anyOf": [{"type": "string", "pattern": pattern}, {"type": "integer", "minimum": 0}]}
    integer: dict[str, Any] = {"type": "integer"}
    # A bound beyond 2^53 would itself be misread by readers that know only doubles; the pattern's digits stand for it.
    if field.minimum >= -MAX_JSON_INTEGER:
        integer["minimum"] = field.minimum
    if field.maximum <= MAX_JSON_INTEGER:
        integer["maximum"] = field.maximum
    if not _beyond_doubles(field):
        return integer
    digits = len(str(max(field.maximum, -field.minimum)))
    return {"anyOf": [integer, {"type": "string", "pattern": rf"^{sign}(0|[1-9][0-9]{{0,{digits - 1}}})$"}]}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _one_of(names: Iterable[str]) -> str:
    shown = list(names)
    return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"


def _show(value: Any) -> str:
    """A value as it stands in JSON, cut short: what was refused may be huge."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    shown = f'"{value[:_SHOWN]}"' if isinstance(value, str) else str(value)
    return shown if len(shown) <= _SHOWN + 2 else f"{shown[:_SHOWN]}…"
