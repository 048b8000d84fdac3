"""Softmax cross-entropy, for targets that are class numbers or class probabilities.

    targets            loss               as probabilities q
    class numbers      -log p(target)     1 for the class, 0 for all others
    probabilities q    -Σ q log p         q

Softmax and logarithm are one op: log p = z - log Σ exp z. The maximum is subtracted first, so that
nothing overflows. The gradient is p - q. Class numbers are not converted to an array q (except with
class weights and smoothing): they have a kernel of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.kernels import accumulator, kernel, wide
from minidist.engine.tensor import Tensor
from minidist.ops.class_numbers import check_classes, holds_classes
from minidist.ops.losses import divided, divisor
from minidist.ops.operands import ShapeError, floating_only, same_device
from minidist.ops.softmax import wide_like


def cross_entropy(
    logits: Tensor,
    targets: Any,
    count: float | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    weight: Any = None,
    reduction: str = "mean",
) -> Tensor:
    """Softmax cross-entropy: the sum over targets of -log p(target), divided by ``count``.

    Shapes: logits (..., classes), targets (...) integers in [0, classes). Targets equal to
    ``ignore_index`` are left out of the loss and of the default count. Or targets (..., classes),
    floats: the probability of each class ("soft" targets), which are not normalised.

    With label smoothing ε a target is 1 - ε for its class plus ε / classes for every class (arXiv
    1512.00567, section 7). ``weight`` (classes,) multiplies each class's term of the loss. The
    default count is PyTorch's: the number of targets, or with weights the sum of the weights of the
    targets' classes; for probabilities the number of rows. ``reduction="none"``: the loss of each
    target, (...), not divided.

    Raises ValueError for a target out of range, and if no target counts. On a GPU a check would
    make the host wait in every step, so there such a target makes the loss and the gradient of its
    row NaN.
    """
    logits = floating_only("cross_entropy", logits)
    xp, shape = logits.xp, logits.shape
    targets = targets.data if isinstance(targets, Tensor) else targets
    if not hasattr(targets, "dtype"):
        targets = xp.asarray(targets)  # a list of numbers
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing {label_smoothing} is not in [0, 1)")
    kind = targets.dtype.kind
    soft = kind == "f" and targets.shape == shape and shape != ()
    if not soft and (
        not shape or targets.shape != shape[:-1] or (kind not in "iu" and targets.size)
    ):
        raise ShapeError(
            f"cross_entropy: logits {shape} need integer targets of shape {shape[:-1]}, or class "
            f"probabilities, floats of shape {shape}, not {targets.dtype} of {targets.shape}"
            + _advice(targets, logits)
        )
    if type(targets) is not type(logits.data):
        same_device("cross_entropy", logits, Tensor(targets))
    weight = None if weight is None else _checked_weight(xp, weight, logits)
    if soft:
        if ignore_index is not None:
            raise ValueError(
                f"cross_entropy: ignore_index={ignore_index} is a class number, and targets are "
                "probabilities: leave it out, and set all probabilities of an ignored row to 0"
            )
        q = wide(targets).reshape(-1, shape[-1])
        return _of_probabilities(logits, q, None, weight, label_smoothing, count, len(q), reduction)
    return _of_numbers(logits, targets, weight, ignore_index, label_smoothing, count, reduction)


def _advice(targets: Array, logits: Tensor) -> str:
    """What to do about targets that have the right shape and the wrong dtype."""
    if targets.shape == logits.shape[:-1] and targets.dtype.kind in "fb":
        return ": class numbers are integers, targets.astype(int)"
    if targets.shape == logits.shape and targets.dtype.kind in "iub":
        return ': probabilities are floats, targets.astype("float32")'
    return ""


def _checked_weight(xp: Any, weight: Any, logits: Tensor) -> Array:
    """The weights of the classes, (c,), in the dtype that the loss is computed in."""
    weight = xp.asarray(weight, accumulator(logits.dtype))
    if weight.shape != logits.shape[-1:]:
        raise ShapeError(
            f"cross_entropy: {logits.shape[-1]} classes need as many weights, not {weight.shape}"
        )
    return weight


def _of_numbers(
    logits: Tensor,
    targets: Array,
    weight: Array | None,
    ignore_index: int | None,
    smoothing: float,
    count: float | None,
    reduction: str,
) -> Tensor:
    """The loss for targets that are class numbers."""
    xp, shape = logits.xp, logits.shape
    classes = shape[-1]
    holds_classes("cross_entropy", targets.dtype, classes)
    numbers = targets.reshape(-1)
    flat = numbers.astype(np.int64, copy=False)  # (n,)
    counts = None if ignore_index is None else flat != ignore_index  # (n,)
    if xp is np:  # before the conversion to int64, in which a uint64 may overflow
        check_classes("cross_entropy", numbers if counts is None else numbers[counts], classes)
    if counts is not None:
        flat = xp.where(counts, flat, -1)
    weights = None if weight is None else weight[flat]  # (n,)
    if weights is not None and counts is not None:
        weights = xp.where(counts, weights, 0)
    default: float | None = None
    if count is None and reduction == "mean":  # on a GPU the host waits for this sum
        summands = weights if weights is not None else counts
        default = len(flat) if summands is None else float(summands.sum())
    if weight is not None and smoothing:
        q = xp.zeros((len(flat), classes), weight.dtype)
        q[xp.arange(len(flat)), flat] = 1
        return _of_probabilities(logits, q, counts, weight, smoothing, count, default, reduction)

    z = logits.data.reshape(len(flat), classes)  # (n, c)
    p = xp.empty(z.shape, z.dtype)
    losses = xp.empty(len(z), accumulator(z.dtype))
    ignoring = counts is not None
    _softmax_losses(xp, z, flat, p, losses, float(smoothing), ignoring)
    dtype = z.dtype
    if weights is None and reduction == "mean":
        scale = 1.0 / divisor("cross_entropy", count, default)

        def backward(grad: Array) -> Any:
            # in place is safe: only this op uses p, and the backward runs once
            _softmax_losses_backward(xp, p, flat, grad, float(smoothing), ignoring, scale)
            return (p.reshape(shape),)

        backward.__qualname__ = "cross_entropy.backward"
        loss = (losses.sum() * scale).astype(dtype, copy=False)
        return Tensor.of(loss, (logits,), backward)

    def gradients(grad: Array) -> tuple[Array]:
        """The gradient of the logits, from that of each row's loss."""
        grad = xp.reshape(grad, -1)
        factor = grad if weights is None else weights * grad  # (n,)
        if counts is not None:
            factor = xp.where(counts, factor, 0)
        one = xp.ones((), dtype)
        _softmax_losses_backward(xp, p, flat, one, float(smoothing), ignoring, 1.0)
        return ((p * factor.reshape(-1, 1)).astype(dtype, copy=False).reshape(shape),)

    if weights is not None:
        losses = losses * weights if counts is None else xp.where(counts, losses * weights, 0)
    losses = losses.reshape(targets.shape)
    return divided("cross_entropy", losses, (logits,), gradients, count, default, reduction)


def _of_probabilities(
    logits: Tensor,
    q: Array,
    counts: Array | None,
    weight: Array | None,
    smoothing: float,
    count: float | None,
    default: float | None,
    reduction: str,
) -> Tensor:
    """The loss -Σ q log p for class probabilities (n, c), with q ← weight · ((1 - ε) q + ε/c).

    ``counts`` (n,): which rows count; None: all.
    """
    xp, shape, dtype = logits.xp, logits.shape, logits.dtype
    if smoothing:
        q = (1 - smoothing) * q + smoothing / shape[-1]
    if weight is not None:
        q = q * weight
    z = wide(logits.data).reshape(q.shape)  # (n, c)
    z = z - z.max(axis=1, keepdims=True) if z.size else z
    e = xp.exp(z)
    total = e.sum(axis=1, keepdims=True)  # (n, 1)
    # where, and not a product alone: 0 · ∞ is NaN
    losses = (q * xp.where(q == 0, 0, xp.log(total) - z)).sum(axis=1)  # (n,)
    sum_q = q.sum(axis=1, keepdims=True)  # (n, 1): 0 for a row of zeros, which does not count
    derivative = xp.where(sum_q == 0, 0, e / total * sum_q - q)  # (n, c): p Σ q - q
    if counts is not None:
        losses = xp.where(counts, losses, 0)

    def gradients(grad: Array) -> tuple[Array]:
        grad = derivative * xp.reshape(grad, (-1, 1))
        if counts is not None:
            grad = xp.where(counts[:, None], grad, 0)
        return (grad.astype(dtype, copy=False).reshape(shape),)

    losses = losses.reshape(shape[:-1])
    return divided("cross_entropy", losses, (logits,), gradients, count, default, reduction)


@kernel(
    "const T *z, const long long *targets, T *p, A *losses, double smoothing, bool ignoring",
    """
    z += row * w;
    p += row * w;
    long long target = targets[row];
    A top = z[0], sum = 0, sum_z = 0;
    for (int j = threadIdx.x; j < w; j += blockDim.x) top = max(top, (A)z[j]);
    top = largest(top);
    for (int j = threadIdx.x; j < w; j += blockDim.x) {
        sum += exp((A)z[j] - top);
        sum_z += (A)z[j] - top;
    }
    sum = total(sum);
    sum_z = total(sum_z);
    bool ignored = ignoring && target == -1, valid = 0 <= target && target < w;
    A factor = ignored || valid ? A(1) / sum : A(nan(""));
    for (int j = threadIdx.x; j < w; j += blockDim.x) p[j] = T(exp((A)z[j] - top) * factor);
    if (threadIdx.x == 0)
        losses[row] = ignored ? A(0) : !valid ? A(nan(""))
            : log(sum) - A(1 - smoothing) * ((A)z[target] - top) - A(smoothing / w) * sum_z;
""",
    over="rows",
)
def _softmax_losses(
    xp: Any,
    z: Array,
    targets: Array,
    p: Array,
    losses: Array,
    smoothing: float,
    ignoring: bool,
) -> None:
    """Fill p = softmax(z) and each row's loss; a target of -1 is ignored if ``ignoring``."""
    e = wide_like(xp, p)
    if z.size:
        xp.subtract(z, z.max(axis=1, keepdims=True), out=e)
    picked = e[xp.arange(len(targets)), targets]  # z of the target; not used of ignored rows
    row_sum = e.sum(axis=1) if smoothing else None  # Σ z, for the smoothing
    xp.exp(e, out=e)
    total = e.sum(axis=1, keepdims=True)  # (n, 1)
    e /= total
    if e is not p:
        p[...] = e
    xp.log(total[:, 0], out=losses)
    losses -= (1 - smoothing) * picked
    if row_sum is not None:
        losses -= (smoothing / z.shape[1]) * row_sum
    if ignoring:
        losses[...] = xp.where(targets >= 0, losses, 0)


@kernel(
    "T *p, const long long *targets, const T *grad, double smoothing, bool ignoring, double scale",
    """
    p += row * w;
    long long target = targets[row];
    A factor = (A)grad[0] * A(scale);
    for (int j = threadIdx.x; j < w; j += blockDim.x) {
        A slope = (A)p[j] - A(smoothing / w) - (j == target ? A(1 - smoothing) : A(0));
        p[j] = T(ignoring && target == -1 ? A(0) : slope * factor);
    }
""",
    over="rows",
)
def _softmax_losses_backward(
    xp: Any,
    p: Array,
    targets: Array,
    grad: Array,
    smoothing: float,
    ignoring: bool,
    scale: float,
) -> None:
    """Turn p into the gradient of the logits, times ``grad`` · ``scale``."""
    if smoothing:
        p -= smoothing / p.shape[1]
    p[xp.arange(len(targets)), targets] -= 1 - smoothing
    if ignoring:
        p[...] = xp.where((targets >= 0)[:, None], p, 0)
    p *= wide(grad) * scale  # in float32: in float16, 1/100,000 has two digits
