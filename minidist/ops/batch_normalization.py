"""Batch norm, over the samples of a batch on one rank or on several, as one op.

Saved are x̂, the normalized input, and the factor 1/σ. With y = x̂ · w + b and u = grad · w, the
gradient of the input is u minus the parts that come from the mean and from σ:

    (u - mean(u) - x̂ · mean(u · x̂)) / σ
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, as_tensor
from minidist.ops.elementwise import astype
from minidist.ops.operands import Shape, ShapeError, same_kind
from minidist.ops.sums import averaged, less_mean, summed


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
    the mean and the variance. The statistics depend on all samples of the batch: if parts of it are
    normalized by their own statistics, the results do *not* equal those of the whole.

    If ranks have parts of a batch, ``total(numbers)`` must sum a float64 array over them in place.
    The statistics and the backward are then those of the whole batch. ``total`` is called twice in
    the forward and once in the backward. The number of values per channel is appended to
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
            f"batch_norm: input {x.shape} has one value per channel, and so no variance: use a "
            "larger batch, or eval()"
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
            if not fixed:  # minus mean(grad) + x̂ · mean(grad · x̂); · w follows
                from_statistics = normed * (both[0] / max(1, count)).reshape(channel)
                from_statistics += (both[1] / max(1, count)).reshape(channel)
                grad_x = grad - from_statistics
            grad_x = grad_x * (scale * inverse).reshape(channel)
        return grad_x, grad_weight, grad_bias

    return Tensor.of(y, (x, weight, bias), backward), mean, variance


def _of_all_ranks(
    xp: Any, data: Array, axes: tuple[int, ...], channel: Shape, total: Callable[[Array], None]
) -> tuple[Array, Array, int]:
    """Mean and variance of each channel, (c,), and its number of values, over all ranks.

    In two passes: E[x²] - E[x]² loses all digits if the mean is large.
    """
    channels, sums = data.shape[1], xp.zeros(data.shape[1] + 1)
    sums[:-1] = data.sum(axis=axes, dtype=sums.dtype)
    sums[-1] = data.size // max(1, channels)
    total(sums)
    count = int(sums[-1])
    mean = sums[:-1] / max(1, count)
    centred = data - mean.reshape(channel)  # float64; its mean is the rounding error of ``mean``
    sums = xp.concatenate([centred.sum(axis=axes), xp.square(centred).sum(axis=axes)])
    total(sums)
    error, variance = sums[:channels] / max(1, count), sums[channels:] / max(1, count)
    return (mean + error).astype(data.dtype), variance.astype(data.dtype), count
