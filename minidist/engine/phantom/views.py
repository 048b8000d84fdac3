"""Shapes, strides and offsets of views and results, computed by NumPy.

NumPy's rules decide whether a reshape is a view or a copy, and how the axes of a result are ordered
in memory; the memory that a program needs depends on them. For each new layout, NumPy is called
once, on an array with the shape and the strides but without memory for its elements, which are
never read. The results are cached, since every training step needs the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Layout = tuple[Shape, Shape | None, int, np.dtype]  # shape, strides (None: contiguous), offset

KEPT = 1 << 16  # the most entries of each cache


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
    """The layout of a view of an array with this layout. Raises NumPy's errors."""
    whole = stand_in(shape, strides, dtype)
    return layout_of(VIEWS[name](whole, *given), whole)


@lru_cache(KEPT)
def reshaped(shape: Shape, strides: Shape, dtype: np.dtype, new: Shape) -> Layout | Shape:
    """The layout of a reshape that is a view; only the new shape, if it must copy."""
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
    """The index for a key of ``index_key``, with an ellipsis, so that the result is a view.

    For an index of numbers alone, NumPy would *read* the element, whose memory does not exist. With
    an ellipsis it makes a 0-d view.
    """
    index = tuple(slice(*one) if type(one) is tuple else one for one in key)
    return index if Ellipsis in index else (*index, Ellipsis)


def index_key(index: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A basic index (numbers, slices, None, ...) as a key of a dictionary; None for any other."""
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
    """The strides of an elementwise result, from the operands' strides; None: contiguous.

    As in NumPy's iterator, axes are sorted by the operands' strides. Two axes keep their order if
    the operands disagree about it.
    """
    if all(strides is None for _, strides in operands):
        return None
    ndim = len(shape)
    rows = []  # for each operand, a stride for each axis of the result, 0 if it is broadcast
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
    """The shape to which all broadcast. Raises ValueError if they do not."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"operands could not be broadcast together with shapes {shapes}") from None


@lru_cache(KEPT)
def picked(shape: Shape, shapes: tuple[Shape | None, ...], rest: tuple[Any, ...]) -> Shape:
    """The shape of an array of ``shape``, indexed by arrays of ``shapes`` and ``rest``.

    There is an entry for each index: if it is an array, its shape in ``shapes``; else None there,
    and the index itself in ``rest``.

    NumPy's rule: all arrays broadcast to one shape, which replaces their axes. If a slice is
    between them, this shape comes first. Numbers count as arrays.
    """
    items = [(None, one) if one is not None else (key, None) for one, key in zip(shapes, rest)]  # noqa: B905
    if not any(one is None and key is Ellipsis for key, one in items):
        items.append((Ellipsis, None))
    used = sum(one is not None or (key is not None and key is not Ellipsis) for key, one in items)
    axis, kept, taken, places = 0, list[int](), list[Shape](), list[int]()
    front = 0  # axes before the first index
    for place, (key, one) in enumerate(items):
        if one is not None or type(key) is int:
            if not places:
                front = len(kept)
            places.append(place)
            taken.append(one or ())
            axis += 1
        elif key is None:
            kept.append(1)
        elif key is Ellipsis:
            whole = len(shape) - used
            kept.extend(shape[axis : axis + whole])
            axis += whole
        else:
            kept.append(len(range(*slice(*key).indices(shape[axis]))))
            axis += 1
    if axis > len(shape):
        raise IndexError(f"too many indices for an array of shape {shape}")
    if places[-1] - places[0] + 1 != len(places):
        front = 0
    return (*kept[:front], *broadcast(*taken), *kept[front:])
