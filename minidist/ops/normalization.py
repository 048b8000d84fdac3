"""Normalization: layer norm, RMS norm, batch norm, each as one op.

All keep x̂, the normalized input, and the factor 1/σ that made it. With y = x̂ · w + b and
u = grad · w, the gradient of the input is u with what the statistics absorb taken out:

    layer and batch norm   (u - mean(u) - x̂ · mean(u · x̂)) / σ
    RMS norm               (u           - x̂ · mean(u · x̂)) / σ
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.tensor import Into, Tensor, as_tensor, recording
from minidist.ops.chunks import chunks
from minidist.ops.elementwise import astype
from minidist.ops.matmul import column_sums
from minidist.ops.operands import ShapeError, same_device, same_dtype


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float = 1e-5) -> Tensor:
    """(x - mean) / √(variance + ε) · weight + bias over the last axis (arXiv 1607.06450).

    Shapes: x (..., width), weight and bias (width,) → (..., width).
    """
    return _last_axis("layer_norm", x, weight, bias, epsilon, centred=True)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float = 1e-5) -> Tensor:
    """x / √(mean(x²) + ε) · weight over the last axis (arXiv 1910.07467)."""
    return _last_axis("rms_norm", x, weight, None, epsilon, centred=False)


def _last_axis(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, centred: bool
) -> Tensor:
    x = as_tensor(x)
    if (
        x.ndim == 0
        or weight.shape != x.shape[-1:]
        or (bias is not None and bias.shape != weight.shape)
    ):
        raise ShapeError(
            f"{name}: input {x.shape} needs a weight of shape {x.shape[-1:]}, not {weight.shape}"
            + (f" and a bias of the same, not {bias.shape}" if bias is not None else "")
        )
    same_device(name, x, weight)
    same_dtype(name, x, weight)
    if x.dtype.itemsize < 4:  # float16: the sums of squares pass 65504
        more = None if bias is None else astype(bias, np.float32)
        wide_x, wide_weight = astype(x, np.float32), astype(weight, np.float32)
        return astype(_last_axis(name, wide_x, wide_weight, more, epsilon, centred), x.dtype)
    xp, shape, width = x.xp, x.data.shape, x.shape[-1]
    rows = x.data.reshape(-1, width)  # (n, w)
    scale = weight.data
    y = xp.empty(rows.shape, rows.dtype)
    keep = recording(x, weight) or (bias is not None and recording(bias))
    normed = xp.empty(rows.shape, rows.dtype) if keep else y
    inverse = xp.empty((len(rows), 1), rows.dtype)
    average = _average(xp, width, rows.dtype)
    for part in chunks(rows, width):
        out = normed[part]
        if centred:
            xp.subtract(rows[part], rows[part] @ average, out=out)
        else:
            out[...] = rows[part]
        square = xp.einsum("nw,nw->n", out, out)  # one pass, and no array of squares
        square *= 1 / (width or 1)
        square += epsilon
        xp.sqrt(square, out=square)
        xp.divide(1, square[:, None], out=inverse[part])
        out *= inverse[part]
        xp.multiply(out, scale, out=y[part])
        if bias is not None:
            y[part] += bias.data
    biased, wants_input_grad = bias is not None, x.node is not None

    def backward(grad: Array) -> Any:
        grad = grad.reshape(-1, width)  # (n, w)
        average = _average(xp, width, grad.dtype)
        grad_x = xp.empty(shape, grad.dtype) if wants_input_grad else None

        def weight_grad(out: Array | None) -> Array:
            total = xp.einsum("nw,nw->w", grad, normed)  # Σ over rows of grad · x̂
            if out is None:
                return total
            out[...] = total  # a copy of one row: CuPy's einsum has no ``out``
            return out

        if grad_x is not None:
            filled = grad_x.reshape(-1, width)  # (n, w), the same memory
            for part in chunks(grad, width):
                out, hat = filled[part], normed[part]
                xp.multiply(grad[part], scale, out=out)  # u
                product = xp.einsum("nw,nw->n", out, hat)[:, None]  # (n, 1)
                product *= 1 / (width or 1)
                if centred:
                    out -= out @ average
                out -= hat * product
                out *= inverse[part]
        gradients: tuple[Any, ...] = (grad_x, Into(weight_grad))
        if biased:
            gradients += (Into(lambda out: column_sums(grad, out)),)
        return gradients

    backward.__qualname__ = f"{name}.backward"
    parents = (x, weight) if bias is None else (x, weight, bias)
    return Tensor.of(y.reshape(shape), parents, backward)


def _average(xp: Any, width: int, dtype: Any) -> Array:
    """A column of 1/width. A row's mean is a product with it: faster than a short reduction."""
    return xp.full((width, 1), 1 / max(1, width), dtype)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[Array, Array] | None = None,
    epsilon: float = 1e-5,
) -> tuple[Tensor, Array, Array]:
    """(x - mean) / √(variance + ε) · weight + bias for each channel (arXiv 1502.03167).

    Shapes: x (batch, channels, ...), weight and bias (channels,). Mean and variance are those of
    this batch, over all other axes, or ``statistics`` if given (evaluation). Returns the result,
    the mean and the variance. The statistics couple the samples: parts of a batch, each with its
    own, do *not* add up to the whole.
    """
    x = as_tensor(x)
    if x.ndim < 2 or weight.shape != (x.shape[1],) or bias.shape != weight.shape:
        raise ShapeError(
            f"batch_norm: input {x.shape} = (batch, channels, ...) needs weight and bias of shape "
            f"{x.shape[1:2]}, not {weight.shape} and {bias.shape}"
        )
    if statistics is None and x.size == x.shape[1]:
        raise ShapeError(
            f"batch_norm: input {x.shape} has one value a channel: no variance to divide by. "
            "Use a larger batch, or eval()"
        )
    same_device("batch_norm", x, weight)
    same_dtype("batch_norm", x, weight)
    if x.dtype.itemsize < 4:
        wide_x, wide_weight = astype(x, np.float32), astype(weight, np.float32)
        wide_bias = astype(bias, np.float32)
        y, mean, variance = batch_norm(wide_x, wide_weight, wide_bias, statistics, epsilon)
        return astype(y, x.dtype), mean, variance
    xp, data = x.xp, x.data
    axes = (0, *range(2, x.ndim))
    channel = (1, -1) + (1,) * (x.ndim - 2)  # (1, c, 1, ...)
    if statistics is None:
        mean = data.mean(axis=axes)  # (c,)
        normed = data - mean.reshape(channel)
        variance = (normed * normed).mean(axis=axes)  # (c,)
    else:
        mean, variance = statistics
        normed = data - mean.reshape(channel)
    inverse = 1 / xp.sqrt(variance + epsilon)
    normed *= inverse.reshape(channel)
    y = normed * weight.data.reshape(channel)
    y += bias.data.reshape(channel)
    count, fixed, scale = data.size // max(1, len(mean)), statistics is not None, weight.data
    wants_input_grad = x.node is not None

    def backward(grad: Array) -> Any:
        grad_weight = (grad * normed).sum(axis=axes)
        grad_bias = grad.sum(axis=axes)
        grad_x = None
        if wants_input_grad:
            grad_x = grad
            if not fixed:  # what the statistics absorb: mean(u) + x̂ · mean(u · x̂), with u / w
                absorbed = normed * (grad_weight / count).reshape(channel)
                absorbed += (grad_bias / count).reshape(channel)
                grad_x = grad - absorbed
            grad_x = grad_x * (scale * inverse).reshape(channel)
        return grad_x, grad_weight, grad_bias

    return Tensor.of(y, (x, weight, bias), backward), mean, variance
