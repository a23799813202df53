"""Execution reports for those who wait for them: the requests that caused them, and streams of accounts.

A command has any number of reports, and a command frame's reports take several frames when there are many: they are
gathered until the frame that is not full. A repeated report frame (the job restarted) is dropped by its sequence.

What a client sees of a trade is its own side: the counterparty's order and account are left out, and to the resting
order's owner the trade is told as a report of that order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from api.batching import concatenate
from api.results import ResultReader, Waiter
from infra.settings import Settings
from pipelines.catalogue import MATCHING_REPORTS
from pipelines.codec import codec_of, text
from pipelines.event_json import render_events
from pipelines.frames import Events, Frame

__all__ = ["AccountListener", "ReportReader", "maker_side", "taker_side"]

FULL_FRAME: Final = 4096
"""Every report frame of a command frame but the last has exactly so many events."""
MAX_GATHERED_FRAMES: Final = 1024

_CODEC: Final = codec_of(MATCHING_REPORTS.name)
_EXECUTION: Final = _CODEC.event_type("ExecutionReport")
_INPUT_WORD: Final = _EXECUTION.field("input").word
_ACCOUNT_WORD: Final = _EXECUTION.field("account").word
_MAKER_WORD: Final = _EXECUTION.field("maker_account").word
assert all(kind.field("input").word == _INPUT_WORD for kind in _CODEC.event_types)
_COUNTERPARTY: Final = ("maker_order_id", "maker_account", "maker_leaves_quantity")


@dataclass(slots=True, eq=False)
class AccountListener:
    """Gets the reports of its ``accounts`` by ``deliver(report, shard)``, in the event loop, in the order of each
    shard; those that answer its own waiters are left to these."""

    deliver: Callable[[dict[str, Any], int], None]
    accounts: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class ReportWaiter(Waiter):
    """A waiter that may belong to a listener."""

    listener: AccountListener | None = None


def taker_side(report: dict[str, Any]) -> dict[str, Any]:
    """A report as the owner of ``order_id`` sees it."""
    return {name: value for name, value in report.items() if name not in _COUNTERPARTY and name != "input"}


def maker_side(report: dict[str, Any]) -> dict[str, Any]:
    """A trade as the owner of the resting order sees it. ``cumulative_quantity`` is not known here and left out."""
    leaves = report["maker_leaves_quantity"]
    seen = taker_side(report) | {
        "order_id": report["maker_order_id"],
        "account": report["maker_account"],
        "side": "SELL" if report["side"] == "BUY" else "BUY",
        "leaves_quantity": leaves,
        "order_status": "PARTIALLY_FILLED" if leaves else "FILLED",
    }
    del seen["cumulative_quantity"]
    return seen


class ReportReader(ResultReader):
    """Reads matching.reports; see the module."""

    def __init__(self, settings: Settings) -> None:
        self._listeners: dict[str, set[AccountListener]] = {}
        self._gathered: dict[str, list[Events]] = {}
        self._last: dict[int, int] = {}
        super().__init__(settings, MATCHING_REPORTS)

    def waiter(self, listener: AccountListener | None = None) -> ReportWaiter:
        return ReportWaiter(asyncio.get_running_loop().create_future(), listener=listener)

    def listen(self, listener: AccountListener, account: str) -> None:
        """Let ``listener`` have an account's reports from now on."""
        listener.accounts.add(account)
        self._listeners.setdefault(account, set()).add(listener)

    def unlisten(self, listener: AccountListener) -> None:
        for account in listener.accounts:
            others = self._listeners.get(account, set())
            others.discard(listener)
            if not others:
                self._listeners.pop(account, None)

    @property
    def _wanted(self) -> bool:
        return bool(self._waiting or self._listeners)

    def _concerns(self, frame: Frame) -> bool:
        if frame.sequence <= self._last.get(frame.shard, 0):
            return False
        self._last[frame.shard] = frame.sequence
        return bool(self._listeners) or frame.trace in self._waiting

    def _resolve(self, frame: Frame) -> None:
        trace = frame.trace or ""
        waiters = self._waiting.get(trace, [])
        if self._listeners:
            self._tell(frame, waiters)
        if not waiters:
            return
        parts = self._gathered.setdefault(trace, [])
        parts.append(frame.events)
        if len(frame.events) == FULL_FRAME and len(parts) < MAX_GATHERED_FRAMES:
            return
        del self._gathered[trace], self._waiting[trace]
        filled = [part for part in parts if len(part)] or parts[:1]
        events = concatenate(_CODEC, filled)
        inputs = events.rows[:, _INPUT_WORD]
        for waiter in waiters:
            if not waiter.answer.done():
                here = (inputs >= waiter.start) & (inputs < waiter.stop)
                waiter.answer.set_result((frame.sequence, Events(np.ascontiguousarray(events.rows[here]), events.heap)))

    def forget(self, waiter: Waiter) -> None:
        super().forget(waiter)
        if waiter.trace not in self._waiting:
            self._gathered.pop(waiter.trace, None)

    def _tell(self, frame: Frame, waiters: Iterable[Waiter]) -> None:
        """Give listeners what is theirs and answers none of their own waiters."""
        own = {
            number: waiter.listener
            for waiter in waiters
            if isinstance(waiter, ReportWaiter) and waiter.listener is not None
            for number in range(waiter.start, waiter.stop)
        }
        events = frame.events
        for index, row in enumerate(events.rows.tolist()):
            if row[0] != _EXECUTION.kind:
                continue
            takers = self._listeners.get(text(events, row[_ACCOUNT_WORD]), ())
            makers = self._listeners.get(text(events, row[_MAKER_WORD]), ())
            asked = own.get(row[_INPUT_WORD])
            told = [(listener, taker_side) for listener in takers if listener is not asked]
            told += [(listener, maker_side) for listener in makers]
            if told:
                [report] = render_events(_CODEC, Events(events.rows[index : index + 1], events.heap))
                for listener, side in told:
                    if side is maker_side and report["maker_order_id"] is None:
                        continue  # a venue traded, which has no order here
                    listener.deliver(side(report), frame.shard)
