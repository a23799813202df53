"""The fraud features through Kafka and PyFlink are, byte for byte, those of one process: with duplicates, after a kill
and with other parallelisms. That those are right is shown by `test_fraud_features`."""

from __future__ import annotations

import numpy as np
import pytest

from infra.flink_jobs import savepoint_directory
from infra.flink_rest import FlinkRest
from infra.settings import PROJECT_ROOT
from models.fraud_stream import EPOCH_MICROS, event_rows
from models.simulator import simulate
from pipelines.catalogue import FRAUD_FEATURES, FRAUD_SHARDS, FRAUD_TRANSACTIONS, PIPELINES
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.fraud.records import DAY
from pipelines.wire import wrap
from tests.support.flink_job import caught_up, end, start
from tests.support.frame_log import Record, count, expected, produce
from tests.support.provision import provision
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

FRAUD = PIPELINES["fraud"]
FRAUD_JOB = PROJECT_ROOT / "jobs" / "fraud.py"
FRAME_EVENTS = 50
LATER = EPOCH_MICROS + 400 * DAY
"""When the frames are produced."""


def portfolios(schema_id: int) -> list[Record]:
    """A small world's cards dealt to the shards, as frames in time order; a tenth of the frames comes twice."""
    world = simulate(customers=120, terminals=240)
    rows = event_rows(world)
    shard_of = world.customer[rows[:, 1]] % FRAUD_SHARDS
    codec = codec_of(FRAUD_TRANSACTIONS.name)
    made: list[tuple[int, Record]] = []
    for shard in range(FRAUD_SHARDS):
        own = rows[shard_of == shard]
        for number, at in enumerate(range(0, len(own), FRAME_EVENTS)):
            run = np.ascontiguousarray(own[at : at + FRAME_EVENTS])
            trace = f"00-{shard:016x}{number:016x}-{number:016x}-01"
            frame = Frame(FRAUD_TRANSACTIONS.name, shard, 0, LATER + number, trace, Events(run))
            made += [(int(run[0, 3]), Record(shard, wrap(schema_id, codec.encode(frame))))] * (1 + (number % 10 == 9))
    return [record for _, record in sorted(made, key=lambda entry: entry[0])]


def test_flink_makes_the_features_of_one_process(kafka, registry, flink, environment):
    schema_ids = provision(environment, "fraud")
    log = portfolios(schema_ids[FRAUD_TRANSACTIONS.name])
    wanted = expected(FRAUD, log, schema_ids)
    assert sum(map(len, wanted.values())) == 2 * len(log)
    third = len(log) // 3
    state = None
    name = environment.kafka_topic("fraud")
    try:
        with FlinkRest(environment) as rest:
            for parallelism, part in ((1, log[:third]), (2, log[third : 2 * third])):
                job = start(environment, FRAUD_JOB, parallelism=parallelism, from_savepoint=state)
                produce(environment, FRAUD_TRANSACTIONS.name, part)
                done = log[:third] if parallelism == 1 else log[: 2 * third]
                assert caught_up(environment, FRAUD, expected(FRAUD, done, schema_ids)) == 0
                state = rest.stop_with_savepoint(job, savepoint_directory(job.name, environment))
        start(environment, FRAUD_JOB, parallelism=1, from_savepoint=state)
        last = log[2 * third :]
        produce(environment, FRAUD_TRANSACTIONS.name, last[: len(last) // 2])
        wait_until(
            lambda: count(environment, FRAUD_FEATURES.name, FRAUD_SHARDS) > 2 * third + 10,
            120,
            "some of the last third",
        )
        flink.kill_task_manager()
        flink.start_task_manager()
        produce(environment, FRAUD_TRANSACTIONS.name, last[len(last) // 2 :])
        caught_up(environment, FRAUD, wanted)
    finally:
        end(environment, name)
