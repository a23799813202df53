"""Recorded logs of command frames, what a pipeline must make of them, and the check of what a job wrote."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from infra.kafka import kafka_options
from infra.producer_keys import FrameSigner
from infra.settings import Settings
from jobs.inprocess import InProcess
from pipelines.catalogue import LEDGER_COMMANDS, TOPICS, Pipeline
from pipelines.codec import codec_of
from pipelines.frames import Events, Frame
from pipelines.shard import Reader, catalogue_reader
from pipelines.wire import unwrap, wrap

Outputs = Mapping[tuple[str, int], Sequence[bytes]]
"""(catalogue topic, shard) -> the values written, in order."""


class Record(NamedTuple):
    """A record to produce."""

    partition: int
    value: bytes


class LogError(AssertionError):
    """What a job wrote is not what it must write."""


def transfers(shard: int, ids: Iterable[int], number: int, *, code: int = 1, schema_id: int = 1) -> Record:
    """A frame of CreateTransfer commands with these ids; ``number`` makes its time and trace unique in the shard."""
    codec = codec_of(LEDGER_COMMANDS.name)
    wanted = list(ids)
    rows = codec.new_rows(len(wanted))
    view = rows.view(codec.event_type("CreateTransfer").dtype)[:, 0]
    view["kind"] = 1
    view["id_lo"] = wanted
    view["debit_account_id_lo"] = 1
    view["credit_account_id_lo"] = 2
    view["amount_lo"] = 5
    view["ledger"] = 4 + shard
    view["code"] = code
    trace = f"00-{shard:016x}{number:016x}-{number:016x}-01"
    frame = Frame(LEDGER_COMMANDS.name, shard, 0, 1_700_000_000_000_000 + number, trace, Events(rows))
    return Record(shard, wrap(schema_id, codec.encode(frame)))


def random_log(shards: int, frames: int, seed: int, *, events: int = 20, schema_id: int = 1) -> list[Record]:
    """``frames`` frames of up to ``events`` transfers, spread over the shards at random."""
    random = np.random.default_rng(seed)
    return [
        transfers(
            int(random.integers(shards)),
            random.integers(1, 1 << 20, int(random.integers(0, events + 1))).tolist(),
            number,
            schema_id=schema_id,
        )
        for number in range(frames)
    ]


def expected(
    pipeline: Pipeline, log: Iterable[Record], schema_ids: Mapping[str, int], reader: Reader = catalogue_reader
) -> dict[tuple[str, int], list[bytes]]:
    """The outputs of an undisturbed run in this process."""
    runtime = InProcess(pipeline, schema_ids, reader)
    outputs: dict[tuple[str, int], list[bytes]] = {
        (topic.name, shard): [] for topic in pipeline.outputs for shard in range(pipeline.shards)
    }
    for record in log:
        for output in runtime.apply(pipeline.inputs[0].name, record.value, record.partition):
            outputs[output.topic, output.shard].append(output.value)
    return outputs


def produce(config: Settings, topic: str, log: Iterable[Record]) -> None:
    """Send the records in order, signed as the API signs them, and wait until the broker has them all."""
    signer = FrameSigner(config, TOPICS[topic], "api")
    producer = Producer(
        {
            **kafka_options(config),
            "linger.ms": 1,
            "enable.idempotence": True,
            "message.max.bytes": 1_048_576,  # the topics' limit
        }
    )
    for record in log:
        while True:
            try:
                producer.produce(
                    config.kafka_topic(topic),
                    record.value,
                    key=str(record.partition),
                    partition=record.partition,
                    headers=signer.headers(record.partition, record.value),
                )
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(60):
        raise TimeoutError(f"Kafka at {config.kafka_bootstrap} did not take the records within 60 s")


def written(config: Settings, topic: str, partitions: int) -> dict[tuple[str, int], list[bytes]]:
    """Everything that lies in a topic now, repeats included, by partition."""
    consumer = Consumer({**kafka_options(config), "group.id": "test-reader", "enable.auto.commit": False})
    name = config.kafka_topic(topic)
    try:
        found: dict[tuple[str, int], list[bytes]] = {(topic, partition): [] for partition in range(partitions)}
        missing = 0
        for partition in range(partitions):
            low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=20)
            missing += high - low
        consumer.assign([TopicPartition(name, partition, 0) for partition in range(partitions)])
        deadline = time.monotonic() + 60
        while missing > 0:
            for message in consumer.consume(min(10_000, missing), timeout=1):
                if message.error() is None:
                    found[topic, message.partition()].append(message.value())
                    missing -= 1
            if time.monotonic() > deadline:
                raise TimeoutError(f"{missing} records of {name} were not read within 60 s")
        return found
    finally:
        consumer.close()


def count(config: Settings, topic: str, partitions: int) -> int:
    """Records that lie in a topic now."""
    consumer = Consumer({**kafka_options(config), "group.id": "test-reader"})
    name = config.kafka_topic(topic)
    try:
        marks = [
            consumer.get_watermark_offsets(TopicPartition(name, part), timeout=20, cached=False)
            for part in range(partitions)
        ]
        return sum(high - low for low, high in marks)
    finally:
        consumer.close()


def deduplicate(topic: str, shard: int, values: Iterable[bytes]) -> list[bytes]:
    """What a reader applies: repeats dropped. `LogError` for a gap, and for a repeat with other bytes."""
    codec = codec_of(topic)
    applied: list[bytes] = []
    for value in values:
        found, sequence, _ = codec.decode_header(unwrap(value)[1])
        if found != shard:
            raise LogError(f"{topic} partition {shard} has a frame of shard {found}")
        if sequence <= len(applied):
            if applied[sequence - 1] != value:
                raise LogError(f"{topic} shard {shard}: sequence {sequence} was repeated with other bytes")
        elif sequence == len(applied) + 1:
            applied.append(value)
        else:
            raise LogError(f"{topic} shard {shard}: sequence {sequence} follows {len(applied)}")
    return applied


def check(wanted: Outputs, found: Outputs) -> int:
    """Every topic and shard holds, repeats dropped, exactly the wanted bytes; returns how many repeats there were."""
    repeats = 0
    for (topic, shard), values in wanted.items():
        applied = deduplicate(topic, shard, found[topic, shard])
        if len(applied) != len(values):
            raise LogError(f"{topic} shard {shard}: {len(applied)} frames, {len(values)} wanted")
        for sequence, (one, other) in enumerate(zip(applied, values, strict=True), start=1):
            if one != other:
                raise LogError(f"{topic} shard {shard}: sequence {sequence} differs from the undisturbed run")
        repeats += len(found[topic, shard]) - len(applied)
    return repeats


def ledger_log(frames: int, seed: int, *, schema_id: int = 1) -> list[Record]:
    """Frames of ledger commands of every kind, good and bad, over all shards: accounts with and without limits, plain
    and pending transfers, posts and voids, linked chains, balancing, repeated ids, unknown accounts."""
    random = np.random.default_rng(seed)
    codec = codec_of(LEDGER_COMMANDS.name)
    flags = [0, 0, 0, 0, 1, 2, 2, 4, 8, 16, 32, 3, 64, 256]
    log: list[Record] = []
    for number in range(frames):
        shard = number % LEDGER_COMMANDS.partitions
        count = int(random.integers(1, 40))
        rows = codec.new_rows(count)
        accounts = rows.view(codec.event_type("CreateAccount").dtype)[:, 0]
        transfers = rows.view(codec.event_type("CreateTransfer").dtype)[:, 0]
        rows[:, 0] = random.random(count) > (0.9 if number < LEDGER_COMMANDS.partitions else 0.05)
        for row in range(count):
            if rows[row, 0] == 0:
                accounts[row]["id_lo"] = random.integers(0, 30)
                accounts[row]["ledger"] = LEDGER_COMMANDS.partitions + shard
                accounts[row]["code"] = random.integers(0, 20)
                accounts[row]["flags"] = random.choice([0, 0, 0, 2, 4, 8])
            else:
                transfers[row]["id_lo"] = random.integers(0, 20 * frames)
                transfers[row]["debit_account_id_lo"] = random.integers(0, 30)
                transfers[row]["credit_account_id_lo"] = random.integers(0, 30)
                transfers[row]["amount_lo"] = random.integers(0, 1000)
                transfers[row]["ledger"] = LEDGER_COMMANDS.partitions + shard
                transfers[row]["code"] = random.integers(0, 20)
                transfers[row]["flags"] = random.choice(flags)
                if transfers[row]["flags"] in (4, 8):
                    transfers[row]["pending_id_lo"] = random.integers(0, 20 * frames)
                if transfers[row]["flags"] in (2, 3):
                    transfers[row]["timeout"] = random.integers(0, 3)
        trace = f"00-{shard:016x}{number:016x}-{number:016x}-01"
        produced_at = 1_700_000_000_000_000 + number * 100_000
        frame = Frame(LEDGER_COMMANDS.name, shard, 0, produced_at, trace, Events(rows))
        log.append(Record(shard, wrap(schema_id, codec.encode(frame))))
    return log
