"""Magnitude pruning: set the smallest weights to zero, and keep them there.

    w = 0.9  -0.02  0.4   0.01        mask = 1 0 1 0        w ⊙ mask = 0.9  0  0.4  0

A share s of the weights of linear layers and convolutions becomes zero: those with the smallest
|w|. Biases, norms and embeddings are not pruned. Then the model is fine-tuned; after each step of
the optimizer ``apply_masks`` sets the pruned weights to zero again:

    w ← (w - lr · g) ⊙ mask

``scope="model"`` uses one threshold for all weights of the model, so a layer with many small
weights loses more of them; ``scope="layer"`` removes the same share of each layer.

The arrays keep their size, so memory and time do not change: NumPy's products multiply the zeros
too. Only a file that does not store zeros gets smaller (files.py).

Source: Han, Pool, Tran, Dally, "Learning both weights and connections for efficient neural
networks", arXiv 1506.02626, section 3.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from minidist.compress.rebuild import refuse_diverged
from minidist.engine.array import Array, module_of, to_host
from minidist.nn.convolution import Conv2d
from minidist.nn.layers import Linear
from minidist.nn.module import Module, Parameter

Masks = dict[str, Array]  # by parameter, with its shape: True where a weight is kept


def prunable(model: Module) -> dict[str, Parameter]:
    """The weights of all linear layers and convolutions, by name."""
    inside = {
        id(layer.weight)
        for layer in model.named_modules().values()
        if isinstance(layer, (Linear, Conv2d))
    }
    return {name: p for name, p in model.named_parameters().items() if id(p) in inside}


def magnitude_masks(
    model: Module, share: float, scope: Literal["model", "layer"] = "model"
) -> Masks:
    """Masks that remove a ``share`` of the weights, those with the smallest magnitude.

    Of n weights, round(share · n) are removed. Of equal magnitudes the first ones are removed, so
    ranks with the same weights get the same masks. Raises ValueError for a share outside [0, 1),
    another scope, weights that are not finite, or a model without weights to prune.

    >>> from minidist.nn import Linear
    >>> masks = magnitude_masks(Linear(10, 10).init(0), 0.9)
    >>> int(masks["weight"].sum())
    10
    """
    if not 0 <= share < 1:
        raise ValueError(f"magnitude_masks: the share to remove must be in [0, 1), not {share}")
    if scope not in ("model", "layer"):
        raise ValueError(f'magnitude_masks: scope is "model" or "layer", not {scope!r}')
    weights = {name: to_host(p.data) for name, p in prunable(model).items()}
    if not weights:
        raise ValueError("magnitude_masks: the model has no linear layers and no convolutions")
    for name, values in weights.items():
        refuse_diverged(f"magnitude_masks: {name}", values)
    if scope == "layer":
        kept = [_largest(np.abs(w).ravel(), share) for w in weights.values()]
    else:
        every = _largest(np.concatenate([np.abs(w).ravel() for w in weights.values()]), share)
        ends = np.cumsum([w.size for w in weights.values()])
        kept = np.split(every, ends[:-1])
    xp = module_of(model.flat.data)
    return {
        name: xp.asarray(part.reshape(w.shape))
        for (name, w), part in zip(weights.items(), kept, strict=True)
    }


def _largest(magnitudes: np.ndarray, share: float) -> np.ndarray:
    """False for the smallest ``share`` of the elements, True for the others."""
    kept = np.ones(magnitudes.size, bool)
    kept[np.argsort(magnitudes, kind="stable")[: round(share * magnitudes.size)]] = False
    return kept


def apply_masks(model: Module, masks: Masks) -> None:
    """w ← w ⊙ mask, in place: call it after each step of the optimizer.

    Raises ValueError, before anything is changed, for masks of another model.
    """
    named = model.named_parameters()
    for name, mask in masks.items():
        if name not in named or named[name].data.shape != mask.shape:
            found = f"is {named[name].data.shape}" if name in named else "does not exist"
            raise ValueError(
                f"apply_masks: the mask of {name} is {mask.shape}, and the parameter {found}: "
                "these are masks of another model"
            )
    for name, mask in masks.items():
        named[name].data[~mask] = 0  # selects, since inf · 0 is NaN


def sparsity(model: Module) -> float:
    """The share of zeros among all parameters of the model."""
    named = model.parameters()
    zeros = sum(int((parameter.data == 0).sum()) for parameter in named)
    return zeros / max(1, sum(parameter.size for parameter in named))
