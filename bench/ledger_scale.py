"""The ledger kernel when it has grown: ten million accounts and fifty million known ids in one shard.

Shows what a transfer costs beside a ledger of ten thousand accounts in the same run, the memory that an account and an
id keep, the longest frame while tables grow, and that an id from the beginning is still answered when its record has
left memory. Records are spilled to a temporary directory, as in a job. Sums are checked at the end.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from bench.report import Measurement
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.ledger.kernel import LedgerKernel
from pipelines.ledger.results import TransferResultCode
from pipelines.pages import spill_to

__all__ = ["measure"]

ACCOUNTS: Final = 10_000_000
FEW_ACCOUNTS: Final = 10_000
IDS: Final = 50_000_000
COMPARED: Final = 2_000_000
"""Transfers per load where the two sizes are compared."""
OLD_IDS: Final = 20_000
FRAME_EVENTS: Final = 500
CHUNK: Final = 200 * FRAME_EVENTS
_FIRST_ID: Final = 1 << 40

_COMMANDS: Final = codec_of("ledger.commands")
_ACCOUNT: Final = _COMMANDS.event_type("CreateAccount").dtype
_TRANSFER: Final = _COMMANDS.event_type("CreateTransfer").dtype

Choose = Callable[[np.random.Generator, int, int], NDArray[np.int64]]
LOADS: Final[dict[str, Choose]] = {
    "uniform": lambda rng, accounts, count: rng.integers(0, accounts, count),
    "zipf": lambda rng, accounts, count: np.minimum(rng.zipf(1.2, count), accounts) - 1,
    "two hot accounts": lambda rng, accounts, count: rng.integers(0, 2, count),
}


def measure(accounts: int = ACCOUNTS, ids: int = IDS, seed: int = 1) -> list[Measurement]:
    """Takes some ten minutes and, with the default sizes, about 4 GB of memory and 7 GB of disk."""
    with _spilling():
        small, large = _Ledger(FEW_ACCOUNTS, seed), _Ledger(accounts, seed)
        found = [_compared(name, small, large) for name in LOADS]
        found += large.grow(ids)
        found.append(large.answer_old_ids())
        large.check()
    return found


class _Ledger:
    """A kernel with its accounts, and what it was given."""

    def __init__(self, accounts: int, seed: int) -> None:
        self.accounts = accounts
        self.kernel = LedgerKernel()
        self.rng = np.random.default_rng(seed)
        self.transfers = 0
        self.moved = 0
        self.longest = 0.0
        """CPU-seconds of the longest frame."""
        self.oldest: NDArray[np.int64] | None = None
        before = _resident()
        for start in range(0, accounts, CHUNK):
            rows = _COMMANDS.new_rows(min(CHUNK, accounts - start))
            commands = rows.view(_ACCOUNT)[:, 0]
            commands["id_lo"] = np.arange(start + 1, start + 1 + len(rows))
            commands["ledger"] = commands["code"] = 1
            self._apply(rows)
        self.account_bytes = (_resident() - before) / accounts

    def run(self, choose: Choose, count: int) -> float:
        """Apply plain transfers; returns CPU-seconds."""
        seconds = 0.0
        for start in range(0, count, CHUNK):
            rows = self._next(choose, min(CHUNK, count - start))
            if self.oldest is None:
                self.oldest = rows[:OLD_IDS].copy()
            seconds += self._apply(rows)
        return seconds

    def _next(self, choose: Choose, count: int) -> NDArray[np.int64]:
        rows = _COMMANDS.new_rows(count)
        commands = rows.view(_TRANSFER)[:, 0]
        debits, others = (choose(self.rng, self.accounts, count) for _ in range(2))
        others = np.where(debits == others, (debits + 1) % (2 if debits.max() < 2 else self.accounts), others)
        commands["kind"] = 1
        commands["id_lo"] = _FIRST_ID + self.transfers + np.arange(count)
        commands["id_hi"] = self.rng.integers(0, 1 << 62, count)
        commands["debit_account_id_lo"] = debits + 1
        commands["credit_account_id_lo"] = others + 1
        commands["amount_lo"] = self.rng.integers(1, 10_000, count)
        commands["ledger"] = commands["code"] = 1
        self.transfers += count
        self.moved += int(commands["amount_lo"].sum())
        return rows

    def _apply(self, rows: NDArray[np.int64]) -> float:
        seconds = 0.0
        for start in range(0, len(rows), FRAME_EVENTS):
            frame = Frame(
                "ledger.commands", 1, 0, 1_700_000_000_000_000, None, Events(rows[start : start + FRAME_EVENTS])
            )
            began = time.process_time()
            results, events = self.kernel.apply(frame)
            took = time.process_time() - began
            seconds += took
            self.longest = max(self.longest, took)
            if len(events.events) != len(results.events):
                raise AssertionError(f"{len(results.events) - len(events.events)} commands of a frame were refused")
        self.kernel.dirty_pages()  # what a job would have stored by now
        return seconds

    def grow(self, ids: int) -> list[Measurement]:
        """Go on until so many ids are known."""
        before, known = _resident(), self.transfers
        self.longest = 0.0
        self.run(LOADS["uniform"], ids - known)
        id_bytes = (_resident() - before) / (ids - known)
        return [
            _limit("bytes of memory per account", self.account_bytes, "B", 192, f"{self.accounts:,} accounts"),
            _limit("bytes of memory per transfer id", id_bytes, "B", 40, f"{known:,} to {ids:,} ids"),
            _limit(
                "longest frame while tables grow", self.longest * 1000, "ms of CPU", 50, f"{ids - known:,} transfers"
            ),
        ]

    def answer_old_ids(self) -> Measurement:
        """Send the first transfers again, half of them with another amount."""
        assert self.oldest is not None
        again = self.oldest
        again.view(_TRANSFER)[: len(again) // 2, 0]["amount_lo"] += np.uint64(1)
        began = time.perf_counter()
        answers = np.concatenate(
            [
                self.kernel.apply(
                    Frame(
                        "ledger.commands",
                        1,
                        0,
                        1_700_000_000_000_000,
                        None,
                        Events(again[start : start + FRAME_EVENTS]),
                    )
                )[0].events.rows[:, 3]
                for start in range(0, len(again), FRAME_EVENTS)
            ]
        )
        seconds = time.perf_counter() - began
        different, same = np.split(answers, 2)
        if np.any(different != TransferResultCode.exists_with_different_amount) or np.any(
            same != TransferResultCode.exists
        ):
            raise AssertionError("an old id was not answered as known")
        return Measurement(
            "old ids answered, their records spilled",
            round(len(again) / seconds),
            "ids/s",
            check=f"{len(again):,} of the first ids: exists, or exists_with_different_amount",
        )

    def check(self) -> None:
        figures = self.kernel.audit()[1]
        if (figures["transfers"], figures["posted"]) != (self.transfers, self.moved):
            raise AssertionError(f"{figures}, sent {self.transfers} transfers of {self.moved} together")


def _compared(name: str, small: _Ledger, large: _Ledger) -> Measurement:
    # by turns, so that a noisy neighbour meets both
    seconds = {small: 0.0, large: 0.0}
    for _ in range(4):
        for ledger in seconds:
            seconds[ledger] += ledger.run(LOADS[name], COMPARED // 4)
    few, many = (COMPARED / taken for taken in seconds.values())
    return Measurement(
        f"ledger kernel with {large.accounts:,} accounts, {name}",
        round(many),
        "transfers/s of CPU",
        baseline=round(few),
        baseline_name=f"{small.accounts:,} accounts",
        ratio=round(many / few, 2),
        goal="cost <= 1.5x",
        met=few / many <= 1.5,
        check=f"{COMPARED:,} created in each, sums equal at the end",
    )


def _limit(name: str, value: float, unit: str, most: float, check: str) -> Measurement:
    return Measurement(name, round(value, 1), unit, goal=f"<= {most}", met=value <= most, check=check)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


@contextmanager
def _spilling() -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="streambank-spill-") as directory:
        spill_to(Path(directory))
        try:
            yield
        finally:
            spill_to(None)
