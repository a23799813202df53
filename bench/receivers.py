"""A mail server and a receiver of webhooks, to which a soak has its notifications sent.

They live in this process; they refuse now and then, so that deliveries are tried again, and remember every notification
that they took.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from standardwebhooks import Webhook

from bench.deployment import free_ports
from pipelines.errors import StreambankError

__all__ = ["Receivers"]

REFUSED_EACH: Final = 10
"""The receivers refuse the first try of one notification in so many."""


class Receivers:
    """A mail server and a receiver of webhooks on loopback; a context manager. Thread-safe enough to be read at rest.

    ``mails`` and ``hooks``: how often each notification was taken, by its id; ``wrong``: what should never come.
    """

    def __init__(self) -> None:
        self.mails: Counter[str] = Counter()
        self.hooks: Counter[str] = Counter()
        self.secrets: dict[str, str] = {}
        """Path of a webhook -> its signing secret."""
        self.wrong: list[str] = []
        self.smtp_port = free_ports(1)[0]
        self.url = ""
        self._data: dict[str, Any] = {}
        self._refused: set[str] = set()
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            self.url = starting.enter_context(self._webhooks())
            starting.enter_context(self._mail_server())
            self._ending = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    def refuses(self, name: str) -> bool:
        """Whether this try is refused: the first one of some."""
        if name in self._refused or sum(name.encode()) % REFUSED_EACH:
            return False
        self._refused.add(name)
        return True

    def take_hook(self, path: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status that a webhook is answered with."""
        message_id = headers.get("webhook-id", "")
        try:
            payload = Webhook(self.secrets[path]).verify(body, dict(headers))
        except Exception as error:  # whatever it is, it must not come
            self.wrong.append(f"{path}: {message_id}: {error!r}")
            return 400
        if self.refuses(f"hook {message_id}"):
            return 500
        self.hooks[message_id] += 1
        if self._data.setdefault(message_id, payload) != payload:
            self.wrong.append(f"{message_id} came with other contents: {payload}")
        return 200

    @contextmanager
    def _webhooks(self) -> Iterator[str]:
        receivers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receivers.take_hook(self.path, body, {k.lower(): v for k, v in self.headers.items()})
                with suppress(OSError):  # the notifier was killed, or did not wait
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)

    @contextmanager
    def _mail_server(self) -> Iterator[None]:
        try:
            from aiosmtpd.controller import Controller
        except ImportError as error:
            raise StreambankError("the mail server of soaks needs aiosmtpd; run `make setup`") from error
        controller = Controller(_Mailbox(self), hostname="127.0.0.1", port=self.smtp_port)
        controller.start()
        try:
            yield
        finally:
            controller.stop()


class _Mailbox:
    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        message_id = str(message_from_bytes(envelope.content)["Message-ID"]).strip("<>").partition(".")[0]
        if self._receivers.refuses(f"mail {message_id}"):
            return "451 try later"
        self._receivers.mails[message_id] += 1
        return "250 OK"
