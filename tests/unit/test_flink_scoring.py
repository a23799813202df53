"""What the scoring job does with each record, without Flink and Kafka; `test_fraud_scoring` runs it on them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.settings import Settings
from jobs import flink_scoring
from jobs.flink_scoring import ScoringFunction, ScoringSettings
from pipelines.catalogue import TOPICS
from pipelines.codec import codec_of
from pipelines.errors import FrameError
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame
from pipelines.fraud.decisions import Scores
from pipelines.fraud.records import Status
from pipelines.fraud.rules import DEFAULT_RULES
from pipelines.shard import SequenceGap
from pipelines.wire import unwrap, wrap

FEATURES, DECISIONS = codec_of("fraud.features"), codec_of("fraud.decisions")
IDS = {name: number for number, name in enumerate(TOPICS, 1)}


class Champion:
    """Gives the amount in millionths as the score."""

    model = "fraud"

    def score_now(self, vectors: NDArray[np.void]) -> Scores:
        return Scores(vectors["amount"] / 1e6, 7)


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def inc(self, number: int) -> None:
        self.count += number


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch) -> ScoringFunction:
    """A task that finds sequence 3 of every shard decided."""
    rules = SimpleNamespace(rules=DEFAULT_RULES)
    monkeypatch.setattr(flink_scoring, "_follow", lambda _config: SimpleNamespace(scorer=Champion(), rules=rules))
    monkeypatch.setattr(flink_scoring, "_last_sequence", lambda *_: 3)
    monkeypatch.setattr(flink_scoring, "registry_reader", lambda _config: lambda topic, _schema: codec_of(topic))
    made = ScoringFunction(Settings(topic_prefix="t."), IDS, ScoringSettings().policy())
    group = SimpleNamespace(counter=lambda _name: Counter())
    made.prepare(SimpleNamespace(get_metrics_group=lambda: group))
    return made


def record(sequence: int, *statuses: Status, shard: int = 2) -> bytes:
    rows = FEATURES.new_rows(len(statuses))
    vectors = rows.view(FEATURES.event_type("FeatureVector").dtype)[:, 0]
    vectors["transaction_id_lo"] = np.arange(len(statuses)) + 10 * sequence
    vectors["status"], vectors["amount"] = statuses, 400_000
    return wrap(1, FEATURES.encode(Frame("fraud.features", shard, sequence, 0, None, Events(rows))))


def decided(rows: list[Any]) -> list[tuple[int, list[tuple[str, str, str]]]]:
    """(sequence, decisions) of the rows that go to Kafka."""
    found = []
    for topic, shard, value in rows:
        assert (topic, shard) == ("t.fraud.decisions", 2)
        schema_id, body = unwrap(value)
        assert schema_id == IDS["fraud.decisions"]
        frame = DECISIONS.decode(body)
        events = render_events(DECISIONS, frame.events)
        found.append(
            (frame.sequence, [(str(one["transaction_id"]), one["decision"], one["unknown_reason"]) for one in events])
        )
    return found


def test_what_was_decided_before_is_dropped_and_the_rest_answered_in_order(function: ScoringFunction) -> None:
    answers = [function.apply(2, record(sequence, Status.computed)) for sequence in (2, 3, 4, 4, 5, 4)]
    assert [decided(rows) for rows in answers] == [
        [], [], [(4, [("40", "review", "none")])], [], [(5, [("50", "review", "none")])], [],
    ]  # fmt: skip


def test_duplicates_have_no_decision_and_what_came_too_late_no_score(function: ScoringFunction) -> None:
    rows = function.apply(2, record(4, Status.computed, Status.duplicate, Status.too_late))
    assert decided(rows) == [(4, [("40", "review", "none"), ("42", "review", "too_late")])]
    assert decided(function.apply(2, record(5, Status.too_late))) == [(5, [("50", "review", "too_late")])]
    assert decided(function.apply(2, record(6))) == [(6, [])]


def test_a_missing_frame_stops_the_shard_unless_a_record_was_unreadable(
    function: ScoringFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be read is answered by frames without decisions."""
    before = {(2, 3, 5): 1}  # what another task set aside
    monkeypatch.setattr(flink_scoring, "unreadable_between", lambda _config, _read, *place: before.pop(place, 0))
    with pytest.raises(SequenceGap, match="sequence 7 follows 3; 3 frames are missing"):
        function.apply(2, record(7, Status.computed))
    assert decided(function.apply(2, record(5, Status.computed))) == [(4, []), (5, [("50", "review", "none")])]
    with pytest.raises(SequenceGap, match="sequence 7 follows 5; 1 frames are missing"):
        function.apply(2, record(7, Status.computed))
    for value, reason in (
        (b"nothing", "not_avro"),
        (record(6, Status.computed, shard=1), "wrong_shard"),
        (record(0, Status.computed), "no_sequence"),
    ):
        with pytest.raises(FrameError, match=reason):
            function.apply(2, value)
    function.set_aside(2, FrameError("truncated", "for the test"))
    assert decided(function.apply(2, record(7, Status.computed))) == [(6, []), (7, [("70", "review", "none")])]
    assert function.apply(2, record(6, Status.computed)) == []
    with pytest.raises(SequenceGap):
        function.apply(2, record(9, Status.computed))


def test_settings_are_those_of_the_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMBANK_SCORE_UNKNOWN", "block")
    monkeypatch.setenv("STREAMBANK_SCORE_UNKNOWN_ABOVE", "7")
    policy = ScoringSettings().policy()
    assert (policy.decision.name, policy.above) == ("block", 7)
    monkeypatch.setenv("STREAMBANK_SCORE_UNKNOWN", "perhaps")
    with pytest.raises(ValueError, match="unknown"):
        ScoringSettings()
