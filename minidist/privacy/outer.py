"""Sums of outer products: the form of each sample's gradient of a weight matrix.

A linear layer computes y = x W for each of the T rows of a sample. The gradient of W is then, for
sample n, with a = x and b = the gradient of y:

    G_n = Σ_t a_nt ⊗ b_nt        (i, o), of a (n, T, i) and b (n, T, o)

Its norm can be computed without G_n, as a sum over pairs of rows:

    ‖G_n‖² = Σ_t Σ_s ⟨a_nt, a_ns⟩ ⟨b_nt, b_ns⟩

With one row this is ‖a‖² ‖b‖² (Goodfellow, arXiv 1510.01799). For sequences it is called *ghost
clipping* (Li et al., arXiv 2110.05679, section 4): it needs 2T² numbers for each sample in place of
i·o. ``thin`` is True if this is less (Bu, Mao, Xu, arXiv 2205.10683, section 4). An embedding is a
linear layer whose a are unit rows (0, ..., 1, ..., 0); ``a`` then has the index of the 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from minidist.engine.array import Array, module_of, work
from minidist.engine.products import product
from minidist.ops.indexing import add_rows


@dataclass(frozen=True)
class Outer:
    """Σ_t a_nt ⊗ b_nt for each sample n: a (n, T, i), or integers (n, T), and b (n, T, o).

    ``shape``: of the weight, (i, o), or (o, i) if it is ``turned``.
    """

    a: Array
    b: Array
    shape: tuple[int, ...]
    turned: bool = False

    @property
    def transposed(self) -> Outer:
        """The same for the transposed weight."""
        return replace(self, shape=self.shape[::-1], turned=not self.turned)

    @property
    def sides(self) -> tuple[Array, Array]:
        """The arrays along the rows and the columns of the weight."""
        return (self.b, self.a) if self.turned else (self.a, self.b)

    @property
    def thin(self) -> bool:
        """Whether the norm needs less memory by pairs of rows than by the samples' gradients."""
        return is_thin(self.b.shape[1], self.shape)

    def each(self) -> Array:
        """The gradient of each sample: (n, *shape)."""
        xp, n = module_of(self.b), len(self.b)
        if self.a.dtype.kind in "iu":
            rows = self.shape[1] if self.turned else self.shape[0]
            found = xp.zeros((n, rows, self.b.shape[2]), self.b.dtype)
            place = self.a + rows * xp.arange(n)[:, None]  # a table for each sample
            add_rows(found.reshape(n * rows, -1), place.reshape(-1), _rows(self.b))
        else:
            work.flops += 2 * self.a.size * self.b.shape[2]
            found = self.a.swapaxes(1, 2) @ self.b  # (n, i, T) @ (n, T, o) -> (n, i, o)
        return found.swapaxes(1, 2) if self.turned else found

    def inner(self, other: Outer) -> Array:
        """⟨G_n, G'_n⟩ for each sample: (n,)."""
        return sum_of_products(*(gram(a, b) for a, b in zip(self.sides, other.sides, strict=True)))

    def weighted(self, factors: Array) -> Array:
        """Σ_n factor_n G_n: (*shape)."""
        xp = module_of(self.b)
        b = self.b * factors[:, None, None]
        if self.a.dtype.kind in "iu":
            rows = self.shape[1] if self.turned else self.shape[0]
            found = xp.zeros((rows, b.shape[2]), b.dtype)
            add_rows(found, self.a.reshape(-1), _rows(b))
        else:
            work.flops += 2 * self.a.size * b.shape[2]
            found = xp.empty((self.a.shape[2], b.shape[2]), b.dtype)
            product(xp, _rows(self.a).T, _rows(b), found)  # (i, nT) @ (nT, o) -> (i, o)
        return found.T if self.turned else found


def is_thin(rows: int, shape: tuple[int, ...]) -> bool:
    """Whether 2T² numbers are fewer than those of a gradient of ``shape``."""
    return 2 * rows * rows <= shape[0] * shape[1]


def gram(x: Array, y: Array) -> Array:
    """⟨x_nt, y_ns⟩ for each sample and pair of rows: (n, T, S). Integers represent unit rows."""
    if x.dtype.kind in "iu" and y.dtype.kind in "iu":
        return x[:, :, None] == y[:, None, :]
    if x.dtype.kind in "iu":
        xp = module_of(y)
        return y[xp.arange(len(y))[:, None], :, x]  # y_ns[x_nt]
    if y.dtype.kind in "iu":
        return gram(y, x).swapaxes(1, 2)
    work.flops += 2 * x.size * y.shape[1]
    return x @ y.swapaxes(1, 2)  # (n, T, i) @ (n, i, S) -> (n, T, S)


def sum_of_products(x: Array, y: Array) -> Array:
    """Σ over all axes but the first of x · y: (n,)."""
    return (x * y).reshape(len(x), -1).sum(axis=1)


def _rows(x: Any) -> Array:
    """(n, T, w) as (nT, w)."""
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])
