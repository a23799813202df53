"""Access tokens: issued for client credentials (RFC 6749), checked on every route (RFC 6750, RFC 9068).

Only asymmetric algorithms of an explicit list are accepted, and issuer, audience, expiry and scope are always checked.
Keys come from the API's own `KeyStore` or, with ``STREAMBANK_API_JWKS_URL``, from an outside issuer.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeGuard
from urllib.parse import unquote_plus
from uuid import uuid4

import httpx
import msgspec
import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, KeySet

from api.clients import EVERY_ACCOUNT, Client, ClientStore
from api.keys import ALGORITHM, CLOCK_LEEWAY_SECONDS, KeyStore
from api.problems import Problem

__all__ = ["Authenticator", "JwksUrl", "LocalKeys", "Principal", "TokenError", "client_credentials", "issue_token"]

ALGORITHMS: Final = ("ES256", "ES384", "RS256", "PS256", "EdDSA", "Ed25519")
MAX_TOKEN_BYTES: Final = 8192
CACHED_TOKENS: Final = 4096
JWKS_SECONDS: Final = 300
JWKS_RETRY_SECONDS: Final = 10
JWKS_MAX_BYTES: Final = 1 << 20
MAX_CLIENT_ID: Final = 255
LATEST_TIME: Final = 2**53
"""Of `exp` and `nbf`: what lies beyond is no time, and a float may not hold it."""
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request; ``expires_at`` in seconds since the epoch; ``accounts`` are those that it may trade."""

    client_id: str
    scopes: frozenset[str]
    expires_at: float
    accounts: frozenset[str] = frozenset()

    def may_trade(self, account: str) -> bool:
        """Whether it was granted a trading account."""
        return account in self.accounts or EVERY_ACCOUNT in self.accounts


class TokenError(Exception):
    """A refusal of the token endpoint, in RFC 6749's words (section 5.2)."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(f"{error}: {description}")
        self.error = error
        self.description = description
        self.status = status


def client_credentials(authorization: str | None, form: dict[str, str]) -> tuple[str, str]:
    """Client id and secret of a token request, from the Basic header or the body; raises `TokenError`."""
    if authorization is not None:
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            raise TokenError("invalid_client", "use HTTP Basic or client_id and client_secret in the body", 401)
        if "client_secret" in form:
            raise TokenError("invalid_request", "send the client's credentials once, in the header or in the body")
        try:
            client_id, colon, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:  # no base64, no ASCII, or no UTF-8 inside
            raise TokenError("invalid_client", "the Basic credentials are not base64 of id:secret", 401) from None
        if not colon:
            raise TokenError("invalid_client", "the Basic credentials lack the colon of id:secret", 401)
        return unquote_plus(client_id), unquote_plus(secret)
    if not form.get("client_id") or not form.get("client_secret"):
        raise TokenError("invalid_client", "client_id and client_secret are missing", 401)
    return form["client_id"], form["client_secret"]


def granted_scopes(client: Client, asked: str | None) -> tuple[str, ...]:
    """The scopes a token gets: those asked for, or all that the client has; raises `TokenError`."""
    if asked is None or not asked.strip():
        return client.scopes
    scopes = tuple(dict.fromkeys(asked.split()))
    refused = [scope for scope in scopes if scope not in client.scopes]
    if refused:
        raise TokenError("invalid_scope", f"the client may not have: {' '.join(refused)[:200]}")
    return scopes


def issue_token(
    keys: KeyStore, client: Client, scopes: tuple[str, ...], *, issuer: str, audience: str, seconds: int
) -> str:
    """A signed access token as RFC 9068 has it."""
    now = int(time.time())
    signing = keys.signing()
    claims = {
        "iss": issuer, "sub": client.client_id, "client_id": client.client_id, "aud": audience,
        "iat": now, "nbf": now, "exp": now + seconds, "jti": uuid4().hex, "scope": " ".join(scopes),
    }  # fmt: skip
    return jwt.encode({"typ": "at+jwt", "alg": ALGORITHM, "kid": signing.kid}, claims, signing.key, [ALGORITHM])


class Keys(Protocol):
    """Where an authenticator finds verification keys."""

    async def find(self, kid: str) -> Key | None: ...

    def accepts(self, client_id: str) -> bool: ...

    def accounts(self, client_id: str) -> frozenset[str] | None:
        """The trading accounts granted to a client; None where its token says so."""
        ...


class LocalKeys:
    """The API's own issuer: its keys, and clients that are not revoked."""

    def __init__(self, keys: KeyStore, clients: ClientStore) -> None:
        self._keys = keys
        self._clients = clients
        self._granted: dict[str, tuple[Client, frozenset[str]]] = {}

    async def find(self, kid: str) -> ECKey | None:
        return self._keys.find(kid)

    def accepts(self, client_id: str) -> bool:
        return self._clients.active(client_id) is not None

    def accounts(self, client_id: str) -> frozenset[str] | None:
        client = self._clients.active(client_id)
        if client is None:
            return frozenset()
        known = self._granted.get(client_id)
        if known is None or known[0] is not client:  # the store makes its clients anew when its file has changed
            known = self._granted[client_id] = (client, frozenset(client.accounts))
        return known[1]


class JwksUrl:
    """An outside issuer's keys: cached, read again for an unknown key (not more often than every ten seconds),
    and kept while the issuer is away."""

    def __init__(self, url: str, client: httpx.AsyncClient | None = None) -> None:
        self._url = url
        self._client = client or httpx.AsyncClient(timeout=3.0, follow_redirects=False)
        self._keys: dict[str, Key] = {}
        self._read_at = float("-inf")
        self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def find(self, kid: str) -> Key | None:
        now = time.monotonic()
        if kid not in self._keys or now - self._read_at > JWKS_SECONDS:
            async with self._lock:
                if time.monotonic() - self._tried_at > JWKS_RETRY_SECONDS:
                    await self._read()
        if not self._keys:
            raise Problem("issuer-unavailable", f"No keys could be read from {self._url}.", retry_after=10)
        return self._keys.get(kid)

    def accepts(self, client_id: str) -> bool:
        return True

    def accounts(self, client_id: str) -> frozenset[str] | None:
        return None

    async def close(self) -> None:
        await self._client.aclose()

    async def _read(self) -> None:
        self._tried_at = time.monotonic()
        try:
            response = await self._client.get(self._url)
            response.raise_for_status()
            if len(response.content) > JWKS_MAX_BYTES:
                return
            found = KeySet.import_key_set(response.json())
        except (httpx.HTTPError, JoseError, ValueError, KeyError, TypeError):
            return
        self._keys = {key.kid: key for key in found.keys if key.kid}
        self._read_at = self._tried_at


class Authenticator:
    """Turns an Authorization header into a `Principal`, or a problem that says what is wrong with it."""

    def __init__(self, keys: Keys, *, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._verified: OrderedDict[bytes, Principal] = OrderedDict()

    async def principal(self, authorization: str | None, scope: str) -> Principal:
        """The sender, who holds ``scope``; raises `Problem` 401 or 403."""
        principal = await self.identify(authorization)
        if scope not in principal.scopes:
            raise Problem(
                "insufficient-scope",
                f"This route needs the scope {scope}; the token has {' '.join(sorted(principal.scopes)) or 'none'}.",
                headers={"WWW-Authenticate": f'Bearer realm="streambank", error="insufficient_scope", scope="{scope}"'},
            )
        return principal

    async def identify(self, authorization: str | None) -> Principal:
        """The sender, whatever the scopes; raises `Problem` 400 or 401."""
        if authorization is None:
            raise self._refused(None, "No access token was sent.")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise self._refused("invalid_request", "The Authorization header is not `Bearer <token>`.", status_400=True)
        if len(token) > MAX_TOKEN_BYTES:
            raise self._refused("invalid_token", f"The token is longer than {MAX_TOKEN_BYTES} bytes.")
        if not _COMPACT.fullmatch(token):  # headers may hold any bytes, of which nothing here should have to think
            raise self._refused("invalid_token", "The token is not a JWS in compact form (RFC 7515).")
        principal = await self._verify(token)
        structlog.contextvars.bind_contextvars(client=principal.client_id)  # every line of the request's log says who
        return principal

    async def _verify(self, token: str) -> Principal:
        digest = hashlib.sha256(token.encode()).digest()
        principal = self._verified.get(digest)
        if principal is None:
            principal = await self._decode(token)
            self._verified[digest] = principal
            if len(self._verified) > CACHED_TOKENS:
                self._verified.popitem(last=False)
        if principal.expires_at <= time.time():
            self._verified.pop(digest, None)
        return self.current(principal)

    def current(self, principal: Principal) -> Principal:
        """A sender who was identified before, as it is by now; raises `Problem` 401 when its token no longer holds."""
        if principal.expires_at <= time.time():
            raise self._refused("invalid_token", "The token has expired; get a new one.")
        if not self._keys.accepts(principal.client_id):
            raise self._refused("invalid_token", "The token's client is unknown or revoked.")
        granted = self._keys.accounts(principal.client_id)
        return principal if granted is None or granted is principal.accounts else replace(principal, accounts=granted)

    async def _decode(self, token: str) -> Principal:
        header = _header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS or str(header.get("typ", "JWT")).lower() not in ("jwt", "at+jwt"):
            raise self._refused("invalid_token", "The token's algorithm or type is not accepted.")
        if not isinstance(kid, str):
            raise self._refused("invalid_token", "The token's header names no key (`kid`).")
        key = await self._keys.find(kid)
        if key is None:
            raise self._refused("invalid_token", "The token's key is unknown or no longer valid.")
        try:
            claims = jwt.decode(token, key, algorithms=[algorithm]).claims
        except (JoseError, ValueError, TypeError, RecursionError):
            raise self._refused("invalid_token", "The token's signature is wrong.") from None
        return self._checked(claims)

    def _checked(self, claims: dict[str, Any]) -> Principal:
        now = time.time()
        audiences = claims.get("aud")
        if claims.get("iss") != self._issuer:
            raise self._refused("invalid_token", "The token is of another issuer.")
        if self._audience not in (audiences if isinstance(audiences, list) else [audiences]):
            raise self._refused("invalid_token", "The token is for another audience.")
        expires_at, not_before = claims.get("exp"), claims.get("nbf", 0)
        if not (_is_time(expires_at) and _is_time(not_before)):
            raise self._refused("invalid_token", "The token's times (`exp`, `nbf`) are no times.")
        if not_before > now + CLOCK_LEEWAY_SECONDS:
            raise self._refused("invalid_token", "The token is not valid yet.")
        client_id = claims.get("client_id") or claims.get("azp") or claims.get("sub")
        if not isinstance(client_id, str) or not 1 <= len(client_id) <= MAX_CLIENT_ID or not client_id.isprintable():
            raise self._refused("invalid_token", "The token names no client.")
        scopes = claims.get("scope", claims.get("scp")) or ""
        if not isinstance(scopes, (str, list)):
            raise self._refused("invalid_token", "The token's scopes are neither text nor a list.")
        names = scopes.split() if isinstance(scopes, str) else [str(scope) for scope in scopes]
        accounts = claims.get("accounts")
        granted = frozenset(name for name in accounts if isinstance(name, str)) if isinstance(accounts, list) else ()
        return Principal(client_id, frozenset(names), float(expires_at), frozenset(granted))

    @staticmethod
    def _refused(error: str | None, detail: str, *, status_400: bool = False) -> Problem:
        challenge = 'Bearer realm="streambank"'
        if error:
            challenge += f', error="{error}", error_description="{detail.replace(chr(34), chr(39)).replace("`", "")}"'
        slug = "bad-header" if status_400 else "unauthorized"
        return Problem(slug, detail, headers={"WWW-Authenticate": challenge})


def _is_time(value: Any) -> TypeGuard[int | float]:
    """Whether it is a NumericDate (RFC 7519); NaN, which would never expire, is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LATEST_TIME


def _header(token: str) -> dict[str, Any]:
    """The token's unverified header; empty when it is not one."""
    first = token.partition(".")[0]
    try:
        header = msgspec.json.decode(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
    except (ValueError, msgspec.DecodeError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}
