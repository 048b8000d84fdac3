"""Maps by derivatives: the gradient, gradient × input, and integrated gradients.

                            of pixel i                             sums over i to
    gradient                ∂S/∂x_i                                -
    gradient × input        x_i ∂S/∂x_i                            S(x) - S(0), if S were linear
    integrated gradients    (x_i - b_i) ∫₀¹ ∂S/∂x_i(b + α(x - b)) dα     S(x) - S(b)

The gradient says what a small change would do. That is not what *counts* for S: where S is flat
because it is sure already, all gradients are small. Integrated gradients add up the changes along a
straight way from a *baseline* b, which stands for "nothing", to x. By the fundamental theorem of
calculus they add up to the whole difference (*completeness*). What "nothing" is, is a choice: a
grey image of zeros, a black one, the mean embedding. Another baseline gives another map.

The integral is a sum over ``steps`` midpoints: α = (k + ½)/steps. A step takes a forward and a
backward. ``completeness_gap`` says how far the sum is from the difference: if it is not small, take
more steps. Simonyan, Vedaldi, Zisserman, arXiv 1312.6034, section 3; Shrikumar et al., arXiv
1605.01713; Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017 (arXiv
1703.01365), equations 1 and 3.
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
    """∂S/∂x_i, like ``inputs``. For arguments and errors see ``Score``.

    Of tokens (n, l) it is the length of the gradient with respect to each embedding. (Not the sum:
    behind a layer norm, which takes the mean away, it would be 0.)
    """
    score = Score(model, inputs, target, position)
    slope = to_host(score.gradient(score.x))
    return np.sqrt(np.square(slope).sum(axis=-1)) if score.embeds else slope


def gradient_times_input(
    model: Sequential, inputs: Any, target: Target = None, position: int = -1
) -> np.ndarray:
    """x_i ∂S/∂x_i: like ``inputs``, or (n, l) for tokens. For arguments and errors see ``Score``.

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
    """Σ_i is S(x) - S(b): like ``inputs``, or (n, l) for tokens.

    ``baseline`` is b: a number, an array that broadcasts to the inputs (to their embeddings), or
    None: see ``Score.baseline``.
    Raises ValueError for steps of 0; for the other errors see ``Score``.
    """
    if not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"integrated gradients: 1 or more steps from the baseline, not {steps!r}")
    score = Score(model, inputs, target, position)
    b = score.baseline(baseline)
    way = score.x - b
    total = score.model.flat.xp.zeros(score.x.shape, np.float64)
    for k in range(steps):
        alpha = (k + 0.5) / steps
        total += score.gradient(b + score.x.dtype.type(alpha) * way)
    return score.as_map(way * (total / steps))


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
