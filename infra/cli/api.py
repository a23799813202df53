"""`streambank api`, `clients` and `keys`: the API server, and who may use it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

Accounts = Annotated[list[str], typer.Argument(help="Trading accounts; '*' for every account.")]


def register(app: typer.Typer) -> None:
    @app.command()
    def api(
        port: Annotated[int | None, typer.Option(help="Port to listen on.", envvar="STREAMBANK_API_PORT")] = None,
        workers: Annotated[int | None, typer.Option(help="Worker processes.", envvar="STREAMBANK_API_WORKERS")] = None,
        grpc_port: Annotated[
            int | None, typer.Option(help="Port of the gRPC services; 0: none.", envvar="STREAMBANK_API_GRPC_PORT")
        ] = None,
    ) -> None:
        """Run the API in the foreground until Ctrl-C."""
        import os

        # Workers are processes of their own and read the environment.
        if port is not None:
            os.environ["STREAMBANK_API_PORT"] = str(port)
        if workers is not None:
            os.environ["STREAMBANK_API_WORKERS"] = str(workers)
        if grpc_port is not None:
            os.environ["STREAMBANK_API_GRPC_PORT"] = str(grpc_port)
        from api.server import serve

        sys.exit(serve())

    clients = typer.Typer(help="OAuth2 clients of the API.", no_args_is_help=True)
    app.add_typer(clients, name="clients")

    @clients.command("add")
    def add(
        name: Annotated[str, typer.Argument(help="What the client is called; its id starts with it.")],
        scope: Annotated[
            list[str] | None,
            typer.Option(
                help="Scope it may ask for; repeatable. Default: all but cards:detokenise, orders:admin, "
                "payments:review and payments:admin.",
                envvar="STREAMBANK_CLIENT_SCOPE",
            ),
        ] = None,
        client_id: Annotated[
            str | None, typer.Option("--id", help="Its id; default NAME-random.", envvar="STREAMBANK_CLIENT_ID")
        ] = None,
        account: Annotated[
            list[str] | None,
            typer.Option(
                help="Trading account whose orders it may enter and see; repeatable, '*' for every account.",
                envvar="STREAMBANK_CLIENT_ACCOUNT",
            ),
        ] = None,
    ) -> None:
        """Make a client and print its secret, which is shown this once."""
        from rich.console import Console

        from api.clients import DEFAULT_SCOPES, ClientStore
        from infra.settings import settings

        client, secret = ClientStore(settings().secrets_dir / "clients.json").add(
            name, scope or list(DEFAULT_SCOPES), client_id, account or ()
        )
        Console(stderr=True).print(f"[green]made[/] with {', '.join(client.scopes)}; the secret is shown this once:")
        # Plain lines, so that a script can read them.
        typer.echo(f"client_id={client.client_id}")
        typer.echo(f"client_secret={secret}")

    @clients.command("list")
    def list_() -> None:
        """Show all clients."""
        from datetime import UTC, datetime

        from rich.console import Console
        from rich.table import Table

        from api.clients import ClientStore
        from infra.settings import settings

        def when(seconds: float | None) -> str:
            return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")

        table = Table("client id", "name", "scopes", "accounts", "made", "revoked")
        for client in ClientStore(settings().secrets_dir / "clients.json").all():
            table.add_row(
                client.client_id,
                client.name,
                " ".join(client.scopes),
                " ".join(client.accounts),
                when(client.created_at),
                when(client.revoked_at),
            )
        Console().print(table)

    @clients.command("revoke")
    def revoke(client_id: Annotated[str, typer.Argument(help="The client to refuse from now on.")]) -> None:
        """Refuse a client at once, also with tokens that it already has."""
        from rich.console import Console

        from api.clients import ClientStore
        from infra.settings import settings

        ClientStore(settings().secrets_dir / "clients.json").revoke(client_id)
        Console().print(f"revoked {client_id}")

    @clients.command("grant")
    def grant(client_id: Annotated[str, typer.Argument(help="The client.")], accounts: Accounts) -> None:
        """Let a client enter and see the orders of these accounts too."""
        from rich.console import Console

        from api.clients import ClientStore
        from infra.settings import settings

        client = ClientStore(settings().secrets_dir / "clients.json").grant(client_id, accounts)
        Console().print(f"{client_id} may trade {', '.join(client.accounts)}", highlight=False)

    @clients.command("withdraw")
    def withdraw(client_id: Annotated[str, typer.Argument(help="The client.")], accounts: Accounts) -> None:
        """Take accounts from a client, at once."""
        from rich.console import Console

        from api.clients import ClientStore
        from infra.settings import settings

        client = ClientStore(settings().secrets_dir / "clients.json").withdraw(client_id, accounts)
        Console().print(f"{client_id} may trade {', '.join(client.accounts) or 'no account'}", highlight=False)

    keys = typer.Typer(help="Keys that sign the API's tokens.", no_args_is_help=True)
    app.add_typer(keys, name="keys")

    @keys.command("rotate")
    def rotate() -> None:
        """Sign with a new key from now on; tokens of the old one stay valid until they expire."""
        from rich.console import Console

        from api.config import api_settings
        from api.keys import KeyStore
        from infra.settings import settings

        made = KeyStore(settings().secrets_dir / "keys", api_settings().token_seconds).rotate()
        Console().print(f"signing with key {made.kid}; running workers notice at their next token")
