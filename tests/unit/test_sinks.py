"""The sinks' own logic, without servers: taking turns, bisecting, counting poison, and what compiled code writes."""

from __future__ import annotations

import random
import struct
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import ClassVar

import numpy as np
import pytest
from cassandra import ConsistencyLevel
from cassandra.cqltypes import IntegerType
from cassandra.protocol import BatchMessage, ProtocolHandler
from cassandra.query import BatchType
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import Transformer
from psycopg.types.numeric import NumericBinaryLoader

from infra.registry import RegistryError, SchemaNotRegistered
from jobs.sinks import ledger_rows
from jobs.sinks.base import (
    Addition,
    Position,
    Refusal,
    Refused,
    SequenceBroken,
    Sink,
    StoreUnavailable,
    TooManyDeadLetters,
)
from jobs.sinks.copy_binary import INT4, INT8, U64, U128, Column, CopyTable
from jobs.sinks.cql_batches import BatchesHandler, EncodedBatch, EncodedRows, encode, in_batches
from jobs.sinks.cql_values import BIGINT, INT, VARINT_U64, VARINT_U128, serialize
from jobs.sinks.records import MAX_REWINDS, RecordReader, ShardOrder, Verdict
from jobs.sinks.statements import encode_statements, statement_rows
from jobs.sinks.worker import DeadLetterLimit
from pipelines.catalogue import LEDGER_EVENTS, Topic
from pipelines.codec import codec_of, signed
from pipelines.errors import FrameError
from pipelines.event_json import parse_events
from pipelines.frames import Events, Frame
from pipelines.wire import wrap

U64_VALUES = st.integers(0, 2**64 - 1)
U128_VALUES = st.one_of(st.integers(0, 2**128 - 1), st.integers(0, 38).map(lambda power: 10**power), st.just(2**127))


# --- order -----------------------------------------------------------------------------------------------------------


def advance(order: ShardOrder, offset: int, sequence: int | None) -> Verdict:
    verdict = order.judge(offset, sequence)
    if verdict in (Verdict.APPLY, Verdict.REPEATED):
        order.advance(offset, sequence, verdict)
    return verdict


def test_frames_are_applied_in_turn_and_repeats_only_move_the_offset() -> None:
    order = ShardOrder(Position(2, next_offset=10, sequence=7))
    assert advance(order, 9, 7) is Verdict.PASSED
    assert advance(order, 10, 8) is Verdict.APPLY
    assert advance(order, 11, 7) is Verdict.REPEATED
    assert advance(order, 12, 8) is Verdict.REPEATED
    assert advance(order, 13, 9) is Verdict.APPLY
    assert order.position == Position(2, next_offset=14, sequence=9)


def test_a_gap_at_the_position_is_an_alarm() -> None:
    order = ShardOrder(Position(2, next_offset=10, sequence=7))
    with pytest.raises(SequenceBroken, match=r"partition 2, offset 10: sequence 10 follows 7; 2 frame\(s\)"):
        order.judge(10, 10)


def test_a_record_from_further_on_sends_the_consumer_back() -> None:
    order = ShardOrder(Position(2, next_offset=10, sequence=7))
    assert order.judge(12, 10) is Verdict.REWIND
    assert order.judge(11, None) is Verdict.REWIND
    assert order.judge(12, 8) is Verdict.REWIND
    order.rewinds += 1
    assert order.judge(12, 8) is Verdict.APPLY  # nothing readable is missing before it
    order.rewinds = MAX_REWINDS
    with pytest.raises(SequenceBroken, match="the record at offset 10 is missing"):
        order.judge(12, 9)


def test_each_unreadable_record_may_hide_one_sequence() -> None:
    order = ShardOrder(Position(0))
    assert advance(order, 0, 1) is Verdict.APPLY
    assert advance(order, 1, None) is Verdict.APPLY
    assert advance(order, 2, None) is Verdict.APPLY
    assert order.position == Position(0, next_offset=3, sequence=1, unreadable_records=2)
    with pytest.raises(SequenceBroken):
        ShardOrder(order.position).judge(3, 5)
    assert advance(ShardOrder(order.position), 3, 4) is Verdict.APPLY  # both were frames
    assert advance(order, 3, 2) is Verdict.APPLY  # neither was
    assert order.position == Position(0, next_offset=4, sequence=2)
    with pytest.raises(SequenceBroken):
        order.judge(4, 4)


# --- bisection -------------------------------------------------------------------------------------------------------


class MemorySink(Sink):
    """Keeps word 1 of each event; refuses the numbers it is told to, and those whose predecessor is missing."""

    name = "memory"
    topic: ClassVar[Topic] = LEDGER_EVENTS
    web_port_offset = 9

    def __init__(self, refuse: Collection[int] = (), needs: Mapping[int, int] | None = None) -> None:
        super().__init__()
        self.refuse = set(refuse)
        self.needs = dict(needs or {})
        self.numbers: list[int] = []
        self.position = Position(0)
        self.rehearsals = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def load_positions(self, partitions: Collection[int]) -> Mapping[int, Position]:
        return {0: self.position}

    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        self.rehearsals += rehearse
        numbers = list(self.numbers)
        for addition in additions:
            for number in addition.events.rows[:, 1].tolist():
                if number in self.refuse or self.needs.get(number, number) not in [*numbers, number]:
                    raise Refused("no", f"{number}")
                numbers.append(number)
        if not rehearse:
            assert additions[0].before == self.position
            self.numbers, self.position = numbers, additions[-1].after

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None: ...


async def flush_frames(sink: MemorySink, frames: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Adds frames and flushes; returns (sequence, event index) of what was set aside, in order."""
    position = sink.position
    for number, frame in enumerate(frames, 1):
        after = Position(0, number, number)
        rows = np.array([[1, value] for value in frame], np.int64).reshape(len(frame), 2)
        sink.add(Events(rows), position, after)
        position = after
    found: list[tuple[int, int]] = []

    async def set_aside(addition: Addition, refusals: Sequence[Refusal]) -> None:
        assert sink.position == addition.before, "the letter goes out before the position passes its record"
        found.extend((addition.after.sequence, refusal.event_index) for refusal in refusals)

    await sink.flush(set_aside)
    return found


async def test_bisection_finds_exactly_the_refused_events() -> None:
    frames = [[10, 11, 12], [], [20, 21], list(range(30, 62)), [70]]
    sink = MemorySink(refuse=[11, 30, 45, 61, 70])
    assert await flush_frames(sink, frames) == [(1, 1), (4, 0), (4, 15), (4, 31), (5, 0)]
    assert sink.numbers == [number for frame in frames for number in frame if number not in sink.refuse]
    assert sink.position == Position(0, 5, 5)


async def test_an_event_that_needs_a_refused_one_is_refused_too() -> None:
    sink = MemorySink(refuse=[2], needs={5: 2, 7: 1})
    assert await flush_frames(sink, [[1, 2, 3], [4, 5, 6, 7]]) == [(1, 1), (2, 1)]
    assert sink.numbers == [1, 3, 4, 6, 7]


async def test_a_frame_full_of_refused_events_is_set_aside_whole() -> None:
    sink = MemorySink(refuse=range(100, 1_000))
    assert await flush_frames(sink, [[1], list(range(50, 1_000)), [2]]) == [(2, -1)]
    assert sink.numbers == [1, 2]
    assert sink.position == Position(0, 3, 3)
    assert sink.rehearsals < 400


@given(st.lists(st.lists(st.integers(0, 60), max_size=12), min_size=1, max_size=8), st.sets(st.integers(0, 60)))
async def test_whatever_is_refused_the_rest_is_applied_in_order(frames: list[list[int]], refuse: set[int]) -> None:
    sink = MemorySink(refuse)
    found = await flush_frames(sink, frames)
    assert sink.numbers == [number for frame in frames for number in frame if number not in refuse]
    assert found == [
        (sequence, index)
        for sequence, frame in enumerate(frames, 1)
        for index, number in enumerate(frame)
        if number in refuse
    ]


# --- poison ----------------------------------------------------------------------------------------------------------


def test_the_limit_counts_records_of_the_window_once() -> None:
    limit = DeadLetterLimit(0.1, 20)
    for _ in range(3):
        limit.count(0, 5, "bad")
    limit.count(1, 5, "bad")
    limit.passed(20)
    limit.count(0, 6, "bad")  # the first two have left the window
    limit.count(0, 7, "bad")
    with pytest.raises(TooManyDeadLetters, match=r"3 of the last 20 records .* partition 0, offset 8: bad"):
        limit.count(0, 8, "bad")


def events_of(*records: dict[str, object]) -> Events:
    return parse_events(codec_of(LEDGER_EVENTS.name), list(records))


def encoded(shard: int, sequence: int, events: Events) -> bytes:
    return codec_of(LEDGER_EVENTS.name).encode(Frame(LEDGER_EVENTS.name, shard, sequence, 1, None, events))


async def test_an_unreachable_registry_is_not_an_unreadable_record() -> None:
    calls = []

    def lookup(schema_id: int) -> dict[str, object]:
        calls.append(schema_id)
        if len(calls) == 1:
            raise RegistryError("away")
        if schema_id == 9:
            raise SchemaNotRegistered("unknown id 9")
        return LEDGER_EVENTS.schema() if schema_id == 7 else {"type": "record", "name": "Other", "fields": []}

    reader = RecordReader(LEDGER_EVENTS, lookup)
    value = wrap(7, encoded(3, 1, events_of()))
    with pytest.raises(StoreUnavailable):
        await reader.read(value, 3)
    assert (await reader.read(value, 3)).sequence == 1
    await reader.read(value, 3)
    assert calls == [7, 7]  # looked up once when it could be
    for bad, partition, reason in (
        (wrap(9, encoded(3, 1, events_of())), 3, "unknown_schema"),
        (wrap(8, encoded(3, 1, events_of())), 3, "wrong_schema"),
        (value, 2, "wrong_shard"),
        (wrap(7, encoded(3, 0, events_of())), 3, "no_sequence"),
        (b"", 3, "empty"),
    ):
        with pytest.raises(FrameError) as caught:
            await reader.read(bad, partition)
        assert caught.value.reason == reason


# --- rows ------------------------------------------------------------------------------------------------------------

TRANSFER = {"type": "TransferCreated", "ledger": 1, "code": 1, "amount": 1}
NO_BALANCES = {
    f"{side}_account_{balance}": 0
    for side in ("debit", "credit")
    for balance in ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
}


def transfer(
    identity: int, debit: int, credit: int, debited: int, credited: int, **fields: object
) -> dict[str, object]:
    posted = {"debit_account_debits_posted": debited, "credit_account_credits_posted": credited}
    accounts = {"id": identity, "debit_account_id": debit, "credit_account_id": credit}
    return {**TRANSFER, **NO_BALANCES, **accounts, **posted, "timestamp": identity, **fields}


def addition_of(shard: int, sequence: int, *records: dict[str, object]) -> Addition:
    return Addition(events_of(*records), Position(shard), Position(shard, sequence, sequence))


def test_account_changes_keep_the_last_event_of_each_account() -> None:
    big = 2**64 + 5
    rows = ledger_rows.gather(
        [
            addition_of(0, 1, transfer(1, 5, big, 10, 20), transfer(2, big, 5, 30, 40)),
            addition_of(1, 1, transfer(1, 5, 6, 1, 2)),
            addition_of(0, 2, transfer(3, 5, 7, 50, 60, debit_account_flags=["closed"])),
        ]
    )
    changes = ledger_rows.account_changes(rows)
    found = {
        (row[0], row[1] + (row[2] << 64)): tuple(row[ledger_rows.CHANGE_BALANCES :: 2][:4]) + tuple(row[11:])
        for row in changes.tolist()
    }
    assert found == {
        (0, 5): (0, 50, 0, 0, 32, 2, 0),
        (0, 7): (0, 0, 0, 60, 0, 2, 0),
        (0, big): (0, 30, 0, 0, 0, 1, 1),
        (1, 5): (0, 1, 0, 0, 0, 1, 0),
        (1, 6): (0, 0, 0, 2, 0, 1, 0),
    }


def test_events_set_aside_keep_the_places_of_the_others() -> None:
    addition = addition_of(0, 1, *(transfer(number, 5, 6, number, number) for number in range(1, 5)))
    rows = ledger_rows.gather([addition.without({1})])
    assert rows[:, ledger_rows.EVENT_INDEX].tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("time", "month"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 197001),
        (datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC), 202402),
        (datetime(2024, 12, 31, 23, 59, 59, tzinfo=UTC), 202412),
        (datetime(2025, 1, 1, tzinfo=UTC), 202501),
    ],
)
def test_a_statement_has_a_row_per_side_in_the_month_of_the_timestamp(time: datetime, month: int) -> None:
    nanoseconds = int(time.timestamp()) * 10**9 + 999_999_999
    addition = addition_of(3, 8, transfer(1, 5, 6, 10, 20, timestamp=nanoseconds))
    encoded = encode_statements(statement_rows(ledger_rows.gather([addition])), QUERY)
    debit, credit = sorted(queries(encoded.data), key=lambda row: row[2])
    assert sorted(encoded.keys) == sorted([row[0], row[2], row[1]] for row in (debit, credit))
    assert debit[:5] == [
        struct.pack(">i", 3),
        struct.pack(">i", month),
        b"\x05",
        struct.pack(">q", nanoseconds),
        b"\x01",
    ]
    assert (debit[5], credit[2], credit[5]) == (b"\x06", b"\x06", b"\x05")
    assert debit[-3:] == [struct.pack(">q", 8), b"transfer", b"debit"]
    assert credit[-3:] == [struct.pack(">q", 8), b"transfer", b"credit"]


def test_the_statement_rows_of_an_account_lie_together_newest_first() -> None:
    times = [datetime(2024, 1, day, tzinfo=UTC).timestamp() * 10**9 for day in (1, 2, 3)]
    events = [
        transfer(number, *sides, number, number, timestamp=int(times[number]))
        for number, sides in ((0, (5, 6)), (1, (6, 5)), (2, (5, 7)))
    ]
    encoded = encode_statements(statement_rows(ledger_rows.gather([addition_of(3, 8, *events)])), QUERY)
    found = [[(row[2], row[3]) for row in queries(part)] for part in partitions_of(encoded)]
    place = [struct.pack(">q", int(time)) for time in times]
    assert sorted(found) == [
        [(b"\x05", place[2]), (b"\x05", place[1]), (b"\x05", place[0])],
        [(b"\x06", place[1]), (b"\x06", place[0])],
        [(b"\x07", place[2])],
    ]


# --- bytes -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(U128_VALUES, U64_VALUES, st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1)), max_size=5))
def test_copy_stream_is_what_postgres_reads(rows: list[tuple[int, int, int, int]]) -> None:
    table = CopyTable(Column("a", U128, 0), Column("b", U64, 2), Column("c", INT4, 3), Column("d", INT8, 4))
    words = [[signed(a & (2**64 - 1)), signed(a >> 64), signed(b), c, d] for a, b, c, d in rows]
    stream = table.encode(np.array(words, np.int64).reshape(len(rows), 5))
    assert stream[:19] == b"PGCOPY\n\xff\r\n\x00" + bytes(8)
    numeric = NumericBinaryLoader(0, Transformer())
    position = 19
    for row in rows:
        assert struct.unpack_from(">h", stream, position) == (4,)
        position += 2
        values = []
        for column in range(4):
            (length,) = struct.unpack_from(">i", stream, position)
            field = stream[position + 4 : position + 4 + length]
            values.append(int(numeric.load(field)) if column < 2 else int.from_bytes(field, "big"))
            position += 4 + length
        assert tuple(values) == row
    assert stream[position:] == b"\xff\xff"


@given(st.lists(st.tuples(U128_VALUES, U64_VALUES, st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1)), max_size=5))
def test_cql_values_are_what_the_driver_writes(rows: list[tuple[int, int, int, int]]) -> None:
    kinds = np.array([VARINT_U128, VARINT_U64, INT, BIGINT], np.int64)
    words = [[signed(a & (2**64 - 1)), signed(a >> 64), signed(b), c, d] for a, b, c, d in rows]
    values = serialize(np.array(words, np.int64).reshape(len(rows), 5), kinds)
    assert values == [
        [
            IntegerType.serialize(a, 5),
            IntegerType.serialize(b, 5),
            struct.pack(">i", c),
            struct.pack(">q", d),
        ]
        for a, b, c, d in rows
    ]


# --- batches ---------------------------------------------------------------------------------------------------------

QUERY = b"sixteen bytes id"


def queries(data: bytes) -> list[list[bytes]]:
    """The values of each execution of `QUERY` in the body of a BATCH message (CQL native protocol 5, section 4.1.7)."""
    found, position = [], 0
    while position < len(data):
        prepared, length, query, count = struct.unpack_from(">BH16sH", data, position)
        assert (prepared, length, query) == (1, 16, QUERY)
        position += struct.calcsize(">BH16sH")
        values = []
        for _ in range(count):
            (size,) = struct.unpack_from(">i", data, position)
            values.append(data[position + 4 : position + 4 + size])
            position += 4 + size
        found.append(values)
    return found


def partitions_of(encoded: EncodedRows) -> list[bytes]:
    return [
        encoded.data[encoded.ends[first] : encoded.ends[end]]
        for first, end in zip(encoded.partitions, encoded.partitions[1:], strict=False)
    ]


def sent(batch: EncodedBatch) -> bytes:
    message = BatchMessage(batch.batch_type, batch._statements_and_parameters, ConsistencyLevel.LOCAL_QUORUM, None, 7)
    return bytes(BatchesHandler.encode_message(message, 3, 5, None, False))


@pytest.mark.parametrize("owners", [1, 3])
def test_batches_hold_a_partition_or_a_few_and_are_what_the_driver_would_send(owners: int) -> None:
    """A few partitions of 1 to 400 rows, mixed, 40 to 1,000 bytes each; and one row larger than a batch should be."""
    chance = random.Random(owners)
    rows = [
        [key.to_bytes(4), number.to_bytes(4), b"v" * chance.choice((5, 40, 900))]
        for key, count in enumerate([*[1] * 40, *[3] * 20, 60, 400, 1])
        for number in range(count)
    ]
    rows[-1][2] = b"v" * 200_000
    chance.shuffle(rows)

    def owner_of(key: Sequence[bytes]) -> int:
        return key[0][-1] % owners

    batches = list(in_batches(encode(rows, QUERY, [0]), "ks", 1, owner_of if owners > 1 else None))
    written = []
    for batch in batches:
        found = queries(batch._statements_and_parameters.data)
        written += found
        as_driver = BatchMessage(
            BatchType.UNLOGGED, [(True, QUERY, row) for row in found], ConsistencyLevel.LOCAL_QUORUM, None, 7
        )
        assert sent(batch) == ProtocolHandler.encode_message(as_driver, 3, 5, None, False)
        keys = {row[0] for row in found}
        size = sum(len(value) for row in found for value in row) + 16 * len(found)
        assert len(keys) == 1 or (len(keys) <= 10 and size <= 5 * 1024)
        assert size <= 128 * 1024 or len(found) == 1
        assert len({owner_of([key]) for key in keys}) == 1
        assert (batch.routing_key in keys) == (owners > 1)
    assert sorted(written) == sorted(rows)
    of_key = {key: [row for row in rows if row[0] == key] for key in {row[0] for row in rows}}
    assert all([row for row in written if row[0] == key] == own for key, own in of_key.items())  # in order
    assert len(batches) < 50
