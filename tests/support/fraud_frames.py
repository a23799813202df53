"""Frames of fraud.transactions from plain dicts or from the simulated world, and features as plain dicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Events, Frame
from pipelines.fraud.kernel import FraudKernel

TRANSACTIONS = codec_of("fraud.transactions")
SMALL = {
    "max_cards": 1 << 10, "max_terminals": 1 << 10, "max_transactions": 1 << 14, "max_entries": 1 << 16,
    "max_held_labels": 1 << 10,
}  # fmt: skip


def transaction(
    transaction_id: int, event_time: int, customer_id: int = 1, terminal_id: int = 1, amount: int = 100, **details: Any
) -> dict[str, Any]:
    return {
        "type": "Transaction",
        "transaction_id": transaction_id,
        "event_time": event_time,
        "customer_id": customer_id,
        "terminal_id": terminal_id,
        "amount": amount,
        **details,
    }


def label(transaction_id: int, event_time: int, fraud: bool = True) -> dict[str, Any]:
    return {"type": "FraudLabel", "transaction_id": transaction_id, "event_time": event_time, "fraud": fraud}


def transaction_frame(events: Iterable[dict[str, Any]], shard: int = 0) -> Frame:
    return Frame("fraud.transactions", shard, 0, 0, None, parse_events(TRANSACTIONS, list(events)))


def rendered(topic: str, events: Events) -> list[dict[str, Any]]:
    return list(render_events(codec_of(topic), events))


class Fraud:
    """A kernel that takes and gives plain dicts."""

    def __init__(self, **capacity: int) -> None:
        self.kernel = FraudKernel(**(SMALL | capacity))

    def apply(self, *events: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(feature vectors, labels received) of one frame."""
        features, labels = self.kernel.apply(transaction_frame(events))
        return rendered(features.topic, features.events), rendered(labels.topic, labels.events)

    def features(self, *events: dict[str, Any]) -> list[dict[str, Any]]:
        return self.apply(*events)[0]


def rows_of(frames: Iterable[Frame], kernel: FraudKernel) -> NDArray[np.int64]:
    """The feature rows of all frames, in order."""
    return np.concatenate([kernel.apply(frame)[0].events.rows for frame in frames])
