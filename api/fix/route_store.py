"""What a router must not lose: a `SessionStore` with the orders at its venue and the executions it has heard of."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import ClassVar, Final

from api.fix.store import SessionStore

__all__ = ["Route", "RouteStore"]

_ROUTES_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS routes (
    shard INTEGER, number INTEGER, order_id INTEGER, symbol TEXT, side TEXT, order_type TEXT, time_in_force TEXT,
    price INTEGER, quantity INTEGER, expire_at INTEGER, cl_ord_id TEXT, pending TEXT, pending_kind TEXT,
    pending_price INTEGER, pending_quantity INTEGER, cumulative INTEGER, state TEXT, sent_at INTEGER,
    updated_at INTEGER, PRIMARY KEY (shard, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS live_routes ON routes (shard) WHERE state != 'done';
CREATE TABLE IF NOT EXISTS route_ids (cl_ord_id TEXT PRIMARY KEY, shard INTEGER, number INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS executions (
    shard INTEGER, number INTEGER, exec_id TEXT, heard_at INTEGER, PRIMARY KEY (shard, number, exec_id)
) WITHOUT ROWID;
"""


@dataclass(slots=True)
class Route:
    """An order at the venue. Side, order type and time in force as in FIX; prices in ticks, quantities in lots, times
    in UTC microseconds. ``cl_ord_id`` and ``quantity`` (the total) are those in force there, ``pending`` is the ClOrdID
    of the cancel (``pending_kind`` F) or replace (G) under way.

    ``state``: waiting (never sent), sent (not answered), again (sent with PossResend, not answered), doubtful (in the
    log, but from before this store was made: whether the venue knows it must be asked), live, done.
    """

    shard: int
    number: int
    order_id: int
    symbol: str
    side: str
    order_type: str
    time_in_force: str
    price: int
    quantity: int
    expire_at: int
    cl_ord_id: str
    pending: str
    pending_kind: str
    pending_price: int
    pending_quantity: int
    cumulative: int
    state: str
    sent_at: int
    updated_at: int

    @property
    def is_filled(self) -> bool:
        return self.cumulative >= self.quantity


class RouteStore(SessionStore):
    """See the module."""

    schema: ClassVar[str] = SessionStore.schema + _ROUTES_SCHEMA

    def routes(self) -> list[Route]:
        """Those that are not done, in the order of the log."""
        rows = self._db.execute("SELECT * FROM routes WHERE state != 'done' ORDER BY shard, number")
        return [Route(*row) for row in rows]

    def route_of(self, cl_ord_id: str) -> Route | None:
        """The order that a ClOrdID is about, done or not."""
        row = self._db.execute(
            "SELECT routes.* FROM routes JOIN route_ids USING (shard, number) WHERE route_ids.cl_ord_id = ?",
            (cl_ord_id,),
        ).fetchone()
        return row and Route(*row)

    def put_route(self, route: Route) -> None:
        self._db.execute(_PUT_ROUTE, astuple(route))

    def add_id(self, cl_ord_id: str, route: Route) -> None:
        self._db.execute("INSERT OR IGNORE INTO route_ids VALUES (?, ?, ?)", (cl_ord_id, route.shard, route.number))

    def is_heard(self, route: Route, exec_id: str, now: int) -> bool:
        """Whether an execution of the order was heard of before; from now on it was."""
        added = self._db.execute(
            "INSERT OR IGNORE INTO executions VALUES (?, ?, ?, ?)", (route.shard, route.number, exec_id, now)
        )
        return added.rowcount == 0

    def mark(self, name: str, value: int) -> int:
        """A value that is set once: the one that it has."""
        self._db.execute("INSERT OR IGNORE INTO counters VALUES (?, ?)", (name, value))
        return int(self._db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()[0])

    def forget_before(self, time: int) -> None:
        """Forget messages sent and orders ended before a time, with their ids and executions."""
        super().forget_before(time)
        for table in ("route_ids", "executions"):
            self._db.execute(f"DELETE FROM {table} WHERE (shard, number) IN ({_ENDED})", (time,))  # noqa: S608 - constants
        self._db.execute(f"DELETE FROM routes WHERE (shard, number) IN ({_ENDED})", (time,))  # noqa: S608


_PUT_ROUTE: Final = f"INSERT OR REPLACE INTO routes VALUES ({', '.join('?' * len(fields(Route)))})"  # noqa: S608
_ENDED: Final = "SELECT shard, number FROM routes WHERE state = 'done' AND updated_at < ?"
