"""Queries about many payments: an account's payments of a day from Cassandra, daily totals from Postgres.

Both are projections that follow payments by some milliseconds to seconds; days are UTC days of `requested_at`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, LiteralString

import msgspec
from aiohttp import web

from api.problems import Problem
from api.queries import Queries, json_integer
from pipelines.payments.records import DAY

__all__ = ["add_payment_report_routes", "payment_report_paths", "payment_report_schemas"]

SCOPE: Final = "payments:read"
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
MAX_DAYS: Final = 366
MAX_ACCOUNT: Final = 2**128 - 1
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,39}", re.ASCII)
_CURSOR: Final = re.compile(r"([0-9]{1,19})-([0-9]{1,29})", re.ASCII)
_OF_DAY: Final = """
SELECT requested_at, payment_id, role, counterparty_account_id, status, reason, currency, amount, captured, refunded,
       reference, version
FROM payments_by_account_day WHERE account_id = ? AND ledger = ? AND day = ?
"""
_TOTALS: Final[LiteralString] = """
SELECT day, currency, created, completed, ended, captured_amount, refunded_amount FROM payment_totals
WHERE ledger = %(ledger)s AND day BETWEEN %(since)s AND %(until)s ORDER BY day, currency
"""
Guard = Callable[[web.Request, str], Any]


def add_payment_report_routes(app: web.Application, parts: Callable[[web.Request], tuple[Queries, Guard]]) -> None:
    """The routes of this module; ``parts`` finds the worker's queries, and what admits a request of a scope."""

    async def of_day(request: web.Request) -> web.StreamResponse:
        queries, guard = parts(request)
        _, headers = await guard(request, SCOPE)
        _known(request, "ledger", "day", "limit", "cursor")
        account = _number("id", request.match_info["id"], MAX_ACCOUNT)
        ledger = _number("ledger", request.query.get("ledger", ""), 2**32 - 1)
        day = _day("day", request.query.get("day", ""))
        limit = min(_number("limit", request.query.get("limit", str(DEFAULT_PAGE)), MAX_PAGE) or DEFAULT_PAGE, MAX_PAGE)
        return _json(await payments_of_day(queries, account, ledger, day, limit, request.query.get("cursor")), headers)

    async def totals(request: web.Request) -> web.StreamResponse:
        queries, guard = parts(request)
        _, headers = await guard(request, SCOPE)
        _known(request, "ledger", "since", "until")
        ledger = _number("ledger", request.query.get("ledger", ""), 2**32 - 1)
        today = datetime.now(UTC).date()
        until = _day("until", request.query["until"]) if "until" in request.query else today
        since = _day("since", request.query["since"]) if "since" in request.query else until
        if not timedelta(0) <= until - since < timedelta(MAX_DAYS):
            raise _bad("since", f"must be at most {MAX_DAYS - 1} days before until, and not after it")
        rows = await queries.rows(_TOTALS, {"ledger": ledger, "since": since, "until": until})
        return _json({"ledger": ledger, "totals": [_total(row) for row in rows]}, headers)

    app.router.add_get("/v1/accounts/{id}/payments", of_day)
    app.router.add_get("/v1/payment-totals", totals)


async def payments_of_day(
    queries: Queries, account: int, ledger: int, day: date, limit: int, cursor: str | None
) -> dict[str, Any]:
    """A page of an account's payments of a day, newest first, with the cursor of the next page or null. Raises
    `Problem` 400 or 503."""
    query, parameters = _OF_DAY, (account, ledger, (day - date(1970, 1, 1)).days)
    place: tuple[int, ...] = ()
    if cursor is not None:
        found = _CURSOR.fullmatch(cursor)
        if found is None or int(found[1]) // DAY != parameters[2]:
            raise _bad("cursor", "is none of this day")
        query += " AND (requested_at, payment_id) < (?, ?)"
        place = (int(found[1]), int(found[2]))
    rows = await queries.history(query + " LIMIT ?", (*parameters, *place, limit + 1))
    last = rows[limit - 1] if len(rows) > limit else None
    return {
        "account_id": json_integer(account), "ledger": ledger, "day": day.isoformat(),
        "payments": [
            {
                name: json_integer(int(value)) if isinstance(value, int) else value
                for name, value in row._asdict().items()
            }
            for row in rows[:limit]
        ],
        "next_cursor": f"{last.requested_at}-{last.payment_id}" if last is not None else None,
    }  # fmt: skip


def _total(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "day": row["day"].isoformat(),
        "currency": row["currency"],
        **{
            name: json_integer(int(row[name]))
            for name in ("created", "completed", "ended", "captured_amount", "refunded_amount")
        },
    }


def _json(document: Any, headers: dict[str, str]) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json", headers=headers)


def _bad(name: str, must: str) -> Problem:
    return Problem("bad-parameter", f"{name}: {must}.", parameter=name)


def _known(request: web.Request, *names: str) -> None:
    for name in request.query:
        if name not in names:
            raise _bad(name[:40], f"is unknown here; there are {', '.join(names)}")


def _number(name: str, text: str, most: int) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise _bad(name, f"must be an integer from 0 to {most}" if text else "is needed")
    return int(text)


def _day(name: str, text: str) -> date:
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise _bad(name, "must be a UTC day, say 2026-01-31" if text else "is needed, say 2026-01-31")


# --- the OpenAPI document ---------------------------------------------------------------------------------------------


def payment_report_schemas() -> dict[str, Any]:
    """Components of the answers."""
    integer, text = {"$ref": "#/components/schemas/Integer"}, {"type": "string"}

    def record(numbers: tuple[str, ...], texts: tuple[str, ...]) -> dict[str, Any]:
        properties = dict.fromkeys(numbers, integer) | dict.fromkeys(texts, text)
        return {"type": "object", "required": list(properties), "properties": properties}

    entry = record(
        ("requested_at", "payment_id", "counterparty_account_id", "amount", "captured", "refunded", "version"),
        ("role", "status", "reason", "currency", "reference"),
    )
    page = record(("account_id", "ledger"), ("day",))
    page["properties"] |= {
        "payments": {"type": "array", "items": entry},
        "next_cursor": {"type": ["string", "null"], "description": "`cursor` of the next page."},
    }
    page["required"] += ["payments", "next_cursor"]
    total = record(("created", "completed", "ended", "captured_amount", "refunded_amount"), ("day", "currency"))
    totals = record(("ledger",), ())
    totals["properties"]["totals"] = {"type": "array", "items": total}
    totals["required"].append("totals")
    return {"PaymentsOfDay": page, "PaymentTotals": totals}


def payment_report_paths(read: Callable[..., dict[str, Any]], query: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The routes, described with the helpers of `api.payments_openapi`."""
    id_ = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}
    return {
        "/v1/accounts/{id}/payments": {
            "get": read("listPaymentsOfDay", "An account's payments of a UTC day, newest first", "PaymentsOfDay", [
                id_, query("ledger", "Its ledger.", True), query("day", "The day of `requested_at`, YYYY-MM-DD.", True),
                query("limit", "At most so many, 100 by default and 1000 at most."),
                query("cursor", "`next_cursor` of the page before."),
            ]),
        },
        "/v1/payment-totals": {
            "get": read("getPaymentTotals", "Payments per UTC day and currency", "PaymentTotals", [
                query("ledger", "The ledger.", True), query("since", "First day; default: `until`."),
                query("until", "Last day; default: today."),
            ]),
        },
    }  # fmt: skip
