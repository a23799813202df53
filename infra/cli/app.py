"""Assembles the command line from the files beside it.

Every module of this package but this one is a verb (or a group of verbs) and has ``register(app)``. Verbs import what
they need inside their functions, so that `streambank --help` stays quick. Every flag has an environment variable.

Exit codes: 0 success, 1 the work failed (the message says why), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules

import typer

import infra.cli as verbs
from pipelines.errors import StreambankError

app = typer.Typer(
    name="streambank",
    help="Money on streams: run the stack, submit jobs, load, replay, measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "STREAMBANK", "help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `streambank` command."""
    for module in sorted(iter_modules(verbs.__path__), key=lambda found: found.name):
        if module.name != "app":
            import_module(f"infra.cli.{module.name}").register(app)
    try:
        app()
    except StreambankError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
