"""FLOPs and memory of DP-SGD's forward and backward: formulas, from a declared model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.models.gpt import Head
from minidist.nn.cost import walk_back
from minidist.nn.layers import Linear
from minidist.nn.loss import Loss
from minidist.nn.module import Module, Shape
from minidist.parallel.blocks import blocks_of, costs_of
from minidist.parallel.model_costs import first_recorded, saved_bytes, shape_of, training_flops
from minidist.privacy.outer import is_thin


def seconds(model: Module, parts: Sequence[Batch], machine: Machine, rank: int) -> float:
    """Seconds of forward, backward and the norms of all samples; parts without samples take none.

    Norms that are computed from the samples' gradients need no further products.
    """
    shapes = [shape_of(part) for part in parts if len(part)]
    return sum(
        machine.compute(sum(training_flops(model, shape)) + norm_flops(model, shape), rank)
        for shape in shapes
    )


def norm_flops(model: Module, shape: Shape) -> int:
    """FLOPs of the norms by pairs of rows, where outer.py uses them.

    For a linear layer (i, o), n samples and T rows in each: 2nT²(i + o).
    """
    total = 0
    for block, cost in zip(blocks_of(model).values(), costs_of(model, shape), strict=True):
        rows = int(np.prod(shape[1:-1]))
        pairs = 2 * shape[0] * rows**2
        for module in block.named_modules().values():
            if isinstance(module, Linear) and module.weight.requires_grad:
                if is_thin(rows, module.weight.declared):
                    total += pairs * sum(module.weight.declared)
            elif isinstance(module, Head) and module.weight.requires_grad:
                vocabulary, width = module.weight.declared
                if is_thin(rows, module.weight.declared):  # head, embedding, and their product
                    total += pairs * (vocabulary + 3 * width)
        shape = cost.shape
    return total


def largest_kept(model: Module, parts: Sequence[Batch], itemsize: int, loss: Loss) -> int:
    """Peak bytes, if these batches go forward and backward one after the other.

    All weights' gradients wait for the norms, as in a zero-bubble pipeline; until then each layer
    keeps its input and the gradient of its output.
    """
    shapes = [shape_of(part) for part in parts if len(part)]
    return max((kept(model, shape, itemsize, loss) for shape in shapes), default=0)


def kept(model: Module, shape: Shape, itemsize: int, loss: Loss) -> int:
    """Peak bytes of one forward and backward on an input of ``shape``."""
    costs = costs_of(model, shape, itemsize)
    first = first_recorded(model, input_grad=False)
    before = costs[first - 1].shape if first else shape
    of_loss = loss.cost(costs[-1].shape, itemsize).saved_bytes
    highest, _ = walk_back(costs[first:], before, itemsize, of_loss)
    return max(highest, saved_bytes(model, shape, itemsize, loss))
