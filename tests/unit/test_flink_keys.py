"""Shards spread evenly over Flink's subtasks, by keys whose groups Flink itself computes in the same way."""

from collections import Counter

import pytest

from jobs.flink_keys import MAX_PARALLELISM, key_group, shard_keys, subtask

FLINK_KEY_GROUPS = {
    # recorded from KeyGroupRangeAssignment.assignToKeyGroup(Row.of(key), 128) of Flink 2.3.0
    0: 33, 1: 44, 2: 97, 3: 104, 4: 17, 5: 17, 6: 125, 7: 17, 8: 80, 9: 119, 10: 45, 11: 37, 12: 42, 13: 32, 14: 57,
    15: 53, 16: 56, 17: 107, 18: 109, 19: 5, 20: 113, 21: 84, 22: 64, 23: 12, 24: 116, 25: 124, 26: 119, 27: 44,
    28: 84, 29: 120, 30: 29,
}  # fmt: skip


def test_key_groups_are_those_of_flink():
    assert {key: key_group(key) for key in FLINK_KEY_GROUPS} == FLINK_KEY_GROUPS


def test_the_keys_of_four_shards_never_change():
    """State in savepoints lies under these keys."""
    assert shard_keys(4) == (299, 238, 8, 101)


@pytest.mark.parametrize("max_parallelism", [128, 256, 1024])
@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 100, 128])
def test_every_shard_has_its_own_key_in_the_middle_of_its_part(shards, max_parallelism):
    keys = shard_keys(shards, max_parallelism)
    assert len(set(keys)) == shards
    for shard, key in enumerate(keys):
        assert key_group(key, max_parallelism) == int((shard + 0.5) * max_parallelism / shards)


@pytest.mark.parametrize("shards", [1, 3, 4, 8, 12, 64])
def test_at_any_parallelism_no_subtask_has_more_than_one_shard_more_than_its_share(shards):
    for parallelism in range(1, shards + 1):
        load = Counter(subtask(key, parallelism) for key in shard_keys(shards))
        assert len(load) == parallelism, "a subtask has no shard"
        assert max(load.values()) <= shards / parallelism + 1
        if shards % parallelism == 0:
            assert set(load.values()) == {shards // parallelism}


@pytest.mark.parametrize("shards", [0, -1, MAX_PARALLELISM + 1])
def test_more_shards_than_key_groups_are_refused(shards):
    with pytest.raises(ValueError, match=f"{shards} shards"):
        shard_keys(shards)
