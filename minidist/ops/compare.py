"""Comparisons: x > y is an array of booleans and not a Tensor, because it has no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.ops.operands import pair


def equal(x: Any, y: Any) -> Array:
    """Whether x equals y, element by element."""
    return _compare("equal", x, y)


def not_equal(x: Any, y: Any) -> Array:
    """Whether x differs from y, element by element."""
    return _compare("not_equal", x, y)


def less(x: Any, y: Any) -> Array:
    """Whether x < y, element by element."""
    return _compare("less", x, y)


def less_equal(x: Any, y: Any) -> Array:
    """Whether x ≤ y, element by element."""
    return _compare("less_equal", x, y)


def greater(x: Any, y: Any) -> Array:
    """Whether x > y, element by element."""
    return _compare("greater", x, y)


def greater_equal(x: Any, y: Any) -> Array:
    """Whether x ≥ y, element by element."""
    return _compare("greater_equal", x, y)


def argmax(x: Tensor, axis: int | None = None) -> Array:
    """The index of the largest element, along ``axis`` (of the flattened array if None)."""
    return x.data.argmax(axis=axis)


def argmin(x: Tensor, axis: int | None = None) -> Array:
    """The index of the smallest element, along ``axis`` (of the flattened array if None)."""
    return x.data.argmin(axis=axis)


_COMPARE: dict[str, Callable[[Any, Any], Array]] = {
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
}


def _compare(name: str, x: Any, y: Any) -> Array:
    x, y = pair(name, x, y)
    return _COMPARE[name](x.data, y.data)
