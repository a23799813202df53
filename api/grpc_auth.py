"""What every gRPC service of the API shares: tokens in metadata, limits, and problems as gRPC statuses.

A call carries ``authorization: Bearer <token>`` in its metadata, checked by the same `Authenticator` as HTTP. A
`Problem` becomes a status: its detail is the status message, its slug is in the trailing metadata ``problem``, and a
wait is in ``retry-after`` (seconds).

A service's method is::

    async def PlaceOrder(self, request, context):
        async with answering(context):
            principal = await self.access.principal(context, "orders:write", cost=1)
            …
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc

from api.auth import Authenticator, Principal
from api.logs import log
from api.metrics import count
from api.problems import Problem
from api.rate_limit import RateLimiter

__all__ = ["GrpcAccess", "answering", "authorization_of", "status_of"]

_STATUSES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class GrpcAccess:
    """Who calls, and whether they may. ``limiter`` counts a client's events over HTTP and gRPC together."""

    def __init__(self, authenticator: Authenticator, limiter: RateLimiter) -> None:
        self.authenticator = authenticator
        self.limiter = limiter

    async def principal(self, context: Any, scope: str, cost: int = 0) -> Principal:
        """The caller, who holds ``scope`` and is charged ``cost`` events; raises `Problem` 401, 403 or 429."""
        principal = await self.authenticator.principal(authorization_of(context), scope)
        if cost:
            await self.limiter.charge(principal.client_id, cost)
        return principal

    def current(self, principal: Principal) -> Principal:
        """The caller of a stream as it is by now; raises `Problem` 401 when its token no longer holds."""
        return self.authenticator.current(principal)


def authorization_of(context: Any) -> str | None:
    """The ``authorization`` of a call's metadata."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            return value if isinstance(value, str) else None
    return None


def status_of(problem: Problem) -> grpc.StatusCode:
    """The gRPC status of a problem."""
    return _STATUSES.get(problem.status, grpc.StatusCode.INTERNAL)


@asynccontextmanager
async def answering(context: Any) -> AsyncIterator[None]:
    """Turns what goes wrong inside into the call's status."""
    try:
        yield
    except Problem as problem:
        count("streambank_api_grpc_refused", problem.kind.slug)
        trailing = [("problem", problem.kind.slug)]
        if "Retry-After" in problem.headers:
            trailing.append(("retry-after", problem.headers["Retry-After"]))
        await context.abort(status_of(problem), problem.detail, tuple(trailing))
    except grpc.aio.AbortError:
        raise
    except Exception:
        log().exception("gRPC call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "Something broke here.", (("problem", "internal"),))
