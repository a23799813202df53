"""Rows as the stores send them, read by compiled code."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from cassandra.cqltypes import IntegerType
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.types.numeric import IntNumericBinaryDumper

from jobs.row_words import _copy_words, _cql_words, hash_rows, text_number

VALUES = st.one_of(
    st.integers(0, 2**128 - 1),
    st.integers(0, 38).map(lambda power: 10**power),
    st.integers(0, 127).map(lambda bits: 2**bits),
)


def words_of(*values: int) -> list[int]:
    """What the words of a row should be, as unsigned integers."""
    return [word for value in values for word in (value & 2**64 - 1, value >> 64)] + [0]


def cql(*values: bytes | None) -> bytes:
    return b"".join(struct.pack(">i", -1 if value is None else len(value)) + (value or b"") for value in values)


def read_cql(data: bytes, rows: int, columns: int) -> tuple[int, list[list[int]]]:
    words = np.empty((rows, 2 * columns + 1), np.int64)
    return _cql_words(np.frombuffer(data, np.uint8), columns, words), words.view(np.uint64).tolist()


def read_copy(data: bytes, rows: int, numeric: list[bool]) -> tuple[int, list[list[int]]]:
    words = np.empty((rows, 2 * len(numeric) + 1), np.int64)
    return _copy_words(np.frombuffer(data, np.uint8), np.array(numeric), words), words.view(np.uint64).tolist()


@settings(max_examples=60)
@given(st.lists(st.tuples(VALUES, st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1)), max_size=4))
def test_rows_of_both_stores_are_read_as_words(rows: list[tuple[int, int, int]]) -> None:
    wanted = [words_of(*row, text_number("transfer")) for row in rows]
    page = b"".join(
        cql(IntegerType.serialize(a, 5), struct.pack(">q", b), struct.pack(">i", c), b"transfer") for a, b, c in rows
    )
    assert read_cql(page, len(rows), 4) == (len(page), wanted)
    dump = IntNumericBinaryDumper(int).dump
    copied = b"".join(
        struct.pack(">h", 3) + cql(bytes(dump(a) or b""), struct.pack(">q", b), struct.pack(">i", c))
        for a, b, c in rows
    )
    assert read_copy(copied + b"\xff\xff", len(rows), [True, False, False]) == (
        len(rows),
        [words_of(*row) for row in rows],
    )


@pytest.mark.parametrize("odd", [None, b"", b"\xff", b"\x01" * 17, b"\x00" * 18], ids=repr)
def test_a_value_that_is_no_unsigned_integer_is_marked(odd: bytes | None) -> None:
    _, [words] = read_cql(cql(b"\x05", odd), 1, 2)
    assert words[-1] == 1
    _, [words] = read_copy(struct.pack(">h", 2) + cql(b"\x05", odd), 1, [False, False])
    assert words[-1] == 1


@pytest.mark.parametrize("odd", [None, struct.pack(">4H", 0, 0, 0xC000, 0), struct.pack(">5H", 1, 0, 0x4000, 0, 5)])
def test_a_numeric_that_is_negative_or_none_is_marked(odd: bytes | None) -> None:
    _, [words] = read_copy(struct.pack(">h", 1) + cql(odd), 1, [True])
    assert words[-1] == 1


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_cut_off_data_are_an_error(cut: int) -> None:
    data = cql(b"\x05", b"\x00\x00\x00\x06")
    assert read_cql(data[:-cut], 1, 2)[0] == -1
    assert read_copy((struct.pack(">h", 2) + data)[:-cut], 1, [False, False])[0] == -1


def test_every_word_of_a_row_counts() -> None:
    rows = np.zeros((30, 29), np.int64)
    rows[np.arange(29), np.arange(29)] = 1
    assert len(set(hash_rows(rows).tolist())) == 30
