"""Dead letters in an operator's hands, on real servers: find, understand, repair, replay, drop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from infra.cli.app import app
from infra.cli.dlq import register
from infra.registry import SchemaRegistry
from infra.settings import Settings
from infra.stores import postgres_conninfo
from jobs.dead_letters import DeadLetter, encode_letter
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_DEAD_LETTERS
from tests.support.ledger_events import EventLog, LedgerEventSource, joined
from tests.support.sinks import dead_letters, everything, expected, prepare, registered, running, send, stored
from tests.support.stack import PrivateStack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]
PATIENCE = 240.0

Dlq = Callable[..., Any]


@pytest.fixture(scope="module")
def log() -> EventLog:
    source = LedgerEventSource(seed=2)
    return joined(source.accounts(10), source.transfers(8, 20))


@pytest.fixture
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry", "postgres")
    prepare(environment, "postgres")
    return environment


@pytest.fixture
def dlq(environment: Settings, monkeypatch: pytest.MonkeyPatch) -> Dlq:
    """`streambank dlq ...` with this environment's settings; output unwrapped."""
    register(app)
    monkeypatch.setattr("infra.settings.settings", lambda: environment)
    monkeypatch.setenv("COLUMNS", "400")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, ["dlq", *arguments])


def test_refused_events_come_back_once_the_store_takes_them(
    environment: Settings, log: EventLog, dlq: Dlq, tmp_path: Path
) -> None:
    """Three kinds of letters: garbage, refused transfers, a refused account with all its transfers."""
    accounts = [event for event in log.events() if event[3]["type"] == "AccountCreated"]
    shard, _, _, account = accounts[7]
    identity = int(account["id"])
    entries = expected(log, "postgres")[1]
    without = {
        key: entry for key, entry in entries.items() if not (key[1] == shard and identity in (entry[0], entry[1]))
    }
    lone = next(key for key in without if key[0])
    del without[lone]
    with psycopg.connect(postgres_conninfo(environment), autocommit=True) as owner:
        owner.execute(f"ALTER TABLE accounts ADD CONSTRAINT trouble CHECK (shard <> {shard} OR id <> {identity})")
        owner.execute(f"ALTER TABLE transfers ADD CONSTRAINT more CHECK (shard <> {lone[1]} OR id <> {lone[2]})")
        send(environment, registered(environment, log.records))
        send(environment, [(1, b"garbage")])
        with running(environment, "postgres", tmp_path / "sink.log", dead_letter_ratio="0.9") as sink:
            wait_until(lambda: len(stored(environment, "postgres")[1]) >= len(without), PATIENCE, "the others")
            wait_until(lambda: sink.health()[0] == 200, PATIENCE, "no lag")
            assert sink.stop() == 0
        assert stored(environment, "postgres")[1] == without
        letters = dead_letters(environment)
        by_reason = {
            reason: [place.id for place in letters if place.letter.reason == reason]
            for reason in ("not_avro", "CheckViolation", "account_unknown")
        }
        assert {reason: len(ids) for reason, ids in by_reason.items()} == {
            "not_avro": 1,
            "CheckViolation": 2,
            "account_unknown": len(entries) - len(without) - 1,
        }

        listed = dlq("ls")
        assert listed.exit_code == 0
        assert all(place.id in listed.output for place in letters)
        assert "CheckViolation" in dlq("ls", "--limit", "0", "--consumer", "sink-postgres").output
        assert "no dead letters" in dlq("ls", "--consumer", "sink-cassandra").output
        assert "no dead letters" in dlq("ls", "--until", "2020-01-01").output
        garbage = dlq("show", by_reason["not_avro"][0]).output
        assert "67 61 72 62 61 67 65" in garbage
        assert "cannot be read as a frame: not_avro" in garbage
        account_letter = next(place.id for place in letters if '"trouble"' in place.letter.detail)
        shown = dlq("show", account_letter).output
        assert f'"type": "AccountCreated", "id": "{identity}"' in shown.replace(
            f'"id": {identity},', f'"id": "{identity}",'
        )
        assert shown.count('"type":') == 1

        assert dlq("replay").exit_code == 2  # nothing is meant unless it is said
        dry = dlq("replay", "--all", "--dry-run")
        assert dry.output.count("would replay") == len(letters)
        still = dlq("replay", "--reason", "CheckViolation")
        assert still.exit_code == 1
        assert still.output.count("the store still refuses it") == 2
        assert stored(environment, "postgres")[1] == without

        owner.execute("ALTER TABLE accounts DROP CONSTRAINT trouble")
        owner.execute("ALTER TABLE transfers DROP CONSTRAINT more")
    first = dlq("replay", account_letter)
    assert first.exit_code == 0, first.output
    assert "applied 1 event(s) through sink-postgres" in first.output
    rest = dlq("replay", "--all")
    assert rest.exit_code == 1  # garbage stays garbage
    assert "the record still cannot be read (not_avro" in rest.output
    assert stored(environment, "postgres") == expected(log, "postgres")
    again = dlq("replay", account_letter)
    assert again.exit_code == 2
    assert "already handled" in again.output

    assert dlq("drop", by_reason["not_avro"][0]).exit_code == 0
    assert "no dead letters" in dlq("ls").output
    handled = dlq("ls", "--handled", "--limit", "0").output
    assert "dropped" in handled
    assert "replayed" in handled


def test_a_jobs_letter_is_produced_again_where_it_came_from(environment: Settings, dlq: Dlq) -> None:
    with SchemaRegistry(environment) as registry:
        schema_id = registry.schema_id(LEDGER_DEAD_LETTERS)
    command = b"\x00\x00\x00\x00\x01whatever the job could not read"

    def letter(topic: str, consumer: str = "ledger", payload: bytes = command) -> tuple[int, bytes]:
        found = DeadLetter(consumer, topic, 2, 0, 1, -1, "truncated", "for the test", payload)
        return 2, encode_letter(LEDGER_DEAD_LETTERS, schema_id, found)

    send(environment, [(2, command)], LEDGER_COMMANDS.name)
    send(
        environment,
        [
            letter(LEDGER_COMMANDS.name),
            letter(LEDGER_COMMANDS.name, payload=b""),  # it was too large to be copied
            letter("ledger.results", consumer="settlement"),
            letter("no.such.topic"),
        ],
        LEDGER_DEAD_LETTERS.name,
    )
    assert dlq("replay", "ledger:2-0", "ledger:2-1").exit_code == 0
    assert "ledger.results is numbered by its one writer" in dlq("replay", "ledger:2-2").output
    assert "topic no.such.topic is not in the catalogue" in dlq("replay", "ledger:2-3").output
    assert "no such letter: ledger:2-9" in dlq("drop", "ledger:2-9").output.replace("\n", " ")
    found = [
        (message.partition(), message.key(), message.value()) for message in everything(environment, LEDGER_COMMANDS)
    ]
    assert found == [(2, b"2", command)] * 3
