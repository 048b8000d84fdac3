"""Guards: checks of a method that find errors which would silently give wrong numbers.

    method.guard(not_finite="skip", replicas_every=100)

If ranks build a method from different seeds, models or optimizers, their replicas differ, and
nothing fails. So ranks compare a digest of these when the method is built (``check_built``; 8 bytes
per rank), and a digest of their batches (``check_same_batches``; when: see ``stepping``).

The loss is the same on every rank. If it is not finite, all ranks follow the same policy:

    "raise"   raise NotFinite. The parameters may have been updated: continue from a checkpoint
    "skip"    if a gradient of any rank is not finite, the optimizer does not step. This costs one
              more all-reduce of 8 bytes, and a pass over the gradients
    "go on"   continue training

A flipped bit changes one replica only. ``check_replicas`` hashes every parameter on every rank, and
names the first parameter that differs, with the rank. It runs every ``replicas_every`` steps (0:
never), or after every step with ``MINIDIST_DEBUG=1``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import numpy as np

from minidist.collectives import ring
from minidist.comm.agreement import debugging
from minidist.comm.comm import Comm
from minidist.comm.errors import Disagreement
from minidist.data.batches import Batch
from minidist.engine.array import Array, has_numbers, module, module_has_numbers, module_of, read
from minidist.engine.digests import digest
from minidist.engine.fusion import compiler
from minidist.nn.losses import Loss
from minidist.optim.optimizer import Optimizer
from minidist.parallel.settings import Unsupported

Method = Any  # minidist.parallel.method, which imports this file

POLICIES = ("raise", "skip", "go on")


class NotFinite(ArithmeticError):
    """The loss is NaN or infinite."""


class Guarded:
    """Base of ``Method``: what is checked before and after a step."""

    unskippable = ""  # the reason, if a step cannot be skipped
    loss: Loss
    optimizer: Optimizer
    comm: Comm
    seed: int
    steps: int  # training steps made

    def __init__(self) -> None:
        self.not_finite, self.replicas_every = "raise", 0  # see guard()
        self.debug = debugging()  # asking the environment at each step would take 15 µs
        self._agreed = False  # whether the ranks have compared a step's batch
        self._stepping = False

    def guard(self, not_finite: str = "raise", replicas_every: int = 0) -> None:
        """Set ``not_finite``, what to do if the loss is not finite: "raise", "skip" or "go on"; and
        ``replicas_every``, after how many steps to compare the replicas (0: never).

        Every rank must call it. Raises ValueError for another policy, and Unsupported if a step
        cannot be skipped or there are no replicas.
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
        self.optimizer._may_step = (lambda grads: all_finite(self.comm, grads)) if skips else None

    @contextmanager
    def stepping(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Check ``batches`` before a step on each of them: whole, and the same on all ranks.

        Under MPI comparing takes a message. There, ranks compare at the first step only, or at
        every step with ``MINIDIST_DEBUG=1`` in the environment when the method is built.
        """
        for batch in batches:
            check_batch(self, batch)
            self.check_targets(batch)
        if self.comm.agreeing_is_free or not self._agreed or self.debug:
            check_same_batches(self, batches)
            self._agreed = True
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    def stepped(self, loss: float) -> float:
        """Count a step that was made, and check its loss and the replicas."""
        if not isfinite(loss):
            check_loss(self, loss)
        self.steps += 1
        every = self.replicas_every or self.debug  # True is 1
        if every and self.steps % every == 0 and self.comm.size > 1 and (same := self.replicated()):
            check_replicas(self.comm, same, self.steps)
        return loss

    def replicated(self) -> dict[str, Array]:
        """The parameters that are the same on all ranks after a step; none by default."""
        return {}

    def check_targets(self, batch: Batch) -> None:
        """Raise ValueError, on every rank, for targets that this method cannot use. Accepts all
        by default."""


def check_built(method: Method) -> None:
    """Raise Disagreement, on every rank, unless all ranks build the same method.

    Compared are its class, seed, microbatches and clip; the names and shapes of the parameters; the
    class of the loss; the optimizer with its settings; and MINIDIST_FUSE (see engine/fusion.py).
    """
    shapes = {name: one.shape for name, one in method.whole.named_parameters().items()}
    settings = (type(method).__name__, method.seed, method.microbatches, method.clip)
    optimizer = repr(method.optimizer) if not callable(method.optimizer.lr) else "a schedule"
    shown = f"{settings[0]} with seed {method.seed}, {len(shapes)} parameters of "
    shown += f"{sum(math.prod(shape) for shape in shapes.values()):,} numbers, {optimizer}"
    shown += f", loops by {compiler()}" * bool(compiler())
    own = digest(*settings, shapes, type(method.loss).__name__, optimizer, compiler())
    method.comm.agree("the method", own, shown)


def check_batch(method: Method, batch: Batch) -> None:
    """Raise TypeError for a part of a batch, ValueError for one whose targets are all ignored."""
    if type(batch) is Batch and batch.global_batch is None and not method.loss.counts_values:
        return  # the usual case, quickly
    name = type(method).__name__
    if not isinstance(batch, Batch):
        raise TypeError(
            f"{name}.step takes a global batch, such as Batches(dataset, 128)[step] or "
            f"dataset.batch(indices), not a {type(batch).__name__}"
        )
    if batch.global_batch is not None:
        first, whole = batch.first, len(batch.global_batch)
        raise TypeError(
            f"{name}.step was given a part of a batch, samples {first} to "
            f"{first + len(batch) - 1} of {whole}: give the global batch, the same on every "
            "rank; the method takes its own part"
        )

    if method.loss.counts_values and not batch.count(method.loss) > 0:
        raise ValueError(
            f"{name}.step: all {batch.targets.size} targets of {batch} are ignored by "
            f"{method.loss!r}, or have weight 0: there is no mean over no targets, so leave such "
            "batches out"
        )


def check_same_batches(method: Method, batches: Sequence[Batch]) -> None:
    """Raise Disagreement, on every rank, unless all ranks step on the same batches."""
    if method.comm.size == 1:
        return
    of = f"step {method.steps} of {type(method).__name__}, seed {method.seed}"
    shown = str(batches[0]) if batches else "no batch"
    more = f", and {len(batches) - 1} more" if len(batches) > 1 else ""
    of_data = [batch.digest() for batch in batches]
    method.comm.agree("step()", digest(of, *of_data), f"{of}, on {shown}{more}")


def check_loss(method: Method, loss: float) -> None:
    """Raise NotFinite, on every rank, if the policy is to raise."""
    if isfinite(loss) or method.not_finite != "raise":
        return
    if not module_has_numbers(module()):
        return  # the loss has a shape, and no value
    raise NotFinite(
        f"{type(method).__name__}: the loss of step {method.steps} is {loss}: lower the learning "
        "rate, clip the gradient (clip=1.0), or look for the op with minidist.detect_anomaly(). "
        'method.guard(not_finite="skip") leaves such steps out, "go on" trains on'
    )


def all_finite(comm: Comm, grads: Sequence[Array]) -> bool:
    """Whether all gradients of all ranks are finite: the same answer on every rank."""
    found = np.zeros(1)
    for grad in grads:
        if has_numbers(grad) and not bool(read(module_of(grad).isfinite(grad).all(), True)):
            found[0] = 1
    ring.all_reduce(comm, found, "max")
    return found[0] == 0


def check_replicas(comm: Comm, parameters: Mapping[str, Array], step: int) -> None:
    """Raise Disagreement, on every rank, with the first parameter that is not the same on all.

    Every rank must call it. Its messages, p - 1 with 8 bytes per parameter, are not counted.
    """
    names = list(parameters)
    every = np.zeros((comm.size, len(names)), np.uint64)
    every[comm.rank] = [digest(array) for array in parameters.values()]
    with uncounted(comm):
        ring.all_gather(comm, every.reshape(-1))
    for column, name in enumerate(names):
        values, counts = np.unique(every[:, column], return_counts=True)
        if len(values) > 1:
            usual = values[np.argmax(counts)]
            ranks = [rank for rank in range(comm.size) if every[rank, column] != usual]
            where = f"on rank {', '.join(map(str, ranks))} is not what it is on the others"
            if 2 * counts.max() <= comm.size:  # no majority: any of the values may be the right one
                where = f"has {len(values)} different values on {comm.size} ranks"
            raise Disagreement(
                f"after step {step} {name} {where}: a bit has flipped, or something other than the "
                "method has changed it; continue from a checkpoint"
            )


@contextmanager
def uncounted(comm: Comm) -> Iterator[None]:
    """Messages that are sent inside are not counted."""
    sent = comm.trace.sent
    before = sent.messages, sent.nbytes
    yield
    sent.messages, sent.nbytes = before
