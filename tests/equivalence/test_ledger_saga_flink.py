"""Transfers across ledgers on the real stack: jobs on Flink, relays as processes, all of them killed at every step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.settings import PROJECT_ROOT, Settings
from infra.stack.flink import Flink
from pipelines.catalogue import (
    LEDGER_COMMANDS,
    LEDGER_CROSS_COMMANDS,
    LEDGER_CROSS_EVENTS,
    LEDGER_EVENTS,
    LEDGER_SHARDS,
    Topic,
)
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.ledger_saga.legs import cross_transfer_shard
from pipelines.wire import unwrap, wrap
from tests.support.flink_job import FAST, LEDGER_JOB, running
from tests.support.frame_log import Record, count, deduplicate, produce, written
from tests.support.provision import provision
from tests.support.sinks import SinkProcess
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

SAGA_JOB = PROJECT_ROOT / "jobs" / "ledger_saga.py"
EUR, USD, EURO_TOO = 978, 840, 982
PAYER, PAYEE, CLEARING, FUNDING = 1, 2, 3, 4
FUNDS = 1_000
SAGAS = 40
FINAL = {"completed", "failed", "refunded"}


def account(who: int, ledger: int) -> int:
    return who + ledger * 10


def crossing(number: int) -> dict[str, Any]:
    """Of eight: one asks for too much, one pays nobody, two stay within a shard, the rest cross shards and back."""
    one, two = [(EUR, USD), (USD, EUR), (EUR, EURO_TOO), (EUR, USD)][number % 4]
    return {
        "type": "CreateCrossTransfer", "id": 1_000 + number, "code": 1, "timeout": 3_600,
        "debit_ledger": one, "credit_ledger": two, "amount": 2_000 if number % 8 == 3 else 10 + number,
        "credit_amount": 11 + number,
        "debit_account_id": account(PAYER, one), "credit_account_id": 9 if number % 8 == 7 else account(PAYEE, two),
        "debit_clearing_account_id": account(CLEARING, one), "credit_clearing_account_id": account(CLEARING, two),
    }  # fmt: skip


def send(environment: Settings, topic: Topic, shard: int, schema_id: int, events: Sequence[Mapping[str, Any]]) -> None:
    codec = codec_of(topic.name)
    frame = Frame(topic.name, shard, 0, time.time_ns() // 1000, None, parse_events(codec, events))
    produce(environment, topic.name, [Record(shard, wrap(schema_id, codec.encode(frame)))])


def said(environment: Settings, topic: Topic) -> list[dict[str, Any]]:
    """The events of a topic that one job writes, repeats dropped; a gap or a differing repeat is an error."""
    codec = codec_of(topic.name)
    return [
        event
        for (_, shard), values in written(environment, topic.name, LEDGER_SHARDS).items()
        for value in deduplicate(topic.name, shard, values)
        for event in render_events(codec, codec.decode(unwrap(value)[1]).events)
    ]


class Phases:
    """The last phase of every cross transfer; the topic is read again only when it has grown."""

    def __init__(self, environment: Settings) -> None:
        self._environment = environment
        self._size = 0
        self.last: dict[int, str] = {}

    def are_final(self) -> bool:
        size = count(self._environment, LEDGER_CROSS_EVENTS.name, LEDGER_SHARDS)
        if size > self._size:
            self._size, self.last = size, _phases(self._environment)
        return len(self.last) == SAGAS and set(self.last.values()) <= FINAL


def _phases(environment: Settings) -> dict[int, str]:
    return {
        int(event["id"]): event["phase"]
        for event in said(environment, LEDGER_CROSS_EVENTS)
        if event["type"] == "CrossTransferChanged"
    }


def test_killed_at_every_step_no_money_is_created_lost_or_stuck(
    kafka: object, registry: object, flink: Flink, environment: Settings, tmp_path: Path
) -> None:
    schema_ids = provision(environment, "ledger")
    relays: list[SinkProcess] = []

    def size(topic: Topic) -> int:
        return count(environment, topic.name, LEDGER_SHARDS)

    def grows(topic: Topic, before: int, by: int = 1) -> None:
        wait_until(lambda: size(topic) >= before + by, 120, f"{topic.name} grows beyond {before}")

    def relay(name: str) -> SinkProcess:
        relays.append(SinkProcess(environment, name, tmp_path / f"{name}.log"))
        return relays[-1]

    options = FAST | {"execution.checkpointing.interval": "1 s"}
    with running(environment, LEDGER_JOB, options=options), running(environment, SAGA_JOB, options=options):
        for ledger in (EUR, USD, EURO_TOO):
            opened = [
                {"type": "CreateAccount", "id": account(who, ledger), "ledger": ledger, "code": 1,
                 "flags": ["debits_must_not_exceed_credits"] if who == PAYER else []}
                for who in (PAYER, PAYEE, CLEARING, FUNDING)
            ]  # fmt: skip
            funded = {
                "type": "CreateTransfer", "id": ledger, "ledger": ledger, "code": 1, "amount": FUNDS,
                "debit_account_id": account(FUNDING, ledger), "credit_account_id": account(PAYER, ledger),
            }  # fmt: skip
            send(environment, LEDGER_COMMANDS, ledger % LEDGER_SHARDS, schema_ids["ledger.commands"], [*opened, funded])
        for number in range(SAGAS):
            command = crossing(number)
            shard = cross_transfer_shard(command["id"])
            send(environment, LEDGER_CROSS_COMMANDS, shard, schema_ids["ledger.cross-commands"], [command])
        try:
            # the sagas have asked, nothing has reached the ledger
            grows(LEDGER_CROSS_EVENTS, 0, SAGAS)
            flink.kill_task_manager()
            before = size(LEDGER_COMMANDS)
            legs = relay("saga-legs")
            answers = relay("saga-answers")
            grows(LEDGER_COMMANDS, before)
            legs.kill()  # reservations are on their way; how many, the relay has not noted
            legs = relay("saga-legs")
            before = size(LEDGER_CROSS_COMMANDS)
            flink.start_task_manager()
            grows(LEDGER_CROSS_COMMANDS, before, LEDGER_SHARDS + 1)  # more than the clock
            answers.kill()  # some sagas know their answers
            before = size(LEDGER_COMMANDS)
            relay("saga-answers")
            grows(LEDGER_COMMANDS, before)
            flink.kill_task_manager()  # posts are on their way
            legs.kill()
            flink.start_task_manager()
            relay("saga-legs")
            phases = Phases(environment)
            wait_until(phases.are_final, 240, "every cross transfer reaches its end")
        finally:
            for process in relays:
                process.kill()
        found = phases.last
        events = said(environment, LEDGER_EVENTS)

    wanted = {(ledger, who): [0, 0] for ledger in (EUR, USD, EURO_TOO) for who in (PAYER, PAYEE, CLEARING)}
    for ledger in (EUR, USD, EURO_TOO):
        wanted[ledger, PAYER][1] += FUNDS
    for number in range(SAGAS):
        command = crossing(number)
        assert found[command["id"]] == ("failed" if number % 8 in (3, 7) else "completed")
        if number % 8 not in (3, 7):
            one, two = command["debit_ledger"], command["credit_ledger"]
            wanted[one, PAYER][0] += command["amount"]
            wanted[one, CLEARING][1] += command["amount"]
            wanted[two, CLEARING][0] += command["credit_amount"]
            wanted[two, PAYEE][1] += command["credit_amount"]
    balances: dict[int, list[int]] = {}
    for event in events:
        if event["type"] != "AccountCreated":
            for side in ("debit", "credit"):
                balances[int(event[f"{side}_account_id"])] = [
                    int(event[f"{side}_account_{name}"])
                    for name in ("debits_posted", "credits_posted", "debits_pending", "credits_pending")
                ]
    for (ledger, who), (debits, credits_) in wanted.items():
        assert balances.get(account(who, ledger), [0] * 4) == [debits, credits_, 0, 0], (ledger, who)
