"""Rows into Cassandra: what all sinks that write there share.

Every write is idempotent by its primary key, and a row never changes or carries its own write time, so order and
repeats do not matter: rows go out concurrently, in unlogged batches by partition (`jobs.sinks.cql_batches`), and the
position is written once all of them are confirmed. Whatever a crash leaves between rows and position is written again
with the same values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from cassandra import DriverException, InvalidRequest, OperationTimedOut, RequestExecutionException
from cassandra.cluster import NoHostAvailable
from cassandra.concurrent import execute_concurrent
from cassandra.connection import ConnectionException

from infra.settings import Settings
from infra.stores import cassandra_cluster
from jobs.sinks.base import Addition, Position, Refused, Sink, SinkAlarm, StoreUnavailable
from jobs.sinks.cql_batches import BatchesHandler, EncodedRows, encode, in_batches, routing_key

__all__ = ["CassandraSink", "translated"]

BATCHES_IN_FLIGHT: Final = 32
_INSERT_POSITION: Final = (
    "INSERT INTO {keyspace}.sink_offsets"
    " (sink, topic, partition, next_offset, sequence, unreadable_records, updated_at)"
    " VALUES (?, ?, ?, ?, ?, ?, toTimestamp(now()))"
)
_SELECT_POSITION: Final = (
    "SELECT partition, next_offset, sequence, unreadable_records FROM {keyspace}.sink_offsets"
    " WHERE sink = ? AND topic = ? AND partition = ?"
)


class CassandraSink(Sink):
    """See the module. The driver works in threads of its own; its calls are made from a worker thread, so that the
    event loop keeps answering."""

    flush_seconds: ClassVar[float] = 0.05
    insert: ClassVar[str]
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
        with translated():
            cluster = cassandra_cluster(self._settings)
            try:
                session = cluster.connect()
                session.client_protocol_handler = BatchesHandler
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
        self._cells = self._columns_beside_the_key()

    def _columns_beside_the_key(self) -> int:
        """How many columns of a row are not in the primary key; all, if the driver has not heard of a new table yet."""
        columns = self._insert.column_metadata
        keyspace = self._cluster.metadata.keyspaces.get(columns[0].keyspace_name)
        table = keyspace.tables.get(columns[0].table_name) if keyspace else None
        return len(columns) - (len(table.primary_key) if table else 0)

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
        positions = [] if rehearse else list(last.values())
        await asyncio.to_thread(lambda: self._write_encoded(self._encoded(additions), positions))

    def _values(self, additions: Sequence[Addition]) -> list[list[bytes]]:
        """The rows of a batch as serialized values, in the order of the insert's columns."""
        raise NotImplementedError

    def _encoded(self, additions: Sequence[Addition]) -> EncodedRows:
        """The rows of a batch as they are sent."""
        return self._encode(self._values(additions))

    def _encode(self, values: Sequence[Sequence[bytes]]) -> EncodedRows:
        return encode(values, self._insert.query_id, self._insert.routing_key_indexes)

    def _write(self, values: Sequence[Sequence[bytes]], positions: Sequence[Position]) -> None:
        self._write_encoded(self._encode(values), positions)

    def _write_encoded(self, rows: EncodedRows, positions: Sequence[Position]) -> None:
        with translated():
            batches = in_batches(rows, self._settings.cassandra_keyspace, self._cells, self._replica())
            statements = [(batch, ()) for batch in batches]
            if statements:
                execute_concurrent(self._session, statements, concurrency=BATCHES_IN_FLIGHT, raise_on_first_error=True)
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

    def _replica(self) -> Callable[[Sequence[bytes]], Hashable] | None:
        """What says which node has a partition first, by its key's values; None if there is but one node."""
        metadata = self._cluster.metadata
        if len(metadata.all_hosts()) < 2:
            return None
        keyspace = self._settings.cassandra_keyspace

        def replica(key: Sequence[bytes]) -> Hashable:
            replicas = metadata.get_replicas(keyspace, routing_key(key))
            return replicas[0] if replicas else None

        return replica


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
