"""`streambank demo`: everything at once - set up, start, load for a minute, check, show the figures, stop.

What the demo starts it stops, at its end, on an error and on Ctrl-C or SIGTERM at any moment; servers that were
already running stay. Its data stay too, so a second demo goes on from the first one's state.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from infra.flink_rest import Job
    from infra.settings import Settings
    from infra.stack.process import ServerProcess
    from infra.stack.stack import Stack
    from jobs.latency import LatencyProbe
    from jobs.verify import Verification
    from models.load import LoadProgress

CHILD_STOP_SECONDS: Final = 25.0
READY_SECONDS: Final = 600.0
"""Generous: the first job and sink of a clone compile their kernels, on whatever machine this is."""


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    seconds: Annotated[
        float, typer.Option(min=1, help="How long to send payments.", envvar="STREAMBANK_DEMO_SECONDS")
    ] = 60.0,
    rate: Annotated[float, typer.Option(min=1, help="Payments a second.", envvar="STREAMBANK_DEMO_RATE")] = 2000.0,
    batch: Annotated[
        int, typer.Option(min=1, max=2000, help="Payments per request.", envvar="STREAMBANK_DEMO_BATCH")
    ] = 50,
    keep: Annotated[
        bool | None,
        typer.Option(
            help="Keep everything running until Enter or Ctrl-C; default: if there is a terminal.",
            envvar="STREAMBANK_DEMO_KEEP",
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the figures there.", envvar="STREAMBANK_DEMO_JSON")
    ] = None,
) -> None:
    """Run the whole system on a minute of simulated card payments and check every figure.

    Starts the local stack, applies migrations, schemas and topics, starts API, ledger job and both sinks, sends
    payments through the API, waits until they have arrived in Postgres and Cassandra, and compares everything with a
    replay of the log. Exit code 1 if anything was lost, refused by the API or differs.
    """
    from rich.console import Console

    from infra.settings import settings

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    with _interruptible():
        run = _Demo(settings(), console)
        try:
            ok = run.run(seconds, rate, batch, json_path)
            if sys.stdin.isatty() if keep is None else keep:
                console.print("Everything is still running; press Enter (or Ctrl-C) to stop it.")
                try:
                    sys.stdin.readline()
                except KeyboardInterrupt:
                    console.print()
        finally:
            run.stop()
    if not ok:
        raise typer.Exit(1)


class _Demo:
    """The steps of the demo and what they have started so far."""

    def __init__(self, config: Settings, console: Console) -> None:
        from infra.stack.process import ServerProcess
        from infra.stack.stack import Stack

        self.config = config
        self.console = console
        directory = config.data_dir.resolve() / "demo"
        self.children: dict[str, ServerProcess] = {
            name: ServerProcess(name, directory) for name in ("api", "submit", "sink-postgres", "sink-cassandra")
        }
        self.stack: Stack = Stack(config)
        self.started_servers: list[str] = []
        self.submitted = False

    # --- the run

    def run(self, seconds: float, rate: float, batch: int, json_path: Path | None) -> bool:
        from infra.cli.load import local_credentials, make_plan, progress_table
        from jobs.latency import LatencyProbe
        from jobs.verify import Backlog, verify, wait_drained
        from models.load import ApiTarget, LoadProgress, Pace, load_api

        begin = time.monotonic()
        config = self.config
        self._start_servers()
        self._prepare()
        client_id, secret = local_credentials(config)
        self._start_children()
        with self._step("simulated card payments"):
            run_number = time.time_ns() // 1000
            plan = make_plan(run_number, int(seconds * rate), 0.1, self.console)
        self._wait_ready()
        ready_seconds = time.monotonic() - begin

        progress = LoadProgress(len(plan.payments))
        backlog = Backlog(0, {})
        target = ApiTarget(config.api_url, client_id, secret, connections=16)
        pace = Pace(rate=rate, seconds=seconds + 30, batch=batch)
        with LatencyProbe(config, since=lambda: progress.started_at or math.inf) as probe:
            with self._display(lambda: _running_table(progress_table(progress), probe), progress):
                import asyncio

                asyncio.run(load_api(plan, target, pace, progress))

            def report(now: Backlog) -> None:
                nonlocal backlog
                backlog = now

            with self._step("waiting for the sinks"):
                wait_drained(config, 180.0, report)
        with self._step("replaying the log and comparing"):
            found = verify(config)
        self._require_children_alive()
        found.check("frames still on their way: job, sinks", (0, 0), (backlog.job, sum(backlog.sinks.values())))
        self._print_result(progress, probe, found)
        self.console.print(
            f"Ready after {ready_seconds:.0f} s, all in {time.monotonic() - begin:.0f} s. Logs: {config.data_dir}"
        )
        if json_path is not None:
            figures = {
                "load": progress.as_json(),
                "latency_ms": probe.percentiles_ms(),
                "verification": found.as_json(),
                "ready_seconds": round(ready_seconds, 1),
            }
            json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        return found.ok and progress.failed_events == 0 and progress.acknowledged_events == progress.sent_events

    def _start_servers(self) -> None:
        from infra.setup import set_up

        with self._step("set-up"):
            set_up(self.config, lambda step: self._say(step) if ": " not in step else None)
        with self._step("servers"):
            for process in self.children.values():
                process.stop(CHILD_STOP_SECONDS)  # left over from a demo that was killed
            self._require_free_ports()
            running = {server.name for server in self.stack.servers if server.pid is not None}
            self.started_servers = [server.name for server in self.stack.servers if server.name not in running]
            self.stack.up(lambda name, event: self._say(f"{name} {event}"))

    def _prepare(self) -> None:
        from infra import topics
        from infra.migrations.cassandra_migrations import migrate_cassandra
        from infra.migrations.postgres_migrations import migrate_postgres
        from infra.registry import register as register_schema
        from pipelines.catalogue import TOPICS

        with self._step("migrations"):
            migrate_postgres(self.config)
            migrate_cassandra(self.config)
        with self._step("schemas and topics"):
            for topic in TOPICS.values():
                register_schema(topic, self.config)
            topics.apply(self.config)

    def _start_children(self) -> None:
        from infra.flink_jobs import LATEST, job_name, latest_state
        from infra.flink_rest import JobNotFound

        if self._job() is None:
            try:
                latest_state(job_name("ledger", self.config), self.config)
                state = ["--from-savepoint", LATEST]
            except JobNotFound:
                state = []
            self.submitted = True
            self._start("submit", "submit", "ledger", "--parallelism", "2", *state)
        self._start("api", "api")
        self._start("sink-postgres", "sink", "postgres")
        self._start("sink-cassandra", "sink", "cassandra")

    def _start(self, name: str, *arguments: str) -> None:
        from infra.stack.process import streambank_command

        self.children[name].start(streambank_command(self.config, *arguments))

    # --- waiting

    def _wait_ready(self) -> None:
        host, web = self.config.host, self.config.faust_web_port
        self._wait("api", lambda: _answers(f"{self.config.api_url}/health/ready"))
        self._wait("ledger job", self._job_runs)
        self._wait("sink-postgres", lambda: _answers(f"http://{host}:{web}/health"))
        self._wait("sink-cassandra", lambda: _answers(f"http://{host}:{web + 1}/health"))

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        from pipelines.errors import StreambankError

        with self._step(what):
            deadline = time.monotonic() + READY_SECONDS
            while not ready():
                self._require_children_alive()
                if time.monotonic() > deadline:
                    raise StreambankError(f"{what} is not ready after {READY_SECONDS:.0f} s; see {self._logs()}")
                time.sleep(0.2)

    def _job(self) -> Job | None:
        """The ledger job, unless it has ended."""
        from infra.flink_jobs import job_name
        from infra.flink_rest import FlinkRest

        name = job_name("ledger", self.config)
        with FlinkRest(self.config) as flink:
            return next((job for job in flink.jobs() if job.name == name and not job.is_terminal), None)

    def _job_runs(self) -> bool:
        job = self._job()
        return job is not None and job.is_serving

    def _job_may_run(self) -> bool:
        """On a busy machine the submission may give up waiting while the job is still compiling."""
        job = self._job()
        return job is not None and job.state in {"INITIALIZING", "CREATED", "RUNNING"}

    def _require_children_alive(self) -> None:
        """The submission alone ends by itself; should it have failed, there is no job and its log says why."""
        from pipelines.errors import StreambankError

        for name, process in self.children.items():
            if process.was_started and process.pid is None and (name != "submit" or not self._job_may_run()):
                tail = "\n".join(f"  | {line}" for line in process.log_tail(15))
                raise StreambankError(f"{name} ended; last lines of {process.log_file}:\n{tail}")

    def _require_free_ports(self) -> None:
        from infra.stack.server import is_taken, listener_on
        from pipelines.errors import StreambankError

        config = self.config
        for what, port, variable in (
            ("the API", config.api_port, "STREAMBANK_API_PORT"),
            ("the Postgres sink's page", config.faust_web_port, "STREAMBANK_FAUST_WEB_PORT"),
            ("the Cassandra sink's page", config.faust_web_port + 1, "STREAMBANK_FAUST_WEB_PORT"),
        ):
            if is_taken(config.host, port):
                raise StreambankError(
                    f"port {port} of {what} is taken by {listener_on(port)}; stop it, or choose another with {variable}"
                )

    def _logs(self) -> Path:
        return self.config.data_dir / "demo"

    # --- showing

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        begin = time.monotonic()
        with self.console.status(what):
            yield
        self.console.print(f"[green]✓[/] {what} [dim]{time.monotonic() - begin:.1f} s[/]")

    def _say(self, what: str) -> None:
        self.console.print(f"  [dim]{what}[/]")

    @contextmanager
    def _display(self, render: Callable[[], Any], progress: LoadProgress) -> Iterator[None]:
        """A live table at a terminal, else a line every ten seconds."""
        import threading

        from infra.cli.load import live

        done = threading.Event()

        def lines() -> None:
            while not done.wait(10):
                self._say(
                    f"{progress.seconds:.0f} s: {progress.acknowledged_events:,} of {progress.planned_events:,} "
                    f"payments accepted, {progress.events_per_second:,.0f}/s"
                )

        narrator = threading.Thread(target=lines, name="progress", daemon=True)
        if not self.console.is_terminal:
            narrator.start()
        try:
            with live(self.console, render):
                yield
        finally:
            done.set()
        self.console.print(f"[green]✓[/] load [dim]{progress.seconds:.1f} s[/]")

    def _print_result(self, progress: LoadProgress, probe: LatencyProbe, found: Verification) -> None:
        from rich.table import Table

        figures, latency = found.figures, probe.percentiles_ms()
        table = Table("Streambank", "", show_lines=False)
        table.add_row(
            "events accepted",
            f"{progress.acknowledged_events + progress.setup_done:,} "
            f"({progress.acknowledged_events:,} payments, {progress.setup_done:,} accounts and fundings)",
        )
        table.add_row(
            "payments/s, ms to 202", f"{progress.events_per_second:,.0f}, {_milliseconds(progress.latency_ms())}"
        )
        if progress.sent_events < progress.planned_events:
            planned = f"{progress.sent_events:,} of {progress.planned_events:,}"
            table.add_row("sent in time", f"[yellow]{planned}: this machine is too slow, or too busy, for the rate")
        table.add_section()
        table.add_row("in the log: command frames, commands", f"{figures['command frames']:,}, {figures['commands']:,}")
        for name in ("created", "refused", "repeated commands (exists)"):
            table.add_row(f"applied: {name}", f"{figures[name]:,}")
        for name in ("postgres accounts", "postgres transfers", "cassandra statement rows"):
            table.add_row(f"rows: {name}", f"{figures[name]:,}")
        table.add_section()
        for name, what in (
            ("result", "payment accepted → result in Kafka"),
            ("postgres", "payment accepted → row in Postgres"),
            ("cassandra", "payment accepted → row in Cassandra"),
        ):
            table.add_row(f"{what}, ms", _milliseconds(latency.get(name, {})))
        if probe.error:
            table.add_row("latency", f"[red]not measured to the end: {probe.error}")
        self.console.print(table)

        checks = Table("invariant", "replay of the log", "running system", "")
        for check in found.checks:
            from infra.cli.verify import figure

            verdict = "[green]✓" if check.ok else f"[red]✗[/] {check.detail}"
            checks.add_row(check.name, figure(check.expected), figure(check.found), verdict)
        self.console.print(checks)
        self.console.print(
            f"API docs {self.config.api_url}/docs   Flink {self.config.flink_url}   "
            f"registry {self.config.registry_url}   Postgres {self.config.postgres_dsn}"
        )

    # --- stopping

    def stop(self) -> None:
        """Stop what the demo started; a second Ctrl-C does not stop the stopping."""
        import contextlib
        from concurrent.futures import ThreadPoolExecutor

        from infra.flink_rest import FlinkRest
        from infra.stack.stack import Stack

        previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self.console.status("stopping what the demo has started"):
                with ThreadPoolExecutor(len(self.children)) as pool:
                    list(pool.map(lambda process: process.stop(CHILD_STOP_SECONDS), self.children.values()))
                if self.submitted:
                    with contextlib.suppress(Exception), FlinkRest(self.config) as flink:
                        job = self._job()
                        if job is not None:
                            flink.cancel(job)  # its last checkpoint stays, the next demo goes on from it
                if self.started_servers:
                    Stack(self.config, self.started_servers).down()
            self.console.print("Stopped." if self.started_servers else "Stopped; the servers keep running.")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _running_table(table: Any, probe: LatencyProbe) -> Any:
    for name, latency in probe.percentiles_ms().items():
        table.add_row(f"ms to {name}", _milliseconds(latency))
    return table


def _milliseconds(latency: dict[str, float]) -> str:
    return ", ".join(f"{name} {latency[name]:,.1f}" for name in ("p50", "p99") if name in latency) or "not measured"


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=3, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
