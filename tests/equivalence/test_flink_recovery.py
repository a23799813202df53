"""A Flink job writes, byte for byte, what an undisturbed run in one process gives: through kills of TaskManager and
JobManager, and through changes of its parallelism."""

from __future__ import annotations

import threading

import pytest

from infra.flink_jobs import LATEST, savepoint_directory
from infra.flink_rest import FlinkRest
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_RESULTS, PIPELINES
from tests.support.counter_kernel import COUNTER
from tests.support.flink_job import LEDGER_JOB, caught_up, end, running, start
from tests.support.frame_log import count, expected, ledger_log, produce, random_log
from tests.support.provision import provision
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

LEDGER = PIPELINES["ledger"]
SHARDS = COUNTER.shards


class Stream:
    """Produces a log from a thread, steadily and never far ahead of the job, so that every kill meets it at work, with
    frames since its last checkpoint; at the end of the block what is left goes out at once."""

    AHEAD = 200
    STEP = 10
    PAUSE_SECONDS = 0.02

    def __init__(self, environment, log):
        self._thread = threading.Thread(target=self._run, args=(environment, log))
        self._hurry = threading.Event()

    def _run(self, environment, log):
        sent = done = 0
        while sent < len(log) and not self._hurry.wait(self.PAUSE_SECONDS):
            if sent > done + self.AHEAD:
                done = count(environment, LEDGER_RESULTS.name, SHARDS)
            else:
                produce(environment, LEDGER_COMMANDS.name, log[sent : sent + self.STEP])
                sent += self.STEP
        produce(environment, LEDGER_COMMANDS.name, log[sent:])

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._hurry.set()
        self._thread.join()


def wait_for_results(environment, frames):
    wait_until(
        lambda: count(environment, LEDGER_RESULTS.name, SHARDS) >= frames, 300, f"the job writes {frames} result frames"
    )


def test_kills_leave_no_trace_in_the_outputs(kafka, registry, flink, environment):
    schema_ids = provision(environment, "ledger")
    log = random_log(SHARDS, 2400, seed=1, schema_id=schema_ids[LEDGER_COMMANDS.name])
    wanted = expected(COUNTER, log, schema_ids)
    job = start(environment, parallelism=2)
    try:
        with Stream(environment, log):
            # a lost TaskManager, twice: Flink restarts the job by itself
            for kill in (1, 2):
                wait_for_results(environment, 300 * kill)
                flink.kill_task_manager()
                flink.start_task_manager()
            with FlinkRest(environment) as rest:
                wait_until(lambda: rest.restarts(job) >= 2, 300, "Flink restarts the job")
            wait_for_results(environment, 1200)
            # JobManager and TaskManager at once: the cluster forgets the job
            flink.kill()
            flink.start()
            flink.wait_healthy()
            start(environment, parallelism=2, from_savepoint=LATEST)
        repeats = caught_up(environment, COUNTER, wanted)
        assert repeats > 0, "no kill came between a frame and its checkpoint; the test shows nothing"
    finally:
        end(environment, job.name)


def test_the_ledger_writes_the_same_bytes_as_in_process_at_any_parallelism(kafka, registry, flink, environment):
    """1 -> 3 -> 1 by savepoints, with commands of every kind in between."""
    schema_ids = provision(environment, "ledger")
    log = ledger_log(600, seed=2, schema_id=schema_ids[LEDGER_COMMANDS.name])
    state = None
    with FlinkRest(environment) as rest:
        for step, parallelism in enumerate((1, 3, 1), start=1):
            part = log[(step - 1) * 200 : step * 200]
            job = start(environment, LEDGER_JOB, parallelism=parallelism, from_savepoint=state)
            assert rest.parallelism(job) == parallelism
            produce(environment, LEDGER_COMMANDS.name, part)
            repeats = caught_up(environment, LEDGER, expected(LEDGER, log[: step * 200], schema_ids))
            assert repeats == 0, "a stop with a savepoint repeats nothing"
            wait_until(
                lambda job=job, part=part: sum(shard["frames"] for shard in rest.counters(job).values()) == len(part),
                120,
                "the counters of all shards",
            )
            counters = rest.counters(job)
            assert list(counters) == list(range(SHARDS))
            restored = [shard["restored_pages"] + shard["restored_frames"] for shard in counters.values()]
            assert all(restored) if step > 1 else not any(restored)
            state = rest.stop_with_savepoint(job, savepoint_directory(job.name, environment))


def test_a_job_without_savepoint_rebuilds_its_state_from_the_log(kafka, registry, flink, environment):
    schema_ids = provision(environment, "ledger")
    log = random_log(SHARDS, 100, seed=3, schema_id=schema_ids[LEDGER_COMMANDS.name])
    produce(environment, LEDGER_COMMANDS.name, log[:60])
    with running(environment):
        caught_up(environment, COUNTER, expected(COUNTER, log[:60], schema_ids))
    produce(environment, LEDGER_COMMANDS.name, log[60:])
    with running(environment):
        repeats = caught_up(environment, COUNTER, expected(COUNTER, log, schema_ids))
    assert repeats == 60 * len(COUNTER.outputs)
