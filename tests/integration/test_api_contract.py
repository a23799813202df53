"""The API keeps what its OpenAPI document says, and payment messages of ISO 20022 go all the way.

Schemathesis makes requests of the document, right ones and wrong ones, for every operation: no answer is a server
error, every status and content type is documented, and every body fits its schema. Behind the API are real Kafka,
registry, Postgres, Cassandra and Valkey, the kernels of ledger, payments and matching, the relays between them, and the
sinks of Postgres. ``STREAMBANK_CONTRACT_EXAMPLES`` is how many requests each operation gets at random beside those that
are made of every constraint (`make contract`).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4
from xml.etree.ElementTree import fromstring

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from api.clients import SCOPES
from api.openapi import openapi_document
from api.openapi_fraud import add_fraud
from api.openapi_ledger import add_ledger
from api.openapi_trading import add_trading
from infra.migrations import migrate_cassandra
from infra.settings import Settings
from jobs.sinks.cassandra_fraud import FraudDecisionsSink, FraudRescoresSink
from pipelines.codec import codec_of
from pipelines.frames import Frame
from pipelines.fraud.decisions import Scores, UnknownPolicy, UnknownReason, decide
from pipelines.fraud.rules import DEFAULT_RULES
from pipelines.wire import wrap
from tests.support.api_server import ApiServer, running_api, running_system
from tests.support.ledger_events import EventLog
from tests.support.ledger_history import project
from tests.support.sinks import prepare, running
from tests.support.stack import STREAMBANK, PrivateStack, variables
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

EXAMPLES = int(os.environ.get("STREAMBANK_CONTRACT_EXAMPLES", "4"))
SOCKETS = {"/v1/market-data", "/v1/notifications/stream"}
"""WebSockets: a plain request is refused, which their own tests look at."""
SERVICES = ("postgres", "postgres-payments", "payments-to-ledger", "ledger-to-payments")
LEDGER, PAYER, PAYEE = 978, 10, 11
IBANS = {PAYER: "DE89370400440532013000", PAYEE: "GB29NWBK60161331926819"}

document = add_fraud(add_ledger(add_trading(openapi_document(codec_of("ledger.commands"), codec_of("ledger.results")))))
schema = schemathesis.openapi.from_dict(document)
for path in SOCKETS:
    schema = schema.exclude(path=path)
# A request for every constraint of the document is some hundred for each operation: minutes.
schema.config.phases.coverage.enabled = EXAMPLES > 10


@schemathesis.serializer(
    "application/x-ndjson", "application/ndjson", "application/jsonl", "application/avro",
    "application/vnd.apache.avro", "avro/binary",
)  # fmt: skip
def as_it_is(context: Any, value: Any) -> bytes:
    """Lines of NDJSON and files of Avro, which are strings in the document."""
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


# Time stands still in the ledger, so that all of it is one day's.
NOW = time.time_ns() // 1000
DAY = datetime.fromtimestamp(NOW / 1e6, UTC).date()


@pytest.fixture(scope="module")
def api(stack: PrivateStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    environment: Settings = stack.environment("kafka", "registry", "postgres", "cassandra", "valkey")
    prepare(environment, "postgres")
    migrate_cassandra(environment)
    directory = tmp_path_factory.mktemp("contract")
    with ExitStack() as everything:
        everything.enter_context(running_system(environment, "ledger", NOW))
        for system in ("payments", "matching"):
            everything.enter_context(running_system(environment, system))
        server = everything.enter_context(
            running_api(environment, directory / "api", workers=1, token_seconds=3600, token_attempts_per_minute=10_000)
        )
        for service in SERVICES:
            everything.enter_context(running(environment, service, directory / f"{service}.log"))
        yield server


@pytest.fixture(scope="module")
def client(api: ApiServer) -> Iterator[httpx.Client]:
    with api.session(*SCOPES) as session:
        yield session


def wrong_answers() -> list[Any]:
    """The checks that hold for every request, right or wrong."""
    from schemathesis import checks

    names = (
        "status_code_conformance", "content_type_conformance", "response_headers_conformance",
        "response_schema_conformance", "missing_required_header", "ignored_auth",
    )  # fmt: skip
    return [no_server_error, *(checks.CHECKS.get_one(name) for name in names)]


def no_server_error(context: Any, response: Any, case: Any) -> None:
    """As Schemathesis has it, but a client may ask for a sequence that the stores have not reached."""
    if response.status_code >= 500 and response.json()["type"] != "/problems/not-yet-visible":
        raise AssertionError(f"{response.status_code}: {response.text}")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip
def test_every_answer_is_documented(case: Any, api: ApiServer, client: httpx.Client) -> None:
    headers = {"Authorization": client.headers["Authorization"]}
    case.call_and_validate(base_url=api.url, headers=headers, checks=wrong_answers(), timeout=60)


def test_decisions_are_found_by_their_transaction(api: ApiServer, client: httpx.Client) -> None:
    vectors = np.zeros(2, codec_of("fraud.features").event_type("FeatureVector").dtype)
    vectors["transaction_id_lo"], vectors["transaction_id_hi"], vectors["amount"] = [7, 8], [0, 1], 20_000

    def keep(sink: type[FraudDecisionsSink], shard: int, scores: Scores) -> None:
        rescored = sink is FraudRescoresSink
        events = decide(
            vectors, scores, DEFAULT_RULES, UnknownPolicy(), model="fraud", scored_at=9 + rescored, rescored=rescored
        )
        frame = Frame(sink.topic.name, shard, 1, 0, None, events)
        log = EventLog([(shard, wrap(1, codec_of(sink.topic.name).encode(frame)))])
        asyncio.run(project(api.environment, log, sink))

    def found(transaction: int, **query: int) -> httpx.Response:
        return client.get(f"/v1/fraud-decisions/{transaction}", params=query)

    keep(FraudDecisionsSink, 2, Scores(None, reason=UnknownReason.timeout))
    keep(FraudRescoresSink, 2, Scores(np.array([0.95, 0.1]), 3))
    keep(FraudDecisionsSink, 1, Scores(np.array([0.5, 0.5]), 3, challenger=np.array([0.2, 0.2]), challenger_version=4))
    answer = found(8 + 2**64, portfolio=2)
    assert answer.status_code == 200, answer.text
    schema["/v1/fraud-decisions/{id}"]["GET"].validate_response(answer)
    place = {
        "type": "Decision", "transaction_id": str(8 + 2**64), "event_time": 0, "customer_id": 0, "terminal_id": 0,
        "amount": 20_000, "model": "fraud", "challenger_version": 0, "challenger_score": None, "rule_set_version": 0,
        "rules_hit": "", "shadow_rules_hit": "",
    }  # fmt: skip
    assert answer.json() == {
        "transaction_id": str(8 + 2**64),
        "portfolio": 2,
        "decisions": [
            place
            | {"decision": "review", "score": None, "unknown_reason": "timeout", "model_version": 0,
               "reason_codes": "unknown_timeout", "rescored": False, "scored_at": 9},
            place
            | {"decision": "approve", "score": 100_000, "unknown_reason": "none", "model_version": 3,
               "reason_codes": "", "rescored": True, "scored_at": 10},
        ],
    }  # fmt: skip
    [decision] = found(7, portfolio=1).json()["decisions"]
    assert (decision["transaction_id"], decision["score"], decision["challenger_score"]) == (7, 500_000, 200_000)
    assert found(7).status_code == 404  # that is another portfolio's
    assert found(7, portfolio=4).status_code == 400


# --- headers as bytes -------------------------------------------------------------------------------------------------

HOSTILE_HEADERS = {
    "a control character": b"X-A: a\x01b",
    "a NUL": b"X-A: a\x00b",
    "a bare carriage return": b"X-A: a\rb",
    "a folded line": b"X-A: a\r\n b",
    "a space before the colon": b"Content-Length : 3",
    "no colon": b"nonsense",
    "no name": b": value",
    "8 KiB": b"X-A: " + b"a" * 8_300,
    "100 KiB": b"X-A: " + b"a" * 100_000,
    "two hosts": b"Host: other",
    "two tokens": b"Authorization: Bearer a\r\nAuthorization: Bearer b",
    "a token of bytes": b"Authorization: Bearer \xff\xfe\x80",
    "a token of spaces": b"Authorization: Bearer    ",
    "credentials of bytes": b"Authorization: Basic \xff",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 5",
    "length and chunks": b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    "an unknown encoding": b"Transfer-Encoding: identity, x",
    "a length of words": b"Content-Length: many",
    "a negative length": b"Content-Length: -1",
}


@pytest.mark.parametrize("header", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS)
@pytest.mark.parametrize("line", [b"POST /v1/payments", b"POST /oauth/token"])
def test_hostile_headers_are_refused(api: ApiServer, line: bytes, header: bytes) -> None:
    address = (api.environment.host, api.environment.api_port)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(line + b" HTTP/1.1\r\nHost: a\r\n" + header + b"\r\nConnection: close\r\n\r\n{}{}{}{}")
        answer = b""
        while b"\r\n\r\n" not in answer and (more := connection.recv(65_536)):
            answer += more
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 401, 411, 415, 431), answer
    assert b"Traceback" not in answer
    assert b"application/problem+json" in answer, answer


# --- ISO 20022 --------------------------------------------------------------------------------------------------------

PAIN002 = "{urn:iso:std:iso:20022:tech:xsd:pain.002.001.10}"
PACS002 = "{urn:iso:std:iso:20022:tech:xsd:pacs.002.001.10}"
CAMT053 = "{urn:iso:std:iso:20022:tech:xsd:camt.053.001.08}"
XML = {"Content-Type": "application/xml"}


def pain001(message_id: str, amounts: list[str], creditor: str = IBANS[PAYEE], **changes: str) -> bytes:
    """A pain.001 by which PAYER pays the creditor."""
    transactions = "".join(
        f"<CdtTrfTxInf><PmtId><EndToEndId>{message_id}-{number}</EndToEndId></PmtId><Amt><InstdAmt Ccy='EUR'>{amount}"
        f"</InstdAmt></Amt><CdtrAcct><Id><IBAN>{creditor}</IBAN></Id></CdtrAcct><RmtInf><Ustrd>rent &amp; more</Ustrd>"
        "</RmtInf></CdtTrfTxInf>"
        for number, amount in enumerate(amounts, 1)
    )
    count = changes.get("count", str(len(amounts)))
    return f"""<?xml version="1.0" encoding="UTF-8"?>{changes.get("dtd", "")}
<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"><CstmrCdtTrfInitn><GrpHdr><MsgId>{message_id}</MsgId>
<CreDtTm>2026-01-31T12:00:00Z</CreDtTm><NbOfTxs>{count}</NbOfTxs></GrpHdr><PmtInf><PmtInfId>I1</PmtInfId>
<PmtMtd>TRF</PmtMtd><ReqdExctnDt><Dt>2026-01-31</Dt></ReqdExctnDt><Dbtr/><DbtrAcct><Id><IBAN>{IBANS[PAYER]}</IBAN></Id>
</DbtrAcct><DbtrAgt><FinInstnId><BICFI>DEUTDEFF</BICFI></FinInstnId></DbtrAgt>{transactions}</PmtInf></CstmrCdtTrfInitn>
</Document>""".encode()


def pacs008(message_id: str, amount: str, debtor: str, creditor: str) -> bytes:
    """A pacs.008 between accounts that are named by their numbers."""
    agent = "<FinInstnId><BICFI>DEUTDEFF</BICFI></FinInstnId>"
    return f"""<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pacs.008.001.08"><FIToFICstmrCdtTrf><GrpHdr>
<MsgId>{message_id}</MsgId><CreDtTm>2026-01-31T12:00:00Z</CreDtTm><NbOfTxs>1</NbOfTxs></GrpHdr><CdtTrfTxInf><PmtId>
<EndToEndId>E-{message_id}</EndToEndId><TxId>T1</TxId></PmtId><IntrBkSttlmAmt Ccy="EUR">{amount}</IntrBkSttlmAmt>
<DbtrAcct><Id><Othr><Id>{debtor}</Id></Othr></Id></DbtrAcct><DbtrAgt>{agent}</DbtrAgt><CdtrAgt>{agent}</CdtrAgt>
<CdtrAcct><Id><Othr><Id>{creditor}</Id></Othr></Id></CdtrAcct></CdtTrfTxInf></FIToFICstmrCdtTrf></Document>""".encode()


def send_message(client: httpx.Client, body: bytes, wait: int = 60, **headers: str) -> httpx.Response:
    prefer = {"Prefer": f"wait={wait}"} if wait else {}
    return client.post("/v1/iso20022/messages", content=body, headers={**XML, **prefer, **headers}, timeout=90)


@pytest.fixture(scope="module")
def bank(client: httpx.Client) -> httpx.Client:
    """Accounts with IBANs, and 20.00 EUR on the payer's, who cannot pay more."""
    flags = {1: [], PAYER: ["debits_must_not_exceed_credits"], PAYEE: []}
    opened = [{"id": number, "ledger": LEDGER, "code": 1, "flags": flags[number]} for number in flags]
    funds = {"id": 1, "debit_account_id": 1, "credit_account_id": PAYER, "amount": 2000, "ledger": LEDGER, "code": 9}
    for path, body in (("/v1/accounts", opened), ("/v1/transfers", funds)):
        answer = client.post(path, json=body, headers={"Idempotency-Key": str(uuid4()), "Prefer": "wait=30"})
        assert answer.status_code == 201, answer.text
    for number, iban in IBANS.items():
        answer = client.put(
            f"/v1/accounts/{number}/metadata?ledger={LEDGER}",
            json={"name": f"account {number}", "attributes": {"iban": iban}},
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 200, answer.text

    def ready() -> bool:
        answer = send_message(client, pacs008(f"ready-{uuid4().hex[:20]}", "0.01", str(PAYEE), "1"))
        return answer.status_code == 201 and b"<TxSts>ACSC</TxSts>" in answer.content

    wait_until(ready, 120, "a payment comes to rest")
    return client


def test_a_message_becomes_payments_and_a_report(bank: httpx.Client) -> None:
    message = pain001("M1", ["12.50", "99"])
    answer = send_message(bank, message)
    assert (answer.status_code, answer.headers["Content-Type"]) == (201, "application/xml"), answer.text
    report = fromstring(answer.content)  # noqa: S314 - our own
    [status] = report
    assert status.findtext(f"{PAIN002}OrgnlGrpInfAndSts/{PAIN002}OrgnlMsgId") == "M1"
    assert status.findtext(f"{PAIN002}OrgnlGrpInfAndSts/{PAIN002}GrpSts") == "PART"
    rows = status.findall(f"{PAIN002}OrgnlPmtInfAndSts/{PAIN002}TxInfAndSts")
    found = [
        (row.findtext(f"{PAIN002}OrgnlEndToEndId"), row.findtext(f"{PAIN002}TxSts"),
         row.findtext(f"{PAIN002}StsRsnInf/{PAIN002}Rsn/{PAIN002}Cd"))
        for row in rows
    ]  # fmt: skip
    assert found == [("M1-1", "ACSC", None), ("M1-2", "RJCT", "AM04")]

    # the message's id is its key: again the same, and another message under it is refused; a key of one's own counts
    again = send_message(bank, message)
    assert (again.content, again.headers["Idempotency-Replayed"]) == (answer.content, "true")
    other = send_message(bank, pain001("M1", ["1.00"]))
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")
    assert send_message(bank, pain001("M1", ["0.01"]), **{"Idempotency-Key": "mine"}).status_code == 201

    paid = rows[0].findtext(f"{PAIN002}AcctSvcrRef")
    payment = wait_until(
        lambda: (seen := bank.get(f"/v1/payments/{paid}?ledger={LEDGER}")).status_code == 200 and seen.json(),
        60, "the payment is visible",
    )  # fmt: skip
    assert (payment["amount"], payment["reference"], payment["end_to_end_id"]) == (1250, "rent & more", "M1-1")

    unwaited = send_message(bank, pacs008("M2", "0.02", str(PAYEE), f"0x{1:032x}"), wait=0)
    assert unwaited.status_code == 202, unwaited.text
    [body] = fromstring(unwaited.content)  # noqa: S314
    assert body.findtext(f"{PACS002}TxInfAndSts/{PACS002}TxSts") == "RCVD"
    assert body.findtext(f"{PACS002}TxInfAndSts/{PACS002}OrgnlTxId") == "T1"


def test_messages_that_are_wrong_become_nothing(api: ApiServer, bank: httpx.Client) -> None:
    bomb = "<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'>" + "".join(
        f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9)
    ) + "]>"  # fmt: skip
    outside = "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>"
    for body, reason in (
        (pain001("W1", ["1"], creditor="GB29NWBK60161331926818"), "AC01"),
        (pain001("W2", ["1"], creditor="NO9386011117947"), "AC03"),
        (pain001("W3", ["1"], count="2"), "AM18"),
        (pain001("W4", ["1.001"]), "AM12"),
        (pain001("W5", ["1"], dtd=bomb), "NARR"),
        (pain001("W6", ["1"], dtd=outside), "NARR"),
        (pacs008("W7", "1", "10", "-1"), "AC03"),
        (b"<a>" * 200_000, "NARR"),
        (b"\xff\xfe", "NARR"),
    ):
        answer = send_message(bank, body)
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (422, "/problems/invalid-iso20022"), answer.text
        assert [error["reason"] for error in problem["errors"]] == [reason], problem
        assert len(answer.content) < 2_000
    began = time.monotonic()
    assert send_message(bank, b"<a>" + b" " * (5 << 20)).status_code == 413
    assert time.monotonic() - began < 60
    assert send_message(bank, b"").status_code == 400
    assert send_message(bank, b"{}", **{"Content-Type": "application/json"}).status_code == 415
    many = pain001("W8", ["0.01"] * 1001)
    assert send_message(bank, many).json()["type"] == "/problems/too-large"
    with api.session("payments:read") as reader:
        assert send_message(reader, pain001("W9", ["1"])).status_code == 403


def test_a_day_of_an_account_is_a_statement(bank: httpx.Client) -> None:
    assert send_message(bank, pain001("S1", ["1.00"])).status_code == 201
    path = "/v1/iso20022/accounts/{}/statement"

    def statement(account: object = PAYER, day: date = DAY, ledger: int = LEDGER) -> httpx.Response:
        return bank.get(path.format(account), params={"ledger": ledger, "date": str(day)})

    def booked() -> Any:
        answer = statement()
        return answer if b"<EndToEndId>S1-1</EndToEndId>" in answer.content else None

    answer = wait_until(booked, 60, "the entry is booked")
    assert answer.headers["Content-Type"] == "application/xml"
    [found] = fromstring(answer.content).findall(f".//{CAMT053}Stmt")  # noqa: S314
    assert found.findtext(f"{CAMT053}Acct/{CAMT053}Id/{CAMT053}IBAN") == IBANS[PAYER]

    def signed(node: Any) -> int:
        euros, cents = node.findtext(f"{CAMT053}Amt").split(".")
        return (1 if node.findtext(f"{CAMT053}CdtDbtInd") == "CRDT" else -1) * (int(euros) * 100 + int(cents))

    balances = {
        node.findtext(f"{CAMT053}Tp/{CAMT053}CdOrPrtry/{CAMT053}Cd"): signed(node)
        for node in found.findall(f"{CAMT053}Bal")
    }
    entries = found.findall(f"{CAMT053}Ntry")
    account = bank.get(f"/v1/accounts/{PAYER}", params={"ledger": LEDGER}).json()
    closing = account["credits_posted"] - account["debits_posted"]
    assert balances.pop("OPBD") == 0
    assert list(balances.values()) == [closing]
    assert set(balances) <= {"ITBD", "CLBD"}
    assert sum(map(signed, entries)) == closing, "what was only held is not booked"
    assert signed(entries[0]) == 2000
    [mine] = [entry for entry in entries if entry.findtext(f".//{CAMT053}EndToEndId") == "S1-1"]
    assert signed(mine) == -100
    assert mine.findtext(f".//{CAMT053}CdtrAcct/{CAMT053}Id/{CAMT053}IBAN") == IBANS[PAYEE]
    assert mine.findtext(f".//{CAMT053}Ustrd") == "rent & more"

    by_iban = fromstring(statement(IBANS[PAYER]).content)  # noqa: S314
    assert len(by_iban.findall(f".//{CAMT053}Ntry")) == len(entries)
    yesterday = statement(day=DAY - timedelta(days=1))
    assert yesterday.status_code == 200
    assert b"<Ntry>" not in yesterday.content
    assert b"CLBD" in yesterday.content
    assert statement(12345).status_code == 404
    for refused in (statement("nobody"), statement(day=DAY + timedelta(days=9)), statement(ledger=77_777)):
        assert refused.status_code == 400, refused.text


@pytest.mark.parametrize(("profile", "outcome"), [("payments", "COMPLETED"), ("orders", "NEW")])
def test_a_load_is_played_to_its_outcome(api: ApiServer, bank: httpx.Client, profile: str, outcome: str) -> None:
    arguments = ["--profile", profile, "--rate", "50", "--count", "40", "--clients", "8", "--json", "-"]
    done = subprocess.run(
        [STREAMBANK, "load", *arguments], env=variables(api.environment), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["profile"], result["clients"], result["outcomes"]) == (profile, 8, {outcome: 40})
    assert result["acknowledged_events"] == result["sent_events"] == 40
    assert set(result["latency_ms"]) == {"p50", "p90", "p99", "p99.9", "max"}
