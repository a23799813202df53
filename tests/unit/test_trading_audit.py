"""The audit tells every order's life, and a sealed file shows any change."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.inprocess import InProcess
from jobs.trading_audit import AuditError, AuditKeys, order_events, pair, seal, verify_file
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS, PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.trading.audit import OrderEvent, OrderHistory, audit_trail, rts24
from pipelines.trading.phases import TradingPhases

CODEC = codec_of(MATCHING_COMMANDS.name)
SECOND = 1_000_000
REFERENCE = {
    "accounts": {"ALICE": {"1": "LEI-OF-ALICE", "2": False}},
    "symbols": {"ACME": {"18": "XX0001", "29": "EUR"}},
}


def order(order_id: int, account: str, side: str, price: int, quantity: int, **more: Any) -> dict[str, Any]:
    return {"type": "NewOrder", "order_id": order_id, "account": account, "symbol": "ACME", "side": side,
            "price": price, "quantity": quantity, **more}  # fmt: skip


SCRIPT: list[list[dict[str, Any]]] = [
    [order(1, "ALICE", "SELL", 100, 5, display_quantity=2, transact_time=7), order(2, "BOB", "SELL", 101, 4)],
    [order(3, "CAROL", "BUY", 101, 6, time_in_force="IOC", self_trade_prevention="CANCEL_NEWEST")],
    [{"type": "AmendOrder", "order_id": 2, "quantity": 2}, {"type": "AmendOrder", "order_id": 2, "price": 103},
     {"type": "CancelOrder", "order_id": 9}],
    [order(4, "DAVE", "BUY", 90, 1, order_type="STOP_LIMIT", stop_price=103), order(5, "EVE", "BUY", 103, 1),
     order(5, "EVE", "BUY", 0, 1)],
    [{"type": "CancelOrder", "order_id": 2}],
]  # fmt: skip


def run() -> tuple[list[Frame], list[Frame]]:
    kernel = InProcess(PIPELINES["matching"])
    commands = [
        Frame(CODEC.topic, 0, 0, (number + 1) * SECOND, f"trace-{number}", parse_events(CODEC, events))
        for number, events in enumerate(SCRIPT)
    ]
    reports = [
        kernel.decode_output(output)
        for command in commands
        for output in kernel.apply_frame(command)
        if output.topic == MATCHING_REPORTS.name
    ]
    return commands, reports


@pytest.fixture(scope="module")
def frames() -> tuple[list[Frame], list[Frame]]:
    return run()


@pytest.fixture(scope="module")
def events(frames: tuple[list[Frame], list[Frame]]) -> list[OrderEvent]:
    commands, reports = frames
    dead = Frame(CODEC.topic, 0, 0, 1, "set-aside", commands[0].events)
    repeated = [*reports[:2], reports[0], *reports[1:]]  # as after a restart of the job
    history = OrderHistory(0)
    pairs = pair([commands[0], dead, *commands[1:]], repeated)
    return [event for command, answers in pairs for event in history.feed(command, answers)]


def test_every_step_of_every_order_is_told(events: list[OrderEvent]) -> None:
    told = [
        (event.at // SECOND, event.order_id, event.exec_type, event.is_maker, event.trade_quantity,
         event.order and event.order.leaves_quantity)
        for event in events
    ]  # fmt: skip
    assert told[:2] == [(1, 1, "NEW", False, 0, 5), (1, 2, "NEW", False, 0, 4)]
    assert [(order_id, maker, lots) for _, order_id, kind, maker, lots, _ in told if kind == "TRADE"][:6] == [
        (3, False, 2), (1, True, 2), (3, False, 2), (1, True, 2), (3, False, 1), (1, True, 1),
    ]  # fmt: skip
    assert (3, 2, "REPLACED", False, 0, 2) in told
    assert (3, 9, "CANCEL_REFUSED", False, 0, None) in told
    assert [kind for _, order_id, kind, *_ in told if order_id == 4] == ["NEW", "TRIGGERED"]
    sequences = [event.sequence for event in events]
    assert sequences == sorted(set(sequences))
    assert sum(event.trade_quantity for event in events if event.is_maker) == sum(
        event.trade_quantity for event in events if event.exec_type == "TRADE" and not event.is_maker
    )


def test_rts24_records_have_every_field(events: list[OrderEvent]) -> None:
    records = [record for event in events if (record := rts24(event, REFERENCE)) is not None]
    assert all(list(record) == [str(number) for number in range(1, 52)] for record in records)
    alice = [record for record in records if record["20"] == "0-1"]
    assert [record["21"] for record in alice] == ["NEWO", "PARF", "PARF", "FILL"]
    first = alice[0]
    assert (first["1"], first["2"], first["3"], first["18"], first["29"]) == (
        "LEI-OF-ALICE",
        False,
        None,
        "XX0001",
        "EUR",
    )
    assert (first["9"], first["10"], first["24"], first["32"]) == ("1970-01-01T00:00:01.000000Z", "GTCV", 100, "SELL")
    assert [(record["36"], record["37"], record["38"], record["39"], record["44"]) for record in alice] == [
        (5, 5, 2, None, None), (5, 3, 2, 2, "PASV"), (5, 1, 1, 2, "PASV"), (5, 0, 0, 1, "PASV"),
    ]  # fmt: skip
    bob = [record for record in records if record["20"] == "0-2"]
    # a smaller quantity keeps the place, another price does not
    assert [(record["21"], record["13"][17:19]) for record in bob if record["21"] in ("NEWO", "REME")] == [
        ("NEWO", "01"), ("REME", "01"), ("REME", "03"),
    ]  # fmt: skip
    carol = [record for record in records if record["20"] == "0-3"]
    assert (carol[0]["10"], carol[0]["45"]) == ("IOCV", True)
    assert {record["32"] for record in carol} == {"BUYI"}
    stop = [record for record in records if record["20"] == "0-4"]
    assert [(record["21"], record["23"], record["33"]) for record in stop] == [
        ("NEWO", "STOP", "INAC"), ("TRIG", "STOP", "ACTI"),
    ]  # fmt: skip
    codes = {
        "10": {"DAVY", "GTCV", "GTDV", "GTSV", "GTTV", "IOCV", "FOKV"},
        "21": {"NEWO", "TRIG", "REME", "REMA", "REMH", "CHME", "CHMO", "CAME", "CAMO", "REMO", "EXPI", "PARF", "FILL"},
        "23": {"LMTO", "STOP"}, "31": {"MONE"}, "32": {"BUYI", "SELL"}, "33": {"ACTI", "INAC", "ROUT"}, "34": {"UNIT"},
        "44": {"PASV", "AGRE", None},
    }  # fmt: skip
    for number, known in codes.items():
        assert {record[number] for record in records} <= known, number
    refused = [record for record in records if record["21"] == "REMO"]
    assert [(record["20"], record["24"]) for record in refused] == [("0-5", None)]


def test_the_life_of_one_order(events: list[OrderEvent]) -> None:
    trail = [audit_trail(event) for event in order_events(events, 1)]
    assert [(record["event_type"], record.get("liquidity")) for record in trail] == [
        ("ORDER_ACCEPTED", None), ("ORDER_TRADE", "MAKER"), ("ORDER_TRADE", "MAKER"), ("ORDER_TRADE", "MAKER"),
    ]  # fmt: skip
    assert trail[0]["client_timestamp"] == "1970-01-01T00:00:00.000007Z"
    assert trail[-1]["order_status"] == "FILLED"


def test_what_a_venue_was_asked_and_said_is_told() -> None:
    kernel, history = InProcess(PIPELINES["matching"]), OrderHistory(0)
    told: list[OrderEvent] = []

    def happens(*commands: dict[str, Any]) -> None:
        frame = Frame(CODEC.topic, 0, 0, len(told) * SECOND, None, parse_events(CODEC, list(commands)))
        outputs = [kernel.decode_output(output) for output in kernel.apply_frame(frame)]
        told.extend(history.feed(frame, [output for output in outputs if output.topic == MATCHING_REPORTS.name]))

    happens({"type": "AccountDefinition", "account": "XV", "risk": "VENUE"},
            {"type": "AccountDefinition", "account": "ALICE", "risk": "OFF"})  # fmt: skip
    happens(order(7, "ALICE", "BUY", 100, 5, destination="XV", transact_time=9))
    said = {"type": "VenueReport", "venue": "XV", "order_id": 7, "symbol": "ACME", "route": told[-1].execution_id}
    happens(said | {"exec_type": "NEW", "venue_execution_id": "E1"})
    trade = {"exec_type": "TRADE", "venue_execution_id": "E2", "quantity": 2, "price": 99, "cumulative_quantity": 2}
    happens(said | trade, said | trade)
    happens({"type": "CancelOrder", "order_id": 7})
    happens(said | {"exec_type": "CANCELED", "venue_execution_id": "E3", "cumulative_quantity": 2})
    trail = [audit_trail(event) for event in told]
    assert [(record["event_type"], record.get("venue_execution_id"), record["reason"]) for record in trail] == [
        ("ORDER_ACCEPTED", None, "NONE"), ("ORDER_ROUTED", None, "NONE"), ("ROUTE_ACCEPTED", "E1", "NONE"),
        ("ORDER_TRADE", "E2", "NONE"), ("VENUE_REPORT_REFUSED", "E2", "DUPLICATE_EXECUTION"),
        ("ROUTE_CANCEL_REQUESTED", None, "USER_REQUEST"), ("ORDER_CANCELED", "E3", "USER_REQUEST"),
    ]  # fmt: skip
    assert [record["liquidity"] for record in trail if "liquidity" in record] == ["ROUTED"]
    records = [record for event in told if (record := rts24(event, REFERENCE)) is not None]
    assert [(record["21"], record["33"], record["37"], record["44"], record["47"]) for record in records] == [
        ("NEWO", "ROUT", 5, None, "XV"), ("PARF", "ROUT", 3, None, "XV"), ("CAME", "ROUT", 0, None, "XV"),
    ]  # fmt: skip


def test_every_event_tells_the_phase_in_which_it_happened() -> None:
    """A frame with a whole day in it: what changes the phase, and what comes of the change, are of the one before."""
    kernel, history = InProcess(PIPELINES["matching"]), OrderHistory(0, TradingPhases())

    def status(name: str) -> dict[str, Any]:
        return {"type": "SecurityTradingStatus", "symbol": "ACME", "status": name}

    day = [
        {"type": "SymbolDefinition", "symbol": "ACME", "base_asset": "A", "quote_asset": "Q", "status": "PRE_OPEN"},
        {"type": "SymbolDefinition", "symbol": "OTHER", "base_asset": "A", "quote_asset": "Q"},
        order(1, "ALICE", "SELL", 100, 5), order(2, "BOB", "BUY", 100, 3), status("READY_TO_TRADE"),
        order(3, "BOB", "BUY", 90, 1) | {"symbol": "OTHER"}, order(4, "BOB", "BUY", 100, 1), status("TRADING_HALT"),
        {"type": "CancelOrder", "order_id": 1}, order(5, "BOB", "BUY", 80, 1, time_in_force="DAY"),
        status("NOT_AVAILABLE_FOR_TRADING"), order(6, "BOB", "BUY", 80, 1),
    ]  # fmt: skip
    told: list[OrderEvent] = []
    for number, commands in enumerate([day[:6], day[6:]]):
        frame = Frame(CODEC.topic, 0, 0, number * SECOND, None, parse_events(CODEC, commands))
        outputs = [kernel.decode_output(output) for output in kernel.apply_frame(frame)]
        told.extend(history.feed(frame, [output for output in outputs if output.topic == MATCHING_REPORTS.name]))
    records = [record for event in told if (record := rts24(event, REFERENCE)) is not None]
    assert [(record["20"], record["21"], record["49"]) for record in records] == [
        ("0-1", "NEWO", "PRE_OPEN"), ("0-2", "NEWO", "PRE_OPEN"), ("0-2", "FILL", "PRE_OPEN"),
        ("0-1", "PARF", "PRE_OPEN"), ("0-3", "NEWO", "READY_TO_TRADE"), ("0-4", "NEWO", "READY_TO_TRADE"),
        ("0-4", "FILL", "READY_TO_TRADE"), ("0-1", "PARF", "READY_TO_TRADE"), ("0-1", "CAME", "TRADING_HALT"),
        ("0-5", "REMO", "TRADING_HALT"), ("0-6", "REMO", "NOT_AVAILABLE_FOR_TRADING"),
    ]  # fmt: skip
    assert audit_trail(told[0]).keys() == audit_trail(replace(told[0], phase=None)).keys()


def test_missing_frames_are_an_alarm(frames: tuple[list[Frame], list[Frame]]) -> None:
    commands, reports = frames
    with pytest.raises(AuditError, match="frames are missing"):
        list(pair(commands, [*reports[:1], *reports[2:]]))
    with pytest.raises(AuditError, match="answer no command frame"):
        list(pair(commands[1:], reports))


def test_a_sealed_file_shows_any_change(events: list[OrderEvent], tmp_path: Path) -> None:
    keys = AuditKeys(tmp_path / "secrets" / "audit-keys.json")
    stream = io.BytesIO()
    count, last = seal(stream, {"shard": 0}, map(audit_trail, events), keys.signing())
    path = tmp_path / "audit.ndjson"

    def check(lines: list[bytes]) -> Any:
        path.write_bytes(b"".join(lines))
        return verify_file(path, keys.find)

    lines = stream.getvalue().splitlines(keepends=True)
    keys.rotate()  # an older key still verifies
    assert check(lines)[1:] == (count, last)
    assert count == len(events)
    assert (tmp_path / "secrets" / "audit-keys.json").stat().st_mode & 0o077 == 0
    for changed, where in (
        ([lines[0], lines[1].replace(b"ALICE", b"MALLO"), *lines[2:]], "line 2"),
        ([*lines[:3], *lines[4:]], "line 4"),
        ([*lines[:2], lines[3], lines[2], *lines[4:]], "line 3"),
        ([*lines[:2], lines[1], *lines[2:]], "line 3"),
        (lines[:-1], "cut off"),
        ([lines[0].replace(b'"shard":0', b'"shard":1'), *lines[1:]], "line 1"),
    ):
        with pytest.raises(AuditError, match=where):
            check(changed)
    forged = io.BytesIO()
    seal(forged, {"shard": 0}, [], (keys.signing()[0], bytes(32)))
    with pytest.raises(AuditError, match="line 1"):
        check(forged.getvalue().splitlines(keepends=True))
