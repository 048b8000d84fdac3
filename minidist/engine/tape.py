"""The tape: what each op left behind, and the walk back over it.

An op adds a ``Node`` with the nodes of its inputs and the op's backward. A node keeps what its
backward needs, and nothing else: an array that no backward needs is freed during the forward.

``run_backward`` walks from the loss to the parameters. The order matters. In

    b = a + a;  c = b + b

b is used twice, and b's backward may only run when *both* uses have delivered their gradients:
then a gets 2 · 2 = 4. So we first count, for each node, how many uses lead to the loss, and then
always run a node whose uses have all delivered. There is no recursion: a tape a million ops long is
fine. Each node releases its saved arrays after its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from minidist.engine.array import Array
from minidist.engine.mode import MODE

Gradients = Sequence[Any]  # for each parent an array, None, or a callable that returns an array
Backward = Callable[[Array], Gradients]


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
    """

    __slots__ = ("backward", "hooks", "leaf", "parents", "shape")

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
        self.leaf = leaf
        self.hooks: list[Callable[[Array], Array | None]] | None = None

    @property
    def name(self) -> str:
        """The op's name: that of the function that wrote the backward."""
        if self.leaf is not None:
            return getattr(self.leaf, "name", "") or "leaf"
        return getattr(self.backward, "__qualname__", "op").partition(".")[0]


class Into:
    """A gradient still to be computed, by a function that can write it straight into memory.

    A backward may return one where it may return a callable. ``write(out)`` computes into ``out``
    and returns it, or into new memory if ``out`` is None. The first use of a parameter after
    ``zero_grad`` then writes the gradient where it belongs: no second array, no addition.
    """

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Array | None], Array]) -> None:
        self.write = write

    def __call__(self) -> Array:
        return self.write(None)


def run_backward(root: Node, grad: Array, within: dict[Node, list[Any]] | None = None) -> None:
    """Send ``grad``, that of ``root``'s result, down to every leaf.

    ``within``: this backward is part of another one's op (recompute.py). Leaves are then not told
    that they are ready, which only the outer backward knows. Gradients that it has to see first, to
    run a leaf's hooks or to defer them, are put into ``within``.
    """
    mode = MODE.get()

    # How many uses of each node lead to the root?
    uses: dict[Node, int] = {root: 0}
    found = [root]
    for node in found:  # grows as we go
        for parent in node.parents:
            if parent in uses:
                uses[parent] += 1
            elif parent is not None:
                uses[parent] = 1
                found.append(parent)
    del found

    grads: dict[Node, Array] = {root: grad}
    own: set[Node] = set()  # their gradients are sums made here, so they can be added to in place
    ready = [root]
    del grad

    def deliver(parent: Node, part: Any) -> None:
        """Add ``part``, the gradient of one use of ``parent``."""
        leaf = parent.leaf
        if leaf is not None and within is not None:
            if part is not None and (parent.hooks is not None or mode.deferred is not None):
                within.setdefault(parent, []).append(part)
            elif part is not None:
                leaf.accumulate(part)
            return
        if part is not None:
            if leaf is not None and parent.hooks is None:
                leaf.accumulate(part)
            else:
                if callable(part):
                    part = part()
                if parent not in grads:
                    grads[parent] = part
                elif parent in own:
                    grads[parent] += part
                else:  # not in place: an op may have handed one array to both of its parents
                    grads[parent] = grads[parent] + part
                    own.add(parent)
        left = uses[parent] = uses[parent] - 1
        if left == 0:
            if leaf is None:
                ready.append(parent)
            else:
                if parent.hooks is not None and parent in grads:
                    leaf.accumulate(_run_hooks(parent, grads.pop(parent)))
                leaf.ready()

    if root.leaf is not None:
        if within is not None:
            within[root] = [grads[root]]
            return
        root.leaf.accumulate(_run_hooks(root, grads[root]))
        root.leaf.ready()
        return

    def walk() -> None:
        """Run every node whose uses have all delivered their gradients."""
        while ready:
            node = ready.pop()
            node_grad = grads.pop(node, None)
            backward, parents = node.backward, node.parents
            assert backward is not None
            if node_grad is None:
                parts: Gradients = (None,) * len(parents)
            else:
                if node.hooks is not None:
                    node_grad = _run_hooks(node, node_grad)
                parts = backward(node_grad)
            if len(parts) != len(parents):
                raise RuntimeError(
                    f"{backward.__qualname__} returned {len(parts)} gradients "
                    f"for {len(parents)} parents"
                )
            if mode.watchers and node_grad is not None:
                for watcher in mode.watchers:
                    parts = watcher.after_backward(node, node_grad, parts)
            node.parents, node.backward = (), _released
            if mode.meter is not None:
                mode.meter.release(node)
            for parent, part in zip(parents, parts):  # noqa: B905 (checked above)
                if parent is None:
                    continue
                deferring = mode.deferred is not None and within is None
                if deferring and callable(part) and _of_weights(parent):
                    defer(parent, part)
                else:
                    deliver(parent, part)

    def defer(parent: Node, part: Any) -> None:
        """Queue the gradient of a weight; until it is computed, the arrays it needs are kept."""

        def later() -> None:
            deliver(parent, part)
            walk()
            if mode.meter is not None:
                mode.meter.release(later)

        if mode.meter is not None:
            mode.meter.hold(later, part)
        assert mode.deferred is not None
        mode.deferred.append(later)

    walk()


def _of_weights(node: Node) -> bool:
    """Whether a node is a leaf, or a change of shape of one, such as a transposed table."""
    while node.leaf is None:
        if len(node.parents) != 1 or node.parents[0] is None:
            return False
        node = node.parents[0]
    return True


def _run_hooks(node: Node, grad: Array) -> Array:
    for hook in node.hooks or ():
        changed = hook(grad)
        grad = grad if changed is None else changed
    return grad


def _released(grad: Array) -> Gradients:
    raise RuntimeError(
        "backward() a second time through the same ops: what they saved was released by the "
        "first. Compute the forward again, or add the losses and go backward once"
    )
