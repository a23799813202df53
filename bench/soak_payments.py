"""Payments under load while everything dies, one after the other: what was accepted must still come to one end.

Processes are killed with SIGKILL, servers are away for ten seconds, messages are sent again, and some are delivered in
another order the first time; the load goes on. Afterwards every accepted payment must have exactly one final status,
the ledger's balances must be what the payments say, nothing may be held, every notification must have arrived, and
`payments reconcile` finds nothing.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import Consumer, Producer, TopicPartition

from bench.deployment import Deployment, DeploymentError, Process, free_ports, sinks, wait_until
from bench.receivers import Receivers
from bench.soak import (
    Disturbance,
    Fault,
    Report,
    Rounds,
    Say,
    Servers,
    kill_processes,
    outage,
    part_faults,
)
from bench.soak_payments_load import BANK, FUNDS, LEDGERS, PAYERS, RULES, PaymentsLoad
from infra.kafka import kafka_options
from infra.registry import schema_ids
from infra.settings import Settings
from infra.stores import cassandra_session, postgres_conninfo
from jobs.fraud_rules import publish_rules
from jobs.payments_reconcile import Reconciliation, events_of, reconcile
from jobs.sinks import load_sink
from jobs.sinks.relay import Commands, KafkaRelay
from jobs.topic_reader import TopicReader
from pipelines.catalogue import (
    FRAUD_TRANSACTIONS,
    LEDGER_COMMANDS,
    LEDGER_EVENTS,
    LEDGER_RESULTS,
    NOTIFICATION_REQUESTS,
    PAYMENTS_COMMANDS,
    PAYMENTS_DEAD_LETTERS,
    PAYMENTS_EVENTS,
    PAYMENTS_SHARDS,
)
from pipelines.codec import codec_of
from pipelines.event_json import parse_events
from pipelines.frames import Frame
from pipelines.payments.records import DAY
from pipelines.payments.states import SETTLED, UNSETTLED_END
from pipelines.signatures import HEADER
from pipelines.wire import unwrap, wrap

__all__ = ["OUTAGE_SECONDS", "Messages", "PaymentsSoak", "all_faults", "payments_deployment", "quick_faults"]

OUTAGE_SECONDS: Final = 10.0
HELD_BACK_SECONDS: Final = 4.0
"""So long relays are away before their messages come in another order."""
SETTLE_SECONDS: Final = 420.0
KAFKA_SECONDS: Final = 60.0
SEED: Final = 7
SINKS: Final = (
    "payments-to-ledger", "ledger-to-payments", "payments-to-fraud", "fraud-to-payments", "rescores-to-payments",
    "payments-notifications", "fraud-cases", "fraud-notifications", "postgres-payments", "cassandra-payments",
)  # fmt: skip
SHUFFLED_RELAYS: Final = (
    "payments-to-ledger", "ledger-to-payments", "payments-to-fraud", "fraud-to-payments", "payments-notifications",
)  # fmt: skip
JOBS: Final = ("ledger", "payments", "fraud")
_FINAL: Final = frozenset(status.name for status in SETTLED)


def payments_deployment(
    settings: Settings,
    directory: Path,
    receivers: Receivers,
    model_port: int,
    *,
    api_workers: int = 2,
    say: Say = lambda what: None,
) -> Deployment:
    """Payments with everything around them, as an operator runs it: three jobs, API, relays, sinks, clock, scorer and
    notifier. Notifications go to ``receivers``; the scorer looks for a model server at ``model_port``: there need not
    be one, payments are then decided without a score."""
    notifier_port, scorer_port = free_ports(2)
    notifier = {
        "WEB_PORT": str(notifier_port), "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(receivers.smtp_port),
        "SMTP_SECURITY": "none", "RETRY_SECONDS": json.dumps([0.5, 1, 2, 2, 5, 5, 10, 10]),
        "ATTEMPT_SECONDS": "5", "LEASE_SECONDS": "10", "POLL_SECONDS": "0.2",
    }  # fmt: skip
    processes = [
        Process("api", ("api", "--workers", str(api_workers)), {"STREAMBANK_API_EVENTS_PER_MINUTE": "1000000000"}),
        Process("clock", ("payments", "clock")),
        Process("notifier", ("notifier",), {f"STREAMBANK_NOTIFIER_{name}": value for name, value in notifier.items()}),
        Process(
            "score", ("score", "--web-port", str(scorer_port)),
            {"STREAMBANK_MODEL_SERVER": f"http://127.0.0.1:{model_port}"},
        ),
        *sinks(SINKS),
    ]  # fmt: skip
    webhooks = {"webhook_allowed_networks": "127.0.0.1/32", "webhook_allow_http": True}
    return Deployment(settings, directory, processes, JOBS, more=webhooks, say=say)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def all_faults(deployment: Deployment, servers: Servers, messages: Messages) -> list[Fault]:
    """A round of everything: each process and each server killed, each server away, messages again and out of order."""
    faults = list(part_faults(deployment, servers).values())
    faults += [outage(deployment, [server], OUTAGE_SECONDS) for server in servers.values()]
    faults += [messages.come_again(), messages.come_out_of_order(deployment)]
    messages.chance.shuffle(faults)
    return faults


def quick_faults(deployment: Deployment, servers: Servers, messages: Messages) -> list[Fault]:
    """The same in about a minute: processes in two lots, messages, all stores away together, then Kafka."""
    names = list(deployment.processes)
    stores = [server for name, server in servers.items() if name not in ("kafka", "flink")]
    return [
        kill_processes(deployment, "every other process", names[1::2]),
        messages.come_out_of_order(deployment),
        messages.come_again(),
        part_faults(deployment, servers)["taskmanager"],
        outage(deployment, stores, OUTAGE_SECONDS),
        kill_processes(deployment, "the other processes", names[::2]),
        outage(deployment, [servers["kafka"]], OUTAGE_SECONDS),
        messages.come_again(),
    ]


@dataclass(slots=True)
class Messages:
    """Sends messages again and in another order, as ``chance`` has it; ``again`` and ``out_of_order`` count them."""

    settings: Settings
    chance: random.Random
    again: int = 0
    out_of_order: int = 0

    def come_again(self) -> Fault:
        """Some of the last messages of topics with many writers, in any order, and the last frames of topics that one
        job writes, in theirs, as after a restore."""
        return Fault("messages again", (), self._send_again)

    def come_out_of_order(self, deployment: Deployment) -> Fault:
        """Relays are away while work for them piles up; then their commands are delivered for the first time, all in
        an order of their own, and the relays come back and send them once more."""
        killed = kill_processes(deployment, "messages out of order", [f"sink-{name}" for name in SHUFFLED_RELAYS])

        def end() -> None:
            for name in SHUFFLED_RELAYS:
                self._relay_shuffled(name)
            killed.end()

        return Fault(killed.name, killed.groups, killed.begin, end, HELD_BACK_SECONDS)

    def _send_again(self, last: int = 200, chosen: int = 40) -> None:
        records: list[tuple[str, int, bytes, bytes | None]] = []
        with TopicReader(self.settings) as reader:
            for topic in (
                PAYMENTS_COMMANDS, LEDGER_COMMANDS, FRAUD_TRANSACTIONS, NOTIFICATION_REQUESTS, PAYMENTS_EVENTS,
                LEDGER_RESULTS,
            ):  # fmt: skip
                for shard in range(topic.partitions):
                    start, end = reader.bounds(topic, shard)
                    found = list(reader.read(topic, shard, max(start, end - last), end))
                    one_job = topic.writers == "one job"
                    again = found[-5:] if one_job else self.chance.sample(found, min(chosen, len(found)))
                    records += [(topic.name, shard, record.value or b"", record.signature) for record in again]
        _send(self.settings, records)
        self.again += len(records)

    def _relay_shuffled(self, name: str) -> None:
        """Send what a relay that is away has not sent, each command in a frame of its own. Commands that must arrive in
        one frame, such as a hold and its capture, stay together."""
        relay = load_sink(name)(self.settings)
        assert isinstance(relay, KafkaRelay)
        codec, ids = codec_of(relay.topic.name), schema_ids(relay.targets, self.settings)
        commands: list[Commands] = []
        with TopicReader(self.settings) as reader:
            for shard, offset in _positions(self.settings, relay).items():
                start, end = reader.bounds(relay.topic, shard)
                for record in reader.read(relay.topic, shard, max(start, offset), end):
                    assert record.value is not None
                    commands += relay.translate(shard, codec.decode(unwrap(record.value)[1]).events)
        self.chance.shuffle(commands)
        now = time.time_ns() // 1000
        records: list[tuple[str, int, bytes, bytes | None]] = []
        for command in commands:
            topic, shard, events = command
            target = codec_of(topic.name)
            frame = Frame(topic.name, shard, 0, now, None, parse_events(target, events))
            records.append((topic.name, shard, wrap(ids[topic.name], target.encode(frame)), None))
        _send(self.settings, records)
        self.out_of_order += len(records)


def _positions(settings: Settings, relay: KafkaRelay) -> dict[int, int]:
    """The offset from which a relay goes on, by partition."""
    consumer = Consumer(
        {
            **kafka_options(settings),
            "group.id": settings.kafka_topic(f"relay-{relay.name}-positions"),
            "enable.auto.commit": False,
        }
    )
    try:
        name = settings.kafka_topic(relay.topic.name)
        places = [TopicPartition(name, partition) for partition in range(relay.topic.partitions)]
        committed = consumer.committed(places, timeout=KAFKA_SECONDS)
    finally:
        consumer.close()
    return {place.partition: max(0, place.offset) for place in committed}


def _send(settings: Settings, records: Sequence[tuple[str, int, bytes, bytes | None]]) -> None:
    """Raises `DeploymentError` when Kafka does not take one of (topic, shard, value, signature)."""
    failures: list[str] = []
    producer: Any = Producer({**kafka_options(settings), "acks": "all", "log_level": 0})
    for topic, shard, value, signature in records:
        producer.produce(
            settings.kafka_topic(topic), value, key=str(shard).encode(), partition=shard,
            headers=[(HEADER, signature)] if signature else [],
            on_delivery=lambda error, _: failures.append(error.str()) if error is not None else None,
        )  # fmt: skip
        producer.poll(0)
    if producer.flush(KAFKA_SECONDS) or failures:
        raise DeploymentError(f"Kafka did not take the messages: {failures[:1] or 'no answer'}")


# --- the soak ---------------------------------------------------------------------------------------------------------


class PaymentsSoak:
    """Load on a running deployment at ``rate`` payments a second through whole rounds of ``faults``, at least one,
    until ``seconds`` are over; then everything settles and is checked. `run` it once."""

    def __init__(
        self,
        deployment: Deployment,
        servers: Servers,
        receivers: Receivers,
        *,
        rate: float,
        seconds: float = 0.0,
        faults: Callable[[Deployment, Servers, Messages], list[Fault]] = all_faults,
        payments_between: int = 20,
        seed: int = SEED,
        say: Say = lambda what: None,
    ) -> None:
        self.report = Report()
        self.load = PaymentsLoad(deployment, receivers, rate)
        self.disturbance = Disturbance(deployment, say)
        self._deployment, self._servers, self._receivers = deployment, servers, receivers
        self._settings = deployment.settings
        self._messages = Messages(deployment.settings, random.Random(seed))
        self._schedule = Rounds(partial(faults, deployment, servers, self._messages), payments_between, seconds)
        self._say = say

    def run(self) -> Report:
        """Raises `SoakError`, `DeploymentError` or `LoadError` when it cannot go on."""
        publish_rules(self._settings, RULES, author="soak", note="blocks what is very large")
        load, report = self.load, self.report
        load.prepare()
        begin = time.monotonic()
        load.start()
        try:
            self.disturbance.run(load, self._schedule)
        finally:
            load.stopping = True
        load.finish()
        seconds = time.monotonic() - begin
        report.faults = self.disturbance.happened
        self._say(f"{load.progress:,} payments accepted in {seconds:.0f} s; everything settles")
        self._settle()
        report.figures |= {
            "payments accepted": load.progress,
            "payments given up": load.given_up,
            "faults": len(report.faults),
            "messages sent again": self._messages.again,
            "messages out of order": self._messages.out_of_order,
            "started again by the supervisor": self._deployment.restarts,
            "seconds of load": round(seconds, 1),
            "seconds until all had settled": round(time.monotonic() - begin - seconds, 1),
        }
        report.answers = dict(load.answers)
        self._check()
        return report

    def _settle(self) -> None:
        """Until nothing is under way any more; people decide what waits for them."""

        def settled() -> object:
            self._deployment.supervise()
            self.load.review()
            found = _reconciled(self._settings)
            told = found.notifications
            assert told is not None
            unfinished = {status: count for status, count in found.statuses.items() if status not in _FINAL}
            if found.waiting or found.behind or unfinished or told.waiting or told.undelivered:
                raise DeploymentError(
                    f"unfinished: {found.waiting} waiting, {found.behind} behind, {unfinished}, {told}"
                )
            return True

        wait_until(settled, SETTLE_SECONDS, "everything has settled", pause=1.0)

    def _check(self) -> None:
        report, settings, load, receivers = self.report, self._settings, self.load, self._receivers
        found = _reconciled(settings)
        repeats = [count - 1 for count in (*receivers.hooks.values(), *receivers.mails.values())]
        report.figures |= {
            "webhooks": len(receivers.hooks), "e-mails": len(receivers.mails), "of them repeated": sum(repeats),
        }  # fmt: skip
        report.more["reconciliation"] = found.as_json()

        def nothing(name: str, wrong: object) -> None:
            report.check(name, [], [str(wrong)[:2_000]] if wrong else [])

        nothing("payments, ledger, Postgres and notifications: differences", found.differences)
        nothing("held", found.held)
        endings = _endings(settings)
        lost = [payment for payment in load.accepted if not endings.get((payment[0] % PAYMENTS_SHARDS, payment[1]))]
        nothing("accepted payments without a final status", lost[:20])
        nothing("payments with two", [payment for payment, count in endings.items() if count > 1][:20])
        nothing("balances in the ledger that are not what payments say", _balances_wrong(settings))
        with psycopg.connect(postgres_conninfo(settings)) as connection:
            for channel, taken in (("webhook", receivers.hooks), ("email", receivers.mails)):
                rows = connection.execute(
                    "SELECT message_id FROM notifications.deliveries WHERE channel = %s AND state = 'delivered'",
                    [channel],
                )
                sent = {row[0] for row in rows}
                nothing(f"notifications by {channel} that did not arrive, or under another id", sent ^ taken.keys())
        nothing("received, but wrong", receivers.wrong)
        nothing("answers of the API that must not be", load.wrong)
        with TopicReader(settings) as reader:
            letters = sum(end - start for start, end in (
                reader.bounds(PAYMENTS_DEAD_LETTERS, shard) for shard in range(PAYMENTS_DEAD_LETTERS.partitions)
            ))  # fmt: skip
        nothing("messages set aside", letters)
        nothing("daily totals in Postgres that payments do not add up to", _totals_wrong(settings, found))
        wait_until(lambda: not _days_wrong(settings), SETTLE_SECONDS, "Cassandra has every payment of account and day")
        nothing("payments of account and day that Cassandra has otherwise", _days_wrong(settings))
        self._deployment.require_alive()
        nothing("jobs that do not run", self._deployment.jobs_away())


def _reconciled(settings: Settings) -> Reconciliation:
    try:
        return reconcile(settings, postgres=True, notifications=True)
    except psycopg.Error as error:
        raise DeploymentError(f"Postgres: {error}") from error


def _endings(settings: Settings) -> Counter[tuple[int, int]]:
    """How often each payment, by shard and id, became final."""
    endings: Counter[tuple[int, int]] = Counter()
    for shard, event in events_of(settings, PAYMENTS_EVENTS):
        endings[shard, int(event["payment_id"])] += event["status"] in _FINAL and event["previous_status"] not in _FINAL
    return endings


def _balances_wrong(settings: Settings) -> list[str]:
    """Accounts whose last balances in the ledger's events are not what the payments' last events add up to."""
    payments = {(shard, int(event["payment_id"])): event for shard, event in events_of(settings, PAYMENTS_EVENTS)}
    expected: Counter[tuple[int, int, str]] = Counter()
    for (shard, _), event in payments.items():
        payer, payee = int(event["payer_account_id"]), int(event["payee_account_id"])
        for account, direction, amount in (
            (payer, "debits", event["captured"]), (payee, "credits", event["captured"]),
            (payee, "debits", event["refunded"]), (payer, "credits", event["refunded"]),
        ):  # fmt: skip
            expected[shard, account, f"{direction}_posted"] += int(amount)
    for ledger in LEDGERS:
        for account in PAYERS:
            expected[ledger % PAYMENTS_SHARDS, account, "credits_posted"] += FUNDS
            expected[ledger % PAYMENTS_SHARDS, BANK, "debits_posted"] += FUNDS
    balances: dict[tuple[int, int, str], int] = {}
    for shard, account, name, amount in _balance_changes(settings):
        balances[shard, account, name] = amount
    return [
        f"account {key[1]} of shard {key[0]}: {key[2]} {balances.get(key, 0)}, the payments say {expected[key]}"
        for key in sorted(balances.keys() | expected.keys())
        if balances.get(key, 0) != expected[key]
    ][:20]


def _balance_changes(settings: Settings) -> Iterator[tuple[int, int, str, int]]:
    for shard, event in events_of(settings, LEDGER_EVENTS):
        if event["type"] == "AccountCreated":
            continue
        for side in ("debit", "credit"):
            account = int(event[f"{side}_account_id"])
            for name in ("debits_pending", "debits_posted", "credits_pending", "credits_posted"):
                yield shard, account, name, int(event[f"{side}_account_{name}"])


def _totals_wrong(settings: Settings, found: Reconciliation) -> str:
    with psycopg.connect(postgres_conninfo(settings)) as connection:
        [row] = connection.execute(
            "SELECT sum(created), sum(completed), sum(ended), sum(captured_amount), sum(refunded_amount)"
            " FROM payment_totals"
        ).fetchall()
    ended = sum(found.statuses[status.name] for status in UNSETTLED_END)
    expected = (found.payments, found.payments - ended, ended, found.captured, found.refunded)
    totals = tuple(map(int, row))
    return "" if totals == expected else f"{totals}, the payments say {expected}"


def _days_wrong(settings: Settings) -> list[str]:
    """Payments of accounts and days that Cassandra lacks, has too many of, or in another state than their events."""
    expected = {}
    for _, event in events_of(settings, PAYMENTS_EVENTS):
        for role in ("payer", "payee"):
            place = (int(event[f"{role}_account_id"]), int(event["ledger"]), int(event["requested_at"]) // DAY)
            expected[*place, int(event["payment_id"])] = (role, event["status"], event["version"])
    found = {}
    with cassandra_session(settings) as session:
        query = session.prepare(
            "SELECT payment_id, role, status, version FROM payments_by_account_day"
            " WHERE account_id = ? AND ledger = ? AND day = ?"
        )
        for place in {key[:3] for key in expected}:
            for row in session.execute(query, place):
                found[*place, int(row.payment_id)] = (row.role, row.status, row.version)
    return [
        f"{key}: {found.get(key)}, the payment says {expected.get(key)}"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ][:20]
