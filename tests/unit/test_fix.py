"""FIX: messages and bytes, sessions and their recovery, and orders before the real matching kernel."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from pathlib import Path

import pytest

from api.fix.definitions import Definition, DefinitionError, Definitions, Instrument, read_instruments
from api.fix.store import Store, StoreError
from api.fix.wire import Framer, Message, encode, encode_body, format_time, parse_time
from pipelines.trading.routing import shard_of
from tests.support.fix_world import FixWorld, change, order, shown

BUYER = Definition("BUYER", 1, ("ALICE",), "BUYER", "")
SELLER = Definition("SELLER", 2, ("BOB", "CAROL"), "SELLER", "")
LIMITED = Definition("LIMITED", 3, ("DAVE",), "LIMITED", "", messages_per_second=2)
WATCHER = Definition("WATCHER", 4, ("ALICE",), "WATCHER", "", drop_copy=True)
DEFINITIONS = {found.comp_id: found for found in (BUYER, SELLER, LIMITED, WATCHER)}


@pytest.fixture
def world(tmp_path: Path) -> FixWorld:
    world = FixWorld(tmp_path / "fix.sqlite", DEFINITIONS)
    world.log_on("BUYER").take()
    world.log_on("SELLER").take()
    return world


# --- bytes ---------------------------------------------------------------------------------------------------------


def test_a_stream_is_cut_into_messages_wherever_it_is_broken() -> None:
    first = encode(
        "D", "A", "B", 7, 1_700_000_000_123_456, encode_body([(11, "x"), (95, 5), (96, "a\x01b=c"), (58, "é")])
    )
    data = b"noise" + first.replace(b"a b=c", b"a\x01b=c")  # encode_body keeps separators out of text
    second = encode("0", "A", "B", 8, 0, b"", 0)
    good = data[: data.index(b"10=")]
    good += b"10=%03d\x01" % (sum(good[5:]) & 0xFF)
    garbled = second.replace(b"34=8", b"34=9")
    stream = good + garbled + b"8=FIX.4.4\x019=x\x0135=0\x01" + second
    framer = Framer()
    found = [message for byte in stream for message in framer.feed(bytes([byte]))]
    assert [(message.type, message.sequence, message.flaw) for message in found] == [("D", 7, None), ("0", 8, None)]
    assert shown(found[0], 49, 56, 52, 11, 96, 58) == ("A", "B", "20231114-22:13:20.123", "x", "a\x01b=c", "é")
    assert shown(found[1], 43, 122) == ("Y", "19700101-00:00:00.000")
    assert framer.garbled == 2
    assert encode_body([(58, "a\x0110=000"), (1, "")]) == b"58=a 10=000\x01"


def test_fields_that_are_none_are_found() -> None:
    def flaw(body: bytes) -> tuple[int, int] | None:
        [message] = Framer().feed(encode("D", "A", "B", 1, 0, body))
        return message.flaw and message.flaw[:2]

    assert [flaw(body) for body in (b"11=\x01", b"x=1\x01", b"11\x01", b"11=a=b\x01")] == [
        (11, 4),
        (0, 0),
        (0, 0),
        None,
    ]


def test_times_are_read_as_written() -> None:
    assert parse_time("20260102-03:04:05.678901") == 1_767_323_045_678_901
    assert parse_time("20260102-03:04:05") == 1_767_323_045_000_000
    assert format_time(1_767_323_045_678_901) == "20260102-03:04:05.678"
    assert [parse_time(text) for text in ("", "20260132-03:04:05", "20260102-03:04:05.x")] == [-1, -1, -1]


def test_ticks_lots_and_averages_are_exact() -> None:
    instrument = Instrument(Decimal("0.05"), Decimal("100"))
    assert [instrument.units(text, instrument.tick) for text in ("1.05", "-1", "1.01", "1e3", "", ".", "9" * 40)] == [
        21, -20, None, None, None, None, None,
    ]  # fmt: skip
    assert (instrument.price(21), instrument.quantity(3)) == ("1.05", "300")
    assert instrument.average(10**27 + 1, 3) == "16666666666666666666666666.6833333333"
    assert Instrument().average(7, 2) == "3.5"


# --- sessions ------------------------------------------------------------------------------------------------------


def types(messages: list[Message]) -> list[str]:
    return [message.type for message in messages]


def test_a_logon_is_answered_and_numbers_go_on_where_they_were(world: FixWorld) -> None:
    assert shown(world.say("BUYER", "1", {112: "ping"})[0], 35, 34, 112) == ("0", "2", "ping")
    assert types(world.say("BUYER", "5")) == ["5"]
    assert world.wires["BUYER"].is_closed
    world.session("BUYER").detach()
    world.restart()
    [logon] = world.log_on("BUYER").take()
    assert shown(logon, 35, 34, 98, 108, 49, 56) == ("A", "4", "0", "30", "STREAMBANK", "BUYER")


def test_a_number_that_is_too_low_ends_the_session_unless_it_is_a_possible_duplicate(world: FixWorld) -> None:
    sent = order("1", "BUY", "10", "1")
    assert shown(world.say("BUYER", "D", sent)[0], 150) == ("0",)
    assert world.say("BUYER", "D", sent, number=2, duplicate=True) == []
    [logout] = world.say("BUYER", "D", sent, number=2)
    assert shown(logout, 35, 58) == ("5", "MsgSeqNum too low, expecting 3 but received 2")
    assert world.wires["BUYER"].is_closed
    world.session("BUYER").detach()
    world.sent["BUYER"] = 0
    [refused] = world.log_on("BUYER").take()
    assert (refused.type, world.wires["BUYER"].is_closed) == ("5", True)
    world.session("BUYER").detach()
    world.sent["BUYER"] = 0
    [anew] = world.log_on("BUYER", t141="Y").take()
    assert shown(anew, 35, 34, 141) == ("A", "1", "Y")


def test_a_gap_is_asked_for_and_nothing_behind_it_is_taken_before(world: FixWorld) -> None:
    early = order("2", "BUY", "10", "1")
    [asked] = world.say("BUYER", "D", early, number=4)
    assert shown(asked, 35, 7, 16) == ("2", "2", "0")
    assert world.say("BUYER", "0", number=5) == []  # asked once
    assert world.say("BUYER", "4", {123: "Y", 36: "4"}, number=2, duplicate=True) == []
    assert shown(world.say("BUYER", "D", early, number=4, duplicate=True)[0], 150, 11) == ("0", "2")
    assert world.say("BUYER", "0", number=5, duplicate=True) == []
    assert world.session("BUYER").next_in == 6
    [answer] = world.say("BUYER", "1", {112: "a"}, number=6)
    assert answer.type == "0"


def test_sequence_reset_moves_on_and_never_back(world: FixWorld) -> None:
    assert world.say("BUYER", "4", {36: "10"}, number=9) == []
    [rejected] = world.say("BUYER", "4", {36: "4"}, number=10)
    assert shown(rejected, 35, 371, 373) == ("3", "36", "5")
    assert types(world.say("BUYER", "1", {112: "a"}, number=10)) == ["0"]


def test_what_was_sent_is_sent_again_and_gaps_are_filled(world: FixWorld) -> None:
    for number in (1, 2, 3):
        world.say("BUYER", "D", order(f"{number}", "BUY", "10", "1"))  # messages 2 to 4
    world.say("BUYER", "1", {112: "a"})  # 5
    world.say("BUYER", "D", {})  # 6: a Reject, a message of the session
    again = world.say("BUYER", "2", {7: "1", 16: "0"})
    assert [shown(message, 35, 34, 43, 36, 11) for message in again] == [
        ("4", "1", "Y", "2", ""), ("8", "2", "Y", "", "1"), ("8", "3", "Y", "", "2"), ("8", "4", "Y", "", "3"),
        ("4", "5", "Y", "7", ""),
    ]  # fmt: skip
    assert parse_time(again[1].get(122)) <= parse_time(again[1].get(52))
    some = world.say("BUYER", "2", {7: "3", 16: "3"})
    assert [shown(message, 35, 34) for message in some] == [("8", "3")]
    assert shown(world.say("BUYER", "2", {7: "x", 16: "3"})[0], 35, 371) == ("3", "7")


def test_reports_for_one_who_is_away_wait_and_survive_a_crash(world: FixWorld) -> None:
    world.say("BUYER", "D", order("1", "BUY", "10", "5"))
    world.session("BUYER").detach()
    world.say("SELLER", "D", order("s", "SELL", "10", "2", t1="BOB"))
    world.restart()
    [logon] = world.log_on("BUYER").take()
    assert shown(logon, 35, 34) == ("A", "4")  # 3 is the fill
    [fill] = [message for message in world.say("BUYER", "2", {7: "3", 16: "0"}) if message.type == "8"]
    assert shown(fill, 34, 43, 150, 11, 32, 31, 151) == ("3", "Y", "F", "1", "2", "10", "3")


def test_what_is_no_message_of_the_session_is_rejected(world: FixWorld) -> None:
    [missing] = world.say("BUYER", "D", {11: "1", 55: "ACME"})
    assert shown(missing, 35, 371, 372, 373) == ("3", "54", "D", "1")
    [unknown] = world.say("BUYER", "V", {262: "1"})
    assert shown(unknown, 35, 372, 380) == ("j", "V", "3")
    now = format_time(time.time_ns() // 1000)
    late = world.message("BUYER", "0", {}, world.sent["BUYER"] + 1)
    late.values[52] = "20200101-00:00:00.000"
    world.commit(world.session("BUYER"), late)
    assert [shown(message, 35, 373) for message in world.wires["BUYER"].take()] == [("3", "10"), ("5", "")]
    assert parse_time(now) > 0


def test_a_silent_counterparty_is_asked_and_then_left(world: FixWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    session, start = world.session("BUYER"), time.monotonic()

    def at(seconds: float) -> list[str]:
        monkeypatch.setattr("api.fix.session.time.monotonic", lambda: start + seconds)
        if session.is_due():
            with world.store.transaction():
                session.tick()
            session.flush()
        return types(world.wires["BUYER"].take())

    assert [at(seconds) for seconds in (20, 31, 37, 40, 73)] == [[], ["0"], ["1"], [], ["5"]]
    assert world.wires["BUYER"].is_closed


# --- orders --------------------------------------------------------------------------------------------------------


def test_an_order_lives_from_entry_over_replace_and_fills_to_its_end(world: FixWorld) -> None:
    [new] = world.say("BUYER", "D", order("b1", "BUY", "10", "5"))
    assert shown(new, 35, 150, 39, 11, 1, 55, 54, 38, 40, 44, 59, 151, 14, 6) == (
        "8", "0", "0", "b1", "ALICE", "ACME", "1", "5", "2", "10", "1", "5", "0", "0",
    )  # fmt: skip
    world.say("SELLER", "D", order("s1", "SELL", "9", "2", t1="BOB"))
    [filled] = world.wires["BUYER"].take()
    assert shown(filled, 150, 39, 32, 31, 151, 14, 6, 851) == ("F", "1", "2", "10", "3", "2", "10", "1")
    [replaced] = world.say("BUYER", "G", change("b2", "b1", t38="4", t44="11", t54="1", t40="2"))
    assert shown(replaced, 150, 39, 11, 41, 38, 44, 151, 14) == ("5", "1", "b2", "b1", "4", "11", "2", "2")
    both = world.say("SELLER", "D", order("s2", "SELL", "11", "3", t1="BOB"))
    assert [shown(message, 150, 39, 31, 851) for message in both] == [("0", "0", "", ""), ("F", "1", "11", "2")]
    [last] = world.wires["BUYER"].take()
    assert shown(last, 150, 39, 11, 151, 14, 6, 37) == ("F", "2", "b2", "0", "4", "10.5", new.get(37))
    [too_late] = world.say("BUYER", "F", change("b3", "b2"))
    assert shown(too_late, 35, 11, 41, 39, 434, 102) == ("9", "b3", "b2", "2", "1", "0")
    [canceled] = world.say("SELLER", "F", change("s3", "s2"))
    assert shown(canceled, 150, 39, 11, 41, 151, 14, 58) == ("4", "4", "s3", "s2", "0", "2", "USER_REQUEST")
    ids = [message.get(17) for message in (new, filled, replaced, *both, last, canceled)]
    shard = shard_of("ACME")
    assert len(set(ids)) == len(ids)
    assert all(found.startswith(f"{shard}.") for found in ids)


def test_a_replace_counts_what_was_traded_in_the_meantime(world: FixWorld) -> None:
    world.say("BUYER", "D", order("b1", "BUY", "10", "5"))
    late = world.commit(
        world.session("BUYER"), world.message("BUYER", "G", change("b2", "b1", t38="8"), world.sent["BUYER"] + 1)
    )
    world.sent["BUYER"] += 1
    world.say("SELLER", "D", order("s1", "SELL", "10", "2", t1="BOB"))
    world.wires["BUYER"].take()
    world.work(late)
    [replaced] = world.wires["BUYER"].take()
    assert shown(replaced, 150, 38, 14, 151) == ("5", "8", "2", "6")
    # one for which everything was traded by then is refused
    late = world.commit(
        world.session("BUYER"), world.message("BUYER", "G", change("b3", "b2", t38="5"), world.sent["BUYER"] + 1)
    )
    world.sent["BUYER"] += 1
    world.say("SELLER", "D", order("s2", "SELL", "10", "3", t1="BOB"))
    world.wires["BUYER"].take()
    world.work(late)
    assert shown(world.wires["BUYER"].take()[0], 35, 434, 58) == ("9", "2", "INCORRECT_QUANTITY")


def test_a_routed_order_is_answered_when_the_venue_answers(world: FixWorld) -> None:
    world.happen(*({"type": "AccountDefinition", "account": name, "risk": risk}
                   for name, risk in (("XV", "VENUE"), ("ALICE", "OFF"))))  # fmt: skip
    [new] = world.say("BUYER", "D", order("b1", "BUY", "10", "5", t100="XV"))
    assert shown(new, 150, 39) == ("0", "0")
    requests = [event for event in world.events() if event["type"] == "RouteRequest"]
    route = {"type": "VenueReport", "venue": "XV", "order_id": new.get(37), "route": requests[0]["execution_id"],
             "symbol": "ACME"}  # fmt: skip
    world.happen(route | {"exec_type": "TRADE", "quantity": 2, "price": 9, "cumulative_quantity": 2})
    [filled] = world.wires["BUYER"].take()
    assert shown(filled, 150, 39, 32, 31, 30, 851, 151) == ("F", "1", "2", "9", "XV", "3", "3")
    assert world.say("BUYER", "G", change("b2", "b1", t38="7", t44="11")) == []
    [busy] = world.say("BUYER", "F", change("b3", "b2"))
    assert shown(busy, 35, 434, 102, 58) == ("9", "1", "3", "REQUEST_PENDING")
    world.session("BUYER").detach()
    world.restart()
    wire = world.log_on("BUYER")
    wire.take()
    request = [event for event in world.events() if event["type"] == "RouteRequest"][-1]["execution_id"]
    world.happen(route | {"exec_type": "REPLACED", "request": request, "price": 11, "quantity": 7})
    [replaced] = wire.take()
    assert shown(replaced, 150, 11, 41, 38, 151, 44) == ("5", "b2", "b1", "7", "5", "11")
    assert world.say("BUYER", "F", change("b4", "b2")) == []
    request = [event for event in world.events() if event["type"] == "RouteRequest"][-1]["execution_id"]
    world.happen(route | {"exec_type": "CANCEL_REJECTED", "request": request})
    assert shown(wire.take()[0], 35, 11, 41, 434, 58) == ("9", "b4", "b2", "1", "VENUE_REJECTED")
    assert world.say("BUYER", "F", change("b5", "b2")) == []
    world.happen(route | {"exec_type": "CANCELED", "cumulative_quantity": 2})
    assert shown(wire.take()[0], 150, 11, 41, 14, 151) == ("4", "b5", "b2", "2", "0")


def test_a_drop_copy_tells_all_that_happens_to_an_account_and_takes_nothing(world: FixWorld) -> None:
    [new] = world.say("BUYER", "D", order("b1", "BUY", "10", "5"))
    world.say("SELLER", "D", order("s1", "SELL", "9", "2", t1="BOB"))
    [filled] = world.wires["BUYER"].take()
    world.happen({"type": "NewOrder", "order_id": 99, "account": "ALICE", "symbol": "ACME", "side": "BUY", "price": 12,
                  "quantity": 4})  # fmt: skip
    world.restart()
    world.log_on("BUYER").take()
    world.say("BUYER", "F", change("b2", "b1"))
    wire = world.log_on("WATCHER")
    assert wire.take()[-1].sequence == 5  # its Logon comes after what it missed
    copies = [message for message in world.say("WATCHER", "2", {7: "1", 16: "0"}) if message.type == "8"]
    assert [shown(copy, 43, 797, 150, 39, 1, 14, 6, 151) for copy in copies] == [
        ("Y", "Y", "0", "0", "ALICE", "0", "0", "5"), ("Y", "Y", "F", "1", "ALICE", "2", "10", "3"),
        ("Y", "Y", "0", "0", "ALICE", "0", "0", "4"), ("Y", "Y", "4", "4", "ALICE", "2", "10", "0"),
    ]  # fmt: skip
    assert [copy.get(17) for copy in copies[:2]] == [new.get(17), filled.get(17)]
    [refused] = world.say("WATCHER", "D", order("w1", "BUY", "10", "5", t1="ALICE"))
    assert shown(refused, 35, 380) == ("j", "6")


def test_a_cl_ord_id_enters_one_order_however_often_it_comes(world: FixWorld) -> None:
    sent = order("once", "BUY", "10", "5", t59="3")  # IOC: its order id is free again at once
    world.say("SELLER", "D", order("s", "SELL", "10", "50", t1="CAROL"))
    assert [shown(message, 150) for message in world.say("BUYER", "D", sent)] == [("0",), ("F",)]
    [again] = world.say("BUYER", "D", sent | {97: "Y"})
    assert shown(again, 150, 39, 17, 14) == ("I", "2", "0", "5")
    world.session("BUYER").detach()
    world.restart()
    world.log_on("BUYER").take()
    [refused] = world.say("BUYER", "D", sent)
    assert shown(refused, 150, 39, 103, 11) == ("8", "8", "6", "once")
    [seen] = world.say("BUYER", "H", {11: "once", 54: "1", 55: "ACME", 790: "q"})
    assert shown(seen, 150, 39, 14, 790) == ("I", "2", "5", "q")


def test_reports_after_a_restart_find_their_orders_and_requests(world: FixWorld) -> None:
    world.say("BUYER", "D", order("b1", "BUY", "10", "5"))
    frames = world.commit(
        world.session("BUYER"), world.message("BUYER", "G", change("b2", "b1", t38="3"), world.sent["BUYER"] + 1)
    )
    world.restart()
    world.sent["BUYER"] += 1
    wire = world.log_on("BUYER")
    wire.take()
    [busy] = world.say("BUYER", "G", change("b3", "b1", t38="4"))
    assert shown(busy, 35, 434, 102) == ("9", "2", "3")
    world.work(frames)
    [replaced] = wire.take()
    assert shown(replaced, 150, 11, 41, 38, 151) == ("5", "b2", "b1", "3", "3")
    assert shown(world.say("BUYER", "G", change("b4", "b2", t38="4"))[0], 150, 11, 38) == ("5", "b4", "4")


@pytest.mark.parametrize(
    ("fields", "reason", "text"),
    [
        (order("x", "BUY", "10", "5", t1="BOB"), "15", "UNKNOWN_ACCOUNT"),
        (order("x", "BUY", "1.5", "5"), "99", "INVALID_PRICE_INCREMENT"),
        (order("x", "BUY", "0", "5"), "99", "INVALID_PRICE"),
        (order("x", "BUY", "10", "0.5"), "13", "INCORRECT_QUANTITY"),
        (order("x", "BUY", "10", "0"), "13", "INCORRECT_QUANTITY"),
        (order("x", "BUY", "10", "5", t54="5"), "11", "UNSUPPORTED"),
        (order("x", "BUY", "10", "5", t59="2"), "11", "UNSUPPORTED"),
        (order("x", "BUY", "10", "5", t110="9"), "13", "INCORRECT_QUANTITY"),
        (order("x", "BUY", "10", "5", t55="S" * 33), "1", "UNKNOWN_SYMBOL"),
    ],
)
def test_a_bad_order_gets_its_own_reason(world: FixWorld, fields: dict[int, str], reason: str, text: str) -> None:
    [refused] = world.say("BUYER", "D", fields)
    assert shown(refused, 35, 150, 39, 103, 151) == ("8", "8", "8", reason, "0")
    assert refused.get(58).startswith(text)


def test_changes_that_cannot_be_are_refused(world: FixWorld) -> None:
    world.say("BUYER", "D", order("b1", "BUY", "10", "5"))
    cases = [
        ("F", change("c1", "nobody"), ("1", "1")),
        ("F", change("b1", "b1"), ("1", "6")),
        ("F", change("c2", "b1", t55="OTHER"), ("1", "1")),
        ("G", change("c3", "b1", t38="5", t54="2"), ("2", "99")),
        ("G", change("c4", "b1", t38="0"), ("2", "99")),
    ]
    for kind, fields, answer in cases:
        [refused] = world.say("BUYER", kind, fields)
        assert shown(refused, 35, 434, 102) == ("9", *answer), fields
    [alive] = world.say("BUYER", "AF", {584: "m", 585: "7"})
    assert shown(alive, 150, 11, 584, 911, 912, 151) == ("I", "b1", "m", "1", "Y", "5")
    assert shown(world.say("SELLER", "AF", {584: "m", 585: "7"})[0], 39, 584, 911) == ("8", "m", "0")
    assert shown(world.say("SELLER", "F", change("s1", "b1"))[0], 35, 102) == ("9", "1")  # ClOrdIDs are a session's own


def test_a_session_has_a_throttle_that_cancels_pass(tmp_path: Path) -> None:
    world = FixWorld(tmp_path / "fix.sqlite", DEFINITIONS)
    world.log_on("LIMITED").take()
    answers = [world.say("LIMITED", "D", order(f"{n}", "BUY", "10", "1"), reaches_market=False) for n in range(3)]
    assert [shown(message, 150, 103) for heard in answers for message in heard] == [("8", "99")]
    assert world.say("LIMITED", "F", change("c", "0"), reaches_market=False) == []


def test_prices_and_quantities_are_those_of_the_instrument(tmp_path: Path) -> None:
    file = tmp_path / "instruments.json"
    file.write_text('{"ACME": {"tick": "0.25", "lot": "10"}}')
    world = FixWorld(tmp_path / "fix.sqlite", DEFINITIONS, read_instruments(file))
    world.log_on("BUYER").take()
    world.log_on("SELLER").take()
    [new] = world.say("BUYER", "D", order("b", "BUY", "1.50", "30"))
    assert shown(new, 44, 38, 151) == ("1.5", "30", "30")
    world.say("SELLER", "D", order("s", "SELL", "1.25", "10", t1="BOB"))
    assert shown(world.wires["BUYER"].take()[0], 31, 32, 151, 6) == ("1.5", "10", "20", "1.5")
    file.write_text('{"ACME": {"tick": "0"}}')
    with pytest.raises(DefinitionError, match="above 0"):
        read_instruments(file)


def test_cancel_all_cancels_the_orders_of_one_session(world: FixWorld) -> None:
    world.say("BUYER", "D", order("b1", "BUY", "10", "5"))
    world.say("SELLER", "D", order("s1", "SELL", "20", "5", t1="BOB"))
    assert world.desk.cancel_all(world.session("BUYER")) == 1
    world.work(world.commit())
    [canceled] = world.wires["BUYER"].take()
    assert shown(canceled, 150, 39, 11, 41) == ("4", "4", "b1", "")
    assert world.wires["SELLER"].take() == []


# --- who may log on ------------------------------------------------------------------------------------------------


def test_sessions_are_made_verified_and_revoked(tmp_path: Path) -> None:
    definitions = Definitions(tmp_path / "sessions.json")
    made, password = definitions.add("HEDGE", ["ALICE"], messages_per_second=5, cancel_on_disconnect=True)
    assert password not in definitions.path.read_text()
    assert definitions.path.stat().st_mode & 0o777 == 0o600
    other = Definitions(definitions.path)

    async def verified(comp_id: str, username: str, given: str) -> bool:
        return await other.authenticate(comp_id, username, given) is not None

    async def attempts() -> list[bool]:
        tried = (("HEDGE", "HEDGE", password), ("HEDGE", "HEDGE", "x"), ("HEDGE", "x", password), ("X", "X", password))
        return [await verified(*credentials) for credentials in tried]

    assert asyncio.run(attempts()) == [True, False, False, False]
    with pytest.raises(DefinitionError, match="exists"):
        definitions.add("HEDGE", ["ALICE"])
    definitions.revoke("HEDGE")
    assert other.active("HEDGE") is None
    assert definitions.add("SECOND", ["BOB"])[0].number == made.number + 1
    assert definitions.add("HEDGE", ["ALICE"])[0].number == made.number
    with pytest.raises(DefinitionError, match="comp id"):
        definitions.add("no blanks", ["ALICE"])


def test_a_store_has_one_gateway(tmp_path: Path) -> None:
    Store(tmp_path / "fix.sqlite")
    with pytest.raises(StoreError, match="another process"):
        Store(tmp_path / "fix.sqlite")
