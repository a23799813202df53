"""The FIX gateway on real Kafka and the matching kernel, with QuickFIX/J as its counterparty, over TLS."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from api.fix.definitions import Definitions
from api.fix.store import Store
from api.fix.wire import Framer, Message, encode, encode_body, format_time
from infra.certificates import make_certificates
from infra.settings import Settings
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.trading.routing import shard_of
from tests.support.api_server import frames_in_topic, running_system
from tests.support.provision import provision
from tests.support.quickfix import Counterparty, Fix
from tests.support.stack import PrivateStack, free_ports, variables
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

STREAMBANK = Path(sys.executable).with_name("streambank")
SHARD = shard_of("ACME")


class FixGateway:
    """`streambank fix run` with a data directory and ports of its own; can be killed and started again."""

    def __init__(self, environment: Settings, directory: Path) -> None:
        port, web_port = free_ports(2)
        self.environment = environment.model_copy(
            update={"data_dir": directory, "producer_keys_file": str(environment.producer_keys_path)}
        )
        self.port, self.web_port = port, web_port
        self.sessions = Definitions(self.environment.secrets_dir / "fix-sessions.json")
        self.log_file = directory / "fix.log"
        make_certificates(self.environment.tls_dir, ["127.0.0.1"])
        tls = self.environment.tls_dir
        self.authority = tls / "ca.pem"
        self._variables = variables(self.environment) | {
            "STREAMBANK_FIX_PORT": str(port), "STREAMBANK_FIX_WEB_PORT": str(web_port),
            "STREAMBANK_FIX_CERTIFICATE": str(tls / "server.pem"), "STREAMBANK_FIX_KEY": str(tls / "server-key.pem"),
            "STREAMBANK_FIX_SETTLE_SECONDS": "1",
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [str(STREAMBANK), "fix", "run"], env=self._variables, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._is_healthy, 90, f"the gateway is healthy; {self.log_file}")

    def _is_healthy(self) -> bool:
        return httpx.get(f"http://127.0.0.1:{self.web_port}/health", timeout=5).status_code == 200

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
        yield environment


@pytest.fixture(scope="module")
def gateway(environment: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FixGateway]:
    gateway = FixGateway(environment, tmp_path_factory.mktemp("fix"))
    gateway.start()
    try:
        yield gateway
    finally:
        assert gateway.process is not None
        if gateway.process.poll() is None:
            gateway.stop()


@pytest.fixture(scope="module")
def hedge(gateway: FixGateway, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the counterparty HEDGE keeps its state, and its password."""
    _, password = gateway.sessions.add("HEDGE", ["ALICE"])
    directory = tmp_path_factory.mktemp("hedge")
    return directory, password


@pytest.fixture(scope="module")
def member(gateway: FixGateway) -> str:
    return gateway.sessions.add("MEMBER", ["OTHER"])[1]


@contextmanager
def logged_on(gateway: FixGateway, hedge: tuple[Path, str]) -> Iterator[Counterparty]:
    directory, password = hedge
    counterparty = Counterparty(directory, "HEDGE", gateway.port, "HEDGE", password, "STREAMBANK", gateway.authority)
    try:
        counterparty.wait_logon()
        yield counterparty
        assert [sent for sent in counterparty.heard("sent") if sent.get(35) in ("3", "j")] == []  # all was valid FIX
    finally:
        if counterparty.process.poll() is None:
            counterparty.close()


def limit(cl_ord_id: str, side: int, price: int, quantity: int, **more: str) -> Fix:
    fields = {11: cl_ord_id, 55: "ACME", 54: f"{side}", 38: f"{quantity}", 40: "2", 44: f"{price}", 59: "1"}
    return fields | {int(name[1:]): value for name, value in more.items()}


def report(counterparty: Counterparty, **wanted: str) -> Fix:
    """The first message with these fields, as t150="0"."""
    fields = {int(name[1:]): value for name, value in wanted.items()}
    return counterparty.wait(
        lambda found: all(found.get(tag) == value for tag, value in fields.items()), f"a message with {fields}"
    )


def sell(gateway: FixGateway, member: str, *offers: tuple[int, int]) -> None:
    """Offer quantities at prices as another member whose password is ``member``."""
    with closing(RawSession(gateway, "MEMBER", member)) as session:
        for number, (price, quantity) in enumerate(offers):
            session.say("D", limit(f"{time.time_ns()}-{number}", 2, price, quantity))
        accepted = 0
        while accepted < len(offers):
            message = session.hear()
            assert message is not None
            accepted += message.get(150) == "0"


def entered(environment: Settings) -> Counter[int]:
    """How often each order was entered."""
    frames = frames_in_topic(environment, MATCHING_COMMANDS).values()
    return Counter(int(event["order_id"]) for events in frames for event in events if event["type"] == "NewOrder")


def exec_ids(environment: Settings, account: str) -> set[str]:
    """The ExecIDs of everything that happened to an account's orders, from the log."""
    found = set()
    for (shard, _), events in frames_in_topic(environment, MATCHING_REPORTS).items():
        for event in events:
            if event["type"] == "ExecutionReport":
                number = 2 * int(event["execution_id"])
                found |= {f"{shard}.{number}"} if event["account"] == account else set()
                found |= {f"{shard}.{number + 1}"} if event["maker_account"] == account else set()
    return found


def test_an_order_is_placed_amended_filled_and_canceled(
    environment: Settings, gateway: FixGateway, hedge: tuple[Path, str], member: str
) -> None:
    with logged_on(gateway, hedge) as counterparty:
        counterparty.send("D", limit("a1", 1, 100, 10))
        new = report(counterparty, t11="a1", t150="0")
        assert (new[39], new[1], new[151], new[14], new[6], new[44]) == ("0", "ALICE", "10", "0", "0", "100")
        sell(gateway, member, (99, 4))
        filled = report(counterparty, t11="a1", t150="F")
        assert (filled[39], filled[31], filled[32], filled[151], filled[14], filled[851]) == (
            "1", "100", "4", "6", "4", "1",
        )  # fmt: skip
        counterparty.send("G", limit("a2", 1, 101, 9, t41="a1"))
        replaced = report(counterparty, t11="a2", t150="5")
        assert (replaced[41], replaced[38], replaced[44], replaced[151], replaced[39]) == ("a1", "9", "101", "5", "1")
        counterparty.send("H", {11: "a2", 55: "ACME", 54: "1"})
        assert report(counterparty, t150="I")[151] == "5"
        counterparty.send("AF", {584: "all", 585: "7"})
        assert report(counterparty, t584="all")[11] == "a2"
        counterparty.send("F", {11: "a3", 41: "a2", 55: "ACME", 54: "1"})
        canceled = report(counterparty, t11="a3", t150="4")
        assert (canceled[41], canceled[39], canceled[151], canceled[14], canceled[6]) == ("a2", "4", "0", "4", "100")
        counterparty.send("D", limit("a1", 1, 100, 10))
        assert report(counterparty, t150="8")[103] == "6"
        counterparty.send("D", limit("a4", 1, 0, 10))
        assert report(counterparty, t11="a4")[58] == "INVALID_PRICE"
        counterparty.send("F", {11: "a5", 41: "a2", 55: "ACME", 54: "1"})
        assert report(counterparty, t35="9")[102] == "0"
        counterparty.tell("test", "ping")
        counterparty.wait(lambda found: found.get(112) == "ping", "the heartbeat", "admin")


def test_a_counterparty_that_was_killed_gets_what_it_missed(
    environment: Settings, gateway: FixGateway, hedge: tuple[Path, str], member: str
) -> None:
    with logged_on(gateway, hedge) as counterparty:
        counterparty.send("D", limit("b1", 1, 200, 6))
        report(counterparty, t11="b1", t150="0")
        counterparty.kill()
    sell(gateway, member, (200, 2), (200, 2), (200, 2))
    with logged_on(gateway, hedge) as counterparty:
        last = report(counterparty, t11="b1", t39="2")
        assert (last[14], last[43]) == ("6", "Y")
        fills = [found for found in counterparty.heard() if found.get(150) == "F"]
        assert [found[151] for found in fills] == ["4", "2", "0"]
        counterparty.tell("skip", 3)  # as if three of its messages had been lost
        counterparty.send("D", limit("b2", 1, 100, 1))
        report(counterparty, t11="b2", t150="0")
        counterparty.tell("expect", 2)  # as if it had lost nearly all that it ever heard
        counterparty.tell("test", "again")
        counterparty.wait(lambda found: found.get(35) == "2", "a resend request", "sent")
        report(counterparty, t11="a1", t150="0", t43="Y")
    assert set(entered(environment).values()) == {1}


def test_a_gateway_that_was_killed_neither_doubles_an_order_nor_loses_a_report(
    environment: Settings, gateway: FixGateway, hedge: tuple[Path, str], member: str
) -> None:
    before = exec_ids(environment, "ALICE")
    with logged_on(gateway, hedge) as counterparty:
        for number in range(60):
            counterparty.send("D", limit(f"c{number}", 1, 300 + number % 5, 1 + number % 3))
            if number == 20:
                report(counterparty, t11="c3", t150="0")
                gateway.kill()
        store = Store(gateway.environment.data_dir / "fix" / "gateway.sqlite")
        known = store.request("HEDGE", "c3")
        assert known is not None
        # one that the log holds without the gateway's knowing, and one that never left
        for trace, order_id in ((known.trace, 776), (f"00-{7:032x}-{7:016x}-01", 777)):
            with store.transaction():
                store.add_frame(SHARD, trace, -1, time.time_ns() // 1000, frame_with(trace, order_id))
        store.close()
        gateway.start()
        counterparty.wait_logon(2)
        for number in range(60):
            report(counterparty, t11=f"c{number}", t150="0")
        sell(gateway, member, (300, 30))
        counterparty.send("F", {11: "cancel", 41: "c59", 55: "ACME", 54: "1"})
        report(counterparty, t11="cancel")
        counts = wait_until(lambda: (now := entered(environment))[777] and now, 60, "the frame that never left is sent")
        assert (counts[776], [order for order, times in counts.items() if times != 1]) == (0, [])
        wanted = exec_ids(environment, "ALICE") - before

        def heard() -> Counter[str]:
            told = (message[17] for message in counterparty.heard() if message[35] == "8")
            return Counter(exec_id for exec_id in told if "." in exec_id and exec_id not in before)

        wait_until(lambda: heard().keys() >= wanted, 60, "every report is heard")
        assert heard() == dict.fromkeys(wanted, 1)


def frame_with(trace: str, order_id: int) -> bytes:
    codec = codec_of(MATCHING_COMMANDS.name)
    order = {"type": "NewOrder", "order_id": order_id, "symbol": "ACME", "side": "BUY", "price": 1, "quantity": 1}
    return codec.encode(Frame(codec.topic, SHARD, 0, time.time_ns() // 1000, trace, parse_events(codec, [order])))


class RawSession:
    """A counterparty on a bare socket."""

    def __init__(self, gateway: FixGateway, comp_id: str, password: str) -> None:
        context = ssl.create_default_context(cafile=str(gateway.authority))
        plain = socket.create_connection(("127.0.0.1", gateway.port), 60)
        self._socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        self._comp_id = comp_id
        self._number = 0
        self._framer = Framer()
        self.say("A", {98: "0", 108: "30", 553: comp_id, 554: password, 141: "Y"})

    def say(self, msg_type: str, fields: Fix) -> None:
        self._number += 1
        now = time.time_ns() // 1000
        body = encode_body([*fields.items(), (60, format_time(now))])
        self._socket.sendall(encode(msg_type, self._comp_id, "STREAMBANK", self._number, now, body))

    def hear(self) -> Message | None:
        """The next message; None at the end of the connection."""
        data = b""
        while True:
            for message in self._framer.feed(data):
                return message
            data = self._socket.recv(65_536)
            if not data:
                return None

    def close(self) -> None:
        self._socket.close()


def test_orders_are_canceled_with_their_connection_where_that_is_asked_for(
    environment: Settings, gateway: FixGateway
) -> None:
    _, password = gateway.sessions.add("QUICK", ["ERIN"], cancel_on_disconnect=True)
    wrong = RawSession(gateway, "QUICK", "wrong")
    assert wrong.hear() is None
    wrong.close()
    quick = RawSession(gateway, "QUICK", password)
    assert (logon := quick.hear()) is not None
    assert logon.type == "A"
    quick.say("D", limit("q1", 1, 5, 5))
    assert (new := quick.hear()) is not None
    assert new.get(150) == "0"
    twice = RawSession(gateway, "QUICK", password)
    assert twice.hear() is None  # one connection at a time
    twice.close()
    quick.close()

    def canceled() -> bool:
        frames = frames_in_topic(environment, MATCHING_REPORTS).values()
        mine = [event for events in frames for event in events if event.get("account") == "ERIN"]
        return [event["exec_type"] for event in mine] == ["NEW", "CANCELED"]

    wait_until(canceled, 60, "the order is canceled")
    again = RawSession(gateway, "QUICK", password)
    assert (logon := again.hear()) is not None
    gateway.sessions.revoke("QUICK")
    assert (goodbye := again.hear()) is not None
    assert (goodbye.type, goodbye.get(58)) == ("5", "the session is revoked")
    again.close()
