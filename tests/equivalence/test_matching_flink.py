"""Order matching through Kafka and PyFlink gives, byte for byte, the reports and market data of one process: with
repeated frames, after a kill and with other parallelisms. That those are right is shown by the conformance tests."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from bench.matching_streams import command_rows, interleaved_stream
from infra.flink_jobs import savepoint_directory
from infra.flink_rest import FlinkRest
from infra.settings import PROJECT_ROOT
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS, MATCHING_SHARDS, PIPELINES
from pipelines.codec import codec_of
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Events, Frame
from pipelines.matching.kernel import MatchingKernel
from pipelines.wire import unwrap, wrap
from tests.support.flink_job import caught_up, end, start
from tests.support.frame_log import Record, count, expected, produce
from tests.support.matching_frames import amend, cancel, new
from tests.support.provision import provision
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

MATCHING = PIPELINES["matching"]
MATCHING_JOB = PROJECT_ROOT / "jobs" / "matching.py"
FRAME_EVENTS = 50
SYMBOLS = [f"S{number}" for number in range(6)]
ACCOUNTS = 40
FIRST_ROUTED = 1_000_000
ROUTE_REQUEST = codec_of(MATCHING_REPORTS.name).event_type("RouteRequest").kind


class VenueDesk:
    """Routed orders of one shard, and a venue's answers to what the kernel asked of it: each second request to cancel
    or replace is refused, and an order trades a lot at a time."""

    def __init__(self) -> None:
        self._kernel = MatchingKernel()
        self._asked: list[dict[str, Any]] = []
        self._executed: dict[int, int] = {}
        self._numbers = itertools.count(1)

    def see(self, frame: Frame) -> None:
        """Apply a frame, as the job will, for the numbers of its requests."""
        for output in self._kernel.apply(frame):
            if output.topic == MATCHING_REPORTS.name:
                rows = output.events.rows[output.events.rows[:, 0] == ROUTE_REQUEST]
                self._asked += render_events(codec_of(output.topic), Events(rows, output.events.heap))

    def commands(self) -> list[dict[str, Any]]:
        """Three new orders, a change of each older one that has traded, and all answers that are due."""
        if not self._executed:
            self._executed[0] = 0
            others = [
                {"type": "AccountDefinition", "account": f"A{number}", "risk": "OFF"} for number in range(ACCOUNTS)
            ]
            return [*others, {"type": "AccountDefinition", "account": "V", "risk": "VENUE"}]
        answers, self._asked = [self._answer(request) for request in self._asked], []
        named = {"account": "A1", "symbol": SYMBOLS[0]}
        changes = [
            amend(order, price=90, quantity=20, **named) if order % 2 else cancel(order, **named)
            for order, lots in self._executed.items()
            if lots
        ]
        first = FIRST_ROUTED + next(self._numbers) * 10
        orders = [new(order, "BUY", 100, 10, destination="V", **named) for order in range(first, first + 3)]
        return [*answers, *changes, *orders]

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        order, number = int(request["order_id"]), next(self._numbers)
        said: dict[str, Any] = {
            "type": "VenueReport", "venue": "V", "order_id": order, "route": request["route"], "symbol": SYMBOLS[0],
            "request": request["execution_id"],
        }  # fmt: skip
        match request["action"]:
            case "NEW":
                self._executed[order] = 1
                return said | {"exec_type": "TRADE", "price": 99, "quantity": 1, "cumulative_quantity": 1,
                               "venue_execution_id": f"E-{number}"}  # fmt: skip
            case "REPLACE" if number % 2:
                return said | {"exec_type": "REPLACED", "price": request["price"], "quantity": request["quantity"]}
            case "CANCEL" if number % 2:
                return said | {"exec_type": "CANCELED", "cumulative_quantity": self._executed.pop(order, 0)}
            case action:
                return said | {"exec_type": f"{action}_REJECTED"}


def orders(schema_id: int) -> list[Record]:
    """Limit and IOC orders, cancels and price moves in several books of each shard, and orders that a venue trades; a
    tenth of the frames comes twice, as a producer's retry sends them."""
    codec = codec_of(MATCHING_COMMANDS.name)
    shards = []
    for shard in range(MATCHING_SHARDS):
        messages, _, _ = interleaved_stream(
            4_000, live=300, symbols=len(SYMBOLS), accounts=ACCOUNTS, levels=60, seed=shard + 1
        )
        events = command_rows(messages, SYMBOLS, ACCOUNTS)
        desk = VenueDesk()
        records = []
        for number, at in enumerate(range(0, len(events.rows), FRAME_EVENTS)):
            run = Events(events.rows[at : at + FRAME_EVENTS], events.heap)
            if number % 5 == 4:
                run = parse_events(codec, desk.commands())
            trace = f"00-{shard:016x}{number:016x}-{number:016x}-01"
            frame = Frame(MATCHING_COMMANDS.name, shard, 0, 1_700_000_000_000_000 + number, trace, run)
            for _ in range(1 + (number % 10 == 9)):
                desk.see(frame)
                records.append(Record(shard, wrap(schema_id, codec.encode(frame))))
        shards.append(records)
    return [record for turn in zip(*shards, strict=True) for record in turn]


def test_flink_matches_as_one_process_does(kafka, registry, flink, environment):
    schema_ids = provision(environment, "matching")
    log = orders(schema_ids[MATCHING_COMMANDS.name])
    wanted = expected(MATCHING, log, schema_ids)
    assert sum(len(frames) for (topic, _), frames in wanted.items() if topic == MATCHING_REPORTS.name) >= len(log)
    told = Counter(
        report.get("action") or report.get("venue_execution_id", "")[:2] or report["reason"]
        for (topic, _), values in wanted.items()
        if topic == MATCHING_REPORTS.name
        for value in values
        for report in render_events(codec_of(topic), codec_of(topic).decode(unwrap(value)[1]).events)
    )
    assert min(told[what] for what in ("NEW", "CANCEL", "REPLACE", "E-", "VENUE_REJECTED")) > 10, told
    third = len(log) // 3
    state = None
    name = environment.kafka_topic("matching")
    try:
        with FlinkRest(environment) as rest:
            for parallelism, done in ((1, third), (2, 2 * third)):
                job = start(environment, MATCHING_JOB, parallelism=parallelism, from_savepoint=state)
                produce(environment, MATCHING_COMMANDS.name, log[done - third : done])
                assert caught_up(environment, MATCHING, expected(MATCHING, log[:done], schema_ids)) == 0
                state = rest.stop_with_savepoint(job, savepoint_directory(job.name, environment))
        start(environment, MATCHING_JOB, parallelism=1, from_savepoint=state)
        last = log[2 * third :]
        produce(environment, MATCHING_COMMANDS.name, last[: len(last) // 2])
        wait_until(
            lambda: count(environment, MATCHING_REPORTS.name, MATCHING_SHARDS) > 2 * third + 10,
            120,
            "some of the last third",
        )
        flink.kill_task_manager()
        flink.start_task_manager()
        produce(environment, MATCHING_COMMANDS.name, last[len(last) // 2 :])
        caught_up(environment, MATCHING, wanted)
    finally:
        end(environment, name)
