"""A training set read from Cassandra is what the stream said, with the labels known at the asked moment alone."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from infra.migrations import migrate_cassandra, migrate_postgres
from infra.settings import PROJECT_ROOT, Settings
from infra.stores import cassandra_session, postgres_conninfo
from jobs.sinks.cassandra_fraud import (
    BUCKETS,
    FraudDecisionsSink,
    FraudFeaturesSink,
    FraudLabelsSink,
    FraudRescoresSink,
)
from models import fraud_history
from models.fraud_dataset import INPUTS, FraudDataset, dataset_of
from models.fraud_history import NoHistoryError, read_days, read_training_set
from models.fraud_registry import Registry
from models.fraud_report import NothingToReportError, make_report, psi, write_report
from models.fraud_stream import EPOCH_MICROS
from models.fraud_training import Recipe, export, fit
from models.scoring import OnnxModel
from models.simulator import CardTransactions, simulate
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.fraud.decisions import Scores, UnknownPolicy, UnknownReason, decide
from pipelines.fraud.records import DAY
from pipelines.fraud.rules import DEFAULT_RULES
from pipelines.wire import wrap
from tests.support.fraud_history import streamed
from tests.support.ledger_events import EventLog
from tests.support.ledger_history import project
from tests.support.stack import PrivateStack, variables

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

VECTOR = codec_of("fraud.features").event_type("FeatureVector").dtype
FIRST_DAY = EPOCH_MICROS // DAY
SHARD, OTHER_SHARD = 2, 3


@pytest.fixture(scope="module")
def world() -> CardTransactions:
    return simulate(customers=15, terminals=30)


@pytest.fixture(scope="module")
def history(world: CardTransactions) -> tuple[EventLog, EventLog]:
    """fraud.features and fraud.labels of the world, and a label that is revised on day 170."""
    first_fraud = int(np.flatnonzero(world.fraud)[0])
    revision = {
        "type": "FraudLabel", "transaction_id": first_fraud, "event_time": EPOCH_MICROS + 170 * DAY, "fraud": False,
    }  # fmt: skip
    last = Frame("fraud.transactions", 0, 0, 0, None, parse_events(codec_of("fraud.transactions"), [revision]))
    return streamed(world, SHARD, last)


@pytest.fixture(scope="module")
def environment(stack: PrivateStack, history: tuple[EventLog, EventLog]) -> Settings:
    environment = stack.environment("cassandra", "postgres")
    migrate_cassandra(environment)
    migrate_postgres(environment)
    asyncio.run(project(environment, history[0], FraudFeaturesSink))
    asyncio.run(project(environment, history[1], FraudLabelsSink))
    return environment


def days(data: FraudDataset, first: int, last: int) -> Any:
    return data.select((data.day >= first) & (data.day <= last))


def test_a_training_set_is_the_streams_and_knows_no_label_early(
    environment: Settings, world: CardTransactions, history: tuple[EventLog, EventLog]
) -> None:
    assert fraud_history.BUCKETS == BUCKETS
    streamed = dataset_of(world)

    def read(first: int, last: int, as_of_day: int) -> FraudDataset:
        as_of = EPOCH_MICROS + as_of_day * DAY
        return read_training_set(environment, FIRST_DAY + first, FIRST_DAY + last, as_of, [SHARD])

    everything = read(0, 182, 169)
    assert everything.vectors.tobytes() == streamed.vectors.tobytes()
    assert len(everything) == len(world) > 1_000

    start, end = 100, 120
    expected = days(streamed, start, end)
    for as_of_day in (end - 3, end + 1, end + 8):
        found = read(start, end, as_of_day)
        known = expected.fraud & (expected.vectors["event_time"] + 7 * DAY <= EPOCH_MICROS + as_of_day * DAY)
        assert found.vectors.tobytes() == expected.vectors.tobytes()
        assert found.fraud.tolist() == known.tolist()
    assert known.tolist() == expected.fraud.tolist()
    assert known.sum() > 0

    # the same by the days' names
    named = read_days(environment, "2018-07-10", "2018-07-30", "2018-08-06")
    assert named.vectors.tobytes() == expected.vectors.tobytes()
    assert named.fraud.tolist() == expected.fraud.tolist()
    assert read_days(environment, "2018-07-10", "2018-07-30").fraud.tolist() == named.fraud.tolist()
    with pytest.raises(NoHistoryError, match="no transactions from 2017-01-01"):
        read_days(environment, "2017-01-01", "2017-01-02")

    # the revision counts once it is known
    first_fraud = int(np.flatnonzero(world.fraud)[0])
    assert everything.fraud[first_fraud]
    day = int(streamed.day[first_fraud])
    place = int((streamed.day[:first_fraud] == day).sum())
    assert [bool(read(day, day, as_of_day).fraud[place]) for as_of_day in (169, 170)] == [True, False]

    # rows written again, as by a sink that lost its position, change nothing
    with cassandra_session(environment) as session:
        session.execute("TRUNCATE sink_offsets", timeout=60)
    asyncio.run(project(environment, EventLog(history[0].records[:3]), FraudFeaturesSink))
    asyncio.run(project(environment, EventLog(history[1].records[:3]), FraudLabelsSink))
    again = read(start, end, end + 8)
    assert again.vectors.tobytes() == expected.vectors.tobytes()
    assert again.fraud.tolist() == expected.fraud.tolist()


def test_a_days_report_measures_drift_and_what_alerts_were_worth(
    environment: Settings, world: CardTransactions, tmp_path: Path
) -> None:
    """Decisions of days 115 to 130 by an oracle that is wrong about every tenth transaction; none on day 130."""
    streamed = dataset_of(world)
    records = []
    for sequence, day in enumerate(range(115, 131), 1):
        rows = days(streamed, day, day)
        wrong = rows.vectors["transaction_id_lo"] % 10 == 0
        score = np.where(rows.fraud != wrong, 0.95, 0.05)
        scores = Scores(score, 3) if day < 130 else Scores(None, reason=UnknownReason.timeout)
        events = decide(rows.vectors, scores, DEFAULT_RULES, UnknownPolicy(), model="fraud", scored_at=9)
        frame = Frame("fraud.decisions", SHARD, sequence, 0, None, events)
        records.append((SHARD, wrap(1, codec_of("fraud.decisions").encode(frame))))
    asyncio.run(project(environment, EventLog(records), FraudDecisionsSink))

    report = make_report(environment, FIRST_DAY + 129, 7, [SHARD])
    labelled = days(streamed, 129 - 13, 129 - 7)
    wrong = labelled.vectors["transaction_id_lo"] % 10 == 0
    alerted = labelled.fraud != wrong
    known = labelled.fraud & (labelled.vectors["event_time"] + 7 * DAY <= EPOCH_MICROS + 130 * DAY)
    assert report.day == "2018-08-08"
    assert report.transactions == len(days(streamed, 129, 129))
    assert report.alerts == alerted.sum() > 10
    assert report.alert_precision == pytest.approx((known & alerted).sum() / alerted.sum())
    assert report.unknown_rate == 0
    assert [count for *_, count in report.calibration] == [(~alerted).sum(), alerted.sum()]
    assert report.calibration[1][:2] == pytest.approx((0.95, report.alert_precision))
    assert set(report.drift) == set(INPUTS)

    names = {path.name for path in write_report(report, tmp_path)}
    assert names == {"report.json", "drift.png", "calibration.png", "metrics.prom"}
    assert (
        f"streambank_fraud_alert_precision {report.alert_precision}"
        in (tmp_path / report.day / "metrics.prom").read_text()
    )
    silent = make_report(environment, FIRST_DAY + 130, 7, [SHARD])
    assert (silent.unknown_rate, set(silent.unknown_reasons), silent.score_drift) == (1, {"timeout"}, None)
    with pytest.raises(NothingToReportError, match="do the sinks run"):
        make_report(environment, FIRST_DAY + 400, 1, [SHARD])

    rng = np.random.default_rng(1)
    sample, same, moved = rng.normal(0, 1, 4_000), rng.normal(0, 1, 4_000), rng.normal(1, 1, 4_000)
    assert psi(sample, same) < 0.02 < 0.25 < psi(sample, moved)


def test_a_case_gets_the_reasons_of_its_score_from_the_shell(
    environment: Settings, world: CardTransactions, tmp_path: Path
) -> None:
    data = dataset_of(world)
    recipe = Recipe("logistic-regression")
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts")
    registry.add(export(fit(recipe, data), recipe, data, {}), {}, {}, "")
    model = OnnxModel(registry.exported(registry.version(1)))
    fraud = int(np.flatnonzero(world.fraud)[-1])
    score = round(float(model.score_vectors(data.vectors[fraud : fraud + 1])[0]) * 1_000_000)
    with psycopg.connect(postgres_conninfo(environment), autocommit=True) as connection:
        for case, transaction in ((71, fraud), (72, 10**9)):
            connection.execute(
                "INSERT INTO fraud_cases (case_id, shard, customer_id, day, raised_at, transaction_id, event_time,"
                " terminal_id, amount, decision, score, model_version, rule_set_version, reason_codes)"
                " VALUES (%s, %s, %s, '1970-01-01'::date + %s, 1, %s, 1, 1, 1, 'review', %s, 1, 0, '')",
                [case, SHARD, case, FIRST_DAY + int(data.day[fraud]), transaction, score],
            )

    def explain(*case: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("streambank")), "model", "explain", *case]
        uri = {"STREAMBANK_MLFLOW_TRACKING_URI": registry.tracking_uri}
        return subprocess.run(command, env=variables(environment) | uri, capture_output=True, text=True, timeout=240)

    shown = explain("71")
    assert shown.returncode == 0, shown.stderr
    rows = dict(re.findall(r"^│ (\w+) +│ +\S+ +│ ([+-][0-9.]+) ", shown.stdout, re.MULTILINE))
    assert set(rows) == set(INPUTS)
    (average, total) = re.findall(r"0\.\d{6}(?=, an| *$|\n)", shown.stdout.splitlines()[-1])
    assert float(total) == pytest.approx(score / 1e6, abs=2e-5)
    assert float(average) + sum(map(float, rows.values())) == pytest.approx(float(total), abs=2e-5)
    assert explain("72").returncode == 1  # its transaction is not in Cassandra


def test_the_documented_queries_run(environment: Settings) -> None:
    page = (PROJECT_ROOT / "docs" / "how-to" / "fraud-rules.md").read_text(encoding="utf-8")
    queries = re.findall(r"^```cql\n(.*?);\n^```", page, re.MULTILINE | re.DOTALL)
    assert len(queries) == 3
    with cassandra_session(environment) as session:
        for query in queries:
            session.execute(query)


def test_decisions_are_kept_with_model_and_rules(environment: Settings, world: CardTransactions) -> None:
    vectors = dataset_of(world).vectors[:3].copy()

    def log(topic: str, scores: Scores, rescored: bool = False) -> EventLog:
        events = decide(
            vectors, scores, DEFAULT_RULES, UnknownPolicy(above=0), model="fraud", scored_at=9, rescored=rescored
        )
        return EventLog([(OTHER_SHARD, wrap(1, codec_of(topic).encode(Frame(topic, OTHER_SHARD, 1, 0, None, events))))])

    asyncio.run(
        project(environment, log("fraud.decisions", Scores(None, reason=UnknownReason.timeout)), FraudDecisionsSink)
    )
    values = Scores(np.array([0.1, 0.5, 0.95]), 3, challenger=np.array([0.2, 0.2, 0.2]), challenger_version=4)
    sink = FraudRescoresSink
    records = log("fraud.rescores", values, rescored=True)
    asyncio.run(project(environment, records, sink))
    with cassandra_session(environment) as session:
        rows = session.execute(
            "SELECT transaction_id, rescored, decision, score, model_version, challenger_version, challenger_score,"
            " unknown_reason, reason_codes, rule_set_version, event_time, model FROM fraud_decisions"
            " WHERE shard = %s ALLOW FILTERING",
            [OTHER_SHARD],
        )
        found = sorted(tuple(row) for row in rows)
    times = vectors["event_time"].tolist()
    first = [
        (number, 0, "review", -1, 0, 0, -1, "timeout", "unknown_timeout", 0, times[number], "fraud")
        for number in range(3)
    ]
    second = [
        (number, 1, decision, score, 3, 4, 200_000, "none", code, 0, times[number], "fraud")
        for number, decision, score, code in (
            (0, "approve", 100_000, ""),
            (1, "review", 500_000, "score_review"),
            (2, "block", 950_000, "score_block"),
        )
    ]
    assert found == sorted(first + second)
