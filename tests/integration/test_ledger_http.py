"""The ledger over HTTP, with everything behind it: all recorded cases, history, statements as files, and metadata."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra import topics
from infra.migrations import migrate_postgres
from infra.registry import register
from infra.settings import PROJECT_ROOT
from pipelines.catalogue import LEDGER_SHARDS, TOPICS
from tests.support.api_server import running_api, running_ledger, write
from tests.support.ledger_model import BALANCES
from tests.support.sinks import running
from tests.support.stack import PrivateStack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

CASES: list[dict[str, Any]] = json.loads((PROJECT_ROOT / "tests" / "conformance" / "ledger.json").read_text())
"""Recorded from a running TigerBeetle server on random operations."""
NOW = 1_700_000_000_000_000
U128_MAX = 2**128 - 1


@pytest.fixture(scope="module")
def session(stack: PrivateStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the API; ledger and Postgres sink run, and the ledger's clock stands still."""
    environment = stack.environment("kafka", "registry", "postgres", "valkey")
    topics.apply(environment)
    for topic in TOPICS.values():
        register(topic, environment)
    migrate_postgres(environment)
    directory = tmp_path_factory.mktemp("http")
    with (
        running_ledger(environment, produced_at=NOW),
        running(environment, "postgres", directory / "sink.log"),
        running_api(environment, directory / "api", workers=1) as api,
        api.session() as client,
    ):
        yield client


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
    assert httpx.put(f"{session.base_url}v1/ledgers/1", json={"name": "x", "scale": 0}).status_code == 401
