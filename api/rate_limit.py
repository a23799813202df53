"""How many events a client may send: a sliding window counted in Valkey, shared by all workers.

A request costs its events, at least one. To spare Valkey a call per request, a worker takes events in small leases
(a thousandth of the limit, at most 1,000) and spends them itself; what a lease leaves is lost after ten seconds.

When Valkey is away the API keeps accepting: each worker then counts by itself (its share of the limit), and
`streambank_api_rate_limit_local` says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from api.metrics import count
from api.problems import Problem

__all__ = ["Allowance", "RateLimiter"]

WINDOW_SECONDS: Final = 60
MAX_LEASE: Final = 1_000
LEASE_SECONDS: Final = 10.0
RETRY_VALKEY_SECONDS: Final = 1.0
MAX_CLIENTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of ``limit`` after a charge, and in how many seconds some of it comes back."""

    policy: str
    limit: int
    remaining: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """RateLimit fields of draft-ietf-httpapi-ratelimit-headers."""
        return {
            "RateLimit-Policy": f'"{self.policy}";q={self.limit};w={WINDOW_SECONDS}',
            "RateLimit": f'"{self.policy}";r={self.remaining};t={self.reset_seconds}',
        }


@dataclass(slots=True)
class _Lease:
    left: int
    expires: float
    remaining: int
    reset_at: float


class RateLimiter:
    """One policy: ``limit`` units a minute for each key, counted in Valkey (a URL). ``workers`` share the limit while
    it is away."""

    def __init__(self, valkey: str, *, policy: str, limit: int, workers: int, timeout: float, prefix: str = "") -> None:
        self.policy = policy
        self.limit = limit
        self._item = RateLimitItemPerMinute(limit, namespace=f"{prefix}rate")
        self._local_item = RateLimitItemPerMinute(max(1, limit // workers), namespace=f"{prefix}rate")
        storage = RedisStorage(
            f"async+{valkey}",
            wrap_exceptions=True,
            implementation="redispy",
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
        )
        self._storage: Any = storage
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._lease_size = min(MAX_LEASE, limit // 1000)
        self._leases: dict[str, _Lease] = {}
        self._away_until = 0.0

    async def charge(self, key: str, cost: int) -> Allowance:
        """Take ``cost`` units from ``key``; raises `Problem` 429 and takes nothing when they are not there."""
        if cost > self.limit:
            raise Problem(
                "rate-limited",
                f"The request holds {cost} events, the limit is {self.limit} a minute; split it.",
                headers=self._headers(Allowance(self.policy, self.limit, self.limit, WINDOW_SECONDS)),
            )
        now = time.monotonic()
        lease = self._leases.get(key)
        if lease is None or lease.expires <= now:
            lease = _Lease(0, 0.0, 0, now)
        if lease.left >= cost:
            lease.left -= cost
            return self._allowance(lease, now)
        return await self._hit(key, cost, lease, now)

    async def close(self) -> None:
        await self._storage.bridge.storage.aclose()

    async def _hit(self, key: str, cost: int, lease: _Lease, now: float) -> Allowance:
        limiter, item, lease_size = self._shared, self._item, self._lease_size
        if now < self._away_until:
            limiter, item, lease_size = self._local, self._local_item, 0
        try:
            taken = lease_size and await limiter.hit(item, key, cost=cost + lease_size)
            left = lease_size if taken else 0
            if not taken:
                taken = await limiter.hit(item, key, cost=cost)
            stats = await limiter.get_window_stats(item, key)
        except StorageError:
            self._away_until = time.monotonic() + RETRY_VALKEY_SECONDS
            return await self._hit(key, cost, lease, now)
        if limiter is self._local:
            count("streambank_api_rate_limit_local")
        reset = max(0.0, stats.reset_time - time.time())
        if not taken:
            count("streambank_api_rate_limited")
            allowance = Allowance(self.policy, item.amount, stats.remaining, ceil(reset))
            wait = max(reset, (cost - stats.remaining) * WINDOW_SECONDS / item.amount)
            raise Problem(
                "rate-limited",
                f"{cost} more would exceed {item.amount} {self.policy} a minute; {stats.remaining} are left.",
                headers=self._headers(allowance),
                retry_after=wait,
            )
        fresh = _Lease(left + lease.left, now + LEASE_SECONDS, stats.remaining, now + reset)
        if len(self._leases) >= MAX_CLIENTS:
            self._leases.clear()
        self._leases[key] = fresh
        return self._allowance(fresh, now)

    def _allowance(self, lease: _Lease, now: float) -> Allowance:
        reset = max(0, ceil(lease.reset_at - now))
        return Allowance(self.policy, self.limit, lease.remaining + lease.left, reset)

    @staticmethod
    def _headers(allowance: Allowance) -> dict[str, str]:
        return allowance.headers()
