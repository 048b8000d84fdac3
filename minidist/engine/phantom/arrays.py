"""The array: a shape, a dtype and a place in memory that nobody allocates.

Views know the array that owns their memory (``base``) and where in it they begin (``address``), so
that memory is counted, and overlaps are found, as with real arrays.
"""

from __future__ import annotations

import math
import sys
import types
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from minidist.engine.arithmetic import work
from minidist.engine.phantom import views
from minidist.engine.phantom.views import Shape


class NoNumbers(TypeError):
    """A program asked for the value of an array that has a shape and no numbers."""


class Flags:
    """What an array's ``flags`` say."""

    def __init__(self, c_contiguous: bool) -> None:
        self.c_contiguous = c_contiguous
        self.writeable = True


CONTIGUOUS, STRIDED = Flags(True), Flags(False)


class Memory:
    """Hands out addresses: no two arrays that own their memory overlap."""

    free = 1 << 20


memory = Memory()


class ndarray:  # noqa: N801 (named as NumPy's and CuPy's are)
    """An array of a shape and a dtype, without numbers."""

    __slots__ = ("__weakref__", "address", "base", "dtype", "layout", "nbytes", "shape", "size")
    __array_ufunc__ = None  # NumPy's scalars leave their operators to this class
    __array_priority__ = 1000
    __hash__ = None  # type: ignore[assignment]
    __module__ = "minidist.engine.phantom"

    shape: Shape
    dtype: np.dtype
    layout: Shape | None  # strides, None if contiguous
    base: ndarray | None
    size: int
    nbytes: int
    address: int

    # What it looks like

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def strides(self) -> Shape:
        return self.layout or views.contiguous(self.shape, self.dtype.itemsize)

    @property
    def flags(self) -> Flags:
        return CONTIGUOUS if self.layout is None else STRIDED

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.address)

    @property
    def T(self) -> ndarray:  # noqa: N802
        return self.transpose()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array of no dimensions")
        return self.shape[0]

    def __iter__(self) -> Any:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"phantom {self.dtype} {self.shape}"

    # Views

    def _view(self, name: str, *given: Any) -> ndarray:
        return seen(self, views.view(self.shape, self.layout, self.dtype, name, *given))

    def reshape(self, *shape: Any, copy: bool | None = None) -> ndarray:
        if len(shape) == 1 and not isinstance(shape[0], (int, np.integer)):
            shape = tuple(shape[0])
        if self.layout is None:
            if shape == self.shape:
                return seen(self, (shape, None, 0, self.dtype))
            return seen(self, (views.resolved(self.size, shape), None, 0, self.dtype))
        found = views.reshaped(self.shape, self.layout, self.dtype, shape)
        if len(found) == 4 and type(found[0]) is tuple:
            return seen(self, found)
        return copied(self, found)  # type: ignore[arg-type]

    def ravel(self) -> ndarray:
        return self.reshape(-1)

    def flatten(self) -> ndarray:
        return self.copy().reshape(-1)

    def transpose(self, *axes: Any) -> ndarray:
        if len(axes) == 1 and not isinstance(axes[0], (int, np.integer)):
            axes = () if axes[0] is None else tuple(axes[0])
        return self._view("transpose", *axes)

    def swapaxes(self, first: int, second: int) -> ndarray:
        return self._view("swapaxes", first, second)

    def squeeze(self, axis: Any = None) -> ndarray:
        return self._view("squeeze", axis)

    def diagonal(self, *how: int) -> ndarray:
        return self._view("diagonal", *how)

    def view(self, dtype: Any) -> ndarray:
        return self._view("view", np.dtype(dtype))

    def __getitem__(self, index: Any) -> ndarray:
        if type(index) is slice and self.layout is None and len(self.shape) == 1:
            start, stop, step = index.indices(self.size)
            if step == 1:
                length = stop - start if stop > start else 0
                size = self.dtype.itemsize
                return seen(self, ((length,), None, start * size, self.dtype))
        index = index if type(index) is tuple else (index,)
        key = views.index_key(index)
        if key is not None:
            return self._view("index", key)
        shape = picked(self, index, "indexing")
        out = new(shape, self.dtype)
        work.kernel(2 * out.nbytes)
        return out

    def __setitem__(self, index: Any, value: Any) -> None:
        if index is Ellipsis or (type(index) is slice and index == slice(None)):
            shape, nbytes = self.shape, self.nbytes
        else:
            index = index if type(index) is tuple else (index,)
            key = views.index_key(index)
            if key is not None:
                shape = views.view(self.shape, self.layout, self.dtype, "index", key)[0]
            elif any(is_mask(one) for one in index):
                shape = self.shape  # as many as the mask says: all, at most
            else:
                shape = picked(self, index, "assignment")
            nbytes = math.prod(shape) * self.dtype.itemsize
        if type(value) is ndarray:
            if value.shape != shape and views.broadcast(value.shape, shape) != shape:
                raise ValueError(
                    f"could not broadcast input array from shape {value.shape} into {shape}"
                )
            work.kernel(nbytes + value.nbytes)
            traced((value,), self)
        else:
            refuse_host(value, "assignment")
            work.kernel(nbytes)
            traced((), self)

    # Copies

    def copy(self, order: str = "C") -> ndarray:
        return copied(self, self.shape)

    def astype(self, dtype: Any, copy: bool = True, **_: Any) -> ndarray:
        dtype = np.dtype(dtype)
        if not copy and dtype == self.dtype:
            return self
        out = like(self, dtype)
        work.kernel(self.nbytes + out.nbytes)
        traced((self,), None)
        return out

    def fill(self, value: Any) -> None:
        work.kernel(self.nbytes)

    # Values: there are none

    def _ask(self, how: str) -> NoReturn:
        raise NoNumbers(
            f"{_op()}: {how} reads the numbers of an array {self.shape} of {self.dtype}, and "
            'arrays on device "phantom" have none. Where a program reads on purpose, '
            "minidist.engine.array.read(array, rule) says what to assume instead"
        )

    def __bool__(self) -> bool:
        self._ask("bool()")

    def __float__(self) -> float:
        self._ask("float()")

    def __int__(self) -> int:
        self._ask("int()")

    def __index__(self) -> int:
        self._ask("an index")

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self._ask("NumPy")

    def __array_function__(self, function: Any, _: Any, given: Any, named: Any) -> Any:
        """NumPy's function on this array: as CuPy does it, this module's function of that name.

        Without this, some would take the error above as an answer: ``array_equal`` says False.
        """
        name = function.__name__
        if name in ("shape", "ndim", "size", "iscomplexobj", "isrealobj"):
            return function._implementation(*given, **named)
        own = getattr(sys.modules[self.__module__], name, None)
        if own is None:
            self._ask(f"numpy.{name}")
        return own(*given, **named)

    def item(self) -> float:
        self._ask("item()")

    def tolist(self) -> list[Any]:
        self._ask("tolist()")

    def nonzero(self) -> tuple[Any, ...]:
        self._ask("nonzero()")


def _op() -> str:
    """The function that asked: the first outside of this package, with its file and line."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(
        "minidist.engine.phantom"
    ):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"


def new(shape: Shape, dtype: np.dtype, layout: Shape | None = None) -> ndarray:
    """An array that owns its memory."""
    array = ndarray.__new__(ndarray)
    array.shape, array.dtype, array.layout, array.base = shape, dtype, layout, None
    array.size = size = math.prod(shape)
    array.nbytes = nbytes = size * dtype.itemsize
    array.address = memory.free
    memory.free += nbytes + 1
    return array


def seen(whole: ndarray, layout: views.Layout) -> ndarray:
    """A view of ``whole``."""
    array = ndarray.__new__(ndarray)
    array.shape, array.layout, offset, array.dtype = layout
    array.base = whole if whole.base is None else whole.base
    array.address = whole.address + offset
    array.size = size = math.prod(array.shape)
    array.nbytes = size * array.dtype.itemsize
    return array


def copied(array: ndarray, shape: Shape) -> ndarray:
    """A contiguous copy, in a shape."""
    work.kernel(2 * array.nbytes)
    return new(shape, array.dtype)


def like(array: ndarray, dtype: np.dtype, shape: Shape | None = None) -> ndarray:
    """A new array whose axes lie in memory as those of ``array`` do."""
    if array.layout is None:
        return new(array.shape, dtype)
    strides = views.ordered(array.shape, ((array.shape, array.layout),), dtype.itemsize)
    return new(array.shape, dtype, strides)


def is_mask(index: Any) -> bool:
    return getattr(index, "dtype", None) == np.bool_ and getattr(index, "ndim", 0) > 0


def refuse_host(value: Any, where: str) -> None:
    if isinstance(value, np.ndarray):
        raise TypeError(f"{where}: a NumPy array of shape {value.shape} among phantom arrays")


def picked(array: ndarray, index: tuple[Any, ...], where: str) -> Shape:
    """The shape of ``array[index]`` with arrays of indices: NumPy says it of arrays of 0 bytes."""
    for one in index:
        refuse_host(one, where)
        if is_mask(one):
            array._ask(f"{where} by a mask")
    shapes = tuple(one.shape if type(one) is ndarray else None for one in index)
    rest = views.index_key(tuple(None if s is not None else o for s, o in zip(shapes, index)))  # noqa: B905
    if rest is None:
        raise TypeError(f"{where}: phantom arrays take numbers, slices and phantom indices")
    return _picked(array.shape, shapes, rest)


@lru_cache(views.KEPT)
def _picked(shape: Shape, shapes: tuple[Shape | None, ...], rest: tuple[Any, ...]) -> Shape:
    """NumPy's rule: all indices broadcast to one shape, which stands where they stood.

    If a slice stands between them, their shape comes first. Numbers count as indices.
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
    return (*kept[:front], *views.broadcast(*taken), *kept[front:])


class Tracing:
    """While a chain of element-wise steps is looked at: what it reads and writes, in order."""

    events: list[tuple[tuple[Any, ...], Any]] | None = None


tracing = Tracing()


def traced(reads: tuple[Any, ...], written: Any) -> None:
    """These arrays were read, and that one was written (None: a new one)."""
    if tracing.events is not None:
        tracing.events.append((reads, written))
