"""The keys with which producers sign their records (`pipelines.signatures`): one file, per topic.

The file (`Settings.producer_keys_path`, mode 0600) has an entry for each topic that must be signed, under the broker's
name of it: from which offsets on, and the keys of its producers. `streambank topics apply` makes the entries that the
catalogue asks for; `streambank producers` adds producers, other topics too. A topic without an entry is not signed,
unless the catalogue says that it must be: then nothing is sent to it and its job does not start.

**Rotation.** A producer signs with its newest key whose ``signs_from`` has come, and every key verifies until it is
retired. So: `rotate`, with a delay if job and producers see the file at different times; then `retire` the old key.
Retiring notes the topic's present end: what the key signed before stays valid for ever, because a job may read the
topic again from its start and must then decide as it did.

Producers and jobs read the file again when it has changed, at most once a second; a job also at once when it meets a
key that it does not know.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

from infra.secret_files import exclusive, write_secret
from infra.settings import Settings
from pipelines.catalogue import Topic
from pipelines.errors import StreambankError
from pipelines.signatures import HEADER, ProducerKey, Verifier, sign

__all__ = ["FrameSigner", "FrameVerifier", "ProducerKeyError", "ProducerKeys"]

LOOK_AGAIN_SECONDS: Final = 1.0
_SECRET_BYTES: Final = 32


class ProducerKeyError(StreambankError):
    """Keys are missing or cannot be changed as asked."""


class ProducerKeys:
    """The file of one environment; every change is made under a lock."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.path = settings.producer_keys_path

    def read(self) -> dict[str, Any]:
        """Entries by the broker's topic name; empty when there is no file."""
        try:
            document: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ProducerKeyError(f"the producers' keys {self.path} cannot be read: {error}") from error
        return document

    def require(self, topic: Topic, producers: Sequence[str], required_from: Sequence[int]) -> list[str]:
        """Make the topic's entry, if it has none, and a key for each producer that has none; returns those producers.

        ``required_from``, the topic's present ends, counts for a new entry: records before these offsets need no
        signature. For an empty topic, one that was made anew perhaps, it counts in any case.
        """
        name, is_empty = self._settings.kafka_topic(topic.name), not any(required_from)
        entry = self.read().get(name)
        if entry is not None and not self._without_key(entry, producers) and not (is_empty and _has_past(entry)):
            return []  # the file may be read-only here
        with exclusive(self.path.with_suffix(".lock")):
            document = self.read()
            entry = document.setdefault(name, {"required_from": list(required_from), "keys": {}})
            if is_empty:
                entry["required_from"] = list(required_from)
                entry["keys"] = {key_id: key for key_id, key in entry["keys"].items() if key["until"] is None}
            made = self._without_key(entry, producers)
            for producer in made:
                self._add(entry, producer, 0.0)
            write_secret(self.path, document)
        return made

    def forget(self, topic: Topic) -> None:
        """Remove the entry of a topic that was deleted."""
        with exclusive(self.path.with_suffix(".lock")):
            document = self.read()
            if document.pop(self._settings.kafka_topic(topic.name), None) is not None:
                write_secret(self.path, document)

    def rotate(self, topic: Topic, producer: str, delay_seconds: float = 0.0) -> str:
        """Give a producer another key, with which it signs after ``delay_seconds``; returns the key's id."""
        with exclusive(self.path.with_suffix(".lock")):
            document = self.read()
            entry = self._entry(document, topic)
            if self._without_key(entry, [producer]):
                raise ProducerKeyError(
                    f"{topic.name} has no producer {producer}; add it with `streambank producers add`"
                )
            key_id = self._add(entry, producer, time.time() + delay_seconds)
            write_secret(self.path, document)
        return key_id

    def retire(self, topic: Topic, key_id: str, ends: Sequence[int]) -> None:
        """Refuse what a key signs from the offsets ``ends`` on. A producer's last key can be retired too."""
        with exclusive(self.path.with_suffix(".lock")):
            document = self.read()
            key = self._entry(document, topic)["keys"].get(key_id)
            if key is None or key["until"] is not None:
                raise ProducerKeyError(f"{topic.name} has no key {key_id} that is not retired already")
            key["until"] = list(ends)
            write_secret(self.path, document)

    def _entry(self, document: dict[str, Any], topic: Topic) -> dict[str, Any]:
        entry: dict[str, Any] | None = document.get(self._settings.kafka_topic(topic.name))
        if entry is None:
            raise ProducerKeyError(f"{self.path} has no keys for {topic.name}; add a producer first")
        return entry

    @staticmethod
    def _without_key(entry: dict[str, Any], producers: Sequence[str]) -> list[str]:
        known = {key["producer"] for key in entry["keys"].values() if key["until"] is None}
        return [producer for producer in producers if producer not in known]

    @staticmethod
    def _add(entry: dict[str, Any], producer: str, signs_from: float) -> str:
        if not producer or not producer.isascii() or not producer.replace("-", "").isalnum():
            raise ProducerKeyError(f"a producer's name is of letters, digits and hyphens; found {producer[:40]!r}")
        key_id = secrets.token_hex(4)
        entry["keys"][key_id] = {
            "producer": producer, "secret": secrets.token_hex(_SECRET_BYTES), "signs_from": signs_from, "until": None,
        }  # fmt: skip
        return key_id


def _has_past(entry: dict[str, Any]) -> bool:
    """Whether an entry lets records pass that are unsigned, or signed with a retired key."""
    return any(entry["required_from"]) or any(key["until"] is not None for key in entry["keys"].values())


class _Entry:
    """A topic's entry, read again by `refresh` when the file has changed."""

    def __init__(self, settings: Settings, topic: Topic) -> None:
        self._keys = ProducerKeys(settings)
        self._topic = topic
        self.name = settings.kafka_topic(topic.name)
        self._seen = (-1, -1)
        self._look_at = 0.0
        self.found: dict[str, Any] | None = None

    def refresh(self, *, now: bool = False) -> bool:
        """Read the file if it has changed; whether it had. Raises `ProducerKeyError` when the catalogue asks for keys
        and there are none."""
        moment = time.monotonic()
        if moment < self._look_at and not now:
            return False
        self._look_at = moment + LOOK_AGAIN_SECONDS
        try:
            status = self._keys.path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
        except FileNotFoundError:
            seen = (0, 0)
        changed = seen != self._seen
        if changed:
            self.found = self._keys.read().get(self.name)
            self._seen = seen
        if self.found is None and self._topic.producers:
            self._look_at = 0.0
            raise ProducerKeyError(
                f"{self._keys.path} has no keys for {self.name}, whose records must be signed; `streambank topics"
                " apply` makes them, or give the file with STREAMBANK_PRODUCER_KEYS_FILE"
            )
        return changed

    def keys(self) -> dict[str, ProducerKey]:
        found = self.found or {"keys": {}}
        return {
            key_id: ProducerKey(
                key_id, key["producer"], bytes.fromhex(key["secret"]),
                None if key["until"] is None else tuple(key["until"]),
            )
            for key_id, key in found["keys"].items()
        }  # fmt: skip


class FrameSigner:
    """Signs what ``producer`` sends to ``topic``; does nothing where the topic is not signed. Not thread-safe."""

    def __init__(self, settings: Settings, topic: Topic, producer: str) -> None:
        self._entry = _Entry(settings, topic)
        self._producer = producer
        self._key: ProducerKey | None = None
        self._next_key_at = 0.0

    def headers(self, partition: int, value: bytes) -> list[tuple[str, bytes]]:
        """The record's Kafka headers. Raises `ProducerKeyError` when the topic must be signed and there is no key."""
        changed = self._entry.refresh()
        if self._entry.found is None:
            return []
        if changed or self._key is None or time.time() >= self._next_key_at:
            self._key = self._choose()
        return [(HEADER, sign(self._key, self._entry.name, partition, value))]

    def _choose(self) -> ProducerKey:
        found = self._entry.found or {"keys": {}}
        now = time.time()
        own = {
            key_id: key["signs_from"]
            for key_id, key in found["keys"].items()
            if key["producer"] == self._producer and key["until"] is None
        }
        ready = [key_id for key_id, signs_from in own.items() if signs_from <= now]
        if not ready:
            raise ProducerKeyError(
                f"producer {self._producer} has no key for {self._entry.name}, whose records must be signed; make one"
                f" with `streambank producers add {self._producer}`"
            )
        self._next_key_at = min((at for at in own.values() if at > now), default=float("inf"))
        return self._entry.keys()[max(ready, key=lambda key_id: own[key_id])]


class FrameVerifier:
    """Checks what was read from ``topic``; accepts everything where the topic is not signed. Not thread-safe."""

    def __init__(self, settings: Settings, topic: Topic) -> None:
        self._entry = _Entry(settings, topic)
        self._verifier: Verifier | None = None
        self._refresh()

    @property
    def is_required(self) -> bool:
        """Whether the topic is signed."""
        return self._verifier is not None

    def check(self, partition: int, offset: int, value: bytes, signature: bytes | None) -> None:
        """See `pipelines.signatures.Verifier.check`."""
        self._refresh()
        if self._verifier is None:
            return
        if signature and not self._verifier.knows(signature):
            self._refresh(now=True)
        self._verifier.check(partition, offset, value, signature)

    def _refresh(self, *, now: bool = False) -> None:
        if self._entry.refresh(now=now):
            found = self._entry.found
            self._verifier = (
                None if found is None else Verifier(self._entry.name, self._entry.keys(), found["required_from"])
            )
