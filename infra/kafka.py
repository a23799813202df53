"""What every client of Kafka here does alike: a producer whose acknowledged records are kept, silence, watermarks.

A record is acknowledged by all replicas and written once per call; `make_producer`'s caller says what it does
otherwise, and why. librdkafka logs every refused connection: what matters is raised or counted by callers, so its log
is off.
"""

from __future__ import annotations

from typing import Any, Final

import stamina
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from infra.settings import Settings

__all__ = ["NoLogger", "make_producer", "watermarks"]

CALL_SECONDS: Final = 15.0
_LEADER_IS_MOVING: Final = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)


class NoLogger:
    """``logger`` of a client, where ``log_level`` 0 is not silent enough: what its callbacks say is left out too."""

    def log(self, level: int, *args: Any) -> None:
        pass


def make_producer(settings: Settings, client: str, delivery_seconds: float | None, **differences: Any) -> Any:
    """A producer named ``streambank-<client>``, idempotent and with acks=all, that sends at once.

    A record that is not acknowledged within ``delivery_seconds`` is reported as failed, though Kafka may hold it; None:
    never, a later one does not overtake it. ``differences`` are keys of librdkafka with underscores for dots.
    """
    return Producer(
        {
            "bootstrap.servers": settings.kafka_bootstrap,
            "client.id": f"streambank-{client}",
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 0,
            "compression.type": "lz4",
            "message.max.bytes": 1_000_000,
            "delivery.timeout.ms": 0 if delivery_seconds is None else int(delivery_seconds * 1000),
            "log_level": 0,
            **{key.replace("_", "."): value for key, value in differences.items()},
        }
    )


def watermarks(consumer: Any, place: TopicPartition, timeout: float = CALL_SECONDS) -> tuple[int, int]:
    """First offset of a partition and the offset after its last record. Raises `KafkaException`.

    librdkafka does not ask again when it asked a broker that leads the partition no more, or not yet.
    """

    def is_moving(error: Exception) -> bool:
        return isinstance(error, KafkaException) and error.args[0].code() in _LEADER_IS_MOVING

    for attempt in stamina.retry_context(on=is_moving, attempts=None, timeout=timeout, wait_max=1.0):
        with attempt:
            bounds: tuple[int, int] = consumer.get_watermark_offsets(place, timeout=timeout, cached=False)
    return bounds
