"""Fraud alerts become notifications: the customer of a card that was stopped or held for review is told.

One notification per alert, which is one per card and day; its id is a function of the alert's, so that repeats tell
nobody twice. The customer learns of the transaction and the decision, not of score, model or rules: these would teach
whoever holds the card how to pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from jobs.sinks.relay import Commands, KafkaRelay
from pipelines.catalogue import FRAUD_ALERTS, NOTIFICATION_REQUESTS, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events
from pipelines.notifications import notification_request, notification_shard

__all__ = ["FraudNotificationsRelay"]


class FraudNotificationsRelay(KafkaRelay):
    """``fraud.alerts`` to ``notifications.requests``."""

    name: ClassVar[str] = "fraud-notifications"
    topic: ClassVar[Topic] = FRAUD_ALERTS
    web_port_offset: ClassVar[int] = 41
    targets: ClassVar[tuple[Topic, ...]] = (NOTIFICATION_REQUESTS,)

    def translate(self, shard: int, events: Events) -> Iterable[Commands]:
        for alert in render_events(codec_of(FRAUD_ALERTS.name), events):
            if alert["decision"] == "approve":
                continue
            customer = str(alert["customer_id"])
            request = notification_request(
                f"fraud-alert-{alert['alert_id']}",
                customer,
                "fraud.alert",
                int(alert["event_time"]),
                {
                    "transaction_id": str(alert["transaction_id"]),
                    "amount_cents": int(alert["amount"]),
                    "decision": alert["decision"],
                },
            )
            yield Commands(NOTIFICATION_REQUESTS, notification_shard(customer), [request])
