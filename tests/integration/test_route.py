"""Orders of a FIX client that go to a venue: gateway, matching kernel and router on real Kafka, with QuickFIX/J as
client and as venue, both over TLS. Router and venue are killed; every order ends once, and the money is right."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer

from infra.kafka import kafka_options
from infra.producer_keys import FrameSigner
from infra.registry import schema_ids
from infra.settings import Settings
from jobs.inprocess import InProcess
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS, PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.trading.audit import OrderHistory, audit_trail
from pipelines.trading.routing import shard_of
from pipelines.wire import wrap
from tests.integration.test_fix import STREAMBANK, FixGateway, limit, logged_on, report
from tests.support.api_server import frames_in_topic, running_system
from tests.support.provision import provision
from tests.support.stack import PrivateStack, free_ports, variables
from tests.support.venue import Venue
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

SHARD = shard_of("ACME")
FUNDS = 1_000_000
DEFINITIONS: list[dict[str, Any]] = [
    {"type": "SymbolDefinition", "symbol": "ACME", "base_asset": "SHARE", "quote_asset": "USD", "taker_fee": 1},
    {"type": "AccountDefinition", "account": "ALICE"},
    {"type": "AccountDefinition", "account": "XV", "risk": "VENUE"},
    {"type": "Deposit", "account": "ALICE", "asset": "USD", "amount": FUNDS},
]


class Router:
    """`streambank route XV`; can be killed and started again."""

    def __init__(self, gateway: FixGateway, venue_port: int) -> None:
        self.web_port = free_ports(1)[0]
        self.log_file = gateway.environment.data_dir / "route.log"
        self._variables = variables(gateway.environment) | {
            "STREAMBANK_ROUTE_PORT": str(venue_port), "STREAMBANK_ROUTE_WEB_PORT": str(self.web_port),
            "STREAMBANK_ROUTE_CA": str(gateway.authority), "STREAMBANK_ROUTE_SETTLE_SECONDS": "1",
            "STREAMBANK_ROUTE_RETRY_SECONDS": "0.2", "STREAMBANK_ROUTE_GRACE_SECONDS": "3",
            "STREAMBANK_ROUTE_HEARTBEAT": "5", "STREAMBANK_ROUTE_ANSWER_SECONDS": "60",
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, connected: bool = True) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [str(STREAMBANK), "route", "XV"], env=self._variables, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: self.health()["connected"] == connected, 90, f"the router is up; {self.log_file}")

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.web_port}/health", timeout=5).json()
        return found

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(40)


@pytest.fixture(scope="module")
def environment(stack: PrivateStack) -> Iterator[Settings]:
    environment = stack.environment("kafka", "registry")
    provision(environment, "matching")
    with running_system(environment, "matching"):
        codec = codec_of(MATCHING_COMMANDS.name)
        frame = Frame(MATCHING_COMMANDS.name, SHARD, 0, 1, "definitions", parse_events(codec, DEFINITIONS))
        value = wrap(schema_ids([MATCHING_COMMANDS], environment)[codec.topic], codec.encode(frame))
        producer = Producer(kafka_options(environment))
        headers = FrameSigner(environment, MATCHING_COMMANDS, "api").headers(SHARD, value)
        producer.produce(environment.kafka_topic(codec.topic), value, str(SHARD).encode(), SHARD, headers=headers)
        assert producer.flush(60) == 0
        yield environment


@pytest.fixture(scope="module")
def gateway(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FixGateway]:
    gateway = FixGateway(environment, tmp_path_factory.mktemp("route"))
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture(scope="module")
def hedge(gateway: FixGateway, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    _, password = gateway.sessions.add("HEDGE", ["ALICE"])
    return tmp_path_factory.mktemp("hedge"), password


@pytest.fixture(scope="module")
def venue(gateway: FixGateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    venue = Venue(tmp_path_factory.mktemp("venue"), "XV", free_ports(1)[0], gateway.environment.tls_dir)
    try:
        yield venue
    finally:
        venue.close()


@pytest.fixture(scope="module")
def router(gateway: FixGateway, venue: Venue) -> Iterator[Router]:
    router = Router(gateway, venue.port)
    router.start()
    try:
        yield router
    finally:
        assert router.process is not None
        if router.process.poll() is None:
            assert router.stop() == 0


def routed(cl_ord_id: str, price: int, quantity: int) -> dict[int, str]:
    return limit(cl_ord_id, 1, price, quantity, t100="XV")


class Ledger:
    """The log, replayed: what the accounts have, and what happened to the orders."""

    def __init__(self, environment: Settings) -> None:
        self.market = InProcess(PIPELINES["matching"])
        self.trail: list[dict[str, Any]] = []
        history = OrderHistory(SHARD)
        codec = codec_of(MATCHING_COMMANDS.name)
        frames = frames_in_topic(environment, MATCHING_COMMANDS)
        for (shard, _), events in sorted(frames.items()):
            if shard != SHARD:
                continue
            frame = Frame(codec.topic, SHARD, 0, 1, None, parse_events(codec, events))
            outputs = [self.market.decode_output(output) for output in self.market.apply_frame(frame)]
            answers = [output for output in outputs if output.topic == MATCHING_REPORTS.name]
            self.trail += [audit_trail(event) for event in history.feed(frame, answers)]
        kernel: Any = self.market.shard(SHARD).kernel
        kernel.audit()
        self.rows = list(kernel.state_rows())

    def balance(self, account: str, asset: str) -> tuple[int, int]:
        """Available, held."""
        found = [
            row for row in self.rows if row["type"] == "Balance" and (row["account"], row["asset"]) == (account, asset)
        ]
        return (found[0]["available"], found[0]["held"]) if found else (0, 0)

    def lots_by_cl_ord_id(self) -> dict[str, int]:
        """Lots traded by the ClOrdID that the venue has in the end."""
        names: dict[str, str] = {}
        for event in self.trail:
            if event["event_type"] in ("ORDER_ROUTED", "ROUTE_CANCEL_REQUESTED", "ROUTE_MODIFY_REQUESTED"):
                names[event["order_id"]] = f"{SHARD}-{event['execution_id']}"
        lots: Counter[str] = Counter()
        for event in self.trail:
            if event["event_type"] == "ORDER_TRADE":
                lots[names[event["order_id"]]] += event["trade_quantity"]
        return dict(lots)


def reconciled(environment: Settings, venue: Venue, without: bytes | None = None) -> tuple[int, str]:
    """Exit code and last line of `trading reconcile` with what the venue's engine stored of its messages, as a drop
    copy has them; without those that hold some bytes."""
    messages = [b"8=FIX" + part for path in venue.sent() for part in path.read_bytes().split(b"8=FIX")[1:]]
    copy = environment.data_dir / "drop-copy"
    copy.write_bytes(b"\n".join(part for part in messages if without is None or without + b"\x01" not in part))
    done = subprocess.run(
        [str(STREAMBANK), "trading", "reconcile", "XV", str(copy)], env=variables(environment), capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, (done.stdout.strip().splitlines() or [done.stderr])[-1]


def test_an_order_goes_to_the_venue_and_its_fills_come_back(
    environment: Settings, gateway: FixGateway, hedge: tuple[Path, str], venue: Venue, router: Router
) -> None:
    with logged_on(gateway, hedge) as client:
        client.send("D", routed("a1", 100, 10))
        filled = report(client, t11="a1", t150="F")
        assert (filled[39], filled[31], filled[32], filled[14], filled[30], filled[851], filled[527]) == (
            "2", "100", "10", "10", "XV", "3", "E2",
        )  # fmt: skip
        venue.mode = "half"
        client.send("D", routed("a2", 100, 10))
        report(client, t11="a2", t150="F", t14="5")
        client.send("G", limit("a3", 1, 101, 12, t41="a2"))
        replaced = report(client, t11="a3", t150="5")
        assert (replaced[41], replaced[38], replaced[44], replaced[151]) == ("a2", "12", "101", "7")
        client.send("F", {11: "a4", 41: "a3", 55: "ACME", 54: "1"})
        canceled = report(client, t11="a4", t150="4")
        assert (canceled[41], canceled[39], canceled[14]) == ("a3", "4", "5")
        venue.mode = "reject"
        client.send("D", routed("a5", 100, 10))
        assert report(client, t11="a5", t150="4")[58] == "VENUE_REJECTED"
        client.send("D", limit("a6", 1, 100, 10, t100="nowhere"))
        assert report(client, t11="a6", t150="8")[58] == "UNKNOWN_VENUE"
    assert venue.engine is not None
    assert [sent for sent in venue.engine.heard("sent") if sent.get(35) in ("3", "j")] == []  # all was valid FIX
    ledger = Ledger(environment)
    assert ledger.balance("ALICE", "USD") == (FUNDS - 15 * 101, 0)
    assert (ledger.balance("ALICE", "SHARE"), ledger.balance("XV", "SHARE")) == ((15, 0), (-15, 0))
    assert reconciled(environment, venue) == (0, "2 trades here, 2 at XV, 0 differ")
    assert reconciled(environment, venue, without=b"17=E4") == (1, "2 trades here, 1 at XV, 1 differ")
    told = [event for event in ledger.trail if event.get("venue")]
    assert [event["venue_execution_id"] for event in told if event["event_type"] == "ORDER_TRADE"] == ["E2", "E4"]
    assert told[0]["event_type"] == "ORDER_ROUTED"


def test_nothing_is_lost_or_doubled_when_router_and_venue_are_killed(
    environment: Settings, gateway: FixGateway, hedge: tuple[Path, str], venue: Venue, router: Router
) -> None:
    venue.mode = "half"
    names = [f"b{number}" for number in range(30)]
    with logged_on(gateway, hedge) as client:

        def states() -> dict[str, str]:
            return {message[11]: message[39] for message in client.heard() if message[35] == "8"}

        for number, name in enumerate(names):
            client.send("D", routed(name, 100 + number % 3, 10))
            if number == 10:
                report(client, t11="b3", t150="F")
                router.kill()
            if number == 20:
                venue.kill()
        venue.start()
        router.start()
        wait_until(lambda: {states().get(name) for name in names} <= {"1", "4"}, 90, "every order was at the venue")
        assert venue.engine is not None
        venue.engine.tell("break")  # now only the connection
        for order in [order for order in venue.unique() if order.status == "1"]:
            told = venue.fill(order.cl_ord_id, order.quantity - order.cumulative, int(order.price))
            venue.say(told)  # the same execution twice
        wait_until(lambda: {states().get(name) for name in names} <= {"2", "4"}, 90, "every order has ended")
        assert [states()[name] for name in names].count("2") >= 5
        fills = Counter(message[17] for message in client.heard() if message.get(150) == "F")
        assert set(fills.values()) == {1}
    ledger = Ledger(environment)
    assert ledger.lots_by_cl_ord_id() == {
        order.cl_ord_id: order.cumulative for order in venue.unique() if order.cumulative
    }
    shares = sum(ledger.lots_by_cl_ord_id().values())
    assert (ledger.balance("ALICE", "SHARE"), ledger.balance("XV", "SHARE")) == ((shares, 0), (-shares, 0))
    paid = ledger.balance("XV", "USD")[0] + shares
    assert ledger.balance("ALICE", "USD") == (FUNDS - paid, 0)
    assert paid - shares == sum(order.notional for order in venue.unique())


def test_an_order_is_refused_while_the_venue_is_away(
    environment: Settings, gateway: FixGateway, hedge: tuple[Path, str], venue: Venue, router: Router
) -> None:
    venue.mode = "accept"
    with logged_on(gateway, hedge) as client:
        client.send("D", routed("c1", 100, 10))
        report(client, t11="c1", t150="0")
        wait_until(lambda: venue.new[-1] and venue.unique()[-1].status == "0", 60, "the venue has it")
        venue.kill()
        wait_until(lambda: not router.health()["connected"], 60, "the router noticed")
        client.send("D", routed("c2", 100, 10))
        assert report(client, t11="c2", t150="4")[58] == "VENUE_UNAVAILABLE"
        client.send("F", {11: "c3", 41: "c1", 55: "ACME", 54: "1"})
        venue.start()
        assert report(client, t11="c3", t150="4")[41] == "c1"
        wait_until(lambda: router.health()["orders"] == 0, 60, "nothing is left")
    assert Ledger(environment).balance("ALICE", "USD")[1] == 0
