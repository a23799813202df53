"""Which Flink key stands for a shard, so that shards spread evenly over the subtasks at any parallelism.

Flink puts a key into one of ``max_parallelism`` key groups by a hash and gives each subtask a run of groups. Bare
shard numbers would leave some subtasks with several shards and others with none. So each shard gets a key whose group
lies in the middle of the shard's own n-th part of the groups. A key never changes its group, therefore neither the
shard count nor the maximum parallelism of a job may change while its state lives.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_PARALLELISM", "key_group", "shard_keys", "subtask"]

MAX_PARALLELISM: Final = 128
"""Key groups of every job; written into its state, so it is never changed."""

ROW_HASH_OF_INT: Final = 62  # org.apache.flink.types.Row.hashCode of a row of one int is 62 + that int
MASK: Final = 0xFFFFFFFF


def shard_keys(shards: int, max_parallelism: int = MAX_PARALLELISM) -> tuple[int, ...]:
    """The key of each shard, by shard number: the smallest unused key of group floor((s + 0.5) * maxP / n)."""
    if not 1 <= shards <= max_parallelism:
        raise ValueError(f"{shards} shards: a job has between 1 and {max_parallelism}, its maximum parallelism")
    wanted = {(2 * shard + 1) * max_parallelism // (2 * shards): shard for shard in range(shards)}
    keys: dict[int, int] = {}
    candidate = 0
    while len(keys) < shards:
        shard = wanted.get(key_group(candidate, max_parallelism))
        if shard is not None:
            keys.setdefault(shard, candidate)
        candidate += 1
    return tuple(keys[shard] for shard in range(shards))


def key_group(key: int, max_parallelism: int = MAX_PARALLELISM) -> int:
    """The key group of an int key of PyFlink, which Flink sees as a row of one int (KeyGroupRangeAssignment)."""
    return _murmur(ROW_HASH_OF_INT + key) % max_parallelism


def subtask(key: int, parallelism: int, max_parallelism: int = MAX_PARALLELISM) -> int:
    """The subtask that holds a key's state at a parallelism."""
    return key_group(key, max_parallelism) * parallelism // max_parallelism


def _murmur(code: int) -> int:
    """org.apache.flink.util.MathUtils.murmurHash of a non-negative 32-bit int."""
    code = (code * 0xCC9E2D51) & MASK
    code = _rotate_left(code, 15)
    code = (code * 0x1B873593) & MASK
    code = _rotate_left(code, 13)
    code = (code * 5 + 0xE6546B64) & MASK
    code ^= 4
    code ^= code >> 16
    code = (code * 0x85EBCA6B) & MASK
    code ^= code >> 13
    code = (code * 0xC2B2AE35) & MASK
    code ^= code >> 16
    signed = code - (1 << 32) if code >> 31 else code
    return 0 if signed == -(1 << 31) else abs(signed)


def _rotate_left(code: int, bits: int) -> int:
    return ((code << bits) | (code >> (32 - bits))) & MASK
