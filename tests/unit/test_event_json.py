"""Events as JSON: what is accepted, what is refused by which name, and that rendering is parsing's inverse."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from pipelines.catalogue import TOPICS
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import FieldError
from pipelines.event_json import EventsBuilder, json_schema, parse_event, parse_events, render_events
from tests.support.avro_frames import frame_of, frame_schema, frame_value, real_values, schemas_and_values

COMMANDS = codec_of("ledger.commands")
TRANSFER: dict[str, Any] = {"type": "CreateTransfer", "id": 7, "amount": 100, "ledger": 1, "code": 1}

EVERYTHING = FrameCodec(
    "test",
    frame_schema(
        {
            "type": "record",
            "name": "Everything",
            "fields": [
                {"name": "boolean", "type": "boolean"},
                {"name": "long", "type": "long"},
                {"name": "float", "type": "float"},
                {"name": "double", "type": ["null", "double"]},
                {"name": "string", "type": "string"},
                {"name": "bytes", "type": ["null", "bytes"], "default": None},
                {"name": "enum", "type": {"type": "enum", "name": "Side", "symbols": ["BUY", "SELL"]}},
                {"name": "fixed", "type": {"type": "fixed", "name": "Hash", "size": 10}},
                {
                    "name": "price",
                    "type": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2},
                    "doc": "Price.",
                },
                {"name": "note", "type": "string", "default": "none"},
                {"name": "flags", "type": "int", "flags": ["a", "b"], "default": 0},
            ],
        }
    ),
)
EVENT: dict[str, Any] = {
    "type": "Everything",
    "boolean": True,
    "long": "9223372036854775807",
    "float": 1.5,
    "double": None,
    "string": "größer",
    "bytes": "AP8=",
    "enum": "SELL",
    "fixed": base64.b64encode(b"tenbytes!!").decode(),
    "price": "12.34",
    "note": "x",
    "flags": ["b"],
}


def parse_and_render(codec: FrameCodec, record: dict[str, Any]) -> dict[str, Any]:
    return render_events(codec, parse_events(codec, [record]))[0]


def test_what_is_rendered_is_what_was_parsed() -> None:
    assert parse_and_render(EVERYTHING, EVENT) == EVENT


def test_defaults_are_filled_in() -> None:
    lean = {name: value for name, value in EVENT.items() if name not in ("bytes", "note", "flags")}
    assert parse_and_render(EVERYTHING, lean) == {**EVENT, "bytes": None, "note": "none", "flags": []}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(schemas_and_values())
def test_any_schema_renders_json_that_parses_to_the_same_events(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    schema, value = case
    codec = FrameCodec("test", schema)
    frame = frame_of(codec, value)
    rendered = json.loads(json.dumps(render_events(codec, frame.events)))
    parsed = parse_events(codec, rendered)
    assert render_events(codec, parsed) == rendered
    assert [name for name, _ in frame_value(codec, frame)["events"]] == [record["type"] for record in rendered]
    assert codec.encode(replace(frame, events=parsed)) == codec.encode(frame)


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_every_topic_renders_json_that_parses_to_the_same_events(topic: str) -> None:
    codec = codec_of(topic)

    @settings(derandomize=True, deadline=None, max_examples=30)
    @given(real_values(copy.deepcopy(codec.schema)))
    def check(value: dict[str, Any]) -> None:
        frame = frame_of(codec, value)
        rendered = json.loads(json.dumps(render_events(codec, frame.events)))
        parsed = parse_events(codec, rendered)
        assert render_events(codec, parsed) == rendered
        assert len(parsed) == len(frame.events)

    check()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**53, 2**53),
        (2**53 + 1, str(2**53 + 1)),
        (str(2**128 - 1), str(2**128 - 1)),
        (2**128 - 1, str(2**128 - 1)),
        ("0", 0),
        ("12", 12),
    ],
)
def test_integers_are_numbers_or_decimal_strings(value: Any, expected: Any) -> None:
    assert parse_and_render(COMMANDS, TRANSFER | {"amount": value})["amount"] == expected


NO_U128: list[Any] = [
    *(-1, "-1", 1.5, 1e3, 1.0, True, None, [], {}, 2**128, str(2**128), "9" * 5000),
    *("", "1.5", "1e3", "0x10", "007", "-0", " 1", "1 ", "+1", "1_000", "\N{FULLWIDTH DIGIT ONE}"),
]


@pytest.mark.parametrize("value", NO_U128)
def test_an_amount_that_is_no_u128_is_refused(value: Any) -> None:
    with pytest.raises(FieldError) as error:
        parse_events(COMMANDS, [TRANSFER, TRANSFER, TRANSFER, TRANSFER | {"amount": value}])
    assert error.value.field == "events[3].amount"
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("changed", "field", "message"),
    [
        ({"amount": -1}, "amount", "must not be negative, found -1"),
        ({"amount": 1.5}, "amount", "without fraction"),
        ({"code": 65536}, "code", "between 0 and 65535"),
        ({"code": "1"}, "code", "must be an integer"),
        ({"ledger": 2**32}, "ledger", "between 0 and 4294967295"),
        ({"user_data_64": 2**64}, "user_data_64", "between 0 and 18446744073709551615"),
        ({"timestamp": 2**63}, "timestamp", "between"),
        ({"amuont": 1}, "amuont", "no such field"),
        ({"flags": ["pending", "nope"]}, "flags", 'unknown flag "nope"'),
        ({"flags": ["pending", "pending"]}, "flags", "twice"),
        ({"flags": 2}, "flags", "list of names"),
        ({"flags": [1]}, "flags", "unknown flag 1"),
        ({"flags": [["pending"]]}, "flags", "unknown flag"),
        ({"type": "CreateTransfers"}, "type", "CreateAccount, CreateTransfer"),
        ({"type": ["CreateTransfer"]}, "type", "CreateAccount, CreateTransfer"),
    ],
)
def test_each_fault_names_its_field(changed: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(FieldError, match=message) as error:
        parse_event(COMMANDS, TRANSFER | changed)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"boolean": 1}, "true or false"),
        ({"boolean": None}, "true or false"),
        ({"float": "1.5"}, "a number"),
        ({"float": True}, "a number"),
        ({"float": 1e39}, "does not fit"),
        ({"double": 10**400}, "does not fit"),
        ({"string": 5}, "a string"),
        ({"string": "\ud800"}, "surrogate"),
        ({"bytes": "AP8"}, "base64"),
        ({"bytes": "AP8=\n"}, "base64"),
        ({"bytes": "ä"}, "base64"),
        ({"fixed": "AP8="}, "must be 10 bytes"),
        ({"enum": "HOLD"}, "BUY, SELL"),
        ({"enum": 0}, "BUY, SELL"),
        ({"price": 12.5}, "decimal in a string"),
        ({"price": "12.345"}, "at most 2 digits"),
        ({"price": "-1.00"}, "negative"),
        ({"price": "100000000.00"}, "between 0.00 and 99999999.99"),
    ],
)
def test_values_of_every_type_are_checked(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message) as error:
        parse_events(EVERYTHING, [EVENT | changed])
    assert error.value.field == f"events[0].{next(iter(changed))}"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_lacks_are_strings(number: str) -> None:
    assert parse_and_render(EVERYTHING, EVENT | {"double": number})["double"] == number


@pytest.mark.parametrize(("record", "field"), [(5, "events[0]"), (None, "events[0]"), ({}, "events[0].type")])
def test_what_is_no_event_is_refused(record: Any, field: str) -> None:
    with pytest.raises(FieldError) as error:
        parse_events(COMMANDS, [record])
    assert error.value.field == field


def test_a_missing_field_is_named() -> None:
    with pytest.raises(FieldError, match="needs this field") as error:
        parse_events(COMMANDS, [{"type": "CreateAccount", "id": 1, "code": 1}])
    assert error.value.field == "events[0].ledger"


def test_unknown_fields_may_be_let_through() -> None:
    events = parse_events(COMMANDS, [TRANSFER | {"comment": "hello"}], strict=False)
    assert render_events(COMMANDS, events)[0]["id"] == 7


def test_a_refused_event_leaves_the_others() -> None:
    builder = EventsBuilder(EVERYTHING)
    builder.add(EVENT)
    with pytest.raises(FieldError):
        builder.add(EVENT | {"enum": "HOLD"})
    builder.add(EVENT | {"string": "second"})
    assert [event["string"] for event in render_events(EVERYTHING, builder.build())] == ["größer", "second"]


def test_bits_without_a_name_are_shown() -> None:
    events = parse_events(COMMANDS, [TRANSFER])
    events.rows.view(COMMANDS.event_type("CreateTransfer").dtype)["flags"] = 1 << 12 | 1
    assert render_events(COMMANDS, events)[0]["flags"] == ["linked", "reserved_12"]


def test_the_json_schema_says_what_is_accepted() -> None:
    schema = json_schema(COMMANDS.event_type("CreateAccount"))
    assert schema["required"] == ["type", "id", "ledger", "code"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["type"] == {"const": "CreateAccount"}
    assert properties["ledger"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 4294967295,
        "description": "Ledger the account belongs to; accounts of different ledgers never share a transfer.",
    }
    assert properties["flags"]["items"]["enum"][0] == "linked"
    assert properties["flags"]["default"] == []
    assert properties["user_data_128"]["default"] == 0
    assert properties["id"]["anyOf"][1]["type"] == "string"
    everything = json_schema(EVERYTHING.event_types[0])["properties"]
    assert everything["price"]["description"] == "Price."
    assert everything["note"] == {"type": "string", "default": "none"}
    assert everything["bytes"]["anyOf"][1] == {"type": "null"}
    assert everything["enum"] == {"enum": ["BUY", "SELL"]}


def test_a_whole_number_stands_for_text_where_the_schema_says_so() -> None:
    codec = codec_of("matching.commands")
    order = {"type": "CancelOrder", "order_id": 1, "account": 412, "symbol": -7}
    rendered = render_events(codec, parse_events(codec, [order]))[0]
    assert (rendered["account"], rendered["symbol"]) == ("412", "-7")
    with pytest.raises(FieldError, match=r"symbol.*must be a string"):
        parse_events(codec, [{**order, "symbol": 1.5}])
    with pytest.raises(FieldError, match=r"account.*must be a string"):
        parse_events(codec, [{**order, "account": True}])
