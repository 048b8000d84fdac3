"""Elastic averaging: every worker trains its own model, which is pulled towards a common centre.

    worker 0   ●─●─●─●─●            each worker makes τ steps alone; then an elastic force pulls
                     ↖↘             the worker towards the centre, and the centre, equally,
    centre            ◎             towards the worker
                     ↙↗
    worker 1   ○─○─○─○─○

The workers' models may differ, so they explore more; the elastic force limits the difference. Every
τ steps worker i sends its parameters x_i and receives the centre's x̃. Both move by a part α of the
difference:

    x_i ← x_i - α(x_i - x̃)          x̃ ← x̃ + α Σ_i (x_i - x̃)

The result of training is the centre x̃. With W workers, the paper calls Wα β, and uses Wα = 0.9;
above 1 the centre overshoots the workers' mean. Each worker's gradient is the mean over its own
shard, and its optimizer has its own state. With Ψ parameters of e bytes and p = W + 1:

    a worker sends   n = Ψe bytes in 1 message every τ steps
    the centre sends Wn bytes in W messages every τ steps, so τ times less than a synchronous server
    memory           a worker: parameters, gradients, optimizer state; n to receive the centre.
                     The centre: its parameters, the sum of differences, and n to receive a worker
    time             compute, and every τ steps 2W(α + nβ) + Wnγ after the slowest worker

In every step each worker sends its loss to the centre, and the centre sends the sum to all ranks:
8 bytes a message. ``step`` returns it; training does not use it. A worker that dies is left out. If
the centre dies, ``load`` the last state: the same number of workers continue with their own models,
any other number with the centre's. Zhang, Choromanska, LeCun, "Deep learning with elastic averaging
SGD", arXiv 1412.6651, equations 5 and 6.
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
    """Rank 0 is the centre; the other ranks are workers, which exchange every ``every`` steps (τ).

    ``pull`` is Wα, in [0, 1]: how far the centre moves towards the workers' mean. With one rank
    there is no centre: serial training. Raises ValueError for a ``pull`` or ``every`` out of range.
    """

    exact = False
    changeable = KeyRanges.changeable | {"every"}
    refuses = KeyRanges.refuses | {
        "clip": "every worker steps with its own gradient, so no rank knows the whole norm"
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
            raise ValueError(f"pull, how far the centre moves, must be in [0, 1], not {pull}")
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
            raise ValueError(f"elastic averaging exchanges every 1 or more steps, not {value}")

    def train_on(self, batch: Batch) -> float:
        loss = np.zeros(1)
        if self.works:
            loss[0] = self.local_step(batch)
        if self.exchanges_after(self.steps):
            if self.works:
                self.exchange()
            else:
                self.serve()
        if self.comm.size > 1:
            self.sum_losses(loss)
        return float(loss[0])

    def sum_losses(self, loss: np.ndarray) -> None:
        """The sum of the workers' losses, on every rank, scaled up for workers that died."""
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
        self.send_to_all(loss, CENTRE)

    def exchanges_after(self, step: int) -> bool:
        """Whether workers and centre exchange parameters after this step, counted from 0."""
        return self.comm.size > 1 and (step + 1) % self.every == 0

    def local_step(self, batch: Batch) -> float:
        """The worker: one optimizer step with the mean gradient of its shard."""
        count = len(self.workers)
        shard = batch.shard(self.workers.index(self.comm.rank), count)
        self.model.zero_grad()
        loss = self.accumulate(shard)
        own = shard.own_count(self.loss)
        if own:  # the loss divides by the whole batch's count; here it must be the shard's
            self.model.flat.grad *= batch.count(self.loss) / own
            self.update()
        return loss

    def exchange(self) -> None:
        """The worker: send its parameters, receive the centre's, and move towards them."""
        data, centre = self.model.flat.data, self.incoming
        with self.comm.step("exchange"), self.servers_must_live():
            self.comm.send(data, CENTRE)
            self.comm.recv(centre, CENTRE)
        centre -= data
        centre *= self.alpha
        data += centre
        self.model.flat.written()

    def serve(self) -> None:
        """The centre: sum the differences, send its old parameters, then move."""
        centre, moves, received = self.data, self.total, self.incoming
        moves.fill(0)
        for worker in self.alive(self.workers):
            with self.without_lost_workers(), self.comm.step(f"collect from {worker}"):
                self.comm.wait_for(worker)
                self.comm.recv(received, worker)
                received -= centre
                self.comm.combine("sum", moves, received)
        for worker in self.alive(self.workers):
            with self.without_lost_workers(), self.comm.step(f"answer {worker}"):
                self.comm.send(centre, worker)
        moves *= self.alpha
        centre += moves

    # Saving and loading: the workers' models and optimizers differ

    def optimizer_shards(self) -> list[OptimizerShard]:
        """The whole model on a worker, nothing on the centre."""
        return Method.optimizer_shards(self) if self.works else []

    def state_shares(self) -> list[Share]:
        return Method.state_shares(self)

    def own_arrays(self) -> dict[str, Array]:
        return own_replica(self.model.flat.data, self.optimizer) if self.works else {}

    @property
    def has_own_arrays(self) -> bool:
        return True

    def optimizer_state(self, kept: State) -> State:
        """The mean of the workers' optimizer states."""
        return mean_optimizer(kept, self.optimizer, self.whole)

    def load_optimizer(self, state: State) -> None:
        if self.works:
            load_optimizer(self.comm, self.optimizer_shards(), state)

    def arrays(self) -> dict[str, list[Array]]:
        """Memory for received parameters and for sums of differences counts as gradients."""
        found = super().arrays()
        if self.incoming is not None:
            found["gradients"].append(self.incoming)
        return found

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above: compute, an exchange of parameters (every τ steps), one of losses."""
        ranks, n = range(self.comm.size), self.psi * self.itemsize
        series, partners = Series(machine, self.comm.size), len(self.workers) * (self.comm.size > 1)
        activations, compute = [0 for _ in ranks], [0.0 for _ in ranks]
        for index, rank in enumerate(self.workers):
            parts = batch.shard(index, len(self.workers)).microbatches(self.microbatches)
            compute[rank] = training_seconds(self.whole, parts, machine, rank)
            activations[rank] = largest_saved(self.whole, parts, self.itemsize, self.loss)
        series.compute(compute)
        # The centre computes nothing, so it is ready first. After an exchange it is the last.
        series.together = len({compute[rank] for rank in self.workers}) == 1

        def add_exchange(nbytes: int, adding: float, added: int) -> None:
            """The workers send to the centre one after the other; it answers in the same way."""
            seconds = partners * (2 * machine.message(nbytes) + adding)
            at_centre = Cost(partners, partners * nbytes, seconds, partners * added)
            at_worker = Cost(1, nbytes, seconds)
            series.add([at_centre if rank == CENTRE else at_worker for rank in ranks])

        if self.exchanges_after(self.steps):
            add_exchange(n, machine.reduce(n), n)
        if self.comm.size > 1:
            add_exchange(8, 0.0, 0)
        slots = len(self.optimizer.slots)
        several = self.comm.size > 1
        return StepCost(
            messages=series.messages,
            nbytes=series.nbytes,
            peak_bytes={
                "parameters": [
                    n + frozen_count(self.whole) * self.itemsize * (rank in self.workers)
                    for rank in ranks
                ],
                "gradients": [(1 + several) * n for _ in ranks],
                "optimizer": [slots * n if rank in self.workers else 0 for rank in ranks],
                "activations": activations,
            },
            busy=series.busy,
            seconds=series.seconds,
        )
