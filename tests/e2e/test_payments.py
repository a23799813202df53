"""Payments from the API to a final status and to whoever is told, on the real servers, while processes die.

Three jobs, API, relays, clock, sinks, scorer and notifier run as an operator starts them, with a real mail server and
receiver of webhooks. `streambank soak payments` goes on for longer, and takes every server away.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from bench.deployment import Deployment, free_ports, token
from bench.receivers import Receivers
from bench.soak_payments import PaymentsSoak, payments_deployment, quick_faults
from bench.soak_payments_load import (
    LEDGERS,
    PAYEES,
    PAYERS,
    POOR,
    RULES,
    SCOPES,
    SCREENED,
    PaymentsLoad,
    set_rules,
)
from infra.settings import Settings
from infra.stores import postgres_conninfo
from jobs.fraud_rules import publish_rules
from jobs.payments_reconcile import reconcile
from models.fraud_dataset import dataset_of
from models.fraud_registry import Registry
from models.fraud_training import Recipe
from models.fraud_workflow import train_and_register
from models.simulator import simulate
from tests.support.fraud_scoring import FaultyModelServer
from tests.support.stack import SERVER_TYPES, STREAMBANK, PrivateStack, variables
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.stack,
    pytest.mark.timeout(1800),
    # MLflow and what it imports use functions that their libraries have deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PAYER, PAYEE, EMPTY = PAYERS[0], PAYEES[0], POOR
CUSTOMER = 1
"""Has a webhook and an e-mail address."""


MODEL_PORT = free_ports(1)[0]


@pytest.fixture(scope="module")
def receivers() -> Iterator[Receivers]:
    with Receivers() as receivers:
        yield receivers


@pytest.fixture(scope="module")
def parts(stack: PrivateStack, receivers: Receivers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    environment = stack.environment(*(kind.name for kind in SERVER_TYPES))
    directory = tmp_path_factory.mktemp("parts")
    with payments_deployment(environment, directory, receivers, MODEL_PORT, api_workers=1, say=print) as running:
        yield running


@pytest.fixture(scope="module")
def client(parts: Deployment, receivers: Receivers) -> Iterator[httpx.Client]:
    PaymentsLoad(parts, receivers, 1).prepare()
    headers = {"Authorization": f"Bearer {token(parts.settings, SCOPES)}"}
    with httpx.Client(base_url=parts.settings.api_url, timeout=90, headers=headers) as http:
        # the first payment pays for what every process on its way compiles
        for ledger in LEDGERS[:2]:
            first = post(http, "/v1/payments", f"first-{ledger}", payment(ledger=ledger, payee_account_id=PAYEES[9]), 0)
            path = f"/v1/payments/{first.json()['payment_id']}"
            wait_until(lambda path=path: http.get(path).json()["status"] == "COMPLETED", 300, "payments flow")  # type: ignore[misc]
        yield http


def post(client: httpx.Client, path: str, key: str, body: dict[str, Any], wait: int = 60) -> httpx.Response:
    return client.post(
        path, json=body, headers={"Idempotency-Key": key, **({"Prefer": f"wait={wait}"} if wait else {})}
    )


def payment(amount: int = 100, ledger: int = LEDGERS[0], **fields: Any) -> dict[str, Any]:
    return {
        "payer_account_id": PAYER, "payee_account_id": PAYEE, "ledger": ledger, "currency": "EUR", "amount": amount,
        **fields,
    }  # fmt: skip


def test_a_payment_and_what_may_follow(client: httpx.Client) -> None:
    made = post(client, "/v1/payments", "one", payment(reference="invoice 7"))
    assert made.status_code == 201, made.text
    found = made.json()
    assert (found["status"], found["iso_status"], found["captured"]) == ("COMPLETED", "ACSC", 100)
    assert made.headers["Location"] == f"/v1/payments/{found['payment_id']}?ledger={LEDGERS[0]}"

    again = post(client, "/v1/payments", "one", payment(reference="invoice 7"))
    assert (again.status_code, again.content) == (201, made.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert post(client, "/v1/payments", "one", payment(101)).status_code == 422
    assert post(client, "/v1/payments", "bad", payment(-1)).json()["errors"][0]["pointer"] == "/amount"

    path = f"/v1/payments/{found['payment_id']}"
    refund = post(client, f"{path}/refund", "r1", {"ledger": LEDGERS[0], "amount": 40})
    assert (refund.status_code, refund.json()["status"]) == (200, "PARTIALLY_REFUNDED"), refund.text
    refused = post(client, f"{path}/refund", "r2", {"ledger": LEDGERS[0], "amount": 61})
    assert (refused.status_code, refused.json()["result"]) == (409, "amount_too_large")
    # an answer that says no is kept too
    assert post(client, f"{path}/refund", "r2", {"ledger": LEDGERS[0], "amount": 61}).content == refused.content

    held = post(client, "/v1/payments", "two", payment(capture="manual")).json()
    assert (held["status"], held["held"]) == ("RESERVED", 100)
    second = f"/v1/payments/{held['payment_id']}"
    part = post(client, f"{second}/capture", "c1", {"ledger": LEDGERS[0], "amount": 30, "final": False}).json()
    assert (part["status"], part["held"], part["captured"]) == ("RESERVED", 70, 30)
    voided = post(client, f"{second}/void", "v1", {"ledger": LEDGERS[0]}).json()
    assert (voided["status"], voided["released"]) == ("COMPLETED", 70)

    poor = post(client, "/v1/payments", "poor", payment(payer_account_id=EMPTY, payee_account_id=PAYER)).json()
    assert (poor["status"], poor["reason"], poor["iso_reason"]) == ("FAILED", "insufficient_funds", "AM04")
    assert post(client, "/v1/payments/77/void", "none", {"ledger": LEDGERS[0]}).status_code == 404

    def timeline() -> list[str]:
        answer = client.get(path, params={"ledger": LEDGERS[0]})
        found = answer.json()["timeline"] if answer.status_code == 200 else []
        return [event["cause"] for event in found if event["cause"] != "ledger_late"]  # on a busy machine

    wanted = ["created", "validated", "not_screened", "reserved", "captured", "refund_requested", "refunded_in_part"]
    wait_until(lambda: timeline() == wanted, 60, "the sink has the payment's timeline")

    def statuses() -> list[str]:
        listed = client.get("/v1/payments", params={"account_id": EMPTY, "ledger": LEDGERS[0]})
        return [found["status"] for found in listed.json()["payments"]]

    wait_until(lambda: statuses() == ["FAILED"], 60, "the sink has the payment that failed")

    # a batch has one moment, which no page cuts
    batch = [payment(1 + index, LEDGERS[1], payee_account_id=PAYEES[1]) for index in range(5)]
    made = post(client, "/v1/payments/batch", "batch", {"payments": batch})
    ids = {int(found["payment_id"]) for found in made.json()["payments"]}
    place = {"account_id": PAYEES[1], "ledger": LEDGERS[1]}
    wait_until(lambda: ids == set(pages(client, "/v1/payments", place, "next_until", "until")), 60, "in Postgres")
    day = datetime.fromtimestamp(int(held["requested_at"]) / 1e6, UTC).date().isoformat()
    path = f"/v1/accounts/{PAYEES[1]}/payments"
    place = {"ledger": LEDGERS[1], "day": day}
    wait_until(lambda: sorted(ids) == sorted(pages(client, path, place, "next_cursor", "cursor")), 60, "in Cassandra")
    [entry] = client.get(f"/v1/accounts/{EMPTY}/payments", params={"ledger": LEDGERS[0], "day": day}).json()["payments"]
    assert (int(entry["payment_id"]), entry["role"], entry["status"]) == (int(poor["payment_id"]), "payer", "FAILED")
    assert client.get(path, params={**place, "day": "1999-12-31"}).json()["payments"] == []
    assert client.get(path, params={**place, "cursor": "1-1"}).json()["parameter"] == "cursor"

    def totals() -> list[tuple[Any, ...]]:
        found = client.get("/v1/payment-totals", params={"ledger": LEDGERS[1], "since": day}).json()["totals"]
        return [
            tuple(one[name] for name in ("day", "currency", "created", "completed", "captured_amount")) for one in found
        ]

    wait_until(lambda: totals() == [(day, "EUR", 6, 6, 115)], 60, "the batch is completed")
    assert client.get("/v1/payment-totals", params={"ledger": 1, "since": "2026-13-01"}).status_code == 400


def pages(client: httpx.Client, path: str, place: dict[str, Any], following: str, parameter: str) -> list[int]:
    """The ids on all pages of two."""
    found: list[int] = []
    more: dict[str, Any] = {}
    while True:
        answer = client.get(path, params={**place, "limit": 2, **more}).json()
        found += [int(entry["payment_id"]) for entry in answer["payments"]]
        if answer[following] is None:
            return found
        more = {parameter: answer[following]}


def test_screening_decides_and_tells_and_what_it_did_not_know_is_decided_later(
    parts: Deployment, receivers: Receivers, client: httpx.Client, tmp_path: Path
) -> None:
    publish_rules(parts.settings, RULES, author="test", note="")
    set_rules(parts, SCREENED, screening="stream", screening_seconds=600)

    def pay(key: str, amount: int) -> dict[str, Any]:
        """The payment when it has come to rest."""
        made = post(client, "/v1/payments", key, payment(amount, SCREENED, customer_id=CUSTOMER), 0).json()

        def rested() -> dict[str, Any] | None:
            found = client.get(f"/v1/payments/{made['payment_id']}", params={"ledger": SCREENED}).json()
            return found if found["status"] in ("COMPLETED", "BLOCKED", "IN_REVIEW") else None

        found = wait_until(rested, 120, f"{key} has come to rest")
        assert found is not None
        return found

    # no model server answers: small amounts pass, rules hold, the others wait
    wait_until(lambda: pay(f"block-{time.monotonic()}", 60_000)["status"] == "BLOCKED", 120, "the rule is in force")
    assert pay("small", 900)["status"] == "COMPLETED"
    unknown = pay("unknown", 20_000)
    assert (unknown["status"], unknown["reason"]) == ("IN_REVIEW", "fraud_unknown")
    told = wait_until(lambda: messages(parts.settings, "fraud.alert"), 120, "the customer is told of the alert")
    assert {customer for _, customer in told} == {str(CUSTOMER)}
    wait_until(lambda: {name for name, _ in told} <= receivers.mails.keys() & receivers.hooks.keys(), 60, "by all ways")

    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts")
    train_and_register(
        Recipe("logistic-regression", train_days=14), dataset_of(simulate(customers=40, terminals=80)), registry,
        data_name="small world", starts=(136,),
    )  # fmt: skip
    registry.promote()

    def causes() -> list[str]:
        answer = client.get(f"/v1/payments/{unknown['payment_id']}", params={"ledger": SCREENED})
        return [event["cause"] for event in answer.json()["timeline"]]

    with FaultyModelServer(registry, MODEL_PORT):
        decided = {"approved", "fraud_blocked", "review_wanted"}
        wait_until(lambda: decided & set(causes()), 120, "the model's second decision came to the payment")
    assert causes()[:3] == ["created", "validated", "screening_unknown"]


def test_the_load_of_card_transactions_is_decided_to_the_last(
    parts: Deployment, client: httpx.Client, tmp_path: Path
) -> None:
    output = tmp_path / "load.json"
    done = subprocess.run(
        [STREAMBANK, "load", "--profile", "fraud", "--rate", "20", "--count", "60", "--json", output],
        env=variables(parts.settings), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    assert result["acknowledged_events"] == result["planned_events"] == 60
    assert sum(result["outcomes"].values()) == 60
    assert set(result["outcomes"]) <= {"approve", "review", "block"}


def messages(settings: Settings, kind: str) -> list[tuple[str, str]]:
    """(id, customer) of the notifications of a kind."""
    with psycopg.connect(postgres_conninfo(settings)) as connection:
        query = "SELECT id, customer FROM notifications.messages WHERE kind = %s"
        return connection.execute(query, [kind]).fetchall()


def test_every_payment_ends_once_and_is_told_whatever_dies(
    parts: Deployment, receivers: Receivers, client: httpx.Client, stack: PrivateStack
) -> None:
    servers = {kind.name: stack.get(kind) for kind in SERVER_TYPES}
    # the rest, and every server away, is `streambank soak payments`: it takes minutes
    soak = PaymentsSoak(
        parts, servers, receivers, rate=6, faults=lambda *all_: quick_faults(*all_)[:4], payments_between=12, say=print
    )
    report = soak.run()
    assert report.ok, [check for check in report.checks if not check.ok]
    assert not soak.load.given_up, report.answers
    assert report.figures["payments accepted"] > 100
    assert report.figures["messages sent again"] > 100
    assert report.figures["messages out of order"] > 20
    told = report.more["reconciliation"]["notifications"]
    assert told["wanted"] > 100
    assert told["dead"] == told["dead_with_endpoint"] == 0
    assert report.figures["webhooks"] > 20
    assert report.figures["e-mails"] > 20
    statuses = report.more["reconciliation"]["statuses"]
    assert {"COMPLETED", "FAILED", "BLOCKED", "EXPIRED", "CANCELLED", "PARTIALLY_REFUNDED"} <= statuses.keys()


def test_reconciliation_finds_what_is_wrong_with_notifications(
    parts: Deployment, receivers: Receivers, client: httpx.Client
) -> None:
    made = post(client, "/v1/payments", "told", payment(customer_id=CUSTOMER)).json()
    name = f"payment-{LEDGERS[0] % 4}-{made['payment_id']}-{made['version']}"
    wait_until(lambda: receivers.mails[name] and receivers.hooks[name], 60, "the customer is told")

    def found() -> tuple[list[str], Any]:
        report = reconcile(parts.settings, notifications=True, patience_seconds=0)
        return [difference.what for difference in report.differences], report.notifications

    wait_until(lambda: found()[0] == [] and found()[1].undelivered == 0, 60, "nothing is wrong")
    with psycopg.connect(postgres_conninfo(parts.settings), autocommit=True) as owner:
        owner.execute("UPDATE notifications.deliveries SET state = 'dead', attempts = 9, last_error = 'no answer'"
                      " WHERE message_id = %s AND channel = 'webhook'", [name])  # fmt: skip
        [dead], counts = found()
        assert (dead.split(" at ")[0], counts.dead) == (f"notification {name} is dead", 1)
        owner.execute("UPDATE notifications.endpoints SET disabled_reason = '410' WHERE channel = 'webhook'")
        assert found()[0] == []
        assert found()[1].dead_with_endpoint == 1
        owner.execute("UPDATE notifications.endpoints SET disabled_reason = NULL")
        owner.execute("UPDATE notifications.deliveries SET state = 'delivered' WHERE message_id = %s", [name])
        owner.execute("UPDATE notifications.messages SET customer = 'somebody' WHERE id = %s", [name])
        assert found()[0] == [f"notification {name}: payment.completed to somebody, not payment.completed to 1"]
        owner.execute("UPDATE notifications.messages SET customer = '1' WHERE id = %s", [name])
        owner.execute("INSERT INTO notifications.messages SELECT 'payment-twice', customer, kind, occurred_at, data"
                      " FROM notifications.messages WHERE id = %s", [name])  # fmt: skip
        assert found()[0] == ["notification payment-twice tells of nothing that happened"]
        owner.execute("DELETE FROM notifications.messages WHERE id = 'payment-twice'")
        owner.execute("DELETE FROM notifications.stream WHERE message_id = %s", [name])
        owner.execute("DELETE FROM notifications.deliveries WHERE message_id = %s", [name])
        owner.execute("DELETE FROM notifications.messages WHERE id = %s", [name])
        assert found()[0] == [f"notification {name} (payment.completed) is not in the outbox"]
    waiting = reconcile(parts.settings, notifications=True, patience_seconds=3600)
    assert waiting.clean
    assert waiting.notifications is not None
    assert waiting.notifications.waiting == 1
