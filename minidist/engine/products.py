"""Products of matrices, scaled and written into or added to an array, without copies.

    product(xp, a, b, out, scale, add)        out = scale · a @ b        (+ out, if ``add``)
    product_of(xp, a, b, out)                 a @ b of two matrices, in ``out`` or a new array
    product_of_transposed(xp, a, b)           a @ bᵀ of two matrices, in a new array

On the host this is NumPy's ``matmul``. On a GPU, CuPy's ``matmul`` first copies every stack of
matrices that is not contiguous, such as transposed matrices, or the queries of one head inside an
array of queries, keys and values. Each copy costs a launch and a pass over memory. cuBLAS itself
needs no copy. It accepts a matrix with contiguous rows, or contiguous columns, at any distance from
each other (the "leading dimension"). For a stack of matrices it accepts a list of their addresses.

cuBLAS stores matrices by columns. It reads our (m, n) matrix, which is stored by rows, as its
transpose (n, m). So we compute Cᵀ = Bᵀ Aᵀ: the operands are exchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from minidist.engine.array import Array, has_numbers
from minidist.engine.kernels import kernel

# By a dtype's character: cuBLAS's code for it, and the code of the dtype that it computes in.
CODES = {"e": (2, 68), "f": (0, 68), "d": (1, 70)}
DEFAULT = -1  # let cuBLAS choose its algorithm

Shape = tuple[int, ...]


def product(xp: Any, a: Array, b: Array, out: Array, scale: float = 1.0, add: bool = False) -> None:
    """Fill ``out`` with scale · a @ b, or add that to it.

    Shapes: a (..., m, k), b (..., k, n), out (..., m, n); the leading axes of a and b broadcast to
    those of ``out``. All of one dtype; ``out`` shares no memory with the others.
    """
    if xp is not np:
        if not has_numbers(out):
            xp.scaled_product(a, b, out, add)
            return
        if _by_cublas(xp, a, b, out, scale, add):
            return
    if scale != 1:  # of the two, the smaller is cheaper to scale
        a, b = (a * scale, b) if a.size <= b.size else (a, b * scale)
    if add:
        out += a @ b
    else:
        xp.matmul(a, b, out=out)


def product_of(xp: Any, a: Array, b: Array, out: Array | None = None) -> Array:
    """a @ b of two matrices (m, k) and (k, n) of one dtype: (m, n), in ``out`` if it is given."""
    if xp is np:
        return np.matmul(a, b, out=out)
    out = xp.empty((len(a), b.shape[1]), a.dtype) if out is None else out
    product(xp, a, b, out)
    return out


def product_of_transposed(xp: Any, a: Array, b: Array) -> Array:
    """a @ bᵀ of two matrices (m, k) and (n, k) of one dtype, as a new array (m, n).

    For few rows in ``a`` the host computes (b @ aᵀ)ᵀ. OpenBLAS rearranges the transposed operand of
    a small product; this way it is ``a``, not the larger ``b``. On 16 rows and 128 x 128 weights
    this takes three quarters of the time, although the result is copied into the usual order.
    """
    if xp is np and 8 < len(a) <= 32 and b.size > 8192:
        return np.ascontiguousarray(np.matmul(b, a.T).T)
    return product_of(xp, a, b.T)


def _by_cublas(xp: Any, a: Array, b: Array, out: Array, scale: float, add: bool) -> bool:
    """Call cuBLAS if it can read and write these arrays; return whether it could."""
    cuda = getattr(xp, "cuda", None)
    dtype = out.dtype.char
    if cuda is None or dtype not in CODES or not a.dtype.char == b.dtype.char == dtype:
        return False
    call = _plan(dtype, a.shape, a.strides, b.shape, b.strides, out.shape, out.strides)
    if call is None:
        return False
    if call.copy_a:
        a = xp.ascontiguousarray(a)
    if call.copy_b:
        b = xp.ascontiguousarray(b)
    (alpha, _alpha), (beta, _beta) = _number(scale, dtype), _number(float(add), dtype)
    handle = cuda.get_cublas_handle()
    starts = a.data.ptr, b.data.ptr, out.data.ptr
    if not call.count:
        code, compute = CODES[dtype]
        cuda.cublas.gemmEx(
            *(handle, *call.transposes_and_sizes, alpha, starts[1], code, call.ld_b),
            *(starts[0], code, call.ld_a, beta, starts[2], code, call.ld_out, compute, DEFAULT),
        )
        return True
    first = _listed(xp, starts, call, cuda.get_current_stream().ptr).data.ptr
    run = cuda.cublas.sgemmBatched if dtype == "f" else cuda.cublas.dgemmBatched
    run(
        *(handle, *call.transposes_and_sizes, alpha, first + 8 * call.count, call.ld_b),
        *(first, call.ld_a, beta, first + 16 * call.count, call.ld_out, call.count),
    )
    return True


@dataclass(frozen=True)
class Call:
    """The arguments of a cuBLAS call that follow from shapes and strides.

    ``transposes_and_sizes``: whether B and A are stored by columns, then n, m and k. ``ld_a``,
    ``ld_b``, ``ld_out``: leading dimensions. ``copy_a``, ``copy_b``: whether an operand must be
    copied first, since neither its rows nor its columns are contiguous. ``count``: matrices in a
    stack, 0 for no stack. ``axes``: the lengths of the last two axes of the stack. ``steps``: for
    each array, the bytes between matrices along the three axes of the stack.
    """

    transposes_and_sizes: tuple[int, ...]
    ld_a: int
    ld_b: int
    ld_out: int
    copy_a: bool
    copy_b: bool
    count: int
    axes: tuple[int, ...]
    steps: tuple[int, ...]


@lru_cache(maxsize=1024)
def _plan(dtype: str, *layout: tuple[int, ...]) -> Call | None:
    """How to call cuBLAS for shapes and strides of a, b and out; None if it cannot be done."""
    shape_a, strides_a, shape_b, strides_b, shape, strides = layout
    size = np.dtype(dtype).itemsize
    stack = shape[:-2]
    if 0 in shape or 0 in shape_a or len(stack) > 3:
        return None
    if stack and dtype == "e":
        return None  # CuPy has no call for a list of float16 matrices
    by_columns, ld_out = _order(shape, strides, size) or (1, 0)
    if by_columns:
        return None
    order_a, order_b = _order(shape_a, strides_a, size), _order(shape_b, strides_b, size)
    transpose_a, ld_a = order_a or (0, shape_a[-1])
    transpose_b, ld_b = order_b or (0, shape_b[-1])
    if order_a is None:
        strides_a = _contiguous(shape_a, size)
    if order_b is None:
        strides_b = _contiguous(shape_b, size)
    steps = [
        _stack_steps(*one) for one in ((shape_a, strides_a), (shape_b, strides_b), (shape, strides))
    ]
    return Call(
        (transpose_b, transpose_a, shape[-1], shape[-2], shape_a[-1]),
        *(ld_a, ld_b, ld_out, order_a is None, order_b is None),
        *(math.prod(stack) if stack else 0, (1, 1, *stack)[-2:], tuple(sum(steps, ()))),
    )


def _order(shape: Shape, strides: Shape, size: int) -> tuple[int, int] | None:
    """(0, distance of rows) if rows are contiguous, (1, distance of columns) if columns are.

    Distances are in elements. None if neither are contiguous.
    """
    rows, columns = shape[-2:]
    down, right = strides[-2] // size, strides[-1] // size
    if (right == 1 or columns == 1) and (rows == 1 or down >= columns):
        return 0, (columns if rows == 1 else down)
    if (down == 1 or rows == 1) and (columns == 1 or right >= rows):
        return 1, (rows if columns == 1 else right)
    return None


def _contiguous(shape: Shape, size: int) -> Shape:
    """The strides of a contiguous array."""
    return tuple(size * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _stack_steps(shape: Shape, strides: Shape) -> Shape:
    """Bytes from one matrix to the next along three axes; 0 along an axis that is broadcast."""
    own = tuple(
        0 if length == 1 else stride
        for length, stride in zip(shape[:-2], strides[:-2], strict=True)
    )
    return (0,) * (3 - len(own)) + own


@lru_cache(maxsize=4096)
def _listed(xp: Any, starts: tuple[int, ...], call: Call, stream: int) -> Array:
    """The addresses of all matrices of three stacks, (3, count), on the GPU.

    Cached, because a memory pool returns the same addresses in every step. ``stream`` is part of
    the key, because another stream might read the list before it is written.
    """
    pointers = xp.empty((3, call.count), np.uint64)
    _pointers(xp, pointers, *starts, *call.axes, *call.steps)
    return pointers


@lru_cache(maxsize=256)
def _number(value: float, dtype: str) -> tuple[int, np.ndarray]:
    """A number in the dtype that cuBLAS computes in: its address in host memory, and its array.

    The caller must keep the array until cuBLAS has read the number: the cache may drop it.
    """
    array = np.array(value, "d" if dtype == "d" else "f")
    return array.ctypes.data, array


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
    """Fill in the address of each matrix of three stacks; ``strides``: three in bytes for each."""
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
