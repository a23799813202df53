"""Transfers across ledgers as a kernel: one shard of sagas (`pipelines.ledger_saga.saga` has the rules).

Reads ledger.cross-commands: what users ask for, the ledger's answers to legs, and the clock. Answers each frame with
one frame of ledger.cross-results, one result per event, and one of ledger.cross-events, possibly empty: legs to be
applied and phases reached, in the order in which they came about. What fell due comes first.

The clock is the latest ``produced_at`` seen, in microseconds, and never goes back. A saga takes 256 bytes for ever,
since its id must be known when it is used again; Python, not compiled: a cross transfer costs the ledger at least four
transfers, and this less than they do.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from pipelines.catalogue import LEDGER_SHARDS
from pipelines.codec import codec_of
from pipelines.errors import FrameError, StateVersionError, StreambankError
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.kernel import InvariantBroken, Output
from pipelines.ledger_saga.legs import Step, leg_id
from pipelines.ledger_saga.saga import LEDGER_MARGIN_SECONDS, SAGA, Ask, Leg, Phase, Saga, read, write
from pipelines.pages import Column, PagedState, mark

__all__ = ["CapacityExceeded", "LedgerSagaKernel"]

STATE_VERSION: Final = 1
MAX_PRODUCED_AT: Final = 7_258_118_400_000_000
"""2200-01-01 in microseconds, as in the ledger."""
MAX_TIMEOUT_SECONDS: Final = 30 * 86_400
MAX_WOKEN_PER_FRAME: Final = 500
ID_MAX: Final = 2**128 - 1
POST_IN_FULL: Final = ID_MAX

CLOCK: Final = 0
SAGAS: Final = 1

_COMMANDS: Final = "ledger.cross-commands"
_RESULTS: Final = "ledger.cross-results"
_EVENTS: Final = "ledger.cross-events"
_GIVEN: Final = (
    "debit_account_id", "credit_account_id", "debit_clearing_account_id", "credit_clearing_account_id",
    "amount", "credit_amount", "user_data_128", "user_data_64", "debit_ledger", "credit_ledger", "user_data_32",
    "timeout", "code",
)  # fmt: skip
"""What a user says of a cross transfer, and what a repeat must say again."""
_TOLD: Final = tuple(name for name in _GIVEN if name not in ("user_data_64", "user_data_32", "timeout"))
"""What every event about it says again."""


class CapacityExceeded(StreambankError):  # noqa: N818 - an alarm, named for what happened
    """The shard's reserved column is full; the job must stop and be started with a larger one."""


class _Before(NamedTuple):
    """What a saga was before something happened to it."""

    phase: int
    reason: int
    wake_at: int | None


class LedgerSagaKernel:
    """One shard. ``max_sagas`` reserves address space, not memory; a frame that might not fit raises
    `CapacityExceeded` before anything is changed."""

    state_version: ClassVar[int] = STATE_VERSION

    def __init__(self, *, max_sagas: int = 1 << 22) -> None:
        self._commands = codec_of(_COMMANDS)
        self._results = codec_of(_RESULTS)
        self._events = codec_of(_EVENTS)
        changed = self._events.event_type("CrossTransferChanged")
        self._reasons = {name: index for index, name in enumerate(changed.field("reason").symbols)}
        self._reason_names = changed.field("reason").symbols
        for names, enum in (
            (changed.field("phase").symbols, Phase),
            (self._events.event_type("LegRequested").field("step").symbols, Step),
        ):
            if tuple(names) != tuple(member.name for member in enum):
                raise StreambankError(f"{_EVENTS}: the kernel is written for {', '.join(m.name for m in enum)}")
        self._state = PagedState({"sagas": Column(SAGA, max_sagas), "meta": Column(np.int64, 8)})
        self._sagas = self._state.columns["sagas"][:max_sagas]
        self._meta = self._state.columns["meta"]
        self._slots: dict[int, int] = {}
        self._legs: dict[int, tuple[int, Step]] = {}
        """Slot and step of every leg whose answer is awaited."""
        self._wakes: list[tuple[int, int]] = []
        """Heap of (time, slot); an entry that no longer holds is dropped when its time comes."""
        self._asked: list[dict[str, Any]] = []

    def apply(self, frame: Frame) -> list[Output]:
        """Apply one frame of ledger.cross-commands; see `pipelines.kernel.Kernel.apply`.

        `FrameError` reason: ``produced_at_out_of_range``.
        """
        if not 0 <= frame.produced_at <= MAX_PRODUCED_AT:
            raise FrameError(
                "produced_at_out_of_range",
                f"produced_at {frame.produced_at} is not in microseconds between 1970 and 2200",
            )
        commands = render_events(self._commands, frame.events)
        created = sum(command["type"] == "CreateCrossTransfer" for command in commands)
        if int(self._meta[SAGAS]) + created > len(self._sagas):
            raise CapacityExceeded(
                f"ledger_saga: {int(self._meta[SAGAS])} of at most {len(self._sagas)} cross transfers are used, "
                f"{created} more may not fit: start the kernel with a larger max_sagas"
            )
        self._asked = []
        self._set_clock(frame.produced_at)
        self._wake()
        results = [self._apply(command) for command in commands]
        return [
            Output(_RESULTS, parse_events(self._results, results)),
            Output(_EVENTS, parse_events(self._events, self._asked)),
        ]

    def _apply(self, command: Mapping[str, Any]) -> dict[str, Any]:
        if command["type"] == "CreateCrossTransfer":
            return _result(int(command["id"]), self._create(command))
        if command["type"] == "LegAnswered":
            return _result(int(command["id"]), self._answer(int(command["id"]), command["result"]))
        at = int(command["at"])
        if not self.clock <= at <= MAX_PRODUCED_AT:
            return _result(0, "ignored")
        self._set_clock(at)
        self._wake()
        return _result(0, "noted")

    def _create(self, command: Mapping[str, Any]) -> str:
        given = {name: int(command[name]) for name in _GIVEN}
        given["credit_amount"] = given["credit_amount"] or given["amount"]
        identity = int(command["id"])
        refusal = _refusal(identity, given)
        if refusal is not None:
            return refusal
        slot = self._slots.get(identity)
        if slot is not None:
            known = read(self._sagas[slot])
            is_same = all(getattr(known, name) == value for name, value in given.items())
            return "exists" if is_same else "exists_with_different_fields"
        saga = Saga(
            id=identity,
            **given,
            deadline=self.clock + given["timeout"] * 1_000_000,
            retry_at=0, reason=0, debit_voids=0, credit_voids=0, refunds=0,
            phase=Phase.reserving, debit=Leg.asked, credit=Leg.asked, refund=0,
            is_paired=given["debit_ledger"] % LEDGER_SHARDS == given["credit_ledger"] % LEDGER_SHARDS,
        )  # fmt: skip
        slot = self._slots[identity] = int(self._meta[SAGAS])
        self._meta[SAGAS] = slot + 1
        self._mark("meta", 0)
        self._changed(saga)
        self._ask(saga, saga.start())
        self._listen(slot, saga, None)
        self._store(slot, saga)
        return "created"

    def _answer(self, leg: int, result: str) -> str:
        place = self._legs.get(leg)
        if place is None:
            return "ignored"
        slot, step = place
        saga = read(self._sagas[slot])
        if saga.phase == Phase.held:
            return "ignored"
        del self._legs[leg]
        before = _Before(saga.phase, saga.reason, saga.wake_at())
        self._after(slot, saga, before, saga.answer(step, result, self.clock, self._reasons))
        return "noted"

    def _wake(self) -> None:
        """What has fallen due, the earliest first; the rest of very many comes with the next frames."""
        woken = 0
        while self._wakes and self._wakes[0][0] <= self.clock and woken < MAX_WOKEN_PER_FRAME:
            at, slot = heapq.heappop(self._wakes)
            saga = read(self._sagas[slot])
            if saga.wake_at() != at:
                continue
            before = _Before(saga.phase, saga.reason, at)
            self._after(slot, saga, before, saga.wake(self.clock, self._reasons))
            woken += 1

    def _after(self, slot: int, saga: Saga, before: _Before, asks: list[Ask]) -> None:
        self._ask(saga, asks)
        self._listen(slot, saga, before.wake_at)
        self._store(slot, saga)
        if (saga.phase, saga.reason) != (before.phase, before.reason):
            self._changed(saga)

    def _listen(self, slot: int, saga: Saga, woken_at: int | None) -> None:
        """``woken_at``: the time at which the saga is to be woken already."""
        for step, attempt in saga.awaited():
            self._legs[leg_id(saga.id, step, attempt)] = (slot, step)
        at = saga.wake_at()
        if at is not None and at != woken_at:
            heapq.heappush(self._wakes, (at, slot))

    def _ask(self, saga: Saga, asks: list[Ask]) -> None:
        self._asked += [_leg(saga, ask) for ask in asks]

    def _changed(self, saga: Saga) -> None:
        self._asked.append(
            {
                "type": "CrossTransferChanged",
                "id": saga.id,
                **{name: getattr(saga, name) for name in _TOLD},
                "phase": Phase(saga.phase).name,
                "reason": self._reason_names[saga.reason],
                "timestamp": self.clock,
            }
        )

    def _store(self, slot: int, saga: Saga) -> None:
        write(saga, self._sagas[slot])
        self._mark("sagas", slot)

    def _mark(self, column: str, row: int) -> None:
        mark(self._state.dirty, self._state.first_page[column] + row // self._state.rows_per_page[column])

    def _set_clock(self, clock: int) -> None:
        if clock > self.clock:
            self._meta[CLOCK] = clock
            self._mark("meta", 0)

    @property
    def clock(self) -> int:
        """UTC microseconds: the latest time that this shard was told."""
        return int(self._meta[CLOCK])

    def dirty_pages(self) -> dict[str, bytes]:
        return self._state.dirty_pages()

    def dirty_bytes(self) -> int:
        return self._state.dirty_bytes()

    def restore(self, pages: Mapping[str, bytes], state_version: int) -> None:
        """Load stored pages and rebuild what follows from them. `InvariantBroken` when one is missing."""
        if state_version != STATE_VERSION:
            raise StateVersionError(
                f"ledger_saga: state version {state_version} found, this code reads {STATE_VERSION}"
            )
        for key, data in pages.items():
            self._state.load(key, data)
        for slot in range(int(self._meta[SAGAS])):
            saga = read(self._sagas[slot])
            if not saga.id:
                raise InvariantBroken("ledger_saga: a cross transfer without id; a stored page is missing")
            self._slots[saga.id] = slot
            self._listen(slot, saga, None)

    def state_rows(self) -> Iterator[dict[str, Any]]:
        """Every cross transfer, in the order in which they were asked for."""
        for slot in range(int(self._meta[SAGAS])):
            saga = read(self._sagas[slot])
            yield {
                "id": saga.id,
                **{name: getattr(saga, name) for name in _GIVEN},
                "phase": Phase(saga.phase).name,
                "reason": self._reason_names[saga.reason],
                "debit": Leg(saga.debit).name,
                "credit": Leg(saga.credit).name,
                "deadline": saga.deadline,
            }


def _refusal(identity: int, given: Mapping[str, int]) -> str | None:
    """The first check that fails."""
    accounts = (
        (given["debit_account_id"], given["debit_clearing_account_id"]),
        (given["credit_account_id"], given["credit_clearing_account_id"]),
    )
    checks = (
        ("id_must_not_be_zero", identity == 0),
        ("id_must_not_be_int_max", identity == ID_MAX),
        ("ledger_must_not_be_zero", not (given["debit_ledger"] and given["credit_ledger"])),
        ("ledgers_must_be_different", given["debit_ledger"] == given["credit_ledger"]),
        ("amount_must_not_be_zero", given["amount"] == 0),
        ("code_must_not_be_zero", given["code"] == 0),
        ("account_id_must_not_be_zero", any(0 in pair for pair in accounts)),
        ("accounts_must_be_different", any(own == clearing for own, clearing in accounts)),
        ("timeout_out_of_range", not 1 <= given["timeout"] <= MAX_TIMEOUT_SECONDS),
    )
    return next((name for name, is_wrong in checks if is_wrong), None)


def _result(identity: int, result: str) -> dict[str, Any]:
    return {"type": "CrossTransferResult", "id": identity, "result": result}


def _leg(saga: Saga, ask: Ask) -> dict[str, Any]:
    is_debit = ask.step in (Step.reserve_debit, Step.post_debit, Step.void_debit, Step.refund)
    leg: dict[str, Any] = {
        "type": "LegRequested",
        "id": leg_id(saga.id, ask.step, ask.attempt),
        "cross_transfer_id": saga.id,
        "step": ask.step.name,
        "debit_account_id": 0,
        "credit_account_id": 0,
        "amount": saga.amount if is_debit else saga.credit_amount,
        "user_data_64": saga.user_data_64,
        "user_data_32": saga.user_data_32,
        "ledger": saga.debit_ledger if is_debit else saga.credit_ledger,
        "code": saga.code,
    }
    flags = ["linked"] if ask.linked else []
    match ask.step:
        case Step.reserve_debit:
            leg |= {"debit_account_id": saga.debit_account_id, "credit_account_id": saga.debit_clearing_account_id}
            leg |= {"timeout": saga.timeout + LEDGER_MARGIN_SECONDS}
            flags.append("pending")
        case Step.reserve_credit:
            leg |= {"debit_account_id": saga.credit_clearing_account_id, "credit_account_id": saga.credit_account_id}
            flags.append("pending")
        case Step.post_debit | Step.post_credit:
            leg |= {"pending_id": leg_id(saga.id, _RESERVATION[is_debit], 0), "amount": POST_IN_FULL}
            flags.append("post_pending_transfer")
        case Step.void_debit | Step.void_credit:
            leg |= {"pending_id": leg_id(saga.id, _RESERVATION[is_debit], 0), "amount": 0}
            flags.append("void_pending_transfer")
        case Step.refund:
            leg |= {"debit_account_id": saga.debit_clearing_account_id, "credit_account_id": saga.debit_account_id}
    return leg | {"flags": flags}


_RESERVATION: Final = {True: Step.reserve_debit, False: Step.reserve_credit}
