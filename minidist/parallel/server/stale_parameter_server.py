"""The asynchronous parameter server, with or without a bound on staleness.

    worker 0   ██ push·pull ██ push·pull ██ push·pull ██         each push is applied when it
    worker 1   ██████ push·pull ██████ push·pull ██████          arrives, and answered with the
    worker 2   ███ push·pull ███ push·pull ███ push·pull         parameters after that

No worker waits for another, so a straggler delays only itself. But between a worker's pull and its
next push, other workers have changed the parameters; so its gradient is of old parameters. Its
*staleness* τ is the number of updates in between: about W - 1 with W equally fast workers.

A bound s limits how far workers may be apart. A worker's *clock* counts its pushes. A worker gets
its answer, and so begins its next clock c, only when every worker has pushed all clocks before
c - s:

    s = 0     all wait for all: as bulk synchronous, but with one update for each push
    s         stale synchronous (SSP): the fastest is at most s clocks ahead of the slowest
    None      asynchronous: no worker waits

``stale_worker.py`` and ``stale_server.py`` are the two sides of a push. A worker that dies is left
out. For each global batch, with W workers, S servers, p = W + S ranks:

    a worker sends   2S messages, 16S + Ψe bytes
    a server sends   W messages, WΨe/S bytes
    memory           a worker: Ψe parameters and Ψe gradients; a server: 1/S of each, and 1/S of
                     the optimizer's state

At the end of a run server 0 sends the losses to all others: p - 1 messages of 8 bytes a batch. Time
and result depend on the order in which pushes arrive, so there is no formula for the seconds.

``colocated``: each of p ranks works, and serves meanwhile on its communication stream. Its server
has separate arrays, because it updates its parameters while the worker computes. Between a worker
and the server on the same rank only headers and empty answers are sent; so a rank sends
2Ψe(p - 1)/p bytes, as in a ring, and 16p of headers, in 3p - 1 messages.

Pushes may be compressed (pushes.py). ``clip`` limits the norm of each push to clip/W. The worker
has the push's whole gradient, so servers need not agree on a norm.

With ``staleness_aware`` a gradient is divided by its τ (if τ > 1): an older gradient gets a lower
weight. A shard's gradient is divided by the targets of the whole batch, so W updates of plain SGD
move as far as one synchronous update; a rule that normalises, such as Adam, moves W times as far.

Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server",
NIPS'13, section 3; Dean et al., "Large scale distributed deep networks" (Downpour), NIPS'12,
section 4.1; Zhang et al., "Staleness-aware async-SGD", arXiv 1511.05950, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.gradient_compression.compressor import Compressor
from minidist.parallel.guards import check_loss
from minidist.parallel.method import StepCost
from minidist.parallel.server.key_ranges import KeyRanges, Servers
from minidist.parallel.server.stale_cost import stale_cost
from minidist.parallel.server.stale_server import StaleServer
from minidist.parallel.server.stale_worker import StaleWorker
from minidist.parallel.state import State


class StaleParameterServer(StaleWorker, StaleServer):
    """Workers are at most ``staleness`` clocks apart; None: no bound.

    On a server, ``updates`` records every push that was applied; ``repeated`` counts repeated
    pushes, which were not. Raises ValueError for a negative bound, and for a layer-wise optimizer
    with several servers.
    """

    exact = False
    changeable = KeyRanges.changeable | {"staleness", "staleness_aware"}

    def __init__(
        self,
        model: Module,
        loss: Loss,
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
        self.check_setting("staleness", staleness)
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
        self.clock = 0
        self.start_serving(staleness, staleness_aware)

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        if name == "staleness" and value is not None and value < 0:
            raise ValueError(f"the staleness bound is 0, 1, ... or None, not {value}")

    def step(self, batch: Batch) -> float:
        """A run of one batch. Workers start with the parameters that they pulled last.

        In one batch a worker is at most one clock ahead, so a bound of 1 or more has no effect:
        see ``train``.
        """
        return self.train([batch])[0]

    def train(self, batches: Sequence[Batch]) -> list[float]:
        """Train on several global batches; each worker takes its shard of each, without waiting.

        All ranks wait for each other only at the end. Returns the loss of each batch, the same on
        every rank: the sum of its shards' losses, each at the parameters that its worker had.
        """
        with self.stepping(batches):
            self.losses = np.zeros(len(batches))
            end = self.clock + len(batches)
            if self.comm.size == 1:
                self.work_alone(batches)
            elif self.works and self.serves:
                serving = self.comm.spawn(self.serve_on_stream, end)
                self.work(batches)
                serving.wait()
            elif self.works:
                self.work(batches)
            else:
                self.serve(end)
            self.clock = self.steps = end
            self.send_to_all(self.losses, self.servers[0])
        for loss in self.losses:
            check_loss(self, float(loss))
        return [float(loss) for loss in self.losses]

    def work_alone(self, batches: Sequence[Batch]) -> None:
        """Train on a single rank, which is worker and server and sends nothing."""
        for number, batch in enumerate(batches):
            self.steps = self.clock + number
            self.losses[number] = self.compute(batch)
            self.apply(self.comm.rank, self.steps)

    def load(self, state: State) -> None:
        super().load(state)
        self.clock = self.steps
        self.clocks = dict.fromkeys(self.workers, self.clock)  # all are equal

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above, of ``step``: a run of one batch."""
        return stale_cost(self, batch, machine)
