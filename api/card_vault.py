"""The card vault: numbers in, tokens out, and numbers out again for the few who may, each time with an audit entry.

A card is a number with its expiry; it has one token, however often it is sent. Tokens are 128 random bits and say
nothing about the number. The number is in memory while a request runs, encrypted in Postgres, and nowhere else: not in
a topic, a log line, a trace, a metric, a cache or an error.

Promises:
- `CardVault.tokenise` answers when the card is stored and its audit entry too; the same card gets the same token, also
  when many send it at once and while keys are rotated.
- `CardVault.detokenise` returns a number only after the audit entry of it is committed.
- A row that was changed in the store, or copied to another token, does not decrypt (`api.card_keys`).
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from api.card_keys import (
    ENCRYPTION,
    FINGERPRINT,
    CardKeyError,
    DataKey,
    MasterKeys,
    SealedNumber,
    master_keys,
    new_data_key,
    unwrap_data_key,
    wrap_data_key,
)
from api.logs import log
from api.metrics import count
from api.problems import Problem
from infra.settings import Settings
from infra.stores import VAULT_ROLE, postgres_conninfo

__all__ = ["ACTIVE_KEYS_LOCK", "Card", "CardVault", "bound_to"]

POOL_SIZE: Final = 4
ACTIVE_KEYS_LOCK: Final = 0x53_42_43_56
"""Advisory lock: shared by whoever adds a card with the active keys, exclusive for whoever changes which are active."""


@dataclass(frozen=True, slots=True)
class Card:
    """What may be shown of a card."""

    token: str
    brand: str
    last_four: str
    expiry_year: int
    expiry_month: int

    def document(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "brand": self.brand,
            "last_four": self.last_four,
            "expiry_month": self.expiry_month,
            "expiry_year": self.expiry_year,
        }


def bound_to(card: Card) -> str:
    """What a card's ciphertext is bound to."""
    return f"{card.token} {card.brand} {card.last_four} {card.expiry_year:04d}-{card.expiry_month:02d}"


_FIND: Final = """
SELECT token, brand, last_four, expiry_year, expiry_month FROM card_vault.cards
WHERE fingerprint = ANY(%(fingerprints)s) AND expiry_year = %(year)s AND expiry_month = %(month)s
"""
_ADD: Final = """
INSERT INTO card_vault.cards (token, brand, last_four, expiry_year, expiry_month, data_key_id, nonce, ciphertext,
                              fingerprint_key_id, fingerprint)
VALUES (%(token)s, %(brand)s, %(last_four)s, %(year)s, %(month)s, %(data_key_id)s, %(nonce)s, %(ciphertext)s,
        %(fingerprint_key_id)s, %(fingerprint)s)
ON CONFLICT (fingerprint, expiry_year, expiry_month) DO NOTHING
"""
_AUDIT: Final = """
INSERT INTO card_vault.audit (action, outcome, token, client_id, purpose, trace_id)
VALUES (%(action)s, %(outcome)s, %(token)s, %(client_id)s, %(purpose)s, %(trace_id)s)
"""


class CardVault:
    """The vault as the API uses it. ``timeout`` in seconds bounds every call of the store."""

    def __init__(self, settings: Settings, *, timeout: float, masters: MasterKeys | None = None) -> None:
        self._masters = masters or master_keys(settings)
        self._timeout = timeout
        self._unwrapped: dict[str, DataKey] = {}
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]] = AsyncConnectionPool(
            postgres_conninfo(settings, VAULT_ROLE),
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                "application_name": "streambank-card-vault",
                "options": f"-c statement_timeout={int(timeout * 1000)}",
            },
            min_size=0,
            max_size=POOL_SIZE,
            timeout=timeout,
            reconnect_timeout=1,
            open=False,
        )

    async def open(self) -> None:
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=self._timeout)
        self._unwrapped.clear()

    async def tokenise(self, number: str, brand: str, year: int, month: int, client_id: str, trace_id: str) -> Card:
        """The card's token, a new one if the card is; raises `Problem` 503."""
        async with self._transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", [ACTIVE_KEYS_LOCK])
            keys = await self._keys(connection)
            if {key.purpose for key, active in keys if active} != {ENCRYPTION, FINGERPRINT}:
                keys = await self._first_keys(connection, keys)
            active = {key.purpose: key for key, is_active in keys if is_active}
            fingerprints = [key.fingerprint(number) for key, _ in keys if key.purpose == FINGERPRINT]
            wanted = {"fingerprints": fingerprints, "year": year, "month": month}
            card = await self._one(connection, _FIND, wanted)
            if card is None:
                card = Card(_new_token(), brand, number[-4:], year, month)
                sealed = active[ENCRYPTION].seal(number, bound_to(card))
                added = await connection.execute(
                    _ADD,
                    {
                        "token": card.token, "brand": brand, "last_four": card.last_four, "year": year, "month": month,
                        "data_key_id": sealed.data_key_id, "nonce": sealed.nonce, "ciphertext": sealed.ciphertext,
                        "fingerprint_key_id": active[FINGERPRINT].id,
                        "fingerprint": active[FINGERPRINT].fingerprint(number),
                    },
                )  # fmt: skip
                if not added.rowcount:  # another request was quicker, and has committed
                    card = await self._one(connection, _FIND, wanted)
                    assert card is not None
            await self._record(connection, "tokenise", "done", card.token, client_id, "", trace_id)
        count("streambank_api_card_requests", "tokenise", "done")
        return card

    async def find(self, token: str) -> Card:
        """What may be shown of the token's card; raises `Problem` 404 or 503."""
        async with self._transaction() as connection:
            card = await self._one(
                connection,
                "SELECT token, brand, last_four, expiry_year, expiry_month FROM card_vault.cards"
                " WHERE token = %(token)s",
                {"token": token},
            )
        if card is None:
            raise _unknown()
        return card

    async def detokenise(self, token: str, client_id: str, purpose: str, trace_id: str) -> tuple[str, Card]:
        """The number, and its card; raises `Problem` 404, 500 or 503. The audit entry is committed first."""
        async with self._transaction() as connection:
            cursor = await connection.execute("SELECT * FROM card_vault.cards WHERE token = %s", [token])
            row = await cursor.fetchone()
            outcome = "done" if row is not None else "unknown token"
            await self._record(connection, "detokenise", outcome, token, client_id, purpose, trace_id)
            keys = {key.id: key for key, _ in await self._keys(connection)} if row is not None else {}
        count("streambank_api_card_requests", "detokenise", outcome)
        if row is None:
            raise _unknown()
        card = _card(row)
        try:
            if row["data_key_id"] not in keys:
                raise CardKeyError(f"data key {row['data_key_id']} is not in the vault")
            sealed = SealedNumber(row["data_key_id"], bytes(row["nonce"]), bytes(row["ciphertext"]))
            return keys[sealed.data_key_id].open(sealed, bound_to(card)), card
        except CardKeyError as error:
            log().error("a card cannot be decrypted", token=token, error=str(error))
            raise Problem("internal", "The card cannot be decrypted; the request id finds why in the logs.") from None

    async def record_refusal(self, action: str, token: str, client_id: str, trace_id: str) -> None:
        """An audit entry of a request that its scopes did not allow; raises `Problem` 503."""
        async with self._transaction() as connection:
            await self._record(connection, action, "refused: scope", token, client_id, "", trace_id)
        count("streambank_api_card_requests", action, "refused")

    @staticmethod
    async def _record(
        connection: psycopg.AsyncConnection[dict[str, Any]],
        action: str, outcome: str, token: str, client_id: str, purpose: str, trace_id: str,
    ) -> None:  # fmt: skip
        await connection.execute(
            _AUDIT,
            {
                "action": action, "outcome": outcome, "token": token, "client_id": client_id, "purpose": purpose,
                "trace_id": trace_id,
            },
        )  # fmt: skip

    @staticmethod
    async def _one(
        connection: psycopg.AsyncConnection[dict[str, Any]], query: Any, parameters: dict[str, Any]
    ) -> Card | None:
        row = await (await connection.execute(query, parameters)).fetchone()
        return None if row is None else _card(row)

    async def _keys(self, connection: psycopg.AsyncConnection[dict[str, Any]]) -> list[tuple[DataKey, bool]]:
        """All keys that are not destroyed, with whether each is active. Asked of the store at every use, so that a
        rotation is seen at once; each is unwrapped once."""
        cursor = await connection.execute("SELECT * FROM card_vault.data_keys WHERE state <> 'destroyed'")
        rows = await cursor.fetchall()
        for row in rows:
            if row["id"] not in self._unwrapped:
                self._unwrapped[row["id"]] = await asyncio.to_thread(
                    unwrap_data_key,
                    self._masters, row["id"], row["purpose"], row["master_key_id"], bytes(row["wrapped"]),
                )  # fmt: skip
        known = {row["id"] for row in rows}
        for gone in self._unwrapped.keys() - known:
            del self._unwrapped[gone]
        return [(self._unwrapped[row["id"]], row["state"] == "active") for row in rows]

    async def _first_keys(
        self, connection: psycopg.AsyncConnection[dict[str, Any]], keys: list[tuple[DataKey, bool]]
    ) -> list[tuple[DataKey, bool]]:
        """Make the vault's first keys; when several workers do, the first to commit wins."""
        # in one order everywhere: two workers that wait for each other's key would never end
        for purpose in sorted({ENCRYPTION, FINGERPRINT} - {key.purpose for key, active in keys if active}):
            made = new_data_key(purpose)
            master_key_id, wrapped = await asyncio.to_thread(wrap_data_key, self._masters, made)
            await connection.execute(
                "INSERT INTO card_vault.data_keys (id, purpose, state, master_key_id, wrapped)"
                " VALUES (%s, %s, 'active', %s, %s) ON CONFLICT (purpose) WHERE state = 'active' DO NOTHING",
                [made.id, purpose, master_key_id, wrapped],
            )
        return await self._keys(connection)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
        try:
            async with self._pool.connection() as connection, connection.transaction():
                yield connection
        except CardKeyError as error:
            log().error("a key of the card vault cannot be used", error=str(error))
            raise Problem("internal", "A key of the card vault cannot be used; the logs say which.") from None
        except (psycopg.Error, PoolTimeout) as error:
            count("streambank_api_store_failures", "card-vault")
            # the message of an error may quote a row: its class is enough
            log().warning("the card vault did not answer", error=type(error).__name__)
            raise Problem("store-unavailable", "The card vault does not answer.", retry_after=2) from None


def _new_token() -> str:
    return "card_" + base64.b32encode(os.urandom(16)).decode().rstrip("=").lower()


def _card(row: dict[str, Any]) -> Card:
    return Card(row["token"], row["brand"], row["last_four"], row["expiry_year"], row["expiry_month"])


def _unknown() -> Problem:
    return Problem("not-found", "There is no card of this token.")
