"""Rows of words as serialized CQL values, written by compiled code.

The driver serializes a bound value in some two microseconds of Python; a statement row has 23. Here all values of a
batch are written into one buffer: by `serialize`, after which a row only costs the slices, or by `serialize_queries` as
they stand in a BATCH message. Formats: CQL native protocol 5, sections 4.1.7 and 6: int and bigint are big-endian, a
varint is minimal big-endian two's complement.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipelines.frames import Rows

__all__ = ["BIGINT", "INT", "TEXT", "VARINT_U64", "VARINT_U128", "query_head", "serialize", "serialize_queries"]

INT: Final = 0
BIGINT: Final = 1
VARINT_U64: Final = 2
"""varint from one unsigned word."""
VARINT_U128: Final = 3
"""varint from two unsigned words, low first."""
TEXT: Final = 4
"""One of a few texts, from its number; only in `serialize_queries`."""

_MOST_BYTES: Final = 17
_LENGTH_BYTES: Final = 4
_PREPARED: Final = 1


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


def query_head(query_id: bytes, values: int) -> bytes:
    """What stands before the values of one execution of a prepared statement in a BATCH message."""
    return struct.pack(f">BH{len(query_id)}sH", _PREPARED, len(query_id), query_id, values)


def serialize_queries(
    rows: Rows, kinds: NDArray[np.int64], texts: Sequence[bytes], head: bytes
) -> tuple[bytes, NDArray[np.int64]]:
    """The rows as they stand in a BATCH message, ``head`` before the values of each, and where each one ends."""
    most = len(head) + len(kinds) * (_LENGTH_BYTES + max(_MOST_BYTES, *map(len, texts)))
    buffer = np.empty(len(rows) * most, np.uint8)
    ends = np.empty(len(rows), np.int64)
    text_ends = np.cumsum([0, *map(len, texts)])
    text = np.frombuffer(b"".join(texts), np.uint8)
    _serialize_queries(rows, kinds, text, text_ends, np.frombuffer(head, np.uint8), buffer, ends)
    return buffer[: ends[-1] if len(rows) else 0].tobytes(), ends


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
def _put_number(buffer: NDArray[np.uint8], position: int, kind: int, rows: Rows, row: int, word: int) -> int:
    if kind == 0:
        end: int = _put(buffer, position, rows[row, word], 4)
    elif kind == 1:
        end = _put(buffer, position, rows[row, word], 8)
    elif kind == 2:
        end = _put_varint(buffer, position, np.uint64(rows[row, word]), np.uint64(0))
    else:
        end = _put_varint(buffer, position, np.uint64(rows[row, word]), np.uint64(rows[row, word + 1]))
    return end


@njit(nogil=True, cache=True)
def _serialize(rows: Rows, kinds: NDArray[np.int64], buffer: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
    position = 0
    for row in range(len(rows)):
        word = 0
        for column in range(len(kinds)):
            position = _put_number(buffer, position, kinds[column], rows, row, word)
            word += 2 if kinds[column] == 3 else 1
            ends[row, column] = position


@njit(nogil=True, cache=True)
def _serialize_queries(
    rows: Rows,
    kinds: NDArray[np.int64],
    text: NDArray[np.uint8],
    text_ends: NDArray[np.int64],
    head: NDArray[np.uint8],
    buffer: NDArray[np.uint8],
    ends: NDArray[np.int64],
) -> None:
    position = 0
    for row in range(len(rows)):
        for index in range(len(head)):
            buffer[position + index] = head[index]
        position += len(head)
        word = 0
        for column in range(len(kinds)):
            start = position + 4
            if kinds[column] == 4:
                chosen = rows[row, word]
                end = start
                for index in range(text_ends[chosen], text_ends[chosen + 1]):
                    buffer[end] = text[index]
                    end += 1
            else:
                end = _put_number(buffer, start, kinds[column], rows, row, word)
            _put(buffer, position, end - start, 4)
            position = end
            word += 2 if kinds[column] == 3 else 1
        ends[row] = position
