"""A circuit breaker for what answers by callbacks, where a context manager around the call sees no failure.

After ``failures_to_open`` failures in a row nothing is asked for ``open_seconds``; then one call at a time may try, and
the first that succeeds closes the circuit. A call that was let through must be reported, by `succeeded` or `failed`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from api.logs import log

__all__ = ["Circuit"]


class Circuit:
    """Use from one event loop. ``name`` is what the log calls it."""

    def __init__(
        self, name: str, *, failures_to_open: int, open_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._failures_to_open = failures_to_open
        self._open_seconds = open_seconds
        self._clock = clock
        self._failures = 0
        self._tries_at = 0.0
        self._is_trying = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, but for one that tries."""
        return self._failures >= self._failures_to_open

    def allows(self) -> bool:
        """Whether a call may be made now."""
        if not self.is_open:
            return True
        if self._is_trying or self._clock() < self._tries_at:
            return False
        self._is_trying = True
        return True

    def succeeded(self) -> None:
        if self.is_open:
            log().info("circuit closed", circuit=self._name)
        self._failures = 0
        self._is_trying = False

    def failed(self) -> None:
        was_open = self.is_open
        self._failures += 1
        self._is_trying = False
        self._tries_at = self._clock() + self._open_seconds
        if self.is_open and not was_open:
            log().warning("circuit open", circuit=self._name, failures=self._failures)
