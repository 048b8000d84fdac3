"""Method: the one interface through which every way of training is reached.

    method = DataParallel(mlp(), CrossEntropy(), SGD(0.1), comm, seed=0)
    loss = method.step(batches[0])

``step`` takes the *global* batch and returns the global mean loss, the same on every rank; which
part of the batch a rank works on is the method's business. So any two methods can be exchanged,
and compared: with one seed they start from the same parameters, see the same data, and (if they
are exact) go through the same parameters as ``Serial``, the oracle of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.clip import clip_by_global_norm
from minidist.optim.mixed import MixedPrecision
from minidist.optim.optimizer import Optimizer
from minidist.parallel.model_costs import parameter_count, saved_bytes, training_flops
from minidist.parallel.state import (
    OptimizerShard,
    State,
    check_names,
    load_optimizer,
    save_optimizer,
    under,
)

__all__ = ["Method", "StepCost", "parameter_count", "saved_bytes", "training_flops"]


@dataclass(frozen=True)
class StepCost:
    """What one training step should cost, for each rank: lists, indexed by rank.

    ``messages`` and ``nbytes``: sent. ``peak_bytes``: held, by kind: parameters, gradients,
    optimizer, activations. ``busy``: seconds computing; ``seconds``: the whole step, None where
    it depends on who comes first, or no formula is known.
    """

    messages: list[int]
    nbytes: list[int]
    peak_bytes: dict[str, list[int]]
    busy: list[float]
    seconds: float | None

    @property
    def idle_fraction(self) -> float | None:
        """The share of all ranks' time in which they do not compute; None if unknown."""
        if self.seconds is None:
            return None
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0


class Method:
    """Base of all methods. ``model`` comes declared, not initialised: each rank builds its part.

    ``loss(output, targets, count)`` divides by ``count``, the global number of targets.
    ``optimizer`` is new. Both belong to this rank: make them inside the function that runs on
    every rank, because ranks of the local world share one process.
    """

    model: Sequential  # the part of the model that this rank holds
    exact = True  # same parameters as serial training, up to rounding
    clip: float | None = None  # the largest norm that a step's whole gradient may have

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
    ) -> None:
        if model.initialised:
            raise ValueError(
                "the model is initialised already: pass a declared one, built by each rank itself, "
                "since a method decides which part of it a rank holds (see state.py to go on "
                "from saved parameters)"
            )
        if optimizer.steps or optimizer.state:
            raise ValueError("the optimizer has stepped before: each rank makes its own, new one")
        if isinstance(optimizer, MixedPrecision):
            raise TypeError(
                "MixedPrecision divides gradients by its scale, and methods do not multiply the "
                "loss by it: train with optimizer.backward(loss) in a loop of your own"
            )
        self.whole = model  # declared only: names, shapes and costs of all parameters
        self.loss = loss
        self.optimizer = optimizer
        self.comm = comm
        self.seed = seed

    def step(self, batch: Batch) -> float:
        """Train on one global batch; the global mean loss before the update, on every rank."""
        raise TypeError(f"{type(self).__name__} does not define step()")

    def parameters(self) -> dict[str, np.ndarray]:
        """All parameters, by name and of serial shape, on the host. Every rank must call it."""
        return self.model.state()

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """What ``step(batch)`` should send, hold and wait for, on ``machine``."""
        raise TypeError(f"{type(self).__name__} does not define cost()")

    def holds(self) -> dict[str, list[Array]]:
        """The arrays that this rank holds between steps, by kind: what memory is measured on."""
        return {
            "parameters": [self.model.flat.data],
            "gradients": [self.model.flat.grad],
            "optimizer": list(self.optimizer.state.values()),
        }

    # Saving and loading: see state.py

    def optimizer_shards(self) -> list[OptimizerShard]:
        """All that this rank's optimizers step; by default the whole model."""
        flat = self.model.flat
        return [
            OptimizerShard(self.model.named_parameters(), flat.slices, self.optimizer, flat.data)
        ]

    def state(self) -> State:
        """All that training needs to go on, on every rank. Every rank must call it.

        Raises TypeError if the ranks' models, or what they owe each other, differ.
        """
        self.check_resumable()
        found = {f"parameters/{name}": value for name, value in self.parameters().items()}
        return found | save_optimizer(self.comm, self.optimizer_shards())

    def load(self, state: State) -> None:
        """Go on from ``state()`` of any number of ranks, of the same model and optimizer.

        Raises KeyError if the state is another model's or another optimizer's.
        """
        self.check_resumable()
        expected = {f"parameters/{n}" for n in self.whole.named_parameters()}
        expected |= {f"parameters/{n}" for n in self.whole.named_buffers()} | {"steps"}
        if "steps" in state and state["steps"] > 0:
            for name in self.whole.named_parameters():
                expected |= {f"optimizer/{slot}/{name}" for slot in self.optimizer.slots}
        check_names(state, expected)
        self.load_parameters(under("parameters/", state))
        load_optimizer(self.comm, self.optimizer_shards(), state)

    def load_parameters(self, by_name: State) -> None:
        self.model.load(by_name)

    def check_resumable(self) -> None:
        if not self.exact:
            raise TypeError(
                f"{type(self).__name__}: the ranks' models, or the errors they keep, differ, and "
                "other ranks could not take them over: save parameters(), and start anew from them"
            )

    # What most methods do

    def forward(self, inputs: Array) -> Tensor:
        """The model's output."""
        return self.model(inputs)

    def forward_backward(
        self, batch: Batch, before_backward: Callable[[float], object] | None = None
    ) -> float:
        """Forward and backward on a part of a batch: adds to the gradients, returns its loss.

        ``before_backward`` is called with the loss between the two.
        """
        with self.comm.step("forward"), draws(batch.seed, batch.step, batch.positions):
            loss = self.loss(self.forward(batch.inputs), batch.targets, batch.count)
        if before_backward is not None:
            before_backward(loss.item())
        with self.comm.step("backward"):
            loss.backward()
        return loss.item()

    def update(self) -> None:
        """One step of the optimizer on everything this rank holds."""
        if self.optimizer.layout is None:
            self.optimizer.bind(self.model.flat.slices)
        with self.comm.step("optimizer"):
            if self.clip is not None:
                clip_by_global_norm(self.model.flat.grad, self.clip)
            self.optimizer.step(self.model.flat.data, self.model.flat.grad)

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter."""
        return self.model.flat.data.dtype.itemsize
