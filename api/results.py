"""`Prefer: wait=N`: hands a system's replies to the requests that wait for them.

Each worker reads every partition of the results topic from its end, in no consumer group, and from before it accepts
its first write, so that no result of a frame it sent can be missed. What has come is taken together, and what concerns
somebody is told to the event loop in one call: the interpreter, which the reading thread must wait for, is taken twice
per round and not for each record. Results are matched by (trace, index): a result
frame carries the trace of the command frame and has one event per command, in order. While nobody waits, records are
read and dropped undecoded. A waiter that got nothing (the job is down, say) is answered 202 by its handler.

`ResultReader` takes one reply per command, `api.reports` any number.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from confluent_kafka import Consumer, KafkaException, TopicPartition

from api.logs import log
from infra.kafka import NoLogger, kafka_options, watermarks
from infra.registry import writer_schema
from infra.settings import Settings
from pipelines.catalogue import Topic
from pipelines.codec import FrameCodec
from pipelines.errors import StreambankError
from pipelines.frames import Events, Frame
from pipelines.wire import unwrap

__all__ = ["ResultReader", "Waiter"]

CALL_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0
RECORDS_AT_ONCE: Final = 256


@dataclass(slots=True, eq=False)
class Waiter:
    """One run's place in the results; ``answer`` resolves to the result frame's sequence and the run's results, in
    the order of the run."""

    answer: asyncio.Future[tuple[int, Events]]
    trace: str = ""
    start: int = 0
    stop: int = 0


class ResultReader:
    """Reads ``topic`` in a thread and resolves waiters in the event loop."""

    def __init__(self, settings: Settings, topic: Topic) -> None:
        self._settings = settings
        self._topic = topic
        self._name = settings.kafka_topic(topic.name)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, list[Waiter]] = {}
        self._codecs: dict[int, FrameCodec] = {}
        self._arrived: deque[Frame] = deque()
        self._is_telling = False
        self._positioned = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"{topic.name}-reader", daemon=True)
        self._thread.start()

    @property
    def _wanted(self) -> bool:
        """Whether anybody wants what is read now."""
        return bool(self._waiting)

    @property
    def ready(self) -> bool:
        """Whether the reader stands at the end of every partition, so that a waiter cannot miss its results."""
        return self._positioned.is_set()

    def wait_ready(self, seconds: float) -> bool:
        """Block until `ready`, at most so long."""
        return self._positioned.wait(seconds)

    def waiter(self) -> Waiter:
        return Waiter(self._loop.create_future())

    def expect(self, waiter: Waiter, trace: str, start: int, stop: int) -> None:
        """Match ``waiter`` with events ``start`` to ``stop`` of the frame of ``trace``, which is about to leave."""
        waiter.trace, waiter.start, waiter.stop = trace, start, stop
        self._waiting.setdefault(trace, []).append(waiter)

    def forget(self, waiter: Waiter) -> None:
        """Stop matching; harmless when it was matched already."""
        waiters = self._waiting.get(waiter.trace)
        if waiters and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[waiter.trace]

    def close(self) -> None:
        """Stop reading; blocks until the thread ends (bounded)."""
        self._stopping.set()
        self._thread.join(CALL_SECONDS)

    def _read(self) -> None:
        consumer: Any = Consumer(
            {
                **kafka_options(self._settings),
                "group.id": f"{self._settings.topic_prefix}streambank-api-{uuid4()}",  # required, never joined
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "latest",
                "reconnect.backoff.ms": 50,
                "reconnect.backoff.max.ms": 1000,
                "fetch.error.backoff.ms": 100,
                "queued.max.messages.kbytes": 16_384,
                "logger": NoLogger(),
            }
        )
        try:
            while not self._stopping.is_set() and not self._position(consumer):
                self._stopping.wait(RETRY_SECONDS)
            while not self._stopping.is_set():
                message = consumer.poll(0.1)
                if message is None:
                    continue
                for one in (message, *consumer.consume(RECORDS_AT_ONCE, 0)):
                    if one.error() is None and self._wanted:
                        self._take(one)
                if self._arrived and not self._is_telling:
                    self._is_telling = True
                    self._loop.call_soon_threadsafe(self._tell_arrived)
        finally:
            consumer.close()

    def _position(self, consumer: Any) -> bool:
        try:
            ends = [
                TopicPartition(
                    self._name,
                    partition,
                    watermarks(consumer, TopicPartition(self._name, partition), CALL_SECONDS)[1],
                )
                for partition in range(self._topic.partitions)
            ]
            consumer.assign(ends)
        except KafkaException:
            return False
        self._positioned.set()
        return True

    def _take(self, message: Any) -> None:
        try:
            schema_id, body = unwrap(message.value())
            frame = self._codec(schema_id).decode(body)
        except StreambankError as error:
            log().warning(
                "unreadable results", partition=message.partition(), offset=message.offset(), error=str(error)
            )
            return
        if self._concerns(frame):
            self._arrived.append(frame)

    def _tell_arrived(self) -> None:
        self._is_telling = False
        while self._arrived:
            frame = self._arrived.popleft()
            try:
                self._resolve(frame)
            except Exception:  # the others have theirs
                log().exception("results were not handed over", topic=self._topic.name, frame=frame.trace)

    def _concerns(self, frame: Frame) -> bool:
        """Whether `_resolve` must see the frame; called in the reading thread."""
        return frame.trace in self._waiting

    def _codec(self, schema_id: int) -> FrameCodec:
        codec = self._codecs.get(schema_id)
        if codec is None:
            codec = FrameCodec(self._topic.name, self._topic.schema(), writer_schema(schema_id, self._settings))
            self._codecs[schema_id] = codec
        return codec

    def _resolve(self, frame: Frame) -> None:
        for waiter in self._waiting.pop(frame.trace or "", ()):
            if not waiter.answer.done() and waiter.stop <= len(frame.events):
                events = Events(frame.events.rows[waiter.start : waiter.stop], frame.events.heap)
                waiter.answer.set_result((frame.sequence, events))
