"""Scoring on the real stack: a decision for every transaction, whatever the model server does and whoever is killed."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from api.clients import DEFAULT_SCOPES
from infra.flink_jobs import job_file
from infra.settings import Settings
from jobs.fraud_positions import unreadable_between
from jobs.registry_reader import registry_reader
from models.fraud_dataset import FraudDataset, dataset_of
from models.fraud_registry import Registry
from models.fraud_scorers import EmbeddedScorer
from models.simulator import simulate
from pipelines.catalogue import FRAUD_DEAD_LETTERS, FRAUD_DECISIONS, FRAUD_TRANSACTIONS
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.fraud.decisions import Scores, UnknownPolicy, decide
from pipelines.fraud.rules import DEFAULT_RULES, RuleSet
from tests.support.api_server import frames_in_topic, running_api, running_system, write
from tests.support.flink_job import running as running_job
from tests.support.fraud_scoring import (
    DecisionLog,
    FaultyModelServer,
    ScorerProcess,
    all_frames,
    decided,
    feature_frames,
    records_of,
    rescored,
    scoring,
    two_models,
)
from tests.support.provision import provision
from tests.support.sinks import send
from tests.support.stack import PrivateStack, free_ports, variables
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.stack,
    pytest.mark.timeout(600),
    # MLflow and what it imports use functions that their libraries have deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

VECTORS = codec_of("fraud.features").event_type("FeatureVector").dtype
SHARDS = 2
DEADLINE_MS = 2000.0


@pytest.fixture(scope="module")
def data() -> FraudDataset:
    return dataset_of(simulate(customers=100, terminals=200))


@pytest.fixture(scope="module")
def registry(data: FraudDataset, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return two_models(data, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry")
    provision(environment, "fraud")
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


def expected(registry: Registry, frames: list[Frame], rules: RuleSet = DEFAULT_RULES) -> list[list[dict[str, Any]]]:
    """What the embedded model and the rules make of frames."""

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
                decide(frame.events.view(VECTORS), found, rules, UnknownPolicy(), model="fraud", scored_at=0),
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
    options = {"deadline_ms": str(DEADLINE_MS), "failures_to_open": "2", "open_seconds": "1"}

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
        assert without_challenger(found) == without_challenger(awake)

        def with_challenger() -> tuple[list[Frame], list[dict[str, Any]]] | None:
            one = feed.send(1)
            decisions = plain(feed.decisions(one))
            return (one, decisions) if decisions[0]["challenger_version"] == 2 else None

        run, found = wait_until(with_challenger, 60, "the challenger scores in shadow")
        assert found == flat(expected(registry, run))

        # 4xx: the request's fault; the server is asked every time
        server.mode = "refuse"
        asked = server.asked
        found = flat([feed.through(1) for _ in range(6)])
        assert {one["unknown_reason"] for one in found} == {"refused"}
        assert server.asked >= asked + 6
        assert scorer.metric("streambank_fraud_circuit_open") == 0

        for mode, reason in (
            ("server_error", "server_error"),
            ("garbage", "bad_answer"),
            ("wrong_count", "bad_answer"),
            ("hang", "timeout"),
            ("cut", "unreachable"),
            ("killed", "unreachable"),
        ):
            server.mode = "pass"
            recovered(feed)
            # else what waits to be scored again is what finds the server broken, and no first decision does
            wait_until(lambda: scorer.metric("streambank_fraud_rescore_waiting") == 0, 60, "all scored again")
            server.mode = mode
            found = until_the_circuit_opens(feed, reason)
            assert {one["score"] for one in found} == {None}
            assert {one["decision"] for one in found if one["amount"] > 10_000} <= {"review"}
            assert {one["decision"] for one in found if one["amount"] <= 10_000} <= {"approve"}
            counted(scorer, reason)
            counted(scorer, "circuit_open")
        server.mode = "slow"
        recovered(feed)
        assert {one["unknown_reason"] for one in feed.through(4)} == {"none"}
        server.mode = "pass"

        # one decision each, UNKNOWN counted, and every one of them scored again
        first = [one for frame in decided(environment, range(SHARDS)).values() for run in frame.values() for one in run]
        sent_ids = [name for frame in feed.sent for name in frame.events.view(VECTORS)["transaction_id_lo"].tolist()]
        assert sorted(int(one["transaction_id"]) for one in first) == sorted(sent_ids)
        without = {one["transaction_id"] for one in first if one["unknown_reason"] != "none"}
        assert len(without) > 100
        wait_until(lambda: scorer.metric("streambank_fraud_unknown_total") == len(without), 30, "UNKNOWN is counted")
        again = wait_until(
            lambda: (lines := rescored(environment, range(SHARDS))) and len(lines) >= len(without) and lines,
            60,
            "every unknown transaction is scored again",
        )
        # in the order of the first decisions, though several requests are under way at once
        assert [one["transaction_id"] for one in again] == [
            one["transaction_id"] for one in first if one["transaction_id"] in without
        ]
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


def until_the_circuit_opens(feed: Feed, reason: str) -> list[dict[str, Any]]:
    """Decisions of frames one after the other until the server was asked, failed, and is not asked any more."""
    found: list[dict[str, Any]] = []

    def both() -> bool:
        found.extend(feed.through(1))
        reasons = {one["unknown_reason"] for one in found}
        assert reasons <= {reason, "circuit_open"}
        return len(reasons) == 2

    wait_until(both, 60, f"the circuit opens after {reason}")
    return found


def counted(scorer: ScorerProcess, reason: str) -> None:
    """Until UNKNOWN for this reason shows in the metrics."""
    wait_until(lambda: scorer.metric("streambank_fraud_unknown_total", reason=reason) > 0, 30, reason)


def recovered(feed: Feed) -> None:
    """Until a frame is scored: the circuit is closed."""
    wait_until(lambda: {one["unknown_reason"] for one in feed.through(1)} == {"none"}, 60, "the circuit closes")


def publish(environment: Settings, rules: Path) -> None:
    assert "in force" in shell(environment, "rules", "publish", str(rules), "--author", "test")


def shell(environment: Settings, *arguments: str) -> str:
    """What `streambank` prints."""
    command = [str(Path(sys.executable).with_name("streambank")), *arguments]
    wide = variables(environment) | {"COLUMNS": "160"}
    done = subprocess.run(command, env=wide, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


RULES: dict[str, Any] = {
    "review_at": 200_000,
    "block_at": 700_000,
    "rules": [
        {"id": "large", "when": "amount > 15000 and score_known", "action": "review"},
        {"id": "burst", "when": "cn1 >= 4", "action": "block", "mode": "shadow"},
    ],
}


def test_the_flink_job_and_the_scorer_make_the_same_decisions_of_a_log(
    stack: PrivateStack,
    registry: Registry,
    server: FaultyModelServer,
    data: FraudDataset,
    frames: list[Frame],
    tmp_path: Path,
) -> None:
    """The job decides, is cancelled and started from nothing again; then the scorer with the model server goes on, and
    then the job. Upstream repeats frames, a record is no frame, and two frames cannot be read: their decision frames
    are empty, whoever met them. What they wrote is history to test rules with."""
    environment = stack.environment("kafka", "registry", "flink").model_copy(
        update={"mlflow_tracking_uri": registry.tracking_uri}
    )
    provision(environment, "fraud")
    server.mode = "pass"
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(RULES))
    publish(environment, rules)
    job = job_file("fraud_scoring")
    lost = [frames[190], frames[251]]  # the one meets the job, the other the scorer
    lost_places = [(frame.shard, frame.sequence) for frame in lost]
    with DecisionLog(environment, range(SHARDS)) as decisions:

        def go_on(to: int, again_from: int, *more: Any) -> None:
            done = decisions.count()
            run = frames[again_from:done] + frames[done:to]
            records: list[Any] = [
                (shard, b"no frame" if (frame.shard, frame.sequence) in lost_places else value)
                for frame, (shard, value) in zip(run, records_of(environment, run), strict=True)
            ]
            send(environment, [*records[:5], *more, *records[5:]], "fraud.features")
            wait_until(lambda: decisions.count() == to, 120, f"{to} decided frames")

        for to, more in ((100, [(1, b"no frame")]), (200, [])):
            with running_job(environment, job):
                go_on(to, max(0, to - 130), *more)
        with scoring(environment, tmp_path / "scorer.log", server.url, deadline_ms="20000") as scorer:
            go_on(300, 180)
            assert scorer.stop() == 0
        with running_job(environment, job):
            go_on(400, 280)

    found = decided(environment, range(SHARDS))
    assert [found[shard][sequence] for shard, sequence in lost_places] == [[], []]
    for shard, sequence in lost_places:
        read = registry_reader(environment)
        assert unreadable_between(environment, read, shard, sequence - 1, sequence + 1) == 1
        assert unreadable_between(environment, read, shard, sequence + 2, sequence + 4) == 0
    frames = [frame for frame in frames if (frame.shard, frame.sequence) not in lost_places]
    assert [plain(found[frame.shard][frame.sequence]) for frame in frames] == expected(
        registry, frames, RuleSet.parse(json.dumps(RULES), 1)
    )
    names = {one["shadow_rules_hit"] for frame in found[0].values() for one in frame}
    assert names == {"", "burst"}
    written = all_frames(environment, FRAUD_DECISIONS, range(SHARDS))
    assert [(frame.shard, frame.sequence) for frame in written] == [
        (shard, sequence) for shard in range(SHARDS) for sequence in range(1, 201)
    ]
    codec = codec_of(FRAUD_DEAD_LETTERS.name)
    letters = [
        one for frame in all_frames(environment, FRAUD_DEAD_LETTERS) for one in render_events(codec, frame.events)
    ]
    told = {(one["consumer"], one["partition"], one["reason"]) for one in letters}
    # the scorer may or may not have started behind the repetition of the job's: that was answered already
    told.discard(("sink-fraud-scoring", 0, "not_avro"))
    assert told == {
        (consumer, shard, "not_avro")
        for consumer, shard in (("fraud_scoring", 0), ("fraud_scoring", 1), ("sink-fraud-scoring", 1))
    }

    # the shell: what is in force, and what other rules would have done to this history
    send(environment, records_of(environment, list(label_frames(data, frames))), "fraud.labels")
    assert re.search(r"│ 1 .*│ test .*│ 2 .*│ 1 .*│ 0\.2 .*│ 0\.7 ", shell(environment, "rules", "ls"))
    stricter = RULES | {"rules": [{"id": "burst", "when": "cn1 >= 4", "action": "block"}, RULES["rules"][0]]}
    rules.write_text(json.dumps(stricter))
    assert "2 rules, 0 of them in shadow" in shell(environment, "rules", "check", str(rules))
    shown = shell(environment, "rules", "backtest", str(rules))
    vectors = np.concatenate([frame.events.view(VECTORS) for frame in frames])
    fraud = data.fraud[vectors["transaction_id_lo"].astype(np.int64)]
    burst = vectors["cn1"] >= 4
    before = [one["decision"] for one in flat(expected(registry, frames, RuleSet.parse(json.dumps(RULES), 1)))]
    after = [one["decision"] for one in flat(expected(registry, frames, RuleSet.parse(json.dumps(stricter), 1)))]
    for name in ("approve", "review", "block"):
        counts = [f"{decisions_made.count(name):,}" for decisions_made in (before, after)]
        assert re.search(rf"│ {name} +│ {counts[0]} +│ {counts[1]} +│", shown), (counts, shown)
    assert after.count("block") > before.count("block") > 0
    assert re.search(rf"│ burst +│ enforce +│ {burst.sum():,} +│ {(burst & fraud).sum():,} +│", shown), shown
    assert f"{len(vectors):,} transactions, {fraud.sum():,} of them labelled fraud" in " ".join(shown.split())


def label_frames(data: FraudDataset, frames: list[Frame]) -> Iterator[Frame]:
    """What the fraud job would say about the labels of the frames' frauds."""
    codec = codec_of("fraud.labels")
    for shard in range(SHARDS):
        found = []
        for frame in frames:
            for vector in frame.events.view(VECTORS) if frame.shard == shard else ():
                number = int(vector["transaction_id_lo"])
                if data.fraud[number]:
                    kept = {name: int(vector[name]) for name in ("customer_id", "terminal_id", "amount")}
                    at = int(vector["event_time"])
                    found.append(
                        {
                            "type": "LabelReceived", "transaction_id": number, "event_time": at + 1, "fraud": True,
                            "status": "accepted", "transaction_time": at, **kept,
                        }
                    )  # fmt: skip
        yield Frame("fraud.labels", shard, 1, 0, None, parse_events(codec, found))


def test_a_killed_scorer_leaves_no_gap_and_no_second_decision(
    stack: PrivateStack, registry: Registry, server: FaultyModelServer, frames: list[Frame], tmp_path: Path
) -> None:
    """Upstream repeats frames, the scorer is killed twice on the way and goes on with the model in its process."""
    environment = stack.environment("kafka", "registry")
    provision(environment, "fraud")
    server.mode = "pass"
    patient = {"deadline_ms": "20000"}  # a busy machine must not be taken for a server that does not answer
    log = tmp_path / "scorer.log"
    repeated = frames[:120] + frames[100:260] + frames[240:]
    records = records_of(environment, repeated)
    send(environment, records[:200], "fraud.features")
    with DecisionLog(environment, range(SHARDS)) as decisions:
        with scoring(environment, log, server.url, **patient):
            wait_until(lambda: decisions.count() >= 20, 90, "first decisions")
        with scoring(environment, log, server.url, **patient):
            send(environment, records[200:350], "fraud.features")
            wait_until(lambda: decisions.count() >= 220, 90, "more decisions")
            server.mode = "server_error"
            send(environment, records[350:400], "fraud.features")
            wait_until(lambda: decisions.count() >= 360, 90, "decisions without a score")
        server.mode = "pass"
        with scoring(environment, log, tracking_uri=registry.tracking_uri) as embedded:
            send(environment, records[400:], "fraud.features")
            wait_until(lambda: decisions.count() == len(frames), 90, "all decisions")
            unscored = {
                one["transaction_id"]
                for shard in decisions.found.values()
                for frame in shard.values()
                for one in frame
                if one["unknown_reason"] != "none"
            }
            assert unscored
            again = wait_until(
                lambda: (found := rescored(environment, range(SHARDS))) and len(found) >= len(unscored) and found,
                90,
                "what the killed one left is scored again",
            )
            assert {one["transaction_id"] for one in again} == unscored
            assert embedded.stop() == 0

    found = decided(environment, range(SHARDS))
    assert all(sorted(found[shard]) == list(range(1, len(frames) // SHARDS + 1)) for shard in range(SHARDS))
    second = {one["transaction_id"]: one | {"rescored": False} for one in again}
    mine = [
        without_challenger(plain(second.get(one["transaction_id"], one) for one in found[frame.shard][frame.sequence]))
        for frame in frames
    ]
    assert mine == [without_challenger(one) for one in expected(registry, frames)]
    written = all_frames(environment, FRAUD_DECISIONS, range(SHARDS))
    highest = dict.fromkeys(range(SHARDS), 0)
    for frame in written:
        assert frame.sequence <= highest[frame.shard] + 1
        highest[frame.shard] = max(highest[frame.shard], frame.sequence)


def card_transaction(number: int, customer: int = 7, **changes: Any) -> dict[str, Any]:
    now = time.time_ns() // 1000
    place = {"customer_id": customer, "terminal_id": 3}
    return {"transaction_id": number, "event_time": now, **place, "amount": 1250, **changes}


def test_transactions_over_http_are_decided_and_labels_meet_them(
    stack: PrivateStack, server: FaultyModelServer, tmp_path: Path
) -> None:
    environment = stack.environment("kafka", "registry", "valkey")
    provision(environment)
    server.mode = "pass"
    transactions, labels = "/v1/card-transactions", "/v1/fraud-labels"
    with (
        running_system(environment, "fraud"),
        scoring(environment, tmp_path / "scorer.log", server.url, deadline_ms="20000"),
        running_api(environment, tmp_path / "api", workers=1) as api,
        api.session("fraud:transactions", "fraud:labels") as client,
    ):
        numbers = iter(range(1, 100))

        def answered() -> Any:
            one = card_transaction(next(numbers))
            answer = write(client, f"{transactions}?portfolio=2", one, Prefer="wait=30")
            return answer.status_code == 201 and (one, answer)

        # decided, with the score of the served champion
        one, answer = wait_until(answered, 120, "a transaction is decided")
        number = one["transaction_id"]
        body = answer.json()
        assert body["events"] == [{"index": 0, "transaction_id": number, "shard": 2}]
        [result] = body["results"]
        assert {name: result[name] for name in ("index", "shard", *one)} == {"index": 0, "shard": 2, **one}
        assert (result["type"], result["decision"], result["unknown_reason"]) == ("Decision", "approve", "none")
        assert 0 < result["score"] < 300_000
        assert result["model_version"] == 1

        # many in one body: each its own decision in the body's order; an id that was there before has none
        batch = [card_transaction(1000 + place, customer=place) for place in range(50)]
        batch[20] = one
        answer = write(client, f"{transactions}?portfolio=2", batch, Prefer="wait=30")
        assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=30")
        found = answer.json()["results"]
        assert [result["transaction_id"] for result in found] == [sent["transaction_id"] for sent in batch]
        assert {result["type"] for result in found[:20] + found[21:]} == {"Decision"}
        assert found[20] == {
            "index": 20, "type": "DuplicateTransaction", "transaction_id": number, "shard": 2,
            "sequence": found[0]["sequence"],
        }  # fmt: skip

        # a key is one request: body and portfolio
        sent, key = card_transaction(2000), {"Idempotency-Key": "once"}
        assert write(client, transactions, sent, **key).status_code == 202
        again = write(client, transactions, sent, **key)
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (202, "true")
        for path, other in ((transactions, card_transaction(2001)), (f"{transactions}?portfolio=1", sent)):
            assert write(client, path, other, **key).json()["type"] == "/problems/idempotency-key-reused"

        # NDJSON line by line, Avro record by record
        future = card_transaction(3001, event_time=time.time_ns() // 1000 + 25 * 3_600_000_000)
        lines = b"\n".join(json.dumps(line).encode() for line in (card_transaction(3000, device="phone"), future))
        answer = write(client, transactions, lines, "application/x-ndjson")
        assert (answer.status_code, answer.json()["accepted"], answer.json()["refused"]) == (207, 1, 1)
        [refused] = answer.json()["errors"]
        assert (refused["line"], refused["errors"][0]["pointer"]) == (2, "/event_time")
        file = io.BytesIO()
        events = next(field for field in FRAUD_TRANSACTIONS.schema()["fields"] if field["name"] == "events")
        wide = {"device": None, "country": "DE", "merchant": "shop"}
        record = card_transaction(4000) | wide | {"transaction_id": Decimal(4000)}
        fastavro.writer(file, events["type"]["items"][0], [record, {**record, "country": "D" * 65}])
        answer = write(client, transactions, file.getvalue(), "application/avro")
        assert (answer.status_code, answer.json()["accepted"], answer.json()["refused"]) == (207, 1, 1)
        assert answer.json()["errors"][0]["errors"][0]["pointer"] == "/country"

        # what is wrong is named, and nothing of it goes anywhere
        for wrong, pointer in (
            ({"amount": -1}, "/amount"), ({"card": "x"}, "/card"),
            ({"event_time": future["event_time"]}, "/event_time"),
            ({"customer_id": "seven"}, "/customer_id"), ({"transaction_id": 2**128}, "/transaction_id"),
            ({"merchant": "ü" * 33}, "/merchant"), ({"type": "FraudLabel"}, "/type"),
        ):  # fmt: skip
            answer = write(client, transactions, [card_transaction(5000), card_transaction(5001, **wrong)])
            problem = answer.json()
            assert (answer.status_code, problem["type"]) == (422, "/problems/invalid-event"), problem
            assert problem["errors"][0]["pointer"] == f"/1{pointer}", problem
        missing = card_transaction(5002)
        del missing["terminal_id"]
        assert write(client, transactions, missing).json()["errors"][0]["pointer"] == "/terminal_id"
        for query in ("portfolio=4", "portfolio=x", "shard=1"):
            assert write(client, f"{transactions}?{query}", card_transaction(5003)).status_code == 400

        # labels meet the transactions of their portfolio, and only who may say so labels
        known = {"transaction_id": number, "event_time": one["event_time"] + 1, "fraud": True}
        answer = write(client, f"{labels}?portfolio=2", known, Prefer="wait=30")
        assert answer.status_code == 201, answer.text
        [met] = answer.json()["results"]
        assert (met["status"], met["customer_id"], met["amount"], met["fraud"]) == ("accepted", 7, 1250, True)
        answer = write(client, labels, [known, {**known, "transaction_id": 2000}], Prefer="wait=30")
        assert answer.status_code == 200
        assert [met["status"] for met in answer.json()["results"]] == ["unknown_transaction", "accepted"]
        late = write(client, labels, {**known, "event_time": future["event_time"]})
        assert late.json()["errors"][0]["pointer"] == "/event_time"
        with api.session("fraud:transactions", "fraud:write") as other:
            assert write(other, labels, known).status_code == 403
        with api.session("fraud:labels") as other:
            assert write(other, transactions, card_transaction(6000)).status_code == 403
        assert "fraud:labels" not in DEFAULT_SCOPES

    ids: dict[int, set[int]] = {}
    for (partition, _), frame_events in frames_in_topic(environment, FRAUD_TRANSACTIONS).items():
        assert len({event["type"] for event in frame_events}) == 1
        ids.setdefault(partition, set()).update(int(event["transaction_id"]) for event in frame_events)
    assert ids[0] == {2000, 3000, 4000, number}
    assert ids[2] == {*range(1, number + 1), *range(1000, 1050)} - {1020}
    assert set(ids) == {0, 2}
