"""Backup workers: synchronous training that does not wait for the slowest.

    worker 0   ████ push ─────── pull ████ push         the server needs W - b pushes of a clock,
    worker 1   █████ push ────── pull █████ push        here 3 of 4 ...
    worker 2   ██████ push ───── pull ██████ push
    worker 3   ██████████████ push (late: dropped)      ... and the last one's is discarded

A clock is one global batch. The server takes the first W - b gradients of each clock, scales their
sum up to the whole batch, steps, and answers their workers. A later gradient of that clock is
discarded, never applied; its worker is answered at once, with the current clock, and skips the
batches in between. With b = 0 this is bulk synchronous training.

For one global batch, W workers and one server, of n = Ψe bytes:

    a worker sends     2 messages, 16 + n bytes
    the server sends   2W messages, W(8 + n) bytes, and the losses (see stale_parameter_server.py)
    memory             as the synchronous server: the sum, and the gradient being received

This helps if a different worker is slow each time. The gradients of a worker that is *always* slow
are always discarded, so its shards are never learnt. Chen et al., "Revisiting distributed
synchronous SGD", arXiv 1604.00981, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minidist.comm.comm import ANY, Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array, module_of
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.gradient_compression.compressor import Compressor
from minidist.parallel.method import StepCost
from minidist.parallel.server.pushes import PUSH
from minidist.parallel.server.stale_parameter_server import StaleParameterServer
from minidist.parallel.server.stale_worker import PULL


class BackupWorkers(StaleParameterServer):
    """The server does not wait for the ``backups`` slowest workers of a clock.

    ``dropped`` counts the discarded gradients. Raises ValueError for negative ``backups``.
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        backups: int = 1,
        compressor: Callable[[], Compressor] | None = None,
        clip: float | None = None,
        microbatches: int = 1,
    ) -> None:
        super().__init__(
            model,
            loss,
            optimizer,
            comm,
            seed,
            compressor=compressor,
            clip=clip,
            microbatches=microbatches,
        )
        if backups < 0:
            raise ValueError(f"the number of backup workers is 0 or more, not {backups}")
        self.backups = min(backups, len(self.workers) - 1)  # at least one gradient makes a step
        self.dropped = 0
        self.incoming: Array | None = None
        if comm.size > 1 and self.serves and not self.pushes.compressed:
            self.incoming = module_of(self.data).empty_like(self.data)

    def work(self, batches: Sequence[Batch]) -> None:
        """Compute, push, pull; then go on with the batch that the server names."""
        index, server = self.workers.index(self.comm.rank), self.servers[0]
        clock, end, header = self.clock, self.clock + len(batches), np.empty(1)
        while clock < end:
            self.steps = clock
            self.model.zero_grad()
            shard = batches[clock - self.clock].shard(index, len(self.workers))
            loss = self.accumulate(shard)
            message = [np.array([clock, loss]), self.pushes.pack(0, self.model.flat.grad, clock)]
            with self.servers_must_live(), self.comm.step("push"):
                pulls = [
                    self.comm.irecv(answer, server, PULL)
                    for answer in (header, self.model.flat.data)
                ]
                self.push(server, message)
            with self.servers_must_live(), self.comm.step("pull"):
                for pull in pulls:
                    pull.wait()
            self.model.flat.written()
            clock = int(header[0])

    def serve(self, clock: int) -> None:
        """Serve clock after clock, until every living worker knows that the last one is over."""
        now, arrived, working = self.clock, list[int](), set(self.workers) - self.lost
        while working:
            with self.without_lost_workers():
                worker, its_clock = self.receive_and_add(now, first=not arrived)
                if its_clock == now:
                    arrived.append(worker)
                elif its_clock >= 0:
                    self.dropped += 1
                    self.answer_with_clock(worker, now, working, clock)
            working -= self.lost
            if arrived and len(arrived) >= min(self.wanted, len(self.workers) - len(self.lost)):
                self.total *= len(self.workers) / len(arrived)
                self.losses[now - self.clock] *= len(self.workers) / len(arrived)
                self.clip_total()
                self.update_keys()
                now += 1
                for worker in arrived:
                    with self.without_lost_workers():
                        self.answer_with_clock(worker, now, working, clock)
                arrived = []

    @property
    def wanted(self) -> int:
        """The number of gradients in one step."""
        return len(self.workers) - self.backups

    def receive_and_add(self, now: int, first: bool) -> tuple[int, int]:
        """Receive a push, and add it to the sum if it is of clock ``now``; its worker and clock.

        The clock is -1 for a push that was received before; it is not answered again.
        """
        header = np.empty(2)
        with self.comm.step("wait for a push"):
            worker = self.comm.recv(header, ANY, PUSH)
        clock = int(header[0])
        new, wanted = clock >= self.clocks[worker], clock == now
        with self.comm.step(f"collect from {worker}"):
            into = self.total if new and wanted and first else self.incoming
            self.pushes.receive(self.comm, worker, into)
            if not new:
                self.repeated += 1
                return worker, -1
            self.clocks[worker] = clock + 1
            if wanted:
                self.pushes.add(self.comm, self.total, into, first, clock)
                self.losses[now - self.clock] += header[1]
        return worker, clock

    def answer_with_clock(self, worker: int, now: int, working: set[int], end: int) -> None:
        """Send a worker the current clock ``now``, and the parameters."""
        with self.comm.step(f"answer {worker}"):
            self.comm.send(np.array([float(now)]), worker, PULL)
            self.comm.send(self.data, worker, PULL)
        if now >= end:
            working.discard(worker)

    def arrays(self) -> dict[str, list[Array]]:
        found = super().arrays()
        if self.incoming is not None:
            found["gradients"].append(self.incoming)
        return found

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """As the asynchronous server; and a clock with every answer, and a sum of gradients."""
        cost, workers = super().cost(batch, machine), len(self.workers)
        if self.comm.size > 1:
            n = self.psi * self.itemsize
            server = self.servers[0]
            cost.messages[server] += workers
            cost.nbytes[server] += 8 * workers
            if self.pushes.compressed:
                flops = self.wanted * self.pushes.decode_flops(0)  # late ones are not decoded
                cost.busy[server] = machine.compute(flops, server)
            else:
                cost.busy[server] += (self.wanted - 1) * machine.reduce(n)
                cost.peak_bytes["gradients"][server] += n
        return cost
