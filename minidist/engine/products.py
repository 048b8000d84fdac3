"""Products of matrices where they lie: written into an array, scaled and added, without copies.

    product(xp, a, b, out, scale, add)        out = scale · a @ b        (+ out, if ``add``)

On the host these are NumPy's ``matmul`` and little more. CuPy's copies every matrix of a stack that
is not contiguous, such as a transposed one, or one head's part of queries, keys and values that lie
side by side: a launch and a way through memory for each. cuBLAS itself needs no copy. It takes a
matrix whose rows, or whose columns, are contiguous, with any distance between them (the "leading
dimension"), and for a stack of matrices a list of where each begins.

cuBLAS stores matrices by columns. Our (m, n) matrix by rows is its (n, m) matrix by columns, so we
ask for Cᵀ = Bᵀ Aᵀ: the operands change places.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.kernels import kernel

# Of a dtype's character: cuBLAS's code, and the code of the dtype that it computes in.
CODES = {"e": (2, 68), "f": (0, 68), "d": (1, 70)}
DEFAULT = -1  # let cuBLAS choose its algorithm


def product(xp: Any, a: Array, b: Array, out: Array, scale: float = 1.0, add: bool = False) -> None:
    """Fill ``out`` with scale · a @ b, or add that to it.

    Shapes: a (..., m, k), b (..., k, n), out (..., m, n); the leading axes of a and b broadcast to
    those of ``out``. All of one dtype; ``out`` shares no memory with the others.
    """
    if xp is not np and _by_cublas(xp, a, b, out, scale, add):
        return
    if scale != 1:  # of the two, the smaller is cheaper to scale
        a, b = (a * scale, b) if a.size <= b.size else (a, b * scale)
    if add:
        out += a @ b
    else:
        xp.matmul(a, b, out=out)


def _by_cublas(xp: Any, a: Array, b: Array, out: Array, scale: float, add: bool) -> bool:
    """Do it, if the arrays are such that cuBLAS can."""
    cuda = getattr(xp, "cuda", None)
    dtype = out.dtype.char
    if cuda is None or dtype not in CODES or not a.dtype.char == b.dtype.char == dtype:
        return False
    if out.size == 0 or a.size == 0 or out.ndim > 5:
        return False
    stack = out.shape[:-2]
    if stack and dtype == "e":
        return False  # CuPy offers no list of float16 matrices
    size = out.itemsize
    out_order = _order(out, size)
    if out_order is None or out_order[0]:
        return False
    (a, (turn_a, ld_a)), (b, (turn_b, ld_b)) = (_readable(xp, x, size) for x in (a, b))
    m, n, k = out.shape[-2], out.shape[-1], a.shape[-1]
    alpha, beta = _number(scale, dtype), _number(float(add), dtype)
    handle = cuda.get_cublas_handle()
    if not stack:
        code, compute = CODES[dtype]
        cuda.cublas.gemmEx(
            *(handle, turn_b, turn_a, n, m, k, alpha, b.data.ptr, code, ld_b),
            *(a.data.ptr, code, ld_a, beta, out.data.ptr, code, out_order[1], compute, DEFAULT),
        )
        return True
    count = math.prod(stack)
    pointers = xp.empty((3, count), np.uint64)
    strides = [s for x in (a, b, out) for s in _stack_strides(x, stack)]
    middle, inner = (1, 1, *stack)[-2:]
    _pointers(xp, pointers, a.data.ptr, b.data.ptr, out.data.ptr, middle, inner, *strides)
    first = pointers.data.ptr
    run = cuda.cublas.sgemmBatched if dtype == "f" else cuda.cublas.dgemmBatched
    run(
        *(handle, turn_b, turn_a, n, m, k, alpha, first + 8 * count, ld_b, first, ld_a),
        *(beta, first + 16 * count, out_order[1], count),
    )
    return True


def _readable(xp: Any, x: Array, size: int) -> tuple[Array, tuple[int, int]]:
    """``x`` and how cuBLAS has to read it; a copy of ``x`` where it cannot."""
    order = _order(x, size)
    if order is None:
        x = xp.ascontiguousarray(x)
        return x, (0, x.shape[-1])
    return x, order


def _order(x: Array, size: int) -> tuple[int, int] | None:
    """(0, distance between rows) if rows are contiguous, (1, ... columns) if columns are."""
    rows, columns = x.shape[-2:]
    down, right = x.strides[-2] // size, x.strides[-1] // size
    if (right == 1 or columns == 1) and (rows == 1 or down >= columns):
        return 0, (columns if rows == 1 else down)
    if (down == 1 or rows == 1) and (columns == 1 or right >= rows):
        return 1, (rows if columns == 1 else right)
    return None


def _stack_strides(x: Array, stack: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes from one matrix to the next along each axis of the stack; 0 where x is repeated."""
    missing = len(stack) - (x.ndim - 2)
    own = tuple(
        0 if length == 1 else stride
        for length, stride in zip(x.shape[:-2], x.strides[:-2], strict=True)
    )
    return (0,) * (3 - len(stack) + missing) + own


@lru_cache(maxsize=256)
def _held(value: float, dtype: str) -> np.ndarray:
    return np.array(value, "d" if dtype == "d" else "f")


@lru_cache(maxsize=256)
def _number(value: float, dtype: str) -> int:
    """Where a number lies in the host's memory, in the dtype that cuBLAS computes in."""
    return _held(value, dtype).ctypes.data


@kernel(
    "unsigned long long *pointers, long long a, long long b, long long out, long long middle, "
    "long long inner, long long a0, long long a1, long long a2, long long b0, long long b1, "
    "long long b2, long long c0, long long c1, long long c2",
    """
    long long count = n / 3, which = i / count, at = i % count;
    long long x = at / inner / middle, y = at / inner % middle, z = at % inner;
    pointers[i] = which == 0 ? a + x * a0 + y * a1 + z * a2
                : which == 1 ? b + x * b0 + y * b1 + z * b2
                : out + x * c0 + y * c1 + z * c2;
""",
)
def _pointers(
    xp: Any, pointers: Array, a: int, b: int, out: int, middle: int, inner: int, *strides: int
) -> None:
    """Where each matrix of three stacks begins; three strides in bytes for each stack."""
    outer = pointers.shape[1] // (middle * inner)
    for row, (start, *steps) in enumerate(
        ((a, *strides[:3]), (b, *strides[3:6]), (out, *strides[6:]))
    ):
        places = [
            xp.arange(length) * step
            for length, step in zip((outer, middle, inner), steps, strict=True)
        ]
        grid = places[0][:, None, None] + places[1][:, None] + places[2] + start
        pointers[row] = grid.reshape(-1)
