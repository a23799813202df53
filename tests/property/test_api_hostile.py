"""What a stranger may send to the API: tokens, headers, JSON and addresses that want something else.

Whatever it is, the answer is a refusal in the API's own words, or what was meant; never another exception, which would
be a 500, and nobody gets in.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient as Client
from aiohttp.test_utils import TestServer, make_mocked_request
from hypothesis import example, given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey

from api.app import _edge
from api.auth import Authenticator, LocalKeys, TokenError, client_credentials, issue_token
from api.bodies import BodyReader, Limits, Parsed, parse_json, read_ndjson
from api.clients import ClientStore
from api.history import parse_time
from api.idempotency import parse_key
from api.ingest import preferred_wait
from api.json_body import json_object
from api.keys import KeyStore
from api.logs import trace_id_of
from api.payment_gateway import _create, _invalid
from api.problems import Problem
from infra.outbound import UrlRefused, check_url, guarded_session, refusal_of
from infra.settings import Settings
from pipelines.codec import codec_of

ISSUER, AUDIENCE, SCOPE = "http://issuer.test", "streambank", "ledger:write"
LEDGER = codec_of("ledger.commands")
LIMITS = Limits(1 << 20, 1 << 20, 1_000, 16 << 10, 5)
ANYTHING = st.text(st.characters(codec="utf-8") | st.characters(categories=["Cs", "Cc"]), max_size=60)
"""Headers hold any bytes: what is no UTF-8 arrives as halves of surrogate pairs."""
DEEP = 100_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | ANYTHING,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def refused(attempt: Callable[[], Any]) -> Problem | None:
    """The problem that an attempt ends with."""
    try:
        attempt()
    except Problem as problem:
        return problem
    return None


class Door:
    """An authenticator with a good token."""

    def __init__(self, directory: Path) -> None:
        self.keys = KeyStore(directory / "keys", 300)
        self.signing = self.keys.ensure()
        clients = ClientStore(directory / "clients.json")
        self.client, _ = clients.add("tester", [SCOPE])
        self.authenticator = Authenticator(LocalKeys(self.keys, clients), issuer=ISSUER, audience=AUDIENCE)
        self.token = issue_token(self.keys, self.client, (SCOPE,), issuer=ISSUER, audience=AUDIENCE, seconds=300)

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        return {"iss": ISSUER, "aud": AUDIENCE, "sub": self.client.client_id, "exp": now + 60, "scope": SCOPE} | changes

    def signed(self, header: dict[str, Any] | None = None, key: Any = None, **changes: Any) -> str:
        """With our own key, unless another is given: the claims alone are wrong then."""
        whole = {"alg": "ES256", "kid": self.signing.kid, **(header or {})}
        claims = json.dumps(self.claims(**changes)).encode()
        return jws.serialize_compact(whole, claims, key or self.signing.key, ["ES256"])

    def refusal(self, authorization: str | None) -> Problem | None:
        """Why nobody gets in with it; None for who does."""
        problem = refused(lambda: asyncio.run(self.authenticator.principal(authorization, SCOPE)))
        if problem is not None:
            assert problem.status in (400, 401), problem
            assert problem.headers["WWW-Authenticate"].isprintable()
        return problem


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    return Door(tmp_path_factory.mktemp("door"))


def unsigned(header: Any, payload: Any = b"{}", signature: bytes = b"x") -> str:
    parts = (header if isinstance(header, bytes) else json.dumps(header).encode(), payload, signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def with_secret(header: Any, payload: bytes, secret: bytes) -> str:
    """Signed with a shared secret; the library itself refuses to do that with a public key."""
    signed = unsigned(header, payload).rpartition(".")[0]
    digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def test_no_forged_token_opens(door: Door) -> None:
    assert door.refusal(f"Bearer {door.token}") is None
    assert door.refusal(f"Bearer {door.signed()}") is None
    kid, ours, stranger = door.signing.kid, door.signing.key, ECKey.generate_key("P-256")
    published = ours.as_dict(private=False)
    claims = json.dumps(door.claims()).encode()
    forged = {
        **{
            f"HS256 with the public key as {name}": with_secret({"alg": "HS256", "kid": kid}, claims, secret)
            for name, secret in {
                "PEM": ours.as_pem(private=False), "DER": ours.as_der(private=False),
                "JWK": json.dumps(published).encode(), "x": published["x"].encode(),
            }.items()
        },
        **{f"alg {name}": unsigned({"alg": name, "kid": kid}, claims, b"")
           for name in ("none", "None", "nOnE", "", None, ["ES256"], {}, 0)},
        **{
            f"kid {name!r:.40}": unsigned({"alg": "ES256", "kid": name}, claims)
            for name in ("../../etc/passwd", "x' OR 1=1 --", "\0", "a" * 5_000, "\ud800", None, 7, [kid], {}, "")
        },
        "no kid": unsigned({"alg": "ES256"}, claims),
        "a key inside": door.signed({"jwk": stranger.as_dict(private=False)}, stranger),
        "a key elsewhere": door.signed({"jku": "http://127.0.0.1:9/keys", "x5u": "http://127.0.0.1:9/"}, stranger),
        "an extension that is critical": unsigned({"alg": "ES256", "kid": kid, "crit": ["exp"], "exp": 1}, claims),
        "another type": door.signed({"typ": "dpop+jwt"}),
        "a signature of zeros": f"{door.token.rpartition('.')[0]}.{base64.urlsafe_b64encode(bytes(64)).decode()[:-2]}",
        "no signature": door.token.rpartition(".")[0] + ".",
        "five parts": door.token + ".a.b",
        "padded": door.token + "=",
        "twice": f"{door.token} {door.token}",
        "deep header": unsigned(b"[" * 5_000),
        "deep objects": unsigned(b'{"a":' * 1_200),
        "halves of surrogates": "\udc80" * 100,
        "not before tomorrow": door.signed(nbf=int(time.time()) + 86_400),
        "expired": door.signed(exp=int(time.time()) - 1),
        "another audience": door.signed(aud=["other"]),
        "no audience": door.signed(aud=None),
        "another issuer": door.signed(iss=ISSUER + "/"),
        "an unknown client": door.signed(sub="nobody"),
        "a client with a NUL": door.signed(sub="a\0b"),
        **{f"exp {value!r:.20}": door.signed(exp=value)
           for value in (None, "never", [], True, float("nan"), float("inf"), 10**400, -1)},
        "nbf no number": door.signed(nbf="then"),
        "scopes of numbers": door.signed(scope=7),
    }  # fmt: skip
    for name, token in forged.items():
        problem = door.refusal(f"Bearer {token}")
        assert problem is not None, name
        assert token not in str(problem.document()), name
    payload = unsigned(b"x", b"[1]").split(".")[1]
    signed_list = jws.serialize_compact({"alg": "ES256", "kid": kid}, b"[1]", ours, ["ES256"])
    assert payload == signed_list.split(".")[1]
    assert door.refusal(f"Bearer {signed_list}") is not None
    huge = door.refusal("Bearer " + "a" * 100_000)
    assert huge is not None
    assert len(str(huge)) < 200


@settings(max_examples=60)
@given(st.data())
def test_any_change_of_a_token_is_refused(door: Door, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(door.token)))
    junk = data.draw(ANYTHING.filter(bool))
    changed = door.token[:position] + junk + door.token[position + data.draw(st.integers(0, 40)) :]
    if changed.strip() != door.token:
        assert door.refusal(f"Bearer {changed}") is not None
    assert door.refusal(junk) is not None


@settings(max_examples=40)
@given(JSON)
def test_any_header_of_a_token_is_refused(door: Door, header: Any) -> None:
    text = json.dumps(header).encode()
    assert door.refusal("Bearer " + unsigned(text)) is not None
    if isinstance(header, dict):
        assert door.refusal("Bearer " + unsigned({**header, "alg": "ES256", "kid": door.signing.kid})) is not None


@settings(max_examples=80)
@given(ANYTHING)
@example("Basic " + "é" * 8)
@example("Basic /w==")
@example("wait=" + "9" * 5_000)
@example("wait=²")
@example("00-" + "0" * 32 + "-" + "0" * 16 + "-00")
@example("99999-12-31T00:00:00Z")
@example("2026-01-31T00:00:00+99:99")
def test_any_header_is_read_or_refused(text: str) -> None:
    for value in (text, f"Basic {text}", f'"{text}"', f"wait={text}"):
        with suppress(Problem):
            assert 1 <= len(parse_key(value)) <= 255
        assert 0 <= preferred_wait([value, value], 30) <= 30
        assert len(trace_id_of(value)) == 32
        with suppress(TokenError):
            client_credentials(value, {})
        with suppress(ValueError):
            assert 0 <= parse_time(value) < 2**63


HOSTILE_JSON = {
    "deep arrays": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep and closed": b"[" * DEEP + b"]" * DEEP,
    "deep inside": b'{"id":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "NaN": b'{"id":NaN}',
    "infinite": b'{"id":-Infinity}',
    "overflow": b'{"id":1e999}',
    "many digits": b'{"id":' + b"9" * 100_000 + b"}",
    "many digits as text": b'{"id":"' + b"9" * 100_000 + b'"}',
    "a long exponent": b'{"id":1e' + b"9" * 10_000 + b"}",
    "no UTF-8": b'{"id":"\xff\xfe"}',
    "overlong UTF-8": b'{"id":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"id":"\xed\xa0\x80"}',
    "half a pair": b'{"id":"\\ud800"}',
    "the other half": b'{"id":"\\udc00\\ud800"}',
    "a key of half a pair": b'{"\\ud800":1}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "a NUL": b'{"id":"\\u0000"}',
    "a raw NUL": b'{"id":"\0"}',
    "two documents": b"{}{}",
    "a comment": b'{/**/"id":1}',
    "a trailing comma": b'{"id":1,}',
    "a key of a class": b'{"__class__":{"__init__":1},"type":"CreateAccount"}',
    "many keys": b"{" + b",".join(b'"k%d":1' % n for n in range(50_000)) + b"}",
    "a type of anything": b'{"type":{"type":[]}}',
}


async def _lines(body: bytes) -> list[Parsed]:
    class Stream:
        sent = False

        async def readany(self) -> bytes:
            self.sent, sent = True, self.sent
            return b"" if sent else body

    reader = BodyReader(Stream(), limit=LIMITS.bulk_bytes, idle_seconds=5, seen=lambda _: None)
    return [parsed async for parsed in read_ndjson(reader, LEDGER, "CreateAccount", LIMITS)]


def _object(body: bytes) -> dict[str, Any]:
    class Content:
        left = body

        async def read(self, size: int) -> bytes:
            self.left, taken = self.left[size:], self.left[:size]
            return taken

    request = make_mocked_request("POST", "/", {"Content-Type": "application/json"}, payload=Content())  # type: ignore[arg-type]
    return asyncio.run(json_object(request, 5, 2 << 20))


def check_json(body: bytes) -> None:
    """The body is refused, or what it has of events is, by all that read JSON."""
    with suppress(Problem):
        parsed, _ = parse_json(body, LEDGER, "CreateAccount", 1_000)
        assert parsed.bad
    with suppress(Problem):
        for found in asyncio.run(_lines(body)):
            assert not found.positions
    with suppress(Problem):
        document = _object(body)
        with suppress(Problem):
            _create(document, "", "key", 1)
        msgspec.json.encode(_invalid("/a", "b").document())


@pytest.mark.parametrize("body", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_hostile_json_is_refused(body: bytes) -> None:
    check_json(body)


@settings(max_examples=60)
@given(JSON.map(lambda found: json.dumps(found).encode()) | st.binary(max_size=80))
def test_any_json_is_refused_or_read(body: bytes) -> None:
    check_json(body)


PAYMENT = {"payer_account_id": 1, "payee_account_id": 2, "ledger": 978, "currency": "EUR", "amount": 5}


@settings(max_examples=80)
@given(st.sampled_from([*PAYMENT, "payment_id", "reference", "capture", "requested_at", "execute_at", "x"]), JSON)
@example("reference", "a\0b")
@example("reference", "\ud800")
@example("amount", 1.0)
@example("amount", True)
@example("payment_id", "-0")
def test_a_payment_with_anything_in_a_field_is_refused_or_fits(name: str, value: Any) -> None:
    made: list[dict[str, Any]] = []
    problem = refused(lambda: made.append(_create({**PAYMENT, name: value}, "", "key", 1)))
    if problem is not None:
        assert problem.status == 422
        assert msgspec.json.encode(problem.document())
        return
    [command] = made
    stored = json.dumps(command)
    assert "\\u0000" not in stored, "Postgres has no such text"
    stored.encode()
    assert 0 <= command["amount"] <= 10**15


def test_the_last_of_two_members_counts() -> None:
    """RFC 8259 leaves it open; one reader and one answer leave no room between two."""
    parsed, _ = parse_json(b'{"id":1,"ledger":1,"code":1,"code":2}', LEDGER, "CreateAccount", 10)
    word = LEDGER.event_type("CreateAccount").field("code").word
    assert parsed.events.rows[0, word] == 2


def run_edge(*headers: tuple[str, str]) -> tuple[int, dict[str, Any], Any]:
    """(status, problem, headers) of what the application's edge answers."""

    async def main() -> tuple[int, dict[str, Any], Any]:
        async def handler(_: web.Request) -> web.Response:
            return web.Response(body=b"{}", content_type="application/json")

        app = web.Application(middlewares=[_edge])
        app.router.add_get("/", handler)
        async with Client(TestServer(app)) as client:
            answer = await client.get("/", headers=headers)
            return answer.status, await answer.json(content_type=None), answer.headers

    return asyncio.run(main())


@pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")
def test_headers_that_count_are_sent_once() -> None:
    status, _, headers = run_edge(("Prefer", "a"), ("Prefer", "wait=1"), ("traceparent", "nonsense"))
    assert status == 200
    assert len(headers["X-Request-Id"]) == 32
    for name, value in {
        "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin", "Server": "streambank",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    }.items():  # fmt: skip
        assert headers[name] == value
    for name in ("Authorization", "Idempotency-Key"):
        status, problem, headers = run_edge((name, "a"), (name, "b"))
        assert (status, problem["type"], problem["header"]) == (400, "/problems/bad-header", name)
        assert headers["X-Content-Type-Options"] == "nosniff", "problems have them too"


INSIDE_URLS = [
    "https://localhost/", "https://LOCALHOST/", "https://localhost./", "https://0/", "https://0.0.0.0/",
    "https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0x7f.1/", "https://0177.0.0.1/",
    "https://017700000001/", "https://127.0.0.1:443/", "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/", "https://[::127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/",
    "https://[fe80::1%25lo]/", "https://[fd00::1]/", "https://169.254.169.254/latest/meta-data/",
    "https://0xa9fea9fe/", "https://2852039166/", "https://100.64.0.1/", "https://10.0.0.1/", "https://192.168.0.1/",
    "https://8.8.8.8@127.0.0.1/", "https://user:pass@8.8.8.8/", "https://8.8.8.8#@127.0.0.1/",
    "https://127.0.0.1\\@8.8.8.8/", "https://8.8.8.8\\@127.0.0.1/", "https:127.0.0.1", "https:///127.0.0.1",
    "file:///etc/passwd", "gopher://127.0.0.1/", "http://8.8.8.8/", "//127.0.0.1/", "https://", "", "https://[",
    "https://8.8.8.8:99999/", "https://8.8.8.8:-1/", "https://8.8.8.8/\r\nHost: x", "https://\uff18.8.8.8/",
    "https://127\u30020\u30020\u30021/", "https://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3/",
]  # fmt: skip


@pytest.mark.parametrize("url", INSIDE_URLS)
async def test_no_address_leads_inside(url: str) -> None:
    with pytest.raises(UrlRefused):
        await check_url(url, Settings())


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1) | st.integers(0, 2**128 - 1))
@example(int(ipaddress.IPv4Address("127.0.0.1")))
def test_an_address_inside_stays_inside_in_every_notation(number: int) -> None:
    v4 = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    inside = refusal_of(str(v4), ()) is not None
    assert inside == (not v4.is_global or v4.is_multicast or v4.is_reserved)
    for wrapped in (f"::ffff:{v4}", f"64:ff9b::{v4}", str(ipaddress.IPv6Address(0x2002 << 112 | int(v4) << 80))):
        if inside:
            assert refusal_of(wrapped, ()) is not None, wrapped
    v6 = ipaddress.IPv6Address(number if number >= 2**32 else number << 96)
    if v6.ipv4_mapped is None and not v6.is_global:
        assert refusal_of(str(v6), ()) is not None


@settings(max_examples=60)
@given(ANYTHING)
def test_any_text_is_a_url_or_refused(text: str) -> None:
    async def never_asked(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror

    async def main() -> None:
        asyncio.get_running_loop().getaddrinfo = never_asked  # type: ignore[method-assign]
        for url in (text, f"https://{text}/", f"https://8.8.8.8:{text}", f"https://[{text}]/"):
            with suppress(UrlRefused):
                await check_url(url, Settings())

    asyncio.run(main())


Answers = Callable[[], str]


async def reached_by(answers: Answers, path: str) -> tuple[int, list[int]]:
    """(requests that came inside, statuses) of posts to a name that resolves to ``answers()`` at each question."""
    inside: list[str] = []

    async def secret(request: web.Request) -> web.Response:
        inside.append(request.path)
        return web.Response(text="secret")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", secret)
    server = TestServer(app)
    await server.start_server()
    loop = asyncio.get_running_loop()

    async def resolve(host: Any, port: Any, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers(), server.port))]

    before, statuses = loop.getaddrinfo, []
    loop.getaddrinfo = resolve  # type: ignore[assignment,method-assign]
    try:
        timeout = aiohttp.ClientTimeout(total=2, sock_connect=0.2)
        async with guarded_session(Settings(), connections=4, timeout=timeout) as session:
            for _ in range(4):
                with suppress(aiohttp.ClientError, TimeoutError):
                    url = f"http://rebind.test:{server.port}{path}"
                    async with session.post(url, data=b"x", allow_redirects=False) as answer:
                        statuses.append(answer.status)
    finally:
        loop.getaddrinfo = before  # type: ignore[method-assign]
        await server.close()
    return len(inside), statuses


async def test_a_name_that_changes_its_mind_leads_nowhere() -> None:
    """DNS rebinding: what was looked up when the address was entered says nothing; the socket is what is checked."""
    flips = iter(["203.0.113.1", "127.0.0.1", "0.0.0.0", "127.0.0.1"] * 4)  # noqa: S104 - addresses of an attacker
    assert await reached_by(lambda: next(flips), "/hook") == (0, [])
