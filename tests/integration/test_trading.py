"""Order entry on real Kafka, registry and Valkey: REST and gRPC, answered by the matching kernel."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import aiohttp
import grpc
import httpx
import pytest

from api.proto import trading_pb2 as pb
from api.proto.trading_pb2_grpc import TradingServiceStub
from infra.settings import Settings
from pipelines.catalogue import MATCHING_COMMANDS
from pipelines.trading.routing import shard_of
from tests.support.api_server import ApiServer, frames_in_topic, running_api, running_system, write
from tests.support.provision import provision
from tests.support.sinks import running
from tests.support.stack import PrivateStack, free_ports, variables
from tests.support.waiting import wait_until

pytestmark = pytest.mark.stack

GRPC_PORT = free_ports(1)[0]
SCOPES = ("orders:write", "orders:read", "orders:admin")


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry", "valkey")
    provision(environment)
    return environment


@pytest.fixture(scope="module")
def api(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with (
        running_system(environment, "matching"),
        running_api(
            environment, tmp_path_factory.mktemp("api"), workers=1, orders_per_minute=200, grpc_port=GRPC_PORT
        ) as server,
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


def test_a_client_trades_only_the_accounts_that_it_was_granted(
    environment: Settings, api: ApiServer, channel: grpc.Channel
) -> None:
    member = api.new_client("orders:write", accounts=["MARY"])
    token = api.token(client=member)
    mine = {"order_id": 451, "symbol": "GRANT", "side": "BUY", "price": 5, "quantity": 1, "account": "MARY"}
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as session:
        for path, body in (
            ("/v1/orders", mine | {"account": "NED"}),
            ("/v1/orders", [mine, mine | {"account": "NED"}]),
            ("/v1/orders/events", [{"type": "MassCancel", "account": "NED"}]),
            ("/v1/orders/451/cancel", {"symbol": "GRANT", "account": "NED"}),
            ("/v1/orders", {name: value for name, value in mine.items() if name != "account"}),
        ):
            refused = write(session, path, body)
            assert (refused.status_code, refused.json()["type"]) == (403, "/problems/account-not-granted"), path
        assert write(session, "/v1/orders", mine, Prefer="wait=20").status_code == 201

        stub, metadata = TradingServiceStub(channel), (("authorization", f"Bearer {token}"),)
        ned = pb.PlaceOrderRequest(order_id=452, account="NED", symbol="GRANT", side=pb.BUY, price=5, quantity=1)
        with pytest.raises(grpc.RpcError) as caught:
            stub.PlaceOrder(ned, 20, metadata)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        requests: SimpleQueue[Any] = SimpleQueue()
        events = each(stub.OrderStream(iter(requests.get, None), 60, metadata))
        requests.put(asking(
            pb.OrderRequest(request_id=1, listen=pb.Listen(account="NED")),
            pb.OrderRequest(request_id=2, place=ned),
            pb.OrderRequest(request_id=3, listen=pb.Listen(account="MARY")),
        ))  # fmt: skip
        told = [next(events) for _ in range(3)]
        assert [(event.request_id, event.refusal.code) for event in told] == [
            (1, "PERMISSION_DENIED"), (2, "PERMISSION_DENIED"), (3, ""),
        ]  # fmt: skip

        api.clients.withdraw(member[0], ["MARY"])
        assert write(session, "/v1/orders/451/cancel", {"symbol": "GRANT", "account": "MARY"}).status_code == 403
        with pytest.raises(grpc.RpcError) as caught:
            next(events)  # the stream that listens to an account that was withdrawn ends
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    accounts = {
        event["account"]
        for events_ in frames_in_topic(environment, MATCHING_COMMANDS).values()
        for event in events_
        if event.get("symbol") == "GRANT"
    }
    assert accounts == {"MARY"}


@pytest.fixture(scope="module")
def channel(api: ApiServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}") as channel:
        grpc.channel_ready_future(channel).result(20)
        yield channel


def asking(*requests: Any) -> Any:
    return pb.OrderRequests(requests=requests)


def each(messages: Iterable[Any]) -> Iterator[Any]:
    for message in messages:
        yield from message.events


def test_grpc_places_amends_and_cancels(api: ApiServer, channel: grpc.Channel) -> None:
    stub = TradingServiceStub(channel)
    metadata = (("authorization", f"Bearer {api.token('orders:write')}"),)
    mine = {"order_id": 401, "account": "GRETA", "symbol": "GRPC"}
    placed = stub.PlaceOrder(pb.PlaceOrderRequest(**mine, side=pb.BUY, price=50, quantity=3), 20, metadata)
    assert [(report.exec_type, report.leaves_quantity) for report in placed.reports] == [("NEW", 3)]
    assert placed.place.shard == shard_of("GRPC")
    amended = stub.AmendOrder(pb.AmendOrderRequest(**mine, quantity=2), 20, metadata)
    assert [(report.exec_type, report.price, report.quantity) for report in amended.reports] == [("REPLACED", 50, 2)]
    canceled = stub.CancelOrder(pb.CancelOrderRequest(**mine), 20, metadata)
    assert [report.exec_type for report in canceled.reports] == ["CANCELED"]
    again = stub.CancelOrder(pb.CancelOrderRequest(**mine), 20, metadata)
    assert [(report.kind, report.reason) for report in again.reports] == [(pb.Report.CANCEL_REJECT, "UNKNOWN_ORDER")]

    for request, credentials, status in (
        (pb.PlaceOrderRequest(**mine, side=pb.BUY, price=50, quantity=3), (), grpc.StatusCode.UNAUTHENTICATED),
        (pb.PlaceOrderRequest(**mine, side=pb.BUY, price=50, quantity=3),
         (("authorization", f"Bearer {api.token('ledger:read')}"),), grpc.StatusCode.PERMISSION_DENIED),
        (pb.PlaceOrderRequest(order_id=1, account="GRETA", side=pb.BUY), metadata, grpc.StatusCode.INVALID_ARGUMENT),
        (pb.PlaceOrderRequest(**mine, quantity=3), metadata, grpc.StatusCode.INVALID_ARGUMENT),
    ):  # fmt: skip
        with pytest.raises(grpc.RpcError) as caught:
            stub.PlaceOrder(request, 20, credentials)
        assert caught.value.code() == status, caught.value


def test_a_stream_tells_both_sides_of_a_trade_and_each_only_its_own(api: ApiServer, channel: grpc.Channel) -> None:
    metadata = (("authorization", f"Bearer {api.token('orders:write')}"),)
    requests: SimpleQueue[Any] = SimpleQueue()
    events = each(TradingServiceStub(channel).OrderStream(iter(requests.get, None), 60, metadata))
    requests.put(asking(pb.OrderRequest(request_id=1, listen=pb.Listen(account="HUGO"))))
    assert next(events).listening.account == "HUGO"
    resting = {"account": "HUGO", "symbol": "STREAM", "side": pb.SELL, "price": 10, "quantity": 5}
    requests.put(asking(pb.OrderRequest(request_id=2, place=pb.PlaceOrderRequest(order_id=501, **resting))))
    rests = next(events)
    assert (rests.request_id, rests.report.exec_type) == (2, "NEW")
    requests.put(asking(pb.OrderRequest(request_id=3, place=pb.PlaceOrderRequest(order_id=2, account="HUGO"))))
    refused = next(events)
    assert (refused.request_id, refused.refusal.code) == (3, "INVALID_ARGUMENT")

    taker = pb.PlaceOrderRequest(order_id=503, account="IDA", symbol="STREAM", side=pb.BUY, price=11, quantity=4)
    taken = TradingServiceStub(channel).PlaceOrder(taker, 20, metadata)
    assert [(report.exec_type, report.account) for report in taken.reports] == [("NEW", "IDA"), ("TRADE", "IDA")]
    sold = next(events)
    assert sold.request_id == 0
    told = sold.report
    assert (told.order_id, told.account, told.side, told.price, told.quantity, told.leaves_quantity) == (
        501, "HUGO", pb.SELL, 10, 4, 1,
    )  # fmt: skip
    assert told.execution_id == taken.reports[1].execution_id

    for number in range(100):  # these come faster than Kafka answers, and travel together
        requests.put(asking(pb.OrderRequest(request_id=10 + number, place=pb.PlaceOrderRequest(
            order_id=600 + number, account="HUGO", symbol="STREAM", side=pb.SELL, price=20, quantity=1,
        ))))  # fmt: skip
    requests.put(None)
    rest = list(events)  # ends by itself once all is answered
    assert [(event.request_id, event.report.exec_type) for event in rest] == [(10 + n, "NEW") for n in range(100)]


def test_requests_of_one_message_are_answered_one_by_one(api: ApiServer, channel: grpc.Channel) -> None:
    """Two accounts of one client, two symbols, a stop of the other account that a trade sets off."""
    metadata = (("authorization", f"Bearer {api.token('orders:write')}"),)
    requests: SimpleQueue[Any] = SimpleQueue()
    events = each(TradingServiceStub(channel).OrderStream(iter(requests.get, None), 60, metadata))

    def place(number: int, account: str, symbol: str, side: int, price: int, **more: Any) -> Any:
        order = {"order_id": 700 + number, "account": account, "symbol": symbol, "side": side, "price": price}
        return pb.OrderRequest(request_id=number, place=pb.PlaceOrderRequest(**order, **{"quantity": 1} | more))

    stop = {"order_type": pb.STOP_LIMIT, "stop_price": 10}
    requests.put(asking(
        place(1, "JILL", "ONE", pb.SELL, 10), place(2, "JACK", "ONE", pb.BUY, 5, **stop),
        place(3, "JILL", "TWO", pb.SELL, 20), place(4, "JILL", "ONE", 0, 20), pb.OrderRequest(request_id=5),
        place(6, "JILL", "ONE", pb.BUY, 10),
    ))  # fmt: skip
    requests.put(None)
    told: dict[int, list[tuple[str, ...]]] = {}
    for event in events:
        report = event.report
        what = (event.refusal.code,) if event.refusal.code else (report.exec_type, report.account, report.symbol)
        told.setdefault(event.request_id, []).append(what)
    assert told == {
        1: [("NEW", "JILL", "ONE")],
        2: [("NEW", "JACK", "ONE")],
        3: [("NEW", "JILL", "TWO")],
        4: [("INVALID_ARGUMENT",)],
        5: [("INVALID_ARGUMENT",)],
        6: [("NEW", "JILL", "ONE"), ("TRADE", "JILL", "ONE")],
        0: [("TRADE", "JILL", "ONE"), ("TRIGGERED", "JACK", "ONE")],
    }


@pytest.fixture(scope="module")
def projections(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    logs = tmp_path_factory.mktemp("sinks")
    with (
        running(environment, "valkey-books", logs / "books.log"),
        running(environment, "valkey-orders", logs / "orders.log"),
    ):
        yield


def level(price: int, quantity: int, orders: int) -> dict[str, int]:
    return {"price": price, "quantity": quantity, "orders": orders}


def test_books_and_orders_are_what_the_reports_said(api: ApiServer, session: httpx.Client, projections: None) -> None:
    def now(path: str) -> Any:
        return session.get(path).json()

    book = [(1, "SELL", 30, 5), (2, "SELL", 31, 1), (3, "SELL", 30, 2), (4, "BUY", 20, 7), (5, "BUY", 30, 6)]
    orders = [order(2000 + n, side, price, lots, symbol="BOOK", account="B") for n, side, price, lots in book]
    assert write(session, "/v1/orders", orders, Prefer="wait=20").status_code == 201
    wait_until(lambda: now("/v1/books/BOOK").get("sequence", 0) > 0, 60, "the book is there")
    found = now("/v1/books/BOOK")
    assert (found["bids"], found["asks"]) == ([level(20, 7, 1)], [level(30, 1, 1), level(31, 1, 1)])
    assert (found["last_trade"]["price"], found["last_trade"]["quantity"]) == (30, 1)
    assert now("/v1/books/BOOK?depth=1")["asks"] == [level(30, 1, 1)]
    assert session.get("/v1/books/NOBODY").status_code == 404

    wait_until(lambda: session.get("/v1/orders/2005?symbol=BOOK").status_code == 200, 60, "the order is there")
    names = ("order_status", "price", "leaves_quantity", "cumulative_quantity")
    assert [now("/v1/orders/2005?symbol=BOOK")[name] for name in names] == ["FILLED", 30, 0, 6]
    assert [now("/v1/orders/2003?symbol=BOOK")[name] for name in names] == ["PARTIALLY_FILLED", 30, 1, 1]
    assert [now("/v1/orders/2004?symbol=BOOK")[name] for name in names] == ["NEW", 20, 7, 0]
    assert session.get("/v1/orders/2004?symbol=ACME").status_code == 404
    assert session.get("/v1/orders/2004").status_code == 400
    with api.session("orders:write") as writer:
        assert writer.get("/v1/books/BOOK").status_code == 403
    stranger = api.token(client=api.new_client("orders:read", accounts=["C"]))
    theirs = {"headers": {"Authorization": f"Bearer {stranger}"}, "timeout": 30}
    assert httpx.get(f"{api.url}/v1/orders/2004?symbol=BOOK", **theirs).status_code == 404
    assert httpx.get(f"{api.url}/v1/books/BOOK", **theirs).status_code == 200


async def test_the_feed_is_a_snapshot_and_every_increment_after_it(
    api: ApiServer, session: httpx.Client, projections: None
) -> None:
    def enter(number: int, side: str, price: int) -> None:
        write(session, "/v1/orders", order(3000 + number, side, price, 1, symbol="FEED"), Prefer="wait=20")

    enter(1, "SELL", 50)
    token = {"Authorization": f"Bearer {api.token('orders:read')}"}
    url = f"{api.url}/v1/market-data"
    async with aiohttp.ClientSession(headers=token) as http, http.ws_connect(url) as socket, asyncio.timeout(90):
        await socket.send_json({"op": "subscribe", "symbol": "FEED", "channels": ["l9"]})
        assert "choose from" in (await socket.receive_json())["detail"]
        await socket.send_json({"op": "subscribe", "symbol": "FEED"})
        book: dict[str, dict[int, int]] = {}
        reached = 0
        trades: list[int] = []

        async def follow(sequence: int) -> None:
            """Apply messages up to a sequence, checking that none is missing."""
            nonlocal reached
            while reached < sequence or not book:
                message = await socket.receive_json()
                if message["type"] == "Snapshot":
                    for name, side in (("bids", "BUY"), ("asks", "SELL")):
                        book[side] = {found["price"]: found["quantity"] for found in message[name]}
                else:
                    assert message["previous"] == reached
                    if message["type"] == "PriceLevel":
                        book[message["side"]][message["price"]] = message["quantity"]
                    elif message["type"] == "Trade":
                        trades.append(message["price"])
                reached = message["sequence"]

        await follow(0)
        for number in range(2, 12):
            await asyncio.to_thread(enter, number, "BUY" if number % 2 else "SELL", 50 if number % 3 else 49)
        target = 0

        def settled() -> bool:
            nonlocal target
            found = session.get("/v1/books/FEED").json()
            last, target = target, found["sequence"]
            return bool(last == target and target > 10)

        await asyncio.to_thread(wait_until, settled, 60, "the book stands still")
        await follow(target)
        found = (await asyncio.to_thread(session.get, "/v1/books/FEED")).json()
        for name, side in (("bids", "BUY"), ("asks", "SELL")):
            assert {price: lots for price, lots in book[side].items() if lots} == {
                entry["price"]: entry["quantity"] for entry in found[name]
            }
        assert trades


def test_the_audit_tells_from_the_topics_what_happened(
    environment: Settings, session: httpx.Client, tmp_path: Path
) -> None:
    mine = order(4001, "SELL", 60, 2, symbol="AUDIT", account="FAY")
    write(session, "/v1/orders", [mine, order(4002, "BUY", 60, 2, symbol="AUDIT")], Prefer="wait=20")
    wanted = environment.model_copy(
        update={"data_dir": tmp_path, "producer_keys_file": str(environment.producer_keys_path)}
    )

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("streambank"), "trading", "audit", *arguments],
            env={**variables(wanted), "COLUMNS": "200"}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    exported = tmp_path / "out"
    assert "records" in run("export", str(exported))
    files = sorted(str(path) for path in exported.iterdir())
    assert len(files) == 4
    record = Path(files[shard_of("AUDIT")])
    assert '"PASV"' in record.read_text()
    record.write_text(record.read_text().replace("PASV", "AGRE", 1))
    assert "the HMAC is wrong" in run("verify", *files, code=1)
    life = run("explain", "4001", "--symbol", "AUDIT")
    assert [word in life for word in ("ORDER_ACCEPTED", "ORDER_TRADE (MAKER)", "FILLED")] == [True] * 3


async def test_the_order_feed_is_every_resting_order_in_its_place(
    api: ApiServer, session: httpx.Client, projections: None
) -> None:
    def enter(number: int, side: str, price: int, quantity: int, **more: Any) -> None:
        write(session, "/v1/orders", order(5000 + number, side, price, quantity, symbol="L3", **more), Prefer="wait=20")

    def listed() -> tuple[int, dict[int, tuple[str, int, int]]]:
        found = session.get("/v1/books/L3?orders=true").json()
        return found.get("sequence", 0), {
            row["place"]: (row["side"], row["price"], row["quantity"]) for row in found.get("orders", [])
        }

    definition = {"type": "SymbolDefinition", "symbol": "L3", "order_feed": True}
    assert write(session, "/v1/trading/events", definition, Prefer="wait=20").status_code == 201
    enter(1, "SELL", 50, 9, display_quantity=3)
    enter(2, "SELL", 50, 4)
    await asyncio.to_thread(wait_until, lambda: len(listed()[1]) == 2, 60, "both orders are listed")
    token = {"Authorization": f"Bearer {api.token('orders:read')}"}
    url = f"{api.url}/v1/market-data"
    async with aiohttp.ClientSession(headers=token) as http, http.ws_connect(url) as socket, asyncio.timeout(90):
        await socket.send_json({"op": "subscribe", "symbol": "L3", "channels": ["l3"]})
        snapshot = await socket.receive_json()
        assert [(row["side"], row["price"], row["quantity"]) for row in snapshot["orders"]] == [
            ("SELL", 50, 3), ("SELL", 50, 4),
        ]  # fmt: skip
        book = {row["place"]: (row["side"], row["price"], row["quantity"]) for row in snapshot["orders"]}
        await asyncio.to_thread(enter, 3, "BUY", 50, 5)
        await asyncio.to_thread(enter, 4, "BUY", 49, 1)
        reached = snapshot["sequence"]
        while not any(side == "BUY" for side, _, _ in book.values()):
            told = await socket.receive_json()
            assert (told["type"], told["previous"]) == ("BookOrder", reached)
            reached = told["sequence"]
            book.pop(told["place"], None)
            if told["quantity"]:
                book[told["place"]] = (told["side"], told["price"], told["quantity"])
        # the iceberg showed 3, then its next 3 behind the other order, of which 2 lots are left
        assert [book[place] for place in sorted(book)] == [("SELL", 50, 2), ("SELL", 50, 3), ("BUY", 49, 1)]
        await asyncio.to_thread(wait_until, lambda: listed()[0] >= reached, 60, "the store has it too")
        assert listed()[1] == book


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


def test_what_a_venue_says_reaches_who_listens(
    api: ApiServer, session: httpx.Client, channel: grpc.Channel, projections: None
) -> None:
    """A refused cancel, and a trade with the venue's own number of it. Runs last: it defines accounts."""
    metadata = (("authorization", f"Bearer {api.token('orders:write')}"),)
    requests: SimpleQueue[Any] = SimpleQueue()
    events = each(TradingServiceStub(channel).OrderStream(iter(requests.get, None), 60, metadata))

    def admin(*commands: dict[str, Any]) -> list[dict[str, Any]]:
        answer = write(session, "/v1/trading/events", list(commands), Prefer="wait=20")
        assert [report["reason"] for report in answer.json()["results"] if report["type"] == "AdminReport"] == [
            "NONE"] * len(commands), answer.text  # fmt: skip
        return list(answer.json()["results"])

    accounts = [{"account": "KIM", "risk": "OFF"}, {"account": "ELSE", "risk": "VENUE"}]
    defined = [{"type": "AccountDefinition", **account} for account in accounts]
    assert write(session, "/v1/trading/events", defined, Prefer="wait=20").status_code == 201
    order = {"account": "KIM", "symbol": "AWAY", "side": pb.BUY, "price": 10, "quantity": 5, "destination": "ELSE"}
    requests.put(asking(pb.OrderRequest(request_id=1, place=pb.PlaceOrderRequest(order_id=801, **order))))
    accepted, routed = next(events), next(events)
    assert [event.report.exec_type for event in (accepted, routed)] == ["NEW", "NEW"]
    assert routed.report.kind == pb.Report.ROUTE_REQUEST
    said = {"type": "VenueReport", "venue": "ELSE", "order_id": 801, "symbol": "AWAY",
            "route": routed.report.execution_id}  # fmt: skip
    asked = write(session, "/v1/orders/801/cancel", {"symbol": "AWAY", "account": "KIM"}, Prefer="wait=20")
    [request] = asked.json()["results"]
    admin(said | {"exec_type": "CANCEL_REJECTED", "request": request["execution_id"]})
    refused = next(events)
    assert (refused.request_id, refused.report.kind, refused.report.exec_type) == (0, pb.Report.CANCEL_REJECT, "CANCEL")
    assert (refused.report.order_id, refused.report.account, refused.report.symbol, refused.report.reason) == (
        801, "KIM", "AWAY", "VENUE_REJECTED",
    )  # fmt: skip
    results = admin(said | {"exec_type": "TRADE", "price": 9, "quantity": 2, "cumulative_quantity": 2,
                            "venue_execution_id": "Xé-17"})  # fmt: skip
    assert [report["venue_execution_id"] for report in results if report["type"] == "ExecutionReport"] == ["Xé-17"]
    traded = next(events).report
    assert (traded.exec_type, traded.quantity, traded.leaves_quantity, traded.venue_execution_id) == (
        "TRADE", 2, 3, "Xé-17",
    )  # fmt: skip
    requests.put(None)
    wait_until(lambda: session.get("/v1/orders/801?symbol=AWAY").json().get("leaves_quantity") == 3, 60, "it traded")
    found = session.get("/v1/orders/801?symbol=AWAY").json()
    assert (found["refused_request"], found["refused_reason"], found["order_status"]) == (
        "CANCEL", "VENUE_REJECTED", "PARTIALLY_FILLED",
    )  # fmt: skip
