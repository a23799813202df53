"""128-bit unsigned arithmetic on pairs of 64-bit words, compiled.

Every argument and result is a `numpy.uint64`: mixed with a signed integer, Numba would go over to floating point.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipelines.compiled import compiled_inline

__all__ = [
    "WORD_MAX",
    "add",
    "is_max",
    "is_zero",
    "join",
    "less",
    "saturating_subtract",
    "split",
    "subtract",
    "sum_overflows",
]

WORD_MAX: Final = np.uint64(2**64 - 1)

_ONE: Final = np.uint64(1)
_ZERO: Final = np.uint64(0)


def split(value: int) -> tuple[int, int]:
    """(low word, high word) of a number in [0, 2^128)."""
    return value & (2**64 - 1), value >> 64


def join(lo: Any, hi: Any) -> int:
    """The number whose words are ``lo`` and ``hi``."""
    return int(lo) | int(hi) << 64


@compiled_inline
def add(a_lo: Any, a_hi: Any, b_lo: Any, b_hi: Any) -> Any:
    """(low, high) of a + b modulo 2^128."""
    lo = a_lo + b_lo
    hi = a_hi + b_hi
    if lo < a_lo:
        hi += _ONE
    return lo, hi


@compiled_inline
def subtract(a_lo: Any, a_hi: Any, b_lo: Any, b_hi: Any) -> Any:
    """(low, high) of a - b modulo 2^128."""
    lo = a_lo - b_lo
    hi = a_hi - b_hi
    if a_lo < b_lo:
        hi -= _ONE
    return lo, hi


@compiled_inline
def less(a_lo: Any, a_hi: Any, b_lo: Any, b_hi: Any) -> Any:
    """a < b"""
    return a_hi < b_hi or (a_hi == b_hi and a_lo < b_lo)


@compiled_inline
def sum_overflows(a_lo: Any, a_hi: Any, b_lo: Any, b_hi: Any) -> Any:
    """a + b > 2^128 - 1"""
    lo, hi = add(a_lo, a_hi, b_lo, b_hi)
    return less(lo, hi, a_lo, a_hi)


@compiled_inline
def saturating_subtract(a_lo: Any, a_hi: Any, b_lo: Any, b_hi: Any) -> Any:
    """(low, high) of max(0, a - b)."""
    if less(a_lo, a_hi, b_lo, b_hi):
        return _ZERO, _ZERO
    return subtract(a_lo, a_hi, b_lo, b_hi)


@compiled_inline
def is_zero(lo: Any, hi: Any) -> Any:
    """a == 0"""
    return (lo | hi) == _ZERO


@compiled_inline
def is_max(lo: Any, hi: Any) -> Any:
    """a == 2^128 - 1"""
    return (lo & hi) == WORD_MAX
