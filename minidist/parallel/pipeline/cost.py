"""The cost of a step of a pipeline: the costs of its parts, summed over its programs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.loss import Loss
from minidist.nn.module import Shape
from minidist.optim.optimizer import Optimizer
from minidist.parallel.gradient_sync import GradientSync, Replicas
from minidist.parallel.method import StepCost
from minidist.parallel.pipeline.instructions import (
    Backward,
    Compute,
    Forward,
    InputGradient,
    Reduce,
    Send,
    WeightGradient,
)
from minidist.parallel.pipeline.layout import Layout
from minidist.parallel.pipeline.stages import PartCost, part_cost
from minidist.parallel.pipeline.tally import Memory, Ring, Tally, tally
from minidist.parallel.shared_parameters import separate_count


def replicas_of(
    layout: Layout, stage: int, itemsize: int, optimizer: Optimizer, clips: bool
) -> Replicas:
    """The ranks that hold a stage, for the formulas of their ``GradientSync``."""
    return Replicas(
        layout.stage_models[stage],
        layout.replicas,
        itemsize,
        optimizer,
        clips,
        sums_loss=False,
        apart=layout.apart(stage),
        pieces=layout.chunks_of(stage),
        passes=layout.microbatches * (3 if layout.recompute else 2),
    )


def step_cost(
    layout: Layout,
    replicas: Sequence[Replicas],
    sync: GradientSync,
    counts: Tally,
    machine: Machine,
) -> StepCost:
    """A step's cost: the counts of the programs, and the memory of each stage's replicas.

    If ``sync`` does not sum by ring all-reduces, its own ``plan`` predicts its messages.
    """
    ranks = range(layout.stages * layout.replicas)
    messages, nbytes, busy = list(counts.messages), list(counts.nbytes), list(counts.busy)
    memory = [sync.memory(of) for of in replicas]
    if not rings_known(replicas, sync):
        plans = [sync.plan(of, [0.0] * of.size, machine) for of in replicas]
        for rank in ranks:
            plan, replica = plans[rank % layout.stages], rank // layout.stages
            messages[rank] += plan.messages[replica]
            nbytes[rank] += plan.nbytes[replica]
            busy[rank] += plan.busy[replica]

    def by_rank(kind: str) -> list[int]:
        return [memory[rank % layout.stages][kind][rank // layout.stages] for rank in ranks]

    separated = [
        separate_count(layout.stage_models[rank % layout.stages]) * replicas[0].itemsize
        for rank in ranks
    ]
    return StepCost(
        messages=messages,
        nbytes=nbytes,
        peak_bytes={
            "parameters": by_rank("parameters"),
            "gradients": [sum(pair) for pair in zip(by_rank("gradients"), separated, strict=True)],
            "optimizer": by_rank("optimizer"),
            "activations": counts.peak_saved,
        },
        busy=busy,
        seconds=None,
    )


def rings_known(replicas: Sequence[Replicas], sync: GradientSync) -> bool:
    """Whether ``sync`` sums all gradients by ring all-reduces."""
    parts = [(of, part) for of in replicas for part in of.pieces]
    return all(sync.rings(of, part) is not None for of, part in parts)


def tally_step(
    layout: Layout,
    replicas: Sequence[Replicas],
    sync: GradientSync,
    loss: Loss,
    batches: list[list[Batch]],
    machine: Machine,
) -> Tally:
    """Memory and messages of a step. ``batches``: the microbatches, by replica."""
    last, itemsize = len(layout.parts) - 1, replicas[0].itemsize
    known: dict[tuple[int, int], PartCost] = {}  # by length of the microbatch, and part
    inputs: dict[int, list[Shape]] = {}
    for batch in (batch for microbatches in batches for batch in microbatches):
        if len(batch) not in inputs:
            inputs[len(batch)] = layout.shapes_of(batch)
            for part, shape in enumerate(inputs[len(batch)]):
                known[len(batch), part] = part_cost(
                    layout.parts[part],
                    shape,
                    itemsize,
                    loss if part == last else None,
                    part == 0,
                    layout.recompute,
                )

    def length(rank: int, microbatch: int) -> int:
        return len(batches[rank // layout.stages][microbatch])

    def cost_of(rank: int, instruction: Compute) -> PartCost:
        part = layout.part(rank % layout.stages, instruction.chunk)
        return known[length(rank, instruction.microbatch), part]

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
        return int(np.prod(shape)) * itemsize

    def memory(rank: int, instruction: Compute) -> Memory:
        cost = cost_of(rank, instruction)
        whole = isinstance(instruction, (Forward, Backward))
        return cost.memory if whole else cost.split

    by_rings = rings_known(replicas, sync)

    def reduction(rank: int, instruction: Reduce) -> list[Ring]:
        stage = rank % layout.stages
        if instruction.what == "tied":
            named = layout.model.named_parameters()
            partners = layout.partners(rank)
            return [Ring(partners, named[name].size, itemsize) for name in layout.tied]
        if instruction.what == "norm":
            return [Ring(layout.pipe(rank), 1, 8)]
        group = layout.replicas_of(rank)
        if instruction.what == "loss":
            return [Ring(group, 1, 8)]
        if not by_rings:
            return []
        part = layout.chunk_range(stage, instruction.chunk)
        rings = sync.rings(replicas[stage], part) or []
        return [Ring(group, piece.stop - piece.start, itemsize) for piece in rings]

    return tally(
        layout.programs,
        machine,
        seconds=seconds,
        nbytes=nbytes,
        memory=memory,
        rings=reduction,
        replicas=layout.replicas,
    )
