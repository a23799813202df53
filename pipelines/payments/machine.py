"""What each command does to a payment: the rules behind the table of `pipelines.payments.states`.

Every change of a payment goes through `Machine._step`, which looks the step up in the table. A client's command that
has no row is refused with its reason; a step of our own that has none is a broken invariant.

The saga asks the ledger for at most one operation of a payment at a time. Its transfers' ids are functions of the
payment's id, and the first answer to each counts: asking again, or being told twice, changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from pipelines.catalogue import PAYMENTS_SHARDS
from pipelines.kernel import InvariantBroken
from pipelines.payments.records import (
    DAY,
    DEFAULT_RULES,
    KEPT_DAYS,
    KEPT_MONTHS,
    LEDGER_MARGIN_SECONDS,
    MAX_ID,
    MAX_PAYMENT_ID,
    NEWEST_REQUEST,
    OLDEST_REQUEST,
    OPTIONAL_TEXTS,
    SECOND,
    TEXT_BYTES,
    Ending,
    Operation,
    Party,
    Payment,
    Rules,
)
from pipelines.payments.states import (
    ISO_REASON,
    ISO_STATUS,
    NEVER_LEFT,
    TABLE,
    Action,
    Ask,
    Cause,
    Reason,
    Result,
    Status,
)
from pipelines.payments.store import Store, hashed_key

__all__ = ["LATEST_TIME", "Answer", "Machine", "payment_fields"]

LATEST_TIME: Final = 7_258_118_400_000_000
"""2200-01-01, the latest time of any field."""
LATEST_EXECUTION: Final = 366 * DAY
MAX_SUM: Final = 2**62
MAX_ACTIONS: Final = 256
_WORD: Final = 2**64 - 1
_CURRENCY: Final = re.compile("[A-Z]{3}", re.ASCII)
_SUCCESS: Final = frozenset({"created", "exists"})
_HOLD_IS_GONE: Final = frozenset({"pending_transfer_expired", "pending_transfer_already_voided"})
_REFUSALS: Final = {
    "exceeds_credits": Reason.insufficient_funds,
    "debit_account_not_found": Reason.payer_account_not_found,
    "credit_account_not_found": Reason.payee_account_not_found,
    "debit_account_already_closed": Reason.payer_account_closed,
    "credit_account_already_closed": Reason.payee_account_closed,
    "pending_transfer_expired": Reason.hold_expired,
}
_REFUND_REFUSALS: Final = {
    **_REFUSALS,
    "debit_account_not_found": Reason.payee_account_not_found,
    "credit_account_not_found": Reason.payer_account_not_found,
    "debit_account_already_closed": Reason.payee_account_closed,
    "credit_account_already_closed": Reason.payer_account_closed,
}

Command = Mapping[str, Any]


class Answer(NamedTuple):
    """Result of one command; ``payment`` is the one it was about, if there is one."""

    result: Result
    payment: Payment | None = None
    reason: Reason = Reason.none


class Machine:
    """The rules over one shard's store. ``emit`` takes every event as a dict of the fields of PaymentChanged."""

    def __init__(self, store: Store, emit: Callable[[dict[str, Any]], None]) -> None:
        self._store = store
        self._emit = emit
        self._handlers: dict[str, Callable[[Command], Answer]] = {
            "CapturePayment": self._capture,
            "VoidPayment": self._void,
            "RefundPayment": self._refund,
            "CancelPayment": self._cancel,
            "FraudDecision": self._fraud_decision,
            "LedgerOutcome": self._ledger_outcome,
            "ReviewDecision": self._review_decision,
            "BlockedParty": self._blocked_party,
            "PayerLimits": self._payer_limits,
            "PaymentRules": self._payment_rules,
        }

    def apply(self, shard: int, command: Command) -> Answer:
        """Apply one command, as `pipelines.event_json.render_events` gives it; Tick is the kernel's own."""
        if command["type"] == "CreatePayment":
            return self._create(shard, command)
        return self._handlers[command["type"]](command)

    # --- creation and validation --------------------------------------------------------------------------------------

    def _create(self, shard: int, command: Command) -> Answer:
        payment_id = int(command["payment_id"])
        if not 0 < payment_id <= MAX_PAYMENT_ID:
            return Answer(Result.command_invalid, None, Reason.payment_id_invalid)
        payment, too_long = _new_payment(command)
        slot = self._store.find(payment_id)
        if slot >= 0:
            known = self._store.payment(slot)
            same = _asked(known) == _asked(payment)
            return Answer(Result.repeated if same else Result.exists_with_different_fields, known)
        slot = self._store.new_payment(payment)
        self._step(payment, Cause.created)
        reason = self._form_error(shard, payment, too_long)
        if reason is Reason.none and command["idempotency_key"]:
            key = hashed_key("idempotency", payment.payer, command["idempotency_key"])
            original = self._store.find(key)
            if original >= 0:
                reason = Reason.duplicate_key
                self._note_original(payment, original)
            else:
                self._store.add_key(key, slot)
        if reason is not Reason.none:
            self._step(payment, Cause.rejected, reason)
        elif payment.execute_at > self._store.clock:
            payment.deadline = payment.execute_at
        else:
            self._validate(slot, payment, payment.requested_at)
        self._store.put_payment(slot, payment)
        refused = payment.state in (Status.REJECTED, Status.BLOCKED)
        return Answer(Result.rejected if refused else Result.done, payment)

    def _note_original(self, payment: Payment, slot: int) -> None:
        known = self._store.payment(slot)
        payment.original_lo, payment.original_hi = known.id_lo, known.id_hi

    def _form_error(self, shard: int, payment: Payment, too_long: bool) -> Reason:
        """The first thing that is wrong whatever the time and the rules."""
        clock = self._store.clock
        if payment.ledger == 0 or payment.ledger % PAYMENTS_SHARDS != shard:
            return Reason.ledger_invalid
        if payment.payer in (0, MAX_ID):
            return Reason.payer_account_invalid
        if payment.payee in (0, MAX_ID):
            return Reason.payee_account_invalid
        if payment.payer == payment.payee:
            return Reason.accounts_must_be_different
        if not _CURRENCY.fullmatch(payment.currency.decode(errors="replace")):
            return Reason.currency_invalid
        if payment.amount == 0:
            return Reason.amount_must_not_be_zero
        if too_long:
            return Reason.text_too_long
        if not clock - OLDEST_REQUEST <= payment.requested_at <= clock + NEWEST_REQUEST:
            return Reason.requested_at_out_of_range
        if payment.execute_at > clock + LATEST_EXECUTION:
            return Reason.execution_date_invalid
        return Reason.none

    def _validate(self, slot: int, payment: Payment, at: int) -> None:
        """Check a payment whose time has come against rules, parties, duplicates and limits; ``at`` is when it counts.
        Passed, it is on its way to screening, or to the ledger where that is switched off."""
        rules = self._rules(payment)
        payment.deadline = 0
        if self._is_blocked(payment):
            self._step(payment, Cause.party_blocked, Reason.blocked_party)
            return
        reason = self._rules_error(payment, rules, at)
        content = hashed_key(
            "content", payment.payer, payment.payee, payment.ledger, payment.amount, payment.currency, payment.reference
        )
        if reason is Reason.none and rules.duplicate_seconds:
            original = self._store.find(content)
            if original >= 0 and abs(at - self._store.seen_at(content)) < rules.duplicate_seconds * SECOND:
                reason = Reason.duplicate_content
                self._note_original(payment, original)
        if reason is Reason.none:
            reason = self._count(payment, at)
        if reason is not Reason.none:
            self._step(payment, Cause.rejected, reason)
            return
        if rules.duplicate_seconds:
            self._store.add_key(content, slot, at)
        if rules.screening:
            payment.deadline = self._store.clock + rules.screening_seconds * SECOND
            self._step(payment, Cause.validated, asks=Ask.screen)
        else:
            self._step(payment, Cause.validated)
            self._approve(payment, Cause.not_screened, Reason.not_screened)

    def _rules(self, payment: Payment) -> Rules:
        return self._store.rules(payment.ledger) or replace(DEFAULT_RULES, ledger=payment.ledger)

    @staticmethod
    def _rules_error(payment: Payment, rules: Rules, at: int) -> Reason:
        if rules.currency and rules.currency != payment.currency:
            return Reason.currency_not_allowed
        if payment.amount < rules.minimum_amount:
            return Reason.amount_below_minimum
        if rules.maximum_amount and payment.amount > rules.maximum_amount:
            return Reason.amount_above_maximum
        if not rules.opens_at <= at // SECOND % 86_400 < rules.closes_at:
            return Reason.after_cut_off
        return Reason.none

    def _is_blocked(self, payment: Payment) -> bool:
        parties = (self._store.party(account)[1] for account in (payment.payer, payment.payee))
        return any(party is not None and party.blocked for party in parties)

    # --- limits -------------------------------------------------------------------------------------------------------

    def _count(self, payment: Payment, at: int) -> Reason:
        """Count a payment against its payer's limits, or say which one it would pass."""
        slot, party = self._store.party(payment.payer)
        if party is None:
            return Reason.none
        if party.per_payment and payment.amount > party.per_payment:
            return Reason.payment_limit_exceeded
        day, month = at // DAY, _month(at)
        day_sum, month_sum = _sum_of(party, day, month)
        if day_sum + payment.amount > (party.per_day or MAX_SUM):
            return Reason.day_limit_exceeded
        if month_sum + payment.amount > (party.per_month or MAX_SUM):
            return Reason.month_limit_exceeded
        party.days[day % KEPT_DAYS], party.day_sums[day % KEPT_DAYS] = day, day_sum + payment.amount
        party.months[month % KEPT_MONTHS], party.month_sums[month % KEPT_MONTHS] = month, month_sum + payment.amount
        payment.counted_day, payment.counted_month = day, month
        self._store.put_party(slot, party)
        return Reason.none

    def _give_back(self, payment: Payment) -> None:
        """What was not captured does not count against the limits, as far as their day and month are kept."""
        unused = payment.amount - payment.captured
        if payment.counted_day < 0 or not unused:
            return
        slot, party = self._store.party(payment.payer)
        if party is None:
            return
        day, month = payment.counted_day, payment.counted_month
        if party.days[day % KEPT_DAYS] == day:
            party.day_sums[day % KEPT_DAYS] -= unused
        if party.months[month % KEPT_MONTHS] == month:
            party.month_sums[month % KEPT_MONTHS] -= unused
        payment.counted_day = -1
        self._store.put_party(slot, party)

    # --- screening ----------------------------------------------------------------------------------------------------

    def _approve(self, payment: Payment, cause: Cause, reason: Reason = Reason.none) -> None:
        """On to the ledger, unless a party was blocked while the payment waited."""
        if self._is_blocked(payment):
            self._step(payment, Cause.party_blocked, Reason.blocked_party)
            return
        rules = self._rules(payment)
        payment.hold_seconds = payment.hold_seconds or rules.hold_seconds
        payment.operation = Operation.reserve if payment.manual_capture else Operation.reserve_and_capture
        payment.operation_amount = payment.amount
        payment.captures_asked = 0 if payment.manual_capture else 1
        self._await_ledger(payment)
        self._step(payment, cause, reason, asks=_asks(payment))

    def _fraud_decision(self, command: Command) -> Answer:
        slot, payment = self._find(command)
        if payment is None:
            return Answer(Result.payment_not_found)
        waits = payment.state is Status.VALIDATED or (payment.state is Status.IN_REVIEW and payment.fraud_may_answer)
        decision = command["decision"]
        if payment.state is Status.RECEIVED:
            return Answer(Result.not_possible, payment)
        if not waits or (decision == "UNKNOWN" and payment.state is Status.IN_REVIEW):
            return Answer(Result.repeated, payment)
        if decision == "APPROVE":
            self._approve(payment, Cause.approved)
        elif decision == "BLOCK":
            self._step(payment, Cause.fraud_blocked, Reason.fraud_suspected)
        else:
            payment.fraud_may_answer = decision == "UNKNOWN"
            if payment.state is Status.VALIDATED:
                payment.deadline = self._store.clock + self._rules(payment).review_seconds * SECOND
            if decision == "UNKNOWN":
                self._step(payment, Cause.screening_unknown, Reason.fraud_unknown)
            else:
                self._step(payment, Cause.review_wanted, Reason.fraud_suspected)
        return self._done(slot, payment)

    def _review_decision(self, command: Command) -> Answer:
        slot, payment = self._find(command)
        if payment is None:
            return Answer(Result.payment_not_found)
        if payment.state is not Status.IN_REVIEW:
            return Answer(Result.not_possible, payment)
        if command["approved"]:
            self._approve(payment, Cause.review_approved)
        else:
            self._step(payment, Cause.review_declined, Reason.review_declined)
        return self._done(slot, payment)

    # --- commands of clients ------------------------------------------------------------------------------------------

    def _capture(self, command: Command) -> Answer:
        slot, payment, refusal = self._client_command(command, Status.RESERVED)
        if payment is None or refusal is not None:
            return refusal or Answer(Result.payment_not_found)
        amount = command["amount"] or payment.held
        if amount > payment.held:
            return Answer(Result.amount_too_large, payment)
        is_last = command["final"] or amount == payment.held
        if payment.captures_asked == MAX_ACTIONS - 1 and not is_last:
            return Answer(Result.not_possible, payment)
        payment.operation = Operation.capture if is_last else Operation.capture_part
        payment.operation_amount = amount
        payment.captures_asked += 1
        self._await_ledger(payment)
        self._step(payment, Cause.capture_requested, asks=_asks(payment))
        return self._done(slot, payment, command)

    def _void(self, command: Command) -> Answer:
        slot, payment, refusal = self._client_command(command, Status.RESERVED)
        if payment is None or refusal is not None:
            return refusal or Answer(Result.payment_not_found)
        self._ask_void(payment, Cause.void_requested, Ending.voided, Reason.requested_by_customer)
        return self._done(slot, payment, command)

    def _refund(self, command: Command) -> Answer:
        slot, payment, refusal = self._client_command(command, Status.COMPLETED, Status.PARTIALLY_REFUNDED)
        if payment is None or refusal is not None:
            return refusal or Answer(Result.payment_not_found)
        left = payment.captured - payment.refunded
        amount = command["amount"] or left
        if amount > left:
            return Answer(Result.amount_too_large, payment)
        if payment.refunds_asked == MAX_ACTIONS - 1 and amount < left:
            return Answer(Result.not_possible, payment)
        payment.operation = Operation.refund
        payment.operation_amount = amount
        payment.refunds_asked += 1
        self._await_ledger(payment)
        self._step(payment, Cause.refund_requested, Reason.requested_by_customer, asks=_asks(payment))
        return self._done(slot, payment, command)

    def _cancel(self, command: Command) -> Answer:
        slot, payment, refusal = self._client_command(command, Status.RECEIVED, Status.VALIDATED, Status.IN_REVIEW)
        if payment is None or refusal is not None:
            return refusal or Answer(Result.payment_not_found)
        self._step(payment, Cause.cancelled, Reason.requested_by_customer)
        return self._done(slot, payment, command)

    def _client_command(self, command: Command, *states: Status) -> tuple[int, Payment | None, Answer | None]:
        """The payment of a client's command, and the refusal if it is not new, or not possible now."""
        slot, payment = self._find(command)
        if payment is None:
            return slot, None, Answer(Result.payment_not_found)
        if int(command["command_id"]) == 0:
            return slot, payment, Answer(Result.command_invalid, payment)
        if self._store.find(_command_key(command)) >= 0:
            return slot, payment, Answer(Result.repeated, payment)
        if payment.operation != Operation.none:
            return slot, payment, Answer(Result.busy, payment)
        if payment.state not in states:
            return slot, payment, Answer(Result.not_possible, payment)
        return slot, payment, None

    # --- the ledger ---------------------------------------------------------------------------------------------------

    def _ledger_outcome(self, command: Command) -> Answer:
        slot, payment = self._find(command)
        if payment is None:
            return Answer(Result.payment_not_found)
        handler = {
            Action.reserve: self._reserve_answered,
            Action.capture: self._capture_answered,
            Action.void: self._void_answered,
            Action.refund: self._refund_answered,
        }[Action[command["action"]]]
        if not handler(payment, command["number"], command["result"]):
            return Answer(Result.repeated, payment)
        return self._done(slot, payment)

    def _reserve_answered(self, payment: Payment, number: int, result: str) -> bool:
        operation = payment.operation
        if operation in (Operation.reserve, Operation.reserve_and_capture) and number == payment.hold_number:
            if result not in _SUCCESS:
                self._step(payment, Cause.reserve_refused, _REFUSALS.get(result, Reason.ledger_refused))
                return True
            payment.held = payment.amount
            payment.hold_until = self._store.clock + payment.hold_seconds * SECOND
            if operation == Operation.reserve:
                self._operation_over(payment)
            else:
                payment.operation = Operation.capture
            self._step(payment, Cause.reserved)
            return True
        if operation == Operation.reserve_rest and number == payment.hold_number + 1:
            if result in _SUCCESS:
                payment.hold_number += 1
                self._operation_over(payment)
                self._step(payment, Cause.captured_in_part, amount=payment.operation_amount)
            else:
                self._release(payment)
                reason = _REFUSALS.get(result, Reason.ledger_refused)
                self._step(payment, Cause.rest_refused, reason, amount=payment.operation_amount)
            return True
        return False

    def _capture_answered(self, payment: Payment, number: int, result: str) -> bool:
        operation = payment.operation
        if operation not in (Operation.capture, Operation.capture_part) or number != payment.captures_asked - 1:
            return False
        amount = payment.operation_amount
        if result in _SUCCESS:
            payment.captured += amount
            payment.held -= amount
            if operation == Operation.capture_part:
                payment.operation = Operation.reserve_rest
            else:
                self._release(payment)
                self._step(payment, Cause.captured, amount=amount)
        elif result in _HOLD_IS_GONE:
            self._release(payment)
            ended = Cause.rest_released if payment.captured else Cause.hold_expired
            self._step(payment, ended, Reason.hold_expired)
        elif payment.manual_capture:
            self._operation_over(payment)
            self._step(payment, Cause.capture_refused, _REFUSALS.get(result, Reason.ledger_refused), amount=amount)
        else:
            reason = _REFUSALS.get(result, Reason.ledger_refused)
            self._ask_void(payment, Cause.capture_failed, Ending.hold_released, reason)
        return True

    def _void_answered(self, payment: Payment, number: int, result: str) -> bool:
        if payment.operation != Operation.void or number != payment.voids_asked - 1:
            return False
        if result in _SUCCESS or result in _HOLD_IS_GONE:
            self._release(payment)
            ended = Cause.rest_released if payment.captured else Cause[Ending(payment.ending).name]
            self._step(payment, ended, payment.why)
        else:
            # the ledger's own time-out of the hold comes in any case; ask again then
            payment.hold_until = self._store.clock + LEDGER_MARGIN_SECONDS * SECOND
            self._operation_over(payment)
            self._step(payment, Cause.void_refused, Reason.ledger_refused)
        return True

    def _refund_answered(self, payment: Payment, number: int, result: str) -> bool:
        if payment.operation != Operation.refund or number != payment.refunds_asked - 1:
            return False
        amount = payment.operation_amount
        self._operation_over(payment)
        if result in _SUCCESS:
            payment.refunded += amount
            cause = Cause.refunded if payment.refunded == payment.captured else Cause.refunded_in_part
            self._step(payment, cause, Reason.requested_by_customer, amount=amount)
        else:
            reason = _REFUND_REFUSALS.get(result, Reason.ledger_refused)
            self._step(payment, Cause.refund_refused, reason, amount=amount)
        return True

    def _ask_void(self, payment: Payment, cause: Cause, ending: Ending, reason: Reason) -> None:
        payment.operation = Operation.void
        payment.operation_amount = payment.held
        payment.voids_asked = min(payment.voids_asked + 1, MAX_ACTIONS - 1)
        payment.ending = ending
        self._await_ledger(payment)
        self._step(payment, cause, reason, asks=_asks(payment))

    def _await_ledger(self, payment: Payment) -> None:
        payment.deadline = self._store.clock + self._rules(payment).ledger_seconds * SECOND

    @staticmethod
    def _operation_over(payment: Payment) -> None:
        payment.operation = Operation.none
        payment.deadline = payment.hold_until if payment.held else 0

    @staticmethod
    def _release(payment: Payment) -> None:
        """The ledger holds nothing any more."""
        payment.released += payment.held
        payment.held = 0

    # --- time-outs ----------------------------------------------------------------------------------------------------

    def due(self, slot: int) -> None:
        """The deadline of the payment in ``slot`` has come."""
        payment = self._store.payment(slot)
        payment.deadline = 0
        if payment.operation != Operation.none:
            self._await_ledger(payment)
            self._step(payment, Cause.ledger_late, Reason.ledger_timed_out, asks=_asks(payment))
        elif payment.state is Status.RECEIVED:
            self._validate(slot, payment, self._store.clock)
        elif payment.state is Status.VALIDATED:
            payment.fraud_may_answer = 1
            payment.deadline = self._store.clock + self._rules(payment).review_seconds * SECOND
            self._step(payment, Cause.screening_late, Reason.screening_timed_out)
        elif payment.state is Status.IN_REVIEW:
            self._step(payment, Cause.review_late, Reason.review_timed_out)
        elif payment.state is Status.RESERVED:
            self._ask_void(payment, Cause.hold_late, Ending.hold_expired, Reason.hold_expired)
        self._store.put_payment(slot, payment)

    # --- parties and rules --------------------------------------------------------------------------------------------
    # The latest decision counts, whatever arrives again or late: an older one changes nothing.

    def _blocked_party(self, command: Command) -> Answer:
        slot, party = self._store.party_or_new(int(command["account_id"]))
        decided_at = max(1, command["decided_at"])
        if decided_at < abs(party.blocked_at):
            return Answer(Result.repeated)
        party.blocked_at = decided_at if command["blocked"] else -decided_at
        self._store.put_party(slot, party)
        return Answer(Result.done)

    def _payer_limits(self, command: Command) -> Answer:
        slot, party = self._store.party_or_new(int(command["account_id"]))
        if command["decided_at"] < party.limited_at:
            return Answer(Result.repeated)
        party.limited_at = command["decided_at"]
        for name in ("per_payment", "per_day", "per_month"):
            setattr(party, name, command[name])
        self._store.put_party(slot, party)
        return Answer(Result.done)

    def _payment_rules(self, command: Command) -> Answer:
        fields = {name: value for name, value in command.items() if name not in ("type", "currency", "screening")}
        currency = command["currency"]
        rules = Rules(**fields, currency=currency.encode(), screening=int(command["screening"] == "stream"))
        if (currency and not _CURRENCY.fullmatch(currency)) or not rules.opens_at < rules.closes_at:
            return Answer(Result.command_invalid)
        in_force = self._store.rules(rules.ledger)
        if in_force is not None and rules.decided_at < in_force.decided_at:
            return Answer(Result.repeated)
        return Answer(Result.done if self._store.put_rules(rules) else Result.command_invalid)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _find(self, command: Command) -> tuple[int, Payment | None]:
        payment_id = int(command["payment_id"])
        slot = self._store.find(payment_id) if 0 < payment_id <= MAX_PAYMENT_ID else -1
        return slot, self._store.payment(slot) if slot >= 0 else None

    def _done(self, slot: int, payment: Payment, command: Command | None = None) -> Answer:
        self._store.put_payment(slot, payment)
        if command is not None:
            self._store.add_key(_command_key(command), slot)
        return Answer(Result.done, payment)

    def _step(
        self, payment: Payment, cause: Cause, reason: Reason = Reason.none, *, asks: int = 0, amount: int = 0
    ) -> None:
        """Take the table's step and say so. ``amount`` is that of the operation that was answered."""
        before = payment.state
        row = TABLE.get((before, cause))
        if row is None or asks & ~row.asks:
            raise InvariantBroken(
                f"payments: the table has no {cause.name} in {before.name} that asks for {Ask(asks)!r}, which payment "
                f"{payment.payment_id} came to"
            )
        payment.status = row.becomes
        payment.reason = reason
        payment.version += 1
        if row.becomes in NEVER_LEFT or (row.becomes is Status.COMPLETED and before is Status.RESERVED):
            payment.deadline = 0
            payment.operation = Operation.none
            self._give_back(payment)
        payment.deadline = min(payment.deadline, LATEST_TIME)
        self._emit(self._event(payment, before, cause, asks, amount))

    def _event(self, payment: Payment, before: Status, cause: Cause, asks: int, amount: int) -> dict[str, Any]:
        rest = payment.operation in (Operation.capture_part, Operation.reserve_rest)
        holds = payment.held - (payment.operation_amount if payment.operation == Operation.capture_part else 0)
        reserves = holds if rest else payment.amount
        return {
            "type": "PaymentChanged",
            "payment_id": payment.payment_id,
            "version": payment.version,
            "at": self._store.clock,
            "cause": cause.name,
            "previous_status": before.name,
            "status": payment.state.name,
            "reason": payment.why.name,
            "iso_status": ISO_STATUS[payment.state],
            "iso_reason": ISO_REASON[payment.why],
            "asks": [ask.name for ask in Ask if asks & ask],
            "hold_number": payment.hold_number,
            "reserve_number": payment.hold_number + rest,
            "capture_number": max(payment.captures_asked - 1, 0),
            "void_number": max(payment.voids_asked - 1, 0),
            "refund_number": max(payment.refunds_asked - 1, 0),
            "reserve_amount": reserves if asks & Ask.reserve else 0,
            "action_amount": payment.operation_amount if asks & (Ask.capture | Ask.refund | Ask.void) else amount,
            "hold_seconds": payment.hold_seconds + LEDGER_MARGIN_SECONDS if asks & Ask.reserve else 0,
            **payment_fields(payment),
        }


def payment_fields(payment: Payment) -> dict[str, Any]:
    """What a payment is, by the names of PaymentChanged, without its state and what is asked."""
    texts: dict[str, Any] = {name: getattr(payment, name).decode() for name in TEXT_BYTES}
    for position, name in enumerate(OPTIONAL_TEXTS):
        if not payment.texts_set >> position & 1:
            texts[name] = None
    numbers = (
        "ledger", "amount", "held", "captured", "released", "refunded", "requested_at", "execute_at", "deadline",
        "customer_id", "terminal_id",
    )  # fmt: skip
    return {
        "payer_account_id": payment.payer,
        "payee_account_id": payment.payee,
        "capture": "manual" if payment.manual_capture else "automatic",
        "original_payment_id": payment.original_lo | payment.original_hi << 64,
        **{name: getattr(payment, name) for name in numbers},
        **texts,
    }


def _asks(payment: Payment) -> int:
    """What the operation under way asks of the ledger."""
    return {
        Operation.reserve: Ask.reserve,
        Operation.reserve_and_capture: Ask.reserve | Ask.capture,
        Operation.capture: Ask.capture,
        Operation.capture_part: Ask.capture | Ask.reserve,
        Operation.reserve_rest: Ask.reserve,
        Operation.void: Ask.void,
        Operation.refund: Ask.refund,
    }[Operation(payment.operation)]


def _new_payment(command: Command) -> tuple[Payment, bool]:
    """The payment that a command asks for, its texts cut to what is kept; and whether one had to be cut."""
    fields: dict[str, Any] = dict.fromkeys(Payment.__slots__, 0)
    for name, field in (
        ("id", "payment_id"), ("payer", "payer_account_id"), ("payee", "payee_account_id"),
    ):  # fmt: skip
        value = int(command[field])
        fields[f"{name}_lo"], fields[f"{name}_hi"] = value & _WORD, value >> 64
    for field in ("ledger", "amount", "requested_at", "execute_at", "hold_seconds", "customer_id", "terminal_id"):
        fields[field] = int(command[field])
    too_long = False
    for field, most in TEXT_BYTES.items():
        text = (command[field] or "").replace("\0", "")
        fields[field] = text.encode()[:most].decode(errors="ignore").encode()
        too_long = too_long or len(text.encode()) > most
    fields["manual_capture"] = int(command["capture"] == "manual")
    fields["texts_set"] = sum(
        1 << position for position, name in enumerate(OPTIONAL_TEXTS) if command[name] is not None
    )
    fields["counted_day"] = -1
    fields["unused_too"] = b""
    return Payment(**fields), too_long


def _asked(payment: Payment) -> tuple[object, ...]:
    """What must be the same when a payment is asked for again."""
    return (
        payment.payer, payment.payee, payment.ledger, payment.amount, payment.currency, payment.manual_capture,
        payment.execute_at, payment.end_to_end_id, payment.reference,
    )  # fmt: skip


def _command_key(command: Command) -> int:
    return hashed_key("command", command["payment_id"], command["command_id"])


def _month(at: int) -> int:
    """Months since 1970 of a UTC time."""
    return int(np.datetime64(at, "us").astype("datetime64[M]").astype(np.int64))


def _sum_of(party: Party, day: int, month: int) -> tuple[int, int]:
    day_slot, month_slot = day % KEPT_DAYS, month % KEPT_MONTHS
    return (
        party.day_sums[day_slot] if party.days[day_slot] == day else 0,
        party.month_sums[month_slot] if party.months[month_slot] == month else 0,
    )
