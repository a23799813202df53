"""Replay of files: NDJSON and Avro containers of frames and of events, and what is said about bad input."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from typing import Any

import fastavro
import pytest

from jobs.replay import Replay, ReplayError
from pipelines.catalogue import LEDGER_COMMANDS, PIPELINES

LEDGER = PIPELINES["ledger"]
MICROS = 1_700_000_000_000_000


def replay(data: bytes, **options: Any) -> tuple[list[dict[str, Any]], Replay]:
    run = Replay(LEDGER, io.BytesIO(data), **options)
    return [json.loads(line) for line in run.lines()], run


def ndjson(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def create_account(number: int, **fields: Any) -> dict[str, Any]:
    return {"type": "CreateAccount", "id": number, "ledger": 1, "code": 1, **fields}


def test_frames_and_lone_events() -> None:
    answers, run = replay(
        ndjson(
            create_account(1),
            {"produced_at": MICROS, **create_account(2)},
            {"produced_at": str(MICROS), "events": [create_account("3"), create_account(1)]},
            {"events": []},
        )
        + b"\n"
    )
    assert answers == [
        {"produced_at": 0, "events": [{"type": "AccountResult", "id": 1, "result": "created", "timestamp": 1}]},
        {
            "produced_at": MICROS,
            "events": [{"type": "AccountResult", "id": 2, "result": "created", "timestamp": str(MICROS * 1000 + 1)}],
        },
        {
            "produced_at": MICROS,
            "events": [
                {"type": "AccountResult", "id": 3, "result": "created", "timestamp": str(MICROS * 1000 + 2)},
                {"type": "AccountResult", "id": 1, "result": "exists", "timestamp": 1},
            ],
        },
        {"produced_at": 0, "events": []},
    ]
    assert (run.frames, run.events) == (4, 4)


def test_state_and_other_topics() -> None:
    transfer = {
        "type": "CreateTransfer", "id": 2**100, "debit_account_id": 1, "credit_account_id": 2, "amount": str(2**70),
        "ledger": 1, "code": 1, "flags": ["pending"],
    }  # fmt: skip
    answers, run = replay(ndjson({"events": [create_account(1), create_account(2), transfer]}), all_topics=True)
    created = answers[0]["other_topics"]["ledger.events"]
    assert [event["type"] for event in created] == ["AccountCreated", "AccountCreated", "TransferCreated"]
    state = [json.loads(line) for line in run.state_lines()]
    assert [row["type"] for row in state] == ["Account", "Account", "Transfer"]
    assert (state[0]["debits_pending"], state[0]["closed"]) == (str(2**70), False)
    assert (state[2]["id"], state[2]["flags"], state[2]["pending_status"]) == (str(2**100), ["pending"], "pending")


def test_each_shard_has_its_own_kernel() -> None:
    answers, run = replay(ndjson({"shard": 1, **create_account(1)}, {"shard": 3, **create_account(1)}))
    assert [answer["events"][0]["result"] for answer in answers] == ["created", "created"]
    assert [json.loads(line)["shard"] for line in run.state_lines()] == [1, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"events":', "line 1: not JSON"),
        (b'{"events": NaN}', "line 1: not JSON: NaN"),
        (b"[1]", "line 1: frame: a JSON object is expected"),
        (b'{"events": {}}', "line 1: events: a list is expected"),
        (b'{"events": [], "when": 1}', "line 1: when: a frame has"),
        (b'{"events": [], "produced_at": 1.5}', "line 1: produced_at: an integer from 0"),
        (b'{"events": [], "produced_at": -1}', "line 1: produced_at: an integer from 0"),
        (b'{"events": [], "topic": "ledger.results"}', "line 1: topic: 'ledger.results' is not an input of ledger"),
        (b'{"events": [], "produced_at": 9000000000000000000}', "line 1: produced_at_out_of_range"),
        (ndjson({"events": [create_account(1), create_account(-1)]}), r"line 1: events\[1\]\.id"),
        (ndjson(create_account(1), create_account(2, amount=1)), r"line 2: events\[0\]\.amount"),
    ],
    ids=str,
)
def test_bad_lines_are_named(line: bytes, message: str) -> None:
    with pytest.raises(ReplayError, match=message):
        replay(line)


def event_schema(schema: dict[str, Any]) -> Any:
    return next(field["type"]["items"] for field in schema["fields"] if field["name"] == "events")


def container(schema: Any, records: list[Any], codec: str = "deflate") -> bytes:
    file = io.BytesIO()
    fastavro.writer(file, schema, records, codec=codec)
    return file.getvalue()


USER_DATA = {"user_data_128": Decimal(0), "user_data_64": Decimal(2**64 - 1), "user_data_32": 0}
AVRO_ACCOUNT = {"id": Decimal(2**128 - 2), "ledger": 1, "code": 1, "flags": 0, **USER_DATA, "timestamp": 0}
AVRO_TRANSFER = {
    "id": Decimal(9), "debit_account_id": Decimal(3), "credit_account_id": Decimal(4), "amount": Decimal(1),
    "pending_id": Decimal(0), **USER_DATA, "timeout": 0, "ledger": 1, "code": 1, "flags": 0, "timestamp": 0,
}  # fmt: skip


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_container_of_frames(codec: str) -> None:
    frames = [
        {
            "shard": 2,
            "sequence": 0,
            "produced_at": 7,
            "trace": None,
            "events": [AVRO_ACCOUNT, AVRO_ACCOUNT, AVRO_TRANSFER],
        },
        {"shard": 2, "sequence": 0, "produced_at": 8, "trace": "t", "events": []},
    ]
    answers, _ = replay(container(LEDGER_COMMANDS.schema(), frames, codec))
    assert [event["result"] for event in answers[0]["events"]] == ["created", "exists", "debit_account_not_found"]
    assert answers[0]["events"][0]["id"] == str(2**128 - 2)
    assert answers[1] == {"produced_at": 8, "events": []}


def test_container_of_events() -> None:
    union = event_schema(LEDGER_COMMANDS.schema())
    answers, _ = replay(container(union[0], [AVRO_ACCOUNT, AVRO_ACCOUNT]))
    assert [answer["events"][0]["result"] for answer in answers] == ["created", "exists"]
    answers, _ = replay(container(union, [AVRO_ACCOUNT, AVRO_TRANSFER]))
    assert [answer["events"][0]["result"] for answer in answers] == ["created", "debit_account_not_found"]


def test_foreign_and_damaged_containers_are_refused() -> None:
    foreign = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "int"}]}
    whole = container(
        LEDGER_COMMANDS.schema(), [{"shard": 0, "sequence": 0, "produced_at": 0, "events": [AVRO_ACCOUNT]}]
    )
    for data in (container(foreign, [{"x": 1}]), whole[:-20], whole[:200], b"Obj\x01\xff\xff"):
        with pytest.raises(ReplayError):
            replay(data)
