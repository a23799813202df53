"""The Faust app that sinks and notifier are built on: brokers, identity, and what of Faust is not used.

Faust brings records and serves two pages; tables, internal topics and serializers of its own are off. Topics and their
partition counts are the catalogue's, positions are kept by whoever applies the records.
"""

from __future__ import annotations

from typing import Any, Final

import faust

from infra.kafka import kafka_password, tls_context, uses_sasl
from infra.settings import Settings

__all__ = ["make_app"]

METADATA_MILLISECONDS: Final = 5_000
"""A broker that has just started does not know its topics yet. A group that forms then shares out nothing, until its
leader asks again: by default after five minutes, in which nothing would be applied."""


def make_app(
    settings: Settings, name: str, *, scratch: str, web_port: int, commit_seconds: float, queue_records: int
) -> faust.App:
    """An app without agents in the consumer group ``name``. ``scratch`` is a directory for the tables that there are
    none of; offsets are committed every ``commit_seconds``; at most ``queue_records`` wait in an agent's queue. Raises
    `infra.kafka.KafkaAccessError`."""
    return faust.App(
        settings.kafka_topic(name),
        broker=[f"kafka://{place.strip()}" for place in settings.kafka_bootstrap.split(",")],
        broker_credentials=_credentials(settings),
        store="memory://",
        datadir=scratch,
        key_serializer="raw",
        value_serializer="raw",
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=METADATA_MILLISECONDS,
        broker_commit_interval=commit_seconds,
        broker_session_timeout=settings.consumer_session_seconds,
        broker_heartbeat_interval=settings.consumer_session_seconds / 5,
        stream_buffer_maxsize=queue_records,
        stream_wait_empty=False,  # a batch in flight may outlast a rebalance; the store's position arbitrates
        producer_max_request_size=1_048_576,
        web_bind=settings.host,
        web_host=settings.host,
        web_port=web_port,
    )


def _credentials(settings: Settings) -> Any:
    context = tls_context(settings)
    if uses_sasl(settings):
        return faust.SASLCredentials(
            username=settings.kafka_user, password=kafka_password(settings), ssl_context=context,
            mechanism=settings.kafka_sasl_mechanism,
        )  # fmt: skip
    return None if context is None else faust.SSLCredentials(context=context)
