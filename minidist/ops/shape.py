"""Ops that move elements about and compute nothing. Their results are views where NumPy's are."""

from __future__ import annotations

from typing import Any

from minidist.ops.elementwise import ShapeError
from minidist.tensor import Tensor


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape; one length may be -1."""
    old = x.shape
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    try:
        y = x.data.reshape(shape)
    except ValueError:
        raise ShapeError(
            f"reshape: {old} has {x.size} elements and cannot become {shape}"
        ) from None
    return Tensor.of(y, (x,), lambda grad: (grad.reshape(old),))


def transpose(x: Tensor, *axes: int) -> Tensor:
    """Permute the axes: reversed if none are given, as in NumPy."""
    order = axes or tuple(reversed(range(x.ndim)))
    back = tuple(sorted(range(x.ndim), key=lambda axis: order[axis] % x.ndim))
    return Tensor.of(x.data.transpose(order), (x,), lambda grad: (grad.transpose(back),))
