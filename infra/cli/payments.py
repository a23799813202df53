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
