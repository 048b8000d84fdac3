"""The time of ZeRO's stages 2 and 3: a step replayed on two clocks a rank.

One clock is for computing, the other for the communication stream. A unit's reduce-scatter starts
when its block is through; a block goes backward when the slot of its gradients is free.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.collectives import ring
from minidist.collectives.clocks import Clocks
from minidist.comm.machine import Machine
from minidist.nn.module import Module, Shape
from minidist.parallel.blocks import blocks_of, costs_of
from minidist.parallel.gradient_sync import Replicas, Work
from minidist.parallel.model_costs import wants_gradient
from minidist.parallel.shared_parameters import shared_by_blocks
from minidist.parallel.zero.units import cut_blocks, extent, shared_slices


class Gathering:
    """When parameters arrive. Here: they are there already (stage 2)."""

    def begin(self, main: Clocks, stream: Clocks) -> None:
        """A forward begins."""

    def before_block(self, main: Clocks, stream: Clocks, index: int, following: int) -> None:
        """The block of unit ``index`` is about to compute, and that of ``following`` after it."""


def plan_slots(
    of: Replicas, work: Work, machine: Machine, gathering: Gathering
) -> tuple[Clocks, Clocks]:
    """The clocks of all ranks, computing and stream, when all gradients are at their owners."""
    main, stream = Clocks(machine, of.size), Clocks(machine, of.size)
    blocks = [block_seconds(of.model, shape, machine, r) for r, shape in enumerate(work.shapes)]
    units, unit_of = cut_blocks(of.model, shared_by_blocks(of.model))
    shards = [ring.chunks(extent(unit), of.size) for unit in units]
    reduced: dict[int, list[float]] = {}  # when each unit's reduce-scatter is over

    def reduce(parts: Sequence[slice]) -> list[float]:
        stream.wait_for(main.now)
        stream.reduce_scatter(parts, of.itemsize)
        return list(stream.now)

    gathering.begin(main, stream)
    for number in range(len(blocks_of(of.model))):
        if number in unit_of:
            gathering.before_block(main, stream, unit_of[number], unit_of[number] + 1)
        main.compute([forward[number] for forward, _ in blocks])
    for number in reversed(range(len(blocks_of(of.model)))):
        index = unit_of.get(number)
        if index is not None:
            if index + 1 < len(units):
                reduced[index + 1] = reduce(shards[index + 1])
            if index + 2 < len(units):
                main.wait_for(reduced[index + 2])
            gathering.before_block(main, stream, index, index - 1)
        main.compute([backward[number] for _, backward in blocks])
    for parts in [*shards[:1], *(ring.chunks(extent(u), of.size) for u in shared_slices(of.model))]:
        reduce(parts)
    main.wait_for(stream.now)
    return main, stream


def added(main: Clocks, stream: Clocks) -> Clocks:
    """Both clocks' messages and bytes; the time and the computing of ``main``."""
    main.messages = [sum(pair) for pair in zip(main.messages, stream.messages, strict=True)]
    main.nbytes = [sum(pair) for pair in zip(main.nbytes, stream.nbytes, strict=True)]
    return main


def block_seconds(
    model: Module, shape: Shape, machine: Machine, rank: int
) -> tuple[list[float], list[float]]:
    """Seconds of each block's forward and backward on ``rank``, on an input of ``shape``."""
    forward, backward, input_grad = [], [], False
    for block, cost in zip(blocks_of(model).values(), costs_of(model, shape), strict=True):
        flops = cost.weight_flops + (cost.input_flops if input_grad else 0)
        forward.append(machine.compute(cost.flops, rank))
        backward.append(machine.compute(flops, rank))
        input_grad = input_grad or wants_gradient(block)
    return forward, backward
