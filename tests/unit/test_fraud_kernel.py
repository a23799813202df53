"""The fraud features' rules, one small example each; the model covers their combinations."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from jobs.replay import Replay, ReplayError
from pipelines.catalogue import PIPELINES
from pipelines.codec import codec_of
from pipelines.errors import FieldError, FrameError, StateVersionError
from pipelines.event_json import parse_events
from pipelines.fraud import records
from pipelines.fraud.kernel import CapacityExceeded, FraudKernel
from pipelines.kernel import InvariantBroken
from tests.support.fraud_frames import SMALL, Fraud, label, transaction, transaction_frame

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
START = 18_000 * DAY
"""A Sunday, 00:00."""


def columns(vector: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(vector[name] for name in names)


def test_card_windows_are_open_on_the_left_and_hold_the_transaction() -> None:
    for name, width in {"1m": MINUTE, "10m": 10 * MINUTE, "1h": HOUR, "1": DAY, "7": 7 * DAY, "30": 30 * DAY}.items():
        inside = Fraud().features(transaction(1, START, amount=5), transaction(2, START + width - 1, amount=7))
        assert columns(inside[1], f"cn{name}", f"cs{name}") == (2, 12)
        outside = Fraud().features(transaction(1, START, amount=5), transaction(2, START + width, amount=7))
        assert columns(outside[1], f"cn{name}", f"cs{name}") == (1, 7)


def test_terminal_windows_end_exactly_seven_days_before() -> None:
    def later(microseconds: int) -> dict[str, Any]:
        return Fraud().features(transaction(1, START, customer_id=9), transaction(2, START + microseconds))[1]

    assert columns(later(7 * DAY - 1), "tn1", "tn7", "tn30") == (0, 0, 0)
    assert columns(later(7 * DAY), "tn1", "tn7", "tn30") == (1, 1, 1)
    assert columns(later(8 * DAY - 1), "tn1", "tn7", "tn30") == (1, 1, 1)
    assert columns(later(8 * DAY), "tn1", "tn7", "tn30") == (0, 1, 1)
    assert columns(later(14 * DAY), "tn1", "tn7", "tn30") == (0, 0, 1)
    assert columns(later(37 * DAY - 1), "tn30") == (1,)
    assert columns(later(37 * DAY), "tn30") == (0,)


def test_equal_times_end_at_the_transaction_itself_in_order_of_arrival() -> None:
    vectors = Fraud().features(*(transaction(number, START, amount=number) for number in (1, 2, 3)))
    assert [columns(vector, "cn1", "cs1", "since_last") for vector in vectors] == [(1, 1, -1), (2, 3, 0), (3, 6, 0)]


def test_label_counts_for_the_transaction_at_its_own_time() -> None:
    """A label exactly seven days after its transaction, before a transaction of that same moment."""
    fraud = Fraud()
    fraud.apply(transaction(1, START), transaction(2, START))
    vectors, received = fraud.apply(label(1, START + 7 * DAY), transaction(3, START + 7 * DAY))
    assert columns(vectors[0], "tn1", "tf1", "tn7", "tf7", "tn30", "tf30") == (2, 1, 2, 1, 2, 1)
    assert received == [
        {
            "type": "LabelReceived", "transaction_id": 1, "event_time": START + 7 * DAY, "fraud": True,
            "status": "accepted", "transaction_time": START, "customer_id": 1, "terminal_id": 1, "amount": 100,
        }
    ]  # fmt: skip


def test_label_never_counts_before_its_time() -> None:
    """The leak that matters: a label in the log ahead of the time at which it became known."""
    fraud = Fraud()
    fraud.apply(transaction(1, START), label(1, START + 9 * DAY))
    for moment, frauds in ((7 * DAY, 0), (9 * DAY - 1, 0), (9 * DAY, 1)):
        vector = fraud.features(transaction(moment, START + moment))[0]
        assert columns(vector, "tn30", "tf30") == (vector["tn30"], frauds)
    assert fraud.kernel.counts["held_labels"] == 0


def test_late_label_counts_from_then_on_and_may_flip() -> None:
    fraud = Fraud()
    fraud.apply(transaction(1, START))
    assert fraud.features(transaction(2, START + 8 * DAY))[0]["tf30"] == 0
    assert fraud.features(label(1, START + 10 * DAY), transaction(3, START + 10 * DAY))[0]["tf30"] == 1
    assert fraud.features(label(1, START + 11 * DAY, False), transaction(4, START + 11 * DAY))[0]["tf30"] == 0
    # older news change nothing, equal ones are replaced by the last
    assert fraud.features(label(1, START + 10 * DAY, True), transaction(5, START + 12 * DAY))[0]["tf30"] == 0
    assert fraud.features(label(1, START + 11 * DAY, True), transaction(6, START + 12 * DAY))[0]["tf30"] == 1


def test_label_of_an_unknown_transaction_waits_for_it() -> None:
    fraud = Fraud()
    _, received = fraud.apply(label(1, START), label(77, START), transaction(2, START + 7 * DAY))
    assert [found["status"] for found in received] == ["unknown_transaction"] * 2
    assert fraud.features(transaction(1, START))[0]["status"] == "computed"
    assert columns(fraud.features(transaction(3, START + 7 * DAY))[0], "tn1", "tf1") == (1, 1)


def test_duplicate_is_answered_and_changes_nothing() -> None:
    fraud = Fraud()
    fraud.apply(transaction(1, START))
    again = fraud.features(transaction(1, START), transaction(1, START + 5, amount=7))
    assert [columns(vector, "status", "cn1", "cs1") for vector in again] == [("duplicate", 0, 0)] * 2
    assert columns(fraud.features(transaction(2, START + 1))[0], "cn1", "cs1") == (2, 200)


def test_late_transaction_takes_its_place() -> None:
    fraud = Fraud()
    fraud.apply(transaction(1, START, amount=1), transaction(2, START + 2 * HOUR, amount=2))
    late, after = fraud.features(
        transaction(3, START + HOUR, amount=4), transaction(4, START + 2 * HOUR + MINUTE, amount=8)
    )
    assert columns(late, "status", "cn1", "cs1", "since_last") == ("computed", 2, 5, HOUR)
    assert columns(after, "cn1", "cs1", "cn1h", "cs1h", "since_last") == (4, 15, 2, 10, MINUTE)


def test_too_late_is_thirty_days_behind_card_or_terminal() -> None:
    fraud = Fraud()
    fraud.apply(transaction(1, START + 30 * DAY))
    assert fraud.features(transaction(2, START + 1))[0]["status"] == "computed"
    assert fraud.features(transaction(3, START))[0]["status"] == "too_late"
    assert fraud.features(transaction(4, START, customer_id=2))[0]["status"] == "too_late"
    assert fraud.features(transaction(5, START, customer_id=2, terminal_id=2))[0]["status"] == "computed"
    assert fraud.features(transaction(3, START))[0]["status"] == "duplicate"


@pytest.mark.parametrize(
    ("moment", "weekend", "night"),
    [
        (0, 1, 1), (7 * HOUR - 1, 1, 1), (7 * HOUR, 1, 0), (DAY - 1, 1, 0), (DAY, 0, 1), (6 * DAY - 1, 0, 0),
        (6 * DAY, 1, 1),
    ],
)  # fmt: skip
def test_weekend_and_night(moment: int, weekend: int, night: int) -> None:
    assert START // DAY % 7 == 3  # three days after a Thursday
    sunday = START
    assert columns(Fraud().features(transaction(1, sunday + moment))[0], "weekend", "night") == (weekend, night)


def test_profile_of_a_card() -> None:
    fraud = Fraud()
    names = ("merchants30", "new_device", "new_country", "new_merchant")
    first = {"device": "phone", "country": "FR", "merchant": "m1"}
    vectors = fraud.features(
        transaction(1, START, **first),
        transaction(2, START + DAY, **first | {"merchant": "m2"}),
        transaction(3, START + 2 * DAY),
        transaction(4, START + 3 * DAY, customer_id=2, **first),
        transaction(5, START + 30 * DAY, country="FR", device="tablet", merchant="m1"),
        transaction(6, START + 31 * DAY, country="DE", merchant="m1"),
    )
    assert [columns(vector, *names) for vector in vectors] == [
        (1, 1, 1, 1), (2, 0, 0, 1), (2, 0, 0, 0), (1, 1, 1, 1), (2, 1, 0, 1), (1, 0, 1, 0),
    ]  # fmt: skip


def test_amount_against_own_average() -> None:
    vectors = Fraud().features(transaction(1, START, amount=0), transaction(2, START, amount=300))
    assert [vector["amount_ratio"] for vector in vectors] == [0, 2_000]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("amount", -1), ("amount", 10**12 + 1), ("amount", None), ("event_time", -1),
        ("event_time", 7_258_118_400_000_001),
    ],
)  # fmt: skip
def test_bad_fields_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(FieldError, match=rf"events\[0\]\.{field}"):
        parse_events(codec_of("fraud.transactions"), [transaction(1, START) | {field: value}])


def test_a_frame_from_the_future_is_refused_whole() -> None:
    """Else one wrong clock would make a card's and a terminal's later transactions too late."""
    fraud = Fraud()
    produced = START + HOUR
    good, bad = (
        replace(transaction_frame([transaction(number, START), transaction(9, at)]), produced_at=produced)
        for number, at in ((1, produced + DAY), (2, produced + DAY + 1))
    )
    with pytest.raises(FrameError, match=r"event_in_the_future: events\[1\] has the event_time \d+, more than a day"):
        fraud.kernel.apply(bad)
    with pytest.raises(FrameError, match="event_in_the_future"):
        fraud.kernel.apply_many([good, bad])
    assert fraud.kernel.counts["ids"] == 0
    fraud.kernel.apply(good)
    assert fraud.kernel.counts["computed"] == 2
    # a label is held until its time, which may be a day ahead as well
    labels = Fraud()
    allowed, refused = (
        replace(transaction_frame([label(1, START), label(9, produced + ahead)]), produced_at=produced)
        for ahead in (DAY, DAY + 1)
    )
    with pytest.raises(FrameError, match=r"event_in_the_future: events\[1\]"):
        labels.kernel.apply(refused)
    assert labels.kernel.counts["labels"] == 0
    labels.kernel.apply(allowed)
    assert (labels.kernel.counts["labels"], labels.kernel.counts["held_labels"]) == (2, 2)


def test_empty_frame_is_answered() -> None:
    assert Fraud().apply() == ([], [])


def test_oldest_ids_are_forgotten_when_all_places_are_taken() -> None:
    fraud = Fraud(max_transactions=4)
    fraud.apply(*(transaction(number, START + number) for number in range(6)))
    statuses = [
        vector["status"] for vector in fraud.features(*(transaction(number, START + 9) for number in (2, 5, 0)))
    ]
    assert statuses == ["duplicate", "duplicate", "computed"]
    _, received = fraud.apply(label(1, START + 9), label(5, START + 9))
    assert [found["status"] for found in received] == ["unknown_transaction", "accepted"]


def test_full_columns_stop_the_job() -> None:
    with pytest.raises(CapacityExceeded, match="max_cards"):
        Fraud(max_cards=2).apply(*(transaction(number, START, customer_id=number) for number in range(3)))
    with pytest.raises(CapacityExceeded, match="max_entries"):
        Fraud(max_entries=1 << 5).apply(*(transaction(number, START) for number in range(64)))
    with pytest.raises(CapacityExceeded, match="max_held_labels"):
        Fraud(max_held_labels=2).apply(*(label(number, START) for number in range(3)))


def test_state_of_another_version_or_with_a_missing_page_is_refused() -> None:
    fraud = Fraud()
    fraud.apply(transaction(1, START), transaction(2, START + 1), label(1, START))
    pages = fraud.kernel.dirty_pages()
    with pytest.raises(StateVersionError, match="state version 2"):
        FraudKernel(**SMALL).restore(pages, 2)
    for missing in pages:
        if missing.startswith(("cards", "card_entries", "terminals", "terminal_entries", "transactions")):
            with pytest.raises(InvariantBroken, match="a stored page may be missing"):
                FraudKernel(**SMALL).restore({key: page for key, page in pages.items() if key != missing}, 1)


def test_state_rows_tell_what_is_known() -> None:
    fraud = Fraud()
    fraud.apply(transaction(7, START, 3, 4), transaction(8, START + 1, 3, 5), label(7, START), label(9, START + DAY))
    rows = list(fraud.kernel.state_rows())
    assert rows[0] == {
        "type": "Shard", "clock": START + 1, "cards": 1, "terminals": 2, "ids": 3, "held_labels": 1, "computed": 2,
        "duplicates": 0, "too_late": 0, "labels": 2,
    }  # fmt: skip
    assert rows[1] == {"type": "Card", "customer_id": 3, "newest": START + 1, "transactions": 2, "kept": 2}
    assert [row["terminal_id"] for row in rows[2:4]] == [4, 5]
    assert rows[4:] == [
        {"type": "Label", "transaction_id": 7, "event_time": START, "fraud": True, "transaction_known": True}
    ]


def test_records_fill_their_words() -> None:
    assert records.CARD_WINDOW_START + len(records.CARD_WINDOWS) <= records.RECORD_WORDS
    assert records.TERMINAL_FRAUDS + len(records.TERMINAL_WINDOWS) <= records.RECORD_WORDS
    assert records.TRANSACTION.itemsize == 64
    assert transaction_frame([]).events.rows.shape[0] == 0


def test_frames_applied_together_are_answered_as_one_by_one() -> None:
    details = {"device": "phone", "country": "FR", "merchant": "a shop"}
    frames = [
        transaction_frame([transaction(1, START, **details), label(1, START)]),
        transaction_frame([]),
        transaction_frame([label(2, START)]),
        transaction_frame([transaction(2, START, merchant="another"), transaction(3, START, **details)]),
    ]
    together = FraudKernel(**SMALL).apply_many(frames)
    alone = FraudKernel(**SMALL)
    for frame, outputs in zip(frames, together, strict=True):
        expected = alone.apply(frame)
        assert [output.topic for output in outputs] == [output.topic for output in expected]
        for output, wanted in zip(outputs, expected, strict=True):
            assert (output.events.rows == wanted.events.rows).all()
    assert FraudKernel(**SMALL).apply_many([]) == []


def test_replay_answers_each_line_and_what_came_before_a_bad_one() -> None:
    lines = [json.dumps(transaction(number, START + number)).encode() + b"\n" for number in range(3)]
    run = Replay(PIPELINES["fraud"], io.BytesIO(b"".join([*lines, b'{"type":"Transaction"}\n'])))
    found = []
    with pytest.raises(ReplayError, match="line 4"):
        found.extend(json.loads(line) for line in run.lines())
    assert [[vector["cn1"] for vector in line["events"]] for line in found] == [[1], [2], [3]]
    run = Replay(PIPELINES["fraud"], io.BytesIO(lines[0] + json.dumps(label(0, START)).encode()), all_topics=True)
    first, second = (json.loads(line) for line in run.lines())
    assert (len(first["events"]), first["other_topics"]) == (1, {"fraud.labels": []})
    assert (second["events"], len(second["other_topics"]["fraud.labels"])) == ([], 1)
