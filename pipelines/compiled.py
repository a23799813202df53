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
from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["compiled", "compiled_inline", "prefetch", "source_digest"]

compiled: Final = njit(nogil=True, cache=True, _nrt=False)
"""Decorator of a function called from Python or from other compiled code."""

compiled_inline: Final = njit(nogil=True, cache=True, _nrt=False, forceinline=True)
"""The same, always copied into its callers: for small steps of a hot path that take the whole state."""


@intrinsic
def prefetch(_typing: Any, array: Any, index: Any, offset: Any) -> Any:
    """Ask for the cache line ``offset`` bytes behind the start of ``array[index]``, without waiting for it.

    In compiled code. Nothing is read: an index outside the array costs nothing and breaks nothing.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, *integers = signature.args
        column = context.make_array(kind)(context, builder, arguments[0])
        row, more = (
            context.cast(builder, value, integer, types.intp)
            for value, integer in zip(arguments[1:], integers, strict=True)
        )
        start = builder.ptrtoint(column.data, row.type)
        address = builder.add(builder.add(start, builder.mul(row, builder.extract_value(column.strides, 0))), more)
        pointer, word = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        )
        to_write, into_all_levels, data = word(1), word(3), word(1)
        builder.call(function, [builder.inttoptr(address, pointer), to_write, into_all_levels, data])
        return context.get_dummy_value()

    return types.void(array, index, offset), generate


def source_digest(package_file: str, *modules: ModuleType) -> str:
    """32 hexadecimal digits over all sources of the package of ``package_file``, of further ``modules`` and of this."""
    files = {
        Path(__file__),
        *Path(package_file).parent.glob("*.py"),
        *(Path(str(module.__file__)) for module in modules),
    }
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
