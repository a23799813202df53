"""Dead letters as records: what goes in comes out, and a letter always fits."""

from __future__ import annotations

import pytest

from jobs.dead_letter_queue import LetterFilter
from jobs.dead_letters import MAX_PAYLOAD_BYTES, DeadLetter, LetterPlace, decode_letters, encode_letter, schema_id_of
from pipelines.catalogue import LEDGER_DEAD_LETTERS
from pipelines.codec import codec_of
from pipelines.errors import FrameError
from pipelines.wire import unwrap, wrap


def letter(**fields: object) -> DeadLetter:
    values = {
        "consumer": "sink-postgres",
        "topic": "ledger.events",
        "partition": 2,
        "offset": 41,
        "schema_id": 7,
        "event_index": -1,
        "reason": "truncated",
        "detail": "the record ends inside a value",
        "payload": b"\x00\xff",
    }
    return DeadLetter(**{**values, **fields})  # type: ignore[arg-type]


def read(value: bytes) -> list[LetterPlace]:
    return decode_letters(LEDGER_DEAD_LETTERS, 2, 5, value, lambda _: LEDGER_DEAD_LETTERS.schema())


def test_a_letter_survives_the_topic_and_is_a_frame() -> None:
    value = encode_letter(LEDGER_DEAD_LETTERS, 9, letter(), "00-trace")
    (place,) = read(value)
    assert place.letter == letter()
    assert (place.id, place.trace) == ("ledger:2-5", "00-trace")
    frame = codec_of(LEDGER_DEAD_LETTERS.name).decode(unwrap(value)[1])
    assert (frame.shard, frame.sequence, frame.produced_at, len(frame.events)) == (2, 0, place.produced_at, 1)


def test_a_letter_about_the_largest_record_still_fits_into_a_record() -> None:
    just_fits = encode_letter(LEDGER_DEAD_LETTERS, 9, letter(payload=bytes(MAX_PAYLOAD_BYTES), detail="d" * 10_000))
    assert len(just_fits) < 1_000_000
    too_large = read(encode_letter(LEDGER_DEAD_LETTERS, 9, letter(payload=bytes(MAX_PAYLOAD_BYTES + 1))))[0].letter
    assert too_large.payload == b""
    assert "960001 bytes is too large to be copied; read it at its offset" in too_large.detail


@pytest.mark.parametrize("value", [b"", b"x", wrap(9, b""), wrap(9, b"\xff" * 40)])
def test_what_is_no_letter_is_an_error_that_names_the_place(value: bytes) -> None:
    with pytest.raises(FrameError):
        read(value)


def test_schema_id_of_anything() -> None:
    assert schema_id_of(wrap(77, b"body")) == 77
    assert [schema_id_of(value) for value in (None, b"", b"\x01abcdef", b"\x00\x00")] == [-1] * 4


def test_filters_match_all_that_is_asked() -> None:
    place = LetterPlace(letter(), "ledger.dead-letters", 2, 5, 0, 1_000, None)
    assert LetterFilter().is_everything
    for matching in (
        LetterFilter(),
        LetterFilter(frozenset({"ledger:2-5"}), "truncated", "sink-postgres", 1_000, 1_001),
    ):
        assert matching.matches(place)
    for other in (
        LetterFilter(ids=frozenset({"ledger:2-6"})),
        LetterFilter(reason="empty"),
        LetterFilter(consumer="sink-cassandra"),
        LetterFilter(since=1_001),
        LetterFilter(until=1_000),
    ):
        assert not other.matches(place)
