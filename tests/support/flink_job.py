"""Jobs on the test cluster: set up their topics, run them, wait until they have caught up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from infra.flink_jobs import Submission, submit
from infra.flink_rest import FlinkRest, Job
from infra.kafka import kafka_options
from infra.settings import PROJECT_ROOT, Settings
from pipelines.catalogue import Pipeline
from tests.support.frame_log import Outputs, check, written
from tests.support.waiting import wait_until

COUNTER_JOB = Path(__file__).with_name("counter_job.py")
LEDGER_JOB = PROJECT_ROOT / "jobs" / "ledger.py"

FAST = {
    "execution.checkpointing.interval": "300 ms",
    "restart-strategy.type": "exponential-delay",
    "restart-strategy.exponential-delay.initial-backoff": "100 ms",
    "restart-strategy.exponential-delay.max-backoff": "500 ms",
    "streambank.journal.min-frames": "8",
    "streambank.journal.max-frames": "40",
}
"""Options of test jobs: checkpoints and folds often, so that a kill meets all kinds of states; quick restarts."""
NO_RESTART = {**FAST, "restart-strategy.type": "none"}


def start(
    environment: Settings,
    file: Path = COUNTER_JOB,
    *,
    parallelism: int = 1,
    from_savepoint: str | None = None,
    options: Mapping[str, str] = FAST,
) -> Job:
    """Submit a job file; it runs when this returns."""
    name = environment.kafka_topic(file.stem.removesuffix("_job"))
    return submit(Submission(file, name, parallelism, from_savepoint, flink_options=options), environment)


@contextmanager
def running(environment: Settings, file: Path = COUNTER_JOB, **arguments: object) -> Iterator[Job]:
    """A job that is cancelled at the end, whatever became of it."""
    job = start(environment, file, **arguments)  # type: ignore[arg-type]
    try:
        yield job
    finally:
        end(environment, job.name)


def end(environment: Settings, name: str) -> None:
    """Cancel whatever runs under this name."""
    with FlinkRest(environment) as flink:
        for job in flink.jobs():
            if job.name == name and not job.is_terminal:
                flink.cancel(job)


def caught_up(environment: Settings, pipeline: Pipeline, wanted: Outputs, deadline: float = 300) -> int:
    """Wait until the last wanted frame of every shard was written, then check everything that was written against the
    undisturbed run; returns the number of repeats."""
    wait_until(lambda: _last_values_are(environment, wanted), deadline, "the job writes the last frames")
    found: dict[tuple[str, int], list[bytes]] = {}
    for topic in pipeline.outputs:
        found |= written(environment, topic.name, topic.partitions)
    return check(wanted, found)


def _last_values_are(environment: Settings, wanted: Outputs) -> bool:
    consumer = Consumer({**kafka_options(environment), "group.id": "test-tail", "enable.auto.commit": False})
    try:
        for (topic, shard), values in wanted.items():
            partition = TopicPartition(environment.kafka_topic(topic), shard)
            low, high = consumer.get_watermark_offsets(partition, timeout=20, cached=False)
            if not values:
                continue
            if high == low:
                return False
            partition.offset = high - 1
            consumer.assign([partition])
            message = consumer.poll(20)
            if message is None or message.error() or message.value() != values[-1]:
                return False
        return True
    finally:
        consumer.close()
