"""Avro container files of the API: any Avro reader reads them, and what is broken is refused."""

from __future__ import annotations

import io
from decimal import Decimal

import fastavro
import pytest

from api.avro_files import container, container_events, ledger_answer_codec
from api.bodies import accepts_avro
from pipelines.avro_schema import SchemaError
from pipelines.codec import codec_of
from pipelines.errors import FrameError
from pipelines.frames import Rows

CODEC = ledger_answer_codec()


def results(count: int) -> Rows:
    rows = CODEC.new_rows(count)
    view = rows.view(CODEC.event_types[0].dtype)[:, 0]
    for number in range(count):
        view[number] = (number % 2, number, 5, number % 3, 10**18 + number, number, 2, 2**40)
    return rows


def test_any_reader_reads_results() -> None:
    records = list(fastavro.reader(io.BytesIO(container(CODEC, results(3))), return_record_name=True))
    assert [name.rpartition(".")[2] for name, _ in records] == ["AccountResult", "TransferResult", "AccountResult"]
    assert records[1][1] == {
        "id": Decimal(1 + (5 << 64)), "result": "linked_event_chain_open", "timestamp": 10**18 + 1,
        "record": 1, "shard": 2, "sequence": 2**40,
    }  # fmt: skip


@pytest.mark.parametrize("count", [1, 63, 64, 9000])
def test_it_comes_back_as_it_was(count: int) -> None:
    rows = results(count)
    assert container_events(CODEC, container(CODEC, rows)).rows.tobytes() == rows.tobytes()


def test_a_file_of_another_writer_is_read() -> None:
    """With its fields in another order, one more of them, and a header that is cut otherwise."""
    records = list(fastavro.reader(io.BytesIO(container(CODEC, results(4))), return_record_name=True))
    file = fastavro.reader(io.BytesIO(container(CODEC, results(1))))
    branches = [
        {**branch, "fields": [{"name": "more", "type": "string"}, *branch["fields"][::-1]]}
        for branch in file.writer_schema
    ]
    stream = io.BytesIO()
    fastavro.writer(
        stream, fastavro.parse_schema(branches), [(name, {**record, "more": "x"}) for name, record in records],
        metadata={"some": "thing"},
    )  # fmt: skip
    assert container_events(CODEC, stream.getvalue()).rows.tobytes() == results(4).tobytes()


def test_what_is_broken_or_something_else_is_refused() -> None:
    file = container(CODEC, results(2))
    for wrong in (b"", file[:3], b"{}", file[:40], file[:-1], file[:-30], file + b"\0", file.replace(b"null", b"snap")):
        with pytest.raises(FrameError):
            container_events(CODEC, wrong)
    other = codec_of("ledger.commands")
    with pytest.raises((FrameError, SchemaError)):
        container_events(CODEC, container(other, other.new_rows(1)))


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ([], False),
        (["*/*"], False),
        (["application/json"], False),
        (["application/avro"], True),
        (["text/html, Application/Avro;q=0.5"], True),
        (["application/json", "avro/binary"], True),
        (["application/avro;q=0"], False),
        (["application/avro; q=0.000, application/json"], False),
    ],
)
def test_avro_is_answered_to_who_names_it(header: list[str], accepted: bool) -> None:
    assert accepts_avro(header) is accepted
