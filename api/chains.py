"""Keeps linked chains whole on their way from a body to frames.

A chain is a run of ``linked`` events and the first event after them that is not. It is posted whole or not at all, so:
- when one of its events is refused here, all of them are;
- all its events must be of one shard, since a frame is;
- a chunk of a streamed body that ends inside a chain keeps the chain back for the next chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from api.batching import concatenate
from api.bodies import BadEvent, Parsed
from pipelines.codec import FrameCodec
from pipelines.frames import Events, Rows

__all__ = ["Chains", "NoChains"]

Flagger = Callable[[Rows], NDArray[np.bool_]]
Sharder = Callable[[Events], NDArray[np.int64]]


class Chains:
    """Feeds one body's chunks through. ``linked`` and ``shards`` tell whether an event is, and where it goes."""

    def __init__(self, codec: FrameCodec, linked: Flagger, shards: Sharder) -> None:
        self._codec = codec
        self._linked = linked
        self._shards = shards
        self._held: Parsed | None = None

    @property
    def held_events(self) -> int:
        """Events of the chain that is still open."""
        return 0 if self._held is None else len(self._held.positions) + len(self._held.bad)

    def feed(self, parsed: Parsed, *, last: bool = False) -> Parsed:
        """What can be sent of the body so far, chains whole; with ``last`` nothing is held back."""
        if self._held is not None:
            parsed, self._held = self._joined(self._held, parsed), None
        good = len(parsed.positions)
        linked_good = self._linked(parsed.events.rows)
        if not linked_good.any() and not any(event.linked for event in parsed.bad):
            return parsed
        positions = np.array([*parsed.positions, *(event.position for event in parsed.bad)], np.int64)
        order = np.argsort(positions, kind="stable")
        linked = np.concatenate([linked_good, np.array([event.linked for event in parsed.bad], np.bool_)])[order]
        shards = np.concatenate([self._shards(parsed.events), np.full(len(parsed.bad), -1, np.int64)])[order]
        starts = np.flatnonzero(np.concatenate([[True], ~linked[:-1]]))
        chain = np.cumsum(np.concatenate([[False], ~linked[:-1]]))
        lowest = np.minimum.reduceat(shards, starts)
        broken = lowest < 0  # an event of the chain was refused
        split = ~broken & (lowest != np.maximum.reduceat(shards, starts))
        held = np.zeros(len(order), np.bool_)
        if linked[-1] and not last:
            held = chain == chain[-1]
        fails_sorted = (broken | split)[chain] & ~held
        by_event = np.empty(len(order), np.int64)
        by_event[order] = np.arange(len(order))
        rank = by_event[:good]
        fails, keeps_back = fails_sorted[rank], held[rank]
        refused = [
            BadEvent(parsed.positions[index], (_reason(bool(split[chain[rank[index]]])),), bool(linked_good[index]))
            for index in np.flatnonzero(fails)
        ]
        bad_held = held[by_event[good:]]
        if held.any():
            self._held = Parsed(
                _picked(parsed.events, keeps_back),
                _at(parsed.positions, keeps_back),
                [event for event, back in zip(parsed.bad, bad_held, strict=True) if back],
            )
        sent = ~fails & ~keeps_back
        bad = [*refused, *(event for event, back in zip(parsed.bad, bad_held, strict=True) if not back)]
        return Parsed(
            _picked(parsed.events, sent), _at(parsed.positions, sent), sorted(bad, key=lambda event: event.position)
        )

    def finish(self) -> Parsed:
        """What was held back: a chain that the body leaves open. The ledger answers it linked_event_chain_open."""
        return self.feed(Parsed(Events(self._codec.new_rows(0)), []), last=True)

    def _joined(self, first: Parsed, second: Parsed) -> Parsed:
        parts = [part.events for part in (first, second) if len(part.events)]
        events = concatenate(self._codec, parts) if parts else Events(self._codec.new_rows(0))
        return Parsed(events, first.positions + second.positions, first.bad + second.bad)


class NoChains:
    """In the place of `Chains` for a system whose events are not linked."""

    held_events: Final = 0

    def feed(self, parsed: Parsed, *, last: bool = False) -> Parsed:
        return parsed

    def finish(self) -> Parsed:
        return Parsed(Events(np.empty((0, 1), np.int64)), [])


def _reason(split: bool) -> dict[str, str]:
    if split:
        return {"pointer": "/ledger", "detail": "the events of a linked chain must go to one shard: use one ledger"}
    return {"pointer": "", "detail": "another event of its linked chain was refused"}


def _picked(events: Events, chosen: NDArray[np.bool_]) -> Events:
    return events if chosen.all() else Events(events.rows[chosen], events.heap)


def _at(positions: list[int], chosen: NDArray[np.bool_]) -> list[int]:
    return [positions[index] for index in np.flatnonzero(chosen)]
