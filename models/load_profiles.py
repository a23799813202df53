"""What `streambank load` plays besides the simulator's transfers: payments, orders and card transactions.

Each profile makes its events from their number alone, so that a run repeats itself, and says what became of them:
payments by their final status and orders by their report (`Prefer: wait`), card transactions by the scorer's decision.
A latency therefore counts from when an event was due until its outcome was known, not until it was acknowledged. The
schedule, the repeating and the bounds are those of `models.load`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from confluent_kafka import Consumer, TopicPartition

from infra.kafka import kafka_options, make_producer, watermarks
from infra.registry import schema_ids
from infra.settings import Settings
from models.load import ApiClient, ApiTarget, LoadError, LoadProgress, Pace, api_session, run_schedule
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_SHARDS, FRAUD_TRANSACTIONS
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.wire import unwrap, wrap

__all__ = ["SCOPES", "TRADERS", "load_fraud", "load_orders", "load_payments", "order", "payment", "payment_accounts"]

LEDGERS: Final = (700, 701, 702, 703)
"""All four shards work."""
PAYERS: Final = 50
FIRST_ACCOUNT: Final = 7_000_000_000_000
"""Ids are unique in a shard, whatever the ledger: others have the small ones."""
SYMBOLS: Final = 16
TRADERS: Final = 4
CUSTOMERS: Final = 5_000
TERMINALS: Final = 10_000
WAIT_SECONDS: Final = 20
DECISION_SECONDS: Final = 60.0
KAFKA_SECONDS: Final = 20.0


SCOPES: Final = {
    "transfers": ("ledger:write",), "payments": ("ledger:write", "payments:write"), "orders": ("orders:write",),
    "fraud": (),
}  # fmt: skip
"""What the client of a profile needs."""


# --- through the API --------------------------------------------------------------------------------------------------


async def load_payments(target: ApiTarget, pace: Pace, run: int, progress: LoadProgress) -> None:
    """Payments one by one to their final status. Accounts are opened first; payers may overdraw, so that none is short
    of funds. Raises `LoadError` when that fails or the API refuses the client."""
    async with api_session(target) as session:
        client = ApiClient(session, target, progress)
        await client.refresh_token()
        await _open_accounts(client, progress)

        async def send(first: int, stop: int) -> str | None:
            del stop
            body = json.dumps(payment(run, first)).encode()
            why, answer = await client.post("/v1/payments", body, _headers(f"load-{run}-payment-{first}"), _ANSWERED)
            if why is None:
                progress.outcomes[json.loads(answer)["status"]] += 1
            return why

        await run_schedule(progress.planned_events, _one_by_one(pace), target.connections, send, progress)


async def load_orders(target: ApiTarget, pace: Pace, run: int, progress: LoadProgress) -> None:
    """Limit orders one by one to their first report; each second one takes the one before, so that books stay small."""
    async with api_session(target) as session:
        client = ApiClient(session, target, progress)
        await client.refresh_token()

        async def send(first: int, stop: int) -> str | None:
            del stop
            body = json.dumps(order(run, first)).encode()
            why, answer = await client.post("/v1/orders", body, _headers(f"load-{run}-order-{first}"), _ANSWERED)
            if why is None:
                results = json.loads(answer).get("results")
                progress.outcomes[results[0]["exec_type"] if results else "ACCEPTED"] += 1
            return why

        await run_schedule(progress.planned_events, _one_by_one(pace), target.connections, send, progress)


_ANSWERED: Final = (200, 201, 202)


def payment_accounts() -> list[dict[str, Any]]:
    """The accounts of all payments, as the API takes them."""
    return [
        {"type": "CreateAccount", "id": FIRST_ACCOUNT + number, "ledger": ledger, "code": 1}
        for ledger in LEDGERS
        for number in range(2 * PAYERS)
    ]


def payment(run: int, number: int) -> dict[str, Any]:
    """Payment ``number`` of a run, as the API takes it."""
    return {
        "payer_account_id": FIRST_ACCOUNT + number % PAYERS,
        "payee_account_id": FIRST_ACCOUNT + PAYERS + number % PAYERS,
        "ledger": LEDGERS[number % len(LEDGERS)], "currency": "EUR", "amount": 1 + number % 1000,
        "reference": f"{run}-{number}",
    }  # fmt: skip


def order(run: int, number: int) -> dict[str, Any]:
    """Order ``number`` of a run, as the API takes it."""
    return {
        "order_id": str((run & 0x7FFFFF) << 40 | number + 1), "account": f"load-{number % TRADERS}",
        "symbol": f"LOAD{number // 2 % SYMBOLS}", "side": "SELL" if number % 2 else "BUY", "price": 100, "quantity": 1,
    }  # fmt: skip


def _one_by_one(pace: Pace) -> Pace:
    return Pace(rate=pace.rate, seconds=pace.seconds, batch=1)


def _headers(key: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Idempotency-Key": key, "Prefer": f"wait={WAIT_SECONDS}"}


async def _open_accounts(client: ApiClient, progress: LoadProgress) -> None:
    """Those that are there stay as they are."""
    accounts = payment_accounts()
    progress.setup_events = len(accounts)
    began = time.perf_counter()
    why, answer = await client.post(
        "/v1/ledger/events", json.dumps(accounts).encode(), _headers(f"load-accounts-{time.time_ns()}"), (200, 201)
    )
    if why is not None:
        raise LoadError(f"set-up: {why}; is the ledger job running?")
    wrong = {found["result"] for found in json.loads(answer)["results"]} - {"created", "exists"}
    if wrong:
        raise LoadError(f"set-up: accounts of the load were refused: {', '.join(sorted(wrong))}")
    progress.setup_done, progress.setup_seconds = len(accounts), time.perf_counter() - began


# --- card transactions ------------------------------------------------------------------------------------------------


async def load_fraud(config: Settings, pace: Pace, clients: int, run: int, progress: LoadProgress) -> None:
    """Card transactions one by one into fraud.transactions, to the scorer's decision. Raises `LoadError` when Kafka
    does not answer."""
    async with _decisions(config) as wire:

        async def send(first: int, stop: int) -> str | None:
            del stop
            progress.requests += 1
            try:
                async with asyncio.timeout(DECISION_SECONDS):
                    progress.outcomes[await wire.decided(run, first)] += 1
            except TimeoutError:
                return (
                    f"transaction {first}: no decision within {DECISION_SECONDS:g} s; are fraud job and scorer running?"
                )
            except LoadError as error:
                return str(error)
            return None

        await run_schedule(progress.planned_events, _one_by_one(pace), clients, send, progress)


class _Wire:
    """Transactions out and decisions in; a thread reads, the event loop waits."""

    def __init__(self, config: Settings) -> None:
        self._topic = config.kafka_topic(FRAUD_TRANSACTIONS.name)
        self._schema_id = schema_ids([FRAUD_TRANSACTIONS], config)[FRAUD_TRANSACTIONS.name]
        self._codec, self._decisions = codec_of(FRAUD_TRANSACTIONS.name), codec_of(FRAUD_DECISIONS.name)
        self._producer = make_producer(config, "load", KAFKA_SECONDS)
        self._consumer: Any = Consumer(
            {**kafka_options(config), "group.id": "streambank-load", "enable.auto.commit": False}
        )
        name = config.kafka_topic(FRAUD_DECISIONS.name)
        places = [TopicPartition(name, shard) for shard in range(FRAUD_SHARDS)]
        for place in places:
            place.offset = watermarks(self._consumer, place)[1]
        self._consumer.assign(places)
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="decisions", daemon=True)
        self._thread.start()

    async def decided(self, run: int, number: int) -> str:
        """Send a transaction and wait for the decision."""
        transaction_id = (run & 2**63 - 1) << 64 | number
        customer = number % CUSTOMERS
        event = {
            "type": "Transaction", "transaction_id": str(transaction_id), "event_time": time.time_ns() // 1000,
            "customer_id": customer, "terminal_id": number % TERMINALS, "amount": 100 + number % 20_000,
        }  # fmt: skip
        shard = customer % FRAUD_SHARDS
        frame = Frame(
            FRAUD_TRANSACTIONS.name, shard, 0, time.time_ns() // 1000, None, parse_events(self._codec, [event])
        )
        decision: asyncio.Future[str] = self._loop.create_future()
        self._waiting[transaction_id] = decision
        try:
            self._producer.produce(
                self._topic, wrap(self._schema_id, self._codec.encode(frame)), key=str(shard).encode(), partition=shard,
                on_delivery=lambda error, _: self._refused(decision, error),
            )  # fmt: skip
            self._producer.poll(0)
            return await decision
        finally:
            del self._waiting[transaction_id]

    def _refused(self, decision: asyncio.Future[str], error: Any) -> None:
        if error is not None and not decision.done():
            decision.set_exception(LoadError(f"Kafka did not take a transaction: {error.str()}"))

    def _read(self) -> None:
        kind = self._decisions.event_type("Decision")
        low, names = kind.field("transaction_id").word, kind.field("decision")
        while not self._stopping.is_set():
            message = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            rows = self._decisions.decode(unwrap(message.value())[1]).events.rows
            found = [
                ((row[low] & 2**64 - 1) | (row[low + 1] & 2**64 - 1) << 64, names.symbols[row[names.word]])
                for row in rows.tolist()
            ]
            self._loop.call_soon_threadsafe(self._tell, found)

    def _tell(self, found: list[tuple[int, str]]) -> None:
        for transaction_id, decision in found:
            waiting = self._waiting.get(transaction_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(decision)
        self._producer.poll(0)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(KAFKA_SECONDS)
        self._consumer.close()
        self._producer.flush(KAFKA_SECONDS)


@asynccontextmanager
async def _decisions(config: Settings) -> AsyncIterator[_Wire]:
    wire = _Wire(config)
    try:
        yield wire
    finally:
        await asyncio.to_thread(wire.close)
