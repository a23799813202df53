"""Keeps the card vault's keys: new ones, cards moved to them, old ones destroyed, and the audit trail read.

For the command line: synchronous, with a role of its own that may change the keys of cards and nothing else. All steps
may run beside a serving API, may be killed at any time, and go on where they were when started again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

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
from api.card_vault import ACTIVE_KEYS_LOCK, Card, bound_to
from infra.settings import Settings
from infra.stores import VAULT_KEEPER_ROLE, postgres_conninfo
from pipelines.errors import StreambankError

__all__ = ["AuditEntry", "CardKeeper", "CardKeeperError", "KeyState"]

KEEPER: Final = "streambank cards"


class CardKeeperError(StreambankError):
    """The vault cannot be reached or kept."""


@dataclass(frozen=True, slots=True)
class KeyState:
    """A data key without its secret; ``cards`` use it now."""

    id: str
    purpose: str
    state: str
    master_key_id: str
    created_at: datetime
    cards: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    id: int
    at: datetime
    action: str
    outcome: str
    token: str | None
    client_id: str
    purpose: str
    trace_id: str


_WAITING: Final = """
FROM card_vault.cards WHERE data_key_id <> %(encryption)s OR fingerprint_key_id <> %(fingerprint)s
"""
_MOVE: Final = """
UPDATE card_vault.cards SET data_key_id = %(data_key_id)s, nonce = %(nonce)s, ciphertext = %(ciphertext)s,
    fingerprint_key_id = %(fingerprint_key_id)s, fingerprint = %(fingerprint)s, encrypted_at = now()
WHERE token = %(token)s
"""


class CardKeeper:
    """One connection of the keeper. ``user`` signs audit entries."""

    def __init__(self, settings: Settings, user: str, masters: MasterKeys | None = None) -> None:
        self._masters = masters or master_keys(settings)
        self._conninfo = postgres_conninfo(settings, VAULT_KEEPER_ROLE)
        self._user = f"{KEEPER} ({user})"

    def data_keys(self) -> list[KeyState]:
        """All keys, newest first, destroyed ones too."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT k.id, k.purpose, k.state, k.master_key_id, k.created_at, count(c.token) AS cards"
                " FROM card_vault.data_keys k LEFT JOIN card_vault.cards c"
                " ON k.id = CASE k.purpose WHEN 'encryption' THEN c.data_key_id ELSE c.fingerprint_key_id END"
                " GROUP BY k.id ORDER BY k.created_at DESC"
            ).fetchall()
        return [KeyState(**row) for row in rows]

    def rotate(self, purpose: str) -> str:
        """Use a new data key for new cards from now on; returns its id. `re_encrypt` moves the older cards."""
        made = new_data_key(purpose)
        master_key_id, wrapped = wrap_data_key(self._masters, made)
        with self._connection() as connection, connection.transaction():
            # Waits for requests that are adding a card, and holds new ones back for the moment of the change.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [ACTIVE_KEYS_LOCK])
            connection.execute(
                "UPDATE card_vault.data_keys SET state = 'retired', retired_at = now()"
                " WHERE purpose = %s AND state = 'active'",
                [purpose],
            )
            connection.execute(
                "INSERT INTO card_vault.data_keys (id, purpose, state, master_key_id, wrapped)"
                " VALUES (%s, %s, 'active', %s, %s)",
                [made.id, purpose, master_key_id, wrapped],
            )
            self._record(connection, f"rotate {purpose} key", made.id)
        return made.id

    def rotate_master(self) -> tuple[str, int]:
        """Make a new master key, wrap all data keys with it, and destroy the older ones; returns its id and the number
        of data keys. Killed in between, it is run again."""
        master_key_id = self._masters.rotate()
        with self._connection() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [ACTIVE_KEYS_LOCK])
            keys = self._unwrapped(connection)
            for key in keys.values():
                wrapped_by, wrapped = wrap_data_key(self._masters, key)
                connection.execute(
                    "UPDATE card_vault.data_keys SET master_key_id = %s, wrapped = %s WHERE id = %s",
                    [wrapped_by, wrapped, key.id],
                )
            self._record(connection, "rotate master key", master_key_id)
        self._masters.forget_older()
        return master_key_id, len(keys)

    def re_encrypt(self, batch: int, progress: Callable[[int, int], None]) -> int:
        """Move all cards to the active keys, ``batch`` a transaction, and destroy the keys that no card needs any
        more; returns how many cards were moved. ``progress`` is told cards moved and cards in all.

        Raises `CardKeyError` for a card that does not decrypt, with its token; what was moved before stays moved.
        """
        moved = 0
        with self._connection() as connection:
            active = {row["purpose"]: row["id"] for row in connection.execute(
                "SELECT purpose, id FROM card_vault.data_keys WHERE state = 'active'").fetchall()}  # fmt: skip
            if set(active) != {ENCRYPTION, FINGERPRINT}:
                return 0  # no card was ever added
            keys = self._unwrapped(connection)
            first = connection.execute(f"SELECT count(*) AS cards {_WAITING}", active).fetchone()
            total = first["cards"] if first else 0
            progress(0, total)
            while count := self._move(connection, keys, active, batch):
                moved += count
                progress(moved, max(total, moved))
            self._destroy_unused(connection)
        return moved

    def audit(self, *, token: str | None, since: datetime | None, limit: int) -> list[AuditEntry]:
        """The newest entries first, at most ``limit``."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT id, at, action, outcome, token, client_id, purpose, trace_id FROM card_vault.audit"
                " WHERE (%(token)s::text IS NULL OR token = %(token)s)"
                " AND (%(since)s::timestamptz IS NULL OR at >= %(since)s) ORDER BY id DESC LIMIT %(limit)s",
                {"token": token, "since": since, "limit": limit},
            ).fetchall()
        return [AuditEntry(**row) for row in rows]

    def _move(
        self,
        connection: psycopg.Connection[dict[str, Any]],
        keys: dict[str, DataKey],
        active: dict[str, str],
        batch: int,
    ) -> int:
        with connection.transaction():
            rows = connection.execute(
                f"SELECT * {_WAITING} LIMIT %(batch)s FOR UPDATE", {**active, "batch": batch}
            ).fetchall()
            for row in rows:
                card = Card(row["token"], row["brand"], row["last_four"], row["expiry_year"], row["expiry_month"])
                sealed = SealedNumber(row["data_key_id"], bytes(row["nonce"]), bytes(row["ciphertext"]))
                try:
                    number = keys[sealed.data_key_id].open(sealed, bound_to(card))
                except CardKeyError as error:
                    raise CardKeyError(f"{card.token}: {error}") from error
                again = keys[active[ENCRYPTION]].seal(number, bound_to(card))
                connection.execute(
                    _MOVE,
                    {
                        "token": card.token, "data_key_id": again.data_key_id, "nonce": again.nonce,
                        "ciphertext": again.ciphertext, "fingerprint_key_id": active[FINGERPRINT],
                        "fingerprint": keys[active[FINGERPRINT]].fingerprint(number),
                    },
                )  # fmt: skip
        return len(rows)

    def _destroy_unused(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [ACTIVE_KEYS_LOCK])
            destroyed = connection.execute(
                "UPDATE card_vault.data_keys k SET state = 'destroyed', wrapped = NULL, destroyed_at = now()"
                " WHERE state = 'retired' AND NOT EXISTS (SELECT FROM card_vault.cards c"
                " WHERE c.data_key_id = k.id OR c.fingerprint_key_id = k.id) RETURNING id"
            ).fetchall()
            for row in destroyed:
                self._record(connection, "destroy key", row["id"])

    def _unwrapped(self, connection: psycopg.Connection[dict[str, Any]]) -> dict[str, DataKey]:
        rows = connection.execute("SELECT * FROM card_vault.data_keys WHERE state <> 'destroyed'").fetchall()
        return {
            row["id"]: unwrap_data_key(
                self._masters, row["id"], row["purpose"], row["master_key_id"], bytes(row["wrapped"])
            )
            for row in rows
        }

    def _record(self, connection: psycopg.Connection[dict[str, Any]], action: str, subject: str) -> None:
        connection.execute(
            "INSERT INTO card_vault.audit (action, outcome, client_id, purpose) VALUES (%s, 'done', %s, %s)",
            [action, self._user, subject],
        )

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        try:
            with psycopg.connect(
                self._conninfo, autocommit=True, row_factory=dict_row, application_name="streambank-card-keeper"
            ) as connection:
                yield connection
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise CardKeeperError("there is no card vault; run `streambank migrate`") from error
        except psycopg.OperationalError as error:
            raise CardKeeperError(f"Postgres does not answer: {error}") from error
