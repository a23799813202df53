"""The relays between the ledger and the sagas of transfers across ledgers.

``saga-legs`` makes ledger commands of the legs that sagas ask for, ``saga-answers`` carries the ledger's results of
legs back. Both may repeat what they sent last: the ledger knows a leg by its id, a saga counts its first answer only.

``saga-answers`` also tells the sagas the time, every `CLOCK_SECONDS`, so that time-outs fall due where nothing else
happens. How late one is noticed is all that depends on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import numpy as np
import structlog
from confluent_kafka import KafkaException

from infra.kafka import make_producer
from infra.producer_keys import FrameSigner, ProducerKeyError
from infra.settings import Settings
from jobs.sinks.relay import Commands, KafkaRelay
from pipelines.catalogue import (
    LEDGER_COMMANDS,
    LEDGER_CROSS_COMMANDS,
    LEDGER_CROSS_EVENTS,
    LEDGER_RESULTS,
    LEDGER_SHARDS,
)
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Events, Frame
from pipelines.ledger_saga.legs import leg_shards
from pipelines.wire import wrap

__all__ = ["SagaAnswers", "SagaLegs"]

CLOCK_SECONDS: Final = 5.0

_LOG: Final = structlog.get_logger(__name__)
_COMMAND: Final = (
    "id", "debit_account_id", "credit_account_id", "amount", "pending_id", "user_data_64", "user_data_32", "timeout",
    "ledger", "code", "flags",
)  # fmt: skip


class SagaLegs(KafkaRelay):
    """ledger.cross-events to ledger.commands; linked legs go in one frame."""

    name = "saga-legs"
    topic = LEDGER_CROSS_EVENTS
    web_port_offset = 4
    targets = (LEDGER_COMMANDS,)

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        codec = codec_of(LEDGER_CROSS_EVENTS.name)
        legs = events.rows[events.rows[:, 0] == codec.event_type("LegRequested").kind]
        chain: list[dict[str, Any]] = []
        for leg in render_events(codec, Events(legs, events.heap)):
            command = {"type": "CreateTransfer", **{name: leg[name] for name in _COMMAND}}
            chain.append(command | {"user_data_128": leg["cross_transfer_id"]})
            if "linked" not in leg["flags"]:
                yield Commands(LEDGER_COMMANDS, int(leg["ledger"]) % LEDGER_SHARDS, chain)
                chain = []


class SagaAnswers(KafkaRelay):
    """ledger.results of legs to ledger.cross-commands, and the time."""

    name = "saga-answers"
    topic = LEDGER_RESULTS
    web_port_offset = 5
    targets = (LEDGER_CROSS_COMMANDS,)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._clock: asyncio.Task[None] | None = None
        self._clock_producer: Any = None
        self._clock_signer = FrameSigner(settings, LEDGER_CROSS_COMMANDS, f"relay-{self.name}")

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        codec = codec_of(LEDGER_RESULTS.name)
        result = codec.event_type("TransferResult")
        shards = leg_shards(np.ascontiguousarray(events.view(result.dtype)["id_lo"]))
        chosen = np.flatnonzero((events.rows[:, 0] == result.kind) & (shards >= 0))
        answers = render_events(codec, Events(events.rows[chosen], events.heap))
        for index, answer in zip(chosen.tolist(), answers, strict=True):
            told = {"type": "LegAnswered", "id": answer["id"], "result": answer["result"]}
            yield Commands(LEDGER_CROSS_COMMANDS, int(shards[index]), [told])

    async def open(self) -> None:
        await super().open()
        if self._clock is None:
            self._clock = asyncio.create_task(self._tell_the_time())

    async def close(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            with suppress(asyncio.CancelledError):
                await self._clock
            self._clock = None
        await super().close()

    async def _tell_the_time(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            try:
                await asyncio.to_thread(self._send_clock)
            except (BufferError, KafkaException, ProducerKeyError) as error:
                _LOG.warning("the sagas were not told the time", error=str(error))

    def _send_clock(self) -> None:
        if self._clock_producer is None:
            # a time that arrives late is worth nothing, and one that arrives twice does no harm
            self._clock_producer = make_producer(
                self._settings, f"relay-{self.name}-clock", CLOCK_SECONDS, enable_idempotence=False
            )
        codec = codec_of(LEDGER_CROSS_COMMANDS.name)
        now = time.time_ns() // 1000
        events = parse_events(codec, [{"type": "ClockAdvanced", "at": now}])
        for shard in range(LEDGER_SHARDS):
            body = codec.encode(Frame(LEDGER_CROSS_COMMANDS.name, shard, 0, now, None, events))
            value = wrap(self._schema_ids[LEDGER_CROSS_COMMANDS.name], body)
            self._clock_producer.produce(
                self._settings.kafka_topic(LEDGER_CROSS_COMMANDS.name),
                value=value,
                key=str(shard).encode(),
                partition=shard,
                headers=self._clock_signer.headers(shard, value),
            )
        self._clock_producer.flush(CLOCK_SECONDS)
