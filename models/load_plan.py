"""What a load sends: the simulator's card payments as ledger accounts and transfers.

A customer belongs to one of four regional ledgers (1 + customer % 4, which together use every shard); a terminal has
an account in each ledger whose customers pay there; a bank account per ledger funds the customers, whose accounts
must not overdraw. A stated share of the customers is funded with their first purchase only, so that later ones are
refused with ``exceeds_credits``.

Everything is a function of the rows and of ``run``, a number that separates one load's transfers from another's:
the same run sends the same ids again, which the ledger answers with ``exists``. Account ids do not depend on the run,
read as ``<ledger><kind><9-digit number>`` in decimal and can be typed by hand: customer 596 is 1 2 000000596. Amounts
are cents.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.simulator import EPOCH, CardTransactions
from pipelines.catalogue import LEDGER_SHARDS

__all__ = [
    "LEDGERS",
    "AccountKind",
    "Accounts",
    "LoadPlan",
    "TransferCode",
    "Transfers",
    "account_id",
    "ledger_of_customer",
    "plan_load",
]

LEDGERS: Final = 4
SHORT_SHARE: Final = 0.1
MAX_RUN: Final = 2**63 - 1
FUNDING_IDS: Final = 1 << 40
"""Funding transfers are numbered from here, payments from 1."""


class AccountKind(IntEnum):
    """Second digit of an account id, and the account's code."""

    BANK = 1
    CUSTOMER = 2
    TERMINAL = 3


class TransferCode(IntEnum):
    FUNDING = 1
    CARD_PAYMENT = 2


@dataclass(frozen=True, slots=True, eq=False)
class Accounts:
    """Columns of equal length."""

    id: NDArray[np.int64]
    ledger: NDArray[np.int64]
    code: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.id)

    @property
    def must_not_overdraw(self) -> NDArray[np.bool_]:
        """Which get the flag ``debits_must_not_exceed_credits``: the customers'."""
        limited: NDArray[np.bool_] = self.code == AccountKind.CUSTOMER
        return limited

    @property
    def shard(self) -> NDArray[np.int64]:
        return self.ledger % LEDGER_SHARDS

    def take(self, rows: NDArray[np.int64] | slice) -> Accounts:
        return Accounts(*(getattr(self, column.name)[rows] for column in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Transfers:
    """Columns of equal length. A transfer's id is ``run << 64 | number``."""

    run: int
    number: NDArray[np.int64]
    debit_account_id: NDArray[np.int64]
    credit_account_id: NDArray[np.int64]
    amount: NDArray[np.int64]
    """Cents."""
    ledger: NDArray[np.int64]
    code: NDArray[np.int64]
    simulated_at: NDArray[np.int64]
    """Simulated time in seconds since the epoch, carried as ``user_data_64``; 0 for funding."""

    def __len__(self) -> int:
        return len(self.number)

    @property
    def shard(self) -> NDArray[np.int64]:
        return self.ledger % LEDGER_SHARDS

    def take(self, rows: NDArray[np.int64] | slice) -> Transfers:
        return Transfers(self.run, *(getattr(self, column.name)[rows] for column in fields(self)[1:]))


@dataclass(frozen=True, slots=True, eq=False)
class LoadPlan:
    """To be sent in this order: all accounts, then all fundings, then the payments in time order."""

    accounts: Accounts
    fundings: Transfers
    payments: Transfers
    short_customers: NDArray[np.int64]
    """Customers funded with their first purchase only."""


def account_id(ledger: int, kind: AccountKind, number: int) -> int:
    """The id of an account; ``number`` is the customer's or terminal's, 0 for the bank."""
    return ledger * 10**10 + kind * 10**9 + number


def ledger_of_customer(customer: int) -> int:
    return 1 + customer % LEDGERS


def plan_load(
    transactions: CardTransactions, run: int, short_share: float = SHORT_SHARE, row_offset: int = 0
) -> LoadPlan:
    """The accounts, fundings and payments of ``transactions``; ``row_offset`` is the number of their first row.

    ``short_share`` of the customers, rounded up, are funded too little. Raises ValueError for a run, share or number
    outside its range.
    """
    if not 1 <= run <= MAX_RUN:
        raise ValueError(f"run: {run} is not between 1 and {MAX_RUN}")
    if not 0 <= short_share <= 1:
        raise ValueError(f"short_share: {short_share} is not between 0 and 1")
    customer, terminal = transactions.customer, transactions.terminal
    ledger = 1 + customer % LEDGERS
    payer = ledger * 10**10 + AccountKind.CUSTOMER * 10**9 + customer
    payee = ledger * 10**10 + AccountKind.TERMINAL * 10**9 + terminal

    customers, first_row, customer_index = np.unique(customer, return_index=True, return_inverse=True)
    funds = np.bincount(customer_index, weights=transactions.amount_cents, minlength=len(customers)).astype(np.int64)
    # a fixed shuffle, so that the short customers are spread over all ledgers
    shuffled = np.argsort(customers * 2_654_435_761 % 2**32, kind="stable")
    short = np.sort(shuffled[: int(np.ceil(short_share * len(customers)))])
    funds[short] = transactions.amount_cents[first_row[short]]

    ledgers = 1 + np.arange(LEDGERS)
    customer_ledgers = 1 + customers % LEDGERS
    banks = ledgers * 10**10 + AccountKind.BANK * 10**9
    payers = customer_ledgers * 10**10 + AccountKind.CUSTOMER * 10**9 + customers
    payees = np.unique(payee)
    ids = np.concatenate([banks, payers, payees])
    kinds = (AccountKind.BANK, len(banks)), (AccountKind.CUSTOMER, len(payers)), (AccountKind.TERMINAL, len(payees))
    return LoadPlan(
        accounts=Accounts(
            id=ids,
            ledger=ids // 10**10,
            code=np.concatenate([np.full(count, int(kind), np.int64) for kind, count in kinds]),
        ),
        fundings=Transfers(
            run,
            number=FUNDING_IDS + customers,
            debit_account_id=customer_ledgers * 10**10 + AccountKind.BANK * 10**9,
            credit_account_id=payers,
            amount=funds,
            ledger=customer_ledgers,
            code=np.full(len(customers), TransferCode.FUNDING, np.int64),
            simulated_at=np.zeros(len(customers), np.int64),
        ),
        payments=Transfers(
            run,
            number=1 + row_offset + np.arange(len(transactions)),
            debit_account_id=payer,
            credit_account_id=payee,
            amount=transactions.amount_cents,
            ledger=ledger,
            code=np.full(len(transactions), TransferCode.CARD_PAYMENT, np.int64),
            simulated_at=int(EPOCH.timestamp()) + transactions.time_seconds,
        ),
        short_customers=customers[short],
    )
