"""Files of accounts and transfers into the ledger, through the API, with a place to go on from.

A file is NDJSON, CSV, an Avro object container or Parquet; its records have the fields of CreateAccount or
CreateTransfer (and, where both are mixed, ``type``). In CSV and Parquet flags are names with ``|`` between or a list of
names; an empty or null value is the field's default.

Records are sent in their order, in requests of up to `api.client.BATCH_EVENTS` events that end between linked chains.
After each request the place is written to ``<file>.import.json`` and what the ledger refused to
``<file>.refused.ndjson``. An import that was broken off goes on from there; what had been sent and not noted is
answered ``exists``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from api.client import BATCH_EVENTS, Result
from pipelines.catalogue import LEDGER_COMMANDS
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import FieldError, StreambankError
from pipelines.event_files import InputError, read_avro
from pipelines.event_json import parse_event
from pipelines.frames import Rows

__all__ = ["Import", "ImportFailed", "Imported"]

FORMATS: Final = (".ndjson", ".jsonl", ".csv", ".avro", ".parquet")
_SAMPLE_BYTES: Final = 1 << 20


class ImportFailed(StreambankError):  # noqa: N818 - a state, named for what it is
    """The file cannot be read further, or is not the one that the import began with; the message says where."""


class RowSender(Protocol):
    """What an import needs of a client."""

    def create_rows(self, rows: Rows) -> list[Result]:
        """One result per row."""
        ...


@dataclass(slots=True)
class Imported:
    """How far an import is: records done, and how many of them had which result."""

    records: int = 0
    results: Counter[str] = field(default_factory=Counter)

    @property
    def refused(self) -> int:
        return sum(count for result, count in self.results.items() if result not in ("created", "exists"))


@dataclass(slots=True)
class _Place:
    share: float = 0.0


class Import:
    """One file on its way. ``batch_events`` bounds a request."""

    def __init__(self, path: Path, *, batch_events: int = BATCH_EVENTS, restart: bool = False) -> None:
        if path.suffix not in FORMATS:
            raise ImportFailed(f"{path}: the name must end in one of {', '.join(FORMATS)}")
        self._path = path
        self._codec = codec_of(LEDGER_COMMANDS.name)
        self._batch_events = batch_events
        self._fingerprint = _fingerprint(path)
        self.state_path = path.with_name(path.name + ".import.json")
        self.refused_path = path.with_name(path.name + ".refused.ndjson")
        self.done = Imported()
        self._place = _Place()
        if restart:
            self.state_path.unlink(missing_ok=True)
            self.refused_path.unlink(missing_ok=True)
        elif self.state_path.exists():
            self._resume()

    @property
    def share(self) -> float:
        """How much of the file is read, 0 to 1."""
        return self._place.share

    def _resume(self) -> None:
        state = json.loads(self.state_path.read_text(encoding="utf-8"))
        if state["fingerprint"] != self._fingerprint:
            raise ImportFailed(
                f"{self._path} is not the file that {self.state_path.name} was written for; remove that, or restart"
            )
        self.done = Imported(int(state["records"]), Counter(state["results"]))

    def run(self, sender: RowSender, report: Callable[[Imported], None] = lambda done: None) -> Imported:
        """Send what is not done yet; raises `ImportFailed` and the client's errors, after noting the place."""
        with closing(_records(self._path, self._codec, self._place)) as records:
            rows = itertools.islice(records, self.done.records, None)
            for batch in _batches(rows, self._codec, self._batch_events):
                self._note(sender.create_rows(np.array(batch, np.int64)))
                report(self.done)
        return self.done

    def _note(self, results: Sequence[Result]) -> None:
        refused = [(self.done.records + at, result) for at, result in enumerate(results, 1) if not result.ok]
        if refused:
            with self.refused_path.open("a", encoding="utf-8") as file:
                for record, result in refused:
                    file.write(json.dumps({"record": record, "id": str(result.id), "result": result.result}) + "\n")
        self.done.records += len(results)
        self.done.results.update(result.result for result in results)
        state = {"fingerprint": self._fingerprint, "records": self.done.records, "results": self.done.results}
        unfinished = self.state_path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(state), encoding="utf-8")
        unfinished.replace(self.state_path)


def _fingerprint(path: Path) -> str:
    """Of the size and both ends: enough to tell another file from the same one."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _batches(rows: Iterator[list[int]], codec: FrameCodec, size: int) -> Iterator[list[list[int]]]:
    """Runs of at most ``size`` rows that do not end within a chain."""
    linked = [1 << kind.field("flags").flags.index("linked") for kind in codec.event_types]
    words = [kind.field("flags").word for kind in codec.event_types]
    batch: list[list[int]] = []
    for row in rows:
        batch.append(row)
        if len(batch) < size:
            continue
        end = len(batch)
        while end and batch[end - 1][words[batch[end - 1][0]]] & linked[batch[end - 1][0]]:
            end -= 1
        if not end:
            raise ImportFailed(f"a linked chain has more than {size} events")
        yield batch[:end]
        batch = batch[end:]
    if batch:
        yield batch


def _records(path: Path, codec: FrameCodec, place: _Place) -> Generator[list[int], None, None]:
    """Every record as the words of its row."""
    if path.suffix == ".avro":
        with path.open("rb") as file:
            size = path.stat().st_size
            try:
                for frame in read_avro(file, codec):
                    place.share = file.tell() / size
                    yield from frame.events.rows.tolist()
            except InputError as error:
                raise ImportFailed(f"{path.name}: {error}") from None
        return
    readers = {".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix, _ndjson)
    for number, record in reader(path, place):
        try:
            yield parse_event(codec, _typed(record))
        except FieldError as error:
            raise ImportFailed(f"{path.name}, record {number}: {error}") from None


def _typed(record: Any) -> Any:
    if isinstance(record, dict) and "type" not in record:
        is_transfer = "debit_account_id" in record or "pending_id" in record or "amount" in record
        return {"type": "CreateTransfer" if is_transfer else "CreateAccount", **record}
    return record


def _ndjson(path: Path, place: _Place) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        number = read = 0
        size = path.stat().st_size
        for line in file:
            read += len(line)
            place.share = read / size
            if line.isspace():
                continue
            number += 1
            try:
                yield number, msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ImportFailed(f"{path.name}, record {number}: not JSON: {error}") from None


def _csv(path: Path, place: _Place) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as file:
        size = path.stat().st_size
        try:
            for number, row in enumerate(csv.DictReader(file, strict=True, restkey="(more columns)"), 1):
                place.share = binary.tell() / size
                yield number, _from_columns(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ImportFailed(f"{path.name}: not CSV: {error}") from None


def _parquet(path: Path, place: _Place) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        for batch in file.iter_batches(BATCH_EVENTS):
            for row in batch.to_pylist():
                number += 1
                place.share = number / file.metadata.num_rows
                yield number, _from_columns(row)
    except pa.ArrowException as error:
        raise ImportFailed(f"{path.name}: not Parquet: {error}") from None


def _from_columns(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table as JSON would have it; what is empty is left out."""
    record: dict[str, Any] = {}
    for name, value in row.items():
        if value is None or value == "":
            continue
        if name == "flags":
            record[name] = value.split("|") if isinstance(value, str) else list(value)
        elif name == "type":
            record[name] = value
        else:
            record[name] = _number(value)
    return record


def _number(value: Any) -> Any:
    """Integers of any writing: text, Decimal (of 128-bit columns), NumPy."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 40 else value
    whole = int(value) if not isinstance(value, list | dict | bytes) else value
    return whole if whole == value else str(value)
