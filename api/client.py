"""A typed client of the ledger for Python programs: batches by itself, repeats safely, gives a result per event.

    with LedgerClient("http://127.0.0.1:8080", client_id, secret) as ledger:
        transfer = Transfer(id=7, debit_account_id=1, credit_account_id=2, amount=100, ledger=978, code=1)
        [result] = ledger.create_transfers([transfer])
        assert result.ok

`AsyncLedgerClient` is the same with ``await``. What it promises:

- **Batches.** Calls that come while a request is on its way travel together in the next one, of up to `BATCH_EVENTS`.
  A list of any length may be given; it is sent in pieces, one after another, cut between linked chains.
- **Order.** Events of one call are applied in their order. Calls that run at the same time have no order between them.
- **Repeats.** A request that got no answer (connection lost, 429, 5xx) is sent again with the same Idempotency-Key, for
  up to ``patience_seconds``; the ledger applies an id once. When the ledger's results did not come in time, the events
  are sent again to ask for them: those that had been created are then answered ``exists``, which is ``ok`` too, and
  those that had failed for a passing reason ``id_already_failed``. Of a linked chain that is there already the first
  member is answered ``exists`` and the others ``linked_event_failed``.
- **Many.** Accounts, transfers and results are none of the garbage collector's business, however many live.
- **Numbers.** Amounts are integers of the ledger's minor unit; what does not fit a field raises `ValueError` before
  anything is sent.

Errors: `LedgerApiError` (a problem that the API describes, `slug` names it), `LedgerUnavailable` (patience is over; the
events may or may not have been applied; the same call again is safe).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from operator import attrgetter
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import uuid4

import httpx
import msgspec
import numpy as np

from api.avro_files import container, container_events, ledger_answer_codec
from pipelines.catalogue import LEDGER_COMMANDS
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import FrameError, StreambankError
from pipelines.frames import Rows
from pipelines.ledger.records import AccountFlags, TransferFlags

__all__ = [
    "Account",
    "AccountFlags",
    "AsyncLedgerClient",
    "LedgerApiError",
    "LedgerClient",
    "LedgerUnavailable",
    "Result",
    "Transfer",
    "TransferFlags",
]

BATCH_EVENTS: Final = 5_000
"""Most events of a request: for more the API does not wait for results."""
WAIT_SECONDS: Final = 10
TOKEN_MARGIN_SECONDS: Final = 30.0
FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 5.0
SCOPES: Final = "ledger:read ledger:write"

_T = TypeVar("_T")
_CREATE_ACCOUNT: Final = 0
_CREATE_TRANSFER: Final = 1
_WORD: Final = 2**64 - 1
_REPEATABLE: Final = frozenset({408, 409, 429, 500, 502, 503, 504})


class LedgerApiError(StreambankError):
    """The API refused; ``slug`` names the problem type, see docs/reference/api.md."""

    def __init__(self, status: int, slug: str, detail: str, problem: dict[str, Any]) -> None:
        super().__init__(f"{status} {slug}: {detail}")
        self.status = status
        self.slug = slug
        self.detail = detail
        self.problem = problem


class LedgerUnavailable(StreambankError):  # noqa: N818 - a state, named for what it is
    """No answer in time; calling again with the same events is safe."""


class Account(msgspec.Struct, frozen=True, gc=False):
    """A CreateAccount; fields as in docs/reference/ledger.md."""

    id: int
    ledger: int
    code: int
    flags: int = 0
    user_data_128: int = 0
    user_data_64: int = 0
    user_data_32: int = 0
    timestamp: int = 0


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """A CreateTransfer; fields as in docs/reference/ledger.md. A post or a void names the pending transfer's ledger."""

    id: int
    debit_account_id: int = 0
    credit_account_id: int = 0
    amount: int = 0
    ledger: int = 0
    code: int = 0
    flags: int = 0
    pending_id: int = 0
    timeout: int = 0
    user_data_128: int = 0
    user_data_64: int = 0
    user_data_32: int = 0
    timestamp: int = 0


class Result(msgspec.Struct, frozen=True, gc=False):
    """What the ledger made of an event. ``result``: ``created`` or the first check that failed; ``refused`` when the
    API did not pass it on. ``sequence``: what a query of the shard must have reached to show the effect."""

    id: int
    result: str
    timestamp: int
    shard: int
    sequence: int

    @property
    def ok(self) -> bool:
        """Whether the event is in the ledger now, by this call or by an earlier one."""
        return self.result in ("created", "exists")


class _Answered(msgspec.Struct, gc=False):
    """What is read of a result; its id is that of the event at ``record``."""

    record: int
    result: str
    timestamp: int | str
    shard: int
    sequence: int


class _Answer(msgspec.Struct):
    accepted: int = 0
    refused: int = 0
    results: list[_Answered] | None = None


@dataclass(slots=True, eq=False)
class _Call:
    """Events of one call, or a piece of it."""

    rows: Rows
    ids: list[int]
    alone: bool
    answered: asyncio.Future[list[Result]]


def rows_of(codec: FrameCodec, events: Sequence[Account] | Sequence[Transfer]) -> Rows:
    """The events as rows of ledger.commands, int64 (n, words). Raises ValueError for a value out of a field's range."""
    kind = _CREATE_ACCOUNT if isinstance(events[0], Account) else _CREATE_TRANSFER
    event_type = codec.event_types[kind]
    rows = codec.new_rows(len(events))
    view = rows.view(event_type.dtype)[:, 0]
    view["kind"] = kind
    for name in type(events[0]).__struct_fields__:
        values = list(map(attrgetter(name), events))
        if not any(values):
            continue  # most fields of most events
        field = event_type.field(name)
        column = np.array(values)
        if column.dtype == np.int64:
            smallest, largest = int(column.min()), int(column.max())
        elif all(isinstance(value, int) for value in values):
            smallest, largest = min(values), max(values)
        else:
            wrong = next(value for value in values if not isinstance(value, int))
            raise ValueError(f"{event_type.name}.{name}: {wrong!r} found, it must be an integer")
        if smallest < 0 or largest > (2**128 - 1 if field.storage == "u128" else field.maximum):
            raise ValueError(f"{event_type.name}.{name}: {smallest} to {largest} found, out of range")
        if field.storage != "u128":
            view[name] = column
        elif largest <= _WORD:
            view[f"{name}_lo"] = column if column.dtype == np.int64 else np.array(values, np.uint64)
        else:
            view[f"{name}_lo"] = np.array([value & _WORD for value in values], np.uint64)
            view[f"{name}_hi"] = np.array([value >> 64 for value in values], np.uint64)
    return rows


class AsyncLedgerClient:
    """The client for asyncio; an async context manager. ``in_flight``: requests at a time, at most. ``transport``: of
    httpx, where certificates or proxies need one."""

    def __init__(
        self,
        url: str,
        client_id: str,
        secret: str,
        *,
        in_flight: int = 4,
        patience_seconds: float = 60.0,
        batch_events: int = BATCH_EVENTS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not 1 <= batch_events <= BATCH_EVENTS:
            raise ValueError(f"batch_events: 1 to {BATCH_EVENTS}, found {batch_events}")
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(10.0, read=WAIT_SECONDS + 20.0),
            limits=httpx.Limits(max_connections=in_flight + 4, max_keepalive_connections=in_flight + 4),
            transport=transport,
        )
        self._credentials = (client_id, secret)
        self._patience = patience_seconds
        self._batch_events = batch_events
        self._in_flight = in_flight
        self._codec = codec_of(LEDGER_COMMANDS.name)
        self._linked = {kind: 1 << event_type.field("flags").flags.index("linked")
                        for kind, event_type in enumerate(self._codec.event_types)}  # fmt: skip
        self._imported = {kind: 1 << event_type.field("flags").flags.index("imported")
                          for kind, event_type in enumerate(self._codec.event_types)}  # fmt: skip
        self._flags_word = {kind: event_type.field("flags").word
                            for kind, event_type in enumerate(self._codec.event_types)}  # fmt: skip
        self._waiting: deque[_Call] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._token: tuple[str, float] | None = None
        self._token_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for what was called, then lets the connections go."""
        while self._senders:
            await asyncio.gather(*self._senders, return_exceptions=True)
        await self._http.aclose()

    async def create_accounts(self, accounts: Sequence[Account]) -> list[Result]:
        """One result per account, in their order."""
        return await self._create(accounts)

    async def create_transfers(self, transfers: Sequence[Transfer]) -> list[Result]:
        """One result per transfer, in their order."""
        return await self._create(transfers)

    async def create_rows(self, rows: Rows) -> list[Result]:
        """The same for rows of ledger.commands (`pipelines.frames`), accounts and transfers in one order."""
        rows = np.ascontiguousarray(rows)
        results: list[Result] = []
        for start, stop in self._pieces(rows):
            piece = rows[start:stop]
            ids = self._ids(piece)
            flags = self._flags(piece)
            alone = bool(flags[-1] & self._linked[int(piece[-1, 0])]) or bool(
                (flags & np.array([self._imported[kind] for kind in piece[:, 0].tolist()])).any()
            )
            call = _Call(piece, ids, alone, asyncio.get_running_loop().create_future())
            self._waiting.append(call)
            self._pump()
            results += await call.answered
        return results

    async def account(self, account_id: int, *, ledger: int | None = None, min_sequence: int = 0) -> dict[str, Any]:
        """The account with its balances, integers as integers; ``min_sequence`` (of a `Result`) waits for a write."""
        return await self._get(f"/v1/accounts/{account_id}", ledger, min_sequence)

    async def transfer(self, transfer_id: int, *, ledger: int | None = None, min_sequence: int = 0) -> dict[str, Any]:
        """The transfer as applied."""
        return await self._get(f"/v1/transfers/{transfer_id}", ledger, min_sequence)

    async def _create(self, events: Sequence[Account] | Sequence[Transfer]) -> list[Result]:
        return await self.create_rows(rows_of(self._codec, events)) if events else []

    def _flags(self, rows: Rows) -> Any:
        words = np.array([self._flags_word[0], self._flags_word[1]])[rows[:, 0]]
        return rows[np.arange(len(rows)), words]

    def _ids(self, rows: Rows) -> list[int]:
        # the id is the first field of both kinds
        low, high = rows[:, 1].view(np.uint64).tolist(), rows[:, 2].view(np.uint64).tolist()
        return [lo | hi << 64 for lo, hi in zip(low, high, strict=True)]

    def _pieces(self, rows: Rows) -> list[tuple[int, int]]:
        """Runs of at most a batch, cut between chains."""
        if len(rows) <= self._batch_events:
            return [(0, len(rows))]
        linked = np.array([self._linked[0], self._linked[1]])[rows[:, 0]]
        ends = np.flatnonzero((self._flags(rows) & linked) == 0) + 1
        pieces, start = [], 0
        while len(rows) - start > self._batch_events:
            at = int(np.searchsorted(ends, start + self._batch_events, side="right")) - 1
            stop = int(ends[at]) if at >= 0 else start
            if stop <= start:
                raise ValueError(f"the linked chain at event {start} has more than {self._batch_events} events")
            pieces.append((start, stop))
            start = stop
        return [*pieces, (start, len(rows))]

    def _pump(self) -> None:
        while self._waiting and len(self._senders) < self._in_flight:
            sender = asyncio.create_task(self._send(self._taken()))
            self._senders.add(sender)
            sender.add_done_callback(self._sent)

    def _sent(self, sender: asyncio.Task[None]) -> None:
        self._senders.discard(sender)
        self._pump()

    def _taken(self) -> list[_Call]:
        """The calls of the next request."""
        taken = [self._waiting.popleft()]
        events = len(taken[0].rows)
        while self._waiting and not (taken[0].alone or self._waiting[0].alone):
            events += len(self._waiting[0].rows)
            if events > self._batch_events:
                break
            taken.append(self._waiting.popleft())
        return taken

    async def _send(self, calls: list[_Call]) -> None:
        try:
            rows = calls[0].rows if len(calls) == 1 else np.concatenate([call.rows for call in calls])
            ids = [identity for call in calls for identity in call.ids]
            results = await self._results(container(self._codec, rows), ids)
            start = 0
            for call in calls:
                if not call.answered.done():
                    call.answered.set_result(results[start : start + len(call.ids)])
                start += len(call.ids)
        except (Exception, asyncio.CancelledError) as error:
            for call in calls:
                if not call.answered.done():
                    call.answered.set_exception(
                        error if isinstance(error, Exception) else LedgerUnavailable("the client was closed")
                    )

    async def _results(self, body: bytes, ids: list[int]) -> list[Result]:
        deadline = time.monotonic() + self._patience
        while True:
            headers = {
                "Content-Type": "application/avro", "Accept": "application/avro, application/json",
                "Idempotency-Key": str(uuid4()), "Prefer": f"wait={WAIT_SECONDS}",
            }  # fmt: skip
            response = await self._request("POST", "/v1/ledger/events", deadline, content=body, headers=headers)
            if response.headers["Content-Type"] == "application/avro":
                return _results_in(response.content, ids)
            answer = msgspec.json.decode(response.content, type=_Answer)
            if answer.results is not None:
                break
            if time.monotonic() > deadline:
                raise LedgerUnavailable(
                    f"the ledger did not answer {len(ids)} accepted events within {self._patience:g} s"
                )
        found: list[Result | None] = [None] * len(ids)
        for row in answer.results:
            found[row.record] = Result(ids[row.record], row.result, int(row.timestamp), row.shard, row.sequence)
        return [
            Result(identity, "refused", 0, -1, 0) if result is None else result
            for identity, result in zip(ids, found, strict=True)
        ]

    async def _get(self, path: str, ledger: int | None, min_sequence: int) -> dict[str, Any]:
        parameters = {name: value for name, value in (("ledger", ledger), ("min_sequence", min_sequence)) if value}
        response = await self._request(
            "GET", path, time.monotonic() + self._patience, params=parameters, headers={"Prefer": "wait=2"}
        )
        return {name: _plain(name, value) for name, value in response.json().items()}

    async def _request(self, method: str, path: str, deadline: float, **parts: Any) -> httpx.Response:
        """The response of a request that succeeded, after as many attempts as patience allows."""
        pause = FIRST_PAUSE_SECONDS
        refreshed = False
        while True:
            wait, reason = pause, ""
            try:
                parts["headers"]["Authorization"] = f"Bearer {await self._bearer(deadline)}"
                response = await self._http.request(method, path, **parts)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return response
                if response.status_code == 401 and not refreshed:
                    refreshed, self._token = True, None
                    continue
                problem = _problem(response)
                if response.status_code not in _REPEATABLE or problem.slug == "ambiguous-id":
                    raise problem
                reason = str(problem)
                wait = max(wait, _seconds(response.headers.get("Retry-After")))
            if time.monotonic() + wait > deadline:
                raise LedgerUnavailable(f"{method} {path}: no answer within {self._patience:g} s; last: {reason}")
            await asyncio.sleep(wait * (0.5 + random.random() / 2))  # noqa: S311 - spreads attempts
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _bearer(self, deadline: float) -> str:
        async with self._token_lock:
            if self._token is None or self._token[1] < time.monotonic():
                asked = time.monotonic()
                response = await self._http.post(
                    "/oauth/token", data={"grant_type": "client_credentials"}, auth=self._credentials
                )
                if response.status_code in _REPEATABLE and time.monotonic() < deadline:
                    raise httpx.TransportError(f"token: {response.status_code}")
                if not response.is_success:
                    raise _problem(response)
                found = response.json()
                margin = min(TOKEN_MARGIN_SECONDS, found["expires_in"] / 2)
                self._token = (found["access_token"], asked + found["expires_in"] - margin)
            return self._token[0]


class LedgerClient:
    """The same for programs without asyncio. Safe to share between threads, whose calls then travel together."""

    def __init__(self, url: str, client_id: str, secret: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ledger-client", daemon=True)
        self._thread.start()
        self._client: AsyncLedgerClient = self._run(self._open(url, client_id, secret, options))

    @staticmethod
    async def _open(url: str, client_id: str, secret: str, options: dict[str, Any]) -> AsyncLedgerClient:
        return AsyncLedgerClient(url, client_id, secret, **options)

    def _run(self, call: Coroutine[Any, Any, _T]) -> _T:
        running: Future[_T] = asyncio.run_coroutine_threadsafe(call, self._loop)
        return running.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what was called, then lets the connections go."""
        if not self._loop.is_closed():
            self._run(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def create_accounts(self, accounts: Sequence[Account]) -> list[Result]:
        """One result per account, in their order."""
        return self._run(self._client.create_accounts(accounts))

    def create_transfers(self, transfers: Sequence[Transfer]) -> list[Result]:
        """One result per transfer, in their order."""
        return self._run(self._client.create_transfers(transfers))

    def create_rows(self, rows: Rows) -> list[Result]:
        """The same for rows of ledger.commands."""
        return self._run(self._client.create_rows(rows))

    def account(self, account_id: int, *, ledger: int | None = None, min_sequence: int = 0) -> dict[str, Any]:
        """The account with its balances."""
        return self._run(self._client.account(account_id, ledger=ledger, min_sequence=min_sequence))

    def transfer(self, transfer_id: int, *, ledger: int | None = None, min_sequence: int = 0) -> dict[str, Any]:
        """The transfer as applied."""
        return self._run(self._client.transfer(transfer_id, ledger=ledger, min_sequence=min_sequence))


def _results_in(file: bytes, ids: list[int]) -> list[Result]:
    """The results of all events of a write."""
    codec = ledger_answer_codec()
    rows = container_events(codec, file).rows
    account, transfer = codec.event_types
    results = rows.view(account.dtype)[:, 0]  # both kinds have the same fields
    if not np.array_equal(results["record"], np.arange(len(ids))):
        results = results[np.argsort(results["record"])]
        if not np.array_equal(results["record"], np.arange(len(ids))):
            raise FrameError("bad_count", f"{len(results)} results of {len(ids)} events")
    of_accounts, of_transfers = (
        np.array(kind.field("result").symbols, object).take(results["result"], mode="clip")
        for kind in (account, transfer)
    )
    names = np.where(results["kind"] == account.kind, of_accounts, of_transfers)
    columns = (results[name].tolist() for name in ("timestamp", "shard", "sequence"))
    return list(map(Result, ids, names.tolist(), *columns))


def _problem(response: httpx.Response) -> LedgerApiError:
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    slug = str(problem.get("type", problem.get("error", ""))).removeprefix("/problems/")
    detail = str(problem.get("detail", problem.get("error_description", response.text[:200])))
    return LedgerApiError(response.status_code, slug, detail, problem)


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isascii() and text.isdigit() else 0.0


def _plain(name: str, value: Any) -> Any:
    """Integers that JSON carries as text."""
    return int(value) if name != "flags" and isinstance(value, str) and value.isascii() and value.isdigit() else value
