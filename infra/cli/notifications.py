"""`streambank notifier` runs the notifier; `streambank notifications` looks at deliveries and sends them again."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer


class State(StrEnum):
    """States of a delivery."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    DEAD = "dead"


class ChannelName(StrEnum):
    """Channels with endpoints."""

    WEBHOOK = "webhook"
    EMAIL = "email"
    SMS = "sms"


Customer = Annotated[str | None, typer.Option(help="Only this customer's.", envvar="STREAMBANK_NOTIFICATIONS_CUSTOMER")]
OnlyChannel = Annotated[
    ChannelName | None, typer.Option(help="Only this channel.", envvar="STREAMBANK_NOTIFICATIONS_CHANNEL")
]
OnlyId = Annotated[
    str | None, typer.Option("--id", help="Only this notification.", envvar="STREAMBANK_NOTIFICATIONS_ID")
]


def register(app: typer.Typer) -> None:
    @app.command()
    def notifier() -> None:
        """Tell customers what is asked for, until SIGTERM or Ctrl-C; settings are STREAMBANK_NOTIFIER_*.

        Exit codes: 0 stopped with every attempt in hand ended; 1 failed, may be restarted.
        """
        import asyncio

        from infra.logs import configure_logs
        from infra.settings import settings
        from jobs.notifications.config import NotifierSettings
        from jobs.notifications.notifier import Notifier

        configure_logs()

        async def run() -> int:
            return await Notifier(settings(), NotifierSettings()).run()

        raise typer.Exit(asyncio.run(run()))

    group = typer.Typer(help="What customers were told: look, send again.", no_args_is_help=True)
    app.add_typer(group, name="notifications")

    @group.command("ls")
    def ls(
        state: Annotated[
            State | None, typer.Option(help="Only this state.", envvar="STREAMBANK_NOTIFICATIONS_STATE")
        ] = None,
        channel: OnlyChannel = None,
        customer: Customer = None,
        message_id: OnlyId = None,
        limit: Annotated[int, typer.Option(help="Rows, at most.", min=1, envvar="STREAMBANK_NOTIFICATIONS_LIMIT")] = 50,
    ) -> None:
        """Deliveries, newest first; `--state dead` are the dead letters of the channels."""
        from rich.console import Console
        from rich.table import Table

        async def found(outbox: Any) -> Any:
            return await outbox.rows(
                state=state, channel=channel, customer=customer, message_id=message_id, limit=limit
            )

        table = Table("notification", "customer", "kind", "channel", "endpoint", "state", "attempts", "next", "error")
        for row in _with_outbox(found):
            following = f"{row.next_attempt_at:%Y-%m-%d %H:%M:%S}" if row.state == State.WAITING else ""
            table.add_row(
                row.message_id, row.customer, row.kind, row.channel, row.endpoint_id, row.state, str(row.attempts),
                following, row.last_error,
            )  # fmt: skip
        Console().print(table)

    @group.command("replay")
    def replay(
        channel: OnlyChannel = None,
        customer: Customer = None,
        message_id: OnlyId = None,
        delivered: Annotated[
            bool,
            typer.Option(help="Also what arrived; needs --id.", envvar="STREAMBANK_NOTIFICATIONS_DELIVERED"),
        ] = False,
        everything: Annotated[
            bool, typer.Option("--all", help="All dead ones.", envvar="STREAMBANK_NOTIFICATIONS_ALL")
        ] = False,
    ) -> None:
        """Send dead deliveries again, with the same ids and from the start of the schedule."""
        from rich.console import Console

        if not (channel or customer or message_id or everything):
            raise typer.BadParameter("name what to replay: --id, --customer, --channel or --all")
        if delivered and message_id is None:
            raise typer.BadParameter("--delivered needs --id")

        async def again(outbox: Any) -> Any:
            return await outbox.replay(channel=channel, customer=customer, message_id=message_id, delivered=delivered)

        Console().print(f"{_with_outbox(again)} deliveries wait for the notifier")

    @group.command("endpoints")
    def endpoints(
        customer: Customer = None,
        enable: Annotated[
            str | None,
            typer.Option(metavar="ID", help="Use this endpoint again.", envvar="STREAMBANK_NOTIFICATIONS_ENABLE"),
        ] = None,
        disable: Annotated[
            str | None,
            typer.Option(metavar="ID", help="Do not use this one.", envvar="STREAMBANK_NOTIFICATIONS_DISABLE"),
        ] = None,
    ) -> None:
        """Endpoints and whether they are used; switch one on or off."""
        from rich.console import Console
        from rich.table import Table

        from pipelines.errors import StreambankError

        for endpoint_id, reason in ((enable, None), (disable, "switched off by an operator")):
            if endpoint_id is not None:

                async def switch(outbox: Any, target: str = endpoint_id, why: str | None = reason) -> Any:
                    return await outbox.switch_endpoint(target, why)

                if not _with_outbox(switch):
                    raise StreambankError(f"no endpoint {endpoint_id}; `streambank notifications endpoints` lists them")

        async def found(outbox: Any) -> Any:
            return await outbox.endpoints(customer)

        table = Table("endpoint", "customer", "channel", "address", "kinds", "state")
        for row in _with_outbox(found):
            table.add_row(
                row["id"], row["customer"], row["channel"], row["address"], " ".join(row["kinds"]) or "all",
                f"off: {row['disabled_reason']}" if row["disabled_reason"] else "on",
            )  # fmt: skip
        Console().print(table)


def _with_outbox(work: Any) -> Any:
    import asyncio

    from infra.settings import settings
    from jobs.notifications.outbox import Outbox

    async def run() -> Any:
        outbox = Outbox(settings())
        await outbox.open()
        try:
            return await work(outbox)
        finally:
            await outbox.close()

    return asyncio.run(run())
