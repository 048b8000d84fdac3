"""Reductions: many elements to one; the backward spreads the gradient back over them."""

from __future__ import annotations

from minidist.array import Array
from minidist.tensor import Tensor

Axis = int | tuple[int, ...] | None


def expand(grad: Array, x: Tensor, axis: Axis, keepdims: bool) -> Array:
    """A reduction's gradient, given back the axes that were reduced away."""
    if not keepdims and axis is not None:
        grad = x.xp.expand_dims(grad, axis)
    return x.xp.broadcast_to(grad, x.shape)


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over ``axis`` (all axes if None)."""
    y = x.data.sum(axis=axis, keepdims=keepdims)
    return Tensor.of(x.xp.asarray(y), (x,), lambda grad: (expand(grad, x, axis, keepdims),))


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over ``axis`` (all axes if None)."""
    y = x.xp.asarray(x.data.mean(axis=axis, keepdims=keepdims))
    scale = y.size / max(x.size, 1)
    return Tensor.of(y, (x,), lambda grad: (expand(grad * scale, x, axis, keepdims),))
