"""The contract between a system's domain and the runtimes that drive it.

A kernel is a deterministic state machine of one shard: the same frames in give the same rows out, in the same order.
It sees no clock, randomness, environment, Kafka, Flink or database; time comes from the frames. A refused command is
an output event with a reason code. A broken invariant raises `InvariantBroken`, which stops the job.

State lives in NumPy arrays cut into pages (`pipelines.pages`), so that a runtime can store what changed and load
it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pipelines.frames import Events, Frame


class InvariantBroken(AssertionError):  # noqa: N818 - an alarm, named for what happened
    """The kernel's state contradicts itself; the job must stop and nothing may be written."""


@dataclass(frozen=True, slots=True)
class Output:
    """Events for one logical topic; the runtime numbers, encodes and sends them as one frame."""

    topic: str
    events: Events


class Kernel(Protocol):
    """One shard of one system."""

    state_version: int
    """Version of the page layout; `restore` upcasts pages of earlier versions or refuses them."""

    def apply(self, frame: Frame) -> list[Output]:
        """Apply one input frame and return its outputs in order. Never half applied: it returns; or it raises
        `pipelines.errors.FrameError` with nothing changed, and the frame is set aside; or it raises anything else
        and the job stops."""
        ...

    def dirty_pages(self) -> dict[str, bytes]:
        """Pages changed since the last call, by key. All of them together with the earlier ones are the state."""
        ...

    def dirty_bytes(self) -> int:
        """Size of what `dirty_pages` would return now; O(1)."""
        ...

    def restore(self, pages: Mapping[str, bytes], state_version: int) -> None:
        """Load a state written by `dirty_pages` into a fresh kernel, upcasting an earlier ``state_version``.

        After an upcast every page is dirty, otherwise none. Raises `pipelines.errors.StateVersionError` for a version
        it cannot read.
        """
        ...

    def state_rows(self) -> Iterator[dict[str, Any]]:
        """The state as plain records, in a fixed order, for `streambank replay --state` and for comparisons."""
        ...


@runtime_checkable
class JoinsFrames(Protocol):
    """A kernel whose answers do not depend on where its frames begin and end, and which takes many at once."""

    def apply_many(self, frames: Sequence[Frame]) -> list[list[Output]]:
        """What `Kernel.apply` would return for each of the frames of one shard, one after another."""
        ...
