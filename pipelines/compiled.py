"""How hot loops are compiled: Numba without reference counts, without the GIL, cached on disk.

With Numba's run-time system every array taken out of a tuple or passed on costs two atomic operations, which were a
third of the ledger's time. `compiled` functions do without: they may not allocate arrays, only work in those given.

Numba's disk cache looks at the file of the function that is called, not at those it calls in turn. A kernel therefore
names a digest of all its sources in a type that its compiled loop takes (`source_digest`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Final

from numba import njit

__all__ = ["compiled", "compiled_inline", "source_digest"]

compiled: Final = njit(nogil=True, cache=True, _nrt=False)
"""Decorator of a function called from Python or from other compiled code."""

compiled_inline: Final = njit(nogil=True, cache=True, _nrt=False, forceinline=True)
"""The same, always copied into its callers: for small steps of a hot path that take the whole state."""


def source_digest(package_file: str, *modules: ModuleType) -> str:
    """32 hexadecimal digits over all sources of the package of ``package_file`` and of further ``modules``."""
    files = {*Path(package_file).parent.glob("*.py"), *(Path(str(module.__file__)) for module in modules)}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
