"""One shard of one pipeline between encoded records: what every runtime drives, so that all write the same bytes.

A record's value comes in; it is unwrapped, decoded by its writer's schema, applied to the shard's kernel, and the
kernel's outputs leave as numbered, encoded records. Promises:

- **Order and numbering.** Outputs leave in the order of the inputs; each output topic counts its frames from 1 without
  a gap. After a restore the same inputs give the same bytes with the same sequences, so readers drop repeats.
- **Repeated inputs.** A frame that one job numbered (sequence > 0) is applied once; a repeat gives no outputs, a gap
  raises `SequenceGap` and stops the job. Frames of many producers (sequence 0) are idempotent by their events' ids.
- **Chains.** Each frame of a chained output topic carries the hash of the frame before it and its own bytes
  (`pipelines.chain`); the last hash of each topic is part of the shard's page.
- **Bad records.** `FrameError` means that nothing was applied and the record belongs in the dead letters. Any other
  error stops the job.

State is the kernel's pages and one page of its own, ``shard``: JSON with the sequences, the last hashes and the
kernel's state version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, ItemsView, Iterator, Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

from pipelines.catalogue import Pipeline
from pipelines.chain import GENESIS, chain_end, next_hash
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import FrameError, StateVersionError, StreambankError
from pipelines.frames import Frame
from pipelines.kernel import InvariantBroken, Kernel, Output
from pipelines.wire import unwrap, wrap

__all__ = ["SHARD_PAGE", "OutputRecord", "Reader", "SequenceGap", "Shard", "catalogue_reader", "new_kernel"]

SHARD_PAGE: Final = "shard"
"""Key of the shard's own page among those of its kernel."""

_FORMAT: Final = 1

Reader = Callable[[str, int], FrameCodec]
"""(input topic, writer's schema id) -> codec from that writer's schema to the topic's current one. Raises `FrameError`
with reason ``unknown_schema`` for an id that is not a schema of that topic."""


class SequenceGap(StreambankError):  # noqa: N818 - an alarm, named for what happened
    """A numbered input topic skipped a sequence: frames are missing, so the shard stops instead of computing on."""


class OutputRecord(NamedTuple):
    """One encoded frame to send. ``topic`` is the catalogue's name, ``shard`` the partition, ``value`` the bytes."""

    topic: str
    shard: int
    sequence: int
    value: bytes


def catalogue_reader(topic: str, schema_id: int) -> FrameCodec:
    """A reader without a registry: every id is taken for the topic's current schema."""
    del schema_id
    return codec_of(topic)


def new_kernel(pipeline: Pipeline) -> Kernel:
    """A fresh kernel of ``pipeline``, from the factory that the catalogue names."""
    module, _, attribute = pipeline.kernel.partition(":")
    kernel: Kernel = getattr(import_module(module), attribute)()
    return kernel


class _KernelPages(Mapping[str, bytes]):
    """All pages but the shard's own."""

    def __init__(self, pages: Mapping[str, bytes]) -> None:
        self.pages = pages

    def __getitem__(self, key: str) -> bytes:
        if key == SHARD_PAGE:
            raise KeyError(key)
        return self.pages[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self.pages if key != SHARD_PAGE)

    def __len__(self) -> int:
        return len(self.pages) - 1

    def items(self) -> ItemsView[str, bytes]:
        return _KernelItems(self)


class _KernelItems(ItemsView[str, bytes]):
    _mapping: _KernelPages

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return (item for item in self._mapping.pages.items() if item[0] != SHARD_PAGE)


class Shard:
    """One kernel of ``pipeline`` for partition ``shard``; ``schema_ids``: the registry's ids of its output topics."""

    def __init__(
        self,
        pipeline: Pipeline,
        shard: int,
        schema_ids: Mapping[str, int],
        reader: Reader = catalogue_reader,
        kernel: Kernel | None = None,
    ) -> None:
        missing = [topic.name for topic in pipeline.outputs if topic.name not in schema_ids]
        if missing:
            raise ValueError(f"{pipeline.name}: no schema id for {', '.join(missing)}; register the schemas first")
        self.pipeline = pipeline
        self.shard = shard
        self.kernel = new_kernel(pipeline) if kernel is None else kernel
        self._reader = reader
        self._schema_ids = dict(schema_ids)
        self._codecs = {topic.name: codec_of(topic.name) for topic in pipeline.outputs}
        self._inputs = frozenset(topic.name for topic in pipeline.inputs)
        self._numbered = frozenset(topic.name for topic in pipeline.inputs if topic.writers == "one job")
        self._last_input = dict.fromkeys(sorted(self._inputs), 0)
        self._last_output = {topic.name: 0 for topic in pipeline.outputs}
        self._last_hash = {topic.name: GENESIS for topic in pipeline.outputs if topic.chained}
        for name in self._last_hash:
            if not self._codecs[name].is_chained:
                raise ValueError(f"{name} is chained in the catalogue, but its schema has no field chain")
        self._own_page_size = len(self._own_page())
        self._dirty = False

    def decode(self, topic: str, value: bytes) -> Frame:
        """Read one input record. Raises `FrameError` if it is not a frame that this pipeline may apply."""
        if topic not in self._inputs:
            raise ValueError(f"{topic} is not an input of {self.pipeline.name}")
        schema_id, body = unwrap(value)
        return self._reader(topic, schema_id).decode(body)

    def apply(self, topic: str, value: bytes) -> list[OutputRecord]:
        """Decode and apply one input record; see the module for what it raises."""
        return self.apply_frame(self.decode(topic, value))

    def apply_frame(self, frame: Frame) -> list[OutputRecord]:
        """Apply one decoded input frame and return its outputs, numbered and encoded."""
        self._check(frame)
        if frame.topic in self._numbered:
            last = self._last_input[frame.topic]
            if frame.sequence <= last:
                return []
            if last and frame.sequence != last + 1:
                raise SequenceGap(
                    f"{frame.topic} shard {self.shard}: sequence {frame.sequence} follows {last}; "
                    f"{frame.sequence - last - 1} frames are missing"
                )
        outputs = self.kernel.apply(frame)
        if frame.topic in self._numbered:
            self._last_input[frame.topic] = frame.sequence
        self._dirty = True
        return [self._encode(frame, output) for output in outputs]

    def _check(self, frame: Frame) -> None:
        if frame.shard != self.shard:
            raise FrameError("wrong_shard", f"frame of shard {frame.shard} in shard {self.shard}")
        if len(frame.events) > self.pipeline.max_frame_events:
            raise FrameError(
                "too_many_events",
                f"{len(frame.events)} events in one frame; {self.pipeline.name} takes {self.pipeline.max_frame_events}",
            )
        if frame.topic in self._numbered and frame.sequence < 1:
            raise FrameError(
                "not_numbered", f"sequence {frame.sequence} on {frame.topic}, which one job numbers from 1"
            )

    def _encode(self, frame: Frame, output: Output) -> OutputRecord:
        sequence = self._last_output[output.topic] + 1
        self._last_output[output.topic] = sequence
        answer = Frame(output.topic, self.shard, sequence, frame.produced_at, frame.trace, output.events)
        try:
            body = self._codecs[output.topic].encode(answer)
        except FrameError as error:
            # the state has moved on: this must stop the job, not become a dead letter
            raise InvariantBroken(
                f"{self.pipeline.name} made an event that {output.topic} cannot carry: {error}"
            ) from error
        schema_id = self._schema_ids[output.topic]
        previous = self._last_hash.get(output.topic)
        if previous is None:
            return OutputRecord(output.topic, self.shard, sequence, wrap(schema_id, body))
        digest = self._last_hash[output.topic] = next_hash(previous, body)
        value = wrap(schema_id, memoryview(body)[:-1], chain_end(digest))
        return OutputRecord(output.topic, self.shard, sequence, value)

    def dirty_pages(self) -> dict[str, bytes]:
        """Pages changed since the last call, by key; with all earlier ones, the latest of each key is the state."""
        pages = self.kernel.dirty_pages()
        if self._dirty:
            pages[SHARD_PAGE] = self._own_page()
            self._own_page_size = len(pages[SHARD_PAGE])
            self._dirty = False
        return pages

    def dirty_bytes(self) -> int:
        """About the size of what `dirty_pages` would return (the shard's own page is as of its last call); O(1)."""
        return self.kernel.dirty_bytes() + (self._own_page_size if self._dirty else 0)

    def restore(self, pages: Mapping[str, bytes]) -> bool:
        """Load stored pages into this fresh shard. No pages at all is the empty state. The mapping's items are read
        once, one after another, so that it may come straight from a store.

        True when an earlier version's state was upcast: `dirty_pages` then returns the whole state, and the runtime
        must forget all stored pages before it stores those. Raises `StateVersionError` for a state this code cannot
        read.
        """
        if SHARD_PAGE not in pages:
            first = next(iter(pages), None)
            if first is None:
                return False
            raise StateVersionError(
                f"{self.pipeline.name} shard {self.shard}: page {first!r} and perhaps more, but not {SHARD_PAGE!r}"
            )
        own: dict[str, Any] = json.loads(pages[SHARD_PAGE])
        found = (own["format"], own["pipeline"], own["shard"])
        if found != (_FORMAT, self.pipeline.name, self.shard):
            raise StateVersionError(
                f"pages of {own['pipeline']} shard {own['shard']} (format {own['format']}) "
                f"given to {self.pipeline.name} shard {self.shard} (format {_FORMAT})"
            )
        version = own["state_version"]
        if version > self.kernel.state_version:
            raise StateVersionError(
                f"{self.pipeline.name} shard {self.shard}: state version {version} is newer than this code's "
                f"{self.kernel.state_version}; deploy the code that wrote it, or a later one"
            )
        self.kernel.restore(_KernelPages(pages), version)
        upcast: bool = version != self.kernel.state_version
        self._dirty = upcast
        # a topic added to the catalogue since then starts at 0
        self._last_output |= {topic: last for topic, last in own["outputs"].items() if topic in self._last_output}
        self._last_hash |= {
            topic: bytes.fromhex(last) for topic, last in own.get("hashes", {}).items() if topic in self._last_hash
        }
        self._last_input |= {topic: last for topic, last in own["inputs"].items() if topic in self._last_input}
        return upcast

    def _own_page(self) -> bytes:
        return json.dumps(
            {
                "format": _FORMAT,
                "pipeline": self.pipeline.name,
                "shard": self.shard,
                "state_version": self.kernel.state_version,
                "inputs": self._last_input,
                "outputs": self._last_output,
                "hashes": {topic: last.hex() for topic, last in self._last_hash.items()},
            }
        ).encode()
