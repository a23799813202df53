"""What notifications go to in tests: a receiver of webhooks and short messages, a mail server, and a notifier."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from confluent_kafka import Producer
from standardwebhooks import Webhook

from infra.kafka import kafka_options
from infra.registry import SchemaRegistry
from infra.settings import Settings
from pipelines.catalogue import NOTIFICATION_REQUESTS
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.notifications import notification_shard
from pipelines.wire import wrap
from tests.support.stack import variables

STREAMBANK = Path(sys.executable).with_name("streambank")


@dataclass
class Receiver:
    """An HTTP server; a path's first word says how it behaves. Webhooks are verified with the reference library."""

    secrets: dict[str, str] = field(default_factory=dict)
    """Path -> signing secret."""
    taken: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    """(path, webhook-id, payload) answered 200."""
    seen: Counter[str] = field(default_factory=Counter)
    """Requests by path."""
    ids_seen: list[str] = field(default_factory=list)
    messages: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    """Body and headers of short messages."""
    wrong: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    """Lets requests to /slow and /held end, and /dead live."""
    url: str = ""

    def ids(self, path: str) -> list[str]:
        return [message_id for found, message_id, _ in self.taken if found == path]

    def answer(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
        self.seen[path] += 1
        behaviour = path.split("/")[1]
        if behaviour == "sms":
            self.messages.append((json.loads(body), headers))
            return 200, {}
        if behaviour == "gone":
            return 410, {}
        if behaviour == "redirect":
            return 302, {"Location": f"{self.url}/ok/redirected"}
        if behaviour == "flaky" and self.seen[path] <= 2:
            return 500, {}
        if behaviour == "busy" and self.seen[path] == 1:
            return 503, {"Retry-After": "1"}
        if behaviour == "dead" and not self.release.is_set():
            return 500, {}
        message_id = headers["webhook-id"]
        self.ids_seen.append(message_id)
        if behaviour in ("slow", "held"):
            self.release.wait(60)
        try:
            payload = Webhook(self.secrets[path]).verify(body, headers)
        except Exception as error:
            self.wrong.append(f"{path}: {error!r}")
            return 400, {}
        self.taken.append((path, message_id, payload))
        return 200, {}


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers = receiver.answer(self.path, body, {k.lower(): v for k, v in self.headers.items()})
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": "0"}.items():
                    self.send_header(name, value)
                self.end_headers()
            except OSError:
                pass  # the notifier was killed, or did not wait

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.1,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.release.set()
        server.shutdown()
        server.server_close()
        thread.join(30)


class Mailbox:
    """What the mail server took; ``refuse`` maps a recipient to the answers that it gets first."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.refuse: dict[str, list[str]] = {}

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if answers := self.refuse.get(address):
            return answers.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's names
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"


@contextmanager
def running_mail_server(port: int) -> Iterator[Mailbox]:
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


class NotifierProcess:
    """`streambank notifier`; ``options`` are `NotifierSettings` fields."""

    def __init__(self, environment: Settings, log_file: Path, **options: Any) -> None:
        self._variables = variables(environment) | {
            f"STREAMBANK_NOTIFIER_{name.upper()}": str(value) for name, value in options.items()
        }
        self.log_file = log_file
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [STREAMBANK, "notifier"], env={**os.environ, **self._variables}, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


def ask(environment: Settings, requests: Iterable[Mapping[str, Any]]) -> None:
    """Produce requests, as JSON has them, a frame each."""
    codec = codec_of(NOTIFICATION_REQUESTS.name)
    with SchemaRegistry(environment) as registry:
        schema_id = registry.schema_id(NOTIFICATION_REQUESTS)
    # compressed, as relays send them
    producer = Producer({**kafka_options(environment), "linger.ms": 0, "compression.type": "lz4"})
    failed: list[str] = []
    for request in requests:
        shard = notification_shard(str(request["customer"]))
        frame = Frame(codec.topic, shard, 0, time.time_ns() // 1000, None, parse_events(codec, [request]))
        producer.produce(
            environment.kafka_topic(codec.topic), wrap(schema_id, codec.encode(frame)), str(shard).encode(), shard,
            on_delivery=lambda error, _: failed.append(error.str()) if error else None,
        )  # fmt: skip
    assert producer.flush(30) == 0
    assert not failed, failed
