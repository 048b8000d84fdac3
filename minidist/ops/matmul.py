"""Matrix products, which are most of the arithmetic of deep learning; they count their FLOPs."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from minidist.engine.arithmetic import work
from minidist.engine.array import Array, module_of
from minidist.engine.kernels import accumulator, kernel, wide
from minidist.engine.products import product_of, product_of_transposed
from minidist.engine.tensor import Into, Tensor, as_tensor
from minidist.ops.operands import (
    DTypeError,
    ShapeError,
    by_sample,
    same_device,
    same_kind,
    unbroadcast,
)
from minidist.ops.shape import expand_dims, squeeze

ROWS = 512  # at most this many are added one after another in float32: see sums.py


def matmul(x: Any, y: Any) -> Tensor:
    """x @ y for vectors, matrices, or stacks of matrices with broadcasting over the leading axes.

    Shapes: (..., n, k) @ (..., k, m) → (..., n, m). As in NumPy, a vector (k,) is a row on the left
    and a column on the right; the result does not have this axis of length 1.
    """
    x, y = as_tensor(x), as_tensor(y)
    if 1 in (x.ndim, y.ndim) and x.ndim and y.ndim:
        row, column = x.ndim == 1, y.ndim == 1
        fits = x.shape[-1] == y.shape[0 if column else -2]
        if fits:
            product = matmul(expand_dims(x, 0) if row else x, expand_dims(y, 1) if column else y)
            dropped = tuple(axis for axis, drop in ((-2, row), (-1, column)) if drop)
            return squeeze(product, tuple(axis % product.ndim for axis in dropped))
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise ShapeError(
            f"matmul: cannot multiply {x.shape} by {y.shape}: need (..,n,k) @ (..,k,m)"
        )
    same_device("matmul", x, y)
    if x.data.dtype != y.data.dtype:
        raise DTypeError(
            f"matmul: {x.dtype} {x.shape} @ {y.dtype} {y.shape}: convert one of them with "
            f'.astype("{x.dtype if x.dtype.kind == "f" else y.dtype}")'
        )
    try:
        out = x.data @ y.data  # (.., n, k) @ (.., k, m) -> (.., n, m)
    except ValueError:
        raise ShapeError(
            f"matmul: the leading axes of {x.shape} and {y.shape} do not broadcast"
        ) from None
    flops = 2 * out.size * x.shape[-1]
    work.flops += flops
    shape_x, shape_y = x.shape, y.shape
    for_x = y.data if x.node else None
    for_y = x.data if y.node else None

    def backward(grad: Array) -> Any:
        grad_x = grad_y = None
        if for_x is not None:
            work.flops += flops
            # (.., n, m) @ (.., m, k) -> (.., n, k)
            grad_x = unbroadcast(grad @ for_x.swapaxes(-1, -2), shape_x)
        if for_y is not None:
            work.flops += flops
            # (.., k, n) @ (.., n, m) -> (.., k, m)
            grad_y = unbroadcast(for_y.swapaxes(-1, -2) @ grad, shape_y)
        return grad_x, grad_y

    return Tensor.of(out, (x, y), backward)


def linear(x: Any, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias in one op.

    Shapes: x (..., i), weight (i, o), bias (o,) → (..., o). The gradients of weight and bias
    are returned as callables, so that a zero-bubble pipeline can compute them later.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    data, matrix = x.data, weight.data
    shape, width = data.shape, matrix.shape[1:]
    if not shape or len(width) != 1 or shape[-1:] + width != matrix.shape:
        raise ShapeError(f"linear: input {shape} does not fit weight {matrix.shape} = (in, out)")
    if bias is not None and bias.data.shape != width:
        raise ShapeError(
            f"linear: bias {bias.shape} does not fit weight {matrix.shape} = (in, out)"
        )
    if data.dtype is not matrix.dtype or type(data) is not type(matrix):
        same_kind("linear", x, weight)
    xp, stacked = x.xp, len(shape) != 2
    rows = data.reshape(math.prod(shape[:-1]), shape[-1]) if stacked else data  # (n, i)
    count, outputs = len(rows), width[0]
    out = product_of(xp, rows, matrix)  # (n, i) @ (i, o) -> (n, o)
    if bias is not None:
        out += bias.data  # in place is safe: nothing else refers to this array yet
    flops = 2 * rows.size * outputs
    work.flops += flops
    wants_input_grad = x.node is not None
    kept: Array = rows if weight.node is not None else None  # for the gradient of the weight
    biased = bias is not None

    def backward(grad: Array) -> Any:
        if stacked:
            grad = grad.reshape(count, outputs)  # (n, o)

        def weight_grad(out: Array | None) -> Array:
            work.flops += flops
            return product_of(xp, kept.T, grad, out)  # (i, n) @ (n, o) -> (i, o)

        grad_x = None
        if wants_input_grad:
            work.flops += flops
            # (n, o) @ (o, i) -> (n, i)
            grad_x = product_of_transposed(xp, grad, matrix)
            grad_x = grad_x.reshape(shape) if stacked else grad_x
        for_weight = Into(
            weight_grad,
            lambda n: (by_sample("linear", kept, shape, n), by_sample("linear", grad, shape, n)),
        )
        if not biased:
            return grad_x, for_weight
        for_bias = Into(
            lambda out: column_sums(grad, out),
            lambda n: by_sample("linear", grad, shape, n).sum(axis=1),  # (n, t, o) -> (n, o)
        )
        return grad_x, for_weight, for_bias

    parents = (x, weight) if bias is None else (x, weight, bias)
    return Tensor.of(out.reshape(shape[:-1] + width) if stacked else out, parents, backward)


def column_sums(rows: Array, out: Array | None = None) -> Array:
    """The sum over the rows of (n, w): (w,), in ``out`` if it is given."""
    if type(rows) is np.ndarray and len(rows) <= 2 * ROWS and rows.dtype.itemsize >= 4:
        return np.matmul(_ones(len(rows), rows.dtype), rows, out=out)  # faster than NumPy's sum
    xp = module_of(rows)
    out = xp.empty(rows.shape[1], rows.dtype) if out is None else out
    _column_products(xp, rows, None, out)
    return out


def column_products(a: Array, b: Array, out: Array | None = None) -> Array:
    """Σ over the rows of a · b, both (n, w): (w,), in ``out`` if it is given."""
    xp = module_of(a)
    out = xp.empty(a.shape[1], a.dtype) if out is None else out
    _column_products(xp, a, b, out)
    return out


@kernel(
    "const T *a, const T *b, T *out",
    """
    double sum = 0;
    if (column < w)
        for (long long j = lane; j < n; j += 128)
            sum += (A)a[j * w + column] * (b ? (A)b[j * w + column] : A(1));
    __shared__ double part[128][9];
    part[lane][threadIdx.x] = sum;
    for (int k = 64; k; k /= 2) {
        __syncthreads();
        if (lane < k) part[lane][threadIdx.x] += part[lane + k][threadIdx.x];
    }
    if (lane == 0 && column < w) out[column] = T(part[0][threadIdx.x]);
""",
    over="columns",
)
def _column_products(xp: Any, a: Array, b: Array | None, out: Array) -> None:
    if len(a) > 2 * ROWS:  # in parts: float32 adds at most ROWS numbers one after another
        whole = len(a) // ROWS * ROWS
        rest = xp.empty((1, a.shape[1]), accumulator(a.dtype))
        _column_products(xp, a[whole:], None if b is None else b[whole:], rest[0])
        stacked = wide(a[:whole].reshape(-1, ROWS, a.shape[1]))
        if b is None:
            parts = xp.matmul(xp.ones(ROWS, stacked.dtype), stacked)
        else:
            parts = xp.einsum("knw,knw->kw", stacked, wide(b[:whole].reshape(stacked.shape)))
        out[...] = xp.concatenate([parts, rest]).sum(axis=0, dtype=np.float64)
        return
    if a.dtype.itemsize < 4:
        a, b = wide(a), None if b is None else wide(b)
    if b is None:
        xp.matmul(xp.ones(len(a), a.dtype), a, out=out)  # (n,) @ (n, w) -> (w,)
    else:
        out[...] = xp.einsum("nw,nw->w", a, b)


@lru_cache(maxsize=64)
def _ones(count: int, dtype: np.dtype) -> np.ndarray:
    """An array of ones, cached: a model needs the same few in every step."""
    ones = np.ones(count, dtype)
    ones.flags.writeable = False
    return ones
