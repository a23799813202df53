"""What an operator does with dead letters: look, replay, drop.

Letters are never removed from their topic; that one was replayed or dropped is kept in Postgres
(``dead_letters_handled``), by the letter's place. Replaying means, by who set the letter aside:

- **a sink**: the record is applied through the sink's own code (`Sink.reapply`), idempotently, and without undoing what
  is newer. Its topic has one writer, so nothing may be produced to it again.
- **a job that reads a topic of many producers**: the record is produced again to where it came from. Its events are
  idempotent by id, so those that were applied the first time are not applied twice. It is signed anew, in the name of
  ``dlq``; a record that was set aside for its signature is therefore refused: its producer must send it again.
- **a job that reads another job's topic**: refused; repair the job, which then reads on from its own state.

A replay is marked after its effect, so that an interrupted one is repeated, never lost.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from infra.kafka import kafka_options, make_producer, watermarks
from infra.producer_keys import FrameSigner
from infra.registry import writer_schema
from infra.settings import Settings
from infra.stores import SINK_ROLE, postgres_conninfo
from infra.topics import MAX_RECORD_BYTES
from jobs.dead_letters import LetterPlace, decode_letters
from jobs.sinks import SINKS, load_sink
from jobs.sinks.base import Refused, Sink, StoreUnavailable
from jobs.sinks.records import RecordReader
from pipelines.catalogue import PIPELINES, SERVICES, TOPICS, Topic
from pipelines.errors import FrameError, StreambankError
from pipelines.frames import Events, Frame
from pipelines.signatures import SIGNATURE_REASONS

__all__ = ["DeadLetterQueue", "LetterFilter", "ReplayRefused"]

KAFKA_TIMEOUT_S: Final = 15.0
_DEAD_LETTER_TOPICS: Final = sorted(
    {pipeline.dead_letters.name for pipeline in PIPELINES.values()}
    | {service.dead_letters.name for service in SERVICES.values()}
)


class ReplayRefused(StreambankError):  # noqa: N818 - a state, named for what it is
    """This letter cannot be replayed, or not yet; the message says why."""


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters; every field that is set must match. Times are UTC microseconds, ``until`` exclusive."""

    ids: frozenset[str] = field(default_factory=frozenset)
    reason: str | None = None
    consumer: str | None = None
    since: int | None = None
    until: int | None = None

    @property
    def is_everything(self) -> bool:
        return self == LetterFilter()

    def matches(self, place: LetterPlace) -> bool:
        return (
            (not self.ids or place.id in self.ids)
            and self.reason in (None, place.letter.reason)
            and self.consumer in (None, place.letter.consumer)
            and (self.since is None or place.produced_at >= self.since)
            and (self.until is None or place.produced_at < self.until)
        )


class DeadLetterQueue:
    """The dead letters of one environment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def letters(self, wanted: LetterFilter | None = None) -> Iterator[LetterPlace]:
        """Matching letters of all pipelines, in the order of their partitions, as the topics are now."""
        for topic in _DEAD_LETTER_TOPICS:
            for partition in range(TOPICS[topic].partitions):
                for offset, value in self._records(TOPICS[topic], partition):
                    for place in self._decode(TOPICS[topic], partition, offset, value):
                        if wanted is None or wanted.matches(place):
                            yield place

    def handled(self) -> dict[str, str]:
        """Letter id -> ``replayed`` or ``dropped``. Raises `psycopg.OperationalError`."""
        with self._postgres() as connection:
            rows = connection.execute(
                'SELECT topic, partition, "offset", index, action FROM dead_letters_handled WHERE topic = ANY(%s)',
                [[self._settings.kafka_topic(name) for name in _DEAD_LETTER_TOPICS]],
            ).fetchall()
        prefix = len(self._settings.topic_prefix)
        return {
            f"{topic[prefix:].split('.', 1)[0]}:{partition}-{offset}" + (f".{index}" if index else ""): action
            for topic, partition, offset, index, action in rows
        }

    def drop(self, places: Iterable[LetterPlace]) -> None:
        """Mark letters as done without doing anything with them."""
        self._mark(places, "dropped")

    def replay(self, place: LetterPlace) -> str:
        """Replay one letter, mark it, and return what was done. Raises `ReplayRefused`; the letter then stays open."""
        letter = place.letter
        topic = TOPICS.get(letter.topic)
        if topic is None:
            raise ReplayRefused(f"{place.id}: topic {letter.topic} is not in the catalogue")
        if letter.reason in SIGNATURE_REASONS:
            raise ReplayRefused(
                f"{place.id}: nobody known signed this record ({letter.reason}), and a replay would; its producer must"
                " send it again, or drop the letter"
            )
        value = letter.payload or self.original(place)
        sink = self._sink(letter.consumer)
        if sink is not None:
            done = asyncio.run(self._reapply(sink, place, value))
        elif topic.writers == "many producers":
            self._produce(topic, letter.partition, value)
            done = f"produced again to {letter.topic} partition {letter.partition}"
        else:
            raise ReplayRefused(
                f"{place.id}: {letter.topic} is numbered by its one writer, nothing may be produced to it again;"
                f" repair {letter.consumer} and let it read on"
            )
        self._mark([place], "replayed")
        return done

    def original(self, place: LetterPlace) -> bytes:
        """The record that the letter is about, read from its topic (for a letter without a copy)."""
        letter = place.letter
        topic = TOPICS[letter.topic]
        for offset, value in self._records(topic, letter.partition, letter.offset, letter.offset + 1):
            if offset == letter.offset:
                return value or b""
        raise ReplayRefused(
            f"{place.id}: the letter has no copy of the record, and {letter.topic} partition {letter.partition} no"
            f" longer has offset {letter.offset}"
        )

    def decode(self, place: LetterPlace) -> Frame:
        """The frame in the letter's record. Raises `FrameError`."""
        return asyncio.run(self._read(place, place.letter.payload or self.original(place)))

    async def _read(self, place: LetterPlace, value: bytes) -> Frame:
        topic = TOPICS[place.letter.topic]
        reader = RecordReader(topic, partial(writer_schema, config=self._settings), numbered=topic.writers == "one job")
        return await reader.read(value, place.letter.partition)

    async def _reapply(self, sink: Sink, place: LetterPlace, value: bytes) -> str:
        try:
            frame = await self._read(place, value)
        except FrameError as error:
            raise ReplayRefused(
                f"{place.id}: the record still cannot be read ({error}); if it is no frame at all, drop the letter"
            ) from error
        index = place.letter.event_index
        events = frame.events if index < 0 else Events(frame.events.rows[index : index + 1].copy(), frame.events.heap)
        kept = range(len(events)) if index < 0 else [index]
        try:
            await sink.open()
            await sink.reapply(frame.shard, events, frame.sequence, list(kept))
        except Refused as error:
            raise ReplayRefused(f"{place.id}: the store still refuses it: {error}") from error
        except StoreUnavailable as error:
            raise ReplayRefused(f"{place.id}: {error}") from error
        finally:
            await sink.close()
        return f"applied {len(events)} event(s) through {place.letter.consumer}"

    def _sink(self, consumer: str) -> Sink | None:
        name = consumer.removeprefix("sink-")
        return load_sink(name)(self._settings) if consumer != name and name in SINKS else None

    def _produce(self, topic: Topic, partition: int, value: bytes) -> None:
        errors: list[KafkaError] = []
        producer = make_producer(
            self._settings, "dlq", KAFKA_TIMEOUT_S, message_max_bytes=MAX_RECORD_BYTES
        )  # what Kafka once took, it takes again
        producer.produce(
            self._settings.kafka_topic(topic.name),
            value=value,
            key=str(partition).encode(),
            partition=partition,
            headers=FrameSigner(self._settings, topic, "dlq").headers(partition, value),
            on_delivery=lambda error, _: errors.append(error) if error is not None else None,
        )
        left = producer.flush(KAFKA_TIMEOUT_S + 5)
        if left or errors:
            raise ReplayRefused(f"Kafka did not take the record: {errors[0] if errors else 'no answer in time'}")

    def _mark(self, places: Iterable[LetterPlace], action: str) -> None:
        rows = [
            (self._settings.kafka_topic(place.topic), place.partition, place.offset, place.index, action)
            for place in places
        ]
        try:
            with self._postgres() as connection, connection.cursor() as cursor:
                cursor.executemany(
                    'INSERT INTO dead_letters_handled (topic, partition, "offset", index, action)'
                    " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    rows,
                )
        except psycopg.OperationalError as error:
            raise StreambankError(f"Postgres, which keeps the marks of handled letters, is away: {error}") from error

    def _postgres(self) -> psycopg.Connection[Any]:
        return psycopg.connect(postgres_conninfo(self._settings, SINK_ROLE))

    def _decode(self, topic: Topic, partition: int, offset: int, value: bytes | None) -> list[LetterPlace]:
        return decode_letters(topic, partition, offset, value, lambda number: writer_schema(number, self._settings))

    def _records(
        self, topic: Topic, partition: int, start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[int, bytes | None]]:
        """(offset, value) of a partition's records from ``start`` to the offset ``stop`` or its end now."""
        consumer = Consumer(
            {
                **kafka_options(self._settings),
                "group.id": self._settings.kafka_topic(f"dlq-{uuid.uuid4()}"),  # required, never committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        with closing(consumer):
            place = TopicPartition(self._settings.kafka_topic(topic.name), partition)
            try:
                low, high = watermarks(consumer, place)
                place.offset = max(low, start or 0)
                last = high if stop is None else min(high, stop)
                if place.offset >= last:
                    return
                consumer.assign([place])
                while True:
                    message = consumer.poll(KAFKA_TIMEOUT_S)
                    if message is None:
                        raise StreambankError(f"Kafka did not answer within {KAFKA_TIMEOUT_S:g} s")
                    if (error := message.error()) is not None:
                        if error.code() == KafkaError._PARTITION_EOF:
                            return
                        raise KafkaException(error)
                    offset = message.offset()
                    if offset >= last:
                        return
                    yield offset, message.value()
                    if offset == last - 1:
                        return
            except KafkaException as error:
                raise StreambankError(
                    f"Kafka at {self._settings.kafka_bootstrap}: {error}. Is it up (`streambank status`), and are the"
                    " topics there (`streambank topics apply`)?"
                ) from error
