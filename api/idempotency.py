"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a write repeated under its key is answered, not redone.

A key belongs to a client and a route. It is reserved before the body is read, so of two requests at once the second
gets 409; the answer is kept with the body's SHA-256 for a day, and a repeat gets it again with
``Idempotency-Replayed: true``; another body gets 422. Answers that may change (401, 403, 408, 409, 413, 415, 429 and
5xx) are not kept. A reservation is renewed while its request runs and lapses soon after a crash.

When Valkey is away a write is accepted without its key being kept, and says so: ``Idempotency-Stored: false``. Nothing
is applied twice then either, because the ledger applies an event's id once.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from api.metrics import count
from api.problems import Problem

__all__ = ["IdempotencyStore", "Reservation", "StoredAnswer", "parse_key"]

MAX_KEY_CHARACTERS: Final = 255
RETRY_VALKEY_SECONDS: Final = 1.0
_KEY: Final = re.compile(r"[\x21-\x7e]+")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')

# Both act only while the key still holds this request's reservation: a lapsed one may be another's by now.
_FINISH: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""
_RENEW: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


class StoredAnswer(msgspec.Struct, frozen=True):
    """A finished answer. ``body`` is at most as large as the API's own answers are."""

    fingerprint: str
    status: int
    content_type: str
    body: bytes
    headers: dict[str, str]


class _Entry(msgspec.Struct):
    owner: str = ""
    answer: StoredAnswer | None = None


def parse_key(header: str | None) -> str:
    """The key of an Idempotency-Key header, quoted (a structured field string) or bare; raises `Problem` 400."""
    if header is None or not header.strip():
        raise Problem(
            "idempotency-key-missing", "The header Idempotency-Key is missing; send a unique value, say a UUID."
        )
    text = header.strip()
    if text.startswith('"'):
        quoted = _QUOTED.fullmatch(text)
        if quoted is None:
            raise Problem(
                "bad-header", "Idempotency-Key opens a quote and does not close it.", header="Idempotency-Key"
            )
        text = re.sub(r"\\(.)", r"\1", quoted[1])
    if not _KEY.fullmatch(text) or len(text) > MAX_KEY_CHARACTERS:
        raise Problem(
            "bad-header",
            f"Idempotency-Key must be 1 to {MAX_KEY_CHARACTERS} visible ASCII characters without spaces.",
            header="Idempotency-Key",
        )
    return text


class Reservation:
    """A key that this request holds, or the answer that an earlier one left. Finish it once."""

    def __init__(self, store: IdempotencyStore, name: str, owned: bytes | None, answer: StoredAnswer | None) -> None:
        self._store = store
        self._name = name
        self._owned = owned
        self.answer = answer
        """The earlier request's answer; None when this request must do the work."""
        self.stored = owned is not None or answer is not None
        """Whether Valkey holds the key."""
        self._renewal: asyncio.Task[None] | None = None
        if owned is not None:
            self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def keep(self, answer: StoredAnswer) -> None:
        """Keep the answer for repeats."""
        await self._finish(msgspec.msgpack.encode(_Entry(answer=answer)))

    async def release(self) -> None:
        """Let the key be used again."""
        await self._finish(b"")

    async def _finish(self, value: bytes) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if self._owned is not None:
            owned, self._owned = self._owned, None
            self.stored = await self._store.finish(self._name, owned, value)

    async def _renew(self) -> None:
        owned = self._owned
        if owned is None:
            return
        while True:
            await asyncio.sleep(self._store.lock_seconds / 3)
            await self._store.renew(self._name, owned)


class IdempotencyStore:
    """Keys in Valkey (a URL). ``keep_seconds`` for finished answers, ``lock_seconds`` for a reservation without
    renewal."""

    def __init__(self, valkey: str, *, keep_seconds: int, lock_seconds: int, timeout: float, prefix: str = "") -> None:
        self._keep_ms = keep_seconds * 1000
        self.lock_seconds = lock_seconds
        self._prefix = f"{prefix}idempotency:"
        self._valkey: Any = redis.Redis.from_url(valkey, socket_timeout=timeout, socket_connect_timeout=timeout)
        self._finish = self._valkey.register_script(_FINISH)
        self._renew = self._valkey.register_script(_RENEW)
        self._away_until = 0.0

    async def reserve(self, client_id: str, route: str, key: str) -> Reservation:
        """Reserve the key, or find its answer; raises `Problem` 409 while another request holds it."""
        digest = hashlib.sha256("\0".join((client_id, route, key)).encode()).hexdigest()
        name = f"{self._prefix}{digest}"
        owned = msgspec.msgpack.encode(_Entry(owner=uuid4().hex))
        if time.monotonic() < self._away_until:
            return self._unavailable(name)
        try:
            found = await self._valkey.set(name, owned, px=self.lock_seconds * 1000, nx=True, get=True)
        except (RedisError, OSError, TimeoutError):
            self._away_until = time.monotonic() + RETRY_VALKEY_SECONDS
            return self._unavailable(name)
        if found is None:
            return Reservation(self, name, owned, None)
        entry = msgspec.msgpack.decode(found, type=_Entry)
        if entry.answer is None:
            raise Problem(
                "idempotency-key-in-use",
                "A request with this Idempotency-Key is still running; its answer will be kept for a repeat.",
                retry_after=1,
            )
        return Reservation(self, name, None, entry.answer)

    async def finish(self, name: str, owned: bytes, value: bytes) -> bool:
        try:
            return bool(await self._finish(keys=[name], args=[owned, value, self._keep_ms]))
        except (RedisError, OSError, TimeoutError):
            self._away_until = time.monotonic() + RETRY_VALKEY_SECONDS
            count("streambank_api_idempotency_unavailable")
            return False

    async def renew(self, name: str, owned: bytes) -> None:
        with suppress(RedisError, OSError, TimeoutError):
            await self._renew(keys=[name], args=[owned, self.lock_seconds * 1000])

    async def ping(self) -> bool:
        try:
            return bool(await self._valkey.ping())
        except (RedisError, OSError, TimeoutError):
            return False

    async def close(self) -> None:
        await self._valkey.aclose()

    def _unavailable(self, name: str) -> Reservation:
        count("streambank_api_idempotency_unavailable")
        return Reservation(self, name, None, None)
