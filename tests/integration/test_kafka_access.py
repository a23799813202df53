"""A broker that asks who one is, with everything that talks to it: topics, producers, a Flink job, a sink."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from bench.deployment import Deployment, sinks
from infra import topics
from infra.certificates import make_certificates
from infra.kafka import kafka_options
from infra.registry import schema_ids
from infra.settings import Settings
from infra.stack.kafka import Kafka
from infra.stores import API_ROLE, postgres_conninfo
from pipelines.catalogue import LEDGER_COMMANDS
from pipelines.wire import wrap
from tests.support.ledger_frames import COMMANDS, account, command_frame, transfer
from tests.support.sinks import send
from tests.support.stack import PrivateStack, free_ports
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

SECRET = "a password of this test"


@dataclass
class World:
    environment: Settings
    directory: Path


@pytest.fixture(params=["SASL_SSL", "SSL"])
def world(request: pytest.FixtureRequest, stack: PrivateStack, tmp_path: Path) -> Iterator[World]:
    """A broker of its own that speaks the protocol; the other servers are the session's."""
    shared = stack.environment("registry", "postgres", "flink")
    broker, controller = free_ports(2)
    (tmp_path / "password").write_text(SECRET)
    own = shared.model_copy(update={
        "data_dir": tmp_path / "broker", "kafka_port": broker, "kafka_controller_port": controller,
        "kafka_security_protocol": request.param, "kafka_password_file": tmp_path / "password",
    })  # fmt: skip
    make_certificates(own.tls_dir, [own.host])
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(b"".join((own.tls_dir / name).read_bytes() for name in ("client-key.pem", "client.pem")))
    own = own.model_copy(update={
        "kafka_ca_file": own.tls_dir / "ca.pem",
        "kafka_certificate_file": certificate if request.param == "SSL" else None,
    })  # fmt: skip
    with Kafka(own):
        yield World(own.model_copy(update={"data_dir": shared.data_dir}), tmp_path)


def test_money_moves_over_a_broker_that_asks_who_one_is(world: World) -> None:
    environment = world.environment
    processes = sinks(["postgres"])
    with Deployment(environment, world.directory / "run", processes, ["ledger"], stores=["postgres"]):
        commands = [account(1), account(2), transfer(7, 1, 2, 250)]
        schema_id = schema_ids([LEDGER_COMMANDS], environment)[LEDGER_COMMANDS.name]
        record = wrap(schema_id, COMMANDS.encode(command_frame(commands, produced_at=1_000_000, shard=1)))
        send(environment, [(1, record)], LEDGER_COMMANDS.name)
        with psycopg.connect(postgres_conninfo(environment, API_ROLE), autocommit=True) as postgres:
            found = wait_until(
                lambda: postgres.execute("SELECT debits_posted FROM accounts WHERE id = 1").fetchone(), 90,
                f"the transfer is in Postgres; logs: {world.directory}",
            )  # fmt: skip
        assert found == (250,)
        jobs = httpx.get(f"{environment.flink_url}/jobs", timeout=20).json()["jobs"]
        told = [
            httpx.get(f"{environment.flink_url}/jobs/{job['id']}{page}", timeout=20).text
            for job in jobs
            for page in ("", "/config", "/plan")
        ]
    logs = [path.read_text(errors="replace") for path in world.directory.rglob("*.log")]
    assert logs
    assert not any(SECRET in text for text in [*told, *logs])


def test_whoever_does_not_say_who_they_are_is_refused(world: World, tmp_path: Path) -> None:
    environment = world.environment
    strangers = [{"kafka_security_protocol": "PLAINTEXT"}]
    if environment.kafka_security_protocol == "SSL":
        strangers.append({"kafka_certificate_file": None})
    else:
        wrong = tmp_path / "wrong"
        wrong.write_text("another password")
        strangers += [{"kafka_password_file": wrong}, {"kafka_user": "somebody"}, {"kafka_ca_file": None}]
    for stranger in strangers:
        admin = AdminClient({
            **kafka_options(environment.model_copy(update=stranger)), "log_level": 0, "error_cb": lambda _: None,
        })  # fmt: skip
        with pytest.raises(KafkaException):
            admin.list_topics(timeout=3)
    assert all(plan.action == "create" for plan in topics.plan(environment))
