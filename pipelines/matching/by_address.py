"""Passes the whole state of a kernel to compiled code as one address instead of hundreds of arguments.

Numba passes a tuple of arrays by value, seven words for each array, to every function that is not inlined; with some
forty arrays this made calls slow and compilation take minutes. An `ArrayTable` is an object whose attributes are
arrays (and tuples of arrays). In compiled code ``state.orders`` reads data pointer and length from a table at its
address, which the optimiser turns into one load.

An array that compiled code takes from a table has length 0 there, because Numba would otherwise add the length to every
index below 0, which costs two instructions and a load for each index that it cannot prove to be 0 or more. So an index
must not be negative, `len` is of no use, and ``state.orders_length`` is the length of ``state.orders``.

The arrays must not be replaced or resized while the object lives, which it sees to by keeping them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    NativeValue,
    infer_getattr,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)
from numba.np.arrayobj import make_array, populate_array
from numpy.typing import NDArray

__all__ = ["ArrayTable"]

Arrays = Mapping[str, "NDArray[Any] | tuple[NDArray[Any], ...]"]


class _TableType(types.Type):
    """The layout of a table: per attribute its Numba type and, per array of it, (word in the table, inner shape)."""

    def __init__(self, name: str, attributes: dict[str, tuple[Any, list[tuple[int, tuple[int, ...]]]]]) -> None:
        self.attributes = attributes
        super().__init__(name=name)


@register_model(_TableType)
class _TableModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, table_type: Any) -> None:
        super().__init__(manager, table_type, ir.IntType(64))


class ArrayTable:
    """Arrays as attributes, for Python and for compiled code.

    ``label`` names what the compiled code depends on besides the arrays' types: Numba's disk cache keeps code of
    different labels apart. ``moving`` are groups of attributes, given as samples of one dimension, that see the same
    memory as different types; `point` says which memory, from one call of compiled code to the next.
    """

    def __init__(
        self, arrays: Arrays, label: str, moving: Mapping[str, Mapping[str, NDArray[Any]]] = MappingProxyType({})
    ) -> None:
        words: list[int] = []
        attributes: dict[str, tuple[Any, list[tuple[int, tuple[int, ...]]]]] = {}
        self._kept = dict(arrays)
        for name, value in arrays.items():
            setattr(self, name, value)
            places = []
            for array in value if isinstance(value, tuple) else (value,):
                if not array.flags.c_contiguous:
                    raise ValueError(f"{name}: arrays in a table are C-contiguous")
                places.append((len(words), array.shape[1:]))
                words += [array.ctypes.data, len(array)]
            attributes[name] = (numba.typeof(value), places)
        self._group_words: dict[str, int] = {}
        for group, views in moving.items():
            self._group_words[group] = len(words)
            for name, sample in views.items():
                attributes[name] = (numba.typeof(sample), [(len(words), ())])
            words += [0, 0]
        self._table = np.array(words, np.int64)
        self.address: Final = self._table.ctypes.data
        layout = ", ".join(f"{name}: {kind} {places}" for name, (kind, places) in attributes.items())
        # the name goes into the name of every compiled function, so it is short
        digest = hashlib.sha256(f"{label}: {layout}".encode()).hexdigest()[:16]
        self._numba_type_: Final = _TableType(f"ArrayTable_{digest}", attributes)

    def point(self, group: str, data: NDArray[Any], length: int) -> None:
        """Let a group's attributes see ``length`` items at ``data``, which must stay there until the next `point`."""
        word = self._group_words[group]
        # half as slow as data.ctypes.data
        self._table[word] = data.__array_interface__["data"][0]
        self._table[word + 1] = length


@typeof_impl.register(ArrayTable)
def _typeof(value: ArrayTable, context: Any) -> Any:
    return value._numba_type_


@unbox(_TableType)
def _unbox(table_type: Any, value: Any, context: Any) -> Any:
    address = context.pyapi.object_getattr_string(value, "address")
    native = context.pyapi.long_as_longlong(address)
    context.pyapi.decref(address)
    return NativeValue(native, is_error=cgutils.is_not_null(context.builder, context.pyapi.err_occurred()))


_LENGTH: Final = "_length"


@infer_getattr
class _TableAttributes(AttributeTemplate):  # type: ignore[misc]
    key = _TableType

    def generic_resolve(self, table_type: Any, name: str) -> Any:
        if name.removesuffix(_LENGTH) in table_type.attributes and name.endswith(_LENGTH):
            return types.intp
        found = table_type.attributes.get(name)
        return None if found is None else found[0]


@lower_getattr_generic(_TableType)
def _getattr(context: Any, builder: Any, table_type: Any, address: Any, name: str) -> Any:
    kind, places = table_type.attributes[name.removesuffix(_LENGTH)]
    intp = context.get_value_type(types.intp)
    table = builder.inttoptr(address, ir.PointerType(ir.IntType(64)))

    def load(word: int) -> Any:
        loaded = builder.load(builder.gep(table, [ir.Constant(ir.IntType(64), word)]))
        # nothing changes the table while compiled code runs, so one load of each word is enough
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    def build(array_type: Any, place: tuple[int, tuple[int, ...]]) -> Any:
        word, inner = place
        data = load(word)
        array = make_array(array_type)(context, builder)
        itemsize = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
        strides = [itemsize]
        for size in reversed(inner):
            strides.insert(0, strides[0] * size)
        populate_array(
            array,
            data=builder.inttoptr(data, array.data.type),
            shape=[ir.Constant(intp, 0), *(ir.Constant(intp, size) for size in inner)],
            strides=[ir.Constant(intp, stride) for stride in strides],
            itemsize=ir.Constant(intp, itemsize),
            meminfo=None,
            parent=None,
        )
        return array._getvalue()

    if name.endswith(_LENGTH):
        return load(places[0][0] + 1)
    if len(places) > 1:
        members = [build(member, place) for member, place in zip(kind, places, strict=True)]
        return context.make_tuple(builder, kind, members)
    return build(kind, places[0])
