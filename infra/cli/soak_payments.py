"""`streambank soak payments`: payments under load while every process and server is killed or away in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    groups = {found.name: found.typer_instance for found in app.registered_groups}
    soak = groups.get("soak")
    if soak is None:
        soak = typer.Typer(
            no_args_is_help=True, help="Run a system under load while its parts are killed, and check it."
        )
        app.add_typer(soak, name="soak")
    soak.command()(payments)


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
    quick: Annotated[
        bool,
        typer.Option(
            help="Short rounds: processes in two lots, all stores away, then Kafka.",
            envvar="STREAMBANK_SOAK_PAYMENTS_QUICK",
        ),
    ] = False,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the report there.", envvar="STREAMBANK_SOAK_PAYMENTS_JSON"),
    ] = None,
) -> None:
    """Kill everything that payments need, one after the other and again, and prove that nothing was lost.

    Needs the local stack up; it is killed and restarted too. Topics, database and keyspace are of its own, and deleted
    if all was well. Exit code 1 if anything accepted has no final status, or two, if money or notifications differ, or
    if a part does not come back.
    """
    import json
    import tempfile
    from uuid import uuid4

    from rich.console import Console
    from rich.table import Table

    from bench.soak_payments import all_faults, drop, quick_faults, soak
    from bench.soak_payments_parts import PaymentsParts, Receivers
    from infra.settings import settings
    from infra.stack.postgres import create_database
    from infra.stack.stack import Stack, server_types
    from pipelines.errors import StreambankError

    console = Console(highlight=False)
    config = settings()
    servers = {server.name: server for server in Stack(config, server_types()).servers}
    away = [name for name, server in servers.items() if server.pid is None]
    if away:
        raise StreambankError(f"{', '.join(away)} not running; start the stack: streambank up")
    unique = f"soak_{uuid4().hex[:8]}"
    environment = config.model_copy(
        update={"topic_prefix": f"{unique}.", "postgres_database": unique, "cassandra_keyspace": unique}
    )
    create_database(environment)
    directory = Path(tempfile.mkdtemp(prefix="streambank-soak-"))
    console.print(f"logs: {directory}", soft_wrap=True)
    with Receivers() as receivers, PaymentsParts(environment, directory, receivers) as parts:
        report = soak(
            parts, servers, rate=rate, seconds=seconds, faults=quick_faults if quick else all_faults,
            say=lambda what: console.print(what, soft_wrap=True),
        )  # fmt: skip
    if json_path is not None:
        json_path.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    table = Table("check", "", "")
    for check in report.checks:
        table.add_row(check.name, "[green]holds" if check.ok else "[red]broken", check.detail)
    console.print(table)
    statuses = ", ".join(f"{name} {count:,}" for name, count in sorted(report.reconciliation["statuses"].items()))
    console.print(
        f"{report.accepted:,} payments accepted in {report.seconds:.0f} s ({statuses}), settled after"
        f" {report.settle_seconds:.0f} s; {sum(report.faults.values())} faults; {report.webhooks:,} webhooks and"
        f" {report.mails:,} e-mails, {report.repeated_notifications} of them repeated."
    )
    if not report.ok:
        raise typer.Exit(1)
    drop(environment)
