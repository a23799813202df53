"""Stored rows as words, and words as hashes, by compiled code: how an audit compares tens of millions of rows.

The rows come as the stores send them: Cassandra's result pages (`cassandra_pages`) and PostgreSQL's binary COPY stream
(`copy_stream`). Every value is two words, the low and the high half of an unsigned 128-bit integer, whatever its type
says; a text of up to 16 bytes is the integer that its bytes are in big-endian order (`text_number`). Behind them is one
more word, 0 unless a value of the row is none of these (null, negative, longer). That is not how the sinks write rows,
on purpose: what is compared has not been through the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import psycopg
from cassandra.cluster import EXEC_PROFILE_DEFAULT
from cassandra.marshal import int32_unpack
from cassandra.protocol import ProtocolHandler, ResultMessage
from cassandra.query import SimpleStatement
from numpy.typing import NDArray

from pipelines.compiled import compiled
from pipelines.frames import Rows

__all__ = ["cassandra_pages", "copy_stream", "hash_rows", "text_number"]

PAGE_ROWS: Final = 5_000
PAGE_SECONDS: Final = 60.0
TOKEN_RANGES: Final = 64
READERS: Final = 2
COPY_BYTES: Final = 1 << 20
_COPY_HEADER: Final = 19


def text_number(text: str) -> int:
    """The number that stands for a text of up to 8 bytes of ASCII."""
    return int.from_bytes(text.encode())


def hash_rows(words: Rows) -> NDArray[np.int64]:
    """A 64-bit hash of each row of words."""
    hashes = np.empty(len(words), np.int64)
    _hash_rows(words, hashes)
    return hashes


# --- Cassandra


class _Page(NamedTuple):
    rows: int
    data: bytes


class _RawResult(ResultMessage):  # type: ignore[misc]  # the driver is untyped
    """Rows are left as they came."""

    def recv_results_rows(
        self, f: Any, protocol_version: int, user_type_map: Any, result_metadata: Any, column_encryption_policy: Any
    ) -> None:
        self.recv_results_metadata(f, user_type_map)
        columns = self.column_metadata or result_metadata
        self.column_names = [column[2] for column in columns]
        self.column_types = [column[3] for column in columns]
        self.parsed_rows = [_Page(int32_unpack(f.read(4)), f.read())]


class _RawPages(ProtocolHandler):  # type: ignore[misc]
    message_types_by_opcode: ClassVar[dict[int, Any]] = {
        **ProtocolHandler.message_types_by_opcode,
        ResultMessage.opcode: _RawResult,
    }


def cassandra_pages(
    session: Any, table: str, key: Sequence[str], columns: Sequence[str]
) -> Iterator[NDArray[np.int64]]:
    """The hashes of all rows of a table, by parts of the ring, two of which are read at once; ``key`` is the partition
    key. Sets the session up for this alone."""
    session.client_protocol_handler = _RawPages
    profile = session.execution_profile_clone_update(
        EXEC_PROFILE_DEFAULT, row_factory=lambda names, pages: pages, request_timeout=PAGE_SECONDS
    )
    query = f"SELECT {', '.join(columns)} FROM {table} WHERE token({', '.join(key)})"  # noqa: S608
    bounds = [-(2**63) + part * 2**64 // TOKEN_RANGES for part in range(TOKEN_RANGES)] + [2**63 - 1]

    def part(number: int) -> NDArray[np.int64]:
        first, last = bounds[number], bounds[number + 1]
        until = "<=" if number == TOKEN_RANGES - 1 else "<"
        where = f"{query} >= {first} AND token({', '.join(key)}) {until} {last}"
        scan = SimpleStatement(where, fetch_size=PAGE_ROWS)
        found = [np.empty(0, np.int64)]
        for page in session.execute(scan, execution_profile=profile):
            words = np.empty((page.rows, 2 * len(columns) + 1), np.int64)
            end = _cql_words(np.frombuffer(page.data, np.uint8), len(columns), words)
            if end != len(page.data):
                raise ValueError(f"a page of {table} of {len(page.data)} bytes has {page.rows} rows in {end} bytes")
            found.append(hash_rows(words))
        return np.concatenate(found)

    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(part, range(TOKEN_RANGES))


# --- PostgreSQL


def copy_stream(connection: psycopg.Connection[Any], table: str, columns: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """The hashes of all rows of a table of integers and numerics."""
    types = connection.execute(
        "SELECT attname, atttypid = 'numeric'::regtype FROM pg_attribute WHERE attrelid = %s::regclass", [table]
    ).fetchall()
    numeric = np.array([dict(types)[column] for column in columns], np.bool_)
    statement = f"COPY (SELECT {', '.join(columns)} FROM {table}) TO STDOUT (FORMAT BINARY)"  # noqa: S608
    parts: list[bytes] = []
    size, skip = 0, _COPY_HEADER

    def hashes() -> NDArray[np.int64]:
        data = np.frombuffer(b"".join(parts), np.uint8)[skip:]
        words = np.empty((len(parts), 2 * len(columns) + 1), np.int64)
        rows = _copy_words(data, numeric, words)
        if rows < 0:
            raise ValueError(f"{table}: the COPY stream is not one of {len(columns)} columns")
        return hash_rows(words[:rows])

    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in copy:  # the server sends each in a message of its own
            parts.append(bytes(row))
            size += len(row)
            if size >= COPY_BYTES:
                yield hashes()
                parts.clear()
                size = skip = 0
        yield hashes()


# --- bytes to words


@compiled
def _integer(data: NDArray[np.uint8], start: int, end: int, words: Any, place: int) -> int:
    """The big-endian integer in ``data[start:end]`` into two words; 1 if it is none, negative or beyond 128 bits."""
    low = np.uint64(0)
    high = np.uint64(0)
    for index in range(start, end):
        high = (high << np.uint64(8)) | (low >> np.uint64(56))
        low = (low << np.uint64(8)) | np.uint64(data[index])
    words[place] = np.int64(low)
    words[place + 1] = np.int64(high)
    if end <= start or end - start > 17 or data[start] >= 128:
        return 1
    return 1 if end - start == 17 and data[start] != 0 else 0


@compiled
def _numeric(data: NDArray[np.uint8], start: int, end: int, words: Any, place: int) -> int:
    """A non-negative numeric without fraction into two words; 1 if it is none."""
    words[place] = words[place + 1] = 0
    if end - start < 8:
        return 1
    count = (np.int64(data[start]) << 8) | np.int64(data[start + 1])
    weight = (np.int64(data[start + 2]) << 8) | np.int64(data[start + 3])
    sign = (np.int64(data[start + 4]) << 8) | np.int64(data[start + 5])
    if sign != 0 or end - start != 8 + 2 * count or (count > 0 and (weight > 9 or weight + 1 < count)):
        return 1
    if count == 0:
        return 0
    mask = np.uint64(0xFFFFFFFF)
    a = b = c = d = np.uint64(0)  # 32 bits each, most significant first
    for index in range(weight + 1):
        digit = np.uint64(0)
        if index < count:
            at = start + 8 + 2 * index
            digit = (np.uint64(data[at]) << np.uint64(8)) | np.uint64(data[at + 1])
        d = d * np.uint64(10_000) + digit
        c = c * np.uint64(10_000) + (d >> np.uint64(32))
        b = b * np.uint64(10_000) + (c >> np.uint64(32))
        a = a * np.uint64(10_000) + (b >> np.uint64(32))
        d, c, b = d & mask, c & mask, b & mask
    words[place] = np.int64((c << np.uint64(32)) | d)
    words[place + 1] = np.int64((a << np.uint64(32)) | b)
    return 1 if a > mask else 0


@compiled
def _length(data: NDArray[np.uint8], at: int) -> Any:
    """A signed 32-bit integer; -1 where the data end before it."""
    if at + 4 > len(data):
        return -1
    value = np.int64(0)
    for index in range(4):
        value = (value << 8) | np.int64(data[at + index])
    return value - (np.int64(1) << 32) if value >= np.int64(1) << 31 else value


@compiled
def _cql_words(data: NDArray[np.uint8], columns: int, words: Rows) -> int:
    """Fills ``words``; returns how far the rows went, -1 if beyond the data."""
    position = 0
    for row in range(len(words)):
        odd = 0
        for column in range(columns):
            if position + 4 > len(data):
                return -1
            size = _length(data, position)
            start = position + 4
            position = start + max(size, 0)
            if position > len(data):
                return -1
            odd |= _integer(data, start, position, words[row], 2 * column)
        words[row, 2 * columns] = odd
    return position


@compiled
def _copy_words(data: NDArray[np.uint8], numeric: NDArray[np.bool_], words: Rows) -> int:
    """Fills ``words``; returns the number of rows, -1 if the data are no such rows."""
    columns = len(numeric)
    position = 0
    row = 0
    while position < len(data):
        if position + 2 > len(data):
            return -1
        count = (np.int64(data[position]) << 8) | np.int64(data[position + 1])
        position += 2
        if count == 0xFFFF:
            return row if position == len(data) else -1
        if count != columns or row == len(words):
            return -1
        odd = 0
        for column in range(columns):
            size = _length(data, position)
            start = position + 4
            position = start + max(size, 0)
            if position > len(data):
                return -1
            if numeric[column]:
                odd |= _numeric(data, start, position, words[row], 2 * column)
            else:
                odd |= _integer(data, start, position, words[row], 2 * column)
        words[row, 2 * columns] = odd
        row += 1
    return row


@compiled
def _hash_rows(words: Rows, hashes: NDArray[np.int64]) -> None:
    """Each word is mixed in by multiplication and shifts (the finalizer of splitmix64)."""
    for row in range(len(words)):
        value = np.uint64(0x9E3779B97F4A7C15)
        for column in range(words.shape[1]):
            value = (value ^ np.uint64(words[row, column])) + np.uint64(0x9E3779B97F4A7C15)
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            value = value ^ (value >> np.uint64(31))
        hashes[row] = np.int64(value)
