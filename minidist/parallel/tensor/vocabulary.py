"""A vocabulary cut over ranks: look-up and cross-entropy that never gather the table or logits.

Rank r holds the table's rows of its tokens, and so computes the logits of its tokens alone.

    look-up   a rank's rows for its tokens, 0 for all others; the sum over ranks is the embedding
    loss      log Σ exp z - z[target]: for each position, the largest logit of all ranks, then the
              sum of exponentials and the target's logit, which one rank has

With n positions, V tokens and t ranks the loss sends two all-reduces of n and 2n elements (3n with
label smoothing, which needs Σ z too), where gathering the logits would send nV(t - 1)/t. Shoeybi
et al., arXiv 1909.08053, section 3.

Everything that is said of the vocabulary must be said of all of it: smoothing spreads ε over V
classes, not over V/t, and log Σ exp z in the z-loss is over all ranks.
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
from minidist.ops.operands import ShapeError, floating_only


def vocabulary_embedding(indices: Any, weight: Tensor, first: int, rows: int) -> Tensor:
    """This rank's summand of the embedding: its table's rows, and 0 for other ranks' tokens.

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
    flat[(flat < 0) | (flat >= own)] = -1  # another rank's
    out = xp.take(weight.data, xp.maximum(flat, 0), axis=0)
    out[flat < 0] = 0
    shape = xp.asarray(indices).shape

    def backward(grad: Array) -> Any:
        grad = grad.reshape(len(flat), width)  # (n, width)

        def write(out: Array | None) -> Array:
            out = xp.empty((own, width), grad.dtype) if out is None else out
            mine = xp.flatnonzero(flat >= 0)
            sum_rows(xp, out, grad[mine], flat[mine], len(mine))
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
) -> Tensor:
    """``ops.cross_entropy`` of logits whose classes are cut over ranks; the same on every rank.

    Shapes: logits (..., own classes), those from ``first`` on, targets (...) in [0, classes).
    ``z_loss`` adds z · (log Σ exp logits)² for each target that counts.
    """
    logits = floating_only("cross_entropy", logits)
    xp, shape, own = logits.xp, logits.shape, logits.shape[-1]
    targets = targets.data if isinstance(targets, Tensor) else targets
    targets = targets if hasattr(targets, "dtype") else xp.asarray(targets)
    if targets.shape != shape[:-1] or (targets.dtype.kind not in "iu" and targets.size):
        raise ShapeError(
            f"cross_entropy: logits {shape} need integer targets of shape {shape[:-1]}, not "
            f"{targets.dtype} of {targets.shape}"
        )
    flat = targets.reshape(-1).astype(np.int64)  # (n,), copied
    kept = xp.ones(len(flat), bool) if ignore_index is None else flat != ignore_index  # (n,)
    valid = (flat >= 0) & (flat < classes)
    if xp is np and not valid[kept].all():
        wrong = flat[kept & ~valid][0]
        raise ValueError(f"cross_entropy: target {wrong} is not in [0, {classes})")
    count = int(kept.sum()) if count is None else count
    scale = 1.0 / max(1, count)

    z = wide(logits.data.reshape(len(flat), own))  # (n, V/t)
    top = z.max(axis=1)  # (n,)
    ring.all_reduce(comm, top, "max")
    p = z - top[:, None]  # the maximum is subtracted, so that nothing overflows
    flat -= first
    mine = (flat >= 0) & (flat < own) & kept
    flat = xp.where(mine, flat, -1)  # (n,): the target among this rank's classes
    sums = xp.zeros((3 if label_smoothing else 2, len(flat)), p.dtype)
    sums[1] = xp.where(mine, p[xp.arange(len(flat)), flat], 0)
    if label_smoothing:
        sums[2] = p.sum(axis=1)
    xp.exp(p, out=p)
    sums[0] = p.sum(axis=1)
    ring.all_reduce(comm, sums)
    p /= sums[0][:, None]  # softmax over all ranks' classes
    log_sum = xp.log(sums[0])
    losses = log_sum - (1 - label_smoothing) * sums[1]
    if label_smoothing:
        losses -= label_smoothing / classes * sums[2]
    log_sum += top  # log Σ exp z
    losses += z_loss * log_sum**2
    losses = xp.where(kept, xp.where(valid, losses, xp.nan), 0)
    slopes = scale * (1 + 2 * z_loss * log_sum)[:, None] if z_loss else None  # (n, 1)
    flat = flat if ignore_index is None else xp.where(kept, flat, -2)
    if xp is not np:  # no check has raised there: see ops.cross_entropy
        p += xp.where(kept & ~valid, xp.nan, 0)[:, None].astype(p.dtype)

    def backward(grad: Array) -> Any:
        # in place is safe: only this op uses p, and the backward runs once
        xp.multiply(p, scale if slopes is None else slopes, out=p)
        if label_smoothing:
            xp.subtract(p, scale * label_smoothing / classes, out=p)
        mine = xp.flatnonzero(flat >= 0)
        p[mine, flat[mine]] -= scale * (1 - label_smoothing)
        if ignore_index is not None:
            p[flat == -2] = 0
        xp.multiply(p, grad, out=p)
        return (p.reshape(shape).astype(dtype, copy=False),)

    dtype = logits.dtype
    loss = (losses.sum() * scale).astype(dtype, copy=False)
    return Tensor.of(loss, (logits,), backward)


def predictions(logits: Array, comm: Comm, first: int, classes: int) -> Array:
    """The class of the largest logit of all ranks, the first of equal ones: (..., own) → (...)."""
    xp = module_of(logits)
    best = logits.max(axis=-1)
    top = xp.ascontiguousarray(best).copy()
    ring.all_reduce(comm, top, "max")
    found = xp.where(best == top, logits.argmax(axis=-1) + first, classes)
    found = xp.ascontiguousarray(found)
    ring.all_reduce(comm, found, "min")
    return found
