"""`streambank payments`: the clock that time-outs wait for, the rules of ledgers, limits, and reconciliation."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["register"]

payments = typer.Typer(no_args_is_help=True, help="Operate payments: clock, rules, blocked parties, reconciliation.")


def register(app: typer.Typer) -> None:
    app.add_typer(payments, name="payments")


@payments.command()
def clock(
    interval: Annotated[
        float, typer.Option(min=0.05, help="Seconds between ticks.", envvar="STREAMBANK_PAYMENTS_CLOCK_INTERVAL")
    ] = 1.0,
) -> None:
    """Send the time to the payments job until SIGTERM or Ctrl-C; time-outs and scheduled payments need it.

    Several may run; together they are one clock.
    """
    import signal
    import threading

    from infra.logs import configure_logs
    from infra.settings import settings
    from jobs.payments_clock import run_clock

    configure_logs()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_clock(settings(), interval, stop)


@payments.command()
def rules(
    ledger: Annotated[int, typer.Argument(min=1, max=2**32 - 1, help="The ledger.")],
    currency: Annotated[
        str, typer.Option(help="Its currency, ISO 4217; empty: any.", envvar="STREAMBANK_PAYMENTS_CURRENCY")
    ] = "",
    minimum_amount: Annotated[
        int, typer.Option(min=0, help="Least of one payment.", envvar="STREAMBANK_PAYMENTS_MINIMUM_AMOUNT")
    ] = 0,
    maximum_amount: Annotated[
        int, typer.Option(min=0, help="Most of one payment; 0: no bound.", envvar="STREAMBANK_PAYMENTS_MAXIMUM_AMOUNT")
    ] = 0,
    opens_at: Annotated[
        int, typer.Option(min=0, max=86_400, help="First second of the UTC day.", envvar="STREAMBANK_PAYMENTS_OPENS_AT")
    ] = 0,
    closes_at: Annotated[
        int, typer.Option(min=0, max=86_400, help="Cut-off, second of the day.", envvar="STREAMBANK_PAYMENTS_CLOSES_AT")
    ] = 86_400,
    screening: Annotated[str, typer.Option(help="off or stream.", envvar="STREAMBANK_PAYMENTS_SCREENING")] = "off",
    duplicate_seconds: Annotated[
        int,
        typer.Option(
            min=0, help="Refuse equal payments within; 0: do not look.", envvar="STREAMBANK_PAYMENTS_DUPLICATE_SECONDS"
        ),
    ] = 0,
    hold_seconds: Annotated[
        int, typer.Option(min=1, help="How long a hold waits.", envvar="STREAMBANK_PAYMENTS_HOLD_SECONDS")
    ] = 604_800,
) -> None:
    """Set the rules of a ledger for payments that are validated from now on."""
    from infra.settings import settings
    from jobs.payments_clock import send_command
    from pipelines.catalogue import PAYMENTS_SHARDS

    command = {
        "type": "PaymentRules", "ledger": ledger, "currency": currency, "minimum_amount": minimum_amount,
        "maximum_amount": maximum_amount, "opens_at": opens_at, "closes_at": closes_at, "screening": screening,
        "duplicate_seconds": duplicate_seconds, "hold_seconds": hold_seconds,
    }  # fmt: skip
    send_command(settings(), ledger % PAYMENTS_SHARDS, command)
    typer.echo(f"sent: ledger {ledger} has these rules from now on")


@payments.command()
def block(
    ledger: Annotated[int, typer.Argument(min=1, max=2**32 - 1, help="Ledger of the account.")],
    account: Annotated[str, typer.Argument(help="The account.")],
    blocked: Annotated[bool, typer.Option("--on/--off", help="Put it on the list, or take it off.")] = True,
) -> None:
    """Put an account on the list of blocked parties, or take it off."""
    from infra.settings import settings
    from jobs.payments_clock import send_command
    from pipelines.catalogue import PAYMENTS_SHARDS

    send_command(
        settings(), ledger % PAYMENTS_SHARDS, {"type": "BlockedParty", "account_id": account, "blocked": blocked}
    )
    typer.echo(f"sent: account {account} is {'blocked' if blocked else 'not blocked'} from now on")


@payments.command()
def reconcile(
    postgres: Annotated[
        bool, typer.Option(help="Compare Postgres too.", envvar="STREAMBANK_PAYMENTS_RECONCILE_POSTGRES")
    ] = True,
    notifications: Annotated[
        bool,
        typer.Option(help="Compare the notifications too.", envvar="STREAMBANK_PAYMENTS_RECONCILE_NOTIFICATIONS"),
    ] = True,
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that a payment's event may take to Postgres and to the outbox.",
            envvar="STREAMBANK_PAYMENTS_RECONCILE_PATIENCE",
        ),
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare payments with ledger and notifications, payment by payment; repairs nothing.

    Exit code 0: they agree (what is under way is counted, and no difference); 1: there are differences; 3: Kafka or
    Postgres did not answer, so nothing was found out.
    """
    import json

    import psycopg
    from rich.console import Console
    from rich.table import Table

    from infra.settings import settings
    from jobs.payments_reconcile import reconcile as compare
    from pipelines.errors import StreambankError

    try:
        found = compare(settings(), postgres=postgres, notifications=notifications, patience_seconds=patience)
    except (StreambankError, psycopg.Error) as error:
        typer.secho(f"error: not compared: {str(error).strip()}", fg="red", err=True)
        raise typer.Exit(3) from error
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        table = Table("what", "figure")
        for name in ("payments", "waiting", "behind", "held", "captured", "refunded"):
            table.add_row(name, f"{getattr(found, name):,}")
        for status, number in sorted(found.statuses.items()):
            table.add_row(status, f"{number:,}")
        for name, figure in found.as_json()["notifications"].items() if found.notifications else ():
            if isinstance(figure, int):
                table.add_row(f"notifications {name.replace('_', ' ')}", f"{figure:,}")
        for difference in found.differences:
            about = (
                f"payment {difference.payment_id}, shard {difference.shard}"
                if difference.shard >= 0
                else "notifications"
            )
            table.add_row(f"[red]{about}", difference.what)
        Console().print(table)
    if not found.clean:
        raise typer.Exit(1)
