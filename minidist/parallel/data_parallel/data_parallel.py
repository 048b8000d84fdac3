"""Data parallelism: every rank holds the whole model and works on its part of the batch.

    rank 0   shard 0 → forward, backward → gradient 0 ╮
    rank 1   shard 1 → forward, backward → gradient 1 ├ all-reduce: every rank has the sum
    rank 2   shard 2 → forward, backward → gradient 2 ╯ → the same optimizer step everywhere

The loss of a shard is divided by the number of targets of the *global* batch. So the sum over ranks
is exactly the gradient of the global mean, for shards of any lengths. (The average of the averages
of uneven shards would not be.) All ranks start from the same seed and make the same optimizer step,
so the replicas stay equal.

The gradients are summed by ``sync``, a ``GradientSync`` (``gradient_sync.py`` lists them). The
classes here use three of them, which send at different times:

    PerParameter   ▇forward▇▇▇▇backward▇▇▇▇ ─w4─ ─w3─ ─w2─ ─w1─    pays many latencies α
    DataParallel   ▇forward▇▇▇▇backward▇▇▇▇ ────all at once────    few α, nothing is overlapped
    Overlapped     ▇forward▇▇▇▇backward▇▇▇▇ ─w1─                   waits for the last bucket only
                                 ─w4,w3──w2─

With p ranks, Ψ parameters of e bytes (one element more, for the loss) in k arrays or buckets, and
rings; T_f and T_b are a rank's forward and backward:

    messages a rank  2(p - 1), times k if sent in k pieces
    bytes a rank     about 2(Ψ + 1)e(p - 1)/p, in all three
    memory a rank    as serial, but 1/p of the activations
    time             T_f + T_b + T_ring,  T_ring = 2(p - 1)kα + 2(Ψ + 1)e(p - 1)/p·(β + γ/2);
                     overlapped: see ``buckets.py``

With ``microbatches`` a shard is computed in parts, whose gradients are added before anything is
sent: m microbatches need 1/m of the memory for activations, and send the same bytes. Li et al.,
"PyTorch Distributed", arXiv 2006.15704, sections 3.2 and 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from minidist.collectives.algorithm import Choice
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.all_reduce import AllReduce, AllReducePerParameter
from minidist.parallel.data_parallel.buckets import Buckets
from minidist.parallel.gradient_sync import Replicas, Sync, make_sync
from minidist.parallel.method import Method, StepCost
from minidist.parallel.model_costs import largest_saved, training_seconds
from minidist.parallel.shares import Share
from minidist.parallel.state import OptimizerShard, State


class DataParallel(Method):
    """Sums gradients by ``sync``; by default one all-reduce by ``algorithm``."""

    changeable = Method.changeable | {"microbatches"}

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        algorithm: Choice | None = None,
        microbatches: int = 1,
        clip: float | None = None,
        sync: Sync | None = None,
    ) -> None:
        """``algorithm``: of the all-reduce; "ring" if neither it nor ``sync`` is given.

        Raises ValueError if both are given.
        """
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        if algorithm is not None and sync is not None:
            raise ValueError(
                f"{type(self).__name__}: algorithm={algorithm!r} belongs to the all-reduce that "
                "sync replaces: pass one of the two, such as sync=AllReduce(algorithm)"
            )
        self.sync = make_sync(AllReduce(algorithm or "ring") if sync is None else sync)
        self.model = model
        self.sync.bind(model, optimizer, comm, seed, clips=clip is not None)

    def train_on(self, batch: Batch) -> float:
        sync = self.sync
        sync.begin(self.steps)
        *earlier, last = self.parts(batch, self.comm.rank)
        loss = 0.0
        for part in earlier:
            loss += self.forward_backward(part)  # nothing is sent yet: more will be added
        self.forward_backward(last, before_backward=lambda own: sync.last_backward(loss + own))
        total = sync.finish()
        sync.update(self.clip)
        return total

    @property
    def replicas(self) -> Replicas:
        """What the formulas of ``sync`` need to know, with the current settings."""
        return replace(self.sync.replicas, passes=2 * self.microbatches)

    def changed(self, name: str) -> None:
        self.sync.clips(self.clip is not None)

    def forward(self, inputs: Array) -> Tensor:
        return self.sync.forward(inputs)

    def parts(self, batch: Batch, rank: int) -> list[Batch]:
        """The microbatches of ``rank``."""
        return batch.shard(rank, self.comm.size).microbatches(self.microbatches)

    def replicated(self) -> dict[str, Array]:
        return {name: one.data for name, one in self.model.named_parameters().items()}

    def parameters(self) -> dict[str, np.ndarray]:
        return self.sync.parameters()

    def load_parameters(self, by_name: State) -> None:
        self.sync.load_parameters(by_name)

    def arrays(self) -> dict[str, list[Array]]:
        return self.sync.arrays()

    def optimizer_shards(self) -> list[OptimizerShard]:
        return self.sync.optimizer_shards()

    def state_shares(self) -> list[Share]:
        return self.own_shares()

    def own_arrays(self) -> dict[str, Array]:
        return self.sync.own_arrays()

    @property
    def itemsize(self) -> int:
        return self.sync.itemsize

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formulas of ``sync``, after each rank's forward and backward."""
        parts = [self.parts(batch, rank) for rank in range(self.comm.size)]
        seconds = [self.computing(own, machine, rank) for rank, own in enumerate(parts)]
        plan = self.sync.plan(self.replicas, seconds, machine)
        activations = [self.activations(own) for own in parts]
        return StepCost(
            messages=plan.messages,
            nbytes=plan.nbytes,
            peak_bytes=self.sync.memory(self.replicas) | {"activations": activations},
            busy=plan.busy,
            seconds=plan.seconds,
        )

    def computing(self, parts: Sequence[Batch], machine: Machine, rank: int) -> float:
        """Seconds of a rank's forward and backward on its microbatches."""
        return training_seconds(self.whole, parts, machine, rank)

    def activations(self, parts: Sequence[Batch]) -> int:
        """Peak bytes of activations of a rank with these microbatches."""
        return largest_saved(self.whole, parts, self.itemsize, self.loss)


class PerParameter(DataParallel):
    """Naive: one all-reduce for each parameter, after the backward. Each pays latencies α."""

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        algorithm: Choice = "ring",
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        sync = AllReducePerParameter(algorithm)
        super().__init__(
            model, loss, optimizer, comm, seed, microbatches=microbatches, clip=clip, sync=sync
        )


class Overlapped(DataParallel):
    """Buckets, each all-reduced while the backward computes the gradients of the next."""

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        bucket_mb: float = 25.0,
        last_mb: float = 1.0,
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        sync = Buckets(bucket_mb, last_mb)
        super().__init__(
            model, loss, optimizer, comm, seed, microbatches=microbatches, clip=clip, sync=sync
        )
