"""Reading part of an array: slices, integer arrays, rows of a table.

The backward adds the gradient of each read to the element that was read. Slices read no element
twice, so for them an assignment is enough. Integer arrays may read an element several times, and
the gradients of all reads must be added: ``grad_x[index] = grad`` would keep only the last one.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np

from minidist.engine.array import Array, module_of
from minidist.engine.kernels import kernel
from minidist.engine.tensor import Into, Tensor, as_tensor, recording
from minidist.ops.operands import DTypeError, ShapeError, by_sample, same_device
from minidist.ops.sums import dtype_to_add


def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index], for every index that NumPy accepts."""
    x = as_tensor(x)
    if isinstance(index, Tensor):
        index = index.data
    if isinstance(index, tuple):
        index = tuple(part.data if isinstance(part, Tensor) else part for part in index)
    parts = index if isinstance(index, tuple) else (index,)
    plain = all(
        part is None or part is Ellipsis or isinstance(part, (int, slice, np.integer))
        for part in parts
    )
    shape, xp = x.data.shape, x.xp
    if not plain and recording(x):  # copies, since the caller may write into index arrays later
        index = (
            tuple(_copied(part) for part in parts) if isinstance(index, tuple) else _copied(index)
        )
    try:
        y = x.data[index]
    except IndexError as error:
        raise IndexError(f"indexing a tensor of shape {shape}: {error}") from None

    def backward(grad: Array) -> Any:
        if plain:
            grad_x = xp.zeros(shape, grad.dtype)
            grad_x[index] = grad  # no element was read twice
            return (grad_x,)
        # All reads may be of the same element: a sum of many numbers.
        grad_x = xp.zeros(shape, dtype_to_add(xp, grad.dtype, grad.size))
        xp.add.at(grad_x, index, grad)
        return (grad_x.astype(grad.dtype, copy=False),)

    return Tensor.of(y, (x,), backward)


def _copied(part: Any) -> Any:
    if hasattr(part, "dtype"):
        return part.copy()
    return deepcopy(part) if isinstance(part, list) else part


def embedding(indices: Any, weight: Tensor) -> Tensor:
    """Rows of a table: indices (...) integers in [0, rows), weight (rows, width) → (..., width).

    Raises IndexError for an index out of range. On a GPU a check would make the host wait in every
    step, so there such an index gives a row of NaN.
    """
    if isinstance(indices, Tensor):
        indices = indices.data
    xp = weight.xp
    if not hasattr(indices, "dtype"):
        indices = xp.asarray(indices)  # a list of numbers
    if indices.dtype.kind not in "iu":
        raise DTypeError(
            f"embedding: indices must be an array of integers, not {indices.dtype} of "
            f"{indices.shape}: convert them with .astype(int)"
        )
    same_device("embedding", weight, Tensor(indices))
    if weight.ndim != 2:
        raise ShapeError(f"embedding: the table must be (rows, width), not {weight.shape}")
    rows, width = weight.shape
    # A copy if the backward needs the indices, since the caller may write into the array later.
    flat = indices.reshape(-1).astype(np.int64, copy=recording(weight))  # (n,)
    if xp is np and flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < rows:
        raise IndexError(
            f"embedding: indices must lie in [0, {rows}), found {int(flat.min())} to "
            f"{int(flat.max())}: the table is {weight.shape}"
        )
    out = xp.empty((len(flat), width), weight.dtype)
    _take_rows(xp, out, weight.data, flat, rows)
    shape = indices.shape

    def backward(grad: Array) -> Any:
        grad = grad.reshape(len(flat), width)  # (n, width)

        def write(out: Array | None) -> Array:
            out = xp.empty((rows, width), grad.dtype) if out is None else out
            sum_rows(xp, out, grad, flat, len(flat))
            return out

        return (
            Into(
                write,
                lambda n: (
                    by_sample("embedding", flat, shape, n),
                    by_sample("embedding", grad, shape, n),
                ),
            ),
        )

    return Tensor.of(out.reshape(*shape, width), (weight,), backward)


@kernel(
    "T *out, const T *table, const long long *indices, long long rows",
    """
    long long index = indices[row];
    bool valid = 0 <= index && index < rows;
    for (int j = threadIdx.x; j < w; j += blockDim.x)
        out[row * w + j] = valid ? table[index * w + j] : T(nan(""));
""",
    over="rows",
)
def _take_rows(xp: Any, out: Array, table: Array, indices: Array, rows: int) -> None:
    out[...] = xp.take(table, indices, axis=0)


@kernel(
    "T *table, const T *rows, const long long *indices, long long count",
    """
    for (int j = threadIdx.x; j < w; j += blockDim.x) {
        A sum = 0;  // in order of position, so that every run gives the same bits
        for (long long k = 0; k < count; k++)
            if (indices[k] == row) sum += (A)rows[k * w + j];
        table[row * w + j] = T(sum);
    }
""",
    over="rows",
)
def sum_rows(xp: Any, table: Array, rows: Array, indices: Array, count: int) -> None:
    """Fill row i of ``table`` with the sum of all rows with index i."""
    table.fill(0)
    add_rows(table, indices, rows)


def add_rows(table: Array, indices: Array, rows: Array) -> None:
    """table[indices[i]] += rows[i] for every i, where an index may occur many times.

    On the host, rows with the same index are sorted together and summed by one call (``reduceat``).
    This is many times faster than ``np.add.at``.
    """
    if not len(indices):
        return
    if isinstance(table, np.ndarray):
        order = np.argsort(indices, kind="stable")  # stable: sums are in order of position
        ordered = indices[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of each index
        table[ordered[starts]] += np.add.reduceat(rows[order], starts, axis=0)
    else:
        module_of(table).add.at(table, indices, rows)
