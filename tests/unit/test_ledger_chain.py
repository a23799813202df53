"""The hash chain of ledger.events: what a shard writes, what another library computes, which break is named."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest
from typer.testing import CliRunner

from jobs.ledger_chain import Anchor, Break, ShardChain, read_anchors, verify_files
from pipelines.catalogue import LEDGER_EVENTS, PIPELINES, TOPICS, Topic
from pipelines.chain import GENESIS, canonical_parts, next_hash
from pipelines.codec import FrameCodec, SchemaError, codec_of
from pipelines.frames import Events, Frame
from pipelines.ledger.kernel import LedgerKernel
from pipelines.shard import SHARD_PAGE, Shard
from pipelines.wire import unwrap, wrap
from tests.support.ledger_frames import COMMANDS, account, command_frame, transfer

EVENTS = codec_of(LEDGER_EVENTS.name)
IDS = {"ledger.results": 1, "ledger.events": 2}
HASH = {"name": "ChainHash", "type": "fixed", "size": 32}


def new_shard(number: int = 0) -> Shard:
    return Shard(PIPELINES["ledger"], number, IDS, kernel=LedgerKernel(max_accounts=1 << 10, max_transfers=1 << 12))


def command(step: int, shard: int = 0) -> bytes:
    if step == 0:
        commands = [account(1), account(2)]
    else:
        commands = [transfer(step * 10 + number, 1, 2, step) for number in range(3)]
    return wrap(1, COMMANDS.encode(command_frame(commands, produced_at=1_700_000_000_000_000 + step, shard=shard)))


def bodies(count: int = 8, shard: int = 0) -> list[bytes]:
    """Avro bodies of the first ledger.events frames of a shard."""
    source = new_shard(shard)
    return [unwrap(source.apply("ledger.commands", command(step, shard))[1].value)[1] for step in range(count)]


def container(path: Path, *frames: bytes, schema: dict[str, Any] | None = None) -> Path:
    """An export as any Avro library would write it."""
    written = fastavro.parse_schema(LEDGER_EVENTS.schema() if schema is None else schema)
    out = io.BytesIO()
    fastavro.writer(out, written, [], codec="null", sync_marker=bytes(16))
    block = b"".join(frames)
    size = io.BytesIO()
    for number in (len(frames), len(block)):
        fastavro.schemaless_writer(size, "long", number)
    path.write_bytes(out.getvalue() + size.getvalue() + block + bytes(16))
    return path


def walk(tmp_path: Path, *frames: bytes, **options: Any) -> ShardChain:
    (found,) = verify_files([container(tmp_path / "events.avro", *frames)], **options)
    return found


def broken(chain: ShardChain) -> Break:
    assert chain.broken is not None
    return chain.broken


def test_any_avro_library_computes_the_same_chain() -> None:
    schema = fastavro.parse_schema(LEDGER_EVENTS.schema())
    previous = bytes(32)
    for body in bodies():
        record: Any = fastavro.schemaless_reader(io.BytesIO(body), schema, None)
        canonical = io.BytesIO()
        fastavro.schemaless_writer(canonical, schema, record | {"chain": None})
        previous = hashlib.sha256(previous + canonical.getvalue()).digest()
        assert record["chain"] == previous


def test_restored_shard_goes_on_with_the_same_bytes() -> None:
    shard = new_shard()
    stored: dict[str, bytes] = {}
    for step in range(3):
        shard.apply("ledger.commands", command(step))
        stored |= shard.dirty_pages()
    assert len(json.loads(stored[SHARD_PAGE])["hashes"]["ledger.events"]) == 64
    restored = new_shard()
    restored.restore(stored)
    for step in range(3, 6):
        assert restored.apply("ledger.commands", command(step)) == shard.apply("ledger.commands", command(step))


def test_state_from_before_the_chain_starts_one(tmp_path: Path) -> None:
    shard = new_shard()
    older = [unwrap(shard.apply("ledger.commands", command(step))[1].value)[1] for step in range(2)]
    pages = shard.dirty_pages()
    own = json.loads(pages[SHARD_PAGE])
    del own["hashes"]
    upgraded = new_shard()
    upgraded.restore(pages | {SHARD_PAGE: json.dumps(own).encode()})
    newer = unwrap(upgraded.apply("ledger.commands", command(2))[1].value)[1]
    assert EVENTS.decode(newer).chain == next_hash(GENESIS, *canonical_parts(newer))

    unchained = [b"".join(canonical_parts(body)) for body in older]
    found = walk(tmp_path, *unchained, newer, unchained[1], newer)
    assert (found.frames, found.unchained, found.repeated, found.broken) == (3, 2, 2, None)
    assert broken(walk(tmp_path, newer, *unchained)).what == "a sequence is missing"


def test_released_schema_without_chain_reads_chained_frames_and_the_reverse() -> None:
    from infra.compatibility import released_versions

    old = released_versions(LEDGER_EVENTS)[0][1]
    assert "chain" not in {field["name"] for field in old["fields"]}
    body = bodies(2)[1]
    new_frame, old_frame = EVENTS.decode(body), FrameCodec("ledger.events", old, EVENTS.schema).decode(body)
    assert old_frame.chain is None
    assert new_frame.chain is not None
    assert old_frame.events.rows.tobytes() == new_frame.events.rows.tobytes()
    written = FrameCodec("ledger.events", old).encode(old_frame)
    again = FrameCodec("ledger.events", EVENTS.schema, old).decode(written)
    assert (again.chain, again.events.rows.tobytes()) == (None, new_frame.events.rows.tobytes())


@pytest.mark.parametrize("topic", [topic for topic in TOPICS.values() if topic.chained], ids=lambda topic: topic.name)
def test_chained_topics_have_one_writer_and_the_field(topic: Topic) -> None:
    assert topic.writers == "one job"
    assert codec_of(topic.name).is_chained


@pytest.mark.parametrize(
    "fields",
    [
        [{"name": "chain", "type": ["null", HASH]}, {"name": "events", "type": {"type": "array", "items": []}}],
        [{"name": "events", "type": {"type": "array", "items": []}}, {"name": "chain", "type": [HASH, "null"]}],
        [
            {"name": "events", "type": {"type": "array", "items": []}},
            {"name": "chain", "type": ["null", HASH | {"size": 16}]},
        ],
    ],
    ids=["before the events", "null second", "another size"],
)
def test_a_chain_that_cannot_be_verified_is_refused(fields: list[dict[str, Any]]) -> None:
    for field in fields:
        if field["name"] == "events":
            field["type"]["items"] = [{"type": "record", "name": "E", "fields": [{"name": "f", "type": "int"}]}]
    header = [field for field in EVENTS.schema["fields"] if field["name"] not in ("events", "chain")]
    with pytest.raises(SchemaError, match="chain: must be the frame's last field"):
        FrameCodec("test", {"type": "record", "name": "F", "fields": [*header, *fields]})


def test_whole_chain_is_accepted_and_its_head_told(tmp_path: Path) -> None:
    frames = bodies()
    found = walk(tmp_path, *frames)
    last = EVENTS.decode(frames[-1]).chain
    assert last is not None
    assert (found.frames, found.last_sequence, found.head, found.broken) == (8, 8, last.hex(), None)


def test_every_flipped_bit_is_found_at_its_frame(tmp_path: Path) -> None:
    frames = bodies(4)
    target = frames[2]
    for position in range(0, len(target), 7):
        flipped = target[:position] + bytes([target[position] ^ 1 << position % 8]) + target[position + 1 :]
        found = broken(walk(tmp_path, *frames[:2], flipped, frames[3]))
        assert (found.shard, found.sequence, found.offset) == (0, 3, 2) or (
            # the header itself was changed: the frame claims another place
            found.offset == 2 and position < 12
        )


def forged(frames: list[bytes], index: int) -> bytes:
    """A frame with another amount, and with the hash that fits it and the frame before."""
    frame = EVENTS.decode(frames[index])
    rows = frame.events.rows.copy()
    rows.view(EVENTS.event_type("TransferCreated").dtype)["amount_lo"][0] += 1
    changed = Frame(frame.topic, frame.shard, frame.sequence, frame.produced_at, frame.trace, Events(rows))
    previous = EVENTS.decode(frames[index - 1]).chain
    assert previous is not None
    digest = next_hash(previous, EVENTS.encode(changed))
    return EVENTS.encode(
        Frame(frame.topic, frame.shard, frame.sequence, frame.produced_at, frame.trace, Events(rows), digest)
    )


@pytest.mark.parametrize(
    ("change", "sequence", "offset", "what"),
    [
        (lambda f: [*f[:3], *f[4:]], 4, 3, "a sequence is missing"),
        (lambda f: f[1:], 1, 0, "a sequence is missing"),
        (lambda f: [*f[:3], f[4], f[3], *f[5:]], 4, 3, "a sequence is missing"),
        (lambda f: [*f[:3], forged(f, 3), *f[4:]], 5, 4, "the hash is not that of the frame"),
        (lambda f: [*f[:5], forged(f, 3), *f[5:]], 4, 5, "a sequence again, with other bytes"),
        (lambda f: [*f[:3], b"".join(canonical_parts(f[3])), *f[4:]], 4, 3, "a frame without a hash"),
        (lambda f: [*f[:5], f[3][:-1] + bytes([f[3][-1] ^ 1]), *f[5:]], 4, 5, "a sequence again, with other bytes"),
    ],
    ids=["removed", "first removed", "swapped", "forged", "repeated with other bytes", "hash removed", "hash changed"],
)
def test_break_is_named(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], sequence: int, offset: int, what: str
) -> None:
    found = broken(walk(tmp_path, *change(bodies())))
    assert (found.shard, found.sequence, found.offset, found.what) == (0, sequence, offset, what)
    assert found.expected != found.found


def test_repeat_is_counted_or_a_break(tmp_path: Path) -> None:
    frames = bodies()
    repeated = [*frames[:5], *frames[2:]]
    found = walk(tmp_path, *repeated)
    assert (found.frames, found.repeated, found.broken) == (8, 3, None)
    refused = broken(walk(tmp_path, *repeated, allow_repeats=False))
    assert (refused.sequence, refused.offset, refused.what) == (3, 5, "a frame again")


def test_anchor_finds_a_rewritten_or_cut_tail(tmp_path: Path) -> None:
    frames = bodies()
    anchor = {0: Anchor(8, walk(tmp_path, *frames).head)}
    assert walk(tmp_path, *frames, anchors=anchor).broken is None
    rewritten = [*frames[:7], forged(frames, 7)]
    assert walk(tmp_path, *rewritten).broken is None  # the chain alone cannot know
    assert broken(walk(tmp_path, *rewritten, anchors=anchor)).what == "the hash is not that of the anchor"
    cut = broken(walk(tmp_path, *frames[:6], anchors=anchor))
    assert (cut.what, cut.sequence, cut.offset) == ("the chain ends before its anchor", 7, 6)


def test_files_are_walked_in_order_and_parts_after_their_place(tmp_path: Path) -> None:
    first, second = bodies(shard=0), bodies(shard=2)
    parts = [
        container(tmp_path / "a.avro", *first[:3], *second[:4]),
        container(tmp_path / "b.avro", *second[4:], *first[3:]),
    ]
    assert [(chain.shard, chain.frames, chain.broken) for chain in verify_files(parts)] == [(0, 8, None), (2, 8, None)]
    places = {chain.shard: Anchor(chain.last_sequence, chain.head) for chain in verify_files(parts[:1])}
    later = verify_files(parts[1:], after=places)
    assert [(chain.shard, chain.frames, chain.broken) for chain in later] == [(0, 5, None), (2, 4, None)]


def test_command_line_names_the_break(tmp_path: Path) -> None:
    from infra.cli.ledger import group

    frames = bodies()
    good = container(tmp_path / "good.avro", *frames)
    run = CliRunner()
    saved = tmp_path / "anchors.json"
    done = run.invoke(group, ["verify", str(good), "--save", str(saved)])
    assert done.exit_code == 0, done.output
    assert read_anchors(saved)[0].sequence == 8
    bad = container(tmp_path / "bad.avro", *frames[:3], forged(frames, 3), *frames[4:])
    done = run.invoke(group, ["verify", str(bad), "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 1
    assert "shard 0, sequence 5, offset 4: the hash is not that of the frame" in done.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ok"] is False
    assert found["shards"][0]["broken"]["offset"] == 4
