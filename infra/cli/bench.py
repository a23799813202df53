"""`streambank bench`: measure, print and store the figures, each with its baseline from the same run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.report import Measurement
    from infra.settings import Settings


class Part(StrEnum):
    """What can be measured; the value is the module under bench/."""

    CODEC = "codec"
    LEDGER = "ledger"
    LEDGER_SCALE = "ledger_scale"
    FLINK = "flink"
    API = "api"
    SINKS = "sinks"
    LOCKING = "locking"
    MATCHING = "matching"
    FRAUD = "fraud"
    LEDGER_CLIENT = "ledger_client"
    FRAUD_SCORING = "fraud_scoring"
    TRADING = "trading"
    PAYMENTS = "payments"


SERVERS: dict[Part, tuple[str, ...]] = {
    Part.CODEC: (),
    Part.LEDGER: (),
    Part.LEDGER_SCALE: (),
    Part.FLINK: ("kafka", "registry", "flink"),
    Part.API: ("kafka", "registry", "postgres", "cassandra", "valkey"),
    Part.SINKS: ("kafka", "registry", "postgres", "cassandra"),
    Part.LOCKING: ("postgres",),
    Part.MATCHING: (),
    Part.FRAUD: (),
    Part.LEDGER_CLIENT: ("kafka", "registry", "valkey"),
    Part.FRAUD_SCORING: ("kafka", "registry", "flink"),
    Part.TRADING: ("kafka", "registry", "valkey", "flink"),
    Part.PAYMENTS: ("kafka", "registry", "flink", "postgres", "valkey"),
}


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    parts: Annotated[
        list[Part] | None, typer.Argument(help="What to measure; all if none is named.", show_default=False)
    ] = None,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Where to store the figures.", envvar="STREAMBANK_BENCH_JSON"),
    ] = None,
    require_goals: Annotated[
        bool, typer.Option(help="Exit with 1 when a goal was missed.", envvar="STREAMBANK_BENCH_REQUIRE_GOALS")
    ] = False,
) -> None:
    """Measure the parts one after another, print a table and store it as JSON (default: .streambank/bench.json).

    Servers that a part needs are started if they are not running, and stopped again. Every run uses topics, databases
    and keyspaces of its own. Machines differ and are often shared: the machine and its load are part of the result.
    """
    from importlib import import_module

    from rich.console import Console

    from bench.report import machine
    from infra.settings import settings

    console = Console(highlight=False)
    config = settings()
    chosen = list(dict.fromkeys(parts or list(Part)))
    found: dict[str, Any] = {"started_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    measured: list[tuple[Part, Measurement]] = []
    with _servers(config, chosen, console):
        for part in chosen:
            begin = time.monotonic()
            with console.status(f"measuring {part.value}"):
                measure = import_module(f"bench.{part.value}").measure
                results = measure(config) if SERVERS[part] else measure()
            measured += [(part, result) for result in results]
            console.print(f"[green]✓[/] {part.value} [dim]{time.monotonic() - begin:.0f} s[/]")
    found["load_average_at_end"] = machine()["load_average"]
    found["measurements"] = [{"part": part.value, **result.as_json()} for part, result in measured]
    _print(found, measured, console)
    path = json_path or config.home / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console.print(f"Stored in {path}")
    if require_goals and any(result.met is False for _, result in measured):
        raise typer.Exit(1)


@contextmanager
def _servers(config: Settings, parts: list[Part], console: Console) -> Iterator[None]:
    """Run the block with the servers that the parts need; stop afterwards what was started here."""
    from infra.setup import set_up
    from infra.stack.stack import Stack

    names = sorted({name for part in parts for name in SERVERS[part]})
    if not names:
        yield
        return
    set_up(config)
    running = {server.name for server in Stack(config, only=names).servers if server.pid is not None}
    stack = Stack(config, only=[name for name in names if name not in running]) if set(names) - running else None
    try:
        if stack is not None:
            with console.status("starting servers"):
                stack.up()
        yield
    finally:
        if stack is not None:
            stack.down()


def _print(found: dict[str, Any], measured: list[tuple[Part, Measurement]], console: Console) -> None:
    from rich.table import Table

    machine = found["machine"]
    load = ", ".join(f"{value:.1f}" for value in machine["load_average"])
    table = Table(
        "part", "what", "figure", "baseline in the same run", "ratio", "goal", "checked by",
        title=f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, load {load}",
    )  # fmt: skip
    for part, result in measured:
        verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[result.met]
        table.add_row(
            part.value,
            result.name,
            f"{_figure(result.value)} {result.unit}",
            "" if result.baseline is None else f"{_figure(result.baseline)} ({result.baseline_name})",
            "" if result.ratio is None else f"{result.ratio:.2f}",
            f"{result.goal} {verdict}".strip(),
            result.check,
        )
    console.print(table)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
