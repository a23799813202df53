"""The clock of payments: sends the time to every shard, since kernels have none.

A Tick only moves a shard's clock forward, so any number of clocks may run, and one that was away is not missed but for
the time-outs that come later. Frames of other producers carry the time too; ticks are for when there are none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException

from infra.kafka import make_producer
from infra.producer_keys import FrameSigner
from infra.registry import SchemaRegistry
from infra.settings import Settings
from pipelines.catalogue import PAYMENTS_COMMANDS
from pipelines.codec import codec_of
from pipelines.errors import StreambankError
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.wire import wrap

__all__ = ["run_clock", "send_command", "tick_frame"]

RETRY_SECONDS: Final = 1.0
PRODUCER: Final = "payments-clock"
log = structlog.get_logger("streambank.payments_clock")


def tick_frame(shard: int, at: int) -> Frame:
    """The frame that says it is ``at`` (UTC microseconds)."""
    codec = codec_of(PAYMENTS_COMMANDS.name)
    return Frame(PAYMENTS_COMMANDS.name, shard, 0, at, None, parse_events(codec, [{"type": "Tick", "at": at}]))


def run_clock(settings: Settings, interval: float, stop: threading.Event) -> int:
    """Send the time every ``interval`` seconds until ``stop``; returns how often. Kafka or registry away: goes on when
    they are back."""
    codec = codec_of(PAYMENTS_COMMANDS.name)
    # an old time is worth nothing, and one that arrives twice does no harm
    producer = make_producer(settings, "payments-clock", 5.0, enable_idempotence=False)
    signer = FrameSigner(settings, PAYMENTS_COMMANDS, PRODUCER)
    schema_id: int | None = None
    ticks = 0
    while not stop.is_set():
        try:
            if schema_id is None:
                with SchemaRegistry(settings) as registry:
                    schema_id = registry.schema_id(PAYMENTS_COMMANDS)
            now = time.time_ns() // 1_000
            for shard in range(PAYMENTS_COMMANDS.partitions):
                value = wrap(schema_id, codec.encode(tick_frame(shard, now)))
                producer.produce(
                    settings.kafka_topic(PAYMENTS_COMMANDS.name),
                    value=value,
                    key=str(shard).encode(),
                    partition=shard,
                    headers=signer.headers(shard, value),
                )
            producer.poll(0)
            ticks += 1
        except (StreambankError, KafkaException, BufferError) as error:
            log.warning("no_tick", error=str(error))
            stop.wait(RETRY_SECONDS)
        stop.wait(interval)
    producer.flush(5)
    return ticks


def send_command(settings: Settings, shard: int, command: Mapping[str, Any]) -> None:
    """Send one command (as JSON has it), an operator's decision as made now, and return once Kafka has it. Raises
    `StreambankError`."""
    codec, now = codec_of(PAYMENTS_COMMANDS.name), time.time_ns() // 1_000
    if any(field.name == "decided_at" for field in codec.event_type(command["type"]).fields):
        command = {**command, "decided_at": now}
    frame = Frame(PAYMENTS_COMMANDS.name, shard, 0, now, None, parse_events(codec, [command]))
    with SchemaRegistry(settings) as registry:
        value = wrap(registry.schema_id(PAYMENTS_COMMANDS), codec.encode(frame))
    producer = make_producer(settings, "payments-command", 30.0)
    failures: list[str] = []
    producer.produce(
        settings.kafka_topic(PAYMENTS_COMMANDS.name),
        value=value,
        key=str(shard).encode(),
        partition=shard,
        headers=FrameSigner(settings, PAYMENTS_COMMANDS, PRODUCER).headers(shard, value),
        on_delivery=lambda error, _: failures.append(error.str()) if error is not None else None,
    )
    if producer.flush(31) or failures:
        raise StreambankError(f"Kafka did not take the command: {failures[0] if failures else 'no answer in 30 s'}")
