"""Calibration: the range [low, high] that a grid of codes should cover.

    range           from the smallest to the largest value: nothing is clamped
    percentile      leaves out the 0.05 % at each end: an outlier does not make all steps coarse
    squared error   of 50 narrower ranges, the one with the least mean (r - rounded r)²

A wide range makes every rounding error larger; a narrow range clamps the largest values. The
squared error is the best compromise. ``CALIBRATIONS`` has them by name. Each takes rows (n, m), one
for each channel or a single one, and a number of bits, and returns low and high (n,).

``observe`` records the inputs of layers while the model runs on some data.

Source: Wu, Judd, Zhang, Isaev, Micikevicius, "Integer quantization for deep learning inference",
arXiv 2004.09602, section 3.3 (range, percentile); Banner, Nahshan, Hoffer, Soudry, arXiv
1810.05723 (squared error, there with formulas for a Gaussian and a Laplacian).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np

from minidist.compress.affine import Grid, asymmetric, symmetric
from minidist.compress.rebuild import refuse_diverged
from minidist.engine.array import Array, to_host
from minidist.engine.tensor import as_tensor
from minidist.nn.evaluating import as_in_evaluation
from minidist.nn.module import Module

Range = tuple[np.ndarray, np.ndarray]
Calibration = Callable[[np.ndarray, int], Range]

PERCENT = 99.9  # percent of the values that the percentile's range covers
FRACTIONS = np.linspace(0.02, 1, 50)  # of the range; those tried for the least squared error
SAMPLE = 1 << 18  # largest number of values kept of one input of a layer


def by_range(rows: np.ndarray, bits: int) -> Range:
    """The smallest and the largest value of each row."""
    return rows.min(axis=1), rows.max(axis=1)


def by_percentile(rows: np.ndarray, bits: int) -> Range:
    """The range that leaves out (100 - PERCENT)/2 percent of the values at each end."""
    beyond = (100 - PERCENT) / 2
    low, high = np.percentile(rows, [beyond, 100 - beyond], axis=1).astype(rows.dtype)
    return low, high


def by_squared_error(rows: np.ndarray, bits: int) -> Range:
    """Of FRACTIONS of the whole range, the one with the least squared error of the codes."""
    return _least_error(rows, lambda low, high: asymmetric(low, high, bits))


def _least_error(rows: np.ndarray, grid: Callable[[np.ndarray, np.ndarray], Grid]) -> Range:
    low, high = rows.min(axis=1), rows.max(axis=1)
    best = np.full(len(rows), np.inf)
    chosen = np.ones(len(rows), rows.dtype)
    for fraction in FRACTIONS.astype(rows.dtype):
        codes = grid((fraction * low)[:, None], (fraction * high)[:, None])
        error = ((codes.rounded(rows) - rows) ** 2).mean(axis=1)  # (n,)
        better = error < best
        best[better], chosen[better] = error[better], fraction
    return chosen * low, chosen * high


CALIBRATIONS: dict[str, Calibration] = {
    "range": by_range,
    "percentile": by_percentile,
    "squared error": by_squared_error,
}


def calibration(name: str) -> Calibration:
    """The calibration of this name. Raises ValueError if there is none."""
    if name not in CALIBRATIONS:
        raise ValueError(f"no calibration {name!r}: choose one of {', '.join(CALIBRATIONS)}")
    return CALIBRATIONS[name]


def weight_grid(rows: np.ndarray, name: str = "range", bits: int = 8) -> Grid:
    """The symmetric grid of each row of weights (n, m): S and Z are (n,)."""
    chosen = calibration(name)
    if chosen is by_squared_error:  # the error of the symmetric grid, which will be used
        widest = np.abs(rows).max(axis=1, keepdims=True)
        pairs = np.concatenate([-widest, widest, rows], axis=1)  # so that low = -high
        low, high = _least_error(pairs, lambda low, high: symmetric(high, bits))
    else:
        low, high = chosen(rows, bits)
    return symmetric(np.maximum(np.abs(low), np.abs(high)), bits)


def observe(model: Module, paths: Iterable[str], batches: Iterable[Any]) -> dict[str, np.ndarray]:
    """A 1-D sample of the inputs of the layers at ``paths``, by path.

    ``batches`` are inputs of the model. Of a long input every k-th value is kept. The model runs in
    evaluation mode and is not changed. Raises ValueError if no data reaches a layer, or data that
    is not finite.
    """
    modules = model.named_modules()
    seen: dict[str, list[np.ndarray]] = {path: [] for path in paths}
    with ExitStack() as stack:
        for path in seen:
            stack.callback(vars(modules[path]).pop, "forward")
            vars(modules[path])["forward"] = _recorded(modules[path].forward, seen[path])
        stack.enter_context(as_in_evaluation(model))
        for inputs in batches:
            model(inputs)
    empty = [path for path, values in seen.items() if not values]
    if empty:
        raise ValueError(f"observe: no data reached the layers {empty}: pass at least one batch")
    found = {path: np.concatenate(values) for path, values in seen.items()}
    for path, sample in found.items():
        refuse_diverged(f"observe: the input of layer {path!r}", sample)
    return found


def _recorded(forward: Callable[..., Any], values: list[np.ndarray]) -> Callable[..., Any]:
    def recording(x: Any, *more: Any) -> Any:
        data: Array = as_tensor(x).data
        if data.size:
            values.append(to_host(data.reshape(-1)[:: -(-data.size // SAMPLE)]).copy())
        return forward(x, *more)

    return recording
