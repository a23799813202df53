"""An execution venue for tests: QuickFIX/J as acceptor (`tests.support.quickfix`), and orders that this process keeps.

The engine can be killed and started again; its sequence numbers and messages are in files, the orders are here, as a
venue's database would keep them. `Venue.mode` says what happens to a new order: ``fill`` it at its limit, ``half`` of
it, ``accept`` it only, ``reject`` it, or ``hang`` without a word.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509 import load_pem_x509_certificate

from tests.support.quickfix import TRUST_PASSWORD, Engine, Fix
from tests.support.waiting import wait_until

Mode = Literal["fill", "half", "accept", "reject", "hang"]
LIVE = frozenset("01")


@dataclass
class VenueOrder:
    """An order as the venue has it; ``cl_ord_id`` is the one in force, status as in FIX."""

    order_id: str
    cl_ord_id: str
    symbol: str
    side: str
    price: str
    quantity: int
    cumulative: int = 0
    notional: int = 0
    status: str = "0"


class Venue:
    """One session: the venue's CompID is ``name``, the router's is STREAMBANK. ``directory`` keeps the engine's files;
    ``tls`` has server.pem and server-key.pem."""

    def __init__(self, directory: Path, name: str, port: int, tls: Path) -> None:
        self.name, self.port = name, port
        self.mode: Mode = "fill"
        self.orders: dict[str, VenueOrder] = {}
        """By every ClOrdID of an order."""
        self.asked: list[str] = []
        """ClOrdIDs of the status requests."""
        self.new: list[Fix] = []
        """New orders, one that came twice included."""
        self._executions = 0
        self._lock = threading.RLock()
        directory.mkdir(parents=True, exist_ok=True)
        key_store = directory / "venue.p12"
        key_store.write_bytes(
            pkcs12.serialize_key_and_certificates(
                b"venue",
                load_pem_private_key((tls / "server-key.pem").read_bytes(), None),  # type: ignore[arg-type]
                load_pem_x509_certificate((tls / "server.pem").read_bytes()),
                None,
                BestAvailableEncryption(TRUST_PASSWORD.encode()),
            )
        )
        self._directory = directory
        self._configuration = (
            "[default]\nConnectionType=acceptor\nNonStopSession=Y\nUseDataDictionary=Y\nDataDictionary=FIX44.xml\n"
            "ValidateFieldsOutOfOrder=Y\nResetOnLogon=N\n"
            f"FileStorePath={directory / 'store'}\n"
            f"[session]\nBeginString=FIX.4.4\nSenderCompID={name}\nTargetCompID=STREAMBANK\n"
            f"SocketAcceptAddress=127.0.0.1\nSocketAcceptPort={port}\n"
            f"SocketUseSSL=Y\nSocketKeyStore={key_store}\nKeyStoreType=PKCS12\n"
            f"SocketKeyStorePassword={TRUST_PASSWORD}\n"
        )
        self.engine: Engine | None = None
        self.start()

    def start(self) -> None:
        """Begin to listen, after `kill` too."""
        with self._lock:
            self.engine = Engine(self._directory, self._configuration, "", "", self._heard)
        wait_until(lambda: self.engine and self.engine.count("started"), 60, "the venue listens")

    def kill(self) -> None:
        """End the engine by SIGKILL. What this process told it to say is on its disk by then, as with a venue that
        stores an execution before it is one."""
        engine = self.engine
        assert engine is not None
        engine.tell("echo", "done")
        wait_until(lambda: engine.count("echo"), 60, "the venue has stored what it said")
        engine.kill()

    def close(self) -> None:
        assert self.engine is not None
        if self.engine.process.poll() is None:
            self.engine.close()

    # --- what a test does ------------------------------------------------------------------------------------------

    def fill(self, cl_ord_id: str, quantity: int, price: int) -> Fix:
        """Trade part of an order; returns the message, so that it can be sent again."""
        with self._lock:
            order = self.orders[cl_ord_id]
            order.cumulative += quantity
            order.notional += quantity * price
            order.status = "2" if order.cumulative == order.quantity else "1"
            return self._tell(order, "F", {32: f"{quantity}", 31: f"{price}"})

    def cancel(self, cl_ord_id: str) -> Fix:
        """End an order unasked."""
        with self._lock:
            order = self.orders[cl_ord_id]
            order.status = "4"
            return self._tell(order, "4", {})

    def say(self, fields: Fix, msg_type: str = "8") -> None:
        assert self.engine is not None
        self.engine.send(msg_type, fields)

    def sent(self) -> list[Path]:
        """Files with the FIX messages that the engine stored as sent."""
        return sorted((self._directory / "store").glob("*.body"))

    def unique(self) -> list[VenueOrder]:
        """Its orders, oldest first."""
        with self._lock:
            return list({order.order_id: order for order in self.orders.values()}.values())

    # --- what the venue does ---------------------------------------------------------------------------------------

    def _heard(self, event: str, message: Fix) -> None:
        if event != "app":
            return
        with self._lock:
            match message.get(35):
                case "D":
                    self._new(message)
                case "F" | "G":
                    self._change(message)
                case "H":
                    self._status(message)

    def _new(self, message: Fix) -> None:
        cl_ord_id = message[11]
        self.new.append(message)
        if self.mode == "hang":
            return
        if cl_ord_id in self.orders:
            self._tell(self.orders[cl_ord_id], "I", {17: "0"})
            return
        order = VenueOrder(
            f"V{len(self.orders) + 1}", cl_ord_id, message[55], message[54], message.get(44, "0"), int(message[38])
        )
        if self.mode == "reject":
            order.status = "8"
            self._tell(order, "8", {103: "99", 58: "no"})
            return
        self.orders[cl_ord_id] = order
        self._tell(order, "0", {})
        if self.mode in ("fill", "half"):
            share = order.quantity if self.mode == "fill" else order.quantity // 2
            self.fill(cl_ord_id, share, int(order.price))

    def _change(self, message: Fix) -> None:
        order = self.orders.get(message[41])
        is_cancel = message[35] == "F"
        if order is None or order.status not in LIVE:
            self.say({
                37: order.order_id if order else "NONE", 11: message[11], 41: message[41],
                39: order.status if order else "8", 434: "1" if is_cancel else "2", 102: "0" if order else "1",
            }, "9")  # fmt: skip
            return
        if self.mode == "hang":
            return
        original, order.cl_ord_id = order.cl_ord_id, message[11]
        self.orders[message[11]] = order
        if is_cancel:
            order.status = "4"
        else:
            order.quantity, order.price = int(message[38]), message.get(44, "0")
        self._tell(order, "4" if is_cancel else "5", {41: original})

    def _status(self, message: Fix) -> None:
        self.asked.append(message[11])
        order = self.orders.get(message[11])
        if order is None:
            self.say({
                37: "NONE", 11: message[11], 17: "0", 150: "I", 39: "8", 103: "5", 55: message[55], 54: message[54],
                151: "0", 14: "0", 6: "0", 58: "unknown order",
            })  # fmt: skip
        else:
            self._tell(order, "I", {17: "0"})

    def _tell(self, order: VenueOrder, exec_type: str, more: Fix) -> Fix:
        self._executions += 1
        left = order.quantity - order.cumulative if order.status in LIVE else 0
        average = order.notional / order.cumulative if order.cumulative else 0
        message = {
            37: order.order_id, 11: order.cl_ord_id, 17: f"E{self._executions}", 150: exec_type, 39: order.status,
            55: order.symbol, 54: order.side, 38: f"{order.quantity}", 40: "2", 44: order.price, 151: f"{left}",
            14: f"{order.cumulative}", 6: f"{average:.4f}",
        } | more  # fmt: skip
        self.say(message)
        return message
