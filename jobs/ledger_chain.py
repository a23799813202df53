"""Walks the hash chain of ledger.events and names the first break of each shard.

Input is the topic itself or Avro container files exported from it (`export`), in which the offset of a record is its
number in the file, from 0. Every frame's hash is computed from its stored bytes (`pipelines.chain`), so one changed bit
is found even where the decoded events stay the same. What a walk accepts:

- frames without a hash before the first one with one: they are older than the chain;
- a frame that was there before, byte for byte: delivery is at least once, and readers drop it. It is counted, and a
  break where repeats are not allowed.

Whatever else is a break: the walk of its shard ends there, as nothing behind it can be trusted. An anchor, a (sequence,
hash) noted at an earlier walk, also finds what a chain alone cannot: a tail cut off, or one written anew as a whole.
Memory: 32 bytes per frame.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import fastavro

from infra.registry import writer_schema
from infra.settings import Settings
from jobs.registry_reader import registry_reader
from jobs.topic_reader import TopicReader
from pipelines.avro_schema import SchemaError
from pipelines.catalogue import LEDGER_EVENTS
from pipelines.chain import GENESIS, canonical_parts, next_hash
from pipelines.codec import FrameCodec
from pipelines.errors import FrameError, StreambankError
from pipelines.frames import Frame
from pipelines.wire import unwrap

__all__ = [
    "Anchor",
    "Break",
    "ChainError",
    "ChainWalk",
    "ShardChain",
    "export",
    "read_anchors",
    "verify_files",
    "verify_topic",
    "write_anchors",
]

HASH_BYTES: Final = len(GENESIS)
BLOCK_BYTES: Final = 1 << 20
SHARD_METADATA: Final = "streambank.shard"
OFFSET_METADATA: Final = "streambank.first_offset"
_MAGIC: Final = b"Obj\x01"


class ChainError(StreambankError):
    """A file cannot be used at all: it is no container of ledger.events, or no list of anchors."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A shard's chain as it once was: the hash (hexadecimal) of the frame with ``sequence``."""

    sequence: int
    hash: str


@dataclass(frozen=True, slots=True)
class Break:
    """Where a shard's chain ends. ``expected`` and ``found`` are sequences or hashes, as ``what`` says."""

    shard: int
    sequence: int
    offset: int
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"shard {self.shard}, sequence {self.sequence}, offset {self.offset}: {self.what}: "
            f"expected {self.expected}, found {self.found}"
        )


@dataclass(slots=True)
class ShardChain:
    """What a walk found in one shard. ``head`` is the last hash in hexadecimal, empty before the chain began."""

    shard: int
    frames: int = 0
    unchained: int = 0
    repeated: int = 0
    last_sequence: int = 0
    head: str = ""
    broken: Break | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class ChainWalk:
    """One shard, record by record. ``anchor``: what must lie on the way; ``after``: the place before the first frame,
    for a part of the topic that does not start at its beginning."""

    shard: int
    anchor: Anchor | None = None
    after: Anchor | None = None
    allow_repeats: bool = True
    found: ShardChain = field(init=False)
    _hashes: bytearray = field(default_factory=bytearray)
    """Hash of every frame from ``_first`` on (of unchained ones: of their bytes, to know a repeat by)."""
    _first: int = 1
    _previous: bytes = GENESIS
    _next_offset: int = 0

    def __post_init__(self) -> None:
        self.found = ShardChain(self.shard)
        if self.after is not None:
            self._first = self.after.sequence + 1
            self._previous = bytes.fromhex(self.after.hash)
            self.found.last_sequence, self.found.head = self.after.sequence, self.after.hash

    def add(self, offset: int, frame: Frame, body: bytes) -> None:
        """The next record; nothing is looked at after a break."""
        found = self.found
        self._next_offset = offset + 1
        if found.broken is not None:
            return
        if frame.shard != self.shard:
            self._break(frame.sequence, offset, "a frame of another shard", str(self.shard), str(frame.shard))
        elif frame.sequence <= found.last_sequence and found.frames:
            self._add_repeat(offset, frame, body)
        elif frame.sequence != found.last_sequence + 1:
            self._break(
                found.last_sequence + 1, offset, "a sequence is missing", str(found.last_sequence + 1),
                str(frame.sequence),
            )  # fmt: skip
        elif frame.chain is None and found.head:
            digest = next_hash(self._previous, body)
            self._break(frame.sequence, offset, "a frame without a hash", digest.hex(), "none")
        else:
            self._add_next(offset, frame, body)

    def unreadable(self, offset: int, why: str) -> None:
        """The next record is not a frame."""
        self._next_offset = offset + 1
        if self.found.broken is None:
            self._break(self.found.last_sequence + 1, offset, "unreadable", "a frame", why)

    def end(self) -> ShardChain:
        """No more records: an anchor that was not met is a break."""
        found, anchor = self.found, self.anchor
        if found.broken is None and anchor is not None and found.last_sequence < anchor.sequence:
            self._break(
                found.last_sequence + 1, self._next_offset, "the chain ends before its anchor",
                f"sequence {anchor.sequence}", f"sequence {found.last_sequence}",
            )  # fmt: skip
        return found

    def _add_next(self, offset: int, frame: Frame, body: bytes) -> None:
        found = self.found
        if frame.chain is None:
            digest = hashlib.sha256(body).digest()
            found.unchained += 1
        else:
            digest = next_hash(self._previous, *canonical_parts(body))
            if digest != frame.chain:
                self._break(
                    frame.sequence, offset, "the hash is not that of the frame", digest.hex(), frame.chain.hex()
                )
                return
            self._previous, found.head = digest, digest.hex()
        anchor = self.anchor
        if anchor is not None and frame.sequence == anchor.sequence and digest.hex() != anchor.hash:
            self._break(frame.sequence, offset, "the hash is not that of the anchor", anchor.hash, digest.hex())
            return
        self._hashes += digest
        found.frames += 1
        found.last_sequence = frame.sequence

    def _add_repeat(self, offset: int, frame: Frame, body: bytes) -> None:
        found, index = self.found, frame.sequence - self._first
        first = self._hash(index) if index >= 0 else b""
        if frame.chain is None:
            again = carried = hashlib.sha256(body).digest()
        else:
            previous = self._hash(index - 1) if index > found.unchained else self._start()
            again, carried = next_hash(previous, *canonical_parts(body)), frame.chain
        if not again == carried == first:
            self._break(
                frame.sequence, offset, "a sequence again, with other bytes", first.hex() or "nothing",
                (again if again != first else carried).hex(),
            )  # fmt: skip
        elif not self.allow_repeats:
            self._break(
                frame.sequence, offset, "a frame again", f"sequence {found.last_sequence + 1}",
                f"sequence {frame.sequence}",
            )  # fmt: skip
        else:
            found.repeated += 1

    def _hash(self, index: int) -> bytes:
        return bytes(self._hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES])

    def _start(self) -> bytes:
        return bytes.fromhex(self.after.hash) if self.after is not None else GENESIS

    def _break(self, sequence: int, offset: int, what: str, expected: str, found: str) -> None:
        self.found.broken = Break(self.shard, sequence, offset, what, expected, found)


def verify_topic(
    config: Settings,
    anchors: Mapping[int, Anchor] | None = None,
    *,
    allow_repeats: bool = True,
    report: Callable[[int, int, int], None] = lambda shard, done, total: None,
) -> list[ShardChain]:
    """Walk every shard of ledger.events up to its present end; ``report`` hears (shard, records done, records)."""
    read = registry_reader(config)
    chains = []
    with TopicReader(config) as reader:
        for shard in range(LEDGER_EVENTS.partitions):
            walk = ChainWalk(shard, (anchors or {}).get(shard), allow_repeats=allow_repeats)
            start, end = reader.bounds(LEDGER_EVENTS, shard)
            for record in reader.read(LEDGER_EVENTS, shard, start, end):
                try:
                    schema_id, body = unwrap(record.value)
                    frame = read(LEDGER_EVENTS.name, schema_id).decode(body)
                except FrameError as error:
                    walk.unreadable(record.offset, str(error))
                else:
                    walk.add(record.offset, frame, body)
                if walk.found.broken is not None:
                    break
                if walk.found.frames % 256 == 0:
                    report(shard, record.offset - start, end - start)
            report(shard, end - start, end - start)
            chains.append(walk.end())
    return chains


def verify_files(
    paths: Sequence[Path],
    anchors: Mapping[int, Anchor] | None = None,
    after: Mapping[int, Anchor] | None = None,
    *,
    allow_repeats: bool = True,
) -> list[ShardChain]:
    """Walk exported containers, given in the order of their frames; shards that have no frame in them are left out.

    ``after`` says where shards stood before the first file, when that is not the beginning.
    """
    anchors, after = anchors or {}, after or {}
    walks: dict[int, ChainWalk] = {}
    for path in paths:
        with path.open("rb") as file:
            for record in _file_records(path, file):
                if (walk := walks.get(record.shard)) is None:
                    walk = walks[record.shard] = ChainWalk(
                        record.shard, anchors.get(record.shard), after.get(record.shard), allow_repeats
                    )
                if record.frame is None:
                    walk.unreadable(record.offset, record.why)
                else:
                    walk.add(record.offset, record.frame, record.body)
    missing = {shard: ChainWalk(shard, anchors[shard]) for shard in anchors if shard not in walks}
    return [walk.end() for _, walk in sorted((walks | missing).items())]


@dataclass(frozen=True, slots=True)
class _FileRecord:
    offset: int
    shard: int
    frame: Frame | None
    body: bytes = b""
    why: str = ""


def _file_records(path: Path, file: BinaryIO) -> Iterator[_FileRecord]:
    """The frames of a container. Behind an unreadable one nothing can be told apart: it is the file's last."""
    try:
        container: Any = fastavro.block_reader(file)
        # as JSON: fastavro marks the schemas that it has parsed
        written = json.loads(container.metadata["avro.schema"])
        shard = int(container.metadata.get(SHARD_METADATA, 0))
        codec = FrameCodec(LEDGER_EVENTS.name, LEDGER_EVENTS.schema(), written)
    except SchemaError as error:
        raise ChainError(f"{path}: its schema is not one of {LEDGER_EVENTS.name}: {error}") from error
    except Exception as error:  # fastavro has no error type of its own for what damaged files do to it
        raise ChainError(f"{path}: not an Avro container file: {error}") from error
    offset = 0
    try:
        for block in container:
            for frame, body in codec.split_many(block.bytes_.getvalue(), block.num_records):
                shard = frame.shard
                yield _FileRecord(offset, shard, frame, body)
                offset += 1
    except FrameError as error:
        yield _FileRecord(offset, shard, None, why=str(error))
    except Exception as error:
        yield _FileRecord(offset, shard, None, why=f"the file is damaged: {error}")


def export(
    config: Settings, directory: Path, report: Callable[[int, int, int], None] = lambda shard, done, total: None
) -> list[Path]:
    """Copy ledger.events as it is now into container files below ``directory``, byte for byte: one file per shard and
    run of frames with the same writer's schema, ``ledger.events-<shard>-<first offset>.avro``.

    Returns the files in order. Raises `ChainError` for a record that is no frame, or a file that is there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    with TopicReader(config) as reader:
        for shard in range(LEDGER_EVENTS.partitions):
            start, end = reader.bounds(LEDGER_EVENTS, shard)
            file: _ContainerFile | None = None
            try:
                for record in reader.read(LEDGER_EVENTS, shard, start, end):
                    try:
                        schema_id, body = unwrap(record.value)
                    except FrameError as error:
                        raise ChainError(f"{LEDGER_EVENTS.name} {shard}, offset {record.offset}: {error}") from error
                    if file is None or file.schema_id != schema_id:
                        if file is not None:
                            file.close()
                        path = directory / f"{LEDGER_EVENTS.name}-{shard}-{record.offset:012d}.avro"
                        schema = writer_schema(schema_id, config)
                        file = _ContainerFile(path, schema, schema_id, shard, record.offset)
                        paths.append(path)
                    file.append(body)
                    if record.offset % 256 == 0:
                        report(shard, record.offset - start, end - start)
            finally:
                if file is not None:
                    file.close()
            report(shard, end - start, end - start)
    return paths


class _ContainerFile:
    """An Avro object container (deflate) of bodies that are already encoded; the same bodies give the same file."""

    def __init__(self, path: Path, schema: Mapping[str, Any], schema_id: int, shard: int, offset: int) -> None:
        self.schema_id = schema_id
        text = json.dumps(schema).encode()
        self._sync = hashlib.md5(text, usedforsecurity=False).digest()
        self._parts: list[bytes] = []
        self._size = 0
        try:
            self._file = path.open("xb")
        except FileExistsError as error:
            raise ChainError(f"{path} is there already: export into an empty directory") from error
        metadata = {
            "avro.schema": text,
            "avro.codec": b"deflate",
            SHARD_METADATA: str(shard).encode(),
            OFFSET_METADATA: str(offset).encode(),
        }
        self._file.write(_MAGIC + _long(len(metadata)))
        for name, value in metadata.items():
            self._file.write(_sized(name.encode()) + _sized(value))
        self._file.write(_long(0) + self._sync)

    def append(self, body: bytes) -> None:
        self._parts.append(body)
        self._size += len(body)
        if self._size >= BLOCK_BYTES:
            self._write_block()

    def close(self) -> None:
        self._write_block()
        self._file.close()

    def _write_block(self) -> None:
        if self._parts:
            deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
            data = deflater.compress(b"".join(self._parts)) + deflater.flush()
            self._file.write(_long(len(self._parts)) + _sized(data) + self._sync)
            self._parts, self._size = [], 0


def _long(value: int) -> bytes:
    """A non-negative Avro long."""
    value <<= 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _sized(data: bytes) -> bytes:
    return _long(len(data)) + data


def read_anchors(path: Path) -> dict[int, Anchor]:
    """Anchors as `write_anchors` wrote them."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        anchors = {int(shard): Anchor(int(entry["sequence"]), str(entry["hash"])) for shard, entry in found.items()}
        for anchor in anchors.values():
            if len(bytes.fromhex(anchor.hash)) != HASH_BYTES:
                raise ValueError(f"{anchor.hash} is not a hash of {HASH_BYTES} bytes")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ChainError(f"{path}: not a list of anchors: {error}") from error
    return anchors


def write_anchors(path: Path, chains: Iterable[ShardChain]) -> None:
    """The last hash of every shard that has one and no break, for `read_anchors` and other safe places."""
    anchors = {
        str(chain.shard): {"sequence": chain.last_sequence, "hash": chain.head}
        for chain in chains
        if chain.head and chain.broken is None
    }
    path.write_text(json.dumps(anchors, indent=2) + "\n", encoding="utf-8")
