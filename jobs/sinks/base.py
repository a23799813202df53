"""The contract between the sink worker and a destination: add events, flush them.

A destination implements `Sink.load_positions` and `Sink.write`; buffering, the bisection of refused batches and the
order "dead letter first, then the position that passes it" are here.

Errors that `write` raises, and what the worker does:

StreambankError
├── StoreUnavailable   the store is away or busy: tried again with jitter, for ever
├── Refused            the store refuses the data: bisected to the offending events, which are set aside
├── PositionMoved      another writer was here: positions are read again, what it applied is dropped
└── SinkAlarm          the sink must stop; `exit_code` tells the supervisor why
    ├── TooManyDeadLetters
    └── SequenceBroken   a gap, or rows that contradict the position
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from pipelines.catalogue import Topic
from pipelines.errors import StreambankError
from pipelines.frames import Events

__all__ = [
    "EXIT_SEQUENCE_BROKEN",
    "EXIT_TOO_MANY_DEAD_LETTERS",
    "Addition",
    "Position",
    "PositionMoved",
    "Refusal",
    "Refused",
    "SequenceBroken",
    "SetAside",
    "Sink",
    "SinkAlarm",
    "StoreUnavailable",
    "TooManyDeadLetters",
]

EXIT_TOO_MANY_DEAD_LETTERS: Final = 3
EXIT_SEQUENCE_BROKEN: Final = 4
MAX_REFUSED_EVENTS: Final = 16
"""More refused events than this in one frame, and the whole frame is set aside: each costs a bisection."""


class StoreUnavailable(StreambankError):  # noqa: N818 - a state, named for what it is
    """The store cannot be reached, or is too busy."""


class Refused(StreambankError):  # noqa: N818 - a state, named for what it is
    """The store does not accept the data, and would not if asked again. ``reason`` is the dead letter's reason code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class PositionMoved(StreambankError):  # noqa: N818 - a state, named for what it is
    """The stored position is not the one that the batch starts from."""

    def __init__(self, partitions: Collection[int]) -> None:
        super().__init__(f"another writer moved partitions {sorted(partitions)}")
        self.partitions = frozenset(partitions)


class SinkAlarm(StreambankError):  # noqa: N818 - an alarm, named for what it is
    """The sink must stop and somebody must look."""

    exit_code: ClassVar[int] = 1


class TooManyDeadLetters(SinkAlarm):
    """More records than allowed cannot be applied; the position did not pass the last of them."""

    exit_code = EXIT_TOO_MANY_DEAD_LETTERS


class SequenceBroken(SinkAlarm):
    """A sequence is missing, or the store holds rows that its position says it cannot hold."""

    exit_code = EXIT_SEQUENCE_BROKEN


@dataclass(frozen=True, slots=True)
class Position:
    """How far a partition is applied.

    ``sequence`` is that of the last readable frame; each of the ``unreadable_records`` set aside after it may have
    been one more frame, so that the next one may have any sequence up to ``sequence + unreadable_records + 1``.
    """

    partition: int
    next_offset: int = 0
    sequence: int = 0
    unreadable_records: int = 0


@dataclass(frozen=True, slots=True)
class Addition:
    """A record on its way into the store: its events (none if it was unreadable or repeated) and what it advances."""

    events: Events
    before: Position
    after: Position
    kept: tuple[int, ...] | None = None
    """Positions in the frame of ``events``, where some were set aside; None if all are there."""
    produced_at: int = 0
    """UTC microseconds of the frame."""
    trace: str | None = None
    """The frame's traceparent."""

    def without(self, refused: Collection[int], first: int | None = None) -> Addition:
        """The first ``first`` events (default all), less those at the positions ``refused``."""
        kept = [index for index in range(len(self.events) if first is None else first) if index not in refused]
        rows = self.events.rows[np.array(kept, np.int64)]
        return replace(self, events=Events(np.ascontiguousarray(rows), self.events.heap), kept=tuple(kept))


@dataclass(frozen=True, slots=True)
class Refusal:
    """An event that the store refused; ``event_index`` -1 is the whole frame."""

    event_index: int
    reason: str
    detail: str


SetAside = Callable[[Addition, Sequence[Refusal]], Awaitable[None]]
"""Puts refused events safely into the dead-letter topic; raises `SinkAlarm` when there are too many."""


class Sink(ABC):
    """One destination. Not thread-safe; one flush at a time."""

    name: ClassVar[str]
    """Name in positions, metrics, dead letters and the consumer group; never changes."""
    topic: ClassVar[Topic]
    web_port_offset: ClassVar[int]
    """Added to the settings' ``faust_web_port``."""
    flush_seconds: ClassVar[float] = 0.0
    """From one flush to the next, at least: a store takes fifty transfers at once for little more than one, and what
    comes after a pause is written at once all the same."""

    def __init__(self) -> None:
        self._additions: list[Addition] = []

    @abstractmethod
    async def open(self) -> None:
        """Prepare connections; raises `StoreUnavailable`."""

    @abstractmethod
    async def close(self) -> None:
        """Release connections; never raises for a store that is away."""

    @abstractmethod
    async def load_positions(self, partitions: Collection[int]) -> Mapping[int, Position]:
        """The stored position of each partition, at the start if there is none."""

    @abstractmethod
    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        """Apply the additions in order and store the positions after them, all or (seen from a reader that drops
        repeated sequences) nothing. ``rehearse`` only finds out whether the store would refuse them."""

    @abstractmethod
    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        """Apply events that were set aside earlier, idempotently and leaving alone whatever is newer than they are.

        ``kept`` are their positions in the frame; the stored position does not change.
        """

    def add(
        self, events: Events, before: Position, after: Position, produced_at: int = 0, trace: str | None = None
    ) -> None:
        """Take a record's events; `flush` applies them and moves its partition from ``before`` to ``after``."""
        self._additions.append(Addition(events, before, after, produced_at=produced_at, trace=trace))

    def discard(self) -> None:
        """Forget what was added and not flushed."""
        self._additions.clear()

    async def flush(self, set_aside: SetAside) -> None:
        """Apply everything added, in order. What was applied before an error is not forgotten by the store; add the
        rest again from its position."""
        additions, self._additions = self._additions, []
        if additions:
            await self._apply(additions, set_aside)

    async def _apply(self, additions: Sequence[Addition], set_aside: SetAside) -> None:
        try:
            await self.write(additions)
        except Refused:
            if len(additions) == 1:
                await self._apply_but_refused(additions[0], set_aside)
                return
            middle = len(additions) // 2
            await self._apply(additions[:middle], set_aside)
            await self._apply(additions[middle:], set_aside)

    async def _apply_but_refused(self, addition: Addition, set_aside: SetAside) -> None:
        refusals = await self._find_refused(addition)
        refused = {refusal.event_index for refusal in refusals}
        rest = addition.without(range(len(addition.events)) if -1 in refused else refused)
        await set_aside(addition, refusals)
        await self.write([rest])

    async def _find_refused(self, addition: Addition) -> list[Refusal]:
        """Binary search for the shortest prefix that is refused, its last event being the culprit; then on without
        it. Prefixes, because an event may need those before it (a transfer its account)."""
        refusals: list[Refusal] = []
        refused: set[int] = set()
        accepted = 0
        while (refusal := await self._refusal(addition.without(refused))) is not None:
            low, high = accepted, len(addition.events)  # a prefix of `low` events is accepted, one of `high` refused
            while high - low > 1:
                middle = (low + high) // 2
                found = await self._refusal(addition.without(refused, middle))
                if found is None:
                    low = middle
                else:
                    high, refusal = middle, found
            if high <= accepted or len(refusals) == MAX_REFUSED_EVENTS:
                return [Refusal(-1, refusal.reason, refusal.detail)]
            refusals.append(Refusal(high - 1, refusal.reason, refusal.detail))
            refused.add(high - 1)
            accepted = high
        return refusals

    async def _refusal(self, addition: Addition) -> Refused | None:
        try:
            await self.write([addition], rehearse=True)
        except Refused as refusal:
            return refusal
        return None
