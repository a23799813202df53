"""Kafka -> scorer -> Kafka: transactions decided per second, with the model in the process and with the model server.

The scorer is the real one (`streambank score`), a process of its own, and so is the server (`streambank model serve`).
The model has the project's own settings (300 trees, depth 5), trained on a small world: its figures do not matter,
its cost does. Frames of features lie in the topic before the scorer starts; the rate is that of Kafka's timestamps from
the first decision to the last: starting is not counted. Before a figure counts, every transaction must have been
decided once, with a score. The latency is measured at 2,000 transactions a second: from the moment at which a frame of
ten is given to the producer to Kafka's timestamp of its decisions, in whole milliseconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from numpy.typing import NDArray

from bench.report import Measurement
from infra import registry, topics
from infra.settings import Settings
from models.fraud_dataset import FraudDataset, dataset_of
from models.fraud_registry import Registry
from models.fraud_training import Recipe
from models.fraud_workflow import train_and_register
from models.scoring import OnnxModel
from models.simulator import simulate
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_FEATURES, FRAUD_SHARDS, TOPICS
from pipelines.codec import codec_of
from pipelines.errors import StreambankError
from pipelines.frames import Events, Frame
from pipelines.fraud.decisions import Scores, UnknownPolicy, decide
from pipelines.fraud.rules import DEFAULT_RULES
from pipelines.wire import unwrap, wrap

__all__ = ["measure"]

FRAME_EVENTS: Final = 500
FRAMES: Final = {"embedded": 2_000, "served": 800}
GOALS: Final = {"embedded": 100_000, "served": 30_000}
LATENCY_FRAME_EVENTS: Final = 10
LATENCY_RATE: Final = 2_000
LATENCY_SECONDS: Final = 20.0
LATENCY_GOAL_MS: Final = 40.0
WARM_UP_SECONDS: Final = 5.0
STALL_SECONDS: Final = 120.0

_CODEC: Final = codec_of(FRAUD_FEATURES.name)
_VECTOR: Final = _CODEC.event_type("FeatureVector").dtype
_DECISIONS: Final = codec_of(FRAUD_DECISIONS.name)


class BenchError(StreambankError):
    """A run did not finish, or not every transaction was decided with a score."""


def measure(settings: Settings) -> list[Measurement]:
    """Needs Kafka and the registry of ``settings`` running."""
    with tempfile.TemporaryDirectory() as folder:
        data = dataset_of(simulate(customers=150, terminals=300))
        models = Registry(f"sqlite:///{folder}/mlflow.db", Path(folder) / "artifacts")
        train_and_register(Recipe(train_days=28), data, models, data_name="small world", starts=(136,))
        version = models.promote()
        found = [_alone(OnnxModel(models.exported(version)), data)]
        with _model_server(settings, models) as server:
            for name, url in (("embedded", ""), ("served", server)):
                found.append(_rate(settings, models, data, name, url))
            for name, url in (("embedded", ""), ("served", server)):
                found.append(_latency(settings, models, data, name, url))
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


def _rate(settings: Settings, models: Registry, data: FraudDataset, name: str, server: str) -> Measurement:
    frames = FRAMES[name]
    with _environment(settings) as (environment, ids):
        _fill(environment, ids, data, frames)
        with _scorer(environment, models, server):
            stamps, known = _decisions(environment, frames)
    if known != frames * FRAME_EVENTS:
        raise BenchError(f"{known} of {frames * FRAME_EVENTS} transactions have a score")
    first, last = stamps.min(), stamps.max()
    rate = float((stamps > first).sum() * FRAME_EVENTS / max((last - first) / 1000, 1e-3))
    return Measurement(
        f"Kafka -> scorer -> Kafka, {name}",
        round(rate),
        "tx/s",
        goal=f">= {GOALS[name]:,}/s",
        met=rate >= GOALS[name],
        check=f"{known:,} transactions, each decided once with a score",
        detail={"frame_events": FRAME_EVENTS, "frames": frames},
    )


def _latency(settings: Settings, models: Registry, data: FraudDataset, name: str, server: str) -> Measurement:
    count = int(LATENCY_RATE / LATENCY_FRAME_EVENTS * (LATENCY_SECONDS + WARM_UP_SECONDS))
    sent = np.zeros(count)
    with _environment(settings) as (environment, ids), _scorer(environment, models, server) as ready:
        producer = _producer(environment)
        _send(environment, producer, ids, _frame(data, 0, LATENCY_FRAME_EVENTS))
        producer.flush(30)
        _decisions(environment, 1)
        ready()
        start = time.time() + 0.1
        for number in range(1, count):
            due = start + number * LATENCY_FRAME_EVENTS / LATENCY_RATE
            while (left := due - time.time()) > 0:
                producer.poll(min(left, 0.01))
            frame = _frame(data, number, LATENCY_FRAME_EVENTS)
            sent[number] = time.time() * 1000
            _send(environment, producer, ids, frame)
        producer.flush(30)
        stamps, known = _decisions(environment, count)
    warm = int(WARM_UP_SECONDS * LATENCY_RATE / LATENCY_FRAME_EVENTS)
    milliseconds = (stamps - sent)[warm:]
    middle, high = np.percentile(milliseconds, [50, 99]).tolist()
    goal = name == "served"
    return Measurement(
        f"added latency at {LATENCY_RATE:,} tx/s, {name}, p99",
        round(high, 1),
        "ms",
        goal=f"<= {LATENCY_GOAL_MS:g} ms" if goal else "",
        met=high <= LATENCY_GOAL_MS if goal else None,
        check=f"{known:,} of {count * LATENCY_FRAME_EVENTS:,} with a score; p50 {middle:.1f} ms",
        detail={"frame_events": LATENCY_FRAME_EVENTS, "p50_ms": round(middle, 1)},
    )


def _frame(data: FraudDataset, number: int, events: int) -> Frame:
    """Frame number ``number`` (from 0) of all shards in turn, its transaction ids its own."""
    start = number * events % (len(data) - events)
    vectors = data.vectors[start : start + events].copy()
    vectors["transaction_id_lo"] = np.arange(number * events, (number + 1) * events)
    rows = vectors.view(np.int64).reshape(events, _CODEC.row_words)
    shard, sequence = number % FRAUD_SHARDS, number // FRAUD_SHARDS + 1
    return Frame(FRAUD_FEATURES.name, shard, sequence, time.time_ns() // 1000, None, Events(rows))


def _fill(environment: Settings, ids: dict[str, int], data: FraudDataset, frames: int) -> None:
    producer = _producer(environment)
    for number in range(frames):
        _send(environment, producer, ids, _frame(data, number, FRAME_EVENTS))
    if producer.flush(60):
        raise BenchError("Kafka did not take the frames within 60 s")


def _producer(environment: Settings) -> Any:
    return Producer({"bootstrap.servers": environment.kafka_bootstrap, "acks": "all", "linger.ms": 0})


def _send(environment: Settings, producer: Any, ids: dict[str, int], frame: Frame) -> None:
    value = wrap(ids[FRAUD_FEATURES.name], _CODEC.encode(frame))
    topic = environment.kafka_topic(FRAUD_FEATURES.name)
    producer.produce(topic, value, key=str(frame.shard).encode(), partition=frame.shard)
    producer.poll(0)


def _decisions(environment: Settings, frames: int) -> tuple[NDArray[np.float64], int]:
    """Kafka's time of each frame's decisions in milliseconds, by frame number, and how many have a score."""
    stamps = np.zeros(frames)
    seen: set[int] = set()
    known = 0
    consumer = Consumer({"bootstrap.servers": environment.kafka_bootstrap, "group.id": "bench"})
    kind = _DECISIONS.event_type("Decision").dtype
    name = environment.kafka_topic(FRAUD_DECISIONS.name)
    try:
        consumer.assign([TopicPartition(name, shard, 0) for shard in range(FRAUD_SHARDS)])
        deadline = time.monotonic() + STALL_SECONDS
        while len(seen) < frames:
            for message in consumer.consume(200, timeout=0.2):
                if message.error() is not None:
                    raise BenchError(message.error().str())
                frame = _DECISIONS.decode(unwrap(message.value())[1])
                number = (frame.sequence - 1) * FRAUD_SHARDS + frame.shard
                if number in seen or number >= frames:
                    continue
                seen.add(number)
                stamps[number] = message.timestamp()[1]
                known += int((frame.events.view(kind)["score_is_set"] != 0).sum())
                deadline = time.monotonic() + STALL_SECONDS
            if time.monotonic() > deadline:
                raise BenchError(f"{len(seen)} of {frames} frames decided, and none came for {STALL_SECONDS:.0f} s")
    finally:
        consumer.close()
    return stamps, known


@contextmanager
def _environment(settings: Settings) -> Iterator[tuple[Settings, dict[str, int]]]:
    environment = settings.model_copy(update={"topic_prefix": f"bench_{uuid.uuid4().hex[:8]}."})
    topics.apply(environment)
    try:
        yield environment, {topic.name: registry.register(topic, environment) for topic in TOPICS.values()}
    finally:
        admin = AdminClient({"bootstrap.servers": environment.kafka_bootstrap})
        names = [environment.kafka_topic(name) for name in TOPICS]
        for deleted in admin.delete_topics(names, operation_timeout=30).values():
            deleted.result()


@contextmanager
def _process(environment: Settings, *arguments: str, **variables: str) -> Iterator[None]:
    values = {f"STREAMBANK_{name.upper()}": str(value) for name, value in environment.model_dump().items()}
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
def _scorer(environment: Settings, models: Registry, server: str) -> Iterator[Any]:
    port = environment.faust_web_port + 29
    variables = {
        "STREAMBANK_MLFLOW_TRACKING_URI": models.tracking_uri, "STREAMBANK_MODEL_SERVER": server,
        "STREAMBANK_SINK_WEB_PORT": str(port), "STREAMBANK_SCORE_DEADLINE_MS": "5000",
    }  # fmt: skip
    with _process(environment, "score", **{name: value for name, value in variables.items() if value}):
        yield lambda: _wait_for(f"http://{environment.host}:{port}/health")


@contextmanager
def _model_server(settings: Settings, models: Registry) -> Iterator[str]:
    port = settings.faust_web_port + 30
    url = f"http://127.0.0.1:{port}"
    with _process(settings, "model", "serve", "--port", str(port), "--tracking-uri", models.tracking_uri):
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
