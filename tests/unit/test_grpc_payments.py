"""A stream of payments: results in the order of the requests, a bound on what is under way, an end that loses none.

Only the gateway behind it is missing here; tests/integration/test_payments_grpc.py has it all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec
import pytest

from api.auth import Principal
from api.config import ApiSettings
from api.grpc_auth import GrpcAccess
from api.grpc_payments import PAYMENTS_IN_FLIGHT, TransactionService
from api.payment_gateway import Answer, PaymentsGateway, Write
from api.payments_openapi import PAYMENT_PROBLEMS
from api.problems import PROBLEMS, Problem
from api.proto import payments_pb2 as pb

PAYMENTS = 3 * PAYMENTS_IN_FLIGHT
ENTERING = [number for number in range(PAYMENTS) if number % 10 != 7]
"""The others are refused at once, while those before them are still on their way."""


class Gateway:
    """Answers a write once it is released; until then it is under way."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.seen = 0
        self.under_way = 0
        self.changed = asyncio.Condition()
        self.released: set[int] = set()

    async def write(self, write: Write) -> tuple[Answer, None]:
        number = int(write.identity.key)
        self.seen += 1
        self.under_way += 1
        for _ in range(20 * (PAYMENTS - number) if number % 10 != 7 else 0):  # the later, the sooner recorded
            await asyncio.sleep(0)
        if number % 10 == 7:
            self.under_way -= 1
            raise Problem("rate-limited", "Too many.", retry_after=3)
        await write.turn.come()
        self.entered.append(number)
        write.turn.end()
        async with self.changed:
            self.changed.notify_all()
            await self.changed.wait_for(lambda: number in self.released)
            self.under_way -= 1
            self.changed.notify_all()
        if number % 10 == 3:
            raise Problem("invalid-event", "It does not fit.", errors=[{"pointer": "/amount", "detail": "is odd"}])
        return Answer(202, msgspec.json.encode({"payment_id": number, "ledger": 4, "status": "ACCEPTED"})), None

    async def release(self, *numbers: int) -> None:
        async with self.changed:
            self.released.update(numbers)
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)


class Access:
    """Lets ``calls`` requests in."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    async def principal(self, context: Any, scope: str) -> Principal:
        assert scope == "payments:write"
        self.calls -= 1
        if self.calls < 0:
            raise Problem("unauthorized", "The token has expired.")
        return Principal("client", frozenset([scope]), 0.0)


class Context:
    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv6:%5B::1%5D:50123"


async def requests(count: int) -> AsyncIterator[Any]:
    for number in range(count):
        yield pb.ProcessPaymentRequest(idempotency_key=str(number))


def results_of(gateway: Gateway, calls: int = PAYMENTS) -> AsyncIterator[Any]:
    service = TransactionService(cast(PaymentsGateway, gateway), cast(GrpcAccess, Access(calls)), ApiSettings())
    principal = Principal("client", frozenset(["payments:write"]), 0.0)
    return service._results(requests(PAYMENTS), principal, Context(), deque())


async def test_results_are_in_order_and_so_many_are_under_way() -> None:
    gateway = Gateway()
    found: list[Any] = []

    async def read() -> None:
        found.extend([result async for result in results_of(gateway)])

    reading = asyncio.create_task(read())
    async with asyncio.timeout(20):
        await gateway.until(lambda: PAYMENTS_IN_FLIGHT - 1 in gateway.entered)
        await gateway.release(*range(1, PAYMENTS_IN_FLIGHT))  # all but the first, which all results wait for
        await gateway.until(lambda: gateway.under_way == 1)
        assert (found, gateway.seen) == ([], PAYMENTS_IN_FLIGHT)
        assert gateway.entered == [number for number in ENTERING if number < PAYMENTS_IN_FLIGHT]
        await gateway.release(*range(PAYMENTS))
        await reading
    assert gateway.entered == ENTERING
    assert [int(result.idempotency_key) for result in found] == list(range(PAYMENTS))
    for number, result in enumerate(found):
        if number % 10 == 3:
            refusal = result.refusal
            assert (refusal.code, refusal.problem) == ("INVALID_ARGUMENT", "invalid-event")
            assert refusal.detail == "It does not fit: amount: is odd."
        elif number % 10 == 7:
            assert (result.refusal.code, result.refusal.retry_after) == ("RESOURCE_EXHAUSTED", 3)
        else:
            assert (result.processed.payment.payment_id.low, result.processed.payment.status) == (number, "ACCEPTED")


async def test_a_token_that_expires_ends_the_stream_behind_what_was_taken() -> None:
    gateway = Gateway()
    await gateway.release(*range(PAYMENTS))
    found: list[int] = []

    async def read() -> None:
        async for result in results_of(gateway, calls=40):
            found.append(int(result.idempotency_key))  # noqa: PERF401 - what came before the end is wanted too

    async with asyncio.timeout(20):
        with pytest.raises(Problem) as refused:
            await read()
    assert (found, refused.value.kind.slug) == (list(range(40)), "unauthorized")


class Recorder:
    """Takes what it is asked and answers at once."""

    def __init__(self) -> None:
        self.writes: list[Write] = []

    async def write(self, write: Write) -> tuple[Answer, None]:
        self.writes.append(write)
        return Answer(202, msgspec.json.encode({"payment_id": 1, "ledger": 4, "status": "ACCEPTED"})), None


class Call(Context):
    """A call with ``remaining`` seconds before its deadline, and what it was ended with."""

    def __init__(self, remaining: float | None) -> None:
        self.remaining = remaining
        self.ended: tuple[Any, ...] = ()

    def time_remaining(self) -> float | None:  # type: ignore[override]
        return self.remaining

    async def abort(self, *how: Any) -> None:
        self.ended = how


@pytest.mark.parametrize(
    ("asked", "remaining", "waited"),
    [(7, None, 7), (7, 20.0, 7), (7, 2.0, 1.95), (7, 0.01, 0), (0, 20.0, 0), (2**32 - 1, None, 30)],
)
async def test_the_nearer_of_wait_and_deadline_counts(asked: int, remaining: float | None, waited: float) -> None:
    """So the answer, ACCEPTED at the latest, comes before the client gives up."""
    gateway = Recorder()
    service = TransactionService(cast(PaymentsGateway, gateway), cast(GrpcAccess, Access(1)), ApiSettings())
    request = pb.ProcessPaymentRequest(idempotency_key="a", wait_seconds=asked)
    answer = await service.ProcessPayment(request, Call(remaining))
    assert answer.payment.status == "ACCEPTED"
    assert gateway.writes[0].wait == pytest.approx(waited)
    assert (gateway.writes[0].action, gateway.writes[0].remote) == ("create", "::1")


async def test_every_problem_is_a_status_that_says_as_much() -> None:
    class Refuser:
        async def write(self, write: Write) -> tuple[Answer, None]:
            raise Problem(write.identity.key, "No.", retry_after=2)

    service = TransactionService(cast(PaymentsGateway, Refuser()), cast(GrpcAccess, Access(100)), ApiSettings())
    statuses = {}
    for slug in PAYMENT_PROBLEMS:
        call = Call(None)
        await service.ProcessPayment(pb.ProcessPaymentRequest(idempotency_key=slug), call)
        code, detail, trailing = call.ended
        assert (detail, dict(trailing)) == ("No.", {"problem": slug, "retry-after": "2"})
        statuses[slug] = code.name
    assert {slug for slug, code in statuses.items() if code == "INTERNAL"} == {"internal"}
    assert {code for slug, code in statuses.items() if PROBLEMS[slug].status == 503} == {"UNAVAILABLE"}, "repeat it"
    assert statuses["idempotency-key-in-use"] == statuses["payment-conflict"] == "ABORTED"
    assert statuses["rate-limited"] == "RESOURCE_EXHAUSTED"
