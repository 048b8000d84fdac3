"""The parameter server that does not wait: asynchronous, or stale by at most s clocks.

    worker 0   ██ push·pull ██ push·pull ██ push·pull ██         a push is applied when it comes,
    worker 1   ██████ push·pull ██████ push·pull ██████          and answered with what the
    worker 2   ███ push·pull ███ push·pull ███ push·pull         parameters are by then

No worker waits for another, so a straggler slows down nobody but itself. The price: between a
worker's pull and its next push the others have moved the parameters on, so its gradient is of old
ones. Its *staleness* τ is the number of updates in between, about W - 1 among W equal workers.

One knob says how far workers may drift apart. A worker's *clock* counts its pushes. With a bound
s it gets its answer, and so begins its next clock c, only when every worker has pushed clocks up
to c - s:

    s = 0     everyone waits for everyone: as bulk synchronous, but an update for each push
    s         stale synchronous (SSP): the fastest is at most s clocks ahead of the slowest
    None      asynchronous: nobody ever waits

A push is two messages: a header (the clock, the loss), then the gradient of a server's range. The
server takes whoever comes first. The clock also tells a push that comes twice: it is drained, and
not applied again. A worker that dies is left out. For each global batch, with W workers, S
servers, p = W + S ranks:

    a worker sends   2S messages, 16S + Ψe bytes
    a server sends   W messages, WΨe/S bytes
    memory           workers Ψe parameters and Ψe gradients; a server 1/S of either, and 1/S of
                     the optimizer's state

At the end of a run server 0 tells all others the losses: p - 1 messages of 8 bytes a batch. Who
comes first, and with it time and result, depends on the machine: no formula for the seconds.

With ``staleness_aware`` a gradient is divided by its τ (if τ > 1), since an old one is worth
less. A shard's gradient is divided by the targets of the whole batch, so W updates of plain SGD
move as far as one synchronous one; a rule that normalises, such as Adam, moves W times as far.

Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server",
NIPS'13, section 3; Dean et al., "Large scale distributed deep networks" (Downpour), NIPS'12,
section 4.1; Zhang et al., "Staleness-aware async-SGD", arXiv 1511.05950, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minidist.comm.comm import ANY, Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.key_ranges import KeyRanges
from minidist.parallel.method import StepCost, saved_bytes, training_flops

PUSH, PULL = 1, 2  # tags


@dataclass(frozen=True, slots=True)
class Update:
    """A push that a server applied.

    ``staleness``: updates between the worker's pull and this. ``lead``: how many clocks the
    worker was ahead of the slowest one when it began this clock. ``time``: of the server.
    """

    worker: int
    clock: int
    staleness: int
    lead: int
    time: float


class StaleParameterServer(KeyRanges):
    """Workers at most ``staleness`` clocks apart; None: as far apart as they like.

    ``updates`` is this server's record of every push it applied, ``repeated`` counts those that
    came again and were not.
    """

    exact = False

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        servers: int = 1,
        staleness: int | None = None,
        staleness_aware: bool = False,
    ) -> None:
        if staleness is not None and staleness < 0:
            raise ValueError(f"the staleness bound is 0, 1, ... or None, not {staleness}")
        super().__init__(model, loss, optimizer, comm, seed, servers, colocated=False, extra=0)
        self.staleness = staleness
        self.staleness_aware = staleness_aware
        self.clock = 0  # batches that this rank has trained on
        # What a server knows:
        self.clocks = dict.fromkeys(self.workers, 0)  # pushes applied, by worker
        self.pulled = dict.fromkeys(self.workers, 0)  # updates that its parameters contain
        self.leads = dict.fromkeys(self.workers, 0)  # clocks ahead when it was answered last
        self.waiting: list[int] = []  # pushed, and not answered yet
        self.updates: list[Update] = []
        self.repeated = 0
        self.losses = np.zeros(0)  # of the batches of this run
        self.pushes = np.zeros(0, int)

    def step(self, batch: Batch) -> float:
        """A run of one batch. Workers go on with what they pulled last, stale as it is."""
        return self.train([batch])[0]

    def train(self, batches: Sequence[Batch]) -> list[float]:
        """Each worker takes its shard of one global batch after the other, and waits for no one.

        All ranks come together at the end. Returns the loss of each batch: the sum of its shards'
        losses, each at the parameters that its worker had. The same on every rank.
        """
        self.losses = np.zeros(len(batches))
        if self.works:
            self.work(batches)
        else:
            self.serve(self.clock + len(batches))
        self.clock += len(batches)
        self.tell(self.losses, self.servers[0])
        return [float(loss) for loss in self.losses]

    # The worker

    def work(self, batches: Sequence[Batch]) -> None:
        """Compute, push, pull, for every batch."""
        index = self.workers.index(self.comm.rank)
        for number, batch in enumerate(batches):
            self.model.zero_grad()
            loss = self.forward_backward(batch.shard(index, len(self.workers)))
            if self.serves:  # alone
                self.apply(self.comm.rank, self.clock + number)
                self.losses[number] = loss
            else:
                self.push_and_pull(self.clock + number, loss)

    def push_and_pull(self, clock: int, loss: float) -> None:
        """Give every server its range of the gradient, and wait for its parameters."""
        flat, index = self.model.flat, self.workers.index(self.comm.rank)
        first = index % len(self.servers)  # so that not all begin at the same server
        servers = list(zip(self.servers, self.ranges, strict=True))
        servers = servers[first:] + servers[:first]
        with self.comm.step("push"), self.servers_must_live():
            pulls = [self.comm.irecv(flat.data[part], server, PULL) for server, part in servers]
            for server, part in servers:
                self.push(server, part, clock, loss)
        with self.comm.step("pull"), self.servers_must_live():
            for pull in pulls:
                pull.wait()

    def push(self, server: int, part: slice, clock: int, loss: float) -> None:
        """Header, then gradient: one push to one server."""
        self.comm.send(np.array([clock, loss]), server, PUSH)
        self.comm.send(self.model.flat.grad[part], server, PUSH)

    # The server

    def serve(self, clock: int) -> None:
        """Serve whoever comes first, until every living worker has pushed all before ``clock``."""
        self.pushes = np.zeros(len(self.losses), int)  # by batch
        while self.slowest() < clock:
            with self.without_lost_workers():
                self.take()
            for worker in [worker for worker in self.waiting if self.may_go(worker)]:
                with self.without_lost_workers():
                    self.answer(worker)
        # A batch of which shards are missing: they are taken to be like the rest.
        self.losses *= len(self.workers) / np.maximum(self.pushes, 1)

    def slowest(self) -> int:
        """The clock of the living worker that is furthest behind."""
        return min(clock for worker, clock in self.clocks.items() if worker not in self.lost)

    def take(self) -> None:
        """Receive a push; apply it, unless it was applied before."""
        header = np.empty(2)
        with self.comm.step("wait for a push"):
            worker = self.comm.recv(header, ANY, PUSH)
        with self.comm.step(f"collect from {worker}"):
            self.comm.recv(self.total, worker, PUSH)
        clock, loss = int(header[0]), float(header[1])
        if clock < self.clocks[worker]:
            self.repeated += 1  # late or repeated: its answer is on its way, or has arrived
            return
        self.apply(worker, clock)
        self.losses[clock - self.clock] += loss
        self.pushes[clock - self.clock] += 1
        self.waiting.append(worker)

    def apply(self, worker: int, clock: int) -> None:
        """One step of the optimizer with the gradient in ``total``."""
        staleness = len(self.updates) - self.pulled[worker]
        if self.staleness_aware and staleness > 1:
            self.total[self.owned] /= staleness
        self.update_keys()
        self.clocks[worker] = clock + 1
        time = self.comm.time()
        self.updates.append(Update(worker, clock, staleness, self.leads[worker], time))
        if self.works:  # alone: it has what it has just computed
            self.pulled[worker] = len(self.updates)

    def may_go(self, worker: int) -> bool:
        """Whether a worker may begin its next clock."""
        lead = self.clocks[worker] - self.slowest()
        return self.staleness is None or lead <= self.staleness

    def answer(self, worker: int) -> None:
        """Send a worker the parameters as they are now."""
        self.waiting.remove(worker)
        self.pulled[worker] = len(self.updates)
        self.leads[worker] = self.clocks[worker] - self.slowest()
        with self.comm.step(f"answer {worker}"):
            self.comm.send(self.data, worker, PULL)

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above, of ``step``: a run of one batch."""
        ranks, e = range(self.comm.size), self.itemsize
        owned = [0 for _ in ranks]
        for server, keys in zip(self.servers, self.keys, strict=True):
            owned[server] = (keys.stop - keys.start) * e
        clients = len(self.workers) if self.comm.size > 1 else 0
        messages = [clients for _ in ranks]
        nbytes = [clients * size for size in owned]
        messages[self.servers[0]] += self.comm.size - 1
        nbytes[self.servers[0]] += (self.comm.size - 1) * 8
        whole, busy, activations = list(owned), [0.0 for _ in ranks], [0 for _ in ranks]
        for index, rank in enumerate(self.workers):
            if rank not in self.servers:
                messages[rank] = 2 * len(self.servers)
                nbytes[rank] = 16 * len(self.servers) + self.psi * e
            shape = (len(batch.shard(index, len(self.workers))), *batch.dataset.input_shape)
            whole[rank] = self.psi * e
            busy[rank] = machine.compute(sum(training_flops(self.whole, shape)), rank)
            activations[rank] = saved_bytes(self.whole, shape, e, self.loss)
        return StepCost(
            messages=messages,
            nbytes=nbytes,
            peak_bytes={
                "parameters": whole,
                "gradients": whole,
                "optimizer": [len(self.optimizer.slots) * size for size in owned],
                "activations": activations,
            },
            busy=busy,
            seconds=None if self.comm.size > 1 else busy[0],
        )
