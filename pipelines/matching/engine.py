"""The matching's compiled loop: the rows of a command frame in, the rows of reports and market data out.

`apply_rows` handles one event after the other; nothing of a refused event stays. An order that enters the market - new,
amended, a stop that was triggered, a liquidation - goes through one matching loop, and before the next event every stop
that its trades reached is triggered, one at a time, until none is left: buy stops lowest price first, then sell stops
highest price first, oldest first at one price.

Conventions: slots, levels and nodes are numbered from 1, 0 is none; symbols and accounts from 0, -1 is none; BUY is 0
and SELL is 1, so that the opposite side of a book is 1 - side. Numba turns uint64 mixed with int64 into floating
point, so the two never meet in an expression.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines import expiry
from pipelines.compiled import compiled, compiled_inline, prefetch
from pipelines.matching import arrays, id_index
from pipelines.matching.book import (
    RESPONSE_TO_AMEND,
    RESPONSE_TO_CANCEL,
    cancel_reject,
    execution,
    free_order,
    intern,
    link,
    mark_account,
    mark_extra,
    mark_order,
    mark_symbol,
    new_order_slot,
    order_report,
    shown_quantity,
    take_off,
    tell_order,
    touch,
    unlink,
)
from pipelines.matching.controls import (
    account_of,
    admin_report,
    change_status,
    define_account,
    define_symbol,
    deposit,
    halt,
    kill_switch,
    limit_session,
    mark_price,
    mass_cancel,
    mass_cancel_report,
    open_account,
    open_symbol,
    symbol_of,
    write_trade,
)
from pipelines.matching.ladder import (
    ASKS,
    BIDS,
    BUY_STOPS,
    LEVELS,
    SELL_STOPS,
    SIDES,
    find_level,
    next_level,
    remove_level,
)
from pipelines.matching.read_ahead import FROM_ORDERS, STAGES_AHEAD, look_ahead
from pipelines.matching.records import (
    CHECKED,
    HAS_EXTRA,
    LIVE,
    MAX_PRICE,
    MAX_QUANTITY,
    PREVENTION_SHIFT,
    ROUTED,
    ExecType,
    OrderStatus,
    OrderType,
    Reason,
    SelfTradePrevention,
    Side,
    TimeInForce,
    TradingStatus,
)
from pipelines.matching.risk import (
    MARGIN,
    admit,
    check_limits,
    count_message,
    move_reserve,
    release,
    reserve,
    settle,
)
from pipelines.matching.routed import (
    amend_routed,
    enter_routed,
    link_routed,
    request_cancel,
    venue_report,
)
from pipelines.pages import mark

__all__ = ["MAX_SLICES", "apply_rows", "intern_empty", "rebuild", "reindex"]

MAX_SLICES: Final = 1_000
"""An iceberg shows at least this part of itself, so that one order cannot make any number of trades."""
NO_PRICE: Final = 1 << 60
PUBLISHED_AHEAD: Final = 8
"""Symbols between one whose best levels are brought into the cache and the one that is published."""

# kinds of events, in the order of the schema's union
NEW_ORDER: Final = 0
CANCEL_ORDER: Final = 1
AMEND_ORDER: Final = 2
MASS_CANCEL: Final = 3
SYMBOL_DEFINITION: Final = 4
ACCOUNT_DEFINITION: Final = 5
DEPOSIT: Final = 6
SECURITY_TRADING_STATUS: Final = 7
KILL_SWITCH: Final = 8
MARK_PRICE: Final = 9
SESSION_LIMIT: Final = 10
VENUE_REPORT: Final = 11

LENGTH: Final = 0xFFFFFFFF
"""Bits of a text's word that are its length."""
POST_ONLY: Final = 8
"""Bit of an order's flags."""

BUY: Final = np.int64(Side.BUY)
SELL: Final = np.int64(Side.SELL)
LIMIT: Final = np.int64(OrderType.LIMIT)
MARKET: Final = np.int64(OrderType.MARKET)
STOP: Final = np.int64(OrderType.STOP)
STOP_LIMIT: Final = np.int64(OrderType.STOP_LIMIT)
GTD: Final = np.int64(TimeInForce.GTD)
IOC: Final = np.int64(TimeInForce.IOC)
FOK: Final = np.int64(TimeInForce.FOK)
ACCOUNT_DEFAULT: Final = np.int64(SelfTradePrevention.ACCOUNT_DEFAULT)
PREVENTION_NONE: Final = np.int64(SelfTradePrevention.NONE)
CANCEL_NEWEST: Final = np.int64(SelfTradePrevention.CANCEL_NEWEST)
CANCEL_OLDEST: Final = np.int64(SelfTradePrevention.CANCEL_OLDEST)
CANCEL_BOTH: Final = np.int64(SelfTradePrevention.CANCEL_BOTH)
READY: Final = np.int64(TradingStatus.READY_TO_TRADE)
PRE_OPEN: Final = np.int64(TradingStatus.PRE_OPEN)
HALT: Final = np.int64(TradingStatus.TRADING_HALT)
CLOSED: Final = np.int64(TradingStatus.NOT_AVAILABLE_FOR_TRADING)

NEW: Final = np.int64(ExecType.NEW)
CANCELED: Final = np.int64(ExecType.CANCELED)
REPLACED: Final = np.int64(ExecType.REPLACED)
REJECTED: Final = np.int64(ExecType.REJECTED)
EXPIRED: Final = np.int64(ExecType.EXPIRED)
TRIGGERED: Final = np.int64(ExecType.TRIGGERED)
STATUS_NEW: Final = np.int64(OrderStatus.NEW)
STATUS_CANCELED: Final = np.int64(OrderStatus.CANCELED)
STATUS_REPLACED: Final = np.int64(OrderStatus.REPLACED)
STATUS_REJECTED: Final = np.int64(OrderStatus.REJECTED)
STATUS_EXPIRED: Final = np.int64(OrderStatus.EXPIRED)

NONE: Final = np.int64(Reason.NONE)
UNKNOWN_SYMBOL: Final = np.int64(Reason.UNKNOWN_SYMBOL)
UNKNOWN_ACCOUNT: Final = np.int64(Reason.UNKNOWN_ACCOUNT)
UNKNOWN_ORDER: Final = np.int64(Reason.UNKNOWN_ORDER)
DUPLICATE_ORDER: Final = np.int64(Reason.DUPLICATE_ORDER)
EXCHANGE_CLOSED: Final = np.int64(Reason.EXCHANGE_CLOSED)
TRADING_HALT: Final = np.int64(Reason.TRADING_HALT)
INCORRECT_QUANTITY: Final = np.int64(Reason.INCORRECT_QUANTITY)
INVALID_PRICE: Final = np.int64(Reason.INVALID_PRICE)
INVALID_PRICE_INCREMENT: Final = np.int64(Reason.INVALID_PRICE_INCREMENT)
UNSUPPORTED: Final = np.int64(Reason.UNSUPPORTED_ORDER_CHARACTERISTIC)
SESSION_THROTTLED: Final = np.int64(Reason.SESSION_THROTTLED)
RATE_LIMIT: Final = np.int64(Reason.RATE_LIMIT)
ACCOUNT_BLOCKED: Final = np.int64(Reason.ACCOUNT_BLOCKED)
POST_ONLY_WOULD_TRADE: Final = np.int64(Reason.POST_ONLY_WOULD_TRADE)
EXPIRE_TIME_PASSED: Final = np.int64(Reason.EXPIRE_TIME_PASSED)
INSUFFICIENT_FUNDS: Final = np.int64(Reason.INSUFFICIENT_FUNDS)
CAPACITY: Final = np.int64(Reason.CAPACITY)
USER_REQUEST: Final = np.int64(Reason.USER_REQUEST)
IMMEDIATE_OR_CANCEL: Final = np.int64(Reason.IMMEDIATE_OR_CANCEL)
FILL_OR_KILL: Final = np.int64(Reason.FILL_OR_KILL)
MINIMUM_QUANTITY: Final = np.int64(Reason.MINIMUM_QUANTITY)
SELF_TRADE: Final = np.int64(Reason.SELF_TRADE_PREVENTION)
GOOD_TILL_DATE: Final = np.int64(Reason.GOOD_TILL_DATE)
VOLATILITY_HALT: Final = np.int64(Reason.VOLATILITY_HALT)
REQUEST_PENDING: Final = np.int64(Reason.REQUEST_PENDING)


@compiled
def _throttled(state: Any, session: Any, time: Any) -> Any:
    """Whether a session sends more than it may; counts the message."""
    slot = id_index.find(state.session_index, state.sessions, session)
    if slot < 0 or state.sessions[slot].maximum_messages == 0:
        return False
    mark(state.dirty, state.first_pages[arrays.SESSIONS_PAGES] + (slot >> 8))
    return not count_message(
        state.sessions[slot], state.sessions[slot].maximum_messages, state.sessions[slot].interval, time
    )


@compiled
def _reject(state: Any, given: Any, command: Any, account: Any, symbol: Any, reason: Any) -> None:
    """Write the report of a refused NewOrder."""
    execution(
        state, given, REJECTED, STATUS_REJECTED, command.order_id,
        state.accounts[account].word if account >= 0 else np.int64(0),
        state.symbols[symbol].word if symbol >= 0 else np.int64(0),
        command.side, command.price, command.quantity, np.int64(0), np.int64(0), reason,
    )  # fmt: skip


@compiled
def _check_special(command: Any, clock: Any) -> Any:
    """The fields that only some orders have; `Reason.NONE` if they fit together."""
    order_type = command.order_type
    in_force = command.time_in_force
    waits = order_type >= STOP
    if command.destination & LENGTH != 0 and (
        waits
        or command.display_quantity != 0
        or command.minimum_quantity != 0
        or command.post_only != 0
        or command.budget != 0
    ):
        return UNSUPPORTED
    if command.stop_price != 0 and not waits:
        return UNSUPPORTED
    if waits and not 1 <= command.stop_price <= MAX_PRICE:
        return INVALID_PRICE
    if command.display_quantity < 0 or command.minimum_quantity < 0 or command.minimum_quantity > command.quantity:
        return INCORRECT_QUANTITY
    if command.minimum_quantity > 0 and waits:
        return UNSUPPORTED
    if 0 < command.display_quantity < command.quantity:
        if order_type == MARKET or order_type == STOP or in_force >= IOC:  # noqa: SIM109
            return UNSUPPORTED
        if command.display_quantity * MAX_SLICES < command.quantity:
            return INCORRECT_QUANTITY
    if command.post_only != 0 and (order_type != LIMIT or in_force >= IOC):
        return UNSUPPORTED
    if in_force == GTD:
        if command.expire_at <= clock:
            return EXPIRE_TIME_PASSED
    elif command.expire_at != 0:
        return UNSUPPORTED
    if command.budget != 0 and (order_type != MARKET or in_force != FOK or command.budget < 0):
        return UNSUPPORTED
    if command.reserve_price != 0:
        if not 1 <= command.reserve_price <= MAX_PRICE:
            return INVALID_PRICE
        if command.side == BUY and command.reserve_price < command.price:
            return INVALID_PRICE
    return NONE


@compiled_inline
def _crosses(state: Any, symbol: Any, side: Any, price: Any) -> Any:
    """Whether a limit order would trade at once."""
    opposite = state.sides[symbol * SIDES + 1 - side]
    if opposite.best == 0:
        return False
    ahead = opposite.best_price - price
    return ahead <= 0 if side == BUY else ahead >= 0


@compiled
def _available(state: Any, slot: Any, limit: Any, wanted: Any) -> Any:
    """(lots, cost in ticks x lots) that an incoming order can trade at once within its limit, counted up to
    ``wanted``, as far as self-trade prevention lets it."""
    order = state.orders[slot]
    side = np.int64(order.side)
    prevention = np.int64(order.flags) >> PREVENTION_SHIFT
    number = np.int64(state.sides[np.int64(order.symbol) * SIDES + 1 - side].best)
    found = np.int64(0)
    cost = np.int64(0)
    while number != 0 and found < wanted:
        level = state.levels[number]
        if (level.price > limit) if side == BUY else (level.price < limit):
            break
        own = False
        here = level.shown + level.hidden
        if prevention > PREVENTION_NONE:
            here = np.int64(0)
            resting = np.int64(level.head)
            while resting != 0:
                if state.orders[resting].account == order.account:
                    own = True
                    if prevention != CANCEL_OLDEST:
                        break
                else:
                    here += state.orders[resting].leaves
                resting = np.int64(state.orders[resting].next)
        taken = min(here, wanted - found)
        found += taken
        if float(cost) + float(taken) * float(level.price) > 4e18:
            cost = np.int64(NO_PRICE) << 2
        else:
            cost += taken * level.price
        if own and prevention != CANCEL_OLDEST:
            break
        number = next_level(state, number)
    return found, cost


@compiled
def _enter(state: Any, given: Any, command: Any, clock: Any) -> Any:
    """Admit a NewOrder: (slot of the order that now enters the market, symbol).

    Slot 0 if it was refused (symbol -1) or if it is a stop, which waits in the book.
    """
    time = command.transact_time if command.transact_time > 0 else clock
    nothing = np.int64(0)
    if command.session != 0 and _throttled(state, command.session, time):
        _reject(state, given, command, np.int64(-1), np.int64(-1), SESSION_THROTTLED)
        return nothing, np.int64(-1)
    symbol = symbol_of(state, command.symbol)
    if symbol < 0:
        symbol = open_symbol(state, command.symbol)
    account = account_of(state, command.account)
    if account < 0 and symbol >= 0:
        account = open_account(state, command.account)
    if symbol < 0 or account < 0:
        _reject(state, given, command, account, symbol, UNKNOWN_SYMBOL if symbol < 0 else UNKNOWN_ACCOUNT)
        return nothing, np.int64(-1)
    instrument = state.symbols[symbol]
    owner = state.accounts[account]
    order_type = command.order_type
    in_force = command.time_in_force
    quantity = command.quantity
    price = command.price
    side = command.side
    # The fields that a plain order leaves alone, in one number.
    special = (
        command.stop_price
        | command.display_quantity
        | command.minimum_quantity
        | command.post_only
        | command.expire_at
        | command.budget
        | command.reserve_price
        | command.destination & LENGTH
    )
    reason = np.int64(NONE)
    if owner.risk != 0 and instrument.defined == 0:
        # there is nothing that it could reserve
        reason = np.int64(UNKNOWN_SYMBOL)
    elif instrument.status == CLOSED:
        reason = np.int64(EXCHANGE_CLOSED)
    elif id_index.find(state.order_index, state.orders, command.order_id) >= 0:
        reason = np.int64(DUPLICATE_ORDER)
    elif instrument.status == HALT:
        reason = np.int64(TRADING_HALT)
    elif owner.blocked != 0:
        reason = np.int64(ACCOUNT_BLOCKED)
    elif quantity < 1 or quantity > MAX_QUANTITY or (instrument.lot_size > 1 and quantity % instrument.lot_size != 0):
        reason = np.int64(INCORRECT_QUANTITY)
    elif (order_type == LIMIT or order_type == STOP_LIMIT) and (price < 1 or price > MAX_PRICE):  # noqa: SIM109
        reason = np.int64(INVALID_PRICE)
    elif instrument.tick_size > 1 and (
        price % instrument.tick_size != 0 or command.stop_price % instrument.tick_size != 0
    ):
        reason = np.int64(INVALID_PRICE_INCREMENT)
    elif special != 0 or order_type >= STOP or in_force == GTD:
        reason = np.int64(_check_special(command, clock))
    immediate = order_type == MARKET or in_force >= IOC or command.post_only != 0 or command.minimum_quantity != 0
    if reason == NONE and immediate and instrument.status == PRE_OPEN:
        reason = np.int64(UNSUPPORTED)
    if order_type == MARKET or order_type == STOP:  # noqa: SIM109 - a tuple test compiles to slower code
        price = nothing
    if reason == NONE and (instrument.checks != 0 or owner.risk != 0):
        reason = np.int64(check_limits(state, account, symbol, side, price, quantity, command.reserve_price))
    if reason == NONE and command.post_only != 0 and _crosses(state, symbol, side, price):
        reason = np.int64(POST_ONLY_WOULD_TRADE)
    if reason == NONE and state.meta[arrays.LIVE_ORDERS] >= state.orders_length - 1:
        reason = np.int64(CAPACITY)
    is_routed = special != 0 and command.destination & LENGTH != 0
    if reason == NONE and is_routed:
        venue = account_of(state, command.destination)
        reason = np.int64(enter_routed(state, given, command, account, symbol, venue, time))
    if reason != NONE:
        _reject(state, given, command, account, symbol, reason)
    if reason != NONE or is_routed:
        return nothing, np.int64(-1)

    slot = new_order_slot(state)
    order = state.orders[slot]
    order.id = command.order_id
    order.price = price
    order.leaves = quantity
    order.executed = 0
    order.level = 0
    order.account = account
    order.symbol = symbol
    order.side = side
    order.order_type = order_type
    order.time_in_force = in_force
    prevention = command.self_trade_prevention
    if prevention == ACCOUNT_DEFAULT:
        prevention = owner.prevention
    flags = LIVE | prevention << PREVENTION_SHIFT
    if special != 0 or (owner.risk != 0 and order_type == MARKET):
        extra = state.extras[slot]
        display = command.display_quantity
        if display >= quantity:
            display = nothing
        extra.shown = display
        extra.display_quantity = display
        extra.stop_price = command.stop_price
        extra.expire_at = command.expire_at
        extra.reserve_price = command.reserve_price
        extra.reserved = 0
        flags |= HAS_EXTRA
        if command.post_only != 0:
            flags |= POST_ONLY
        mark_extra(state, slot)
    order.flags = flags
    mark_order(state, slot)
    if owner.risk != 0:
        order.flags = flags | CHECKED
        reason = np.int64(INSUFFICIENT_FUNDS)
        # a waiting stop without a limit needs a price to reserve at
        if not (order_type == STOP and side == BUY and owner.risk != MARGIN and command.reserve_price == 0):
            reason = np.int64(admit(state, slot, time))
        if reason != NONE:
            free_order(state, slot)
            _reject(state, given, command, account, symbol, reason)
            return nothing, np.int64(-1)
    execution(
        state, given, NEW, STATUS_NEW, command.order_id, owner.word,
        instrument.word, side, price, quantity, quantity, nothing, NONE,
    )  # fmt: skip
    if in_force == GTD:
        state.work[arrays.EXPIRIES] = expiry.push(
            state.expiries, state.work[arrays.EXPIRIES], command.expire_at, command.order_id
        )
    if order_type >= STOP:
        id_index.insert(state.order_index, order.id, slot)
        link(state, slot, symbol * SIDES + BUY_STOPS + side, command.stop_price)
        return nothing, symbol
    return slot, symbol


@compiled
def _belongs(state: Any, slot: Any, account_word: Any, symbol_word: Any) -> Any:
    """Whether an order is of the account and of the symbol that a request names."""
    order = state.orders[slot]
    if account_word & LENGTH != 0 and account_of(state, account_word) != np.int64(order.account):
        return False
    return symbol_word & LENGTH == 0 or symbol_of(state, symbol_word) == np.int64(order.symbol)


@compiled_inline
def _named(state: Any, order_id: Any, account_word: Any, symbol_word: Any) -> Any:
    """Slot of the order that a request names, -1 if there is no such order."""
    slot = id_index.find(state.order_index, state.orders, order_id)
    is_told = (account_word | symbol_word) & LENGTH != 0
    if slot >= 0 and is_told and not _belongs(state, slot, account_word, symbol_word):
        slot = np.int64(-1)
    return slot


@compiled
def _amend_limits(state: Any, slot: Any, price: Any, quantity: Any, time: Any) -> Any:
    """The limits and the new reserve of an amendment, made if they allow it; `Reason.NONE` or why not.

    The order's price and quantity are those of before afterwards, its reserve is that of the amended order.
    """
    order = state.orders[slot]
    reserve_price = np.int64(0)
    if order.flags & HAS_EXTRA:
        reserve_price = state.extras[slot].reserve_price
    raised = reserve_price
    if 0 < reserve_price < price:
        raised = price
    reason = np.int64(
        check_limits(
            state, np.int64(order.account), np.int64(order.symbol), np.int64(order.side), price, quantity, raised
        )
    )
    if reason != NONE or order.flags & CHECKED == 0:
        return reason
    account = state.accounts[order.account]
    if account.rate_limit > 0:
        mark_account(state, np.int64(order.account))
        if not count_message(account, account.rate_limit, account.rate_interval, time):
            return np.int64(RATE_LIMIT)
    if account.risk != MARGIN:
        reason = np.int64(move_reserve(state, slot, price, raised, quantity))
        if reason == NONE and raised != reserve_price:
            state.extras[slot].reserve_price = raised
            mark_extra(state, slot)
        return reason
    before = order.price
    release(state, slot, order.leaves, False)
    order.price = price
    if raised != reserve_price:
        state.extras[slot].reserve_price = raised
        mark_extra(state, slot)
    reason = np.int64(reserve(state, slot, quantity))
    order.price = before
    if reason != NONE:
        if raised != reserve_price:
            state.extras[slot].reserve_price = reserve_price
        again = reserve(state, slot, order.leaves)
        if again != NONE:
            # an account over its position limit keeps what it had
            _restore_reserve(state, slot)
    return reason


@compiled
def _restore_reserve(state: Any, slot: Any) -> None:
    """Reserve again what was released a moment ago, whatever limits say now."""
    order = state.orders[slot]
    account = state.accounts[order.account]
    limit = account.maximum_position
    account.maximum_position = 0
    if reserve(state, slot, order.leaves) != NONE:
        state.work[arrays.BROKEN] = arrays.RESERVE_LOST
    account.maximum_position = limit


@compiled
def _amend_stop(state: Any, given: Any, command: Any, slot: Any, price: Any, quantity: Any) -> None:
    """Amend a stop order that waits; limits are checked and the reserve is made."""
    order = state.orders[slot]
    extra = state.extras[slot]
    stop_price = command.stop_price if command.stop_price_is_set != 0 else extra.stop_price
    requeue = stop_price != extra.stop_price or price != order.price or quantity >= order.leaves
    if requeue:
        unlink(state, slot)
    else:
        level = state.levels[order.level]
        level.shown -= order.leaves - quantity
    order.price = price
    order.leaves = quantity
    extra.stop_price = stop_price
    if extra.display_quantity > 0:
        extra.display_quantity = min(extra.display_quantity, quantity)
        extra.shown = extra.display_quantity
    if requeue:
        link(state, slot, np.int64(order.symbol) * SIDES + BUY_STOPS + np.int64(order.side), stop_price)
    mark_order(state, slot)
    mark_extra(state, slot)
    order_report(state, given, REPLACED, STATUS_REPLACED, slot, quantity, quantity, NONE)


@compiled
def _amend(state: Any, given: Any, command: Any, clock: Any) -> Any:
    """Apply an AmendOrder: (slot of the order if it enters the market again, symbol); slot 0 and symbol -1 if not."""
    nothing = np.int64(0)
    time = command.transact_time if command.transact_time > 0 else clock
    if command.session != 0 and _throttled(state, command.session, time):
        cancel_reject(state, given, np.int64(0), command.order_id, RESPONSE_TO_AMEND, SESSION_THROTTLED)
        return nothing, np.int64(-1)
    slot = _named(state, command.order_id, command.account, command.symbol)
    if slot < 0:
        cancel_reject(state, given, np.int64(0), command.order_id, RESPONSE_TO_AMEND, UNKNOWN_ORDER)
        return nothing, np.int64(-1)
    order = state.orders[slot]
    if order.flags & ROUTED:
        amend_routed(state, given, command, slot, time)
        return nothing, np.int64(-1)
    symbol = np.int64(order.symbol)
    instrument = state.symbols[symbol]
    waits = order.order_type >= STOP
    price = command.price if command.price_is_set != 0 and order.order_type != STOP else order.price
    quantity = command.quantity if command.quantity_is_set != 0 else order.leaves
    reason = np.int64(NONE)
    if command.total_quantity_is_set != 0:
        quantity = command.total_quantity - order.executed
        if command.quantity_is_set != 0:
            reason = np.int64(UNSUPPORTED)
        elif quantity < 1:
            reason = np.int64(INCORRECT_QUANTITY)
    if reason != NONE:
        pass
    elif instrument.status == CLOSED:
        reason = np.int64(EXCHANGE_CLOSED)
    elif instrument.status == HALT:
        reason = np.int64(TRADING_HALT)
    elif state.accounts[order.account].blocked != 0:
        reason = np.int64(ACCOUNT_BLOCKED)
    elif quantity < 0 or quantity > MAX_QUANTITY:
        reason = np.int64(INCORRECT_QUANTITY)
    elif order.order_type != STOP and (price < 1 or price > MAX_PRICE):
        reason = np.int64(INVALID_PRICE)
    elif instrument.lot_size > 1 and quantity % instrument.lot_size != 0:
        reason = np.int64(INCORRECT_QUANTITY)
    elif instrument.tick_size > 1 and price % instrument.tick_size != 0:
        reason = np.int64(INVALID_PRICE_INCREMENT)
    elif command.stop_price_is_set != 0:
        if not waits:
            reason = np.int64(UNSUPPORTED)
        elif not 1 <= command.stop_price <= MAX_PRICE:
            reason = np.int64(INVALID_PRICE)
        elif command.stop_price % instrument.tick_size != 0:
            reason = np.int64(INVALID_PRICE_INCREMENT)
    if reason == NONE and order.flags & HAS_EXTRA:
        display = state.extras[slot].display_quantity
        if display > 0 and display * MAX_SLICES < quantity:
            reason = np.int64(INCORRECT_QUANTITY)
        may_not_trade = order.flags & POST_ONLY and quantity > 0 and instrument.status == READY
        if may_not_trade and _crosses(state, symbol, np.int64(order.side), price):
            reason = np.int64(POST_ONLY_WOULD_TRADE)
    if reason == NONE and quantity > 0 and (instrument.checks != 0 or order.flags & CHECKED):
        reason = np.int64(_amend_limits(state, slot, price, quantity, time))
    if reason != NONE:
        cancel_reject(state, given, slot, command.order_id, RESPONSE_TO_AMEND, reason)
        return nothing, np.int64(-1)
    if quantity == 0:
        take_off(state, given, slot, CANCELED, STATUS_CANCELED, USER_REQUEST)
        return nothing, np.int64(-1)
    if waits:
        _amend_stop(state, given, command, slot, price, quantity)
        return nothing, symbol
    keeps_place = price == order.price and quantity < order.leaves
    if keeps_place:
        level = state.levels[order.level]
        touch(state, np.int64(order.level))
        shown = shown_quantity(state, order, slot)
        left = min(shown, quantity)
        level.shown -= shown - left
        level.hidden -= (order.leaves - shown) - (quantity - left)
        if order.flags & HAS_EXTRA and state.extras[slot].display_quantity > 0:
            state.extras[slot].shown = left
            mark_extra(state, slot)
        order.leaves = quantity
        mark_order(state, slot)
        if left != shown:
            tell_order(state, slot, np.int64(level.side), left)
    else:
        unlink(state, slot)
        order.price = price
        order.leaves = quantity
        if order.flags & HAS_EXTRA and state.extras[slot].display_quantity > 0:
            state.extras[slot].shown = min(state.extras[slot].display_quantity, quantity)
            mark_extra(state, slot)
    execution(
        state, given, REPLACED, STATUS_REPLACED, order.id, state.accounts[order.account].word,
        instrument.word, np.int64(order.side), price, quantity, quantity, order.executed, NONE,
    )  # fmt: skip
    if keeps_place:
        return nothing, np.int64(-1)
    return slot, symbol


@compiled
def _next_triggered(state: Any, given: Any, symbol: Any, low: Any, high: Any) -> Any:
    """Slot of a stop order that trades between ``low`` and ``high`` reach, taken from where it waited; 0 if none."""
    if state.symbols[symbol].status != READY:
        return np.int64(0)
    stops = state.sides[symbol * SIDES + BUY_STOPS]
    if stops.best == 0 or stops.best_price > high:
        stops = state.sides[symbol * SIDES + SELL_STOPS]
        if stops.best == 0 or stops.best_price < low:
            return np.int64(0)
    slot = np.int64(state.levels[stops.best].head)
    order = state.orders[slot]
    unlink(state, slot)
    if order.order_type == STOP_LIMIT:
        order.order_type = LIMIT
    elif order.flags & CHECKED and order.side == BUY and state.accounts[order.account].risk != MARGIN:
        # it may not cost more than was reserved
        order.order_type = LIMIT
        order.time_in_force = IOC
        order.price = state.extras[slot].reserve_price
    else:
        order.order_type = MARKET
    mark_order(state, slot)
    order_report(state, given, TRIGGERED, STATUS_NEW, slot, order.leaves, order.leaves, NONE)
    return slot


@compiled
def _prevent_self_trade(state: Any, given: Any, slot: Any, maker: Any, leaves: Any) -> Any:
    """An incoming order met one of its own account: (its open lots from now on, whether it ends)."""
    order = state.orders[slot]
    prevention = np.int64(order.flags) >> PREVENTION_SHIFT
    if prevention == CANCEL_NEWEST:
        return leaves, True
    if prevention == CANCEL_OLDEST or prevention == CANCEL_BOTH:  # noqa: SIM109
        take_off(state, given, maker, CANCELED, STATUS_CANCELED, SELF_TRADE)
        return leaves, prevention == CANCEL_BOTH
    resting = state.orders[maker]
    common = min(leaves, resting.leaves)
    if resting.leaves == common:
        take_off(state, given, maker, CANCELED, STATUS_CANCELED, SELF_TRADE)
    else:
        level = state.levels[resting.level]
        touch(state, np.int64(resting.level))
        shown = shown_quantity(state, resting, maker)
        left = min(shown, resting.leaves - common)
        level.shown -= shown - left
        level.hidden -= (resting.leaves - shown) - (resting.leaves - common - left)
        resting.leaves -= common
        if resting.flags & HAS_EXTRA and state.extras[maker].display_quantity > 0:
            state.extras[maker].shown = left
            mark_extra(state, maker)
        if left != shown:
            tell_order(state, maker, np.int64(level.side), left)
        if resting.flags & CHECKED:
            release(state, maker, common, False)
        mark_order(state, maker)
        order_report(state, given, REPLACED, STATUS_REPLACED, maker, resting.leaves, resting.leaves, SELF_TRADE)
    leaves -= common
    if leaves == 0:
        # the caller ends an order with nothing open without a report
        order_report(state, given, CANCELED, STATUS_CANCELED, slot, common, np.int64(0), SELF_TRADE)
    else:
        order_report(state, given, REPLACED, STATUS_REPLACED, slot, leaves, leaves, SELF_TRADE)
    if order.flags & CHECKED and order.order_type != MARKET:
        release(state, slot, common, False)
    elif order.flags & CHECKED:
        _release_market(state, slot, common)
    return leaves, False


@compiled
def _release_market(state: Any, slot: Any, lots: Any) -> None:
    """`release` for lots of a MARKET order that goes on: a buy's cash stays reserved until it ends."""
    reserved = state.extras[slot].reserved
    state.extras[slot].reserved = 0
    release(state, slot, lots, False)
    state.extras[slot].reserved = reserved


@compiled
def _expire(state: Any, clock: Any) -> None:
    """End the GTD orders whose time has come."""
    while state.work[arrays.EXPIRIES] > 0 and state.expiries[0, 0] <= clock:
        expires_at = state.expiries[0, 0]
        order_id, state.work[arrays.EXPIRIES] = expiry.pop(state.expiries, state.work[arrays.EXPIRIES])
        slot = id_index.find(state.order_index, state.orders, order_id)
        if slot >= 0 and _expires_at(state, slot) == expires_at:
            take_off(state, np.int64(-1), slot, EXPIRED, STATUS_EXPIRED, GOOD_TILL_DATE)


@compiled_inline
def _expires_at(state: Any, slot: Any) -> Any:
    """When an order ends, 0 if it does not."""
    order = state.orders[slot]
    return state.extras[slot].expire_at if order.flags & HAS_EXTRA else np.int64(0)


@compiled
def _publish(state: Any) -> Any:
    """Write what the frame changed: price levels in the order they were first touched, then the tops of the books.

    Returns the rows of market data.
    """
    work = state.work
    written = work[arrays.TRADES]
    if written + work[arrays.TOUCHED] + work[arrays.TOUCHED_SYMBOLS] > state.market_rows_length:
        work[arrays.BROKEN] = arrays.OUTPUT_FULL
        return np.int64(0)
    for number in range(work[arrays.TOUCHED]):
        side = state.touched[number, 0]
        price = state.touched[number, 1]
        level = state.touched[number, 3]
        record = state.levels[level]
        if record.price != price or np.int64(record.side) != side or record.orders == 0:
            level = np.int64(find_level(state, side, price))
        shown = np.int64(0)
        orders = np.int64(0)
        if level != 0:
            if state.levels[level].stamp != work[arrays.FRAME]:
                continue
            # once per frame, whichever of several levels of this price the note was about
            state.levels[level].stamp = -work[arrays.FRAME]
            state.levels[level].published = 1
            shown = state.levels[level].shown
            orders = np.int64(state.levels[level].orders)
        elif state.touched[number, 2] == 0:
            continue
        symbol = side // SIDES
        state.symbols[symbol].sequence += 1
        row = state.price_levels[written]
        row.kind = 1
        row.symbol = state.symbols[symbol].word
        row.sequence = state.symbols[symbol].sequence
        row.side = side & 1
        row.price = price
        row.quantity = shown
        row.orders = orders
        written += 1
    for number in range(work[arrays.TOUCHED_SYMBOLS]):
        if number + PUBLISHED_AHEAD < work[arrays.TOUCHED_SYMBOLS]:
            side = state.touched_symbols[number + PUBLISHED_AHEAD] * SIDES
            prefetch(state.levels, np.int64(state.sides[side + BIDS].best), 0)
            prefetch(state.levels, np.int64(state.sides[side + ASKS].best), 0)
        symbol = state.touched_symbols[number]
        mark_symbol(state, symbol)
        bid_price, bid_quantity, ask_price, ask_quantity = _tops(state, symbol)
        best = state.best
        if (
            best[symbol, 0] == bid_price
            and best[symbol, 1] == bid_quantity
            and best[symbol, 2] == ask_price
            and best[symbol, 3] == ask_quantity
        ):
            continue
        best[symbol, 0] = bid_price
        best[symbol, 1] = bid_quantity
        best[symbol, 2] = ask_price
        best[symbol, 3] = ask_quantity
        state.symbols[symbol].sequence += 1
        top = state.tops[written]
        top.kind = 2
        top.symbol = state.symbols[symbol].word
        top.sequence = state.symbols[symbol].sequence
        top.bid_price = bid_price
        top.bid_quantity = bid_quantity
        top.ask_price = ask_price
        top.ask_quantity = ask_quantity
        written += 1
    return written


@compiled_inline
def _tops(state: Any, symbol: Any) -> Any:
    """Bid price and quantity, ask price and quantity; zeros for a side without orders."""
    bids = state.sides[symbol * SIDES + BIDS]
    asks = state.sides[symbol * SIDES + ASKS]
    zero = np.int64(0)
    return (
        bids.best_price if bids.best != 0 else zero,
        state.levels[bids.best].shown if bids.best != 0 else zero,
        asks.best_price if asks.best != 0 else zero,
        state.levels[asks.best].shown if asks.best != 0 else zero,
    )


@compiled
def _check_entry(state: Any, slot: Any, limit: Any, minimum: Any, budget: Any) -> Any:
    """Whether an order that must trade at once can: `Reason.NONE`, or why it is canceled."""
    order = state.orders[slot]
    if order.time_in_force == FOK:
        found, cost = _available(state, slot, limit, order.leaves)
        if found < order.leaves:
            return FILL_OR_KILL
        if budget > 0 and ((cost > budget) if order.side == BUY else (cost < budget)):
            return FILL_OR_KILL
    if minimum > 0:
        found, cost = _available(state, slot, limit, minimum)
        if found < minimum:
            return MINIMUM_QUANTITY
    return NONE


@compiled
def _end_incoming(state: Any, given: Any, slot: Any, leaves: Any, reason: Any) -> None:
    """Cancel what is left of an order that entered the market and may not rest; it is in no queue."""
    order = state.orders[slot]
    order.leaves = leaves
    if order.flags & CHECKED:
        release(state, slot, leaves, True)
    order_report(state, given, CANCELED, STATUS_CANCELED, slot, leaves, np.int64(0), reason)


@compiled_inline
def _rest(state: Any, slot: Any, is_indexed: Any) -> None:
    """Put the order in ``slot``, which is in no queue, into the book."""
    order = state.orders[slot]
    if order.flags & HAS_EXTRA and state.extras[slot].display_quantity > 0:
        state.extras[slot].shown = min(state.extras[slot].display_quantity, order.leaves)
    link(state, slot, np.int64(order.symbol) * SIDES + np.int64(order.side), order.price)
    if not is_indexed:
        id_index.insert(state.order_index, order.id, slot)


@compiled_inline
def _rests_at_once(state: Any, slot: Any, minimum: Any) -> Any:
    """Whether an order that enters the market goes into the book without a trade, which most do."""
    order = state.orders[slot]
    if order.order_type != LIMIT or order.time_in_force >= IOC or minimum > 0:
        return False
    symbol = np.int64(order.symbol)
    return state.symbols[symbol].status != READY or not _crosses(state, symbol, np.int64(order.side), order.price)


@compiled
def _match(state: Any, given: Any, slot: Any, is_indexed: Any, minimum: Any, budget: Any, low: Any, high: Any) -> Any:
    """Let the order in ``slot``, which is in no queue, trade and then rest or end.

    Returns the lowest and highest price traded, starting from ``low`` and ``high``.
    """
    order = state.orders[slot]
    symbol = np.int64(order.symbol)
    side = np.int64(order.side)
    instrument = state.symbols[symbol]
    leaves = order.leaves
    prevention = np.int64(order.flags) >> PREVENTION_SHIFT
    must_not_rest = order.order_type == MARKET or order.time_in_force >= IOC
    sign = np.int64(1) - 2 * side
    limit = order.price
    if order.order_type == MARKET:
        limit = sign * NO_PRICE
    ends = np.int64(NONE)
    opposite = symbol * SIDES + 1 - side
    band_low = np.int64(-NO_PRICE)
    band_high = np.int64(NO_PRICE)
    if instrument.halt_band_ppm != 0:
        reference = instrument.last_price if instrument.last_price > 0 else instrument.reference_price
        if reference > 0:
            width = (
                reference // 1_000_000 * instrument.halt_band_ppm
                + reference % 1_000_000 * instrument.halt_band_ppm // 1_000_000
            )
            band_low = reference - width
            band_high = reference + width
    if instrument.status != READY:
        opposite = np.int64(0)
    elif order.time_in_force == FOK or minimum > 0:
        # a price that would halt the trading does not count
        within = min(limit, band_high) if side == BUY else max(limit, band_low)
        ends = np.int64(_check_entry(state, slot, within, minimum, budget))
    if instrument.status == READY and ends == NONE:
        book = state.sides[opposite]
        while leaves > 0:
            number = np.int64(book.best)
            if number == 0:
                break
            price = book.best_price
            if (price - limit) * sign > 0:
                break
            if price > band_high or price < band_low:
                halt(state, symbol)
                if must_not_rest:
                    ends = np.int64(VOLATILITY_HALT)
                break
            level = state.levels[number]
            maker = np.int64(level.head)
            resting = state.orders[maker]
            if prevention > PREVENTION_NONE and resting.account == order.account:
                order.leaves = leaves
                leaves, is_over = _prevent_self_trade(state, given, slot, maker, leaves)
                if is_over:
                    ends = np.int64(SELF_TRADE)
                    break
                continue
            touch(state, number)
            shown = shown_quantity(state, resting, maker)
            quantity = min(shown, leaves)
            leaves -= quantity
            order.executed += quantity
            resting.leaves -= quantity
            resting.executed += quantity
            level.shown -= quantity
            mark_order(state, maker)
            if (order.flags | resting.flags) & CHECKED:
                if order.flags & CHECKED:
                    settle(state, slot, quantity, price, True)
                if resting.flags & CHECKED:
                    settle(state, maker, quantity, price, False)
            write_trade(state, given, symbol, slot, maker, price, quantity, leaves, order.executed)
            instrument.last_price = price
            low = min(low, price)
            high = max(high, price)
            if resting.leaves == 0:
                tell_order(state, maker, opposite, np.int64(0))
                following = np.int64(resting.next)
                level.head = following
                level.orders -= 1
                if following == 0:
                    remove_level(state, number)
                else:
                    state.orders[following].prev = 0
                id_index.remove(state.order_index, resting.id, maker)
                if resting.flags & CHECKED:
                    release(state, maker, np.int64(0), True)
                free_order(state, maker)
            elif shown == quantity:
                # the shown part of an iceberg is gone: its next part goes behind the queue
                extra = state.extras[maker]
                extra.shown = 0
                unlink(state, maker)
                extra.shown = min(extra.display_quantity, resting.leaves)
                mark_extra(state, maker)
                link(state, maker, opposite, price)
            else:
                tell_order(state, maker, opposite, shown - quantity)
                if resting.flags & HAS_EXTRA and state.extras[maker].display_quantity > 0:
                    state.extras[maker].shown = shown - quantity
                    mark_extra(state, maker)
    if leaves > 0 and ends == NONE and must_not_rest:
        ends = np.int64(IMMEDIATE_OR_CANCEL)
    if leaves > 0 and ends == NONE:
        order.leaves = leaves
        _rest(state, slot, is_indexed)
    else:
        if leaves > 0:
            _end_incoming(state, given, slot, leaves, ends)
        elif order.flags & CHECKED:
            order.leaves = 0
            release(state, slot, np.int64(0), True)
        if is_indexed:
            id_index.remove(state.order_index, order.id, slot)
        free_order(state, slot)
    return low, high


@compiled
def apply_rows(state: Any, clock: Any) -> Any:
    """Apply the frame that ``state.rows`` was pointed to; ``state.new_orders`` and so on see it as the event types.

    Reports are left in ``state.reports`` (their number in ``work[REPORTS]``), market data in ``state.trades`` and the
    views beside it; returns the number of the latter's rows.
    """
    work = state.work
    work[arrays.FRAME] += 1
    work[arrays.REPORTS] = 0
    work[arrays.FRAME_TEXTS] = 0
    work[arrays.TRADES] = 0
    work[arrays.TOUCHED] = 0
    work[arrays.TOUCHED_SYMBOLS] = 0
    state.meta[arrays.CLOCK] = clock
    mark(state.dirty, state.first_pages[arrays.META_PAGES])
    _expire(state, clock)
    new_orders = state.new_orders
    count = state.new_orders_length
    looks_ahead = state.meta[arrays.LIVE_ORDERS] > FROM_ORDERS
    if looks_ahead:
        for i in range(-STAGES_AHEAD, 0):
            look_ahead(state, i, count)
    for i in range(count):
        if looks_ahead:
            look_ahead(state, i, count)
        kind = new_orders[i].kind
        slot = np.int64(0)
        symbol = np.int64(-1)
        last_symbol = np.int64(-1)
        is_indexed = kind != NEW_ORDER
        minimum = np.int64(0)
        budget = np.int64(0)
        if kind == NEW_ORDER:
            slot, symbol = _enter(state, i, new_orders[i], clock)
            minimum = new_orders[i].minimum_quantity
            budget = new_orders[i].budget
        elif kind == CANCEL_ORDER:
            cancel = state.cancels[i]
            time = cancel.transact_time if cancel.transact_time > 0 else clock
            reason = np.int64(UNKNOWN_ORDER)
            named = np.int64(-1)
            if cancel.session != 0 and _throttled(state, cancel.session, time):
                reason = np.int64(SESSION_THROTTLED)
            else:
                named = _named(state, cancel.order_id, cancel.account, cancel.symbol)
            if named >= 0 and state.orders[named].flags & ROUTED == 0:
                take_off(state, i, named, CANCELED, STATUS_CANCELED, USER_REQUEST)
            elif named < 0 or not request_cancel(state, i, named, USER_REQUEST):
                reason = reason if named < 0 else np.int64(REQUEST_PENDING)
                cancel_reject(state, i, max(named, 0), cancel.order_id, RESPONSE_TO_CANCEL, reason)
        elif kind == AMEND_ORDER:
            slot, symbol = _amend(state, i, state.amends[i], clock)
        elif kind == MASS_CANCEL:
            command = state.mass_cancel_orders[i]
            time = command.transact_time if command.transact_time > 0 else clock
            if command.session != 0 and _throttled(state, command.session, time):
                mass_cancel_report(state, i, SESSION_THROTTLED, np.int64(0))
            else:
                mass_cancel(state, i, command)
        else:
            reason = np.int64(NONE)
            if kind == SYMBOL_DEFINITION:
                reason = np.int64(define_symbol(state, state.symbol_definitions[i]))
            elif kind == ACCOUNT_DEFINITION:
                reason = np.int64(define_account(state, state.account_definitions[i]))
            elif kind == DEPOSIT:
                reason = np.int64(deposit(state, state.deposits[i]))
            elif kind == SECURITY_TRADING_STATUS:
                reason, symbol, last_symbol = change_status(state, i, state.trading_statuses[i])
            elif kind == KILL_SWITCH:
                reason = np.int64(kill_switch(state, i, state.kill_switches[i]))
            elif kind == MARK_PRICE:
                reason = np.int64(mark_price(state, i, state.mark_prices[i]))
            elif kind == SESSION_LIMIT:
                reason = np.int64(limit_session(state, state.session_limits[i]))
            else:
                said = state.venue_reports[i]
                reason = np.int64(
                    venue_report(state, i, said, account_of(state, said.venue), symbol_of(state, said.symbol))
                )
            admin_report(state, i, reason)

        low = np.int64(NO_PRICE)
        high = np.int64(0)
        if symbol >= 0 and state.symbols[symbol].last_price > 0:
            low = state.symbols[symbol].last_price
            high = low
        while True:
            if slot == 0:
                if symbol >= 0:
                    stops = symbol * SIDES + BUY_STOPS
                    if state.sides[stops].best != 0 or state.sides[stops + 1].best != 0:
                        slot = np.int64(_next_triggered(state, i, symbol, low, high))
                if slot == 0 and work[arrays.QUEUE_HEAD] < work[arrays.QUEUE_TAIL]:
                    slot = state.queue[work[arrays.QUEUE_HEAD]]
                    work[arrays.QUEUE_HEAD] += 1
                    id_index.insert(state.order_index, state.orders[slot].id, slot)
                    symbol = np.int64(state.orders[slot].symbol)
                    low = np.int64(NO_PRICE)
                    high = np.int64(0)
                if slot == 0:
                    if symbol >= last_symbol:
                        break
                    symbol += 1
                    low = np.int64(NO_PRICE)
                    high = np.int64(0)
                    if state.symbols[symbol].last_price > 0:
                        low = state.symbols[symbol].last_price
                        high = low
                    continue
                is_indexed = True
                minimum = np.int64(0)
                budget = np.int64(0)
            if _rests_at_once(state, slot, minimum):
                _rest(state, slot, is_indexed)
            else:
                low, high = _match(state, i, slot, is_indexed, minimum, budget, low, high)
            slot = np.int64(0)
        work[arrays.QUEUE_HEAD] = 0
        work[arrays.QUEUE_TAIL] = 0
    return _publish(state)


@compiled
def rebuild(state: Any, slots: Any) -> None:
    """Enter the live orders of restored pages into index and queues; ``slots`` are in the order of their priority."""
    last = state.meta[arrays.PRIORITY]
    for position in range(len(slots)):
        slot = slots[position]
        order = state.orders[slot]
        if order.flags & ROUTED:
            link_routed(state, slot)
            id_index.insert(state.order_index, order.id, slot)
            continue
        side = np.int64(order.symbol) * SIDES + np.int64(order.side)
        price = order.price
        if order.order_type >= STOP:
            side += BUY_STOPS
            price = state.extras[slot].stop_price
        priority = order.priority
        link(state, slot, side, price)
        order.priority = priority
        id_index.insert(state.order_index, order.id, slot)
        if order.time_in_force == GTD:
            state.work[arrays.EXPIRIES] = expiry.push(
                state.expiries, state.work[arrays.EXPIRIES], state.extras[slot].expire_at, order.id
            )
    state.meta[arrays.PRIORITY] = last
    for number in range(1, state.work[LEVELS] + 1):
        state.levels[number].published = 1
    for symbol in range(state.meta[arrays.SYMBOLS]):
        state.sides[symbol * SIDES + BIDS].feed = state.symbols[symbol].order_feed
        state.sides[symbol * SIDES + ASKS].feed = state.symbols[symbol].order_feed
        state.best[symbol, 0], state.best[symbol, 1], state.best[symbol, 2], state.best[symbol, 3] = _tops(
            state, symbol
        )


@compiled
def reindex(state: Any) -> None:
    """Enter names, balances, positions and sessions of restored pages into their indexes."""
    for slot in range(state.meta[arrays.NAMES]):
        id_index.insert(state.name_index, state.names[slot].id, slot)
    for slot in range(state.meta[arrays.BALANCES]):
        id_index.insert(state.balance_index, state.balances[slot].id, slot)
    for slot in range(state.meta[arrays.POSITIONS]):
        id_index.insert(state.position_index, state.positions[slot].id, slot)
    for slot in range(state.meta[arrays.SESSIONS]):
        id_index.insert(state.session_index, state.sessions[slot].id, slot)


@compiled
def intern_empty(state: Any) -> None:
    """Name 0 is the empty text: the asset of an instrument that has none."""
    intern(state, np.int64(0))


@compiled
def find_order(state: Any, order_id: Any) -> Any:
    """Slot of a live order, -1 if there is none."""
    return id_index.find(state.order_index, state.orders, order_id)
