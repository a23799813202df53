"""Simulated card transactions with known frauds: the project's input for load, demo and model training.

The rules and the data are those of the public yardstick *Reproducible Machine Learning for Credit Card Fraud
Detection*; `DIGEST` proves that the default world is its published one, row for row. Customers and terminals lie on a
100 x 100 grid, a customer uses the terminals within `RADIUS`, and three fraud scenarios mark (and in one case change)
transactions afterwards:

1. the amount is above 220.00;
2. two terminals a day are compromised for 28 days: all their transactions are frauds;
3. three customers' credentials a day leak for 14 days: a third of their transactions has five times the amount.

A later scenario overwrites the label of an earlier one. The randomness is NumPy's legacy MT19937 and Python's
`random`, both seeded per customer and per day, so the same arguments give the same rows on every machine.

Units: amounts are integer cents; times are seconds since `EPOCH`; days are 0-based and 86,400 s long.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infra.settings import settings

__all__ = [
    "CUSTOMERS",
    "DAYS",
    "DIGEST",
    "EPOCH",
    "SECONDS_PER_DAY",
    "TERMINALS",
    "CardTransactions",
    "digest",
    "load_transactions",
    "simulate",
]

CUSTOMERS: Final = 5_000
TERMINALS: Final = 10_000
DAYS: Final = 183
RADIUS: Final = 5.0
EPOCH: Final = datetime(2018, 4, 1, tzinfo=UTC)
"""Second 0 of the simulated time, a Sunday."""
SECONDS_PER_DAY: Final = 86_400

LARGE_AMOUNT_CENTS: Final = 22_000
TERMINAL_FRAUD_DAYS: Final = 28
CUSTOMER_FRAUD_DAYS: Final = 14
CUSTOMER_FRAUD_FACTOR: Final = 5

DIGEST: Final = "3b14a0dbc8a3a7fdccc2e5e528df29a5bb9c1422231faf42a7a700c53e2c6c73"
"""SHA-256 of the default world, as `digest` computes it; 1,754,155 rows."""

Progress = Callable[[int, int], None]
"""Called with (customers done, customers in all) now and then."""


@dataclass(frozen=True, slots=True, eq=False)
class CardTransactions:
    """Transactions in time order, as columns of equal length; ties keep the order of generation (by customer)."""

    time_seconds: NDArray[np.int64]
    """Seconds since `EPOCH`."""
    customer: NDArray[np.int64]
    terminal: NDArray[np.int64]
    amount_cents: NDArray[np.int64]
    fraud: NDArray[np.bool_]
    scenario: NDArray[np.int8]
    """0 for a genuine transaction, else the fraud scenario 1, 2 or 3."""

    def __len__(self) -> int:
        return len(self.time_seconds)

    def __getitem__(self, rows: slice) -> CardTransactions:
        """A run of transactions, sharing memory."""
        return CardTransactions(*(getattr(self, column.name)[rows] for column in fields(self)))

    @property
    def day(self) -> NDArray[np.int64]:
        return self.time_seconds // SECONDS_PER_DAY


def load_transactions(directory: Path | None = None, progress: Progress | None = None) -> CardTransactions:
    """The published world of 1,754,155 transactions; made once (some 10 s) and kept in ``<home>/datasets``.

    Raises RuntimeError if what was generated is not the published world, since every figure quoted against it would
    be wrong.
    """
    path = (directory or settings().home / "datasets") / f"card-transactions-{DIGEST}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return CardTransactions(*(stored[column.name] for column in fields(CardTransactions)))
    transactions = simulate(progress=progress)
    found = digest(transactions)
    if found != DIGEST:
        raise RuntimeError(f"the simulator made a world with digest {found}, the published one has {DIGEST}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(
                file, **{column.name: getattr(transactions, column.name) for column in fields(transactions)}
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return transactions


def simulate(
    customers: int = CUSTOMERS, terminals: int = TERMINALS, days: int = DAYS, progress: Progress | None = None
) -> CardTransactions:
    """Simulate a world of another size.

    Fewer customers are the first ones of the default world, with the same purchases. As many terminals and customers
    are compromised each day whatever the size, so frauds are more frequent in a small world.
    """
    genuine = _genuine_transactions(customers, terminals, days, progress)
    return _mark_frauds(genuine, customers, terminals, days)


def digest(transactions: CardTransactions) -> str:
    """SHA-256 of the rows as text, one line ``seconds,customer,terminal,cents,fraud,scenario`` each, sorted."""
    columns = [getattr(transactions, column.name).astype(np.int64) for column in fields(transactions)]
    order = np.lexsort(columns[::-1])
    rows = np.stack(columns, axis=1)[order]
    hashed = hashlib.sha256()
    for start in range(0, len(rows), 100_000):
        block = rows[start : start + 100_000]
        hashed.update(("%d,%d,%d,%d,%d,%d\n" * len(block) % tuple(block.ravel().tolist())).encode())
    return hashed.hexdigest()


def _genuine_transactions(customers: int, terminals: int, days: int, progress: Progress | None) -> CardTransactions:
    """Purchases before fraud, in time order. The draws, and their order, are the specification."""
    profiles = np.random.RandomState(0).uniform((0, 0, 5, 0), (100, 100, 100, 4), (customers, 4))
    terminal_positions = np.random.RandomState(1).uniform(0, 100, (terminals, 2))

    times: list[int] = []
    terminals_used: list[int] = []
    amounts: list[float] = []
    transactions_of = np.zeros(customers, np.int64)
    for customer in range(customers):
        x, y, mean_amount, mean_per_day = profiles[customer].tolist()
        distances = np.sqrt(((terminal_positions - (x, y)) ** 2).sum(axis=1))
        nearby = np.flatnonzero(distances < RADIUS).tolist()
        numbers = np.random.RandomState(customer)
        normal, poisson = numbers.normal, numbers.poisson
        choice = random.Random(customer).choice
        before = len(times)
        for day in range(days):
            for _ in range(poisson(mean_per_day)):
                second = int(normal(SECONDS_PER_DAY / 2, 20_000))
                if not 0 < second < SECONDS_PER_DAY:
                    continue
                amount = normal(mean_amount, mean_amount / 2)
                if amount < 0:
                    amount = numbers.uniform(0, mean_amount * 2)
                if nearby:
                    times.append(second + day * SECONDS_PER_DAY)
                    terminals_used.append(choice(nearby))
                    amounts.append(amount)
        transactions_of[customer] = len(times) - before
        if progress is not None and (customer % 50 == 49 or customer == customers - 1):
            progress(customer + 1, customers)

    time_seconds = np.array(times, np.int64)
    order = np.argsort(time_seconds, kind="stable")
    return CardTransactions(
        time_seconds=time_seconds[order],
        customer=np.repeat(np.arange(customers), transactions_of)[order],
        terminal=np.array(terminals_used, np.int64)[order],
        amount_cents=np.rint(np.array(amounts) * 100).astype(np.int64)[order],
        fraud=np.zeros(len(times), np.bool_),
        scenario=np.zeros(len(times), np.int8),
    )


def _mark_frauds(transactions: CardTransactions, customers: int, terminals: int, days: int) -> CardTransactions:
    amount_cents = transactions.amount_cents.copy()
    scenario = (amount_cents > LARGE_AMOUNT_CENTS).astype(np.int8)
    day_starts = np.searchsorted(transactions.day, np.arange(days + max(TERMINAL_FRAUD_DAYS, CUSTOMER_FRAUD_DAYS) + 1))

    for day in range(days - 1):
        compromised = np.random.RandomState(day).choice(terminals, size=2, replace=False)
        rows = slice(day_starts[day], day_starts[day + TERMINAL_FRAUD_DAYS])
        scenario[rows][np.isin(transactions.terminal[rows], compromised)] = 2

    for day in range(days - 1):
        compromised = np.random.RandomState(day).choice(customers, size=3, replace=False)
        start, stop = day_starts[day], day_starts[day + CUSTOMER_FRAUD_DAYS]
        theirs = start + np.flatnonzero(np.isin(transactions.customer[start:stop], compromised))
        chosen = random.Random(day).sample(theirs.tolist(), len(theirs) // 3)
        amount_cents[chosen] *= CUSTOMER_FRAUD_FACTOR
        scenario[chosen] = 3

    return CardTransactions(
        time_seconds=transactions.time_seconds,
        customer=transactions.customer,
        terminal=transactions.terminal,
        amount_cents=amount_cents,
        fraud=scenario > 0,
        scenario=scenario,
    )
