"""Every topic and every pipeline of Streambank, in one typed table.

Provisioning, schema registration, the jobs, the sinks, `streambank graph` and the reference docs all read this
table; nothing else names a topic. A topic's value schema is ``avro/<name>.avsc``: one record, the frame.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
FOREVER_MS: Final = -1

SCHEMA_DIRECTORY: Final = next(
    path for path in (Path(__file__).parent / "avro", Path(__file__).parent.parent / "avro") if path.is_dir()
)


@dataclass(frozen=True, slots=True)
class Topic:
    """A Kafka topic whose every record is one frame; its partition is the frame's shard.

    ``writers`` says who numbers the frames: a topic with one writing job numbers them per shard from 1 without a
    gap, and readers drop what they have already applied; frames of many producers carry sequence 0 and their events
    are idempotent by id. The partition count of a topic never changes. The frames of a ``chained`` topic carry a hash
    chain per shard (`pipelines.chain`); its schema has the field ``chain``. When there are ``producers``, every record
    must be signed (`pipelines.signatures`), and these get a key when the topic is made.
    """

    name: str
    partitions: int
    retention_ms: int
    owner: str
    writers: Literal["one job", "many producers"]
    doc: str
    chained: bool = False
    producers: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """Registry subject of the topic's value schema (TopicNameStrategy)."""
        return f"{self.name}-value"

    @property
    def schema_path(self) -> Path:
        return SCHEMA_DIRECTORY / f"{self.name}.avsc"

    def schema(self) -> dict[str, Any]:
        """The topic's Avro schema as parsed JSON."""
        return _read_schema(self.schema_path)


@cache
def _read_schema(path: Path) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


ALL_SHARDS: Final = -1
"""In the place of a shard: every one of them."""

LEDGER_SHARDS: Final = 4

LEDGER_COMMANDS: Final = Topic(
    "ledger.commands",
    partitions=LEDGER_SHARDS,
    retention_ms=FOREVER_MS,
    owner="api",
    writers="many producers",
    doc="Commands to the ledger, as accepted by the API.",
)
LEDGER_RESULTS: Final = Topic(
    "ledger.results",
    partitions=LEDGER_SHARDS,
    retention_ms=7 * DAY_MS,
    owner="ledger",
    writers="one job",
    doc="One result per command, in the order of the command frame.",
)
LEDGER_EVENTS: Final = Topic(
    "ledger.events",
    partitions=LEDGER_SHARDS,
    retention_ms=FOREVER_MS,
    owner="ledger",
    writers="one job",
    doc="Accounts created, transfers applied and expired; append-only and complete.",
    chained=True,
)
LEDGER_DEAD_LETTERS: Final = Topic(
    "ledger.dead-letters",
    partitions=LEDGER_SHARDS,
    retention_ms=30 * DAY_MS,
    owner="ledger",
    writers="many producers",
    doc="Records and events that the ledger job or its sinks set aside.",
)
LEDGER_TOTALS: Final = Topic(
    "ledger.totals",
    partitions=LEDGER_SHARDS,
    retention_ms=30 * DAY_MS,
    owner="ledger_totals",
    writers="one job",
    doc="Running totals per account, ledger and code in hourly and daily windows.",
)

MATCHING_SHARDS: Final = 4

MATCHING_COMMANDS: Final = Topic(
    "matching.commands",
    partitions=MATCHING_SHARDS,
    retention_ms=FOREVER_MS,
    owner="api",
    writers="many producers",
    doc="Orders, cancels, amendments and the admin events that govern them.",
    producers=("api", "dlq", "fix", "router"),
)
MATCHING_REPORTS: Final = Topic(
    "matching.reports",
    partitions=MATCHING_SHARDS,
    retention_ms=FOREVER_MS,
    owner="matching",
    writers="one job",
    doc="Execution reports, rejects and answers to admin events, in the order of the command frame.",
)
MATCHING_MARKET_DATA: Final = Topic(
    "matching.market-data",
    partitions=MATCHING_SHARDS,
    retention_ms=7 * DAY_MS,
    owner="matching",
    writers="one job",
    doc="Trades, price levels, tops of book and trading status, numbered per symbol.",
)
MATCHING_DEAD_LETTERS: Final = Topic(
    "matching.dead-letters",
    partitions=MATCHING_SHARDS,
    retention_ms=30 * DAY_MS,
    owner="matching",
    writers="many producers",
    doc="Records and events that the matching job or its sinks set aside.",
)

FRAUD_SHARDS: Final = 4
"""A shard is a portfolio: its cards, and what they did at terminals; see docs/adr/0005-fraud-order.md."""

FRAUD_TRANSACTIONS: Final = Topic(
    "fraud.transactions",
    partitions=FRAUD_SHARDS,
    retention_ms=FOREVER_MS,
    owner="api",
    writers="many producers",
    doc="Card transactions and fraud labels, in the order in which they count.",
)
FRAUD_FEATURES: Final = Topic(
    "fraud.features",
    partitions=FRAUD_SHARDS,
    retention_ms=7 * DAY_MS,
    owner="fraud",
    writers="one job",
    doc="One feature vector per transaction, in the order of the transaction frame.",
)
FRAUD_LABELS: Final = Topic(
    "fraud.labels",
    partitions=FRAUD_SHARDS,
    retention_ms=FOREVER_MS,
    owner="fraud",
    writers="one job",
    doc="Labels as they arrived, with the transactions that they are about.",
)
FRAUD_DEAD_LETTERS: Final = Topic(
    "fraud.dead-letters",
    partitions=FRAUD_SHARDS,
    retention_ms=30 * DAY_MS,
    owner="fraud",
    writers="many producers",
    doc="Records that the fraud job set aside.",
)

FRAUD_DECISIONS: Final = Topic(
    "fraud.decisions",
    partitions=FRAUD_SHARDS,
    retention_ms=FOREVER_MS,
    owner="fraud-scorer",
    writers="one job",
    doc="One decision per transaction; a frame has the sequence of the features frame that it answers.",
)
FRAUD_RESCORES: Final = Topic(
    "fraud.rescores",
    partitions=FRAUD_SHARDS,
    retention_ms=FOREVER_MS,
    owner="fraud-scorer",
    writers="many producers",
    doc="Second decisions of transactions that were decided while the model did not answer.",
)
FRAUD_RULES: Final = Topic(
    "fraud.rules",
    partitions=1,
    retention_ms=FOREVER_MS,
    owner="analysts",
    writers="many producers",
    doc="Rule sets of the fraud decisions; the newest version is in force.",
)
FRAUD_ALERTS: Final = Topic(
    "fraud.alerts",
    partitions=FRAUD_SHARDS,
    retention_ms=90 * DAY_MS,
    owner="fraud-cases",
    writers="many producers",
    doc="Alerts, one per card and day, idempotent by id.",
)

PAYMENTS_SHARDS: Final = LEDGER_SHARDS
"""A payment lies in its payer's account's shard, which is ``ledger % 4``."""

PAYMENTS_COMMANDS: Final = Topic(
    "payments.commands",
    partitions=PAYMENTS_SHARDS,
    retention_ms=FOREVER_MS,
    owner="api",
    writers="many producers",
    doc="Commands to payments: of clients, of screening and ledger, of operators, and the time.",
)
PAYMENTS_RESULTS: Final = Topic(
    "payments.results",
    partitions=PAYMENTS_SHARDS,
    retention_ms=7 * DAY_MS,
    owner="payments",
    writers="one job",
    doc="One result per command, in the order of the command frame.",
)
PAYMENTS_EVENTS: Final = Topic(
    "payments.events",
    partitions=PAYMENTS_SHARDS,
    retention_ms=FOREVER_MS,
    owner="payments",
    writers="one job",
    doc="Every transition of every payment with its cause; what relays, sinks and notifications follow.",
)
PAYMENTS_DEAD_LETTERS: Final = Topic(
    "payments.dead-letters",
    partitions=PAYMENTS_SHARDS,
    retention_ms=30 * DAY_MS,
    owner="payments",
    writers="many producers",
    doc="Records and events that the payments job, its relays or its sinks set aside.",
)

NOTIFICATION_SHARDS: Final = 4

NOTIFICATION_REQUESTS: Final = Topic(
    "notifications.requests",
    partitions=NOTIFICATION_SHARDS,
    retention_ms=7 * DAY_MS,
    owner="relays",
    writers="many producers",
    doc="What customers are to be told.",
)
NOTIFICATION_DELIVERIES: Final = Topic(
    "notifications.deliveries",
    partitions=NOTIFICATION_SHARDS,
    retention_ms=30 * DAY_MS,
    owner="notifier",
    writers="many producers",
    doc="What became of notifications, per channel and endpoint.",
)
NOTIFICATION_DEAD_LETTERS: Final = Topic(
    "notifications.dead-letters",
    partitions=NOTIFICATION_SHARDS,
    retention_ms=30 * DAY_MS,
    owner="notifier",
    writers="many producers",
    doc="Records and events that the notifier could not read.",
)

LEDGER_CROSS_COMMANDS: Final = Topic(
    "ledger.cross-commands",
    partitions=LEDGER_SHARDS,
    retention_ms=FOREVER_MS,
    owner="api",
    writers="many producers",
    doc="Transfers across ledgers as asked for, the results of their legs, and the clock.",
)
LEDGER_CROSS_RESULTS: Final = Topic(
    "ledger.cross-results",
    partitions=LEDGER_SHARDS,
    retention_ms=7 * DAY_MS,
    owner="ledger_saga",
    writers="one job",
    doc="One result per event of ledger.cross-commands, in the order of its frame.",
)
LEDGER_CROSS_EVENTS: Final = Topic(
    "ledger.cross-events",
    partitions=LEDGER_SHARDS,
    retention_ms=FOREVER_MS,
    owner="ledger_saga",
    writers="one job",
    doc="What transfers across ledgers did, and the legs that they ask the ledger for.",
)

TOPICS: Final[dict[str, Topic]] = {
    topic.name: topic
    for topic in (
        LEDGER_COMMANDS,
        LEDGER_RESULTS,
        LEDGER_EVENTS,
        LEDGER_DEAD_LETTERS,
        LEDGER_TOTALS,
        MATCHING_COMMANDS,
        MATCHING_REPORTS,
        MATCHING_MARKET_DATA,
        MATCHING_DEAD_LETTERS,
        FRAUD_TRANSACTIONS,
        FRAUD_FEATURES,
        FRAUD_LABELS,
        FRAUD_DEAD_LETTERS,
        FRAUD_DECISIONS,
        FRAUD_RESCORES,
        FRAUD_RULES,
        FRAUD_ALERTS,
        PAYMENTS_COMMANDS,
        PAYMENTS_RESULTS,
        PAYMENTS_EVENTS,
        PAYMENTS_DEAD_LETTERS,
        NOTIFICATION_REQUESTS,
        NOTIFICATION_DELIVERIES,
        NOTIFICATION_DEAD_LETTERS,
        LEDGER_CROSS_COMMANDS,
        LEDGER_CROSS_RESULTS,
        LEDGER_CROSS_EVENTS,
    )
}


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One system's kernel with the topics around it. ``kernel`` names its factory as ``module:attribute``.

    ``replies`` is the output that answers an input frame event by event. ``max_frame_events`` bounds the events of an
    input frame, so that its largest output stays below Kafka's record size limit of 1 MB. Output frames wait up to
    ``linger_ms`` milliseconds for others to be sent with: worth it where frames of all shards come at the same time.
    """

    name: str
    kernel: str
    inputs: tuple[Topic, ...]
    outputs: tuple[Topic, ...]
    replies: Topic
    dead_letters: Topic
    shards: int
    max_frame_events: int
    doc: str
    linger_ms: int = 0


PIPELINES: Final[dict[str, Pipeline]] = {
    "ledger": Pipeline(
        "ledger",
        kernel="pipelines.ledger.kernel:LedgerKernel",
        inputs=(LEDGER_COMMANDS,),
        outputs=(LEDGER_RESULTS, LEDGER_EVENTS),
        replies=LEDGER_RESULTS,
        dead_letters=LEDGER_DEAD_LETTERS,
        shards=LEDGER_SHARDS,
        max_frame_events=2_000,
        doc="Double-entry ledger: accounts and transfers with limits, idempotent by id.",
    ),
    "ledger_totals": Pipeline(
        "ledger_totals",
        kernel="pipelines.ledger_totals.kernel:LedgerTotalsKernel",
        inputs=(LEDGER_EVENTS,),
        outputs=(LEDGER_TOTALS,),
        replies=LEDGER_TOTALS,
        dead_letters=LEDGER_DEAD_LETTERS,
        shards=LEDGER_SHARDS,
        max_frame_events=2_500,
        doc="Totals per account, ledger and code in hourly and daily windows.",
    ),
    "matching": Pipeline(
        "matching",
        kernel="pipelines.matching.kernel:MatchingKernel",
        inputs=(MATCHING_COMMANDS,),
        outputs=(MATCHING_REPORTS, MATCHING_MARKET_DATA),
        replies=MATCHING_REPORTS,
        dead_letters=MATCHING_DEAD_LETTERS,
        shards=MATCHING_SHARDS,
        max_frame_events=8_192,
        doc="Order matching: price-time priority, pre-trade risk, trading controls, market data.",
        linger_ms=2,
    ),
    "fraud": Pipeline(
        "fraud",
        kernel="pipelines.fraud.kernel:FraudKernel",
        inputs=(FRAUD_TRANSACTIONS,),
        outputs=(FRAUD_FEATURES, FRAUD_LABELS),
        replies=FRAUD_FEATURES,
        dead_letters=FRAUD_DEAD_LETTERS,
        shards=FRAUD_SHARDS,
        max_frame_events=2_000,
        doc="Features of card transactions by exact windows over cards and terminals, with labels that come late.",
    ),
    "payments": Pipeline(
        "payments",
        kernel="pipelines.payments.kernel:PaymentsKernel",
        inputs=(PAYMENTS_COMMANDS,),
        outputs=(PAYMENTS_RESULTS, PAYMENTS_EVENTS),
        replies=PAYMENTS_RESULTS,
        dead_letters=PAYMENTS_DEAD_LETTERS,
        shards=PAYMENTS_SHARDS,
        max_frame_events=200,
        doc="Payments: validation, limits, duplicates, and the saga over screening and ledger.",
        linger_ms=8,
    ),
    "ledger_saga": Pipeline(
        "ledger_saga",
        kernel="pipelines.ledger_saga.kernel:LedgerSagaKernel",
        inputs=(LEDGER_CROSS_COMMANDS,),
        outputs=(LEDGER_CROSS_RESULTS, LEDGER_CROSS_EVENTS),
        replies=LEDGER_CROSS_RESULTS,
        dead_letters=LEDGER_DEAD_LETTERS,
        shards=LEDGER_SHARDS,
        max_frame_events=500,
        doc="Transfers across ledgers, shards and currencies, as sagas of pending legs.",
    ),
}


@dataclass(frozen=True, slots=True)
class Service:
    """A process between topics that is neither a kernel's job nor a sink."""

    name: str
    inputs: tuple[Topic, ...]
    outputs: tuple[Topic, ...]
    dead_letters: Topic
    doc: str
    runs_as: Literal["Faust service", "Flink job"] = "Faust service"


SERVICES: Final[dict[str, Service]] = {
    "notifier": Service(
        "notifier",
        inputs=(NOTIFICATION_REQUESTS,),
        outputs=(NOTIFICATION_DELIVERIES,),
        dead_letters=NOTIFICATION_DEAD_LETTERS,
        doc="Tells customers by webhook, e-mail, SMS and WebSocket.",
    ),
    "fraud_scoring": Service(
        "fraud_scoring",
        inputs=(FRAUD_FEATURES, FRAUD_RULES),
        outputs=(FRAUD_DECISIONS,),
        dead_letters=FRAUD_DEAD_LETTERS,
        doc="Decides card transactions with the model in the job, in the place of `streambank score`.",
        runs_as="Flink job",
    ),
}
