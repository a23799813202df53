"""A FIX gateway without sockets and Kafka: its sessions and orders before the matching kernel in this process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api.fix.config import FixSettings
from api.fix.definitions import Definition, Instrument
from api.fix.drop_copy import DropCopies
from api.fix.orders import OrderDesk
from api.fix.session import Session
from api.fix.store import PendingFrame, Store
from api.fix.wire import Framer, Message, encode, encode_body, format_time
from jobs.inprocess import InProcess
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS, PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.trading.routing import shard_of

OWN = "STREAMBANK"


class Wire:
    """The counterparty's end of a connection: what was written to it."""

    def __init__(self) -> None:
        self._framer = Framer()
        self.messages: list[Message] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.messages += self._framer.feed(data)

    def close(self) -> None:
        self.is_closed = True

    def take(self) -> list[Message]:
        taken, self.messages = self.messages, []
        return taken


class FixWorld:
    """``definitions`` by CompID. `say` is a counterparty's message; what it hears is in its `Wire`."""

    def __init__(
        self, path: Path, definitions: Mapping[str, Definition], instruments: Mapping[str, Instrument] | None = None
    ) -> None:
        self.config = FixSettings()
        self._path = path
        self._definitions = definitions
        self._instruments = instruments or {}
        self.market = InProcess(PIPELINES["matching"])
        self.reports: list[Frame] = []
        self.sent: dict[str, int] = {}
        """The counterparties' own sequence numbers."""
        self._open()

    def _open(self) -> None:
        self.store = Store(self._path)
        self.touched: set[Session] = set()
        self.sessions: dict[str, Session] = {}
        self.wires: dict[str, Wire] = {}
        self.desk = OrderDesk(OWN, self.store, self._instruments, self.session, {})
        self.copies = DropCopies(self.store, self._instruments, self.session)
        self.copies.watch(self._definitions.values())

    def restart(self) -> None:
        """As after a kill -9: everything that is not in the store is gone."""
        self.store.close()
        self._open()

    def session(self, comp_id: str) -> Session:
        if comp_id not in self.sessions:
            session = Session(comp_id, self.config, self.store, self.touched, self.desk.receive)
            session.definition = self._definitions[comp_id]
            self.sessions[comp_id] = session
        return self.sessions[comp_id]

    def commit(self, session: Session | None = None, message: Message | None = None) -> list[PendingFrame]:
        """One transaction as the gateway makes it; returns the frames that are to leave."""
        with self.store.transaction():
            if session is not None and message is not None:
                session.receive(message)
            frames = self.desk.take_frames()
            for touched in self.touched:
                touched.save()
        for touched in self.touched:
            touched.flush()
        self.touched.clear()
        return frames

    def log_on(self, comp_id: str, **fields: str) -> Wire:
        wire = self.wires[comp_id] = Wire()
        number = self.sent.get(comp_id, 0) + 1
        message = self.message(comp_id, "A", {98: "0", 108: "30"} | tags(fields), number)
        self.sent[comp_id] = number
        with self.store.transaction():
            self.session(comp_id).logon(message, self._definitions[comp_id], wire)
            for touched in self.touched:
                touched.save()
        for touched in self.touched:
            touched.flush()
        self.touched.clear()
        return wire

    def message(
        self, comp_id: str, msg_type: str, fields: Mapping[int, str], number: int, duplicate: bool = False
    ) -> Message:
        now = time.time_ns() // 1000
        body = encode_body(list(fields.items()))
        data = encode(msg_type, comp_id, OWN, number, now, body, now if duplicate else None)
        if fields.get(97):
            data = resent(data)
        [message] = Framer().feed(data)
        return message

    def say(
        self,
        comp_id: str,
        msg_type: str,
        fields: Mapping[int, str] | None = None,
        *,
        number: int = 0,
        duplicate: bool = False,
        reaches_market: bool = True,
    ) -> list[Message]:
        """Send a message, let the market work on what it asks for, and return what all counterparties hear."""
        if number == 0:
            number = self.sent[comp_id] = self.sent.get(comp_id, 0) + 1
        frames = self.commit(self.session(comp_id), self.message(comp_id, msg_type, fields or {}, number, duplicate))
        if reaches_market:
            self.work(frames)
        return self.wires[comp_id].take()

    def work(self, frames: list[PendingFrame]) -> None:
        for pending in frames:
            self.apply(codec_of(MATCHING_COMMANDS.name).decode(pending.body))

    def happen(self, *commands: Mapping[str, object]) -> None:
        """Commands for ACME's shard that come from elsewhere."""
        codec = codec_of(MATCHING_COMMANDS.name)
        self.apply(Frame(codec.topic, shard_of("ACME"), 0, 1, "elsewhere", parse_events(codec, list(commands))))

    def apply(self, frame: Frame) -> None:
        for output in self.market.apply_frame(frame):
            if output.topic == MATCHING_REPORTS.name:
                self.reports.append(self.market.decode_output(output))
                self.hear(self.reports[-1])

    def events(self) -> list[dict[str, Any]]:
        """All reports so far."""
        codec = codec_of(MATCHING_REPORTS.name)
        return [event for frame in self.reports for event in render_events(codec, frame.events)]

    def hear(self, frame: Frame) -> None:
        with self.store.transaction():
            self.desk.apply(frame)
            self.copies.apply(frame)
            for touched in self.touched:
                touched.save()
        for touched in self.touched:
            touched.flush()
        self.touched.clear()


def tags(fields: Mapping[str, str]) -> dict[int, str]:
    return {int(name.removeprefix("t")): value for name, value in fields.items()}


def resent(data: bytes) -> bytes:
    """The same message with PossResend."""
    start, end = data.index(b"35="), data.rindex(b"10=")
    content = data[start:end].replace(b"\x0152=", b"\x0197=Y\x0152=", 1)
    whole = b"8=FIX.4.4\x019=%d\x01" % len(content) + content
    return whole + b"10=%03d\x01" % (sum(whole) & 0xFF)


def order(cl_ord_id: str, side: str, price: str, quantity: str, **more: str) -> dict[int, str]:
    """A limit order for ACME, good till cancel; ``more`` as t59="3"."""
    fields = {
        11: cl_ord_id, 55: "ACME", 54: {"BUY": "1", "SELL": "2"}[side], 38: quantity, 40: "2", 44: price, 59: "1",
        60: format_time(time.time_ns() // 1000),
    }  # fmt: skip
    return {tag: value for tag, value in (fields | tags(more)).items() if value}


def change(cl_ord_id: str, original: str, **more: str) -> dict[int, str]:
    """A cancel, or a replace with its fields in ``more``."""
    fields = {11: cl_ord_id, 41: original, 55: "ACME", 60: format_time(time.time_ns() // 1000)}
    return fields | tags(more)


def shown(message: Message, *wanted: int) -> tuple[str, ...]:
    return tuple(message.get(tag) for tag in wanted)
