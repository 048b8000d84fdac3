"""The backward over the tape, whose nodes the ops have left behind: see node.py.

``run_backward`` goes from the loss to the parameters. The order matters. In

    b = a + a;  c = b + b

b is used twice, and b's backward may run only when *both* uses have delivered their gradients: then
a gets 2 · 2 = 4. So we first count, for each node, the uses that lead to the loss, and then always
run a node all of whose uses have delivered. Nothing is recursive, so a tape may be a million ops
long. Each node releases its saved arrays after its backward.
"""

from __future__ import annotations

from typing import Any

from minidist.engine.array import Array
from minidist.engine.mode import MODE, Mode
from minidist.engine.node import Backward, Gradients, GradientShapeError, Leaf, Node
from minidist.engine.node import Into as Into  # where it was before
from minidist.engine.versions import WRITES, ChangedError, changed


def run_backward(root: Node, grad: Array) -> None:
    """Compute the gradients of all leaves from ``grad``, the gradient of the result of ``root``."""
    walk = Walk(root, grad)
    del grad  # only the walk refers to it, and frees it when it has been used
    if root.leaf is None:
        walk.run()
    else:
        walk.finish_leaf(root)


class Walk:
    """One backward: the gradients so far, and how many are still to come to each node.

    A class, since inner functions that call each other are a reference cycle: it would keep all
    nodes in memory until the garbage collector runs.
    """

    __slots__ = ("grads", "mode", "own", "ready", "uses")

    def __init__(self, root: Node, grad: Array) -> None:
        self.mode: Mode = MODE.get()

        # The number of uses of each node that lead to the root.
        uses: dict[Node, int] = {root: 0}
        found = [root]
        for node in found:  # the loop appends to the list
            for parent in node.parents:
                if parent in uses:
                    uses[parent] += 1
                elif parent is not None:
                    uses[parent] = 1
                    if parent.parents:
                        found.append(parent)
        self.uses = uses
        self.grads: dict[Node, Array] = {root: grad}
        self.own: set[Node] = set()  # nodes whose gradient is a sum made here: added to in place
        self.ready = [root]

    def run(self) -> None:
        """Run every node whose uses have all delivered their gradients."""
        ready, grads, deliver = self.ready, self.grads, self.deliver
        watchers, meter = self.mode.watchers, self.mode.meter
        writes, deferring = WRITES, self.mode.deferred is not None
        while ready:
            node = ready.pop()
            node_grad = grads.pop(node, None)
            backward: Any = node.backward
            parents = node.parents
            if node_grad is None:
                parts: Gradients = (None,) * len(parents)
            else:
                if node.hooks is not None:
                    node_grad, node.hooks = _run_hooks(node, node_grad), None
                if node.time != writes.count and changed(backward, node.needs, node.time):
                    raise _changed(node)
                parts = backward(node_grad)
            if len(parts) != len(parents):
                raise RuntimeError(
                    f"{backward.__qualname__} returned {len(parts)} gradients "
                    f"for {len(parents)} parents"
                )
            if watchers and node_grad is not None:
                for watcher in watchers:
                    parts = watcher.after_backward(node, node_grad, parts)
            node.parents = node.needs = ()
            node.backward = _released
            if meter is not None:
                meter.release(node)
            for parent, part in zip(parents, parts):  # noqa: B905 (checked above)
                if parent is None:
                    continue
                if deferring and callable(part) and _of_weights(parent):
                    self.defer(parent, part, backward)
                else:
                    deliver(parent, part, backward)

    def deliver(self, parent: Node, part: Any, backward: Backward) -> None:
        """Add ``part``, the gradient of one use of ``parent`` by the op with this backward."""
        uses, grads = self.uses, self.grads
        left = uses[parent] = uses[parent] - 1
        if parent.leaf is not None and parent.hooks is None:
            leaf = parent.leaf()
            if leaf is not None:
                if part is not None:
                    try:
                        leaf.accumulate(part)
                    except GradientShapeError as error:
                        raise _misshapen(backward, error.args[0], parent) from None
                if not left:
                    for hook in leaf.on_ready:
                        hook(leaf)
            return
        if part is not None:
            if callable(part):
                part = part()
            if getattr(part, "shape", ()) != parent.shape:
                raise _misshapen(backward, part, parent)
            if parent not in grads:
                grads[parent] = part
            elif parent in self.own:
                grads[parent] += part
            else:  # not in place: an op may have returned one array for both of its parents
                grads[parent] = grads[parent] + part
                self.own.add(parent)
        if not left:
            if parent.leaf is None:
                self.ready.append(parent)
            else:
                self.finish_leaf(parent)

    def finish_leaf(self, node: Node) -> None:
        """After the last use of a leaf with hooks: run them, and tell the leaf that it is ready."""
        assert node.leaf is not None
        leaf = node.leaf()
        if node in self.grads:
            grad = _run_hooks(node, self.grads.pop(node))
            if leaf is not None:
                leaf.accumulate(grad)
        if leaf is not None:
            for hook in leaf.on_ready:
                hook(leaf)

    def defer(self, parent: Node, part: Any, backward: Backward) -> None:
        """Queue the gradient of a weight; the arrays that it needs are kept until then."""
        meter, queue = self.mode.meter, self.mode.deferred
        assert queue is not None
        later = Later(self, parent, part, backward)
        if meter is not None:
            meter.hold(later, part)
        queue.append(later)


def backward_within(root: Node, grad: Array) -> dict[Node, list[Any]]:
    """The backward of a recomputation, which runs inside another backward: see recompute.py.

    Gradients are added up in the leaves. The leaves are not told that they are ready, since only
    the outer backward knows their other uses. Gradients of leaves with hooks, and deferred ones,
    are not added but returned, as arrays or callables by leaf, for the outer backward to deliver.
    """
    walk = Within(root, grad)
    if root.leaf is None:
        walk.run()
    else:
        walk.parts[root] = [grad]
    return walk.parts


class Within(Walk):
    """The walk of a recomputation inside another backward."""

    __slots__ = ("parts",)

    def __init__(self, root: Node, grad: Array) -> None:
        super().__init__(root, grad)
        self.parts: dict[Node, list[Any]] = {}

    def deliver(self, parent: Node, part: Any, backward: Backward) -> None:
        if parent.leaf is None:
            super().deliver(parent, part, backward)
        elif part is None:
            return
        elif parent.hooks is not None or self.mode.deferred is not None:
            self.parts.setdefault(parent, []).append(part)
        elif (leaf := parent.leaf()) is not None:
            _accumulate(leaf, parent, part, backward)

    def defer(self, parent: Node, part: Any, backward: Backward) -> None:
        """The outer backward defers."""
        self.deliver(parent, part, backward)


def _accumulate(leaf: Leaf, node: Node, part: Any, backward: Backward) -> None:
    """Add a gradient to the leaf of a node."""
    try:
        leaf.accumulate(part)
    except GradientShapeError as error:
        raise _misshapen(backward, error.args[0], node) from None


class Later:
    """The gradient of a weight that is still to be computed and delivered."""

    __slots__ = ("backward", "parent", "part", "walk")

    def __init__(self, walk: Walk, parent: Node, part: Any, backward: Backward) -> None:
        self.walk, self.parent, self.part, self.backward = walk, parent, part, backward

    def __call__(self) -> None:
        self.walk.deliver(self.parent, self.part, self.backward)
        self.walk.run()
        if self.walk.mode.meter is not None:
            self.walk.mode.meter.release(self)


def _misshapen(backward: Backward, part: Any, parent: Node) -> GradientShapeError:
    """The error for a gradient, ``part`` (or its shape), that does not have its input's shape."""
    shape = part if isinstance(part, tuple) else getattr(part, "shape", ())
    return GradientShapeError(
        f"backward of {backward.__qualname__.partition('.')[0]}: a gradient has shape {shape}, and "
        f"its input, {'a result' if parent.leaf is None else parent.name}, has {parent.shape}: a "
        "backward returns for each input an array of the input's shape (sum over the axes along "
        "which the input was broadcast)"
    )


def _changed(node: Node) -> ChangedError:
    return ChangedError(
        f"backward of {node.name}, whose result has shape {node.shape}: parameters that it needs "
        "were changed after the forward, by an optimizer step, a load or an assignment, so the "
        "gradient would be wrong: call backward() before that, or compute the forward again"
    )


def _of_weights(node: Node) -> bool:
    """Whether a node is a leaf, or computed from one leaf alone, such as a transposed table."""
    while node.leaf is None:
        if len(node.parents) != 1 or node.parents[0] is None:
            return False
        node = node.parents[0]
    return True


def _run_hooks(node: Node, grad: Array) -> Array:
    for hook in node.hooks or ():
        changed = hook(grad)
        grad = grad if changed is None else changed
        if changed is not None and getattr(changed, "shape", None) != node.shape:
            what = getattr(changed, "shape", type(changed).__name__)
            raise GradientShapeError(
                f"a hook on {node.name}, of shape {node.shape}, returned a gradient of {what}: it "
                "must return an array of the same shape, or None"
            )
    return grad


def _released(grad: Array) -> Gradients:
    raise RuntimeError(
        "backward() a second time through the same ops: the first one released what they saved. "
        "Compute the forward again, or add the losses and call backward() once"
    )
