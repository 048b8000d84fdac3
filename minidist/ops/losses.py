"""Losses: sums over targets, divided by ``count``.

By default ``count`` is the number of targets in this call. A parallel method passes the number in
the *global* batch, so that the losses of the parts of a batch, of any sizes, add up to the serial
loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array, DType
from minidist.engine.kernels import accumulator, kernel, wide
from minidist.engine.tensor import Tensor
from minidist.ops.activation import sigmoid_array
from minidist.ops.operands import DTypeError, ShapeError, floating, floating_only, pair, same_device
from minidist.ops.softmax import in_range


def cross_entropy(
    logits: Tensor,
    targets: Any,
    count: float | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy with integer targets: the sum of -log p(target), divided by ``count``.

    Shapes: logits (..., classes), targets (...) integers in [0, classes), or ``ignore_index``,
    whose rows are left out of the loss and of the default count. With label smoothing ε a target is
    1 - ε on its class plus ε / classes on every class (arXiv 1512.00567, section 7).

    Softmax and logarithm are one op: log p = z - log Σ exp z. The maximum is subtracted first, so
    that nothing overflows. The gradient is p - (smoothed) onehot(target).

    Raises ValueError for a target out of range. On a GPU a check would make the host wait in every
    step, so there such a target makes the loss and the gradient of its row NaN.
    """
    logits = floating_only("cross_entropy", logits)
    xp = logits.xp
    targets = targets.data if isinstance(targets, Tensor) else targets
    if not hasattr(targets, "dtype"):
        targets = xp.asarray(targets)  # a list of numbers
    if (
        logits.ndim == 0
        or targets.shape != logits.shape[:-1]
        or (targets.dtype.kind not in "iu" and targets.size)
    ):
        raise ShapeError(
            f"cross_entropy: logits {logits.shape} need integer targets of shape "
            f"{logits.shape[:-1]}, not {targets.dtype} of {targets.shape}"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing {label_smoothing} is not in [0, 1)")
    classes = logits.shape[-1]
    holds_classes("cross_entropy", targets.dtype, classes)
    same_device("cross_entropy", logits, Tensor(targets))
    given = targets.reshape(-1)
    flat = given.astype(np.int64, copy=False)  # (n,)
    kept = None if ignore_index is None else flat != ignore_index  # (n,)
    if xp is np:
        # as given: uint64 may not fit int64
        check_classes("cross_entropy", given if kept is None else given[kept], classes)
    if kept is not None:
        flat = xp.where(kept, flat, -1)
    if count is None:  # methods pass it: counting here makes the host wait for a GPU
        count = len(flat) if kept is None else int(kept.sum())

    z = logits.data.reshape(len(flat), classes)  # (n, c)
    p = xp.empty(z.shape, z.dtype)
    losses = xp.empty(len(z), accumulator(z.dtype))
    ignoring = ignore_index is not None
    _softmax_losses(xp, z, flat, p, losses, float(label_smoothing), ignoring)
    scale = 1.0 / max(1, count)
    shape = logits.shape

    def backward(grad: Array) -> Any:
        # in place is safe: only this op uses p, and the backward runs once
        _softmax_losses_backward(xp, p, flat, grad, float(label_smoothing), ignoring, scale)
        return (p.reshape(shape),)

    loss = (losses.sum() * scale).astype(z.dtype, copy=False)
    return Tensor.of(loss, (logits,), backward)


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
    e = in_range(xp, p)
    if z.size:
        xp.subtract(z, z.max(axis=1, keepdims=True), out=e)
    picked = e[xp.arange(len(targets)), targets]  # z of the target; ignored rows are left out
    row_sum = e.sum(axis=1) if smoothing else None  # Σ z, for the smoothed part
    xp.exp(e, out=e)
    total = e.sum(axis=1, keepdims=True)  # (n, 1)
    e /= total
    if e is not p:
        p[...] = e
    losses[...] = xp.log(total[:, 0]) - (1 - smoothing) * picked
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
    p *= grad * scale


def holds_classes(name: str, dtype: DType, classes: int) -> None:
    """Raise DTypeError if class numbers up to ``classes`` - 1 overflow an integer ``dtype``.

    Larger class numbers overflowed when the array was made, and became those of other classes.
    """
    if dtype.kind in "iu" and np.iinfo(dtype).max < classes - 1:
        raise DTypeError(
            f"{name}: {dtype} targets hold at most {np.iinfo(dtype).max}, and there are {classes} "
            "classes: larger targets have overflowed. Make them int64 from the start"
        )


def check_classes(name: str, targets: Array, classes: int) -> None:
    """Raise ValueError unless all targets are class numbers, 0 to ``classes`` - 1."""
    if targets.size and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(
            f"{name}: targets must lie in [0, {classes}), found {int(targets.min())} to "
            f"{int(targets.max())} among {targets.size}: the model makes {classes} logits for "
            "each; if such a target is padding, say so to the loss: CrossEntropy(ignore_index=...)"
        )


def mean_squared_error(x: Tensor, targets: Any, count: float | None = None) -> Tensor:
    """Σ (x - target)², divided by ``count`` (by default the number of elements)."""
    x, targets = pair("mean_squared_error", x, targets)
    x, targets = floating(x), floating(targets)
    if x.shape != targets.shape:
        raise ShapeError(f"mean_squared_error: {x.shape} against targets {targets.shape}")
    dtype = x.dtype
    difference = wide(x.data) - wide(targets.data)
    scale = 1.0 / max(1, x.size if count is None else count)
    flat = difference.reshape(-1)
    wants = x.node is not None, targets.node is not None

    def backward(grad: Array) -> Any:
        grad_x = (difference * (grad * (2 * scale))).astype(dtype, copy=False)
        return grad_x if wants[0] else None, -grad_x if wants[1] else None

    loss = ((flat * flat).sum() * scale).astype(dtype, copy=False)
    return Tensor.of(loss, (x, targets), backward)


def binary_cross_entropy(logits: Tensor, targets: Any, count: float | None = None) -> Tensor:
    """-Σ t log σ(z) + (1 - t) log(1 - σ(z)) with logits z, divided by ``count``.

    Computed as max(z, 0) - z t + log(1 + exp(-|z|)), which cannot overflow. The gradient is
    σ(z) - t.
    """
    logits = floating_only("binary_cross_entropy", logits)
    logits, targets = pair("binary_cross_entropy", logits, targets)
    if logits.shape != targets.shape or targets.node is not None:
        raise ShapeError(
            f"binary_cross_entropy: logits {logits.shape} need targets of the same shape without "
            f"gradients, not {targets.shape}"
        )
    xp, dtype, z, t = logits.xp, logits.dtype, wide(logits.data), wide(targets.data)
    losses = xp.maximum(z, 0) - z * t + xp.log1p(xp.exp(-xp.abs(z)))
    scale = 1.0 / max(1, logits.size if count is None else count)
    slope = sigmoid_array(xp, z) - t

    def backward(grad: Array) -> Any:
        return (slope * (grad * scale)).astype(dtype, copy=False), None

    loss = (losses.sum() * scale).astype(dtype, copy=False)
    return Tensor.of(loss, (logits, targets), backward)
