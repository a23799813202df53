"""Do payments and ledger agree? Read from the topics themselves, so that no projection can hide a difference.

Every payment's last event says what it holds, captured and refunded; the ledger's events say what its transfers did.
They are compared payment by payment, and with Postgres where that is asked for. Nothing is repaired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from confluent_kafka import OFFSET_BEGINNING

from infra.settings import Settings
from infra.stores import postgres_conninfo
from jobs.topic_reader import TopicReader
from pipelines.catalogue import LEDGER_EVENTS, PAYMENTS_EVENTS, Topic
from pipelines.codec import codec_of
from pipelines.event_json import render_events
from pipelines.payments.records import transfer_of
from pipelines.payments.states import SETTLED, Action
from pipelines.wire import unwrap

__all__ = ["Difference", "Reconciliation", "reconcile"]

_FINAL: Final = frozenset(status.name for status in SETTLED)
MAX_LISTED: Final = 1_000
Key = tuple[int, int]
"""(shard, payment id)."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that does not agree; ``payment_id`` as a decimal string."""

    shard: int
    payment_id: str
    what: str


@dataclass(slots=True)
class Reconciliation:
    """``waiting`` payments still owe or are owed an answer: their sums are not compared."""

    payments: int = 0
    waiting: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    captured: int = 0
    refunded: int = 0
    held: int = 0
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
            "clean": self.clean, "payments": self.payments, "waiting": self.waiting, "statuses": dict(self.statuses),
            "held": self.held, "captured": self.captured, "refunded": self.refunded, "found": self.found,
            "differences": [{"shard": d.shard, "payment_id": d.payment_id, "what": d.what} for d in self.differences],
        }  # fmt: skip


@dataclass(slots=True)
class _Money:
    """What the ledger did for one payment. ``holds``: amount of each pending transfer that stands, by its number."""

    holds: dict[int, int] = field(default_factory=dict)
    captured: int = 0
    refunded: int = 0


def reconcile(settings: Settings, *, postgres: bool = False) -> Reconciliation:
    """Compare what is in the topics now. The ledger is read after the payments, and what it did meanwhile was asked for
    by payments that have changed since they were read: those count as waiting."""
    report = Reconciliation()
    payments: dict[Key, dict[str, Any]] = {}
    with TopicReader(settings) as reader:
        ends = reader.ends(PAYMENTS_EVENTS)
    for shard, event in _events(settings, PAYMENTS_EVENTS, ends=ends):
        key = (shard, int(event["payment_id"]))
        known = payments.get(key)
        if event["version"] != (known["version"] if known else 0) + 1:
            report.note(key, f"event {event['version']} follows {known['version'] if known else 'none'}")
        if known and known["status"] in _FINAL and event["status"] not in _FINAL:
            report.note(key, f"{event['status']} follows {known['status']}, which is final")
        payments[key] = event
    money = _ledger(settings)
    changed = {(shard, int(event["payment_id"])) for shard, event in _events(settings, PAYMENTS_EVENTS, starts=ends)}
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
    if postgres:
        _compare_postgres(settings, payments, report)
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
    for shard, event in _events(settings, LEDGER_EVENTS):
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


def _events(
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


def _compare_postgres(settings: Settings, payments: dict[Key, dict[str, Any]], report: Reconciliation) -> None:
    with psycopg.connect(postgres_conninfo(settings)) as connection:
        rows = connection.execute("SELECT shard, payment_id, version, status, captured, refunded, held FROM payments")
        stored = {(int(row[0]), int(row[1])): tuple(row[2:]) for row in rows}
    for key, event in sorted(payments.items()):
        expected = tuple(event[name] for name in ("version", "status", "captured", "refunded", "held"))
        if stored.pop(key, None) != expected:
            report.note(key, "Postgres has another state, or an older one")
    for key in sorted(stored):
        report.note(key, "Postgres has a payment that the topic has not")
