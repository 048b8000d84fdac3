"""Linear, Embedding and Flatten, and the containers Sequential and Residual."""

from __future__ import annotations

import math
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

    The weight is stored as (inputs, outputs), as in the formula. So each *column* computes one
    output, and column-parallel (tensor parallelism) splits its columns.
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
        trained = self.weight.requires_grad
        later = trained or (self.bias is not None and self.bias.requires_grad)
        return LayerCost(
            (*shape[:-1], outputs),
            flops,
            flops,
            weight_flops=flops * trained,
            saves_input=trained,
            defers_input=trained,
            deferred_bytes=rows * outputs * itemsize * later,  # the gradient of the output
        )

    def __repr__(self) -> str:
        return f"Linear{self.weight.declared}"


class Embedding(Module):
    """Look up a row of a table for each integer: (...) → (..., width)."""

    def __init__(self, rows: int, width: int, std: float = 0.02) -> None:
        self.weight = Parameter((rows, width), normal(std))

    def forward(self, indices: Any) -> Tensor:
        return ops.embedding(indices, self.weight)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the indices, as int64; a look-up has no FLOPs."""
        width, indices = self.weight.declared[1], int(np.prod(shape))
        if not self.weight.requires_grad:
            return LayerCost((*shape, width))
        return LayerCost(
            (*shape, width),
            saved_bytes=8 * indices,
            deferred_bytes=indices * (8 + width * itemsize),
        )

    def __repr__(self) -> str:
        return f"Embedding{self.weight.declared}"


class Flatten(Module):
    """(batch, ...) → (batch, product of the rest).

    The result is a view, except for images (n, c, h, w): convolution stores the channels of a
    pixel side by side in memory (n, h, w, c), so that flattening has to copy.
    """

    def forward(self, x: Any) -> Tensor:
        x = as_tensor(x)
        if x.ndim == 4:
            x = ops.copy(x)
        return ops.reshape(x, x.shape[0], math.prod(x.shape[1:]))

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost((shape[0], int(np.prod(shape[1:]))), view=len(shape) != 4)


class Blocks(dict[str, Module]):
    """The blocks of a Sequential by name. After ``init`` none can be exchanged, added or removed.

    The parameters of a new block would not lie in the flat array, so no optimizer would step them.
    """

    fixed = False

    def _refusing(name: str) -> Any:  # type: ignore[misc]  # noqa: N805
        def method(self: Blocks, *given: Any) -> Any:
            if self.fixed:
                raise TypeError(
                    "blocks cannot be exchanged, added or removed after init: their parameters lie "
                    "in the model's flat array, and new ones would not. Declare a new Sequential, "
                    "init it, and load(..., partial=True) the values that it should have"
                )
            return getattr(super(), name)(*given)

        return method

    __setitem__ = _refusing("__setitem__")
    __delitem__ = _refusing("__delitem__")
    __ior__ = _refusing("__ior__")
    clear = _refusing("clear")
    pop = _refusing("pop")
    popitem = _refusing("popitem")
    setdefault = _refusing("setdefault")
    update = _refusing("update")

    def __reduce__(self) -> Any:
        return Blocks, (dict(self),), {"fixed": self.fixed}


class Sequential(Module):
    """Blocks applied in order, named "0", "1", ...; a slice is a Sequential with the same names.

    ``input_shape`` is the shape of one sample; a pipeline needs it to cut equal stages.

    >>> from minidist.nn import ReLU
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
        self.blocks = Blocks({str(index): block for index, block in enumerate(blocks)})
        self.input_shape = input_shape

    def children(self) -> Iterator[tuple[str, Any]]:
        yield from self.blocks.items()

    def _fix(self) -> None:
        super()._fix()
        self.blocks.fixed = True

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, part: slice) -> Sequential:
        if not isinstance(part, slice):
            raise TypeError("Sequential takes a slice, model[1:3]; one block is model.blocks['1']")
        sliced = Sequential()
        sliced.blocks = Blocks(list(self.blocks.items())[part])
        return sliced

    def forward(self, x: Any) -> Tensor:
        inputs = x
        try:
            for block in self.blocks.values():
                x = block(x)
        except ops.ShapeError as error:
            if self.is_one_sample(inputs):
                raise ops.ShapeError(
                    f"{error}. Is the input {inputs.shape} one sample, without a batch axis? Add "
                    "it with x[None], or let predict(model, dataset, raw) prepare a raw sample"
                ) from error
            raise
        return x

    def is_one_sample(self, x: Any) -> bool:
        """Whether ``x`` has as many numbers as one sample, and no batch axis of length 1."""
        shape: Shape = getattr(x, "shape", ())
        if not shape or not self.input_shape:
            return False
        return shape[0] != 1 and np.prod(shape) == np.prod(self.input_shape)

    def costs(self, shape: Shape, itemsize: int = 4) -> list[LayerCost]:
        """The cost of each block, if the first block's input has ``shape``."""
        costs = []
        for block in self.blocks.values():
            costs.append(block.cost(shape, itemsize))
            shape = costs[-1].shape
        return costs

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """The cost of all blocks together."""
        return in_a_row(self.costs(shape, itemsize), shape, itemsize)


class Residual(Module):
    """x + blocks(x): the blocks learn a correction to x (arXiv 1512.03385)."""

    def __init__(self, *blocks: Module) -> None:
        self.inner = Sequential(*blocks)

    def forward(self, x: Any) -> Tensor:
        return ops.add(x, self.inner(x))

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """The sum saves nothing; blocks(x) is kept only if the last block saves its output."""
        inner = self.inner.cost(shape, itemsize)
        if inner.shape != shape:
            raise ops.ShapeError(f"Residual: the blocks turn {shape} into {inner.shape}")
        kept = int(np.prod(shape)) * itemsize if inner.saves_output else 0
        return replace(
            inner,
            saves_output=False,
            saved_bytes=inner.saved_bytes + kept,
            splitting_bytes=inner.splitting_bytes + kept,
            backward_bytes=inner.backward_bytes and inner.backward_bytes + kept,
            view=False,
        )
