"""Module, Parameter and the flat array they live in.

A layer *declares* its parameters and allocates nothing: ``Linear(784, 128)`` costs no memory.
``model.init(seed)`` then allocates one flat array for all parameters and one for all gradients:

    flat.data   [ 0.weight ........ | 0.bias | 2.weight .... | 2.bias ]
    flat.grad   [ 0.weight ........ | 0.bias | 2.weight .... | 2.bias ]

and each Parameter becomes a view into them. An optimizer then steps one 1-D array, an all-reduce
sends one, and a shard is a slice. Each parameter is filled from a generator keyed by (seed, its
full name), so a pipeline stage that is built alone has exactly the numbers of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from minidist import array as arrays
from minidist.array import Array, DType
from minidist.seeds import generator
from minidist.tensor import Into, Node, Tensor

Shape = tuple[int, ...]
Initialiser = Callable[[np.random.Generator, Shape], np.ndarray]


class UninitialisedError(RuntimeError):
    """A layer was used before ``init(seed)`` gave its parameters memory and values."""


class Parameter(Tensor):
    """A tensor that is trained: declared with a shape, given memory by ``Module.init``.

    ``on_ready`` holds functions called with the parameter each time a backward has accumulated
    the last use of it; communication overlaps computation by starting there.

    A parameter's name is where it lies in the model, such as ``"2.weight"``. One that several
    blocks share is given a ``name`` instead, so that it is the same parameter, with the same
    initial values, in every part of the model that holds it.
    """

    __slots__ = ("declared", "fresh", "given", "initialiser", "name", "on_ready")

    def __init__(self, shape: Shape, initialiser: Initialiser, name: str = "") -> None:
        # ``data`` stays unset until init: see __getattr__.
        self.declared = shape
        self.initialiser = initialiser
        self.given = name
        self.name = name
        self.grad = None
        self.fresh = False  # nothing added to the gradient since zero_grad
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

    @property
    def shape(self) -> Shape:
        return self.declared

    @property
    def size(self) -> int:
        return int(np.prod(self.declared))

    def accumulate(self, grad: Any) -> None:
        """Add one use's gradient; the first after ``zero_grad`` is written, not added."""
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


class Buffer:
    """An array that belongs to a layer but is not trained, such as batch norm's running mean.

    Declared with a shape and one value; ``Module.init`` allocates it as ``data``. It travels with
    ``state`` and ``load``.
    """

    def __init__(self, shape: Shape, value: float) -> None:
        self.declared = shape
        self.value = value
        self.data: Array = None


class Flat:
    """All parameters of a model in one array, and all gradients in another.

    ``data`` and ``grad`` are 1-D, of ``size`` elements; ``slices[name]`` is where a parameter
    lies. Each array has one more slot at its end, ``data_and_loss`` and ``grad_and_loss``, in
    which a method may send the loss along: then a step needs no second message for one number.
    """

    def __init__(self, parameters: dict[str, Parameter], dtype: DType, device: str | None) -> None:
        xp = arrays.module(device)
        self.parameters = list(parameters.values())
        self.slices: dict[str, slice] = {}
        start = 0
        for name, parameter in parameters.items():
            self.slices[name] = slice(start, start + parameter.size)
            start += parameter.size
        self.size = start
        self.data_and_loss: Array = xp.zeros(start + 1, dtype)
        self.grad_and_loss: Array = xp.zeros(start + 1, dtype)
        self.data: Array = self.data_and_loss[:-1]
        self.grad: Array = self.grad_and_loss[:-1]
        for name, parameter in parameters.items():
            parameter.data = self.data[self.slices[name]].reshape(parameter.declared)
            parameter.grad = self.grad[self.slices[name]].reshape(parameter.declared)


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs on an input of a given shape: the basis of every prediction.

    ``shape``: of the output. ``flops``: of the forward, matrix products alone; each needs as many
    again for the weights' gradient (``weight_flops``) and for the input's (``input_flops``).
    ``saves_input``, ``saves_output``: whether the backward needs them; ``saved_bytes``: of
    anything else it keeps. ``view``: the output is the input's memory in another shape.
    ``defers_input``, ``deferred_bytes``: what a weight gradient that is computed later keeps until
    then, beside the saved: its input, and anything else.
    """

    shape: Shape
    flops: int = 0
    input_flops: int = 0
    weight_flops: int = 0
    saves_input: bool = False
    saves_output: bool = False
    saved_bytes: int = 0
    view: bool = False
    defers_input: bool = False
    deferred_bytes: int = 0


def in_a_row(costs: Sequence[LayerCost], shape: Shape, itemsize: int) -> LayerCost:
    """Layers one after the other, on an input of ``shape``, as one.

    What lies between two layers is one array, saved once if either of the two needs it.
    """
    saved = 0
    boundary, needed = shape, False
    saves_input = defers_input = False
    deferred = 0
    first = True
    for cost in costs:
        needed = needed or cost.saves_input
        saved += cost.saved_bytes
        deferred += cost.deferred_bytes
        if cost.defers_input:
            defers_input = defers_input or first
            deferred += 0 if first else int(np.prod(boundary)) * itemsize
        if cost.view:
            continue  # the same memory: still the same boundary
        if first:
            saves_input = needed
        elif needed:
            saved += int(np.prod(boundary)) * itemsize
        boundary, needed, first = cost.shape, cost.saves_output, False
    return LayerCost(
        shape=costs[-1].shape if costs else shape,
        flops=sum(cost.flops for cost in costs),
        input_flops=sum(cost.input_flops for cost in costs),
        weight_flops=sum(cost.weight_flops for cost in costs),
        saves_input=saves_input or (first and needed),
        saves_output=needed and not first,
        saved_bytes=saved,
        view=first,
        defers_input=defers_input,
        deferred_bytes=deferred,
    )


class Module:
    """A layer or a model: parameters, and modules inside it, found among its attributes.

    Write a layer by declaring ``Parameter`` attributes in ``__init__`` and computing in
    ``forward``; add ``cost`` so that summaries, pipelines and predictions know it.
    """

    flat: Flat
    prefix: str = ""
    path: str = ""  # this module's full name in the model that was initialised
    training: bool = True

    def forward(self, *inputs: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no forward(): every layer defines one")

    def __call__(self, *inputs: Any) -> Tensor:
        return self.forward(*inputs)

    def children(self) -> Iterator[tuple[str, Any]]:
        """Named parameters and modules directly inside this one, in order of declaration."""
        for name, value in vars(self).items():
            if isinstance(value, (Parameter, Module)):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    if isinstance(item, (Parameter, Module)):
                        yield f"{name}.{index}", item

    def named_parameters(self, prefix: str = "") -> dict[str, Parameter]:
        """Every parameter by its full name, such as ``"2.weight"``; a shared one appears once."""
        found: dict[str, Parameter] = {}
        seen: set[int] = set()

        def visit(module: Module, prefix: str) -> None:
            for name, child in module.children():
                if isinstance(child, Module):
                    visit(child, f"{prefix}{name}.")
                elif id(child) not in seen:
                    seen.add(id(child))
                    found[child.given or prefix + name] = child

        visit(self, prefix)
        return found

    def parameters(self) -> list[Parameter]:
        """Every parameter, in the order in which it lies in the flat array."""
        return list(self.named_parameters().values())

    def named_modules(self, prefix: str = "") -> dict[str, Module]:
        """This module, as "", and every module inside it, by full name."""
        found: dict[str, Module] = {prefix.removesuffix("."): self}
        for name, child in self.children():
            if isinstance(child, Module):
                found |= child.named_modules(f"{prefix}{name}.")
        return found

    def named_buffers(self) -> dict[str, Buffer]:
        """Every buffer by its full name, such as ``"1.mean"``."""
        return {
            f"{path}.{name}" if path else name: value
            for path, module in self.named_modules().items()
            for name, value in vars(module).items()
            if isinstance(value, Buffer)
        }

    def train(self, training: bool = True) -> Self:
        """Compute as in training: dropout drops, batch norm uses the batch's statistics."""
        for module in self.named_modules().values():
            module.training = training
        return self

    def eval(self) -> Self:
        """Compute as in evaluation: every sample alone, and the same each time."""
        return self.train(False)

    @property
    def initialised(self) -> bool:
        return "flat" in vars(self)

    def __getattr__(self, attribute: str) -> Any:
        # Python comes here only when the attribute is missing: no cost once initialised.
        if attribute == "flat":
            raise UninitialisedError(
                f"this {type(self).__name__} has no flat arrays yet: call model.init(seed) first, "
                "on the model as a whole"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {attribute!r}")

    def init(self, seed: int = 0, dtype: DType | None = None, device: str | None = None) -> Self:
        """Allocate the flat arrays and fill every parameter by (seed, full name).

        Returns the module itself, so ``model = Linear(3, 4).init(0)``. Values are drawn in
        float64 on the host and then cast: float32 starts at float64's numbers, rounded.
        """
        named = self.named_parameters()
        kind = np.dtype(dtype or arrays.default_dtype())
        if kind.kind != "f":
            raise TypeError(f"init: parameters are floating numbers, and {kind} is not")
        self.flat = Flat(named, kind, device)
        for name, parameter in named.items():
            parameter.name = name
            values = parameter.initialiser(generator(seed, "init", name), parameter.declared)
            parameter.data[...] = arrays.to_device(
                values.astype(self.flat.data.dtype, copy=False), device
            )
        xp = arrays.module(device)
        for buffer in self.named_buffers().values():
            buffer.data = xp.full(buffer.declared, buffer.value, self.flat.data.dtype)
        for path, module in self.named_modules().items():
            module.path = path
        return self

    def zero_grad(self) -> None:
        """Set every gradient to zero; ``backward`` adds to what is there.

        The next backward overwrites a parameter's zeros at its first use, which saves an addition:
        so write nothing of your own into ``grad`` between the two.
        """
        self.flat.grad_and_loss.fill(0)
        for parameter in self.flat.parameters:
            parameter.fresh = True

    def state(self) -> dict[str, np.ndarray]:
        """A copy of every parameter and buffer on the host, by name."""
        return {
            name: arrays.to_host(held.data).copy()
            for name, held in (self.named_parameters() | self.named_buffers()).items()
        }

    def load(self, state: dict[str, np.ndarray]) -> Self:
        """Take values from ``state``: exactly the names and shapes of this model."""
        named = self.named_parameters() | self.named_buffers()
        if missing := sorted(named.keys() ^ state.keys()):
            raise KeyError(f"load: model and state differ in {missing}")
        for name, held in named.items():
            if state[name].shape != held.declared:
                raise ValueError(
                    f"load: {name} is {held.declared} in the model "
                    f"and {state[name].shape} in the state"
                )
            values = state[name].astype(held.data.dtype, copy=False)
            held.data[...] = arrays.module_of(held.data).asarray(values)
        return self

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """What this layer costs on an input of ``shape``, batch first."""
        raise TypeError(
            f"{type(self).__name__} does not say what it costs: define cost(self, shape, itemsize) "
            "and return a LayerCost, for layers in a row in_a_row(...): see nn/layers.py; or measure "
            "with minidist.summary.layer_summary(model, x)"
        )

    def __repr__(self) -> str:
        inner = "".join(
            f"\n{name}: {child!r}".replace("\n", "\n  ")
            for name, child in self.children()
            if isinstance(child, Module)
        )
        return f"{type(self).__name__}({inner}\n)" if inner else f"{type(self).__name__}()"
