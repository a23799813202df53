"""The gRPC server of one worker, beside its HTTP server and in the same event loop.

Every worker listens on the same port (SO_REUSEPORT: the kernel spreads connections). TLS is on when the settings name a
certificate and its key. To make the code of ``api/proto`` again after a change of a .proto::

    uv run --no-project --python 3.11 --with grpcio-tools==1.65.5 python -m grpc_tools.protoc \\
        --proto_path=. --python_out=. --pyi_out=. --grpc_python_out=. api/proto/trading.proto

It is checked in, because the compiler is needed by nobody else and set-up stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from api.config import ApiSettings
from api.logs import log
from infra.settings import Settings
from pipelines.errors import StreambankError

__all__ = ["GrpcStartError", "start_grpc"]

MAX_MESSAGE_BYTES: Final = 1 << 20
MAX_METADATA_BYTES: Final = 16 << 10


class GrpcStartError(StreambankError):
    """The gRPC port cannot be served; the message says what to change."""


async def start_grpc(settings: Settings, config: ApiSettings, services: Sequence[Callable[[Any], None]]) -> Any:
    """A running `grpc.aio.Server` on ``config.grpc_port``. ``services`` add themselves to it."""
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ]
    )
    for add in services:
        add(server)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{config.grpc_port}"
    try:
        if config.grpc_certificate is not None and config.grpc_key is not None:
            pair = (config.grpc_key.read_bytes(), config.grpc_certificate.read_bytes())
            server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            server.add_insecure_port(address)
    except (OSError, RuntimeError) as error:
        raise GrpcStartError(
            f"gRPC on {address}: {error}; choose another port with STREAMBANK_API_GRPC_PORT, or check the files of "
            "STREAMBANK_API_GRPC_CERTIFICATE and STREAMBANK_API_GRPC_KEY"
        ) from error
    await server.start()
    log().info("grpc serves", address=address, tls=config.grpc_certificate is not None)
    return server
