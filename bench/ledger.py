"""The ledger kernel alone: transfers per CPU-second, rows of commands in, rows of results and events out.

Three loads of plain transfers in frames of 500: accounts chosen evenly, by Zipf's law, and two hot accounts only. Then
two-phase transfers between evenly chosen accounts, a frame of 500 reservations and one that posts them. Reservation and
post are a transfer each, with an id, a record, a result and an event of its own: figure and goal count transfers, as
those of the plain loads do; the pairs, half as many, are told beside them. The baseline is the dictionary of plain
Python that a first version would be: checks of plain transfers, nothing more.
Sums of debits and credits and the number of transfers are checked in the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.report import Measurement
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.ledger.kernel import LedgerKernel
from pipelines.ledger.records import TransferFlags
from pipelines.ledger.results import TransferResultCode

__all__ = ["measure"]

ACCOUNTS: Final = 10_000
FRAME_EVENTS: Final = 500
GOAL: Final = 3_000_000
TWO_PHASE_GOAL: Final = 1_500_000
_FIRST_ID: Final = 1 << 40


def measure(transfers: int = 2_000_000, seed: int = 1) -> list[Measurement]:
    """One measurement per load; ``transfers`` of each, ids random."""
    baseline = _dictionary_rate(seed)
    loads: dict[str, Callable[[np.random.Generator, int], NDArray[np.int64]]] = {
        "uniform": lambda rng, count: rng.integers(0, ACCOUNTS, count),
        "zipf": lambda rng, count: np.minimum(rng.zipf(1.2, count), ACCOUNTS) - 1,
        "two hot accounts": lambda rng, count: rng.integers(0, 2, count),
    }
    plain = [_measure(name, choose, transfers, seed, baseline) for name, choose in loads.items()]
    return [*plain, _measure_two_phase(transfers // 2, seed, plain[0])]


def _measure(
    name: str,
    choose: Callable[[np.random.Generator, int], NDArray[np.int64]],
    transfers: int,
    seed: int,
    baseline: float,
) -> Measurement:
    rng = np.random.default_rng(seed)
    kernel = LedgerKernel()
    kernel.apply(_frame(_accounts()))
    seconds = 0.0
    moved = 0
    for start in range(0, transfers, FRAME_EVENTS * 200):
        count = min(FRAME_EVENTS * 200, transfers - start)
        rows = _transfers(rng, choose, start, count)
        moved += int(rows.view(_TRANSFER)["amount_lo"].sum())
        frames = [_frame(rows[first : first + FRAME_EVENTS]) for first in range(0, count, FRAME_EVENTS)]
        began = time.process_time()
        refused = written = 0
        for frame in frames:
            # outputs are let go at once, as a runtime does; keeping them would measure the allocation of memory
            results, events = kernel.apply(frame)
            refused += np.count_nonzero(results.events.rows[:, 3] != TransferResultCode.created)
            written += len(events.events)
        seconds += time.process_time() - began
        if refused or written != count:
            raise AssertionError(f"{name}: {refused} of {count} transfers were refused, {written} events written")
    figures = kernel.audit()[1]
    if (figures["transfers"], figures["posted"]) != (transfers, moved):
        raise AssertionError(f"{name}: {figures}, sent {transfers} transfers of {moved} together")
    rate = transfers / seconds
    return Measurement(
        name=f"ledger kernel, {name}",
        value=rate,
        unit="transfers/s of CPU",
        baseline=baseline,
        baseline_name="plain Python",
        ratio=rate / baseline,
        goal=f">= {GOAL:,}/s",
        met=rate >= GOAL,
        check=f"{transfers:,} created; debits = credits = {moved}",
        detail={"frame_events": FRAME_EVENTS, "accounts": 2 if name.startswith("two") else ACCOUNTS},
    )


def _measure_two_phase(pairs: int, seed: int, plain: Measurement) -> Measurement:
    rng = np.random.default_rng(seed)
    kernel = LedgerKernel()
    kernel.apply(_frame(_accounts()))
    seconds = 0.0
    moved = 0
    for start in range(0, pairs, FRAME_EVENTS):
        reservations = _transfers(rng, lambda rng, count: rng.integers(0, ACCOUNTS, count), start, FRAME_EVENTS)
        moved += int(reservations.view(_TRANSFER)["amount_lo"].sum())
        posts = reservations.copy()
        reserved, posted = reservations.view(_TRANSFER)[:, 0], posts.view(_TRANSFER)[:, 0]
        reserved["flags"] = TransferFlags.pending
        posted["flags"] = TransferFlags.post_pending_transfer
        for word in ("lo", "hi"):
            posted[f"pending_id_{word}"] = reserved[f"id_{word}"]
        posted["id_hi"] += 1 << 62
        frames = [_frame(reservations), _frame(posts)]
        began = time.process_time()
        refused = sum(
            np.count_nonzero(kernel.apply(frame)[0].events.rows[:, 3] != TransferResultCode.created) for frame in frames
        )
        seconds += time.process_time() - began
        if refused:
            raise AssertionError(f"two-phase: {refused} of {2 * FRAME_EVENTS} transfers were refused")
    figures = kernel.audit()[1]
    done = -(-pairs // FRAME_EVENTS) * FRAME_EVENTS
    if (figures["transfers"], figures["posted"], figures["pending"]) != (2 * done, moved, 0):
        raise AssertionError(f"two-phase: {figures}, sent {done} pairs of {moved} together")
    rate = 2 * done / seconds
    return Measurement(
        name="ledger kernel, two-phase, uniform",
        value=rate,
        unit="transfers/s of CPU",
        baseline=plain.value,
        baseline_name="plain transfers",
        ratio=rate / plain.value,
        goal=f">= {TWO_PHASE_GOAL:,} transfers/s",
        met=rate >= TWO_PHASE_GOAL,
        check=f"{done:,} reserved and posted; debits = credits = {moved}, nothing pending",
        detail={"frame_events": FRAME_EVENTS, "accounts": ACCOUNTS, "pairs_per_cpu_second": done / seconds},
    )


_COMMANDS = codec_of("ledger.commands")
_ACCOUNT = _COMMANDS.event_type("CreateAccount").dtype
_TRANSFER = _COMMANDS.event_type("CreateTransfer").dtype


def _frame(rows: NDArray[np.int64]) -> Frame:
    return Frame("ledger.commands", 1, 0, 1_700_000_000_000_000, None, Events(rows))


def _accounts() -> NDArray[np.int64]:
    rows = _COMMANDS.new_rows(ACCOUNTS)
    commands = rows.view(_ACCOUNT)[:, 0]
    commands["id_lo"] = np.arange(1, ACCOUNTS + 1)
    commands["ledger"] = commands["code"] = 1
    return rows


def _transfers(
    rng: np.random.Generator, choose: Callable[[np.random.Generator, int], NDArray[np.int64]], start: int, count: int
) -> NDArray[np.int64]:
    rows = _COMMANDS.new_rows(count)
    commands = rows.view(_TRANSFER)[:, 0]
    debits = choose(rng, count)
    others = choose(rng, count)
    others = np.where(debits == others, (debits + 1) % (2 if debits.max() < 2 else ACCOUNTS), others)
    commands["kind"] = 1
    commands["id_lo"] = _FIRST_ID + start + np.arange(count)
    commands["id_hi"] = rng.integers(0, 1 << 62, count)
    commands["debit_account_id_lo"] = debits + 1
    commands["credit_account_id_lo"] = others + 1
    commands["amount_lo"] = rng.integers(1, 10_000, count)
    commands["ledger"] = commands["code"] = 1
    return rows


def _dictionary_rate(seed: int, count: int = 50_000) -> float:
    """Plain transfers per CPU-second of a dictionary of accounts, checks included, without encoding."""
    rng = np.random.default_rng(seed)
    accounts = {number: [0, 0, 1, 1, 0] for number in range(1, ACCOUNTS + 1)}
    done: dict[int, tuple[int, ...]] = {}
    commands = [
        (int(debit), int(debit) % ACCOUNTS + 1, int(amount))
        for debit, amount in zip(rng.integers(1, ACCOUNTS + 1, count), rng.integers(1, 10_000, count), strict=True)
    ]
    outputs: list[dict[str, Any]] = []
    began = time.process_time()
    for number, (debit_id, credit_id, amount) in enumerate(commands, start=_FIRST_ID):
        if number in done or number == 0 or not debit_id or not credit_id or debit_id == credit_id:
            continue
        debit, credit = accounts.get(debit_id), accounts.get(credit_id)
        if debit is None or credit is None or debit[2] != credit[2] or debit[4] or credit[4]:
            continue
        if debit[0] + amount >= 2**128 or credit[1] + amount >= 2**128:
            continue
        debit[0] += amount
        credit[1] += amount
        done[number] = (debit_id, credit_id, amount)
        outputs.append({"id": number, "result": 0, "debits_posted": debit[0], "credits_posted": credit[1]})
    seconds = time.process_time() - began
    if len(outputs) != count or sum(debit[0] for debit in accounts.values()) != sum(a[1] for a in accounts.values()):
        raise AssertionError("the plain Python ledger is wrong")
    return count / seconds
