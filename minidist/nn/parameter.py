"""Parameter, and the flat array that stores all parameters of a model.

A layer *declares* its parameters and allocates nothing: ``Linear(784, 128)`` costs no memory.
``model.init(seed)`` then allocates one flat array for all parameters and one for all gradients:

    flat.data   [ 0.weight ........ | 0.bias | 2.weight .... | 2.bias ]
    flat.grad   [ 0.weight ........ | 0.bias | 2.weight .... | 2.bias ]

and each Parameter becomes a view into them. So an optimizer steps one 1-D array, an all-reduce
sends one array, and a shard is a slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minidist.engine import array as arrays
from minidist.engine.array import Array, DType
from minidist.engine.tape import Into, Node
from minidist.engine.tensor import Tensor

Shape = tuple[int, ...]
Initialiser = Callable[[np.random.Generator, Shape], np.ndarray]


class UninitialisedError(RuntimeError):
    """A layer was used before ``init(seed)`` gave its parameters memory and values."""


class Parameter(Tensor):
    """A tensor that is trained: declared with a shape, allocated by ``Module.init``.

    ``on_ready`` is a list of functions. Each backward calls them with the parameter when its
    gradient is complete; communication that overlaps with the backward starts there.

    A parameter's name is its path in the model, such as ``"2.weight"``. If several blocks share a
    parameter, pass a ``name`` (``shared_name``) instead. It is then the same parameter, with the
    same initial values, in every part of the model.
    """

    __slots__ = ("declared", "fresh", "initialiser", "name", "on_ready", "shared_name")

    def __init__(self, shape: Shape, initialiser: Initialiser, name: str = "") -> None:
        # ``data`` stays unset until init: see __getattr__.
        self.declared = shape
        self.initialiser = initialiser
        self.shared_name = name
        self.name = name
        self.grad = None
        self.fresh = False  # true from zero_grad until the first gradient is written
        self.node = Node((), None, shape, self)
        self.on_ready: list[Callable[[Parameter], None]] = []

    def __getattr__(self, attribute: str) -> Any:
        # Python comes here only when the attribute is missing: no cost once initialised.
        if attribute == "data":
            raise UninitialisedError(
                f"a parameter {self.name or 'of shape ' + str(self.declared)} was used before it "
                "was initialised: call model.init(seed) first"
            )
        raise AttributeError(attribute)

    def redeclare(self, shape: Shape, initialiser: Initialiser) -> None:
        """Before ``init``: another shape and other initial values, such as a part of the old."""
        if self.grad is not None:
            raise RuntimeError(f"{self.name or 'the parameter'} is initialised: declare it anew")
        self.declared, self.initialiser = shape, initialiser
        self.node = Node((), None, shape, self)

    @property
    def shape(self) -> Shape:
        return self.declared

    @property
    def size(self) -> int:
        return int(np.prod(self.declared))

    def __reduce__(self) -> Any:
        """Copy or pickle with separate memory, and without hooks.

        ``Module`` then puts its parameters into one flat array again.
        """
        declared = type(self), self.declared, self.initialiser, self.shared_name, self.name
        if self.grad is None:  # declared, not initialised
            return _restored, (*declared, None, None)
        return _restored, (*declared, self.data.copy(), self.grad.copy())

    def accumulate(self, grad: Any) -> None:
        """Add the gradient of one use; the first after ``zero_grad`` is written, not added."""
        if self.fresh:
            self.fresh = False
            if type(grad) is Into:
                grad.write(self.grad)
            else:
                self.grad[...] = grad() if callable(grad) else grad  # type: ignore[index]
        else:
            self.grad += grad() if callable(grad) else grad

    def ready(self) -> None:
        for hook in self.on_ready:
            hook(self)

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, shape={self.declared})"


def _restored(
    kind: type[Parameter],
    shape: Shape,
    initialiser: Initialiser,
    shared_name: str,
    name: str,
    data: Array | None,
    grad: Array | None,
) -> Parameter:
    """A parameter from the values of ``Parameter.__reduce__``."""
    parameter = kind(shape, initialiser, shared_name)
    parameter.name = name
    if data is not None:
        parameter.data, parameter.grad = data, grad
    return parameter


class Buffer:
    """An array that belongs to a layer but is not trained, such as batch norm's running mean.

    Declared with a shape and one value; ``Module.init`` allocates it as ``data``, in ``dtype`` or,
    without one, in the dtype of the parameters. ``state`` and ``load`` include it.
    """

    def __init__(self, shape: Shape, value: float, dtype: DType | None = None) -> None:
        self.declared = shape
        self.value = value
        self.dtype = None if dtype is None else np.dtype(dtype)
        self.data: Array = None


class Flat:
    """All parameters of a model in one array, and all gradients in another.

    ``data`` and ``grad`` are 1-D, of ``size`` elements; ``slices[name]`` is the slice of a
    parameter. ``data_and_loss`` and ``grad_and_loss`` are the same arrays with one more element
    at the end. A method may put the loss there, and so send it in the same message.
    """

    def __init__(self, parameters: dict[str, Parameter], dtype: DType, device: Any) -> None:
        """``device`` is a device's name, None for the default one, or an array module."""
        xp = arrays.module(device) if device is None or isinstance(device, str) else device
        self.parameters = list(parameters.values())
        self.slices: dict[str, slice] = {}
        start = 0
        for name, parameter in parameters.items():
            self.slices[name] = slice(start, start + parameter.size)
            start += parameter.size
        self.size = start
        self.data_and_loss: Array = xp.zeros(start + 1, dtype)
        self.data: Array = self.data_and_loss[:-1]
        for name, parameter in parameters.items():
            parameter.data = self.data[self.slices[name]].reshape(parameter.declared)
        self.hold_gradients(xp.zeros(start + 1, dtype))

    def hold_gradients(self, grad_and_loss: Array) -> None:
        """Store the gradients in this array from now on, for example in shared memory."""
        self.grad_and_loss = grad_and_loss
        self.grad: Array = grad_and_loss[:-1]
        for parameter, part in zip(self.parameters, self.slices.values(), strict=True):
            parameter.grad = self.grad[part].reshape(parameter.declared)
