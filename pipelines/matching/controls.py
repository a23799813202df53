"""Definitions and trading controls: what the admin events do. None of this is on the path of an order.

A symbol's status decides what happens to it: READY_TO_TRADE matches; PRE_OPEN (a call) collects limit and stop orders
without matching; TRADING_HALT keeps what rests and accepts only cancels; NOT_AVAILABLE_FOR_TRADING is closed, DAY
orders end, cancels are accepted. Leaving PRE_OPEN or TRADING_HALT for READY_TO_TRADE, or PRE_OPEN for
NOT_AVAILABLE_FOR_TRADING, uncrosses the book at one price: the one that trades most; among those the one that leaves
the least surplus; among those the one nearest to the reference price (the lower one without a reference).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines.compiled import compiled, compiled_inline, prefetch
from pipelines.matching import arrays, id_index
from pipelines.matching.book import (
    find_name,
    free_order,
    intern,
    link,
    mark_account,
    mark_name,
    mark_order,
    mark_symbol,
    name_word,
    new_order_slot,
    new_report,
    next_market_row,
    next_report,
    order_report,
    short_text,
    shown_quantity,
    take_off,
    tell_order,
    touch,
    touch_symbol,
    unlink,
)
from pipelines.matching.ladder import ASKS, BIDS, SIDES, next_level
from pipelines.matching.records import (
    CHECKED,
    HAS_EXTRA,
    LIVE,
    ExecType,
    OrderStatus,
    OrderType,
    Reason,
    RiskModel,
    Side,
    TimeInForce,
    TradingStatus,
)
from pipelines.matching.risk import (
    FEES_ACCOUNT,
    MAX_BALANCE,
    MAX_NOTIONAL_FLOAT,
    find_balance,
    mark_balance,
    release,
    settle,
    value_position,
)
from pipelines.matching.routed import cancel_routed
from pipelines.pages import PAGE_BYTES, mark

__all__ = [
    "account_of", "admin_report", "change_status", "define_account", "define_symbol", "deposit", "fetch_symbol", "halt",
    "kill_switch", "likely_symbol", "limit_session", "mark_price", "mass_cancel", "symbol_of", "write_trade",
]  # fmt: skip

_BITS_64: Final = (PAGE_BYTES // 64).bit_length() - 1

NONE: Final = np.int64(Reason.NONE)
UNKNOWN_SYMBOL: Final = np.int64(Reason.UNKNOWN_SYMBOL)
UNKNOWN_ACCOUNT: Final = np.int64(Reason.UNKNOWN_ACCOUNT)
INVALID_DEFINITION: Final = np.int64(Reason.INVALID_DEFINITION)
INSUFFICIENT_FUNDS: Final = np.int64(Reason.INSUFFICIENT_FUNDS)
CAPACITY: Final = np.int64(Reason.CAPACITY)
MASS_CANCEL: Final = np.int64(Reason.MASS_CANCEL)
KILL_SWITCH: Final = np.int64(Reason.KILL_SWITCH)
END_OF_DAY: Final = np.int64(Reason.END_OF_DAY)
LIQUIDATION: Final = np.int64(Reason.LIQUIDATION)
CANCELED: Final = np.int64(ExecType.CANCELED)
EXPIRED: Final = np.int64(ExecType.EXPIRED)
NEW: Final = np.int64(ExecType.NEW)
STATUS_NEW: Final = np.int64(OrderStatus.NEW)
STATUS_CANCELED: Final = np.int64(OrderStatus.CANCELED)
STATUS_EXPIRED: Final = np.int64(OrderStatus.EXPIRED)
STATUS_PARTIALLY_FILLED: Final = np.int64(OrderStatus.PARTIALLY_FILLED)
STATUS_FILLED: Final = np.int64(OrderStatus.FILLED)
TRADE: Final = np.int64(ExecType.TRADE)
READY: Final = np.int64(TradingStatus.READY_TO_TRADE)
PRE_OPEN: Final = np.int64(TradingStatus.PRE_OPEN)
HALT: Final = np.int64(TradingStatus.TRADING_HALT)
CLOSED: Final = np.int64(TradingStatus.NOT_AVAILABLE_FOR_TRADING)
DAY: Final = np.int64(TimeInForce.DAY)
IOC: Final = np.int64(TimeInForce.IOC)
MARKET: Final = np.int64(OrderType.MARKET)
BUY: Final = np.int64(Side.BUY)
SELL: Final = np.int64(Side.SELL)
MARGIN: Final = np.int64(RiskModel.MARGIN)
VENUE: Final = np.int64(RiskModel.VENUE)

MASS_CANCEL_REPORT: Final = 2
ADMIN_REPORT: Final = 3
"""Kinds of events on the reports topic."""
MARKET_STATUS: Final = 3
"""Kind of SecurityStatus on the market data topic."""


@compiled
def _create_symbol(state: Any, name: Any) -> Any:
    symbol = state.meta[arrays.SYMBOLS]
    if symbol >= state.symbols_length:
        return np.int64(-1)
    state.meta[arrays.SYMBOLS] = symbol + 1
    state.names[name].symbol = symbol + 1
    mark_name(state, name)
    instrument = state.symbols[symbol]
    instrument.name = name
    instrument.word = name_word(state, name)
    instrument.tick_size = 1
    instrument.lot_size = 1
    instrument.base_per_lot = 1
    instrument.quote_per_tick = 1
    instrument.initial_margin_ppm = 1_000_000
    instrument.maintenance_margin_ppm = 500_000
    mark_symbol(state, symbol)
    return symbol


@compiled
def _create_account(state: Any, name: Any) -> Any:
    account = state.meta[arrays.ACCOUNTS]
    if account >= state.accounts_length:
        return np.int64(-1)
    state.meta[arrays.ACCOUNTS] = account + 1
    state.names[name].account = account + 1
    mark_name(state, name)
    state.accounts[account].name = name
    state.accounts[account].word = name_word(state, name)
    state.accounts[account].prevention = 1
    state.accounts[account].rate_interval = 1_000_000
    mark_account(state, account)
    return account


@compiled
def open_symbol(state: Any, word: Any) -> Any:
    """A symbol that no event defined, made on first use while none is defined at all; else -1."""
    if state.meta[arrays.SYMBOLS_DEFINED] != 0 or word & 0xFFFFFFFF == 0:
        return np.int64(-1)
    name = intern(state, word)
    return _create_symbol(state, name) if name >= 0 else np.int64(-1)


@compiled
def open_account(state: Any, word: Any) -> Any:
    """The same for an account; its risk model is OFF."""
    if state.meta[arrays.ACCOUNTS_DEFINED] != 0 or word & 0xFFFFFFFF == 0:
        return np.int64(-1)
    name = intern(state, word)
    return _create_account(state, name) if name >= 0 else np.int64(-1)


@compiled_inline
def _cache_place(text: Any) -> Any:
    return np.int64((text * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(50))


@compiled_inline
def fetch_symbol(state: Any, word: Any) -> None:
    """Have what `likely_symbol` reads brought into the cache."""
    prefetch(state.symbol_cache, _cache_place(short_text(state, word)[1]), 0)


@compiled_inline
def likely_symbol(state: Any, word: Any) -> Any:
    """The symbol of a row's text if it was looked up lately, -1 otherwise."""
    length, text = short_text(state, word)
    return _cached(state.symbol_cache, length, text)


@compiled_inline
def _cached(cache: Any, length: Any, text: Any) -> Any:
    """What a text of at most eight bytes stood for when it was last looked up, -1 if that is not known any more."""
    place = _cache_place(text)
    if cache[place, 0] == np.int64(text) and cache[place, 1] & 15 == length:
        return cache[place, 1] >> 4
    return np.int64(-1)


@compiled_inline
def _remember(cache: Any, length: Any, text: Any, number: Any) -> None:
    place = _cache_place(text)
    cache[place, 0] = np.int64(text)
    cache[place, 1] = number << 4 | length


@compiled
def _look_up_symbol(state: Any, word: Any) -> Any:
    name = find_name(state, word)
    return np.int64(state.names[name].symbol) - 1 if name >= 0 else np.int64(-1)


@compiled
def _look_up_account(state: Any, word: Any) -> Any:
    name = find_name(state, word)
    return np.int64(state.names[name].account) - 1 if name >= 0 else np.int64(-1)


@compiled
def symbol_of(state: Any, word: Any) -> Any:
    """The symbol of a row's text, -1 if it is not known."""
    length, text = short_text(state, word)
    if length == 0:
        return _look_up_symbol(state, word)
    symbol = _cached(state.symbol_cache, length, text)
    if symbol < 0:
        symbol = np.int64(_look_up_symbol(state, word))
        if symbol >= 0:
            _remember(state.symbol_cache, length, text, symbol)
    return symbol


@compiled
def account_of(state: Any, word: Any) -> Any:
    """The account of a row's text, -1 if it is not known."""
    length, text = short_text(state, word)
    if length == 0:
        return _look_up_account(state, word)
    account = _cached(state.account_cache, length, text)
    if account < 0:
        account = np.int64(_look_up_account(state, word))
        if account >= 0:
            _remember(state.account_cache, length, text, account)
    return account


@compiled
def admin_report(state: Any, given: Any, reason: Any) -> None:
    """Write the AdminReport of an event."""
    number = new_report(state, ADMIN_REPORT, given)
    report = state.admin_reports[number]
    report.reason = reason
    report.execution_id = state.meta[arrays.EXECUTIONS]


@compiled
def define_symbol(state: Any, command: Any) -> Any:
    """Apply a SymbolDefinition; the reason, NONE if it was done."""
    base = intern(state, command.base_asset)
    quote = intern(state, command.quote_asset)
    name = intern(state, command.symbol)
    if name < 0 or command.symbol & 0xFFFFFFFF == 0 or base < 0 or quote < 0:
        return INVALID_DEFINITION
    if command.maker_fee > command.taker_fee:
        return INVALID_DEFINITION
    symbol = np.int64(state.names[name].symbol) - 1
    if symbol >= 0:
        instrument = state.symbols[symbol]
        in_use = instrument.last_price != 0
        for kind in range(SIDES):
            in_use = in_use or state.sides[symbol * SIDES + kind].best != 0
        # what reserves and positions were computed with must stay
        if instrument.defined != 0 and (instrument.base_asset != base or instrument.quote_asset != quote):
            return INVALID_DEFINITION
        if (
            in_use
            and instrument.defined != 0
            and (
                instrument.base_per_lot != command.base_per_lot
                or instrument.quote_per_tick != command.quote_per_tick
                or instrument.maker_fee != command.maker_fee
                or instrument.taker_fee != command.taker_fee
                or instrument.initial_margin_ppm != command.initial_margin_ppm
                or instrument.maintenance_margin_ppm != command.maintenance_margin_ppm
            )
        ):
            return INVALID_DEFINITION
    else:
        symbol = _create_symbol(state, name)
        if symbol < 0:
            return CAPACITY
        state.symbols[symbol].status = command.status
    instrument = state.symbols[symbol]
    instrument.tick_size = command.tick_size
    instrument.lot_size = command.lot_size
    instrument.maximum_quantity = command.maximum_quantity
    instrument.maximum_notional = command.maximum_notional
    instrument.order_band_ppm = command.order_band_ppm
    instrument.halt_band_ppm = command.halt_band_ppm
    instrument.checks = command.maximum_quantity > 0 or command.maximum_notional > 0 or command.order_band_ppm > 0
    instrument.base_per_lot = command.base_per_lot
    instrument.quote_per_tick = command.quote_per_tick
    instrument.maker_fee = command.maker_fee
    instrument.taker_fee = command.taker_fee
    instrument.base_asset = base
    instrument.quote_asset = quote
    instrument.initial_margin_ppm = command.initial_margin_ppm
    instrument.maintenance_margin_ppm = command.maintenance_margin_ppm
    if command.reference_price > 0:
        instrument.reference_price = command.reference_price
    if instrument.defined == 0:
        instrument.defined = 1
        state.meta[arrays.SYMBOLS_DEFINED] += 1
    if instrument.order_feed != command.order_feed:
        _switch_order_feed(state, symbol, command.order_feed)
    mark_symbol(state, symbol)
    return NONE


@compiled
def _switch_order_feed(state: Any, symbol: Any, is_told: Any) -> None:
    """Tell a symbol's orders from now on, beginning with those that rest; or tell no longer, after saying that all
    have left."""
    instrument = state.symbols[symbol]
    instrument.order_feed = is_told
    for kind in range(BIDS, ASKS + 1):
        side = symbol * SIDES + kind
        state.sides[side].feed = 1
        number = np.int64(state.sides[side].best)
        while number != 0:
            slot = np.int64(state.levels[number].head)
            while slot != 0:
                shown = shown_quantity(state, state.orders[slot], slot) if is_told != 0 else np.int64(0)
                tell_order(state, slot, side, shown)
                slot = np.int64(state.orders[slot].next)
            number = next_level(state, number)
        state.sides[side].feed = is_told


@compiled
def define_account(state: Any, command: Any) -> Any:
    """Apply an AccountDefinition; the reason, NONE if it was done."""
    name = intern(state, command.account)
    if name < 0 or command.account & 0xFFFFFFFF == 0:
        return INVALID_DEFINITION
    slot = np.int64(state.names[name].account) - 1
    if slot < 0:
        slot = np.int64(_create_account(state, name))
        if slot < 0:
            return CAPACITY
    elif state.accounts[slot].risk != command.risk and (
        state.accounts[slot].risk == VENUE
        or command.risk == VENUE
        or _live_orders_of(state, slot) > 0
        or _holds(state, slot)
    ):
        # what orders reserve, and which asset a position is, could not be told any more
        return INVALID_DEFINITION
    account = state.accounts[slot]
    account.risk = command.risk
    account.prevention = max(command.self_trade_prevention, 1)
    account.maximum_quantity = command.maximum_quantity
    account.maximum_notional = command.maximum_notional
    account.maximum_open_orders = command.maximum_open_orders
    account.maximum_position = command.maximum_position
    account.rate_limit = command.rate_limit
    account.rate_interval = command.rate_interval
    if account.defined == 0:
        account.defined = 1
        state.meta[arrays.ACCOUNTS_DEFINED] += 1
    mark_account(state, slot)
    return NONE


@compiled
def _live_orders_of(state: Any, account: Any) -> Any:
    found = 0
    for slot in range(1, state.meta[arrays.ORDER_SLOTS] + 1):
        order = state.orders[slot]
        if order.flags & LIVE and np.int64(order.account) == account:
            found += 1
    return found


@compiled
def _holds(state: Any, account: Any) -> Any:
    """Whether an account has a position that trades made."""
    for place in range(state.meta[arrays.POSITIONS]):
        position = state.positions[place]
        if position.id >> 32 == account and position.quantity != 0:
            return True
    return False


@compiled
def deposit(state: Any, command: Any) -> Any:
    """Apply a Deposit; the reason, NONE if it was done."""
    account = account_of(state, command.account)
    if account < 0:
        account = open_account(state, command.account)
    if account < 0:
        return UNKNOWN_ACCOUNT
    asset = intern(state, command.asset)
    if asset < 0:
        return INVALID_DEFINITION
    slot = find_balance(state, account, asset)
    total = find_balance(state, FEES_ACCOUNT, asset)
    if slot < 0 or total < 0:
        return CAPACITY
    balance = state.balances[slot]
    if command.amount < 0 and balance.available + min(balance.value, 0) - balance.initial < -command.amount:
        return INSUFFICIENT_FUNDS
    if state.balances[total].available + command.amount > MAX_BALANCE:
        return INVALID_DEFINITION
    balance.available += command.amount
    state.balances[total].available += command.amount
    mark_balance(state, slot)
    mark_balance(state, total)
    return NONE


@compiled
def limit_session(state: Any, command: Any) -> Any:
    """Apply a SessionLimit; the reason, NONE if it was done."""
    slot = id_index.find(state.session_index, state.sessions, command.session)
    if slot < 0:
        slot = state.meta[arrays.SESSIONS]
        if slot >= state.sessions_length:
            return CAPACITY
        state.meta[arrays.SESSIONS] = slot + 1
        state.sessions[slot].id = command.session
        id_index.insert(state.session_index, command.session, slot)
    state.sessions[slot].maximum_messages = command.maximum_messages
    state.sessions[slot].interval = command.interval
    mark(state.dirty, state.first_pages[arrays.SESSIONS_PAGES] + (slot >> _BITS_64))
    return NONE


@compiled
def _cancel_side(state: Any, given: Any, side: Any, account: Any, day_only: Any, exec_type: Any, reason: Any) -> Any:
    """End the orders of one side of a book that match, best price and oldest first; how many."""
    status = STATUS_EXPIRED if exec_type == EXPIRED else STATUS_CANCELED
    ended = 0
    number = np.int64(state.sides[side].best)
    while number != 0:
        slot = np.int64(state.levels[number].head)
        following = next_level(state, number)
        while slot != 0:
            order = state.orders[slot]
            after = np.int64(order.next)
            if (account < 0 or np.int64(order.account) == account) and (not day_only or order.time_in_force == DAY):
                take_off(state, given, slot, exec_type, status, reason)
                ended += 1
            slot = after
        number = following
    return ended


@compiled
def cancel_orders(state: Any, given: Any, symbol: Any, account: Any, which: Any, reason: Any) -> Any:
    """Cancel all orders that match, routed ones last by asking their venue; symbol and account -1 for all, ``which`` 0
    both sides, 1 buys, 2 sells. Returns how many."""
    ended = 0
    first = symbol if symbol >= 0 else 0
    last = symbol + 1 if symbol >= 0 else state.meta[arrays.SYMBOLS]
    for current in range(first, last):
        for kind in range(SIDES):
            # bids and buy stops have even numbers
            if which == 0 or (which == 1) == (kind & 1 == 0):
                ended += _cancel_side(state, given, current * SIDES + kind, account, False, CANCELED, reason)
    return ended + cancel_routed(state, given, symbol, account, which, reason)


@compiled
def mass_cancel(state: Any, given: Any, command: Any) -> None:
    """Apply a MassCancel and write its report."""
    symbol = np.int64(-1)
    account = np.int64(-1)
    reason = NONE
    if command.symbol & 0xFFFFFFFF != 0:
        symbol = symbol_of(state, command.symbol)
        if symbol < 0:
            reason = UNKNOWN_SYMBOL
    if command.account & 0xFFFFFFFF != 0:
        account = account_of(state, command.account)
        if account < 0:
            reason = UNKNOWN_ACCOUNT
    affected = 0
    if reason == NONE:
        affected = cancel_orders(state, given, symbol, account, command.side, MASS_CANCEL)
    mass_cancel_report(state, given, reason, affected)


@compiled
def mass_cancel_report(state: Any, given: Any, reason: Any, affected: Any) -> None:
    number = new_report(state, MASS_CANCEL_REPORT, given)
    report = state.mass_cancels[number]
    report.reason = reason
    report.affected = affected
    report.execution_id = state.meta[arrays.EXECUTIONS]


@compiled
def kill_switch(state: Any, given: Any, command: Any) -> Any:
    """Apply a KillSwitch; the reason, NONE if it was done."""
    account = account_of(state, command.account)
    if account < 0:
        return UNKNOWN_ACCOUNT
    state.accounts[account].blocked = command.engaged
    mark_account(state, account)
    if command.engaged != 0:
        cancel_orders(state, given, np.int64(-1), account, 0, KILL_SWITCH)
    return NONE


@compiled
def write_trade(
    state: Any, given: Any, symbol: Any, taker: Any, maker: Any, price: Any, quantity: Any, leaves: Any, executed: Any
) -> None:
    """Write a trade, as a report and as market data; the maker's record is already reduced."""
    order = state.orders[taker]
    resting = state.orders[maker]
    state.meta[arrays.EXECUTIONS] += 1
    number = next_report(state)
    report = state.reports[number]
    report.kind = 0
    report.input = given
    report.exec_type = TRADE
    report.order_status = STATUS_FILLED if leaves == 0 else STATUS_PARTIALLY_FILLED
    report.order_id = order.id
    report.maker_order_id = resting.id
    report.maker_order_id_is_set = 1
    report.account = state.accounts[order.account].word
    report.maker_account = state.accounts[resting.account].word
    report.symbol = state.symbols[symbol].word
    report.side = np.int64(order.side)
    report.price = price
    report.quantity = quantity
    report.leaves_quantity = leaves
    report.cumulative_quantity = executed
    report.maker_leaves_quantity = resting.leaves
    report.execution_id = state.meta[arrays.EXECUTIONS]
    report.reason = NONE
    report.venue_execution_id = 0
    number = next_market_row(state)
    state.symbols[symbol].sequence += 1
    trade = state.trades[number]
    trade.kind = 0
    trade.symbol = report.symbol
    trade.sequence = state.symbols[symbol].sequence
    trade.trade_id = report.execution_id
    trade.price = price
    trade.quantity = quantity
    trade.aggressor_side = report.side


@compiled
def write_status(state: Any, symbol: Any, auction_price: Any, auction_quantity: Any) -> None:
    """Tell the market a symbol's status."""
    number = next_market_row(state)
    instrument = state.symbols[symbol]
    instrument.sequence += 1
    row = state.statuses[number]
    row.kind = MARKET_STATUS
    row.symbol = instrument.word
    row.sequence = instrument.sequence
    row.status = instrument.status
    row.reference_price = instrument.last_price if instrument.last_price > 0 else instrument.reference_price
    row.auction_price = auction_price
    row.auction_quantity = auction_quantity
    mark_symbol(state, symbol)


@compiled
def halt(state: Any, symbol: Any) -> None:
    """Halt a symbol because a trade would leave its band."""
    state.symbols[symbol].status = HALT
    write_status(state, symbol, np.int64(0), np.int64(0))


@compiled_inline
def _whole(state: Any, number: Any) -> Any:
    return state.levels[number].shown + state.levels[number].hidden


@compiled
def _auction(state: Any, symbol: Any) -> Any:
    """(price, quantity) at which a crossed book trades most, see the module; quantity 0 if it is not crossed."""
    bid = np.int64(state.sides[symbol * SIDES + BIDS].best)
    ask = np.int64(state.sides[symbol * SIDES + ASKS].best)
    bid_left = _whole(state, bid) if bid != 0 else np.int64(0)
    ask_left = _whole(state, ask) if ask != 0 else np.int64(0)
    volume = np.int64(0)
    lowest = np.int64(0)
    highest = np.int64(0)
    while bid != 0 and ask != 0 and state.levels[bid].price >= state.levels[ask].price:
        traded = min(bid_left, ask_left)
        volume += traded
        lowest = state.levels[ask].price
        highest = state.levels[bid].price
        bid_left -= traded
        ask_left -= traded
        if bid_left == 0:
            bid = next_level(state, bid)
            bid_left = _whole(state, bid) if bid != 0 else np.int64(0)
        if ask_left == 0:
            ask = next_level(state, ask)
            ask_left = _whole(state, ask) if ask != 0 else np.int64(0)
    if volume == 0:
        return np.int64(0), np.int64(0)
    # every price in [lowest, highest] trades `volume`. At and below the next bid there is a surplus of buys, at and
    # above the next ask one of sells, between them none
    bid_price = state.levels[bid].price if bid != 0 else np.int64(0)
    ask_price = state.levels[ask].price if ask != 0 else highest + 1
    instrument = state.symbols[symbol]
    reference = instrument.last_price if instrument.last_price > 0 else instrument.reference_price
    low = max(lowest, bid_price + 1)
    high = min(highest, ask_price - 1)
    if low <= high:
        return (min(max(reference, low), high) if reference > 0 else low), volume
    if bid_price >= highest:
        return highest, volume
    if ask_price <= lowest:
        return lowest, volume
    if bid_left != ask_left:
        return (bid_price if bid_left < ask_left else ask_price), volume
    return (ask_price if abs(ask_price - reference) < abs(bid_price - reference) else bid_price), volume


@compiled
def _fill_head(state: Any, slot: Any, quantity: Any, price: Any, is_taker: Any) -> None:
    """Take ``quantity`` lots from the first order of a queue, in an auction."""
    order = state.orders[slot]
    number = np.int64(order.level)
    level = state.levels[number]
    touch(state, number)
    shown = shown_quantity(state, order, slot)
    order.leaves -= quantity
    order.executed += quantity
    level.shown -= quantity
    if order.flags & CHECKED:
        settle(state, slot, quantity, price, is_taker)
    if order.flags & HAS_EXTRA and state.extras[slot].display_quantity > 0:
        state.extras[slot].shown = shown - quantity
    mark_order(state, slot)


@compiled
def _after_fill(state: Any, slot: Any) -> None:
    """End a filled order; show the next part of an iceberg behind the queue."""
    order = state.orders[slot]
    if order.leaves == 0:
        unlink(state, slot)
        id_index.remove(state.order_index, order.id, slot)
        if order.flags & CHECKED:
            release(state, slot, np.int64(0), True)
        free_order(state, slot)
    elif order.flags & HAS_EXTRA and state.extras[slot].display_quantity > 0 and state.extras[slot].shown == 0:
        side = np.int64(state.levels[order.level].side)
        unlink(state, slot)
        state.extras[slot].shown = min(state.extras[slot].display_quantity, order.leaves)
        mark(state.dirty, state.first_pages[arrays.EXTRAS_PAGES] + (slot >> _BITS_64))
        link(state, slot, side, order.price)
    else:
        tell_order(state, slot, np.int64(state.levels[order.level].side), shown_quantity(state, order, slot))


@compiled
def uncross(state: Any, given: Any, symbol: Any) -> Any:
    """Trade a crossed book at its auction price; (price, quantity), 0 if it is not crossed."""
    price, volume = _auction(state, symbol)
    left = volume
    while left > 0:
        buy = np.int64(state.levels[state.sides[symbol * SIDES + BIDS].best].head)
        sell = np.int64(state.levels[state.sides[symbol * SIDES + ASKS].best].head)
        quantity = min(
            shown_quantity(state, state.orders[buy], buy), shown_quantity(state, state.orders[sell], sell), left
        )
        buy_is_younger = state.orders[buy].priority > state.orders[sell].priority
        taker = buy if buy_is_younger else sell
        maker = sell if buy_is_younger else buy
        _fill_head(state, taker, quantity, price, True)
        _fill_head(state, maker, quantity, price, False)
        write_trade(
            state,
            given,
            symbol,
            taker,
            maker,
            price,
            quantity,
            state.orders[taker].leaves,
            state.orders[taker].executed,
        )
        _after_fill(state, buy)
        _after_fill(state, sell)
        left -= quantity
    if volume > 0:
        state.symbols[symbol].last_price = price
    return price, volume


@compiled
def _change_one(state: Any, given: Any, symbol: Any, status: Any) -> None:
    instrument = state.symbols[symbol]
    before = instrument.status
    price = np.int64(0)
    volume = np.int64(0)
    touch_symbol(state, symbol)
    if (before == PRE_OPEN and status in (READY, CLOSED)) or (before == HALT and status == READY):
        price, volume = uncross(state, given, symbol)
    instrument.status = status
    if status == CLOSED:
        for kind in range(SIDES):
            _cancel_side(state, given, symbol * SIDES + kind, np.int64(-1), True, EXPIRED, END_OF_DAY)
    write_status(state, symbol, price, volume)


@compiled
def change_status(state: Any, given: Any, command: Any) -> Any:
    """Apply a SecurityTradingStatus; (reason, first symbol, last symbol whose stops may now be triggered)."""
    if command.symbol & 0xFFFFFFFF == 0:
        for symbol in range(state.meta[arrays.SYMBOLS]):
            _change_one(state, given, symbol, command.status)
        return NONE, np.int64(0), state.meta[arrays.SYMBOLS] - 1
    symbol = symbol_of(state, command.symbol)
    if symbol < 0:
        symbol = open_symbol(state, command.symbol)
    if symbol < 0:
        return UNKNOWN_SYMBOL, np.int64(-1), np.int64(-1)
    _change_one(state, given, symbol, command.status)
    return NONE, symbol, symbol


@compiled
def _liquidate(state: Any, given: Any, account: Any, quote: Any) -> None:
    """Cancel an account's orders and send market orders that close its positions against one quote balance."""
    cancel_orders(state, given, np.int64(-1), account, 0, LIQUIDATION)
    for place in range(state.meta[arrays.POSITIONS]):
        position = state.positions[place]
        symbol = position.id & 0xFFFFFFFF
        if position.id >> 32 != account or np.int64(position.quote) != quote or position.quantity == 0:
            continue
        if state.symbols[symbol].status != READY:
            continue
        key = -1 - state.meta[arrays.EXECUTIONS]
        while id_index.find(state.order_index, state.orders, key) >= 0:
            key -= 1
        slot = new_order_slot(state)
        order = state.orders[slot]
        order.id = key
        order.price = 0
        order.leaves = abs(position.quantity)
        order.executed = 0
        order.priority = 0
        order.next = 0
        order.prev = 0
        order.level = 0
        order.account = account
        order.symbol = symbol
        order.side = SELL if position.quantity > 0 else BUY
        order.order_type = MARKET
        order.time_in_force = IOC
        order.flags = LIVE | CHECKED | 16
        if order.side == BUY:
            position.open_buy += order.leaves
        else:
            position.open_sell += order.leaves
        state.accounts[account].open_orders += 1
        value_position(state, place, symbol)
        order_report(state, given, NEW, STATUS_NEW, slot, order.leaves, order.leaves, LIQUIDATION)
        state.queue[state.work[arrays.QUEUE_TAIL]] = slot
        state.work[arrays.QUEUE_TAIL] += 1
        mark_account(state, account)


@compiled
def mark_price(state: Any, given: Any, command: Any) -> Any:
    """Apply a MarkPrice: value the positions anew and liquidate accounts below their maintenance margin."""
    symbol = symbol_of(state, command.symbol)
    if symbol < 0:
        return UNKNOWN_SYMBOL
    for place in range(state.meta[arrays.POSITIONS]):
        position = state.positions[place]
        if position.id & 0xFFFFFFFF == symbol:
            largest = abs(position.quantity) + position.open_buy + position.open_sell
            if float(largest) * float(command.price) * float(state.symbols[symbol].quote_per_tick) > MAX_NOTIONAL_FLOAT:
                return INVALID_DEFINITION
    state.symbols[symbol].mark_price = command.price
    mark_symbol(state, symbol)
    for place in range(state.meta[arrays.POSITIONS]):
        position = state.positions[place]
        if position.id & 0xFFFFFFFF == symbol and state.accounts[position.id >> 32].risk == MARGIN:
            value_position(state, place, symbol)
            mark(state.dirty, state.first_pages[arrays.POSITIONS_PAGES] + (place >> _BITS_64))
    for place in range(state.meta[arrays.POSITIONS]):
        position = state.positions[place]
        if position.id & 0xFFFFFFFF == symbol and position.quantity != 0:
            balance = state.balances[position.quote]
            account = position.id >> 32
            if state.accounts[account].risk == MARGIN and balance.available + balance.value < balance.maintenance:
                _liquidate(state, given, account, np.int64(position.quote))
    return NONE
