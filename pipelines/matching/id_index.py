"""From a 64-bit id to the slot of its record: extendible hashing, so that growing never stops the matching.

A directory of 2^depth entries, chosen by the hash's top bits, points to segments of 512 words; a segment is an open
addressed table with linear probing. A full segment splits in two (some microseconds), and only the directory, four
bytes per segment, ever doubles. A word holds 32 bits of the hash and slot + 1, 0 being empty; the id itself is compared
in the record's field ``id``. That is 13 bytes per id on average. The index is rebuilt from the records.

`pipelines.id_index` is the same structure for the ledger's ids of 128 bits. There are two, because that one compares
two words of a record, knows burned ids, and keeps 16 more bits of the hash in an array of their own: 16 bytes per id
instead of 13, and one more read from memory for every id that is found.

Known limit: the hash is fixed, so a producer can choose ids that collide. Segments that cannot be split any further are
chained, which stays right but becomes as slow as the chain is long.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.compiled import compiled, compiled_inline, prefetch
from pipelines.pages import reserve

__all__ = ["NOT_FOUND", "IdIndex", "fetch", "find", "find_likely", "insert", "new_index", "remove"]

NOT_FOUND: Final = -1

SEGMENT: Final = 512
FULL: Final = 448
"""Words in use at which a segment splits."""
MAX_DEPTH: Final = 22

_POSITION_BITS: Final = np.uint64(SEGMENT - 1)
_REFERENCE_BITS: Final = np.uint64(0xFFFF_FFFF)
_HALF: Final = np.uint64(32)
_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)

# words of IdIndex.header
_DEPTH: Final = 0
_SEGMENTS: Final = 1
_MOST_SEGMENTS: Final = 2
"""Segments from which on none is split any more."""

# columns of IdIndex.segments
_USED: Final = 0
_LOCAL_DEPTH: Final = 1
_NEXT: Final = 2


class IdIndex(NamedTuple):
    """The arrays of one index; all grow in place. Segment 0 is scratch space of a split."""

    header: NDArray[np.int64]
    """Depth of the directory, number of segments, and how many there may be before chains begin."""
    directory: NDArray[np.int32]
    segments: NDArray[np.int32]
    """Per segment: words in use, its depth, and the next segment of its chain (0: none)."""
    words: NDArray[np.uint64]


def new_index(capacity: int, *, huge_pages: bool = False) -> IdIndex:
    """An empty index with address space for ``capacity`` ids."""
    segments = 7 * (capacity // SEGMENT + 64)
    index = IdIndex(
        np.zeros(3, np.int64),
        reserve(np.int32, 1 << MAX_DEPTH),
        reserve(np.int32, segments * 3).reshape(segments, 3),
        reserve(np.uint64, segments * SEGMENT, huge_pages=huge_pages),
    )
    index.header[_SEGMENTS] = 2
    index.header[_MOST_SEGMENTS] = segments * 3 // 7
    index.directory[0] = 1
    return index


@compiled_inline
def _hash(key: Any) -> Any:
    """32 well mixed bits of an id, as uint64."""
    x = np.uint64(key)
    x ^= x >> _HALF
    x *= np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    return x >> _HALF


@compiled_inline
def fetch(index: Any, key: Any) -> None:
    """Have the word at which the search for an id starts brought into the cache, without waiting for it."""
    tag = _hash(key)
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    prefetch(index.words, segment * SEGMENT + np.int64(tag & _POSITION_BITS), 0)


@compiled_inline
def find_likely(index: Any, key: Any) -> Any:
    """The slot that `find` would compare first, without reading its record, or `NOT_FOUND`: to know what to
    `prefetch`. It may be another id's, and an id whose segment has a chain may be missed."""
    tag = _hash(key)
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    base = np.uint64(segment * SEGMENT)
    position = tag & _POSITION_BITS
    slot = np.int64(NOT_FOUND)
    for _ in range(SEGMENT):
        word = index.words[base + position]
        if word == _ZERO:
            break
        if word >> _HALF == tag:
            slot = np.int64(word & _REFERENCE_BITS) - 1
            break
        position = (position + _ONE) & _POSITION_BITS
    return slot


@compiled_inline
def find(index: Any, records: Any, key: Any) -> Any:
    """Slot of the record with this id in ``records``, or `NOT_FOUND`."""
    tag = _hash(key)
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    slot = np.int64(NOT_FOUND)
    searching = True
    while searching:
        base = np.uint64(segment * SEGMENT)
        position = tag & _POSITION_BITS
        for _ in range(SEGMENT):
            word = index.words[base + position]
            if word == _ZERO:
                break
            if word >> _HALF == tag:
                found = np.int64(word & _REFERENCE_BITS) - 1
                if records[found].id == key:
                    slot = found
                    searching = False
                    break
            position = (position + _ONE) & _POSITION_BITS
        if searching:
            segment = np.int64(index.segments[segment, _NEXT])
            searching = segment != 0
    return slot


@compiled_inline
def _place(words: Any, base: Any, word: Any) -> None:
    """Put a word at its place in a segment that has room."""
    position = (word >> _HALF) & _POSITION_BITS
    while words[base + position] != _ZERO:
        position = (position + _ONE) & _POSITION_BITS
    words[base + position] = word


@compiled
def _split(index: Any, segment: Any) -> None:
    """Move the upper half of a segment's hash range into a new segment."""
    header, directory, segments, words = index
    depth = np.int64(segments[segment, _LOCAL_DEPTH])
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
        words[position] = words[base + np.uint64(position)]
        words[base + np.uint64(position)] = _ZERO
    for position in range(SEGMENT):
        word = words[position]
        if word != _ZERO:
            first = word >> _HALF
            if (first >> bit) & _ONE:
                _place(words, np.uint64(sibling * SEGMENT), word)
            else:
                _place(words, base, word)
                used += 1
    segments[sibling, _USED] = segments[segment, _USED] - used
    segments[segment, _USED] = used
    # the directory entries of the old segment are those that share its depth's top bits; the upper half moves
    free = header[_DEPTH] - depth - 1
    prefix = np.int64(first >> (bit + _ONE))
    start = ((prefix << 1) | 1) << free
    for entry in range(start, start + (1 << free)):
        directory[entry] = sibling


@compiled
def _room(index: Any, tag: Any) -> Any:
    """A segment that can take one more word of this hash: splits full ones, chains those that cannot be split."""
    while True:
        segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
        if (
            index.segments[segment, _USED] < FULL
            or index.segments[segment, _LOCAL_DEPTH] == MAX_DEPTH
            or index.header[_SEGMENTS] >= index.header[_MOST_SEGMENTS]
        ):
            break
        _split(index, segment)
    while index.segments[segment, _USED] == SEGMENT:
        if index.segments[segment, _NEXT] == 0:
            index.segments[segment, _NEXT] = index.header[_SEGMENTS]
            index.header[_SEGMENTS] += 1
        segment = np.int64(index.segments[segment, _NEXT])
    return segment


@compiled_inline
def insert(index: Any, key: Any, slot: Any) -> None:
    """Add an id that is not in the index."""
    tag = _hash(key)
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    if index.segments[segment, _USED] >= FULL:
        segment = _room(index, tag)
    index.segments[segment, _USED] += 1
    _place(index.words, np.uint64(segment * SEGMENT), tag << _HALF | (np.uint64(slot) + _ONE))


@compiled
def remove(index: Any, key: Any, slot: Any) -> None:
    """Take out the id of the record in ``slot``, closing the gap it leaves; nothing if it is not there."""
    tag = _hash(key)
    target = tag << _HALF | (np.uint64(slot) + _ONE)
    segment = np.int64(index.directory[tag >> (_HALF - np.uint64(index.header[_DEPTH]))])
    searching = True
    while searching:
        base = np.uint64(segment * SEGMENT)
        hole = tag & _POSITION_BITS
        for _ in range(SEGMENT):
            word = index.words[base + hole]
            if word == target or word == _ZERO:  # noqa: SIM109 - a tuple test compiles to slower code
                break
            hole = (hole + _ONE) & _POSITION_BITS
        if index.words[base + hole] == target:
            index.segments[segment, _USED] -= 1
            position = hole
            for _ in range(SEGMENT - 1):
                position = (position + _ONE) & _POSITION_BITS
                word = index.words[base + position]
                if word == _ZERO:
                    break
                home = (word >> _HALF) & _POSITION_BITS
                # the word may move back into the hole unless its home lies between the hole and itself
                if ((position - home) & _POSITION_BITS) >= ((position - hole) & _POSITION_BITS):
                    index.words[base + hole] = word
                    hole = position
            index.words[base + hole] = _ZERO
            searching = False
        else:
            segment = np.int64(index.segments[segment, _NEXT])
            searching = segment != 0
