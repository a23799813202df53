"""Order entry: orders and admin events to matching.commands, and their reports back; shared by REST and gRPC.

A command goes to the shard of its symbol (`pipelines.trading.routing`). What concerns every instrument (an account's
definition, a market-wide status, a kill switch) goes to all shards. A deposit goes to one: an account's funds are kept
per shard, so it says which instrument's market they are for.

A client enters, changes and sees the orders of the accounts that it was granted, and no others (`api.clients`).
Cancels and amendments name symbol and account: the symbol finds the shard, and the matching kernel refuses a cancel of
another account's order. Duplicates of a live order id are refused by the kernel; a repeated request is answered by its
Idempotency-Key. Each account may send ``orders_per_minute`` commands, whoever sends them.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from api.auth import Principal
from api.batching import Batcher
from api.bodies import Parsed
from api.chains import NoChains
from api.clients import EVERY_ACCOUNT
from api.config import ApiSettings
from api.idempotency import IdempotencyStore
from api.ingest import Ingest, SentRun, WriteRoute, without
from api.market_data import Books, Feed
from api.problems import Problem
from api.producer import KafkaSender
from api.rate_limit import RateLimiter
from api.reports import ReportReader, taker_side
from infra.settings import Settings
from pipelines.catalogue import ALL_SHARDS, MATCHING_COMMANDS, MATCHING_REPORTS, MATCHING_SHARDS, PIPELINES
from pipelines.codec import codec_of, raw, text
from pipelines.event_json import render_events
from pipelines.frames import Events
from pipelines.trading.routing import shard_of

__all__ = ["ADMIN_ROUTE", "ORDER_ROUTES", "OrderIngest", "Trading", "not_granted", "order_route", "read_order_id"]

ORDER_COMMANDS: Final = ("NewOrder", "CancelOrder", "AmendOrder", "MassCancel")
ADMIN_COMMANDS: Final = (
    "SymbolDefinition", "AccountDefinition", "Deposit", "SecurityTradingStatus", "KillSwitch", "MarkPrice",
    "SessionLimit", "MassCancel", "VenueReport",
)  # fmt: skip
ORDER_ROUTES: Final = (
    WriteRoute("/v1/orders", ("NewOrder",)),
    WriteRoute("/v1/orders/events", ORDER_COMMANDS),
)
ADMIN_ROUTE: Final = WriteRoute("/v1/trading/events", ADMIN_COMMANDS)

_COMMANDS: Final = codec_of(MATCHING_COMMANDS.name)
_REPORTS: Final = codec_of(MATCHING_REPORTS.name)
_NAMES: Final = [kind.name for kind in _COMMANDS.event_types]
_FIELDS: Final = [{found.name: found.word for found in kind.fields} for kind in _COMMANDS.event_types]
_SYMBOL_WORDS: Final = [fields.get("symbol") for fields in _FIELDS]
_MAY_CONCERN_ALL: Final = frozenset({"MassCancel", "SecurityTradingStatus"})
"""With an empty symbol these are for every instrument."""
_NAMED_TEXTS: Final = ("symbol", "account", "asset")


class OrderIngest(Ingest):
    """Orders and admin events, for one request by `for_client` or `for_admin`."""

    def __init__(
        self,
        config: ApiSettings,
        batcher: Batcher,
        reports: ReportReader,
        limiter: RateLimiter,
        accounts_limiter: RateLimiter,
        keys: IdempotencyStore,
    ) -> None:
        super().__init__(config, _COMMANDS, _REPORTS, batcher, reports, limiter, keys)
        self._accounts_limiter = accounts_limiter
        self._is_admin = False
        self._market: str | None = None
        self._client: Principal | None = None

    def for_client(self, client: Principal) -> OrderIngest:
        """The same for a request of ``client``, who may trade the accounts that it was granted."""
        own = copy.copy(self)
        own._client = client
        return own

    def for_admin(self, market: str | None) -> OrderIngest:
        """The same for a request that may send admin events for any account, its deposits being for the shard of
        ``market``."""
        admin = copy.copy(self)
        admin._is_admin = True
        admin._market = market
        return admin

    def _chains(self) -> NoChains:
        return NoChains()

    def _routable(self, parsed: Parsed) -> Parsed:
        for kind, needed in (
            ("CancelOrder", ("symbol", "account")),
            ("AmendOrder", ("symbol", "account")),
            ("MassCancel", () if self._is_admin else ("account",)),
        ):
            for name in needed:
                lost = _empty(parsed.events, kind, name)
                error = {"pointer": f"/{name}", "detail": f"a {kind} needs it"}
                parsed = without(parsed, lost, self._batcher.linked, error)
        deposit = parsed.events.rows[:, 0] == _NAMES.index("Deposit")
        if self._market is None and deposit.any():
            error = {"pointer": "", "detail": "a Deposit needs ?symbol= in the URL: funds are kept per market's shard"}
            parsed = without(parsed, deposit, self._batcher.linked, error)
        if not self._is_admin:
            self._require_grants(parsed.events)
        return parsed

    def _require_grants(self, events: Events) -> None:
        """Raises `Problem` 403 when an event is for an account that the client was not granted."""
        if self._client is not None and EVERY_ACCOUNT in self._client.accounts:
            return
        words = {row[_FIELDS[row[0]]["account"]] for row in events.rows.tolist()}
        for account in sorted({text(events, word) for word in words}):
            if self._client is None or not self._client.may_trade(account):
                raise not_granted(account)

    def _shards(self, events: Events) -> NDArray[np.int64]:
        return np.array([self._shard(events, row) for row in events.rows.tolist()], np.int64)

    def _shard(self, events: Events, row: list[int]) -> int:
        name, word = _NAMES[row[0]], _SYMBOL_WORDS[row[0]]
        if name == "Deposit":
            return shard_of(self._market or "")
        if word is None:
            return ALL_SHARDS
        symbol = raw(events, row[word])
        return shard_of(symbol) if symbol or name not in _MAY_CONCERN_ALL else ALL_SHARDS

    async def _admit(self, parsed: Parsed) -> None:
        if self._is_admin:
            return
        events = parsed.events
        accounts = Counter(text(events, row[_FIELDS[row[0]]["account"]]) for row in events.rows.tolist())
        for account, commands in accounts.items():
            await self._accounts_limiter.charge(account, commands)

    def _described(self, events: Events) -> list[dict[str, Any]]:
        described = []
        for row in events.rows.tolist():
            fields = _FIELDS[row[0]]
            entry: dict[str, Any] = {"type": _NAMES[row[0]]}
            if "order_id" in fields:
                entry["order_id"] = _json_integer(row[fields["order_id"]])
            entry |= {name: text(events, row[fields[name]]) for name in _NAMED_TEXTS if name in fields}
            described.append(entry)
        return described

    def _results_of(self, entry: SentRun, sequence: int, replies: Events) -> list[dict[str, Any]]:
        assert entry.waiter is not None
        senders = self._described(entry.run.events)
        results = []
        for report in render_events(_REPORTS, replies):
            number = int(report["input"]) - entry.waiter.start
            sender = senders[number]
            if not self._is_admin and report["type"] == "ExecutionReport":
                if report["order_id"] != sender.get("order_id") and report["account"] != sender["account"]:
                    continue  # another account's order that this one set off: a stop, say
                report = taker_side(report)
            report.pop("input", None)
            results.append({
                "position": entry.positions[number], **report, "shard": entry.run.shard, "sequence": sequence,
            })  # fmt: skip
        return results

    def _verdict(self, results: list[dict[str, Any]], sent: Any, is_array: bool) -> tuple[int, dict[str, str]]:
        for report in results:
            refused = report["type"] in ("OrderCancelReject",) or report.get("exec_type") == "REJECTED"
            if refused or (report["type"] in ("AdminReport", "MassCancelReport") and report["reason"] != "NONE"):
                return 200, {}
        first = sent.events[0] if sent.events else {}
        if is_array or first.get("type") != "NewOrder":
            return 201, {}
        return 201, {"Location": f"/v1/orders/{first['order_id']}?symbol={quote(first['symbol'], safe='')}"}


class Trading:
    """What one worker needs for order entry. Made in its event loop."""

    def __init__(
        self,
        settings: Settings,
        config: ApiSettings,
        events_limit: RateLimiter,
        accounts_limit: RateLimiter,
        keys: IdempotencyStore,
    ) -> None:
        self.accounts_limit = accounts_limit
        self.events_limit = events_limit
        self.sender = KafkaSender(settings, MATCHING_COMMANDS, config.delivery_seconds)
        self.batcher = Batcher(
            _COMMANDS,
            self.sender,
            shards=MATCHING_SHARDS,
            frame_events=min(config.frame_events, PIPELINES["matching"].max_frame_events),
            frame_bytes=config.frame_bytes,
            frames_in_flight=config.frames_in_flight,
            linger_seconds=0.0,  # rounds gather instead
            buffered_events=config.buffered_events,
            together=True,
            pace_seconds=config.orders_pace_seconds,
        )
        self.reports = ReportReader(settings)
        self.books = Books(settings, config.valkey_seconds)
        self.feed = Feed(settings, self.books)
        self.ingest = OrderIngest(config, self.batcher, self.reports, events_limit, accounts_limit, keys)


def not_granted(account: str) -> Problem:
    """What a client is told that may not trade for an account."""
    return Problem("account-not-granted", f"account: the client was not granted {account[:40]!r}.")


def order_route(kind: str, order_id: str) -> WriteRoute:
    """The route of a cancel or an amendment whose order the path names; raises `Problem` 400."""
    return WriteRoute("/v1/orders/{id}", (kind,), {"order_id": read_order_id(order_id)})


def read_order_id(order_id: str) -> int:
    """An order id of a path; raises `Problem` 400."""
    digits = order_id.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19 or not -(2**63) <= int(order_id) < 2**63:
        raise Problem("bad-parameter", f"id: must be a 64-bit integer; found {order_id[:60]}.", parameter="id")
    return int(order_id)


def _empty(events: Events, kind: str, name: str) -> NDArray[np.bool_]:
    """Which events are of ``kind`` and leave the text ``name`` empty; shape (n,)."""
    number = _NAMES.index(kind)
    words = events.rows[:, _FIELDS[number][name]]
    empty: NDArray[np.bool_] = (events.rows[:, 0] == number) & ((words & 0xFFFFFFFF) == 0)
    return empty


def _json_integer(number: int) -> int | str:
    return number if -(2**53) <= number <= 2**53 else str(number)
