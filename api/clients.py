"""OAuth2 clients: a file of mode 0600 with each client's scopes, the accounts that it may trade, and the argon2 hash of
its secret.

A file and not a table, so that tokens are issued while Postgres is away; on Kubernetes it is a mounted secret.
Workers read it again when it changes: a revoked client, or one that lost an account, is refused at once, also with a
token that has not expired.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from infra.secret_files import exclusive, write_secret
from pipelines.errors import StreambankError

__all__ = ["DEFAULT_SCOPES", "EVERY_ACCOUNT", "SCOPES", "Client", "ClientError", "ClientStore"]

SCOPES: Final[dict[str, str]] = {
    "ledger:write": "Create accounts and transfers.",
    "ledger:read": "Read balances, statements and transfers.",
    "fraud:read": "Read fraud cases and decisions.",
    "fraud:write": "Assign, note and close fraud cases.",
    "fraud:transactions": "Send card transactions to be decided.",
    "fraud:labels": "Say which card transactions were frauds.",
    "orders:write": "Enter, amend and cancel orders.",
    "orders:read": "Read orders, books and market data.",
    "orders:admin": "Define instruments and accounts, deposit, halt, block accounts.",
    "payments:write": "Ask for payments, capture, void, refund and cancel them.",
    "payments:read": "Read payments and their timelines.",
    "payments:review": "Approve and decline payments that are in review.",
    "payments:admin": "Set the limits of payers.",
    "notifications:read": "See what customers are told, and follow it.",
    "notifications:write": "Set customers' endpoints and preferences.",
    "cards:tokenise": "Exchange card numbers for tokens.",
    "cards:read": "See brand, expiry and last four digits of a token's card.",
    "cards:detokenise": "See full card numbers.",
}
_SENSITIVE: Final = {"cards:detokenise", "fraud:labels", "orders:admin", "payments:admin", "payments:review"}
DEFAULT_SCOPES: Final = tuple(scope for scope in SCOPES if scope not in _SENSITIVE)
"""What a client gets that is not told otherwise: by default nobody sees card numbers, who asks for payments or enters
orders neither approves them nor lifts limits, and who sends transactions does not say which were frauds."""
MAX_ACCOUNT_BYTES: Final = 32
EVERY_ACCOUNT: Final = "*"
"""In the place of a trading account: all of them, for a gateway that knows whose order it is."""
_VERIFIERS: Final = 2
"""Secrets verified at once per worker; argon2 takes 19 MiB each."""


class ClientError(StreambankError):
    """A client cannot be added or changed as asked."""


@dataclass(frozen=True, slots=True)
class Client:
    """``created_at`` and ``revoked_at`` are seconds since the epoch; ``accounts`` are those that it may trade."""

    client_id: str
    name: str
    scopes: tuple[str, ...]
    secret_hash: str
    created_at: float
    revoked_at: float | None = None
    accounts: tuple[str, ...] = ()


class ClientStore:
    """The clients in the file ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] = (-1, -1)
        self._clients: dict[str, Client] = {}
        # OWASP's minimum for argon2id; the secrets are 256 random bits, the hash guards against a leaked file.
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._nobody = self._hasher.hash(secrets.token_urlsafe(32))
        self._verifiers = asyncio.Semaphore(_VERIFIERS)

    def add(
        self, name: str, scopes: Sequence[str], client_id: str | None = None, accounts: Sequence[str] = ()
    ) -> tuple[Client, str]:
        """Make a client; returns it and its secret, which is stored nowhere. It may trade ``accounts`` only."""
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise ClientError(f"scopes: found {', '.join(unknown) or 'none'}; choose from {', '.join(SCOPES)}")
        secret = secrets.token_urlsafe(32)
        with exclusive(self._path.with_suffix(".lock")):
            self._reload()
            client_id = client_id or f"{name}-{secrets.token_hex(4)}"
            if client_id in self._clients:
                raise ClientError(f"client {client_id} exists; choose another id or revoke it first")
            client = Client(
                client_id,
                name,
                tuple(sorted(set(scopes))),
                self._hasher.hash(secret),
                time.time(),
                accounts=_account_names(accounts),
            )
            self._write({**self._clients, client_id: client})
        return client, secret

    def revoke(self, client_id: str) -> Client:
        """Refuse the client from now on."""
        return self._change(client_id, lambda client: replace(client, revoked_at=time.time()))

    def grant(self, client_id: str, accounts: Sequence[str]) -> Client:
        """Let the client trade these accounts too."""
        return self._change(
            client_id, lambda client: replace(client, accounts=_account_names([*client.accounts, *accounts]))
        )

    def withdraw(self, client_id: str, accounts: Sequence[str]) -> Client:
        """Let the client trade these accounts no longer."""
        return self._change(
            client_id,
            lambda client: replace(client, accounts=tuple(name for name in client.accounts if name not in accounts)),
        )

    def _change(self, client_id: str, change: Callable[[Client], Client]) -> Client:
        with exclusive(self._path.with_suffix(".lock")):
            self._reload()
            client = self._clients.get(client_id)
            if client is None:
                raise ClientError(f"no client {client_id}; `streambank clients list` names them")
            changed = change(client)
            self._write({**self._clients, client_id: changed})
        return changed

    def all(self) -> list[Client]:
        self._refresh()
        return sorted(self._clients.values(), key=lambda client: client.created_at)

    def active(self, client_id: str) -> Client | None:
        """The client, unless it is unknown or revoked."""
        self._refresh()
        client = self._clients.get(client_id)
        return client if client is not None and client.revoked_at is None else None

    async def authenticate(self, client_id: str, secret: str) -> Client | None:
        """The client whose secret this is. Off the event loop, and as slow for an unknown client as for a known one."""
        client = self.active(client_id)
        stored = client.secret_hash if client is not None else self._nobody
        async with self._verifiers:
            verified = await asyncio.to_thread(self._verify, stored, secret)
        return client if verified else None

    def _verify(self, stored: str, secret: str) -> bool:
        try:
            return self._hasher.verify(stored, secret)
        except (VerificationError, InvalidHashError):
            return False

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._clients, self._seen = {}, (0, 0)
            return
        if (found.st_mtime_ns, found.st_ino) != self._seen:
            self._reload()

    def _reload(self) -> None:
        try:
            found = self._path.stat()
            document = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._clients, self._seen = {}, (0, 0)
            return
        self._clients = {
            row["client_id"]: Client(
                **{**row, "scopes": tuple(row["scopes"]), "accounts": tuple(row.get("accounts", ()))}
            )
            for row in document["clients"]
        }
        self._seen = (found.st_mtime_ns, found.st_ino)

    def _write(self, clients: dict[str, Client]) -> None:
        write_secret(self._path, {"clients": [asdict(client) for client in clients.values()]})
        self._reload()


def _account_names(accounts: Sequence[str]) -> tuple[str, ...]:
    """The accounts in order, each once; raises `ClientError` for what cannot be a trading account's name."""
    for name in accounts:
        if not 1 <= len(name.encode()) <= MAX_ACCOUNT_BYTES:
            raise ClientError(f"an account's name has 1 to {MAX_ACCOUNT_BYTES} bytes; found {name[:60]!r}")
    return tuple(sorted(set(accounts)))
