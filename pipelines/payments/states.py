"""The payment state machine: one table, and the names it is written in.

`TABLE` is the whole of it: what may happen (`Cause`) in which state (`Status`), what the payment becomes, and what is
then asked of others (`Ask`). The kernel takes no other step, docs/reference/payments.md is checked against it, and the
ISO 20022 codes (external code sets, https://www.iso20022.org/catalogue-messages/additional-content-messages/external-code-sets)
stand beside our own names. Enum order is the order of the symbols in avro/payments.*.avsc.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

__all__ = [
    "ISO_REASON",
    "ISO_STATUS",
    "NEVER_LEFT",
    "SETTLED",
    "TABLE",
    "UNSETTLED_END",
    "Action",
    "Ask",
    "Cause",
    "Reason",
    "Result",
    "Row",
    "Status",
    "markdown",
]


class Status(IntEnum):
    """Where a payment is. NONE: there is no payment yet."""

    NONE = 0
    RECEIVED = 1
    VALIDATED = 2
    SCREENED = 3
    RESERVED = 4
    COMPLETED = 5
    REJECTED = 6
    BLOCKED = 7
    IN_REVIEW = 8
    FAILED = 9
    EXPIRED = 10
    CANCELLED = 11
    PARTIALLY_REFUNDED = 12
    REFUNDED = 13


class Cause(IntEnum):
    """Why an event happened."""

    created = 0
    validated = 1
    rejected = 2
    cancelled = 3
    approved = 4
    not_screened = 5
    review_wanted = 6
    screening_unknown = 7
    screening_late = 8
    fraud_blocked = 9
    party_blocked = 10
    review_approved = 11
    review_declined = 12
    review_late = 13
    reserved = 14
    reserve_refused = 15
    ledger_late = 16
    capture_requested = 17
    captured_in_part = 18
    captured = 19
    capture_refused = 20
    capture_failed = 21
    rest_refused = 22
    void_requested = 23
    hold_late = 24
    voided = 25
    hold_expired = 26
    hold_released = 27
    rest_released = 28
    void_refused = 29
    refund_requested = 30
    refunded_in_part = 31
    refunded = 32
    refund_refused = 33


class Ask(IntEnum):
    """What an event asks of another system; bits of the event's ``asks``."""

    screen = 1
    """A fraud decision, from fraud.transactions."""
    reserve = 2
    """A pending transfer of what is not captured yet."""
    capture = 4
    """Post the pending transfer, or a part of it."""
    void = 8
    """Void the pending transfer."""
    refund = 16
    """A transfer back, from payee to payer."""


class Action(IntEnum):
    """What the ledger is asked for; part of the transfer's id."""

    reserve = 0
    capture = 1
    void = 2
    refund = 3


class Reason(IntEnum):
    """Our reason codes; `ISO_REASON` has the codes that banks know."""

    none = 0
    requested_by_customer = 1
    not_screened = 2
    fraud_suspected = 3
    fraud_unknown = 4
    screening_timed_out = 5
    review_declined = 6
    review_timed_out = 7
    blocked_party = 8
    payer_account_invalid = 9
    payee_account_invalid = 10
    accounts_must_be_different = 11
    payment_id_invalid = 12
    ledger_invalid = 13
    currency_invalid = 14
    currency_not_allowed = 15
    amount_must_not_be_zero = 16
    amount_below_minimum = 17
    amount_above_maximum = 18
    payment_limit_exceeded = 19
    day_limit_exceeded = 20
    month_limit_exceeded = 21
    duplicate_key = 22
    duplicate_content = 23
    after_cut_off = 24
    requested_at_out_of_range = 25
    execution_date_invalid = 26
    text_too_long = 27
    insufficient_funds = 28
    payer_account_not_found = 29
    payee_account_not_found = 30
    payer_account_closed = 31
    payee_account_closed = 32
    ledger_refused = 33
    ledger_timed_out = 34
    hold_expired = 35


class Result(IntEnum):
    """What became of one command. `done` changed the payment (or the rules); nothing else did."""

    done = 0
    rejected = 1
    """The payment exists and is REJECTED; the reason says why."""
    repeated = 2
    """This command was applied before, or what it says is known already."""
    exists_with_different_fields = 3
    payment_not_found = 4
    not_possible = 5
    """Not in this state."""
    busy = 6
    """The ledger has not answered yet; ask again."""
    amount_too_large = 7
    amount_invalid = 8
    command_invalid = 9


class Row(NamedTuple):
    """One line of the table."""

    status: Status
    cause: Cause
    becomes: Status
    asks: int = 0
    when: str = ""


_S, _C = Status, Cause
_RESERVE = Ask.reserve | Ask.capture

_ROWS: Final = (
    Row(_S.NONE, _C.created, _S.RECEIVED, 0, "a new payment id"),
    Row(_S.RECEIVED, _C.validated, _S.VALIDATED, Ask.screen, "every check passes, at once or at `execute_at`"),
    Row(_S.RECEIVED, _C.rejected, _S.REJECTED, 0, "a check fails; the first one decides"),
    Row(_S.RECEIVED, _C.party_blocked, _S.BLOCKED, 0, "payer or payee is on the list of blocked parties"),
    Row(_S.RECEIVED, _C.cancelled, _S.CANCELLED, 0, "scheduled, and the client cancels"),
    Row(_S.VALIDATED, _C.approved, _S.SCREENED, _RESERVE, "fraud approves"),
    Row(_S.VALIDATED, _C.not_screened, _S.SCREENED, _RESERVE, "the ledger's rules switch screening off"),
    Row(_S.VALIDATED, _C.review_wanted, _S.IN_REVIEW, 0, "fraud wants a person to look"),
    Row(_S.VALIDATED, _C.screening_unknown, _S.IN_REVIEW, 0, "fraud answers UNKNOWN"),
    Row(_S.VALIDATED, _C.screening_late, _S.IN_REVIEW, 0, "fraud does not answer in time"),
    Row(_S.VALIDATED, _C.fraud_blocked, _S.BLOCKED, 0, "fraud blocks"),
    Row(_S.VALIDATED, _C.party_blocked, _S.BLOCKED, 0, "a party was blocked meanwhile"),
    Row(_S.VALIDATED, _C.cancelled, _S.CANCELLED, 0, "the client cancels"),
    Row(_S.IN_REVIEW, _C.review_approved, _S.SCREENED, _RESERVE, "a reviewer approves"),
    Row(_S.IN_REVIEW, _C.approved, _S.SCREENED, _RESERVE, "fraud approves after UNKNOWN or after its time"),
    Row(_S.IN_REVIEW, _C.fraud_blocked, _S.BLOCKED, 0, "fraud blocks after UNKNOWN or after its time"),
    Row(_S.IN_REVIEW, _C.review_wanted, _S.IN_REVIEW, 0, "fraud wants a person to look, after UNKNOWN or its time"),
    Row(_S.IN_REVIEW, _C.review_declined, _S.BLOCKED, 0, "a reviewer declines"),
    Row(_S.IN_REVIEW, _C.party_blocked, _S.BLOCKED, 0, "approved, but a party was blocked meanwhile"),
    Row(_S.IN_REVIEW, _C.review_late, _S.EXPIRED, 0, "nobody decided in time"),
    Row(_S.IN_REVIEW, _C.cancelled, _S.CANCELLED, 0, "the client cancels"),
    Row(_S.SCREENED, _C.reserved, _S.RESERVED, 0, "the ledger holds the amount"),
    Row(_S.SCREENED, _C.reserve_refused, _S.FAILED, 0, "the ledger refuses the hold"),
    Row(_S.SCREENED, _C.ledger_late, _S.SCREENED, _RESERVE, "the ledger does not answer: asked again, same ids"),
    Row(_S.RESERVED, _C.capture_requested, _S.RESERVED, Ask.capture | Ask.reserve, "the client captures; a part that "
        "is not final reserves the rest anew"),
    Row(_S.RESERVED, _C.captured_in_part, _S.RESERVED, 0, "the ledger posted a part, and holds the rest"),
    Row(_S.RESERVED, _C.captured, _S.COMPLETED, 0, "the ledger posted the last part; what is left over is released"),
    Row(_S.RESERVED, _C.capture_refused, _S.RESERVED, 0, "the ledger refuses a capture that the client asked for"),
    Row(_S.RESERVED, _C.capture_failed, _S.RESERVED, Ask.void, "the ledger refuses the automatic capture"),
    Row(_S.RESERVED, _C.rest_refused, _S.COMPLETED, 0, "a part was posted, the ledger refuses to hold the rest"),
    Row(_S.RESERVED, _C.void_requested, _S.RESERVED, Ask.void, "the client voids what is not captured"),
    Row(_S.RESERVED, _C.hold_late, _S.RESERVED, Ask.void, "nobody captured in time"),
    Row(_S.RESERVED, _C.voided, _S.CANCELLED, 0, "voided for the client, nothing was captured"),
    Row(_S.RESERVED, _C.hold_expired, _S.EXPIRED, 0, "the hold ended with its time, nothing was captured"),
    Row(_S.RESERVED, _C.hold_released, _S.FAILED, 0, "voided after a failed capture"),
    Row(_S.RESERVED, _C.rest_released, _S.COMPLETED, 0, "voided or expired, after a part was captured"),
    Row(_S.RESERVED, _C.void_refused, _S.RESERVED, 0, "the ledger refuses the void; tried again later"),
    Row(_S.RESERVED, _C.ledger_late, _S.RESERVED, Ask.capture | Ask.reserve | Ask.void, "the ledger does not answer: "
        "asked again, same ids"),
    Row(_S.COMPLETED, _C.refund_requested, _S.COMPLETED, Ask.refund, "the client refunds"),
    Row(_S.COMPLETED, _C.refunded_in_part, _S.PARTIALLY_REFUNDED, 0, "the ledger moved a part back"),
    Row(_S.COMPLETED, _C.refunded, _S.REFUNDED, 0, "the ledger moved all of it back"),
    Row(_S.COMPLETED, _C.refund_refused, _S.COMPLETED, 0, "the ledger refuses the refund"),
    Row(_S.COMPLETED, _C.ledger_late, _S.COMPLETED, Ask.refund, "the ledger does not answer: asked again, same id"),
    Row(_S.PARTIALLY_REFUNDED, _C.refund_requested, _S.PARTIALLY_REFUNDED, Ask.refund, "the client refunds more"),
    Row(_S.PARTIALLY_REFUNDED, _C.refunded_in_part, _S.PARTIALLY_REFUNDED, 0, "the ledger moved a part back"),
    Row(_S.PARTIALLY_REFUNDED, _C.refunded, _S.REFUNDED, 0, "the ledger moved the last part back"),
    Row(_S.PARTIALLY_REFUNDED, _C.refund_refused, _S.PARTIALLY_REFUNDED, 0, "the ledger refuses the refund"),
    Row(_S.PARTIALLY_REFUNDED, _C.ledger_late, _S.PARTIALLY_REFUNDED, Ask.refund, "the ledger does not answer: asked "
        "again, same id"),
)  # fmt: skip

TABLE: Final[dict[tuple[Status, Cause], Row]] = {(row.status, row.cause): row for row in _ROWS}
assert len(TABLE) == len(_ROWS)

NEVER_LEFT: Final = frozenset(set(Status) - {row.status for row in _ROWS})
"""States in which nothing can happen any more."""

SETTLED: Final = NEVER_LEFT | {Status.COMPLETED, Status.PARTIALLY_REFUNDED}
"""Final states: the answer to "what became of it"; only refunds can follow."""

UNSETTLED_END: Final = frozenset({Status.REJECTED, Status.BLOCKED, Status.FAILED, Status.EXPIRED, Status.CANCELLED})
"""Final states in which no money moved."""

ISO_STATUS: Final[dict[Status, str]] = {
    Status.NONE: "",
    Status.RECEIVED: "RCVD",
    Status.VALIDATED: "ACTC",
    Status.SCREENED: "ACCP",
    Status.IN_REVIEW: "PDNG",
    Status.RESERVED: "ACSP",
    Status.COMPLETED: "ACSC",
    Status.PARTIALLY_REFUNDED: "ACSC",
    Status.REFUNDED: "ACSC",
    Status.REJECTED: "RJCT",
    Status.BLOCKED: "RJCT",
    Status.FAILED: "RJCT",
    Status.EXPIRED: "RJCT",
    Status.CANCELLED: "CANC",
}
"""ExternalPaymentTransactionStatus1Code of each status."""

ISO_REASON: Final[dict[Reason, str]] = {
    Reason.none: "",
    Reason.requested_by_customer: "CUST",
    Reason.not_screened: "",
    Reason.fraud_suspected: "FRAD",
    Reason.fraud_unknown: "NARR",
    Reason.screening_timed_out: "NARR",
    Reason.review_declined: "FRAD",
    Reason.review_timed_out: "AB05",
    Reason.blocked_party: "RR04",
    Reason.payer_account_invalid: "AC02",
    Reason.payee_account_invalid: "AC03",
    Reason.accounts_must_be_different: "AC03",
    Reason.payment_id_invalid: "FF01",
    Reason.ledger_invalid: "AC01",
    Reason.currency_invalid: "AM03",
    Reason.currency_not_allowed: "AM03",
    Reason.amount_must_not_be_zero: "AM01",
    Reason.amount_below_minimum: "AM06",
    Reason.amount_above_maximum: "AM02",
    Reason.payment_limit_exceeded: "AM14",
    Reason.day_limit_exceeded: "AM14",
    Reason.month_limit_exceeded: "AM14",
    Reason.duplicate_key: "AM05",
    Reason.duplicate_content: "AM05",
    Reason.after_cut_off: "TM01",
    Reason.requested_at_out_of_range: "DT01",
    Reason.execution_date_invalid: "DT01",
    Reason.text_too_long: "FF01",
    Reason.insufficient_funds: "AM04",
    Reason.payer_account_not_found: "AC02",
    Reason.payee_account_not_found: "AC03",
    Reason.payer_account_closed: "AC04",
    Reason.payee_account_closed: "AC07",
    Reason.ledger_refused: "ED05",
    Reason.ledger_timed_out: "AB06",
    Reason.hold_expired: "AB05",
}
"""ExternalStatusReason1Code of each reason."""


def markdown() -> str:
    """The tables of docs/reference/payments.md: transitions, states, reasons."""
    lines = ["| in | when | cause | becomes | asks for |", "|---|---|---|---|---|"]
    for row in _ROWS:
        asks = ", ".join(f"`{ask.name}`" for ask in Ask if row.asks & ask)
        lines.append(f"| {row.status.name} | {row.when} | `{row.cause.name}` | {row.becomes.name} | {asks} |")
    lines += ["", "| status | ISO 20022 | final |", "|---|---|---|"]
    for status in Status:
        if status is not Status.NONE:
            final = "" if status not in SETTLED else "yes" if status in NEVER_LEFT else "until refunded"
            lines.append(f"| {status.name} | {ISO_STATUS[status]} | {final} |")
    lines += ["", "| reason | ISO 20022 |", "|---|---|"]
    lines += [f"| `{reason.name}` | {ISO_REASON[reason] or '-'} |" for reason in Reason if reason is not Reason.none]
    return "\n".join(lines) + "\n"
