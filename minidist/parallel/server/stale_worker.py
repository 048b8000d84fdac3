"""What a worker of a stale parameter server does: compute, push, pull, for batch after batch.

A push to each server is two messages: a header (the worker's clock, its loss), then the server's
range of the gradient. The server's answer is its range of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.optim.clip import clip_by_global_norm
from minidist.parallel.server.key_ranges import KeyRanges
from minidist.parallel.server.pushes import PUSH

PULL = 2  # tag


class StaleWorker(KeyRanges):
    """The worker's side of ``StaleParameterServer``."""

    clock: int  # batches trained on before this run

    def work(self, batches: Sequence[Batch]) -> None:
        """Compute, push, pull, for every batch."""
        for clock, batch in enumerate(batches, self.clock):
            self.steps = clock
            loss = self.compute(batch)
            self.push_and_pull(clock, loss)

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
        flat.written()

    def push(self, server: int, message: Sequence[Array]) -> None:
        """One push to one server: header, then gradient."""
        for array in message:
            self.comm.send(array, server, PUSH)

    def pulled_into(self, index: int) -> Array:
        """Where a server's answer goes: the one beside it writes, and only says so."""
        beside = self.servers[index] == self.comm.rank
        return self.model.flat.data[slice(0, 0) if beside else self.ranges[index]]
