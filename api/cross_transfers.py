"""Transfers across ledgers over HTTP: requests to ledger.cross-commands, and what the sagas' job says at once.

A result says whether the cross transfer was taken (`created`), not how it ended: that takes the ledger several steps,
and is asked with ``GET`` (`api.queries`). A request goes to the shard of its id; a repeated id is answered ``exists``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from api.batching import Batcher
from api.chains import NoChains
from api.config import ApiSettings
from api.idempotency import IdempotencyStore
from api.ingest import Ingest, SentRun, WriteRoute
from api.producer import KafkaSender
from api.rate_limit import RateLimiter
from api.results import ResultReader
from infra.settings import Settings
from pipelines.catalogue import LEDGER_CROSS_COMMANDS, LEDGER_CROSS_RESULTS, LEDGER_SHARDS, PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.frames import Events
from pipelines.ledger_saga.legs import cross_transfer_shard

__all__ = ["CROSS_ROUTE", "CrossTransfers"]

CROSS_ROUTE: Final = WriteRoute("/v1/cross-transfers", ("CreateCrossTransfer",))

_COMMANDS: Final = codec_of(LEDGER_CROSS_COMMANDS.name)
_RESULTS: Final = codec_of(LEDGER_CROSS_RESULTS.name)


class CrossTransferIngest(Ingest):
    """Each on its own: there are no chains."""

    def _chains(self) -> NoChains:
        return NoChains()

    def _shards(self, events: Events) -> NDArray[np.int64]:
        return np.array([cross_transfer_shard(int(found["id"])) for found in self._described(events)], np.int64)

    def _described(self, events: Events) -> list[dict[str, Any]]:
        return [{"id": found["id"]} for found in render_events(_COMMANDS, events)]

    def _results_of(self, entry: SentRun, sequence: int, replies: Events) -> list[dict[str, Any]]:
        return [
            {"position": position, **record, "shard": entry.run.shard, "sequence": sequence}
            for position, record in zip(entry.positions, render_events(_RESULTS, replies), strict=True)
        ]

    def _verdict(self, results: list[dict[str, Any]], sent: Any, is_array: bool) -> tuple[int, dict[str, str]]:
        if not all(result["result"] == "created" for result in results):
            return 200, {}
        return 201, {} if is_array or sent.refused else {"Location": f"{CROSS_ROUTE.path}/{results[0]['id']}"}


class CrossTransfers:
    """What one worker needs for them. Made in its event loop."""

    def __init__(
        self, settings: Settings, config: ApiSettings, events_limit: RateLimiter, keys: IdempotencyStore
    ) -> None:
        self.sender = KafkaSender(settings, LEDGER_CROSS_COMMANDS, config.delivery_seconds)
        self.batcher = Batcher(
            _COMMANDS,
            self.sender,
            shards=LEDGER_SHARDS,
            frame_events=min(config.frame_events, PIPELINES["ledger_saga"].max_frame_events),
            frame_bytes=config.frame_bytes,
            frames_in_flight=config.frames_in_flight,
            linger_seconds=config.linger_seconds,
            buffered_events=config.buffered_events,
        )
        self.results = ResultReader(settings, LEDGER_CROSS_RESULTS)
        self.ingest = CrossTransferIngest(config, _COMMANDS, _RESULTS, self.batcher, self.results, events_limit, keys)
