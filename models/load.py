"""Plays a `LoadPlan` through the API or straight to Kafka, at a rate or as fast as it goes, and measures it.

Open loop: with a rate, event i is due at start + i / rate, however slow the answers are, and a latency counts from the
time that the request or frame was due to its acknowledgement (202, or Kafka's acks=all). What cannot be sent in time
waits, and the wait is part of its latency. Without a rate (0) every connection sends as soon as it is free, and latency
counts from sending.

A request is repeated until it is acknowledged, with the same ids and Idempotency-Key, at most `GIVE_UP_SECONDS`; so an
event counts as acknowledged, or as failed, or as never sent, and `LoadProgress.acknowledged` says which for each
payment. Set-up (accounts, then fundings) must be acknowledged completely before the payments start.

Bounds: `connections` requests or `FRAMES_IN_FLIGHT` frames are under way at once; nothing else is queued.

`run_schedule` is the open loop itself: `models.load_profiles` and the benchmarks play other requests by it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import numpy as np
from confluent_kafka import KafkaError, KafkaException
from numpy.typing import NDArray

from infra.kafka import make_producer
from infra.producer_keys import FrameSigner
from infra.registry import schema_ids
from infra.settings import Settings
from models.load_plan import Accounts, LoadPlan, Transfers
from pipelines.catalogue import LEDGER_COMMANDS, PIPELINES
from pipelines.codec import FrameCodec, codec_of
from pipelines.errors import StreambankError
from pipelines.frames import Events, Frame
from pipelines.wire import wrap

__all__ = [
    "ApiClient",
    "ApiTarget",
    "LoadError",
    "LoadProgress",
    "Pace",
    "account_lines",
    "api_session",
    "load_api",
    "load_kafka",
    "run_schedule",
    "transfer_lines",
]

GIVE_UP_SECONDS: Final = 60.0
REQUEST_SECONDS: Final = 30.0
RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
FRAMES_IN_FLIGHT: Final = 64
TICK_SECONDS: Final = 0.005
"""With a rate, Kafka frames are cut this often."""
SETUP_BATCH: Final = 1_000
MAX_FAILURES_KEPT: Final = 5
OVERDRAFT_FLAG: Final = "debits_must_not_exceed_credits"


class LoadError(StreambankError):
    """The load could not be set up or was refused in a way that repeating does not change."""


@dataclass(frozen=True, slots=True)
class Pace:
    """``rate`` in events/s, 0 for as fast as possible; ``seconds`` after which no new request starts (0 for no bound);
    ``batch`` events per request or at most per frame."""

    rate: float = 0.0
    seconds: float = 0.0
    batch: int = 100


@dataclass(frozen=True, slots=True)
class ApiTarget:
    """Where the API is and who we are."""

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    connections: int = 16
    scope: str = "ledger:write"
    """Scopes to ask for, with spaces between."""


@dataclass(slots=True, eq=False)
class LoadProgress:
    """What a load has done so far; written by the load, read by a display in another thread."""

    planned_events: int
    phase: str = "set-up"
    setup_events: int = 0
    setup_done: int = 0
    setup_seconds: float = 0.0
    started: float = 0.0
    """time.perf_counter() when the payments began; 0 before."""
    started_at: float = 0.0
    """The same moment in seconds since the epoch."""
    finished: float = 0.0
    sent_events: int = 0
    acknowledged_events: int = 0
    failed_events: int = 0
    requests: int = 0
    retries: int = 0
    stopping: bool = False
    """Set by whoever watches: start no new payment, finish what is under way."""
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    """What the answers said, where a profile asks for more than the acknowledgement."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, one per acknowledged request or frame."""
    acknowledged: NDArray[np.bool_] = field(init=False)
    """One per planned payment."""

    def __post_init__(self) -> None:
        self.acknowledged = np.zeros(self.planned_events, np.bool_)

    @property
    def seconds(self) -> float:
        """Time since the payments began."""
        if not self.started:
            return 0.0
        return (self.finished or time.perf_counter()) - self.started

    @property
    def events_per_second(self) -> float:
        return self.acknowledged_events / self.seconds if self.seconds > 0 else 0.0

    def latency_ms(self) -> dict[str, float]:
        """p50, p90, p99, p99.9 and max in milliseconds; empty before the first acknowledgement."""
        latencies = np.array(self.latencies)
        if not len(latencies):
            return {}
        p50, p90, p99, p999 = np.percentile(latencies, (50, 90, 99, 99.9)) * 1e3
        found = {"p50": p50, "p90": p90, "p99": p99, "p99.9": p999, "max": latencies.max() * 1e3}
        return {name: round(float(value), 3) for name, value in found.items()}

    def fail(self, events: int, why: str) -> None:
        self.failed_events += events
        if len(self.failures) < MAX_FAILURES_KEPT:
            self.failures.append(why)

    def as_json(self) -> dict[str, Any]:
        return {
            "planned_events": self.planned_events,
            "sent_events": self.sent_events,
            "acknowledged_events": self.acknowledged_events,
            "failed_events": self.failed_events,
            "requests": self.requests,
            "retries": self.retries,
            "seconds": round(self.seconds, 3),
            "events_per_second": round(self.events_per_second, 1),
            "latency_ms": self.latency_ms(),
            "setup_events": self.setup_events,
            "setup_seconds": round(self.setup_seconds, 3),
            "outcomes": dict(self.outcomes),
            "failures": self.failures,
        }


# --- through the API


async def load_api(plan: LoadPlan, target: ApiTarget, pace: Pace, progress: LoadProgress) -> None:
    """Send the plan as NDJSON requests of ``pace.batch`` events (a batch of 1 is one JSON object).

    Raises `LoadError` when the API refuses the client or the set-up is not acknowledged; a failed payment is counted.
    """
    async with api_session(target) as session:
        client = ApiClient(session, target, progress)
        await client.refresh_token()

        progress.setup_events = len(plan.accounts) + len(plan.fundings)
        setup_start = time.perf_counter()
        for events in (plan.accounts, plan.fundings):
            pace_of_setup, send = Pace(batch=SETUP_BATCH), _sender(client, events, plan.payments.run)
            await run_schedule(len(events), pace_of_setup, target.connections, send, progress, setup=True)
            if progress.failed_events:
                raise LoadError(f"set-up: {progress.failed_events} events not acknowledged: {progress.failures[0]}")
        progress.setup_seconds = time.perf_counter() - setup_start
        send = _sender(client, plan.payments, plan.payments.run)
        await run_schedule(len(plan.payments), pace, target.connections, send, progress)


def api_session(target: ApiTarget) -> aiohttp.ClientSession:
    """The connections of a load."""
    return aiohttp.ClientSession(
        target.url,
        connector=aiohttp.TCPConnector(limit=target.connections),
        timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
    )


Send = Callable[[int, int], Awaitable[str | None]]
"""Sends events [first, stop) and waits for the answer; None, or why they were not acknowledged."""


async def run_schedule(
    count: int, pace: Pace, clients: int, send: Send, progress: LoadProgress, *, setup: bool = False
) -> None:
    """Play ``count`` events: clients take the next request in turn, wait until it is due, send it and wait for its
    answer. With a rate, what no client was free to send in time waits, and its latency counts from when it was due."""
    start = _begin(progress, setup)
    requests = iter(range(0, count, pace.batch))

    async def client() -> None:
        for first in requests:
            stop = min(first + pace.batch, count)
            due = start + stop / pace.rate if pace.rate else time.perf_counter()
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if progress.stopping or (pace.seconds and time.perf_counter() - start >= pace.seconds):
                return
            if not setup:
                progress.sent_events += stop - first
            why = await send(first, stop)
            if why is not None:
                progress.fail(stop - first, why)
                if setup:
                    return
            elif setup:
                progress.setup_done += stop - first
            else:
                progress.latencies.append(time.perf_counter() - due)
                progress.acknowledged_events += stop - first
                progress.acknowledged[first:stop] = True

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    _end(progress, setup)


def _sender(client: ApiClient, events: Accounts | Transfers, run: int) -> Send:
    """Sends parts of the plan; 202 is enough."""

    async def send(first: int, stop: int) -> str | None:
        part = events.take(slice(first, stop))
        path, lines = _request(part)
        kind = "account" if isinstance(part, Accounts) else f"transfer{int(part.code[0])}"
        headers = {
            "Content-Type": "application/json" if len(lines) == 1 else "application/x-ndjson",
            "Idempotency-Key": f'"load-{run}-{kind}-{first}-{len(lines)}"',
        }
        why, _ = await client.post(path, "\n".join(lines).encode(), headers)
        return why

    return send


class ApiClient:
    """One client of the API: token, requests, and repeating what may be repeated."""

    def __init__(self, session: aiohttp.ClientSession, target: ApiTarget, progress: LoadProgress) -> None:
        self._session = session
        self._target = target
        self._progress = progress
        self._token = ""
        self._token_until = 0.0
        self._lock = asyncio.Lock()

    async def refresh_token(self, refused: str = "") -> str:
        """A token that holds for some time; a new one if ``refused`` is the current one."""
        async with self._lock:
            if self._token != refused and time.monotonic() < self._token_until:
                return self._token
            try:
                async with self._session.post(
                    "/oauth/token",
                    data={
                        "grant_type": "client_credentials",
                        "client_id": self._target.client_id,
                        "client_secret": self._target.client_secret,
                        "scope": self._target.scope,
                    },
                ) as response:
                    body = await response.text()
                    if response.status != 200:
                        raise LoadError(f"{self._target.url}/oauth/token: {response.status} {body[:300]}")
                    answer = await response.json()
            except (aiohttp.ClientConnectionError, TimeoutError) as error:
                if self._token:
                    return self._token  # the api is away; the request itself will be repeated
                raise LoadError(
                    f"API at {self._target.url} does not answer ({error!r}); start it with `streambank api`"
                ) from error
            self._token = answer["access_token"]
            self._token_until = time.monotonic() + 0.8 * float(answer["expires_in"])
            return self._token

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str], expected: tuple[int, ...] = (202,)
    ) -> tuple[str | None, bytes]:
        """Send one request until it is answered with one of ``expected``; (None, the answer's body), or why it never
        was."""
        give_up = time.monotonic() + GIVE_UP_SECONDS
        attempt, refused_token = 0, ""
        while True:
            token = await self.refresh_token(refused_token)
            self._progress.requests += 1
            wait = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
            try:
                async with self._session.post(
                    path, data=body, headers={**headers, "Authorization": f"Bearer {token}"}
                ) as response:
                    if response.status in expected:
                        return None, await response.read()
                    text = (await response.text())[:500]
                    why = f"{path}: {response.status} {text}"
                    if response.status == 401 and token != refused_token:
                        refused_token, wait = token, 0.0
                    elif response.status not in (409, 429, 502, 503, 504):
                        return why, b""
                    retry_after = response.headers.get("Retry-After", "")
                    if retry_after.isdigit():
                        wait = min(float(retry_after), 5.0)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
                why = f"{path}: {error!r}"
            if time.monotonic() + wait > give_up:
                return f"{why} (given up after {attempt + 1} attempts)", b""
            attempt += 1
            self._progress.retries += 1
            await asyncio.sleep(wait)


def _request(events: Accounts | Transfers) -> tuple[str, list[str]]:
    if isinstance(events, Accounts):
        return "/v1/accounts", account_lines(events)
    return "/v1/transfers", transfer_lines(events)


def account_lines(accounts: Accounts) -> list[str]:
    """One JSON object per account, as the API takes them."""
    columns = (
        accounts.id.tolist(),
        accounts.ledger.tolist(),
        accounts.code.tolist(),
        accounts.must_not_overdraw.tolist(),
    )
    return [
        f'{{"id":"{number}","ledger":{ledger},"code":{code},"flags":{flags}}}'
        for number, ledger, code, limited in zip(*columns, strict=True)
        for flags in (f'["{OVERDRAFT_FLAG}"]' if limited else "[]",)
    ]


def transfer_lines(transfers: Transfers) -> list[str]:
    """One JSON object per transfer, as the API takes them."""
    run = transfers.run << 64
    columns = (
        transfers.number, transfers.debit_account_id, transfers.credit_account_id, transfers.amount,
        transfers.ledger, transfers.code, transfers.simulated_at,
    )  # fmt: skip
    return [
        f'{{"id":"{run | number}","debit_account_id":"{debit}","credit_account_id":"{credit}","amount":"{amount}",'
        f'"ledger":{ledger},"code":{code},"user_data_64":"{simulated_at}"}}'
        for number, debit, credit, amount, ledger, code, simulated_at in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


# --- straight to Kafka


def load_kafka(plan: LoadPlan, config: Settings, pace: Pace, progress: LoadProgress) -> None:
    """Produce the plan as frames of at most ``pace.batch`` events, each to its shard's partition, with acks=all.

    Within a shard, frames are in the plan's order. Raises `LoadError` when the set-up is not acknowledged.
    """
    sender = _KafkaFrames(config, progress)
    progress.setup_events = len(plan.accounts) + len(plan.fundings)
    setup_start = time.perf_counter()
    for events in (plan.accounts, plan.fundings):
        sender.run(events, Pace(batch=SETUP_BATCH), setup=True)
        if progress.failed_events:
            raise LoadError(f"set-up: {progress.failed_events} events not acknowledged: {progress.failures[0]}")
    progress.setup_seconds = time.perf_counter() - setup_start
    sender.run(plan.payments, pace, setup=False)


class _KafkaFrames:
    """Cuts events into frames and produces them."""

    def __init__(self, config: Settings, progress: LoadProgress) -> None:
        self._topic = config.kafka_topic(LEDGER_COMMANDS.name)
        self._signer = FrameSigner(config, LEDGER_COMMANDS, "load")
        self._schema_id = schema_ids([LEDGER_COMMANDS], config)[LEDGER_COMMANDS.name]
        self._codec = codec_of(LEDGER_COMMANDS.name)
        self._progress = progress
        self._in_flight = threading.BoundedSemaphore(FRAMES_IN_FLIGHT)
        # batches of a millisecond: as many frames as the rate asks for, in fewer requests
        self._producer = make_producer(config, "load", GIVE_UP_SECONDS, linger_ms=1)

    def run(self, events: Accounts | Transfers, pace: Pace, *, setup: bool) -> None:
        batch = min(pace.batch, PIPELINES["ledger"].max_frame_events)
        start = _begin(self._progress, setup)
        for first, stop in _slices(len(events), pace, batch, start):
            if self._progress.stopping:
                break
            rows = np.arange(first, stop)
            shards = events.take(slice(first, stop)).shard
            for shard in np.unique(shards).tolist():
                for frame_rows in _chunks(rows[shards == shard], batch):
                    due = start + (int(frame_rows[-1]) + 1) / pace.rate if pace.rate else time.perf_counter()
                    self._send(events.take(frame_rows), shard, frame_rows, due, setup)
            self._producer.poll(0)
        left = self._producer.flush(GIVE_UP_SECONDS)
        if left:
            raise LoadError(f"Kafka at {self._topic}: {left} frames not acknowledged within {GIVE_UP_SECONDS:.0f} s")
        _end(self._progress, setup)

    def _send(self, events: Accounts | Transfers, shard: int, rows: NDArray[np.int64], due: float, setup: bool) -> None:
        progress = self._progress
        trace = f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"
        frame = Frame(LEDGER_COMMANDS.name, shard, 0, time.time_ns() // 1000, trace, _as_events(self._codec, events))
        value = wrap(self._schema_id, self._codec.encode(frame))

        def delivered(error: KafkaError | None, message: Any) -> None:
            del message
            self._in_flight.release()
            if error is not None:
                progress.fail(len(rows), f"shard {shard}: {error.str()}")
            elif setup:
                progress.setup_done += len(rows)
            else:
                progress.latencies.append(time.perf_counter() - due)
                progress.acknowledged_events += len(rows)
                progress.acknowledged[rows] = True

        while not self._in_flight.acquire(blocking=False):
            self._producer.poll(0.01)
        if not setup:
            progress.sent_events += len(rows)
        progress.requests += 1
        try:
            self._producer.produce(
                self._topic, value=value, key=str(shard).encode(), partition=shard,
                headers=self._signer.headers(shard, value), on_delivery=delivered,
            )  # fmt: skip
        except KafkaException as error:
            self._in_flight.release()
            raise LoadError(f"Kafka refused a frame of {len(value)} bytes for {self._topic}: {error}") from error


def _slices(count: int, pace: Pace, batch: int, start: float) -> Iterator[tuple[int, int]]:
    """Runs of events that are due, until all are sent or the time is over."""
    first = 0
    while first < count:
        elapsed = time.perf_counter() - start
        if pace.seconds and elapsed >= pace.seconds:
            return
        due = min(count, int(elapsed * pace.rate)) if pace.rate else count
        stop = min(due, first + 8 * batch)
        if stop > first:
            yield first, stop
            first = stop
        else:
            time.sleep(TICK_SECONDS)


def _chunks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _as_events(codec: FrameCodec, events: Accounts | Transfers) -> Events:
    """Rows of ledger.commands; all fields that are not set here are 0, their default."""
    rows = codec.new_rows(len(events))
    if isinstance(events, Accounts):
        event_type = codec.event_type("CreateAccount")
        account = rows.view(event_type.dtype)[:, 0]
        account["kind"] = event_type.kind
        account["id_lo"] = events.id
        account["ledger"] = events.ledger
        account["code"] = events.code
        overdraft = 1 << event_type.field("flags").flags.index(OVERDRAFT_FLAG)
        account["flags"] = np.where(events.must_not_overdraw, overdraft, 0)
        return Events(rows)
    event_type = codec.event_type("CreateTransfer")
    transfer = rows.view(event_type.dtype)[:, 0]
    transfer["kind"] = event_type.kind
    transfer["id_lo"] = events.number
    transfer["id_hi"] = events.run
    transfer["debit_account_id_lo"] = events.debit_account_id
    transfer["credit_account_id_lo"] = events.credit_account_id
    transfer["amount_lo"] = events.amount
    transfer["ledger"] = events.ledger
    transfer["code"] = events.code
    transfer["user_data_64"] = events.simulated_at
    return Events(rows)


# --- both


def _begin(progress: LoadProgress, setup: bool) -> float:
    """Note the start of a phase; returns time.perf_counter()."""
    now = time.perf_counter()
    if not setup:
        progress.phase, progress.started, progress.started_at = "payments", now, time.time()
    return now


def _end(progress: LoadProgress, setup: bool) -> None:
    if not setup:
        progress.phase, progress.finished = "done", time.perf_counter()
