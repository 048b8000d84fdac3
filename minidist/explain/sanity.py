"""A sanity check: does a map depend on the trained weights?

A method may simply draw the edges of an image, for any model. Such a map looks convincing, but
explains nothing. So explain the same class with random weights in place of the trained ones. If the
map hardly changes, it does not depend on the training.

``cascade`` replaces the weights block by block, beginning at the output. It compares |map| with
trained and with random weights by Spearman's rank correlation: 1 for the same order of pixels, 0
for an unrelated order. Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018 (arXiv
1810.03292), section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from minidist.engine.array import to_host
from minidist.explain.score import Score, Target
from minidist.nn import Sequential

Explain = Callable[[Sequential, Any, Target], np.ndarray]


def randomised(model: Sequential, seed: int, last: int | None = None) -> Sequential:
    """A copy with random weights in its ``last`` blocks with parameters; None: in all of them."""
    named = model.named_parameters()
    changed = {
        name
        for block in with_weights(model, last)
        for name in model.blocks[block].named_parameters(f"{block}.")
    }
    kept = {name: to_host(one.data) for name, one in named.items() if name not in changed}
    other = copy.deepcopy(model).init(seed, dtype=model.flat.data.dtype)
    return other.load(kept, partial=True) if kept else other


def with_weights(model: Sequential, last: int | None = None) -> list[str]:
    """The names of the ``last`` blocks that have parameters."""
    found = [name for name, block in model.blocks.items() if block.named_parameters()]
    if last is not None and not 0 <= last <= len(found):
        raise ValueError(f"randomised: the model has {len(found)} blocks with weights, not {last}")
    return found if last is None else found[len(found) - last :]


def cascade(
    explain: Explain, model: Sequential, inputs: Any, target: Target = None, seed: int = 1
) -> dict[str, np.ndarray]:
    """For each block, beginning at the output: the correlation of each input's map, (n,), if this
    block and all later ones are random. The explained class stays the same."""
    classes = Score(model, inputs, target).classes
    before = explain(model, inputs, classes)
    found = {}
    for last in range(1, len(with_weights(model)) + 1):
        other = randomised(model, seed, last)
        after = explain(other, inputs, classes)
        found[with_weights(model, last)[0]] = np.array(
            [rank_correlation(np.abs(a), np.abs(b)) for a, b in zip(before, after, strict=True)]
        )
    return found


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation, between the ranks of the values; 0 if all values of one are equal.

    >>> rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 10, 100, 1000]))
    1.0
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"rank correlation: of {np.shape(a)} and {np.shape(b)}")
    x, y = ranks(np.ravel(a)), ranks(np.ravel(b))
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value: 0 for the smallest; equal values get the mean of their ranks."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[where]
