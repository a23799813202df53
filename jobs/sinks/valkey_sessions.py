"""What each card did last, in Valkey with expiry: device, country, terminal, recent merchants.

    {prefix}fraud:session:{shard}:{customer}    hash: event_time, terminal_id, amount, device, country
    {prefix}fraud:merchants:{shard}:{customer}  sorted set: merchants by the time of their last transaction

``{prefix}`` is ``STREAMBANK_TOPIC_PREFIX``. Both expire `SESSION_SECONDS` after the last transaction was written;
device and country stay what was last given. A transaction that is older than the one that is kept changes only the
merchants, so repeats and late ones do no harm. The position is in a hash beside them, written with a batch's effects in
one MULTI: a Valkey that lost its data is filled again from the start of the topic.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import redis.asyncio as redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from infra.settings import Settings
from infra.stores import valkey_conninfo
from jobs.sinks.base import Addition, Position, Refused, Sink, StoreUnavailable
from pipelines.catalogue import FRAUD_TRANSACTIONS, Topic
from pipelines.codec import codec_of, text
from pipelines.frames import Events

__all__ = ["FraudSessionsSink", "session_keys"]

SESSION_SECONDS: Final = 30 * 86_400
RECENT_MERCHANTS: Final = 20
TIMEOUT_SECONDS: Final = 10.0

_TRANSACTION: Final = codec_of(FRAUD_TRANSACTIONS.name).event_type("Transaction")
_REMEMBER: Final = """
if tonumber(ARGV[1]) >= tonumber(redis.call('HGET', KEYS[1], 'event_time') or '-1') then
    redis.call('HSET', KEYS[1], 'event_time', ARGV[1], 'terminal_id', ARGV[2], 'amount', ARGV[3])
    if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'device', ARGV[4]) end
    if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'country', ARGV[5]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[7])
if ARGV[6] ~= '' then
    redis.call('ZADD', KEYS[2], 'GT', ARGV[1], ARGV[6])
    redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -ARGV[8] - 1)
    redis.call('EXPIRE', KEYS[2], ARGV[7])
end
"""


def session_keys(settings: Settings, shard: int, customer_id: int) -> tuple[str, str]:
    """Keys of a card's session hash and of its recent merchants."""
    prefix = settings.topic_prefix
    return f"{prefix}fraud:session:{shard}:{customer_id}", f"{prefix}fraud:merchants:{shard}:{customer_id}"


class FraudSessionsSink(Sink):
    """See the module."""

    name: ClassVar[str] = "valkey-fraud-sessions"
    topic: ClassVar[Topic] = FRAUD_TRANSACTIONS
    web_port_offset: ClassVar[int] = 27

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._positions = f"{settings.topic_prefix}sink:{self.name}:positions"
        self._client: Any = None

    async def open(self) -> None:
        self._client = redis.Redis.from_url(
            valkey_conninfo(self._settings), socket_timeout=TIMEOUT_SECONDS, decode_responses=True
        )
        with _translated():
            await self._client.ping()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def load_positions(self, partitions: Collection[int]) -> Mapping[int, Position]:
        with _translated():
            found = await self._client.hmget(self._positions, [str(one) for one in partitions])
        return {
            partition: Position(partition, *map(int, text.split())) if text else Position(partition)
            for partition, text in zip(partitions, found, strict=True)
        }

    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        if rehearse:
            return
        with _translated():
            async with self._client.pipeline(transaction=True) as pipeline:
                for addition in additions:
                    self._remember(pipeline, addition.after.partition, addition.events)
                for place in {addition.after.partition: addition.after for addition in additions}.values():
                    text = f"{place.next_offset} {place.sequence} {place.unreadable_records}"
                    pipeline.hset(self._positions, str(place.partition), text)
                await pipeline.execute()

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        with _translated():
            async with self._client.pipeline(transaction=True) as pipeline:
                self._remember(pipeline, shard, events)
                await pipeline.execute()

    def _remember(self, pipeline: Any, shard: int, events: Events) -> None:
        if not len(events):
            return
        rows = events.view(_TRANSACTION.dtype)
        for row in rows[rows["kind"] == _TRANSACTION.kind]:
            texts = [
                text(events, row[name]) if row[f"{name}_is_set"] else "" for name in ("device", "country", "merchant")
            ]
            numbers = [int(row[name]) for name in ("event_time", "terminal_id", "amount")]
            keys = session_keys(self._settings, shard, int(row["customer_id"]))
            pipeline.eval(_REMEMBER, 2, *keys, *numbers, *texts, SESSION_SECONDS, RECENT_MERCHANTS)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise StoreUnavailable(f"Valkey: {error}") from error
    except ResponseError as error:
        raise Refused("ResponseError", str(error)) from error
    except RedisError as error:
        raise StoreUnavailable(f"Valkey: {error}") from error
