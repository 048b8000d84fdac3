"""PowerSGD: the gradient of each weight matrix as a product P Qᵀ of two thin matrices.

    orthogonalise Q;  P ← Σ M Q over ranks;
    orthogonalise P;  Q ← Σ Mᵀ P over ranks;  gradient ← P Qᵀ

This is one step of a power iteration on M, which starts from the last training step's Q. Both
products are linear in M, so all-reduces sum them exactly: r(rows + columns) elements instead of
rows · columns. The error, M - P Qᵀ, is kept in the residual and added to the next gradient. Biases
are sent uncompressed, after the Qs. A push to a server computes the same on one rank.

Vogels, Karimireddy, Jaggi, arXiv 1905.13727, algorithm 1. The paper orthogonalises P only. The
results are equal as long as the columns of Q stay linearly independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import DTypeLike

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.engine.array import Array, made, module_of, work
from minidist.engine.kernels import wide
from minidist.engine.seeds import generator
from minidist.nn.module import Shape
from minidist.parallel.gradient_compression.compressor import Compressor


class PowerSGD(Compressor):
    """Each weight matrix as a product of two thin matrices with ``rank`` columns each.

    Raises ValueError for a rank below 1.
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
        draw, size = generator(seed, "power-sgd"), self.right.size
        self.right[...] = made(lambda: draw.standard_normal(size), (size,), grad.dtype, xp)

    def factors(
        self, left: Array, right: Array
    ) -> list[tuple[slice, tuple[int, int], Array, Array]]:
        """For each matrix its slice of the gradient, its shape (n, m), and views of P and Q."""
        found, p_at, q_at = [], 0, 0
        for part, n, m, r in self.matrices:
            p, q = left[p_at : p_at + n * r], right[q_at : q_at + m * r]
            found.append((part, (n, m), p.reshape(n, r), q.reshape(m, r)))
            p_at, q_at = p_at + n * r, q_at + m * r
        return found

    def uncompressed(self, right: Array) -> list[tuple[slice, Array]]:
        """For each array that is no matrix its slice of the gradient, and a view after the Qs."""
        found, end = [], right.size
        for part in reversed(self.plain):
            start = end - (part.stop - part.start)
            found.append((part, right[start:end]))
            end = start
        return found

    def project(self, grad: Array) -> None:
        """Orthogonalise Q; P ← M Q, where M is the residual plus ``grad``."""
        residual = self.residual
        residual += grad
        xp = module_of(grad)
        for part, shape, p, q in self.factors(self.left, self.right):
            q[...] = xp.linalg.qr(wide(q))[0]  # else a gradient of low rank leaves a Q of low rank
            xp.matmul(residual[part].reshape(shape), q, out=p)  # (n, m) @ (m, r) -> (n, r)
        work.flops += self.flops()

    def project_back(self, xp: Any) -> None:
        """Orthogonalise P; Q ← Mᵀ P. Leaves the error M - P Qᵀ in the residual."""
        residual = self.residual
        for part, shape, p, q in self.factors(self.left, self.right):
            p[...] = xp.linalg.qr(wide(p))[0]
            q[...] = residual[part].reshape(shape).T @ p  # (m, n) @ (n, r) -> (m, r)
            residual[part].reshape(shape)[...] -= p @ q.T  # with this rank's Q, before the sum
        for part, place in self.uncompressed(self.right):
            place[...] = residual[part]
            residual[part] = 0
        work.flops += 2 * self.flops()

    def encode(self, grad: Array, step: int) -> list[Array]:
        self.project(grad)
        self.project_back(module_of(grad))
        return [self.left, self.right]

    def decode(self, message: Sequence[Array], into: Array, step: int) -> None:
        left, right = message
        for part, shape, p, q in self.factors(left, right):
            into[part].reshape(shape)[...] += p @ q.T  # (n, r) @ (r, m) -> (n, m)
        for part, place in self.uncompressed(right):
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
        """FLOPs of one product with a factor, over all matrices."""
        return sum(2 * n * m * r for _, n, m, r in self.matrices)

    def encode_flops(self) -> int:
        return 3 * self.flops()

    def decode_flops(self) -> int:
        return self.flops()

    def plan(self, series: Series, itemsize: int) -> None:
        once = [series.machine.compute(self.flops(), rank) for rank in range(series.size)]
        series.compute(once)
        series.all_reduce(self.left_size, itemsize)
        series.compute([2 * seconds for seconds in once])
        series.all_reduce(self.right_size, itemsize)
        series.compute(once)

    def arrays(self) -> list[Array]:
        return [*super().arrays(), self.left, self.right]

    def kept_bytes(self) -> int:
        return super().kept_bytes() + (self.left_size + self.right_size) * self.dtype.itemsize
