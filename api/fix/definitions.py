"""Who may log on: a file of mode 0600 with each session's accounts and limits and the argon2 hash of its password.

A file and not a table, as for the API's clients: logons work while Postgres is away. It is read again when it changes,
so that a revoked session is refused, and cut off within seconds.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal, DecimalException
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from infra.secret_files import exclusive, write_secret
from pipelines.errors import StreambankError

__all__ = ["Definition", "DefinitionError", "Definitions", "Instrument", "read_instruments"]

_COMP_ID: Final = re.compile(r"[!-~]{1,32}")
_VERIFIERS: Final = 2
"""Passwords verified at once; argon2 takes 19 MiB each."""


log = structlog.get_logger("streambank.fix")


class DefinitionError(StreambankError):
    """A session cannot be added or changed as asked, or a file cannot be read."""


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A counterparty's session. ``number`` is the session of the orders in the log, for `SessionLimit`; the username
    that a Logon must give is ``username``. ``messages_per_second`` 0: no limit. ``drop_copy``: it enters nothing and
    gets a copy of every execution report of its accounts."""

    comp_id: str
    number: int
    accounts: tuple[str, ...]
    username: str
    password_hash: str
    messages_per_second: int = 0
    cancel_on_disconnect: bool = False
    drop_copy: bool = False
    created_at: float = 0.0
    revoked_at: float | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    sessions: list[Definition]


class Definitions:
    """The sessions in the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] = (-1, -1)
        self._found: dict[str, Definition] = {}
        # OWASP's minimum for argon2id
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._nobody = self._hasher.hash(secrets.token_urlsafe(32))
        self._verifiers = asyncio.Semaphore(_VERIFIERS)

    def add(
        self,
        comp_id: str,
        accounts: Sequence[str],
        *,
        username: str = "",
        messages_per_second: int = 0,
        cancel_on_disconnect: bool = False,
        drop_copy: bool = False,
    ) -> tuple[Definition, str]:
        """Make a session; returns it and its password, which is stored nowhere. A revoked one is made anew."""
        if not _COMP_ID.fullmatch(comp_id):
            raise DefinitionError(
                f"comp id: needs 1 to 32 printable ASCII characters without blanks; found {comp_id!r}"
            )
        if not accounts or not all(account and account.isascii() and len(account) <= 32 for account in accounts):
            raise DefinitionError("accounts: name at least one, each of 1 to 32 ASCII characters")
        password = secrets.token_urlsafe(32)
        with exclusive(self.path.with_suffix(".lock")):
            self._reload()
            known = self._found.get(comp_id)
            if known is not None and known.revoked_at is None:
                raise DefinitionError(f"session {comp_id} exists; revoke it first or choose another comp id")
            number = known.number if known else 1 + max((found.number for found in self._found.values()), default=0)
            definition = Definition(
                comp_id, number, tuple(dict.fromkeys(accounts)), username or comp_id, self._hasher.hash(password),
                messages_per_second, cancel_on_disconnect, drop_copy, time.time(),
            )  # fmt: skip
            self._write({**self._found, comp_id: definition})
        return definition, password

    def revoke(self, comp_id: str) -> Definition:
        """Refuse the session from now on."""
        with exclusive(self.path.with_suffix(".lock")):
            self._reload()
            known = self._found.get(comp_id)
            if known is None:
                raise DefinitionError(f"no session {comp_id}; `streambank fix ls` names them")
            revoked = msgspec.structs.replace(known, revoked_at=time.time())
            self._write({**self._found, comp_id: revoked})
        return revoked

    def all(self) -> list[Definition]:
        self._refresh()
        return sorted(self._found.values(), key=lambda found: found.number)

    def active(self, comp_id: str) -> Definition | None:
        """The session, unless it is unknown or revoked."""
        self._refresh()
        found = self._found.get(comp_id)
        return found if found is not None and found.revoked_at is None else None

    async def authenticate(self, comp_id: str, username: str, password: str) -> Definition | None:
        """The session whose credentials these are. Off the event loop; as slow for an unknown one as for a known."""
        found = self.active(comp_id)
        stored = found.password_hash if found is not None and found.username == username else self._nobody
        async with self._verifiers:
            verified = await asyncio.to_thread(self._verify, stored, password)
        return found if verified else None

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    def _refresh(self) -> None:
        try:
            status = self.path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
        except FileNotFoundError:
            seen = (0, 0)
        if seen == self._seen:
            return
        try:
            self._reload()
        except DefinitionError as error:
            if self._seen == (-1, -1):
                raise
            self._seen = seen
            log.error("sessions_not_read", detail=str(error))  # those that were read before still count

    def _reload(self) -> None:
        try:
            found = self.path.stat()
            document = msgspec.json.decode(self.path.read_bytes(), type=_File)
        except FileNotFoundError:
            self._found, self._seen = {}, (0, 0)
            return
        except (OSError, msgspec.DecodeError) as error:
            raise DefinitionError(f"the FIX sessions {self.path} cannot be read: {error}") from error
        self._found = {definition.comp_id: definition for definition in document.sessions}
        self._seen = (found.st_mtime_ns, found.st_ino)

    def _write(self, found: Mapping[str, Definition]) -> None:
        document: dict[str, Any] = {"sessions": [msgspec.to_builtins(definition) for definition in found.values()]}
        write_secret(self.path, document)
        self._reload()


class Instrument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tick of price and a lot of quantity are on the wire; the log counts ticks and lots."""

    tick: Decimal = Decimal(1)
    lot: Decimal = Decimal(1)

    def units(self, value: str, unit: Decimal) -> int | None:
        """``value`` of the wire in ``unit``; None when it is no such number or not a whole count of units."""
        if (
            not value.isascii()
            or len(value) > 32
            or value.endswith(".")
            or not value.replace(".", "", 1).removeprefix("-").isdecimal()
        ):
            return None
        count = Fraction(value) / Fraction(unit)
        return int(count) if count.denominator == 1 and abs(count) < 2**62 else None

    def price(self, ticks: int) -> str:
        return _plain(ticks * self.tick)

    def quantity(self, lots: int) -> str:
        return _plain(lots * self.lot)

    def average(self, notional: int, lots: int) -> str:
        """The average price of ``notional`` (ticks x lots) over ``lots``, rounded half even to eight more digits."""
        if lots == 0:
            return "0"
        exponent = self.tick.as_tuple().exponent
        digits = 8 - (exponent if isinstance(exponent, int) else 0)
        whole, fraction = divmod(round(Fraction(self.tick) * notional / lots * 10**digits), 10**digits)
        return f"{whole}.{fraction:0{digits}d}".rstrip("0").rstrip(".")


def _plain(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def read_instruments(path: Path | None) -> dict[str, Instrument]:
    """The instruments of a file; none without one."""
    if path is None:
        return {}
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Instrument])
        unusable = [name for name, instrument in found.items() if instrument.tick <= 0 or instrument.lot <= 0]
    except (OSError, msgspec.DecodeError, DecimalException) as error:
        raise DefinitionError(f"the instruments {path} cannot be read: {error}") from error
    if unusable:
        raise DefinitionError(f"{path}: tick and lot of {', '.join(unusable)} must be above 0")
    return found
