"""Payments as a kernel: the state machine of one shard over paged state.

A frame of payments.commands is answered by one frame of payments.results, with one result per command at the same
position, and one of payments.events, with every transition (possibly none): time-outs first, then by command.

Units: amounts in the ledger's minor unit, times UTC microseconds. The clock is the latest ``produced_at`` or Tick; a
frame lets at most `MAX_DUE_PER_FRAME` payments time out, the others follow with the next frames.
docs/reference/payments.md has the table and every rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import numpy as np

from pipelines.codec import codec_of
from pipelines.errors import FrameError, StateVersionError, StreambankError
from pipelines.event_json import EventsBuilder, render_events
from pipelines.frames import Frame
from pipelines.kernel import InvariantBroken, Output
from pipelines.payments.machine import LATEST_TIME, Answer, Machine, payment_fields
from pipelines.payments.records import Operation
from pipelines.payments.states import NEVER_LEFT, Action, Ask, Cause, Reason, Result, Status
from pipelines.payments.store import CapacityExceeded, Store

__all__ = ["MAX_DUE_PER_FRAME", "CapacityExceeded", "PaymentsKernel"]

STATE_VERSION: Final = 1
MAX_DUE_PER_FRAME: Final = 100

_COMMANDS: Final = "payments.commands"
_RESULTS: Final = "payments.results"
_EVENTS: Final = "payments.events"


class PaymentsKernel:
    """One shard of payments.

    The arguments reserve address space, not memory: a payment takes 512 bytes and about 50 for each of its keys (its
    id, its idempotency key, its content where duplicates are looked for, each command of a client).
    """

    state_version: ClassVar[int] = STATE_VERSION

    def __init__(self, *, max_payments: int = 1 << 24, max_parties: int = 1 << 22) -> None:
        self._commands = codec_of(_COMMANDS)
        self._results = codec_of(_RESULTS)
        self._events = codec_of(_EVENTS)
        self._check_schemas()
        self._store = Store(max_payments, max_parties)
        self._machine = Machine(self._store, lambda event: self._emitted.add(event))
        self._emitted = EventsBuilder(self._events)
        self._due_left = 0

    def _check_schemas(self) -> None:
        changed, result = self._events.event_type("PaymentChanged"), self._results.event_type("PaymentResult")
        outcome = self._commands.event_type("LedgerOutcome")
        for field, symbols in (
            (changed.field("status").symbols, Status), (changed.field("cause").symbols, Cause),
            (changed.field("reason").symbols, Reason), (changed.field("asks").flags, Ask),
            (result.field("status").symbols, Status), (result.field("result").symbols, Result),
            (result.field("reason").symbols, Reason), (outcome.field("action").symbols, Action),
            (result.field("command").symbols, self._commands.event_types),
        ):  # fmt: skip
            if field != tuple(symbol.name for symbol in symbols):
                raise StreambankError(f"payments: the schemas have the names {field}, which the kernel has not")

    def apply(self, frame: Frame) -> list[Output]:
        """Apply one frame of payments.commands; see `pipelines.kernel.Kernel.apply`.

        `FrameError` reason: ``produced_at_out_of_range``.
        """
        if not 0 <= frame.produced_at <= LATEST_TIME:
            raise FrameError(
                "produced_at_out_of_range",
                f"produced_at {frame.produced_at} is not in microseconds between 1970 and 2200",
            )
        self._store.require_room(len(frame.events) + MAX_DUE_PER_FRAME)
        self._emitted = EventsBuilder(self._events)
        self._due_left = MAX_DUE_PER_FRAME
        self._advance(frame.produced_at)
        results = EventsBuilder(self._results)
        for command in render_events(self._commands, frame.events):
            if command["type"] == "Tick":
                self._advance(command["at"])
                answer = Answer(Result.done)
            else:
                answer = self._machine.apply(frame.shard, command)
            results.add(self._result(command, answer))
        return [Output(_RESULTS, results.build()), Output(_EVENTS, self._emitted.build())]

    def _advance(self, time: int) -> None:
        self._store.advance(time)
        while self._due_left and (slot := self._store.next_due()) >= 0:
            self._due_left -= 1
            self._machine.due(slot)

    def _result(self, command: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        payment = answer.payment
        return {
            "type": "PaymentResult",
            "command": command["type"],
            "payment_id": payment.payment_id if payment else int(command.get("payment_id", 0)),
            "result": answer.result.name,
            "status": payment.state.name if payment else Status.NONE.name,
            "reason": answer.reason.name if payment is None else payment.why.name,
            "version": payment.version if payment else 0,
            "original_payment_id": payment.original_lo | payment.original_hi << 64 if payment else 0,
            "at": self._store.clock,
        }

    def dirty_pages(self) -> dict[str, bytes]:
        return self._store.paged.dirty_pages()

    def dirty_bytes(self) -> int:
        return self._store.paged.dirty_bytes()

    def restore(self, pages: Mapping[str, bytes], state_version: int) -> None:
        """Load stored pages and rebuild what follows from them: id index, time-outs and rules.

        Raises `InvariantBroken` when the pages do not make up a whole state (one is missing, say).
        """
        if state_version != STATE_VERSION:
            raise StateVersionError(f"payments: state version {state_version} found, this code reads {STATE_VERSION}")
        self._store.load(pages)
        self.audit()

    @property
    def clock(self) -> int:
        """Latest time heard of, UTC microseconds."""
        return self._store.clock

    @property
    def counts(self) -> dict[str, int]:
        """Payments, parties, keys and ledgers with rules."""
        return self._store.counts

    def audit(self) -> dict[str, int]:
        """Check the invariants of all payments; O(payments). Returns the sums of amounts by what became of them.

        What the ledger holds is what was reserved, less captured, less released; nothing is refunded that was not
        captured; only a reserved payment holds anything, and a final one waits for nothing. Raises `InvariantBroken`.
        """
        rows = self._store.paged.columns["payments"][: self.counts["payments"]]
        status = rows["status"]
        sums = rows["held"] + rows["captured"] + rows["released"]
        ended = np.isin(status, [int(found) for found in NEVER_LEFT])
        for what, broken in (
            ("without id or version", ((rows["id_lo"] | rows["id_hi"]) == 0) | (rows["version"] == 0)),
            ("with an unknown status", (status == Status.NONE) | (status > max(Status))),
            ("refunded beyond what was captured", (rows["refunded"] < 0) | (rows["refunded"] > rows["captured"])),
            (
                "whose hold is not reserved - captured - released",
                (sums != 0) & (sums != rows["amount"]) | (rows["held"] < 0) | (rows["released"] < 0),
            ),
            ("that holds money and is not RESERVED", (rows["held"] > 0) & (status != Status.RESERVED)),
            (
                "completed without a capture",
                (rows["captured"] == 0)
                & np.isin(status, [Status.COMPLETED, Status.PARTIALLY_REFUNDED, Status.REFUNDED]),
            ),
            (
                "that ended and still waits",
                ended & ((rows["operation"] != Operation.none) | (rows["deadline"] != 0)),
            ),
        ):
            if broken.any():
                first = int(np.flatnonzero(broken)[0])
                raise InvariantBroken(
                    f"payments: {int(broken.sum())} payments {what}, the first one in row {first}; a stored page may "
                    "be missing"
                )
        return {name: int(rows[name].sum()) for name in ("amount", "held", "captured", "released", "refunded")}

    def state_rows(self) -> Iterator[dict[str, Any]]:
        """The clock, then payments in the order of their creation, with the names of PaymentChanged."""
        yield {"type": "Shard", "clock": self.clock, **self.counts}
        for slot in range(self.counts["payments"]):
            payment = self._store.payment(slot)
            yield {
                "type": "Payment",
                "payment_id": payment.payment_id,
                "version": payment.version,
                "status": payment.state.name,
                "reason": payment.why.name,
                "waits_for": Operation(payment.operation).name,
                **payment_fields(payment),
            }
