"""The API's logs: JSON lines on stderr, each with the request's trace id; see `infra.logs`."""

from __future__ import annotations

import logging

import structlog

from infra.logs import configure_logs

__all__ = ["configure_api_logs", "log"]


def configure_api_logs() -> None:
    """Like `configure_logs`, without the drivers' own records."""
    configure_logs()
    for driver in ("cassandra", "psycopg.pool"):  # they log every refused connection; queries count their failures
        logging.getLogger(driver).setLevel(logging.CRITICAL)


def log() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("api")
    return logger
