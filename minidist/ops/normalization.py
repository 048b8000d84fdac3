"""Normalization: layer norm, RMS norm, batch norm, each as one op.

All save x̂, the normalized input, and the factor 1/σ. With y = x̂ · w + b and u = grad · w, the
gradient of the input is u minus the parts that come from the mean and from σ:

    layer and batch norm   (u - mean(u) - x̂ · mean(u · x̂)) / σ
    RMS norm               (u           - x̂ · mean(u · x̂)) / σ
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.kernels import accumulator, kernel, wide
from minidist.engine.tensor import Into, Tensor, as_tensor, recording
from minidist.ops.chunks import chunks
from minidist.ops.elementwise import astype
from minidist.ops.matmul import column_products, column_sums
from minidist.ops.operands import Shape, ShapeError, by_sample, same_kind
from minidist.ops.sums import averaged, less_mean, summed


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
    same_kind(name, x, weight)
    xp, shape, width = x.xp, x.data.shape, x.shape[-1]
    count = math.prod(shape[:-1])
    rows = x.data.reshape(count, width)  # (n, w)
    y = xp.empty(rows.shape, rows.dtype)
    keep = recording(x, weight) or (bias is not None and recording(bias))
    normed = xp.empty(rows.shape, rows.dtype) if keep else None
    inverse = xp.empty((len(rows), 1), accumulator(rows.dtype))
    shift = None if bias is None else bias.data
    _normalise(xp, rows, weight.data, shift, y, normed, inverse, epsilon, centred)
    biased, scale = bias is not None, weight.data if x.node is not None else None

    def backward(grad: Array) -> Any:
        grad = grad.reshape(count, width)  # (n, w)
        grad_x = None
        if scale is not None:
            grad_x = xp.empty(shape, grad.dtype)
            filled = grad_x.reshape(count, width)  # (n, w), the same memory
            _normalise_backward(xp, grad, scale, normed, inverse, filled, centred)
        gradients: tuple[Any, ...] = (
            grad_x,
            Into(  # Σ over rows of grad · x̂
                lambda out: column_products(grad, normed, out),
                lambda n: by_sample(name, grad * normed, shape, n).sum(axis=1),
            ),
        )
        if biased:
            gradients += (
                Into(
                    lambda out: column_sums(grad, out),
                    lambda n: by_sample(name, grad, shape, n).sum(axis=1),
                ),
            )
        return gradients

    backward.__qualname__ = f"{name}.backward"
    parents = (x, weight) if bias is None else (x, weight, bias)
    return Tensor.of(y.reshape(shape), parents, backward)


@kernel(
    "const T *x, const T *weight, const T *bias, T *y, T *normed, A *inverse, "
    "double epsilon, bool centred",
    """
    x += row * w;
    A first = centred ? (A)x[0] : A(0), mean = 0, square = 0;
    if (centred) {
        for (int j = threadIdx.x; j < w; j += blockDim.x) mean += (A)x[j] - first;
        mean = total(mean) / w;
    }
    for (int j = threadIdx.x; j < w; j += blockDim.x) {
        A d = (A)x[j] - first - mean;
        square += d * d;
    }
    A scale = A(1) / sqrt(total(square) / w + A(epsilon));
    if (threadIdx.x == 0) inverse[row] = scale;
    for (int j = threadIdx.x; j < w; j += blockDim.x) {
        A hat = ((A)x[j] - first - mean) * scale;
        if (normed) normed[row * w + j] = T(hat);
        y[row * w + j] = T(hat * (A)weight[j] + (bias ? (A)bias[j] : A(0)));
    }
""",
    over="rows",
)
def _normalise(
    xp: Any,
    x: Array,
    weight: Array,
    bias: Array | None,
    y: Array,
    normed: Array | None,
    inverse: Array,
    epsilon: float,
    centred: bool,
) -> None:
    """Fill y, x̂ if it is kept, and 1/σ, all row by row; float16 is computed in float32."""
    width = x.shape[-1]
    kept = y if normed is None else normed
    average = _average(xp, width, inverse.dtype)
    for part in chunks(x, width):
        rows = wide(x[part])
        hat = kept[part] if kept.dtype == rows.dtype else xp.empty_like(rows)
        if centred:  # equal numbers must give 0, but their mean is rounded: see less_mean
            xp.subtract(rows, rows[:, :1], out=hat)
            hat -= hat @ average
        else:
            hat[...] = rows
        square = xp.einsum("nw,nw->n", hat, hat)  # one pass, and no array of squares
        square *= 1 / (width or 1)
        square += epsilon
        xp.sqrt(square, out=square)
        xp.divide(1, square[:, None], out=inverse[part])
        hat *= inverse[part]
        if kept.dtype != rows.dtype:
            kept[part] = hat
        xp.multiply(hat, weight, out=y[part])
        if bias is not None:
            y[part] += bias


@kernel(
    "const T *grad, const T *weight, const T *normed, const A *inverse, T *out, bool centred",
    """
    grad += row * w;
    normed += row * w;
    A sum = 0, product = 0;
    for (int j = threadIdx.x; j < w; j += blockDim.x) {
        A u = (A)grad[j] * (A)weight[j];
        sum += u;
        product += u * (A)normed[j];
    }
    sum = centred ? total(sum) / w : A(0);
    product = total(product) / w;
    for (int j = threadIdx.x; j < w; j += blockDim.x)
        out[row * w + j] =
            T(((A)grad[j] * (A)weight[j] - sum - (A)normed[j] * product) * inverse[row]);
""",
    over="rows",
)
def _normalise_backward(
    xp: Any, grad: Array, weight: Array, normed: Array, inverse: Array, out: Array, centred: bool
) -> None:
    """Fill the gradient of the input by the formula at the top of this file."""
    width = grad.shape[-1]
    average = _average(xp, width, inverse.dtype)
    for part in chunks(grad, width):
        u, hat = out[part], wide(normed[part])
        if u.dtype != hat.dtype:
            u = xp.empty_like(hat)
        xp.multiply(wide(grad[part]), weight, out=u)
        product = xp.einsum("nw,nw->n", u, hat)[:, None]  # (n, 1)
        product *= 1 / (width or 1)
        if centred:
            u -= u @ average
        u -= hat * product
        u *= inverse[part]
        if u.dtype != out.dtype:
            out[part] = u


def _average(xp: Any, width: int, dtype: Any) -> Array:
    """A column of 1/width. The product of a row with it is the mean: faster than a reduction."""
    return xp.full((width, 1), 1 / max(1, width), dtype)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[Array, Array] | None = None,
    epsilon: float = 1e-5,
    total: Callable[[Array], None] | None = None,
    counts: list[int] | None = None,
) -> tuple[Tensor, Array, Array]:
    """(x - mean) / √(variance + ε) · weight + bias for each channel (arXiv 1502.03167).

    Shapes: x (batch, channels, ...), weight and bias (channels,). Mean and variance are those of
    this batch, over all other axes, or ``statistics`` if given (evaluation). Returns the result,
    the mean and the variance. The statistics depend on all samples of the batch: the results of
    its parts, each with its own statistics, do *not* equal that of the whole.

    If ranks have parts of a batch, ``total(numbers)`` sums a float64 array over them in place; the
    statistics, and the backward, are then those of the whole batch. It is called twice in the
    forward and once in the backward. The number of values a channel is appended to
    ``counts``.
    """
    x = as_tensor(x)
    if x.ndim < 2 or weight.shape != (x.shape[1],) or bias.shape != weight.shape:
        raise ShapeError(
            f"batch_norm: input {x.shape} = (batch, channels, ...) needs weight and bias of shape "
            f"{x.shape[1:2]}, not {weight.shape} and {bias.shape}"
        )
    same_kind("batch_norm", x, weight)
    if x.dtype.itemsize < 4:
        wide_x, wide_weight = astype(x, np.float32), astype(weight, np.float32)
        wide_bias = astype(bias, np.float32)
        y, mean, variance = batch_norm(
            wide_x, wide_weight, wide_bias, statistics, epsilon, total, counts
        )
        return astype(y, x.dtype), mean, variance
    xp, data = x.xp, x.data
    axes = (0, *range(2, x.ndim))
    channel = (1, -1) + (1,) * (x.ndim - 2)  # (1, c, 1, ...)
    channels = x.shape[1]
    count, fixed = data.size // max(1, channels), statistics is not None
    if statistics is not None:
        mean, variance = statistics
        normed = data - mean.reshape(channel)
    elif total is not None:
        mean, variance, count = _of_all_ranks(xp, data, axes, channel, total)
        normed = data - mean.reshape(channel)
    elif data.size == 0:  # an empty part of a batch has no statistics, and needs none
        mean, variance = xp.zeros(channels, data.dtype), xp.ones(channels, data.dtype)
        normed = data.copy()
    else:
        mean = averaged(xp, data, axes)  # (c,)
        normed = less_mean(xp, data, axes)
        variance = averaged(xp, normed * normed, axes)  # (c,)
    if not fixed and count == 1:
        raise ShapeError(
            f"batch_norm: input {x.shape} has one value a channel: no variance to divide by. "
            "Use a larger batch, or eval()"
        )
    if counts is not None:
        counts.append(count)
    inverse = 1 / xp.sqrt(variance + epsilon)
    normed *= inverse.reshape(channel)
    y = normed * weight.data.reshape(channel)
    y += bias.data.reshape(channel)
    scale = weight.data if x.node is not None else None

    def backward(grad: Array) -> Any:
        grad_weight = summed(xp, grad * normed, axes)
        grad_bias = summed(xp, grad, axes)
        both = grad_weight, grad_bias
        if total is not None and not fixed:
            sums = xp.concatenate(both).astype(np.float64)
            total(sums)
            both = sums[:channels].astype(grad.dtype), sums[channels:].astype(grad.dtype)
        grad_x = None
        if scale is not None:
            grad_x = grad
            if not fixed:  # the subtracted parts: mean(u) + x̂ · mean(u · x̂), with u / w
                absorbed = normed * (both[0] / max(1, count)).reshape(channel)
                absorbed += (both[1] / max(1, count)).reshape(channel)
                grad_x = grad - absorbed
            grad_x = grad_x * (scale * inverse).reshape(channel)
        return grad_x, grad_weight, grad_bias

    return Tensor.of(y, (x, weight, bias), backward), mean, variance


def _of_all_ranks(
    xp: Any, data: Array, axes: tuple[int, ...], channel: Shape, total: Callable[[Array], None]
) -> tuple[Array, Array, int]:
    """Mean and variance of each channel, (c,), and how many values it has, over all ranks.

    In two passes, for E[x²] - E[x]² loses every digit where the mean is large.
    """
    channels, sums = data.shape[1], xp.zeros(data.shape[1] + 1)
    sums[:-1] = data.sum(axis=axes, dtype=sums.dtype)
    sums[-1] = data.size // max(1, channels)
    total(sums)
    count = int(sums[-1])
    mean = sums[:-1] / max(1, count)
    rest = data - mean.reshape(channel)  # float64
    sums = xp.concatenate([rest.sum(axis=axes), xp.square(rest).sum(axis=axes)])
    total(sums)
    off, variance = sums[:channels] / max(1, count), sums[channels:] / max(1, count)
    # off: how far the rounded mean is off
    return (mean + off).astype(data.dtype), variance.astype(data.dtype), count
