"""What the payments kernel keeps: payments, parties, rules of ledgers, and the ids of a payment's transfers.

Amounts are integers in the ledger's minor unit, at most 10^15, so that sums fit 64 bits. Times are UTC microseconds.
Each record is a row of a paged column; in the kernel's hands it is a dataclass with the same fields in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from pipelines.payments.states import Action, Reason, Status

__all__ = [
    "DEFAULT_RULES",
    "KEY",
    "PARTY",
    "PAYMENT",
    "RULES",
    "TEXT_BYTES",
    "Ending",
    "Operation",
    "Party",
    "Payment",
    "Rules",
    "Transfer",
    "transfer_id",
    "transfer_of",
]

MAX_PAYMENT_ID: Final = 2**96 - 1
MAX_ID: Final = 2**128 - 1
SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND

OLDEST_REQUEST: Final = 2 * DAY
"""`requested_at` may be so much before the kernel's clock,"""
NEWEST_REQUEST: Final = 1 * DAY
"""and so much after it; together with today these are `KEPT_DAYS` days."""
KEPT_DAYS: Final = 4
KEPT_MONTHS: Final = 2
LEDGER_MARGIN_SECONDS: Final = 600
"""The ledger's own time-out of a hold is so much longer than ours, which comes first and says why."""

TRANSFER_PREFIX: Final = 0x5041
"""Top 16 bits of the ids of payments' transfers ("PA"); no other user of the ledger takes ids with them."""


class Operation(IntEnum):
    """What was asked of the ledger and is not answered yet; at most one at a time."""

    none = 0
    reserve = 1
    """Of a payment that is captured by its client."""
    reserve_and_capture = 2
    capture = 3
    """Automatic, or final: nothing is reserved after it."""
    capture_part = 4
    """The rest is reserved anew: two transfers."""
    reserve_rest = 5
    """Of these two, the first was answered."""
    void = 6
    refund = 7


class Ending(IntEnum):
    """Why a void was asked for, which decides what the payment becomes."""

    voided = 0
    hold_expired = 1
    hold_released = 2


PAYMENT: Final = np.dtype(
    [
        ("id_lo", "<u8"), ("id_hi", "<u8"),
        ("payer_lo", "<u8"), ("payer_hi", "<u8"), ("payee_lo", "<u8"), ("payee_hi", "<u8"),
        ("original_lo", "<u8"), ("original_hi", "<u8"),
        ("amount", "<i8"), ("held", "<i8"), ("captured", "<i8"), ("released", "<i8"), ("refunded", "<i8"),
        ("operation_amount", "<i8"),
        ("requested_at", "<i8"), ("execute_at", "<i8"), ("deadline", "<i8"), ("hold_until", "<i8"),
        ("hold_seconds", "<i8"), ("customer_id", "<i8"), ("terminal_id", "<i8"),
        ("ledger", "<u4"), ("version", "<u4"), ("counted_day", "<i4"), ("counted_month", "<i4"),
        ("status", "u1"), ("reason", "u1"), ("manual_capture", "u1"), ("operation", "u1"),
        ("hold_number", "u1"), ("captures_asked", "u1"), ("voids_asked", "u1"), ("refunds_asked", "u1"),
        ("ending", "u1"), ("fraud_may_answer", "u1"), ("texts_set", "u1"), ("unused", "u1"),
        ("currency", "S4"), ("end_to_end_id", "S36"), ("reference", "S140"), ("device", "S56"), ("country", "S4"),
        ("merchant", "S56"), ("unused_too", "S20"),
    ]
)  # fmt: skip
assert PAYMENT.itemsize == 512, PAYMENT.itemsize

TEXT_BYTES: Final = {
    "currency": 4, "end_to_end_id": 35, "reference": 140, "device": 56, "country": 2, "merchant": 56,
}  # fmt: skip
OPTIONAL_TEXTS: Final = ("device", "country", "merchant")


@dataclass(slots=True)
class Payment:
    """A row of `PAYMENT`. ``counted_day`` is -1 while no limit counts it; ``hold_seconds`` 0 takes the rules'."""

    id_lo: int
    id_hi: int
    payer_lo: int
    payer_hi: int
    payee_lo: int
    payee_hi: int
    original_lo: int
    original_hi: int
    amount: int
    held: int
    captured: int
    released: int
    refunded: int
    operation_amount: int
    requested_at: int
    execute_at: int
    deadline: int
    hold_until: int
    hold_seconds: int
    customer_id: int
    terminal_id: int
    ledger: int
    version: int
    counted_day: int
    counted_month: int
    status: int
    reason: int
    manual_capture: int
    operation: int
    hold_number: int
    captures_asked: int
    voids_asked: int
    refunds_asked: int
    ending: int
    fraud_may_answer: int
    texts_set: int
    unused: int
    currency: bytes
    end_to_end_id: bytes
    reference: bytes
    device: bytes
    country: bytes
    merchant: bytes
    unused_too: bytes = b""

    @property
    def payment_id(self) -> int:
        return self.id_lo | self.id_hi << 64

    @property
    def payer(self) -> int:
        return self.payer_lo | self.payer_hi << 64

    @property
    def payee(self) -> int:
        return self.payee_lo | self.payee_hi << 64

    @property
    def state(self) -> Status:
        return Status(self.status)

    @property
    def why(self) -> Reason:
        return Reason(self.reason)


PARTY: Final = np.dtype(
    [
        ("id_lo", "<u8"), ("id_hi", "<u8"),
        ("per_payment", "<i8"), ("per_day", "<i8"), ("per_month", "<i8"),
        ("day_sums", "<i8", (KEPT_DAYS,)), ("month_sums", "<i8", (KEPT_MONTHS,)),
        ("days", "<i4", (KEPT_DAYS,)), ("months", "<i4", (KEPT_MONTHS,)),
        ("blocked_at", "<i8"), ("limited_at", "<i8"),
    ]
)  # fmt: skip
assert PARTY.itemsize == 128, PARTY.itemsize


@dataclass(slots=True)
class Party:
    """A row of `PARTY`: limits (0: none), the sums they are held against by day and month (a day's sum lies at its
    number modulo `KEPT_DAYS`), when they were decided on, and when the account was blocked: negative, when it was taken
    off the list."""

    id_lo: int
    id_hi: int
    per_payment: int
    per_day: int
    per_month: int
    day_sums: list[int]
    month_sums: list[int]
    days: list[int]
    months: list[int]
    blocked_at: int
    limited_at: int = 0

    @property
    def blocked(self) -> bool:
        return self.blocked_at > 0


RULES: Final = np.dtype(
    [
        ("ledger", "<u4"), ("opens_at", "<i4"), ("closes_at", "<i4"), ("screening", "<i4"),
        ("minimum_amount", "<i8"), ("maximum_amount", "<i8"), ("duplicate_seconds", "<i8"),
        ("screening_seconds", "<i8"), ("review_seconds", "<i8"), ("ledger_seconds", "<i8"), ("hold_seconds", "<i8"),
        ("currency", "S4"), ("unused", "S44"), ("decided_at", "<i8"),
    ]
)  # fmt: skip
assert RULES.itemsize == 128, RULES.itemsize


@dataclass(frozen=True, slots=True)
class Rules:
    """A row of `RULES`; see PaymentRules in avro/payments.commands.avsc. ``screening`` 0 is off."""

    ledger: int
    opens_at: int
    closes_at: int
    screening: int
    minimum_amount: int
    maximum_amount: int
    duplicate_seconds: int
    screening_seconds: int
    review_seconds: int
    ledger_seconds: int
    hold_seconds: int
    currency: bytes
    unused: bytes = b""
    decided_at: int = 0


DEFAULT_RULES: Final = Rules(0, 0, 86_400, 0, 0, 0, 0, 10, 86_400, 10, 604_800, b"")
"""What holds for a ledger without PaymentRules; the defaults of the command."""

KEY: Final = np.dtype([("id_lo", "<u8"), ("id_hi", "<u8"), ("slot", "<i8"), ("at", "<i8")])
"""What the id index finds: the key of a payment, party, idempotency key, content or command, and its row."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a transfer of the ledger is to payments."""

    payment_id: int
    action: Action
    number: int


def transfer_id(payment_id: int, action: Action, number: int) -> int:
    """Id of a payment's transfer: prefix (16 bits), action (8), number (8), payment id (96)."""
    return TRANSFER_PREFIX << 112 | action << 104 | number << 96 | payment_id


def transfer_of(id_: int) -> Transfer | None:
    """What `transfer_id` made the id of; None for transfers of others."""
    if id_ >> 112 != TRANSFER_PREFIX or not (id_ >> 104) & 255 < len(Action):
        return None
    return Transfer(id_ & MAX_PAYMENT_ID, Action((id_ >> 104) & 255), (id_ >> 96) & 255)
