"""`streambank fix`: the FIX gateway, and who may log on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from api.fix.definitions import Definitions


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Order entry by FIX 4.4.", no_args_is_help=True)
    app.add_typer(group, name="fix")

    @group.command("run")
    def run() -> None:
        """Run the gateway until SIGTERM or Ctrl-C; settings are STREAMBANK_FIX_*.

        Exit codes: 0 stopped, counterparties logged out; 1 failed, may be restarted; 4 a report frame is missing.
        """
        import asyncio

        from api.fix.config import FixSettings
        from api.fix.gateway import Gateway
        from infra.logs import configure_logs
        from infra.settings import settings

        configure_logs()

        async def serve() -> int:
            return await Gateway(settings(), FixSettings()).run()

        raise typer.Exit(asyncio.run(serve()))

    @group.command("add")
    def add(
        comp_id: Annotated[str, typer.Argument(help="The counterparty's CompID.")],
        account: Annotated[
            list[str], typer.Option(help="Account it may trade for; repeatable.", envvar="STREAMBANK_FIX_ADD_ACCOUNT")
        ],
        username: Annotated[
            str, typer.Option(help="Username of its Logon; default: its CompID.", envvar="STREAMBANK_FIX_ADD_USERNAME")
        ] = "",
        messages_per_second: Annotated[
            int, typer.Option(help="Orders and replaces; 0: no limit.", min=0, envvar="STREAMBANK_FIX_ADD_RATE")
        ] = 0,
        cancel_on_disconnect: Annotated[
            bool,
            typer.Option(help="Cancel its orders when its connection ends.", envvar="STREAMBANK_FIX_ADD_CANCEL"),
        ] = False,
        drop_copy: Annotated[
            bool,
            typer.Option(
                help="Enter nothing; get a copy of every execution report of the accounts, * being all of them.",
                envvar="STREAMBANK_FIX_ADD_DROP_COPY",
            ),
        ] = False,
    ) -> None:
        """Make a session and print its password, which is shown this once."""
        from rich.console import Console

        definition, password = _definitions().add(
            comp_id, account, username=username, messages_per_second=messages_per_second,
            cancel_on_disconnect=cancel_on_disconnect, drop_copy=drop_copy,
        )  # fmt: skip
        Console(stderr=True).print(
            f"[green]made[/] for {', '.join(definition.accounts)}; the password is shown this once:"
        )
        # Plain lines, so that a script can read them.
        typer.echo(f"sender_comp_id={definition.comp_id}")
        typer.echo(f"username={definition.username}")
        typer.echo(f"password={password}")

    @group.command("ls")
    def ls() -> None:
        """Show all sessions."""
        from datetime import UTC, datetime

        from rich.console import Console
        from rich.table import Table

        table = Table("comp id", "number", "accounts", "messages/s", "cancel on disconnect", "drop copy", "revoked")
        for found in _definitions().all():
            revoked = (
                datetime.fromtimestamp(found.revoked_at, UTC).isoformat(" ", "seconds") if found.revoked_at else ""
            )
            table.add_row(
                found.comp_id, str(found.number), " ".join(found.accounts), str(found.messages_per_second or ""),
                "yes" if found.cancel_on_disconnect else "", "yes" if found.drop_copy else "", revoked,
            )  # fmt: skip
        Console().print(table)

    @group.command("revoke")
    def revoke(comp_id: Annotated[str, typer.Argument(help="The session to refuse from now on.")]) -> None:
        """Refuse a session, and log it out if it is there; its orders stay."""
        from rich.console import Console

        _definitions().revoke(comp_id)
        Console().print(f"revoked {comp_id}")


def _definitions() -> Definitions:
    from api.fix.config import FixSettings
    from api.fix.definitions import Definitions
    from infra.settings import settings

    return Definitions(FixSettings().sessions_file or settings().secrets_dir / "fix-sessions.json")
