"""Federated averaging: clients train on their own data, and send only changes of the model.

    server    w ──────┬──────────┬──────────┐                      ┌──▶ w ← w - mean change
                      ▼          ▼          ▼                      │
    clients        client 0   client 4   client 7   E epochs each, │    one round; the other clients
                      └──────────┴──────────┴─ w - w_k, weighted ──┘    do not take part

A step is a round. Its batch has the data of all clients; each client trains on the samples that it
owns (``data/clients.py``). In the paper's FedAvg the batch is the whole dataset. In a round, with K
clients of which a fraction C takes part, and n_k samples of client k:

    m = max(C·K, 1) clients are drawn, keyed by (seed, round)
    each:    w_k ← w;  for E epochs, for each local batch of B samples:  w_k ← w_k - η ∇F_k(w_k)
    server:  Δ = Σ_k (n_k / n) (w - w_k),  n over the drawn clients;     w ← w - Δ

The server steps ``optimizer`` with the gradient Δ/η. With SGD at the rate η this is the paper's
average of models; with another optimizer it is FedOpt (Reddi et al., arXiv 2003.00295). Clients
keep no state between rounds. If all clients make one step on all their data (E = 1, B = ∞, C = 1),
Δ/η is the gradient of the global mean: the method equals synchronous training.

A rank simulates several clients: rank r has the drawn clients r, r + p, ... With Ψ parameters of e
bytes, b numbers in buffers, and p ranks:

    messages a rank   2(p - 1) in a ring all-reduce of Δ, of the buffers if b > 0, and of the loss
    bytes a rank      2(Ψ + b)e(p - 1)/p, and 16(p - 1)/p for the loss, up to uneven chunks
    memory            2Ψe parameters (w, w_k), 2Ψe gradients (∇F_k, Δ), and the optimizer's state
    time              the slowest rank's clients, one after the other; then the all-reduces

In practice each client is a separate machine, which receives and sends Ψe bytes. McMahan et al.,
"Communication-efficient learning of deep networks from decentralized data", AISTATS 2017 (arXiv
1602.05629), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array, module_of
from minidist.nn.module import Module
from minidist.parallel.method import StepCost
from minidist.parallel.model_costs import (
    frozen_count,
    largest_saved,
    parameter_count,
    training_seconds,
)
from minidist.parallel.shares import Share
from minidist.privacy.rounds import Rounds, shares


class FederatedAveraging(Rounds):
    """Each step is a round: drawn clients train separately, and their changes are averaged.

    ``clients``: a ``Clients``; or the number of clients, among which each batch is divided evenly.
    ``fraction``: C, of the clients with data. ``epochs``: E. ``local_batch``: B, None for all
    samples. ``local_lr``: η, None for the optimizer's rate. ``gone``: clients that have dropped
    out; it may be changed between rounds.

    ``step`` returns the mean loss of the drawn clients during their first epoch. It raises
    NoClients if none is left, Disagreement if ranks draw different clients.
    """

    def train_on(self, batch: Batch) -> float:
        flat, parts = self.model.flat, self.parts(batch)
        samples = self.samples(parts)
        drawn = self.drawn(samples)
        self.agree_on(drawn)
        weights, share = self.weights(samples, drawn), shares(samples, drawn)
        self.start[...] = flat.data
        self.change.fill(0)
        buffers, loss = Buffers(self.model), np.zeros(1)
        self.nobody = not drawn
        self.begin(drawn)
        for client in drawn[self.comm.rank :: self.comm.size]:
            loss[0] += share[client] * self.train_client(client, parts[client])
            buffers.add(share[client])
            self.contribute(client, weights[client])
        with self.comm.step("average"):
            self.average_models(drawn)
        buffers.average(self.comm)
        self.finish()
        flat.grad[...] = self.change
        flat.grad /= self.rate()
        self.update()
        ring.all_reduce(self.comm, loss)
        return float(loss[0])

    def begin(self, drawn: Sequence[int]) -> None:
        """Called before clients train; does nothing here."""

    def train_client(self, client: int, part: Batch) -> float:
        """Train the model from w to w_k; returns the mean loss during the first epoch."""
        losses, rate = [], self.rate()
        for epoch in range(self.epochs):
            self.epoch = epoch
            for local in self.local_batches(client, part, epoch):
                self.model.zero_grad()
                loss = self.accumulate(local)
                losses.append(loss * local.own_count(self.loss) if epoch == 0 else 0.0)
                self.local_step(rate)
        self.epoch = 0
        return sum(losses) / part.own_count(self.loss)

    def local_step(self, rate: float) -> None:
        """w_k ← w_k - η ∇F_k(w_k)."""
        flat = self.model.flat
        flat.grad *= rate
        flat.data -= flat.grad
        flat.written()

    def contribute(self, client: int, weight: float) -> None:
        """Send a client's weighted change w - w_k, and set the model to w again."""
        flat = self.model.flat
        flat.grad[...] = self.start  # its memory is free until the next local step
        flat.grad -= flat.data
        self.limit(flat.grad)
        flat.grad *= weight
        self.send(client, flat.grad)
        flat.data[...] = self.start
        flat.written()

    def limit(self, change: Array) -> None:
        """Change a client's change in place before it is sent; does nothing here."""

    def send(self, client: int, change: Array) -> None:
        """Add a client's change to the sum over this rank's clients."""
        self.change += change

    def average_models(self, drawn: Sequence[int]) -> None:
        """Sum the changes over the ranks: sets ``change`` to Δ on every rank."""
        ring.all_reduce(self.comm, self.change)

    def finish(self) -> None:
        """Change Δ in place on the server; does nothing here."""

    # State and cost

    def replicated(self) -> dict[str, Array]:
        return {name: one.data for name, one in self.model.named_parameters().items()}

    def state_shares(self) -> list[Share]:
        return self.own_shares()

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Each rank's clients one after the other; then the all-reduces of the formula."""
        p, n = self.comm.size, parameter_count(self.whole) * self.itemsize
        parts = self.parts(batch)
        drawn = self.drawn(self.samples(parts))
        locals_ = [
            [
                microbatch
                for client in drawn[rank::p]
                for epoch in range(self.epochs)
                for local in self.local_batches(client, parts[client], epoch)
                for microbatch in local.microbatches(self.microbatches)
            ]
            for rank in range(p)
        ]
        series = Series(machine, p)
        series.compute([training_seconds(self.whole, locals_[r], machine, r) for r in range(p)])
        self.plan(series, drawn)
        if count := sum(buffer.data.size for buffer in self.model.named_buffers().values()):
            series.all_reduce(count, self.itemsize)
        series.all_reduce(1, 8)
        activations = [
            largest_saved(self.whole, own, self.itemsize, self.loss) if own else 0
            for own in locals_
        ]
        peak = {
            "parameters": [2 * n + frozen_count(self.whole) * self.itemsize] * p,
            "gradients": [2 * n] * p,
            "optimizer": [len(self.optimizer.slots) * n] * p,
            "activations": activations,
        }
        return StepCost(series.messages, series.nbytes, peak, series.busy, series.seconds)

    def plan(self, series: Series, drawn: Sequence[int]) -> None:
        """Add the messages of ``send`` and ``average_models`` to ``series``."""
        series.all_reduce(parameter_count(self.whole), self.itemsize)


class Buffers:
    """The model's buffers in a round: each client starts with the same, and they are averaged."""

    def __init__(self, model: Module) -> None:
        self.buffers = list(model.named_buffers().values())
        self.start = [buffer.data.copy() for buffer in self.buffers]
        self.total = [buffer.data * 0 for buffer in self.buffers]

    def add(self, share: float) -> None:
        """Add the change of the client that has trained, with this weight; reset the buffers."""
        for buffer, start, total in zip(self.buffers, self.start, self.total, strict=True):
            total += share * (buffer.data - start)
            buffer.data[...] = start

    def average(self, comm: Comm) -> None:
        """Sum the changes over the ranks, and set the new values on every rank."""
        if not self.buffers:
            return
        xp = module_of(self.total[0])
        flat = xp.concatenate([total.reshape(-1) for total in self.total])
        ring.all_reduce(comm, flat)
        first = 0
        for buffer, start in zip(self.buffers, self.start, strict=True):
            change = flat[first : first + start.size].reshape(start.shape)
            buffer.data[...] = start + change
            first += start.size
