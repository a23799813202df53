"""Structured logs: one JSON object a line on stderr.

Never a token, a secret, a header or a body: only what is named at the call. Of libraries only warnings are shown.
Whatever looks like a card number is cut to its last four digits, tracebacks included.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Final

import structlog

from pipelines.card_numbers import masked

__all__ = ["configure_logs"]

SILENCE_SECONDS: Final = 10.0


def configure_logs(level: int = logging.INFO) -> None:
    """Send this process's structlog and standard-library records to stderr as JSON lines.

    Context variables bound with structlog are part of every line.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [structlog.processors.format_exc_info, _without_card_numbers, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    handler.addFilter(_OnceInAWhile())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def _without_card_numbers(_logger: Any, _method: str, event: Any) -> Any:
    return {key: masked(value) for key, value in event.items()}


class _OnceInAWhile(logging.Filter):
    """Lets the same message of a library through once in ten seconds: while a server is away, its client says the
    same seventy times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message, now = record.getMessage(), time.monotonic()
        if now - self._said.get(message, -SILENCE_SECONDS) < SILENCE_SECONDS:
            return False
        if len(self._said) > 1_000:
            self._said.clear()
        self._said[message] = now
        return True
