"""Flink: a session cluster of one JobManager and some TaskManagers, from the ``apache-flink`` wheel.

Ports but those of the REST API and the JobManager's RPC are chosen by the system, so several clusters run side by side.
Heartbeats are tuned to notice a lost TaskManager after 6 s. Checkpoints are retained when a job is cancelled, because
without high availability a lost JobManager forgets its jobs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.settings import Settings
from infra.stack.errors import PrerequisiteError, StackError
from infra.stack.java import java_home
from infra.stack.probes import get_json
from infra.stack.process import Command, ServerProcess
from infra.stack.server import Port, Server

__all__ = ["Flink", "FlinkOptions"]

JOB_MANAGER = "jobmanager"

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


class FlinkOptions(BaseSettings):
    """Size and failure behaviour of the cluster; each is also an environment variable STREAMBANK_FLINK_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="STREAMBANK_FLINK_", frozen=True)

    task_managers: int = Field(1, ge=1, le=16, description="TaskManagers to start.")
    slots: int = Field(4, ge=1, le=64, description="Slots of each TaskManager.")
    job_manager_memory: str = Field("960m", description="Process memory of the JobManager.")
    task_manager_memory: str = Field("2112m", description="Process memory of each TaskManager.")
    task_off_heap_memory: str = Field("256m", description="Part of it for NumPy arrays, which Flink does not count.")
    managed_memory: str = Field("512m", description="Part of it for RocksDB.")
    network_memory: str = Field("64m", description="Part of it for network buffers.")
    restart: Literal["exponential-delay", "none"] = Field(
        "exponential-delay", description="What a failed job does; none shows the failure at once."
    )
    configuration: dict[str, str] = Field(default_factory=dict, description="Further keys of Flink's config.yaml.")


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
        """Environment for Flink's scripts and for PyFlink clients of this cluster."""
        return {
            "FLINK_HOME": str(self.flink_home),
            "FLINK_CONF_DIR": str(self.configuration_directory),
            "FLINK_LOG_DIR": str(self.directory),
            "FLINK_PID_DIR": str(self.directory / "pids"),
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
        process.start(self._command("taskmanager.sh", f"-Dtaskmanager.resource-id={process.name}"))
        return process

    def prepare(self) -> None:
        if not (self.flink_home / "bin" / "jobmanager.sh").exists():
            raise PrerequisiteError(f"flink: {self.flink_home} is not set up; run: streambank setup")
        for directory in ("conf", "pids", "tmp", "uploads"):
            (self.directory / directory).mkdir(parents=True, exist_ok=True)
        for storage in (self.settings.checkpoints_dir, self.settings.savepoints_dir):
            storage.mkdir(parents=True, exist_ok=True)
        configuration = {**self._configuration(), **self.options.configuration}
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in configuration.items()]
        (self.configuration_directory / "config.yaml").write_text("".join(lines))
        for name in ("log4j-console.properties", "log4j-cli.properties", "log4j.properties"):
            (self.configuration_directory / name).write_text(LOG4J)

    def commands(self) -> Mapping[str, Command]:
        commands = {JOB_MANAGER: self._command("jobmanager.sh")}
        for process in self.processes()[1:]:
            commands[process.name] = self._command("taskmanager.sh", f"-Dtaskmanager.resource-id={process.name}")
        return commands

    def _command(self, script: str, *arguments: str) -> Command:
        return Command(
            (str(self.flink_home / "bin" / script), "start-foreground", *arguments),
            environment=self.environment(),
            working_directory=self.directory,
        )

    def _configuration(self) -> dict[str, Any]:
        host, options = self.settings.host, self.options
        return {
            "env.java.opts.all": f"{_module_options(self.flink_home)} {self.settings.jvm_options}".rstrip(),
            "jobmanager.rpc.address": host,
            "jobmanager.rpc.port": self.settings.flink_rpc_port,
            "jobmanager.bind-host": host,
            "jobmanager.memory.process.size": options.job_manager_memory,
            "taskmanager.host": host,
            "taskmanager.bind-host": host,
            "taskmanager.numberOfTaskSlots": options.slots,
            "taskmanager.memory.process.size": options.task_manager_memory,
            "taskmanager.memory.task.off-heap.size": options.task_off_heap_memory,
            "taskmanager.memory.managed.size": options.managed_memory,
            "taskmanager.memory.network.min": options.network_memory,
            "taskmanager.memory.network.max": options.network_memory,
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
