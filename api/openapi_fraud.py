"""Card transactions and fraud labels in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from api.card_transactions import LABEL, LABELS_ROUTE, MAX_TEXT_BYTES, TRANSACT, TRANSACTIONS_ROUTE
from api.fraud_decisions import DECISIONS_PATH, READ
from api.openapi import INTEGER, _as_answer, _id, _object, _problems, _read, _without_required_type, _write
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_LABELS, FRAUD_SHARDS, FRAUD_TRANSACTIONS
from pipelines.codec import codec_of
from pipelines.event_json import json_schema

__all__ = ["add_fraud"]


def add_fraud(document: dict[str, Any]) -> dict[str, Any]:
    """The document with these routes added."""
    schemas = document["components"]["schemas"]
    for kind in codec_of(FRAUD_TRANSACTIONS.name).event_types:
        schemas[kind.name] = _without_required_type(json_schema(kind))
    duplicate = _object(
        {"type": {"const": "DuplicateTransaction"}, "transaction_id": INTEGER},
        "The id was there before: the first decision stands, and nothing was changed.",
    )
    answers = {
        kind.name: _as_answer(json_schema(kind))
        for topic in (FRAUD_DECISIONS, FRAUD_LABELS)
        for kind in codec_of(topic.name).event_types
    } | {"DuplicateTransaction": _as_answer(duplicate)}
    schemas |= answers
    schemas["Accepted"]["properties"]["results"]["items"]["oneOf"] += [
        {"$ref": f"#/components/schemas/{name}"} for name in answers
    ]
    schemas["FraudDecisions"] = _object(
        {"transaction_id": INTEGER, "portfolio": {"type": "integer"},
         "decisions": {"type": "array", "items": {"$ref": "#/components/schemas/Decision"}}},
        "A transaction's decision, and behind it the second one, if the first had no score.",
    )  # fmt: skip
    schemas["Accepted"]["properties"]["events"]["items"]["properties"]["transaction_id"] = INTEGER
    document["tags"].append({"name": "Fraud", "description": "Card transactions in, decisions out; labels in."})
    document["paths"] |= {
        TRANSACTIONS_ROUTE.path: {
            "post": _events(
                "sendCardTransactions", "Send card transactions to be decided", "Transaction", TRANSACT,
                f"Texts have at most {MAX_TEXT_BYTES} bytes. With `Prefer: wait=N` the answer has the decisions.",
                "The decisions; some transactions were there before.", "The decisions of all transactions.",
            )
        },
        DECISIONS_PATH: {
            "get": _read("getFraudDecisions", "What was decided about a card transaction", "FraudDecisions")
            | {"tags": ["Fraud"], "security": [{"oauth": [READ]}], "parameters": [_id(), _portfolio("Whose it is.")]}
        },
        LABELS_ROUTE.path: {
            "post": _events(
                "sendFraudLabels", "Say which card transactions were frauds", "FraudLabel", LABEL,
                "Send a label after its transaction was acknowledged. With `Prefer: wait=N` the answer says what it "
                "met.",
                "What the labels met; some transactions are unknown.", "All labels met their transactions.",
            )
        },
    }  # fmt: skip
    return document


def _portfolio(description: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 0, "maximum": FRAUD_SHARDS - 1, "default": 0}
    return {"name": "portfolio", "in": "query", "schema": schema, "description": description}


def _events(operation: str, summary: str, kind: str, scope: str, more: str, some: str, every: str) -> dict[str, Any]:
    route = _write(operation, summary, [kind])
    route["tags"] = ["Fraud"]
    route["security"] = [{"oauth": [scope]}]
    route["description"] = (
        "One event, an array (both all or nothing), NDJSON or an Avro object container file (both event by event). "
        f"The event's `type` may be left out. An `event_time` more than a day ahead is refused. {more}"
    )
    route["parameters"].append(
        _portfolio("Whose cards they are; ids are unique in it, and labels go where their transactions went.")
    )
    route["responses"]["200"]["description"] = some
    route["responses"]["201"]["description"] = every
    route["responses"] |= _problems(
        ("malformed-json", "malformed-avro", "empty-body", "bad-parameter", "bad-header", "idempotency-key-missing")
    )
    return route
