"""Signed records: who may write to a topic, and what becomes of everything else."""

from __future__ import annotations

import hashlib
import hmac
import json
import zlib
from pathlib import Path

import pytest

from infra.producer_keys import FrameSigner, FrameVerifier, ProducerKeyError, ProducerKeys
from infra.settings import Settings
from pipelines.catalogue import LEDGER_COMMANDS, MATCHING_COMMANDS
from pipelines.errors import FrameError
from pipelines.signatures import HEADER

VALUE = b"\0\0\0\0\1 a frame"


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, topic_prefix="test.")


@pytest.fixture
def keys(config: Settings) -> ProducerKeys:
    found = ProducerKeys(config)
    assert found.require(MATCHING_COMMANDS, ["api", "dlq"], [0, 0, 0, 0]) == ["api", "dlq"]
    return found


def signed(config: Settings, producer: str = "api", partition: int = 1, value: bytes = VALUE) -> bytes:
    [(name, signature)] = FrameSigner(config, MATCHING_COMMANDS, producer).headers(partition, value)
    assert name == HEADER
    return signature


def refused(verifier: FrameVerifier, partition: int, offset: int, value: bytes, signature: bytes | None) -> str:
    with pytest.raises(FrameError) as caught:
        verifier.check(partition, offset, value, signature)
    return caught.value.reason


def test_a_signature_is_what_the_documentation_says(config: Settings, keys: ProducerKeys) -> None:
    version, producer, key_id, checksum, digest = signed(config).decode().split(" ")
    secret = bytes.fromhex(keys.read()["test.matching.commands"]["keys"][key_id]["secret"])
    bound = b"streambank 1\0test.matching.commands\0api\0" + (1).to_bytes(4, "big")
    assert (version, producer, checksum) == ("1", "api", f"{zlib.crc32(VALUE):08x}")
    assert digest == hmac.new(secret, bound + VALUE, hashlib.sha256).hexdigest()
    assert keys.path.stat().st_mode & 0o777 == 0o600


def test_only_what_a_known_producer_signed_for_this_place_is_accepted(config: Settings, keys: ProducerKeys) -> None:
    verifier = FrameVerifier(config, MATCHING_COMMANDS)
    good = signed(config)
    verifier.check(1, 0, VALUE, good)
    verifier.check(1, 9, VALUE, signed(config, "dlq"))
    words = good.split(b" ")
    assert refused(verifier, 1, 0, VALUE, None) == "unsigned"
    assert refused(verifier, 1, 0, VALUE, b"") == "unsigned"
    assert refused(verifier, 1, 0, VALUE, b"2 " + good[2:]) == "unsigned"
    assert refused(verifier, 1, 0, VALUE, b"\xff" * 80) == "unsigned"
    assert refused(verifier, 1, 0, VALUE, good.replace(b" api ", b" dlq ")) == "unknown_producer"
    assert refused(verifier, 1, 0, VALUE, good.replace(words[2], b"00000000")) == "unknown_producer"
    assert refused(verifier, 1, 0, VALUE + b"x", good) == "bad_checksum"
    forged = VALUE + b"x"
    words[3] = b"%08x" % zlib.crc32(forged)
    assert refused(verifier, 1, 0, forged, b" ".join(words)) == "bad_hmac"
    assert refused(verifier, 2, 0, VALUE, good) == "bad_hmac"  # another partition
    elsewhere = config.model_copy(update={"topic_prefix": "other."})
    copied = {"other.matching.commands": keys.read()["test.matching.commands"]}
    keys.path.write_text(json.dumps(keys.read() | copied))
    assert refused(FrameVerifier(elsewhere, MATCHING_COMMANDS), 1, 0, VALUE, good) == "bad_hmac"


def test_two_keys_are_good_while_one_takes_over_and_what_was_signed_stays_good(
    config: Settings, keys: ProducerKeys
) -> None:
    signer, verifier = FrameSigner(config, MATCHING_COMMANDS, "api"), FrameVerifier(config, MATCHING_COMMANDS)
    [(_, old)] = signer.headers(0, VALUE)
    old_key = old.split(b" ")[2].decode()
    later = keys.rotate(MATCHING_COMMANDS, "api", delay_seconds=3600)
    assert signed(config).split(b" ")[2].decode() == old_key  # its time has not come
    now = keys.rotate(MATCHING_COMMANDS, "api")
    new = signed(config, partition=0)
    assert new.split(b" ")[2].decode() == now != later
    verifier.check(0, 5, VALUE, old)
    verifier.check(0, 6, VALUE, new)  # a key that it meets for the first time
    keys.retire(MATCHING_COMMANDS, old_key, [7, 0, 0, 0])
    restarted = FrameVerifier(config, MATCHING_COMMANDS)
    restarted.check(0, 6, VALUE, old)
    assert refused(restarted, 0, 7, VALUE, old) == "retired_key"
    restarted.check(0, 7, VALUE, new)
    with pytest.raises(ProducerKeyError, match="retired already"):
        keys.retire(MATCHING_COMMANDS, old_key, [8, 0, 0, 0])


def test_a_topic_is_signed_from_its_first_key_on_and_trading_always(config: Settings) -> None:
    # nobody asked for signatures on the ledger's topic
    assert FrameSigner(config, LEDGER_COMMANDS, "api").headers(0, VALUE) == []
    open_to_all = FrameVerifier(config, LEDGER_COMMANDS)
    assert not open_to_all.is_required
    open_to_all.check(0, 0, VALUE, None)
    # the catalogue asks for them on trading's: without keys nothing is sent and no job starts
    with pytest.raises(ProducerKeyError, match="topics apply"):
        FrameSigner(config, MATCHING_COMMANDS, "api").headers(0, VALUE)
    with pytest.raises(ProducerKeyError, match="topics apply"):
        FrameVerifier(config, MATCHING_COMMANDS)

    keys = ProducerKeys(config)
    keys.require(LEDGER_COMMANDS, ["api"], [10, 0, 0, 0])
    verifier = FrameVerifier(config, LEDGER_COMMANDS)
    verifier.check(0, 9, VALUE, None)  # written before
    assert refused(verifier, 0, 10, VALUE, None) == "unsigned"
    with pytest.raises(ProducerKeyError, match="producers add load"):
        FrameSigner(config, LEDGER_COMMANDS, "load").headers(0, VALUE)
    # a topic that was deleted and made anew holds nothing from before
    keys.require(LEDGER_COMMANDS, ["api"], [0, 0, 0, 0])
    assert refused(FrameVerifier(config, LEDGER_COMMANDS), 0, 9, VALUE, None) == "unsigned"
    with pytest.raises(ProducerKeyError, match="letters, digits"):
        keys.require(LEDGER_COMMANDS, ["a b"], [0, 0, 0, 0])
