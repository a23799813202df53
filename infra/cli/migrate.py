"""`streambank migrate`: bring the stores' schemas to their newest version."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Store(StrEnum):
    """Stores with a schema."""

    POSTGRES = "postgres"
    CASSANDRA = "cassandra"


def register(app: typer.Typer) -> None:
    @app.command()
    def migrate(
        store: Annotated[
            list[Store] | None, typer.Option(help="Only this store; repeatable.", envvar="STREAMBANK_MIGRATE_STORE")
        ] = None,
        cassandra_replication: Annotated[
            str | None,
            typer.Option(
                help="CQL replication map for a keyspace that is created now; default one copy.",
                envvar="STREAMBANK_CASSANDRA_REPLICATION",
            ),
        ] = None,
        check: Annotated[
            bool,
            typer.Option(
                "--check", help="Apply nothing; fail if anything is pending.", envvar="STREAMBANK_MIGRATE_CHECK"
            ),
        ] = False,
    ) -> None:
        """Create or upgrade the tables of Postgres and Cassandra. Safe to repeat."""
        import psycopg
        from rich.console import Console

        from infra import migrations
        from infra.migrations.cassandra_migrations import DEFAULT_REPLICATION
        from infra.settings import settings
        from pipelines.errors import StreambankError

        console = Console()
        any_pending = False
        for which in store or list(Store):
            try:
                if which is Store.POSTGRES:
                    names = (
                        migrations.pending_postgres(settings()) if check else migrations.migrate_postgres(settings())
                    )
                elif check:
                    names = migrations.pending_cassandra(settings())
                else:
                    names = migrations.migrate_cassandra(settings(), cassandra_replication or DEFAULT_REPLICATION)
            except psycopg.OperationalError as error:
                raise StreambankError(
                    f"Postgres cannot be reached at {settings().host}:{settings().postgres_port}: {error}"
                ) from error
            except Exception as error:
                from cassandra.cluster import NoHostAvailable

                if isinstance(error, NoHostAvailable):
                    raise StreambankError(
                        f"Cassandra cannot be reached at {settings().host}:{settings().cassandra_port}: {error}"
                    ) from error
                raise
            any_pending = any_pending or bool(names)
            verb = "pending" if check else "applied"
            console.print(f"{which.value}: {verb} {', '.join(names)}" if names else f"{which.value}: up to date")
        if check and any_pending:
            raise typer.Exit(1)
