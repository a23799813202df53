"""A small trained model, a model server that can be made to fail, a scorer as a process, and what it decided."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from confluent_kafka import Consumer, TopicPartition
from numpy.typing import NDArray

from infra.kafka import kafka_options
from infra.registry import SchemaRegistry
from infra.settings import Settings
from jobs.fraud_backtest import numbered_frames
from jobs.registry_reader import registry_reader
from jobs.topic_reader import TopicReader
from models.fraud_dataset import FraudDataset
from models.fraud_registry import Registry
from models.fraud_training import Recipe
from models.fraud_workflow import train_and_register
from models.model_server import ModelServer
from pipelines.catalogue import TOPICS, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame
from pipelines.wire import unwrap, wrap
from tests.support.sinks import Record
from tests.support.stack import free_ports, variables

FEATURES = codec_of("fraud.features")

Decisions = list[dict[str, Any]]


def two_models(data: FraudDataset, folder: Path) -> Registry:
    """A registry of its own with a champion, version 1, and a challenger, version 2."""
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts")
    trees = Recipe(train_days=28, settings={"n_estimators": 20, "max_depth": 3})
    train_and_register(trees, data, registry, data_name="small world", starts=(136,))
    registry.promote()
    train_and_register(
        Recipe("logistic-regression", train_days=14), data, registry, data_name="small world", starts=(136,)
    )
    return registry


class FaultyModelServer:
    """The real model server on a port, in a thread; `mode` says what becomes of requests for scores.

    pass, slow (0.15 s), hang, server_error, garbage, wrong_count, refuse, cut (the connection is closed), killed
    (nobody listens, and what was connected is cut).
    """

    def __init__(self, registry: Registry, port: int) -> None:
        self._mode = "pass"
        self.asked = 0
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._registry = registry
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FaultyModelServer:
        self._thread.start()
        assert self._up.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self._loop.close()

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        before, self._mode = self._mode, mode
        if "killed" in {before, mode} and before != mode:
            asyncio.run_coroutine_threadsafe(self._listen(mode != "killed"), self._loop).result(30)

    async def _listen(self, up: bool) -> None:
        if up:
            self._site = web.TCPSite(self._runner, "127.0.0.1", self._port)
            await self._site.start()
            return
        await self._site.stop()
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        app = ModelServer(self._registry, poll_seconds=0.1).app()
        app.middlewares.append(self._fail)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await self._listen(True)
        self._up.set()
        await self._stop.wait()
        self._mode = "pass"
        await self._runner.cleanup()

    @web.middleware
    async def _fail(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if not request.path.endswith("/infer"):
            return await handler(request)
        self.asked += 1
        match self.mode:
            case "slow":
                await asyncio.sleep(0.15)
            case "hang":
                while self._mode == "hang":  # noqa: ASYNC110 - the test's thread changes it
                    await asyncio.sleep(0.05)
            case "server_error":
                return web.json_response({"error": "broken"}, status=500)
            case "garbage":
                return web.Response(body=b"\x00<html>", content_type="application/json")
            case "refuse":
                return web.json_response({"error": "not like this"}, status=400)
            case "cut":
                assert request.transport is not None
                request.transport.abort()
            case "wrong_count":
                good = json.loads((await handler(request)).body)
                good["outputs"][0]["data"].pop()
                return web.json_response(good)
        return await handler(request)


@contextmanager
def scoring(
    environment: Settings, log: Path, server: str = "", tracking_uri: str = "", **options: str
) -> Iterator[ScorerProcess]:
    """A scorer that is killed at the end, whatever happens."""
    process = ScorerProcess(environment, log, server, tracking_uri, **options)
    try:
        yield process
    finally:
        process.kill()


class ScorerProcess:
    """`streambank score` as a user runs it."""

    def __init__(self, environment: Settings, log: Path, server: str, tracking_uri: str, **options: str) -> None:
        self.web_port = free_ports(1, environment.host)[0]
        self.log = log
        self.base = f"http://{environment.host}:{self.web_port}"
        values = {f"STREAMBANK_SCORE_{name.upper()}": value for name, value in options.items()}
        values |= {
            "STREAMBANK_MODEL_SERVER": server, "STREAMBANK_MLFLOW_TRACKING_URI": tracking_uri,
            "STREAMBANK_SINK_WEB_PORT": str(self.web_port),
        }  # fmt: skip
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("streambank")), "score"],
                env={**variables(environment), **{name: value for name, value in values.items() if value}},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, and gone."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(120)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric over the lines that have these labels; 0 if it was never counted."""
        with urllib.request.urlopen(f"{self.base}/metrics", timeout=20) as response:  # noqa: S310
            lines = response.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.split("{")[0].split(" ")[0] == name
            and all(f'{key}="{value}"' in line for key, value in labels.items())
        )


def feature_frames(vectors: NDArray[np.void], shards: int, events: int) -> list[Frame]:
    """The vectors as a fraud job writes them: ``events`` of a shard, then of the next one, numbered per shard."""
    rows = vectors.view(np.int64).reshape(len(vectors), FEATURES.row_words)
    frames = []
    for number, start in enumerate(range(0, len(rows), events)):
        shard, sequence = number % shards, number // shards + 1
        frames.append(Frame("fraud.features", shard, sequence, 0, None, Events(rows[start : start + events].copy())))
    return frames


def records_of(environment: Settings, frames: Iterable[Frame]) -> list[Record]:
    """Kafka records of frames of one topic."""
    ids: dict[str, int] = {}
    found: list[Record] = []
    with SchemaRegistry(environment) as registry:
        for frame in frames:
            if frame.topic not in ids:
                ids[frame.topic] = registry.schema_id(TOPICS[frame.topic])
            found.append((frame.shard, wrap(ids[frame.topic], codec_of(frame.topic).encode(frame))))
    return found


def decided(environment: Settings, shards: Iterable[int] = range(4)) -> dict[int, dict[int, Decisions]]:
    """First decisions by shard and sequence, as a reader has them that drops what it has already applied."""
    topic = TOPICS["fraud.decisions"]
    codec = codec_of(topic.name)
    return {
        shard: {
            frame.sequence: list(render_events(codec, frame.events))
            for frame in numbered_frames(environment, topic, shard)
        }
        for shard in shards
    }


class DecisionLog:
    """First decisions as they come, by shard and sequence; one consumer, so that asking often is cheap."""

    def __init__(self, environment: Settings, shards: Iterable[int]) -> None:
        self.found: dict[int, dict[int, Decisions]] = {shard: {} for shard in shards}
        self._read = registry_reader(environment)
        self._consumer = Consumer({**kafka_options(environment), "group.id": "decision-log"})
        topic = environment.kafka_topic("fraud.decisions")
        self._consumer.assign([TopicPartition(topic, shard, 0) for shard in self.found])

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def take(self) -> dict[int, dict[int, Decisions]]:
        """All there are by now; of equal sequences the first."""
        codec = codec_of("fraud.decisions")
        for message in self._consumer.consume(500, timeout=0.1):
            assert message.error() is None, message.error()
            schema_id, body = unwrap(message.value())
            frame = self._read("fraud.decisions", schema_id).decode(body)
            self.found[frame.shard].setdefault(frame.sequence, list(render_events(codec, frame.events)))
        return self.found

    def count(self) -> int:
        """Frames that have decisions by now."""
        return sum(map(len, self.take().values()))


def all_frames(environment: Settings, topic: Topic, shards: Iterable[int] = range(4)) -> list[Frame]:
    """Every frame of a topic, repeats included, by shard and offset."""
    read = registry_reader(environment)
    found = []
    with TopicReader(environment) as reader:
        for shard in shards:
            for record in reader.read(topic, shard):
                schema_id, body = unwrap(record.value)
                found.append(read(topic.name, schema_id).decode(body))
    return found


def rescored(environment: Settings, shards: Iterable[int] = range(4)) -> Decisions:
    """Second decisions, in order of the topic."""
    topic = TOPICS["fraud.rescores"]
    return [
        event
        for frame in all_frames(environment, topic, shards)
        for event in render_events(codec_of(topic.name), frame.events)
    ]
