"""Running totals of a ledger shard as a kernel: what was posted per account, ledger and code, in hours and days (UTC).

Reads ledger.events, whose frames one job numbers; answers each with the windows that it changed, once each and as they
are at its end, in one or more frames of ledger.totals. A window's record replaces every earlier one of the same key, so
readers upsert. Totals are of posted amounts: pending and voiding transfers and expiries move nothing; one that posts a
pending transfer counts with what it posts. An entry belongs to the windows of its own timestamp (nanoseconds): a late
one corrects them and the opening balances of all later windows of its keys.

Limit: `max_windows` windows are kept per shard, 128 bytes each; the oldest made are given up. An entry so late that its
window was given up raises `WindowGivenUp`, with the setting to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipelines import id_index, pages
from pipelines.codec import codec_of
from pipelines.compiled import source_digest
from pipelines.errors import StateVersionError, StreambankError
from pipelines.frames import Events, Frame
from pipelines.kernel import Output
from pipelines.ledger import u128
from pipelines.ledger.records import U128
from pipelines.ledger.u128 import join
from pipelines.ledger_totals import engine

__all__ = ["MAX_TOTALS_PER_FRAME", "LedgerTotalsKernel", "WindowGivenUp"]

STATE_VERSION: Final = 1
MAX_TOTALS_PER_FRAME: Final = 4_000
"""Keeps the largest output frame below Kafka's limit of 1 MB."""
MIN_WINDOWS: Final = 1 << 16
"""A frame makes fewer, so that none of its own is given up before it is sent."""

_EVENTS: Final = "ledger.events"
_TOTALS: Final = "ledger.totals"
_AMOUNTS: Final = ("debits", "credits", "opening_debits", "opening_credits")


class WindowGivenUp(StreambankError):  # noqa: N818 - an alarm, named for what happened
    """An entry is older than the windows kept, or the keys are full; the job must stop and be started with more."""


_SOURCES: Final = np.zeros(0, np.dtype([(f"sources_{source_digest(__file__, id_index, pages, u128)}", "u1")]))


class LedgerTotalsKernel:
    """One shard's totals. Capacities reserve address space, not memory: an account takes 64 bytes and its windows 128
    each, when they exist."""

    state_version: ClassVar[int] = STATE_VERSION

    def __init__(self, *, max_accounts: int = 1 << 24, max_groups: int = 1 << 18, max_windows: int = 1 << 24) -> None:
        if max_windows < MIN_WINDOWS:
            raise ValueError(f"max_windows is at least {MIN_WINDOWS}, found {max_windows}")
        self._totals = codec_of(_TOTALS)
        self._transfer = codec_of(_EVENTS).event_type("TransferCreated")
        self._total = self._totals.event_type("WindowTotal")
        self._capacity = {engine.ACCOUNTS: max_accounts, engine.GROUPS: max_groups}
        self._state = pages.PagedState(
            {
                "accounts": pages.Column(engine.KEY, max_accounts),
                "groups": pages.Column(engine.KEY, max_groups),
                "windows": pages.Column(engine.WINDOW, max_windows),
                "meta": pages.Column(np.int64, 64),
            }
        )
        columns = self._state.columns
        self._arrays = engine.Totals(
            meta=columns["meta"],
            accounts=columns["accounts"],
            groups=columns["groups"],
            windows=columns["windows"][:max_windows],
            account_index=id_index.new_index(max_accounts),
            group_index=id_index.new_index(max_groups),
            none=np.zeros(1, U128),
            changed=pages.reserve(np.int64, max_windows),
            dirty=self._state.dirty,
            first_pages=np.array([self._state.first_page[name] for name in columns], np.int64),
            sources=_SOURCES,
        )
        self._arrays.meta[engine.FLOORS : engine.FLOORS + 2] = -1

    def apply(self, frame: Frame) -> list[Output]:
        """Add the frame's entries; see `pipelines.kernel.Kernel.apply`."""
        arrays = self._arrays
        for column, capacity in self._capacity.items():
            if int(arrays.meta[column]) + 2 * len(frame.events) > capacity:
                raise WindowGivenUp(f"ledger_totals: {capacity} keys are not enough; start with larger capacities")
        rows = frame.events.rows.view()
        rows.flags.writeable = False  # one compilation serves decoded and hand-made rows
        transfers: NDArray[np.void] = np.ndarray(len(rows), self._transfer.dtype, rows)
        changed = engine.add_entries(arrays, transfers, self._transfer.kind)
        if changed == engine.TOO_LATE:
            raise WindowGivenUp(
                f"ledger_totals: frame {frame.sequence} of shard {frame.shard} has an entry older than the "
                f"{len(arrays.windows)} windows kept: start with a larger max_windows"
            )
        outputs = []
        for first in range(0, max(changed, 1), MAX_TOTALS_PER_FRAME):
            totals = self._totals.new_rows(min(changed - first, MAX_TOTALS_PER_FRAME))
            if len(totals):
                engine.emit(arrays, first, totals.view(self._total.dtype)[:, 0])
            outputs.append(Output(_TOTALS, Events(totals)))
        return outputs

    def dirty_pages(self) -> dict[str, bytes]:
        return self._state.dirty_pages()

    def dirty_bytes(self) -> int:
        return self._state.dirty_bytes()

    def restore(self, pages: Mapping[str, bytes], state_version: int) -> None:
        """Load stored pages and rebuild both key indexes."""
        if state_version != STATE_VERSION:
            raise StateVersionError(
                f"ledger_totals: state version {state_version} found, this code reads {STATE_VERSION}"
            )
        for key, data in pages.items():
            self._state.load(key, data)
        arrays = self._arrays
        id_index.rebuild(arrays.account_index, arrays.accounts, arrays.meta[engine.ACCOUNTS], False)
        id_index.rebuild(arrays.group_index, arrays.groups, arrays.meta[engine.GROUPS], False)

    def state_rows(self) -> Iterator[dict[str, Any]]:
        """Every window kept, in the order in which they were made, with the schema's field names."""
        arrays = self._arrays
        sizes, groupings = self._total.field("window").symbols, self._total.field("grouping").symbols
        for number in range(int(arrays.meta[engine.OLDEST]), int(arrays.meta[engine.WINDOWS])):
            window = arrays.windows[number % len(arrays.windows)]
            is_group = bool(window["kind"] & 2)
            key = (arrays.groups if is_group else arrays.accounts)[window["key"]]
            code = int(key["id_lo"]) & (1 << engine.CODE_BITS) - 1 if is_group else 0
            yield {
                "grouping": groupings[0 if not is_group else 2 if code else 1],
                "window": sizes[window["kind"] & 1],
                "start": int(window["start"]),
                "account_id": 0 if is_group else join(key["id_lo"], key["id_hi"]),
                "ledger": int(window["ledger"]),
                "code": code,
                "entries": int(window["entries"]),
                **{name: join(window[f"{name}_lo"], window[f"{name}_hi"]) for name in _AMOUNTS},
            }
