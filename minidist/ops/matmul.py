"""Matrix products: where the arithmetic of deep learning is, so these count their FLOPs."""

from __future__ import annotations

from typing import Any

from minidist.array import Array, work
from minidist.ops.elementwise import ShapeError, unbroadcast
from minidist.tensor import Tensor, as_tensor


def matmul(x: Any, y: Any) -> Tensor:
    """x @ y for matrices, or stacks of matrices with broadcasting over the leading axes.

    Shapes: (..., n, k) @ (..., k, m) → (..., n, m). Vectors are not accepted: reshape them, so
    that it is clear which product is meant.
    """
    x, y = as_tensor(x), as_tensor(y)
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise ShapeError(
            f"matmul: cannot multiply {x.shape} by {y.shape}: need (..,n,k) @ (..,k,m)"
        )
    out = x.data @ y.data  # (.., n, k) @ (.., k, m) -> (.., n, m)
    flops = 2 * out.size * x.shape[-1]
    work.flops += flops

    def backward(grad: Array) -> Any:
        grad_x = grad_y = None
        if x.node:
            work.flops += flops
            # (.., n, m) @ (.., m, k) -> (.., n, k)
            grad_x = unbroadcast(grad @ y.data.swapaxes(-1, -2), x.shape)
        if y.node:
            work.flops += flops
            # (.., k, n) @ (.., n, m) -> (.., k, m)
            grad_y = unbroadcast(x.data.swapaxes(-1, -2) @ grad, y.shape)
        return grad_x, grad_y

    return Tensor.of(out, (x, y), backward)


def linear(x: Any, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias in one op.

    Shapes: x (..., i), weight (i, o), bias (o,) → (..., o). The weights' gradients are returned
    as callables, so that a zero-bubble pipeline may compute them later.
    """
    x = as_tensor(x)
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[0]:
        raise ShapeError(f"linear: input {x.shape} does not fit weight {weight.shape} = (in, out)")
    inputs, outputs = weight.shape
    rows = x.data.reshape(-1, inputs)  # (n, i)
    out = rows @ weight.data  # (n, i) @ (i, o) -> (n, o)
    if bias is not None:
        out += bias.data  # in place is safe: nobody else has seen this array yet
    flops = 2 * len(rows) * inputs * outputs
    work.flops += flops
    shape = x.shape
    wants_input_grad = x.node is not None

    def backward(grad: Array) -> Any:
        grad = grad.reshape(-1, outputs)  # (n, o)

        def weight_grad() -> Array:
            work.flops += flops
            return rows.T @ grad  # (i, n) @ (n, o) -> (i, o)

        grad_x = None
        if wants_input_grad:
            work.flops += flops
            grad_x = (grad @ weight.data.T).reshape(shape)  # (n, o) @ (o, i) -> (n, i)
        if bias is None:
            return grad_x, weight_grad
        return grad_x, weight_grad, lambda: grad.sum(axis=0)

    parents = (x, weight) if bias is None else (x, weight, bias)
    return Tensor.of(out.reshape(*shape[:-1], outputs), parents, backward)
