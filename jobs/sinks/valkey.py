"""The present state of the market in Valkey: books by symbol, and orders by id.

A batch of one shard is one Lua script: it compares the stored position with the one that the batch starts from, applies
all changes, and stores the position after them, in one step that no reader sees half of. A book is one hash, so that
``HGETALL`` gives depth, best prices, status and the sequence they are of as they were at one moment; likewise an order.

Keys of a shard share a hash tag (``{shard}``), so that they live on one node of a cluster:

- ``book:{shard}:SYMBOL``: ``sequence`` (of the symbol's market data), ``B<price>`` and ``S<price>`` (``lots orders``)
  for each level, the fields of `TopOfBook`, ``status``, ``reference_price``, ``last_price``, ``last_quantity``,
  ``last_trade_id``
- ``book-orders:{shard}:SYMBOL``, for symbols with an order feed: ``<place>`` (``side price lots``) for each resting
  order; it is of the sequence of the symbol's book
- ``order:{shard}:ID``: the order's last report, and the last cancel or amendment of it that was refused; a day after
  its end it is forgotten
- ``position:{shard}:SINK``: next offset, sequence, unreadable records

Valkey may lose what it holds. A sink then starts at the topic's beginning, and when that is no longer there it stops
with a broken sequence instead of showing half a book.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

from infra.settings import Settings
from infra.stores import valkey_conninfo
from jobs.sinks.base import Addition, Position, PositionMoved, Refused, Sink, StoreUnavailable
from pipelines.catalogue import MATCHING_MARKET_DATA, MATCHING_REPORTS, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events

__all__ = ["ValkeyBooksSink", "ValkeyOrdersSink", "book_key", "book_orders_key", "order_key"]

CALL_SECONDS: Final = 5.0
ORDER_KEPT_SECONDS: Final = 86_400
_TERMINAL: Final = frozenset({"FILLED", "CANCELED", "EXPIRED"})
_TOP: Final = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")

# KEYS[1] is the position; ARGV: expected and new position, then commands: key number, name, number of arguments, those.
_APPLY: Final = """
local found = redis.call('GET', KEYS[1]) or '0 0 0'
if found ~= ARGV[1] then return 0 end
local i = 3
while i <= #ARGV do
  local count = tonumber(ARGV[i + 2])
  redis.call(ARGV[i + 1], KEYS[tonumber(ARGV[i])], unpack(ARGV, i + 3, i + 2 + count))
  i = i + 3 + count
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

MAX_ARGUMENTS: Final = 1000
"""Of one command: Lua's stack takes some thousands."""

Change = tuple[str, str, tuple[str | int, ...]]
"""(key, command, its other arguments)"""


def book_key(settings: Settings, shard: int, symbol: str) -> str:
    return f"{settings.topic_prefix}book:{{{shard}}}:{symbol}"


def book_orders_key(settings: Settings, shard: int, symbol: str) -> str:
    return f"{settings.topic_prefix}book-orders:{{{shard}}}:{symbol}"


def order_key(settings: Settings, shard: int, order_id: int) -> str:
    return f"{settings.topic_prefix}order:{{{shard}}}:{order_id}"


class ValkeySink(Sink):
    """See the module."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._client: Any = None

    @abstractmethod
    def changes(self, shard: int, frames: Sequence[Events]) -> Iterable[Change]:
        """What the events of a shard's frames change, in their order."""

    async def open(self) -> None:
        await self.close()
        self._client = redis.Redis.from_url(
            valkey_conninfo(self._settings), socket_timeout=CALL_SECONDS, socket_connect_timeout=CALL_SECONDS
        )
        try:
            self._script = self._client.register_script(_APPLY)
            await self._client.ping()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Valkey: {error}") from error

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def load_positions(self, partitions: Collection[int]) -> Mapping[int, Position]:
        positions = {}
        try:
            for partition in partitions:
                text = await self._client.get(self._position_key(partition))
                positions[partition] = Position(partition, *map(int, (text or b"0 0 0").split()))
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Valkey: {error}") from error
        return positions

    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        by_shard: dict[int, list[Addition]] = {}
        for addition in additions:
            by_shard.setdefault(addition.after.partition, []).append(addition)
        for shard, own in by_shard.items():
            changes = self.changes(shard, [addition.events for addition in own if len(addition.events)])
            if not rehearse:
                await self._apply_changes(shard, changes, own[0].before, own[-1].after)

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        raise Refused("not_applied_again", "what came later stands in Valkey already; drop the letter")

    async def _apply_changes(self, shard: int, changes: Iterable[Change], before: Position, after: Position) -> None:
        keys = {self._position_key(shard): 1}
        arguments: list[str | int] = [_place(before), _place(after)]
        for key, command, values in changes:
            for start in range(0, max(1, len(values)), MAX_ARGUMENTS):
                part = values[start : start + MAX_ARGUMENTS]
                arguments += [keys.setdefault(key, len(keys) + 1), command, len(part), *part]
        try:
            applied = await self._script(keys=list(keys), args=arguments)
        except ResponseError as error:
            raise StoreUnavailable(f"Valkey did not run the script: {error}") from error
        except (RedisError, OSError) as error:
            # it may have been applied: the position tells
            raise PositionMoved([shard]) from error
        if not applied:
            raise PositionMoved([shard])

    def _position_key(self, shard: int) -> str:
        return f"{self._settings.topic_prefix}position:{{{shard}}}:{self.name}"


def _place(position: Position) -> str:
    return f"{position.next_offset} {position.sequence} {position.unreadable_records}"


class ValkeyBooksSink(ValkeySink):
    """matching.market-data into books. Of a batch only the last state of each level and order is written."""

    name: ClassVar[str] = "valkey-books"
    topic: ClassVar[Topic] = MATCHING_MARKET_DATA
    web_port_offset: ClassVar[int] = 10

    def changes(self, shard: int, frames: Sequence[Events]) -> Iterable[Change]:
        codec = codec_of(self.topic.name)
        books: dict[str, dict[str, str | int | None]] = {}
        orders: dict[str, dict[str, str | int | None]] = {}
        for events in frames:
            for event in render_events(codec, events):
                book = books.setdefault(event["symbol"], {})
                book["sequence"] = event["sequence"]
                match event["type"]:
                    case "PriceLevel":
                        level = f"{event['quantity']} {event['orders']}"
                        book[f"{event['side'][0]}{event['price']}"] = level if event["quantity"] else None
                    case "TopOfBook":
                        book |= {name: event[name] for name in _TOP}
                    case "Trade":
                        book |= {"last_price": event["price"], "last_quantity": event["quantity"],
                                 "last_trade_id": event["trade_id"]}  # fmt: skip
                    case "SecurityStatus":
                        book |= {"status": event["status"], "reference_price": event["reference_price"]}
                    case "BookOrder":
                        order = f"{event['side']} {event['price']} {event['quantity']}"
                        own = orders.setdefault(event["symbol"], {})
                        own[str(event["place"])] = order if event["quantity"] else None
        for symbol, book in books.items():
            yield from _hash_changes(book_key(self._settings, shard, symbol), book)
        for symbol, own in orders.items():
            yield from _hash_changes(book_orders_key(self._settings, shard, symbol), own)


def _hash_changes(key: str, fields: Mapping[str, str | int | None]) -> Iterable[Change]:
    """Set the fields of a hash that have a value, and remove the others."""
    present = tuple(part for name, value in fields.items() if value is not None for part in (name, value))
    if present:
        yield key, "HSET", present
    gone = tuple(name for name, value in fields.items() if value is None)
    if gone:
        yield key, "HDEL", gone


class ValkeyOrdersSink(ValkeySink):
    """matching.reports into orders. A refused order leaves no trace: its id may be that of a live one."""

    name: ClassVar[str] = "valkey-orders"
    topic: ClassVar[Topic] = MATCHING_REPORTS
    web_port_offset: ClassVar[int] = 11

    def changes(self, shard: int, frames: Sequence[Events]) -> Iterable[Change]:
        codec = codec_of(self.topic.name)
        for events in frames:
            for report in render_events(codec, events):
                if report["type"] == "ExecutionReport" and report["exec_type"] != "REJECTED":
                    yield from self._of_order(shard, report)
                elif report["type"] == "OrderCancelReject" and report["account"]:
                    yield order_key(self._settings, shard, report["order_id"]), "HSET", (
                        "refused_request", report["response_to"], "refused_reason", report["reason"],
                    )  # fmt: skip

    def _of_order(self, shard: int, report: dict[str, Any]) -> Iterable[Change]:
        key = order_key(self._settings, shard, report["order_id"])
        if report["exec_type"] == "NEW":
            yield key, "DEL", ()
        fields = {name: report[name] for name in
                  ("account", "symbol", "side", "order_status", "leaves_quantity", "cumulative_quantity",
                   "execution_id", "reason")}  # fmt: skip
        if report["exec_type"] in ("NEW", "REPLACED", "TRIGGERED", "SUSPENDED"):
            fields["price"] = report["price"]
        yield key, "HSET", tuple(part for pair in fields.items() for part in pair)
        if report["order_status"] in _TERMINAL:
            yield key, "EXPIRE", (ORDER_KEPT_SECONDS,)
        if report["exec_type"] != "TRADE" or report["maker_order_id"] is None:
            return
        maker = order_key(self._settings, shard, report["maker_order_id"])
        leaves = report["maker_leaves_quantity"]
        yield maker, "HSET", (
            "leaves_quantity", leaves, "order_status", "PARTIALLY_FILLED" if leaves else "FILLED",
            "execution_id", report["execution_id"],
        )  # fmt: skip
        yield maker, "HINCRBY", ("cumulative_quantity", report["quantity"])
        if not leaves:
            yield maker, "EXPIRE", (ORDER_KEPT_SECONDS,)
