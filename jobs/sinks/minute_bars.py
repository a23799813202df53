"""One-minute bars into Cassandra, exact over crashes and repeats.

A trade belongs to the minute of its frame's `produced_at`, the time of the command frame that caused it. Each trade has
a sequence among its symbol's market data, and each bar's row holds the last one that it counts. A bar that is not in
memory is read before it is changed, and trades up to its ``last_sequence`` are left out: what a crash left between
rows and position is thereby counted once. Rows are written whole with ``last_sequence`` as their write time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar, Final

from cassandra.concurrent import execute_concurrent_with_args

from jobs.sinks.base import Addition, Position, Refused
from jobs.sinks.cassandra import CassandraSink, translated
from pipelines.catalogue import MATCHING_MARKET_DATA, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events

__all__ = ["MinuteBarsSink"]

MINUTE_MICROS: Final = 60_000_000
BARS_IN_MEMORY: Final = 20_000
_CODEC: Final = codec_of(MATCHING_MARKET_DATA.name)
_TRADE_KIND: Final = _CODEC.event_type("Trade").kind
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_VALUES: Final = ("open", "high", "low", "close", "volume", "turnover", "trades", "last_sequence")
_SELECT: Final = " ".join(
    [f"SELECT {', '.join(_VALUES)}", "FROM {keyspace}.minute_bars WHERE symbol = ? AND day = ? AND minute = ?"]
)

_Key = tuple[str, int]
"""(symbol, minutes since 1970)"""


@dataclass(slots=True)
class _Bar:
    open: int
    high: int
    low: int
    close: int
    volume: int = 0
    turnover: int = 0
    trades: int = 0
    last_sequence: int = 0

    def take(self, price: int, quantity: int, sequence: int) -> None:
        self.high, self.low, self.close = max(self.high, price), min(self.low, price), price
        self.volume += quantity
        self.turnover += price * quantity
        self.trades += 1
        self.last_sequence = sequence


class MinuteBarsSink(CassandraSink):
    """See the module."""

    name: ClassVar[str] = "cassandra-bars"
    topic: ClassVar[Topic] = MATCHING_MARKET_DATA
    web_port_offset: ClassVar[int] = 12
    insert: ClassVar[str] = " ".join(
        [
            f"INSERT INTO {{keyspace}}.minute_bars (symbol, day, minute, {', '.join(_VALUES)})",
            f"VALUES ({', '.join('?' * (3 + len(_VALUES)))}) USING TIMESTAMP ?",
        ]
    )

    def _open(self) -> None:
        super()._open()
        self._select = self._session.prepare(_SELECT.format(keyspace=f'"{self._settings.cassandra_keyspace}"'))
        self._bars: OrderedDict[_Key, _Bar] = OrderedDict()

    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        trades = [
            (addition.produced_at // MINUTE_MICROS, trade)
            for addition in additions
            for trade in render_events(_CODEC, _trades(addition.events))
        ]
        if not rehearse:
            last = {addition.after.partition: addition.after for addition in additions}
            await asyncio.to_thread(self._write_bars, trades, list(last.values()))

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        raise Refused("not_applied_again", "later trades are in the bar already: it would count twice or not at all")

    def _write_bars(self, trades: Sequence[tuple[int, dict[str, Any]]], positions: Sequence[Position]) -> None:
        try:
            with translated():
                self._load({(trade["symbol"], minute) for minute, trade in trades} - self._bars.keys())
                changed = self._count(trades)
                statements = [(*_place(key), *self._values_of(key), self._bars[key].last_sequence) for key in changed]
                if statements:
                    execute_concurrent_with_args(self._session, self._insert, statements, raise_on_first_error=True)
            self._write([], positions)
        except BaseException:
            self._bars.clear()  # what is stored is unknown now, and read again
            raise
        while len(self._bars) > BARS_IN_MEMORY:
            self._bars.popitem(last=False)

    def _load(self, keys: set[_Key]) -> None:
        ordered = sorted(keys)
        found = execute_concurrent_with_args(self._session, self._select, [_place(key) for key in ordered])
        for key, (_, rows) in zip(ordered, found, strict=True):
            row = rows.one()
            if row is not None:
                self._bars[key] = _Bar(*map(int, row))

    def _count(self, trades: Sequence[tuple[int, dict[str, Any]]]) -> list[_Key]:
        changed: dict[_Key, None] = {}
        for minute, trade in trades:
            key = (trade["symbol"], minute)
            price, quantity, sequence = int(trade["price"]), int(trade["quantity"]), int(trade["sequence"])
            bar = self._bars.get(key)
            if bar is None:
                bar = self._bars[key] = _Bar(price, price, price, price)
            elif sequence <= bar.last_sequence:
                continue
            bar.take(price, quantity, sequence)
            self._bars.move_to_end(key)
            changed[key] = None
        return list(changed)

    def _values_of(self, key: _Key) -> tuple[int, ...]:
        bar = self._bars[key]
        return (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.turnover, bar.trades, bar.last_sequence)


def _place(key: _Key) -> tuple[str, date, datetime]:
    symbol, minute = key
    at = _EPOCH + timedelta(minutes=minute)
    return symbol, at.date(), at


def _trades(events: Events) -> Events:
    return Events(events.rows[events.rows[:, 0] == _TRADE_KIND], events.heap)
