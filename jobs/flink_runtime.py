"""Runs a pipeline's kernel as a Flink job: Kafka source -> shards with journaled state -> Kafka sink.

`add_dataflow` and `FrameFunction` are what a job without a kernel is made of (`jobs.flink_scoring`).

Promises:

- Order: a partition is a shard and has one writer; its frames are applied in the order of the log.
- Delivery: the sink is at least once and sends at once, without waiting for a checkpoint. Outputs carry sequences
  that are part of the state, so that the frames repeated after a restore are equal to the first ones and readers drop
  them (docs/adr/0003-delivery.md).
- A record that is no frame becomes a dead letter and the job goes on; so does one that no known producer signed, where
  the input must be signed (`infra.producer_keys`). A broken invariant fails the job for good. Any other error restarts
  it by its restart strategy. Both carry the whole Python traceback in their message.
- A job started without a savepoint reads its input from the beginning and so rebuilds its state; offsets are committed
  for monitoring only. Starting at committed offsets with an empty state would lose what lies before them.

A pipeline has one input topic: with several, the order between them could be another after a restore, and equal
sequences would then stand for other outputs.

Every Flink option can be given at submission (``-D key=value``); `DEFAULTS` hold where none is given. The keys
``streambank.journal.min-frames``, ``.max-frames`` and ``.max-bytes`` set the `FoldPolicy`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

from pyflink.common import Configuration, Row, Types, WatermarkStrategy
from pyflink.common.typeinfo import TypeInformation
from pyflink.datastream import DataStream, KeyedProcessFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import KafkaOffsetsInitializer, KafkaSink, KafkaSource
from pyflink.datastream.data_stream import KeyedStream
from pyflink.datastream.state import ListStateDescriptor, MapStateDescriptor
from pyflink.java_gateway import get_gateway
from pyflink.metrics import MetricGroup
from pyflink.util.java_utils import get_j_env_configuration

from infra.kafka import java_options
from infra.registry import schema_ids
from infra.settings import Settings, settings
from jobs.dead_letters import DeadLetter, encode_letter, schema_id_of
from jobs.flink_keys import MAX_PARALLELISM, shard_keys
from jobs.flink_state import FoldPolicy, JournaledShard
from pipelines.catalogue import Pipeline, Topic
from pipelines.errors import FrameError, StreambankError
from pipelines.kernel import InvariantBroken
from pipelines.pages import spill_to
from pipelines.signatures import SIGNATURE_REASONS

__all__ = ["DEFAULTS", "FrameFunction", "JobError", "ShardFunction", "add_dataflow", "build", "configure", "run"]

DEFAULTS: Final[dict[str, str]] = {
    "execution.buffer-timeout.interval": "0 ms",
    "execution.checkpointing.interval": "5 s",
    "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    "execution.checkpointing.tolerable-failed-checkpoints": "3",
    "execution.checkpointing.num-retained": "2",
    "pipeline.object-reuse": "true",
    "state.backend.type": "rocksdb",
    "execution.checkpointing.incremental": "true",
    "state.backend.rocksdb.compression.per.level": "NO_COMPRESSION",
    "restart-strategy.type": "exponential-delay",
    "restart-strategy.exponential-delay.initial-backoff": "500 ms",
    "restart-strategy.exponential-delay.max-backoff": "15 s",
}
"""Flink options of every job unless the operator gives others."""

SOURCE_PROPERTIES: Final = {
    "fetch.min.bytes": "1",
    "fetch.max.wait.ms": "100",
    "commit.offsets.on.checkpoint": "true",
}
SINK_PROPERTIES: Final = {
    "acks": "all",
    "enable.idempotence": "true",  # keeps the order of a partition through the producer's own retries
    "max.request.size": str(8 << 20),
}

RECORD_TYPE: Final = Types.ROW(
    [Types.INT(), Types.LONG(), Types.PRIMITIVE_ARRAY(Types.BYTE()), Types.PRIMITIVE_ARRAY(Types.BYTE())]
)
"""Partition, offset, value, signature: what io.streambank.flink.FrameDeserializationSchema gives."""
OUTPUT_TYPE: Final = Types.ROW([Types.STRING(), Types.INT(), Types.PRIMITIVE_ARRAY(Types.BYTE())])
"""Broker topic, shard, value: what io.streambank.flink.FrameSerializationSchema takes."""


class JobError(StreambankError):
    """A job cannot be built as asked."""


class _RawBytes(TypeInformation):  # type: ignore[misc]  # pyflink is untyped
    """byte[] in Flink's state, bytes here, without pickling.

    PyFlink converts state by its own TypeInformation classes only: a class it does not know is stored as a byte array
    and handed over as it is, while PICKLED_BYTE_ARRAY pickles and PRIMITIVE_ARRAY fails on a list state.
    """

    def get_java_type_info(self) -> Any:
        return Types.PICKLED_BYTE_ARRAY().get_java_type_info()


class FrameFunction(KeyedProcessFunction):  # type: ignore[misc]  # pyflink is untyped
    """Takes the records of ``topic`` one by one; one that is no frame becomes a dead letter of ``consumer``."""

    def __init__(
        self, consumer: str, topic: Topic, outputs: tuple[Topic, ...], dead_letters: Topic, config: Settings,
        ids: Mapping[str, int],
    ) -> None:  # fmt: skip
        self._consumer = consumer
        self._topic = topic
        self._letters = dead_letters
        self._config = config
        self._schema_ids = {one.name: ids[one.name] for one in (*outputs, dead_letters)}
        self._names = {name: config.kafka_topic(name) for name in self._schema_ids}

    def open(self, runtime_context: RuntimeContext) -> None:
        from infra.producer_keys import FrameVerifier

        try:
            self._verifier = FrameVerifier(self._config, self._topic)
            self.prepare(runtime_context)
        except Exception as error:
            raise _with_traceback(error) from None

    def prepare(self, runtime_context: RuntimeContext) -> None:
        """Get ready for the first record."""
        raise NotImplementedError

    def apply(self, partition: int, value: bytes) -> list[Row]:
        """Rows of `OUTPUT_TYPE` for a record. Raises `FrameError` for one that must be set aside."""
        raise NotImplementedError

    def set_aside(self, partition: int, error: FrameError) -> None:
        """Called for each dead letter."""
        raise NotImplementedError

    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        try:
            rows = self._rows(*value)
        except InvariantBroken as error:
            # the sink fails the job for good: a restart would only meet the same frame again
            text = "".join(traceback.format_exception(error))
            rows = [Row("", value[0], text.encode())]
        except Exception as error:
            raise _with_traceback(error) from None
        yield from rows

    def _rows(self, partition: int, offset: int, value: bytes, signature: bytes) -> list[Row]:
        try:
            self._verifier.check(partition, offset, value, signature)
            return self.apply(partition, value)
        except FrameError as error:
            self.set_aside(partition, error)
            return [self._dead_letter(partition, offset, value, error)]

    def _dead_letter(self, partition: int, offset: int, value: bytes, error: FrameError) -> Row:
        letter = DeadLetter(
            consumer=self._consumer,
            topic=self._topic.name,
            partition=partition,
            offset=offset,
            schema_id=schema_id_of(value),
            event_index=-1,
            reason=error.reason,
            detail=error.detail,
            payload=value,
        )
        name = self._letters.name
        return Row(self._names[name], partition, encode_letter(self._letters, self._schema_ids[name], letter))


class ShardFunction(FrameFunction):
    """Applies records to the shards of this subtask; a shard is loaded at its first record.

    Whatever outputs depend on was fixed at submission (``ids``: schema ids of the topics written) or comes with the
    record, so that a frame gives the same bytes whenever it is applied.
    """

    def __init__(self, pipeline: Pipeline, config: Settings, ids: Mapping[str, int], policy: FoldPolicy) -> None:
        super().__init__(pipeline.name, pipeline.inputs[0], pipeline.outputs, pipeline.dead_letters, config, ids)
        self._pipeline = pipeline
        self._policy = policy
        self._shards: dict[int, tuple[JournaledShard, _ShardMetrics]] = {}

    def prepare(self, runtime_context: RuntimeContext) -> None:
        from jobs.registry_reader import registry_reader
        from jobs.warm_up import warm_up

        self._journal = runtime_context.get_list_state(ListStateDescriptor("journal", _RawBytes()))
        self._pages = runtime_context.get_map_state(MapStateDescriptor("pages", Types.STRING(), _RawBytes()))
        self._metric_group = runtime_context.get_metrics_group()
        spill_to(self._config.spill_dir)
        self._reader = registry_reader(self._config)
        warm_up(self._pipeline)

    def apply(self, partition: int, value: bytes) -> list[Row]:
        shard, metrics = self._shards.get(partition) or self._restore(partition)
        outputs = shard.apply(value)
        metrics.frames.inc(1)
        metrics.bytes.inc(len(value))
        return [Row(self._names[output.topic], output.shard, output.value) for output in outputs]

    def set_aside(self, partition: int, error: FrameError) -> None:
        _, metrics = self._shards.get(partition) or self._restore(partition)
        metrics.dead_letters.inc(1)
        if error.reason in SIGNATURE_REASONS:
            metrics.refused_signatures.inc(1)

    def _restore(self, partition: int) -> tuple[JournaledShard, _ShardMetrics]:
        from pipelines.shard import Shard

        inner = Shard(self._pipeline, partition, self._schema_ids, self._reader)
        shard = JournaledShard(inner, self._pipeline.inputs[0].name, self._journal, self._pages, self._policy)
        metrics = _ShardMetrics(self._metric_group, partition)
        metrics.restored_pages.inc(shard.restored_pages)
        metrics.restored_frames.inc(shard.restored_frames)
        self._shards[partition] = (shard, metrics)
        return shard, metrics


class _ShardMetrics:
    """Counters of one shard, as ``...<operator>.shard.<n>.<name>`` in Flink's metrics."""

    def __init__(self, group: MetricGroup, shard: int) -> None:
        own = group.add_group("shard", str(shard))
        self.frames = own.counter("frames")
        """Frames applied, repeated ones included."""
        self.bytes = own.counter("frame_bytes")
        self.dead_letters = own.counter("dead_letters")
        self.refused_signatures = own.counter("refused_signatures")
        """Dead letters whose producer is unknown or whose signature is wrong."""
        self.restored_pages = own.counter("restored_pages")
        self.restored_frames = own.counter("restored_frames")
        """Frames of the journal applied again when the shard was loaded."""


def build(
    pipeline: Pipeline,
    environment: StreamExecutionEnvironment,
    config: Settings,
    ids: Mapping[str, int],
) -> None:
    """Add the pipeline's dataflow to a Flink environment.

    ``ids``: the registry's schema id of each output topic and of the dead letters. Raises `JobError` for a pipeline
    that this runtime cannot run.
    """
    if len(pipeline.inputs) != 1:
        raise JobError(
            f"pipeline {pipeline.name} has {len(pipeline.inputs)} input topics, a Flink job takes one: frames of "
            "several topics have no order that a restore could repeat; merge them into one topic first"
        )
    given = configure(pipeline.name, environment, config)
    policy = FoldPolicy(
        **{
            field.name: int(given.getString(f"streambank.journal.{field.name.replace('_', '-')}", str(field.default)))
            for field in fields(FoldPolicy)
        }
    )
    add_dataflow(
        environment, config, pipeline.name, pipeline.inputs[0], ShardFunction(pipeline, config, ids, policy),
        pipeline.linger_ms,
    )  # fmt: skip


def add_dataflow(
    environment: StreamExecutionEnvironment, config: Settings, name: str, topic: Topic, function: FrameFunction,
    linger_ms: int = 0,
) -> None:  # fmt: skip
    """Kafka source of ``topic`` -> ``function``, each partition on one subtask and in order -> Kafka sink, which waits
    ``linger_ms`` milliseconds for more to send. The uids of the operators begin with ``name``."""
    jvm = get_gateway().jvm
    keys = shard_keys(topic.partitions)
    java_keys = get_gateway().new_array(jvm.int, len(keys))
    for shard, key in enumerate(keys):
        java_keys[shard] = key
    builder = (
        KafkaSource.builder()
        .set_bootstrap_servers(config.kafka_bootstrap)
        .set_topics(config.kafka_topic(topic.name))
        .set_group_id(config.kafka_topic(name))
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_properties(SOURCE_PROPERTIES | java_options(config))
    )
    builder._j_builder.setDeserializer(jvm.io.streambank.flink.FrameDeserializationSchema(java_keys))
    records = environment.from_source(builder.build(), WatermarkStrategy.no_watermarks(), topic.name).uid(
        f"{name}-source"
    )

    outputs = _key_by_first_column(records).process(function, OUTPUT_TYPE).name(f"{name} kernel").uid(f"{name}-kernel")

    sink = KafkaSink.builder().set_bootstrap_servers(config.kafka_bootstrap)
    sink.set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
    for option, setting in {**SINK_PROPERTIES, **java_options(config), "linger.ms": str(linger_ms)}.items():
        sink.set_property(option, setting)
    sink._j_builder.setRecordSerializer(jvm.io.streambank.flink.FrameSerializationSchema())
    outputs.sink_to(sink.build()).name(f"{name} outputs").uid(f"{name}-sink")


def run(pipeline: Pipeline) -> None:
    """Submit a pipeline as a detached job; what a job file calls. The job's name is the pipeline's."""
    config = settings()
    environment = StreamExecutionEnvironment.get_execution_environment()
    build(pipeline, environment, config, schema_ids((*pipeline.outputs, pipeline.dead_letters), config))
    environment.execute_async(config.kafka_topic(pipeline.name))


def configure(name: str, environment: StreamExecutionEnvironment, config: Settings) -> Any:
    """Set the Flink options of job ``name`` that were not given, and those that no operator may change; returns the
    Java configuration in force."""
    given = get_j_env_configuration(environment._j_stream_execution_environment)
    chosen = Configuration()
    for key, value in DEFAULTS.items():
        if not given.containsKey(key):
            chosen.set_string(key, value)
    checkpoints = given.getString("execution.checkpointing.dir", config.checkpoints_dir.resolve().as_uri())
    chosen.set_string("execution.checkpointing.dir", f"{checkpoints.rstrip('/')}/{config.kafka_topic(name)}")
    chosen.set_string("python.execution-mode", "thread")
    chosen.set_string("pipeline.max-parallelism", str(MAX_PARALLELISM))
    environment.configure(chosen)
    return get_j_env_configuration(environment._j_stream_execution_environment)


def _key_by_first_column(records: DataStream) -> KeyedStream:
    """PyFlink's key_by for a stream of Row(key, value) that comes with its keys, without its pass through Python."""
    keyed = records._j_data_stream.keyBy(
        get_gateway().jvm.KeyByKeySelector(), Types.ROW([Types.INT()]).get_java_type_info()
    )
    return KeyedStream(keyed, RECORD_TYPE, records)


def _with_traceback(error: Exception) -> JobError:
    """Flink shows the message of a Python error, but neither its causes nor where it came from."""
    return JobError("".join(traceback.format_exception(error)))
