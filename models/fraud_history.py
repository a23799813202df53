"""Training sets out of Cassandra, as of any moment: what the stream said, and the labels known by then.

    from infra.settings import settings
    from models.fraud_history import read_days

    data = read_days(settings(), first_day="2018-07-31", last_day="2018-08-30", as_of="2018-09-06")

`read_days` takes UTC days as texts; `read_training_set` counts them from 1970-01-01, its ``as_of`` being in UTC
microseconds. The feature vectors are those that the stream
made, bit for bit: no feature is computed here, so nothing that was unknown at the time of a transaction can come into
it. A label counts if it had become known by ``as_of``; of several the one that became known last, of equal times the
one that arrived last. A transaction without such a label counts as genuine.

The tables are filled by `streambank sink cassandra-fraud-features` and `cassandra-fraud-labels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from infra.stores import cassandra_session
from models.fraud_dataset import MICROS_PER_DAY, FraudDataset
from pipelines.catalogue import FRAUD_SHARDS
from pipelines.codec import codec_of
from pipelines.errors import StreambankError

__all__ = ["BUCKETS", "NoHistoryError", "read_days", "read_partitions", "read_training_set"]

BUCKETS: Final = 16
"""Partitions of a shard's day, as the sinks write them."""
PARTITIONS_IN_FLIGHT: Final = 32

_VECTOR: Final = codec_of("fraud.features").event_type("FeatureVector")
_NUMBERS: Final = tuple(field.name for field in _VECTOR.fields if field.storage == "long")
_FEATURES: Final = " ".join(
    [
        "SELECT status, sequence, event_index, transaction_id,",
        ", ".join(_NUMBERS),
        "FROM fraud_features WHERE shard = ? AND day = ? AND bucket = ?",
    ]
)
_LABELS: Final = (
    "SELECT transaction_id, known_at, sequence, event_index, fraud FROM fraud_labels"
    " WHERE shard = ? AND day = ? AND bucket = ?"
)


class NoHistoryError(StreambankError):
    """There are no transactions of these days in Cassandra."""


def read_days(settings: Settings, first_day: str, last_day: str, as_of: str | None = None) -> FraudDataset:
    """`read_training_set` of the days ``first_day`` to ``last_day``, both included, as ``YYYY-MM-DD``, with the labels
    known at the end of the day ``as_of`` (default: all). Raises `NoHistoryError` when there is nothing, and
    `ValueError` for a text that is no day."""
    first, last = (_day(text) for text in (first_day, last_day))
    known_by = np.iinfo(np.int64).max if as_of is None else (_day(as_of) + 1) * MICROS_PER_DAY - 1
    found = read_training_set(settings, first, last, int(known_by))
    if not len(found):
        raise NoHistoryError(
            f"Cassandra has no transactions from {first_day} to {last_day}; do `streambank sink "
            "cassandra-fraud-features` and `cassandra-fraud-labels` run?"
        )
    return found


def _day(text: str) -> int:
    """Days since 1970-01-01."""
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


def read_training_set(
    settings: Settings, first_day: int, last_day: int, as_of: int, shards: Sequence[int] = range(FRAUD_SHARDS)
) -> FraudDataset:
    """Vectors of the transactions of the days ``first_day`` to ``last_day``, both included, by event time (of equal
    times in the stream's order, shard by shard), with the labels known at ``as_of``.

    Raises the Cassandra driver's errors when the store is away.
    """
    partitions = [
        (shard, day, bucket) for shard in shards for day in range(first_day, last_day + 1) for bucket in range(BUCKETS)
    ]
    unplaced = [(shard, 0, 0) for shard in shards]
    places: list[tuple[int, int, int]] = []
    vectors: list[tuple[int, ...]] = []
    newest: dict[tuple[int, int], tuple[tuple[int, int, int], bool]] = {}
    with cassandra_session(settings) as session:
        for (shard, _, _), row in read_partitions(session, _FEATURES, partitions):
            status, sequence, event_index, transaction_id, *numbers = row
            if status == "computed":
                places.append((shard, sequence, event_index))
                vectors.append((transaction_id, *numbers))
        for (shard, _, _), row in read_partitions(session, _LABELS, [*partitions, *unplaced]):
            transaction_id, known_at, sequence, event_index, fraud = row
            arrival = (known_at, sequence, event_index)
            key = (shard, transaction_id)
            if known_at <= as_of and (key not in newest or newest[key][0] < arrival):
                newest[key] = (arrival, bool(fraud))
    found = _vectors(vectors)
    order = np.array(places, np.int64).reshape(-1, 3)
    chosen = np.lexsort((order[:, 2], order[:, 1], order[:, 0], found["event_time"]))
    fraud = np.array(
        [newest.get((shard, row[0]), (None, False))[1] for (shard, _, _), row in zip(places, vectors, strict=True)],
        np.bool_,
    )
    return FraudDataset(found[chosen], fraud[chosen])


def _vectors(rows: Sequence[tuple[int, ...]]) -> NDArray[np.void]:
    found = np.zeros(len(rows), _VECTOR.dtype)
    ids = [row[0] for row in rows]
    found["transaction_id_lo"] = np.array([one & 2**64 - 1 for one in ids], np.uint64)
    found["transaction_id_hi"] = np.array([one >> 64 for one in ids], np.uint64)
    numbers = np.array([row[1:] for row in rows], np.int64).reshape(len(rows), len(_NUMBERS))
    for position, name in enumerate(_NUMBERS):
        found[name] = numbers[:, position]
    return found


def read_partitions(
    session: Any, query: str, partitions: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[tuple[int, int, int], Any]]:
    """Rows of many (shard, day, bucket) partitions, with the partition of each; ``query`` has their three places."""
    from cassandra.concurrent import execute_concurrent_with_args

    answers = execute_concurrent_with_args(
        session, session.prepare(query), partitions, concurrency=PARTITIONS_IN_FLIGHT, raise_on_first_error=True
    )
    for partition, (_, rows) in zip(partitions, answers, strict=True):
        for row in rows:
            yield partition, row
