"""Pictures of private training: accuracy against ε, and images that an attack has recovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def draw_accuracy_against_epsilon(
    axes: Any, curves: Mapping[float, tuple[Any, Any]], without: float | None = None
) -> None:
    """``curves`` maps a noise to (ε (points,), accuracy (points, seeds)): the mean over seeds, and
    a band from the lowest to the highest. ``without``: the accuracy without noise, a line.
    """
    colours = ("#b9770e", "#1f618d", "#6c3483", "#1e8449")
    for k, (noise, (epsilon, accuracy)) in enumerate(curves.items()):
        percent, colour = 100 * np.asarray(accuracy), colours[k % len(colours)]
        axes.plot(epsilon, percent.mean(axis=1), "o-", ms=3, color=colour, label=f"noise {noise:g}")
        axes.fill_between(
            epsilon, percent.min(axis=1), percent.max(axis=1), color=colour, alpha=0.2, lw=0
        )
    if without is not None:
        axes.axhline(100 * without, color="0.5", ls="--", label="clipped, without noise")
    axes.set(xscale="log", xlabel="ε given away so far", ylabel="accuracy on test images (%)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)


def draw_images(axes: Any, rows: Mapping[str, Sequence[Any]], low: float, high: float) -> None:
    """Rows of grey images, (h, w) each, under one another, with the rows' names on the left."""
    gap = 2
    lines, names = [], list(rows)
    for images in rows.values():
        padded = [np.pad(np.asarray(one), gap, constant_values=high) for one in images]
        lines.append(np.concatenate(padded, axis=1))
    axes.imshow(np.concatenate(lines), cmap="gray_r", vmin=low, vmax=high)
    height = len(lines[0])
    axes.set_yticks([height * (k + 0.5) for k in range(len(names))], names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
