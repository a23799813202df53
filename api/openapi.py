"""The API's OpenAPI 3.1 document, made from the route table, the problem table and the .avsc, and its page.

Event schemas come from `pipelines.event_json.json_schema`, so what the document says is what the parser takes.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from api.bodies import MEDIA_TYPES
from api.cards import CARD_PROBLEMS, card_paths, card_schemas
from api.clients import SCOPES
from api.fraud_cases import case_paths, case_schemas
from api.iso20022 import ISO20022_PROBLEMS, iso20022_paths
from api.notifications import NOTIFICATION_PROBLEMS, notification_paths, notification_schemas
from api.payments_openapi import payment_paths, payment_schemas
from api.problems import JSON_PROBLEM, PROBLEMS
from pipelines.codec import FrameCodec
from pipelines.event_json import json_schema

__all__ = ["openapi_document"]

INTEGER: Final = {"$ref": "#/components/schemas/Integer"}
_WRITE_PROBLEMS: Final = (
    "malformed-json", "malformed-avro", "empty-body", "bad-header", "idempotency-key-missing", "unauthorized",
    "insufficient-scope", "body-timeout", "idempotency-key-in-use", "too-large", "unsupported-media-type",
    "invalid-event", "idempotency-key-reused", "chain-too-long", "rate-limited", "internal", "log-unavailable",
    "overloaded", "issuer-unavailable",
)  # fmt: skip
_READ_PROBLEMS: Final = (
    "bad-parameter", "unauthorized", "insufficient-scope", "not-found", "ambiguous-id", "rate-limited", "internal",
    "store-unavailable", "not-yet-visible", "issuer-unavailable",
)  # fmt: skip


def openapi_document(commands: FrameCodec, results: FrameCodec) -> dict[str, Any]:
    """The document, ready for JSON."""
    schemas: dict[str, Any] = {
        kind.name: _without_required_type(json_schema(kind)) for kind in commands.event_types
    } | {kind.name: _as_answer(json_schema(kind)) for kind in results.event_types}
    schemas |= (
        _schemas(commands, results) | case_schemas() | payment_schemas() | card_schemas() | notification_schemas()
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Streambank API",
            "version": version("streambank"),
            "description": (
                "Accounts and transfers into the event log, balances and statements out of the stores.\n\n"
                "Amounts are integers of the ledger's minor unit. Integers beyond 2^53 are decimal strings; both forms "
                "are accepted. A write is acknowledged (202) when Kafka holds it on all in-sync replicas; with "
                "`Prefer: wait=N` the ledger's results are returned if they come in time. The ledger applies an id "
                "once, so a write may always be repeated."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "Writes", "description": "Events into the ledger."},
            {"name": "Queries", "description": "Balances, statements and transfers."},
            {"name": "Fraud cases", "description": "Cards that somebody must look at."},
            {"name": "Payments", "description": "Payments, and what became of them."},
            {"name": "Cards", "description": "Card numbers for tokens, and back for the few who may."},
            {"name": "Notifications", "description": "What customers are told, and where."},
            {"name": "Access", "description": "Tokens and keys."},
            {"name": "Operation", "description": "Health, metrics and this document."},
        ],
        "paths": {
            "/v1/accounts": {"post": _ledger_write("createAccounts", "Create accounts", ["CreateAccount"])},
            "/v1/transfers": {
                "get": _search(),
                "post": _ledger_write("createTransfers", "Create transfers", ["CreateTransfer"]),
            },
            "/v1/ledger/events": {
                "post": _ledger_write("createEvents", "Send accounts and transfers in one order", [
                    kind.name for kind in commands.event_types
                ])
            },
            "/v1/accounts/{id}": {"get": _read("getAccount", "An account with its balances", "Account", sequence=True)},
            "/v1/accounts/{id}/statement": {"get": _statement()},
            "/v1/accounts/{id}/balance": {"get": _balance()},
            "/v1/transfers/{id}": {"get": _read("getTransfer", "A transfer as applied", "Transfer", sequence=True)},
            **case_paths(_problems),
            **payment_paths(),
            **iso20022_paths(_problems(ISO20022_PROBLEMS)),
            **notification_paths(_problems(NOTIFICATION_PROBLEMS)),
            **card_paths(_problems(CARD_PROBLEMS)),
            "/oauth/token": {"post": _token()},
            "/.well-known/jwks.json": {"get": _open("Access", "getKeys", "Public keys", "application/json")},
            "/health/live": {"get": _open("Operation", "isLive", "Whether the process answers", "application/json")},
            "/health/ready": {"get": _ready()},
            "/metrics": {"get": _open("Operation", "getMetrics", "Metrics for Prometheus", "text/plain")},
            "/openapi.json": {"get": _open("Operation", "getDocument", "This document", "application/json")},
            "/docs": {"get": _open("Operation", "getPage", "This document as a page", "text/html")},
            "/problems": {"get": _open("Operation", "listProblems", "All problem types", "application/json")},
            "/problems/{slug}": {"get": _problem_page()},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "oauth": {
                    "type": "oauth2",
                    "flows": {"clientCredentials": {"tokenUrl": "/oauth/token", "scopes": dict(SCOPES)}},
                }
            },
            "responses": {slug: _problem(slug) for slug in PROBLEMS},
            "headers": _headers(),
        },
    }  # fmt: skip


def _without_required_type(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "required": [name for name in schema["required"] if name != "type"]}


def _as_answer(schema: dict[str, Any]) -> dict[str, Any]:
    """A result as the API gives it: with its place in the request, shard and sequence in the place of its frame's
    ``input``. The other side of a trade is told to operators only."""
    not_always = {"input", "maker_order_id", "maker_account", "maker_leaves_quantity"}
    properties = {
        **{name: found for name, found in schema["properties"].items() if name != "input"},
        "index": {"type": "integer", "description": "Position in a JSON array."},
        "line": {"type": "integer", "description": "Line of NDJSON, from 1."},
        "record": {"type": "integer", "description": "Record of an Avro file, from 0."},
        "shard": {"type": "integer", "description": "Shard of the ledger."},
        "sequence": {"type": "integer", "description": "Sequence of the shard after which queries show the effect."},
    }
    required = [name for name in schema["required"] if name not in not_always]
    return {**schema, "properties": properties, "required": required}


def _integers(*names: str, **described: str) -> dict[str, Any]:
    return dict.fromkeys(names, INTEGER) | {
        name: {"allOf": [INTEGER], "description": text} for name, text in described.items()
    }


def _object(properties: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": "object", "description": description, "properties": properties, "required": list(properties)}


def _schemas(commands: FrameCodec, results: FrameCodec) -> dict[str, Any]:
    flags = {
        kind.name: {"type": "array", "items": {"enum": list(kind.field("flags").flags)}}
        for kind in commands.event_types
    }
    balances = _integers(
        debits_pending="Debits of pending transfers.", debits_posted="Debits posted.",
        credits_pending="Credits of pending transfers.", credits_posted="Credits posted.",
    )  # fmt: skip
    user_data = _integers("user_data_128", "user_data_64", "user_data_32")
    errors = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "pointer": {"type": "string", "description": "JSON pointer of the field; empty: the whole event."},
                "detail": {"type": "string"},
                "reason": {"type": "string"},
            },
        },
    }
    return {
        "Integer": {
            "description": "An integer; beyond 2^53 a decimal string.",
            "anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^(0|[1-9][0-9]{0,38})$"}],
        },
        "Problem": {
            "type": "object",
            "description": "RFC 9457 problem details.",
            "properties": {
                "type": {"type": "string", "format": "uri-reference", "examples": ["/problems/invalid-event"]},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string", "description": "What was found and what to change."},
                "instance": {"type": "string", "description": "The request's trace id, as in the logs."},
                "errors": errors,
            },
            "required": ["type", "title", "status", "detail"],
        },
        "Accepted": {
            "type": "object",
            "description": "What became of the events.",
            "properties": {
                "accepted": {"type": "integer"},
                "refused": {"type": "integer"},
                "frames": {
                    "type": "array",
                    "description": "The first 100 frames that hold the events: shard (Kafka's partition) and offset.",
                    "items": _object(
                        {"shard": {"type": "integer"}, "offset": {"type": "integer"}, "events": {"type": "integer"},
                         "trace": {"type": "string", "description": "The frame's W3C traceparent."}},
                        "A frame.",
                    ),
                },
                "events": {
                    "type": "array",
                    "description": "The events, when there are at most 100.",
                    "items": {"type": "object", "properties": {"index": {"type": "integer"}, "id": INTEGER,
                                                               "ledger": {"type": "integer"},
                                                               "shard": {"type": "integer"}}},
                },
                "errors": {
                    "type": "array",
                    "description": "Events refused (NDJSON, Avro), each with its line or record.",
                    "items": {"type": "object", "properties": {"line": {"type": "integer"},
                                                               "record": {"type": "integer"}, "errors": errors}},
                },
                "results": {
                    "type": "array",
                    "description": "With `Prefer: wait`: the ledger's results in the order of the body.",
                    "items": {"oneOf": [{"$ref": f"#/components/schemas/{kind.name}"} for kind in results.event_types]},
                },
            },
            "required": ["accepted", "refused", "frames"],
        },
        "Account": _object(
            {
                **_integers("id", "ledger", "code"), "flags": flags["CreateAccount"], "closed": {"type": "boolean"},
                **balances, **user_data,
                **_integers(timestamp="Creation, nanoseconds since the epoch."),
                "shard": {"type": "integer"},
                "sequence": {"type": "integer", "description": "Sequence of the shard that the balances reflect."},
                "changed_at_sequence": {"type": "integer", "description": "Sequence that last changed them."},
            },
            "An account.",
        ),
        "Balance": _object(
            {
                **_integers("account_id", "ledger", at="Nanoseconds since the epoch, inclusive."), **balances,
                **_integers(
                    entries="Transfers and expiries of the account up to then.",
                    last_entry_at="Timestamp of the last of them; 0 if there is none.",
                ),
                "shard": {"type": "integer"},
                "sequence": {"type": "integer", "description": "Sequence of the shard that the balances reflect."},
            },
            "Balances at a point in time: the fold of all entries up to it.",
        ),
        "Transfer": _object(
            {
                **_integers("id", "debit_account_id", "credit_account_id", "amount", "pending_id"), **user_data,
                **_integers("timeout", "ledger", "code"), "flags": flags["CreateTransfer"],
                **_integers("timestamp", "shard", "sequence"),
            },
            "A transfer as applied.",
        ),
        "Transfers": _object(
            {
                "transfers": {"type": "array", "items": {"$ref": "#/components/schemas/Transfer"}},
                "next_until": {"oneOf": [INTEGER, {"type": "null"}], "description": "`until` of the next page."},
            },
            "A page of transfers, newest first.",
        ),
        "Statement": _object(
            {
                "account_id": INTEGER,
                "month": {"type": "string", "examples": ["2026-01"]},
                "entries": {
                    "type": "array",
                    "items": _object(
                        {
                            **_integers("timestamp", "transfer_id"),
                            "entry": {"enum": ["transfer", "expiry"]},
                            "direction": {"enum": ["debit", "credit"]},
                            **_integers("counterparty_account_id", "amount", "ledger", "code", "pending_id"),
                            **user_data, **balances, **_integers("sequence"), "flags": flags["CreateTransfer"],
                        },
                        "An entry with the account's balances right after it.",
                    ),
                },
                "next_cursor": {"type": ["string", "null"]},
            },
            "A page of a month's entries, newest first.",
        ),
    }  # fmt: skip


def _headers() -> dict[str, Any]:
    return {
        "RateLimit": {"schema": {"type": "string"}, "description": "What is left and when some comes back (r, t)."},
        "RateLimit-Policy": {
            "schema": {"type": "string"},
            "description": "The limit (q) and its window in seconds (w).",
        },
        "Preference-Applied": {"schema": {"type": "string"}, "description": "`wait=N` when the results are included."},
        "Idempotency-Replayed": {
            "schema": {"type": "string"},
            "description": "`true` when an earlier answer is repeated.",
        },
        "Idempotency-Stored": {"schema": {"type": "string"}, "description": "`false` when the key could not be kept."},
    }


def _problem(slug: str) -> dict[str, Any]:
    kind = PROBLEMS[slug]
    return {
        "description": f"{kind.title}. {kind.advice}",
        "content": {JSON_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _problems(slugs: tuple[str, ...]) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for slug in slugs:
        by_status.setdefault(PROBLEMS[slug].status, []).append(slug)
    answers: dict[str, Any] = {}
    for status, found in sorted(by_status.items()):
        if len(found) == 1:
            answers[str(status)] = {"$ref": f"#/components/responses/{found[0]}"}
        else:
            answers[str(status)] = {
                "description": " Or: ".join(
                    f"{PROBLEMS[slug].title} ({slug}). {PROBLEMS[slug].advice}" for slug in found
                ),
                "content": {JSON_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }
    return answers


def _write(operation: str, summary: str, kinds: list[str]) -> dict[str, Any]:
    references = [{"$ref": f"#/components/schemas/{kind}"} for kind in kinds]
    event = references[0] if len(references) == 1 else {"oneOf": references}
    json_body = {"oneOf": [event, {"type": "array", "items": event, "minItems": 1}]}
    media: dict[str, Any] = {
        media_type: {"schema": {"json": json_body, "ndjson": {"type": "string", "description": "One event a line."},
                                "avro": {"type": "string", "contentMediaType": "application/avro"}}[kind]}
        for media_type, kind in MEDIA_TYPES.items()
    }  # fmt: skip
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}}
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _headers()}
    return {
        "tags": ["Writes"],
        "operationId": operation,
        "summary": summary,
        "description": (
            "One event, an array (both all or nothing), NDJSON or an Avro object container file (both event by event). "
            + ("The event's `type` may be left out." if len(kinds) == 1 else "Each JSON event names its `type`.")
            + " Events of one ledger keep their order; a linked chain stays together."
        ),
        "security": [{"oauth": ["ledger:write"]}],
        "parameters": [
            {"name": "Idempotency-Key", "in": "header", "required": True,
             "schema": {"type": "string", "maxLength": 257},
             "description": "Unique per request, quoted or bare; kept for a day."},
            {"name": "Prefer", "in": "header", "schema": {"type": "string", "examples": ["wait=5"]},
             "description": "`wait=N`: return the results if they come within N seconds."},
            {"name": "traceparent", "in": "header", "schema": {"type": "string"},
             "description": "W3C trace context; its trace id is the request's id in the logs."},
        ],
        "requestBody": {"required": True, "content": media},
        "responses": {
            "200": {"description": "The results; not all were created.", "content": content,
                    "headers": headers},
            "201": {"description": "The results; all events were created.", "content": content, "headers": headers},
            "202": {"description": "Kafka holds all events.", "content": content, "headers": headers},
            "207": {"description": "Kafka holds the good events; the bad ones are listed.", "content": content,
                    "headers": headers},
            **_problems(_WRITE_PROBLEMS),
        },
    }  # fmt: skip


def _ledger_write(operation: str, summary: str, kinds: list[str]) -> dict[str, Any]:
    """A write whose results come as an Avro file too."""
    route = _write(operation, summary, kinds)
    file = {"type": "string", "description": "Object container file of the results.",
            "contentMediaType": "application/avro"}  # fmt: skip
    for status in ("200", "201"):
        answer = route["responses"][status]
        answer["content"] = {**answer["content"], "application/avro": {"schema": file}}
    route["description"] += " With `Accept: application/avro` the results of an array, of NDJSON or of Avro are Avro."
    return route


def _id() -> dict[str, Any]:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9]{1,39}$"}}


def _ledger() -> dict[str, Any]:
    return {"name": "ledger", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
            "description": "Needed where the id exists in several ledgers."}  # fmt: skip


def _sequence() -> list[dict[str, Any]]:
    return [
        {"name": "min_sequence", "in": "query", "schema": {"type": "integer", "minimum": 0},
         "description": "Answer only when the store has reached this sequence (of a result) of the ledger's shard; "
                        "needs `ledger`. Else 503, at once or after the time of `Prefer: wait=N`."},
        {"name": "Prefer", "in": "header", "schema": {"type": "string", "examples": ["wait=2"]}},
    ]  # fmt: skip


def _read(operation: str, summary: str, schema: str, *, sequence: bool = False) -> dict[str, Any]:
    parameters = [_id(), _ledger(), *(_sequence() if sequence else ())]
    return {
        "tags": ["Queries"],
        "operationId": operation,
        "summary": summary,
        "security": [{"oauth": ["ledger:read"]}],
        "parameters": parameters,
        "responses": {
            "200": {
                "description": summary,
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
            },
            **_problems(_READ_PROBLEMS),
        },
    }


def _statement() -> dict[str, Any]:
    operation = _read("getStatement", "An account's entries of a month, newest first", "Statement")
    operation["parameters"] += [
        {"name": "month", "in": "query", "schema": {"type": "string", "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])$"},
         "description": "UTC month; the current one by default."},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}},
        {"name": "cursor", "in": "query", "schema": {"type": "string"}, "description": "`next_cursor`."},
    ]  # fmt: skip
    return operation


def _search() -> dict[str, Any]:
    operation = _read("findTransfers", "Transfers of a ledger by code and user data, newest first", "Transfers")
    number = {"type": "string", "pattern": "^[1-9][0-9]{0,38}$"}
    operation["parameters"] = [
        {**_ledger(), "required": True},
        *(
            {"name": name, "in": "query", "schema": number, "description": "At least one of these four is needed."}
            for name in ("code", "user_data_128", "user_data_64", "user_data_32")
        ),
        {"name": "since", "in": "query", "schema": {"type": "string"}, "description": "RFC 3339 or nanoseconds."},
        {"name": "until", "in": "query", "schema": {"type": "string"},
         "description": "RFC 3339 or nanoseconds, inclusive; for the next page `next_until`."},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}},
        *_sequence(),
    ]  # fmt: skip
    return operation


def _balance() -> dict[str, Any]:
    operation = _read("getBalance", "An account's balances at a point in time", "Balance", sequence=True)
    operation["parameters"].append(
        {"name": "at", "in": "query", "schema": {"type": "string", "examples": ["2026-01-31T23:59:59.999999999Z"]},
         "description": "RFC 3339 (UTC without a zone) or nanoseconds since the epoch, inclusive; now by default."}
    )  # fmt: skip
    return operation


def _token() -> dict[str, Any]:
    form = {
        "type": "object",
        "properties": {
            "grant_type": {"const": "client_credentials"},
            "scope": {"type": "string", "description": "Scopes with spaces between; all of the client's by default."},
            "client_id": {"type": "string"},
            "client_secret": {"type": "string", "format": "password"},
        },
        "required": ["grant_type"],
    }
    token = _object(
        {"access_token": {"type": "string"}, "token_type": {"const": "Bearer"}, "expires_in": {"type": "integer"},
         "scope": {"type": "string"}},
        "An access token.",
    )  # fmt: skip
    refusal = {"type": "object", "properties": {"error": {"type": "string"}, "error_description": {"type": "string"}}}
    return {
        "tags": ["Access"],
        "operationId": "getToken",
        "summary": "A token for client credentials (RFC 6749, section 4.4)",
        "description": "The client authenticates with HTTP Basic or with client_id and client_secret in the body.",
        "security": [],
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": form}}},
        "responses": {
            "200": {"description": "A token.", "content": {"application/json": {"schema": token}}},
            "400": {
                "description": "Refused (RFC 6749, section 5.2).",
                "content": {"application/json": {"schema": refusal}},
            },
            "401": {
                "description": "The client is not authenticated.",
                "content": {"application/json": {"schema": refusal}},
            },
            "429": {"$ref": "#/components/responses/rate-limited"},
        },
    }


def _open(tag: str, operation: str, summary: str, media_type: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"} if media_type == "application/json" else {"type": "string"}
    return {
        "tags": [tag],
        "operationId": operation,
        "summary": summary,
        "security": [],
        "responses": {"200": {"description": summary, "content": {media_type: {"schema": schema}}}},
    }


def _ready() -> dict[str, Any]:
    operation = _open(
        "Operation", "isReady", "Whether writes can be accepted; stores are reported only", "application/json"
    )
    operation["responses"]["503"] = {
        "description": "Writes cannot be accepted now.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
    return operation


def _problem_page() -> dict[str, Any]:
    operation = _open("Operation", "getProblem", "What a problem type means", "application/json")
    operation["parameters"] = [{"name": "slug", "in": "path", "required": True, "schema": {"type": "string"}}]
    operation["responses"]["404"] = {"$ref": "#/components/responses/not-found"}
    return operation
