"""Elastic averaging: every worker trains a copy of its own, tied to a centre by a spring.

    worker 0   ●─●─●─●─●            each worker takes τ steps of its own; then the spring pulls
                     ↖↘             the worker towards the centre, and the centre, as much,
    centre            ◎             towards the worker
                     ↙↗
    worker 1   ○─○─○─○─○

The copies may differ, and so explore; the spring keeps them within reach. Every τ-th step each
worker i sends its parameters x_i, the centre answers with its own x̃, and both move by a part α of
the difference:

    x_i ← x_i - α(x_i - x̃)          x̃ ← x̃ + α Σ_i (x_i - x̃)

The centre x̃ is the model that comes out. With W workers Wα is the centre's pull, called β in the
paper, which advises Wα = 0.9; beyond 1 the centre overshoots. Each worker's gradient is the mean of
its own shard, and its optimizer keeps its own state. With Ψ parameters of e bytes and p = W + 1:

    a worker sends   n = Ψe bytes in 1 message every τ steps
    the centre sends Wn bytes in W messages every τ steps, so τ times less than a synchronous server
    memory           a worker: parameters, gradients, optimizer state; and n to receive the centre.
                     The centre: its parameters, the sum of differences, and one worker's, arriving
    time             compute, and every τ steps 2W(α + nβ) + Wnγ after the slowest

Every step each worker tells the centre its loss, and the centre tells all the sum, which ``step``
returns for people to see: 8 bytes either way. A worker that dies is left out; if the centre dies,
``load`` the last state: as many workers go on from where they were, more or fewer from the centre.
Zhang, Choromanska, LeCun, "Deep learning with elastic averaging SGD", arXiv 1412.6651, equations 5
and 6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.collectives.cost import Cost
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array, module_of
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import Method, StepCost
from minidist.parallel.model_costs import frozen_count, largest_saved, training_seconds
from minidist.parallel.server.key_ranges import KeyRanges
from minidist.parallel.shares import Share
from minidist.parallel.state import (
    OptimizerShard,
    State,
    load_optimizer,
    mean_optimizer,
    own_replica,
)

CENTRE = 0


class ElasticAveraging(KeyRanges):
    """Rank 0 is the centre; the others meet it every ``every`` steps (τ).

    ``pull`` is Wα: how far the centre moves towards the mean of the workers, 0 to 1. A rank alone
    is a worker with nobody to meet: serial training.
    """

    exact = False
    changeable = KeyRanges.changeable | {"every"}
    refuses = KeyRanges.refuses | {
        "clip": "every worker steps on its own gradient, and none knows the norm of the whole"
    }

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        every: int = 4,
        pull: float = 0.9,
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        self.check_setting("every", every)
        if not 0 <= pull <= 1:
            raise ValueError(f"the pull of the centre is in [0, 1], not {pull}")
        super().__init__(
            model,
            loss,
            optimizer,
            comm,
            seed,
            servers=1,
            colocated=False,
            clip=clip,
            microbatches=microbatches,
        )
        if self.works and comm.size > 1:
            optimizer.bind(self.model.flat.slices)
        self.every = every
        self.alpha = pull / len(self.workers)
        self.incoming: Array | None = None
        if comm.size > 1:
            like = self.model.flat.data if self.works else self.data
            self.incoming = module_of(like).empty_like(like)

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        if name == "every" and value < 1:
            raise ValueError(f"elastic averaging meets every 1 or more steps, not {value}")

    def train_on(self, batch: Batch) -> float:
        loss = np.zeros(1)
        if self.works:
            loss[0] = self.train_alone(batch)
        if self.meets_after(self.steps):
            if self.works:
                self.visit()
            else:
                self.receive_visits()
        if self.comm.size > 1:
            self.share(loss)
        return float(loss[0])

    def share(self, loss: np.ndarray) -> None:
        """The sum of the workers' losses, on every rank; shards of the dead are like the others."""
        if self.works:
            with self.servers_must_live():
                self.comm.send(loss, CENTRE)
        else:
            arrived, one = 0, np.zeros(1)
            for worker in self.alive(self.workers):
                with self.without_lost_workers():
                    self.comm.wait_for(worker)
                    self.comm.recv(one, worker)
                    loss += one
                    arrived += 1
            loss *= len(self.workers) / arrived
        self.tell(loss, CENTRE)

    def meets_after(self, step: int) -> bool:
        """Whether workers and centre meet after this step, counted from 0."""
        return self.comm.size > 1 and (step + 1) % self.every == 0

    def train_alone(self, batch: Batch) -> float:
        """The worker: one step of its own, on the mean gradient of its shard."""
        count = len(self.workers)
        shard = batch.shard(self.workers.index(self.comm.rank), count)
        self.model.zero_grad()
        loss = self.accumulate(shard)
        own = shard.own_count(self.loss)
        if own:  # the loss divides by the whole batch's count: make it the shard's
            self.model.flat.grad *= batch.count(self.loss) / own
            self.update()
        return loss

    def visit(self) -> None:
        """The worker: show the centre its parameters, and go towards the centre's."""
        data, centre = self.model.flat.data, self.incoming
        with self.comm.step("visit"), self.servers_must_live():
            self.comm.send(data, CENTRE)
            self.comm.recv(centre, CENTRE)
        centre -= data
        centre *= self.alpha
        data += centre
        self.model.flat.written()

    def receive_visits(self) -> None:
        """The centre: add up the differences, answer with where it was, and then move."""
        centre, moves, visitor = self.data, self.total, self.incoming
        moves.fill(0)
        for worker in self.alive(self.workers):
            with self.without_lost_workers(), self.comm.step(f"collect from {worker}"):
                self.comm.wait_for(worker)
                self.comm.recv(visitor, worker)
                visitor -= centre
                self.comm.combine("sum", moves, visitor)
        for worker in self.alive(self.workers):
            with self.without_lost_workers(), self.comm.step(f"answer {worker}"):
                self.comm.send(centre, worker)
        moves *= self.alpha
        centre += moves

    # Saving and loading: the workers' models and optimizers differ

    def optimizer_shards(self) -> list[OptimizerShard]:
        """A worker's, which steps its whole model."""
        return Method.optimizer_shards(self) if self.works else []

    def state_shares(self) -> list[Share]:
        return Method.state_shares(self)

    def own_arrays(self) -> dict[str, Array]:
        return own_replica(self.model.flat.data, self.optimizer) if self.works else {}

    @property
    def keeps_own(self) -> bool:
        return True

    def optimizer_state(self, kept: State) -> State:
        """The mean of the workers'."""
        return mean_optimizer(kept, self.optimizer, self.whole)

    def load_optimizer(self, state: State) -> None:
        if self.works:
            load_optimizer(self.comm, self.optimizer_shards(), state)

    def arrays(self) -> dict[str, list[Array]]:
        """What is received or summed at a meeting is counted as gradients."""
        found = super().arrays()
        if self.incoming is not None:
            found["gradients"].append(self.incoming)
        return found

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above: compute, a meeting if there is one, and the same with the losses."""
        ranks, n = range(self.comm.size), self.psi * self.itemsize
        series, visitors = Series(machine, self.comm.size), len(self.workers) * (self.comm.size > 1)
        activations, compute = [0 for _ in ranks], [0.0 for _ in ranks]
        for index, rank in enumerate(self.workers):
            parts = batch.shard(index, len(self.workers)).microbatches(self.microbatches)
            compute[rank] = training_seconds(self.whole, parts, machine, rank)
            activations[rank] = largest_saved(self.whole, parts, self.itemsize, self.loss)
        series.compute(compute)
        # The centre is through before any worker comes, and the last to be through after that.
        series.together = len({compute[rank] for rank in self.workers}) == 1

        def exchange(nbytes: int, adding: float, added: int) -> None:
            """The workers send to the centre, one by one, and it answers them, one by one."""
            seconds = visitors * (2 * machine.message(nbytes) + adding)
            at_centre = Cost(visitors, visitors * nbytes, seconds, visitors * added)
            visit = Cost(1, nbytes, seconds)
            series.add([at_centre if rank == CENTRE else visit for rank in ranks])

        if self.meets_after(self.steps):
            exchange(n, machine.reduce(n), n)
        if self.comm.size > 1:
            exchange(8, 0.0, 0)
        slots = len(self.optimizer.slots)
        met = self.comm.size > 1
        return StepCost(
            messages=series.messages,
            nbytes=series.nbytes,
            peak_bytes={
                "parameters": [
                    n + frozen_count(self.whole) * self.itemsize * (rank in self.workers)
                    for rank in ranks
                ],
                "gradients": [(1 + met) * n for _ in ranks],
                "optimizer": [slots * n if rank in self.workers else 0 for rank in ranks],
                "activations": activations,
            },
            busy=series.busy,
            seconds=series.seconds,
        )
