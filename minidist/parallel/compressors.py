"""Seven ways to make a gradient small, in order of increasing complexity.

What each sends, whether it can be added on the way, and when it is exact: see compression.py.
"""

from __future__ import annotations

import math

import numpy as np

from minidist import array as arrays
from minidist.array import Array, module_of, work
from minidist.collectives import ring
from minidist.collectives.clocks import Clocks
from minidist.comm.comm import Comm
from minidist.nn.module import Shape
from minidist.parallel.compression import Compressor, gather, plan_gather
from minidist.seeds import generator


class Float16(Compressor):
    """Half the bits: a ring all-reduce that adds in float16. Infinite beyond 65504."""

    all_reducible = True

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        half = grad.astype(np.float16)
        ring.all_reduce(comm, half)
        grad[...] = half

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        clocks.all_reduce(self.size, 2)


class BFloat16(Compressor):
    """The upper half of a float32: all its range, 8 significant bits; rounded to nearest even.

    NumPy cannot add these, so they are gathered, and added in full precision.
    """

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        bits = grad.astype(np.float32).view(np.uint32)
        bits = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        rows = gather(comm, bits.astype(np.uint16))
        grad.fill(0)
        for row in rows:
            grad += (row.astype(np.uint32) << 16).view(np.float32)

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        plan_gather(clocks, self.size * 2)


class TopK(Compressor):
    """The ``fraction`` of elements that are largest; each rank chooses its own (1712.01887)."""

    feedback = True

    def __init__(self, fraction: float = 0.01) -> None:
        self.fraction = _fraction(fraction)

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        xp = module_of(grad)
        owed = self.residual
        owed += grad
        k = self.count()
        chosen = xp.argpartition(xp.abs(owed), self.size - k)[self.size - k :].astype(np.int32)
        values = gather(comm, owed[chosen])
        indices = gather(comm, chosen)
        owed[chosen] = 0  # sent: no longer owed
        grad.fill(0)
        for index, value in zip(indices, values, strict=True):
            grad[index] += value  # no index twice in one row, so each is added

    def count(self) -> int:
        return math.ceil(self.fraction * self.size)

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        plan_gather(clocks, self.count() * itemsize)
        plan_gather(clocks, self.count() * 4)


class RandomK(TopK):
    """A random ``fraction`` of elements, the same on all ranks: no indices to send; all-reduced.

    Drawn by (seed, step), so nobody has to be told (arXiv 1809.07599, section 2).
    """

    all_reducible = True

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        draw = generator(self.seed, "random-k", step)
        chosen = arrays.to_device(draw.choice(self.size, self.count(), replace=False))
        owed = self.residual
        owed += grad
        values = owed[chosen]
        ring.all_reduce(comm, values)
        owed[chosen] = 0
        grad.fill(0)
        grad[chosen] = values

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        clocks.all_reduce(self.count(), itemsize)


class Sign(Compressor):
    """One bit an element, and a majority vote over ranks (signSGD, arXiv 1802.04434, section 4).

    An array of the gradient moves by the mean size that the ranks report for it, in the direction
    that most of them want; a tie moves nothing. Each rank then owes what it wanted minus what it
    contributed.
    """

    feedback = True

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        xp = module_of(grad)
        owed = self.residual
        owed += grad
        sizes = np.array([float(xp.abs(owed[part]).mean()) for part in self.parts])
        all_sizes = gather(comm, sizes)  # (p, L)
        bits = gather(comm, xp.packbits(owed >= 0))  # (p, ⌈n/8⌉)
        votes = xp.zeros(self.size, np.int32)
        for row in bits:
            votes += 2 * xp.unpackbits(row)[: self.size].astype(np.int32) - 1
        xp.sign(votes, out=votes)
        for part, mine, total in zip(self.parts, sizes, all_sizes.sum(axis=0), strict=True):
            grad[part] = votes[part] * float(total)
            owed[part] -= votes[part] * float(mine)

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        plan_gather(clocks, len(self.parts) * 8)
        plan_gather(clocks, -(-self.size // 8))


class Quantised(Compressor):
    """Eight bits an element, rounded at random so that the mean is right (QSGD, 1610.02132).

    q = ±⌊|g| / scale · 127 + u⌋ with u uniform in [0, 1) and the scale each array's largest |g|:
    E[q] · scale / 127 = g, so no error feedback is needed.
    """

    levels = 127

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        xp = module_of(grad)
        draw = generator(self.seed, "qsgd", step, comm.rank)  # each rank rounds its own gradient
        codes = arrays.to_device(draw.random(self.size, np.float32)).astype(grad.dtype)
        scales = xp.empty(len(self.parts), grad.dtype)
        for index, part in enumerate(self.parts):
            scales[index] = xp.abs(grad[part]).max()
            codes[part] += xp.abs(grad[part]) * (self.levels / (scales[index] or 1))
        codes = (xp.floor(codes) * xp.sign(grad)).astype(np.int8)
        all_scales, all_codes = gather(comm, scales), gather(comm, codes)
        grad.fill(0)
        for row_scales, row in zip(all_scales, all_codes, strict=True):
            for part, scale in zip(self.parts, row_scales, strict=True):
                grad[part] += row[part] * (scale / self.levels)

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        plan_gather(clocks, len(self.parts) * itemsize)
        plan_gather(clocks, self.size)


class PowerSGD(Compressor):
    """Each weight matrix as a product P Qᵀ of two thin ones (arXiv 1905.13727, algorithm 1).

        orthogonalise Q;  P ← Σ M Q over ranks;
        orthogonalise P;  Q ← Σ Mᵀ P over ranks;  gradient ← P Qᵀ

    One step of a power iteration, warm from the last training step's Q. Both products are linear in
    M, so sums over ranks are exact and all-reduced. Biases travel whole, beside the Qs. (The paper
    orthogonalises P alone: the same, as long as no column of Q comes to depend on the others.)
    """

    all_reducible = True
    feedback = True

    def __init__(self, rank: int = 2) -> None:
        if rank < 1:
            raise ValueError(f"PowerSGD: the rank of the factors must be at least 1, not {rank}")
        self.rank = rank

    def start(self, grad: Array, shapes: dict[str, Shape], seed: int) -> None:
        super().start(grad, shapes, seed)
        self.matrices = []  # (slice of the gradient, rows, columns, rank)
        self.plain = []
        for part, shape in zip(self.parts, shapes.values(), strict=True):
            if len(shape) < 2:
                self.plain.append(part)
                continue
            rows, columns = shape[0], math.prod(shape[1:])
            self.matrices.append((part, rows, columns, min(self.rank, rows, columns)))
        xp = module_of(grad)
        self.left = xp.empty(sum(n * r for _, n, _, r in self.matrices), grad.dtype)
        rest = sum(part.stop - part.start for part in self.plain)
        self.right = xp.empty(sum(m * r for _, _, m, r in self.matrices) + rest, grad.dtype)
        draw = generator(seed, "power-sgd").standard_normal(self.right.size)
        self.right[...] = arrays.to_device(draw)

    def factors(self) -> list[tuple[slice, tuple[int, int], Array, Array]]:
        """For each matrix where it lies, its shape, and views of its P and Q."""
        found, left, right = [], 0, 0
        for part, n, m, r in self.matrices:
            p, q = self.left[left : left + n * r], self.right[right : right + m * r]
            found.append((part, (n, m), p.reshape(n, r), q.reshape(m, r)))
            left, right = left + n * r, right + m * r
        return found

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        xp = module_of(grad)
        owed, flops = self.residual, self.flops()
        owed += grad
        for part, shape, p, q in self.factors():
            q[...] = xp.linalg.qr(q)[0]  # else a gradient of low rank leaves a Q of low rank
            xp.matmul(owed[part].reshape(shape), q, out=p)  # (n, m) @ (m, r) -> (n, r)
        work.flops += flops
        ring.all_reduce(comm, self.left)
        for part, shape, p, q in self.factors():
            p[...] = xp.linalg.qr(p)[0]
            q[...] = owed[part].reshape(shape).T @ p  # (m, n) @ (n, r) -> (m, r)
            owed[part].reshape(shape)[...] -= p @ q.T  # own part, before the sum
        end = self.right.size
        for part in reversed(self.plain):
            start = end - (part.stop - part.start)
            self.right[start:end] = owed[part]
            owed[part] = 0
            end = start
        work.flops += 2 * flops
        ring.all_reduce(comm, self.right)
        for part, shape, p, q in self.factors():
            xp.matmul(p, q.T, out=grad[part].reshape(shape))  # (n, r) @ (r, m) -> (n, m)
        end = self.right.size
        for part in reversed(self.plain):
            start = end - (part.stop - part.start)
            grad[part] = self.right[start:end]
            end = start
        work.flops += flops

    def flops(self) -> int:
        """Of one product of every matrix with a factor; a step makes four."""
        return sum(2 * n * m * r for _, n, m, r in self.matrices)

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        once = [clocks.machine.compute(self.flops(), rank) for rank in range(clocks.size)]
        clocks.compute(once)
        clocks.all_reduce(self.left.size, itemsize)
        clocks.compute([2 * seconds for seconds in once])
        clocks.all_reduce(self.right.size, itemsize)
        clocks.compute(once)

    def holds(self) -> list[Array]:
        return [*super().holds(), self.left, self.right]


def _fraction(fraction: float) -> float:
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction to send must be in (0, 1], not {fraction}")
    return fraction
