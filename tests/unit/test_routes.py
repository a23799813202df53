"""The router's orders without sockets and Kafka: the matching kernel on one side, a venue's messages on the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.fix.config import RouteSettings
from api.fix.route_store import RouteStore
from api.fix.routes import RouteDesk
from api.fix.session import Session
from api.fix.wire import Framer, Message, encode, encode_body, format_time
from jobs.inprocess import InProcess
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS, PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.trading.routing import shard_of
from tests.support.fix_world import Wire

SHARD = shard_of("ACME")
COMMANDS = codec_of(MATCHING_COMMANDS.name)


class World:
    """A router of the venue XV whose clock is moved by the test."""

    def __init__(self, directory: Path) -> None:
        self.config = RouteSettings(grace_seconds=5, answer_seconds=5, failures_to_open=2, open_seconds=10)
        self.directory = directory
        self.market = InProcess(PIPELINES["matching"])
        self.log: list[Frame] = []
        """Reports."""
        self.seconds = 1_000_000.0
        self.sent = 0
        self.wire: Wire | None = None
        self.start()

    def start(self, name: str = "route") -> None:
        """A router with this store; reads the log from its start when the store is a new one."""
        self.store = RouteStore(self.directory / f"{name}.sqlite")
        self.desk = RouteDesk("XV", self.config, self.store, {}, {}, lambda: int(self.seconds * 1e6))
        self.touched: set[Session] = set()
        self.session = Session("XV", self.config, self.store, self.touched, self.desk.receive)
        self.desk.session = self.session
        self.desk.is_caught_up = True

    def change(self, work: Any) -> None:
        with self.store.transaction():
            work()
            frames = self.desk.take_frames()
            for session in self.touched:
                session.save()
        for session in self.touched:
            session.flush()
        self.touched.clear()
        for pending in frames:
            self.apply(COMMANDS.decode(pending.body))

    def apply(self, frame: Frame, *, tell: bool = True) -> list[dict[str, Any]]:
        """Let the market work on a frame, and the router hear of it."""
        reports: list[dict[str, Any]] = []
        for output in self.market.apply_frame(frame):
            if output.topic == MATCHING_REPORTS.name:
                self.log.append(self.market.decode_output(output))
                reports += render_events(codec_of(MATCHING_REPORTS.name), self.log[-1].events)
                if tell:
                    self.change(lambda: self.desk.apply(self.log[-1]))
        return reports

    def command(self, *commands: dict[str, Any], tell: bool = True) -> list[dict[str, Any]]:
        frame = Frame(
            MATCHING_COMMANDS.name, SHARD, 0, int(self.seconds * 1e6), f"t{len(self.log)}",
            parse_events(COMMANDS, list(commands)),
        )  # fmt: skip
        return self.apply(frame, tell=tell)

    def order(self, order_id: int, quantity: int = 10, **more: Any) -> str:
        """Enter an order for XV; its ClOrdID there."""
        reports = self.command({
            "type": "NewOrder", "order_id": order_id, "account": "A", "symbol": "ACME", "side": "BUY", "price": 100,
            "quantity": quantity, "destination": "XV", **more,
        })  # fmt: skip
        return f"{SHARD}-{reports[1]['execution_id']}"

    def connect(self) -> None:
        self.wire = Wire()
        wire = self.wire
        self.change(lambda: self.session.open(wire, 30, []))
        [logon] = wire.take()
        assert logon.type == "A"
        self.hear("A", {98: "0", 108: "30"})
        self.tend()

    def disconnect(self) -> None:
        self.session.detach()
        self.desk.lost()
        self.wire = None

    def tend(self, seconds: float = 0.0) -> None:
        self.seconds += seconds
        self.change(self.desk.tend)

    def take(self) -> list[Message]:
        assert self.wire is not None
        return self.wire.take()

    def hear(self, msg_type: str, fields: dict[int, str]) -> None:
        """A message of the venue."""
        self.sent += 1
        now = time.time_ns() // 1000
        body = encode_body([*fields.items(), (60, format_time(now))])
        [message] = Framer().feed(encode(msg_type, "XV", "STREAMBANK", self.sent, now, body))
        self.change(lambda: self.session.receive(message))

    def executed(self, cl_ord_id: str, exec_id: str, exec_type: str, status: str, cumulative: int, **more: str) -> None:
        fields = {11: cl_ord_id, 17: exec_id, 37: "V1", 150: exec_type, 39: status, 14: str(cumulative), 55: "ACME"}
        self.hear("8", fields | {int(name[1:]): value for name, value in more.items()})

    def history(self) -> list[tuple[str, str]]:
        """What happened to orders, in order."""
        found = []
        for frame in self.log:
            for report in render_events(codec_of(MATCHING_REPORTS.name), frame.events):
                if report["type"] == "ExecutionReport":
                    found.append((report["exec_type"], report["reason"]))
                elif report["type"] == "OrderCancelReject":
                    found.append((f"{report['response_to']} refused", report["reason"]))
                elif report["type"] == "AdminReport" and report["reason"] != "NONE":
                    found.append(("not applied", report["reason"]))
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.command({"type": "AccountDefinition", "account": "XV", "risk": "VENUE"},
                  {"type": "AccountDefinition", "account": "A", "risk": "OFF"})  # fmt: skip
    yield world
    world.store.close()


def shown(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.type, message.get(11)) for message in messages]


def test_an_order_goes_out_and_what_the_venue_says_comes_back_once(world: World) -> None:
    world.connect()
    order = world.order(1)
    [sent] = world.take()
    assert {tag: sent.get(tag) for tag in (35, 11, 55, 54, 38, 40, 44, 59)} == {
        35: "D", 11: order, 55: "ACME", 54: "1", 38: "10", 40: "2", 44: "100", 59: "1",
    }  # fmt: skip
    world.executed(order, "e1", "0", "0", 0)
    world.executed(order, "e2", "F", "1", 4, t32="4", t31="99")
    world.executed(order, "e2", "F", "1", 4, t32="4", t31="99")
    world.command({"type": "AmendOrder", "order_id": 1, "price": 101, "total_quantity": 12})
    [replace] = world.take()
    assert (replace.type, replace.get(41), replace.get(38), replace.get(44)) == ("G", order, "12", "101")
    replaced = replace.get(11)
    world.executed(replaced, "e3", "5", "1", 4, t41=order, t38="12", t44="101")
    world.command({"type": "CancelOrder", "order_id": 1})
    [cancel] = world.take()
    assert (cancel.type, cancel.get(41)) == ("F", replaced)
    world.hear("9", {11: cancel.get(11), 41: replaced, 37: "V1", 39: "1", 434: "1", 102: "0"})
    world.executed(replaced, "e4", "F", "2", 12, t32="8", t31="101")
    assert world.history() == [
        ("NEW", "NONE"), ("TRADE", "NONE"), ("REPLACED", "NONE"), ("CANCEL refused", "VENUE_REJECTED"),
        ("TRADE", "NONE"),
    ]  # fmt: skip
    assert world.desk.live == 0
    # told again under another ExecID, of an order that is done, or that nobody knows: in the log, and nothing moves
    world.executed(replaced, "e9", "F", "2", 12, t32="8", t31="101")
    world.executed("what", "e10", "F", "2", 1, t32="1", t31="1")
    assert world.history()[5:] == [("not applied", "UNKNOWN_ORDER")] * 2


def test_new_orders_are_refused_while_the_venue_is_away_and_those_it_may_have_are_not(world: World) -> None:
    world.connect()
    sent = world.order(1)
    world.take()
    world.disconnect()
    world.order(2)
    world.tend(4)
    assert world.desk.live == 2
    world.tend(2)
    assert world.history()[-1] == ("CANCELED", "VENUE_UNAVAILABLE")
    world.order(3)
    assert world.history()[-1] == ("CANCELED", "VENUE_UNAVAILABLE")
    # a cancel of what may be there waits for the venue
    world.command({"type": "CancelOrder", "order_id": 1})
    world.tend(3600)
    assert world.desk.live == 1
    world.connect()
    assert shown(world.take())[-1] == ("H", sent)
    world.executed(sent, "0", "I", "0", 0)
    assert world.market.shard(SHARD).kernel.order(1) is not None  # type: ignore[attr-defined]


def test_an_order_that_the_venue_does_not_know_is_sent_again_once(world: World) -> None:
    world.connect()
    order = world.order(1)
    world.take()
    world.tend(6)
    assert shown(world.take()) == [("H", order)]
    unknown = {11: order, 17: "0", 150: "I", 39: "8", 14: "0", 37: "NONE"}
    world.hear("8", unknown)
    [again] = world.take()
    assert (again.type, again.get(11), again.get(97)) == ("D", order, "Y")
    world.hear("8", unknown)
    assert world.take() == []
    assert world.history() == [("NEW", "NONE"), ("CANCELED", "VENUE_REJECTED")]


def test_a_status_ends_what_ended_and_misses_nothing_silently(world: World) -> None:
    world.connect()
    first, second = world.order(1), world.order(2)
    world.take()
    for order in (first, second):
        world.executed(order, f"n{order}", "0", "0", 0)
    world.hear("8", {11: first, 17: "0", 150: "I", 39: "4", 14: "0", 37: "V1"})
    assert world.history()[-1] == ("CANCELED", "VENUE_CANCELED")
    world.hear("8", {11: second, 17: "0", 150: "I", 39: "4", 14: "3", 37: "V1"})  # three lots that nobody told of
    assert world.history()[-1] == ("not applied", "EXECUTION_GAP")
    world.executed(second, "bust", "H", "1", 0)
    assert world.history()[-1] == ("not applied", "UNSUPPORTED_ORDER_CHARACTERISTIC")


def test_the_circuit_opens_on_silence_and_one_order_tries(world: World) -> None:
    world.connect()
    silent = [world.order(1), world.order(2)]
    world.tend(6)  # two late answers
    assert world.desk.circuit.is_open
    world.take()
    world.order(3)
    assert (world.history()[-1], world.take()) == (("CANCELED", "VENUE_UNAVAILABLE"), [])
    world.tend(11)
    world.take()
    probe = world.order(4)
    world.order(5)
    assert shown(world.take()) == [("D", probe)]
    assert world.history()[-1] == ("CANCELED", "VENUE_UNAVAILABLE")
    world.executed(probe, "e1", "0", "0", 0)
    after = world.order(6)
    assert shown(world.take()) == [("D", after)]
    world.executed(silent[0], "e2", "F", "2", 10, t32="10", t31="100")  # late, and no less true
    assert world.history()[-1] == ("TRADE", "NONE")


def test_a_venue_that_is_closed_opens_the_circuit(world: World) -> None:
    world.connect()
    for number, (msg_type, fields) in enumerate(
        [("8", {17: "r1", 150: "8", 39: "8", 103: "2", 14: "0"}), ("j", {372: "D", 380: "4"})], start=1
    ):
        order = world.order(number)
        sequence = {45: world.take()[-1].get(34)} if msg_type == "j" else {11: order}
        world.hear(msg_type, sequence | fields)
        assert world.history()[-1] == ("CANCELED", "VENUE_UNAVAILABLE")
    assert world.desk.circuit.is_open


def test_a_router_without_its_store_asks_before_it_sends(world: World) -> None:
    world.connect()
    done, live, lost = world.order(1), world.order(2), world.order(3)
    world.executed(done, "e1", "F", "2", 10, t32="10", t31="100")
    world.executed(live, "e2", "F", "1", 4, t32="4", t31="100")
    world.disconnect()
    world.store.close()
    world.seconds += 10
    world.start("another")
    world.sent = 0
    for frame in list(world.log):
        world.change(lambda frame=frame: world.desk.apply(frame))  # type: ignore[misc]
    world.connect()
    assert shown(world.take()) == [("H", live), ("H", lost)]
    world.hear("8", {11: live, 17: "0", 150: "I", 39: "1", 14: "4", 37: "V2"})
    world.hear("8", {11: lost, 17: "0", 150: "I", 39: "8", 14: "0", 37: "NONE"})
    assert shown(world.take()) == [("D", lost)]
    world.executed(live, "e3", "F", "2", 10, t32="6", t31="100")
    assert world.history()[-1] == ("TRADE", "NONE")


def test_a_new_process_goes_on_where_the_last_one_was(world: World) -> None:
    world.connect()
    order = world.order(1)
    world.executed(order, "e1", "F", "1", 4, t32="4", t31="100")
    world.store.close()
    world.start()
    assert (world.session.next_out, world.desk.live) == (3, 1)
    world.connect()
    assert shown(world.take()) == [("H", order)]
    world.executed(order, "e1", "F", "1", 4, t32="4", t31="100")
    world.executed(order, "e2", "F", "2", 10, t32="6", t31="100")
    assert world.history() == [("NEW", "NONE"), ("TRADE", "NONE"), ("TRADE", "NONE")]
