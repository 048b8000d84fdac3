"""Causal attention: each position attends to itself and to the positions before it.

    P = softmax(Q Kᵀ / √d + mask)        (length, length), the weights
    O = P V                              (length, d)

"Attention is all you need", arXiv 1706.03762, section 3.2.1. With H query heads and G < H heads of
keys and values, each group of H/G query heads shares one of them (grouped-query attention, arXiv
2305.13245). dO is the gradient of O, and Σ sums over the keys of each row:

    dV = Pᵀ dO        dP = dO Vᵀ        dS = P · (dP - Σ P · dP)        dQ = dS K / √d
                                                                        dK = dSᵀ Q / √d

The masked part of P, to the right of the diagonal, need not be computed. So the queries are cut
into blocks of ``BLOCK`` rows, and each block uses only the keys up to its last row. For long
sequences this is half of the work and of the memory. All three products of a block read Q, K and V
as views: nothing is transposed in memory.
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
from minidist.engine.tensor import Tensor
from minidist.ops.chunks import chunks
from minidist.ops.operands import DTypeError, ShapeError, floating_only, same_device
from minidist.ops.rotary import angles, rotate
from minidist.ops.sums import summed

BLOCK = 64  # query rows at a time
WEIGHTS = 1 << 19  # bytes of P at a time: few samples, so that they stay in cache


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, mask: Any = None) -> Tensor:
    """softmax(q kᵀ / √d) v for all heads at once.

    Shapes: q (batch, heads, length, d), k and v (batch, groups, keys, d), where ``groups``
    divides ``heads`` and query head h uses group h // (heads / groups) → (batch, heads, length,
    d). If there are more keys than queries, the queries are the *last* positions, as in sampling
    with a cache. With ``causal=False`` every query uses every key.

    ``mask`` broadcasts to (batch, heads, length, keys), as in PyTorch's
    scaled_dot_product_attention: booleans, true where a query may use a key, or numbers that are
    added to the scores q kᵀ / √d. A query that may use no key at all gets 0. It is a constant.
    """
    q, k, v = (floating_only("attention", one) for one in (q, k, v))
    _check(q, k, v, causal)
    mask = _as_mask("attention", mask, q, (*q.shape[:3], k.shape[2]))
    same_device("attention", q, k, v)
    xp = q.xp
    batch, heads, length, d = q.shape
    data_q, data_k, data_v = q.data, k.data, v.data
    # Allocated as (batch, length, heads, d), viewed as (batch, heads, length, d): so the heads
    # are merged later without a copy.
    out = xp.empty((batch, length, heads, d), q.dtype).transpose(0, 2, 1, 3)
    weights = attention_forward(data_q, data_k, data_v, out, causal, mask)

    def backward(grad: Array) -> Any:
        grads = xp.empty_like(data_q), xp.empty_like(data_k), xp.empty_like(data_v)
        attention_backward(grad, data_q, data_k, data_v, weights, *grads)
        return grads

    return Tensor.of(out, (q, k, v), backward)


def self_attention(
    qkv: Tensor,
    heads: int,
    groups: int | None = None,
    rotary_base: float | None = None,
    mask: Any = None,
) -> Tensor:
    """Causal attention on queries, keys and values that one product computed, side by side.

    Shapes: qkv (batch, length, (heads + 2 groups) · d) → (batch, length, heads · d). The result is
    that of three steps: split qkv, rotate queries and keys with ``rotary`` if ``rotary_base`` is
    given, and call ``attention``. Here no copies are made: the backward writes the three gradients
    into one array, which is the gradient of qkv. ``mask`` is as in ``attention``, and masks more
    than the positions to come.
    """
    qkv = floating_only("self_attention", qkv)
    groups = groups or heads
    if qkv.ndim != 3 or heads % groups or qkv.shape[2] % (heads + 2 * groups):
        raise ShapeError(
            f"self_attention: qkv {qkv.shape} is not (batch, length, (heads + 2 groups) · d) for "
            f"{heads} heads and {groups} groups, or the groups do not divide the heads"
        )
    xp = qkv.xp
    batch, length, width = qkv.shape
    d = width // (heads + 2 * groups)
    mask = _as_mask("self_attention", mask, qkv, (batch, heads, length, length))
    packed = qkv.data
    if rotary_base is not None:
        packed = packed.copy()  # the unrotated array is not needed after this
        turn = angles(xp, 0, length, d, rotary_base, packed.dtype)
        rotate(_turning(packed, heads, groups), *turn)
    out = xp.empty((batch, length, heads, d), packed.dtype)
    merged = out.transpose(0, 2, 1, 3)  # (b, heads, l, d)
    weights = attention_forward(*_unpack(packed, heads, groups), merged, True, mask)

    def backward(grad: Array) -> Any:
        grad = grad.reshape(batch, length, heads, d).transpose(0, 2, 1, 3)
        grad_packed = xp.empty(packed.shape, packed.dtype)
        attention_backward(
            grad,
            *_unpack(packed, heads, groups),
            weights,
            *_unpack(grad_packed, heads, groups),
        )
        if rotary_base is not None:
            cosine, sine = angles(xp, 0, length, d, rotary_base, packed.dtype)
            rotate(_turning(grad_packed, heads, groups), cosine, -sine)
        return (grad_packed,)

    return Tensor.of(out.reshape(batch, length, heads * d), (qkv,), backward)


def _unpack(packed: Array, heads: int, groups: int) -> tuple[Array, Array, Array]:
    """Views of q (b, heads, l, d), k and v (b, groups, l, d) in an array (b, l, q + k + v)."""
    batch, length, width = packed.shape
    count = heads + 2 * groups
    # Not -1 for the last: a batch may be empty.
    parts = packed.reshape(batch, length, count, width // count).transpose(0, 2, 1, 3)
    return parts[:, :heads], parts[:, heads : heads + groups], parts[:, heads + groups :]


def _turning(packed: Array, heads: int, groups: int) -> Array:
    """The part of the packed array that is rotated by position: queries and keys."""
    batch, length, width = packed.shape
    count = heads + 2 * groups
    # Not -1 for the last: a batch may be empty.
    parts = packed.reshape(batch, length, count, width // count).transpose(0, 2, 1, 3)
    return parts[:, : heads + groups]


def attention_blocks(
    length: int, keys: int, causal: bool = True, block: int = BLOCK
) -> Iterator[tuple[slice, int]]:
    """Blocks of query rows, each with the number of keys that it may use."""
    for start in range(0, length, block):
        stop = min(start + block, length)
        yield slice(start, stop), (keys - length + stop) if causal else keys


def attention_forward(
    q: Array, k: Array, v: Array, out: Array, causal: bool, mask: Array | None = None
) -> list[tuple[slice, slice, Array]]:
    """Fill ``out``; return the samples, rows and weights P of every block."""
    xp = module_of(q)
    groups, d = k.shape[1], q.shape[3]
    q, out = _grouped(q, groups), _grouped(out, groups)  # (b, g, h/g, l, d)
    k, v = k[:, :, None], v[:, :, None]  # (b, g, 1, s, d)
    saved = []
    for some, rows, seen in _pieces(q, k, causal):
        # float16 holds the weights, but not all scores
        asking, read = wide(q[some, ..., rows, :]), wide(k[some, ..., :seen, :])
        p = xp.empty((*asking.shape[:-1], seen), asking.dtype)
        # (b, g, h/g, l, d) @ (b, g, 1, d, s) -> (b, g, h/g, l, s)
        product(xp, asking, read.swapaxes(-1, -2), p, scale=1 / math.sqrt(d))
        if mask is None:
            _masked_softmax(xp, p, rows.stop - rows.start, causal)
        else:
            _softmax_with(xp, p, _part(mask, groups, some, rows, seen), causal)
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
    """Fill the three gradients."""
    xp = module_of(q)
    groups, d = k.shape[1], q.shape[3]
    grad, q, grad_q = (_grouped(array, groups) for array in (grad, q, grad_q))
    k, v, grad_k, grad_v = (array[:, :, None] for array in (k, v, grad_k, grad_v))
    scale = 1 / math.sqrt(d)
    if not saved:  # no queries, so the keys were not used
        grad_k[...] = grad_v[...] = 0
    begun = -1  # samples for which a block has written
    for some, rows, p in reversed(saved):  # the first block uses all keys: it writes
        seen, more = p.shape[-1], some.start == begun  # the other blocks add
        begun = some.start
        d_out, asking = grad[some, ..., rows, :], q[some, ..., rows, :]  # (b, g, h/g, l, d)
        # (.., s, l) @ (.., l, d) -> (.., s, d)
        _for_keys(xp, p.swapaxes(-1, -2), d_out, grad_v[some, ..., :seen, :], 1.0, more)
        ds = xp.empty(p.shape, p.dtype)
        # dP: (.., l, d) @ (.., d, s) -> (.., l, s)
        product(xp, d_out, v[some, ..., :seen, :].swapaxes(-1, -2), ds)
        _masked_softmax_backward(xp, ds, p)
        # (.., s, l) @ (.., l, d) -> (.., s, d)
        _for_keys(xp, ds.swapaxes(-1, -2), asking, grad_k[some, ..., :seen, :], scale, more)
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
def _masked_softmax(xp: Any, p: Array, rows: int, causal: bool) -> None:
    """Turn scores (.., rows, keys) into weights; the queries are the last positions."""
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


def _softmax_with(xp: Any, p: Array, mask: Array, causal: bool) -> None:
    """Turn scores (.., rows, keys) into weights, with a mask; a row without any key becomes 0."""
    rows, seen = p.shape[-2:]
    p[...] = xp.where(mask, p, -xp.inf) if mask.dtype.kind == "b" else p + mask
    if causal:
        p[..., seen - rows :] += xp.triu(xp.full((rows, rows), -xp.inf, p.dtype), 1)
    if not p.size:
        return
    none = p.max(axis=-1, keepdims=True) == -xp.inf
    p[...] = xp.where(none, 0, p)  # its softmax would be NaN
    _masked_softmax(xp, p, rows, False)
    p[...] = xp.where(none, 0, p)


def _as_mask(name: str, mask: Any, like: Tensor, shape: tuple[int, ...]) -> Array | None:
    """``mask`` as a 4-D array that broadcasts to ``shape``, or the reason why it cannot be one."""
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        if mask.node is not None:
            raise TypeError(f"{name}: the mask is a constant: pass mask.detach()")
        mask = mask.data
    mask = like.xp.asarray(mask)
    if mask.dtype.kind not in "bf":
        raise DTypeError(
            f"{name}: a mask has booleans, true where a query may use a key, or floating numbers "
            f"that are added to the scores, not {mask.dtype}"
        )
    fits = mask.ndim <= 4 and all(
        length in (1, whole)
        for length, whole in zip(reversed(mask.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ShapeError(
            f"{name}: mask {mask.shape} does not broadcast to (batch, heads, length, keys) = "
            f"{shape}"
        )
    if mask.dtype.kind == "f":
        mask = mask.astype(like.dtype, copy=False)
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


def _part(mask: Array, groups: int, some: slice, rows: slice, seen: int) -> Array:
    """A mask for some samples, query rows and keys: (b, g, h/g, l, s), each length perhaps 1."""
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
def _masked_softmax_backward(xp: Any, ds: Array, p: Array) -> None:
    """Turn dP into dS = P · (dP - Σ P · dP), in place; P is 0 where it was masked."""
    ds -= xp.einsum("...ls,...ls->...l", wide(ds), wide(p))[..., None].astype(ds.dtype, copy=False)
    ds *= p


def _pieces(q: Array, k: Array, causal: bool) -> Iterator[tuple[slice, slice, int]]:
    """Yield some samples, a block of their query rows, and the number of keys for these rows."""
    _, groups, shared, length, _ = q.shape
    keys = k.shape[3]
    # On a GPU fewer launches save more time than half of the work.
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


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
    fits = (
        q.ndim == k.ndim == v.ndim == 4
        and k.shape == v.shape
        and q.shape[0] == k.shape[0]
        and q.shape[3] == k.shape[3]
        and k.shape[1] > 0
        and q.shape[1] % k.shape[1] == 0
        and (k.shape[2] >= q.shape[2] or not causal)
    )
    if not fits:
        raise ShapeError(
            f"attention: q {q.shape}, k {k.shape} and v {v.shape} are not (batch, heads, length, "
            "d) and twice (batch, groups, keys, d) with groups dividing heads"
            + (" and keys ≥ length" if causal else "")
        )
