"""Parameter: a tensor that is trained.

A layer *declares* its parameters and allocates nothing: ``Linear(784, 128)`` costs no memory.
``model.init(seed)`` then allocates one flat array for all of them, and each becomes a view into it:
see flat.py. A *frozen* parameter (``requires_grad = False``) is a constant, without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ReferenceType

import numpy as np

from minidist.engine import array as arrays
from minidist.engine.array import Array, DType
from minidist.engine.node import GradientShapeError, Into, Node
from minidist.engine.tensor import Tensor
from minidist.engine.versions import version_of, written
from minidist.nn.flat import Flat
from minidist.nn.flat import in_a_row as in_a_row  # where it was before

Shape = tuple[int, ...]
Initialiser = Callable[[np.random.Generator, Shape], np.ndarray]


class UninitialisedError(RuntimeError):
    """A layer was used before ``init(seed)`` gave its parameters memory and values."""


# Read and set the two slots of a tensor, without the copy that an assignment to a parameter makes.
_GET = {name: Tensor.__dict__[name].__get__ for name in ("data", "grad")}
_SET = {name: Tensor.__dict__[name].__set__ for name in ("data", "grad")}
_DELETE_DATA = Tensor.__dict__["data"].__delete__


class Parameter(Tensor):
    """A tensor that is trained: declared with a shape, allocated by ``Module.init``.

    ``on_ready`` is a list of functions. Each backward calls them with the parameter when its
    gradient is complete; communication that overlaps with the backward starts there.

    A parameter's name is its path in the model, such as ``"2.weight"``. For a parameter that
    several blocks share, pass a ``name`` (``shared_name``) instead. It is then the same parameter,
    with the same initial values, in every part of the model.

    ``parameter.data = array`` and ``parameter.grad = array`` copy the values into the parameter's
    memory, which is a part of the flat array. ``attach`` changes the memory. ``requires_grad =
    False`` freezes the parameter, before or after ``init``.
    """

    __slots__ = (
        "absent",
        "declared",
        "home",
        "initialiser",
        "name",
        "on_ready",
        "owner",
        "shared_name",
        "zeroed",
    )

    def __init__(self, shape: Shape, initialiser: Initialiser, name: str = "") -> None:
        # ``data`` stays unset until init: see __getattr__.
        self.declared = shape
        self.initialiser = initialiser
        self.shared_name = name
        self.name = name
        self.absent = ""  # why the values are not on this rank; "" if they are
        self.zeroed = False  # whether grad is 0 since zero_grad, to be overwritten by the next one
        self.node = Node((), None, shape, self)
        self.on_ready: list[Callable[[Parameter], None]] = []
        self.home: ReferenceType[Flat] | None = None  # the flat arrays that it lies in
        self.owner = ""  # the name of the method that trains it
        _SET["grad"](self, None)

    def __getattr__(self, attribute: str) -> Any:
        # Python calls this only for a missing attribute, so it costs nothing after init.
        if attribute == "data" and self.absent:
            raise UninitialisedError(f"parameter {self.name} is not here: {self.absent}")
        if attribute == "data":
            raise UninitialisedError(
                f"a parameter {self.name or 'of shape ' + str(self.declared)} was used before it "
                "was initialised: call model.init(seed) first"
            )
        raise AttributeError(attribute)

    def redeclare(self, shape: Shape, initialiser: Initialiser) -> None:
        """Before ``init``, take another shape and other initial values, such as a part of them."""
        if self.grad is not None:
            raise RuntimeError(
                f"{self.name or 'the parameter'} is initialised already: declare a new model"
            )
        self.declared, self.initialiser = shape, initialiser
        if self.node is not None:  # a frozen one has none
            self.node = Node((), None, shape, self)

    @property
    def shape(self) -> Shape:
        return self.declared

    @property
    def size(self) -> int:
        return int(np.prod(self.declared))

    data = property(_GET["data"], lambda self, value: self._assign("data", value), _DELETE_DATA)
    grad = property(_GET["grad"], lambda self, value: self._assign("grad", value))

    @property
    def initialised(self) -> bool:
        return _has_data(self)

    def attach(self, data: Array | None = None, grad: Array | None = None) -> None:
        """Use these arrays as the values and as the gradient from now on: nothing is copied.

        For methods that move parameters, such as one that keeps several versions of them.
        """
        for name, array in (("data", data), ("grad", grad)):
            if array is not None:
                if array.shape != self.declared:
                    raise ValueError(
                        f"attach: {name} {array.shape} for parameter {self.name} {self.declared}"
                    )
                _SET[name](self, array)

    def drop_grad(self) -> None:
        """Have no array for the gradient, as a frozen parameter."""
        _SET["grad"](self, None)

    def _assign(self, attribute: str, value: Any) -> None:
        """Copy ``value`` into the memory of ``data`` or ``grad``."""
        memory = self.data if attribute == "data" else self.grad
        what = f"{attribute} of parameter {self.name or 'of shape ' + str(self.declared)}"
        if memory is None:
            raise UninitialisedError(
                f"{what} has no memory: "
                + ("it is frozen" if _has_data(self) else "call model.init(seed) first")
            )
        if value is not memory:  # it is after an operation in place, such as parameter.data += 1
            if value is None:
                raise TypeError(f"{what} cannot be None: model.zero_grad() sets gradients to zero")
            if isinstance(value, Tensor):
                raise TypeError(f"{what} is an array: assign tensor.data")
            if not hasattr(value, "dtype"):
                value = arrays.module_of(memory).asarray(value, dtype=memory.dtype)
            if value.shape != memory.shape:
                raise ValueError(f"{what} has shape {memory.shape}, the new value {value.shape}")
            if value.dtype != memory.dtype:
                raise TypeError(
                    f"{what} is {memory.dtype}, the new value {value.dtype}: assign "
                    f'value.astype("{memory.dtype}")'
                )
            memory[...] = value
        if attribute == "data":
            written(memory)
        else:
            self.zeroed = False  # the next gradient is added to what was assigned

    @property
    def requires_grad(self) -> bool:
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        set_trained([self], wanted)

    def __reduce__(self) -> Any:
        """Copy or pickle with memory of its own, and without hooks.

        A copied ``Module`` then puts its parameters into one flat array again.
        """
        declared = type(self), self.declared, self.initialiser, self.shared_name, self.name
        arrays = self.data.copy() if _has_data(self) else None, copied(self.grad)
        return _restored, (*declared, self.requires_grad, *arrays)

    def accumulate(self, grad: Any) -> None:
        """Add the gradient of one use; the first after ``zero_grad`` is written, not added."""
        total = self.grad
        if total is None:  # frozen since the forward
            return
        zeroed, self.zeroed = self.zeroed, False
        if type(grad) is Into:
            grad = grad.write(total if zeroed else None)
        elif callable(grad):
            grad = grad()
        if grad is total:
            return
        if getattr(grad, "shape", ()) != self.declared:
            raise GradientShapeError(getattr(grad, "shape", ()))
        if zeroed:
            total[...] = grad
        else:
            total += grad

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, shape={self.declared})"


def _has_data(parameter: Parameter) -> bool:
    try:
        return parameter.data is not None
    except UninitialisedError:
        return False


def copied(array: Array | None) -> Array | None:
    return None if array is None else array.copy()


def set_trained(parameters: list[Parameter], wanted: bool) -> None:
    """Freeze some parameters, or train them again: see ``Module.freeze``."""
    changing = [one for one in parameters if one.requires_grad != wanted]
    homes: dict[int, Flat] = {}
    for one in changing:
        if one.owner:
            raise RuntimeError(
                f"{one.name} is trained by {one.owner}, which has already chosen its memory: "
                "freeze or unfreeze parameters before you pass the model to a method"
            )
        home = one.home() if one.home is not None else None
        if _has_data(one):
            if home is None or version_of(one.data) not in home.versions:
                raise RuntimeError(
                    f"{one.name} does not lie in its model's flat arrays: freeze or unfreeze it "
                    "before the model is initialised"
                )
            homes[id(home)] = home
    for one in changing:
        one.node = Node((), None, one.declared, one) if wanted else None
    for home in homes.values():
        home.arrange()


def _restored(
    kind: type[Parameter],
    shape: Shape,
    initialiser: Initialiser,
    shared_name: str,
    name: str,
    trained: bool,
    data: Array | None,
    grad: Array | None,
) -> Parameter:
    """A parameter from the values of ``Parameter.__reduce__``."""
    parameter = kind(shape, initialiser, shared_name)
    parameter.name = name
    parameter.requires_grad = trained
    parameter.attach(data, grad)
    return parameter


class Buffer:
    """An array that belongs to a layer but is not trained, such as batch norm's running mean.

    It is declared with a shape and one value for all elements; ``Module.init`` allocates ``data``.
    Its dtype is ``dtype`` or, without one, that of the parameters; float32 for float16 parameters,
    because the variance of numbers above 256 overflows in float16. ``state`` and ``load`` include
    buffers.
    """

    def __init__(self, shape: Shape, value: float, dtype: DType | None = None) -> None:
        self.declared = shape
        self.value = value
        self.dtype = None if dtype is None else np.dtype(dtype)
        self.data: Array = None
