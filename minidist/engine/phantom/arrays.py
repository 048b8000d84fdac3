"""The array: a shape, a dtype and an address, without allocated memory.

A view refers to the array that owns its memory (``base``) and has the address of its first element
(``address``). So memory can be counted, and overlaps can be found, as with real arrays.
"""

from __future__ import annotations

import math
import types
from typing import Any

import numpy as np

from minidist.engine.arithmetic import work
from minidist.engine.phantom import views
from minidist.engine.phantom.values import NoNumbers, NoValues
from minidist.engine.phantom.views import Shape

__all__ = ["NoNumbers", "ndarray"]


class Flags:
    """An array's ``flags``."""

    def __init__(self, c_contiguous: bool) -> None:
        self.c_contiguous = c_contiguous
        self.writeable = True


CONTIGUOUS, STRIDED = Flags(True), Flags(False)


class Memory:
    """The next free address, so that arrays that own their memory never overlap."""

    free = 1 << 20


memory = Memory()


class ndarray(NoValues):  # noqa: N801 (named as NumPy's and CuPy's are)
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

    # Properties

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
            raise TypeError("len() of a 0-d array")
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
                shape = self.shape  # unknown: at most all elements
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
    """A contiguous copy of ``array``, with another shape of the same size."""
    work.kernel(2 * array.nbytes)
    return new(shape, array.dtype)


def like(array: ndarray, dtype: np.dtype, shape: Shape | None = None) -> ndarray:
    """A new array whose axes have the same order in memory as those of ``array``."""
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
    """The shape of ``array[index]``, where ``index`` has arrays of indices.

    Raises TypeError for host arrays, NoNumbers for a mask.
    """
    for one in index:
        refuse_host(one, where)
        if is_mask(one):
            array._ask(f"{where} by a mask")
    shapes = tuple(one.shape if type(one) is ndarray else None for one in index)
    rest = views.index_key(tuple(None if s is not None else o for s, o in zip(shapes, index)))  # noqa: B905
    if rest is None:
        raise TypeError(f"{where}: phantom arrays take numbers, slices and phantom indices")
    return views.picked(array.shape, shapes, rest)


class Tracing:
    """The arrays that elementwise steps read and write, in order; None if nothing is traced."""

    events: list[tuple[tuple[Any, ...], Any]] | None = None


tracing = Tracing()


def traced(reads: tuple[Any, ...], written: Any) -> None:
    """Record that ``reads`` were read and ``written`` was written (None: a new array)."""
    if tracing.events is not None:
        tracing.events.append((reads, written))
