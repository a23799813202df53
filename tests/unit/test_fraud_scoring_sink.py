"""What the scorer asks and writes, without a model and Kafka; `test_fraud_scoring` runs it on both."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.settings import Settings
from jobs.sinks.base import Addition, Position
from jobs.sinks.fraud_scoring import REQUEST_EVENTS, RESCORE_REQUESTS, FraudScoringSink, ScoringOptions
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_RESCORES
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events
from pipelines.fraud.decisions import Scores, UnknownReason
from pipelines.fraud.rules import DEFAULT_RULES
from pipelines.wire import unwrap

FEATURES = codec_of("fraud.features")
VECTOR = FEATURES.event_type("FeatureVector").dtype


class Model:
    """Gives the amount in millionths as the score, a request of an amount in ``fails`` excepted."""

    model = "fraud"

    def __init__(self) -> None:
        self.circuit_is_open = False
        self.fails: set[int] = set()
        self.requests: list[list[int]] = []
        self.at_once = self.most_at_once = 0
        self.was_asked = asyncio.Event()

    async def score(self, vectors: NDArray[np.void], seconds: float) -> Scores:
        del seconds
        amounts = vectors["amount"].tolist()
        self.requests.append(amounts)
        self.was_asked.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.fails & set(amounts):
            return Scores(None, reason=UnknownReason.timeout)
        return Scores(vectors["amount"] / 1e6, 7)


class Log:
    """Takes records as Kafka's producer does."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int, int, list[int], str, str | None]] = []
        """Topic, shard, sequence, amounts of the decisions, position, trace."""

    def produce(self, topic: str, value: bytes, *, headers: dict[str, bytes], on_delivery: Any, **place: Any) -> None:
        codec = codec_of(topic.removeprefix("t."))
        frame = codec.decode(unwrap(value)[1])
        assert (place["key"], place["partition"]) == (str(frame.shard).encode(), frame.shard)
        amounts = [one["amount"] for one in render_events(codec, frame.events)]
        position = headers.get("position", b"").decode()
        self.records.append((topic[2:], frame.shard, frame.sequence, amounts, position, frame.trace))
        on_delivery(None, None)

    def flush(self, seconds: float) -> None:
        del seconds


def events(*amounts: int) -> Events:
    rows = FEATURES.new_rows(len(amounts))
    vectors = rows.view(VECTOR)[:, 0]
    vectors["amount"], vectors["transaction_id_lo"] = amounts, amounts
    return Events(rows)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def sink(model: Model, log: Log) -> FraudScoringSink:
    made = FraudScoringSink(Settings(topic_prefix="t."), model, ScoringOptions(rescore_seconds=600.0))
    made._producer = log
    made._rules = SimpleNamespace(rules=DEFAULT_RULES)  # type: ignore[assignment]
    made._schema_ids = {FRAUD_DECISIONS.name: 1, FRAUD_RESCORES.name: 2}
    return made


async def test_what_waits_is_scored_by_some_large_requests_at_once_in_its_order(
    sink: FraudScoringSink, model: Model, log: Log
) -> None:
    now = time.monotonic()
    frames = [tuple(range(10 * number, 10 * number + 10)) for number in range(400)]
    for number, amounts in enumerate(frames):
        sink._keep(number % 2, events(*amounts), now)
    while sink._waiting:
        assert await sink._rescore_oldest()
    assert (len(model.requests), model.most_at_once) == (4_000 // REQUEST_EVENTS, RESCORE_REQUESTS)
    assert {len(request) for request in model.requests} == {REQUEST_EVENTS}
    assert log.records == [
        ("fraud.rescores", number % 2, 0, list(amounts), "", None) for number, amounts in enumerate(frames)
    ]


async def test_nothing_overtakes_what_was_not_answered(sink: FraudScoringSink, model: Model, log: Log) -> None:
    now = time.monotonic()
    sink._keep(0, events(9), now - 700)  # too old
    for number in range(3):
        sink._keep(0, events(*range(1000 * number, 1000 * number + REQUEST_EVENTS)), now)
    model.fails, model.circuit_is_open = {0}, True
    assert not await sink._rescore_oldest()
    assert [request[0] for request in model.requests] == [0]  # one alone tries whether the model answers
    model.fails, model.circuit_is_open = {1000}, False
    assert not await sink._rescore_oldest()
    assert [record[3][0] for record in log.records] == [0]
    model.fails = set()
    assert await sink._rescore_oldest()
    assert [record[3][0] for record in log.records] == [0, 1000, 2000]
    assert not sink._waiting


async def test_what_is_pushed_out_while_it_is_asked_for_takes_nothing_with_it(model: Model, log: Log) -> None:
    sink = FraudScoringSink(Settings(topic_prefix="t."), model, ScoringOptions(rescore_events=3))
    sink._producer, sink._schema_ids = log, {FRAUD_RESCORES.name: 2}
    sink._rules = SimpleNamespace(rules=DEFAULT_RULES)  # type: ignore[assignment]
    now = time.monotonic()
    sink._keep(0, events(1, 2), now)
    asked = asyncio.create_task(sink._rescore_oldest())
    await model.was_asked.wait()
    sink._keep(0, events(3, 4), now)
    assert await asked
    assert [waiting.vectors["amount"].tolist() for waiting in sink._waiting] == [[3, 4]]


async def test_frames_that_could_not_be_read_are_answered_without_decisions(sink: FraudScoringSink, log: Log) -> None:
    trace = f"00-{'1' * 32}-{'2' * 16}-01"
    read, unread, gone = Position(2, 10, 5), Position(2, 11, 5, 1), Position(2, 12, 5, 2)
    await sink.write([
        Addition(events(), read, unread), Addition(events(), unread, gone),
        Addition(events(1, 2), gone, Position(2, 13, 8), trace=trace),
        Addition(events(3), Position(2, 13, 8), Position(2, 14, 9)),
    ])  # fmt: skip
    assert log.records == [
        ("fraud.decisions", 2, 6, [], "12 6 1", None),
        ("fraud.decisions", 2, 7, [], "12 7 0", None),
        ("fraud.decisions", 2, 8, [1, 2], "13 8 0", trace),
        ("fraud.decisions", 2, 9, [3], "14 9 0", None),
    ]
