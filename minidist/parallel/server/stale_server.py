"""The server's side of a stale parameter server: receive pushes as they arrive, apply and answer.

A worker's *clock* counts its pushes. The server answers a push, which lets the worker begin its
next clock, when no worker is behind by more than the bound (``may_go``). The clock also
identifies a repeated push: it is received, but not applied again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minidist.comm.comm import ANY, Comm
from minidist.engine.array import Array
from minidist.parallel.server.key_ranges import KeyRanges
from minidist.parallel.server.pushes import PUSH
from minidist.parallel.server.stale_worker import PULL


@dataclass(frozen=True, slots=True)
class Update:
    """A push that a server applied.

    ``staleness``: updates between the worker's pull and this one. ``lead``: clocks by which the
    worker was ahead of the slowest when it began this clock. ``time``: the server's clock, seconds.
    """

    worker: int
    clock: int
    staleness: int
    lead: int
    time: float


class StaleServer(KeyRanges):
    """The server's side of ``StaleParameterServer``."""

    clock: int  # batches trained on before this run

    def start_serving(self, staleness: int | None, staleness_aware: bool) -> None:
        """Set the bound, and the server's records of its workers before the first push."""
        self.staleness = staleness
        self.staleness_aware = staleness_aware
        self.clocks = dict.fromkeys(self.workers, 0)  # pushes applied, by worker
        self.pulled = dict.fromkeys(self.workers, 0)  # updates before its last pull
        self.leads = dict.fromkeys(self.workers, 0)  # clocks ahead at its last answer
        self.waiting: list[int] = []  # workers that pushed and have no answer yet
        self.updates: list[Update] = []
        self.repeated = 0
        self.losses = np.zeros(0)  # by batch of this run
        self.arrived = np.zeros(0, int)  # shards received, by batch

    def serve_on_stream(self, stream: Comm, clock: int) -> None:
        """``serve`` on the communication stream, while this rank's worker computes."""
        self.server_comm = stream.main
        self.serve(clock)

    def serve(self, clock: int) -> None:
        """Serve pushes as they arrive, until every living worker has pushed all below ``clock``."""
        self.arrived = np.zeros(len(self.losses), int)  # by batch
        while self.slowest() < clock:
            with self.without_lost_workers():
                self.receive_push()
            for worker in [worker for worker in self.waiting if self.may_go(worker)]:
                with self.without_lost_workers():
                    self.answer(worker)
        # If shards of a batch are missing, scale the loss of the others up to the whole batch.
        self.losses *= len(self.workers) / np.maximum(self.arrived, 1)

    def slowest(self) -> int:
        """The clock of the slowest living worker."""
        return min(clock for worker, clock in self.clocks.items() if worker not in self.lost)

    def receive_push(self) -> None:
        """Receive a push, and apply it unless it was applied before."""
        header = np.empty(2)
        with self.server_comm.step("wait for a push"):
            worker = self.server_comm.recv(header, ANY, PUSH)
        clock, loss = int(header[0]), float(header[1])
        if worker == self.comm.rank:  # this rank's worker: read its gradient in place
            self.total[...] = self.model.flat.grad[self.ranges[self.pushes.server]]
        else:
            with self.server_comm.step(f"collect from {worker}"):
                self.pushes.receive(self.server_comm, worker, self.total)
        if clock < self.clocks[worker]:
            self.repeated += 1  # it has been answered already
            return
        if worker != self.comm.rank:
            self.pushes.add(self.server_comm, self.total, self.total, True, clock)
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
        time = self.server_comm.time()
        self.updates.append(Update(worker, clock, staleness, self.leads[worker], time))
        if self.comm.size == 1:  # worker and server use the same parameters
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
        with self.server_comm.step(f"answer {worker}"):
            if worker == self.comm.rank:  # write into this rank's model; the answer is empty
                self.model.flat.data[self.ranges[self.pushes.server]] = values
                values = values[:0]
            self.server_comm.send(values, worker, PULL)

    def values_for(self, worker: int) -> Array:
        """The parameters to send to a worker."""
        return self.data
