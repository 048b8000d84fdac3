"""The parameter server: workers compute gradients, one server owns the parameters.

    worker 1 ── push gradient ──▶ ╭────────╮ ── pull parameters ──▶ worker 1
    worker 2 ── push gradient ──▶ │ server │ ── pull parameters ──▶ worker 2
    worker 3 ── push gradient ──▶ ╰────────╯ ── pull parameters ──▶ worker 3
                                adds, then steps

This is the synchronous form: the server waits for every worker, adds the gradients in order of
worker, takes one optimizer step and answers with the new parameters. Workers keep no optimizer
state. With W workers and n = (Ψ + 1)e bytes a message (one element is the loss):

    a worker sends   n in 1 message
    the server sends Wn in W messages, and receives as much
    memory           optimizer state on the server alone; it needs two arrays for gradients,
                     the sum and the one arriving
    time             compute/W + 2W(α + nβ) + Wnγ

Everything passes through the server's one port, so its time grows with W where a ring's does
not: that bottleneck is why servers are sharded, and why all-reduce replaced them for dense
models. Li et al., "Scaling distributed machine learning with the parameter server", OSDI'14,
section 3.
"""

from __future__ import annotations

from minidist.array import Array
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import (
    Method,
    StepCost,
    parameter_count,
    saved_bytes,
    training_flops,
)

SERVER = 0


class ParameterServer(Method):
    """Rank 0 serves, the others work; a rank alone does both."""

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        self.model = model.init(seed)
        self.workers = [rank for rank in range(comm.size) if rank != SERVER] or [SERVER]
        self.incoming: Array | None = None
        if comm.rank == SERVER and comm.size > 1:
            self.incoming = self.model.flat.grad_and_loss.copy()

    def step(self, batch: Batch) -> float:
        flat = self.model.flat
        self.model.zero_grad()
        if self.comm.rank in self.workers:
            shard = batch.shard(self.workers.index(self.comm.rank), len(self.workers))
            flat.grad_and_loss[-1] = self.forward_backward(shard)
        if self.comm.rank == SERVER:
            self.serve()
        else:
            with self.comm.step("push"):
                self.comm.send(flat.grad_and_loss, SERVER)
            with self.comm.step("pull"):
                self.comm.recv(flat.data_and_loss, SERVER)
        return float(flat.data_and_loss[-1])

    def serve(self) -> None:
        """The server's half of a step: collect, update, answer."""
        flat = self.model.flat
        clients = [worker for worker in self.workers if worker != SERVER]
        for worker in clients:
            with self.comm.step(f"collect from {worker}"):
                self.comm.recv(self.incoming, worker)
                self.comm.combine("sum", flat.grad_and_loss, self.incoming)
        self.update()
        flat.data_and_loss[-1] = flat.grad_and_loss[-1]
        for worker in clients:
            with self.comm.step(f"answer {worker}"):
                self.comm.send(flat.data_and_loss, worker)

    def holds(self) -> dict[str, list[Array]]:
        held = super().holds()
        if self.incoming is not None:
            held["gradients"].append(self.incoming[:-1])
        return held

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above; the first worker has the longest shard, and is collected first."""
        ranks = range(self.comm.size)
        psi = parameter_count(self.whole)
        n, message = psi * self.itemsize, (psi + 1) * self.itemsize
        clients = self.comm.size - 1
        shapes = {
            worker: (len(batch.shard(index, len(self.workers))), *batch.dataset.input_shape)
            for index, worker in enumerate(self.workers)
        }
        busy = [
            machine.compute(sum(training_flops(self.model, shapes[rank])), rank)
            if rank in shapes
            else 0.0
            for rank in ranks
        ]
        slowest = max(busy)
        busy[SERVER] += clients * machine.reduce(message)
        return StepCost(
            messages=[clients if rank == SERVER else 1 for rank in ranks],
            nbytes=[clients * message if rank == SERVER else message for rank in ranks],
            peak_bytes={
                "parameters": [n for _ in ranks],
                "gradients": [2 * n if rank == SERVER and clients else n for rank in ranks],
                "optimizer": [
                    len(self.optimizer.slots) * n if rank == SERVER else 0 for rank in ranks
                ],
                "activations": [
                    saved_bytes(self.model, shapes[rank], self.itemsize, self.loss)
                    if rank in shapes
                    else 0
                    for rank in ranks
                ],
            },
            busy=busy,
            seconds=slowest + clients * (2 * machine.message(message) + machine.reduce(message)),
        )
