"""DP-SGD: training with differential privacy for each sample.

    batches = PoissonBatches(training, rate=0.01, seed=seed)
    method = DPSGD(mlp(), CrossEntropy(), SGD(0.5), comm, seed, noise=1.1, rate=0.01)

A step, on every rank (Abadi et al., "Deep learning with differential privacy", arXiv 1607.00133,
algorithm 1):

    g_i   the gradient of each of its samples: see per_sample.py
    ḡ_i   = g_i / max(1, ‖g_i‖/C)             no sample changes the sum by more than C = sample_clip
    S     = Σ ḡ_i over all ranks              one all-reduce, as in data parallelism
    g     = (S + N(0, σ²C²)) / B              σ = noise; B = the *expected* batch size

The noise is added once, to the sum. After the all-reduce every rank draws the same noise, keyed by
(seed, step, parameter), so any number of ranks gives the same parameters. B is q·N, with the
sampling rate q, and not the size of this batch, because that size would reveal something about the
samples. ``clip`` limits the norm of the noisy gradient, as in other methods. It costs no privacy,
like every function of g.

With p ranks, Ψ parameters of e bytes and a ring (one element more, for the loss):

    messages a rank  2(p - 1)
    bytes a rank     about 2(Ψ + 1)e(p - 1)/p
    memory a rank    activations, and the gradient of every layer's output, until all norms are
                     known; gradients of samples only where they are smaller: see outer.py

Without noise, with C = ∞ and B = the batch's size, this is serial training.

docs/private.md lists what is guaranteed and what is not. In particular, the loss that ``step``
returns is *not* private, and anyone who knows the seed can subtract the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minidist.collectives.algorithm import Choice
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine import array as arrays
from minidist.engine.array import Array, read
from minidist.engine.mode import keep_buffers, set_mode
from minidist.engine.seeds import generator
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.data_parallel import DataParallel
from minidist.privacy.accountant import Accountant, check_delta, check_epsilon, check_noise
from minidist.privacy.per_sample import (
    NotBySample,
    backward_by_sample,
    check_loss,
    check_model,
    loss_of_samples,
)
from minidist.privacy.price import largest_kept, seconds
from minidist.privacy.sampling import PoissonBatch, check_rate


class BudgetSpent(RuntimeError):
    """One more step would exceed the allowed ε."""


class DPSGD(DataParallel):
    """Clips each sample's gradient to ``sample_clip``, sums, adds noise, and steps."""

    exact = False
    changeable = DataParallel.changeable - {"loss"}

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        sample_clip: float = 1.0,
        noise: float = 1.0,
        rate: float | None = None,
        epsilon: float | None = None,
        delta: float = 1e-5,
        algorithm: Choice = "ring",
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        """``noise`` is σ, in units of ``sample_clip``. ``rate`` is the sampling rate of the batches
        (``PoissonBatches``); without it any batch is accepted, B is its size, and ε is unknown.
        With ``epsilon``, a step that would exceed it at ``delta`` raises BudgetSpent.

        Raises ValueError for a clip or an ε of 0 or below, noise below 0, a rate above 1, noise
        with an infinite clip, or a loss whose divisor depends on the targets; NotBySample for batch
        norm.
        """
        check_noise("DPSGD", noise)
        if not (isinstance(sample_clip, (int, float, np.number)) and sample_clip > 0):
            raise ValueError(
                f"DPSGD: sample_clip must be positive, not {sample_clip!r}: it is the largest norm "
                "that the gradient of one sample may have"
            )
        if noise and math.isinf(sample_clip):
            raise ValueError(
                f"DPSGD: noise {noise:g} times a sample_clip of infinity is no noise: choose a "
                "clip, such as 1.0, or no noise"
            )
        if rate is not None:
            check_rate("DPSGD", rate)
        check_delta("DPSGD", delta)
        if epsilon is not None:
            check_epsilon("DPSGD", epsilon)
            if rate is None:
                raise ValueError(
                    f"DPSGD: whether ε = {epsilon} is exceeded depends on the sampling rate: pass "
                    "rate=..., and batches of PoissonBatches(dataset, rate)"
                )
        check_model("DPSGD", model)
        super().__init__(
            model, loss, optimizer, comm, seed, algorithm, microbatches=microbatches, clip=clip
        )
        self.sample_clip, self.noise = float(sample_clip), float(noise)
        self.rate, self.epsilon, self.delta = rate, epsilon, delta
        self._independent = False  # whether the samples were checked to be independent
        self.of_step = Accountant()
        if rate is not None:
            self.of_step.spend(rate, self.noise)

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        if name == "loss":
            check_loss("DPSGD", value)

    def epsilon_after(
        self, steps: int, delta: float | None = None, conversion: str = "canonne"
    ) -> float:
        """ε of ``steps`` steps at ``delta``. Raises ValueError if the sampling rate is unknown."""
        if self.rate is None:
            raise ValueError(
                "DPSGD: ε is known for batches that are drawn sample by sample: pass rate=..., and "
                "batches of PoissonBatches(dataset, rate)"
            )
        all_steps = Accountant(self.of_step.orders)
        all_steps.rdp = steps * self.of_step.rdp if steps else all_steps.rdp
        return all_steps.epsilon(self.delta if delta is None else delta, conversion)

    @property
    def epsilon_spent(self) -> float:
        """ε of the steps made, including those before a ``load``."""
        return self.epsilon_after(self.steps)

    def train_on(self, batch: Batch) -> float:
        self.check_drawn(batch)
        sync = self.sync
        sync.begin(self.steps)
        loss = 0.0
        for part in self.parts(batch, self.comm.rank):
            loss += self.add_clipped(part)
        sync.last_backward(loss)
        total = sync.finish()  # the loss, and S in the gradients
        self.add_noise(self.expected(batch))
        sync.update(self.clip)
        return total / max(1, len(batch))

    def check_drawn(self, batch: Batch) -> None:
        """Check a batch before a step. Raises ValueError if it was not drawn with ``rate``,
        BudgetSpent if the step would exceed ``epsilon``."""
        if self.rate is None:
            return
        if not isinstance(batch, PoissonBatch) or batch.rate != self.rate:
            raise ValueError(
                f"DPSGD with rate={self.rate:g} was given {batch}: ε holds only for batches that "
                f"have each sample with this probability: PoissonBatches(dataset, {self.rate:g})"
            )
        if self.epsilon is not None:
            after = self.epsilon_after(self.steps + 1)
            if after > self.epsilon:
                raise BudgetSpent(
                    f"DPSGD: {self.steps} steps have spent ε = {self.epsilon_spent:.3f} at δ = "
                    f"{self.delta:g}, and one more would make it {after:.3f}, above the allowed "
                    f"{self.epsilon:g}: stop here, or train again with more noise (see noise_for)"
                )

    def expected(self, batch: Batch) -> float:
        """B: the expected size of a batch."""
        return self.rate * len(batch.dataset) if self.rate is not None else max(1, len(batch))

    def add_clipped(self, part: Batch) -> float:
        """Add the clipped gradients of these samples to the sum; returns the sum of the losses."""
        if not len(part):
            return 0.0
        with self.comm.step("forward"), self.draws_of(part):
            loss = loss_of_samples(self.loss, self.forward(part.inputs), part)
        with self.comm.step("backward"):
            found = backward_by_sample(loss, len(part))
            squares = sum(uses.squares() for uses in found.values())
            factors = clip_factors(squares, self.sample_clip)
            self.check_independent(part, squares)
            for uses in found.values():
                uses.parameter.accumulate(uses.weighted(factors))
                for hook in uses.parameter.on_ready:
                    hook(uses.parameter)
        return float(read(loss.data, math.nan))

    def check_independent(self, part: Batch, squares: Array) -> None:
        """Raise NotBySample if the first sample's gradient depends on the others; checked once.

        A model may mix samples in a way that no op can detect, such as a mean over the batch. Then
        clipping does not bound the effect of one sample.
        """
        if self._independent or len(part) < 2 or not arrays.has_numbers(squares):
            return
        counts, alone = arrays.work.counts(), part.shard(0, len(part))
        with set_mode(meter=None), keep_buffers(), self.draws_of(alone):
            loss = loss_of_samples(self.loss, self.forward(alone.inputs), alone)
            found = backward_by_sample(loss, 1)
            square = float(sum(uses.squares() for uses in found.values())[0])
        arrays.work.reset(counts)  # the check does not count as work of the step
        inside = float(squares[0])
        if abs(inside - square) > 1e-2 * max(inside, square):
            raise NotBySample(
                f"DPSGD: the gradient of a sample has norm {math.sqrt(square):.4g} alone and "
                f"{math.sqrt(inside):.4g} in a batch of {len(part)}: something in the model "
                "computes it from other samples, or its first axis is not that of the samples"
            )
        self._independent = True

    def add_noise(self, expected: float) -> None:
        """S → (S + N(0, σ²C²)) / B: the same noise on every rank."""
        grad = self.model.flat.grad
        if self.noise:
            scale = self.noise * self.sample_clip
            for name, part in self.model.flat.slices.items():
                grad[part] += scale * noise_of(grad[part], self.seed, self.steps, name)
        grad /= expected

    def computing(self, parts: Sequence[Batch], machine: Machine, rank: int) -> float:
        return seconds(self.whole, parts, machine, rank)

    def activations(self, parts: Sequence[Batch]) -> int:
        return largest_kept(self.whole, parts, self.itemsize, self.loss)


def clip_factors(squares: Array, limit: float) -> Array:
    """min(1, C/‖g_i‖) for each squared norm."""
    xp = arrays.module_of(squares)
    if math.isinf(limit):
        return xp.ones_like(squares)
    return limit / xp.maximum(xp.sqrt(squares), limit)


def noise_of(like: Array, seed: int, step: int, name: str) -> Array:
    """Standard normal numbers for one parameter in one step, the same on every rank.

    They are floating-point numbers of Philox, which is not a cryptographic generator. Their lowest
    bits can reveal the sum (Mironov, CCS 2012, doi 10.1145/2382196.2382264).
    """

    def draw() -> np.ndarray:
        return generator(seed, "dp noise", step, name).standard_normal(like.size)

    xp = arrays.module_of(like)
    return arrays.made(draw, like.shape, like.dtype, xp)
