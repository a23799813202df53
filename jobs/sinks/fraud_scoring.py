"""Frames of features into frames of decisions: scored, judged by the rules, and written to Kafka.

A decision frame has the sequence of the features frame that it answers, and its record carries the position behind that
frame. So the output topic itself knows how far the work is: a scorer that was killed goes on behind the last decision
that Kafka has. What it had sent without knowing is sent again under the same sequence, and readers drop it; the first
decision of a sequence is the one that counts, even where a later one would have found the model awake.

A record that is no frame becomes a dead letter. The next frame shows which sequence is missing, and that is answered by
a decision frame without decisions, so that readers of fraud.decisions find no gap.

Within ``deadline_seconds`` of the moment at which a frame was taken in hand all its transactions are decided, by score
or by the policy for UNKNOWN. Those without a score are scored again when the model answers (bounded in number and in
age), and the second decisions go to fraud.rescores, in the order of the first ones. A scorer that starts looks up in
both topics which ones its predecessor left. One that follows the Flink job (`jobs.flink_scoring`), whose records carry
no position, finds it by the sequence.

Needs a scorer: `models.fraud_scorers` has one that asks the model server and one with the model in the process.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from typing import Any, ClassVar, Final, Protocol, TypeVar

import numpy as np
import prometheus_client
import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition
from numpy.typing import NDArray

from infra.kafka import kafka_options, make_producer, watermarks
from infra.registry import SchemaRegistry
from infra.settings import Settings
from jobs.fraud_positions import offset_behind
from jobs.fraud_rules import RuleFollower
from jobs.registry_reader import registry_reader
from jobs.sinks.base import Addition, Position, Sink, StoreUnavailable
from jobs.topic_reader import TopicReadError
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_FEATURES, FRAUD_RESCORES, Topic
from pipelines.codec import codec_of
from pipelines.errors import FrameError, StreambankError
from pipelines.frames import Events, Frame
from pipelines.fraud.decisions import Decision, Scores, UnknownPolicy, UnknownReason, decide
from pipelines.fraud.records import Status
from pipelines.fraud.rules import RuleSet
from pipelines.wire import unwrap, wrap

__all__ = ["FraudScoringSink", "Scorer", "ScoringOptions"]

CALL_SECONDS: Final = 15.0
REQUEST_EVENTS: Final = 500
"""Frames at hand are scored together up to so many transactions; a larger frame is scored alone."""
RESCORE_REQUESTS: Final = 4
"""Requests for second scores at once, at most: first decisions must not wait behind them."""
POSITION_HEADER: Final = "position"
"""Next offset, sequence and unreadable records, as decimal numbers with blanks between."""

DECISIONS = prometheus_client.Counter("streambank_fraud_decisions_total", "First decisions.", ["decision"])
UNKNOWN = prometheus_client.Counter("streambank_fraud_unknown_total", "First decisions without a score.", ["reason"])
RESCORED = prometheus_client.Counter("streambank_fraud_rescored_total", "Decisions made again with a score.")
GIVEN_UP = prometheus_client.Counter("streambank_fraud_rescore_given_up_total", "Never scored: too many or too old.")
WAITING = prometheus_client.Gauge("streambank_fraud_rescore_waiting", "Transactions that wait for a score.")
CIRCUIT_OPEN = prometheus_client.Gauge("streambank_fraud_circuit_open", "1 while the model server is not asked.")
RULE_SET = prometheus_client.Gauge("streambank_fraud_rule_set_version", "Version of the rules in force.")
SCORE_SECONDS = prometheus_client.Histogram(
    "streambank_fraud_score_seconds", "From a frame in hand to its decisions.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 1.0),
)  # fmt: skip

_FEATURES: Final = codec_of(FRAUD_FEATURES.name).event_type("FeatureVector").dtype
_DECISION: Final = codec_of(FRAUD_DECISIONS.name).event_type("Decision").dtype
_NO_DECISIONS: Final = Events(codec_of(FRAUD_DECISIONS.name).new_rows(0))

_Frame = TypeVar("_Frame")

log = structlog.get_logger("streambank.scoring")


class Scorer(Protocol):
    """Gives scores to feature vectors. `score` never raises and keeps to its seconds."""

    model: str

    @property
    def circuit_is_open(self) -> bool:
        """Whether it would not ask now."""

    async def open(self) -> None:
        """Prepare."""

    async def close(self) -> None:
        """Release."""

    async def score(self, vectors: NDArray[np.void], seconds: float) -> Scores:
        """Scores, or the reason why there are none."""


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """Times in seconds."""

    deadline_seconds: float = 0.25
    policy: UnknownPolicy = field(default_factory=UnknownPolicy)
    rescore_seconds: float = 600.0
    """Age at which a transaction without a score is given up."""
    rescore_events: int = 200_000
    """Transactions that wait for a score, at most; the oldest are given up."""
    rescore_interval_seconds: float = 0.5


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Vectors of one frame without scores."""

    shard: int
    vectors: NDArray[np.void]
    since: float


class FraudScoringSink(Sink):
    """See the module."""

    name: ClassVar[str] = "fraud-scoring"
    topic: ClassVar[Topic] = FRAUD_FEATURES
    web_port_offset: ClassVar[int] = 20

    def __init__(self, settings: Settings, scorer: Scorer, options: ScoringOptions | None = None) -> None:
        super().__init__()
        self._settings = settings
        self._scorer = scorer
        self._options = options or ScoringOptions()
        self._rules: RuleFollower | None = None
        self._producer: Any = None
        self._schema_ids: dict[str, int] = {}
        self._waiting: deque[_Waiting] = deque()
        self._rescoring: asyncio.Task[None] | None = None
        self._inherited: dict[int, int] = {}
        """Partitions whose earlier decisions may lack a score, with the end of their decisions when we came."""
        self._taken_over: set[int] = set()

    async def open(self) -> None:
        try:
            await asyncio.to_thread(self._open)
        except (StreambankError, KafkaException) as error:
            raise StoreUnavailable(str(error)) from error
        await self._scorer.open()
        self._rescoring = asyncio.create_task(self._rescore_forever())

    def _open(self) -> None:
        with SchemaRegistry(self._settings) as registry:
            for topic in (FRAUD_DECISIONS, FRAUD_RESCORES):
                self._schema_ids[topic.name] = registry.schema_id(topic)
        if self._rules is None:
            self._rules = RuleFollower(self._settings, lambda rules: RULE_SET.set(rules.version)).__enter__()
        # No message times out: a later one must never overtake it. While Kafka is away the sink waits.
        self._producer = make_producer(self._settings, "score", delivery_seconds=None)

    async def close(self) -> None:
        if self._rescoring is not None:
            self._rescoring.cancel()
            await asyncio.gather(self._rescoring, return_exceptions=True)
        await self._scorer.close()
        if self._rules is not None:
            await asyncio.to_thread(self._rules.__exit__, None, None, None)

    @property
    def rules(self) -> RuleSet:
        """The rules in force."""
        assert self._rules is not None, "open() comes first"
        return self._rules.rules

    async def load_positions(self, partitions: Collection[int]) -> Mapping[int, Position]:
        try:
            return await asyncio.to_thread(self._load_positions, sorted(partitions))
        except (KafkaException, TopicReadError) as error:
            raise StoreUnavailable(f"Kafka: {error}") from error

    def _load_positions(self, partitions: Sequence[int]) -> Mapping[int, Position]:
        """From the last decision record of each partition."""
        name = self._settings.kafka_topic(FRAUD_DECISIONS.name)
        found = {}
        with self._consumer() as consumer:
            for partition in partitions:
                _, end = watermarks(consumer, TopicPartition(name, partition))
                found[partition] = Position(partition)
                if end == 0:
                    self._taken_over.add(partition)
                    continue
                if partition not in self._taken_over:
                    self._inherited.setdefault(partition, end)
                consumer.assign([TopicPartition(name, partition, end - 1)])
                messages = consumer.consume(1, timeout=CALL_SECONDS)
                if not messages or messages[0].error() is not None:
                    raise TopicReadError(f"{name} {partition}: the record at {end - 1} does not come")
                position = _position(partition, messages[0])
                found[partition] = position or self._behind_the_job(partition, messages[0].value())
        return found

    def _behind_the_job(self, partition: int, decided: bytes) -> Position:
        """Where `jobs.flink_scoring` stopped, whose records have no position: behind the features of its last frame."""
        read = registry_reader(self._settings)
        try:
            schema_id, body = unwrap(decided)
            sequence = read(FRAUD_DECISIONS.name, schema_id).decode(body).sequence
        except FrameError as error:
            raise TopicReadError(f"partition {partition}: the last decision was not written by a scorer") from error
        return Position(partition, offset_behind(self._settings, read, partition, sequence), sequence)

    async def write(self, additions: Sequence[Addition], *, rehearse: bool = False) -> None:
        if rehearse:
            return
        began = time.monotonic()
        frames = [addition for addition in additions if addition.after.sequence != addition.before.sequence]
        runs = list(_runs(frames, lambda addition: len(addition.events)))
        decided = await asyncio.gather(*(self._first_decisions([one.events for one in run]) for run in runs))
        sent = _Sent()
        for run, (_, decisions) in zip(runs, decided, strict=True):
            for addition, events in zip(run, decisions, strict=True):
                for position in _unread(addition.before, addition.after.sequence):
                    self._produce_first(position, _NO_DECISIONS, None, sent)
                self._produce_first(addition.after, events, addition.trace, sent)
        await self._all_taken(sent)
        SCORE_SECONDS.observe(time.monotonic() - began)
        CIRCUIT_OPEN.set(self._scorer.circuit_is_open)
        for run, (scores, decisions) in zip(runs, decided, strict=True):
            _count(decisions)
            if scores.champion is None:
                for addition in run:
                    self._keep(addition.after.partition, addition.events, began)

    def _produce_first(self, position: Position, events: Events, trace: str | None, sent: _Sent) -> None:
        """First decisions, which go as far as ``position``."""
        words = f"{position.next_offset} {position.sequence} {position.unreadable_records}"
        headers = {POSITION_HEADER: words.encode()}
        self._produce(FRAUD_DECISIONS, position.partition, position.sequence, events, headers, sent, trace)

    async def _first_decisions(self, frames: Sequence[Events]) -> tuple[Scores, list[Events]]:
        """The scores of all frames together, asked for at once, and the decisions of each."""
        vectors = np.concatenate([events.rows for events in frames]).view(_FEATURES)[:, 0]
        if (vectors["status"] == Status.computed).any():
            scores = await self._scorer.score(vectors, self._options.deadline_seconds)
        else:
            scores = Scores(np.zeros(len(vectors)))
        return scores, self._split(self._decide(vectors, scores), frames)

    def _split(self, decisions: Events, frames: Sequence[Events]) -> list[Events]:
        """The decisions of each frame; a duplicate has none."""
        return _cut(decisions, [int((events.view(_FEATURES)["status"] != Status.duplicate).sum()) for events in frames])

    def _decide(self, vectors: NDArray[np.void], scores: Scores, *, rescored: bool = False) -> Events:
        return decide(
            vectors,
            scores,
            self.rules,
            self._options.policy,
            model=self._scorer.model,
            scored_at=time.time_ns() // 1000,
            rescored=rescored,
        )

    def _produce(
        self,
        topic: Topic,
        shard: int,
        sequence: int,
        events: Events,
        headers: dict[str, bytes],
        sent: _Sent,
        trace: str | None = None,
    ) -> None:
        frame = Frame(topic.name, shard, sequence, time.time_ns() // 1000, trace, events)
        value = wrap(self._schema_ids[topic.name], codec_of(topic.name).encode(frame))
        sent.waiting += 1
        self._producer.produce(
            self._settings.kafka_topic(topic.name),
            value,
            key=str(shard).encode(),
            partition=shard,
            headers=headers,
            on_delivery=sent.answered,
        )

    async def _all_taken(self, sent: _Sent) -> None:
        """Wait until Kafka has everything on all replicas."""
        while sent.waiting and not sent.errors:
            await asyncio.to_thread(self._producer.flush, 1.0)
        if sent.errors:
            await asyncio.to_thread(self._open)
            raise StoreUnavailable(f"Kafka did not take a decision: {sent.errors[0]}")

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        """Decide events that were set aside; their decisions go to fraud.rescores, their sequence being over."""
        _, (decided,) = await self._first_decisions([events])
        sent = _Sent()
        self._produce(FRAUD_RESCORES, shard, 0, decided, {}, sent)
        await self._all_taken(sent)

    # --- scoring again

    def _keep(self, shard: int, events: Events, since: float) -> None:
        vectors = events.view(_FEATURES)
        without = vectors[vectors["status"] == Status.computed]
        if len(without):
            self._waiting.append(_Waiting(shard, without, since))
        count = sum(len(one.vectors) for one in self._waiting)
        while count > self._options.rescore_events:
            given_up = len(self._waiting.popleft().vectors)
            count -= given_up
            GIVEN_UP.inc(given_up)
        WAITING.set(count)

    async def _rescore_forever(self) -> None:
        """Try the oldest now and then; while the model answers, go on with the next ones at once. A try is also what
        finds out that a server is back when no transactions come."""
        while True:
            await asyncio.sleep(self._options.rescore_interval_seconds)
            try:
                while self._inherited:
                    shard, end = next(iter(self._inherited.items()))
                    self._waiting.extendleft(reversed(await asyncio.to_thread(self._left_by_predecessor, shard, end)))
                    self._taken_over.add(shard)
                    del self._inherited[shard]
                while self._waiting and await self._rescore_oldest():
                    pass
            except (StoreUnavailable, StreambankError, KafkaException) as error:
                log.warning("rescores_wait", detail=str(error))
            except Exception:
                log.exception("rescoring_failed")

    async def _rescore_oldest(self) -> bool:
        """Score the oldest again by some requests at once, or by one alone until the model is known to answer. Whether
        all of them were answered; what comes after one that was not is asked again, so that none overtakes it."""
        while self._waiting and time.monotonic() - self._waiting[0].since > self._options.rescore_seconds:
            GIVEN_UP.inc(len(self._waiting.popleft().vectors))
        most = 1 if self._scorer.circuit_is_open else RESCORE_REQUESTS
        runs = list(islice(_runs(self._waiting, lambda waiting: len(waiting.vectors)), most))
        asked = [_joined([waiting.vectors for waiting in run]) for run in runs]
        answers = await asyncio.gather(
            *(self._scorer.score(vectors, self._options.deadline_seconds) for vectors in asked)
        )
        answered = list(takewhile(lambda one: one[2].champion is not None, zip(runs, asked, answers, strict=True)))
        sent = _Sent()
        done: set[int] = set()
        for run, vectors, scores in answered:
            decisions = self._decide(vectors, scores, rescored=True)
            for waiting, events in zip(run, _cut(decisions, [len(one.vectors) for one in run]), strict=True):
                self._produce(FRAUD_RESCORES, waiting.shard, 0, events, {}, sent)
                done.add(id(waiting))
        await self._all_taken(sent)
        RESCORED.inc(sum(len(vectors) for _, vectors, _ in answered))
        while self._waiting and id(self._waiting[0]) in done:  # some may have been pushed out meanwhile
            self._waiting.popleft()
        WAITING.set(sum(len(one.vectors) for one in self._waiting))
        return len(answered) == len(runs)

    def _left_by_predecessor(self, shard: int, end: int) -> list[_Waiting]:
        """Vectors of the first decisions before offset ``end`` that have no score and no second decision, not older
        than `ScoringOptions.rescore_seconds`."""
        since = int((time.time() - self._options.rescore_seconds) * 1000)
        read = registry_reader(self._settings)
        without: dict[int, set[tuple[int, int]]] = {}
        last = 0
        with self._consumer() as consumer:
            for message in self._records(consumer, FRAUD_DECISIONS, shard, since, end):
                position = _position(shard, message)
                schema_id, body = unwrap(message.value())
                frame = read(FRAUD_DECISIONS.name, schema_id).decode(body)
                if frame.sequence <= last or position is None:
                    continue  # sent twice: the first one counts
                last = frame.sequence
                rows = frame.events.view(_DECISION)
                rows = rows[(rows["score_is_set"] == 0) & (rows["unknown_reason"] != UnknownReason.too_late)]
                if len(rows):
                    without[position.next_offset - 1] = set(_ids(rows))
            if not without:
                return []
            done: set[tuple[int, int]] = set()
            for message in self._records(consumer, FRAUD_RESCORES, shard, since):
                schema_id, body = unwrap(message.value())
                done.update(_ids(read(FRAUD_RESCORES.name, schema_id).decode(body).events.view(_DECISION)))
            found = []
            first = min(without)
            for message in self._records(consumer, FRAUD_FEATURES, shard, None, max(without) + 1, first):
                wanted = without.get(message.offset(), set()) - done
                if not wanted:
                    continue
                schema_id, body = unwrap(message.value())
                vectors = read(FRAUD_FEATURES.name, schema_id).decode(body).events.view(_FEATURES)
                chosen = np.array([identity in wanted for identity in _ids(vectors)], np.bool_)
                chosen &= vectors["status"] == Status.computed
                if chosen.any():
                    found.append(_Waiting(shard, vectors[chosen], time.monotonic()))
        log.info("taken_over", shard=shard, without_score=sum(len(one.vectors) for one in found))
        return found

    @contextmanager
    def _consumer(self) -> Iterator[Any]:
        consumer = Consumer(
            {
                **kafka_options(self._settings),
                "group.id": self._settings.kafka_topic("fraud-scoring-positions"),  # required, never joined
                "enable.auto.commit": False,
            }
        )
        try:
            yield consumer
        finally:
            consumer.close()

    def _records(
        self, consumer: Any, topic: Topic, shard: int, since: int | None, end: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        """Records of a partition from ``start``, or the first one not before ``since`` (milliseconds), to ``end``."""
        name = self._settings.kafka_topic(topic.name)
        first, last = watermarks(consumer, TopicPartition(name, shard))
        end = last if end is None else min(end, last)
        if since is not None:
            (place,) = consumer.offsets_for_times([TopicPartition(name, shard, since)], timeout=CALL_SECONDS)
            start = place.offset if place.offset >= 0 else end
        offset = max(start, first)
        if offset >= end:
            return
        consumer.assign([TopicPartition(name, shard, offset)])
        while offset < end:
            messages = consumer.consume(min(500, end - offset), timeout=CALL_SECONDS)
            if not messages:
                raise TopicReadError(f"{name} {shard}: the record at {offset} does not come")
            for message in messages:
                if message.error() is not None:
                    raise TopicReadError(f"{name} {shard}: {message.error().str()}")
                offset = message.offset() + 1
                if offset > end:
                    return
                yield message


def _runs(frames: Iterable[_Frame], size: Callable[[_Frame], int]) -> Iterator[list[_Frame]]:
    """The frames in order, as many together as make a request worth its while. ``size``: transactions of one."""
    run: list[_Frame] = []
    events = 0
    for frame in frames:
        if run and events + size(frame) > REQUEST_EVENTS:
            yield run
            run, events = [], 0
        run.append(frame)
        events += size(frame)
    if run:
        yield run


def _joined(parts: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    """Vectors one behind the other, shape (n,)."""
    rows = np.concatenate([vectors.view(np.int64).reshape(len(vectors), -1) for vectors in parts])
    joined: NDArray[np.void] = rows.view(_FEATURES)[:, 0]
    return joined


def _cut(decisions: Events, counts: Sequence[int]) -> list[Events]:
    """Decisions as runs of so many."""
    ends = np.cumsum(counts).tolist()
    return [Events(decisions.rows[end - count : end], decisions.heap) for count, end in zip(counts, ends, strict=True)]


def _unread(before: Position, sequence: int) -> Iterator[Position]:
    """Positions of the frames between ``before`` and ``sequence``, which are among the records that were no frames."""
    for skipped, missing in enumerate(range(before.sequence + 1, sequence), 1):
        yield replace(before, sequence=missing, unreadable_records=before.unreadable_records - skipped)


def _position(partition: int, message: Any) -> Position | None:
    """The position in a decision record's header."""
    numbers = dict(message.headers() or []).get(POSITION_HEADER, b"").split()
    return Position(partition, *map(int, numbers)) if len(numbers) == 3 else None


def _ids(rows: NDArray[np.void]) -> list[tuple[int, int]]:
    return list(zip(rows["transaction_id_hi"].tolist(), rows["transaction_id_lo"].tolist(), strict=True))


class _Sent:
    """Records on their way; the producer's thread calls `answered`."""

    def __init__(self) -> None:
        self.waiting = 0
        self.errors: list[str] = []

    def answered(self, error: Any, _message: Any) -> None:
        self.waiting -= 1
        if error is not None:
            self.errors.append(str(error))


def _count(frames: Sequence[Events]) -> None:
    decisions = np.concatenate([events.rows for events in frames]).view(_DECISION)[:, 0]
    for kind, count in zip(*np.unique(decisions["decision"], return_counts=True), strict=True):
        DECISIONS.labels(Decision(kind).name).inc(int(count))
    for reason, count in zip(*np.unique(decisions["unknown_reason"], return_counts=True), strict=True):
        if reason != UnknownReason.none:
            UNKNOWN.labels(UnknownReason(reason).name).inc(int(count))
