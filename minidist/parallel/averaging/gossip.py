"""Gossip: after each step, every rank averages its parameters with its neighbours only.

    ring          rank r averages with its two neighbours      w_r ← (w_(r-1) + w_r + w_(r+1))/3
    exponential   in step t with the rank 2ᵗ below it          w_r ← (w_r + w_(r - 2ᵗ))/2
                  (t runs over 0 ... ⌈lg p⌉ - 1, repeatedly)

A change on one rank reaches all others after p/2 steps in a ring, after ⌈lg p⌉ in the exponential
graph. (There, if p is a power of two, ⌈lg p⌉ averages give the exact mean.) Both leave the mean
over ranks unchanged, because the weights that each rank gives and receives sum to 1; and both
reduce the differences between ranks.

With degree d (2 in a ring of 3 or more, 1 in the exponential graph), Ψ parameters of e bytes:

    messages a rank   d a step, for any p; a ring all-reduce needs 2(p - 1)
    bytes a rank      dΨe a step
    time              d(α + Ψeβ + Ψeγ): latency does not grow with p; a straggler delays only its
                      neighbours
    exact if          all ranks are neighbours (p ≤ 3 in a ring, p ≤ 2 in the exponential graph) and
                      the optimizer is linear in the gradient (SGD, momentum)

The loss that ``step`` returns is all-reduced (8 bytes); this does wait for all ranks. Lian et al.,
"Can decentralized algorithms outperform centralized algorithms?", arXiv 1705.09056, algorithm 1.
That algorithm averages before the step is added. Here it is after, so that the complete graph
equals data parallelism. Exponential graphs: Assran et al., arXiv 1811.10792, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

from minidist.collectives.cost import Cost
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.averaging.local_step import LocalSteps
from minidist.parallel.model_costs import parameter_count

Graph = Callable[[int, int], list[int]]  # (step, ranks) → distances to the ranks we send to


def ring_graph(step: int, size: int) -> list[int]:
    """The right and the left neighbour; with 2 ranks these are one rank, with 1 there is none."""
    return [1, -1][: min(2, size - 1)]


def exponential_graph(step: int, size: int) -> list[int]:
    """One neighbour in each step, at the distances 1, 2, 4, ... in turn."""
    hops = (size - 1).bit_length()
    return [2 ** (step % hops)] if hops else []


GRAPHS: dict[str, Graph] = {"ring": ring_graph, "exponential": exponential_graph}


class Gossip(LocalSteps):
    """A local step, then the mean of this rank's and its neighbours' parameters.

    ``graph``: "ring" or "exponential"; ValueError for another.
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        graph: str = "ring",
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        if graph not in GRAPHS:
            raise ValueError(f"unknown graph {graph!r}: choose one of {', '.join(GRAPHS)}")
        self.graph = GRAPHS[graph]

    def average_after(self, step: int) -> None:
        with self.comm.step("average"):
            self.average_with_neighbours(step)

    def average_with_neighbours(self, step: int) -> None:
        comm, flat = self.comm, self.model.flat
        mixed = flat.grad  # its memory is free until the next step
        mixed[...] = flat.data
        arrived = comm.scratch(flat.size, flat.data)
        distances = self.graph(step, comm.size)
        for distance in distances:
            to, source = (comm.rank + distance) % comm.size, (comm.rank - distance) % comm.size
            comm.sendrecv(flat.data, to, arrived, source)
            comm.combine("sum", mixed, arrived)
        flat.data[...] = mixed
        flat.data /= 1 + len(distances)
        flat.written()

    def plan(self, series: Series, step: int) -> None:
        n, machine = parameter_count(self.whole) * self.itemsize, series.machine
        exchange = Cost(1, n, machine.message(n) + machine.reduce(n), reduced=n)
        for _ in self.graph(step, series.size):
            series.add([exchange] * series.size)
