"""The load of a soak: clients that pay, capture, void, refund and repeat themselves, and a reviewer who decides.

Clients do what the API asks of them: whatever is not answered for good is sent again, with the same key, until it is.
So a payment counts as accepted once somebody was told so, and everything accepted must come to an end. Every hold has a
time-out of seconds, so what a client leaves lying falls by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import aiohttp
import psycopg

from bench.deployment import Deployment, token
from bench.receivers import Receivers
from infra.stores import postgres_conninfo
from jobs.payments_clock import send_command
from pipelines.catalogue import PAYMENTS_SHARDS
from pipelines.errors import StreambankError

__all__ = [
    "BANK", "FUNDS", "LEDGERS", "PAYEES", "PAYERS", "POOR", "RULES", "SCOPES", "SCREENED", "LoadError", "PaymentsLoad",
    "set_rules",
]  # fmt: skip

LEDGERS: Final = (700, 701, 702, 703)
"""One in each shard."""
SCREENED: Final = 703
BANK: Final = 1
PAYERS: Final = tuple(range(10, 20))
PAYEES: Final = tuple(range(30, 40))
POOR: Final = 50
"""Has no money."""
CUSTOMERS: Final = 5
"""The customers that are told by webhook and e-mail; the others have no endpoints."""
FUNDS: Final = 10**12
BLOCKED_ABOVE: Final = 50_000
"""Amounts that the soak's own rule of screening blocks; between this and 10,000 nothing is decided without a score."""
RULES: Final = (
    '{"review_at": 900000, "block_at": 990000, "rules": [{"id": "very-large", "when": "amount > 50000",'
    ' "action": "block"}]}'
)
HOLD_SECONDS: Final = 8
REVIEW_SECONDS: Final = 5.0
WAIT_SECONDS: Final = 20
PATIENCE_SECONDS: Final = 180.0
"""How long a client repeats a request that nobody answers."""
SCOPES: Final = (
    "ledger:write", "payments:write", "payments:read", "payments:review", "notifications:read", "notifications:write",
)  # fmt: skip
KINDS: Final = ("plain", "refund", "plain", "manual", "plain", "screened", "void", "plain", "left", "poor")


class LoadError(StreambankError):
    """The load met what must not be."""


def set_rules(deployment: Deployment, ledger: int, **rules: Any) -> None:
    """Set the payments' rules of a ledger."""
    send_command(deployment.settings, ledger % PAYMENTS_SHARDS, {"type": "PaymentRules", "ledger": ledger, **rules})


@dataclass(slots=True)
class PaymentsLoad:
    """``accepted``: (ledger, payment id) of what was answered 201 or 202. ``given_up`` were never answered for good."""

    deployment: Deployment
    receivers: Receivers
    rate: float
    accepted: set[tuple[int, int]] = field(default_factory=set)
    sent: int = 0
    given_up: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stopping: bool = False
    _token: str = ""
    _thread: threading.Thread | None = None
    _error: BaseException | None = None
    _run: str = field(default_factory=lambda: uuid4().hex[:12])

    # --- for whoever runs it

    def prepare(self) -> None:
        """Accounts with money, rules of screening, and the customers' endpoints."""
        self._token = token(self.deployment.settings, SCOPES)
        asyncio.run(self._prepare())
        set_rules(self.deployment, SCREENED, screening="stream", screening_seconds=5)

    def start(self) -> None:
        def run() -> None:
            try:
                asyncio.run(self._pay())
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="load", daemon=True)
        self._thread.start()

    @property
    def progress(self) -> int:
        """Payments accepted."""
        return len(self.accepted)

    @property
    def is_over(self) -> bool:
        """Never by itself."""
        return False

    def finish(self) -> None:
        """Start nothing new, and wait until every client has its answers."""
        self.stopping = True
        if self._thread is not None:
            self._thread.join(2 * PATIENCE_SECONDS)
            if self._thread.is_alive():
                raise LoadError("the load did not end")
        self.require_no_error()

    def require_no_error(self) -> None:
        """Raises what went wrong."""
        if self._error is not None:
            raise self._error

    # --- requests

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"}, connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=WAIT_SECONDS + 20),
        )  # fmt: skip

    async def _ask(self, http: aiohttp.ClientSession, path: str, key: str, body: Any, wait: int = 0) -> tuple[int, Any]:
        """Status and body of the first answer that is one for good; (0, None) if none came for too long."""
        headers = {"Idempotency-Key": f"{self._run}-{key}"} | ({"Prefer": f"wait={wait}"} if wait else {})
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            pause = 0.5
            try:
                async with http.post(f"{self.deployment.settings.api_url}{path}", json=body, headers=headers) as answer:
                    found = await answer.json(content_type=None)
                    problem = str(found.get("type", "")).rpartition("/")[2] if answer.status >= 400 else ""
                    self.answers[f"{answer.status} {problem}".strip()] += 1
                    if answer.status >= 500 and answer.status != 503:
                        self.wrong.append(f"{path}: HTTP {answer.status}: {found}")
                    retry = answer.status in (429, 500, 503) or problem == "idempotency-key-in-use"
                    if not retry:
                        return answer.status, found
                    pause = min(float(answer.headers.get("Retry-After", 0.5)), 1.0)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                self.answers[type(error).__name__] += 1
            await asyncio.sleep(pause)
        return 0, None

    async def _prepare(self) -> None:
        accounts = [
            {"type": "CreateAccount", "id": account, "ledger": ledger, "code": 1,
             "flags": [] if account == BANK else ["debits_must_not_exceed_credits"]}
            for ledger in LEDGERS for account in (BANK, *PAYERS, *PAYEES, POOR)
        ]  # fmt: skip
        funds = [
            {"type": "CreateTransfer", "id": account, "debit_account_id": BANK, "credit_account_id": account,
             "amount": FUNDS, "ledger": ledger, "code": 9}
            for ledger in LEDGERS for account in PAYERS
        ]  # fmt: skip
        async with self._session() as http:
            for key, events in (("accounts", accounts), ("funds", funds)):
                status, found = await self._ask(http, "/v1/ledger/events", key, events, WAIT_SECONDS)
                if status not in (200, 201, 202):
                    raise LoadError(f"{key} were not made: {status} {found}")
            for customer in range(1, CUSTOMERS + 1):
                path = f"/{customer}"
                for channel, address in (
                    ("webhook", self.receivers.url + path), ("email", f"customer-{customer}@example.com"),
                ):  # fmt: skip
                    body = {"customer": str(customer), "channel": channel, "address": address}
                    status, found = await self._ask(http, "/v1/notifications/endpoints", f"{customer}{channel}", body)
                    if status == 409:
                        continue  # it has been there since an earlier load of these parts
                    if status != 201:
                        raise LoadError(f"the endpoint of customer {customer} was not made: {status} {found}")
                    if channel == "webhook":
                        self.receivers.secrets[path] = found["secret"]

    # --- payments

    async def _pay(self) -> None:
        async with self._session() as http:
            running: set[asyncio.Task[None]] = {asyncio.create_task(self._review_now_and_then(http))}
            start = time.monotonic()
            number = 0
            while not self.stopping:
                for task in [task for task in running if task.done()]:
                    running.discard(task)
                    task.result()
                if len(running) < 200:  # clients that nobody answers do not pile up
                    task = asyncio.create_task(self._one(http, number))
                    running.add(task)
                    number += 1
                await asyncio.sleep(max(0.0, start + number / self.rate - time.monotonic(), 0.2 / self.rate))
            for task in running:
                await task

    async def _one(self, http: aiohttp.ClientSession, number: int) -> None:
        """One payment and what its client does next."""
        kind = KINDS[number % len(KINDS)]
        ledger = SCREENED if kind == "screened" else LEDGERS[number // len(KINDS) % 3]
        amount = 1 + number % 997
        if kind == "screened":
            amount = (900, 20_000, BLOCKED_ABOVE + 1)[number // len(KINDS) % 3]
        body: dict[str, Any] = {
            "payer_account_id": POOR if kind == "poor" else PAYERS[number % len(PAYERS)],
            "payee_account_id": PAYEES[number % len(PAYEES)],
            "ledger": ledger, "currency": "EUR", "amount": amount, "reference": f"{self._run}-{number}",
            "customer_id": number % 8,
        }  # fmt: skip
        if kind in ("manual", "void", "left"):
            body |= {"capture": "manual", "hold_seconds": HOLD_SECONDS}
        waits = kind in ("refund", "manual", "void")
        self.sent += 1
        status, made = await self._ask(http, "/v1/payments", f"{number}", body, WAIT_SECONDS if waits else 0)
        if status not in (201, 202):
            self.given_up += status == 0
            if status:
                self.wrong.append(f"payment {number} was answered {status}: {made}")
            return
        payment_id = int(made["payment_id"])
        self.accepted.add((ledger, payment_id))
        if number % 7 == 0:  # a client that missed the answer
            again, same = await self._ask(http, "/v1/payments", f"{number}", body)
            if again and int(same.get("payment_id", 0)) != payment_id:
                self.wrong.append(f"payment {number}: a repeat was answered {again} {same}, at first {status} {made}")
        follow = {"refund": ("COMPLETED", "refund", {"amount": (amount + 1) // 2}), "void": ("RESERVED", "void", {}),
                  "manual": ("RESERVED", "capture", {"amount": (amount + 1) // 2})}.get(kind)  # fmt: skip
        if follow and made.get("status") == follow[0]:
            await self._ask(
                http, f"/v1/payments/{payment_id}/{follow[1]}", f"{number}-{follow[1]}", {"ledger": ledger, **follow[2]}
            )

    # --- reviews

    def review(self) -> int:
        """Decide about every payment that Postgres shows in review, half of them well; returns how many there were."""

        async def review() -> int:
            async with self._session() as http:
                return await self._review(http)

        return asyncio.run(review())

    async def _review_now_and_then(self, http: aiohttp.ClientSession) -> None:
        while not self.stopping:
            await self._review(http)
            await asyncio.sleep(REVIEW_SECONDS)

    async def _review(self, http: aiohttp.ClientSession) -> int:
        waiting = await asyncio.to_thread(self._in_review)

        async def decide(payment: int, ledger: int) -> None:
            body = {"ledger": ledger, "approved": payment % 2 == 0}
            await self._ask(http, f"/v1/payments/{payment}/review", f"review-{payment}", body, WAIT_SECONDS)

        await asyncio.gather(*(decide(*one) for one in waiting))
        return len(waiting)

    def _in_review(self) -> list[tuple[int, int]]:
        """(payment id, ledger)"""
        try:
            with psycopg.connect(postgres_conninfo(self.deployment.settings)) as connection:
                query = "SELECT payment_id, ledger FROM payments WHERE status = 'IN_REVIEW' LIMIT 50"
                return [(int(payment), int(ledger)) for payment, ledger in connection.execute(query)]
        except psycopg.OperationalError:
            return []  # away at the moment; who waits is decided about the next time
