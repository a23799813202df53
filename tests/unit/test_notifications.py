"""Rules of notifications: which channels, which addresses, which text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra.outbound import UrlRefused, check_url, guarded_session, refusal_of
from infra.settings import Settings
from jobs.notifications.config import NotifierSettings
from jobs.notifications.messages import MessageError, Messages
from jobs.sinks.fraud_notifications import FraudNotificationsRelay
from jobs.sinks.payments_notifications import PaymentsNotificationsRelay
from pipelines.catalogue import FRAUD_ALERTS, PAYMENTS_EVENTS
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.notifications import (
    CHANNELS,
    bad_pattern,
    chosen_channels,
    matches,
    notification_request,
    notification_shard,
    request_error,
)

MOMENT = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
INSIDE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.1.2.3", "224.0.0.1",
    "255.255.255.255", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:10.0.0.1",
    "2002:0a00:0001::1", "64:ff9b::7f00:1", "2001:0:4136:e378:8000:63bf:f5ff:fffe", "not an address",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "channels"),
    [("payment.completed", ("email",)), ("payment.failed", ("sms",)), ("payment", ("webhook",)),
     ("login", ("webhook",)), ("fraud.alert", ())],
)  # fmt: skip
def test_the_longest_pattern_decides(kind: str, channels: Sequence[str]) -> None:
    preferences = {"*": ["webhook"], "payment.*": ["sms"], "payment.completed": ["email"], "fraud.*": []}
    assert chosen_channels(kind, preferences) == tuple(channels)
    assert chosen_channels(kind, None) == chosen_channels(kind, {"other": ["sms"]}) == CHANNELS


def test_patterns_and_requests_are_checked() -> None:
    assert matches("a.b", []) and matches("a.b", ["x", "a.*"]) and not matches("ab.c", ["a.*"])  # noqa: PT018
    assert not any(map(bad_pattern, ["*", "a", "a.b", "a.*", "a.b.*"]))
    assert all(map(bad_pattern, ["", "a*", "*.a", "a..b", "a.**", ".*", "A", "a" * 67]))
    request = notification_request("p-1", "ann", "payment.done", 1, {"card": "4111 1111 1111 1111"}, ["sms"])
    assert request["data"] == '{"card":"****1111"}'
    for wrong in (("p 1", "ann", "a", "{}"), ("p", "", "a", "{}"), ("p", "ann", "A", "{}"), ("p", "ann", "a", "[]"),
                  ("p", "ann", "a", "{"), ("p", "ann", "a", '{"a":"' + "x" * 17_000 + '"}')):  # fmt: skip
        assert request_error(*wrong)
    with pytest.raises(ValueError, match="customer"):
        notification_request("p-1", "a n n", "payment.done", 1, {})


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_inside_are_refused(address: str) -> None:
    assert refusal_of(address, ())


def test_public_and_allowed_addresses_are_not() -> None:
    from ipaddress import ip_network

    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"):
        assert refusal_of(address, ()) is None
    allowed = (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))
    for address in ("10.1.2.3", "fd00::1"):
        assert refusal_of(address, allowed) is None
    assert refusal_of("10.2.0.1", allowed)


async def test_urls_are_refused_with_a_reason() -> None:
    for url, message in (
        ("http://8.8.8.8/", "https URL"), ("https://", "https URL"), ("https://u:p@8.8.8.8/", "no user"),
        ("https://8.8.8.8/#x", "fragment"), ("https://127.0.0.1/", "not public"), ("https://127.1/", "not public"),
        ("https://[::1]/", "not public"), ("https://8.8.8.8:0x/", "not a URL"), ("https://8.8.8.8/ x", "ASCII"),
        ("https://8.8.8.8/" + "x" * 2048, "2048"),
    ):  # fmt: skip
        with pytest.raises(UrlRefused, match=message):
            await check_url(url, Settings())
    await check_url("https://8.8.8.8/hook?a=b", Settings())
    with pytest.raises(UrlRefused, match="ALLOWED_NETWORKS"):
        await check_url("https://8.8.8.8/", Settings(webhook_allowed_networks="10.0.0.0/33"))


async def test_a_socket_is_made_for_checked_addresses_only() -> None:
    reached = 0

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal reached
        reached += 1
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    timeout = aiohttp.ClientTimeout(total=20)
    try:
        async with guarded_session(Settings(), connections=2, timeout=timeout) as session:
            for host in ("127.0.0.1", "localhost", "127.1", "2130706433"):  # a literal, a name, other notations
                with pytest.raises(aiohttp.ClientError):
                    await session.post(f"http://{host}:{port}/", data=b"x")
        assert reached == 0
        allowing = Settings(webhook_allowed_networks="127.0.0.1/32")
        async with (
            guarded_session(allowing, connections=2, timeout=timeout) as session,
            session.post(f"http://127.0.0.1:{port}/", data=b"x") as answer,
        ):
            assert answer.status == 204
    finally:
        server.close()
        await server.wait_closed()


def test_templates_are_sandboxed_strict_and_found_by_kind(tmp_path: Path) -> None:
    (tmp_path / "payment.email.txt").write_text("Payment\n of {{ data.amount }}\nDear {{ customer }}\n")
    (tmp_path / "evil.email.txt").write_text("{{ data.__class__.__mro__[1].__subclasses__() }}\nx\n")
    (tmp_path / "loop.sms.txt").write_text("{% for n in range(999999999) %}x{% endfor %}")
    messages = Messages(tmp_path)
    assert messages.email("payment.completed", "ann", MOMENT, {"amount": "1 EUR\r\nBcc: x"})[0] == "Payment"
    assert "of 1 EUR" in messages.email("payment.completed", "ann", MOMENT, {"amount": "1 EUR"})[1]
    subject, body = messages.email("account.locked", "ann", MOMENT, {"why": "{{ 7 * 7 }}"})
    assert subject == "Account locked"
    assert "2026-01-31 at 12:30 UTC" in body
    assert "why: {{ 7 * 7 }}" in body
    assert messages.sms("a.b", "ann", MOMENT, {"x": 1, "y": "two\nlines", "z": [1]}) == "A b: x 1, y two lines"
    for kind, send in (("payment.x", messages.email), ("evil", messages.email), ("loop", messages.sms)):
        with pytest.raises(MessageError):
            send(kind, "ann", MOMENT, {})


def test_a_lease_outlasts_an_attempt() -> None:
    with pytest.raises(ValueError, match="LEASE_SECONDS"):
        NotifierSettings(attempt_seconds=10, lease_seconds=10)


def test_fraud_alerts_tell_the_customer_once_and_nothing_that_helps_a_thief() -> None:
    alert = {
        "type": "Alert", "alert_id": str(2**127), "day": 20_000, "transaction_id": 7,
        "event_time": 1_700_000_000_000_000, "customer_id": 42, "terminal_id": 9, "amount": 1205,
        "decision": "block", "score": 990_000,
        "model_version": 3, "rule_set_version": 2, "reason_codes": "velocity", "raised_at": 1_700_000_000_500_000,
    }  # fmt: skip
    codec = codec_of(FRAUD_ALERTS.name)
    events = parse_events(codec, [alert, {**alert, "alert_id": 1, "decision": "approve"}, alert])
    first, repeated = FraudNotificationsRelay(Settings()).translate(0, events)
    assert first == repeated
    [request] = first.events
    assert (first.topic.name, first.shard) == ("notifications.requests", notification_shard("42"))
    assert (request["id"], request["customer"]) == (f"fraud-alert-{2**127}", "42")
    data = json.loads(request["data"])
    assert data == {"transaction_id": "7", "amount_cents": 1205, "decision": "block"}
    parse_events(codec_of("notifications.requests"), [request])
    for decision, subject in (("block", "We stopped a card payment"), ("review", "Please check a card payment")):
        found, body = Messages().email("fraud.alert", "42", MOMENT, {**data, "decision": decision})
        assert found == subject
        assert "12.05" in body
        assert "12.05" in Messages().sms("fraud.alert", "42", MOMENT, {**data, "decision": decision})


def test_payments_tell_who_pays_what_became_of_them_and_not_what_screening_saw() -> None:
    codec = codec_of(PAYMENTS_EVENTS.name)
    changes = [
        _payment_change(status="RESERVED", previous_status="SCREENED"),
        _payment_change(status="COMPLETED", previous_status="RESERVED", cause="captured"),
        _payment_change(status="BLOCKED", previous_status="VALIDATED", reason="fraud_suspected", customer_id=0),
        _payment_change(status="REJECTED", previous_status="RECEIVED", reason="insufficient_funds", currency="JPY"),
        _payment_change(status="PARTIALLY_REFUNDED", previous_status="COMPLETED", cause="refunded_in_part", refunded=5),
        _payment_change(
            status="PARTIALLY_REFUNDED", previous_status="PARTIALLY_REFUNDED", cause="refunded_in_part", refunded=9
        ),
        _payment_change(status="PARTIALLY_REFUNDED", previous_status="PARTIALLY_REFUNDED", cause="refund_refused"),
    ]
    for version, one in enumerate(changes, start=1):
        one["version"] = version
    translated = list(PaymentsNotificationsRelay(Settings()).translate(2, parse_events(codec, changes)))
    requests = [request for commands in translated for request in commands.events]
    assert [request["id"] for request in requests] == [f"payment-2-{2**95}-{version}" for version in (2, 3, 4, 5, 6)]
    # the same payment id in another shard is another payment, and its payer is told too
    elsewhere = PaymentsNotificationsRelay(Settings()).translate(3, parse_events(codec, changes))
    ids = {request["id"] for commands in elsewhere for request in commands.events}
    assert ids.isdisjoint(request["id"] for request in requests)
    assert [request["customer"] for request in requests] == ["42", "account-978-7", "42", "42", "42"]
    data = [json.loads(request["data"]) for request in requests]
    assert [one["amount"] for one in data] == ["12.34 EUR", "12.34 EUR", "1234 JPY", "0.05 EUR", "0.09 EUR"]
    assert [one["reason"] for one in data] == ["", "", "insufficient_funds", "", ""]
    assert "fraud" not in json.dumps(data)
    parse_events(codec_of("notifications.requests"), requests)
    for request, one in zip(requests, data, strict=True):
        subject, body = Messages().email(request["event_kind"], "42", MOMENT, one)
        assert one["amount"] in subject
        assert str(2**95) in body
        assert one["amount"] in Messages().sms(request["event_kind"], "42", MOMENT, one)
    assert Messages().email("payment.rejected", "42", MOMENT, data[2])[0] == "Your payment was not accepted: 1234 JPY"


def _payment_change(**fields: Any) -> dict[str, Any]:
    return {
        "type": "PaymentChanged", "payment_id": str(2**95), "version": 1, "at": 1_700_000_000_000_000,
        "cause": "created", "reason": "none", "iso_status": "ACSC", "iso_reason": "", "asks": [], "hold_number": 0,
        "reserve_number": 0, "capture_number": 0, "void_number": 0, "refund_number": 0, "reserve_amount": 0,
        "action_amount": 0, "hold_seconds": 0, "payer_account_id": 7, "payee_account_id": 8, "ledger": 978,
        "currency": "EUR", "amount": 1234, "held": 0, "captured": 0, "released": 0, "refunded": 0,
        "capture": "automatic", "requested_at": 1_700_000_000_000_000, "execute_at": 0, "deadline": 0,
        "original_payment_id": 0, "reference": "rent", "end_to_end_id": "e2e",
        "customer_id": 42, "terminal_id": 0,
    } | fields  # fmt: skip
