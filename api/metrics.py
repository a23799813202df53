"""The API's metrics. Every name is in `MetricName`, with what it counts; nothing else makes a metric.

With several workers prometheus_client's multi-process mode sums them: the parent sets PROMETHEUS_MULTIPROC_DIR before
this module is imported. Labels have few values: never a client's id or an event's.
"""

from __future__ import annotations

import os
from typing import Final, Literal

from prometheus_client import REGISTRY as PROCESS_REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

__all__ = ["count", "exposition", "gauge", "observe"]

MetricName = Literal[
    "streambank_api_requests",  # answers, by route and status
    "streambank_api_request_seconds",  # time to answer, by route
    "streambank_api_events_accepted",  # events that Kafka acknowledged
    "streambank_api_events_refused",  # events refused by validation
    "streambank_api_frames",  # frames acknowledged
    "streambank_api_frame_failures",  # frames that Kafka did not acknowledge in time
    "streambank_api_frame_events",  # events per frame
    "streambank_api_produce_seconds",  # time from produce to acknowledgement
    "streambank_api_buffered_events",  # events not yet acknowledged
    "streambank_api_rate_limited",  # requests answered 429
    "streambank_api_rate_limit_local",  # decisions made by the in-process limiter because Valkey was away
    "streambank_api_idempotency_unavailable",  # writes whose Idempotency-Key was not stored because Valkey was away
    "streambank_api_idempotency_replayed",  # stored answers given again
    "streambank_api_tokens",  # token requests, by outcome
    "streambank_api_waits",  # `Prefer: wait` requests, by outcome
    "streambank_api_store_failures",  # failed queries, by store
    "streambank_api_feed_gaps",  # market data that a worker missed, made good by a snapshot
    "streambank_api_feed_slow_clients",  # times that a WebSocket client got snapshots because it read too slowly
    "streambank_api_grpc_refused",  # gRPC calls that ended with a problem, by its slug
]

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_EVENTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

_COUNTERS: Final[dict[str, Counter]] = {
    name: Counter(name, doc, labels)
    for name, doc, labels in (
        ("streambank_api_requests", "Answers", ("route", "status")),
        ("streambank_api_events_accepted", "Events that Kafka acknowledged", ()),
        ("streambank_api_events_refused", "Events refused by validation", ()),
        ("streambank_api_frames", "Frames acknowledged", ()),
        ("streambank_api_frame_failures", "Frames not acknowledged in time", ()),
        ("streambank_api_rate_limited", "Requests answered 429", ()),
        ("streambank_api_rate_limit_local", "Decisions of the in-process limiter while Valkey was away", ()),
        ("streambank_api_idempotency_unavailable", "Writes whose key was not stored while Valkey was away", ()),
        ("streambank_api_idempotency_replayed", "Stored answers given again", ()),
        ("streambank_api_tokens", "Token requests", ("outcome",)),
        ("streambank_api_waits", "Requests that waited for their results", ("outcome",)),
        ("streambank_api_store_failures", "Failed queries", ("store",)),
        ("streambank_api_feed_gaps", "Market data missed and made good by a snapshot", ()),
        ("streambank_api_feed_slow_clients", "Times that a slow WebSocket client got snapshots", ()),
        ("streambank_api_grpc_refused", "gRPC calls that ended with a problem", ("problem",)),
    )
}
_HISTOGRAMS: Final[dict[str, Histogram]] = {
    name: Histogram(name, doc, labels, buckets=buckets)
    for name, doc, labels, buckets in (
        ("streambank_api_request_seconds", "Time to answer", ("route",), _SECONDS),
        ("streambank_api_produce_seconds", "Time from produce to acknowledgement", (), _SECONDS),
        ("streambank_api_frame_events", "Events per frame", (), _EVENTS),
    )
}
_GAUGES: Final[dict[str, Gauge]] = {
    "streambank_api_buffered_events": Gauge(
        "streambank_api_buffered_events", "Events not yet acknowledged", multiprocess_mode="livesum"
    ),
}


def count(name: MetricName, *labels: str, by: int = 1) -> None:
    counter = _COUNTERS[name]
    (counter.labels(*labels) if labels else counter).inc(by)


def observe(name: MetricName, value: float, *labels: str) -> None:
    histogram = _HISTOGRAMS[name]
    (histogram.labels(*labels) if labels else histogram).observe(value)


def gauge(name: MetricName, change: float) -> None:
    """Add to a gauge, which several parts of a process may share."""
    _GAUGES[name].inc(change)


def exposition() -> bytes:
    """All workers' metrics in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return bytes(generate_latest(PROCESS_REGISTRY))
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return bytes(generate_latest(registry))
