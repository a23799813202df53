"""Runs a sink: one Faust app that hands records to it in batches, and stops when it must.

Faust brings the records, the group and the pages; what must not go wrong is not left to it. Its commits are advice
(around a rebalance it may deliver out of order, or commit what was skipped), because positions live in the store:
see `jobs.sinks`.

Batching follows the load: a batch is whatever arrived while the last one was being written, and until the sink's
`flush_seconds` have passed since then, bounded by `SinkOptions.max_batch_events` and `max_batch_bytes`. Backpressure:
the queue between agent and writer is bounded, a full one stops the agent, and with it the consumer.

Exit codes of `SinkWorker.run`: 0 drained after SIGTERM or SIGINT; 1 Faust or the sink failed; 3 too many dead letters;
4 the sequence is broken. A supervisor should not restart on 3 and 4: nothing will be better before somebody looked.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import tempfile
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import prometheus_client
import stamina
import structlog
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from faust import App
from faust.exceptions import ProducerSendError
from faust.types import TP

from infra.registry import SchemaRegistry, writer_schema
from infra.settings import Settings
from jobs.dead_letters import DeadLetter, encode_letter, schema_id_of
from jobs.faust_app import make_app
from jobs.sinks.base import Addition, PositionMoved, Refusal, Sink, SinkAlarm, StoreUnavailable, TooManyDeadLetters
from jobs.sinks.fetching import consumer_that_gathers
from jobs.sinks.records import RecordReader, ShardOrder, Verdict
from pipelines.catalogue import PIPELINES, Topic
from pipelines.errors import FrameError, StreambankError
from pipelines.frames import Events, Frame

__all__ = ["DeadLetterLimit", "SinkOptions", "SinkWorker"]

REWIND_INTERVAL_S: Final = 2.0
"""A seek may be overtaken by records already fetched; when its record has not come by then, seek again."""
COMPANY_SECONDS: Final = 0.002
"""Faust hands over one by one what was fetched together: a sink that gathers waits for the rest of it."""
YOUNG_OBJECTS: Final = 10_000
"""New objects between two looks for garbage in circles, of which Faust and a batch leave little."""
EXIT_FAILED: Final = 1

FRAMES = prometheus_client.Counter(
    "streambank_sink_frames_total",
    "Records by outcome: apply, repeated, passed, rewind, unreadable.",
    ["sink", "outcome"],
)
EVENTS = prometheus_client.Counter("streambank_sink_events_total", "Events applied.", ["sink"])
DEAD_LETTERS = prometheus_client.Counter("streambank_sink_dead_letters_total", "Letters sent.", ["sink", "reason"])
RETRIES = prometheus_client.Counter("streambank_sink_retries_total", "Flushes tried again.", ["sink"])
LAG = prometheus_client.Gauge("streambank_sink_lag_records", "Records not yet applied.", ["sink", "partition"])
FLUSH_SECONDS = prometheus_client.Histogram("streambank_sink_flush_seconds", "Time to apply a batch.", ["sink"])
FLUSH_EVENTS = prometheus_client.Histogram(
    "streambank_sink_flush_events", "Events per batch.", ["sink"], buckets=[1, 10, 100, 1_000, 10_000, 100_000]
)

log = structlog.get_logger("streambank.sink")


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """Bounds of a sink. Bytes are of Kafka records, times seconds."""

    max_batch_events: int = 16_384
    max_batch_bytes: int = 8 * 2**20
    queue_records: int = 64
    dead_letter_ratio: float = 0.05
    dead_letter_window: int = 1_000
    drain_seconds: float = 20.0
    stall_seconds: float = 30.0
    """Records waiting and none applied for so long: not healthy."""
    commit_interval_seconds: float = 1.0
    web_port: int | None = None
    """Port of the health and metrics page; default: the settings' ``faust_web_port`` plus the sink's offset."""


class DeadLetterLimit:
    """Stops the sink when more than ``ratio`` of the last ``window`` records had to be set aside."""

    def __init__(self, ratio: float, window: int) -> None:
        self.ratio = ratio
        self.window = window
        self._passed = 0
        self._dead: OrderedDict[tuple[int, int], int] = OrderedDict()

    def count(self, partition: int, offset: int, reason: str) -> None:
        """Count a record that is about to be set aside (once, however often it is tried). Raises
        `TooManyDeadLetters`."""
        self._dead.setdefault((partition, offset), self._passed)
        while self._dead and next(iter(self._dead.values())) <= self._passed - self.window:
            self._dead.popitem(last=False)
        if len(self._dead) > self.ratio * self.window:
            raise TooManyDeadLetters(
                f"{len(self._dead)} of the last {self.window} records cannot be applied, more than the allowed"
                f" {self.ratio:.1%}; the last one at partition {partition}, offset {offset}: {reason}. Look with"
                " `streambank dlq ls`, then repair the writer, or start the sink with a higher --dead-letter-ratio"
            )

    def passed(self, records: int) -> None:
        self._passed += records


@dataclass(slots=True)
class _Record:
    """A record in hand. ``frame`` is None and ``error`` set when it cannot be read."""

    event: Any
    partition: int
    offset: int
    value: bytes | None
    assignment: int
    frame: Frame | None = None
    error: FrameError | None = None
    verdict: Verdict | None = None


@dataclass(slots=True)
class _Rewind:
    offset: int
    at: float


@dataclass(slots=True)
class _Progress:
    next_offset: int
    at: float = field(default_factory=time.monotonic)


class SinkWorker:
    """One process of one sink."""

    def __init__(self, sink: Sink, settings: Settings, options: SinkOptions | None = None) -> None:
        self.sink = sink
        self.settings = settings
        self.options = options or SinkOptions()
        self.web_port = self.options.web_port or settings.faust_web_port + sink.web_port_offset
        self._topic: Topic = sink.topic
        self._topic_name = settings.kafka_topic(sink.topic.name)
        self._dead_letter_topic = _dead_letters_of(sink.topic)
        self._is_numbered = sink.topic.writers == "one job"
        self._reader = RecordReader(sink.topic, partial(writer_schema, config=settings), numbered=self._is_numbered)
        self._limit = DeadLetterLimit(self.options.dead_letter_ratio, self.options.dead_letter_window)
        self._orders: dict[int, ShardOrder] = {}
        self._rewinds: dict[int, _Rewind] = {}
        self._progress: dict[int, _Progress] = {}
        self._letters_sent: set[tuple[int, int, int]] = set()
        self._in_hand: dict[tuple[int, int], _Record] = {}
        self._letter_schema_id = 0
        self._opened = False
        self._flushed_at = 0.0
        self._assignment = 0
        self._assigned: frozenset[int] | None = None
        self._queue: asyncio.Queue[_Record] = asyncio.Queue(self.options.queue_records)
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._log = log.bind(sink=sink.name)
        self._app: App | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="streambank-sink-")
        """Faust makes directories for tables, which there are none of."""

    # --- Faust -----------------------------------------------------------------------------------------------------

    def app(self) -> App:
        """The Faust app: one agent, the rebalance hooks, the pages ``/health`` and ``/metrics``."""
        app = make_app(
            self.settings, f"sink-{self.sink.name}", scratch=self._scratch.name, web_port=self.web_port,
            commit_seconds=self.options.commit_interval_seconds, queue_records=self.options.queue_records,
        )  # fmt: skip
        app.transport.Consumer = consumer_that_gathers(self.sink.flush_seconds)
        source = app.topic(self._topic_name, key_type=bytes, value_type=bytes)

        @app.agent(source, name="sink")
        async def take(stream: Any) -> None:
            async for event in stream.noack().events():
                message = event.message
                await self._queue.put(_Record(event, message.partition, message.offset, event.value, self._assignment))

        @app.on_partitions_assigned.connect
        async def assigned(_app: Any, partitions: set[Any], **_: Any) -> None:
            self._assignment += 1
            self._assigned = frozenset(tp.partition for tp in partitions if tp.topic == self._topic_name)
            self._orders.clear()
            self._rewinds.clear()
            self._progress.clear()
            self._wake.set()
            self._log.info("partitions_assigned", partitions=sorted(self._assigned))

        @app.page("/health")
        async def health(web: Any, _request: Any) -> Any:
            healthy, report = self.health()
            return web.json(report, status=200 if healthy else 503)

        @app.page("/metrics")
        async def metrics(web: Any, _request: Any) -> Any:
            self.health()
            return web.bytes(prometheus_client.generate_latest(), content_type="text/plain; version=0.0.4")

        return app

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Healthy is: the store was reached, and every assigned partition has no lag or its position advanced within
        the ``stall_seconds``."""
        now = time.monotonic()
        partitions = {}
        healthy = self._opened and self._assigned is not None
        for number in sorted(self._assigned or ()):
            progress = self._progress.get(number)
            end = self._app.consumer.highwater(TP(self._topic_name, number)) if self._app else None
            done = progress.next_offset if progress else 0
            lag = max(0, end - done) if end is not None else None
            advanced = round(now - progress.at, 1) if progress else None
            well = lag == 0 or (advanced is not None and advanced < self.options.stall_seconds)
            healthy = healthy and well
            LAG.labels(self.sink.name, number).set(lag or 0)
            partitions[str(number)] = {
                "next_offset": done,
                "end_offset": end,
                "lag": lag,
                "seconds_since_advance": advanced,
                "healthy": well,
            }
        report = {"sink": self.sink.name, "healthy": healthy, "store_reached": self._opened, "partitions": partitions}
        return healthy, report

    # --- the process -----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Run until a signal or a failure; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._request_stop)
        stopping = asyncio.create_task(self._stop.wait())
        writer = asyncio.create_task(self._write_batches())
        try:
            # the pages are served while the store is still away, and say so
            app = self._app = self.app()
            app.finalize()
            await app.start()
            crashed = asyncio.create_task(app.wait_until_stopped())
            await asyncio.wait([stopping, writer, crashed], return_when=asyncio.FIRST_COMPLETED)
            crashed.cancel()
            if self._stop.is_set():
                self._log.info("draining", records=self._queue.qsize())
                await asyncio.wait([writer], timeout=self.options.drain_seconds)
            return self._exit_code(writer, app)
        finally:
            self._request_stop()
            stopping.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            if self._app is not None:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._app.stop(), timeout=self.options.drain_seconds)
            await self.sink.close()
            self._scratch.cleanup()

    def _exit_code(self, writer: asyncio.Task[None], app: App) -> int:
        if writer.done() and not writer.cancelled() and (error := writer.exception()) is not None:
            if isinstance(error, SinkAlarm):
                self._log.critical("sink_stopped", alarm=type(error).__name__, detail=str(error))
                return error.exit_code
            self._log.critical("sink_failed", exc_info=error)
            return EXIT_FAILED
        if app.crashed:
            self._log.critical("faust_failed", detail=repr(app.crash_reason))
            return EXIT_FAILED
        self._log.info("drained" if writer.done() else "stopped_before_drained")
        return 0

    def _request_stop(self) -> None:
        self._stop.set()
        self._wake.set()

    async def _open(self) -> bool:
        """Reach the registry and the store, however long it takes; False if the sink is stopped before."""
        opening = asyncio.create_task(self._reach_store())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not opening.done():
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            return False
        opening.result()
        self._opened = True
        # what is there now stays: a look for garbage need not walk all modules
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)
        return True

    async def _reach_store(self) -> None:
        async for attempt in _forever((StoreUnavailable, StreambankError)):
            with attempt:
                with SchemaRegistry(self.settings) as registry:
                    self._letter_schema_id = await asyncio.to_thread(registry.schema_id, self._dead_letter_topic)
                await self.sink.open()

    # --- the writer ------------------------------------------------------------------------------------------------

    async def _write_batches(self) -> None:
        if not await self._open():
            return
        while not (self._stop.is_set() and self._queue.empty()):
            if not self._stop.is_set():
                self._wake.clear()
                await self._load_positions()
            batch = await self._next_batch()
            if batch:
                await self._apply(batch)

    async def _load_positions(self) -> None:
        """Ask the store where the assigned partitions are, before the first record of them comes."""
        if (self._assigned or frozenset()) <= self._orders.keys():
            return
        async for attempt in _forever(StoreUnavailable):
            with attempt:
                unknown = (self._assigned or frozenset()) - self._orders.keys()
                if unknown:
                    await self._learn(unknown)
                    now = time.monotonic()
                    for partition in unknown:
                        next_offset = self._orders[partition].position.next_offset
                        self._progress[partition] = _Progress(next_offset, now)
                        self._rewinds[partition] = _Rewind(next_offset, now)

    async def _learn(self, partitions: Collection[int]) -> None:
        for partition, position in (await self.sink.load_positions(partitions)).items():
            self._orders[partition] = ShardOrder(position)

    async def _next_batch(self) -> list[_Record]:
        """The records at hand, or that come before the next flush is due; none when the sink is stopping or has got
        other partitions."""
        batch: list[_Record] = []
        events = size = 0
        company_by = 0.0
        while events < self.options.max_batch_events and size < self.options.max_batch_bytes:
            try:
                record = self._queue.get_nowait()
            except asyncio.QueueEmpty:
                if batch:
                    pause = max(self._flushed_at + self.sink.flush_seconds, company_by) - time.monotonic()
                    found = await self._arriving(pause) if pause > 0 and not self._wake.is_set() else None
                    if found is None:
                        break
                else:
                    found = await self._arriving(REWIND_INTERVAL_S if self._rewinds else None)
                    if found is None:
                        if not self._wake.is_set():
                            await self._rewind_again()
                        break
                record = found
            if record.assignment != self._assignment:
                continue  # from before a rebalance: whoever has the partition now reads it again
            await self._read(record)
            if not batch and self.sink.flush_seconds:
                company_by = time.monotonic() + COMPANY_SECONDS
            batch.append(record)
            events += len(record.frame.events) if record.frame else 0
            size += len(record.value or b"")
        return batch

    async def _arriving(self, seconds: float | None) -> _Record | None:
        """The next record; None when none came in time, or the sink is stopping or has got other partitions."""
        getting = asyncio.ensure_future(self._queue.get())
        waking = asyncio.ensure_future(self._wake.wait())
        await asyncio.wait([getting, waking], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waking.cancel()
        if getting.done():
            return getting.result()
        getting.cancel()
        return None

    async def _read(self, record: _Record) -> None:
        try:
            record.frame = await self._reader.read(record.value, record.partition)
        except FrameError as error:
            record.error = error
        except StoreUnavailable:  # the registry, which only the first record of a schema needs: no retry for all others
            async for attempt in _forever(StoreUnavailable):
                with attempt:
                    try:
                        record.frame = await self._reader.read(record.value, record.partition)
                    except FrameError as error:
                        record.error = error

    async def _apply(self, batch: Sequence[_Record]) -> None:
        """Apply a batch, however often it takes; then acknowledge it."""
        self._letters_sent.clear()
        self._in_hand = {(record.partition, record.offset): record for record in batch}
        try:
            await self._apply_once(batch)
        except (StoreUnavailable, PositionMoved):  # a retry context costs as much as a batch of a relay
            async for attempt in _forever((StoreUnavailable, PositionMoved)):
                with attempt:
                    RETRIES.labels(self.sink.name).inc()
                    self.sink.discard()
                    for partition in {record.partition for record in batch}:
                        self._orders.pop(partition, None)
                    await self._apply_once(batch)
        now = time.monotonic()
        for record in batch:
            assert record.verdict is not None
            outcome = "unreadable" if record.error and record.verdict is Verdict.APPLY else record.verdict.value
            FRAMES.labels(self.sink.name, outcome).inc()
            if record.verdict is not Verdict.REWIND:
                record.event.ack()
        for partition, order in self._orders.items():
            progress = self._progress.get(partition)
            if progress is None or progress.next_offset < order.position.next_offset:
                self._progress[partition] = _Progress(order.position.next_offset, now)
        self._limit.passed(len(batch))

    async def _apply_once(self, batch: Sequence[_Record]) -> None:
        unknown = {record.partition for record in batch} - self._orders.keys()
        if unknown:
            await self._learn(unknown)
        events = 0
        for record in batch:
            order = self._orders[record.partition]
            sequence = self._sequence(record)
            record.verdict = order.judge(record.offset, sequence)
            if record.verdict is Verdict.REWIND:
                await self._rewind(record.partition, order)
            elif record.verdict is not Verdict.PASSED:
                self._rewinds.pop(record.partition, None)
                before, after = order.advance(record.offset, sequence, record.verdict)
                applied = record.frame.events if record.frame and record.verdict is Verdict.APPLY else _NO_EVENTS
                events += len(applied)
                produced_at, trace = (record.frame.produced_at, record.frame.trace) if record.frame else (0, None)
                self.sink.add(applied, before, after, produced_at, trace)
        unreadable = [record for record in batch if record.error and record.verdict is Verdict.APPLY]
        for record in unreadable:
            assert record.error is not None
            self._limit.count(record.partition, record.offset, str(record.error))
        for record in unreadable:
            assert record.error is not None
            await self._send_letter(record, Refusal(-1, record.error.reason, record.error.detail))
        self._flushed_at = time.monotonic()
        with FLUSH_SECONDS.labels(self.sink.name).time():
            await self.sink.flush(self._set_aside)
        EVENTS.labels(self.sink.name).inc(events)
        FLUSH_EVENTS.labels(self.sink.name).observe(events)

    def _sequence(self, record: _Record) -> int | None:
        """The frame's number; frames of many producers have none, there each record is the next."""
        if record.frame is None:
            return None
        return record.frame.sequence if self._is_numbered else record.offset + 1

    async def _rewind(self, partition: int, order: ShardOrder) -> None:
        assert self._app is not None
        now = time.monotonic()
        target = order.position.next_offset
        last = self._rewinds.get(partition)
        if last is not None and last.offset == target and now - last.at < REWIND_INTERVAL_S:
            return
        order.rewinds += 1
        self._rewinds[partition] = _Rewind(target, now)
        self._log.info("rewind", partition=partition, offset=target, sequence=order.position.sequence)
        # not `seek`: it would change what was fetched from this thread, while the consumer's own hands it out
        await self._app.consumer.seek_wait({TP(self._topic_name, partition): target})

    async def _rewind_again(self) -> None:
        """Nothing came: a seek was lost between the consumer and its fetcher, or Kafka's committed offset is ahead of
        the store's position (a projection that is being rebuilt)."""
        assert self._app is not None
        for partition in list(self._rewinds):
            order = self._orders.get(partition)
            end = self._app.consumer.highwater(TP(self._topic_name, partition))
            if order is None or (end is not None and end <= order.position.next_offset):
                del self._rewinds[partition]
            else:
                await self._rewind(partition, order)

    async def _set_aside(self, addition: Addition, refusals: Sequence[Refusal]) -> None:
        record = self._in_hand[addition.before.partition, addition.after.next_offset - 1]
        self._limit.count(record.partition, record.offset, f"{refusals[0].reason}: {refusals[0].detail}")
        for refusal in refusals:
            await self._send_letter(record, refusal)

    async def _send_letter(self, record: _Record, refusal: Refusal) -> None:
        """Send a letter and wait until Kafka has it on all replicas."""
        key = (record.partition, record.offset, refusal.event_index)
        if key in self._letters_sent:
            return
        assert self._app is not None
        letter = DeadLetter(
            consumer=f"sink-{self.sink.name}",
            topic=self._topic.name,
            partition=record.partition,
            offset=record.offset,
            schema_id=schema_id_of(record.value),
            event_index=refusal.event_index,
            reason=refusal.reason,
            detail=refusal.detail,
            payload=record.value or b"",
        )
        trace = record.frame.trace if record.frame else None
        try:
            await self._app.producer.send_and_wait(
                self.settings.kafka_topic(self._dead_letter_topic.name),
                str(record.partition).encode(),
                encode_letter(self._dead_letter_topic, self._letter_schema_id, letter, trace),
                record.partition,
                None,
                None,
            )
        except (KafkaError, ProducerSendError) as error:
            raise StoreUnavailable(f"Kafka did not take a dead letter: {error}") from error
        self._letters_sent.add(key)
        DEAD_LETTERS.labels(self.sink.name, refusal.reason).inc()
        self._log.warning(
            "dead_letter",
            partition=record.partition,
            offset=record.offset,
            event_index=refusal.event_index,
            reason=refusal.reason,
            detail=refusal.detail,
        )


def _dead_letters_of(topic: Topic) -> Topic:
    """The dead letters of the job that writes the topic, or else of its system."""
    system = topic.name.split(".", 1)[0]
    for pipeline in PIPELINES.values():
        if topic in pipeline.outputs or pipeline.dead_letters.name.split(".", 1)[0] == system:
            return pipeline.dead_letters
    raise StreambankError(f"no pipeline of the catalogue has dead letters for {topic.name}")


def _no_events() -> Events:
    import numpy as np

    return Events(np.empty((0, 1), np.int64))


_NO_EVENTS: Final = _no_events()


def _forever(on: type[Exception] | tuple[type[Exception], ...]) -> Any:
    """Try again until it works, after 0.1 to 2.1 s: stamina's growing waits lose their jitter once they reach the
    maximum, and then many sinks would come back to a store at the same moments."""
    return stamina.retry_context(
        on=on, attempts=None, timeout=None, wait_initial=0.1, wait_max=2.1, wait_jitter=2.0, wait_exp_base=1.0
    )
