"""Bars in Cassandra count every trade once, also where rows were written and the position was not."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from infra.migrations import migrate_cassandra
from infra.settings import Settings
from infra.stores import cassandra_session
from jobs.sinks.base import Position
from jobs.sinks.minute_bars import MinuteBarsSink
from pipelines.catalogue import MATCHING_MARKET_DATA
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from tests.support.stack import PrivateStack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

MINUTE = 60_000_000
START = 29_000_000 * MINUTE + 5
Trade = dict[str, Any]


def trades() -> list[tuple[int, list[Trade]]]:
    """(produced_at, trades) of frames over three minutes, the last of them late."""
    random = np.random.default_rng(8)
    sequences = {"A": 0, "B": 0}
    frames = []
    for number in range(30):
        events = []
        for _ in range(random.integers(1, 6)):
            symbol = ("A", "B")[random.integers(2)]
            sequences[symbol] += int(random.integers(1, 4))  # other events lie between trades
            events.append({
                "type": "Trade", "symbol": symbol, "sequence": sequences[symbol], "trade_id": len(frames) + 1,
                "price": int(random.integers(90, 110)), "quantity": int(random.integers(1, 50)),
                "aggressor_side": "BUY",
            })  # fmt: skip
        frames.append((START + number * MINUTE // 10 - (MINUTE if number == 29 else 0), events))
    return frames


def expected(frames: list[tuple[int, list[Trade]]]) -> dict[tuple[str, int], tuple[int, ...]]:
    bars: dict[tuple[str, int], list[Trade]] = {}
    for produced_at, events in frames:
        for trade in events:
            bars.setdefault((trade["symbol"], produced_at // MINUTE), []).append(trade)
    return {
        key: (
            own[0]["price"], max(t["price"] for t in own), min(t["price"] for t in own), own[-1]["price"],
            sum(t["quantity"] for t in own), sum(t["quantity"] * t["price"] for t in own), len(own),
        )
        for key, own in bars.items()
    }  # fmt: skip


async def apply(environment: Settings, frames: list[tuple[int, list[Trade]]], batch: int) -> None:
    """All frames through a sink that has no bar in memory."""
    sink = MinuteBarsSink(environment)
    await sink.open()
    for start in range(0, len(frames), batch):
        for number, (produced_at, events) in enumerate(frames[start : start + batch], start):
            parsed = parse_events(codec_of(MATCHING_MARKET_DATA.name), events)
            sink.add(parsed, Position(0, number, number), Position(0, number + 1, number + 1), produced_at)
        await sink.flush(_refuse)
    await sink.close()


async def _refuse(*_: object) -> None:
    raise AssertionError("nothing is refused")


def test_bars_are_exact_over_repeats(stack: PrivateStack) -> None:
    environment = stack.environment("cassandra")
    migrate_cassandra(environment)
    frames = trades()
    asyncio.run(apply(environment, frames[:18], 7))
    # rows were written up to frame 17, the position was lost: everything comes again, in other batches
    asyncio.run(apply(environment, frames, 4))
    with cassandra_session(environment) as session:
        found = {
            (row.symbol, int(row.minute.timestamp()) // 60): (
                row.open, row.high, row.low, row.close, row.volume, row.turnover, row.trades,
            )
            for row in session.execute("SELECT * FROM minute_bars")
        }  # fmt: skip
        places = {(row.day.date().isoformat(), row.minute.date().isoformat()) for row in
                  session.execute("SELECT day, minute FROM minute_bars")}  # fmt: skip
    assert found == expected(frames)
    assert all(day == minute for day, minute in places)
