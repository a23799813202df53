"""Order matching through Kafka and PyFlink gives, byte for byte, the reports and market data of one process: with
repeated frames, after a kill and with other parallelisms. That those are right is shown by the conformance tests."""

from __future__ import annotations

import pytest

from bench.matching_streams import command_rows, interleaved_stream
from infra.flink_jobs import savepoint_directory
from infra.flink_rest import FlinkRest
from infra.settings import PROJECT_ROOT
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS, MATCHING_SHARDS, PIPELINES
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.wire import wrap
from tests.support.flink_job import caught_up, end, provision, start
from tests.support.frame_log import Record, count, expected, produce
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

MATCHING = PIPELINES["matching"]
MATCHING_JOB = PROJECT_ROOT / "jobs" / "matching.py"
FRAME_EVENTS = 50
SYMBOLS = [f"S{number}" for number in range(6)]
ACCOUNTS = 40


def orders(schema_id: int) -> list[Record]:
    """Limit and IOC orders, cancels and price moves in several books of each shard; a tenth of the frames comes twice,
    as a producer's retry sends them."""
    codec = codec_of(MATCHING_COMMANDS.name)
    shards = []
    for shard in range(MATCHING_SHARDS):
        messages, _, _ = interleaved_stream(
            4_000, live=300, symbols=len(SYMBOLS), accounts=ACCOUNTS, levels=60, seed=shard + 1
        )
        events = command_rows(messages, SYMBOLS, ACCOUNTS)
        records = []
        for number, at in enumerate(range(0, len(events.rows), FRAME_EVENTS)):
            run = Events(events.rows[at : at + FRAME_EVENTS], events.heap)
            trace = f"00-{shard:016x}{number:016x}-{number:016x}-01"
            frame = Frame(MATCHING_COMMANDS.name, shard, 0, 1_700_000_000_000_000 + number, trace, run)
            records += [Record(shard, wrap(schema_id, codec.encode(frame)))] * (1 + (number % 10 == 9))
        shards.append(records)
    return [record for turn in zip(*shards, strict=True) for record in turn]


def test_flink_matches_as_one_process_does(kafka, registry, flink, environment):
    schema_ids = provision(environment)
    log = orders(schema_ids[MATCHING_COMMANDS.name])
    wanted = expected(MATCHING, log, schema_ids)
    assert sum(len(frames) for (topic, _), frames in wanted.items() if topic == MATCHING_REPORTS.name) >= len(log)
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
