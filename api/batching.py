"""Smart batching: what arrives while a frame is on its way to Kafka becomes the next frame.

Each shard has a lane. An idle lane sends a lone event at once, without a timer. While a frame is unacknowledged, events
gather; they leave when it is acknowledged, when they fill a frame (events or bytes), or after ``linger_seconds``, as
long as fewer than ``frames_in_flight`` frames are on their way. At most ``buffered_events`` wait and fly; beyond that
`Batcher.submit` refuses, and the API answers 503.

With ``together`` the lanes are looked at once the event loop has done what it is about to do: runs that were submitted
one right after the other, as those of requests that were recorded together, leave in one frame per shard. With
``pace_seconds`` too, these rounds are at least so far apart: what comes after a pause leaves at once, what comes within
``pace_seconds`` of a round leaves in the next, unless it fills a frame. Whoever is behind the API pays per frame, so
that under load a few milliseconds of company cost less time than they save.

What a request may rely on:
- its events for a shard stay together and in order, in one frame up to the frame's bounds; a longer run is cut between
  linked chains, never inside one;
- a run that ends in an open chain (its last event is ``linked``) or holds ``imported`` events has a frame of its own,
  since both flags change what happens to neighbours;
- its future resolves only after Kafka acknowledged the frame with acks=all, else it fails with `DeliveryError`: then
  the events may or may not be in the log, and sending them again with the same ids is safe.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

import numpy as np

from api.logs import log
from api.metrics import count, gauge, observe
from pipelines.codec import FrameCodec
from pipelines.errors import StreambankError
from pipelines.frames import Events, Frame, Rows

__all__ = ["Batcher", "BufferFull", "ChainTooLong", "DeliveryError", "FrameSender", "Placed", "Run", "concatenate"]

MAX_BYTES_PER_WORD: Final = 10
"""A 64-bit word takes at most ten bytes in Avro (a varint); decimals and enums take fewer."""
HEADER_BYTES: Final = 128


class DeliveryError(StreambankError):
    """Kafka did not acknowledge a frame; whether it holds the frame is unknown."""


class BufferFull(StreambankError):  # noqa: N818 - a state, named for what it is
    """No room for more unacknowledged events."""


class ChainTooLong(StreambankError):  # noqa: N818 - a state, named for what it is
    """A linked chain has more events than a frame."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a run's events are: ``start`` is the index of its first event in the frame of ``trace``."""

    shard: int
    offset: int
    trace: str
    start: int
    stop: int


@dataclass(slots=True, eq=False)
class Run:
    """Events of one request for one shard, at most a frame of them.

    ``expect`` is called with the frame's trace and the run's place before the frame leaves, for `Prefer: wait`.
    """

    shard: int
    events: Events
    alone: bool
    placed: asyncio.Future[Placed]
    expect: Callable[[str, int, int], None] | None = None


class FrameSender(Protocol):
    """Sends one record and calls back in the event loop, once, with its offset or an error."""

    def send(self, frame: Frame, body: bytes, done: Callable[[int, str | None], None]) -> None:
        """Raises `DeliveryError` when the record cannot even be queued."""
        ...


@dataclass(slots=True)
class _Lane:
    shard: int
    pending: deque[Run] = field(default_factory=deque)
    pending_events: int = 0
    pending_bytes: int = 0
    oldest: float = 0.0
    in_flight: int = 0
    timer: asyncio.TimerHandle | None = None


class Batcher:
    """The lanes of one topic in one worker. Not thread-safe: all calls come from the event loop."""

    def __init__(
        self,
        codec: FrameCodec,
        sender: FrameSender,
        *,
        shards: int,
        frame_events: int,
        frame_bytes: int,
        frames_in_flight: int,
        linger_seconds: float,
        buffered_events: int,
        together: bool = False,
        pace_seconds: float = 0.0,
    ) -> None:
        self._codec = codec
        self._sender = sender
        self.shards = shards
        self._event_bytes = MAX_BYTES_PER_WORD * codec.row_words
        self._frame_bytes = frame_bytes - HEADER_BYTES
        self.frame_events = min(frame_events, self._frame_bytes // self._event_bytes)
        """Most events of a frame: the bound of count, or of bytes were every word as long as Avro allows."""
        self._frames_in_flight = frames_in_flight
        self._linger = linger_seconds
        self._together = together
        self._pace = pace_seconds
        self._next_round = 0.0
        """By the event loop's clock."""
        self._leaving = False
        """The lanes will be looked at soon."""
        self._buffered_limit = buffered_events
        self._buffered = 0
        self._lanes = [_Lane(shard) for shard in range(shards)]
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._linked = flag_bits(codec, "linked")
        self._imported = flag_bits(codec, "imported")
        # Only a schema with text has a heap to send; a decoded Avro file's heap is the file's block.
        self._has_text = _text_words(codec) is not None
        self._flags_words = flags_words(codec)

    @property
    def buffered_events(self) -> int:
        """Events submitted and not yet acknowledged."""
        return self._buffered

    def linked(self, rows: Rows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which rows continue a chain; shape (n,)."""
        return self._flagged(rows, self._linked)

    def runs(self, shard: int, events: Events) -> list[Run]:
        """Cut a request's events for a shard into runs of at most a frame; raises `ChainTooLong`."""
        loop = asyncio.get_running_loop()
        made = []
        for start, stop in self._cuts(events):
            rows = events.rows[start:stop]
            alone = bool(self._flags_words) and (
                bool(self.linked(rows[-1:])[0]) or bool(self._flagged(rows, self._imported).any())
            )
            placed = loop.create_future()
            placed.add_done_callback(_seen)
            made.append(Run(shard, Events(rows, events.heap) if self._has_text else Events(rows), alone, placed))
        return made

    def submit(self, runs: list[Run]) -> None:
        """Put runs on their lanes, all or none; raises `BufferFull`."""
        events = sum(len(run.events) for run in runs)
        if self._buffered and self._buffered + events > self._buffered_limit:
            raise BufferFull(f"{self._buffered} events wait for Kafka, at most {self._buffered_limit} may")
        now = time.monotonic()
        for run in runs:
            lane = self._lanes[run.shard]
            if not lane.pending:
                lane.oldest = now
            lane.pending.append(run)
            lane.pending_events += len(run.events)
            lane.pending_bytes += self._bytes_of(run)
        self._count_buffered(events)
        for shard in {run.shard for run in runs}:
            self._look_at(self._lanes[shard])

    def _look_at(self, lane: _Lane) -> None:
        """See to it that what may leave does, now or in the next round."""
        if not self._together or (self._pace and self._is_full(lane)):
            self._pump(lane)
        elif lane.pending and not self._leaving:
            self._leaving = True
            loop = asyncio.get_running_loop()
            if self._next_round > loop.time():
                loop.call_at(self._next_round, self._leave)
            else:
                loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._leaving = False
        self._next_round = asyncio.get_running_loop().time() + self._pace
        for lane in self._lanes:
            self._pump(lane)

    async def room(self, seconds: float) -> None:
        """Wait until half of the buffer is free; raises `BufferFull` after ``seconds``."""
        if self._buffered * 2 <= self._buffered_limit:
            return
        self._room.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._room.wait()
        except TimeoutError:
            raise BufferFull(f"{self._buffered} events wait for Kafka and none was acknowledged in time") from None

    async def drain(self) -> None:
        """Send what is pending without waiting for company, and return when nothing is unacknowledged."""
        self._linger = self._pace = 0.0
        self._leave()
        await self._idle.wait()

    def _flagged(self, rows: Rows, bits: dict[int, int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        found = np.zeros(len(rows), np.bool_)
        for kind, bit in bits.items():
            found |= (rows[:, 0] == kind) & ((rows[:, self._flags_words[kind]] & bit) != 0)
        return found

    def _cuts(self, events: Events) -> Iterator[tuple[int, int]]:
        count_ = len(events)
        if count_ <= self.frame_events:
            yield 0, count_
            return
        ends = np.flatnonzero(~self.linked(events.rows)) + 1
        start = 0
        while start < count_:
            if count_ - start <= self.frame_events:
                stop = count_
            else:
                at = int(np.searchsorted(ends, start + self.frame_events, side="right")) - 1
                stop = int(ends[at]) if at >= 0 else start
            if stop <= start:
                raise ChainTooLong(
                    f"the linked chain at event {start} has more than {self.frame_events} events, the most of a frame"
                )
            yield start, stop
            start = stop

    def _bytes_of(self, run: Run) -> int:
        return len(run.events) * self._event_bytes + (len(run.events.heap) if self._has_text else 0)

    def _count_buffered(self, change: int) -> None:
        self._buffered += change
        gauge("streambank_api_buffered_events", change)
        if self._buffered * 2 <= self._buffered_limit:
            self._room.set()
        if self._buffered:
            self._idle.clear()
        else:
            self._idle.set()

    def _pump(self, lane: _Lane) -> None:
        while lane.pending and lane.in_flight < self._frames_in_flight:
            if lane.in_flight and not self._ripe(lane):
                if lane.timer is None:
                    wait = lane.oldest + self._linger - time.monotonic()
                    lane.timer = asyncio.get_running_loop().call_later(max(0.0, wait), self._linger_over, lane)
                return
            self._send(lane, self._cut(lane))

    def _is_full(self, lane: _Lane) -> bool:
        return lane.pending_events >= self.frame_events or lane.pending_bytes >= self._frame_bytes

    def _ripe(self, lane: _Lane) -> bool:
        return self._is_full(lane) or time.monotonic() - lane.oldest >= self._linger

    def _linger_over(self, lane: _Lane) -> None:
        lane.timer = None
        self._pump(lane)

    def _cut(self, lane: _Lane) -> list[Run]:
        """The runs of the next frame, off the lane."""
        taken: list[Run] = []
        events = bytes_ = 0
        while lane.pending:
            run = lane.pending[0]
            if taken and (
                run.alone
                or taken[0].alone
                or events + len(run.events) > self.frame_events
                or bytes_ + self._bytes_of(run) > self._frame_bytes
            ):
                break
            taken.append(lane.pending.popleft())
            events += len(run.events)
            bytes_ += self._bytes_of(run)
        lane.pending_events -= events
        lane.pending_bytes -= bytes_
        lane.oldest = time.monotonic()
        return taken

    def _send(self, lane: _Lane, runs: list[Run]) -> None:
        trace = f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"
        events = concatenate(self._codec, [run.events for run in runs])
        frame = Frame(self._codec.topic, lane.shard, 0, time.time_ns() // 1000, trace, events)
        position = 0
        for run in runs:
            if run.expect is not None:
                run.expect(trace, position, position + len(run.events))
            position += len(run.events)
        started = time.monotonic()
        lane.in_flight += 1

        def done(offset: int, error: str | None) -> None:
            lane.in_flight -= 1
            self._count_buffered(-len(events))
            if error is None:
                count("streambank_api_frames")
                count("streambank_api_events_accepted", by=len(events))
                observe("streambank_api_frame_events", len(events))
                observe("streambank_api_produce_seconds", time.monotonic() - started)
            else:
                count("streambank_api_frame_failures")
                log().warning("frame not acknowledged", frame=trace, shard=lane.shard, events=len(events), error=error)
            start = 0
            for run in runs:
                stop = start + len(run.events)
                if not run.placed.done():
                    if error is None:
                        run.placed.set_result(Placed(lane.shard, offset, trace, start, stop))
                    else:
                        run.placed.set_exception(DeliveryError(error))
                start = stop
            if self._pace:
                self._look_at(lane)
            else:
                self._pump(lane)

        try:
            self._sender.send(frame, self._codec.encode(frame), done)
        except StreambankError as error:
            asyncio.get_running_loop().call_soon(done, -1, str(error))


def concatenate(codec: FrameCodec, parts: Sequence[Events]) -> Events:
    """The events of all parts as one run; their text words count from the start of their own heap, and are moved."""
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([part.rows for part in parts])
    has_text = _text_words(codec)
    if has_text is None:
        return Events(rows)
    heaps = np.array([len(part.heap) for part in parts], np.int64)
    moved_by = np.repeat(np.cumsum(heaps) - heaps << 32, [len(part) for part in parts])
    rows += has_text[rows[:, 0]] * moved_by[:, np.newaxis]
    return Events(rows, np.concatenate([part.heap for part in parts]))


@lru_cache(maxsize=64)
def _text_words(codec: FrameCodec) -> Rows | None:
    """1 where a word of an event type's row is of a text, shape (kinds, row_words); None when the topic has none."""
    words = codec.new_rows(len(codec.event_types))
    for event_type in codec.event_types:
        for found in event_type.fields:
            if found.storage in ("string", "bytes"):
                words[event_type.kind, found.word] = 1
    return words if words.any() else None


def _seen(placed: asyncio.Future[Placed]) -> None:
    """A request that is gone (its client hung up) leaves failures that nobody awaits."""
    if not placed.cancelled():
        placed.exception()


def flags_words(codec: FrameCodec) -> dict[int, int]:
    """Word of the field ``flags`` of each event type that has one, by kind."""
    return {
        event_type.kind: found.word
        for event_type in codec.event_types
        for found in event_type.fields
        if found.name == "flags"
    }


def flag_bits(codec: FrameCodec, flag: str) -> dict[int, int]:
    """Bit of ``flag`` in the field ``flags`` of each event type that has it, by kind."""
    return {
        event_type.kind: 1 << found.flags.index(flag)
        for event_type in codec.event_types
        for found in event_type.fields
        if found.name == "flags" and flag in found.flags
    }
