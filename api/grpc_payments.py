"""payments.v1.TransactionService: payments by gRPC; see api/proto/payments.proto for what a client may rely on.

Requests take the way of the REST routes, `api.payment_gateway`: the same limits, idempotency, audit log and answers.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from api.auth import Principal
from api.config import ApiSettings
from api.grpc_auth import GrpcAccess, answering, status_of
from api.idempotency import parse_key
from api.logs import trace_id_of
from api.payment_gateway import PaymentsGateway, Turn, Write, payment_id_of
from api.payment_requests import Request
from api.problems import Problem, problem_of_document
from api.proto import payments_pb2 as pb
from api.proto.payments_pb2_grpc import TransactionServiceServicer, add_TransactionServiceServicer_to_server

__all__ = ["TransactionService"]

WRITE: Final = "payments:write"
READ: Final = "payments:read"
ENDPOINT: Final = "/payments.v1.TransactionService/ProcessPayment"
"""What idempotency keys belong to, with the client; of streams too, so that either may repeat what the other began."""
PAYMENTS_IN_FLIGHT: Final = 32
"""Payments of a stream that are under way at a time."""
DEADLINE_MARGIN_SECONDS: Final = 0.05

_WORD: Final = 2**64 - 1
_IDS: Final = ("payment_id", "payer_account_id", "payee_account_id")
_OPTIONAL: Final = ("device", "country", "merchant")
_GIVEN_WHERE_SET: Final = ("requested_at",)
_NEW_FIELDS: Final = [found.name for found in pb.NewPayment.DESCRIPTOR.fields]
_PAYMENT_FIELDS: Final = [found.name for found in pb.Payment.DESCRIPTOR.fields]
_TIMELINE_FIELDS: Final = [found.name for found in pb.TimelineEntry.DESCRIPTOR.fields]


class TransactionService(TransactionServiceServicer):
    """The service of one worker."""

    def __init__(self, gateway: PaymentsGateway, access: GrpcAccess, config: ApiSettings) -> None:
        self._gateway = gateway
        self._access = access
        self._config = config

    def add_to(self, server: Any) -> None:
        add_TransactionServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def ProcessPayment(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        async with answering(context):
            principal = await self._access.principal(context, WRITE)
            try:
                return await self._processed(request, principal, context, Turn())
            except Problem as problem:
                raise _explained(problem) from None

    async def GetPayment(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with answering(context):
            principal = await self._access.principal(context, READ)
            payment_id = payment_id_of(str(_number(request.payment_id)))
            found, _ = await self._gateway.payment(principal.client_id, payment_id, request.ledger or None)
            return _message(found)

    async def StreamPayments(self, requests: Any, context: Any) -> Any:  # noqa: N802
        async with answering(context):
            principal = await self._access.principal(context, WRITE)
            running: deque[asyncio.Task[Any]] = deque()
            try:
                async for result in self._results(requests, principal, context, running):
                    yield result
            finally:
                for task in running:
                    task.cancel()

    async def _results(
        self, requests: Any, principal: Principal, context: Any, running: deque[asyncio.Task[Any]]
    ) -> AsyncIterator[Any]:
        """Results in the order of the requests; a token that no longer holds ends the stream behind what was taken."""
        requests = aiter(requests)
        reading: asyncio.Task[Any] | None = asyncio.ensure_future(anext(requests, None))
        turn: Turn | None = None
        refused: Problem | None = None
        try:
            while reading is not None or running:
                is_full = len(running) >= PAYMENTS_IN_FLIGHT
                waited = {task for task in (running[0] if running else None, None if is_full else reading) if task}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                while running and running[0].done():
                    yield running.popleft().result()
                if reading is None or not reading.done() or is_full:
                    continue
                request, reading = reading.result(), None
                if request is None:
                    continue
                try:
                    principal = await self._access.principal(context, WRITE)
                except Problem as problem:
                    refused = problem
                    continue
                turn = Turn(turn)
                running.append(asyncio.create_task(self._result(request, principal, context, turn)))
                reading = asyncio.ensure_future(anext(requests, None))
        finally:
            if reading is not None:
                reading.cancel()
        if refused is not None:
            raise refused

    async def _result(self, request: Any, principal: Principal, context: Any, turn: Turn) -> Any:
        try:
            processed = await self._processed(request, principal, context, turn)
        except Problem as problem:
            return pb.PaymentResult(idempotency_key=request.idempotency_key, refusal=_refusal(_explained(problem)))
        finally:
            turn.end()
        return pb.PaymentResult(idempotency_key=request.idempotency_key, processed=processed)

    async def _processed(self, request: Any, principal: Principal, context: Any, turn: Turn) -> Any:
        """The answer to a request; raises `Problem`, also the one that an earlier request under the key was told."""
        if not request.idempotency_key:
            raise Problem("idempotency-key-missing", "idempotency_key: must be set; send a unique value, say a UUID.")
        wait = float(min(request.wait_seconds, self._config.wait_seconds))
        remaining = context.time_remaining()
        if remaining is not None:
            wait = max(0.0, min(wait, remaining - DEADLINE_MARGIN_SECONDS))
        fingerprint = hashlib.sha256(request.payment.SerializeToString(deterministic=True)).hexdigest()
        answer, _ = await self._gateway.write(
            Write(
                action="create",
                subject="",
                body=_body(request.payment),
                identity=Request(principal.client_id, ENDPOINT, parse_key(request.idempotency_key), fingerprint),
                wait=wait,
                trace_id=_trace_id(context),
                remote=_remote(context),
                turn=turn,
            )
        )
        document = msgspec.json.decode(answer.body)
        if answer.status >= 400:
            raise problem_of_document(document, answer.headers)
        return pb.ProcessPaymentResponse(payment=_message(document), replayed=answer.replayed)


def _body(payment: Any) -> dict[str, Any]:
    """The payment as JSON has it; the schema's checks are the gateway's."""
    body: dict[str, Any] = {}
    for name in _NEW_FIELDS:
        value = getattr(payment, name)
        if name in _IDS:
            value = str(_number(value))
            if name == "payment_id" and value == "0":
                continue
        elif name == "capture":
            if value not in pb.CaptureMode.values():
                raise Problem("invalid-event", f"capture: {value} is not one of its values.")
            value = pb.CaptureMode.Name(value).lower()
        elif (name in _OPTIONAL and not payment.HasField(name)) or (name in _GIVEN_WHERE_SET and not value):
            continue
        body[name] = value
    return body


def _message(found: dict[str, Any]) -> Any:
    """An answer or a row of the store as `Payment`."""
    message = pb.Payment()
    fields = {**found, "changed_at": found.get("changed_at", found.get("at"))}
    for name in _PAYMENT_FIELDS:
        value = fields.get(name)
        if value is None:
            continue
        if name == "timeline":
            message.timeline.extend(
                pb.TimelineEntry(**{field: entry[field] for field in _TIMELINE_FIELDS}) for entry in value
            )
        elif name in _IDS or name == "original_payment_id":
            getattr(message, name).CopyFrom(_u128(value))
        elif name == "capture":
            message.capture = pb.CaptureMode.Value(value.upper())
        else:
            setattr(message, name, value)
    return message


def _explained(problem: Problem) -> Problem:
    """The problem with its bad fields in the detail, since a status has no room for them elsewhere."""
    errors = problem.members.get("errors", ())
    if errors:
        fields = (
            f"{error['pointer'].strip('/').replace('/', '.') or 'payment'}: {error['detail']}" for error in errors
        )
        problem.detail = f"{problem.detail.rstrip('.')}: {'; '.join(fields)}."
    return problem


def _refusal(problem: Problem) -> Any:
    return pb.Refusal(
        code=status_of(problem).name,
        problem=problem.kind.slug,
        detail=problem.detail,
        retry_after=int(problem.headers.get("Retry-After", 0)),
    )


def _trace_id(context: Any) -> str:
    found = dict(context.invocation_metadata() or ()).get("traceparent")
    return trace_id_of(found if isinstance(found, str) else None)


def _remote(context: Any) -> str:
    """The peer's address without its port, as the audit log has that of HTTP clients."""
    address = str(context.peer()).partition(":")[2]
    return address.rpartition(":")[0].removeprefix("%5B").removesuffix("%5D").strip("[]")


def _number(message: Any) -> int:
    return int(message.low) | int(message.high) << 64


def _u128(value: Any) -> Any:
    number = int(value)
    return pb.Uint128(low=number & _WORD, high=number >> 64)
