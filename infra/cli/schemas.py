"""`streambank schemas`: keep the registry and the released versions equal to avro/*.avsc."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

group = typer.Typer(help="Check, register and release the topics' Avro schemas.", no_args_is_help=True)


@group.command()
def check(
    offline: Annotated[
        bool,
        typer.Option(help="Only compare with the released versions; needs no server.", envvar="STREAMBANK_OFFLINE"),
    ] = False,
) -> None:
    """Fail if a schema could not read data written with an earlier version, naming the field."""
    from rich.console import Console
    from rich.table import Table

    from infra.compatibility import compatibility_level, problems, released_versions
    from infra.registry import SchemaRegistry
    from pipelines.catalogue import TOPICS

    table = Table("topic", "level", "released", *([] if offline else ["registered"]), "verdict")
    failures: list[tuple[str, str]] = []
    for topic in TOPICS.values():
        level = compatibility_level(topic)
        released = released_versions(topic)
        found = problems(topic.schema(), released, level)
        cells = [topic.name, level, str(len(released))]
        if not offline:
            with SchemaRegistry() as registry:
                registered = registry.versions(topic)
                found += [f"in the registry: {why}" for why in problems(topic.schema(), registered, level)]
                if not found:
                    found += [f"the registry says: {why}" for why in registry.check(topic)]
            cells.append(str(len(registered)))
        changed = released and released[-1][1] != topic.schema()
        verdict = "[red]incompatible" if found else "not released" if not released or changed else "[green]ok"
        table.add_row(*cells, verdict)
        failures += [(topic.name, why) for why in found]
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for name, why in failures:
        console.print(f"[red]{name}[/]: {why}", highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


@group.command(name="register")
def register_schemas() -> None:
    """Register every topic's schema, with its compatibility level; running it again changes nothing."""
    from rich.console import Console
    from rich.table import Table

    from infra.registry import SchemaRegistry
    from pipelines.catalogue import TOPICS

    table = Table("subject", "schema id")
    with SchemaRegistry() as registry:
        for topic in TOPICS.values():
            table.add_row(registry.subject(topic), str(registry.register(topic)))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


@group.command()
def release() -> None:
    """Keep the current schemas as released versions, which later ones are checked against."""
    from infra.compatibility import compatibility_level, problems, released_versions
    from infra.compatibility import release as keep
    from pipelines.catalogue import TOPICS
    from pipelines.errors import StreambankError

    for topic in TOPICS.values():
        found = problems(topic.schema(), released_versions(topic), compatibility_level(topic))
        if found:
            raise StreambankError(f"{topic.name} is not compatible with its released versions: {'; '.join(found)}")
    for topic in TOPICS.values():
        version = keep(topic)
        typer.echo(f"{topic.name}: " + (f"released version {version}" if version else "unchanged"))


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="schemas")
