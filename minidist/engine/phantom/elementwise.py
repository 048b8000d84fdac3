"""Elementwise functions, with the shapes and dtypes of NumPy's ufuncs, and the operators.

The dtype of the result is asked of NumPy's function of the same name. A call is one kernel, which
reads its operands and writes its result.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from minidist.engine.arithmetic import work
from minidist.engine.phantom import views
from minidist.engine.phantom.arrays import (
    ndarray,
    new,
    picked,
    refuse_host,
    traced,
    tracing,
)


class Function:
    """A ufunc on phantom arrays."""

    def __init__(self, ufunc: np.ufunc) -> None:
        if ufunc.nout != 1:
            raise AttributeError(f"phantom arrays have no {ufunc.__name__}")
        self.ufunc = ufunc
        self.inputs = ufunc.nin
        self.dtypes: dict[Any, np.dtype] = {}
        self.__name__ = ufunc.__name__

    def dtype_of(self, kinds: tuple[Any, ...]) -> np.dtype:
        """The result's dtype, for operands with these dtypes or types of Python numbers."""
        found = self.dtypes.get(kinds)
        if found is None:
            asked = tuple(np.dtype(bool) if kind is bool else kind for kind in kinds)
            if not any(isinstance(kind, np.dtype) for kind in asked):
                asked = tuple(np.dtype(kind) for kind in asked)
            found = self.dtypes[kinds] = self.ufunc.resolve_dtypes((*asked, None))[-1]
        return found

    def __call__(self, *given: Any, out: Any = None, dtype: Any = None) -> ndarray:
        if len(given) > self.inputs:
            out, given = given[self.inputs], given[: self.inputs]
        if type(out) is tuple:
            (out,) = out
        first = given[0]
        nbytes, shape, layout, kinds, plain = 0, None, None, [], True
        for one in given:
            if type(one) is ndarray:
                nbytes += one.nbytes
                kinds.append(one.dtype)
                if shape is None:
                    shape, layout = one.shape, one.layout
                elif one.shape != shape or one.layout != layout:
                    plain = False
            else:
                kinds.append(_kind(one, self.__name__))
        kind = self.dtype_of(tuple(kinds)) if dtype is None else np.dtype(dtype)
        if shape is None:
            shape = ()
        if not plain:
            shapes = [one.shape for one in given if type(one) is ndarray]
            shape = views.broadcast(*shapes)
            layout = views.ordered(
                shape,
                tuple((one.shape, one.layout) for one in given if type(one) is ndarray),
                first.dtype.itemsize if type(first) is ndarray else 1,
            )
        if out is None:
            if layout is not None:  # the operands' order of axes, but without gaps
                layout = views.ordered(shape, ((shape, layout),), kind.itemsize)
            out = new(shape, kind, layout)
        else:
            self._check_out(out, shape, kind)
        work.kernel(nbytes + out.nbytes)
        if tracing.events is not None:
            traced(tuple(one for one in given if type(one) is ndarray), out)
        return out

    def _check_out(self, out: Any, shape: views.Shape, kind: np.dtype) -> None:
        if type(out) is not ndarray:
            raise TypeError(f"{self.__name__}: out must be a phantom array, not {type(out)}")
        if out.shape != shape and views.broadcast(out.shape, shape) != out.shape:
            raise ValueError(f"{self.__name__}: a result of {shape} does not fit out {out.shape}")
        if out.dtype != kind and not np.can_cast(kind, out.dtype, "same_kind"):
            raise TypeError(f"{self.__name__}: cannot put {kind} into {out.dtype}")

    def at(self, array: ndarray, index: Any, values: Any) -> None:
        """As ``ufunc.at``: combine each value with the element at its index, in place."""
        shape = picked(array, index if type(index) is tuple else (index,), self.__name__)
        nbytes = values.nbytes if type(values) is ndarray else 0
        work.kernel(nbytes + 2 * int(np.prod(shape)) * array.itemsize)


def _kind(value: Any, where: str) -> Any:
    """The dtype of a NumPy number, or the type of a Python number."""
    refuse_host(value, where)
    if isinstance(value, np.generic):
        return value.dtype
    if isinstance(value, (bool, int, float)):
        return type(value) if type(value) in (bool, int, float) else float
    raise TypeError(f"{where}: phantom arrays and numbers, not {type(value).__name__}")


@cache
def function(name: str) -> Function:
    """The ufunc of this name. Raises AttributeError if NumPy has none."""
    ufunc = getattr(np, name)
    if not isinstance(ufunc, np.ufunc):
        raise AttributeError(name)
    return Function(ufunc)


OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "power", "and": "bitwise_and",
    "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
}  # fmt: skip
COMPARISONS = {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal",
}  # fmt: skip
ALONE = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


def _add_operators() -> None:
    def binary(run: Function) -> Any:
        return lambda self, other: run(self, other) if _fits(other) else NotImplemented

    def reflected(run: Function) -> Any:
        return lambda self, other: run(other, self) if _fits(other) else NotImplemented

    def in_place(run: Function) -> Any:
        return lambda self, other: run(self, other, out=self)

    def unary(run: Function) -> Any:
        return lambda self: run(self)

    for name, ufunc in OPERATORS.items():
        run = function(ufunc)
        setattr(ndarray, f"__{name}__", binary(run))
        setattr(ndarray, f"__r{name}__", reflected(run))
        setattr(ndarray, f"__i{name}__", in_place(run))
    for name, ufunc in COMPARISONS.items():
        setattr(ndarray, f"__{name}__", binary(function(ufunc)))
    for name, ufunc in ALONE.items():
        setattr(ndarray, f"__{name}__", unary(function(ufunc)))


def _fits(other: Any) -> bool:
    """Whether an operator accepts ``other``; if not, Python asks the other operand (a Tensor)."""
    return isinstance(other, (ndarray, bool, int, float, np.generic, np.ndarray))


_add_operators()
