"""Gossip: after each step, average with neighbours only. Nobody ever waits for everybody.

    ring          each rank averages with the two beside it:       w_r ← (w_(r-1) + w_r + w_(r+1))/3
    exponential   in step t with the one 2ᵗ further, t running      w_r ← (w_r + w_(r - 2ᵗ))/2
                  over 0 ... ⌈lg p⌉ - 1, and again

News travels a hop a step: across a ring of p ranks it needs p/2 steps, in the exponential graph
⌈lg p⌉ — after which, if p is a power of two, all would have the exact average. Both leave the mean
over ranks as it is (every rank gives and takes equally much), and pull the copies together.

With degree d (2 in a ring of 3 or more, 1 in the exponential graph), Ψ parameters of e bytes:

    messages a rank   d a step, whatever p: a ring all-reduce needs 2(p - 1)
    bytes a rank      dΨe a step
    time              d(α + Ψeβ + Ψeγ): no α grows with p, and a straggler delays its neighbours
    exact if          all ranks are neighbours: p ≤ 3 in a ring, p ≤ 2 in the exponential graph;
                      the optimizer linear in the gradient (SGD, momentum)

The loss, 8 bytes, is all-reduced for people to see, and that does wait for everybody. Lian et al.,
"Can decentralized algorithms outperform centralized algorithms?", arXiv 1705.09056, algorithm 1:
there neighbours are averaged before the step is added, here after, which makes the complete graph
equal to data parallelism. Exponential graphs: Assran et al., arXiv 1811.10792, section 3.
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

Graph = Callable[[int, int], list[int]]  # (step, ranks) → how far away those are to whom we send


def ring_graph(step: int, size: int) -> list[int]:
    """One to the right and one to the left, if these are two and not ourselves."""
    return [1, -1][: min(2, size - 1)]


def exponential_graph(step: int, size: int) -> list[int]:
    """One neighbour a step: 1, 2, 4, ... to the right in turn."""
    hops = (size - 1).bit_length()
    return [2 ** (step % hops)] if hops else []


GRAPHS: dict[str, Graph] = {"ring": ring_graph, "exponential": exponential_graph}


class Gossip(LocalSteps):
    """A local step, then the mean of oneself and the neighbours in ``graph``."""

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

    def meet(self, step: int) -> None:
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
        visit = Cost(1, n, machine.message(n) + machine.reduce(n), reduced=n)
        for _ in self.graph(step, series.size):
            series.add([visit] * series.size)
