"""The circuit of the API's producer: what fails in a row is left alone for a while, and tried by one call at a time."""

from __future__ import annotations

import asyncio

import pytest

from api.batching import DeliveryError
from api.circuit import Circuit
from api.producer import FAILURES_TO_OPEN, KafkaSender
from infra.settings import Settings
from pipelines.catalogue import PAYMENTS_COMMANDS
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from tests.support.stack import free_ports


def test_failures_in_a_row_open_it_and_one_call_tries() -> None:
    now = [100.0]
    circuit = Circuit("kafka", failures_to_open=3, open_seconds=2, clock=lambda: now[0])
    for failures in (2, 2):
        for _ in range(failures):
            assert circuit.allows()
            circuit.failed()
        assert circuit.allows()
        circuit.succeeded()  # not in a row
    for _ in range(3):
        assert circuit.allows()
        circuit.failed()
    assert circuit.is_open
    assert not circuit.allows()
    now[0] += 2
    assert [circuit.allows(), circuit.allows()] == [True, False]
    circuit.failed()
    assert not circuit.allows()
    now[0] += 2
    assert circuit.allows()
    circuit.succeeded()
    assert not circuit.is_open
    assert circuit.allows()
    assert circuit.allows()


async def test_a_producer_without_kafka_refuses_at_once_after_some_failures() -> None:
    sender = KafkaSender(Settings(kafka_port=free_ports(1)[0]), PAYMENTS_COMMANDS, delivery_seconds=0.3)
    sender.schema_id = 1
    codec = codec_of(PAYMENTS_COMMANDS.name)
    frame = Frame(PAYMENTS_COMMANDS.name, 0, 0, 0, None, Events(codec.new_rows(1)))
    errors: list[str | None] = []
    try:
        for _ in range(FAILURES_TO_OPEN):
            done = asyncio.Event()

            def answered(_: int, error: str | None, done: asyncio.Event = done) -> None:
                errors.append(error)
                done.set()

            sender.send(frame, codec.encode(frame), answered)
            async with asyncio.timeout(30):
                await done.wait()
        assert None not in errors
        with pytest.raises(DeliveryError, match="acknowledges nothing"):
            sender.send(frame, codec.encode(frame), lambda *_: None)
    finally:
        await asyncio.to_thread(sender.close)
