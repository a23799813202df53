"""From a 128-bit id to the slot of its record: extendible hashing, so that growing never stops the ledger.

A directory of 2^depth entries, chosen by the hash's top bits, points to segments of 512 words; a segment is an open
addressed table with linear probing. A full segment splits in two (some microseconds), and only the directory, four
bytes per segment, ever doubles. A word holds 32 bits of the hash and a 32-bit reference, 0 being empty; 16 further bits
of the hash stand beside it, so that a record is hardly ever read for another id than its own (the 32 bits alone choose
segment and position, and few of them are left to tell neighbours apart). The id itself is compared in the record. That
is 16 bytes per id on average.

A reference is slot + 1, with bit 31 set for a burned id (the slot is then one of the burned ids). The index is not part
of the stored state: it is rebuilt from the records.

Known limit: the hash is fixed, so a producer can choose ids that collide. Segments that cannot be split any further are
chained, which stays right but becomes as slow as the chain is long.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.compiled import compiled, compiled_inline, prefetch
from pipelines.pages import reserve

__all__ = [
    "BURNED", "NOT_FOUND", "IdIndex", "fetch", "find", "find_likely", "find_place", "insert", "insert_at", "new_index",
    "rebuild", "remove",
]  # fmt: skip

NOT_FOUND: Final = -1
BURNED: Final = -2

SEGMENT: Final = 512
FULL: Final = 448
"""Words in use at which a segment splits."""
MAX_DEPTH: Final = 22
"""Deepest directory: 4 Mi segments hold at least 900 M ids. Its bits do not overlap the 9 that choose the position."""

_BURNED_BIT: Final = np.uint64(1 << 31)
_SLOT_BITS: Final = np.uint64((1 << 31) - 1)
_REFERENCE_BITS: Final = np.uint64(0xFFFF_FFFF)
_POSITION_BITS: Final = np.uint64(SEGMENT - 1)
_HALF: Final = np.uint64(32)
_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)

# words of IdIndex.header
_DEPTH: Final = 0
_SEGMENTS: Final = 1

# columns of IdIndex.segments
_USED: Final = 0
_LOCAL_DEPTH: Final = 1
_NEXT: Final = 2


class IdIndex(NamedTuple):
    """The arrays of one index; all grow in place."""

    header: NDArray[np.int64]
    """Depth of the directory, number of segments."""
    directory: NDArray[np.int32]
    segments: NDArray[np.int32]
    """Per segment: words in use, its depth, and the next segment of its chain (0: none)."""
    words: NDArray[np.uint64]
    checks: NDArray[np.uint16]
    """16 bits of the hash of the word at the same place."""
    scratch: NDArray[np.uint64]
    """One segment's words while it is split."""
    scratch_checks: NDArray[np.uint16]


def new_index(capacity: int) -> IdIndex:
    """An empty index with address space for ``capacity`` ids."""
    # splitting stops at 3/7 of the segments, which is more than well mixed ids need. The rest is for chains: every
    # segment may have one that is not full, and the full ones hold `capacity` ids at most.
    segments = 7 * (capacity // SEGMENT + 64)
    index = IdIndex(
        np.zeros(2, np.int64),
        reserve(np.int32, 1 << MAX_DEPTH),
        reserve(np.int32, segments * 3).reshape(segments, 3),
        reserve(np.uint64, segments * SEGMENT, huge_pages=True),
        reserve(np.uint16, segments * SEGMENT, huge_pages=True),
        np.zeros(SEGMENT, np.uint64),
        np.zeros(SEGMENT, np.uint16),
    )
    index.header[_SEGMENTS] = 1
    return index


@compiled_inline
def _hash(lo: Any, hi: Any) -> Any:
    """64 well mixed bits of an id."""
    x = lo ^ (hi * np.uint64(0x9E3779B97F4A7C15))
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= hi >> np.uint64(17)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled_inline
def find(index: Any, records: Any, burned: Any, lo: Any, hi: Any) -> Any:
    """Slot of the record with this id in ``records``, `BURNED`, or `NOT_FOUND`."""
    mixed = _hash(lo, hi)
    tag = mixed >> _HALF
    check = np.uint16(mixed)
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    start = tag & _POSITION_BITS
    while True:
        base = np.uint64(segment * SEGMENT)
        position = start
        for _ in range(SEGMENT):
            word = index.words[base + position]
            if word == _ZERO:
                break
            if word >> _HALF == tag and index.checks[base + position] == check:
                reference = word & _REFERENCE_BITS
                slot = np.int64((reference & _SLOT_BITS) - _ONE)
                if reference & _BURNED_BIT:
                    if burned[slot].id_lo == lo and burned[slot].id_hi == hi:
                        return BURNED
                elif records[slot].id_lo == lo and records[slot].id_hi == hi:
                    return slot
            position = (position + _ONE) & _POSITION_BITS
        segment = np.int64(index.segments[segment, _NEXT])
        if segment == 0:
            return NOT_FOUND


@compiled_inline
def find_place(index: Any, records: Any, lo: Any, hi: Any) -> Any:
    """As `find` in an index without burned ids, with the place of the empty word at which the search for an unknown id
    ended, for `insert_at`; -1 if there is none."""
    mixed = _hash(lo, hi)
    tag = mixed >> _HALF
    check = np.uint16(mixed)
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    base = np.uint64(segment * SEGMENT)
    position = tag & _POSITION_BITS
    for _ in range(SEGMENT):
        word = index.words[base + position]
        if word == _ZERO:
            if index.segments[segment, _NEXT] != 0:
                break
            return np.int64(NOT_FOUND), np.int64(base + position)
        if word >> _HALF == tag and index.checks[base + position] == check:
            slot = np.int64((word & _SLOT_BITS) - _ONE)
            if records[slot].id_lo == lo and records[slot].id_hi == hi:
                return slot, np.int64(-1)
        position = (position + _ONE) & _POSITION_BITS
    return find(index, records, records, lo, hi), np.int64(-1)


@compiled_inline
def _place(words: Any, checks: Any, base: Any, word: Any, check: Any) -> None:
    """Put a word at its place in a segment that has room."""
    position = (word >> _HALF) & _POSITION_BITS
    while words[base + position] != _ZERO:
        position = (position + _ONE) & _POSITION_BITS
    words[base + position] = word
    checks[base + position] = check


@compiled_inline
def fetch(index: Any, lo: Any, hi: Any) -> None:
    """Have the words at which the search for an id starts brought into the cache, without waiting for them: so many of
    them are on their way from memory together instead of one after another."""
    tag = _hash(lo, hi) >> _HALF
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    place = segment * SEGMENT + np.int64(tag & _POSITION_BITS)
    prefetch(index.words, place, 0)
    prefetch(index.checks, place, 0)


@compiled_inline
def find_likely(index: Any, lo: Any, hi: Any) -> Any:
    """The slot that `find` would compare first, without reading its record, or `NOT_FOUND`.

    With a probability of about 2^-48 it is another id's, and an id whose segment has a chain may be missed: to know
    what to `prefetch`. For an index without burned ids.
    """
    mixed = _hash(lo, hi)
    tag = mixed >> _HALF
    check = np.uint16(mixed)
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    base = np.uint64(segment * SEGMENT)
    position = tag & _POSITION_BITS
    for _ in range(SEGMENT):
        word = index.words[base + position]
        if word == _ZERO:
            break
        if word >> _HALF == tag and index.checks[base + position] == check:
            return np.int64((word & _SLOT_BITS) - _ONE)
        position = (position + _ONE) & _POSITION_BITS
    return np.int64(NOT_FOUND)


@compiled
def _split(index: Any, segment: Any) -> None:
    """Move the upper half of a segment's hash range into a new segment."""
    header, directory, segments, words, checks, scratch, scratch_checks = index
    depth = segments[segment, _LOCAL_DEPTH]
    if depth == header[_DEPTH]:
        for entry in range((1 << header[_DEPTH]) - 1, -1, -1):
            directory[2 * entry] = directory[entry]
            directory[2 * entry + 1] = directory[entry]
        header[_DEPTH] += 1
    sibling = header[_SEGMENTS]
    header[_SEGMENTS] += 1
    segments[segment, _LOCAL_DEPTH] = depth + 1
    segments[sibling, _LOCAL_DEPTH] = depth + 1
    bit = np.uint64(31 - depth)
    base = np.uint64(segment * SEGMENT)
    used = 0
    first = _ZERO
    for position in range(SEGMENT):
        scratch[position] = words[base + np.uint64(position)]
        scratch_checks[position] = checks[base + np.uint64(position)]
        words[base + np.uint64(position)] = _ZERO
    for position in range(SEGMENT):
        word = scratch[position]
        if word != _ZERO:
            first = word >> _HALF
            if (first >> bit) & _ONE:
                _place(words, checks, np.uint64(sibling * SEGMENT), word, scratch_checks[position])
            else:
                _place(words, checks, base, word, scratch_checks[position])
                used += 1
    segments[sibling, _USED] = segments[segment, _USED] - used
    segments[segment, _USED] = used
    # the directory entries of the old segment are those that share its depth's top bits; the upper half moves
    free = header[_DEPTH] - depth - 1
    prefix = np.int64(first >> (bit + _ONE))
    start = ((prefix << 1) | 1) << free
    for entry in range(start, start + (1 << free)):
        directory[entry] = sibling


@compiled_inline
def insert(index: Any, lo: Any, hi: Any, slot: Any, is_burned: Any) -> None:
    """Add an id that is not in the index."""
    mixed = _hash(lo, hi)
    tag = mixed >> _HALF
    reference = np.uint64(slot) + _ONE
    if is_burned:
        reference |= _BURNED_BIT
    while True:
        segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
        if (
            index.segments[segment, _USED] < FULL
            or index.segments[segment, _LOCAL_DEPTH] == MAX_DEPTH
            or index.header[_SEGMENTS] >= len(index.segments) * 3 // 7
        ):
            break
        _split(index, segment)
    # only a segment that cannot be split gets this full: the next of its chain takes the id
    while index.segments[segment, _USED] == SEGMENT:
        if index.segments[segment, _NEXT] == 0:
            index.segments[segment, _NEXT] = index.header[_SEGMENTS]
            index.header[_SEGMENTS] += 1
        segment = np.int64(index.segments[segment, _NEXT])
    index.segments[segment, _USED] += 1
    base = np.uint64(segment * SEGMENT)
    _place(index.words, index.checks, base, tag << _HALF | reference, np.uint16(mixed))


@compiled_inline
def insert_at(index: Any, place: Any, lo: Any, hi: Any, slot: Any) -> None:
    """`insert` an id at the place where `find_place` ended, the index being as it was then."""
    segment = place // SEGMENT
    if place < 0 or index.segments[segment, _USED] >= FULL:
        insert(index, lo, hi, slot, False)
        return
    mixed = _hash(lo, hi)
    index.segments[segment, _USED] += 1
    index.words[place] = (mixed >> _HALF) << _HALF | (np.uint64(slot) + _ONE)
    index.checks[place] = np.uint16(mixed)


@compiled
def remove(index: Any, lo: Any, hi: Any, slot: Any) -> Any:
    """Take out the id of the record in ``slot``, closing the gap it leaves; False if it is not there."""
    tag = _hash(lo, hi) >> _HALF
    target = tag << _HALF | (np.uint64(slot) + _ONE)
    words = index.words
    checks = index.checks
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    while True:
        base = np.uint64(segment * SEGMENT)
        hole = tag & _POSITION_BITS
        for _ in range(SEGMENT):
            word = words[base + hole]
            if word == target or word == _ZERO:  # noqa: SIM109 - a tuple test compiles to slower code
                break
            hole = (hole + _ONE) & _POSITION_BITS
        if words[base + hole] == target:
            break
        segment = np.int64(index.segments[segment, _NEXT])
        if segment == 0:
            return False
    index.segments[segment, _USED] -= 1
    position = hole
    for _ in range(SEGMENT - 1):
        position = (position + _ONE) & _POSITION_BITS
        word = words[base + position]
        if word == _ZERO:
            break
        home = (word >> _HALF) & _POSITION_BITS
        # the word may move back into the hole unless its home lies between the hole and itself
        if ((position - home) & _POSITION_BITS) >= ((position - hole) & _POSITION_BITS):
            words[base + hole] = word
            checks[base + hole] = checks[base + position]
            hole = position
    words[base + hole] = _ZERO
    return True


@compiled
def rebuild(index: Any, records: Any, count: Any, is_burned: Any) -> None:
    """Add the ids of the first ``count`` records."""
    for slot in range(count):
        insert(index, records[slot].id_lo, records[slot].id_hi, slot, is_burned)
