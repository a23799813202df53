"""`Prefer: wait=N` for payments: tells requests where their payment came to rest.

A payment's way takes several frames of several jobs, so this does not match frames, as `api.results` does, but follows
payments.events from its end and looks for the payments that somebody waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from api.logs import log
from api.results import ResultReader
from infra.settings import Settings
from pipelines.catalogue import PAYMENTS_EVENTS
from pipelines.codec import codec_of
from pipelines.errors import StreambankError
from pipelines.event_json import render_events
from pipelines.frames import Events
from pipelines.payments.states import SETTLED
from pipelines.wire import unwrap

__all__ = ["PaymentWatch", "rests"]

_CODEC: Final = codec_of(PAYMENTS_EVENTS.name)
_CHANGED: Final = _CODEC.event_type("PaymentChanged")
_ID: Final = _CHANGED.field("payment_id").word
_ASKS: Final = _CHANGED.field("asks").word
_LOW: Final = 2**64 - 1
_SETTLED: Final = frozenset(status.name for status in SETTLED)
Changes = asyncio.Queue[dict[str, Any]]


def rests(event: Mapping[str, Any]) -> bool:
    """Whether nothing happens to the payment any more by itself and soon: it is final, a client or reviewer has the
    word, or its time has not come."""
    if event["asks"]:
        return False
    status = event["status"]
    return status in _SETTLED or status in ("IN_REVIEW", "RECEIVED") or (
        status == "RESERVED" and event["capture"] == "manual"
    )  # fmt: skip


class PaymentWatch(ResultReader):
    """Follows payments.events; see the module."""

    def __init__(self, settings: Settings) -> None:
        self._watched: dict[int, list[Changes]] = {}
        super().__init__(settings, PAYMENTS_EVENTS)

    @contextmanager
    def watching(self, payment_id: int) -> Iterator[Changes]:
        """A queue of the payment's events after which nothing is asked for, of each frame the last one if it is such a
        one, from now on."""
        changes: Changes = asyncio.Queue()
        self._watched.setdefault(payment_id, []).append(changes)
        try:
            yield changes
        finally:
            watchers = self._watched[payment_id]
            watchers.remove(changes)
            if not watchers:
                del self._watched[payment_id]

    @property
    def _wanted(self) -> bool:
        return bool(self._watched)

    def _take(self, message: Any) -> None:
        try:
            schema_id, body = unwrap(message.value())
            frame = self._codec(schema_id).decode(body)
        except StreambankError as error:
            log().warning("unreadable events", partition=message.partition(), offset=message.offset(), error=str(error))
            return
        if len(frame.events):
            self._loop.call_soon_threadsafe(self._tell, frame.events)

    def _tell(self, events: Events) -> None:
        wanted = {(payment_id & _LOW, payment_id >> 64) for payment_id in self._watched}
        pairs = zip(*events.rows[:, _ID : _ID + 2].view(np.uint64).T.tolist(), strict=True) if len(events) else ()
        newest = {pair: index for index, pair in enumerate(pairs) if pair in wanted}
        rows = [index for index in newest.values() if not events.rows[index, _ASKS]]
        if not rows:
            return
        chosen = Events(np.ascontiguousarray(events.rows[rows]), events.heap)
        for event in render_events(_CODEC, chosen):
            for changes in self._watched.get(int(event["payment_id"]), ()):
                changes.put_nowait(event)
