"""Data parallelism: every rank holds the whole model and works on its part of the batch.

    rank 0   shard 0 → forward, backward → gradient 0 ╮
    rank 1   shard 1 → forward, backward → gradient 1 ├ all-reduce: every rank has the sum
    rank 2   shard 2 → forward, backward → gradient 2 ╯ → the same optimizer step everywhere

The loss of a shard is divided by the number of targets of the *global* batch, so the sum over
ranks is exactly the gradient of the global mean, whatever the shards' lengths. Nothing is divided
by the number of ranks: whoever averages the averages of uneven shards computes something else.
All ranks start from one seed and take equal steps, so the copies never part.

Three classes, which differ in when they send what:

    PerParameter   ▇forward▇▇▇▇backward▇▇▇▇ ─w4─ ─w3─ ─w2─ ─w1─    a message costs α: many α
    DataParallel   ▇forward▇▇▇▇backward▇▇▇▇ ────all at once────    few α, but all is waited for
    Overlapped     ▇forward▇▇▇▇backward▇▇▇▇ ─w1─                   only the last bucket is
                                 ─w4,w3──w2─

With p ranks, Ψ parameters of e bytes in k arrays or buckets and a ring (one element more, for the
loss), where T_f and T_b are a rank's forward and backward:

    messages a rank  2(p - 1), times k if sent in k pieces
    bytes a rank     about 2(Ψ + 1)e(p - 1)/p, in all three
    memory a rank    as serial, but 1/p of the activations
    time             T_f + T_b + T_ring,  T_ring = 2(p - 1)kα + 2(Ψ + 1)e(p - 1)/p·(β + γ/2)
    overlapped       T_f + max(T_b + ring of the last bucket, first bucket's wait + T_ring) if
                     communication never pauses; exactly, bucket by bucket: ``Overlapped.cost``

Gradients of ``microbatches`` parts of a shard add up before anything is sent: k times less memory
for activations, and not a byte more on the wire. Li et al., "PyTorch Distributed", arXiv
2006.15704, sections 3.2 and 4.2.
"""

from __future__ import annotations

from functools import partial

from minidist.collectives import all_reduce, all_reduce_cost
from minidist.collectives.clocks import Clocks
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm, Future
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.nn.layers import Sequential
from minidist.nn.module import Module, Parameter, Shape
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.buckets import backward_left, cut_buckets
from minidist.parallel.method import (
    Method,
    StepCost,
    parameter_count,
    saved_bytes,
    training_flops,
)
from minidist.parallel.resume import Resumable

MB = 1 << 20


class DataParallel(Resumable, Method):
    """One all-reduce of all gradients a step; ``algorithm`` names it."""

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        algorithm: str = "ring",
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        if microbatches < 1:
            raise ValueError(f"a shard needs at least one microbatch, not {microbatches}")
        self.algorithm = algorithm
        self.microbatches = microbatches
        self.clip = clip
        self.model = model.init(seed)
        optimizer.bind(self.model.flat.slices)

    def step(self, batch: Batch) -> float:
        self.model.zero_grad()
        loss = 0.0
        for part in self.parts(batch, self.comm.rank):
            loss += self.forward_backward(part)
        total = self.model.flat.grad_and_loss
        total[-1] = loss  # the loss rides in the slot after the gradients
        with self.comm.step("all-reduce"):
            self.sum_over_ranks(self.comm, total)
        self.update()
        return float(total[-1])

    def sum_over_ranks(self, comm: Comm, total: Array) -> None:
        all_reduce(comm, total, algorithm=self.algorithm)

    def parts(self, batch: Batch, rank: int) -> list[Batch]:
        """The microbatches of a rank."""
        return batch.shard(rank, self.comm.size).microbatches(self.microbatches)

    # The formula

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above, with the exact bytes of uneven chunks and shards.

        The time adds up because the slowest rank, the first, also starts the longest chunk.
        """
        ranks = range(self.comm.size)
        length = parameter_count(self.whole) + 1
        wire = [self.all_reduce_cost(length, rank, machine) for rank in ranks]
        compute = [self.compute_seconds(batch, machine, rank) for rank in ranks]
        return StepCost(
            messages=[cost.messages for cost in wire],
            nbytes=[cost.nbytes for cost in wire],
            peak_bytes=self.replica_bytes(batch),
            busy=[compute[rank] + machine.reduce(wire[rank].reduced) for rank in ranks],
            seconds=max(compute) + max(cost.seconds for cost in wire),
        )

    def all_reduce_cost(self, length: int, rank: int, machine: Machine) -> Cost:
        """What ``sum_over_ranks`` costs a rank."""
        return all_reduce_cost(
            length, self.itemsize, rank, self.comm.size, machine, algorithm=self.algorithm
        )

    def compute_seconds(self, batch: Batch, machine: Machine, rank: int) -> float:
        """Forward and backward of all of a rank's microbatches."""
        return sum(
            machine.compute(sum(training_flops(self.model, shape_of(part))), rank)
            for part in self.parts(batch, rank)
        )

    def replica_bytes(self, batch: Batch) -> dict[str, list[int]]:
        """Memory of each rank, if each holds a whole replica."""
        n, ranks = parameter_count(self.whole) * self.itemsize, range(self.comm.size)
        return {
            "parameters": [n for _ in ranks],
            "gradients": [n for _ in ranks],
            "optimizer": [len(self.optimizer.slots) * n for _ in ranks],
            "activations": [
                max(
                    saved_bytes(self.model, shape_of(part), self.itemsize, self.loss)
                    for part in self.parts(batch, rank)
                )
                for rank in ranks
            ],
        }


class PerParameter(DataParallel):
    """Naive: an all-reduce for each parameter, when the backward is over. Pays α for each."""

    def sum_over_ranks(self, comm: Comm, total: Array) -> None:
        for part in self.pieces():
            super().sum_over_ranks(comm, total[part])

    def pieces(self) -> list[slice]:
        """Where each parameter lies; the last takes the loss along."""
        *others, last = self.model.flat.slices.values()
        return [*others, slice(last.start, last.stop + 1)]

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """One ring after the other, each from where the last one ended (rings only)."""
        clocks = Clocks(machine, self.comm.size)
        clocks.compute(
            [self.compute_seconds(batch, machine, rank) for rank in range(self.comm.size)]
        )
        for part in self.pieces():
            clocks.all_reduce(part.stop - part.start, self.itemsize)
        return StepCost(
            messages=clocks.messages,
            nbytes=clocks.nbytes,
            peak_bytes=self.replica_bytes(batch),
            busy=clocks.busy,
            seconds=max(clocks.now),
        )


class Overlapped(DataParallel):
    """Buckets, each all-reduced on the communication stream as soon as its gradients are there.

    The backward makes the last layers' gradients first, so buckets go in reverse order. Each is
    full at ``bucket_mb``; the last one, which nothing is left to hide, ends at ``last_mb`` (it
    holds at least one parameter). Every rank launches the same buckets in the same order, even
    if it does not use some parameter at all: those go at the end of the backward.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        bucket_mb: float = 25.0,
        last_mb: float = 1.0,
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, "ring", microbatches, clip)
        slices = self.model.flat.slices
        self.buckets = cut_buckets(
            slices, int(bucket_mb * MB / self.itemsize), int(last_mb * MB / self.itemsize)
        )
        self.missing: list[set[str]] = []  # by bucket not yet launched, while the backward runs
        self.under_way: list[Future] = []
        for name, parameter in model.named_parameters().items():
            parameter.on_ready.append(partial(self.ready, name))

    def step(self, batch: Batch) -> float:
        self.model.zero_grad()
        *parts, last = self.parts(batch, self.comm.rank)
        earlier = 0.0
        for part in parts:
            earlier += self.forward_backward(part)  # nothing is sent yet: gradients still grow
        total = self.model.flat.grad_and_loss

        def start(loss: float) -> None:
            total[-1] = earlier + loss  # the loss rides in the first bucket
            self.missing = [set(bucket.names) for bucket in self.buckets]

        self.forward_backward(last, before_backward=start)
        self.launch(len(self.missing))  # what no backward has touched
        with self.comm.step("wait for buckets"):
            while self.under_way:
                self.under_way.pop(0).wait()
        self.update()
        return float(total[-1])

    def ready(self, name: str, parameter: Parameter) -> None:
        """A backward has finished this parameter's gradient."""
        for names in self.missing:
            names.discard(name)
        full = 0
        while full < len(self.missing) and not self.missing[full]:
            full += 1
        self.launch(full)  # in order: a later bucket waits for the earlier ones

    def launch(self, count: int) -> None:
        """All-reduce the next ``count`` buckets on the communication stream."""
        total = self.model.flat.grad_and_loss
        for _ in range(count):
            bucket = self.buckets[-len(self.missing)]
            self.missing.pop(0)
            self.under_way.append(self.comm.spawn(self.sum_over_ranks, total[bucket.part]))

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """A bucket's ring starts when it is full on both sides and the ring before it is over.

        A block's parameters count as ready when the whole block is: exact for layers, a little
        late for blocks of several layers.
        """
        ranks = range(self.comm.size)
        compute = [self.compute_seconds(batch, machine, rank) for rank in ranks]
        stream = Clocks(machine, self.comm.size)
        left = [backward_left(self.model, shape_of(self.parts(batch, r)[-1])) for r in ranks]
        for bucket in self.buckets:
            stream.wait_for(
                [
                    compute[rank] - machine.compute(min(left[rank][n] for n in bucket.names), rank)
                    for rank in ranks
                ]
            )
            stream.all_reduce(bucket.part.stop - bucket.part.start, self.itemsize)
        return StepCost(
            messages=stream.messages,
            nbytes=stream.nbytes,
            peak_bytes=self.replica_bytes(batch),
            busy=compute,  # the stream adds up meanwhile
            seconds=max(*stream.now, *compute),
        )


def shape_of(batch: Batch) -> Shape:
    """The shape of a batch's inputs, which need not be read for it."""
    return (len(batch), *batch.dataset.input_shape)
