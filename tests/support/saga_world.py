"""Ledger and sagas in one process, joined by their real relays, on a network that does what it likes.

Every topic is a list of encoded frames per shard. A relay goes on from any place that it has not acknowledged: it
sends again what it had sent, in order, as after a crash. Between two relays everything is up to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from infra.settings import Settings
from jobs.inprocess import default_schema_ids
from jobs.sinks.ledger_saga import SagaAnswers, SagaLegs
from jobs.sinks.relay import KafkaRelay
from pipelines.catalogue import (
    LEDGER_COMMANDS,
    LEDGER_CROSS_COMMANDS,
    LEDGER_CROSS_EVENTS,
    LEDGER_CROSS_RESULTS,
    LEDGER_EVENTS,
    LEDGER_RESULTS,
    LEDGER_SHARDS,
    PIPELINES,
)
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.ledger.kernel import LedgerKernel
from pipelines.ledger_saga.kernel import LedgerSagaKernel
from pipelines.ledger_saga.legs import cross_transfer_shard
from pipelines.shard import Shard
from pipelines.wire import unwrap

START = 1_700_000_000_000_000
EUR, USD, EURO_TOO = 978, 840, 982
"""Ledgers of shards 2, 0 and 2."""
PAYER, PAYEE, CLEARING = 1, 2, 3


class SagaWorld:
    def __init__(self) -> None:
        self.now = START
        self.ledger: dict[int, LedgerKernel] = {}
        self.sagas: dict[int, LedgerSagaKernel] = {}
        self._shards: dict[tuple[str, int], Shard] = {}
        self.pages: dict[int, dict[str, bytes]] = {}
        self.logs: dict[tuple[str, int], list[bytes]] = {}
        self.relays: dict[str, KafkaRelay] = {kind.name: kind(Settings()) for kind in (SagaLegs, SagaAnswers)}
        self.positions: dict[tuple[str, int], int] = {
            (name, shard): 0 for name in self.relays for shard in range(LEDGER_SHARDS)
        }
        for shard in range(LEDGER_SHARDS):
            self._start("ledger", shard, LedgerKernel(max_accounts=1 << 8, max_transfers=1 << 14))
            self._start("ledger_saga", shard, LedgerSagaKernel(max_sagas=1 << 8))

    def _start(self, pipeline: str, number: int, kernel: Any) -> None:
        chosen = PIPELINES[pipeline]
        self._shards[pipeline, number] = Shard(chosen, number, default_schema_ids(chosen), kernel=kernel)
        (self.ledger if pipeline == "ledger" else self.sagas)[number] = kernel

    def send(self, topic: str, shard: int, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A frame of commands into a topic, and its replies; the job applies it at once."""
        self.now += 1
        frame = Frame(topic, shard, 0, self.now, None, parse_events(codec_of(topic), events))
        pipeline = "ledger" if topic == LEDGER_COMMANDS.name else "ledger_saga"
        replies: list[dict[str, Any]] = []
        for record in self._shards[pipeline, shard].apply_frame(frame):
            self.logs.setdefault((record.topic, shard), []).append(record.value)
            if record.topic in (LEDGER_RESULTS.name, LEDGER_CROSS_RESULTS.name):
                replies = self.events(record.topic, record.value)
        if pipeline == "ledger_saga":
            self.pages.setdefault(shard, {}).update(self._shards[pipeline, shard].dirty_pages())
        return replies

    def restart_sagas(self, shard: int) -> None:
        """The saga's job is killed, and goes on from its stored pages."""
        if shard in self.pages:
            self._start("ledger_saga", shard, LedgerSagaKernel(max_sagas=1 << 8))
            self._shards["ledger_saga", shard].restore(self.pages[shard])

    def relay(self, name: str, shard: int) -> bool:
        """One frame further; False when there is none."""
        relay = self.relays[name]
        log = self.logs.get((relay.topic.name, shard), [])
        position = self.positions[name, shard]
        if position == len(log):
            return False
        events = codec_of(relay.topic.name).decode(unwrap(log[position])[1]).events
        for commands in relay.translate(shard, events) if len(events) else ():
            self.send(commands.topic.name, commands.shard, commands.events)
        self.positions[name, shard] = position + 1
        return True

    def crash_relay(self, name: str, shard: int, frames: int) -> None:
        """It died before it noted that it had sent the last frames."""
        self.positions[name, shard] = max(0, self.positions[name, shard] - frames)

    def settle(self) -> None:
        """Until nobody has anything to say."""
        while self.relay_all():
            pass

    def relay_all(self) -> int:
        """Every relay one frame further; returns how many there were."""
        return sum(self.relay(name, shard) for name, shard in self.positions)

    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * 1_000_000)
        for shard in range(LEDGER_SHARDS):
            self.send(LEDGER_CROSS_COMMANDS.name, shard, [{"type": "ClockAdvanced", "at": self.now}])
            self.send(LEDGER_COMMANDS.name, shard, [])

    def cross(self, identity: int, **changes: Any) -> str:
        """Ask for a cross transfer of 100 EUR for 108 USD; the result."""
        command = {
            "type": "CreateCrossTransfer", "id": identity, "debit_account_id": PAYER, "credit_account_id": PAYEE,
            "debit_clearing_account_id": CLEARING, "credit_clearing_account_id": CLEARING, "debit_ledger": EUR,
            "credit_ledger": USD, "amount": 100, "credit_amount": 108, "code": 1, "timeout": 10, **changes,
        }  # fmt: skip
        return str(self.send(LEDGER_CROSS_COMMANDS.name, cross_transfer_shard(identity), [command])[0]["result"])

    def accounts(self, ledger: int, flags: Mapping[int, Sequence[str]] | None = None) -> None:
        """Payer, payee and clearing account of a ledger; ids count per shard, so ledgers of one shard get their own."""
        flags = flags or {}
        events = [
            {"type": "CreateAccount", "id": account, "ledger": ledger, "code": 1, "flags": list(flags.get(account, []))}
            for account in (PAYER, PAYEE, CLEARING, FUNDING)
        ]
        shift = ledger << 32 if ledger == EURO_TOO else 0
        events = [event | {"id": int(event["id"]) + shift} for event in events]  # type: ignore[call-overload]
        results = self.send(LEDGER_COMMANDS.name, ledger % LEDGER_SHARDS, events)
        assert {result["result"] for result in results} == {"created"}

    def transfer(self, ledger: int, **fields: Any) -> str:
        """One plain command; its result."""
        event = {"type": "CreateTransfer", "ledger": ledger, "code": 1, "amount": 0, **fields}
        return str(self.send(LEDGER_COMMANDS.name, ledger % LEDGER_SHARDS, [event])[0]["result"])

    def balance(self, ledger: int, account: int) -> dict[str, int]:
        found = self.ledger[ledger % LEDGER_SHARDS].account(account)
        assert found is not None
        return {name: int(found[name]) for name in BALANCES}

    def phases(self, identity: int) -> list[tuple[str, str]]:
        """(phase, reason) that a cross transfer went through."""
        values = self.logs.get((LEDGER_CROSS_EVENTS.name, cross_transfer_shard(identity)), [])
        return [
            (event["phase"], event["reason"])
            for value in values
            for event in self.events(LEDGER_CROSS_EVENTS.name, value)
            if event["type"] == "CrossTransferChanged" and int(event["id"]) == identity
        ]

    def entries(self, ledger: int) -> Iterable[dict[str, Any]]:
        for value in self.logs.get((LEDGER_EVENTS.name, ledger % LEDGER_SHARDS), []):
            yield from self.events(LEDGER_EVENTS.name, value)

    @staticmethod
    def events(topic: str, value: bytes) -> list[dict[str, Any]]:
        codec = codec_of(topic)
        return render_events(codec, codec.decode(unwrap(value)[1]).events)


FUNDING = 4
BALANCES = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
