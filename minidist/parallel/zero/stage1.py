"""ZeRO: data parallelism whose ranks keep shards in place of replicas.

In data parallelism p ranks keep p equal copies of parameters, gradients and optimizer state. In
ZeRO each rank *owns* 1/p of the parameters, and keeps some of these arrays only for its own part.
The stages differ in which. For 3 ranks (█ kept whole, ▏ the rank's third):

               parameters   gradients    optimizer state
    data parallel   ███        ███           ███  ███
    stage 1         ███        ███            ▏    ▏
    stage 2         ███         ▏             ▏    ▏
    stage 3          ▏          ▏             ▏    ▏

    stage 1   After the backward, reduce-scatter all gradients: each rank has the sum of its part,
              and steps the optimizer on it. Then all-gather the parameters. A ring all-reduce has
              the same two halves, so nothing more is sent.
    stage 2   The same, block by block while the backward runs. A block's gradients are sent to
              their owners when they are complete; then their memory is used again, for the
              gradients of the next block but one.
    stage 3   Parameters are kept as shards too. A block is gathered before its forward, and again
              before its backward, while another block computes (prefetch). Blocks alternate between
              two slots of memory, so that one can be computed while another is received. The tape
              refers to memory in these slots, so the backward gathers a block into the same slot as
              the forward did.

With Ψ parameters of e bytes, K state arrays of the optimizer, and B parameters in the largest
block:

                         stage 1       stage 2          stage 3
    bytes a rank sends   2Ψe(p - 1)/p  2Ψe(p - 1)/p     3Ψe(p - 1)/p    (data parallel: 2)
    parameters           Ψe            Ψe               Ψe/p + 2Be
    gradients            Ψe            Ψe/p + 2Be       Ψe/p + 2Be
    optimizer            KΨe/p         KΨe/p            KΨe/p

Besides, the loss takes an all-reduce of 8 bytes, and so does the norm if it is clipped.

A parameter that several blocks share (tied embeddings) belongs to no single block: it is gathered
once a step and kept until the step ends.

Optimizers step slices, so all of them can be used: see optim/optimizer.py. ``state()`` has the
shapes of serial training, so it can be loaded on another number of ranks: see parallel/state.py.
Stage 1 is here, stages 2 and 3 are in stage2.py and stage3.py; a pipeline's replicas can use stages
1 and 2 as well. Rajbhandari et al., "ZeRO", arXiv 1910.02054, sections 5 and 7 (P_os, P_os+g,
P_os+g+p).
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
    """Base of the parts that give each replica the summed gradient of its shard of every unit.

    A subclass makes ``units``, and reduce-scatters their gradients.
    """

    sharded = True
    units: list[Unit]

    def sum_numbers(self, numbers: np.ndarray) -> float:
        """Sum a few numbers over the replicas, in place; returns the first of them."""
        assert self.comm is not None
        ring.all_reduce(self.comm, numbers)
        return float(numbers.flat[0])

    def update(self, limit: float | None = None) -> None:
        """Clip, step the optimizer on this rank's shards, and all-gather the parameters."""
        assert self.comm is not None
        self.clip(limit)
        self.step_shards()
        for unit in self.units:
            ring.all_gather(self.comm, unit.data, unit.shards)
            written(unit.data)

    def clip(self, limit: float | None) -> None:
        """Scale the shards so that the whole gradient's norm is at most ``limit``."""
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
        """For each unit the slices of its parameters, for any replicas."""
        return [parameter_slices(of.model)]

    def parameters_stepped(self, of: Replicas) -> list[int]:
        return [len(unit) for unit in self.unit_slices(of)]

    def plan_update(self, series: Series, of: Replicas, units: list[Slices]) -> None:
        """Add to ``series``: the sums of loss and norms, and the all-gathers of parameters."""
        plan_numbers(series, of, [len(unit) for unit in units])
        for unit in units:
            series.all_gather(extent(unit), of.itemsize)

    def memory(self, of: Replicas) -> dict[str, list[int]]:
        slots = len(of.optimizer.slots) * of.itemsize
        owned = owned_by_rank([extent(unit) for unit in self.unit_slices(of)], of.size)
        return super().memory(of) | {"optimizer": [slots * own for own in owned]}


def plan_numbers(series: Series, of: Replicas, parameters: list[int]) -> None:
    """Add the all-reduces of float64: the loss, and norms for clipping and layer-wise rules."""
    if of.sums_loss:
        series.all_reduce(1, 8)
    if of.clips:
        series.all_reduce(1, 8)
    if of.optimizer.layerwise:
        for count in parameters:
            series.all_reduce(2 * count, 8)


class OverlappedShards(Sharded):
    """Base of stage 2: reduce-scatters units on the communication stream, and waits for them."""

    def reduce(self, unit: Unit) -> None:
        """Start to reduce-scatter the unit's gradients."""
        assert self.comm is not None
        unit.accumulating = False
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

    def plan_overlapped(self, of: Replicas, seconds: list[float], machine: Machine) -> Series:
        """A reduce-scatter for each unit, while the ranks compute; then the update."""
        stream, units = Series(machine, of.size), self.unit_slices(of)
        for unit in units:
            stream.reduce_scatter(extent(unit), of.itemsize)
        stream.busy = list(seconds)  # the reductions overlap with these
        stream.seconds = None  # how much is overlapped: only the simulation knows
        self.plan_update(stream, of, units)
        return stream


class ReduceScatter(Sharded):
    """ZeRO stage 1: one reduce-scatter of all gradients at the end; each rank steps its shard."""

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
        """Forward and backward, reduce-scatter, loss, all-gather; nothing overlaps."""
        series = Series(machine, of.size)
        series.compute(seconds)
        series.reduce_scatter(parameter_count(of.model), of.itemsize)
        self.plan_update(series, of, self.unit_slices(of))
        return series


class Zero1(DataParallel):
    """Stage 1: each rank keeps the optimizer's state of its own shard only."""

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
