"""Ops that neural networks made standard, fused: one op where a chain would need many."""

from __future__ import annotations

from typing import Any

from minidist.array import Array
from minidist.ops.elementwise import ShapeError
from minidist.tensor import Tensor


def cross_entropy(logits: Tensor, targets: Any, count: int | None = None) -> Tensor:
    """Softmax cross-entropy with integer targets: the sum of -log p(target), divided by ``count``.

    Shapes: logits (..., classes), targets (...) integers in [0, classes). ``count`` is what to
    divide by: the number of targets here if None; a parallel method passes the number in the
    *global* batch, so that the parts of a batch, of whatever sizes, add up to the serial loss.
    Softmax and logarithm are one op: log p = z - log Σ exp z with the maximum taken out first,
    which cannot overflow, and its gradient is simply p - onehot(target).
    """
    xp = logits.xp
    if isinstance(targets, Tensor):
        targets = targets.data
    if targets.shape != logits.shape[:-1] or targets.dtype.kind not in "iu":
        raise ShapeError(
            f"cross_entropy: logits {logits.shape} need integer targets of shape "
            f"{logits.shape[:-1]}, not {targets.dtype} of {targets.shape}"
        )
    classes = logits.shape[-1]
    flat = targets.reshape(-1)  # (n,)
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < classes:
        raise ValueError(
            f"cross_entropy: targets must lie in [0, {classes}), "
            f"found {int(flat.min())} to {int(flat.max())}"
        )
    z = logits.data.reshape(-1, classes)  # (n, c)
    z = z - z.max(axis=1, keepdims=True)
    p = xp.exp(z)
    total = p.sum(axis=1, keepdims=True)  # (n, 1)
    p /= total
    scale = 1.0 / max(1, flat.size if count is None else count)
    loss = (xp.log(total[:, 0]) - z[xp.arange(flat.size), flat]).sum() * z.dtype.type(scale)
    shape = logits.shape

    def backward(grad: Array) -> Any:
        grad_z = p  # in place is safe: p belongs to this op alone, and a backward runs once
        grad_z[xp.arange(flat.size), flat] -= 1
        grad_z *= grad * z_type(scale)
        return (grad_z.reshape(shape),)

    z_type = p.dtype.type
    return Tensor.of(xp.asarray(loss), (logits,), backward)
