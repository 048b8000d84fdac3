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
from minidist.nn.layers import Sequential
from minidist.nn.module import Module, Shape
from minidist.optim.clip import clip_by_global_norm
from minidist.optim.mixed import MixedPrecision
from minidist.optim.optimizer import Optimizer


@dataclass(frozen=True)
class StepCost:
    """What one training step should cost, for each rank: lists, indexed by rank.

    ``messages`` and ``nbytes``: sent. ``peak_bytes``: held, by kind: parameters, gradients,
    optimizer, activations. ``busy``: seconds computing; ``seconds``: the whole step, None where
    it depends on who comes first.
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
    ``optimizer`` is fresh. Both belong to this rank: make them inside the function that runs on
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
                "since a method decides which part of it a rank holds (see resume.py to go on "
                "from saved parameters)"
            )
        if optimizer.steps or optimizer.state:
            raise ValueError("the optimizer has stepped before: each rank makes its own, fresh one")
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

    # What most methods do

    def forward_backward(
        self, batch: Batch, before_backward: Callable[[float], object] | None = None
    ) -> float:
        """Forward and backward on a part of a batch: adds to the gradients, returns its loss.

        ``before_backward`` is called with the loss between the two.
        """
        with self.comm.step("forward"), draws(batch.seed, batch.step, batch.positions):
            loss = self.loss(self.model(batch.inputs), batch.targets, batch.count)
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


def parameter_count(model: Module) -> int:
    """Ψ, the number of parameters, of a declared model too."""
    return sum(parameter.size for parameter in model.parameters())


def training_flops(model: Sequential, shape: Shape, input_grad: bool = False) -> tuple[int, int]:
    """FLOPs of (forward, backward) on an input of ``shape``.

    A block computes its input's gradient only if something before it wants one.
    """
    forward = backward = 0
    for block, cost in zip(model.blocks.values(), model.costs(shape), strict=True):
        forward += cost.flops
        backward += cost.weight_flops + (cost.input_flops if input_grad else 0)
        input_grad = input_grad or bool(block.named_parameters())
    return forward, backward


def saved_bytes(model: Sequential, shape: Shape, itemsize: int, loss: Module | None) -> int:
    """Bytes that a forward on an input of ``shape`` saves for its backward, the input included.

    ``loss`` is there if this part of the model ends in it.
    """
    cost = model.cost(shape, itemsize)
    saved = cost.saved_bytes
    if cost.saves_input:
        saved += int(np.prod(shape)) * itemsize
    if cost.saves_output:
        saved += int(np.prod(cost.shape)) * itemsize
    if loss is not None:
        saved += loss.cost(cost.shape, itemsize).saved_bytes
    return saved
