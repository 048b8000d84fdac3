"""The worker's side of a stale parameter server: compute, push and pull for each batch.

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
        """Compute the gradient of this worker's shard, clipped; returns the shard's loss.

        Each push is one update, and its worker has the whole gradient, so it can clip alone. W
        pushes make a batch, so the norm of each is limited to clip/W.
        """
        self.model.zero_grad()
        index = self.workers.index(self.comm.rank)
        loss = self.accumulate(batch.shard(index, len(self.workers)))
        if self.clip is not None:
            clip_by_global_norm(self.model.flat.grad, self.clip / len(self.workers))
        return loss

    def push_and_pull(self, clock: int, loss: float) -> None:
        """Send every server its range of the gradient, and wait for its parameters."""
        flat, count = self.model.flat, len(self.servers)
        first = self.workers.index(self.comm.rank)  # so that workers start with different servers
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
            for index in order:  # this rank's own server reads the gradient in place
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
        """The buffer for a server's answer: empty for this rank's own server, which writes into
        the model."""
        same_rank = self.servers[index] == self.comm.rank
        return self.model.flat.data[slice(0, 0) if same_rank else self.ranges[index]]
