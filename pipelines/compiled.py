"""How hot loops are compiled: Numba without reference counts, without the GIL, cached on disk.

With Numba's run-time system every array taken out of a tuple or passed on costs two atomic operations, which were a
third of the ledger's time. `compiled` functions do without: they may not allocate arrays, only work in those given.
"""

from __future__ import annotations

from typing import Final

from numba import njit

__all__ = ["compiled", "compiled_inline"]

compiled: Final = njit(nogil=True, cache=True, _nrt=False)
"""Decorator of a function called from Python or from other compiled code."""

compiled_inline: Final = njit(nogil=True, cache=True, _nrt=False, forceinline=True)
"""The same, always copied into its callers: for small steps of a hot path that take the whole state."""
