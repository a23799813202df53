"""Books and market data: REST queries from Valkey, and a WebSocket feed of snapshots and increments.

A snapshot is a symbol's hash in Valkey (`jobs.sinks.valkey`), read in one command; increments are the events of
matching.market-data as they are written. Every symbol's events are numbered without a gap, which ties both together:

- A subscription starts with a snapshot of sequence S, followed by S+1, S+2, … Increments that come while the snapshot
  is read are kept; those that it already has are left out.
- When an increment is missing (the worker lost its place in Kafka), or the client reads too slowly, a new snapshot
  comes instead of what was lost, and the increments go on after it.
- With the channel ``l3`` a snapshot also has the resting orders, which are in a hash of their own, read in the same
  transaction.
- So that a client can check: every message has ``sequence``, and ``previous``, the sequence of the message before it in
  this subscription (None with a snapshot). Channels that were not asked for are left out, hence ``previous``.

Each worker reads the topic once for all its clients, and decodes it only while there are any.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec
import redis.asyncio as redis
from aiohttp import WSMsgType, web
from redis.exceptions import RedisError

from api.metrics import count
from api.problems import Problem
from api.results import ResultReader
from infra.settings import Settings
from infra.stores import valkey_conninfo
from pipelines.catalogue import MATCHING_MARKET_DATA
from pipelines.codec import codec_of, text
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame
from pipelines.trading.routing import shard_of

__all__ = ["Books", "Feed", "FeedClient"]

CHANNELS: Final = {"trades": {"Trade"}, "l1": {"TopOfBook"}, "l2": {"PriceLevel"}, "l3": {"BookOrder"}}
"""Channel -> its event types. SecurityStatus comes with every channel."""
DEFAULT_CHANNELS: Final = ("trades", "l1", "l2")
MAX_SUBSCRIPTIONS: Final = 200
MAX_MESSAGE_BYTES: Final = 4096
UNSENT_MESSAGES: Final = 4096
"""A client that leaves more unread gets snapshots instead."""
KEPT_INCREMENTS: Final = 4096
SNAPSHOT_RETRY_SECONDS: Final = 0.05
_CODEC: Final = codec_of(MATCHING_MARKET_DATA.name)
_SYMBOL_WORDS: Final = [kind.field("symbol").word for kind in _CODEC.event_types]


class Books:
    """Books and orders in Valkey. Raises `Problem` 503 while it is away."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._prefix = settings.topic_prefix
        self._client: Any = redis.Redis.from_url(
            valkey_conninfo(settings), socket_timeout=timeout, socket_connect_timeout=timeout
        )

    async def book(self, symbol: str, *, with_orders: bool = False) -> dict[str, Any] | None:
        """The whole book of a symbol, best prices first; None when nothing was ever said of it. ``orders`` are the
        resting orders in the order in which they trade, bids first; none where there is no order feed."""
        place = f"{{{shard_of(symbol)}}}:{symbol}"
        found, *orders = await self._read(f"book:{place}", *([f"book-orders:{place}"] if with_orders else []))
        if not found:
            return None
        return _book(symbol, found) | ({"orders": _orders(orders[0])} if with_orders else {})

    async def order(self, symbol: str, order_id: int) -> dict[str, Any] | None:
        [found] = await self._read(f"order:{{{shard_of(symbol)}}}:{order_id}")
        if not found or found["symbol"] != symbol:
            return None
        numbers = ("price", "leaves_quantity", "cumulative_quantity", "execution_id")
        return {"order_id": order_id} | {
            name: int(value) if name in numbers else value for name, value in sorted(found.items())
        }

    async def close(self) -> None:
        await self._client.aclose()

    async def _read(self, *keys: str) -> list[dict[str, str]]:
        """The hashes of keys, as they were at one moment."""
        try:
            async with self._client.pipeline(transaction=len(keys) > 1) as pipeline:
                for key in keys:
                    pipeline.hgetall(f"{self._prefix}{key}")
                hashes = await pipeline.execute()
        except (RedisError, OSError) as error:
            count("streambank_api_store_failures", "valkey")
            raise Problem("store-unavailable", "Valkey does not answer.", retry_after=1) from error
        return [{name.decode(): value.decode() for name, value in found.items()} for found in hashes]


def _book(symbol: str, found: Mapping[str, str]) -> dict[str, Any]:
    levels: dict[str, list[tuple[int, int, int]]] = {"B": [], "S": []}
    for name, value in found.items():
        if name[0] in levels:
            lots, orders = value.split()
            levels[name[0]].append((int(name[1:]), int(lots), int(orders)))
    shown = {
        side: [
            {"price": price, "quantity": lots, "orders": orders} for price, lots, orders in sorted(rows, reverse=down)
        ]
        for side, rows, down in (("bids", levels["B"], True), ("asks", levels["S"], False))
    }
    last = int(found["last_trade_id"]) if "last_trade_id" in found else None
    return {
        "symbol": symbol,
        "sequence": int(found["sequence"]),
        "status": found.get("status", "READY_TO_TRADE"),
        "reference_price": int(found.get("reference_price", 0)),
        "last_trade": None if last is None else {
            "trade_id": last, "price": int(found["last_price"]), "quantity": int(found["last_quantity"]),
        },
        **shown,
    }  # fmt: skip


def _orders(found: Mapping[str, str]) -> list[dict[str, Any]]:
    rows = []
    for place, value in found.items():
        side, price, lots = value.split()
        rows.append({"place": int(place), "side": side, "price": int(price), "quantity": int(lots)})
    return sorted(rows, key=lambda row: (
        row["side"], -row["price"] if row["side"] == "BUY" else row["price"], row["place"],
    ))  # fmt: skip


class Feed(ResultReader):
    """Reads matching.market-data for the subscriptions of one worker."""

    def __init__(self, settings: Settings, books: Books) -> None:
        self.books = books
        self._subscribed: dict[str, set[_Subscription]] = {}
        self._last: dict[int, int] = {}
        super().__init__(settings, MATCHING_MARKET_DATA)

    def subscribe(self, subscription: _Subscription) -> None:
        self._subscribed.setdefault(subscription.symbol, set()).add(subscription)

    def unsubscribe(self, subscription: _Subscription) -> None:
        others = self._subscribed.get(subscription.symbol, set())
        others.discard(subscription)
        if not others:
            self._subscribed.pop(subscription.symbol, None)

    @property
    def _wanted(self) -> bool:
        return bool(self._subscribed)

    def _concerns(self, frame: Frame) -> bool:
        if frame.sequence <= self._last.get(frame.shard, 0):
            return False
        self._last[frame.shard] = frame.sequence
        return True

    def _resolve(self, frame: Frame) -> None:
        events = frame.events
        for index, row in enumerate(events.rows.tolist()):
            subscriptions = self._subscribed.get(text(events, row[_SYMBOL_WORDS[row[0]]]))
            if subscriptions:
                [event] = render_events(_CODEC, Events(events.rows[index : index + 1], events.heap))
                for subscription in tuple(subscriptions):
                    subscription.take(event)


class _Subscription:
    """One client's view of one symbol: waiting for a snapshot, or following the increments."""

    def __init__(self, client: FeedClient, symbol: str, channels: frozenset[str], depth: int) -> None:
        self.client = client
        self.symbol = symbol
        self.depth = depth
        self._with_orders = "l3" in channels
        self._types = {"SecurityStatus"}.union(*(CHANNELS[channel] for channel in channels))
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT_INCREMENTS)
        self._followed = -1
        """Sequence that the client's view has reached; -1 while it waits for a snapshot."""
        self._previous = 0
        self._snapshot: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Get a snapshot and go on from there."""
        self._followed = -1
        if self._snapshot is None or self._snapshot.done():
            self._snapshot = asyncio.create_task(self._synchronise())

    def stop(self) -> None:
        if self._snapshot is not None:
            self._snapshot.cancel()

    def take(self, event: dict[str, Any]) -> None:
        if self._followed < 0:
            self._kept.append(event)
            return
        sequence = int(event["sequence"])
        if sequence <= self._followed:
            return
        if sequence > self._followed + 1:
            count("streambank_api_feed_gaps")
            self._kept.append(event)
            self.start()
            return
        self._followed = sequence
        if event["type"] in self._types:
            self.client.put(self, {**event, "previous": self._previous})
            self._previous = sequence

    async def _synchronise(self) -> None:
        said_away = False
        while True:
            try:
                book = await self.client.feed.books.book(self.symbol, with_orders=self._with_orders)
            except Problem as problem:
                if not said_away:
                    self.client.put(None, {"type": "Error", "symbol": self.symbol, "detail": problem.detail})
                said_away = True
                await asyncio.sleep(1.0)
                continue
            reached = 0 if book is None else int(book["sequence"])
            if not self._kept or int(self._kept[0]["sequence"]) <= reached + 1:
                break
            await asyncio.sleep(SNAPSHOT_RETRY_SECONDS)  # the sink has not yet written what came before the increments
        kept, self._kept = self._kept, deque(maxlen=KEPT_INCREMENTS)
        shown = book or {"symbol": self.symbol, "sequence": 0, "status": "READY_TO_TRADE", "reference_price": 0,
                         "last_trade": None, "bids": [], "asks": []}  # fmt: skip
        if self._with_orders:
            shown = {"orders": []} | shown
        sides = {side: shown[side][: self.depth] if self.depth else shown[side] for side in ("bids", "asks")}
        self.client.put(self, {"type": "Snapshot", **shown, **sides, "previous": None})
        self._followed = self._previous = reached
        self._snapshot = None
        for event in kept:
            self.take(event)


class FeedClient:
    """One WebSocket. Messages of the client: ``{"op": "subscribe", "symbol": …, "channels": ["trades", "l1", "l2"],
    "depth": 0}`` and ``{"op": "unsubscribe", "symbol": …}``."""

    def __init__(self, feed: Feed, socket: web.WebSocketResponse) -> None:
        self.feed = feed
        self._socket = socket
        self._subscriptions: dict[str, _Subscription] = {}
        self._unsent: deque[dict[str, Any]] = deque()
        self._filled = asyncio.Event()

    async def run(self) -> None:
        sender = asyncio.create_task(self._send())
        try:
            async for message in self._socket:
                if message.type != WSMsgType.TEXT:
                    break
                self._command(message.data)
        finally:
            for symbol in list(self._subscriptions):
                self._unsubscribe(symbol)
            sender.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await sender

    def put(self, subscription: _Subscription | None, message: dict[str, Any]) -> None:
        """Queue a message; when too many are unread, they are dropped and every subscription starts again."""
        if len(self._unsent) >= UNSENT_MESSAGES:
            count("streambank_api_feed_slow_clients")
            self._unsent.clear()
            for other in self._subscriptions.values():
                other.start()
            if subscription is not None and message["type"] != "Snapshot":
                return
        self._unsent.append(message)
        self._filled.set()

    async def _send(self) -> None:
        while True:
            while self._unsent:
                await self._socket.send_str(msgspec.json.encode(self._unsent.popleft()).decode())
            self._filled.clear()
            await self._filled.wait()

    def _command(self, data: str) -> None:
        try:
            command = msgspec.json.decode(data, type=_Command)
        except (msgspec.DecodeError, RecursionError) as error:
            self.put(None, {"type": "Error", "detail": f"{error}."})
            return
        if command.op == "unsubscribe":
            self._unsubscribe(command.symbol)
            return
        unknown = [channel for channel in command.channels if channel not in CHANNELS]
        if unknown or not command.channels:
            self.put(None, {"type": "Error", "symbol": command.symbol,
                            "detail": f"channels: choose from {', '.join(CHANNELS)}."})  # fmt: skip
            return
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS and command.symbol not in self._subscriptions:
            self.put(None, {"type": "Error", "symbol": command.symbol,
                            "detail": f"at most {MAX_SUBSCRIPTIONS} symbols at a time."})  # fmt: skip
            return
        self._unsubscribe(command.symbol)
        subscription = _Subscription(self, command.symbol, frozenset(command.channels), command.depth)
        self._subscriptions[command.symbol] = subscription
        self.feed.subscribe(subscription)
        subscription.start()

    def _unsubscribe(self, symbol: str) -> None:
        subscription = self._subscriptions.pop(symbol, None)
        if subscription is not None:
            subscription.stop()
            self.feed.unsubscribe(subscription)


class _Command(msgspec.Struct, forbid_unknown_fields=True):
    """A client's message. ``depth`` is that of snapshots, in levels a side; 0 (all) for who keeps a book."""

    op: str
    symbol: str
    channels: list[str] = msgspec.field(default_factory=lambda: list(DEFAULT_CHANNELS))
    depth: int = 0

    def __post_init__(self) -> None:
        if self.op not in ("subscribe", "unsubscribe"):
            raise ValueError(f"op: must be subscribe or unsubscribe, found {self.op[:40]}")
        if not 0 <= self.depth <= 100_000:
            raise ValueError(f"depth: must be from 0 to 100000, found {self.depth}")
