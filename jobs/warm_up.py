"""Compiles kernels ahead of their first frame.

Numba compiles a function when it is first called and keeps the result beside its source. A job does this before its
first record (`warm_up`); `streambank compile` does it for all kernels, each in a process of its own
(``python -m jobs.warm_up PIPELINE``), so that nobody waits for it later.
"""

from __future__ import annotations

import sys

from pipelines.catalogue import PIPELINES, Pipeline
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame, Rows
from pipelines.shard import Shard
from pipelines.wire import wrap

__all__ = ["warm_up"]


def warm_up(pipeline: Pipeline) -> None:
    """Compile, or load from the cache, all that a frame needs, on shards that are thrown away."""
    topic = pipeline.inputs[0].name
    ids = {output.name: 1 for output in pipeline.outputs}
    shard = Shard(pipeline, 0, ids)
    rows = one_event_of_each_type(topic)
    outputs = shard.apply(topic, wrap(1, codec_of(topic).encode(Frame(topic, 0, 1, 0, None, Events(rows)))))
    if not outputs:
        raise AssertionError(f"{pipeline.name}: one event of each type was answered by nothing")
    Shard(pipeline, 0, ids).restore(shard.dirty_pages())


def one_event_of_each_type(topic: str) -> Rows:
    """Rows of a topic with one event of each type, every field zero, empty or the least allowed."""
    codec = codec_of(topic)
    rows = codec.new_rows(len(codec.event_types))
    rows[:, 0] = range(len(rows))
    for event_type in codec.event_types:
        for field in event_type.fields:
            if field.minimum > 0:
                rows[event_type.kind, field.word] = field.minimum
    return rows


if __name__ == "__main__":
    for name in sys.argv[1:]:
        warm_up(PIPELINES[name])
