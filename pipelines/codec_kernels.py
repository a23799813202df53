"""The codec's inner loops: two small interpreters that run a schema's program over bytes and rows.

A program is an int64 array, one operation per line: ``opcode, word, a, b, c, d``. `pipelines.codec` compiles it from
the .avsc, so these functions are the same for every schema and are compiled once per machine (Numba's disk cache).

Compiled code has no bounds checks, so the rules are kept here by hand: a position is an int64 in [0, end]; nothing is
read at a position before ``position < end`` (or ``length <= end - position``) was tested; a length or a count is
compared with what is left before it is used; nothing is computed that could overflow. The decoder's functions return
the position after what they read, or a negative status, and never raise. The encoder writes into a buffer that
`encoded_bound` made large enough, with SLACK bytes to spare because it stores numbers eight bytes at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# Opcodes. `word` is the first destination word in the row; limits are inclusive. They are ordered by what lies first on
# the wire, which the decoder reads in one place: a varint; a varint that is the length of what follows; nothing; a
# number of bytes that the schema fixes. Operand c is the most bytes of the varint (5 for int), or that number.
LONG = 0  # a minimum, b maximum
ENUM = 1  # a number of the writer's symbols, b offset of the symbol map in `tables` or -1 when they are the same
NULLABLE = 2  # word says whether it is set (-1: the reader has no null), a branch of null; skips the next operation
LONG_AS_DOUBLE = 3  # a minimum, b maximum, d 1 when the reader's field is a float
SKIP_VARINT = 4
U128 = 5  # unsigned decimal on bytes: a, b low and high word of the maximum
U64 = 6  # the same in one word
STRING = 7
BYTES = 8
SKIP_BYTES = 9
SET = 10  # a value
SET_TEXT = 11  # a offset among the constants, b length
BOOLEAN = 12
DOUBLE = 13
FLOAT = 14
FIXED = 15
FIXED_DECIMAL = 16  # a, b maximum, d words (1 or 2)
SKIP_FIXED = 17

FIRST_WITH_LENGTH = U128
FIRST_WITHOUT_VARINT = SET
FIRST_WITH_SIZE = BOOLEAN

OPERATION_WORDS = 6

# Statuses. Zero is success; `pipelines.codec.REASONS` names them.
TRUNCATED = -1
BAD_VARINT = -2
BAD_COUNT = -3
NEGATIVE_LENGTH = -4
BAD_UTF8 = -5
BAD_ENUM = -6
BAD_BRANCH = -7
BAD_BOOLEAN = -8
OUT_OF_RANGE = -9
TOO_LARGE = -10
TRAILING_BYTES = -11
UNKNOWN_EVENT_TYPE = -12
BAD_DECIMAL = -13
BAD_BLOCK_SIZE = -14
BAD_KIND = -15
BAD_TEXT = -16

SLACK = 16
"""Bytes that the encoder may write beyond the last one it counts."""

_BYTE = np.uint64(8)
_ASCII = np.uint64(0x8080808080808080)


@njit(nogil=True, cache=True, inline="always")
def _load64(buffer: Any, at: Any) -> Any:
    """The 8 bytes from ``at`` as a big-endian number; the caller has tested at + 8 <= end.

    Unsigned indices spare Numba's test for negative ones, and LLVM then makes this one load.
    """
    first = np.uint64(at)
    return (
        np.uint64(buffer[first]) << np.uint64(56)
        | np.uint64(buffer[first + np.uint64(1)]) << np.uint64(48)
        | np.uint64(buffer[first + np.uint64(2)]) << np.uint64(40)
        | np.uint64(buffer[first + np.uint64(3)]) << np.uint64(32)
        | np.uint64(buffer[first + np.uint64(4)]) << np.uint64(24)
        | np.uint64(buffer[first + np.uint64(5)]) << np.uint64(16)
        | np.uint64(buffer[first + np.uint64(6)]) << np.uint64(8)
        | np.uint64(buffer[first + np.uint64(7)])
    )


@njit(nogil=True, cache=True)
def _load_big_endian(buffer: Any, at: Any, length: Any, end: Any) -> Any:
    """``length`` bytes (0 to 8) from ``at`` as a number; the caller has tested at + length <= end."""
    if length == 0:
        return np.uint64(0)
    if at + 8 <= end:
        return _load64(buffer, at) >> np.uint64(64 - 8 * length)
    value = np.uint64(0)
    for offset in range(length):
        value = value << _BYTE | np.uint64(buffer[at + offset])
    return value


@njit(nogil=True, cache=True)
def _varint(buffer: Any, position: Any, end: Any, most: Any) -> Any:
    """(value, position after) of a zigzag varint of at most ``most`` bytes; the position is a status when negative."""
    if position >= end:
        return np.int64(0), np.int64(TRUNCATED)
    byte = np.uint64(buffer[position])
    if byte < np.uint64(128):
        return np.int64(byte >> np.uint64(1)) ^ -np.int64(byte & np.uint64(1)), position + 1
    raw = byte & np.uint64(127)
    for count in range(1, most):
        if position + count >= end:
            return np.int64(0), np.int64(TRUNCATED)
        byte = np.uint64(buffer[position + count])
        if count == 9 and byte > np.uint64(1):
            break
        raw |= (byte & np.uint64(127)) << np.uint64(7 * count)
        if byte < np.uint64(128):
            return np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1)), position + count + 1
    return np.int64(0), np.int64(BAD_VARINT)


@njit(nogil=True, cache=True)
def is_utf8(buffer: Any, start: Any, stop: Any) -> Any:
    """Whether bytes [start, stop) are UTF-8 as Unicode defines it (no overlong form, no surrogate)."""
    at = start
    while at < stop:
        if at + 8 <= stop and _load64(buffer, at) & _ASCII == np.uint64(0):
            at += 8
            continue
        first = np.int64(buffer[at])
        if first < 0x80:
            at += 1
            continue
        if first < 0xC2 or first > 0xF4:
            return False
        if first < 0xE0:
            length = 2
        elif first < 0xF0:
            length = 3
        else:
            length = 4
        if length > stop - at:
            return False
        second = np.int64(buffer[at + 1])
        lowest = 0x80
        highest = 0xBF
        if first == 0xE0:
            lowest = 0xA0
        elif first == 0xED:
            highest = 0x9F
        elif first == 0xF0:
            lowest = 0x90
        elif first == 0xF4:
            highest = 0x8F
        if second < lowest or second > highest:
            return False
        for offset in range(2, length):
            if np.int64(buffer[at + offset]) & 0xC0 != 0x80:
                return False
        at += length
    return True


@njit(nogil=True, cache=True)
def decode_records(
    buffer: Any,
    position: Any,
    end: Any,
    program: Any,
    branches: Any,
    tables: Any,
    is_union: Any,
    rows: Any,
    first: Any,
    last: Any,
) -> Any:
    """Reads records from ``position`` into ``rows[first:last]``; one function, so that nothing is paid per record.

    Returns (status, position): the position after the last record, or of the field that is wrong.
    """
    zero = np.uint64(0)
    for row in range(first, last):
        branch = np.int64(0)
        if is_union:
            branch, after = _varint(buffer, position, end, 10)
            if after < 0:
                return after, position
            if branch < 0 or branch >= branches.shape[0]:
                return np.int64(BAD_BRANCH), position
            if branches[branch, 0] < 0:
                return np.int64(UNKNOWN_EVENT_TYPE), position
            position = after
        rows[row, 0] = branches[branch, 0]
        step = branches[branch, 1]
        stop = branches[branch, 2]
        while step < stop:
            opcode = program[step, 0]
            word = program[step, 1]
            value = np.int64(0)
            after = position
            if opcode < FIRST_WITHOUT_VARINT:
                # The first byte is read here: a call costs more than most numbers have bytes.
                if position >= end:
                    return np.int64(TRUNCATED), position
                byte = np.uint64(buffer[position])
                if byte < np.uint64(128):
                    value = np.int64(byte >> np.uint64(1)) ^ -np.int64(byte & np.uint64(1))
                    after = position + 1
                else:
                    value, after = _varint(buffer, position, end, program[step, 4])
                    if after < 0:
                        return after, position
                if opcode >= FIRST_WITH_LENGTH:
                    if value < 0:
                        return np.int64(NEGATIVE_LENGTH), position
                    if value > end - after:
                        return np.int64(TRUNCATED), position
            elif opcode >= FIRST_WITH_SIZE:
                value = program[step, 4]
                if value > end - position:
                    return np.int64(TRUNCATED), position

            if opcode == LONG:
                if value < program[step, 2] or value > program[step, 3]:
                    return np.int64(OUT_OF_RANGE), position
                rows[row, word] = value
                position = after
            elif opcode in (U128, U64, FIXED_DECIMAL):
                stop_at = after + value
                if value == 0:
                    return np.int64(BAD_DECIMAL), position
                if buffer[after] >= 128:
                    return np.int64(OUT_OF_RANGE), position
                while after < stop_at and buffer[after] == 0:
                    after += 1
                length = stop_at - after
                low = zero
                high = zero
                if length > 16:
                    return np.int64(OUT_OF_RANGE), position
                if length > 8:
                    low = _load64(buffer, stop_at - 8)
                    high = _load_big_endian(buffer, after, length - 8, end)
                elif length > 0:
                    low = _load_big_endian(buffer, after, length, end)
                limit = np.uint64(program[step, 3])
                if high > limit or (high == limit and low > np.uint64(program[step, 2])):
                    return np.int64(OUT_OF_RANGE), position
                rows[row, word] = np.int64(low)
                if opcode == U128 or (opcode == FIXED_DECIMAL and program[step, 5] == 2):
                    rows[row, word + 1] = np.int64(high)
                position = stop_at
            elif opcode == ENUM:
                if value < 0 or value >= program[step, 2]:
                    return np.int64(BAD_ENUM), position
                if program[step, 3] >= 0:
                    value = tables[program[step, 3] + value]
                    if value < 0:
                        return np.int64(BAD_ENUM), position
                rows[row, word] = value
                position = after
            elif opcode in (STRING, BYTES):
                if opcode == STRING and not is_utf8(buffer, after, after + value):
                    return np.int64(BAD_UTF8), position
                rows[row, word] = after << 32 | value
                position = after + value
            elif opcode == NULLABLE:
                if value != 0 and value != 1:
                    return np.int64(BAD_BRANCH), position
                if value == program[step, 2]:
                    if word < 0:
                        return np.int64(BAD_BRANCH), position
                    step += 1
                elif word > 0:
                    rows[row, word] = 1
                position = after
            elif opcode == BOOLEAN:
                if buffer[position] > 1:
                    return np.int64(BAD_BOOLEAN), position
                rows[row, word] = np.int64(buffer[position])
                position += 1
            elif opcode == DOUBLE:
                bits = zero
                for offset in range(8):
                    bits |= np.uint64(buffer[position + offset]) << np.uint64(8 * offset)
                rows[row, word] = np.int64(bits)
                position += 8
            elif opcode == FLOAT:
                bits = zero
                for offset in range(4):
                    bits |= np.uint64(buffer[position + offset]) << np.uint64(8 * offset)
                rows[row, word] = np.float64(np.uint32(bits).view(np.float32)).view(np.int64)
                position += 4
            elif opcode == FIXED:
                for offset in range(program[step, 4]):
                    bits = np.uint64(buffer[position + offset]) << np.uint64(8 * (offset % 8))
                    rows[row, word + offset // 8] |= np.int64(bits)
                position += value
            elif opcode == SET:
                rows[row, word] = program[step, 2]
            elif opcode == SET_TEXT:
                rows[row, word] = (end + program[step, 2]) << 32 | program[step, 3]
            elif opcode == LONG_AS_DOUBLE:
                if value < program[step, 2] or value > program[step, 3]:
                    return np.int64(OUT_OF_RANGE), position
                number = np.float64(value)
                if program[step, 5] == 1:
                    number = np.float64(np.float32(value))
                rows[row, word] = np.float64(number).view(np.int64)
                position = after
            elif opcode == SKIP_VARINT:
                position = after
            else:  # SKIP_BYTES, SKIP_FIXED
                position = after + value
            step += 1
    return np.int64(0), position


@njit(nogil=True, cache=True)
def decode_frame(
    buffer: Any,
    end: Any,
    program: Any,
    branches: Any,
    tables: Any,
    header_branches: Any,
    is_union: Any,
    least_event_bytes: Any,
    most_events: Any,
    row_words: Any,
    header_words: Any,
) -> Any:
    """Decodes the frame in bytes [0, end) of ``buffer``; what lies behind are constants that defaults point to.

    ``branches[b]`` is (kind or -1, first operation, last + 1) of the writer's branch b; the header is two such
    records, one before and one behind the events, into the same row. Returns (status, position, header int64
    (1, header_words), rows int64 (events, row_words)).
    """
    header = np.zeros((1, header_words), np.int64)
    rows = np.zeros((0, row_words), np.int64)
    status, position = decode_records(
        buffer, np.int64(0), end, program, header_branches[:1], tables, False, header, 0, 1
    )
    if status < 0:
        return status, position, header, rows
    events = np.int64(0)
    while True:
        count, after = _varint(buffer, position, end, 10)
        if after < 0:
            return after, position, header, rows
        if count == 0:
            position = after
            break
        block_end = np.int64(-1)
        if count < 0:
            count = -count  # the most negative number stays negative and is refused below
            size, after_size = _varint(buffer, after, end, 10)
            if after_size < 0:
                return after_size, after, header, rows
            if size < 0:
                return np.int64(NEGATIVE_LENGTH), after, header, rows
            if size > end - after_size:
                return np.int64(TRUNCATED), after, header, rows
            after = after_size
            block_end = after + size
        if count < 0:
            return np.int64(BAD_COUNT), position, header, rows
        if least_event_bytes > 0 and count > (end - after) // least_event_bytes:
            return np.int64(BAD_COUNT), position, header, rows
        if count > most_events - events:
            return np.int64(TOO_LARGE), position, header, rows
        position = after
        if events + count > rows.shape[0]:
            # Doubling keeps many small blocks from copying quadratically.
            capacity = events + count if events == 0 else max(events + count, min(2 * events, most_events))
            larger = np.zeros((capacity, row_words), np.int64)
            larger[:events] = rows[:events]
            rows = larger
        status, position = decode_records(
            buffer, position, end, program, branches, tables, is_union, rows, events, events + count
        )
        if status < 0:
            return status, position, header, rows
        if block_end >= 0 and position != block_end:
            return np.int64(BAD_BLOCK_SIZE), position, header, rows
        events += count
    status, position = decode_records(buffer, position, end, program, header_branches[1:], tables, False, header, 0, 1)
    if status < 0:
        return status, position, header, rows
    if position != end:
        return np.int64(TRAILING_BYTES), position, header, rows[:events]
    return np.int64(0), position, header, rows[:events]


@njit(nogil=True, cache=True)
def encoded_bound(rows: Any, fixed_bytes: Any, text_words: Any, text_starts: Any, heap_bytes: Any, limit: Any) -> Any:
    """(status, row, bytes that these rows need at most).

    ``fixed_bytes[kind]`` is the most that a kind needs without its texts, whose words are
    ``text_words[text_starts[kind]:text_starts[kind + 1]]``. Texts beyond ``limit`` together are too large.
    """
    bound = np.int64(0)
    texts = np.int64(0)
    for row in range(rows.shape[0]):
        kind = rows[row, 0]
        if kind < 0 or kind >= fixed_bytes.shape[0]:
            return np.int64(BAD_KIND), row, bound
        bound += fixed_bytes[kind]
        for at in range(text_starts[kind], text_starts[kind + 1]):
            value = rows[row, text_words[at]]
            offset = value >> 32
            length = value & np.int64(0xFFFFFFFF)
            if offset < 0 or offset > heap_bytes or length > heap_bytes - offset:
                return np.int64(BAD_TEXT), row, bound
            texts += length
            if texts > limit:
                return np.int64(TOO_LARGE), row, bound
    return np.int64(0), np.int64(-1), bound + texts


@njit(nogil=True, cache=True)
def _put_varint(out: Any, position: Any, value: Any) -> Any:
    raw = np.uint64(value << 1) ^ np.uint64(value >> 63)
    while raw >= np.uint64(128):
        out[position] = np.uint8(raw & np.uint64(127) | np.uint64(128))
        raw >>= np.uint64(7)
        position += 1
    out[position] = np.uint8(raw)
    return position + 1


@njit(nogil=True, cache=True)
def _store64(out: Any, position: Any, value: Any) -> None:
    """Writes 8 bytes, big-endian."""
    first = np.uint64(position)
    out[first] = np.uint8(value >> np.uint64(56))
    out[first + np.uint64(1)] = np.uint8(value >> np.uint64(48) & np.uint64(255))
    out[first + np.uint64(2)] = np.uint8(value >> np.uint64(40) & np.uint64(255))
    out[first + np.uint64(3)] = np.uint8(value >> np.uint64(32) & np.uint64(255))
    out[first + np.uint64(4)] = np.uint8(value >> np.uint64(24) & np.uint64(255))
    out[first + np.uint64(5)] = np.uint8(value >> np.uint64(16) & np.uint64(255))
    out[first + np.uint64(6)] = np.uint8(value >> np.uint64(8) & np.uint64(255))
    out[first + np.uint64(7)] = np.uint8(value & np.uint64(255))


@njit(nogil=True, cache=True)
def _signed_bytes(value: Any) -> Any:
    """Bytes of an unsigned 64-bit number in two's complement, 1 to 9."""
    length = 1
    rest = value
    if rest >> np.uint64(32) != np.uint64(0):
        rest >>= np.uint64(32)
        length += 4
    if rest >> np.uint64(16) != np.uint64(0):
        rest >>= np.uint64(16)
        length += 2
    if rest >> np.uint64(8) != np.uint64(0):
        rest >>= np.uint64(8)
        length += 1
    if rest >= np.uint64(128):
        length += 1
    return length


@njit(nogil=True, cache=True)
def _put_decimal(out: Any, position: Any, low: Any, high: Any) -> Any:
    """Writes length and shortest two's complement of an unsigned 128-bit number; touches up to 19 bytes."""
    if high == np.uint64(0):
        length = _signed_bytes(low)
        out[position] = np.uint8(2 * length)
        position += 1
        if length == 9:
            out[position] = np.uint8(0)
            _store64(out, position + 1, low)
        else:
            _store64(out, position, low << np.uint64(64 - 8 * length))
        return position + length
    above = _signed_bytes(high)
    out[position] = np.uint8(2 * (above + 8))
    position += 1
    if above == 9:
        out[position] = np.uint8(0)
        _store64(out, position + 1, high)
    else:
        _store64(out, position, high << np.uint64(64 - 8 * above))
    _store64(out, position + above, low)
    return position + above + 8


@njit(nogil=True, cache=True)
def encode_records(out: Any, position: Any, program: Any, branches: Any, is_union: Any, rows: Any, heap: Any) -> Any:
    """Writes every row as a record from ``position`` on.

    Returns (status, row, operation, position): row and operation tell the value that does not fit its schema.
    """
    for row in range(rows.shape[0]):
        kind = rows[row, 0]
        if is_union:
            position = _put_varint(out, position, kind)
        step = branches[kind, 1]
        stop = branches[kind, 2]
        while step < stop:
            opcode = program[step, 0]
            word = program[step, 1]
            value = rows[row, word]
            if opcode == LONG:
                if value < program[step, 2] or value > program[step, 3]:
                    return np.int64(OUT_OF_RANGE), row, step, position
                position = _put_varint(out, position, value)
            elif opcode in (U128, U64, FIXED_DECIMAL):
                low = np.uint64(value)
                high = np.uint64(0)
                if opcode == U128 or (opcode == FIXED_DECIMAL and program[step, 5] == 2):
                    high = np.uint64(rows[row, word + 1])
                limit = np.uint64(program[step, 3])
                if high > limit or (high == limit and low > np.uint64(program[step, 2])):
                    return np.int64(OUT_OF_RANGE), row, step, position
                if opcode == FIXED_DECIMAL:
                    size = program[step, 4]
                    for offset in range(size):
                        shift = size - 1 - offset
                        byte = np.uint64(0)
                        if shift < 8:
                            byte = low >> np.uint64(8 * shift) & np.uint64(255)
                        elif shift < 16:
                            byte = high >> np.uint64(8 * (shift - 8)) & np.uint64(255)
                        out[position + offset] = np.uint8(byte)
                    position += size
                else:
                    position = _put_decimal(out, position, low, high)
            elif opcode == ENUM:
                if value < 0 or value >= program[step, 2]:
                    return np.int64(BAD_ENUM), row, step, position
                position = _put_varint(out, position, value)
            elif opcode in (STRING, BYTES):
                offset = value >> 32
                length = value & np.int64(0xFFFFFFFF)
                if opcode == STRING and not is_utf8(heap, offset, offset + length):
                    return np.int64(BAD_UTF8), row, step, position
                position = _put_varint(out, position, length)
                out[position : position + length] = heap[offset : offset + length]
                position += length
            elif opcode == NULLABLE:
                if value == 0:
                    position = _put_varint(out, position, program[step, 2])
                    step += 1
                elif value == 1:
                    position = _put_varint(out, position, np.int64(1) - program[step, 2])
                else:
                    return np.int64(BAD_BRANCH), row, step, position
            elif opcode == BOOLEAN:
                if value != 0 and value != 1:
                    return np.int64(BAD_BOOLEAN), row, step, position
                out[position] = np.uint8(value)
                position += 1
            elif opcode == DOUBLE:
                bits = np.uint64(value)
                for offset in range(8):
                    out[position + offset] = np.uint8(bits >> np.uint64(8 * offset) & np.uint64(255))
                position += 8
            elif opcode == FLOAT:
                number = np.int64(value).view(np.float64)
                if np.isfinite(number) and abs(number) >= 3.4028235677973366e38:  # rounds to infinity in 32 bits
                    return np.int64(OUT_OF_RANGE), row, step, position
                single = np.uint64(np.float32(number).view(np.uint32))
                for offset in range(4):
                    out[position + offset] = np.uint8(single >> np.uint64(8 * offset) & np.uint64(255))
                position += 4
            else:  # FIXED
                size = program[step, 4]
                for offset in range(size):
                    bits = np.uint64(rows[row, word + offset // 8])
                    out[position + offset] = np.uint8(bits >> np.uint64(8 * (offset % 8)) & np.uint64(255))
                position += size
            step += 1
    return np.int64(0), np.int64(-1), np.int64(-1), position


@njit(nogil=True, cache=True)
def encode_frame(
    program: Any,
    branches: Any,
    header_branches: Any,
    is_union: Any,
    header: Any,
    header_heap: Any,
    rows: Any,
    heap: Any,
    bound: Any,
) -> Any:
    """Encodes a frame whose size is at most ``bound`` and whose kinds and texts `encoded_bound` has checked.

    Returns (status, row, operation, bytes): row is -1 for a header field.
    """
    out = np.empty(bound + SLACK, np.uint8)
    none = np.int64(-1)
    status, row, operation, position = encode_records(
        out, np.int64(0), program, header_branches[:1], False, header, header_heap
    )
    if status < 0:
        return status, none, operation, out[:0]
    if rows.shape[0] > 0:
        position = _put_varint(out, position, np.int64(rows.shape[0]))
        status, row, operation, position = encode_records(out, position, program, branches, is_union, rows, heap)
        if status < 0:
            return status, row, operation, out[:0]
    position = _put_varint(out, position, np.int64(0))
    status, row, operation, position = encode_records(
        out, position, program, header_branches[1:], False, header, header_heap
    )
    if status < 0:
        return status, none, operation, out[:0]
    return np.int64(0), none, none, out[:position]
