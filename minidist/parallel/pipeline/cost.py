"""What a step of a pipeline costs: the costs of its parts, given to the pricer of its programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.module import Shape
from minidist.parallel.pipeline.pricing import Memory, Ring, price
from minidist.parallel.pipeline.schedules import (
    Backward,
    Compute,
    Forward,
    InputGradient,
    Reduce,
    Send,
    WeightGradient,
)
from minidist.parallel.pipeline.stages import PartCost, part_cost
from minidist.parallel.pipeline.stopwatch import Price

if TYPE_CHECKING:
    from minidist.parallel.pipeline.pipeline import Pipeline


def price_step(method: Pipeline, batches: list[list[Batch]], machine: Machine) -> Price:
    """Time, memory and messages of a step, by copy of the pipeline and microbatch."""
    last = len(method.parts) - 1
    known: dict[tuple[int, int], list[PartCost]] = {}
    inputs: dict[int, list[Shape]] = {}
    for batch in (batch for copy in batches for batch in copy):
        if len(batch) not in inputs:
            inputs[len(batch)] = method.shapes_of(batch)
            for part, shape in enumerate(inputs[len(batch)]):
                loss = method.loss if part == last else None
                cost = part_cost(
                    method.parts[part], shape, method.itemsize, loss, part == 0, method.recompute
                )
                known[len(batch), part] = cost  # type: ignore[assignment]

    def length(rank: int, microbatch: int) -> int:
        return len(batches[rank // method.size][microbatch])

    def cost_of(rank: int, instruction: Compute) -> PartCost:
        part = method.schedule.part(rank % method.size, instruction.chunk, method.size)
        return known[length(rank, instruction.microbatch), part]  # type: ignore[return-value]

    def seconds(rank: int, instruction: Compute) -> float:
        cost = cost_of(rank, instruction)
        flops = {
            Forward: cost.forward,
            Backward: cost.input_gradient + cost.weight_gradient,
            InputGradient: cost.input_gradient,
            WeightGradient: cost.weight_gradient,
        }
        return machine.compute(flops[type(instruction)], rank)

    def nbytes(rank: int, send: Send) -> int:
        if send.what == "loss":
            return 8
        shape = inputs[length(rank, send.microbatch)][send.part]
        return int(np.prod(shape)) * method.itemsize

    def memory(rank: int, instruction: Compute) -> Memory:
        cost = cost_of(rank, instruction)
        mixed = isinstance(instruction, (Forward, Backward))
        return cost.memory if mixed else cost.split

    def reduction(rank: int, instruction: Reduce) -> Ring:
        stage, copy = rank % method.size, rank // method.size
        if instruction.what == "tied":
            group = [copy * method.size + other for other in method.tied_stages]
            named = method.whole.named_parameters()
            return Ring(group, sum(named[name].size for name in method.shared), method.itemsize)
        group = [other * method.size + stage for other in range(method.replicas)]
        if instruction.what == "loss":
            return Ring(group, 1, 8)
        start, stop = method.chunk_range(stage, instruction.chunk)
        return Ring(group, stop - start, method.itemsize)

    return price(
        method.programs,
        machine,
        seconds=seconds,
        nbytes=nbytes,
        memory=memory,
        ring=reduction,
        replicas=method.replicas,
    )
