"""What every process that speaks FIX is made of: frames of commands to Kafka, reports back, sessions in between.

One process, one event loop, one store (`api.fix.store`). What arrives in one read is one transaction; the frames made
of it leave for Kafka after it, and a report's message leaves for its counterparty after the transaction that moved the
place in matching.reports. So after a kill -9 nothing is lost and nothing is entered twice:

- A frame is pending until Kafka acknowledged it. One without acknowledgement (Kafka was away, the process was killed)
  may or may not be in the log. It is looked for there, by its trace, when it is at least ``settle_seconds`` old, so
  that a record on its way has landed; only what is not found is sent again, and what came later waits for it. So a
  shard's commands stay in order, but for those that were on their way together when Kafka went away.
- Reports are read from the stored place. A repeated frame (the job restarted) is dropped by its sequence; a missing
  one is an alarm and stops the process.

Healthy is: Kafka answers, and no frame's fate is unknown. Exit codes of `FixProcess.run`: 0 stopped by SIGTERM or
SIGINT, every counterparty logged out; 1 failed, may be restarted; 4 a report frame is missing.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Final, Protocol
from uuid import uuid4

import prometheus_client
import structlog
from aiohttp import web
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from api.batching import DeliveryError
from api.fix.config import ProcessSettings
from api.fix.session import Session
from api.fix.store import PendingFrame, Place, SessionStore
from api.fix.wire import Framer, Message
from api.producer import KafkaSender
from infra.kafka import kafka_options, watermarks
from infra.registry import schema_ids, writer_schema
from infra.settings import Settings
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS, MATCHING_SHARDS, Topic
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import StreambankError
from pipelines.frames import Frame
from pipelines.wire import unwrap

__all__ = ["CALL_SECONDS", "READ_BYTES", "Connection", "Desk", "FixProcess", "ReportsMissing", "read_messages"]

READ_BYTES: Final = 65_536
CALL_SECONDS: Final = 15.0
PROVE_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 5.0
BATCH_FRAMES: Final = 200
DAY_MICROS: Final = 86_400_000_000

MESSAGES = prometheus_client.Counter("streambank_fix_messages_total", "Messages received, by type.", ["type"])
GARBLED = prometheus_client.Counter("streambank_fix_garbled_total", "Messages that were no FIX.")
RECOVERED = prometheus_client.Counter(
    "streambank_fix_frames_recovered_total", "Frames without acknowledgement, by what the log said.", ["outcome"]
)

log = structlog.get_logger("streambank.fix")


class ReportsMissing(StreambankError):  # noqa: N818 - a state, named for what it is
    """The reports of a shard have a gap."""


class Desk(Protocol):
    """What makes commands of messages and messages of reports; called within transactions."""

    def take_frames(self) -> list[PendingFrame]:
        """Store what was asked for since the last call, as frames that are now to be sent."""

    def apply(self, frame: Frame) -> None:
        """Take a frame of reports."""


class Connection:
    """A `Link` over asyncio streams; cuts off a counterparty that does not read."""

    def __init__(self, writer: asyncio.StreamWriter, unsent_bytes: int) -> None:
        self.writer = writer
        self._unsent_bytes = unsent_bytes

    def write(self, data: bytes) -> None:
        if self.writer.transport.get_write_buffer_size() > self._unsent_bytes:
            log.warning("counterparty_too_slow", peer=str(self.writer.get_extra_info("peername")))
            self.writer.transport.abort()
        else:
            self.writer.write(data)

    def close(self) -> None:
        self.writer.close()


class FixProcess:
    """See the module; what is particular to a gateway or a router is in the methods that raise NotImplementedError, and
    ``desk``, which the subclass sets."""

    desk: Desk

    def __init__(self, settings: Settings, config: ProcessSettings, store: SessionStore, producer: str) -> None:
        self.settings = settings
        self.config = config
        self.store: SessionStore = store
        self._producer = producer
        self._stop = asyncio.Event()
        self._touched: set[Session] = set()
        self._log_ends: dict[int, int] = {}
        self._sender: KafkaSender | None = None
        self._outbound: dict[int, _Outbound] = {}
        self._failure: asyncio.Future[None] | None = None
        self._reports_at = float("-inf")
        self._connections: set[asyncio.Task[None]] = set()

    # --- what a subclass is ----------------------------------------------------------------------------------------

    def serving(self) -> AbstractAsyncContextManager[None]:
        """Take or make connections while it is open."""
        raise NotImplementedError

    def first_places(self, ends: Mapping[int, int]) -> dict[int, Place]:
        """Where the reports of shards begin for a new store, given the offsets of their last records."""
        raise NotImplementedError

    def started(self) -> None:
        """What is to be done at the start, within a transaction."""

    def log_out(self, text: str) -> None:
        """Say goodbye to everybody, within a transaction."""
        raise NotImplementedError

    def tending(self) -> Callable[[], None] | None:
        """What is to be done now, within a transaction; asked twice a second."""
        raise NotImplementedError

    def condition(self) -> tuple[bool, dict[str, Any]]:
        """Whether it is healthy apart from Kafka, and what /health says of it."""
        return True, {}

    # --- the process -----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Run until a signal or a failure; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        reader: threading.Thread | None = None
        tasks: list[asyncio.Task[None]] = []
        runner: web.AppRunner | None = None
        try:
            ids = await self._ready()
            if ids is None:
                return 0
            self._sender = KafkaSender(
                self.settings, MATCHING_COMMANDS, self.config.delivery_seconds, producer=self._producer
            )
            self._sender.schema_id = ids[MATCHING_COMMANDS.name]
            self._outbound = {
                shard: _Outbound(self, shard, self.store.pending_frames(shard)) for shard in range(MATCHING_SHARDS)
            }
            self._change(self.started)
            reader = threading.Thread(target=self._follow_reports, args=(loop,), name="fix-reports", daemon=True)
            reader.start()
            tasks = [asyncio.create_task(outbound.run()) for outbound in self._outbound.values()]
            tasks.append(asyncio.create_task(self._tick()))
            for task in tasks:
                task.add_done_callback(self._ended)
            async with self.serving():
                runner = await self._serve_health()
                stopping = asyncio.create_task(self._stop.wait())
                until: list[asyncio.Future[Any]] = [stopping, self._failure]
                await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if self._failure.done():
                    error = self._failure.exception()
                    log.critical("fix_process_failed", detail=str(error), exc_info=error)
                    return 4 if isinstance(error, ReportsMissing) else 1
                log.info("stopping")
                self._change(partial(self.log_out, "the process stops"))
                if self._connections:
                    await asyncio.wait(self._connections, timeout=STOP_SECONDS)
                return 0
        finally:
            self._stop.set()
            for task in [*tasks, *self._connections]:
                task.cancel()
            await asyncio.gather(*tasks, *self._connections, return_exceptions=True)
            if runner is not None:
                await runner.cleanup()
            if reader is not None:
                await asyncio.to_thread(reader.join, CALL_SECONDS)
            if self._sender is not None:
                await asyncio.to_thread(self._sender.close)
                await asyncio.sleep(0)  # the last acknowledgements
                if not self._failed:
                    self._change(lambda: None)
            self.store.close()

    async def _ready(self) -> dict[str, int] | None:
        """Reach the registry and Kafka, however long it takes, and find out where the logs end; None when stopped."""
        said = ""
        while not self._stop.is_set():
            try:
                ids = await asyncio.to_thread(schema_ids, [MATCHING_COMMANDS], self.settings)
                self._log_ends |= await asyncio.to_thread(self._ends, MATCHING_COMMANDS)
                known = self.store.places()
                if len(known) < MATCHING_SHARDS:
                    first = self.first_places(await asyncio.to_thread(self._ends, MATCHING_REPORTS))
                    with self.store.transaction():
                        for shard in first.keys() - known.keys():
                            self.store.set_place(shard, first[shard])
                with self.store.transaction():
                    self.store.forget_before(time.time_ns() // 1000 - self.config.keep_days * DAY_MICROS)
                return ids
            except (StreambankError, KafkaException) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("not_ready", detail=said)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), RETRY_SECONDS)
        return None

    def _ends(self, topic: Topic) -> dict[int, int]:
        """Offset of the last record per shard, -1 for none."""
        places = [TopicPartition(self.settings.kafka_topic(topic.name), shard) for shard in range(topic.partitions)]
        with _consumer(self.settings) as consumer:
            ends = [watermarks(consumer, place, CALL_SECONDS)[1] for place in places]
        return {shard: end - 1 for shard, end in enumerate(ends)}

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Stop because of an error; only the first counts."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    @property
    def _failed(self) -> bool:
        return self._failure is not None and self._failure.done()

    async def _serve_health(self) -> web.AppRunner | None:
        if self.config.web_port == 0:
            return None

        async def health(_: web.Request) -> web.Response:
            age = round(time.monotonic() - self._reports_at, 1)
            waiting = sum(outbound.waiting for outbound in self._outbound.values())
            good, more = self.condition()
            healthy = good and age < CALL_SECONDS and not any(outbound.is_stuck for outbound in self._outbound.values())
            found = {"healthy": healthy, "reports_read_seconds_ago": age, "frames_without_acknowledgement": waiting}
            return web.json_response(found | more, status=200 if healthy else 503)

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=prometheus_client.generate_latest(), content_type="text/plain")

        app = web.Application()
        app.router.add_get("/health", health)
        app.router.add_get("/metrics", metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, self.settings.host, self.config.web_port).start()
        return runner

    # --- transactions ----------------------------------------------------------------------------------------------

    def _change(self, work: Callable[[], Any]) -> None:
        """Do ``work`` as one transaction; then send what it made to counterparties and to Kafka. An error of it stops
        the process: what is in memory is not what is on disk then."""
        try:
            with self.store.transaction():
                work()
                frames = self.desk.take_frames()
                for outbound in self._outbound.values():
                    outbound.forget_placed()
                for session in self._touched:
                    session.save()
        except BaseException as error:
            self.fail(error)
            raise
        touched = list(self._touched)
        self._touched.clear()
        for frame in frames:
            self._outbound[frame.shard].put(frame)
        for session in touched:
            session.flush()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            work = self.tending()
            if work is not None or any(outbound.has_placed for outbound in self._outbound.values()):
                self._change(work or (lambda: None))

    async def _converse(
        self, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, framer: Framer,
        messages: list[Message] | None,
    ) -> None:  # fmt: skip
        """Receive until the connection ends; ``messages`` were read already."""
        while messages is not None:
            if messages:
                self._change(partial(self._receive, session, messages))
            await writer.drain()
            messages = await read_messages(reader, framer)

    def _receive(self, session: Session, messages: Sequence[Message]) -> None:
        for message in messages:
            MESSAGES.labels(message.type if message.type in _KNOWN_TYPES else "other").inc()
            session.receive(message)

    # --- reports ---------------------------------------------------------------------------------------------------

    def _follow_reports(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: read matching.reports from the stored places, and let the event loop apply them."""
        name = self.settings.kafka_topic(MATCHING_REPORTS.name)
        codecs: dict[int, FrameCodec] = {}
        try:
            with _consumer(self.settings) as consumer:
                places = asyncio.run_coroutine_threadsafe(self._places(), loop).result()
                consumer.assign([TopicPartition(name, shard, place.next_offset) for shard, place in places.items()])
                any_partition = TopicPartition(name, 0)
                while not self._stop.is_set():
                    message = consumer.poll(0.2)
                    batch = [] if message is None else [message, *consumer.consume(BATCH_FRAMES, 0)]
                    if not batch:
                        self._prove_reachable(consumer, any_partition)
                    read = []
                    for message in batch:
                        if message.error() is not None:
                            if message.error().code() in _LOST_PLACE:
                                raise KafkaException(message.error())
                            log.warning("reports_not_read", detail=message.error().str())
                            continue
                        schema_id, body = unwrap(message.value())
                        if schema_id not in codecs:
                            writer = writer_schema(schema_id, self.settings)
                            codecs[schema_id] = FrameCodec(MATCHING_REPORTS.name, MATCHING_REPORTS.schema(), writer)
                        read.append((message.partition(), message.offset(), codecs[schema_id].decode(body)))
                    if read:
                        asyncio.run_coroutine_threadsafe(self._take_reports(read), loop).result()
        except BaseException as error:
            if not self._stop.is_set():
                loop.call_soon_threadsafe(self.fail, error)

    async def _places(self) -> dict[int, Place]:
        return self.store.places()

    def _prove_reachable(self, consumer: Any, place: TopicPartition) -> None:
        """Without reports, ask Kafka now and then whether it is there."""
        if time.monotonic() - self._reports_at > PROVE_SECONDS:
            with suppress(KafkaException):
                consumer.get_watermark_offsets(place, timeout=PROVE_SECONDS, cached=False)
                self._reports_at = time.monotonic()

    async def _take_reports(self, read: Sequence[tuple[int, int, Frame]]) -> None:
        if not self._failed:
            self._change(lambda: self._apply(read))
            self._reports_at = time.monotonic()

    def _apply(self, read: Sequence[tuple[int, int, Frame]]) -> None:
        places = self.store.places()
        for shard, offset, frame in read:
            last = places[shard].sequence
            if frame.sequence > last:
                if last and frame.sequence != last + 1:
                    raise ReportsMissing(
                        f"{MATCHING_REPORTS.name} {shard}: frame {frame.sequence} at offset {offset} follows {last}"
                    )
                self.desk.apply(frame)
            places[shard] = Place(offset + 1, max(last, frame.sequence))
        for shard in {shard for shard, _, _ in read}:
            self.store.set_place(shard, places[shard])

    # --- what the ways to Kafka use --------------------------------------------------------------------------------

    def send(self, frame: PendingFrame, done: Callable[[int, str | None], None]) -> None:
        assert self._sender is not None
        self._sender.send(codec_of(MATCHING_COMMANDS.name).decode(frame.body), frame.body, done)

    def placed(self, shard: int, offset: int) -> None:
        self._log_ends[shard] = max(self._log_ends.get(shard, -1), offset)

    def find(self, shard: int, frames: Sequence[PendingFrame]) -> set[str]:
        """Traces of those frames that the log holds; blocks. Raises KafkaException."""
        wanted = {frame.trace.encode(): frame.trace for frame in frames}
        name = self.settings.kafka_topic(MATCHING_COMMANDS.name)
        found: set[str] = set()
        with _consumer(self.settings) as consumer:
            place = TopicPartition(name, shard, min(frame.after for frame in frames) + 1)
            start, end = watermarks(consumer, place, CALL_SECONDS)
            at = max(place.offset, start)
            consumer.assign([TopicPartition(name, shard, at)])
            while at < end:
                message = consumer.poll(CALL_SECONDS)
                if message is None or message.error() is not None:
                    raise KafkaException(f"{name} {shard} gave nothing at offset {at} of {end}")
                at = message.offset() + 1
                # Avro writes text as it is, and a trace is random: no need to decode other producers' records.
                value = message.value() or b""
                found |= {trace for data, trace in wanted.items() if data in value}
        return found


_LOST_PLACE: Final = frozenset({KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET})
_KNOWN_TYPES: Final = frozenset({"0", "1", "2", "3", "4", "5", "8", "9", "A", "D", "F", "G", "H", "AF", "j"})


async def read_messages(reader: asyncio.StreamReader, framer: Framer) -> list[Message] | None:
    """The next messages; None at the end of the connection."""
    while data := await reader.read(READ_BYTES):
        garbled = framer.garbled
        messages = list(framer.feed(data))
        GARBLED.inc(framer.garbled - garbled)
        if messages:
            return messages
    return None


class _Outbound:
    """The frames of one shard on their way to Kafka, in their order. A frame leaves at once, unless one before it has
    an unknown fate: then all wait until the log was looked at."""

    def __init__(self, process: FixProcess, shard: int, pending: Sequence[PendingFrame]) -> None:
        self._process = process
        self._shard = shard
        self._frames = {frame.number: frame for frame in pending}
        """Not acknowledged, in their order."""
        self._flying: set[int] = set()
        self._placed: list[int] = []
        self._unknown = asyncio.Event()
        self._settled_at = 0.0
        """When what was on its way has landed, in seconds since the epoch."""
        if pending:
            self._doubt(max(frame.made_at for frame in pending) / 1e6)
        self._landed = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._frames)

    @property
    def has_placed(self) -> bool:
        """Whether there are acknowledged frames to be forgotten."""
        return bool(self._placed)

    @property
    def is_stuck(self) -> bool:
        return self._unknown.is_set()

    def put(self, frame: PendingFrame) -> None:
        self._frames[frame.number] = frame
        if not self._unknown.is_set():
            self._send(frame)

    def forget_placed(self) -> None:
        """Within a transaction. What a crash keeps from being forgotten is found in the log."""
        placed, self._placed = self._placed, []
        self._process.store.drop_frames(placed)

    def _send(self, frame: PendingFrame) -> None:
        self._flying.add(frame.number)

        def done(offset: int, error: str | None) -> None:
            self._flying.discard(frame.number)
            if error is None:
                del self._frames[frame.number]
                self._placed.append(frame.number)
                self._process.placed(self._shard, offset)
            else:
                log.warning("frame_not_acknowledged", shard=self._shard, trace=frame.trace, detail=error)
                self._doubt(time.time())
            self._landed.set()

        try:
            self._process.send(frame, done)
        except DeliveryError as error:
            done(-1, str(error))

    def _doubt(self, since: float) -> None:
        self._settled_at = max(self._settled_at, since + self._process.config.settle_seconds)
        self._unknown.set()

    async def run(self) -> None:
        """Clear up what is unknown, whenever something is."""
        while True:
            await self._unknown.wait()
            while self._flying:
                self._landed.clear()
                await self._landed.wait()
            try:
                await self._clear_up()
            except (KafkaException, StreambankError) as error:
                log.warning("log_not_read", shard=self._shard, detail=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _clear_up(self) -> None:
        doubtful = list(self._frames.values())
        if doubtful:
            await asyncio.sleep(max(0.0, self._settled_at - time.time()))
            found = await asyncio.to_thread(self._process.find, self._shard, doubtful)
            for frame in doubtful:
                if frame.trace in found:
                    del self._frames[frame.number]
                    self._placed.append(frame.number)
            RECOVERED.labels("found").inc(len(found))
            RECOVERED.labels("sent again").inc(len(doubtful) - len(found))
            log.info("frames_recovered", shard=self._shard, found=len(found), sent_again=len(doubtful) - len(found))
        self._unknown.clear()
        for frame in list(self._frames.values()):
            if not self._unknown.is_set():
                self._send(frame)


class _consumer:  # noqa: N801 - used as a function
    """A consumer in no group, closed at the end of a with block."""

    def __init__(self, settings: Settings) -> None:
        self._consumer: Any = Consumer(
            {
                **kafka_options(settings),
                "client.id": "streambank-fix",
                "group.id": f"{settings.topic_prefix}streambank-fix-{uuid4()}",  # required, never joined
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 50,
                "reconnect.backoff.ms": 50,
                "reconnect.backoff.max.ms": 1000,
                "queued.max.messages.kbytes": 16_384,
                "log_level": 0,
            }
        )

    def __enter__(self) -> Any:
        return self._consumer

    def __exit__(self, *_: object) -> None:
        self._consumer.close()
