"""The ledger's log and its projections on real servers: chain, export, rebuild, balances at a point in time."""

from __future__ import annotations

import asyncio
import csv
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from psycopg.rows import dict_row

from api.history import BALANCE_AT, TIMESTAMP_MAX, balance_of
from api.queries import Queries
from infra.settings import Settings
from infra.stores import API_ROLE, postgres_conninfo
from jobs.ledger_chain import export, verify_files, verify_topic
from jobs.ledger_rebuild import IGNORED_COLUMNS, RebuildError, rebuild, snapshot
from pipelines.catalogue import LEDGER_EVENTS, LEDGER_SHARDS
from tests.support import sinks
from tests.support.ledger_events import EventLog
from tests.support.ledger_history import balances_at, history_log, project, timestamps
from tests.support.stack import PrivateStack, variables

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def log() -> EventLog:
    return history_log()


@pytest.fixture(scope="module")
def environment(stack: PrivateStack, log: EventLog) -> Settings:
    """The log in Kafka and, but for its last two frames, in Postgres."""
    environment = stack.environment("kafka", "registry", "postgres")
    sinks.prepare(environment, "postgres", "ledger")
    sinks.send(environment, sinks.registered(environment, log.records))
    asyncio.run(project(environment, EventLog(log.records[:-2])))
    return environment


@pytest.fixture
def owner(environment: Settings) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_conninfo(environment), autocommit=True) as connection:
        yield connection


def command(environment: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("streambank")), "ledger", *arguments],
        env=variables(environment), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_topic_and_its_export_have_the_same_whole_chain(environment: Settings, log: EventLog, tmp_path: Path) -> None:
    walked = verify_topic(environment)
    assert [chain.broken for chain in walked] == [None] * LEDGER_SHARDS
    assert sum(chain.frames for chain in walked) == len(log.records)
    paths = export(environment, tmp_path / "export")
    assert [path.name for path in paths] == [f"ledger.events-{n}-000000000000.avro" for n in range(LEDGER_SHARDS)]
    assert [chain.as_json() for chain in verify_files(paths)] == [chain.as_json() for chain in walked]


def test_break_in_the_topic_is_named_by_the_command(stack: PrivateStack, environment: Settings, log: EventLog) -> None:
    other = environment.model_copy(update={"topic_prefix": environment.topic_prefix + "broken."})
    sinks.prepare(other, "postgres", "ledger")
    records = sinks.registered(other, log.records)
    sinks.send(other, [record for number, record in enumerate(records) if number != LEDGER_SHARDS + 1])
    done = command(other, "verify", "--json", "-")
    assert done.returncode == 1, done.stderr
    broken = json.loads(done.stdout)["shards"][1]["broken"]
    assert (broken["sequence"], broken["offset"], broken["found"]) == (2, 1, "3")
    assert "shard 1, sequence 2, offset 1: a sequence is missing: expected 2, found 3" in done.stderr


def test_rebuild_equals_the_live_projections_and_leaves_them_alone(
    environment: Settings, log: EventLog, owner: psycopg.Connection[Any]
) -> None:
    before = owner.execute("SELECT * FROM accounts ORDER BY shard, id").fetchall()
    found = asyncio.run(rebuild(environment, "rebuilt"))
    assert found.ok, found.tables
    assert found.frames == len(log.records) - 2
    counts = {part.table: (part.live, part.rebuilt) for part in found.tables}
    assert all(live == rebuilt > 0 for live, rebuilt in counts.values()), counts
    assert owner.execute("SELECT * FROM accounts ORDER BY shard, id").fetchall() == before
    assert owner.execute("SELECT count(*) FROM rebuilt.transfers").fetchone() == (counts["transfers"][1],)
    with pytest.raises(RebuildError, match="there already"):
        asyncio.run(rebuild(environment, "rebuilt"))
    with pytest.raises(RebuildError, match="a schema of its own"):
        asyncio.run(rebuild(environment, "public"))


def test_rebuild_from_a_snapshot_reads_only_what_came_since(
    stack: PrivateStack, log: EventLog, owner: psycopg.Connection[Any]
) -> None:
    other = stack.environment("kafka", "registry", "postgres")
    sinks.prepare(other, "postgres", "ledger")
    sinks.send(other, sinks.registered(other, log.records))
    early, late = len(log.records) // 2, len(log.records) - 2
    asyncio.run(project(other, EventLog(log.records[:early])))
    places = snapshot(other, "january")
    with pytest.raises(RebuildError, match="there already"):
        snapshot(other, "january")
    asyncio.run(project(other, EventLog(log.records[early:late])))
    done = command(other, "rebuild", "--to", "since", "--from", "january", "--json", "-")
    assert done.returncode == 0, done.stderr
    since = json.loads(done.stdout)
    assert since["started"] == {str(shard): list(place) for shard, place in places.items()}
    assert since["frames"] == late - early
    whole = asyncio.run(rebuild(other, "whole"))
    assert whole.ok
    assert whole.frames == late
    with psycopg.connect(postgres_conninfo(other), row_factory=dict_row) as connection:
        for table in ("accounts", "transfers", "transfer_expiries"):
            rows = [
                [
                    {name: value for name, value in row.items() if name not in IGNORED_COLUMNS}
                    for row in connection.execute(f"SELECT * FROM {schema}.{table} ORDER BY 1, 2")  # noqa: S608
                ]
                for schema in ("since", "whole")
            ]
            assert rows[0] == rows[1] != []
        # a snapshot that lies is found out
        connection.execute("UPDATE january.transfers SET code = code + 1 WHERE shard = 1")
    found = asyncio.run(rebuild(other, "since", source="january", replace=True))
    assert not found.ok
    with pytest.raises(RebuildError, match="no snapshot"):
        asyncio.run(rebuild(other, "again", source="nowhere"))


def test_rebuild_finds_each_kind_of_difference(environment: Settings, owner: psycopg.Connection[Any]) -> None:
    kept = owner.execute("SELECT shard, id FROM transfers ORDER BY shard, id LIMIT 2").fetchall()
    (shard, gone), (_, changed) = kept
    with owner.transaction():
        owner.execute("CREATE TABLE saved AS SELECT * FROM transfers WHERE shard = %s AND id IN (%s, %s)",
                      [shard, gone, changed])  # fmt: skip
        owner.execute("DELETE FROM transfers WHERE shard = %s AND id = %s", [shard, gone])
        owner.execute("UPDATE transfers SET user_data_32 = 9 WHERE shard = %s AND id = %s", [shard, changed])
        owner.execute(
            "INSERT INTO transfer_expiries SELECT shard, 999999, debit_account_id, credit_account_id, amount, ledger,"
            " code, timestamp, sequence FROM transfer_expiries LIMIT 1"
        )
        owner.execute("UPDATE accounts SET debits_posted = debits_posted + 1 WHERE shard = 2 AND id = 3")
    try:
        done = command(environment, "rebuild", "--to", "rebuilt", "--replace", "--json", "-")
    finally:
        owner.execute(
            "DELETE FROM transfers USING saved WHERE (transfers.shard, transfers.id) = (saved.shard, saved.id)"
        )
        owner.execute("INSERT INTO transfers SELECT * FROM saved; DROP TABLE saved")
        owner.execute("DELETE FROM transfer_expiries WHERE pending_id = 999999")
        owner.execute("UPDATE accounts SET debits_posted = debits_posted - 1 WHERE shard = 2 AND id = 3")
    assert done.returncode == 1, done.stderr
    tables = {part["table"]: part for part in json.loads(done.stdout)["tables"]}
    figures = {
        name: (part["missing"], part["surplus"], part["differing"], part["example"]) for name, part in tables.items()
    }
    assert figures["accounts"] == (0, 0, 1, "shard/id 2/3")
    assert figures["transfers"] == (1, 0, 1, f"shard/id {shard}/{min(gone, changed)}")
    assert figures["transfer_expiries"][:3] == (0, 1, 0)


def test_balances_at_any_time_are_the_fold_of_the_entries(environment: Settings, log: EventLog) -> None:
    shown = EventLog(log.records[:-2])
    moments = timestamps(shown)
    chosen = [*random.Random(1).sample(moments, 25), moments[0] - 1, moments[-1], TIMESTAMP_MAX]
    with psycopg.connect(postgres_conninfo(environment, API_ROLE), row_factory=dict_row) as connection:
        for at in chosen:
            expected = balances_at(shown, at)
            found = {}
            for account in range(1, 7):
                parameters = {
                    "sink": "postgres", "topic": environment.kafka_topic(LEDGER_EVENTS.name), "id": account, "at": at,
                    "shards": list(range(LEDGER_SHARDS)), "ledger": None,
                }  # fmt: skip
                for row in connection.execute(BALANCE_AT, parameters):
                    answer = balance_of(row, at)
                    found[answer["shard"], account] = {name: answer[name] for name in expected[row["shard"], account]}
            assert found == expected
        now = connection.execute("SELECT * FROM accounts").fetchall()
    assert balances_at(shown, TIMESTAMP_MAX) == {
        (row["shard"], int(row["id"])): {
            name: int(row[name]) for name in ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
        }
        for row in now
    }


def test_balance_command(environment: Settings, log: EventLog) -> None:
    moments = timestamps(EventLog(log.records[:-2]))
    at = moments[len(moments) // 2]
    done = command(environment, "balance", "2", "--ledger", str(LEDGER_SHARDS), "--at", str(at), "--json", "-")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {name: answer[name] for name in balances_at(log, at)[0, 2]} == balances_at(log, at)[0, 2]
    early = command(environment, "balance", "2", "--ledger", str(LEDGER_SHARDS), "--at", "2001-01-01")
    assert (early.returncode, "did not exist" in early.stderr) == (1, True)
    assert command(environment, "balance", "2", "--at", "noon").returncode == 2


def fold(log: EventLog, shard: int, account: int) -> list[dict[str, Any]]:
    """The statement of an account: its entries in the order of their timestamps, with the balances after each."""
    found = []
    for at in timestamps(log):
        for where, _, _, event in log.events():
            touched = {event.get("debit_account_id"), event.get("credit_account_id")}
            if where == shard and int(event["timestamp"]) == at and touched & {account, str(account)}:
                found.append({"timestamp": at, "amount": int(event["amount"]), **balances_at(log, at)[shard, account]})
    return found


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_statement_export_has_every_entry_with_the_running_balance(
    environment: Settings, log: EventLog, tmp_path: Path, suffix: str
) -> None:
    expected = fold(EventLog(log.records[:-2]), 0, 2)
    path = tmp_path / f"statement.{suffix}"
    since = expected[3]["timestamp"]
    done = command(
        environment, "statement", "2", "--ledger", str(LEDGER_SHARDS), "--since", str(since), "--out", str(path)
    )
    assert done.returncode == 0, done.stderr
    if suffix == "csv":
        with path.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    else:
        rows = pq.read_table(path).to_pylist()
    assert len(rows) == len(expected) - 3 > 5
    assert [{name: int(row[name]) for name in expected[0]} for row in rows] == expected[3:]
    assert {row["direction"] for row in rows} == {"debit", "credit"}


def test_search_by_code_and_user_data_in_pages(environment: Settings, log: EventLog) -> None:
    transfers = sorted(
        (
            event
            for shard, _, _, event in EventLog(log.records[:-2]).events()
            if shard == 1 and event["type"] == "TransferCreated"
        ),
        key=lambda event: -int(event["timestamp"]),
    )
    names = ("code", "user_data_128", "user_data_64", "user_data_32")

    async def search(limit: int, since: int = 0, **wanted: int) -> list[int]:
        queries = Queries(environment, timeout=5.0, account_flags=(), transfer_flags=())
        pool = queries._pools["postgres"]
        await pool.open()
        try:
            found: list[int] = []
            until: int | None = TIMESTAMP_MAX
            while until is not None:
                filters = {name: wanted.get(name) for name in names}
                page = await queries.search(LEDGER_SHARDS + 1, filters, since, until, limit)
                assert len(page["transfers"]) <= limit
                found += [int(transfer["id"]) for transfer in page["transfers"]]
                until = None if page["next_until"] is None else int(page["next_until"])
            return found
        finally:
            await pool.close()

    for wanted in ({"code": 7}, {"user_data_64": 3}, {"code": 2, "user_data_64": 1}):
        expected = [
            int(event["id"]) for event in transfers if all(int(event[name]) == value for name, value in wanted.items())
        ]
        assert len(expected) > 1
        assert asyncio.run(search(2, **wanted)) == asyncio.run(search(1_000, **wanted)) == expected
    middle = int(transfers[len(transfers) // 2]["timestamp"])
    expected = [int(e["id"]) for e in transfers if int(e["code"]) == 7 and int(e["timestamp"]) >= middle]
    assert asyncio.run(search(3, since=middle, code=7)) == expected
