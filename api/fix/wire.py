"""FIX tag=value messages as bytes, and back.

`Framer` cuts a stream of bytes by BodyLength and CheckSum. What is garbled (no such length, a wrong sum) is skipped, as
the standard asks: the sequence number then shows the gap, and the message is sent again. Text is Latin-1, so that any
byte can be read. Repeating groups are not understood: of a tag that comes twice the first value counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = [
    "BEGIN_STRING", "SIDES", "SIDE_CODES", "Fields", "Framer", "Message", "encode", "format_time", "parse_time",
]  # fmt: skip

BEGIN_STRING: Final = "FIX.4.4"
SOH: Final = b"\x01"
MAX_BODY_BYTES: Final = 65_536
MAX_HEADER_BYTES: Final = 32
TRAILER_BYTES: Final = 7
_DATA_TAGS: Final = {
    90: 91, 93: 89, 95: 96, 212: 213, 348: 349, 350: 351, 352: 353, 354: 355, 356: 357, 358: 359, 360: 361, 362: 363,
    364: 365, 445: 446, 618: 619, 621: 622,
}  # fmt: skip
"""A length's tag, and the tag of the data that follows it and may hold any byte."""
_HEADER_TAGS: Final = frozenset({8, 9, 35, 49, 56, 34, 43, 52, 97, 122, 10})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

SIDES: Final = {"1": "BUY", "2": "SELL"}
"""Side(54), and what the events call it."""
SIDE_CODES: Final = {name: code for code, name in SIDES.items()}

Fields = Sequence[tuple[int, str | int]]
"""Tags and values of a body, in order."""


class Message:
    """A message as read. ``flaw`` is None, or (tag, SessionRejectReason, text) of the first field that is no field."""

    __slots__ = ("flaw", "pairs", "values")

    def __init__(self, data: bytes) -> None:
        self.pairs: list[tuple[int, str]] = []
        self.flaw: tuple[int, int, str] | None = None
        start, data_tag, data_bytes = 0, 0, 0
        while start < len(data):
            equals = data.find(b"=", start)
            end = data.find(SOH, start)
            name = data[start:equals] if 0 <= equals < end else b""
            if not name.isdigit():
                self.flaw = self.flaw or (0, 0, f"{data[start:end][:20]!r} is not a field")
                start = end + 1
                continue
            tag = int(name[:9])
            if tag == data_tag and data[equals + 1 + data_bytes : equals + 2 + data_bytes] == SOH:
                end = equals + 1 + data_bytes
            value = data[equals + 1 : end].decode("latin-1")
            if not value:
                self.flaw = self.flaw or (tag, 4, "the field is empty")
            self.pairs.append((tag, value))
            data_tag = _DATA_TAGS.get(tag, 0)
            data_bytes = int(value) if data_tag and value.isdecimal() and len(value) < 7 else 0
            start = end + 1
        self.values: dict[int, str] = {}
        for tag, value in self.pairs:
            self.values.setdefault(tag, value)

    def get(self, tag: int, default: str = "") -> str:
        return self.values.get(tag, default)

    @property
    def type(self) -> str:
        return self.get(35)

    @property
    def sequence(self) -> int:
        """MsgSeqNum; -1 when it is missing or no number."""
        return number(self.get(34))

    @property
    def is_possible_duplicate(self) -> bool:
        return self.get(43) == "Y"


def number(value: str) -> int:
    """A number from 0 as FIX writes it; -1 for anything else."""
    return int(value) if value.isascii() and value.isdecimal() and len(value) <= 18 else -1


class Framer:
    """Cuts what `feed` is given into messages; keeps what is incomplete, at most a message."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.garbled = 0
        """Messages that were skipped."""

    def feed(self, data: bytes) -> Iterator[Message]:
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> Message | None:
        buffer = self._buffer
        while True:
            start = buffer.find(b"8=FIX")
            if start < 0:
                del buffer[: max(0, len(buffer) - 4)]
                return None
            del buffer[:start]
            header = buffer.find(SOH, buffer.find(SOH) + 1, MAX_HEADER_BYTES) if SOH in buffer else -1
            if header < 0 and len(buffer) < MAX_HEADER_BYTES:
                return None
            length = self._body_length(header)
            if length < 0:
                self._skip(5)
                continue
            end = header + 1 + length + TRAILER_BYTES
            if len(buffer) < end:
                return None
            trailer = bytes(buffer[end - TRAILER_BYTES : end])
            if trailer[:3] != b"10=" or trailer[-1:] != SOH or not trailer[3:6].isdigit():
                self._skip(5)
                continue
            if sum(buffer[: end - TRAILER_BYTES]) & 0xFF != int(trailer[3:6]):
                self._skip(end)
                continue
            message = Message(bytes(buffer[:end]))
            del buffer[:end]
            return message

    def _body_length(self, header: int) -> int:
        field = bytes(self._buffer[self._buffer.find(SOH) + 1 : header])
        if header < 0 or field[:2] != b"9=" or not field[2:].isdigit() or len(field) > 8:
            return -1
        length = int(field[2:])
        return length if length <= MAX_BODY_BYTES else -1

    def _skip(self, count: int) -> None:
        self.garbled += 1
        del self._buffer[:count]


def encode(
    msg_type: str,
    sender: str,
    target: str,
    sequence: int,
    sent_at: int,
    body: bytes,
    original_sent_at: int | None = None,
    *,
    possible_resend: bool = False,
) -> bytes:
    """A message; ``body`` is the fields after the header (`encode_body`). With ``original_sent_at`` it is one that is
    sent again: PossDupFlag and OrigSendingTime are set; ``possible_resend`` sets PossResend. Times in UTC
    microseconds."""
    again = "" if original_sent_at is None else f"43=Y\x01122={format_time(original_sent_at)}\x01"
    again += "97=Y\x01" if possible_resend else ""
    head = f"35={msg_type}\x0149={sender}\x0156={target}\x0134={sequence}\x01{again}52={format_time(sent_at)}\x01"
    content = head.encode("latin-1", "replace") + body
    data = b"8=%s\x019=%d\x01" % (BEGIN_STRING.encode(), len(content)) + content
    return data + b"10=%03d\x01" % (sum(data) & 0xFF)


def encode_body(fields: Fields) -> bytes:
    """Fields after the header; a value's separators are replaced, so that text cannot make fields."""
    return b"".join(
        b"%d=%s\x01" % (tag, str(value).replace("\x01", " ").encode("latin-1", "replace"))
        for tag, value in fields
        if value != "" and tag not in _HEADER_TAGS
    )


def format_time(micros: int) -> str:
    """UTCTimestamp with milliseconds."""
    return (_EPOCH + timedelta(microseconds=micros)).strftime("%Y%m%d-%H:%M:%S.%f")[:-3]


def parse_time(value: str) -> int:
    """UTC microseconds of a UTCTimestamp, with up to nine digits of a second's fraction; -1 for anything else."""
    whole, _, fraction = value.partition(".")
    try:
        at = datetime.strptime(whole, "%Y%m%d-%H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return -1
    if fraction and not (fraction.isascii() and fraction.isdecimal() and len(fraction) <= 9):
        return -1
    return (at - _EPOCH) // timedelta(microseconds=1) + int((fraction + "000000")[:6])
