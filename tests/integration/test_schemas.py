"""Schemas in the real registry: registered once, looked up by id, refused when incompatible."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.registry import (
    RegistryError,
    SchemaIncompatible,
    SchemaNotRegistered,
    SchemaRegistry,
    register,
    schema_ids,
    writer_schema,
)
from infra.settings import Settings
from infra.stack.registry import Registry
from pipelines.catalogue import LEDGER_COMMANDS, TOPICS, Topic
from tests.support.stack import variables

pytestmark = pytest.mark.stack


def _streambank(environment: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("streambank")), *arguments]
    return subprocess.run(
        command,
        env=variables(environment) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class _ChangedTopic(Topic):
    """ledger.commands with another schema file."""

    __slots__ = ()

    def schema(self) -> dict[str, Any]:
        schema = copy.deepcopy(LEDGER_COMMANDS.schema())
        transfer = schema["fields"][4]["type"]["items"][1]
        transfer["fields"].append({"name": "purpose", "type": "string", "doc": "Without a default."})
        return schema


CHANGED = _ChangedTopic(**{field.name: getattr(LEDGER_COMMANDS, field.name) for field in dataclasses.fields(Topic)})


def test_register_is_idempotent_and_ids_resolve_to_the_same_schema(registry: Registry, environment: Settings) -> None:
    with pytest.raises(SchemaNotRegistered, match="streambank schemas register"):
        schema_ids(TOPICS.values(), environment)
    first = {topic.name: register(topic, environment) for topic in TOPICS.values()}
    assert {topic.name: register(topic, environment) for topic in TOPICS.values()} == first
    assert schema_ids(TOPICS.values(), environment) == first
    assert len(set(first.values())) == len(TOPICS)
    for topic in TOPICS.values():
        # with every attribute that the codec needs: flags, minimum, maximum, logical types
        assert writer_schema(first[topic.name], environment) == topic.schema()
    with SchemaRegistry(environment) as connection:
        assert connection.subject(LEDGER_COMMANDS) == f"{environment.topic_prefix}ledger.commands-value"
        assert connection.versions(LEDGER_COMMANDS) == [(1, LEDGER_COMMANDS.schema())]


def test_the_registry_itself_refuses_an_incompatible_schema(registry: Registry, environment: Settings) -> None:
    register(LEDGER_COMMANDS, environment)
    with SchemaRegistry(environment) as connection:
        assert connection.check(LEDGER_COMMANDS) == []
        assert connection.check(CHANGED)
        with pytest.raises(SchemaIncompatible):
            connection.register(CHANGED)
        assert len(connection.versions(LEDGER_COMMANDS)) == 1


def test_unknown_ids_and_a_missing_registry_are_clear_errors(registry: Registry, environment: Settings) -> None:
    with pytest.raises(SchemaNotRegistered, match="schema id 2000000000"):
        writer_schema(2_000_000_000, environment)
    nobody = environment.model_copy(update={"registry_port": 9})
    with pytest.raises(RegistryError, match="streambank up"):
        schema_ids(TOPICS.values(), nobody)


def test_schemas_survive_a_restart_of_the_registry(registry: Registry, environment: Settings) -> None:
    before = {topic.name: register(topic, environment) for topic in TOPICS.values()}
    registry.stop()
    registry.start()
    registry.wait_healthy()
    assert schema_ids(TOPICS.values(), environment) == before


def test_cli_registers_and_checks(registry: Registry, environment: Settings) -> None:
    for _ in range(2):
        done = _streambank(environment, "schemas", "register")
        assert done.returncode == 0, done.stderr
        assert all(f"{environment.topic_prefix}{name}-value" in done.stdout for name in TOPICS)
    done = _streambank(environment, "schemas", "check")
    assert done.returncode == 0, done.stdout
    assert "incompatible" not in done.stdout
    assert all(name in done.stdout for name in TOPICS)


def test_cli_check_names_the_field_that_the_registry_would_refuse(registry: Registry, environment: Settings) -> None:
    """What is deployed is ahead: the registry holds a field of another type than the file here."""
    deployed = copy.deepcopy(LEDGER_COMMANDS.schema())
    code = next(f for f in deployed["fields"][4]["type"]["items"][1]["fields"] if f["name"] == "code")
    code["type"], code["maximum"] = "long", 2**40
    with SchemaRegistry(environment) as connection:
        body = json.dumps({"schemaType": "AVRO", "schema": json.dumps(deployed)})
        connection._call("POST", f"/subjects/{connection.subject(LEDGER_COMMANDS)}/versions", content=body)
    done = _streambank(environment, "schemas", "check")
    assert done.returncode == 1
    assert "CreateTransfer.code: int cannot read long" in done.stdout
    done = _streambank(environment, "schemas", "register")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert _streambank(environment, "schemas", "check", "--offline").returncode == 0
