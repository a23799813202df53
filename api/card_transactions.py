"""Card transactions and their labels over HTTP: into fraud.transactions, and the scorer's decisions back.

A portfolio is a shard (docs/adr/0005-fraud-order.md), and a label must go where its transaction went, so the URL names
it: ``?portfolio=``, 0 without. Transactions and labels have lanes of their own, so that a frame holds one kind and its
replies have the same order. A label that is sent after its transaction was acknowledged lies behind it.

- An event more than a day ahead of the clock is refused here: the fraud job would set its whole frame aside.
- With `Prefer: wait` a transaction is answered with its decision (fraud.decisions, of whichever scorer runs), a label
  with what it met (fraud.labels). A transaction id that was there before has no second decision.
"""

from __future__ import annotations

import copy
import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from api.batching import Batcher
from api.bodies import Parsed
from api.chains import NoChains
from api.config import ApiSettings
from api.idempotency import IdempotencyStore
from api.ingest import Ingest, SentRun, WriteRoute, without
from api.producer import KafkaSender
from api.rate_limit import RateLimiter
from api.results import ResultReader
from infra.settings import Settings
from pipelines.catalogue import FRAUD_DECISIONS, FRAUD_LABELS, FRAUD_SHARDS, FRAUD_TRANSACTIONS, PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame
from pipelines.fraud.records import MAX_AHEAD

__all__ = [
    "LABEL", "LABELS_ROUTE", "MAX_TEXT_BYTES", "TRANSACT", "TRANSACTIONS_ROUTE", "CardTransactions",
]  # fmt: skip

TRANSACT: Final = "fraud:transactions"
LABEL: Final = "fraud:labels"
"""Scopes."""
TRANSACTIONS_ROUTE: Final = WriteRoute("/v1/card-transactions", ("Transaction",))
LABELS_ROUTE: Final = WriteRoute("/v1/fraud-labels", ("FraudLabel",))
MAX_TEXT_BYTES: Final = 64
"""Longest device, country and merchant, in UTF-8."""

_TEXTS: Final = ("device", "country", "merchant")
_EVENT_BYTES: Final = 140 + len(_TEXTS) * (MAX_TEXT_BYTES + 2)
"""More than an encoded transaction takes."""
_CODEC: Final = codec_of(FRAUD_TRANSACTIONS.name)
_DECISIONS: Final = codec_of(FRAUD_DECISIONS.name)
_LABELS: Final = codec_of(FRAUD_LABELS.name)
_TRANSACTION: Final = _CODEC.event_type("Transaction")
_DECISION: Final = _DECISIONS.event_type("Decision").dtype
assert _CODEC.event_type("FraudLabel").field("event_time").word == _TRANSACTION.field("event_time").word
assert _CODEC.event_type("FraudLabel").field("transaction_id").word == _TRANSACTION.field("transaction_id").word


class DecisionReader(ResultReader):
    """Reads fraud.decisions. A frame of transactions has one frame of decisions, without those of duplicates: each
    waiter gets the whole of it and finds its own by their ids."""

    def _resolve(self, frame: Frame) -> None:
        for waiter in self._waiting.pop(frame.trace or "", ()):
            if not waiter.answer.done():
                waiter.answer.set_result((frame.sequence, frame.events))


class _PortfolioIngest(Ingest):
    """What both kinds share; for one request by `for_portfolio`."""

    _portfolio = 0

    def for_portfolio(self, portfolio: int) -> _PortfolioIngest:
        """The same for a request that is about one portfolio."""
        own = copy.copy(self)
        own._portfolio = portfolio
        return own

    def _chains(self) -> NoChains:
        return NoChains()

    def _shards(self, events: Events) -> NDArray[np.int64]:
        return np.full(len(events), self._portfolio, np.int64)

    def _routable(self, parsed: Parsed) -> Parsed:
        times = parsed.events.rows[:, _TRANSACTION.field("event_time").word]
        ahead = times > time.time_ns() // 1000 + MAX_AHEAD
        error = {"pointer": "/event_time", "detail": "must not be more than a day ahead (UTC microseconds)"}
        return without(parsed, ahead, self._batcher.linked, error)

    def _described(self, events: Events) -> list[dict[str, Any]]:
        return [{"transaction_id": event["transaction_id"]} for event in render_events(_CODEC, events)]


class TransactionIngest(_PortfolioIngest):
    """Transactions to their decisions."""

    def _routable(self, parsed: Parsed) -> Parsed:
        parsed = super()._routable(parsed)
        for name in _TEXTS:
            field = _TRANSACTION.field(name)
            rows = parsed.events.rows
            long = (rows[:, field.is_set_word] != 0) & ((rows[:, field.word] & 0xFFFFFFFF) > MAX_TEXT_BYTES)
            error = {"pointer": f"/{name}", "detail": f"must have at most {MAX_TEXT_BYTES} bytes"}
            parsed = without(parsed, long, self._batcher.linked, error)
        return parsed

    def _results_of(self, entry: SentRun, sequence: int, replies: Events) -> list[dict[str, Any]]:
        place = {"shard": entry.run.shard, "sequence": sequence}
        sent = entry.run.events.view(_TRANSACTION.dtype)["transaction_id_lo"]
        mine = np.isin(replies.view(_DECISION)["transaction_id_lo"], sent)
        found = render_events(_DECISIONS, Events(replies.rows[mine], replies.heap))
        decisions = {decision["transaction_id"]: decision for decision in found}
        results = []
        for position, described in zip(entry.positions, self._described(entry.run.events), strict=True):
            decision = decisions.pop(described["transaction_id"], None)
            result = {"type": "DuplicateTransaction", **described} if decision is None else decision
            results.append({"position": position, **result, **place})
        return results

    def _verdict(self, results: list[dict[str, Any]], sent: Any, is_array: bool) -> tuple[int, dict[str, str]]:
        return (201 if all(result["type"] == "Decision" for result in results) else 200), {}


class LabelIngest(_PortfolioIngest):
    """Labels to what they met."""

    def _results_of(self, entry: SentRun, sequence: int, replies: Events) -> list[dict[str, Any]]:
        return [
            {"position": position, **record, "shard": entry.run.shard, "sequence": sequence}
            for position, record in zip(entry.positions, render_events(_LABELS, replies), strict=True)
        ]

    def _verdict(self, results: list[dict[str, Any]], sent: Any, is_array: bool) -> tuple[int, dict[str, str]]:
        return (201 if all(result["status"] == "accepted" for result in results) else 200), {}


class CardTransactions:
    """What one worker needs for them. Made in its event loop. ``sender`` writes fraud.transactions; who made it closes
    it."""

    def __init__(
        self,
        settings: Settings,
        config: ApiSettings,
        sender: KafkaSender,
        events_limit: RateLimiter,
        keys: IdempotencyStore,
    ) -> None:
        self.batchers = tuple(
            Batcher(
                _CODEC,
                sender,
                shards=FRAUD_SHARDS,
                frame_events=min(
                    config.frame_events, PIPELINES["fraud"].max_frame_events, config.frame_bytes // _EVENT_BYTES
                ),
                frame_bytes=config.frame_bytes,
                frames_in_flight=config.frames_in_flight,
                linger_seconds=config.linger_seconds,
                buffered_events=config.buffered_events,
            )
            for _ in range(2)
        )
        self.decisions = DecisionReader(settings, FRAUD_DECISIONS)
        self.labels = ResultReader(settings, FRAUD_LABELS)
        for_transactions, for_labels = self.batchers
        self.transactions_ingest = TransactionIngest(
            config, _CODEC, _DECISIONS, for_transactions, self.decisions, events_limit, keys
        )
        self.labels_ingest = LabelIngest(config, _CODEC, _LABELS, for_labels, self.labels, events_limit, keys)
