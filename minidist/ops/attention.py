"""Causal attention: each position attends to itself and to the positions before it.

    P = softmax(Q Kᵀ / √d + mask)        (length, length), the weights
    O = P V                              (length, d)

"Attention is all you need", arXiv 1706.03762, section 3.2.1. With H query heads and G < H heads of
keys and values, each group of H/G query heads shares one of them (grouped-query attention, arXiv
2305.13245). dO is the gradient of O, and Σ sums over the keys of each row:

    dV = Pᵀ dO        dP = dO Vᵀ        dS = P · (dP - Σ P · dP)        dQ = dS K / √d
                                                                        dK = dSᵀ Q / √d

Here are the ops, for queries, keys and values in three arrays or in one. The computation, which
leaves out most of what the causal mask hides, is in blockwise_attention.py.
"""

from __future__ import annotations

from typing import Any

from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.ops.blockwise_attention import attention_backward, attention_forward
from minidist.ops.operands import DTypeError, ShapeError, floating_only, same_device
from minidist.ops.rotary import angles, rotate


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, mask: Any = None) -> Tensor:
    """softmax(q kᵀ / √d) v for all heads at once.

    Shapes: q (batch, heads, length, d), k and v (batch, groups, keys, d), where ``groups``
    divides ``heads`` and query head h uses group h // (heads / groups) → (batch, heads, length,
    d). If there are more keys than queries, the queries are the *last* positions, as in sampling
    with a cache. With ``causal=False`` every query uses every key.

    ``mask`` is a constant that broadcasts to (batch, heads, length, keys), as in PyTorch's
    scaled_dot_product_attention: booleans, true where a query may use a key, or numbers that are
    added to the scores q kᵀ / √d. The result for a query that may use no key is 0.
    """
    q, k, v = (floating_only("attention", x) for x in (q, k, v))
    _check(q, k, v, causal)
    mask = _as_mask("attention", mask, q, (*q.shape[:3], k.shape[2]))
    same_device("attention", q, k, v)
    xp = q.xp
    batch, heads, length, d = q.shape
    data_q, data_k, data_v = q.data, k.data, v.data
    # Allocated as (batch, length, heads, d) and viewed as (batch, heads, length, d), so that the
    # heads can be merged later without a copy.
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
    into one array, which is the gradient of qkv. ``mask``, as in ``attention``, applies in addition
    to the causal mask.
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
        packed = packed.copy()  # the backward needs the rotated values only
    rotated, q, k, v = _unpack(packed, heads, groups)
    if rotary_base is not None:
        rotate(rotated, *angles(xp, 0, length, d, rotary_base, packed.dtype))
    out = xp.empty((batch, length, heads, d), packed.dtype)
    weights = attention_forward(q, k, v, out.transpose(0, 2, 1, 3), True, mask)

    def backward(grad: Array) -> Any:
        grad = grad.reshape(batch, length, heads, d).transpose(0, 2, 1, 3)
        grad_packed = xp.empty(packed.shape, packed.dtype)
        grad_rotated, *grads = _unpack(grad_packed, heads, groups)
        attention_backward(grad, q, k, v, weights, *grads)
        if rotary_base is not None:  # the gradient of a rotation is rotated back
            cosine, sine = angles(xp, 0, length, d, rotary_base, packed.dtype)
            rotate(grad_rotated, cosine, -sine)
        return (grad_packed,)

    return Tensor.of(out.reshape(batch, length, heads * d), (qkv,), backward)


def _unpack(packed: Array, heads: int, groups: int) -> tuple[Array, Array, Array, Array]:
    """Four views of an array (b, l, (heads + 2 groups) · d): q with k, q, k, and v.

    Shapes: q (b, heads, l, d), k and v (b, groups, l, d). Rotary positions rotate q and k.
    """
    batch, length, width = packed.shape
    count = heads + 2 * groups
    # width // count and not -1, which NumPy cannot resolve if the batch is empty.
    parts = packed.reshape(batch, length, count, width // count).transpose(0, 2, 1, 3)
    keys = heads + groups  # the end of the keys
    return parts[:, :keys], parts[:, :heads], parts[:, heads:keys], parts[:, keys:]


def _as_mask(name: str, mask: Any, like: Tensor, shape: tuple[int, ...]) -> Array | None:
    """``mask`` as a 4-D array that broadcasts to ``shape``; an error if it cannot be one."""
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        if mask.node is not None:
            raise TypeError(f"{name}: the mask is a constant: pass mask.detach()")
        mask = mask.data
    mask = like.xp.asarray(mask)
    if mask.dtype.kind not in "bf":
        raise DTypeError(
            f"{name}: the mask is {mask.dtype}: it must have booleans, true where a query may use "
            "a key, or floating numbers, which are added to the scores"
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
