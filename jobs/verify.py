"""Audits a ledger environment: the log replayed in process must equal what the job sent and what the stores hold.

`verify` replays ledger.commands through the kernel, shard by shard, and compares

- ledger.results and ledger.events, once repeats are dropped by sequence, byte for byte, without a gap;
- Postgres: every account with its balances, every transfer and expiry, the sums per ledger, the sink's position;
- Cassandra: every statement row, with the balances after it, and the sink's position;
- the invariants of the ledger itself: per ledger the debits equal the credits and the sum of the transfers, and no
  event left an account beyond its limit.

It only reads, and expects that nothing is on its way: `wait_drained` waits for that. Stores are compared row by row
through 64-bit hashes (`jobs.row_words`), so memory stays at some 16 bytes per row.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final, Self, cast

import numpy as np
import psycopg
from numpy.typing import NDArray

from infra.registry import schema_ids, writer_schema
from infra.settings import Settings
from infra.stores import API_ROLE, cassandra_session, postgres_conninfo
from jobs.dead_letters import decode_letters
from jobs.registry_reader import registry_reader
from jobs.row_words import cassandra_pages, copy_stream, hash_rows, text_number
from jobs.topic_reader import TopicReader
from pipelines.catalogue import (
    LEDGER_COMMANDS,
    LEDGER_DEAD_LETTERS,
    LEDGER_EVENTS,
    LEDGER_RESULTS,
    PIPELINES,
    Topic,
)
from pipelines.codec import EventType, codec_of
from pipelines.errors import FrameError
from pipelines.frames import Frame
from pipelines.kernel import InvariantBroken
from pipelines.ledger.kernel import LedgerKernel
from pipelines.ledger.records import AccountFlags
from pipelines.shard import Shard
from pipelines.wire import unwrap

__all__ = ["SINKS", "Backlog", "BacklogReader", "Check", "Verification", "verify", "wait_drained"]

SINKS: Final = ("postgres", "cassandra")
LEDGER: Final = PIPELINES["ledger"]
FRAMES_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: ``expected`` comes from the replay, ``found`` from the running system."""

    name: str
    expected: Any
    found: Any
    detail: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.expected == self.found)


@dataclass(slots=True)
class Verification:
    """What `verify` found; ``figures`` are the counts that a report shows."""

    checks: list[Check] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def check(self, name: str, expected: Any, found: Any, detail: str = "") -> None:
        self.checks.append(Check(name, expected, found, detail))

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "figures": self.figures,
            "checks": [
                {
                    "name": check.name,
                    "expected": check.expected,
                    "found": check.found,
                    "ok": check.ok,
                    "detail": check.detail,
                }
                for check in self.checks
            ],
        }


# --- what is still on its way


@dataclass(frozen=True, slots=True)
class Backlog:
    """Frames not yet applied: by the job (of ledger.commands) and by each sink (of ledger.events)."""

    job: int
    sinks: dict[str, int]

    @property
    def drained(self) -> bool:
        return self.job == 0 and not any(self.sinks.values())


class BacklogReader:
    """Measures the `Backlog`; keeps its connections, so that asking often is cheap."""

    def __init__(self, config: Settings, sinks: Sequence[str] = SINKS) -> None:
        self._config = config
        self._sinks = sinks
        self._reader = TopicReader(config)
        self._letters_read = [0] * LEDGER_DEAD_LETTERS.partitions
        self._set_aside: set[tuple[int, int]] = set()
        self._postgres: psycopg.Connection[Any] | None = None
        self._cassandra: Any = None
        self._cassandra_context: Any = None

    def __enter__(self) -> Self:
        self._reader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)
        if self._postgres is not None:
            self._postgres.close()
        if self._cassandra_context is not None:
            self._cassandra_context.__exit__(None, None, None)

    def read(self) -> Backlog:
        """What is waiting now."""
        commands = self._reader.ends(LEDGER_COMMANDS)
        self._read_dead_letters()
        aside = Counter(partition for partition, _ in self._set_aside)
        applied = [self._last_sequence(LEDGER_EVENTS, shard) for shard in range(LEDGER.shards)]
        waiting = sum(end - aside[shard] - applied[shard] for shard, end in enumerate(commands))
        ends = self._reader.ends(LEDGER_EVENTS)
        return Backlog(
            job=waiting,
            sinks={sink: sum(ends) - sum(self.next_offsets(sink).values()) for sink in self._sinks},
        )

    def next_offsets(self, sink: str) -> dict[int, int]:
        """Where a sink is in ledger.events, by partition."""
        parameters = (sink, self._config.kafka_topic(LEDGER_EVENTS.name))
        if sink == "postgres":
            if self._postgres is None:
                self._postgres = psycopg.connect(postgres_conninfo(self._config, API_ROLE), autocommit=True)
            rows = self._postgres.execute(
                "SELECT partition, next_offset FROM sink_offsets WHERE sink = %s AND topic = %s", parameters
            ).fetchall()
            return {int(partition): int(offset) for partition, offset in rows}
        if self._cassandra is None:
            self._cassandra_context = cassandra_session(self._config)
            self._cassandra = self._cassandra_context.__enter__()
        return {
            partition: row.next_offset
            for partition in range(LEDGER_EVENTS.partitions)
            for row in self._cassandra.execute(
                "SELECT next_offset FROM sink_offsets WHERE sink = %s AND topic = %s AND partition = %s",
                (*parameters, partition),
            )
        }

    def _last_sequence(self, topic: Topic, shard: int) -> int:
        """Sequence of the newest readable frame of an output topic; 0 if there is none."""
        start, end = self._reader.bounds(topic, shard)
        for offset in range(end - 1, max(start, end - 10) - 1, -1):
            for record in self._reader.read(topic, shard, offset, offset + 1):
                try:
                    return codec_of(topic.name).decode_header(unwrap(record.value)[1])[1]
                except FrameError:
                    continue  # a foreign record; the one before it may be ours
        return 0

    def _read_dead_letters(self) -> None:
        for partition in range(LEDGER_DEAD_LETTERS.partitions):
            for record in self._reader.read(LEDGER_DEAD_LETTERS, partition, self._letters_read[partition]):
                self._letters_read[partition] = record.offset + 1
                for place in decode_letters(
                    LEDGER_DEAD_LETTERS, partition, record.offset, record.value,
                    lambda schema_id: writer_schema(schema_id, self._config),
                ):  # fmt: skip
                    if place.letter.topic == LEDGER_COMMANDS.name and place.letter.event_index < 0:
                        self._set_aside.add((place.letter.partition, place.letter.offset))


def wait_drained(
    config: Settings,
    deadline_seconds: float,
    report: Callable[[Backlog], None] = lambda _: None,
    sinks: Sequence[str] = SINKS,
) -> Backlog:
    """Wait until the job and the sinks have applied everything, at most ``deadline_seconds``; returns what is left."""
    deadline = time.monotonic() + deadline_seconds
    with BacklogReader(config, sinks) as reader:
        while True:
            backlog = reader.read()
            report(backlog)
            if backlog.drained or time.monotonic() > deadline:
                return backlog
            time.sleep(0.1)


# --- the audit


@dataclass(slots=True)
class _OutputComparison:
    """One output topic, a value per shard."""

    frames: list[int] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    differing: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Expected:
    """What the replay of all shards says the topics and stores must hold; rows as hashes."""

    accounts: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    transfers: list[NDArray[np.int64]] = field(default_factory=list)
    expiries: list[NDArray[np.int64]] = field(default_factory=list)
    statements: list[NDArray[np.int64]] = field(default_factory=list)
    sums: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    beyond_limit: int = 0
    sequences: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    outputs: dict[str, _OutputComparison] = field(
        default_factory=lambda: {topic.name: _OutputComparison() for topic in (LEDGER_RESULTS, LEDGER_EVENTS)}
    )
    set_aside: list[list[int]] = field(default_factory=list)
    letters: list[list[int]] = field(default_factory=list)


def verify(
    config: Settings, sinks: Sequence[str] = SINKS, report: Callable[[str], None] = lambda _: None
) -> Verification:
    """Replay and compare; see the module. ``report`` hears what is being done."""
    found = Verification()
    expected = _Expected()
    names = ("command frames", "commands", "created", "repeated commands (exists)", "refused", "repeated output frames")
    figures: Counter[str] = Counter(dict.fromkeys(names, 0))
    with TopicReader(config) as reader:
        for shard in range(LEDGER.shards):
            report(f"replaying shard {shard}")
            _verify_shard(config, reader, shard, expected, figures, found)
    expected.sums = dict(sorted(expected.sums.items()))
    for topic, outputs in expected.outputs.items():
        zeros = [0] * LEDGER.shards
        found.check(f"{topic}: frames per shard", outputs.frames, outputs.found)
        found.check(f"{topic}: differing from the replay", zeros, outputs.differing)
        found.check(f"{topic}: missing in sequence", zeros, outputs.gaps)
        found.check(f"{topic}: unreadable", zeros, outputs.unreadable)
    found.check(
        f"{LEDGER_DEAD_LETTERS.name}: offsets set aside by the job, per shard", expected.set_aside, expected.letters
    )
    found.check(
        "ledger: debits - credits (pending, posted)",
        dict.fromkeys(expected.sums, (0, 0)),
        {ledger: (sums[0] - sums[2], sums[1] - sums[3]) for ledger, sums in expected.sums.items()},
        "posted " + ", ".join(f"{sums[1]:,} in ledger {ledger}" for ledger, sums in sorted(expected.sums.items())),
    )
    found.check("ledger: events that left an account beyond its limit", 0, expected.beyond_limit)
    if "postgres" in sinks:
        report("comparing Postgres")
        _verify_postgres(config, expected, figures, found)
    if "cassandra" in sinks:
        report("comparing Cassandra")
        _verify_cassandra(config, expected, figures, found)
    found.figures = dict(figures)
    return found


def _verify_shard(
    config: Settings,
    reader: TopicReader,
    number: int,
    expected: _Expected,
    figures: Counter[str],
    found: Verification,
) -> None:
    shard = Shard(LEDGER, number, schema_ids(LEDGER.outputs, config), registry_reader(config))
    kernel = cast(LedgerKernel, shard.kernel)
    hashes: dict[str, list[bytes]] = {LEDGER_RESULTS.name: [], LEDGER_EVENTS.name: []}
    applied: list[Frame] = []
    last_sequence = 0
    set_aside: set[int] = set()
    for record in reader.read(LEDGER_COMMANDS, number):
        figures["command frames"] += 1
        try:
            outputs = shard.apply(LEDGER_COMMANDS.name, record.value or b"")
        except FrameError:
            set_aside.add(record.offset)
            continue
        for output in outputs:
            hashes[output.topic].append(_hash(output.value))
            frame = codec_of(output.topic).decode(unwrap(output.value)[1])
            if output.topic == LEDGER_EVENTS.name:
                applied.append(frame)
                last_sequence = frame.sequence
            else:
                figures["commands"] += len(frame.events)
                _count_results(frame, figures)
        if len(applied) >= FRAMES_AT_ONCE:
            _expect_events(number, applied, expected)
            applied.clear()
    figures["frames set aside"] += len(set_aside)

    for topic in (LEDGER_RESULTS, LEDGER_EVENTS):
        sent = _read_output(reader, topic, number)
        ours = hashes[topic.name]
        figures["repeated output frames"] += sent.repeated
        comparison = expected.outputs[topic.name]
        comparison.frames.append(len(ours))
        comparison.found.append(len(sent.hashes))
        comparison.differing.append(sent.differing + sum(a != b for a, b in zip(ours, sent.hashes, strict=False) if b))
        comparison.gaps.append(sent.gaps)
        comparison.unreadable.append(sent.unreadable)
        if topic is LEDGER_EVENTS:
            expected.ends.append(sent.end)
    expected.set_aside.append(sorted(set_aside))
    expected.letters.append(sorted(_letters_of(config, reader, number)))
    try:
        kernel.audit()
    except InvariantBroken as error:
        found.check(f"ledger shard {number}: audit", "no alarm", str(error))
    _expect_accounts(number, kernel, expected)
    _expect_events(number, applied, expected)
    expected.sequences.append(last_sequence)


def _count_results(frame: Frame, figures: Counter[str]) -> None:
    for event_type in codec_of(frame.topic).event_types:
        symbols = event_type.field("result").symbols
        rows = frame.events.view(event_type.dtype)
        counts = np.bincount(rows["result"][rows["kind"] == event_type.kind], minlength=len(symbols)).tolist()
        created, exists = counts[symbols.index("created")], counts[symbols.index("exists")]
        figures["created"] += created
        figures["repeated commands (exists)"] += exists
        figures["refused"] += sum(counts) - created - exists


@dataclass(slots=True)
class _Sent:
    """What an output topic holds for one shard, repeats dropped."""

    hashes: list[bytes] = field(default_factory=list)
    """By sequence; empty where a frame is missing, or gone because its retention is over."""
    repeated: int = 0
    differing: int = 0
    """Repeats that are not equal to the first frame of their sequence."""
    gaps: int = 0
    unreadable: int = 0
    end: int = 0


def _read_output(reader: TopicReader, topic: Topic, shard: int) -> _Sent:
    codec = codec_of(topic.name)
    start, end = reader.bounds(topic, shard)
    sent = _Sent(end=end)
    for record in reader.read(topic, shard, end=sent.end):
        try:
            sequence = codec.decode_header(unwrap(record.value)[1])[1]
        except FrameError:
            sent.unreadable += 1
            continue
        value = _hash(record.value or b"")
        if 1 <= sequence <= len(sent.hashes):
            sent.repeated += 1
            sent.differing += value != sent.hashes[sequence - 1]
        else:
            missing = max(0, sequence - len(sent.hashes) - 1)
            if start == 0 or sent.hashes:
                sent.gaps += missing
            sent.hashes += [b""] * missing + [value]
    return sent


def _letters_of(config: Settings, reader: TopicReader, shard: int) -> set[int]:
    """Offsets of the command records of a shard that were set aside."""
    return {
        place.letter.offset
        for record in reader.read(LEDGER_DEAD_LETTERS, shard)
        for place in decode_letters(
            LEDGER_DEAD_LETTERS, shard, record.offset, record.value, lambda schema_id: writer_schema(schema_id, config)
        )
        if place.letter.topic == LEDGER_COMMANDS.name and place.letter.event_index < 0
    }


def _hash(value: bytes) -> bytes:
    return blake2b(value, digest_size=16).digest()


# --- what the stores must hold

ACCOUNT_COLUMNS: Final = (
    "ledger", "code", "flags", "user_data_128", "user_data_64", "user_data_32",
    "debits_pending", "debits_posted", "credits_pending", "credits_posted", "timestamp",
)  # fmt: skip
TRANSFER_COLUMNS: Final = (
    "id", "debit_account_id", "credit_account_id", "amount", "pending_id", "user_data_128", "user_data_64",
    "user_data_32", "timeout", "ledger", "code", "flags", "timestamp", "sequence",
)  # fmt: skip
EXPIRY_COLUMNS: Final = (
    "pending_id", "debit_account_id", "credit_account_id", "amount", "ledger", "code", "timestamp", "sequence",
)  # fmt: skip
STATEMENT_COLUMNS: Final = (
    "account_id", "timestamp", "transfer_id", "entry", "direction", "counterparty_account_id", "amount", "ledger",
    "code", "flags", "pending_id", "user_data_128", "user_data_64", "user_data_32", "debits_pending", "debits_posted",
    "credits_pending", "credits_posted", "account_flags", "sequence",
)  # fmt: skip
_ACCOUNTS: Final = f"SELECT shard, id, {', '.join(ACCOUNT_COLUMNS)} FROM accounts"  # noqa: S608 - names of this module


def _expect_accounts(shard: int, kernel: LedgerKernel, expected: _Expected) -> None:
    accounts = kernel.accounts
    columns = [_values(accounts, name) for name in ACCOUNT_COLUMNS]
    for account, *values in zip(_values(accounts, "id"), *columns, strict=True):
        expected.accounts[shard, account] = tuple(values)
        ledger = values[0]
        before = expected.sums.get(ledger, (0, 0, 0, 0))
        expected.sums[ledger] = tuple(a + b for a, b in zip(before, values[6:10], strict=True))


def _expect_events(shard: int, applied: Sequence[Frame], expected: _Expected) -> None:
    """The rows of some frames; of a whole shard they would be too many at once."""
    if not applied:
        return
    codec = codec_of(LEDGER_EVENTS.name)
    rows = np.concatenate([frame.events.rows for frame in applied])
    sequences = np.repeat([frame.sequence for frame in applied], [len(frame.events) for frame in applied]).astype(
        np.int64
    )
    for event_type, entry, kept in (
        (codec.event_type("TransferCreated"), "transfer", expected.transfers),
        (codec.event_type("TransferExpired"), "expiry", expected.expiries),
    ):
        mine = np.flatnonzero(rows[:, 0] == event_type.kind)
        events = rows[mine].view(event_type.dtype)[:, 0]
        shard_and_sequence = np.full(len(mine), shard), sequences[mine]
        expected.beyond_limit += sum(_beyond_limit(events, side) for side in ("debit", "credit"))
        names = TRANSFER_COLUMNS if entry == "transfer" else EXPIRY_COLUMNS
        kept.append(_hash_columns(events, names, {}, *shard_and_sequence))
        for side, other in (("debit", "credit"), ("credit", "debit")):
            sources = _statement_sources(event_type, entry, side, other)
            expected.statements.append(_hash_columns(events, STATEMENT_COLUMNS, sources, *shard_and_sequence))


def _beyond_limit(events: NDArray[np.void], side: str) -> int:
    """How many events left the account of a side beyond its limit; balances and flags are those right after each."""
    flags = events[f"{side}_account_flags"]
    beyond = 0
    for flag, own, other in (
        (AccountFlags.debits_must_not_exceed_credits, "debits", "credits"),
        (AccountFlags.credits_must_not_exceed_debits, "credits", "debits"),
    ):
        limited = events[(flags & flag) != 0]
        names = [f"{side}_account_{name}" for name in (f"{own}_pending", f"{own}_posted", f"{other}_posted")]
        if all(not limited[f"{name}_hi"].any() and not (limited[f"{name}_lo"] >> 62).any() for name in names):
            pending, posted, bound = (limited[f"{name}_lo"] for name in names)
            beyond += int((pending + posted > bound).sum())
        else:
            balances = (_values(limited, name) for name in names)
            beyond += sum(a + b > c for a, b, c in zip(*balances, strict=True))
    return beyond


def _statement_sources(event_type: EventType, entry: str, side: str, other: str) -> dict[str, str | int]:
    """Where the columns of a statement come from, whose names are not those of the event's fields; a number is one."""
    names = {found.name for found in event_type.fields}
    sources: dict[str, str | int] = {
        "account_id": f"{side}_account_id",
        "counterparty_account_id": f"{other}_account_id",
        "account_flags": f"{side}_account_flags",
        "transfer_id": "id" if entry == "transfer" else "pending_id",
        "entry": text_number(entry),
        "direction": text_number(side),
    }
    for column in STATEMENT_COLUMNS[:-1]:
        if column.startswith(("debits_", "credits_")):
            sources[column] = f"{side}_account_{column}"
        elif column not in sources and (column not in names or (entry == "expiry" and column == "pending_id")):
            sources[column] = 0  # an expiry has no such field
    return sources


def _hash_columns(
    events: NDArray[np.void],
    columns: Sequence[str],
    sources: Mapping[str, str | int],
    shard: NDArray[np.int64],
    sequence: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Hashes of rows as `jobs.row_words` reads them: shard, the columns but the last, sequence."""
    words = np.zeros((len(events), 2 * len(columns) + 3), np.int64)
    words[:, 0] = shard
    words[:, -3] = sequence
    for place, column in enumerate(columns[:-1], 1):
        source = sources.get(column, column)
        if isinstance(source, int):
            words[:, 2 * place : 2 * place + 2] = source, 0
        elif f"{source}_lo" in (events.dtype.names or ()):
            words[:, 2 * place] = events[f"{source}_lo"].view(np.int64)
            words[:, 2 * place + 1] = events[f"{source}_hi"].view(np.int64)
        else:
            words[:, 2 * place] = events[source].astype(np.int64)
    return hash_rows(words)


def _values(records: NDArray[np.void], name: str) -> list[int]:
    """A column as Python integers; 128-bit fields are joined from their two words."""
    assert records.dtype.names is not None
    if f"{name}_lo" not in records.dtype.names:
        return list(records[name].tolist())
    low, high = records[f"{name}_lo"].tolist(), records[f"{name}_hi"]
    if not high.any():
        return list(low)
    return [hi << 64 | lo for lo, hi in zip(low, high.tolist(), strict=True)]


def _difference(expected: Sequence[NDArray[np.int64]], found: NDArray[np.int64]) -> tuple[int, int]:
    """How many rows are missing and how many are too many."""
    wanted = _joined(expected)
    wanted.sort()
    held = np.sort(found)
    if np.array_equal(wanted, held):
        return 0, 0
    wanted, wanted_counts = np.unique(wanted, return_counts=True)
    held, held_counts = np.unique(held, return_counts=True)
    common, in_wanted, in_held = np.intersect1d(wanted, held, assume_unique=True, return_indices=True)
    matched = int(np.minimum(wanted_counts[in_wanted], held_counts[in_held]).sum()) if len(common) else 0
    return int(wanted_counts.sum()) - matched, int(held_counts.sum()) - matched


def _joined(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _verify_postgres(config: Settings, expected: _Expected, figures: Counter[str], found: Verification) -> None:
    with psycopg.connect(postgres_conninfo(config, API_ROLE)) as connection:
        connection.read_only = True
        accounts: dict[tuple[int, int], tuple[int, ...]] = {
            (int(shard), int(account)): tuple(int(value) for value in values)
            for shard, account, *values in connection.execute(_ACCOUNTS)
        }
        figures["postgres accounts"] = len(accounts)
        found.check("postgres accounts", len(expected.accounts), len(accounts))
        wrong = [key for key, values in expected.accounts.items() if accounts.get(key) != values]
        found.check(
            "postgres accounts with another balance or field", 0, len(wrong), _example(wrong, expected, accounts)
        )
        for table, columns, hashes in (
            ("transfers", TRANSFER_COLUMNS, expected.transfers),
            ("transfer_expiries", EXPIRY_COLUMNS, expected.expiries),
        ):
            rows = _joined(copy_stream(connection, table, ("shard", *columns)))
            figures[f"postgres {table}"] = len(rows)
            found.check(f"postgres {table}", sum(map(len, hashes)), len(rows))
            found.check(f"postgres {table}: missing, too many", (0, 0), _difference(hashes, rows))
        sums = connection.execute(
            "SELECT ledger, sum(debits_pending), sum(debits_posted), sum(credits_pending), sum(credits_posted)"
            " FROM accounts GROUP BY ledger ORDER BY ledger"
        ).fetchall()
        found.check(
            "postgres sums per ledger",
            expected.sums,
            {int(row[0]): tuple(int(value) for value in row[1:]) for row in sums},
        )
        positions = connection.execute(
            "SELECT partition, next_offset, sequence FROM sink_offsets WHERE sink = 'postgres' AND topic = %s",
            [config.kafka_topic(LEDGER_EVENTS.name)],
        ).fetchall()
    _check_positions("postgres", {row[0]: (row[1], row[2]) for row in positions}, expected, found)


def _example(
    wrong: Sequence[tuple[int, int]],
    expected: _Expected,
    accounts: dict[tuple[int, int], tuple[int, ...]],
) -> str:
    if not wrong:
        return ""
    shard, account = wrong[0]
    wanted = dict(zip(ACCOUNT_COLUMNS, expected.accounts[wrong[0]], strict=True))
    held = accounts.get(wrong[0])
    if held is None:
        return f"first: shard {shard} account {account} is missing"
    differs = {
        name: f"{value} instead of {wanted[name]}"
        for name, value in zip(ACCOUNT_COLUMNS, held, strict=True)
        if value != wanted[name]
    }
    return f"first: shard {shard} account {account}: {differs}"


def _verify_cassandra(config: Settings, expected: _Expected, figures: Counter[str], found: Verification) -> None:
    with cassandra_session(config) as session:
        positions = {
            partition: (row.next_offset, row.sequence)
            for partition in range(LEDGER_EVENTS.partitions)
            for row in session.execute(
                "SELECT next_offset, sequence FROM sink_offsets WHERE sink = %s AND topic = %s AND partition = %s",
                ("cassandra", config.kafka_topic(LEDGER_EVENTS.name), partition),
            )
        }
        columns = ("shard", *STATEMENT_COLUMNS)
        rows = _joined(
            cassandra_pages(session, "statement_by_account_month", ("shard", "account_id", "month"), columns)
        )
    figures["cassandra statement rows"] = len(rows)
    found.check("cassandra statement rows", sum(map(len, expected.statements)), len(rows))
    found.check("cassandra statement rows: missing, too many", (0, 0), _difference(expected.statements, rows))
    _check_positions("cassandra", positions, expected, found)


def _check_positions(
    sink: str, positions: dict[int, tuple[int, int]], expected: _Expected, found: Verification
) -> None:
    wanted = {
        shard: (end, sequence)
        for shard, (end, sequence) in enumerate(zip(expected.ends, expected.sequences, strict=True))
    }
    found.check(
        f"{sink} position (next offset, sequence) per shard",
        wanted,
        {shard: positions.get(shard, (0, 0)) for shard in wanted},
    )
