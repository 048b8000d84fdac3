"""Layer norm and RMS norm, each as one op. See batch_normalization.py for batch norm.

Both save x̂, the normalized input, and the factor 1/σ. With y = x̂ · w + b and u = grad · w, the
gradient of the input is u minus the parts that come from the mean and from σ:

    layer norm   (u - mean(u) - x̂ · mean(u · x̂)) / σ
    RMS norm     (u           - x̂ · mean(u · x̂)) / σ
"""

from __future__ import annotations

import math
from typing import Any

from minidist.engine.array import Array
from minidist.engine.kernels import accumulator, kernel, wide
from minidist.engine.tensor import Into, Tensor, as_tensor, recording
from minidist.ops.batch_normalization import batch_norm as batch_norm  # where it was before
from minidist.ops.chunks import chunks
from minidist.ops.matmul import column_products, column_sums
from minidist.ops.operands import ShapeError, by_sample, same_kind


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
    """Fill y, 1/σ and, unless None, x̂ (``normed``), row by row; float16 is computed in float32."""
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
    """A column of 1/width. The product of a row with it is the row's mean: faster than ``mean``."""
    return xp.full((width, 1), 1 / max(1, width), dtype)
