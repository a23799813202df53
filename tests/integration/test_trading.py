"""Order entry on real Kafka, registry and Valkey: REST and gRPC, answered by the matching kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra import topics
from infra.registry import register
from infra.settings import Settings
from pipelines.catalogue import MATCHING_COMMANDS, TOPICS
from pipelines.matching.routing import shard_of
from tests.support.api_server import ApiServer, frames_in_topic, running_api, running_system, write
from tests.support.stack import PrivateStack

pytestmark = pytest.mark.stack

SCOPES = ("orders:write", "orders:read", "orders:admin")


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry", "valkey")
    topics.apply(environment)
    for topic in TOPICS.values():
        register(topic, environment)
    return environment


@pytest.fixture(scope="module")
def api(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with (
        running_system(environment, "matching"),
        running_api(environment, tmp_path_factory.mktemp("api"), workers=1, orders_per_minute=200) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def session(api: ApiServer) -> Iterator[httpx.Client]:
    with api.session(*SCOPES) as client:
        yield client


def order(order_id: int, side: str, price: int, quantity: int, **more: Any) -> dict[str, Any]:
    return {
        "order_id": order_id, "account": "ALICE", "symbol": "ACME", "side": side, "price": price,
        "quantity": quantity, **more,
    }  # fmt: skip


def outcomes(answer: httpx.Response) -> list[tuple[Any, ...]]:
    names = ("index", "exec_type", "order_id", "price", "quantity", "leaves_quantity", "reason")
    return [tuple(report.get(name) for name in names) for report in answer.json()["results"]]


def test_an_order_is_entered_traded_amended_and_canceled(environment: Settings, session: httpx.Client) -> None:
    entered = write(session, "/v1/orders", order(1, "SELL", 100, 5, account="BOB"), Prefer="wait=20")
    assert entered.status_code == 201, entered.text
    assert entered.headers["Location"] == "/v1/orders/1?symbol=ACME"
    assert outcomes(entered) == [(0, "NEW", 1, 100, 5, 5, "NONE")]
    shard = shard_of("ACME")
    assert entered.json()["events"] == [
        {"index": 0, "type": "NewOrder", "order_id": 1, "symbol": "ACME", "account": "BOB", "shard": shard}
    ]
    place = entered.json()["frames"][0]
    recorded = frames_in_topic(environment, MATCHING_COMMANDS)[place["shard"], place["offset"]]
    assert [event["order_id"] for event in recorded] == [1]

    both = write(session, "/v1/orders", [order(2, "BUY", 101, 2), order(3, "BUY", 99, 4)], Prefer="wait=20")
    assert outcomes(both) == [
        (0, "NEW", 2, 101, 2, 2, "NONE"), (0, "TRADE", 2, 100, 2, 0, "NONE"), (1, "NEW", 3, 99, 4, 4, "NONE"),
    ]  # fmt: skip
    assert not any("maker_account" in report or "maker_order_id" in report for report in both.json()["results"])

    amended = session.patch("/v1/orders/3", json={"symbol": "ACME", "account": "ALICE", "price": 98, "quantity": 3},
                            headers={"Idempotency-Key": "amend 3".replace(" ", "-"), "Prefer": "wait=20"})  # fmt: skip
    assert outcomes(amended) == [(0, "REPLACED", 3, 98, 3, 3, "NONE")]
    not_mine = write(session, "/v1/orders/3/cancel", {"symbol": "ACME", "account": "BOB"}, Prefer="wait=20")
    assert (not_mine.status_code, not_mine.json()["results"][0]["reason"]) == (200, "UNKNOWN_ORDER")
    canceled = write(session, "/v1/orders/3/cancel", {"symbol": "ACME", "account": "ALICE"}, Prefer="wait=20")
    assert (canceled.status_code, outcomes(canceled)) == (201, [(0, "CANCELED", 3, 98, 3, 0, "USER_REQUEST")])


def test_bad_orders_are_refused_by_the_api_or_by_the_market(session: httpx.Client) -> None:
    nothing = write(session, "/v1/orders", {"order_id": 1, "side": "BUY"})
    assert nothing.status_code == 422
    assert [error["pointer"] for error in nothing.json()["errors"]] == ["/quantity"]
    homeless = write(session, "/v1/orders/7/cancel", {"symbol": "ACME"})
    assert (homeless.status_code, homeless.json()["errors"]) == (
        422, [{"pointer": "/account", "detail": "a CancelOrder needs it"}]
    )  # fmt: skip
    contrary = write(session, "/v1/orders/7/cancel", {"symbol": "ACME", "account": "A", "order_id": 8})
    assert contrary.json()["errors"][0]["pointer"] == "/order_id"
    lines = b'{"order_id": 70, "symbol": "B", "side": "BUY", "price": 1, "quantity": 1}\n{"order_id": "x"}\n'
    listed = write(session, "/v1/orders", lines, "application/x-ndjson", Prefer="wait=20")
    assert (listed.status_code, listed.json()["accepted"], listed.json()["errors"][0]["line"]) == (207, 1, 2)
    assert listed.json()["results"][0]["exec_type"] == "NEW"
    twice = write(session, "/v1/orders", order(70, "BUY", 1, 1, symbol="B"), Prefer="wait=20")
    assert (twice.status_code, twice.json()["results"][0]["reason"]) == (200, "DUPLICATE_ORDER")


def test_an_account_has_a_limit_of_its_own(session: httpx.Client) -> None:
    orders = [order(1000 + number, "BUY", 1, 1, account="BUSY") for number in range(150)]
    assert write(session, "/v1/orders", orders).status_code == 202
    refused = write(session, "/v1/orders", orders)
    assert (refused.status_code, '"orders"' in refused.headers["RateLimit"]) == (429, True)
    assert write(session, "/v1/orders", order(1999, "BUY", 1, 1)).status_code == 202


def test_admin_events_reach_every_shard_and_deposits_one(
    environment: Settings, api: ApiServer, session: httpx.Client
) -> None:
    with api.session("orders:write") as trader:
        assert write(trader, "/v1/trading/events", {"type": "KillSwitch", "account": "C"}).status_code == 403
    define = {"type": "AccountDefinition", "account": "C", "risk": "OFF"}
    assert write(session, "/v1/trading/events", define, Prefer="wait=20").status_code == 201
    kill = write(session, "/v1/trading/events", {"type": "KillSwitch", "account": "C"}, Prefer="wait=20")
    assert (kill.status_code, kill.json()["accepted"]) == (201, 1)
    assert sorted(report["shard"] for report in kill.json()["results"]) == [0, 1, 2, 3]
    blocked = write(session, "/v1/orders", order(80, "BUY", 1, 1, account="C"), Prefer="wait=20")
    assert blocked.json()["results"][0]["reason"] == "ACCOUNT_BLOCKED"

    deposit = {"type": "Deposit", "account": "C", "asset": "USD", "amount": 5}
    nowhere = write(session, "/v1/trading/events", deposit)
    assert (nowhere.status_code, "?symbol=" in nowhere.text) == (422, True)
    put = write(session, "/v1/trading/events?symbol=ACME", deposit, Prefer="wait=20")
    assert [report["shard"] for report in put.json()["results"]] == [shard_of("ACME")]
    deposits = [
        place for place, events in frames_in_topic(environment, MATCHING_COMMANDS).items()
        if any(event["type"] == "Deposit" for event in events)
    ]  # fmt: skip
    assert [shard for shard, _ in deposits] == [shard_of("ACME")]
