"""Versions: has memory that a backward needs been written since the forward?

A linear layer's backward multiplies by the weights. If an optimizer step or a ``load`` comes
between forward and backward, it would multiply by the *new* weights, and the result would not be
the gradient of any function. So the memory of all parameters, the flat array, has a ``Version``:

    version = track(flat)             a version for the array and all its views
    written(flat[3:7])                called after every write into the array
    changed(backward, needs, time)    whether memory that a backward needs was written since

Time is the number of writes so far, ``WRITES.count``. Each op's node stores the time when the op
ran. Usually nothing is written until its backward, which takes one comparison to find out. If
something was, the arrays that the backward refers to are searched for memory written since: see
tape.py. (An op that adds a bias refers to no values, so its backward is right.) Only tracked memory
is checked. Other arrays, such as ``tensor.data`` of an input, must not be written in place between
forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from minidist.engine.array import Array


class ChangedError(RuntimeError):
    """Memory that a backward needs has been written after the forward."""


class Writes:
    """The number of writes into any tracked memory in this process."""

    __slots__ = ("count", "lock")

    def __init__(self) -> None:
        self.count = 0
        self.lock = Lock()  # a communication stream is another thread, and may write too


WRITES = Writes()


class Version:
    """When an array was last written. ``layout`` is any value to find by a view of the array."""

    __slots__ = ("__weakref__", "last", "layout", "owner")

    def __init__(self, owner: Array, layout: Any = None) -> None:
        self.owner = owner
        self.last = 0
        self.layout = layout


# By the id of the array that owns the memory. The version keeps the array alive, so that no other
# array can have the same id.
_versions: WeakValueDictionary[int, Version] = WeakValueDictionary()


def track(array: Array, layout: Any = None) -> Version:
    """A new version for the memory of ``array``, which is tracked as long as the version lives."""
    owner = owner_of(array)
    version = _versions[id(owner)] = Version(owner, layout)
    return version


def version_of(array: Array) -> Version | None:
    """The version of the memory that ``array`` is in, or None if it is not tracked."""
    return _versions.get(id(owner_of(array)))


def written(array: Array) -> None:
    """Record a write into ``array``, which may be a view of tracked memory."""
    version = version_of(array)
    if version is not None:
        with WRITES.lock:
            WRITES.count += 1
            version.last = WRITES.count


def changed(function: Any, needs: Iterable[Version], time: int) -> bool:
    """Whether memory of ``needs``, or that a closure refers to, was written after ``time``."""
    used = (version_of(array) for array in arrays_in(function))
    return any(version is not None and version.last > time for version in chain(needs, used))


def owner_of(array: Array) -> Array:
    """The array that owns the memory of ``array``: itself if it is not a view."""
    base = getattr(array, "base", None)
    while base is not None and hasattr(base, "nbytes"):
        array, base = base, getattr(base, "base", None)
    return array


def arrays_in(function: Any) -> Iterator[Array]:
    """Every array that a closure refers to, also through tensors, tuples and inner functions."""
    stack, functions = [function], set[int]()
    while stack:
        value = stack.pop()
        if isinstance(value, type):
            continue
        if hasattr(value, "node") and hasattr(value, "data"):  # a tensor
            yield value.data
        elif hasattr(value, "ndim") and hasattr(value, "nbytes"):
            yield value
        elif isinstance(value, (tuple, list)):
            stack.extend(value)
        elif isinstance(value, partial):
            stack.extend((value.func, *value.args, *value.keywords.values()))
        elif hasattr(value, "write"):  # an Into
            stack.append(value.write)
        elif hasattr(value, "__code__") and id(value) not in functions:
            functions.add(id(value))  # a function that calls itself is in its own closure
            stack.extend(value.__defaults__ or ())
            for cell in value.__closure__ or ():
                try:
                    stack.append(cell.cell_contents)
                except ValueError:  # a variable of the closure that has no value yet
                    continue
