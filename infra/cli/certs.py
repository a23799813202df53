"""`streambank certs`: TLS certificates for local use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from infra.certificates import CertificateInfo


def register(app: typer.Typer) -> None:
    certs = typer.Typer(help="TLS certificates for local use.", no_args_is_help=True)
    app.add_typer(certs, name="certs")

    @certs.command("make")
    def make(
        host: Annotated[
            list[str] | None,
            typer.Option(help="Name or address of the server; repeatable.", envvar="STREAMBANK_CERTS_HOST"),
        ] = None,
        days: Annotated[int, typer.Option(help="How long they are good.", envvar="STREAMBANK_CERTS_DAYS")] = 365,
    ) -> None:
        """Make an authority (once), and certificates of a server, a Kafka broker and a client by it."""
        from infra.certificates import make_certificates
        from infra.settings import settings

        where = settings()
        hosts = list(dict.fromkeys([*(host or ()), "localhost", "127.0.0.1", "::1", where.host]))
        _show(where.tls_dir, make_certificates(where.tls_dir, hosts, days))

    @certs.command("show")
    def show() -> None:
        """Show the certificates and when they expire."""
        from infra.certificates import ROLES, certificate_info
        from infra.settings import settings

        where = settings().tls_dir
        _show(where, (certificate_info(where / f"{role}.pem") for role in ROLES))


def _show(directory: Path, found: Iterable[CertificateInfo]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "subject", "names", "expires (UTC)", "SHA-256")
    for entry in found:
        table.add_row(
            entry.path.name, entry.subject, " ".join(entry.names), f"{entry.expires_at:%Y-%m-%d %H:%M}",
            entry.fingerprint[:16],
        )  # fmt: skip
    Console().print(table)
    typer.echo(directory)
