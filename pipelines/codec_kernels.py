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

# Opcodes. `word` is the first destination word in the row; `limits` are inclusive.
LONG = 0  # a minimum, b maximum, c most bytes on the wire (5 for int)
U128 = 1  # unsigned decimal on bytes: a, b low and high word of the maximum
U64 = 2  # the same in one word: a maximum
ENUM = 3  # a number of the writer's symbols, b offset of the symbol map in `tables` or -1 when they are the same
BOOLEAN = 4
STRING = 5
BYTES = 6
DOUBLE = 7
FLOAT = 8
FIXED = 9  # a size in bytes
FIXED_DECIMAL = 10  # a, b maximum, c size in bytes, d words (1 or 2)
NULLABLE = 11  # word says whether it is set (-1: the reader has no null), a branch of null; skips the next operation
SET = 12  # a value
SET_TEXT = 13  # a offset among the constants, b length
LONG_AS_DOUBLE = 14  # a: 1 when the reader's field is a float, c most bytes on the wire
SKIP_VARINT = 15
SKIP_BYTES = 16  # length and bytes
SKIP_FIXED = 17  # a size in bytes

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


@njit(nogil=True, cache=True)
def _load64(buffer: Any, at: Any) -> Any:
    """The 8 bytes from ``at`` as a big-endian number; the caller has tested at + 8 <= end."""
    return (
        np.uint64(buffer[at]) << np.uint64(56)
        | np.uint64(buffer[at + 1]) << np.uint64(48)
        | np.uint64(buffer[at + 2]) << np.uint64(40)
        | np.uint64(buffer[at + 3]) << np.uint64(32)
        | np.uint64(buffer[at + 4]) << np.uint64(24)
        | np.uint64(buffer[at + 5]) << np.uint64(16)
        | np.uint64(buffer[at + 6]) << np.uint64(8)
        | np.uint64(buffer[at + 7])
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
def _decimal(buffer: Any, start: Any, stop: Any, end: Any, limit_low: Any, limit_high: Any) -> Any:
    """(low word, high word, status) of an unsigned big-endian two's complement number in bytes [start, stop)."""
    zero = np.uint64(0)
    if start >= stop:
        return zero, zero, np.int64(BAD_DECIMAL)
    if buffer[start] >= 128:
        return zero, zero, np.int64(OUT_OF_RANGE)
    at = start
    while at < stop and buffer[at] == 0:
        at += 1
    length = stop - at
    if length > 16:
        return zero, zero, np.int64(OUT_OF_RANGE)
    if length > 8:
        low = _load64(buffer, stop - 8)
        high = _load_big_endian(buffer, at, length - 8, end)
    else:
        low = _load_big_endian(buffer, at, length, end)
        high = zero
    if high > limit_high or (high == limit_high and low > limit_low):
        return zero, zero, np.int64(OUT_OF_RANGE)
    return low, high, np.int64(0)


@njit(nogil=True, cache=True)
def _length(buffer: Any, position: Any, end: Any) -> Any:
    """(length, position after) of a string or bytes that fit what is left."""
    length, after = _varint(buffer, position, end, 10)
    if after < 0:
        return length, after
    if length < 0:
        return length, np.int64(NEGATIVE_LENGTH)
    if length > end - after:
        return length, np.int64(TRUNCATED)
    return length, after


@njit(nogil=True, cache=True)
def decode_fields(
    buffer: Any, position: Any, end: Any, program: Any, start: Any, stop: Any, tables: Any, rows: Any, row: Any
) -> Any:
    """Runs operations [start, stop) from ``position`` into ``rows[row]``.

    Returns (status, position): the position after the last field, or of the field that is wrong.
    """
    step = start
    while step < stop:
        opcode = program[step, 0]
        word = program[step, 1]
        if opcode == LONG:
            value, after = _varint(buffer, position, end, program[step, 4])
            if after < 0:
                return after, position
            if value < program[step, 2] or value > program[step, 3]:
                return np.int64(OUT_OF_RANGE), position
            rows[row, word] = value
            position = after
        elif opcode in (U128, U64):
            length, after = _length(buffer, position, end)
            if after < 0:
                return after, position
            low, high, status = _decimal(
                buffer, after, after + length, end, np.uint64(program[step, 2]), np.uint64(program[step, 3])
            )
            if status < 0:
                return status, position
            rows[row, word] = np.int64(low)
            if opcode == U128:
                rows[row, word + 1] = np.int64(high)
            position = after + length
        elif opcode == ENUM:
            value, after = _varint(buffer, position, end, 5)
            if after < 0:
                return after, position
            if value < 0 or value >= program[step, 2]:
                return np.int64(BAD_ENUM), position
            if program[step, 3] >= 0:
                value = tables[program[step, 3] + value]
                if value < 0:
                    return np.int64(BAD_ENUM), position
            rows[row, word] = value
            position = after
        elif opcode in (STRING, BYTES):
            length, after = _length(buffer, position, end)
            if after < 0:
                return after, position
            if opcode == STRING and not is_utf8(buffer, after, after + length):
                return np.int64(BAD_UTF8), position
            rows[row, word] = after << 32 | length
            position = after + length
        elif opcode == NULLABLE:
            branch, after = _varint(buffer, position, end, 10)
            if after < 0:
                return after, position
            if branch != 0 and branch != 1:
                return np.int64(BAD_BRANCH), position
            if branch == program[step, 2]:
                if word < 0:
                    return np.int64(BAD_BRANCH), position
                step += 1
            elif word > 0:
                rows[row, word] = 1
            position = after
        elif opcode == BOOLEAN:
            if position >= end:
                return np.int64(TRUNCATED), position
            if buffer[position] > 1:
                return np.int64(BAD_BOOLEAN), position
            rows[row, word] = np.int64(buffer[position])
            position += 1
        elif opcode == DOUBLE:
            if end - position < 8:
                return np.int64(TRUNCATED), position
            bits = np.uint64(0)
            for offset in range(8):
                bits |= np.uint64(buffer[position + offset]) << np.uint64(8 * offset)
            rows[row, word] = np.int64(bits)
            position += 8
        elif opcode == FLOAT:
            if end - position < 4:
                return np.int64(TRUNCATED), position
            bits = np.uint64(0)
            for offset in range(4):
                bits |= np.uint64(buffer[position + offset]) << np.uint64(8 * offset)
            rows[row, word] = np.float64(np.uint32(bits).view(np.float32)).view(np.int64)
            position += 4
        elif opcode == FIXED:
            size = program[step, 2]
            if size > end - position:
                return np.int64(TRUNCATED), position
            for offset in range(0, size, 8):
                bits = np.uint64(0)
                for byte in range(min(8, size - offset)):
                    bits |= np.uint64(buffer[position + offset + byte]) << np.uint64(8 * byte)
                rows[row, word + offset // 8] = np.int64(bits)
            position += size
        elif opcode == FIXED_DECIMAL:
            size = program[step, 4]
            if size > end - position:
                return np.int64(TRUNCATED), position
            low, high, status = _decimal(
                buffer, position, position + size, end, np.uint64(program[step, 2]), np.uint64(program[step, 3])
            )
            if status < 0:
                return status, position
            rows[row, word] = np.int64(low)
            if program[step, 5] == 2:
                rows[row, word + 1] = np.int64(high)
            position += size
        elif opcode == SET:
            rows[row, word] = program[step, 2]
        elif opcode == SET_TEXT:
            rows[row, word] = (end + program[step, 2]) << 32 | program[step, 3]
        elif opcode == LONG_AS_DOUBLE:
            value, after = _varint(buffer, position, end, program[step, 4])
            if after < 0:
                return after, position
            number = np.float64(value)
            if program[step, 2] == 1:
                number = np.float64(np.float32(value))
            rows[row, word] = np.float64(number).view(np.int64)
            position = after
        elif opcode == SKIP_VARINT:
            value, after = _varint(buffer, position, end, 10)
            if after < 0:
                return after, position
            position = after
        elif opcode == SKIP_BYTES:
            length, after = _length(buffer, position, end)
            if after < 0:
                return after, position
            position = after + length
        else:  # SKIP_FIXED
            if program[step, 2] > end - position:
                return np.int64(TRUNCATED), position
            position += program[step, 2]
        step += 1
    return np.int64(0), position


@njit(nogil=True, cache=True)
def decode_frame(
    buffer: Any,
    end: Any,
    program: Any,
    branches: Any,
    tables: Any,
    header_start: Any,
    events_at: Any,
    header_stop: Any,
    is_union: Any,
    least_event_bytes: Any,
    most_events: Any,
    row_words: Any,
    header_words: Any,
) -> Any:
    """Decodes the frame in bytes [0, end) of ``buffer``; what lies behind are constants that defaults point to.

    ``branches[b]`` is (kind or -1, first operation, last + 1) of the writer's branch b. Returns (status, position,
    header int64 (1, header_words), rows int64 (events, row_words)).
    """
    header = np.zeros((1, header_words), np.int64)
    rows = np.zeros((0, row_words), np.int64)
    status, position = decode_fields(
        buffer, np.int64(0), end, program, header_start, events_at, tables, header, np.int64(0)
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
        if count > most_events - events:
            return np.int64(TOO_LARGE), position, header, rows
        if least_event_bytes > 0 and count > (end - after) // least_event_bytes:
            return np.int64(BAD_COUNT), position, header, rows
        position = after
        if events + count > rows.shape[0]:
            # Doubling keeps many small blocks from copying quadratically.
            capacity = events + count if events == 0 else max(events + count, min(2 * events, most_events))
            larger = np.zeros((capacity, row_words), np.int64)
            larger[:events] = rows[:events]
            rows = larger
        for event in range(events, events + count):
            branch = np.int64(0)
            if is_union:
                branch, after = _varint(buffer, position, end, 10)
                if after < 0:
                    return after, position, header, rows
                if branch < 0 or branch >= branches.shape[0]:
                    return np.int64(BAD_BRANCH), position, header, rows
                if branches[branch, 0] < 0:
                    return np.int64(UNKNOWN_EVENT_TYPE), position, header, rows
                position = after
            rows[event, 0] = branches[branch, 0]
            status, position = decode_fields(
                buffer, position, end, program, branches[branch, 1], branches[branch, 2], tables, rows, event
            )
            if status < 0:
                return status, position, header, rows
        if block_end >= 0 and position != block_end:
            return np.int64(BAD_BLOCK_SIZE), position, header, rows
        events += count
    status, position = decode_fields(
        buffer, position, end, program, events_at, header_stop, tables, header, np.int64(0)
    )
    if status < 0:
        return status, position, header, rows
    if position != end:
        return np.int64(TRAILING_BYTES), position, header, rows
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
    out[position] = np.uint8(value >> np.uint64(56))
    out[position + 1] = np.uint8(value >> np.uint64(48) & np.uint64(255))
    out[position + 2] = np.uint8(value >> np.uint64(40) & np.uint64(255))
    out[position + 3] = np.uint8(value >> np.uint64(32) & np.uint64(255))
    out[position + 4] = np.uint8(value >> np.uint64(24) & np.uint64(255))
    out[position + 5] = np.uint8(value >> np.uint64(16) & np.uint64(255))
    out[position + 6] = np.uint8(value >> np.uint64(8) & np.uint64(255))
    out[position + 7] = np.uint8(value & np.uint64(255))


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
def encode_fields(out: Any, position: Any, program: Any, start: Any, stop: Any, rows: Any, row: Any, heap: Any) -> Any:
    """Runs operations [start, stop) from ``rows[row]`` into ``out``.

    Returns (status, position), or (status, operation) of the field whose value does not fit its schema.
    """
    step = start
    while step < stop:
        opcode = program[step, 0]
        word = program[step, 1]
        value = rows[row, word]
        if opcode == LONG:
            if value < program[step, 2] or value > program[step, 3]:
                return np.int64(OUT_OF_RANGE), step
            position = _put_varint(out, position, value)
        elif opcode == U128:
            low = np.uint64(value)
            high = np.uint64(rows[row, word + 1])
            limit = np.uint64(program[step, 3])
            if high > limit or (high == limit and low > np.uint64(program[step, 2])):
                return np.int64(OUT_OF_RANGE), step
            position = _put_decimal(out, position, low, high)
        elif opcode == U64:
            low = np.uint64(value)
            if low > np.uint64(program[step, 2]):
                return np.int64(OUT_OF_RANGE), step
            position = _put_decimal(out, position, low, np.uint64(0))
        elif opcode == ENUM:
            if value < 0 or value >= program[step, 2]:
                return np.int64(BAD_ENUM), step
            position = _put_varint(out, position, value)
        elif opcode in (STRING, BYTES):
            offset = value >> 32
            length = value & np.int64(0xFFFFFFFF)
            if opcode == STRING and not is_utf8(heap, offset, offset + length):
                return np.int64(BAD_UTF8), step
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
                return np.int64(BAD_BRANCH), step
        elif opcode == BOOLEAN:
            if value != 0 and value != 1:
                return np.int64(BAD_BOOLEAN), step
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
                return np.int64(OUT_OF_RANGE), step
            single = np.uint64(np.float32(number).view(np.uint32))
            for offset in range(4):
                out[position + offset] = np.uint8(single >> np.uint64(8 * offset) & np.uint64(255))
            position += 4
        elif opcode == FIXED:
            size = program[step, 2]
            for offset in range(size):
                bits = np.uint64(rows[row, word + offset // 8])
                out[position + offset] = np.uint8(bits >> np.uint64(8 * (offset % 8)) & np.uint64(255))
            position += size
        else:  # FIXED_DECIMAL
            low = np.uint64(value)
            high = np.uint64(0)
            if program[step, 5] == 2:
                high = np.uint64(rows[row, word + 1])
            limit = np.uint64(program[step, 3])
            if high > limit or (high == limit and low > np.uint64(program[step, 2])):
                return np.int64(OUT_OF_RANGE), step
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
        step += 1
    return np.int64(0), position


@njit(nogil=True, cache=True)
def encode_frame(
    program: Any,
    branches: Any,
    header_start: Any,
    events_at: Any,
    header_stop: Any,
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
    status, position = encode_fields(
        out, np.int64(0), program, header_start, events_at, header, np.int64(0), header_heap
    )
    if status < 0:
        return status, none, position, out[:0]
    if rows.shape[0] > 0:
        position = _put_varint(out, position, np.int64(rows.shape[0]))
    for row in range(rows.shape[0]):
        kind = rows[row, 0]
        if is_union:
            position = _put_varint(out, position, kind)
        status, position = encode_fields(out, position, program, branches[kind, 1], branches[kind, 2], rows, row, heap)
        if status < 0:
            return status, np.int64(row), position, out[:0]
    position = _put_varint(out, position, np.int64(0))
    status, position = encode_fields(out, position, program, events_at, header_stop, header, np.int64(0), header_heap)
    if status < 0:
        return status, none, position, out[:0]
    return np.int64(0), none, none, out[:position]
