"""Errors of the domain.

StreambankError
├── FrameError            a record is not a frame of its topic; `reason` is the dead letter's reason code
├── FieldError            an event's field is missing, unknown or out of range; `field` names it
└── StateVersionError     stored pages have a version that this kernel cannot read

Others are defined beside what raises them, say `pipelines.avro_schema.SchemaError` and `pipelines.shard.SequenceGap`.
"""

from __future__ import annotations

__all__ = ["FieldError", "FrameError", "StateVersionError", "StreambankError"]


class StreambankError(Exception):
    """Base of all errors raised on purpose."""


class FrameError(StreambankError):
    """A record that is not a readable frame. ``reason`` is a short code, the message says what was found where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class FieldError(StreambankError):
    """A field of an event does not fit its schema."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


class StateVersionError(StreambankError):
    """Stored state was written by a version that this kernel cannot upcast."""
