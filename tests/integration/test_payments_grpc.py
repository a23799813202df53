"""Payments by gRPC, and operators over HTTP, with gateway, kernel, Postgres and its sink behind them.

No ledger answers here: payments come to rest where they need none (scheduled, rejected, in review, declined).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import grpc
import httpx
import psycopg
import pytest

from api.proto import payments_pb2 as pb
from api.proto.payments_pb2_grpc import TransactionServiceStub
from infra.migrations import migrate_postgres
from infra.settings import Settings
from infra.stores import API_ROLE, postgres_conninfo
from jobs.payments_clock import send_command
from pipelines.catalogue import PAYMENTS_COMMANDS, PAYMENTS_SHARDS
from tests.support.api_server import ApiServer, frames_in_topic, running_api, running_system
from tests.support.provision import provision
from tests.support.sinks import running
from tests.support.stack import PrivateStack, free_ports
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

GRPC_PORT = free_ports(1)[0]
LEDGER, SCREENED_LEDGER = 700, 701
PAYER, PAYEE = 2**100 + 10, 11
DAY = 86_400_000_000
WAIT = 30
IN_FLIGHT = 32
Metadata = list[tuple[str, str]]


@pytest.fixture(scope="module")
def api(stack: PrivateStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    environment = stack.environment("kafka", "registry", "postgres", "valkey")
    provision(environment)
    migrate_postgres(environment)
    directory = tmp_path_factory.mktemp("payments")
    with (
        running_system(environment, "payments"),
        running(environment, "postgres-payments", directory / "sink.log"),
        running_api(
            environment,
            directory / "api",
            workers=1,
            grpc_port=GRPC_PORT,
            wait_seconds=WAIT,
            payments_in_flight=IN_FLIGHT,
        ) as server,  # fmt: skip
    ):
        yield server


@pytest.fixture(scope="module")
def stub(api: ApiServer) -> Iterator[Any]:
    with grpc.insecure_channel(f"{api.environment.host}:{GRPC_PORT}") as channel:
        grpc.channel_ready_future(channel).result(20)
        yield TransactionServiceStub(channel)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def bearer(api: ApiServer, stub: Any) -> Metadata:
    """Of a client that may pay and read; the worker follows the job's answers by now."""
    metadata = token(api, "payments:write", "payments:read")

    def follows() -> bool:
        request = asked(payee_account_id=wide(PAYER))
        return bool(stub.ProcessPayment(request, metadata=metadata, timeout=60).payment.status == "REJECTED")

    wait_until(follows, 90, "the gateway hears where a payment came to rest")
    return metadata


def token(api: ApiServer, *scopes: str) -> Metadata:
    return [("authorization", f"Bearer {api.token(*scopes)}")]


def wide(number: int) -> Any:
    return pb.Uint128(low=number & 2**64 - 1, high=number >> 64)


def number_of(message: Any) -> int:
    return int(message.low | message.high << 64)


def asked(key: str = "", wait: int = WAIT, **fields: Any) -> Any:
    fields = {
        "payer_account_id": wide(PAYER), "payee_account_id": wide(PAYEE), "ledger": LEDGER, "currency": "EUR",
        "amount": 100, **fields,
    }  # fmt: skip
    return pb.ProcessPaymentRequest(
        idempotency_key=key or str(uuid4()), payment=pb.NewPayment(**fields), wait_seconds=wait
    )


def refused(call: Any, request: Any, metadata: Metadata | None) -> tuple[grpc.StatusCode, str, str]:
    """(status, problem, detail) of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, metadata=metadata, timeout=60)
    error: Any = caught.value
    return error.code(), dict(error.trailing_metadata()).get("problem", ""), error.details()


def audited(environment: Settings) -> list[tuple[str, str, list[int], dict[str, Any]]]:
    """(tenant, endpoint, payments, first command) of every entry of the audit log."""
    with psycopg.connect(postgres_conninfo(environment, API_ROLE)) as postgres:
        rows = postgres.execute(
            "SELECT tenant, endpoint, payment_ids, commands, remote, trace_id FROM payment_audit"
            " JOIN payment_requests USING (tenant, endpoint, key) ORDER BY id"
        ).fetchall()
    assert all(remote == "127.0.0.1" and len(trace) == 32 for *_, remote, trace in rows), rows
    return [(tenant, endpoint, [int(one) for one in ids], found[0]) for tenant, endpoint, ids, found, *_ in rows]


def put(session: httpx.Client, path: str, body: Any, key: str = "", wait: int = WAIT) -> httpx.Response:
    method = "PUT" if path.endswith("/limits") else "POST"
    headers = {"Idempotency-Key": key or str(uuid4()), **({"Prefer": f"wait={wait}"} if wait else {})}
    return session.request(method, path, json=body, headers=headers, timeout=90)


def test_one_payment(api: ApiServer, stub: Any, bearer: Metadata) -> None:
    tomorrow = time.time_ns() // 1000 + DAY
    big = 2**95 + 7
    fields = {"payment_id": wide(big), "execute_at": tomorrow, "capture": pb.MANUAL, "device": "phone"}
    made = stub.ProcessPayment(asked("one", reference="invoice 7", **fields), metadata=bearer, timeout=60)
    payment = made.payment
    assert (payment.status, payment.reason, payment.iso_status, payment.version) == ("RECEIVED", "none", "RCVD", 1)
    assert [number_of(payment.payment_id), number_of(payment.payer_account_id)] == [big, PAYER]
    assert (payment.amount, payment.execute_at, payment.capture, payment.reference, made.replayed) == (
        100, tomorrow, pb.MANUAL, "invoice 7", False,
    )  # fmt: skip

    # the key: the same answer, whatever the wait; another payment is refused, another client's key is another key
    again = stub.ProcessPayment(asked("one", 0, reference="invoice 7", **fields), metadata=bearer, timeout=60)
    assert (again.payment, again.replayed) == (payment, True)
    reused = refused(stub.ProcessPayment, asked("one", reference="invoice 8", **fields), bearer)
    assert reused[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "idempotency-key-reused")
    other = token(api, "payments:write")
    taken = asked("one", amount=5, payment_id=wide(big))
    conflict = refused(stub.ProcessPayment, taken, other)
    assert conflict[:2] == (grpc.StatusCode.ABORTED, "payment-conflict")
    assert refused(stub.ProcessPayment, taken, other) == conflict, "a refusal is kept too"

    for request, metadata, expected in (
        (asked(), None, (grpc.StatusCode.UNAUTHENTICATED, "unauthorized")),
        (asked(), token(api, "payments:read"), (grpc.StatusCode.PERMISSION_DENIED, "insufficient-scope")),
        (pb.ProcessPaymentRequest(), bearer, (grpc.StatusCode.INVALID_ARGUMENT, "idempotency-key-missing")),
        (asked("no spaces"), bearer, (grpc.StatusCode.INVALID_ARGUMENT, "bad-header")),
        (asked(amount=-1), bearer, (grpc.StatusCode.INVALID_ARGUMENT, "invalid-event")),
        (asked(capture=9), bearer, (grpc.StatusCode.INVALID_ARGUMENT, "invalid-event")),
    ):
        assert refused(stub.ProcessPayment, request, metadata)[:2] == expected
    assert "amount: " in refused(stub.ProcessPayment, asked(amount=-1), bearer)[2]

    accepted = stub.ProcessPayment(asked(wait=0), metadata=bearer, timeout=60).payment
    assert (accepted.status, accepted.ledger) == ("ACCEPTED", LEDGER)

    def found(payment_id: Any, ledger: int = 0) -> Any:
        request = pb.GetPaymentRequest(payment_id=payment_id, ledger=ledger)
        return stub.GetPayment(request, metadata=bearer, timeout=60)

    def visible() -> bool:
        try:
            return bool(found(accepted.payment_id).status == "SCREENED")
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return False

    wait_until(visible, 60, "the sink has the payment")
    stored = found(wide(big), LEDGER)
    assert [entry.cause for entry in stored.timeline] == ["created"]
    stored.ClearField("timeline")
    assert stored == payment
    for ids, metadata, expected in (
        ((wide(5), 0), bearer, (grpc.StatusCode.NOT_FOUND, "not-found")),
        ((wide(big), LEDGER + 1), bearer, (grpc.StatusCode.NOT_FOUND, "not-found")),
        ((wide(0), 0), bearer, (grpc.StatusCode.INVALID_ARGUMENT, "bad-parameter")),
        ((wide(big), 0), other, (grpc.StatusCode.PERMISSION_DENIED, "insufficient-scope")),
    ):
        request = pb.GetPaymentRequest(payment_id=ids[0], ledger=ids[1])
        assert refused(stub.GetPayment, request, metadata)[:2] == expected


def test_a_stream_of_payments(api: ApiServer, stub: Any, bearer: Metadata) -> None:
    tomorrow = time.time_ns() // 1000 + DAY
    ids = [10_000 + number for number in range(100)]
    requests = [
        asked(f"stream-{payment_id}", payment_id=wide(payment_id), execute_at=tomorrow, amount=1 + payment_id % 7)
        for payment_id in ids
    ]
    requests[40].payment.amount = -1
    requests[60].payment.payee_account_id.CopyFrom(requests[60].payment.payer_account_id)

    results = list(stub.StreamPayments(iter(requests), metadata=bearer, timeout=90))
    assert [result.idempotency_key for result in results] == [request.idempotency_key for request in requests]
    assert (results[40].refusal.code, results[40].refusal.problem) == ("INVALID_ARGUMENT", "invalid-event")
    assert results[60].processed.payment.reason == "accounts_must_be_different"
    for number in set(range(100)) - {40, 60}:
        payment = results[number].processed.payment
        assert (number_of(payment.payment_id), payment.status) == (ids[number], "RECEIVED")
    commands = [command for _, events in sorted(frames_in_topic(api.environment, PAYMENTS_COMMANDS).items())
                for command in events]  # fmt: skip
    sent = [int(command["payment_id"]) for command in commands if int(command.get("payment_id", 0)) in ids]
    assert sent == [payment_id for payment_id in ids if payment_id != ids[40]], "once, and in the order of the stream"

    # again from its middle, as after a broken stream, and one of them on its own
    again = list(stub.StreamPayments(iter(requests[50:]), metadata=bearer, timeout=90))
    assert [result.processed.payment for result in again] == [result.processed.payment for result in results[50:]]
    assert all(result.processed.replayed for result in again)
    alone = stub.ProcessPayment(requests[0], metadata=bearer, timeout=60)
    assert (alone.payment, alone.replayed) == (results[0].processed.payment, True)
    assert refused(lambda request, **more: list(stub.StreamPayments(iter([request]), **more)), requests[0], None)[
        0
    ] == (grpc.StatusCode.UNAUTHENTICATED)


def test_the_same_by_http(api: ApiServer, bearer: Metadata) -> None:
    body = {"payer_account_id": 41, "payee_account_id": 42, "ledger": LEDGER, "currency": "EUR", "amount": 7}
    later = body | {"execute_at": time.time_ns() // 1000 + DAY}
    with api.session("payments:write", "payments:read") as client:
        made = put(client, "/v1/payments", later, "one")
        assert (made.status_code, made.json()["status"]) == (201, "RECEIVED"), made.text
        assert made.headers["Location"] == f"/v1/payments/{made.json()['payment_id']}?ledger={LEDGER}"
        again = put(client, "/v1/payments", later, "one")
        assert (again.status_code, again.content, again.headers["Idempotency-Replayed"]) == (201, made.content, "true")
        assert again.headers["Location"] == made.headers["Location"]
        both = put(client, "/v1/payments/batch", {"payments": [body, body | {"payee_account_id": 41}]}, wait=0)
        assert [found["status"] for found in both.json()["payments"]] == ["ACCEPTED"] * 2
        assert put(client, "/v1/payments", [], "two").status_code == 422
        assert put(client, "/v1/payments", {**body, "reviewer": ""}).status_code == 422
        cancelled = put(client, f"/v1/payments/{made.json()['payment_id']}/cancel", {"ledger": LEDGER})
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "CANCELLED")

        def listed() -> list[str]:
            found = client.get("/v1/payments", params={"account_id": 41, "ledger": LEDGER})
            return sorted(payment["status"] for payment in found.raise_for_status().json()["payments"])

        wait_until(lambda: listed() == ["CANCELLED", "REJECTED", "SCREENED"], 60, "the sink has them")
        one = client.get(f"/v1/payments/{made.json()['payment_id']}", params={"ledger": LEDGER}).json()
        assert [event["cause"] for event in one["timeline"]] == ["created", "cancelled"]


def test_what_operators_decide(api: ApiServer, stub: Any, bearer: Metadata) -> None:
    environment = api.environment
    with api.session("payments:review", "payments:admin") as operator, api.session("payments:write") as client:
        limits = {"ledger": LEDGER, "per_payment": 50, "per_day": 0, "per_month": 1_000_000}
        path = "/v1/payers/21/limits"
        answer = put(operator, path, limits, "limits")
        assert (answer.status_code, answer.json()) == (200, {**limits, "account_id": 21})
        again = put(operator, path, limits, "limits")
        assert (again.content, again.headers["Idempotency-Replayed"]) == (answer.content, "true")
        assert put(operator, path, {**limits, "per_payment": 60}, "limits").status_code == 422
        above = stub.ProcessPayment(asked(payer_account_id=wide(21), amount=51), metadata=bearer, timeout=60).payment
        assert (above.status, above.reason) == ("REJECTED", "payment_limit_exceeded")
        for wrong, pointer in (
            ({"ledger": LEDGER, "per_payment": 1, "per_month": 1}, "/per_day"),
            ({**limits, "account_id": 22}, "/account_id"),
            ({**limits, "ledger": None}, "/ledger"),
            ({**limits, "per_day": -1}, "/per_day"),
        ):
            bad = put(operator, path, wrong)
            assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, pointer), bad.text
        assert put(operator, "/v1/payers/0/limits", limits).status_code == 400
        assert put(client, path, limits).status_code == 403

        shard = SCREENED_LEDGER % PAYMENTS_SHARDS
        rules = {"ledger": SCREENED_LEDGER, "screening": "stream", "screening_seconds": 3600}
        send_command(environment, shard, {"type": "PaymentRules", **rules})
        for payment_id in (31, 32):
            request = asked(payment_id=wide(payment_id), ledger=SCREENED_LEDGER, wait=0)
            stub.ProcessPayment(request, metadata=bearer, timeout=60)
            decision = {"type": "FraudDecision", "payment_id": payment_id, "decision": "REVIEW"}
            send_command(environment, shard, decision)
        no, yes = ({"ledger": SCREENED_LEDGER, "approved": found, "note": "called"} for found in (False, True))
        assert put(client, "/v1/payments/31/review", no).status_code == 403
        declined = put(operator, "/v1/payments/31/review", no, "review-31")
        assert (declined.status_code, declined.json()["status"]) == (200, "BLOCKED"), declined.text
        assert declined.json()["reason"] == "review_declined"
        assert put(operator, "/v1/payments/31/review", no, "review-31").content == declined.content
        late = put(operator, "/v1/payments/31/review", yes)
        assert (late.status_code, late.json()["payment_status"]) == (409, "BLOCKED")
        assert put(operator, "/v1/payments/32/review", yes, wait=0).status_code == 202
        for unfit, pointer in (
            ({**yes, "reviewer": "me"}, "/reviewer"), ({**yes, "note": "x" * 1001}, "/note"),
            ({"ledger": SCREENED_LEDGER}, "/approved"),
        ):  # fmt: skip
            bad = put(operator, "/v1/payments/32/review", unfit)
            assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, pointer), bad.text
        assert put(operator, "/v1/payments/77/review", yes).status_code == 404

        paths = operator.get("/openapi.json").json()["paths"]
        assert paths["/v1/payments/{id}/review"]["post"]["security"] == [{"oauth": ["payments:review"]}]
        assert paths["/v1/payers/{account}/limits"]["put"]["security"] == [{"oauth": ["payments:admin"]}]

    def causes(payment_id: int) -> list[str]:
        try:
            request = pb.GetPaymentRequest(payment_id=wide(payment_id), ledger=SCREENED_LEDGER)
            return [entry.cause for entry in stub.GetPayment(request, metadata=bearer, timeout=60).timeline]
        except grpc.RpcError:
            return []

    approved = ["created", "validated", "review_wanted", "review_approved"]
    wait_until(lambda: causes(32)[:4] == approved, 60, "the approved payment goes on")

    entries = audited(environment)
    [(tenant, _, ids, command)] = [entry for entry in entries if entry[1] == "/v1/payers/{account}/limits"]
    assert (ids, command["account_id"], command["per_payment"]) == ([], 21, 50)
    reviews = [entry for entry in entries if entry[1] == "/v1/payments/{id}/review"]
    assert [(who, ids, found["approved"], found["reviewer"]) for who, _, ids, found in reviews] == [
        (tenant, [31], False, tenant), (tenant, [31], True, tenant), (tenant, [32], True, tenant),
        (tenant, [77], True, tenant),
    ]  # fmt: skip
    assert any(endpoint == "/payments.v1.TransactionService/ProcessPayment" for _, endpoint, *_ in entries)


def test_a_store_that_hangs_is_left_alone_and_holds_up_payments_only(api: ApiServer) -> None:
    with api.session("payments:write", "ledger:write") as client:

        def pay(_: object = None) -> str:
            body = {
                "payer_account_id": PAYER, "payee_account_id": PAYEE, "ledger": LEDGER, "currency": "EUR", "amount": 1,
            }  # fmt: skip
            answer = put(client, "/v1/payments", body, wait=0)
            return "" if answer.status_code == 202 else str(answer.json()["type"]).rpartition("/")[2]

        def failures() -> float:
            name = "streambank_api_store_failures_total"
            return sum(
                float(line.split()[-1]) for line in client.get("/metrics").text.splitlines() if name in line[:40]
            )

        def is_left_alone() -> bool:
            before = failures()
            return pay() == "store-unavailable" and failures() == before

        assert pay() == ""
        with (
            psycopg.connect(postgres_conninfo(api.environment)) as owner,
            ThreadPoolExecutor(IN_FLIGHT + 8) as clients,
        ):
            owner.execute("LOCK TABLE payment_requests IN ACCESS EXCLUSIVE MODE")
            # the bulkhead: so many wait for the store, the others are told at once
            answers = set(clients.map(pay, range(IN_FLIGHT + 8)))
            assert answers <= {"store-unavailable", "overloaded"}
            assert "overloaded" in answers
            # the breaker: after some failures it is not even asked
            wait_until(is_left_alone, 60, "the store is left alone")
            assert put(client, "/v1/accounts", {"id": 1, "ledger": 1, "code": 1}, wait=0).status_code == 202
        wait_until(lambda: pay() == "", 60, "payments are taken again")


def test_payments_that_wait_in_vain_keep_nobody_out(api: ApiServer) -> None:
    body = {"payer_account_id": PAYER, "payee_account_id": PAYEE, "ledger": LEDGER, "currency": "EUR", "amount": 1}

    def recorded() -> bool:
        with psycopg.connect(postgres_conninfo(api.environment)) as owner:
            [count] = owner.execute("SELECT count(*) FROM payment_requests WHERE answer_status IS NULL").fetchone() or [
                0
            ]
        return bool(count >= IN_FLIGHT)

    with api.session("payments:write") as client, ThreadPoolExecutor(IN_FLIGHT) as clients:
        # no ledger answers: they wait to their end, and fill all places
        waiting = [clients.submit(put, client, "/v1/payments", body, wait=15) for _ in range(IN_FLIGHT)]
        wait_until(recorded, 60, "all of them are under way")
        wait_until(lambda: put(client, "/v1/payments", body, wait=0).status_code == 202, 60, "another is taken")
        assert not any(answer.done() for answer in waiting)
        assert {answer.result().status_code for answer in waiting} == {202}
