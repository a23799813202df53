"""The codec against fastavro, byte for byte, over random schemas and over the topics' own."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalogue import TOPICS
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import FrameError
from tests.support.avro_frames import (
    frame_of,
    frame_value,
    items_of,
    oracle_schema,
    oracle_write,
    real_values,
    schemas_and_values,
    unqualified,
)

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=150)


@DETERMINISTIC
@given(schemas_and_values())
def test_any_schema_reads_what_fastavro_wrote_and_writes_the_same_bytes(
    case: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    schema, value = case
    codec = FrameCodec("test", schema)
    body = oracle_write(schema, value)
    decoded = codec.decode(body)
    assert frame_value(codec, decoded) == unqualified(value)
    assert codec.encode(decoded) == body
    assert codec.encode(frame_of(codec, value)) == body
    assert codec.decode_header(body) == (value["shard"], value["sequence"], value["produced_at"])


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_every_topic_reads_what_fastavro_wrote_and_writes_the_same_bytes(topic: str) -> None:
    codec = codec_of(topic)

    @settings(DETERMINISTIC, max_examples=40)
    @given(real_values(codec.schema))
    def check(value: dict[str, Any]) -> None:
        body = oracle_write(codec.schema, value)
        decoded = codec.decode(body)
        assert frame_value(codec, decoded) == unqualified(value)
        assert codec.encode(decoded) == body == codec.encode(frame_of(codec, value))

    check()


@DETERMINISTIC
@given(schemas_and_values(), st.data())
def test_events_may_come_in_several_blocks_with_and_without_their_size(
    case: tuple[dict[str, Any], dict[str, Any]], data: st.DataObject
) -> None:
    schema, value = case
    codec = FrameCodec("test", schema)
    header = oracle_write(schema, value | {"events": []})[:-1]
    items = _written_items(schema, value)
    body = bytearray(header)
    while items:
        size = data.draw(st.integers(1, len(items)), label="events of the block")
        block = b"".join(items[:size])
        del items[:size]
        if data.draw(st.booleans(), label="block with its size"):
            body += _long(-size) + _long(len(block)) + block
        else:
            body += _long(size) + block
    body += _long(0)
    decoded = codec.decode(bytes(body))
    assert frame_value(codec, decoded) == unqualified(value)
    assert codec.encode(decoded) == oracle_write(schema, value)


@settings(DETERMINISTIC, max_examples=100)
@given(schemas_and_values(), st.sampled_from([-1, 1, 1000]))
def test_a_block_of_another_size_than_announced_is_refused(
    case: tuple[dict[str, Any], dict[str, Any]], wrong_by: int
) -> None:
    schema, value = case
    block = b"".join(_written_items(schema, value))
    if not value["events"] or len(block) + wrong_by < 0:
        return
    header = oracle_write(schema, value | {"events": []})[:-1]
    body = header + _long(-len(value["events"])) + _long(len(block) + wrong_by) + block + _long(0)
    with pytest.raises(FrameError) as error:
        FrameCodec("test", schema).decode(body)
    assert error.value.reason in ("bad_block_size", "truncated", "bad_count")


@settings(DETERMINISTIC, max_examples=60)
@given(schemas_and_values())
def test_rows_are_views_of_each_event_type(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    schema, value = case
    codec = FrameCodec("test", schema)
    events = codec.decode(oracle_write(schema, value)).events
    for event_type in codec.event_types:
        view = events.view(event_type.dtype)
        assert view.shape == (len(value["events"]),)
        assert view.dtype.itemsize == 8 * codec.row_words
        np.testing.assert_array_equal(view["kind"], events.rows[:, 0])
        for field in event_type.fields:
            for offset, (name, _) in enumerate(field.word_names):
                np.testing.assert_array_equal(view[name].view(np.int64), events.rows[:, field.word + offset])


def _written_items(schema: dict[str, Any], value: dict[str, Any]) -> list[bytes]:
    parsed = oracle_schema({**schema, "fields": schema["fields"]})
    items = next(entry["type"]["items"] for entry in parsed["fields"] if entry["name"] == "events")
    written = []
    for name, event in value["events"]:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, items, (name, event) if isinstance(items_of(schema), list) else event)
        written.append(out.getvalue())
    return written


def _long(value: int) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "long", value)
    return out.getvalue()
