"""Statements as files for other programs: CSV and Parquet, written as the rows come."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

__all__ = ["COLUMNS", "csv_text", "write_csv", "write_parquet"]

COLUMNS: Final[Mapping[str, str]] = {
    "timestamp": "int64", "entry": "string", "transfer_id": "string", "direction": "string",
    "counterparty_account_id": "string", "amount": "string", "code": "int32", "flags": "int32", "pending_id": "string",
    "user_data_128": "string", "user_data_64": "string", "user_data_32": "int64", "debits_pending": "string",
    "debits_posted": "string", "credits_pending": "string", "credits_posted": "string", "sequence": "int64",
}  # fmt: skip
"""Columns in order, with their Arrow types: numbers of more than 64 bits as decimal text."""
ROWS_PER_GROUP: Final = 50_000


def write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Rows with a header; ``-`` is standard output. Returns the number of rows."""
    count = 0
    with _opened(path) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([row[name] for name in COLUMNS])
            count += 1
    return count


def csv_text(rows: Iterable[Mapping[str, Any]], *, header: bool = False) -> bytes:
    """The rows as a piece of a CSV file, as `write_csv` writes them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if header:
        writer.writerow(COLUMNS)
    writer.writerows([row[name] for name in COLUMNS] for row in rows)
    return text.getvalue().encode()


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """One file, compressed with zstd, in groups of `ROWS_PER_GROUP` rows. Returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"int64": pa.int64(), "int32": pa.int32(), "string": pa.string()}
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(rows):
            columns = [
                [str(row[name]) if kind == "string" else int(row[name]) for row in group]
                for name, kind in COLUMNS.items()
            ]
            arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(group)
    return count


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    if str(path) == "-":
        yield sys.stdout
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
