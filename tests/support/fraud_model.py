"""The fraud features as plain Python: every window is a pass over all transactions, no cleverness.

The compiled kernel is held against it. Events and answers are dicts with the schema's field names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
CARD_WINDOWS = {"1": DAY, "7": 7 * DAY, "30": 30 * DAY, "1m": MINUTE, "10m": 10 * MINUTE, "1h": HOUR}
TERMINAL_WINDOWS = {"1": DAY, "7": 7 * DAY, "30": 30 * DAY}
LATENESS = 30 * DAY
DELAY = 7 * DAY
Event = dict[str, Any]


@dataclass
class FraudModel:
    """``transactions`` in the order of arrival; ``labels`` in the order of arrival with what they say."""

    transactions: list[Event] = field(default_factory=list)
    labels: list[Event] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def apply(self, events: list[Event]) -> tuple[list[Event], list[Event]]:
        """One frame; (feature vectors, labels received)."""
        vectors, received = [], []
        for event in events:
            if event["type"] == "Transaction":
                vectors.append(self._transaction(event))
            else:
                received.append(self._label(event))
        return vectors, received

    def _label(self, event: Event) -> Event:
        self.labels.append(event)
        known = next((found for found in self._all if found["transaction_id"] == event["transaction_id"]), None)
        about = known or {"event_time": 0, "customer_id": 0, "terminal_id": 0, "amount": 0}
        return {
            "type": "LabelReceived",
            "transaction_id": event["transaction_id"],
            "event_time": event["event_time"],
            "fraud": event["fraud"],
            "status": "accepted" if known else "unknown_transaction",
            "transaction_time": about["event_time"],
            **{name: about[name] for name in ("customer_id", "terminal_id", "amount")},
        }

    _all: list[Event] = field(default_factory=list)
    """Every transaction seen, the ones too late among them."""

    def is_fraud(self, transaction_id: int, clock: int) -> bool:
        """What the labels that are known at ``clock`` say: the latest of them, of equal times the last that came."""
        own = [label for label in self.labels if label["transaction_id"] == transaction_id]
        known = [label for label in own if label["event_time"] <= clock]
        return bool(known) and max(enumerate(known), key=lambda entry: (entry[1]["event_time"], entry[0]))[1]["fraud"]

    def _transaction(self, event: Event) -> Event:
        time, customer, terminal = event["event_time"], event["customer_id"], event["terminal_id"]
        second_of_day = time // SECOND % 86_400
        vector: Event = {
            "type": "FeatureVector",
            **{name: event[name] for name in ("transaction_id", "event_time", "customer_id", "terminal_id", "amount")},
            "status": "computed",
            "weekend": int((time // DAY + 3) % 7 >= 5),  # 1970-01-01 was a Thursday
            "night": int(second_of_day < 7 * 3_600),
        }
        names = [f"{letters}{name}" for name in CARD_WINDOWS for letters in ("cn", "cs")]
        names += [f"{letters}{name}" for name in TERMINAL_WINDOWS for letters in ("tn", "tf")]
        names += ["since_last", "amount_ratio", "merchants30", "new_device", "new_country", "new_merchant"]
        vector |= dict.fromkeys(names, 0)
        if event["transaction_id"] in self.seen:
            return vector | {"status": "duplicate"}
        self.seen.add(event["transaction_id"])
        self._all.append(event)
        own = [found for found in self.transactions if found["customer_id"] == customer]
        there = [found for found in self.transactions if found["terminal_id"] == terminal]
        newest = max((found["event_time"] for found in own), default=0)
        newest_there = max((found["event_time"] for found in there), default=0)
        if (own and time <= newest - LATENESS) or (there and time <= newest_there - LATENESS):
            return vector | {"status": "too_late"}
        self.transactions.append(event)
        clock = max(found["event_time"] for found in self.transactions)

        own = [*own, event]
        for name, width in CARD_WINDOWS.items():
            window = [found for found in own if time - width < found["event_time"] <= time]
            vector[f"cn{name}"] = len(window)
            vector[f"cs{name}"] = sum(found["amount"] for found in window)
        for name, width in TERMINAL_WINDOWS.items():
            window = [found for found in there if time - DELAY - width < found["event_time"] <= time - DELAY]
            vector[f"tn{name}"] = len(window)
            vector[f"tf{name}"] = sum(self.is_fraud(found["transaction_id"], clock) for found in window)

        month = [found for found in own[:-1] if time - 30 * DAY < found["event_time"] <= time]
        vector["since_last"] = time - max(found["event_time"] for found in month) if month else -1
        average = vector["cs30"] // vector["cn30"]
        vector["amount_ratio"] = event["amount"] * 1_000 // max(average, 1)
        merchants = {found.get("merchant") for found in [*month, event]} - {None}
        vector["merchants30"] = len(merchants)
        for name in ("device", "country", "merchant"):
            value = event.get(name)
            vector[f"new_{name}"] = int(value is not None and value not in {found.get(name) for found in month})
        return vector
