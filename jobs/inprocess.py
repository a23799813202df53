"""The in-process runtime: a pipeline's shards in a dict, no server.

For tests, notebooks, `streambank replay` and for checking a live system: fed with a topic's records it computes, byte
for byte, what the Flink job sent. Single-threaded; outputs leave in the order of the inputs; nothing is stored.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.catalogue import Pipeline
from pipelines.codec import codec_of
from pipelines.errors import FrameError
from pipelines.frames import Frame
from pipelines.shard import OutputRecord, Reader, Shard, catalogue_reader
from pipelines.wire import unwrap

__all__ = ["InProcess", "default_schema_ids"]


def default_schema_ids(pipeline: Pipeline) -> dict[str, int]:
    """Schema ids for outputs that no registry knows: 1, 2, … in the order of the pipeline's inputs and outputs."""
    return {topic.name: number for number, topic in enumerate((*pipeline.inputs, *pipeline.outputs), start=1)}


class InProcess:
    """All shards of one pipeline, each made when its first frame comes.

    ``schema_ids`` and ``reader`` are those of `pipelines.shard.Shard`; without them every record is taken to be written
    with this release's schemas.
    """

    def __init__(
        self, pipeline: Pipeline, schema_ids: Mapping[str, int] | None = None, reader: Reader = catalogue_reader
    ) -> None:
        self.pipeline = pipeline
        self.shards: dict[int, Shard] = {}
        self._schema_ids = default_schema_ids(pipeline) if schema_ids is None else schema_ids
        self._reader = reader

    def shard(self, number: int) -> Shard:
        """Shard ``number``, fresh if it has had no frame yet."""
        if not 0 <= number < self.pipeline.shards:
            raise ValueError(f"{self.pipeline.name} has shards 0 to {self.pipeline.shards - 1}, not {number}")
        if number not in self.shards:
            self.shards[number] = Shard(self.pipeline, number, self._schema_ids, self._reader)
        return self.shards[number]

    def apply(self, topic: str, value: bytes, partition: int | None = None) -> list[OutputRecord]:
        """Apply one input record and return its outputs; raises as `pipelines.shard.Shard.apply` does.

        ``partition`` is where the record was read, which must be its frame's shard; without it, it is taken from the
        frame.
        """
        if partition is None:
            schema_id, body = unwrap(value)
            partition = self._reader(topic, schema_id).decode_header(body)[0]
            if not 0 <= partition < self.pipeline.shards:
                raise FrameError("wrong_shard", f"{self.pipeline.name} has no shard {partition}")
        return self.shard(partition).apply(topic, value)

    def apply_frame(self, frame: Frame) -> list[OutputRecord]:
        """Apply one decoded input frame and return its outputs."""
        return self.shard(frame.shard).apply_frame(frame)

    def decode_output(self, record: OutputRecord) -> Frame:
        """The frame in one of this runtime's output records."""
        return codec_of(record.topic).decode(unwrap(record.value)[1])
