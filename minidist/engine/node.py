"""The tape's nodes: what each op left behind for the backward.

An op adds a ``Node`` with the nodes of its inputs and the op's backward. A node refers only to what
its backward needs: an array that no backward needs is freed during the forward. See tape.py for the
backward as a whole.
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
    """A backward returned a gradient that does not have the shape of its input."""


class Leaf(Protocol):
    """What the tape needs of a leaf: a ``Tensor`` that no op computed, such as a parameter."""

    data: Array
    on_ready: Any  # functions that are called with the leaf when all its uses have been added

    def accumulate(self, grad: Any) -> None:
        """Add the gradient of one use."""


class Node:
    """An op on the tape, with its parents' nodes and its backward; or a leaf, without them.

    ``shape`` is that of the op's result; ``hooks`` are called with the whole gradient of the
    result. ``leaf`` is a weak reference, since a leaf refers to its node: a strong one would be a
    reference cycle, which stays in memory until Python's garbage collector runs. If a leaf is gone,
    its gradient is not needed. ``time`` is when the op ran. ``needs`` lists tracked memory that the
    backward needs but does not refer to itself: see versions.py.
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
        """The name of the op: of the function that defines the backward."""
        if self.leaf is not None:
            return getattr(self.leaf(), "name", "") or "leaf"
        return getattr(self.backward, "__qualname__", "op").partition(".")[0]


class Into:
    """A gradient still to be computed, by a function that can write it into given memory.

    A backward may return one for a parent. ``write(out)`` computes the gradient into ``out``, or
    into new memory if ``out`` is None, and returns it. For the first use of a parameter after
    ``zero_grad``, ``out`` is the parameter's ``grad``: no second array, no addition.

    The gradient is a sum over samples. ``each(n)``, if the op has it, returns the gradient of each
    of the n samples on the first axis of the op's input: an array (n, *shape of the weight), or a
    pair (a, b) of arrays (n, t, i) and (n, t, o), which stands for the sums Σ_t a_t ⊗ b_t. If ``a``
    has integers (n, t), each of them is the index of a one-hot row. See privacy/per_sample.py.
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
