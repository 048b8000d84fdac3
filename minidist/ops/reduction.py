"""Reductions, such as sums and maxima; the backward computes the gradient of every element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.kernels import accumulator, wide
from minidist.engine.tensor import Tensor, as_tensor
from minidist.ops.operands import Shape, ShapeError, floating_only
from minidist.ops.selection import kept
from minidist.ops.sums import averaged, less_mean, summed

Axis = int | tuple[int, ...] | None


def keep_axes(name: str, shape: Shape, axis: Axis) -> Shape:
    """The shape of a reduction over ``axis`` that keeps the reduced axes, with length 1."""
    if axis is None:
        return (1,) * len(shape)
    axes = axis if isinstance(axis, tuple) else (axis,)
    for one in axes:
        if not isinstance(one, (int, np.integer)):
            raise TypeError(f"{name}: an axis is a whole number, several are a tuple, not {axis!r}")
        if not -len(shape) <= one < len(shape):
            raise ShapeError(f"{name}: axis {one} does not exist in shape {shape}")
    reduced = {one % len(shape) for one in axes}
    if len(reduced) < len(axes):
        raise ShapeError(f"{name}: axes {axis} of {shape}: one of them comes twice")
    return tuple(1 if i in reduced else length for i, length in enumerate(shape))


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over ``axis`` (all axes if None)."""
    x = as_tensor(x)
    shape, whole, xp = x.shape, keep_axes("sum", x.shape, axis), x.xp

    def backward(grad: Array) -> Any:
        return (xp.broadcast_to(grad.reshape(whole), shape),)  # every element has derivative 1

    return Tensor.of(summed(xp, x.data, axis, keepdims), (x,), backward)


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over ``axis`` (all axes if None); of floating numbers, as in PyTorch."""
    x = floating_only("mean", x)
    shape, whole, xp = x.shape, keep_axes("mean", x.shape, axis), x.xp
    y = averaged(xp, x.data, axis, keepdims)
    scale = y.size / (x.data.size or 1)

    def backward(grad: Array) -> Any:
        share = (wide(grad) * scale).astype(grad.dtype, copy=False)
        return (xp.broadcast_to(share.reshape(whole), shape),)

    return Tensor.of(y, (x,), backward)


def var(x: Tensor, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The variance over ``axis``: the sum of (x - mean)², divided by n - ddof as in NumPy.

    NaN if n - ddof is 0 or less.
    """
    x, centred, count, y = _variance("var", x, axis, ddof)
    whole, dtype = y.shape, x.dtype

    def backward(grad: Array) -> Any:
        # The mean depends on x too, but adds 0 to the gradient, since Σ (x - mean) = 0.
        share = wide(grad).reshape(whole) * (2 / count)
        return ((centred * share).astype(dtype, copy=False),)

    return Tensor.of(_as_result(y, x, axis, keepdims), (x,), backward)


def std(x: Tensor, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The standard deviation over ``axis``, √var. Where it is 0, the derivative is 0."""
    x, centred, count, variance = _variance("std", x, axis, ddof)
    xp, dtype = x.xp, x.dtype
    y = xp.sqrt(variance)

    def backward(grad: Array) -> Any:
        share = _over(xp, wide(grad).reshape(y.shape), y) / count
        return ((centred * share).astype(dtype, copy=False),)

    return Tensor.of(_as_result(y, x, axis, keepdims), (x,), backward)


def _variance(name: str, x: Any, axis: Axis, ddof: int) -> tuple[Tensor, Array, float, Array]:
    """x, x - mean, n - ddof, and the variance with the reduced axes kept; float16 in float32."""
    x = floating_only(name, x)
    keep_axes(name, x.shape, axis)
    centred = less_mean(x.xp, wide(x.data), axis)
    y = summed(x.xp, centred * centred, axis, keepdims=True)
    count = x.data.size / (y.size or 1) - ddof
    count = count if count > 0 else math.nan  # as in PyTorch
    return x, centred, count, y / count


def _as_result(y: Array, x: Tensor, axis: Axis, keepdims: bool) -> Array:
    """``y``, which has the reduced axes, in the shape and the dtype of the result."""
    y = y if keepdims else y.reshape(_drop(y.shape, axis))
    return y.astype(x.dtype, copy=False)


def norm(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The Euclidean norm √Σ x² over ``axis`` (all axes if None). The derivative at 0 is 0."""
    x = floating_only("norm", x)
    keep_axes("norm", x.shape, axis)
    xp, data, dtype = x.xp, x.data, x.dtype
    y = xp.sqrt(summed(xp, wide(data) * wide(data), axis, keepdims=True))

    def backward(grad: Array) -> Any:
        share = _over(xp, wide(grad).reshape(y.shape), y)
        return ((data * share).astype(dtype, copy=False),)

    return Tensor.of(_as_result(y, x, axis, keepdims), (x,), backward)


def _over(xp: Any, grad: Array, root: Array) -> Array:
    """grad / root, but 0 if the root is 0."""
    zero = root == 0
    return kept(xp, grad / xp.where(zero, 1, root).astype(grad.dtype, copy=False), ~zero)


def max(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest over ``axis``; elements that tie share the gradient equally."""
    return _extreme("max", x, axis, keepdims)


def min(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest over ``axis``; elements that tie share the gradient equally."""
    return _extreme("min", x, axis, keepdims)


def _extreme(name: str, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    x = as_tensor(x)
    shape = keep_axes(name, x.shape, axis)
    xp = x.xp
    if x.data.size == 0:
        raise ShapeError(f"{name}: the input {x.shape} has no elements, so there is no {name}")
    y = getattr(x.data, name)(axis=axis, keepdims=keepdims)
    data = x.data

    def backward(grad: Array) -> Any:
        hit = data == y.reshape(shape)
        count = hit.sum(axis=axis, keepdims=True).astype(accumulator(grad.dtype))
        share = (grad.reshape(shape) / count).astype(grad.dtype, copy=False)
        return (kept(xp, xp.broadcast_to(share, data.shape), hit),)

    backward.__qualname__ = f"{name}.backward"
    return Tensor.of(y, (x,), backward)


def logsumexp(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log Σ exp x over ``axis``; the maximum is subtracted first, so that nothing overflows."""
    x = floating_only("logsumexp", x)
    whole, dtype = keep_axes("logsumexp", x.shape, axis), x.dtype
    xp, data = x.xp, wide(x.data)
    # An array without elements has no maximum; the sum of its exponentials is 0.
    top = data.max(axis=axis, keepdims=True) if data.size else xp.zeros(whole, data.dtype)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))  # all -inf: log 0, not NaN
    total = summed(xp, xp.exp(data - top), axis, keepdims=True)
    full = xp.log(total) + top
    shape = full.shape if keepdims else _drop(full.shape, axis)

    def backward(grad: Array) -> Any:
        softmax = xp.exp(data - full)
        return ((grad.reshape(whole) * softmax).astype(dtype, copy=False),)

    return Tensor.of(full.reshape(shape).astype(dtype, copy=False), (x,), backward)


def _drop(shape: Shape, axis: Axis) -> Shape:
    """``shape`` without the reduced axes."""
    if axis is None:
        return ()
    axes = {one % len(shape) for one in (axis if isinstance(axis, tuple) else (axis,))}
    return tuple(length for i, length in enumerate(shape) if i not in axes)
