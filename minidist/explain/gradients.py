"""Maps by derivatives: the gradient, gradient × input, and integrated gradients.

                            of pixel i                             sums over i to
    gradient                ∂S/∂x_i                                -
    gradient × input        x_i ∂S/∂x_i                            S(x) - S(0), if S were linear
    integrated gradients    (x_i - b_i) ∫₀¹ ∂S/∂x_i(b + α(x - b)) dα     S(x) - S(b)

The gradient is the effect of a small change. It is not the *contribution* to S: if S is saturated,
all gradients are small. Integrated gradients sum the changes along a straight line from a
*baseline* b, which represents "no input", to x. By the fundamental theorem of calculus they sum to
the whole difference (*completeness*). The baseline is a choice: an image of zeros, a black one, the
mean embedding. Another baseline gives another map.

The integral is computed as a sum over ``steps`` midpoints: α = (k + ½)/steps. Each takes a forward
and a backward. ``completeness_gap`` is the difference between the sum and S(x) - S(b): if it is not
small, use more steps. Simonyan, Vedaldi, Zisserman, arXiv 1312.6034, section 3; Shrikumar et al.,
arXiv 1605.01713; Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017
(arXiv 1703.01365), equations 1 and 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import to_host
from minidist.explain.score import Score, Target
from minidist.nn import Sequential


def gradient(
    model: Sequential, inputs: Any, target: Target = None, position: int = -1
) -> np.ndarray:
    """∂S/∂x_i, with the shape of ``inputs``. For arguments and errors see ``Score``.

    For tokens (n, l) it is the norm of the gradient with respect to each embedding. (The sum would
    be 0, because the layer norm after it subtracts the mean.)
    """
    score = Score(model, inputs, target, position)
    slope = to_host(score.gradient(score.x))
    return np.sqrt(np.square(slope).sum(axis=-1)) if score.embeds else slope


def gradient_times_input(
    model: Sequential, inputs: Any, target: Target = None, position: int = -1
) -> np.ndarray:
    """x_i ∂S/∂x_i, with the shape of ``inputs``. For arguments and errors see ``Score``.

    >>> from minidist.models import mlp
    >>> linear = mlp((2, 3)).init(0)
    >>> x = np.array([[1.0, 2.0]], np.float32)
    >>> bool(np.isclose(gradient_times_input(linear, x, 1).sum(),
    ...                 (linear(x).data - linear(0 * x).data)[0, 1]))
    True
    """
    score = Score(model, inputs, target, position)
    return score.as_map(score.gradient(score.x) * score.x)


def integrated_gradients(
    model: Sequential,
    inputs: Any,
    target: Target = None,
    position: int = -1,
    baseline: Any = None,
    steps: int = 64,
) -> np.ndarray:
    """A map with the shape of ``inputs``, which sums to about S(x) - S(b).

    ``baseline`` is b: a number, an array that broadcasts to the inputs (for tokens, to their
    embeddings), or None: see ``Score.baseline``. Raises ValueError unless ``steps`` is at least 1;
    for other errors see ``Score``.
    """
    if not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"integrated gradients: 1 or more steps from the baseline, not {steps!r}")
    score = Score(model, inputs, target, position)
    b = score.baseline(baseline)
    line = score.x - b
    total = score.model.flat.xp.zeros(score.x.shape, np.float64)
    for k in range(steps):
        alpha = (k + 0.5) / steps
        total += score.gradient(b + score.x.dtype.type(alpha) * line)
    return score.as_map(line * (total / steps))


def completeness_gap(
    maps: np.ndarray,
    model: Sequential,
    inputs: Any,
    target: Target = None,
    position: int = -1,
    baseline: Any = None,
) -> np.ndarray:
    """|Σ_i map_i - (S(x) - S(b))| / |S(x) - S(b)| of each input: (n,)."""
    score = Score(model, inputs, target, position)
    difference = score(score.x).astype(np.float64) - score(score.baseline(baseline))
    return np.abs(maps.reshape(len(maps), -1).sum(axis=1) - difference) / np.abs(difference)
