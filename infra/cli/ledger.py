"""`streambank ledger`: audit the ledger's log, rebuild what follows from it, and ask its history."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jobs.ledger_chain import ShardChain

group = typer.Typer(no_args_is_help=True, help="Audit the ledger's log, rebuild projections, ask its history.")

JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="Write the result there; - for standard output.", envvar="STREAMBANK_LEDGER_JSON"),
]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="ledger")


@group.command()
def verify(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Exported Avro container files, in order; the topic itself if none is named.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    anchors: Annotated[
        Path | None,
        typer.Option(
            help="Hashes noted at an earlier walk, which this one must meet.",
            exists=True,
            dir_okay=False,
            envvar="STREAMBANK_LEDGER_ANCHORS",
        ),
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option(
            help="Hashes before the first file, when that does not start at the beginning.",
            exists=True,
            dir_okay=False,
            envvar="STREAMBANK_LEDGER_AFTER",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Note the last hash of each shard there.", envvar="STREAMBANK_LEDGER_SAVE"),
    ] = None,
    repeats: Annotated[
        bool,
        typer.Option(
            help="Allow frames that a restored job sent again, byte for byte.", envvar="STREAMBANK_LEDGER_REPEATS"
        ),
    ] = True,
    json_path: JsonOption = None,
) -> None:
    """Walk the hash chain of ledger.events and name the first break of each shard.

    A break is given with shard, sequence, offset (in a file: the record's number from 0), and what was expected and
    found. Exit code 1 on any break.
    """  # fmt: skip
    from infra.settings import settings
    from jobs.ledger_chain import read_anchors, verify_files, verify_topic, write_anchors

    known = read_anchors(anchors) if anchors is not None else {}
    if files:
        before = read_anchors(after) if after is not None else {}
        chains = verify_files(files, known, before, allow_repeats=repeats)
    elif after is not None:
        raise typer.BadParameter("--after is for files: the topic is walked from its beginning")
    else:
        with _progress("walking") as report:
            chains = verify_topic(settings(), known, allow_repeats=repeats, report=report)
    broken = [chain.broken for chain in chains if chain.broken is not None]
    _store_json(json_path, {"ok": not broken, "shards": [chain.as_json() for chain in chains]})
    _print_chains(chains, stderr=str(json_path) == "-")
    if broken:
        raise typer.Exit(1)
    if save is not None:
        write_anchors(save, chains)


@group.command()
def export(
    directory: Annotated[Path, typer.Argument(help="Where to write; made if it is missing.", file_okay=False)],
) -> None:
    """Copy ledger.events, byte for byte, into Avro container files that `ledger verify` and any Avro reader take."""
    from infra.settings import settings
    from jobs.ledger_chain import export as copy_topic

    with _progress("copying") as report:
        paths = copy_topic(settings(), directory, report)
    for path in paths:
        typer.echo(path)


def _print_chains(chains: Sequence[ShardChain], *, stderr: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=stderr, width=None if sys.stdout.isatty() else 140)
    table = Table("shard", "frames", "older than the chain", "repeated", "last sequence", "last hash", "")
    for chain in chains:
        table.add_row(
            str(chain.shard), f"{chain.frames:,}", f"{chain.unchained:,}", f"{chain.repeated:,}",
            f"{chain.last_sequence:,}", chain.head[:16], "[green]ok" if chain.broken is None else "[red]broken",
        )  # fmt: skip
    console.print(table)
    for chain in chains:
        if chain.broken is not None:
            console.print(f"[red]broken[/] {chain.broken}", soft_wrap=True, highlight=False)


def _store_json(path: Path | None, value: Any) -> None:
    if path is None:
        return
    text = json.dumps(value, indent=2)
    if str(path) == "-":
        typer.echo(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """A bar per shard on a terminal; the block reports (shard, done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    tasks: dict[int, Any] = {}
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip

        def report(shard: int, done: int, total: int) -> None:
            if shard not in tasks:
                tasks[shard] = progress.add_task(f"{what} shard {shard}", total=total)
            progress.update(tasks[shard], completed=done, total=total)

        yield report
