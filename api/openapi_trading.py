"""The trading routes in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from api.openapi import _as_answer, _problems, _without_required_type, _write
from api.trading import ADMIN_COMMANDS, ORDER_COMMANDS
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS
from pipelines.codec import codec_of
from pipelines.event_json import json_schema

__all__ = ["add_trading"]


def add_trading(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the trading routes added."""
    commands, reports = codec_of(MATCHING_COMMANDS.name), codec_of(MATCHING_REPORTS.name)
    schemas = document["components"]["schemas"]
    schemas |= {kind.name: _without_required_type(json_schema(kind)) for kind in commands.event_types}
    schemas |= {kind.name: _as_answer(json_schema(kind)) for kind in reports.event_types}
    schemas["Accepted"]["properties"]["results"]["items"]["oneOf"] += [
        {"$ref": f"#/components/schemas/{kind.name}"} for kind in reports.event_types
    ]
    document["tags"].append({"name": "Trading", "description": "Orders, their reports, and market data."})
    document["paths"] |= {
        "/v1/orders": {"post": _orders("enterOrders", "Enter orders", ["NewOrder"])},
        "/v1/orders/events": {
            "post": _orders("sendOrderEvents", "Send orders, cancels and amendments in one order", list(ORDER_COMMANDS))
        },
        "/v1/orders/{id}": {"patch": _one_order("amendOrder", "Amend an order", "AmendOrder")},
        "/v1/orders/{id}/cancel": {"post": _one_order("cancelOrder", "Cancel an order", "CancelOrder")},
        "/v1/trading/events": {"post": _admin()},
    }
    return document


def _orders(operation: str, summary: str, kinds: list[str], scope: str = "orders:write") -> dict[str, Any]:
    route = _write(operation, summary, kinds)
    route["tags"] = ["Trading"]
    route["security"] = [{"oauth": [scope]}]
    route["description"] = (
        "One event, an array (both all or nothing), NDJSON or an Avro object container file (both event by event). "
        "Events of one symbol keep their order. With `Prefer: wait=N` the answer has the execution reports."
    )
    route["responses"]["200"]["description"] = "The reports; not all commands were accepted by the market."
    route["responses"]["201"]["description"] = "The reports; all commands were accepted by the market."
    return route


def _one_order(operation: str, summary: str, kind: str) -> dict[str, Any]:
    route = _orders(operation, summary, [kind])
    route["description"] = "The body is one JSON object that names symbol and account; the path names the order."
    route["requestBody"]["content"] = {
        "application/json": {"schema": {"type": "object", "required": ["symbol", "account"]}}
    }
    route["parameters"].append(_order_id())
    route["responses"] |= _problems(("malformed-json", "bad-parameter", "bad-header", "idempotency-key-missing"))
    return route


def _order_id() -> dict[str, Any]:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^-?[0-9]{1,19}$"}}


def _admin() -> dict[str, Any]:
    route = _orders("sendTradingEvents", "Define instruments and accounts, and control trading", list(ADMIN_COMMANDS),
                    "orders:admin")  # fmt: skip
    route["parameters"].append(
        {"name": "symbol", "in": "query", "schema": {"type": "string"},
         "description": "Needed for deposits: an account's funds are kept per shard, in that of this instrument."}
    )  # fmt: skip
    return route
