"""How a sink's consumer fetches: at once, or together with what comes soon after.

A fetch of one small record costs a consumer in Python about a millisecond, whatever is in it. A sink that gathers
records anyway (`Sink.flush_seconds`) lets the broker do it: one answer with all that came meanwhile.
"""

from __future__ import annotations

from typing import Any, Final

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer

__all__ = ["consumer_that_gathers"]

FETCH_BYTES: Final = 64 * 1024
"""As soon as the broker has so much for a sink that gathers, it answers."""


def consumer_that_gathers(seconds: float) -> type[Any]:
    """Faust's consumer, whose fetches wait up to ``seconds`` for more than one record; 0: the first record is sent."""

    class Thread(AIOKafkaConsumerThread):  # type: ignore[misc]  # faust is untyped
        def _create_worker_consumer(self, transport: Any) -> Any:
            consumer = super()._create_worker_consumer(transport)
            if seconds > 0:  # Faust gives no setting for these two: 1 byte, and at most 1.5 s
                consumer._fetch_min_bytes = FETCH_BYTES
                consumer._fetch_max_wait_ms = int(seconds * 1000)
            return consumer

    class Gathering(Consumer):  # type: ignore[misc]
        def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
            return Thread(self, loop=self.loop, beacon=self.beacon)

    return Gathering
