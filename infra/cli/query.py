"""`streambank sql` and `streambank cql`: one read-only query against the local stores, for analysts.

Any other client does as well (psql, cqlsh, a notebook); these need nothing but the clone. Postgres is asked as the
reading role in a read-only transaction; for Cassandra only SELECT is let through.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

TIMEOUT_SECONDS = 60


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"


FormatOption = Annotated[Format, typer.Option("--format", help="How to print rows.", envvar="STREAMBANK_QUERY_FORMAT")]
LimitOption = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="Print at most so many rows.", envvar="STREAMBANK_QUERY_LIMIT")
]


def register(app: typer.Typer) -> None:
    app.command()(sql)
    app.command()(cql)


def sql(
    query: Annotated[str, typer.Argument(help="One SQL query.")],
    form: FormatOption = Format.TABLE,
    limit: LimitOption = 1_000,
) -> None:
    """Ask Postgres: accounts, transfers, transfer_expiries. Exit code 1 when the query fails."""
    import psycopg

    from infra.settings import settings
    from infra.stores import API_ROLE, postgres_conninfo
    from pipelines.errors import StreambankError

    try:
        with psycopg.connect(postgres_conninfo(settings(), API_ROLE)) as connection:
            connection.read_only = True
            connection.execute(f"SET statement_timeout = '{TIMEOUT_SECONDS}s'")
            cursor = connection.execute(query.encode())
            names = [column.name for column in cursor.description or ()]
            show(names, cursor.fetchmany(limit), form)
    except psycopg.Error as error:
        raise StreambankError(f"Postgres: {error}") from error


def cql(
    query: Annotated[str, typer.Argument(help="One CQL SELECT.")],
    form: FormatOption = Format.TABLE,
    limit: LimitOption = 1_000,
) -> None:
    """Ask Cassandra: statement_by_account_month. Exit code 1 when the query fails."""
    from itertools import islice

    from cassandra import DriverException, RequestExecutionException
    from cassandra.cluster import NoHostAvailable

    from infra.settings import settings
    from infra.stores import cassandra_session
    from pipelines.errors import StreambankError

    if query.split(maxsplit=1)[:1] not in (["SELECT"], ["select"]):
        raise StreambankError("cql: only SELECT; the tables are written by the sink alone")
    try:
        with cassandra_session(settings()) as session:
            found = session.execute(query, timeout=TIMEOUT_SECONDS)
            show(found.column_names, list(islice(found, limit)), form)
    except (DriverException, RequestExecutionException, NoHostAvailable) as error:
        raise StreambankError(f"Cassandra: {error}") from error


def show(names: Sequence[str], rows: Iterable[Sequence[Any]], form: Format) -> None:
    """Print rows as a table, or as CSV with a header for other programs."""
    if form is Format.CSV:
        writer = csv.writer(sys.stdout)
        writer.writerow(names)
        writer.writerows(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*names)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    Console().print(table)
