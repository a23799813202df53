"""Reads: balances and transfers from Postgres, statements from Cassandra.

Both are projections that follow the ledger by some milliseconds; an account is given with the `sequence` of its shard
up to which the answer holds. Every query has a time-out and a circuit breaker, and none touches ingest: a store that is
away is a 503 problem here and nothing elsewhere. Connections are made in the background and made again by themselves.

Integers beyond 2^53 are written as decimal strings, as everywhere in the JSON.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from api.history import BALANCE_AT, SEARCH, STATEMENT, balance_of
from api.logs import log
from api.metrics import count
from api.problems import Problem
from infra.settings import Settings
from infra.stores import API_ROLE, cassandra_cluster, postgres_conninfo
from pipelines.catalogue import LEDGER_CROSS_EVENTS, LEDGER_EVENTS, LEDGER_SHARDS
from pipelines.ledger_saga.legs import cross_transfer_shard

__all__ = ["Cursor", "Queries", "json_integer", "ledger_shard"]

POSTGRES_SINK: Final = "postgres"
"""The sink that fills the tables, as it signs its positions."""
CROSS_TRANSFERS_SINK: Final = "postgres-cross-transfers"
ENDED: Final = frozenset({"completed", "failed", "refunded", "held"})
"""Phases of a cross transfer after which nothing happens by itself."""
POSTGRES: Final = "postgres"
REPLICA: Final = "postgres-replica"
POOL_SIZE: Final = 8
FAILURES_TO_OPEN: Final = 3
OPEN_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.05
CONNECT_RETRY_SECONDS: Final = 2.0
MAX_SAFE_INTEGER: Final = 2**53
EXPORT_SECONDS: Final = 60
"""How long a statement's first entry, and each further piece, may take."""
EXPORT_ROWS: Final = 2_000
_EXPORT_TIMEOUT: Final[LiteralString] = "SET LOCAL statement_timeout = '60s'"


_ACCOUNTS: Final[LiteralString] = """
SELECT a.*, coalesce((SELECT max(o.sequence) FROM sink_offsets o
                      WHERE o.sink = %(sink)s AND o.topic = %(topic)s AND o.partition = a.shard), 0) AS reflected
FROM accounts a
WHERE a.id = %(id)s AND a.shard = ANY(%(shards)s) AND (%(ledger)s::bigint IS NULL OR a.ledger = %(ledger)s)
ORDER BY a.ledger
"""
_TRANSFERS: Final[LiteralString] = """
SELECT * FROM transfers
WHERE id = %(id)s AND shard = ANY(%(shards)s) AND (%(ledger)s::bigint IS NULL OR ledger = %(ledger)s)
ORDER BY ledger
"""
_RECORDS: Final[Mapping[str, LiteralString]] = {
    "accounts": """
SELECT a.*, coalesce((SELECT max(o.sequence) FROM sink_offsets o
                      WHERE o.sink = %(sink)s AND o.topic = %(topic)s AND o.partition = a.shard), 0) AS reflected
FROM accounts a WHERE a.shard = %(shard)s AND a.ledger = %(ledger)s AND a.id = ANY(%(ids)s::numeric[])
""",
    "transfers": """
SELECT * FROM transfers WHERE shard = %(shard)s AND ledger = %(ledger)s AND id = ANY(%(ids)s::numeric[])
""",
}
_CROSS_TRANSFER: Final[LiteralString] = """
SELECT * FROM cross_transfers WHERE shard = %(shard)s AND id = %(id)s
"""
_SEQUENCE: Final[LiteralString] = """
SELECT coalesce(max(sequence), 0) AS sequence FROM sink_offsets
WHERE sink = %(sink)s AND topic = %(topic)s AND partition = %(shard)s
"""
_STATEMENT: Final = """
SELECT timestamp, transfer_id, entry, direction, counterparty_account_id, amount, ledger, code, flags, pending_id,
       user_data_128, user_data_64, user_data_32, debits_pending, debits_posted, credits_pending, credits_posted,
       sequence
FROM statement_by_account_month WHERE shard = ? AND account_id = ? AND month = ?
"""


def ledger_shard(ledger: int) -> int:
    """The shard of a ledger's accounts and transfers."""
    return ledger % LEDGER_SHARDS


def json_integer(value: int) -> int | str:
    """The integer as the JSON writes it: beyond 2^53 as a decimal string."""
    return value if -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER else str(value)


def flag_names(bits: int, names: Iterable[str]) -> list[str]:
    return [name for position, name in enumerate(names) if bits >> position & 1]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a statement's page ended; opaque to clients."""

    month: int
    timestamp: int
    transfer_id: int

    def text(self) -> str:
        packed = msgspec.msgpack.encode((self.month, self.timestamp, str(self.transfer_id)))
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @staticmethod
    def read(text: str, month: int) -> Cursor:
        """The cursor in ``text``; raises `Problem` 400 when it is none, or one of another month."""
        try:
            packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            found_month, timestamp, transfer_id = msgspec.msgpack.decode(packed, type=tuple[int, int, str])
            cursor = Cursor(found_month, timestamp, int(transfer_id))
        except (binascii.Error, ValueError, msgspec.DecodeError):
            raise Problem("bad-parameter", "cursor: not a cursor of this API.", parameter="cursor") from None
        if cursor.month != month or not (0 <= cursor.timestamp < 2**63 and 0 <= cursor.transfer_id < 2**128):
            raise Problem("bad-parameter", "cursor: belongs to another month.", parameter="cursor")
        return cursor


class Queries:
    """The stores of one worker. `open` returns at once; the stores may come later."""

    def __init__(
        self, settings: Settings, *, timeout: float, account_flags: Iterable[str], transfer_flags: Iterable[str]
    ) -> None:
        self._settings = settings
        self._timeout = timeout
        self._events_topic = settings.kafka_topic(LEDGER_EVENTS.name)
        self._cross_events_topic = settings.kafka_topic(LEDGER_CROSS_EVENTS.name)
        self._account_flags = tuple(account_flags)
        self._transfer_flags = tuple(transfer_flags)
        self._breakers = AsyncCircuitBreakerFactory(default_threshold=FAILURES_TO_OPEN, default_ttl=OPEN_SECONDS)
        self._pools = {POSTGRES: _pool(postgres_conninfo(settings, API_ROLE), timeout)}
        if settings.postgres_replica:
            self._pools[REPLICA] = _pool(postgres_conninfo(settings, API_ROLE, replica=True), timeout)
        self._readers = tuple(reversed(self._pools))
        """Stores of reads, the one to ask first in front."""
        self._cassandra: Any = None
        self._cluster: Any = None
        self._statements: dict[str, Any] = {}
        self._connecting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        for pool in self._pools.values():
            await pool.open(wait=False)
        self._connecting = asyncio.create_task(self._connect_cassandra())

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError):
                await self._connecting
        for pool in self._pools.values():
            await pool.close(timeout=self._timeout)
        if self._cluster is not None:
            await asyncio.to_thread(self._cluster.shutdown)

    async def account(self, account_id: int, ledger: int | None, min_sequence: int, wait: float) -> dict[str, Any]:
        """The account with its balances; raises `Problem` 404, 409 or 503. ``wait``: seconds for ``min_sequence``."""
        readers = await self._readers_at(ledger, min_sequence, wait)
        rows = await self._find(_ACCOUNTS, account_id, ledger, readers=readers)
        return self._account(self._one("account", account_id, rows))

    async def transfer(self, transfer_id: int, ledger: int | None, min_sequence: int, wait: float) -> dict[str, Any]:
        """The transfer as applied; raises `Problem` 404, 409 or 503."""
        readers = await self._readers_at(ledger, min_sequence, wait)
        rows = await self._find(_TRANSFERS, transfer_id, ledger, readers=readers)
        return self._transfer(self._one("transfer", transfer_id, rows))

    async def balance(
        self, account_id: int, ledger: int | None, at: int, min_sequence: int, wait: float
    ) -> dict[str, Any]:
        """The account's balances at a point in time (nanoseconds, inclusive); raises `Problem` 404, 409 or 503."""
        readers = await self._readers_at(ledger, min_sequence, wait)
        row = self._one("account", account_id, await self._find(BALANCE_AT, account_id, ledger, readers=readers, at=at))
        return {name: json_integer(value) for name, value in balance_of(row, at).items()}

    async def cross_transfer(self, identity: int, min_sequence: int, wait: float) -> dict[str, Any]:
        """How far a cross transfer has come, when it has ended or after ``wait`` seconds; raises `Problem` 404, 503."""
        deadline = asyncio.get_running_loop().time() + wait
        shard = cross_transfer_shard(identity)
        readers = await self._readers_with(
            {"sink": CROSS_TRANSFERS_SINK, "topic": self._cross_events_topic, "shard": shard}, min_sequence, wait
        )
        while True:
            rows = await self._postgres(_CROSS_TRANSFER, {"shard": shard, "id": identity}, readers)
            if (rows and rows[0]["phase"] in ENDED) or asyncio.get_running_loop().time() >= deadline:
                return _cross_transfer(self._one("cross transfer", identity, rows))
            await asyncio.sleep(POLL_SECONDS)

    async def search(
        self,
        ledger: int,
        filters: Mapping[str, int | None],
        since: int,
        until: int,
        limit: int,
        min_sequence: int = 0,
        wait: float = 0.0,
    ) -> dict[str, Any]:
        """One page of a ledger's transfers with the given code and user data (None: any), newest first, from ``since``
        to ``until`` (nanoseconds, inclusive), with the ``until`` of the next page or null."""
        place = {"shard": ledger_shard(ledger), "ledger": ledger, "since": since, "until": until}
        parameters = {**place, **filters, "limit": limit + 1}
        readers = await self._readers_at(ledger, min_sequence, wait)
        rows = await self._postgres(SEARCH, parameters, readers)
        following = int(rows[limit - 1]["timestamp"]) - 1 if len(rows) > limit else None
        return {
            "transfers": [self._transfer(row) for row in rows[:limit]],
            "next_until": json_integer(following) if following is not None else None,
        }

    async def statement(
        self, account_id: int, ledger: int | None, month: int, limit: int, cursor: Cursor | None
    ) -> dict[str, Any]:
        """One page of a month's entries, newest first, with the cursor of the next page or null."""
        if ledger is None:
            found = self._one("account", account_id, await self._find(_ACCOUNTS, account_id, None))
            shard = int(found["shard"])
        else:
            shard = ledger_shard(ledger)
        parameters: tuple[Any, ...] = (shard, account_id, month)
        query = _STATEMENT
        if cursor is not None:
            query += " AND (timestamp, transfer_id) < (?, ?)"
            parameters += (cursor.timestamp, cursor.transfer_id)
        async with self._guard("cassandra"):
            rows = await self._select(query + " LIMIT ?", (*parameters, limit + 1))
        following = None
        if len(rows) > limit:
            rows = rows[:limit]
            following = Cursor(month, rows[-1].timestamp, int(rows[-1].transfer_id)).text()
        return {
            "account_id": json_integer(account_id),
            "month": f"{month // 100:04d}-{month % 100:02d}",
            "entries": [self._entry(row._asdict()) for row in rows],
            "next_cursor": following,
        }

    async def records(
        self, table: str, ids: Sequence[int], ledger: int, min_sequence: int, wait: float
    ) -> list[dict[str, Any]]:
        """Rows of ``accounts`` or ``transfers`` of one ledger, those that exist; raises `Problem` 503."""
        readers = await self._readers_at(ledger, min_sequence, wait)
        place = {"sink": POSTGRES_SINK, "topic": self._events_topic, "shard": ledger_shard(ledger), "ledger": ledger}
        return await self._postgres(_RECORDS[table], {**place, "ids": list(ids)}, readers)

    async def ask_primary(self, query: LiteralString, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows as they are now, not as a replica has them; raises `Problem` 503."""
        return await self._ask(POSTGRES, query, parameters)

    async def rows(self, query: LiteralString, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of Postgres, from a replica where there is one; raises `Problem` 503."""
        return await self._postgres(query, parameters)

    async def history(self, query: str, parameters: tuple[Any, ...]) -> list[Any]:
        """Rows of Cassandra; raises `Problem` 503."""
        async with self._guard("cassandra"):
            return await self._select(query, parameters)

    async def write(self, query: LiteralString, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One statement in a transaction of its own, and the rows that it returns; raises `Problem` 503."""
        async with (
            self._guard(POSTGRES),
            asyncio.timeout(self._timeout),
            self._pools[POSTGRES].connection() as connection,
            connection.transaction(),
        ):
            await connection.execute("SET TRANSACTION READ WRITE")
            return await (await connection.execute(query, parameters)).fetchall()

    async def entries(
        self,
        account_id: int,
        ledger: int | None,
        since: int,
        until: int,
        min_sequence: int = 0,
        wait: float = 0.0,
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """An account's entries in a time span, oldest first, with running balances, in pieces; raises `Problem` 404,
        409 or 503 before the first one. A piece may take the time-out of a query; all of them have none."""
        readers = await self._readers_at(ledger, min_sequence, wait)
        found = self._one("account", account_id, await self._find(_ACCOUNTS, account_id, ledger, readers=readers))
        parameters = {
            "id": account_id, "shards": [int(found["shard"])], "ledger": int(found["ledger"]),
            "since": since, "at": until,
        }  # fmt: skip
        async with (
            self._guard(readers[0]),
            self._pools[readers[0]].connection() as connection,
            connection.transaction(),
            connection.cursor(name="statement") as cursor,
        ):
            async with asyncio.timeout(EXPORT_SECONDS):
                await connection.execute(_EXPORT_TIMEOUT)
                await cursor.execute(STATEMENT, parameters)
                rows = await cursor.fetchmany(EXPORT_ROWS)
            while rows:
                yield rows
                async with asyncio.timeout(EXPORT_SECONDS):
                    rows = await cursor.fetchmany(EXPORT_ROWS)

    async def states(self) -> dict[str, bool]:
        """Whether each store answers now."""
        postgres = {store: await self._postgres_answers(store) for store in self._pools}
        return {**postgres, "cassandra": await self._cassandra_answers()}

    async def _postgres_answers(self, store: str) -> bool:
        try:
            async with asyncio.timeout(self._timeout), self._pools[store].connection() as connection:
                await connection.execute("SELECT 1")
        except (psycopg.Error, PoolTimeout, TimeoutError):
            return False
        return True

    async def _cassandra_answers(self) -> bool:
        try:
            await self._select("SELECT release_version FROM system.local WHERE key = ?", ("local",))
        except Exception:
            return False
        return True

    async def _readers_at(self, ledger: int | None, min_sequence: int, wait: float) -> tuple[str, ...]:
        """The stores that may be asked: those that have reached the sequence, after at most ``wait`` seconds."""
        if ledger is None:
            return self._readers
        place = {"sink": POSTGRES_SINK, "topic": self._events_topic, "shard": ledger_shard(ledger)}
        return await self._readers_with(place, min_sequence, wait)

    async def _readers_with(self, place: Mapping[str, Any], min_sequence: int, wait: float) -> tuple[str, ...]:
        """As `_readers_at`, for the position of any sink."""
        if not min_sequence:
            return self._readers
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            reached = 0
            for store in self._readers:
                # the position comes with the rows, in the primary as in its replica
                with suppress(Problem) if store != POSTGRES else nullcontext():
                    reached = int((await self._postgres(_SEQUENCE, place, (store,)))[0]["sequence"])
                    if reached >= min_sequence:
                        return (store,)
            if asyncio.get_running_loop().time() >= deadline:
                raise Problem(
                    "not-yet-visible",
                    f"Shard {place['shard']} is at sequence {reached}, asked for {min_sequence}.",
                    retry_after=1,
                    sequence=reached,
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _find(
        self, query: LiteralString, id_: int, ledger: int | None, *, readers: tuple[str, ...] = (), **more: Any
    ) -> list[dict[str, Any]]:
        shards = [ledger_shard(ledger)] if ledger is not None else list(range(LEDGER_SHARDS))
        return await self._postgres(
            query,
            {"sink": POSTGRES_SINK, "topic": self._events_topic, "id": id_, "shards": shards, "ledger": ledger, **more},
            readers,
        )

    async def _postgres(
        self, query: LiteralString, parameters: Mapping[str, Any], readers: tuple[str, ...] = ()
    ) -> list[dict[str, Any]]:
        """Rows from the first of ``readers`` (default: all) that answers; raises the last one's problem."""
        *others, last = readers or self._readers
        for store in others:
            with suppress(Problem):
                return await self._ask(store, query, parameters)
        return await self._ask(last, query, parameters)

    async def _ask(self, store: str, query: LiteralString, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        async with self._guard(store), asyncio.timeout(self._timeout), self._pools[store].connection() as connection:
            # a search is planned for the conditions given; the rest are the same whatever is asked
            prepare = False if query is SEARCH else None
            return await (await connection.execute(query, parameters, prepare=prepare)).fetchall()

    @asynccontextmanager
    async def _guard(self, store: str) -> AsyncIterator[None]:
        """Time-outs and failures of a store become one problem, and after some of them it is not asked for a while."""
        try:
            async with await self._breakers.get_breaker(store):
                yield
        except OpenedState:
            raise self._away(store) from None
        except Exception as error:
            count("streambank_api_store_failures", store)
            log().warning("query failed", store=store, error=f"{type(error).__name__}: {error}"[:500])
            raise self._away(store) from error

    @staticmethod
    def _away(store: str) -> Problem:
        return Problem(
            "store-unavailable", f"{store.capitalize()} does not answer.", retry_after=OPEN_SECONDS, store=store
        )

    async def _connect_cassandra(self) -> None:
        said = ""
        while True:
            cluster = cassandra_cluster(self._settings)
            try:
                self._cassandra = await asyncio.to_thread(cluster.connect, self._settings.cassandra_keyspace)
            except Exception as error:
                if said != type(error).__name__:
                    said = type(error).__name__
                    log().info("cassandra is not there yet", error=said)
                await asyncio.to_thread(cluster.shutdown)
                await asyncio.sleep(CONNECT_RETRY_SECONDS)
            else:
                self._cluster = cluster
                return

    async def _select(self, query: str, parameters: tuple[Any, ...]) -> list[Any]:
        """Rows of a prepared query; the driver's thread hands them to the loop."""
        if self._cassandra is None:
            raise ConnectionError("no session yet")
        prepared = self._statements.get(query)
        if prepared is None:
            prepared = await asyncio.to_thread(self._cassandra.prepare, query)
            self._statements[query] = prepared
        loop = asyncio.get_running_loop()
        rows: asyncio.Future[list[Any]] = loop.create_future()

        def resolve(found: list[Any] | Exception) -> None:
            if rows.done():
                return
            if isinstance(found, Exception):
                rows.set_exception(found)
            else:
                rows.set_result(found)

        def arrived(found: Any) -> None:
            loop.call_soon_threadsafe(resolve, list(found))

        def failed(error: Exception) -> None:
            loop.call_soon_threadsafe(resolve, error)

        answer = self._cassandra.execute_async(prepared, parameters, timeout=self._timeout)
        answer.add_callbacks(arrived, failed)
        async with asyncio.timeout(self._timeout * 2):
            return await rows

    @staticmethod
    def _one(what: str, id_: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if not rows:
            raise Problem("not-found", f"There is no {what} {id_}, or it is not visible yet.")
        if len(rows) > 1:
            ledgers = [int(row["ledger"]) for row in rows]
            raise Problem("ambiguous-id", f"The {what} {id_} exists in ledgers {ledgers}.", ledgers=ledgers)
        return rows[0]

    def _account(self, row: dict[str, Any]) -> dict[str, Any]:
        bits = int(row["flags"])
        return {
            **_integers(row, "id", "ledger", "code"),
            "flags": flag_names(bits, self._account_flags),
            "closed": bool(row["closed"]),
            **_integers(
                row, "debits_pending", "debits_posted", "credits_pending", "credits_posted",
                "user_data_128", "user_data_64", "user_data_32", "timestamp",
            ),
            "shard": row["shard"],
            "sequence": max(int(row["reflected"]), int(row["sequence"])),
            "changed_at_sequence": int(row["sequence"]),
        }  # fmt: skip

    def _transfer(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            **_integers(
                row, "id", "debit_account_id", "credit_account_id", "amount", "pending_id",
                "user_data_128", "user_data_64", "user_data_32", "timeout", "ledger", "code",
            ),
            "flags": flag_names(int(row["flags"]), self._transfer_flags),
            **_integers(row, "timestamp", "shard", "sequence"),
        }  # fmt: skip

    def _entry(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            **_integers(row, "timestamp", "transfer_id"),
            "entry": row["entry"],
            "direction": row["direction"],
            **_integers(
                row, "counterparty_account_id", "amount", "ledger", "code", "pending_id",
                "user_data_128", "user_data_64", "user_data_32",
                "debits_pending", "debits_posted", "credits_pending", "credits_posted", "sequence",
            ),
            "flags": flag_names(int(row["flags"]), self._transfer_flags),
        }  # fmt: skip


def _cross_transfer(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **_integers(row, "id"),
        "phase": row["phase"],
        "reason": row["reason"],
        **_integers(
            row, "debit_account_id", "debit_ledger", "credit_account_id", "credit_ledger", "debit_clearing_account_id",
            "credit_clearing_account_id", "amount", "credit_amount", "code", "user_data_128", "requested_at",
            "changed_at", "shard", "sequence",
        ),
    }  # fmt: skip


def _pool(conninfo: str, timeout: float) -> AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]]:
    return AsyncConnectionPool(
        conninfo,
        kwargs={
            "autocommit": True,
            "row_factory": dict_row,
            "application_name": "streambank-api",
            "options": f"-c default_transaction_read_only=on -c statement_timeout={int(timeout * 1000)}",
        },
        min_size=0,
        max_size=POOL_SIZE,
        timeout=timeout,
        reconnect_timeout=1,
        check=None,
        open=False,
    )


def _integers(row: Mapping[str, Any], *names: str) -> dict[str, int | str]:
    return {name: json_integer(int(row[name])) for name in names}
