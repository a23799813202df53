"""Journaled state survives a crash at any frame; and the test that says so notices when it does not."""

import random

import pytest
import zstandard

from jobs.flink_state import FoldPolicy, JournaledShard
from pipelines.catalogue import LEDGER_COMMANDS
from pipelines.errors import FrameError
from pipelines.shard import Shard
from tests.support.counter_kernel import COUNTER
from tests.support.frame_log import LogError, check, expected, random_log

SCHEMA_IDS = {topic.name: number for number, topic in enumerate((*COUNTER.outputs, COUNTER.dead_letters), start=1)}
OFTEN = FoldPolicy(min_frames=4, max_frames=9, max_bytes=1 << 20)


class Journal:
    def __init__(self, values=()):
        self.values = list(values)

    def add(self, value):
        self.values.append(value)

    def get(self):
        return iter(self.values)

    def clear(self):
        self.values.clear()


class ForgetfulJournal(Journal):
    def add(self, value):
        pass


class Pages(dict):
    def put(self, key, value):
        self[key] = value


def journaled(journal, pages, policy=OFTEN):
    return JournaledShard(Shard(COUNTER, 0, SCHEMA_IDS), LEDGER_COMMANDS.name, journal, pages, policy)


def run_with_crashes(log, journal_type, seed):
    """Apply a log with checkpoints and crashes at random frames; returns everything that was sent."""
    chance = random.Random(seed)
    sent = {(topic.name, shard): [] for topic in COUNTER.outputs for shard in range(COUNTER.shards)}
    journal, pages, position = journal_type(), Pages(), 0
    checkpoint = (journal_type(), Pages(), 0)
    shard = journaled(journal, pages)
    crashes = 0
    while position < len(log):
        for output in shard.apply(log[position].value):
            sent[output.topic, output.shard].append(output.value)
        position += 1
        if chance.random() < 0.1:
            checkpoint = (journal_type(journal.values), Pages(pages), position)
        if chance.random() < 0.04:
            crashes += 1
            journal, pages, position = journal_type(checkpoint[0].values), Pages(checkpoint[1]), checkpoint[2]
            shard = journaled(journal, pages)
    assert crashes > 2
    return sent


@pytest.mark.parametrize("seed", range(5))
def test_outputs_after_crashes_are_those_of_an_undisturbed_run(seed):
    log = random_log(1, 200, seed)
    repeats = check(expected(COUNTER, log, SCHEMA_IDS), run_with_crashes(log, Journal, seed))
    assert repeats > 0, "no crash made a frame come twice; the test shows nothing"


def test_a_journal_that_forgets_is_noticed():
    log = random_log(1, 200, 3)
    with pytest.raises(LogError):
        check(expected(COUNTER, log, SCHEMA_IDS), run_with_crashes(log, ForgetfulJournal, 3))


def test_a_fold_writes_the_changed_pages_and_empties_the_journal():
    journal, pages = Journal(), Pages()
    shard = journaled(journal, pages, FoldPolicy(min_frames=1, max_frames=5))
    log = random_log(1, 5, 1)
    for record in log[:4]:
        shard.apply(record.value)
    assert len(journal.values) == shard.journal_frames == 4
    assert shard.journal_bytes == sum(len(record.value) for record in log[:4])
    assert not pages
    shard.apply(log[4].value)
    assert not journal.values
    assert shard.journal_frames == shard.journal_bytes == 0
    assert "shard" in pages


def test_a_restore_counts_what_it_loaded():
    journal, pages = Journal(), Pages()
    shard = journaled(journal, pages)
    for record in random_log(1, 12, 1):
        shard.apply(record.value)
    restored = journaled(Journal(journal.values), Pages(pages))
    assert restored.restored_pages == len(pages) > 0
    assert restored.restored_frames == restored.journal_frames == len(journal.values)
    assert restored.journal_bytes == sum(map(len, journal.values))


def test_an_unreadable_frame_leaves_state_and_journal_alone():
    journal, pages = Journal(), Pages()
    shard = journaled(journal, pages)
    good = random_log(1, 2, 1)
    shard.apply(good[0].value)
    with pytest.raises(FrameError):
        shard.apply(good[1].value[:-3])
    assert journal.values == [good[0].value]
    assert [output.sequence for output in shard.apply(good[1].value)] == [2, 2]


def test_pages_of_an_upcast_state_replace_the_earlier_ones(monkeypatch):
    journal, pages = Journal(), Pages()
    shard = journaled(journal, pages)
    log = random_log(1, 12, 1)
    for record in log[:11]:
        shard.apply(record.value)
    pages["left over from another version/0"] = zstandard.compress(b"")
    restore = Shard.restore

    def upcasting(self, stored):
        restore(self, {key: page for key, page in stored.items() if not key.startswith("left over")})
        self.apply_frame(self.decode(LEDGER_COMMANDS.name, random_log(1, 1, 9)[0].value))
        return True

    monkeypatch.setattr(Shard, "restore", upcasting)
    journaled(journal, pages)
    assert not journal.values
    assert "left over from another version/0" not in pages


@pytest.mark.parametrize(
    ("frames", "journal_bytes", "fold_bytes", "due"),
    [
        (63, 10_000, 1, False),
        (64, 10_000, 10_001, False),
        (64, 10_000, 10_000, True),
        (4095, 10_000, 1 << 30, False),
        (4096, 10_000, 1 << 30, True),
        (2, 16 << 20, 1 << 30, True),
        (2, (16 << 20) - 1, 1 << 30, False),
    ],
)
def test_when_to_fold(frames, journal_bytes, fold_bytes, due):
    assert FoldPolicy().due(frames, journal_bytes, fold_bytes) is due
