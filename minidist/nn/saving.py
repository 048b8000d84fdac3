"""Saving, loading, copying and pickling a model: its parameters and buffers, by full name.

A copy or a pickle has arrays of its own, and in these the model's layout: one flat array for all
parameters, and one for all gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from minidist.engine import array as arrays
from minidist.engine.array import DType
from minidist.engine.versions import written
from minidist.nn.flat import Flat
from minidist.nn.parameter import Buffer, Parameter


class Saving:
    """Base of ``Module``: saving and loading its values, copying and pickling it."""

    if TYPE_CHECKING:  # Module defines these

        def named_parameters(self) -> dict[str, Parameter]: ...
        def named_buffers(self) -> dict[str, Buffer]: ...
        def named_modules(self) -> dict[str, Any]: ...

    def state(self) -> dict[str, np.ndarray]:
        """A copy of every parameter and buffer on the host, by name."""
        named = self.named_parameters() | self.named_buffers()
        return {name: arrays.to_host(one.data).copy() for name, one in named.items()}

    def load(self, state: dict[str, np.ndarray], partial: bool = False) -> Self:
        """Copy values from ``state``, which must have exactly this model's names and shapes.

        With ``partial``, parameters that are not in ``state`` keep their values. Raises KeyError if
        names differ, ValueError or TypeError for other shapes or for values that do not fit; then
        nothing has changed.
        """
        named = self.named_parameters() | self.named_buffers()
        different = state.keys() - named.keys() if partial else named.keys() ^ state.keys()
        if different:
            raise KeyError(
                f"load: model and state differ in {sorted(different)}"
                + ("" if partial else ": to load a part of the names, pass partial=True")
            )
        for name, value in state.items():
            if np.shape(value) != named[name].declared:
                raise ValueError(
                    f"load: {name} is {named[name].declared} in the model "
                    f"and {np.shape(value)} in the state"
                )
            if np.asarray(value).dtype.kind not in "fiub":
                raise TypeError(
                    f"load: {name} is {np.asarray(value).dtype} in the state, and not numbers"
                )
        data = {name: named[name].data for name in state}
        cast = {name: narrowed(f"load: {name}", state[name], data[name].dtype) for name in state}
        for name, array in data.items():
            array[...] = arrays.module_of(array).asarray(cast[name])
            written(array)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or pickle consists of: not the flat arrays, which ``__setstate__`` makes."""
        return {name: value for name, value in vars(self).items() if name != "flat"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        named = self.named_parameters()
        if not named or not all(parameter.initialised for parameter in named.values()):
            return  # declared, not initialised
        values = {name: parameter.data for name, parameter in named.items()}
        grads = {name: parameter.grad for name, parameter in named.items()}
        first = next(iter(values.values()))
        vars(self)["flat"] = Flat(named, first.dtype, arrays.module_of(first))
        for name, parameter in named.items():
            parameter.data[...] = values[name]
            if parameter.grad is not None:
                parameter.grad[...] = grads[name]
        for module in self.named_modules().values():
            if module is not self:
                vars(module).pop("flat", None)  # made when this block was copied, before the whole


def narrowed(what: str, value: Any, dtype: DType) -> np.ndarray:
    """``value`` converted to ``dtype``; ValueError if a number is beyond it, or no integer."""
    value, dtype = np.asarray(value), np.dtype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = value.astype(dtype)
    lost = np.isfinite(value) & ~np.isfinite(cast) if dtype.kind == "f" else cast != value
    if lost.any():
        raise ValueError(
            f"{what} is {dtype} in the model, and {value[lost].flat[0]} in the state does not fit"
        )
    return cast
