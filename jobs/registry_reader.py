"""Reads frames by the schema that each record names, looked up in the registry once per process.

The answer for an id never changes, so that decoding stays deterministic; a registry that is away raises
`infra.registry.RegistryError`, which stops a job instead of setting good records aside.
"""

from __future__ import annotations

from infra.registry import SchemaNotRegistered, writer_schema
from infra.settings import Settings
from pipelines.avro_schema import SchemaError
from pipelines.catalogue import TOPICS
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import FrameError
from pipelines.shard import Reader

__all__ = ["registry_reader"]


def registry_reader(config: Settings) -> Reader:
    """A `pipelines.shard.Reader` over one environment's registry; keeps a codec per topic and writer's schema."""
    codecs: dict[tuple[str, int], FrameCodec] = {}

    def read(topic: str, schema_id: int) -> FrameCodec:
        codec = codecs.get((topic, schema_id))
        if codec is None:
            codec = codecs[topic, schema_id] = _codec(topic, schema_id, config)
        return codec

    return read


def _codec(topic: str, schema_id: int, config: Settings) -> FrameCodec:
    schema = TOPICS[topic].schema()
    try:
        writer = writer_schema(schema_id, config)
    except SchemaNotRegistered as error:
        raise FrameError("unknown_schema", f"schema id {schema_id} is not in the registry") from error
    names = [(found.get("namespace"), found.get("name")) for found in (writer, schema) if isinstance(found, dict)]
    if len(names) != 2 or names[0] != names[1]:
        raise FrameError(
            "unknown_schema", f"schema id {schema_id} is {'.'.join(map(str, names[0]))}, not a schema of {topic}"
        )
    if writer == schema:
        return codec_of(topic)
    try:
        return FrameCodec(topic, schema, writer)
    except SchemaError as error:
        raise FrameError("unknown_schema", f"schema id {schema_id} cannot be read as {topic}: {error}") from error
