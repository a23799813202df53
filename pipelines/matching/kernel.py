"""Order matching as a kernel: the books, accounts and controls of one shard of symbols.

A frame of matching.commands is answered by a frame of matching.reports, every event in order, and one of
matching.market-data. When there are more than `MAX_REPORTS` reports, or `MAX_MARKET_ROWS` rows of market data, they
take several frames, of which only the last has fewer than that number: a reader knows from a full frame that another
one follows.

Units: prices in ticks, quantities in lots, assets in the smallest unit of each, times in microseconds. The clock is the
latest ``produced_at`` seen; it ends GTD orders before the first event of a frame. docs/reference/matching.md has every
rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipelines import expiry, pages
from pipelines.codec import HeapBuilder, codec_of, raw
from pipelines.compiled import source_digest
from pipelines.errors import FrameError, StateVersionError, StreambankError
from pipelines.frames import Events, Frame, Rows
from pipelines.kernel import InvariantBroken, Output
from pipelines.matching import arrays, engine, id_index, ladder, read_ahead
from pipelines.matching.records import (
    ACCOUNT,
    BALANCE,
    CHECKED,
    EXTRA,
    HAS_EXTRA,
    LEVEL,
    LIVE,
    NAME,
    ORDER,
    POSITION,
    ROUTE,
    ROUTED,
    SESSION,
    SIDE,
    SYMBOL,
    OrderType,
    RiskModel,
    SelfTradePrevention,
    Side,
    TimeInForce,
    TradingStatus,
)
from pipelines.matching.risk import FEES_ACCOUNT

__all__ = ["MAX_MARKET_ROWS", "MAX_REPORTS", "CapacityExceeded", "MatchingKernel"]

STATE_VERSION: Final = 1

MAX_REPORTS: Final = 4_096
"""Events in one frame of reports; at their longest they stay below Kafka's limit of 1 MB."""
MAX_MARKET_ROWS: Final = 8_192

MAX_PRODUCED_AT: Final = 7_258_118_400_000_000
"""2200-01-01 in microseconds. A frame from later is refused: it would end all GTD orders."""

_BUFFER_ROWS: Final = 1 << 22
"""Reports that one frame may cause, in address space."""

_COMMANDS: Final = "matching.commands"
_REPORTS: Final = "matching.reports"
_MARKET_DATA: Final = "matching.market-data"

_EVENT_TYPES: Final = {
    _COMMANDS: (
        "NewOrder", "CancelOrder", "AmendOrder", "MassCancel", "SymbolDefinition", "AccountDefinition", "Deposit",
        "SecurityTradingStatus", "KillSwitch", "MarkPrice", "SessionLimit", "VenueReport",
    ),
    _REPORTS: ("ExecutionReport", "OrderCancelReject", "MassCancelReport", "AdminReport", "RouteRequest"),
    _MARKET_DATA: ("Trade", "PriceLevel", "TopOfBook", "SecurityStatus", "BookOrder"),
}  # fmt: skip


_REPORT_TEXTS: Final = [
    [field.word for field in event_type.fields if field.storage == "string"]
    for event_type in codec_of(_REPORTS).event_types
]


class CapacityExceeded(StreambankError):  # noqa: N818 - an alarm, named for what happened
    """One frame caused more reports than fit; the job must stop and be started with a larger buffer."""


_SOURCES: Final = source_digest(__file__, expiry, pages)


class MatchingKernel:
    """One shard of the matching system.

    The capacities reserve address space, not memory. A new order, symbol or account that does not fit is refused with
    a reason. An order takes 64 bytes (128 with instructions beyond price and quantity) and 13 in its index.
    """

    state_version: ClassVar[int] = STATE_VERSION

    def __init__(self, *, max_orders: int = 1 << 22, max_symbols: int = 1 << 13, max_accounts: int = 1 << 20) -> None:
        for topic, names in _EVENT_TYPES.items():
            if tuple(event_type.name for event_type in codec_of(topic).event_types) != names:
                raise StreambankError(f"{topic}: the kernel is written for the events {', '.join(names)}")
        order_slots = -(-(max_orders + 1) // 256) * 256
        positions = 2 * max_accounts
        self._state = pages.PagedState(
            {
                "orders": pages.Column(ORDER, order_slots, huge_pages=True),
                "extras": pages.Column(EXTRA, order_slots),
                "symbols": pages.Column(SYMBOL, max_symbols, huge_pages=True),
                "accounts": pages.Column(ACCOUNT, max_accounts, huge_pages=True),
                "names": pages.Column(NAME, max_accounts + 3 * max_symbols),
                "balances": pages.Column(BALANCE, positions),
                "positions": pages.Column(POSITION, positions),
                "sessions": pages.Column(SESSION, 1 << 16),
                "meta": pages.Column(np.int64, 64),
            }
        )
        columns = self._state.columns
        report_types = codec_of(_REPORTS).event_types
        report_rows = pages.reserve(np.int64, _BUFFER_ROWS * codec_of(_REPORTS).row_words).reshape(_BUFFER_ROWS, -1)
        market_types = codec_of(_MARKET_DATA).event_types
        market_rows = pages.reserve(np.int64, 4 * _BUFFER_ROWS * codec_of(_MARKET_DATA).row_words)
        market_rows = market_rows.reshape(4 * _BUFFER_ROWS, -1)
        # a level per order at most, and a node per level and six bits of its price: far more than books need
        levels = order_slots + 1
        self._arrays = arrays.MatchingArrays(
            dict(
                **{name: columns[name] for name in columns},
                routes=columns["extras"].view(ROUTE),
                dirty=self._state.dirty,
                first_pages=np.array([self._state.first_page[name] for name in columns], np.int64),
                work=np.zeros(32, np.int64),
                sides=pages.reserve(SIDE, max_symbols * ladder.SIDES, huge_pages=True),
                levels=pages.reserve(LEVEL, levels, huge_pages=True),
                bits=pages.reserve(np.uint64, 9 * levels, huge_pages=True),
                children=pages.reserve(np.int32, 9 * levels * 64, huge_pages=True),
                order_index=id_index.new_index(max_orders, huge_pages=True),
                name_index=id_index.new_index(len(columns["names"])),
                balance_index=id_index.new_index(positions),
                position_index=id_index.new_index(positions),
                session_index=id_index.new_index(1 << 16),
                expiries=pages.reserve(np.int64, 2 * 16 * order_slots).reshape(-1, 2),
                queue=pages.reserve(np.int64, positions),
                reports=_seen_as(report_types[0].dtype, report_rows),
                cancel_rejects=_seen_as(report_types[1].dtype, report_rows),
                mass_cancels=_seen_as(report_types[2].dtype, report_rows),
                admin_reports=_seen_as(report_types[3].dtype, report_rows),
                route_requests=_seen_as(report_types[4].dtype, report_rows),
                report_rows=report_rows,
                trades=_seen_as(market_types[0].dtype, market_rows),
                price_levels=_seen_as(market_types[1].dtype, market_rows),
                tops=_seen_as(market_types[2].dtype, market_rows),
                statuses=_seen_as(market_types[3].dtype, market_rows),
                book_orders=_seen_as(market_types[4].dtype, market_rows),
                market_rows=market_rows,
                touched=pages.reserve(np.int64, 4 * 4 * _BUFFER_ROWS).reshape(-1, 4),
                touched_symbols=pages.reserve(np.int64, max_symbols),
                symbol_cache=pages.reserve(np.int64, 2 << 14).reshape(-1, 2),
                account_cache=pages.reserve(np.int64, 2 << 14).reshape(-1, 2),
                ahead=np.zeros((read_ahead.RING, 2), np.int64),
                best=pages.reserve(np.int64, max_symbols * 5).reshape(-1, 5),
            ),
            _SOURCES,
            {
                "rows": {
                    name: np.zeros(0, event_type.dtype)
                    for name, event_type in zip(arrays.COMMAND_VIEWS, codec_of(_COMMANDS).event_types, strict=True)
                },
                "heap": {"heap": np.zeros(0, np.uint8)},
            },
        )
        self._names = columns["names"].view(np.uint8)
        self._names.flags.writeable = False
        engine.intern_empty(self._arrays)

    def apply(self, frame: Frame) -> list[Output]:
        """Apply one frame of matching.commands; see `pipelines.kernel.Kernel.apply`.

        `FrameError` reason: ``produced_at_out_of_range``.
        """
        if not 0 <= frame.produced_at <= MAX_PRODUCED_AT:
            raise FrameError(
                "produced_at_out_of_range",
                f"produced_at {frame.produced_at} is not in microseconds between 1970 and 2200",
            )
        state = self._arrays
        clock = max(state.meta.item(arrays.CLOCK), frame.produced_at)
        rows = np.ascontiguousarray(frame.events.rows)
        heap = frame.events.heap
        state.point("rows", rows, len(rows))
        state.point("heap", heap, len(heap))
        if state.work.item(arrays.EXPIRIES) + len(rows) > len(state.expiries):
            self._compact_expiries()
        market_rows = engine.apply_rows(state, clock)
        broken = state.work.item(arrays.BROKEN)
        if broken == arrays.OUTPUT_FULL:
            raise CapacityExceeded(
                f"matching: the frame of {len(rows)} events produced at {frame.produced_at} (trace {frame.trace}) "
                f"caused more than {_BUFFER_ROWS} reports"
            )
        if broken:
            what = "a fee could not be booked" if broken == arrays.FEE_LOST else "a reserve could not be restored"
            raise InvariantBroken(
                f"matching: {what} in the frame of {len(rows)} events produced at {frame.produced_at} "
                f"(trace {frame.trace})"
            )
        reports = self._outputs(_REPORTS, state.report_rows[: state.work.item(arrays.REPORTS)], MAX_REPORTS)
        if state.work.item(arrays.FRAME_TEXTS):
            reports = [Output(_REPORTS, _with_frame_texts(output.events, heap)) for output in reports]
        return [*reports, *self._outputs(_MARKET_DATA, state.market_rows[:market_rows], MAX_MARKET_ROWS)]

    def _outputs(self, topic: str, rows: Rows, most: int) -> list[Output]:
        """The rows, copied out of their buffer, in frames of at most ``most``."""
        if len(rows) < most:
            return [Output(topic, Events(rows.copy(), self._names))]
        return [
            Output(topic, Events(rows[first : first + most].copy(), self._names))
            for first in range(0, len(rows) + 1, most)
        ]

    def _compact_expiries(self) -> None:
        """Rebuild the heap of GTD orders from those that live; canceled ones stay in it until their time."""
        state = self._arrays
        slots = self._live_slots()
        kept_here = state.orders["flags"][slots] & ROUTED == 0
        slots = slots[(state.orders["time_in_force"][slots] == TimeInForce.GTD) & kept_here]
        expires_at = state.extras["expire_at"][slots]
        state.work[arrays.EXPIRIES] = expiry.rebuild(state.expiries, expires_at, state.orders["id"][slots].copy())

    def dirty_pages(self) -> dict[str, bytes]:
        return self._state.dirty_pages()

    def dirty_bytes(self) -> int:
        return self._state.dirty_bytes()

    def restore(self, pages: Mapping[str, bytes], state_version: int) -> None:
        """Load stored pages and rebuild what follows from them: books, indexes and expiries.

        Raises `InvariantBroken` when the pages do not make up a whole state (one is missing, say).
        """
        if state_version != STATE_VERSION:
            raise StateVersionError(f"matching: state version {state_version} found, this code reads {STATE_VERSION}")
        if not pages:
            return
        state = self._arrays
        for index in (state.name_index,):
            index.words[:] = 0
            index.segments[:] = 0
        for key, data in pages.items():
            self._state.load(key, data)
        engine.reindex(state)
        slots = self._live_slots()
        if len(slots) != int(state.meta[arrays.LIVE_ORDERS]):
            raise InvariantBroken(
                f"matching: {len(slots)} live orders in the pages, {int(state.meta[arrays.LIVE_ORDERS])} are expected; "
                "a stored page is missing"
            )
        order = np.argsort(state.orders["priority"][slots], kind="stable")
        engine.rebuild(state, slots[order])
        used = int(state.meta[arrays.ORDER_SLOTS])
        free = np.flatnonzero(state.orders["flags"][1 : used + 1] & LIVE == 0) + 1
        state.orders["next"][free] = np.concatenate([free[1:], [0]]) if len(free) else free
        state.work[arrays.FREE_ORDER] = free[0] if len(free) else 0
        self._state.dirty_pages()

    def _live_slots(self) -> NDArray[np.int64]:
        used = int(self._arrays.meta[arrays.ORDER_SLOTS])
        return np.flatnonzero(self._arrays.orders["flags"][: used + 1] & LIVE)

    @property
    def live_orders(self) -> int:
        """Orders in the books, stops that wait, and orders at venues."""
        return int(self._arrays.meta[arrays.LIVE_ORDERS])

    @property
    def symbols(self) -> list[str]:
        """Names of the symbols, in the order in which they came up."""
        count = int(self._arrays.meta[arrays.SYMBOLS])
        return [self._name(int(slot)) for slot in self._arrays.symbols["name"][:count]]

    def trading_status(self, place: int) -> TradingStatus:
        """Status of a symbol by its place in `symbols`."""
        return TradingStatus(int(self._arrays.symbols["status"][place]))

    def _name(self, slot: int) -> str:
        name = self._arrays.names[slot]
        words = np.array([name[f"text_{number}"] for number in range(4)], np.uint64)
        return words.tobytes()[: int(name["length"])].decode()

    def queue(self, symbol: int, kind: int) -> list[list[NDArray[np.void]]]:
        """The orders of one side (`pipelines.matching.ladder.BIDS` …) by level, best first, oldest first in a level.

        Walks the links that the matching uses, so a test that compares it with the records checks them.
        """
        state = self._arrays
        found = []
        number = int(state.sides[symbol * ladder.SIDES + kind]["best"])
        while number:
            level = state.levels[number]
            slots = []
            slot = int(level["head"])
            while slot:
                slots.append(slot)
                slot = int(state.orders[slot]["next"])
            found.append([state.orders[slot] for slot in slots])
            number = int(ladder.next_level(state, number))
        return found

    def depth(self, symbol: str) -> dict[str, list[tuple[int, int, int]]]:
        """The public book: (price, shown lots, orders) per level, best first, of ``bids`` and ``asks``."""
        if symbol not in self.symbols:
            return {"bids": [], "asks": []}
        number = self.symbols.index(symbol)
        state = self._arrays
        book: dict[str, list[tuple[int, int, int]]] = {}
        for name, kind in (("bids", ladder.BIDS), ("asks", ladder.ASKS)):
            rows = book[name] = []
            level = int(state.sides[number * ladder.SIDES + kind]["best"])
            while level:
                record = state.levels[level]
                rows.append((int(record["price"]), int(record["shown"]), int(record["orders"])))
                level = int(ladder.next_level(state, level))
        return book

    def order(self, order_id: int) -> dict[str, Any] | None:
        """A live order as in `state_rows`; None if there is none."""
        slot = find_order(self._arrays, order_id)
        return None if slot < 0 else self._order_row(self._arrays.orders[slot])

    def audit(self) -> dict[str, int]:
        """Check the invariants of the whole state; O(orders). Raises `InvariantBroken` with what was found.

        Books that match are not crossed; levels add up and hold what the index finds; reserves and open quantities are
        those of the open orders; of every asset the balances and the collected fees are what was deposited.
        """
        state = self._arrays
        seen = 0
        for symbol, name in enumerate(self.symbols):
            tops = []
            for kind in range(ladder.SIDES):
                number = int(state.sides[symbol * ladder.SIDES + kind]["best"])
                tops.append(int(state.levels[number]["price"]) if number else None)
                best_price = int(state.sides[symbol * ladder.SIDES + kind]["best_price"])
                if number and best_price != tops[-1]:
                    raise InvariantBroken(f"matching: {name} side {kind}: best price {best_price}, not {tops[-1]}")
                levels = 0
                last: int | None = None
                while number:
                    seen += self._audit_level(symbol, name, kind, number, last)
                    last = int(state.levels[number]["price"])
                    levels += 1
                    number = int(ladder.next_level(state, number))
                if levels != int(state.sides[symbol * ladder.SIDES + kind]["levels"]):
                    raise InvariantBroken(
                        f"matching: {name} side {kind} has {levels} levels in its tree, others counted"
                    )
            ready = int(state.symbols[symbol]["status"]) == TradingStatus.READY_TO_TRADE
            if ready and tops[0] is not None and tops[1] is not None and tops[0] >= tops[1]:
                raise InvariantBroken(f"matching: the book of {name} is crossed: bid {tops[0]}, ask {tops[1]}")
        seen += self._audit_routed()
        if seen != self.live_orders or seen != len(self._live_slots()):
            raise InvariantBroken(f"matching: {seen} orders in the books, {self.live_orders} are live")
        self._audit_reserves()
        return {"orders": seen, "symbols": len(self.symbols)}

    def _audit_level(self, symbol: int, name: str, kind: int, number: int, last: int | None) -> int:
        state = self._arrays
        level = state.levels[number]
        price = int(level["price"])
        falls = kind in (ladder.BIDS, ladder.SELL_STOPS)
        if last is not None and ((price >= last) if falls else (price <= last)):
            raise InvariantBroken(f"matching: {name} side {kind}: price {price} follows {last}")
        if int(ladder.find_level(state, symbol * ladder.SIDES + kind, price)) != number:
            raise InvariantBroken(f"matching: {name} side {kind}: level {price} is not found")
        shown = hidden = orders = previous = 0
        priority = -1
        slot = int(level["head"])
        while slot:
            order = state.orders[slot]
            extra = state.extras[slot]
            iceberg = bool(order["flags"] & HAS_EXTRA) and int(extra["display_quantity"]) > 0
            visible = int(extra["shown"]) if iceberg else int(order["leaves"])
            shown += visible
            hidden += int(order["leaves"]) - visible
            orders += 1
            waits = int(order["order_type"]) >= OrderType.STOP
            at = int(extra["stop_price"]) if waits else int(order["price"])
            good = (
                order["flags"] & LIVE
                and int(order["leaves"]) > 0
                and visible > 0
                and int(order["prev"]) == previous
                and int(order["level"]) == number
                and int(order["symbol"]) == symbol
                and int(order["side"]) == kind & 1
                and waits == (kind >= ladder.BUY_STOPS)
                and at == price
                and int(order["priority"]) > priority
                and int(find_order(state, int(order["id"]))) == slot
            )
            if not good:
                raise InvariantBroken(f"matching: {name} side {kind}: order {order} is out of place at {price}")
            previous, priority, slot = slot, int(order["priority"]), int(order["next"])
        found = (int(level["shown"]), int(level["hidden"]), int(level["orders"]), int(level["tail"]))
        if found != (shown, hidden, orders, previous):
            raise InvariantBroken(
                f"matching: {name} side {kind} level {price}: {found}, its orders are {shown, hidden}"
            )
        return orders

    def routed(self) -> list[NDArray[np.void]]:
        """The orders at venues, in the order in which they came."""
        state = self._arrays
        found = []
        slot = int(state.work[arrays.ROUTED_HEAD])
        while slot:
            found.append(state.orders[slot])
            slot = int(state.orders[slot]["next"])
        return found

    def _audit_routed(self) -> int:
        state = self._arrays
        routed = self.routed()
        priority = 0
        for order in routed:
            slot = int(find_order(state, int(order["id"])))
            left = int(state.routes[slot]["ordered"]) - int(order["executed"])
            good = (
                order["flags"] & LIVE
                and order["flags"] & ROUTED
                and 0 <= left <= int(order["leaves"])
                and (left == int(order["leaves"]) or state.routes[slot]["pending"])
                and int(order["priority"]) > priority
                and slot > 0
            )
            if not good:
                raise InvariantBroken(f"matching: routed order {order} is not whole: {state.routes[slot]}")
            priority = int(order["priority"])
        return len(routed)

    def _audit_reserves(self) -> None:
        state = self._arrays
        held: dict[int, int] = {}
        opened: dict[tuple[int, int, int], int] = {}
        counts: dict[int, int] = {}
        for slot in self._live_slots().tolist():
            order = state.orders[slot]
            if not order["flags"] & CHECKED:
                continue
            account, symbol, side, leaves = (int(order[name]) for name in ("account", "symbol", "side", "leaves"))
            instrument = state.symbols[symbol]
            counts[account] = counts.get(account, 0) + 1
            opened[account, symbol, side] = opened.get((account, symbol, side), 0) + leaves
            if int(state.accounts[account]["risk"]) != RiskModel.SPOT:
                continue
            if side == Side.BUY:
                price = int(order["price"])
                if order["flags"] & HAS_EXTRA:
                    price = int(state.extras[slot]["reserve_price"]) or price
                amount = leaves * (price * int(instrument["quote_per_tick"]) + int(instrument["taker_fee"]))
                key = account << 32 | int(instrument["quote_asset"])
            else:
                amount = leaves * int(instrument["base_per_lot"])
                key = account << 32 | int(instrument["base_asset"])
            held[key] = held.get(key, 0) + amount
        totals: dict[int, int] = {}
        deposited: dict[int, int] = {}
        spot = {RiskModel.SPOT}
        for balance in state.balances[: int(state.meta[arrays.BALANCES])]:
            key = int(balance["id"])
            account, asset = key >> 32, key & 0xFFFFFFFF
            if account == FEES_ACCOUNT:
                deposited[asset] = int(balance["available"])
                totals[asset] = totals.get(asset, 0) + int(balance["fees"])
                continue
            totals[asset] = totals.get(asset, 0) + int(balance["available"]) + int(balance["held"])
            if int(balance["held"]) != held.get(key, 0):
                raise InvariantBroken(
                    f"matching: account {account} holds {int(balance['held'])} of asset {asset}, its orders reserve "
                    f"{held.get(key, 0)}"
                )
            if int(state.accounts[account]["risk"]) in spot and int(balance["available"]) < 0:
                raise InvariantBroken(f"matching: account {account} owes asset {asset}: {int(balance['available'])}")
        for position in state.positions[: int(state.meta[arrays.POSITIONS])]:
            account, symbol = int(position["id"]) >> 32, int(position["id"]) & 0xFFFFFFFF
            for side, name in ((Side.BUY, "open_buy"), (Side.SELL, "open_sell")):
                if int(position[name]) != opened.get((account, symbol, int(side)), 0):
                    raise InvariantBroken(f"matching: {name} of account {account} in symbol {symbol}: {position}")
            if int(state.accounts[account]["risk"]) == RiskModel.MARGIN:
                instrument = state.symbols[symbol]
                asset = int(instrument["base_asset"])
                delivered = int(position["quantity"]) * int(instrument["base_per_lot"])
                totals[asset] = totals.get(asset, 0) + delivered
        accounts = int(state.meta[arrays.ACCOUNTS])
        for account in range(accounts):
            if int(state.accounts[account]["open_orders"]) != counts.get(account, 0):
                raise InvariantBroken(f"matching: account {account} counts {state.accounts[account]}")
        against_checked_only = all(int(state.accounts[number]["risk"]) for number in range(accounts))
        if against_checked_only and any(total != deposited.get(asset, 0) for asset, total in totals.items()):
            raise InvariantBroken(f"matching: deposited {deposited}, there is {totals}")

    def state_rows(self) -> Iterator[dict[str, Any]]:
        """Symbols, accounts, balances, positions and sessions in the order of their creation, then the live orders in
        the order of symbol, side and priority, then the routed ones; with the schema's names, integers as Python
        ints."""
        state = self._arrays
        meta = state.meta
        names = self._name
        for record in state.symbols[: int(meta[arrays.SYMBOLS])]:
            row = _plain(record, ("name", "word", "status", "checks", "base_asset", "quote_asset", "defined"))
            yield {
                "type": "Symbol",
                "symbol": names(int(record["name"])),
                "status": TradingStatus(int(record["status"])).name,
                "base_asset": names(int(record["base_asset"])),
                "quote_asset": names(int(record["quote_asset"])),
                **row,
            }
        for record in state.accounts[: int(meta[arrays.ACCOUNTS])]:
            yield {
                "type": "Account",
                "account": names(int(record["name"])),
                "risk": RiskModel(int(record["risk"])).name,
                "blocked": bool(record["blocked"]),
                "self_trade_prevention": SelfTradePrevention(int(record["prevention"])).name,
                **_plain(record, ("name", "word", "risk", "blocked", "prevention", "defined", "recent")),
            }
        for record in state.balances[: int(meta[arrays.BALANCES])]:
            account, asset = int(record["id"]) >> 32, int(record["id"]) & 0xFFFFFFFF
            if account == FEES_ACCOUNT:
                yield {
                    "type": "Asset",
                    "asset": names(asset),
                    "deposited": int(record["available"]),
                    "fees": int(record["fees"]),
                }
            else:
                owner = names(int(state.accounts[account]["name"]))
                yield {"type": "Balance", "account": owner, "asset": names(asset), **_plain(record, ("id", "fees"))}
        for record in state.positions[: int(meta[arrays.POSITIONS])]:
            yield {
                "type": "Position",
                "account": names(int(state.accounts[int(record["id"]) >> 32]["name"])),
                "symbol": names(int(state.symbols[int(record["id"]) & 0xFFFFFFFF]["name"])),
                **_plain(record, ("id", "base", "quote")),
            }
        for record in state.sessions[: int(meta[arrays.SESSIONS])]:
            yield {"type": "Session", "session": int(record["id"]), **_plain(record, ("id",))}
        for symbol in range(int(meta[arrays.SYMBOLS])):
            for kind in range(ladder.SIDES):
                for level in self.queue(symbol, kind):
                    yield from map(self._order_row, level)
        yield from map(self._order_row, self.routed())

    def _order_row(self, order: Any) -> dict[str, Any]:
        state = self._arrays
        row: dict[str, Any] = {
            "type": "Order",
            "order_id": int(order["id"]),
            "symbol": self._name(int(state.symbols[int(order["symbol"])]["name"])),
            "account": self._name(int(state.accounts[int(order["account"])]["name"])),
            "side": Side(int(order["side"])).name,
            "order_type": OrderType(int(order["order_type"])).name,
            "time_in_force": TimeInForce(int(order["time_in_force"])).name,
            "price": int(order["price"]),
            "leaves_quantity": int(order["leaves"]),
            "cumulative_quantity": int(order["executed"]),
        }
        if order["flags"] & ROUTED:
            route = state.routes[int(find_order(state, int(order["id"])))]
            row["leaves_quantity"] = int(route["ordered"]) - int(order["executed"])
            row["destination"] = self._name(int(state.accounts[int(route["venue"])]["name"]))
            for name in ("number", "request", "pending", "asked_price", "asked_quantity", "expire_at", "reserve_price"):
                if int(route[name]):
                    row[name] = int(route[name])
        elif order["flags"] & HAS_EXTRA:
            slot = int(find_order(state, int(order["id"])))
            extra = state.extras[slot]
            for name in ("shown", "display_quantity", "stop_price", "expire_at", "reserve_price"):
                if int(extra[name]):
                    row[name] = int(extra[name])
        return row


def _with_frame_texts(reports: Events, frame_heap: NDArray[np.uint8]) -> Events:
    """Reports with a heap of their own, where some texts lie in the command frame (`arrays.IN_FRAME`)."""
    given = Events(reports.rows, frame_heap)
    moved: dict[int, int] = {}
    heap = HeapBuilder()
    rows = reports.rows
    for row, kind in enumerate(rows[:, 0].tolist()):
        for word in _REPORT_TEXTS[kind]:
            at = int(rows[row, word])
            if at not in moved:
                in_frame = bool(at & arrays.IN_FRAME)
                moved[at] = heap.add(raw(given if in_frame else reports, at & ~arrays.IN_FRAME))
            rows[row, word] = moved[at]
    return Events(rows, heap.array())


def find_order(state: arrays.MatchingArrays, order_id: int) -> int:
    """Slot of a live order, -1 if there is none."""
    slot: int = engine.find_order(state, order_id)
    return slot


def _plain(record: Any, without: tuple[str, ...]) -> dict[str, int]:
    return {name: int(record[name]) for name in record.dtype.names if name not in without and name != "unused"}


def _seen_as(dtype: np.dtype[np.void], rows: Rows) -> NDArray[np.void]:
    """The rows as one event type; many times faster than ``rows.view(dtype)``."""
    view: NDArray[np.void] = np.ndarray(len(rows), dtype, rows)
    return view
