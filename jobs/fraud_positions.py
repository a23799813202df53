"""Where a scorer stands in fraud.features when only the sequence of its last decision frame is known.

The sequences of a shard grow by one; after a job's restart some are repeated and grow again. Records that are no frames
lie between them. All functions read Kafka and raise `jobs.topic_reader.TopicReadError`.
"""

from __future__ import annotations

from contextlib import suppress

from infra.settings import Settings
from jobs.topic_reader import TopicReader
from pipelines.catalogue import FRAUD_FEATURES
from pipelines.errors import FrameError
from pipelines.frames import Frame
from pipelines.shard import Reader
from pipelines.wire import unwrap

__all__ = ["features_frame", "offset_behind", "unreadable_between"]


def features_frame(read: Reader, shard: int, value: bytes | None) -> Frame:
    """The frame in a record of fraud.features; raises `FrameError` for one that is none of this shard."""
    schema_id, body = unwrap(value)
    frame = read(FRAUD_FEATURES.name, schema_id).decode(body)
    if frame.shard != shard:
        raise FrameError("wrong_shard", f"a frame of shard {frame.shard} in partition {shard}")
    if frame.sequence <= 0:
        raise FrameError("no_sequence", f"sequence {frame.sequence}; frames of {FRAUD_FEATURES.name} count from 1")
    return frame


def offset_behind(config: Settings, read: Reader, shard: int, sequence: int) -> int:
    """Offset of the first record behind the frame of a sequence, found by bisection."""
    with TopicReader(config) as reader:
        return _offset_behind(reader, read, shard, sequence)


def unreadable_between(config: Settings, read: Reader, shard: int, last: int, sequence: int) -> int:
    """How many records between the frames of two sequences are no frames."""
    with TopicReader(config) as reader:
        unreadable = 0
        for record in reader.read(FRAUD_FEATURES, shard, _offset_behind(reader, read, shard, last)):
            try:
                if features_frame(read, shard, record.value).sequence >= sequence:
                    break
            except FrameError:
                unreadable += 1
        return unreadable


def _offset_behind(reader: TopicReader, read: Reader, shard: int, sequence: int) -> int:
    low, high = reader.bounds(FRAUD_FEATURES, shard)
    while low < high:
        middle = (low + high) // 2
        found = None
        for record in reader.read(FRAUD_FEATURES, shard, middle, high):
            with suppress(FrameError):  # one that cannot be read tells nothing; the next one may
                found = features_frame(read, shard, record.value).sequence
                break
        if found is not None and found <= sequence:
            low = middle + 1
        else:
            high = middle
    return low
