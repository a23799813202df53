"""Smart batching: what a request may rely on, against a sender that acknowledges when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from api.batching import Batcher, BufferFull, ChainTooLong, DeliveryError, Run, concatenate
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Events, Frame

CODEC = codec_of("ledger.commands")


@dataclass
class Sender:
    """Holds frames until the test acknowledges them."""

    frames: list[Frame] = field(default_factory=list)
    waiting: list[Callable[[int, str | None], None]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def send(self, frame: Frame, body: bytes, done: Callable[[int, str | None], None]) -> None:
        self.frames.append(frame)
        self.bodies.append(body)
        self.waiting.append(done)

    def acknowledge(self, error: str | None = None) -> None:
        self.waiting.pop(0)(len(self.frames), error)


def batcher(sender: Sender, **changes: float) -> Batcher:
    options = {
        "shards": 4, "frame_events": 100, "frame_bytes": 262_144, "frames_in_flight": 1, "linger_seconds": 60.0,
        "buffered_events": 1000,
    } | changes  # fmt: skip
    return Batcher(CODEC, sender, **options)  # type: ignore[arg-type]


def transfers(count: int, first: int = 1, flags: tuple[str, ...] = (), last_flags: tuple[str, ...] = ()) -> Events:
    records = [
        {"type": "CreateTransfer", "id": first + number, "ledger": 1, "flags": list(flags)} for number in range(count)
    ]
    records[-1]["flags"] = list(last_flags)
    return parse_events(CODEC, records)


def submit(target: Batcher, events: Events, shard: int = 1) -> list[Run]:
    runs = target.runs(shard, events)
    target.submit(runs)
    return runs


def ids(frame: Frame) -> list[int]:
    return [record["id"] for record in render_events(CODEC, frame.events)]


async def test_a_lone_event_leaves_at_once_and_is_acknowledged_after_kafka() -> None:
    sender = Sender()
    [run] = submit(batcher(sender), transfers(1))
    assert [ids(frame) for frame in sender.frames] == [[1]]
    assert not run.placed.done()
    sender.acknowledge()
    placed = await run.placed
    assert (placed.shard, placed.offset, placed.start, placed.stop) == (1, 1, 0, 1)
    assert placed.trace == sender.frames[0].trace


async def test_what_arrives_while_a_frame_is_in_flight_becomes_the_next_frame() -> None:
    sender = Sender()
    target = batcher(sender)
    runs = [submit(target, transfers(3, first=10 * number))[0] for number in range(1, 5)]
    assert len(sender.frames) == 1
    sender.acknowledge()
    assert [ids(frame) for frame in sender.frames] == [[10, 11, 12], [20, 21, 22, 30, 31, 32, 40, 41, 42]]
    sender.acknowledge()
    places = [await run.placed for run in runs]
    assert [(place.start, place.stop) for place in places] == [(0, 3), (0, 3), (3, 6), (6, 9)]
    assert len({place.trace for place in places}) == 2
    assert target.buffered_events == 0


async def test_waiting_for_company_ends_after_the_linger_time() -> None:
    sender = Sender()
    target = batcher(sender, linger_seconds=0.001, frames_in_flight=2)
    submit(target, transfers(1))
    submit(target, transfers(1, first=2))
    async with asyncio.timeout(10):
        while len(sender.frames) < 2:  # noqa: ASYNC110 - the timer of the batcher is under test
            await asyncio.sleep(0)
    assert ids(sender.frames[1]) == [2]


async def test_full_frames_do_not_wait() -> None:
    sender = Sender()
    target = batcher(sender, frames_in_flight=3, frame_events=10)
    submit(target, transfers(1))
    for number in range(2):
        submit(target, transfers(8, first=100 * (number + 1)))
    assert [len(frame.events) for frame in sender.frames] == [1, 8]


async def test_shards_have_lanes_of_their_own() -> None:
    sender = Sender()
    target = batcher(sender)
    for shard in range(4):
        submit(target, transfers(1), shard)
    assert [frame.shard for frame in sender.frames] == [0, 1, 2, 3]


@pytest.mark.parametrize("flag", ["linked", "imported"])
async def test_an_open_chain_and_imported_events_get_a_frame_of_their_own(flag: str) -> None:
    sender = Sender()
    target = batcher(sender)
    submit(target, transfers(1))
    submit(target, transfers(2, first=10))
    submit(target, transfers(2, first=20, last_flags=(flag,)))
    submit(target, transfers(2, first=30))
    for _ in range(4):
        sender.acknowledge()
    assert [ids(frame) for frame in sender.frames] == [[1], [10, 11], [20, 21], [30, 31]]


async def test_a_closed_chain_shares_a_frame_and_is_never_cut() -> None:
    sender = Sender()
    target = batcher(sender, frame_events=10)
    chains = concatenate(CODEC, [transfers(4, first=10 * number, flags=("linked",)) for number in range(1, 6)])
    runs = target.runs(1, chains)
    assert [len(run.events) for run in runs] == [8, 8, 4]
    with pytest.raises(ChainTooLong, match="more than 10 events"):
        target.runs(1, transfers(11, flags=("linked",)))


async def test_frames_stay_below_their_bound_of_bytes_whatever_the_values() -> None:
    sender = Sender()
    target = batcher(sender, frame_bytes=4096, frame_events=1000)
    worst = transfers(200)
    worst.rows[:, 1:] = -1
    worst.rows[:, [14, 15, 16, 17, 19]] = 1
    worst.rows[:, 18] = 2  # pending
    for run in target.runs(1, worst):
        target.submit([run])
    while sender.waiting:
        sender.acknowledge()
    assert sum(len(frame.events) for frame in sender.frames) == 200
    assert max(map(len, sender.bodies)) <= 4096


async def test_a_failed_delivery_fails_every_run_of_the_frame_and_the_lane_goes_on() -> None:
    sender = Sender()
    target = batcher(sender)
    first = submit(target, transfers(1))
    later = submit(target, transfers(1, first=2)) + submit(target, transfers(1, first=3))
    sender.acknowledge("timed out")
    with pytest.raises(DeliveryError, match="timed out"):
        await first[0].placed
    sender.acknowledge()
    assert [(await run.placed).start for run in later] == [0, 1]


async def test_a_full_buffer_refuses_and_frees_itself() -> None:
    sender = Sender()
    target = batcher(sender, buffered_events=10)
    submit(target, transfers(8))
    with pytest.raises(BufferFull, match="8 events wait"):
        submit(target, transfers(3))
    with pytest.raises(BufferFull):
        await target.room(0.01)
    assert target.buffered_events == 8
    sender.acknowledge()
    await target.room(0.01)
    submit(target, transfers(3))


async def test_drain_returns_when_everything_is_acknowledged() -> None:
    sender = Sender()
    target = batcher(sender, frames_in_flight=2)
    submit(target, transfers(1))
    submit(target, transfers(1, first=2))
    draining = asyncio.ensure_future(target.drain())
    await asyncio.sleep(0)
    assert len(sender.frames) == 2
    assert not draining.done()
    sender.acknowledge()
    sender.acknowledge()
    async with asyncio.timeout(5):
        await draining


async def test_a_waiter_knows_its_place_before_the_frame_leaves() -> None:
    sender = Sender()
    target = batcher(sender)
    submit(target, transfers(1))
    places: list[tuple[str, int, int]] = []
    runs = target.runs(1, transfers(2, first=2)) + target.runs(1, transfers(1, first=9))
    for run in runs:
        run.expect = lambda trace, start, stop: places.append((trace, start, stop))
    target.submit(runs)
    assert places == []
    sender.acknowledge()
    assert places == [(sender.frames[1].trace, 0, 2), (sender.frames[1].trace, 2, 3)]


def test_text_of_joined_runs_points_into_the_joined_heap() -> None:
    codec = codec_of("ledger.dead-letters")
    record = {field.name: None for field in codec.event_types[0].fields if field.nullable}
    samples = {"int": 1, "long": 1, "string": "first", "bytes": "AAEC", "enum": None, "boolean": True}
    for found in codec.event_types[0].fields:
        if not found.nullable:
            record[found.name] = found.symbols[0] if found.symbols else samples[found.storage]
    first = {"type": codec.event_types[0].name, **record}
    second = {name: "second one" if value == "first" else value for name, value in first.items()}
    joined = concatenate(codec, [parse_events(codec, [first]), parse_events(codec, [second])])
    rendered = render_events(codec, joined)
    assert [{name: event[name] for name in first} for event in rendered] == [first, second]
    assert np.shares_memory(concatenate(codec, [joined]).rows, joined.rows)


async def test_what_is_submitted_one_right_after_the_other_leaves_together() -> None:
    sender = Sender()
    target = batcher(sender, together=True, linger_seconds=0.0, frames_in_flight=9, frame_events=10)
    for number in range(1, 5):
        submit(target, transfers(2, first=10 * number), number % 2)
    assert not sender.frames, "others may be submitted right after these"
    await asyncio.sleep(0)
    assert [(frame.shard, ids(frame)) for frame in sender.frames] == [(0, [20, 21, 40, 41]), (1, [10, 11, 30, 31])]
    submit(target, transfers(1), 3)
    await asyncio.sleep(0)
    assert len(sender.frames) == 3, "and later ones too, in frames of their own"
    submit(target, transfers(1), 3)
    draining = asyncio.create_task(target.drain())
    await asyncio.sleep(0)
    assert len(sender.frames) == 4, "nothing waits when the worker stops"
    while sender.waiting:
        sender.acknowledge()
    await draining


async def test_rounds_are_apart_and_a_lone_event_waits_for_none() -> None:
    sender = Sender()
    target = batcher(sender, together=True, linger_seconds=0.0, frames_in_flight=9, frame_events=10, pace_seconds=0.02)
    for shard in range(2):
        submit(target, transfers(1, first=1 + shard), shard)
    await asyncio.sleep(0)
    assert [(frame.shard, ids(frame)) for frame in sender.frames] == [(0, [1]), (1, [2])], "the first round is now"
    began = asyncio.get_running_loop().time()
    submit(target, transfers(1, first=3), 0)
    sender.acknowledge()
    submit(target, transfers(1, first=4), 0)
    await asyncio.sleep(0)
    assert len(sender.frames) == 2, "what comes soon after waits, though nothing of its shard is in flight"
    for number in range(2):
        submit(target, transfers(6, first=100 + 10 * number), 3)
    assert [len(frame.events) for frame in sender.frames[2:]] == [6, 6], "a full lane does not"
    async with asyncio.timeout(10):
        while len(sender.frames) < 5:  # noqa: ASYNC110 - the timer of the batcher is under test
            await asyncio.sleep(0.001)
    assert asyncio.get_running_loop().time() - began > 0.015
    assert ids(sender.frames[4]) == [3, 4]


async def test_nothing_waits_for_a_round_when_the_worker_stops() -> None:
    sender = Sender()
    target = batcher(sender, together=True, linger_seconds=0.0, frames_in_flight=1, pace_seconds=60.0)
    submit(target, transfers(1))
    await asyncio.sleep(0)
    submit(target, transfers(1, first=2))
    draining = asyncio.create_task(target.drain())
    await asyncio.sleep(0)
    sender.acknowledge()
    assert [ids(frame) for frame in sender.frames] == [[1], [2]]
    sender.acknowledge()
    async with asyncio.timeout(5):
        await draining
