"""What a card did last, in Valkey: newest wins, late ones and repeats change nothing, all of it expires."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from infra.settings import Settings
from infra.stack.valkey import Valkey
from jobs.sinks.base import Position
from jobs.sinks.valkey_sessions import RECENT_MERCHANTS, SESSION_SECONDS, FraudSessionsSink, session_keys
from tests.support.fraud_frames import label, transaction, transaction_frame

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


def test_sessions_follow_the_newest_transaction(valkey: Valkey, environment: Settings) -> None:
    frames = [
        transaction_frame(
            [
                transaction(1, 1_000, 7, 3, 250, device="phone", country="NL", merchant="baker"),
                transaction(2, 5_000, 7, 4, 300, merchant="grocer"),
                label(1, 6_000),
                transaction(3, 4_000, 7, 5, 400, device="laptop", country="FR", merchant="baker"),
                transaction(4, 9_000, 8, 1),
            ]
        ),
        transaction_frame([transaction(10 + n, 10_000 + n, 9, 1, 1, merchant=f"m{n}") for n in range(30)]),
    ]

    async def apply(start: int) -> Position:
        sink = FraudSessionsSink(environment)
        await sink.open()
        place = (await sink.load_positions([2]))[2]
        assert place.next_offset == start
        for offset, frame in enumerate(frames):
            sink.add(frame.events, place, place := Position(2, offset + 1, offset + 1))

        async def refuse(*_: Any) -> None:
            raise AssertionError("nothing is refused")

        await sink.flush(refuse)
        await sink.close()
        return place

    def stored() -> Any:
        with redis.Redis.from_url(environment.valkey_url, decode_responses=True) as client:
            session, merchants = session_keys(environment, 2, 7)
            assert 0 < client.ttl(session) <= SESSION_SECONDS
            assert 0 < client.ttl(merchants) <= SESSION_SECONDS
            many = client.zrange(session_keys(environment, 2, 9)[1], 0, -1)
            return client.hgetall(session), client.zrange(merchants, 0, -1, withscores=True), many

    asyncio.run(apply(0))
    first = stored()
    assert first == (
        {"event_time": "5000", "terminal_id": "4", "amount": "300", "device": "phone", "country": "NL"},
        [("baker", 4_000.0), ("grocer", 5_000.0)],
        sorted((f"m{n}" for n in range(30 - RECENT_MERCHANTS, 30)), key=lambda name: int(name[1:])),
    )
    asyncio.run(apply(2))
    assert stored() == first
