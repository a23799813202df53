"""Relays: what one system says becomes commands to another, from topic to topic.

A relay is a `Sink` whose destination is Kafka. Frames of a topic that one job writes are read in the order of their
sequences; `KafkaRelay.translate` makes commands of their events, and these go to topics of many producers.

**Delivery.** Commands are acknowledged by all replicas before the position passes the frame that they come from, so
none is lost; after a crash those of the last frames are sent again. Therefore the ids of commands must be functions of
the events they come from: the system that gets them is idempotent by id. Commands from one input shard to one target
shard keep their order, also when some are repeated.

**Position.** It is kept where the commands are: as committed offsets of the group ``relay-<name>-positions``, with the
sequence in their metadata. Commits are for restarts only and come every `POSITION_SECONDS`, off the way of the
commands; whatever was sent since the last one is sent again after a crash. A broker forgets the offsets of a group that
was idle for ``offsets.retention.minutes``; the relay then reads its topic from the start, which repeats commands and
changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, NamedTuple

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from infra.kafka import kafka_options, make_producer
from infra.producer_keys import FrameSigner, ProducerKeyError
from infra.registry import RegistryError, SchemaRegistry
from infra.settings import Settings
from jobs.sinks.base import Addition, Position, Refused, Sink, StoreUnavailable
from pipelines.catalogue import PIPELINES, Topic
from pipelines.codec import codec_of
from pipelines.errors import StreambankError
from pipelines.event_json import parse_events
from pipelines.frames import Events, Frame
from pipelines.wire import wrap

__all__ = ["Commands", "KafkaRelay"]

DELIVERY_SECONDS: Final = 30.0
CALL_SECONDS: Final = 15.0
POSITION_SECONDS: Final = 1.0
"""Between two commits of the position."""
FRAME_EVENTS: Final = 500
"""Events of a frame, at most, where the target does not ask for fewer: far below 256 KiB for every command."""

log = structlog.get_logger("streambank.relay")


class Commands(NamedTuple):
    """Events (as JSON has them) for one shard of a topic that must arrive in one frame, in this order: a linked chain,
    or a single command."""

    topic: Topic
    shard: int
    events: Sequence[Mapping[str, Any]]


class KafkaRelay(Sink):
    """One relay; see the module. ``targets`` are the topics that `translate` may name."""

    targets: ClassVar[tuple[Topic, ...]]

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._producer: Any = None
        self._positions: Any = None
        self._reached: dict[int, Position] = {}
        """Where each partition is, as far as Kafka has not been told."""
        self._position_lock = asyncio.Lock()
        self._committing: asyncio.Task[None] | None = None
        self._schema_ids: dict[str, int] = {}
        self._signers = {topic.name: FrameSigner(settings, topic, f"relay-{self.name}") for topic in self.targets}
        self._frame_events = {
            topic.name: min(
                [
                    FRAME_EVENTS,
                    *(pipeline.max_frame_events for pipeline in PIPELINES.values() if topic in pipeline.inputs),
                ]
            )
            for topic in self.targets
        }

    @abstractmethod
    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        """The commands that the events of a frame of ``shard`` ask for, in their order: a pure function.

        Raises `Refused` for an event that makes no sense; it is set aside as a dead letter.
        """

    async def open(self) -> None:
        await asyncio.to_thread(self._open)
        self._committing = asyncio.create_task(self._commit_now_and_then())

    async def _commit_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(POSITION_SECONDS)
            try:
                await self._commit()
            except StoreUnavailable as error:
                log.warning("position_not_kept", relay=self.name, detail=str(error))

    async def _commit(self) -> None:
        """Tell Kafka the positions reached; those of a commit that failed are told with the next one."""
        async with self._position_lock:
            await self._commit_reached()

    async def _commit_reached(self) -> None:
        reached, self._reached = self._reached, {}
        if not reached:
            return
        topic = self._settings.kafka_topic(self.topic.name)
        places = [
            TopicPartition(topic, at.partition, at.next_offset, f"{at.sequence} {at.unreadable_records}")
            for at in reached.values()
        ]
        try:
            await asyncio.to_thread(self._positions.commit, offsets=places, asynchronous=False)
        except KafkaException as error:
            self._reached = reached | self._reached
            raise StoreUnavailable(f"Kafka did not take the position of relay {self.name}: {error}") from error

    def _open(self) -> None:
        try:
            with SchemaRegistry(self._settings) as registry:
                self._schema_ids = {topic.name: registry.schema_id(topic) for topic in self.targets}
        except RegistryError as error:
            raise StoreUnavailable(str(error)) from error
        self._close()
        self._positions = Consumer(
            {
                **kafka_options(self._settings),
                "client.id": f"streambank-relay-{self.name}",
                "group.id": self._settings.kafka_topic(f"relay-{self.name}-positions"),
                "enable.auto.commit": False,
                "log_level": 0,  # refused connections; what matters is raised
            }
        )

    async def close(self) -> None:
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.gather(self._committing, return_exceptions=True)
            self._committing = None
        with suppress(StoreUnavailable):
            await self._commit()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._positions is not None:
            self._positions.close()
            self._positions = None
        self._drop_producer()

    def _drop_producer(self) -> None:
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(1)
            self._producer = None

    async def load_positions(self, partitions: Collection[int]) -> Mapping[int, Position]:
        await self._commit()
        topic = self._settings.kafka_topic(self.topic.name)
        try:
            places = await asyncio.to_thread(
                self._positions.committed,
                [TopicPartition(topic, partition) for partition in partitions],
                timeout=CALL_SECONDS,
            )
        except KafkaException as error:
            raise StoreUnavailable(f"Kafka did not say where relay {self.name} is: {error}") from error
        return {place.partition: _position(place) for place in places}

    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        records = list(self._records([(addition.after.partition, addition.events) for addition in additions]))
        if rehearse:
            return
        if records:
            await asyncio.to_thread(self._produce, records)
        self._reached |= {addition.after.partition: addition.after for addition in additions}

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        if records := list(self._records([(shard, events)])):
            await asyncio.to_thread(self._produce, records)

    def _records(self, frames: Iterable[tuple[int, Events]]) -> Iterator[tuple[Topic, int, bytes]]:
        """(topic, shard, value) of the frames with the commands of a batch of input frames (shard and events of each).

        Commands of several frames travel together: what arrives faster than it is sent costs the target less each."""
        gathered: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        topics = {topic.name: topic for topic in self.targets}
        for commands in (each for shard, events in frames if len(events) for each in self.translate(shard, events)):
            key = (topics[commands.topic.name].name, commands.shard)
            frame = gathered.setdefault(key, [])
            if len(frame) + len(commands.events) > self._frame_events[commands.topic.name] and frame:
                yield self._record(commands.topic, commands.shard, frame)
                frame = gathered[key] = []
            frame.extend(commands.events)
        for (name, target), frame in gathered.items():
            yield self._record(topics[name], target, frame)

    def _record(self, topic: Topic, shard: int, commands: Sequence[Mapping[str, Any]]) -> tuple[Topic, int, bytes]:
        codec = codec_of(topic.name)
        try:
            events = parse_events(codec, commands)
            body = codec.encode(Frame(topic.name, shard, 0, time.time_ns() // 1000, None, events))
        except StreambankError as error:
            raise Refused("not_a_command", f"{topic.name}: {error}") from error
        return topic, shard, wrap(self._schema_ids[topic.name], body)

    def _produce(self, records: Sequence[tuple[Topic, int, bytes]]) -> None:
        """All of them acknowledged, or `StoreUnavailable` and a new producer next time: what is still in the old one
        must not arrive after what is sent again."""
        if self._producer is None:
            self._producer = make_producer(self._settings, f"relay-{self.name}", DELIVERY_SECONDS)
        failures: list[str] = []

        def delivered(error: Any, _: Any) -> None:
            if error is not None:
                failures.append(error.str())

        try:
            for topic, shard, value in records:
                self._producer.produce(
                    self._settings.kafka_topic(topic.name),
                    value=value,
                    key=str(shard).encode(),
                    partition=shard,
                    headers=self._signers[topic.name].headers(shard, value),
                    on_delivery=delivered,
                )
                self._producer.poll(0)
            waiting = self._producer.flush(DELIVERY_SECONDS + 1)
        except (BufferError, KafkaException, ProducerKeyError) as error:
            self._drop_producer()
            raise StoreUnavailable(f"Kafka did not take a command of relay {self.name}: {error}") from error
        if failures or waiting:
            self._drop_producer()
            detail = failures[0] if failures else f"{waiting} not acknowledged in time"
            raise StoreUnavailable(f"Kafka did not take a command of relay {self.name}: {detail}")


def _position(place: TopicPartition) -> Position:
    if place.offset < 0:
        return Position(place.partition)
    sequence, unreadable = place.metadata.split(" ")
    return Position(place.partition, place.offset, int(sequence), int(unreadable))
