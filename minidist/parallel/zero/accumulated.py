"""ZeRO stage 2 for gradients that accumulate over microbatches, as in a pipeline.

    last backward of block   4    3    2    1
    stream                     ─g4─  ─g3─  ─g2─  ─g1─     each a reduce-scatter

Gradients of several backwards are added before they are sent, so all gradients need memory: the
model's flat array. Memory is saved on the optimizer's state only, as in stage 1. The advantage over
stage 1 is that messages are sent while the last backward runs. With one backward in a step,
stage2.py needs less memory.
"""

from __future__ import annotations

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.machine import Machine
from minidist.parallel.gradient_sync import Replicas
from minidist.parallel.in_order import SentInOrder, names_in
from minidist.parallel.model_costs import parameter_slices
from minidist.parallel.zero.stage1 import OverlappedShards
from minidist.parallel.zero.units import Slices, Unit, cut_flat, extent, in_a_row


class ReduceScatterUnits(SentInOrder, OverlappedShards):
    """ZeRO stage 2 for gradients that accumulate in the flat array, such as a pipeline's."""

    def allocate(self, seed: int) -> None:
        assert self.comm is not None
        flat, named = self.model.init(seed).flat, self.model.trained()
        self.units = []
        for run in cut_flat(flat.slices, self.model, self.apart):
            first = next(iter(run.values())).start
            part = slice(first, first + extent(run))
            slices = in_a_row({name: named[name] for name in run})
            shards = ring.chunks(extent(run), self.comm.size)
            own = shards[self.comm.rank]
            rule = self.optimizer.part(slices, own.start, self.sum_numbers)
            data, buffer = flat.data[part], flat.grad[part]
            parameters = {name: named[name] for name in run}
            self.units.append(
                Unit(parameters, slices, shards, own, rule, data[own], buffer[own], data, buffer)
            )
        self.watch([unit.slices for unit in self.units])

    def ready(self, part: slice) -> None:
        self.launch(set(names_in(self.model.flat.slices, part)) - self.apart)

    def send(self, index: int) -> None:
        self.reduce(self.units[index])

    def unit_slices(self, of: Replicas) -> list[Slices]:
        return cut_flat(parameter_slices(of.model), of.model, of.apart)

    def plan(self, of: Replicas, seconds: list[float], machine: Machine) -> Series:
        """A reduce-scatter for each unit, while the ranks compute; then the update."""
        return self.plan_overlapped(of, seconds, machine)
