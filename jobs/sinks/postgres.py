"""Ledger events into Postgres: accounts with their balances, transfers, expiries.

One transaction per batch holds the rows, the balances and the position, so they can never disagree. The position's row
is locked first and compared with the one the batch starts from: of two sinks that both believe to own a shard, the
later one finds the position moved, and drops what the other has applied. A row that is already there is therefore not
a repeat but an alarm.

An operator's repair (`streambank dlq replay`) may change the same accounts meanwhile. What happens then is the setting
``STREAMBANK_POSTGRES_LOCKING``: ``optimistic`` changes a row only if it holds nothing newer, and starts the batch anew
after a deadlock; ``pessimistic`` locks the rows in the order of their keys before it changes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar, Final

import numpy as np
import psycopg

from infra.settings import Settings
from infra.stores import SINK_ROLE, postgres_conninfo
from jobs.sinks import ledger_rows as ledger
from jobs.sinks.account_locking import Locking
from jobs.sinks.base import (
    Addition,
    Position,
    PositionMoved,
    Refused,
    SequenceBroken,
    Sink,
    SinkAlarm,
    StoreUnavailable,
)
from jobs.sinks.copy_binary import INT4, INT8, U64, U128, Column, CopyTable
from pipelines.avro_schema import EventType
from pipelines.catalogue import LEDGER_EVENTS, Topic
from pipelines.frames import Events, Rows

__all__ = ["PostgresSink", "copy_rows"]

STATEMENT_TIMEOUT_MS: Final = 60_000
LOCK_TIMEOUT_MS: Final = 20_000
_SHARD: Final = Column("shard", INT4, ledger.SHARD)
_SEQUENCE: Final = Column("sequence", INT8, ledger.SEQUENCE)
_EVENT_INDEX: Final = Column("event_index", INT4, ledger.EVENT_INDEX)


def _columns(event_type: EventType, **kinds: int) -> list[Column]:
    """Columns named like the event's fields."""
    return [
        Column(name, kind, ledger.word_of(event_type, f"{name}_lo" if kind == U128 else name))
        for name, kind in kinds.items()
    ]


ACCOUNTS: Final = CopyTable(
    _SHARD,
    *_columns(
        ledger.ACCOUNT_CREATED,
        id=U128,
        ledger=INT8,
        code=INT4,
        flags=INT4,
        user_data_128=U128,
        user_data_64=U64,
        user_data_32=INT8,
        timestamp=INT8,
    ),
    _SEQUENCE,
    _EVENT_INDEX,
)
TRANSFERS: Final = CopyTable(
    _SHARD,
    *_columns(
        ledger.TRANSFER_CREATED,
        id=U128,
        debit_account_id=U128,
        credit_account_id=U128,
        amount=U128,
        pending_id=U128,
        user_data_128=U128,
        user_data_64=U64,
        user_data_32=INT8,
        timeout=INT8,
        ledger=INT8,
        code=INT4,
        flags=INT4,
        timestamp=INT8,
    ),
    _SEQUENCE,
)
EXPIRIES: Final = CopyTable(
    _SHARD,
    *_columns(
        ledger.TRANSFER_EXPIRED,
        pending_id=U128,
        debit_account_id=U128,
        credit_account_id=U128,
        amount=U128,
        ledger=INT8,
        code=INT4,
        timestamp=INT8,
    ),
    _SEQUENCE,
)
CHANGES: Final = CopyTable(
    Column("shard", INT4, ledger.CHANGE_SHARD),
    Column("id", U128, ledger.CHANGE_ID),
    Column("debits_pending", U128, ledger.CHANGE_BALANCES),
    Column("debits_posted", U128, ledger.CHANGE_BALANCES + 2),
    Column("credits_pending", U128, ledger.CHANGE_BALANCES + 4),
    Column("credits_posted", U128, ledger.CHANGE_BALANCES + 6),
    Column("flags", INT4, ledger.CHANGE_FLAGS),
    Column("sequence", INT8, ledger.CHANGE_SEQUENCE),
    Column("event_index", INT4, ledger.CHANGE_EVENT_INDEX),
)
TABLES: Final = (
    ("accounts", ledger.ACCOUNT_CREATED, ACCOUNTS),
    ("transfers", ledger.TRANSFER_CREATED, TRANSFERS),
    ("transfer_expiries", ledger.TRANSFER_EXPIRED, EXPIRIES),
)
_POSITIONS: Final = """
    SELECT partition, next_offset, sequence, unreadable_records FROM sink_offsets
    WHERE sink = %s AND topic = %s AND partition = ANY(%s) ORDER BY partition
"""
_UPDATE: Final = """
    UPDATE accounts SET debits_pending = changed.debits_pending, debits_posted = changed.debits_posted,
        credits_pending = changed.credits_pending, credits_posted = changed.credits_posted, flags = changed.flags,
        sequence = changed.sequence, event_index = changed.event_index, version = accounts.version + 1
    FROM account_changes AS changed
    WHERE accounts.shard = changed.shard AND accounts.id = changed.id
"""
_UNLESS_NEWER: Final = """
        AND (accounts.sequence, accounts.event_index) <= (changed.sequence, changed.event_index)
"""
_LOCK: Final = """
    SELECT FROM accounts JOIN account_changes USING (shard, id) ORDER BY accounts.shard, accounts.id
    FOR UPDATE OF accounts
"""


class _Rehearsed(Exception):  # noqa: N818 - leaves a transaction, is no error
    pass


class PostgresSink(Sink):
    """See the module. ``schema`` is that of the tables; another than the live one holds a rebuild."""

    name: ClassVar[str] = "postgres"
    topic: ClassVar[Topic] = LEDGER_EVENTS
    web_port_offset: ClassVar[int] = 0
    flush_seconds: ClassVar[float] = 0.05
    scratch: ClassVar[tuple[str, CopyTable] | None] = ("account_changes", CHANGES)
    """Temporary table of each connection, emptied at every commit."""

    def __init__(self, settings: Settings, *, schema: str = "public") -> None:
        super().__init__()
        self._schema = schema
        self._locking = Locking(settings.postgres_locking)
        self._conninfo = postgres_conninfo(settings, SINK_ROLE)
        self._topic_name = settings.kafka_topic(self.topic.name)
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def open(self) -> None:
        for table in (ACCOUNTS, TRANSFERS, EXPIRIES, CHANGES):  # compile before the first batch, not in it
            table.encode(np.empty((0, ledger.EVENT_INDEX + 1), np.int64))
        async with self._transaction():
            pass

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def load_positions(self, partitions: Collection[int]) -> Mapping[int, Position]:
        numbers = sorted(partitions)
        async with self._transaction() as connection:
            # The rows must exist, so that `write` can lock them.
            await connection.execute(
                "INSERT INTO sink_offsets (sink, topic, partition) SELECT %s, %s, unnest(%s::int[])"
                " ON CONFLICT DO NOTHING",
                [self.name, self._topic_name, numbers],
            )
            return await self._positions(connection, numbers, lock=False)

    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        first: dict[int, Position] = {}
        last: dict[int, Position] = {}
        for addition in additions:
            first.setdefault(addition.before.partition, addition.before)
            last[addition.after.partition] = addition.after
        try:
            async with self._transaction() as connection:
                stored = await self._positions(connection, sorted(first), lock=True)
                if moved := [partition for partition in first if stored.get(partition) != first[partition]]:
                    raise PositionMoved(moved)
                await self._apply_events(connection, additions)
                if rehearse:
                    raise _Rehearsed
                await self._store_positions(connection, list(last.values()))
        except _Rehearsed:
            pass

    async def _apply_events(self, connection: psycopg.AsyncConnection[Any], additions: Sequence[Addition]) -> None:
        rows = ledger.gather(additions)
        await self._insert(connection, rows)
        await self._set_balances(connection, ledger.account_changes(rows))

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        rows = ledger.with_place(events, shard, sequence, np.array(kept, np.int64))
        changes = ledger.account_changes(rows)
        async with self._transaction() as connection:
            for name, event_type, table in TABLES:
                if len(chosen := ledger.of_kind(rows, event_type)):
                    await connection.execute(
                        f"CREATE TEMPORARY TABLE reapplied_{name} ({table.definitions}) ON COMMIT DROP"
                    )
                    await copy_rows(connection, f"reapplied_{name}", table, chosen)
                    await connection.execute(
                        f"INSERT INTO {name} ({table.names}) SELECT * FROM reapplied_{name} ON CONFLICT DO NOTHING"  # noqa: S608
                    )
            if len(changes):
                await copy_rows(connection, "account_changes", CHANGES, changes)
                unknown = await connection.execute(
                    "SELECT id FROM account_changes EXCEPT SELECT id FROM accounts WHERE shard = %s", [shard]
                )
                if missing := await unknown.fetchall():
                    raise Refused("account_unknown", f"shard {shard} has no account {missing[0][0]}")
                if self._locking is Locking.PESSIMISTIC:
                    await connection.execute(_LOCK)
                await connection.execute(
                    _UPDATE + "AND (accounts.sequence, accounts.event_index) < (changed.sequence, changed.event_index)"
                )

    async def _positions(
        self, connection: psycopg.AsyncConnection[Any], partitions: Sequence[int], *, lock: bool
    ) -> dict[int, Position]:
        cursor = await connection.execute(
            _POSITIONS + (" FOR UPDATE" if lock else ""), [self.name, self._topic_name, list(partitions)]
        )
        return {row[0]: Position(*row) for row in await cursor.fetchall()}

    async def _store_positions(self, connection: psycopg.AsyncConnection[Any], positions: Sequence[Position]) -> None:
        await connection.execute(
            "UPDATE sink_offsets SET next_offset = new.next_offset, sequence = new.sequence,"
            " unreadable_records = new.unreadable_records, updated_at = now()"
            " FROM unnest(%s::int[], %s::bigint[], %s::bigint[], %s::bigint[])"
            " AS new (partition, next_offset, sequence, unreadable_records)"
            " WHERE sink_offsets.sink = %s AND sink_offsets.topic = %s AND sink_offsets.partition = new.partition",
            [
                [position.partition for position in positions],
                [position.next_offset for position in positions],
                [position.sequence for position in positions],
                [position.unreadable_records for position in positions],
                self.name,
                self._topic_name,
            ],
        )

    async def _insert(self, connection: psycopg.AsyncConnection[Any], rows: Rows) -> None:
        for name, event_type, table in TABLES:
            if len(chosen := ledger.of_kind(rows, event_type)):
                await copy_rows(connection, name, table, chosen)

    async def _set_balances(self, connection: psycopg.AsyncConnection[Any], changes: Rows) -> None:
        """The events carry absolute balances: each account is set once, to its last ones."""
        if not len(changes):
            return
        await copy_rows(connection, "account_changes", CHANGES, changes)
        # Not prepared: a generic plan made for few changes would be kept for many.
        if self._locking is Locking.PESSIMISTIC:
            await connection.execute(_LOCK, prepare=False)
        cursor = await connection.execute(_UPDATE + _UNLESS_NEWER, prepare=False)
        if cursor.rowcount != len(changes):
            missing = len(changes) - cursor.rowcount
            newer = await connection.execute(
                "SELECT count(*) FROM accounts JOIN account_changes AS changed USING (shard, id)"
                " WHERE (accounts.sequence, accounts.event_index) > (changed.sequence, changed.event_index)"
            )
            if found := (await newer.fetchone() or (0,))[0]:
                raise SequenceBroken(f"{found} account(s) are newer than the events: something else wrote to them")
            raise Refused("account_unknown", f"{missing} account(s) of transfers do not exist")

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A transaction on the sink's one connection, its errors in the sink's terms."""
        with _translated():
            if self._connection is None or self._connection.closed:
                self._connection = await self._connect()
            connection = self._connection
            try:
                async with connection.transaction():
                    yield connection
            except psycopg.OperationalError:
                await connection.close()
                raise

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(
            self._conninfo,
            autocommit=True,
            application_name=f"streambank-sink-{self.name}",
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS}"
            f" -c idle_in_transaction_session_timeout=60000 -c search_path={self._schema}",
        )
        if self.scratch is not None:
            name, table = self.scratch
            await connection.execute(f"CREATE TEMPORARY TABLE {name} ({table.definitions}) ON COMMIT DELETE ROWS")
        return connection


async def copy_rows(connection: psycopg.AsyncConnection[Any], name: str, table: CopyTable, rows: Rows) -> None:
    """Rows of words into a table."""
    async with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {name} ({table.names}) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        await copy.write(table.encode(np.ascontiguousarray(rows)))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise StoreUnavailable(f"Postgres: {error}") from error
    except psycopg.errors.UniqueViolation as error:
        raise SequenceBroken(
            f"Postgres holds a row beyond the sink's position: {error}. Something else wrote to the projection, or its"
            " position was set back; empty the tables and sink_offsets together to rebuild it"
        ) from error
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        raise Refused(type(error).__name__, str(error)) from error
    except psycopg.ProgrammingError as error:
        raise SinkAlarm(
            f"Postgres does not have the schema that the sink writes: {error}. Run `streambank migrate`"
        ) from error
