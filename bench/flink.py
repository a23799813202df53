"""Kafka -> PyFlink ledger job -> Kafka: transfers per second against the ceiling of the log, and latency.

The job is the real one: frames of ledger.commands, journaled state, checkpoints on, two output topics, parallelism 1.
The ceiling is a loop that consumes the same frames with librdkafka and produces them to another topic, in this process.
Both work off a backlog and are timed by the records' timestamps, from two fifths of the way to the end, so that
starting and compiling are not counted. Latency is open loop: what counts is a frame's planned time, not the time at
which it could be sent.

Every run has topics of its own on the given servers and removes them.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from bench.report import Measurement
from infra import registry, topics
from infra.flink_jobs import Submission, job_file, job_name, submit
from infra.flink_rest import FlinkRest, Job
from infra.kafka import kafka_options
from infra.producer_keys import FrameSigner, ProducerKeys
from infra.settings import Settings
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_EVENTS, LEDGER_RESULTS, LEDGER_SHARDS, TOPICS
from pipelines.codec import codec_of
from pipelines.errors import StreambankError
from pipelines.frames import Events, Frame
from pipelines.wire import unwrap, wrap

__all__ = [
    "BenchError",
    "bench_environment",
    "latency",
    "measure",
    "plain_loop",
    "produce",
    "read_topic",
    "running_job",
    "steady_rate",
    "throughput",
    "wait_records",
]

ACCOUNTS_PER_SHARD: Final = 1_000
TRANSFERS_PER_FRAME: Final = 500
FRAMES: Final = 16_000
LATENCY_FRAMES_PER_SECOND: Final = 200
LATENCY_TRANSFERS_PER_FRAME: Final = 25
LATENCY_SECONDS: Final = 20.0
WARM_UP_SECONDS: Final = 60.0
"""The JVMs compile for about a minute, beside the job and on the same cores."""
STALL_SECONDS: Final = 120.0
STEADY_FROM: Final = 0.4


class BenchError(StreambankError):
    """A run did not finish, or its outputs are wrong."""


def measure(settings: Settings) -> list[Measurement]:
    """Latency, then throughput with its ceiling, whose gigabytes would still keep the disk busy; needs Kafka, the
    registry and Flink of ``settings`` running."""
    return [*latency(settings), *throughput(settings)]


def throughput(
    settings: Settings, *, frames: int = FRAMES, options: Mapping[str, str] | None = None
) -> list[Measurement]:
    """Transfers per second of the ledger job and of the plain loop, with the outputs checked."""
    with bench_environment(settings) as (environment, ids):
        own = ids[LEDGER_COMMANDS.name]
        backlog = [*_account_frames(own), *_transfer_frames(own, frames, TRANSFERS_PER_FRAME)]
        produce(environment, backlog)
        total = len(backlog)
        with running_job(environment, options or {}) as job:
            wait_records(environment, LEDGER_EVENTS.name, total)
            with FlinkRest(environment) as flink:
                checkpoint = flink.latest_checkpoint(job)
        results = read_topic(environment, LEDGER_RESULTS.name)
        job_rate = steady_rate(results) * TRANSFERS_PER_FRAME
        check = _check_outputs(environment, results, frames * TRANSFERS_PER_FRAME)
        loop_rate = plain_loop(environment, total) * TRANSFERS_PER_FRAME
    ratio = job_rate / loop_rate
    return [
        Measurement(
            "Kafka -> PyFlink ledger -> Kafka",
            round(job_rate),
            "transfers/s",
            baseline=round(loop_rate),
            baseline_name="librdkafka consume/produce loop on the same frames",
            ratio=round(ratio, 3),
            goal=">= 300,000/s and >= 0.3x",
            met=job_rate >= 300_000 and ratio >= 0.3,
            check=check,
            detail={
                "frames": frames,
                "transfers_per_frame": TRANSFERS_PER_FRAME,
                "command_frame_bytes": len(backlog[-1][1]),
                "checkpoint_bytes": checkpoint.size_bytes if checkpoint else None,
                "options": dict(options or {}),
            },
        )
    ]


def latency(
    settings: Settings,
    *,
    seconds: float = LATENCY_SECONDS,
    frames_per_second: int = LATENCY_FRAMES_PER_SECOND,
    options: Mapping[str, str] | None = None,
) -> list[Measurement]:
    """Time from a frame's planned sending to its result frame at a consumer, p50 and p99, in milliseconds."""
    with bench_environment(settings) as (environment, ids), running_job(environment, options or {}):
        own = ids[LEDGER_COMMANDS.name]
        accounts = list(_account_frames(own))
        produce(environment, accounts)
        wait_records(environment, LEDGER_RESULTS.name, len(accounts))
        planned = int((WARM_UP_SECONDS + seconds) * frames_per_second)
        frames = list(_transfer_frames(own, planned, LATENCY_TRANSFERS_PER_FRAME))
        delays = _open_loop(environment, frames, frames_per_second, len(accounts))
    steady = delays[int(WARM_UP_SECONDS * frames_per_second) :]
    p50, p99, worst = (round(float(np.quantile(steady, q)) * 1000, 1) for q in (0.5, 0.99, 1.0))
    detail = {
        "frames_per_second": frames_per_second,
        "transfers_per_frame": LATENCY_TRANSFERS_PER_FRAME,
        "frames": len(steady),
        "worst_ms": worst,
        "options": dict(options or {}),
    }
    check = f"{len(delays)} result frames of {len(frames)} command frames, none missing"
    name = f"Latency Kafka -> Kafka at {frames_per_second} frames/s"
    return [
        Measurement(f"{name}, p50", p50, "ms", check=check, detail=detail),
        Measurement(f"{name}, p99", p99, "ms", goal="<= 30 ms", met=p99 <= 30, check=check, detail=detail),
    ]


@contextmanager
def bench_environment(settings: Settings) -> Iterator[tuple[Settings, dict[str, int]]]:
    """Topics and schema ids of a run's own; the topics are deleted at the end."""
    environment = settings.model_copy(update={"topic_prefix": f"bench-{uuid.uuid4().hex[:8]}."})
    topics.apply(environment)
    try:
        yield environment, {topic.name: registry.register(topic, environment) for topic in TOPICS.values()}
    finally:
        admin = _admin(environment)
        for deleted in admin.delete_topics([environment.kafka_topic(name) for name in TOPICS]).values():
            deleted.result()
        for topic in TOPICS.values():
            ProducerKeys(environment).forget(topic)


@contextmanager
def running_job(environment: Settings, options: Mapping[str, str], system: str = "ledger") -> Iterator[Job]:
    """A system's job at parallelism 1, cancelled at the end."""
    name = job_name(system, environment)
    try:
        yield submit(Submission(job_file(system), name, flink_options=options), environment)
    finally:
        with FlinkRest(environment) as flink:
            for job in flink.jobs():
                if job.name == name and not job.is_terminal:
                    flink.cancel(job)


def _account_frames(schema_id: int) -> Iterator[tuple[int, bytes]]:
    codec = codec_of(LEDGER_COMMANDS.name)
    for shard in range(LEDGER_SHARDS):
        rows = codec.new_rows(ACCOUNTS_PER_SHARD)
        accounts = rows.view(codec.event_type("CreateAccount").dtype)[:, 0]
        accounts["id_lo"] = np.arange(1, ACCOUNTS_PER_SHARD + 1)
        accounts["ledger"] = LEDGER_SHARDS + shard
        accounts["code"] = 1
        yield shard, wrap(schema_id, codec.encode(_frame(shard, rows, time.time_ns() // 1000)))


def _transfer_frames(schema_id: int, frames: int, transfers: int) -> Iterator[tuple[int, bytes]]:
    """Frames of transfers between random accounts, round robin over the shards; ids count from 1."""
    codec = codec_of(LEDGER_COMMANDS.name)
    random = np.random.default_rng(1)
    for number in range(frames):
        shard = number % LEDGER_SHARDS
        rows = codec.new_rows(transfers)
        view = rows.view(codec.event_type("CreateTransfer").dtype)[:, 0]
        view["kind"] = codec.event_type("CreateTransfer").kind
        view["id_lo"] = np.arange(number * transfers + 1, (number + 1) * transfers + 1)
        debit = random.integers(0, ACCOUNTS_PER_SHARD, transfers)
        step = random.integers(1, ACCOUNTS_PER_SHARD, transfers)
        view["debit_account_id_lo"] = debit + 1
        view["credit_account_id_lo"] = (debit + step) % ACCOUNTS_PER_SHARD + 1
        view["amount_lo"] = view["id_lo"] % 10_000 + 1
        view["ledger"] = LEDGER_SHARDS + shard
        view["code"] = 1
        yield shard, wrap(schema_id, codec.encode(_frame(shard, rows, time.time_ns() // 1000)))


def _frame(shard: int, rows: np.ndarray[Any, np.dtype[np.int64]], produced_at: int) -> Frame:
    return Frame(LEDGER_COMMANDS.name, shard, 0, produced_at, f"00-{uuid.uuid4().hex}-{1:016x}-01", Events(rows))


def produce(environment: Settings, records: list[tuple[int, bytes]], topic: str = LEDGER_COMMANDS.name) -> None:
    """Write (shard, value) records and wait until Kafka has them."""
    producer = _producer(environment)
    signer = FrameSigner(environment, TOPICS[topic], "api")
    for shard, value in records:
        _send(producer, environment.kafka_topic(topic), shard, value, signer.headers(shard, value))
    if producer.flush(60):
        raise BenchError("Kafka did not take the backlog within 60 s")


def _producer(environment: Settings, **more: Any) -> Any:
    return Producer({**kafka_options(environment), "acks": "all", "enable.idempotence": True, **more})


def _consumer(environment: Settings) -> Any:
    return Consumer(
        {
            **kafka_options(environment),
            "group.id": environment.kafka_topic("bench"),
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 100,
        }
    )


def _admin(environment: Settings) -> Any:
    return AdminClient(kafka_options(environment))


def _send(producer: Any, topic: str, shard: int, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
    while True:
        try:
            producer.produce(topic, value, key=str(shard), partition=shard, headers=list(headers))
            return
        except BufferError:
            producer.poll(0.05)


def wait_records(environment: Settings, topic: str, records: int) -> None:
    """Wait until a topic has that many records; `BenchError` when none comes for `STALL_SECONDS`."""
    consumer = _consumer(environment)
    try:
        last, deadline = -1, time.monotonic() + STALL_SECONDS
        while last < records:
            partitions = [TopicPartition(environment.kafka_topic(topic), shard) for shard in range(LEDGER_SHARDS)]
            found = sum(consumer.get_watermark_offsets(part, timeout=10, cached=False)[1] for part in partitions)
            if found > last:
                last, deadline = found, time.monotonic() + STALL_SECONDS
            elif time.monotonic() > deadline:
                raise BenchError(f"{topic} has {found} of {records} records, and none came for {STALL_SECONDS:.0f} s")
            time.sleep(0.2)
    finally:
        consumer.close()


def read_topic(environment: Settings, topic: str) -> list[tuple[int, bytes]]:
    """(timestamp in milliseconds, value) of all records of a topic."""
    consumer = _consumer(environment)
    name = environment.kafka_topic(topic)
    try:
        partitions = [TopicPartition(name, shard, 0) for shard in range(LEDGER_SHARDS)]
        missing = sum(consumer.get_watermark_offsets(part, timeout=10, cached=False)[1] for part in partitions)
        consumer.assign(partitions)
        records: list[tuple[int, bytes]] = []
        for batch in _batches(consumer, missing):
            records += [(message.timestamp()[1], message.value()) for message in batch]
        return records
    finally:
        consumer.close()


def _batches(consumer: Any, records: int) -> Iterator[list[Any]]:
    """Batches of messages until there were that many; `BenchError` when none comes for `STALL_SECONDS`."""
    seen, deadline = 0, time.monotonic() + STALL_SECONDS
    while seen < records:
        # it waits until the batch is full or the time is over, so the time is short
        batch = [message for message in consumer.consume(500, timeout=0.02) if message.error() is None]
        if batch:
            seen, deadline = seen + len(batch), time.monotonic() + STALL_SECONDS
            yield batch
        elif time.monotonic() > deadline:
            raise BenchError(f"{seen} of {records} records came, and then none for {STALL_SECONDS:.0f} s")


def steady_rate(records: list[tuple[int, bytes]]) -> float:
    """Records per second from a tenth of the way to the end, by their timestamps."""
    times = np.sort(np.array([timestamp for timestamp, _ in records]))
    first = int(len(times) * STEADY_FROM)
    return float((len(times) - 1 - first) / max(1e-3, (times[-1] - times[first]) / 1000))


def _check_outputs(environment: Settings, results: list[tuple[int, bytes]], transfers: int) -> str:
    """Every transfer was created once, and the amounts in ledger.events are those that were sent."""
    codec = codec_of(LEDGER_RESULTS.name)
    kind = codec.event_type("TransferResult")
    created = 0
    for _, value in results:
        rows = codec.decode(unwrap(value)[1]).events.view(kind.dtype)
        created += int(np.count_nonzero((rows["kind"] == kind.kind) & (rows["result"] == 0)))
    events = codec_of(LEDGER_EVENTS.name)
    event = events.event_type("TransferCreated")
    amount = 0
    for _, value in read_topic(environment, LEDGER_EVENTS.name):
        rows = events.decode(unwrap(value)[1]).events.view(event.dtype)
        amount += int(rows["amount_lo"][rows["kind"] == event.kind].sum())
    wanted = int((np.arange(1, transfers + 1) % 10_000 + 1).sum())
    if (created, amount) != (transfers, wanted):
        raise BenchError(f"{created:,} transfers of {transfers:,} were created, amounts {amount:,} of {wanted:,}")
    return f"{created:,} transfers created, amounts sum to {amount:,} as sent"


def plain_loop(environment: Settings, records: int, commands: str = LEDGER_COMMANDS.name) -> float:
    """Frames per second of consume and produce alone, to ledger.dead-letters, which has as many partitions."""
    consumer, producer = _consumer(environment), _producer(environment, **{"linger.ms": 5})
    source, target = environment.kafka_topic(commands), environment.kafka_topic("ledger.dead-letters")
    try:
        consumer.assign([TopicPartition(source, shard, 0) for shard in range(LEDGER_SHARDS)])
        for batch in _batches(consumer, records):
            for message in batch:
                _send(producer, target, message.partition(), message.value())
            producer.poll(0)
        if producer.flush(60):
            raise BenchError("Kafka did not take the plain loop's records within 60 s")
    finally:
        consumer.close()
    return steady_rate(read_topic(environment, "ledger.dead-letters"))


def _open_loop(
    environment: Settings, frames: list[tuple[int, bytes]], per_second: int, skipped: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Send the frames on schedule; the delay of each result frame behind its command's planned time, in seconds, in
    the order of the plan. The k-th result of a shard answers its k-th command (after the account frames)."""
    name = environment.kafka_topic(LEDGER_RESULTS.name)
    codec = codec_of(LEDGER_RESULTS.name)
    delays = np.full(len(frames), np.nan)
    consumer = _consumer(environment)
    consumer.assign([TopicPartition(name, shard, skipped // LEDGER_SHARDS) for shard in range(LEDGER_SHARDS)])
    consumer.poll(1)  # connect before the first frame is sent
    start = time.perf_counter() + 0.5
    failure: list[BaseException] = []

    def receive() -> None:
        try:
            seen, deadline = 0, time.monotonic() + STALL_SECONDS
            while seen < len(frames):
                message = consumer.poll(0.5)
                now = time.perf_counter()
                if message is None or message.error():
                    if time.monotonic() > deadline:
                        raise BenchError(f"{seen} of {len(frames)} result frames came")
                    continue
                shard, sequence, _ = codec.decode_header(unwrap(message.value())[1])
                number = (sequence - 1 - skipped // LEDGER_SHARDS) * LEDGER_SHARDS + shard
                if np.isnan(delays[number]):
                    delays[number] = now - (start + number / per_second)
                    seen += 1
                    deadline = time.monotonic() + STALL_SECONDS
        except BaseException as error:
            failure.append(error)

    receiver = threading.Thread(target=receive, name="bench-receiver")
    receiver.start()
    producer = _producer(environment, **{"linger.ms": 0})
    for number, (shard, value) in enumerate(frames):
        pause = start + number / per_second - time.perf_counter()
        if pause > 0:
            producer.poll(0)
            time.sleep(max(0.0, start + number / per_second - time.perf_counter()))
        _send(producer, environment.kafka_topic(LEDGER_COMMANDS.name), shard, value)
    producer.flush(30)
    receiver.join()
    consumer.close()
    if failure:
        raise failure[0]
    return delays
