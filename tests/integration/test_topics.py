"""Topics on a real broker follow the catalogue, and nothing else is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from infra import topics
from infra.kafka import kafka_options
from infra.settings import Settings
from infra.stack.kafka import Kafka
from infra.topics import TopicError, TopicPlan
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_RESULTS, TOPICS
from tests.support.stack import variables, wait_until

pytestmark = pytest.mark.stack


@pytest.fixture
def admin(kafka: Kafka, environment: Settings) -> Iterator[Any]:
    with KafkaAdminClient(bootstrap_servers=environment.kafka_bootstrap) as client:
        yield client


def _apply(environment: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("streambank")), "topics", *arguments]
    return subprocess.run(
        command,
        env=variables(environment) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _config(admin: Any, name: str) -> dict[str, str]:
    described = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
    return {key: entry["value"] for key, entry in described["topic"][name].items()}


def test_apply_creates_the_catalogue_and_repeating_it_changes_nothing(admin: Any, environment: Settings) -> None:
    dry = _apply(environment, "apply", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert f"would create {len(TOPICS)}" in dry.stdout
    assert not {environment.kafka_topic(name) for name in TOPICS} & set(admin.list_topics())

    done = _apply(environment, "apply")
    assert done.returncode == 0, done.stderr
    assert f"created {len(TOPICS)}, changed 0, equal 0" in done.stdout
    for topic in TOPICS.values():
        name = environment.kafka_topic(topic.name)
        (described,) = admin.describe_topics([name])
        assert len(described["partitions"]) == topic.partitions
        config = _config(admin, name)
        assert config["retention.ms"] == str(topic.retention_ms)
        assert config["max.message.bytes"] == "1048576"
        assert config["cleanup.policy"] == "delete"
        assert config["min.insync.replicas"] == "1"

    again = _apply(environment, "apply")
    assert again.returncode == 0, again.stderr
    assert f"created 0, changed 0, equal {len(TOPICS)}" in again.stdout


def test_drift_is_shown_and_corrected_and_an_operators_own_keys_stay(admin: Any, environment: Settings) -> None:
    topics.apply(environment)
    name = environment.kafka_topic(LEDGER_RESULTS.name)
    changed = {"retention.ms": "1000", "segment.ms": "3600000"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, changed)])

    def changed_plans() -> list[TopicPlan]:
        return [plan for plan in topics.plan(environment) if plan.action != "none"]

    (plan,) = wait_until(changed_plans, 15, "the broker shows the changed retention")
    assert plan.name == name
    assert plan.changes == {"retention.ms": ("1000", str(LEDGER_RESULTS.retention_ms))}

    done = _apply(environment, "apply")
    assert done.returncode == 0, done.stderr
    assert "retention.ms" in done.stdout
    assert "changed 1" in done.stdout
    config = _config(admin, name)
    assert config["retention.ms"] == str(LEDGER_RESULTS.retention_ms)
    assert config["segment.ms"] == "3600000"


def test_another_partition_count_is_refused_and_nothing_is_applied(admin: Any, environment: Settings) -> None:
    name = environment.kafka_topic(LEDGER_COMMANDS.name)
    admin.create_topics({name: {"num_partitions": 3, "replication_factor": 1}}, wait_for_metadata=True)
    with pytest.raises(TopicError, match="has 3 partitions, the catalogue says 4"):
        topics.apply(environment)
    done = _apply(environment, "apply")
    assert done.returncode == 1
    assert "has 3 partitions, the catalogue says 4" in done.stdout
    assert "replay" in done.stdout
    names = set(admin.list_topics())
    assert not {environment.kafka_topic(other) for other in TOPICS if other != LEDGER_COMMANDS.name} & names


def test_list_counts_records(admin: Any, environment: Settings) -> None:
    assert [state.partitions for state in topics.states(environment)] == [0] * len(TOPICS)
    topics.apply(environment)
    producer = Producer(kafka_options(environment))
    for partition in range(3):
        producer.produce(environment.kafka_topic(LEDGER_COMMANDS.name), b"x", partition=partition)
    assert producer.flush(30) == 0
    states = {state.topic.name: state for state in topics.states(environment)}
    assert states[LEDGER_COMMANDS.name].records == 3
    assert states[LEDGER_RESULTS.name].records == 0
    done = _apply(environment, "list")
    assert done.returncode == 0, done.stderr
    assert "for ever" in done.stdout


def test_no_broker_is_a_clear_error(environment: Settings) -> None:
    nobody = environment.model_copy(update={"kafka_port": 9})
    with pytest.raises(TopicError, match="streambank up"):
        topics.plan(nobody)
