"""Kafka -> scorer -> Kafka: transactions decided per second, by the three ways to do it, and what they add to latency.

Ways: `streambank score` with the model server, `streambank score` with the model in its process, and the Flink job
with the model in it; each is the real one, in processes of its own, and so is the server. The model has the project's
own settings (400 trees, depth 5), trained on a small world: its figures do not matter, its cost does.

Frames of features lie in the topic before a scorer starts; the rate is that of Kafka's timestamps from the first
decision to the last: starting is not counted. The baseline of each way is the same one with one transaction per
record. "From transactions" is the whole way: Kafka -> fraud job -> Kafka -> scoring job -> Kafka, both jobs at work at
once on the same cores. Before a figure counts, every transaction must have been decided once, with a score.

Latency is measured at 2,000 transactions a second: from the moment at which a record of ten is due to that at which a
consumer has its decisions; beside it with records of one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from numpy.typing import NDArray

from bench.flink import BenchError, bench_environment, running_job
from bench.fraud import world
from bench.report import Measurement
from infra.kafka import kafka_options
from infra.settings import Settings
from models.fraud_dataset import FraudDataset, dataset_of
from models.fraud_registry import Registry
from models.fraud_training import Recipe
from models.fraud_workflow import train_and_register
from models.scoring import OnnxModel
from models.simulator import simulate
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_FEATURES, FRAUD_SHARDS, FRAUD_TRANSACTIONS
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.fraud.decisions import Scores, UnknownPolicy, decide
from pipelines.fraud.records import DAY
from pipelines.fraud.rules import DEFAULT_RULES
from pipelines.wire import unwrap, wrap

__all__ = ["measure"]

FRAME_EVENTS: Final = 500
FRAMES: Final = {"served": 1_000, "embedded": 2_000, "Flink job": 2_000}
LONE_RECORDS: Final = 8_000
"""Records of the baseline, with one transaction each."""
GOALS: Final = {"served": 30_000, "embedded": 100_000, "Flink job": 100_000}
WHOLE_WAY_EVENTS: Final = 1_000_000
LATENCY_FRAME_EVENTS: Final = 10
LATENCY_RATE: Final = 2_000
LATENCY_SECONDS: Final = 10.0
LATENCY_GOAL_MS: Final = 40.0
WARM_UP_SECONDS: Final = 30.0
STALL_SECONDS: Final = 120.0
DEADLINE_MS: Final = 60_000
"""Patience of the scorers: a rate must not depend on what is given up."""

_CODEC: Final = codec_of(FRAUD_FEATURES.name)
_VECTOR: Final = _CODEC.event_type("FeatureVector").dtype
_DECISIONS: Final = codec_of(FRAUD_DECISIONS.name)
_TRANSACTIONS: Final = codec_of(FRAUD_TRANSACTIONS.name)

Way = Callable[[Settings], Any]
"""A context manager that runs a scorer in an environment; what it gives waits until the scorer is ready."""


def measure(settings: Settings) -> list[Measurement]:
    """Needs Kafka, the registry and Flink of ``settings`` running."""
    with tempfile.TemporaryDirectory() as folder:
        data = dataset_of(simulate(customers=150, terminals=300))
        models = Registry(f"sqlite:///{folder}/mlflow.db", Path(folder) / "artifacts")
        train_and_register(Recipe(train_days=28), data, models, data_name="small world", starts=(136,))
        version = models.promote()
        found = [_alone(OnnxModel(models.exported(version)), data)]
        own = settings.model_copy(update={"mlflow_tracking_uri": models.tracking_uri})
        with _model_server(own) as server:
            ways: dict[str, Way] = {
                "served": lambda environment: _scorer(environment, server),
                "embedded": lambda environment: _scorer(environment, ""),
                "Flink job": _scoring_job,
            }
            found += [_latency(own, data, name, way) for name, way in ways.items()]
            found += [_rate(own, data, name, way) for name, way in ways.items()]
        found.append(_whole_way(own))
    return found


def _alone(model: OnnxModel, data: FraudDataset) -> Measurement:
    """Scores and decisions of frames, without Kafka, on one thread."""
    vectors = data.vectors[:FRAME_EVENTS]
    rounds, decided = 200, 0
    for warm in (True, False):
        began = time.process_time()
        for _ in range(10 if warm else rounds):
            scores = Scores(model.score_vectors(vectors), 1)
            decided += len(decide(vectors, scores, DEFAULT_RULES, UnknownPolicy(), model="fraud", scored_at=0))
    seconds = time.process_time() - began
    began = time.process_time()
    for _ in range(rounds):
        model.score_vectors(vectors)
    scoring = time.process_time() - began
    return Measurement(
        "score and decide, frames of 500",
        round(rounds * FRAME_EVENTS / seconds),
        "tx/s of CPU",
        check=f"{decided:,} decisions",
        detail={"model_share": round(scoring / seconds, 3)},
    )


def _rate(settings: Settings, data: FraudDataset, name: str, way: Way) -> Measurement:
    rate = _backlog_rate(settings, data, way, FRAMES[name], FRAME_EVENTS)
    lone = _backlog_rate(settings, data, way, LONE_RECORDS, 1)
    return Measurement(
        f"Kafka -> {name} -> Kafka",
        round(rate),
        "tx/s",
        baseline=round(lone),
        baseline_name="one transaction per record",
        ratio=round(rate / lone, 1),
        goal=f">= {GOALS[name]:,}/s",
        met=rate >= GOALS[name],
        check=f"{FRAMES[name] * FRAME_EVENTS:,} transactions, each decided once with a score",
        detail={"frame_events": FRAME_EVENTS, "frames": FRAMES[name]},
    )


def _backlog_rate(settings: Settings, data: FraudDataset, way: Way, frames: int, events: int) -> float:
    """Transactions a second from the first decisions to the last."""
    with bench_environment(settings) as (environment, ids):
        producer = _producer(environment)
        for number in range(frames):
            _send(environment, producer, ids, _frame(data, number, events))
        if producer.flush(60):
            raise BenchError("Kafka did not take the frames within 60 s")
        with way(environment):
            stamps, known = _decisions(environment, frames)
    if known != frames * events:
        raise BenchError(f"{known} of {frames * events} transactions have a score")
    first, last = stamps.min(), stamps.max()
    return float((stamps > first).sum() * events / max((last - first) / 1000, 1e-3))


def _whole_way(settings: Settings) -> Measurement:
    """Transactions of 5,000 cards in four portfolios, with labels, by both jobs; the windows fill on the way."""
    rows = world(5_000, 10_000, WHOLE_WAY_EVENTS, 90 * DAY, 1)
    per_shard = []
    transactions = rows.view(_TRANSACTIONS.event_type("Transaction").dtype)[:, 0]
    for shard in range(FRAUD_SHARDS):
        own = transactions["transaction_id_lo"] % FRAUD_SHARDS == shard  # a label goes where its transaction went
        per_shard.append(np.ascontiguousarray(rows[own]))
    with bench_environment(settings) as (environment, ids):
        producer = _producer(environment)
        frames = [len(range(0, len(own), FRAME_EVENTS)) for own in per_shard]
        for number in range(max(frames)):
            for shard, own in enumerate(per_shard):
                run = own[number * FRAME_EVENTS : (number + 1) * FRAME_EVENTS]
                if len(run):
                    frame = Frame(FRAUD_TRANSACTIONS.name, shard, 0, time.time_ns() // 1000, None, Events(run))
                    _send(environment, producer, ids, frame)
        if producer.flush(60):
            raise BenchError("Kafka did not take the transactions within 60 s")
        with running_job(environment, {}, "fraud_scoring"), running_job(environment, {}, "fraud"):
            stamps, known = _decisions(environment, max(frames) * FRAUD_SHARDS, sum(frames))
    if known != WHOLE_WAY_EVENTS:
        raise BenchError(f"{known} of {WHOLE_WAY_EVENTS} transactions have a score")
    stamps = np.sort(stamps[stamps > 0])
    rate = WHOLE_WAY_EVENTS / len(stamps) * (len(stamps) - 1) / max((stamps[-1] - stamps[0]) / 1000, 1e-3)
    return Measurement(
        "Kafka -> features -> Flink job -> Kafka, from transactions",
        round(rate),
        "tx/s",
        goal=">= 100,000/s",
        met=rate >= 100_000,
        check=f"{known:,} transactions, each decided once with a score",
        detail={"frame_events": FRAME_EVENTS, "frames": sum(frames)},
    )


def _latency(settings: Settings, data: FraudDataset, name: str, way: Way) -> Measurement:
    middle, high, check = _delays(settings, data, way, LATENCY_FRAME_EVENTS)
    lone_middle, lone_high, _ = _delays(settings, data, way, 1)
    goal = name == "served"
    return Measurement(
        f"added latency at {LATENCY_RATE:,} tx/s, {name}, p99",
        round(high, 1),
        "ms",
        baseline=round(lone_high, 1),
        baseline_name=f"one transaction per record, p50 {lone_middle:.1f} ms",
        ratio=round(lone_high / max(high, 1.0), 1),
        goal=f"<= {LATENCY_GOAL_MS:g} ms" if goal else "",
        met=high <= LATENCY_GOAL_MS if goal else None,
        check=f"{check}; p50 {middle:.1f} ms",
        detail={"frame_events": LATENCY_FRAME_EVENTS, "p50_ms": round(middle, 1)},
    )


def _delays(settings: Settings, data: FraudDataset, way: Way, events: int) -> tuple[float, float, str]:
    """p50 and p99 in milliseconds, and how many transactions had a score."""
    count = int(LATENCY_RATE / events * (LATENCY_SECONDS + WARM_UP_SECONDS))
    due = np.zeros(count)
    with (
        bench_environment(settings) as (environment, ids),
        way(environment) as ready,
        ThreadPoolExecutor(1) as pool,
    ):
        producer = _producer(environment)
        _send(environment, producer, ids, _frame(data, 0, events))
        producer.flush(30)
        _decisions(environment, 1)
        ready()
        watching = pool.submit(_arrivals, environment, count)
        start = time.time() + 1.0
        for number in range(1, count):
            due[number] = start + number * events / LATENCY_RATE
            while (left := due[number] - time.time()) > 0:
                producer.poll(min(left, 0.01))
            _send(environment, producer, ids, _frame(data, number, events))
        producer.flush(30)
        arrived = watching.result()
        _, known = _decisions(environment, count)
    warm = int(WARM_UP_SECONDS * LATENCY_RATE / events)
    middle, high = np.percentile((arrived - due)[warm:] * 1000, [50, 99]).tolist()
    return middle, high, f"{known:,} of {count * events:,} with a score"


def _arrivals(environment: Settings, frames: int) -> NDArray[np.float64]:
    """When a consumer had each frame's decisions, in seconds, by frame number."""
    arrived = np.zeros(frames)
    found: list[tuple[float, bytes]] = []
    with _decision_consumer(environment) as consumer:
        deadline = time.monotonic() + STALL_SECONDS
        while len(found) < frames and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                found.append((time.time(), message.value()))
                deadline = time.monotonic() + STALL_SECONDS
    for moment, value in reversed(found):  # of what comes twice the first one counts
        arrived[_number(_DECISIONS.decode(unwrap(value)[1]))] = moment
    if not arrived.all():
        raise BenchError(f"{np.count_nonzero(arrived)} of {frames} frames decided")
    return arrived


def _number(decisions: Frame) -> int:
    """That of the frame of features that they answer."""
    return (decisions.sequence - 1) * FRAUD_SHARDS + decisions.shard


@contextmanager
def _decision_consumer(environment: Settings) -> Iterator[Any]:
    consumer = Consumer({**kafka_options(environment), "group.id": "bench"})
    name = environment.kafka_topic(FRAUD_DECISIONS.name)
    try:
        consumer.assign([TopicPartition(name, shard, 0) for shard in range(FRAUD_SHARDS)])
        yield consumer
    finally:
        consumer.close()


def _frame(data: FraudDataset, number: int, events: int) -> Frame:
    """Frame number ``number`` (from 0) of all shards in turn, its transaction ids its own."""
    start = number * events % (len(data) - events)
    vectors = data.vectors[start : start + events].copy()
    vectors["transaction_id_lo"] = np.arange(number * events, (number + 1) * events)
    rows = vectors.view(np.int64).reshape(events, _CODEC.row_words)
    shard, sequence = number % FRAUD_SHARDS, number // FRAUD_SHARDS + 1
    return Frame(FRAUD_FEATURES.name, shard, sequence, time.time_ns() // 1000, None, Events(rows))


def _producer(environment: Settings) -> Any:
    return Producer({**kafka_options(environment), "acks": "all", "linger.ms": 0})


def _send(environment: Settings, producer: Any, ids: dict[str, int], frame: Frame) -> None:
    value = wrap(ids[frame.topic], codec_of(frame.topic).encode(frame))
    topic = environment.kafka_topic(frame.topic)
    producer.produce(topic, value, key=str(frame.shard).encode(), partition=frame.shard)
    producer.poll(0)


def _decisions(environment: Settings, frames: int, wanted: int | None = None) -> tuple[NDArray[np.float64], int]:
    """Kafka's time of each frame's decisions in milliseconds, by frame number (0 where there is none), and how many
    have a score; once ``wanted`` of the ``frames`` are there, by default all."""
    wanted = frames if wanted is None else wanted
    stamps = np.zeros(frames)
    seen: set[int] = set()
    known = 0
    kind = _DECISIONS.event_type("Decision").dtype
    with _decision_consumer(environment) as consumer:
        deadline = time.monotonic() + STALL_SECONDS
        while len(seen) < wanted:
            for message in consumer.consume(200, timeout=0.2):
                if message.error() is not None:
                    raise BenchError(message.error().str())
                frame = _DECISIONS.decode(unwrap(message.value())[1])
                number = _number(frame)
                if number in seen or number >= frames:
                    continue
                seen.add(number)
                stamps[number] = message.timestamp()[1]
                known += int((frame.events.view(kind)["score_is_set"] != 0).sum())
                deadline = time.monotonic() + STALL_SECONDS
            if time.monotonic() > deadline:
                raise BenchError(f"{len(seen)} of {wanted} frames decided, and none came for {STALL_SECONDS:.0f} s")
    return stamps, known


@contextmanager
def _process(environment: Settings, *arguments: str, **variables: str) -> Iterator[None]:
    values = environment.variables()
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("streambank")), *arguments],
            env={**os.environ, **values, **variables},
            stdout=log,
            stderr=log,
        )
        try:
            yield
        except BenchError as error:
            raise BenchError(f"{error}; the process said: {Path(log.name).read_text()[-2000:]}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _scorer(environment: Settings, server: str) -> Iterator[Callable[[], None]]:
    port = environment.faust_web_port + 29
    variables = {"STREAMBANK_SINK_WEB_PORT": str(port), "STREAMBANK_SCORE_DEADLINE_MS": str(DEADLINE_MS)}
    if server:
        variables["STREAMBANK_MODEL_SERVER"] = server
    with _process(environment, "score", **variables):
        yield lambda: _wait_for(f"http://{environment.host}:{port}/health")


@contextmanager
def _scoring_job(environment: Settings) -> Iterator[Callable[[], None]]:
    with running_job(environment, {}, "fraud_scoring"):
        yield lambda: None


@contextmanager
def _model_server(settings: Settings) -> Iterator[str]:
    port = settings.faust_web_port + 30
    url = f"http://127.0.0.1:{port}"
    with _process(settings, "model", "serve", "--port", str(port)):
        _wait_for(f"{url}/v2/health/ready")
        yield url


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + STALL_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
                if answer.status == 200:
                    return
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchError(f"{url} does not answer: {error}") from error
        time.sleep(0.1)
