"""Softmax and its logarithm; the maximum is subtracted first, so that exp does not overflow."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.kernels import kernel, wide
from minidist.engine.tensor import Tensor
from minidist.ops.operands import floating_only
from minidist.ops.reduction import keep_axes


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp x / Σ exp x along ``axis``."""
    x = floating_only("softmax", x)
    keep_axes("softmax", x.shape, axis)
    y = softmax_array(x.xp, x.data, axis)

    xp = x.xp

    def backward(grad: Array) -> Any:
        grad_x = xp.empty(y.shape, y.dtype)
        along(axis, _softmax_backward, xp, grad_x, grad, y)
        return (grad_x,)

    return Tensor.of(y, (x,), backward)


def softmax_array(xp: Any, x: Array, axis: int = -1) -> Array:
    """The softmax of an array, in one new array."""
    y = xp.empty(x.shape, x.dtype)
    along(axis, _softmax, xp, y, x)
    return y


def along(axis: int, function: Any, xp: Any, *arrays: Array) -> None:
    """Apply ``function(xp, *arrays)``, which works along the last axis, along ``axis``."""
    function(xp, *[array.swapaxes(axis, -1) for array in arrays])


@kernel(
    "T *y, const T *x",
    """
    x += row * w;
    y += row * w;
    A top = x[0], sum = 0;
    for (int j = threadIdx.x; j < w; j += blockDim.x) top = max(top, (A)x[j]);
    top = largest(top);
    for (int j = threadIdx.x; j < w; j += blockDim.x) sum += exp((A)x[j] - top);
    sum = total(sum);
    for (int j = threadIdx.x; j < w; j += blockDim.x) y[j] = T(exp((A)x[j] - top) / sum);
""",
    over="rows",
)
def _softmax(xp: Any, y: Array, x: Array) -> None:
    e = wide_like(xp, y)
    _less_maximum(xp, e, x)
    xp.exp(e, out=e)
    e /= e.sum(axis=-1, keepdims=True)
    if e is not y:
        y[...] = e


@kernel(
    "T *grad_x, const T *grad, const T *y",
    """
    grad_x += row * w;
    grad += row * w;
    y += row * w;
    A sum = 0;
    for (int j = threadIdx.x; j < w; j += blockDim.x) sum += (A)grad[j] * (A)y[j];
    sum = total(sum);
    for (int j = threadIdx.x; j < w; j += blockDim.x)
        grad_x[j] = T((A)y[j] * ((A)grad[j] - sum));
""",
    over="rows",
)
def _softmax_backward(xp: Any, grad_x: Array, grad: Array, y: Array) -> None:
    # dy_i/dx_j = y_i (δ_ij - y_j), so dx = y · (grad - Σ grad · y)
    product = wide(grad) * wide(y)
    xp.subtract(product, y * product.sum(axis=-1, keepdims=True), out=grad_x)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - log Σ exp x along ``axis``: the logarithm of softmax, without underflow."""
    x = floating_only("log_softmax", x)
    keep_axes("log_softmax", x.shape, axis)
    xp = x.xp
    y = xp.empty(x.shape, x.dtype)
    along(axis, _log_softmax, xp, y, x.data)

    def backward(grad: Array) -> Any:
        grad_x = xp.empty(y.shape, y.dtype)
        along(axis, _log_softmax_backward, xp, grad_x, grad, y)
        return (grad_x,)

    return Tensor.of(y, (x,), backward)


@kernel(
    "T *y, const T *x",
    """
    x += row * w;
    y += row * w;
    A top = x[0], sum = 0;
    for (int j = threadIdx.x; j < w; j += blockDim.x) top = max(top, (A)x[j]);
    top = largest(top);
    for (int j = threadIdx.x; j < w; j += blockDim.x) sum += exp((A)x[j] - top);
    sum = log(total(sum));
    for (int j = threadIdx.x; j < w; j += blockDim.x) y[j] = T((A)x[j] - top - sum);
""",
    over="rows",
)
def _log_softmax(xp: Any, y: Array, x: Array) -> None:
    z = wide_like(xp, y)
    _less_maximum(xp, z, x)
    z -= xp.log(xp.exp(z).sum(axis=-1, keepdims=True))
    if z is not y:
        y[...] = z


@kernel(
    "T *grad_x, const T *grad, const T *y",
    """
    grad_x += row * w;
    grad += row * w;
    y += row * w;
    A sum = 0;
    for (int j = threadIdx.x; j < w; j += blockDim.x) sum += (A)grad[j];
    sum = total(sum);
    for (int j = threadIdx.x; j < w; j += blockDim.x)
        grad_x[j] = T((A)grad[j] - exp((A)y[j]) * sum);
""",
    over="rows",
)
def _log_softmax_backward(xp: Any, grad_x: Array, grad: Array, y: Array) -> None:
    total = wide(grad).sum(axis=-1, keepdims=True)
    xp.subtract(grad, xp.exp(wide(y)) * total, out=grad_x)


def wide_like(xp: Any, y: Array) -> Array:
    """An array to compute y in: y itself, or a new float32 array if y is float16."""
    return y if y.dtype.itemsize >= 4 else xp.empty(y.shape, np.float32)


def _less_maximum(xp: Any, y: Array, x: Array) -> None:
    """y = x minus the largest element of its row, so that the largest exponential is 1."""
    if x.size:  # an empty row has no largest element
        xp.subtract(x, x.max(axis=-1, keepdims=True), out=y)
