"""ledger.v1.LedgerService: accounts and transfers by gRPC; see api/proto/ledger.proto for what a client may rely on.

Commands take the way of the REST routes: the same routing, limits, batcher and result reader.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import grpc

from api.client import Account, Transfer, rows_of
from api.grpc_auth import GrpcAccess, answering
from api.history import TIMESTAMP_MAX
from api.ingest import LedgerIngest
from api.problems import Problem
from api.proto import ledger_pb2 as pb
from api.proto.ledger_pb2_grpc import LedgerServiceServicer, add_LedgerServiceServicer_to_server
from api.queries import Queries
from pipelines.catalogue import LEDGER_COMMANDS
from pipelines.codec import codec_of
from pipelines.frames import Events

__all__ = ["LedgerService"]

WRITE: Final = "ledger:write"
READ: Final = "ledger:read"
MAX_EVENTS: Final = 5_000
MAX_IDS: Final = 1_000
MAX_ENTRIES: Final = 10_000
DEFAULT_ENTRIES: Final = 100
MAX_REFUSED: Final = 1_000
REQUESTS_IN_FLIGHT: Final = 16
WAIT_SECONDS: Final = 30.0
DEADLINE_MARGIN_SECONDS: Final = 0.05

_CODEC: Final = codec_of(LEDGER_COMMANDS.name)
_WORD: Final = 2**64 - 1
_CROSS_TRANSFER_WIDE: Final = (
    "id", "debit_account_id", "credit_account_id", "debit_clearing_account_id", "credit_clearing_account_id", "amount",
    "credit_amount", "user_data_128",
)  # fmt: skip
_CROSS_TRANSFER_NARROW: Final = ("debit_ledger", "credit_ledger", "code", "requested_at", "changed_at", "sequence")
_BALANCES: Final = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")


class _TooLate(Exception):  # noqa: N818 - a state, named for what it is
    """The events are in the log, their results did not come in time."""


@asynccontextmanager
async def _answering(context: Any) -> AsyncIterator[None]:
    async with answering(context):
        try:
            yield
        except _TooLate:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, "The events are in the log; their results did not come in time."
            )


class LedgerService(LedgerServiceServicer):
    """The service of one worker."""

    def __init__(self, ingest: LedgerIngest, queries: Queries, access: GrpcAccess) -> None:
        self._ingest = ingest
        self._queries = queries
        self._access = access

    def add_to(self, server: Any) -> None:
        add_LedgerServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def CreateAccounts(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        return await self._create([_account(found) for found in request.accounts], context)

    async def CreateTransfers(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._create([_transfer(found) for found in request.transfers], context)

    async def LookupAccounts(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with _answering(context):
            rows = await self._found("accounts", request, context)
            return pb.LookupAccountsResponse(accounts=[_account_state(row) for row in rows])

    async def LookupTransfers(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with _answering(context):
            rows = await self._found("transfers", request, context)
            return pb.LookupTransfersResponse(transfers=[_transfer_message(row) for row in rows])

    async def GetStatement(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with _answering(context):
            await self._access.principal(context, READ, cost=1)
            limit = request.limit or DEFAULT_ENTRIES
            if limit > MAX_ENTRIES:
                raise Problem("bad-parameter", f"limit: at most {MAX_ENTRIES}, found {limit}.", parameter="limit")
            until = min(request.until or TIMESTAMP_MAX, TIMESTAMP_MAX)
            if request.min_sequence and not request.ledger:
                raise Problem("bad-parameter", "min_sequence: needs `ledger`, whose shard counts the sequence.")
            place = (_number(request.account_id), request.ledger or None, request.since, until)
            pieces = self._queries.entries(*place, request.min_sequence, _time_left(context))
            rows: list[dict[str, Any]] = []
            async with aclosing(pieces):
                async for piece in pieces:
                    rows += piece
                    if len(rows) > limit:
                        break
            # entries of one moment (a frame's expiries) stay on one page
            end = min(limit, len(rows))
            while end < len(rows) and rows[end]["timestamp"] == rows[end - 1]["timestamp"]:
                end += 1
            following = int(rows[end]["timestamp"]) if end < len(rows) else 0
            return pb.GetStatementResponse(entries=[_entry(row) for row in rows[:end]], next_since=following)

    async def GetCrossTransfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with _answering(context):
            await self._access.principal(context, READ, cost=1)
            wait = min(float(request.wait_seconds), _time_left(context))
            row = await self._queries.cross_transfer(_number(request.id), request.min_sequence, wait)
            fields: dict[str, Any] = {name: _u128(row[name]) for name in _CROSS_TRANSFER_WIDE}
            fields |= {name: int(row[name]) for name in _CROSS_TRANSFER_NARROW}
            return pb.CrossTransfer(phase=row["phase"], reason=row["reason"], **fields)

    async def ImportTransfers(self, requests: Any, context: Any) -> Any:  # noqa: N802
        async with _answering(context):
            events = 0
            counts: Counter[str] = Counter()
            refused: list[Any] = []
            async for request in requests:
                found = [_transfer(message) for message in request.transfers]
                results = await self._results(await self._sent(found, context), context)
                for transfer, result in zip(found, results, strict=True):
                    name = result["result"]
                    counts[name] += 1
                    if name not in ("created", "exists") and len(refused) < MAX_REFUSED:
                        refused.append(pb.Refused(index=events, id=_u128(transfer.id), result=name))
                    events += 1
            return pb.ImportResponse(events=events, results=counts, refused=refused)

    async def TransferStream(self, requests: Any, context: Any) -> Any:  # noqa: N802
        async with _answering(context):
            running: deque[asyncio.Task[Any]] = deque()
            try:
                async for response in self._answers(requests, context, running):
                    yield response
            finally:
                for task in running:
                    task.cancel()

    async def _answers(self, requests: Any, context: Any, running: deque[asyncio.Task[Any]]) -> AsyncIterator[Any]:
        """Responses in the order of the requests; the next request is read while the last ones are on their way."""
        requests = aiter(requests)
        reading: asyncio.Task[Any] | None = asyncio.ensure_future(anext(requests, None))
        try:
            while reading is not None or running:
                is_full = len(running) >= REQUESTS_IN_FLIGHT
                waited = {task for task in (running[0] if running else None, None if is_full else reading) if task}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                while running and running[0].done():
                    results = running.popleft().result()
                    yield pb.CreateResponse(results=[_result(result) for result in results])
                if reading is not None and reading.done() and not is_full:
                    request = reading.result()
                    reading = None
                    if request is not None:
                        sent = await self._sent([_transfer(message) for message in request.transfers], context)
                        running.append(asyncio.create_task(self._results(sent, context)))
                        reading = asyncio.ensure_future(anext(requests, None))
        finally:
            if reading is not None:
                reading.cancel()

    async def _create(self, events: Sequence[Account] | Sequence[Transfer], context: Any) -> Any:
        async with _answering(context):
            results = await self._results(await self._sent(events, context), context)
            return pb.CreateResponse(results=[_result(result) for result in results])

    async def _sent(self, events: Sequence[Account] | Sequence[Transfer], context: Any) -> Any:
        """The events on their way, behind all that were sent before."""
        if not 0 < len(events) <= MAX_EVENTS:
            raise Problem("invalid-event", f"1 to {MAX_EVENTS} events are taken at once, found {len(events)}.")
        await self._access.principal(context, WRITE, cost=len(events))
        try:
            rows = rows_of(_CODEC, events)
        except ValueError as error:
            raise Problem("invalid-event", f"{error}.") from None
        return self._ingest.put(Events(rows))

    async def _results(self, sent: Any, context: Any) -> list[dict[str, Any]]:
        results = await self._ingest.results_of(sent, asyncio.get_running_loop().time() + _time_left(context))
        if results is None:
            raise _TooLate
        return results

    async def _found(self, table: str, request: Any, context: Any) -> list[dict[str, Any]]:
        if not 0 < len(request.ids) <= MAX_IDS:
            raise Problem("bad-parameter", f"1 to {MAX_IDS} ids are taken at once, found {len(request.ids)}.")
        await self._access.principal(context, READ, cost=len(request.ids))
        wait = _time_left(context)
        ids = [_number(found) for found in request.ids]
        rows = await self._queries.records(table, ids, request.ledger, request.min_sequence, wait)
        known = {int(row["id"]): row for row in rows}
        return [known[identity] for identity in ids if identity in known]


def _time_left(context: Any) -> float:
    """Seconds that a call may wait: till shortly before its deadline, and `WAIT_SECONDS` at most."""
    remaining = context.time_remaining()
    return WAIT_SECONDS if remaining is None else min(WAIT_SECONDS, max(0.0, remaining - DEADLINE_MARGIN_SECONDS))


def _number(message: Any) -> int:
    return int(message.low) | int(message.high) << 64


def _u128(value: Any) -> Any:
    number = int(value)
    return pb.Uint128(low=number & _WORD, high=number >> 64)


def _account(message: Any) -> Account:
    return Account(
        _number(message.id), message.ledger, message.code, message.flags, _number(message.user_data_128),
        message.user_data_64, message.user_data_32, message.timestamp,
    )  # fmt: skip


def _transfer(message: Any) -> Transfer:
    return Transfer(
        id=_number(message.id),
        debit_account_id=_number(message.debit_account_id),
        credit_account_id=_number(message.credit_account_id),
        amount=_number(message.amount),
        ledger=message.ledger,
        code=message.code,
        flags=message.flags,
        pending_id=_number(message.pending_id),
        timeout=message.timeout,
        user_data_128=_number(message.user_data_128),
        user_data_64=message.user_data_64,
        user_data_32=message.user_data_32,
        timestamp=message.timestamp,
    )


def _result(result: dict[str, Any]) -> Any:
    return pb.Result(
        result=result["result"], timestamp=int(result["timestamp"]), shard=result["shard"], sequence=result["sequence"]
    )


def _common(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": _u128(row["id"]), "ledger": int(row["ledger"]), "code": int(row["code"]), "flags": int(row["flags"]),
        "user_data_128": _u128(row["user_data_128"]), "user_data_64": int(row["user_data_64"]),
        "user_data_32": int(row["user_data_32"]), "timestamp": int(row["timestamp"]),
    }  # fmt: skip


def _account_state(row: dict[str, Any]) -> Any:
    balances = {name: _u128(row[name]) for name in _BALANCES}
    sequence = max(int(row["reflected"]), int(row["sequence"]))
    return pb.AccountState(account=pb.Account(**_common(row)), sequence=sequence, **balances)


def _transfer_message(row: dict[str, Any]) -> Any:
    wide = {name: _u128(row[name]) for name in ("debit_account_id", "credit_account_id", "amount", "pending_id")}
    return pb.Transfer(**_common(row), **wide, timeout=int(row["timeout"]))


def _entry(row: dict[str, Any]) -> Any:
    wide = ("transfer_id", "counterparty_account_id", "amount", "pending_id", *_BALANCES)
    return pb.StatementEntry(
        timestamp=int(row["timestamp"]), entry=row["entry"], direction=row["direction"], code=int(row["code"]),
        flags=int(row["flags"]), **{name: _u128(row[name]) for name in wide},
    )  # fmt: skip
