"""Runs a router: orders that are marked for a venue go to it by FIX, what it says goes to the log; see
`api.fix.process` for what survives and `api.fix.routes` for what is said.

One process per venue, an initiator with one session. While the venue is away the router tries to reach it, with pauses
that double; it stays healthy, for this is what the circuit is for, and says in /health that it is not connected.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import prometheus_client
import structlog

from api.fix.config import RouteSettings
from api.fix.definitions import read_instruments
from api.fix.process import READ_BYTES, Connection, FixProcess, read_messages
from api.fix.route_store import RouteStore
from api.fix.routes import RouteDesk
from api.fix.session import Session
from api.fix.store import Place
from api.fix.wire import Framer, Message
from infra.settings import Settings

__all__ = ["Router"]

CONNECTED = prometheus_client.Gauge("streambank_route_connected", "1 while logged on to the venue.")

log = structlog.get_logger("streambank.route")


class Router(FixProcess):
    """The router of ``venue``; see the module."""

    config: RouteSettings
    store: RouteStore

    def __init__(self, venue: str, settings: Settings, config: RouteSettings) -> None:
        store = RouteStore(config.store or settings.data_dir / "route" / f"{venue}.sqlite")
        super().__init__(settings, config, store, producer="router")
        self.venue = venue
        self._routes = RouteDesk(venue, config, store, read_instruments(config.instruments_file), self._log_ends)
        self.desk = self._routes
        self._session = Session(config.target_comp_id or venue, config, store, self._touched, self._routes.receive)
        self._routes.session = self._session

    def first_places(self, ends: Mapping[int, int]) -> dict[int, Place]:
        """From the start: an order may have been marked for the venue before its router came up for the first time, or
        the store may be lost. What is older than the store is asked for, never just sent."""
        with self.store.transaction():
            for shard, end in ends.items():
                self.store.mark(f"end {shard}", end)
        return {shard: Place(0, 0) for shard in ends}

    def started(self) -> None:
        self._routes.lost()  # the time that the venue is given to come begins now

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._stay_connected())
        task.add_done_callback(self._ended)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def log_out(self, text: str) -> None:
        self._session.logout(text)

    def tending(self) -> Callable[[], None] | None:
        return self._tend

    def _tend(self) -> None:
        if not self._routes.is_caught_up:
            self._routes.is_caught_up = all(
                place.next_offset > self.store.mark(f"end {shard}", -1) for shard, place in self.store.places().items()
            )
        if self._session.is_connected and self._session.is_due():
            self._session.tick()
        self._routes.tend()
        CONNECTED.set(self._session.is_logged_on)

    def condition(self) -> tuple[bool, dict[str, Any]]:
        return True, {
            "venue": self.venue, "connected": self._session.is_logged_on, "caught_up": self._routes.is_caught_up,
            "circuit_open": self._routes.circuit.is_open, "orders": self._routes.live,
        }  # fmt: skip

    async def _stay_connected(self) -> None:
        pause = self.config.retry_seconds
        said = ""
        while not self._stop.is_set():
            try:
                async with asyncio.timeout(self.config.connect_seconds):
                    reader, writer = await asyncio.open_connection(
                        self.config.host, self.config.port, ssl=self._tls(), limit=READ_BYTES,
                        server_hostname=(self.config.server_name or self.config.host) if self.config.ca else None,
                    )  # fmt: skip
            except (OSError, TimeoutError) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("venue_not_reached", venue=self.venue, detail=repr(error))
            else:
                said = ""
                if await self._talk(reader, writer):
                    pause = self.config.retry_seconds
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
            pause = min(2 * pause, 30 * self.config.retry_seconds)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One connection, until it ends; whether the venue let us in."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        framer, session, config = Framer(), self._session, self.config
        link = Connection(writer, config.unsent_bytes)
        credentials = [(553, config.username), (554, config.password.get_secret_value())]
        was_logged_on = False
        try:
            self._change(lambda: session.open(link, config.heartbeat, credentials, reset=config.reset))
            async with asyncio.timeout(config.connect_seconds):
                messages = await read_messages(reader, framer)
            if messages:
                self._change(lambda: self._receive(session, messages))
            was_logged_on = session.is_logged_on
            if was_logged_on:
                log.info("logged_on", venue=self.venue, next_in=session.next_in, next_out=session.next_out)
                self._change(self._tend)
            await self._converse(session, reader, writer, framer, [] if messages else None)
        except (TimeoutError, ConnectionError, ssl.SSLError) as error:
            log.info("connection_lost", venue=self.venue, detail=repr(error))
        finally:
            session.detach()
            self._routes.lost()
            CONNECTED.set(0)
            writer.close()
            self._connections.discard(task)
            log.info("disconnected", venue=self.venue)
        return was_logged_on

    def _receive(self, session: Session, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.type == "5":
                log.warning("logout_by_venue", venue=self.venue, text=message.get(58))
        super()._receive(session, messages)

    def _tls(self) -> ssl.SSLContext | None:
        if self.config.ca is None:
            return None
        context = ssl.create_default_context(cafile=str(self.config.ca))
        if self.config.certificate is not None:
            context.load_cert_chain(self.config.certificate, self.config.key)
        return context
