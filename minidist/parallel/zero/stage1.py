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
serial shapes, so any number of ranks can load what another has saved: see parallel/resume.py.
Stage 1 is here, stages 2 and 3 are in stage2.py and stage3.py. Rajbhandari et al., "ZeRO", arXiv
1910.02054, sections 5 and 7 (P_os, P_os+g, P_os+g+p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minidist.collectives import ring
from minidist.collectives.clocks import Clocks
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.clip import global_norm
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.data_parallel import shape_of
from minidist.parallel.method import (
    Method,
    StepCost,
    parameter_count,
    saved_bytes,
    training_flops,
)
from minidist.parallel.resume import Held, Resumable


class Zero1(Resumable, Method):
    """Stage 1: each rank keeps the optimizer's state for its part alone."""

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        self.clip = clip
        self.build()

    def build(self) -> None:
        self.model = self.whole.init(self.seed)
        self.shards = ring.chunks(self.model.flat.size, self.comm.size)
        self.own = self.shards[self.comm.rank]
        self.optimizer.bind(self.model.flat.slices, start=self.own.start, reduce=self.sum)

    def step(self, batch: Batch) -> float:
        flat = self.model.flat
        self.model.zero_grad()
        loss = self.forward_backward(batch.shard(self.comm.rank, self.comm.size))
        ring.reduce_scatter(self.comm, flat.grad, parts=self.shards)
        loss = self.sum(np.array([loss]))
        self.clip_shards([flat.grad[self.own]])
        with self.comm.step("optimizer"):
            self.optimizer.step(flat.data[self.own], flat.grad[self.own])
        ring.all_gather(self.comm, flat.data, self.shards)
        return loss

    def sum(self, numbers: np.ndarray) -> float:
        """Sum a few numbers over all ranks, in place; the first of them."""
        ring.all_reduce(self.comm, numbers)
        return float(numbers.flat[0])

    def clip_shards(self, grads: list[Array]) -> None:
        """Scale by the norm of the whole gradient, of which each rank holds parts."""
        if self.clip is None:
            return
        norm = math.sqrt(self.sum(np.array([sum(float(global_norm(grad)) ** 2 for grad in grads)])))
        if norm > self.clip:
            for grad in grads:
                grad *= self.clip / norm

    def held(self) -> list[Held]:
        flat, named = self.model.flat, self.model.named_parameters()
        return [Held(named, flat.slices, self.optimizer, flat.data[self.own], self.shards)]

    # The formula

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Forward and backward, reduce-scatter, the loss, all-gather; nothing overlaps."""
        ranks, psi = range(self.comm.size), parameter_count(self.whole)
        clocks = Clocks(machine, self.comm.size)
        clocks.compute(
            [
                machine.compute(sum(training_flops(self.whole, self.shape(batch, rank))), rank)
                for rank in ranks
            ]
        )
        clocks.reduce_scatter(self.shards, self.itemsize)
        self.sum_numbers(clocks, [len(self.model.flat.slices)])
        clocks.all_gather(self.shards, self.itemsize)
        n = psi * self.itemsize
        return StepCost(
            messages=clocks.messages,
            nbytes=clocks.nbytes,
            peak_bytes={
                "parameters": [n for _ in ranks],
                "gradients": [n for _ in ranks],
                "optimizer": self.optimizer_bytes([self.shards]),
                "activations": self.activation_bytes(batch),
            },
            busy=clocks.busy,
            seconds=max(clocks.now),
        )

    def sum_numbers(self, clocks: Clocks, parameters: list[int]) -> None:
        """The all-reduces of a few float64: the loss, and what clipping and layer norms need."""
        clocks.all_reduce(1, 8)
        if self.clip is not None:
            clocks.all_reduce(1, 8)
        if self.optimizer.layerwise:
            for count in parameters:
                clocks.all_reduce(2 * count, 8)

    def optimizer_bytes(self, shards: list[Sequence[slice]]) -> list[int]:
        slots = len(self.optimizer.slots) * self.itemsize
        return [slots * held for held in held_by_rank(shards)]

    def activation_bytes(self, batch: Batch) -> list[int]:
        return [
            saved_bytes(self.whole, self.shape(batch, rank), self.itemsize, self.loss)
            for rank in range(self.comm.size)
        ]

    def shape(self, batch: Batch, rank: int) -> tuple[int, ...]:
        return shape_of(batch.shard(rank, self.comm.size))


def held_by_rank(shards: list[Sequence[slice]]) -> list[int]:
    """How many elements each rank owns, of all units together."""
    return [
        sum(part.stop - part.start for part in by_unit) for by_unit in zip(*shards, strict=True)
    ]
