"""Commands on their way from FIX messages to matching.commands: gathered into a frame per shard and transaction."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from api.fix.store import PendingFrame, SessionStore
from pipelines.catalogue import MATCHING_COMMANDS
from pipelines.codec import codec_of
from pipelines.event_json import EventsBuilder
from pipelines.frames import Frame

__all__ = ["CommandFrames"]

FRAME_COMMANDS: Final = 1_000
"""Commands of a frame, at most; far below 256 KiB."""

_COMMANDS: Final = codec_of(MATCHING_COMMANDS.name)


class _Batch(NamedTuple):
    trace: str
    commands: EventsBuilder


class CommandFrames:
    """Not thread-safe; every call is made within a transaction of the store. ``log_ends`` has the offset of the last
    record known to be in matching.commands, per shard."""

    def __init__(
        self,
        store: SessionStore,
        log_ends: Mapping[int, int],
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._store = store
        self._log_ends = log_ends
        self._clock = clock
        self._batches: dict[int, _Batch] = {}
        self._full: list[tuple[int, _Batch]] = []

    def add(self, shard: int, record: Mapping[str, Any]) -> tuple[str, int]:
        """Add a command to its shard's frame; returns the frame's trace and the command's position in it."""
        batch = self._batches.get(shard)
        if batch is None:
            trace = f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"
            batch = self._batches[shard] = _Batch(trace, EventsBuilder(_COMMANDS))
        position = len(batch.commands)
        batch.commands.add(record)
        if position + 1 == FRAME_COMMANDS:
            self._full.append((shard, self._batches.pop(shard)))
        return batch.trace, position

    def take(self) -> list[PendingFrame]:
        """Store what was added since the last call, as frames that are now to be sent."""
        batches = [*self._full, *self._batches.items()]
        self._full, self._batches = [], {}
        frames = []
        for shard, batch in batches:
            now = self._clock()
            body = _COMMANDS.encode(Frame(MATCHING_COMMANDS.name, shard, 0, now, batch.trace, batch.commands.build()))
            frames.append(self._store.add_frame(shard, batch.trace, self._log_ends.get(shard, -1), now, body))
        return frames
