"""The card vault on real servers: what it answers, who may ask, its keys, and that no number is found anywhere else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from api.card_keeper import CardKeeper
from infra.kafka import kafka_options
from infra.migrations import migrate_postgres
from infra.settings import Settings
from infra.stores import API_ROLE, SINK_ROLE, VAULT_KEEPER_ROLE, VAULT_ROLE, postgres_conninfo
from pipelines.card_numbers import luhn_valid
from pipelines.catalogue import TOPICS
from tests.support.api_server import ApiServer, accounts, running_api, write
from tests.support.provision import provision
from tests.support.stack import PrivateStack, variables

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

STREAMBANK = Path(sys.executable).with_name("streambank")


def numbers(count: int, start: int = 0) -> list[str]:
    """Valid Visa numbers that stand out in a search."""
    found = []
    for index in range(start, start + count):
        body = f"4929{index * 7919 % 10**11:011d}"
        found.append(next(body + str(check) for check in range(10) if luhn_valid(body + str(check))))
    return found


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry", "postgres", "valkey")
    provision(environment)
    migrate_postgres(environment)
    return environment


@pytest.fixture(scope="module")
def api(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with running_api(environment, tmp_path_factory.mktemp("vault"), cards_per_minute=100_000) as server:
        yield server


@pytest.fixture(scope="module")
def session(api: ApiServer) -> Iterator[httpx.Client]:
    with api.session("cards:tokenise", "cards:read", "cards:detokenise") as client:
        yield client


def tokenise(session: httpx.Client, number: str, year: int = 2040, month: int = 12) -> httpx.Response:
    return session.post("/v1/cards", json={"number": number, "expiry_month": month, "expiry_year": year})


def detokenise(session: httpx.Client, token: str, purpose: str = "a test") -> httpx.Response:
    return session.post(f"/v1/cards/{token}/detokenise", json={"purpose": purpose})


def test_a_card_has_one_token_and_its_number_comes_out_for_who_may_only(
    api: ApiServer, session: httpx.Client, environment: Settings
) -> None:
    [number] = numbers(1, 1_000)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: tokenise(session, number), range(16)))
    assert {answer.status_code for answer in answers} == {201}
    [token] = {answer.json()["token"] for answer in answers}
    shown = {"token": token, "brand": "visa", "last_four": number[-4:], "expiry_month": 12, "expiry_year": 2040}
    assert answers[0].json() == shown
    assert session.get(f"/v1/cards/{token}").json() == shown
    assert tokenise(session, number, month=11).json()["token"] != token  # a renewed card is another one
    answer = detokenise(session, token, "settlement file")
    assert answer.json() == {**shown, "number": number}
    assert answer.headers["Cache-Control"] == "no-store"

    with api.session("cards:tokenise", "cards:read") as other:
        assert detokenise(other, token).status_code == 403
    with api.session("ledger:read") as other:
        assert tokenise(other, number).status_code == 403
    assert httpx.post(f"{api.url}/v1/cards/{token}/detokenise", json={"purpose": "x"}).status_code == 401
    unknown = "card_" + "a" * 26
    assert detokenise(session, unknown).status_code == 404
    assert session.get(f"/v1/cards/{unknown}").status_code == 404

    entries = CardKeeper(api.environment, "tester").audit(token=token, since=None, limit=100)
    assert [(entry.action, entry.outcome, entry.purpose) for entry in entries[:2]] == [
        ("detokenise", "refused: scope", ""),
        ("detokenise", "done", "settlement file"),
    ]
    assert entries[1].trace_id == answer.headers["X-Request-Id"]
    assert entries[0].client_id != entries[1].client_id
    assert [entry.action for entry in entries[2:]] == ["tokenise"] * 16
    with psycopg.connect(postgres_conninfo(environment)) as owner:
        for statement in ("DELETE FROM card_vault.audit", "UPDATE card_vault.audit SET client_id = 'nobody'"):
            with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
                owner.execute(statement)
            owner.rollback()


def test_roles_see_no_more_than_they_need(environment: Settings) -> None:
    forbidden = [
        (API_ROLE, "SELECT * FROM card_vault.cards"),
        (SINK_ROLE, "SELECT * FROM card_vault.cards"),
        (VAULT_ROLE, "UPDATE card_vault.cards SET brand = ''"),
        (VAULT_ROLE, "DELETE FROM card_vault.cards"),
        (VAULT_ROLE, "UPDATE card_vault.data_keys SET state = 'active'"),
        (VAULT_ROLE, "SELECT * FROM card_vault.audit"),
        (VAULT_ROLE, "SELECT * FROM accounts"),
        (VAULT_KEEPER_ROLE, "UPDATE card_vault.cards SET last_four = ''"),
        (VAULT_KEEPER_ROLE, "DELETE FROM card_vault.audit"),
    ]
    for role, statement in forbidden:
        with (
            psycopg.connect(postgres_conninfo(environment, role)) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)


def test_keys_rotate_under_load_and_a_killed_re_encryption_goes_on(api: ApiServer, session: httpx.Client) -> None:
    keeper = CardKeeper(api.environment, "tester")
    cards = {number: tokenise(session, number).json()["token"] for number in numbers(60, 2_000)}
    before = {key.id for key in keeper.data_keys()}
    added: dict[str, str] = {}
    with ThreadPoolExecutor(4) as pool:
        more = numbers(40, 3_000)
        running = [pool.submit(lambda number: (number, tokenise(session, number)), number) for number in more]
        keeper.rotate("encryption")
        keeper.rotate("fingerprint")
        keeper.rotate_master()
        for done in running:
            number, answer = done.result()
            assert answer.status_code == 201, answer.text
            added[number] = answer.json()["token"]
    assert {tokenise(session, number).json()["token"] for number in cards} == set(cards.values())

    def stop_after_the_first_batch(moved: int, total: int) -> None:
        if moved:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keeper.re_encrypt(10, stop_after_the_first_batch)
    half = {key.id: key.cards for key in keeper.data_keys()}
    assert sum(half[key] for key in before) > 0, "nothing was left to move"
    done = subprocess.run(
        [STREAMBANK, "cards", "re-encrypt", "--batch", "20"],
        env=variables(api.environment), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    states = {key.id: key for key in keeper.data_keys()}
    assert all(states[key].state == "destroyed" and not states[key].cards for key in before)
    assert keeper.re_encrypt(10, lambda *_: None) == 0
    for command, shown in (("keys", "destroyed"), ("audit", "destroy key")):
        done = subprocess.run(
            [STREAMBANK, "cards", command], env=variables(api.environment) | {"COLUMNS": "300"}, capture_output=True,
            text=True, timeout=120, check=True,
        )  # fmt: skip
        assert shown in done.stdout
    for number, token in (cards | added).items():
        assert detokenise(session, token).json()["number"] == number
        assert tokenise(session, number).json()["token"] == token

    # a row that was changed behind the vault's back does not open
    first, second = list(cards.values())[:2]
    with psycopg.connect(postgres_conninfo(api.environment)) as owner:
        owner.execute(
            "UPDATE card_vault.cards c SET nonce = o.nonce, ciphertext = o.ciphertext FROM card_vault.cards o"
            " WHERE c.token = %s AND o.token = %s",
            [first, second],
        )
    assert detokenise(session, first).status_code == 500
    assert detokenise(session, second).status_code == 200


def test_no_number_is_anywhere_but_in_the_vault(environment: Settings, api: ApiServer, session: httpx.Client) -> None:
    secrets = numbers(30, 4_000)
    answers = ""
    for number in secrets[:10]:
        token = tokenise(session, number).json()["token"]
        assert detokenise(session, token).json()["number"] == number
        answers += session.get(f"/v1/cards/{token}").text
    for number in secrets[10:]:  # wherever somebody may put one by mistake
        wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
        for body in (
            {"number": number},
            {"number": wrong, "expiry_month": 1, "expiry_year": 2040},
            {"number": number, "expiry_month": 1, "expiry_year": 2040, "cvc": "123"},
            {"number": number, "expiry_month": 1, "expiry_year": 2001},
            {"number": int(number), number: number, "expiry_month": number, "expiry_year": number},
            [number],
        ):
            answer = session.post("/v1/cards", json=body)
            assert answer.status_code == 422, answer.text
            answers += answer.text
            assert wrong not in answer.text
        answers += session.post("/v1/cards", content=f'{{"number": "{number}', headers=_JSON).text
        answers += session.get(f"/v1/cards/{number}").text
        answers += session.get(f"/v1/accounts/{number}", params={number: number, "ledger": number}).text
        answers += session.post(f"/v1/cards/{number}/detokenise", json={"purpose": number}).text
        answers += session.post("/v1/cards", json={"number": number}, headers={"traceparent": number}).text
        answers += detokenise(session, "card_" + "b" * 26, f"paid with {number}").text
    with api.session("ledger:write") as writer:  # so that the topics are not empty
        assert write(writer, "/v1/accounts", accounts(range(1, 30))).status_code == 202
    haystacks = {
        "answers": answers.encode(),
        "metrics": httpx.get(f"{api.url}/metrics").content,
        "logs": api.log_file.read_bytes(),
        "topics": _topics(environment),
        "tables": _tables(environment),
        "files": b"".join(path.read_bytes() for path in api.environment.data_dir.rglob("*") if path.is_file()),
    }
    assert b"streambank_api_card_requests" in haystacks["metrics"]
    assert all(haystacks.values())
    for place, haystack in haystacks.items():
        for number in secrets:
            assert number.encode() not in haystack, f"{place} hold {number}"
            assert bytes.fromhex(number) not in haystack, f"{place} hold packed {number}"
            assert number.encode().hex().encode() not in haystack, f"{place} hold hexadecimal {number}"


_JSON = {"Content-Type": "application/json"}


def _topics(environment: Settings) -> bytes:
    """Keys, values and headers of every record of every topic of this environment."""
    consumer = Consumer({**kafka_options(environment), "group.id": str(uuid4()), "log_level": 0})
    found = []
    try:
        places = []
        for topic in TOPICS.values():
            for partition in range(topic.partitions):
                place = TopicPartition(environment.kafka_topic(topic.name), partition)
                low, high = consumer.get_watermark_offsets(place, timeout=20)
                if high > low:
                    place.offset = low
                    places.append((place, high))
        for place, high in places:
            consumer.assign([place])
            offset = -1
            while offset < high - 1:
                message = consumer.poll(20)
                assert message is not None
                assert message.error() is None
                offset = message.offset()
                found.append(f"{message.key()} {message.headers()}".encode() + message.value())
    finally:
        consumer.close()
    return b"".join(found)


def _tables(environment: Settings) -> bytes:
    """Every row of every table of the database as text, binary values as hexadecimal."""
    with psycopg.connect(postgres_conninfo(environment)) as owner:
        names = owner.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        assert ("card_vault", "cards") in names
        rows = [owner.execute(f"SELECT t::text FROM {schema}.{table} t").fetchall() for schema, table in names]  # noqa: S608
    text = json.dumps(rows)
    assert re.search(r"card_[a-z2-7]{26}", text)
    return text.encode()
