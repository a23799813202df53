"""The steps that everything in the matching is made of: names, reports, and orders entering and leaving the queues.

Every change of a level that is public is noted once per frame (`touch`), so that market data can tell at the frame's
end what it has become. Slots, levels and nodes are numbered from 1; 0 stands for none.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines.compiled import compiled, compiled_inline
from pipelines.matching import arrays, id_index
from pipelines.matching.ladder import SIDES, add_level, find_level, remove_level
from pipelines.matching.records import CHECKED, HAS_EXTRA, MAX_NAME_BYTES, NAME_TEXT
from pipelines.matching.risk import release
from pipelines.pages import PAGE_BYTES, mark

__all__ = [
    "RESPONSE_TO_AMEND", "RESPONSE_TO_CANCEL", "cancel_reject", "execution", "find_name", "free_order", "intern",
    "link", "mark_account", "mark_extra", "mark_order", "mark_symbol", "name_word", "new_order_slot", "new_report",
    "next_market_row", "next_report", "order_report", "short_text", "shown_quantity", "tell_order", "touch",
    "touch_symbol", "unlink",
]  # fmt: skip

_ORDER_BITS: Final = (PAGE_BYTES // 64).bit_length() - 1
_SYMBOL_BITS: Final = (PAGE_BYTES // 256).bit_length() - 1
_ACCOUNT_BITS: Final = (PAGE_BYTES // 128).bit_length() - 1

CANCEL_REJECT: Final = 1
"""Kind of OrderCancelReject on the reports topic."""
RESPONSE_TO_CANCEL: Final = 0
RESPONSE_TO_AMEND: Final = 1

BOOK_ORDER: Final = 4
"""Kind of BookOrder on the market data topic."""

_EIGHT: Final = np.uint64(8)
_ALL: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


@compiled_inline
def mark_order(state: Any, slot: Any) -> None:
    mark(state.dirty, state.first_pages[arrays.ORDERS_PAGES] + (slot >> _ORDER_BITS))


@compiled_inline
def mark_extra(state: Any, slot: Any) -> None:
    mark(state.dirty, state.first_pages[arrays.EXTRAS_PAGES] + (slot >> _ORDER_BITS))


@compiled_inline
def mark_symbol(state: Any, symbol: Any) -> None:
    mark(state.dirty, state.first_pages[arrays.SYMBOLS_PAGES] + (symbol >> _SYMBOL_BITS))


@compiled_inline
def mark_account(state: Any, account: Any) -> None:
    mark(state.dirty, state.first_pages[arrays.ACCOUNTS_PAGES] + (account >> _ACCOUNT_BITS))


@compiled_inline
def _text_word(state: Any, start: Any, end: Any) -> Any:
    """Up to eight bytes as a number, the first one lowest; 0 if there are none."""
    heap = state.heap
    word = np.uint64(0)
    count = min(end - start, 8)
    if count <= 0:
        return word
    if start + 8 <= state.heap_length:
        # LLVM makes this one load
        at = np.uint64(start)
        for offset in range(8):
            word |= np.uint64(heap[at + np.uint64(offset)]) << (_EIGHT * np.uint64(offset))
        return word & (_ALL >> (_EIGHT * np.uint64(8 - count)))
    for offset in range(count):
        word |= np.uint64(heap[start + offset]) << (_EIGHT * np.uint64(offset))
    return word


@compiled_inline
def short_text(state: Any, word: Any) -> Any:
    """(length, bytes) of a text of one to eight bytes; length 0 for any other."""
    start = word >> 32
    length = word & 0xFFFFFFFF
    if start < 0 or length > 8 or start + length > state.heap_length:
        return np.int64(0), np.uint64(0)
    return length, _text_word(state, start, start + length)


@compiled_inline
def _text(state: Any, word: Any) -> Any:
    """(length, four words) of the text that a row's word points to; length -1 if it cannot be a name."""
    start = word >> 32
    length = word & 0xFFFFFFFF
    zero = np.uint64(0)
    if start < 0 or length > MAX_NAME_BYTES or start + length > state.heap_length:
        return np.int64(-1), zero, zero, zero, zero
    end = start + length
    first = _text_word(state, start, end)
    if length <= 8:
        return length, first, zero, zero, zero
    return (
        length,
        first,
        _text_word(state, start + 8, end),
        _text_word(state, start + 16, end),
        _text_word(state, start + 24, end),
    )


@compiled_inline
def _text_id(length: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    mixed = first * np.uint64(0x9E3779B97F4A7C15)
    if length > 8:
        mixed ^= second * np.uint64(0xC2B2AE3D27D4EB4F)
        mixed ^= third * np.uint64(0x165667B19E3779F9)
        mixed ^= fourth * np.uint64(0x27D4EB2F165667C5)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) >> np.uint64(1)) ^ length


@compiled
def find_name(state: Any, word: Any) -> Any:
    """Slot of a name, -1 if it is not known."""
    length, first, second, third, fourth = _text(state, word)
    slot = np.int64(-1)
    if length >= 0:
        key = _text_id(length, first, second, third, fourth)
        slot = id_index.find(state.name_index, state.names, key)
        while slot >= 0:
            name = state.names[slot]
            if (
                name.text_0 == first
                and name.text_1 == second
                and name.text_2 == third
                and name.text_3 == fourth
                and np.int64(name.length) == length
            ):
                break
            # another text with the same hash took this id; see `intern`
            key += 1
            slot = id_index.find(state.name_index, state.names, key)
    return slot


@compiled
def intern(state: Any, word: Any) -> Any:
    """Slot of a name, a new one if it is not known; -1 if it cannot be a name or the column is full."""
    slot = find_name(state, word)
    if slot >= 0:
        return slot
    length, first, second, third, fourth = _text(state, word)
    slot = state.meta[arrays.NAMES]
    if length < 0 or slot >= state.names_length:
        return np.int64(-1)
    key = _text_id(length, first, second, third, fourth)
    while id_index.find(state.name_index, state.names, key) >= 0:
        key += 1
    name = state.names[slot]
    name.id = key
    name.length = length
    name.symbol = 0
    name.account = 0
    name.asset = 0
    name.text_0 = first
    name.text_1 = second
    name.text_2 = third
    name.text_3 = fourth
    state.meta[arrays.NAMES] = slot + 1
    mark_name(state, slot)
    id_index.insert(state.name_index, key, slot)
    return slot


@compiled_inline
def mark_name(state: Any, slot: Any) -> None:
    mark(state.dirty, state.first_pages[arrays.NAMES_PAGES] + (slot >> _ORDER_BITS))


@compiled_inline
def name_word(state: Any, slot: Any) -> Any:
    """The word by which a row points to a name, in the heap that the names themselves are; slot -1 is empty text."""
    if slot < 0:
        return np.int64(0)
    return (np.int64(slot) * 64 + NAME_TEXT) << 32 | np.int64(state.names[slot].length)


@compiled_inline
def next_report(state: Any) -> Any:
    """Position of a report in the frame's buffer. A frame that makes more than fit stops the job: see the kernel."""
    number = state.work[arrays.REPORTS]
    if number < state.report_rows_length:
        state.work[arrays.REPORTS] = number + 1
        return number
    state.work[arrays.BROKEN] = arrays.OUTPUT_FULL
    return np.int64(0)


@compiled_inline
def next_market_row(state: Any) -> Any:
    """The same for a row of market data."""
    number = state.work[arrays.TRADES]
    if number < state.market_rows_length:
        state.work[arrays.TRADES] = number + 1
        return number
    state.work[arrays.BROKEN] = arrays.OUTPUT_FULL
    return np.int64(0)


@compiled_inline
def new_report(state: Any, kind: Any, given: Any) -> Any:
    """Begin a report that is no ExecutionReport, its other fields being empty; its position in the buffer."""
    number = next_report(state)
    state.meta[arrays.EXECUTIONS] += 1
    state.report_rows[number, 0] = kind
    state.report_rows[number, 1] = given
    for word in range(2, state.report_rows.shape[1]):
        state.report_rows[number, word] = 0
    return number


@compiled
def cancel_reject(state: Any, given: Any, slot: Any, order_id: Any, response_to: Any, reason: Any) -> None:
    """Write an OrderCancelReject; ``slot`` is the order's, 0 where none was found."""
    number = new_report(state, CANCEL_REJECT, given)
    report = state.cancel_rejects[number]
    report.order_id = order_id
    report.response_to = response_to
    report.reason = reason
    report.execution_id = state.meta[arrays.EXECUTIONS]
    if slot > 0:
        order = state.orders[slot]
        report.account = state.accounts[order.account].word
        report.symbol = state.symbols[order.symbol].word


@compiled
def execution(
    state: Any,
    given: Any,
    exec_type: Any,
    status: Any,
    order_id: Any,
    account: Any,
    symbol: Any,
    side: Any,
    price: Any,
    quantity: Any,
    leaves: Any,
    executed: Any,
    reason: Any,
) -> None:
    """Write an ExecutionReport that is not a trade; ``account`` and ``symbol`` are words of names."""
    number = next_report(state)
    state.meta[arrays.EXECUTIONS] += 1
    report = state.reports[number]
    report.kind = 0
    report.input = given
    report.exec_type = exec_type
    report.order_status = status
    report.order_id = order_id
    report.maker_order_id = 0
    report.maker_order_id_is_set = 0
    report.account = account
    report.maker_account = 0
    report.symbol = symbol
    report.side = side
    report.price = price
    report.quantity = quantity
    report.leaves_quantity = leaves
    report.cumulative_quantity = executed
    report.maker_leaves_quantity = 0
    report.execution_id = state.meta[arrays.EXECUTIONS]
    report.reason = reason
    report.venue_execution_id = 0


@compiled
def order_report(
    state: Any, given: Any, exec_type: Any, status: Any, slot: Any, quantity: Any, leaves: Any, reason: Any
) -> None:
    """Write an ExecutionReport about an order in the book."""
    order = state.orders[slot]
    execution(
        state, given, exec_type, status, order.id, state.accounts[order.account].word,
        state.symbols[order.symbol].word, np.int64(order.side), order.price, quantity, leaves,
        order.executed, reason,
    )  # fmt: skip


@compiled_inline
def touch_symbol(state: Any, symbol: Any) -> None:
    """Note that a symbol's book may have changed in this frame."""
    if state.best[symbol, 4] != state.work[arrays.FRAME]:
        state.best[symbol, 4] = state.work[arrays.FRAME]
        state.touched_symbols[state.work[arrays.TOUCHED_SYMBOLS]] = symbol
        state.work[arrays.TOUCHED_SYMBOLS] += 1


@compiled_inline
def touch(state: Any, number: Any) -> None:
    """Note that a public level changes in this frame."""
    level = state.levels[number]
    side = np.int64(level.side)
    if level.stamp != state.work[arrays.FRAME] and side & 2 == 0:
        level.stamp = state.work[arrays.FRAME]
        note = state.work[arrays.TOUCHED]
        state.touched[note, 0] = side
        state.touched[note, 1] = level.price
        state.touched[note, 2] = np.int64(level.published)
        state.touched[note, 3] = number
        state.work[arrays.TOUCHED] = note + 1
        touch_symbol(state, side // SIDES)


@compiled
def _tell_order(state: Any, slot: Any, side: Any, shown: Any) -> None:
    number = next_market_row(state)
    order = state.orders[slot]
    instrument = state.symbols[side // SIDES]
    instrument.sequence += 1
    row = state.book_orders[number]
    row.kind = BOOK_ORDER
    row.symbol = instrument.word
    row.sequence = instrument.sequence
    row.place = order.priority
    row.side = side & 1
    row.price = order.price
    row.quantity = shown


@compiled_inline
def tell_order(state: Any, slot: Any, side: Any, shown: Any) -> None:
    """Tell the market what an order on side number ``side`` now shows, where its orders are told; 0: it is gone."""
    if state.sides[side].feed != 0:
        _tell_order(state, slot, side, shown)


@compiled_inline
def shown_quantity(state: Any, order: Any, slot: Any) -> Any:
    """Lots of a resting order that the public sees."""
    if order.flags & HAS_EXTRA and state.extras[slot].display_quantity > 0:
        return state.extras[slot].shown
    return order.leaves


@compiled_inline
def new_order_slot(state: Any) -> Any:
    """A free slot."""
    slot = state.work[arrays.FREE_ORDER]
    if slot != 0:
        state.work[arrays.FREE_ORDER] = np.int64(state.orders[slot].next)
    else:
        state.meta[arrays.ORDER_SLOTS] += 1
        slot = state.meta[arrays.ORDER_SLOTS]
    state.meta[arrays.LIVE_ORDERS] += 1
    return slot


@compiled_inline
def free_order(state: Any, slot: Any) -> None:
    """Give a slot back; the order is in no queue and not in the index."""
    order = state.orders[slot]
    order.flags = 0
    order.next = state.work[arrays.FREE_ORDER]
    state.work[arrays.FREE_ORDER] = slot
    state.meta[arrays.LIVE_ORDERS] -= 1
    mark_order(state, slot)


@compiled
def link(state: Any, slot: Any, side: Any, price: Any) -> None:
    """Put an order behind the queue of a price on side number ``side``."""
    number = find_level(state, side, price)
    if number == 0:
        number = add_level(state, side, price)
    level = state.levels[number]
    touch(state, number)
    order = state.orders[slot]
    shown = shown_quantity(state, order, slot)
    level.shown += shown
    level.hidden += order.leaves - shown
    level.orders += 1
    order.level = number
    order.next = 0
    tail = np.int64(level.tail)
    order.prev = tail
    if tail == 0:
        level.head = slot
    else:
        state.orders[tail].next = slot
    level.tail = slot
    state.meta[arrays.PRIORITY] += 1
    order.priority = state.meta[arrays.PRIORITY]
    mark_order(state, slot)
    tell_order(state, slot, side, shown)


@compiled
def unlink(state: Any, slot: Any) -> None:
    """Take an order out of its queue; its level goes with the last one."""
    order = state.orders[slot]
    number = np.int64(order.level)
    level = state.levels[number]
    touch(state, number)
    tell_order(state, slot, np.int64(level.side), np.int64(0))
    before = np.int64(order.prev)
    after = np.int64(order.next)
    order.level = 0
    if before == 0 and after == 0:
        remove_level(state, number)
    else:
        shown = shown_quantity(state, order, slot)
        level.shown -= shown
        level.hidden -= order.leaves - shown
        level.orders -= 1
        if before == 0:
            level.head = after
        else:
            state.orders[before].next = after
        if after == 0:
            level.tail = before
        else:
            state.orders[after].prev = before


@compiled
def take_off(state: Any, given: Any, slot: Any, exec_type: Any, status: Any, reason: Any) -> None:
    """End a resting or waiting order before it is filled: out of the book, reserve returned, reported."""
    order = state.orders[slot]
    unlink(state, slot)
    id_index.remove(state.order_index, order.id, slot)
    if order.flags & CHECKED:
        release(state, slot, order.leaves, True)
    execution(
        state, given, exec_type, status, order.id, state.accounts[order.account].word,
        state.symbols[order.symbol].word, np.int64(order.side), order.price, order.leaves, 0,
        order.executed, reason,
    )  # fmt: skip
    free_order(state, slot)
