"""Attention on arrays, a block of query rows at a time; the formulas are in attention.py.

    keys      0 1 2 3 4 5
    block 0   x .              queries 0 and 1 use keys 0 to 1
              x x
    block 1   x x x .          queries 2 and 3 use keys 0 to 3
              x x x x
    block 2   x x x x x .      x: computed; .: computed, then masked; the rest is not computed
              x x x x x x

With causal attention, the part of P to the right of the diagonal is 0. So the queries are cut into
blocks of ``BLOCK`` rows, and each block uses only the keys up to its last row. For long sequences
this is half of the work and of the memory. All three products of a block read Q, K and V as views:
nothing is transposed in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.engine.arithmetic import work
from minidist.engine.array import Array, module_of
from minidist.engine.kernels import kernel, wide
from minidist.engine.products import product
from minidist.ops.chunks import chunks
from minidist.ops.sums import summed

BLOCK = 64  # query rows of a block
WEIGHTS = 1 << 19  # bytes of P computed at a time: few samples, so that P stays in cache


def attention_blocks(
    length: int, keys: int, causal: bool = True, block: int = BLOCK
) -> Iterator[tuple[slice, int]]:
    """Blocks of query rows, each with the number of keys that it uses."""
    for start in range(0, length, block):
        stop = min(start + block, length)
        yield slice(start, stop), (keys - length + stop) if causal else keys


def attention_forward(
    q: Array, k: Array, v: Array, out: Array, causal: bool, mask: Array | None = None
) -> list[tuple[slice, slice, Array]]:
    """Fill ``out`` (b, h, l, d); return the samples, query rows and weights P of every block.

    Shapes: q (b, h, l, d), k and v (b, g, s, d), mask as ``attention`` takes it, with four axes.
    """
    xp = module_of(q)
    groups, d = k.shape[1], q.shape[3]
    q, out = _grouped(q, groups), _grouped(out, groups)  # (b, g, h/g, l, d)
    k, v = k[:, :, None], v[:, :, None]  # (b, g, 1, s, d)
    saved = []
    for some, rows, seen in _blocks(q, k, causal):
        # In float32 at least: scores may be beyond float16, weights are not.
        queries, keys = wide(q[some, ..., rows, :]), wide(k[some, ..., :seen, :])
        p = xp.empty((*queries.shape[:-1], seen), queries.dtype)
        # (b, g, h/g, l, d) @ (b, g, 1, d, s) -> (b, g, h/g, l, s)
        product(xp, queries, keys.swapaxes(-1, -2), p, scale=1 / math.sqrt(d))
        if mask is None:
            _causal_softmax(xp, p, rows.stop - rows.start, causal)
        else:
            _masked_softmax(xp, p, _part_of_mask(mask, groups, some, rows, seen), causal)
        p = p.astype(q.dtype, copy=False)
        # (.., l, s) @ (.., s, d) -> (.., l, d)
        product(xp, p, v[some, ..., :seen, :], out[some, ..., rows, :])
        work.flops += 4 * p.size * d
        saved.append((some, rows, p))
    return saved


def attention_backward(
    grad: Array,
    q: Array,
    k: Array,
    v: Array,
    saved: list[tuple[slice, slice, Array]],
    grad_q: Array,
    grad_k: Array,
    grad_v: Array,
) -> None:
    """Fill the three gradients; ``saved`` is what ``attention_forward`` returned."""
    xp = module_of(q)
    groups, d = k.shape[1], q.shape[3]
    grad, q, grad_q = (_grouped(array, groups) for array in (grad, q, grad_q))
    k, v, grad_k, grad_v = (array[:, :, None] for array in (k, v, grad_k, grad_v))
    scale = 1 / math.sqrt(d)
    if not saved:  # no queries, so the keys were not used
        grad_k[...] = grad_v[...] = 0
    written = -1  # the first of the samples whose gradients of keys and values are written
    for some, rows, p in reversed(saved):
        # The last block of some samples uses all keys and writes; the other blocks add to it.
        seen, add = p.shape[-1], some.start == written
        written = some.start
        d_out, queries = grad[some, ..., rows, :], q[some, ..., rows, :]  # (b, g, h/g, l, d)
        # (.., s, l) @ (.., l, d) -> (.., s, d)
        _for_keys(xp, p.swapaxes(-1, -2), d_out, grad_v[some, ..., :seen, :], 1.0, add)
        ds = xp.empty(p.shape, p.dtype)
        # dP: (.., l, d) @ (.., d, s) -> (.., l, s)
        product(xp, d_out, v[some, ..., :seen, :].swapaxes(-1, -2), ds)
        _causal_softmax_backward(xp, ds, p)
        # (.., s, l) @ (.., l, d) -> (.., s, d)
        _for_keys(xp, ds.swapaxes(-1, -2), queries, grad_k[some, ..., :seen, :], scale, add)
        # (.., l, s) @ (.., s, d) -> (.., l, d)
        product(xp, ds, k[some, ..., :seen, :], grad_q[some, ..., rows, :], scale)
        work.flops += 8 * p.size * d


@kernel(
    "T *p, long long rows, bool causal",
    """
    p += row * w;
    long long seen = causal ? w - rows + row % rows + 1 : w;  // keys up to the query's own place
    A top = p[0], sum = 0;
    for (int j = threadIdx.x; j < seen; j += blockDim.x) top = max(top, (A)p[j]);
    top = largest(top);
    for (int j = threadIdx.x; j < seen; j += blockDim.x) sum += exp((A)p[j] - top);
    sum = total(sum);
    for (int j = threadIdx.x; j < w; j += blockDim.x)
        p[j] = j < seen ? T(exp((A)p[j] - top) / sum) : T(0);
""",
    over="rows",
)
def _causal_softmax(xp: Any, p: Array, rows: int, causal: bool) -> None:
    """Turn scores (.., rows, keys) into weights; the queries are the last positions.

    Not ``causal``: every query uses every key.
    """
    seen = p.shape[-1]
    e = wide(p)  # p itself, except for float16
    if causal:
        e[..., seen - rows :] += xp.triu(xp.full((rows, rows), -xp.inf, e.dtype), 1)
    e -= e.max(axis=-1, keepdims=True)
    xp.exp(e, out=e)
    total = e @ xp.ones((seen, 1), e.dtype)  # (.., l, 1): the row sums
    e *= 1 / total
    if e is not p:
        p[...] = e


def _masked_softmax(xp: Any, p: Array, mask: Array, causal: bool) -> None:
    """The same with a mask. The weights of a query that may use no key are 0."""
    rows, seen = p.shape[-2:]
    p[...] = xp.where(mask, p, -xp.inf) if mask.dtype.kind == "b" else p + mask
    if causal:
        p[..., seen - rows :] += xp.triu(xp.full((rows, rows), -xp.inf, p.dtype), 1)
    if not p.size:
        return
    no_key = p.max(axis=-1, keepdims=True) == -xp.inf
    p[...] = xp.where(no_key, 0, p)  # the softmax of -inf alone would be NaN
    _causal_softmax(xp, p, rows, False)
    p[...] = xp.where(no_key, 0, p)


def _part_of_mask(mask: Array, groups: int, some: slice, rows: slice, seen: int) -> Array:
    """The mask of some samples, query rows and keys: (b, g, h/g, l, s), each length perhaps 1."""
    batch, heads, length, keys = mask.shape
    if heads == 1:
        mask = mask[:, None]
    else:
        mask = mask.reshape(batch, groups, heads // groups, length, keys)
    return mask[
        some if batch > 1 else slice(None),
        ...,
        rows if length > 1 else slice(None),
        slice(seen) if keys > 1 else slice(None),
    ]


@kernel(
    "T *ds, const T *p",
    """
    ds += row * w;
    p += row * w;
    A sum = 0;
    for (int j = threadIdx.x; j < w; j += blockDim.x) sum += (A)ds[j] * (A)p[j];
    sum = total(sum);
    for (int j = threadIdx.x; j < w; j += blockDim.x) ds[j] = T((A)p[j] * ((A)ds[j] - sum));
""",
    over="rows",
)
def _causal_softmax_backward(xp: Any, ds: Array, p: Array) -> None:
    """Turn dP into dS = P · (dP - Σ P · dP), in place; P is 0 where it was masked."""
    ds -= xp.einsum("...ls,...ls->...l", wide(ds), wide(p))[..., None].astype(ds.dtype, copy=False)
    ds *= p


def _blocks(q: Array, k: Array, causal: bool) -> Iterator[tuple[slice, slice, int]]:
    """Yield some samples, a block of their query rows, and the number of keys for these rows."""
    _, groups, shared, length, _ = q.shape
    keys = k.shape[3]
    # On a GPU one block: fewer kernel launches save more time than half of the work.
    longest = BLOCK if module_of(q) is np else max(1, length)
    rows = groups * shared * min(longest, length)
    for some in chunks(q, rows * keys, WEIGHTS):
        for block, seen in attention_blocks(length, keys, causal, longest):
            yield some, block, seen


def _for_keys(xp: Any, a: Array, b: Array, out: Array, scale: float, add: bool) -> None:
    """``product`` for a gradient of keys or values, (b, g, 1, s, d).

    The query heads of a group share keys and values, so their gradients are summed.
    """
    if a.shape[2] == 1:
        product(xp, a, b, out, scale, add)
        return
    part = xp.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
    product(xp, a, b, part, scale)
    total = summed(xp, part, axis=2, keepdims=True)
    out[...] = out + total if add else total


def _grouped(array: Array, groups: int) -> Array:
    """(b, h, l, d) as (b, g, h/g, l, d): a view."""
    batch, heads, length, d = array.shape
    return array.reshape(batch, groups, heads // groups, length, d)
