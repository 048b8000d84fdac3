"""New arrays and copies, with the shapes and dtypes of NumPy's functions of the same names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidist.engine.array import work
from minidist.engine.phantom import views
from minidist.engine.phantom.arrays import like as like_array
from minidist.engine.phantom.arrays import ndarray, new
from minidist.engine.phantom.views import Shape


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
    """``value`` itself, or an array with the shape of a host array or of numbers.

    As in CuPy, a host array in column-major order keeps it; any other becomes row-major.
    """
    if type(value) is ndarray:
        return value if dtype is None else value.astype(dtype, copy=False)
    host = value if isinstance(value, np.ndarray) else np.asarray(value)
    kind = np.dtype(dtype or host.dtype)
    by_columns = host.flags.fnc  # column-major and not row-major: a vector is both
    layout = views.contiguous(host.shape[::-1], kind.itemsize)[::-1] if by_columns else None
    return new(host.shape, kind, layout)


def array(value: Any, dtype: Any = None, copy: bool = True, order: str = "K") -> ndarray:
    if type(value) is not ndarray:
        return asarray(value, dtype)
    if order == "C":  # row-major, whatever the order of the original
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
    """``value`` itself: there are no numbers to copy."""
    return value
