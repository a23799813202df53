"""Keys of the card vault: a master key that wraps data keys, data keys that encrypt numbers or fingerprint them.

Envelope encryption: a data key is 256 random bits, stored only wrapped by a master key. The master key never leaves
`MasterKeys`: by default a file of mode 0600 in the secrets directory, elsewhere a key management service behind the
same four methods (``STREAMBANK_CARD_MASTER_KEYS=package.module:factory``; the factory is called with the settings).

Numbers are encrypted with AES-256-GCM under a random 96-bit nonce. The additional data bind the ciphertext to its
token, key, expiry and last four digits: a row that was changed or copied to another token does not decrypt. With
random nonces a key should encrypt fewer than 2^32 numbers (NIST SP 800-38D, section 8.3).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import stat
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.secret_files import exclusive, write_secret
from infra.settings import Settings
from pipelines.errors import StreambankError

__all__ = [
    "ENCRYPTION",
    "FINGERPRINT",
    "CardKeyError",
    "DataKey",
    "FileMasterKeys",
    "MasterKeys",
    "SealedNumber",
    "master_keys",
    "new_data_key",
    "unwrap_data_key",
    "wrap_data_key",
]

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
PADDED_DIGITS: Final = 19
ENCRYPTION: Final = "encryption"
FINGERPRINT: Final = "fingerprint"


class CardKeyError(StreambankError):
    """A key of the vault is missing, or does not fit what it should open."""


class MasterKeys(Protocol):
    """What wraps data keys; may block, and is called off the event loop. ``context`` is authenticated, not secret."""

    def wrap(self, plaintext: bytes, context: bytes) -> tuple[str, bytes]:
        """Id of the current master key, and ``plaintext`` encrypted with it."""
        ...

    def unwrap(self, master_key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """The plaintext; raises `CardKeyError`."""
        ...

    def rotate(self) -> str:
        """Wrap with a new key from now on; older ones still unwrap. Returns its id."""
        ...

    def forget_older(self) -> list[str]:
        """Destroy all keys but the current one; returns their ids."""
        ...


class FileMasterKeys:
    """Master keys in one file that only its owner may read; read anew at every use, which is seldom."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def wrap(self, plaintext: bytes, context: bytes) -> tuple[str, bytes]:
        with exclusive(self._path.with_suffix(".lock")):
            document = self._read() or self._written(self._with_new_key({"keys": {}}))
        return document["current"], _encrypt(self._key(document, document["current"]), plaintext, context)

    def unwrap(self, master_key_id: str, wrapped: bytes, context: bytes) -> bytes:
        document = self._read()
        if document is None:
            raise CardKeyError(f"{self._path} is missing; put back the copy that holds master key {master_key_id}")
        return _decrypt(self._key(document, master_key_id), wrapped, context, f"master key {master_key_id}")

    def rotate(self) -> str:
        with exclusive(self._path.with_suffix(".lock")):
            document = self._written(self._with_new_key(self._read() or {"keys": {}}))
        return str(document["current"])

    def forget_older(self) -> list[str]:
        with exclusive(self._path.with_suffix(".lock")):
            document = self._read()
            if document is None:
                return []
            older = sorted(set(document["keys"]) - {document["current"]})
            self._written({**document, "keys": {document["current"]: document["keys"][document["current"]]}})
        return older

    @staticmethod
    def _with_new_key(document: dict[str, Any]) -> dict[str, Any]:
        master_key_id = uuid4().hex
        key = base64.b64encode(os.urandom(KEY_BYTES)).decode()
        return {"current": master_key_id, "keys": {**document["keys"], master_key_id: key}}

    def _written(self, document: dict[str, Any]) -> dict[str, Any]:
        write_secret(self._path, document)
        return document

    def _read(self) -> dict[str, Any] | None:
        try:
            mode = self._path.stat().st_mode
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        if stat.S_IMODE(mode) & 0o077:
            raise CardKeyError(f"{self._path} may be read by others than its owner; chmod 600 it")
        document: dict[str, Any] = json.loads(text)
        return document

    def _key(self, document: dict[str, Any], master_key_id: str) -> bytes:
        key = document["keys"].get(master_key_id)
        if key is None:
            raise CardKeyError(f"{self._path} has no master key {master_key_id}; put back the copy that has it")
        return base64.b64decode(key)


def master_keys(settings: Settings) -> MasterKeys:
    """The master keys that the settings name."""
    if not settings.card_master_keys:
        return FileMasterKeys(settings.secrets_dir / "card-master-keys.json")
    module, _, factory = settings.card_master_keys.partition(":")
    try:
        made: MasterKeys = getattr(import_module(module), factory)(settings)
    except (ImportError, AttributeError) as error:
        raise CardKeyError(
            f"STREAMBANK_CARD_MASTER_KEYS={settings.card_master_keys}: {error}; write package.module:factory"
        ) from error
    return made


@dataclass(frozen=True, slots=True)
class SealedNumber:
    """An encrypted card number with what it is bound to."""

    data_key_id: str
    nonce: bytes
    ciphertext: bytes


@dataclass(frozen=True, slots=True, repr=False)
class DataKey:
    """An unwrapped data key. Never shown, also not by `repr`."""

    id: str
    purpose: str
    secret: bytes

    def seal(self, number: str, bound_to: str) -> SealedNumber:
        """The number encrypted, all lengths alike."""
        nonce = os.urandom(NONCE_BYTES)
        padded = number.ljust(PADDED_DIGITS).encode()
        return SealedNumber(self.id, nonce, AESGCM(self.secret).encrypt(nonce, padded, self._context(bound_to)))

    def open(self, sealed: SealedNumber, bound_to: str) -> str:
        """The number; raises `CardKeyError` when anything was changed."""
        try:
            padded = AESGCM(self.secret).decrypt(sealed.nonce, sealed.ciphertext, self._context(bound_to))
        except InvalidTag:
            raise CardKeyError(f"a card does not open with data key {self.id}: its row was changed") from None
        return padded.decode().rstrip()

    def fingerprint(self, number: str) -> bytes:
        """Keyed digest by which the number is found again, 32 bytes."""
        return hmac.digest(self.secret, number.encode(), hashlib.sha256)

    def _context(self, bound_to: str) -> bytes:
        return f"streambank card {self.id} {bound_to}".encode()


def new_data_key(purpose: str) -> DataKey:
    return DataKey(uuid4().hex, purpose, os.urandom(KEY_BYTES))


def wrap_data_key(masters: MasterKeys, key: DataKey) -> tuple[str, bytes]:
    """Master key's id and the wrapped key."""
    return masters.wrap(key.secret, _wrapping_context(key.id, key.purpose))


def unwrap_data_key(masters: MasterKeys, key_id: str, purpose: str, master_key_id: str, wrapped: bytes) -> DataKey:
    """Raises `CardKeyError`."""
    secret = masters.unwrap(master_key_id, wrapped, _wrapping_context(key_id, purpose))
    if len(secret) != KEY_BYTES:
        raise CardKeyError(f"data key {key_id} unwraps to {len(secret)} bytes; there must be {KEY_BYTES}")
    return DataKey(key_id, purpose, secret)


def _wrapping_context(key_id: str, purpose: str) -> bytes:
    return f"streambank data key {key_id} {purpose}".encode()


def _encrypt(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, context)


def _decrypt(key: bytes, sealed: bytes, context: bytes, name: str) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
    except InvalidTag:
        raise CardKeyError(f"{name} does not open what it is said to have wrapped") from None
