"""Execution reports for those who wait for them: the requests that caused them, and streams of accounts.

A command has any number of reports, and a command frame's reports take several frames when there are many: for a
request they are gathered until the frame that is not full, a stream is told them as they come. A repeated report frame
(the job restarted) is dropped by its sequence.

What a client sees of a trade is its own side: the counterparty's order and account are left out, and to the resting
order's owner the trade is told as a report of that order.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from api.batching import concatenate
from api.results import ResultReader, Waiter
from infra.settings import Settings
from pipelines.catalogue import MATCHING_REPORTS
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame

__all__ = ["AccountListener", "Asked", "ReportReader", "ReportWaiter", "Told", "answers", "taker_side"]

FULL_FRAME: Final = 4096
"""Every report frame of a command frame but the last has exactly so many events."""
MAX_GATHERED_FRAMES: Final = 1024

_CODEC: Final = codec_of(MATCHING_REPORTS.name)
_EXECUTION: Final = _CODEC.event_type("ExecutionReport")
_INPUT_WORD: Final = _EXECUTION.field("input").word
_ORDER_WORD: Final = _EXECUTION.field("order_id").word
_ACCOUNT_WORD: Final = _EXECUTION.field("account").word
_MAKER_WORD: Final = _EXECUTION.field("maker_account").word
_MAKER_IS_SET_WORD: Final = _EXECUTION.field("maker_order_id").is_set_word
_ROUTE: Final = _CODEC.event_type("RouteRequest")
_REFUSAL: Final = _CODEC.event_type("OrderCancelReject")
_ACCOUNT_WORDS: Final = {_EXECUTION.kind: _ACCOUNT_WORD, _REFUSAL.kind: _REFUSAL.field("account").word}
"""Of the reports that an account's listeners are told."""
_ROUTE_ORDER_WORD: Final = _ROUTE.field("order_id").word
assert all(kind.field("input").word == _INPUT_WORD for kind in _CODEC.event_types)
_COUNTERPARTY: Final = ("maker_order_id", "maker_account", "maker_leaves_quantity")


class Told(NamedTuple):
    """One report for a listener: a row of matching.reports, and the number of its request, 0 where it answers none.

    ``of_maker``: it is a trade, told to the owner of the resting order.
    """

    row: list[int]
    number: int
    of_maker: bool


class Asked(NamedTuple):
    """A listener's command: the number that it gave it, and whose order it is about."""

    number: int
    order_id: int
    account: bytes


@dataclass(slots=True, eq=False)
class AccountListener:
    """Hears of its ``accounts``, and what answers its own commands, by ``hear(reports, heap, shard)``: what a frame has
    for it, in the event loop, in the order of each shard. ``heap`` has the rows' texts."""

    hear: Callable[[list[Told], bytes, int], None]
    accounts: set[bytes] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class ReportWaiter(Waiter):
    """A waiter of commands; those of a listener, which hears the reports itself, are answered with none at the end."""

    listener: AccountListener | None = None
    asked: Sequence[Asked] = ()


def taker_side(report: dict[str, Any]) -> dict[str, Any]:
    """A report as the owner of ``order_id`` sees it."""
    return {name: value for name, value in report.items() if name not in _COUNTERPARTY and name != "input"}


class ReportReader(ResultReader):
    """Reads matching.reports; see the module."""

    def __init__(self, settings: Settings) -> None:
        self._listeners: dict[bytes, set[AccountListener]] = {}
        self._gathered: dict[str, list[Events]] = {}
        self._last: dict[int, int] = {}
        super().__init__(settings, MATCHING_REPORTS)

    def waiter(self, listener: AccountListener | None = None, asked: Sequence[Asked] = ()) -> ReportWaiter:
        """``asked`` are the commands of ``listener`` that it is for, in the order of their run."""
        return ReportWaiter(asyncio.get_running_loop().create_future(), listener=listener, asked=asked)

    def listen(self, listener: AccountListener, account: bytes) -> None:
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
        waiters = [waiter for waiter in self._waiting.get(trace, ()) if isinstance(waiter, ReportWaiter)]
        if self._listeners:
            self._tell(frame, waiters)
        if not waiters:
            return
        parts = self._gathered.setdefault(trace, [])
        parts.append(frame.events)
        if len(frame.events) == FULL_FRAME and len(parts) < MAX_GATHERED_FRAMES:
            return
        del self._gathered[trace], self._waiting[trace]
        shares = _shares([part for part in parts if len(part)] or parts[:1], waiters)
        for waiter, events in zip(waiters, shares, strict=True):
            if not waiter.answer.done():
                waiter.answer.set_result((frame.sequence, events))

    def forget(self, waiter: Waiter) -> None:
        super().forget(waiter)
        if waiter.trace not in self._waiting:
            self._gathered.pop(waiter.trace, None)

    def _tell(self, frame: Frame, waiters: Iterable[ReportWaiter]) -> None:
        """Give listeners what the frame has for them, in its order."""
        own = {
            waiter.start + index: (waiter.listener, asked)
            for waiter in waiters
            if waiter.listener is not None
            for index, asked in enumerate(waiter.asked)
        }
        heap = frame.events.heap.tobytes()
        told: defaultdict[AccountListener, list[Told]] = defaultdict(list)
        for row in frame.events.rows.tolist():
            asking, asked = own.get(row[_INPUT_WORD], (None, None))
            if asking is not None and asked is not None and answers(asked, row, heap):
                told[asking].append(Told(row, asked.number, False))
            else:
                asking = None
            account_word = _ACCOUNT_WORDS.get(row[0])
            if account_word is None:
                continue
            for listener in self._listeners.get(_cut(heap, row[account_word]), ()):
                if listener is not asking:
                    told[listener].append(Told(row, 0, False))
            if row[0] == _EXECUTION.kind and row[_MAKER_IS_SET_WORD]:  # a venue that traded has no order here
                for listener in self._listeners.get(_cut(heap, row[_MAKER_WORD]), ()):
                    told[listener].append(Told(row, 0, True))
        for listener, reports in told.items():
            listener.hear(reports, heap, frame.shard)


def answers(asked: Asked, row: list[int], heap: bytes) -> bool:
    """Whether a report that a command brought about concerns its order or account: not an order of others that it set
    off, a stop say. Texts are in ``heap``."""
    if row[0] == _EXECUTION.kind:
        return row[_ORDER_WORD] == asked.order_id or _cut(heap, row[_ACCOUNT_WORD]) == asked.account
    return row[0] != _ROUTE.kind or row[_ROUTE_ORDER_WORD] == asked.order_id


def _shares(parts: list[Events], waiters: Sequence[ReportWaiter]) -> Iterator[Events]:
    """What each waiter of a command frame is answered with, the reports lying in ``parts``."""
    if any(waiter.listener is None for waiter in waiters):
        parts = [concatenate(_CODEC, parts)]
    events = parts[0]
    inputs = events.rows[:, _INPUT_WORD]
    for waiter in waiters:
        here = (inputs >= waiter.start) & (inputs < waiter.stop) if waiter.listener is None else slice(0)
        yield Events(np.ascontiguousarray(events.rows[here]), events.heap)


def _cut(heap: bytes, word: int) -> bytes:
    start = word >> 32
    return heap[start : start + (word & 0xFFFFFFFF)]
