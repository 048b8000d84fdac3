"""Seven compressors, in order of increasing complexity.

compression.py lists what each sends, whether messages can be added, and when it is exact. The
seventh, PowerSGD, is in power_sgd.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.engine.array import Array, made, module_of, read
from minidist.engine.kernels import accumulator, wide
from minidist.engine.seeds import generator
from minidist.parallel.gradient_compression.compressor import Compressor, gather
from minidist.parallel.gradient_compression.power_sgd import PowerSGD

__all__ = ["BFloat16", "Float16", "PowerSGD", "Quantised", "RandomK", "Sign", "TopK"]


class Float16(Compressor):
    """16 bits an element; a ring all-reduce adds in float16. Sums beyond 65504 become infinite."""

    all_reducible = True

    def encode(self, grad: Array, step: int) -> list[Array]:
        return [grad.astype(np.float16)]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        into += message[0]

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(self.size, np.float16)]

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        (half,) = self.encode(grad, step)
        ring.all_reduce(comm, half)
        grad[...] = half

    def plan(self, series: Series, itemsize: int) -> None:
        series.all_reduce(self.size, 2)


class BFloat16(Compressor):
    """The upper 16 bits of a float32: the same range, 8 significant bits; rounds to nearest even.

    NumPy cannot add these, so messages are all-gathered, and added in the gradient's dtype.
    """

    def encode(self, grad: Array, step: int) -> list[Array]:
        bits = grad.astype(np.float32).view(np.uint32)
        bits = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        return [bits.astype(np.uint16)]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        into += (message[0].astype(np.uint32) << 16).view(np.float32)

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(self.size, np.uint16)]


class TopK(Compressor):
    """The ``fraction`` of elements with the largest absolute values; each rank chooses its own.

    Lin et al., "Deep gradient compression", arXiv 1712.01887, section 3.1.
    """

    feedback = True

    def __init__(self, fraction: float = 0.01) -> None:
        self.fraction = _fraction(fraction)

    def encode(self, grad: Array, step: int) -> list[Array]:
        xp = module_of(grad)
        residual = self.residual
        residual += grad
        k = self.count()
        chosen = xp.argpartition(xp.abs(residual), self.size - k)[self.size - k :].astype(np.int32)
        values = residual[chosen]
        residual[chosen] = 0  # sent
        return [values, chosen]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        values, chosen = message
        into[chosen] += values  # correct because no index appears twice in one message

    def count(self) -> int:
        return math.ceil(self.fraction * self.size)

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(self.count(), self.dtype), (self.count(), np.int32)]


class RandomK(TopK):
    """A random ``fraction`` of elements, the same on all ranks: values are all-reduced.

    Indices are drawn by (seed, step), so they need not be sent. Stich, Cordonnier, Jaggi, arXiv
    1809.07599, section 2.
    """

    all_reducible = True

    def encode(self, grad: Array, step: int) -> list[Array]:
        residual, chosen = self.residual, self.chosen(step, grad)
        residual += grad
        values = residual[chosen]
        residual[chosen] = 0
        return [values]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        into[self.chosen(step, into)] += message[0]

    def chosen(self, step: int, like: Array) -> Array:
        """The indices of this step, on the device of ``like``."""
        draw = generator(self.seed, "random-k", step)
        return made(
            lambda: draw.choice(self.size, self.count(), replace=False),
            (self.count(),),
            np.int64,
            module_of(like),
        )

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(self.count(), self.dtype)]

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        (values,) = self.encode(grad, step)
        ring.all_reduce(comm, values)
        grad.fill(0)
        self.decode([values], grad, step)

    def plan(self, series: Series, itemsize: int) -> None:
        series.all_reduce(self.count(), itemsize)


class Sign(Compressor):
    """One bit an element, and a majority vote over ranks (signSGD, arXiv 1802.04434, section 4).

    Each rank sends the signs of its gradient plus residual, and the mean absolute value ("size") of
    each parameter. An element of the result is the sign that most ranks have (0 in a tie), times
    the sum of the ranks' sizes. A rank's residual is reduced by that sign times its own size. A
    push to a server has no vote: it decodes to signs times sizes (EF-signSGD, arXiv 1901.09847,
    algorithm 1).
    """

    feedback = True

    def sizes_and_bits(self, grad: Array) -> tuple[np.ndarray, Array]:
        """Of residual plus ``grad``: each parameter's mean absolute value, (L,); packed signs."""
        xp = module_of(grad)
        residual = self.residual
        residual += grad
        sizes = np.array([float(read(xp.abs(residual[part]).mean(), 1.0)) for part in self.parts])
        return sizes, xp.packbits(residual >= 0)  # (⌈n/8⌉,)

    def signs(self, bits: Array) -> Array:
        """+1 or -1 for each element, (n,)."""
        return 2 * module_of(bits).unpackbits(bits)[: self.size].astype(np.int32) - 1

    def encode(self, grad: Array, step: int) -> list[Array]:
        sizes, bits = self.sizes_and_bits(grad)
        signs = self.signs(bits)
        for part, size in zip(self.parts, sizes, strict=True):
            self.residual[part] -= signs[part] * float(size)
        return [sizes, bits]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        sizes, bits = message
        signs = self.signs(bits)
        for part, size in zip(self.parts, sizes, strict=True):
            into[part] += signs[part] * float(size)

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(len(self.parts), np.float64), (-(-self.size // 8), np.uint8)]

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        xp = module_of(grad)
        sizes, bits = self.sizes_and_bits(grad)
        all_sizes, all_bits = gather(comm, sizes), gather(comm, bits)  # (p, L), (p, ⌈n/8⌉)
        votes = xp.zeros(self.size, np.int32)
        for row in all_bits:
            votes += self.signs(row)
        xp.sign(votes, out=votes)
        for part, mine, total in zip(self.parts, sizes, all_sizes.sum(axis=0), strict=True):
            grad[part] = votes[part] * float(total)
            self.residual[part] -= votes[part] * float(mine)


class Quantised(Compressor):
    """Eight bits an element, with unbiased random rounding (QSGD, arXiv 1610.02132, section 3.1).

    q = ±⌊|g| / scale · 127 + u⌋ with u uniform in [0, 1), and scale the largest |g| of the
    parameter. E[q] · scale / 127 = g, so no error feedback is needed.
    """

    levels = 127

    def encode(self, grad: Array, step: int) -> list[Array]:
        xp = module_of(grad)
        draw = generator(self.seed, "qsgd", step, self.rank)  # ranks round independently
        wider = accumulator(grad.dtype)  # in float16, 127 / scale may be infinite
        codes = made(lambda: draw.random(self.size, np.float32), (self.size,), wider, xp)
        scales = xp.empty(len(self.parts), grad.dtype)
        for index, part in enumerate(self.parts):
            largest = xp.abs(grad[part]).max()
            scales[index] = largest
            share = wide(xp.abs(grad[part])) / xp.where(largest > 0, largest, 1)  # at most 1
            codes[part] += share * self.levels
        # 127 + u may be rounded up to 128, and 128 as an int8 is -128: the sign would be wrong.
        codes = xp.minimum(xp.floor(codes), self.levels)
        return [scales, (codes * xp.sign(grad)).astype(np.int8)]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        scales, codes = message
        for part, scale in zip(self.parts, wide(scales) / self.levels, strict=True):
            into[part] += codes[part] * scale

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(len(self.parts), self.dtype), (self.size, np.int8)]


def _fraction(fraction: float) -> float:
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction to send must be in (0, 1], not {fraction}")
    return fraction
