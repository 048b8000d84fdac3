"""What a declared model costs: parameters, FLOPs, and what its forward saves for the backward.

All of it follows from declared shapes: nothing is allocated. ``e`` bytes an element is called
``itemsize`` in the code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.module import Module, Shape
from minidist.parallel.blocks import blocks_of, costs_of


def parameter_count(model: Module) -> int:
    """Ψ, the number of parameters, of a declared model too."""
    return sum(parameter.size for parameter in model.parameters())


def parameter_slices(model: Module) -> dict[str, slice]:
    """Where each parameter of a declared model lies in the flat array, once there is one."""
    slices, start = {}, 0
    for name, parameter in model.named_parameters().items():
        slices[name] = slice(start, start + parameter.size)
        start += parameter.size
    return slices


def training_flops(model: Module, shape: Shape, input_grad: bool = False) -> tuple[int, int]:
    """FLOPs of (forward, backward) on an input of ``shape``.

    A block computes its input's gradient only if something before it wants one.
    """
    forward = backward = 0
    for block, cost in zip(blocks_of(model).values(), costs_of(model, shape), strict=True):
        forward += cost.flops
        backward += cost.weight_flops + (cost.input_flops if input_grad else 0)
        input_grad = input_grad or bool(block.named_parameters())
    return forward, backward


def saved_bytes(model: Module, shape: Shape, itemsize: int, loss: Module | None) -> int:
    """Bytes that a forward on an input of ``shape`` saves for its backward, the input included.

    ``loss`` is there if this part of the model ends in it.
    """
    cost = model.cost(shape, itemsize)
    saved = cost.saved_bytes
    if cost.saves_input:
        saved += int(np.prod(shape)) * itemsize
    if cost.saves_output:
        saved += int(np.prod(cost.shape)) * itemsize
    if loss is not None:
        saved += loss.cost(cost.shape, itemsize).saved_bytes
    return saved


def shape_of(batch: Batch) -> Shape:
    """The shape of a batch's inputs, which need not be read for it."""
    return (len(batch), *batch.dataset.input_shape)


def training_seconds(model: Module, batches: Sequence[Batch], machine: Machine, rank: int) -> float:
    """Seconds that ``rank`` computes, forward and backward, on each of these batches in turn."""
    return sum(
        machine.compute(sum(training_flops(model, shape_of(batch))), rank) for batch in batches
    )


def largest_saved(model: Module, batches: Sequence[Batch], itemsize: int, loss: Module) -> int:
    """Bytes of activations at the highest, if these batches go forward and backward in turn."""
    return max(saved_bytes(model, shape_of(batch), itemsize, loss) for batch in batches)
