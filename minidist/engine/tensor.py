"""Tensor: an array that remembers how it was computed.

An op computes its result and says how to turn the result's gradient into its inputs' gradients:

    y = Tensor.of(array, (a, b), lambda grad: (gradient of a, gradient of b))

``of`` adds a node to the tape, and ``y.backward()`` walks the tape back: see tape.py. Whether ops
are recorded is set in mode.py. What a tensor has in common with an array is in array_like.py.

The operators and methods of ``Tensor``, such as ``+`` and ``sum``, are the functions of ops/. That
package imports this file, so this file cannot import it. Instead ops/ calls ``add_methods``, which
makes its functions attributes of the class: ``x + y`` then calls ``ops.add`` directly. The last
line of this file loads ops/ through ``minidist.lazy.complete``, to which minidist/__init__.py has
given its name. So whoever imports ``Tensor``, by any path, gets it with its operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from minidist.engine import array as arrays
from minidist.engine.array import Array, DType
from minidist.engine.array_like import ArrayLike
from minidist.engine.mode import (
    MODE,
    Deferred,
    Mode,
    current_mode,
    defer_weight_gradients,
    enable_grad,
    no_grad,
    set_mode,
)
from minidist.engine.node import Backward, Gradients, GradientShapeError, Into, Node
from minidist.engine.tape import run_backward
from minidist.lazy import complete

__all__ = [
    "Backward",
    "Deferred",
    "GradientShapeError",
    "Gradients",
    "Into",
    "Mode",
    "Node",
    "Tensor",
    "as_tensor",
    "current_mode",
    "defer_weight_gradients",
    "enable_grad",
    "no_grad",
    "recording",
    "set_mode",
    "tensor",
]


_new = object.__new__
node_of = attrgetter("node")


class Tensor(ArrayLike):
    """An n-dimensional array that remembers how it was computed.

    Parameters: ``data``, anything ``numpy.asarray`` takes. Python numbers become the default
    dtype (float32) if they are floats; arrays keep their dtype and device and are not copied.
    With ``requires_grad=True``, ``backward()`` leaves a gradient of the same shape in ``grad``.
    Do not write into ``data`` in place between a forward and its backward: ops keep their inputs,
    not copies of them. (For parameters this is detected: see versions.py. Indices are copied.)

    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.], dtype=float32)
    """

    __slots__ = ("__weakref__", "data", "grad", "node")
    __array_ufunc__ = None  # so that ndarray + Tensor asks Tensor.__radd__, not every element

    grad: Array | None
    on_ready: Any = ()  # functions to call when a backward has added up all uses: see Parameter

    def __init__(self, data: Any, requires_grad: bool = False, dtype: DType | None = None) -> None:
        if isinstance(data, Tensor):
            raise TypeError("Tensor(data) takes an array or numbers: use tensor.detach() to copy")
        if not hasattr(data, "dtype"):
            data = np.asarray(data)
            if data.dtype.kind == "f" and dtype is None:
                dtype = arrays.default_dtype()
            data = arrays.to_device(data)
        elif type(data) is not np.ndarray:
            data = _as_ndarray(data)
        if data.dtype.kind not in "fiub":
            raise TypeError(
                f"Tensor: the data must be floating numbers, integers or booleans, not "
                f"{data.dtype} of shape {data.shape}"
            )
        self.data = data if dtype is None else data.astype(dtype, copy=False)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floating tensors can require gradients, not {self.data.dtype}")
        self.grad = None
        self.node = Node((), None, self.data.shape, self) if requires_grad else None

    @staticmethod
    def of(data: Array, parents: tuple[Tensor, ...], backward: Backward) -> Tensor:
        """The result of an op: ``data``, computed from ``parents``, and its backward."""
        out = _new(Tensor)
        if isinstance(data, np.generic):
            data = np.asarray(data)  # NumPy turns 0-d results into scalars; a tensor holds an array
        out.data = data
        out.grad = None
        nodes = tuple(map(node_of, parents))
        mode = MODE.get()
        if mode.watchers:
            for watcher in mode.watchers:
                watcher.after_forward(data, parents, backward)
        if mode.recording and any(nodes):
            out.node = Node(nodes, backward, data.shape)
            if mode.meter is not None:
                mode.meter.hold(out.node, backward)
        else:
            out.node = None
        return out

    if TYPE_CHECKING:  # the operators and methods are added by minidist/ops/__init__.py

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

    @property
    def requires_grad(self) -> bool:
        return self.node is not None

    def detach(self) -> Tensor:
        """A tensor of the same data that is not on the tape."""
        return Tensor(self.data)

    def __reduce__(self) -> Any:
        """Copy or pickle the numbers, the gradient, and whether the tensor requires gradients."""
        if self.node is not None and self.node.leaf is None:
            raise TypeError(
                f"a tensor {self.shape} that was computed from others cannot be copied or pickled "
                "with its history: copy tensor.detach()"
            )
        grad = None if self.grad is None else self.grad.copy()
        return _restored, (self.data.copy(), self.requires_grad, grad)

    def backward(self, grad: Array | None = None) -> None:
        """Add to the ``grad`` of every leaf the gradient with respect to this leaf.

        The argument is the gradient of the loss with respect to this tensor, of its shape. It is 1
        if this tensor is the loss, a scalar, and must be passed otherwise: a pipeline stage passes
        what the next stage sent. Each op's saved arrays are released after its backward, so a
        second backward through the same ops is an error.
        """
        if self.node is None:
            raise RuntimeError(
                "backward() on a tensor that does not require gradients: nothing that it was "
                "computed from does, or it was computed under no_grad()"
            )
        if grad is None:
            if self.data.size != 1:
                raise RuntimeError(
                    f"backward() without a gradient needs a scalar, but the shape is {self.shape}: "
                    "reduce it first, for example with .sum(), or pass grad="
                )
            grad = self.xp.empty(self.data.shape, self.data.dtype)
            grad.fill(1)  # a third of the time of xp.ones
        else:
            grad = grad.data if isinstance(grad, Tensor) else self.xp.asarray(grad)
            if grad.shape != self.data.shape:
                raise ValueError(
                    f"backward(): the gradient has shape {grad.shape}, and the tensor {self.shape}"
                )
            grad = grad.astype(self.data.dtype, copy=False)
        run_backward(self.node, grad)

    def accumulate(self, grad: Any) -> None:
        """Add the gradient of one use, an array or a callable that returns one, to ``grad``."""
        if callable(grad):
            grad = grad()
        if getattr(grad, "shape", ()) != self.data.shape:
            raise GradientShapeError(getattr(grad, "shape", ()))
        total = self.grad
        if total is None:
            # A copy: the op may have returned the same array for several inputs.
            self.grad = self.xp.array(grad, dtype=self.data.dtype)
        else:
            total += grad

    def register_hook(self, hook: Callable[[Array], Array | None]) -> None:
        """Call ``hook`` with this tensor's gradient when a backward has summed it over all uses.

        What the hook returns, unless None, replaces the gradient in the rest of the backward. The
        hook of a leaf gets the gradient of one backward, before it is added to ``grad``.
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

        myself = ref(self)  # weak: the node has the hook, and this tensor has the node

        def keep(grad: Array) -> None:
            tensor = myself()
            if tensor is not None:
                tensor.grad = grad if tensor.grad is None else tensor.grad + grad

        self.register_hook(keep)


def tensor(data: Any, dtype: DType | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor of a *copy* of ``data``, as PyTorch's function; ``Tensor(data)`` does not copy.

    >>> tensor([1.0, 2.0]) + 1
    Tensor([2., 3.], dtype=float32)
    """
    if isinstance(data, Tensor):
        data = data.data
    return Tensor(data.copy() if hasattr(data, "dtype") else data, requires_grad, dtype)


def _restored(data: Array, requires_grad: bool, grad: Array | None) -> Tensor:
    """A tensor from the values of ``Tensor.__reduce__``."""
    restored = Tensor(data, requires_grad)
    restored.grad = grad
    return restored


def _as_ndarray(data: Any) -> Any:
    """NumPy's scalars and matrices as arrays: for matrices, * would be the matrix product."""
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("Tensor: a masked array would lose its mask: pass x.filled(value)")
    return np.asarray(data) if isinstance(data, (np.generic, np.matrix)) else data


def as_tensor(x: Any) -> Tensor:
    """``x`` itself if it is a tensor, else a tensor of it."""
    return x if isinstance(x, Tensor) else Tensor(x)


def recording(*tensors: Tensor) -> bool:
    """Whether an op on these tensors is recorded: if not, it need not save anything."""
    return MODE.get().recording and any(tensor.node for tensor in tensors)


def add_methods(functions: Mapping[str, Any]) -> None:
    """Make each function (or property) an attribute of ``Tensor``, under its name: ops/ calls this.

    As attributes of the class, operators are as fast as methods written in its body.
    """
    for name, function in functions.items():
        setattr(Tensor, name, function)


complete(__name__)  # load ops/; last, because ops/ imports what is defined above
