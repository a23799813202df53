"""What the fraud job would write about a simulated world."""

from __future__ import annotations

from models.fraud_stream import event_rows, frames
from models.simulator import CardTransactions
from pipelines.codec import codec_of
from pipelines.frames import Frame
from pipelines.fraud.kernel import FraudKernel
from pipelines.wire import wrap
from tests.support.ledger_events import EventLog


def streamed(world: CardTransactions, shard: int, *more: Frame) -> tuple[EventLog, EventLog]:
    """fraud.features and fraud.labels of the world in a shard, and of more frames of fraud.transactions behind it."""
    kernel = FraudKernel()
    features, labels = EventLog(), EventLog()
    for sequence, frame in enumerate([*frames(event_rows(world)), *more], 1):
        for output, log in zip(kernel.apply(frame), (features, labels), strict=True):
            body = codec_of(output.topic).encode(Frame(output.topic, shard, sequence, 0, None, output.events))
            log.records.append((shard, wrap(1, body)))
    return features, labels
