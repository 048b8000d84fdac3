"""Structured pruning: remove whole channels, hidden units and heads, so that arrays get smaller.

    conv (16, 1, 3, 3) → conv (32, 16, 3, 3) → linear (1568, 128)
                half of the channels of both:
    conv ( 8, 1, 3, 3) → conv (16,  8, 3, 3) → linear ( 784, 128)

Zeros in a large array cost as much as other numbers; a removed unit costs nothing. If a share r of
the units before and after a layer is kept, the layer keeps r² of its parameters and FLOPs, in
memory, on disk and on every machine. Removing whole units is coarser than removing single weights,
so more accuracy is lost for the same number of parameters, and fine-tuning is more important.

A unit's score is the L1 norm of the weights that compute it, Σ|w|; units with the smallest scores
are removed. ``units.py`` finds the arrays to cut.

Source: Li, Kadav, Durdanovic, Samet, Graf, "Pruning filters for efficient ConvNets",
arXiv 1608.08710, section 3.1; heads: Michel, Levy, Neubig, "Are sixteen heads really better than
one?", arXiv 1905.10650 (they score by gradients, here by magnitude too).
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real

import numpy as np

from minidist.compress.rebuild import declared, dtype_of, exchange, filled, refuse_diverged
from minidist.compress.units import Units, find_units
from minidist.nn.attention import CausalSelfAttention
from minidist.nn.module import Module


def keep_largest(model: Module, keep: float | Mapping[str, int]) -> dict[str, np.ndarray]:
    """For each layer the indices of the units to keep, sorted: those with the largest Σ|w|.

    ``keep``: a share of the units of every layer, or the number for each layer by name; layers that
    a mapping does not name keep all. Raises ValueError if a share of a layer's units is not an
    integer, or there are no units; KeyError for a layer without units.
    """
    groups = find_units(model)
    if not groups:
        raise ValueError(
            "keep_largest: this model has no units that can be removed: see compress/units.py"
        )
    if isinstance(keep, Mapping):
        if unknown := keep.keys() - groups.keys():
            raise KeyError(f"keep_largest: no units in {sorted(unknown)}, only in {list(groups)}")
        counts = dict(keep)
    else:
        counts = {layer: _share(units, keep) for layer, units in groups.items()}
    state = model.state()
    return {layer: _largest(groups[layer], count, state) for layer, count in counts.items()}


def _share(units: Units, keep: float) -> int:
    if not (isinstance(keep, Real) and 0 < keep <= 1):
        raise ValueError(
            "keep_largest: keep is a share above 0 and at most 1, or numbers by layer, "
            f"not {keep!r}"
        )
    exact = keep * units.count
    count = round(exact)
    if abs(exact - count) > 1e-9:
        raise ValueError(
            f"keep_largest: {keep:g} of the {units.count} {units.kind}s of layer {units.layer!r} "
            f"is {exact:g}, not a whole number: say how many to keep, as in "
            f"{{{units.layer!r}: {int(exact)}}}"
        )
    return count


def _largest(units: Units, count: int, state: dict[str, np.ndarray]) -> np.ndarray:
    if not (isinstance(count, Integral) and 1 <= count <= units.count):
        raise ValueError(
            f"keep_largest: layer {units.layer!r} has {units.count} {units.kind}s: keep at least 1 "
            f"and at most all of them, not {count}"
        )
    cut = units.own[0]
    refuse_diverged(f"keep_largest: {cut.name}", state[cut.name])
    weight = np.abs(np.moveaxis(state[cut.name], cut.axis, 0).astype(np.float64))
    scores = weight[cut.places].reshape(units.count, -1).sum(axis=1)  # Σ|w| of each unit
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def shrink(model: Module, kept: Mapping[str, np.ndarray]) -> Module:
    """A new, smaller model with only the ``kept`` units of each layer.

    Its outputs equal those of ``model`` with the outputs of the other units set to zero. Raises
    KeyError for a layer without units, ValueError for indices that are none of its units.

    >>> from minidist.models import cnn
    >>> model = cnn(16).init(0)
    >>> print(shrink(model, keep_largest(model, 0.5)).blocks["4"])
    Conv2d(8, 16, kernel=3, padding=1)
    """
    groups = find_units(model)
    state = model.state()
    heads: dict[str, tuple[int, int]] = {}
    for layer, units_kept in kept.items():
        if layer not in groups:
            raise KeyError(f"shrink: no units in {layer!r}, only in {list(groups)}")
        units = groups[layer]
        units_kept = _indices(units, units_kept)
        for cut in (*units.own, *units.readers):
            places = np.sort(cut.places[units_kept].ravel())
            state[cut.name] = np.take(state[cut.name], places, axis=cut.axis)
        if units.kind == "head":
            attention = model.named_modules()[layer]
            per_group = attention.heads // attention.groups
            heads[layer] = len(units_kept) * per_group, len(units_kept)
    smaller = declared(model, {name: values.shape for name, values in state.items()})
    set_heads(smaller, heads)
    return filled(smaller, state, dtype_of(model))


def _indices(units: Units, kept: np.ndarray) -> np.ndarray:
    """``kept``, sorted. Raises ValueError unless each is the index of another unit."""
    found = np.asarray(kept)
    if (
        found.ndim != 1
        or found.dtype.kind not in "iu"
        or not len(found)
        or len(np.unique(found)) < len(found)
        or found.min() < 0
        or found.max() >= units.count
    ):
        raise ValueError(
            f"shrink: layer {units.layer!r} keeps different indices in [0, {units.count}), at "
            f"least one, not {kept!r}; for a mask pass np.flatnonzero(mask)"
        )
    return np.sort(found)


def set_heads(model: Module, heads: Mapping[str, tuple[int, int]]) -> None:
    """Set the numbers of (heads, groups) of a declared model's attention layers, by name."""

    def change(path: str, layer: Module) -> None:
        if path in heads and isinstance(layer, CausalSelfAttention):
            layer.heads, layer.groups = heads[path]

    exchange(model, change)  # visits all layers; replaces none
