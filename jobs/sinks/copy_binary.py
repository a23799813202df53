"""Rows of words as PostgreSQL's binary COPY format, written by compiled code.

A batch of thousands of rows would cost more Python time as psycopg parameters than Postgres needs to store it; here a
row costs about a microsecond and no Python object. Format: https://www.postgresql.org/docs/18/sql-copy.html (binary),
numerics as base-10000 digits after four int16 (digits, weight, sign, display scale).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipelines.frames import Rows

__all__ = ["INT4", "INT8", "U64", "U128", "Column", "CopyTable"]

INT4: Final = 0
INT8: Final = 1
U64: Final = 2
"""numeric from one unsigned word."""
U128: Final = 3
"""numeric from two unsigned words, low first."""

_HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_MOST_BYTES: Final = {INT4: 8, INT8: 12, U64: 4 + 8 + 2 * 5, U128: 4 + 8 + 2 * 10}
_PG_TYPES: Final = {INT4: "integer", INT8: "bigint", U64: "numeric", U128: "numeric"}


class Column(NamedTuple):
    """A column of a table and the word of the row it comes from (the lower of two)."""

    name: str
    kind: int
    word: int


class CopyTable:
    """Columns in the order of the statement's column list."""

    def __init__(self, *columns: Column) -> None:
        self.columns = columns
        self._program = np.array([(column.kind, column.word) for column in columns], np.int64)
        self._row_bytes = 2 + sum(_MOST_BYTES[column.kind] for column in columns)

    @property
    def names(self) -> str:
        """Comma-separated column names, for the statement."""
        return ", ".join(column.name for column in self.columns)

    @property
    def definitions(self) -> str:
        """Column definitions of a table that can hold the rows."""
        return ", ".join(f"{column.name} {_PG_TYPES[column.kind]} NOT NULL" for column in self.columns)

    def encode(self, rows: Rows) -> bytes:
        """The whole COPY stream for int64 ``rows`` (n, words), C-contiguous."""
        buffer = np.empty(len(rows) * self._row_bytes, np.uint8)
        end = _encode(rows, self._program, buffer)
        return _HEADER + buffer[:end].tobytes() + _TRAILER


@njit(nogil=True, cache=True)
def _put(buffer: NDArray[np.uint8], position: int, value: Any, size: int) -> int:
    """Big-endian two's complement of the low ``size`` bytes."""
    for index in range(size):
        buffer[position + index] = (value >> (8 * (size - 1 - index))) & 0xFF
    return position + size


@njit(nogil=True, cache=True)
def _put_numeric(buffer: NDArray[np.uint8], position: int, low: Any, high: Any) -> int:
    """A numeric field: its length, then its header and digits; trailing zero digits are left to the server."""
    limbs = np.empty(4, np.uint64)  # 32 bits each, most significant first
    limbs[0] = high >> np.uint64(32)
    limbs[1] = high & np.uint64(0xFFFFFFFF)
    limbs[2] = low >> np.uint64(32)
    limbs[3] = low & np.uint64(0xFFFFFFFF)
    digits = np.empty(10, np.int64)  # 10^39 < 10000^10, least significant first
    count = 0
    first = 0
    while first < 4:
        if limbs[first] == np.uint64(0):
            first += 1
            continue
        remainder = np.uint64(0)
        for index in range(first, 4):
            value = (remainder << np.uint64(32)) | limbs[index]
            limbs[index] = value // np.uint64(10_000)
            remainder = value % np.uint64(10_000)
        digits[count] = np.int64(remainder)
        count += 1
    position = _put(buffer, position, 8 + 2 * count, 4)
    position = _put(buffer, position, count, 2)
    position = _put(buffer, position, max(count - 1, 0), 2)  # weight of the first digit
    position = _put(buffer, position, 0, 4)  # positive, no fraction
    for index in range(count - 1, -1, -1):
        position = _put(buffer, position, digits[index], 2)
    return position


@njit(nogil=True, cache=True)
def _encode(rows: Rows, program: NDArray[np.int64], buffer: NDArray[np.uint8]) -> int:
    position = 0
    columns = len(program)
    for row in range(len(rows)):
        position = _put(buffer, position, columns, 2)
        for column in range(columns):
            kind = program[column, 0]
            value = rows[row, program[column, 1]]
            if kind == 0:
                position = _put(buffer, position, 4, 4)
                position = _put(buffer, position, value, 4)
            elif kind == 1:
                position = _put(buffer, position, 8, 4)
                position = _put(buffer, position, value, 8)
            elif kind == 2:
                position = _put_numeric(buffer, position, np.uint64(value), np.uint64(0))
            else:
                position = _put_numeric(
                    buffer, position, np.uint64(value), np.uint64(rows[row, program[column, 1] + 1])
                )
    return position
