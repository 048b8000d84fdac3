"""Dropout: zero each element with probability ``rate``, and scale the others up to compensate.

Hinton et al., arXiv 1207.0580. The mask is keyed by (seed, name, step) and by each sample's
position in the global batch, never by rank or by the order of calls: see ``minidist.engine.draws``.
So data-parallel ranks, microbatches and a recomputation in the backward all use the mask of serial
training. A GPU draws the same numbers itself.
"""

from __future__ import annotations

from minidist.engine.array import Array
from minidist.engine.seeds import draw_mask
from minidist.engine.tensor import Tensor
from minidist.ops.operands import floating_only
from minidist.ops.selection import kept


def dropout(
    x: Tensor, rate: float, name: str, part: tuple[slice, ...] = (), whole: tuple[int, ...] = ()
) -> Tensor:
    """x · mask / (1 - rate), where the mask is 0 with probability ``rate``, else 1.

    The first axis of x holds samples. ``name`` must differ between the dropouts of a model. If
    a rank has only part of each sample, as in tensor parallelism, it passes ``part``, the slices
    of the axes after the first, and ``whole``, the full lengths of those axes.
    """
    x = floating_only("dropout", x)
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate {rate} is not in [0, 1)")
    if rate == 0:
        return x
    row = whole or x.shape[1:]
    width = 1
    for length in row:
        width *= length
    xp, scale = x.xp, 1 / (1 - rate)
    keep = draw_mask(xp, name, x.shape[0], width, rate).reshape(x.shape[0], *row)
    mask = keep[(slice(None), *part)]  # one byte an element
    if mask.shape != x.shape:
        raise ValueError(f"dropout: part {part} of {whole} is {mask.shape}, the input {x.shape}")
    if part:
        mask = xp.array(mask, order="C")  # copied, so that the rest is not kept for the backward

    def backward(grad: Array) -> tuple[Array]:
        return (kept(xp, grad, mask, scale),)

    return Tensor.of(kept(xp, x.data, mask, scale), (x,), backward)
