"""Orders that a venue elsewhere trades: what is asked of it, and what it says.

A routed order is admitted and reserves as one of the book here does, but lies in a list of its own and matches with
nobody. A RouteRequest asks the venue for something; only the venue's answer, a VenueReport, changes the order. At most
one cancel or replace is under way at a time.

Venue reports are applied once and in their order: a fill must lead from what the order has traded to the cumulative
quantity that the venue names, an answer must name the request. What does not fit changes nothing and gets its reason.

While a replace is under way the order reserves for whichever of both is dearer: ``leaves`` of its record, and the
reserve price, are those of the reserve, ``ordered`` less ``executed`` is what is open at the venue.

A venue is an account whose risk is VENUE. It is the counterparty of routed trades of accounts with a risk model; its
balances are what the venue owes, below 0 what it is owed.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines.compiled import compiled, compiled_inline
from pipelines.matching import arrays, id_index
from pipelines.matching.book import (
    RESPONSE_TO_AMEND,
    RESPONSE_TO_CANCEL,
    cancel_reject,
    execution,
    free_order,
    mark_account,
    mark_extra,
    mark_order,
    new_order_slot,
    new_report,
)
from pipelines.matching.records import (
    CHECKED,
    HAS_EXTRA,
    LIVE,
    MAX_PRICE,
    MAX_QUANTITY,
    ROUTED,
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
    MAX_BALANCE,
    MAX_NOTIONAL_FLOAT,
    admit,
    check_limits,
    count_message,
    find_balance,
    mark_balance,
    move_reserve,
    release,
    reserve,
    settle,
)

__all__ = ["amend_routed", "cancel_routed", "enter_routed", "link_routed", "request_cancel", "venue_report"]

MAX_EXECUTION_ID: Final = 64
"""Bytes of a venue's ExecID that a report tells; a frame of `MAX_REPORTS` of these stays below Kafka's limit."""

# actions of a RouteRequest; what is under way of an order is one of the last two
ROUTE_NEW: Final = 0
ROUTE_CANCEL: Final = 1
ROUTE_REPLACE: Final = 2
CANCEL_WANTED: Final = 4
"""Bit of `pending` beside ROUTE_REPLACE: when the replace is answered the order is to be canceled."""
PENDING: Final = 7
REASON_SHIFT: Final = 8
"""Why there is, or will be, a cancel, above the bits of `pending`."""

# exec types of a VenueReport
SAID_NEW: Final = 0
SAID_TRADE: Final = 1
SAID_CANCELED: Final = 2
SAID_REPLACED: Final = 3
SAID_REJECTED: Final = 4
SAID_EXPIRED: Final = 5
SAID_CANCEL_REJECTED: Final = 6
SAID_REPLACE_REJECTED: Final = 7

ROUTE_REQUEST: Final = 4
"""Kind of RouteRequest on the reports topic."""

BUY: Final = np.int64(Side.BUY)
LIMIT: Final = np.int64(OrderType.LIMIT)
MARKET: Final = np.int64(OrderType.MARKET)
DAY: Final = np.int64(TimeInForce.DAY)
IOC: Final = np.int64(TimeInForce.IOC)
FOK: Final = np.int64(TimeInForce.FOK)
SPOT: Final = np.int64(RiskModel.SPOT)
MARGIN: Final = np.int64(RiskModel.MARGIN)
VENUE: Final = np.int64(RiskModel.VENUE)
HALT: Final = np.int64(TradingStatus.TRADING_HALT)
CLOSED: Final = np.int64(TradingStatus.NOT_AVAILABLE_FOR_TRADING)

NEW: Final = np.int64(ExecType.NEW)
TRADE: Final = np.int64(ExecType.TRADE)
CANCELED: Final = np.int64(ExecType.CANCELED)
REPLACED: Final = np.int64(ExecType.REPLACED)
EXPIRED: Final = np.int64(ExecType.EXPIRED)
STATUS_NEW: Final = np.int64(OrderStatus.NEW)
STATUS_PARTIALLY_FILLED: Final = np.int64(OrderStatus.PARTIALLY_FILLED)
STATUS_FILLED: Final = np.int64(OrderStatus.FILLED)
STATUS_CANCELED: Final = np.int64(OrderStatus.CANCELED)
STATUS_REPLACED: Final = np.int64(OrderStatus.REPLACED)
STATUS_EXPIRED: Final = np.int64(OrderStatus.EXPIRED)

NONE: Final = np.int64(Reason.NONE)
UNKNOWN_ORDER: Final = np.int64(Reason.UNKNOWN_ORDER)
EXCHANGE_CLOSED: Final = np.int64(Reason.EXCHANGE_CLOSED)
TRADING_HALT: Final = np.int64(Reason.TRADING_HALT)
INCORRECT_QUANTITY: Final = np.int64(Reason.INCORRECT_QUANTITY)
INVALID_PRICE: Final = np.int64(Reason.INVALID_PRICE)
INVALID_PRICE_INCREMENT: Final = np.int64(Reason.INVALID_PRICE_INCREMENT)
UNSUPPORTED: Final = np.int64(Reason.UNSUPPORTED_ORDER_CHARACTERISTIC)
NOTIONAL_EXCEEDS: Final = np.int64(Reason.NOTIONAL_EXCEEDS_THRESHOLD)
RATE_LIMIT: Final = np.int64(Reason.RATE_LIMIT)
INSUFFICIENT_FUNDS: Final = np.int64(Reason.INSUFFICIENT_FUNDS)
ACCOUNT_BLOCKED: Final = np.int64(Reason.ACCOUNT_BLOCKED)
CAPACITY: Final = np.int64(Reason.CAPACITY)
USER_REQUEST: Final = np.int64(Reason.USER_REQUEST)
IMMEDIATE_OR_CANCEL: Final = np.int64(Reason.IMMEDIATE_OR_CANCEL)
FILL_OR_KILL: Final = np.int64(Reason.FILL_OR_KILL)
END_OF_DAY: Final = np.int64(Reason.END_OF_DAY)
GOOD_TILL_DATE: Final = np.int64(Reason.GOOD_TILL_DATE)
UNKNOWN_VENUE: Final = np.int64(Reason.UNKNOWN_VENUE)
VENUE_UNAVAILABLE: Final = np.int64(Reason.VENUE_UNAVAILABLE)
VENUE_REJECTED: Final = np.int64(Reason.VENUE_REJECTED)
VENUE_CANCELED: Final = np.int64(Reason.VENUE_CANCELED)
REQUEST_PENDING: Final = np.int64(Reason.REQUEST_PENDING)
DUPLICATE_EXECUTION: Final = np.int64(Reason.DUPLICATE_EXECUTION)
EXECUTION_GAP: Final = np.int64(Reason.EXECUTION_GAP)
OVERFILL: Final = np.int64(Reason.OVERFILL)


@compiled
def link_routed(state: Any, slot: Any) -> None:
    """Put an order behind the routed ones."""
    order = state.orders[slot]
    tail = state.work[arrays.ROUTED_TAIL]
    order.level = 0
    order.next = 0
    order.prev = tail
    if tail == 0:
        state.work[arrays.ROUTED_HEAD] = slot
    else:
        state.orders[tail].next = slot
    state.work[arrays.ROUTED_TAIL] = slot


@compiled
def _unlink_routed(state: Any, slot: Any) -> None:
    before = np.int64(state.orders[slot].prev)
    after = np.int64(state.orders[slot].next)
    if before == 0:
        state.work[arrays.ROUTED_HEAD] = after
    else:
        state.orders[before].next = after
    if after == 0:
        state.work[arrays.ROUTED_TAIL] = before
    else:
        state.orders[after].prev = before


@compiled
def _request(state: Any, given: Any, action: Any, slot: Any, price: Any, quantity: Any, reason: Any) -> Any:
    """Write a RouteRequest; its number."""
    order = state.orders[slot]
    route = state.routes[slot]
    number = new_report(state, ROUTE_REQUEST, given)
    report = state.route_requests[number]
    report.action = action
    report.venue = state.accounts[route.venue].word
    report.order_id = order.id
    report.account = state.accounts[order.account].word
    report.symbol = state.symbols[order.symbol].word
    report.side = np.int64(order.side)
    report.order_type = np.int64(order.order_type)
    report.time_in_force = np.int64(order.time_in_force)
    report.price = price
    report.quantity = quantity
    report.expire_at = route.expire_at
    report.execution_id = state.meta[arrays.EXECUTIONS]
    report.reason = reason
    if action == ROUTE_NEW:
        route.number = state.meta[arrays.EXECUTIONS]
    report.route = route.number
    return state.meta[arrays.EXECUTIONS]


@compiled
def request_cancel(state: Any, given: Any, slot: Any, reason: Any) -> Any:
    """Ask the venue to cancel; False if it is asked for something already."""
    route = state.routes[slot]
    if route.pending != 0:
        return False
    route.request = _request(state, given, ROUTE_CANCEL, slot, state.orders[slot].price, route.ordered, reason)
    route.pending = ROUTE_CANCEL | reason << REASON_SHIFT
    mark_extra(state, slot)
    return True


@compiled
def cancel_routed(state: Any, given: Any, symbol: Any, account: Any, which: Any, reason: Any) -> Any:
    """Ask venues to cancel all orders that match, as `pipelines.matching.controls.cancel_orders`; how many."""
    asked = 0
    slot = state.work[arrays.ROUTED_HEAD]
    while slot != 0:
        order = state.orders[slot]
        route = state.routes[slot]
        matches = (symbol < 0 or np.int64(order.symbol) == symbol) and (
            account < 0 or np.int64(order.account) == account
        )
        if matches and (which == 0 or (which == 1) == (order.side == BUY)):
            if route.pending & PENDING == ROUTE_REPLACE:
                route.pending = ROUTE_REPLACE | CANCEL_WANTED | reason << REASON_SHIFT
                mark_extra(state, slot)
                asked += 1
            elif request_cancel(state, given, slot, reason):
                asked += 1
        slot = np.int64(order.next)
    return asked


@compiled
def enter_routed(state: Any, given: Any, command: Any, account: Any, symbol: Any, venue: Any, time: Any) -> Any:
    """Admit a NewOrder for a venue, whose fields and limits are checked; `Reason.NONE`, or why not."""
    owner = state.accounts[account]
    instrument = state.symbols[symbol]
    if venue < 0 or state.accounts[venue].risk != VENUE:
        return UNKNOWN_VENUE
    if state.accounts[venue].blocked != 0:
        return VENUE_UNAVAILABLE
    order_type = command.order_type
    in_force = command.time_in_force
    price = np.int64(0)
    if order_type == LIMIT:
        price = command.price
    elif owner.risk == SPOT and command.side == BUY:
        # nobody knows what it would cost: it may not cost more than is reserved
        if command.reserve_price == 0:
            return INSUFFICIENT_FUNDS
        order_type = LIMIT
        price = command.reserve_price
        if in_force != FOK:
            in_force = IOC
    if owner.risk != 0:
        base = find_balance(state, venue, instrument.base_asset)
        quote = find_balance(state, venue, instrument.quote_asset)
        if base < 0 or quote < 0:
            return CAPACITY
    slot = new_order_slot(state)
    order = state.orders[slot]
    order.id = command.order_id
    order.price = price
    order.leaves = command.quantity
    order.executed = 0
    order.account = account
    order.symbol = symbol
    order.side = command.side
    order.order_type = order_type
    order.time_in_force = in_force
    order.flags = LIVE | HAS_EXTRA | ROUTED
    route = state.routes[slot]
    route.ordered = command.quantity
    route.asked_price = 0
    route.asked_quantity = 0
    route.expire_at = command.expire_at
    route.reserve_price = price
    route.request = 0
    route.number = 0
    route.venue = venue
    route.pending = 0
    if owner.risk != 0:
        order.flags = LIVE | HAS_EXTRA | ROUTED | CHECKED
        reason = np.int64(admit(state, slot, time))
        if reason != NONE:
            free_order(state, slot)
            return reason
    state.meta[arrays.PRIORITY] += 1
    order.priority = state.meta[arrays.PRIORITY]
    link_routed(state, slot)
    id_index.insert(state.order_index, order.id, slot)
    execution(
        state, given, NEW, STATUS_NEW, order.id, owner.word, instrument.word, np.int64(order.side), price,
        command.quantity, command.quantity, np.int64(0), NONE,
    )  # fmt: skip
    _request(state, given, ROUTE_NEW, slot, price, command.quantity, NONE)
    mark_order(state, slot)
    mark_extra(state, slot)
    return NONE


@compiled
def _resize(state: Any, slot: Any, reserve_price: Any, lots: Any) -> Any:
    """Let an order reserve for ``lots`` at ``reserve_price`` instead; `Reason.NONE`, or why not and nothing changes."""
    order = state.orders[slot]
    route = state.routes[slot]
    reason = np.int64(NONE)
    more = lots - order.leaves
    if order.flags & CHECKED:
        if state.accounts[order.account].risk != MARGIN:
            reason = np.int64(move_reserve(state, slot, order.price, reserve_price, lots))
        elif more > 0:
            reason = np.int64(reserve(state, slot, more))
        elif more < 0:
            release(state, slot, -more, False)
    if reason == NONE:
        order.leaves = lots
        route.reserve_price = reserve_price
        mark_order(state, slot)
        mark_extra(state, slot)
    return reason


@compiled
def _amend_reason(state: Any, slot: Any, command: Any, price: Any, total: Any, time: Any) -> Any:
    """Why an amendment is refused, `Reason.NONE` if it is reserved for."""
    order = state.orders[slot]
    route = state.routes[slot]
    instrument = state.symbols[order.symbol]
    owner = state.accounts[order.account]
    if route.pending != 0:
        return REQUEST_PENDING
    if instrument.status == CLOSED:
        return EXCHANGE_CLOSED
    if instrument.status == HALT:
        return TRADING_HALT
    if owner.blocked != 0:
        return ACCOUNT_BLOCKED
    if command.stop_price_is_set != 0 or (command.quantity_is_set != 0 and command.total_quantity_is_set != 0):
        return UNSUPPORTED
    lots = total - order.executed
    if lots < 1 or lots > MAX_QUANTITY or (instrument.lot_size > 1 and lots % instrument.lot_size != 0):
        return INCORRECT_QUANTITY
    if order.order_type == LIMIT and (price < 1 or price > MAX_PRICE):
        return INVALID_PRICE
    if instrument.tick_size > 1 and price % instrument.tick_size != 0:
        return INVALID_PRICE_INCREMENT
    lots = max(lots, order.leaves)
    dearer = max(price, order.price) if order.side == BUY else price
    reason = np.int64(NONE)
    if instrument.checks != 0 or order.flags & CHECKED:
        reason = np.int64(
            check_limits(
                state, np.int64(order.account), np.int64(order.symbol), np.int64(order.side), price, lots, dearer
            )
        )
    if reason == NONE and order.flags & CHECKED and owner.rate_limit > 0:
        mark_account(state, np.int64(order.account))
        if not count_message(owner, owner.rate_limit, owner.rate_interval, time):
            return RATE_LIMIT
    return np.int64(_resize(state, slot, dearer, lots)) if reason == NONE else reason


@compiled
def amend_routed(state: Any, given: Any, command: Any, slot: Any, time: Any) -> None:
    """Apply an AmendOrder to a routed order: ask the venue, or refuse."""
    order = state.orders[slot]
    route = state.routes[slot]
    price = command.price if command.price_is_set != 0 and order.order_type == LIMIT else order.price
    total = route.ordered
    if command.total_quantity_is_set != 0:
        total = command.total_quantity
    elif command.quantity_is_set != 0:
        if command.quantity < 0 or command.quantity > MAX_QUANTITY:
            cancel_reject(state, given, slot, order.id, RESPONSE_TO_AMEND, INCORRECT_QUANTITY)
            return
        total = order.executed + command.quantity
        if command.quantity == 0:
            if not request_cancel(state, given, slot, USER_REQUEST):
                cancel_reject(state, given, slot, order.id, RESPONSE_TO_AMEND, REQUEST_PENDING)
            return
    reason = np.int64(_amend_reason(state, slot, command, price, total, time))
    if reason != NONE:
        cancel_reject(state, given, slot, order.id, RESPONSE_TO_AMEND, reason)
        return
    route.asked_price = price
    route.asked_quantity = total
    route.pending = ROUTE_REPLACE
    route.request = _request(state, given, ROUTE_REPLACE, slot, price, total, NONE)
    mark_extra(state, slot)


@compiled_inline
def _report(state: Any, given: Any, exec_type: Any, status: Any, slot: Any, price: Any, lots: Any, leaves: Any,
            reason: Any) -> None:  # fmt: skip
    order = state.orders[slot]
    execution(
        state, given, exec_type, status, order.id, state.accounts[order.account].word,
        state.symbols[order.symbol].word, np.int64(order.side), price, lots, leaves, order.executed, reason,
    )  # fmt: skip


@compiled
def _end(state: Any, slot: Any) -> None:
    """Forget an order that the venue has done with; what it still reserves is returned."""
    order = state.orders[slot]
    if order.flags & CHECKED:
        release(state, slot, order.leaves, True)
    id_index.remove(state.order_index, order.id, slot)
    _unlink_routed(state, slot)
    free_order(state, slot)


@compiled
def _fill_reason(state: Any, slot: Any, lots: Any, price: Any, cumulative: Any) -> Any:
    """Why a venue's trade cannot be one of this order, `Reason.NONE` if it can."""
    order = state.orders[slot]
    route = state.routes[slot]
    instrument = state.symbols[order.symbol]
    if cumulative <= order.executed:
        return DUPLICATE_EXECUTION
    if lots < 1:
        return INCORRECT_QUANTITY
    if lots > route.ordered - order.executed:
        return OVERFILL
    if cumulative != order.executed + lots:
        return EXECUTION_GAP
    if price < 1 or price > MAX_PRICE:
        return INVALID_PRICE
    if order.order_type == LIMIT and ((price > order.price) if order.side == BUY else (price < order.price)):
        return INVALID_PRICE
    if order.flags & CHECKED:
        worth = float(lots) * float(price) * float(instrument.quote_per_tick)
        if worth > MAX_NOTIONAL_FLOAT or float(lots) * float(instrument.base_per_lot) > MAX_NOTIONAL_FLOAT:
            return NOTIONAL_EXCEEDS
        base = state.balances[find_balance(state, np.int64(route.venue), instrument.base_asset)]
        quote = state.balances[find_balance(state, np.int64(route.venue), instrument.quote_asset)]
        if (
            abs(float(base.available)) + float(lots) * float(instrument.base_per_lot) > MAX_BALANCE
            or abs(float(quote.available)) + worth > MAX_BALANCE
        ):
            return NOTIONAL_EXCEEDS
    return NONE


@compiled
def _fill(state: Any, given: Any, slot: Any, lots: Any, price: Any, execution_word: Any) -> None:
    """A trade with the venue: settled between account and venue, and reported with its ExecID if that is not long."""
    order = state.orders[slot]
    route = state.routes[slot]
    instrument = state.symbols[order.symbol]
    order.leaves -= lots
    order.executed += lots
    if order.flags & CHECKED:
        settle(state, slot, lots, price, True)
        sign = np.int64(1) - 2 * np.int64(order.side)
        base = find_balance(state, np.int64(route.venue), instrument.base_asset)
        quote = find_balance(state, np.int64(route.venue), instrument.quote_asset)
        state.balances[base].available -= sign * lots * instrument.base_per_lot
        state.balances[quote].available += sign * lots * price * instrument.quote_per_tick
        mark_balance(state, base)
        mark_balance(state, quote)
    left = route.ordered - order.executed
    _report(state, given, TRADE, STATUS_FILLED if left == 0 else STATUS_PARTIALLY_FILLED, slot, price, lots, left, NONE)
    report = state.reports[state.work[arrays.REPORTS] - 1]
    report.maker_account = state.accounts[route.venue].word
    if 0 < execution_word & 0xFFFFFFFF <= MAX_EXECUTION_ID:
        report.venue_execution_id = execution_word | arrays.IN_FRAME
        state.work[arrays.FRAME_TEXTS] += 1
    mark_order(state, slot)
    if left == 0 and route.pending == 0:
        _end(state, slot)


@compiled
def _answered(state: Any, given: Any, slot: Any) -> None:
    """After the answer to a request: the order ends if it was filled, or is canceled if that waited."""
    order = state.orders[slot]
    route = state.routes[slot]
    wanted = route.pending & CANCEL_WANTED
    reason = np.int64(route.pending) >> REASON_SHIFT
    route.pending = 0
    route.request = 0
    mark_extra(state, slot)
    if route.ordered == order.executed:
        _end(state, slot)
    elif wanted != 0:
        request_cancel(state, given, slot, reason)


@compiled
def _replaced(state: Any, given: Any, slot: Any) -> None:
    order = state.orders[slot]
    route = state.routes[slot]
    order.price = route.asked_price
    route.ordered = max(route.asked_quantity, order.executed)
    left = route.ordered - order.executed
    _resize(state, slot, route.asked_price, left)
    _report(state, given, REPLACED, STATUS_REPLACED if left > 0 else STATUS_FILLED, slot, order.price, left, left, NONE)
    _answered(state, given, slot)


@compiled
def _over(state: Any, given: Any, slot: Any, said: Any, reject_reason: Any) -> None:
    """The venue ended the order before it was filled."""
    order = state.orders[slot]
    route = state.routes[slot]
    exec_type = CANCELED
    status = STATUS_CANCELED
    reason = np.int64(VENUE_CANCELED)
    if said == SAID_REJECTED:
        reason = np.int64(VENUE_UNAVAILABLE if reject_reason != 0 else VENUE_REJECTED)
    elif said == SAID_EXPIRED:
        exec_type = EXPIRED
        status = STATUS_EXPIRED
        reason = np.int64(END_OF_DAY if order.time_in_force == DAY else GOOD_TILL_DATE)
    elif route.pending & PENDING == ROUTE_CANCEL:
        reason = np.int64(route.pending) >> REASON_SHIFT
    elif order.time_in_force == FOK:
        reason = np.int64(FILL_OR_KILL)
    elif order.time_in_force == IOC or order.order_type == MARKET:
        reason = np.int64(IMMEDIATE_OR_CANCEL)
    if route.pending & PENDING == ROUTE_CANCEL and said != SAID_CANCELED:
        cancel_reject(state, given, slot, order.id, RESPONSE_TO_CANCEL, VENUE_REJECTED)
    elif route.pending & ROUTE_REPLACE:
        cancel_reject(state, given, slot, order.id, RESPONSE_TO_AMEND, VENUE_REJECTED)
    left = route.ordered - order.executed
    _report(state, given, exec_type, status, slot, order.price, left, np.int64(0), reason)
    _end(state, slot)


@compiled
def venue_report(state: Any, given: Any, command: Any, venue: Any, symbol: Any) -> Any:
    """Apply a VenueReport; `Reason.NONE`, or why it was not applied and nothing changed."""
    slot = id_index.find(state.order_index, state.orders, command.order_id)
    if slot < 0 or state.orders[slot].flags & ROUTED == 0:
        return UNKNOWN_ORDER
    order = state.orders[slot]
    route = state.routes[slot]
    if np.int64(route.venue) != venue or route.number != command.route or np.int64(order.symbol) != symbol:
        return UNKNOWN_ORDER
    said = command.exec_type
    if said == SAID_NEW:
        return NONE
    if said == SAID_TRADE:
        reason = np.int64(_fill_reason(state, slot, command.quantity, command.price, command.cumulative_quantity))
        if reason == NONE:
            _fill(state, given, slot, command.quantity, command.price, command.venue_execution_id)
        return reason
    if said == SAID_CANCELED or said == SAID_REJECTED or said == SAID_EXPIRED:  # noqa: SIM109
        if command.cumulative_quantity != order.executed or order.executed == route.ordered:
            return EXECUTION_GAP
        _over(state, given, slot, said, command.reason)
        return NONE
    if said != SAID_REPLACED and said != SAID_CANCEL_REJECTED and said != SAID_REPLACE_REJECTED:
        return UNSUPPORTED
    if command.request != route.request or route.pending == 0:
        return DUPLICATE_EXECUTION
    is_replace = route.pending & PENDING != ROUTE_CANCEL
    if is_replace == (said == SAID_CANCEL_REJECTED):
        return UNKNOWN_ORDER
    if said == SAID_REPLACED:
        if command.price != route.asked_price or command.quantity != route.asked_quantity:
            return INCORRECT_QUANTITY
        _replaced(state, given, slot)
        return NONE
    response_to = RESPONSE_TO_AMEND if is_replace else RESPONSE_TO_CANCEL
    cancel_reject(state, given, slot, order.id, response_to, VENUE_REJECTED)
    if is_replace:
        _resize(state, slot, order.price, route.ordered - order.executed)
    _answered(state, given, slot)
    return NONE
