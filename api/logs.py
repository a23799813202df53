"""The API's logs: JSON lines on stderr, each with the request's trace id; see `infra.logs`."""

from __future__ import annotations

import logging
import os
import re
from typing import Final

import structlog

from infra.logs import configure_logs

__all__ = ["configure_api_logs", "log", "trace_id_of"]

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def configure_api_logs() -> None:
    """Like `configure_logs`, without the drivers' own records."""
    configure_logs()
    for driver in ("cassandra", "psycopg.pool"):  # they log every refused connection; queries count their failures
        logging.getLogger(driver).setLevel(logging.CRITICAL)


def log() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("api")
    return logger


def trace_id_of(traceparent: str | None) -> str:
    """The trace id of an incoming W3C ``traceparent``, or a new one."""
    incoming = _TRACEPARENT.fullmatch(traceparent or "")
    return incoming[1] if incoming else os.urandom(16).hex()
