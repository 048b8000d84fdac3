"""What ``cupy.fuse`` does, for the strict stand-in device: note a function's steps, then replay.

    first call    the function runs on symbols; each element-wise step is noted
    every call    the noted steps run on the arrays that were given

So a number that the function read from elsewhere is fixed by the first call, a branch on a value is
refused, and so is everything that is not element by element: CuPy does the same.
"""

from typing import Any

import numpy as np


class Symbol:
    """An array, or a number, in a function that is being noted."""

    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, program: "Program", sample: Any) -> None:
        self._program = program
        self._sample = sample  # no elements, but the dtype: or a number, which takes the array's
        self._slot = program.slots
        program.slots += 1

    @property
    def dtype(self) -> np.dtype:
        return np.asarray(self._sample).dtype

    def __bool__(self) -> bool:
        raise TypeError("fuse: a value decides nothing inside: there is no value yet")

    def __setitem__(self, index: Any, value: Any) -> None:
        if index is not Ellipsis:
            raise TypeError("fuse: only [...] is assigned to")
        self._program.note(np.positive, (value,), self)

    def astype(self, dtype: Any) -> "Symbol":
        return self._program.note(lambda x, out=None: x.astype(dtype), (self,))


for _name, _ufunc in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.divide, "pow": np.power,
}.items():  # fmt: skip
    setattr(Symbol, f"__{_name}__", lambda x, y, u=_ufunc: x._program.note(u, (x, y)))
    setattr(Symbol, f"__r{_name}__", lambda x, y, u=_ufunc: x._program.note(u, (y, x)))
    setattr(Symbol, f"__i{_name}__", lambda x, y, u=_ufunc: x._program.note(u, (x, y), x))
for _name, _ufunc in {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal,
}.items():  # fmt: skip
    setattr(Symbol, f"__{_name}__", lambda x, y, u=_ufunc: x._program.note(u, (x, y)))
Symbol.__neg__ = lambda x: x._program.note(np.negative, (x,))


class Program:
    """The steps of one function, for one kind of arguments."""

    def __init__(self, function: Any, given: tuple[Any, ...]) -> None:
        self.slots = 0
        self.steps: list[tuple[Any, tuple[Any, ...], int, bool]] = []
        symbols = [
            None if value is None
            else Symbol(self, value[:0] if isinstance(value, np.ndarray) else value)
            for value in given
        ]  # fmt: skip
        self.result = function(*symbols)

    def note(self, ufunc: Any, inputs: tuple[Any, ...], out: Symbol | None = None) -> Symbol:
        """One step. Its result is a new symbol, or written into ``out``."""
        for value in inputs:
            if not isinstance(value, (Symbol, int, float)):
                raise TypeError(f"fuse: {type(value).__name__} is no argument of the function")
        samples = [value._sample if isinstance(value, Symbol) else value for value in inputs]
        sample = ufunc(*samples)
        if out is None:
            out, fresh = Symbol(self, sample), True
        else:
            assert np.can_cast(np.asarray(sample).dtype, out.dtype, "same_kind"), ufunc
            fresh = False
        self.steps.append((ufunc, inputs, out._slot, fresh))
        return out

    def run(self, given: list[Any]) -> Any:
        """The steps on these arrays and numbers."""
        values = [*given, *[None] * (self.slots - len(given))]
        for ufunc, inputs, out, fresh in self.steps:
            numbers = [values[x._slot] if isinstance(x, Symbol) else x for x in inputs]
            if fresh:
                values[out] = np.asarray(ufunc(*numbers))
            else:
                ufunc(*numbers, out=values[out])
        return None if self.result is None else values[self.result._slot]


def fuse(function: Any, unwrap: Any, wrap: Any) -> Any:
    """``function`` as one kernel: ``unwrap`` and ``wrap`` come and go between host and device."""
    programs: dict[Any, Program] = {}

    def call(*given: Any) -> Any:
        if any(isinstance(value, Symbol) for value in given):
            return function(*given)  # inside another one: its steps join that one's
        host = [unwrap(value) for value in given]
        kind = tuple(
            (value.dtype, value.ndim) if isinstance(value, np.ndarray) else type(value)
            for value in host
        )
        if kind not in programs:
            programs[kind] = Program(function, tuple(host))
        return wrap(programs[kind].run([value for value in host if value is not None]))

    return call
