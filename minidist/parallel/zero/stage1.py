"""ZeRO: data parallelism without redundancy. Why should p ranks hold p copies of the same?

Each rank *owns* 1/p of the parameters. What does not have to be everywhere is kept by its owner
alone; the stages differ in how far that goes. For 3 ranks (█ held by everybody, ▏ its own third):

               parameters   gradients    optimizer state
    data parallel   ███        ███           ███  ███
    stage 1         ███        ███            ▏    ▏
    stage 2         ███         ▏             ▏    ▏
    stage 3          ▏          ▏             ▏    ▏

    stage 1   backward; reduce-scatter all gradients: each owner has the sum of its part, steps the
              optimizer there; all-gather the parameters. An all-reduce is these two halves anyway.
    stage 2   the same, block by block while the backward runs: when a block's gradients are
              complete they go to their owners, and their memory takes the gradients of the next
              block but one.
    stage 3   parameters too live with their owners. A block is gathered before it is used, in the
              forward and again in the backward, while the block before it computes (prefetch), and
              forgotten after. Two slots of memory take turns, so that one block can be computed
              while another arrives. The tape remembers places in those slots: before a block's
              backward, the same numbers are gathered into the same place again.

With Ψ parameters of e bytes, K state arrays of the optimizer, and B the largest block:

                         stage 1       stage 2          stage 3
    bytes a rank sends   2Ψe(p - 1)/p  2Ψe(p - 1)/p     3Ψe(p - 1)/p    (data parallel: 2)
    parameters           Ψe            Ψe               Ψe/p + 2Be
    gradients            Ψe            Ψe/p + 2Be       Ψe/p + 2Be
    optimizer            KΨe/p         KΨe/p            KΨe/p

Beside these, an all-reduce of 8 bytes for the loss, and one for the norm if it is clipped.

A parameter that several blocks share (tied embeddings) cannot come and go with one block: those
are gathered once a step and stay until its end.

The optimizer works on slices, so any of them can be used: see optim/optimizer.py. ``state()`` has
serial shapes, so any number of ranks can load what another has saved: see parallel/state.py.
Stage 1 is here, stages 2 and 3 are in stage2.py and stage3.py. Stages 1 and 2 are parts that a
pipeline's replicas take as well: see parallel/gradient_sync.py. Rajbhandari et al., "ZeRO", arXiv
1910.02054, sections 5 and 7 (P_os, P_os+g, P_os+g+p).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial

import numpy as np

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.versions import written
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.clip import norm_of
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.data_parallel import DataParallel
from minidist.parallel.gradient_sync import GradientSync, Replicas
from minidist.parallel.model_costs import parameter_count, parameter_slices
from minidist.parallel.state import OptimizerShard
from minidist.parallel.zero.units import Slices, Unit, counted_parts, extent, owned_by_rank


class Sharded(GradientSync):
    """Base of the parts that leave each replica the sum of its shard of every unit.

    A subclass makes ``units``, and sums their gradients at their owners.
    """

    sharded = True
    units: list[Unit]

    def sum_numbers(self, numbers: np.ndarray) -> float:
        """Sum a few numbers over the replicas, in place; the first of them."""
        assert self.comm is not None
        ring.all_reduce(self.comm, numbers)
        return float(numbers.flat[0])

    def update(self, limit: float | None = None) -> None:
        """Clip, step the optimizer on the own shards, and gather everybody's parameters."""
        assert self.comm is not None
        self.clip(limit)
        self.step_shards()
        for unit in self.units:
            ring.all_gather(self.comm, unit.data, unit.shards)
            written(unit.data)

    def clip(self, limit: float | None) -> None:
        """Scale by the norm of the whole gradient, of which each rank has parts."""
        if limit is None:
            return
        norm = math.sqrt(self.squared_norm())
        if norm > limit:
            self.scale(limit / norm)

    def step_shards(self) -> None:
        assert self.comm is not None
        with self.comm.step("optimizer"):
            self.optimizer.step_parts([(unit.part, unit.shard, unit.grad) for unit in self.units])

    def squared_norm(self, without: Collection[str] = ()) -> float:
        square = 0.0
        for unit in self.units:
            for part in counted_parts(unit, without):
                square += norm_of(unit.grad[part]) ** 2
        return self.sum_numbers(np.array([square]))

    def scale(self, factor: float) -> None:
        for unit in self.units:
            unit.grad *= factor

    def optimizer_shards(self) -> list[OptimizerShard]:
        return [unit.optimizer_shard(self.optimizer) for unit in self.units]

    # The formulas

    def unit_slices(self, of: Replicas) -> list[Slices]:
        """Where each unit's parameters lie, of any replicas."""
        return [parameter_slices(of.model)]

    def parameters_stepped(self, of: Replicas) -> list[int]:
        return [len(unit) for unit in self.unit_slices(of)]

    def plan_update(self, series: Series, of: Replicas, units: list[Slices]) -> None:
        """The loss, the norms, and the gathering of the parameters."""
        plan_numbers(series, of, [len(unit) for unit in units])
        for unit in units:
            series.all_gather(extent(unit), of.itemsize)

    def memory(self, of: Replicas) -> dict[str, list[int]]:
        slots = len(of.optimizer.slots) * of.itemsize
        owned = owned_by_rank([extent(unit) for unit in self.unit_slices(of)], of.size)
        return super().memory(of) | {"optimizer": [slots * own for own in owned]}


def plan_numbers(series: Series, of: Replicas, parameters: list[int]) -> None:
    """The all-reduces of a few float64: the loss, and what clipping and layer norms need."""
    if of.sums_loss:
        series.all_reduce(1, 8)
    if of.clips:
        series.all_reduce(1, 8)
    if of.optimizer.layerwise:
        for count in parameters:
            series.all_reduce(2 * count, 8)


class OverlappedShards(Sharded):
    """What both parts share: sending units on the stream, and waiting for them."""

    def reduce(self, unit: Unit) -> None:
        """Start to sum the unit's gradients at their owners."""
        assert self.comm is not None
        unit.growing = False
        unit.reducing = self.comm.spawn(partial(self.reduce_scatter, unit))

    def reduce_scatter(self, unit: Unit, stream: Comm) -> None:
        ring.reduce_scatter(stream, unit.buffer, parts=unit.shards)
        unit.grad[...] = unit.buffer[unit.own]

    def wait_for_gradients(self, unit: Unit) -> None:
        if unit.reducing is not None:
            unit.reducing.wait()
            unit.reducing = None

    def finish(self) -> float:
        assert self.comm is not None
        with self.comm.step("wait for gradients"):
            for unit in self.units:
                self.wait_for_gradients(unit)
        return self.sum_numbers(np.array([self.loss])) if self.sums_loss else self.loss


class ReduceScatter(Sharded):
    """ZeRO, stage 1: one reduce-scatter of all gradients at the end; each steps its shard."""

    whole_array = True

    def allocate(self, seed: int) -> None:
        assert self.comm is not None
        flat = self.model.init(seed).flat
        shards = ring.chunks(flat.size, self.comm.size)
        own = shards[self.comm.rank]
        part = self.optimizer.part(flat.slices, own.start, self.sum_numbers)
        named = self.model.trained()
        shard, grad = flat.data[own], flat.grad[own]
        self.units = [
            Unit(named, flat.slices, shards, own, part, shard, grad, flat.data, flat.grad)
        ]

    def finish(self) -> float:
        assert self.comm is not None
        (unit,) = self.units
        ring.reduce_scatter(self.comm, unit.buffer, parts=unit.shards)
        return self.sum_numbers(np.array([self.loss])) if self.sums_loss else self.loss

    def plan(self, of: Replicas, seconds: list[float], machine: Machine) -> Series:
        """Forward and backward, reduce-scatter, the loss, all-gather; nothing overlaps."""
        series = Series(machine, of.size)
        series.compute(seconds)
        series.reduce_scatter(parameter_count(of.model), of.itemsize)
        self.plan_update(series, of, self.unit_slices(of))
        return series


class Zero1(DataParallel):
    """Stage 1: each rank keeps the optimizer's state for its part alone."""

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        clip: float | None = None,
        microbatches: int = 1,
    ) -> None:
        super().__init__(
            model,
            loss,
            optimizer,
            comm,
            seed,
            microbatches=microbatches,
            clip=clip,
            sync=ReduceScatter(),
        )
