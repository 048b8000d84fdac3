"""Module: a layer or a model, made of parameters and other modules.

Each parameter is filled from a generator keyed by (seed, its full name), so a pipeline stage that
is built alone has exactly the numbers of the whole model. See flat.py for the memory of
parameters, saving.py for ``state`` and ``load``, and cost.py for the cost of layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Self

import numpy as np

from minidist.engine import array as arrays
from minidist.engine.array import DType
from minidist.engine.kernels import accumulator
from minidist.engine.seeds import generator
from minidist.engine.tensor import Tensor
from minidist.nn.cost import LayerCost, in_a_row
from minidist.nn.flat import Flat
from minidist.nn.parameter import (
    Buffer,
    Initialiser,
    Parameter,
    Shape,
    UninitialisedError,
    set_trained,
)
from minidist.nn.saving import Saving

__all__ = [
    "Buffer",
    "Flat",
    "Initialiser",
    "LayerCost",
    "Module",
    "Parameter",
    "Shape",
    "UninitialisedError",
    "in_a_row",
]


SETTINGS = frozenset((bool, int, float, str, type(None)))  # types of attributes without parameters


class Module(Saving):
    """A layer or a model. Its parameters and inner modules are found among its attributes.

    To write a layer, declare ``Parameter`` attributes in ``__init__`` and compute in ``forward``.
    Add ``cost`` for summaries, pipelines and predictions.
    """

    flat: Flat
    path: str = ""  # this module's full name in the model that was initialised
    training: bool = True
    fixed: bool = False  # set by ``init``: from then on its parts cannot be exchanged

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no forward(): every layer defines one")

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        return self.forward(*inputs, **options)

    def children(self) -> Iterator[tuple[str, Any]]:
        """Named parameters and modules directly inside this one, in order of declaration."""
        for name, value in vars(self).items():
            if type(value) in SETTINGS:
                continue
            if isinstance(value, (Parameter, Module)):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    if isinstance(item, (Parameter, Module)):
                        yield f"{name}.{index}", item

    def named_parameters(self, prefix: str = "") -> dict[str, Parameter]:
        """Every parameter by its full name, such as ``"2.weight"``; each only once."""
        found: dict[str, Parameter] = {}
        self._visit(prefix, found, set())
        return found

    # A method, since an inner function that calls itself is a reference cycle: it would keep the
    # parameters in memory until the garbage collector runs.
    def _visit(self, prefix: str, found: dict[str, Parameter], seen: set[int]) -> None:
        for name, child in self.children():
            if isinstance(child, Module):
                child._visit(f"{prefix}{name}.", found, seen)
            elif id(child) not in seen:
                seen.add(id(child))
                found[child.shared_name or prefix + name] = child

    def parameters(self) -> list[Parameter]:
        """Every parameter, in the order of the flat array."""
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
        """Compute as in training: with dropout, and batch norm by the batch's statistics."""
        for module in self.named_modules().values():
            module.training = training
        return self

    def eval(self) -> Self:
        """Compute as in evaluation: without dropout, and batch norm by its running averages."""
        return self.train(False)

    def freeze(self, *patterns: str) -> Self:
        """Train no parameter whose full name matches one of ``patterns``, such as ``"0.*"``.

        Without patterns, all parameters are frozen. Call it before or after ``init``. A frozen
        parameter has no gradient, so an optimizer cannot change it. An optimizer that has stepped
        with other parameters refuses to continue: make a new one. Raises ValueError for a pattern
        that matches nothing, RuntimeError if a method trains the model already.

        >>> from minidist.nn import Linear, Sequential
        >>> model = Sequential(Linear(4, 3), Linear(3, 2)).freeze("0.*").init(0)
        >>> list(model.flat.slices)
        ['1.weight', '1.bias']
        """
        set_trained(self._matching(patterns), False)
        return self

    def unfreeze(self, *patterns: str) -> Self:
        """Train these parameters again: the reverse of ``freeze``."""
        set_trained(self._matching(patterns), True)
        return self

    def _matching(self, patterns: tuple[str, ...]) -> list[Parameter]:
        named = self.named_parameters()
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ValueError(f"no parameter matches {pattern!r}: there are {', '.join(named)}")
        return [
            parameter
            for name, parameter in named.items()
            if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
        ]

    def trained(self, prefix: str = "") -> dict[str, Parameter]:
        """The parameters that are not frozen, by full name: those in the flat array."""
        return {n: one for n, one in self.named_parameters(prefix).items() if one.requires_grad}

    def frozen(self) -> dict[str, Parameter]:
        """The parameters that are frozen, by full name."""
        return {n: one for n, one in self.named_parameters().items() if not one.requires_grad}

    @property
    def initialised(self) -> bool:
        return "flat" in vars(self)

    def __setattr__(self, attribute: str, value: Any) -> None:
        if self.fixed and attribute != "path":
            old = vars(self).get(attribute)
            for part in (old, value):
                if attribute == "flat" or _has_parts(part):
                    raise AttributeError(
                        f"{type(self).__name__}.{attribute} cannot be exchanged after init: its "
                        "parameters lie in the model's flat array, and new ones would not. To "
                        "change values, assign to parameter.data or call model.load(..., "
                        "partial=True); to change the model, declare a new one"
                    )
        super().__setattr__(attribute, value)

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
        float64 on the host and then cast, so float32 starts at the rounded values of float64.

        Raises ValueError if an inner module was initialised separately, because its values would
        be lost. To use its values, call ``model.init(seed).load(block.state(), partial=True)``,
        with the names of the whole model.
        """
        named = self.named_parameters()
        kind = np.dtype(dtype or arrays.default_dtype())
        if kind.kind != "f":
            raise TypeError(f"init: parameters are floating numbers, and {kind} is no such dtype")
        for path, module in self.named_modules().items():
            if module is not self and module.initialised:
                raise ValueError(
                    f"init: block {path!r} of the model was initialised before, by itself, and "
                    "would lose its values: declare it again, call init on the whole model, then "
                    "load(..., partial=True) the values under their names in the whole model"
                )
        vars(self)["flat"] = Flat(named, kind, device)
        xp = arrays.module(device)
        for name, parameter in named.items():
            parameter.name = name
            draw = partial(_drawn, parameter, seed)
            parameter.data[...] = arrays.made(draw, parameter.declared, kind, xp)
        for buffer in self.named_buffers().values():
            dtype = buffer.dtype or accumulator(self.flat.data.dtype)
            buffer.data = xp.full(buffer.declared, buffer.value, dtype)
        for path, module in self.named_modules().items():
            module.path = path
            module._fix()
        return self

    def _fix(self) -> None:
        """From now on, refuse to exchange parts of this module: lists of them become tuples."""
        for name, value in vars(self).items():
            if isinstance(value, list) and _has_parts(value):
                vars(self)[name] = tuple(value)
        self.fixed = True

    def zero_grad(self) -> None:
        """Set every gradient to zero; ``backward`` adds to it.

        To save an addition, the next backward overwrites each parameter's zeros with the first
        gradient. So whatever is written into ``grad`` in place between the two is lost.
        """
        self.flat.grad_and_loss.fill(0)
        for parameter in self.flat.parameters:
            parameter.zeroed = True

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """The cost of this layer on an input of ``shape``, batch first."""
        raise TypeError(
            f"{type(self).__name__} does not say what it costs: define cost(self, shape, itemsize) "
            "and return a LayerCost (in_a_row adds up several layers: see nn/cost.py), or measure "
            "with minidist.inspect.layer_summary(model, x)"
        )

    def __repr__(self) -> str:
        inner = "".join(
            f"\n{name}: {child!r}".replace("\n", "\n  ")
            for name, child in self.children()
            if isinstance(child, Module)
        )
        return f"{type(self).__name__}({inner}\n)" if inner else f"{type(self).__name__}()"


def _has_parts(value: Any) -> bool:
    """Whether ``value`` is a parameter or a module, or a list that contains one."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, (Parameter, Module)) for item in value)
    return isinstance(value, (Parameter, Module))


def _drawn(parameter: Parameter, seed: int) -> np.ndarray:
    """A parameter's initial values, drawn by (seed, full name)."""
    draw = generator(seed, "init", parameter.name)
    return parameter.initialiser(draw, parameter.declared)
