"""Method: the one interface through which every way of training is reached.

    method = DataParallel(mlp(), CrossEntropy(), SGD(0.1), comm, seed=0)
    loss = method.step(batches[0])

``step`` takes the *global* batch and returns the global mean loss, the same on every rank; which
part of the batch a rank works on is the method's business. What belongs to the step and not to the
batch, its number and its random draws, the method keeps: a batch can be stepped on again. So any
two methods can be exchanged, and compared: with one seed they start from the same parameters, see
the same data, and (if they are exact) go through the same parameters as ``Serial``, the oracle of
all.

All of them have this much in common, and a test asks each for every point:

    step, parameters, buffers     train on a global batch; read the model, whole, on every rank
    evaluate                      mean loss and accuracy over a dataset
    state, load                   save and go on, also on another number of ranks: see saving.py
    clip, microbatches            limit the gradient's norm; accumulate over parts of a shard
    cost                          messages, bytes, memory and time of a step, predicted

What a method does not support is listed in its ``refuses``, with the reason; asking for it raises
``Unsupported`` with the method's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import numpy as np

from minidist.comm.agreement import debugging
from minidist.comm.checks import no_comm
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch, Dataset
from minidist.engine.array import Array, read
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor
from minidist.nn.losses import Loss
from minidist.nn.module import Module
from minidist.optim.clip import clip_by_global_norm
from minidist.optim.mixed import MixedPrecision
from minidist.optim.optimizer import Optimizer
from minidist.parallel.blocks import name_shared
from minidist.parallel.buffers import why_inexact, with_buffers
from minidist.parallel.evaluation import evaluate
from minidist.parallel.guards import (
    POLICIES,
    all_finite,
    check_batch,
    check_built,
    check_loss,
    check_replicas,
    check_same_batches,
    replicas_due,
)
from minidist.parallel.model_costs import parameter_count, saved_bytes, training_flops
from minidist.parallel.saving import Saving
from minidist.parallel.step_cost import StepCost

__all__ = ["Method", "StepCost", "Unsupported", "parameter_count", "saved_bytes", "training_flops"]


class Unsupported(TypeError):
    """A method was asked for what it does not support: the message says why."""


class Method(Saving):
    """Base of all methods. ``model`` comes declared, not initialised: each rank builds its part.

    ``loss(output, targets, count)`` divides by ``count``, the global number of targets.
    ``optimizer`` is new. Both belong to this rank: make them inside the function that runs on
    every rank, because ranks of the local world share one process.
    """

    exact = True  # same parameters as serial training, up to rounding
    why_inexact = ""  # the reason, if it is the model that makes it inexact: see buffers.py
    changeable = frozenset({"clip", "loss"})  # see settings.py
    unskippable = ""  # why a step cannot be left out: see guards.py
    refuses: ClassVar[dict[str, str]] = {  # what it does not support, and why
        "mixed precision": "the rule MixedPrecision divides gradients by its scale, and methods do "
        "not multiply the loss by it: train with optimizer.backward(loss) in a loop of your own",
    }

    def __init__(
        self,
        model: Module,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        """``clip``: the largest norm that a step's whole gradient may have; None: any."""
        name = type(self).__name__
        if not isinstance(comm, Comm):
            raise no_comm(comm, name)
        if model.initialised:
            raise ValueError(
                "the model is initialised already: pass a declared one, built by each rank itself, "
                "since a method decides which part of it a rank holds (see saving.py to go on "
                "from saved parameters)"
            )
        if optimizer.steps or optimizer.arrays() or optimizer.owner:
            raise ValueError(
                f"the optimizer has stepped before, or is {optimizer.owner or 'another loop'}'s: "
                "each rank makes its own, new one"
            )
        self.check_setting("loss", loss)
        self.check_setting("microbatches", microbatches)
        self.check_setting("clip", clip)
        if isinstance(optimizer, MixedPrecision):
            self.refuse("mixed precision")
        named = model.named_parameters()  # once: a large model has thousands
        trained = [parameter for parameter in named.values() if parameter.requires_grad]
        if len(trained) < len(named):
            self.refuse("frozen parameters")
        if named and not trained:
            raise ValueError(f"{name}: all parameters of the model are frozen: nothing to train")
        for parameter in named.values():
            parameter.owner = name  # see Module.freeze
        optimizer.owner = name
        optimizer.parts.clear()  # the method says anew what is stepped
        name_shared(model)
        optimizer.check_groups(named)
        self.whole = model  # declared only: names, shapes and costs of all parameters
        assert isinstance(loss, Loss)  # check_setting has seen to it
        self.loss = loss
        self.optimizer = optimizer
        self.comm = comm
        self.seed = seed
        self.microbatches = microbatches
        self.clip = clip
        self.not_finite, self.replicas_every = "raise", 0  # see guards.py
        self.steps = 0  # training steps made: draws and schedules of messages are keyed by it
        self._agreed = False  # whether the ranks have compared a step's batch
        self._stepping = False
        check_built(self)

    def constructed(self) -> None:
        self.why_inexact = why_inexact(self.whole, self.copies, self.microbatches)
        if self.why_inexact:
            self.exact = False

    @property
    def copies(self) -> int:
        """Over how many ranks a batch is cut: they compute the same layers on other samples."""
        return self.comm.size

    def check_setting(self, name: str, value: Any) -> None:
        """Raise ValueError for nonsense, Unsupported for what this method refuses."""
        kind = type(self).__name__
        if name == "loss":
            if not isinstance(value, Loss):
                raise TypeError(
                    f"{kind}: the loss is a {type(value).__name__}, which does not say by how much "
                    "it is divided: make it a subclass of minidist.nn.Loss"
                )
            if value.reduction != "mean":
                raise ValueError(
                    f'{kind}: the loss has reduction="{value.reduction}", and a step needs one '
                    'number: make it with reduction="mean"'
                )
        if name == "microbatches":
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(
                    f"{kind} needs a whole number of microbatches, at least one microbatch, not "
                    f"{value!r}"
                )
            if value > 1:
                self.refuse(name)
        if name == "clip" and value is not None:
            if not (isinstance(value, (int, float, np.number)) and value > 0):
                raise ValueError(f"{kind}: the norm to clip to must be positive, not {value!r}")
            self.refuse(name)

    def refuse(self, what: str) -> None:
        """Raise Unsupported if this method does not support ``what``."""
        if what in self.refuses:
            kind = type(self).__name__
            raise Unsupported(f"{kind}: {what} is not supported: {self.refuses[what]}")

    def step(self, batch: Batch) -> float:
        """Train on one global batch; the global mean loss before the update, on every rank.

        Raises TypeError for what is no global batch, such as a shard of one, and Disagreement if
        ranks pass different ones.
        """
        with self.stepping([batch]):
            loss = self.train_on(batch)
        return self.stepped(loss)

    def stepped(self, loss: float) -> float:
        """A step has been made: see guards.py for what is checked then."""
        check_loss(self, loss)
        self.steps += 1
        if replicas_due(self) and self.comm.size > 1 and (same := self.replicated()):
            check_replicas(self.comm, same, self.steps)
        return loss

    def guard(self, not_finite: str = "raise", replicas_every: int = 0) -> None:
        """What to do if the loss is not finite, "raise", "skip" or "go on"; and after how many
        steps to compare the replicas, 0 for never: see guards.py. Every rank must call it.

        Raises Unsupported where a step cannot be skipped, or there are no replicas.
        """
        name = type(self).__name__
        if not_finite not in POLICIES:
            raise ValueError(f"{name}: not_finite={not_finite!r}: choose one of {POLICIES}")
        if not_finite == "skip" and self.unskippable:
            raise Unsupported(f"{name}: skip is not supported: {self.unskippable}")
        if replicas_every and not self.replicated():
            raise Unsupported(f"{name}: no parameter is the same on all ranks after each step")
        self.not_finite, self.replicas_every = not_finite, replicas_every
        skips = not_finite == "skip"
        self.optimizer._admits = (lambda grads: all_finite(self.comm, grads)) if skips else None

    def replicated(self) -> dict[str, Array]:
        """The parameters that are the same on all ranks after a step; none by default."""
        return {}

    def check_targets(self, batch: Batch) -> None:
        """Raise ValueError, on every rank, for targets that this method cannot use: none here."""

    def train_on(self, batch: Batch) -> float:
        """What ``step`` does: for a method to define, and for ``step`` alone to call."""
        raise TypeError(f"{type(self).__name__} does not define train_on()")

    @contextmanager
    def stepping(self, batches: Sequence[Batch]) -> Iterator[None]:
        """A step on each of these begins: refuse parts, and what other ranks do not have.

        Under MPI, where it takes a message, ranks compare at the first step, and at every one with
        ``MINIDIST_DEBUG=1``.
        """
        for batch in batches:
            check_batch(self, batch)
            self.check_targets(batch)
        if self.comm.agreeing_is_free or not self._agreed or debugging():
            check_same_batches(self, batches)
            self._agreed = True
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    def evaluate(self, dataset: Dataset, chunk: int = 1000) -> tuple[float, float]:
        """(mean loss, accuracy) over a dataset, of ``parameters()`` and ``buffers()``.

        Every rank must call it, and takes its shard of each chunk; layers compute as in evaluation.
        What the loss ignores counts for neither; the accuracy is NaN if there are no classes.
        """
        with with_buffers(self.model, self.buffers()):
            return evaluate(self.forward, self.loss, dataset, self.comm, chunk, model=self.model)

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """What the next step should send, hold and wait for, on ``machine``, with ``batch``."""
        raise TypeError(f"{type(self).__name__} does not define cost()")

    def arrays(self) -> dict[str, list[Array]]:
        """The arrays that this rank holds between steps, by kind: what memory is measured on."""
        return {
            "parameters": self.model.flat.arrays(),
            "gradients": [self.model.flat.grad],
            "optimizer": self.optimizer.arrays(),
        }

    # What most methods do

    def accumulate(self, shard: Batch) -> float:
        """Forward and backward on each microbatch of a shard: adds to the gradients."""
        loss = 0.0
        for microbatch in shard.microbatches(self.microbatches):
            loss += self.forward_backward(microbatch)
        return loss

    def forward(self, inputs: Array) -> Tensor:
        """The model's output."""
        return self.model(inputs)

    def draws_of(self, part: Batch) -> AbstractContextManager[None]:
        """Key the random draws inside by the method's seed and step, and the part's samples."""
        if not self._stepping:
            raise RuntimeError(
                f"{type(self).__name__} computes outside of a step, whose number its random draws "
                "are keyed by: call step(); a method of your own defines train_on(batch), and "
                "inherits step"
            )
        return draws(self.seed, self.steps, part.positions)

    def forward_backward(
        self, batch: Batch, before_backward: Callable[[float], object] | None = None
    ) -> float:
        """Forward and backward on a part of a batch: adds to the gradients, returns its loss.

        ``before_backward`` is called with the loss between the two.
        """
        with self.comm.step("forward"), self.draws_of(batch):
            loss = self.loss(self.forward(batch.inputs), batch.targets, batch.count(self.loss))
        if before_backward is not None:
            before_backward(float(read(loss.data, math.nan)))
        with self.comm.step("backward"):
            loss.backward()
        return float(read(loss.data, math.nan))

    def update(self) -> None:
        """One step of the optimizer on everything this rank holds."""
        if not self.optimizer.parts:
            self.optimizer.bind(self.model.flat.slices)
        with self.comm.step("optimizer"):
            if self.clip is not None:
                clip_by_global_norm(self.model.flat.grad, self.clip)
            self.optimizer.step(self.model.flat.data, self.model.flat.grad)

    @property
    def itemsize(self) -> int:
        """Bytes of a parameter."""
        return self.model.flat.data.dtype.itemsize
