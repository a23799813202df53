"""The matching kernel alone: messages per CPU-second, rows of commands in, rows of reports and market data out.

The three published streams, each with its hash checked in the same run (by a run of its own, as hashing takes longer
than matching), and an interleaved mix whose live orders at the end are checked; beside each, where Maven is,
exchange-core on the same messages (`bench.exchange_core`), which has to give the same reports. Then how the cost per
message of the mix grows from a thousand to a million live orders and from one to 5,000 symbols, what memory a live
order takes, and the mix with every account's risk checked, every lot reserved and settled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.exchange_core import ComparisonUnavailable, ExchangeCoreResult, measure_book, prepare
from bench.matching_streams import PUBLISHED, command_rows, interleaved_stream, published_stream, report_hash
from bench.report import Measurement
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Events, Frame
from pipelines.matching.kernel import MatchingKernel

__all__ = ["measure"]

FRAME_EVENTS: Final = 500
GOAL: Final = 8_000_000
RISK_GOAL: Final = 4_000_000
SCALE_GOAL: Final = 1.5
BYTES_GOAL: Final = 128
RUNS: Final = 3
ACCOUNTS: Final = 1_000


def measure(mix_messages: int = 500_000) -> list[Measurement]:
    """All figures. Rates are the best of three runs: other users of the machine only ever slow a run down."""
    _run(MatchingKernel(), command_rows(interleaved_stream(1_000)[0], accounts=ACCOUNTS))
    compare = _comparison()
    return [*_streams(compare), _mix(mix_messages, compare), *_scale(mix_messages), _memory(), _with_risk(mix_messages)]


def _frames(events: Events) -> list[Frame]:
    rows = events.rows
    return [
        Frame("matching.commands", 0, 0, 0, None, Events(rows[first : first + FRAME_EVENTS], events.heap))
        for first in range(0, len(rows), FRAME_EVENTS)
    ]


def _run(kernel: MatchingKernel, events: Events) -> float:
    """CPU-seconds of applying the events."""
    frames = _frames(events)
    began = time.process_time()
    for frame in frames:
        # outputs are let go at once, as a runtime does; keeping them would measure the allocation of memory
        kernel.apply(frame)
    return time.process_time() - began


def _reports(events: Events) -> NDArray[np.int64]:
    """All report rows of a run, their input counted over the whole stream."""
    kernel = MatchingKernel()
    found = []
    for number, frame in enumerate(_frames(events)):
        for output in kernel.apply(frame):
            if output.topic == "matching.reports":
                output.events.rows[:, 1] += number * FRAME_EVENTS
                found.append(output.events.rows)
    return np.concatenate(found)


Compare = Callable[[NDArray[np.int64], int, str], tuple[ExchangeCoreResult | None, str]]
"""Runs exchange-core over messages, of which some only build the book up; their reports have a known hash. Returns what
it found, None if it cannot be run, and a sentence about that."""


def _comparison() -> Compare:
    try:
        classes = prepare()
    except ComparisonUnavailable as error:
        reason = str(error)
        return lambda *_: (None, f"exchange-core left out: {reason}")

    def compare(messages: NDArray[np.int64], building: int, sha256: str) -> tuple[ExchangeCoreResult | None, str]:
        try:
            found = measure_book(classes, messages, building)
        except ComparisonUnavailable as error:
            return None, f"exchange-core left out: {error}"
        if found.sha256 != sha256:
            raise AssertionError(f"exchange-core: the reports have the hash {found.sha256}, {sha256} is right")
        return found, "the same of exchange-core's"

    return compare


def _beside(rate: float, other: ExchangeCoreResult | None) -> dict[str, Any]:
    """The fields of a `Measurement` that compare it."""
    goal = f">= {GOAL:,}/s"
    if other is None:
        return {"goal": goal, "met": rate >= GOAL}
    return {
        "baseline": other.best,
        "baseline_name": f"exchange-core's book, best of {len(other.cpu_seconds)} passes",
        "ratio": rate / other.best,
        "goal": f"{goal}, ahead of exchange-core",
        "met": rate >= GOAL and rate > other.best,
    }


def _streams(compare: Compare) -> list[Measurement]:
    measured = []
    for name, scenario in PUBLISHED.items():
        messages = published_stream(scenario)
        events = command_rows(messages)
        digest, reports, trades = report_hash(_reports(events))
        if digest != scenario.sha256:
            raise AssertionError(f"{name}: {reports} reports and {trades} trades have the hash {digest}")
        rate = max(len(messages) / _run(MatchingKernel(), events) for _ in range(RUNS))
        other, remark = compare(messages, 0, digest)
        measured.append(
            Measurement(
                name=f"matching kernel, {name}",
                value=rate,
                unit="messages/s of CPU",
                check=f"SHA-256 of {reports:,} reports as published; {remark}",
                detail={
                    "frame_events": FRAME_EVENTS,
                    "messages": len(messages),
                    "trades": trades,
                    "exchange_core_median": other and other.median,
                },
                **_beside(rate, other),
            )
        )
    return measured


def _mix_rate(messages: int, live: int = 1_000, symbols: int = 1, setup: list[dict[str, Any]] | None = None) -> float:
    rows, first, expected = interleaved_stream(messages, live=live, symbols=symbols, accounts=ACCOUNTS)
    names = [f"S{number:04}" for number in range(symbols)]
    building = command_rows(rows[:first], names, ACCOUNTS)
    mixed = command_rows(rows[first:], names, ACCOUNTS)
    best = 0.0
    for _ in range(RUNS):
        kernel = MatchingKernel()
        if setup:
            for start in range(0, len(setup), FRAME_EVENTS):
                events = parse_events(codec_of("matching.commands"), setup[start : start + FRAME_EVENTS])
                kernel.apply(Frame("matching.commands", 0, 0, 0, None, events))
        _run(kernel, building)
        best = max(best, messages / _run(kernel, mixed))
        if kernel.live_orders != expected:
            raise AssertionError(f"{kernel.live_orders} orders live after the mix, {expected} should")
    return best


def _mix(messages: int, compare: Compare) -> Measurement:
    rate = _mix_rate(messages)
    rows, building, _ = interleaved_stream(messages, accounts=ACCOUNTS)
    digest, reports, _ = report_hash(_reports(command_rows(rows, accounts=ACCOUNTS)))
    other, remark = compare(rows, building, digest)
    return Measurement(
        name="matching kernel, interleaved mix",
        value=rate,
        unit="messages/s of CPU",
        check=f"live orders as computed apart; SHA-256 of {reports:,} reports: {remark}",
        detail={
            "frame_events": FRAME_EVENTS,
            "live_orders": 1_000,
            "accounts": ACCOUNTS,
            "exchange_core_median": other and other.median,
        },
        **_beside(rate, other),
    )


def _scale(messages: int) -> list[Measurement]:
    few = _mix_rate(messages)
    measured = []
    for name, live, symbols in (("1 M live orders", 1_000_000, 1), ("5,000 symbols", 50_000, 5_000)):
        rate = _mix_rate(messages, live, symbols)
        measured.append(
            Measurement(
                name=f"matching kernel, {name}",
                value=1e9 / rate,
                unit="ns/message",
                baseline=1e9 / few,
                baseline_name="1,000 live orders, 1 symbol",
                ratio=few / rate,
                goal=f"within {SCALE_GOAL}x",
                met=few / rate <= SCALE_GOAL,
                check="live orders as computed apart",
                detail={"live_orders": live, "symbols": symbols},
            )
        )
    return measured


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _memory(live: int = 1_000_000) -> Measurement:
    rows, first, _ = interleaved_stream(0, live=live, accounts=ACCOUNTS)
    frames = _frames(command_rows(rows[:first], accounts=ACCOUNTS))
    kernel = MatchingKernel()
    kernel.apply(frames[0])
    before = _resident()
    for frame in frames[1:]:
        kernel.apply(frame)
    taken = (_resident() - before) / (live - len(frames[0].events))
    if kernel.live_orders != live:
        raise AssertionError(f"{kernel.live_orders} of {live} orders live")
    return Measurement(
        name="memory of a live order",
        value=taken,
        unit="bytes",
        goal=f"<= {BYTES_GOAL}",
        met=taken <= BYTES_GOAL,
        check=f"{live:,} live orders, growth of resident memory",
    )


def _with_risk(messages: int) -> Measurement:
    names = [f"A{number}" for number in range(ACCOUNTS)]
    setup: list[dict[str, Any]] = [
        {"type": "SymbolDefinition", "symbol": "S0000", "base_asset": "ABC", "quote_asset": "USD", "base_per_lot": 100,
         "quote_per_tick": 5, "maker_fee": 1, "taker_fee": 2, "maximum_quantity": 10_000, "order_band_ppm": 900_000,
         "maximum_notional": 10**12, "reference_price": 7_900},
        *(
            {"type": "AccountDefinition", "account": name, "maximum_quantity": 10_000, "maximum_notional": 10**12,
             "maximum_open_orders": 10_000, "maximum_position": 10**9, "rate_limit": 10**6}
            for name in names
        ),
        *(
            {"type": "Deposit", "account": name, "asset": asset, "amount": 10**13}
            for name in names for asset in ("ABC", "USD")
        ),
    ]  # fmt: skip
    rate = _mix_rate(messages, setup=setup)
    return Measurement(
        name="matching kernel, interleaved mix with full risk",
        value=rate,
        unit="messages/s of CPU",
        goal=f">= {RISK_GOAL:,}/s",
        met=rate >= RISK_GOAL,
        check="live orders as computed apart",
        detail={"frame_events": FRAME_EVENTS, "accounts": ACCOUNTS},
    )
