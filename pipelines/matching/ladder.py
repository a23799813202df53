"""The price ladder: from a price to its level, and from a side of a book to its best level, without a price limit.

A side is a tree of nodes with 64 children each, indexed by six bits of the price at a time, lowest bits in the leaves:
a leaf covers 64 neighbouring ticks. The tree is as high as its prices are far apart, so a usual book is two or three
loads deep, a price any distance away costs one node per six bits, and nothing has to move when the market does. A
node's bit set tells which children are there; the next price is found by counting zeros.

A symbol has four sides: bids and asks, and the stop orders that wait, buys and sells. The best price is the highest of
bids and of sell stops, the lowest of the others. Level 0 and node 0 stand for none.

Functions take the kernel's arrays (`pipelines.matching.engine.MatchingArrays`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba.cpython.unsafe.numbers import leading_zeros, trailing_zeros

from pipelines.compiled import compiled, compiled_inline, prefetch

__all__ = [
    "ASKS", "BIDS", "BUY_STOPS", "FREE_LEVEL", "FREE_NODE", "LEVELS", "NODES", "SELL_STOPS", "SIDES", "add_level",
    "fetch_leaf", "fetch_root", "find_level", "is_highest_first", "next_level", "remove_level",
]  # fmt: skip

SIDES: Final = 4
BIDS: Final = 0
ASKS: Final = 1
BUY_STOPS: Final = 2
SELL_STOPS: Final = 3

# words of `MatchingArrays.work` that belong to the ladder: nodes and levels ever used, first free ones
NODES: Final = 0
FREE_NODE: Final = 1
LEVELS: Final = 2
FREE_LEVEL: Final = 3

_ONE: Final = np.uint64(1)
_ALL: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


@compiled_inline
def is_highest_first(side: Any) -> Any:
    """Whether the best price of side number ``side`` (symbol * SIDES + kind) is the highest."""
    kind = side & 3
    # BIDS and SELL_STOPS, without a branch
    return (kind ^ (kind >> 1)) & 1 == 0


@compiled_inline
def find_level(state: Any, side: Any, price: Any) -> Any:
    """The level of this price, 0 if there is none."""
    found = state.sides[side]
    node = np.int64(found.root)
    height = np.int64(found.height)
    if node == 0 or price >> (6 * height) != found.base:
        node = np.int64(0)
    else:
        shift = 6 * height - 6
        while shift >= 0 and node != 0:
            node = np.int64(state.children[node * 64 + ((price >> shift) & 63)])
            shift -= 6
    return node


@compiled_inline
def fetch_root(state: Any, side: Any, price: Any) -> None:
    """Have the first step of the way to a price brought into the cache, the side being there; see `fetch_leaf`."""
    found = state.sides[side]
    shift = 6 * np.int64(found.height) - 6
    if shift >= 0:
        prefetch(state.bits, np.int64(found.root), 0)
        prefetch(state.children, np.int64(found.root) * 64 + ((price >> shift) & 63), 0)


@compiled_inline
def fetch_leaf(state: Any, side: Any, price: Any) -> None:
    """The same for the last step, all steps before it being in the cache."""
    found = state.sides[side]
    node = np.int64(found.root)
    shift = 6 * np.int64(found.height) - 6
    if shift > 0:
        while shift > 0 and node != 0:
            node = np.int64(state.children[node * 64 + ((price >> shift) & 63)])
            shift -= 6
        prefetch(state.bits, node, 0)
        prefetch(state.children, node * 64 + (price & 63), 0)


@compiled_inline
def _new_node(state: Any) -> Any:
    work = state.work
    node = work[FREE_NODE]
    if node != 0:
        work[FREE_NODE] = state.children[node * 64]
        state.children[node * 64] = 0
    else:
        work[NODES] += 1
        node = work[NODES]
    return node


@compiled_inline
def _free_node(state: Any, node: Any) -> None:
    """Take back a node without children."""
    state.bits[node] = np.uint64(0)
    state.children[node * 64] = state.work[FREE_NODE]
    state.work[FREE_NODE] = node


@compiled
def _add_path(state: Any, side: Any, price: Any, level: Any) -> None:
    """Enter a level into the tree of its side, which may have to grow."""
    found = state.sides[side]
    if found.root == 0:
        found.root = _new_node(state)
        found.height = 1
        found.base = price >> 6
    height = np.int64(found.height)
    base = np.int64(found.base)
    while price >> (6 * height) != base:
        root = _new_node(state)
        state.bits[root] = _ONE << np.uint64(base & 63)
        state.children[root * 64 + (base & 63)] = found.root
        found.root = root
        base >>= 6
        height += 1
    found.height = height
    found.base = base
    node = np.int64(found.root)
    shift = 6 * height - 6
    while shift > 0:
        place = (price >> shift) & 63
        child = np.int64(state.children[node * 64 + place])
        if child == 0:
            child = _new_node(state)
            state.children[node * 64 + place] = child
            state.bits[node] |= _ONE << np.uint64(place)
        node = child
        shift -= 6
    state.children[node * 64 + (price & 63)] = level
    state.bits[node] |= _ONE << np.uint64(price & 63)


@compiled
def add_level(state: Any, side: Any, price: Any) -> Any:
    """A new, empty level for a price that has none."""
    work = state.work
    number = work[FREE_LEVEL]
    if number != 0:
        work[FREE_LEVEL] = state.levels[number].head
    else:
        work[LEVELS] += 1
        number = work[LEVELS]
    level = state.levels[number]
    level.price = price
    level.shown = 0
    level.hidden = 0
    level.stamp = 0
    level.head = 0
    level.tail = 0
    level.orders = 0
    level.side = side
    level.published = 0
    found = state.sides[side]
    # the usual case, a leaf that is there, without a call
    node = np.int64(found.root)
    height = np.int64(found.height)
    if node == 0 or price >> (6 * height) != found.base:
        node = np.int64(0)
    else:
        shift = 6 * height - 6
        while shift > 0 and node != 0:
            node = np.int64(state.children[node * 64 + ((price >> shift) & 63)])
            shift -= 6
    if node != 0:
        state.children[node * 64 + (price & 63)] = number
        state.bits[node] |= _ONE << np.uint64(price & 63)
    else:
        _add_path(state, side, price, number)
    is_best = np.int64(found.best) == 0
    if not is_best:
        ahead = price - found.best_price
        is_best = ahead > 0 if is_highest_first(side) else ahead < 0
    if is_best:
        found.best = number
        found.best_price = price
    found.levels += 1
    return number


@compiled
def _prune(state: Any, side: Any, price: Any) -> None:
    """Take a price out of the tree whose leaf holds nothing else, with the nodes that only led to it."""
    found = state.sides[side]
    height = np.int64(found.height)
    # the lowest node on the way that has other children
    keep = np.int64(0)
    keep_shift = np.int64(0)
    node = np.int64(found.root)
    shift = 6 * height - 6
    while shift > 0:
        if state.bits[node] & (state.bits[node] - _ONE) != np.uint64(0):
            keep = node
            keep_shift = shift
        node = np.int64(state.children[node * 64 + ((price >> shift) & 63)])
        shift -= 6
    if keep == 0:
        node = np.int64(found.root)
        shift = 6 * height - 6
        found.root = 0
        found.height = 0
    else:
        place = (price >> keep_shift) & 63
        node = np.int64(state.children[keep * 64 + place])
        state.children[keep * 64 + place] = 0
        state.bits[keep] &= ~(_ONE << np.uint64(place))
        shift = keep_shift - 6
    while shift >= 0:
        place = (price >> shift) & 63
        child = np.int64(state.children[node * 64 + place])
        state.children[node * 64 + place] = 0
        _free_node(state, node)
        node = child
        shift -= 6
    # a root with one child is not needed
    while found.height > 1:
        root = np.int64(found.root)
        bits = state.bits[root]
        if bits & (bits - _ONE) != np.uint64(0):
            break
        place = np.int64(trailing_zeros(bits))
        found.root = state.children[root * 64 + place]
        state.children[root * 64 + place] = 0
        _free_node(state, root)
        found.base = found.base << 6 | place
        found.height -= 1


@compiled_inline
def _first_below(state: Any, node: Any, shift: Any, highest: Any, prefix: Any) -> Any:
    """The level that is first in the subtree of ``node``, and its price; ``prefix`` are the price's bits so far."""
    while shift >= 0:
        bits = state.bits[node]
        place = 63 - np.int64(leading_zeros(bits)) if highest else np.int64(trailing_zeros(bits))
        node = np.int64(state.children[node * 64 + place])
        prefix = prefix << 6 | place
        shift -= 6
    return node, prefix


@compiled
def remove_level(state: Any, number: Any) -> None:
    """Take an empty level away; the side's best level moves on if it was this one."""
    level = state.levels[number]
    side = np.int64(level.side)
    price = level.price
    found = state.sides[side]
    height = np.int64(found.height)
    node = np.int64(found.root)
    shift = 6 * height - 6
    while shift > 0:
        node = np.int64(state.children[node * 64 + ((price >> shift) & 63)])
        shift -= 6
    bits = state.bits[node] & ~(_ONE << np.uint64(price & 63))
    if bits != np.uint64(0):
        state.bits[node] = bits
        state.children[node * 64 + (price & 63)] = 0
    else:
        _prune(state, side, price)
    found.levels -= 1
    if np.int64(found.best) == number:
        root = np.int64(found.root)
        if root == 0:
            found.best = 0
        else:
            found.best, found.best_price = _first_below(
                state, root, 6 * np.int64(found.height) - 6, is_highest_first(side), found.base
            )
    level.orders = 0
    level.head = state.work[FREE_LEVEL]
    state.work[FREE_LEVEL] = number


@compiled
def next_level(state: Any, number: Any) -> Any:
    """The level behind level ``number`` of the same side, 0 if it is the last."""
    level = state.levels[number]
    price = level.price
    found = state.sides[level.side]
    highest = is_highest_first(np.int64(level.side))
    node = np.int64(found.root)
    shift = 6 * np.int64(found.height) - 6
    turn = np.int64(0)
    turn_shift = np.int64(0)
    turn_bits = np.uint64(0)
    while shift >= 0:
        place = np.uint64((price >> shift) & 63)
        bits = state.bits[node]
        bits = bits & ((_ONE << place) - _ONE) if highest else bits & (_ALL << place) & ~(_ONE << place)
        if bits != np.uint64(0):
            turn = node
            turn_shift = shift
            turn_bits = bits
        node = np.int64(state.children[node * 64 + np.int64(place)])
        shift -= 6
    if turn == 0:
        return np.int64(0)
    first = 63 - np.int64(leading_zeros(turn_bits)) if highest else np.int64(trailing_zeros(turn_bits))
    subtree = np.int64(state.children[turn * 64 + first])
    return _first_below(state, subtree, turn_shift - 6, highest, np.int64(0))[0]
