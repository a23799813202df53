"""The ledger as a kernel: double-entry accounts and transfers of one shard, with TigerBeetle's semantics.

A frame of ledger.commands is one batch. It is answered by one frame of ledger.results, with the result of each command
at the same position, and by one frame of ledger.events, with what changed (possibly nothing): expired transfers first,
then accounts and transfers in the order of their commands.

Units: amounts in the ledger's minor unit, [0, 2^128); timestamps in nanoseconds since the epoch. The clock never goes
back: it is the later of the frame's ``produced_at`` and where the last frame left it; event i gets clock + i + 1.
docs/reference/ledger.md has every rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipelines import expiry, id_index, pages
from pipelines.codec import codec_of
from pipelines.compiled import source_digest
from pipelines.errors import FrameError, StateVersionError, StreambankError
from pipelines.frames import Events, Frame, Rows
from pipelines.kernel import InvariantBroken, Output
from pipelines.ledger import engine
from pipelines.ledger.records import ACCOUNT, TRANSFER, U128, AccountFlags, PendingStatus, TransferFlags
from pipelines.ledger.u128 import join, split

__all__ = ["MAX_EXPIRED_PER_FRAME", "CapacityExceeded", "LedgerKernel"]

STATE_VERSION: Final = 1

MAX_EXPIRED_PER_FRAME: Final = 500
"""TransferExpired events in one frame; with the largest command frame's they stay below Kafka's limit of 1 MB."""

MAX_PRODUCED_AT: Final = 7_258_118_400_000_000
"""2200-01-01 in microseconds. A frame from later is refused: it would hold the clock, which never goes back, there."""

RECENT_TRANSFERS: Final = 1 << 20
"""Records kept in memory where older ones are spilled (see `pipelines.pages.spill_to`)."""

_USER_DATA: Final = ("user_data_128", "user_data_64", "user_data_32")

_AUDIT_CHUNK: Final = 1 << 18
"""Records looked at together, so that an audit of any size takes little memory."""
_AUDITED: Final = (
    "accounts", "transfers", "debits_pending", "credits_pending", "transfers_pending",
    "debits_posted", "credits_posted", "transfers_posted",
)  # fmt: skip

_COMMANDS: Final = "ledger.commands"
_RESULTS: Final = "ledger.results"
_EVENTS: Final = "ledger.events"


class CapacityExceeded(StreambankError):  # noqa: N818 - an alarm, named for what happened
    """The shard's reserved columns are full; the job must stop and be started with larger ones."""


_SOURCES: Final = np.zeros(0, np.dtype([(f"sources_{source_digest(__file__, expiry, id_index, pages)}", "u1")]))


class LedgerKernel:
    """One shard of the ledger.

    ``max_accounts`` and ``max_transfers`` reserve address space, not memory: a record takes 128 bytes when it exists,
    and its id about 16 more. A frame that might not fit raises `CapacityExceeded` before anything is changed.

    Where columns may be spilled, only about the last `RECENT_TRANSFERS` transfers stay in memory. An older one is
    read back from disk when its id is used again, or when it is posted, voided or expires.
    """

    state_version: ClassVar[int] = STATE_VERSION

    def __init__(self, *, max_accounts: int = 1 << 24, max_transfers: int = 1 << 26) -> None:
        self._commands = codec_of(_COMMANDS)
        self._results = codec_of(_RESULTS)
        self._events = codec_of(_EVENTS)
        self._command_views = [self._commands.event_type(name).dtype for name in ("CreateAccount", "CreateTransfer")]
        self._result_views = [self._results.event_type(name).dtype for name in ("AccountResult", "TransferResult")]
        self._event_views = [
            self._events.event_type(name).dtype for name in ("AccountCreated", "TransferCreated", "TransferExpired")
        ]
        for codec, names in (
            (self._commands, ("CreateAccount", "CreateTransfer")),
            (self._results, ("AccountResult", "TransferResult")),
            (self._events, ("AccountCreated", "TransferCreated", "TransferExpired")),
        ):
            if tuple(event_type.name for event_type in codec.event_types) != names:
                raise StreambankError(f"{codec.topic}: the kernel is written for the events {', '.join(names)}")
        self._state = pages.PagedState(
            {
                "accounts": pages.Column(ACCOUNT, max_accounts, huge_pages=True),
                "transfers": pages.Column(TRANSFER, max_transfers, huge_pages=True, spill=True),
                "statuses": pages.Column(np.uint8, max_transfers),
                "burned": pages.Column(U128, max_transfers),
                "meta": pages.Column(np.int64, 64),
            }
        )
        columns = self._state.columns
        self._released = 0
        self._capacity = {"accounts": max_accounts, "transfers": max_transfers}
        self._arrays = engine.LedgerArrays(
            meta=columns["meta"],
            accounts=columns["accounts"],
            transfers=columns["transfers"],
            statuses=columns["statuses"],
            burned=columns["burned"],
            dirty=self._state.dirty,
            first_pages=np.array([self._state.first_page[name] for name in columns], np.int64),
            account_index=id_index.new_index(max_accounts),
            transfer_index=id_index.new_index(2 * max_transfers),
            expiries=pages.reserve(np.int64, 2 * max_transfers).reshape(max_transfers, 2),
            announcements=pages.reserve(np.int64, max_transfers),
            queues=np.zeros(3, np.int64),
            drift=np.zeros(2, np.uint64),
            accounts_ahead=np.zeros((engine.READ_AHEAD, 2), np.int64),
            sources=_SOURCES,
        )

    def apply(self, frame: Frame) -> list[Output]:
        """Apply one frame of ledger.commands; see `pipelines.kernel.Kernel.apply`.

        `FrameError` reason: ``produced_at_out_of_range``.
        """
        if not 0 <= frame.produced_at <= MAX_PRODUCED_AT:
            raise FrameError(
                "produced_at_out_of_range",
                f"produced_at {frame.produced_at} is not in microseconds between 1970 and 2200",
            )
        arrays = self._arrays
        rows = frame.events.rows
        count = len(rows)
        self._check_capacity(rows)
        clock = max(int(arrays.meta[engine.CLOCK]), frame.produced_at * 1_000)
        waiting = int(arrays.queues[engine.ANNOUNCED_TAIL] - arrays.queues[engine.ANNOUNCED_HEAD])
        expired_limit = min(MAX_EXPIRED_PER_FRAME, waiting + int(arrays.queues[engine.EXPIRIES]))
        commands = rows.view()
        commands.flags.writeable = False  # one compilation serves decoded and hand-made rows
        results = np.empty((count, self._results.row_words), np.int64)
        events = np.empty((count + expired_limit, self._events.row_words), np.int64)
        written = engine.apply_rows(
            arrays,
            clock,
            *[_seen_as(dtype, commands) for dtype in self._command_views],
            *[_seen_as(dtype, results) for dtype in self._result_views],
            *[_seen_as(dtype, events) for dtype in self._event_views],
            events,
            expired_limit,
        )
        if written == engine.INVARIANT_BROKEN:
            raise InvariantBroken(
                "ledger: debits and credits moved by different sums, or a transfer's account is missing, in the frame "
                f"of {count} events produced at {frame.produced_at} (trace {frame.trace})"
            )
        self._release_old_transfers()
        return [Output(_RESULTS, Events(results)), Output(_EVENTS, Events(events[:written]))]

    def _release_old_transfers(self) -> None:
        transfers = int(self._arrays.meta[engine.TRANSFERS])
        # in small steps, because giving memory back takes time as well
        if transfers - self._released >= RECENT_TRANSFERS + RECENT_TRANSFERS // 16:
            self._released = transfers - RECENT_TRANSFERS
            self._state.release("transfers", self._released)

    def _check_capacity(self, rows: Rows) -> None:
        meta = self._arrays.meta
        transfers = int(np.count_nonzero(rows[:, 0]))
        for name, used, more in (
            ("accounts", int(meta[engine.ACCOUNTS]), len(rows) - transfers),
            ("transfers", int(max(meta[engine.TRANSFERS], meta[engine.BURNED_IDS])), transfers),
        ):
            if used + more > self._capacity[name]:
                raise CapacityExceeded(
                    f"ledger: {used} of at most {self._capacity[name]} {name} are used, {more} more may not fit: "
                    f"start the kernel with a larger max_{name}"
                )

    def dirty_pages(self) -> dict[str, bytes]:
        return self._state.dirty_pages()

    def dirty_bytes(self) -> int:
        return self._state.dirty_bytes()

    def restore(self, pages: Mapping[str, bytes], state_version: int) -> None:
        """Load stored pages and rebuild what follows from them: both id indexes and the expiry queues.

        Raises `InvariantBroken` when the pages do not make up a whole ledger (one is missing, say).
        """
        if state_version != STATE_VERSION:
            raise StateVersionError(f"ledger: state version {state_version} found, this code reads {STATE_VERSION}")
        for key, data in pages.items():
            self._state.load(key, data)
        arrays = self._arrays
        self._check_capacity(self._commands.new_rows(0))
        self.audit()
        transfer_count = int(arrays.meta[engine.TRANSFERS])
        id_index.rebuild(arrays.account_index, arrays.accounts, arrays.meta[engine.ACCOUNTS], False)
        id_index.rebuild(arrays.transfer_index, arrays.transfers, arrays.meta[engine.TRANSFERS], False)
        id_index.rebuild(arrays.transfer_index, arrays.burned, arrays.meta[engine.BURNED_IDS], True)
        statuses = arrays.statuses[:transfer_count]
        slots = np.flatnonzero(statuses == PendingStatus.pending)
        slots = slots[arrays.transfers["timeout"][slots] != 0]
        arrays.queues[engine.EXPIRIES] = expiry.rebuild(arrays.expiries, self._expires_at(slots), slots)
        slots = np.flatnonzero(statuses == PendingStatus.expired_unannounced)
        slots = slots[np.lexsort((slots, self._expires_at(slots)))]
        arrays.announcements[: len(slots)] = slots
        arrays.queues[engine.ANNOUNCED_TAIL] = len(slots)
        self._release_old_transfers()

    def _expires_at(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        transfers = self._arrays.transfers[slots]
        expires_at: NDArray[np.int64] = transfers["timestamp"] + transfers["timeout"].astype(np.int64) * 1_000_000_000
        return expires_at

    @property
    def clock(self) -> int:
        """Nanoseconds since the epoch: the timestamp of the last event applied, or later."""
        return int(self._arrays.meta[engine.CLOCK])

    @property
    def accounts(self) -> NDArray[np.void]:
        """All accounts in timestamp order, as `pipelines.ledger.records.ACCOUNT`; a view."""
        return self._arrays.accounts[: self._arrays.meta[engine.ACCOUNTS]]

    @property
    def transfers(self) -> NDArray[np.void]:
        """All transfers in timestamp order, as `pipelines.ledger.records.TRANSFER`; a view."""
        return self._arrays.transfers[: self._arrays.meta[engine.TRANSFERS]]

    @property
    def pending_statuses(self) -> NDArray[np.uint8]:
        """`pipelines.ledger.records.PendingStatus` of each of `transfers`; a view."""
        return self._arrays.statuses[: self._arrays.meta[engine.TRANSFERS]]

    @property
    def burned_ids(self) -> list[int]:
        """Transfer ids used up by a transient failure, in the order of the failures."""
        burned = self._arrays.burned[: self._arrays.meta[engine.BURNED_IDS]]
        return [join(lo, hi) for lo, hi in burned.tolist()]

    def account(self, account_id: int) -> dict[str, Any] | None:
        """One account as in `state_rows`; None if there is none."""
        arrays = self._arrays
        lo, hi = (np.uint64(word) for word in split(account_id))
        slot = id_index.find(arrays.account_index, arrays.accounts, arrays.burned, lo, hi)
        return None if slot < 0 else _account_row(next(_fields(arrays.accounts[slot : slot + 1])))

    def transfer(self, transfer_id: int) -> dict[str, Any] | None:
        """One transfer as in `state_rows`; None if there is none."""
        arrays = self._arrays
        lo, hi = (np.uint64(word) for word in split(transfer_id))
        slot = id_index.find(arrays.transfer_index, arrays.transfers, arrays.burned, lo, hi)
        if slot < 0:
            return None
        return _transfer_row(next(_fields(arrays.transfers[slot : slot + 1])), int(arrays.statuses[slot]))

    def audit(self) -> dict[int, dict[str, int]]:
        """Check the invariants of the whole state; O(accounts + transfers).

        Every id is set and timestamps increase, so no page is missing; per ledger the debits equal the credits,
        pending and posted apart, and so does what the transfers add up to; no limit is passed. Raises
        `InvariantBroken` with the figures. Returns per ledger: accounts, transfers, pending and posted sums.
        """
        figures: dict[int, dict[str, int]] = {}
        last = {"accounts": -1, "transfers": -1}
        for name, records in (("accounts", self.accounts), ("transfers", self.transfers)):
            for start in range(0, len(records), _AUDIT_CHUNK):
                chunk = records[start : start + _AUDIT_CHUNK]
                timestamps = chunk["timestamp"]
                if (
                    np.any((chunk["id_lo"] | chunk["id_hi"]) == 0)
                    or timestamps[0] <= last[name]
                    or np.any(np.diff(timestamps) <= 0)
                ):
                    raise InvariantBroken(
                        f"ledger: {name} without id or out of timestamp order; a stored page is missing"
                    )
                last[name] = int(timestamps[-1])
                statuses = self.pending_statuses[start : start + _AUDIT_CHUNK]
                for ledger in np.unique(chunk["ledger"]).tolist():
                    own = chunk["ledger"] == ledger
                    sums = figures.setdefault(ledger, dict.fromkeys(_AUDITED, 0))
                    found = _account_sums(chunk[own]) if name == "accounts" else _transfer_sums(chunk, own, statuses)
                    for figure, value in found.items():
                        sums[figure] += value
        for ledger, sums in figures.items():
            for kind in ("pending", "posted"):
                if len({value for name, value in sums.items() if name.endswith(kind)}) != 1:
                    raise InvariantBroken(f"ledger {ledger}: sums differ: {sums}")
        accounts = self.accounts
        limited = accounts["flags"] & (
            AccountFlags.debits_must_not_exceed_credits | AccountFlags.credits_must_not_exceed_debits
        )
        for row in map(_account_row, _fields(accounts[limited != 0])):
            debits = AccountFlags.debits_must_not_exceed_credits.name in row["flags"]
            own_side, other = ("debits", "credits") if debits else ("credits", "debits")
            if row[f"{own_side}_pending"] + row[f"{own_side}_posted"] > row[f"{other}_posted"]:
                raise InvariantBroken(f"ledger: account {row['id']} passed its limit: {row}")
        return {
            ledger: {
                "accounts": sums["accounts"],
                "transfers": sums["transfers"],
                "pending": sums["debits_pending"],
                "posted": sums["debits_posted"],
            }
            for ledger, sums in figures.items()
        }

    def state_rows(self) -> Iterator[dict[str, Any]]:
        """Accounts, then transfers, each in timestamp order, with the schema's field names.

        Integers are Python ints and flags lists of names. An account also has ``closed``, a transfer with the flag
        ``pending`` also ``pending_status``.
        """
        for account in _fields(self.accounts):
            yield _account_row(account)
        for transfer, status in zip(_fields(self.transfers), self.pending_statuses.tolist(), strict=True):
            yield _transfer_row(transfer, status)


def _seen_as(dtype: np.dtype[np.void], rows: NDArray[np.int64]) -> NDArray[np.void]:
    """The rows as one event type; many times faster than ``rows.view(dtype)``."""
    view: NDArray[np.void] = np.ndarray(len(rows), dtype, rows)
    return view


def _account_sums(accounts: NDArray[np.void]) -> dict[str, int]:
    balances = ("debits_pending", "credits_pending", "debits_posted", "credits_posted")
    return {"accounts": len(accounts), **{name: _total(accounts, name) for name in balances}}


def _transfer_sums(transfers: NDArray[np.void], own: NDArray[np.bool_], statuses: NDArray[np.uint8]) -> dict[str, int]:
    posted = transfers["flags"] & (TransferFlags.pending | TransferFlags.void_pending_transfer) == 0
    return {
        "transfers": int(own.sum()),
        "transfers_pending": _total(transfers[own & (statuses == PendingStatus.pending)], "amount"),
        "transfers_posted": _total(transfers[own & posted], "amount"),
    }


def _total(records: NDArray[np.void], field: str) -> int:
    """Exact sum of a 128-bit field: its 32-bit limbs are summed apart, which fits 64 bits for 2^32 records."""
    low_bits = np.uint64(0xFFFF_FFFF)
    total = 0
    for word, shift in ((f"{field}_lo", 0), (f"{field}_hi", 64)):
        values = records[word]
        total += int((values & low_bits).sum(dtype=np.uint64)) << shift
        total += int((values >> np.uint64(32)).sum(dtype=np.uint64)) << (shift + 32)
    return total


def _names(flags: type[AccountFlags] | type[TransferFlags], bits: int) -> list[str]:
    return [flag.name or "" for flag in flags if bits & flag]


def _fields(records: NDArray[np.void]) -> Iterator[dict[str, int]]:
    """Records as dicts of Python ints, 128-bit numbers joined; in chunks, because a record at a time is slow."""
    names = records.dtype.names or ()
    wide = {name.removesuffix("_lo") for name in names if name.endswith("_lo")}
    for start in range(0, len(records), 4_096):
        for values in records[start : start + 4_096].tolist():
            found = dict(zip(names, values, strict=True))
            for name in wide:
                found[name] = found.pop(f"{name}_lo") | found.pop(f"{name}_hi") << 64
            yield found


def _account_row(found: dict[str, int]) -> dict[str, Any]:
    names = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
    return {
        "type": "Account",
        "id": found["id"],
        "ledger": found["ledger"],
        "code": found["code"],
        "flags": _names(AccountFlags, found["flags"]),
        "closed": bool(found["flags"] & AccountFlags.closed),
        **{name: found[name] for name in (*names, *_USER_DATA, "timestamp")},
    }


def _transfer_row(found: dict[str, int], status: int) -> dict[str, Any]:
    names = ("id", "debit_account_id", "credit_account_id", "amount", "pending_id")
    row: dict[str, Any] = {
        "type": "Transfer",
        **{name: found[name] for name in (*names, *_USER_DATA, "timeout", "ledger", "code")},
        "flags": _names(TransferFlags, found["flags"]),
        "timestamp": found["timestamp"],
    }
    if status != PendingStatus.none:
        announced = PendingStatus.expired if status == PendingStatus.expired_unannounced else PendingStatus(status)
        row["pending_status"] = announced.name
    return row
