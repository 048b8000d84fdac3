"""Element by element: arithmetic with broadcasting, and functions of one tensor.

Where NumPy broadcast an input up to the result's shape, that input was used several times, so its
gradient is the sum over those uses: ``unbroadcast``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.array import Array
from minidist.tensor import Tensor


class ShapeError(ValueError):
    """Shapes that do not fit an op: says which op, and the shapes."""


def constant(value: Any, like: Tensor) -> Tensor:
    """``value`` as a tensor that may meet ``like`` in an op.

    Numbers, integer arrays and NumPy's float64 scalars take the dtype of ``like``, so that
    nothing silently becomes float64.
    """
    if isinstance(value, Tensor):
        if value.dtype.kind in "iub" and like.dtype.kind == "f":
            return Tensor(value.data.astype(like.dtype))
        return value
    if isinstance(value, (bool, int, float, np.generic)):
        dtype = like.dtype if like.dtype.kind == "f" else None
        return Tensor(like.xp.asarray(value, dtype=dtype))
    data = value if hasattr(value, "dtype") else np.asarray(value)
    if like.dtype.kind == "f" and (data.dtype.kind in "iub" or data is not value):
        data = data.astype(like.dtype)
    return Tensor(data)


def pair(name: str, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Both operands of a binary op as tensors of one device, whose shapes broadcast."""
    if not isinstance(x, Tensor):
        x = constant(x, y)
    elif not isinstance(y, Tensor) or y.dtype != x.dtype:
        y = constant(y, x)
        x = constant(x, y)
    if x.data.shape != y.data.shape:
        try:
            np.broadcast_shapes(x.data.shape, y.data.shape)
        except ValueError:
            raise ShapeError(
                f"{name}: shapes {x.shape} and {y.shape} do not broadcast: from the last axis "
                "back, lengths must be equal or 1"
            ) from None
    return x, y


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``grad`` over the axes along which ``shape`` was broadcast."""
    if grad.shape == shape:
        return grad
    extra = grad.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + axis
        for axis, length in enumerate(shape)
        if length == 1 and grad.shape[extra + axis] != 1
    )
    return grad.sum(axis=axes, keepdims=True).reshape(shape)


def add(x: Any, y: Any) -> Tensor:
    """x + y, with broadcasting."""
    x, y = pair("add", x, y)

    def backward(grad: Array) -> Any:
        return unbroadcast(grad, x.shape), unbroadcast(grad, y.shape)

    return Tensor.of(x.data + y.data, (x, y), backward)


def subtract(x: Any, y: Any) -> Tensor:
    """x - y, with broadcasting."""
    x, y = pair("subtract", x, y)

    def backward(grad: Array) -> Any:
        return unbroadcast(grad, x.shape), unbroadcast(-grad, y.shape)

    return Tensor.of(x.data - y.data, (x, y), backward)


def multiply(x: Any, y: Any) -> Tensor:
    """x · y, element by element, with broadcasting."""
    x, y = pair("multiply", x, y)

    def backward(grad: Array) -> Any:
        return (
            unbroadcast(grad * y.data, x.shape) if x.node else None,
            unbroadcast(grad * x.data, y.shape) if y.node else None,
        )

    return Tensor.of(x.data * y.data, (x, y), backward)


def divide(x: Any, y: Any) -> Tensor:
    """x / y, element by element, with broadcasting."""
    x, y = pair("divide", x, y)

    def backward(grad: Array) -> Any:
        return (
            unbroadcast(grad / y.data, x.shape) if x.node else None,
            unbroadcast(-grad * x.data / (y.data * y.data), y.shape) if y.node else None,
        )

    return Tensor.of(x.data / y.data, (x, y), backward)


def power(x: Tensor, exponent: float) -> Tensor:
    """x to a constant power, element by element."""
    if isinstance(exponent, Tensor):
        raise TypeError("power: the exponent is a number: write exp(y * log(x)) for a tensor y")

    def backward(grad: Array) -> Any:
        return (grad * (exponent * x.data ** (exponent - 1)),)

    return Tensor.of(x.data**exponent, (x,), backward)


def negative(x: Tensor) -> Tensor:
    """-x."""
    return Tensor.of(-x.data, (x,), lambda grad: (-grad,))


def exp(x: Tensor) -> Tensor:
    """e to the x, elementwise."""
    y = x.xp.exp(x.data)
    return Tensor.of(y, (x,), lambda grad: (grad * y,))


def log(x: Tensor) -> Tensor:
    """The natural logarithm, elementwise."""
    return Tensor.of(x.xp.log(x.data), (x,), lambda grad: (grad / x.data,))


def relu(x: Tensor) -> Tensor:
    """max(x, 0), elementwise."""
    y = x.xp.maximum(x.data, 0)
    return Tensor.of(y, (x,), lambda grad: (grad * (y > 0),))
