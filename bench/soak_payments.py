"""Payments under load while everything dies, one after the other: what was accepted must still come to one end.

Processes are killed with SIGKILL, servers are away for ten seconds, messages are sent again and out of order, and the
load goes on. Afterwards every accepted payment must have exactly one final status, the ledger's balances must be what
the payments say, nothing may be held, every notification must have arrived, and `payments reconcile` finds nothing.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from psycopg.sql import SQL, Identifier

from bench.soak_payments_load import BANK, FUNDS, LEDGERS, PAYERS, RULES, Clients, Load
from bench.soak_payments_parts import PartsError, PaymentsParts, wait_until
from infra.flink_rest import FlinkRest
from infra.settings import Settings
from infra.stack.flink import Flink
from infra.stack.server import Server
from infra.stores import cassandra_session, postgres_conninfo
from jobs.fraud_rules import publish_rules
from jobs.payments_reconcile import Reconciliation, events_of, reconcile
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
    TOPICS,
)
from pipelines.payments.records import DAY
from pipelines.payments.states import SETTLED, UNSETTLED_END

__all__ = ["OUTAGE_SECONDS", "Check", "Fault", "SoakReport", "all_faults", "drop", "quick_faults", "soak"]

OUTAGE_SECONDS: Final = 10.0
SETTLE_SECONDS: Final = 420.0
SEED: Final = 7
_FINAL: Final = frozenset(status.name for status in SETTLED)

Servers = Mapping[str, Server]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong; `happen` returns when everything is started again, healthy or not yet."""

    name: str
    happen: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    detail: str = ""


@dataclass(slots=True)
class SoakReport:
    """``faults`` that happened, by name."""

    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    given_up: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    webhooks: int = 0
    mails: int = 0
    repeated_notifications: int = 0
    settle_seconds: float = 0.0
    reconciliation: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}


# --- what goes wrong --------------------------------------------------------------------------------------------------


def all_faults(parts: PaymentsParts, servers: Servers) -> list[Fault]:
    """A round of everything: each process and each server killed, each server away, messages again and out of order."""
    random_ = random.Random(SEED)
    faults = [Fault(f"kill -9 {name}", _restarts(parts, name)) for name in parts.processes]
    faults += [Fault(f"kill -9 server {name}", _kills(parts, server)) for name, server in servers.items()]
    faults += [Fault(f"{name} away", _goes_away(parts, {name: server})) for name, server in servers.items()]
    flink = servers["flink"]
    assert isinstance(flink, Flink)
    faults.append(Fault("kill -9 TaskManager", lambda: _kill_task_manager(flink)))
    faults.append(Fault("kill -9 an API worker", parts.kill_api_worker))
    faults.append(Fault("messages again", lambda: send_again(parts.settings, random_)))
    random_.shuffle(faults)
    return faults


def quick_faults(parts: PaymentsParts, servers: Servers) -> list[Fault]:
    """The same in about a minute: processes in two lots, all stores away together, then Kafka."""
    random_ = random.Random(SEED)
    flink = servers["flink"]
    assert isinstance(flink, Flink)
    names = list(parts.processes)
    stores = {name: server for name, server in servers.items() if name not in ("kafka", "flink")}

    def kill(chosen: list[str]) -> Callable[[], None]:
        def happen() -> None:
            for name in chosen:
                parts.restart(name)

        return happen

    return [
        Fault("kill -9 of every other process", kill(names[1::2])),
        Fault("messages again", lambda: send_again(parts.settings, random_)),
        Fault("kill -9 TaskManager", lambda: _kill_task_manager(flink)),
        Fault(f"{', '.join(stores)} away", _goes_away(parts, stores)),
        Fault("kill -9 of the other processes", kill(names[::2])),
        Fault("kafka away", _goes_away(parts, {"kafka": servers["kafka"]})),
        Fault("messages again", lambda: send_again(parts.settings, random_)),
    ]


def _restarts(parts: PaymentsParts, name: str) -> Callable[[], None]:
    return lambda: parts.restart(name)


def _kills(parts: PaymentsParts, server: Server) -> Callable[[], None]:
    def happen() -> None:
        server.kill()
        _bring_back(parts, {server.name: server})

    return happen


def _goes_away(parts: PaymentsParts, servers: Servers) -> Callable[[], None]:
    """The servers are away together for ten seconds: the length is the point, nothing is waited for."""

    def happen() -> None:
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(lambda server: server.stop(), servers.values()))
        time.sleep(OUTAGE_SECONDS)
        _bring_back(parts, servers)

    return happen


def _bring_back(parts: PaymentsParts, servers: Servers) -> None:
    for server in servers.values():
        server.start()
    for server in servers.values():
        server.wait_healthy()
    if "flink" in servers:
        parts.submit_jobs()


def _kill_task_manager(flink: Flink) -> None:
    flink.kill_task_manager()
    flink.start_task_manager()


def send_again(settings: Settings, random_: random.Random, *, last: int = 200, chosen: int = 40) -> int:
    """Send messages again: some of the last of topics with many writers, in any order, and the last frames of topics
    that one job writes, in theirs, as after a restore. Returns how many."""
    producer: Any = Producer({"bootstrap.servers": settings.kafka_bootstrap, "acks": "all", "log_level": 0})
    sent = 0
    with TopicReader(settings) as reader:
        for topic in (
            PAYMENTS_COMMANDS, LEDGER_COMMANDS, FRAUD_TRANSACTIONS, NOTIFICATION_REQUESTS, PAYMENTS_EVENTS,
            LEDGER_RESULTS,
        ):  # fmt: skip
            for shard in range(topic.partitions):
                start, end = reader.bounds(topic, shard)
                values = [record.value for record in reader.read(topic, shard, max(start, end - last), end)]
                if topic.writers == "one job":
                    again = values[-5:]
                else:
                    again = random_.sample(values, min(chosen, len(values)))
                for value in again:
                    producer.produce(settings.kafka_topic(topic.name), value, key=str(shard).encode(), partition=shard)
                sent += len(again)
    if producer.flush(60):
        raise PartsError("Kafka did not take the repeated messages")
    return sent


# --- the soak ---------------------------------------------------------------------------------------------------------


def soak(
    parts: PaymentsParts,
    servers: Servers,
    *,
    rate: float,
    seconds: float = 0.0,
    faults: Callable[[PaymentsParts, Servers], list[Fault]] = all_faults,
    payments_between: int = 20,
    say: Say = lambda _: None,
) -> SoakReport:
    """Load running parts at ``rate`` payments a second through whole rounds of ``faults``, at least one, until
    ``seconds`` are over; then let everything settle and check. Raises `PartsError` or `LoadError` when it cannot go on.
    """
    report = SoakReport()
    publish_rules(parts.settings, RULES, author="soak", note="blocks what is very large")
    load = Load(Clients.of(parts), parts, rate)
    load.prepare()
    begin = time.monotonic()
    load.start()
    try:
        load.flows_on(payments_between)
        while True:
            for fault in faults(parts, servers):
                say(f"{time.monotonic() - begin:6.0f} s, {len(load.accepted)} accepted: {fault.name}")
                fault.happen()
                report.faults[fault.name] += 1
                load.flows_on(payments_between)
                load.review()
            if time.monotonic() - begin >= seconds:
                break
    finally:
        load.stopping = True
    load.finish()
    report.seconds = round(time.monotonic() - begin, 1)
    say(f"{report.seconds:6.0f} s, {len(load.accepted)} accepted: settling")
    _settle(parts, load)
    report.settle_seconds = round(time.monotonic() - begin - report.seconds, 1)
    _check(parts, servers, load, report)
    return report


def _settle(parts: PaymentsParts, load: Load) -> None:
    """Until nothing is under way any more; people decide what waits for them."""

    def settled() -> object:
        load.review()
        found = _reconciled(parts.settings)
        told = found.notifications
        assert told is not None
        unfinished = {status: count for status, count in found.statuses.items() if status not in _FINAL}
        if found.waiting or found.behind or unfinished or told.waiting or told.undelivered:
            raise PartsError(f"unfinished: {found.waiting} waiting, {found.behind} behind, {unfinished}, {told}")
        return True

    wait_until(settled, SETTLE_SECONDS, "everything has settled")


def _reconciled(settings: Settings) -> Reconciliation:
    try:
        return reconcile(settings, postgres=True, notifications=True)
    except psycopg.Error as error:
        raise PartsError(f"Postgres: {error}") from error


def _check(parts: PaymentsParts, servers: Servers, load: Load, report: SoakReport) -> None:
    settings = parts.settings
    found = _reconciled(settings)
    receivers = parts.receivers
    report.accepted, report.given_up = len(load.accepted), load.given_up
    report.answers = dict(load.answers)
    report.reconciliation = found.as_json()
    report.webhooks, report.mails = len(receivers.hooks), len(receivers.mails)
    repeats = [count - 1 for count in (*receivers.hooks.values(), *receivers.mails.values())]
    report.repeated_notifications = sum(repeats)

    def check(name: str, wrong: object, detail: object = "") -> None:
        report.checks.append(Check(name, not wrong, str(wrong)[:2_000] if wrong else str(detail)))

    check("payments, ledger, Postgres and notifications agree", found.differences)
    check("nothing is held", found.held)
    endings = _endings(settings)
    lost = [payment for payment in load.accepted if not endings.get((payment[0] % PAYMENTS_SHARDS, payment[1]))]
    check("every accepted payment has a final status", lost[:20], f"{len(load.accepted)} accepted")
    check("none has two", [payment for payment, count in endings.items() if count > 1][:20])
    check("the ledger's balances are what payments say", _balances_wrong(settings))
    with psycopg.connect(postgres_conninfo(settings)) as connection:
        for channel, taken in (("webhook", receivers.hooks), ("email", receivers.mails)):
            rows = connection.execute(
                "SELECT message_id FROM notifications.deliveries WHERE channel = %s AND state = 'delivered'", [channel]
            )
            sent = {row[0] for row in rows}
            check(f"every notification by {channel} arrived, under its id", sent ^ taken.keys(), f"{len(sent)}")
    check("nothing wrong was received", receivers.wrong)
    check("the API answered nothing that it must not", load.wrong)
    with TopicReader(settings) as reader:
        letters = sum(end - start for start, end in (
            reader.bounds(PAYMENTS_DEAD_LETTERS, shard) for shard in range(PAYMENTS_DEAD_LETTERS.partitions)
        ))  # fmt: skip
    check("nothing was set aside", letters)
    check("daily totals in Postgres are what payments add up to", _totals_wrong(settings, found))
    wait_until(lambda: not _days_wrong(settings), SETTLE_SECONDS, "Cassandra has every payment of each account and day")
    check("Cassandra has every payment of each account and day", _days_wrong(settings))
    parts.require_alive()
    with FlinkRest(parts.servers_settings) as flink:
        names = {settings.kafka_topic(name): False for name in ("ledger", "payments", "fraud")}
        names |= {job.name: True for job in flink.jobs() if job.is_serving and job.name in names}
    check("every job runs", [name for name, runs in names.items() if not runs])


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


def drop(settings: Settings) -> None:
    """Delete topics, database and keyspace of an environment."""
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    for deleted in admin.delete_topics([settings.kafka_topic(name) for name in TOPICS]).values():
        deleted.exception()
    with psycopg.connect(postgres_conninfo(settings, database="postgres"), autocommit=True) as connection:
        connection.execute(
            SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(settings.postgres_database))
        )
    with cassandra_session(settings, keyspace=False) as session:
        session.execute(f'DROP KEYSPACE IF EXISTS "{settings.cassandra_keyspace}"')
