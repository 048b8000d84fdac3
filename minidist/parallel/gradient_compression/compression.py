"""Compression: data parallelism that sends fewer bytes than the gradient has.

    gradient ─▶ compress ─▶ ···· few bytes ···· ─▶ decompress ─▶ about the sum of all gradients
        ▲           │
        ╰── error ──╯    the error is kept in a residual, and added to the next gradient

With error feedback, sending 1 % of a gradient can work: no part of it is lost, but parts are
applied late. Over all steps, the applied updates are the sum of all gradients minus the residuals
(Stich, Cordonnier, Jaggi, arXiv 1809.07599; Karimireddy et al., arXiv 1901.09847).

Use an optimizer without momentum, or a smaller learning rate: momentum 0.9 multiplies a late
gradient's effect by up to ten before it is corrected. (Deep gradient compression, arXiv 1712.01887,
section 3.2, applies momentum before the compression for this reason.)

Can two compressed gradients be *added*? If so (float16 arrays, or the same random indices on all
ranks), a ring all-reduce sums them, and a rank's bytes hardly grow with p. If not (each rank chose
other indices), all messages are all-gathered, and the bytes grow in proportion to p.

With n elements of e bytes, p ranks, k chosen, L parameter arrays, r the rank of the factors:

                bytes a rank sends                  all-reduced        exact if
    Float16     2·2n(p - 1)/p                       yes                values have ≤ 11 bits
    BFloat16    2n(p - 1)                           no                 values have ≤ 8 bits
    TopK        (e + 4)k(p - 1)                     no                 k = n
    RandomK     2ek(p - 1)/p                        yes                k = n
    Sign        (n/8 + 8L)(p - 1)                   no                 ±one size in each array
    Quantised   (n + eL)(p - 1)                     no                 values on the grid
    PowerSGD    2er(rows + columns)(p - 1)/p        yes                r = min(rows, columns)

Besides, 8 bytes are all-reduced for the loss. Uncompressed, a ring sends 2en(p - 1)/p: at 4 ranks
in float32 that is 6n, as much as BFloat16 sends. The compressors are in compressors.py.
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
    """Sums gradients at the end, by a ``Compressor``, and the loss by an all-reduce."""

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
        """The residual, and PowerSGD's factors."""
        return {f"compressor/{i}": array for i, array in enumerate(self.compressor.arrays())}

    def plan(self, of: Replicas, seconds: list[float], machine: Machine) -> Series:
        """Forward and backward, then the compressor's messages, then the loss."""
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
        """A compressor for the parameters of these replicas, which allocates nothing."""
        compressor = make_compressor(self.make)
        compressor.describe(shapes(of.model), f"f{of.itemsize}", self.seed)
        return compressor


def shapes(model: Module) -> dict[str, tuple[int, ...]]:
    """The declared shape of each trained parameter, by name."""
    return {name: parameter.declared for name, parameter in model.trained().items()}


class Compressed(DataParallel):
    """Data parallelism whose gradients are summed by a ``Compressor``."""

    exact = False
    unskippable = "the compressor has added the gradient to its residual, which is then not finite"

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
