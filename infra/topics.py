"""Topics on the broker, made equal to the catalogue.

`plan` compares, `apply` changes what the plan says and nothing else: it creates missing topics and sets the
configuration keys that the catalogue owns; other keys that an operator set stay. For topics whose records must be
signed it makes the producers' keys (`infra.producer_keys`) where there are none. It never deletes a topic and never
changes a partition count: partition equals shard, so with another count every stored balance, offset and sequence
would belong to the wrong shard.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, OffsetSpec
from kafka.errors import KafkaError

from infra.kafka import python_options
from infra.producer_keys import ProducerKeys
from infra.settings import Settings, settings
from pipelines.catalogue import TOPICS, Topic
from pipelines.errors import StreambankError

__all__ = ["MAX_RECORD_BYTES", "TopicError", "TopicPlan", "TopicState", "apply", "ends", "plan", "states"]

MAX_RECORD_BYTES: Final = 1_048_576
"""Largest record batch of a topic; frames are cut well below (256 KiB)."""
TIMEOUT_MS: Final = 15_000


class TopicError(StreambankError):
    """The broker is away, refused a change, or a topic contradicts the catalogue."""


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What it takes to make one topic equal to the catalogue."""

    topic: Topic
    name: str
    create: bool = False
    changes: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    """Configuration key -> (value on the broker, value wanted)."""
    refused: str = ""
    """Why this topic cannot be made equal; nothing at all is applied while one topic is refused."""

    @property
    def action(self) -> str:
        if self.refused:
            return "refuse"
        return "create" if self.create else "change" if self.changes else "none"


@dataclass(frozen=True, slots=True)
class TopicState:
    """A catalogue topic as it is on the broker; ``partitions`` is 0 when it is missing."""

    topic: Topic
    name: str
    partitions: int
    records: int
    """Offsets between the start and the end of all partitions."""


def topic_config(topic: Topic, min_insync_replicas: int = 1) -> dict[str, str]:
    """The configuration keys that the catalogue owns, as the broker spells their values."""
    return {
        "cleanup.policy": "delete",
        "compression.type": "producer",  # whole batches are compressed by producers; again would only cost the broker
        "max.message.bytes": str(MAX_RECORD_BYTES),
        "message.timestamp.type": "CreateTime",
        "min.insync.replicas": str(min_insync_replicas),
        "retention.bytes": "-1",
        "retention.ms": str(topic.retention_ms),
    }


def plan(
    config: Settings | None = None, *, replication_factor: int = 1, min_insync_replicas: int = 1
) -> list[TopicPlan]:
    """One entry per catalogue topic, in the catalogue's order."""
    config = config or settings()
    _check_replication(replication_factor, min_insync_replicas)
    with _admin(config) as admin:
        return _plan(admin, config, tuple(TOPICS.values()), replication_factor, min_insync_replicas)


def apply(
    config: Settings | None = None,
    *,
    only: Sequence[Topic] = tuple(TOPICS.values()),
    replication_factor: int = 1,
    min_insync_replicas: int = 1,
) -> list[TopicPlan]:
    """Carry out the plan for these topics and wait until every new partition has a leader; returns what was done.

    Raises `TopicError` before changing anything when a topic contradicts the catalogue.
    """
    config = config or settings()
    _check_replication(replication_factor, min_insync_replicas)
    with _admin(config) as admin:
        plans = _plan(admin, config, only, replication_factor, min_insync_replicas)
        refused = [entry for entry in plans if entry.refused]
        if refused:
            raise TopicError("; ".join(f"{entry.name}: {entry.refused}" for entry in refused))
        new = {
            entry.name: {
                "num_partitions": entry.topic.partitions,
                "replication_factor": replication_factor,
                "configs": topic_config(entry.topic, min_insync_replicas),
            }
            for entry in plans
            if entry.create
        }
        if new:
            admin.create_topics(new, timeout_ms=TIMEOUT_MS)
            admin.wait_for_topics(list(new), timeout_ms=TIMEOUT_MS)
        changed = [entry for entry in plans if entry.changes and not entry.create]
        if changed:
            answers = admin.alter_configs(
                [
                    ConfigResource(
                        ConfigResourceType.TOPIC, entry.name, {key: new for key, (_, new) in entry.changes.items()}
                    )
                    for entry in changed
                ]
            )
            failed = {name: answer for name, answer in answers["topic"].items() if answer != "OK"}
            if failed:
                raise TopicError("; ".join(f"{name}: {answer}" for name, answer in failed.items()))
            _wait_in_effect(admin, config, only, replication_factor, min_insync_replicas)
        keys = ProducerKeys(config)
        for topic in only:
            if topic.producers:
                # what lies there already was written before anybody had a key
                keys.require(topic, topic.producers, _ends(admin, config.kafka_topic(topic.name), topic.partitions))
        return plans


def ends(topic: Topic, config: Settings | None = None) -> list[int]:
    """The offset after the last record of each partition of an existing topic."""
    config = config or settings()
    with _admin(config) as admin:
        return _ends(admin, config.kafka_topic(topic.name), topic.partitions)


def _ends(admin: Any, name: str, partitions: int) -> list[int]:
    places = [TopicPartition(name, partition) for partition in range(partitions)]
    found = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
    return [found[place].offset for place in places]


def states(config: Settings | None = None) -> list[TopicState]:
    """Every catalogue topic with its partitions and record counts on the broker."""
    config = config or settings()
    with _admin(config) as admin:
        partitions = _partition_counts(admin, config)
        found = []
        for topic in TOPICS.values():
            name = config.kafka_topic(topic.name)
            count = len(partitions.get(name, ()))
            targets = [TopicPartition(name, partition) for partition in range(count)]
            records = 0
            if targets:
                ends = admin.list_partition_offsets(dict.fromkeys(targets, OffsetSpec.LATEST))
                starts = admin.list_partition_offsets(dict.fromkeys(targets, OffsetSpec.EARLIEST))
                records = sum(ends[target].offset - starts[target].offset for target in targets)
            found.append(TopicState(topic, name, count, records))
        return found


def _plan(
    admin: Any, config: Settings, only: Sequence[Topic], replication_factor: int, min_insync_replicas: int
) -> list[TopicPlan]:
    partitions = _partition_counts(admin, config)
    present = [topic for topic in only if config.kafka_topic(topic.name) in partitions]
    current: dict[str, dict[str, Any]] = {}
    if present:
        resources = [ConfigResource(ConfigResourceType.TOPIC, config.kafka_topic(topic.name)) for topic in present]
        current = admin.describe_configs(resources, config_filter="all")["topic"]
    plans = []
    for topic in only:
        name = config.kafka_topic(topic.name)
        wanted = topic_config(topic, min_insync_replicas)
        replicas = partitions.get(name)
        if replicas is None:
            plans.append(TopicPlan(topic, name, create=True, changes={key: (None, wanted[key]) for key in wanted}))
            continue
        changes = {
            key: (current[name][key]["value"], value)
            for key, value in wanted.items()
            if current[name][key]["value"] != value
        }
        refused = ""
        if len(replicas) != topic.partitions:
            refused = (
                f"has {len(replicas)} partitions, the catalogue says {topic.partitions}. A partition is a shard and "
                "their count never changes: restore the catalogue, or make a new topic and replay into it"
            )
        elif set(replicas) != {replication_factor}:
            refused = (
                f"has replication factor {', '.join(map(str, sorted(set(replicas))))}, asked for {replication_factor}. "
                "Move replicas with Kafka's kafka-reassign-partitions, then apply again"
            )
        plans.append(TopicPlan(topic, name, changes=changes, refused=refused))
    return plans


def _wait_in_effect(
    admin: Any, config: Settings, only: Sequence[Topic], replication_factor: int, min_insync_replicas: int
) -> None:
    """The controller acknowledges a change before the brokers show it."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while any(entry.changes for entry in _plan(admin, config, only, replication_factor, min_insync_replicas)):
        if time.monotonic() > deadline:
            raise TopicError(f"Kafka accepted the changes but does not show them after {TIMEOUT_MS // 1000} s")
        time.sleep(0.05)


def _partition_counts(admin: Any, config: Settings) -> dict[str, list[int]]:
    """Replicas of each partition, by name, of the catalogue's topics that exist."""
    wanted = {config.kafka_topic(topic.name) for topic in TOPICS.values()}
    return {
        described["name"]: [len(partition["replica_nodes"]) for partition in described["partitions"]]
        for described in admin.describe_topics(sorted(wanted & set(admin.list_topics()))) or ()
        if described["name"] in wanted
    }


def _check_replication(replication_factor: int, min_insync_replicas: int) -> None:
    if not 1 <= min_insync_replicas <= replication_factor:
        raise TopicError(
            f"min.insync.replicas {min_insync_replicas} must be between 1 and replication factor {replication_factor}"
        )


def _require_broker(config: Settings) -> None:
    """Raises `OSError` when no broker of the settings can be connected to."""
    places = config.kafka_bootstrap.split(",")
    for place in places:
        host, _, port = place.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            if place is places[-1]:
                raise
        else:
            return


@contextmanager
def _admin(config: Settings) -> Iterator[Any]:
    """An admin client, closed at the end; broker errors become `TopicError`.

    A plain connection is tried first: kafka-python would repeat it for the whole time-out.
    """
    try:
        _require_broker(config)
        admin = KafkaAdminClient(
            **python_options(config),
            client_id="streambank-topics",
            request_timeout_ms=TIMEOUT_MS,
            bootstrap_timeout_ms=TIMEOUT_MS,
        )
    except (KafkaError, OSError) as error:
        raise TopicError(
            f"Kafka at {config.kafka_bootstrap} does not answer ({error}); start it with `streambank up`"
        ) from error
    try:
        yield admin
    except KafkaError as error:
        raise TopicError(f"Kafka at {config.kafka_bootstrap}: {error}") from error
    finally:
        admin.close()
