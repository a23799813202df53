"""Where servers are and who we are to them, as each client library is told."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.certificates import make_certificates
from infra.kafka import KafkaAccessError, java_options, kafka_options, python_options
from infra.settings import Settings
from infra.stores import cassandra_cluster, postgres_conninfo, valkey_conninfo

SECRET = "correct horse, battery: $taple}"


@pytest.fixture
def access(tmp_path: Path) -> dict[str, Any]:
    make_certificates(tmp_path, ["broker.local"])
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes((tmp_path / "client-key.pem").read_bytes() + (tmp_path / "client.pem").read_bytes())
    password = tmp_path / "password"
    password.write_text(SECRET)
    return {
        "kafka_servers": "broker-1.local:9093,broker-2.local:9093",
        "kafka_ca_file": tmp_path / "ca.pem",
        "kafka_certificate_file": certificate,
        "kafka_password_file": password,
    }


def test_the_local_stack_needs_nothing(tmp_path: Path) -> None:
    config = Settings(data_dir=tmp_path)
    assert kafka_options(config) == {"bootstrap.servers": "127.0.0.1:9092"}
    assert java_options(config) == {"security.protocol": "PLAINTEXT"}
    assert python_options(config)["security_protocol"] == "PLAINTEXT"


def test_every_library_is_told_the_same(access: dict[str, Any]) -> None:
    config = Settings.model_validate({**access, "kafka_security_protocol": "SASL_SSL"})
    librdkafka, java, python = kafka_options(config), java_options(config), python_options(config)
    assert librdkafka["bootstrap.servers"] == access["kafka_servers"]
    assert python["bootstrap_servers"] == ["broker-1.local:9093", "broker-2.local:9093"]
    for options in (librdkafka, java):
        assert options["security.protocol"] == "SASL_SSL"
        assert options["sasl.mechanism"] == "SCRAM-SHA-512"
    assert (librdkafka["sasl.username"], librdkafka["sasl.password"]) == ("streambank", SECRET)
    assert (python["sasl_plain_username"], python["sasl_plain_password"]) == ("streambank", SECRET)
    assert librdkafka["ssl.ca.location"] == java["ssl.truststore.location"] == str(access["kafka_ca_file"])
    assert python["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert python["ssl_context"].check_hostname
    assert "ScramLoginModule" in java["sasl.jaas.config"]
    plain = java_options(config.model_copy(update={"kafka_sasl_mechanism": "PLAIN"}))
    assert "PlainLoginModule" in plain["sasl.jaas.config"]


def test_no_job_graph_holds_the_password(access: dict[str, Any]) -> None:
    config = Settings.model_validate({**access, "kafka_security_protocol": "SASL_SSL"})
    assert SECRET not in str(java_options(config))
    assert SECRET not in str(config.variables())


@pytest.mark.parametrize("content", ["", "secret\n", 'sec"ret', "sec\\ret"])
def test_a_password_that_java_would_misread_is_refused(access: dict[str, Any], content: str) -> None:
    access["kafka_password_file"].write_text(content)
    config = Settings.model_validate({**access, "kafka_security_protocol": "SASL_PLAINTEXT"})
    for options in (kafka_options, java_options, python_options):
        with pytest.raises(KafkaAccessError, match="KAFKA_PASSWORD_FILE") as refused:
            options(config)
        assert not content or content not in str(refused.value)


def test_what_is_missing_is_named(access: dict[str, Any], tmp_path: Path) -> None:
    without = Settings.model_validate({**access, "kafka_security_protocol": "SASL_SSL", "kafka_password_file": None})
    with pytest.raises(KafkaAccessError, match="STREAMBANK_KAFKA_PASSWORD_FILE"):
        kafka_options(without)
    gone = Settings.model_validate({**access, "kafka_security_protocol": "SSL", "kafka_ca_file": tmp_path / "no.pem"})
    with pytest.raises(KafkaAccessError, match="STREAMBANK_KAFKA_CA_FILE"):
        python_options(gone)
    with pytest.raises(ValidationError, match="kafka_user"):
        Settings.model_validate({"kafka_user": 'a" other="b'})


def test_stores_elsewhere(monkeypatch: pytest.MonkeyPatch, access: dict[str, Any]) -> None:
    config = Settings.model_validate({
        "postgres_host": "pg.local", "postgres_replica_host": "replica.local", "valkey_host": "valkey.local",
        "cassandra_hosts": "127.0.0.2, 127.0.0.3", "registry_address": "https://registry.local/",
        "flink_address": "https://flink.local/", "cassandra_ca_file": access["kafka_ca_file"],
        "valkey_ca_file": access["kafka_ca_file"],
    })  # fmt: skip
    assert "host=pg.local" in postgres_conninfo(config)
    assert "host=replica.local" in postgres_conninfo(config, replica=True)
    cluster = cassandra_cluster(config)
    assert [place.address for place in cluster.endpoints_resolved or cluster._raw_endpoints] or True
    assert cluster.contact_points == ["127.0.0.2", "127.0.0.3"]
    assert cluster.ssl_context.verify_mode is ssl.CERT_REQUIRED
    assert (config.registry_url, config.flink_url) == ("https://registry.local", "https://flink.local")
    assert valkey_conninfo(config).startswith("rediss://valkey.local:6380/0?ssl_ca_certs=")
    monkeypatch.setenv("STREAMBANK_VALKEY_PASSWORD", "p@ss/word")
    assert valkey_conninfo(config).startswith("rediss://:p%40ss%2Fword@valkey.local:6380/0?")
    assert "p%40ss" not in config.valkey_url
