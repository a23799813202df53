"""Scoring on the real stack: a decision for every transaction, whatever the model server does and whoever is killed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.settings import Settings
from models.fraud_dataset import FraudDataset, dataset_of
from models.fraud_registry import Registry
from models.fraud_scorers import EmbeddedScorer
from models.simulator import simulate
from pipelines.catalogue import FRAUD_DECISIONS
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Frame
from pipelines.fraud.decisions import Scores, UnknownPolicy, decide
from pipelines.fraud.rules import DEFAULT_RULES
from tests.support.fraud_scoring import (
    DecisionLog,
    FaultyModelServer,
    all_frames,
    decided,
    feature_frames,
    prepare_fraud,
    records_of,
    rescored,
    scoring,
    two_models,
)
from tests.support.sinks import send
from tests.support.stack import PrivateStack, free_ports, variables
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.stack,
    pytest.mark.timeout(300),
    # MLflow and what it imports use functions that their libraries have deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

VECTORS = codec_of("fraud.features").event_type("FeatureVector").dtype
SHARDS = 2
DEADLINE_MS = 1000.0


@pytest.fixture(scope="module")
def data() -> FraudDataset:
    return dataset_of(simulate(customers=150, terminals=300))


@pytest.fixture(scope="module")
def registry(data: FraudDataset, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return two_models(data, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry")
    prepare_fraud(environment)
    return environment


@pytest.fixture(scope="module")
def server(registry: Registry) -> Iterator[FaultyModelServer]:
    with FaultyModelServer(registry, free_ports(1)[0]) as served:
        yield served


@pytest.fixture(scope="module")
def frames(data: FraudDataset) -> list[Frame]:
    """400 frames of 10 transactions in two shards."""
    return feature_frames(data.vectors[-4000:], SHARDS, 10)


def plain(decisions: Any) -> list[dict[str, Any]]:
    """Without the time of the decision, which no two runs share."""
    return [{name: value for name, value in one.items() if name != "scored_at"} for one in decisions]


def expected(registry: Registry, frames: list[Frame]) -> list[list[dict[str, Any]]]:
    """What the embedded model and the default rules make of frames."""

    async def scores() -> list[Scores]:
        scorer = EmbeddedScorer(registry)
        await scorer.open()
        found = [await scorer.score(frame.events.view(VECTORS), 1.0) for frame in frames]
        await scorer.close()
        return found

    codec = codec_of("fraud.decisions")
    return [
        plain(
            render_events(
                codec,
                decide(frame.events.view(VECTORS), found, DEFAULT_RULES, UnknownPolicy(), model="fraud", scored_at=0),
            )
        )
        for frame, found in zip(frames, asyncio.run(scores()), strict=True)
    ]


class Feed:
    """Sends frames and waits for their decisions."""

    def __init__(self, environment: Settings, frames: list[Frame], log: DecisionLog) -> None:
        self.environment = environment
        self.log = log
        self.frames = frames
        self.sent: list[Frame] = []

    def send(self, count: int) -> list[Frame]:
        run = self.frames[len(self.sent) : len(self.sent) + count]
        assert len(run) == count
        send(self.environment, records_of(self.environment, run), "fraud.features")
        self.sent += run
        return run

    def decisions(self, run: list[Frame]) -> list[dict[str, Any]]:
        """Those of a run of frames, once all are there."""

        def there() -> list[dict[str, Any]] | None:
            found = self.log.take()
            if not all(frame.sequence in found[frame.shard] for frame in run):
                return None
            return [one for frame in run for one in found[frame.shard][frame.sequence]]

        return wait_until(there, 90, f"decisions of {len(run)} frames")

    def through(self, count: int) -> list[dict[str, Any]]:
        return self.decisions(self.send(count))


def test_every_transaction_is_decided_whatever_the_server_does(
    environment: Settings, registry: Registry, server: FaultyModelServer, frames: list[Frame], tmp_path: Path
) -> None:
    options = {"deadline_ms": str(DEADLINE_MS), "failures_to_open": "2", "open_seconds": "0.3"}
    unknown = 0

    with (
        DecisionLog(environment, range(SHARDS)) as log,
        scoring(environment, tmp_path / "scorer.log", server.url, **options) as scorer,
    ):
        feed = Feed(environment, frames, log)
        # awake: the same decisions as the model in this process, the challenger's scores beside them
        run = feed.send(20)
        found = plain(feed.decisions(run))
        awake = [one for frame in expected(registry, run) for one in frame]
        assert {one["unknown_reason"] for one in found} == {"none"}
        assert {one["model_version"] for one in found} == {1}
        shadowed = [one["challenger_version"] for one in found]
        assert set(shadowed) <= {0, 2}
        assert 2 in shadowed
        assert without_challenger(found) == without_challenger(awake)
        assert [one for one in found if one["challenger_version"] == 2] == [
            one for one, mine in zip(awake, found, strict=True) if mine["challenger_version"] == 2
        ]

        # 4xx: the request's fault; the server is asked every time
        server.mode = "refuse"
        asked = server.asked
        found = feed.through(12)
        assert {one["unknown_reason"] for one in found} == {"refused"}
        assert server.asked >= asked + 12
        assert scorer.metric("streambank_fraud_circuit_open") == 0
        unknown += len(found)

        for mode, reason in (
            ("server_error", "server_error"),
            ("garbage", "bad_answer"),
            ("wrong_count", "bad_answer"),
            ("hang", "timeout"),
            ("cut", "unreachable"),
        ):
            server.mode = "pass"
            recovered(feed)
            server.mode = mode
            for _ in range(2):
                found = feed.through(2)
                assert {one["unknown_reason"] for one in found} <= {reason, "circuit_open"}, mode
                unknown += len(found)
            assert {one["score"] for one in found} == {None}
            assert {one["decision"] for one in found if int(one["amount"]) > 10_000} <= {"review"}
            assert {one["decision"] for one in found if int(one["amount"]) <= 10_000} == {"approve"}
            assert scorer.metric("streambank_fraud_unknown_total", reason=reason) > 0, mode
            assert scorer.metric("streambank_fraud_unknown_total", reason="circuit_open") > 0
        server.mode = "slow"
        recovered(feed)
        assert {one["unknown_reason"] for one in feed.through(4)} == {"none"}
        server.mode = "pass"

        # one decision each, UNKNOWN counted, and every one of them scored again
        first = [one for frame in decided(environment, range(SHARDS)).values() for run in frame.values() for one in run]
        sent_ids = [name for frame in feed.sent for name in frame.events.view(VECTORS)["transaction_id_lo"].tolist()]
        assert sorted(int(one["transaction_id"]) for one in first) == sorted(sent_ids)
        without = {one["transaction_id"] for one in first if one["unknown_reason"] != "none"}
        assert len(without) >= unknown
        assert scorer.metric("streambank_fraud_unknown_total") == len(without)
        again = wait_until(
            lambda: (lines := rescored(environment, range(SHARDS))) and len(lines) >= len(without) and lines,
            60,
            "every unknown transaction is scored again",
        )
        assert {one["transaction_id"] for one in again} == without
        assert {(one["rescored"], one["unknown_reason"]) for one in again} == {(True, "none")}
        right = {one["transaction_id"]: one["score"] for one in flat(expected(registry, feed.sent))}
        assert {one["transaction_id"]: one["score"] for one in again} == {name: right[name] for name in without}

        # new rules take effect without a restart
        rules = tmp_path / "rules.json"
        rules.write_text(
            json.dumps(
                {
                    "review_at": 300_000,
                    "block_at": 900_000,
                    "rules": [
                        {"id": "any", "when": "amount >= 0", "action": "review"},
                        {"id": "all", "when": "amount >= 0", "action": "block", "mode": "shadow"},
                    ],
                }
            )
        )
        publish(environment, rules)
        wait_until(lambda: scorer.metric("streambank_fraud_rule_set_version") == 1, 30, "the rules arrive")
        found = feed.through(4)
        assert {(one["rule_set_version"], one["rules_hit"], one["shadow_rules_hit"]) for one in found} == {
            (1, "any", "all")
        }
        assert {one["decision"] for one in found} <= {"review", "block"}
        assert scorer.stop() == 0


def flat(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [one for run in runs for one in run]


def without_challenger(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if not name.startswith("challenger")} for one in decisions]


def recovered(feed: Feed) -> None:
    """Until a frame is scored: the circuit is closed."""
    wait_until(lambda: {one["unknown_reason"] for one in feed.through(1)} == {"none"}, 60, "the circuit closes")


def publish(environment: Settings, rules: Path) -> None:
    command = [str(Path(sys.executable).with_name("streambank")), "rules", "publish", str(rules), "--author", "test"]
    done = subprocess.run(command, env=variables(environment), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "in force" in done.stdout


def test_a_killed_scorer_leaves_no_gap_and_no_second_decision(
    stack: PrivateStack, registry: Registry, server: FaultyModelServer, frames: list[Frame], tmp_path: Path
) -> None:
    """Upstream repeats frames, the scorer is killed twice on the way and goes on with the model in its process."""
    environment = stack.environment("kafka", "registry")
    prepare_fraud(environment)
    log = tmp_path / "scorer.log"
    repeated = frames[:120] + frames[100:260] + frames[240:]
    records = records_of(environment, repeated)
    send(environment, records[:200], "fraud.features")
    with DecisionLog(environment, range(SHARDS)) as decisions:
        with scoring(environment, log, server.url):
            wait_until(lambda: decisions.count() >= 20, 90, "first decisions")
        with scoring(environment, log, server.url):
            send(environment, records[200:350], "fraud.features")
            wait_until(lambda: decisions.count() >= 220, 90, "more decisions")
        with scoring(environment, log, tracking_uri=registry.tracking_uri) as embedded:
            send(environment, records[350:], "fraud.features")
            wait_until(lambda: decisions.count() == len(frames), 90, "all decisions")
            assert embedded.stop() == 0

    found = decided(environment, range(SHARDS))
    assert all(sorted(found[shard]) == list(range(1, len(frames) // SHARDS + 1)) for shard in range(SHARDS))
    mine = [without_challenger(plain(found[frame.shard][frame.sequence])) for frame in frames]
    assert mine == [without_challenger(one) for one in expected(registry, frames)]
    written = all_frames(environment, FRAUD_DECISIONS, range(SHARDS))
    highest = dict.fromkeys(range(SHARDS), 0)
    for frame in written:
        assert frame.sequence <= highest[frame.shard] + 1
        highest[frame.shard] = max(highest[frame.shard], frame.sequence)
