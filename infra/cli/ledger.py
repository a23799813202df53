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
    from jobs.ledger_rebuild import Rebuild

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


@group.command()
def rebuild(
    to: Annotated[
        str, typer.Option(help="Schema for the rebuilt tables; made here.", envvar="STREAMBANK_LEDGER_REBUILD_TO")
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Schema of a snapshot, or of an earlier rebuild, to start from; the log is read from there.",
            envvar="STREAMBANK_LEDGER_REBUILD_FROM",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option(help="Drop an earlier schema of that name.", envvar="STREAMBANK_LEDGER_REBUILD_REPLACE")
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Build the Postgres projections anew from ledger.events, beside the live ones, and compare them row by row.

    Compares as of the moment it starts; the live sink may go on. Exit code 1 when any row differs, is missing or is too
    much. The new tables stay in the schema.
    """
    import asyncio

    from infra.settings import settings
    from jobs.ledger_rebuild import rebuild as run

    with _progress("rebuilding") as report:
        found = asyncio.run(run(settings(), to, source=source, replace=replace, report=report))
    _store_json(json_path, found.as_json())
    _print_rebuild(found, stderr=str(json_path) == "-")
    if not found.ok:
        raise typer.Exit(1)


@group.command()
def snapshot(
    to: Annotated[str, typer.Option(help="Schema for the copies; made here.", envvar="STREAMBANK_LEDGER_SNAPSHOT_TO")],
    replace: Annotated[
        bool, typer.Option(help="Drop an earlier schema of that name.", envvar="STREAMBANK_LEDGER_SNAPSHOT_REPLACE")
    ] = False,
) -> None:
    """Copy the live Postgres projections as of one place in the log, for later rebuilds to start from."""
    from infra.settings import settings
    from jobs.ledger_rebuild import snapshot as copy

    for shard, (offset, sequence) in copy(settings(), to, replace=replace).items():
        typer.echo(f"shard {shard}: sequence {sequence:,}, next offset {offset:,}")


@group.command()
def balance(
    account: Annotated[str, typer.Argument(help="Account id, decimal.")],
    at: Annotated[
        str,
        typer.Option(
            help="RFC 3339 time (UTC without a zone) or nanoseconds since 1970, inclusive; the newest if not given.",
            envvar="STREAMBANK_LEDGER_AT",
        ),
    ] = "",
    ledger: Annotated[
        int | None,
        typer.Option(min=0, help="Its ledger, if the id is in several.", envvar="STREAMBANK_LEDGER_NUMBER"),
    ] = None,
    json_path: JsonOption = None,
) -> None:
    """An account's balances at a point in time, from the entries in Postgres. Exit code 1 if it did not exist then."""
    import psycopg
    from psycopg.rows import dict_row
    from rich.console import Console
    from rich.table import Table

    from api.history import BALANCE_AT, TIMESTAMP_MAX, balance_of, parse_time
    from infra.settings import settings
    from infra.stores import API_ROLE, postgres_conninfo
    from pipelines.catalogue import LEDGER_EVENTS, LEDGER_SHARDS
    from pipelines.errors import StreambankError

    if not account.isascii() or not account.isdecimal() or int(account) >= 2**128:
        raise typer.BadParameter(f"{account!r} is not a decimal number below 2^128")
    try:
        moment = parse_time(at) if at else TIMESTAMP_MAX
    except ValueError as error:
        raise typer.BadParameter(f"--at {at!r}: {error}") from error
    config = settings()
    parameters = {
        "sink": "postgres", "topic": config.kafka_topic(LEDGER_EVENTS.name), "id": int(account), "at": moment,
        "shards": list(range(LEDGER_SHARDS)), "ledger": ledger,
    }  # fmt: skip
    try:
        with psycopg.connect(postgres_conninfo(config, API_ROLE), row_factory=dict_row) as connection:
            connection.read_only = True
            rows = connection.execute(BALANCE_AT, parameters).fetchall()
    except psycopg.Error as error:
        raise StreambankError(f"Postgres: {error}") from error
    if not rows:
        raise StreambankError(f"account {account} did not exist at {at or 'this time'}, or is not visible yet")
    if len(rows) > 1:
        raise StreambankError(f"account {account} is in ledgers {[int(row['ledger']) for row in rows]}: give --ledger")
    found = balance_of(rows[0], moment)
    _store_json(json_path, found)
    table = Table(show_header=False)
    for name, value in found.items():
        table.add_row(name, "now" if value == TIMESTAMP_MAX else f"{value:,}" if "account" not in name else str(value))
    Console(stderr=str(json_path) == "-").print(table)


@group.command()
def statement(
    account: Annotated[str, typer.Argument(help="Account id, decimal.")],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .csv or .parquet; - for CSV on standard output.",
            dir_okay=False,
            envvar="STREAMBANK_LEDGER_OUT",
        ),
    ] = Path("-"),
    since: Annotated[
        str, typer.Option(help="First moment, RFC 3339 or nanoseconds since 1970.", envvar="STREAMBANK_LEDGER_SINCE")
    ] = "0",
    until: Annotated[
        str, typer.Option(help="Last moment, inclusive; the newest if not given.", envvar="STREAMBANK_LEDGER_UNTIL")
    ] = "",
    ledger: Annotated[
        int | None,
        typer.Option(min=0, help="Its ledger, if the id is in several.", envvar="STREAMBANK_LEDGER_NUMBER"),
    ] = None,
) -> None:
    """Export an account's statement from Postgres: every entry, oldest first, with the running balances after it.

    Integers of 128 bits are text in Parquet, so that nothing is rounded.
    """  # fmt: skip
    from contextlib import closing

    import psycopg
    from psycopg.rows import dict_row

    from api.history import STATEMENT, TIMESTAMP_MAX, parse_time
    from api.statement_files import write_csv, write_parquet
    from infra.settings import settings
    from infra.stores import API_ROLE, postgres_conninfo
    from pipelines.catalogue import LEDGER_SHARDS
    from pipelines.errors import StreambankError

    if out.suffix not in (".csv", ".parquet") and str(out) != "-":
        raise typer.BadParameter(f"--out {out}: .csv or .parquet")
    if not account.isascii() or not account.isdecimal() or int(account) >= 2**128:
        raise typer.BadParameter(f"{account!r} is not a decimal number below 2^128")
    try:
        moments = {"since": parse_time(since), "at": parse_time(until) if until else TIMESTAMP_MAX}
    except ValueError as error:
        raise typer.BadParameter(f"--since {since!r} --until {until!r}: {error}") from error
    config = settings()
    place = {"id": int(account), "shards": list(range(LEDGER_SHARDS)), "ledger": ledger}
    try:
        with psycopg.connect(
            postgres_conninfo(config, API_ROLE, replica=config.postgres_replica), row_factory=dict_row
        ) as connection:
            connection.read_only = True
            ledgers = connection.execute(
                "SELECT ledger FROM accounts WHERE id = %(id)s AND (%(ledger)s::bigint IS NULL OR ledger = %(ledger)s)",
                place,
            ).fetchall()
            if len(ledgers) != 1:
                found = [int(row["ledger"]) for row in ledgers]
                raise StreambankError(f"account {account} is in ledgers {found}: give --ledger with one of them")
            with closing(connection.cursor(name="statement")) as cursor:
                cursor.itersize = 10_000
                cursor.execute(STATEMENT, {**place, **moments})
                count = (write_parquet if out.suffix == ".parquet" else write_csv)(cursor, out)
    except psycopg.Error as error:
        raise StreambankError(f"Postgres: {error}") from error
    if str(out) != "-":
        typer.echo(f"{count:,} entries in {out}")


@group.command(name="import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="NDJSON, CSV, Avro container or Parquet, by its name.", exists=True, dir_okay=False)
    ],
    client_id: Annotated[str, typer.Option(help="Client of the API.", envvar="STREAMBANK_CLIENT_ID")],
    client_secret: Annotated[
        str, typer.Option(help="Its secret; better by the variable.", envvar="STREAMBANK_CLIENT_SECRET")
    ],
    url: Annotated[
        str, typer.Option(help="Of the API; the local one if not given.", envvar="STREAMBANK_LEDGER_URL")
    ] = "",
    batch_events: Annotated[
        int, typer.Option(help="Events of a request.", min=1, max=5_000, envvar="STREAMBANK_LEDGER_BATCH_EVENTS")
    ] = 5_000,
    restart: Annotated[
        bool, typer.Option(help="Forget how far an earlier import came.", envvar="STREAMBANK_LEDGER_RESTART")
    ] = False,
) -> None:
    """Create the accounts and transfers of a file, in their order; started again, it goes on where it was.

    The place is kept in FILE.import.json, what the ledger refused goes to FILE.refused.ndjson. Exit code 1 when
    something was refused.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from api.bulk_import import Import, Imported
    from api.client import LedgerClient
    from infra.settings import settings

    job = Import(file, batch_events=batch_events, restart=restart)
    if job.done.records:
        typer.echo(f"going on after record {job.done.records:,}", err=True)
    console = Console(stderr=True)
    with (
        LedgerClient(url or settings().api_url, client_id, client_secret) as client,
        Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        ) as progress,
    ):  # fmt: skip
        task = progress.add_task(file.name, total=1.0, rate="")

        def report(done: Imported) -> None:
            progress.update(task, completed=job.share, rate=f"{done.records:,} records, {done.refused:,} refused")

        done = job.run(client, report)
    counts = ", ".join(f"{count:,} {result}" for result, count in done.results.most_common())
    typer.echo(f"{done.records:,} records: {counts or 'nothing to do'}")
    if done.refused:
        typer.echo(f"refused ones are in {job.refused_path}", err=True)
        raise typer.Exit(1)


def _print_rebuild(found: Rebuild, *, stderr: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=stderr, width=None if sys.stdout.isatty() else 140)
    table = Table("table", "live rows", "rebuilt rows", "missing", "too many", "differing", "")
    for part in found.tables:
        table.add_row(
            part.table, f"{part.live:,}", f"{part.rebuilt:,}", f"{part.missing:,}", f"{part.surplus:,}",
            f"{part.differing:,}", "[green]ok" if part.ok else f"[red]differs[/] {part.example}",
        )  # fmt: skip
    console.print(table)
    if found.started:
        console.print(f"started from sequences {[place[1] for place in found.started.values()]}", highlight=False)
    console.print(
        f"{found.frames:,} frames ({found.repeated:,} repeated, {found.set_aside:,} records and events set aside) "
        f"in schema {found.schema}",
        highlight=False,
    )


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
