"""Rows of one prepared insert as the bodies of BATCH messages, made without an object per value or row.

What a row costs Cassandra depends on what it comes with. The rows of one partition in an unlogged batch are one
mutation: one entry in the commit log, one change of the memtable, one task. A request costs as much as some rows. So
rows are ordered by partition, and a batch holds either one partition, as many rows as a message should have, or a few
whole partitions of the same replica, no more than Cassandra takes without a warning when it is set up by default:
``unlogged_batch_across_partitions_warn_threshold`` 10, ``batch_size_warn_threshold`` 5 KiB. These, and
``batch_size_fail_threshold``, only count for batches of several partitions (CASSANDRA-10876).

`BatchesHandler` is the driver's extension point for what is sent: the session of `EncodedBatch` must have it as its
``client_protocol_handler``.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from cassandra.protocol import BatchMessage, ProtocolHandler
from cassandra.query import BatchStatement, BatchType

from jobs.sinks.cql_values import query_head

__all__ = ["BatchesHandler", "EncodedBatch", "EncodedRows", "encode", "in_batches", "routing_key"]

PARTITIONS_PER_BATCH: Final = 10
BYTES_OF_PARTITIONS: Final = 5 * 1024
"""Of a batch of several partitions, as Cassandra counts them."""
BYTES_OF_CELL: Final = 16
BYTES_OF_ROW: Final = 32
BYTES_OF_PARTITION: Final = 40
"""What Cassandra counts besides values: times, times to live, deletions."""
BYTES_PER_BATCH: Final = 128 * 1024
"""Of a batch of one partition."""


class EncodedRows(NamedTuple):
    """Rows by partition, each as it stands in a BATCH message."""

    data: bytes
    ends: Sequence[int]
    """0, and where each row ends in ``data``."""
    partitions: Sequence[int]
    """The first row of each partition; behind them the number of rows."""
    keys: Sequence[Sequence[bytes]]
    """The values of each partition's key."""
    around: int
    """Bytes of each row that are no values."""


def encode(rows: Sequence[Sequence[bytes]], query_id: bytes, key: Sequence[int]) -> EncodedRows:
    """Rows of serialized values in the order of the insert's columns; ``key`` are the places of the partition key's."""
    groups: dict[tuple[bytes, ...], list[Sequence[bytes]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[place] for place in key), []).append(row)
    parts: list[bytes] = []
    ends, partitions, size = [0], [0], 0
    for group in groups.values():
        for row in group:
            part = b"".join([query_head(query_id, len(row)), *(len(value).to_bytes(4) + value for value in row)])
            parts.append(part)
            size += len(part)
            ends.append(size)
        partitions.append(len(parts))
    values = len(rows[0]) if rows else 0
    return EncodedRows(b"".join(parts), ends, partitions, list(groups), len(query_head(query_id, values)) + 4 * values)


class EncodedBatch(BatchStatement):  # type: ignore[misc]  # the driver is untyped
    """An unlogged batch of ``rows`` rows, ``body`` being how they stand in the message. Idempotent."""

    def __init__(self, rows: int, body: bytes, key: bytes | None, keyspace: str) -> None:
        super().__init__(BatchType.UNLOGGED)
        self.is_idempotent = True
        self._statements_and_parameters = _Body(rows, body)
        if key is not None:
            self.keyspace = keyspace
            self.routing_key = key


class _Body(NamedTuple):
    rows: int
    data: bytes


class BatchesHandler(ProtocolHandler):  # type: ignore[misc]
    """Sends an `EncodedBatch` as it is."""

    @classmethod
    def encode_message(cls, msg: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(msg, BatchMessage) and isinstance(msg.queries, _Body):
            msg = _EncodedMessage(msg)
        return super().encode_message(msg, *arguments, **named)


class _EncodedMessage(BatchMessage):  # type: ignore[misc]
    def __init__(self, message: Any) -> None:
        super().__init__(
            message.batch_type, (), message.consistency_level, message.serial_consistency_level, message.timestamp,
            message.keyspace,
        )  # fmt: skip
        self.tracing, self.custom_payload = message.tracing, message.custom_payload
        self._body: _Body = message.queries

    def send_body(self, f: Any, protocol_version: int) -> None:
        around = io.BytesIO()
        super().send_body(around, protocol_version)  # the kind, the number of queries, none of them, and what follows
        written = around.getvalue()
        f.write(written[:1] + self._body.rows.to_bytes(2) + self._body.data + written[3:])


class _Open:
    """A batch of whole partitions that more may be added to."""

    def __init__(self, partition: int) -> None:
        self.first = partition
        self.partitions = 0
        self.rows = 0
        self.size = 0
        self.parts: list[bytes] = []

    def takes(self, size: int) -> bool:
        return self.partitions < PARTITIONS_PER_BATCH and self.size + size <= BYTES_OF_PARTITIONS

    def add(self, rows: int, size: int, part: bytes) -> None:
        self.partitions += 1
        self.rows += rows
        self.size += size
        self.parts.append(part)


def routing_key(key: Sequence[bytes]) -> bytes:
    """A partition key's values as what its token is made of."""
    if len(key) == 1:
        return key[0]
    return b"".join(len(value).to_bytes(2) + value + b"\0" for value in key)


def in_batches(
    rows: EncodedRows, keyspace: str, cells: int, owner_of: Callable[[Sequence[bytes]], Hashable] | None = None
) -> Iterator[EncodedBatch]:
    """The rows as batches of one partition, or of a few. ``owner_of`` is the replica that has a partition, by the
    values of its key: only partitions of the same one share a batch, which goes there; None if there is but one.
    ``cells``: how many columns of a row are not in the primary key."""
    ends = rows.ends
    under_way: dict[Hashable, _Open] = {}

    def batch(count: int, body: bytes, partition: int) -> EncodedBatch:
        return EncodedBatch(count, body, routing_key(rows.keys[partition]) if owner_of else None, keyspace)

    for number, key in enumerate(rows.keys):
        first, end = rows.partitions[number], rows.partitions[number + 1]
        size = ends[end] - ends[first] + BYTES_OF_PARTITION
        size += (end - first) * (BYTES_OF_ROW + cells * BYTES_OF_CELL - rows.around)
        if size > BYTES_OF_PARTITIONS:
            while first < end:
                fitting = bisect_right(ends, ends[first] + BYTES_PER_BATCH, first, end + 1) - 1
                until = max(fitting, first + 1)
                yield batch(until - first, rows.data[ends[first] : ends[until]], number)
                first = until
            continue
        owner = owner_of(key) if owner_of else None
        group = under_way.get(owner)
        if group is None or not group.takes(size):
            if group is not None:
                yield batch(group.rows, b"".join(group.parts), group.first)
            group = under_way[owner] = _Open(number)
        group.add(end - first, size, rows.data[ends[first] : ends[end]])
    for group in under_way.values():
        yield batch(group.rows, b"".join(group.parts), group.first)
