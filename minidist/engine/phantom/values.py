"""Reading a value of a phantom array is an error, which names the code that reads.

Every way to read a number (``bool``, ``float``, an index, NumPy's functions) raises ``NoNumbers``.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import numpy as np


class NoNumbers(TypeError):
    """A program read the value of an array that has a shape but no numbers."""


class NoValues:
    """Base of the array: methods that would read its numbers raise ``NoNumbers``."""

    __slots__ = ()

    shape: tuple[int, ...]
    dtype: np.dtype

    def _ask(self, how: str) -> NoReturn:
        raise NoNumbers(
            f"{_op()}: {how} reads the numbers of an array {self.shape} of {self.dtype}, and "
            'arrays on device "phantom" have none. If a program must read a value, '
            "minidist.engine.array.read(array, rule) gives the value to assume"
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
        """Call this package's function of the same name, as CuPy does.

        Without this, some NumPy functions would hide the error: ``array_equal`` returns False.
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
    """The function that reads: the first caller outside of this package, with file and line."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(
        "minidist.engine.phantom"
    ):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
