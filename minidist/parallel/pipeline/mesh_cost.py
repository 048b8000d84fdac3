"""The cost of a step of a pipeline whose stages are cut over a tensor axis.

The ranks with the same number on the tensor axis form a pipeline of smaller layers. The cost of
each of these is that of any pipeline; the messages along the tensor axis are added. The time has no
formula: see the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.optim.optimizer import Optimizer
from minidist.parallel.gradient_sync import GradientSync, Replicas
from minidist.parallel.in_order import names_in
from minidist.parallel.method import StepCost
from minidist.parallel.model_costs import parameter_slices
from minidist.parallel.pipeline.instructions import Reduce
from minidist.parallel.pipeline.layout import Layout
from minidist.parallel.tensor.cost import NOTHING, Cost, microbatch_traffic, numbers, total
from minidist.parallel.tensor.part import TensorPart


def machine_of(machine: Machine, rank: int, size: int) -> Machine:
    """The machine for the pipeline of tensor rank ``rank``, which has every size-th rank."""
    slow = {r // size: times for r, times in machine.slowdown.items() if r % size == rank}
    return replace(machine, slowdown=slow)


def mesh_cost(
    tensor: TensorPart,
    layouts: Sequence[Layout],
    costs: Sequence[StepCost],
    replicas: Sequence[Sequence[Replicas]],
    sync: GradientSync,
    optimizer: Optimizer,
    batch: Batch,
    itemsize: int,
    machine: Machine,
) -> StepCost:
    """The cost for all ranks, from the ``costs`` of the pipeline of each tensor rank."""
    size = tensor.comm.size
    ranks = range(layouts[0].stages * layouts[0].replicas * size)
    more = [
        along_tensor(
            tensor,
            layouts[rank % size],
            replicas[rank % size],
            sync,
            optimizer,
            batch,
            itemsize,
            rank,
            machine,
        )
        for rank in ranks
    ]

    def by_rank(values: Sequence[list]) -> list:
        return [values[rank % size][rank // size] for rank in ranks]

    kinds = costs[0].peak_bytes
    pairs = [(by_rank([cost.messages for cost in costs]), [one.messages for one in more])]
    pairs += [(by_rank([cost.nbytes for cost in costs]), [one.nbytes for one in more])]
    messages, nbytes = ([a + b for a, b in zip(*pair, strict=True)] for pair in pairs)
    busy = by_rank([cost.busy for cost in costs])
    return StepCost(
        messages=messages,
        nbytes=nbytes,
        peak_bytes={kind: by_rank([cost.peak_bytes[kind] for cost in costs]) for kind in kinds},
        busy=[own + machine.reduce(one.reduced) for own, one in zip(busy, more, strict=True)],
        seconds=None,
    )


def along_tensor(
    tensor: TensorPart,
    layout: Layout,
    replicas: Sequence[Replicas],
    sync: GradientSync,
    optimizer: Optimizer,
    batch: Batch,
    itemsize: int,
    rank: int,
    machine: Machine,
) -> Cost:
    """The messages of ``rank`` along the tensor axis, to the ranks with parts of its stage."""
    size, place = tensor.comm.size, rank % tensor.comm.size
    replica, stage = divmod(rank // size, layout.stages)
    last, cost = len(layout.parts) - 1, NOTHING
    for microbatch in layout.microbatches_of(batch, replica):
        shapes = layout.shapes_of(microbatch)
        for index, part in enumerate(layout.parts):
            if layout.stage_of(index) != stage:
                continue
            loss = tensor.losses[place] if index == last else None
            traffic = microbatch_traffic(part, loss, shapes[index], itemsize, index > 0)
            again = traffic.forward if layout.recompute else []
            cost += total(traffic.forward + again + traffic.backward, place, machine)

    named = layout.stage_models[stage].named_parameters()
    for names in summed_at_once(tensor, layout, stage):
        length = sum(named[name].size for name in names)
        cost += numbers(length, itemsize, place, size, machine)
    if any(isinstance(item, Reduce) and item.what == "norm" for item in layout.programs[stage]):
        cost += numbers(1, 8, place, size, machine)
    if optimizer.layerwise:
        for count in sync.parameters_stepped(replicas[stage]):
            cost += numbers(2 * count, 8, place, size, machine)
    return cost


def summed_at_once(tensor: TensorPart, layout: Layout, stage: int) -> list[list[str]]:
    """Names of parameters whose gradients the tensor axis sums in one all-reduce: lists of them."""
    names = list(layout.stage_models[stage].named_parameters())
    if layout.replicas == 1:
        groups = [names]
    else:
        slices = parameter_slices(layout.stage_models[stage])
        groups = [names_in(slices, chunk) for chunk in layout.chunks_of(stage)]
    found = [tensor.to_sum(group) for group in groups]
    return [group for group in found if group]
