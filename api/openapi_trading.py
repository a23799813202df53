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
        "/v1/orders/{id}": {
            "get": _query(
                "getOrder",
                "An order as its reports left it; a day after its end it is forgotten",
                [_order_id(), _symbol_parameter()],
            ),
            "patch": _one_order("amendOrder", "Amend an order", "AmendOrder"),
        },
        "/v1/books/{symbol}": {
            "get": _query(
                "getBook",
                "A book with its depth, last trade and sequence, as of one moment",
                [
                    {"name": "symbol", "in": "path", "required": True, "schema": {"type": "string"}},
                    {
                        "name": "depth",
                        "in": "query",
                        "schema": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 100},
                    },
                    {
                        "name": "orders",
                        "in": "query",
                        "description": "Whether the resting orders are listed too, where the symbol has an order feed.",
                        "schema": {"type": "boolean", "default": False},
                    },
                ],
            )
        },
        "/v1/market-data": {"get": _feed()},
        "/v1/orders/{id}/cancel": {"post": _one_order("cancelOrder", "Cancel an order", "CancelOrder")},
        "/v1/trading/events": {"post": _admin()},
    }
    return document


def _query(operation: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tags": ["Trading"],
        "operationId": operation,
        "summary": summary,
        "security": [{"oauth": ["orders:read"]}],
        "parameters": parameters,
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}},
            **_problems(("bad-parameter", "unauthorized", "insufficient-scope", "not-found", "rate-limited",
                         "internal", "store-unavailable", "issuer-unavailable")),
        },
    }  # fmt: skip


def _feed() -> dict[str, Any]:
    route = _query("followMarketData", "WebSocket of snapshots and increments", [])
    route["description"] = "See docs/reference/trading.md for the messages."
    del route["responses"]["200"]
    route["responses"]["101"] = {"description": "Switching to WebSocket (RFC 6455)."}
    route["responses"] |= _problems(("bad-header",))
    return route


def _symbol_parameter() -> dict[str, Any]:
    return {"name": "symbol", "in": "query", "required": True, "schema": {"type": "string"},
            "description": "The order's instrument, which finds its shard."}  # fmt: skip


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
    if scope == "orders:write":
        route["responses"] |= _problems(("insufficient-scope", "account-not-granted"))
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
