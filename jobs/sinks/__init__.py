"""Sinks: Faust agents that carry a topic's frames into stores, effectively once.

What holds for each of them:
- **The store knows how far it is.** The position (next offset, sequence) is kept in the destination: in Postgres in
  the transaction of the effects, in Cassandra after rows whose writes are idempotent. Kafka's committed offset follows
  it and is for lag monitors; a sink that finds it elsewhere goes back to the store's position.
- **Order.** Frames of a shard are applied in sequence order. A sequence already applied is dropped; a gap is an alarm
  that stops the sink, never skipped.
- **Outages.** While a store is away the sink retries with jitter and stops consuming; nothing is lost.
- **Poison.** An unreadable record, or the event that a store refuses, goes to the dead-letter topic before the position
  passes it; when too many do, the sink stops.

Relays (`relay`) are sinks whose destination is Kafka: they keep their position there, and what they repeat after a
crash the receiving system knows by its id.

`base` is the contract that a destination implements, `records` reads and orders records, `worker` is the Faust app.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from infra.settings import Settings
    from jobs.sinks.base import Sink
    from pipelines.catalogue import Topic

__all__ = ["SINKS", "load_sink"]

SINKS: Final[dict[str, str]] = {
    "postgres": "jobs.sinks.postgres:PostgresSink",
    "cassandra": "jobs.sinks.statements:StatementsSink",
    "postgres-totals": "jobs.sinks.ledger_totals:PostgresTotalsSink",
    "cassandra-totals": "jobs.sinks.ledger_totals:CassandraTotalsSink",
    "fraud-cases": "jobs.sinks.fraud_cases:FraudCasesSink",
    "fraud-rescore-cases": "jobs.sinks.fraud_cases:FraudRescoreCasesSink",
    "cassandra-fraud-features": "jobs.sinks.cassandra_fraud:FraudFeaturesSink",
    "cassandra-fraud-decisions": "jobs.sinks.cassandra_fraud:FraudDecisionsSink",
    "cassandra-fraud-rescores": "jobs.sinks.cassandra_fraud:FraudRescoresSink",
    "cassandra-fraud-labels": "jobs.sinks.cassandra_fraud:FraudLabelsSink",
    "valkey-fraud-sessions": "jobs.sinks.valkey_sessions:FraudSessionsSink",
    "valkey-books": "jobs.sinks.valkey:ValkeyBooksSink",
    "valkey-orders": "jobs.sinks.valkey:ValkeyOrdersSink",
    "cassandra-bars": "jobs.sinks.minute_bars:MinuteBarsSink",
    "settlement": "jobs.sinks.settlement:SettlementRelay",
    "payments-to-ledger": "jobs.sinks.payments_relays:PaymentsToLedger",
    "ledger-to-payments": "jobs.sinks.payments_relays:LedgerToPayments",
    "payments-to-fraud": "jobs.sinks.payments_relays:PaymentsToFraud",
    "fraud-to-payments": "jobs.sinks.payments_relays:FraudToPayments",
    "postgres-payments": "jobs.sinks.payments_rows:PostgresPaymentsSink",
    "cassandra-payments": "jobs.sinks.payments_rows:CassandraPaymentsSink",
    "fraud-notifications": "jobs.sinks.fraud_notifications:FraudNotificationsRelay",
    "payments-notifications": "jobs.sinks.payments_notifications:PaymentsNotificationsRelay",
    "saga-legs": "jobs.sinks.ledger_saga:SagaLegs",
    "saga-answers": "jobs.sinks.ledger_saga:SagaAnswers",
    "rescores-to-payments": "jobs.sinks.payments_relays:RescoresToPayments",
    "postgres-cross-transfers": "jobs.sinks.cross_transfers:PostgresCrossTransfersSink",
}
"""What `streambank sink NAME` runs: the sink's name and where its class is. Those that take more than settings have a
command of their own."""


class _MadeOfSettings(Protocol):
    name: str
    topic: Topic

    def __call__(self, settings: Settings) -> Sink: ...


def load_sink(name: str) -> _MadeOfSettings:
    """The class behind a name of `SINKS`; what it needs is imported only now."""
    module, _, attribute = SINKS[name].partition(":")
    kind: _MadeOfSettings = getattr(import_module(module), attribute)
    return kind
