"""All-reduce at the end: when the backward is over, every replica gets the sum of all gradients.

    AllReduce                ▇forward▇▇▇▇backward▇▇▇▇ ────all at once────    few latencies α
    AllReducePerParameter    ▇forward▇▇▇▇backward▇▇▇▇ ─w4─ ─w3─ ─w2─ ─w1─    one for each parameter

In data parallelism the loss is stored after the gradients and summed with them, so it needs no
separate message. In a pipeline the gradients of one chunk of a stage are complete while other
chunks still go backward: their all-reduce starts then, on the communication stream.

With p replicas, Ψ parameters of e bytes in k pieces (one element more for the loss) and a ring:

    messages a rank  2k(p - 1)
    bytes a rank     2(Ψ + 1)e(p - 1)/p
    time             2k(p - 1)α + 2(Ψ + 1)e(p - 1)/p·(β + γ/2), after the slowest backward
"""

from __future__ import annotations

import math

from minidist.collectives import all_reduce, all_reduce_cost
from minidist.collectives.algorithm import Choice
from minidist.collectives.cost import Cost
from minidist.collectives.series import Series
from minidist.comm.comm import Comm, Future
from minidist.comm.machine import Machine
from minidist.engine.array import Array, read
from minidist.parallel.gradient_sync import GradientSync, Replicas
from minidist.parallel.in_order import names_in
from minidist.parallel.model_costs import parameter_slices


class AllReduce(GradientSync):
    """One all-reduce of all gradients, by ``algorithm``."""

    changeable = frozenset({"algorithm"})
    all_at_end = False  # also in a pipeline

    def __init__(self, algorithm: Choice = "ring") -> None:
        self.algorithm = algorithm
        self.sending: list[Future] = []

    def ready(self, part: slice) -> None:
        assert self.comm is not None
        self.sending.append(self.comm.spawn(self.sum_on_stream, part))

    def sum_on_stream(self, stream: Comm, part: slice) -> None:
        with stream.step("sum over replicas"):
            self.sum(stream, part)

    def finish(self) -> float:
        assert self.comm is not None
        while self.sending:
            self.sending.pop(0).wait()
        if not self.sums_loss:
            return self.loss  # every part was ready before
        total = self.model.flat.grad_and_loss
        total[-1] = self.loss
        with self.comm.step("all-reduce"):
            self.sum(self.comm, slice(0, total.size))
        return float(read(total[-1], math.nan))

    def sum(self, comm: Comm, part: slice) -> None:
        """Sum ``part`` of the gradients (and of the loss stored after them) over the replicas."""
        for piece in self.pieces(self.model.flat.slices, part):
            self.all_reduce(comm, self.model.flat.grad_and_loss[piece])

    def all_reduce(self, comm: Comm, array: Array) -> None:
        all_reduce(comm, array, algorithm=self.algorithm)

    def pieces(self, slices: dict[str, slice], part: slice) -> list[slice]:
        """The slices to all-reduce one after the other, for ``part`` of the flat array."""
        return [part]

    # The formula

    def plan(self, of: Replicas, seconds: list[float], machine: Machine) -> Series:
        series, pieces = Series(machine, of.size), self.all_pieces(of)
        series.compute(seconds)
        if len(pieces) == 1:  # the slowest rank, the first, also starts the longest chunk
            series.together = True
        for piece in pieces:
            length = piece.stop - piece.start
            series.add(
                [self.all_reduce_cost(length, of, replica, machine) for replica in range(of.size)],
                even=self.algorithm == "ring" and length % of.size == 0,
                counted=of.sums_loss or self.all_at_end,  # else it overlaps with the backward
            )
        return series

    def all_pieces(self, of: Replicas) -> list[slice]:
        """All slices that are all-reduced in a step, with the loss if it is summed with them."""
        slices, parts = parameter_slices(of.model), of.all_pieces()
        if of.sums_loss:
            parts[-1] = slice(parts[-1].start, parts[-1].stop + 1)
        return [piece for part in parts for piece in self.pieces(slices, part)]

    def all_reduce_cost(self, length: int, of: Replicas, replica: int, machine: Machine) -> Cost:
        """What an all-reduce of ``length`` elements costs a replica."""
        return all_reduce_cost(
            length, of.itemsize, replica, of.size, machine, algorithm=self.algorithm
        )

    def rings(self, of: Replicas, part: slice) -> list[slice] | None:
        if self.algorithm != "ring":
            return None
        return self.pieces(parameter_slices(of.model), part)


class AllReducePerParameter(AllReduce):
    """Naive: one all-reduce for each parameter. Each pays its own latencies α."""

    def pieces(self, slices: dict[str, slice], part: slice) -> list[slice]:
        found = [slices[name] for name in names_in(slices, part)]
        if not found:
            return [part]
        found[-1] = slice(found[-1].start, part.stop)  # with the loss, if it is stored after it
        return found
