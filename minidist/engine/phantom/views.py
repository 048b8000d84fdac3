"""Shapes, strides and offsets of views and results, worked out by NumPy itself.

Whether a reshape is a view or a copy, which axes of a result lie side by side: NumPy has rules for
it, and the memory that a program holds depends on them. So for a new layout NumPy is asked once,
with an array that has the shape and the strides and no memory behind them, which is never read.
The answers are kept, since a program asks the same again in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Layout = tuple[Shape, Shape | None, int, np.dtype]  # shape, strides (None: contiguous), offset

KEPT = 1 << 16  # answers


@lru_cache(KEPT)
def contiguous(shape: Shape, itemsize: int) -> Shape:
    """The strides of a contiguous array, in bytes."""
    strides, step = [], itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= max(1, length)
    return tuple(reversed(strides))


def stand_in(shape: Shape, strides: Shape | None, dtype: np.dtype) -> np.ndarray:
    """A NumPy array of this layout whose elements must not be read."""
    strides = contiguous(shape, dtype.itemsize) if strides is None else strides
    return np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides)


def _start(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def layout_of(view: np.ndarray, whole: np.ndarray) -> Layout:
    strides = None if view.flags.c_contiguous else view.strides
    return view.shape, strides, _start(view) - _start(whole), view.dtype


VIEWS: dict[str, Callable[..., np.ndarray]] = {
    "transpose": lambda array, *axes: array.transpose(*axes),
    "swapaxes": lambda array, *axes: array.swapaxes(*axes),
    "broadcast_to": lambda array, shape: np.broadcast_to(array, shape),
    "squeeze": lambda array, axis: np.squeeze(array, axis),
    "expand_dims": lambda array, axis: np.expand_dims(array, axis),
    "moveaxis": lambda array, source, to: np.moveaxis(array, source, to),
    "view": lambda array, dtype: array.view(dtype),
    "index": lambda array, index: array[_index(index)],
    "diagonal": lambda array, *how: array.diagonal(*how),
}


@lru_cache(KEPT)
def view(shape: Shape, strides: Shape | None, dtype: np.dtype, name: str, *given: Any) -> Layout:
    """The layout of a view of an array of this layout; errors are NumPy's."""
    whole = stand_in(shape, strides, dtype)
    return layout_of(VIEWS[name](whole, *given), whole)


@lru_cache(KEPT)
def reshaped(shape: Shape, strides: Shape, dtype: np.dtype, new: Shape) -> Layout | Shape:
    """The layout of a reshape that is a view; if it must copy, the new shape alone."""
    whole = stand_in(shape, strides, dtype)
    try:
        return layout_of(np.reshape(whole, new, copy=False), whole)
    except ValueError:
        return resolved(math.prod(shape), new)


@lru_cache(KEPT)
def resolved(size: int, shape: Shape) -> Shape:
    """``shape`` with its -1 filled in; ValueError if it does not have ``size`` elements."""
    if -1 in shape:
        rest = -math.prod(shape)
        if rest > 0 and size % rest == 0 and shape.count(-1) == 1:
            return tuple(size // rest if length == -1 else length for length in shape)
    elif math.prod(shape) == size:
        return shape
    raise ValueError(f"cannot reshape array of size {size} into shape {shape}")


def _index(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """An index from what ``index_key`` made of it, which gives a view always.

    Numbers alone would make NumPy *read* an element, of memory that is not there; with an ellipsis
    they give a view without dimensions.
    """
    index = tuple(slice(*one) if type(one) is tuple else one for one in key)
    return index if Ellipsis in index else (*index, Ellipsis)


def index_key(index: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A basic index (numbers, slices, None, ...) as a key of a dictionary; None for another."""
    key: list[Any] = []
    for one in index:
        if type(one) is slice:
            key.append((one.start, one.stop, one.step))
        elif one is None or one is Ellipsis:
            key.append(one)
        elif isinstance(one, (int, np.integer)) and not isinstance(one, bool):
            key.append(int(one))
        else:
            return None
    return tuple(key)


@lru_cache(KEPT)
def ordered(shape: Shape, operands: tuple[tuple[Shape, Shape | None], ...], itemsize: int) -> Any:
    """The strides of an element-wise result: its axes lie in memory as those of the operands do.

    The order is that of NumPy's iterator: axes are sorted by the strides of all operands, and stay
    in their order where operands disagree. None: contiguous.
    """
    if all(strides is None for _, strides in operands):
        return None
    ndim = len(shape)
    rows = []  # by operand: a stride for each axis of the result, 0 where it is repeated
    for one, strides in operands:
        strides = contiguous(one, itemsize) if strides is None else strides
        own = tuple(0 if n == 1 else step for n, step in zip(one, strides, strict=True))
        rows.append((0,) * (ndim - len(one)) + own)
    order: list[int] = []  # axes, innermost first
    for axis in reversed(range(ndim)):
        place = len(order)
        for at in reversed(range(len(order))):
            moves, unclear = False, True
            for row in rows:
                inner, outer = row[order[at]], row[axis]
                if inner and outer:
                    if abs(inner) <= abs(outer):
                        moves = False
                    elif unclear:
                        moves = True
                    unclear = False
            if not unclear:
                if not moves:
                    break
                place = at
        order.insert(place, axis)
    steps, step = [0] * ndim, itemsize
    for axis in order:
        steps[axis] = step
        step *= max(1, shape[axis])
    found = tuple(steps)
    flat = [(n, s) for n, s in zip(shape, found, strict=True) if n != 1]
    plain = [(n, s) for n, s in zip(shape, contiguous(shape, itemsize), strict=True) if n != 1]
    return None if flat == plain else found


@lru_cache(KEPT)
def broadcast(*shapes: Shape) -> Shape:
    """The shape to which all broadcast; ValueError as NumPy's."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"operands could not be broadcast together with shapes {shapes}") from None
