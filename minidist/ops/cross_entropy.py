"""Softmax cross-entropy: of class numbers, or of class probabilities.

    class numbers            class probabilities q             the same number, written as q:
    -log p(target)           -Σ q log p                        1 on its class, 0 elsewhere

Softmax and logarithm are one op: log p = z - log Σ exp z. The maximum is subtracted first, so that
nothing overflows. The gradient is p - q. Class numbers never become a table of q: they have a
kernel of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array, DType
from minidist.engine.kernels import accumulator, kernel, wide
from minidist.engine.tensor import Tensor
from minidist.ops.losses import divided, divisor
from minidist.ops.operands import DTypeError, ShapeError, floating_only, same_device
from minidist.ops.softmax import in_range

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by bytes


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

    Shapes: logits (..., classes), targets (...) integers in [0, classes), or ``ignore_index``,
    whose rows are left out of the loss and of the default count. Or targets (..., classes), floats:
    the probability of each class, as they are (PyTorch's "soft" targets); nothing is ignored then.

    With label smoothing ε a target is 1 - ε on its class plus ε / classes on every class (arXiv
    1512.00567, section 7). ``weight`` (classes,) multiplies the part of each class. The default
    count is PyTorch's: the number of targets, or with weights the sum of those of the targets'
    classes; for probabilities the number of rows. ``reduction="none"``: the loss of each target,
    (...), which nothing divides.

    Raises ValueError for a target out of range, and if no target counts. On a GPU a check would
    make the host wait in every step, so there such a target makes the loss and the gradient of its
    row NaN.
    """
    logits = floating_only("cross_entropy", logits)
    xp = logits.xp
    targets = targets.data if isinstance(targets, Tensor) else targets
    if not hasattr(targets, "dtype"):
        targets = xp.asarray(targets)  # a list of numbers
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing {label_smoothing} is not in [0, 1)")
    soft = targets.dtype.kind == "f" and targets.shape == logits.shape and logits.ndim > 0
    if not soft and (
        logits.ndim == 0
        or targets.shape != logits.shape[:-1]
        or (targets.dtype.kind not in "iu" and targets.size)
    ):
        raise ShapeError(
            f"cross_entropy: logits {logits.shape} need integer targets of shape "
            f"{logits.shape[:-1]}, or class probabilities, floats of shape {logits.shape}, not "
            f"{targets.dtype} of {targets.shape}" + _advice(targets, logits)
        )
    if type(targets) is not type(logits.data):
        same_device("cross_entropy", logits, Tensor(targets))
    factors = None if weight is None else _weights(xp, weight, logits)
    if soft:
        if ignore_index is not None:
            raise ValueError(
                f"cross_entropy: ignore_index={ignore_index} is a class number, and targets are "
                "probabilities: leave it out, and give a row that does not count zeros"
            )
        table = wide(targets).reshape(-1, logits.shape[-1])
        return _of_table(
            logits, table, None, factors, label_smoothing, count, len(table), reduction
        )
    return _of_classes(logits, targets, factors, ignore_index, label_smoothing, count, reduction)


def _advice(targets: Array, logits: Tensor) -> str:
    if targets.shape == logits.shape[:-1] and targets.dtype.kind in "fb":
        return ": class numbers are integers, targets.astype(int)"
    if targets.shape == logits.shape and targets.dtype.kind in "iub":
        return ': probabilities are floats, targets.astype("float32")'
    return ""


def _weights(xp: Any, weight: Any, logits: Tensor) -> Array:
    """The classes' weights, to multiply with: (c,)."""
    factors = xp.asarray(weight, accumulator(logits.dtype))
    if factors.shape != logits.shape[-1:]:
        raise ShapeError(
            f"cross_entropy: {logits.shape[-1]} classes need as many weights, not {factors.shape}"
        )
    return factors


def _of_classes(
    logits: Tensor,
    targets: Array,
    weight: Array | None,
    ignore_index: int | None,
    smoothing: float,
    count: float | None,
    reduction: str,
) -> Tensor:
    """Of class numbers."""
    xp, classes = logits.xp, logits.shape[-1]
    holds_classes("cross_entropy", targets.dtype, classes)
    given = targets.reshape(-1)
    flat = given.astype(np.int64, copy=False)  # (n,)
    kept = None if ignore_index is None else flat != ignore_index  # (n,)
    if xp is np:
        # as given: uint64 may not fit int64
        check_classes("cross_entropy", given if kept is None else given[kept], classes)
    if kept is not None:
        flat = xp.where(kept, flat, -1)
    each = None if weight is None else weight[flat]  # (n,)
    if each is not None and kept is not None:
        each = xp.where(kept, each, 0)
    number: float | None = None
    if count is None and reduction == "mean":  # methods pass it: counting makes the host wait
        counted = each if each is not None else kept
        number = len(flat) if counted is None else float(counted.sum())
    if weight is not None and smoothing:
        table = xp.zeros((len(flat), classes), weight.dtype)
        table[xp.arange(len(flat)), flat] = 1
        return _of_table(logits, table, kept, weight, smoothing, count, number, reduction)

    z = logits.data.reshape(len(flat), classes)  # (n, c)
    p = xp.empty(z.shape, z.dtype)
    losses = xp.empty(len(z), accumulator(z.dtype))
    ignoring = kept is not None
    _softmax_losses(xp, z, flat, p, losses, float(smoothing), ignoring)
    shape, dtype = logits.shape, z.dtype
    if each is None and reduction == "mean":
        scale = 1.0 / divisor("cross_entropy", count, number)

        def backward(grad: Array) -> Any:
            # in place is safe: only this op uses p, and the backward runs once
            _softmax_losses_backward(xp, p, flat, grad, float(smoothing), ignoring, scale)
            return (p.reshape(shape),)

        backward.__qualname__ = "cross_entropy.backward"  # so that errors and tables name the op
        loss = (losses.sum() * scale).astype(dtype, copy=False)
        return Tensor.of(loss, (logits,), backward)

    def slopes(by: Array) -> Array:
        """The gradient of the logits, if that of each row's loss is ``by`` times its weight."""
        by = xp.reshape(by, -1)
        rows = by if each is None else each * by
        if kept is not None:
            rows = xp.where(kept, rows, 0)
        one = xp.ones((), dtype)
        _softmax_losses_backward(xp, p, flat, one, float(smoothing), ignoring, 1.0)
        return (p * rows.reshape(-1, 1)).astype(dtype, copy=False).reshape(shape)

    if each is not None:
        losses = losses * each if kept is None else xp.where(kept, losses * each, 0)
    losses = losses.reshape(targets.shape)
    return divided(
        "cross_entropy", losses, (logits,), lambda by: (slopes(by),), count, number, reduction
    )


def _of_table(
    logits: Tensor,
    q: Array,
    kept: Array | None,
    weight: Array | None,
    smoothing: float,
    count: float | None,
    number: float | None,
    reduction: str,
) -> Tensor:
    """Of class probabilities q (n, c), which become w·((1 - ε)q + ε/c): -Σ q log p."""
    xp, shape, dtype = logits.xp, logits.shape, logits.dtype
    if smoothing:
        q = (1 - smoothing) * q + smoothing / shape[-1]
    if weight is not None:
        q = q * weight
    z = wide(logits.data).reshape(q.shape)  # (n, c)
    z = z - z.max(axis=1, keepdims=True) if z.size else z
    e = xp.exp(z)
    total = e.sum(axis=1, keepdims=True)  # (n, 1)
    # selects: 0 · -inf is NaN
    losses = (q * xp.where(q == 0, 0, xp.log(total) - z)).sum(axis=1)  # (n,)
    all_of_it = q.sum(axis=1, keepdims=True)  # (n, 1): 0 of a row that does not count
    slope = xp.where(all_of_it == 0, 0, e / total * all_of_it - q)  # (n, c)
    if kept is not None:
        losses = xp.where(kept, losses, 0)

    def slopes(by: Array) -> tuple[Array]:
        grad = slope * xp.reshape(by, (-1, 1))
        if kept is not None:
            grad = xp.where(kept[:, None], grad, 0)
        return (grad.astype(dtype, copy=False).reshape(shape),)

    losses = losses.reshape(shape[:-1])
    return divided("cross_entropy", losses, (logits,), slopes, count, number, reduction)


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
    p *= wide(grad) * scale  # in float16, 1/100,000 has two digits


def holds_classes(name: str, dtype: DType, classes: int) -> None:
    """Raise DTypeError if class numbers up to ``classes`` - 1 overflow an integer ``dtype``.

    Larger class numbers overflowed when the array was made, and became those of other classes.
    """
    if dtype.kind in "iu" and dtype.itemsize <= 2 and np.iinfo(dtype).max < classes - 1:
        raise DTypeError(
            f"{name}: {dtype} targets hold at most {np.iinfo(dtype).max}, and there are {classes} "
            "classes: larger targets have overflowed. Make them int64 from the start"
        )


def check_classes(name: str, targets: Array, classes: int) -> None:
    """Raise ValueError unless all targets are class numbers, 0 to ``classes`` - 1."""
    # Read as unsigned numbers, negative ones are the largest of all: one pass finds both.
    if targets.size and int(targets.view(UNSIGNED[targets.itemsize]).max()) >= classes:
        raise ValueError(
            f"{name}: targets must lie in [0, {classes}), found {int(targets.min())} to "
            f"{int(targets.max())} among {targets.size}: the model makes {classes} logits for "
            "each; if such a target is padding, say so to the loss: CrossEntropy(ignore_index=...)"
        )
