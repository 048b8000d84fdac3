"""Versions: has memory that a backward needs been written since the forward?

A linear layer's backward multiplies by the weights. If an optimizer step or a ``load`` comes
between forward and backward, it would multiply by the *new* weights, and the result would be the
gradient of nothing. So memory that is written as a whole, a model's flat array, has a ``Version``:

    version = track(flat)             found again by any view of the array
    written(flat[3:7])                whoever writes into the array says so
    changed(backward, needs, time)    whether memory that a backward keeps was written since

Time is the number of writes so far, ``WRITES.count``. Each op's node remembers when the op ran.
If nothing was written until its backward, one comparison says so, and that is the usual case. Else
the backward looks at the memory that it keeps: see tape.py. (An op that adds a bias keeps no
values, so it stays right.) Only tracked memory is watched. Whoever writes into other arrays in
place, such as ``tensor.data`` of an input, does it before the forward or after the backward.
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
    """Memory that a backward needs was written after the forward."""


class Writes:
    """How often tracked memory has been written in this process, whichever it was."""

    __slots__ = ("count", "lock")

    def __init__(self) -> None:
        self.count = 0
        self.lock = Lock()  # a communication stream, a thread, may write too


WRITES = Writes()


class Version:
    """When an array was last written. ``layout`` is whatever its user wants to find again."""

    __slots__ = ("__weakref__", "last", "layout", "owner")

    def __init__(self, owner: Array, layout: Any = None) -> None:
        self.owner = owner
        self.last = 0
        self.layout = layout


# By the id of the array that owns the memory, which the version keeps alive: so an id in use is
# never another array's.
_versions: WeakValueDictionary[int, Version] = WeakValueDictionary()


def track(array: Array, layout: Any = None) -> Version:
    """A new version for the memory of ``array``: keep it as long as the array."""
    owner = owner_of(array)
    version = _versions[id(owner)] = Version(owner, layout)
    return version


def version_of(array: Array) -> Version | None:
    """The version of the memory that ``array`` is in, or None if nobody tracks it."""
    return _versions.get(id(owner_of(array)))


def written(array: Array) -> None:
    """Say that ``array``, which may be a part of what is tracked, has been written."""
    version = version_of(array)
    if version is not None:
        with WRITES.lock:
            WRITES.count += 1
            version.last = WRITES.count


def changed(function: Any, needs: Iterable[Version], time: int) -> bool:
    """Whether memory of ``needs``, or that a closure refers to, was written after ``time``."""
    kept = (version_of(array) for array in arrays_in(function))
    return any(version is not None and version.last > time for version in chain(needs, kept))


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
            functions.add(id(value))  # one that calls itself is in its own closure
            stack.extend(value.__defaults__ or ())
            for cell in value.__closure__ or ():
                try:
                    stack.append(cell.cell_contents)
                except ValueError:  # named in the closure, and without a value yet
                    continue
