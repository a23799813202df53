"""Bodies: every format gives the same events, and every wrong input its own answer."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import fastavro
import pytest

from api.batching import Batcher
from api.bodies import BodyReader, Limits, Parsed, body_format, parse_json, read_avro, read_ndjson
from api.chains import Chains
from api.problems import Problem
from pipelines.catalogue import TOPICS
from pipelines.codec import codec_of
from pipelines.event_json import render_events

CODEC = codec_of("ledger.commands")
LIMITS = Limits(body_bytes=1 << 20, bulk_bytes=1 << 20, bulk_events=10_000, line_bytes=1000, idle_seconds=5)
EVENT_SCHEMAS = {
    schema["name"]: schema
    for found in TOPICS["ledger.commands"].schema()["fields"]
    if found["name"] == "events"
    for schema in found["type"]["items"]
}


class Pieces:
    """A stream that hands out what it is given, piece by piece; None hangs."""

    def __init__(self, *pieces: bytes | None) -> None:
        self._pieces: Iterator[bytes | None] = iter(pieces)

    async def readany(self) -> bytes:
        piece = next(self._pieces, b"")
        if piece is None:
            await asyncio.Event().wait()
        return piece or b""


def reader(*pieces: bytes | None, limit: int = 1 << 20, idle: float = 5, seen: Any = lambda piece: None) -> BodyReader:
    return BodyReader(Pieces(*pieces), limit=limit, idle_seconds=idle, seen=seen)


def transfer(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number, "debit_account_id": 1, "credit_account_id": 2, "amount": 100, "ledger": 1, "code": 1, **changes
    }  # fmt: skip


def split(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


async def ndjson(*pieces: bytes | None, limits: Limits = LIMITS) -> list[Parsed]:
    return [parsed async for parsed in read_ndjson(reader(*pieces), CODEC, "CreateTransfer", limits)]


async def avro(body: bytes, size: int = 50, allowed: tuple[str, ...] = ("CreateTransfer",)) -> list[Parsed]:
    return [parsed async for parsed in read_avro(reader(*split(body, size)), CODEC, allowed, LIMITS)]


def container(records: list[Any], schema: Any = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.writer(stream, fastavro.parse_schema(schema or EVENT_SCHEMAS["CreateTransfer"]), records, **options)
    return stream.getvalue()


DECIMALS = {found["name"] for found in EVENT_SCHEMAS["CreateTransfer"]["fields"] if isinstance(found["type"], dict)}


def avro_transfer(
    id: int = 1,  # noqa: A002 - the field
    **changes: Any,
) -> dict[str, Any]:
    record = {found["name"]: 0 for found in EVENT_SCHEMAS["CreateTransfer"]["fields"]} | transfer(id, **changes)
    return {name: Decimal(value) if name in DECIMALS else value for name, value in record.items()}


def rendered(chunks: list[Parsed]) -> list[dict[str, Any]]:
    return [event for parsed in chunks for event in render_events(CODEC, parsed.events)]


async def test_all_formats_give_the_same_events() -> None:
    records = [transfer(number, amount=2**100 + number) for number in range(1, 5)]
    array, is_array = parse_json(
        json.dumps([{**record, "amount": str(record["amount"])} for record in records]).encode(),
        CODEC, "CreateTransfer", 100,
    )  # fmt: skip
    lines = b"\n".join(json.dumps({**record, "amount": str(record["amount"])}).encode() for record in records)
    avro_records = [avro_transfer(**record) for record in records]
    assert is_array
    expected = rendered([array])
    assert [event["amount"] for event in expected] == [str(2**100 + number) for number in range(1, 5)]
    for size in (1, 7, 1000):
        assert rendered(await ndjson(*split(lines, size))) == expected
    for codec in ("null", "deflate"):
        assert rendered(await avro(container(avro_records, codec=codec))) == expected


async def test_ndjson_lists_bad_lines_and_keeps_the_good_ones() -> None:
    lines = [
        transfer(1), "not json", transfer(3, amount=-5), transfer(4, amount=1.5), transfer(5, nonsense=1),
        transfer(6, amount=2**128), {"id": 7, "flags": "linked"}, [1], transfer(9, type="CreateAccount"), transfer(10),
    ]  # fmt: skip
    body = b"\n".join(line.encode() if isinstance(line, str) else json.dumps(line).encode() for line in lines)
    [parsed] = await ndjson(body + b"\n\n")
    assert parsed.positions == [1, 10]
    found = {bad.position: [(error["pointer"], error["detail"]) for error in bad.errors] for bad in parsed.bad}
    assert list(found) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert "not JSON" in found[2][0][1]
    assert found[3] == [("/amount", "must not be negative, found -5")]
    assert "without fraction" in found[4][0][1]
    assert found[5][0][0] == "/nonsense"
    assert "no such field" in found[5][0][1]
    assert found[6][0][0] == "/amount"
    assert found[7][0][0] == "/flags"
    assert found[8][0][0] == ""
    assert found[9] == [
        ("/type", "this route takes CreateTransfer only; leave it out or use a route for several types")
    ]


def test_every_bad_field_of_an_event_is_listed_once() -> None:
    body = json.dumps({"id": -1, "ledger": 1.5, "code": "x", "extra": 1, "flags": ["nope"]}).encode()
    parsed, is_array = parse_json(body, CODEC, "CreateAccount", 10)
    assert not is_array
    assert [error["pointer"] for error in parsed.bad[0].errors] == ["/id", "/ledger", "/code", "/extra", "/flags"]


def test_a_missing_field_is_named() -> None:
    parsed, _ = parse_json(b'{"id": 1}', CODEC, "CreateAccount", 10)
    assert [error["pointer"] for error in parsed.bad[0].errors] == ["/ledger", "/code"]


@pytest.mark.parametrize(
    ("body", "slug"),
    [(b"", "empty-body"), (b"[]", "empty-body"), (b"{", "malformed-json"), (b"[1,", "malformed-json"),
     (b"\xff\xfe", "malformed-json"), (b"[" * 100_000, "malformed-json"), (b"[1,2,3]", "too-large")],
)  # fmt: skip
def test_json_that_cannot_be_read(body: bytes, slug: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_json(body, CODEC, "CreateAccount", 2)
    assert caught.value.kind.slug == slug


async def test_a_line_without_end_is_refused_before_it_fills_memory() -> None:
    seen = bytearray()
    source = read_ndjson(
        reader(*[b"x" * 500] * 10_000, limit=1 << 30, seen=seen.extend), CODEC, "CreateTransfer", LIMITS
    )
    with pytest.raises(Problem, match="longer than 1000 bytes"):
        await anext(source)
    assert len(seen) <= 1500


async def test_silence_and_size_are_bounded() -> None:
    with pytest.raises(Problem, match=r"0\.01 seconds"):
        await reader(b"x", None, idle=0.01).whole()
    with pytest.raises(Problem, match="longer than 10 bytes"):
        await reader(b"x" * 11, limit=10).whole()
    with pytest.raises(Problem, match="more than 2 events"):
        await ndjson(b"{}\n{}\n{}", limits=Limits(1000, 1000, 2, 1000, 5))


async def test_avro_reports_bad_records_and_keeps_the_good_ones() -> None:
    text = json.dumps(EVENT_SCHEMAS["CreateTransfer"])
    schema = json.loads(text.replace('"maximum": 65535', '"maximum": 2147483647'))
    body = container([avro_transfer(1), avro_transfer(2, code=70_000), avro_transfer(3), avro_transfer(4)], schema)
    [parsed] = await avro(body)
    assert parsed.positions == [0, 2, 3]
    assert [(bad.position, bad.errors[0]["reason"]) for bad in parsed.bad] == [(1, "out_of_range")]


async def test_avro_of_an_older_writer_is_projected() -> None:
    schema = json.loads(json.dumps(EVENT_SCHEMAS["CreateTransfer"]))
    schema["fields"] = [found for found in schema["fields"] if not found["name"].startswith("user_data")]
    [parsed] = await avro(container([avro_transfer(1)], schema))
    assert render_events(CODEC, parsed.events)[0]["user_data_128"] == 0


@pytest.mark.parametrize("size", [1, 4, 100])
async def test_avro_blocks_of_any_size_are_counted_through(size: int) -> None:
    chunks = await avro(container([avro_transfer(number) for number in range(1, 31)], sync_interval=size * 40), 13)
    assert [position for parsed in chunks for position in parsed.positions] == list(range(30))
    assert [event["id"] for event in rendered(chunks)] == list(range(1, 31))


GOOD_FILE = container([avro_transfer(number) for number in range(5)])


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        (b"", "empty-body"),
        (b'{"id": 1}', "malformed-avro"),
        (b"Obj\x01", "malformed-avro"),
        (GOOD_FILE[:-5], "malformed-avro"),
        (GOOD_FILE[:-1] + b"\0", "malformed-avro"),
        (b"Obj\x01" + b"\xff" * 12, "malformed-avro"),
        (b"Obj\x01\x02\x16avro.schema\xfe\xff\xff\xff\x7f", "malformed-avro"),
        (container([{"x": 1}], {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "int"}]}),
         "invalid-event"),
        (container(["x"], "string"), "invalid-event"),
        (container([avro_transfer(1)], codec="bzip2"), "unsupported-media-type"),
    ],
    ids=["empty", "json", "magic", "cut", "wrong-sync", "bad-count", "huge-count", "other-record", "text", "bzip2"],
)  # fmt: skip
async def test_avro_that_cannot_be_read(body: bytes, slug: str) -> None:
    with pytest.raises(Problem) as caught:
        await avro(body)
    assert caught.value.kind.slug == slug


async def test_a_deflate_bomb_is_refused() -> None:
    bomb = container([avro_transfer(1, user_data_32=0)] * 60_000, codec="deflate", sync_interval=10_000_000)
    assert len(bomb) < 200_000
    with pytest.raises(Problem, match="inflates to more than"):
        await avro(bomb, 10_000)


async def test_hostile_avro_always_gives_a_problem_or_events() -> None:
    statuses: set[int] = set()
    for position in range(0, len(GOOD_FILE), 3):
        for bit in (0, 6):
            body = bytearray(GOOD_FILE)
            body[position] ^= 1 << bit
            try:
                await avro(bytes(body), 1000)
            except Problem as problem:
                statuses.add(problem.status)
    assert statuses <= {400, 413, 415, 422}


@pytest.mark.parametrize(("content_type", "encoding"), [("", None), ("text/csv", None), ("application/json", "gzip")])
def test_unsupported_media_types(content_type: str, encoding: str | None) -> None:
    with pytest.raises(Problem) as caught:
        body_format(content_type, encoding)
    assert caught.value.status == 415


def test_media_types_may_have_parameters() -> None:
    assert body_format("application/JSON; charset=utf-8", None) == "json"


class _Sender:
    def send(self, *arguments: Any) -> None:
        raise AssertionError("nothing is sent here")


BATCHER = Batcher(
    CODEC, _Sender(), shards=4, frame_events=100, frame_bytes=65536, frames_in_flight=1, linger_seconds=0,
    buffered_events=1,
)  # fmt: skip


def chains() -> Chains:
    return Chains(CODEC, BATCHER.linked, lambda events: events.rows[:, 16] % 4)


async def feed(lines: list[dict[str, Any] | str], chunk: int) -> tuple[list[int], dict[int, str]]:
    """Ids sent and lines refused, when a body comes in chunks of so many lines."""
    keeper = chains()
    sent: list[int] = []
    refused: dict[int, str] = {}
    for start in range(0, len(lines), chunk):
        part = lines[start : start + chunk]
        body = b"\n" * start + b"\n".join(x.encode() if isinstance(x, str) else json.dumps(x).encode() for x in part)
        for parsed in await ndjson(body):
            for ready in (keeper.feed(parsed), *([keeper.finish()] if start + chunk >= len(lines) else [])):
                sent += [event["id"] for event in render_events(CODEC, ready.events)]
                assert len(ready.positions) == len(ready.events)
                refused |= {bad.position: bad.errors[0]["detail"] for bad in ready.bad}
    return sent, refused


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
async def test_a_chain_with_a_bad_event_is_refused_whole(chunk: int) -> None:
    linked = {"flags": ["linked"]}
    sent, refused = await feed(
        [transfer(1), transfer(2, **linked), transfer(3, amount=-1, **linked), transfer(4), transfer(5),
         transfer(6, **linked), transfer(7), '{"id": 8, "flags": ["linked"]', transfer(9), transfer(10)],
        chunk,
    )  # fmt: skip
    assert sent == [1, 5, 6, 7, 10]
    assert sorted(refused) == [2, 3, 4, 8, 9]
    assert refused[2] == refused[4] == refused[9] == "another event of its linked chain was refused"


@pytest.mark.parametrize("chunk", [1, 2, 100])
async def test_a_chain_across_shards_is_refused(chunk: int) -> None:
    sent, refused = await feed(
        [transfer(1, flags=["linked"]), transfer(2, ledger=2), transfer(3, flags=["linked"]), transfer(4, ledger=5)],
        chunk,
    )
    assert sent == [3, 4]
    assert list(refused) == [1, 2]
    assert "one shard" in refused[1]


@pytest.mark.parametrize("chunk", [1, 2, 100])
async def test_a_chain_left_open_by_the_body_is_sent_for_the_ledger_to_answer(chunk: int) -> None:
    sent, refused = await feed([transfer(1), transfer(2, flags=["linked"]), transfer(3, flags=["linked"])], chunk)
    assert (sent, refused) == ([1, 2, 3], {})
