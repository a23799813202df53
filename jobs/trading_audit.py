"""The audit of trading: order records and the event trail as files that only the key's holder can write.

`export` reads one shard after the other from Kafka and writes a file per shard. Its first line names shard, format and
key id, every other line is a record. Each line ends in the HMAC-SHA256 of the line before's (32 zero bytes before the
first) and its own bytes, in hexadecimal after a tab: who has not the key cannot change, remove, add or swap a line and
keep the file valid, and a file cut short shows in the last line, which counts the records. `verify` needs file and key
only. Keys are in ``secrets/audit-keys.json`` of the data directory: id -> 32 bytes in hexadecimal; the newest (the
last) signs, all verify.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from infra.producer_keys import FrameVerifier
from infra.settings import Settings
from jobs.registry_reader import registry_reader
from jobs.topic_reader import TopicReader
from pipelines.catalogue import MATCHING_COMMANDS, MATCHING_REPORTS, Topic
from pipelines.errors import FrameError, StreambankError
from pipelines.frames import Frame
from pipelines.trading.audit import OrderEvent, OrderHistory
from pipelines.trading.phases import TradingPhases
from pipelines.wire import unwrap

__all__ = ["AuditError", "AuditKeys", "Verified", "order_events", "pair", "seal", "shard_events", "verify_file"]

GENESIS: Final = bytes(32)


class AuditError(StreambankError):
    """The audit cannot be made or trusted; the message says where."""


class AuditKeys:
    """The keys in ``path``; `signing` makes the file when there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def signing(self) -> tuple[str, bytes]:
        """Id and bytes of the newest key."""
        if not self._path.exists():
            self.rotate()
        name, value = list(self._all().items())[-1]
        return name, bytes.fromhex(value)

    def find(self, name: str) -> bytes:
        found = self._all().get(name)
        if found is None:
            raise AuditError(f"{self._path} has no key {name}; a file can be verified only with the key that sealed it")
        return bytes.fromhex(found)

    def rotate(self) -> str:
        """Add a key that seals from now on."""
        keys = self._all() if self._path.exists() else {}
        name = secrets.token_hex(4)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps({**keys, name: secrets.token_hex(32)}, indent=1), encoding="utf-8")
        fresh.replace(self._path)
        return name

    def _all(self) -> dict[str, str]:
        try:
            keys: dict[str, str] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AuditError(f"the audit keys {self._path} cannot be read: {error}") from error
        return keys


def pair(commands: Iterable[Frame], reports: Iterable[Frame]) -> Iterator[tuple[Frame, list[Frame]]]:
    """Each command frame with the report frames that answer it, both being in the order of their shard.

    Repeated report frames are dropped by their sequence. A command frame without an answer (a dead letter, or one that
    the job has not reached) is left out; reports without a command are an `AuditError`.
    """
    groups = _by_trace(reports)
    group = next(groups, None)
    for command in commands:
        if group is None:
            return
        if group[0] == command.trace:
            yield command, group[1]
            group = next(groups, None)
    if group is not None:
        raise AuditError(f"the reports of frame {group[0]} answer no command frame of the shard, or not in its order")


def _by_trace(reports: Iterable[Frame]) -> Iterator[tuple[str | None, list[Frame]]]:
    last, frames = 0, list[Frame]()
    for frame in reports:
        if frame.sequence <= last:
            continue
        if frame.sequence != last + 1:
            raise AuditError(f"report frame {frame.sequence} of shard {frame.shard} follows {last}: frames are missing")
        last = frame.sequence
        if frames and frame.trace != frames[0].trace:
            yield frames[0].trace, frames
            frames = []
        frames.append(frame)
    if frames:
        yield frames[0].trace, frames


def shard_events(settings: Settings, shard: int, *, with_phases: bool = False) -> Iterator[OrderEvent]:
    """All order events of a shard, from Kafka, up to the present end of both topics."""
    history = OrderHistory(shard, TradingPhases() if with_phases else None)
    with TopicReader(settings) as commands, TopicReader(settings) as reports:
        # the reports' end is taken first: what comes later may have no command in what is read
        ends = reports.bounds(MATCHING_REPORTS, shard)[1]
        for command, answers in pair(
            _frames(settings, commands, MATCHING_COMMANDS, shard, None),
            _frames(settings, reports, MATCHING_REPORTS, shard, ends),
        ):
            yield from history.feed(command, answers)


def _frames(settings: Settings, reader: TopicReader, topic: Topic, shard: int, end: int | None) -> Iterator[Frame]:
    read = registry_reader(settings)
    verifier = FrameVerifier(settings, topic)
    for record in reader.read(topic, shard, end=end):
        try:
            verifier.check(shard, record.offset, record.value or b"", record.signature)
            schema_id, body = unwrap(record.value)
            yield read(topic.name, schema_id).decode(body)
        except FrameError as error:
            if topic is MATCHING_COMMANDS:
                continue  # the job set it aside, too
            raise AuditError(f"{topic.name} {shard}, offset {record.offset}: {error}") from error


def order_events(events: Iterable[OrderEvent], order_id: int) -> Iterator[OrderEvent]:
    """The life of one order."""
    return (event for event in events if event.order_id == order_id)


def seal(
    file: Any, header: Mapping[str, Any], records: Iterable[Mapping[str, Any]], key: tuple[str, bytes]
) -> tuple[int, str]:
    """Write header, records and a last line that counts them into a binary file; the count and the last HMAC."""
    name, secret = key
    previous = GENESIS
    written = 0

    def write(line: Mapping[str, Any]) -> None:
        nonlocal previous
        body = json.dumps(line, separators=(",", ":"), ensure_ascii=True).encode()
        previous = _mac(secret, previous, body)
        file.write(body + b"\t" + previous.hex().encode() + b"\n")

    write({**header, "key": name})
    for record in records:
        write(record)
        written += 1
    write({"records": written})
    return written, previous.hex()


class Verified(NamedTuple):
    """A file that holds: its header, its records, and the last HMAC to be noted elsewhere."""

    header: dict[str, Any]
    records: int
    last: str


def verify_file(path: Path, find_key: Callable[[str], bytes]) -> Verified:
    """Walk a file's chain; raises `AuditError` that names the first line that does not hold."""
    previous, number, last_line = GENESIS, 0, b""
    header: dict[str, Any] = {}
    secret = b""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            body, tab, mac = line.rstrip(b"\n").rpartition(b"\t")
            if not tab:
                raise AuditError(f"{path} line {number}: no HMAC")
            if number == 1:
                header = _header(path, body)
                secret = find_key(str(header["key"]))
            previous = _mac(secret, previous, body)
            if not hmac.compare_digest(previous.hex().encode(), mac):
                raise AuditError(f"{path} line {number}: the HMAC is wrong; this line, or one before it, was changed")
            last_line = body
    try:
        counted = json.loads(last_line)["records"]
    except (ValueError, KeyError, TypeError):
        counted = None
    if counted != number - 2:
        raise AuditError(f"{path}: ends after line {number} without the count of its records; its end was cut off")
    return Verified(header, number - 2, previous.hex())


def _header(path: Path, body: bytes) -> dict[str, Any]:
    try:
        header = json.loads(body)
        header["key"]
    except (ValueError, KeyError, TypeError):
        raise AuditError(f"{path} line 1: not the header of an audit file") from None
    return dict(header)


def _mac(secret: bytes, previous: bytes, body: bytes) -> bytes:
    return hmac.new(secret, previous + body, hashlib.sha256).digest()
