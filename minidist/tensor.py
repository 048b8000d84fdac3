"""Tensor and the tape: reverse-mode automatic differentiation in one screen.

An op computes its result and says how to turn the result's gradient into its inputs' gradients:

    y = Tensor.of(array, (a, b), lambda grad: (gradient of a, gradient of b))

``of`` leaves a ``Node`` behind, which knows the nodes of its inputs. Those nodes are the tape.
A tensor holds its node and a node holds what its backward needs, and nothing else: an array that
no backward needs is free as soon as the forward is past it.

``backward`` walks the tape from the loss to the parameters. The order matters. In

    b = a + a;  c = b + b

b is used twice, and a backward through b may only start when *both* uses have sent their
gradients: then a gets 2 · 2 = 4. So we first count, for each node, how many uses lead to the
loss, and then always run a node whose uses have all reported. There is no recursion: a tape a
million ops long is fine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from minidist import array as arrays
from minidist.array import Array, DType, module_of

Gradients = Sequence[Any]  # for each parent an array, None, or a callable that returns an array
Backward = Callable[[Array], Gradients]


class Mode:
    """How the current rank, or thread, records: kept per context, so that ranks do not mix."""

    __slots__ = ("anomaly", "deferred", "meter", "recording")

    def __init__(
        self,
        recording: bool = True,
        deferred: list[Callable[[], None]] | None = None,
        meter: Any = None,  # see meter.py
        anomaly: Any = None,  # see anomaly.py
    ) -> None:
        self.recording = recording
        self.deferred = deferred
        self.meter = meter
        self.anomaly = anomaly


_mode: ContextVar[Mode] = ContextVar("mode", default=Mode())  # noqa: B039 (never mutated)


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
        leaf: Tensor | None = None,
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


class Tensor:
    """An n-dimensional array that remembers how it was computed.

    Parameters: ``data``, anything ``numpy.asarray`` takes. Python numbers become the default
    dtype (float32) if they are floats; arrays keep their dtype and device and are not copied.
    With ``requires_grad=True``, ``backward()`` leaves a gradient of the same shape in ``grad``.

    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.], dtype=float32)
    """

    __slots__ = ("__weakref__", "data", "grad", "node")
    __array_ufunc__ = None  # so that ndarray + Tensor asks Tensor.__radd__, not every element

    data: Array
    grad: Array | None
    node: Node | None

    def __init__(self, data: Any, requires_grad: bool = False, dtype: DType | None = None) -> None:
        if isinstance(data, Tensor):
            raise TypeError("Tensor(data) takes an array or numbers: use tensor.detach() to copy")
        if not hasattr(data, "dtype"):
            data = np.asarray(data)
            if data.dtype.kind == "f" and dtype is None:
                dtype = arrays.default_dtype()
            data = arrays.to_device(data)
        self.data = data if dtype is None else data.astype(dtype, copy=False)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floating tensors can require gradients, not {self.data.dtype}")
        self.grad = None
        self.node = Node((), None, self.data.shape, self) if requires_grad else None

    @staticmethod
    def of(data: Array, parents: tuple[Tensor, ...], backward: Backward) -> Tensor:
        """The result of an op: ``data``, computed from ``parents``, and its backward."""
        out = Tensor.__new__(Tensor)
        if isinstance(data, np.generic):
            data = np.asarray(data)  # NumPy turns 0-d results into scalars; a tensor holds an array
        out.data = data
        out.grad = None
        nodes = tuple([parent.node for parent in parents])
        mode = _mode.get()
        if mode.anomaly is not None:
            mode.anomaly.check_forward(data, parents, backward)
        if mode.recording and any(nodes):
            out.node = Node(nodes, backward, data.shape)
            if mode.meter is not None:
                mode.meter.hold(out.node, backward)
        else:
            out.node = None
        return out

    if TYPE_CHECKING:  # the operators and methods are ops, attached in minidist/ops/__init__.py

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, exponent: float) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...

    # What an array has, a tensor has.

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
        """The array module that computes on this tensor: ``numpy`` or ``cupy``."""
        return np if type(self.data) is np.ndarray else module_of(self.data)

    @property
    def requires_grad(self) -> bool:
        return self.node is not None

    def detach(self) -> Tensor:
        """The same data, cut off from the tape."""
        return Tensor(self.data)

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array on the host (shared with the tensor if it is there)."""
        return arrays.to_host(self.data)

    def item(self) -> float:
        """The value of a tensor of one element, as a Python number."""
        return self.data.item()

    def __len__(self) -> int:
        return len(self.data)

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.data)

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({body}, dtype={self.dtype}{grad})"

    def backward(self, grad: Array | None = None) -> None:
        """Add to ``grad`` of every leaf the gradient of this tensor with respect to it.

        ``grad`` is the gradient of the final result with respect to this tensor, of the same
        shape: 1 if this is a scalar loss, and needed otherwise (a pipeline stage passes what the
        next stage sent). What the tape saved is released on the way, so a second backward through
        the same ops is an error.
        """
        if self.node is None:
            raise RuntimeError(
                "backward() on a tensor with no gradient to find: nothing it was computed from "
                "requires gradients, or it was computed under no_grad()"
            )
        if grad is None:
            if self.data.size != 1:
                raise RuntimeError(
                    f"backward() without a gradient needs a scalar, but the shape is {self.shape}: "
                    "reduce it first, for example with .sum(), or pass grad="
                )
            grad = self.xp.empty(self.data.shape, self.data.dtype)
            grad.fill(1)  # a third of the time of xp.ones
        elif grad.shape != self.data.shape:
            raise ValueError(f"backward(): gradient of {grad.shape} for a tensor of {self.shape}")
        _run_backward(self.node, grad)

    def accumulate(self, grad: Any) -> None:
        """Add one use's gradient, an array or a callable that returns one, to a leaf's ``grad``."""
        if callable(grad):
            grad = grad()
        total = self.grad
        if total is None:
            # A copy: an op may have handed this array to others too.
            self.grad = self.xp.array(grad, dtype=self.data.dtype)
        else:
            total += grad

    def ready(self) -> None:
        """Called when a backward has accumulated a leaf's last use (``Parameter`` runs hooks)."""

    def register_hook(self, hook: Callable[[Array], Array | None]) -> None:
        """Call ``hook`` with this tensor's whole gradient when a backward knows it.

        What the hook returns, unless None, replaces the gradient from here on down. On a leaf the
        hook sees the gradient of one backward, before it is added to ``grad``.
        """
        if self.node is None:
            raise RuntimeError("register_hook: this tensor has no gradient (requires_grad=False)")
        if self.node.hooks is None:
            self.node.hooks = []
        self.node.hooks.append(hook)

    def retain_grad(self) -> None:
        """Keep the gradient of this tensor, the result of an op, in ``grad`` after a backward."""
        if self.node is not None and self.node.leaf is not None:
            return  # a leaf keeps its gradient anyway

        def keep(grad: Array) -> None:
            self.grad = grad if self.grad is None else self.grad + grad

        self.register_hook(keep)


def as_tensor(x: Any) -> Tensor:
    """``x`` itself if it is a tensor, else a tensor of it."""
    return x if isinstance(x, Tensor) else Tensor(x)


def recording(*tensors: Tensor) -> bool:
    """Whether an op on these tensors will have to go backward: else it need not save anything."""
    return _mode.get().recording and any(tensor.node for tensor in tensors)


def _run_backward(root: Node, grad: Array) -> None:
    mode = _mode.get()

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
    own: set[Node] = set()  # sums that we made ourselves, so adding in place harms nobody
    ready = [root]
    del grad

    def deliver(parent: Node, part: Any) -> None:
        """One use of ``parent`` has reported ``part``."""
        leaf = parent.leaf
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
        root.leaf.accumulate(_run_hooks(root, grads[root]))
        root.leaf.ready()
        return

    def walk() -> None:
        """Run every node whose uses have all reported."""
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
            if mode.anomaly is not None:
                parts = mode.anomaly.check_backward(node, parts)
            node.parents, node.backward = (), _released
            if mode.meter is not None:
                mode.meter.release(node)
            for parent, part in zip(parents, parts):  # noqa: B905 (checked above)
                if parent is None:
                    continue
                if mode.deferred is not None and callable(part) and _of_weights(parent):
                    defer(parent, part)
                else:
                    deliver(parent, part)

    def defer(parent: Node, part: Any) -> None:
        """Leave the gradient of a weight for later; until then what it needs is kept."""

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


def current_mode() -> Mode:
    """How this rank, or thread, records now."""
    return _mode.get()


@contextmanager
def set_mode(**changes: Any) -> Iterator[None]:
    """Change some of the current ``Mode`` inside."""
    old = _mode.get()
    new = Mode(old.recording, old.deferred, old.meter, old.anomaly)
    for name, value in changes.items():
        setattr(new, name, value)
    token = _mode.set(new)
    try:
        yield
    finally:
        _mode.reset(token)


@contextmanager
def no_grad() -> Iterator[None]:
    """Compute without recording: for evaluation, and for updates of parameters."""
    with set_mode(recording=False):
        yield


@contextmanager
def enable_grad() -> Iterator[None]:
    """Record inside, also within ``no_grad``: for computing again during a backward."""
    with set_mode(recording=True):
        yield


class Deferred(list):
    """Weight gradients still to be computed; ``run()`` computes them, in order."""

    def run(self) -> None:
        while self:
            self.pop(0)()


@contextmanager
def defer_weight_gradients() -> Iterator[Deferred]:
    """Inside, a backward computes input gradients only and queues those of the weights.

    Yields the queue. Zero-bubble pipelines (arXiv 2401.10241, section 2) send the input gradient
    to the previous stage first and ``run()`` the queue when they would otherwise be idle.
    """
    queue = Deferred()
    with set_mode(deferred=queue):
        yield queue


# Last, so that it finds everything above: gives Tensor its operators and methods.
import minidist.ops  # noqa: E402, F401
