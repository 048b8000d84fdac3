"""Softmax and its logarithm, with the maximum taken out first so that nothing overflows."""

from __future__ import annotations

from typing import Any

from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, as_tensor
from minidist.ops.reduction import keep_axes


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp x / Σ exp x along ``axis``."""
    x = as_tensor(x)
    keep_axes("softmax", x.shape, axis)
    y = softmax_array(x.xp, x.data, axis)

    def backward(grad: Array) -> Any:
        # dy_i/dx_j = y_i (δ_ij - y_j), so dx = y · (grad - Σ grad · y)
        product = grad * y
        return (product - y * product.sum(axis=axis, keepdims=True),)

    return Tensor.of(y, (x,), backward)


def softmax_array(xp: Any, x: Array, axis: int = -1) -> Array:
    """The softmax of an array, in one new array."""
    y = _less_maximum(x, axis)
    xp.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - log Σ exp x along ``axis``: the logarithm of softmax without its underflow."""
    x = as_tensor(x)
    keep_axes("log_softmax", x.shape, axis)
    xp = x.xp
    y = _less_maximum(x.data, axis)
    y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))

    def backward(grad: Array) -> Any:
        return (grad - xp.exp(y) * grad.sum(axis=axis, keepdims=True),)

    return Tensor.of(y, (x,), backward)


def _less_maximum(x: Array, axis: int) -> Array:
    """A new array, x less the largest along ``axis``: the largest exponential is then 1."""
    return x - x.max(axis=axis, keepdims=True) if x.size else x.copy()  # nothing has no largest
