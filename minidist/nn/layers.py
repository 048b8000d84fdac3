"""Linear layers, tables, and ways to put layers together: what they declare, compute and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.init import constant, normal, uniform_fan_in
from minidist.nn.module import Initialiser, LayerCost, Module, Parameter, Shape, in_a_row


class Linear(Module):
    """x @ weight + bias: (..., inputs) → (..., outputs).

    The weight is stored (inputs, outputs), so that the formula reads as it computes and a
    *column* of it makes one output: what tensor parallelism calls column-parallel splits columns.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        initialiser: Initialiser | None = None,
    ) -> None:
        start = initialiser or uniform_fan_in(inputs)
        bias_start = constant(0) if initialiser else start
        self.weight = Parameter((inputs, outputs), start)
        self.bias = Parameter((outputs,), bias_start) if bias else None

    def forward(self, x: Any) -> Tensor:
        return ops.linear(x, self.weight, self.bias)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        inputs, outputs = self.weight.declared
        rows = int(np.prod(shape[:-1]))
        flops = 2 * rows * inputs * outputs
        return LayerCost(
            (*shape[:-1], outputs),
            flops,
            flops,
            flops,
            saves_input=True,
            defers_input=True,
            deferred_bytes=rows * outputs * itemsize,  # the gradient of the output
        )

    def __repr__(self) -> str:
        return f"Linear{self.weight.declared}"


class Embedding(Module):
    """A row of a table for every integer: (...) → (..., width)."""

    def __init__(self, rows: int, width: int, std: float = 0.02) -> None:
        self.weight = Parameter((rows, width), normal(std))

    def forward(self, indices: Any) -> Tensor:
        return ops.embedding(indices, self.weight)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Keeps the indices, as int64; looking up is no arithmetic."""
        width, indices = self.weight.declared[1], int(np.prod(shape))
        return LayerCost(
            (*shape, width),
            saved_bytes=8 * indices,
            deferred_bytes=indices * (8 + width * itemsize),
        )

    def __repr__(self) -> str:
        return f"Embedding{self.weight.declared}"


class Flatten(Module):
    """(batch, ...) → (batch, product of the rest).

    A view, except of images (n, c, h, w): convolution leaves their channels side by side in
    memory, and putting them in order is a copy.
    """

    def forward(self, x: Any) -> Tensor:
        x = as_tensor(x)
        if x.ndim == 4:
            x = ops.copy(x)
        return ops.reshape(x, x.shape[0], int(np.prod(x.shape[1:])))

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost((shape[0], int(np.prod(shape[1:]))), view=len(shape) != 4)


class Sequential(Module):
    """Blocks in a row, named "0", "1", ...; a slice of it is a Sequential with the same names.

    ``input_shape`` is that of one sample, if known: a pipeline needs it to cut even stages.

    >>> model = Sequential(Linear(4, 3), ReLU(), Linear(3, 2))
    >>> list(model[1:].named_parameters())
    ['2.weight', '2.bias']
    """

    def __init__(self, *blocks: Module, input_shape: Shape | None = None) -> None:
        for index, block in enumerate(blocks):
            if not isinstance(block, Module):
                raise TypeError(
                    f"Sequential: block {index} is a {type(block).__name__}, not a Module: write "
                    "Sequential(Linear(3, 4), ReLU()), or Sequential(*blocks) for a list"
                )
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
        """All blocks as one."""
        return in_a_row(self.costs(shape, itemsize), shape, itemsize)


class Residual(Module):
    """x + blocks(x): what the blocks learn is a correction (arXiv 1512.03385)."""

    def __init__(self, *blocks: Module) -> None:
        self.inner = Sequential(*blocks)

    def forward(self, x: Any) -> Tensor:
        return ops.add(x, self.inner(x))

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """The sum itself keeps nothing; the correction stays if the last block keeps its output."""
        inner = self.inner.cost(shape, itemsize)
        if inner.shape != shape:
            raise ops.ShapeError(f"Residual: the blocks turn {shape} into {inner.shape}")
        kept = int(np.prod(shape)) * itemsize if inner.saves_output else 0
        return replace(inner, saves_output=False, saved_bytes=inner.saved_bytes + kept, view=False)
