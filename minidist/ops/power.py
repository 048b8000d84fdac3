"""Powers: of tensors to numbers, of numbers to tensors, and of tensors to tensors.

    x^c    derivative by x: c x^(c - 1)
    b^x    derivative by x: b^x log b
    x^y    both: y x^(y - 1) by x, and x^y log x by y

Where x is 0 some of these formulas are 0 · ∞, which is NaN; their limit is used instead. Integers
to an integer power stay integers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidist.engine.array import Array, module_of
from minidist.engine.tensor import Tensor, as_tensor
from minidist.ops.operands import DTypeError, floating, grad_shape, pair, unbroadcast
from minidist.ops.selection import kept


def power(x: Any, exponent: Any) -> Tensor:
    """x to the power of ``exponent``, a number or a tensor, element by element, with broadcasting.

    Raises DTypeError if integers have a negative integer power, as in PyTorch.
    """
    if not isinstance(exponent, (int, float, np.number)):
        exponent = as_tensor(exponent)
        if isinstance(x, (int, float, np.number)):
            integers = isinstance(x, (int, np.integer)) and exponent.dtype.kind in "iub"
            return _of_integers(x, exponent) if integers else exponential(float(x), exponent)
        return _of_tensors(x, exponent)
    x = as_tensor(x)
    if x.data.dtype.kind in "iub" and isinstance(exponent, (int, np.integer)):
        return _of_integers(x, exponent)
    x = floating(x)
    data, exponent = x.data, float(exponent)
    if exponent == 2:  # NumPy's own power is many times slower than one product
        return Tensor.of(data * data, (x,), lambda grad: (grad * (2 * data),))

    xp = x.xp

    def backward(grad: Array) -> Any:
        if exponent == 0:  # also at 0, where the formula would be 0 · ∞
            return (xp.zeros_like(grad),)
        return (grad * (exponent * data ** (exponent - 1)),)

    return Tensor.of(data**exponent, (x,), backward)


def _of_integers(x: Any, y: Any) -> Tensor:
    """Integers to the power of integers: integers, without a gradient."""
    x, y = pair("power", x, y)
    if (y.data < 0).any():
        raise DTypeError(
            f"power: {x.dtype} to the power {y.data.min()} is no integer: convert x to floating "
            "numbers first"
        )
    if x.dtype.kind == "b":
        x = Tensor(x.data.astype(np.int64))
    return Tensor(x.data**y.data)


def _of_tensors(x: Any, y: Any) -> Tensor:
    """x to the power y, two tensors."""
    x, y = pair("power", x, y)
    if x.data.dtype.kind in "iub":  # and so is y's
        return _of_integers(x, y)
    shape_x, shape_y = grad_shape(x), grad_shape(y)
    base, exponent = x.data, y.data
    result = base**exponent
    xp = module_of(result)

    def backward(grad: Array) -> Any:
        grad_x = grad_y = None
        if shape_x is not None:  # y x^(y - 1), and 0 for x⁰, at 0 too
            slope = exponent * base ** (exponent - 1)
            grad_x = kept(xp, grad * slope, xp.broadcast_to(exponent != 0, grad.shape))
        if shape_y is not None:  # x^y log x, whose limit at x = 0 is 0
            slope = result * xp.log(xp.where(base == 0, 1, base))
            grad_y = grad * slope.astype(grad.dtype, copy=False)
        return unbroadcast(grad_x, shape_x), unbroadcast(grad_y, shape_y)

    backward.__qualname__ = "power.backward"
    return Tensor.of(result, (x, y), backward)


def exponential(base: float, x: Tensor) -> Tensor:
    """A constant base to the power of x: ``2**x``."""
    if not isinstance(base, (int, float, np.number)) or not base > 0:
        raise TypeError(f"power: the base must be a positive number, not {base!r}")
    x = floating(x)
    y = float(base) ** x.data
    return Tensor.of(y, (x,), lambda grad: (grad * (y * math.log(base)),))
