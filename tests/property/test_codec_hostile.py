"""Truncated, bit-flipped and hostile bytes: always a FrameError or a frame that can be written again.

The same bytes also go through the decoder as plain Python, over a buffer that fails on every index outside it: what
compiled code would read silently beyond the record shows there.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from decimal import Decimal
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest

import pipelines.codec
from pipelines import codec_kernels
from pipelines.codec import MAX_EVENTS_PER_FRAME, MAX_FRAME_BYTES, FrameCodec, codec_of
from pipelines.errors import FrameError
from pipelines.frames import Events, Frame
from tests.support.avro_frames import frame_of, frame_schema, frame_value

RICH_SCHEMA = frame_schema(
    [
        {
            "type": "record",
            "name": "Everything",
            "fields": [
                {"name": "boolean", "type": "boolean"},
                {"name": "int", "type": "int", "minimum": -5, "maximum": 100000},
                {"name": "long", "type": ["null", "long"]},
                {"name": "float", "type": "float"},
                {"name": "double", "type": ["double", "null"]},
                {"name": "string", "type": "string"},
                {"name": "bytes", "type": ["null", "bytes"]},
                {"name": "enum", "type": {"type": "enum", "name": "Enum", "symbols": ["A", "B", "C"]}},
                {"name": "fixed", "type": {"type": "fixed", "name": "Fixed", "size": 11}},
                {"name": "u64", "type": {"type": "bytes", "logicalType": "decimal", "precision": 20}},
                {"name": "u128", "type": {"type": "bytes", "logicalType": "decimal", "precision": 39}},
                {
                    "name": "price",
                    "type": {"type": "fixed", "name": "Price", "size": 9, "logicalType": "decimal", "precision": 20},
                },
            ],
        },
        {"type": "record", "name": "Nothing", "fields": []},
        {"type": "record", "name": "Text", "fields": [{"name": "text", "type": "string"}]},
    ]
)
# A writer with fields to skip, null for the reader's plain field, other symbols and a branch the reader lacks.
OLDER_SCHEMA = frame_schema(
    [
        {"type": "record", "name": "Gone", "fields": []},
        {
            "type": "record",
            "name": "Text",
            "fields": [
                {"name": "gone", "type": ["null", "bytes"]},
                {"name": "text", "type": ["null", "string"]},
                {"name": "number", "type": "double"},
            ],
        },
    ]
)
LATER_SCHEMA = frame_schema(
    {
        "type": "record",
        "name": "Text",
        "fields": [{"name": "text", "type": "string"}, {"name": "note", "type": "string", "default": "none"}],
    }
)


def _frame(codec: FrameCodec, events: list[tuple[str, dict[str, Any]]]) -> bytes:
    return codec.encode(
        frame_of(codec, {"shard": 1, "sequence": 300, "produced_at": 1 << 50, "trace": "00-ab", "events": events})
    )


def _everything(**changed: Any) -> tuple[str, dict[str, Any]]:
    values: dict[str, Any] = {
        "boolean": True,
        "int": 70000,
        "long": -(2**63),
        "float": 1.5,
        "double": -2.25,
        "string": "größe €𝄞",
        "bytes": b"\x00\xff",
        "enum": "C",
        "fixed": b"elevenbytes",
        "u64": Decimal(2**64 - 1),
        "u128": Decimal(2**128 - 1),
        "price": Decimal(12345),
    }
    return "Everything", values | changed


def _bodies() -> dict[str, tuple[FrameCodec, bytes]]:
    rich = FrameCodec("test", RICH_SCHEMA)
    nothing = _everything(long=None, double=None, bytes=None, u128=Decimal(0), string="")
    older = FrameCodec("test", OLDER_SCHEMA)
    older_events = [("Text", {"gone": b"x", "text": "text", "number": 1.0})] * 2
    commands = codec_of("ledger.commands")
    rows = commands.new_rows(2)
    rows[:, 0] = (0, 1)
    rows[:, 1:] = np.arange(1, commands.row_words)
    ledger = Frame(commands.topic, 0, 0, 5, None, Events(rows))
    return {
        "every type": (rich, _frame(rich, [_everything(), ("Nothing", {}), ("Text", {"text": "x" * 70}), nothing])),
        "projected": (FrameCodec("test", LATER_SCHEMA, OLDER_SCHEMA), _frame(older, older_events)),
        "ledger": (commands, commands.encode(ledger)),
    }


BODIES = _bodies()


class Guarded(np.ndarray[Any, Any]):
    """Bytes that may only be read one at a time and inside their bounds: no negative index, no slice."""

    def __getitem__(self, index: Any) -> Any:
        assert 0 <= int(index) < self.size, f"read at {index} of {self.size} bytes"
        return super().__getitem__(int(index))


@pytest.fixture(scope="module")
def interpreted() -> ModuleType:
    """The kernels as plain Python."""
    spec = importlib.util.spec_from_file_location("codec_kernels_interpreted", codec_kernels.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    was_disabled = numba.config.DISABLE_JIT
    numba.config.DISABLE_JIT = True
    try:
        spec.loader.exec_module(module)
    finally:
        numba.config.DISABLE_JIT = was_disabled
    compiled_shape: Callable[..., Any] = module.decode_frame

    def guarded(buffer: Any, *rest: Any) -> Any:
        with np.errstate(over="ignore"):
            return compiled_shape(buffer.view(Guarded), *rest)

    module.decode_frame = guarded  # type: ignore[attr-defined]
    return module


KNOWN_REASONS = {reason: reason for reason, _ in pipelines.codec.REASONS.values()}


def outcome(codec: FrameCodec, body: bytes) -> str | dict[str, Any]:
    """The reason of the refusal, or the frame's value, which must survive being written and read again."""
    try:
        frame = codec.decode(body)
    except FrameError as error:
        return KNOWN_REASONS[error.reason]
    value = frame_value(codec, frame)
    same_schema = FrameCodec(codec.topic, codec.schema)
    again = same_schema.encode(frame)
    assert repr(frame_value(same_schema, same_schema.decode(again))) == repr(value)
    return value


def both(codec: FrameCodec, body: bytes, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = outcome(codec, body)
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.codec.kernels, "decode_frame", interpreted.decode_frame)
        try:
            plain: Any = frame_value(codec, codec.decode(body))
        except FrameError as error:
            plain = error.reason
    assert repr(plain) == repr(compiled)


@pytest.mark.parametrize("name", BODIES)
def test_a_truncated_frame_is_refused_at_every_byte(
    name: str, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, body = BODIES[name]
    assert isinstance(outcome(codec, body), dict)
    for length in range(len(body)):
        assert isinstance(outcome(codec, body[:length]), str)
        both(codec, body[:length], interpreted, monkeypatch)


@pytest.mark.parametrize("name", BODIES)
def test_every_flipped_bit_gives_an_error_or_a_frame(
    name: str, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, body = BODIES[name]
    sample = random.Random(1)
    for position in range(len(body)):
        for bit in range(8):
            flipped = bytearray(body)
            flipped[position] ^= 1 << bit
            if sample.random() < 0.25:
                both(codec, bytes(flipped), interpreted, monkeypatch)
            else:
                outcome(codec, bytes(flipped))


HOSTILE_NUMBERS = [
    *(2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**62, 2**63 - 1, -(2**63), -1, -2),
    *(MAX_FRAME_BYTES, MAX_EVENTS_PER_FRAME + 1),
]


@pytest.mark.parametrize("name", BODIES)
def test_hostile_numbers_anywhere_are_refused_or_read(
    name: str, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, body = BODIES[name]
    sample = random.Random(2)
    for position in range(len(body)):
        for number in HOSTILE_NUMBERS:
            for kept in (body[position:], body[position + 1 :], b""):
                hostile = body[:position] + varint(number) + kept
                if sample.random() < 0.05:
                    both(codec, hostile, interpreted, monkeypatch)
                else:
                    outcome(codec, hostile)


def test_random_bytes(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = random.Random(3)
    for codec, _ in BODIES.values():
        for _ in range(3000):
            body = bytes(sample.choice((0, 0, 1, 2, 2, 4, sample.randrange(256))) for _ in range(sample.randrange(40)))
            if sample.random() < 0.1:
                both(codec, body, interpreted, monkeypatch)
            else:
                outcome(codec, body)


HEADER = b"\x00\x00\x00\x00"


def varint(value: int) -> bytes:
    raw = (value << 1 ^ value >> 63) & (2**64 - 1)
    out = bytearray()
    while raw >= 128:
        out.append(raw & 127 | 128)
        raw >>= 7
    return bytes([*out, raw])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "truncated"),
        (HEADER, "truncated"),
        (HEADER + varint(0), None),
        (HEADER + varint(0) + b"\0", "trailing_bytes"),
        (b"\x80" * 11, "bad_varint"),
        (b"\xff\xff\xff\xff\xff\x00", "bad_varint"),
        (b"\x01" + HEADER, "out_of_range"),
        (b"\x00\x01\x00\x00\x00", "out_of_range"),
        (b"\x00\x00\x00\x04", "bad_branch"),
        (b"\x00\x00\x00\x02\x01", "negative_length"),
        (b"\x00\x00\x00\x02" + varint(2**62), "truncated"),
        (b"\x00\x00\x00\x02\x04\xc3\x28\x00", "bad_utf8"),
        (HEADER + varint(2**62), "bad_count"),
        (HEADER + varint(-(2**63)) + varint(0), "bad_count"),
        (HEADER + varint(-1) + varint(-1), "negative_length"),
        (HEADER + varint(-1) + varint(2**62), "truncated"),
        (HEADER + varint(1) + varint(3), "bad_branch"),
        (HEADER + varint(1) + varint(-1), "bad_branch"),
        (HEADER + varint(1) + varint(0) + b"\x02", "bad_boolean"),
        (HEADER + varint(1) + varint(0) + b"\x01" + varint(100001), "out_of_range"),
        (HEADER + varint(1) + varint(0) + b"\x01" + varint(2**31), "out_of_range"),
        (HEADER + varint(2) + varint(1) * 2 + varint(1) + varint(1) + varint(0), None),
        (HEADER + varint(-2) + varint(2) + varint(1) * 2 + varint(0), None),
        (HEADER + varint(-2) + varint(3) + varint(1) * 2 + varint(0), "bad_block_size"),
        (HEADER + varint(-2) + varint(1) + varint(1) * 2 + varint(0), "bad_block_size"),
        (HEADER + varint(-2) + varint(99) + varint(1) * 2 + varint(0), "truncated"),
        (HEADER + varint(1) + varint(2) + b"\x08" + "𝄞".encode(), "truncated"),
        (HEADER + varint(1) + varint(2) + b"\x06\xed\xa0\x80\x00", "bad_utf8"),
        (HEADER + varint(1) + varint(2) + b"\x04\xc0\xaf\x00", "bad_utf8"),
    ],
)
def test_each_fault_has_its_reason(body: bytes, reason: str | None) -> None:
    found = outcome(FrameCodec("test", RICH_SCHEMA), body)
    assert found == reason if reason else isinstance(found, dict)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "bad_decimal"),
        (b"\x00", None),
        (b"\x00" * 30 + b"\x07", None),
        (b"\x80", "out_of_range"),
        (b"\xff" * 16, "out_of_range"),
        (b"\x00" + b"\xff" * 16, None),
        (b"\x01" + b"\x00" * 16, "out_of_range"),
    ],
)
def test_unsigned_decimals_are_checked(value: bytes, reason: str | None) -> None:
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 39}
    codec = FrameCodec(
        "test", frame_schema({"type": "record", "name": "E", "fields": [{"name": "amount", "type": decimal}]})
    )
    found = outcome(codec, HEADER + varint(1) + varint(len(value)) + value + varint(0))
    if reason is None:
        assert isinstance(found, dict)
        assert found["events"] == [("E", {"amount": Decimal(int.from_bytes(value, "big"))})]
    else:
        assert found == reason


def test_events_without_a_byte_are_bounded_in_number() -> None:
    codec = FrameCodec("test", frame_schema({"type": "record", "name": "Tick", "fields": []}))
    most = outcome(codec, HEADER + varint(MAX_EVENTS_PER_FRAME) + varint(0))
    assert isinstance(most, dict)
    assert len(most["events"]) == MAX_EVENTS_PER_FRAME
    assert outcome(codec, HEADER + varint(MAX_EVENTS_PER_FRAME + 1) + varint(0)) == "too_large"
    assert outcome(codec, HEADER + varint(MAX_EVENTS_PER_FRAME) + varint(1) + varint(0)) == "too_large"
    assert outcome(codec, HEADER + varint(2**62) + varint(0)) == "too_large"


def test_a_frame_beyond_the_limit_is_refused_unread() -> None:
    codec, _ = BODIES["every type"]
    assert outcome(codec, bytes(MAX_FRAME_BYTES + 1)) == "too_large"
    assert outcome(codec, HEADER + bytes(MAX_FRAME_BYTES - 4)) == "trailing_bytes"


@pytest.mark.parametrize("length", range(1, 5))
def test_utf8_is_what_python_says_it_is(length: int) -> None:
    sample = random.Random(length)
    interesting = bytes.fromhex("00417f808f909fa0bfc0c1c2dfe0edeff0f4f5ff")
    for _ in range(4000):
        data = bytes(sample.choice(interesting) for _ in range(length))
        data = b"a" * sample.randrange(9) + data + b"b" * sample.randrange(9)
        try:
            data.decode()
            expected = True
        except UnicodeDecodeError:
            expected = False
        buffer = np.frombuffer(data, np.uint8)
        assert codec_kernels.is_utf8(buffer, 0, len(data)) == expected, data
