"""Frames: a short run of events as columns of 64-bit words.

One Kafka record is one frame. In memory its events are the rows of an int64 array, as wide as the topic's widest
event type: word 0 of a row is the event's kind (its position in the topic's union, 0 for a single type), the other
words are its fields as laid out by `pipelines.codec.EventType.dtype`. Text and bytes are not in the rows: their word
is ``offset << 32 | length`` into the heap, which for a decoded frame is the record itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Events", "Frame", "Rows"]

Rows = NDArray[np.int64]
"""Shape (events, words); C-contiguous."""


@dataclass(frozen=True, slots=True)
class Events:
    """A run of events of one topic: ``rows`` int64 (n, words) and the ``heap`` their text and bytes lie in."""

    rows: Rows
    heap: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, dtype: np.dtype[np.void]) -> NDArray[np.void]:
        """The rows as a structured array of one event type, sharing memory; shape (n,).

        Only rows whose kind is that type's hold meaningful values.
        """
        return self.rows.view(dtype)[:, 0]


@dataclass(frozen=True, slots=True)
class Frame:
    """One record of a topic.

    ``sequence`` is 0 on topics of many producers; ``produced_at`` is in UTC microseconds; ``trace`` is a W3C
    traceparent, unique per frame. ``chain`` is the frame's hash on a chained topic (`pipelines.chain`), None elsewhere
    and before the chain began.
    """

    topic: str
    shard: int
    sequence: int
    produced_at: int
    trace: str | None
    events: Events
    chain: bytes | None = None
