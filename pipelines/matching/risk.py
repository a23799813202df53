"""Pre-trade risk: what an order may do, what it reserves, and how fills and cancels settle it. All exact integers.

SPOT accounts pay and deliver from balances. A buy reserves its open lots at the reserve price plus the taker fee, a
sell the base asset; a fill takes its cost from the reserve and returns what was too much, a cancel returns the rest.
A MARKET buy reserves what the book as it stands would cost.

MARGIN accounts hold positions of either sign against cash of the quote asset: cash moves by the full notional of a
trade, equity is cash plus positions at the mark price, and the initial margin is that of the larger of what all open
buys or all open sells would make of each position. An order that raises it needs that much equity.

For every asset: balances (available and held) of all accounts, positions of MARGIN accounts and collected fees sum up
to what was deposited.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines.compiled import compiled, compiled_inline
from pipelines.matching import arrays, id_index
from pipelines.matching.ladder import SIDES, next_level
from pipelines.matching.records import HAS_EXTRA, OrderType, Reason, RiskModel, Side
from pipelines.pages import PAGE_BYTES, mark

__all__ = [
    "FEES_ACCOUNT", "MAX_BALANCE", "MAX_NOTIONAL_FLOAT", "admit", "find_balance", "find_position", "market_cost",
    "move_reserve", "release", "reserve", "reserve_unit", "settle",
]  # fmt: skip

FEES_ACCOUNT: Final = 0x0FFFFFFF
"""Stands for the exchange: its balance of an asset has what was deposited in ``available`` and the fees in ``fees``."""
MAX_NOTIONAL: Final = 1 << 61
MAX_NOTIONAL_FLOAT: Final = float(1 << 60)
MAX_BALANCE: Final = 4 * 10**18
PPM: Final = 1_000_000

_BITS_64: Final = (PAGE_BYTES // 64).bit_length() - 1
_SYMBOL_BITS: Final = (PAGE_BYTES // 256).bit_length() - 1

BUY: Final = np.int64(Side.BUY)
MARKET: Final = np.int64(OrderType.MARKET)
MARGIN: Final = np.int64(RiskModel.MARGIN)
VENUE: Final = np.int64(RiskModel.VENUE)
NONE: Final = np.int64(Reason.NONE)
INSUFFICIENT_FUNDS: Final = np.int64(Reason.INSUFFICIENT_FUNDS)
NOTIONAL_EXCEEDS: Final = np.int64(Reason.NOTIONAL_EXCEEDS_THRESHOLD)
ORDER_EXCEEDS: Final = np.int64(Reason.ORDER_EXCEEDS_LIMIT)
OUTSIDE_BAND: Final = np.int64(Reason.PRICE_EXCEEDS_CURRENT_PRICE_BAND)
RATE_LIMIT: Final = np.int64(Reason.RATE_LIMIT)
OPEN_ORDER_LIMIT: Final = np.int64(Reason.OPEN_ORDER_LIMIT)
POSITION_LIMIT: Final = np.int64(Reason.POSITION_LIMIT)
ACCOUNT_BLOCKED: Final = np.int64(Reason.ACCOUNT_BLOCKED)
CAPACITY: Final = np.int64(Reason.CAPACITY)


@compiled_inline
def mark_balance(state: Any, slot: Any) -> None:
    mark(state.dirty, state.first_pages[arrays.BALANCES_PAGES] + (slot >> _BITS_64))


@compiled_inline
def mark_position(state: Any, slot: Any) -> None:
    mark(state.dirty, state.first_pages[arrays.POSITIONS_PAGES] + (slot >> _BITS_64))


@compiled
def find_balance(state: Any, account: Any, asset: Any) -> Any:
    """Slot of an account's balance of an asset, a new one if there is none; -1 if the column is full."""
    key = np.int64(account) << 32 | np.int64(asset)
    slot = id_index.find(state.balance_index, state.balances, key)
    if slot < 0:
        slot = state.meta[arrays.BALANCES]
        if slot >= state.balances_length:
            return np.int64(-1)
        state.meta[arrays.BALANCES] = slot + 1
        state.balances[slot].id = key
        id_index.insert(state.balance_index, key, slot)
        mark_balance(state, slot)
    return slot


@compiled
def find_position(state: Any, account: Any, symbol: Any) -> Any:
    """Slot of an account's position in an instrument, a new one if there is none; -1 if a column is full."""
    owner = state.accounts[account]
    if owner.recent >> 32 == symbol + 1:
        return owner.recent & 0xFFFFFFFF
    key = np.int64(account) << 32 | np.int64(symbol)
    slot = id_index.find(state.position_index, state.positions, key)
    if slot < 0:
        slot = state.meta[arrays.POSITIONS]
        base = find_balance(state, account, state.symbols[symbol].base_asset)
        quote = find_balance(state, account, state.symbols[symbol].quote_asset)
        if slot >= state.positions_length or base < 0 or quote < 0:
            return np.int64(-1)
        state.meta[arrays.POSITIONS] = slot + 1
        state.positions[slot].id = key
        state.positions[slot].base = base
        state.positions[slot].quote = quote
        id_index.insert(state.position_index, key, slot)
        mark_position(state, slot)
    owner.recent = (symbol + 1) << 32 | slot
    return slot


@compiled_inline
def _part(amount: Any, ppm: Any) -> Any:
    """``ppm`` parts per million of an amount, without overflow."""
    return amount // PPM * ppm + amount % PPM * ppm // PPM


@compiled
def value_position(state: Any, slot: Any, symbol: Any) -> None:
    """Bring a MARGIN position's value and margins, and their sums in its balance, up to date."""
    position = state.positions[slot]
    instrument = state.symbols[symbol]
    balance = state.balances[position.quote]
    unit = instrument.mark_price * instrument.quote_per_tick
    largest = max(abs(position.quantity + position.open_buy), abs(position.quantity - position.open_sell))
    value = position.quantity * unit
    initial = _part(largest * unit, instrument.initial_margin_ppm)
    maintenance = _part(abs(value), instrument.maintenance_margin_ppm)
    balance.value += value - position.value
    balance.initial += initial - position.initial
    balance.maintenance += maintenance - position.maintenance
    position.value = value
    position.initial = initial
    position.maintenance = maintenance
    mark_balance(state, np.int64(position.quote))


@compiled_inline
def reserve_unit(state: Any, order: Any, slot: Any) -> Any:
    """Units of the quote asset that a SPOT buy reserves per open lot."""
    price = order.price
    if order.flags & HAS_EXTRA and state.extras[slot].reserve_price > 0:
        price = state.extras[slot].reserve_price
    instrument = state.symbols[order.symbol]
    return price * instrument.quote_per_tick + instrument.taker_fee


@compiled
def market_cost(state: Any, symbol: Any, side: Any, quantity: Any) -> Any:
    """(cost in units of the quote asset, taker fees included, lots there) of taking up to ``quantity`` lots from the
    book; the cost is MAX_NOTIONAL if it does not fit."""
    instrument = state.symbols[symbol]
    number = np.int64(state.sides[symbol * SIDES + 1 - side].best)
    left = quantity
    cost = np.int64(0)
    while left > 0 and number != 0:
        level = state.levels[number]
        taken = min(left, level.shown + level.hidden)
        if float(taken) * (float(level.price) * instrument.quote_per_tick + instrument.taker_fee) > MAX_NOTIONAL_FLOAT:
            return np.int64(MAX_NOTIONAL), quantity - left
        cost += taken * (level.price * instrument.quote_per_tick + instrument.taker_fee)
        if cost > MAX_NOTIONAL:
            return np.int64(MAX_NOTIONAL), quantity - left
        left -= taken
        number = next_level(state, number)
    return cost, quantity - left


@compiled_inline
def outside_band(instrument: Any, price: Any, side: Any, ppm: Any) -> Any:
    """Whether a buy above or a sell below lies beyond the band around the reference price."""
    reference = instrument.last_price if instrument.last_price > 0 else instrument.reference_price
    if ppm == 0 or reference == 0:
        return False
    width = _part(reference, ppm)
    if side == BUY:
        return price > reference + width
    return price < reference - width


@compiled
def reserve(state: Any, slot: Any, lots: Any) -> Any:
    """Reserve for ``lots`` more lots of a CHECKED order; `Reason.NONE`, or why not and nothing changes."""
    order = state.orders[slot]
    symbol = np.int64(order.symbol)
    account = state.accounts[order.account]
    instrument = state.symbols[symbol]
    place = find_position(state, np.int64(order.account), symbol)
    if place < 0:
        return CAPACITY
    position = state.positions[place]
    side = np.int64(order.side)
    if account.maximum_position > 0:
        if side == BUY and position.quantity + position.open_buy + lots > account.maximum_position:
            return POSITION_LIMIT
        if side != BUY and position.quantity - position.open_sell - lots < -account.maximum_position:
            return POSITION_LIMIT
    if account.risk == MARGIN:
        mark_price = instrument.mark_price
        if mark_price == 0:
            mark_price = max(order.price, instrument.last_price, instrument.reference_price)
        open_buy = position.open_buy + (lots if side == BUY else 0)
        open_sell = position.open_sell + (lots if side != BUY else 0)
        unit = mark_price * instrument.quote_per_tick
        largest = max(abs(position.quantity + open_buy), abs(position.quantity - open_sell))
        if float(largest) * float(mark_price) * float(instrument.quote_per_tick) > MAX_NOTIONAL_FLOAT:
            return NOTIONAL_EXCEEDS
        raised = _part(largest * unit, instrument.initial_margin_ppm) - position.initial
        balance = state.balances[position.quote]
        fees = lots * instrument.taker_fee
        if raised > 0 and balance.available + balance.value - fees < balance.initial + raised:
            return INSUFFICIENT_FUNDS
        if instrument.mark_price != mark_price:
            instrument.mark_price = mark_price
            mark(state.dirty, state.first_pages[arrays.SYMBOLS_PAGES] + (symbol >> _SYMBOL_BITS))
        position.open_buy = open_buy
        position.open_sell = open_sell
        value_position(state, place, symbol)
    elif side == BUY:
        amount = np.int64(0)
        if order.order_type == MARKET:
            amount, _ = market_cost(state, symbol, side, lots)
        else:
            amount = lots * reserve_unit(state, order, slot)
        balance = state.balances[position.quote]
        if amount > balance.available:
            return INSUFFICIENT_FUNDS
        balance.available -= amount
        balance.held += amount
        if order.order_type == MARKET:
            state.extras[slot].reserved = amount
        position.open_buy += lots
        mark_balance(state, np.int64(position.quote))
    else:
        if float(lots) * instrument.base_per_lot > MAX_NOTIONAL_FLOAT:
            return NOTIONAL_EXCEEDS
        amount = lots * instrument.base_per_lot
        balance = state.balances[position.base]
        if amount > balance.available:
            return INSUFFICIENT_FUNDS
        balance.available -= amount
        balance.held += amount
        position.open_sell += lots
        mark_balance(state, np.int64(position.base))
    mark_position(state, place)
    return NONE


@compiled
def move_reserve(state: Any, slot: Any, price: Any, reserve_price: Any, quantity: Any) -> Any:
    """Reserve for a SPOT order's new price, reserve price and quantity instead of its present ones; `Reason.NONE`, or
    why not and nothing changes."""
    order = state.orders[slot]
    symbol = np.int64(order.symbol)
    account = state.accounts[order.account]
    instrument = state.symbols[symbol]
    place = find_position(state, np.int64(order.account), symbol)
    position = state.positions[place]
    more = quantity - order.leaves
    limited = more > 0 and account.maximum_position > 0
    if order.side == BUY:
        if limited and position.quantity + position.open_buy + more > account.maximum_position:
            return POSITION_LIMIT
        at = reserve_price if reserve_price > 0 else price
        amount = quantity * (at * instrument.quote_per_tick + instrument.taker_fee)
        amount -= order.leaves * reserve_unit(state, order, slot)
        purse = np.int64(position.quote)
    else:
        if limited and position.quantity - position.open_sell - more < -account.maximum_position:
            return POSITION_LIMIT
        if float(quantity) * instrument.base_per_lot > MAX_NOTIONAL_FLOAT:
            return NOTIONAL_EXCEEDS
        amount = more * instrument.base_per_lot
        purse = np.int64(position.base)
    balance = state.balances[purse]
    if amount > balance.available:
        return INSUFFICIENT_FUNDS
    balance.available -= amount
    balance.held += amount
    if order.side == BUY:
        position.open_buy += more
    else:
        position.open_sell += more
    mark_balance(state, purse)
    mark_position(state, place)
    return NONE


@compiled
def release(state: Any, slot: Any, lots: Any, done: Any) -> None:
    """Return the reserve of ``lots`` lots of a CHECKED order that will not trade; ``done`` ends the order."""
    order = state.orders[slot]
    symbol = np.int64(order.symbol)
    place = find_position(state, np.int64(order.account), symbol)
    position = state.positions[place]
    account = state.accounts[order.account]
    if order.side == BUY:
        position.open_buy -= lots
    else:
        position.open_sell -= lots
    if account.risk == MARGIN:
        value_position(state, place, symbol)
    elif order.side == BUY:
        amount = np.int64(0)
        if order.order_type == MARKET:
            amount = state.extras[slot].reserved
            state.extras[slot].reserved = 0
        else:
            amount = lots * reserve_unit(state, order, slot)
        balance = state.balances[position.quote]
        balance.held -= amount
        balance.available += amount
        mark_balance(state, np.int64(position.quote))
    else:
        amount = lots * state.symbols[symbol].base_per_lot
        balance = state.balances[position.base]
        balance.held -= amount
        balance.available += amount
        mark_balance(state, np.int64(position.base))
    mark_position(state, place)
    if done:
        account.open_orders -= 1
        mark(state.dirty, state.first_pages[arrays.ACCOUNTS_PAGES] + (np.int64(order.account) >> (_BITS_64 - 1)))


@compiled
def settle(state: Any, slot: Any, lots: Any, price: Any, is_taker: Any) -> None:
    """Settle ``lots`` lots of a CHECKED order that traded at ``price``."""
    order = state.orders[slot]
    symbol = np.int64(order.symbol)
    instrument = state.symbols[symbol]
    place = find_position(state, np.int64(order.account), symbol)
    position = state.positions[place]
    account = state.accounts[order.account]
    fee = lots * (instrument.taker_fee if is_taker else instrument.maker_fee)
    worth = lots * price * instrument.quote_per_tick
    quote = state.balances[position.quote]
    if account.risk == MARGIN:
        if order.side == BUY:
            position.open_buy -= lots
            position.quantity += lots
            quote.available -= worth + fee
        else:
            position.open_sell -= lots
            position.quantity -= lots
            quote.available += worth - fee
        value_position(state, place, symbol)
    elif order.side == BUY:
        position.open_buy -= lots
        position.quantity += lots
        if order.order_type == MARKET:
            held = worth + fee
            state.extras[slot].reserved -= held
        else:
            held = lots * reserve_unit(state, order, slot)
        quote.held -= held
        quote.available += held - worth - fee
        base = state.balances[position.base]
        base.available += lots * instrument.base_per_lot
        mark_balance(state, np.int64(position.base))
    else:
        position.open_sell -= lots
        position.quantity -= lots
        base = state.balances[position.base]
        base.held -= lots * instrument.base_per_lot
        quote.available += worth - fee
        mark_balance(state, np.int64(position.base))
    if fee != 0:
        fees = find_balance(state, FEES_ACCOUNT, instrument.quote_asset)
        if fees >= 0:
            state.balances[fees].fees += fee
            mark_balance(state, fees)
        else:
            state.work[arrays.BROKEN] = arrays.FEE_LOST
    mark_balance(state, np.int64(position.quote))
    mark_position(state, place)


@compiled
def count_message(record: Any, limit: Any, interval: Any, time: Any) -> Any:
    """Count a message in a record's window of ``interval`` microseconds; False if it is beyond the limit."""
    if time - record.window_start >= interval:
        record.window_start = time
        record.window_count = 0
    if record.window_count >= limit:
        return False
    record.window_count += 1
    return True


@compiled
def check_limits(state: Any, account_slot: Any, symbol: Any, side: Any, price: Any, quantity: Any, reserve: Any) -> Any:
    """Price band, quantity and notional limits of instrument and account; ``price`` 0 is a market order's."""
    instrument = state.symbols[symbol]
    account = state.accounts[account_slot]
    if price > 0 and outside_band(instrument, price, side, instrument.order_band_ppm):
        return OUTSIDE_BAND
    if instrument.maximum_quantity > 0 and quantity > instrument.maximum_quantity:
        return ORDER_EXCEEDS
    checked = account.risk != 0
    if checked and account.maximum_quantity > 0 and quantity > account.maximum_quantity:
        return ORDER_EXCEEDS
    if not checked and instrument.maximum_notional == 0:
        return NONE
    valued = max(price, reserve)
    if valued == 0:
        valued = max(instrument.last_price, instrument.reference_price)
    if (float(valued) * instrument.quote_per_tick + instrument.taker_fee) * float(quantity) > MAX_NOTIONAL_FLOAT:
        return NOTIONAL_EXCEEDS
    notional = valued * instrument.quote_per_tick * quantity
    if instrument.maximum_notional > 0 and notional > instrument.maximum_notional:
        return NOTIONAL_EXCEEDS
    if checked and account.maximum_notional > 0 and notional > account.maximum_notional:
        return NOTIONAL_EXCEEDS
    return NONE


@compiled
def admit(state: Any, slot: Any, time: Any) -> Any:
    """Rate limit, open-order cap, position limit and reserve of a new CHECKED order; counts and reserves it."""
    order = state.orders[slot]
    account = state.accounts[order.account]
    if account.risk == VENUE:
        return ACCOUNT_BLOCKED
    mark(state.dirty, state.first_pages[arrays.ACCOUNTS_PAGES] + (np.int64(order.account) >> (_BITS_64 - 1)))
    if account.rate_limit > 0 and not count_message(account, account.rate_limit, account.rate_interval, time):
        return RATE_LIMIT
    if account.maximum_open_orders > 0 and account.open_orders >= account.maximum_open_orders:
        return OPEN_ORDER_LIMIT
    reason = reserve(state, slot, order.leaves)
    if reason == NONE:
        account.open_orders += 1
    return reason
