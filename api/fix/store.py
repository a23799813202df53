"""What a FIX process must not lose: one SQLite file, changed in transactions that are on disk when they end.

Sequence numbers, messages sent, the ClOrdIDs and orders of every session, the frames of orders that Kafka has not
acknowledged, and the place in matching.reports are one state: a batch of reports moves the place and stores the
messages made of them at once, and an order is stored together with the sequence number of the message that it came in.
So a restart neither loses nor repeats a report, and an order that is sent again is known.

`SessionStore` is what gateway and router have in common, `Store` the gateway's. Used from one thread. A lock file keeps
a second process away from the same store.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import ClassVar, Final

from pipelines.errors import StreambankError

__all__ = ["CopiedOrder", "Order", "PendingFrame", "Place", "Request", "Sent", "SessionStore", "Store", "StoreError"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS sessions (comp_id TEXT PRIMARY KEY, next_in INTEGER NOT NULL, next_out INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sent (
    comp_id TEXT, sequence INTEGER, msg_type TEXT, sent_at INTEGER, body BLOB, PRIMARY KEY (comp_id, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS frames (
    number INTEGER PRIMARY KEY AUTOINCREMENT, shard INTEGER, trace TEXT, after INTEGER, made_at INTEGER, body BLOB
);
CREATE TABLE IF NOT EXISTS places (shard INTEGER PRIMARY KEY, next_offset INTEGER, sequence INTEGER);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER);
"""
_ORDERS_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS orders (
    order_id INTEGER PRIMARY KEY, comp_id TEXT, cl_ord_id TEXT, account TEXT, symbol TEXT, side TEXT, order_type TEXT,
    time_in_force TEXT, price INTEGER, stop_price INTEGER, quantity INTEGER, cumulative INTEGER, leaves INTEGER,
    notional TEXT, status TEXT, updated_at INTEGER
);
CREATE INDEX IF NOT EXISTS live_orders ON orders (comp_id) WHERE status IN ('A', '0', '1', '9');
CREATE TABLE IF NOT EXISTS requests (
    comp_id TEXT, cl_ord_id TEXT, kind TEXT, order_id INTEGER, original TEXT, trace TEXT, position INTEGER,
    stop_price INTEGER, state TEXT, made_at INTEGER, PRIMARY KEY (comp_id, cl_ord_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS copied_orders (
    shard INTEGER, order_id INTEGER, account TEXT, symbol TEXT, side TEXT, price INTEGER, quantity INTEGER,
    cumulative INTEGER, leaves INTEGER, notional TEXT, status TEXT, PRIMARY KEY (shard, order_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS open_requests ON requests (trace) WHERE state IN ('sent', 'routed');
"""
LIVE: Final = frozenset("A019")
"""OrdStatus of orders that can still change: pending new, new, partially filled, suspended."""


class StoreError(StreambankError):
    """The store cannot be used."""


@dataclass(slots=True)
class Order:
    """An order of a session. Side, order type, time in force and status as in FIX; prices in ticks, quantities in lots,
    ``notional`` the sum of ticks x lots of its trades, ``updated_at`` UTC microseconds."""

    order_id: int
    comp_id: str
    cl_ord_id: str
    account: str
    symbol: str
    side: str
    order_type: str
    time_in_force: str
    price: int
    stop_price: int
    quantity: int
    cumulative: int
    leaves: int
    notional: int
    status: str
    updated_at: int

    @property
    def is_live(self) -> bool:
        return self.status in LIVE


@dataclass(slots=True)
class CopiedOrder:
    """A live order of an account whose reports are copied; ``side`` BUY or SELL, the others as of `Order`."""

    shard: int
    order_id: int
    account: str
    symbol: str
    side: str
    price: int
    quantity: int
    cumulative: int
    leaves: int
    notional: int
    status: str


@dataclass(slots=True)
class Request:
    """A ClOrdID: what it asked for (new, cancel, replace), of which order, and where in the log it is. ``state`` is
    sent, routed (a venue was asked), done or refused; ``stop_price`` is that of a replace, 0 to keep."""

    comp_id: str
    cl_ord_id: str
    kind: str
    order_id: int
    original: str
    trace: str
    position: int
    stop_price: int
    state: str
    made_at: int


@dataclass(frozen=True, slots=True)
class PendingFrame:
    """A frame that Kafka has not acknowledged; if the log holds it, then behind offset ``after``."""

    number: int
    shard: int
    trace: str
    after: int
    made_at: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that may be asked for again; ``body`` is what follows the header."""

    sequence: int
    msg_type: str
    sent_at: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where the reports of a shard go on, and the sequence of the last frame that was read (0: none)."""

    next_offset: int
    sequence: int


class SessionStore:
    """Sequence numbers, messages sent, pending frames and the place in the reports. Raises `StoreError` when the file
    is in use."""

    schema: ClassVar[str] = _SCHEMA

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StoreError(f"another process uses {path}; stop it or choose another store") from None
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(self.schema)

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes within it, on disk at its end; none of them when it raises."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # --- sessions --------------------------------------------------------------------------------------------------

    def numbers(self, comp_id: str) -> tuple[int, int]:
        """The next sequence numbers in and out."""
        found = self._db.execute("SELECT next_in, next_out FROM sessions WHERE comp_id = ?", (comp_id,)).fetchone()
        return found or (1, 1)

    def set_numbers(self, comp_id: str, next_in: int, next_out: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (comp_id, next_in, next_out))

    def add_sent(self, comp_id: str, sent: Sent) -> None:
        self._db.execute("INSERT INTO sent VALUES (?, ?, ?, ?, ?)", (comp_id, *astuple(sent)))

    def sent(self, comp_id: str, first: int, last: int) -> Iterator[Sent]:
        """The messages that may be sent again, from ``first`` to ``last``; session messages are not among them."""
        rows = self._db.execute(
            "SELECT sequence, msg_type, sent_at, body FROM sent"
            " WHERE comp_id = ? AND sequence BETWEEN ? AND ? ORDER BY sequence",
            (comp_id, first, last),
        )
        return (Sent(*row) for row in rows)

    def forget_sent(self, comp_id: str) -> None:
        self._db.execute("DELETE FROM sent WHERE comp_id = ?", (comp_id,))

    def count(self, name: str) -> int:
        """The next number of a sequence, from 1."""
        row = self._db.execute(
            "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
            (name,),
        ).fetchone()
        return int(row[0])

    # --- the log ---------------------------------------------------------------------------------------------------

    def add_frame(self, shard: int, trace: str, after: int, made_at: int, body: bytes) -> PendingFrame:
        found = self._db.execute(
            "INSERT INTO frames (shard, trace, after, made_at, body) VALUES (?, ?, ?, ?, ?) RETURNING number",
            (shard, trace, after, made_at, body),
        ).fetchone()
        return PendingFrame(int(found[0]), shard, trace, after, made_at, body)

    def pending_frames(self, shard: int) -> list[PendingFrame]:
        return [
            PendingFrame(*row)
            for row in self._db.execute("SELECT * FROM frames WHERE shard = ? ORDER BY number", (shard,))
        ]

    def drop_frames(self, numbers: Iterable[int]) -> None:
        self._db.executemany("DELETE FROM frames WHERE number = ?", ((number,) for number in numbers))

    def places(self) -> dict[int, Place]:
        return {row[0]: Place(row[1], row[2]) for row in self._db.execute("SELECT * FROM places")}

    def set_place(self, shard: int, place: Place) -> None:
        self._db.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", (shard, place.next_offset, place.sequence))

    def forget_before(self, time: int) -> None:
        """Forget messages sent before a time."""
        self._db.execute("DELETE FROM sent WHERE sent_at < ?", (time,))


class Store(SessionStore):
    """A gateway's, with orders and ClOrdIDs."""

    schema: ClassVar[str] = _SCHEMA + _ORDERS_SCHEMA

    # --- orders ----------------------------------------------------------------------------------------------------

    def live_orders(self) -> list[Order]:
        rows = self._db.execute("SELECT * FROM orders WHERE status IN ('A', '0', '1', '9') ORDER BY updated_at")
        return [_order(row) for row in rows]

    def order(self, order_id: int) -> Order | None:
        row = self._db.execute("SELECT * FROM orders WHERE order_id = ?", (order_id,)).fetchone()
        return row and _order(row)

    def put_order(self, order: Order) -> None:
        values = [
            str(value) if name == "notional" else value for name, value in zip(_ORDER, astuple(order), strict=True)
        ]
        self._db.execute(_PUT_ORDER, values)

    def request(self, comp_id: str, cl_ord_id: str) -> Request | None:
        row = self._db.execute(
            "SELECT * FROM requests WHERE comp_id = ? AND cl_ord_id = ?", (comp_id, cl_ord_id)
        ).fetchone()
        return row and Request(*row)

    def put_request(self, request: Request) -> None:
        self._db.execute(_PUT_REQUEST, astuple(request))

    def open_requests(self) -> list[Request]:
        """Those that were not answered yet."""
        return [Request(*row) for row in self._db.execute("SELECT * FROM requests WHERE state IN ('sent', 'routed')")]

    def copied_orders(self) -> list[CopiedOrder]:
        rows = [list(row) for row in self._db.execute("SELECT * FROM copied_orders")]
        for row in rows:
            row[_COPIED_NOTIONAL] = int(row[_COPIED_NOTIONAL])
        return [CopiedOrder(*row) for row in rows]

    def put_copied(self, order: CopiedOrder) -> None:
        values = list(astuple(order))
        values[_COPIED_NOTIONAL] = str(order.notional)
        self._db.execute(_PUT_COPIED, values)

    def drop_copied(self, order: CopiedOrder) -> None:
        self._db.execute("DELETE FROM copied_orders WHERE (shard, order_id) = (?, ?)", (order.shard, order.order_id))

    def forget_before(self, time: int) -> None:
        """Forget messages sent and orders ended before a time, with their ClOrdIDs."""
        super().forget_before(time)
        self._db.execute(f"DELETE FROM requests WHERE order_id IN ({_ENDED})", (time,))  # noqa: S608 - a constant
        self._db.execute(f"DELETE FROM orders WHERE order_id IN ({_ENDED})", (time,))  # noqa: S608


_ORDER: Final = tuple(field.name for field in fields(Order))
_REQUEST: Final = tuple(field.name for field in fields(Request))
_PUT_ORDER: Final = f"INSERT OR REPLACE INTO orders VALUES ({', '.join('?' * len(_ORDER))})"  # noqa: S608
_PUT_REQUEST: Final = f"INSERT OR REPLACE INTO requests VALUES ({', '.join('?' * len(_REQUEST))})"  # noqa: S608
_ENDED: Final = "SELECT order_id FROM orders WHERE status NOT IN ('A', '0', '1', '9') AND updated_at < ?"
_NOTIONAL: Final = _ORDER.index("notional")
_COPIED: Final = tuple(field.name for field in fields(CopiedOrder))
_COPIED_NOTIONAL: Final = _COPIED.index("notional")
_PUT_COPIED: Final = f"INSERT OR REPLACE INTO copied_orders VALUES ({', '.join('?' * len(_COPIED))})"  # noqa: S608


def _order(row: tuple[object, ...]) -> Order:
    values = list(row)
    values[_NOTIONAL] = int(str(values[_NOTIONAL]))
    return Order(*values)  # type: ignore[arg-type]
