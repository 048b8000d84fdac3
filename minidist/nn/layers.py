"""Layers: what they declare, what they compute, what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist import ops
from minidist.nn.init import uniform_fan_in
from minidist.nn.module import LayerCost, Module, Parameter, Shape
from minidist.tensor import Tensor, as_tensor


class Linear(Module):
    """x @ weight + bias: (..., inputs) → (..., outputs).

    The weight is stored (inputs, outputs), so that the formula reads as it computes and a
    *column* of it makes one output: what tensor parallelism calls column-parallel splits columns.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        self.weight = Parameter((inputs, outputs), uniform_fan_in(inputs))
        self.bias = Parameter((outputs,), uniform_fan_in(inputs)) if bias else None

    def forward(self, x: Any) -> Tensor:
        return ops.linear(x, self.weight, self.bias)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        inputs, outputs = self.weight.declared
        flops = 2 * int(np.prod(shape[:-1])) * inputs * outputs
        return LayerCost((*shape[:-1], outputs), flops, flops, flops, saves_input=True)

    def __repr__(self) -> str:
        return f"Linear{self.weight.declared}"


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost(shape, saves_output=True)


class Flatten(Module):
    """(batch, ...) → (batch, product of the rest)."""

    def forward(self, x: Any) -> Tensor:
        x = as_tensor(x)
        return ops.reshape(x, x.shape[0], int(np.prod(x.shape[1:])))

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost((shape[0], int(np.prod(shape[1:]))), view=True)


class Sequential(Module):
    """Blocks in a row, named "0", "1", ...; a slice of it is a Sequential with the same names.

    ``input_shape`` is that of one sample, if known: a pipeline needs it to cut even stages.

    >>> model = Sequential(Linear(4, 3), ReLU(), Linear(3, 2))
    >>> list(model[1:].named_parameters())
    ['2.weight', '2.bias']
    """

    def __init__(self, *blocks: Module, input_shape: Shape | None = None) -> None:
        self.blocks: dict[str, Module] = {str(index): block for index, block in enumerate(blocks)}
        self.input_shape = input_shape

    def children(self) -> Iterator[tuple[str, Any]]:
        yield from self.blocks.items()

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, part: slice) -> Sequential:
        if not isinstance(part, slice):
            raise TypeError("Sequential takes a slice, model[1:3]; one block is model.blocks['1']")
        sliced = Sequential()
        sliced.blocks = dict(list(self.blocks.items())[part])
        return sliced

    def forward(self, x: Any) -> Tensor:
        for block in self.blocks.values():
            x = block(x)
        return x

    def costs(self, shape: Shape, itemsize: int = 4) -> list[LayerCost]:
        """Each block's cost on an input of ``shape`` to the first."""
        costs = []
        for block in self.blocks.values():
            costs.append(block.cost(shape, itemsize))
            shape = costs[-1].shape
        return costs

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """All blocks as one.

        What lies between two blocks is one array, saved once if either of the two needs it.
        """
        costs = self.costs(shape, itemsize)
        saved = 0
        boundary, needed = shape, False
        saves_input = False
        first = True
        for cost in costs:
            needed = needed or cost.saves_input
            saved += cost.saved_bytes
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
        )
