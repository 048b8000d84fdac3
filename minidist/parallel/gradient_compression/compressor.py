"""The interface of a compressor: it encodes a gradient in few bytes, and keeps the error.

``compression.py`` lists what each compressor sends, and uses them; so do pushes to parameter
servers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.engine.array import Array, module_of
from minidist.nn.module import Shape


class Compressor:
    """``encode`` on the rank that computed a gradient, ``decode`` on the ranks that receive it.

    Each rank has one object for each gradient: it may keep the error in ``residual``.
    """

    all_reducible = False  # whether messages can be added
    feedback = False  # whether it keeps a residual, as long as the gradient

    def describe(
        self, shapes: dict[str, Shape], dtype: DTypeLike, seed: int, rank: int = 0
    ) -> None:
        """Set the shapes of the gradient's parameters, in order. Call once, before ``decode``."""
        self.shapes, self.dtype = shapes, np.dtype(dtype)
        self.seed, self.rank = seed, rank
        bounds = np.cumsum([0, *(math.prod(shape) for shape in shapes.values())]).tolist()
        self.parts = [slice(*pair) for pair in pairwise(bounds)]
        self.size = bounds[-1]
        self.residual: Any = None

    def start(self, grad: Array, shapes: dict[str, Shape], seed: int, rank: int = 0) -> None:
        """``describe``, and allocate what encoding gradients such as ``grad`` needs."""
        self.describe(shapes, grad.dtype, seed, rank)
        if self.feedback:
            self.residual = module_of(grad).zeros_like(grad)

    def encode(self, grad: Array, step: int) -> list[Array]:
        """The message for ``grad`` plus the residual: 1-D arrays, as ``wire`` says. Updates the
        residual."""
        raise TypeError(f"{type(self).__name__} does not define encode()")

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        """Add the gradient that a message of that step encodes to ``into``."""
        raise TypeError(f"{type(self).__name__} does not define decode()")

    def wire(self) -> list[tuple[int, DTypeLike]]:
        """The (length, dtype) of each array of a message."""
        raise TypeError(f"{type(self).__name__} does not define wire()")

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        """Replace ``grad`` by an approximate sum over all ranks, the same on every rank.

        By default all messages are all-gathered. A compressor whose messages can be added overrides
        this.
        """
        rows = [gather(comm, array) for array in self.encode(grad, step)]
        grad.fill(0)
        for message in zip(*rows, strict=True):
            self.decode(message, grad, step)

    def plan(self, series: Series, itemsize: int) -> None:
        """Add the messages of ``sum`` to ``series``."""
        for length, dtype in self.wire():
            plan_gather(series, length * np.dtype(dtype).itemsize)

    def arrays(self) -> list[Array]:
        """The arrays that it keeps between steps, after ``start``."""
        return [] if self.residual is None else [self.residual]

    def kept_bytes(self) -> int:
        """The bytes of ``arrays()``, also before ``start``."""
        return self.size * self.dtype.itemsize if self.feedback else 0

    def encode_flops(self) -> int:
        """FLOPs of the matrix products of an ``encode``."""
        return 0

    def decode_flops(self) -> int:
        """FLOPs of the matrix products of a ``decode``."""
        return 0


def make_compressor(kind: Callable[[], Compressor]) -> Compressor:
    """A new compressor, made by calling ``kind``. Raises ValueError if that gives none."""
    made = kind() if callable(kind) else None
    if not isinstance(made, Compressor):
        raise ValueError(
            f"unknown compressor {kind!r}: pass a class of minidist.parallel.gradient_compression, "
            "such as TopK, or a function that makes one, such as partial(TopK, 0.1)"
        )
    return made


def gather(comm: Comm, row: Array) -> Any:
    """All ranks' rows, which have equal lengths: (p, length)."""
    rows = module_of(row).empty((comm.size, row.size), row.dtype)
    rows[comm.rank] = row
    starts = range(0, comm.size * row.size, row.size)
    ring.all_gather(comm, rows.reshape(-1), [slice(start, start + row.size) for start in starts])
    return rows


def plan_gather(series: Series, nbytes: int) -> None:
    """Add the messages of ``gather``, for rows of ``nbytes``, to ``series``."""
    series.all_gather(series.size * nbytes, 1)
