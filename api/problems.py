"""Every way the API says no: one table of RFC 9457 problem types, and the exception that carries one.

A problem's `type` is ``/problems/<slug>``, stable, and served by the API itself as its documentation. `detail` says
what was found and what to change; bad fields are listed under `errors`, each with a JSON pointer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

from pipelines.card_numbers import masked

__all__ = [
    "JSON_PROBLEM",
    "PROBLEMS",
    "Problem",
    "ProblemType",
    "problem_body",
    "problem_of_document",
    "problem_response",
]

JSON_PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One row of the table; ``advice`` is what a client should do."""

    slug: str
    status: int
    title: str
    advice: str


PROBLEMS: Final[dict[str, ProblemType]] = {
    row.slug: row
    for row in (
        ProblemType("malformed-request", 400, "The request is not HTTP as it should be",
                    "Fix the request line or the header that is named, and connect again."),
        ProblemType("malformed-json", 400, "The body is not valid JSON", "Fix the syntax at the stated position."),
        ProblemType("malformed-avro", 400, "The body is not an Avro container file",
                    "Send an object container file whose schema is the event's record, or use NDJSON."),
        ProblemType("empty-body", 400, "The body holds no event", "Send at least one event."),
        ProblemType("bad-parameter", 400, "A parameter of the URL is wrong", "Change the named parameter."),
        ProblemType("bad-header", 400, "A header is wrong", "Change the named header."),
        ProblemType("idempotency-key-missing", 400, "Idempotency-Key is required",
                    "Send a header `Idempotency-Key` with a value unique for this request, say a UUID."),
        ProblemType("unauthorized", 401, "A valid access token is required",
                    "Get a token at POST /oauth/token and send `Authorization: Bearer <token>`."),
        ProblemType("insufficient-scope", 403, "The token lacks the scope", "Ask for a token with the named scope."),
        ProblemType("account-not-granted", 403, "The client may not trade for the account",
                    "Use an account that the client was granted, or ask for `streambank clients grant`."),
        ProblemType("not-found", 404, "Not found", "Check the path and the id."),
        ProblemType("method-not-allowed", 405, "The method does not exist here", "Use one of the methods of `Allow`."),
        ProblemType("body-timeout", 408, "The body came too slowly", "Send it without long pauses."),
        ProblemType("idempotency-key-in-use", 409, "A request with this Idempotency-Key is still running",
                    "Repeat after the stated time."),
        ProblemType("ambiguous-id", 409, "The id exists in several ledgers", "Add `?ledger=` with one of the ledgers."),
        ProblemType("case-closed", 409, "The fraud case is closed", "Read the case; a closed one stays as it is."),
        ProblemType("payment-conflict", 409, "The payment cannot do this now",
                    "Look at its status; repeat later where the result is `busy`."),
        ProblemType("already-exists", 409, "It is there already", "Change or delete the one that is there."),
        ProblemType("too-large", 413, "The request is too large", "Split it, or stream it as NDJSON."),
        ProblemType("unsupported-media-type", 415, "The content type is not supported",
                    "Send application/json, application/x-ndjson or application/avro, without a content encoding."),
        ProblemType("invalid-event", 422, "An event does not fit its schema",
                    "Change the fields listed under `errors`; nothing of this body was accepted."),
        ProblemType("invalid-fields", 422, "Fields of the body are wrong", "Change the fields listed under `errors`."),
        ProblemType("invalid-iso20022", 422, "The ISO 20022 message is wrong",
                    "Change what `errors` lists by its place, each with an ISO reason code; no payment was made."),
        ProblemType("idempotency-key-reused", 422, "The Idempotency-Key belongs to another body",
                    "Use a new key for a new request."),
        ProblemType("chain-too-long", 422, "A linked chain does not fit in one frame", "Send shorter chains."),
        ProblemType("upgrade-required", 426, "This route speaks WebSocket", "Connect with a WebSocket client."),
        ProblemType("rate-limited", 429, "Too many events", "Wait for the seconds of `Retry-After`."),
        ProblemType("header-too-large", 431, "A header is too large", "Send less."),
        ProblemType("internal", 500, "The API failed", "Repeat with the same Idempotency-Key; report the request id."),
        ProblemType("log-unavailable", 503, "The event log did not acknowledge",
                    "Send the same events with the same ids after `Retry-After`: nothing is applied twice."),
        ProblemType("overloaded", 503, "The buffer of unacknowledged events is full", "Repeat after `Retry-After`."),
        ProblemType("store-unavailable", 503, "The store of this query is away", "Repeat after `Retry-After`."),
        ProblemType("not-yet-visible", 503, "The store has not reached the asked sequence",
                    "Repeat after `Retry-After`, or wait longer with `Prefer: wait=N`."),
        ProblemType("issuer-unavailable", 503, "The token issuer's keys cannot be read", "Repeat after `Retry-After`."),
    )
}  # fmt: skip


class Problem(Exception):  # noqa: N818 - the RFC's name
    """An answer that is a problem; raised anywhere below a handler, rendered by the middleware."""

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        **members: Any,
    ) -> None:
        super().__init__(f"{slug}: {detail}")
        self.kind = PROBLEMS[slug]
        self.detail = detail
        self.members: dict[str, Any] = dict(members)
        if errors:
            self.members["errors"] = list(errors)
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, round(retry_after)))

    @property
    def status(self) -> int:
        return self.kind.status

    def document(self) -> dict[str, Any]:
        return {
            "type": f"/problems/{self.kind.slug}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            **self.members,
        }


def problem_body(problem: Problem, request_id: str = "") -> bytes:
    """The problem as JSON; ``instance`` names the request in the logs."""
    document = problem.document()
    if request_id:
        document["instance"] = f"urn:trace:{request_id}"
    return msgspec.json.encode(masked(document))


def problem_response(problem: Problem, request_id: str = "") -> web.Response:
    """The problem as ``application/problem+json``; see `problem_body`."""
    return web.Response(
        status=problem.status,
        body=problem_body(problem, request_id),
        content_type=JSON_PROBLEM,
        headers=problem.headers,
    )


def problem_of_document(document: Mapping[str, Any], headers: Mapping[str, str]) -> Problem:
    """The problem that `problem_body` made the JSON of."""
    known = {"type", "title", "status", "detail", "instance"}
    slug = str(document["type"]).removeprefix("/problems/")
    members = {name: value for name, value in document.items() if name not in known}
    return Problem(slug if slug in PROBLEMS else "internal", str(document["detail"]), headers=headers, **members)


def problem_of_status(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Problem:
    """The problem for a refusal that aiohttp itself raised."""
    slug = {
        404: "not-found", 405: "method-not-allowed", 408: "body-timeout", 413: "too-large",
        415: "unsupported-media-type", 431: "header-too-large",
    }.get(status, "bad-header" if 400 <= status < 500 else "internal")  # fmt: skip
    return Problem(slug, detail or HTTPStatus(status).phrase, headers=headers)
