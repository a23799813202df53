"""Metadata and statement files in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from api.metadata import AccountMetadata, LedgerMetadata
from api.openapi import (
    _READ_PROBLEMS,
    _as_answer,
    _id,
    _ledger,
    _object,
    _problems,
    _read,
    _without_required_type,
    _write,
)
from pipelines.catalogue import LEDGER_CROSS_COMMANDS, LEDGER_CROSS_EVENTS, LEDGER_CROSS_RESULTS
from pipelines.codec import codec_of
from pipelines.event_json import json_schema

__all__ = ["add_ledger"]

_NUMBER: Final = {
    "name": "ledger", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
}  # fmt: skip
_TIME: Final = {"type": "string", "format": "date-time"}


def add_ledger(document: dict[str, Any]) -> dict[str, Any]:
    """The document with these routes added."""
    integer = {"$ref": "#/components/schemas/Integer"}
    currency = _object(
        {"code": {"type": "string"}, "number": {"type": "integer"}, "name": {"type": "string"},
         "minor_units": {"type": ["integer", "null"], "description": "Null where ISO 4217 gives none."}},
        "A currency of ISO 4217.",
    )  # fmt: skip
    ledger = _object(
        {"ledger": {"type": "integer"}, "name": {"type": "string"}, "currency": {"type": ["string", "null"]},
         "scale": {"type": ["integer", "null"], "description": "Digits after the point."},
         "description": {"type": "string"}, "updated_at": {"oneOf": [_TIME, {"type": "null"}]}},
        "What a ledger is; `updated_at` is null where ISO 4217 says it and nobody else.",
    )  # fmt: skip
    account = _object(
        {"ledger": {"type": "integer"}, "account_id": integer, "name": {"type": "string"},
         "attributes": {"type": "object", "additionalProperties": {"type": "string"}}, "updated_at": _TIME},
        "What an account is called.",
    )  # fmt: skip
    schemas = document["components"]["schemas"]
    schemas |= {
        "Currencies": _object({"currencies": {"type": "array", "items": currency}}, "All currencies."),
        "LedgerMetadata": ledger,
        "Ledgers": _object(
            {"ledgers": {"type": "array", "items": {"$ref": "#/components/schemas/LedgerMetadata"}}},
            "The ledgers that have metadata.",
        ),
        "AccountMetadata": account,
    }
    create = codec_of(LEDGER_CROSS_COMMANDS.name).event_type("CreateCrossTransfer")
    [result] = codec_of(LEDGER_CROSS_RESULTS.name).event_types
    schemas |= {
        create.name: _without_required_type(json_schema(create)),
        result.name: _as_answer(json_schema(result)),
    }
    schemas["Accepted"]["properties"]["results"]["items"]["oneOf"].append(
        {"$ref": f"#/components/schemas/{result.name}"}
    )
    schemas["CrossTransfer"] = _cross_transfer_state()
    _, told = msgspec.json.schema_components([LedgerMetadata, AccountMetadata])
    of_account = [_id(), {**_ledger(), "required": True}]
    document["paths"] |= {
        "/v1/cross-transfers": {
            "post": _write("createCrossTransfers", "Create transfers between ledgers", [create.name])
        },
        "/v1/cross-transfers/{id}": {"get": _find_cross_transfer()},
        "/v1/currencies": {"get": _get("listCurrencies", "Currencies of ISO 4217", "Currencies", [])},
        "/v1/ledgers": {"get": _get("listLedgers", "Ledgers that have metadata", "Ledgers", [])},
        "/v1/ledgers/{ledger}": {
            "get": _get("getLedger", "A ledger's name, currency and scale", "LedgerMetadata", [_NUMBER]),
            "put": _put("putLedger", "Say what a ledger is", "LedgerMetadata", [_NUMBER], told["LedgerMetadata"]),
        },
        "/v1/accounts/{id}/metadata": {
            "get": _get("getAccountMetadata", "An account's name and attributes", "AccountMetadata", of_account),
            "put": _put(
                "putAccountMetadata", "Say what an account is called", "AccountMetadata", of_account,
                told["AccountMetadata"],
            ),
        },
        "/v1/accounts/{id}/statement.csv": {"get": _csv()},
    }  # fmt: skip
    return document


def _get(operation: str, summary: str, schema: str, parameters: list[Any]) -> dict[str, Any]:
    return {**_read(operation, summary, schema), "parameters": parameters}


def _cross_transfer_state() -> dict[str, Any]:
    changed = codec_of(LEDGER_CROSS_EVENTS.name).event_type("CrossTransferChanged")
    fields = json_schema(changed)["properties"]
    integer = {"$ref": "#/components/schemas/Integer"}
    times = {
        "requested_at": {"type": "integer", "description": "When it was taken, UTC microseconds."},
        "changed_at": {"type": "integer", "description": "When it came there, UTC microseconds."},
    }
    more = {"shard": {"type": "integer"}, "sequence": integer}
    kept = {name: field for name, field in fields.items() if name not in ("type", "timestamp")}
    return _object({**kept, **times, **more}, "A transfer across ledgers, and how far it has come.")


def _find_cross_transfer() -> dict[str, Any]:
    parameters = [
        _id(),
        {"name": "min_sequence", "in": "query", "schema": {"type": "integer", "minimum": 0},
         "description": "Answer only when the store has reached this sequence (of a result). Else 503, at once or "
                        "after the time of `Prefer: wait=N`."},
        {"name": "Prefer", "in": "header", "schema": {"type": "string", "examples": ["wait=10"]},
         "description": "`wait=N`: answer when it has ended, or after N seconds."},
    ]  # fmt: skip
    return _get("getCrossTransfer", "How a transfer between ledgers ended", "CrossTransfer", parameters)


def _put(operation: str, summary: str, schema: str, parameters: list[Any], told: Any) -> dict[str, Any]:
    route = _get(operation, summary, schema, parameters)
    route["security"] = [{"oauth": ["ledger:write"]}]
    route["requestBody"] = {"required": True, "content": {"application/json": {"schema": told}}}
    route["responses"] |= _problems(("malformed-json", "bad-parameter", "invalid-event", "too-large", "body-timeout"))
    return route


def _csv() -> dict[str, Any]:
    route = _read(
        "exportStatement",
        "All entries of a time span as CSV, with running balances, oldest first",
        "Statement",
        sequence=True,
    )
    route["parameters"] += [
        {"name": name, "in": "query", "schema": {"type": "string"}, "description": f"{which}, RFC 3339 or nanoseconds."}
        for name, which in (("since", "First moment"), ("until", "Last moment, inclusive"))
    ]
    route["responses"] = {
        "200": {"description": "The entries.", "content": {"text/csv": {"schema": {"type": "string"}}}},
        **_problems(_READ_PROBLEMS),
    }
    return route
