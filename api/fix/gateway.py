"""Runs the FIX gateway: connections in, frames of orders to Kafka, reports back; see `api.fix.process`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import prometheus_client
import structlog

from api.fix.config import FixSettings
from api.fix.definitions import Definitions, read_instruments
from api.fix.drop_copy import DropCopies
from api.fix.orders import OrderDesk
from api.fix.process import MESSAGES, READ_BYTES, Connection, FixProcess, read_messages
from api.fix.session import Session
from api.fix.store import PendingFrame, Place, Store
from api.fix.wire import Framer, Message
from infra.certificates import server_context
from infra.settings import Settings
from pipelines.frames import Frame

__all__ = ["Gateway"]

CONNECTIONS = prometheus_client.Gauge("streambank_fix_sessions", "Sessions that are logged on.")
REFUSED = prometheus_client.Counter("streambank_fix_logons_refused_total", "Logons that were refused.")

log = structlog.get_logger("streambank.fix")


class Gateway(FixProcess):
    """One process of the gateway; see the module."""

    config: FixSettings

    def __init__(self, settings: Settings, config: FixSettings) -> None:
        store = Store(config.store or settings.data_dir / "fix" / "gateway.sqlite")
        super().__init__(settings, config, store, producer="fix")
        self.definitions = Definitions(config.sessions_file or settings.secrets_dir / "fix-sessions.json")
        self._sessions: dict[str, Session] = {}
        instruments = read_instruments(config.instruments_file)
        self._orders = OrderDesk(config.comp_id, store, instruments, self._session, self._log_ends)
        self._copies = DropCopies(store, instruments, self._session)
        self._copies.watch(self.definitions.all())
        self.desk = self

    def take_frames(self) -> list[PendingFrame]:
        return self._orders.take_frames()

    def apply(self, frame: Frame) -> None:
        """Tell sessions what a frame of reports says: first of their orders, then those that get copies."""
        self._orders.apply(frame)
        self._copies.apply(frame)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(
            self._accept, self.settings.host, self.config.port, ssl=self._tls(), limit=READ_BYTES
        )
        log.info("listening", port=self.config.port, tls=self.config.certificate is not None)
        try:
            yield
        finally:
            server.close()

    def _tls(self) -> ssl.SSLContext | None:
        if self.config.certificate is None or self.config.key is None:
            return None
        return server_context(self.config.certificate, self.config.key, self.config.client_ca)

    def first_places(self, ends: Mapping[int, int]) -> dict[int, Place]:
        """Before its first order there is nothing that a gateway must hear of."""
        return {shard: Place(end + 1, 0) for shard, end in ends.items()}

    def started(self) -> None:
        """Cancel for those whose connection ended with the last gateway."""
        for definition in self.definitions.all():
            if definition.cancel_on_disconnect and definition.revoked_at is None:
                self._cancel_all(self._session(definition.comp_id))

    def log_out(self, text: str) -> None:
        self._log_out(list(self._sessions.values()), text)

    def tending(self) -> Callable[[], None] | None:
        self._copies.watch(self.definitions.all())
        connected = [session for session in self._sessions.values() if session.is_connected]
        revoked = [session for session in connected if self.definitions.active(session.comp_id) is None]
        due = [session for session in connected if session.is_due()]
        return partial(self._tend, revoked, due) if revoked or due else None

    def _tend(self, revoked: Sequence[Session], due: Sequence[Session]) -> None:
        self._log_out(revoked, "the session is revoked")
        for session in due:
            session.tick()

    def _session(self, comp_id: str) -> Session:
        session = self._sessions.get(comp_id)
        if session is None:
            session = Session(comp_id, self.config, self.store, self._touched, self._orders.receive)
            session.definition = self.definitions.active(comp_id)
            self._sessions[comp_id] = session
        return session

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        framer = Framer()
        session: Session | None = None
        peer = str(writer.get_extra_info("peername"))
        try:
            async with asyncio.timeout(self.config.logon_seconds):
                messages = await read_messages(reader, framer)
                session = await self._log_on(messages[0], writer, peer) if messages else None
            if session is None:
                return
            CONNECTIONS.inc()
            await self._converse(session, reader, writer, framer, messages[1:] if messages else None)
        except (TimeoutError, ConnectionError, ssl.SSLError) as error:
            log.info("connection_lost", peer=peer, detail=repr(error))
        finally:
            if session is not None:
                self._lost(session, peer)
            writer.close()
            self._connections.discard(task)

    async def _log_on(self, message: Message, writer: asyncio.StreamWriter, peer: str) -> Session | None:
        """The session of a Logon; None, and nothing said, for one that is not to be let in."""
        comp_id = message.get(49)
        definition = None
        if message.type == "A" and message.get(56) == self.config.comp_id and message.sequence > 0:
            definition = await self.definitions.authenticate(comp_id, message.get(553), message.get(554))
        if definition is None or self._session(comp_id).is_connected:
            REFUSED.inc()
            log.warning("logon_refused", peer=peer, comp_id=comp_id[:32], known=definition is not None)
            return None
        session = self._session(comp_id)
        link = Connection(writer, self.config.unsent_bytes)
        MESSAGES.labels("A").inc()
        self._change(lambda: session.logon(message, definition, link, self.config.minimum_heartbeat))
        log.info("logged_on", comp_id=comp_id, peer=peer, next_in=session.next_in, next_out=session.next_out)
        return session

    def _log_out(self, sessions: Sequence[Session], text: str) -> None:
        for session in sessions:
            session.logout(text)

    def _lost(self, session: Session, peer: str) -> None:
        CONNECTIONS.dec()
        session.detach()
        log.info("disconnected", comp_id=session.comp_id, peer=peer)
        if session.definition is not None and session.definition.cancel_on_disconnect and not self._failed:
            self._change(lambda: self._cancel_all(session))

    def _cancel_all(self, session: Session) -> None:
        canceled = self._orders.cancel_all(session)
        if canceled:
            log.info("cancel_on_disconnect", comp_id=session.comp_id, orders=canceled)
