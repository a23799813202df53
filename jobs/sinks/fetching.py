"""How a sink's consumer fetches: at once, or together with what comes soon after.

A fetch of one small record costs a consumer in Python about a millisecond, whatever is in it, and a batch of one costs
the sink as much as a batch of ten. A sink that gathers records (`Sink.flush_seconds`) lets the broker do it: a record
that comes soon after others waits for the answer to one more fetch, with all that came until it is time again. What
comes after a pause is handed over at once, and while nothing comes, a fetch waits as long as any other.
"""

from __future__ import annotations

import time
from typing import Any, Final

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer

__all__ = ["consumer_that_gathers", "thread_that_gathers"]

FETCH_BYTES: Final = 64 * 1024
"""As soon as the broker has so much for a sink that gathers, it answers."""
AT_ONCE: Final = (1, 1500)
"""Bytes and milliseconds after which a fetch is answered whose first record is awaited; Faust's own."""
LATE_SECONDS: Final = 0.002
"""So much longer than it may take the answer is waited for that gathers; what is later still comes next."""


def consumer_that_gathers(seconds: float) -> type[Any]:
    """Faust's consumer, which hands records over at least ``seconds`` after the last ones; 0: at once."""
    thread = thread_that_gathers(seconds)

    class Gathering(Consumer):  # type: ignore[misc]  # faust is untyped
        def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
            return thread(self, loop=self.loop, beacon=self.beacon)

    return Gathering


def thread_that_gathers(seconds: float) -> type[Any]:
    """The thread in which that consumer fetches."""

    class Thread(AIOKafkaConsumerThread):  # type: ignore[misc]
        _handed_over = 0.0

        async def _fetch_records(self, consumer: Any, *arguments: Any, **options: Any) -> Any:
            # Nothing is awaited between what the fetcher hands over and the setting of how it fetches next.
            fetcher = consumer._fetcher
            found = await super()._fetch_records(consumer, *arguments, **options)
            pause = self._handed_over + seconds - time.monotonic()
            if found and pause > 0:
                fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms = FETCH_BYTES, int(pause * 1000)
                options["timeout"] = pause + LATE_SECONDS
                try:
                    more = await super()._fetch_records(consumer, *arguments, **options)
                except Exception:  # the next fetch meets it too; what was found must be handed over
                    more = {}
                for place, records in more.items():
                    found[place] = [*found.get(place, ()), *records]
            if found:
                self._handed_over = time.monotonic()
            fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms = AT_ONCE
            return found

    return Thread
