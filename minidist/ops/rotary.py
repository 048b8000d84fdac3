"""Rotary positions: queries and keys are rotated by an angle proportional to their position.

The product of a query rotated by m·θ and a key rotated by n·θ depends only on the distance m - n.
Su et al., "RoFormer", arXiv 2104.09864.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.ops.operands import ShapeError, floating_only


def rotary(x: Tensor, base: float = 10000.0, start: int = 0) -> Tensor:
    """Rotate pairs of features by an angle proportional to the position.

    Shapes: x (..., length, d) with d even → the same. Feature i of the first half and feature i of
    the second are rotated by position · base^(-2i/d), so that q·k depends on the *distance* of
    their positions. ``start`` is the position of the first row. The backward rotates back.
    """
    x = floating_only("rotary", x)
    if x.ndim < 2:
        raise ShapeError(f"rotary: needs (..., length, d), not {x.shape}")
    xp, (length, d), dtype = x.xp, x.shape[-2:], x.dtype
    y = x.data.copy()
    rotate(y, *angles(xp, start, length, d, base, dtype))

    def backward(grad: Array) -> Any:
        cosine, sine = angles(xp, start, length, d, base, dtype)
        grad_x = xp.array(grad)
        rotate(grad_x, cosine, -sine)
        return (grad_x,)

    return Tensor.of(y, (x,), backward)


def angles(
    xp: Any, start: int, length: int, d: int, base: float, dtype: Any
) -> tuple[Array, Array]:
    """Cosine and sine of the angles of every position, (length, d/2), computed in float64."""
    if d % 2:
        raise ShapeError(f"rotary: features are rotated in pairs, and d = {d} is odd")
    frequency = base ** (-xp.arange(d // 2, dtype=np.float64) / (d // 2))  # (d/2,)
    angle = xp.arange(start, start + length, dtype=np.float64)[:, None] * frequency
    return xp.cos(angle).astype(dtype), xp.sin(angle).astype(dtype)


def rotate(x: Array, cosine: Array, sine: Array) -> None:
    """Rotate the pairs (first half, second half) of the last axis of ``x``, in place."""
    half = x.shape[-1] // 2
    first, second = x[..., :half].copy(), x[..., half:]
    x[..., :half] = first * cosine - second * sine
    second *= cosine
    second += first * sine
