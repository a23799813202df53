"""The paged state of one shard of payments: rows of four columns, found by key, and the heap of time-outs.

Keys are 128 bits: a payment's id as it is (it has 96 bits), anything else a hash that cannot be mistaken for one. Index
and heap are rebuilt from the columns on restore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final

import numpy as np

from pipelines import expiry, id_index
from pipelines.errors import StreambankError
from pipelines.pages import Column, PagedState, mark, reserve
from pipelines.payments.records import KEY, MAX_PAYMENT_ID, PARTY, PAYMENT, RULES, Party, Payment, Rules

__all__ = ["CapacityExceeded", "Store", "hashed_key"]

PAYMENTS: Final = 0
PARTIES: Final = 1
KEYS: Final = 2
LEDGERS: Final = 3
CLOCK: Final = 4
"""Words of ``meta``: rows in use of each column, and the clock in microseconds."""

MAX_LEDGERS: Final = 4_096
DEADLINES_PER_PAYMENT: Final = 8
_WORD: Final = 2**64 - 1
# many times faster than dataclasses.astuple
_PAYMENT_ROW: Final = attrgetter(*Payment.__slots__)
_PARTY_ROW: Final = attrgetter(*Party.__slots__)
_RULES_ROW: Final = attrgetter(*Rules.__slots__)


class CapacityExceeded(StreambankError):  # noqa: N818 - an alarm, named for what happened
    """The shard's reserved columns are full; the job must stop and be started with larger ones."""


def hashed_key(*parts: object) -> int:
    """The key of anything that is not a payment id: 128 bits of BLAKE2b, one of the top 32 bits set."""
    text = "\0".join(map(str, parts)).encode(errors="surrogatepass")
    found = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return found if found > MAX_PAYMENT_ID else found | 1 << 96


class Store:
    """Rows in, rows out; whatever is put is marked for the runtime to store."""

    def __init__(self, max_payments: int, max_parties: int) -> None:
        self._capacity = {
            "payments": max_payments, "parties": max_parties, "keys": 4 * max_payments + max_parties,
            "ledgers": MAX_LEDGERS,
        }  # fmt: skip
        dtypes = {"payments": PAYMENT, "parties": PARTY, "keys": KEY, "ledgers": RULES}
        self.paged = PagedState(
            {name: Column(dtype, self._capacity[name]) for name, dtype in dtypes.items()}
            | {"meta": Column(np.int64, 16)}
        )
        columns = self.paged.columns
        self._payments: Any = columns["payments"]
        self._parties: Any = columns["parties"]
        self._keys: Any = columns["keys"]
        self._ledgers: Any = columns["ledgers"]
        self._meta: Any = columns["meta"]
        self._index = id_index.new_index(self._capacity["keys"])
        self._heap: Any = reserve(np.int64, 2 * DEADLINES_PER_PAYMENT * max_payments).reshape(-1, 2)
        self._heaped = 0
        self._rules: dict[int, tuple[int, Rules]] = {}

    # --- counts and clock -------------------------------------------------------------------------------------------

    @property
    def counts(self) -> dict[str, int]:
        return {
            "payments": int(self._meta[PAYMENTS]), "parties": int(self._meta[PARTIES]), "keys": int(self._meta[KEYS]),
            "ledgers": int(self._meta[LEDGERS]),
        }  # fmt: skip

    @property
    def clock(self) -> int:
        """Latest time that was heard of, microseconds."""
        return int(self._meta[CLOCK])

    def advance(self, time: int) -> None:
        if time > self._meta[CLOCK]:
            self._meta[CLOCK] = time
            self._mark("meta", 0)

    def require_room(self, events: int) -> None:
        """Raises `CapacityExceeded` unless a frame of so many commands fits, whatever they are."""
        needs = {"payments": 1, "parties": 2, "keys": 5, "ledgers": 1}
        for name, used in self.counts.items():
            if name == "ledgers":
                continue  # refused one by one: `put_rules`
            if used + needs[name] * events > self._capacity[name]:
                raise CapacityExceeded(
                    f"payments: {used} of at most {self._capacity[name]} {name} are used, {needs[name] * events} more "
                    "may not fit: start the kernel with a larger max_payments or max_parties"
                )
        if self._heaped + 3 * events > len(self._heap):
            self._rebuild_heap()

    # --- keys -------------------------------------------------------------------------------------------------------

    def find(self, key: int) -> int:
        """The row that a key was added for, or -1."""
        place = self._place(key)
        return -1 if place < 0 else int(self._keys[place]["slot"])

    def seen_at(self, key: int) -> int:
        """The time a key was last touched at, or 0."""
        place = self._place(key)
        return 0 if place < 0 else int(self._keys[place]["at"])

    def add_key(self, key: int, slot: int, at: int = 0) -> None:
        """Add a key, or let the one that is there lead to another row."""
        place = self._place(key)
        if place < 0:
            place = int(self._meta[KEYS])
            self._meta[KEYS] = place + 1
            self._mark("meta", 0)
            lo, hi = np.uint64(key & _WORD), np.uint64(key >> 64)
            self._keys[place] = (lo, hi, slot, at)
            id_index.insert(self._index, lo, hi, place, False)
        else:
            self._keys[place]["slot"] = slot
            self._keys[place]["at"] = at
        self._mark("keys", place)

    def _place(self, key: int) -> int:
        lo, hi = np.uint64(key & _WORD), np.uint64(key >> 64)
        return int(id_index.find(self._index, self._keys, self._keys, lo, hi))

    # --- payments ---------------------------------------------------------------------------------------------------

    def payment(self, slot: int) -> Payment:
        return Payment(*self._payments[slot].item())

    def new_payment(self, payment: Payment) -> int:
        slot = int(self._meta[PAYMENTS])
        self._meta[PAYMENTS] = slot + 1
        self._mark("meta", 0)
        self.add_key(payment.payment_id, slot)
        return slot

    def put_payment(self, slot: int, payment: Payment) -> None:
        """Write a payment back; a deadline that is new goes onto the heap."""
        before = int(self._payments[slot]["deadline"])
        self._payments[slot] = _PAYMENT_ROW(payment)
        self._mark("payments", slot)
        if payment.deadline and payment.deadline != before:
            self._heaped = int(expiry.push(self._heap, self._heaped, payment.deadline, slot))

    def next_due(self) -> int:
        """A payment whose deadline has come, off the heap; -1 if there is none."""
        while self._heaped and self._heap[0, 0] <= self._meta[CLOCK]:
            at = int(self._heap[0, 0])
            slot, count = expiry.pop(self._heap, self._heaped)
            self._heaped = int(count)
            if self._payments[slot]["deadline"] == at:  # else it was answered meanwhile
                return int(slot)
        return -1

    # --- parties and rules ------------------------------------------------------------------------------------------

    def party(self, account_id: int) -> tuple[int, Party | None]:
        """(slot, party); (-1, None) of an account that nothing is known of."""
        slot = self.find(hashed_key("party", account_id))
        if slot < 0:
            return -1, None
        row = [value.tolist() if isinstance(value, np.ndarray) else value for value in self._parties[slot].item()]
        return slot, Party(*row)

    def party_or_new(self, account_id: int) -> tuple[int, Party]:
        slot, party = self.party(account_id)
        if party is not None:
            return slot, party
        slot = int(self._meta[PARTIES])
        self._meta[PARTIES] = slot + 1
        self._mark("meta", 0)
        self.add_key(hashed_key("party", account_id), slot)
        return slot, Party(account_id & _WORD, account_id >> 64, 0, 0, 0, [0] * 4, [0] * 2, [0] * 4, [0] * 2, 0)

    def put_party(self, slot: int, party: Party) -> None:
        self._parties[slot] = _PARTY_ROW(party)
        self._mark("parties", slot)

    def rules(self, ledger: int) -> Rules | None:
        found = self._rules.get(ledger)
        return None if found is None else found[1]

    def put_rules(self, rules: Rules) -> bool:
        """Write a ledger's rules; False when there are rules of `MAX_LEDGERS` other ledgers already."""
        slot = self._rules[rules.ledger][0] if rules.ledger in self._rules else len(self._rules)
        if slot == MAX_LEDGERS:
            return False
        self._rules[rules.ledger] = (slot, rules)
        self._ledgers[slot] = _RULES_ROW(rules)
        self._mark("ledgers", slot)
        self._meta[LEDGERS] = len(self._rules)
        self._mark("meta", 0)
        return True

    # --- pages ------------------------------------------------------------------------------------------------------

    def load(self, pages: Mapping[str, bytes]) -> None:
        """Put stored pages back and rebuild index, heap and rules."""
        for key, data in pages.items():
            self.paged.load(key, data)
        id_index.rebuild(self._index, self._keys, self._meta[KEYS], False)
        for slot in range(int(self._meta[LEDGERS])):
            rules = Rules(*self._ledgers[slot].item())
            self._rules[rules.ledger] = (slot, rules)
        self._rebuild_heap()

    def _rebuild_heap(self) -> None:
        deadlines = np.ascontiguousarray(self._payments["deadline"][: self._meta[PAYMENTS]])
        slots = np.flatnonzero(deadlines)
        self._heaped = int(expiry.rebuild(self._heap, deadlines[slots], slots))

    def _mark(self, column: str, row: int) -> None:
        mark.py_func(self.paged.dirty, self.paged.first_page[column] + row // self.paged.rows_per_page[column])
