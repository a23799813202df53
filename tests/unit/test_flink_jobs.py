"""Submitting: which state is the newest, which options are given, and what the client said when it failed."""

import os

import pytest

from infra import flink_jobs
from infra.flink_jobs import Submission, SubmitError, job_file, latest_state
from infra.flink_rest import JobNotFound
from infra.settings import Settings
from jobs.warm_up import warm_up
from pipelines.catalogue import PIPELINES, Pipeline

CLIENT_OUTPUT = """2026-11-22 11:42:06,023 INFO  org.apache.flink.client.python.PythonDriver [] - Python Process Started
Traceback (most recent call last):
2026-11-22 11:42:06,023 INFO  org.apache.flink.client.python.PythonDriver [] - Traceback (most recent call last):
  File "jobs/ledger.py", line 7, in <module>
2026-11-22 11:42:06,023 INFO  org.apache.flink.client.python.PythonDriver [] -   File "jobs/ledger.py", line 7
    run(PIPELINES["ledger"])
jobs.flink_runtime.JobError: pipeline ledger has 2 input topics
org.apache.flink.client.program.ProgramAbortException: java.lang.RuntimeException: Python process exits with code: 1
\tat org.apache.flink.client.python.PythonDriver.main(PythonDriver.java:124)
Caused by: java.lang.RuntimeException: Python process exits with code: 1
"""


def test_the_clients_output_is_cut_down_to_the_traceback():
    assert flink_jobs._client_error(CLIENT_OUTPUT) == (
        "Traceback (most recent call last):\n"
        '  File "jobs/ledger.py", line 7, in <module>\n'
        '    run(PIPELINES["ledger"])\n'
        "jobs.flink_runtime.JobError: pipeline ledger has 2 input topics"
    )


def test_without_a_traceback_the_last_causes_are_shown():
    output = "noise\nCaused by: one: a\n\tat x.y(z)\nCaused by: two: b\n"
    assert flink_jobs._client_error(output) == "Caused by: one: a\nCaused by: two: b"


@pytest.fixture
def environment(tmp_path):
    return Settings(data_dir=tmp_path)


def state(directory, age):
    directory.mkdir(parents=True)
    metadata = directory / "_metadata"
    metadata.write_bytes(b"")
    os.utime(metadata, (1_700_000_000 - age, 1_700_000_000 - age))
    return directory.resolve().as_uri()


def test_the_newest_complete_state_is_found_among_checkpoints_and_savepoints(environment):
    state(environment.checkpoints_dir / "ledger" / "a1" / "chk-9", age=30)
    newest = state(environment.checkpoints_dir / "ledger" / "b2" / "chk-3", age=10)
    (environment.checkpoints_dir / "ledger" / "b2" / "chk-4").mkdir()  # not complete: no _metadata
    state(environment.checkpoints_dir / "payments" / "c3" / "chk-1", age=0)
    assert latest_state("ledger", environment) == newest
    savepoint = state(environment.savepoints_dir / "ledger" / "savepoint-b2-1", age=5)
    assert latest_state("ledger", environment) == savepoint


def test_no_state_at_all_says_what_happens_without_one(environment):
    with pytest.raises(JobNotFound, match="without --from-savepoint it is rebuilt"):
        latest_state("ledger", environment)


def test_options_become_flink_keys_and_nothing_is_set_that_was_not_given(tmp_path):
    assert Submission(tmp_path, "x").options() == {}
    given = Submission(
        tmp_path,
        "x",
        checkpoint_interval="2 s",
        state_backend="rocksdb",
        flink_options={"restart-strategy.type": "none"},
    )
    assert given.options() == {
        "execution.checkpointing.interval": "2 s",
        "state.backend.type": "rocksdb",
        "restart-strategy.type": "none",
    }


def test_another_process_reads_the_same_settings_and_none_that_is_not_set(tmp_path, monkeypatch):
    ours = Settings(data_dir=tmp_path, kafka_port=1234, webhook_allow_http=True)
    assert ours.settlement_file is None
    for name, value in ours.variables().items():
        monkeypatch.setenv(name, value)
    assert "STREAMBANK_SETTLEMENT_FILE" not in os.environ
    assert Settings() == ours


def test_an_unknown_pipeline_is_refused_with_those_there_are():
    with pytest.raises(SubmitError, match=r"no pipeline 'x'; there are: .*ledger"):
        job_file("x")
    assert job_file("ledger").name == "ledger.py"
    assert job_file("fraud_scoring").name == "fraud_scoring.py"
    with pytest.raises(SubmitError, match="no pipeline 'notifier'"):
        job_file("notifier")  # a service, but no job


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=lambda pipeline: pipeline.name)
def test_every_job_can_be_warmed_with_one_event_of_each_type(pipeline: Pipeline) -> None:
    warm_up(pipeline)
