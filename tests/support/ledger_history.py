"""A ledger with every kind of entry, as records of ledger.events, and what its history must be, folded in plain Python
from the events' amounts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from infra.settings import Settings
from jobs.sinks.base import Addition, Refusal, Sink
from jobs.sinks.postgres import PostgresSink
from jobs.sinks.records import ShardOrder
from pipelines.catalogue import LEDGER_EVENTS, LEDGER_SHARDS
from pipelines.codec import codec_of
from pipelines.shard import Shard
from pipelines.wire import unwrap, wrap
from tests.support.ledger_events import EventLog
from tests.support.ledger_frames import COMMANDS, account, command_frame, transfer

START_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000
Balances = dict[str, int]


def history_log(frames: int = 12, per_frame: int = 20, seed: int = 3, accounts: int = 6) -> EventLog:
    """Frames of each shard in turn, two hours apart: plain, pending, posting (part and whole), voiding transfers, some
    pending ones that expire, some refused."""
    from pipelines.catalogue import PIPELINES

    rng = random.Random(seed)
    log = EventLog()
    ids = {"ledger.results": 1, LEDGER_EVENTS.name: 1}
    shards = [Shard(PIPELINES["ledger"], number, ids) for number in range(LEDGER_SHARDS)]
    next_id = 100
    for number in range(frames):
        shard = number % LEDGER_SHARDS
        ledger = LEDGER_SHARDS + shard
        commands: list[dict[str, Any]] = []
        if number < LEDGER_SHARDS:
            commands = [account(1 + index, ledger=ledger) for index in range(accounts)]
        pending: list[tuple[int, int]] = []
        for _ in range(per_frame):
            next_id += 1
            debit, credit = rng.sample(range(1, accounts + 1), 2)
            amount = rng.randrange(1, 1_000)
            choice = rng.random()
            more: dict[str, Any] = {"ledger": ledger, "code": rng.choice([1, 2, 7]), "user_data_64": rng.randrange(5)}
            if choice < 0.3:
                timeout = rng.choice([0, 0, 3_600, 3 * 3_600])
                commands.append(transfer(next_id, debit, credit, amount, flags=["pending"], timeout=timeout, **more))
                pending.append((next_id, amount))
            elif choice < 0.5 and pending:
                pending_id, full = pending.pop(rng.randrange(len(pending)))
                flag = rng.choice(["post_pending_transfer", "void_pending_transfer"])
                posted = rng.randrange(full + 1) if flag.startswith("post") else 0
                commands.append(
                    {"type": "CreateTransfer", "id": next_id, "pending_id": pending_id, "amount": posted,
                     "flags": [flag]}
                )  # fmt: skip
            else:
                commands.append(transfer(next_id, debit, credit, amount, **more))
        frame = command_frame(commands, produced_at=START_US + number * HOUR_US // 2, shard=shard)
        for output in shards[shard].apply("ledger.commands", wrap(1, COMMANDS.encode(frame))):
            if output.topic == LEDGER_EVENTS.name:
                log.records.append((output.shard, output.value))
    return log


def balances_at(log: EventLog, at: int) -> dict[tuple[int, int], Balances]:
    """(shard, account) -> balances after all entries with a timestamp up to ``at`` nanoseconds."""
    found: dict[tuple[int, int], Balances] = {}
    amounts: dict[tuple[int, int], int] = {}
    for shard, _, _, event in log.events():
        kind = event["type"]
        if kind == "TransferCreated":
            amounts[shard, int(event["id"])] = int(event["amount"])
        if int(event["timestamp"]) > at:
            continue
        if kind == "AccountCreated":
            zero = dict.fromkeys(("debits_pending", "debits_posted", "credits_pending", "credits_posted"), 0)
            found[shard, int(event["id"])] = zero
            continue
        pending = posted = 0
        flags = event.get("flags", [])
        amount = int(event["amount"])
        if kind == "TransferExpired":
            pending = -amount
        elif "pending" in flags:
            pending = amount
        elif int(event["pending_id"]):
            pending = -amounts[shard, int(event["pending_id"])]
            posted = amount if "post_pending_transfer" in flags else 0
        else:
            posted = amount
        for side in ("debit", "credit"):
            balances = found[shard, int(event[f"{side}_account_id"])]
            balances[f"{side}s_pending"] += pending
            balances[f"{side}s_posted"] += posted
    return found


def timestamps(log: EventLog) -> list[int]:
    """Of all events, sorted."""
    return sorted({int(event["timestamp"]) for _, _, _, event in log.events()})


async def project(config: Settings, log: EventLog, kind: type[Sink] = PostgresSink) -> None:
    """Apply the log's records to a store through the sink's own writer, as if they lay in its topic from offset 0."""
    codec = codec_of(kind.topic.name)
    sink: Sink = kind(config)  # type: ignore[call-arg]

    async def refuse(addition: Addition, refusals: Sequence[Refusal]) -> None:
        raise AssertionError(refusals)

    await sink.open()
    try:
        orders = {
            shard: ShardOrder(place) for shard, place in (await sink.load_positions(range(LEDGER_SHARDS))).items()
        }
        for shard, value in log.records:
            order = orders[shard]
            frame = codec.decode(unwrap(value)[1])
            offset = order.position.next_offset
            verdict = order.judge(offset, frame.sequence)
            before, after = order.advance(offset, frame.sequence, verdict)
            sink.add(frame.events, before, after)
        await sink.flush(refuse)
    finally:
        await sink.close()
