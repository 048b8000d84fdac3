"""Element by element: arithmetic with broadcasting, and the plain functions of mathematics.

Where NumPy broadcast an input up to the result's shape, that input was used several times, so its
gradient is the sum over those uses: ``unbroadcast``.

A closure keeps alive every array it names until backward has run, so each names only what its
formula needs: addition keeps two *shapes*, multiplication the *other* side's values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidist.array import Array, DeviceError, DType, module_of
from minidist.tensor import Tensor, as_tensor

Shape = tuple[int, ...]


class ShapeError(ValueError):
    """Shapes that do not fit an op: says which op, and the shapes."""


class DTypeError(TypeError):
    """Numbers of a kind that an op does not take: says which op, the dtypes, and the way out."""


def constant(value: Any, like: Tensor) -> Tensor:
    """``value`` as a tensor that may meet ``like`` in an op.

    Numbers, integer arrays and NumPy's float64 scalars take the dtype of ``like``, so that
    nothing silently becomes float64.
    """
    floating = like.data.dtype.kind == "f"
    if isinstance(value, Tensor):
        if value.dtype.kind in "iub" and floating:
            return Tensor(value.data.astype(like.dtype))
        return value
    out = Tensor.__new__(Tensor)
    out.grad = out.node = None
    if isinstance(value, (bool, int, float, np.generic)):
        # A NumPy scalar meets an array on any device without being copied there.
        out.data = like.data.dtype.type(value) if floating else np.asarray(value)[()]
        return out
    if not hasattr(value, "dtype"):
        data = np.asarray(value)
        out.data = like.xp.asarray(data.astype(like.dtype) if floating else data)
    elif floating and value.dtype.kind in "iub":
        out.data = value.astype(like.dtype)
    else:
        out.data = value
    return out


def same_device(name: str, first: Tensor, *others: Tensor) -> None:
    """Raise DeviceError unless all arrays are of one library. NumPy scalars go anywhere."""
    for other in others:
        if type(other.data) is type(first.data):
            continue
        if isinstance(first.data, np.generic) or isinstance(other.data, np.generic):
            continue
        one, two = module_of(first.data).__name__, module_of(other.data).__name__
        if one != two:
            raise DeviceError(
                f"{name}: one input {first.shape} is an array of {one}, another {other.shape} of "
                f"{two}: move them to one device with minidist.array.to_device"
            )


def same_dtype(name: str, x: Tensor, weight: Tensor) -> None:
    """Raise DTypeError unless a layer's input has the dtype of its weights.

    NumPy would compute in the wider of the two: float64 data, or integers, would make a float32
    model slow, and nobody would know.
    """
    if x.data.dtype != weight.data.dtype:
        instead = f', or make the model with init(dtype="{x.dtype}")'
        raise DTypeError(
            f"{name}: the input {x.shape} is {x.dtype}, the weight {weight.shape} {weight.dtype}: "
            f'convert the input with .astype("{weight.dtype}")'
            + (instead if x.dtype.kind == "f" else "")
        )


def pair(name: str, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Both operands of a binary op as tensors of one device, whose shapes broadcast."""
    if not isinstance(x, Tensor):
        x = constant(x, as_tensor(y))
    if not isinstance(y, Tensor):
        y = constant(y, x)
    elif y.data.dtype != x.data.dtype:
        x, y = constant(x, y), constant(y, x)
    if type(x.data) is not type(y.data):
        same_device(name, x, y)
    if x.data.shape != y.data.shape:
        try:
            np.broadcast_shapes(x.data.shape, y.data.shape)
        except ValueError:
            raise ShapeError(
                f"{name}: shapes {x.shape} and {y.shape} do not broadcast: from the last axis "
                "back, lengths must be equal or 1"
            ) from None
    return x, y


def wanted(x: Tensor) -> Shape | None:
    """The shape of the gradient that ``x`` wants, or None if it wants none."""
    return x.data.shape if x.node is not None else None


def unbroadcast(grad: Array, shape: Shape | None) -> Any:
    """Sum ``grad`` over the axes along which ``shape`` was broadcast; None if nobody asks."""
    if shape is None or grad.shape == shape:
        return grad if shape is not None else None
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
    shape_x, shape_y = wanted(x), wanted(y)

    def backward(grad: Array) -> Any:
        return unbroadcast(grad, shape_x), unbroadcast(grad, shape_y)

    return Tensor.of(x.data + y.data, (x, y), backward)


def subtract(x: Any, y: Any) -> Tensor:
    """x - y, with broadcasting."""
    x, y = pair("subtract", x, y)
    shape_x, shape_y = wanted(x), wanted(y)

    def backward(grad: Array) -> Any:
        return (
            unbroadcast(grad, shape_x),
            unbroadcast(-grad, shape_y) if shape_y is not None else None,
        )

    return Tensor.of(x.data - y.data, (x, y), backward)


def multiply(x: Any, y: Any) -> Tensor:
    """x · y, element by element, with broadcasting."""
    x, y = pair("multiply", x, y)
    shape_x, shape_y = wanted(x), wanted(y)
    for_x = y.data if shape_x is not None else None  # each side's slope is the other side
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
    shape_x, shape_y = wanted(x), wanted(y)
    quotient = x.data / y.data
    below = y.data
    kept = quotient if shape_y is not None else None

    def backward(grad: Array) -> Any:
        grad_x = grad / below
        return (
            unbroadcast(grad_x, shape_x),
            unbroadcast(-grad_x * kept, shape_y) if kept is not None else None,  # -x/y² = -(x/y)/y
        )

    return Tensor.of(quotient, (x, y), backward)


def power(x: Tensor, exponent: float) -> Tensor:
    """x to a constant power, element by element."""
    x = as_tensor(x)
    if not isinstance(exponent, (int, float, np.number)):
        raise TypeError("power: the exponent is a number: write exp(y * log(x)) for a tensor y")
    data, exponent = x.data, float(exponent)
    if exponent == 2:  # NumPy's own power is many times slower than one product
        return Tensor.of(data * data, (x,), lambda grad: (grad * (2 * data),))

    def backward(grad: Array) -> Any:
        return (grad * (exponent * data ** (exponent - 1)),)

    return Tensor.of(data**exponent, (x,), backward)


def exponential(base: float, x: Tensor) -> Tensor:
    """A constant base to the power of x: ``2**x``."""
    if not isinstance(base, (int, float, np.number)) or not base > 0:
        raise TypeError(f"power: the base must be a positive number, not {base!r}")
    y = float(base) ** x.data
    return Tensor.of(y, (x,), lambda grad: (grad * (y * math.log(base)),))


def negative(x: Tensor) -> Tensor:
    """-x."""
    x = as_tensor(x)
    return Tensor.of(-x.data, (x,), lambda grad: (-grad,))


def exp(x: Tensor) -> Tensor:
    """e to the x."""
    x = as_tensor(x)
    y = x.xp.exp(x.data)
    return Tensor.of(y, (x,), lambda grad: (grad * y,))


def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    x = as_tensor(x)
    data = x.data
    return Tensor.of(x.xp.log(data), (x,), lambda grad: (grad / data,))


def sqrt(x: Tensor) -> Tensor:
    """The square root; its slope at 0 is infinite, as in NumPy's arithmetic."""
    x = as_tensor(x)
    y = x.xp.sqrt(x.data)
    return Tensor.of(y, (x,), lambda grad: (grad / (2 * y),))


def absolute(x: Tensor) -> Tensor:
    """|x|, whose slope at 0 is taken as 0."""
    x = as_tensor(x)
    data, xp = x.data, x.xp
    return Tensor.of(xp.abs(data), (x,), lambda grad: (grad * xp.sign(data),))


def clip(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """x, kept within [low, high]: where it was outside, the slope is 0."""
    x = as_tensor(x)
    data = x.data
    y = x.xp.clip(data, low, high)
    return Tensor.of(y, (x,), lambda grad: (grad * (data == y),))


def astype(x: Tensor, dtype: DType) -> Tensor:
    """x in another floating dtype; the gradient goes back in the old one."""
    x = as_tensor(x)
    old, new = x.dtype, np.dtype(dtype)
    if new.kind != "f" and x.node is not None:
        raise DTypeError(f"astype: {new} has no slope: take .data.astype({str(new)!r}) instead")
    return Tensor.of(x.data.astype(new), (x,), lambda grad: (grad.astype(old),))


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where ``condition`` holds, else y, with broadcasting of all three."""
    condition = condition.data if isinstance(condition, Tensor) else condition
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        x = Tensor(x)
    x, y = pair("where", x, y)
    xp = module_of(x.data if not isinstance(x.data, np.generic) else y.data)
    condition = xp.asarray(condition, dtype=bool)
    shape_x, shape_y = wanted(x), wanted(y)
    try:
        data = xp.where(condition, x.data, y.data)
    except ValueError:
        raise ShapeError(
            f"where: condition {condition.shape} does not broadcast with {x.shape} and {y.shape}"
        ) from None

    def backward(grad: Array) -> Any:
        return (
            unbroadcast(grad * condition, shape_x) if shape_x is not None else None,
            unbroadcast(grad * ~condition, shape_y) if shape_y is not None else None,
        )

    return Tensor.of(data, (x, y), backward)


def maximum(x: Any, y: Any) -> Tensor:
    """The larger of x and y; at a tie both get half of the gradient, so that they sum to it."""
    return _extreme("maximum", x, y)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller of x and y; at a tie both get half of the gradient, so that they sum to it."""
    return _extreme("minimum", x, y)


def _extreme(name: str, x: Any, y: Any) -> Tensor:
    x, y = pair(name, x, y)
    shape_x, shape_y = wanted(x), wanted(y)
    xp = module_of(x.data if not isinstance(x.data, np.generic) else y.data)
    a, b = x.data, y.data

    def backward(grad: Array) -> Any:
        first = a > b if name == "maximum" else a < b
        tie = a == b
        share = (first + tie * 0.5).astype(grad.dtype)  # 1, 1/2 or 0 of the gradient goes to x
        return (
            unbroadcast(grad * share, shape_x) if shape_x is not None else None,
            unbroadcast(grad * (1 - share), shape_y) if shape_y is not None else None,
        )

    backward.__qualname__ = f"{name}.backward"  # so that errors and drawings name the op
    return Tensor.of(getattr(xp, name)(a, b), (x, y), backward)
