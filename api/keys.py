"""Signing keys of the API's own token issuer: private JWKs in files of mode 0600, one each, reread on change.

The newest key signs. An older one stays published until the last token it signed has expired, so that a rotation is
never seen by a client. Workers notice a rotation at their next use of the keys (one `stat` of the directory).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from joserfc.jwk import ECKey

from infra.secret_files import exclusive, write_secret

__all__ = ["ALGORITHM", "KeyStore", "SigningKey"]

ALGORITHM: Final = "ES256"
CLOCK_LEEWAY_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class SigningKey:
    """``created_at`` and ``retired_at`` in seconds since the epoch; the signing key is not retired."""

    kid: str
    created_at: float
    retired_at: float | None
    key: ECKey


class KeyStore:
    """The keys in ``directory``; ``token_seconds`` is how long a retired key must still verify."""

    def __init__(self, directory: Path, token_seconds: int) -> None:
        self._directory = directory
        self._keep_seconds = token_seconds + CLOCK_LEEWAY_SECONDS
        self._seen: int = -1
        self._keys: dict[str, SigningKey] = {}

    def rotate(self) -> SigningKey:
        """Make a new signing key, retire the others, forget those whose tokens have all expired."""
        with exclusive(self._directory / ".lock"):
            self._reload()
            return self._rotate()

    def ensure(self) -> SigningKey:
        """The signing key; made when there is none yet."""
        with exclusive(self._directory / ".lock"):
            self._reload()
            return self._signing() or self._rotate()

    def signing(self) -> SigningKey:
        self._refresh()
        return self._signing() or self.ensure()

    def find(self, kid: str) -> ECKey | None:
        """The key that verifies tokens of ``kid``, or None when it is unknown or past its time."""
        self._refresh()
        found = self._keys.get(kid)
        return found.key if found is not None and self._verifies(found) else None

    def all(self) -> list[SigningKey]:
        """Keys that sign or verify, newest first."""
        self._refresh()
        return sorted(filter(self._verifies, self._keys.values()), key=lambda key: -key.created_at)

    def jwks(self) -> dict[str, Any]:
        """The public halves, as RFC 7517 has it."""
        return {"keys": [key.key.as_dict(private=False) for key in self.all()]}

    def _verifies(self, key: SigningKey) -> bool:
        return key.retired_at is None or time.time() < key.retired_at + self._keep_seconds

    def _signing(self) -> SigningKey | None:
        return max((key for key in self._keys.values() if key.retired_at is None), key=lambda key: key.created_at,
                   default=None)  # fmt: skip

    def _refresh(self) -> None:
        try:
            changed = self._directory.stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        if changed != self._seen:
            self._reload()
            self._seen = changed

    def _reload(self) -> None:
        keys: dict[str, SigningKey] = {}
        for path in sorted(self._directory.glob("*.json")):
            document = json.loads(path.read_text(encoding="utf-8"))
            keys[document["kid"]] = SigningKey(
                document["kid"], document["created_at"], document["retired_at"], ECKey.import_key(document["jwk"])
            )
        self._keys = keys

    def _rotate(self) -> SigningKey:
        now = time.time()
        kid = uuid4().hex
        key = ECKey.generate_key("P-256", {"kid": kid, "use": "sig", "alg": ALGORITHM})
        made = SigningKey(kid, now, None, key)
        self._write(made)
        for old in self._keys.values():
            if old.retired_at is None:
                self._write(SigningKey(old.kid, old.created_at, now, old.key))
            elif not self._verifies(old):
                (self._directory / f"{old.kid}.json").unlink(missing_ok=True)
        self._reload()
        return made

    def _write(self, key: SigningKey) -> None:
        document = {
            "kid": key.kid, "created_at": key.created_at, "retired_at": key.retired_at,
            "jwk": key.key.as_dict(private=True),
        }  # fmt: skip
        write_secret(self._directory / f"{key.kid}.json", document)
