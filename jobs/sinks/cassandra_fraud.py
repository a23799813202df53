"""Fraud's history into Cassandra: feature vectors, decisions, labels with the time at which each became known.

Rows never change and every write is idempotent by its primary key, as in `jobs.sinks.cassandra`. A training set as of
any moment is read from these tables by `models.fraud_history`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from jobs.sinks.base import Addition, Position
from jobs.sinks.cassandra import CassandraSink
from jobs.sinks.cql_values import BIGINT, INT, VARINT_U128, serialize
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_FEATURES, FRAUD_LABELS, FRAUD_RESCORES, Topic
from pipelines.codec import codec_of, raw
from pipelines.frames import Events
from pipelines.fraud.alerts import MICROS_PER_DAY

__all__ = ["BUCKETS", "FraudDecisionsSink", "FraudFeaturesSink", "FraudLabelsSink", "FraudRescoresSink"]

BUCKETS: Final = 16
"""Partitions of a shard's day: a transaction's is its customer's id modulo this."""

_FEATURES: Final = codec_of(FRAUD_FEATURES.name).event_type("FeatureVector")
_DECISION: Final = codec_of(FRAUD_DECISIONS.name).event_type("Decision")
_LABEL: Final = codec_of(FRAUD_LABELS.name).event_type("LabelReceived")

_Column = tuple[str, int]
_PLACE: Final[tuple[_Column, ...]] = (("shard", INT), ("day", INT), ("bucket", INT))


class _FraudSink(CassandraSink):
    """Numbers through the compiled serializer, texts behind them."""

    table: ClassVar[str]
    columns: ClassVar[tuple[_Column, ...]]
    texts: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        names = [*(name for name, _ in cls.columns), *cls.texts]
        cls.insert = " ".join(
            [
                f"INSERT INTO {{keyspace}}.{cls.table}",
                f"({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            ]
        )

    def _values(self, additions: Sequence[Addition]) -> list[list[bytes]]:
        kinds = np.array([kind for _, kind in self.columns], np.int64)
        values: list[list[bytes]] = []
        for addition in additions:
            events = addition.events
            if not len(events):
                continue
            kept = np.arange(len(events)) if addition.kept is None else np.array(addition.kept, np.int64)
            place = {
                "shard": np.full(len(events), addition.after.partition),
                "sequence": np.full(len(events), addition.after.sequence),
                "event_index": kept,
            }
            found = self._numbers(events) | place
            words = [
                column
                for name, kind in self.columns
                for column in ((found[f"{name}_lo"], found[f"{name}_hi"]) if kind == VARINT_U128 else (found[name],))
            ]
            rows = np.stack([np.asarray(word).astype(np.int64) for word in words], axis=1)
            for row, texts in zip(serialize(np.ascontiguousarray(rows), kinds), self._texts(events), strict=True):
                row += texts
                values.append(row)
        return values

    def _numbers(self, events: Events) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def _texts(self, events: Events) -> list[list[bytes]]:
        return [[]] * len(events)

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        place = Position(shard, sequence=sequence)
        await asyncio.to_thread(self._write, self._values([Addition(events, place, place, tuple(kept))]), [])


def _partition(event_time: NDArray[np.int64], customer: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    return {"day": event_time // MICROS_PER_DAY, "bucket": customer % BUCKETS}


_VECTOR_NUMBERS: Final = tuple(field.name for field in _FEATURES.fields if field.storage == "long")


class FraudFeaturesSink(_FraudSink):
    """One row per feature vector, duplicates included: the table holds what the stream said."""

    name: ClassVar[str] = "cassandra-fraud-features"
    topic: ClassVar[Topic] = FRAUD_FEATURES
    web_port_offset: ClassVar[int] = 23
    table: ClassVar[str] = "fraud_features"
    columns: ClassVar[tuple[_Column, ...]] = (
        *_PLACE, ("sequence", BIGINT), ("event_index", INT), ("transaction_id", VARINT_U128),
        *((name, BIGINT) for name in _VECTOR_NUMBERS),
    )  # fmt: skip
    texts: ClassVar[tuple[str, ...]] = ("status",)

    def _numbers(self, events: Events) -> dict[str, NDArray[Any]]:
        vectors = events.view(_FEATURES.dtype)
        names = ("transaction_id_lo", "transaction_id_hi", *_VECTOR_NUMBERS)
        return {name: vectors[name] for name in names} | _partition(vectors["event_time"], vectors["customer_id"])

    def _texts(self, events: Events) -> list[list[bytes]]:
        symbols = [[symbol.encode()] for symbol in _FEATURES.field("status").symbols]
        return [symbols[status] for status in events.view(_FEATURES.dtype)["status"].tolist()]


class FraudDecisionsSink(_FraudSink):
    """One row per decision."""

    name: ClassVar[str] = "cassandra-fraud-decisions"
    topic: ClassVar[Topic] = FRAUD_DECISIONS
    web_port_offset: ClassVar[int] = 24
    table: ClassVar[str] = "fraud_decisions"
    columns: ClassVar[tuple[_Column, ...]] = (
        *_PLACE, ("transaction_id", VARINT_U128), ("rescored", INT), ("event_time", BIGINT), ("customer_id", BIGINT),
        ("terminal_id", BIGINT), ("amount", BIGINT), ("score", INT), ("model_version", BIGINT),
        ("challenger_version", BIGINT), ("challenger_score", INT), ("rule_set_version", BIGINT), ("scored_at", BIGINT),
    )  # fmt: skip
    texts: ClassVar[tuple[str, ...]] = (
        "decision", "unknown_reason", "model", "rules_hit", "shadow_rules_hit", "reason_codes",
    )  # fmt: skip

    def _numbers(self, events: Events) -> dict[str, NDArray[Any]]:
        rows = events.view(_DECISION.dtype)
        found = {name: rows[name] for name in rows.dtype.names or ()}
        for name in ("score", "challenger_score"):
            found[name] = np.where(rows[f"{name}_is_set"] != 0, rows[name], -1)
        return found | _partition(rows["event_time"], rows["customer_id"])

    def _texts(self, events: Events) -> list[list[bytes]]:
        rows = events.view(_DECISION.dtype)
        columns: list[list[bytes]] = []
        for name in self.texts:
            field = _DECISION.field(name)
            if field.symbols:
                columns.append([field.symbols[number].encode() for number in rows[name].tolist()])
            else:
                columns.append([raw(events, word) for word in rows[name].tolist()])
        return [list(row) for row in zip(*columns, strict=True)]


class FraudRescoresSink(FraudDecisionsSink):
    """Second decisions, beside the first ones."""

    name: ClassVar[str] = "cassandra-fraud-rescores"
    topic: ClassVar[Topic] = FRAUD_RESCORES
    web_port_offset: ClassVar[int] = 25


class FraudLabelsSink(_FraudSink):
    """One row per label as it arrived."""

    name: ClassVar[str] = "cassandra-fraud-labels"
    topic: ClassVar[Topic] = FRAUD_LABELS
    web_port_offset: ClassVar[int] = 26
    table: ClassVar[str] = "fraud_labels"
    columns: ClassVar[tuple[_Column, ...]] = (
        *_PLACE, ("transaction_id", VARINT_U128), ("known_at", BIGINT), ("sequence", BIGINT), ("event_index", INT),
        ("fraud", INT), ("transaction_time", BIGINT), ("customer_id", BIGINT), ("terminal_id", BIGINT),
        ("amount", BIGINT),
    )  # fmt: skip

    def _numbers(self, events: Events) -> dict[str, NDArray[Any]]:
        rows = events.view(_LABEL.dtype)
        found = {name: rows[name] for name in rows.dtype.names or ()} | {"known_at": rows["event_time"]}
        return found | _partition(rows["transaction_time"], rows["customer_id"])
