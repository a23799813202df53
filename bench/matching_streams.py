"""The order streams of the matching benchmark: deterministic, and three of them with published answers.

`published_stream` writes the stream of https://github.com/flash1-dev/matching-engine-benchmark (MIT): a million orders
with their cancels and amendments in a market scenario. `report_hash` is the SHA-256 of the reports in the form in which
that benchmark publishes it, so `PUBLISHED` proves that an engine matched every message right.

`interleaved_stream` has no published answer: new orders, cancels and price moves of random live orders, so that,
unlike above, a message is seldom about the order of the message before it.

Prices are in ticks, quantities in lots. Shared by bench and tests.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipelines.codec import codec_of
from pipelines.frames import Events, Rows

__all__ = [
    "PUBLISHED", "Scenario", "command_rows", "interleaved_stream", "published_stream",
    "report_hash",
]  # fmt: skip

ORDERS: Final = 1_000_000
TICK: Final = 0.005
START: Final = 167.52
LEVELS: Final = 800

NEW, CANCEL, AMEND = 0, 1, 2
"""Kinds of messages, as in the union of matching.commands."""

GTC, IOC = 0, 3


@dataclass(frozen=True, slots=True)
class Scenario:
    """A published stream: volatility and swing of the price, and what a right engine reports."""

    volatility: float
    swing: float
    reports: int
    trades: int
    sha256: str


PUBLISHED: Final = {
    "normal": Scenario(
        0.15, 0.02, 2_204_643, 62_474, "e9b2e3926854410b01a035aeb25dd05f1e597c233be8263de9eb49b6713d367e"
    ),
    "static": Scenario(0.0, 0.0, 2_147_158, 827, "9803843ee404fc29c9a0aa5614f8f0d5a58b5c44fcac9ef89067886fcaaa30d1"),
    "flash-crash": Scenario(
        0.5, 0.6, 2_211_931, 70_178, "cff8d3f94b709fc64a8b2058a6ca4fb6920364904796e46906895e362d2bb16b"
    ),
}


@njit(cache=True)
def _generate(uniforms, weights, volatility, swing, orders, messages):  # type: ignore[no-untyped-def]
    """Fill ``messages`` (kind, time, id, side, price, quantity, time in force) and return their number.

    Numba calls the C library's exp, log, cos and pow here, like Python's `math`.
    """
    drawn = 0
    side = np.empty(orders, np.int64)
    price = np.empty(orders, np.int64)
    level = np.empty(orders, np.int64)
    quantity = np.empty(orders, np.int64)
    total = weights[-1]
    mid = START
    dt = 0.0
    if volatility != 0.0:
        dt = math.pow(swing / volatility, 2.0) / orders
    s = volatility * math.sqrt(dt)
    for i in range(orders):
        u1 = uniforms[drawn]
        u2 = uniforms[drawn + 1]
        u3 = uniforms[drawn + 2]
        u4 = uniforms[drawn + 3]
        drawn += 4
        z = math.sqrt(-2.0 * math.log(max(u1, 1e-300))) * math.cos(2.0 * math.pi * u2)
        mid *= math.exp(-0.5 * s * s + s * z)
        m = math.floor(mid / TICK + 0.5)
        target = u3 * total
        low = 0
        high = LEVELS - 1
        while low < high:
            middle = (low + high) // 2
            if weights[middle] >= target:
                high = middle
            else:
                low = middle + 1
        side[i] = 0 if i < orders // 2 else 1
        level[i] = low
        price[i] = max(1, m - (low + 1)) if side[i] == 0 else max(1, m + (low + 1))
        quantity[i] = 1 + int(100.0 * u4)
    order = np.arange(orders)
    for i in range(orders - 1, 0, -1):
        j = int(uniforms[drawn] * (i + 1))
        drawn += 1
        kept = order[i]
        order[i] = order[j]
        order[j] = kept
    clock = 0
    count = 0
    for position in range(orders):
        i = order[position]
        is_ioc = uniforms[drawn] < 0.15
        drawn += 1
        messages[count, 0] = 0
        messages[count, 1] = clock
        messages[count, 2] = i + 1
        messages[count, 3] = side[i]
        messages[count, 4] = price[i]
        messages[count, 5] = quantity[i]
        messages[count, 6] = 3 if is_ioc else 0
        count += 1
        if is_ioc:
            clock += 1
            continue
        amended = uniforms[drawn] < 0.20
        drawn += 1
        if amended:
            clock += 30 + int(70.0 * uniforms[drawn])
            drawn += 1
            if uniforms[drawn] < 0.80:
                price[i] += 1 if side[i] == 0 else -1
            drawn += 1
            quantity[i] += 1
            messages[count, 0] = 2
            messages[count, 1] = clock
            messages[count, 2] = i + 1
            messages[count, 3] = side[i]
            messages[count, 4] = price[i]
            messages[count, 5] = quantity[i]
            count += 1
        canceled = uniforms[drawn] < 0.95
        drawn += 1
        if canceled:
            rate = (math.log(2.0) / (0.431 * 1000.0)) / math.sqrt(1.0 + level[i])
            clock += int(-math.log(max(uniforms[drawn], 1e-300)) / rate)
            drawn += 1
            messages[count, 0] = 1
            messages[count, 1] = clock
            messages[count, 2] = i + 1
            count += 1
            again = uniforms[drawn] < 0.02
            drawn += 1
            if again:
                clock += 1 + int(20.0 * uniforms[drawn])
                drawn += 1
                messages[count, 0] = 1
                messages[count, 1] = clock
                messages[count, 2] = i + 1
                count += 1
            if amended:
                again = uniforms[drawn] < 0.02
                drawn += 1
                if again:
                    clock += 1 + int(20.0 * uniforms[drawn])
                    drawn += 1
                    messages[count, 0] = 2
                    messages[count, 1] = clock
                    messages[count, 2] = i + 1
                    messages[count, 3] = side[i]
                    messages[count, 4] = price[i]
                    messages[count, 5] = quantity[i]
                    count += 1
        clock += 1
    return count


def published_stream(scenario: Scenario, orders: int = ORDERS) -> NDArray[np.int64]:
    """The scenario's messages, int64 (messages, 7): kind, time, id, side, price, quantity, time in force.

    Cancels have zeros for what they do not need. The answers are those of the full million of ``orders``.
    """
    random = np.random.RandomState(23)
    uniforms = random.random_sample(14 * orders + 16)
    weights = np.cumsum([1.0 / math.pow(k + 1, 2.23) + 5.0 * math.exp(-0.5 * (k - 8) ** 2) for k in range(LEVELS)])
    messages = np.zeros((5 * orders, 7), np.int64)
    count = _generate(uniforms, weights, scenario.volatility, scenario.swing, orders, messages)
    # the clock never goes back, so the messages are in order
    return messages[:count]


def command_rows(messages: NDArray[np.int64], symbols: list[str] | None = None, accounts: int = 1) -> Events:
    """Rows of matching.commands for messages; an eighth column is the symbol's number, a ninth the account's."""
    codec = codec_of("matching.commands")
    rows = codec.new_rows(len(messages))
    names = symbols or ["TEST"]
    owners = [f"A{number}" for number in range(accounts)]
    heap = bytearray()
    words = []
    for name in (*names, *owners):
        words.append(len(heap) << 32 | len(name))
        heap += name.encode()
    symbol_words = np.array(words[: len(names)], np.int64)
    account_words = np.array(words[len(names) :], np.int64)
    kinds = messages[:, 0]
    rows[:, 0] = kinds
    new, amend = (codec.event_type(name).dtype for name in ("NewOrder", "AmendOrder"))
    chosen = kinds == NEW
    orders = rows[chosen].view(new)[:, 0]
    given = messages[chosen]
    orders["order_id"] = given[:, 2]
    orders["symbol"] = symbol_words[given[:, 7] if messages.shape[1] > 7 else 0]
    orders["account"] = account_words[given[:, 8] if messages.shape[1] > 8 else 0]
    orders["side"], orders["price"], orders["quantity"], orders["time_in_force"] = given[:, 3:7].T
    rows[chosen] = orders.view(np.int64).reshape(-1, codec.row_words)
    rows[kinds != NEW, 1] = messages[kinds != NEW, 2]
    chosen = kinds == AMEND
    amends = rows[chosen].view(amend)[:, 0]
    given = messages[chosen]
    amends["price"], amends["quantity"] = given[:, 4:6].T
    amends["price_is_set"] = given[:, 4] > 0
    amends["quantity_is_set"] = given[:, 5] > 0
    rows[chosen] = amends.view(np.int64).reshape(-1, codec.row_words)
    return Events(rows, np.frombuffer(bytes(heap) + b"\0" * 8, np.uint8))


def report_hash(reports: Rows) -> tuple[str, int, int]:
    """(SHA-256, lines, trades) of a run's report rows in the published form; ``input`` is the message's index.

    Lines are sorted by (message, type): 0 acknowledged, 1 trade, 2 canceled, 3 amended, 4 and 5 rejected.
    """
    codec = codec_of("matching.reports")
    execution = reports.view(codec.event_type("ExecutionReport").dtype)[:, 0]
    reject = reports.view(codec.event_type("OrderCancelReject").dtype)[:, 0]
    is_reject = execution["kind"] == 1
    types = np.where(is_reject, 4 + reject["response_to"], np.array([0, 1, 2, 3])[execution["exec_type"] & 3])
    order = np.lexsort((np.arange(len(reports)), types, execution["input"]))
    digest = hashlib.sha256()
    parts: list[str] = []
    first = True
    for start in range(0, len(order), 1 << 16):
        chosen = order[start : start + (1 << 16)]
        found = execution[chosen]
        columns = zip(
            types[chosen].tolist(), found["input"].tolist(), found["side"].tolist(), found["order_id"].tolist(),
            found["price"].tolist(), found["quantity"].tolist(), found["maker_order_id"].tolist(),
            reject[chosen]["order_id"].tolist(), strict=True,
        )  # fmt: skip
        for kind, given, side, order_id, price, quantity, maker, refused in columns:
            if kind in (0, 3):
                parts.append(f"{kind},{given},{side},{order_id},{price},{quantity}")
            elif kind == 1:
                parts.append(f"1,{given},{price},{quantity},{maker},{order_id}")
            elif kind == 2:
                parts.append(f"2,{given},{side},{order_id},{price}")
            else:
                parts.append(f"{kind},{given},{refused}")
        text = "\n".join(parts)
        digest.update((text if first else "\n" + text).encode())
        parts.clear()
        first = False
    return digest.hexdigest(), len(reports), int(np.count_nonzero(types == 1))


def interleaved_stream(
    messages: int, live: int = 1_000, symbols: int = 1, accounts: int = 1_000, levels: int = 790, seed: int = 1
) -> tuple[NDArray[np.int64], int, int]:
    """(messages, how many of them build the book up, orders live at the end).

    After ``live`` orders that do not cross: 9 % limit orders, 3 % IOC, 6 % cancels, 82 % price moves of random live
    orders, spread over ``symbols`` books of ``levels`` prices each. int64 (n, 9) for `command_rows`.

    It matches the IOC orders itself, with heaps, to know which orders live; what it finds is a check on the engine.
    """
    random = np.random.default_rng(seed)
    half = levels // 2
    count = live + messages
    which = random.random(count)
    pick = random.random(count)
    away = random.integers(1, half + 1, count)
    sides = random.integers(0, 2, count)
    quantities = random.integers(1, 101, count)
    books = random.integers(0, symbols, count)
    owners = random.integers(0, accounts, count)
    middle = 10 * levels
    rows = np.zeros((count, 9), np.int64)
    ids: list[int] = []
    orders: dict[int, list[int]] = {}
    """Per live order: its place in ids, book * 2 + side, price, leaves, version of its heap entry."""
    queues: list[list[tuple[int, int, int]]] = [[] for _ in range(2 * symbols)]
    version = 0

    def forget(order_id: int) -> None:
        place = orders.pop(order_id)[0]
        last = ids.pop()
        if last != order_id:
            ids[place] = last
            orders[last][0] = place

    columns = [column.tolist() for column in (which, pick, away, sides, quantities, books, owners)]
    for number, (choice, where, distance, side, quantity, book, owner) in enumerate(zip(*columns, strict=True)):
        order_id = number + 1
        version += 1
        if number < live or choice < 0.09 or not ids:
            price = middle - distance if side == 0 else middle + distance
            rows[number] = (NEW, 0, order_id, side, price, quantity, GTC, book, owner)
            orders[order_id] = [len(ids), 2 * book + side, price, quantity, version]
            ids.append(order_id)
            heapq.heappush(queues[2 * book + side], (-price if side == 0 else price, version, order_id))
        elif choice < 0.12:
            price = middle + half if side == 0 else middle - half
            rows[number] = (NEW, 0, order_id, side, price, quantity, IOC, book, owner)
            queue = queues[2 * book + 1 - side]
            while quantity and queue:
                _, entry, maker = queue[0]
                found = orders.get(maker)
                if found is None or found[4] != entry:
                    heapq.heappop(queue)
                    continue
                traded = min(quantity, found[3])
                quantity -= traded
                found[3] -= traded
                if not found[3]:
                    heapq.heappop(queue)
                    forget(maker)
        elif choice < 0.18:
            chosen = ids[int(where * len(ids))]
            rows[number] = (CANCEL, 0, chosen, 0, 0, 0, 0, 0, 0)
            forget(chosen)
        else:
            chosen = ids[int(where * len(ids))]
            found = orders[chosen]
            price = middle - distance if found[1] & 1 == 0 else middle + distance
            rows[number] = (AMEND, 0, chosen, 0, price, 0, 0, 0, 0)
            found[2], found[4] = price, version
            heapq.heappush(queues[found[1]], (-price if found[1] & 1 == 0 else price, version, chosen))
    return rows, live, len(ids)
