"""Kafka's side of the API: an idempotent producer with acks=all whose acknowledgements arrive in the event loop.

`KafkaSender.send` never blocks. librdkafka keeps each partition's order and writes each record at most once per call;
a record that is not acknowledged within ``delivery_seconds`` is reported as failed, though Kafka may hold it. After
some of these in a row the circuit opens: frames are refused at once instead of after another ``delivery_seconds``, but
for one at a time that tries whether Kafka is back.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from api.batching import DeliveryError
from api.circuit import Circuit
from api.logs import log
from infra.kafka import NoLogger, kafka_options
from infra.producer_keys import FrameSigner, ProducerKeyError
from infra.settings import Settings
from pipelines.catalogue import Topic
from pipelines.frames import Frame
from pipelines.wire import wrap

__all__ = ["KafkaSender"]

QUEUED_RECORDS: Final = 10_000
QUEUED_KIB: Final = 262_144
FLUSH_SECONDS: Final = 5.0
FAILURES_TO_OPEN: Final = 3
OPEN_SECONDS: Final = 1.0


class KafkaSender:
    """Sends frames of ``topic``, signed by ``producer``; partition = shard, key = shard. ``schema_id`` must be set
    before the first frame."""

    def __init__(self, settings: Settings, topic: Topic, delivery_seconds: float, producer: str = "api") -> None:
        self._topic = settings.kafka_topic(topic.name)
        self._signer = FrameSigner(settings, topic, producer)
        self._loop = asyncio.get_running_loop()
        self.schema_id: int | None = None
        self._config = {
            **kafka_options(settings),
            "client.id": "streambank-api",
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 0,
            "compression.type": "lz4",
            "delivery.timeout.ms": int(delivery_seconds * 1000),
            "request.timeout.ms": int(delivery_seconds * 1000),
            "socket.timeout.ms": int(delivery_seconds * 1000),
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "queue.buffering.max.messages": QUEUED_RECORDS,
            "queue.buffering.max.kbytes": QUEUED_KIB,
            "message.max.bytes": 1_000_000,
            "topic.metadata.refresh.interval.ms": 30_000,
            "error_cb": self._broken,
            "logger": NoLogger(),
        }
        self._producer: Any = Producer(self._config)
        self._fatal = False
        self._circuit = Circuit(f"kafka {topic.name}", failures_to_open=FAILURES_TO_OPEN, open_seconds=OPEN_SECONDS)
        self._stopping = False
        self._arrived: deque[tuple[Callable[[int, str | None], None], int, str | None]] = deque()
        self._scheduled = False
        self._poller = threading.Thread(target=self._poll, name="kafka-acknowledgements", daemon=True)
        self._poller.start()

    def send(self, frame: Frame, body: bytes, done: Callable[[int, str | None], None]) -> None:
        if self.schema_id is None:
            raise DeliveryError("the schema registry has not answered yet")
        if not self._circuit.allows():
            raise DeliveryError("Kafka acknowledges nothing at the moment")
        if self._fatal:
            self._replace()

        def delivered(error: KafkaError | None, message: Any) -> None:
            self._arrived.append((done, -1 if error is not None else message.offset(), error and error.str()))

        try:
            value = wrap(self.schema_id, body)
            self._producer.produce(
                self._topic,
                value=value,
                key=str(frame.shard).encode(),
                partition=frame.shard,
                headers=self._signer.headers(frame.shard, value),
                on_delivery=delivered,
            )
        except (BufferError, KafkaException) as error:
            self._circuit.failed()
            raise DeliveryError(str(error)) from error
        except ProducerKeyError as error:
            raise DeliveryError(str(error)) from error

    def reachable(self, timeout: float) -> bool:
        """Whether the broker answers and has the topic; blocks up to ``timeout`` seconds."""
        try:
            found = self._producer.list_topics(self._topic, timeout=timeout).topics.get(self._topic)
        except KafkaException:
            return False
        return found is not None and found.error is None and bool(found.partitions)

    def close(self) -> None:
        """Flush what is queued (bounded) and stop; blocks."""
        self._producer.flush(FLUSH_SECONDS)
        self._stopping = True
        self._poller.join(FLUSH_SECONDS)

    def _poll(self) -> None:
        while not self._stopping:
            self._producer.poll(0.1)
            if self._arrived and not self._scheduled:
                self._scheduled = True
                try:
                    self._loop.call_soon_threadsafe(self._report)
                except RuntimeError:  # the loop is closed: the worker is going
                    return

    def _report(self) -> None:
        self._scheduled = False
        while self._arrived:
            done, offset, error = self._arrived.popleft()
            if error is None:
                self._circuit.succeeded()
            else:
                self._circuit.failed()
            done(offset, error)

    def _broken(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = True
            log().error("kafka producer is broken and will be replaced", error=error.str())

    def _replace(self) -> None:
        """A fatal error ends an idempotent producer for good: its queued records have failed, a new one goes on."""
        self._fatal = False
        broken, self._producer = self._producer, Producer(self._config)
        broken.purge()
        threading.Thread(target=broken.flush, args=(FLUSH_SECONDS,), daemon=True).start()
