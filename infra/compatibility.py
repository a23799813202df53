"""Whether data written with one version of a topic's schema is readable with another, without a registry.

The registry asks the same question at registration time; this module asks it in CI, against the released versions kept
in ``avro/released/<topic>/<version>.avsc``, and says which field is at fault. The rules are Avro's schema resolution
(https://avro.apache.org/docs/1.12.0/specification/#schema-resolution) plus what our codec needs and Avro does not
check: a logical type, its precision and scale stay, ``minimum`` and ``maximum`` only widen, and ``flags`` only grow at
the end, since a flag is a bit position.

Levels are the registry's: BACKWARD (new reads old), FORWARD (old reads new), FULL (both), NONE; without _TRANSITIVE
only the newest released version counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipelines.catalogue import SCHEMA_DIRECTORY, Topic
from pipelines.errors import StreambankError

__all__ = ["Schema", "compatibility_level", "problems", "release", "released_versions", "unreadable"]

Schema = Any
"""An Avro schema as parsed JSON: a name, a list (union) or an object."""

LEVELS: Final = frozenset(
    ["NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"]
)
PROMOTIONS: Final[Mapping[str, frozenset[str]]] = {
    "int": frozenset(["long", "float", "double"]),
    "long": frozenset(["float", "double"]),
    "float": frozenset(["double"]),
    "string": frozenset(["bytes"]),
    "bytes": frozenset(["string"]),
}
NAMED: Final = frozenset(["record", "enum", "fixed"])


def compatibility_level(topic: Topic) -> str:
    """The level of a topic's subject from ``avro/compatibility.json``: its own entry, else ``default``."""
    path = SCHEMA_DIRECTORY / "compatibility.json"
    levels: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    level = levels.get(topic.name, levels["default"])
    if level not in LEVELS:
        raise StreambankError(f"{path.name}: {topic.name} has level {level!r}; known are {', '.join(sorted(LEVELS))}")
    return level


def released_versions(topic: Topic) -> list[tuple[int, Schema]]:
    """(version, schema) of the released versions of a topic, oldest first."""
    directory = _released_directory(topic)
    paths = sorted(directory.glob("*.avsc"), key=lambda path: int(path.stem)) if directory.is_dir() else []
    return [(int(path.stem), json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def release(topic: Topic) -> int | None:
    """Keep the current schema as the topic's next released version, if it differs from the newest one.

    Returns the version written, or None. The caller has checked compatibility.
    """
    released = released_versions(topic)
    if released and released[-1][1] == topic.schema():
        return None
    version = released[-1][0] + 1 if released else 1
    path = _released_directory(topic) / f"{version}.avsc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(topic.schema_path.read_bytes())
    return version


def problems(new: Schema, earlier: Sequence[tuple[int, Schema]], level: str) -> list[str]:
    """Why ``new`` may not follow the ``earlier`` versions (oldest first) under ``level``; empty if it may."""
    if level == "NONE":
        return []
    found = []
    for version, old in earlier if level.endswith("_TRANSITIVE") else earlier[-1:]:
        if level.startswith(("BACKWARD", "FULL")):
            found += [f"the new schema cannot read version {version}: {why}" for why in unreadable(new, old)]
        if level.startswith(("FORWARD", "FULL")):
            found += [f"version {version} cannot read the new schema: {why}" for why in unreadable(old, new)]
    return found


def unreadable(reader: Schema, writer: Schema) -> list[str]:
    """Why ``reader`` cannot read what ``writer`` wrote; each reason starts with the field's path. Empty if it can."""
    resolver = _Resolver(_named_types(reader), _named_types(writer))
    return resolver.compare(reader, writer, _short_name(reader) if isinstance(reader, dict) else "")


def _released_directory(topic: Topic) -> Path:
    return SCHEMA_DIRECTORY / "released" / topic.name


class _Resolver:
    """Compares two schemas type by type; ``path`` is where we are, as a reader of the .avsc would say it."""

    def __init__(self, reader_types: Mapping[str, Schema], writer_types: Mapping[str, Schema]) -> None:
        self._reader_types = reader_types
        self._writer_types = writer_types
        self._compared: set[tuple[int, int]] = set()

    def _resolve_reader(self, schema: Schema) -> Schema:
        return self._reader_types.get(schema, schema) if isinstance(schema, str) else schema

    def _resolve_writer(self, schema: Schema) -> Schema:
        return self._writer_types.get(schema, schema) if isinstance(schema, str) else schema

    def compare(self, reader: Schema, writer: Schema, path: str) -> list[str]:
        reader, writer = self._resolve_reader(reader), self._resolve_writer(writer)
        if (id(reader), id(writer)) in self._compared and not isinstance(reader, str):
            return []
        self._compared.add((id(reader), id(writer)))
        if isinstance(writer, list):
            found = []
            for branch in writer:
                found += self._union_branch(reader, self._resolve_writer(branch), path)
            return found
        if isinstance(reader, list):
            return self._union_branch(reader, writer, path)
        return self._types(reader, writer, path)

    def _union_branch(self, reader: Schema, writer: Schema, path: str) -> list[str]:
        """A writer's branch needs one branch of the reader; named types are matched by name, to say what differs."""
        if not isinstance(reader, list):
            return self.compare(reader, writer, path)
        reasons: list[str] = []
        for branch in reader:
            candidate = self._resolve_reader(branch)
            if _is_named(candidate) and _is_named(writer):
                if _names_match(candidate, writer):
                    return self.compare(candidate, writer, _short_name(candidate))
                continue
            reasons = self.compare(candidate, writer, path)
            if not reasons:
                return []
        return [f"{path}: no branch of the union takes {_describe(writer)}"]

    def _types(self, reader: Schema, writer: Schema, path: str) -> list[str]:
        reader_type, writer_type = _type_name(reader), _type_name(writer)
        if reader_type != writer_type:
            if reader_type in PROMOTIONS.get(writer_type, frozenset()):
                return _attributes(reader, writer, path)
            return [f"{path}: {_describe(reader)} cannot read {_describe(writer)}"]
        if reader_type in NAMED and not _names_match(reader, writer):
            return [f"{path}: {_describe(reader)} cannot read {_describe(writer)}; give the old name as an alias"]
        match reader_type:
            case "record":
                return self._records(reader, writer, path)
            case "array":
                return self.compare(reader["items"], writer["items"], path)
            case "map":
                return self.compare(reader["values"], writer["values"], path)
            case "enum":
                missing = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
                if missing and reader.get("default") not in reader["symbols"]:
                    return [f"{path}: symbol {', '.join(missing)} of enum {_short_name(reader)} is gone"]
                return []
            case "fixed":
                if reader["size"] != writer["size"]:
                    return [f"{path}: size {reader['size']} cannot read size {writer['size']}"]
        return _attributes(reader, writer, path)

    def _records(self, reader: Schema, writer: Schema, path: str) -> list[str]:
        found = []
        written = {field["name"]: field for field in writer["fields"]}
        for field in reader["fields"]:
            name = f"{path}.{field['name']}"
            old = next((written[key] for key in (field["name"], *field.get("aliases", ())) if key in written), None)
            if old is not None:
                found += self.compare(field["type"], old["type"], name)
                found += _field_rules(field, old, name)
            elif "default" not in field:
                found.append(f"{name}: a new field without a default")
        return found


def _field_rules(reader: Schema, writer: Schema, path: str) -> list[str]:
    """What the codec needs of a field beyond Avro: ranges only widen, flags keep their bits."""
    found = []
    for bound, narrower in (("minimum", "above"), ("maximum", "below")):
        if bound in reader:
            new, old = reader[bound], writer.get(bound)
            if old is None or (new > old if bound == "minimum" else new < old):
                found.append(f"{path}: {bound} {new} is {narrower} the earlier {'none' if old is None else old}")
    old_flags, new_flags = writer.get("flags"), reader.get("flags")
    if old_flags is not None and (new_flags is None or new_flags[: len(old_flags)] != old_flags):
        found.append(f"{path}: flags are bit positions and may only be added at the end, found {new_flags}")
    return found


def _attributes(reader: Schema, writer: Schema, path: str) -> list[str]:
    """Logical types are part of the value's meaning; Avro itself lets them change."""
    found = []
    for attribute in ("logicalType", "precision", "scale"):
        new = reader.get(attribute) if isinstance(reader, dict) else None
        old = writer.get(attribute) if isinstance(writer, dict) else None
        if new != old:
            found.append(f"{path}: {attribute} was {old}, is {new}")
    return found


def _named_types(schema: Schema) -> dict[str, Schema]:
    """Every named type of a schema, by its short and its full name."""
    found: dict[str, Schema] = {}

    def walk(part: Schema) -> None:
        if isinstance(part, list):
            for branch in part:
                walk(branch)
        elif isinstance(part, dict):
            if _is_named(part):
                found[_short_name(part)] = part
                found[f"{part.get('namespace', schema_namespace)}.{_short_name(part)}"] = part
            for field in part.get("fields", ()):
                walk(field["type"])
            for key in ("items", "values", "type"):
                if isinstance(part.get(key), (dict, list)):
                    walk(part[key])

    schema_namespace = schema.get("namespace", "") if isinstance(schema, dict) else ""
    walk(schema)
    return found


def _is_named(schema: Schema) -> bool:
    return isinstance(schema, dict) and schema.get("type") in NAMED


def _short_name(schema: Schema) -> str:
    return str(schema.get("name", "")).rpartition(".")[2]


def _names_match(reader: Schema, writer: Schema) -> bool:
    aliases = {alias.rpartition(".")[2] for alias in reader.get("aliases", ())}
    return _short_name(writer) in aliases | {_short_name(reader)} and reader["type"] == writer["type"]


def _type_name(schema: Schema) -> str:
    while isinstance(schema, dict):
        schema = schema["type"]
    return "union" if isinstance(schema, list) else str(schema)


def _describe(schema: Schema) -> str:
    name = _type_name(schema)
    return f"{name} {_short_name(schema)}" if _is_named(schema) else name
