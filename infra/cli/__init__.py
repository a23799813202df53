"""The `streambank` command: one file per verb, imported only when its verb is called."""

from infra.cli.app import main

__all__ = ["main"]
