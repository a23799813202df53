"""`streambank verify`: does what the stores hold equal a replay of the log?"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jobs.verify import Verification


class Sinks(StrEnum):
    BOTH = "both"
    POSTGRES = "postgres"
    CASSANDRA = "cassandra"
    NONE = "none"


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    wait: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to wait until the job and the sinks are done.", envvar="STREAMBANK_VERIFY_WAIT"
        ),
    ] = 60.0,
    sinks: Annotated[Sinks, typer.Option(help="Stores to compare.", envvar="STREAMBANK_VERIFY_SINKS")] = Sinks.BOTH,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the result there; - for standard output.", envvar="STREAMBANK_VERIFY_JSON"),
    ] = None,
) -> None:
    """Replay ledger.commands in process and compare with the output topics, Postgres and Cassandra.

    Prints every figure; exit code 1 on any difference, or when something is still on its way.
    """
    from rich.console import Console

    from infra.settings import settings
    from jobs.verify import SINKS, wait_drained
    from jobs.verify import verify as audit
    from pipelines.errors import StreambankError

    names = SINKS if sinks is Sinks.BOTH else () if sinks is Sinks.NONE else (sinks.value,)
    console = Console(stderr=True)
    with console.status("waiting for the job and the sinks") as status:
        backlog = wait_drained(config := settings(), wait, sinks=names)
        if not backlog.drained:
            raise StreambankError(
                f"after {wait:g} s {backlog.job} command frames are not applied and the sinks are behind by "
                f"{backlog.sinks} frames; is the job running (`streambank list`), are the sinks (`streambank sink`)?"
            )
        found = audit(config, names, lambda what: status.update(what))
    if json_path is not None:
        text = json.dumps(found.as_json(), indent=2)
        if str(json_path) == "-":
            typer.echo(text)
        else:
            json_path.write_text(text + "\n", encoding="utf-8")
    Console(stderr=str(json_path) == "-", width=None if sys.stdout.isatty() else 140).print(checks_table(found))
    if not found.ok:
        raise typer.Exit(1)


def checks_table(found: Verification) -> Any:
    """Every comparison with its figures, as a rich table."""
    from rich.table import Table

    table = Table("compared", "replay", "found", "")
    for name, count in found.figures.items():
        table.add_row(name, "", f"{count:,}", "")
    table.add_section()
    for check in found.checks:
        figures = (figure(check.expected), figure(check.found))
        table.add_row(check.name, *figures, "[green]ok" if check.ok else f"[red]differs[/] {check.detail}")
    return table


def figure(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {figure(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(figure(item) for item in value) if value else "none"
    return str(value)
