"""Occlusion: cover a part of the input and measure how much the score drops.

    x           a patch covered         S(x) - S(x with the patch covered)
    ░░▒▒░░      ░░▒▒░░                  is the contribution of the patch's pixels
    ░▒██▒░      ░▒□□▒░
    ░░▒▒░░      ░░□□░░

It needs only forwards, one for each position of the patch, so it also explains models without
derivatives. Each pixel gets the mean over the patches that cover it. For images (n, h, w) and
(n, c, h, w) the patch is a square over all channels; for vectors (n, f) several consecutive
features; for tokens the embedding of one position. Limit: if either of two features is enough, the
score does not drop when one is covered, so both seem unimportant. Zeiler, Fergus, "Visualizing and
understanding convolutional networks", ECCV 2014 (arXiv 1311.2901), section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minidist.explain.score import Score, Target
from minidist.nn import Sequential


def occlude(
    model: Sequential,
    inputs: Any,
    target: Target = None,
    position: int = -1,
    patch: int = 4,
    stride: int | None = None,
    fill: Any = None,
) -> np.ndarray:
    """The mean drop of S over the patches that cover each pixel, with the shape of ``inputs``.

    ``patch``: side of the square. ``stride``: distance between patches; None: no overlap. ``fill``:
    the values of a covered patch, as in ``Score.baseline``. Raises ValueError for a patch that does
    not fit; for other errors see ``Score``.
    """
    score = Score(model, inputs, target, position)
    cover = score.baseline(fill)
    shape = score.x.shape[1:-1] if score.embeds else score.x.shape[1:]
    patch = 1 if score.embeds else patch
    sides = shape[-2:]  # axes of the patch; for vectors and tokens there is one
    stride = patch if stride is None else stride
    if not 1 <= patch <= min(sides) or not 1 <= stride <= patch:
        raise ValueError(
            f"occlude: a patch of {patch} in strides of {stride} does not cover inputs of {shape}: "
            "1 <= stride <= patch <= the shortest side"
        )
    whole = score(score.x)
    drops, times = np.zeros((len(whole), *sides)), np.zeros(sides)
    for place in places(sides, patch, stride):
        # For embeddings (n, l, width) the patch is on axis 1; otherwise on the last axes.
        where = (slice(None), *place) if score.embeds else (..., *place)
        covered = score.x.copy()
        covered[where] = cover[where]
        drop = whole - score(covered)
        drops[(slice(None), *place)] += drop.reshape(-1, *[1] * len(sides))
        times[place] += 1
    found = drops / times
    if len(shape) > len(sides):  # the same for every channel
        found = np.broadcast_to(found[:, None], (len(found), *shape)) / shape[0]
    return found


def places(sides: Sequence[int], patch: int, stride: int) -> Iterator[tuple[slice, ...]]:
    """The slices of patches that cover everything; the last patch ends at the edge."""
    starts = [sorted({*range(0, side - patch + 1, stride), side - patch}) for side in sides]
    grids = np.meshgrid(*starts, indexing="ij")
    for corner in zip(*(grid.reshape(-1) for grid in grids), strict=True):
        yield tuple(slice(int(start), int(start) + patch) for start in corner)
