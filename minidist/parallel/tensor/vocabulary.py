"""A vocabulary cut over ranks: embedding and cross-entropy without gathering table or logits.

Rank r holds the table's rows of its tokens, and so computes only the logits of its tokens.

    look-up   a rank's rows for its tokens, 0 for all others; the sum over ranks is the embedding
    loss      log Σ exp z - z[target]: for each position, all-reduce the largest logit, then the
              sum of exponentials and the target's logit, which one rank has

With n positions, V tokens and t ranks the loss sends two all-reduces, of n and 2n elements (3n with
label smoothing, which needs Σ z too). Gathering the logits would send nV(t - 1)/t. Shoeybi et al.,
arXiv 1909.08053, section 3.

Label smoothing divides ε by V, the classes of all ranks, and the z-loss uses log Σ exp z over all
ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.collectives import ring
from minidist.comm.comm import Comm
from minidist.engine.array import Array, module_of
from minidist.engine.kernels import wide
from minidist.engine.tensor import Into, Tensor
from minidist.ops.indexing import sum_rows
from minidist.ops.losses import divisor
from minidist.ops.operands import ShapeError, floating_only


def vocabulary_embedding(indices: Any, weight: Tensor, first: int, rows: int) -> Tensor:
    """This rank's summand of the embedding: rows of its table, 0 for other ranks' tokens.

    Shapes: indices (...) in [0, rows), weight (own rows, width), the rows from ``first`` on, →
    (..., width). Raises IndexError for an index that no rank has.
    """
    if isinstance(indices, Tensor):
        indices = indices.data
    xp = weight.xp
    own, width = weight.shape
    flat = xp.asarray(indices).reshape(-1).astype(np.int64)  # (n,), copied
    if xp is np and flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < rows:
        raise IndexError(
            f"embedding: indices must lie in [0, {rows}), found {int(flat.min())} to "
            f"{int(flat.max())}"
        )
    flat -= first
    flat = xp.where((flat < 0) | (flat >= own), own, flat)  # own: another rank's
    out = xp.take(weight.data, xp.minimum(flat, own - 1), axis=0)
    out = xp.where((flat < own)[:, None], out, xp.zeros((), out.dtype))
    shape = xp.asarray(indices).shape

    def backward(grad: Array) -> Any:
        grad = grad.reshape(len(flat), width)  # (n, width)

        def write(out: Array | None) -> Array:
            table = xp.empty((own + 1, width), grad.dtype)  # one row more, for other ranks' tokens
            sum_rows(xp, table, grad, flat, len(flat))
            if out is None:
                return table[:own]
            out[...] = table[:own]
            return out

        return (Into(write),)

    return Tensor.of(out.reshape(*shape, width), (weight,), backward)


def vocabulary_cross_entropy(
    logits: Tensor,
    targets: Any,
    comm: Comm,
    first: int,
    classes: int,
    count: float | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    weight: np.ndarray | None = None,
) -> Tensor:
    """``ops.cross_entropy`` of logits whose classes are cut over ranks; the same on every rank.

    Shapes: logits (..., own classes), those from ``first`` on, targets (...) integers in [0,
    classes), weight (classes,) of each class. ``z_loss`` adds z · (log Σ exp logits)² for each
    target that counts. With t the target, w_t its weight (1 without weights) and W = Σ w:

        loss of a row   (1 - ε) w_t (log Σ exp z - z_t) + ε/V (W log Σ exp z - Σ w z)
    """
    logits = floating_only("cross_entropy", logits)
    xp, shape, own, dtype = logits.xp, logits.shape, logits.shape[-1], logits.dtype
    targets = targets.data if isinstance(targets, Tensor) else targets
    targets = targets if hasattr(targets, "dtype") else xp.asarray(targets)
    if targets.shape != shape[:-1] or (targets.dtype.kind not in "iu" and targets.size):
        raise ShapeError(
            f"cross_entropy: logits {shape} whose classes are cut need integer targets of shape "
            f"{shape[:-1]}, not {targets.dtype} of {targets.shape}"
        )
    flat = targets.reshape(-1).astype(np.int64)  # (n,), copied
    kept = xp.ones(len(flat), bool) if ignore_index is None else flat != ignore_index  # (n,)
    valid = (flat >= 0) & (flat < classes)
    if xp is np and not valid[kept].all():
        wrong = flat[kept & ~valid][0]
        raise ValueError(f"cross_entropy: target {wrong} is not in [0, {classes})")
    scale = 1.0 / divisor("cross_entropy", count, None)
    smoothing = label_smoothing

    z = wide(logits.data.reshape(len(flat), own))  # (n, V/t)
    kind = z.dtype
    of_class = None if weight is None else xp.asarray(weight, kind)  # (V,)
    each = kept.astype(kind)  # (n,): how much a row counts
    if of_class is not None:
        each *= of_class[xp.clip(flat, 0, classes - 1)]
    mine_w = None if of_class is None else of_class[first : first + own]  # (V/t,)
    whole = float(classes) if weight is None else float(np.sum(weight))  # W

    top = z.max(axis=1)  # (n,)
    ring.all_reduce(comm, top, "max")
    p = z - top[:, None]  # the maximum is subtracted, so that nothing overflows
    flat -= first
    mine = (flat >= 0) & (flat < own) & kept
    flat = xp.where(mine, flat, -1)  # (n,): the target among this rank's classes
    sums = xp.zeros((3 if smoothing else 2, len(flat)), kind)
    sums[1] = xp.where(mine, p[xp.arange(len(flat)), flat], 0)
    if smoothing:
        sums[2] = p.sum(axis=1) if mine_w is None else p @ mine_w
    xp.exp(p, out=p)
    sums[0] = p.sum(axis=1)
    ring.all_reduce(comm, sums)
    p /= sums[0][:, None]  # softmax over all ranks' classes
    log_sum = xp.log(sums[0])
    losses = (1 - smoothing) * each * (log_sum - sums[1])
    if smoothing:
        losses += kept * (smoothing / classes * (whole * log_sum - sums[2]))
    log_sum += top  # log Σ exp z
    losses += z_loss * each * log_sum**2
    losses = xp.where(kept & ~valid, xp.nan, losses)
    # The factor of a row's softmax in its gradient; None if it is 1 for all rows.
    slopes: Any = None
    if z_loss or weight is not None:
        slopes = (1 - smoothing + 2 * z_loss * log_sum) * each
        slopes = (slopes + kept * (smoothing / classes * whole))[:, None]  # (n, 1)
    if ignore_index is not None:
        flat = xp.where(kept, flat, -2)
    if xp is not np:  # on a GPU nothing was checked above: see ops.cross_entropy
        p += xp.where(kept & ~valid, xp.nan, 0)[:, None].astype(kind)
    pulls = each if weight is not None else None

    def backward(grad: Array) -> Any:
        # in place is safe: only this op uses p, and the backward runs once
        if slopes is not None:
            xp.multiply(p, slopes, out=p)
        if smoothing:
            spread = smoothing / classes
            xp.subtract(p, spread if mine_w is None else spread * mine_w, out=p)
        # One class in each row; if another rank has the target, 0 is subtracted.
        pull = 1 - smoothing if pulls is None else (1 - smoothing) * pulls
        here = xp.where(flat >= 0, pull, 0).astype(kind, copy=False)
        p[xp.arange(len(flat)), xp.maximum(flat, 0)] -= here
        xp.multiply(p, grad * scale, out=p)
        found = p
        if ignore_index is not None:
            found = xp.where((flat == -2)[:, None], xp.zeros((), kind), p)
        return (found.reshape(shape).astype(dtype, copy=False),)

    loss = (losses.sum() * scale).astype(dtype, copy=False)
    return Tensor.of(loss, (logits,), backward)


def predictions(logits: Array, comm: Comm, first: int, classes: int) -> Array:
    """The class with the largest logit over all ranks; of equal ones the first.

    Shapes: logits (..., own classes) → (...).
    """
    xp = module_of(logits)
    best = logits.max(axis=-1)
    top = xp.ascontiguousarray(best).copy()
    ring.all_reduce(comm, top, "max")
    found = xp.where(best == top, logits.argmax(axis=-1) + first, classes)
    found = xp.ascontiguousarray(found)
    ring.all_reduce(comm, found, "min")
    return found
