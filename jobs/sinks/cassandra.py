"""Ledger events into Cassandra: account statements, one row per transfer and side.

Every write is idempotent by its primary key and a row never changes, so order and repeats do not matter: rows go out
concurrently, in small unlogged batches of rows with the same replica, and the position is written once all of them are
confirmed. Whatever a crash leaves between rows and position is written again with the same values.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from cassandra import DriverException, InvalidRequest, OperationTimedOut, RequestExecutionException
from cassandra.cluster import NoHostAvailable
from cassandra.concurrent import execute_concurrent
from cassandra.connection import ConnectionException
from cassandra.query import BatchStatement, BatchType, BoundStatement

from infra.settings import Settings
from infra.stores import cassandra_cluster
from jobs.sinks import ledger_rows as ledger
from jobs.sinks.base import Addition, Position, Refused, Sink, SinkAlarm, StoreUnavailable
from jobs.sinks.cql_values import BIGINT, INT, VARINT_U64, VARINT_U128, serialize
from pipelines.avro_schema import EventType
from pipelines.catalogue import LEDGER_EVENTS, Topic
from pipelines.frames import Events, Rows

__all__ = ["CassandraSink", "statement_rows", "translated"]

ROWS_PER_BATCH: Final = 10
"""Cassandra warns about unlogged batches over more than ten partitions, and of more than 5 KiB."""
BATCHES_IN_FLIGHT: Final = 64
_EXPIRY_HAS_NO: Final = -1


class _Column(NamedTuple):
    """A column of the statement and its field in each event type; ``{side}`` and ``{other}`` are debit and credit."""

    name: str
    kind: int
    transfer: str
    expiry: str | None


_COLUMNS: Final = (
    _Column("account_id", VARINT_U128, "{side}_account_id", "{side}_account_id"),
    _Column("timestamp", BIGINT, "timestamp", "timestamp"),
    _Column("transfer_id", VARINT_U128, "id", "pending_id"),
    _Column("counterparty_account_id", VARINT_U128, "{other}_account_id", "{other}_account_id"),
    _Column("amount", VARINT_U128, "amount", "amount"),
    _Column("ledger", BIGINT, "ledger", "ledger"),
    _Column("code", INT, "code", "code"),
    _Column("flags", INT, "flags", None),
    _Column("pending_id", VARINT_U128, "pending_id", None),
    _Column("user_data_128", VARINT_U128, "user_data_128", None),
    _Column("user_data_64", VARINT_U64, "user_data_64", None),
    _Column("user_data_32", BIGINT, "user_data_32", None),
    _Column("debits_pending", VARINT_U128, "{side}_account_debits_pending", "{side}_account_debits_pending"),
    _Column("debits_posted", VARINT_U128, "{side}_account_debits_posted", "{side}_account_debits_posted"),
    _Column("credits_pending", VARINT_U128, "{side}_account_credits_pending", "{side}_account_credits_pending"),
    _Column("credits_posted", VARINT_U128, "{side}_account_credits_posted", "{side}_account_credits_posted"),
    _Column("account_flags", INT, "{side}_account_flags", "{side}_account_flags"),
)
# shard and month come first, to make the partition key with the account; sequence comes last.
_KINDS: Final = np.array([INT, INT, *(column.kind for column in _COLUMNS), BIGINT], np.int64)
_NAMES: Final = ("shard", "month", *(column.name for column in _COLUMNS), "sequence", "entry", "direction")
_INSERT: Final = " ".join(
    [
        "INSERT INTO {keyspace}.statement_by_account_month",
        f"({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))})",
    ]
)
_INSERT_POSITION: Final = (
    "INSERT INTO {keyspace}.sink_offsets"
    " (sink, topic, partition, next_offset, sequence, unreadable_records, updated_at)"
    " VALUES (?, ?, ?, ?, ?, ?, toTimestamp(now()))"
)
_SELECT_POSITION: Final = (
    "SELECT partition, next_offset, sequence, unreadable_records FROM {keyspace}.sink_offsets"
    " WHERE sink = ? AND topic = ? AND partition = ?"
)


def _words(event_type: EventType, side: str) -> list[int]:
    """The words of a statement row in an event's row (from `ledger_rows.gather`), -1 where the event has none; the
    month's place is taken by the timestamp."""
    other = "credit" if side == "debit" else "debit"
    words = [ledger.SHARD, ledger.word_of(event_type, "timestamp")]
    for column in _COLUMNS:
        pattern = column.transfer if event_type is ledger.TRANSFER_CREATED else column.expiry
        count = 2 if column.kind == VARINT_U128 else 1
        if pattern is None:
            words += [_EXPIRY_HAS_NO] * count
        else:
            field = pattern.format(side=side, other=other)
            word = ledger.word_of(event_type, f"{field}_lo" if count == 2 else field)
            words += range(word, word + count)
    return [*words, ledger.SEQUENCE]


_SIDES: Final = tuple(
    (event_type, np.array(_words(event_type, side), np.int64), entry.encode(), side.encode())
    for event_type, entry in ((ledger.TRANSFER_CREATED, "transfer"), (ledger.TRANSFER_EXPIRED, "expiry"))
    for side in ("debit", "credit")
)


def statement_rows(rows: Rows) -> list[list[bytes]]:
    """The statement's rows of a batch of events (from `ledger_rows.gather`) as serialized values, in the order of the
    insert's columns."""
    values: list[list[bytes]] = []
    for event_type, words, entry, direction in _SIDES:
        chosen = ledger.of_kind(rows, event_type)
        if not len(chosen):
            continue
        picked = np.ascontiguousarray(chosen[:, words])
        picked[:, words == _EXPIRY_HAS_NO] = 0
        picked[:, 1] = _months(picked[:, 1])
        for row in serialize(picked, _KINDS):
            row += (entry, direction)
            values.append(row)
    return values


def _months(timestamps: Rows) -> Rows:
    """UTC months of nanosecond timestamps as year * 100 + month."""
    months = timestamps.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
    numbers: Rows = (1970 + months // 12) * 100 + months % 12 + 1
    return numbers


class CassandraSink(Sink):
    """See the module. The driver works in threads of its own; its calls are made from a worker thread, so that the
    event loop keeps answering."""

    name: ClassVar[str] = "cassandra"
    topic: ClassVar[Topic] = LEDGER_EVENTS
    web_port_offset: ClassVar[int] = 1
    flush_seconds: ClassVar[float] = 0.05
    insert: ClassVar[str] = _INSERT
    """Inserts one row; ``{keyspace}`` is the keyspace's name."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._topic_name = settings.kafka_topic(self.topic.name)
        self._cluster: Any = None
        self._session: Any = None

    async def open(self) -> None:
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        serialize(np.empty((0, 1), np.int64), _KINDS)  # compile before the first batch, not in it
        with translated():
            cluster = cassandra_cluster(self._settings)
            try:
                session = cluster.connect()
                keyspace = f'"{self._settings.cassandra_keyspace}"'
                self._insert = session.prepare(self.insert.format(keyspace=keyspace))
                self._insert_position = session.prepare(_INSERT_POSITION.format(keyspace=keyspace))
                self._select_position = session.prepare(_SELECT_POSITION.format(keyspace=keyspace))
            except InvalidRequest as error:
                cluster.shutdown()
                raise SinkAlarm(f"Cassandra lacks the sink's tables: {error}. Run `streambank migrate`") from error
            except BaseException:
                cluster.shutdown()
                raise
        self._cluster, self._session = cluster, session

    async def close(self) -> None:
        if self._cluster is not None:
            await asyncio.to_thread(self._cluster.shutdown)
            self._cluster = self._session = None

    async def load_positions(self, partitions: Collection[int]) -> Mapping[int, Position]:
        return await asyncio.to_thread(self._load_positions, sorted(partitions))

    def _load_positions(self, partitions: Sequence[int]) -> Mapping[int, Position]:
        positions = {}
        with translated():
            for partition in partitions:
                row = self._session.execute(self._select_position, (self.name, self._topic_name, partition)).one()
                positions[partition] = Position(*row) if row else Position(partition)
        return positions

    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        last = {addition.after.partition: addition.after for addition in additions}
        await asyncio.to_thread(self._write, self._values(additions), [] if rehearse else list(last.values()))

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        rows = ledger.with_place(events, shard, sequence, np.array(kept, np.int64))
        await asyncio.to_thread(self._write, statement_rows(rows), [])

    def _values(self, additions: Sequence[Addition]) -> list[list[bytes]]:
        """The rows of a batch as serialized values, in the order of the insert's columns."""
        return statement_rows(ledger.gather(additions))

    def _write(self, values: Sequence[list[bytes]], positions: Sequence[Position]) -> None:
        with translated():
            batches = [(batch, ()) for batch in self._batches(values)]
            if batches:
                execute_concurrent(self._session, batches, concurrency=BATCHES_IN_FLIGHT, raise_on_first_error=True)
            for position in positions:
                self._session.execute(
                    self._insert_position,
                    (
                        self.name,
                        self._topic_name,
                        position.partition,
                        position.next_offset,
                        position.sequence,
                        position.unreadable_records,
                    ),
                )

    def _batches(self, values: Sequence[list[bytes]]) -> Iterator[BatchStatement]:
        """Rows of one replica in one batch: its coordinator applies them locally."""
        replica = self._replica()
        groups: defaultdict[Any, list[BoundStatement]] = defaultdict(list)
        for row in values:
            statement = BoundStatement(self._insert)
            statement.values = row
            group = groups[replica(statement)]
            group.append(statement)
            if len(group) == ROWS_PER_BATCH:
                yield _batch(group)
                group.clear()
        for group in groups.values():
            if group:
                yield _batch(group)

    def _replica(self) -> Callable[[BoundStatement], Any]:
        metadata = self._cluster.metadata
        if len(metadata.all_hosts()) < 2:
            return lambda _: None
        keyspace = self._settings.cassandra_keyspace

        def replica(statement: BoundStatement) -> Any:
            replicas = metadata.get_replicas(keyspace, statement.routing_key)
            return replicas[0] if replicas else None

        return replica


def _batch(statements: Sequence[BoundStatement]) -> BatchStatement:
    batch = BatchStatement(BatchType.UNLOGGED)
    batch.is_idempotent = True
    batch.add_all(statements, [None] * len(statements))
    return batch


@contextmanager
def translated() -> Iterator[None]:
    """The driver's errors as those of `jobs.sinks.base`."""
    try:
        yield
    except InvalidRequest as error:
        raise Refused("InvalidRequest", str(error)) from error
    except (
        NoHostAvailable,
        OperationTimedOut,
        RequestExecutionException,
        ConnectionException,
        DriverException,
    ) as error:
        raise StoreUnavailable(f"Cassandra: {error}") from error
