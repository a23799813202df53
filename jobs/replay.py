"""Runs a pipeline's kernel over a file of frames: what `streambank replay` does, without the command line.

INPUT is NDJSON or an Avro container file. A line of NDJSON (or a record of the container) is one frame::

    {"produced_at": 1700000000000000, "events": [{"type": "CreateAccount", "id": 1, ...}, ...]}

or one event, which is a frame of that event. ``produced_at`` is in microseconds, 0 when missing; an event alone may
carry it too. ``shard`` (default 0) chooses the kernel: every shard has its own, so a recorded topic can be replayed
whole. ``topic`` chooses the input topic of a pipeline that has several. Other fields are refused by name.

OUT has one line per input frame: ``produced_at`` and the events of the pipeline's reply topic, in order. Integers
beyond 2^53 are decimal strings.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import IO, Any, Final

import fastavro

from pipelines.catalogue import TOPICS, Pipeline
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import FieldError, FrameError, StreambankError
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.kernel import JoinsFrames, Kernel
from pipelines.shard import new_kernel

__all__ = ["Replay", "ReplayError"]

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
MAX_JSON_INTEGER: Final = 2**53
JOINED_EVENTS: Final = 1_000
"""Events that are applied together at most, where the kernel allows it."""

_AVRO_MAGIC: Final = b"Obj\x01"
_HEADER: Final = ("topic", "shard", "sequence", "produced_at", "trace")


class ReplayError(StreambankError):
    """The input cannot be replayed; the message names the line or record and the field."""


class Replay:
    """One run over one input. ``bytes_read``, ``frames``, ``events`` and ``seconds`` tell how far it is."""

    def __init__(
        self, pipeline: Pipeline, source: IO[bytes], *, topic: str | None = None, all_topics: bool = False
    ) -> None:
        self.pipeline = pipeline
        self.bytes_read = 0
        self.frames = 0
        self.events = 0
        self.seconds = 0.0
        """Time inside the kernels."""
        self._source = source if isinstance(source, io.BufferedReader) else io.BufferedReader(source)  # type: ignore[type-var]
        self._topic = topic or pipeline.inputs[0].name
        self._inputs = {found.name for found in pipeline.inputs}
        self._all_topics = all_topics
        self._kernels: dict[int, Kernel] = {}

    def lines(self) -> Iterator[bytes]:
        """Apply the input frame by frame; one line of JSON for each.

        Small frames of a kernel that allows it are applied together, which changes nothing but the time it takes.
        """
        waiting: list[tuple[str, Frame]] = []
        events = 0
        frames = self._read()
        while True:
            try:
                found = next(frames, None)
            except ReplayError:
                # what came before the frame that cannot be read is answered
                yield from self._apply(waiting)
                raise
            if found is None:
                break
            if waiting and (found[1].shard != waiting[0][1].shard or events + len(found[1].events) > JOINED_EVENTS):
                yield from self._apply(waiting)
                waiting, events = [], 0
            waiting.append(found)
            events += len(found[1].events)
            if not isinstance(self._kernel(found[1].shard), JoinsFrames):
                yield from self._apply(waiting)
                waiting, events = [], 0
        yield from self._apply(waiting)

    def _kernel(self, shard: int) -> Kernel:
        kernel = self._kernels.get(shard)
        if kernel is None:
            kernel = self._kernels[shard] = new_kernel(self.pipeline)
        return kernel

    def _apply(self, waiting: list[tuple[str, Frame]]) -> Iterator[bytes]:
        """Apply frames of one shard, and their lines of JSON."""
        if not waiting:
            return
        kernel = self._kernel(waiting[0][1].shard)
        began = time.perf_counter()
        try:
            if isinstance(kernel, JoinsFrames):
                answers = kernel.apply_many([frame for _, frame in waiting])
            else:
                answers = [kernel.apply(frame) for _, frame in waiting]
        except FrameError as error:
            raise ReplayError(f"{waiting[0][0]}: {error}") from error
        self.seconds += time.perf_counter() - began
        for (_, frame), outputs in zip(waiting, answers, strict=True):
            self.frames += 1
            self.events += len(frame.events)
            by_topic: dict[str, list[dict[str, Any]]] = {found.name: [] for found in self.pipeline.outputs}
            for output in outputs:
                if self._all_topics or output.topic == self.pipeline.replies.name:
                    by_topic[output.topic] += render_events(codec_of(output.topic), output.events)
            line: dict[str, Any] = {
                "produced_at": frame.produced_at,
                "events": by_topic.pop(self.pipeline.replies.name),
            }
            if self._all_topics:
                line["other_topics"] = by_topic
            yield _encode(line)

    def state_lines(self) -> Iterator[bytes]:
        """The kernels' final state, one record per line, shard after shard."""
        for shard in sorted(self._kernels):
            for row in self._kernels[shard].state_rows():
                yield _encode(_plain(row if len(self._kernels) == 1 else {"shard": shard, **row}))

    def _read(self) -> Iterator[tuple[str, Frame]]:
        magic = self._source.peek(4)[:4]
        return self._read_container() if magic == _AVRO_MAGIC else self._read_ndjson()

    def _read_ndjson(self) -> Iterator[tuple[str, Frame]]:
        number = 0
        while line := self._source.readline(MAX_LINE_BYTES + 1):
            number += 1
            self.bytes_read += len(line)
            where = f"line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise ReplayError(f"{where}: longer than {MAX_LINE_BYTES} bytes; put fewer events into a frame")
            if not line.strip():
                continue
            try:
                yield where, self._frame(json.loads(line, parse_constant=_refuse_constant))
            except (ValueError, RecursionError) as error:
                raise ReplayError(f"{where}: not JSON: {error}") from error
            except FieldError as error:
                raise ReplayError(f"{where}: {error}") from error

    def _frame(self, value: Any) -> Frame:
        if not isinstance(value, dict):
            raise FieldError("frame", f"a JSON object is expected, found {json.dumps(value)[:60]}")
        header = {name: value[name] for name in _HEADER if name in value}
        events: Any
        if "events" in value:
            unknown = [name for name in value if name not in header and name != "events"]
            if unknown:
                raise FieldError(unknown[0], f"a frame has {', '.join(_HEADER)} and events; remove it")
            events = value["events"]
            if not isinstance(events, list):
                raise FieldError("events", "a list is expected")
        else:
            events = [{name: field for name, field in value.items() if name not in header}]
        topic = header.get("topic", self._topic)
        if topic not in self._inputs:
            raise FieldError("topic", f"{topic!r} is not an input of {self.pipeline.name}")
        trace = header.get("trace")
        if trace is not None and not isinstance(trace, str):
            raise FieldError("trace", "text or null is expected")
        return Frame(
            topic,
            _integer(header, "shard", 2**31 - 1),
            _integer(header, "sequence", 2**63 - 1),
            _integer(header, "produced_at", 2**63 - 1),
            trace,
            parse_events(codec_of(topic), events),
        )

    def _read_container(self) -> Iterator[tuple[str, Frame]]:
        number = 0
        try:
            container = fastavro.block_reader(self._source)
            written = json.loads(json.dumps(container.writer_schema, default=str))
            codec, before, after = self._container_codec(written)
            walkable = fastavro.parse_schema(_without_logical_types(written))
            for block in container:
                data = block.bytes_.getvalue()
                file = io.BytesIO(data)
                for _ in range(block.num_records):
                    number += 1
                    start = file.tell()
                    fastavro.schemaless_reader(file, walkable, None)
                    # the codec reads the record's own bytes, so nothing is lost between the two libraries
                    yield f"record {number}", codec.decode(before + data[start : file.tell()] + after)
                self.bytes_read = self._source.tell() if self._source.seekable() else 0
        except Exception as error:  # fastavro has no error type of its own for what damaged files do to it
            raise ReplayError(f"record {number}: not readable as {self._topic}: {error}") from error

    def _container_codec(self, written: Any) -> tuple[FrameCodec, bytes, bytes]:
        """The codec for a container's records, and what goes before and after one to make it a frame's body.

        A record is a frame, or an event: then it is wrapped as the only one of a frame whose header is zeros.
        """
        reader = TOPICS[self._topic].schema()
        if isinstance(written, dict) and any(field["name"] == "events" for field in written.get("fields", [])):
            return FrameCodec(self._topic, reader, written), b"", b""
        is_union = isinstance(written, list)
        items = {"type": "array", "items": written if is_union else [written]}
        header = [field for field in reader["fields"] if field["name"] != "events"]
        frame = {**reader, "fields": [*header, {"name": "events", "type": items}]}
        # header fields of one zero byte each, one event (zigzag 1 is 2), its branch unless the record has it; end
        before = b"\0" * len(header) + b"\x02" + (b"" if is_union else b"\0")
        return FrameCodec(self._topic, reader, frame), before, b"\0"


def _without_logical_types(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _without_logical_types(value) for name, value in schema.items() if name != "logicalType"}
    if isinstance(schema, list):
        return [_without_logical_types(entry) for entry in schema]
    return schema


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _integer(header: dict[str, Any], name: str, maximum: int) -> int:
    value = header.get(name, 0)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise FieldError(name, f"an integer from 0 to {maximum} is expected, found {json.dumps(value)[:60]}")
    return value


def _plain(value: Any) -> Any:
    """Python values as JSON has them: integers beyond 2^53 as decimal strings."""
    if isinstance(value, dict):
        return {name: _plain(field) for name, field in value.items()}
    if isinstance(value, list):
        return [_plain(field) for field in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_JSON_INTEGER:
        return str(value)
    return value


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
