"""Payments from the API to a final status on the real servers, while processes die.

Both jobs, the relays, the clock, the sink and the API run as an operator starts them. A relay and the TaskManager are
killed in mid-flow and requests are repeated: every accepted payment reaches exactly one final status, the ledger's
sums hold, nothing stays held, and reconciliation finds no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from api.clients import ClientStore
from infra.flink_rest import FlinkRest
from infra.settings import Settings
from infra.stack.flink import Flink
from jobs.payments_reconcile import reconcile
from tests.support.deployment import Deployment, Service
from tests.support.stack import PrivateStack, free_ports
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

LEDGERS = (700, 701)
BANK, PAYER, PAYEE, EMPTY = 1, 10, 11, 12
FUNDS = 1_000_000


class PaymentsDeployment(Deployment):
    """The API with what payments need beside it."""

    def __init__(self, environment: Settings, directory: Any) -> None:
        super().__init__(environment, directory, api_workers=1)
        make = self._service_maker(directory)
        names = ("payments-to-ledger", "ledger-to-payments", "postgres-payments")
        ports = free_ports(len(names))
        self.relays: dict[str, Service] = {
            name: make(name, "sink", name, "--web-port", str(port)) for name, port in zip(names, ports, strict=True)
        }
        self.clock = make("clock", "payments", "clock")
        self.services = (self.api, *self.relays.values(), self.clock)

    def __enter__(self) -> PaymentsDeployment:
        super().__enter__()
        self.run("submit", "payments", "--checkpoint-interval", "1 s")
        return self

    def stop(self) -> None:
        with suppress(Exception), FlinkRest(self.environment) as flink:
            for job in flink.jobs():
                if job.name == self.environment.kafka_topic("payments") and not job.is_terminal:
                    flink.cancel(job)
        super().stop()


@pytest.fixture(scope="module")
def deployment(stack: PrivateStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PaymentsDeployment]:
    environment = stack.environment("kafka", "registry", "postgres", "cassandra", "valkey", "flink")
    with PaymentsDeployment(environment, tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(scope="module")
def client(deployment: PaymentsDeployment) -> Iterator[httpx.Client]:
    environment = deployment.environment
    store = ClientStore(environment.secrets_dir / "clients.json")
    found, secret = store.add("test", ["ledger:write", "ledger:read", "payments:write", "payments:read"])
    with httpx.Client(base_url=environment.api_url, timeout=90) as http:
        token = http.post(
            "/oauth/token", data={"grant_type": "client_credentials"}, auth=(found.client_id, secret)
        ).json()["access_token"]
        http.headers["Authorization"] = f"Bearer {token}"
        accounts = [
            {"id": account, "ledger": ledger, "code": 1,
             "flags": [] if account == BANK else ["debits_must_not_exceed_credits"]}
            for ledger in LEDGERS for account in (BANK, PAYER, PAYEE, EMPTY)
        ]  # fmt: skip
        funds = [
            {
                "id": 1,
                "debit_account_id": BANK,
                "credit_account_id": PAYER,
                "amount": FUNDS,
                "ledger": ledger,
                "code": 9,
            }
            for ledger in LEDGERS
        ]
        for path, body in (("/v1/accounts", accounts), ("/v1/transfers", funds)):
            answer = http.post(path, json=body, headers={"Idempotency-Key": path, "Prefer": "wait=60"})
            assert answer.status_code == 201, answer.text
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
        return [event["cause"] for event in answer.json()["timeline"]] if answer.status_code == 200 else []

    wanted = ["created", "validated", "not_screened", "reserved", "captured", "refund_requested", "refunded_in_part"]
    wait_until(lambda: timeline() == wanted, 60, "the sink has the payment's timeline")

    def statuses() -> list[str]:
        listed = client.get("/v1/payments", params={"account_id": EMPTY, "ledger": LEDGERS[0]})
        return [found["status"] for found in listed.json()["payments"]]

    wait_until(lambda: statuses() == ["FAILED"], 60, "the sink has the payment that failed")


def test_every_payment_ends_once_whatever_dies(
    deployment: PaymentsDeployment, client: httpx.Client, stack: PrivateStack
) -> None:
    def batch(number: int) -> list[int]:
        ledger = LEDGERS[number % 2]
        body = {"payments": [payment(1 + index, ledger, reference=f"{number}-{index}") for index in range(10)]}
        found: list[int] = []
        for _ in range(1 + number % 3 // 2):  # some are sent twice
            answer = post(client, "/v1/payments/batch", f"batch-{number}", body, wait=0)
            assert answer.status_code == 202, answer.text
            ids = [int(made["payment_id"]) for made in answer.json()["payments"]]
            assert found in ([], ids)
            found = ids
        return found

    with ThreadPoolExecutor(4) as pool:
        accepted = [found for ids in pool.map(batch, range(12)) for found in ids]
        for name in ("payments-to-ledger", "ledger-to-payments"):
            deployment.relays[name].kill()
            accepted += [found for ids in pool.map(batch, range(100 + 10 * len(accepted), 104 + 10 * len(accepted)))
                         for found in ids]  # fmt: skip
            deployment.relays[name].start()
        flink = stack.get(Flink)
        flink.kill_task_manager()
        flink.start_task_manager()
        accepted += [found for ids in pool.map(batch, range(10_000, 10_008)) for found in ids]

    environment = deployment.environment

    def settled() -> bool:
        report = reconcile(environment)
        return report.waiting == 0 and report.payments >= len(accepted) + 3

    wait_until(settled, 240, "every payment has its final status")
    report = reconcile(environment)
    assert report.clean, report.as_json()
    assert report.held == 0
    assert len(set(accepted)) == len(accepted)
    assert report.payments == len(accepted) + 3
    assert set(report.statuses) <= {"COMPLETED", "PARTIALLY_REFUNDED", "FAILED"}
    assert report.statuses["COMPLETED"] == len(accepted) + 1
    wait_until(lambda: reconcile(environment, postgres=True).clean, 120, "Postgres has them all")
    deployment.run("payments", "reconcile", "--no-notifications", "--json")
    for service in (*deployment.relays.values(), deployment.clock):
        service.require_alive()
