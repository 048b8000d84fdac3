"""Messages, busy seconds and memory of a pipeline's programs, counted instruction by instruction.

A forward keeps activations and a backward frees them, so the peak follows from the order of a
rank's program. The duration of a step does not: ``parallel/simulation.py`` runs the method on
arrays that have only shapes, and ``pricing.py`` runs a schedule without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minidist.collectives import ring
from minidist.comm.machine import Machine
from minidist.parallel.pipeline.instructions import (
    COMPUTE,
    Backward,
    Compute,
    Forward,
    InputGradient,
    Instruction,
    Reduce,
    Send,
    WeightGradient,
)


@dataclass(frozen=True)
class Memory:
    """Bytes that a microbatch keeps on a stage."""

    saved: int  # from its Forward to its Backward
    backward: int = 0  # the peak during its Backward
    deferred: int = 0  # from its InputGradient to its WeightGradient


@dataclass(frozen=True)
class Ring:
    """A ring all-reduce of ``length`` elements over the ranks of ``group``, in this order."""

    group: list[int]
    length: int
    itemsize: int


@dataclass
class Tally:
    """By rank: messages and bytes sent, busy seconds, peak bytes of activations."""

    messages: list[int]
    nbytes: list[int]
    busy: list[float]
    peak_saved: list[int]


def tally(
    programs: Sequence[Sequence[Instruction]],
    machine: Machine,
    seconds: Callable[[int, Compute], float],
    nbytes: Callable[[int, Send], int],
    memory: Callable[[int, Compute], Memory],
    rings: Callable[[int, Reduce], Sequence[Ring]],
    replicas: int = 1,
) -> Tally:
    """The counts of ``replicas`` pipelines with these programs, by rank.

    Rank r is stage r % p of replica r // p. Four functions give, for a rank: ``seconds`` of a
    computation, ``nbytes`` of a message, ``memory`` of a microbatch, and the ``rings`` of a
    reduction. Sums over replicas run on the communication stream, so they are not busy seconds.
    """
    ranks = range(len(programs) * replicas)
    found = Tally([0 for _ in ranks], [0 for _ in ranks], [0.0 for _ in ranks], [])
    for rank in ranks:
        instructions = programs[rank % len(programs)]
        found.peak_saved.append(peak_saved(instructions, lambda item, r=rank: memory(r, item)))  # type: ignore[misc]
        for item in instructions:
            if isinstance(item, Send):
                found.messages[rank] += 1
                found.nbytes[rank] += nbytes(rank, item)
            elif isinstance(item, COMPUTE):
                found.busy[rank] += seconds(rank, item)
            elif isinstance(item, Reduce):
                for one in rings(rank, item):
                    place, size = one.group.index(rank), len(one.group)
                    cost = ring.all_reduce_cost(one.length, one.itemsize, place, size, machine)
                    found.messages[rank] += cost.messages
                    found.nbytes[rank] += cost.nbytes
                    if item.what != "replicas":
                        found.busy[rank] += machine.reduce(cost.reduced)
    return found


def peak_saved(instructions: Sequence[Instruction], memory: Callable[[Compute], Memory]) -> int:
    """The peak of the activations that a rank keeps while it runs its program."""
    kept = peak = 0
    for item in instructions:
        if not isinstance(item, COMPUTE):
            continue
        cost, highest = memory(item), kept
        match item:
            case Forward():
                kept += cost.saved
                highest = kept
            case Backward():
                highest = kept - cost.saved + cost.backward
                kept -= cost.saved
            case InputGradient():
                highest = kept - cost.saved + cost.backward
                kept += cost.deferred - cost.saved
            case WeightGradient():
                kept -= cost.deferred
        peak = max(peak, highest)
    return peak
