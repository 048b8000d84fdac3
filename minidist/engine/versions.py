"""Versions: has memory that a backward needs been written since the forward?

A linear layer's backward multiplies by the weights. If an optimizer step or a ``load`` comes
between forward and backward, it would multiply by the *new* weights, and the result would be the
gradient of nothing. So memory that is written as a whole, a model's flat array, has a ``Version``:

    version = track(flat)        a counter, found again by any view of the array
    written(flat[3:7])           whoever writes into the array adds 1
    saved_versions(backward)     the versions of what an op keeps, and their counts now

The op's node remembers the counts, and the backward compares: see tape.py. Only tracked memory is
watched. Whoever writes into other arrays in place, such as ``tensor.data`` of an input, does it
before the forward or after the backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

from minidist.engine.array import Array


class ChangedError(RuntimeError):
    """Memory that a backward needs was written after the forward."""


class Version:
    """How often an array has been written. ``layout`` is whatever its user wants to find again."""

    __slots__ = ("__weakref__", "count", "layout")

    def __init__(self, layout: Any = None) -> None:
        self.count = 0
        self.layout = layout


# By the id of the array that owns the memory. Whoever tracks an array keeps both alive, so that an
# id in use is never another array's.
_versions: WeakValueDictionary[int, Version] = WeakValueDictionary()


def track(array: Array, layout: Any = None) -> Version:
    """A new version for the memory of ``array``: keep it as long as the array."""
    version = _versions[id(owner_of(array))] = Version(layout)
    return version


def version_of(array: Array) -> Version | None:
    """The version of the memory that ``array`` is in, or None if nobody tracks it."""
    return _versions.get(id(owner_of(array)))


def written(array: Array) -> None:
    """Say that ``array``, which may be a part of what is tracked, has been written."""
    version = version_of(array)
    if version is not None:
        version.count += 1


def saved_versions(function: Any) -> tuple[tuple[Version, int], ...]:
    """The version of each tracked array that a backward keeps, with its count now."""
    found = {version_of(array) for array in arrays_in(function)}
    return tuple((version, version.count) for version in found if version is not None)


def owner_of(array: Array) -> Array:
    """The array that owns the memory of ``array``: itself if it is not a view."""
    while getattr(array, "base", None) is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return array


def arrays_in(function: Any) -> Iterator[Array]:
    """Every array that a closure refers to, also through tensors, tuples and inner functions."""
    stack = [function]
    while stack:
        value = stack.pop()
        if isinstance(value, type):
            continue
        if hasattr(value, "node") and hasattr(value, "data"):  # a tensor
            yield value.data
        elif getattr(value, "ndim", 0) and hasattr(value, "nbytes"):
            yield value
        elif isinstance(value, (tuple, list)):
            stack.extend(value)
        elif hasattr(value, "write"):  # an Into
            stack.append(value.write)
        elif getattr(value, "__closure__", None):
            stack.extend(cell.cell_contents for cell in value.__closure__ if not _empty(cell))


def _empty(cell: Any) -> bool:
    """Whether a closure names a variable that has no value yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False
