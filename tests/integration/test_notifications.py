"""Notifications from topic to customer: a real mail server, webhook receiver, SMS gateway and WebSocket client."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import psycopg
import pytest

from infra.migrations import migrate_postgres
from infra.settings import Settings
from infra.stores import API_ROLE, NOTIFIER_ROLE, postgres_conninfo
from jobs.dead_letter_queue import DeadLetterQueue
from jobs.topic_reader import TopicReader
from pipelines.catalogue import NOTIFICATION_DELIVERIES, NOTIFICATION_SHARDS
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.notifications import notification_request
from pipelines.wire import unwrap
from tests.support.api_server import ApiServer, running_api
from tests.support.notifications import (
    STREAMBANK,
    Mailbox,
    NotifierProcess,
    Receiver,
    ask,
    running_mail_server,
    running_receiver,
)
from tests.support.provision import provision
from tests.support.stack import PrivateStack, free_ports, variables
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

PATIENCE = 60
CARD = "4111111111111111"


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Settings:
    environment = stack.environment("kafka", "registry", "postgres", "valkey").model_copy(
        update={"webhook_allowed_networks": "127.0.0.1/32", "webhook_allow_http": True}
    )
    provision(environment)
    migrate_postgres(environment)
    return environment


@pytest.fixture(scope="module")
def api(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with running_api(environment, tmp_path_factory.mktemp("api"), workers=1) as server:
        yield server


@pytest.fixture(scope="module")
def session(api: ApiServer) -> Iterator[httpx.Client]:
    with api.session("notifications:read", "notifications:write") as client:
        yield client


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    smtp_port, web_port = free_ports(2)
    return smtp_port, web_port


@pytest.fixture(scope="module")
def mailbox(ports: tuple[int, int]) -> Iterator[Mailbox]:
    with running_mail_server(ports[0]) as running:
        yield running


@pytest.fixture(scope="module")
def notifier(
    environment: Settings,
    receiver: Receiver,
    mailbox: Mailbox,
    ports: tuple[int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[NotifierProcess]:
    process = NotifierProcess(
        environment,
        tmp_path_factory.mktemp("notifier") / "notifier.log",
        web_port=ports[1],
        retry_seconds="[0.2, 0.2, 0.2, 0.2]",
        attempt_seconds=4,
        lease_seconds=6,
        poll_seconds=0.2,
        smtp_host="127.0.0.1",
        smtp_port=ports[0],
        smtp_security="none",
        sms_url=f"{receiver.url}/sms",
        sms_token="gateway-token",
    )
    process.start()
    try:
        wait_until(
            lambda: httpx.get(f"http://127.0.0.1:{ports[1]}/health", timeout=5).status_code == 200,
            90,
            f"the notifier is healthy; {process.log_file}",
        )
        yield process
    finally:
        code = process.stop()
    assert code == 0


def add_webhook(session: httpx.Client, receiver: Receiver, customer: str, path: str, *kinds: str) -> str:
    body = {"customer": customer, "channel": "webhook", "address": receiver.url + path, "kinds": list(kinds)}
    answer = session.post("/v1/notifications/endpoints", json=body)
    assert answer.status_code == 201, answer.text
    receiver.secrets[path] = answer.json()["secret"]
    return str(answer.json()["id"])


def request(name: str, customer: str, kind: str = "payment.completed", **options: Any) -> dict[str, Any]:
    data = options.pop("data", {"amount": "12.30", "currency": "EUR"})
    return notification_request(name, customer, kind, 1_700_000_000_000_000, data, **options)


def deliveries(session: httpx.Client, message_id: str) -> dict[str, dict[str, Any]]:
    answer = session.get(f"/v1/notifications/{message_id}")
    assert answer.status_code in (200, 404), answer.text
    found = answer.json().get("deliveries", [])
    return {f"{entry['channel']} {entry['endpoint_id']}".strip(): entry for entry in found}


def settled(session: httpx.Client, message_id: str) -> dict[str, dict[str, Any]]:
    """The deliveries, when none is under way."""

    def done() -> dict[str, dict[str, Any]] | None:
        found = deliveries(session, message_id)
        return found if found and all(entry["ended_at"] for entry in found.values()) else None

    found = wait_until(done, PATIENCE, f"{message_id} is settled")
    assert found is not None
    return found


def streambank(environment: Settings, *arguments: str) -> str:
    done = subprocess.run(
        [STREAMBANK, *arguments], env={**variables(environment), "COLUMNS": "250"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def follow(api: ApiServer, token: str, count: int, **query: Any) -> list[dict[str, Any]]:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client,
        client.ws_connect(f"{api.url}/v1/notifications/stream", params=query) as socket,
    ):
        return [await socket.receive_json(timeout=PATIENCE) for _ in range(count)]


def test_every_channel_tells_once_with_one_id(
    environment: Settings,
    api: ApiServer,
    session: httpx.Client,
    receiver: Receiver,
    mailbox: Mailbox,
    notifier: NotifierProcess,
) -> None:
    endpoint = add_webhook(session, receiver, "ann", "/ok/ann")
    add_webhook(session, receiver, "ann", "/ok/fraud-only", "fraud.*")
    for channel, address in (("email", "ann@example.com"), ("sms", "+436641234567")):
        body = {"customer": "ann", "channel": channel, "address": address}
        answer = session.post("/v1/notifications/endpoints", json=body)
        assert answer.status_code == 201
        assert "secret" not in answer.json()
        assert session.post("/v1/notifications/endpoints", json=body).status_code == 409
    wanted = {"channels": {"payment.*": ["webhook", "email", "sms", "websocket"], "*": ["websocket"]}}
    assert session.put("/v1/notifications/preferences/ann", json=wanted).status_code == 200
    assert session.get("/v1/notifications/preferences/ann").json() == {"customer": "ann", **wanted}

    first = request("ann-1", "ann", data={"text": f"paid € 12 with {CARD}", "reference": "{{ 7 * 7 }}"})
    ask(environment, [first, first, request("ann-2", "ann", kind="login.new"), first])
    found = settled(session, "ann-1")
    assert {entry["state"] for entry in found.values()} == {"delivered"}
    assert [name.split()[0] for name in found] == ["webhook", "email", "sms", "websocket"]
    assert f"webhook {endpoint}" in found
    assert list(settled(session, "ann-2")) == ["websocket"]

    [(_, message_id, payload)] = [taken for taken in receiver.taken if taken[0] == "/ok/ann"]
    assert message_id == "ann-1"
    assert payload == {
        "type": "payment.completed",
        "timestamp": "2023-11-14T22:13:20.000000Z",
        "data": {"text": "paid € 12 with ****1111", "reference": "{{ 7 * 7 }}"},
    }
    assert not receiver.ids("/ok/fraud-only")
    [mail] = [mail for mail in mailbox.mails if mail["To"] == "ann@example.com"]
    assert mail["Subject"] == "Your payment was made"
    assert mail["Message-ID"].startswith("<ann-1.ep_")
    assert "text: paid € 12 with ****1111" in mail.get_content()
    assert "{{ 7 * 7 }}" in mail.get_content()
    [(message, headers)] = [found for found in receiver.messages if found[0]["to"] == "+436641234567"]
    assert message["text"].startswith("Payment completed: text paid € 12")
    assert headers["idempotency-key"] == message["id"]
    assert headers["authorization"] == "Bearer gateway-token"

    async def watch() -> None:
        token = api.token("notifications:read")
        everything = await follow(api, token, 2, customer="ann", after=0)
        assert [entry["sequence"] for entry in everything] == [1, 2]
        assert [(entry["id"], entry["type"]) for entry in everything] == [
            ("ann-1", "payment.completed"), ("ann-2", "login.new"),
        ]  # fmt: skip
        live = asyncio.create_task(follow(api, token, 2, customer="ann", after=1))
        await asyncio.to_thread(ask, environment, [request("ann-3", "ann", channels=["websocket"])])
        assert [entry["id"] for entry in await live] == ["ann-2", "ann-3"]

    asyncio.run(watch())
    with api.session("ledger:read") as other:
        assert other.get("/v1/notifications/stream", params={"customer": "ann"}).status_code == 403
    assert session.get("/v1/notifications/stream", params={"customer": "ann"}).status_code == 426
    assert session.get("/v1/notifications/nobody-1").status_code == 404

    steps = wait_until(
        lambda: _statuses(environment, "ann-1") if len(_statuses(environment, "ann-1")) >= 4 else None,
        PATIENCE,
        "the topic tells what became of it",
    )
    assert sorted(steps) == [(channel, "delivered") for channel in ("email", "sms", "webhook", "websocket")]
    assert CARD not in notifier.log_file.read_text() + api.log_file.read_text()


def test_what_fails_is_tried_again_or_dies_and_can_be_replayed(
    environment: Settings, session: httpx.Client, receiver: Receiver, mailbox: Mailbox, notifier: NotifierProcess
) -> None:
    flaky = add_webhook(session, receiver, "bob", "/flaky/bob")
    busy = add_webhook(session, receiver, "bob", "/busy/bob")
    gone = add_webhook(session, receiver, "bob", "/gone/bob")
    dead = add_webhook(session, receiver, "bob", "/dead/bob")
    slow = add_webhook(session, receiver, "bob", "/slow/bob")
    redirect = add_webhook(session, receiver, "bob", "/redirect/bob")
    body = {"customer": "bob", "channel": "webhook", "address": f"http://127.0.0.1:{free_ports(1)[0]}/nobody"}
    down = session.post("/v1/notifications/endpoints", json=body).json()["id"]
    emails = {}
    for name in ("later", "never"):
        body = {"customer": "bob", "channel": "email", "address": f"{name}@example.com"}
        emails[name] = session.post("/v1/notifications/endpoints", json=body).json()["id"]
    mailbox.refuse = {"later@example.com": ["451 try later"], "never@example.com": ["550 no such user"] * 9}
    # past the API's checks: an address that is not public must be refused where it is used, too
    inside = "ep_inside"
    with psycopg.connect(postgres_conninfo(environment)) as owner:
        owner.execute(
            "INSERT INTO notifications.endpoints (id, customer, channel, address, secret) SELECT %s, customer, channel,"
            " replace(address, '127.0.0.1', '127.0.0.2'), secret FROM notifications.endpoints WHERE id = %s",
            [inside, dead],
        )
    ask(environment, [request("bob-1", "bob"), request("bob-2", "bob", channels=["sms"])])

    def state(name: str) -> tuple[str, int]:
        entry = deliveries(session, "bob-1").get(name, {})
        return str(entry.get("state")), int(entry.get("attempts", 0))

    # the slow one keeps nobody waiting
    for name, wanted in (
        (f"webhook {flaky}", ("delivered", 3)),
        (f"webhook {busy}", ("delivered", 2)),
        (f"webhook {gone}", ("dead", 1)),
        (f"webhook {dead}", ("dead", 5)),
        (f"webhook {redirect}", ("dead", 5)),
        (f"webhook {inside}", ("dead", 5)),
        (f"webhook {down}", ("dead", 5)),
        (f"email {emails['later']}", ("delivered", 2)),
        (f"email {emails['never']}", ("dead", 1)),
    ):
        wait_until(lambda name=name, wanted=wanted: state(name) == wanted, PATIENCE, f"{name} is {wanted}")  # type: ignore[misc]
    found = deliveries(session, "bob-1")
    assert found[f"webhook {inside}"]["last_error"].startswith("the host resolves to an address that is not public")
    assert found[f"webhook {redirect}"]["last_error"].startswith("the endpoint answered 302")
    assert "550" in str(found[f"email {emails['never']}"]["last_error"]) or "refused" in str(
        found[f"email {emails['never']}"]["last_error"]
    )
    assert not receiver.ids("/ok/redirected")
    assert set(receiver.ids("/flaky/bob")) == {"bob-1"}
    [missing] = settled(session, "bob-2").values()
    assert (missing["state"], missing["last_error"]) == ("dead", "bob has no sms endpoint for payment.completed")

    listed = session.get("/v1/notifications/endpoints", params={"customer": "bob"}).json()["endpoints"]
    assert {entry["id"] for entry in listed if entry["disabled_reason"]} == {gone}
    ask(environment, [request("bob-3", "bob", channels=["webhook"])])
    wait_until(lambda: deliveries(session, "bob-3"), PATIENCE, "bob-3 is accepted")
    assert f"webhook {gone}" not in deliveries(session, "bob-3")  # it is off
    assert receiver.seen["/gone/bob"] == 1

    receiver.release.set()
    wait_until(lambda: state(f"webhook {slow}")[0] == "delivered", PATIENCE, "the slow one has taken it at last")
    out = streambank(environment, "notifications", "ls", "--state", "dead", "--channel", "webhook", "--id", "bob-1")
    assert dead in out
    assert "500" in out
    streambank(environment, "notifications", "replay", "--id", "bob-1", "--channel", "webhook")
    wait_until(lambda: state(f"webhook {dead}")[0] == "delivered", PATIENCE, "the replay arrived")
    assert set(receiver.ids("/dead/bob")) <= {"bob-1", "bob-3"}
    assert "off: the endpoint answered 410" in streambank(environment, "notifications", "endpoints")
    assert "off" not in streambank(environment, "notifications", "endpoints", "--enable", gone, "--customer", "bob")
    assert session.delete(f"/v1/notifications/endpoints/{gone}").status_code == 204
    assert session.delete(f"/v1/notifications/endpoints/{gone}").status_code == 404
    assert not receiver.wrong


def test_a_killed_notifier_forgets_nothing(
    environment: Settings, session: httpx.Client, receiver: Receiver, notifier: NotifierProcess
) -> None:
    receiver.release.clear()
    customers = [f"kim{number}" for number in range(8)]
    for customer in customers:
        add_webhook(session, receiver, customer, f"/held/{customer}")
    wanted = [f"{customer}-{number}" for customer in customers for number in range(5)]
    ask(environment, [request(name, name.split("-")[0], channels=["webhook"]) for name in wanted])
    wait_until(lambda: len(set(wanted) & set(receiver.ids_seen)) >= 8, PATIENCE, "attempts are under way")
    notifier.kill()
    receiver.release.set()  # those attempts arrived, and nobody knows
    notifier.start()

    def arrived() -> bool:
        taken = {message_id for path, message_id, _ in receiver.taken if path.startswith("/held/")}
        return taken == set(wanted)

    wait_until(arrived, 120, "every notification arrived")
    for name in wanted:
        [entry] = settled(session, name).values()
        assert entry["state"] == "delivered"
    assert not receiver.wrong
    repeated = len([1 for path, *_ in receiver.taken if path.startswith("/held/")]) - len(wanted)
    assert repeated >= 1, "nothing was under way when it was killed"


def test_what_is_wrong_is_refused_or_set_aside(
    environment: Settings, session: httpx.Client, notifier: NotifierProcess
) -> None:
    refused = [
        ("webhook", "https://10.0.0.1/x"), ("webhook", "http://127.0.0.2/x"), ("webhook", "http://[::1]/x"),
        ("webhook", "http://[::ffff:169.254.169.254]/x"), ("webhook", "http://2130706434/x"),
        ("webhook", "http://user:secret@127.0.0.1/x"), ("webhook", "ftp://127.0.0.1/x"), ("webhook", "http:///x"),
        ("webhook", "http://127.0.0.1:99999/"), ("webhook", "http://does-not-exist.invalid/"),
        ("email", "a@b@c"), ("email", "Eve <eve@example.com>"), ("email", "eve@example.com\r\nBcc: all@example.com"),
        ("sms", "0664123"), ("pigeon", "roof"),
    ]  # fmt: skip
    for channel, address in refused:
        body = {"customer": "eve", "channel": channel, "address": address}
        answer = session.post("/v1/notifications/endpoints", json=body)
        assert answer.status_code == 422, (channel, address, answer.text)
    for channels in ({"payment..x": ["sms"]}, {"*": ["pigeon"]}, [], {"*": "sms"}):
        answer = session.put("/v1/notifications/preferences/eve", json={"channels": channels})
        assert answer.status_code == 422
    good = request("eve-1", "eve", channels=["websocket"])
    ask(environment, [{**good, "id": "no spaces"}, {**good, "id": "eve-2", "data": "[1]"}, good])
    settled(session, "eve-1")
    letters = wait_until(
        lambda: [place.letter for place in DeadLetterQueue(environment).letters()], PATIENCE, "dead letters are there"
    )
    assert [(letter.consumer, letter.reason) for letter in letters] == [("notifier", "bad_request")] * 2
    for role, statement in (
        (API_ROLE, "SELECT secret FROM notifications.endpoints"),
        (API_ROLE, "UPDATE notifications.deliveries SET state = 'dead'"),
        (NOTIFIER_ROLE, "SELECT * FROM card_vault.cards"),
        (NOTIFIER_ROLE, "DELETE FROM notifications.messages"),
    ):
        with (
            psycopg.connect(postgres_conninfo(environment, role)) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)


def _statuses(environment: Settings, message_id: str) -> list[tuple[str, str]]:
    codec = codec_of(NOTIFICATION_DELIVERIES.name)
    with TopicReader(environment) as reader:
        events = [
            event
            for shard in range(NOTIFICATION_SHARDS)
            for record in reader.read(NOTIFICATION_DELIVERIES, shard)
            for event in render_events(codec, codec.decode(unwrap(record.value)[1]).events)
        ]
    return [(event["channel"], event["status"]) for event in events if event["notification_id"] == message_id]
