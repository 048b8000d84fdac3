"""Note the steps of a chain of element-wise functions, as the text of one loop.

    mean *= beta                                    _0 = _mean * _0n
    mean += xp.multiply(grad, rest, out=scratch)    _1 = _grad * _1n;  _2 = _0 + _1

The function runs once, on stand-ins. ``Values`` stands for an array: what is done to it is noted as
a step on one element. ``Number`` stands for a number; arithmetic with two of them comes before the
loop, in double precision as in Python. A number takes the dtype of the arrays where it meets one,
as in NumPy. A branch on a value, or a function that is not listed here, raises ``NoLoop``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np

BINARY = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
SPECIAL = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv"}
COMPARE = {"greater": ">", "greater_equal": ">=", "less": "<", "less_equal": "<="}
SHORT = {"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le"}


class NoLoop(TypeError):
    """A function that cannot be made a loop."""


class Number:
    """A number that is an argument, or computed from some."""

    def __init__(self, notes: Notes, text: str) -> None:
        self.notes, self.text = notes, text

    def __bool__(self) -> bool:
        raise NoLoop("a branch on a number")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: bool(self)
    __hash__ = None  # type: ignore[assignment]


class Values:
    """An array: the text of one element as it is now."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, notes: Notes, text: str) -> None:
        self.notes, self.text = notes, text

    @property
    def dtype(self) -> np.dtype:
        return self.notes.dtype

    def __bool__(self) -> bool:
        raise NoLoop("a branch on values")

    def __getattr__(self, name: str) -> Any:
        raise NoLoop(f"{name} of an array")

    def __setitem__(self, index: Any, value: Any) -> None:
        if index is not Ellipsis:
            raise NoLoop("an index")
        self.text = self.notes.text(value)


class Truths(Values):
    """A mask: only ``where`` takes it."""


class Notes:
    """The stand-in for ``numpy``: its functions note steps instead of computing."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.before: list[str] = []
        self.steps: list[str] = []
        self.constants: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        raise NoLoop(f"xp.{name}")

    def argument(self, kind: type) -> Any:
        """The stand-in for an argument of this type."""
        if kind is type(None):
            return None
        if kind not in (np.ndarray, float):
            raise NoLoop(f"a {kind.__name__}")
        return Values(self, "") if kind is np.ndarray else Number(self, "")

    def text(self, value: Any) -> str:
        """One element of an array, or a number in the arrays' dtype."""
        if type(value) is Values:
            return value.text
        if isinstance(value, Number):
            number = value.text
        elif type(value) in (int, float) and isfinite(value):
            number = repr(float(value))
        else:
            raise NoLoop(f"a {type(value).__name__}")
        if number not in self.constants:
            name = self.constants[number] = f"_{len(self.constants)}n"
            self.before.append(f"{name} = __cast({number})")
        return self.constants[number]

    def note(self, text: str, out: Any = None, kind: type[Values] = Values) -> Any:
        """A step, into ``out`` or new values."""
        name = f"_{len(self.steps)}"
        self.steps.append(f"{name} = {text}")
        if out is None:
            return kind(self, name)
        if type(out) is not Values:
            raise NoLoop("out")
        out.text = name
        return out

    def binary(
        self, sign: str, x: Any, y: Any, out: Any = None, kind: type[Values] = Values
    ) -> Any:
        if not isinstance(x, Values) and not isinstance(y, Values):
            x, y = (one.text if isinstance(one, Number) else repr(one) for one in (x, y))
            return Number(self, f"({x} {sign} {y})")
        return self.note(f"{self.text(x)} {sign} {self.text(y)}", out, kind)

    def sqrt(self, x: Any, out: Any = None) -> Any:
        return self.note(f"__sqrt({self.text(x)})", out)

    def where(self, mask: Any, x: Any, y: Any) -> Any:
        if type(mask) is not Truths:
            raise NoLoop("where")
        return self.note(f"{self.text(x)} if {mask.text} else {self.text(y)}")


def _offer(name: str, sign: str, special: str, kind: type[Values]) -> None:
    """``xp.add(x, y, out)``, ``x + y`` and ``x += y``, for one of the tables above."""

    def function(self: Notes, x: Any, y: Any, out: Any = None) -> Any:
        return self.binary(sign, x, y, out, kind)

    setattr(Notes, name, function)
    for one in (Values,) if kind is Truths else (Values, Number):
        setattr(one, f"__{special}__", lambda x, y: x.notes.binary(sign, x, y, None, kind))
    if kind is Values:
        for one in (Values, Number):
            setattr(one, f"__r{special}__", lambda x, y: x.notes.binary(sign, y, x))
        setattr(Values, f"__i{special}__", lambda x, y: x.notes.binary(sign, x, y, x))


for _name, _sign in BINARY.items():
    _offer(_name, _sign, SPECIAL[_name], Values)
for _name, _sign in COMPARE.items():
    _offer(_name, _sign, SHORT[_name], Truths)


def loop_of(
    function: Callable[..., Any], dtype: np.dtype, kinds: Sequence[type]
) -> tuple[str, bool]:
    """The text of a module with ``loop(*arguments)``, for arrays of ``dtype``.

    And whether the function returns a new array: the loop fills one behind the arguments.
    ``kinds``: the type of each argument, an array, a float or None. Arrays are contiguous and of
    one shape. What was noted of ``scratch`` is not written.
    """
    if dtype.char not in "fd":
        raise NoLoop(f"arrays of {dtype}")
    notes = Notes(dtype)
    given = dict(zip(names_of(function, len(kinds)), map(notes.argument, kinds), strict=True))
    for name, one in given.items():
        if one is not None:
            one.text = name if isinstance(one, Number) else f"_{name}"
    result = function(notes, *given.values())
    is_argument = any(result is one for one in given.values())
    if result is not None and (type(result) is not Values or is_argument):
        raise NoLoop("a result that is no new array")
    new = {} if result is None else {"__new": result}
    arrays = {name: one for name, one in given.items() if isinstance(one, Values)}
    changed = {name: one for name, one in arrays.items() if one.text != f"_{name}"}
    changed.pop("scratch", None)
    lines = [
        f'"""{function.__qualname__} of {function.__module__}, as one loop."""',
        "from math import sqrt as __sqrt",
        f"from numpy import {dtype.name} as __cast",
        "",
        f"def loop({', '.join([*given, *new])}):",
        *(f"    {name} = {name}.reshape({name}.size)" for name in [*arrays, *new]),
        *(f"    {line}" for line in notes.before),
        f"    for __i in range({next(iter(arrays))}.size):",
        *(f"        _{name} = {name}[__i]" for name in arrays),
        *(f"        {line}" for line in notes.steps),
        *(f"        {name}[__i] = {one.text}" for name, one in [*changed.items(), *new.items()]),
    ]
    return "\n".join(lines) + "\n", bool(new)


def names_of(function: Callable[..., Any], count: int) -> list[str]:
    """Names of the arguments after ``xp``; those of ``*numbers`` are made here."""
    _, *named = inspect.signature(function).parameters.values()
    names = [one.name for one in named if one.kind is not one.VAR_POSITIONAL]
    if any(name.startswith("_") for name in names):
        raise NoLoop("a name that the loop may use itself")
    return [*names, *(f"number{index}" for index in range(count - len(names)))]
