"""Payments become notifications: whoever pays is told when a payment ends, is held for review or is given back.

One notification per transition that a customer cares for; its id is a function of the payment's shard, id and version,
so that repeats tell nobody twice (an id may be taken once in each shard). A customer is known by ``customer_id``, or
else by ledger and account (``account-<ledger>-<id>``). Why screening stopped a payment is not said: it would teach
whoever holds the account how to pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from jobs.sinks.relay import Commands, KafkaRelay
from pipelines.catalogue import NOTIFICATION_REQUESTS, PAYMENTS_EVENTS, Topic
from pipelines.codec import codec_of
from pipelines.currencies import AmountError, UnknownCurrency, by_code
from pipelines.event_json import render_events
from pipelines.frames import Events
from pipelines.notifications import notification_request, notification_shard

__all__ = ["PaymentsNotificationsRelay", "payment_notification"]

TOLD: Final = frozenset(
    {
        "COMPLETED", "REJECTED", "BLOCKED", "IN_REVIEW", "FAILED", "EXPIRED", "CANCELLED", "PARTIALLY_REFUNDED",
        "REFUNDED",
    }
)  # fmt: skip
REASON_IS_TOLD: Final = TOLD - {"BLOCKED", "IN_REVIEW"}


def payment_notification(shard: int, change: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request (as JSON has it) that a PaymentChanged of ``shard`` calls for, or None where nobody is told."""
    again = change["cause"] == "refunded_in_part"  # the status stays when a second part is given back
    if change["status"] not in TOLD or (change["status"] == change["previous_status"] and not again):
        return None
    return notification_request(
        f"payment-{shard}-{change['payment_id']}-{change['version']}",
        _customer(change),
        f"payment.{change['status'].lower()}",
        int(change["at"]),
        _data(change),
    )


class PaymentsNotificationsRelay(KafkaRelay):
    """``payments.events`` to ``notifications.requests``."""

    name: ClassVar[str] = "payments-notifications"
    topic: ClassVar[Topic] = PAYMENTS_EVENTS
    web_port_offset: ClassVar[int] = 42
    targets: ClassVar[tuple[Topic, ...]] = (NOTIFICATION_REQUESTS,)

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        for change in render_events(codec_of(PAYMENTS_EVENTS.name), events):
            request = payment_notification(shard, change)
            if request is not None:
                yield Commands(NOTIFICATION_REQUESTS, notification_shard(request["customer"]), [request])


def _customer(change: Mapping[str, Any]) -> str:
    known = int(change["customer_id"])
    return str(known) if known else f"account-{change['ledger']}-{change['payer_account_id']}"


def _data(change: Mapping[str, Any]) -> dict[str, Any]:
    returned = change["status"] in ("PARTIALLY_REFUNDED", "REFUNDED")
    minor = int(change["refunded" if returned else "amount"])
    try:
        amount = by_code(change["currency"]).text(minor)
    except (UnknownCurrency, AmountError):  # rejected for it, or a ledger of something else
        amount = str(minor)
    told = change["status"] in REASON_IS_TOLD and change["reason"] != "none"
    return {
        "payment_id": str(change["payment_id"]),
        "amount": f"{amount} {change['currency']}".strip(),
        "reference": change["reference"],
        "iso_status": change["iso_status"],
        "reason": change["reason"] if told else "",
    }
