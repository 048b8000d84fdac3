"""Sums and means that are accurate; the reductions of all ops use them.

float16 numbers have 11 significant bits and end at 65504, so they are summed in float32, as in
PyTorch. NumPy adds in pairs, which is accurate, only along the last axis. Along any other axis it
adds one row after another: the sum of a million float32 rows of 0.1 is 1 % off. So sums along other
axes are computed in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidist.engine.array import Array

FEW = 512  # this many additions in sequence change only the last digits of a float32 sum

Axis = int | tuple[int, ...] | None


def summed(xp: Any, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The sum over ``axis`` (all if None), in the dtype of x."""
    if x.dtype.kind == "u":  # int64 as in PyTorch: NumPy's uint64 and int64 give float64
        return x.sum(axis=axis, keepdims=keepdims, dtype=np.int64)
    wider = _wider(xp, x, axis)
    total = x.sum(axis=axis, keepdims=keepdims, dtype=wider)
    return total if wider is None else total.astype(x.dtype, copy=False)


def averaged(xp: Any, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The mean over ``axis`` (all if None), in the dtype of x."""
    wider = _wider(xp, x, axis)
    mean = x.mean(axis=axis, keepdims=keepdims, dtype=wider)
    return mean if wider is None else mean.astype(x.dtype, copy=False)


def less_mean(xp: Any, x: Array, axis: Axis = None) -> Array:
    """x - mean over ``axis``, exactly 0 if all numbers are equal.

    The mean of equal numbers is rounded, and may differ from them. So the first number is
    subtracted before the mean is computed.
    """
    reduced = _axes(x.ndim, axis)
    first = x[tuple(slice(0, 1) if i in reduced else slice(None) for i in range(x.ndim))]
    centred = x - first
    centred -= averaged(xp, centred, axis, keepdims=True)
    return centred


def dtype_to_add(xp: Any, dtype: Any, count: int) -> Any:
    """The dtype in which to add ``count`` numbers of ``dtype``, one after another."""
    if dtype == np.float16:
        return np.dtype(np.float32)
    return np.dtype(np.float64) if xp is np and dtype == np.float32 and count > FEW else dtype


def _wider(xp: Any, x: Array, axis: Axis) -> Any:
    """The dtype to add in; None means that of x."""
    axes = _axes(x.ndim, axis)
    in_pairs = x.ndim - 1 in axes
    wider = dtype_to_add(xp, x.dtype, 0 if in_pairs else math.prod(x.shape[one] for one in axes))
    return None if wider == x.dtype else wider


def _axes(ndim: int, axis: Axis) -> set[int]:
    """The axes that are reduced, as non-negative numbers."""
    if axis is None:
        return set(range(ndim))
    return {one % ndim for one in (axis if isinstance(axis, tuple) else (axis,)) if ndim}
