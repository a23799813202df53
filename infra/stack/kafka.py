"""Kafka: one broker in KRaft mode, broker and controller in one process.

It speaks to its clients by the settings' security protocol. Under TLS it shows the certificate of `streambank certs
make`, without SASL clients must show one too; under SASL it knows the settings' one user, from when its directory was
formatted.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import socket
import subprocess
import uuid
from collections.abc import Mapping

from confluent_kafka.admin import AdminClient

from infra.kafka import jaas_config, kafka_options, kafka_password, password_provider, uses_sasl, uses_tls
from infra.stack.errors import PrerequisiteError, ServerFailedError
from infra.stack.java import java_home
from infra.stack.process import Command
from infra.stack.server import Port, Server

__all__ = ["Kafka"]

HEAP = "512m"
SCRAM_ITERATIONS = 8192

LOG4J = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <Console name="console"><PatternLayout pattern="%d{ISO8601} %-5p %m (%c{1})%n"/></Console>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="console"/></Root>
    <Logger name="kafka" level="INFO"/>
    <Logger name="org.apache.kafka" level="INFO"/>
    <Logger name="state.change.logger" level="WARN"/>
  </Loggers>
</Configuration>
"""


class Kafka(Server):
    """``kafka.Kafka`` from the jars of set-up. A topic is never created by a client's mistake: auto-creation is off."""

    name = "kafka"
    title = "Kafka (KRaft)"

    @property
    def ports(self) -> tuple[Port, ...]:
        return (
            Port("broker", self.settings.kafka_port, "STREAMBANK_KAFKA_PORT"),
            Port("controller", self.settings.kafka_controller_port, "STREAMBANK_KAFKA_CONTROLLER_PORT"),
        )

    def prepare(self) -> None:
        host, broker, controller = self.settings.host, self.settings.kafka_port, self.settings.kafka_controller_port
        protocol = self.settings.kafka_security_protocol
        properties = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{host}:{controller}",
            "listeners": f"{protocol}://{host}:{broker},CONTROLLER://{host}:{controller}",
            "advertised.listeners": f"{protocol}://{host}:{broker}",
            "listener.security.protocol.map": f"{protocol}:{protocol},CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": protocol,
            "log.dirs": self.directory / "log",
            "auto.create.topics.enable": "false",
            "num.partitions": 1,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # A broker that was killed is taken back when the controller has given up the one before it: after nine
            # seconds by default.
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 4000,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.cleaner.dedupe.buffer.size": 16 << 20,
            # One broker, so the disk is the only copy: what was acknowledged survives a killed process (the page
            # cache holds it), and a crash of the machine loses at most this much.
            "log.flush.scheduler.interval.ms": 1000,
            "log.flush.interval.ms": 1000,
            **(self._tls() if uses_tls(self.settings) else {}),
            **(self._sasl() if uses_sasl(self.settings) else {}),
        }
        (self.directory / "server.properties").write_text(
            "".join(f"{key}={value}\n" for key, value in properties.items())
        )
        (self.directory / "log4j2.xml").write_text(LOG4J)
        if not (self.directory / "log" / "meta.properties").exists():
            self._format()

    def _tls(self) -> dict[str, object]:
        tls = self.settings.tls_dir
        try:
            pem = b"".join((tls / name).read_bytes() for name in ("broker-key.pem", "broker.pem"))
        except OSError as error:
            raise PrerequisiteError(f"kafka: {error}; run: streambank certs make") from error
        broker = self.directory / "broker.pem"
        with open(os.open(broker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pem)
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": broker,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": tls / "ca.pem",
            "ssl.client.auth": "none" if uses_sasl(self.settings) else "required",
        }

    def _sasl(self) -> dict[str, object]:
        mechanism = self.settings.kafka_sasl_mechanism
        listener = f"listener.name.{self.settings.kafka_security_protocol.lower()}.{mechanism.lower()}"
        return {
            "sasl.enabled.mechanisms": mechanism,
            "sasl.mechanism.inter.broker.protocol": mechanism,
            **password_provider(),
            f"{listener}.sasl.jaas.config": jaas_config(self.settings, known=mechanism == "PLAIN"),
        }

    def _users(self) -> list[str]:
        """Options of the formatting that make the user; the password itself stands on no command line."""
        mechanism = self.settings.kafka_sasl_mechanism
        if not uses_sasl(self.settings) or mechanism == "PLAIN":
            return []
        salt = secrets.token_bytes(24)
        digest = mechanism.removeprefix("SCRAM-").replace("-", "").lower()
        salted = hashlib.pbkdf2_hmac(digest, kafka_password(self.settings).encode(), salt, SCRAM_ITERATIONS)
        user = (
            f'name="{self.settings.kafka_user}",iterations={SCRAM_ITERATIONS},'
            f'salt="{base64.b64encode(salt).decode()}",saltedpassword="{base64.b64encode(salted).decode()}"'
        )
        return ["--add-scram", f"{mechanism}=[{user}]"]

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        done = subprocess.run(
            [
                *self._java("-Xmx128m", "-XX:TieredStopAtLevel=1"),
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster}",
                f"--config={self.directory / 'server.properties'}",
                *self._users(),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise ServerFailedError(f"kafka: formatting {self.directory / 'log'} failed: {done.stdout}{done.stderr}")

    def _java(self, *options: str) -> list[str]:
        return [
            str(java_home() / "bin" / "java"),
            *options,
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.xml'}",
            "-cp",
            f"{self.home / 'jars' / 'kafka'}/*",
        ]

    def commands(self) -> Mapping[str, Command]:
        options = (
            f"-Xms{HEAP}",
            f"-Xmx{HEAP}",
            "-XX:MaxGCPauseMillis=20",
            "-XX:+ExitOnOutOfMemoryError",
            *self.settings.jvm_options.split(),
        )
        arguments = (*self._java(*options), "kafka.Kafka", str(self.directory / "server.properties"))
        return {self.name: Command(arguments, environment={"CLASSPATH": None})}

    def check(self) -> None:
        # The client waits out its time-out when nobody listens yet; this does not.
        socket.create_connection((self.settings.host, self.settings.kafka_port), timeout=2).close()
        admin = AdminClient({**kafka_options(self.settings), "socket.timeout.ms": 2000, "log_level": 0})
        metadata = admin.list_topics(timeout=2)
        if not metadata.brokers:
            raise ConnectionError("the broker has not registered yet")

    def describe(self) -> str:
        return self.settings.kafka_bootstrap
