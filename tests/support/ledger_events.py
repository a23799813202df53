"""Frames of ledger.events for tests of their readers: made by the real kernel from random commands, with what a reader
must arrive at, taken from the kernel's state and from its events."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_EVENTS, LEDGER_SHARDS, PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.shard import Shard, catalogue_reader
from pipelines.wire import unwrap, wrap

PRODUCED_AT = 1_700_000_000_000_000
"""2023-11-14T22:13:20Z; frames are an hour apart, so that statements cross a month."""
HOUR_US = 3_600_000_000
U128_MAX = 2**128 - 1


@dataclass
class EventLog:
    """The records of ledger.events in order: (shard, value)."""

    records: list[tuple[int, bytes]] = field(default_factory=list)

    def events(self) -> list[tuple[int, int, int, dict[str, Any]]]:
        """(shard, sequence, place in the frame, event) of all events."""
        codec = codec_of(LEDGER_EVENTS.name)
        found = []
        for _, value in self.records:
            frame = codec.decode(unwrap(value)[1])
            for index, event in enumerate(render_events(codec, frame.events)):
                found.append((frame.shard, frame.sequence, index, event))
        return found

    def transfers(self) -> dict[tuple[int, int], dict[str, Any]]:
        """(shard, id) -> TransferCreated."""
        return {
            (shard, int(event["id"])): event
            for shard, _, _, event in self.events()
            if event["type"] == "TransferCreated"
        }

    def balances(self) -> dict[tuple[int, int], tuple[int, int, int, int]]:
        """(shard, account) -> debits_pending, debits_posted, credits_pending, credits_posted; folded from the amounts,
        not from the balances in the events."""
        balances: dict[tuple[int, int], list[int]] = {}
        for shard, _, _, event in self.events():
            if event["type"] == "AccountCreated":
                balances[shard, int(event["id"])] = [0, 0, 0, 0]
            elif event["type"] == "TransferCreated":
                pending = "pending" in event["flags"]
                balances[shard, int(event["debit_account_id"])][0 if pending else 1] += int(event["amount"])
                balances[shard, int(event["credit_account_id"])][2 if pending else 3] += int(event["amount"])
            else:
                balances[shard, int(event["debit_account_id"])][0] -= int(event["amount"])
                balances[shard, int(event["credit_account_id"])][2] -= int(event["amount"])
        return {key: (value[0], value[1], value[2], value[3]) for key, value in balances.items()}


class LedgerEventSource:
    """Runs the kernel of every shard on random commands and keeps what it says."""

    def __init__(self, schema_id: int = 1, seed: int = 1) -> None:
        self._random = random.Random(seed)
        ids = {LEDGER_COMMANDS.name: 1, "ledger.results": 1, LEDGER_EVENTS.name: schema_id}
        self._shards = [Shard(PIPELINES["ledger"], shard, ids, catalogue_reader) for shard in range(LEDGER_SHARDS)]
        self._accounts: list[list[int]] = [[] for _ in range(LEDGER_SHARDS)]
        self._frames = 0
        self._next_id = 1

    def accounts(self, per_shard: int) -> EventLog:
        """A frame of new accounts for each shard; a few have ids at the edges of 64 and 128 bits."""
        log = EventLog()
        for shard in range(LEDGER_SHARDS):
            edges = [2**63 + shard, 2**64 - 1 - shard, 2**64 + shard, U128_MAX - 1 - shard]
            ids = edges[: per_shard // 4] + [self._new_id() for _ in range(per_shard - len(edges[: per_shard // 4]))]
            self._accounts[shard] += ids
            commands = [
                {
                    "type": "CreateAccount",
                    "id": str(identity),
                    "ledger": LEDGER_SHARDS + shard,
                    "code": 718,
                    "user_data_128": str(U128_MAX),
                    "user_data_64": str(2**64 - 1),
                    "user_data_32": 2**32 - 1,
                    "flags": ["history"],
                }
                for identity in ids
            ]
            self._command(log, shard, commands)
        return log

    def transfers(self, frames: int, per_frame: int, shards: int = LEDGER_SHARDS) -> EventLog:
        """Frames in turn for each shard; one transfer in ten is pending, every second of those expires soon."""
        log = EventLog()
        for number in range(frames):
            shard = number % shards
            commands = []
            for _ in range(per_frame):
                debit, credit = self._random.sample(self._accounts[shard], 2)
                pending = self._random.random() < 0.1
                commands.append(
                    {
                        "type": "CreateTransfer",
                        "id": str(self._new_id()),
                        "debit_account_id": str(debit),
                        "credit_account_id": str(credit),
                        "amount": str(
                            self._random.choice([0, 1, 9_999, 10_000, 2**64, self._random.randrange(10**12)])
                        ),
                        "ledger": LEDGER_SHARDS + shard,
                        "code": 1,
                        "flags": ["pending"] if pending else [],
                        "timeout": self._random.choice([0, 1]) if pending else 0,
                        "user_data_64": str(self._random.randrange(2**64)),
                    }
                )
            self._command(log, shard, commands)
        return log

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _command(self, log: EventLog, shard: int, commands: list[dict[str, Any]]) -> None:
        codec = codec_of(LEDGER_COMMANDS.name)
        self._frames += 1
        frame = Frame(
            LEDGER_COMMANDS.name,
            shard,
            0,
            PRODUCED_AT + self._frames * HOUR_US,
            f"00-{self._frames:032x}-0000000000000001-01",
            parse_events(codec, commands),
        )
        for output in self._shards[shard].apply(LEDGER_COMMANDS.name, wrap(1, codec.encode(frame))):
            if output.topic == LEDGER_EVENTS.name:
                log.records.append((output.shard, output.value))


def joined(*logs: EventLog) -> EventLog:
    """The logs one after the other."""
    return EventLog([record for log in logs for record in log.records])
