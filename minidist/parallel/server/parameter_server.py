"""The parameter server, synchronous: workers compute gradients, servers own the parameters.

    worker 0 ── push gradient ──▶ ╭────────╮ ── pull parameters ──▶ worker 0
    worker 1 ── push gradient ──▶ │ server │ ── pull parameters ──▶ worker 1
    worker 2 ── push gradient ──▶ ╰────────╯ ── pull parameters ──▶ worker 2
                                adds, then steps

The server waits for every worker (bulk synchronous, BSP), sums the gradients, makes one optimizer
step and answers with the new parameters. Workers keep no optimizer state. One server must receive
and send everything, so the keys are cut into S ranges, one for each of S servers (key_ranges.py).
In round k worker w sends to server w + k mod S, so workers start with different servers; a server
answers while its workers still push to others.

With W workers, S servers, n = (Ψ + 1)e bytes (one element is the loss), all ranges even:

    a worker sends      n in S messages, one to each server
    a server sends      nW/S in W messages, and receives as much (the last server, which sums the
                        losses, also sends the sum to the S - 1 others)
    memory of a server  n/S parameters, 2n/S gradients (the sum, and the one being received), and
                        1/S of the optimizer's state
    time                compute/W + 2W(α + n/S·β) + (W - 1)n/S·γ, if S ≤ W

If each of p ranks is both worker and server (``colocated``), W = S = p, and a rank sends nothing to
itself: 2(p - 1) messages and 2n(p - 1)/p bytes, with exactly the time of a ring all-reduce. Several
servers remove the bottleneck of one, but the bytes are at least those of an all-reduce.

Pushes may be compressed (pushes.py). For ``clip`` the servers sum the squared norms of their ranges
by a ring all-reduce of 8 bytes; then all scale by the same factor, as in serial training.

A worker that dies is left out, and the sum of the others is scaled up to the whole batch. If a
server dies, its keys are lost: ServerLost. Li et al., "Scaling distributed machine learning with
the parameter server", OSDI'14, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from minidist.collectives import ring
from minidist.comm.comm import Comm, Request
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array, module_of, read
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.gradient_compression.compressor import Compressor
from minidist.parallel.method import StepCost
from minidist.parallel.model_costs import frozen_count, largest_saved, training_seconds
from minidist.parallel.server.key_ranges import KeyRanges, Servers
from minidist.parallel.server.pushes import PUSH

PULL, LOSS = 2, 3  # tags: two colocated ranks push and pull in both directions


def push_tag(step: int) -> int:
    """The tag of pushes of ``step``: so a repeated or late push is not received in another step."""
    return PUSH + 3 * (step % 1000)


class ParameterServer(KeyRanges):
    """The first ``servers`` ranks serve and the others work; if ``colocated``, all do both.

    Raises ValueError if there are too few ranks.
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        servers: Servers = 1,
        colocated: bool = False,
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
            servers,
            colocated,
            extra=1,
            compressor=compressor,
            clip=clip,
            microbatches=microbatches,
        )
        self.exact = not self.pushes.compressed
        self.incoming: Array | None = None
        if self.serves and len(self.workers) > 1 and not self.pushes.compressed:
            self.incoming = module_of(self.data).empty_like(self.data)

    def train_on(self, batch: Batch) -> float:
        requests: list[Request] = []
        if self.works:
            requests = self.work(batch)
        if self.serves:
            self.serve(self.steps)
        with self.comm.step("pull"), self.servers_must_live():
            for request in requests:
                request.wait()
        if self.works:
            self.model.flat.written()
        values = self.model.flat.data_and_loss if self.works else self.data
        if self.works or self.owns_loss:
            return float(read(values[-1], math.nan))
        return self.receive_loss()

    def work(self, batch: Batch) -> list[Request]:
        """The worker: compute a gradient, then start the pushes and the pulls."""
        index, flat = self.workers.index(self.comm.rank), self.model.flat
        self.model.zero_grad()
        loss = self.accumulate(batch.shard(index, len(self.workers)))
        flat.grad_and_loss[-1] = loss
        others = [
            (server, self.servers[server])
            for worker, server in self.pairs()
            if worker == index and self.servers[server] != self.comm.rank
        ]
        messages = [
            self.pushes.pack(server, flat.grad_and_loss, self.steps) for server, _ in others
        ]
        with self.comm.step("push"):
            pulls = [
                self.comm.irecv(flat.data_and_loss[self.ranges[server]], to, PULL)
                for server, to in others
            ]
            pushes = [
                self.comm.isend(message, to, push_tag(self.steps))
                for message, (_, to) in zip(messages, others, strict=True)
            ]
        return pushes + pulls

    def serve(self, step: int) -> None:
        """The server: receive a gradient from every worker, update, answer every worker."""
        index = self.servers.index(self.comm.rank)
        clients = [self.workers[worker] for worker, server in self.pairs() if server == index]
        if self.works:
            clients.remove(self.comm.rank)  # its own gradient is in the sum already
        arrived = int(self.works)
        for worker in self.alive(clients):
            with self.without_lost_workers(), self.comm.step(f"collect from {worker}"):
                if not self.works:
                    self.comm.wait_for(worker, push_tag(step))
                into = self.incoming if arrived else self.total
                self.pushes.receive(self.comm, worker, into, push_tag(step))
                self.pushes.add(self.comm, self.total, into, arrived == 0, step)
                arrived += 1
        self.scale_for_lost(arrived)
        self.clip_total()
        self.update_keys()
        if self.owns_loss:
            self.data[-1] = self.total[-1]
        for worker in self.alive(clients):
            with self.without_lost_workers(), self.comm.step(f"answer {worker}"):
                self.comm.send(self.data, worker, PULL)
        if self.owns_loss and not self.works:
            for server in self.servers[:-1]:
                self.comm.send(self.data[-1:], server, LOSS)

    def scale_for_lost(self, arrived: int) -> None:
        """Scale the sum of the ``arrived`` gradients up to all workers, for those that died."""
        if arrived < len(self.workers):
            self.total *= len(self.workers) / arrived

    def receive_loss(self) -> float:
        """Receive the loss, on a server that does not own it, from the one that does."""
        loss = self.total[:1]  # its memory is free until the next step
        with self.servers_must_live():
            self.comm.recv(loss, self.servers[-1], LOSS)
        return float(read(loss[0], math.nan))

    @property
    def owns_loss(self) -> bool:
        """Whether the loss, the element after the last key, is in this server's range."""
        return self.serves and self.comm.rank == self.servers[-1]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(worker, server) pairs in order: in round k worker w sends to server (w + k) mod S."""
        count = len(self.servers)
        for round in range(count):
            for worker in range(len(self.workers)):
                yield worker, (worker + round) % count

    def arrays(self) -> dict[str, list[Array]]:
        found = super().arrays()
        if self.incoming is not None:
            found["gradients"].append(self.incoming[self.owned])
        return found

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above, summed over the messages, so also for uneven ranges and shards."""
        ranks, e, pushes = range(self.comm.size), self.itemsize, self.pushes
        wire = [(part.stop - part.start) * e for part in self.ranges]
        owns = [(keys.stop - keys.start) * e for keys in self.keys]
        shards = {
            rank: batch.shard(index, len(self.workers)).microbatches(self.microbatches)
            for index, rank in enumerate(self.workers)
        }
        busy, messages, nbytes = [0.0 for _ in ranks], [0 for _ in ranks], [0 for _ in ranks]
        for rank, own in shards.items():
            encoding = pushes.encode_flops(self.clients_of(rank))
            busy[rank] = training_seconds(self.whole, own, machine, rank)
            busy[rank] += machine.compute(encoding, rank)
        seconds = self._seconds([busy[rank] for rank in self.workers], machine)
        added = [rank in self.workers for rank in ranks]
        for worker, index in self.pairs():
            rank, server = self.workers[worker], self.servers[index]
            if rank == server:
                continue
            for sender, size in ((rank, pushes.nbytes(index)), (server, wire[index])):
                messages[sender] += 1
                nbytes[sender] += size
            busy[server] += machine.compute(pushes.decode_flops(index), server)
            if not pushes.compressed and added[server]:  # the first is received into the sum
                busy[server] += machine.reduce(wire[index])
            added[server] = True
        for numbers in self.norms():
            for index, server in enumerate(self.servers):
                cost = ring.all_reduce_cost(numbers, 8, index, len(self.servers), machine)
                messages[server] += cost.messages
                nbytes[server] += cost.nbytes
                busy[server] += machine.reduce(cost.reduced)
        if len(self.servers) < self.comm.size:
            messages[self.servers[-1]] += len(self.servers) - 1
            nbytes[self.servers[-1]] += (len(self.servers) - 1) * e

        owned = [0 for _ in ranks]
        for server, size in zip(self.servers, owns, strict=True):
            owned[server] = size
        whole = [self.psi * e if rank in shards else owned[rank] for rank in ranks]
        constants = frozen_count(self.whole) * e  # of the workers
        arriving = len(self.workers) > 1 and not pushes.compressed
        pushed = [
            pushes.kept_bytes(self.clients_of(rank)) if rank in shards else 0 for rank in ranks
        ]
        for index, server in enumerate(self.servers):
            pushed[server] += pushes.arriving_bytes(index) if self.comm.size > 1 else 0
        return StepCost(
            messages=messages,
            nbytes=nbytes,
            peak_bytes={
                "parameters": [whole[r] + constants * (r in shards) for r in ranks],
                "gradients": [
                    whole[rank] + owned[rank] * arriving + pushed[rank] for rank in ranks
                ],
                "optimizer": [len(self.optimizer.slots) * size for size in owned],
                "activations": [
                    largest_saved(self.whole, shards[rank], e, self.loss) if rank in shards else 0
                    for rank in ranks
                ],
            },
            busy=busy,
            seconds=seconds,
        )

    def _seconds(self, compute: list[float], machine: Machine) -> float | None:
        """The formula above for the time; None where something is uneven, compressed or clipped."""
        workers, servers = len(self.workers), len(self.servers)
        lengths = {part.stop - part.start for part in self.ranges}
        even = len(set(compute)) == len(lengths) == 1 and workers % servers == 0
        if not (even and machine.even) or self.pushes.compressed or any(self.norms()):
            return None
        n = lengths.pop() * self.itemsize
        colocated = self.servers[0] in self.workers
        messages = workers - colocated  # a rank's own gradient is in its server's sum already
        reducing = (workers - 1) * machine.reduce(n)
        losses = 0 if colocated else (servers - 1) * machine.message(self.itemsize)
        return compute[0] + 2 * messages * machine.message(n) + reducing + losses
