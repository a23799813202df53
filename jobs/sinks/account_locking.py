"""Balances in Postgres that several writers share: optimistic or pessimistic locking.

The ledger's own sink is the only writer of its accounts and needs neither; this is for writers that move amounts
between accounts in Postgres itself, several at a time, and for repairs beside a running sink. Both strategies apply a
batch of transfers set-based in one transaction - insert the transfers, add up what they move per account, change each
account once - and differ in what they do about the others:

- **pessimistic**: lock the rows of all accounts of the batch first (``SELECT ... FOR UPDATE`` in the order of their
  keys, so that two batches never wait for each other in a circle), then read and change them. Others wait.
- **optimistic**: read balances and ``version``, change a row only if its version is still the one read, and start the
  batch anew when one was not. Nobody waits longer than `PATIENCE_MS` for a row that another is just changing: its
  version will not be the one read. Tries are bounded and spread by a random pause that grows.

Promises of both: a batch is applied as a whole or not at all; no update is lost; a transfer id that is there already
moves nothing (so a batch may be sent again after an error); a deadlock is tried again, never passed on. When all tries
fail, `ContentionError`, with nothing applied.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

import psycopg

from pipelines.errors import StreambankError

__all__ = ["AccountMissing", "ContentionError", "Locking", "SharedAccountsWriter", "Transfer"]

PATIENCE_MS: Final = 50
MAX_TRIES: Final = 200
FIRST_PAUSE_SECONDS: Final = 0.0005
LONGEST_PAUSE_SECONDS: Final = 0.05


class Locking(StrEnum):
    """How writers that share accounts keep out of each other's way."""

    OPTIMISTIC = "optimistic"
    PESSIMISTIC = "pessimistic"


class ContentionError(StreambankError):
    """A batch met other writers in every one of its tries; nothing of it was applied. Send it again later, in smaller
    batches, or lock pessimistically."""


class AccountMissing(StreambankError):  # noqa: N818 - a state, named for what it is
    """A transfer names an account that does not exist; nothing of its batch was applied."""


class Transfer(NamedTuple):
    """A posted transfer between two accounts of a shard, in the ledger's minor unit."""

    id: int
    debit_account_id: int
    credit_account_id: int
    amount: int
    timestamp: int


class _Conflict(Exception):  # noqa: N818 - leaves a transaction, is no error
    pass


@dataclass(slots=True)
class WriterFigures:
    """What a writer went through."""

    transfers: int = 0
    batches: int = 0
    repeats: int = 0
    """Transfers that were there already."""
    conflicts: int = 0
    """Tries that met another writer."""
    deadlocks: int = 0


_INSERT: Final = """
    INSERT INTO transfers (shard, id, debit_account_id, credit_account_id, amount, pending_id, user_data_128,
        user_data_64, user_data_32, timeout, ledger, code, flags, timestamp, sequence)
    SELECT %(shard)s, new.id, new.debit, new.credit, new.amount, 0, 0, 0, 0, 0, %(ledger)s, %(code)s, 0, new.at, 0
    FROM unnest(%(ids)s::numeric[], %(debits)s::numeric[], %(credits)s::numeric[], %(amounts)s::numeric[],
                %(times)s::bigint[]) AS new (id, debit, credit, amount, at)
    ON CONFLICT DO NOTHING
    RETURNING id
"""
_READ: Final = """
    SELECT id, version, debits_posted, credits_posted FROM accounts
    WHERE shard = %(shard)s AND id = ANY(%(ids)s::numeric[]) ORDER BY id
"""
_WRITE: Final = """
    UPDATE accounts SET debits_posted = new.debits, credits_posted = new.credits, version = accounts.version + 1
    FROM unnest(%(ids)s::numeric[], %(versions)s::bigint[], %(debits)s::numeric[], %(credits)s::numeric[])
        AS new (id, version, debits, credits)
    WHERE accounts.shard = %(shard)s AND accounts.id = new.id AND accounts.version = new.version
"""


class SharedAccountsWriter:
    """Moves amounts between accounts of one shard; one of several, each with its own connection. Not thread-safe.

    ``connection`` must be in autocommit mode. ``seed`` chooses the pauses.
    """

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        locking: Locking,
        *,
        shard: int,
        ledger: int,
        code: int = 1,
        max_tries: int = MAX_TRIES,
        seed: int | None = None,
    ) -> None:
        self._connection = connection
        self._locking = locking
        self._shard = shard
        self._ledger = ledger
        self._code = code
        self._max_tries = max_tries
        self._random = random.Random(seed)  # noqa: S311 - pauses
        self.figures = WriterFigures()

    async def apply(self, batch: Sequence[Transfer]) -> int:
        """Apply a batch; returns how many transfers were new. Raises `ContentionError`, `AccountMissing`."""
        pause = FIRST_PAUSE_SECONDS
        for _ in range(self._max_tries):
            try:
                async with self._connection.transaction():
                    new = await self._apply_once(batch)
            except _Conflict:
                self.figures.conflicts += 1
            except psycopg.errors.DeadlockDetected:
                self.figures.deadlocks += 1
            except (psycopg.errors.LockNotAvailable, psycopg.errors.SerializationFailure):
                self.figures.conflicts += 1
            else:
                self.figures.batches += 1
                self.figures.transfers += new
                self.figures.repeats += len(batch) - new
                return new
            await asyncio.sleep(pause * self._random.uniform(0.5, 1.5))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise ContentionError(
            f"{len(batch)} transfers met other writers in {self._max_tries} {self._locking.value} tries"
        )

    async def _apply_once(self, batch: Sequence[Transfer]) -> int:
        pessimistic = self._locking is Locking.PESSIMISTIC
        touched = sorted({account for entry in batch for account in entry[1:3]})
        read = _READ + (" FOR UPDATE" if pessimistic else "")
        if not pessimistic:
            await self._connection.execute(f"SET LOCAL lock_timeout = {PATIENCE_MS}")
        rows = await (await self._connection.execute(read, {"shard": self._shard, "ids": touched})).fetchall()
        if len(rows) != len(touched):
            missing = sorted(set(touched) - {int(row[0]) for row in rows})
            raise AccountMissing(f"shard {self._shard} has no account {missing[0]}")
        inserted = await self._connection.execute(
            _INSERT,
            {
                "shard": self._shard, "ledger": self._ledger, "code": self._code,
                "ids": [entry.id for entry in batch], "debits": [entry.debit_account_id for entry in batch],
                "credits": [entry.credit_account_id for entry in batch], "amounts": [entry.amount for entry in batch],
                "times": [entry.timestamp for entry in batch],
            },
        )  # fmt: skip
        new = {int(row[0]) for row in await inserted.fetchall()}
        debited: dict[int, int] = defaultdict(int)
        credited: dict[int, int] = defaultdict(int)
        for entry in batch:
            if entry.id in new:
                debited[entry.debit_account_id] += entry.amount
                credited[entry.credit_account_id] += entry.amount
        changed = [row for row in rows if int(row[0]) in debited or int(row[0]) in credited]
        written = await self._connection.execute(
            _WRITE,
            {
                "shard": self._shard,
                "ids": [row[0] for row in changed],
                "versions": [row[1] for row in changed],
                "debits": [row[2] + debited.get(int(row[0]), 0) for row in changed],
                "credits": [row[3] + credited.get(int(row[0]), 0) for row in changed],
            },
        )
        if written.rowcount != len(changed):
            raise _Conflict
        return len(new)
