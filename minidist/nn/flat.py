"""The flat arrays that store all parameters of a model, and all gradients.

    flat.data   [ 0.weight ........ | 0.bias | 2.weight .... | 2.bias ]
    flat.grad   [ 0.weight ........ | 0.bias | 2.weight .... | 2.bias ]

Each Parameter is a view into them. So an optimizer steps one 1-D array, an all-reduce sends one
array, and a shard is a slice.

Frozen parameters lie in another array, ``flat.frozen``, without gradients. So whatever steps
``flat.data`` or sends ``flat.grad`` leaves them out: no update, no weight decay, no memory for a
gradient, no bytes sent.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

import numpy as np

from minidist.engine import array as arrays
from minidist.engine.array import Array, DType
from minidist.engine.versions import Version, track, written

Parameter = Any  # minidist.nn.parameter, which imports this file


class Flat:
    """All parameters of a model in one array, and all gradients in another.

    ``data`` and ``grad`` are 1-D, of ``size`` elements; ``slices[name]`` is the slice of a
    parameter. ``data_and_loss`` and ``grad_and_loss`` are the same arrays with one more element
    at the end. A method may put the loss there, and so send it in the same message.

    Frozen parameters are in neither: ``frozen`` has their values, and ``parameters`` and ``slices``
    list those that are trained. ``flat.data = array`` and ``flat.grad = array`` copy.
    """

    def __init__(self, parameters: dict[str, Parameter], dtype: DType, device: Any) -> None:
        """``device`` is a device's name, None for the default one, or an array module."""
        self.xp = arrays.module(device) if device is None or isinstance(device, str) else device
        self.named = dict(parameters)
        self.dtype = np.dtype(dtype)
        self.versions: tuple[Version, ...] = ()
        for parameter in parameters.values():
            parameter.home = ref(self)
        self._allocate()

    def _allocate(self) -> None:
        trained = {name: one for name, one in self.named.items() if one.requires_grad}
        frozen = {name: one for name, one in self.named.items() if not one.requires_grad}
        self.parameters = list(trained.values())
        self.slices, self.size = in_a_row(trained)
        self.hold_values(self.xp.zeros(self.size + 1, self.dtype))
        self.hold_gradients(self.xp.zeros(self.size + 1, self.dtype))
        constants, count = in_a_row(frozen)
        self.frozen: Array = self.xp.zeros(count, self.dtype)
        # The trained values' version and the frozen ones': an optimizer step changes the first.
        self.versions = (self.versions[0], track(self.frozen, constants))
        for name, parameter in frozen.items():
            parameter.attach(self.frozen[constants[name]].reshape(parameter.declared))
            parameter.drop_grad()

    def arrange(self) -> None:
        """Allocate again, after parameters were frozen or unfrozen, and copy the values."""
        values = {name: one.data for name, one in self.named.items()}
        grads = {name: one.grad for name, one in self.named.items()}
        self._allocate()
        for name, parameter in self.named.items():
            parameter.data[...] = values[name]
            if parameter.grad is not None and grads[name] is not None:
                parameter.grad[...] = grads[name]

    def hold_values(self, data_and_loss: Array) -> None:
        """Store the trained parameters in this array from now on, and take over its contents."""
        self.data_and_loss = data_and_loss
        self._data: Array = data_and_loss[:-1]
        self.versions = (track(data_and_loss, self.slices), *self.versions[1:])
        for parameter, part in zip(self.parameters, self.slices.values(), strict=True):
            parameter.attach(self._data[part].reshape(parameter.declared))

    def hold_gradients(self, grad_and_loss: Array) -> None:
        """Store the gradients in this array from now on, for example in shared memory."""
        self.grad_and_loss = grad_and_loss
        self._grad: Array = grad_and_loss[:-1]
        for parameter, part in zip(self.parameters, self.slices.values(), strict=True):
            parameter.attach(grad=self._grad[part].reshape(parameter.declared))

    def release(self) -> None:
        """Free the trained values, after the parameters have been attached to other memory."""
        self.data_and_loss = self.xp.empty(0, self.dtype)
        self._data = self.data_and_loss

    def written(self) -> None:
        """Record a write into ``data``, so that backwards that need the old values are refused."""
        written(self.data_and_loss)

    def arrays(self) -> list[Array]:
        """The arrays of all values: trained, and frozen if there are any."""
        return [self._data, self.frozen] if self.frozen.size else [self._data]

    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, value: Array) -> None:
        _copy("data", self._data, value)
        self.written()

    @property
    def grad(self) -> Array:
        return self._grad

    @grad.setter
    def grad(self, value: Array) -> None:
        _copy("grad", self._grad, value)


def _copy(name: str, array: Array, value: Array) -> None:
    """``flat.data = value`` copies, since the parameters are views of the array."""
    if value is array:  # as after an operation in place, such as flat.grad *= 0.5
        return
    if getattr(value, "shape", None) != array.shape or value.dtype != array.dtype:
        raise ValueError(
            f"flat.{name} is {array.dtype} of {array.shape}: assign an array of this dtype and "
            "shape, whose values are copied"
        )
    array[...] = value


def in_a_row(named: dict[str, Parameter]) -> tuple[dict[str, slice], int]:
    """The slice of each parameter in an array of all, one after another, and its length."""
    slices, start = {}, 0
    for name, parameter in named.items():
        slices[name] = slice(start, start + parameter.size)
        start += parameter.size
    return slices, start
