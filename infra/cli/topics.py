"""`streambank topics`: make the broker's topics equal to the catalogue, and look at them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

group = typer.Typer(help="Provision the catalogue's topics and list them.", no_args_is_help=True)


@group.command()
def apply(
    dry_run: Annotated[
        bool, typer.Option(help="Show the difference and change nothing.", envvar="STREAMBANK_DRY_RUN")
    ] = False,
    replication_factor: Annotated[
        int, typer.Option(min=1, help="Replicas of each partition.", envvar="STREAMBANK_REPLICATION_FACTOR")
    ] = 1,
    min_insync_replicas: Annotated[
        int,
        typer.Option(
            min=1,
            help="Replicas that must have a record before it is acknowledged.",
            envvar="STREAMBANK_MIN_INSYNC_REPLICAS",
        ),
    ] = 1,
) -> None:
    """Create missing topics and correct configurations; prints what changed. Partition counts never change."""
    from rich.console import Console
    from rich.table import Table

    from infra import topics

    plans = topics.plan(replication_factor=replication_factor, min_insync_replicas=min_insync_replicas)
    refused = [entry for entry in plans if entry.refused]
    if not dry_run and not refused:
        plans = topics.apply(replication_factor=replication_factor, min_insync_replicas=min_insync_replicas)
    colour = {"create": "green", "change": "yellow", "refuse": "red", "none": "dim"}
    table = Table("topic", "action", "key", "on the broker", "catalogue")
    for entry in plans:
        action = f"[{colour[entry.action]}]{entry.action}"
        if not entry.changes:
            table.add_row(entry.name, action, "", "", "")
        for key, (old, new) in entry.changes.items():
            table.add_row(entry.name, action, key, "" if old is None else old, new)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    if refused:
        for entry in refused:
            console.print(f"[red]{entry.name}[/] {entry.refused}", highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    actions = [entry.action for entry in plans]
    console.print(
        f"{'would create' if dry_run else 'created'} {actions.count('create')}, "
        f"{'would change' if dry_run else 'changed'} {actions.count('change')}, "
        f"equal {actions.count('none')}"
    )


@group.command(name="list")
def list_topics() -> None:
    """The catalogue's topics and what the broker holds of them."""
    from rich.console import Console
    from rich.table import Table

    from infra import topics
    from pipelines.catalogue import DAY_MS

    table = Table("topic", "partitions", "records", "retention", "owner", "written by", "holds")
    for state in topics.states():
        topic = state.topic
        retention = "for ever" if topic.retention_ms < 0 else f"{topic.retention_ms / DAY_MS:g} days"
        partitions = str(state.partitions) if state.partitions else "[red]missing"
        table.add_row(state.name, partitions, f"{state.records:,}", retention, topic.owner, topic.writers, topic.doc)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="topics")
