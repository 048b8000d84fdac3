"""Ops that only rearrange elements. They return views where NumPy does.

Each backward is the reverse: it reshapes or permutes back, cuts what was joined, and sums over what
was repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, as_tensor
from minidist.ops.operands import DTypeError, Shape, ShapeError, constant, same_device, unbroadcast


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape; one length may be -1."""
    x = as_tensor(x)
    old = x.data.shape
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    try:
        y = x.data.reshape(shape)
    except ValueError:
        raise ShapeError(
            f"reshape: {old} has {x.size} elements and cannot become {shape}"
        ) from None
    return Tensor.of(y, (x,), lambda grad: (grad.reshape(old),))


def copy(x: Tensor) -> Tensor:
    """A copy of the elements, in row-major order."""
    x = as_tensor(x)
    return Tensor.of(x.data.copy(), (x,), lambda grad: (grad,))


def flatten(x: Tensor, start: int = 0) -> Tensor:
    """Merge all axes from ``start`` on into one."""
    x = as_tensor(x)
    length = 1
    for one in x.shape[start:]:
        length *= one
    return reshape(x, *x.shape[:start], length)


def squeeze(x: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """Remove these axes, which must have length 1; by default all axes of length 1."""
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    for one in axes:
        if not -x.ndim <= one < x.ndim or (axis is not None and x.shape[one] != 1):
            raise ShapeError(f"squeeze: axis {one} of shape {x.shape} is not of length 1")
    dropped = {one % x.ndim for one in axes if x.shape[one] == 1}
    return reshape(x, tuple(length for i, length in enumerate(x.shape) if i not in dropped))


def expand_dims(x: Tensor, axis: int | tuple[int, ...]) -> Tensor:
    """Insert a new axis of length 1 at ``axis``."""
    return reshape(x, x.xp.expand_dims(x.data, axis).shape)


def transpose(x: Tensor, *axes: Any) -> Tensor:
    """Permute the axes; by default reverse them, as in NumPy."""
    x = as_tensor(x)
    if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
        axes = tuple(axes[0])
    order = axes or tuple(reversed(range(x.ndim)))
    if sorted(axis % x.ndim if x.ndim else axis for axis in order) != list(range(x.ndim)):
        raise ShapeError(f"transpose: axes {order} are not a permutation of those of {x.shape}")
    back = tuple(sorted(range(x.ndim), key=lambda axis: order[axis] % x.ndim))
    return Tensor.of(x.data.transpose(order), (x,), lambda grad: (grad.transpose(back),))


def swapaxes(x: Tensor, first: int, second: int) -> Tensor:
    """Exchange two axes."""
    x = as_tensor(x)
    return Tensor.of(
        x.data.swapaxes(first, second), (x,), lambda grad: (grad.swapaxes(first, second),)
    )


def broadcast_to(x: Tensor, shape: Shape) -> Tensor:
    """Repeat axes of length 1, and add axes in front, up to ``shape``: a view."""
    x = as_tensor(x)
    old, shape = x.data.shape, tuple(shape)
    try:
        y = x.xp.broadcast_to(x.data, shape)
    except ValueError:
        raise ShapeError(f"broadcast_to: {old} cannot be broadcast to {shape}") from None
    return Tensor.of(y, (x,), lambda grad: (unbroadcast(grad, old),))


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join along an existing axis; all other lengths must be equal."""
    tensors = _sequence("concatenate", tensors)
    first = tensors[0]
    if not -first.ndim <= axis < first.ndim:
        raise ShapeError(f"concatenate: axis {axis} does not exist in shape {first.shape}")
    axis %= first.ndim
    for other in tensors:
        if other.ndim != first.ndim or any(
            i != axis and a != b
            for i, (a, b) in enumerate(zip(first.shape, other.shape, strict=True))
        ):
            raise ShapeError(
                f"concatenate: {[t.shape for t in tensors]} differ in other axes than {axis}"
            )
    lengths = [tensor.shape[axis] for tensor in tensors]

    def backward(grad: Array) -> Any:
        return _cut(grad, lengths, axis)

    data = first.xp.concatenate([tensor.data for tensor in tensors], axis=axis)
    return Tensor.of(data, tuple(tensors), backward)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join along a new axis; all shapes must be equal."""
    tensors = _sequence("stack", tensors)
    if any(other.shape != tensors[0].shape for other in tensors):
        raise ShapeError(f"stack: shapes differ: {[t.shape for t in tensors]}")
    xp, count = tensors[0].xp, len(tensors)

    def backward(grad: Array) -> Any:
        rows = xp.moveaxis(grad, axis, 0)
        return [rows[i] for i in range(count)]

    return Tensor.of(xp.stack([tensor.data for tensor in tensors], axis), tuple(tensors), backward)


def split(x: Tensor, parts: int | Sequence[int], axis: int = -1) -> list[Tensor]:
    """Split into ``parts`` equal pieces, or into pieces of the given lengths: views."""
    x = as_tensor(x)
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"split: axis {axis} does not exist in shape {x.shape}")
    axis %= x.ndim
    whole = x.shape[axis]
    if isinstance(parts, int):
        if parts < 1 or whole % parts:
            raise ShapeError(f"split: axis {axis} of {x.shape} does not divide into {parts} parts")
        parts = [whole // parts] * parts
    if _total(parts) != whole:
        raise ShapeError(f"split: lengths {list(parts)} do not add up to axis {axis} of {x.shape}")
    shape, xp = x.shape, x.xp
    pieces, start = [], 0
    for length in parts:
        where = (slice(None),) * axis + (slice(start, start + length),)
        start += length

        def backward(grad: Array, where: Any = where) -> Any:
            grad_x = xp.zeros(shape, grad.dtype)
            grad_x[where] = grad
            return (grad_x,)

        pieces.append(Tensor.of(x.data[where], (x,), backward))
    return pieces


def pad(x: Tensor, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad with ``value``; ``widths`` has (elements before, elements after) for each axis."""
    x = as_tensor(x)
    widths = [tuple(width) for width in widths]  # type: ignore[misc]
    if len(widths) != x.ndim or any(min(width) < 0 for width in widths):
        raise ShapeError(f"pad: {widths} must be {x.ndim} pairs (before, after), none negative")
    inside = tuple(
        slice(before, before + length) for (before, _), length in zip(widths, x.shape, strict=True)
    )
    y = x.xp.pad(x.data, widths, constant_values=value)
    return Tensor.of(y, (x,), lambda grad: (grad[inside],))


def _sequence(name: str, tensors: Sequence[Any]) -> list[Tensor]:
    tensors = [as_tensor(tensor) for tensor in tensors]
    if not tensors:
        raise TypeError(f"{name}: needs a sequence of at least one tensor")
    same_device(name, *tensors)
    if len({tensor.dtype.kind for tensor in tensors}) > 1:
        floats = [tensor.dtype for tensor in tensors if tensor.dtype.kind == "f"]
        if floats:  # integers are converted to it: NumPy makes float64 of int64 and float32
            like = Tensor(np.empty(0, np.result_type(*floats)))
            tensors = [constant(tensor, like) for tensor in tensors]
        elif np.result_type(*[tensor.dtype for tensor in tensors]).kind == "f":
            raise DTypeError(
                f"{name}: no integer dtype has all numbers of "
                f"{[str(tensor.dtype) for tensor in tensors]}: convert them to one dtype, for "
                "example with .data.astype(int)"
            )
    return tensors


def _total(lengths: Sequence[int]) -> int:
    total = 0
    for length in lengths:
        total += length
    return total


def _cut(grad: Array, lengths: Sequence[int], axis: int) -> list[Array]:
    pieces, start = [], 0
    for length in lengths:
        pieces.append(grad[(slice(None),) * axis + (slice(start, start + length),)])
        start += length
    return pieces
