"""The load's plan is consistent and deterministic, and its HTTP client repeats exactly what may be repeated."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from models.load import (
    ApiTarget,
    LoadError,
    LoadProgress,
    Pace,
    account_lines,
    load_api,
    run_schedule,
    transfer_lines,
)
from models.load_plan import AccountKind, LoadPlan, account_id, ledger_of_customer, plan_load
from models.load_profiles import load_orders, load_payments
from models.simulator import CardTransactions, simulate
from pipelines.catalogue import LEDGER_SHARDS


@pytest.fixture(scope="module")
def transactions() -> CardTransactions:
    return simulate(customers=200, terminals=1000, days=20)


@pytest.fixture(scope="module")
def plan(transactions: CardTransactions) -> LoadPlan:
    return plan_load(transactions, run=7)


def test_every_payment_is_between_two_accounts_of_its_ledger(plan: LoadPlan) -> None:
    ledger_of = dict(zip(plan.accounts.id.tolist(), plan.accounts.ledger.tolist(), strict=True))
    for transfers in (plan.fundings, plan.payments):
        for side in (transfers.debit_account_id, transfers.credit_account_id):
            assert [ledger_of[account] for account in side.tolist()] == transfers.ledger.tolist()
    assert len(ledger_of) == len(plan.accounts), "account ids are unique"
    assert set(plan.payments.shard.tolist()) == set(range(LEDGER_SHARDS)), "all shards work"


def test_ids_say_what_they_are(plan: LoadPlan, transactions: CardTransactions) -> None:
    assert account_id(1, AccountKind.CUSTOMER, 596) == 12_000_000_596
    customer, terminal = int(transactions.customer[0]), int(transactions.terminal[0])
    ledger = ledger_of_customer(customer)
    assert plan.payments.debit_account_id[0] == account_id(ledger, AccountKind.CUSTOMER, customer)
    assert plan.payments.credit_account_id[0] == account_id(ledger, AccountKind.TERMINAL, terminal)
    assert plan.payments.amount.tolist() == transactions.amount_cents.tolist()
    ids = np.concatenate([plan.fundings.number, plan.payments.number])
    assert len(np.unique(ids)) == len(ids)
    assert ids.min() > 0


def test_funding_covers_all_but_a_stated_share_of_customers(plan: LoadPlan, transactions: CardTransactions) -> None:
    customers = np.unique(transactions.customer)
    assert len(plan.short_customers) == int(np.ceil(len(customers) * 0.1))
    assert len({ledger_of_customer(customer) for customer in plan.short_customers.tolist()}) == 4
    funds = dict(zip(plan.fundings.credit_account_id.tolist(), plan.fundings.amount.tolist(), strict=True))
    for customer in customers.tolist():
        theirs = transactions.amount_cents[transactions.customer == customer]
        funded = funds[account_id(ledger_of_customer(customer), AccountKind.CUSTOMER, customer)]
        assert funded == (theirs[0] if customer in plan.short_customers else theirs.sum())
    limited = plan.accounts.must_not_overdraw
    assert np.array_equal(np.sort(plan.accounts.id[limited]), np.sort(plan.fundings.credit_account_id))


def test_a_run_repeats_itself_and_another_run_has_other_transfers(transactions: CardTransactions) -> None:
    first, again, other = plan_load(transactions, 7), plan_load(transactions, 7), plan_load(transactions, 8)
    assert transfer_lines(first.payments) == transfer_lines(again.payments)
    assert account_lines(first.accounts) == account_lines(other.accounts)
    first_ids = {json.loads(line)["id"] for line in transfer_lines(first.payments)}
    other_ids = {json.loads(line)["id"] for line in transfer_lines(other.payments)}
    assert len(first_ids) == len(first.payments)
    assert not first_ids & other_ids


@pytest.mark.parametrize(("run", "share"), [(0, 0.1), (2**63, 0.1), (1, -0.1), (1, 1.1)])
def test_arguments_out_of_range_are_refused(transactions: CardTransactions, run: int, share: float) -> None:
    with pytest.raises(ValueError, match=r"run|short_share"):
        plan_load(transactions, run, share)


class _Api:
    """An API that misbehaves on purpose; it remembers what it acknowledged."""

    def __init__(self) -> None:
        self.tokens = 0
        self.acknowledged: dict[str, list[str]] = {}
        self.misbehave: Callable[[web.Request, str], Awaitable[web.Response | None]] | None = None

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form["client_secret"] != "right":
            return web.json_response({"error": "invalid_client"}, status=401)
        self.tokens += 1
        return web.json_response({"access_token": f"token-{self.tokens}", "expires_in": 300})

    async def take(self, request: web.Request) -> web.Response:
        if request.headers["Authorization"] != f"Bearer token-{self.tokens}":
            return web.json_response({"title": "expired"}, status=401)
        key, body = request.headers["Idempotency-Key"], await request.text()
        if self.misbehave is not None:
            answer = await self.misbehave(request, key)
            if answer is not None:
                return answer
        self.acknowledged.setdefault(key, []).append(body)
        return web.json_response({}, status=202)


@pytest.fixture
async def api() -> AsyncIterator[tuple[_Api, str]]:
    handlers = _Api()
    app = web.Application()
    app.router.add_post("/oauth/token", handlers.token)
    app.router.add_post("/v1/{kind:.*}", handlers.take)
    async with TestServer(app) as server:
        yield handlers, str(server.make_url("/"))


def _sent_ids(api: _Api, marker: str) -> list[str]:
    bodies = [bodies[0] for key, bodies in api.acknowledged.items() if marker in key]
    return [json.loads(line)["id"] for body in bodies for line in body.splitlines()]


def _target(url: str, *, secret: str = "right") -> ApiTarget:
    return ApiTarget(url, "load", secret, connections=4)


async def test_every_event_is_acknowledged_once_and_accounts_come_first(api: tuple[_Api, str], plan: LoadPlan) -> None:
    handlers, url = api
    progress = LoadProgress(len(plan.payments))
    await load_api(plan, _target(url), Pace(batch=50), progress)
    assert sorted(_sent_ids(handlers, "transfer2")) == sorted(
        json.loads(x)["id"] for x in transfer_lines(plan.payments)
    )
    assert progress.acknowledged.all()
    assert progress.acknowledged_events == progress.sent_events == len(plan.payments)
    assert (progress.failed_events, progress.retries) == (0, 0)
    kinds = [key.split("-")[2] for key in handlers.acknowledged]
    assert kinds == sorted(kinds, key=["account", "transfer1", "transfer2"].index)
    assert set(progress.latency_ms()) == {"p50", "p90", "p99", "p99.9", "max"}


async def test_unavailable_and_expired_are_repeated_with_the_same_key(api: tuple[_Api, str], plan: LoadPlan) -> None:
    handlers, url = api
    refused: set[str] = set()

    async def once(request: web.Request, key: str) -> web.Response | None:
        if key in refused:
            return None
        refused.add(key)
        if len(refused) % 3 == 0:
            handlers.tokens += 1  # the token in use is no longer valid
            return web.json_response({"title": "expired"}, status=401)
        if len(refused) % 3 == 1:
            assert request.transport is not None
            request.transport.close()  # the connection breaks before the answer
            return web.Response()
        return web.json_response({"title": "busy"}, status=503, headers={"Retry-After": "0"})

    handlers.misbehave = once
    progress = LoadProgress(len(plan.payments))
    await load_api(plan, _target(url), Pace(batch=200), progress)
    assert progress.acknowledged.all()
    assert progress.failed_events == 0
    assert progress.retries >= len(refused)
    assert all(len(set(bodies)) == 1 for bodies in handlers.acknowledged.values())


async def test_a_refusal_is_counted_with_its_reason_and_the_rest_goes_on(api: tuple[_Api, str], plan: LoadPlan) -> None:
    handlers, url = api

    async def refuse_first(request: web.Request, key: str) -> web.Response | None:
        return web.json_response({"detail": "amount: negative"}, status=422) if "-transfer2-0-" in key else None

    handlers.misbehave = refuse_first
    progress = LoadProgress(len(plan.payments))
    await load_api(plan, _target(url), Pace(batch=100), progress)
    assert progress.failed_events == 100
    assert not progress.acknowledged[:100].any()
    assert progress.acknowledged[100:].all()
    assert "422" in progress.failures[0]
    assert "amount: negative" in progress.failures[0]


async def test_a_wrong_secret_or_no_api_is_an_error_that_says_so(api: tuple[_Api, str], plan: LoadPlan) -> None:
    _, url = api
    with pytest.raises(LoadError, match="invalid_client"):
        await load_api(plan, _target(url, secret="wrong"), Pace(), LoadProgress(len(plan.payments)))
    with pytest.raises(LoadError, match="does not answer"):
        await load_api(plan, _target("http://127.0.0.1:9"), Pace(), LoadProgress(len(plan.payments)))


async def test_a_time_limit_stops_a_load_that_cannot_finish(api: tuple[_Api, str], plan: LoadPlan) -> None:
    handlers, url = api

    async def slow(request: web.Request, key: str) -> None:
        if "transfer2" in key:
            await asyncio.sleep(0.05)

    handlers.misbehave = slow
    progress = LoadProgress(len(plan.payments))
    await load_api(plan, _target(url), Pace(batch=1, seconds=0.3), progress)
    assert 0 < progress.sent_events < len(plan.payments)
    assert progress.sent_events == progress.acknowledged_events == int(progress.acknowledged.sum())


async def test_who_waits_for_a_client_is_measured_from_when_it_was_due() -> None:
    """No coordinated omission: while one answer is slow, the schedule goes on, and so does the clock of the others."""
    events, rate = 50, 1000.0
    progress = LoadProgress(events)
    freed = 0.0

    async def send(first: int, stop: int) -> str | None:
        nonlocal freed
        if first == 0:
            await asyncio.sleep(progress.started + events / rate - time.perf_counter())  # until all are due
            freed = time.perf_counter()
        return "no" if first == 7 else None

    await run_schedule(events, Pace(rate=rate, batch=1), 1, send, progress)
    due = [progress.started + (number + 1) / rate for number in range(events) if number != 7]
    for latency, at in zip(progress.latencies, due, strict=True):
        assert latency >= freed - at
    assert progress.latencies[0] >= progress.latencies[-1]
    assert (progress.acknowledged_events, progress.failed_events, progress.failures) == (events - 1, 1, ["no"])
    assert not progress.acknowledged[7]


async def test_payments_and_orders_are_played_to_their_outcome(api: tuple[_Api, str]) -> None:
    handlers, url = api
    asked: list[tuple[str, str, dict[str, object]]] = []

    async def answer(request: web.Request, key: str) -> web.Response:
        body = await request.json()
        asked.append((request.path, request.headers.get("Prefer", ""), body))
        if request.path == "/v1/ledger/events":
            return web.json_response({"results": [{"result": "exists"} for _ in body]}, status=200)
        if request.path == "/v1/orders":
            return web.json_response({"results": [{"exec_type": "NEW"}]}, status=201)
        number = int(key.rpartition("-")[2])
        if number == 3:
            return web.json_response({"detail": "amount"}, status=422)
        status = "COMPLETED" if number % 2 else "FAILED"
        return web.json_response({"status": status}, status=201)

    handlers.misbehave = answer
    progress = LoadProgress(10)
    await load_payments(_target(url), Pace(), 77, progress)
    assert progress.outcomes == {"COMPLETED": 4, "FAILED": 5}
    assert (progress.acknowledged_events, progress.failed_events) == (9, 1)
    assert progress.setup_done == progress.setup_events == len(asked[0][2])
    payments = [body for path, _, body in asked if path == "/v1/payments"]
    assert {body["ledger"] for body in payments} == {700, 701, 702, 703}
    assert {prefer for _, prefer, _ in asked} == {"wait=20"}
    assert len({body["reference"] for body in payments}) == 10

    progress = LoadProgress(8)
    await load_orders(_target(url), Pace(), 77, progress)
    assert progress.outcomes == {"NEW": 8}
    orders = [body for path, _, body in asked if path == "/v1/orders"]
    assert len({body["order_id"] for body in orders}) == 8
    assert [body["side"] for body in sorted(orders, key=lambda one: int(str(one["order_id"])))] == ["BUY", "SELL"] * 4
