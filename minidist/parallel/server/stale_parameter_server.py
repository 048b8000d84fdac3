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

``stale_worker.py`` and ``stale_server.py`` are the two sides of a push. A worker that dies is left
out. For each global batch, with W workers, S servers, p = W + S ranks:

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
    """Workers at most ``staleness`` clocks apart; None: as far apart as they like.

    ``updates`` is this server's record of every push it applied, ``repeated`` counts those that
    came again and were not.
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
        """A run of one batch. Workers go on with what they pulled last, stale as it is.

        Nobody gets further than one clock ahead in it: a bound of 1 or more shows in ``train``.
        """
        return self.train([batch])[0]

    def train(self, batches: Sequence[Batch]) -> list[float]:
        """Each worker takes its shard of one global batch after the other, and waits for no one.

        All ranks come together at the end. Returns the loss of each batch: the sum of its shards'
        losses, each at the parameters that its worker had. The same on every rank.
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
            self.tell(self.losses, self.servers[0])
        for loss in self.losses:
            check_loss(self, float(loss))
        return [float(loss) for loss in self.losses]

    def work_alone(self, batches: Sequence[Batch]) -> None:
        """A worker that is its own server has nobody to send to."""
        for number, batch in enumerate(batches):
            self.steps = self.clock + number
            self.losses[number] = self.compute(batch)
            self.apply(self.comm.rank, self.steps)

    def load(self, state: State) -> None:
        super().load(state)
        self.clock = self.steps
        self.clocks = dict.fromkeys(self.workers, self.clock)  # nobody is ahead

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above, of ``step``: a run of one batch."""
        return stale_cost(self, batch, machine)
