"""Frames from NDJSON and Avro containers: what is read, and which line or record is to blame."""

from __future__ import annotations

import io
import json
import zlib
from typing import Any

import fastavro
import pytest

from pipelines import event_files
from pipelines.codec import codec_of
from pipelines.event_files import InputError, InputFrame, read_frames, read_ndjson
from pipelines.event_json import render_events
from tests.support.avro_frames import as_decimal, items_of, oracle_schema

COMMANDS = codec_of("ledger.commands")
ACCOUNT: dict[str, Any] = {"type": "CreateAccount", "id": 1, "ledger": 7, "code": 1}
TRANSFER: dict[str, Any] = {"type": "CreateTransfer", "id": str(2**100), "amount": 5, "ledger": 7, "code": 1}


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read(data: bytes) -> list[InputFrame]:
    return list(read_frames(io.BytesIO(data), COMMANDS))


def ids(frame: InputFrame) -> list[Any]:
    return [event["id"] for event in render_events(COMMANDS, frame.events)]


def test_a_line_is_a_frame_or_a_lone_event() -> None:
    frames = read(
        lines({"produced_at": 12, "shard": 3, "events": [ACCOUNT, TRANSFER]}, ACCOUNT)
        + b"\n  \n"
        + lines({"events": []}, TRANSFER | {"produced_at": "99"})[:-1]
    )
    assert [(frame.position, ids(frame)) for frame in frames] == [
        (1, [1, str(2**100)]),
        (2, [1]),
        (5, []),
        (6, [str(2**100)]),
    ]
    assert [(frame.produced_at, frame.shard) for frame in frames] == [(12, 3), (None, None), (None, None), (99, None)]


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        (b"{", "", "not JSON"),
        (b"\xff", "", "not JSON"),
        (b"[" * 100_000, "", "not JSON"),
        (b"5", "frame", "must be an object"),
        (b"{}", "type", "CreateAccount"),
        (lines(ACCOUNT | {"code": -1}), "code", "negative"),
        (lines({"events": [ACCOUNT, ACCOUNT | {"code": -1}]}), "events[1].code", "negative"),
        (lines({"events": {}}), "events", "a list"),
        (lines({"events": [], "colour": 1}), "colour", "no such field"),
        (lines({"events": [], "produced_at": -1}), "produced_at", "between 0"),
        (lines({"events": [], "produced_at": 1.5}), "produced_at", "between 0"),
        (lines({"events": [], "shard": 2**31}), "shard", "between 0"),
        (lines({"events": [], "trace": 5}), "trace", "a string"),
        (lines(ACCOUNT | {"colour": 1}), "colour", "no such field"),
    ],
)
def test_the_line_and_the_field_are_named(line: bytes, field: str, message: str) -> None:
    frames = read_frames(io.BytesIO(lines(ACCOUNT) + b"\n" + line), COMMANDS)
    assert ids(next(frames)) == [1]
    with pytest.raises(InputError, match=message) as error:
        next(frames)
    assert (error.value.position, error.value.field) == (3, field)


def test_a_line_that_never_ends_is_refused() -> None:
    with pytest.raises(InputError, match="longer than 100 bytes"):
        list(read_ndjson(io.BytesIO(b" " * 101), COMMANDS, max_line_bytes=100))


def test_an_empty_file_has_no_frames() -> None:
    assert read(b"") == []


def test_a_file_shorter_than_the_magic_is_ndjson() -> None:
    with pytest.raises(InputError, match="must be an object"):
        read(b"5")


# --- Avro -------------------------------------------------------------------------------------------------------------

PARSED: Any = oracle_schema(COMMANDS.schema)
ITEMS: Any = items_of(PARSED)


def account(number: int) -> dict[str, Any]:
    zero = as_decimal(0, 0)
    return {
        "id": as_decimal(number, 0), "ledger": 7, "code": 1, "flags": 0,
        "user_data_128": zero, "user_data_64": zero, "user_data_32": 0, "timestamp": 0,
    }  # fmt: skip


def named(number: int) -> tuple[str, dict[str, Any]]:
    return "streambank.ledger.CreateAccount", account(number)


def container(schema: Any, records: list[Any], codec: str = "null", **options: Any) -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, schema, records, codec=codec, sync_marker=b"0123456789abcdef", **options)
    return out.getvalue()


@pytest.mark.parametrize("codec", ["null", "deflate"])
@pytest.mark.parametrize("sync_interval", [1, 16_000])
def test_a_container_of_frames(codec: str, sync_interval: int) -> None:
    values = [
        {"shard": shard, "sequence": 0, "produced_at": 50 + shard, "trace": "t", "events": [named(7)] * shard}
        for shard in range(4)
    ]
    frames = read(container(PARSED, values, codec, sync_interval=sync_interval))
    assert [(frame.position, frame.shard, frame.produced_at, frame.trace) for frame in frames] == [
        (1 + shard, shard, 50 + shard, "t") for shard in range(4)
    ]
    assert [ids(frame) for frame in frames] == [[], [7], [7, 7], [7, 7, 7]]


@pytest.mark.parametrize("codec", ["null", "deflate"])
@pytest.mark.parametrize("sync_interval", [1, 16_000])
def test_a_container_of_events(codec: str, sync_interval: int) -> None:
    for schema, records in ((ITEMS, [named(n) for n in range(1, 6)]), (ITEMS[0], [account(n) for n in range(1, 6)])):
        frames = read(container(schema, records, codec, sync_interval=sync_interval))
        assert [(frame.position, ids(frame)) for frame in frames] == [(n, [n]) for n in range(1, 6)]


def test_a_container_of_events_with_another_schema_is_projected() -> None:
    schema = {
        "type": "record",
        "name": "CreateAccount",
        "fields": [
            {"name": "comment", "type": "string"},
            {"name": "code", "type": "int"},
            {"name": "ledger", "type": "int"},
            {"name": "id", "type": {"type": "bytes", "logicalType": "decimal", "precision": 39, "scale": 0}},
        ],
    }
    records = [{"comment": "x" * n, "code": 1, "ledger": 7, "id": as_decimal(n, 0)} for n in range(1, 4)]
    frames = read(container(schema, records))
    assert [ids(frame) for frame in frames] == [[1], [2], [3]]
    assert render_events(COMMANDS, frames[0].events)[0]["flags"] == []


def test_an_empty_container_has_no_frames() -> None:
    assert read(container(PARSED, [])) == []


def test_containers_that_do_not_fit_are_refused() -> None:
    other = {"type": "record", "name": "CreateOrder", "fields": [{"name": "id", "type": "long"}]}
    with pytest.raises(InputError, match=r"does not fit ledger\.commands"):
        read(container(other, [{"id": 1}]))
    with pytest.raises(InputError, match="does not fit"):
        read(container("long", [1]))
    with pytest.raises(InputError, match="bzip2"):
        read(container(ITEMS[0], [account(1)], "bzip2"))
    bad_code = account(1) | {"code": -1}
    with pytest.raises(InputError, match="record 1: out_of_range"):
        read(container(ITEMS[0], [bad_code]))


def test_a_container_is_refused_wherever_it_is_cut() -> None:
    whole = container(ITEMS, [named(1), named(2)], sync_interval=1)
    complete = [length for length in range(len(whole) + 1) if _reads(whole[:length])]
    # Nothing, the header alone, the first block, both.
    assert len(complete) == 4
    assert complete[-1] == len(whole)


def test_damaged_containers_give_an_error_or_frames() -> None:
    for codec in ("null", "deflate"):
        whole = container(ITEMS, [named(1), named(2)], codec)
        header = len(container(ITEMS, [], codec))
        # Most of the header is the schema, where a sample is enough.
        for position in (*range(4, header, 29), *range(header, len(whole))):
            for mask in (0x01, 0x80, 0xFF):
                damaged = bytearray(whole)
                damaged[position] ^= mask
                _reads(bytes(damaged))


def test_a_block_that_inflates_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_files, "MAX_BLOCK_BYTES", 10_000)
    empty = container(ITEMS, [], "deflate")
    squeezer = zlib.compressobj(wbits=-15)
    bomb = squeezer.compress(bytes(1_000_000)) + squeezer.flush()
    block = event_files._long(1) + event_files._long(len(bomb)) + bomb + b"0123456789abcdef"
    with pytest.raises(InputError, match="inflates to more than 10000 bytes"):
        read(empty + block)


def _reads(data: bytes) -> bool:
    try:
        read(data)
    except InputError:
        return False
    return True
