"""Published rule sets: read, followed while they change, and published.

They lie on fraud.rules, one partition, oldest first. The set with the highest version is in force; of two with the same
version the first one holds, so that two who publish at once do not both win.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from infra.kafka import kafka_options, make_producer
from infra.registry import SchemaRegistry
from infra.settings import Settings
from jobs.topic_reader import TopicReader, TopicReadError
from pipelines.catalogue import FRAUD_RULES
from pipelines.codec import codec_of
from pipelines.errors import FrameError, StreambankError
from pipelines.event_json import parse_events, render_events
from pipelines.frames import Frame
from pipelines.fraud.rules import DEFAULT_RULES, RuleError, RuleSet
from pipelines.wire import unwrap, wrap

__all__ = ["PublishedRules", "RuleFollower", "publish_rules", "read_rules"]

CODEC: Final = codec_of(FRAUD_RULES.name)
PUBLISH_SECONDS: Final = 30.0

log = structlog.get_logger("streambank.rules")


@dataclass(frozen=True, slots=True)
class PublishedRules:
    """A rule set with who published it when (UTC microseconds) and why."""

    rules: RuleSet
    published_at: int
    author: str
    note: str
    document: str


def read_rules(settings: Settings) -> list[PublishedRules]:
    """All rule sets that hold, oldest first. Raises `jobs.topic_reader.TopicReadError`."""
    found: dict[int, PublishedRules] = {}
    with TopicReader(settings) as reader:
        for record in reader.read(FRAUD_RULES, 0):
            for one in _rules_in(record.value):
                found.setdefault(one.rules.version, one)
    return [found[version] for version in sorted(found)]


def publish_rules(settings: Settings, document: str, *, author: str, note: str) -> int:
    """Publish a rule set as the next version; scorers follow within a second. Returns the version.

    Raises `RuleError` for a document that cannot be used, and when somebody else published the version first.
    """
    version = max((one.rules.version for one in read_rules(settings)), default=0) + 1
    RuleSet.parse(document, version)
    event = {
        "type": "RuleSetPublished", "version": version, "published_at": time.time_ns() // 1000, "author": author,
        "note": note, "document": document,
    }  # fmt: skip
    frame = Frame(FRAUD_RULES.name, 0, 0, time.time_ns() // 1000, None, parse_events(CODEC, [event]))
    with SchemaRegistry(settings) as registry:
        value = wrap(registry.schema_id(FRAUD_RULES), CODEC.encode(frame))
    failed: list[str] = []
    producer = make_producer(settings, "fraud-rules", PUBLISH_SECONDS)
    producer.produce(
        settings.kafka_topic(FRAUD_RULES.name),
        value,
        key=b"0",
        partition=0,
        on_delivery=lambda error, _: failed.append(str(error)) if error else None,
    )
    if producer.flush(PUBLISH_SECONDS) or failed:
        raise StreambankError(f"Kafka did not take the rule set: {failed or 'no answer'}")
    held = next(one for one in read_rules(settings) if one.rules.version == version)
    if held.document != document:
        raise RuleError(f"{held.author} published version {version} at the same moment; look at it and publish again")
    return version


def _rules_in(value: bytes | None) -> list[PublishedRules]:
    """The usable rule sets of a record; what cannot be used is logged and passed over."""
    found = []
    try:
        _, body = unwrap(value)
        events: list[dict[str, Any]] = list(render_events(CODEC, CODEC.decode(body).events))
    except FrameError as error:
        log.error("rules_unreadable", detail=str(error))
        return []
    for event in events:
        try:
            rules = RuleSet.parse(event["document"], int(event["version"]))
        except RuleError as error:
            log.error("rules_refused", version=event["version"], detail=str(error))
            continue
        found.append(
            PublishedRules(rules, int(event["published_at"]), event["author"], event["note"], event["document"])
        )
    return found


class RuleFollower:
    """The rule set in force, kept current by a thread. Use as a context manager."""

    def __init__(self, settings: Settings, on_change: Callable[[RuleSet], None] | None = None) -> None:
        self.rules = DEFAULT_RULES
        self._settings = settings
        self._on_change = on_change
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="fraud-rules", daemon=True)
        self._next_offset = OFFSET_BEGINNING

    def __enter__(self) -> Self:
        """Read everything published so far, then follow. Raises `jobs.topic_reader.TopicReadError`."""
        with TopicReader(self._settings) as reader:
            for record in reader.read(FRAUD_RULES, 0):
                self._take(record.value)
                self._next_offset = record.offset + 1
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def _take(self, value: bytes | None) -> None:
        for one in _rules_in(value):
            if one.rules.version > self.rules.version:
                self.rules = one.rules
                log.info("rules_in_force", version=one.rules.version, author=one.author)
                if self._on_change is not None:
                    self._on_change(one.rules)

    def _follow(self) -> None:
        consumer = Consumer(
            {
                **kafka_options(self._settings),
                "group.id": self._settings.kafka_topic("fraud-rules"),  # required, never joined
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        try:
            consumer.assign([TopicPartition(self._settings.kafka_topic(FRAUD_RULES.name), 0, self._next_offset)])
            while not self._stop.is_set():
                message = consumer.poll(0.5)
                if message is not None and message.error() is None:
                    self._take(message.value())
        except KafkaException as error:  # pragma: no cover - assign of a valid place does not fail
            raise TopicReadError(str(error)) from error
        finally:
            consumer.close()
