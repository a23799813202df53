"""A shard between encoded records: numbering, repeated and missing inputs, bad records, restored and upcast state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from jobs.inprocess import InProcess, default_schema_ids
from pipelines.catalogue import LEDGER_DEAD_LETTERS, LEDGER_EVENTS, LEDGER_RESULTS, PIPELINES, Pipeline
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import FrameError, StateVersionError
from pipelines.frames import Events, Frame
from pipelines.kernel import InvariantBroken, Kernel, Output
from pipelines.ledger.kernel import LedgerKernel
from pipelines.shard import SHARD_PAGE, SequenceGap, Shard
from pipelines.wire import unwrap, wrap
from tests.support.ledger_frames import COMMANDS, account, command_frame, transfer

LEDGER = PIPELINES["ledger"]
IDS = {"ledger.results": 21, "ledger.events": 22}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ledger_shard(number: int = 0) -> Shard:
    return Shard(LEDGER, number, IDS, kernel=LedgerKernel(max_accounts=1 << 12, max_transfers=1 << 12))


def record(commands: list[dict[str, Any]], shard: int = 0, trace: str | None = TRACE) -> bytes:
    frame = command_frame(commands, produced_at=1_700_000_000_000_000, shard=shard)
    return wrap(7, COMMANDS.encode(Frame(frame.topic, shard, 0, frame.produced_at, trace, frame.events)))


def test_each_frame_gives_one_numbered_record_per_output_topic() -> None:
    shard = ledger_shard(3)
    for sequence in (1, 2, 3):
        outputs = shard.apply("ledger.commands", record([account(sequence)] if sequence != 2 else [], 3))
        assert [(output.topic, output.shard, output.sequence) for output in outputs] == [
            ("ledger.results", 3, sequence),
            ("ledger.events", 3, sequence),
        ]
        for output in outputs:
            schema_id, body = unwrap(output.value)
            frame = codec_of(output.topic).decode(body)
            assert schema_id == IDS[output.topic]
            assert (frame.shard, frame.sequence, frame.trace) == (3, sequence, TRACE)
            assert frame.produced_at == 1_700_000_000_000_000
            assert len(frame.events) == (sequence != 2)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty"),
        (b'{"json": 1}', "not_avro"),
        (b"\0\0\0", "too_short"),
        (record([account(1)])[:20], "truncated"),
        (record([account(1)]) + b"\0", "trailing_bytes"),
        (record([account(1)], shard=1), "wrong_shard"),
        (record([account(1)] * 2_001), "too_many_events"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_records_are_refused_and_change_nothing(value: bytes, reason: str) -> None:
    shard = ledger_shard()
    with pytest.raises(FrameError) as refused:
        shard.apply("ledger.commands", value)
    assert refused.value.reason == reason
    assert (shard.dirty_bytes(), shard.dirty_pages()) == (0, {})
    assert shard.apply("ledger.commands", record([]))[0].sequence == 1


def test_largest_frame_fits_a_kafka_record() -> None:
    """As many transfers as a frame may have, every number as long as it gets, and a full share of expiries."""
    shard = ledger_shard()
    big = 2**127
    shard.apply("ledger.commands", record([account(big), account(big + 1), account(big + 2)]))
    shard.apply(
        "ledger.commands",
        record([transfer(big + n, big, big + 1, big // 1_000, flags=["pending"], timeout=1) for n in range(500)]),
    )
    fields: dict[str, Any] = {
        "user_data_128": big,
        "user_data_64": 2**64 - 1,
        "user_data_32": 2**32 - 1,
        "code": 65_535,
    }
    frame = command_frame(
        [transfer(big + 1_000 + n, big, big + 1, big // 10_000, **fields) for n in range(2_000)], 1_700_000_002_000_000
    )
    outputs = shard.apply_frame(frame)
    assert len(codec_of("ledger.events").decode(unwrap(outputs[1].value)[1]).events) == 2_500
    assert max(len(output.value) for output in outputs) < 1_000_000


def test_unknown_topic_and_missing_schema_ids_are_programming_errors() -> None:
    with pytest.raises(ValueError, match="not an input"):
        ledger_shard().apply("ledger.results", record([]))
    with pytest.raises(ValueError, match=r"no schema id for ledger\.events"):
        Shard(LEDGER, 0, {"ledger.results": 1})


def test_reader_is_asked_by_topic_and_schema_id() -> None:
    asked = []

    def reader(topic: str, schema_id: int) -> FrameCodec:
        asked.append((topic, schema_id))
        return codec_of(topic)

    Shard(LEDGER, 0, IDS, reader).apply("ledger.commands", record([]))
    assert asked == [("ledger.commands", 7)]


def test_restored_shard_goes_on_with_the_next_sequence() -> None:
    shard, stored = ledger_shard(), {}
    for number in range(1, 6):
        shard.apply("ledger.commands", record([account(number)]))
        stored |= shard.dirty_pages()
    restored = ledger_shard()
    assert restored.restore(stored) is False
    assert restored.dirty_pages() == {}
    value = record([transfer(9, 1, 2, 3)])
    assert restored.apply("ledger.commands", value) == shard.apply("ledger.commands", value)


def test_state_of_another_shard_or_a_newer_version_is_refused() -> None:
    shard = ledger_shard()
    shard.apply("ledger.commands", record([account(1)]))
    pages = shard.dirty_pages()
    with pytest.raises(StateVersionError, match=r"ledger shard 0 .* given to ledger shard 1"):
        ledger_shard(1).restore(pages)
    with pytest.raises(StateVersionError, match="but not 'shard'"):
        ledger_shard().restore({key: page for key, page in pages.items() if key != SHARD_PAGE})
    own = json.loads(pages[SHARD_PAGE]) | {"state_version": 2}
    with pytest.raises(StateVersionError, match="version 2 is newer than this code's 1"):
        ledger_shard().restore(pages | {SHARD_PAGE: json.dumps(own).encode()})
    assert ledger_shard().restore({}) is False


class Total:
    """Counts the events of ledger.results; its state was the number of pairs before version 2."""

    state_version = 2

    def __init__(self) -> None:
        self.total = 0
        self._dirty = False

    def apply(self, frame: Frame) -> list[Output]:
        self.total += len(frame.events)
        self._dirty = True
        rows = codec_of("ledger.events").new_rows(1)
        rows[0, 1] = self.total
        return [Output("ledger.events", Events(rows))]

    def dirty_pages(self) -> dict[str, bytes]:
        pages = {"total": self.total.to_bytes(8, "little")} if self._dirty else {}
        self._dirty = False
        return pages

    def dirty_bytes(self) -> int:
        return 8 * self._dirty

    def restore(self, pages: Mapping[str, bytes], state_version: int) -> None:
        if state_version == 1:
            self.total = 2 * int.from_bytes(pages["pairs"], "little")
            self._dirty = True
        elif state_version == 2:
            self.total = int.from_bytes(pages["total"], "little")
        else:
            raise StateVersionError(f"version {state_version}")

    def state_rows(self) -> Iterator[dict[str, Any]]:
        yield {"total": self.total}


TOTAL = Pipeline(
    "total", "tests.unit.test_shard:Total", (LEDGER_RESULTS,), (LEDGER_EVENTS,), LEDGER_EVENTS, LEDGER_DEAD_LETTERS, 4,
    2_000, "For the tests.",
)  # fmt: skip


def numbered(sequence: int, events: int = 1) -> bytes:
    codec = codec_of("ledger.results")
    return wrap(1, codec.encode(Frame("ledger.results", 0, sequence, 5, None, Events(codec.new_rows(events)))))


def test_numbered_inputs_are_applied_once_and_in_order() -> None:
    shard = Shard(TOTAL, 0, {"ledger.events": 1})
    assert len(shard.apply("ledger.results", numbered(4))) == 1
    assert len(shard.apply("ledger.results", numbered(5))) == 1
    for repeat in (3, 4, 5):
        assert shard.apply("ledger.results", numbered(repeat)) == []
    with pytest.raises(SequenceGap, match="sequence 8 follows 5; 2 frames are missing"):
        shard.apply("ledger.results", numbered(8))
    with pytest.raises(FrameError, match="not_numbered"):
        shard.apply("ledger.results", numbered(0))
    restored = Shard(TOTAL, 0, {"ledger.events": 1})
    restored.restore(shard.dirty_pages())
    assert restored.apply("ledger.results", numbered(5)) == []
    assert restored.apply("ledger.results", numbered(6))[0].sequence == 3
    assert list(restored.kernel.state_rows()) == [{"total": 3}]


def test_older_state_is_upcast_and_stored_anew() -> None:
    own = {
        "format": 1, "pipeline": "total", "shard": 0, "state_version": 1,
        "inputs": {"ledger.results": 9, "gone": 3}, "outputs": {"ledger.events": 9},
    }  # fmt: skip
    shard = Shard(TOTAL, 0, {"ledger.events": 1})
    assert shard.restore({SHARD_PAGE: json.dumps(own).encode(), "pairs": (21).to_bytes(8, "little")}) is True
    pages = shard.dirty_pages()
    assert set(pages) == {SHARD_PAGE, "total"}
    again = Shard(TOTAL, 0, {"ledger.events": 1})
    assert again.restore(pages) is False
    assert list(again.kernel.state_rows()) == [{"total": 42}]
    assert again.apply("ledger.results", numbered(10))[0].sequence == 10


class Unencodable(Total):
    def apply(self, frame: Frame) -> list[Output]:
        rows = codec_of("ledger.events").new_rows(1)
        rows[:, 0] = 99
        return [Output("ledger.events", Events(rows))]


def test_output_that_cannot_be_encoded_stops_the_job() -> None:
    """It must not look like a bad input: the state has moved on."""
    kernel: Kernel = Unencodable()
    with pytest.raises(InvariantBroken, match=r"ledger\.events cannot carry"):
        Shard(TOTAL, 0, {"ledger.events": 1}, kernel=kernel).apply("ledger.results", numbered(1))


def test_in_process_runtime_routes_by_shard() -> None:
    runtime = InProcess(LEDGER)
    for number in (2, 0, 2):
        outputs = runtime.apply(
            "ledger.commands", record([account(np.random.default_rng(number).integers(9).item() + 1)], number)
        )
        assert {output.shard for output in outputs} == {number}
    assert [output.sequence for output in outputs] == [2, 2]
    assert runtime.decode_output(outputs[0]).topic == "ledger.results"
    assert sorted(runtime.shards) == [0, 2]
    with pytest.raises(FrameError, match="wrong_shard"):
        runtime.apply("ledger.commands", record([], 1), partition=2)
    with pytest.raises(FrameError, match="wrong_shard"):
        runtime.apply("ledger.commands", record([], 4))
    assert default_schema_ids(LEDGER) == {"ledger.commands": 1, "ledger.results": 2, "ledger.events": 3}
