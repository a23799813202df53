"""`streambank soak`: run a system for long, kill everything meanwhile, and check every figure at the end."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.soak import Report
    from bench.soak_ledger import LedgerSoak
    from infra.settings import Settings
    from infra.stack.server import Server

LINE_SECONDS = 10.0

group = typer.Typer(no_args_is_help=True, help="Run for long, kill everything meanwhile, and check every figure.")


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="soak")


@group.command()
def ledger(
    transfers: Annotated[
        int, typer.Option(min=1_000, help="Transfers to send as frames.", envvar="STREAMBANK_SOAK_TRANSFERS")
    ] = 20_000_000,
    kills: Annotated[
        int, typer.Option(min=0, help="How many processes to kill meanwhile.", envvar="STREAMBANK_SOAK_KILLS")
    ] = 60,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Transfers and kills follow from it.", envvar="STREAMBANK_SOAK_SEED"),
    ] = 1,
    outage_seconds: Annotated[
        float,
        typer.Option(min=0, help="Longest time away before a restart.", envvar="STREAMBANK_SOAK_OUTAGE_SECONDS"),
    ] = 5.0,
    payments_per_second: Annotated[
        float,
        typer.Option(
            min=1, max=2_000, help="Payments through the API beside them.", envvar="STREAMBANK_SOAK_PAYMENTS_PER_SECOND"
        ),
    ] = 100.0,
    parallelism: Annotated[
        int, typer.Option(min=1, max=4, help="Subtasks of the job.", envvar="STREAMBANK_SOAK_PARALLELISM")
    ] = 1,
    only: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Kill only these of api, api-worker, cassandra, jobmanager, kafka, postgres, registry, "
            "sink-cassandra, sink-postgres, taskmanager, valkey.",
            envvar="STREAMBANK_SOAK_ONLY",
        ),
    ] = "",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the report there.", envvar="STREAMBANK_SOAK_JSON")
    ] = None,
) -> None:
    """Send transfers of all kinds at full speed while every process is killed in turn, then check all that must hold.

    Starts the servers that are not running, and job, API and sinks with topics, database and keyspace of their own,
    which are removed again when every check holds. Exit codes: 0 every check holds; 1 one does not, or the soak could
    not go on (data and logs stay, and are named); 2 wrong usage; 130 interrupted.
    """
    from bench.soak_ledger import LedgerSoak, SoakOptions

    options = SoakOptions(
        transfers=transfers,
        kills=kills,
        seed=seed,
        outage_seconds=outage_seconds,
        payments_per_second=payments_per_second,
        parallelism=parallelism,
        only=tuple(name.strip() for name in only.split(",") if name.strip()),
    )

    def run(world: _World) -> Report:
        soak = LedgerSoak(world.environment, world.servers, options, world.directory, world.say)
        with _display(soak, world.console):
            return soak.run()

    _soak(run, json_path)


@group.command()
def payments(
    seconds: Annotated[
        float,
        typer.Option(
            min=0, help="Whole rounds of faults until then, at least one.", envvar="STREAMBANK_SOAK_PAYMENTS_SECONDS"
        ),
    ] = 600.0,
    rate: Annotated[
        float, typer.Option(min=0.1, help="Payments a second.", envvar="STREAMBANK_SOAK_PAYMENTS_RATE")
    ] = 20.0,
    between: Annotated[
        int,
        typer.Option(min=1, help="Payments accepted between two faults.", envvar="STREAMBANK_SOAK_PAYMENTS_BETWEEN"),
    ] = 20,
    seed: Annotated[
        int, typer.Option(min=0, help="The faults' order follows from it.", envvar="STREAMBANK_SOAK_PAYMENTS_SEED")
    ] = 7,
    quick: Annotated[
        bool,
        typer.Option(
            help="Short rounds: processes in two lots, messages, all stores away, then Kafka.",
            envvar="STREAMBANK_SOAK_PAYMENTS_QUICK",
        ),
    ] = False,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the report there.", envvar="STREAMBANK_SOAK_PAYMENTS_JSON"),
    ] = None,
) -> None:
    """Kill everything that payments need, one after the other and again, and prove that nothing was lost.

    Starts the servers that are not running, and jobs, API, relays and the rest with topics, database and keyspace of
    their own, which are removed again when every check holds. Exit codes: 0 every check holds; 1 anything accepted has
    no final status, or two, money or notifications differ, or the soak could not go on (data and logs stay, and are
    named); 2 wrong usage; 130 interrupted.
    """
    from bench.deployment import free_ports
    from bench.receivers import Receivers
    from bench.soak_payments import PaymentsSoak, all_faults, payments_deployment, quick_faults

    def run(world: _World) -> Report:
        with (
            Receivers() as receivers,
            payments_deployment(
                world.environment, world.directory, receivers, free_ports(1)[0], say=world.say
            ) as deployment,
        ):  # fmt: skip
            return PaymentsSoak(
                deployment, world.servers, receivers, rate=rate, seconds=seconds, payments_between=between, seed=seed,
                faults=quick_faults if quick else all_faults, say=world.say,
            ).run()  # fmt: skip

    _soak(run, json_path)


@dataclass(frozen=True, slots=True)
class _World:
    """What a soak has to itself, and the servers that it may kill."""

    environment: Settings
    servers: dict[str, Server]
    directory: Path
    console: Console

    def say(self, what: str) -> None:
        self.console.print(f"[dim]{_clock()}[/] {what}", soft_wrap=True)


def _soak(run: Callable[[_World], Report], json_path: Path | None) -> None:
    """An environment of its own on running servers, the report, and the environment's end if all was well."""
    import shutil
    from uuid import uuid4

    from rich.console import Console

    from bench.deployment import drop
    from infra.settings import settings
    from infra.stack.stack import Stack, server_types

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    config = settings()
    unique = f"soak_{uuid4().hex[:8]}"
    environment = config.model_copy(
        update={"topic_prefix": f"{unique}.", "postgres_database": unique, "cassandra_keyspace": unique}
    )
    directory = config.data_dir.resolve() / "soak" / unique
    servers = {server.name: server for server in Stack(config, server_types()).servers}
    with _servers(config, console):
        ok = False
        try:
            console.print(f"logs: {directory}", soft_wrap=True)
            report = run(_World(environment, servers, directory, console))
            _print(report, console)
            if json_path is not None:
                json_path.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
            ok = report.ok
        finally:
            if ok:
                with console.status("removing the data"):
                    drop(environment)
                    for state in (config.checkpoints_dir, config.savepoints_dir):
                        for left in state.glob(f"{unique}.*"):
                            shutil.rmtree(left, ignore_errors=True)
                    shutil.rmtree(directory, ignore_errors=True)
            else:
                console.print(
                    f"[red]The data stay[/] under STREAMBANK_TOPIC_PREFIX={unique}. "
                    f"STREAMBANK_POSTGRES_DATABASE={unique} STREAMBANK_CASSANDRA_KEYSPACE={unique}; "
                    f"logs: {directory}",
                    soft_wrap=True,
                )
    if not ok:
        raise typer.Exit(1)


@contextmanager
def _servers(config: Settings, console: Console) -> Iterator[None]:
    """Run the block with the servers; stop afterwards what was started here."""
    from infra.setup import set_up
    from infra.stack.stack import Stack, server_types

    set_up(config)
    started = [server.name for server in Stack(config, server_types()).servers if server.pid is None]
    try:
        if started:
            with console.status("starting servers"):
                Stack(config, started).up(lambda name, event: console.print(f"[dim]{_clock()}[/] {name} {event}"))
        yield
    finally:
        if started:
            with console.status("stopping servers"):
                Stack(config, started).down()


@contextmanager
def _display(soak: LedgerSoak, console: Console) -> Iterator[None]:
    """A bar at a terminal, else a line every ten seconds."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    done = threading.Event()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[more]}"),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("transfers", total=soak.options.transfers, more="")

        def show() -> None:
            previous: tuple[float, int] | None = None
            while not done.wait(0.5 if console.is_terminal else LINE_SECONDS):
                load, watch, disturbance = soak.load, soak.watch, soak.disturbance
                if load is None or watch is None or disturbance is None:
                    continue
                now = time.monotonic(), load.acknowledged_transfers
                rate = (now[1] - previous[1]) / (now[0] - previous[0]) if previous else 0.0
                previous = now
                away = ", ".join(sorted(disturbance.away))
                more = (
                    f"{rate:,.0f}/s, {watch.waiting_frames:,} frames on their way, "
                    f"{len(disturbance.happened)} of {soak.options.kills} kills{f', away: {away}' if away else ''}"
                )
                progress.update(task, completed=now[1], more=more)
                if not console.is_terminal and load.is_alive():
                    console.print(f"[dim]{_clock()}[/] {now[1]:,} transfers, {more}")

        shower = threading.Thread(target=show, name="display", daemon=True)
        shower.start()
        try:
            yield
        finally:
            done.set()
            shower.join(5)


def _print(report: Report, console: Console) -> None:
    from rich.table import Table

    from infra.cli.verify import figure

    table = Table("soak", "", show_lines=False)
    for name, value in report.figures.items():
        table.add_row(name, f"{value:,}")
    table.add_section()
    for name, times in sorted(report.times().items()):
        seconds = [fault.seconds for fault in report.faults if fault.name == name]
        table.add_row(name, f"{times} times, back after {min(seconds):.1f} to {max(seconds):.1f} s")
    table.add_section()
    for name, count in sorted(report.answers.items(), key=lambda found: -found[1]):
        table.add_row(f"answered {name}", f"{count:,}")
    console.print(table)
    checks = Table("what must hold", "expected", "found", "")
    for check in report.checks:
        verdict = "[green]✓" if check.ok else f"[red]✗[/] {check.detail}"
        checks.add_row(check.name, _short(check.expected, figure), _short(check.found, figure), verdict)
    console.print(checks)


def _short(value: Any, render: Callable[[Any], str]) -> str:
    """Large maps by their size: those of sums have a row for each ledger."""
    return render(value) if not isinstance(value, dict) or len(value) <= 8 else f"{len(value)} rows"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
