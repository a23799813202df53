"""`streambank route`: the router to an execution venue."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command("route")
    def route(
        venue: Annotated[
            str,
            typer.Argument(
                help="Name of the venue: the account with risk VENUE that orders name as destination.",
                envvar="STREAMBANK_ROUTE_VENUE",
            ),
        ],
    ) -> None:
        """Route orders to a venue by FIX 4.4 until SIGTERM or Ctrl-C; settings are STREAMBANK_ROUTE_*.

        Exit codes: 0 stopped, logged out; 1 failed, may be restarted; 4 a report frame is missing.
        """
        import asyncio

        from api.fix.config import RouteSettings
        from api.fix.router import Router
        from infra.logs import configure_logs
        from infra.settings import settings

        configure_logs()

        async def serve() -> int:
            return await Router(venue, settings(), RouteSettings()).run()

        raise typer.Exit(asyncio.run(serve()))
