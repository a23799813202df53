"""Reads a topic's partitions from an offset to their present end, and then stops: for audits, replays and tests.

It joins no group and commits nothing, so nobody notices that it read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from infra.kafka import kafka_options, watermarks
from infra.settings import Settings
from pipelines.catalogue import Topic
from pipelines.errors import StreambankError
from pipelines.signatures import HEADER

__all__ = ["Record", "TopicReadError", "TopicReader", "signature_of"]

STALL_SECONDS: Final = 30.0
BATCH_RECORDS: Final = 500


def signature_of(message: Any) -> bytes | None:
    """The producer's signature in the headers of a message of librdkafka."""
    signature: bytes | None = dict(message.headers() or ()).get(HEADER)
    return signature


class TopicReadError(StreambankError):
    """The broker is away or a partition gave nothing for too long."""


class Record(NamedTuple):
    """``value`` is None for a record without one; so is ``signature``, the header of `pipelines.signatures`."""

    offset: int
    value: bytes | None
    signature: bytes | None = None


class TopicReader:
    """One consumer; use as a context manager, from one thread."""

    def __init__(self, config: Settings) -> None:
        self._config = config
        self._consumer: Any = Consumer(
            {
                **kafka_options(config),
                "client.id": "streambank-reader",
                "group.id": config.kafka_topic("reader"),  # required, never joined
                "enable.auto.commit": False,
                "enable.partition.eof": False,
                "fetch.wait.max.ms": 50,
                "log_level": 0,  # what goes wrong is raised
                "queued.max.messages.kbytes": 16_384,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def bounds(self, topic: Topic, partition: int) -> tuple[int, int]:
        """First offset and the offset after the last record."""
        place = TopicPartition(self._config.kafka_topic(topic.name), partition)
        try:
            return watermarks(self._consumer, place)
        except KafkaException as error:
            raise TopicReadError(f"{place.topic} {partition} at {self._config.kafka_bootstrap}: {error}") from error

    def ends(self, topic: Topic) -> list[int]:
        """The offset after the last record, per partition."""
        return [self.bounds(topic, partition)[1] for partition in range(topic.partitions)]

    def read(
        self, topic: Topic, partition: int, start: int = OFFSET_BEGINNING, end: int | None = None
    ) -> Iterator[Record]:
        """Records from offset ``start`` up to, not including, ``end`` (default: the end as it is now)."""
        first, last = self.bounds(topic, partition)
        end = last if end is None else end
        start = first if start == OFFSET_BEGINNING else start
        if start >= end:
            return
        name = self._config.kafka_topic(topic.name)
        self._consumer.assign([TopicPartition(name, partition, start)])
        try:
            silent_since = time.monotonic()
            while True:
                # it waits for as many as it is asked for: no more than there are, or each partition takes a second
                messages = self._consumer.consume(max(1, min(BATCH_RECORDS, end - start)), timeout=1.0)
                for message in messages:
                    if message.error() is not None:
                        raise TopicReadError(f"{name} {partition}: {message.error().str()}")
                    if message.offset() >= end:
                        return
                    yield Record(message.offset(), message.value(), signature_of(message))
                    start = message.offset() + 1
                    if start == end:
                        return
                if messages:
                    silent_since = time.monotonic()
                elif time.monotonic() - silent_since > STALL_SECONDS:
                    raise TopicReadError(f"{name} {partition}: nothing for {STALL_SECONDS:.0f} s before offset {end}")
        finally:
            self._consumer.unassign()
