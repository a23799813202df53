"""Has what the next events need brought into the cache before their turn comes, without waiting for it.

In a large book each message is about another order, so nearly everything that it reads lies in main memory: the order,
its neighbours in the queue, its instrument, both ways through the price tree. One read depends on the other, so each
event passes through stages, one step nearer to what it needs in each, and while one event is applied the others'
memory is under way. Nothing here changes the state: what is found is a guess, and may be wrong when an event before
changes it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines.compiled import compiled, compiled_inline, prefetch
from pipelines.matching import id_index
from pipelines.matching.controls import fetch_symbol, likely_symbol
from pipelines.matching.ladder import BUY_STOPS, SIDES, fetch_leaf, fetch_root, find_level
from pipelines.matching.records import MAX_PRICE, SYMBOL

__all__ = ["FROM_ORDERS", "RING", "STAGES_AHEAD", "look_ahead"]

STEP: Final = 6
"""Events between two stages."""
STAGES_AHEAD: Final = 5 * STEP
"""How far ahead the first stage is."""
RING: Final = 32
"""Rows of `MatchingArrays.ahead`: a power of two, more than `STAGES_AHEAD`."""
FROM_ORDERS: Final = 20_000
"""Live orders from which on it pays: fewer stay in the cache by themselves."""

NEW_ORDER: Final = 0
CANCEL_ORDER: Final = 1
AMEND_ORDER: Final = 2

SYMBOL_WORD: Final = SYMBOL.fields["word"][1] if SYMBOL.fields else 0


@compiled_inline
def _target(state: Any, i: Any, side: Any) -> Any:
    """The price at which the order of an event is going to rest on side number ``side``; 0 if it is not known."""
    if side < 0:
        return np.int64(0)
    kind = state.new_orders[i].kind
    price = np.int64(0)
    if kind == NEW_ORDER:
        price = state.new_orders[i].price
    elif kind == AMEND_ORDER and state.amends[i].price_is_set != 0:
        price = state.amends[i].price
    return price if price <= MAX_PRICE else np.int64(0)


@compiled_inline
def _begin(state: Any, i: Any) -> None:
    """The id's place in the index."""
    command = state.new_orders[i]
    if command.kind <= AMEND_ORDER:
        id_index.fetch(state.order_index, command.order_id)
    if command.kind == NEW_ORDER:
        fetch_symbol(state, command.symbol)


@compiled_inline
def _find_order(state: Any, i: Any) -> None:
    """The order, or the instrument of a new one."""
    command = state.new_orders[i]
    slot = np.int64(-1)
    side = np.int64(-1)
    if command.kind == NEW_ORDER:
        symbol = likely_symbol(state, command.symbol)
        if symbol >= 0:
            side = symbol * SIDES + (command.side & 1)
            _fetch_symbol_rows(state, symbol)
    elif command.kind <= AMEND_ORDER:
        slot = np.int64(id_index.find_likely(state.order_index, command.order_id))
        if slot >= 0:
            prefetch(state.orders, slot, 0)
    state.ahead[i & (RING - 1), 0] = slot
    state.ahead[i & (RING - 1), 1] = side


@compiled_inline
def _fetch_symbol_rows(state: Any, symbol: Any) -> None:
    prefetch(state.symbols, symbol, 0)
    prefetch(state.symbols, symbol, SYMBOL_WORD)
    prefetch(state.sides, symbol * SIDES, 0)
    prefetch(state.sides, symbol * SIDES + BUY_STOPS, 0)
    prefetch(state.best, symbol, 0)


@compiled_inline
def _find_neighbours(state: Any, i: Any) -> None:
    """What an order points to."""
    slot = state.ahead[i & (RING - 1), 0]
    if slot >= 0:
        order = state.orders[slot]
        prefetch(state.orders, np.int64(order.next), 0)
        prefetch(state.orders, np.int64(order.prev), 0)
        prefetch(state.levels, np.int64(order.level), 0)
        prefetch(state.accounts, np.int64(order.account), 0)
        symbol = np.int64(order.symbol)
        state.ahead[i & (RING - 1), 1] = symbol * SIDES + np.int64(order.side)
        _fetch_symbol_rows(state, symbol)


@compiled_inline
def _find_roots(state: Any, i: Any) -> None:
    """The first step to the price that an order leaves and to the one where it will rest."""
    side = state.ahead[i & (RING - 1), 1]
    slot = state.ahead[i & (RING - 1), 0]
    if slot >= 0:
        fetch_root(state, side, state.orders[slot].price)
    price = _target(state, i, side)
    if price > 0:
        fetch_root(state, side, price)


@compiled_inline
def _find_leaves(state: Any, i: Any) -> None:
    """The last step."""
    side = state.ahead[i & (RING - 1), 1]
    slot = state.ahead[i & (RING - 1), 0]
    if slot >= 0:
        fetch_leaf(state, side, state.orders[slot].price)
    price = _target(state, i, side)
    if price > 0:
        fetch_leaf(state, side, price)


@compiled_inline
def _find_tail(state: Any, i: Any) -> None:
    """The order behind which one will rest."""
    side = state.ahead[i & (RING - 1), 1]
    price = _target(state, i, side)
    if price > 0:
        number = np.int64(find_level(state, side, price))
        if number != 0:
            prefetch(state.orders, np.int64(state.levels[number].tail), 0)


@compiled
def look_ahead(state: Any, i: Any, count: Any) -> None:
    """Take the events after number ``i`` of ``count`` one stage further each; ``i`` begins at -`STAGES_AHEAD`."""
    j = i + STAGES_AHEAD
    if 0 <= j < count:
        _begin(state, j)
    j -= STEP
    if 0 <= j < count:
        _find_order(state, j)
    j -= STEP
    if 0 <= j < count:
        _find_neighbours(state, j)
    j -= STEP
    if 0 <= j < count:
        _find_roots(state, j)
    j -= STEP
    if 0 <= j < count:
        _find_leaves(state, j)
    j -= STEP // 2
    if 0 <= j < count:
        _find_tail(state, j)
