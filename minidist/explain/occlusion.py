"""Occlusion: cover a part of the input and see how far the score drops.

    x           a patch covered         S(x) - S(x with the patch covered)
    ░░▒▒░░      ░░▒▒░░                  belongs to the pixels of the patch
    ░▒██▒░      ░▒□□▒░
    ░░▒▒░░      ░░□□░░

It needs no gradients, only forwards: one for each place of the patch. So it also explains models
that have no derivatives. Each pixel gets the mean over the patches that cover it. Of images (n, h,
w) and (n, c, h, w) the patch is a square over all channels; of vectors (n, f) a run of features; of
tokens one position, whose embedding is covered. Two features of which either one would do hide each
other: to cover one changes nothing. Zeiler, Fergus, "Visualizing and understanding convolutional
networks", ECCV 2014 (arXiv 1311.2901), section 4.2.
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
    """The mean drop of S by patches over each pixel: like ``inputs``, or (n, l) for tokens.

    ``patch``: side of the square. ``stride``: from one to the next, None: no overlap. ``fill``:
    what covers, as a baseline: see ``Score.baseline``.

    Raises ValueError for a patch that does not fit; for other errors see ``Score``.
    """
    score = Score(model, inputs, target, position)
    cover = score.baseline(fill)
    shape = score.x.shape[1:-1] if score.embeds else score.x.shape[1:]
    patch = 1 if score.embeds else patch
    sides = shape[-2:]  # what a patch goes over; of vectors and tokens a single axis
    stride = patch if stride is None else stride
    if not 1 <= patch <= min(sides) or not 1 <= stride <= patch:
        raise ValueError(
            f"occlude: a patch of {patch} in strides of {stride} does not cover inputs of {shape}: "
            "1 <= stride <= patch <= the shortest side"
        )
    whole = score(score.x)
    drops, times = np.zeros((len(whole), *sides)), np.zeros(sides)
    for place in places(sides, patch, stride):
        # Of embeddings (n, l, width), and of images without channels, the place is axes 1 on.
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
    """Where patches lie, so that all is covered; the last one ends at the edge."""
    starts = [sorted({*range(0, side - patch + 1, stride), side - patch}) for side in sides]
    grids = np.meshgrid(*starts, indexing="ij")
    for corner in zip(*(grid.reshape(-1) for grid in grids), strict=True):
        yield tuple(slice(int(start), int(start) + patch) for start in corner)
