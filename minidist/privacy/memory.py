"""What DP-SGD keeps of a forward and backward: the formula, from a declared model."""

from __future__ import annotations

from collections.abc import Sequence

from minidist.data.batches import Batch
from minidist.nn.cost import walk_back
from minidist.nn.loss import Loss
from minidist.nn.module import Module, Shape
from minidist.parallel.blocks import costs_of
from minidist.parallel.model_costs import first_recorded, saved_bytes, shape_of


def largest_kept(model: Module, parts: Sequence[Batch], itemsize: int, loss: Loss) -> int:
    """Bytes at the highest, if these batches go forward and backward in turn.

    All weights' gradients wait for the norms, as they do in a zero-bubble pipeline: until then each
    layer keeps its input and the gradient of its output.
    """
    shapes = [shape_of(part) for part in parts if len(part)]
    return max((kept(model, shape, itemsize, loss) for shape in shapes), default=0)


def kept(model: Module, shape: Shape, itemsize: int, loss: Loss) -> int:
    """Bytes of one forward and backward on an input of ``shape``."""
    costs = costs_of(model, shape, itemsize)
    first = first_recorded(model, input_grad=False)
    before = costs[first - 1].shape if first else shape
    of_loss = loss.cost(costs[-1].shape, itemsize).saved_bytes
    highest, _ = walk_back(costs[first:], before, itemsize, of_loss)
    return max(highest, saved_bytes(model, shape, itemsize, loss))
