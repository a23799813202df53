"""Rows of words as serialized CQL values, written by compiled code.

The driver serializes a bound value in some two microseconds of Python; a statement row has 23. Here all values of a
batch are written into one buffer, and a row only costs the slices. Formats: CQL native protocol 5, section 6: int and
bigint are big-endian, a varint is minimal big-endian two's complement.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipelines.frames import Rows

__all__ = ["BIGINT", "INT", "VARINT_U64", "VARINT_U128", "serialize"]

INT: Final = 0
BIGINT: Final = 1
VARINT_U64: Final = 2
"""varint from one unsigned word."""
VARINT_U128: Final = 3
"""varint from two unsigned words, low first."""

_MOST_BYTES: Final = 17


def serialize(rows: Rows, kinds: NDArray[np.int64]) -> list[list[bytes]]:
    """One list of values per row. ``kinds`` says how the row's words are read, in order; `VARINT_U128` takes two."""
    buffer = np.empty(len(rows) * len(kinds) * _MOST_BYTES, np.uint8)
    ends = np.empty((len(rows), len(kinds)), np.int64)
    _serialize(rows, kinds, buffer, ends)
    data = buffer[: ends[-1, -1]].tobytes() if len(rows) else b""
    values = []
    start = 0
    for row_ends in ends.tolist():
        row = []
        for end in row_ends:
            row.append(data[start:end])
            start = end
        values.append(row)
    return values


@njit(nogil=True, cache=True)
def _put(buffer: NDArray[np.uint8], position: int, value: Any, size: int) -> int:
    for index in range(size):
        buffer[position + index] = (value >> (8 * (size - 1 - index))) & 0xFF
    return position + size


@njit(nogil=True, cache=True)
def _put_varint(buffer: NDArray[np.uint8], position: int, low: Any, high: Any) -> int:
    """A leading zero byte keeps a set top bit from being read as a sign; zero is one zero byte."""
    started = False
    for index in range(16):
        word = high if index < 8 else low
        byte = (word >> np.uint64(8 * (7 - index % 8))) & np.uint64(0xFF)
        if not started and byte != np.uint64(0):
            started = True
            if byte >= np.uint64(0x80):
                buffer[position] = 0
                position += 1
        if started:
            buffer[position] = byte
            position += 1
    if not started:
        buffer[position] = 0
        position += 1
    return position


@njit(nogil=True, cache=True)
def _serialize(rows: Rows, kinds: NDArray[np.int64], buffer: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
    position = 0
    for row in range(len(rows)):
        word = 0
        for column in range(len(kinds)):
            kind = kinds[column]
            if kind == 0:
                position = _put(buffer, position, rows[row, word], 4)
            elif kind == 1:
                position = _put(buffer, position, rows[row, word], 8)
            elif kind == 2:
                position = _put_varint(buffer, position, np.uint64(rows[row, word]), np.uint64(0))
            else:
                position = _put_varint(buffer, position, np.uint64(rows[row, word]), np.uint64(rows[row, word + 1]))
                word += 1
            word += 1
            ends[row, column] = position
