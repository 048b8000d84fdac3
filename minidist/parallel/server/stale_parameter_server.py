"""The parameter server that does not wait: asynchronous, or stale by at most s clocks.

    worker 0   ██ push·pull ██ push·pull ██ push·pull ██         a push is applied when it comes,
    worker 1   ██████ push·pull ██████ push·pull ██████          and answered with what the
    worker 2   ███ push·pull ███ push·pull ███ push·pull         parameters are by then

No worker waits for another, so a straggler slows down nobody but itself. The price: between a
worker's pull and its next push the others have moved the parameters on, so its gradient is of old
ones. Its *staleness* τ is the number of updates in between, about W - 1 among W equal workers.

One knob says how far workers may drift apart. A worker's *clock* counts its pushes. With a bound
s it gets its answer, and so begins its next clock c, only when every worker has pushed all
clocks before c - s:

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

``colocated``: each of p ranks works, and serves on its communication stream meanwhile, with
parameters of its own that go on while the worker computes. A worker tells the server beside it
only that it has pushed, and is told that it can go on; so a rank sends 2Ψe(p - 1)/p bytes, as in
a ring, and 16p of headers, in 3p - 1 messages.

Pushes may be compressed (pushes.py). ``clip`` limits each push to 1/W of what a batch may move: its
worker knows the whole gradient, so servers that do not wait for each other need not agree.

With ``staleness_aware`` a gradient is divided by its τ (if τ > 1), since an old one is worth
less. A shard's gradient is divided by the targets of the whole batch, so W updates of plain SGD
move as far as one synchronous one; a rule that normalises, such as Adam, moves W times as far.

Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server",
NIPS'13, section 3; Dean et al., "Large scale distributed deep networks" (Downpour), NIPS'12,
section 4.1; Zhang et al., "Staleness-aware async-SGD", arXiv 1511.05950, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minidist.comm.comm import ANY, Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.clip import clip_by_global_norm
from minidist.optim.optimizer import Optimizer
from minidist.parallel.gradient_compression.compressor import Compressor
from minidist.parallel.method import StepCost
from minidist.parallel.model_costs import largest_saved, training_seconds
from minidist.parallel.server.key_ranges import KeyRanges, Servers
from minidist.parallel.server.pushes import PUSH

PULL = 2  # tag


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
        servers: Servers = 1,
        colocated: bool = False,
        staleness: int | None = None,
        staleness_aware: bool = False,
        compressor: Callable[[], Compressor] | None = None,
        clip: float | None = None,
        microbatches: int = 1,
    ) -> None:
        if staleness is not None and staleness < 0:
            raise ValueError(f"the staleness bound is 0, 1, ... or None, not {staleness}")
        super().__init__(
            model,
            loss,
            optimizer,
            comm,
            seed,
            servers,
            colocated,
            apart=True,
            compressor=compressor,
            clip=clip,
            microbatches=microbatches,
        )
        if optimizer.layerwise and len(self.servers) > 1:
            raise ValueError(
                f"{type(optimizer).__name__} needs the norms of whole parameters, and "
                f"{len(self.servers)} servers that do not wait for each other cannot agree on "
                "them: take one server, a rule that works element by element, or ParameterServer"
            )
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
        self.arrived = np.zeros(0, int)  # shards of each of them

    def step(self, batch: Batch) -> float:
        """A run of one batch. Workers go on with what they pulled last, stale as it is.

        Nobody gets further than one clock ahead in it: a bound of 1 or more shows in ``train``.
        """
        return self.train([batch])[0]

    def train(self, batches: Sequence[Batch]) -> list[float]:
        """Each worker takes its shard of one global batch after the other, and waits for no one.

        All ranks come together at the end. Returns the loss of each batch: the sum of its shards'
        losses, each at the parameters that its worker had. The same on every rank.
        """
        self.losses = np.zeros(len(batches))
        end = self.clock + len(batches)
        if self.comm.size == 1:
            self.work_alone(batches)
        elif self.works and self.serves:
            serving = self.comm.spawn(self.serve_beside, end)
            self.work(batches)
            serving.wait()
        elif self.works:
            self.work(batches)
        else:
            self.serve(end)
        self.clock = end
        self.tell(self.losses, self.servers[0])
        return [float(loss) for loss in self.losses]

    # The worker

    def work(self, batches: Sequence[Batch]) -> None:
        """Compute, push, pull, for every batch."""
        for clock, batch in enumerate(batches, self.clock):
            loss = self.compute(batch)
            self.push_and_pull(clock, loss)

    def work_alone(self, batches: Sequence[Batch]) -> None:
        """A worker that is its own server has nobody to send to."""
        for number, batch in enumerate(batches):
            self.losses[number] = self.compute(batch)
            self.apply(self.comm.rank, self.clock + number)

    def compute(self, batch: Batch) -> float:
        """The gradient of this worker's shard, clipped; returns its loss.

        A push is an update, so the worker knows the whole gradient of it, and no servers need to
        agree on a norm. W pushes are a batch: none may be longer than 1/W of what a batch may.
        """
        self.model.zero_grad()
        index = self.workers.index(self.comm.rank)
        loss = self.accumulate(batch.shard(index, len(self.workers)))
        if self.clip is not None:
            clip_by_global_norm(self.model.flat.grad, self.clip / len(self.workers))
        return loss

    def push_and_pull(self, clock: int, loss: float) -> None:
        """Give every server its range of the gradient, and wait for its parameters."""
        flat, count = self.model.flat, len(self.servers)
        first = self.workers.index(self.comm.rank)  # so that not all begin at the same server
        order = [(first + turn) % count for turn in range(count)]
        header = np.array([clock, loss])
        messages = {
            index: [header, self.pushes.pack(index, flat.grad, clock)]
            for index in self.clients_of(self.comm.rank)
        }
        with self.comm.step("push"), self.servers_must_live():
            pulls = [
                self.comm.irecv(self.pulled_into(index), self.servers[index], PULL)
                for index in order
            ]
            for index in order:  # the server beside it reads the gradient where it lies
                self.push(self.servers[index], messages.get(index, [header]))
        with self.comm.step("pull"), self.servers_must_live():
            for pull in pulls:
                pull.wait()

    def push(self, server: int, message: Sequence[Array]) -> None:
        """One push to one server: header, then gradient."""
        for array in message:
            self.comm.send(array, server, PUSH)

    def pulled_into(self, index: int) -> Array:
        """Where a server's answer goes: the one beside it writes, and only says so."""
        beside = self.servers[index] == self.comm.rank
        return self.model.flat.data[slice(0, 0) if beside else self.ranges[index]]

    # The server

    def serve_beside(self, stream: Comm, clock: int) -> None:
        """``serve``, on the communication stream of a rank that works meanwhile."""
        self.desk = stream.main
        self.serve(clock)

    def serve(self, clock: int) -> None:
        """Serve whoever comes first, until every living worker has pushed all before ``clock``."""
        self.arrived = np.zeros(len(self.losses), int)  # by batch
        while self.slowest() < clock:
            with self.without_lost_workers():
                self.take()
            for worker in [worker for worker in self.waiting if self.may_go(worker)]:
                with self.without_lost_workers():
                    self.answer(worker)
        # A batch of which shards are missing: they are taken to be like the rest.
        self.losses *= len(self.workers) / np.maximum(self.arrived, 1)

    def slowest(self) -> int:
        """The clock of the living worker that is furthest behind."""
        return min(clock for worker, clock in self.clocks.items() if worker not in self.lost)

    def take(self) -> None:
        """Receive a push; apply it, unless it was applied before."""
        header = np.empty(2)
        with self.desk.step("wait for a push"):
            worker = self.desk.recv(header, ANY, PUSH)
        clock, loss = int(header[0]), float(header[1])
        if worker == self.comm.rank:  # the one beside it, which waits for the answer
            self.total[...] = self.model.flat.grad[self.ranges[self.pushes.server]]
        else:
            with self.desk.step(f"collect from {worker}"):
                self.pushes.receive(self.desk, worker, self.total)
        if clock < self.clocks[worker]:
            self.repeated += 1  # late or repeated: its answer is on its way, or has arrived
            return
        if worker != self.comm.rank:
            self.pushes.add(self.desk, self.total, self.total, True, clock)
        self.apply(worker, clock)
        self.losses[clock - self.clock] += loss
        self.arrived[clock - self.clock] += 1
        self.waiting.append(worker)

    def apply(self, worker: int, clock: int) -> None:
        """One step of the optimizer with the gradient in ``total``."""
        staleness = len(self.updates) - self.pulled[worker]
        if self.staleness_aware and staleness > 1:
            self.total[self.owned] /= staleness
        self.update_keys()
        self.clocks[worker] = clock + 1
        time = self.desk.time()
        self.updates.append(Update(worker, clock, staleness, self.leads[worker], time))
        if self.comm.size == 1:  # it has what it has just computed
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
        values = self.values_for(worker)
        with self.desk.step(f"answer {worker}"):
            if worker == self.comm.rank:  # the one beside it is only told that they are there
                self.model.flat.data[self.ranges[self.pushes.server]] = values
                values = values[:0]
            self.desk.send(values, worker, PULL)

    def values_for(self, worker: int) -> Array:
        """What a worker gets: this server's parameters."""
        return self.data

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above, of ``step``: a run of one batch."""
        ranks, p, e = range(self.comm.size), self.comm.size, self.itemsize
        messages, nbytes, busy = [0 for _ in ranks], [0 for _ in ranks], [0.0 for _ in ranks]
        held, gradients, state = [0 for _ in ranks], [0 for _ in ranks], [0 for _ in ranks]
        activations = [0 for _ in ranks]
        for index, rank in enumerate(self.servers):
            own = (self.keys[index].stop - self.keys[index].start) * e
            state[rank] = len(self.optimizer.slots) * own
            if p > 1:
                clients = [worker for worker in self.workers if worker != rank]
                held[rank] += own
                gradients[rank] += own + self.pushes.arriving_bytes(index)
                messages[rank] += len(self.workers)
                nbytes[rank] += len(clients) * own
                decoding = len(clients) * self.pushes.decode_flops(index)
                busy[rank] += 0 if rank in self.workers else machine.compute(decoding, rank)
        messages[self.servers[0]] += p - 1  # the losses
        nbytes[self.servers[0]] += (p - 1) * 8
        for index, rank in enumerate(self.workers):
            clients = self.clients_of(rank)
            if p > 1:
                messages[rank] += len(self.servers) + len(clients)
                nbytes[rank] += 16 * len(self.servers)
                nbytes[rank] += sum(self.pushes.nbytes(server) for server in clients)
            parts = batch.shard(index, len(self.workers)).microbatches(self.microbatches)
            held[rank] += self.psi * e
            gradients[rank] += self.psi * e + self.pushes.kept_bytes(clients)
            busy[rank] += training_seconds(self.whole, parts, machine, rank)
            busy[rank] += machine.compute(self.pushes.encode_flops(clients), rank)
            activations[rank] = largest_saved(self.whole, parts, e, self.loss)
        return StepCost(
            messages=messages,
            nbytes=nbytes,
            peak_bytes={
                "parameters": held,
                "gradients": gradients,
                "optimizer": state,
                "activations": activations,
            },
            busy=busy,
            seconds=None if p > 1 else busy[0],
        )
