"""The sinks on real servers: whatever happens to sink, store or broker, the store equals the ledger's events."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from infra.settings import Settings
from infra.stack.cassandra import Cassandra
from infra.stack.postgres import Postgres
from infra.stack.server import Server
from infra.stores import cassandra_session, postgres_conninfo
from pipelines.catalogue import LEDGER_COMMANDS, LEDGER_EVENTS
from pipelines.codec import codec_of
from pipelines.wire import unwrap, wrap
from tests.support.ledger_events import EventLog, LedgerEventSource, joined
from tests.support.sinks import (
    SinkProcess,
    committed,
    dead_letters,
    expected,
    prepare,
    registered,
    running,
    send,
    stored,
)
from tests.support.stack import PrivateStack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]
PATIENCE = 240.0
"""Seconds for what takes a few on a quiet machine; these run on shared ones."""

BOTH = pytest.mark.parametrize("destination", ["postgres", "cassandra"])


@pytest.fixture(scope="module")
def logs() -> list[EventLog]:
    """Four consecutive pieces of one log: 40 accounts and 1,600 transfers, their expiries among them."""
    source = LedgerEventSource()
    accounts = source.accounts(10)
    return [accounts, *(source.transfers(16, 30) for _ in range(3))]


@pytest.fixture
def destination() -> str:
    return "postgres"


@pytest.fixture
def environment(stack: PrivateStack, destination: str) -> Settings:
    environment = stack.environment("kafka", "registry", destination)
    prepare(environment, destination, "ledger")
    return environment


@pytest.fixture
def sink_log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "sink.log"
    path.touch()
    yield path
    print(path.read_text()[-6000:])  # shown by pytest when the test fails


def holds(environment: Settings, destination: str, log: EventLog, sink: SinkProcess | None = None) -> None:
    """Wait until the store equals the log; row by row, so that nothing is missing, doubled or wrong."""
    want = expected(log, destination)

    def complete() -> bool:
        assert sink is None or sink.process.poll() is None, "the sink ended"
        return len(stored(environment, destination)[1]) >= len(want[1])

    wait_until(complete, PATIENCE, f"{destination} has {len(want[1])} entries")
    wait_until(lambda: stored(environment, destination)[0] == want[0], PATIENCE, f"the balances in {destination}")
    assert stored(environment, destination) == want


@BOTH
def test_the_store_equals_the_ledger_despite_repeats_and_poison(
    environment: Settings, destination: str, logs: list[EventLog], sink_log: Path
) -> None:
    first, second = registered(environment, joined(*logs[:2]).records), registered(environment, logs[2].records)
    good = second[0][1]
    assert good is not None
    header = codec_of(LEDGER_EVENTS.name)
    elsewhere = registered(environment, [record for record in logs[3].records if record[0] == 1])[0][1]
    poison: list[tuple[bytes | None, str]] = [
        (None, "empty"),
        (b"not avro at all", "not_avro"),
        (b"\x00\x00", "too_short"),
        (b"\x00\x7f\xff\xff\xff" + good[5:], "unknown_schema"),
        (good[: len(good) // 2], "truncated"),
        (good + b"more", "trailing_bytes"),
        (b"\x01" + random.Random(1).randbytes(1_000_000), "not_avro"),
        (elsewhere, "wrong_shard"),
    ]
    assert header.decode(good[5:]).shard == 0
    send(environment, first)
    send(environment, first[-6:])  # as an upstream job repeats its last frames after a restore
    send(environment, [(0, value) for value, _ in poison])
    send(environment, second)
    with running(environment, destination, sink_log) as sink:
        holds(environment, destination, joined(*logs[:3]), sink)
        wait_until(lambda: len(dead_letters(environment)) >= len(poison), PATIENCE, "letters")
        letters = dead_letters(environment)
        assert [(place.letter.reason, place.letter.event_index) for place in letters] == [
            (reason, -1) for _, reason in poison
        ]
        places = [place.letter.offset for place in letters]
        assert places == list(range(places[0], places[0] + len(poison)))
        for place, (value, _) in zip(letters, poison, strict=True):
            letter = place.letter
            assert (letter.consumer, letter.topic, letter.partition) == (f"sink-{destination}", "ledger.events", 0)
            if value is not None and len(value) > 960_000:
                assert letter.payload == b""
                assert "read it at its offset" in letter.detail
            else:
                assert letter.payload == (value or b"")
            assert letter.schema_id == (unwrap(value)[0] if value and value[0] == 0 and len(value) >= 5 else -1)
        wait_until(lambda: sink.health()[0] == 200, PATIENCE, "healthy")
        _, report = sink.health()
        assert {number: part["lag"] for number, part in report["partitions"].items()} == dict.fromkeys("0123", 0)
        assert sink.metric("streambank_sink_dead_letters_total") == len(poison)
        assert sink.stop() == 0
    ends = {number: part["end_offset"] for number, part in report["partitions"].items()}
    assert {str(shard): offset for shard, offset in committed(environment, f"sink-{destination}").items()} == ends


@BOTH
def test_kill_9_and_ten_seconds_without_the_store(
    environment: Settings, stack: PrivateStack, destination: str, logs: list[EventLog], sink_log: Path
) -> None:
    server: Server = stack.get(Postgres) if destination == "postgres" else stack.get(Cassandra)
    small = {"max_batch_events": "60", "stall_seconds": "3"}
    send(environment, registered(environment, joined(*logs[:2]).records))
    for share in (0.1, 0.5):
        with running(environment, destination, sink_log, **small) as sink:
            wanted = share * len(expected(joined(*logs[:2]), destination)[1])
            # Effects are in the store; Kafka's commit, a second later, and for Cassandra the position, are not.
            wait_until(partial(_more_entries_than, wanted, environment, destination), PATIENCE, "first rows")
            sink.kill()
    with running(environment, destination, sink_log, **small) as sink:
        holds(environment, destination, joined(*logs[:2]), sink)
        # The rows may all be those of the killed ones: this one must be at work before the store goes.
        wait_until(lambda: sink.health()[0] == 200, PATIENCE, "healthy after the kills")
        server.kill()
        killed = time.monotonic()
        send(environment, registered(environment, logs[2].records))
        wait_until(lambda: sink.health()[0] == 503, PATIENCE, "unhealthy while records wait")
        wait_until(lambda: time.monotonic() > killed + 10, 15, "ten seconds without the store")
        assert sink.process.poll() is None
        server.start()
        server.wait_healthy(PATIENCE)
        send(environment, registered(environment, logs[3].records))
        holds(environment, destination, joined(*logs), sink)
        wait_until(lambda: sink.health()[0] == 200, PATIENCE, "healthy again")
        assert sink.metric("streambank_sink_retries_total") >= 1
        assert sink.stop() == 0
    assert not dead_letters(environment)


def test_a_sink_started_without_its_store_says_so_and_waits(
    environment: Settings, stack: PrivateStack, destination: str, logs: list[EventLog], sink_log: Path
) -> None:
    server = stack.get(Postgres)
    send(environment, registered(environment, joined(*logs[:2]).records))
    server.stop()
    with running(environment, destination, sink_log) as impatient:
        wait_until(lambda: _serves(impatient, 503, store_reached=False), PATIENCE, "unhealthy without the store")
        assert impatient.stop() == 0
    with running(environment, destination, sink_log) as sink:
        wait_until(lambda: _serves(sink, 503, store_reached=False), PATIENCE, "unhealthy without the store")
        server.start()
        server.wait_healthy(PATIENCE)
        holds(environment, destination, joined(*logs[:2]), sink)
        wait_until(lambda: _serves(sink, 200, store_reached=True), PATIENCE, "healthy with it")


def _serves(sink: SinkProcess, status: int, *, store_reached: bool) -> bool:
    try:
        found, report = sink.health()
    except OSError:  # the page is not up yet
        return False
    return found == status and report["store_reached"] is store_reached


def test_two_sinks_share_the_shards_and_one_dies(
    environment: Settings, destination: str, logs: list[EventLog], sink_log: Path
) -> None:
    with running(environment, destination, sink_log, max_batch_events="60") as one:
        send(environment, registered(environment, joined(*logs[:2]).records))
        with running(environment, destination, sink_log, max_batch_events="60") as two:
            send(environment, registered(environment, logs[2].records))
            both = {one: 0, two: 0}
            wait_until(
                lambda: _share(both) == 4 and all(both.values()), PATIENCE, "both have partitions, all are taken"
            )
            holds(environment, destination, joined(*logs[:3]), one)
            send(environment, registered(environment, logs[3].records))
            one.kill()
            holds(environment, destination, joined(*logs), two)
            assert two.stop() == 0
    assert not dead_letters(environment)


def _more_entries_than(count: float, environment: Settings, destination: str) -> bool:
    return len(stored(environment, destination)[1]) > count


def _share(sinks: dict[SinkProcess, int]) -> int:
    for sink in sinks:
        sinks[sink] = len(sink.health()[1]["partitions"])
    return sum(sinks.values())


def test_a_gap_stops_the_sink_before_it_is_passed(
    environment: Settings, destination: str, logs: list[EventLog], sink_log: Path
) -> None:
    records = registered(environment, joined(*logs[:2]).records)
    of_shard_2 = [index for index, (shard, _) in enumerate(records) if shard == 2]
    missing = of_shard_2[3]
    send(environment, records[:missing] + records[missing + 1 :])
    with running(environment, destination, sink_log) as sink:
        assert sink.process.wait(PATIENCE) == 4
    assert "partition 2, offset 3: sequence 5 follows 3; 1 frame(s) are missing" in sink.said()
    with psycopg.connect(postgres_conninfo(environment)) as connection:
        assert connection.execute("SELECT max(sequence) FROM transfers WHERE shard = 2").fetchone() in [(3,), (None,)]


def test_an_event_that_the_store_refuses_is_set_aside_alone(
    environment: Settings, destination: str, logs: list[EventLog], sink_log: Path
) -> None:
    log = joined(*logs[:2])
    transfers = sorted(log.transfers())
    refused = {transfers[100], transfers[101], transfers[-1]}
    with psycopg.connect(postgres_conninfo(environment)) as connection:
        condition = " OR ".join(f"(shard = {shard} AND id = {identity})" for shard, identity in refused)
        connection.execute(f"ALTER TABLE transfers ADD CONSTRAINT trouble CHECK (NOT ({condition}))")
    send(environment, registered(environment, log.records))
    want = expected(log, destination)[1]
    for shard, identity in refused:
        del want[True, shard, identity]
    with running(environment, destination, sink_log) as sink:
        wait_until(lambda: len(stored(environment, destination)[1]) >= len(want), PATIENCE, "all but the refused")
        assert stored(environment, destination)[1] == want
        assert sink.stop() == 0
    events = {(shard, sequence, index): event for shard, sequence, index, event in log.events()}
    found = set()
    for place in dead_letters(environment):
        assert place.letter.reason == "CheckViolation"
        assert "trouble" in place.letter.detail
        frame = codec_of(LEDGER_EVENTS.name).decode(unwrap(place.letter.payload)[1])
        event = events[place.letter.partition, frame.sequence, place.letter.event_index]
        found.add((place.letter.partition, int(event["id"])))
    assert found == refused


def test_too_many_dead_letters_stop_the_sink(
    environment: Settings, destination: str, logs: list[EventLog], sink_log: Path
) -> None:
    options = {"dead_letter_ratio": "0.2", "dead_letter_window": "20"}
    send(environment, registered(environment, logs[0].records))
    send(environment, [(3, b"garbage")] * 5)
    for _ in range(2):  # it does not slip past them by being restarted
        with running(environment, destination, sink_log, **options) as sink:
            assert sink.process.wait(PATIENCE) == 3
    assert "5 of the last 20 records cannot be applied" in sink.said()
    with psycopg.connect(postgres_conninfo(environment)) as connection:
        offsets: list[Any] = connection.execute("SELECT next_offset FROM sink_offsets WHERE partition = 3").fetchall()
    assert offsets[0][0] <= 1
    with running(environment, destination, sink_log, dead_letter_ratio="0.5", dead_letter_window="20") as sink:
        send(environment, registered(environment, logs[1].records))
        holds(environment, destination, joined(*logs[:2]), sink)


@pytest.mark.parametrize("destination", ["cassandra"])
def test_an_emptied_projection_is_rebuilt_from_the_topic(
    environment: Settings, destination: str, logs: list[EventLog], sink_log: Path
) -> None:
    send(environment, registered(environment, joined(*logs[:2]).records))
    with running(environment, destination, sink_log) as sink:
        holds(environment, destination, joined(*logs[:2]), sink)
        assert sink.stop() == 0
    assert sum(committed(environment, "sink-cassandra").values()) == len(joined(*logs[:2]).records)
    with cassandra_session(environment) as session:
        session.execute("TRUNCATE statement_by_account_month", timeout=60)
        session.execute("TRUNCATE sink_offsets", timeout=60)
    with running(environment, destination, sink_log) as sink:
        holds(environment, destination, joined(*logs[:2]), sink)


def test_commands_are_no_events(environment: Settings, destination: str, logs: list[EventLog], sink_log: Path) -> None:
    """A registered schema of another topic is not taken for this one's."""
    from infra.registry import SchemaRegistry

    with SchemaRegistry(environment) as registry:
        foreign = registry.schema_id(LEDGER_COMMANDS)
    body = unwrap(logs[0].records[0][1])[1]
    send(environment, [(0, wrap(foreign, body))])
    with running(environment, destination, sink_log):
        letters = wait_until(lambda: dead_letters(environment), PATIENCE, "the letter")
    assert letters[0].letter.schema_id == foreign
    assert letters[0].letter.reason in {"wrong_schema", "unknown_event_type"}
