"""Elementwise ops: arithmetic with broadcasting, and functions such as exp and log.

The arrays that a closure uses stay in memory until the backward has run. So each closure uses only
what its formula needs: addition the two *shapes*, multiplication the values of the *other* operand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array, DType, module_of
from minidist.engine.tensor import Tensor, as_tensor, recording
from minidist.ops.operands import (
    DTypeError,
    ShapeError,
    floating,
    grad_shape,
    match_number,
    pair,
    unbroadcast,
)
from minidist.ops.power import exponential as exponential  # where they were before
from minidist.ops.power import power as power
from minidist.ops.selection import kept


def add(x: Any, y: Any) -> Tensor:
    """x + y, with broadcasting."""
    x, y = pair("add", x, y)
    shape_x, shape_y = grad_shape(x), grad_shape(y)

    def backward(grad: Array) -> Any:
        return unbroadcast(grad, shape_x), unbroadcast(grad, shape_y)

    return Tensor.of(x.data + y.data, (x, y), backward)


def subtract(x: Any, y: Any) -> Tensor:
    """x - y, with broadcasting."""
    x, y = pair("subtract", x, y)
    _no_booleans("subtract", x)
    shape_x, shape_y = grad_shape(x), grad_shape(y)

    def backward(grad: Array) -> Any:
        return (
            unbroadcast(grad, shape_x),
            unbroadcast(-grad, shape_y) if shape_y is not None else None,
        )

    return Tensor.of(x.data - y.data, (x, y), backward)


def multiply(x: Any, y: Any) -> Tensor:
    """x · y, element by element, with broadcasting."""
    x, y = pair("multiply", x, y)
    shape_x, shape_y = grad_shape(x), grad_shape(y)
    for_x = y.data if shape_x is not None else None  # the derivative is the other operand
    for_y = x.data if shape_y is not None else None

    def backward(grad: Array) -> Any:
        return (
            unbroadcast(grad * for_x, shape_x) if for_x is not None else None,
            unbroadcast(grad * for_y, shape_y) if for_y is not None else None,
        )

    return Tensor.of(x.data * y.data, (x, y), backward)


def divide(x: Any, y: Any) -> Tensor:
    """x / y, element by element, with broadcasting."""
    x, y = pair("divide", x, y)
    if x.data.dtype.kind in "iub":  # and so is y's
        x, y = floating(x), floating(y)
    shape_x, shape_y = grad_shape(x), grad_shape(y)
    quotient = x.data / y.data
    divisor = y.data
    for_y = quotient if shape_y is not None else None  # -x/y² = -(x/y)/y

    def backward(grad: Array) -> Any:
        grad_x = grad / divisor
        return (
            unbroadcast(grad_x, shape_x),
            unbroadcast(-grad_x * for_y, shape_y) if for_y is not None else None,
        )

    return Tensor.of(quotient, (x, y), backward)


def negative(x: Tensor) -> Tensor:
    """-x."""
    x = as_tensor(x)
    _no_booleans("negative", x)
    return Tensor.of(-x.data, (x,), lambda grad: (-grad,))


def _no_booleans(name: str, x: Tensor) -> None:
    if x.data.dtype.kind == "b":
        raise DTypeError(
            f"{name}: the input {x.shape} is bool, and must be numbers: convert it first, or use "
            "~x.data"
        )


def exp(x: Tensor) -> Tensor:
    """e to the x."""
    x = floating(x)
    y = x.xp.exp(x.data)
    return Tensor.of(y, (x,), lambda grad: (grad * y,))


def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    x = floating(x)
    data = x.data
    return Tensor.of(x.xp.log(data), (x,), lambda grad: (grad / data,))


def log1p(x: Tensor) -> Tensor:
    """log(1 + x), accurate for small x."""
    x = floating(x)
    data = x.data
    return Tensor.of(x.xp.log1p(data), (x,), lambda grad: (grad / (1 + data),))


def sin(x: Tensor) -> Tensor:
    """The sine."""
    x = floating(x)
    data, xp = x.data, x.xp
    return Tensor.of(xp.sin(data), (x,), lambda grad: (grad * xp.cos(data),))


def cos(x: Tensor) -> Tensor:
    """The cosine."""
    x = floating(x)
    data, xp = x.data, x.xp
    return Tensor.of(xp.cos(data), (x,), lambda grad: (-grad * xp.sin(data),))


def sqrt(x: Tensor) -> Tensor:
    """The square root; its derivative at 0 is infinite, as 1/0 is in NumPy."""
    x = floating(x)
    y = x.xp.sqrt(x.data)
    return Tensor.of(y, (x,), lambda grad: (grad / (2 * y),))


def absolute(x: Tensor) -> Tensor:
    """|x|; the derivative at 0 is defined as 0."""
    x = as_tensor(x)
    data, xp = x.data, x.xp

    def backward(grad: Array) -> Any:
        return (kept(xp, grad * xp.copysign(1, data).astype(data.dtype, copy=False), data != 0),)

    return Tensor.of(xp.abs(data), (x,), backward)


def clip(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """x, limited to [low, high]; the derivative is 0 where x was outside."""
    x = as_tensor(x)
    for bound in (low, high):
        if isinstance(bound, Tensor):
            raise TypeError("clip: bounds are numbers: for tensors use ops.maximum and ops.minimum")
        x = x if bound is None else match_number(x, bound)
    data = x.data
    xp = x.xp
    y = xp.clip(data, low, high)
    return Tensor.of(y, (x,), lambda grad: (kept(xp, grad, data == y),))


def astype(x: Tensor, dtype: DType) -> Tensor:
    """x in another floating dtype; the gradient is converted back to the old dtype."""
    x = as_tensor(x)
    old, new = x.dtype, np.dtype(dtype)
    if new.kind != "f" and x.node is not None:
        raise DTypeError(
            f"astype: a tensor of {new} has no gradient: use .data.astype({str(new)!r}) instead"
        )
    return Tensor.of(x.data.astype(new), (x,), lambda grad: (grad.astype(old),))


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where ``condition`` holds, else y, with broadcasting of all three."""
    condition = condition.data if isinstance(condition, Tensor) else condition
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        x = Tensor(x)
    x, y = pair("where", x, y)
    xp = module_of(x.data if not isinstance(x.data, np.generic) else y.data)
    mask = xp.asarray(condition, dtype=bool)
    # A copy if the backward needs it, since the caller may write into the array later.
    condition = mask.copy() if mask is condition and recording(x, y) else mask
    shape_x, shape_y = grad_shape(x), grad_shape(y)
    try:
        data = xp.where(condition, x.data, y.data)
    except ValueError:
        raise ShapeError(
            f"where: condition {condition.shape} does not broadcast with {x.shape} and {y.shape}"
        ) from None

    def backward(grad: Array) -> Any:
        chosen = xp.broadcast_to(condition, grad.shape)
        return (
            unbroadcast(kept(xp, grad, chosen), shape_x) if shape_x is not None else None,
            unbroadcast(kept(xp, grad, ~chosen), shape_y) if shape_y is not None else None,
        )

    return Tensor.of(data, (x, y), backward)


def maximum(x: Any, y: Any) -> Tensor:
    """The larger of x and y; at a tie each gets half of the gradient."""
    return _extreme("maximum", x, y)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller of x and y; at a tie each gets half of the gradient."""
    return _extreme("minimum", x, y)


def _extreme(name: str, x: Any, y: Any) -> Tensor:
    x, y = pair(name, x, y)
    shape_x, shape_y = grad_shape(x), grad_shape(y)
    xp = module_of(x.data if not isinstance(x.data, np.generic) else y.data)
    a, b = x.data, y.data

    def backward(grad: Array) -> Any:
        above, below = xp.broadcast_to(a > b, grad.shape), xp.broadcast_to(a < b, grad.shape)
        first, second = (above, below) if name == "maximum" else (below, above)
        shared = kept(xp, grad, ~(above | below), 0.5)  # at a tie, or if one is NaN
        return (
            unbroadcast(kept(xp, grad, first) + shared, shape_x) if shape_x is not None else None,
            unbroadcast(kept(xp, grad, second) + shared, shape_y) if shape_y is not None else None,
        )

    backward.__qualname__ = f"{name}.backward"  # so that errors and drawings name the op
    return Tensor.of(getattr(xp, name)(a, b), (x, y), backward)
