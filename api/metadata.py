"""What ledgers and accounts are called, which currency a ledger counts, and the currencies there are.

Kept in Postgres and nowhere else: names may be wrong or missing without a cent being wrong. A ledger whose number is
that of a currency in ISO 4217 (978: euro) has that currency without being told. What is put replaces what was there.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, LiteralString

import msgspec
from msgspec import Meta
from psycopg.types.json import Jsonb

from api.problems import Problem
from api.queries import Queries, json_integer
from pipelines.currencies import AmountError, Currency, UnknownCurrency, by_code, by_number, currencies

__all__ = ["AccountMetadata", "LedgerMetadata", "Metadata"]

MAX_SCALE: Final = 38

_PUT_LEDGER: Final[LiteralString] = """
INSERT INTO ledger_metadata AS known (ledger, name, currency, scale, description)
VALUES (%(ledger)s, %(name)s, %(currency)s, %(scale)s, %(description)s)
ON CONFLICT (ledger) DO UPDATE SET name = excluded.name, currency = excluded.currency, scale = excluded.scale,
    description = excluded.description, updated_at = now()
RETURNING known.*
"""
_PUT_ACCOUNT: Final[LiteralString] = """
INSERT INTO account_metadata AS known (ledger, account_id, name, attributes)
VALUES (%(ledger)s, %(account_id)s, %(name)s, %(attributes)s)
ON CONFLICT (ledger, account_id) DO UPDATE SET name = excluded.name, attributes = excluded.attributes,
    updated_at = now()
RETURNING known.*
"""
_LEDGERS: Final[LiteralString] = "SELECT * FROM ledger_metadata ORDER BY ledger"
_LEDGER: Final[LiteralString] = "SELECT * FROM ledger_metadata WHERE ledger = %(ledger)s"
_ACCOUNT: Final[LiteralString] = (
    "SELECT * FROM account_metadata WHERE ledger = %(ledger)s AND account_id = %(account_id)s"
)


class LedgerMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """What is said of a ledger. Without ``scale`` it is the currency's number of minor units."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    currency: str | None = None
    scale: Annotated[int, Meta(ge=0, le=MAX_SCALE)] | None = None
    description: Annotated[str, Meta(max_length=2000)] = ""


class AccountMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """What is said of an account."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    attributes: Annotated[
        dict[Annotated[str, Meta(max_length=100)], Annotated[str, Meta(max_length=1000)]], Meta(max_length=50)
    ] = {}


class Metadata:
    """Reads and writes of one worker; raises `Problem` 404, 422 and 503."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    @staticmethod
    def currencies() -> dict[str, Any]:
        return {"currencies": [_currency(found) for found in currencies().values()]}

    async def ledgers(self) -> dict[str, Any]:
        return {"ledgers": [_ledger(row) for row in await self._queries.ask_primary(_LEDGERS, {})]}

    async def ledger(self, ledger: int) -> dict[str, Any]:
        """The ledger's metadata; of a currency's ledger that nobody named, what ISO 4217 says."""
        rows = await self._queries.ask_primary(_LEDGER, {"ledger": ledger})
        if rows:
            return _ledger(rows[0])
        try:
            currency = by_number(ledger)
        except UnknownCurrency:
            raise Problem("not-found", f"Nobody has said what ledger {ledger} is.") from None
        return _described(ledger, currency.name, currency.code, currency.minor_units, "", None)

    async def put_ledger(self, ledger: int, body: bytes) -> dict[str, Any]:
        told = _decoded(body, LedgerMetadata)
        scale = told.scale
        if told.currency is not None:
            try:
                currency = by_code(told.currency)
                scale = currency.scale if scale is None else scale
            except UnknownCurrency as error:
                raise _invalid("/currency", str(error)) from None
            except AmountError as error:
                raise _invalid("/scale", f"{error}; say the scale") from None
        if scale is None:
            raise _invalid("/scale", "is needed where there is no currency")
        values = {"name": told.name, "currency": told.currency, "scale": scale, "description": told.description}
        return _ledger((await self._queries.write(_PUT_LEDGER, {"ledger": ledger, **values}))[0])

    async def account(self, ledger: int, account_id: int) -> dict[str, Any]:
        rows = await self._queries.ask_primary(_ACCOUNT, {"ledger": ledger, "account_id": account_id})
        if not rows:
            raise Problem("not-found", f"Nobody has said anything about account {account_id} of ledger {ledger}.")
        return _account(rows[0])

    async def put_account(self, ledger: int, account_id: int, body: bytes) -> dict[str, Any]:
        told = _decoded(body, AccountMetadata)
        values = {"name": told.name, "attributes": Jsonb(told.attributes)}
        parameters = {"ledger": ledger, "account_id": account_id, **values}
        return _account((await self._queries.write(_PUT_ACCOUNT, parameters))[0])


def _decoded(body: bytes, kind: Any) -> Any:
    try:
        told = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid("", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("malformed-json", f"{error}.") from None
    if "\0" in body.decode() or b"\\u0000" in body:
        raise _invalid("", "text must not have a NUL character")
    return told


def _invalid(pointer: str, detail: str) -> Problem:
    return Problem(
        "invalid-event", f"{pointer or 'The body'}: {detail}.", errors=[{"pointer": pointer, "detail": detail}]
    )


def _currency(found: Currency) -> dict[str, Any]:
    return {"code": found.code, "number": found.number, "minor_units": found.minor_units, "name": found.name}


def _described(
    ledger: int, name: str, currency: str | None, scale: int | None, description: str, updated_at: str | None
) -> dict[str, Any]:
    return {
        "ledger": ledger, "name": name, "currency": currency, "scale": scale, "description": description,
        "updated_at": updated_at,
    }  # fmt: skip


def _ledger(row: dict[str, Any]) -> dict[str, Any]:
    return _described(
        int(row["ledger"]),
        row["name"],
        row["currency"],
        row["scale"],
        row["description"],
        row["updated_at"].isoformat(),
    )


def _account(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "ledger": int(row["ledger"]), "account_id": json_integer(int(row["account_id"])), "name": row["name"],
        "attributes": row["attributes"], "updated_at": row["updated_at"].isoformat(),
    }  # fmt: skip
