"""Flink: a session cluster of one JobManager and some TaskManagers, from the ``apache-flink`` wheel.

Ports but those of the REST API and the JobManager's RPC are chosen by the system, so several clusters run side by side.
Heartbeats are tuned to notice a lost TaskManager after 6 s. Checkpoints are retained when a job is cancelled, because
without high availability a lost JobManager forgets its jobs.

Java is started as Flink's scripts do, but not by them: they start four more Javas to read the configuration and to
divide the memory, and take as long for that as the server for its start. The division is that of `FlinkOptions`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.settings import Settings
from infra.stack.errors import PrerequisiteError, StackError
from infra.stack.java import java_home
from infra.stack.probes import get_json
from infra.stack.process import Command, ServerProcess
from infra.stack.server import Port, Server

__all__ = ["Flink", "FlinkOptions"]

JOB_MANAGER = "jobmanager"

# Flink's own defaults, in MiB.
METASPACE = 256
FRAMEWORK_HEAP = 128
FRAMEWORK_OFF_HEAP = 128
LEAST_JVM_OVERHEAD, MOST_JVM_OVERHEAD = 192, 1024

LEAST_HEAP = 64

LOG4J = """rootLogger.level = INFO
rootLogger.appenderRef.console.ref = ConsoleAppender
appender.console.name = ConsoleAppender
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %-60c %x - %m%n
logger.pekko.name = org.apache.pekko
logger.pekko.level = WARN
logger.kafka.name = org.apache.flink.kafka.shaded.org.apache.kafka
logger.kafka.level = WARN
logger.netty.name = org.jboss.netty.channel.DefaultChannelPipeline
logger.netty.level = OFF
# The Kafka sink registers the same gauge again at every checkpoint: a warning each second and job.
logger.metrics.name = org.apache.flink.metrics.MetricGroup
logger.metrics.level = ERROR
"""


def _mebibytes(size: object) -> object:
    """`2112m` and `2g` as Flink writes them; a number is MiB already."""
    match = re.fullmatch(r"(\d+)\s*([mg])b?", str(size).strip().lower())
    return int(match[1]) * (1024 if match[2] == "g" else 1) if match else size


Mebibytes = Annotated[int, BeforeValidator(_mebibytes), Field(gt=0)]
"""A size in MiB; also read as Flink writes sizes."""


class FlinkOptions(BaseSettings):
    """Size and failure behaviour of the cluster; each is also an environment variable STREAMBANK_FLINK_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="STREAMBANK_FLINK_", frozen=True)

    task_managers: int = Field(1, ge=1, le=16, description="TaskManagers to start.")
    slots: int = Field(4, ge=1, le=64, description="Slots of each TaskManager.")
    job_manager_memory: Mebibytes = Field(960, description="Process memory of the JobManager.")
    task_manager_memory: Mebibytes = Field(2112, description="Process memory of each TaskManager.")
    task_off_heap_memory: Mebibytes = Field(256, description="Part of it for NumPy arrays, which Flink does not count.")
    managed_memory: Mebibytes = Field(512, description="Part of it for RocksDB.")
    network_memory: Mebibytes = Field(64, description="Part of it for network buffers.")
    restart: Literal["exponential-delay", "none"] = Field(
        "exponential-delay", description="What a failed job does; none shows the failure at once."
    )
    configuration: dict[str, str] = Field(default_factory=dict, description="Further keys of Flink's config.yaml.")

    @property
    def job_manager_heap(self) -> int:
        """MiB of the JobManager's memory that are left for its heap. Raises `StackError` when there is too little."""
        return _left(
            "STREAMBANK_FLINK_JOB_MANAGER_MEMORY",
            self.job_manager_memory,
            METASPACE + FRAMEWORK_OFF_HEAP + _jvm_overhead(self.job_manager_memory),
        )

    @property
    def task_heap(self) -> int:
        """MiB of a TaskManager's memory that are left for the heap of its tasks. Raises `StackError` when there is too
        little."""
        return _left(
            "STREAMBANK_FLINK_TASK_MANAGER_MEMORY",
            self.task_manager_memory,
            *(METASPACE, FRAMEWORK_HEAP, FRAMEWORK_OFF_HEAP, _jvm_overhead(self.task_manager_memory)),
            *(self.task_off_heap_memory, self.managed_memory, self.network_memory),
        )


def _jvm_overhead(process_memory: int) -> int:
    return min(max(process_memory // 10, LEAST_JVM_OVERHEAD), MOST_JVM_OVERHEAD)


def _left(variable: str, process_memory: int, *parts: int) -> int:
    left = process_memory - sum(parts)
    if left < LEAST_HEAP:
        raise StackError(
            f"flink: of {process_memory} MiB {left} would be left for the heap, at least {LEAST_HEAP} are needed; "
            f"set {variable} to {sum(parts) + LEAST_HEAP}m or more"
        )
    return left


class Flink(Server):
    """The session cluster. Its processes are ``jobmanager`` and ``taskmanager-1``, ``taskmanager-2``, ..."""

    name = "flink"
    title = "Flink"
    start_seconds = 240
    stop_seconds = 20

    def __init__(self, settings: Settings, options: FlinkOptions | None = None) -> None:
        super().__init__(settings)
        self.options = options or FlinkOptions()

    # --- where things are

    @property
    def ports(self) -> tuple[Port, ...]:
        return (
            Port("REST and web UI", self.settings.flink_port, "STREAMBANK_FLINK_PORT"),
            Port("RPC", self.settings.flink_rpc_port, "STREAMBANK_FLINK_RPC_PORT"),
        )

    @property
    def flink_home(self) -> Path:
        """FLINK_HOME with the Kafka connector and Streambank's own classes in lib/."""
        return self.home / "flink"

    @property
    def configuration_directory(self) -> Path:
        return self.directory / "conf"

    def environment(self) -> dict[str, str | None]:
        """Environment of Flink's processes and of its clients."""
        return {
            "FLINK_HOME": str(self.flink_home),
            "FLINK_CONF_DIR": str(self.configuration_directory),
            "FLINK_LIB_DIR": str(self.flink_home / "lib"),
            "FLINK_OPT_DIR": str(self.flink_home / "opt"),
            "FLINK_PLUGINS_DIR": str(self.flink_home / "plugins"),
            "FLINK_LOG_DIR": str(self.directory),
            "JAVA_HOME": str(java_home()),
            # The interpreter inside a TaskManager takes its packages from the first python3 on the path.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "CLASSPATH": None,
            "FLINK_ENV_JAVA_OPTS": None,
            "JVM_ARGS": None,
        }

    def describe(self) -> str:
        return self.settings.flink_url

    # --- processes

    def processes(self) -> tuple[ServerProcess, ...]:
        numbers = set(range(1, self.options.task_managers + 1))
        for path in self.directory.glob("taskmanager-*.pid"):
            numbers.add(int(path.stem.removeprefix("taskmanager-")))
        return (
            self.process(JOB_MANAGER),
            *(self.process(f"taskmanager-{number}") for number in sorted(numbers)),
        )

    def task_managers(self) -> tuple[ServerProcess, ...]:
        """TaskManagers that are running, in the order of their numbers."""
        return tuple(process for process in self.processes()[1:] if process.pid is not None)

    def kill_task_manager(self, name: str | None = None) -> int:
        """SIGKILL one TaskManager (the first running one unless named) and return the pid it had.

        The cluster counts as dead until `start` or `start_task_manager` brings it back.
        """
        for process in self.task_managers():
            if name is None or process.name == name:
                pid = process.pid
                if pid is not None:
                    process.kill()
                    return pid
        raise StackError(f"flink: no running TaskManager {name or ''}; running: {self.task_managers()}")

    def start_task_manager(self) -> ServerProcess:
        """Start one more TaskManager: a dead one's replacement, or a spare. Does not wait for its registration."""
        number = 1
        while self.process(f"taskmanager-{number}").pid is not None:
            number += 1
        process = self.process(f"taskmanager-{number}")
        process.start(self._task_manager(process.name))
        return process

    def prepare(self) -> None:
        if not (self.flink_home / "bin" / "flink").exists():
            raise PrerequisiteError(f"flink: {self.flink_home} is not set up; run: streambank setup")
        for directory in ("conf", "tmp", "uploads"):
            (self.directory / directory).mkdir(parents=True, exist_ok=True)
        for storage in (self.settings.checkpoints_dir, self.settings.savepoints_dir):
            storage.mkdir(parents=True, exist_ok=True)
        configuration = {**self._configuration(), **self.options.configuration}
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in configuration.items()]
        (self.configuration_directory / "config.yaml").write_text("".join(lines))
        for name in ("log4j-console.properties", "log4j-cli.properties", "log4j.properties"):
            (self.configuration_directory / name).write_text(LOG4J)

    def commands(self) -> Mapping[str, Command]:
        commands = {JOB_MANAGER: self._job_manager()}
        for process in self.processes()[1:]:
            commands[process.name] = self._task_manager(process.name)
        return commands

    def _job_manager(self) -> Command:
        heap = self.options.job_manager_heap
        return self._java(
            JOB_MANAGER, "entrypoint.StandaloneSessionClusterEntrypoint", (f"-Xms{heap}m", f"-Xmx{heap}m")
        )

    def _task_manager(self, name: str) -> Command:
        options = self.options
        heap = FRAMEWORK_HEAP + options.task_heap
        direct = FRAMEWORK_OFF_HEAP + options.task_off_heap_memory + options.network_memory
        memory = (f"-Xms{heap}m", f"-Xmx{heap}m", f"-XX:MaxDirectMemorySize={direct}m")
        return self._java(name, "taskexecutor.TaskManagerRunner", memory, "-D", f"taskmanager.resource-id={name}")

    def _java(self, name: str, main_class: str, memory: tuple[str, ...], *arguments: str) -> Command:
        options = (*memory, f"-XX:MaxMetaspaceSize={METASPACE}m", *self.settings.jvm_options.split())
        java = self._java_with(options, self.process(name).log_file, "log4j-console.properties")
        command = (*java, f"org.apache.flink.runtime.{main_class}", "--configDir", str(self.configuration_directory))
        return Command((*command, *arguments), environment=self.environment(), working_directory=self.directory)

    def client(self, *arguments: str) -> list[str]:
        """The command of `flink` with these arguments; it needs the variables of `environment`."""
        options = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")  # it lives for seconds
        java = self._java_with(options, self.directory / "client.log", "log4j-cli.properties")
        return [*java, "org.apache.flink.client.cli.CliFrontend", *arguments]

    def _java_with(self, options: tuple[str, ...], log_file: Path, log4j: str) -> list[str]:
        return [
            str(java_home() / "bin" / "java"),
            *_module_options(self.flink_home).split(),
            *options,
            f"-Dlog.file={log_file}",
            f"-Dlog4j.configurationFile={(self.configuration_directory / log4j).as_uri()}",
            "-classpath",
            f"{self.flink_home / 'lib'}/*",
        ]

    def _configuration(self) -> dict[str, Any]:
        host, options = self.settings.host, self.options
        return {
            "env.java.opts.all": f"{_module_options(self.flink_home)} {self.settings.jvm_options}".rstrip(),
            "jobmanager.rpc.address": host,
            "jobmanager.rpc.port": self.settings.flink_rpc_port,
            "jobmanager.bind-host": host,
            "jobmanager.memory.heap.size": f"{options.job_manager_heap}m",
            "taskmanager.host": host,
            "taskmanager.bind-host": host,
            "taskmanager.numberOfTaskSlots": options.slots,
            "taskmanager.cpu.cores": float(options.slots),
            "taskmanager.memory.framework.heap.size": f"{FRAMEWORK_HEAP}m",
            "taskmanager.memory.framework.off-heap.size": f"{FRAMEWORK_OFF_HEAP}m",
            "taskmanager.memory.task.heap.size": f"{options.task_heap}m",
            "taskmanager.memory.task.off-heap.size": f"{options.task_off_heap_memory}m",
            "taskmanager.memory.managed.size": f"{options.managed_memory}m",
            "taskmanager.memory.network.min": f"{options.network_memory}m",
            "taskmanager.memory.network.max": f"{options.network_memory}m",
            "taskmanager.memory.jvm-metaspace.size": f"{METASPACE}m",
            "taskmanager.memory.jvm-overhead.min": f"{_jvm_overhead(options.task_manager_memory)}m",
            "taskmanager.memory.jvm-overhead.max": f"{_jvm_overhead(options.task_manager_memory)}m",
            "rest.address": host,
            "rest.bind-address": host,
            "rest.port": self.settings.flink_port,
            "rest.bind-port": self.settings.flink_port,
            "web.upload.dir": str(self.directory / "uploads"),
            "io.tmp.dirs": str(self.directory / "tmp"),
            "web.log.path": str(self.directory / f"{JOB_MANAGER}.log"),
            "heartbeat.interval": "1 s",
            "heartbeat.timeout": "6 s",
            "execution.checkpointing.dir": self.settings.checkpoints_dir.resolve().as_uri(),
            "execution.checkpointing.savepoint-dir": self.settings.savepoints_dir.resolve().as_uri(),
            "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
            "execution.checkpointing.num-retained": 3,
            "restart-strategy.type": options.restart,
            "restart-strategy.exponential-delay.initial-backoff": "500 ms",
            "restart-strategy.exponential-delay.max-backoff": "10 s",
            "python.executable": sys.executable,
            "python.client.executable": sys.executable,
        }

    # --- health

    def check(self) -> None:
        """All its TaskManagers are registered."""
        overview = get_json(self.settings.host, self.settings.flink_port, "/overview")
        registered, running = overview["taskmanagers"], len(self.task_managers())
        if registered < running:
            raise ConnectionError(f"{registered} of {running} TaskManagers are registered")


def _module_options(flink_home: Path) -> str:
    """The --add-opens that the distribution's own configuration passes to Java."""
    match = re.search(r"^\s+all: (--add-.*)$", (flink_home / "conf" / "config.yaml").read_text(), re.MULTILINE)
    if match is None:
        raise StackError(
            f"flink: no Java module options in {flink_home / 'conf' / 'config.yaml'}; run: streambank setup"
        )
    return match.group(1).strip()
