"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(condition: Callable[[], Found], deadline: float, what: str) -> Found:
    """Poll until the condition is truthy and return its value; fail after ``deadline`` seconds, saying ``what``.

    An exception of the condition counts as "not yet" and is shown when time is up.
    """
    end = time.monotonic() + deadline
    pause = 0.02
    while True:
        last: object
        try:
            value = condition()
            if value:
                return value
            last = value
        except Exception as error:
            last = repr(error)
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline:g} s; last: {last}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
