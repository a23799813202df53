"""Measures how long an event takes from the API's frame to the answer and to each store, on a running system.

A frame's clock starts at its ``produced_at``, which the API sets when it accepts the events and every job copies. It
stops when the frame's results are readable in Kafka, and when a sink's committed position has passed the frame's
events, which is when their rows can be queried. Positions are asked for every `POLL_SECONDS`, so the figures for
stores are up to that much too high, never too low. All clocks must be one machine's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
from confluent_kafka import Consumer, TopicPartition

from infra.kafka import kafka_options
from infra.settings import Settings
from jobs.topic_reader import TopicReader
from jobs.verify import SINKS, BacklogReader
from pipelines.catalogue import LEDGER_EVENTS, LEDGER_RESULTS
from pipelines.codec import codec_of
from pipelines.errors import FrameError
from pipelines.wire import unwrap

__all__ = ["LatencyProbe"]

POLL_SECONDS: Final = 0.025
RESULT: Final = "result"


class _Waiting(NamedTuple):
    offset: int
    produced_at: float
    events: int


class LatencyProbe:
    """Measures in a thread of its own, from entering the block to leaving it.

    Only frames count that were produced after ``since()``, in seconds since the epoch; default: after the start.
    """

    def __init__(
        self, config: Settings, sinks: Sequence[str] = SINKS, since: Callable[[], float] | None = None
    ) -> None:
        self._config = config
        started = time.time()
        self._since = since or (lambda: started)
        self._sinks = tuple(sinks)
        self._samples: dict[str, list[tuple[float, int]]] = {name: [] for name in (RESULT, *self._sinks)}
        self._waiting: dict[str, list[deque[_Waiting]]] = {
            sink: [deque() for _ in range(LEDGER_EVENTS.partitions)] for sink in self._sinks
        }
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="latency", daemon=True)
        self.error: str = ""
        """Why measuring ended early, if it did."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(30)

    def percentiles_ms(self) -> dict[str, dict[str, float]]:
        """p50 and p99 in milliseconds, weighted by events, and the number of events, for ``result`` and each sink."""
        return {name: _percentiles(samples[:]) for name, samples in self._samples.items() if samples}

    def _run(self) -> None:
        try:
            self._measure()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self._ready.set()

    def _measure(self) -> None:
        config = self._config
        with TopicReader(config) as reader:
            ends = {topic: reader.ends(topic) for topic in (LEDGER_RESULTS, LEDGER_EVENTS)}
        consumer: Any = Consumer(
            {
                **kafka_options(config),
                "client.id": "streambank-latency",
                "group.id": config.kafka_topic("latency"),
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
            }
        )
        names = {config.kafka_topic(topic.name): topic for topic in ends}
        consumer.assign(
            [
                TopicPartition(config.kafka_topic(topic.name), partition, offset)
                for topic, offsets in ends.items()
                for partition, offset in enumerate(offsets)
            ]
        )
        polled = 0.0
        with BacklogReader(config, self._sinks) as backlog:
            self._ready.set()
            while not self._stop.is_set():
                for message in consumer.consume(200, timeout=POLL_SECONDS / 2):
                    if message.error() is None:
                        self._take(names[message.topic()].name, message)
                if time.monotonic() - polled >= POLL_SECONDS:
                    polled = time.monotonic()
                    for sink in self._sinks:
                        self._pass(sink, backlog.next_offsets(sink))
        consumer.close()

    def _take(self, topic: str, message: Any) -> None:
        now = time.time()
        try:
            frame = codec_of(topic).decode(unwrap(message.value())[1])
        except FrameError:
            return
        produced_at = frame.produced_at / 1e6
        if produced_at < self._since():
            return  # from before, or repeated by a job that started again
        if topic == LEDGER_RESULTS.name:
            self._samples[RESULT].append((now - produced_at, len(frame.events)))
            return
        for sink in self._sinks:
            self._waiting[sink][message.partition()].append(_Waiting(message.offset(), produced_at, len(frame.events)))

    def _pass(self, sink: str, next_offsets: dict[int, int]) -> None:
        now = time.time()
        for partition, next_offset in next_offsets.items():
            waiting = self._waiting[sink][partition]
            while waiting and waiting[0].offset < next_offset:
                frame = waiting.popleft()
                self._samples[sink].append((now - frame.produced_at, frame.events))


def _percentiles(samples: list[tuple[float, int]]) -> dict[str, float]:
    latencies, events = (np.array(column) for column in zip(*samples, strict=True))
    order = np.argsort(latencies)
    share = np.cumsum(events[order]) / max(1, int(events.sum()))
    p50, p99 = (latencies[order][min(int(np.searchsorted(share, at)), len(order) - 1)] * 1e3 for at in (0.5, 0.99))
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "events": int(events.sum())}
