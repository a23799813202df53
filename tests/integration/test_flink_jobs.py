"""What an operator meets: bad records beside good ones, a kernel that fails, and the commands around a job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.flink_jobs import SubmitError, latest_state
from infra.flink_rest import FlinkRest, JobNotFound
from infra.registry import writer_schema
from jobs.dead_letters import decode_letters
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_DEAD_LETTERS, LEDGER_EVENTS
from tests.support.counter_kernel import BREAK_CODE, COUNTER
from tests.support.flink_job import NO_RESTART, caught_up, end, running, start
from tests.support.frame_log import Record, count, expected, produce, random_log, transfers, written
from tests.support.provision import provision
from tests.support.stack import variables
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


def streambank(environment, *arguments):
    return subprocess.run(
        [str(Path(sys.executable).with_name("streambank")), *arguments],
        env=variables(environment),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_bad_records_are_set_aside_and_the_good_ones_around_them_are_applied(kafka, registry, flink, environment):
    schema_ids = provision(environment, "ledger")
    own = schema_ids[LEDGER_COMMANDS.name]
    good = random_log(COUNTER.shards, 40, seed=4, schema_id=own)
    body = transfers(1, [1, 2, 3], 99, schema_id=own).value
    bad = {
        "empty": b"",
        "not_avro": b'{"type": "CreateTransfer"}',
        "too_short": body[:3],
        "unknown_schema": b"\0" + (2_000_000_000).to_bytes(4, "big") + body[5:],
        "wrong topic's schema": b"\0" + schema_ids[LEDGER_EVENTS.name].to_bytes(4, "big") + body[5:],
        "truncated": body[:-7],
        "wrong_shard": transfers(2, [1], 98, schema_id=own).value,
        "too_many_events": transfers(1, range(1, COUNTER.max_frame_events + 2), 97, schema_id=own).value,
        "large garbage": b"\0" + own.to_bytes(4, "big") + b"\xff" * 1_000_000,
    }
    log = good[:20] + [Record(1, value) for value in bad.values()] + good[20:]
    produce(environment, LEDGER_COMMANDS.name, log)
    with running(environment, options=NO_RESTART) as job:
        assert caught_up(environment, COUNTER, expected(COUNTER, good, schema_ids)) == 0
        wait_until(
            lambda: count(environment, LEDGER_DEAD_LETTERS.name, COUNTER.shards) == len(bad), 60, "all dead letters"
        )
        with FlinkRest(environment) as rest:
            wait_until(
                lambda: sum(shard["dead_letters"] for shard in rest.counters(job).values()) == len(bad),
                60,
                "the counter of dead letters",
            )
    values = written(environment, LEDGER_DEAD_LETTERS.name, COUNTER.shards)[LEDGER_DEAD_LETTERS.name, 1]
    letters = [
        place.letter
        for value in values
        for place in decode_letters(LEDGER_DEAD_LETTERS, 1, 0, value, lambda found: writer_schema(found, environment))
    ]
    reasons = [letter.reason for letter in letters]
    for reason, letter in zip(bad, letters, strict=True):
        assert (letter.consumer, letter.topic, letter.partition) == ("counter", LEDGER_COMMANDS.name, 1)
        assert letter.detail
        if " " not in reason:
            assert letter.reason == reason
        if len(bad[reason]) < 900_000:
            assert letter.payload == bad[reason]
    assert reasons[4] == "unknown_schema"
    first = sum(record.partition == 1 for record in good[:20])
    assert [letter.offset for letter in letters] == list(range(first, first + len(bad)))
    assert [letter.schema_id for letter in letters][:4] == [-1, -1, -1, 2_000_000_000]


def test_a_broken_invariant_ends_the_job_and_shows_its_traceback(kafka, registry, flink, environment):
    schema_ids = provision(environment, "ledger")
    own = schema_ids[LEDGER_COMMANDS.name]
    log = random_log(COUNTER.shards, 20, seed=5, schema_id=own)
    job = start(environment)  # with restarts: a broken invariant must end the job all the same
    produce(environment, LEDGER_COMMANDS.name, log)
    caught_up(environment, COUNTER, expected(COUNTER, log, schema_ids))
    produce(environment, LEDGER_COMMANDS.name, [transfers(1, [7], 99, code=BREAK_CODE, schema_id=own)])
    with FlinkRest(environment) as rest:
        wait_until(lambda: rest.job(job.id).state == "FAILED", 60, "the job fails")
    shown = streambank(environment, "list")
    assert shown.returncode == 1
    assert f"{job.name} {job.id} is FAILED" in shown.stdout
    assert "pipelines.kernel.InvariantBroken: the counter met its breaking code" in shown.stdout
    assert "ValueError: event 7 cannot be counted" in shown.stdout, "the cause of the error"
    assert "counter_kernel.py" in shown.stdout, "where it was raised"
    assert "org.apache.flink" not in shown.stdout
    assert caught_up(environment, COUNTER, expected(COUNTER, log, schema_ids)) == 0, (
        "nothing was written by the failure"
    )


def test_the_commands_of_an_operator(kafka, registry, flink, environment):
    refused = streambank(environment, "submit", "no-such-pipeline")
    assert refused.returncode == 1
    assert "no pipeline 'no-such-pipeline'; there are: ledger" in refused.stderr

    unregistered = streambank(environment, "submit", "ledger")
    assert unregistered.returncode == 1
    assert "run `streambank schemas register`" in unregistered.stderr
    assert "org.apache.flink" not in unregistered.stderr

    provision(environment, "ledger")
    name = environment.kafka_topic("ledger")
    try:
        submitted = streambank(environment, "submit", "ledger", "--checkpoint-interval", "300 ms")
        assert submitted.returncode == 0, submitted.stderr
        assert f"{name} " in submitted.stdout
        assert "is RUNNING" in submitted.stdout

        twice = streambank(environment, "submit", "ledger")
        assert twice.returncode == 1
        assert f"job {name} is RUNNING" in twice.stderr

        saved = streambank(environment, "savepoint", "ledger")
        assert saved.returncode == 0, saved.stderr
        assert saved.stdout.startswith("file:/")

        upgraded = streambank(environment, "upgrade", "ledger", "--parallelism", "2", "--no-restart-task-managers")
        assert upgraded.returncode == 0, upgraded.stderr
        with FlinkRest(environment) as rest:
            job = rest.running_job(name)
            assert rest.parallelism(job) == 2
            checkpoint = wait_until(lambda: rest.latest_checkpoint(job), 60, "a checkpoint")
        listed = streambank(environment, "list")
        assert listed.returncode == 0, listed.stdout
        assert job.id in listed.stdout

        cancelled = streambank(environment, "cancel", "ledger")
        assert cancelled.returncode == 0, cancelled.stderr
        assert checkpoint.path.rsplit("/chk-", 1)[0] in latest_state(name, environment).replace("file:///", "file:/")
        again = streambank(environment, "cancel", "ledger")
        assert again.returncode == 1
        assert "is CANCELED" in again.stderr
    finally:
        end(environment, name)


def test_a_clear_error_for_a_job_that_never_was(kafka, registry, flink, environment):
    with pytest.raises(JobNotFound, match="no complete checkpoint below"):
        latest_state("never", environment)
    with FlinkRest(environment) as rest, pytest.raises(JobNotFound, match="no job 'never'"):
        rest.job("never")
    provision(environment, "ledger")
    with pytest.raises(SubmitError, match="the Flink client failed"):
        start(environment, from_savepoint="file:/nowhere")


def test_a_cluster_that_is_away_is_named(environment):
    away = environment.model_copy(update={"flink_port": 1})
    shown = streambank(away, "list")
    assert shown.returncode == 1
    assert "error: Flink at http://127.0.0.1:1 does not answer" in shown.stderr
    assert "streambank up" in shown.stderr
