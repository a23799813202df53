"""The totals' Flink job behind the ledger's: the same bytes as in process, over repeated inputs and a change of
parallelism by savepoint."""

from __future__ import annotations

import pytest

from infra.flink_jobs import savepoint_directory
from infra.flink_rest import FlinkRest
from infra.settings import PROJECT_ROOT
from jobs.inprocess import InProcess
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_EVENTS, PIPELINES
from tests.support.flink_job import caught_up, end, start
from tests.support.frame_log import Record, ledger_log, produce
from tests.support.provision import provision

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

TOTALS = PIPELINES["ledger_totals"]
TOTALS_JOB = PROJECT_ROOT / "jobs" / "ledger_totals.py"


def test_totals_are_those_of_an_undisturbed_run(kafka, registry, flink, environment):
    schema_ids = provision(environment, "ledger")
    ledger = InProcess(PIPELINES["ledger"], schema_ids)
    events = [
        Record(output.shard, output.value)
        for record in ledger_log(300, seed=5, schema_id=schema_ids[LEDGER_COMMANDS.name])
        for output in ledger.apply(LEDGER_COMMANDS.name, record.value, record.partition)
        if output.topic == LEDGER_EVENTS.name
    ]
    totals = InProcess(TOTALS, schema_ids)
    wanted: dict[tuple[str, int], list[bytes]] = {("ledger.totals", shard): [] for shard in range(TOTALS.shards)}
    first_half: dict[tuple[str, int], list[bytes]] = {}
    for number, record in enumerate(events):
        if number == 150:
            first_half = {key: list(values) for key, values in wanted.items()}
        for output in totals.apply(LEDGER_EVENTS.name, record.value, record.partition):
            wanted[output.topic, output.shard].append(output.value)

    job = start(environment, TOTALS_JOB)
    try:
        produce(environment, LEDGER_EVENTS.name, events[:150])
        assert caught_up(environment, TOTALS, first_half) == 0
        with FlinkRest(environment) as rest:
            state = rest.stop_with_savepoint(job, savepoint_directory(job.name, environment))
        job = start(environment, TOTALS_JOB, parallelism=2, from_savepoint=state)
        produce(environment, LEDGER_EVENTS.name, [*events[130:150], *events[150:]])
        assert caught_up(environment, TOTALS, wanted) == 0
    finally:
        end(environment, job.name)
