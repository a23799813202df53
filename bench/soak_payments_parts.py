"""Payments with everything around them, as an operator runs it: three jobs, API, relays, sinks, clock, scorer and
notifier, and the mail server and webhook receiver that notifications go to.

Every part is a process of its own that can be killed as a crash would and brought back. The receivers live in this
process; they refuse now and then, so that deliveries are tried again, and remember every notification they took.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
import psutil
from standardwebhooks import Webhook

from infra import topics
from infra.flink_jobs import LATEST, Submission, job_file, job_name, submit
from infra.flink_rest import FlinkRest
from infra.migrations.cassandra_migrations import migrate_cassandra
from infra.migrations.postgres_migrations import migrate_postgres
from infra.registry import SchemaRegistry
from infra.settings import PROJECT_ROOT, Settings
from infra.stack.process import Command, ServerProcess
from infra.stack.server import is_taken
from jobs.payments_clock import send_command
from pipelines.catalogue import PAYMENTS_SHARDS, TOPICS
from pipelines.errors import StreambankError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["JOBS", "SINKS", "PartsError", "PaymentsParts", "Receivers", "wait_until"]

JOBS: Final = ("ledger", "payments", "fraud")
SINKS: Final = (
    "payments-to-ledger", "ledger-to-payments", "payments-to-fraud", "fraud-to-payments", "rescores-to-payments",
    "payments-notifications", "fraud-cases", "fraud-notifications", "postgres-payments", "cassandra-payments",
)  # fmt: skip
CHECKPOINT_INTERVAL: Final = "1 s"
STOP_SECONDS: Final = 30.0
READY_SECONDS: Final = 300.0
REFUSED_EACH: Final = 10
"""The receivers refuse the first try of one notification in so many."""


class PartsError(StreambankError):
    """A part did not start, did not come back, or ended by itself."""


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Ask twice a second; an error counts as "not yet". Raises `PartsError`."""
    deadline = time.monotonic() + seconds
    while True:
        last: object = None
        try:
            last = condition()
            if last:
                return
        except (StreambankError, OSError, httpx.HTTPError) as error:
            last = error
        if time.monotonic() > deadline:
            raise PartsError(f"not within {seconds:g} s: {what}; last: {last}")
        time.sleep(0.5)


class Receivers:
    """A mail server and a receiver of webhooks on loopback; a context manager. Thread-safe enough to be read at rest.

    ``mails`` and ``hooks``: how often each notification was taken, by its id; ``wrong``: what should never come.
    """

    def __init__(self) -> None:
        self.mails: Counter[str] = Counter()
        self.hooks: Counter[str] = Counter()
        self.secrets: dict[str, str] = {}
        """Path of a webhook -> its signing secret."""
        self.wrong: list[str] = []
        self.smtp_port = _free_ports(1)[0]
        self.url = ""
        self._data: dict[str, Any] = {}
        self._refused: set[str] = set()
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            self.url = starting.enter_context(self._webhooks())
            starting.enter_context(self._mail_server())
            self._ending = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    def refuses(self, name: str) -> bool:
        """Whether this try is refused: the first one of some."""
        if name in self._refused or sum(name.encode()) % REFUSED_EACH:
            return False
        self._refused.add(name)
        return True

    def take_hook(self, path: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status that a webhook is answered with."""
        message_id = headers.get("webhook-id", "")
        try:
            payload = Webhook(self.secrets[path]).verify(body, dict(headers))
        except Exception as error:  # whatever it is, it must not come
            self.wrong.append(f"{path}: {message_id}: {error!r}")
            return 400
        if self.refuses(f"hook {message_id}"):
            return 500
        self.hooks[message_id] += 1
        if self._data.setdefault(message_id, payload) != payload:
            self.wrong.append(f"{message_id} came with other contents: {payload}")
        return 200

    @contextmanager
    def _webhooks(self) -> Iterator[str]:
        receivers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receivers.take_hook(self.path, body, {k.lower(): v for k, v in self.headers.items()})
                with suppress(OSError):  # the notifier was killed, or did not wait
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)

    @contextmanager
    def _mail_server(self) -> Iterator[None]:
        try:
            from aiosmtpd.controller import Controller
        except ImportError as error:
            raise StreambankError("the mail server of soaks needs aiosmtpd; run `make setup`") from error
        controller = Controller(_Mailbox(self), hostname="127.0.0.1", port=self.smtp_port)
        controller.start()
        try:
            yield
        finally:
            controller.stop()


class _Mailbox:
    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        message_id = str(message_from_bytes(envelope.content)["Message-ID"]).strip("<>").partition(".")[0]
        if self._receivers.refuses(f"mail {message_id}"):
            return "451 try later"
        self._receivers.mails[message_id] += 1
        return "250 OK"


class PaymentsParts:
    """The parts over the servers of ``settings``, which must run; a context manager that stops them all.

    ``directory`` is for logs, pid files and the API's keys. The scorer looks for a model
    server at ``model_port``.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        receivers: Receivers,
        *,
        api_workers: int = 2,
    ) -> None:
        api_port, notifier_port, scorer_port, self.model_port, *ports = _free_ports(4 + len(SINKS))
        self.settings = settings.model_copy(
            update={
                "api_port": api_port, "data_dir": directory, "webhook_allowed_networks": "127.0.0.1/32",
                "webhook_allow_http": True,
            }
        )  # fmt: skip
        """What the processes run with; ``data_dir`` is theirs."""
        self.servers_settings = settings
        self.receivers = receivers
        self._arguments: dict[str, tuple[str, ...]] = {
            "api": ("api", "--workers", str(api_workers)),
            "clock": ("payments", "clock"),
            "notifier": ("notifier",),
            "score": ("score", "--web-port", str(scorer_port)),
        } | {name: ("sink", name, "--web-port", str(port)) for name, port in zip(SINKS, ports, strict=True)}
        self._variables: dict[str, dict[str, str]] = {
            "api": {"STREAMBANK_API_EVENTS_PER_MINUTE": "1000000000"},
            "notifier": {
                f"STREAMBANK_NOTIFIER_{name}": value
                for name, value in {
                    "WEB_PORT": str(notifier_port), "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(receivers.smtp_port),
                    "SMTP_SECURITY": "none", "RETRY_SECONDS": json.dumps([0.5, 1, 2, 2, 5, 5, 10, 10]),
                    "ATTEMPT_SECONDS": "5", "LEASE_SECONDS": "10", "POLL_SECONDS": "0.2",
                }.items()
            },
            # there need not be one: payments are then decided without a score
            "score": {"STREAMBANK_MODEL_SERVER": f"http://127.0.0.1:{self.model_port}"},
        }  # fmt: skip
        self.processes = {name: ServerProcess(name, directory) for name in self._arguments}
        self._directory = directory

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        topics.apply(self.settings)
        with SchemaRegistry(self.settings) as registry:
            for topic in TOPICS.values():
                registry.register(topic)
        migrate_postgres(self.settings)
        migrate_cassandra(self.settings)
        try:
            for name in self.processes:
                self.start(name)
            self.submit_jobs()
            self.wait_ready()
            self.require_alive()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str) -> None:
        """Start a process; returns at once."""
        environment = {
            f"STREAMBANK_{key.upper()}": str(value) for key, value in self.settings.model_dump().items()
            if value is not None
        }  # fmt: skip
        command = (sys.executable, "-c", "from infra.cli import main; main()", *self._arguments[name])
        self.processes[name].start(
            Command(command, environment=environment | self._variables.get(name, {}), working_directory=PROJECT_ROOT)
        )

    def kill(self, name: str) -> None:
        """SIGKILL to a process and its children."""
        self.processes[name].kill()

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def kill_api_worker(self) -> None:
        """SIGKILL to one of the API's workers; the API starts another."""
        process = self.processes["api"].find()
        with suppress(psutil.NoSuchProcess):
            for worker in (process.children() if process else [])[:1]:
                worker.kill()

    def submit(self, pipeline: str) -> None:
        """Submit a job, from its newest checkpoint if there is one, unless it is there; tried until it is taken."""
        name = job_name(pipeline, self.servers_settings)
        has_state = any((self.servers_settings.checkpoints_dir / name).glob("*/chk-*/_metadata"))
        submission = Submission(job_file(pipeline), name, 1, LATEST if has_state else None, CHECKPOINT_INTERVAL)

        def is_there() -> bool:
            with FlinkRest(self.servers_settings) as flink:
                if any(job.name == name and not job.is_terminal for job in flink.jobs()):
                    return True
            submit(submission, self.servers_settings)
            return True

        wait_until(is_there, READY_SECONDS, f"job {pipeline} is taken")

    def submit_jobs(self) -> None:
        """Submit the jobs that are not there: a JobManager that was away has forgotten its jobs."""
        with ThreadPoolExecutor(len(JOBS)) as pool:
            list(pool.map(self.submit, JOBS))

    def wait_ready(self) -> None:
        url = f"{self.settings.api_url}/health/ready"
        wait_until(lambda: httpx.get(url, timeout=5, trust_env=False).status_code == 200, READY_SECONDS, "API")

    def require_alive(self) -> None:
        """Raises `PartsError` with the last lines of a process that ended by itself."""
        for name, process in self.processes.items():
            if process.pid is None:
                tail = "\n".join(f"  | {line}" for line in process.log_tail(15))
                raise PartsError(f"{name} ended; last lines of {process.log_file}:\n{tail}")

    def rules(self, ledger: int, **rules: Any) -> None:
        """Set the rules of a ledger."""
        send_command(self.settings, ledger % PAYMENTS_SHARDS, {"type": "PaymentRules", "ledger": ledger, **rules})

    def stop(self) -> None:
        with ThreadPoolExecutor(len(self.processes)) as pool:
            list(pool.map(lambda process: process.stop(STOP_SECONDS), self.processes.values()))
        names = {job_name(job, self.servers_settings) for job in JOBS}
        with suppress(StreambankError, httpx.HTTPError), FlinkRest(self.servers_settings) as flink:
            for job in flink.jobs():
                if job.name in names and not job.is_terminal:
                    flink.cancel(job)


def _free_ports(count: int) -> list[int]:
    """Below the range from which outgoing connections take theirs, so that they stay free until somebody listens."""
    candidates = random.sample(range(20_000, 30_000), 20 * count)
    return list(islice((port for port in candidates if not is_taken("127.0.0.1", port)), count))
