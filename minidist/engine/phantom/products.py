"""Products of matrices: each is one kernel, which counts its FLOPs and the bytes that it moves."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from minidist.engine.array import work
from minidist.engine.phantom import views
from minidist.engine.phantom.arrays import ndarray, new, refuse_host
from minidist.engine.phantom.views import Shape


def matmul(a: ndarray, b: ndarray, out: Any = None) -> ndarray:
    refuse_host(a, "matmul")
    refuse_host(b, "matmul")
    shape = _product(a.shape, b.shape)
    if out is None:
        out = new(shape, np.result_type(a.dtype, b.dtype))
    elif out.shape != shape:
        raise ValueError(f"matmul: out is {out.shape}, the product {shape}")
    work.kernel(a.nbytes + b.nbytes + out.nbytes, 2 * out.size * a.shape[-1])
    return out


@lru_cache(views.KEPT)
def _product(a: Shape, b: Shape) -> Shape:
    if not a or not b or a[-1] != b[0 if len(b) == 1 else -2]:
        raise ValueError(f"matmul: shapes {a} and {b} do not fit")
    left, right = a[:-2], b[:-2]
    return (*views.broadcast(left, right), *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def scaled_product(a: ndarray, b: ndarray, out: ndarray, add: bool) -> None:
    """``engine.products.product``: one kernel, as cuBLAS runs it."""
    shape = _product(a.shape, b.shape)
    if out.shape != shape:
        raise ValueError(f"product: out is {out.shape}, the product {shape}")
    moved = a.nbytes + b.nbytes + (2 if add else 1) * out.nbytes
    work.kernel(moved, 2 * out.size * a.shape[-1])


def dot(a: ndarray, b: ndarray, out: Any = None) -> ndarray:
    return matmul(a, b, out)


def einsum(subscripts: str, *operands: ndarray) -> ndarray:
    shape, flops = _einsum(subscripts, *(one.shape for one in operands))
    out = new(shape, np.result_type(*(one.dtype for one in operands)))
    work.kernel(sum(one.nbytes for one in operands) + out.nbytes, flops)
    return out


@lru_cache(views.KEPT)
def _einsum(subscripts: str, *shapes: Shape) -> tuple[Shape, int]:
    """The result's shape and FLOPs: 2 for each step of the loop over all axes, if it multiplies."""
    left, _, right = subscripts.replace(" ", "").partition("->")
    lengths: dict[str, int] = {}
    for names, shape in zip(left.split(","), shapes, strict=True):
        free = len(shape) - len(names.replace("...", ""))
        letters = names.replace("...", "".join(str(i) for i in range(free)))
        lengths |= dict(zip(letters, shape, strict=True))
    digits = "".join(letter for letter in lengths if letter.isdigit())
    shape = tuple(lengths[letter] for letter in right.replace("...", digits))
    return shape, 2 * math.prod(lengths.values()) if len(shapes) > 1 else 0


def qr(array: ndarray) -> tuple[ndarray, ndarray]:
    """The two factors of an (m, n) matrix: about 4mn² FLOPs (Golub, Van Loan, 5.2)."""
    m, n = array.shape
    k = min(m, n)
    work.kernel(2 * array.nbytes, 4 * m * n * k)
    return new((m, k), array.dtype), new((k, n), array.dtype)
