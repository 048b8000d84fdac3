"""Saving and loading an optimizer: what it keeps, by the names of the model's parameters.

    optimizer/mean/1.weight   optimizer/square/1.weight   steps

An optimizer keeps one array for each of its slots, as long as the flat array that it steps. To be
saved, these arrays are cut into parameters, and each piece gets the shape of its parameter. Methods
of parallel training save in the same form: see parallel/state.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minidist.engine.array import Array, module_of, to_host
from minidist.optim.part import Part


class Saving:
    """Base of ``Optimizer``: the size of its state, and saving and loading it."""

    slots: tuple[str, ...]
    parts: list[Part]
    steps: int

    if TYPE_CHECKING:  # Optimizer defines these

        def only_part(self) -> Part: ...
        def bind(self, slices: Mapping[str, slice]) -> None: ...
        def prepare(self, part: Part, data: Array) -> None: ...

    def arrays(self) -> list[Array]:
        """The state arrays of all parts."""
        return [array for part in self.parts for array in part.state.values()]

    def state_bytes(self) -> int:
        """Bytes of the state arrays now.

        The scratch array is not counted: it has one piece, and on a GPU the size of the data.
        """
        return sum(array.nbytes for array in self.arrays())

    def numbers(self) -> dict[str, float]:
        """The attributes that are saved besides the arrays, by name."""
        return {"steps": self.steps}

    def state(self, model: Any) -> dict[str, np.ndarray]:
        """A copy of the state on the host, by the names of ``model``'s parameters.

        Its entries are arrays such as ``"optimizer/mean/1.weight"``, of the parameter's shape, and
        ``"steps"``. ``Method.state`` has the same form, so each can load what the other saved.

        >>> from minidist.models import mlp
        >>> from minidist.optim import SGD
        >>> optimizer, model = SGD(0.1), mlp((4, 2)).init(0)
        >>> optimizer.state(model)
        {'steps': array(0)}
        """
        saved = {name: np.array(value) for name, value in self.numbers().items()}
        for slot, array in self._part_of(model).state.items():
            whole = to_host(array)
            for name, parameter in model.trained().items():
                values = whole[model.flat.slices[name]].reshape(parameter.declared)
                saved[f"optimizer/{slot}/{name}"] = values.copy()
        return saved

    def load(self, state: Mapping[str, np.ndarray], model: Any) -> None:
        """Continue from ``state(model)`` of a model with the same names and shapes.

        ``state`` may also be a ``Method.state()``. Raises KeyError if it belongs to another model
        or another rule, and ValueError if a shape differs; then nothing has changed.
        """
        part, named = self._part_of(model), model.trained()
        saved = {n: np.asarray(values) for n, values in state.items() if n.startswith("optimizer/")}
        needed = {f"optimizer/{slot}/{name}": p for slot in self.slots for name, p in named.items()}
        missing = [name for name in self.numbers() if name not in state]
        if not missing and state["steps"] == 0 and not saved:
            needed = {}  # saved before the first step
        if different := sorted(needed.keys() ^ saved.keys()) + missing:
            raise KeyError(f"load: the optimizer and the state differ in {different}")
        for name, parameter in needed.items():
            if saved[name].shape != parameter.declared:
                raise ValueError(
                    f"load: {name} is {saved[name].shape} in the state, and the parameter is "
                    f"{parameter.declared}"
                )
        for name, value in self.numbers().items():
            setattr(self, name, type(value)(state[name]))
        self.prepare(part, model.flat.data)
        for slot, array in part.state.items():
            for name, where in model.flat.slices.items():
                values = saved.get(f"optimizer/{slot}/{name}", np.zeros(named[name].declared))
                array[where] = module_of(array).asarray(values.reshape(-1).astype(array.dtype))

    def _part_of(self, model: Any) -> Part:
        """The part that steps all of ``model``."""
        part = self.only_part()
        if part.slices is None:
            self.bind(model.flat.slices)
        if any(array.size != model.flat.size for array in part.state.values()):
            sizes = sorted({array.size for array in part.state.values()})
            raise ValueError(
                f"this {type(self).__name__} steps {sizes[0]} elements, and the model has "
                f"{model.flat.size}: pass the model that it trains"
            )
        return part
