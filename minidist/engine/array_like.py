"""What a tensor has because arrays have it: a shape, a length, conversions to numbers.

The rules are NumPy's: a tensor of one element converts to a number, and other tensors are refused.
What would silently lose a gradient is refused as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from minidist.engine import array as arrays
from minidist.engine.array import Array, DType, module_of
from minidist.engine.node import Node


class ArrayLike:
    """Base of ``Tensor``: the attributes and conversions of an array."""

    __slots__ = ()  # so that tensors have no dictionary: see Tensor

    data: Array
    node: Node | None

    if TYPE_CHECKING:  # added by ops/

        def __getitem__(self, index: Any) -> Self: ...

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def xp(self) -> Any:
        """The array module that computes on this tensor: ``numpy``, ``cupy`` or ``phantom``."""
        return np if type(self.data) is np.ndarray else module_of(self.data)

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array on the host (shared with the tensor if it is there)."""
        return arrays.to_host(self.data)

    def item(self) -> float:
        """The value of a tensor of one element, as a Python number."""
        return self.data.item()

    def tolist(self) -> Any:
        """The data as nested lists of Python numbers."""
        return self.data.tolist()

    def __array__(self, dtype: DType | None = None, copy: bool | None = None) -> np.ndarray:
        """For NumPy's functions and matplotlib; TypeError if a gradient would be lost."""
        if self.node is not None:
            raise TypeError(
                f"a NumPy function was given a tensor {self.shape} whose gradient it would lose: "
                "use minidist.ops, or tensor.numpy() for an array without a gradient"
            )
        return np.array(self.numpy(), dtype, copy=copy)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "a tensor cannot be assigned to, since a backward may need the old values: use "
            "ops.where, or tensor.data[index] = value if no backward needs them"
        )

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.data.shape[0]

    def __iter__(self) -> Iterator[Self]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d tensor")
        return (self[index] for index in range(len(self)))

    def __float__(self) -> float:
        return float(self._number("float"))

    def __int__(self) -> int:
        return int(self._number("int"))

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._number("round"), digits)

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"the truth value of a tensor of shape {self.shape} is ambiguous: reduce it first, "
                "for example with .data.all()"
            )
        return bool(self._number("bool"))

    def __format__(self, spec: str) -> str:
        return format(self._number("format") if spec else str(self), spec)

    def _number(self, what: str) -> Any:
        if self.size != 1:
            raise TypeError(
                f"{what}() is for a tensor of one element, and this one has shape {self.shape}"
            )
        return self.item()

    def __repr__(self) -> str:
        body = repr(self.data)
        if arrays.has_numbers(self.data):
            body = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        grad = ", requires_grad=True" if self.node is not None else ""
        return f"Tensor({body}, dtype={self.dtype}{grad})"
