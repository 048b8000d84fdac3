"""What fuzzed results are compared with: PyTorch if it is installed, else slopes from numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidist import Tensor, no_grad

try:
    import torch
except ImportError:  # not among what the tests need
    torch = None  # type: ignore[assignment]

# Relative to the largest element, by dtype; each step of a program may lose some more.
TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "float16": 6e-2}


def compare(
    what: str,
    ours: Callable[[Sequence[Tensor]], Tensor],
    theirs: Callable[[Sequence[Any]], Any],
    inputs: Sequence[np.ndarray],
    random: np.random.Generator,
) -> None:
    """Forward and backward of the same function in both: values and gradients of all inputs.

    PyTorch computes in float64 on the same numbers, whatever the inputs' dtype. Without PyTorch the
    slope along a random direction is compared, for float64 inputs.
    """
    tensors = [Tensor(array.copy(), requires_grad=True) for array in inputs]
    out = ours(tensors)
    kind = np.result_type(*inputs).name if inputs else "float64"
    assert out.dtype.name == kind, f"{what}: dtype {out.dtype} from {kind}"
    upstream = random.standard_normal(out.shape).astype(out.dtype)
    if out.node is None:
        return
    out.backward(upstream)
    grads = [
        np.zeros_like(x) if t.grad is None else t.grad for x, t in zip(inputs, tensors, strict=True)
    ]
    for array, grad in zip(inputs, grads, strict=True):
        assert grad.shape == array.shape and grad.dtype == array.dtype, f"{what}: {grad.dtype}"
    if torch is not None:
        leaves = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in inputs]
        expected = theirs(leaves)
        same(f"{what}: value", out.data, expected.detach().numpy(), kind)
        if not expected.requires_grad:
            return
        expected.backward(torch.tensor(upstream.astype(np.float64)))
        for index, (leaf, grad) in enumerate(zip(leaves, grads, strict=True)):
            wanted = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
            same(f"{what}: gradient {index}", grad, wanted, kind)
    elif kind == "float64":
        _compare_slope(what, ours, inputs, upstream, grads, random)


def same(what: str, got: np.ndarray, expected: np.ndarray, kind: str) -> None:
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, not {expected.shape}"
    if not expected.size or not np.isfinite(expected).all():
        return
    bound = TOLERANCE[kind] * max(1.0, float(np.abs(expected).max()))
    gap = np.abs(got.astype(np.float64) - expected).max()
    assert gap <= bound, f"{what}: differs by {gap}, allowed {bound}\n{got}\n{expected}"


def _compare_slope(
    what: str,
    ours: Callable[[Sequence[Tensor]], Tensor],
    inputs: Sequence[np.ndarray],
    upstream: np.ndarray,
    grads: Sequence[np.ndarray],
    random: np.random.Generator,
) -> None:
    """∇f · v against (f(x + εv) - f(x - εv)) / 2ε, for a random v; two ε, to see kinks."""
    directions = [random.standard_normal(x.shape) for x in inputs]
    analytic = sum(float((g * v).sum()) for g, v in zip(grads, directions, strict=True))
    slopes = []
    with no_grad():
        for epsilon in (1e-5, 1e-6):
            ends = []
            for sign in (1, -1):
                moved = [x + sign * epsilon * v for x, v in zip(inputs, directions, strict=True)]
                value = ours([Tensor(x) for x in moved])
                ends.append(float((value.data * upstream).sum()))
            slopes.append((ends[0] - ends[1]) / (2 * epsilon))
    bound = 1e-4 * max(1.0, abs(analytic))
    if abs(slopes[0] - slopes[1]) > bound / 10 or not np.isfinite(slopes).all():
        return  # a kink within ε: no slope to compare with
    assert abs(analytic - slopes[1]) <= bound, f"{what}: slope {analytic}, numerically {slopes[1]}"
