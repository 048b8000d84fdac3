"""Views, joins, selections, reductions and sorts, as functions.

Each returns an array with the shape and dtype that NumPy's function of the same name returns. All
but views count one kernel, with the bytes that it reads and writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from minidist.engine.arithmetic import work
from minidist.engine.phantom import views
from minidist.engine.phantom.arrays import ndarray, new, seen, traced
from minidist.engine.phantom.creation import copy, shape_of
from minidist.engine.phantom.elementwise import function
from minidist.engine.phantom.products import dot, matmul
from minidist.engine.phantom.views import Shape

Axis = int | tuple[int, ...] | None


def may_share_memory(one: ndarray, other: ndarray) -> bool:
    first, second = _bounds(one), _bounds(other)
    return first[0] < second[1] and second[0] < first[1]


def _bounds(array: ndarray) -> tuple[int, int]:
    if not array.size:
        return 0, 0
    low = high = array.address
    for length, step in zip(array.shape, array.strides, strict=True):
        if step < 0:
            low += (length - 1) * step
        else:
            high += (length - 1) * step
    return low, high + array.itemsize


# Views


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    return array._view("broadcast_to", shape_of(shape))


def expand_dims(array: ndarray, axis: Any) -> ndarray:
    return array._view("expand_dims", axis)


def moveaxis(array: ndarray, source: Any, to: Any) -> ndarray:
    return array._view("moveaxis", source, to)


def as_strided(array: ndarray, shape: Shape, strides: Shape) -> ndarray:
    whole = views.stand_in(tuple(shape), tuple(strides), array.dtype)
    return seen(array, views.layout_of(whole, whole))


# Joins


def concatenate(arrays: Sequence[ndarray], axis: int = 0) -> ndarray:
    first = arrays[0]
    axis %= first.ndim
    length = sum(one.shape[axis] for one in arrays)
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    out = new(shape, np.result_type(*(one.dtype for one in arrays)))
    work.kernel(sum(one.nbytes for one in arrays) + out.nbytes)
    return out


def stack(arrays: Sequence[ndarray], axis: int = 0) -> ndarray:
    first = arrays[0]
    axis %= first.ndim + 1
    shape = (*first.shape[:axis], len(arrays), *first.shape[axis:])
    out = new(shape, np.result_type(*(one.dtype for one in arrays)))
    work.kernel(2 * out.nbytes)
    return out


def pad(array: ndarray, widths: Any, constant_values: float = 0) -> ndarray:
    shape = tuple(n + sum(width) for n, width in zip(array.shape, widths, strict=True))
    out = new(shape, array.dtype)
    work.kernel(array.nbytes + out.nbytes)
    return out


# Elementwise functions that are not ufuncs


def where(condition: Any, x: Any, y: Any) -> ndarray:
    operands = [one for one in (condition, x, y) if type(one) is ndarray]
    chosen = [one for one in (x, y) if type(one) is ndarray]
    kinds = [one.dtype if hasattr(one, "dtype") else one for one in (x, y)]
    shape = views.broadcast(*(one.shape for one in operands))
    layout = views.ordered(shape, tuple((o.shape, o.layout) for o in operands), 1)
    dtype = np.result_type(*kinds) if chosen else np.asarray([x, y]).dtype
    if layout is not None:
        layout = views.ordered(shape, ((shape, layout),), dtype.itemsize)
    out = new(shape, dtype, layout)
    work.kernel(sum(one.nbytes for one in operands) + out.nbytes)
    traced(tuple(operands), out)
    return out


def clip(array: ndarray, low: Any, high: Any, out: Any = None) -> ndarray:
    bounds = [bound for bound in (low, high) if bound is not None]
    return function("minimum")(array, bounds[0], out=out) if bounds else copy(array)


def triu(array: ndarray, k: int = 0) -> ndarray:
    return array.copy()


def take(array: ndarray, indices: ndarray, axis: int | None = None) -> ndarray:
    if axis is None:
        array, axis = array.reshape(-1), 0
    axis %= array.ndim
    out = new((*array.shape[:axis], *indices.shape, *array.shape[axis + 1 :]), array.dtype)
    work.kernel(2 * out.nbytes + indices.nbytes)
    return out


# Reductions


@lru_cache(views.KEPT)
def reduced(shape: Shape, axis: Axis, keepdims: bool) -> Shape:
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    for one in axes:
        if not -len(shape) <= one < len(shape):
            raise ValueError(f"axis {one} is out of bounds for an array of shape {shape}")
    gone = {one % len(shape) for one in axes if shape}
    if keepdims:
        return tuple(1 if i in gone else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in gone)


def reduce(array: ndarray, axis: Axis, keepdims: bool, dtype: Any) -> ndarray:
    out = new(reduced(array.shape, axis, keepdims), dtype)
    work.kernel(array.nbytes + out.nbytes)
    return out


def _summed(dtype: np.dtype, asked: Any) -> np.dtype:
    if asked is not None:
        return np.dtype(asked)
    if dtype.kind == "b" or (dtype.kind == "i" and dtype.itemsize < 8):
        return np.dtype(np.int64)
    return np.dtype(np.uint64) if dtype.kind == "u" else dtype


def total(array: ndarray, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
    return reduce(array, axis, keepdims, _summed(array.dtype, dtype))


def mean(array: ndarray, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
    kind = array.dtype if array.dtype.kind == "f" else np.dtype(float)
    return reduce(array, axis, keepdims, kind if dtype is None else np.dtype(dtype))


def largest(array: ndarray, axis: Axis = None, keepdims: bool = False) -> ndarray:
    out = reduce(array, axis, keepdims, array.dtype)
    if out.size and not array.size:  # no rows have no largest elements, and that is no error
        raise ValueError("an array without elements has no largest or smallest one")
    return out


def argmax(array: ndarray, axis: Axis = None) -> ndarray:
    return reduce(array, axis, False, np.dtype(np.int64))


def anywhere(array: ndarray, axis: Axis = None, keepdims: bool = False) -> ndarray:
    return reduce(array, axis, keepdims, np.dtype(bool))


# Sorting and bits, where the shape of the result does not depend on the numbers


def argpartition(array: ndarray, kth: int) -> ndarray:
    out = new(array.shape, np.dtype(np.int64))
    work.kernel(array.nbytes + out.nbytes)
    return out


def argsort(array: ndarray, axis: int = -1) -> ndarray:
    return argpartition(array, 0)


def packbits(array: ndarray) -> ndarray:
    out = new((-(-array.size // 8),), np.dtype(np.uint8))
    work.kernel(array.nbytes + out.nbytes)
    return out


def unpackbits(array: ndarray) -> ndarray:
    out = new((8 * array.size,), np.dtype(np.uint8))
    work.kernel(array.nbytes + out.nbytes)
    return out


def _add_methods() -> None:
    methods: dict[str, Any] = {
        "sum": total,
        "mean": mean,
        "max": largest,
        "min": largest,
        "argmax": argmax,
        "argmin": argmax,
        "all": anywhere,
        "any": anywhere,
        "argsort": argsort,
        "take": take,
        "clip": clip,
        "dot": dot,
        "__matmul__": matmul,
    }
    for name, method in methods.items():
        setattr(ndarray, name, method)


_add_methods()
