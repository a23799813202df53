"""Tokens, keys and clients: who gets in, and with what words the others are sent away."""

from __future__ import annotations

import asyncio
import base64
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from api.auth import (
    Authenticator,
    JwksUrl,
    LocalKeys,
    TokenError,
    client_credentials,
    granted_scopes,
    issue_token,
)
from api.clients import Client, ClientError, ClientStore
from api.keys import KeyStore
from api.problems import Problem

ISSUER, AUDIENCE = "http://issuer.test", "streambank"


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    store = KeyStore(tmp_path / "keys", 300)
    store.ensure()
    return store


@pytest.fixture
def clients(tmp_path: Path) -> ClientStore:
    return ClientStore(tmp_path / "clients.json")


@pytest.fixture
def client(clients: ClientStore) -> Client:
    return clients.add("tester", ["ledger:write"])[0]


@pytest.fixture
def authenticator(keys: KeyStore, clients: ClientStore, client: Client) -> Authenticator:
    return Authenticator(LocalKeys(keys, clients), issuer=ISSUER, audience=AUDIENCE)


def token_of(keys: KeyStore, client: Client, **changes: Any) -> str:
    options: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE, "seconds": 300} | changes
    return issue_token(keys, client, client.scopes, **options)


def signed(key: Any, algorithm: str = "ES256", kid: str | None = None, **changes: Any) -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": now + 60, "scope": "ledger:write"
    } | changes  # fmt: skip
    header = {"alg": algorithm} | ({"kid": kid} if kid else {})
    return jwt.encode(header, claims, key, [algorithm])


async def refusal(authenticator: Authenticator, authorization: str | None, scope: str = "ledger:write") -> Problem:
    with pytest.raises(Problem) as caught:
        await authenticator.principal(authorization, scope)
    return caught.value


async def test_an_issued_token_opens_what_its_scope_says(
    authenticator: Authenticator, keys: KeyStore, client: Client
) -> None:
    authorization = f"Bearer {token_of(keys, client)}"
    for _ in range(2):  # the second from the cache
        assert (await authenticator.principal(authorization, "ledger:write")).client_id == client.client_id
    problem = await refusal(authenticator, authorization, "ledger:read")
    assert problem.status == 403
    assert 'error="insufficient_scope", scope="ledger:read"' in problem.headers["WWW-Authenticate"]


async def test_every_bad_token_is_refused(
    authenticator: Authenticator, keys: KeyStore, client: Client, tmp_path: Path
) -> None:
    good = token_of(keys, client)
    kid = keys.signing().kid
    stranger = ECKey.generate_key("P-256")
    header, claims, signature = good.split(".")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT","kid":"%b"}' % kid.encode()).decode().rstrip("=")
    bad = {
        "not a token": "Bearer abc",
        "empty": "Bearer a.b.c",
        "altered claims": f"Bearer {header}.{claims[:-4]}AAAA.{signature}",
        "alg none": f"Bearer {unsigned}.{claims}.",
        "a stranger's key under our kid": f"Bearer {signed(stranger, kid=kid)}",
        "unknown kid": f"Bearer {signed(stranger, kid='nobody')}",
        "no kid": f"Bearer {signed(stranger)}",
        "a symmetric algorithm": "Bearer " + signed(OctKey.generate_key(256), "HS256", kid),
        "another issuer": f"Bearer {token_of(keys, client, issuer='http://other.test')}",
        "another audience": f"Bearer {token_of(keys, client, audience='other')}",
        "expired": f"Bearer {token_of(keys, client, seconds=-1)}",
        "not yet valid": f"Bearer {signed(keys.signing().key, kid=kid, nbf=int(time.time()) + 3600)}",
        "unknown client": f"Bearer {signed(keys.signing().key, kid=kid)}",
        "too long": "Bearer " + "x" * 10_000,
    }
    for name, authorization in bad.items():
        problem = await refusal(authenticator, authorization)
        assert problem.status == 401, name
        assert 'error="invalid_token"' in problem.headers["WWW-Authenticate"], name
        assert authorization[7:] not in str(problem.document()), name
    nothing = await refusal(authenticator, None)
    assert nothing.status == 401
    assert nothing.headers["WWW-Authenticate"] == 'Bearer realm="streambank"'
    assert (await refusal(authenticator, "Basic abc")).status == 400


async def test_a_revoked_client_is_refused_at_once(
    authenticator: Authenticator, keys: KeyStore, clients: ClientStore, client: Client, tmp_path: Path
) -> None:
    authorization = f"Bearer {token_of(keys, client)}"
    await authenticator.principal(authorization, "ledger:write")
    ClientStore(tmp_path / "clients.json").revoke(client.client_id)  # another process
    assert (await refusal(authenticator, authorization)).status == 401


async def test_accounts_are_granted_and_withdrawn_at_once(
    authenticator: Authenticator, keys: KeyStore, clients: ClientStore, client: Client, tmp_path: Path
) -> None:
    authorization = f"Bearer {token_of(keys, client)}"

    async def may_trade(account: str) -> bool:
        return (await authenticator.principal(authorization, "ledger:write")).may_trade(account)

    assert not await may_trade("ALICE")
    elsewhere = ClientStore(tmp_path / "clients.json")  # another process
    elsewhere.grant(client.client_id, ["BOB", "ALICE", "ALICE"])
    assert [await may_trade(name) for name in ("ALICE", "BOB", "CAROL", "")] == [True, True, False, False]
    assert elsewhere.withdraw(client.client_id, ["ALICE"]).accounts == ("BOB",)
    assert [await may_trade(name) for name in ("ALICE", "BOB")] == [False, True]
    elsewhere.grant(client.client_id, ["*"])
    assert await may_trade("CAROL")
    with pytest.raises(ClientError, match="1 to 32 bytes"):
        clients.grant(client.client_id, ["x" * 33])


async def test_rotation_keeps_old_tokens_valid_until_they_expire(
    authenticator: Authenticator, keys: KeyStore, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = token_of(keys, client)
    other_process = KeyStore(tmp_path / "keys", 300)
    rotated = other_process.rotate()
    assert keys.signing().kid == rotated.kid
    await authenticator.principal(f"Bearer {old}", "ledger:write")
    await authenticator.principal(f"Bearer {token_of(keys, client)}", "ledger:write")
    jwks = keys.jwks()["keys"]
    assert len(jwks) == 2
    assert all("d" not in key and key["alg"] == "ES256" for key in jwks)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 361)
    assert [key["kid"] for key in keys.jwks()["keys"]] == [rotated.kid]
    other_process.rotate()
    assert len(list((tmp_path / "keys").glob("*.json"))) == 2


def test_secrets_are_for_their_owner_only_and_hashed(clients: ClientStore, keys: KeyStore, tmp_path: Path) -> None:
    _, secret = clients.add("someone", ["ledger:read"])
    files = [tmp_path / "clients.json", *(tmp_path / "keys").glob("*.json")]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600] * 2
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert secret not in files[0].read_text()
    assert "$argon2id$" in files[0].read_text()


async def test_clients_authenticate_with_their_secret_only(clients: ClientStore) -> None:
    client, secret = clients.add("someone", ["ledger:read"])
    assert await clients.authenticate(client.client_id, secret) == client
    assert await clients.authenticate(client.client_id, secret + "x") is None
    assert await clients.authenticate("nobody", secret) is None
    clients.revoke(client.client_id)
    assert await clients.authenticate(client.client_id, secret) is None


def test_clients_that_cannot_be_made(clients: ClientStore) -> None:
    client, _ = clients.add("someone", ["ledger:read"])
    with pytest.raises(ClientError, match="choose from ledger:write"):
        clients.add("other", ["ledger:all"])
    with pytest.raises(ClientError, match="exists"):
        clients.add("other", ["ledger:read"], client.client_id)
    with pytest.raises(ClientError, match="no client nobody"):
        clients.revoke("nobody")


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_client_credentials_come_from_header_or_body() -> None:
    assert client_credentials(basic("a%3Ab:s%20c"), {}) == ("a:b", "s c")
    assert client_credentials(None, {"client_id": "a", "client_secret": "s"}) == ("a", "s")
    refused: list[tuple[str | None, dict[str, str], str]] = [
        (None, {}, "invalid_client"), ("Bearer x", {}, "invalid_client"), ("Basic ???", {}, "invalid_client"),
        (basic("nocolon"), {}, "invalid_client"), (basic("a:b"), {"client_secret": "s"}, "invalid_request"),
    ]  # fmt: skip
    for header, form, error in refused:
        with pytest.raises(TokenError) as caught:
            client_credentials(header, form)
        assert caught.value.error == error


def test_scopes_are_granted_as_asked_or_all(client: Client) -> None:
    assert granted_scopes(client, None) == ("ledger:write",)
    assert granted_scopes(client, "ledger:write ledger:write") == ("ledger:write",)
    with pytest.raises(TokenError) as caught:
        granted_scopes(client, "ledger:write ledger:read")
    assert caught.value.error == "invalid_scope"


async def test_an_outside_issuer_is_trusted_by_its_published_keys() -> None:
    key = ECKey.generate_key("P-256", {"kid": "outside", "use": "sig", "alg": "ES256"})
    published = {"keys": [key.as_dict(private=False)]}
    answers = [httpx.Response(503), httpx.Response(200, json=published), httpx.Response(500)]
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return answers[min(len(asked), len(answers)) - 1]

    jwks = JwksUrl("http://issuer.test/jwks", httpx.AsyncClient(transport=httpx.MockTransport(answer)))
    authenticator = Authenticator(jwks, issuer=ISSUER, audience=AUDIENCE)
    authorization = f"Bearer {signed(key, kid='outside', scope='ledger:read ledger:write', azp='partner')}"
    assert (await refusal(authenticator, authorization)).kind.slug == "issuer-unavailable"
    assert (await refusal(authenticator, authorization)).kind.slug == "issuer-unavailable"
    assert len(asked) == 1, "a failing issuer is not asked again at once"
    jwks._tried_at = float("-inf")
    principals = await asyncio.gather(*(authenticator.principal(authorization, "ledger:read") for _ in range(5)))
    assert {principal.client_id for principal in principals} == {"partner"}
    assert len(asked) == 2
    jwks._read_at = jwks._tried_at = float("-inf")  # the keys are old now, and the issuer is away
    unknown = f"Bearer {signed(key, kid='other')}"
    assert (await refusal(authenticator, unknown)).status == 401
    await authenticator.principal(authorization, "ledger:read")
    assert len(asked) == 3
    await jwks.close()
