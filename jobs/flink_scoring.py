"""Decides card transactions in a Flink job: fraud.features -> model in the process, rules -> fraud.decisions.

The other way to do what `jobs.sinks.fraud_scoring` does: no server and no deadline, for the model is in the job. Both
make the same decisions of the same log, with the same settings; they differ in ``scored_at`` alone. Only one of them
should run at a time, and either goes on where the other one stopped.

- Order and numbering: a decision frame has the sequence of the features frame that it answers.
- Delivery: where the work stands is what fraud.decisions holds, not Flink's state. At its first record a shard looks up
  the last sequence decided and drops what is not behind it, so that a job that starts again, with a savepoint or
  without, decides nothing twice. What was still on its way when a task died is written again under the same sequence,
  and readers drop it.
- Model and rules are followed while the job runs, by threads that all tasks of a process share. PyFlink does not tell a
  function that its job was cancelled, so they live until the TaskManager is restarted.
- Without a champion, or with one that cannot read the vectors, decisions are UNKNOWN. There are no second decisions:
  a model in the process does not come back, and `streambank score` scores again only what it decided itself.
- A record that is no frame becomes a dead letter. The next frame shows which sequence is missing, and that is answered
  by a decision frame without decisions, so that readers of fraud.decisions find no gap. More missing sequences than
  records that are no frames restart the job until somebody looks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from threading import Lock
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic_settings import BaseSettings, SettingsConfigDict
from pyflink.common import Row
from pyflink.datastream import RuntimeContext, StreamExecutionEnvironment

from infra.registry import schema_ids
from infra.settings import Settings, settings
from jobs.flink_runtime import FrameFunction, add_dataflow, configure
from jobs.fraud_positions import features_frame, unreadable_between
from jobs.fraud_rules import RuleFollower
from jobs.registry_reader import registry_reader
from jobs.topic_reader import TopicReader, TopicReadError
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_FEATURES, SERVICES
from pipelines.codec import codec_of
from pipelines.errors import FrameError
from pipelines.frames import Events, Frame
from pipelines.fraud.decisions import Decision, Scores, UnknownPolicy, decide
from pipelines.fraud.records import Status
from pipelines.shard import SequenceGap
from pipelines.wire import unwrap, wrap

__all__ = ["ScoringFunction", "ScoringSettings", "run"]

SERVICE: Final = SERVICES["fraud_scoring"]
SCORER: Final = "models.fraud_scorers:following_scorer"
"""Makes the scorer; by name, because jobs do not import models."""

_FEATURES: Final = codec_of(FRAUD_FEATURES.name).event_type("FeatureVector").dtype
_DECISIONS: Final = codec_of(FRAUD_DECISIONS.name)
_NO_DECISIONS: Final = Events(_DECISIONS.new_rows(0))


class ScoringSettings(BaseSettings):
    """Read when the job is submitted, from the variables that `streambank score` reads too."""

    model_config = SettingsConfigDict(env_prefix="STREAMBANK_SCORE_", frozen=True)

    unknown: Literal["approve", "review", "block"] = "review"
    """Decision of a transaction without a score,"""
    unknown_above: int = 10_000
    """where its amount is above so many cents."""

    def policy(self) -> UnknownPolicy:
        return UnknownPolicy(Decision[self.unknown], self.unknown_above)


class _Scorer(Protocol):
    model: str

    def score_now(self, vectors: NDArray[np.void]) -> Scores: ...


@dataclass(frozen=True, slots=True)
class _Followed:
    """What changes while a job runs."""

    scorer: _Scorer
    rules: RuleFollower


_followed: dict[Settings, _Followed] = {}
_following: Final = Lock()


def _follow(config: Settings) -> _Followed:
    """Model and rules of an environment, one of each per process. Raises what registry and Kafka raise."""
    with _following:
        if config not in _followed:
            module, _, attribute = SCORER.partition(":")
            scorer: _Scorer = getattr(import_module(module), attribute)(config.mlflow_uri)
            _followed[config] = _Followed(scorer, RuleFollower(config).__enter__())
        return _followed[config]


class ScoringFunction(FrameFunction):
    """Frames of features into frames of decisions, shard by shard."""

    def __init__(self, config: Settings, ids: Mapping[str, int], policy: UnknownPolicy) -> None:
        super().__init__(SERVICE.name, FRAUD_FEATURES, SERVICE.outputs, SERVICE.dead_letters, config, ids)
        self._policy = policy
        self._last: dict[int, int] = {}
        """Last sequence decided, by shard."""
        self._unreadable: dict[int, int] = {}
        """Records set aside since then, each of which may have been a frame; what an earlier task set aside is not in
        it."""

    def prepare(self, runtime_context: RuntimeContext) -> None:
        self._read = registry_reader(self._config)
        self._now = _follow(self._config)
        group = runtime_context.get_metrics_group()
        self._metrics: dict[str, Any] = {
            name: group.counter(name) for name in ("frames", "transactions", "unknown", "dead_letters")
        }

    def apply(self, partition: int, value: bytes) -> list[Row]:
        frame = features_frame(self._read, partition, value)
        missing = self._missing(frame)
        if missing is None:
            return []
        answers = [self._encoded(partition, sequence, _NO_DECISIONS) for sequence in missing]
        answers.append(self._decide(frame))
        self._last[partition] = frame.sequence
        self._unreadable[partition] = 0
        return [Row(self._names[FRAUD_DECISIONS.name], partition, answer) for answer in answers]

    def set_aside(self, partition: int, error: FrameError) -> None:
        self._unreadable[partition] = self._unreadable.get(partition, 0) + 1
        self._metrics["dead_letters"].inc(1)

    def _missing(self, frame: Frame) -> range | None:
        """The sequences before the frame that could not be read, or None when it was decided before. Raises
        `SequenceGap`."""
        shard = frame.shard
        last = self._last.get(shard)
        if last is None:
            last = self._last[shard] = _last_sequence(self._config, self._read, shard)
        if frame.sequence <= last:
            return None
        missing = range(last + 1, frame.sequence)
        if len(missing) > self._unreadable.get(shard, 0):  # an earlier task may have set them aside
            unreadable = unreadable_between(self._config, self._read, shard, last, frame.sequence)
            if len(missing) > unreadable:
                raise SequenceGap(
                    f"{FRAUD_FEATURES.name} shard {shard}: sequence {frame.sequence} follows {last}; "
                    f"{len(missing) - unreadable} frames are missing"
                )
        return missing

    def _decide(self, frame: Frame) -> bytes:
        vectors = frame.events.view(_FEATURES)
        if (vectors["status"] == Status.computed).any():
            scores = self._now.scorer.score_now(vectors)
        else:
            scores = Scores(np.zeros(len(vectors)))
        now = time.time_ns() // 1000
        model = self._now.scorer.model
        events = decide(vectors, scores, self._now.rules.rules, self._policy, model=model, scored_at=now)
        self._metrics["frames"].inc(1)
        self._metrics["transactions"].inc(len(events))
        if scores.champion is None:
            self._metrics["unknown"].inc(len(events))
        return self._encoded(frame.shard, frame.sequence, events, frame.trace)

    def _encoded(self, shard: int, sequence: int, events: Events, trace: str | None = None) -> bytes:
        answer = Frame(FRAUD_DECISIONS.name, shard, sequence, time.time_ns() // 1000, trace, events)
        return wrap(self._schema_ids[FRAUD_DECISIONS.name], _DECISIONS.encode(answer))


def _last_sequence(config: Settings, read: Any, shard: int) -> int:
    """Sequence of the last decision frame of a shard; 0 if there is none. Raises `TopicReadError`."""
    name = FRAUD_DECISIONS.name
    with TopicReader(config) as reader:
        first, end = reader.bounds(FRAUD_DECISIONS, shard)
        record = next(reader.read(FRAUD_DECISIONS, shard, max(first, end - 1), end), None)
    if record is None:
        return 0
    try:
        schema_id, body = unwrap(record.value)
        return int(read(name, schema_id).decode(body).sequence)
    except FrameError as error:  # not the features' fault: nothing must be set aside for it
        raise TopicReadError(f"{name} {shard}: its last record, {record.offset}, is no frame: {error}") from error


def run() -> None:
    """Submit the job, detached; what the job file calls."""
    config = settings()
    environment = StreamExecutionEnvironment.get_execution_environment()
    configure(SERVICE.name, environment, config)
    ids = schema_ids((*SERVICE.outputs, SERVICE.dead_letters), config)
    function = ScoringFunction(config, ids, ScoringSettings().policy())
    add_dataflow(environment, config, SERVICE.name, FRAUD_FEATURES, function)
    environment.execute_async(config.kafka_topic(SERVICE.name))
