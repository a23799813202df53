"""The API on real Kafka, registry, Valkey, Postgres and Cassandra."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import fastavro
import httpx
import psycopg
import pytest

from infra.migrations import migrate_cassandra, migrate_postgres
from infra.settings import Settings
from infra.stack.valkey import Valkey
from infra.stores import cassandra_session
from pipelines.catalogue import TOPICS
from tests.support.api_server import (
    ApiServer,
    accounts,
    frames_in_topic,
    ids_in_topic,
    running_api,
    running_ledger,
    write,
)
from tests.support.provision import provision
from tests.support.stack import PrivateStack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry", "postgres", "valkey")
    provision(environment)
    migrate_postgres(environment)
    return environment


@pytest.fixture(scope="module")
def api(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with running_api(environment, tmp_path_factory.mktemp("api")) as server:
        yield server


@pytest.fixture(scope="module")
def session(api: ApiServer) -> Iterator[httpx.Client]:
    with api.session() as client:
        yield client


def slug(answer: httpx.Response) -> str:
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == answer.status_code
    assert document["detail"]
    return str(document["type"].removeprefix("/problems/"))


def located(environment: Settings, answer: httpx.Response) -> list[int]:
    """Ids in the topic at the places that an answer names."""
    frames = frames_in_topic(environment)
    return [int(event["id"]) for frame in answer.json()["frames"] for event in frames[frame["shard"], frame["offset"]]]


def avro_file(records: list[dict[str, Any]], kind: str = "CreateAccount") -> bytes:
    [events] = [found for found in TOPICS["ledger.commands"].schema()["fields"] if found["name"] == "events"]
    [schema] = [found for found in events["type"]["items"] if found["name"] == kind]
    decimals = {found["name"] for found in schema["fields"] if isinstance(found["type"], dict)}
    stream = io.BytesIO()
    rows = []
    for record in records:
        row = {found["name"]: 0 for found in schema["fields"]} | record
        rows.append({name: Decimal(value) if name in decimals else value for name, value in row.items()})
    fastavro.writer(stream, fastavro.parse_schema(schema), rows, sync_interval=500)
    return stream.getvalue()


def ndjson(records: list[Any]) -> bytes:
    return b"\n".join(json.dumps(record).encode() for record in records)


def test_one_event_is_where_the_answer_says(environment: Settings, session: httpx.Client) -> None:
    answer = write(session, "/v1/accounts", accounts([2**100])[0])
    assert answer.status_code == 202
    assert answer.json()["accepted"] == 1
    assert answer.json()["events"] == [{"index": 0, "id": str(2**100), "ledger": 1, "shard": 1}]
    assert located(environment, answer) == [2**100]
    assert re.fullmatch(r'"events";r=\d+;t=\d+', answer.headers["RateLimit"])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("form", ["array", "ndjson", "avro"])
def test_every_format_arrives_in_order(environment: Settings, session: httpx.Client, form: str) -> None:
    first = {"array": 1_000, "ndjson": 20_000, "avro": 50_000}[form]
    count = 200 if form == "array" else 3000
    records = accounts(range(first, first + count), ledger=2)
    if form == "array":
        answer = write(session, "/v1/accounts", records)
    elif form == "ndjson":
        answer = write(session, "/v1/accounts", ndjson(records), "application/x-ndjson")
    else:
        answer = write(session, "/v1/accounts", avro_file(records), "application/avro")
    assert (answer.status_code, answer.json()["accepted"]) == (202, count)
    assert [number for number in ids_in_topic(environment) if first <= number < first + count] == list(
        range(first, first + count)
    )


def test_a_streamed_body_is_read_while_it_comes(session: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        for number in range(5):
            yield json.dumps(accounts([600 + number])[0]).encode() + b"\n"

    answer = session.post(
        "/v1/accounts", content=body(), headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": "streamed"}
    )
    assert answer.json()["accepted"] == 5


def test_bad_lines_do_not_lose_the_good_ones(environment: Settings, session: httpx.Client) -> None:
    records: list[Any] = [*accounts([700]), {"id": 701, "ledger": "x", "code": 1}, *accounts([702])]
    answer = write(session, "/v1/accounts", ndjson(records), "application/x-ndjson")
    assert answer.status_code == 207
    body = answer.json()
    assert (body["accepted"], body["refused"]) == (2, 1)
    assert [(error["line"], error["errors"][0]["pointer"]) for error in body["errors"]] == [(2, "/ledger")]
    assert {700, 702} <= set(ids_in_topic(environment))
    everything_bad = write(session, "/v1/accounts", ndjson([1, 2]), "application/x-ndjson")
    assert (everything_bad.status_code, slug(everything_bad)) == (422, "invalid-event")


@pytest.mark.parametrize(
    ("record", "pointer", "words"),
    [
        ({"id": "x", "ledger": 1, "code": 1}, "/id", "integer"),
        ({"id": -1, "ledger": 1, "code": 1}, "/id", "negative"),
        ({"id": 2**128, "ledger": 1, "code": 1}, "/id", ""),
        ({"id": 1, "ledger": 1, "code": 1.5}, "/code", "without fraction"),
        ({"id": 1, "ledger": 1, "code": 1, "colour": 1}, "/colour", "no such field"),
        ({"id": 1, "ledger": 1}, "/code", "needs this field"),
        ({"id": 1, "ledger": 1, "code": 1, "flags": ["shiny"]}, "/flags", "unknown flag"),
        ("text", "", "must be an object"),
    ],
)
def test_each_bad_field_has_its_own_answer(
    environment: Settings, session: httpx.Client, record: Any, pointer: str, words: str
) -> None:
    before = len(ids_in_topic(environment))
    answer = write(session, "/v1/accounts", json.dumps([*accounts([1]), record]).encode())
    assert (answer.status_code, slug(answer)) == (422, "invalid-event")
    [error] = answer.json()["errors"]
    assert error["pointer"] == f"/1{pointer}"
    assert words in error["detail"]
    assert len(ids_in_topic(environment)) == before, "an array is all or nothing"


def test_each_bad_request_has_its_own_answer(api: ApiServer, session: httpx.Client) -> None:
    record = accounts([1])[0]
    found = {
        "no key": session.post("/v1/accounts", json=record),
        "not JSON": write(session, "/v1/accounts", b"{"),
        "not Avro": write(session, "/v1/accounts", b"{}", "application/avro"),
        "nothing": write(session, "/v1/accounts", b""),
        "text": write(session, "/v1/accounts", b"x", "text/plain"),
        "too large": write(session, "/v1/accounts", b" " * (1 << 20) + b"{}"),
        "long line": write(session, "/v1/accounts", b"x" * 100_000, "application/x-ndjson"),
        "post without ledger": write(session, "/v1/transfers", {"id": 1, "flags": ["post_pending_transfer"]}),
        "wrong type": write(session, "/v1/transfers", {"type": "CreateAccount", **record}),
        "no such path": session.get("/v2"),
        "no such method": session.put("/v1/accounts"),
    }
    assert {name: (answer.status_code, slug(answer)) for name, answer in found.items()} == {
        "no key": (400, "idempotency-key-missing"),
        "not JSON": (400, "malformed-json"),
        "not Avro": (400, "malformed-avro"),
        "nothing": (400, "empty-body"),
        "text": (415, "unsupported-media-type"),
        "too large": (413, "too-large"),
        "long line": (413, "too-large"),
        "post without ledger": (422, "invalid-event"),
        "wrong type": (422, "invalid-event"),
        "no such path": (404, "not-found"),
        "no such method": (405, "method-not-allowed"),
    }
    with api.session("ledger:read") as reading:
        refused = write(reading, "/v1/accounts", record)
    assert (refused.status_code, slug(refused)) == (403, "insufficient-scope")
    anonymous = httpx.post(f"{api.url}/v1/accounts", json=record, headers={"Idempotency-Key": "x"})
    assert (anonymous.status_code, slug(anonymous)) == (401, "unauthorized")
    assert anonymous.headers["WWW-Authenticate"].startswith("Bearer")
    wrong = httpx.get(f"{api.url}/v1/accounts/1", headers={"Authorization": "Bearer nonsense"})
    assert 'error="invalid_token"' in wrong.headers["WWW-Authenticate"]


def test_the_token_endpoint_speaks_rfc_6749(api: ApiServer) -> None:
    client_id, secret = api.new_client("ledger:read")
    url = f"{api.url}/oauth/token"
    grant = {"grant_type": "client_credentials"}
    in_body = httpx.post(url, data={**grant, "client_id": client_id, "client_secret": secret, "scope": "ledger:read"})
    assert in_body.status_code == 200
    assert in_body.json() | {"access_token": ""} == {
        "access_token": "", "token_type": "Bearer", "expires_in": 300, "scope": "ledger:read"
    }  # fmt: skip
    assert in_body.headers["Cache-Control"] == "no-store"
    refused = [
        (httpx.post(url, data=grant, auth=(client_id, "wrong")), 401, "invalid_client"),
        (httpx.post(url, data=grant, auth=("nobody", secret)), 401, "invalid_client"),
        (httpx.post(url, data={"grant_type": "password"}, auth=(client_id, secret)), 400, "unsupported_grant_type"),
        (httpx.post(url, data={}, auth=(client_id, secret)), 400, "invalid_request"),
        (httpx.post(url, data={**grant, "scope": "ledger:write"}, auth=(client_id, secret)), 400, "invalid_scope"),
        (httpx.post(url, json=grant, auth=(client_id, secret)), 400, "invalid_request"),
    ]
    assert [(answer.status_code, answer.json()["error"]) for answer, _, _ in refused] == [
        (status, error) for _, status, error in refused
    ]
    assert refused[0][0].headers["WWW-Authenticate"].startswith("Basic")
    [key] = httpx.get(f"{api.url}/.well-known/jwks.json").json()["keys"]
    assert {"kty", "crv", "x", "y", "kid"} <= set(key)
    assert "d" not in key


def test_guessing_secrets_is_limited(environment: Settings, tmp_path: Path) -> None:
    with running_api(environment, tmp_path, workers=1, token_attempts_per_minute=5) as server:
        client_id, _ = server.new_client("ledger:read")
        answers = [
            httpx.post(
                f"{server.url}/oauth/token", data={"grant_type": "client_credentials"}, auth=(client_id, "guess")
            )
            for _ in range(6)
        ]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429]


def test_a_repeated_request_gets_the_stored_answer(environment: Settings, session: httpx.Client) -> None:
    for content_type, body in (
        ("application/json", json.dumps(accounts([800])[0]).encode()),
        ("application/x-ndjson", ndjson(accounts([801, 802]))),
    ):
        key = str(uuid4())
        first = write(session, "/v1/accounts", body, content_type, Idempotency_Key=key)
        again = write(session, "/v1/accounts", body, content_type, Idempotency_Key=f'"{key}"')
        assert again.headers["Idempotency-Replayed"] == "true"
        assert (again.status_code, again.content) == (first.status_code, first.content)
        other = write(session, "/v1/accounts", body + b" ", content_type, Idempotency_Key=key)
        assert (other.status_code, slug(other)) == (422, "idempotency-key-reused")
        elsewhere = write(session, "/v1/ledger/events", body, content_type, Idempotency_Key=key)
        assert slug(elsewhere) == "invalid-event"  # another route's key; there the type is needed
    found = ids_in_topic(environment)
    assert [found.count(number) for number in (800, 801, 802)] == [1, 1, 1]


def test_a_key_in_use_is_409_until_its_request_ends(session: httpx.Client) -> None:
    key = str(uuid4())
    reached, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield json.dumps(accounts([900])[0]).encode() + b"\n"
        reached.set()
        assert go_on.wait(20)
        yield json.dumps(accounts([901])[0]).encode()

    answers: list[httpx.Response] = []
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
    thread = threading.Thread(
        target=lambda: answers.append(session.post("/v1/accounts", content=slow(), headers=headers))
    )
    thread.start()
    assert reached.wait(20)

    def in_use() -> bool:
        answer = session.post("/v1/accounts", content=b"other", headers=headers)
        return answer.status_code == 409 and slug(answer) == "idempotency-key-in-use"

    try:
        wait_until(in_use, 10, "the key is in use")
    finally:
        go_on.set()
        thread.join(20)
    assert answers[0].json()["accepted"] == 2
    again = session.post("/v1/accounts", content=ndjson(accounts([900, 901])), headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true"


def test_a_slow_body_is_cut_off(environment: Settings, tmp_path: Path) -> None:
    with running_api(environment, tmp_path, workers=1, idle_seconds=1) as server:
        token = server.token("ledger:write")
        host, port = server.environment.host, server.environment.api_port
        with socket.create_connection((host, port), timeout=20) as connection:
            connection.sendall(
                b"POST /v1/accounts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: slow\r\n"
                b"Content-Length: 100\r\nAuthorization: Bearer " + token.encode() + b"\r\n\r\n{"
            )
            assert b"408" in connection.recv(100)
        with socket.create_connection((host, port), timeout=40) as connection:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            assert connection.recv(100) == b"", "a connection that never finishes its headers is closed"


def test_the_rate_limit_counts_events_over_all_workers(environment: Settings, tmp_path: Path) -> None:
    with running_api(environment, tmp_path, workers=2, events_per_minute=10) as server, server.session() as session:
        first = write(session, "/v1/accounts", accounts(range(1000, 1008)))
        assert first.headers["RateLimit-Policy"] == '"events";q=10;w=60'
        assert first.headers["RateLimit"].startswith('"events";r=2;')
        for _ in range(4):  # whichever worker answers
            with server.session() as other:
                assert write(other, "/v1/accounts", accounts(range(1100, 1110))).status_code == 202
            with httpx.Client(base_url=server.url, headers=session.headers) as same_client:
                refused = write(same_client, "/v1/accounts", accounts([1, 2, 3]))
            assert (refused.status_code, slug(refused)) == (429, "rate-limited")
            assert int(refused.headers["Retry-After"]) >= 1


def test_without_valkey_writes_go_on(stack: PrivateStack, environment: Settings, session: httpx.Client) -> None:
    valkey = stack.get(Valkey)
    valkey.kill()
    try:
        answer = write(session, "/v1/accounts", accounts([1500]))
        assert answer.status_code == 202
        assert answer.headers["Idempotency-Stored"] == "false"
        assert "streambank_api_idempotency_unavailable_total" in session.get("/metrics").text
    finally:
        stack.get(Valkey)
    assert 1500 in ids_in_topic(environment)
    wait_until(
        lambda: "Idempotency-Stored" not in write(session, "/v1/accounts", accounts([1501])).headers,
        20,
        "Valkey is used",
    )


def test_results_come_when_asked_for(environment: Settings, session: httpx.Client) -> None:
    late = write(session, "/v1/accounts", accounts([3000]), Prefer="wait=1")
    assert late.status_code == 202
    assert "Preference-Applied" not in late.headers
    with running_ledger(environment):
        created = write(session, "/v1/accounts", accounts([3001])[0], Prefer="wait=20")
        assert created.status_code == 201
        assert created.headers["Preference-Applied"] == "wait=20"
        assert created.headers["Location"] == "/v1/accounts/3001?ledger=1"
        [result] = created.json()["results"]
        assert (result["type"], result["id"], result["result"]) == ("AccountResult", 3001, "created")
        assert result["sequence"] >= 1
        both = [
            {"type": "CreateAccount", **accounts([3002], ledger=6)[0]},
            {"type": "CreateAccount", **accounts([3003], ledger=1)[0]},
            {"type": "CreateTransfer", "id": 1, "debit_account_id": 3001, "credit_account_id": 3003, "amount": 5,
             "ledger": 1, "code": 1},
            {"type": "CreateTransfer", "id": 2, "debit_account_id": 3001, "credit_account_id": 9999, "amount": 5,
             "ledger": 1, "code": 1},
            {"type": "CreateAccount", **accounts([3004], ledger=6)[0]},
        ]  # fmt: skip
        mixed = write(session, "/v1/ledger/events", ndjson(both), "application/x-ndjson", Prefer="wait=20")
        file = write(session, "/v1/ledger/events", ndjson(both), "application/x-ndjson", Prefer="wait=20",
                     Accept="application/avro, application/json;q=0.5")  # fmt: skip
        refused = write(session, "/v1/ledger/events", ndjson([*both, {"type": "CreateAccount"}]),
                        "application/x-ndjson", Prefer="wait=20", Accept="application/avro")  # fmt: skip
    assert (file.status_code, file.headers["Content-Type"]) == (200, "application/avro")
    records: Any = fastavro.reader(io.BytesIO(file.content))
    assert [(found["record"], int(found["id"]), found["result"], found["shard"]) for found in records] == [
        (0, 3002, "exists", 2), (1, 3003, "exists", 1), (2, 1, "exists", 1), (3, 2, "id_already_failed", 1),
        (4, 3004, "exists", 2),
    ]  # fmt: skip
    assert refused.status_code == 207  # what was not passed on has no place in the file
    assert (len(refused.json()["results"]), len(refused.json()["errors"])) == (5, 1)
    assert mixed.status_code == 200
    assert [(found["line"], found["id"], found["result"]) for found in mixed.json()["results"]] == [
        (1, 3002, "created"), (2, 3003, "created"), (3, 1, "created"), (4, 2, "credit_account_not_found"),
        (5, 3004, "created"),
    ]  # fmt: skip


def store(environment: Settings) -> psycopg.Connection[Any]:
    return psycopg.connect(environment.postgres_dsn, autocommit=True)


def put_account(connection: psycopg.Connection[Any], number: int, ledger: int, **changes: Any) -> None:
    row = {
        "shard": ledger % 4, "id": number, "ledger": ledger, "code": 10, "flags": 2, "user_data_128": 0,
        "user_data_64": 0, "user_data_32": 0, "debits_posted": 7, "credits_posted": 2**100, "timestamp": 123,
        "sequence": 5, "event_index": 0,
    } | changes  # fmt: skip
    columns = ", ".join(row)
    connection.execute(f"INSERT INTO accounts ({columns}) VALUES ({', '.join(['%s'] * len(row))})", list(row.values()))  # noqa: S608


def reach(connection: psycopg.Connection[Any], environment: Settings, shard: int, sequence: int) -> None:
    connection.execute(
        "INSERT INTO sink_offsets (sink, topic, partition, sequence) VALUES ('postgres', %s, %s, %s)"
        " ON CONFLICT (sink, topic, partition) DO UPDATE SET sequence = excluded.sequence",
        [environment.kafka_topic("ledger.events"), shard, sequence],
    )


def test_an_account_has_its_balances_and_their_sequence(environment: Settings, session: httpx.Client) -> None:
    with store(environment) as connection:
        put_account(connection, 4000, 1)
        put_account(connection, 4001, 1)
        put_account(connection, 4001, 2)
        reach(connection, environment, 1, 9)
        account = session.get("/v1/accounts/4000")
        assert account.status_code == 200
        assert account.json() == {
            "id": 4000, "ledger": 1, "code": 10, "flags": ["debits_must_not_exceed_credits"], "closed": False,
            "debits_pending": 0, "debits_posted": 7, "credits_pending": 0, "credits_posted": str(2**100),
            "user_data_128": 0, "user_data_64": 0, "user_data_32": 0, "timestamp": 123, "shard": 1, "sequence": 9,
            "changed_at_sequence": 5,
        }  # fmt: skip
        ambiguous = session.get("/v1/accounts/4001")
        assert (ambiguous.status_code, slug(ambiguous)) == (409, "ambiguous-id")
        assert ambiguous.json()["ledgers"] == [1, 2]
        assert session.get("/v1/accounts/4001?ledger=2").json()["shard"] == 2
        missing = session.get("/v1/accounts/4002")
        assert (missing.status_code, slug(missing)) == (404, "not-found")

        early = session.get("/v1/accounts/4000?ledger=1&min_sequence=10")
        assert (early.status_code, slug(early)) == (503, "not-yet-visible")
        assert early.headers["Retry-After"] == "1"
        later = threading.Timer(0.3, reach, (connection, environment, 1, 10))
        later.start()
        reached = session.get("/v1/accounts/4000?ledger=1&min_sequence=10", headers={"Prefer": "wait=20"})
        later.join()
        assert (reached.status_code, reached.json()["sequence"]) == (200, 10)
    for path in (
        "/v1/accounts/x", f"/v1/accounts/{2**128}", "/v1/accounts/1?ledger=-1", "/v1/accounts/1?color=1",
        "/v1/accounts/1?min_sequence=1", "/v1/accounts/1/statement?month=2026-13", "/v1/accounts/1/statement?limit=0",
        "/v1/accounts/1/statement?cursor=x",
    ):  # fmt: skip
        answer = session.get(path)
        assert (answer.status_code, slug(answer)) == (400, "bad-parameter"), path


def test_a_transfer_is_found_by_its_id(environment: Settings, session: httpx.Client) -> None:
    row = {
        "shard": 1, "id": 2**64, "debit_account_id": 1, "credit_account_id": 2, "amount": 2**70, "pending_id": 0,
        "user_data_128": 0, "user_data_64": 0, "user_data_32": 0, "timeout": 0, "ledger": 1, "code": 3, "flags": 2,
        "timestamp": 5, "sequence": 6,
    }  # fmt: skip
    with store(environment) as connection:
        columns = [found.name for found in connection.execute("SELECT * FROM transfers LIMIT 0").description or ()]
        row |= dict.fromkeys(set(columns) - set(row), 0)
        connection.execute(
            f"INSERT INTO transfers ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})",  # noqa: S608
            list(row.values()),
        )
    found = session.get(f"/v1/transfers/{2**64}").json()
    assert (found["id"], found["amount"], found["flags"], found["sequence"]) == (
        str(2**64), str(2**70), ["pending"], 6
    )  # fmt: skip


def test_queries_survive_their_store(
    stack: PrivateStack, environment: Settings, session: httpx.Client, tmp_path: Path
) -> None:
    from infra.stack.postgres import Postgres

    with store(environment) as connection:
        put_account(connection, 4100, 1)
    assert session.get("/v1/accounts/4100").status_code == 200
    stack.get(Postgres).kill()
    try:
        away = session.get("/v1/accounts/4100")
        assert (away.status_code, slug(away)) == (503, "store-unavailable")
        assert "Retry-After" in away.headers
        assert write(session, "/v1/accounts", accounts([4101])).status_code == 202
        assert session.get("/health/ready").status_code == 200
    finally:
        stack.get(Postgres)
    wait_until(lambda: session.get("/v1/accounts/4100").status_code == 200, 30, "the account is readable again")


def test_a_statement_is_paged_newest_first(
    stack: PrivateStack, environment: Settings, session: httpx.Client, tmp_path: Path
) -> None:
    away = session.get("/v1/accounts/5000/statement?ledger=1")
    assert (away.status_code, slug(away)) == (503, "store-unavailable")
    from infra.stack.cassandra import Cassandra

    stack.get(Cassandra)
    migrate_cassandra(environment)
    with cassandra_session(environment) as cassandra:
        columns = {
            "shard": 1, "account_id": 5000, "month": 202601, "entry": "transfer", "direction": "debit",
            "counterparty_account_id": 2, "amount": 2**80, "ledger": 1, "code": 1, "flags": 0, "pending_id": 0,
            "user_data_128": 0, "user_data_64": 0, "user_data_32": 0, "debits_pending": 0, "debits_posted": 1,
            "credits_pending": 0, "credits_posted": 0, "account_flags": 0, "sequence": 1,
        }  # fmt: skip
        for number in range(7):
            row = {**columns, "timestamp": 1000 + number // 2, "transfer_id": number}
            cassandra.execute(
                f"INSERT INTO statement_by_account_month ({', '.join(row)})"  # noqa: S608
                f" VALUES ({', '.join(['%s'] * len(row))})",
                list(row.values()),
            )
    url = "/v1/accounts/5000/statement?ledger=1&month=2026-01&limit=3"
    wait_until(lambda: session.get(url).status_code == 200, 60, "Cassandra is used")
    found: list[int] = []
    cursor = None
    while True:
        page = session.get(url + (f"&cursor={cursor}" if cursor else "")).json()
        found += [entry["transfer_id"] for entry in page["entries"]]
        assert page["entries"][0]["amount"] == str(2**80)
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == [6, 5, 4, 3, 2, 1, 0]
    assert session.get("/v1/accounts/5000/statement?ledger=1&month=2026-02").json()["entries"] == []


def test_pages_of_the_operator(api: ApiServer, session: httpx.Client) -> None:
    assert session.get("/health/live").json() == {"status": "live"}
    ready = session.get("/health/ready").json()
    assert ready["required"] == {"kafka": True, "schema_registry": True}
    metrics = session.get("/metrics").text
    assert re.search(r'streambank_api_requests_total\{route="/v1/accounts",status="202"\} \d', metrics)
    assert session.get("/openapi.json").json()["openapi"] == "3.1.0"
    page = session.get("/docs")
    assert "script-src 'sha256-" in page.headers["Content-Security-Policy"]
    assert session.get("/problems/rate-limited").json()["status"] == 429


def test_logs_have_the_trace_and_no_secret(api: ApiServer) -> None:
    client_id, secret = api.new_client("ledger:write")
    answer = httpx.post(f"{api.url}/oauth/token", data={"grant_type": "client_credentials"}, auth=(client_id, secret))
    token = answer.json()["access_token"]
    trace = os.urandom(16).hex()
    sent = httpx.post(
        f"{api.url}/v1/accounts", json={**accounts([6000])[0], "user_data_64": 987654321987},
        headers={"Authorization": f"Bearer {token}", "Idempotency-Key": "logged",
                 "traceparent": f"00-{trace}-{'1' * 16}-01"},
    )  # fmt: skip
    assert sent.headers["X-Request-Id"] == trace
    wait_until(lambda: trace in api.log_file.read_text(), 10, "the request is logged")
    text = api.log_file.read_text()
    lines = [json.loads(line) for line in text.splitlines() if trace in line]
    assert sent.json()["frames"][0]["trace"] in lines[0]["frames"]
    assert (lines[0]["client"], lines[0]["remote"]) == (client_id, "127.0.0.1"), "who did it"
    for hidden in (secret, token, "987654321987"):
        assert hidden not in text


def test_a_taken_port_is_said(api: ApiServer, tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.support.stack import variables

    again = subprocess.run(
        [str(Path(sys.executable).with_name("streambank")), "api"], env=variables(api.environment),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert again.returncode == 1
    assert "STREAMBANK_API_PORT" in again.stderr
