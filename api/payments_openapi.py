"""The payments part of the OpenAPI document; bodies and answers come from the .avsc like everything else."""

from __future__ import annotations

from typing import Any, Final

from api.payment_reports import payment_report_paths, payment_report_schemas
from pipelines.catalogue import PAYMENTS_COMMANDS, PAYMENTS_EVENTS
from pipelines.codec import codec_of
from pipelines.event_json import json_schema

__all__ = ["ACTIONS", "GIVEN_BY_THE_API", "PAYMENT_PROBLEMS", "REVIEW", "payment_paths", "payment_schemas"]

ACTIONS: Final = {
    "capture": "CapturePayment", "void": "VoidPayment", "refund": "RefundPayment", "cancel": "CancelPayment",
}  # fmt: skip
"""Last part of the path -> command."""
REVIEW: Final = "review"
"""The action of a reviewer, with a scope of its own."""
GIVEN_BY_THE_API: Final = frozenset({"type", "idempotency_key", "command_id", "reviewer", "decided_at"})
"""Fields of commands that a body may not have."""

PAYMENT_PROBLEMS: Final = (
    "bad-header", "bad-parameter", "malformed-json", "empty-body", "idempotency-key-missing", "unauthorized",
    "insufficient-scope", "not-found", "body-timeout", "idempotency-key-in-use", "payment-conflict", "ambiguous-id",
    "too-large", "unsupported-media-type", "invalid-event", "idempotency-key-reused", "rate-limited", "internal",
    "log-unavailable", "overloaded", "store-unavailable", "issuer-unavailable",
)  # fmt: skip
_INTEGER: Final = {"$ref": "#/components/schemas/Integer"}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _body(schema: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    properties = {name: value for name, value in schema["properties"].items() if name not in GIVEN_BY_THE_API}
    return {**schema, "properties": properties, "required": list(required)}


def payment_schemas() -> dict[str, Any]:
    """Components: the bodies, the payment as its last event left it, and lists of them."""
    commands = codec_of(PAYMENTS_COMMANDS.name)
    changed = json_schema(codec_of(PAYMENTS_EVENTS.name).event_type("PaymentChanged"))
    optional = {"payment_id", "requested_at", "ledger"}
    create = json_schema(commands.event_type("CreatePayment"))
    needed = (*(name for name in create["required"] if name not in GIVEN_BY_THE_API | optional), "ledger")
    schemas: dict[str, Any] = {"NewPayment": _body(create, needed)}
    for action, command in ACTIONS.items():
        body = _body(json_schema(commands.event_type(command)), ("ledger",))
        del body["properties"]["payment_id"]
        body["properties"]["ledger"] = {
            "type": "integer",
            "description": "The payment's ledger; it finds its shard.",
        }
        schemas[f"{action.capitalize()}Request"] = body
    review = _body(json_schema(commands.event_type("ReviewDecision")), ("ledger", "approved"))
    del review["properties"]["payment_id"]
    review["properties"]["note"] = {**review["properties"]["note"], "maxLength": 1000}
    review["properties"]["ledger"] = schemas["CaptureRequest"]["properties"]["ledger"]
    schemas["ReviewRequest"] = review
    limits = _body(json_schema(commands.event_type("PayerLimits")), ("ledger", "per_payment", "per_day", "per_month"))
    limits["properties"]["ledger"] = {"type": "integer", "description": "The account's ledger; it finds its shard."}
    schemas["PayerLimits"] = {**limits, "required": [*limits["required"], "account_id"]}
    schemas["PayerLimitsRequest"] = {
        **limits, "properties": {name: found for name, found in limits["properties"].items() if name != "account_id"}
    }  # fmt: skip
    status = changed["properties"]["status"]
    accepted = {
        "enum": [*status["enum"], "ACCEPTED"],
        "description": "ACCEPTED: Kafka holds it, nothing else is known.",
    }
    payment = {
        **changed, "additionalProperties": True, "required": ["payment_id", "status"],
        "properties": {**changed["properties"], "status": {**status, **accepted}},
    }  # fmt: skip
    schemas["Payment"] = {**payment, "title": "Payment", "description": "A payment and where it is."}
    schemas["NewPayments"] = {
        "type": "object", "required": ["payments"], "additionalProperties": False,
        "properties": {
            "payments": {"type": "array", "minItems": 1, "maxItems": 100, "items": _reference("NewPayment")}
        },
    }  # fmt: skip
    schemas["Payments"] = {
        "type": "object", "required": ["payments"],
        "properties": {
            "payments": {"type": "array", "items": _reference("Payment")},
            "next_until": {"oneOf": [_INTEGER, {"type": "null"}], "description": "`until` of the next page."},
        },
    }  # fmt: skip
    return schemas | payment_report_schemas()


def _problems() -> dict[str, Any]:
    from api.problems import JSON_PROBLEM, PROBLEMS

    statuses: dict[str, list[str]] = {}
    for slug in PAYMENT_PROBLEMS:
        statuses.setdefault(str(PROBLEMS[slug].status), []).append(slug)
    return {
        status: {
            "description": "; ".join(f"{slug}: {PROBLEMS[slug].title}" for slug in slugs),
            "content": {JSON_PROBLEM: {"schema": _reference("Problem")}},
        }
        for status, slugs in statuses.items()
    }


def _header(name: str, required: bool, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": required, "schema": {"type": "string"}, "description": text}


_KEY: Final = _header("Idempotency-Key", True, "Unique for this request; a repeat gets the same answer.")
_WAIT: Final = _header("Prefer", False, "`wait=N`: answer when the payment rests, at most after N seconds.")
_ID: Final = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}


def _answer(schema: str, text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _reference(schema)}}}


def _write(
    operation: str, summary: str, body: str, answer: str, *, by_id: bool, scope: str = "payments:write"
) -> dict[str, Any]:
    return {
        "tags": ["Payments"],
        "operationId": operation,
        "summary": summary,
        "security": [{"oauth": [scope]}],
        "parameters": [*([_ID] if by_id else []), _KEY, _WAIT],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(body)}}},
        "responses": {
            "200": _answer(answer, "With `Prefer: wait`: where the payment came to rest."),
            "201": _answer(answer, "With `Prefer: wait`: the payment was made, and this is where it came to rest."),
            "202": _answer(answer, "Accepted: Kafka holds it. Its way goes on."),
            **_problems(),
        },
    }


def _operator_paths() -> dict[str, Any]:
    review = _write(
        "reviewPayment", "Approve or decline a payment that is in review", "ReviewRequest", "Payment",
        by_id=True, scope="payments:review",
    )  # fmt: skip
    limits = _write(
        "putPayerLimits", "Set what an account may pay; 0 is no limit", "PayerLimitsRequest", "PayerLimits",
        by_id=False, scope="payments:admin",
    )  # fmt: skip
    limits["parameters"].insert(0, {**_ID, "name": "account"})
    limits["responses"]["200"]["description"] = "With `Prefer: wait`: the limits hold."
    limits["responses"]["202"]["description"] = "Accepted: Kafka holds it; the limits hold from when the job reads it."
    for operation in (review, limits):
        del operation["responses"]["201"]
    return {"/v1/payments/{id}/review": {"post": review}, "/v1/payers/{account}/limits": {"put": limits}}


def _read(operation: str, summary: str, answer: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tags": ["Payments"],
        "operationId": operation,
        "summary": summary,
        "security": [{"oauth": ["payments:read"]}],
        "parameters": parameters,
        "responses": {"200": _answer(answer, summary), **_problems()},
    }


def _query(name: str, text: str, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": {"type": "string"}, "description": text}


def payment_paths() -> dict[str, Any]:
    """The routes of `api.payments`."""
    return {
        "/v1/payments": {
            "post": _write("createPayment", "Ask for a payment", "NewPayment", "Payment", by_id=False),
            "get": _read("listPayments", "Payments of an account, newest first", "Payments", [
                _query("account_id", "Payer or payee.", True), _query("ledger", "Its ledger.", True),
                _query("since", "First `requested_at`, microseconds."), _query("until", "Last `requested_at`."),
                _query("limit", "At most so many, 100 by default and 1000 at most."),
            ]),
        },
        "/v1/payments/batch": {
            "post": _write("createPayments", "Ask for up to 100 payments", "NewPayments", "Payments", by_id=False)
        },
        "/v1/payments/{id}": {
            "get": _read("getPayment", "A payment with its timeline", "Payment", [_ID, _query("ledger", "Its ledger.")])
        },
        **{
            f"/v1/payments/{{id}}/{action}": {
                "post": _write(f"{action}Payment", f"{action.capitalize()} a payment",
                               f"{action.capitalize()}Request", "Payment", by_id=True)
            }
            for action in ACTIONS
        },
        **_operator_paths(),
        **payment_report_paths(_read, _query),
    }  # fmt: skip
