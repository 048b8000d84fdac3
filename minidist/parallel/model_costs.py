"""Costs of a declared model: parameters, FLOPs, and bytes that a forward saves for its backward.

They follow from the declared shapes; nothing is allocated. ``itemsize`` is the e of the formulas:
bytes of an element.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.cost import in_a_row as in_a_row_of
from minidist.nn.cost import walk_back
from minidist.nn.loss import Loss
from minidist.nn.module import Module, Shape
from minidist.nn.parameter import in_a_row
from minidist.parallel.blocks import blocks_of, costs_of


def parameter_count(model: Module) -> int:
    """Ψ, the number of trained parameters (elements) of a model, which may be only declared."""
    return sum(parameter.size for parameter in model.trained().values())


def frozen_count(model: Module) -> int:
    """The number of frozen parameters (elements): they take memory, but have no gradient."""
    return sum(parameter.size for parameter in model.frozen().values())


def parameter_slices(model: Module) -> dict[str, slice]:
    """Where each trained parameter of a declared model will lie in the flat array."""
    return in_a_row(model.trained())[0]


def first_recorded(model: Module, input_grad: bool) -> int:
    """How many blocks the tape does not record: the frozen ones before the first trained one."""
    if input_grad or not model.frozen():
        return 0
    trained = [wants_gradient(block) for block in blocks_of(model).values()]
    return trained.index(True) if True in trained else len(trained)


def wants_gradient(block: Module) -> bool:
    """Whether a block's output needs a gradient even if its input does not."""
    return bool(block.trained())


def training_flops(model: Module, shape: Shape, input_grad: bool = False) -> tuple[int, int]:
    """FLOPs of (forward, backward) on an input of ``shape``.

    A block computes its input's gradient only if something before it needs one.
    """
    forward = backward = 0
    for block, cost in zip(blocks_of(model).values(), costs_of(model, shape), strict=True):
        forward += cost.flops
        backward += cost.weight_flops + (cost.input_flops if input_grad else 0)
        input_grad = input_grad or wants_gradient(block)
    return forward, backward


def saved_bytes(
    model: Module, shape: Shape, itemsize: int, loss: Loss | None, input_grad: bool = False
) -> int:
    """Bytes that a forward on an input of ``shape`` saves for its backward, with the input.

    ``loss``: the loss, if this part of the model ends in it; else None. Blocks before the first
    trained one save nothing, unless the input needs a gradient (``input_grad``).
    """
    costs = costs_of(model, shape, itemsize)
    first = first_recorded(model, input_grad)
    if first and first == len(costs):
        return 0  # nothing to train
    cost = in_a_row_of(costs[first:], costs[first - 1].shape if first else shape, itemsize)
    saved = cost.saved_bytes
    if cost.saves_input:
        saved += int(np.prod(costs[first - 1].shape if first else shape)) * itemsize
    if cost.saves_output:
        saved += int(np.prod(cost.shape)) * itemsize
    if loss is not None:
        saved += loss.cost(cost.shape, itemsize).saved_bytes
    return saved


def shape_of(batch: Batch) -> Shape:
    """The shape of a batch's inputs, without reading them."""
    return (len(batch), *batch.dataset.input_shape)


def training_seconds(model: Module, batches: Sequence[Batch], machine: Machine, rank: int) -> float:
    """Seconds of compute of ``rank``: forward and backward on all these batches."""
    return sum(
        machine.compute(sum(training_flops(model, shape_of(batch))), rank) for batch in batches
    )


def largest_saved(model: Module, batches: Sequence[Batch], itemsize: int, loss: Loss) -> int:
    """Peak bytes of activations, if these batches go forward and backward one after the other."""
    return max(peak_bytes(model, shape_of(batch), itemsize, loss) for batch in batches)


def peak_bytes(model: Module, shape: Shape, itemsize: int, loss: Loss | None) -> int:
    """Peak bytes of activations: ``saved_bytes``, or more if a layer recomputes in the backward."""
    costs = costs_of(model, shape, itemsize)
    first = first_recorded(model, input_grad=False)
    if first and first == len(costs):
        return 0  # nothing to train
    output = costs[-1].shape if costs else shape
    of_loss = 0 if loss is None else loss.cost(output, itemsize).saved_bytes
    before = costs[first - 1].shape if first else shape
    highest, _ = walk_back(costs[first:], before, itemsize, of_loss, deferring=False)
    return max(highest, saved_bytes(model, shape, itemsize, loss))
