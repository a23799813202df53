"""`streambank sink`: run a sink in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from jobs.sinks import SINKS

Destination = StrEnum("Destination", [(name, name) for name in SINKS])  # type: ignore[misc]


def register(app: typer.Typer) -> None:
    @app.command()
    def sink(
        destination: Annotated[Destination, typer.Argument(help="What to write to.")],
        web_port: Annotated[
            int | None,
            typer.Option(
                help="Port of /health and /metrics; default: STREAMBANK_FAUST_WEB_PORT plus the sink's own offset.",
                envvar="STREAMBANK_SINK_WEB_PORT",
            ),
        ] = None,
        max_batch_events: Annotated[
            int, typer.Option(help="Events applied at once, at most.", min=1, envvar="STREAMBANK_SINK_MAX_BATCH_EVENTS")
        ] = 16_384,
        dead_letter_ratio: Annotated[
            float,
            typer.Option(
                help="Stop when more than this share of recent records had to be set aside.",
                min=0.0,
                max=1.0,
                envvar="STREAMBANK_SINK_DEAD_LETTER_RATIO",
            ),
        ] = 0.05,
        dead_letter_window: Annotated[
            int,
            typer.Option(
                help="How many records are recent for the ratio.", min=1, envvar="STREAMBANK_SINK_DEAD_LETTER_WINDOW"
            ),
        ] = 1_000,
        stall_seconds: Annotated[
            float,
            typer.Option(
                help="Unhealthy when records wait and none was applied for so long.",
                min=0.1,
                envvar="STREAMBANK_SINK_STALL_SECONDS",
            ),
        ] = 30.0,
    ) -> None:
        """Carry what a job wrote into a store, or as commands to another system (a relay), effectively once.

        Exit codes: 0 drained after SIGTERM or Ctrl-C; 1 failed, may be restarted; 3 too many dead letters; 4 a sequence
        is missing. After 3 and 4 somebody must look before a restart helps.
        """
        import asyncio

        import uvloop

        from infra.logs import configure_logs
        from infra.settings import settings
        from jobs.sinks import load_sink
        from jobs.sinks.worker import SinkOptions, SinkWorker

        configure_logs()
        options = SinkOptions(
            max_batch_events=max_batch_events,
            dead_letter_ratio=dead_letter_ratio,
            dead_letter_window=dead_letter_window,
            stall_seconds=stall_seconds,
            web_port=web_port,
        )
        made = load_sink(destination.value)(settings())
        uvloop.install()  # also for the loop of Faust's own thread, which does most of the work
        raise typer.Exit(asyncio.run(SinkWorker(made, settings(), options).run()))
