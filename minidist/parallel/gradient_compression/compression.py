"""Compression: data parallelism that sends less than the gradient.

    gradient ─▶ compress ─▶ ···· few bytes ···· ─▶ decompress ─▶ about the sum of all gradients
        ▲           │
        ╰── error ──╯    what was not sent is kept, and added to the next gradient

Error feedback is why sending 1 % of a gradient can work at all: nothing is lost, it is only late.
Over all steps the ranks have applied exactly what they computed, minus what is still in the
residuals (Stich, Cordonnier, Jaggi, arXiv 1809.07599; Karimireddy et al., arXiv 1901.09847).

It wants an optimizer without momentum, or a smaller rate: momentum 0.9 makes a late gradient ten
times as long before it is corrected (arXiv 1712.01887, section 3.2, moves the momentum to before
the compression for that).

Whether the compressed form can be *added* decides how it scales. If it can (two float16 arrays, or
the same random indices on all ranks), a ring all-reduce carries it: the bytes do not grow with p.
If not (everybody has chosen other indices), each must hear from all, and the bytes grow with p.

With n elements of e bytes, p ranks, k chosen, L parameter arrays, r the rank of the factors:

                bytes a rank sends                  added on the way   exact if
    Float16     2·2n(p - 1)/p                       yes                values have ≤ 11 bits
    BFloat16    2n(p - 1)                           no                 values have ≤ 8 bits
    TopK        (e + 4)k(p - 1)                     no                 k = n
    RandomK     2ek(p - 1)/p                        yes                k = n
    Sign        (n/8 + 8L)(p - 1)                   no                 ±one size in each array
    Quantised   (n + eL)(p - 1)                     no                 values on the grid
    PowerSGD    2er(rows + columns)(p - 1)/p        yes                r = min(rows, columns)

and 8 bytes to all-reduce the loss. The ring's 2en(p - 1)/p of uncompressed training is what these
must beat: at 4 ranks and float32 that is 6n, and BFloat16 just equals it. The compressors
themselves are in compressors.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minidist.collectives import ring
from minidist.collectives.clocks import Clocks
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array, module_of
from minidist.nn.layers import Sequential
from minidist.nn.module import Module, Shape
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.data_parallel import DataParallel
from minidist.parallel.method import StepCost


class Compressor:
    """Makes a gradient small: ``encode`` on the rank that computed it, ``decode`` wherever it goes.

    One object for each rank and gradient: it may remember errors.
    """

    all_reducible = False
    feedback = False  # keeps a residual as long as the gradient

    def describe(
        self, shapes: dict[str, Shape], dtype: DTypeLike, seed: int, rank: int = 0
    ) -> None:
        """Told once: which parameters lie in a gradient to come, in order. Enough to decode."""
        self.shapes, self.dtype = shapes, np.dtype(dtype)
        self.seed, self.rank = seed, rank
        bounds = np.cumsum([0, *(math.prod(shape) for shape in shapes.values())]).tolist()
        self.parts = [slice(*pair) for pair in pairwise(bounds)]
        self.size = bounds[-1]
        self.residual: Any = None

    def start(self, grad: Array, shapes: dict[str, Shape], seed: int, rank: int = 0) -> None:
        """``describe``, and make ready to encode gradients such as ``grad``."""
        self.describe(shapes, grad.dtype, seed, rank)
        if self.feedback:
            self.residual = module_of(grad).zeros_like(grad)

    def encode(self, grad: Array, step: int) -> list[Array]:
        """What to send of ``grad``, and of what is still owed: 1-D arrays, as ``wire`` says."""
        raise TypeError(f"{type(self).__name__} does not define encode()")

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        """Add to ``into`` what a message of that step says."""
        raise TypeError(f"{type(self).__name__} does not define decode()")

    def wire(self) -> list[tuple[int, DTypeLike]]:
        """Lengths and dtypes of the arrays of a message."""
        raise TypeError(f"{type(self).__name__} does not define wire()")

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        """Replace ``grad`` by about the sum over all ranks: the same on each.

        Here everybody hears everybody's message. What can be added on the way overrides this.
        """
        rows = [gather(comm, array) for array in self.encode(grad, step)]
        grad.fill(0)
        for message in zip(*rows, strict=True):
            self.decode(message, grad, step)

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        """What ``sum`` sends, on ``clocks``."""
        for length, dtype in self.wire():
            plan_gather(clocks, length * np.dtype(dtype).itemsize)

    def holds(self) -> list[Array]:
        """What it keeps between steps, once started."""
        return [] if self.residual is None else [self.residual]

    def kept_bytes(self) -> int:
        """The bytes of that, started or not."""
        return self.size * self.dtype.itemsize if self.feedback else 0

    def encode_flops(self) -> int:
        """FLOPs of the matrix products of an ``encode``."""
        return 0

    def decode_flops(self) -> int:
        """And of a ``decode``."""
        return 0


def make_compressor(kind: Callable[[], Compressor]) -> Compressor:
    """A new compressor of that kind; ValueError for what is none."""
    made = kind() if callable(kind) else None
    if not isinstance(made, Compressor):
        raise ValueError(
            f"unknown compressor {kind!r}: pass a class of minidist.parallel.gradient_compression, "
            "such as TopK, or a function that makes one, such as partial(TopK, 0.1)"
        )
    return made


class Compressed(DataParallel):
    """Data parallelism whose gradients are summed by a ``Compressor``."""

    exact = False

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        *,
        compressor: Callable[[], Compressor],
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, "ring", microbatches, clip)
        self.compressor = make_compressor(compressor)
        shapes = {name: p.declared for name, p in self.model.named_parameters().items()}
        self.compressor.start(self.model.flat.grad, shapes, seed, comm.rank)

    def step(self, batch: Batch) -> float:
        self.model.zero_grad()
        loss = np.zeros(1)
        for part in self.parts(batch, self.comm.rank):
            loss += self.forward_backward(part)
        with self.comm.step("compressed sum"):
            self.compressor.sum(self.comm, self.model.flat.grad, batch.step)
        ring.all_reduce(self.comm, loss)
        self.update()
        return float(loss[0])

    def holds(self) -> dict[str, list[Array]]:
        held = super().holds()
        held["gradients"] += self.compressor.holds()
        return held

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Compute, then what the compressor plans, then the loss."""
        clocks = Clocks(machine, self.comm.size)
        clocks.compute(
            [self.compute_seconds(batch, machine, rank) for rank in range(self.comm.size)]
        )
        self.compressor.plan(clocks, self.itemsize)
        clocks.all_reduce(1, 8)
        peak = self.replica_bytes(batch)
        kept = self.compressor.kept_bytes()
        peak["gradients"] = [held + kept for held in peak["gradients"]]
        return StepCost(clocks.messages, clocks.nbytes, peak, clocks.busy, max(clocks.now))


def gather(comm: Comm, row: Array) -> Any:
    """The rows of all ranks, of one length: (p, length)."""
    rows = module_of(row).empty((comm.size, row.size), row.dtype)
    rows[comm.rank] = row
    starts = range(0, comm.size * row.size, row.size)
    ring.all_gather(comm, rows.reshape(-1), [slice(start, start + row.size) for start in starts])
    return rows


def plan_gather(clocks: Clocks, nbytes: int) -> None:
    """What ``gather`` of a row of ``nbytes`` costs."""
    starts = range(0, clocks.size * nbytes, nbytes)
    clocks.all_gather([slice(start, start + nbytes) for start in starts], 1)
