"""The ledger over HTTP, with everything behind it: all recorded cases, history, statements as files, and metadata."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from msgspec.structs import replace

from api.bulk_import import Import
from api.client import (
    Account,
    AsyncLedgerClient,
    LedgerApiError,
    LedgerClient,
    Result,
    Transfer,
    TransferFlags,
)
from api.proto import ledger_pb2 as pb
from api.proto.ledger_pb2_grpc import LedgerServiceStub
from infra.migrations import migrate_postgres
from infra.registry import schema_ids
from infra.settings import PROJECT_ROOT, Settings
from pipelines.catalogue import LEDGER_CROSS_COMMANDS, LEDGER_SHARDS
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.ledger_saga.legs import Step, cross_transfer_shard, leg_id
from pipelines.wire import wrap
from tests.support.api_server import ApiServer, running_api, running_ledger, running_system, write
from tests.support.ledger_model import BALANCES
from tests.support.provision import provision
from tests.support.sinks import running, send
from tests.support.stack import PrivateStack, free_ports, variables
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

CASES: list[dict[str, Any]] = json.loads((PROJECT_ROOT / "tests" / "conformance" / "ledger.json").read_text())
"""Recorded from a running TigerBeetle server on random operations."""
NOW = 1_700_000_000_000_000
U128_MAX = 2**128 - 1
GRPC_PORT = free_ports(1)[0]


@pytest.fixture(scope="module")
def api(stack: PrivateStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Ledger and Postgres sink run behind it, and the ledger's clock stands still."""
    environment = stack.environment("kafka", "registry", "postgres", "valkey")
    provision(environment)
    migrate_postgres(environment)
    directory = tmp_path_factory.mktemp("http")
    with (
        running_ledger(environment, produced_at=NOW),
        running_system(environment, "ledger_saga"),
        running(environment, "postgres", directory / "sink.log"),
        running(environment, "postgres-cross-transfers", directory / "cross-transfers.log"),
        running_api(environment, directory / "api", workers=1, grpc_port=GRPC_PORT) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def session(api: ApiServer) -> Iterator[httpx.Client]:
    with api.session() as client:
        yield client


@pytest.fixture
def credentials(api: ApiServer) -> tuple[str, str, str]:
    return (api.url, *api.new_client("ledger:read", "ledger:write"))


def applied(session: httpx.Client, path: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = write(session, path, events, prefer="wait=30")
    assert answer.status_code in (200, 201), answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


class CaseOverHttp:
    """A case in ledgers and ids of its own, all of one shard, since the ids of a case are of one ledger server."""

    def __init__(self, number: int, case: dict[str, Any]) -> None:
        self._number = number
        self.case = case
        self._pending_ledgers: dict[int, int] = {}

    def ledger(self, ledger: int) -> int:
        return (self._number * 1_000 + ledger) * LEDGER_SHARDS if ledger else 0

    def id(self, identity: int) -> str:
        if identity in (0, U128_MAX):
            return str(identity)
        return str(identity + (self._number + 1 << 64))

    def account(self, event: dict[str, Any]) -> dict[str, Any]:
        return event | {"id": self.id(event["id"]), "ledger": self.ledger(event["ledger"])}

    def transfer(self, event: dict[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in event.items() if name not in ("debit", "credit")}
        ledger = event.get("ledger", 0)
        if {"post_pending_transfer", "void_pending_transfer"} & set(event.get("flags", [])):
            # the API finds the shard by it, so here it may not be left out
            ledger = ledger or self._pending_ledgers.get(event.get("pending_id", 0)) or 1
        self._pending_ledgers.setdefault(event["id"], ledger)
        return fields | {
            "id": self.id(event["id"]),
            "debit_account_id": self.id(event["debit"]),
            "credit_account_id": self.id(event["credit"]),
            "amount": str(event.get("amount", 0)),
            "pending_id": self.id(event.get("pending_id", 0)),
            "user_data_128": str(event.get("user_data_128", 0)),
            "ledger": self.ledger(ledger),
        }


def test_all_recorded_cases(session: httpx.Client) -> None:
    sequence = 0
    for number, case in enumerate(CASES):
        own = CaseOverHttp(number, case)
        ledgers: dict[int, int] = {}
        for step in case["steps"]:
            if step["op"] == "create_accounts":
                path, events = "/v1/accounts", [own.account(event) for event in step["events"]]
                ledgers |= {
                    event["id"]: own.ledger(event["ledger"])
                    for event, result in zip(step["events"], step["expect"], strict=True)
                    if result == "created"
                }
            else:
                path, events = "/v1/transfers", [own.transfer(event) for event in step["events"]]
            results = applied(session, path, events)
            assert [result["result"] for result in results] == step["expect"], case["name"]
            sequence = max(result["sequence"] for result in results)
        for identity, balances in case["expected_balances"].items():
            place = {"ledger": ledgers[int(identity)], "min_sequence": sequence}
            found = session.get(f"/v1/accounts/{own.id(int(identity))}", params=place, headers={"Prefer": "wait=30"})
            assert found.status_code == 200, found.text
            row = found.json()
            assert {name: int(row[name]) for name in BALANCES} == {name: int(balances[name]) for name in BALANCES}
            assert row["closed"] == balances["closed"], case["name"]


@pytest.fixture(scope="module")
def history(session: httpx.Client) -> list[dict[str, Any]]:
    """Twelve transfers of ledger 978 between accounts 1 and 2, as they were applied."""
    results = applied(session, "/v1/accounts", [{"id": n, "ledger": 978, "code": 1} for n in (1, 2)])
    assert {result["result"] for result in results} == {"created"}
    sent = [
        {"id": 100 + n, "debit_account_id": 1 + n % 2, "credit_account_id": 2 - n % 2, "amount": 10 + n, "ledger": 978,
         "code": 7 + n % 3, "user_data_64": 4711 if n < 5 else 0}
        for n in range(12)
    ]  # fmt: skip
    results = applied(session, "/v1/transfers", sent)
    wait = {"ledger": 978, "min_sequence": results[-1]["sequence"]}
    assert session.get("/v1/accounts/1", params=wait, headers={"Prefer": "wait=30"}).status_code == 200
    return [event | {"timestamp": int(result["timestamp"])} for event, result in zip(sent, results, strict=True)]


def test_search_in_pages(session: httpx.Client, history: list[dict[str, Any]]) -> None:
    found: list[int] = []
    place: dict[str, Any] = {"ledger": 978, "user_data_64": 4711, "limit": 2}
    while True:
        page = session.get("/v1/transfers", params=place).raise_for_status().json()
        found += [int(transfer["id"]) for transfer in page["transfers"]]
        if page["next_until"] is None:
            break
        place["until"] = page["next_until"]
    assert found == [104, 103, 102, 101, 100]
    both = session.get("/v1/transfers", params={"ledger": 978, "user_data_64": 4711, "code": 8}).json()["transfers"]
    assert [int(transfer["id"]) for transfer in both] == [104, 101]
    span = {"ledger": 978, "code": 7, "since": history[3]["timestamp"], "until": history[6]["timestamp"]}
    assert [int(transfer["id"]) for transfer in session.get("/v1/transfers", params=span).json()["transfers"]] == [
        106, 103,
    ]  # fmt: skip
    for bad in ({"code": 7}, {"ledger": 978}, {"ledger": 978, "code": 7, "since": "yesterday"}):
        assert session.get("/v1/transfers", params=bad).status_code == 400
    for path in ("/v1/transfers", "/v1/accounts/1/statement.csv"):
        of = {"code": 7} if path == "/v1/transfers" else {}
        late = session.get(path, params={"ledger": 978, "min_sequence": 10**9, **of})
        assert (late.status_code, late.json()["type"]) == (503, "/problems/not-yet-visible")
        assert session.get(path, params={"ledger": 978, "min_sequence": 1, **of}).status_code == 200


def test_balance_at_each_moment(session: httpx.Client, history: list[dict[str, Any]]) -> None:
    debits = credits_ = 0
    for transfer in history:
        debits += transfer["amount"] if transfer["debit_account_id"] == 1 else 0
        credits_ += transfer["amount"] if transfer["credit_account_id"] == 1 else 0
        answer = session.get("/v1/accounts/1/balance", params={"ledger": 978, "at": transfer["timestamp"]}).json()
        assert (answer["debits_posted"], answer["credits_posted"]) == (debits, credits_)
        assert int(answer["last_entry_at"]) == transfer["timestamp"]
    before = {"ledger": 978, "at": "2001-01-01"}
    assert session.get("/v1/accounts/1/balance", params=before).status_code == 404


def test_statement_as_csv_with_running_balances(session: httpx.Client, history: list[dict[str, Any]]) -> None:
    answer = session.get("/v1/accounts/1/statement.csv", params={"ledger": 978})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [int(row["transfer_id"]) for row in rows] == [transfer["id"] for transfer in history]
    posted = {"debit": 0, "credit": 0}
    for row, transfer in zip(rows, history, strict=True):
        assert row["direction"] == ("debit" if transfer["debit_account_id"] == 1 else "credit")
        posted[row["direction"]] += transfer["amount"]
        assert (int(row["debits_posted"]), int(row["credits_posted"])) == (posted["debit"], posted["credit"])
    part = {"ledger": 978, "since": history[4]["timestamp"], "until": history[5]["timestamp"]}
    rest = session.get("/v1/accounts/1/statement.csv", params=part).text.splitlines()
    assert rest[1:] == answer.text.splitlines()[5:7]
    assert session.get("/v1/accounts/3/statement.csv", params={"ledger": 978}).status_code == 404


def test_ledgers_and_accounts_have_names(session: httpx.Client) -> None:
    currencies = {found["code"]: found for found in session.get("/v1/currencies").json()["currencies"]}
    assert currencies["JPY"] == {"code": "JPY", "number": 392, "minor_units": 0, "name": "Yen"}
    # a currency's ledger is known without being told; another one is not
    euro = session.get("/v1/ledgers/978").json()
    assert (euro["currency"], euro["scale"], euro["updated_at"]) == ("EUR", 2, None)
    assert session.get("/v1/ledgers/5000").status_code == 404
    told = session.put("/v1/ledgers/5000", json={"name": "Card euro", "currency": "EUR"})
    assert told.status_code == 200, told.text
    assert (told.json()["scale"], told.json()["name"]) == (2, "Card euro")
    points = session.put("/v1/ledgers/5001", json={"name": "Points", "scale": 0}).json()
    assert points["currency"] is None
    assert [found["ledger"] for found in session.get("/v1/ledgers").json()["ledgers"]] == [5000, 5001]
    for bad in ({"name": "x"}, {"name": "x", "currency": "EURO"}, {"name": "x", "currency": "XAU"}, {"name": ""},
                {"name": "x", "scale": 2, "colour": "red"}):  # fmt: skip
        assert session.put("/v1/ledgers/5000", json=bad).status_code == 422, bad
    assert session.get("/v1/ledgers/5000").json()["name"] == "Card euro"

    account = "/v1/accounts/340282366920938463463374607431768211454/metadata"
    assert session.get(account, params={"ledger": 978}).status_code == 404
    body = {"name": "Ada Lovelace", "attributes": {"iban": "DE02120300000000202051"}}
    assert session.put(account, params={"ledger": 978}, json=body).status_code == 200
    found = session.get(account, params={"ledger": 978}).json()
    assert found | body == found
    assert found["account_id"] == "340282366920938463463374607431768211454"
    session.put(account, params={"ledger": 978}, json={"name": "Ada King"})
    assert session.get(account, params={"ledger": 978}).json()["attributes"] == {}
    assert session.put(account, json=body).status_code == 400
    anonymous = httpx.put(session.base_url.join("/v1/ledgers/1"), json={"name": "x", "scale": 0})
    assert anonymous.status_code == 401


def test_cross_transfers_are_taken_once(session: httpx.Client) -> None:
    asked = {
        "id": str(2**127 + 5), "debit_account_id": 1, "debit_ledger": 978, "credit_account_id": 1, "credit_ledger": 840,
        "debit_clearing_account_id": 2, "credit_clearing_account_id": 2, "amount": 100, "credit_amount": 108, "code": 1,
    }  # fmt: skip
    answer = write(session, "/v1/cross-transfers", asked, prefer="wait=30")
    assert answer.status_code == 201, answer.text
    [result] = answer.json()["results"]
    assert (result["id"], result["result"], result["shard"]) == (str(2**127 + 5), "created", (2**127 + 5) % 4)
    wrong = asked | {"id": 9, "credit_ledger": 978}
    answer = write(session, "/v1/cross-transfers", [asked, asked | {"amount": 99}, wrong], prefer="wait=30")
    assert answer.status_code == 200
    assert [found["result"] for found in answer.json()["results"]] == [
        "exists", "exists_with_different_fields", "ledgers_must_be_different"
    ]  # fmt: skip
    forged = {"type": "LegAnswered", "id": 1, "result": "created"}
    assert write(session, "/v1/cross-transfers", forged).status_code == 422


def test_how_a_cross_transfer_ended(api: ApiServer, session: httpx.Client) -> None:
    identity = 2**127 + 6
    asked = {
        "id": str(identity), "debit_account_id": 1, "debit_ledger": 978, "credit_account_id": 1, "credit_ledger": 840,
        "debit_clearing_account_id": 2, "credit_clearing_account_id": 2, "amount": 100, "credit_amount": 108, "code": 7,
    }  # fmt: skip
    answer = write(session, "/v1/cross-transfers", asked, prefer="wait=30")
    path = answer.headers["Location"]
    assert path == f"/v1/cross-transfers/{identity}"
    sequence = answer.json()["results"][0]["sequence"]
    known = {"min_sequence": sequence}
    wait_until(lambda: session.get(path, params=known).status_code == 200, 60, "the sink has stored it")
    found = session.get(path, params=known, headers={"Prefer": "wait=1"})  # it does not end within that
    told = {name: str(value) for name, value in found.json().items()}
    assert told | {name: str(value) for name, value in asked.items()} == told
    assert (told["phase"], told["reason"], told["sequence"]) == ("reserving", "none", str(sequence))

    refuse_legs(api.environment, identity)
    ended = session.get(path, headers={"Prefer": "wait=20"}).json()
    assert (ended["phase"], ended["reason"]) == ("failed", "exceeds_credits")
    assert ended["requested_at"] == found.json()["requested_at"] <= ended["changed_at"]

    assert session.get("/v1/cross-transfers/12345").status_code == 404
    assert session.get("/v1/cross-transfers/x").status_code == 400
    late = session.get(path, params={"min_sequence": 10**6})
    assert (late.status_code, late.json()["type"]) == (503, "/problems/not-yet-visible")

    bearer = [("authorization", f"Bearer {api.token('ledger:read')}")]
    with grpc.insecure_channel(f"{api.environment.host}:{GRPC_PORT}") as channel:
        stub = LedgerServiceStub(channel)
        request = pb.GetCrossTransferRequest(id=wide(identity), wait_seconds=30)
        same = stub.GetCrossTransfer(request, metadata=bearer, timeout=40)
        assert (same.phase, same.reason, same.credit_amount.low, same.code) == ("failed", "exceeds_credits", 108, 7)
        with pytest.raises(grpc.RpcError) as unknown:
            stub.GetCrossTransfer(pb.GetCrossTransferRequest(id=wide(9)), metadata=bearer, timeout=20)
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def refuse_legs(environment: Settings, identity: int) -> None:
    """What the relay `saga-answers` says when the ledger has refused both reservations."""
    codec = codec_of(LEDGER_CROSS_COMMANDS.name)
    answers = [
        {"type": "LegAnswered", "id": leg_id(identity, step, 0), "result": result}
        for step, result in ((Step.reserve_debit, "exceeds_credits"), (Step.reserve_credit, "credit_account_not_found"))
    ]
    shard = cross_transfer_shard(identity)
    frame = Frame(LEDGER_CROSS_COMMANDS.name, shard, 0, NOW, None, parse_events(codec, answers))
    schema_id = schema_ids([LEDGER_CROSS_COMMANDS], environment)[LEDGER_CROSS_COMMANDS.name]
    send(environment, [(shard, wrap(schema_id, codec.encode(frame)))], LEDGER_CROSS_COMMANDS.name)


class LosesAnswers(httpx.AsyncBaseTransport):
    """Every second answer to a write is lost on its way back, and the connection with it."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self.writes = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if request.url.path.startswith("/v1"):
            self.writes += 1
            if self.writes % 2:
                await response.aclose()
                raise httpx.ReadError("lost by the test", request=request)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


LEDGER = 4_004
FIRST = 1 << 100
"""Ids count per shard, and all ledgers here are of one: each takes its own from here on."""
GRPC_LEDGER = 6_012
GRPC_FIRST = FIRST + (GRPC_LEDGER << 40)


def first_of(ledger: int) -> int:
    return FIRST + (ledger << 40)


def opened(client: LedgerClient, ledger: int) -> None:
    results = client.create_accounts([Account(first_of(ledger) + n, ledger, 1) for n in range(10)])
    assert {result.result for result in results} <= {"created", "exists"}


def moves(count: int, ledger: int, first: int) -> list[Transfer]:
    account = first_of(ledger)
    return [Transfer(first + n, account + n % 10, account + (n + 1) % 10, n, ledger, 1) for n in range(count)]


def test_the_client_gives_a_result_per_event_whatever_is_lost(credentials: tuple[str, str, str]) -> None:
    transport = LosesAnswers()
    with LedgerClient(*credentials, transport=transport, batch_events=1_000) as client:
        opened(client, LEDGER)
        sent = moves(2_500, LEDGER, 1 << 90)
        sent[1_700] = replace(sent[1_700], debit_account_id=5)
        # a chain over the edge of a request stays whole: its second member fails both
        sent[999] = replace(sent[999], flags=TransferFlags.linked)
        sent[1_000] = replace(sent[1_000], credit_account_id=sent[1_000].debit_account_id)
        results = client.create_transfers(sent)
        assert [result.id for result in results] == [transfer.id for transfer in sent]
        failed = {at: result.result for at, result in enumerate(results) if not result.ok}
        assert failed == {
            999: "linked_event_failed", 1_000: "accounts_must_be_different", 1_700: "debit_account_not_found"
        }  # fmt: skip
        # the answers that were lost are given again: nothing is "exists"
        assert {result.result for at, result in enumerate(results) if at not in failed} == {"created"}
        assert transport.writes >= 6
        account = client.account(first_of(LEDGER), ledger=LEDGER, min_sequence=results[-1].sequence)
        wanted = [transfer for at, transfer in enumerate(sent) if at not in failed]
        assert account["debits_posted"] == sum(t.amount for t in wanted if t.debit_account_id == first_of(LEDGER))
        assert client.transfer(sent[-1].id, ledger=LEDGER)["amount"] == 2_499
        with pytest.raises(LedgerApiError, match="404 not-found"):
            client.account(12345, ledger=LEDGER)
        with pytest.raises(ValueError, match="amount"):
            client.create_transfers([Transfer(1, amount=-1)])
        with pytest.raises(ValueError, match=r"CreateTransfer\.amount: 1\.5 found"):
            client.create_transfers([Transfer(1, amount=2), Transfer(2, amount=1.5)])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="code"):
            client.create_accounts([Account(1, 1, 1 << 16)])


async def test_calls_at_the_same_time_travel_together(credentials: tuple[str, str, str]) -> None:
    transport = LosesAnswers()
    async with AsyncLedgerClient(*credentials, transport=transport, in_flight=1) as client:
        await client.create_accounts([Account(first_of(LEDGER + 4) + n, LEDGER + 4, 1) for n in range(10)])
        before = transport.writes
        chain = [replace(transfer, flags=TransferFlags.linked) for transfer in moves(3, LEDGER + 4, 1 << 80)]
        calls = [client.create_transfers([move]) for move in moves(500, LEDGER + 4, 1 << 91)]
        *alone, open_chain = await asyncio.gather(*calls, client.create_transfers(chain))
        assert {result.result for results in alone for result in results} == {"created"}
        # a chain that was left open is no concern of others
        assert [result.result for result in open_chain][-1] == "linked_event_chain_open"
        assert transport.writes - before <= 8


class Breaks:
    """A sender that is cut off before the request after its first ``requests``."""

    def __init__(self, client: LedgerClient, requests: int) -> None:
        self._client = client
        self._left = requests

    def create_rows(self, rows: Any) -> list[Result]:
        if not self._left:
            raise ConnectionError
        self._left -= 1
        return self._client.create_rows(rows)


def test_the_import_command_goes_on_where_it_broke_off(
    api: ApiServer, credentials: tuple[str, str, str], tmp_path: Path
) -> None:
    ledger = 5_008
    first = first_of(ledger)
    records: list[dict[str, Any]] = [{"id": str(first + n), "ledger": ledger, "code": 1} for n in range(2)]
    records += [
        {"id": str(first + 10 + n), "debit_account_id": str(first), "credit_account_id": str(first + (n != 5)),
         "amount": str(2**64 + n), "ledger": ledger, "code": 1}
        for n in range(7)
    ]  # fmt: skip
    path = tmp_path / "all.ndjson"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    _, client_id, secret = credentials
    with LedgerClient(*credentials) as client:
        broken = Import(path, batch_events=3)
        with pytest.raises(ConnectionError):
            broken.run(Breaks(client, requests=1))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("streambank")), "ledger", "import", str(path), "--batch-events", "3"],
        env={**variables(api.environment), "STREAMBANK_CLIENT_ID": client_id, "STREAMBANK_CLIENT_SECRET": secret},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one was refused
    assert "going on after record 3" in done.stderr
    assert "9 records: 8 created, 1 accounts_must_be_different" in done.stdout
    [refused] = [json.loads(line) for line in broken.refused_path.read_text().splitlines()]
    assert refused == {"record": 8, "id": str(first + 15), "result": "accounts_must_be_different"}


def wide(value: int) -> pb.Uint128:
    return pb.Uint128(low=value & 2**64 - 1, high=value >> 64)


def pb_transfer(number: int, amount: int, ledger: int, **more: Any) -> pb.Transfer:
    return pb.Transfer(
        id=wide(GRPC_FIRST + number), debit_account_id=wide(GRPC_FIRST), credit_account_id=wide(GRPC_FIRST + 1),
        amount=wide(amount), ledger=ledger, code=1, **more,
    )  # fmt: skip


async def test_the_ledger_by_grpc(api: ApiServer) -> None:
    ledger = GRPC_LEDGER
    bearer = [("authorization", f"Bearer {api.token('ledger:read', 'ledger:write')}")]
    reader = [("authorization", f"Bearer {api.token('ledger:read')}")]
    async with grpc.aio.insecure_channel(f"{api.environment.host}:{GRPC_PORT}") as channel:
        stub = LedgerServiceStub(channel)
        accounts = [pb.Account(id=wide(GRPC_FIRST + n), ledger=ledger, code=7, user_data_64=n) for n in range(2)]
        made = await stub.CreateAccounts(pb.CreateAccountsRequest(accounts=accounts), metadata=bearer, timeout=30)
        assert [result.result for result in made.results] == ["created", "created"]

        big = 2**100
        request = pb.CreateTransfersRequest(
            transfers=[pb_transfer(10, big, ledger), pb_transfer(11, 1, ledger, flags=1), pb_transfer(12, 1, 0)]
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.CreateTransfers(request, metadata=reader, timeout=30)
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
        request.transfers[2].ledger = ledger
        request.transfers[2].code = 0
        done = await stub.CreateTransfers(request, metadata=bearer, timeout=30)
        assert [result.result for result in done.results] == ["created", "linked_event_failed", "code_must_not_be_zero"]
        again = await stub.CreateTransfers(request, metadata=bearer, timeout=30)
        assert [result.result for result in again.results] == ["exists", "linked_event_failed", "code_must_not_be_zero"]
        for bad in ([], [pb.Transfer(id=wide(1), flags=4)]):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.CreateTransfers(pb.CreateTransfersRequest(transfers=bad), metadata=bearer, timeout=30)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT

        # both ways: one response per request, in order, also when requests overtake their answers
        async def batches() -> AsyncIterator[pb.CreateTransfersRequest]:
            for first in range(100, 140, 2):
                yield pb.CreateTransfersRequest(transfers=[pb_transfer(first + n, first, ledger) for n in range(2)])

        answers = [answer async for answer in stub.TransferStream(batches(), metadata=bearer, timeout=60)]
        assert [[result.result for result in answer.results] for answer in answers] == [["created"] * 2] * 20
        stamps = [result.timestamp for answer in answers for result in answer.results]
        assert stamps == sorted(stamps)

        # client streaming, part of it there already
        async def all_of_it() -> AsyncIterator[pb.CreateTransfersRequest]:
            async for request in batches():
                yield request
            yield pb.CreateTransfersRequest(
                transfers=[pb_transfer(200, 1, ledger), pb_transfer(201, 1, ledger, pending_id=wide(5))]
            )

        imported = await stub.ImportTransfers(all_of_it(), metadata=bearer, timeout=60)
        assert (imported.events, dict(imported.results)) == (
            42, {"exists": 40, "created": 1, "pending_id_must_be_zero": 1}
        )  # fmt: skip
        [refusal] = imported.refused
        assert (refusal.index, refusal.id, refusal.result) == (41, wide(GRPC_FIRST + 201), "pending_id_must_be_zero")

        last = await stub.CreateTransfers(
            pb.CreateTransfersRequest(transfers=[pb_transfer(300, 3, ledger)]), metadata=bearer, timeout=30
        )
        total = big + 2 * sum(range(100, 140, 2)) + 1 + 3
        lookup = pb.LookupRequest(
            ids=[wide(GRPC_FIRST + 1), wide(99), wide(GRPC_FIRST)], ledger=ledger, min_sequence=last.results[0].sequence
        )
        states = (await stub.LookupAccounts(lookup, metadata=reader, timeout=60)).accounts
        assert [(state.account.id, state.account.user_data_64, state.account.code) for state in states] == [
            (wide(GRPC_FIRST + 1), 1, 7), (wide(GRPC_FIRST), 0, 7),
        ]  # fmt: skip
        assert (states[0].credits_posted, states[1].debits_posted) == (wide(total), wide(total))
        lookup = pb.LookupRequest(ids=[wide(GRPC_FIRST + 300), wide(GRPC_FIRST + 10)], ledger=ledger)
        found = (await stub.LookupTransfers(lookup, metadata=reader, timeout=30)).transfers
        assert [transfer.amount for transfer in found] == [wide(3), wide(big)]

        entries: list[Any] = []
        page = pb.GetStatementRequest(account_id=wide(GRPC_FIRST), ledger=ledger, limit=17)
        while True:
            answer = await stub.GetStatement(page, metadata=reader, timeout=30)
            entries += answer.entries
            if not answer.next_since:
                break
            page.since = answer.next_since
        assert len(entries) == 43
        assert entries[-1].debits_posted == wide(total)
        assert [entry.timestamp for entry in entries] == sorted({entry.timestamp for entry in entries})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetStatement(pb.GetStatementRequest(account_id=wide(77), ledger=ledger), metadata=reader)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
