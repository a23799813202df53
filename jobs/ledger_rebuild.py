"""Builds the Postgres projections anew from ledger.events, beside the live ones, and compares them row by row.

The rebuild goes into a schema of its own through the sink's own writer, up to exactly where the live projections were
when it began: that place, and a copy of the live balances, are taken in one snapshot, so the live sink goes on
undisturbed and nothing is compared that was still on its way. Transfers and expiries are append-only and compared with
the live tables themselves, up to that place.

Every column counts but those that only say how a writer went about it (`IGNORED_COLUMNS`).

A snapshot is a schema with the projections as they were at one place, and that place: a copy of the live ones
(`snapshot`), or an earlier rebuild. A rebuild may start from one; it then reads the log from there, and what came
before is as good as the snapshot was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg
from psycopg import sql

from infra.registry import writer_schema
from infra.settings import Settings
from infra.stores import API_ROLE, SINK_ROLE, postgres_conninfo
from jobs.sinks.base import Addition, Position, Refusal, SequenceBroken
from jobs.sinks.postgres import PostgresSink
from jobs.sinks.records import RecordReader, ShardOrder, Verdict
from jobs.topic_reader import TopicReader
from pipelines.catalogue import LEDGER_EVENTS
from pipelines.codec import codec_of
from pipelines.errors import FrameError, StreambankError
from pipelines.frames import Events

__all__ = ["Rebuild", "RebuildError", "TableComparison", "rebuild", "snapshot"]

KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "accounts": ("shard", "id"),
    "transfers": ("shard", "id"),
    "transfer_expiries": ("shard", "pending_id"),
}
"""Primary key of each projection."""
IGNORED_COLUMNS: Final = frozenset(["version"])
FRAMES_PER_BATCH: Final = 200
_LIVE_ACCOUNTS: Final = "accounts_when_started"
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)
_RESERVED: Final = ("public", "information_schema")


class RebuildError(StreambankError):
    """The projections cannot be rebuilt as asked."""


@dataclass(frozen=True, slots=True)
class TableComparison:
    """Rows of one projection. ``example`` is the key of a row that differs, is missing or is too much."""

    table: str
    live: int
    rebuilt: int
    missing: int
    """Rows of the rebuild that the live projection lacks."""
    surplus: int
    """Live rows that the log does not give."""
    differing: int
    example: str = ""

    @property
    def ok(self) -> bool:
        return not (self.missing or self.surplus or self.differing)


@dataclass(slots=True)
class Rebuild:
    """What was done and found. ``positions`` is (next offset, sequence) of each shard that the comparison is of."""

    schema: str
    positions: dict[int, tuple[int, int]]
    started: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(next offset, sequence) of each shard in the snapshot that it started from; of a full rebuild none."""
    frames: int = 0
    repeated: int = 0
    set_aside: int = 0
    """Records and events that no projection can take; live ones are in the dead-letter topic."""
    tables: list[TableComparison] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(table.ok for table in self.tables)

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            **{name: value for name, value in asdict(self).items() if name != "tables"},
            "tables": [asdict(table) | {"ok": table.ok} for table in self.tables],
        }


async def rebuild(
    config: Settings,
    schema: str,
    *,
    source: str | None = None,
    replace: bool = False,
    report: Callable[[int, int, int], None] = lambda shard, done, total: None,
) -> Rebuild:
    """Rebuild into ``schema`` (made; with ``replace`` an earlier one is dropped) and compare.

    ``source`` is the schema of a snapshot to start from. ``report`` hears (shard, records done, records). Raises
    `RebuildError`, and `SequenceBroken` for a topic with gaps.
    """
    _check_name(schema)
    if source == schema:
        raise RebuildError(f"{schema}: the snapshot and the rebuild need schemas of their own")
    try:
        with psycopg.connect(postgres_conninfo(config)) as connection:
            if source is not None:
                _check_name(source)
                _snapshot_positions(connection, config, source)  # before anything is replaced
            _create(connection, schema, replace)
            positions = _note_live(connection, config, schema)
            connection.commit()
            found = Rebuild(schema, {shard: (place.next_offset, place.sequence) for shard, place in positions.items()})
            if source is not None:
                found.started = _start_from(connection, config, source, schema, positions)
            await _fill(config, schema, positions, found, report)
            connection.execute("SET max_parallel_workers_per_gather = 0")
            found.tables = [_compare(connection, schema, table, positions) for table in KEYS]
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, _LIVE_ACCOUNTS)))
            connection.commit()
    except psycopg.Error as error:
        raise RebuildError(f"Postgres: {error}") from error
    return found


def snapshot(config: Settings, schema: str, *, replace: bool = False) -> dict[int, tuple[int, int]]:
    """Copy the live projections into ``schema``, as of one place; returns that: shard -> (next offset, sequence)."""
    _check_name(schema)
    try:
        with psycopg.connect(postgres_conninfo(config)) as connection:
            _create(connection, schema, replace)
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            _copy(connection, "public", schema)
            connection.commit()
            return _snapshot_positions(connection, config, schema)
    except psycopg.Error as error:
        raise RebuildError(f"Postgres: {error}") from error


def _check_name(schema: str) -> None:
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_") or schema in _RESERVED:
        raise RebuildError(f"{schema!r}: a schema of its own is needed, in lower case (not public or pg_...)")


def _copy(connection: psycopg.Connection[Any], source: str, target: str) -> None:
    for table in (*KEYS, "sink_offsets"):
        columns = connection.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = %s AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position",
            [target, table],
        ).fetchall()
        names = sql.SQL(", ").join(sql.Identifier(row[0]) for row in columns)
        connection.execute(
            sql.SQL("INSERT INTO {} ({names}) SELECT {names} FROM {}").format(
                sql.Identifier(target, table), sql.Identifier(source, table), names=names
            )
        )


def _snapshot_positions(
    connection: psycopg.Connection[Any], config: Settings, schema: str
) -> dict[int, tuple[int, int]]:
    try:
        rows = connection.execute(
            sql.SQL(
                "SELECT partition, next_offset, sequence FROM {} WHERE sink = %s AND topic = %s ORDER BY partition"
            ).format(sql.Identifier(schema, "sink_offsets")),
            [PostgresSink.name, config.kafka_topic(LEDGER_EVENTS.name)],
        ).fetchall()
    except psycopg.errors.UndefinedTable:
        raise RebuildError(f"schema {schema} is no snapshot: make one with `streambank ledger snapshot`") from None
    if not rows:
        raise RebuildError(f"schema {schema} says nothing about {config.kafka_topic(LEDGER_EVENTS.name)}")
    return {row[0]: (row[1], row[2]) for row in rows}


def _start_from(
    connection: psycopg.Connection[Any], config: Settings, source: str, schema: str, live: Mapping[int, Position]
) -> dict[int, tuple[int, int]]:
    """Copy the snapshot, which must not be ahead of what is compared; returns its positions."""
    places = _snapshot_positions(connection, config, source)
    for shard, (offset, sequence) in places.items():
        if shard not in live or offset > live[shard].next_offset:
            raise RebuildError(
                f"snapshot {source} is at sequence {sequence} of shard {shard}, ahead of the live tables"
            )
    _copy(connection, source, schema)
    connection.commit()
    return places


def _create(connection: psycopg.Connection[Any], schema: str, replace: bool) -> None:
    name = sql.Identifier(schema)
    if replace:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
    elif connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchone():
        raise RebuildError(f"schema {schema} is there already: name another, or allow to replace it")
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
    for table in (*KEYS, "sink_offsets"):
        connection.execute(
            sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(
                sql.Identifier(schema, table), sql.Identifier("public", table)
            )
        )
    for statement in (
        "GRANT USAGE ON SCHEMA {schema} TO {sink}, {api}",
        "GRANT SELECT, INSERT, UPDATE ON {schema}.accounts, {schema}.sink_offsets TO {sink}",
        "GRANT SELECT, INSERT ON {schema}.transfers, {schema}.transfer_expiries TO {sink}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {api}",
    ):
        connection.execute(
            sql.SQL(statement).format(schema=name, sink=sql.Identifier(SINK_ROLE), api=sql.Identifier(API_ROLE))
        )
    connection.commit()


def _note_live(connection: psycopg.Connection[Any], config: Settings, schema: str) -> dict[int, Position]:
    """The live sink's positions and a copy of the live balances, of one snapshot."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    rows = connection.execute(
        "SELECT partition, next_offset, sequence, unreadable_records FROM public.sink_offsets"
        " WHERE sink = %s AND topic = %s ORDER BY partition",
        [PostgresSink.name, config.kafka_topic(LEDGER_EVENTS.name)],
    ).fetchall()
    copy = sql.Identifier(schema, _LIVE_ACCOUNTS)
    connection.execute(sql.SQL("CREATE TABLE {} AS SELECT * FROM public.accounts").format(copy))
    connection.execute(sql.SQL("CREATE UNIQUE INDEX ON {} (shard, id)").format(copy))
    connection.execute(sql.SQL("ANALYZE {}").format(copy))
    return {row[0]: Position(*row) for row in rows}


async def _fill(
    config: Settings,
    schema: str,
    live: Mapping[int, Position],
    found: Rebuild,
    report: Callable[[int, int, int], None],
) -> None:
    sink = PostgresSink(config, schema=schema)
    read = RecordReader(LEDGER_EVENTS, lambda schema_id: writer_schema(schema_id, config)).read
    none = Events(codec_of(LEDGER_EVENTS.name).new_rows(0))

    async def set_aside(addition: Addition, refusals: Sequence[Refusal]) -> None:
        found.set_aside += len(refusals)

    await sink.open()
    try:
        places = await sink.load_positions(sorted(live))
        with TopicReader(config) as reader:
            for shard, target in live.items():
                start, end = reader.bounds(LEDGER_EVENTS, shard)
                first = places[shard].next_offset
                if start > first or end < target.next_offset:
                    raise RebuildError(
                        f"{LEDGER_EVENTS.name} {shard} holds offsets {start} to {end}, needed are {first} to "
                        f"{target.next_offset}: the topic is not complete"
                    )
                order = ShardOrder(places[shard])
                for record in reader.read(LEDGER_EVENTS, shard, first, target.next_offset):
                    try:
                        frame = await read(record.value, shard)
                        sequence, events = frame.sequence, frame.events
                    except FrameError:
                        sequence, events = None, none
                        found.set_aside += 1
                    verdict = order.judge(record.offset, sequence)
                    if verdict not in (Verdict.APPLY, Verdict.REPEATED):
                        raise SequenceBroken(
                            f"partition {shard}: the record at offset {order.position.next_offset} is missing"
                        )
                    before, after = order.advance(record.offset, sequence, verdict)
                    sink.add(events if verdict is Verdict.APPLY else none, before, after)
                    found.frames += 1
                    found.repeated += verdict is Verdict.REPEATED
                    if after.next_offset % FRAMES_PER_BATCH == 0 or after.next_offset == target.next_offset:
                        await sink.flush(set_aside)
                        report(shard, after.next_offset, target.next_offset)
                await sink.flush(set_aside)
    finally:
        await sink.close()


def _compare(
    connection: psycopg.Connection[Any], schema: str, table: str, positions: Mapping[int, Position]
) -> TableComparison:
    columns = [
        str(row[0])
        for row in connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
            " ORDER BY ordinal_position",
            [schema, table],
        ).fetchall()
        if row[0] not in IGNORED_COLUMNS
    ]
    key = KEYS[table]
    live = (
        sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, _LIVE_ACCOUNTS))
        if table == "accounts"
        else sql.SQL(
            "SELECT t.* FROM {} t JOIN unnest(%(shards)s::int[], %(sequences)s::bigint[]) p (shard, sequence)"
            " ON t.shard = p.shard AND t.sequence <= p.sequence"
        ).format(sql.Identifier("public", table))
    )

    def listed(side: str, names: Sequence[str]) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier(side, name) for name in names)

    query = sql.SQL(
        "SELECT count(live.shard), count(fresh.shard), count(*) FILTER (WHERE live.shard IS NULL),"
        " count(*) FILTER (WHERE fresh.shard IS NULL),"
        " count(*) FILTER (WHERE live.shard IS NOT NULL AND fresh.shard IS NOT NULL"
        "                  AND ({live_columns}) IS DISTINCT FROM ({fresh_columns})),"
        " min(concat_ws('/', {coalesced})) FILTER (WHERE ({live_columns}) IS DISTINCT FROM ({fresh_columns}))"
        " FROM ({live}) live FULL JOIN {fresh} fresh ON ({live_key}) = ({fresh_key})"
    ).format(
        live=live,
        fresh=sql.Identifier(schema, table),
        live_key=listed("live", key),
        fresh_key=listed("fresh", key),
        live_columns=listed("live", columns),
        fresh_columns=listed("fresh", columns),
        coalesced=sql.SQL(", ").join(
            sql.SQL("coalesce({}, {})").format(sql.Identifier("live", name), sql.Identifier("fresh", name))
            for name in key
        ),
    )
    connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, table)))
    row = connection.execute(
        query,
        {"shards": list(positions), "sequences": [place.sequence for place in positions.values()]},
    ).fetchone()
    assert row is not None
    live_rows, fresh_rows, missing, surplus, differing = map(int, row[:5])
    example = f"{'/'.join(key)} {row[5]}" if row[5] is not None else ""
    return TableComparison(table, live_rows, fresh_rows, missing, surplus, differing, example)
