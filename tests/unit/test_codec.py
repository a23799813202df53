"""The codec's edges: what it refuses to encode, schemas it refuses, rows in compiled code, the wire format."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numba import njit

from infra.settings import PROJECT_ROOT
from pipelines import wire
from pipelines.avro_schema import SchemaError
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_DEAD_LETTERS
from pipelines.codec import (
    MAX_EVENTS_PER_FRAME,
    MAX_FRAME_BYTES,
    REASONS,
    FrameCodec,
    HeapBuilder,
    codec_of,
    raw,
    text,
)
from pipelines.errors import FrameError
from pipelines.frames import Events, Frame
from tests.support.avro_frames import frame_schema

COMMANDS = codec_of(LEDGER_COMMANDS.name)
LETTERS = codec_of(LEDGER_DEAD_LETTERS.name)


def commands(count: int = 1, **words: int) -> Frame:
    rows = COMMANDS.new_rows(count)
    transfer = COMMANDS.event_type("CreateTransfer")
    view = rows.view(transfer.dtype)[:, 0]
    view["kind"] = transfer.kind
    for name, value in words.items():
        view[name] = value
    return Frame(COMMANDS.topic, 0, 0, 0, None, Events(rows))


def letters(detail: int, heap: HeapBuilder) -> Frame:
    rows = LETTERS.new_rows(1)
    rows.view(LETTERS.event_type("DeadLetter").dtype)["detail"] = detail
    return Frame(LETTERS.topic, 0, 0, 0, None, Events(rows, heap.array()))


def reason(codec: FrameCodec, frame: Frame) -> str:
    with pytest.raises(FrameError) as error:
        codec.encode(frame)
    return error.value.reason


def test_compiled_code_reads_and_writes_rows_by_field_name() -> None:
    @njit
    def double_amounts(transfers: Any) -> Any:
        total = np.uint64(0)
        for row in range(len(transfers)):
            transfers[row].amount_lo *= np.uint64(2)
            total += transfers[row].amount_lo
        return total

    frame = commands(3, amount_lo=21, id_lo=1)
    view = frame.events.view(COMMANDS.event_type("CreateTransfer").dtype)
    assert double_amounts(view) == 126
    decoded = COMMANDS.decode(COMMANDS.encode(frame)).events
    assert decoded.view(COMMANDS.event_type("CreateTransfer").dtype)["amount_lo"].tolist() == [42, 42, 42]


def test_a_frame_without_events() -> None:
    frame = COMMANDS.decode(COMMANDS.encode(commands(0)))
    assert len(frame.events) == 0
    assert frame.events.view(COMMANDS.event_type("CreateTransfer").dtype).shape == (0,)


def test_text_and_bytes_lie_in_the_heap() -> None:
    heap = HeapBuilder()
    heap.add("before")
    frame = LETTERS.decode(LETTERS.encode(letters(heap.add("größer"), heap)))
    letter = frame.events.view(LETTERS.event_type("DeadLetter").dtype)[0]
    assert text(frame.events, letter["detail"]) == "größer"
    assert raw(frame.events, letter["payload"]) == b""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"kind": 2}, "bad_kind"),
        ({"kind": -1}, "bad_kind"),
        ({"code": 65536}, "out_of_range"),
        ({"code": -1}, "out_of_range"),
        ({"timestamp": -1}, "out_of_range"),
        ({"flags": 2**31}, "out_of_range"),
    ],
)
def test_rows_outside_the_schema_are_not_encoded(words: dict[str, int], expected: str) -> None:
    assert reason(COMMANDS, commands(2, **words)) == expected


def test_the_error_of_a_row_names_event_and_field() -> None:
    frame = commands(3)
    frame.events.view(COMMANDS.event_type("CreateTransfer").dtype)["code"][2] = 70000
    with pytest.raises(FrameError, match=r"CreateTransfer\.code of event 2.*found 70000"):
        COMMANDS.encode(frame)


@pytest.mark.parametrize("word", [(7 << 32) | 1, (6 << 32) | 2, 1 << 62, -(1 << 32), (1 << 32) - 1])
def test_text_outside_the_heap_is_not_encoded(word: int) -> None:
    heap = HeapBuilder()
    heap.add("sevenby")
    assert reason(LETTERS, letters(word, heap)) == "bad_text"
    with pytest.raises(FrameError, match="bad_text"):
        raw(letters(0, heap).events, word)


def test_text_that_is_not_utf8_is_not_encoded() -> None:
    heap = HeapBuilder()
    assert reason(LETTERS, letters(heap.add(b"\xff"), heap)) == "bad_utf8"


@pytest.mark.parametrize(
    "changed",
    [{"shard": -1}, {"shard": 2**31}, {"sequence": -1}, {"produced_at": -1}, {"produced_at": 2**63}, {"shard": 2**70}],
)
def test_header_fields_are_checked(changed: dict[str, int]) -> None:
    assert reason(COMMANDS, replace(commands(), **changed)) == "out_of_range"


def test_rows_of_another_shape_or_topic_are_refused() -> None:
    assert reason(COMMANDS, replace(commands(), topic="ledger.results")) == "bad_rows"
    assert reason(COMMANDS, replace(commands(), events=Events(np.zeros((1, 3), np.int64)))) == "bad_rows"


def test_a_frame_too_large_for_kafka_is_refused() -> None:
    assert reason(COMMANDS, commands(MAX_EVENTS_PER_FRAME + 1)) == "too_large"
    many = commands(20_000, **{f"{name}_hi": 2**63 for name in ("id", "amount", "pending_id", "user_data_128")})
    assert reason(COMMANDS, many) == "too_large"
    heap = HeapBuilder()
    assert reason(LETTERS, letters(heap.add(b"x" * MAX_FRAME_BYTES), heap)) == "too_large"
    assert len(LETTERS.encode(letters(heap.add(b"x" * (MAX_FRAME_BYTES - 100)), heap))) <= MAX_FRAME_BYTES


def test_rows_that_are_a_slice_are_encoded() -> None:
    frame = commands(4)
    frame.events.rows[:, 1] = [1, 2, 3, 4]
    every_other = replace(frame, events=Events(frame.events.rows[::2]))
    assert COMMANDS.decode(COMMANDS.encode(every_other)).events.rows[:, 1].tolist() == [1, 3]


def test_frames_one_behind_the_other() -> None:
    frames = [commands(count, id_lo=count) for count in (1, 0, 3)]
    data = b"".join(map(COMMANDS.encode, frames))
    assert [len(frame.events) for frame in COMMANDS.decode_many(data, 3)] == [1, 0, 3]
    for count, expected in ((2, "trailing_bytes"), (4, "truncated")):
        with pytest.raises(FrameError) as error:
            list(COMMANDS.decode_many(data, count))
        assert error.value.reason == expected


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"name": "f", "type": {"type": "array", "items": "int"}}, r"E\.f: type 'array'"),
        ({"name": "f", "type": {"type": "map", "values": "int"}}, r"E\.f: type 'map'"),
        ({"name": "f", "type": {"type": "record", "name": "R", "fields": []}}, r"E\.f: type 'record'"),
        ({"name": "f", "type": "Unknown"}, r"E\.f: type 'Unknown'"),
        ({"name": "f", "type": "null"}, r"E\.f: type 'null'"),
        ({"name": "f", "type": ["int", "string"]}, r"E\.f: a union"),
        ({"name": "f", "type": ["null", "int", "string"]}, r"E\.f: a union"),
        ({"name": "f", "type": {"type": "bytes", "logicalType": "decimal", "precision": 40}}, "precision 40"),
        ({"name": "f", "type": {"type": "bytes", "logicalType": "decimal"}}, r"E\.f: a decimal needs precision"),
        ({"name": "f", "type": {"type": "string", "logicalType": "uuid"}}, r"E\.f: logical type 'uuid'"),
        ({"name": "f", "type": {"type": "long", "logicalType": "time-micros"}}, r"E\.f: logical type"),
        ({"name": "f", "type": "string", "minimum": 0}, r"E\.f: minimum"),
        ({"name": "f", "type": "int", "minimum": 5, "maximum": 4}, r"E\.f: minimum 5 and maximum 4"),
        ({"name": "f", "type": "int", "flags": ["a", "a"]}, r"E\.f: flags"),
        ({"name": "kind", "type": "int"}, r"E\.kind: .*'kind'"),
        ({"name": "f", "type": {"type": "fixed", "name": "F", "size": 0}}, r"E\.f: a fixed"),
        ({"name": "f", "type": {"type": "enum", "name": "F", "symbols": []}}, r"E\.f: an enum"),
    ],
)  # fmt: skip
def test_unsupported_fields_are_named_at_construction(field: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        FrameCodec("test", frame_schema({"type": "record", "name": "E", "fields": [field]}))


def test_a_frame_has_its_header_fields_and_no_others() -> None:
    for position, message in ((0, "shard"), (4, "events")):
        broken = copy.deepcopy(COMMANDS.schema)
        del broken["fields"][position]
        with pytest.raises(SchemaError, match=message):
            FrameCodec("test", broken)
    broken = copy.deepcopy(COMMANDS.schema)
    broken["fields"].append({"name": "extra", "type": "int"})
    with pytest.raises(SchemaError, match="extra"):
        FrameCodec("test", broken)


def test_a_named_type_may_be_used_again() -> None:
    enum = {"type": "enum", "name": "Code", "symbols": ["A", "B"]}
    first = {"type": "record", "name": "First", "fields": [{"name": "code", "type": enum}]}
    second = {"type": "record", "name": "Second", "fields": [{"name": "code", "type": "Code"}]}
    codec = FrameCodec("test", frame_schema([first, second]))
    assert codec.event_type("Second").field("code").symbols == ("A", "B")


def test_the_wire_format() -> None:
    assert wire.wrap(258, b"body") == b"\x00\x00\x00\x01\x02body"
    assert wire.unwrap(b"\x00\x00\x00\x01\x02body") == (258, b"body")
    with pytest.raises(ValueError, match="schema id"):
        wire.wrap(0, b"")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b'{"type": "CreateTransfer"}', "not_avro"),
        (b"\x00\x00\x00", "too_short"),
        (b"\x00\x00\x00\x00\x00body", "bad_schema_id"),
        (b"\x00\xff\xff\xff\xffbody", "bad_schema_id"),
    ],
)
def test_what_is_not_the_wire_format(value: bytes | None, expected: str) -> None:
    with pytest.raises(FrameError) as error:
        wire.unwrap(value)
    assert error.value.reason == expected


REFERENCE = (PROJECT_ROOT / "docs" / "reference" / "frames.md").read_text(encoding="utf-8")


def test_the_example_of_the_reference_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = REFERENCE.split("```python\n")[1].split("```")[0]
    exec(compile(example, "docs/reference/frames.md", "exec"), {})  # noqa: S102 - the page's own code
    assert capsys.readouterr().out.startswith("[978] [{'type': 'CreateAccount', 'id': 1")


def test_the_reference_page_lists_every_reason_and_the_limits() -> None:
    for name, _ in REASONS.values():
        assert f"`{name}`" in REFERENCE
    assert f"{MAX_FRAME_BYTES:,}" in REFERENCE
    assert f"{MAX_EVENTS_PER_FRAME:,}" in REFERENCE


@pytest.mark.parametrize(("precision", "largest"), [(4, 9999), (20, 2**64 - 1), (21, 10**21 - 1), (39, 2**128 - 1)])
@pytest.mark.parametrize("size", [None, 20])
def test_a_decimal_ends_at_its_precision_or_its_words(precision: int, largest: int, size: int | None) -> None:
    avro: dict[str, Any] = {"type": "bytes", "logicalType": "decimal", "precision": precision}
    if size:
        avro |= {"type": "fixed", "name": "Amount", "size": size}
    codec = FrameCodec("test", frame_schema({"type": "record", "name": "E", "fields": [{"name": "f", "type": avro}]}))
    words = codec.event_type("E").field("f").words

    def written(value: int) -> bytes:
        data = value.to_bytes(size or 20, "big")
        return b"\0\0\0\0\2" + (b"" if size else b"\x28") + data + b"\0"

    frame = codec.decode(written(largest))
    assert frame.events.rows[0, 1 : 1 + words].astype(np.uint64).tolist() == [
        largest >> 64 * word & (2**64 - 1) for word in range(words)
    ]
    assert codec.decode(codec.encode(frame)).events.rows.tolist() == frame.events.rows.tolist()
    with pytest.raises(FrameError, match="out_of_range"):
        codec.decode(written(largest + 1))
    if largest < 2 ** (64 * words) - 1:
        frame.events.rows[0, 1] += 1
        assert reason(codec, frame) == "out_of_range"
