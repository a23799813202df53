"""Cassandra: the history that analysts query with CQL. One node that owns the whole ring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from infra.stack.java import java_home
from infra.stack.probes import ask
from infra.stack.process import Command
from infra.stack.server import Port, Server

__all__ = ["Cassandra"]

HEAP = "1g"

OPTIONS_REQUEST = bytes([0x04, 0, 0, 0, 0x05, 0, 0, 0, 0])  # version 4, stream 0, opcode OPTIONS, no body
SUPPORTED = 0x06

# What Cassandra 5 needs of Java 17's modules, as its own jvm17-server.options has it.
EXPORTS = (
    "java.base/jdk.internal.misc",
    "java.base/java.lang.ref",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.attach/sun.tools.attach",
    "jdk.compiler/com.sun.tools.javac.file",
    "jdk.unsupported/sun.misc",
)
OPENS = (
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.module",
    "java.base/java.lang.reflect",
    "java.base/java.util",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "jdk.compiler/com.sun.tools.javac",
    "jdk.management/com.sun.management.internal",
)

LOGBACK = """<configuration>
  <appender name="console" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level [%thread] %date{ISO8601} %F:%L - %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="console"/></root>
  <logger name="org.apache.cassandra.db.ColumnFamilyStore" level="WARN"/>
  <logger name="org.apache.cassandra.utils.memory" level="WARN"/>
</configuration>
"""


class Cassandra(Server):
    """``CassandraDaemon`` from the jars of set-up; native protocol only, no JMX."""

    name = "cassandra"
    title = "Cassandra"
    start_seconds = 300
    stop_seconds = 45

    @property
    def ports(self) -> tuple[Port, ...]:
        return (
            Port("CQL", self.settings.cassandra_port, "STREAMBANK_CASSANDRA_PORT"),
            Port("internode", self.settings.cassandra_storage_port, "STREAMBANK_CASSANDRA_STORAGE_PORT"),
        )

    def prepare(self) -> None:
        host = self.settings.host
        configuration: dict[str, Any] = {
            "cluster_name": "streambank",
            "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
            "num_tokens": 1,
            "initial_token": "0",
            "auto_bootstrap": False,
            "listen_address": host,
            "rpc_address": host,
            "storage_port": self.settings.cassandra_storage_port,
            "start_native_transport": True,
            "native_transport_port": self.settings.cassandra_port,
            "endpoint_snitch": "SimpleSnitch",
            "seed_provider": [
                {
                    "class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
                    "parameters": [{"seeds": f"{host}:{self.settings.cassandra_storage_port}"}],
                }
            ],
            "data_file_directories": [str(self.directory / "data")],
            "commitlog_directory": str(self.directory / "commitlog"),
            "saved_caches_directory": str(self.directory / "saved_caches"),
            "hints_directory": str(self.directory / "hints"),
            "cdc_raw_directory": str(self.directory / "cdc_raw"),
            # The log is mapped memory: a killed server loses nothing. A lost machine may lose the last second, the
            # sink's position with it, so that the sink writes those rows again.
            "commitlog_sync": "periodic",
            "commitlog_sync_period": "1s",
            "commitlog_segment_size": "32MiB",
            "commitlog_total_space": "256MiB",
            "memtable_heap_space": "192MiB",
            "memtable_offheap_space": "128MiB",
            "memtable_allocation_type": "heap_buffers",
            "memtable": {
                "configurations": {
                    "skiplist": {"class_name": "SkipListMemtable"},
                    "trie": {"class_name": "TrieMemtable"},
                    "default": {"inherits": "trie"},
                }
            },
            "file_cache_size": "64MiB",
            "networking_cache_size": "32MiB",
            "key_cache_size": "16MiB",
            "prepared_statements_cache_size": "8MiB",
            "concurrent_reads": 16,
            "concurrent_writes": 32,
            "concurrent_compactors": 1,
            "concurrent_counter_writes": 4,
            "auto_snapshot": False,
            "hinted_handoff_enabled": False,
            "disk_failure_policy": "die",
            "commit_failure_policy": "die",
            "authenticator": "AllowAllAuthenticator",
            "authorizer": "AllowAllAuthorizer",
            "write_request_timeout": "5s",
            "read_request_timeout": "10s",
            "request_timeout": "10s",
        }
        # JSON is YAML, and needs no quoting rules.
        (self.directory / "cassandra.yaml").write_text(json.dumps(configuration, indent=2))
        (self.directory / "logback.xml").write_text(LOGBACK)

    def commands(self) -> Mapping[str, Command]:
        jars = self.home / "jars" / "cassandra"
        jamm = next(jars.glob("jamm-*.jar"), jars / "jamm.jar")
        properties = {
            "cassandra.config": (self.directory / "cassandra.yaml").as_uri(),
            "cassandra.storagedir": self.directory,
            "cassandra.logdir": self.directory,
            "logback.configurationFile": self.directory / "logback.xml",
            "cassandra-foreground": "yes",
            "cassandra.ring_delay_ms": 0,  # nobody to wait for: one node is the whole ring
            "cassandra.skip_wait_for_gossip_to_settle": 0,
            "cassandra.skip_schema_check": "true",
            "cassandra.superuser_setup_delay_ms": 0,
            "cassandra.consistent.rangemovement": "false",
            "java.io.tmpdir": self.directory / "tmp",
            "jna.tmpdir": self.directory / "tmp",
            "java.net.preferIPv4Stack": "true",
            "jdk.attach.allowAttachSelf": "true",
            "io.netty.tryReflectionSetAccessible": "true",
            "io.netty.allocator.useCacheForAllThreads": "true",
            "io.netty.allocator.maxOrder": 11,
            "file.encoding": "UTF-8",
        }
        (self.directory / "tmp").mkdir(exist_ok=True)
        arguments = [str(java_home() / "bin" / "java"), f"-javaagent:{jamm}"]
        arguments += [f"-Xms{HEAP}", f"-Xmx{HEAP}", "-Xss256k", "-XX:MaxDirectMemorySize=256m"]
        arguments += ["-XX:MaxGCPauseMillis=100", "-XX:+UseStringDeduplication"]
        arguments += ["-XX:+ExitOnOutOfMemoryError", "-XX:+PerfDisableSharedMem", *self.settings.jvm_options.split()]
        arguments += [f"--add-exports={module}=ALL-UNNAMED" for module in EXPORTS]
        arguments += [f"--add-opens={module}=ALL-UNNAMED" for module in OPENS]
        arguments += [f"-D{key}={value}" for key, value in properties.items()]
        arguments += ["-cp", f"{self.directory}:{jars}/*", "org.apache.cassandra.service.CassandraDaemon"]
        return {self.name: Command(tuple(arguments), environment={"CLASSPATH": None}, working_directory=self.directory)}

    def check(self) -> None:
        """Asks for the protocol options, the native protocol's first question; it is served last at a start."""
        answer = ask(self.settings.host, self.settings.cassandra_port, OPTIONS_REQUEST, 9)
        if len(answer) < 5 or answer[4] != SUPPORTED:
            raise ConnectionError(f"unexpected answer {answer!r} to an OPTIONS request")

    def describe(self) -> str:
        return f"{self.settings.host}:{self.settings.cassandra_port}"
