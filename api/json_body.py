"""Reads a small JSON object as a request's body, with limits, and without repeating what was sent in an error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from api.problems import Problem

__all__ = ["fields_problem", "json_object"]

MAX_BYTES: Final = 16_384


async def json_object(request: web.Request, idle_seconds: float, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The body; raises `Problem` 400, 408, 413 or 415, none of which quotes it."""
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise Problem("unsupported-media-type", "Send application/json without a content encoding.")
    body = b""
    try:
        while len(body) <= max_bytes:
            async with asyncio.timeout(idle_seconds):
                more = await request.content.read(max_bytes + 1 - len(body))
            if not more:
                break
            body += more
    except TimeoutError:
        raise Problem("body-timeout", f"The body did not come within {idle_seconds:g} seconds.") from None
    if len(body) > max_bytes:
        raise Problem("too-large", f"The body is longer than {max_bytes} bytes.")
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem("malformed-json", "The body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise fields_problem({"": "must be a JSON object"})
    return document


def fields_problem(errors: Mapping[str, str]) -> Problem:
    """422 with what is wrong by field; the texts must not hold what was sent where that may be secret."""
    return Problem(
        "invalid-fields",
        "; ".join(f"{name or 'body'} {text}" for name, text in errors.items()) + ".",
        errors=[{"pointer": f"/{name}" if name else "", "detail": text} for name, text in errors.items()],
    )
