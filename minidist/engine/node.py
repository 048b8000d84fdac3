"""The tape's nodes: what each op left behind for the backward.

An op adds a ``Node`` with the nodes of its inputs and the op's backward. A node keeps what its
backward needs, and nothing else: an array that no backward needs is freed during the forward. See
tape.py for the walk back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import ref

from minidist.engine.array import Array
from minidist.engine.versions import WRITES, Version

Gradients = Sequence[Any]  # for each parent an array, None, or a callable that returns an array
Backward = Callable[[Array], Gradients]


class GradientShapeError(RuntimeError):
    """A backward returned a gradient that has not the shape of the input it belongs to."""


class Leaf(Protocol):
    """What the tape needs of a leaf: a ``Tensor`` that no op computed, such as a parameter."""

    data: Array

    def accumulate(self, grad: Any) -> None:
        """Add one use's gradient."""

    def ready(self) -> None:
        """All uses of this backward have been added."""


class Node:
    """One op on the tape: its parents' nodes and its backward, or the leaf that it stands for.

    ``shape`` is that of the op's result; ``hooks`` are called with the result's whole gradient.
    ``leaf`` is a weak reference: a leaf has its node, and if the node had the leaf too, both would
    stay in memory until Python's garbage collector finds the circle. If a leaf is gone, nobody can
    read its gradient. ``time`` is when the op ran, and ``needs`` is tracked memory that the
    backward does not refer to, and needs: see versions.py.
    """

    __slots__ = ("backward", "hooks", "leaf", "needs", "parents", "shape", "time")

    def __init__(
        self,
        parents: tuple[Node | None, ...],
        backward: Backward | None,
        shape: tuple[int, ...],
        leaf: Leaf | None = None,
    ) -> None:
        self.parents = parents
        self.backward = backward
        self.shape = shape
        self.leaf = None if leaf is None else ref(leaf)
        self.hooks: list[Callable[[Array], Array | None]] | None = None
        self.time = WRITES.count
        self.needs: tuple[Version, ...] = ()

    @property
    def name(self) -> str:
        """The op's name: that of the function that wrote the backward."""
        if self.leaf is not None:
            return getattr(self.leaf(), "name", "") or "leaf"
        return getattr(self.backward, "__qualname__", "op").partition(".")[0]


class Into:
    """A gradient still to be computed, by a function that can write it straight into memory.

    A backward may return one where it may return a callable. ``write(out)`` computes into ``out``
    and returns it, or into new memory if ``out`` is None. The first use of a parameter after
    ``zero_grad`` then writes the gradient where it belongs: no second array, no addition.

    The gradient is a sum over samples. An op of which the samples' own gradients can be asked gives
    ``each(n)`` too. It returns those of the n samples on the first axis of the op's input: an array
    (n, *shape of the weight), or a pair (a, b) of arrays (n, t, i) and (n, t, o) of which they are
    the products Σ_t a_t ⊗ b_t. If ``a`` holds integers (n, t), each stands for a row of the table,
    (0, ..., 1, ..., 0). See privacy/per_sample.py.
    """

    __slots__ = ("each", "write")

    def __init__(
        self,
        write: Callable[[Array | None], Array],
        each: Callable[[int], Any] | None = None,
    ) -> None:
        self.write = write
        self.each = each

    def __call__(self) -> Array:
        return self.write(None)
