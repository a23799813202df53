"""Do payments, ledger and notifications agree? Payments and ledger are read from the topics themselves, so that no
projection can hide a difference.

Every payment's last event says what it holds, captured and refunded; the ledger's events say what its transfers did.
They are compared payment by payment, and with Postgres where that is asked for. Every transition that its payer is told
of must be in the notifications' outbox once, under its id, for the right customer. Nothing is repaired.

A notification that is on its way is no difference, and neither is one that died with its endpoint (which was deleted,
or switched itself off): both are counted. One that died at an endpoint that is still in use is a difference until it is
replayed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg
from confluent_kafka import OFFSET_BEGINNING

from infra.settings import Settings
from infra.stores import postgres_conninfo
from jobs.sinks.payments_notifications import payment_notification
from jobs.topic_reader import TopicReader
from pipelines.catalogue import LEDGER_EVENTS, PAYMENTS_EVENTS, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.payments.records import transfer_of
from pipelines.payments.states import SETTLED, Action
from pipelines.wire import unwrap

__all__ = ["PATIENCE_SECONDS", "Difference", "Notifications", "Reconciliation", "events_of", "reconcile"]

_FINAL: Final = frozenset(status.name for status in SETTLED)
MAX_LISTED: Final = 1_000
PATIENCE_SECONDS: Final = 60.0
"""How long a payment's event may take to Postgres, and its notification to the outbox."""
_OUTBOX: Final = """
SELECT m.id, m.customer, m.kind, d.channel, d.endpoint_id, d.state, d.attempts, d.last_error,
    e.deleted_at IS NOT NULL OR e.disabled_reason IS NOT NULL AS off
FROM notifications.messages m
LEFT JOIN notifications.deliveries d ON d.message_id = m.id
LEFT JOIN notifications.endpoints e ON e.id = d.endpoint_id
WHERE m.kind LIKE 'payment.%' ORDER BY m.id, d.id
"""
Key = tuple[int, int]
"""(shard, payment id)."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that does not agree; ``payment_id`` as a decimal string."""

    shard: int
    payment_id: str
    what: str


@dataclass(slots=True)
class Notifications:
    """``wanted`` by payments' events; of these ``waiting`` are not in the outbox yet and may take a while. The others
    are deliveries, by what became of them; ``unheard`` are notifications that nobody wanted to hear."""

    wanted: int = 0
    waiting: int = 0
    unheard: int = 0
    delivered: int = 0
    undelivered: int = 0
    dead: int = 0
    dead_with_endpoint: int = 0
    undelivered_ids: list[str] = field(default_factory=list)
    """The first `MAX_LISTED` of ``undelivered``."""


@dataclass(slots=True)
class Reconciliation:
    """``waiting`` payments still owe or are owed an answer: their sums are not compared. ``notifications`` is None when
    they were not compared."""

    payments: int = 0
    waiting: int = 0
    behind: int = 0
    """Payments whose last change is too young to be missed in Postgres."""
    statuses: Counter[str] = field(default_factory=Counter)
    captured: int = 0
    refunded: int = 0
    held: int = 0
    notifications: Notifications | None = None
    found: int = 0
    differences: list[Difference] = field(default_factory=list)
    """The first `MAX_LISTED` of ``found``."""

    @property
    def clean(self) -> bool:
        return not self.found

    def note(self, key: Key, what: str) -> None:
        self.found += 1
        if len(self.differences) < MAX_LISTED:
            self.differences.append(Difference(key[0], str(key[1]), what))

    def as_json(self) -> dict[str, Any]:
        return {
            "clean": self.clean, "payments": self.payments, "waiting": self.waiting, "behind": self.behind,
            "statuses": dict(self.statuses),
            "held": self.held, "captured": self.captured, "refunded": self.refunded,
            "notifications": asdict(self.notifications) if self.notifications else None, "found": self.found,
            "differences": [{"shard": d.shard, "payment_id": d.payment_id, "what": d.what} for d in self.differences],
        }  # fmt: skip


@dataclass(slots=True)
class _Money:
    """What the ledger did for one payment. ``holds``: amount of each pending transfer that stands, by its number."""

    holds: dict[int, int] = field(default_factory=dict)
    captured: int = 0
    refunded: int = 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A notification that an event calls for; ``at`` in UTC microseconds."""

    key: Key
    customer: str
    kind: str
    at: int


def reconcile(
    settings: Settings,
    *,
    postgres: bool = False,
    notifications: bool = False,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Reconciliation:
    """Compare what is there now. The ledger is read after the payments, and what it did meanwhile was asked for by
    payments that have changed since they were read: those count as waiting.

    Raises `StreambankError` when Kafka, or `psycopg.Error` when Postgres does not answer.
    """
    report = Reconciliation()
    payments: dict[Key, dict[str, Any]] = {}
    wanted: dict[str, _Wanted] = {}
    with TopicReader(settings) as reader:
        ends = reader.ends(PAYMENTS_EVENTS)
    for shard, event in events_of(settings, PAYMENTS_EVENTS, ends=ends):
        key = (shard, int(event["payment_id"]))
        known = payments.get(key)
        if event["version"] != (known["version"] if known else 0) + 1:
            report.note(key, f"event {event['version']} follows {known['version'] if known else 'none'}")
        if known and known["status"] in _FINAL and event["status"] not in _FINAL:
            report.note(key, f"{event['status']} follows {known['status']}, which is final")
        payments[key] = event
        request = payment_notification(shard, event) if notifications else None
        if request is not None:
            wanted[request["id"]] = _Wanted(key, request["customer"], request["event_kind"], int(event["at"]))
    # all that is compared with the events is read before what came after them, so that it can know no more
    money = _ledger(settings)
    stored = _stored(settings) if postgres else None
    outbox = _outbox(settings) if notifications else None
    changed = {(shard, int(event["payment_id"])) for shard, event in events_of(settings, PAYMENTS_EVENTS, starts=ends)}
    for key, event in sorted(payments.items()):
        report.payments += 1
        report.statuses[event["status"]] += 1
        for name in ("held", "captured", "refunded"):
            setattr(report, name, getattr(report, name) + int(event[name]))
        found = money.pop(key, _Money())
        if key in changed or _waits(event):
            report.waiting += 1
            continue
        for what, here, there in (
            ("held", int(event["held"]), sum(found.holds.values())),
            ("captured", int(event["captured"]), found.captured),
            ("refunded", int(event["refunded"]), found.refunded),
        ):
            if here != there:
                report.note(key, f"{what}: the payment says {here}, the ledger {there}")
    for key in sorted(money.keys() - changed):
        report.note(key, "the ledger has transfers of a payment that does not exist")
    settled_before = time.time_ns() // 1_000 - int(patience_seconds * 1_000_000)
    if stored is not None:
        _compare_postgres(payments, stored, changed, settled_before, report)
    if outbox is not None:
        report.notifications = _compare_notifications(wanted, outbox, changed, settled_before, report)
    return report


def _waits(event: dict[str, Any]) -> bool:
    """Whether the ledger may know more than the payment: something was asked for and is not answered."""
    if event["status"] in ("SCREENED", "RECEIVED", "VALIDATED"):
        return True
    if event["asks"]:
        return True
    # an automatic payment asks for its capture together with the hold
    return bool(event["cause"] == "reserved" and event["capture"] == "automatic")


def _ledger(settings: Settings) -> dict[Key, _Money]:
    money: dict[Key, _Money] = {}
    for shard, event in events_of(settings, LEDGER_EVENTS):
        expired = event["type"] == "TransferExpired"
        if event["type"] != "TransferCreated" and not expired:
            continue
        transfer = transfer_of(int(event["pending_id"] if expired else event["id"]))
        if transfer is None:
            continue
        found = money.setdefault((shard, transfer.payment_id), _Money())
        if expired:
            found.holds.pop(transfer.number, None)
        elif transfer.action is Action.reserve:
            found.holds[transfer.number] = int(event["amount"])
        elif transfer.action is Action.refund:
            found.refunded += int(event["amount"])
        else:
            hold = transfer_of(int(event["pending_id"]))
            if hold is not None:
                found.holds.pop(hold.number, None)
            if transfer.action is Action.capture:
                found.captured += int(event["amount"])
    return money


def events_of(
    settings: Settings, topic: Topic, *, starts: Sequence[int] | None = None, ends: Sequence[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(shard, event) of a topic that one job writes, repeated frames dropped, from and up to offsets by shard."""
    codec = codec_of(topic.name)
    with TopicReader(settings) as reader:
        for shard in range(topic.partitions):
            last = 0
            place = (starts[shard] if starts else OFFSET_BEGINNING, ends[shard] if ends else None)
            for record in reader.read(topic, shard, *place):
                if record.value is None:
                    continue
                frame = codec.decode(unwrap(record.value)[1])
                if frame.sequence <= last:
                    continue
                last = frame.sequence
                for event in render_events(codec, frame.events):
                    yield shard, event


def _stored(settings: Settings) -> dict[Key, tuple[Any, ...]]:
    with psycopg.connect(postgres_conninfo(settings)) as connection:
        rows = connection.execute("SELECT shard, payment_id, version, status, captured, refunded, held FROM payments")
        return {(int(row[0]), int(row[1])): tuple(row[2:]) for row in rows}


def _compare_postgres(
    payments: dict[Key, dict[str, Any]],
    stored: dict[Key, tuple[Any, ...]],
    changed: set[Key],
    settled_before: int,
    report: Reconciliation,
) -> None:
    for key, event in sorted(payments.items()):
        expected = tuple(event[name] for name in ("version", "status", "captured", "refunded", "held"))
        row = stored.pop(key, None)
        if row == expected or key in changed:
            continue
        is_older = row is None or row[0] < event["version"]
        if is_older and event["at"] > settled_before:
            report.behind += 1
        else:
            report.note(key, "Postgres has an older state" if is_older else "Postgres has another state")
    for key in sorted(stored.keys() - changed):
        report.note(key, "Postgres has a payment that the topic has not")


def _outbox(settings: Settings) -> list[tuple[Any, ...]]:
    with psycopg.connect(postgres_conninfo(settings)) as connection:
        return connection.execute(_OUTBOX).fetchall()


def _compare_notifications(
    wanted: dict[str, _Wanted],
    outbox: list[tuple[Any, ...]],
    changed: set[Key],
    settled_before: int,
    report: Reconciliation,
) -> Notifications:
    counts = Notifications(wanted=len(wanted))
    found: set[str] = set()
    for message_id, customer, kind, channel, endpoint, state, attempts, error, off in outbox:
        asked = wanted.get(message_id)
        if asked is None:
            if message_id not in found and _key_of(message_id) not in changed:
                report.note(_key_of(message_id), f"notification {message_id} tells of nothing that happened")
        elif (customer, kind) != (asked.customer, asked.kind) and message_id not in found:
            report.note(
                asked.key, f"notification {message_id}: {kind} to {customer}, not {asked.kind} to {asked.customer}"
            )
        found.add(message_id)
        match state:
            case None:
                counts.unheard += 1
            case "delivered":
                counts.delivered += 1
            case "dead" if off:
                counts.dead_with_endpoint += 1
            case "dead":
                counts.dead += 1
                where = f"{channel} {endpoint}".strip()
                report.note(
                    asked.key if asked else _key_of(message_id),
                    f"notification {message_id} is dead at {where} after {attempts} attempts: {error}",
                )
            case _:
                counts.undelivered += 1
                if len(counts.undelivered_ids) < MAX_LISTED:
                    counts.undelivered_ids.append(message_id)
    for message_id in sorted(wanted.keys() - found):
        asked = wanted[message_id]
        if asked.at > settled_before:
            counts.waiting += 1
        else:
            report.note(asked.key, f"notification {message_id} ({asked.kind}) is not in the outbox")
    return counts


def _key_of(message_id: str) -> Key:
    """The payment that a notification's id names, as far as it names one."""
    words = message_id.split("-")
    known = len(words) == 4 and words[0] == "payment" and words[1].isdecimal() and words[2].isdecimal()
    return (int(words[1]), int(words[2])) if known else (-1, 0)
