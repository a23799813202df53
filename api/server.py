"""The API's processes: a parent that owns the listening sockets, and workers that serve them.

The parent binds one socket per worker (SO_REUSEPORT, so that the kernel spreads connections) and keeps them: when a
worker dies, connections that it had not accepted yet wait for its successor instead of being reset. A dead worker is
started again, after a growing pause when it keeps dying. SIGTERM and SIGINT stop everything in order: no new
connections, running requests are answered, acknowledgements are awaited.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from api.config import ApiSettings, api_settings
from api.logs import configure_api_logs, log
from infra.settings import Settings, settings
from pipelines.errors import StreambankError

__all__ = ["ApiStartError", "serve"]

BACKLOG: Final = 1024
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.05
STOP_MARGIN_SECONDS: Final = 15.0
PORT_PATIENCE_SECONDS: Final = 15.0
MAX_HEADER_BYTES: Final = 8190
SWITCH_SECONDS: Final = 0.0005
"""How long a thread that talks to Kafka waits for a busy event loop to let it have the interpreter, which it needs for
every delivery report and every batch of results; Python's default is ten times as long."""


class ApiStartError(StreambankError):
    """The API cannot start; the message says what to change."""


@dataclass(slots=True)
class _Child:
    listener: socket.socket
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    start_at: float = 0.0


def serve(where: Settings | None = None, config: ApiSettings | None = None) -> int:
    """Run the API until SIGTERM or SIGINT; returns the exit code. Raises `ApiStartError` when the port is taken."""
    where, config = where or settings(), config or api_settings()
    configure_api_logs()
    _prepare_keys(where, config)
    _tls(where, config)  # what is wrong with the certificates is said before a worker starts
    metrics = _fresh_metrics_directory(where)
    children = [
        _Child(listener) for listener in _listeners(where.host, where.api_port, config.workers, PORT_PATIENCE_SECONDS)
    ]
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    log().info("api starts", url=where.api_url, workers=config.workers, pid=os.getpid())
    try:
        while not stopping:
            for child in children:
                _keep_alive(child, metrics)
            time.sleep(POLL_SECONDS)
    finally:
        _stop(children, config.drain_seconds)
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(metrics, ignore_errors=True)
    log().info("api stopped")
    return 0


def _prepare_keys(where: Settings, config: ApiSettings) -> None:
    if config.jwks_url:
        return
    from api.keys import KeyStore

    KeyStore(where.secrets_dir / "keys", config.token_seconds).ensure()


def _tls(where: Settings, config: ApiSettings) -> ssl.SSLContext | None:
    """The workers' TLS, or None when it is off. Raises `CertificateError`."""
    if where.api_tls == "off":
        return None
    from infra.certificates import server_context

    return server_context(
        config.tls_certificate or where.tls_dir / "server.pem",
        config.tls_key or where.tls_dir / "server-key.pem",
        (config.tls_client_ca or where.tls_dir / "ca.pem") if where.api_tls == "mutual" else None,
    )


def _fresh_metrics_directory(where: Settings) -> Path:
    directory = where.data_dir / "api" / f"metrics-{where.api_port}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _listeners(host: str, port: int, count: int, patience_seconds: float) -> list[socket.socket]:
    """``count`` listening sockets on one address. A port that somebody else serves is refused, although SO_REUSEPORT
    would let us share it; but the workers of a parent that was killed get the time to notice and to drain."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                probe.bind((host, port))
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise ApiStartError(
                        f"the API's port {port} on {host} cannot be used ({error.strerror}); choose another with "
                        "STREAMBANK_API_PORT, or stop what listens there"
                    ) from error
            time.sleep(POLL_SECONDS)
    listeners = []
    for _ in range(count):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        listener.set_inheritable(True)
        listeners.append(listener)
    return listeners


def _keep_alive(child: _Child, metrics: Path) -> None:
    now = time.monotonic()
    if child.process is not None and child.process.poll() is not None:
        died = child.process
        child.process = None
        if now - child.started > STEADY_SECONDS:
            child.pause = FIRST_PAUSE_SECONDS
        child.start_at = now + child.pause
        log().error("worker died", pid=died.pid, exit_code=died.returncode, restart_in=round(child.pause, 2))
        child.pause = min(child.pause * 2, LONGEST_PAUSE_SECONDS)
        for gauge in metrics.glob(f"gauge_live*_{died.pid}.db"):
            gauge.unlink(missing_ok=True)  # counters stay: what a dead worker counted was counted
    if child.process is None and now >= child.start_at:
        descriptor = child.listener.fileno()
        child.process = subprocess.Popen(
            [sys.executable, "-m", "api.server", str(descriptor), str(os.getpid())],
            pass_fds=[descriptor],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
            start_new_session=True,  # a Ctrl-C at the terminal reaches the parent only, which stops workers in order
        )
        child.started = now


def _stop(children: list[_Child], drain_seconds: float) -> None:
    for child in children:
        child.listener.close()
        if child.process is not None and child.process.poll() is None:
            child.process.terminate()
    deadline = time.monotonic() + drain_seconds + STOP_MARGIN_SECONDS
    for child in children:
        if child.process is None:
            continue
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log().error("worker did not stop in time and is killed", pid=child.process.pid)
            child.process.kill()
            child.process.wait()


async def _work(descriptor: int, parent: int) -> None:
    """One worker, until SIGTERM or until its parent is gone."""
    from aiohttp import web

    from api.app import answer_unparsed, make_app

    where, config = settings(), api_settings()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listener = socket.socket(fileno=descriptor)
    runner = web.AppRunner(
        make_app(where, config),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=config.drain_seconds,
        # Also the deadline of a connection's first headers: a slow sender of headers is closed after it.
        keepalive_timeout=max(15.0, config.idle_seconds),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    )
    web.RequestHandler.handle_error = answer_unparsed  # type: ignore[method-assign, assignment]
    await runner.setup()
    await web.SockSite(runner, listener, backlog=BACKLOG, ssl_context=_tls(where, config)).start()
    log().info("worker serves", pid=os.getpid())
    while not stop.is_set() and os.getppid() == parent:
        try:
            async with asyncio.timeout(1.0):
                await stop.wait()
        except TimeoutError:
            continue
    await runner.cleanup()


def _worker_main() -> None:
    import uvloop  # not in the parent, which has no loop

    configure_api_logs()
    sys.setswitchinterval(SWITCH_SECONDS)
    uvloop.run(_work(int(sys.argv[1]), parent=int(sys.argv[2])))


if __name__ == "__main__":
    _worker_main()
