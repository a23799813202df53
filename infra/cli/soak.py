"""`streambank soak`: run a system for long, kill everything meanwhile, and check every figure at the end."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.soak import Soak, SoakResult
    from infra.settings import Settings

LINE_SECONDS = 10.0

group = typer.Typer(no_args_is_help=True, help="Run for long, kill everything meanwhile, and check every figure.")


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="soak")


@group.callback()
def _soak() -> None:
    """A group also while there is one command."""


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
        Path | None, typer.Option("--json", help="Write the result there.", envvar="STREAMBANK_SOAK_JSON")
    ] = None,
) -> None:
    """Send transfers of all kinds at full speed while every process is killed in turn, then check all that must hold.

    Starts the servers that are not running, and job, API and sinks with topics, database and keyspace of their own,
    which are removed again when every check holds. Exit codes: 0 every check holds; 1 one does not, or the soak could
    not go on (data and logs stay, and are named); 2 wrong usage; 130 interrupted.
    """
    from uuid import uuid4

    from rich.console import Console

    from bench.soak import Soak, SoakOptions, remove
    from bench.soak_parts import Parts
    from infra.settings import settings

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    config = settings()
    options = SoakOptions(
        transfers=transfers,
        kills=kills,
        seed=seed,
        outage_seconds=outage_seconds,
        payments_per_second=payments_per_second,
        parallelism=parallelism,
        only=tuple(name.strip() for name in only.split(",") if name.strip()),
    )
    unique = f"soak_{uuid4().hex[:8]}"
    environment = config.model_copy(
        update={"topic_prefix": f"{unique}.", "postgres_database": unique, "cassandra_keyspace": unique}
    )
    directory = config.data_dir.resolve() / "soak" / unique
    Parts(environment, directory).require_free_ports()
    with _servers(config, console):
        ok = False
        try:
            soak = Soak(environment, options, directory, lambda what: console.print(f"[dim]{_clock()}[/] {what}"))
            with _display(soak, console):
                result = soak.run()
            _print(result, console)
            if json_path is not None:
                json_path.write_text(json.dumps(result.as_json(), indent=2) + "\n", encoding="utf-8")
            ok = result.ok
        finally:
            if ok:
                with console.status("removing the data"):
                    remove(environment, directory)
            else:
                console.print(
                    f"[red]The data stay[/] under STREAMBANK_TOPIC_PREFIX={unique}. "
                    f"STREAMBANK_POSTGRES_DATABASE={unique} STREAMBANK_CASSANDRA_KEYSPACE={unique}, logs in {directory}"
                )
    if not ok:
        raise typer.Exit(1)


@contextmanager
def _servers(config: Settings, console: Console) -> Iterator[None]:
    """Run the block with the servers; stop afterwards what was started here."""
    from bench.soak_parts import SERVERS
    from infra.setup import set_up
    from infra.stack.stack import Stack

    set_up(config)
    started = [server.name for server in Stack(config, SERVERS).servers if server.pid is None]
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
def _display(soak: Soak, console: Console) -> Iterator[None]:
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
                if soak.load is None:
                    continue
                now = time.monotonic(), soak.load.acknowledged_transfers
                rate = (now[1] - previous[1]) / (now[0] - previous[0]) if previous else 0.0
                previous = now
                away = ", ".join(sorted(soak.kills_running))
                more = (
                    f"{rate:,.0f}/s, {soak.waiting_frames:,} frames on their way, "
                    f"{len(soak.result.kills)} of {soak.options.kills} kills{f', away: {away}' if away else ''}"
                )
                progress.update(task, completed=now[1], more=more)
                if not console.is_terminal and soak.load.is_alive():
                    console.print(f"[dim]{_clock()}[/] {now[1]:,} transfers, {more}")

        shower = threading.Thread(target=show, name="display", daemon=True)
        shower.start()
        try:
            yield
        finally:
            done.set()
            shower.join(5)


def _print(result: SoakResult, console: Console) -> None:
    from rich.table import Table

    from infra.cli.verify import figure

    table = Table("soak", "", show_lines=False)
    for name, value in result.figures.items():
        table.add_row(name, f"{value:,}")
    table.add_section()
    for name in sorted({kill.target for kill in result.kills}):
        seconds = [kill.seconds for kill in result.kills if kill.target == name]
        table.add_row(f"{name} killed", f"{len(seconds)} times, away {min(seconds):.1f} to {max(seconds):.1f} s")
    table.add_section()
    for name, count in sorted(result.results.items(), key=lambda found: -found[1]):
        table.add_row(f"answered {name}", f"{count:,}")
    console.print(table)
    checks = Table("what must hold", "expected", "found", "")
    for check in result.checks:
        verdict = "[green]✓" if check.ok else f"[red]✗[/] {check.detail}"
        checks.add_row(check.name, _short(check.expected, figure), _short(check.found, figure), verdict)
    console.print(checks)


def _short(value: Any, render: Callable[[Any], str]) -> str:
    """Large maps by their size: those of sums have a row for each ledger."""
    return render(value) if not isinstance(value, dict) or len(value) <= 8 else f"{len(value)} rows"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
