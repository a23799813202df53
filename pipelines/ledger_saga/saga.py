"""One cross transfer as a state machine: what it asks the ledger for, and what it makes of the answers.

A cross transfer debits an account of one ledger and credits one of another, which may lie in another shard and count
another currency. Each side is a leg between the user's account and a clearing account of the same ledger:

1. **Reserve.** Both legs are made pending, so that both ledgers have agreed before money moves.
2. **Post.** Then the debit is posted, and after it the credit. Legs of one shard go as linked pairs: both or none.
3. **Void.** A refusal or a time-out before the debit is posted voids what was reserved: nothing has moved.
4. **Refund.** When the credit cannot be posted after the debit was (the payee's account was closed in between), the
   debit is paid back from the clearing account; refused, that is tried again until it succeeds.

Only the first answer to a leg counts, because commands and answers may come again. One exception heals itself: a
reservation that was refused and succeeds when its command is repeated (a balance had been about to overflow) is voided.
A refund gets a new id only after a refusal that burned the old one, so that it is paid once.

The debit's reservation expires in the ledger by itself some time after the cross transfer's own time-out: a payer gets
the money back even when no saga runs. The credit's does not, since it holds the house's money.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Final

import numpy as np

from pipelines.ledger.u128 import join, split
from pipelines.ledger_saga.legs import Step

__all__ = ["SAGA", "Ask", "Leg", "Phase", "Refund", "Saga"]

LEDGER_MARGIN_SECONDS: Final = 60
"""The debit's reservation outlives the saga's time-out by this, so that a post decided in time arrives in time."""
RETRY_MICROSECONDS: Final = 10_000_000
"""Between two attempts of a refund."""

BURNED: Final = frozenset(
    {
        "debit_account_not_found", "credit_account_not_found", "pending_transfer_not_found",
        "debit_account_already_closed", "credit_account_already_closed", "exceeds_credits", "exceeds_debits",
        "id_already_failed",
    }
)  # fmt: skip
"""Refusals after which the leg's id can never succeed."""
GONE: Final = frozenset({"pending_transfer_expired", "pending_transfer_already_voided"})
"""A reservation that nobody has to void."""
TIMED_OUT: Final = "timed_out"
NO_REASON: Final = "none"


class Phase(IntEnum):
    """In the order of the schema's symbols."""

    reserving = 0
    posting = 1
    cancelling = 2
    refunding = 3
    completed = 4
    failed = 5
    refunded = 6
    held = 7
    """Somebody else posted a leg: how much is not known here, so an operator must look."""


class Leg(IntEnum):
    """Where a leg is."""

    asked = 1
    reserved = 2
    refused = 3
    posting = 4
    posted = 5
    unposted = 6
    """Its post was refused; as one of a pair, it waits for the other's answer."""
    voiding = 7
    released = 8


class Refund(IntEnum):
    """Where the refund is."""

    none = 0
    asked = 1
    waiting = 2
    paid = 3


@dataclass(frozen=True, slots=True)
class Ask:
    """A leg to ask the ledger for; ``linked`` to the next one."""

    step: Step
    attempt: int = 0
    linked: bool = False


@dataclass(slots=True)
class Saga:
    """A cross transfer. Amounts in the minor units of their ledgers, times in UTC microseconds."""

    id: int
    debit_account_id: int
    credit_account_id: int
    debit_clearing_account_id: int
    credit_clearing_account_id: int
    amount: int
    credit_amount: int
    user_data_128: int
    user_data_64: int
    deadline: int
    retry_at: int
    debit_ledger: int
    credit_ledger: int
    user_data_32: int
    timeout: int
    code: int
    reason: int
    """Index of the reason in the schema's symbols."""
    debit_voids: int
    credit_voids: int
    refunds: int
    phase: int
    debit: int
    credit: int
    refund: int
    is_paired: bool
    """Both ledgers are of one shard, so that legs go as linked pairs."""

    def start(self) -> list[Ask]:
        return [Ask(Step.reserve_debit, linked=self.is_paired), Ask(Step.reserve_credit)]

    def awaited(self) -> list[tuple[Step, int]]:
        """The legs (step, attempt) whose answers would be listened to."""
        if self.phase == Phase.held:
            return []
        steps = []
        for status, reserve, post, void, voids in (
            (self.debit, Step.reserve_debit, Step.post_debit, Step.void_debit, self.debit_voids),
            (self.credit, Step.reserve_credit, Step.post_credit, Step.void_credit, self.credit_voids),
        ):
            if status in (Leg.asked, Leg.refused):
                steps.append((reserve, 0))
            elif status == Leg.posting:
                steps.append((post, 0))
            elif status == Leg.voiding:
                steps.append((void, voids - 1))
        if self.refund == Refund.asked:
            steps.append((Step.refund, self.refunds))
        return steps

    def wake_at(self) -> int | None:
        """When `wake` has something to do if nothing else happens."""
        if self.phase == Phase.reserving:
            return self.deadline
        return self.retry_at if self.refund == Refund.waiting and self.phase == Phase.refunding else None

    def wake(self, clock: int, reasons: dict[str, int]) -> list[Ask]:
        """The time of `wake_at` has come."""
        at = self.wake_at()
        if at is None or at > clock:
            return []
        if self.phase == Phase.reserving:
            self.reason = reasons[TIMED_OUT]
            return self._cancel()
        self.refund = Refund.asked
        return [Ask(Step.refund, self.refunds)]

    def answer(self, step: Step, result: str, clock: int, reasons: dict[str, int]) -> list[Ask]:
        """The ledger has answered an awaited leg; returns what to ask for next."""
        is_applied = result in ("created", "exists")
        if not is_applied and step in (
            Step.reserve_debit, Step.reserve_credit, Step.post_debit, Step.post_credit
        ):  # fmt: skip
            self._note(result, reasons)
        match step:
            case Step.reserve_debit | Step.reserve_credit:
                return self._reserved(step == Step.reserve_debit, is_applied)
            case Step.post_debit | Step.post_credit if self.is_paired:
                return self._posted_in_pair(step == Step.post_debit, is_applied)
            case Step.post_debit:
                return self._posted_debit(is_applied, result)
            case Step.post_credit:
                return self._posted_credit(is_applied, result)
            case Step.void_debit | Step.void_credit:
                return self._voided(step == Step.void_debit, result)
            case Step.refund:
                if is_applied:
                    self.refund = Refund.paid
                    self._finish()
                else:
                    self.refund = Refund.waiting
                    self.retry_at = clock + RETRY_MICROSECONDS
                    self.refunds += result in BURNED
                return []

    def _note(self, result: str, reasons: dict[str, int]) -> None:
        # a chain's other members only say that one of them failed
        if self.reason in (reasons[NO_REASON], reasons["linked_event_failed"]):
            self.reason = reasons[TIMED_OUT if result == "pending_transfer_expired" else result]

    def _reserved(self, is_debit: bool, is_applied: bool) -> list[Ask]:
        before = self.debit if is_debit else self.credit
        if before == Leg.refused:
            return [self._void(is_debit)] if is_applied else []
        self._set(is_debit, Leg.reserved if is_applied else Leg.refused)
        if self.phase == Phase.reserving:
            if self.debit == self.credit == Leg.reserved:
                return self._post()
            if Leg.refused in (self.debit, self.credit):
                return self._cancel()
            return []
        return self._cancel()

    def _post(self) -> list[Ask]:
        self.phase = Phase.posting
        self.debit = Leg.posting
        if not self.is_paired:
            return [Ask(Step.post_debit)]
        self.credit = Leg.posting
        return [Ask(Step.post_debit, linked=True), Ask(Step.post_credit)]

    def _posted_in_pair(self, is_debit: bool, is_applied: bool) -> list[Ask]:
        self._set(is_debit, Leg.posted if is_applied else Leg.unposted)
        if Leg.posting in (self.debit, self.credit):
            return []
        if self.debit != self.credit:
            self.phase = Phase.held
        elif self.debit == Leg.unposted:
            return self._cancel()
        else:
            self.phase = Phase.completed
        return []

    def _posted_debit(self, is_applied: bool, result: str) -> list[Ask]:
        if is_applied:
            self.debit, self.credit = Leg.posted, Leg.posting
            return [Ask(Step.post_credit)]
        if result == "pending_transfer_already_posted":
            self.phase = Phase.held
            return []
        self.debit = Leg.released if result in GONE else Leg.unposted
        return self._cancel()

    def _posted_credit(self, is_applied: bool, result: str) -> list[Ask]:
        if is_applied:
            self.credit = Leg.posted
            self.phase = Phase.completed
            return []
        if result == "pending_transfer_already_posted":
            self.phase = Phase.held
            return []
        self.phase = Phase.refunding
        self.refund = Refund.asked
        asks = [Ask(Step.refund, self.refunds)]
        if result in GONE:
            self.credit = Leg.released
            return asks
        return [self._void(is_debit=False), *asks]

    def _voided(self, is_debit: bool, result: str) -> list[Ask]:
        if result == "pending_transfer_already_posted":
            self.phase = Phase.held
            return []
        # whatever else the ledger says, nothing is pending any more
        self._set(is_debit, Leg.released)
        self._finish()
        return []

    def _cancel(self) -> list[Ask]:
        self.phase = Phase.cancelling
        asks = [
            self._void(is_debit)
            for is_debit, status in ((True, self.debit), (False, self.credit))
            if status in (Leg.reserved, Leg.unposted)
        ]
        self._finish()
        return asks

    def _finish(self) -> None:
        is_over = self.debit in (Leg.refused, Leg.released) and self.credit in (Leg.refused, Leg.released)
        if self.phase == Phase.cancelling and is_over:
            self.phase = Phase.failed
        elif self.phase == Phase.refunding and self.refund == Refund.paid and self.credit == Leg.released:
            self.phase = Phase.refunded

    def _void(self, is_debit: bool) -> Ask:
        self._set(is_debit, Leg.voiding)
        if is_debit:
            self.debit_voids += 1
            return Ask(Step.void_debit, self.debit_voids - 1)
        self.credit_voids += 1
        return Ask(Step.void_credit, self.credit_voids - 1)

    def _set(self, is_debit: bool, status: Leg) -> None:
        if is_debit:
            self.debit = status
        else:
            self.credit = status


_WIDE: Final = (
    "id", "debit_account_id", "credit_account_id", "debit_clearing_account_id", "credit_clearing_account_id",
    "amount", "credit_amount", "user_data_128",
)  # fmt: skip
_TYPES: Final = {
    "user_data_64": "<u8", "deadline": "<i8", "retry_at": "<i8",
    "debit_ledger": "<u4", "credit_ledger": "<u4", "user_data_32": "<u4", "timeout": "<u4",
    "code": "<u2", "reason": "<u2", "debit_voids": "<u4", "credit_voids": "<u4", "refunds": "<u4",
    "phase": "u1", "debit": "u1", "credit": "u1", "refund": "u1", "is_paired": "?",
}  # fmt: skip
_USED: Final = [(f"{name}_{word}", "<u8") for name in _WIDE for word in ("lo", "hi")] + list(_TYPES.items())
_BYTES: Final = 256
SAGA: Final = np.dtype([*_USED, ("reserved", f"V{_BYTES - np.dtype(_USED).itemsize}")])
"""How a `Saga` lies in memory: 256 bytes."""


def read(row: np.void) -> Saga:
    """The saga in a row of `SAGA`."""
    values: dict[str, Any] = {name: join(row[f"{name}_lo"], row[f"{name}_hi"]) for name in _WIDE}
    return Saga(**values, **{name: row[name].item() for name in _TYPES})


def write(saga: Saga, row: np.void) -> None:
    """Put a saga into a row of `SAGA`."""
    for name in _WIDE:
        row[f"{name}_lo"], row[f"{name}_hi"] = split(getattr(saga, name))
    for name in _TYPES:
        row[name] = getattr(saga, name)


if {field.name for field in fields(Saga)} != {*_WIDE, *_TYPES}:
    raise TypeError("SAGA does not hold the fields of Saga")
