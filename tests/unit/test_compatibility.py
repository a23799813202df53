"""A schema change that would make stored frames unreadable is found and the field is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import avro.compatibility
import avro.schema
import pytest

from infra.compatibility import compatibility_level, problems, released_versions, unreadable
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_EVENTS, LEDGER_RESULTS, TOPICS, Topic


def _event(schema: dict[str, Any], name: str) -> dict[str, Any]:
    events = schema["fields"][4]["type"]["items"]
    return next(branch for branch in events if branch["name"] == name)


def _field(schema: dict[str, Any], event: str, name: str) -> dict[str, Any]:
    return next(field for field in _event(schema, event)["fields"] if field["name"] == name)


def _add_field(schema: dict[str, Any], **field: Any) -> None:
    _event(schema, "CreateTransfer")["fields"].append(field)


def _remove_symbol(schema: dict[str, Any]) -> None:
    _field(schema, "TransferResult", "result")["type"]["symbols"].remove("exceeds_credits")


def _rename_field(schema: dict[str, Any], *, alias: bool) -> None:
    # `ledger` of an account has no default, so its value must come from the writer
    field = _field(schema, "AccountCreated", "ledger")
    field["name"] = "book"
    if alias:
        field["aliases"] = ["ledger"]


Change = Callable[[dict[str, Any]], Any]

INCOMPATIBLE: list[tuple[str, Topic, Change, str]] = [
    (
        "new field without default",
        LEDGER_COMMANDS,
        lambda schema: _add_field(schema, name="purpose", type="string"),
        "CreateTransfer.purpose: a new field without a default",
    ),
    (
        "type changed",
        LEDGER_COMMANDS,
        lambda schema: _field(schema, "CreateTransfer", "code").update(type="string", default=""),
        "CreateTransfer.code: string cannot read int",
    ),
    (
        "long narrowed to int",
        LEDGER_COMMANDS,
        lambda schema: _field(schema, "CreateTransfer", "timeout").update(type="int"),
        "CreateTransfer.timeout: int cannot read long",
    ),
    (
        "event type removed",
        LEDGER_COMMANDS,
        lambda schema: schema["fields"][4]["type"]["items"].pop(0),
        "LedgerCommands.events: no branch of the union takes record CreateAccount",
    ),
    (
        "result code removed",
        LEDGER_RESULTS,
        _remove_symbol,
        "TransferResult.result: symbol exceeds_credits of enum TransferResultCode is gone",
    ),
    (
        "renamed without alias",
        LEDGER_EVENTS,
        lambda schema: _rename_field(schema, alias=False),
        "AccountCreated.book: a new field without a default",
    ),
]

OWN_RULES: list[tuple[str, Topic, Change, str]] = [
    (
        "precision lost",
        LEDGER_COMMANDS,
        lambda schema: _field(schema, "CreateTransfer", "amount")["type"].update(precision=20),
        "CreateTransfer.amount: precision was 39, is 20",
    ),
    (
        "maximum lowered",
        LEDGER_COMMANDS,
        lambda schema: _field(schema, "CreateAccount", "code").update(maximum=255),
        "CreateAccount.code: maximum 255 is below the earlier 65535",
    ),
    (
        "minimum raised",
        LEDGER_COMMANDS,
        lambda schema: _field(schema, "CreateAccount", "code").update(minimum=1),
        "CreateAccount.code: minimum 1 is above the earlier 0",
    ),
    (
        "flag inserted before another",
        LEDGER_COMMANDS,
        lambda schema: _field(schema, "CreateTransfer", "flags")["flags"].insert(0, "urgent"),
        "CreateTransfer.flags: flags are bit positions",
    ),
]

COMPATIBLE: list[tuple[str, Topic, Change]] = [
    ("nothing", LEDGER_COMMANDS, lambda schema: None),
    (
        "field with default",
        LEDGER_COMMANDS,
        lambda schema: _add_field(schema, name="purpose", type=["null", "string"], default=None),
    ),
    (
        "field removed",
        LEDGER_COMMANDS,
        lambda schema: _event(schema, "CreateTransfer")["fields"].remove(
            _field(schema, "CreateTransfer", "user_data_32")
        ),
    ),
    (
        "event type added",
        LEDGER_COMMANDS,
        lambda schema: schema["fields"][4]["type"]["items"].append({"type": "record", "name": "Close", "fields": []}),
    ),
    (
        "result code added",
        LEDGER_RESULTS,
        lambda schema: _field(schema, "TransferResult", "result")["type"]["symbols"].append("frozen"),
    ),
    ("renamed with alias", LEDGER_EVENTS, lambda schema: _rename_field(schema, alias=True)),
    (
        "int widened to long",
        LEDGER_COMMANDS,
        lambda schema: _field(schema, "CreateAccount", "code").update(type="long", maximum=2**32),
    ),
    (
        "flag added at the end",
        LEDGER_COMMANDS,
        lambda schema: _field(schema, "CreateTransfer", "flags")["flags"].append("urgent"),
    ),
]


def _changed(topic: Topic, change: Change) -> dict[str, Any]:
    schema = copy.deepcopy(topic.schema())
    change(schema)
    return schema


def _avro_says_readable(reader: Any, writer: Any) -> bool:
    parse = avro.schema.parse
    result = avro.compatibility.ReaderWriterCompatibilityChecker().get_compatibility(
        parse(json.dumps(reader)), parse(json.dumps(writer))
    )
    return result.compatibility is avro.compatibility.SchemaCompatibilityType.compatible


@pytest.mark.parametrize(
    ("topic", "change", "expected"),
    [case[1:] for case in INCOMPATIBLE + OWN_RULES],
    ids=[case[0] for case in INCOMPATIBLE + OWN_RULES],
)
def test_incompatible_change_names_the_field(topic: Topic, change: Change, expected: str) -> None:
    found = problems(_changed(topic, change), [(1, topic.schema())], "BACKWARD_TRANSITIVE")
    assert len(found) == 1
    assert found[0].startswith(f"the new schema cannot read version 1: {expected}")


@pytest.mark.parametrize(("topic", "change"), [case[1:] for case in COMPATIBLE], ids=[case[0] for case in COMPATIBLE])
def test_compatible_change_passes(topic: Topic, change: Change) -> None:
    assert problems(_changed(topic, change), [(1, topic.schema())], "BACKWARD_TRANSITIVE") == []


@pytest.mark.parametrize(
    ("topic", "change", "readable"),
    [(*case[1:3], False) for case in INCOMPATIBLE] + [(*case[1:], True) for case in COMPATIBLE],
)
def test_avro_library_agrees(topic: Topic, change: Change, readable: bool) -> None:
    """Apart from our own, stricter rules, the verdict is the Avro library's."""
    new = _changed(topic, change)
    assert _avro_says_readable(new, topic.schema()) is readable
    assert (unreadable(new, topic.schema()) == []) is readable


def test_transitive_levels_look_at_every_version_others_at_the_newest() -> None:
    new = LEDGER_COMMANDS.schema()
    first = _changed(LEDGER_COMMANDS, lambda schema: _field(schema, "CreateTransfer", "code").update(type="string"))
    history = [(1, first), (2, new)]
    assert problems(new, history, "BACKWARD") == []
    assert "version 1: CreateTransfer.code" in problems(new, history, "BACKWARD_TRANSITIVE")[0]
    assert problems(new, history, "NONE") == []


def test_full_checks_both_directions() -> None:
    old = LEDGER_COMMANDS.schema()
    new = _changed(LEDGER_COMMANDS, COMPATIBLE[3][2])  # a new event type: old readers do not know it
    assert problems(new, [(1, old)], "BACKWARD") == []
    assert problems(new, [(1, old)], "FULL") == [
        "version 1 cannot read the new schema: LedgerCommands.events: no branch of the union takes record Close"
    ]


@pytest.mark.parametrize("topic", TOPICS.values(), ids=list(TOPICS))
def test_current_schemas_are_compatible_with_what_was_released(topic: Topic) -> None:
    released = released_versions(topic)
    assert released, f"{topic.name} was never released; run `streambank schemas release`"
    assert problems(topic.schema(), released, compatibility_level(topic)) == []
