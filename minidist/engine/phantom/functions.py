"""Everything else of the module: new arrays, joins, reductions, products, and what sorts.

Each function returns what NumPy's of the same name returns, in shape and dtype, and counts one
kernel: its FLOPs, if it multiplies matrices, and the bytes that it reads and writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from minidist.engine.arithmetic import work
from minidist.engine.phantom import views
from minidist.engine.phantom.arrays import like as like_array
from minidist.engine.phantom.arrays import ndarray, new, refuse_host, seen, traced
from minidist.engine.phantom.elementwise import function
from minidist.engine.phantom.views import Shape

Axis = int | tuple[int, ...] | None

# New arrays


def shape_of(shape: Any) -> Shape:
    return (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(map(int, shape))


def empty(shape: Any, dtype: Any = float) -> ndarray:
    return new(shape_of(shape), np.dtype(dtype))


def filled(shape: Any, dtype: Any) -> ndarray:
    out = empty(shape, dtype)
    work.kernel(out.nbytes)
    return out


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    return filled(shape, dtype)


ones = zeros


def full(shape: Any, value: Any, dtype: Any = None) -> ndarray:
    return filled(shape, np.asarray(value).dtype if dtype is None else dtype)


def empty_like(array: ndarray, dtype: Any = None) -> ndarray:
    return like_array(array, array.dtype if dtype is None else np.dtype(dtype))


def zeros_like(array: ndarray, dtype: Any = None) -> ndarray:
    out = empty_like(array, dtype)
    work.kernel(out.nbytes)
    return out


ones_like = zeros_like


def full_like(array: ndarray, value: Any, dtype: Any = None) -> ndarray:
    return zeros_like(array, dtype)


def arange(*bounds: Any, dtype: Any = None) -> ndarray:
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    kind = np.dtype(dtype) if dtype is not None else np.arange(*(type(b)(0) for b in bounds)).dtype
    return filled(max(0, math.ceil((stop - start) / step)), kind)


def asarray(value: Any, dtype: Any = None) -> ndarray:
    """``value`` itself, or an array of the shape of a host's array or of numbers.

    As in CuPy, a host's array stored by columns stays so; any other becomes one stored by rows.
    """
    if type(value) is ndarray:
        return value if dtype is None else value.astype(dtype, copy=False)
    host = value if isinstance(value, np.ndarray) else np.asarray(value)
    kind = np.dtype(dtype or host.dtype)
    by_columns = host.flags.fnc  # and not by rows too, as a vector is
    layout = views.contiguous(host.shape[::-1], kind.itemsize)[::-1] if by_columns else None
    return new(host.shape, kind, layout)


def array(value: Any, dtype: Any = None, copy: bool = True, order: str = "K") -> ndarray:
    if type(value) is not ndarray:
        return asarray(value, dtype)
    if order == "C":  # stored by rows, however the original is
        out = value.copy()
        return out if dtype is None else out.astype(dtype, copy=False)
    out = like_array(value, np.dtype(dtype or value.dtype))
    work.kernel(value.nbytes + out.nbytes)
    return out


def copy(value: ndarray) -> ndarray:
    return array(value)


def ascontiguousarray(value: ndarray, dtype: Any = None) -> ndarray:
    value = value if dtype is None else value.astype(dtype, copy=False)
    return value if value.layout is None else value.copy()


def asnumpy(value: ndarray) -> ndarray:
    """There is nothing to copy."""
    return value


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


# Element by element, beyond the ufuncs


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
    if not array.size:
        raise ValueError("no largest or smallest of an array without elements")
    return reduce(array, axis, keepdims, array.dtype)


def argmax(array: ndarray, axis: Axis = None) -> ndarray:
    return reduce(array, axis, False, np.dtype(np.int64))


def anywhere(array: ndarray, axis: Axis = None, keepdims: bool = False) -> ndarray:
    return reduce(array, axis, keepdims, np.dtype(bool))


# Products


def matmul(a: ndarray, b: ndarray, out: Any = None) -> ndarray:
    refuse_host(a, "matmul")
    refuse_host(b, "matmul")
    shape = _product(a.shape, b.shape)
    if out is None:
        out = new(shape, np.result_type(a.dtype, b.dtype))
    elif out.shape != shape:
        raise ValueError(f"matmul: out is {out.shape}, the product {shape}")
    work.kernel(a.nbytes + b.nbytes + out.nbytes, 2 * out.size * a.shape[-1])
    return out


@lru_cache(views.KEPT)
def _product(a: Shape, b: Shape) -> Shape:
    if not a or not b or a[-1] != b[0 if len(b) == 1 else -2]:
        raise ValueError(f"matmul: shapes {a} and {b} do not fit")
    left, right = a[:-2], b[:-2]
    return (*views.broadcast(left, right), *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def scaled_product(a: ndarray, b: ndarray, out: ndarray, add: bool) -> None:
    """``products.product``: one kernel, as by cuBLAS."""
    shape = _product(a.shape, b.shape)
    if out.shape != shape:
        raise ValueError(f"product: out is {out.shape}, the product {shape}")
    moved = a.nbytes + b.nbytes + (2 if add else 1) * out.nbytes
    work.kernel(moved, 2 * out.size * a.shape[-1])


def dot(a: ndarray, b: ndarray, out: Any = None) -> ndarray:
    return matmul(a, b, out)


def einsum(subscripts: str, *operands: ndarray) -> ndarray:
    shape, flops = _einsum(subscripts, *(one.shape for one in operands))
    out = new(shape, np.result_type(*(one.dtype for one in operands)))
    work.kernel(sum(one.nbytes for one in operands) + out.nbytes, flops)
    return out


@lru_cache(views.KEPT)
def _einsum(subscripts: str, *shapes: Shape) -> tuple[Shape, int]:
    """The result's shape, and 2 FLOPs for each element of the loop, if there is a product."""
    left, _, right = subscripts.replace(" ", "").partition("->")
    lengths: dict[str, int] = {}
    for names, shape in zip(left.split(","), shapes, strict=True):
        free = len(shape) - len(names.replace("...", ""))
        letters = names.replace("...", "".join(str(i) for i in range(free)))
        lengths |= dict(zip(letters, shape, strict=True))
    digits = "".join(letter for letter in lengths if letter.isdigit())
    shape = tuple(lengths[letter] for letter in right.replace("...", digits))
    return shape, 2 * math.prod(lengths.values()) if len(shapes) > 1 else 0


def qr(array: ndarray) -> tuple[ndarray, ndarray]:
    """The two factors; an m x n matrix takes about 4mn² operations (Golub, Van Loan, 5.2)."""
    m, n = array.shape
    k = min(m, n)
    work.kernel(2 * array.nbytes, 4 * m * n * k)
    return new((m, k), array.dtype), new((k, n), array.dtype)


# Sorting and bits: results whose shape does not depend on the numbers


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
