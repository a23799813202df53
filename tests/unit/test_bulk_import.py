"""Imports of files into a ledger kernel: every format, chains kept whole, and going on after a break."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from api.bulk_import import FORMATS, Import, ImportFailed
from api.client import Result, container
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Events, Frame
from pipelines.ledger.kernel import LedgerKernel
from tests.support.ledger_frames import rendered

FIRST = 1 << 100
ACCOUNTS = [{"type": "CreateAccount", "id": FIRST + n, "ledger": 4, "code": 1} for n in range(2)]
TRANSFERS: list[dict[str, Any]] = [
    {"type": "CreateTransfer", "id": FIRST + 10 + n, "debit_account_id": FIRST, "credit_account_id": FIRST + (n != 5),
     "amount": 2**64 + n, "ledger": 4, "code": 1, "flags": ["linked", "pending"] if n == 3 else []}
    for n in range(7)
]  # fmt: skip
RECORDS = [*ACCOUNTS, *TRANSFERS]


class Ledger:
    """Sends to a kernel; the power fails after a request when the ledger has it already."""

    def __init__(self) -> None:
        self.kernel = LedgerKernel(max_accounts=16, max_transfers=64)
        self.sizes: list[int] = []
        self.fails_after: int | None = None

    def create_rows(self, rows: Any) -> list[Result]:
        self.sizes.append(len(rows))
        results, _ = self.kernel.apply(Frame("ledger.commands", 0, 0, 0, None, Events(rows)))
        if len(self.sizes) == self.fails_after:
            raise ConnectionError
        return [
            Result(row["id"], row["result"], row["timestamp"], 0, 1)
            for row in rendered("ledger.results", results.events)
        ]


def written(path: Path) -> Path:
    """The records as a file of the format that the name says."""
    if path.suffix == ".avro":
        codec = codec_of("ledger.commands")
        path.write_bytes(container(codec, parse_events(codec, RECORDS).rows))
        with path.open("rb") as file:
            assert len(list(fastavro.reader(file))) == len(RECORDS)
        return path
    if path.suffix in (".ndjson", ".jsonl"):
        path.write_text("".join(json.dumps(record | {"id": str(record["id"])}) + "\n\n" for record in RECORDS))
        return path
    columns = list(TRANSFERS[0])
    rows = [
        {name: "|".join(record.get(name, [])) if name == "flags" else str(record.get(name, "")) for name in columns}
        for record in RECORDS
    ]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_goes_on_where_it_broke_off(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"all{suffix}")
    ledger = Ledger()
    ledger.fails_after = 2
    broken = Import(path, batch_events=3)
    with pytest.raises(ConnectionError):
        broken.run(ledger)
    assert broken.done.records == 3
    again = Import(path, batch_events=3)
    assert again.done.records == 3
    shares: list[float] = []
    done = again.run(ledger, lambda done: shares.append(again.share))
    # a request ends before a chain that it cannot hold whole: its two records were applied, and come again
    assert ledger.sizes == [3, 2, 2, 3, 1]
    assert done.results == {"created": 6, "exists": 2, "accounts_must_be_different": 1}
    assert done.refused == 1
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    [refused] = [json.loads(line) for line in again.refused_path.read_text().splitlines()]
    assert refused == {"record": 8, "id": str(FIRST + 15), "result": "accounts_must_be_different"}
    assert ledger.kernel.transfer(FIRST + 13)["flags"] == ["linked", "pending"]  # type: ignore[index]
    assert [row["amount"] for row in ledger.kernel.state_rows() if row["type"] == "Transfer"] == [
        2**64 + n for n in (0, 1, 2, 3, 4, 6)
    ]
    assert Import(path).run(ledger).records == len(RECORDS)  # nothing is left to send
    assert len(ledger.sizes) == 5
    # from the beginning: of a chain that is there already the first member says so, the others that it failed
    whole = Import(path, restart=True).run(ledger).results
    assert whole == {"exists": 7, "linked_event_failed": 1, "accounts_must_be_different": 1}
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ImportFailed, match="not the file"):
        Import(path)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.ndjson", b'{"id": 1, "ledger": 4, "code": 1}\nnot json\n', "record 2: not JSON"),
        ("a.ndjson", b'{"id": 1, "ledger": 4, "code": 1, "colour": 3}\n', "record 1: colour"),
        ("a.csv", b"id,ledger,code\n1,4,1\n2,4,many\n", "record 2: code"),
        ("a.avro", b"Obj\x01", "a.avro"),
        ("a.parquet", b"PAR1", "not Parquet"),
        ("a.txt", b"", "must end in"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, error: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImportFailed, match=error):
        Import(path).run(Ledger())
