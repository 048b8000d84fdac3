"""Copies of a model with other layers, or with arrays of other shapes.

An initialised model has one flat array, so its arrays cannot change their sizes. Each way of
compressing therefore returns a *new* model: a declared copy, which is changed, initialised and
loaded with values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minidist.nn.layers import Sequential
from minidist.nn.module import Buffer, Module, Parameter, Shape

Values = Mapping[str, np.ndarray]


def declared(model: Module, shapes: Mapping[str, Shape] | None = None) -> Module:
    """A declared copy of ``model``, whose parameters and buffers have these ``shapes``, by name.

    Arrays that ``shapes`` does not name keep their shapes. A parameter that several layers share is
    shared in the copy too.
    """
    shapes = shapes or {}
    new = copy.deepcopy(model)
    names = {id(p): name for name, p in (new.named_parameters() | new.named_buffers()).items()}
    made: dict[int, Any] = {}

    def remake(old: Any) -> Any:
        if not isinstance(old, (Parameter, Buffer)):
            return old
        if id(old) not in made:
            shape = shapes.get(names[id(old)], old.declared)
            if isinstance(old, Buffer):
                made[id(old)] = Buffer(shape, old.value, old.dtype)
            else:
                made[id(old)] = Parameter(shape, old.initialiser, old.shared_name)
                if not old.requires_grad:
                    made[id(old)].requires_grad = False
        return made[id(old)]

    for module in new.named_modules().values():
        for name in ("flat", "fixed"):  # so that layers can be replaced again
            vars(module).pop(name, None)
        if isinstance(module, Sequential):
            module.blocks.fixed = False
        for name, value in vars(module).items():
            several = isinstance(value, (list, tuple))
            new_value = type(value)(map(remake, value)) if several else remake(value)
            setattr(module, name, new_value)
    return new


def exchange(model: Module, change: Callable[[str, Module], Module | None]) -> Module:
    """Replace each inner layer by ``change(path, layer)``, unless that is None.

    Changes a declared model in place and returns it. ``path``: the layer's full name.
    """

    def visit(module: Module, prefix: str) -> None:
        places: dict[str, Any] = module.blocks if isinstance(module, Sequential) else vars(module)
        for name, value in list(places.items()):
            if isinstance(value, Module):
                places[name] = changed(f"{prefix}{name}", value)
            elif isinstance(value, (list, tuple)) and not isinstance(module, Sequential):
                places[name] = type(value)(
                    changed(f"{prefix}{name}.{index}", item) if isinstance(item, Module) else item
                    for index, item in enumerate(value)
                )

    def changed(path: str, layer: Module) -> Module:
        new = change(path, layer)
        if new is None:
            visit(layer, f"{path}.")
            return layer
        return new

    visit(model, "")
    return model


def filled(model: Module, values: Values, dtype: Any = None) -> Module:
    """Initialise a declared model and load ``values``, which must have its names and shapes."""
    return model.init(0, dtype).load(dict(values))


def refuse_diverged(what: str, values: np.ndarray) -> None:
    """Raise ValueError if there are NaN or infinite ``values``: they cannot be made smaller."""
    if not np.isfinite(values).all():
        raise ValueError(f"{what} has NaN or infinite values: training has diverged")


def dtype_of(model: Module) -> np.dtype:
    """The dtype of an initialised model's parameters."""
    return model.flat.data.dtype
