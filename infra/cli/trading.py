"""`streambank trading`: order records for auditors, sealed; the life of one order; a venue's trades against ours."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class RecordFormat(StrEnum):
    """What is exported."""

    RTS24 = "rts24"
    TRAIL = "trail"


def register(app: typer.Typer) -> None:
    trading = typer.Typer(help="Trading.", no_args_is_help=True)
    app.add_typer(trading, name="trading")
    audit = typer.Typer(help="Order records and their proof.", no_args_is_help=True)
    trading.add_typer(audit, name="audit")

    @audit.command("export")
    def export(
        directory: Annotated[Path, typer.Argument(help="Where the files go, one per shard.")],
        form: Annotated[
            RecordFormat,
            typer.Option("--format", help="RTS 24 records, or an event trail.", envvar="STREAMBANK_AUDIT_FORMAT"),
        ] = RecordFormat.RTS24,
        reference: Annotated[
            Path | None,
            typer.Option(
                help="JSON with `accounts` and `symbols`: the RTS 24 fields that orders do not carry.",
                envvar="STREAMBANK_AUDIT_REFERENCE",
            ),
        ] = None,
    ) -> None:
        """Write all orders' records, with a keyed hash chain, from the topics."""
        import json

        from rich.console import Console

        from infra.settings import settings
        from jobs.trading_audit import AuditKeys, seal, shard_events
        from pipelines.catalogue import MATCHING_SHARDS
        from pipelines.trading.audit import audit_trail, rts24

        known = json.loads(reference.read_text(encoding="utf-8")) if reference else {}
        key = AuditKeys(settings().secrets_dir / "audit-keys.json").signing()
        directory.mkdir(parents=True, exist_ok=True)
        for shard in range(MATCHING_SHARDS):
            path = directory / f"{form.value}-{shard}.ndjson"
            events = shard_events(settings(), shard, with_phases=form is RecordFormat.RTS24)
            made = (rts24(event, known) if form is RecordFormat.RTS24 else audit_trail(event) for event in events)
            with path.open("wb") as file:
                header = {"format": form.value, "shard": shard}
                count, last = seal(file, header, (record for record in made if record is not None), key)
            Console().print(f"{path}: {count} records, key {key[0]}, last HMAC {last}")

    @audit.command("verify")
    def verify(files: Annotated[list[Path], typer.Argument(help="Exported files.")]) -> None:
        """Check the chain of exported files; exit code 1 at the first line that does not hold."""
        from rich.console import Console

        from infra.settings import settings
        from jobs.trading_audit import AuditKeys, verify_file

        keys = AuditKeys(settings().secrets_dir / "audit-keys.json")
        for path in files:
            found = verify_file(path, keys.find)
            Console().print(f"{path}: {found.records} records hold, last HMAC {found.last}")

    @audit.command("rotate-key")
    def rotate_key() -> None:
        """Seal with a new key from now on; files of older keys can still be verified."""
        from infra.settings import settings
        from jobs.trading_audit import AuditKeys

        typer.echo(AuditKeys(settings().secrets_dir / "audit-keys.json").rotate())

    @audit.command("explain")
    def explain(
        order_id: Annotated[int, typer.Argument(help="The order's id.")],
        symbol: Annotated[str, typer.Option(help="Its instrument, which finds its shard.", envvar="STREAMBANK_SYMBOL")],
    ) -> None:
        """Show the life of one order."""
        from rich.console import Console
        from rich.table import Table

        from infra.settings import settings
        from jobs.trading_audit import AuditError, order_events, shard_events
        from pipelines.trading.audit import audit_trail
        from pipelines.trading.routing import shard_of

        table = Table("time", "sequence", "event", "price", "quantity", "open", "status", "reason", "venue")
        for event in order_events(shard_events(settings(), shard_of(symbol)), order_id):
            record = audit_trail(event)
            if record.get("symbol", symbol) != symbol:
                continue
            name = record["event_type"] + (f" ({record['liquidity']})" if "liquidity" in record else "")
            table.add_row(
                record["event_timestamp"], str(record["sequence"]), name,
                str(record.get("trade_price", record.get("price", ""))),
                str(record.get("trade_quantity", record.get("quantity", ""))),
                str(record.get("leaves_quantity", "")), record.get("order_status", ""), record["reason"],
                " ".join(filter(None, (record.get("venue"), record.get("venue_execution_id")))),
            )  # fmt: skip
        if not table.row_count:
            raise AuditError(f"order {order_id} of {symbol} was never heard of")
        Console().print(table)

    @trading.command("reconcile")
    def reconcile(
        venue: Annotated[str, typer.Argument(help="Name of the venue, as orders name it.")],
        files: Annotated[list[Path], typer.Argument(help="FIX messages of the venue's drop copy.")],
        instruments: Annotated[
            Path | None,
            typer.Option(
                help="The router's file of ticks and lots, as STREAMBANK_ROUTE_INSTRUMENTS_FILE.",
                envvar="STREAMBANK_ROUTE_INSTRUMENTS_FILE",
            ),
        ] = None,
    ) -> None:
        """Compare a venue's own trades with those that the log has of it; changes nothing.

        Exit codes: 0 they are the same, 1 they differ, or a file cannot be read.
        """
        from rich.console import Console
        from rich.table import Table

        from api.fix.definitions import read_instruments
        from api.fix.venue_copy import read_venue_copy
        from infra.settings import settings
        from jobs.trading_audit import shard_events
        from pipelines.catalogue import MATCHING_SHARDS
        from pipelines.trading.venue_trades import RoutedTrades

        theirs = read_venue_copy(files, read_instruments(instruments))
        ours = RoutedTrades(venue)
        for shard in range(MATCHING_SHARDS):
            for event in shard_events(settings(), shard):
                ours.feed(event)
        table = Table("order", "ExecID", "here", f"at {venue}")
        for order, execution_id, here, there in ours.differences(theirs):
            table.add_row(order, execution_id, here or "missing", there or "missing")
        if table.row_count:
            Console().print(table)
        Console().print(f"{len(ours)} trades here, {len(theirs)} at {venue}, {table.row_count} differ")
        raise typer.Exit(1 if table.row_count else 0)
