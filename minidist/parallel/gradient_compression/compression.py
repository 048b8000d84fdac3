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
If not (each rank has chosen other indices), all messages are all-gathered, and bytes grow with p.

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

from collections.abc import Callable

import numpy as np

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.data_parallel import DataParallel
from minidist.parallel.gradient_compression.compressor import Compressor, make_compressor
from minidist.parallel.gradient_sync import GradientSync, Replicas


class CompressedSum(GradientSync):
    """Gradients that are summed at the end, by a ``Compressor``; the loss by an all-reduce."""

    def __init__(self, compressor: Callable[[], Compressor]) -> None:
        self.make = compressor
        self.compressor = make_compressor(compressor)

    def allocate(self, seed: int) -> None:
        super().allocate(seed)
        assert self.comm is not None
        self.compressor.start(self.model.flat.grad, shapes(self.model), seed, self.comm.rank)
        self.seed = seed

    def finish(self) -> float:
        assert self.comm is not None
        loss = np.array([self.loss])
        with self.comm.step("compressed sum"):
            self.compressor.sum(self.comm, self.model.flat.grad, self.step)
        if self.sums_loss:
            ring.all_reduce(self.comm, loss)
        return float(loss[0])

    def arrays(self) -> dict[str, list[Array]]:
        kept = super().arrays()
        kept["gradients"] += self.compressor.arrays()
        return kept

    def own_arrays(self) -> dict[str, Array]:
        """What is still owed, and PowerSGD's factors."""
        return {f"compressor/{i}": array for i, array in enumerate(self.compressor.arrays())}

    def plan(self, of: Replicas, seconds: list[float], machine: Machine) -> Series:
        """Compute, then what the compressor plans, then the loss."""
        series = Series(machine, of.size)
        series.compute(seconds)
        self.described(of).plan(series, of.itemsize)
        if of.sums_loss:
            series.all_reduce(1, 8)
        return series

    def memory(self, of: Replicas) -> dict[str, list[int]]:
        kept = super().memory(of)
        return kept | {"gradients": [of.nbytes + self.described(of).kept_bytes()] * of.size}

    def described(self, of: Replicas) -> Compressor:
        """A compressor that knows the parameters of these replicas, and allocates nothing."""
        compressor = make_compressor(self.make)
        compressor.describe(shapes(of.model), f"f{of.itemsize}", self.seed)
        return compressor


def shapes(model: Module) -> dict[str, tuple[int, ...]]:
    """The declared shape of each parameter that is trained."""
    return {name: parameter.declared for name, parameter in model.trained().items()}


class Compressed(DataParallel):
    """Data parallelism whose gradients are summed by a ``Compressor``."""

    exact = False
    unskippable = "a compressor keeps what it has not sent, and that would not be finite any longer"

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        *,
        compressor: Callable[[], Compressor],
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        sync = CompressedSum(compressor)
        super().__init__(
            model, loss, optimizer, comm, seed, microbatches=microbatches, clip=clip, sync=sync
        )
