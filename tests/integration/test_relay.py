"""Relays on a real broker: commands arrive whole and in order, and the position is kept beside them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import stamina

from infra.settings import Settings
from jobs.sinks.base import Position, Refused, StoreUnavailable
from jobs.sinks.relay import Commands, KafkaRelay
from jobs.topic_reader import TopicReader
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_EVENTS, LEDGER_SHARDS
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events
from pipelines.wire import unwrap
from tests.support.ledger_events import EventLog, LedgerEventSource, joined
from tests.support.sinks import prepare
from tests.support.stack import PrivateStack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


class Mirror(KafkaRelay):
    """Each transfer once more in the next shard, with a second one linked to it."""

    name = "mirror"
    topic = LEDGER_EVENTS
    web_port_offset = 90
    targets = (LEDGER_COMMANDS,)
    refuse: int | None = None

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        for event in render_events(codec_of(LEDGER_EVENTS.name), events):
            if event["type"] != "TransferCreated":
                continue
            if int(event["id"]) == self.refuse:
                raise Refused("unwanted", "for the test")
            copy = {"type": "CreateTransfer"} | {
                name: event[name]
                for name in ("id", "debit_account_id", "credit_account_id", "amount", "ledger", "code")
            }
            twin = copy | {"id": str(int(event["id"]) + (1 << 100))}
            yield Commands(LEDGER_COMMANDS, (shard + 1) % LEDGER_SHARDS, [copy | {"flags": ["linked"]}, twin])


@pytest.fixture(scope="module")
def log() -> EventLog:
    source = LedgerEventSource(seed=5)
    return joined(source.accounts(10), source.transfers(8, 400))


@pytest.fixture
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry", "postgres")
    prepare(environment, "postgres")
    return environment


def written(environment: Settings) -> dict[int, list[list[dict]]]:
    """Shard -> its frames of commands, each a list of events."""
    codec = codec_of(LEDGER_COMMANDS.name)
    with TopicReader(environment) as reader:
        return {
            shard: [
                render_events(codec, codec.decode(unwrap(record.value)[1]).events)
                for record in reader.read(LEDGER_COMMANDS, shard)
            ]
            for shard in range(LEDGER_SHARDS)
        }


async def fail(*_: object) -> None:
    raise AssertionError("nothing is to be set aside")


async def test_commands_arrive_whole_and_in_order_and_the_position_outlives_the_relay(
    environment: Settings, log: EventLog
) -> None:
    codec = codec_of(LEDGER_EVENTS.name)
    frames = [codec.decode(unwrap(value)[1]) for _, value in log.records]
    wanted: dict[int, list[int]] = {shard: [] for shard in range(LEDGER_SHARDS)}
    for shard, _, _, event in log.events():
        if event["type"] == "TransferCreated":
            wanted[(shard + 1) % LEDGER_SHARDS] += [int(event["id"]), int(event["id"]) + (1 << 100)]
    relay = Mirror(environment)
    await relay.open()
    async for attempt in stamina.retry_context(on=StoreUnavailable, attempts=None, timeout=60):
        with attempt:  # as the worker does: a broker just started may not yet know who keeps the offsets
            positions = dict(await relay.load_positions(range(LEDGER_SHARDS)))
    assert positions == {shard: Position(shard) for shard in range(LEDGER_SHARDS)}
    for frame in frames:
        before = positions[frame.shard]
        after = positions[frame.shard] = Position(frame.shard, before.next_offset + 1, frame.sequence)
        relay.add(frame.events, before, after)
    await relay.flush(fail)
    await relay.close()

    found = written(environment)
    assert {shard: [int(c["id"]) for f in frames_ for c in f] for shard, frames_ in found.items()} == wanted
    for frames_ in found.values():
        for commands in frames_:
            assert len(commands) <= 500
            assert [command["flags"] for command in commands] == [["linked"], []] * (len(commands) // 2)

    again = Mirror(environment)
    await again.open()
    assert await again.load_positions(range(LEDGER_SHARDS)) == positions

    # what is not a command is found and set aside; the rest of its frame goes on
    shard, last = frames[-1].shard, frames[-1].events
    transfers = sum(event["type"] == "TransferCreated" for event in render_events(codec, last))
    again.refuse = wanted[(shard + 1) % LEDGER_SHARDS][-2]
    refused: list[int] = []

    async def set_aside(_: object, refusals: object) -> None:
        refused.extend(refusal.event_index for refusal in refusals)  # type: ignore[attr-defined]

    again.add(last, positions[shard], positions[shard])
    await again.flush(set_aside)
    await again.close()
    assert refused == [len(last) - 1]
    repeated = [int(c["id"]) for f in written(environment)[(shard + 1) % LEDGER_SHARDS] for c in f]
    assert len(repeated) == len(wanted[(shard + 1) % LEDGER_SHARDS]) + 2 * (transfers - 1)
