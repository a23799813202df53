"""From a Kafka record to what a sink does with it: which codec reads it, and whether its turn has come.

`RecordReader` reads values by the schema they were written with; `ShardOrder` decides by offset and sequence. Neither
knows Faust or a store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any

from infra.registry import RegistryError, SchemaNotRegistered
from jobs.sinks.base import Position, SequenceBroken, StoreUnavailable
from pipelines.avro_schema import SchemaError
from pipelines.catalogue import Topic
from pipelines.codec import FrameCodec
from pipelines.errors import FrameError
from pipelines.frames import Frame
from pipelines.wire import unwrap

__all__ = ["RecordReader", "ShardOrder", "Verdict"]

MAX_REWINDS = 4
"""Rewinds to one offset without meeting it: then the record is not in the topic any more."""


class RecordReader:
    """Decodes the records of one topic, whatever registered schema they were written with.

    ``lookup`` returns the schema behind an id and raises `SchemaNotRegistered` or `RegistryError`; ids are looked up
    once, in a thread. ``numbered`` says whether one job writes the topic, so that a frame must have a sequence.
    """

    def __init__(self, topic: Topic, lookup: Callable[[int], dict[str, Any]], *, numbered: bool = True) -> None:
        self._topic = topic
        self._lookup = lookup
        self._numbered = numbered
        self._codecs: dict[int, FrameCodec] = {}

    async def read(self, value: bytes | None, partition: int) -> Frame:
        """The frame in a record's value.

        Raises `FrameError` for one that is not a frame of this topic and partition, `StoreUnavailable` when the
        registry is needed and away: an unreadable record and an unreachable registry must never be confused.
        """
        schema_id, body = unwrap(value)
        codec = self._codecs.get(schema_id)
        if codec is None:
            codec = self._codecs[schema_id] = await self._codec(schema_id)
        frame = codec.decode(body)
        if frame.shard != partition:
            raise FrameError("wrong_shard", f"a frame of shard {frame.shard} in partition {partition}")
        if self._numbered and frame.sequence <= 0:
            raise FrameError("no_sequence", f"sequence {frame.sequence}; frames of {self._topic.name} count from 1")
        return frame

    async def _codec(self, schema_id: int) -> FrameCodec:
        try:
            writer = await asyncio.to_thread(self._lookup, schema_id)
        except SchemaNotRegistered as error:
            raise FrameError("unknown_schema", str(error)) from error
        except RegistryError as error:
            raise StoreUnavailable(str(error)) from error
        try:
            return FrameCodec(self._topic.name, self._topic.schema(), writer)
        except SchemaError as error:
            raise FrameError(
                "wrong_schema", f"schema {schema_id} is not one of {self._topic.name}'s frames: {error}"
            ) from error


class Verdict(Enum):
    APPLY = "apply"
    """It is the next one."""
    REPEATED = "repeated"
    """A new record with a sequence already applied: upstream repeated it. Its offset still counts."""
    PASSED = "passed"
    """The stored position is already behind this record."""
    REWIND = "rewind"
    """Records before this one are missing here; read again from the position."""


class ShardOrder:
    """One partition's turn-taking. `judge` looks, `advance` moves.

    Consumers hand over records out of order around a rebalance or a seek, so a record from further on is first
    answered by going back to the position. Only if the record *at* the position has a sequence further on is it a gap
    in the topic itself.
    """

    def __init__(self, position: Position) -> None:
        self.position = position
        self.rewinds = 0
        """How often the consumer was sent back to this position without meeting its record."""

    def judge(self, offset: int, sequence: int | None) -> Verdict:
        """``sequence`` None is an unreadable record. Raises `SequenceBroken`."""
        position = self.position
        if offset < position.next_offset:
            return Verdict.PASSED
        highest = position.sequence + position.unreadable_records + 1
        if offset > position.next_offset and not (sequence == position.sequence + 1 and self.rewinds):
            if self.rewinds >= MAX_REWINDS and sequence is not None and sequence > highest:
                raise SequenceBroken(
                    f"partition {position.partition}: the record at offset {position.next_offset} is missing, the"
                    f" next one is sequence {sequence} at offset {offset} while {highest} is awaited. Was the topic"
                    " truncated? Rebuild the projection from a complete topic"
                )
            return Verdict.REWIND
        if sequence is None or position.sequence < sequence <= highest:
            return Verdict.APPLY
        if sequence <= position.sequence:
            return Verdict.REPEATED
        raise SequenceBroken(
            f"partition {position.partition}, offset {offset}: sequence {sequence} follows {position.sequence};"
            f" {sequence - highest} frame(s) are missing from the topic. The sink stops rather than skip them: find"
            " out which writer left them out, or rebuild the topic"
        )

    def advance(self, offset: int, sequence: int | None, verdict: Verdict) -> tuple[Position, Position]:
        """The position before and after a record judged to be applied or repeated."""
        before = self.position
        if verdict is Verdict.REPEATED:
            after = replace(before, next_offset=offset + 1)
        elif sequence is None:
            after = replace(before, next_offset=offset + 1, unreadable_records=before.unreadable_records + 1)
        else:
            after = replace(before, next_offset=offset + 1, sequence=sequence, unreadable_records=0)
        self.position = after
        self.rewinds = 0
        return before, after
