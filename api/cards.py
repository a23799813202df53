"""Routes of the card vault, and what the OpenAPI document says of them. Numbers are read here and go to the vault only.

A body that is not understood is refused without a word of it in the answer, since it may hold a number anywhere.
Security codes (CVC) are refused like every unknown field: nothing here may store them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from api.auth import Authenticator, Principal
from api.card_vault import CardVault
from api.config import ApiSettings
from api.json_body import fields_problem, json_object
from api.problems import Problem
from api.rate_limit import RateLimiter
from pipelines.card_numbers import BRANDS, CardNumberError, mask_card_numbers, read_card_number

__all__ = ["CARD_PROBLEMS", "CardRoutes", "card_paths", "card_schemas"]

MAX_BODY_BYTES: Final = 2048
MAX_YEARS_AHEAD: Final = 20
MAX_PURPOSE: Final = 200
_TOKEN: Final = re.compile(r"card_[a-z2-7]{26}", re.ASCII)


class CardServices(Protocol):
    """What the routes use of a worker."""

    config: ApiSettings
    authenticator: Authenticator
    cards_limit: RateLimiter
    vault: CardVault


class CardRoutes:
    """The handlers; ``worker`` is an app key of something with `CardServices`."""

    def __init__(self, worker: web.AppKey[Any]) -> None:
        self._worker = worker

    def add(self, app: web.Application) -> None:
        app.router.add_post("/v1/cards", self.tokenise)
        app.router.add_get("/v1/cards/{token}", self.find)
        app.router.add_post("/v1/cards/{token}/detokenise", self.detokenise)

    async def tokenise(self, request: web.Request) -> web.StreamResponse:
        worker, principal, headers = await self._admitted(request, "cards:tokenise")
        body = await json_object(request, worker.config.idle_seconds, MAX_BODY_BYTES)
        number, brand, year, month = _read_card(body)
        card = await worker.vault.tokenise(number, brand, year, month, principal.client_id, request["trace_id"])
        # 201 also for a card that was there: whether it was is nobody's business
        return _json(card.document(), headers, 201)

    async def find(self, request: web.Request) -> web.StreamResponse:
        worker, _, headers = await self._admitted(request, "cards:read")
        return _json((await worker.vault.find(_token(request))).document(), headers)

    async def detokenise(self, request: web.Request) -> web.StreamResponse:
        worker, principal, headers = await self._admitted(request, "cards:detokenise")
        token = _token(request)
        body = await json_object(request, worker.config.idle_seconds, MAX_BODY_BYTES)
        purpose = body.pop("purpose", None)
        if body or not isinstance(purpose, str) or not 1 <= len(purpose) <= MAX_PURPOSE or not purpose.isprintable():
            raise fields_problem({"purpose": f"is needed, alone: why, in 1 to {MAX_PURPOSE} printable characters"})
        number, card = await worker.vault.detokenise(
            token, principal.client_id, mask_card_numbers(purpose), request["trace_id"]
        )
        return _json({**card.document(), "number": number}, headers)

    async def _admitted(self, request: web.Request, scope: str) -> tuple[CardServices, Principal, dict[str, str]]:
        worker: CardServices = request.app[self._worker]
        authorization = request.headers.get("Authorization")
        principal = await worker.authenticator.identify(authorization)
        if scope == "cards:detokenise" and scope not in principal.scopes:
            token = request.match_info["token"]
            known = token if _TOKEN.fullmatch(token) else "not a token"
            await worker.vault.record_refusal("detokenise", known, principal.client_id, request["trace_id"])
        await worker.authenticator.principal(authorization, scope)
        allowance = await worker.cards_limit.charge(principal.client_id, 1)
        return worker, principal, allowance.headers()


def _token(request: web.Request) -> str:
    token = request.match_info["token"]
    if not _TOKEN.fullmatch(token):
        raise Problem("bad-parameter", "token: must be card_ and 26 of a-z, 2-7.", parameter="token")
    return token


def _read_card(body: dict[str, Any]) -> tuple[str, str, int, int]:
    """Number, brand, expiry's year and month; raises `Problem` 422 that holds no value."""
    errors: dict[str, str] = {}
    if set(body) - {"number", "expiry_month", "expiry_year"}:
        errors[""] = "may have number, expiry_month and expiry_year; security codes are never taken"
    number, brand = body.get("number"), ""
    if not isinstance(number, str) or len(number) > 64:
        errors["number"] = "must be the card number as a string"
    else:
        try:
            number, brand = read_card_number(number)
        except CardNumberError as error:
            errors["number"] = str(error)
    year, month = body.get("expiry_year"), body.get("expiry_month")
    if type(month) is not int or not 1 <= month <= 12:
        errors["expiry_month"] = "must be an integer from 1 to 12"
    now = datetime.now(UTC)
    if type(year) is not int or not now.year - 1 <= year <= now.year + MAX_YEARS_AHEAD:
        errors["expiry_year"] = f"must be a year of four digits, at most {MAX_YEARS_AHEAD} ahead"
    if errors:
        raise fields_problem(errors)
    assert isinstance(number, str)
    assert isinstance(year, int)
    assert isinstance(month, int)
    # good until the month is over everywhere on earth
    if datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC) + timedelta(hours=12) <= now:
        raise fields_problem({"expiry_year": "and expiry_month are over: the card has expired"})
    return number, brand, year, month


def _json(document: dict[str, Any], headers: dict[str, str], status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(document), content_type="application/json", headers=headers, status=status
    )


# --- the document ----------------------------------------------------------------------------------------------------


def card_schemas() -> dict[str, Any]:
    shown = {
        "token": {"type": "string", "pattern": "^card_[a-z2-7]{26}$"},
        "brand": {"enum": list(BRANDS)},
        "last_four": {"type": "string", "pattern": "^[0-9]{4}$"},
        "expiry_month": {"type": "integer", "minimum": 1, "maximum": 12},
        "expiry_year": {"type": "integer"},
    }
    number = {"type": "string", "description": "13 to 19 digits, with single spaces or dashes between them if at all."}
    expiry = {name: shown[name] for name in ("expiry_month", "expiry_year")}
    return {
        "NewCard": {
            "type": "object",
            "description": "A card to tokenise. Nothing else is taken, security codes least of all.",
            "properties": {"number": number, **expiry},
            "required": ["number", *expiry],
            "additionalProperties": False,
        },
        "Card": {
            "type": "object",
            "description": "What may be shown of a card.",
            "properties": shown,
            "required": list(shown),
        },
        "CardNumber": {
            "type": "object",
            "description": "A card with its number.",
            "properties": {**shown, "number": number},
            "required": [*shown, "number"],
        },
        "DetokeniseRequest": {
            "type": "object",
            "properties": {"purpose": {"type": "string", "minLength": 1, "maxLength": MAX_PURPOSE,
                                       "description": "Why the number is needed; goes into the audit entry."}},
            "required": ["purpose"],
            "additionalProperties": False,
        },
    }  # fmt: skip


CARD_PROBLEMS: Final = (
    "malformed-json", "bad-parameter", "bad-header", "unauthorized", "insufficient-scope", "not-found", "body-timeout",
    "too-large", "unsupported-media-type", "invalid-fields", "rate-limited", "internal", "store-unavailable",
    "issuer-unavailable",
)  # fmt: skip


def card_paths(problems: dict[str, Any]) -> dict[str, Any]:
    """The paths; ``problems`` are the answers of `CARD_PROBLEMS`."""
    token = {"name": "token", "in": "path", "required": True,
             "schema": {"type": "string", "pattern": "^card_[a-z2-7]{26}$"}}  # fmt: skip

    def operation(name: str, summary: str, scope: str, status: str, answer: str, body: str | None) -> dict[str, Any]:
        described: dict[str, Any] = {
            "tags": ["Cards"],
            "operationId": name,
            "summary": summary,
            "security": [{"oauth": [scope]}],
            "parameters": [] if name == "tokeniseCard" else [token],
            "responses": {
                status: {"description": summary, "content": _reference(answer)},
                **problems,
            },
        }
        if body is not None:
            described["requestBody"] = {"required": True, "content": _reference(body)}
        return described

    return {
        "/v1/cards": {
            "post": operation(
                "tokeniseCard", "Exchange a card number for a token", "cards:tokenise", "201", "Card", "NewCard"
            )
        },
        "/v1/cards/{token}": {
            "get": operation("getCard", "Brand, expiry and last four digits", "cards:read", "200", "Card", None)
        },
        "/v1/cards/{token}/detokenise": {
            "post": operation(
                "detokeniseCard",
                "The card number; every request is audited",
                "cards:detokenise",
                "200",
                "CardNumber",
                "DetokeniseRequest",
            )
        },
    }


def _reference(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
