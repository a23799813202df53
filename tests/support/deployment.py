"""The whole of Streambank on the test servers: api, ledger job and both sinks as the processes an operator starts."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from infra.flink_rest import FlinkRest
from infra.settings import Settings
from tests.support.stack import free_ports, variables
from tests.support.waiting import wait_until

STREAMBANK = Path(sys.executable).with_name("streambank")


class Service:
    """A `streambank` command that runs until it is stopped; its output goes to a file."""

    def __init__(self, environment: Settings, directory: Path, name: str, *arguments: str) -> None:
        self.name = name
        self.log_file = directory / f"{name.replace(' ', '-')}.log"
        self._environment = environment
        self.arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [STREAMBANK, *self.arguments],
                env=variables(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def require_alive(self) -> None:
        code = self.process.poll()
        assert code is None, f"{self.name} exited with {code}:\n{self.log_file.read_text()[-3000:]}"

    def kill(self) -> None:
        """SIGKILL to the process and all its children: what a crash of its container would do."""
        with suppress(psutil.NoSuchProcess):
            main = psutil.Process(self.process.pid)
            family = [main, *main.children(recursive=True)]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, 30)
        self.process.wait(30)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is left after a while."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self.kill()


class Deployment:
    """Everything that turns a request into rows; a context manager that leaves nothing running."""

    def __init__(self, environment: Settings, directory: Path, *, api_workers: int = 2) -> None:
        api_port, *web_ports = free_ports(3)
        self.environment = environment.model_copy(update={"api_port": api_port})
        make = self._service_maker(directory)
        self.api = make("api", "api", "--workers", str(api_workers))
        self.postgres_sink = make("sink postgres", "sink", "postgres", "--web-port", str(web_ports[0]))
        self.cassandra_sink = make("sink cassandra", "sink", "cassandra", "--web-port", str(web_ports[1]))
        self.services = (self.api, self.postgres_sink, self.cassandra_sink)

    def _service_maker(self, directory: Path):  # type: ignore[no-untyped-def]
        return lambda name, *arguments: Service(self.environment, directory, name, *arguments)

    def run(self, *arguments: str, timeout: float = 180) -> str:
        """Run one `streambank` command to its end and return what it printed; it must succeed."""
        done = subprocess.run(
            [STREAMBANK, *arguments],
            env=variables(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"streambank {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.environment.api_url}/health/ready", timeout=2) as answer:  # noqa: S310
                return bool(json.load(answer)) and answer.status == 200
        except OSError:
            return False

    def __enter__(self) -> Self:
        self.run("migrate")
        self.run("topics", "apply")
        self.run("schemas", "register")
        try:
            for service in self.services:
                service.start()
            self.run("submit", "ledger", "--checkpoint-interval", "1 s")
            wait_until(self.ready, 60, "the api is ready")
            for service in self.services:
                service.require_alive()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        for service in self.services:
            service.stop()
        with suppress(Exception), FlinkRest(self.environment) as flink:
            for job in flink.jobs():
                if job.name == self.environment.kafka_topic("ledger") and not job.is_terminal:
                    flink.cancel(job)
