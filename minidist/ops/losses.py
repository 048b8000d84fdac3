"""Losses of numbers and probabilities: sums over targets, divided by ``count``.

By default ``count`` is the number of targets in this call. A parallel method passes the number in
the *global* batch, so that the losses of the parts of a batch, of any sizes, add up to the serial
loss. ``reduction="none"`` gives the loss of each target, not divided. float16 losses are computed
in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.kernels import wide
from minidist.engine.tensor import Tensor
from minidist.ops.activation import sigmoid_array
from minidist.ops.operands import ShapeError, floating, floating_only, pair


def divisor(name: str, count: float | None, default: float | None) -> float:
    """What a sum of losses is divided by: ``count`` if given, else ``default``.

    Raises ValueError if that is not above 0: there is no mean over no targets.
    """
    if count is None:
        count = default
    if not isinstance(count, (int, float, np.number)):
        raise TypeError(f"{name}: count is a number, such as batch.count(loss), not {count!r}")
    if not count > 0:
        raise ValueError(
            f"{name}: the count is {count}, and there is no mean over no targets: all are ignored, "
            "weigh nothing, or there are none. Pass the count of the whole batch, or leave it out"
        )
    return float(count)


def divided(
    name: str,
    losses: Array,
    inputs: tuple[Tensor, ...],
    gradients: Callable[[Array], tuple[Array | None, ...]],
    count: float | None,
    default: float | None,
    reduction: str = "mean",
) -> Tensor:
    """The sum of ``losses`` by its ``divisor``, or with ``reduction="none"`` the losses themselves.

    ``gradients(grad)`` returns the gradients of ``inputs``. Its argument is the gradient of each
    loss: an array like ``losses``, or one number for all.
    """
    dtype = inputs[0].dtype
    if reduction == "none":
        if count is not None:
            raise ValueError(f'{name}: reduction="none" divides by nothing, and count is {count}')
        gradients.__qualname__ = f"{name}.backward"  # so that errors and drawings name the op
        return Tensor.of(losses.astype(dtype, copy=False), inputs, gradients)
    if reduction != "mean":
        raise ValueError(
            f'{name}: reduction is "mean" or "none", not {reduction!r}'
            + (": a sum is a mean with count=1" if reduction == "sum" else "")
        )
    scale = 1.0 / divisor(name, count, default)
    loss = (losses.sum() * scale).astype(dtype, copy=False)

    def backward(grad: Array) -> Any:
        return gradients(wide(grad) * scale)

    backward.__qualname__ = f"{name}.backward"
    return Tensor.of(loss, inputs, backward)


def mean_squared_error(
    x: Tensor, targets: Any, count: float | None = None, reduction: str = "mean"
) -> Tensor:
    """Σ (x - target)², divided by ``count`` (by default the number of elements)."""
    x, targets = _alike("mean_squared_error", x, targets)
    difference = wide(x.data) - wide(targets.data)
    gradients = _of_difference(x, targets, lambda grad: difference * (2 * grad))
    losses = difference * difference
    return divided("mean_squared_error", losses, (x, targets), gradients, count, x.size, reduction)


def huber(
    x: Tensor,
    targets: Any,
    count: float | None = None,
    delta: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Σ of d²/2 where |d| ≤ δ, and δ(|d| - δ/2) beyond, for d = x - target; divided by ``count``.

    A squared error whose gradient is limited to ±δ, so that outliers have less influence (Huber,
    "Robust estimation of a location parameter", 1964; PyTorch's ``huber_loss``).
    """
    if not delta > 0:
        raise ValueError(f"huber: delta must be positive, not {delta!r}")
    x, targets = _alike("huber", x, targets)
    xp = x.xp
    difference = wide(x.data) - wide(targets.data)
    limited = xp.clip(difference, -delta, delta)  # the derivative
    losses = limited * (difference - limited / 2)  # d · d/2, or δ(|d| - δ/2)
    gradients = _of_difference(x, targets, lambda grad: limited * grad)
    return divided("huber", losses, (x, targets), gradients, count, x.size, reduction)


def _alike(name: str, x: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Outputs and targets as tensors of floating numbers, of one shape."""
    x, targets = pair(name, x, targets)
    x, targets = floating(x), floating(targets)
    if x.shape != targets.shape:
        raise ShapeError(
            f"{name}: {x.shape} against targets {targets.shape}: both must have one shape, so "
            f"reshape the targets to {x.shape}, or the output to {targets.shape}"
        )
    return x, targets


def _of_difference(
    x: Tensor, targets: Tensor, gradient_x: Callable[[Array], Array]
) -> Callable[[Array], tuple[Array | None, Array | None]]:
    """The gradients of a loss of x - target: that of the target is minus that of x."""
    dtypes, wants = (x.dtype, targets.dtype), (x.node is not None, targets.node is not None)

    def gradients(grad: Array) -> tuple[Array | None, Array | None]:
        grad_x = gradient_x(grad)
        return (
            grad_x.astype(dtypes[0], copy=False) if wants[0] else None,
            (-grad_x).astype(dtypes[1], copy=False) if wants[1] else None,
        )

    return gradients


def binary_cross_entropy(
    logits: Tensor, targets: Any, count: float | None = None, reduction: str = "mean"
) -> Tensor:
    """-Σ t log σ(z) + (1 - t) log(1 - σ(z)) with logits z, divided by ``count``.

    Computed as max(z, 0) - z t + log(1 + exp(-|z|)), which cannot overflow. The gradient is
    σ(z) - t.
    """
    logits, targets = _constant_targets("binary_cross_entropy", logits, targets)
    xp, dtype, z, t = logits.xp, logits.dtype, wide(logits.data), wide(targets.data)
    losses = xp.maximum(z, 0) - z * t + xp.log1p(xp.exp(-xp.abs(z)))
    derivative = sigmoid_array(xp, z) - t

    def gradients(grad: Array) -> tuple[Array, None]:
        return (derivative * grad).astype(dtype, copy=False), None

    inputs = logits, targets
    return divided("binary_cross_entropy", losses, inputs, gradients, count, logits.size, reduction)


def kl_divergence(
    x: Tensor,
    targets: Any,
    count: float | None = None,
    log_target: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Σ t (log t - x): how far log-probabilities x are from probabilities t; (..., classes).

    x is what ``log_softmax`` gives. Targets are probabilities t, or with ``log_target`` their
    logarithms. Divided by ``count``, by default the number of distributions: PyTorch's
    ``kl_div(..., reduction="batchmean")``. (Its "mean" also divides by the number of classes, and
    is no KL divergence, as its documentation says.) ``reduction="none"``: each class's term.
    """
    x, targets = _constant_targets("kl_divergence", x, targets)
    if x.ndim == 0:
        raise ShapeError("kl_divergence: one number is no distribution: (..., classes) are")
    xp, dtype, t = x.xp, x.dtype, wide(targets.data)
    log_t = t if log_target else xp.log(xp.where(t > 0, t, 1))
    if log_target:
        t = xp.exp(t)
    losses = t * xp.where(t == 0, 0, log_t - wide(x.data))  # where t is 0, x may be -∞: NaN

    def gradients(grad: Array) -> tuple[Array, None]:
        return (-t * grad).astype(dtype, copy=False), None

    rows = x.size // max(1, x.shape[-1])
    return divided("kl_divergence", losses, (x, targets), gradients, count, rows, reduction)


def _constant_targets(name: str, x: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Outputs, and targets of the same shape that require no gradient."""
    x = floating_only(name, x)
    x, targets = pair(name, x, targets)
    if x.shape != targets.shape or targets.node is not None:
        raise ShapeError(
            f"{name}: logits {x.shape} need targets of the same shape without gradients, not "
            f"{targets.shape}"
        )
    return x, floating(targets)
