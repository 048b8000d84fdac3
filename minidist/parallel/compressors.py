"""Seven ways to make a gradient small, in order of increasing complexity.

What each sends, whether it can be added on the way, and when it is exact: see compression.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minidist import array as arrays
from minidist.array import Array, module_of, work
from minidist.collectives import ring
from minidist.collectives.clocks import Clocks
from minidist.comm.comm import Comm
from minidist.nn.module import Shape
from minidist.parallel.compression import Compressor, gather
from minidist.seeds import generator


class Float16(Compressor):
    """Half the bits: a ring all-reduce that adds in float16. Infinite beyond 65504."""

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

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        clocks.all_reduce(self.size, 2)


class BFloat16(Compressor):
    """The upper half of a float32: all its range, 8 significant bits; rounded to nearest even.

    NumPy cannot add these, so they are gathered, and added in full precision.
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
    """The ``fraction`` of elements that are largest; each rank chooses its own (1712.01887)."""

    feedback = True

    def __init__(self, fraction: float = 0.01) -> None:
        self.fraction = _fraction(fraction)

    def encode(self, grad: Array, step: int) -> list[Array]:
        xp = module_of(grad)
        owed = self.residual
        owed += grad
        k = self.count()
        chosen = xp.argpartition(xp.abs(owed), self.size - k)[self.size - k :].astype(np.int32)
        values = owed[chosen]
        owed[chosen] = 0  # sent: no longer owed
        return [values, chosen]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        values, chosen = message
        into[chosen] += values  # no index twice in one message, so each is added

    def count(self) -> int:
        return math.ceil(self.fraction * self.size)

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(self.count(), self.dtype), (self.count(), np.int32)]


class RandomK(TopK):
    """A random ``fraction`` of elements, the same on all ranks: no indices to send; all-reduced.

    Drawn by (seed, step), so nobody has to be told (arXiv 1809.07599, section 2).
    """

    all_reducible = True

    def encode(self, grad: Array, step: int) -> list[Array]:
        owed, chosen = self.residual, self.chosen(step)
        owed += grad
        values = owed[chosen]
        owed[chosen] = 0
        return [values]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        into[self.chosen(step)] += message[0]

    def chosen(self, step: int) -> Array:
        draw = generator(self.seed, "random-k", step)
        return arrays.to_device(draw.choice(self.size, self.count(), replace=False))

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(self.count(), self.dtype)]

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        (values,) = self.encode(grad, step)
        ring.all_reduce(comm, values)
        grad.fill(0)
        self.decode([values], grad, step)

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        clocks.all_reduce(self.count(), itemsize)


class Sign(Compressor):
    """One bit an element, and a majority vote over ranks (signSGD, arXiv 1802.04434, section 4).

    An array of the gradient moves by the mean size that the ranks report for it, in the direction
    that most of them want; a tie moves nothing. Each rank then owes what it wanted minus what it
    contributed. Where there is nobody to vote with (a push to a server), a message means its signs
    times its sizes (EF-signSGD, arXiv 1901.09847, algorithm 1).
    """

    feedback = True

    def sizes_and_bits(self, grad: Array) -> tuple[np.ndarray, Array]:
        """The mean size of each array of what is owed by now, (L,), and its signs, packed."""
        xp = module_of(grad)
        owed = self.residual
        owed += grad
        sizes = np.array([float(xp.abs(owed[part]).mean()) for part in self.parts])
        return sizes, xp.packbits(owed >= 0)  # (⌈n/8⌉,)

    def signs(self, bits: Array) -> Array:
        """+1 or -1 for each element."""
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
    """Eight bits an element, rounded at random so that the mean is right (QSGD, 1610.02132).

    q = ±⌊|g| / scale · 127 + u⌋ with u uniform in [0, 1) and the scale each array's largest |g|:
    E[q] · scale / 127 = g, so no error feedback is needed.
    """

    levels = 127

    def encode(self, grad: Array, step: int) -> list[Array]:
        xp = module_of(grad)
        draw = generator(self.seed, "qsgd", step, self.rank)  # each rank rounds its own gradient
        codes = arrays.to_device(draw.random(self.size, np.float32)).astype(grad.dtype)
        scales = xp.empty(len(self.parts), grad.dtype)
        for index, part in enumerate(self.parts):
            scales[index] = xp.abs(grad[part]).max()
            codes[part] += xp.abs(grad[part]) * (self.levels / (scales[index] or 1))
        return [scales, (xp.floor(codes) * xp.sign(grad)).astype(np.int8)]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        scales, codes = message
        for part, scale in zip(self.parts, scales, strict=True):
            into[part] += codes[part] * (scale / self.levels)

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(len(self.parts), self.dtype), (self.size, np.int8)]


class PowerSGD(Compressor):
    """Each weight matrix as a product P Qᵀ of two thin ones (arXiv 1905.13727, algorithm 1).

        orthogonalise Q;  P ← Σ M Q over ranks;
        orthogonalise P;  Q ← Σ Mᵀ P over ranks;  gradient ← P Qᵀ

    One step of a power iteration, warm from the last training step's Q. Both products are linear in
    M, so sums over ranks are exact and all-reduced. Biases travel whole, beside the Qs. A message
    to a server is the same for one rank alone. (The paper orthogonalises P alone: the same, as
    long as no column of Q comes to depend on the others.)
    """

    all_reducible = True
    feedback = True

    def __init__(self, rank: int = 2) -> None:
        if rank < 1:
            raise ValueError(f"PowerSGD: the rank of the factors must be at least 1, not {rank}")
        self.factor_rank = rank

    def describe(
        self, shapes: dict[str, Shape], dtype: DTypeLike, seed: int, rank: int = 0
    ) -> None:
        super().describe(shapes, dtype, seed, rank)
        self.matrices = []  # (slice of the gradient, rows, columns, rank)
        self.plain = []
        for part, shape in zip(self.parts, shapes.values(), strict=True):
            if len(shape) < 2:
                self.plain.append(part)
                continue
            rows, columns = shape[0], math.prod(shape[1:])
            self.matrices.append((part, rows, columns, min(self.factor_rank, rows, columns)))
        rest = sum(part.stop - part.start for part in self.plain)
        self.left_size = sum(n * r for _, n, _, r in self.matrices)
        self.right_size = sum(m * r for _, _, m, r in self.matrices) + rest

    def start(self, grad: Array, shapes: dict[str, Shape], seed: int, rank: int = 0) -> None:
        super().start(grad, shapes, seed, rank)
        xp = module_of(grad)
        self.left = xp.empty(self.left_size, grad.dtype)
        self.right = xp.empty(self.right_size, grad.dtype)
        draw = generator(seed, "power-sgd").standard_normal(self.right.size)
        self.right[...] = arrays.to_device(draw)

    def factors(
        self, left: Array, right: Array
    ) -> list[tuple[slice, tuple[int, int], Array, Array]]:
        """For each matrix where it lies, its shape, and views of its P and Q."""
        found, p_at, q_at = [], 0, 0
        for part, n, m, r in self.matrices:
            p, q = left[p_at : p_at + n * r], right[q_at : q_at + m * r]
            found.append((part, (n, m), p.reshape(n, r), q.reshape(m, r)))
            p_at, q_at = p_at + n * r, q_at + m * r
        return found

    def whole_parts(self, right: Array) -> list[tuple[slice, Array]]:
        """Where each array that is no matrix lies, and a view of its place behind the Qs."""
        found, end = [], right.size
        for part in reversed(self.plain):
            start = end - (part.stop - part.start)
            found.append((part, right[start:end]))
            end = start
        return found

    def project(self, grad: Array) -> None:
        """Orthogonalise Q; P ← M Q, of what is owed by now."""
        owed = self.residual
        owed += grad
        xp = module_of(grad)
        for part, shape, p, q in self.factors(self.left, self.right):
            q[...] = xp.linalg.qr(q)[0]  # else a gradient of low rank leaves a Q of low rank
            xp.matmul(owed[part].reshape(shape), q, out=p)  # (n, m) @ (m, r) -> (n, r)
        work.flops += self.flops()

    def project_back(self, xp: Any) -> None:
        """Orthogonalise P; Q ← Mᵀ P. What these two do not say stays owed."""
        owed = self.residual
        for part, shape, p, q in self.factors(self.left, self.right):
            p[...] = xp.linalg.qr(p)[0]
            q[...] = owed[part].reshape(shape).T @ p  # (m, n) @ (n, r) -> (m, r)
            owed[part].reshape(shape)[...] -= p @ q.T  # own part, before any sum
        for part, place in self.whole_parts(self.right):
            place[...] = owed[part]
            owed[part] = 0
        work.flops += 2 * self.flops()

    def encode(self, grad: Array, step: int) -> list[Array]:
        self.project(grad)
        self.project_back(module_of(grad))
        return [self.left, self.right]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        left, right = message
        for part, shape, p, q in self.factors(left, right):
            into[part].reshape(shape)[...] += p @ q.T  # (n, r) @ (r, m) -> (n, m)
        for part, place in self.whole_parts(right):
            into[part] += place
        work.flops += self.flops()

    def wire(self) -> list[tuple[int, DTypeLike]]:
        return [(self.left_size, self.dtype), (self.right_size, self.dtype)]

    def sum(self, comm: Comm, grad: Array, step: int) -> None:
        self.project(grad)
        ring.all_reduce(comm, self.left)
        self.project_back(module_of(grad))
        ring.all_reduce(comm, self.right)
        grad.fill(0)
        self.decode([self.left, self.right], grad, step)

    def flops(self) -> int:
        """Of one product of every matrix with a factor."""
        return sum(2 * n * m * r for _, n, m, r in self.matrices)

    def encode_flops(self) -> int:
        return 3 * self.flops()

    def decode_flops(self) -> int:
        return self.flops()

    def plan(self, clocks: Clocks, itemsize: int) -> None:
        once = [clocks.machine.compute(self.flops(), rank) for rank in range(clocks.size)]
        clocks.compute(once)
        clocks.all_reduce(self.left_size, itemsize)
        clocks.compute([2 * seconds for seconds in once])
        clocks.all_reduce(self.right_size, itemsize)
        clocks.compute(once)

    def holds(self) -> list[Array]:
        return [*super().holds(), self.left, self.right]

    def kept_bytes(self) -> int:
        return super().kept_bytes() + (self.left_size + self.right_size) * self.dtype.itemsize


def _fraction(fraction: float) -> float:
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction to send must be in (0, 1], not {fraction}")
    return fraction
