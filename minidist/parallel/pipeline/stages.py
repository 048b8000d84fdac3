"""Cutting a model into parts for a pipeline, and the cost of a part: FLOPs and memory.

A model is a list of blocks; a part has some consecutive ones. ``cut`` makes the parts' costs as
equal as possible: counted costs (``block_flops``), measured ones (``block_seconds``), or any other
numbers. ``part_cost`` gives a part's FLOPs and bytes for one microbatch. They are exact, because
blocks declare what they save, and what a deferred weight gradient keeps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minidist.collectives import broadcast
from minidist.comm.comm import Comm
from minidist.data.batches import Batch
from minidist.engine.tensor import Tensor
from minidist.nn.cost import walk_back
from minidist.nn.layers import Sequential
from minidist.nn.loss import Loss
from minidist.nn.module import LayerCost, Shape
from minidist.parallel.model_costs import first_recorded, saved_bytes, training_flops
from minidist.parallel.pipeline.tally import Memory

Bounds = list[tuple[int, int]]


def block_flops(model: Sequential) -> list[int]:
    """Forward FLOPs of every block for one sample. Raises ValueError without ``input_shape``."""
    if model.input_shape is None:
        raise ValueError(
            "a pipeline cuts the model by FLOPs and does not know its input: build it as "
            "Sequential(..., input_shape=(...)), or pass bounds=[(start, stop), ...]"
        )
    return [cost.flops for cost in model.costs((1, *model.input_shape))]


def block_seconds(model: Sequential, batch: Batch, comm: Comm, repeats: int = 3) -> list[float]:
    """Seconds of every block's forward and backward, the least of ``repeats``, measured on rank 0.

    Every rank must call it, and gets the same. ``model`` is initialised here, so pass a copy and
    not the model to train.
    """
    seconds = np.zeros(len(model))
    if comm.rank == 0:
        model.init(0)
        best = np.full(len(model), np.inf)
        for _ in range(repeats):
            x = batch.inputs
            for index, block in enumerate(model.blocks.values()):
                start = time.perf_counter()
                if getattr(x, "dtype", None) is not None and x.dtype.kind == "f" and index:
                    x = Tensor(x, requires_grad=True)
                y = block(x)
                if y.requires_grad:
                    y.backward(y.xp.ones_like(y.data))
                best[index] = min(best[index], time.perf_counter() - start)
                x = y.data
        seconds = best
    broadcast(comm, seconds, root=0)
    return [float(value) for value in seconds]


def cut(costs: Sequence[float], parts: int) -> Bounds:
    """Cut blocks with these costs into consecutive parts (start, stop), as equal as possible.

    The sum of the parts' squared costs is minimal, by dynamic programming. Of equal cuts, the one
    with the longest first parts is taken, so that a block without cost stays with the one before.
    Raises ValueError if there are fewer blocks than parts.
    """
    if parts > len(costs):
        raise ValueError(
            f"{parts} stages need as many blocks, and the model has {len(costs)}: "
            "use fewer ranks or a deeper model"
        )
    total: list[float] = [0]
    for cost in costs:
        total.append(total[-1] + cost)
    # rest[start]: the least cost of the blocks from ``start`` on in ``count`` parts, and minus the
    # end of the first of these parts.
    rest: dict[int, tuple[float, int]] = {len(costs): (0, 0)}
    ends: list[dict[int, tuple[float, int]]] = []
    for count in range(parts):
        longer: dict[int, tuple[float, int]] = {}
        for start in range(parts - count - 1, len(costs) - count):
            longer[start] = min(
                ((total[stop] - total[start]) ** 2 + rest[stop][0], -stop)
                for stop in range(start + 1, len(costs) - count + 1)
                if stop in rest
            )
        rest = longer
        ends.append(rest)
    bounds, start = [], 0
    for best in reversed(ends):
        bounds.append((start, -best[start][1]))
        start = bounds[-1][1]
    return bounds


def join(parts: Sequence[Sequential]) -> Sequential:
    """Several parts of one model, not always neighbours, as one model with the same names."""
    joined = Sequential()
    for part in parts:
        joined.blocks |= part.blocks
    return joined


@dataclass(frozen=True)
class PartCost:
    """FLOPs and bytes of one part of a model for one microbatch."""

    forward: int
    input_gradient: int
    weight_gradient: int
    memory: Memory  # with a whole Backward
    split: Memory  # with InputGradient, and WeightGradient later
    output: Shape


def part_cost(
    part: Sequential,
    shape: Shape,
    itemsize: int,
    loss: Loss | None,
    first: bool,
    recompute: bool,
) -> PartCost:
    """The cost of ``part`` on an input of ``shape``; ``loss`` if the model ends in it.

    ``first``: the model's first part, which needs no gradient of its input. With ``recompute`` only
    a microbatch's input is kept (of the first part it is in the batch), and the backward computes
    the forward again.
    """
    costs = part.costs(shape, itemsize)
    output = costs[-1].shape if costs else shape
    forward, backward = training_flops(part, shape, input_grad=not first)
    weight = sum(cost.weight_flops for cost in costs)
    saved = saved_bytes(part, shape, itemsize, loss, not first) if costs or loss else 0
    skip = first_recorded(part, not first)
    ends_in_loss = loss is not None and not (skip and skip == len(costs))
    of_loss = loss.cost(output, itemsize).saved_bytes if loss and ends_in_loss else 0
    before = costs[skip - 1].shape if skip else shape
    highest, kept = walk_back(costs[skip:], before, itemsize, of_loss)
    backward_peak, _ = walk_back(costs[skip:], before, itemsize, of_loss, deferring=False)
    backward_peak = max(backward_peak, saved)
    again = forward if recompute else 0
    if recompute:
        own = 0 if first else int(np.prod(shape)) * itemsize
        if not _saves_input(costs, loss):  # then the input is kept as well
            backward_peak, highest = backward_peak + own, highest + own
        saved = own
    return PartCost(
        forward=forward,
        input_gradient=backward - weight + again,
        weight_gradient=weight,
        memory=Memory(saved, backward_peak),
        split=Memory(saved, max(backward_peak, highest), kept),
        output=output,
    )


def _saves_input(costs: Sequence[LayerCost], loss: Loss | None) -> bool:
    """Whether the part saves its input's memory."""
    for cost in costs:
        if cost.saves_input:
            return True
        if not cost.view:
            return False
    return False
