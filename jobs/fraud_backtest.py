"""A rule set over the history in Kafka: what it would have decided, and how much of what it hits was fraud.

Features and the scores of the first decisions are those that were; labels are as they are known now. Transactions
without a decision are left out. Only ids of what the rules hit and of frauds are kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infra.settings import Settings
from jobs.registry_reader import registry_reader
from jobs.topic_reader import TopicReader
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_FEATURES, FRAUD_LABELS, FRAUD_SHARDS, Topic
from pipelines.codec import codec_of
from pipelines.errors import FrameError
from pipelines.frames import Frame
from pipelines.fraud.decisions import Decision, UnknownPolicy, judge
from pipelines.fraud.records import Status
from pipelines.fraud.rules import RuleSet
from pipelines.wire import unwrap

__all__ = ["BackTest", "RuleFound", "backtest", "numbered_frames"]

_FEATURES = codec_of(FRAUD_FEATURES.name).event_type("FeatureVector").dtype
_DECISION = codec_of(FRAUD_DECISIONS.name).event_type("Decision").dtype
_LABEL = codec_of(FRAUD_LABELS.name).event_type("LabelReceived").dtype

_Id = tuple[int, int, int]
"""Shard and the two halves of a transaction id."""


@dataclass(frozen=True, slots=True)
class RuleFound:
    """What one rule hit; ``frauds`` of the ``hits`` are labelled fraud by now."""

    id: str
    shadow: bool
    hits: int
    frauds: int


@dataclass(frozen=True, slots=True)
class BackTest:
    """``decisions``: by kind, how many there were and how many there would have been."""

    transactions: int
    frauds: int
    decisions: dict[str, tuple[int, int]]
    rules: tuple[RuleFound, ...]


def backtest(
    settings: Settings, rules: RuleSet, shards: Sequence[int] | None = None, policy: UnknownPolicy | None = None
) -> BackTest:
    """See the module. Raises `jobs.topic_reader.TopicReadError` when Kafka is away."""
    policy = policy or UnknownPolicy()
    decided: set[_Id] = set()
    hit: list[set[_Id]] = [set() for _ in rules.rules]
    counts = {kind: [0, 0] for kind in Decision}
    frauds: set[_Id] = set()
    for shard in range(FRAUD_SHARDS) if shards is None else shards:
        frauds |= _frauds(settings, shard)
        features = numbered_frames(settings, FRAUD_FEATURES, shard)
        frame = next(features, None)
        for answer in numbered_frames(settings, FRAUD_DECISIONS, shard):
            while frame is not None and frame.sequence < answer.sequence:
                frame = next(features, None)
            if frame is None or frame.sequence != answer.sequence:
                continue  # the features are beyond their retention
            vectors = frame.events.view(_FEATURES)
            vectors = vectors[vectors["status"] != Status.duplicate]
            then = answer.events.view(_DECISION)
            judged = judge(vectors, then["score_is_set"] != 0, then["score"], rules, policy)
            ids = list(zip([shard] * len(then), *_halves(then), strict=True))
            decided.update(ids)
            for kind in Decision:
                counts[kind][0] += int((then["decision"] == kind).sum())
                counts[kind][1] += int((judged.decision == kind).sum())
            for found, row in zip(hit, judged.hits, strict=True):
                found.update(ids[position] for position in np.flatnonzero(row).tolist())
    return BackTest(
        len(decided),
        len(frauds & decided),
        {kind.name: (before, now) for kind, (before, now) in counts.items()},
        tuple(
            RuleFound(rule.id, rule.shadow, len(found), len(found & frauds))
            for rule, found in zip(rules.rules, hit, strict=True)
        ),
    )


def _halves(rows: np.ndarray[tuple[int], np.dtype[np.void]]) -> tuple[list[int], list[int]]:
    return rows["transaction_id_lo"].tolist(), rows["transaction_id_hi"].tolist()


def _frauds(settings: Settings, shard: int) -> set[_Id]:
    """Transactions whose newest label says fraud; of equal times the last to arrive."""
    newest: dict[_Id, tuple[int, bool]] = {}
    for frame in numbered_frames(settings, FRAUD_LABELS, shard):
        labels = frame.events.view(_LABEL)
        times, fraud = labels["event_time"].tolist(), labels["fraud"].tolist()
        for low, high, time, is_fraud in zip(*_halves(labels), times, fraud, strict=True):
            known = newest.get((shard, low, high))
            if known is None or time >= known[0]:
                newest[shard, low, high] = (time, bool(is_fraud))
    return {one for one, (_, is_fraud) in newest.items() if is_fraud}


def numbered_frames(settings: Settings, topic: Topic, shard: int) -> Iterator[Frame]:
    """The frames of a shard of a topic that one job writes, repeats dropped, unreadable records passed over."""
    read = registry_reader(settings)
    last = 0
    with TopicReader(settings) as reader:
        for record in reader.read(topic, shard):
            try:
                schema_id, body = unwrap(record.value)
                frame = read(topic.name, schema_id).decode(body)
            except FrameError:
                continue
            if frame.sequence > last:
                last = frame.sequence
                yield frame
