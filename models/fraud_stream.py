"""Simulated card transactions as the stream that the fraud pipeline takes, and the features it makes of them.

Training and serving share one code: what a model is trained on are the rows of `pipelines.fraud`, made by the kernel
from frames of transactions and labels, not by a second implementation.

Units: times UTC microseconds, amounts integer cents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.simulator import EPOCH, CardTransactions
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.fraud.kernel import FraudKernel

__all__ = ["EPOCH_MICROS", "LABEL_DELAY_SECONDS", "event_rows", "feature_rows", "frames"]

EPOCH_MICROS: Final = int(EPOCH.timestamp()) * 1_000_000
LABEL_DELAY_SECONDS: Final = 7 * 86_400
"""How long after its transaction a simulated label becomes known."""

Progress = Callable[[int, int], None]
"""Called with (events done, events in all) now and then."""


def event_rows(
    world: CardTransactions, *, label_delay_seconds: int = LABEL_DELAY_SECONDS, frauds_only: bool = True
) -> NDArray[np.int64]:
    """The world as rows of fraud.transactions by time, labels before transactions of the same moment.

    A transaction's id is its position in ``world``. Every fraud has a label, and every genuine transaction too unless
    ``frauds_only``: an unlabelled one counts as genuine.
    """
    codec = codec_of("fraud.transactions")
    count = len(world)
    labelled = np.flatnonzero(world.fraud) if frauds_only else np.arange(count)
    rows = codec.new_rows(count + len(labelled))
    transactions = rows[:count].view(codec.event_type("Transaction").dtype)[:, 0]
    transactions["transaction_id_lo"] = np.arange(count)
    transactions["event_time"] = world.time_seconds * 1_000_000 + EPOCH_MICROS
    transactions["customer_id"] = world.customer
    transactions["terminal_id"] = world.terminal
    transactions["amount"] = world.amount_cents
    labels = rows[count:].view(codec.event_type("FraudLabel").dtype)[:, 0]
    labels["kind"] = codec.event_type("FraudLabel").kind
    labels["transaction_id_lo"] = labelled
    labels["event_time"] = transactions["event_time"][labelled] + label_delay_seconds * 1_000_000
    labels["fraud"] = world.fraud[labelled]
    times = np.concatenate([transactions["event_time"], labels["event_time"]])
    return np.ascontiguousarray(rows[np.lexsort((rows[:, 0] == 0, times))])


def frames(rows: NDArray[np.int64], events: int = 500) -> Iterator[Frame]:
    """The rows in frames of ``events`` events of shard 0."""
    for start in range(0, len(rows), events):
        run = rows[start : start + events]
        yield Frame("fraud.transactions", 0, 0, 0, None, Events(run))


def feature_rows(
    world: CardTransactions,
    *,
    label_delay_seconds: int = LABEL_DELAY_SECONDS,
    kernel: FraudKernel | None = None,
    progress: Progress | None = None,
) -> NDArray[np.void]:
    """The feature vector of each of the world's transactions, in their order, as records with the schema's fields.

    ``kernel``: where to make them, a fresh one by default. `pipelines.codec.EventType.dtype` of FeatureVector is the
    records' type.
    """
    rows = event_rows(world, label_delay_seconds=label_delay_seconds)
    codec = codec_of("fraud.features")
    features = np.empty((len(world), codec.row_words), np.int64)
    kernel = FraudKernel() if kernel is None else kernel
    made = done = 0
    for frame in frames(rows):
        found = kernel.apply(frame)[0].events.rows
        features[made : made + len(found)] = found
        made += len(found)
        done += len(frame.events)
        if progress is not None:
            progress(done, len(rows))
    return features.view(codec.event_type("FeatureVector").dtype)[:, 0]
