"""The checker of the runtimes' tests catches every way in which a log can be wrong."""

import pytest

from pipelines.catalogue import LEDGER_RESULTS
from tests.support.counter_kernel import COUNTER
from tests.support.frame_log import LogError, check, expected, random_log

SCHEMA_IDS = {topic.name: 1 for topic in COUNTER.outputs}
KEY = (LEDGER_RESULTS.name, 2)


@pytest.fixture
def wanted():
    return expected(COUNTER, random_log(4, 80, 1), SCHEMA_IDS)


def changed(wanted, values):
    return {**wanted, KEY: values}


def test_the_undisturbed_log_passes(wanted):
    assert check(wanted, wanted) == 0


def test_repeats_in_order_pass_and_are_counted(wanted):
    values = wanted[KEY]
    assert check(wanted, changed(wanted, [*values[:9], *values[3:9], *values[5:]])) == 10


def test_a_missing_frame_is_caught(wanted):
    values = wanted[KEY]
    with pytest.raises(LogError, match="sequence 6 follows 4"):
        check(wanted, changed(wanted, values[:4] + values[5:]))


def test_a_missing_last_frame_is_caught(wanted):
    values = wanted[KEY]
    with pytest.raises(LogError, match=f"{len(values) - 1} frames, {len(values)} wanted"):
        check(wanted, changed(wanted, values[:-1]))


def test_a_frame_too_many_is_caught(wanted):
    longer = expected(COUNTER, random_log(4, 90, 1), SCHEMA_IDS)
    assert len(longer[KEY]) > len(wanted[KEY])
    with pytest.raises(LogError, match="wanted"):
        check(wanted, changed(wanted, longer[KEY]))


def test_swapped_frames_are_caught(wanted):
    values = wanted[KEY]
    with pytest.raises(LogError, match="sequence 2 follows 0"):
        check(wanted, changed(wanted, [values[1], values[0], *values[2:]]))


def test_a_changed_frame_is_caught(wanted):
    values = wanted[KEY]
    flipped = values[7][:-2] + bytes([values[7][-2] ^ 2]) + values[7][-1:]
    with pytest.raises(LogError, match="sequence 8 differs"):
        check(wanted, changed(wanted, [*values[:7], flipped, *values[8:]]))


def test_a_repeat_with_other_bytes_is_caught(wanted):
    values = wanted[KEY]
    flipped = values[7][:-2] + bytes([values[7][-2] ^ 2]) + values[7][-1:]
    with pytest.raises(LogError, match="sequence 8 was repeated with other bytes"):
        check(wanted, changed(wanted, [*values, flipped]))


def test_a_frame_on_another_shards_partition_is_caught(wanted):
    other = wanted[LEDGER_RESULTS.name, 3]
    with pytest.raises(LogError, match="partition 2 has a frame of shard 3"):
        check(wanted, changed(wanted, [*wanted[KEY], other[0]]))
