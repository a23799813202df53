"""Runs the notifier: a Faust app that takes requests in, and one deliverer per channel that sends what is due.

Faust brings the records of ``notifications.requests``; a record is acknowledged when the outbox has it. What cannot be
read goes to ``notifications.dead-letters`` first. The channels are apart from each other: a mail server that hangs
holds up no webhook, and one slow endpoint holds up no other (`NotifierSettings.per_endpoint`). Several notifiers may
run; leases keep them from sending the same delivery at once.

Healthy is: the outbox answered within the last ten seconds and every task runs. Exit codes of `Notifier.run`: 0 stopped
by SIGTERM or SIGINT with every attempt in hand ended; 1 failed.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import tempfile
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from typing import Any, Final

import prometheus_client
import structlog
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from faust import App
from faust.exceptions import ProducerSendError

from infra.registry import SchemaRegistry, writer_schema
from infra.settings import Settings
from jobs.dead_letters import DeadLetter, encode_letter, schema_id_of
from jobs.faust_app import make_app
from jobs.notifications.channels import Channel, Delivery, Email, Failed, Gone, Rejected, Sms, Webhooks
from jobs.notifications.config import NotifierSettings
from jobs.notifications.messages import Messages
from jobs.notifications.outbox import Outbox, Request
from jobs.sinks.base import StoreUnavailable
from jobs.sinks.records import RecordReader
from pipelines.card_numbers import masked
from pipelines.catalogue import NOTIFICATION_DEAD_LETTERS, NOTIFICATION_DELIVERIES, NOTIFICATION_REQUESTS
from pipelines.codec import codec_of
from pipelines.errors import FrameError, StreambankError
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.notifications import request_error
from pipelines.wire import wrap

__all__ = ["Notifier"]

WEB_PORT_OFFSET: Final = 40
QUEUE_RECORDS: Final = 64
BATCH_RECORDS: Final = 32
BATCH_EVENTS: Final = 500
RETRY_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 30.0
HEALTHY_SECONDS: Final = 10.0
JITTER: Final = 0.1

REQUESTS = prometheus_client.Counter("streambank_notifier_requests_total", "Requests, by outcome.", ["outcome"])
ATTEMPTS = prometheus_client.Counter(
    "streambank_notifier_attempts_total", "Attempts, by channel and outcome.", ["channel", "outcome"]
)
ATTEMPT_SECONDS = prometheus_client.Histogram("streambank_notifier_attempt_seconds", "Time of attempts.", ["channel"])
DELIVERIES = prometheus_client.Gauge(
    "streambank_notifier_deliveries", "Deliveries in the outbox that are not done, and dead ones.", ["channel", "state"]
)

log = structlog.get_logger("streambank.notifier")


class Notifier:
    """One process of the notifier."""

    def __init__(self, settings: Settings, config: NotifierSettings) -> None:
        self.settings = settings
        self.config = config
        self.web_port = config.web_port or settings.faust_web_port + WEB_PORT_OFFSET
        self.outbox = Outbox(settings)
        self._reader = RecordReader(NOTIFICATION_REQUESTS, partial(writer_schema, config=settings), numbered=False)
        self._schema_ids: dict[str, int] = {}
        self._queue: asyncio.Queue[Any] = asyncio.Queue(QUEUE_RECORDS)
        self._stop = asyncio.Event()
        self._wakes: dict[str, asyncio.Event] = {}
        self._answered_at = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []
        self._app: App | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="streambank-notifier-")

    # --- the process -----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Run until a signal or a failure; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        messages = Messages(self.config.templates_dir)
        channels: tuple[Channel, ...] = (
            Webhooks(self.settings, self.config), Email(self.config, messages), Sms(self.config, messages),
        )  # fmt: skip
        await self.outbox.open()
        app = self._app = self.app()
        try:
            app.finalize()
            await app.start()
            if not await self._open():
                return 0
            work: list[Coroutine[Any, Any, None]] = [self._take_in(), self._publish(), self._measure()]
            work += [self._deliver(channel) for channel in channels]
            self._tasks = [asyncio.create_task(coroutine) for coroutine in work]
            stopping = asyncio.create_task(self._stop.wait())
            crashed = asyncio.create_task(app.wait_until_stopped())
            await asyncio.wait([stopping, crashed, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            crashed.cancel()
            if app.crashed or not self._stop.is_set():
                errors = [task.exception() for task in self._tasks if task.done() and not task.cancelled()]
                error = next(filter(None, errors), None)
                log.critical("notifier_failed", detail=repr(app.crash_reason) if app.crashed else "", exc_info=error)
                return 1
            log.info("draining")
            await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
            return 0
        finally:
            self._stop.set()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(app.stop(), timeout=DRAIN_SECONDS)
            for channel in channels:
                await channel.close()
            await self.outbox.close()
            self._scratch.cleanup()

    def app(self) -> App:
        """The Faust app: one agent and the pages ``/health`` and ``/metrics``."""
        app = make_app(
            self.settings, "notifier", scratch=self._scratch.name, web_port=self.web_port, commit_seconds=1.0,
            queue_records=QUEUE_RECORDS,
        )  # fmt: skip
        source = app.topic(self.settings.kafka_topic(NOTIFICATION_REQUESTS.name), key_type=bytes, value_type=bytes)

        @app.agent(source, name="requests")
        async def take(stream: Any) -> None:
            async for event in stream.noack().events():
                await self._queue.put(event)

        @app.page("/health")
        async def health(web: Any, _request: Any) -> Any:
            answered = round(time.monotonic() - self._answered_at, 1)
            healthy = answered < HEALTHY_SECONDS and bool(self._tasks) and not any(task.done() for task in self._tasks)
            return web.json(
                {"healthy": healthy, "outbox_answered_seconds_ago": answered}, status=200 if healthy else 503
            )

        @app.page("/metrics")
        async def metrics(web: Any, _request: Any) -> Any:
            return web.bytes(prometheus_client.generate_latest(), content_type="text/plain; version=0.0.4")

        return app

    async def _open(self) -> bool:
        """Reach registry and outbox, however long it takes; False when stopped before."""
        said = ""
        while not self._stop.is_set():
            try:
                with SchemaRegistry(self.settings) as registry:
                    for topic in (NOTIFICATION_DEAD_LETTERS, NOTIFICATION_DELIVERIES):
                        self._schema_ids[topic.name] = await asyncio.to_thread(registry.schema_id, topic)
                await self.outbox.ping()
                self._answered_at = time.monotonic()
                return True
            except StreambankError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("not_ready", detail=said)
                await self._pause(RETRY_SECONDS)
        return False

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    # --- requests --------------------------------------------------------------------------------------------------

    async def _take_in(self) -> None:
        while not self._stop.is_set():
            getting = asyncio.ensure_future(self._queue.get())
            stopping = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait([getting, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not getting.done():
                getting.cancel()
                return
            batch = [getting.result()]
            while len(batch) < BATCH_RECORDS and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            read: list[list[Request]] = []
            while not await self._accept(batch, read):
                await self._pause(RETRY_SECONDS)
                if self._stop.is_set():
                    return  # not acknowledged: whoever comes next reads them again

    async def _accept(self, batch: Sequence[Any], read: list[list[Request]]) -> bool:
        """Whether the records are in the outbox (or set aside) and acknowledged. ``read`` keeps what was read of them,
        so that trying again sets nothing aside again."""
        try:
            while len(read) < len(batch):
                read.append(await self._requests(batch[len(read)]))
            requests = [request for found in read for request in found]
            new = 0
            for start in range(0, len(requests), BATCH_EVENTS):
                new += await self.outbox.accept(requests[start : start + BATCH_EVENTS])
        except StoreUnavailable as error:
            log.warning("outbox_away", detail=str(error))
            return False
        self._answered_at = time.monotonic()
        REQUESTS.labels("accepted").inc(new)
        REQUESTS.labels("repeated").inc(len(requests) - new)
        for event in batch:
            event.ack()
        for wake in self._wakes.values():
            wake.set()
        return True

    async def _requests(self, event: Any) -> list[Request]:
        message = event.message
        try:
            frame = await self._reader.read(event.value, message.partition)
        except FrameError as error:
            await self._set_aside(event, -1, error.reason, error.detail)
            return []
        requests = []
        for index, record in enumerate(render_events(codec_of(NOTIFICATION_REQUESTS.name), frame.events)):
            wrong = request_error(record["id"], record["customer"], record["event_kind"], record["data"])
            if wrong is not None:
                await self._set_aside(event, index, "bad_request", wrong)
                continue
            occurred_at = datetime.fromtimestamp(int(record["occurred_at"]) / 1_000_000, UTC)
            requests.append(
                Request(
                    record["id"], record["customer"], record["event_kind"], occurred_at,
                    masked(json.loads(record["data"])), tuple(record["channels"]),
                )
            )  # fmt: skip
        return requests

    async def _set_aside(self, event: Any, index: int, reason: str, detail: str) -> None:
        message = event.message
        letter = DeadLetter(
            consumer="notifier", topic=NOTIFICATION_REQUESTS.name, partition=message.partition, offset=message.offset,
            schema_id=schema_id_of(event.value), event_index=index, reason=reason, detail=detail,
            payload=event.value or b"",
        )  # fmt: skip
        value = encode_letter(NOTIFICATION_DEAD_LETTERS, self._schema_ids[NOTIFICATION_DEAD_LETTERS.name], letter)
        await self._send(NOTIFICATION_DEAD_LETTERS.name, message.partition, value)
        REQUESTS.labels("dead_letter").inc()
        log.warning("dead_letter", partition=message.partition, offset=message.offset, reason=reason, detail=detail)

    async def _send(self, topic: str, shard: int, value: bytes) -> None:
        assert self._app is not None
        try:
            await self._app.producer.send_and_wait(
                self.settings.kafka_topic(topic), str(shard).encode(), value, shard, None, None
            )
        except (KafkaError, ProducerSendError) as error:
            raise StoreUnavailable(f"Kafka did not take a record of {topic}: {error}") from error

    # --- deliveries ------------------------------------------------------------------------------------------------

    async def _deliver(self, channel: Channel) -> None:
        """Send what is due on a channel, up to ``concurrency`` at once."""
        wake = self._wakes[channel.name] = asyncio.Event()
        running: set[asyncio.Task[None]] = set()
        config = self.config
        while not self._stop.is_set():
            wake.clear()
            free = config.concurrency - len(running)
            claimed: list[tuple[Delivery, str | None]] = []
            try:
                if free:
                    claimed = await self.outbox.claim(
                        channel.name, limit=free, per_endpoint=config.per_endpoint, lease_seconds=config.lease_seconds
                    )
                self._answered_at = time.monotonic()
            except StoreUnavailable as error:
                log.warning("outbox_away", channel=channel.name, detail=str(error))
                await self._pause(RETRY_SECONDS)
            for delivery, off in claimed:
                task = asyncio.create_task(self._attempt(channel, delivery, off))
                running.add(task)
                task.add_done_callback(running.discard)
                task.add_done_callback(lambda _: wake.set())
            if not claimed:
                waiting = [asyncio.ensure_future(event.wait()) for event in (wake, self._stop)]
                await asyncio.wait(waiting, timeout=config.poll_seconds, return_when=asyncio.FIRST_COMPLETED)
                for future in waiting:
                    future.cancel()
        if running:
            await asyncio.wait(running)

    async def _attempt(self, channel: Channel, delivery: Delivery, off: str | None) -> None:
        started = time.monotonic()
        outcome, reason = "delivered", ""
        retry_after: float | None = None
        try:
            if off is not None:
                raise Rejected(off)
            async with asyncio.timeout(self.config.attempt_seconds):
                await channel.send(delivery)
        except TimeoutError:
            outcome, reason = "failed", "no answer in time"
        except Failed as error:
            outcome, reason, retry_after = "failed", str(error), error.retry_after
        except Gone as error:
            outcome, reason = "gone", str(error)
        except Rejected as error:
            outcome, reason = "dead", str(error)
        except Exception as error:
            # a fault of ours must not stop the channel; the schedule gives time to repair it
            log.exception("attempt_broke", channel=channel.name, notification=delivery.message_id)
            outcome, reason = "failed", f"the notifier failed: {type(error).__name__}"
        if outcome == "failed" and delivery.step >= len(self.config.retry_seconds):
            outcome, reason = "dead", f"{reason}; no attempts are left"
        ATTEMPTS.labels(channel.name, outcome).inc()
        ATTEMPT_SECONDS.labels(channel.name).observe(time.monotonic() - started)
        log.info(
            "attempt", channel=channel.name, notification=delivery.message_id, endpoint=delivery.endpoint_id,
            attempt=delivery.attempt, outcome=outcome, reason=reason,
        )  # fmt: skip
        while True:  # until the lease is over; then another says how it ended
            try:
                if outcome == "delivered":
                    await self.outbox.delivered(delivery)
                elif outcome == "failed":
                    pause = self.config.retry_seconds[delivery.step] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
                    await self.outbox.failed(delivery, reason, max(pause, retry_after or 0.0))
                else:
                    await self.outbox.dead(delivery, reason, disable_endpoint=outcome == "gone")
                return
            except StoreUnavailable as error:
                log.warning("outbox_away", channel=channel.name, detail=str(error))
                if time.monotonic() - started > self.config.lease_seconds or self._stop.is_set():
                    return
                await self._pause(RETRY_SECONDS)

    # --- status events ---------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        codec = codec_of(NOTIFICATION_DELIVERIES.name)
        schema_id = self._schema_ids[NOTIFICATION_DELIVERIES.name]
        while not self._stop.is_set():
            sent = 0
            try:
                async with self.outbox.status_events(BATCH_EVENTS) as events:
                    ordered = sorted(events, key=lambda event: (event.shard, event.id))
                    for shard, group in groupby(ordered, key=lambda event: event.shard):
                        rows = parse_events(codec, [event.event for event in group])
                        frame = Frame(codec.topic, shard, 0, time.time_ns() // 1000, None, rows)
                        await self._send(codec.topic, shard, wrap(schema_id, codec.encode(frame)))
                    sent = len(events)
            except StoreUnavailable as error:
                log.warning("status_events_wait", detail=str(error))
                await self._pause(RETRY_SECONDS)
            if not sent:
                await self._pause(self.config.poll_seconds)

    async def _measure(self) -> None:
        while not self._stop.is_set():
            with suppress(StoreUnavailable):
                found = await self.outbox.counts()
                DELIVERIES.clear()
                for channel, state, count in found:
                    DELIVERIES.labels(channel, state).set(count)
            await self._pause(HEALTHY_SECONDS)
