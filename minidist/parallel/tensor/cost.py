"""The cost of tensor parallelism: messages, bytes and memory of every rank, from declared layers.

For an input shape, each layer gives the collectives that it sends (``Traffic``) and the bytes that
it saves (``LayerCost``). The time has no formula: see the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.collectives import ring
from minidist.collectives.cost import Cost
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.layers import Sequential
from minidist.nn.loss import Loss
from minidist.nn.module import Shape
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import StepCost
from minidist.parallel.model_costs import frozen_count, largest_saved, shape_of, training_seconds
from minidist.parallel.tensor.axis import Sum, Traffic
from minidist.parallel.tensor.layers import traffic_of
from minidist.parallel.tensor.part import TensorPart

NOTHING = Cost(0, 0, 0.0)


def microbatch_traffic(
    model: Sequential, loss: Loss | None, shape: Shape, itemsize: int, input_grad: bool = False
) -> Traffic:
    """The collectives of one forward and backward; ``loss`` if this part ends in it, else None."""
    found = traffic_of(model, shape, itemsize, input_grad)
    if loss is not None and hasattr(loss, "traffic"):
        found += loss.traffic(model.cost(shape, itemsize).shape, itemsize)
    return found


def total(sums: Sequence[Sum], rank: int, machine: Machine) -> Cost:
    """A rank's cost of these collectives; those on the stream take no busy time."""
    cost = NOTHING
    for one in sums:
        part = one.cost(rank, machine)
        cost += Cost(part.messages, part.nbytes, 0.0, 0 if one.hidden else part.reduced)
    return cost


def numbers(count: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """The cost of an all-reduce of ``count`` elements."""
    return ring.all_reduce.cost(count, itemsize, rank, size, machine)


def step_cost(
    part: TensorPart,
    optimizer: Optimizer,
    parts: Sequence[Batch],
    clips: bool,
    itemsize: int,
    machine: Machine,
) -> StepCost:
    """A step of ``TensorParallel`` on these microbatches, for every rank."""
    size = part.comm.size
    messages, nbytes, busy, saved = [], [], [], []
    for rank, (model, loss) in enumerate(zip(part.models, part.losses, strict=True)):
        cost = NOTHING
        for one in parts:
            traffic = microbatch_traffic(model, loss, shape_of(one), itemsize)
            cost += total(traffic.forward + traffic.backward, rank, machine)
        if part.summed:
            cost += numbers(part.summed_length(), itemsize, rank, size, machine)
        if clips:
            cost += numbers(1, 8, rank, size, machine)
        if optimizer.layerwise:
            cost += numbers(2 * len(model.trained()), 8, rank, size, machine)
        messages.append(cost.messages)
        nbytes.append(cost.nbytes)
        seconds = training_seconds(model, parts, machine, rank)
        busy.append(seconds + machine.reduce(cost.reduced))
        saved.append(largest_saved(model, parts, itemsize, loss))
    own = [count * itemsize for count in part.parameter_counts()]  # bytes, by rank
    return StepCost(
        messages=messages,
        nbytes=nbytes,
        peak_bytes={
            "parameters": [
                nbytes + frozen_count(model) * itemsize
                for nbytes, model in zip(own, part.models, strict=True)
            ],
            "gradients": own,
            "optimizer": [len(optimizer.slots) * nbytes for nbytes in own],
            "activations": saved,
        },
        busy=busy,
        seconds=None,
    )
