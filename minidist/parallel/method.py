"""Method: the one interface of every way of training.

    method = DataParallel(mlp(), CrossEntropy(), SGD(0.1), comm, seed=0)
    loss = method.step(batches[0])

``step`` takes the *global* batch and returns the global mean loss, the same on every rank. The
method decides which part of the batch each rank computes. It also counts the steps, and keys random
draws by the step; so the same batch can be used in several steps. Any two methods can therefore be
compared: with the same seed they start from the same parameters and see the same data. After each
step an exact method has the parameters of ``Serial``, the reference.

All methods have this in common, and a test checks each point for each method:

    step, parameters, buffers     train on a global batch; read the whole model, on every rank
    evaluate                      mean loss and accuracy over a dataset
    state, load                   save and continue, on any number of ranks: see saving.py
    clip, microbatches            limit the gradient's norm; accumulate over parts of a shard
    cost                          predicted messages, bytes, memory and time of a step

What a method does not support is listed in its ``refuses``, with the reason. Asking for it raises
``Unsupported`` with the method's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

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
from minidist.parallel.arguments import check_argument, check_unused
from minidist.parallel.blocks import name_shared
from minidist.parallel.buffers import why_inexact, with_buffers
from minidist.parallel.evaluation import evaluate
from minidist.parallel.guards import Guarded, check_built
from minidist.parallel.model_costs import parameter_count, saved_bytes, training_flops
from minidist.parallel.saving import Saving
from minidist.parallel.settings import Unsupported
from minidist.parallel.step_cost import StepCost

__all__ = ["Method", "StepCost", "Unsupported", "parameter_count", "saved_bytes", "training_flops"]


class Method(Guarded, Saving):
    """Base of all methods. ``model`` is declared, not initialised: each rank builds its own part.

    ``loss(output, targets, count)`` divides by ``count``, the global number of targets.
    ``optimizer`` has made no step yet. Make model and optimizer inside the function that runs on
    every rank: ranks of the local world share one process, and must not share these.
    """

    exact = True  # same parameters as serial training, up to rounding
    why_inexact = ""  # the reason, if the model makes the method inexact: see buffers.py
    changeable = frozenset({"clip", "loss"})  # see settings.py
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
        """``clip``: the largest norm allowed for a step's whole gradient; None: no limit."""
        super().__init__()
        name = type(self).__name__
        if not isinstance(comm, Comm):
            raise no_comm(comm, name)
        check_unused(model, optimizer)
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
        optimizer.parts.clear()  # the method binds the optimizer to its own part of the model
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
        self.steps = 0  # training steps made: random draws are keyed by it
        check_built(self)

    def constructed(self) -> None:
        self.why_inexact = why_inexact(self.whole, self.copies, self.microbatches)
        if self.why_inexact:
            self.exact = False

    @property
    def copies(self) -> int:
        """The number of ranks over which a batch is cut; they compute the same layers."""
        return self.comm.size

    def check_setting(self, name: str, value: Any) -> None:
        """Raise ValueError or TypeError for a wrong value, Unsupported for an unsupported one."""
        check_argument(type(self).__name__, name, value)
        if (name == "microbatches" and value > 1) or (name == "clip" and value is not None):
            self.refuse(name)

    def refuse(self, what: str) -> None:
        """Raise Unsupported if this method does not support ``what``."""
        if what in self.refuses:
            kind = type(self).__name__
            raise Unsupported(f"{kind}: {what} is not supported: {self.refuses[what]}")

    def step(self, batch: Batch) -> float:
        """Train on one global batch; return the global mean loss before the update, on every rank.

        Raises TypeError for anything but a global batch, such as a shard of one; ValueError if all
        targets are ignored; Disagreement if ranks pass different batches; NotFinite: see ``guard``.
        """
        with self.stepping([batch]):
            loss = self.train_on(batch)
        return self.stepped(loss)

    def train_on(self, batch: Batch) -> float:
        """One training step. Each method defines it, and only ``step`` calls it."""
        raise TypeError(f"{type(self).__name__} does not define train_on()")

    def evaluate(self, dataset: Dataset, chunk: int = 1000) -> tuple[float, float]:
        """(mean loss, accuracy) over a dataset, with ``parameters()`` and ``buffers()``.

        Every rank must call it, and evaluates its shard of each chunk of samples, in evaluation
        mode. Targets that the loss ignores count for neither number. The accuracy is NaN if there
        are no classes.
        """
        with with_buffers(self.model, self.buffers()):
            return evaluate(self.forward, self.loss, dataset, self.comm, chunk, model=self.model)

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The predicted cost of the next step, on ``batch``, on ``machine``."""
        raise TypeError(f"{type(self).__name__} does not define cost()")

    def arrays(self) -> dict[str, list[Array]]:
        """The arrays that this rank keeps between steps, by kind. Memory is measured from them."""
        return {
            "parameters": self.model.flat.arrays(),
            "gradients": [self.model.flat.grad],
            "optimizer": self.optimizer.arrays(),
        }

    # What most methods do

    def accumulate(self, shard: Batch) -> float:
        """Forward and backward on each microbatch of a shard; adds to the gradients, and returns
        the shard's loss."""
        loss = 0.0
        for microbatch in shard.microbatches(self.microbatches):
            loss += self.forward_backward(microbatch)
        return loss

    def forward(self, inputs: Array) -> Tensor:
        """The model's output."""
        return self.model(inputs)

    def draws_of(self, part: Batch) -> AbstractContextManager[None]:
        """Key random draws inside the block by (seed, step, positions of the part's samples)."""
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

        ``before_backward`` is called with the loss, after the forward.
        """
        with self.comm.step("forward"), self.draws_of(batch):
            loss = self.loss(self.forward(batch.inputs), batch.targets, batch.count(self.loss))
        if before_backward is not None:
            before_backward(float(read(loss.data, math.nan)))
        with self.comm.step("backward"):
            loss.backward()
        return float(read(loss.data, math.nan))

    def update(self) -> None:
        """One step of the optimizer on all parameters that this rank holds."""
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
