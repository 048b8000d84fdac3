"""Tensor: an array that remembers how it was computed.

An op computes its result and says how to turn the result's gradient into its inputs' gradients:

    y = Tensor.of(array, (a, b), lambda grad: (gradient of a, gradient of b))

``of`` adds a node to the tape, and ``y.backward()`` walks the tape back: see tape.py. Whether
anything is recorded is in mode.py.

The operators and methods of ``Tensor``, such as ``+`` and ``sum``, are the functions of ops/. That
package imports this file, so this file cannot import it. Instead ops/ calls ``add_methods``, which
makes its functions attributes of the class: ``x + y`` then calls ``ops.add`` directly. The last
line of this file loads ops/ through ``minidist.lazy.complete``, which knows its name from
minidist/__init__.py. So whoever imports ``Tensor``, by any path, gets it with its operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from minidist.engine import array as arrays
from minidist.engine.array import Array, DType, module_of
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


node_of = attrgetter("node")


class Tensor:
    """An n-dimensional array that remembers how it was computed.

    Parameters: ``data``, anything ``numpy.asarray`` takes. Python numbers become the default
    dtype (float32) if they are floats; arrays keep their dtype and device and are not copied.
    With ``requires_grad=True``, ``backward()`` leaves a gradient of the same shape in ``grad``.
    Do not write into ``data`` in place between a forward and its backward: ops keep their inputs,
    not copies of them. (Parameters are watched, and so are indices: see versions.py.)

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
        elif type(data) is not np.ndarray:
            data = _plain(data)
        if data.dtype.kind not in "fiub":
            raise TypeError(
                f"Tensor: floating numbers, integers or truth values, not {data.dtype} of "
                f"shape {data.shape}"
            )
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
        """A tensor of the same data that is not on the tape."""
        return Tensor(self.data)

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
        """What NumPy's functions and matplotlib take, if no gradient gets lost by it."""
        if self.node is not None:
            raise TypeError(
                f"NumPy was given a tensor {self.shape} whose gradient it would lose: use "
                "minidist.ops, or tensor.numpy() for an array without a gradient"
            )
        return np.array(self.numpy(), dtype, copy=copy)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "a tensor cannot be assigned to, since a backward may need the old values: use "
            "ops.where, or tensor.data[index] = value if no backward needs them"
        )

    # As NumPy has them: a tensor of one element is a number, and others are refused.

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.data.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
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

    def __reduce__(self) -> Any:
        """Copy or pickle the numbers, and of a leaf that it is one."""
        if self.node is not None and self.node.leaf is None:
            raise TypeError(
                f"a tensor {self.shape} that was computed from others cannot be copied or pickled "
                "with its history: copy tensor.detach()"
            )
        grad = None if self.grad is None else self.grad.copy()
        return _copied, (self.data.copy(), self.requires_grad, grad)

    def __repr__(self) -> str:
        body = repr(self.data)
        if arrays.has_numbers(self.data):
            body = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({body}, dtype={self.dtype}{grad})"

    def backward(self, grad: Array | None = None) -> None:
        """Add to ``grad`` of every leaf the gradient of this tensor with respect to it.

        ``grad`` is the gradient of the final result with respect to this tensor, of the same
        shape: 1 if this is a scalar loss, and needed otherwise (a pipeline stage passes what the
        next stage sent). Each op's saved arrays are released after its backward, so a second
        backward through the same ops is an error.
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
        else:
            grad = grad.data if isinstance(grad, Tensor) else self.xp.asarray(grad)
            if grad.shape != self.data.shape:
                raise ValueError(
                    f"backward(): gradient of {grad.shape} for a tensor of {self.shape}"
                )
            grad = grad.astype(self.data.dtype, copy=False)
        run_backward(self.node, grad)

    def accumulate(self, grad: Any) -> None:
        """Add one use's gradient, an array or a callable that returns one, to a leaf's ``grad``."""
        if callable(grad):
            grad = grad()
        if getattr(grad, "shape", ()) != self.data.shape:
            raise GradientShapeError(getattr(grad, "shape", ()))
        total = self.grad
        if total is None:
            # A copy: an op may have handed this array to others too.
            self.grad = self.xp.array(grad, dtype=self.data.dtype)
        else:
            total += grad

    def ready(self) -> None:
        """Called when a backward has accumulated a leaf's last use (``Parameter`` runs hooks)."""

    def register_hook(self, hook: Callable[[Array], Array | None]) -> None:
        """Call ``hook`` with this tensor's gradient when a backward has summed it over all uses.

        What the hook returns, unless None, replaces the gradient for the rest of the backward. On
        a leaf the hook gets the gradient of one backward, before it is added to ``grad``.
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
    """A tensor of a *copy* of ``data``: as PyTorch's function, where ``Tensor`` shares an array.

    >>> tensor([1.0, 2.0]) + 1
    Tensor([2., 3.], dtype=float32)
    """
    if isinstance(data, Tensor):
        data = data.data
    return Tensor(data.copy() if hasattr(data, "dtype") else data, requires_grad, dtype)


def _copied(data: Array, requires_grad: bool, grad: Array | None) -> Tensor:
    """A tensor from what ``Tensor.__reduce__`` gave."""
    made = Tensor(data, requires_grad)
    made.grad = grad
    return made


def _plain(data: Any) -> Any:
    """NumPy's scalars and matrices as arrays: * of two matrices would be their matrix product."""
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

    Set on the class, an operator costs no more than a method written in the class body.
    """
    for name, function in functions.items():
        setattr(Tensor, name, function)


complete(__name__)  # load ops/; last, because ops/ imports what is defined above
