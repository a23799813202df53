"""Decisions into the queue of cases, and the alerts that they raise.

Transactions that are reviewed or blocked join the case of their card and day; the first one opens it. Case,
transactions and position are written in one transaction. A case that has no alert on fraud.alerts yet gets one from a
task beside the writer (an outbox): at least once, idempotent by the alert's id, which is a function of card and day. So
a replay, even of the whole topic into the same tables, opens no second case and raises no second alert.

A closed case that gets a new suspicious transaction is open again; its alert is not repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import numpy as np
import prometheus_client
import psycopg
import structlog
from confluent_kafka import KafkaException
from psycopg.rows import dict_row

from infra.kafka import make_producer
from infra.registry import RegistryError, SchemaRegistry
from infra.settings import Settings
from infra.stores import SINK_ROLE, postgres_conninfo
from jobs.sinks.base import Addition, Position, StoreUnavailable
from jobs.sinks.postgres import PostgresSink
from pipelines.catalogue import FRAUD_ALERTS, FRAUD_DECISIONS, FRAUD_RESCORES, Topic
from pipelines.codec import codec_of, text
from pipelines.event_json import parse_events
from pipelines.frames import Events, Frame
from pipelines.fraud.alerts import MICROS_PER_DAY, alert_id, day_of
from pipelines.fraud.decisions import Decision
from pipelines.wire import wrap

__all__ = ["FraudCasesSink", "FraudRescoreCasesSink"]

PUBLISH_SECONDS: Final = 2.0
"""How often it is looked for alerts that nobody published."""
PUBLISH_BATCH: Final = 500
DELIVERY_SECONDS: Final = 30.0

ALERTS = prometheus_client.Counter("streambank_fraud_alerts_total", "Alerts published.")

_DECISION: Final = codec_of(FRAUD_DECISIONS.name).event_type("Decision").dtype
_ALERTS: Final = codec_of(FRAUD_ALERTS.name)
_COLUMNS: Final = {
    "case_id": "numeric", "shard": "int", "customer_id": "bigint", "day": "date", "transaction_id": "numeric",
    "event_time": "bigint", "terminal_id": "bigint", "amount": "bigint", "decision": "text", "score": "int",
    "model_version": "bigint", "rule_set_version": "bigint", "reason_codes": "text", "rescored": "boolean",
    "raised_at": "bigint",
}  # fmt: skip
_SUSPICIOUS: Final = (
    f"SELECT * FROM unnest({', '.join(f'%({name})s::{kind}[]' for name, kind in _COLUMNS.items())})"  # noqa: S608 - names
    f" WITH ORDINALITY AS found ({', '.join(_COLUMNS)}, place)"
)
_OPEN: Final = f"""
    INSERT INTO fraud_cases (case_id, shard, customer_id, day, raised_at, transaction_id, event_time, terminal_id,
        amount, decision, score, model_version, rule_set_version, reason_codes)
    SELECT DISTINCT ON (case_id) case_id, shard, customer_id, day, raised_at, transaction_id, event_time, terminal_id,
        amount, decision, score, model_version, rule_set_version, reason_codes
    FROM ({_SUSPICIOUS}) AS found ORDER BY case_id, place
    ON CONFLICT (case_id) DO NOTHING
"""  # noqa: S608 - names of this module
_JOIN: Final = f"""
    INSERT INTO fraud_case_transactions (shard, transaction_id, case_id, event_time, terminal_id, amount, decision,
        score, model_version, rule_set_version, reason_codes, rescored)
    SELECT DISTINCT ON (shard, transaction_id) shard, transaction_id, case_id, event_time, terminal_id, amount,
        decision, score, model_version, rule_set_version, reason_codes, rescored
    FROM ({_SUSPICIOUS}) AS found ORDER BY shard, transaction_id, place DESC
    ON CONFLICT (shard, transaction_id) DO UPDATE
    SET decision = excluded.decision, score = excluded.score, model_version = excluded.model_version,
        rule_set_version = excluded.rule_set_version, reason_codes = excluded.reason_codes, rescored = true
    WHERE excluded.rescored AND NOT fraud_case_transactions.rescored
    RETURNING case_id, (xmax = 0) AS is_new
"""  # noqa: S608 - names of this module
_REOPEN: Final = """
    UPDATE fraud_cases SET status = 'open', assignee = NULL, outcome = NULL, closed_at = NULL
    WHERE case_id = ANY(%s) AND status = 'closed'
"""
_UNPUBLISHED: Final = """
    SELECT case_id, shard, customer_id, day, transaction_id, event_time, terminal_id, amount, decision, score,
        model_version, rule_set_version, reason_codes, raised_at
    FROM fraud_cases WHERE alert_published_at IS NULL ORDER BY raised_at LIMIT %s FOR UPDATE SKIP LOCKED
"""

log = structlog.get_logger("streambank.cases")


class FraudCasesSink(PostgresSink):
    """See the module."""

    name: ClassVar[str] = "fraud-cases"
    topic: ClassVar[Topic] = FRAUD_DECISIONS
    web_port_offset: ClassVar[int] = 21
    scratch: ClassVar[None] = None

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._settings = settings
        self._publishing: asyncio.Task[None] | None = None
        self._raised = asyncio.Event()
        self._schema_id = 0

    async def open(self) -> None:
        async with self._transaction():
            pass
        try:
            with SchemaRegistry(self._settings) as registry:
                self._schema_id = await asyncio.to_thread(registry.schema_id, FRAUD_ALERTS)
        except RegistryError as error:
            raise StoreUnavailable(str(error)) from error
        self._publishing = asyncio.create_task(self._publish_forever())

    async def close(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        await super().close()

    async def _apply_events(self, connection: psycopg.AsyncConnection[Any], additions: Sequence[Addition]) -> None:
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        for addition in additions:
            if len(addition.events):
                _gather(columns, addition.after.partition, addition.events)
        if not columns["case_id"]:
            return
        await connection.execute(_OPEN, columns)
        cursor = await connection.execute(_JOIN, columns)
        joined = sorted({case_id for case_id, is_new in await cursor.fetchall() if is_new})
        await connection.execute(_REOPEN, [joined])
        self._raised.set()

    async def reapply(self, shard: int, events: Events, sequence: int, kept: Sequence[int]) -> None:
        place = Position(shard)
        async with self._transaction() as connection:
            await self._apply_events(connection, [Addition(events, place, place)])

    # --- the outbox of alerts

    async def _publish_forever(self) -> None:
        while True:
            try:
                while await self.publish_alerts() == PUBLISH_BATCH:
                    pass
            except (psycopg.Error, KafkaException, StoreUnavailable) as error:
                log.warning("alerts_wait", detail=str(error))
            try:
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await self._raised.wait()
            except TimeoutError:
                pass
            self._raised.clear()

    async def publish_alerts(self) -> int:
        """Put alerts of cases that have none yet on fraud.alerts; how many."""
        async with await psycopg.AsyncConnection.connect(
            postgres_conninfo(self._settings, SINK_ROLE), application_name=f"streambank-sink-{self.name}-alerts"
        ) as connection:
            cursor = await connection.cursor(row_factory=dict_row).execute(_UNPUBLISHED, [PUBLISH_BATCH])
            cases = await cursor.fetchall()
            if not cases:
                return 0
            await asyncio.to_thread(self._send, cases)
            await connection.execute(
                "UPDATE fraud_cases SET alert_published_at = now() WHERE case_id = ANY(%s)",
                [[case["case_id"] for case in cases]],
            )
        ALERTS.inc(len(cases))
        return len(cases)

    def _send(self, cases: Sequence[dict[str, Any]]) -> None:
        failed: list[str] = []
        producer = make_producer(self._settings, "fraud-cases", DELIVERY_SECONDS)
        for case in cases:
            shard = case["shard"]
            frame = Frame(
                FRAUD_ALERTS.name, shard, 0, time.time_ns() // 1000, None, parse_events(_ALERTS, [_alert(case)])
            )
            producer.produce(
                self._settings.kafka_topic(FRAUD_ALERTS.name),
                wrap(self._schema_id, _ALERTS.encode(frame)),
                key=str(shard).encode(),
                partition=shard,
                on_delivery=lambda error, _: failed.append(str(error)) if error else None,
            )
        if producer.flush(DELIVERY_SECONDS + 1) or failed:
            raise StoreUnavailable(f"Kafka did not take an alert: {failed[:1] or 'no answer'}")


class FraudRescoreCasesSink(FraudCasesSink):
    """Second decisions of transactions that were decided without a score."""

    name: ClassVar[str] = "fraud-rescore-cases"
    topic: ClassVar[Topic] = FRAUD_RESCORES
    web_port_offset: ClassVar[int] = 22


def _alert(case: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in case.items() if name not in ("case_id", "shard", "day")}
    day = (case["day"] - datetime(1970, 1, 1, tzinfo=UTC).date()).days
    return {
        "type": "Alert", **fields, "alert_id": str(case["case_id"]), "transaction_id": str(case["transaction_id"]),
        "day": day,
    }  # fmt: skip


def _gather(columns: dict[str, list[Any]], shard: int, events: Events) -> None:
    """Append what a frame's reviewed and blocked transactions say to the columns."""
    decisions = events.view(_DECISION)
    for row in decisions[np.flatnonzero(decisions["decision"] != Decision.approve)]:
        customer, event_time = int(row["customer_id"]), int(row["event_time"])
        day = day_of(event_time)
        values = {
            "case_id": alert_id(shard, customer, day),
            "shard": shard,
            "customer_id": customer,
            "day": datetime.fromtimestamp(day * MICROS_PER_DAY / 1e6, UTC).date(),
            "transaction_id": int(row["transaction_id_hi"]) << 64 | int(row["transaction_id_lo"]),
            "event_time": event_time,
            "terminal_id": int(row["terminal_id"]),
            "amount": int(row["amount"]),
            "decision": Decision(row["decision"]).name,
            "score": int(row["score"]) if row["score_is_set"] else None,
            "model_version": int(row["model_version"]),
            "rule_set_version": int(row["rule_set_version"]),
            "reason_codes": text(events, row["reason_codes"]),
            "rescored": bool(row["rescored"]),
            "raised_at": int(row["scored_at"]),
        }
        for name, value in values.items():
            columns[name].append(value)
