"""From decisions to alerts and cases, and from closed cases back to labels, on the real stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import psycopg
import pytest

from infra.migrations import migrate_postgres
from infra.settings import Settings
from infra.stores import postgres_conninfo
from pipelines.catalogue import FRAUD_ALERTS, FRAUD_TRANSACTIONS
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Frame
from pipelines.fraud.alerts import MICROS_PER_DAY, alert_id
from pipelines.fraud.decisions import Scores, UnknownPolicy, UnknownReason, decide
from pipelines.fraud.rules import DEFAULT_RULES
from tests.support.api_server import running_api
from tests.support.fraud_scoring import all_frames, records_of
from tests.support.provision import provision
from tests.support.sinks import running, send
from tests.support.stack import PrivateStack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

VECTOR = codec_of("fraud.features").event_type("FeatureVector").dtype
DAY = 17_742
NOON = DAY * MICROS_PER_DAY + MICROS_PER_DAY // 2
SCORED_AT = 1_533_000_000_000_000


def decisions(
    sequence: int, rows: list[tuple[int, int, int, float | None]], topic: str = "fraud.decisions", shard: int = 1
) -> Frame:
    """A frame of decisions; rows are (transaction, customer, days after the first, score or None)."""
    vectors = np.zeros(len(rows), VECTOR)
    for vector, (transaction, customer, days, _) in zip(vectors, rows, strict=True):
        vector["transaction_id_lo"], vector["customer_id"], vector["amount"] = transaction, customer, 20_000
        vector["event_time"], vector["terminal_id"] = NOON + days * MICROS_PER_DAY, 7
    scores = [score for *_, score in rows]
    known = None not in scores
    events = decide(
        vectors,
        Scores(np.array(scores, np.float64), 4) if known else Scores(None, reason=UnknownReason.timeout),
        DEFAULT_RULES,
        UnknownPolicy(),
        model="fraud",
        scored_at=SCORED_AT + sequence,
        rescored=topic == "fraud.rescores",
    )
    return Frame(topic, shard, sequence if topic == "fraud.decisions" else 0, 0, None, events)


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry", "postgres", "valkey")
    provision(environment)
    migrate_postgres(environment)
    return environment


@pytest.fixture(scope="module")
def session(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        running_api(environment, tmp_path_factory.mktemp("api"), workers=1) as server,
        server.session("fraud:read", "fraud:write") as found,
    ):
        yield found


def alerts(environment: Settings) -> list[dict[str, Any]]:
    codec = codec_of(FRAUD_ALERTS.name)
    return [one for frame in all_frames(environment, FRAUD_ALERTS) for one in render_events(codec, frame.events)]


def labels(environment: Settings) -> list[tuple[int, int, bool, int]]:
    """(shard, transaction, fraud, event time) of the labels in fraud.transactions."""
    codec = codec_of(FRAUD_TRANSACTIONS.name)
    return [
        (frame.shard, int(one["transaction_id"]), one["fraud"], one["event_time"])
        for frame in all_frames(environment, FRAUD_TRANSACTIONS)
        for one in render_events(codec, frame.events)
        if one["type"] == "FraudLabel"
    ]


def test_decisions_become_cases_and_closed_cases_labels(
    environment: Settings, session: httpx.Client, tmp_path: Path
) -> None:
    first = decisions(1, [(1, 5, 0, 0.1), (2, 5, 0, 0.4), (3, 5, 0, 0.95), (4, 6, 0, 0.5), (5, 5, 1, 0.5)])
    unknown = decisions(2, [(6, 8, 0, None)])
    send(environment, records_of(environment, [first, unknown, first, unknown]), "fraud.decisions")

    def cases(**filters: str) -> list[dict[str, Any]]:
        answer = session.get("/v1/fraud/cases", params=filters)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["cases"]
        return found

    with running(environment, "fraud-cases", tmp_path / "cases.log"):
        wait_until(lambda: len(cases()) == 4, 60, "four cases")
        raised = wait_until(lambda: len(found := alerts(environment)) == 4 and found, 60, "four alerts")

    # one per card and day, whatever is repeated, even by a sink that starts from nothing again
    day = alert_id(1, 5, DAY)
    by_id = {int(one["alert_id"]): one for one in raised}
    assert set(by_id) == {day, alert_id(1, 6, DAY), alert_id(1, 5, DAY + 1), alert_id(1, 8, DAY)}
    alert = by_id[day]
    assert (int(alert["transaction_id"]), alert["customer_id"], alert["amount"], alert["score"]) == (
        2,
        5,
        20_000,
        400_000,
    )
    assert (alert["decision"], alert["reason_codes"], alert["model_version"]) == ("review", "score_review", 4)
    assert by_id[alert_id(1, 8, DAY)]["score"] is None
    assert by_id[alert_id(1, 8, DAY)]["reason_codes"] == "unknown_timeout"
    with psycopg.connect(postgres_conninfo(environment), autocommit=True) as connection:
        connection.execute("DELETE FROM sink_offsets")
    later = decisions(3, [(7, 5, 0, 0.99)])
    again = decisions(0, [(6, 8, 0, 0.97)], "fraud.rescores")
    portfolio = decisions(1, [(2, 5, 0, 0.95)], shard=3)  # the same ids, but another portfolio's card
    send(environment, records_of(environment, [later, portfolio]), "fraud.decisions")
    send(environment, records_of(environment, [again, again]), "fraud.rescores")
    with (
        running(environment, "fraud-cases", tmp_path / "cases.log"),
        running(environment, "fraud-rescore-cases", tmp_path / "rescores.log"),
    ):
        wait_until(lambda: len(one_case(session, day)["transactions"]) == 3, 90, "the later transaction joins")
        eight = alert_id(1, 8, DAY)
        wait_until(lambda: one_case(session, eight)["transactions"][0]["rescored"], 90, "the second decision")
        wait_until(lambda: len(alerts(environment)) == 5, 90, "the other portfolio's alert")
    assert one_case(session, eight)["transactions"] == [
        {
            "transaction_id": "6", "event_time": NOON, "terminal_id": 7, "amount": 20_000, "decision": "block",
            "score": 970_000, "model_version": 4, "rule_set_version": 0, "reason_codes": "score_block",
            "rescored": True,
        }
    ]  # fmt: skip
    assert len(alerts(environment)) == 5
    assert len(cases()) == 5

    # the queue
    page = session.get("/v1/fraud/cases", params={"limit": 3}).json()
    rest = session.get("/v1/fraud/cases", params={"limit": 3, "cursor": page["next_cursor"]}).json()
    assert [len(page["cases"]), len(rest["cases"]), rest["next_cursor"]] == [3, 2, None]
    assert len({one["case_id"] for one in page["cases"] + rest["cases"]}) == 5
    at = f"/v1/fraud/cases/{day}"
    assigned = session.post(f"{at}/assign", json={"assignee": "ann"})
    assert (assigned.status_code, assigned.json()["status"]) == (200, "assigned")
    assert [one["case_id"] for one in cases(status="assigned", assignee="ann")] == [str(day)]
    key = {"Idempotency-Key": str(uuid4())}
    for _ in range(2):
        noted = session.post(f"{at}/notes", json={"text": "Customer did not buy this."}, headers=key)
        assert noted.status_code == 201
    assert [one["text"] for one in noted.json()["notes"]] == ["Customer did not buy this."]
    for _ in range(2):
        closed = session.post(f"{at}/close", json={"outcome": "fraud", "known_at": NOON + MICROS_PER_DAY})
        assert (closed.status_code, closed.json()["status"], closed.json()["outcome"]) == (200, "closed", "fraud")
    assert labels(environment) == [(1, number, True, NOON + MICROS_PER_DAY) for number in (2, 3, 7)]
    other = session.post(f"/v1/fraud/cases/{alert_id(1, 6, DAY)}/close", json={"outcome": "genuine"})
    assert other.status_code == 200
    assert [label[:3] for label in labels(environment)[3:]] == [(1, 4, False)]
    # a label goes where its transaction went, whatever other portfolio has the same ids
    assert one_case(session, alert_id(3, 5, DAY))["shard"] == 3
    assert session.post(f"/v1/fraud/cases/{alert_id(3, 5, DAY)}/close", json={"outcome": "genuine"}).status_code == 200
    assert [label[:3] for label in labels(environment)[4:]] == [(3, 2, False)]
    assert len(cases(status="open")) == 2

    # refusals
    for path, body, status in (
        (f"{at}/close", {"outcome": "genuine"}, 409),
        (f"{at}/assign", {"assignee": "bob"}, 409),
        (f"{at}/close", {"outcome": "maybe"}, 422),
        (f"/v1/fraud/cases/{alert_id(1, 8, DAY)}/close", {"outcome": "fraud", "known_at": 7_000_000_000_000_000}, 422),
        (f"{at}/assign", {"assignee": ""}, 422),
        (f"{at}/assign", {"assignee": "a", "more": 1}, 422),
        (f"{at}/notes", {"text": "without a key"}, 400),
        ("/v1/fraud/cases/1/assign", {"assignee": "a"}, 404),
        ("/v1/fraud/cases/x/assign", {"assignee": "a"}, 400),
    ):
        assert session.post(path, json=body).status_code == status, (path, body)
    assert session.get("/v1/fraud/cases", params={"status": "lost"}).status_code == 400
    assert session.get("/v1/accounts/1").status_code == 403
    assert len(labels(environment)) == 5


def one_case(session: httpx.Client, case_id: int) -> dict[str, Any]:
    answer = session.get(f"/v1/fraud/cases/{case_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
