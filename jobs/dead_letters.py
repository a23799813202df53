"""Dead letters: records and events set aside, with where they came from and why.

A letter is one event of a dead-letter topic; each is sent as a frame of its own, in the partition of the record it came
from, with the record's value as it was read. Delivery is at least once: a consumer that dies between a letter and its
own position sends the letter again, so readers tell letters apart by (consumer, topic, partition, offset, event index).

This is not a hot path: letters are read and written with fastavro.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import fastavro

from pipelines.catalogue import Topic
from pipelines.errors import FrameError
from pipelines.wire import unwrap, wrap

__all__ = ["MAX_PAYLOAD_BYTES", "DeadLetter", "LetterPlace", "decode_letters", "encode_letter", "schema_id_of"]

MAX_PAYLOAD_BYTES: Final = 960_000
"""A record that is larger is not copied into its letter: the letter would not fit into a record itself."""
MAX_DETAIL_CHARACTERS: Final = 2_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record, or one event of it (``event_index`` from 0; -1 for the whole record).

    ``topic`` is the logical topic. ``payload`` is empty when the record was larger than `MAX_PAYLOAD_BYTES`; it can
    still be read at its offset, as long as the topic keeps it.
    """

    consumer: str
    topic: str
    partition: int
    offset: int
    schema_id: int
    event_index: int
    reason: str
    detail: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class LetterPlace:
    """A letter with where it lies in the dead-letter topic. ``index`` is its place in the frame; times are UTC
    microseconds."""

    letter: DeadLetter
    topic: str
    partition: int
    offset: int
    index: int
    produced_at: int
    trace: str | None

    @property
    def id(self) -> str:
        """Name for the command line: ``pipeline:partition-offset``, with ``.index`` in a frame of several."""
        pipeline = self.topic.split(".", 1)[0]
        return f"{pipeline}:{self.partition}-{self.offset}" + (f".{self.index}" if self.index else "")


def schema_id_of(value: bytes | None) -> int:
    """The writer schema id in a record's value, -1 if none can be read."""
    try:
        return unwrap(value)[0]
    except FrameError:
        return -1


def encode_letter(topic: Topic, schema_id: int, letter: DeadLetter, trace: str | None = None) -> bytes:
    """The record's value for one letter on dead-letter ``topic``, whose schema has the id ``schema_id``."""
    detail = letter.detail[:MAX_DETAIL_CHARACTERS]
    payload = letter.payload
    if len(payload) > MAX_PAYLOAD_BYTES:
        payload = b""
        detail += f" (The record of {len(letter.payload)} bytes is too large to be copied; read it at its offset.)"
    body = io.BytesIO()
    frame = {
        "shard": letter.partition,
        "sequence": 0,
        "produced_at": time.time_ns() // 1000,
        "trace": trace,
        "events": [{**asdict(letter), "detail": detail, "payload": payload}],
    }
    fastavro.schemaless_writer(body, _plain(topic.schema()), frame)
    return wrap(schema_id, body.getvalue())


def decode_letters(
    topic: Topic, partition: int, offset: int, value: bytes | None, writer_schema: Callable[[int], Mapping[str, Any]]
) -> list[LetterPlace]:
    """The letters in one record of a dead-letter topic. Raises `FrameError` if it is none."""
    schema_id, body = unwrap(value)
    try:
        frame: Any = fastavro.schemaless_reader(
            io.BytesIO(body), _plain(writer_schema(schema_id)), _plain(topic.schema())
        )
    except (EOFError, ValueError, IndexError, KeyError, TypeError, fastavro.schema.SchemaParseException) as error:
        raise FrameError("bad_letter", f"{topic.name} {partition}-{offset} is not a dead letter: {error}") from error
    return [
        LetterPlace(
            DeadLetter(**event), topic.name, partition, offset, index, int(frame["produced_at"]), frame["trace"]
        )
        for index, event in enumerate(frame["events"])
    ]


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with times as the plain numbers they are on the wire, not as datetimes."""
    return {
        **schema,
        "fields": [
            {**field, "type": "long"} if field["name"] == "produced_at" else field for field in schema["fields"]
        ],
    }
