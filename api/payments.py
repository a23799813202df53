"""REST of the payments gateway: /v1/payments, and what operators do to payments and payers.

What a write does and promises is `api.payment_gateway`'s; here are headers, bodies, addresses and scopes. With
`Prefer: wait=N` an answer says where the payment came to rest, if it does within N seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web

from api.auth import Authenticator, Principal
from api.bodies import BodyReader
from api.config import ApiSettings
from api.idempotency import parse_key
from api.ingest import preferred_wait
from api.payment_gateway import JSON, Answer, PaymentsGateway, Write, payment_id_of
from api.payment_requests import Request
from api.payments_openapi import ACTIONS, REVIEW
from api.problems import Problem

__all__ = ["add_payment_routes"]

MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
LATEST: Final = 7_258_118_400_000_000


def add_payment_routes(
    app: web.Application, parts: Callable[[web.Request], tuple[PaymentsGateway, Authenticator, ApiSettings]]
) -> None:
    """The routes of this module; ``parts`` finds the worker's gateway, authenticator and settings."""

    async def write(action: str, scope: str, request: web.Request) -> web.StreamResponse:
        gateway, authenticator, config = parts(request)
        principal = await authenticator.principal(request.headers.get("Authorization"), scope)
        answer, allowance = await gateway.write(await _asked(action, request, principal, config))
        return _response(answer, {} if answer.replayed else allowance.headers())

    async def read(
        handler: Callable[[PaymentsGateway, web.Request, Principal], Any], request: web.Request
    ) -> web.StreamResponse:
        gateway, authenticator, _ = parts(request)
        principal = await authenticator.principal(request.headers.get("Authorization"), "payments:read")
        document, allowance = await handler(gateway, request, principal)
        return _response(Answer(200, msgspec.json.encode(document)), allowance.headers())

    app.router.add_post("/v1/payments", partial(write, "create", "payments:write"))
    app.router.add_get("/v1/payments", partial(read, _list))
    app.router.add_post("/v1/payments/batch", partial(write, "batch", "payments:write"))
    app.router.add_get("/v1/payments/{id}", partial(read, _get))
    for action in ACTIONS:
        app.router.add_post(f"/v1/payments/{{id}}/{action}", partial(write, action, "payments:write"))
    app.router.add_post("/v1/payments/{id}/review", partial(write, REVIEW, "payments:review"))
    app.router.add_put("/v1/payers/{account}/limits", partial(write, "limits", "payments:admin"))


async def _asked(action: str, request: web.Request, principal: Principal, config: ApiSettings) -> Write:
    key = parse_key(request.headers.get("Idempotency-Key"))
    wait = preferred_wait(request.headers.getall("Prefer", []), config.wait_seconds)
    endpoint = request.match_info.route.resource.canonical if request.match_info.route.resource else request.path
    fingerprint = hashlib.sha256(request.path.encode() + b"\0")
    body = await _body(request, fingerprint.update, config)
    return Write(
        action=action,
        subject=request.match_info.get("id") or request.match_info.get("account", ""),
        body=body,
        identity=Request(principal.client_id, endpoint, key, fingerprint.hexdigest()),
        wait=wait,
        trace_id=request["trace_id"],
        remote=request.remote or "",
    )


async def _body(request: web.Request, seen: Callable[[bytes], None], config: ApiSettings) -> dict[str, Any]:
    if request.content_type != JSON or request.headers.get("Content-Encoding"):
        raise Problem("unsupported-media-type", "Send application/json without a content encoding.")
    reader = BodyReader(request.content, limit=config.max_body_bytes, idle_seconds=config.idle_seconds, seen=seen)
    data = await reader.whole()
    if not data.strip():
        raise Problem("empty-body", "The body holds nothing; send a JSON object.")
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("malformed-json", f"The body is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise Problem(
            "invalid-event", "The body does not fit; nothing of it was accepted.",
            errors=[{"pointer": "", "detail": "must be a JSON object"}],
        )  # fmt: skip
    return body


async def _get(gateway: PaymentsGateway, request: web.Request, principal: Principal) -> Any:
    _known(request, "ledger")
    payment_id = payment_id_of(request.match_info["id"])
    return await gateway.payment(principal.client_id, payment_id, _number(request, "ledger", 2**32 - 1))


async def _list(gateway: PaymentsGateway, request: web.Request, principal: Principal) -> Any:
    _known(request, "account_id", "ledger", "since", "until", "limit")
    account, ledger = _number(request, "account_id", 2**128 - 1), _number(request, "ledger", 2**32 - 1)
    if account is None or ledger is None:
        raise _bad("account_id" if account is None else "ledger", "is needed")
    since, until = _number(request, "since", LATEST), _number(request, "until", LATEST)
    limit = _number(request, "limit", MAX_PAGE)
    return await gateway.payments_of(
        principal.client_id, account, ledger, since or 0, LATEST if until is None else until, limit or DEFAULT_PAGE
    )


def _response(answer: Answer, more: Mapping[str, str]) -> web.Response:
    replayed = {"Idempotency-Replayed": "true"} if answer.replayed else {}
    return web.Response(
        status=answer.status,
        body=answer.body,
        content_type=answer.content_type,
        headers={**answer.headers, **more, **replayed},
    )


def _bad(name: str, must: str) -> Problem:
    return Problem("bad-parameter", f"{name}: {must}.", parameter=name)


def _known(request: web.Request, *names: str) -> None:
    for name in request.query:
        if name not in names:
            raise _bad(name[:40], f"is unknown here; there are {', '.join(names)}")


def _number(request: web.Request, name: str, most: int) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 40 and int(text) <= most):
        raise _bad(name, f"must be an integer from 0 to {most}")
    return int(text)
